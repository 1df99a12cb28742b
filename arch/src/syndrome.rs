//! From `ESR_EL2` to what a guest did (Arm ARM D24.2.40).

/// A synchronous exit of a guest, decoded from its syndrome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// WFI or WFE.
    Wait(Wait),
    /// A use of FP or SIMD registers that CPTR_EL2 traps.
    Simd,
    /// A use of SVE, SME or pointer authentication: hidden from guests, so undefined.
    Hidden,
    /// HVC from AArch64 with this immediate.
    Hypercall(u16),
    /// SMC from AArch64 with this immediate.
    Smc(u16),
    /// MSR, MRS or a system instruction.
    SysReg(SysReg),
    /// An access that stage 2 does not allow.
    DataAbort(DataAbort),
    /// An instruction fetch that stage 2 does not allow.
    InstructionAbort,
    /// Whatever else, by its exception class.
    Other(u8),
}

/// Which of the waiting instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// WFI, WFIT.
    Interrupt,
    /// WFE, WFET.
    Event,
}

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

/// The number that [`SysReg::register`] has for the encoding `op0`, `op1`, `CRn`, `CRm`, `op2`: the
/// syndrome's own layout without direction and Rt.
pub const fn register(op0: u32, op1: u32, crn: u32, crm: u32, op2: u32) -> u32 {
    op0 << 20 | op2 << 17 | op1 << 14 | crn << 10 | crm << 1
}

/// A data abort from a lower exception level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataAbort {
    /// What was accessed how, when the syndrome says (ISV).
    pub access: Option<Access>,
    /// Whether it was a write (WnR); valid also without `access`.
    pub write: bool,
    /// A fault on a stage 1 table walk (S1PTW), not on the access itself.
    pub table_walk: bool,
    /// It was cache maintenance (CM), which moves no data.
    pub maintenance: bool,
    /// Why.
    pub kind: AbortKind,
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

/// A load or store of one general-purpose register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// Width in bytes: 1, 2, 4 or 8.
    pub bytes: u8,
    /// The register: 31 is the zero register.
    pub rt: u8,
    /// Whether a load extends the sign.
    pub sign_extend: bool,
    /// Whether a load's destination is 64 bits wide.
    pub wide: bool,
}

impl Access {
    /// Returns what the register becomes when the load gives `value`.
    pub const fn extend(&self, value: u64) -> u64 {
        let unused = 64 - 8 * self.bytes as u32;
        let value = if self.sign_extend {
            ((value << unused).cast_signed() >> unused).cast_unsigned()
        } else {
            value << unused >> unused
        };
        if self.wide {
            value
        } else {
            value & 0xffff_ffff
        }
    }

    /// Returns the bits of a stored register that the access writes.
    pub const fn truncate(&self, value: u64) -> u64 {
        let unused = 64 - 8 * self.bytes as u32;
        value << unused >> unused
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "no field asked for is wider than eight bits"
)]
const fn bits(value: u64, from: u32, count: u32) -> u8 {
    ((value >> from) & ((1 << count) - 1)) as u8
}

const fn immediate(esr: u64) -> u16 {
    (esr & 0xffff) as u16
}

const fn register_number(esr: u64) -> u32 {
    (esr & 0x003f_fc1e) as u32
}

const fn bit(value: u64, at: u32) -> bool {
    value >> at & 1 != 0
}

/// Decodes a syndrome.
#[rustfmt::skip]
pub const fn decode(esr: u64) -> Exit {
    match bits(esr, 26, 6) {
        0x01 => Exit::Wait(if bit(esr, 0) { Wait::Event } else { Wait::Interrupt }),
        0x07 => Exit::Simd,
        0x08 | 0x09 | 0x19 | 0x1c | 0x1d => Exit::Hidden,
        0x16 => Exit::Hypercall(immediate(esr)),
        0x17 => Exit::Smc(immediate(esr)),
        0x18 => Exit::SysReg(SysReg {
            register: register_number(esr),
            rt: bits(esr, 5, 5),
            read: bit(esr, 0),
        }),
        0x20 => Exit::InstructionAbort,
        0x24 => Exit::DataAbort(data_abort(esr)),
        class => Exit::Other(class),
    }
}

const fn data_abort(esr: u64) -> DataAbort {
    let access = if bit(esr, 24) {
        Some(Access {
            bytes: 1 << bits(esr, 22, 2),
            rt: bits(esr, 16, 5),
            sign_extend: bit(esr, 21),
            wide: bit(esr, 15),
        })
    } else {
        None
    };
    DataAbort {
        access,
        write: bit(esr, 6),
        table_walk: bit(esr, 7),
        maintenance: bit(esr, 8),
        kind: match bits(esr, 0, 6) {
            0x04..=0x07 => AbortKind::Translation,
            0x0c..=0x0f => AbortKind::Permission,
            0x10 | 0x14..=0x17 => AbortKind::External,
            code => AbortKind::Other(code),
        },
    }
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
        Some(Access {
            bytes,
            rt,
            sign_extend,
            wide,
        })
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
            let expected = DataAbort {
                access, write, table_walk: false, maintenance: false, kind: AbortKind::Translation,
            };
            assert_eq!(decode(esr), Exit::DataAbort(expected), "{esr:#x}");
        }
    }

    #[test]
    #[rustfmt::skip]
    fn every_class_is_decoded() {
        let cases = [
            (0x07e0_0000, Exit::Wait(Wait::Interrupt)),
            (0x07e0_0001, Exit::Wait(Wait::Event)),
            (0x5e00_0000, Exit::Smc(0)),
            (0x5a00_0012, Exit::Hypercall(0x12)),
            (0x8200_0005, Exit::InstructionAbort),
            // mrs x2, id_aa64pfr0_el1 (op0 3, op1 0, CRn 0, CRm 4, op2 0)
            (0x18 << 26 | 1 << 25 | 3 << 20 | 2 << 5 | 4 << 1 | 1,
                Exit::SysReg(SysReg { register: register(3, 0, 0, 4, 0), rt: 2, read: true })),
            (0x1fe0_0000, Exit::Simd),
            (0x6600_0000, Exit::Hidden),
            (0xbe00_0000, Exit::Other(0x2f)),
        ];
        for (esr, exit) in cases {
            assert_eq!(decode(esr), exit, "{esr:#x}");
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
