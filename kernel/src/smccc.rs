//! Calls of guests: SMC Calling Convention (Arm DEN 0028), over HVC.

use crate::exit::Next;
use crate::pcpu::Running;
use crate::psci;
use arch::sysreg;

/// The conduit says no: there is no such function (DEN 0028, 7.1).
pub(crate) const NOT_SUPPORTED: u64 = u64::MAX;
const SUCCESS: u64 = 0;

/// SMCCC_VERSION: 1.2.
const VERSION: u64 = 1 << 16 | 2;

/// What tells whether firmware knows SMCCC at all (Arm DEN 0022, 5.15), and the version from which on
/// it has workarounds.
const PSCI_FEATURES: u32 = 0x8400_000a;
const SMCCC_1_1: i32 = 1 << 16 | 1;

mod function {
    pub(super) const SMCCC_VERSION: u32 = 0x8000_0000;
    pub(super) const ARCH_FEATURES: u32 = 0x8000_0001;
    pub(super) const ARCH_WORKAROUND_3: u32 = 0x8000_3fff;
    pub(super) const ARCH_WORKAROUND_2: u32 = 0x8000_7fff;
    pub(super) const ARCH_WORKAROUND_1: u32 = 0x8000_8000;
    pub(super) const TRNG_VERSION: u32 = 0x8400_0050;
    pub(super) const TRNG_FEATURES: u32 = 0x8400_0051;
    pub(super) const TRNG_UUID: u32 = 0x8400_0052;
    pub(super) const TRNG_RND_32: u32 = 0x8400_0053;
    pub(super) const TRNG_RND_64: u32 = 0xc400_0053;
}

/// Handles an HVC. It has been carried out, so the guest goes on behind it.
pub(crate) fn handle(running: &mut Running<'_>, immediate: u16) -> Next {
    if immediate != 0 {
        running.state.frame.x[0] = NOT_SUPPORTED;
        return Next::Resume;
    }
    #[expect(
        clippy::cast_possible_truncation,
        reason = "function identifiers are W0"
    )]
    let function = running.state.frame.x[0] as u32;
    match function {
        0x8600_0000..=0x8600_ffff | 0xc600_0000..=0xc600_ffff => {
            crate::hypercall::handle(running, function)
        }
        0x8400_0000..=0x8400_001f | 0xc400_0000..=0xc400_001f => psci::handle(running, function),
        _ => {
            architecture(running, function);
            Next::Resume
        }
    }
}

/// Handles an SMC, which traps before it is carried out: there is nothing behind it for a guest.
pub(crate) fn smc(running: &mut Running<'_>) -> Next {
    running.state.frame.x[0] = NOT_SUPPORTED;
    Next::Skip
}

#[inline(never)]
fn architecture(running: &mut Running<'_>, function: u32) {
    let x = &mut running.state.frame.x;
    #[expect(
        clippy::cast_possible_truncation,
        reason = "function identifiers are W1"
    )]
    let argument = x[1] as u32;
    x[0] = match function {
        function::SMCCC_VERSION => VERSION,
        function::ARCH_FEATURES => features(argument),
        // Firmware's to do, where it does it; they return nothing (7.5.5).
        function::ARCH_WORKAROUND_1 | function::ARCH_WORKAROUND_2 | function::ARCH_WORKAROUND_3 => {
            if firmware_has(function) {
                ::smccc::smc32(function, [argument, 0, 0, 0, 0, 0, 0]);
            }
            return;
        }
        function::TRNG_VERSION if has_entropy() => 1 << 16,
        function::TRNG_FEATURES if has_entropy() => match argument {
            function::TRNG_VERSION
            | function::TRNG_FEATURES
            | function::TRNG_UUID
            | function::TRNG_RND_32
            | function::TRNG_RND_64 => SUCCESS,
            _ => NOT_SUPPORTED,
        },
        function::TRNG_UUID if has_entropy() => {
            for (register, word) in x.iter_mut().zip(abi::uid_registers()) {
                *register = u64::from(word);
            }
            return;
        }
        function::TRNG_RND_32 if has_entropy() => return random(x, 32),
        function::TRNG_RND_64 if has_entropy() => return random(x, 64),
        _ => NOT_SUPPORTED,
    };
}

/// SMCCC_ARCH_FEATURES (7.3).
fn features(function: u32) -> u64 {
    /// The processor does not need the workaround (7.5 to 7.9).
    const NOT_NEEDED: u64 = 1;
    let field = |register: u64, low: u32| register >> low & 0xf;
    let pfr0 = sysreg::read!("id_aa64pfr0_el1");
    let pfr1 = sysreg::read!("id_aa64pfr1_el1");
    let csv2 = field(pfr0, 56);
    match function {
        function::SMCCC_VERSION | function::ARCH_FEATURES => SUCCESS,
        function::ARCH_WORKAROUND_1 | function::ARCH_WORKAROUND_2 | function::ARCH_WORKAROUND_3
            if firmware_has(function) =>
        {
            SUCCESS
        }
        function::ARCH_WORKAROUND_1 if csv2 >= 1 => NOT_NEEDED,
        function::ARCH_WORKAROUND_2 if field(pfr1, 4) >= 1 => NOT_NEEDED,
        function::ARCH_WORKAROUND_3 if csv2 >= 3 => NOT_NEEDED,
        _ => NOT_SUPPORTED,
    }
}

/// Returns whether the machine's firmware carries out a workaround, and this processor needs it
/// (SMCCC_ARCH_FEATURES gives zero). Firmware is asked only if it knows SMCCC 1.1 (appendix B).
fn firmware_has(function: u32) -> bool {
    let call = |function: u32, argument: u32| {
        let [status, ..] = ::smccc::smc32(function, [argument, 0, 0, 0, 0, 0, 0]);
        status.cast_signed()
    };
    call(PSCI_FEATURES, function::SMCCC_VERSION) >= 0
        && call(function::SMCCC_VERSION, 0) >= SMCCC_1_1
        && call(function::ARCH_FEATURES, function) == 0
}

/// FEAT_RNG: the only source of entropy that there is for sure.
fn has_entropy() -> bool {
    sysreg::read!("id_aa64isar0_el1") >> 60 != 0
}

/// TRNG_RND (Arm DEN 0098, 2.4): entropy into x1 to x3, the least significant bits in x3.
fn random(x: &mut [u64; 31], width: u32) {
    const INVALID_PARAMETERS: u64 = -2i64 as u64;
    const NO_ENTROPY: u64 = -3i64 as u64;
    let bits = x[1];
    if bits == 0 || bits > u64::from(3 * width) {
        x[0] = INVALID_PARAMETERS;
        return;
    }
    let mut left = bits;
    for register in [3, 2, 1] {
        let take = left.min(u64::from(width));
        left -= take;
        if take == 0 {
            x[register] = 0;
            continue;
        }
        let Some(word) = random_word() else {
            x[..4].copy_from_slice(&[NO_ENTROPY, 0, 0, 0]);
            return;
        };
        x[register] = word >> (64 - take);
    }
    x[0] = SUCCESS;
}

/// Reads RNDR (Arm ARM D24.2.147), which says by the flags whether there was entropy.
fn random_word() -> Option<u64> {
    for _ in 0..16 {
        let (word, failed): (u64, u64);
        // SAFETY: reads a register that exists (`has_entropy`).
        unsafe {
            core::arch::asm!("mrs {}, s3_3_c2_c4_0", "cset {}, eq", out(reg) word, out(reg) failed,
                options(nomem, nostack));
        }
        if failed == 0 {
            return Some(word);
        }
    }
    None
}
