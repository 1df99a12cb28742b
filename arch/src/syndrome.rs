//! From `ESR_EL2` to what a guest did (Arm ARM D24.2.40). Its class says which of these is meant.

use core::fmt;

/// A trapped access to a system register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SysReg {
    /// Which register, as [`register`] numbers it.
    pub register: u32,
    /// The general-purpose register that takes or gives the value.
    pub rt: u8,
    /// Whether it is a read (MRS).
    pub read: bool,
}

impl SysReg {
    /// Decodes the syndrome of a trapped MSR, MRS or system instruction.
    pub const fn decode(esr: u64) -> Self {
        Self {
            register: (esr & 0x003f_fc1e) as u32,
            rt: bits(esr, 5, 5),
            read: bit(esr, 0),
        }
    }
}

/// The number that [`SysReg::register`] has for the encoding `op0`, `op1`, `CRn`, `CRm`, `op2`: the
/// syndrome's own layout without direction and Rt.
pub const fn register(op0: u32, op1: u32, crn: u32, crm: u32, op2: u32) -> u32 {
    op0 << 20 | op2 << 17 | op1 << 14 | crn << 10 | crm << 1
}

/// A data abort from a lower exception level: its syndrome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataAbort(u64);

impl DataAbort {
    /// Decodes the syndrome of a data abort.
    pub const fn decode(esr: u64) -> Self {
        Self(esr)
    }

    /// Returns what was accessed how, when the syndrome says (ISV).
    pub const fn access(self) -> Option<Access> {
        if bit(self.0, 24) {
            Some(Access(self.0 & Access::FIELDS))
        } else {
            None
        }
    }

    /// Returns whether it was a write (WnR); valid also without `access`.
    pub const fn is_write(self) -> bool {
        bit(self.0, 6)
    }

    /// Returns whether it was a fault on a stage 1 table walk (S1PTW), not on the access itself.
    pub const fn is_table_walk(self) -> bool {
        bit(self.0, 7)
    }

    /// Returns whether it was cache maintenance (CM), which moves no data.
    pub const fn is_maintenance(self) -> bool {
        bit(self.0, 8)
    }

    /// Returns why.
    pub const fn kind(self) -> AbortKind {
        match bits(self.0, 0, 6) {
            0x04..=0x07 => AbortKind::Translation,
            0x0c..=0x0f => AbortKind::Permission,
            0x10 | 0x14..=0x17 => AbortKind::External,
            code => AbortKind::Other(code),
        }
    }
}

/// Why a data abort was taken to EL2 (DFSC).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AbortKind {
    /// Nothing is mapped there.
    Translation,
    /// Something is mapped there, without this right. HPFAR_EL2 is not architected for it.
    Permission,
    /// A synchronous external abort: the memory system said no.
    External,
    /// Whatever else, by its code.
    Other(u8),
}

/// A load or store of one general-purpose register, as the syndrome of a data abort describes it: SAS in
/// 23:22, SSE in 21, SRT in 20:16, SF in 15.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Access(u64);

impl Access {
    const FIELDS: u64 = 0x1ff << 15;

    /// Makes the access of a register (31 is the zero register) with 1, 2, 4 or 8 bytes. A load may extend
    /// the sign, and may have a destination of 64 bits.
    pub const fn new(bytes: u8, register: u8, sign_extend: bool, wide: bool) -> Self {
        let size = bytes.trailing_zeros() as u64 & 3;
        let register = register as u64 & 31;
        Self(size << 22 | (sign_extend as u64) << 21 | register << 16 | (wide as u64) << 15)
    }

    /// Returns the width in bytes: 1, 2, 4 or 8.
    pub const fn bytes(self) -> u64 {
        1 << (self.0 >> 22 & 3)
    }

    /// Returns the register: 31 is the zero register.
    pub const fn register(self) -> u8 {
        bits(self.0, 16, 5)
    }

    /// Returns what the register becomes when the load gives `value`.
    pub const fn extend(self, value: u64) -> u64 {
        let unused = self.unused();
        let value = if bit(self.0, 21) {
            ((value << unused).cast_signed() >> unused).cast_unsigned()
        } else {
            value << unused >> unused
        };
        if bit(self.0, 15) {
            value
        } else {
            value & 0xffff_ffff
        }
    }

    /// Returns the bits of a stored register that the access writes.
    pub const fn truncate(self, value: u64) -> u64 {
        value << self.unused() >> self.unused()
    }

    /// Returns how many bits of a register of 64 the access does not cover.
    const fn unused(self) -> u64 {
        // At most 56.
        (64 - 8 * self.bytes()) & 63
    }
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (bytes, register) = (self.bytes(), self.register());
        let (sign_extend, wide) = (bit(self.0, 21), bit(self.0, 15));
        write!(
            f,
            "{bytes} bytes, x{register}, sign_extend {sign_extend}, wide {wide}"
        )
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "no field asked for is wider than eight bits"
)]
const fn bits(value: u64, from: u32, count: u32) -> u8 {
    ((value >> from) & ((1 << count) - 1)) as u8
}

const fn bit(value: u64, at: u32) -> bool {
    value >> at & 1 != 0
}

/// Returns the immediate of an HVC or SMC, from its syndrome.
pub const fn immediate(esr: u64) -> u16 {
    (esr & 0xffff) as u16
}

/// Returns whether a trapped wait was for an event (WFE, WFET), from its syndrome; else it was for an
/// interrupt.
pub const fn is_for_event(esr: u64) -> bool {
    bit(esr, 0)
}

/// Returns the IPA of a stage 2 translation fault, from `HPFAR_EL2` and `FAR_EL2` (Arm ARM
/// D24.2.58: FIPA holds bits 47:12, or as many as are implemented).
pub const fn fault_address(hpfar: u64, far: u64) -> u64 {
    (hpfar & 0x0000_0fff_ffff_fff0) << 8 | far & 0xfff
}

/// Decodes the result of an address translation instruction, PAR_EL1 (Arm ARM D24.2.130): the address
/// that `va` has after stage 1, or why it has none.
pub const fn translated(par: u64, va: u64) -> Result<u64, TranslationFault> {
    if bit(par, 0) {
        return Err(TranslationFault {
            status: bits(par, 1, 6),
            stage2: bit(par, 9),
        });
    }
    Ok(par & 0x000f_ffff_ffff_f000 | va & 0xfff)
}

/// Why an address could not be translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TranslationFault {
    /// The fault's status code, as `ESR_ELx.ISS.DFSC` has it (FST).
    pub status: u8,
    /// Stage 2 has stopped the walk of stage 1's tables (S).
    pub stage2: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(bytes: u8, rt: u8, sign_extend: bool, wide: bool) -> Option<Access> {
        Some(Access::new(bytes, rt, sign_extend, wide))
    }

    /// Syndromes as QEMU's cores give them, for accesses to an address that stage 2 does not map.
    #[test]
    #[rustfmt::skip]
    fn data_aborts_say_what_was_accessed() {
        let cases = [
            (0x9303_0005, load(1, 3, false, false), false), // ldrb w3
            (0x9344_0005, load(2, 4, false, false), false), // ldrh w4
            (0x9385_0005, load(4, 5, false, false), false), // ldr w5
            (0x93c6_8005, load(8, 6, false, true),  false), // ldr x6
            (0x9323_0005, load(1, 3, true,  false), false), // ldrsb w3
            (0x93a3_8005, load(4, 3, true,  true),  false), // ldrsw x3
            (0x939f_0045, load(4, 31, false, false), true), // str wzr
            (0x9200_0005, None, false),                     // ldp, or writeback
            (0x9200_0045, None, true),                      // stp, or writeback
        ];
        for (esr, access, write) in cases {
            let abort = DataAbort::decode(esr);
            assert_eq!((abort.access(), abort.is_write()), (access, write), "{esr:#x}");
            assert_eq!(abort.kind(), AbortKind::Translation, "{esr:#x}");
            assert!(!abort.is_table_walk() && !abort.is_maintenance(), "{esr:#x}");
        }
    }

    #[test]
    #[rustfmt::skip]
    fn instructions_that_trap_are_decoded() {
        assert_eq!([0x07e0_0000, 0x07e0_0001].map(is_for_event), [false, true]); // wfi, wfe
        assert_eq!([0x5e00_0000, 0x5a00_0012].map(immediate), [0, 0x12]); // smc #0, hvc #0x12
        // mrs x2, id_aa64pfr0_el1 (op0 3, op1 0, CRn 0, CRm 4, op2 0), and msr
        for (esr, read) in [(0x6230_0049, true), (0x6230_0048, false)] {
            let access = SysReg { register: register(3, 0, 0, 4, 0), rt: 2, read };
            assert_eq!(SysReg::decode(esr), access, "{esr:#x}");
        }
    }

    #[test]
    #[rustfmt::skip]
    fn loads_extend_as_their_instruction_says() {
        let cases = [
            (load(1, 0, false, false), 0xffff_ff80, 0x80),
            (load(1, 0, true,  false), 0x80, 0xffff_ff80),
            (load(1, 0, true,  true),  0x80, 0xffff_ffff_ffff_ff80),
            (load(4, 0, true,  true),  0x8000_0000, 0xffff_ffff_8000_0000),
            (load(8, 0, false, true),  u64::MAX, u64::MAX),
        ];
        for (access, value, register) in cases {
            assert_eq!(access.unwrap().extend(value), register, "{access:?}");
        }
    }

    #[test]
    #[rustfmt::skip]
    fn a_translation_gives_an_address_or_a_fault() {
        let fault = |status, stage2| Err(TranslationFault { status, stage2 });
        let cases = [
            (0xff00_0040_1000_0b80, Ok(0x40_1000_0123)), // attributes around the address
            (0x0000_0000_0000_0b80, Ok(0x123)),
            (0x0000_0000_0000_080f, fault(0x07, false)), // translation, level 3
            (0x0000_0000_0000_0b0b, fault(0x05, true)),  // on a table walk
        ];
        for (par, result) in cases {
            assert_eq!(translated(par, 0xffff_8000_0000_0123), result, "{par:#x}");
        }
    }

    #[test]
    fn the_fault_address_joins_page_and_offset() {
        assert_eq!(
            fault_address(0x0401_0000 << 4, 0xffff_8000_0000_0123),
            0x40_1000_0123
        );
    }
}
