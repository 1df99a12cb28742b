//! EL2's own translation, stage 1 without VHE: 48 bits of VA, four levels.

use super::tree::Tree;
use super::{Frames, MapError, Memory};
use crate::address::{Pa, Va};

/// AttrIndx, bits 4:2: the fields of `MAIR_EL2`.
pub(super) const ATTRIBUTE_NORMAL: u64 = 0 << 2;
/// See `ATTRIBUTE_NORMAL`.
pub(super) const ATTRIBUTE_DEVICE: u64 = 1 << 2;
/// See `ATTRIBUTE_NORMAL`.
const ATTRIBUTE_CONFIG: u64 = 2 << 2;
/// AP\[1\], bit 6: RES1 in a regime with one privilege level.
const AP_RES1: u64 = 1 << 6;
/// AP\[2\], bit 7: read-only.
pub(super) const AP_READ_ONLY: u64 = 1 << 7;
/// SH, bits 9:8: inner shareable.
pub(super) const INNER_SHAREABLE: u64 = 3 << 8;
/// Access flag, bit 10.
pub(super) const ACCESS_FLAG: u64 = 1 << 10;
/// XN, bit 54.
const XN: u64 = 1 << 54;

/// What EL2 may do with its own memory: never write and execute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protection {
    /// Text.
    ReadExecute,
    /// Constants.
    ReadOnly,
    /// Everything else.
    ReadWrite,
}

impl Protection {
    fn encode(self) -> u64 {
        match self {
            Self::ReadExecute => AP_READ_ONLY,
            Self::ReadOnly => AP_READ_ONLY | XN,
            Self::ReadWrite => XN,
        }
    }
}

/// EL2's translation tables.
pub struct El2 {
    tree: Tree,
}

impl El2 {
    /// Bits of a VA: `TCR_EL2.T0SZ` is 64 less this.
    pub const VA_BITS: u8 = 48;

    /// Makes tables that map nothing, or `None` if there is no frame.
    pub fn new(frames: &mut impl Frames) -> Option<Self> {
        Some(Self {
            tree: Tree::new(frames, 0)?,
        })
    }

    /// Returns the first table, for `TTBR0_EL2`.
    pub fn root(&self) -> Pa {
        self.tree.root()
    }

    /// Maps `len` bytes at `va` to `pa`.
    pub fn map(
        &mut self,
        frames: &mut impl Frames,
        va: Va,
        pa: Pa,
        len: u64,
        protection: Protection,
        memory: Memory,
    ) -> Result<(), MapError<Va>> {
        let memory = match memory {
            Memory::Normal => ATTRIBUTE_NORMAL | INNER_SHAREABLE,
            Memory::Uncached | Memory::Device => ATTRIBUTE_DEVICE | INNER_SHAREABLE,
            Memory::Config => ATTRIBUTE_CONFIG | INNER_SHAREABLE,
        };
        let attributes = protection.encode() | memory | AP_RES1 | ACCESS_FLAG;
        self.tree
            .map(frames, va.get(), pa, len, attributes)
            .map_err(|error| error.map(Va::new))
    }
}
