//! What guests are told of the processor: the feature registers, with everything hidden that is not
//! switched between vCPUs or not allowed to them.
//!
//! Deny by default: a field that is not named here reads as "not implemented".

/// What becomes of a field of a feature register.
#[derive(Clone, Copy)]
enum Rule {
    /// Shown as it is: what it names works in a guest.
    Shown,
    /// Shown, but not above this value.
    AtMost(u64),
    /// This value, whatever the processor says.
    Always(u64),
}

use Rule::{Always, AtMost, Shown};

/// A field: its lowest bit and its rule. All are four bits wide.
type Field = (u32, Rule);

/// ID_AA64PFR0_EL1 (Arm ARM D24.2.81).
#[rustfmt::skip]
const PFR0: &[Field] = &[
    (0,  Shown),     // EL0
    (4,  Always(1)), // EL1: AArch64 only, as HCR_EL2.RW has it
    (16, Shown),     // FP
    (20, Shown),     // AdvSIMD
    (24, AtMost(1)), // GIC: the system registers of GICv3
    (48, Shown),     // DIT
    (56, AtMost(1)), // CSV2: without the registers SCXTNUM, which trap
    (60, Shown),     // CSV3
];

/// ID_AA64PFR1_EL1 (D24.2.82).
#[rustfmt::skip]
const PFR1: &[Field] = &[
    (0,  Shown),     // BT
    (4,  Shown),     // SSBS
    (32, AtMost(1)), // CSV2_frac, likewise
];

/// ID_AA64DFR0_EL1 (D24.2.70).
#[rustfmt::skip]
const DFR0: &[Field] = &[
    (0,  Always(6)), // DebugVer: Armv8.0
    (12, Shown),     // BRPs
    (20, Shown),     // WRPs
    (28, Shown),     // CTX_CMPs
    (36, Shown),     // DoubleLock
];

/// ID_AA64ISAR0_EL1 (D24.2.73).
#[rustfmt::skip]
const ISAR0: &[Field] = &[
    (4,  Shown), // AES
    (8,  Shown), // SHA1
    (12, Shown), // SHA2
    (16, Shown), // CRC32
    (20, Shown), // Atomic
    (28, Shown), // RDM
    (32, Shown), // SHA3
    (36, Shown), // SM3
    (40, Shown), // SM4
    (44, Shown), // DP
    (48, Shown), // FHM
    (52, Shown), // TS
    (56, Shown), // TLB
    (60, Shown), // RNDR
];

/// ID_AA64ISAR1_EL1 (D24.2.74); pointer authentication is hidden.
#[rustfmt::skip]
const ISAR1: &[Field] = &[
    (0,  Shown), // DPB
    (12, Shown), // JSCVT
    (16, Shown), // FCMA
    (20, Shown), // LRCPC
    (32, Shown), // FRINTTS
    (36, Shown), // SB
    (40, Shown), // SPECRES
    (44, Shown), // BF16
    (48, Shown), // DGH
    (52, Shown), // I8MM
];

/// ID_AA64ISAR2_EL1 (D24.2.75).
#[rustfmt::skip]
const ISAR2: &[Field] = &[
    (4,  Shown), // RPRES
    (20, Shown), // BC
    (28, Shown), // CLRBHB
    (48, Shown), // RPRFM
    (52, Shown), // CSSC
];

/// ID_AA64MMFR0_EL1 (D24.2.77).
#[rustfmt::skip]
const MMFR0: &[Field] = &[
    (0,  AtMost(2)), // PARange: 40 bits, of which stage 2 maps 39
    (4,  Shown),     // ASIDBits
    (12, Shown),     // SNSMem; big endian is hidden, which emulated devices do not speak
    (20, Shown),     // TGran16
    (24, Shown),     // TGran64
    (28, Shown),     // TGran4
    (44, Shown),     // ExS
];

/// ID_AA64MMFR1_EL1 (D24.2.78).
#[rustfmt::skip]
const MMFR1: &[Field] = &[
    (0,  AtMost(2)), // HAFDBS: no HAFT, which TCR2_EL1 controls
    (12, Shown),     // HPDS
    (20, Shown),     // PAN
    (24, Shown),     // SpecSEI
    (36, Shown),     // ETS
    (44, Shown),     // AFP
    (48, Shown),     // nTLBPA
    (60, Shown),     // ECBHB
];

/// ID_AA64MMFR2_EL1 (D24.2.79).
#[rustfmt::skip]
const MMFR2: &[Field] = &[
    (0,  Shown), // CnP
    (4,  Shown), // UAO
    (8,  Shown), // LSM
    (16, Shown), // VARange
    (20, Shown), // CCIDX
    (28, Shown), // ST
    (32, Shown), // AT
    (36, Shown), // IDS
    (48, Shown), // TTL
    (52, Shown), // BBM
    (60, Shown), // E0PD
];

/// Returns what the register with this CRm and op2 says to a guest, where the processor says `own`.
#[rustfmt::skip]
pub const fn shown(crm: u32, op2: u32, own: u64) -> u64 {
    match (crm, op2) {
        (1, 0) => own & !(0xf << 20 | 0xf << 28), // ID_PFR0_EL1: no AMU, no RAS
        (1, 2) => own & !(0xff << 24), // ID_DFR0_EL1: no PMU, no trace filter
        (1..=3, _) => own,             // AArch32 at EL0
        (4, 0) => apply(PFR0, own),
        (4, 1) => apply(PFR1, own),
        (5, 0) => apply(DFR0, own),
        (6, 0) => apply(ISAR0, own),
        (6, 1) => apply(ISAR1, own),
        (6, 2) => apply(ISAR2, own),
        (7, 0) => apply(MMFR0, own),
        (7, 1) => apply(MMFR1, own),
        (7, 2) => apply(MMFR2, own),
        _ => 0,
    }
}

const fn apply(fields: &[Field], own: u64) -> u64 {
    let mut shown = 0;
    let mut rest = fields;
    while let [(low, rule), tail @ ..] = rest {
        let value = own >> *low & 0xf;
        let value = match rule {
            Shown => value,
            AtMost(most) => {
                if value < *most {
                    value
                } else {
                    *most
                }
            }
            Always(value) => *value,
        };
        shown |= value << *low;
        rest = tail;
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[rustfmt::skip]
    fn guests_see_only_what_they_can_use() {
        let cases = [
            // CRm, op2, the processor says,        a guest sees
            (4, 0, 0x1201_1011_2012_2222, 0x1101_0000_0012_2212u64 & !(0xf << 8) & !(0xf << 12)),
            (4, 0, u64::MAX,              0xf10f_0000_01ff_001f), // "not implemented" FP stays so
            (5, 0, 0x0000_0010_3030_5609, 0x0000_0010_3030_5006), // no PMU, no trace; Armv8.0 debug
            (6, 1, u64::MAX,              0x00ff_ffff_00ff_f00f), // no pointer authentication
            (7, 0, 0x0000_0000_0000_1125, 0x0000_0000_0000_1022), // 40 bits of PA, little endian
            (7, 1, 0x0000_0000_1021_2122, 0x0000_0000_0020_2002), // no VHE, no VMIDs, no XNX
            (4, 4, 0x0000_0000_0000_0001, 0),                     // no SVE
            (7, 3, u64::MAX,              0),
        ];
        for (crm, op2, own, expected) in cases {
            assert_eq!(shown(crm, op2, own), expected, "CRm {crm} op2 {op2}: {own:#x}");
        }
    }
}
