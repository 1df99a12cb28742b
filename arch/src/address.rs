//! The kinds of address, kept apart by type.

use core::fmt;

macro_rules! address {
    ($(#[$doc:meta])* $name:ident, $letter:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        #[repr(transparent)]
        pub struct $name(u64);

        impl $name {
            /// Makes an address of its number.
            pub const fn new(address: u64) -> Self {
                Self(address)
            }

            /// Returns the address as a number.
            pub const fn get(self) -> u64 {
                self.0
            }

            /// Returns the address `bytes` further on, or `None` past the end of the address space.
            pub const fn checked_add(self, bytes: u64) -> Option<Self> {
                match self.0.checked_add(bytes) {
                    Some(sum) => Some(Self(sum)),
                    None => None,
                }
            }

            /// Returns the greatest multiple of `align`, a power of two, that is not above.
            pub const fn align_down(self, align: u64) -> Self {
                assert!(align.is_power_of_two());
                Self(self.0 & !(align - 1))
            }

            /// Returns whether the address is a multiple of `align`, a power of two.
            pub const fn is_aligned(self, align: u64) -> bool {
                assert!(align.is_power_of_two());
                self.0 & (align - 1) == 0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($letter, " {:#x}"), self.0)
            }
        }
    };
}

address! {
    /// Physical address: what stage 2, or EL2's own stage 1, gives out.
    Pa, "PA"
}
address! {
    /// Intermediate physical address: what a guest takes for physical, before stage 2.
    Ipa, "IPA"
}
address! {
    /// Virtual address: input of a stage 1.
    Va, "VA"
}

/// Size of the smallest page, which is also the size of a translation table.
pub const PAGE_SIZE: u64 = 4096;
/// Size of a level 2 block.
pub const BLOCK_2M: u64 = 2 << 20;
/// Size of a level 1 block.
pub const BLOCK_1G: u64 = 1 << 30;
