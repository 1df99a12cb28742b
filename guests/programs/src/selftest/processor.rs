//! The processor that a domain sees: registers, cache maintenance, timers.

use alloc::vec;
use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

use runtime::harness::Outcome;
use runtime::timer::{self, Timer};
use runtime::{check, check_eq, cpu, exception, gic, instruction, read_sysreg, skip};

use super::on_isthmus;
use crate::simd::Registers;

/// Nothing of another domain may be in a new vCPU's registers.
pub(super) fn simd_starts_at_zero() -> Outcome {
    let registers = Registers::current();
    check!(registers == Registers::zero(), "left over: {registers:x?}");
    Ok(())
}

/// Builds `MRS x0, S3_op1_n_m_op2`.
const fn mrs(op1: u32, n: u32, m: u32, op2: u32) -> u32 {
    0xd538_0000 | op1 << 16 | n << 12 | m << 8 | op2 << 5
}

/// All of the ID space can be read, defined or not (Arm ARM, D23.3.1).
pub(super) fn id_registers() -> Outcome {
    for m in 1..8 {
        for op2 in 0..8 {
            let mut registers = [0; 18];
            // SAFETY: reading an ID register changes x0 only.
            let result = unsafe { instruction::execute(mrs(0, 0, m, op2), &mut registers) };
            check!(result.is_ok(), "S3_0_C0_C{m}_{op2}: {result:?}");
        }
    }
    let level = |field: u64| field & 0xf;
    let features = read_sysreg!("id_aa64pfr0_el1");
    check!(level(features) >= 1, "no AArch64 at EL0");
    check!(level(features >> 4) >= 1, "no AArch64 at EL1");
    check!(level(features >> 24) >= 1, "no GIC system registers");
    if on_isthmus() {
        check_eq!(level(features >> 8), 0, "EL2 is shown");
        check_eq!(level(features >> 32), 0, "SVE is shown");
    }
    Ok(())
}

/// What every kernel does to the debug registers as it starts.
pub(super) fn debug_registers() -> Outcome {
    // OSLAR_EL1 is write-only: MSR S2_0_C1_C0_4, x0. OSLSR, MDSCR and breakpoint 0 are read.
    #[rustfmt::skip]
    let instructions = [
        ("write OSLAR_EL1",    0xd510_1080), ("read OSLSR_EL1",     0xd530_1180),
        ("read MDSCR_EL1",     0xd530_0240), ("write MDSCR_EL1",    0xd510_0240),
        ("read DBGBVR0_EL1",   0xd530_0080), ("read DBGBCR0_EL1",   0xd530_00a0),
        ("write DBGBCR0_EL1",  0xd510_00a0), ("write DBGWCR0_EL1",  0xd510_00e0),
        ("read OSDLR_EL1",     0xd530_1380),
    ];
    for (name, word) in instructions {
        // SAFETY: zero unlocks the OS lock, and turns off what is off.
        let result = unsafe { instruction::execute(word, &mut [0; 18]) };
        check!(result.is_ok(), "{name}: {result:?}");
    }
    Ok(())
}

/// A PMU that is shown counts.
pub(super) fn performance_monitor() -> Outcome {
    let version = read_sysreg!("id_aa64dfr0_el1") >> 8 & 0xf;
    if version == 0 || version == 0xf {
        skip!("there is no PMU");
    }
    let (before, after): (u64, u64);
    // SAFETY: the cycle counter is turned on, read twice and turned off.
    unsafe {
        asm!(
            "msr pmcr_el0, {on}",
            "msr pmccfiltr_el0, xzr",
            "msr pmcntenset_el0, {cycles}",
            "isb",
            "mrs {before}, pmccntr_el0",
            "mov {count}, #1000",
            "2: subs {count}, {count}, #1",
            "b.ne 2b",
            "isb",
            "mrs {after}, pmccntr_el0",
            "msr pmcntenclr_el0, {cycles}",
            "msr pmcr_el0, xzr",
            on = in(reg) 1_u64 | 1 << 2 | 1 << 6,
            cycles = in(reg) 1_u64 << 31,
            before = out(reg) before,
            after = out(reg) after,
            count = out(reg) _,
        );
    }
    check!(after > before, "{before} cycles, and then {after}");
    Ok(())
}

/// Cache maintenance by set and way loses nothing (U-Boot does it).
pub(super) fn set_way() -> Outcome {
    let memory = vec![0x5a_u8; 0x1_0000];
    // CSSELR_EL1 is left alone: level 1, with as many sets and ways as any has.
    for way in 0..4_u64 {
        for set in 0..256_u64 {
            // SAFETY: cleaning and invalidating loses nothing.
            unsafe { asm!("dc cisw, {}", in(reg) way << 30 | set << 6) };
        }
    }
    cpu::barrier();
    check!(memory.iter().all(|&byte| byte == 0x5a), "memory changed");
    Ok(())
}

/// `DC ZVA` clears a block of normal memory.
pub(super) fn zero_block() -> Outcome {
    let identification = read_sysreg!("dczid_el0");
    if identification & 1 << 4 != 0 {
        skip!("DC ZVA is prohibited");
    }
    let block = 4_usize << (identification & 0xf);
    let mut memory = vec![0xff_u8; block * 3];
    let start = memory.as_mut_ptr() as usize;
    let target = start.next_multiple_of(block);
    // SAFETY: the block is inside `memory`.
    unsafe { asm!("dc zva, {}", in(reg) target) };
    let offset = target - start;
    let cleared = memory[offset..offset + block].iter().all(|&byte| byte == 0);
    let kept = memory[..offset]
        .iter()
        .chain(&memory[offset + block..])
        .all(|&byte| byte == 0xff);
    check!(cleared && kept, "{block} bytes at {target:#x}");
    Ok(())
}

static FIRED: AtomicU64 = AtomicU64::new(0);

fn on_virtual(_: u32) {
    Timer::Virtual.stop();
    FIRED.fetch_add(1, Ordering::Relaxed);
}

fn on_physical(_: u32) {
    Timer::Physical.stop();
    FIRED.fetch_add(1, Ordering::Relaxed);
}

pub(super) fn timer_virtual() -> Outcome {
    fires(Timer::Virtual, on_virtual)
}

pub(super) fn timer_physical() -> Outcome {
    fires(Timer::Physical, on_physical)
}

/// A timer ends WFI, once, and not before its time.
fn fires(timer: Timer, handler: gic::Handler) -> Outcome {
    let intid = timer.intid();
    gic::set_handler(intid, Some(handler));
    gic::enable(intid);
    exception::unmask_irqs();
    for (round, milliseconds) in [1, 5, 20, 0, 2].into_iter().enumerate() {
        FIRED.store(0, Ordering::Relaxed);
        let deadline = timer.now() + timer::ticks(milliseconds);
        timer.set(deadline);
        while FIRED.load(Ordering::Relaxed) == 0 && timer.now() < deadline + timer::ticks(2000) {
            // Masked, so that what comes between the look and WFI ends WFI all the same.
            exception::without_irqs(|| {
                if FIRED.load(Ordering::Relaxed) == 0 {
                    cpu::wait_for_interrupt();
                }
            });
        }
        let now = timer.now();
        timer.stop();
        let count = FIRED.load(Ordering::Relaxed);
        check!(
            count == 1,
            "round {round}: fired {count} times, {} ticks late",
            now.wrapping_sub(deadline)
        );
        check!(
            now >= deadline,
            "round {round}: {} ticks early",
            deadline - now
        );
    }
    exception::mask_irqs();
    gic::disable(intid);
    Ok(())
}

/// The pending state of a timer's PPI follows the timer's line.
pub(super) fn timer_line() -> Outcome {
    for timer in [Timer::Virtual, Timer::Physical] {
        let intid = timer.intid();
        gic::disable(intid);
        timer.set(timer.now());
        check!(
            timer::wait_until(100, || gic::is_pending(intid)),
            "{timer:?}: not pending"
        );
        timer.mask();
        check!(
            timer::wait_until(100, || !gic::is_pending(intid)),
            "{timer:?}: pending while masked"
        );
        check!(timer.fired(), "{timer:?}: ISTATUS is gone");
        timer.set(timer.now() + timer::ticks(60_000));
        check!(
            !gic::is_pending(intid) && !timer.fired(),
            "{timer:?}: pending before its time"
        );
        timer.set(timer.now());
        check!(
            timer::wait_until(100, || gic::is_pending(intid)),
            "{timer:?}: not pending again"
        );
        timer.stop();
        check!(
            timer::wait_until(100, || !gic::is_pending(intid)),
            "{timer:?}: pending while off"
        );
    }
    Ok(())
}

/// Reads the virtual counter, the physical one, and the virtual one again: much time may be between.
fn counters() -> [u64; 3] {
    [Timer::Virtual, Timer::Physical, Timer::Virtual].map(Timer::now)
}

/// Counters do not go backwards, and both run at the same speed.
pub(super) fn timer_offsets() -> Outcome {
    let start = counters();
    let mut last = (start[2], start[1]);
    for _ in 0..1000 {
        let now = (Timer::Virtual.now(), Timer::Physical.now());
        check!(
            now.0 >= last.0 && now.1 >= last.1,
            "from {last:?} back to {now:?}"
        );
        last = now;
    }
    timer::sleep(20);
    let end = counters();
    let virtual_ticks = end[0] - start[2]..=end[2] - start[0];
    let physical_ticks = end[1] - start[1];
    check!(
        virtual_ticks.contains(&physical_ticks),
        "virtual {virtual_ticks:?} ticks, physical {physical_ticks}"
    );
    Ok(())
}
