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
//! is dropped, and EL2 goes on behind it. Any other exception at EL2, and this one anywhere else, is a
//! mistake of EL2's own.
//!
//! An abort that comes as an SError is not attributed to an instruction, and is none of this module's.

/// ESR_ELx (Arm ARM D24.2.40): EC of a data abort taken without a change of exception level, and DFSC
/// of a synchronous external abort that is not on a table walk.
const CLASS_DATA_ABORT: u64 = 0x25;
const FAULT_EXTERNAL: u64 = 0x10;

/// A load or store that a device refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Where it went.
    pub address: u64,
}

/// Returns whether a syndrome is that of an access that a device refused.
pub const fn is_refusal(esr: u64) -> bool {
    esr >> 26 & 0x3f == CLASS_DATA_ABORT && esr & 0x3f == FAULT_EXTERNAL
}

/// Completes `instruction` as if nothing had answered, on the registers `x`.
///
/// Returns `None` for what is no load or store of one register without an offset (C4.1.94.32, "load/store
/// register (unsigned immediate)" with an immediate of 0), which none in the list is.
pub fn complete(instruction: u32, x: &mut [u64; 31]) -> Option<Refused> {
    // size:2 111 V:1 01 opc:2 imm12:12 Rn:5 Rt:5
    let is_plain = instruction & 0x3fbf_fc00 == 0x3900_0000;
    if !is_plain {
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
    Some(Refused { address })
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
    if !is_refusal(crate::sysreg::read!("esr_el2")) {
        return None;
    }
    let list = crate::entry::foreign();
    if !is_listed(list.as_ptr().addr() as u64, list, fault.pc) {
        return None;
    }
    // SAFETY: an instruction of the image's text, which is readable: the list says so.
    let instruction = unsafe { (fault.pc as *const u32).read() };
    let refused = complete(instruction, &mut fault.x)?;
    fault.pc += 4;
    Some(refused)
}

#[cfg(test)]
mod tests {
    use super::*;

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
            assert_eq!(is_refusal(esr), refusal, "{esr:#x}");
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
            assert_eq!(complete(instruction, &mut got), Some(Refused { address }), "{instruction:#x}");
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
        ];
        for instruction in cases {
            let mut x = [7; 31];
            assert_eq!(complete(instruction, &mut x), None, "{instruction:#x}");
            assert_eq!(x, [7; 31], "{instruction:#x}");
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
