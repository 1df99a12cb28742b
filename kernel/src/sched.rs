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
use crate::{exit, irq, lifecycle};
use alloc::collections::{TryReserveError, VecDeque};
use alloc::vec::Vec;
use arch::frame::Frame;
use arch::{asm, gic, sysreg};
use core::sync::atomic::Ordering;

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
    /// vCPUs that wait for a timer and are loaded nowhere, soonest last.
    sleepers: Vec<(u64, VcpuRef)>,
}

impl Queue {
    /// Makes room for `vcpus` more, so that queueing never allocates.
    pub(crate) fn reserve(&mut self, vcpus: usize) -> Result<(), TryReserveError> {
        for ready in &mut self.ready {
            ready.try_reserve(ready.len() + vcpus)?;
        }
        self.sleepers.try_reserve(self.sleepers.len() + vcpus)
    }

    fn push(&mut self, vcpu: VcpuRef) {
        self.ready[vcpu.domain.priority].push_back(vcpu);
    }

    fn remove(&mut self, vcpu: &VcpuRef) {
        self.ready[vcpu.domain.priority].retain(|other| !other.is(vcpu));
    }

    /// Takes the vCPU of the highest priority that is at least `least`.
    fn pop(&mut self, least: usize) -> Option<VcpuRef> {
        let waiting = self.ready.get_mut(least..)?;
        waiting.iter_mut().rev().find_map(VecDeque::pop_front)
    }

    fn has(&self, least: usize) -> bool {
        let waiting = self.ready.get(least..);
        waiting.is_some_and(|queues| queues.iter().any(|queue| !queue.is_empty()))
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

/// Wakes a vCPU that is `Waiting`, or goes on with the restart of its domain, in so many milliseconds.
pub(crate) fn sleep(vcpu: &VcpuRef, milliseconds: u32) {
    let cpu = pcpu::this();
    let deadline = now() + machine::get().ticks(u64::from(milliseconds) * 1000);
    vcpu.get().run.lock().sleeps_on = Some(cpu.number);
    cpu.queue.lock().sleep(deadline, vcpu.clone());
    cpu.set_resched();
}

/// Puts a vCPU that is blocked or off into a queue.
pub(crate) fn make_ready(vcpu: &VcpuRef, run: &mut Run) {
    let machine = machine::get();
    if let Some(cpu) = run.sleeps_on.take() {
        machine.pcpus[cpu].queue.lock().forget_sleeper(vcpu);
    }
    run.activity = Activity::Ready;
    let cpu = choose(machine, vcpu, run);
    cpu.queue.lock().push(vcpu.clone());
    kick(cpu);
}

/// Returns the pCPU on which a vCPU had best run.
fn choose(machine: &'static Machine, vcpu: &VcpuRef, run: &Run) -> &'static Pcpu {
    if let Some(cpu) = run.loaded {
        return &machine.pcpus[cpu];
    }
    let last = &machine.pcpus[run.last];
    // Relaxed: a guess; a wrong one costs time only.
    let idle = |cpu: &&Pcpu| cpu.idle.load(Ordering::Relaxed);
    let allowed = |cpu: &&Pcpu| vcpu.domain.may_run_on(cpu.number);
    if allowed(&last) && idle(&last) {
        return last;
    }
    let mut allowed = machine.online().filter(allowed);
    let first = allowed.next().unwrap_or(last);
    if idle(&first) {
        return first;
    }
    allowed.find(idle).unwrap_or_else(|| {
        if vcpu.domain.may_run_on(last.number) {
            last
        } else {
            first
        }
    })
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
    if let Some(cpu) = run.sleeps_on.take() {
        machine.pcpus[cpu].queue.lock().forget_sleeper(vcpu);
    }
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

/// Turns the running vCPU off: it is not loaded any more when this returns.
pub(crate) fn power_off(running: &Running<'_>) {
    let reference = running.reference();
    running.vcpu.run.lock().activity = Activity::Off;
    unload(running.cpu, &reference);
    running.cpu.set_resched();
}

/// Chooses who runs on this pCPU and returns its frame, to be entered. Waits while there is nobody.
pub(crate) fn schedule(cpu: &'static Pcpu) -> *mut Frame {
    loop {
        // Relaxed: set by this pCPU, or by who then interrupts it.
        cpu.resched.store(false, Ordering::Relaxed);
        // SAFETY: on this pCPU; not held beyond the clone.
        let loaded = unsafe { cpu.local().loaded.clone() };
        if let Some(vcpu) = &loaded
            && vcpu.get().requests.load(Ordering::Relaxed) & request::STOP != 0
        {
            vcpu.get().take_requests();
            unload(cpu, vcpu);
            lifecycle::unloaded(vcpu);
            continue;
        }
        let running = loaded.as_ref().filter(|vcpu| is_running(vcpu));
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

fn is_running(vcpu: &VcpuRef) -> bool {
    vcpu.get().run.lock().activity == Activity::Running
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
    let others = machine::get()
        .online()
        .filter(|other| other.number != cpu.number);
    for other in others {
        let mut queue = other.queue.lock();
        for ready in queue.ready.iter_mut().rev() {
            let may = |vcpu: &VcpuRef| {
                let run = vcpu.get().run.try_lock();
                vcpu.domain.may_run_on(cpu.number) && run.is_some_and(|run| run.loaded.is_none())
            };
            if let Some(at) = ready.iter().position(may) {
                return ready.remove(at);
            }
        }
    }
    None
}

/// Gives the pCPU to `next`, which is marked as running already.
fn switch(cpu: &'static Pcpu, loaded: Option<&VcpuRef>, next: VcpuRef) {
    // SAFETY: on this pCPU; not held beyond the store.
    unsafe { cpu.local().slice_end = now() + machine::get().ticks(SLICE_MICROSECONDS) };
    match loaded {
        Some(vcpu) if vcpu.is(&next) => return,
        Some(vcpu) => {
            save(cpu, vcpu);
            let mut run = vcpu.get().run.lock();
            run.loaded = None;
            match run.activity {
                Activity::Running => {
                    run.activity = Activity::Ready;
                    cpu.queue.lock().push(vcpu.clone());
                    drop(run);
                    wake_a_thief(cpu, vcpu);
                }
                Activity::Blocked => {
                    // SAFETY: it is loaded nowhere, and `run` is locked.
                    let timers = unsafe { &(*vcpu.get().state()).timers };
                    if let Some(deadline) = timers.deadline(vcpu.domain.counter_offset()) {
                        run.sleeps_on = Some(cpu.number);
                        cpu.queue.lock().sleep(deadline, vcpu.clone());
                    }
                }
                Activity::Ready | Activity::Waiting | Activity::Off => {}
            }
        }
        None => {}
    }
    load(cpu, next);
}

/// Tells an idle pCPU that there is a vCPU to take.
fn wake_a_thief(cpu: &Pcpu, vcpu: &VcpuRef) {
    let thief = machine::get().online().find(|other| {
        other.number != cpu.number
            && other.idle.load(Ordering::Relaxed)
            && vcpu.domain.may_run_on(other.number)
    });
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
    if let Some(debug) = &mut state.debug {
        debug.save();
    }
    vcpu.domain.interrupts.save(&vcpu.domain, vcpu.get(), state);
}

/// Puts a vCPU's registers into the machine.
fn load(cpu: &'static Pcpu, vcpu: VcpuRef) {
    {
        let mut run = vcpu.get().run.lock();
        run.loaded = Some(cpu.number);
        run.last = cpu.number;
    }
    // SAFETY: it is loaded on this pCPU from here on, and nobody else refers to its registers.
    let state = unsafe { &mut *vcpu.get().state() };
    let domain = &vcpu.domain;
    sysreg::write!("vttbr_el2", domain.vttbr());
    sysreg::write!("vmpidr_el2", vcpu.get().mpidr);
    sysreg::write!("cntvoff_el2", domain.counter_offset());
    exit::set_traps(Some(state));
    asm::isb();
    state.el1.restore();
    state.timers.restore();
    if let Some(debug) = &state.debug {
        debug.restore();
    }
    domain.interrupts.restore(vcpu.get(), state);
    asm::isb();
    // SAFETY: on this pCPU; not held beyond the stores.
    let local = unsafe { cpu.local() };
    local.simd_live = false;
    local.loaded = Some(vcpu);
}

/// Forgets the machine's registers, which are this vCPU's.
fn unload(cpu: &Pcpu, vcpu: &VcpuRef) {
    sysreg::write!("cntv_ctl_el0", 0);
    sysreg::write!("cntp_ctl_el0", 0);
    vcpu.domain.interrupts.discard(&vcpu.domain, vcpu.get());
    vcpu.get().run.lock().loaded = None;
    exit::set_traps(None);
    // SAFETY: on this pCPU; not held beyond the stores.
    let local = unsafe { cpu.local() };
    local.simd_live = false;
    local.loaded = None;
}

/// Does what was asked of the loaded vCPU, sets the timer, and returns the frame to enter; `None`
/// if the scheduler has to look again.
fn prepare(cpu: &'static Pcpu) -> Option<*mut Frame> {
    // SAFETY: on this pCPU; not held beyond the clone.
    let vcpu = unsafe { cpu.local().loaded.clone() }?;
    if vcpu.get().requests.load(Ordering::Relaxed) != 0 {
        if vcpu.get().requests.load(Ordering::Relaxed) & request::STOP != 0 {
            return None;
        }
        let requests = vcpu.get().take_requests();
        // SAFETY: it is loaded on this pCPU, and no handler of an exit is on the stack below.
        let state = unsafe { &mut *vcpu.get().state() };
        let mut running = Running {
            cpu,
            domain: &vcpu.domain,
            vcpu: vcpu.get(),
            state,
        };
        if requests & request::ANSWER != 0 {
            exit::answer(&mut running);
        }
        if requests & request::INTERRUPTS != 0 {
            vcpu.domain.interrupts.refresh(&vcpu.domain, vcpu.get());
        }
        // Relaxed: set by this pCPU, in what was just done.
        if cpu.resched.load(Ordering::Relaxed) {
            return None;
        }
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
    let deadline = match (slice, sleeper) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (one, other) => one.or(other),
    };
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
    // Relaxed: a hint for `choose`; who puts something into the queue sends an interrupt.
    cpu.idle.store(true, Ordering::Relaxed);
    let work = cpu.queue.lock().has(0);
    if !work {
        asm::dsb_sy();
        asm::wfi();
    }
    cpu.idle.store(false, Ordering::Relaxed);
    irq::handle(cpu);
}

/// Handles the interrupt of the hypervisor's timer: wakes who waits for it.
pub(crate) fn timer_expired(cpu: &'static Pcpu) {
    sysreg::write!("cnthp_ctl_el2", 0);
    asm::isb();
    // SAFETY: on this pCPU; not held beyond the store.
    unsafe { cpu.local().timer = None };
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
                lifecycle::restart(&vcpu.domain);
            }
            Activity::Ready | Activity::Running => {}
        }
    }
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
