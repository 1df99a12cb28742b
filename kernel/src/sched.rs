//! Who runs where: fixed priorities, round robin among equals, a queue for each pCPU.
//!
//! A vCPU that waits stays loaded on its pCPU until another one needs the place, so that waking up
//! again costs no switch. Until then it can be woken on that pCPU only; once saved, on any that its
//! domain's affinity allows, an idle one first. A pCPU with nothing to run takes a vCPU that waits in
//! another's queue.
//!
//! Locks: a vCPU's `run`, then a pCPU's `queue`; never two of a kind.

use crate::machine::{self, Machine};
use crate::pcpu::{self, Pcpu, Running};
use crate::vcpu::{Activity, Run, VcpuRef, request};
use crate::{exit, irq, lifecycle, memory, physical};
use alloc::collections::{TryReserveError, VecDeque};
use alloc::vec::Vec;
use arch::context::Stage1;
use arch::frame::Frame;
use arch::{asm, gic, sysreg};
use core::sync::atomic::Ordering;
use core::time::Duration;
use kernel::pace::Time;
use kernel::placement::{self, Load};

/// How many priorities there are: 0 to 15, the higher runs first.
pub(crate) const PRIORITIES: usize = 16;

/// How long a vCPU runs while others of its priority wait, in microseconds.
const SLICE_MICROSECONDS: u64 = 5_000;

/// The SGI by which a pCPU is told to look at its queue and at its vCPU's requests.
pub(crate) const KICK: u8 = 0;

/// Who waits for a pCPU.
#[derive(Default)]
pub(crate) struct Queue {
    ready: [VecDeque<VcpuRef>; PRIORITIES],
    /// A bit for each priority of which somebody is ready.
    priorities: u32,
    /// vCPUs that wait for a timer and are loaded nowhere, soonest last.
    sleepers: Vec<(u64, VcpuRef)>,
    /// How many vCPUs there is room for.
    room: usize,
}

impl Queue {
    /// Makes room for `vcpus` more, so that queueing never allocates.
    pub(crate) fn reserve(&mut self, vcpus: usize) -> Result<(), TryReserveError> {
        let room = self.room + vcpus;
        for ready in &mut self.ready {
            ready.try_reserve(room - ready.len())?;
        }
        self.sleepers.try_reserve(room - self.sleepers.len())?;
        self.room = room;
        Ok(())
    }

    /// Changes who is ready of a priority.
    fn with<R>(&mut self, priority: usize, f: impl FnOnce(&mut VecDeque<VcpuRef>) -> R) -> R {
        let ready = &mut self.ready[priority];
        let result = f(ready);
        let bit = 1 << priority;
        if ready.is_empty() {
            self.priorities &= !bit;
        } else {
            self.priorities |= bit;
        }
        result
    }

    fn push(&mut self, vcpu: VcpuRef) {
        self.with(vcpu.domain.priority, |ready| ready.push_back(vcpu));
    }

    fn remove(&mut self, vcpu: &VcpuRef) {
        self.with(vcpu.domain.priority, |ready| {
            ready.retain(|other| !other.is(vcpu));
        });
    }

    /// Returns the priorities from `least` up of which somebody is ready.
    fn from(&self, least: usize) -> u32 {
        self.priorities >> least << least
    }

    /// Takes the vCPU of the highest priority that is at least `least`.
    fn pop(&mut self, least: usize) -> Option<VcpuRef> {
        let highest = self.from(least).checked_ilog2()?;
        self.with(highest as usize, VecDeque::pop_front)
    }

    fn has(&self, least: usize) -> bool {
        self.from(least) != 0
    }

    fn sleep(&mut self, deadline: u64, vcpu: VcpuRef) {
        let at = self
            .sleepers
            .partition_point(|(other, _)| *other > deadline);
        self.sleepers.insert(at, (deadline, vcpu));
    }

    fn forget_sleeper(&mut self, vcpu: &VcpuRef) {
        self.sleepers.retain(|(_, other)| !other.is(vcpu));
    }

    fn next_deadline(&self) -> Option<u64> {
        self.sleepers.last().map(|(deadline, _)| *deadline)
    }

    fn pop_expired(&mut self, now: u64) -> Option<VcpuRef> {
        let (deadline, _) = self.sleepers.last()?;
        if *deadline > now {
            return None;
        }
        self.sleepers.pop().map(|(_, vcpu)| vcpu)
    }
}

/// Sends the KICK interrupt to `cpu`, or marks it if it is the caller's own.
pub(crate) fn kick(cpu: &Pcpu) {
    if cpu.number == pcpu::this().number {
        cpu.set_resched();
    } else {
        gic::cpu::send_sgi(KICK, gic::Affinity::from_mpidr(cpu.mpidr));
    }
}

/// Makes the vCPU's pCPU look at its requests, and wakes it if it waits.
pub(crate) fn notify(vcpu: &VcpuRef) {
    let mut run = vcpu.get().run.lock();
    match run.activity {
        Activity::Blocked => make_ready(vcpu, &mut run),
        Activity::Running => {
            if let Some(cpu) = run.loaded {
                kick(&machine::get().pcpus[cpu]);
            }
        }
        Activity::Ready | Activity::Waiting | Activity::Off => {}
    }
}

/// Wakes a vCPU that waits for a device model: the answer is there.
pub(crate) fn answered(vcpu: &VcpuRef) {
    let mut run = vcpu.get().run.lock();
    vcpu.get().request(request::ANSWER);
    if run.activity == Activity::Waiting {
        make_ready(vcpu, &mut run);
    }
}

/// Makes the running vCPU wait until `answered`. An answer that came before makes it go on at once.
pub(crate) fn wait_for_answer(running: &Running<'_>) {
    let mut run = running.vcpu.run.lock();
    // Acquire: pairs with `request`, which `answered` makes under the same lock.
    let here = running.vcpu.requests.load(Ordering::Acquire) & request::ANSWER != 0;
    if run.activity == Activity::Running && !here {
        run.activity = Activity::Waiting;
    }
    running.cpu.set_resched();
}

/// Wakes a vCPU that is `Waiting`, or goes on with the restart of the domain of one that is `Off`, in so many
/// milliseconds. If it is not so any more, what it waits for has come, or it was stopped: no timer is left of
/// that, which would take the domain for one that has stopped once the vCPU turns itself off.
pub(crate) fn sleep(vcpu: &VcpuRef, activity: Activity, milliseconds: u32) {
    let cpu = pcpu::this();
    let deadline = now() + machine::get().ticks(u64::from(milliseconds) * 1000);
    let mut run = vcpu.get().run.lock();
    if run.activity != activity {
        return;
    }
    forget_sleeper(vcpu, &mut run);
    run.sleeps_on = Some(cpu.number);
    cpu.queue.lock().sleep(deadline, vcpu.clone());
    drop(run);
    cpu.set_resched();
}

/// Has no pCPU's timer wake a vCPU any more. It is in no more than one list of sleepers, so that there is
/// room for it.
fn forget_sleeper(vcpu: &VcpuRef, run: &mut Run) {
    if let Some(cpu) = run.sleeps_on.take() {
        let cpu = &machine::get().pcpus[cpu];
        cpu.queue.lock().forget_sleeper(vcpu);
    }
}

/// Puts a vCPU that is blocked or off into a queue.
pub(crate) fn make_ready(vcpu: &VcpuRef, run: &mut Run) {
    forget_sleeper(vcpu, run);
    kick(enqueue(vcpu, run));
}

/// Puts a vCPU into the queue of the pCPU on which it had best run, and returns that.
fn enqueue(vcpu: &VcpuRef, run: &mut Run) -> &'static Pcpu {
    run.activity = Activity::Ready;
    let cpu = choose(machine::get(), vcpu, run);
    cpu.queue.lock().push(vcpu.clone());
    if run.loaded.is_none() && cpu.load() != Load::Idle {
        // It may have become idle since; `idle` says why this is not lost.
        wake_a_thief(cpu, vcpu);
    }
    cpu
}

/// Returns the pCPU on which a vCPU had best run.
fn choose(machine: &'static Machine, vcpu: &VcpuRef, run: &Run) -> &'static Pcpu {
    let allowed = machine
        .online()
        .filter(|cpu| vcpu.domain.may_run_on(cpu.number))
        .map(|cpu| (cpu.number, cpu.load()));
    let chosen = run
        .loaded
        .or_else(|| placement::choose(allowed, run.last, vcpu.domain.priority));
    &machine.pcpus[chosen.unwrap_or(run.last)]
}

/// Blocks the running vCPU until `notify`. The caller then looks once more whether what it waits
/// for has come, and notifies itself if so.
pub(crate) fn block(running: &Running<'_>) {
    let mut run = running.vcpu.run.lock();
    if run.activity == Activity::Running {
        run.activity = Activity::Blocked;
    }
    running.cpu.set_resched();
}

/// Takes a vCPU out of the scheduler's hands: it will not run until it is made ready again.
///
/// Returns whether it is still loaded somewhere: then its pCPU has been told, and calls
/// `lifecycle::unloaded` when it no longer is.
pub(crate) fn stop(vcpu: &VcpuRef) -> bool {
    let machine = machine::get();
    let mut run = vcpu.get().run.lock();
    if run.activity == Activity::Ready {
        for cpu in &machine.pcpus {
            cpu.queue.lock().remove(vcpu);
        }
    }
    forget_sleeper(vcpu, &mut run);
    run.activity = Activity::Off;
    match run.loaded {
        Some(cpu) => {
            vcpu.get().request(request::STOP);
            kick(&machine.pcpus[cpu]);
            true
        }
        None => false,
    }
}

/// Turns the running vCPU off; the scheduler unloads it.
pub(crate) fn power_off(running: &Running<'_>) {
    running.vcpu.run.lock().activity = Activity::Off;
    running.cpu.set_resched();
}

/// Chooses who runs on this pCPU and returns its frame, to be entered. Waits while there is nobody.
pub(crate) fn schedule(cpu: &'static Pcpu) -> *mut Frame {
    loop {
        // Relaxed: set by this pCPU, or by who then interrupts it.
        cpu.resched.store(false, Ordering::Relaxed);
        // SAFETY: on this pCPU; not held beyond the clone.
        let loaded = unsafe { cpu.local().loaded.clone() };
        let activity = loaded.as_ref().map(|vcpu| vcpu.get().run.lock().activity);
        if let Some(vcpu) = &loaded
            && activity == Some(Activity::Off)
        {
            unload(cpu, vcpu);
            continue;
        }
        let running = loaded
            .as_ref()
            .filter(|_| activity == Some(Activity::Running));
        match next(cpu, running) {
            Some(next) => switch(cpu, loaded.as_ref(), next),
            None if running.is_some() => {}
            None => {
                idle(cpu);
                continue;
            }
        }
        if let Some(frame) = prepare(cpu) {
            return frame;
        }
    }
}

/// Takes who is to run instead of `running`: whoever has a higher priority, or the same once its
/// time slice is over.
fn next(cpu: &'static Pcpu, running: Option<&VcpuRef>) -> Option<VcpuRef> {
    loop {
        let least = match running {
            Some(vcpu) => {
                // SAFETY: on this pCPU; a number is copied out.
                let slice_end = unsafe { cpu.local().slice_end };
                vcpu.domain.priority + usize::from(now() < slice_end)
            }
            None => 0,
        };
        let popped = cpu.queue.lock().pop(least);
        let vcpu = popped.or_else(|| running.is_none().then(|| steal(cpu)).flatten())?;
        let mut run = vcpu.get().run.lock();
        let here = run.loaded.is_none_or(|loaded| loaded == cpu.number);
        if run.activity == Activity::Ready && here {
            run.activity = Activity::Running;
            // From here on who stops it or kicks it finds it here.
            run.loaded = Some(cpu.number);
            drop(run);
            return Some(vcpu);
        }
        if run.activity == Activity::Ready {
            // Taken from another pCPU, which still has its registers: it goes back.
            let home = &machine::get().pcpus[run.loaded.unwrap_or(cpu.number)];
            home.queue.lock().push(vcpu.clone());
            drop(run);
            kick(home);
            return None;
        }
    }
}

/// Takes a vCPU that waits for another pCPU and may run here.
fn steal(cpu: &Pcpu) -> Option<VcpuRef> {
    others(cpu).find_map(|other| {
        let mut queue = other.queue.lock();
        (0..PRIORITIES).rev().find_map(|priority| {
            queue.with(priority, |ready| {
                let mut waiting = ready.iter();
                let at = waiting.position(|vcpu| may_take(cpu, vcpu) == Some(true))?;
                ready.remove(at)
            })
        })
    })
}

fn others(cpu: &Pcpu) -> impl Iterator<Item = &'static Pcpu> {
    let number = cpu.number;
    machine::get()
        .online()
        .filter(move |other| other.number != number)
}

/// Returns whether a vCPU that waits for another pCPU may run here; `None` if somebody is about to
/// change that: locks are taken in the other order here, so this one is only tried.
fn may_take(cpu: &Pcpu, vcpu: &VcpuRef) -> Option<bool> {
    if !vcpu.domain.may_run_on(cpu.number) {
        return Some(false);
    }
    let run = vcpu.get().run.try_lock()?;
    Some(run.loaded.is_none())
}

/// Returns whether somebody waits who could run here, or may be about to.
fn has_work(cpu: &Pcpu) -> bool {
    let elsewhere = |other: &Pcpu| {
        let queue = other.queue.lock();
        let mut waiting = queue.ready.iter().flatten();
        waiting.any(|vcpu| may_take(cpu, vcpu) != Some(false))
    };
    cpu.queue.lock().has(0) || others(cpu).any(elsewhere)
}

/// Gives the pCPU to `next`, which is marked as running already.
fn switch(cpu: &'static Pcpu, loaded: Option<&VcpuRef>, next: VcpuRef) {
    // SAFETY: on this pCPU; not held beyond the store.
    unsafe { cpu.local().slice_end = now() + machine::get().ticks(SLICE_MICROSECONDS) };
    cpu.set_load(Load::Runs(next.domain.priority));
    let stopped = match loaded {
        Some(vcpu) if vcpu.is(&next) => return,
        Some(vcpu) => {
            save(cpu, vcpu);
            give_up(cpu, vcpu).then_some(vcpu)
        }
        None => None,
    };
    load(cpu, next);
    if let Some(vcpu) = stopped {
        lifecycle::unloaded(vcpu);
    }
}

/// Lets a vCPU go that has been saved, to where it waits. Returns whether `stop` waits to hear that
/// it is no longer loaded.
fn give_up(cpu: &'static Pcpu, vcpu: &VcpuRef) -> bool {
    let mut run = vcpu.get().run.lock();
    run.loaded = None;
    match run.activity {
        Activity::Running => {
            let other = enqueue(vcpu, &mut run);
            if other.number != cpu.number {
                kick(other);
            }
        }
        // It waits in this pCPU's queue; only now others may take it.
        Activity::Ready => wake_a_thief(cpu, vcpu),
        Activity::Blocked => {
            // SAFETY: it is loaded nowhere, and `run` is locked.
            let timers = unsafe { &(*vcpu.get().state()).timers };
            if let Some(deadline) = timers.deadline(vcpu.domain.counter_offset()) {
                forget_sleeper(vcpu, &mut run);
                run.sleeps_on = Some(cpu.number);
                cpu.queue.lock().sleep(deadline, vcpu.clone());
            }
        }
        Activity::Waiting | Activity::Off => {}
    }
    // Under the lock: `stop` asks only while it is loaded.
    vcpu.get().take(request::STOP) != 0
}

/// Tells an idle pCPU that there is a vCPU to take.
fn wake_a_thief(cpu: &Pcpu, vcpu: &VcpuRef) {
    let thief = others(cpu)
        .find(|other| other.load() == Load::Idle && vcpu.domain.may_run_on(other.number));
    if let Some(thief) = thief {
        kick(thief);
    }
}

/// Puts the machine's registers into the vCPU's structure.
fn save(cpu: &Pcpu, vcpu: &VcpuRef) {
    // SAFETY: it is loaded on this pCPU, and no handler of an exit is on the stack below.
    let state = unsafe { &mut *vcpu.get().state() };
    // SErrors that are pending belong to this vCPU: they are taken before another one is loaded.
    asm::dsb_sy();
    asm::isb();
    if sysreg::read!("isr_el1") & exit::ISR_SERROR != 0 {
        arch::entry::take_serror();
        lifecycle::serror(vcpu);
    }
    state.serror_pending = exit::serror_pending();
    state.el1.save();
    state.timers.save();
    sysreg::write!("cntv_ctl_el0", 0);
    sysreg::write!("cntp_ctl_el0", 0);
    // SAFETY: on this pCPU; a flag is taken.
    let simd_live = core::mem::take(unsafe { &mut cpu.local().simd_live });
    if simd_live {
        state.simd.save();
    }
    vcpu.domain.interrupts.save(&vcpu.domain, vcpu.get(), state);
}

/// Puts a vCPU's registers into the machine.
fn load(cpu: &'static Pcpu, vcpu: VcpuRef) {
    vcpu.get().run.lock().last = cpu.number;
    // SAFETY: it is loaded on this pCPU (`next`), and nobody else refers to its registers.
    let state = unsafe { &mut *vcpu.get().state() };
    // SAFETY: the stack that this pCPU was started with, or has moved to.
    unsafe { state.frame.set_stack(memory::stack_top(cpu.number)) };
    let domain = &vcpu.domain;
    sysreg::write!("vttbr_el2", domain.vttbr());
    sysreg::write!("vmpidr_el2", vcpu.get().mpidr);
    sysreg::write!("cntvoff_el2", domain.counter_offset());
    exit::set_traps(Some(state));
    asm::isb();
    state.el1.restore();
    state.timers.restore();
    if state.debugs {
        state.debug.restore();
    }
    domain.interrupts.restore(domain, vcpu.get(), state);
    asm::isb();
    // SAFETY: on this pCPU; not held beyond the stores.
    let local = unsafe { cpu.local() };
    if local.comes_after_another(domain.id, vcpu.index) {
        // vCPUs share the VMID, and each may use an ASID for translations of its own.
        asm::tlbi_vmalle1();
        asm::dsb_nsh();
        asm::isb();
    }
    local.simd_live = false;
    local.loaded = Some(vcpu);
}

/// Forgets the machine's registers, which are those of a vCPU that is off.
fn unload(cpu: &Pcpu, vcpu: &VcpuRef) {
    sysreg::write!("cntv_ctl_el0", 0);
    sysreg::write!("cntp_ctl_el0", 0);
    // Its tables may go with its domain, and its VMID to another.
    Stage1::close();
    vcpu.domain.interrupts.discard(&vcpu.domain, vcpu.get());
    exit::set_traps(None);
    // SAFETY: on this pCPU; not held beyond the stores.
    let local = unsafe { cpu.local() };
    local.simd_live = false;
    local.loaded = None;
    let mut run = vcpu.get().run.lock();
    run.loaded = None;
    // Under the lock: `stop` asks only while it is loaded.
    let stops = vcpu.get().take(request::STOP) != 0;
    drop(run);
    if stops {
        lifecycle::unloaded(vcpu);
    }
}

/// Does what was asked of the loaded vCPU, sets the timer, and returns the frame to enter; `None`
/// if the scheduler has to look again.
fn prepare(cpu: &'static Pcpu) -> Option<*mut Frame> {
    // SAFETY: on this pCPU; not held beyond the clone.
    let vcpu = unsafe { cpu.local().loaded.clone() }?;
    // Relaxed: who asks for more from here on sends an interrupt.
    let mut requests = vcpu.get().requests.load(Ordering::Relaxed);
    if requests & request::STOP != 0 {
        return None;
    }
    if requests & request::ANSWER != 0 && vcpu.get().take(request::ANSWER) != 0 {
        // SAFETY: it is loaded on this pCPU, and no handler of an exit is on the stack below.
        let state = unsafe { &mut *vcpu.get().state() };
        let mut running = Running {
            cpu,
            domain: &vcpu.domain,
            vcpu: vcpu.get(),
            state,
        };
        exit::answer(&mut running);
        // What it asks of itself comes without an interrupt.
        requests |= vcpu.get().requests.load(Ordering::Relaxed);
    }
    if requests & request::INTERRUPTS != 0 {
        vcpu.domain.interrupts.refresh(&vcpu.domain, vcpu.get());
    }
    // Relaxed: set by this pCPU, in what was just done.
    if cpu.resched.load(Ordering::Relaxed) {
        return None;
    }
    set_timer(cpu, Some(vcpu.domain.priority));
    // SAFETY: only the address is made; it lives as long as the vCPU, which stays loaded.
    Some(unsafe { &raw mut (*vcpu.get().state()).frame })
}

/// Sets the hypervisor's timer to what comes first: the end of the time slice if somebody waits for
/// it, or a sleeper's deadline.
fn set_timer(cpu: &Pcpu, running: Option<usize>) {
    let queue = cpu.queue.lock();
    let contested = running.is_some_and(|priority| queue.has(priority));
    let sleeper = queue.next_deadline();
    drop(queue);
    // SAFETY: on this pCPU; not held beyond this function, which calls nothing that takes it.
    let local = unsafe { cpu.local() };
    let slice = contested.then_some(local.slice_end);
    let sooner = |one: Option<u64>, other: Option<u64>| match (one, other) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (one, other) => one.or(other),
    };
    let deadline = sooner(sooner(slice, sleeper), local.devices);
    if deadline == local.timer {
        return;
    }
    local.timer = deadline;
    match deadline {
        Some(deadline) => {
            sysreg::write!("cnthp_cval_el2", deadline);
            sysreg::write!("cnthp_ctl_el2", 1);
        }
        None => sysreg::write!("cnthp_ctl_el2", 0),
    }
    asm::isb();
}

/// Waits for an interrupt and handles it.
fn idle(cpu: &'static Pcpu) {
    set_timer(cpu, None);
    // Who makes a vCPU ready puts it into a queue and then looks for an idle pCPU; this one says
    // that it is idle and then looks into the queues. The queue's lock orders the two, so one of
    // them sees the other.
    cpu.set_load(Load::Idle);
    if !has_work(cpu) {
        asm::dsb_sy();
        asm::wfi();
    }
    cpu.set_load(Load::Runs(0));
    irq::handle(cpu);
}

/// Handles the interrupt of the hypervisor's timer: wakes who waits for it.
pub(crate) fn timer_expired(cpu: &'static Pcpu) {
    sysreg::write!("cnthp_ctl_el2", 0);
    asm::isb();
    // SAFETY: on this pCPU; not held beyond the stores.
    let devices = unsafe {
        let local = cpu.local();
        local.timer = None;
        local.devices.take_if(|at| *at <= now())
    };
    if devices.is_some()
        && let Some(physical) = physical::get()
    {
        physical.look_again();
    }
    loop {
        let expired = cpu.queue.lock().pop_expired(now());
        let Some(vcpu) = expired else { break };
        let mut run = vcpu.get().run.lock();
        if run.sleeps_on != Some(cpu.number) {
            continue;
        }
        run.sleeps_on = None;
        match run.activity {
            Activity::Blocked => make_ready(&vcpu, &mut run),
            Activity::Waiting => {
                vcpu.get().request(request::ANSWER);
                make_ready(&vcpu, &mut run);
            }
            Activity::Off => {
                drop(run);
                lifecycle::go_on(&vcpu.domain);
            }
            Activity::Ready | Activity::Running => {}
        }
    }
    cpu.set_resched();
}

/// Has this pCPU look again at devices that have more to say, at `at`.
pub(crate) fn look_at_devices(at: u64) {
    let cpu = pcpu::this();
    // SAFETY: on this pCPU; not held beyond the store.
    let devices = unsafe { &mut cpu.local().devices };
    *devices = Some(devices.map_or(at, |other| other.min(at)));
    cpu.set_resched();
}

/// Makes room in every queue for a domain's vCPUs.
pub(crate) fn reserve(vcpus: usize) -> Result<(), TryReserveError> {
    for cpu in &machine::get().pcpus {
        cpu.queue.lock().reserve(vcpus)?;
    }
    Ok(())
}

/// Returns the physical counter.
pub(crate) fn now() -> u64 {
    asm::isb();
    sysreg::read!("cntpct_el0")
}

/// Returns the physical counter, for who paces something.
pub(crate) fn time() -> Time {
    Time {
        now: now(),
        frequency: machine::get().frequency,
    }
}

/// Returns the physical counter as a time.
pub(crate) fn uptime() -> Duration {
    let (ticks, frequency) = (now(), machine::get().frequency);
    let nanoseconds = ticks % frequency * 1_000_000_000 / frequency;
    Duration::from_secs(ticks / frequency) + Duration::from_nanos(nanoseconds)
}
