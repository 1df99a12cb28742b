//! The generic timer: the counter, and the two timers of EL1.

use crate::{exception, gic};

/// A timer that EL1 has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timer {
    /// CNTV, PPI 27.
    Virtual,
    /// CNTP, PPI 30.
    Physical,
}

const ENABLE: u64 = 1 << 0;
const MASKED: u64 = 1 << 1;
const CONDITION: u64 = 1 << 2;

impl Timer {
    /// Returns its INTID.
    pub const fn intid(self) -> u32 {
        match self {
            Self::Virtual => 27,
            Self::Physical => 30,
        }
    }

    /// Returns the counter that it compares with.
    pub fn now(self) -> u64 {
        match self {
            Self::Virtual => now(),
            Self::Physical => {
                synchronize();
                read_sysreg!("cntpct_el0")
            }
        }
    }

    /// Makes it fire at `deadline`.
    pub fn set(self, deadline: u64) {
        match self {
            Self::Virtual => {
                write_sysreg!("cntv_cval_el0", deadline);
                write_sysreg!("cntv_ctl_el0", ENABLE);
            }
            Self::Physical => {
                write_sysreg!("cntp_cval_el0", deadline);
                write_sysreg!("cntp_ctl_el0", ENABLE);
            }
        }
        synchronize();
    }

    /// Turns it off, and with it its line.
    pub fn stop(self) {
        match self {
            Self::Virtual => write_sysreg!("cntv_ctl_el0", 0),
            Self::Physical => write_sysreg!("cntp_ctl_el0", 0),
        }
        synchronize();
    }

    /// Lets it run with its line held down.
    pub fn mask(self) {
        match self {
            Self::Virtual => write_sysreg!("cntv_ctl_el0", ENABLE | MASKED),
            Self::Physical => write_sysreg!("cntp_ctl_el0", ENABLE | MASKED),
        }
        synchronize();
    }

    /// Tells whether its deadline has passed.
    pub fn fired(self) -> bool {
        let control = match self {
            Self::Virtual => read_sysreg!("cntv_ctl_el0"),
            Self::Physical => read_sysreg!("cntp_ctl_el0"),
        };
        control & CONDITION != 0
    }
}

/// Makes system register writes take effect.
fn synchronize() {
    // SAFETY: a barrier.
    unsafe { core::arch::asm!("isb", options(nostack)) };
}

/// Returns the virtual counter.
pub fn now() -> u64 {
    synchronize();
    read_sysreg!("cntvct_el0")
}

/// Returns how many ticks of the counter `milliseconds` are.
pub fn ticks(milliseconds: u64) -> u64 {
    read_sysreg!("cntfrq_el0") * milliseconds / 1000
}

/// Waits actively until `milliseconds` have passed or `done` says so; tells which.
pub fn wait_until(milliseconds: u64, mut done: impl FnMut() -> bool) -> bool {
    let end = now() + ticks(milliseconds);
    loop {
        if done() {
            return true;
        }
        if now() >= end {
            return false;
        }
        core::hint::spin_loop();
    }
}

/// Waits in WFI until `milliseconds` have passed, with the virtual timer.
///
/// IRQs are held back meanwhile, since a pending interrupt ends WFI all the same; the timer's is never
/// acknowledged, so no handler is needed. Others are taken afterwards.
pub fn sleep(milliseconds: u64) {
    let intid = Timer::Virtual.intid();
    let end = now() + ticks(milliseconds);
    gic::ensure_ready();
    let was_enabled = gic::is_enabled(intid);
    exception::without_irqs(|| {
        gic::enable(intid);
        Timer::Virtual.set(end);
        while now() < end {
            crate::cpu::wait_for_interrupt();
        }
        Timer::Virtual.stop();
        if !was_enabled {
            gic::disable(intid);
        }
    });
}
