//! The registers of a vCPU that are switched when another vCPU gets the pCPU: EL1's system
//! registers, its timers, FP and SIMD, and the self-hosted debug registers.

use crate::{asm, sysreg};

macro_rules! registers {
    ($(#[$doc:meta])* $type:ident { $($field:ident = $name:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Default)]
        pub struct $type {
            $(#[doc = concat!("`", $name, "`.")] pub $field: u64,)*
        }

        impl $type {
            /// Reads the registers of this pCPU.
            pub fn save(&mut self) {
                $(self.$field = sysreg::read!($name);)*
            }

            /// Writes the registers of this pCPU.
            pub fn restore(&self) {
                $(sysreg::write!($name, self.$field);)*
            }
        }
    };
}

/// EL1's system registers.
#[derive(Clone, Debug, Default)]
pub struct El1 {
    stage1: Stage1,
    others: Others,
}

registers! {
    /// EL1's system registers, but for those that let stage 1 be walked.
    Others {
        cpacr = "cpacr_el1",
        ttbr0 = "ttbr0_el1",
        ttbr1 = "ttbr1_el1",
        mair = "mair_el1",
        amair = "amair_el1",
        esr = "esr_el1",
        afsr0 = "afsr0_el1",
        afsr1 = "afsr1_el1",
        far = "far_el1",
        par = "par_el1",
        vbar = "vbar_el1",
        contextidr = "contextidr_el1",
        elr = "elr_el1",
        spsr = "spsr_el1",
        sp0 = "sp_el0",
        sp1 = "sp_el1",
        tpidr0 = "tpidr_el0",
        tpidrro0 = "tpidrro_el0",
        tpidr1 = "tpidr_el1",
        csselr = "csselr_el1",
        cntkctl = "cntkctl_el1",
        mdscr = "mdscr_el1",
    }
}

impl El1 {
    /// SCTLR_EL1 of a vCPU that starts: MMU and caches off, RES1 bits of Armv8.0 set
    /// (Arm ARM D24.2.174).
    pub const SCTLR_RESET: u64 = 0x30d0_0800;

    /// Makes the state of a vCPU that starts.
    pub fn new() -> Self {
        Self {
            stage1: Stage1 {
                sctlr: Self::SCTLR_RESET,
                tcr: 0,
            },
            others: Others::default(),
        }
    }

    /// Reads the registers of this pCPU, and closes stage 1.
    pub fn save(&mut self) {
        self.others.save();
        self.stage1 = Stage1::close();
    }

    /// Writes the registers of this pCPU, where stage 1 is closed; the vCPU's stage 2 and its other
    /// controls at EL2 are written before.
    pub fn restore(&self) {
        self.others.restore();
        self.stage1.open();
    }
}

/// The registers that let EL1's stage 1 be walked: SCTLR_EL1 and TCR_EL1.
///
/// Between two vCPUs VTTBR_EL2, TTBR0_EL1 and their like belong partly to one, partly to the other. EL2
/// uses none of them, but a pCPU with one of these errata may execute an AT instruction speculatively
/// and keep in its TLB, under one guest's VMID, what the mix leads to: Cortex-A53 1530924, A55 1530923,
/// A57 1319537, A72 1319367, A76 1165522 and Neoverse N1 with it. So stage 1 is *closed* in between,
/// and whenever no vCPU is loaded: it is on (M), but not walked (EPD0, EPD1), so that every translation
/// ends in a fault, which no TLB keeps.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stage1 {
    sctlr: u64,
    tcr: u64,
}

const SCTLR_M: u64 = 1 << 0;
const TCR_EPD: u64 = 1 << 7 | 1 << 23;

/// Where [`Stage1`] is written to: in the order that it says, which has a test.
trait Registers {
    fn set_sctlr(&mut self, value: u64);
    fn set_tcr(&mut self, value: u64);
    fn isb(&mut self);
}

/// The registers of this pCPU.
struct Own;

impl Registers for Own {
    #[inline(always)]
    fn set_sctlr(&mut self, value: u64) {
        sysreg::write!("sctlr_el1", value);
    }

    #[inline(always)]
    fn set_tcr(&mut self, value: u64) {
        sysreg::write!("tcr_el1", value);
    }

    #[inline(always)]
    fn isb(&mut self) {
        asm::isb();
    }
}

impl Stage1 {
    /// Closes stage 1 on this pCPU, and returns what the registers held.
    pub fn close() -> Self {
        let now = Self {
            sctlr: sysreg::read!("sctlr_el1"),
            tcr: sysreg::read!("tcr_el1"),
        };
        now.close_in(&mut Own);
        now
    }

    /// Gives the registers of this pCPU these contents. All others of the translation regime are
    /// written before; the caller makes an ISB before they are used.
    pub fn open(self) {
        self.open_in(&mut Own);
    }

    /// First no more walks, then the MMU on: with it off, an address would be translated without one.
    fn close_in(self, registers: &mut impl Registers) {
        registers.set_tcr(self.tcr | TCR_EPD);
        registers.isb();
        registers.set_sctlr(self.sctlr | SCTLR_M);
        registers.isb();
    }

    fn open_in(self, registers: &mut impl Registers) {
        registers.isb();
        registers.set_sctlr(self.sctlr);
        registers.isb();
        registers.set_tcr(self.tcr);
    }
}

registers! {
    /// The EL1 virtual and physical timers. Each is set before it is turned on: with what it was set to for
    /// another vCPU its line might go up.
    Timers {
        virtual_compare = "cntv_cval_el0",
        virtual_control = "cntv_ctl_el0",
        physical_compare = "cntp_cval_el0",
        physical_control = "cntp_ctl_el0",
    }
}

/// `CNT*_CTL_EL0` (Arm ARM D24.10): enabled and not masked, so that the line follows the condition.
const TIMER_ARMED_MASK: u64 = 0b011;
const TIMER_ENABLED: u64 = 0b001;

impl Timers {
    /// Returns when the next of the timers fires, in counts of the physical counter; `offset` is
    /// CNTVOFF_EL2.
    pub fn deadline(&self, offset: u64) -> Option<u64> {
        let armed = |control: u64| control & TIMER_ARMED_MASK == TIMER_ENABLED;
        // The counters never come as far as to wrap, so what is beyond their end never fires.
        let virtual_one =
            armed(self.virtual_control).then(|| self.virtual_compare.saturating_add(offset));
        let physical_one = armed(self.physical_control).then_some(self.physical_compare);
        match (virtual_one, physical_one) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (one, other) => one.or(other),
        }
    }
}

/// The FP and SIMD registers.
#[derive(Clone, Debug, Default)]
#[repr(C, align(16))]
pub struct Simd {
    v: [[u64; 2]; 32],
    fpcr: u64,
    fpsr: u64,
}

#[cfg(target_os = "none")]
core::arch::global_asm!(
    ".arch_extension fp",
    ".arch_extension simd",
    ".global simd_save",
    "simd_save:",
    "stp q0, q1, [x0, #0]",
    "stp q2, q3, [x0, #32]",
    "stp q4, q5, [x0, #64]",
    "stp q6, q7, [x0, #96]",
    "stp q8, q9, [x0, #128]",
    "stp q10, q11, [x0, #160]",
    "stp q12, q13, [x0, #192]",
    "stp q14, q15, [x0, #224]",
    "stp q16, q17, [x0, #256]",
    "stp q18, q19, [x0, #288]",
    "stp q20, q21, [x0, #320]",
    "stp q22, q23, [x0, #352]",
    "stp q24, q25, [x0, #384]",
    "stp q26, q27, [x0, #416]",
    "stp q28, q29, [x0, #448]",
    "stp q30, q31, [x0, #480]",
    "mrs x1, fpcr",
    "mrs x2, fpsr",
    "add x0, x0, #512",
    "stp x1, x2, [x0]",
    "ret",
    ".global simd_restore",
    "simd_restore:",
    "ldp q0, q1, [x0, #0]",
    "ldp q2, q3, [x0, #32]",
    "ldp q4, q5, [x0, #64]",
    "ldp q6, q7, [x0, #96]",
    "ldp q8, q9, [x0, #128]",
    "ldp q10, q11, [x0, #160]",
    "ldp q12, q13, [x0, #192]",
    "ldp q14, q15, [x0, #224]",
    "ldp q16, q17, [x0, #256]",
    "ldp q18, q19, [x0, #288]",
    "ldp q20, q21, [x0, #320]",
    "ldp q22, q23, [x0, #352]",
    "ldp q24, q25, [x0, #384]",
    "ldp q26, q27, [x0, #416]",
    "ldp q28, q29, [x0, #448]",
    "ldp q30, q31, [x0, #480]",
    "add x0, x0, #512",
    "ldp x1, x2, [x0]",
    "msr fpcr, x1",
    "msr fpsr, x2",
    "ret",
    ".arch_extension nosimd",
    ".arch_extension nofp",
);

#[cfg(target_os = "none")]
unsafe extern "C" {
    fn simd_save(state: *mut Simd);
    fn simd_restore(state: *const Simd);
}

impl Simd {
    /// Returns V register `n`.
    pub fn register(&self, n: u8) -> u128 {
        let [low, high] = self.v.get(usize::from(n)).copied().unwrap_or_default();
        u128::from(high) << 64 | u128::from(low)
    }

    /// Sets V register `n`, all of it.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the halves are what is wanted"
    )]
    pub fn set_register(&mut self, n: u8, value: u128) {
        if let Some(register) = self.v.get_mut(usize::from(n)) {
            *register = [value as u64, (value >> 64) as u64];
        }
    }

    /// Reads the registers of this pCPU. Their use must not be trapped (CPTR_EL2.TFP).
    pub fn save(&mut self) {
        #[cfg(target_os = "none")]
        // SAFETY: writes exactly this structure, whose layout the code knows (`repr(C)`).
        unsafe {
            simd_save(self);
        }
    }

    /// Writes the registers of this pCPU. Their use must not be trapped (CPTR_EL2.TFP).
    pub fn restore(&self) {
        #[cfg(target_os = "none")]
        // SAFETY: reads exactly this structure; EL2's own code uses no SIMD register.
        unsafe {
            simd_restore(self);
        }
    }
}

/// The self-hosted debug registers: breakpoints and watchpoints (Arm ARM D24.3).
///
/// Accesses to them are trapped, so this is always what the registers hold. `MDSCR_EL1`, which turns
/// them on, is part of [`El1`].
#[derive(Clone, Debug, Default)]
pub struct Debug {
    /// DBGBVR, DBGBCR, DBGWVR, DBGWCR, as op2 of their encodings counts them from 4 on.
    registers: [[u64; 16]; 4],
}

macro_rules! restore_each {
    ($values:expr, $count:expr, $name:literal) => {
        restore_each!($values, $count, $name, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)
    };
    ($values:expr, $count:expr, $name:literal, $($n:literal)*) => {
        $(if $n < $count {
            sysreg::write!(concat!($name, $n, "_el1"), $values[$n]);
        })*
    };
}

impl Debug {
    /// Returns how many breakpoints and watchpoints this pCPU has (ID_AA64DFR0_EL1).
    fn counts() -> (usize, usize) {
        let features = sysreg::read!("id_aa64dfr0_el1");
        let count = |shift: u32| ((features >> shift) & 0xf) as usize + 1;
        (count(12), count(20))
    }

    /// Returns the register with this op2 and CRm, if this pCPU has it.
    pub fn register(&mut self, op2: u32, crm: u32) -> Option<&mut u64> {
        let (breakpoints, watchpoints) = Self::counts();
        let kind = (op2 as usize).checked_sub(4)?;
        let count = if kind < 2 { breakpoints } else { watchpoints };
        let registers = self.registers.get_mut(kind)?;
        registers.get_mut(..count)?.get_mut(crm as usize)
    }

    /// Writes the registers of this pCPU.
    pub fn restore(&self) {
        let (breakpoints, watchpoints) = Self::counts();
        restore_each!(self.registers[0], breakpoints, "dbgbvr");
        restore_each!(self.registers[1], breakpoints, "dbgbcr");
        restore_each!(self.registers[2], watchpoints, "dbgwvr");
        restore_each!(self.registers[3], watchpoints, "dbgwcr");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[rustfmt::skip]
    fn the_deadline_is_the_first_armed_timer() {
        let cases = [
            // virtual control, compare, physical control, compare, offset, deadline
            (0b001, 100, 0b000,  50, 10, Some(110)),
            (0b001, 100, 0b001,  50, 10, Some(50)),
            (0b011, 100, 0b001, 500, 10, Some(500)), // masked: its line stays low
            (0b101, 100, 0b000,   0,  0, Some(100)), // the status bit is no matter
            (0b000, 100, 0b010,   0,  0, None),
            (0b001, u64::MAX, 0b000, 0, 10, Some(u64::MAX)),
        ];
        for (vc, v, pc, p, offset, deadline) in cases {
            let timers = Timers {
                virtual_compare: v, virtual_control: vc,
                physical_compare: p, physical_control: pc,
            };
            assert_eq!(timers.deadline(offset), deadline, "{timers:?}");
        }
    }

    /// Values that a register may have: the last one written, and until an ISB those before.
    #[derive(Default)]
    struct Possible(std::vec::Vec<u64>);

    impl Possible {
        fn settle(&mut self) {
            self.0.drain(..self.0.len() - 1);
        }
    }

    /// A pCPU that may walk at any time, by whatever its registers may hold.
    struct Speculating {
        sctlr: Possible,
        tcr: Possible,
        /// Whose stage 1 is to be used, if it may be: not while other registers are those of
        /// another one, or may be until an ISB.
        guest: Option<Stage1>,
        others_written: Option<Stage1>,
    }

    impl Speculating {
        fn check(&self) {
            for &sctlr in &self.sctlr.0 {
                for &tcr in &self.tcr.0 {
                    let (on, closed) = (sctlr & SCTLR_M != 0, tcr & TCR_EPD == TCR_EPD);
                    let right = self.guest.is_some_and(|guest| {
                        on == (guest.sctlr & SCTLR_M != 0) && (!on || tcr == guest.tcr)
                    });
                    assert!(on && closed || right, "{sctlr:#x}, {tcr:#x}");
                }
            }
        }
    }

    impl Registers for Speculating {
        fn set_sctlr(&mut self, value: u64) {
            self.sctlr.0.push(value);
            self.check();
        }

        fn set_tcr(&mut self, value: u64) {
            self.tcr.0.push(value);
            self.check();
        }

        fn isb(&mut self) {
            self.sctlr.settle();
            self.tcr.settle();
            if let Some(guest) = self.others_written.take() {
                self.guest = Some(guest);
            }
            self.check();
        }
    }

    #[test]
    fn between_two_vcpus_nothing_is_walked() {
        let with = |m: u64, epd: u64| Stage1 {
            sctlr: El1::SCTLR_RESET | m,
            tcr: 0x10 | epd,
        };
        let all = [0, TCR_EPD, 1 << 7, 1 << 23].map(|epd| [with(0, epd), with(1, epd)]);
        for (from, to) in all.iter().flatten().flat_map(|from| {
            let all = all.iter().flatten();
            all.map(move |to| (*from, *to))
        }) {
            let mut pcpu = Speculating {
                sctlr: Possible(std::vec![from.sctlr]),
                tcr: Possible(std::vec![from.tcr]),
                guest: Some(from),
                others_written: None,
            };
            pcpu.check();
            from.close_in(&mut pcpu);
            // The other registers are written now.
            pcpu.guest = None;
            pcpu.others_written = Some(to);
            pcpu.check();
            to.open_in(&mut pcpu);
            pcpu.isb();
            assert_eq!(
                (&*pcpu.sctlr.0, &*pcpu.tcr.0),
                (&[to.sctlr][..], &[to.tcr][..])
            );
        }
    }

    #[test]
    fn a_debug_register_is_found_by_its_encoding() {
        // The host's ID register reads zero: one breakpoint, one watchpoint.
        let mut debug = Debug::default();
        for (kind, op2) in (4..8).enumerate() {
            *debug.register(op2, 0).unwrap() = u64::from(op2);
            assert_eq!(debug.registers[kind][0], u64::from(op2));
            assert_eq!(debug.register(op2, 1), None);
        }
        assert_eq!(debug.register(3, 0), None);
        assert_eq!(debug.register(8, 0), None);
    }

    #[test]
    fn a_simd_register_is_set_whole() {
        let mut simd = Simd::default();
        simd.set_register(31, u128::MAX - 1);
        simd.set_register(31, 1 << 64 | 2);
        simd.set_register(32, 1);
        assert_eq!(simd.v[31], [2, 1]);
        assert_eq!(simd.register(31), 1 << 64 | 2);
        assert_eq!((simd.register(30), simd.register(32)), (0, 0));
    }
}
