//! Several vCPUs.

use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

use runtime::cpu::Launch;
use runtime::harness::Outcome;
use runtime::smccc::{self, PsciError};
use runtime::timer::{self, Timer};
use runtime::{check, check_eq, cpu, exception, gic, skip};

use super::{on_isthmus, vcpu};
use crate::simd::Registers;

const ON: i64 = 0;
const OFF: i64 = 1;

/// How long another vCPU is waited for, in milliseconds.
pub(super) const LONG: u64 = 30_000;

/// Set by the boot vCPU to let others end.
static RELEASE: AtomicU32 = AtomicU32::new(0);
/// What others have done so far.
static STEPS: AtomicU64 = AtomicU64::new(0);
/// Why another vCPU's part failed, if it did.
static FAILED: AtomicU64 = AtomicU64::new(0);

fn prepare() {
    RELEASE.store(0, Ordering::Release);
    STEPS.store(0, Ordering::Release);
    FAILED.store(0, Ordering::Release);
}

fn wait_for_steps(count: u64) -> bool {
    timer::wait_until(LONG, || STEPS.load(Ordering::Acquire) >= count)
}

fn wait_for_off(target: u64) -> bool {
    timer::wait_until(LONG, || smccc::affinity_info(target, 0) == OFF)
}

fn released() -> bool {
    RELEASE.load(Ordering::Acquire) != 0
}

/// Notes that it runs, and ends when it may.
fn until_released(_: usize) {
    STEPS.fetch_add(1, Ordering::AcqRel);
    while !released() {
        core::hint::spin_loop();
    }
}

pub(super) fn on_off() -> Outcome {
    let Some(target) = vcpu(1) else {
        skip!("there is one vCPU");
    };
    let launch = Launch::new(1, until_released, 0);
    for round in 0..5 {
        prepare();
        check_eq!(
            smccc::affinity_info(target, 0),
            OFF,
            "round {round}: before"
        );
        check_eq!(launch.start(target), Ok(()), "round {round}: CPU_ON");
        check!(wait_for_steps(1), "round {round}: it does not run");
        check_eq!(
            smccc::affinity_info(target, 0),
            ON,
            "round {round}: while it runs"
        );
        check_eq!(
            launch.start(target),
            Err(PsciError::AlreadyOn),
            "round {round}: CPU_ON again"
        );
        RELEASE.store(1, Ordering::Release);
        check!(wait_for_off(target), "round {round}: it does not go off");
        check_eq!(
            STEPS.load(Ordering::Acquire),
            1,
            "round {round}: times it ran"
        );
    }
    Ok(())
}

pub(super) fn on_errors() -> Outcome {
    let entry = 0x4000_0000;
    let own = cpu::affinity();
    check_eq!(
        smccc::cpu_on(own, entry, 0),
        Err(PsciError::AlreadyOn),
        "itself"
    );
    for target in [0xff_00ff_ff0f, 0xfe00, u64::MAX] {
        let result = smccc::cpu_on(target, entry, 0);
        check_eq!(
            result,
            Err(PsciError::InvalidParameters),
            "vCPU {target:#x}"
        );
    }
    if let (true, Some(target)) = (on_isthmus(), vcpu(1)) {
        for entry in [0x0900_0000, u64::MAX - 3, 0x7f_ffff_f000] {
            let result = smccc::cpu_on(target, entry, 0);
            let refused = [
                Err(PsciError::InvalidAddress),
                Err(PsciError::InvalidParameters),
            ];
            check!(refused.contains(&result), "entry {entry:#x}: {result:?}");
            check_eq!(
                smccc::affinity_info(target, 0),
                OFF,
                "entry {entry:#x}: afterwards"
            );
        }
    }
    Ok(())
}

/// The round that vCPU 1 is to take part in, and what it got in it.
static ROUND: AtomicU64 = AtomicU64::new(0);
static RESULT: AtomicU64 = AtomicU64::new(0);

/// One launch is as good as another; it is handed to vCPU 1 by address.
static LAUNCH: spin::Mutex<Option<Launch>> = spin::Mutex::new(None);

const SUCCESS: u64 = 1;
const ALREADY: u64 = 2;
const OTHER: u64 = 3;

fn outcome(result: Result<(), PsciError>) -> u64 {
    match result {
        Ok(()) => SUCCESS,
        Err(PsciError::AlreadyOn | PsciError::OnPending) => ALREADY,
        Err(_) => OTHER,
    }
}

fn rival(target: usize) {
    let mut done = 0;
    while !released() {
        let round = ROUND.load(Ordering::Acquire);
        if round == done {
            core::hint::spin_loop();
            continue;
        }
        done = round;
        let Some(launch) = *LAUNCH.lock() else {
            return;
        };
        RESULT.store(outcome(launch.start(target as u64)), Ordering::Release);
    }
}

/// Says whether the third vCPU may go off.
static GO: AtomicU32 = AtomicU32::new(0);

fn until_go(_: usize) {
    STEPS.fetch_add(1, Ordering::AcqRel);
    while GO.load(Ordering::Acquire) == 0 {
        core::hint::spin_loop();
    }
}

/// Of two that turn a vCPU on at once, exactly one succeeds.
pub(super) fn on_concurrent() -> Outcome {
    let (Some(second), Some(third)) = (vcpu(1), vcpu(2)) else {
        skip!("there are fewer than three vCPUs");
    };
    prepare();
    let launch = Launch::new(2, until_go, 0);
    *LAUNCH.lock() = Some(launch);
    ROUND.store(0, Ordering::Release);
    let target = usize::try_from(third).unwrap_or(0);
    check_eq!(cpu::start(second, 1, rival, target), Ok(()), "the rival");
    let outcome = (1..=50).try_for_each(|round| compete(launch, third, round));
    GO.store(1, Ordering::Release);
    RELEASE.store(1, Ordering::Release);
    check!(wait_for_off(second), "the rival does not go off");
    outcome
}

fn compete(launch: Launch, target: u64, round: u64) -> Outcome {
    GO.store(0, Ordering::Release);
    STEPS.store(0, Ordering::Release);
    RESULT.store(0, Ordering::Release);
    ROUND.store(round, Ordering::Release);
    let own = outcome(launch.start(target));
    let answered = timer::wait_until(LONG, || RESULT.load(Ordering::Acquire) != 0);
    check!(answered, "round {round}: the rival is stuck");
    let mut both = [own, RESULT.load(Ordering::Acquire)];
    both.sort_unstable();
    check_eq!(both, [SUCCESS, ALREADY], "round {round}: the two results");
    check!(wait_for_steps(1), "round {round}: it does not run");
    let state = smccc::affinity_info(target, 0);
    check_eq!(state, ON, "round {round}: while it runs");
    GO.store(1, Ordering::Release);
    check!(wait_for_off(target), "round {round}: it does not go off");
    let ran = STEPS.load(Ordering::Acquire);
    check_eq!(ran, 1, "round {round}: times it ran");
    Ok(())
}

const PING: u32 = 8;
const PONG: u32 = 9;

/// Takes one interrupt with IRQs masked, waiting in WFI.
fn take(milliseconds: u64) -> u32 {
    let end = timer::now() + timer::ticks(milliseconds);
    // The timer ends WFI if nothing else does; its interrupt is never enabled on this vCPU's way out.
    gic::enable(Timer::Virtual.intid());
    let mut intid = gic::acknowledge();
    while intid == gic::SPURIOUS && timer::now() < end {
        Timer::Virtual.set(end);
        cpu::wait_for_interrupt();
        intid = gic::acknowledge();
        if intid == Timer::Virtual.intid() {
            Timer::Virtual.stop();
            gic::end(intid);
            intid = gic::SPURIOUS;
        }
    }
    Timer::Virtual.stop();
    gic::disable(Timer::Virtual.intid());
    if intid != gic::SPURIOUS {
        gic::end(intid);
    }
    intid
}

fn answer(affinity: usize) {
    gic::init_cpu();
    gic::enable(PING);
    STEPS.fetch_add(1, Ordering::AcqRel);
    while !released() {
        if take(1000) == PING {
            gic::send_sgi(PONG, affinity as u64);
        }
    }
}

pub(super) fn sgi_round_trip() -> Outcome {
    let Some(target) = vcpu(1) else {
        skip!("there is one vCPU");
    };
    prepare();
    gic::enable(PONG);
    let own = usize::try_from(cpu::affinity()).unwrap_or(0);
    check_eq!(cpu::start(target, 1, answer, own), Ok(()), "CPU_ON");
    check!(wait_for_steps(1), "it does not run");
    for round in 0..100 {
        gic::send_sgi(PING, target);
        check_eq!(take(LONG), PONG, "round {round}");
    }
    RELEASE.store(1, Ordering::Release);
    // It may answer this one or not.
    gic::send_sgi(PING, target);
    check!(wait_for_off(target), "it does not go off");
    gic::disable(PONG);
    gic::clear_pending(PONG);
    Ok(())
}

const SPI: u32 = 100;

fn take_spi(_: usize) {
    gic::init_cpu();
    STEPS.fetch_add(1, Ordering::AcqRel);
    while !released() {
        if take(1000) == SPI {
            STEPS.fetch_add(1, Ordering::AcqRel);
        }
    }
}

/// An SPI goes where GICD_IROUTER sends it.
pub(super) fn spi_route() -> Outcome {
    let Some(target) = vcpu(1) else {
        skip!("there is one vCPU");
    };
    prepare();
    check_eq!(cpu::start(target, 1, take_spi, 0), Ok(()), "CPU_ON");
    check!(wait_for_steps(1), "it does not run");
    gic::disable(SPI);
    gic::set_edge(SPI, true);
    gic::route(SPI, target);
    gic::enable(SPI);
    for round in 0..10 {
        gic::set_pending(SPI);
        check!(
            wait_for_steps(2 + round),
            "round {round}: it was not delivered"
        );
        check_eq!(
            gic::acknowledge(),
            gic::SPURIOUS,
            "round {round}: delivered here too"
        );
    }
    gic::route(SPI, cpu::affinity());
    gic::set_pending(SPI);
    check_eq!(take(1000), SPI, "routed back");
    gic::disable(SPI);
    RELEASE.store(1, Ordering::Release);
    check!(wait_for_off(target), "it does not go off");
    Ok(())
}

fn tick(_: usize) {
    gic::init_cpu();
    for _ in 0..20 {
        let start = timer::now();
        timer::sleep(3);
        if timer::now() - start < timer::ticks(3) {
            FAILED.store(1, Ordering::Release);
        }
        STEPS.fetch_add(1, Ordering::AcqRel);
    }
}

/// Each vCPU has timers of its own.
pub(super) fn timers_apart() -> Outcome {
    let Some(target) = vcpu(1) else {
        skip!("there is one vCPU");
    };
    prepare();
    check_eq!(cpu::start(target, 1, tick, 0), Ok(()), "CPU_ON");
    for _ in 0..20 {
        let start = timer::now();
        timer::sleep(7);
        check!(timer::now() - start >= timer::ticks(7), "woken too early");
    }
    check!(wait_for_steps(20), "the other vCPU sleeps for ever");
    check_eq!(
        FAILED.load(Ordering::Acquire),
        0,
        "the other vCPU was woken too early"
    );
    check!(wait_for_off(target), "it does not go off");
    Ok(())
}

/// Seeds for the vCPUs' patterns.
static SEED: AtomicUsize = AtomicUsize::new(0x5151);

fn disturb(_: usize) {
    if Registers::current() != Registers::zero() {
        FAILED.store(1, Ordering::Release);
    }
    gic::init_cpu();
    let pattern = Registers::pattern(SEED.load(Ordering::Relaxed) as u64);
    pattern.load();
    while !released() {
        timer::wait_until(1, || false);
        timer::sleep(1);
        if Registers::current() != pattern {
            FAILED.store(2, Ordering::Release);
        }
        STEPS.fetch_add(1, Ordering::AcqRel);
    }
}

/// The FP and SIMD registers stay what they are, whoever else runs on the pCPU.
pub(super) fn simd_preserved() -> Outcome {
    prepare();
    let other = vcpu(1);
    if let Some(target) = other {
        check_eq!(cpu::start(target, 1, disturb, 0), Ok(()), "CPU_ON");
    }
    for round in 0..60 {
        let pattern = Registers::pattern(round + 1);
        pattern.load();
        // Through hypercalls, through WFI, and through preemption.
        let _ = smccc::version();
        check!(
            Registers::current() == pattern,
            "round {round}: changed by a hypercall"
        );
        timer::sleep(2);
        check!(
            Registers::current() == pattern,
            "round {round}: changed in WFI"
        );
        timer::wait_until(3, || false);
        check!(
            Registers::current() == pattern,
            "round {round}: changed while running"
        );
    }
    // It may have had no pCPU until now.
    let stepped = other.is_none() || wait_for_steps(1);
    RELEASE.store(1, Ordering::Release);
    if let Some(target) = other {
        check!(wait_for_off(target), "it does not go off");
        check!(stepped, "the other vCPU did nothing");
        check_eq!(
            FAILED.load(Ordering::Acquire),
            0,
            "1: registers left over, 2: not preserved"
        );
    }
    exception::mask_irqs();
    Ok(())
}
