//! How domains start, stop and start again.
//!
//! ```text
//!            start                 stop                    last vCPU unloaded
//!   Off ------------> Running -------------> Stopping ------------------------+
//!    ^                   ^                      |                             |
//!    |                   +----- then: reset ----|-----------------------------+
//!    +---------------------- then: off ---------------------------------------+
//! ```

use crate::domain::{self, Domain, MakeError, Payload};
use crate::mmio::{self, Pending};
use crate::physical::Resetting;
use crate::vcpu::{Activity, Run, State, VcpuRef, request};
use crate::{bus, control, exit, machine, panic, pcpu, sched, terminal};
use alloc::sync::Arc;
use alloc::vec::Vec;
use arch::address::BLOCK_2M;
use arch::asm;
use core::sync::atomic::Ordering;
use kernel::guest_tree::{self, Platform};
use kernel::layout;
use kernel::streams::SHOWN;
use kernel::uart::Uart;

/// Where a domain stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lifecycle {
    /// No vCPU runs, until it is started.
    Off,
    /// It runs.
    Running,
    /// Its vCPUs are being stopped.
    Stopping {
        /// vCPUs that are still loaded somewhere.
        loaded: usize,
        /// What follows.
        then: Then,
    },
}

/// What follows when a domain has stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Then {
    /// It stays off: it asked for that.
    Off,
    /// It starts again: it asked for that.
    Reset,
    /// The same, and nothing of what it was is in a cache any more.
    Start,
}

/// How long the rest of the pCPU's vCPUs may run, at least, between two parts of a domain's memory that are
/// cleaned, in milliseconds.
const CLEAN_AGAIN: u32 = 1;

/// How long a device model that starts again waits for its targets to let go of the instance before, in
/// milliseconds.
const ATTACH_AGAIN: u32 = 1;

/// Loads a domain's payload and starts its first vCPU, after the functions that device models emulate
/// for it are reset.
#[cold]
pub(crate) fn start(domain: &Arc<Domain>) -> Result<(), MakeError> {
    let (entry, argument) = load(domain)?;
    if let Some(bus) = &domain.pci {
        bus.lock().show(domain);
    }
    domain.reset_counter();
    *domain.lifecycle.lock() = Lifecycle::Running;
    info!("domain {} starts", domain.name());
    let first = domain.reference(0);
    let emulated = match &domain.pci {
        Some(bus) => {
            let emulated = bus.lock().emulated();
            emulated.map_err(|_| MakeError::NoMemory("the resets of its functions"))?
        }
        None => Vec::new(),
    };
    if let Some(pending) = mmio::next_reset(domain, 0, emulated) {
        return power_on_waiting(&first, entry, argument, pending);
    }
    if !power_on(&first, entry, argument)? {
        error!("domain {}: its first vCPU is not off", domain.name());
    }
    Ok(())
}

/// Puts a vCPU that is off into the state in which it starts; `run` is its lock.
fn initialize(vcpu: &VcpuRef, run: &Run, entry: u64, argument: u64) -> Result<(), MakeError> {
    assert!(run.activity == Activity::Off && run.loaded.is_none());
    // SAFETY: it is off and loaded nowhere, and `run` is locked.
    let state = unsafe { &mut *vcpu.get().state() };
    let forgotten = state.forget_asked();
    forgotten.map_err(|_| MakeError::NoMemory("what its device models have yet to answer"))?;
    let stale = core::mem::take(&mut state.stale);
    *state = State::new(entry, argument);
    state.stale = stale;
    vcpu.get().take_requests();
    Ok(())
}

/// Starts a vCPU that first waits for something.
fn power_on_waiting(
    vcpu: &VcpuRef,
    entry: u64,
    argument: u64,
    pending: Pending,
) -> Result<(), MakeError> {
    let mut run = vcpu.get().run.lock();
    initialize(vcpu, &run, entry, argument)?;
    // SAFETY: it is off and loaded nowhere, and `run` is locked.
    unsafe { (*vcpu.get().state()).pending = Some(pending) };
    // It looks once by itself: the answer may be there already.
    vcpu.get().request(request::ANSWER);
    sched::make_ready(vcpu, &mut run);
    Ok(())
}

/// Starts a vCPU that is off; returns whether it was.
pub(crate) fn power_on(vcpu: &VcpuRef, entry: u64, argument: u64) -> Result<bool, MakeError> {
    let mut run = vcpu.get().run.lock();
    if run.activity != Activity::Off || run.loaded.is_some() {
        return Ok(false);
    }
    initialize(vcpu, &run, entry, argument)?;
    sched::make_ready(vcpu, &mut run);
    Ok(true)
}

/// Stops a domain. Its vCPUs end where they are; the caller may be one of them.
#[cold]
pub(crate) fn stop(domain: &Domain, then: Then) {
    let mut lifecycle = domain.lifecycle.lock();
    if *lifecycle != Lifecycle::Running {
        return;
    }
    // Locks: `lifecycle`, then a vCPU's `run`, then a queue.
    let loaded = (0..domain.vcpus.len())
        .filter(|index| sched::stop(&domain.reference(*index)))
        .count();
    *lifecycle = Lifecycle::Stopping { loaded, then };
    drop(lifecycle);
    if loaded == 0 {
        stopped(domain, then);
    }
}

/// Says that a vCPU of a stopping domain is no longer loaded.
pub(crate) fn unloaded(vcpu: &VcpuRef) {
    let domain = &vcpu.domain;
    let mut lifecycle = domain.lifecycle.lock();
    let Lifecycle::Stopping { loaded, then } = &mut *lifecycle else {
        return;
    };
    *loaded -= 1;
    if *loaded == 0 {
        let then = *then;
        drop(lifecycle);
        stopped(domain, then);
    }
}

/// All vCPUs are unloaded: what follows.
#[cold]
fn stopped(domain: &Domain, then: Then) {
    let domain = domain.reference(0).domain;
    terminal::end_line(domain.id);
    domain.serving.detach();
    if then == Then::Reset {
        info!("domain {} resets", domain.name());
        domain.clean_all_again();
    }
    let begun = end_waits(&domain);
    let bus = domain.pci.as_ref();
    let resets = bus.map(|bus| bus.lock().reset(&domain, begun));
    *domain.resets.lock() = (resets.unwrap_or_default(), then);
    go_on(&domain);
}

/// Gives up what vCPUs of a stopped domain have waited for. Resets are returned: they go on, so that nobody gets
/// what they have reserved in the middle. Answers of device models are nobody's, and stay in the way of no
/// other instance of those.
fn end_waits(domain: &Arc<Domain>) -> Vec<Resetting> {
    let mut begun = Vec::new();
    for index in 0..domain.vcpus.len() {
        let vcpu = domain.reference(index);
        let run = vcpu.get().run.lock();
        // SAFETY: it is off and loaded nowhere, and `run` is locked.
        let state = unsafe { &mut *vcpu.get().state() };
        let reset = (state.pending).take_if(|pending| matches!(pending, Pending::Reset(..)));
        // Without memory it is tried again when the vCPU starts.
        let _ = state.forget_asked();
        drop(run);
        let Some(Pending::Reset(_, _, mut resets)) = reset else {
            continue;
        };
        if begun.try_reserve(resets.len()).is_ok() {
            begun.append(&mut resets);
        } else {
            error!("domain {}: no memory to go on with a reset", domain.name());
        }
    }
    begun
}

/// Goes on with a domain that has stopped: its devices first, whose reset takes a while.
#[cold]
pub(crate) fn go_on(domain: &Arc<Domain>) {
    let (wait, then) = {
        let (resets, then) = &mut *domain.resets.lock();
        (bus::step(resets), *then)
    };
    // What it was about to do for others as the control domain is done, too.
    let control = control::finish(domain);
    if let Some(milliseconds) = wait.into_iter().chain(control).min() {
        sched::sleep(&domain.reference(0), Activity::Off, milliseconds);
        return;
    }
    if then == Then::Reset {
        // It starts with its MMU off, as after a reset of a machine: nothing that it had in a cache may be
        // written back over what it then puts there.
        if !domain.clean_some() {
            sched::sleep(&domain.reference(0), Activity::Off, CLEAN_AGAIN);
            return;
        }
        domain.resets.lock().1 = Then::Start;
    }
    domain.interrupts.reset();
    domain.with_uart(|uart| *uart = Uart::default());
    if then == Then::Off {
        if let Some(bus) = &domain.pci {
            bus.lock().silence(domain);
        }
        off(domain);
        return;
    }
    if let Some(bus) = &domain.pci {
        bus.lock().after_reset(domain);
    }
    if !domain.serving.attach() {
        sched::sleep(&domain.reference(0), Activity::Off, ATTACH_AGAIN);
        return;
    }
    if let Err(error) = start(domain) {
        error!("domain {} cannot start again: {error}", domain.name());
        off(domain);
    }
}

fn off(domain: &Domain) {
    *domain.lifecycle.lock() = Lifecycle::Off;
    // Relaxed: a statistic.
    match domain.refused.load(Ordering::Relaxed) {
        0 => info!("domain {} is off", domain.name()),
        refused => info!(
            "domain {} is off; {refused} accesses were refused",
            domain.name()
        ),
    }
    let mut any = false;
    domain::each(|other| {
        // A device model has nothing to do once those it serves are gone.
        let counts = other.config.servers.is_empty();
        any |= counts && *other.lifecycle.lock() != Lifecycle::Off;
    });
    if !any {
        info!("all domains are off: the machine powers off");
        panic::stop_machine();
    }
}

/// An SError came while a vCPU ran: it is the guest's own to handle. It may have made it, and make more:
/// a few in each second are told.
#[cold]
pub(crate) fn serror(vcpu: &VcpuRef) {
    let (domain, frequency) = (&vcpu.domain, machine::get().frequency);
    let count = domain.serrors.lock().count(sched::now(), frequency);
    match count.before.and_then(|before| before.checked_sub(SHOWN)) {
        None | Some(0) => {}
        Some(more) => warning!("{more} more SErrors went to domain {}", domain.name()),
    }
    if count.now <= SHOWN {
        let (index, name) = (vcpu.index, domain.name());
        warning!("an SError goes to vCPU {index} of domain {name}");
    }
    exit::pend_serror();
    pcpu::this().resched.store(true, Ordering::Relaxed);
}

/// Where a raw binary without a header goes.
const RAW_OFFSET: u64 = 0x8_0000;

/// Puts a payload where it belongs and returns its entry and its argument: the device tree.
#[cold]
fn load(domain: &Domain) -> Result<(u64, u64), MakeError> {
    let memory = &domain.memory;
    let payload = &domain.payload;
    let does_not_fit = |_| MakeError::Payload("its memory is too small for its payload");
    let ram_end = layout::RAM + domain.config.memory;
    let mut at = layout::MODULES;
    for (_, module) in &payload.modules {
        memory.load(at, module).map_err(does_not_fit)?;
        at += (module.len() as u64).next_multiple_of(BLOCK_2M);
    }
    let (entry, tree) = if payload.firmware {
        memory
            .load(layout::FLASH.start, payload.code)
            .map_err(does_not_fit)?;
        (layout::FLASH.start, layout::RAM)
    } else {
        let (offset, size) = placement(payload);
        memory
            .load(layout::RAM + offset, payload.code)
            .map_err(does_not_fit)?;
        let end = layout::RAM + offset + size;
        (layout::RAM + offset, end.next_multiple_of(BLOCK_2M))
    };
    let initrd = match payload.initrd {
        Some(initrd) => {
            let start = tree + BLOCK_2M;
            let end = start + initrd.len() as u64;
            if end > ram_end {
                return Err(does_not_fit(domain::BadAddress));
            }
            memory.load(start, initrd).map_err(does_not_fit)?;
            Some(start..end)
        }
        None => None,
    };
    let no_memory = |_| MakeError::NoMemory("its device tree");
    let (modules, servers) = (
        domain.modules().map_err(no_memory)?,
        domain.serving.describe().map_err(no_memory)?,
    );
    let blob = guest_tree::make(&Platform {
        memory: domain.config.memory,
        vcpus: domain.vcpus.len(),
        host_bridge: domain.config.host_bridge,
        cmdline: &domain.config.cmdline,
        initrd,
        modules: &modules,
        servers: &servers,
    })
    .map_err(|_| MakeError::NoMemory("its device tree"))?;
    if blob.len() as u64 > BLOCK_2M || tree + blob.len() as u64 > ram_end {
        return Err(does_not_fit(domain::BadAddress));
    }
    memory.load(tree, &blob).map_err(does_not_fit)?;
    asm::ic_ialluis();
    asm::dsb_ish();
    Ok((entry, tree))
}

/// Returns where in RAM a kernel goes and how much it takes (Linux,
/// Documentation/arch/arm64/booting.rst).
fn placement(payload: &Payload) -> (u64, u64) {
    let code = payload.code;
    let field = |at: usize| {
        let bytes = code.get(at..at + 8)?;
        Some(u64::from_le_bytes(bytes.try_into().ok()?))
    };
    let len = code.len() as u64;
    match (code.get(0x38..0x3c), field(8), field(16)) {
        (Some(b"ARM\x64"), Some(offset), Some(size)) if offset < BLOCK_2M && size < 1 << 40 => {
            (offset, size.max(len))
        }
        _ => (RAW_OFFSET, len),
    }
}
