//! Capability chains of a physical function, walked without trusting them.
//!
//! A chain may loop, leave config space or point into the header; the walk then ends. PCI Express Base
//! Specification, sections 7.5.1.1.11 (capabilities) and 7.6.3 (extended capabilities).

use crate::{Offset, PhysicalConfig, Size};

/// Capability IDs that the model knows (PCI Code and ID Assignment Specification, section 2).
pub mod id {
    /// PCI power management.
    pub const POWER: u8 = 0x01;
    /// MSI.
    pub const MSI: u8 = 0x05;
    /// Vendor-specific.
    pub const VENDOR: u8 = 0x09;
    /// PCI Express.
    pub const EXPRESS: u8 = 0x10;
    /// MSI-X.
    pub const MSIX: u8 = 0x11;
}

/// Extended capability IDs that the model knows (the same document, section 3).
pub mod extended {
    /// Advanced Error Reporting.
    pub const ERRORS: u16 = 0x0001;
    /// Device Serial Number.
    pub const SERIAL_NUMBER: u16 = 0x0003;
    /// Alternative Routing-ID Interpretation.
    pub const ARI: u16 = 0x000e;
    /// Latency Tolerance Reporting.
    pub const LATENCY: u16 = 0x0018;
}

/// Where the header ends and capabilities may be.
const HEADER_END: u16 = 0x40;

/// Where extended capabilities start.
const EXTENDED: u16 = 0x100;

/// A capability in a function's chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capability {
    /// Byte offset of its first dword.
    pub offset: u16,
    /// Its ID; extended capabilities have 16 bits of it.
    pub id: u16,
}

/// Reads one dword of config space; zero past its end.
pub(crate) fn dword(device: &impl PhysicalConfig, offset: u16) -> u32 {
    let offset = Offset::new(offset & !3);
    offset.map_or(0, |offset| device.read(offset, Size::Four))
}

/// Walks the capabilities of a function, in the order of its chain.
pub fn walk(device: &impl PhysicalConfig) -> impl Iterator<Item = Capability> {
    const CAPABILITIES_LIST: u32 = 1 << 20;
    let present = dword(device, 0x04) & CAPABILITIES_LIST != 0;
    let mut next = if present {
        dword(device, 0x34) & 0xfc
    } else {
        0
    };
    let mut seen = 0_u64;
    core::iter::from_fn(move || {
        let offset = u16::try_from(next).ok()?;
        let bit = 1_u64 << (offset / 4);
        if offset < HEADER_END || seen & bit != 0 {
            return None;
        }
        seen |= bit;
        let header = dword(device, offset);
        next = header >> 8 & 0xfc;
        let id = u16::try_from(header & 0xff).ok()?;
        (id != 0xff).then_some(Capability { offset, id })
    })
}

/// Walks the extended capabilities of a function, in the order of its chain.
pub fn walk_extended(device: &impl PhysicalConfig) -> impl Iterator<Item = Capability> {
    let mut next = EXTENDED;
    let mut seen = [0_u64; 16];
    core::iter::from_fn(move || {
        let offset = next;
        if offset < EXTENDED {
            return None;
        }
        let word = seen.get_mut(usize::from(offset / 256))?;
        let bit = 1_u64 << (offset / 4 % 64);
        if *word & bit != 0 {
            return None;
        }
        *word |= bit;
        let header = dword(device, offset);
        if header == 0 || header == u32::MAX {
            return None;
        }
        next = u16::try_from(header >> 20 & 0xffc).ok()?;
        let id = u16::try_from(header & 0xffff).ok()?;
        Some(Capability { offset, id })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    struct Space([u32; 1024]);

    impl PhysicalConfig for Space {
        fn read(&self, offset: Offset, size: Size) -> u32 {
            assert_eq!(size, Size::Four);
            self.0[offset.dword()]
        }

        fn write(&self, _: Offset, _: Size, _: u32) {
            panic!("a walk writes nothing");
        }
    }

    /// What it is, config space, and the chain that is found there.
    type Case = (&'static str, &'static [(usize, u32)], &'static [(u16, u16)]);

    fn space(dwords: &[(usize, u32)]) -> Space {
        let mut space = Space([0; 1024]);
        space.0[1] = 1 << 20;
        for &(offset, value) in dwords {
            space.0[offset / 4] = value;
        }
        space
    }

    #[test]
    #[rustfmt::skip]
    fn chains_are_followed_until_they_stop_making_sense() {
        let cases: &[Case] = &[
            ("plain",       &[(0x34, 0x40), (0x40, 0x5001), (0x50, 0x0011)], &[(0x40, 1), (0x50, 0x11)]),
            ("no list",     &[(0x04, 0), (0x34, 0x40), (0x40, 0x0001)],      &[]),
            ("loop",        &[(0x34, 0x40), (0x40, 0x5001), (0x50, 0x4011)], &[(0x40, 1), (0x50, 0x11)]),
            ("itself",      &[(0x34, 0x40), (0x40, 0x4001)],                 &[(0x40, 1)]),
            ("header",      &[(0x34, 0x40), (0x40, 0x3c01)],                 &[(0x40, 1)]),
            ("low bits",    &[(0x34, 0x43), (0x40, 0x5301), (0x50, 0x0005)], &[(0x40, 1), (0x50, 5)]),
            ("last dword",  &[(0x34, 0xfc), (0xfc, 0x0009)],                 &[(0xfc, 9)]),
            ("gone",        &[(0x34, 0x40), (0x40, u32::MAX)],               &[]),
        ];
        for (what, dwords, expected) in cases {
            let space = space(dwords);
            let found: Vec<_> = walk(&space).map(|found| (found.offset, found.id)).collect();
            assert_eq!(&found, expected, "{what}");
        }
    }

    #[test]
    #[rustfmt::skip]
    fn extended_chains_are_followed_until_they_stop_making_sense() {
        let cases: &[Case] = &[
            ("none",        &[],                                                &[]),
            ("gone",        &[(0x100, u32::MAX)],                               &[]),
            ("plain",       &[(0x100, 0x1401_0001), (0x140, 0x0001_0003)],      &[(0x100, 1), (0x140, 3)]),
            ("loop",        &[(0x100, 0x1401_0001), (0x140, 0x1001_0003)],      &[(0x100, 1), (0x140, 3)]),
            ("itself",      &[(0x100, 0x1401_0001), (0x140, 0x1401_0003)],      &[(0x100, 1), (0x140, 3)]),
            ("below",       &[(0x100, 0x0401_0001)],                            &[(0x100, 1)]),
            ("low bits",    &[(0x100, 0x1431_0001), (0x140, 0x0001_0003)],      &[(0x100, 1), (0x140, 3)]),
            ("last dword",  &[(0x100, 0xffc1_0001), (0xffc, 0x0001_0003)],      &[(0x100, 1), (0xffc, 3)]),
        ];
        for (what, dwords, expected) in cases {
            let space = space(dwords);
            let found: Vec<_> = walk_extended(&space).map(|found| (found.offset, found.id)).collect();
            assert_eq!(&found, expected, "{what}");
        }
    }
}
