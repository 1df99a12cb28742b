//! Stage 2: from a domain's IPA to PA, for its vCPUs or for its devices.
//!
//! 39 bits of IPA from a single level 1 table, a shape that pCPUs and SMMUs both walk.

use bitflags::bitflags;

use super::el2::{ACCESS_FLAG, AP_READ_ONLY, ATTRIBUTE_DEVICE, ATTRIBUTE_NORMAL, INNER_SHAREABLE};
use super::tree::Tree;
use super::{Frames, MapError, Memory};
use crate::address::{Ipa, Pa};

bitflags! {
    /// What a domain, or its devices, may do with memory.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Rights: u8 {
        /// Reads.
        const READ = 1;
        /// Writes.
        const WRITE = 2;
        /// Instruction fetches.
        const EXECUTE = 4;
    }
}

/// How memory is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// What may be done with it.
    pub rights: Rights,
    /// What it is.
    pub memory: Memory,
}

impl Access {
    /// A domain's RAM, for its vCPUs.
    pub const RAM: Self = Self {
        rights: Rights::all(),
        memory: Memory::Normal,
    };
    /// A domain's RAM, for its devices; another domain's, for a device model.
    pub const DATA: Self = Self {
        rights: Rights::READ.union(Rights::WRITE),
        memory: Memory::Normal,
    };
    /// Memory that a domain only looks at.
    pub const READ_ONLY: Self = Self {
        rights: Rights::READ,
        memory: Memory::Normal,
    };
    /// A device's registers.
    pub const REGISTERS: Self = Self {
        rights: Rights::READ.union(Rights::WRITE),
        memory: Memory::Device,
    };
    /// A device's memory of which reads have no side effects and writes may be merged. Stage 1 has a say: what
    /// it calls Device is that, and the rest is not cached all the same (D8.6).
    pub const PREFETCHABLE: Self = Self {
        rights: Rights::READ.union(Rights::WRITE),
        memory: Memory::Uncached,
    };
    /// The page of an ITS that devices write their MSIs to.
    pub const DOORBELL: Self = Self {
        rights: Rights::WRITE,
        memory: Memory::Device,
    };
}

/// Which descriptors a tree holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Stage 2 (descriptors of the stage 2 translation).
    Stage2,
    /// Stage 1 with two privilege levels and an ASID, for an SMMU that has no stage 2. Devices are
    /// unprivileged; rights to write only cannot be said, and become rights to read and write.
    Stage1,
}

/// Stage 2 MemAttr, bits 5:2: Normal, outer and inner write-back (`HCR_EL2.FWB` is 0).
const MEMATTR_NORMAL: u64 = 0b1111 << 2;
/// Stage 2 MemAttr: Normal, outer and inner non-cacheable.
const MEMATTR_UNCACHED: u64 = 0b0101 << 2;
/// Stage 2 MemAttr: Device-nGnRE.
const MEMATTR_DEVICE: u64 = 0b0001 << 2;
const MEMATTR: u64 = 0b1111 << 2;
/// S2AP\[0\], bit 6: readable.
const S2AP_READ: u64 = 1 << 6;
/// S2AP\[1\], bit 7: writable.
const S2AP_WRITE: u64 = 1 << 7;
/// XN\[1\], bit 54: not executable at EL1 nor at EL0.
const S2_XN: u64 = 1 << 54;

/// Stage 1 AP\[1\], bit 6: open to unprivileged accesses.
const AP_UNPRIVILEGED: u64 = 1 << 6;
/// Stage 1 nG, bit 11: tagged with the ASID.
const NOT_GLOBAL: u64 = 1 << 11;
/// Stage 1 UXN and PXN, bits 54 and 53.
const S1_XN: u64 = 3 << 53;

impl Format {
    fn encode_rights(self, rights: Rights) -> u64 {
        let when = |right, bits| if rights.contains(right) { bits } else { 0 };
        let unless = |right, bits| if rights.contains(right) { 0 } else { bits };
        match self {
            Self::Stage2 => {
                when(Rights::READ, S2AP_READ)
                    | when(Rights::WRITE, S2AP_WRITE)
                    | unless(Rights::EXECUTE, S2_XN)
            }
            Self::Stage1 => {
                let open = rights.intersects(Rights::READ | Rights::WRITE);
                unless(Rights::WRITE, AP_READ_ONLY)
                    | if open { AP_UNPRIVILEGED } else { 0 }
                    | unless(Rights::EXECUTE, S1_XN)
            }
        }
    }

    fn encode(self, access: Access) -> u64 {
        let memory = match (self, access.memory) {
            (Self::Stage2, Memory::Normal) => MEMATTR_NORMAL,
            (Self::Stage2, Memory::Uncached) => MEMATTR_UNCACHED,
            (Self::Stage2, Memory::Device | Memory::Config) => MEMATTR_DEVICE,
            (Self::Stage1, Memory::Normal) => ATTRIBUTE_NORMAL | NOT_GLOBAL,
            (Self::Stage1, Memory::Uncached | Memory::Device | Memory::Config) => {
                ATTRIBUTE_DEVICE | NOT_GLOBAL
            }
        };
        memory | self.encode_rights(access.rights) | INNER_SHAREABLE | ACCESS_FLAG
    }

    fn decode(self, entry: u64) -> Access {
        let memory = match self {
            Self::Stage2 if entry & MEMATTR == MEMATTR_DEVICE => Memory::Device,
            Self::Stage2 if entry & MEMATTR == MEMATTR_UNCACHED => Memory::Uncached,
            Self::Stage1 if entry & ATTRIBUTE_DEVICE != 0 => Memory::Device,
            Self::Stage1 | Self::Stage2 => Memory::Normal,
        };
        let (read, write, never) = match self {
            Self::Stage2 => (entry & S2AP_READ != 0, entry & S2AP_WRITE != 0, S2_XN),
            Self::Stage1 => {
                let open = entry & AP_UNPRIVILEGED != 0;
                (open, open && entry & AP_READ_ONLY == 0, S1_XN)
            }
        };
        let mut rights = Rights::empty();
        rights.set(Rights::READ, read);
        rights.set(Rights::WRITE, write);
        rights.set(Rights::EXECUTE, entry & never == 0);
        Access { rights, memory }
    }
}

/// Drops what is cached of a domain's translation.
pub trait Invalidate {
    /// Invalidates `len` bytes from `ipa` on, everywhere, and waits until that is done.
    ///
    /// For vCPUs: with the domain's VMID loaded, TLBI IPAS2E1IS, DSB ISH, TLBI VMALLE1IS, DSB ISH,
    /// ISB; or all of stage 1 and 2 where the range is long. For an SMMU: its commands.
    fn ipa(&self, ipa: Ipa, len: u64);

    /// Invalidates everything of the domain, and waits until that is done.
    fn all(&self);
}

/// A domain's translation tables.
pub struct Stage2 {
    tree: Tree,
    format: Format,
}

impl Stage2 {
    /// Bits of an IPA: `VTCR_EL2.T0SZ` is 64 less this.
    pub const IPA_BITS: u8 = 39;

    /// Makes tables that map nothing, or `None` if there is no frame.
    pub fn new(frames: &mut impl Frames, format: Format) -> Option<Self> {
        Some(Self {
            tree: Tree::new(frames, 1)?,
            format,
        })
    }

    /// Returns the first table, for `VTTBR_EL2`, a stream table entry or a context descriptor.
    pub fn root(&self) -> Pa {
        self.tree.root()
    }

    /// Maps `len` bytes at `ipa` to `pa`. On an error nothing is changed.
    pub fn map(
        &mut self,
        frames: &mut impl Frames,
        ipa: Ipa,
        pa: Pa,
        len: u64,
        access: Access,
    ) -> Result<(), MapError<Ipa>> {
        self.tree
            .map(frames, ipa.get(), pa, len, self.format.encode(access))
            .map_err(|error| error.map(Ipa::new))
    }

    /// Unmaps what is mapped of `len` bytes at `ipa`. Once it returns, nobody can reach the memory
    /// through these tables.
    ///
    /// A block that is only partly in the range is broken and made again as smaller pieces: for a
    /// moment an access to any of it faults. A vCPU can try again; a device cannot.
    pub fn unmap(
        &mut self,
        frames: &mut impl Frames,
        invalidate: &impl Invalidate,
        ipa: Ipa,
        len: u64,
    ) -> Result<(), MapError<Ipa>> {
        let invalidate = |ipa, len| invalidate.ipa(Ipa::new(ipa), len);
        self.tree
            .unmap(frames, &invalidate, ipa.get(), len)
            .map_err(|error| error.map(Ipa::new))
    }

    /// Returns where `ipa` leads, and how.
    pub fn translate(&self, frames: &impl Frames, ipa: Ipa) -> Option<(Pa, Access)> {
        let (pa, entry) = self.tree.translate(frames, ipa.get())?;
        Some((pa, self.format.decode(entry)))
    }

    /// Frees all tables. No vCPU and no stream table entry uses them any more.
    pub fn destroy(self, frames: &mut impl Frames, invalidate: &impl Invalidate) {
        invalidate.all();
        self.tree.destroy(frames);
    }
}
