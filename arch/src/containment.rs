//! External aborts that a device of somebody else's answers EL2 with.
//!
//! ```text
//!   .foreign                     .text
//!  +----------------+           +---------------------+
//!  | distance ------+---------> | ldr w8, [x9]        |  <-- ELR_EL2
//!  | distance ------+---------> | strb w0, [x1]       |
//!  +----------------+           +---------------------+
//! ```
//!
//! Each load and store of [`Foreign`](crate::mmio::Foreign) is in the list. Where one of them takes a
//! synchronous external abort, the load gives all ones, as a bus does where nothing answers, the store
//! is dropped, and EL2 goes on behind it. So is each address translation instruction (AT): a guest can have
//! its tables in a device's memory, and then it is the walk that takes the abort. Any other exception at EL2,
//! and this one anywhere else, is a mistake of EL2's own.
//!
//! An abort that comes as an SError is not attributed to an instruction, and is none of this module's.

/// ESR_ELx (Arm ARM D24.2.40): EC of a data abort taken without a change of exception level, and DFSC
/// of a synchronous external abort that is not on a table walk. Of one that is there is one for each level.
const CLASS_DATA_ABORT: u64 = 0x25;
const FAULT_EXTERNAL: u64 = 0x10;
const FAULT_WALK: core::ops::RangeInclusive<u64> = 0x13..=0x17;

/// Has the instruction at the label `2` be in the list: where it is, as a distance from the place in the list
/// (`link.ld`).
#[cfg(target_os = "none")]
macro_rules! listed {
    () => {
        ".pushsection .foreign, \"a\"\n.balign 4\n.long 2b - .\n.popsection"
    };
}
#[cfg(target_os = "none")]
pub(crate) use listed;

/// A load or store that a device refused, or a translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Where it went, if it was an access of EL2's.
    pub address: Option<u64>,
}

/// Completes `instruction` as if nothing had answered, on the registers `x`. A translation gives back the
/// address inverted.
///
/// Returns `None` if the syndrome is not that of an access that a device refused; and for what is no load or store
/// of one register without an offset (C4.1.94.32, "load/store register (unsigned immediate)" with an immediate of
/// 0), or AT S1E0 or S1E1 (C5.5) if it was refused on a walk, which none in the list is.
pub fn complete(esr: u64, instruction: u32, x: &mut [u64; 31]) -> Option<Refused> {
    let status = esr & 0x3f;
    if esr >> 26 & 0x3f != CLASS_DATA_ABORT {
        return None;
    }
    if FAULT_WALK.contains(&status) {
        let is_translation = instruction & 0xffff_ff80 == 0xd508_7800;
        let register = x.get_mut((instruction & 31) as usize);
        let register = register.filter(|_| is_translation)?;
        *register = !*register;
        return Some(Refused { address: None });
    }
    // size:2 111 V:1 01 opc:2 imm12:12 Rn:5 Rt:5
    let is_plain = instruction & 0x3fbf_fc00 == 0x3900_0000;
    if status != FAULT_EXTERNAL || !is_plain {
        return None;
    }
    let base = (instruction >> 5 & 31) as usize;
    let target = (instruction & 31) as usize;
    // The base may be the target, too.
    let address = *x.get(base)?;
    let is_load = instruction & 1 << 22 != 0;
    // Register 31 is the zero register.
    if is_load && let Some(register) = x.get_mut(target) {
        *register = u64::MAX >> (64 - (8 << (instruction >> 30)));
    }
    Some(Refused {
        address: Some(address),
    })
}

/// Returns whether one of the distances, which lie one behind the other from `start` on, leads to `pc`.
pub fn is_listed(start: u64, distances: &[i32], pc: u64) -> bool {
    let mut at = start;
    distances.iter().any(|distance| {
        let place = at.wrapping_add_signed(i64::from(*distance));
        at += 4;
        place == pc
    })
}

/// Contains an exception that EL2 took, if it is a device's refusal of an access in the list: the
/// registers are those after the access.
#[cfg(target_os = "none")]
pub fn contain(fault: &mut crate::entry::Fault) -> Option<Refused> {
    let esr = crate::sysreg::read!("esr_el2");
    let list = crate::entry::foreign();
    if !is_listed(list.as_ptr().addr() as u64, list, fault.pc) {
        return None;
    }
    // SAFETY: an instruction of the image's text, which is readable: the list says so.
    let instruction = unsafe { (fault.pc as *const u32).read() };
    let refused = complete(esr, instruction, &mut fault.x)?;
    fault.pc += 4;
    Some(refused)
}

#[cfg(test)]
mod tests {
    use super::*;

    const REFUSED: u64 = 0x9600_0010;

    #[test]
    #[rustfmt::skip]
    fn only_a_refused_access_of_el2_itself_is_one() {
        let cases = [
            // As QEMU gives it where nothing is; the same store; without a valid FAR.
            (0x9600_0010, true),
            (0x9600_0050, true),
            (0x9600_0410, true),
            // From a guest; an instruction fetch; an SError.
            (0x9200_0010, false),
            (0x8600_0010, false),
            (0xbe00_0010, false),
            // Translation, permission, alignment, on a table walk, parity, tag check.
            (0x9600_0005, false),
            (0x9600_000f, false),
            (0x9600_0021, false),
            (0x9600_0016, false),
            (0x9600_0018, false),
            (0x9600_0011, false),
        ];
        for (esr, refusal) in cases {
            // ldr w8, [x9]
            let completed = complete(esr, 0xb940_0128, &mut [0; 31]);
            assert_eq!(completed.is_some(), refusal, "{esr:#x}");
        }
    }

    #[test]
    #[rustfmt::skip]
    fn a_load_gives_ones_and_a_store_nothing() {
        let cases = [
            // instruction              address   register       becomes
            (0x3940_0128, /* ldrb w8, [x9]  */ 0x1009, Some((8, 0xff))),
            (0x7940_0128, /* ldrh w8, [x9]  */ 0x1009, Some((8, 0xffff))),
            (0xb940_0128, /* ldr w8, [x9]   */ 0x1009, Some((8, 0xffff_ffff))),
            (0xf940_0128, /* ldr x8, [x9]   */ 0x1009, Some((8, u64::MAX))),
            (0xb940_0000, /* ldr w0, [x0]   */ 0x1000, Some((0, 0xffff_ffff))),
            (0xb940_03de, /* ldr w30, [x30] */ 0x101e, Some((30, 0xffff_ffff))),
            (0xb940_013f, /* ldr wzr, [x9]  */ 0x1009, None),
            (0x3900_0128, /* strb w8, [x9]  */ 0x1009, None),
            (0x7900_0128, /* strh w8, [x9]  */ 0x1009, None),
            (0xb900_0128, /* str w8, [x9]   */ 0x1009, None),
            (0xf900_0128, /* str x8, [x9]   */ 0x1009, None),
        ];
        for (instruction, address, register) in cases {
            let before: [u64; 31] = core::array::from_fn(|n| 0x1000 + n as u64);
            let (mut got, mut after) = (before, before);
            let refused = Some(Refused { address: Some(address) });
            assert_eq!(complete(REFUSED, instruction, &mut got), refused, "{instruction:#x}");
            if let Some((n, value)) = register {
                after[n] = value;
            }
            assert_eq!(got, after, "{instruction:#x}");
        }
    }

    #[test]
    #[rustfmt::skip]
    fn what_is_no_such_access_changes_nothing() {
        let cases = [
            0xb940_0528, // ldr w8, [x9, #4]
            0xb840_4528, // ldr w8, [x9], #4
            0x3980_0128, // ldrsb x8, [x9]
            0x39c0_0128, // ldrsb w8, [x9]
            0x3d40_0128, // ldr b8, [x9]
            0xa940_2128, // ldp x8, x8, [x9]
            0xb940_03e8, // ldr w8, [sp]
            0xd503_201f, // nop
            0xd508_7809, // at s1e1r, x9
        ];
        for instruction in cases {
            let mut x = [7; 31];
            assert_eq!(complete(REFUSED, instruction, &mut x), None, "{instruction:#x}");
            assert_eq!(x, [7; 31], "{instruction:#x}");
        }
    }

    #[test]
    #[rustfmt::skip]
    fn a_translation_whose_walk_is_refused_inverts_its_address() {
        let cases = [
            // instruction                 on a walk of level 0 to 3, or -1
            (0xd508_7809, /* at s1e1r, x9  */ true),
            (0xd508_7829, /* at s1e1w, x9  */ true),
            (0xd508_7849, /* at s1e0r, x9  */ true),
            (0xd508_7869, /* at s1e0w, x9  */ true),
            (0xd50c_7809, /* at s1e2r, x9  */ false),
            (0xd508_7909, /* at s1e1rp, x9 */ false),
            (0xd508_781f, /* at s1e1r, xzr */ false),
            (0xb940_0128, /* ldr w8, [x9]  */ false),
        ];
        for (instruction, contained) in cases {
            for status in 0..0x40 {
                let before: [u64; 31] = core::array::from_fn(|n| 0x1000 + n as u64);
                let (mut got, mut after) = (before, before);
                let refused = complete(0x9600_0100 | status, instruction, &mut got);
                let expected = contained && matches!(status, 0x13..=0x17);
                if expected {
                    after[9] = !0x1009;
                }
                if expected || status != 0x10 {
                    assert_eq!(refused, expected.then_some(Refused { address: None }));
                    assert_eq!(got, after, "{instruction:#x} {status:#x}");
                }
            }
        }
    }

    #[test]
    fn a_place_is_found_by_its_distance() {
        let list = [-0x1000, 0x20, -0x2000];
        let start = 0x4020_0000;
        for pc in [0x401f_f000, 0x4020_0024, 0x401f_e008] {
            assert!(is_listed(start, &list, pc), "{pc:#x}");
        }
        for pc in [0, 0x401f_f004, 0x4020_0020, 0x401f_e000, u64::MAX] {
            assert!(!is_listed(start, &list, pc), "{pc:#x}");
        }
        assert!(!is_listed(start, &[], start));
    }
}
