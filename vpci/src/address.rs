//! Addresses in PCI memory space.

use core::fmt;

/// An address in PCI memory space, as a BAR holds it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct BusAddress(u64);

impl BusAddress {
    /// Names the address `address`.
    #[must_use]
    pub const fn new(address: u64) -> Self {
        Self(address)
    }

    /// Returns the number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for BusAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Debug for BusAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A range of bus addresses that is not empty. It may reach up to the last address there is.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct BusRange {
    first: u64,
    last: u64,
}

impl BusRange {
    /// Every address that there is.
    pub(crate) const ALL: Self = Self {
        first: 0,
        last: u64::MAX,
    };

    /// Names what lies from `first` to `last`, which is part of it; `None` if that is nothing.
    pub(crate) const fn between(first: u64, last: u64) -> Option<Self> {
        if first <= last {
            Some(Self { first, last })
        } else {
            None
        }
    }

    /// Names the `size` bytes from `start`; `None` if there are none, or if they pass the last
    /// address.
    #[must_use]
    pub const fn new(start: BusAddress, size: u64) -> Option<Self> {
        let Some(rest) = size.checked_sub(1) else {
            return None;
        };
        let Some(last) = start.get().checked_add(rest) else {
            return None;
        };
        Some(Self {
            first: start.get(),
            last,
        })
    }

    /// Returns the first address.
    #[must_use]
    pub const fn start(self) -> BusAddress {
        BusAddress(self.first)
    }

    /// Returns the last address, which is part of the range.
    #[must_use]
    pub const fn last(self) -> BusAddress {
        BusAddress(self.last)
    }

    /// Returns whether `address` is in the range.
    #[must_use]
    pub const fn contains(self, address: BusAddress) -> bool {
        self.first <= address.0 && address.0 <= self.last
    }

    /// Returns whether all of `other` is in the range.
    #[must_use]
    pub const fn covers(self, other: Self) -> bool {
        self.first <= other.first && other.last <= self.last
    }

    /// Returns whether the two have an address in common.
    #[must_use]
    pub const fn overlaps(self, other: Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }

    /// Returns how far `address` is from the start; `None` if it is not in the range.
    #[must_use]
    pub const fn offset_of(self, address: BusAddress) -> Option<u64> {
        if self.contains(address) {
            Some(address.0 - self.first)
        } else {
            None
        }
    }
}

impl fmt::Display for BusRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}..={:#x}", self.first, self.last)
    }
}

impl fmt::Debug for BusRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    fn range(start: u64, size: u64) -> BusRange {
        BusRange::new(BusAddress::new(start), size).unwrap()
    }

    #[test]
    fn a_range_is_not_empty_and_does_not_wrap() {
        assert_eq!(BusRange::new(BusAddress::new(5), 0), None);
        assert_eq!(BusRange::new(BusAddress::new(u64::MAX), 2), None);
        let top = range(u64::MAX - 15, 16);
        assert_eq!(top.last(), BusAddress::new(u64::MAX));
        assert_eq!(range(0, u64::MAX).to_string(), "0x0..=0xfffffffffffffffe");
        assert_eq!(std::format!("{:?}", top.start()), "0xfffffffffffffff0");
    }

    #[test]
    #[rustfmt::skip]
    fn ranges_meet_where_they_share_an_address() {
        let cases = [
            // a,               b,               overlap, a covers b
            (range(0x10, 0x10), range(0x20, 1),  false,   false),
            (range(0x10, 0x10), range(0x0f, 1),  false,   false),
            (range(0x10, 0x10), range(0x1f, 1),  true,    true),
            (range(0x10, 0x10), range(0x1f, 2),  true,    false),
            (range(0x10, 0x10), range(0x00, 99), true,    false),
            (range(0x10, 0x10), range(0x10, 16), true,    true),
        ];
        for (a, b, overlap, cover) in cases {
            assert_eq!((a.overlaps(b), b.overlaps(a)), (overlap, overlap), "{a} {b}");
            assert_eq!(a.covers(b), cover, "{a} {b}");
        }
        assert_eq!(range(0x10, 0x10).offset_of(BusAddress::new(0x1f)), Some(15));
        assert_eq!(range(0x10, 0x10).offset_of(BusAddress::new(0x20)), None);
    }
}
