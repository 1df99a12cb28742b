//! Values of the system registers that say what the tables are like.

use super::Vmid;
use crate::address::Pa;

/// `MAIR_EL2`, and `MAIR` of an SMMU's context descriptor: Attr0 is Normal, inner and
/// outer write-back, read and write allocate; Attr1 is Device-nGnRE, and Attr2,
/// which is zero, Device-nGnRnE.
pub const MAIR_EL2: u64 = 0xff | 0x04 << 8;

/// `ID_AA64MMFR0_EL1.PARange`, cut to 48 bits: what these tables can say without FEAT_LPA2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PaRange(u8);

impl PaRange {
    /// Takes the field out of `ID_AA64MMFR0_EL1`.
    pub const fn decode(id_aa64mmfr0: u64) -> Self {
        let field = (id_aa64mmfr0 & 0xf) as u8;
        Self(if field > 5 { 5 } else { field })
    }

    /// Returns the value of a `PS` field.
    pub const fn encode(self) -> u64 {
        self.0 as u64
    }
}

/// How wide a VMID is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VmidBits {
    /// Without FEAT_VMID16.
    Eight,
    /// With FEAT_VMID16.
    Sixteen,
}

impl VmidBits {
    /// Takes the field `VMIDBits` out of `ID_AA64MMFR1_EL1`.
    pub const fn decode(id_aa64mmfr1: u64) -> Self {
        if id_aa64mmfr1 >> 4 & 0xf == 0b0010 {
            Self::Sixteen
        } else {
            Self::Eight
        }
    }
}

/// Walks are inner shareable and write-back, and the granule is 4 KiB: IRGN0 (bits 9:8) = 1,
/// ORGN0 (11:10) = 1, SH0 (13:12) = 3, TG0 (15:14) = 0, alike in `TCR_EL2` and `VTCR_EL2`.
const WALKS: u64 = 1 << 8 | 1 << 10 | 3 << 12;

/// Returns `TCR_EL2` without VHE for `va_bits` bits of VA.
pub const fn tcr_el2(va_bits: u8, pa_range: PaRange) -> u64 {
    assert!(va_bits >= 25 && va_bits <= 48);
    let t0sz = 64 - va_bits as u64; // bits 5:0
    let ps = pa_range.encode() << 16; // bits 18:16
    let res1 = 1 << 31 | 1 << 23;
    t0sz | WALKS | ps | res1
}

/// Returns `VTCR_EL2` for `ipa_bits` bits of IPA in tables that are not concatenated.
pub const fn vtcr_el2(ipa_bits: u8, pa_range: PaRange, vmid: VmidBits) -> u64 {
    let t0sz = 64 - ipa_bits as u64; // bits 5:0
    let sl0 = match ipa_bits {
        22..=30 => 0, // level 2
        31..=39 => 1, // level 1
        40..=48 => 2, // level 0
        _ => panic!("no such size of IPA"),
    } << 6; // bits 7:6
    let ps = pa_range.encode() << 16; // bits 18:16
    let vs = match vmid {
        VmidBits::Eight => 0,
        VmidBits::Sixteen => 1 << 19, // bit 19
    };
    let res1 = 1 << 31;
    t0sz | sl0 | WALKS | ps | vs | res1
}

/// Returns `VTTBR_EL2`: VMID in bits 63:48, the first table in bits 47:1.
pub const fn vttbr_el2(vmid: Vmid, root: Pa) -> u64 {
    (vmid.get() as u64) << 48 | root.get()
}
