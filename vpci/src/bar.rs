//! Base address registers: what the kernel knows of the physical ones, and what a guest sees.
//!
//! PCI Express Base Specification, sections 7.5.1.2.1 and 7.5.1.2.4.

use core::fmt;

use crate::{BusAddress, BusRange};

/// Bytes of a page, as stage 2 maps it.
pub const PAGE: u64 = 4096;

/// The least that an expansion ROM decodes, and the most. Section 7.5.1.2.4.
const ROM_UNIT: u64 = 1 << 11;
const ROM_LARGEST: u64 = 1 << 24;

/// Number of a BAR, 0 to 5, or the expansion ROM.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct BarIndex(u8);

impl BarIndex {
    /// BARs of a type 0 header.
    pub const COUNT: u8 = 6;

    /// Names BAR `index`; `None` if a type 0 header has no such BAR.
    #[must_use]
    pub const fn new(index: u8) -> Option<Self> {
        if index < Self::COUNT {
            Some(Self(index))
        } else {
            None
        }
    }

    /// Ranges that a function can decode at once: those of its BARs, and its expansion ROM.
    pub const RANGES: usize = Self::COUNT as usize + 1;

    /// The Expansion ROM Base Address Register, which comes after the BARs.
    pub const ROM: Self = Self(Self::COUNT);

    /// Returns the number; that of the expansion ROM is one past the last BAR's.
    #[must_use]
    pub const fn get(self) -> u8 {
        self.0
    }

    /// Returns the number as an index.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    /// Returns the dword of config space that holds the BAR.
    pub(crate) const fn dword(self) -> usize {
        match self {
            Self::ROM => 12,
            Self(index) => 4 + index as usize,
        }
    }

    /// Returns all BARs.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..Self::COUNT).map(Self)
    }
}

impl fmt::Display for BarIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::ROM => f.write_str("ROM"),
            Self(index) => write!(f, "BAR{index}"),
        }
    }
}

impl fmt::Debug for BarIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What a BAR decodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BarKind {
    /// I/O space. Hidden from guests.
    Io,
    /// Memory space below 4 GiB.
    Memory32,
    /// Memory space; takes the next BAR's register as its upper half.
    Memory64,
    /// An expansion ROM, below 4 GiB. It decodes only while its own enable bit is set.
    Rom,
}

/// A physical BAR, as the enumeration of the machine's bus found and placed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BarInfo {
    /// Which BAR; the lower one of a 64-bit pair.
    pub index: BarIndex,
    /// What it decodes.
    pub kind: BarKind,
    /// Whether reads have no side effects and writes may be merged.
    pub prefetchable: bool,
    /// Its size, a power of two.
    pub size: u64,
    /// Where the CPU finds it: a physical address of the machine.
    pub host: u64,
}

impl BarInfo {
    /// Returns whether the description is one that a BAR register can express.
    pub(crate) fn is_sound(&self) -> bool {
        let (smallest, largest) = match self.kind {
            BarKind::Io => (4, 1 << 31),
            BarKind::Memory32 => (16, 1 << 31),
            BarKind::Memory64 => (16, 1 << 62),
            BarKind::Rom => (ROM_UNIT, ROM_LARGEST),
        };
        let pair = self.kind == BarKind::Memory64;
        self.size.is_power_of_two()
            && (smallest..=largest).contains(&self.size)
            && self.host.checked_add(self.size).is_some()
            && (self.kind == BarKind::Io || self.host.is_multiple_of(16))
            && !(pair && self.index.get() + 1 == BarIndex::COUNT)
            && (self.kind == BarKind::Rom) == (self.index == BarIndex::ROM)
    }

    /// Returns whether whole pages, and nothing but this BAR, lie in its range, and it decodes whenever it
    /// does for the guest. If not, no page of it is ever mapped, and every access traps.
    #[must_use]
    pub const fn is_mappable(&self) -> bool {
        let is_rom = matches!(self.kind, BarKind::Rom);
        self.size >= PAGE && self.host.is_multiple_of(PAGE) && !is_rom
    }

    /// Returns the bits of the register, both halves, that a guest can write.
    pub(crate) const fn address_mask(&self) -> u64 {
        let mask = !(self.size - 1);
        match self.kind {
            BarKind::Io => 0,
            BarKind::Memory32 | BarKind::Rom => mask & 0xffff_ffff,
            BarKind::Memory64 => mask,
        }
    }

    /// Returns the bits of the lower register that say what kind of BAR this is.
    pub(crate) const fn type_bits(&self) -> u32 {
        let kind = match self.kind {
            BarKind::Io | BarKind::Rom => return 0,
            BarKind::Memory32 => 0b000,
            BarKind::Memory64 => 0b100,
        };
        if self.prefetchable {
            kind | 0b1000
        } else {
            kind
        }
    }

    /// Returns the range that the BAR decodes when it is set to `address`.
    pub(crate) fn range_at(&self, address: u64) -> Option<BusRange> {
        BusRange::new(BusAddress::new(address & self.address_mask()), self.size)
    }
}

/// Pages of a BAR that may be mapped into a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pages {
    /// Where they start in the BAR.
    pub offset: u64,
    /// Where they start in the machine's physical memory.
    pub host: u64,
    /// Their length in bytes.
    pub size: u64,
    /// Whether the BAR is prefetchable.
    pub prefetchable: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    #[test]
    #[rustfmt::skip]
    fn a_description_must_be_one_that_a_register_can_hold() {
        use BarKind::{Io, Memory32, Memory64, Rom};
        let cases = [
            // bar, kind,  size,        host,          sound, mappable
            (0, Memory32,  0x4000,      0x1000_0000,   true,  true),
            (0, Memory32,  16,          0x1000_0000,   true,  false),
            (0, Memory32,  0x1000,      0x1000_0800,   true,  false), // shares its pages
            (0, Memory32,  8,           0x1000_0000,   false, false),
            (0, Memory32,  0x3000,      0x1000_0000,   false, true),
            (0, Memory32,  0,           0x1000_0000,   false, false),
            (0, Memory32,  1 << 32,     0,             false, true),
            (4, Memory64,  1 << 32,     1 << 40,       true,  true),
            (5, Memory64,  0x1000,      0x1000,        false, true),  // no room for the upper half
            (0, Memory64,  1 << 63,     0,             false, true),
            (0, Memory32,  0x1000,      0x1000_0008,   false, false),
            (0, Memory64,  1 << 62,     u64::MAX << 62, false, true),  // wraps
            (2, Io,        32,          0x1000,        true,  false),
            (6, Rom,       0x800,       0x1000,        true,  false),
            (6, Rom,       1 << 24,     0x100_0000,    true,  false), // decodes only while it is read
            (6, Rom,       0x400,       0x1000,        false, false),
            (6, Rom,       1 << 25,     0x200_0000,    false, false),
            (6, Memory32,  0x1000,      0x1000,        false, true),
            (0, Rom,       0x1000,      0x1000,        false, false),
        ];
        for (index, kind, size, host, sound, mappable) in cases {
            let index = BarIndex::new(index).unwrap_or(BarIndex::ROM);
            let bar = BarInfo { index, kind, prefetchable: false, size, host };
            assert_eq!(bar.is_sound(), sound, "{bar:?}");
            assert_eq!(bar.is_mappable(), mappable, "{bar:?}");
        }
    }

    #[test]
    fn a_type_0_header_has_six_bars() {
        assert_eq!(BarIndex::new(6), None);
        assert_eq!(BarIndex::all().count(), 6);
        assert_eq!(BarIndex::new(5).unwrap().to_string(), "BAR5");
        assert_eq!(BarIndex::ROM.to_string(), "ROM");
        let dwords = BarIndex::all().chain([BarIndex::ROM]).map(BarIndex::dword);
        assert!(dwords.eq([4, 5, 6, 7, 8, 9, 12]));
        assert_eq!(std::format!("{:?}", BarIndex::new(0)), "Some(BAR0)");
    }
}
