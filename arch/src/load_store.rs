//! From the word of an A64 load or store to what it moves.
//!
//! A data abort says by itself what was accessed only for one general-purpose register without
//! writeback (`ESR_EL2.ISS.ISV`, Arm ARM D24.2.40). For the others there is the instruction:
//!
//! ```text
//!   31 30 29   27 26 25  23 22 21      16 15    12 11 10 9    5 4    0
//!  +-----+-------+--+------+--+----------+--------+-----+------+------+
//!  |size | 1 1 1 |V | 0 0 opc   |0  imm9 ...      |index|  Rn  |  Rt  |  one register
//!  |size | 1 1 1 |V | 0 1 opc   |   imm12 ...           |  Rn  |  Rt  |
//!  |size | 1 1 1 |V | 0 0 opc   |1  Rm    | option S| 1 0 |  Rn  |  Rt  |
//!  | opc | 1 0 1 |V |index |L  |   imm7  |     Rt2      |  Rn  |  Rt  |  a pair
//!  |0 Q  | 0 0 1 |1 | 0 0 P|L  |0  Rm    | 0 1 1 1|size|  Rn  |  Rt  |  LD1, ST1 of one register
//!  +-----+-------+--+------+--+----------+--------+-----+------+------+
//! ```
//!
//! Arm ARM (DDI 0487) C4.1, "Loads and stores": the tables "Load/store register" (unscaled immediate,
//! immediate pre-indexed and post-indexed, unsigned immediate, register offset), "Load/store register
//! pair" and "Load/store no-allocate pair" (all indices), "Advanced SIMD load/store multiple
//! structures" (both). What these instructions do is in C6.2 and C7.2.

use crate::syndrome::Access;

/// A load or store: what it moves between which registers and which addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadStore {
    /// It writes memory.
    pub store: bool,
    /// Which registers it moves.
    pub bank: Bank,
    /// The register at the lowest address (Rt).
    pub first: u8,
    /// The register behind it, of a pair (Rt2).
    pub second: Option<u8>,
    /// Bytes of memory that belong to each register: 1, 2, 4, 8 or, in SIMD registers, 16.
    pub bytes: u8,
    /// Bytes of each single access that it consists of: 1, 2, 4 or 8.
    pub part: u8,
    /// The base register: 31 is the stack pointer.
    pub base: u8,
    /// What is added to the base.
    pub offset: Offset,
    /// What the sum is for.
    pub index: Index,
}

/// Which registers are moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bank {
    /// General-purpose registers: 31 is the zero register.
    General {
        /// A load extends the sign.
        sign_extend: bool,
        /// A load's destination is 64 bits wide.
        wide: bool,
    },
    /// FP and SIMD registers; a load clears the bits above the width.
    Simd,
}

/// What is added to the base register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offset {
    /// A constant.
    Immediate(i32),
    /// A general-purpose register (31 is the zero register), extended and then shifted left.
    Register {
        /// Which.
        register: u8,
        /// How much of it.
        extend: Extend,
        /// By how many bits.
        shift: u8,
    },
}

/// How much of a register is taken as offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extend {
    /// The low half (UXTW).
    Unsigned,
    /// The low half with its sign (SXTW).
    Signed,
    /// All of it (LSL, SXTX).
    Whole,
}

/// What the sum of base and offset is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Index {
    /// The address.
    Offset,
    /// The address, and the new value of the base register.
    Pre,
    /// The new value of the base register, whose old value is the address.
    Post,
}

/// Why an instruction is not decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Undecoded {
    /// It may access memory in a way that is more than a row of single accesses: exclusives, atomics,
    /// ordered and unprivileged accesses, structures, prefetches, system instructions; or it is
    /// unallocated or CONSTRAINED UNPREDICTABLE.
    Unsupported,
    /// It is no load or store.
    NoAccess,
}

/// Where an access goes, and what its base register becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// The address of the first byte.
    pub address: u64,
    /// The new value of the base register.
    pub writeback: Option<u64>,
}

const fn bit(word: u32, at: u32) -> bool {
    word >> at & 1 != 0
}

/// Returns up to eight bits.
#[expect(
    clippy::cast_possible_truncation,
    reason = "no field asked for is wider than eight bits"
)]
const fn bits(word: u32, from: u32, count: u32) -> u8 {
    (word >> from & ((1 << count) - 1)) as u8
}

/// Returns a field as a signed number.
const fn signed(word: u32, from: u32, count: u32) -> i32 {
    let unused = 32 - count;
    ((word >> from) << unused).cast_signed() >> unused
}

/// Decodes an instruction.
pub fn decode(word: u32) -> Result<LoadStore, Undecoded> {
    // C4.1: x1x0 in bits 28:25 are the loads and stores. Of the system instructions SYS is one to
    // reckon with: DC ZVA is.
    let decoded = match (bit(word, 27), bit(word, 25), bits(word, 27, 3)) {
        (true, false, 0b111) => register(word),
        (true, false, 0b101) => pair(word),
        (true, false, _) => structure(word),
        _ if word & 0xfff8_0000 == 0xd508_0000 => None,
        _ => return Err(Undecoded::NoAccess),
    };
    decoded
        .filter(LoadStore::is_predictable)
        .ok_or(Undecoded::Unsupported)
}

/// Decodes a load or store of one register.
fn register(word: u32) -> Option<LoadStore> {
    let size = bits(word, 30, 2);
    let opc = bits(word, 22, 2);
    let (bank, store, scale) = if bit(word, 26) {
        // Q registers are the size beyond D.
        let scale = match (size, bit(word, 23)) {
            (_, false) => size,
            (0, true) => 4,
            _ => return None,
        };
        (Bank::Simd, !bit(word, 22), scale)
    } else {
        let general = |sign_extend, wide| Bank::General { sign_extend, wide };
        match (opc, size) {
            (0b00, _) => (general(false, size == 3), true, size),
            (0b01, _) => (general(false, size == 3), false, size),
            (0b10, 0..=2) => (general(true, true), false, size),
            (0b11, 0..=1) => (general(true, false), false, size),
            _ => return None,
        }
    };
    let (offset, index) = if bit(word, 24) {
        let scaled = signed(word, 10, 12) & 0xfff;
        (Offset::Immediate(scaled << scale), Index::Offset)
    } else {
        let unscaled = Offset::Immediate(signed(word, 12, 9));
        match (bit(word, 21), bits(word, 10, 2)) {
            (false, 0b00) => (unscaled, Index::Offset),
            (false, 0b01) => (unscaled, Index::Post),
            (false, 0b11) => (unscaled, Index::Pre),
            (true, 0b10) => (register_offset(word, scale)?, Index::Offset),
            _ => return None,
        }
    };
    let bytes = 1 << scale;
    Some(LoadStore {
        store,
        bank,
        first: bits(word, 0, 5),
        second: None,
        bytes,
        part: bytes.min(8),
        base: bits(word, 5, 5),
        offset,
        index,
    })
}

fn register_offset(word: u32, scale: u8) -> Option<Offset> {
    let extend = match bits(word, 13, 3) {
        0b010 => Extend::Unsigned,
        0b110 => Extend::Signed,
        0b011 | 0b111 => Extend::Whole,
        _ => return None,
    };
    Some(Offset::Register {
        register: bits(word, 16, 5),
        extend,
        shift: if bit(word, 12) { scale } else { 0 },
    })
}

/// Decodes a load or store of two registers.
fn pair(word: u32) -> Option<LoadStore> {
    let opc = bits(word, 30, 2);
    let store = !bit(word, 22);
    let (index, allocates) = match bits(word, 23, 3) {
        0b000 => (Index::Offset, false),
        0b001 => (Index::Post, true),
        0b010 => (Index::Offset, true),
        0b011 => (Index::Pre, true),
        _ => return None,
    };
    let general = |sign_extend, wide| Bank::General { sign_extend, wide };
    let (bank, scale) = match (bit(word, 26), opc) {
        (true, 0..=2) => (Bank::Simd, 2 + opc),
        (false, 0b00) => (general(false, false), 2),
        // LDPSW; the store is one of tags.
        (false, 0b01) if allocates && !store => (general(true, true), 2),
        (false, 0b10) => (general(false, true), 3),
        _ => return None,
    };
    let bytes: u8 = 1 << scale;
    Some(LoadStore {
        store,
        bank,
        first: bits(word, 0, 5),
        second: Some(bits(word, 10, 5)),
        bytes,
        part: bytes.min(8),
        base: bits(word, 5, 5),
        offset: Offset::Immediate(signed(word, 15, 7) << scale),
        index,
    })
}

/// Decodes LD1 and ST1 of all elements of one register.
fn structure(word: u32) -> Option<LoadStore> {
    const FIXED: u32 = 0xbf20_f000;
    if word & FIXED != 0x0c00_7000 {
        return None;
    }
    let bytes = if bit(word, 30) { 16 } else { 8 };
    let register = bits(word, 16, 5);
    let (offset, index) = match (bit(word, 23), register) {
        (false, 0) => (Offset::Immediate(0), Index::Offset),
        (false, _) => return None,
        (true, 31) => (Offset::Immediate(i32::from(bytes)), Index::Post),
        (true, _) => {
            let offset = Offset::Register {
                register,
                extend: Extend::Whole,
                shift: 0,
            };
            (offset, Index::Post)
        }
    };
    Some(LoadStore {
        store: !bit(word, 22),
        bank: Bank::Simd,
        first: bits(word, 0, 5),
        second: None,
        bytes,
        part: 1 << bits(word, 10, 2),
        base: bits(word, 5, 5),
        offset,
        index,
    })
}

impl LoadStore {
    /// Returns whether the architecture says what it does: CONSTRAINED UNPREDICTABLE is a base register
    /// that is also moved, and a load that moves two values to one register (K1.2, and the pages of
    /// LDR, STR, LDP and STP in C6.2).
    fn is_predictable(&self) -> bool {
        let loads_twice = !self.store && self.second == Some(self.first);
        let moves_base = matches!(self.bank, Bank::General { .. })
            && self.index != Index::Offset
            && self.base != 31
            && (self.first == self.base || self.second == Some(self.base));
        !loads_twice && !moves_base
    }

    /// Returns where it goes; `register` gives the value of a general-purpose register (31 is the zero
    /// register), `sp` that of the stack pointer.
    pub fn target(&self, register: impl Fn(u8) -> u64, sp: u64) -> Target {
        let base = match self.base {
            31 => sp,
            base => register(base),
        };
        let offset = match self.offset {
            Offset::Immediate(offset) => i64::from(offset).cast_unsigned(),
            Offset::Register {
                register: index,
                extend,
                shift,
            } => extend.apply(register(index)) << shift,
        };
        let sum = base.wrapping_add(offset);
        let (address, writeback) = match self.index {
            Index::Offset => (sum, None),
            Index::Pre => (sum, Some(sum)),
            Index::Post => (base, Some(sum)),
        };
        Target { address, writeback }
    }

    /// Returns how many bytes of memory it accesses.
    pub const fn size(&self) -> u8 {
        if self.second.is_some() {
            2 * self.bytes
        } else {
            self.bytes
        }
    }

    /// Returns how one of its general-purpose registers is moved; `None` if it moves SIMD registers.
    pub fn access(&self, register: u8) -> Option<Access> {
        match self.bank {
            Bank::General { sign_extend, wide } => {
                Some(Access::new(self.bytes, register, sign_extend, wide))
            }
            Bank::Simd => None,
        }
    }
}

impl Extend {
    const fn apply(self, value: u64) -> u64 {
        match self {
            Self::Unsigned => value & 0xffff_ffff,
            Self::Signed => ((value << 32).cast_signed() >> 32).cast_unsigned(),
            Self::Whole => value,
        }
    }
}

/// What a load or store moves, by register: the memory of each, in the order of its addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Values([u128; 2]);

impl Values {
    /// Makes the values of a store.
    pub const fn new(first: u128, second: u128) -> Self {
        Self([first, second])
    }

    /// Returns the values of the first and the second register.
    pub const fn registers(self) -> [u128; 2] {
        self.0
    }

    /// Returns which value holds the part at byte `at` of the access, and from which bit on.
    fn place(what: &LoadStore, at: u8) -> (usize, u32) {
        if at < what.bytes {
            (0, 8 * u32::from(at))
        } else {
            (1, 8 * u32::from((at - what.bytes) & 15))
        }
    }

    fn mask(what: &LoadStore) -> u64 {
        u64::MAX >> (64 - 8 * u32::from(what.part))
    }

    /// Returns the part at byte `at` of the access.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "a part has at most 64 bits"
    )]
    pub fn part(&self, what: &LoadStore, at: u8) -> u64 {
        let (index, shift) = Self::place(what, at);
        (self.0[index] >> shift) as u64 & Self::mask(what)
    }

    /// Sets the part at byte `at` of the access.
    pub fn set_part(&mut self, what: &LoadStore, at: u8, value: u64) {
        let (index, shift) = Self::place(what, at);
        let mask = u128::from(Self::mask(what)) << shift;
        let value = u128::from(value & Self::mask(what)) << shift;
        self.0[index] = self.0[index] & !mask | value;
    }
}

#[cfg(test)]
mod tests;
