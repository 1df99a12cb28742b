//! The CPU interface of the pCPU this runs on, by system registers (12.2).
//!
//! An interrupt at EL2 goes this way:
//!
//! ```text
//!   acknowledge()          pending -> active; lower priorities are held back
//!   drop_priority(id)      they are not any more (EOImode 1)
//!   deactivate(id)         active -> inactive; or a guest does it, through a list register with HW
//! ```

use super::{Affinity, Error, IntId, Kind, Priority};
use crate::asm;
use crate::sysreg;
use tock_registers::register_bitfields;

register_bitfields! {u64,
    /// Interrupt controller system register enable register (12.2).
    ICC_SRE_EL2 [
        /// System registers, not memory-mapped ones.
        SRE OFFSET(0) NUMBITS(1) [],
        /// Without FIQ bypass.
        DFB OFFSET(1) NUMBITS(1) [],
        /// Without IRQ bypass.
        DIB OFFSET(2) NUMBITS(1) [],
        /// EL1 may access ICC_SRE_EL1, which traps otherwise.
        Enable OFFSET(3) NUMBITS(1) []
    ],
    /// Interrupt controller control register (12.2).
    ICC_CTLR_EL1 [
        /// The end of an interrupt only drops its priority.
        EOImode OFFSET(1) NUMBITS(1) [],
        /// Bits of a priority, less one.
        PRIbits OFFSET(8) NUMBITS(3) []
    ],
    /// Software generated interrupt Group 1 register (12.2).
    ICC_SGI1R_EL1 [
        /// One bit for each of 16 values of Aff0.
        TargetList OFFSET(0) NUMBITS(16) [],
        Aff1 OFFSET(16) NUMBITS(8) [],
        /// Which of the 16.
        INTID OFFSET(24) NUMBITS(4) [],
        Aff2 OFFSET(32) NUMBITS(8) [],
        /// All pCPUs but this one.
        IRM OFFSET(40) NUMBITS(1) [],
        /// Which 16 values of Aff0.
        RS OFFSET(44) NUMBITS(4) [],
        Aff3 OFFSET(48) NUMBITS(8) []
    ]
}

/// Turns the CPU interface on: Group 1, no priority masked, EOImode 1.
///
/// The pCPU's redistributor is initialized before.
pub fn init() -> Result<(), Error> {
    // Without Enable: what one guest chose would be the next one's too.
    let sre = ICC_SRE_EL2::SRE::SET + ICC_SRE_EL2::DFB::SET + ICC_SRE_EL2::DIB::SET;
    sysreg::write!("icc_sre_el2", sre.value);
    asm::isb();
    // ICC_SRE_EL1 has the same fields.
    sysreg::write!("icc_sre_el1", sre.value);
    asm::isb();
    if cfg!(target_os = "none") && !ICC_SRE_EL2::SRE.is_set(sysreg::read!("icc_sre_el2")) {
        return Err(Error::NoSystemRegisters);
    }
    sysreg::write!("icc_igrpen1_el1", 0);
    sysreg::write!("icc_pmr_el1", u64::from(Priority::MASK_NONE.get()));
    sysreg::write!("icc_bpr1_el1", 0);
    sysreg::write!("icc_ctlr_el1", ICC_CTLR_EL1::EOImode::SET.value);
    asm::isb();
    clear_active_priorities();
    sysreg::write!("icc_igrpen1_el1", 1);
    asm::isb();
    Ok(())
}

/// Forgets what was acknowledged before us and never ended (12.2): how many registers there are
/// follows from the number of priority bits.
fn clear_active_priorities() {
    let bits = ICC_CTLR_EL1::PRIbits.read(sysreg::read!("icc_ctlr_el1")) + 1;
    if bits >= 7 {
        sysreg::write!("icc_ap1r3_el1", 0);
        sysreg::write!("icc_ap1r2_el1", 0);
    }
    if bits >= 6 {
        sysreg::write!("icc_ap1r1_el1", 0);
    }
    sysreg::write!("icc_ap1r0_el1", 0);
    asm::isb();
}

/// Takes the interrupt of highest priority that is pending for this pCPU (12.2).
#[inline]
#[expect(
    clippy::cast_possible_truncation,
    reason = "a number has 24 bits at most"
)]
pub fn acknowledge() -> Option<IntId> {
    let id = IntId::new(sysreg::read!("icc_iar1_el1") as u32 & 0x00ff_ffff);
    // What follows must not be seen by the device before it is known that its interrupt was taken.
    asm::dsb_sy();
    match id.kind() {
        Kind::Special => None,
        _ => Some(id),
    }
}

/// Lets interrupts of the same and of lower priority through again (12.2).
#[inline]
pub fn drop_priority(id: IntId) {
    sysreg::write!("icc_eoir1_el1", u64::from(id.get()));
    asm::isb();
}

/// Makes an interrupt inactive, so that it can come again (12.2). LPIs need none.
#[inline]
pub fn deactivate(id: IntId) {
    sysreg::write!("icc_dir_el1", u64::from(id.get()));
    asm::isb();
}

/// Interrupts the pCPU at `target` with SGI `number`, after all that was written before is visible
/// there.
///
/// # Panics
///
/// There are 16 SGIs.
#[inline]
pub fn send_sgi(number: u8, target: Affinity) {
    let value = sgi1r(number, target);
    asm::dsb_ishst();
    sysreg::write!("icc_sgi1r_el1", value);
    asm::isb();
}

/// Interrupts all other pCPUs with SGI `number`.
///
/// # Panics
///
/// There are 16 SGIs.
pub fn send_sgi_to_others(number: u8) {
    assert!(number < 16, "no SGI {number}");
    let value = ICC_SGI1R_EL1::INTID.val(u64::from(number)) + ICC_SGI1R_EL1::IRM::SET;
    asm::dsb_ishst();
    sysreg::write!("icc_sgi1r_el1", value.value);
    asm::isb();
}

fn sgi1r(number: u8, target: Affinity) -> u64 {
    assert!(number < 16, "no SGI {number}");
    let value = ICC_SGI1R_EL1::INTID.val(u64::from(number))
        + ICC_SGI1R_EL1::TargetList.val(1 << (target.level(0) % 16))
        + ICC_SGI1R_EL1::RS.val(target.level(0) / 16)
        + ICC_SGI1R_EL1::Aff1.val(target.level(1))
        + ICC_SGI1R_EL1::Aff2.val(target.level(2))
        + ICC_SGI1R_EL1::Aff3.val(target.level(3));
    value.value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[rustfmt::skip]
    fn an_sgi_names_its_target() {
        let cases = [
            // SGI, MPIDR,               ICC_SGI1R_EL1
            (0,     0x0000_0000_8000_0000, 0x0000_0000_0000_0001),
            (1,     0x0000_0000_8000_0003, 0x0000_0000_0100_0008),
            (15,    0x0000_0000_0000_0100, 0x0000_0000_0f01_0001),
            (2,     0x0000_0004_0003_0215, 0x0004_1003_0202_0020), // Aff0 0x15: the second 16
        ];
        for (number, mpidr, value) in cases {
            let got = sgi1r(number, Affinity::from_mpidr(mpidr));
            assert_eq!(got, value, "SGI {number} to {mpidr:#x}: {got:#x}");
        }
    }

    #[test]
    #[should_panic(expected = "no SGI 16")]
    fn there_are_sixteen_sgis() {
        sgi1r(16, Affinity::from_mpidr(0));
    }
}
