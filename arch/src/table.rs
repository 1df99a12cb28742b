//! Translation tables: EL2 stage 1 and stage 2.
//!
//! All tables have the 4 KiB granule: 512 descriptors of 8 bytes, nine bits of the input address
//! for each level.
//!
//! ```text
//!   47      39 38      30 29      21 20      12 11                 0
//!  +----------+----------+----------+----------+--------------------+
//!  | level 0  | level 1  | level 2  | level 3  |  offset in a page  |
//!  +----------+----------+----------+----------+--------------------+
//!               1 GiB      2 MiB      4 KiB      <- what an entry maps
//! ```
//!
//! EL2 starts at level 0, stage 2 at level 1 with a single table. `tree` walks and changes tables
//! of either kind; it knows the order in which a change has to reach the hardware, and that order
//! is the same in both: an entry becomes invalid, the write is published, translations are
//! invalidated, and only then a frame goes back or another valid entry takes the place.
//!
//! Nothing here touches memory: `Frames` reads and writes descriptors, `Invalidate` issues the instructions
//! or the commands of an SMMU.
//!
//! Arm Architecture Reference Manual (DDI 0487), chapter D8.

mod el2;
mod register;
mod stage2;
#[cfg(test)]
mod tests;
mod tree;
mod vmid;

pub use el2::{El2, Protection};
pub use register::{MAIR_EL2, PaRange, VmidBits, tcr_el2, vtcr_el2, vttbr_el2};
pub use stage2::{Access, Format, Invalidate, Rights, Stage2};
pub use vmid::{Vmid, Vmids};

use crate::address::Pa;

/// Descriptors in a table.
pub const ENTRIES: usize = 512;

/// Where tables live.
pub trait Frames {
    /// Returns a frame of zeros for a table.
    fn allocate(&mut self) -> Option<Pa>;

    /// Takes a table back. No walker can reach it any more, and it holds zeros, unless the whole tree is
    /// destroyed.
    fn free(&mut self, table: Pa);

    /// Returns descriptor `index` of `table`.
    fn read(&self, table: Pa, index: usize) -> u64;

    /// Sets descriptor `index` of `table`, by one 64-bit store.
    fn write(&mut self, table: Pa, index: usize, entry: u64);

    /// Makes `count` descriptors from `first` on visible to the walkers before anything that
    /// follows: a barrier, and cleaning to the point of coherency for a walker that needs it.
    fn publish(&self, table: Pa, first: usize, count: usize);
}

/// What kind of memory a mapping leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Memory {
    /// Normal memory, write-back cacheable, inner shareable.
    Normal,
    /// Normal memory, not cacheable. Tables of stage 1 do not have it, and say Device instead.
    Uncached,
    /// Device-nGnRE.
    Device,
    /// Device-nGnRnE, for EL2 itself: a store is complete when its target says so, as one to config space has
    /// to be (PCI Express Base Specification, 7.2.2).
    Config,
}

/// Why a mapping could not be made or changed. Nothing was changed then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapError<A> {
    /// The input address, the output address or the length is no multiple of 4 KiB, or the length
    /// is zero.
    Misaligned,
    /// The range ends beyond the input or output addresses of the tables.
    OutOfRange,
    /// Something is mapped there already.
    AlreadyMapped(A),
    /// No frame is left for a table.
    OutOfTables,
}

impl<A> MapError<A> {
    /// Gives the address its type.
    fn map<B>(self, typed: impl FnOnce(A) -> B) -> MapError<B> {
        match self {
            Self::Misaligned => MapError::Misaligned,
            Self::OutOfRange => MapError::OutOfRange,
            Self::AlreadyMapped(address) => MapError::AlreadyMapped(typed(address)),
            Self::OutOfTables => MapError::OutOfTables,
        }
    }
}
