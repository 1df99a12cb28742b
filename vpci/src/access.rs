//! Config accesses, once they are decoded: which bytes of which function.
//!
//! A config request names one dword and up to four of its bytes, so an access is one, two or four
//! bytes, naturally aligned. PCI Express Base Specification, section 2.2.7.

use crate::Sbdf;

/// How many bytes an access covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Size {
    /// A byte.
    One = 1,
    /// Two bytes.
    Two = 2,
    /// A dword.
    Four = 4,
}

impl Size {
    /// Returns the size that covers `bytes` bytes, if a config request can have it.
    #[must_use]
    pub const fn from_bytes(bytes: u64) -> Option<Self> {
        match bytes {
            1 => Some(Self::One),
            2 => Some(Self::Two),
            4 => Some(Self::Four),
            _ => None,
        }
    }

    /// Returns the number of bytes.
    #[must_use]
    pub const fn bytes(self) -> u16 {
        self as u16
    }

    /// Returns ones where a value of this size has its bits. All ones is also what a read of an
    /// absent function gives.
    #[must_use]
    pub const fn mask(self) -> u32 {
        u32::MAX.wrapping_shr(32_u32.wrapping_sub(self as u32 * 8))
    }
}

/// A byte offset in one function's config space, 0 to 4095.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Offset(u16);

impl Offset {
    /// Bytes of config space that a function has.
    pub const SPACE: u16 = 4096;

    /// Returns the offset `bytes`; `None` past the end of config space.
    #[must_use]
    pub const fn new(bytes: u16) -> Option<Self> {
        if bytes < Self::SPACE {
            Some(Self(bytes))
        } else {
            None
        }
    }

    /// Returns the part of an ECAM offset that lies inside the function.
    #[must_use]
    pub const fn in_function(ecam: u64) -> Self {
        Self((ecam & 0xfff) as u16)
    }

    /// Returns the byte offset.
    #[must_use]
    pub const fn get(self) -> u16 {
        self.0
    }

    /// Returns the number of the dword that holds this byte.
    #[must_use]
    pub const fn dword(self) -> usize {
        (self.0 / 4) as usize
    }

    /// Returns how far a value at this offset is shifted inside its dword.
    #[must_use]
    pub const fn shift(self) -> u32 {
        (self.0 % 4) as u32 * 8
    }
}

/// A config request: naturally aligned, inside one function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConfigAccess {
    sbdf: Sbdf,
    offset: Offset,
    size: Size,
}

impl ConfigAccess {
    /// Names an access; `None` if it is not naturally aligned.
    #[must_use]
    pub const fn new(sbdf: Sbdf, offset: Offset, size: Size) -> Option<Self> {
        if !offset.get().is_multiple_of(size.bytes()) {
            return None;
        }
        Some(Self { sbdf, offset, size })
    }

    /// Returns the function.
    #[must_use]
    pub const fn sbdf(self) -> Sbdf {
        self.sbdf
    }

    /// Returns the offset of the first byte.
    #[must_use]
    pub const fn offset(self) -> Offset {
        self.offset
    }

    /// Returns the size.
    #[must_use]
    pub const fn size(self) -> Size {
        self.size
    }

    /// Returns ones in the byte lanes of the dword that the access covers.
    #[must_use]
    pub const fn enables(self) -> u32 {
        // Aligned, so no lane is shifted out.
        self.size.mask() << self.offset.shift()
    }

    /// Returns what a read gives when its dword holds `dword`.
    #[must_use]
    pub const fn extract(self, dword: u32) -> u32 {
        (dword >> self.offset.shift()) & self.size.mask()
    }

    /// Returns `value` moved to the byte lanes of the dword that the access covers.
    #[must_use]
    pub const fn place(self, value: u32) -> u32 {
        (value & self.size.mask()) << self.offset.shift()
    }
}

/// One physical function's config space: ECAM today, whatever else a board has later.
///
/// Only naturally aligned accesses are made through it.
pub trait PhysicalConfig {
    /// Reads `size` bytes at `offset`.
    fn read(&self, offset: Offset, size: Size) -> u32;
    /// Writes `size` bytes at `offset`.
    fn write(&self, offset: Offset, size: Size, value: u32);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_one_two_and_four() {
        for bytes in 0..=17 {
            let size = Size::from_bytes(bytes);
            assert_eq!(size.is_some(), matches!(bytes, 1 | 2 | 4), "{bytes}");
            if let Some(size) = size {
                assert_eq!(u64::from(size.bytes()), bytes);
                assert_eq!(size.mask().count_ones(), u32::from(size.bytes()) * 8);
            }
        }
    }

    #[test]
    fn offsets_end_with_config_space() {
        assert_eq!(Offset::new(4095).map(Offset::get), Some(4095));
        assert_eq!(Offset::new(4096), None);
        assert_eq!(Offset::in_function(0xfff_ffff).get(), 4095);
        assert_eq!(Offset::in_function(0x1234_5006).dword(), 1);
    }

    #[test]
    #[rustfmt::skip]
    fn lanes_follow_offset_and_size() {
        let cases = [
            // offset, size,        enables,     of 0x44332211, 0xddccbbaa placed
            (0x00,     Size::One,   0x0000_00ff, 0x11,          0x0000_00aa),
            (0x01,     Size::One,   0x0000_ff00, 0x22,          0x0000_aa00),
            (0x03,     Size::One,   0xff00_0000, 0x44,          0xaa00_0000),
            (0x10,     Size::Two,   0x0000_ffff, 0x2211,        0x0000_bbaa),
            (0x12,     Size::Two,   0xffff_0000, 0x4433,        0xbbaa_0000),
            (0xffc,    Size::Four,  0xffff_ffff, 0x4433_2211,   0xddcc_bbaa),
        ];
        for (offset, size, enables, extracted, placed) in cases {
            let offset = Offset::new(offset).unwrap();
            let access = ConfigAccess::new(Sbdf::from_rid(0, 0), offset, size).unwrap();
            assert_eq!(access.enables(), enables, "{access:?}");
            assert_eq!(access.extract(0x4433_2211), extracted, "{access:?}");
            assert_eq!(access.place(0xddcc_bbaa), placed, "{access:?}");
        }
    }

    #[test]
    fn an_access_that_is_not_aligned_cannot_be_named() {
        let name = Sbdf::from_rid(0, 0);
        for bytes in 0..Offset::SPACE {
            let offset = Offset::new(bytes).unwrap();
            for size in [Size::One, Size::Two, Size::Four] {
                let named = ConfigAccess::new(name, offset, size).is_some();
                assert_eq!(named, bytes % size.bytes() == 0, "{bytes:#x} {size:?}");
            }
        }
    }
}
