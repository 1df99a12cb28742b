//! VMIDs: handed out, taken back, handed out again.

use alloc::vec::Vec;

use super::VmidBits;

/// The tag of a domain's entries in the TLBs. Zero is nobody's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Vmid(u16);

impl Vmid {
    /// The VMID that no domain has.
    pub const NONE: Self = Self(0);

    /// Returns the VMID as a number.
    pub const fn get(self) -> u16 {
        self.0
    }
}

/// Which VMIDs are in use.
///
/// A VMID that is handed out may have been another domain's: everything that the TLBs hold for it
/// is to be invalidated before a vCPU runs with it.
pub struct Vmids {
    bits: VmidBits,
    /// One bit for each VMID, as far as they have been needed.
    used: Vec<u64>,
}

impl Vmids {
    /// Makes an allocator of VMIDs that are `bits` wide.
    pub const fn new(bits: VmidBits) -> Self {
        Self {
            bits,
            used: Vec::new(),
        }
    }

    /// Returns a VMID that no domain has, or `None` if there is none, or no memory to note it.
    pub fn allocate(&mut self) -> Option<Vmid> {
        let position = match self.used.iter().position(|word| *word != u64::MAX) {
            Some(position) => position,
            None => self.grow()?,
        };
        let word = self.used.get_mut(position)?;
        let bit = word.trailing_ones();
        *word |= 1 << bit;
        u16::try_from(position as u64 * 64 + u64::from(bit))
            .ok()
            .map(Vmid)
    }

    /// Takes a VMID back.
    pub fn free(&mut self, vmid: Vmid) {
        let word = self.used.get_mut(usize::from(vmid.0 / 64));
        let bit = 1 << (vmid.0 % 64);
        assert!(
            vmid != Vmid::NONE && word.as_ref().is_some_and(|word| **word & bit != 0),
            "{vmid:?} was not handed out"
        );
        if let Some(word) = word {
            *word &= !bit;
        }
    }

    /// Makes room for 64 more, and returns the position of the word.
    fn grow(&mut self) -> Option<usize> {
        let words = match self.bits {
            VmidBits::Eight => (1 << 8) / 64,
            VmidBits::Sixteen => (1 << 16) / 64,
        };
        let position = self.used.len();
        if position == words {
            return None;
        }
        self.used.try_reserve(1).ok()?;
        self.used.push(if position == 0 { 1 } else { 0 });
        Some(position)
    }
}
