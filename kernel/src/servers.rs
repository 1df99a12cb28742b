//! Device models: the rings between EL2 and them, and the calls they make.
//!
//! A [`Link`] joins a device-model domain to a target. A request waits in the slot of the target's
//! vCPU, which is `Waiting` until the device model completes it; EL2 itself never waits.

use crate::bus::{Bus, Elsewhere};
use crate::domain::{Domain, Extent};
use crate::memory::{self, NoMemory, TableFrames, try_arc};
use crate::passthrough::AssignError;
use crate::pcpu::Running;
use crate::{physical, sched};
use abi::{MapFlags, NONE, Status};
use alloc::collections::TryReserveError;
use alloc::string::String;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use arch::address::{BLOCK_1G, Ipa, PAGE_SIZE, Pa};
use arch::table::Access;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use core::time::Duration;
use ioreq::{
    AttachError, EventSet, Kind, Layout, Line, PostedWrite, Poster, PublishError, Request, Server,
    ServerWork, Sleep, Wake,
};
use kernel::frames::Run;
use kernel::steps::Advance;
use kernel::{fallible, guest_tree, layout, size};
use manifest::Grant;
use spin::Mutex;
use vpci::{BusAddress, BusRange, ClaimError, Decoder, Sbdf};

/// Posted writes that fit in a ring: two pages of them.
const POSTED: u32 = 256;

/// One server of a device model.
pub(crate) struct Link {
    /// Its place in the device model's list: how its calls name it.
    pub(crate) id: u32,
    /// Its place in the target's list.
    pub(crate) in_target: u32,
    /// Its name in the system description.
    name: String,
    owner: Weak<Domain>,
    target: Weak<Domain>,
    server: Server<'static>,
    poster: Mutex<Poster>,
    /// The last change that took a function away. Under the lock of the target's bus.
    removed: AtomicU32,
    /// The target's memory that the device model may reach, where that sees it.
    windows: Vec<Extent>,
    /// It can now. Under the same lock.
    open: AtomicBool,
    /// What the device model finds in its device tree.
    description: Arc<guest_tree::Server>,
}

/// What a device-model domain has.
#[derive(Default)]
pub(crate) struct Serving {
    links: Mutex<Vec<Arc<Link>>>,
    events: Option<EventSet>,
}

/// A request that a vCPU waits for.
pub(crate) struct Asked {
    link: Arc<Link>,
    pending: ioreq::Pending,
}

/// A function that was taken away, and of which its device model has yet to let go.
pub(crate) struct Leaving {
    link: Arc<Link>,
    change: u32,
    /// When it is waited for no longer.
    due: Duration,
}

/// How long a device model may take for that, and after how many milliseconds EL2 looks again.
const PATIENCE: Duration = Duration::from_secs(2);
const LOOK: u32 = 1;

/// How a request went off.
pub(crate) enum Sent {
    /// It is on its way; the vCPU waits.
    Asked(Asked),
    /// It was posted; nobody waits.
    Posted,
    /// An earlier one of this vCPU's, from before a reset, is not answered yet: try again.
    Busy,
    /// There is no device model: reads give this.
    Unanswered(u64),
}

impl Serving {
    /// Makes room for so many servers.
    pub(crate) fn new(servers: usize) -> Option<Self> {
        let events = match u32::try_from(servers).ok()? {
            0 => None,
            count => Some(EventSet::new(count).ok()?),
        };
        let mut links = Vec::new();
        links.try_reserve_exact(servers).ok()?;
        Some(Self {
            links: Mutex::new(links),
            events,
        })
    }

    fn link(&self, id: u64) -> Option<Arc<Link>> {
        self.links.lock().get(usize::try_from(id).ok()?).cloned()
    }

    /// Returns what the device model's device tree says of its servers.
    pub(crate) fn describe(&self) -> Result<Vec<Arc<guest_tree::Server>>, TryReserveError> {
        let links = self.links.lock();
        fallible::collect(links.iter().map(|link| link.description.clone()))
    }

    /// Returns the servers. The lock is not held meanwhile.
    fn each(&self) -> impl Iterator<Item = Arc<Link>> {
        (0..).map_while(|id| self.link(id))
    }

    /// Makes the rings ready for a device model that starts. Returns `false` if a target's vCPU has
    /// yet to take back what it asked the instance before: it has been told, so try again soon.
    pub(crate) fn attach(&self) -> bool {
        self.each().all(|link| {
            loop {
                match link.server.attach(&mut link.poster.lock()) {
                    Ok(()) | Err(AttachError::Attached) => return true,
                    Err(AttachError::Outstanding(slot)) => {
                        // A vCPU that is off takes nothing back by itself.
                        if !link.give_up(slot) {
                            return false;
                        }
                    }
                }
            }
        })
    }

    /// The device model is gone: who waits for it gets what hardware answers where nothing is.
    pub(crate) fn detach(&self) {
        if let Some(events) = &self.events {
            // Its vCPUs sleep no more, whatever they waited for.
            events.clear();
        }
        for link in self.each() {
            link.server.detach();
            if let Some(target) = link.target.upgrade() {
                for slot in link.server.outstanding() {
                    if (slot as usize) < target.vcpus.len() {
                        let vcpu = target.reference(slot as usize);
                        sched::answered(&vcpu);
                        // It may have given the answer up, and wait for something else.
                        sched::notify(&vcpu);
                    }
                }
                if let Some(pci) = &target.pci {
                    pci.lock().unclaim_all(&target, link.in_target, None);
                }
            }
        }
    }
}

impl Link {
    /// Takes back a request that nobody will answer, of a vCPU that is off; returns whether it could.
    fn give_up(&self, slot: u32) -> bool {
        let Some(target) = self.target.upgrade() else {
            return false;
        };
        let Some(vcpu) = target.vcpus.get(slot as usize) else {
            return false;
        };
        let run = vcpu.run.lock();
        if run.loaded.is_some() {
            return false;
        }
        // SAFETY: it is loaded nowhere, and `run` is locked.
        let state = unsafe { &mut *vcpu.state() };
        let before = state.stale.len();
        state
            .stale
            .retain(|asked| asked.answer() == Err(ioreq::TakeError::NotYet));
        state.stale.len() < before
    }

    /// Lets the device model reach the target's memory; the target's bus is locked.
    fn open(&self, owner: &Domain, bus: &Bus) -> Result<(), NoMemory> {
        if self.open.swap(true, Ordering::Relaxed) {
            return Ok(());
        }
        let mut windows = self.windows.iter();
        let opened = windows.try_for_each(|window| share(owner, window.ipa, window.run));
        if opened.is_err() {
            self.close(owner, bus);
        }
        opened
    }

    /// Takes the target's memory away from a device model that has no function there.
    fn close(&self, owner: &Domain, bus: &Bus) {
        let used = bus.next_of_server(self.in_target, None).is_some();
        if used || !self.open.swap(false, Ordering::Relaxed) {
            return;
        }
        let mut stage2 = owner.stage2.lock();
        let Some(stage2) = stage2.as_mut() else {
            return;
        };
        for Extent { ipa, run } in &self.windows {
            let (frames, tlb) = (&mut TableFrames::for_pcpus(), physical::cpu_tlb(owner));
            let unmapped = stage2.unmap(frames, &tlb, Ipa::new(*ipa), run.len);
            assert!(unmapped.is_ok(), "a window is unmapped whole");
        }
    }

    /// Tells the device model that there is work.
    fn signal(&self) {
        let Some(owner) = self.owner.upgrade() else {
            return;
        };
        let Some(events) = &owner.serving.events else {
            return;
        };
        if events.signal(self.id) == Wake::Needed {
            for vcpu in &owner.vcpus {
                sched::notify(&owner.reference(vcpu.index));
            }
        }
    }

    /// Sends a request of a vCPU, or posts it if it may be.
    fn send(self: &Arc<Self>, slot: usize, request: Request, posted: bool) -> Sent {
        if posted && request.kind == Kind::MmioWrite {
            let write = PostedWrite {
                width: request.width,
                sbdf: request.sbdf,
                address: request.address,
                data: request.data,
            };
            match self.server.post(&mut self.poster.lock(), &write) {
                Ok(()) => {
                    self.signal();
                    return Sent::Posted;
                }
                Err(ioreq::PostError::Detached) => return Sent::Posted,
                // A full ring, or one that the device model has spoilt: the write waits its turn.
                Err(ioreq::PostError::Full | ioreq::PostError::ConsumerIndex(_)) => {}
            }
        }
        let slot = u32::try_from(slot).unwrap_or(u32::MAX);
        match self.server.publish(slot, request) {
            Ok(pending) => {
                self.signal();
                Sent::Asked(Asked {
                    link: self.clone(),
                    pending,
                })
            }
            Err(PublishError::Outstanding) => Sent::Busy,
            Err(PublishError::Detached | PublishError::NoSuchSlot) => {
                Sent::Unanswered(request.unanswered())
            }
        }
    }
}

impl Asked {
    /// Returns the answer, once it is there.
    pub(crate) fn answer(&self) -> Result<u64, ioreq::TakeError> {
        self.link.server.take_answer(&self.pending)
    }

    /// Returns whether the function that was asked is no longer that server's.
    pub(crate) fn is_void(&self, bus: &Bus) -> bool {
        !bus.is_emulated_by(self.pending.request().sbdf, self.link.in_target)
    }

    /// Returns what stands for the answer of a device model that is gone.
    pub(crate) fn unanswered(&self) -> u64 {
        self.pending.request().unanswered()
    }
}

/// Sends an access of the running vCPU to a device model.
pub(crate) fn send(running: &mut Running<'_>, to: Elsewhere, request: Request) -> Sent {
    let link = running.domain.links.lock().get(to.server as usize).cloned();
    let Some(link) = link else {
        return Sent::Unanswered(request.unanswered());
    };
    take_stale(running);
    link.send(running.vcpu.index, request, to.posted)
}

/// Takes answers that nobody waits for any more: what was asked before a reset of the domain, or of a
/// function that has gone, blocks the vCPU's slot until it is answered.
#[inline]
pub(crate) fn take_stale(running: &mut Running<'_>) {
    let stale = &mut running.state.stale;
    if !stale.is_empty() {
        stale.retain(|asked| asked.answer() == Err(ioreq::TakeError::NotYet));
    }
}

/// Sends the reset of a function, for a vCPU that is off.
pub(crate) fn send_reset(domain: &Domain, vcpu: usize, server: u32, sbdf: Sbdf) -> Sent {
    let link = domain.links.lock().get(server as usize).cloned();
    match link {
        Some(link) => link.send(vcpu, Request::reset(sbdf), false),
        None => Sent::Unanswered(0),
    }
}

/// Why the servers of a domain could not be made.
pub(crate) enum LinkError {
    /// There is no memory for it.
    NoMemory,
    /// There is no such domain.
    NoTarget,
    /// A slot cannot be had.
    Slot(AssignError),
}

impl From<TryReserveError> for LinkError {
    fn from(_: TryReserveError) -> Self {
        Self::NoMemory
    }
}

impl From<memory::NoMemory> for LinkError {
    fn from(_: memory::NoMemory) -> Self {
        Self::NoMemory
    }
}

impl core::fmt::Display for LinkError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::NoMemory => f.write_str("there is not enough memory"),
            Self::NoTarget => f.write_str("a target was not made, or has no host bridge"),
            Self::Slot(error) => write!(f, "{error}"),
        }
    }
}

/// Makes the servers that a device-model domain is configured with.
#[cold]
pub(crate) fn link(
    owner: &Arc<Domain>,
    find: impl Fn(&str) -> Option<Arc<Domain>>,
) -> Result<(), LinkError> {
    let mut window = layout::WINDOWS;
    for (id, config) in (0u32..).zip(&owner.config.servers) {
        let target = find(&config.target).ok_or(LinkError::NoTarget)?;
        let ring_at = layout::RINGS + u64::from(id) * layout::RING_STRIDE;
        let slots = u32::try_from(target.vcpus.len()).map_err(|_| LinkError::NoMemory)?;
        let shape = Layout::new(slots, POSTED).map_err(|_| LinkError::NoMemory)?;
        let bytes = shape.page_bytes(size(PAGE_SIZE)) as u64;
        let run = memory::allocate_run(bytes, PAGE_SIZE).ok_or(LinkError::NoMemory)?;
        memory::zero_for_domain(run);
        // SAFETY: RAM that EL2 maps at its PA, zeroed, which is never freed: the ring lives as long
        // as the machine. Lines are atomics, for which any bytes are valid.
        let lines = unsafe {
            let lines = size(bytes) / size_of::<Line>();
            core::slice::from_raw_parts(run.start.get() as *const Line, lines)
        };
        let (server, poster) = Server::new(lines, shape).map_err(|_| LinkError::NoMemory)?;
        let in_target =
            u32::try_from(target.links.lock().len()).map_err(|_| LinkError::NoMemory)?;
        let mut pci = target.pci.as_ref().ok_or(LinkError::NoTarget)?.lock();
        {
            let is_own = |function: &&manifest::Function| matches!(&function.backend, manifest::Backend::Server(name) if *name == config.name);
            for function in target.config.functions.iter().filter(is_own) {
                pci.put_emulated(&target, function.slot, in_target)
                    .map_err(LinkError::Slot)?;
            }
        }
        share(owner, ring_at, run)?;
        let mut windows = Vec::new();
        let mut granted = Vec::new();
        for (start, end) in grants(&config.memory, target.config.memory)? {
            for extent in target.memory.ram() {
                let from = start.max(extent.ipa);
                let to = end.min(extent.ipa + extent.run.len);
                if from >= to {
                    continue;
                }
                let local = window + (from - start);
                let run = Run {
                    start: Pa::new(extent.run.start.get() + (from - extent.ipa)),
                    len: to - from,
                };
                fallible::push(&mut windows, Extent { ipa: local, run })?;
                fallible::push(&mut granted, (from, to - from, local))?;
            }
            window += (end - start).next_multiple_of(BLOCK_1G);
        }
        let description = guest_tree::Server {
            id,
            name: fallible::text(&config.name)?,
            target: fallible::text(&config.target)?,
            ring: ring_at..ring_at + bytes,
            memory: granted,
            doorbell: layout::DOORBELL,
        };
        let link = try_arc(Link {
            id,
            in_target,
            name: fallible::text(&config.name)?,
            owner: Arc::downgrade(owner),
            target: Arc::downgrade(&target),
            server,
            poster: Mutex::new(poster),
            removed: AtomicU32::new(0),
            windows,
            open: AtomicBool::new(false),
            description: try_arc(description)?,
        })?;
        if pci.next_of_server(in_target, None).is_some() {
            link.open(owner, &pci)?;
        }
        drop(pci);
        fallible::push(&mut *target.links.lock(), link.clone())?;
        fallible::push(&mut *owner.serving.links.lock(), link)?;
    }
    Ok(())
}

/// Lets a device model see memory at `ipa`.
fn share(owner: &Domain, ipa: u64, run: Run) -> Result<(), NoMemory> {
    let mut stage2 = owner.stage2.lock();
    let stage2 = stage2.as_mut().ok_or(NoMemory)?;
    let frames = &mut TableFrames::for_pcpus();
    stage2
        .map(frames, Ipa::new(ipa), run.start, run.len, Access::DATA)
        .map_err(|_| NoMemory)
}

/// Returns the ranges of a target's memory that a grant covers. Each gets a window of its own.
fn grants(grant: &Grant, memory: u64) -> Result<Vec<(u64, u64)>, TryReserveError> {
    match grant {
        Grant::None => Ok(Vec::new()),
        Grant::All => fallible::collect([(layout::RAM, layout::RAM + memory)]),
        Grant::Ranges(ranges) => {
            let range =
                |range: &manifest::GuestRange| (range.base, range.base.saturating_add(range.size));
            fallible::collect(ranges.iter().map(range))
        }
    }
}

/// Puts a function of a device model at a slot of the domain that its server serves.
#[cold]
pub(crate) fn emulate(
    target: &Arc<Domain>,
    slot: Sbdf,
    model: &Domain,
    server: u64,
) -> Result<(), Status> {
    let link = model.serving.link(server).ok_or(Status::NotFound)?;
    let pci = match &target.pci {
        Some(pci) if link.target.as_ptr() == Arc::as_ptr(target) => pci,
        _ => return Err(Status::NotFound),
    };
    let mut bus = pci.lock();
    // What was taken away before, the device model may still have under the same name.
    if !link.server.has_seen(link.removed.load(Ordering::Relaxed)) {
        return Err(Status::Busy);
    }
    link.open(model, &bus).map_err(|_| Status::NoMemory)?;
    bus.put_emulated(target, slot, link.in_target)
        .map_err(|error| {
            link.close(model, &bus);
            error.status()
        })?;
    link.server.change_functions(&mut link.poster.lock());
    drop(bus);
    link.signal();
    info!("domain {}: {slot} is {}'s", target.name(), link.name);
    Ok(())
}

/// Takes a device model's function off a domain's bus: from here on its slot is empty, and nothing that the
/// device model says of it counts. `None` if there is none at that slot.
#[cold]
pub(crate) fn withdraw(target: &Arc<Domain>, slot: Sbdf) -> Option<Leaving> {
    let mut bus = target.pci.as_ref()?.lock();
    let server = bus.take_emulated(target, slot)?;
    let link = target.links.lock().get(server as usize).cloned()?;
    let change = link.server.change_functions(&mut link.poster.lock());
    link.removed.store(change, Ordering::Relaxed);
    drop(bus);
    link.signal();
    // Who waits for its answer waits in vain; who is about to wait sees the request first.
    for vcpu in &target.vcpus {
        sched::answered(&target.reference(vcpu.index));
    }
    info!(
        "domain {}: {slot} is {}'s no more",
        target.name(),
        link.name
    );
    let due = sched::uptime() + PATIENCE;
    Some(Leaving { link, change, due })
}

impl Leaving {
    /// Looks whether the device model has let go. If that was the server's last function, from then on it
    /// cannot reach the target's memory, whatever it says.
    pub(crate) fn step(&self) -> Result<Advance, AssignError> {
        let seen = self.link.server.has_seen(self.change);
        if !seen && sched::uptime() < self.due {
            return Ok(Advance::Wait(LOOK));
        }
        if let (Some(owner), Some(target)) = (self.link.owner.upgrade(), self.link.target.upgrade())
            && let Some(bus) = &target.pci
        {
            let bus = bus.lock();
            // What was taken away since has its own time.
            if self.link.removed.load(Ordering::Relaxed) == self.change {
                self.link.close(&owner, &bus);
            }
        }
        if seen {
            return Ok(Advance::Done);
        }
        error!("server {} does not let go of a function", self.link.name);
        Err(AssignError::Kept)
    }
}

/// IOREQ_WAIT.
#[inline(never)]
pub(crate) fn wait(running: &mut Running<'_>) {
    let Some(events) = &running.domain.serving.events else {
        running.state.frame.x[0] = Status::NotFound.to_register();
        return;
    };
    if core::mem::take(&mut running.state.waits_for_work) {
        events.awake();
    }
    let [_, server, slot, ..] = running.state.frame.x;
    if server != NONE {
        if let Err(status) = complete(running.domain, server, slot) {
            running.state.frame.x[0] = status.to_register();
            return;
        }
        // The call is made again when it has waited: what is complete is not completed twice.
        running.state.frame.x[1] = NONE;
    }
    loop {
        let links = &running.domain.serving;
        let work = events.take_work(|id| links.link(id.into())?.server.look());
        if let Some((id, work)) = work {
            let slot = match work {
                ServerWork::Posted => NONE,
                ServerWork::Slot(slot) => slot.into(),
            };
            running.state.frame.x[..3].copy_from_slice(&[
                Status::Ok.to_register(),
                id.into(),
                slot,
            ]);
            return;
        }
        match events.sleep() {
            Sleep::LookAgain => {}
            Sleep::Blocked => break,
        }
    }
    running.state.waits_for_work = true;
    running.state.frame.call_again();
    sched::block(running);
    if events.is_pending()
        || running
            .domain
            .interrupts
            .pending(running.domain, running.vcpu)
    {
        sched::notify(&running.reference());
    }
}

/// IOREQ_COMPLETE.
#[inline(never)]
pub(crate) fn complete(domain: &Domain, server: u64, slot: u64) -> Result<(), Status> {
    let link = domain.serving.link(server).ok_or(Status::NotFound)?;
    let slot = u32::try_from(slot).map_err(|_| Status::NotFound)?;
    link.server.complete(slot)?;
    if let Some(target) = link.target.upgrade()
        && target.vcpus.len() > slot as usize
    {
        sched::answered(&target.reference(slot as usize));
    }
    Ok(())
}

/// Finds a server of the caller's, and what it serves.
fn server(domain: &Domain, server: u64) -> Result<(Arc<Link>, Arc<Domain>), Status> {
    let link = domain.serving.link(server).ok_or(Status::NotFound)?;
    let target = link.target.upgrade().ok_or(Status::Gone)?;
    Ok((link, target))
}

fn sbdf(register: u64) -> Result<Sbdf, Status> {
    let number = u32::try_from(register).map_err(|_| Status::InvalidArgument)?;
    Ok(Sbdf::from(number))
}

/// Runs `f` with a server of the caller's, its target, a function that is the server's, and the bus that it
/// stays on meanwhile.
fn with_function<R>(
    domain: &Domain,
    [id, name]: [u64; 2],
    f: impl FnOnce(&Link, &Domain, Sbdf, &mut Bus) -> Result<R, Status>,
) -> Result<R, Status> {
    let (link, target) = server(domain, id)?;
    let sbdf = sbdf(name)?;
    let mut bus = target.pci.as_ref().ok_or(Status::Gone)?.lock();
    if !bus.is_emulated_by(sbdf, link.in_target) {
        return Err(Status::Denied);
    }
    f(&link, &target, sbdf, &mut bus)
}

/// IOREQ_FUNCTION: returns the name of the server's next function.
#[cold]
pub(crate) fn next_function(domain: &Domain, id: u64, after: u64) -> Result<u64, Status> {
    let (link, target) = server(domain, id)?;
    let after = match after {
        NONE => None,
        name => Some(sbdf(name)?),
    };
    let bus = target.pci.as_ref().ok_or(Status::Gone)?.lock();
    let next = bus.next_of_server(link.in_target, after);
    next.map(|name| u32::from(name).into())
        .ok_or(Status::NotFound)
}

/// IOREQ_MAP.
#[inline(never)]
pub(crate) fn map(domain: &Domain, x: &[u64; 31]) -> Result<(), Status> {
    let [_, server, name, at, size, flags, ..] = *x;
    with_function(domain, [server, name], |link, _, sbdf, bus| {
        let flags = MapFlags::from_bits(flags).ok_or(Status::InvalidArgument)?;
        let range = BusRange::new(BusAddress::new(at), size).ok_or(Status::InvalidArgument)?;
        let decoder = Decoder::Ioreq {
            server: link.in_target,
            sbdf,
            posted: flags.contains(MapFlags::POSTED),
        };
        bus.claim(range, sbdf, decoder)
            .map_err(|error| match error {
                ClaimError::Outside(_) => Status::BadAddress,
                ClaimError::Taken { .. } => Status::Busy,
                ClaimError::NoMemory => Status::NoMemory,
            })
    })
}

/// IOREQ_UNMAP.
#[inline(never)]
pub(crate) fn unmap(domain: &Domain, x: &[u64; 31]) -> Result<(), Status> {
    let [_, server, name, at, ..] = *x;
    with_function(domain, [server, name], |link, target, sbdf, bus| {
        let found = bus.unclaim(target, BusAddress::new(at), link.in_target, sbdf);
        found.then_some(()).ok_or(Status::NotFound)
    })
}

/// IOREQ_MSI.
#[inline(never)]
pub(crate) fn msi(domain: &Domain, x: &[u64; 31]) -> Result<(), Status> {
    let [_, id, name, address, data, ..] = *x;
    let (event, requester) = with_function(domain, [id, name], |_, _, sbdf, bus| {
        if address != layout::DOORBELL {
            return Err(Status::BadAddress);
        }
        let event = u32::try_from(data).map_err(|_| Status::InvalidArgument)?;
        Ok((event, bus.requester(sbdf)))
    })?;
    let (_, target) = server(domain, id)?;
    // What the port above does not let through, and what the target's ITS does not know, is dropped, as
    // hardware does.
    if let Some(requester) = requester {
        let _ = target.interrupts.msi(&target, requester.into(), event);
    }
    Ok(())
}

impl Drop for Link {
    fn drop(&mut self) {
        info!("server {} is gone", self.name);
    }
}
