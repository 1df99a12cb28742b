//! The FP and SIMD registers, which the compiler does not touch on this target.

use core::arch::global_asm;

/// q0 to q31, and FPSR and FPCR.
#[repr(C, align(16))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Registers {
    pub(crate) q: [u128; 32],
    pub(crate) fpsr: u64,
    pub(crate) fpcr: u64,
}

global_asm!(
    r#"
    .macro all_pairs operation
    \operation q0, q1, [x0, #0]
    \operation q2, q3, [x0, #32]
    \operation q4, q5, [x0, #64]
    \operation q6, q7, [x0, #96]
    \operation q8, q9, [x0, #128]
    \operation q10, q11, [x0, #160]
    \operation q12, q13, [x0, #192]
    \operation q14, q15, [x0, #224]
    \operation q16, q17, [x0, #256]
    \operation q18, q19, [x0, #288]
    \operation q20, q21, [x0, #320]
    \operation q22, q23, [x0, #352]
    \operation q24, q25, [x0, #384]
    \operation q26, q27, [x0, #416]
    \operation q28, q29, [x0, #448]
    \operation q30, q31, [x0, #480]
    .endm

    .section .text.simd, "ax"
    .arch_extension fp
    .arch_extension simd
    .global simd_load, simd_store
simd_load:
    all_pairs ldp
    add     x3, x0, #512
    ldp     x1, x2, [x3]
    msr     fpsr, x1
    msr     fpcr, x2
    ret
simd_store:
    all_pairs stp
    mrs     x1, fpsr
    mrs     x2, fpcr
    add     x3, x0, #512
    stp     x1, x2, [x3]
    ret
    .arch_extension nosimd
    .arch_extension nofp
    "#
);

unsafe extern "C" {
    fn simd_load(registers: *const Registers);
    fn simd_store(registers: *mut Registers);
}

impl Registers {
    /// Returns registers that are all different, and that `seed` tells from others.
    pub(crate) fn pattern(seed: u64) -> Self {
        let word = |index: u64| u128::from(seed << 16 | index) * 0x1_0000_0000_0000_0001;
        Self {
            q: core::array::from_fn(|index| word(index as u64)),
            // Cumulative exception bits, and a rounding mode.
            fpsr: seed & 0x1f,
            fpcr: (seed & 3) << 22,
        }
    }

    /// Returns registers that are all zero.
    pub(crate) const fn zero() -> Self {
        Self {
            q: [0; 32],
            fpsr: 0,
            fpcr: 0,
        }
    }

    /// Writes this vCPU's registers.
    pub(crate) fn load(&self) {
        // SAFETY: code for this target uses none of these registers.
        unsafe { simd_load(self) };
    }

    /// Reads this vCPU's registers.
    pub(crate) fn current() -> Self {
        let mut registers = Self::zero();
        // SAFETY: the structure has the layout that the code above writes.
        unsafe { simd_store(&mut registers) };
        registers
    }
}
