//! Memory that a device reads and writes as well: tables and queues of the SMMU and the ITS.
//!
//! A driver asks a [`Pool`] for it, which the kernel provides, and writes it through [`Memory`]. A
//! device that does not snoop the caches sees a write only after [`Memory::publish`], and what it
//! wrote itself is seen after [`Memory::refresh`]; each driver finds out from its device's registers
//! which [`Coherency`] it has.

use crate::address::Pa;
use crate::asm;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};

/// Whether a device sees the processors' caches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coherency {
    /// The device snoops: a barrier is enough.
    Coherent,
    /// Lines have to be cleaned to the point of coherency, and invalidated before they are read.
    Software,
}

/// Where drivers get memory from.
pub trait Pool {
    /// Takes `bytes` of zeroed memory, contiguous and aligned to `align`, a power of two; `None`
    /// when there is none left.
    ///
    /// Nothing else uses the memory until it is given back.
    fn take(&mut self, bytes: usize, align: usize) -> Option<Memory>;

    /// Takes memory back that came from `take`. No device uses it any more.
    fn give_back(&mut self, memory: Memory);
}

/// Returns a number of bytes or entries as an index.
#[expect(
    clippy::cast_possible_truncation,
    reason = "pointers have 64 bits wherever this runs"
)]
pub(crate) const fn index(number: u64) -> usize {
    const { assert!(size_of::<usize>() == size_of::<u64>()) };
    number as usize
}

/// Memory that is shared with a device.
///
/// As the device may access it at any time, it is written and read in single accesses, by shared
/// reference.
#[derive(Debug)]
pub struct Memory {
    pa: Pa,
    at: NonNull<u8>,
    len: usize,
}

// SAFETY: every access is atomic, and the memory is mapped on every pCPU (`new`).
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    /// Takes over the `len` bytes at `at`, which the devices reach at `pa`.
    ///
    /// # Safety
    ///
    /// `at..at + len` is mapped, cacheable memory for as long as the value lives, is aligned to
    /// eight bytes, holds nothing that Rust knows of, and is accessed through this value and by
    /// devices only.
    pub const unsafe fn new(pa: Pa, at: NonNull<u8>, len: usize) -> Self {
        Self { pa, at, len }
    }

    /// Returns the address at which devices find it.
    pub const fn pa(&self) -> Pa {
        self.pa
    }

    /// Returns the size in bytes.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Returns whether there are no bytes at all.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn word(&self, offset: usize) -> &AtomicU64 {
        assert!(
            offset.is_multiple_of(8) && offset < self.len && self.len - offset >= 8,
            "no word at {offset:#x}"
        );
        // SAFETY: inside the memory and aligned (asserted, `new`); all accesses are atomic.
        unsafe { self.at.byte_add(offset).cast().as_ref() }
    }

    fn byte(&self, offset: usize) -> &AtomicU8 {
        assert!(offset < self.len, "no byte at {offset:#x}");
        // SAFETY: inside the memory (asserted, `new`); all accesses are atomic.
        unsafe { self.at.byte_add(offset).cast().as_ref() }
    }

    /// Reads the 64 bits at `offset`.
    pub fn read64(&self, offset: usize) -> u64 {
        u64::from_le(self.word(offset).load(Ordering::Relaxed))
    }

    /// Writes the 64 bits at `offset`.
    pub fn write64(&self, offset: usize, value: u64) {
        self.word(offset).store(value.to_le(), Ordering::Relaxed);
    }

    /// Reads the byte at `offset`.
    pub fn read8(&self, offset: usize) -> u8 {
        self.byte(offset).load(Ordering::Relaxed)
    }

    /// Writes the byte at `offset`.
    pub fn write8(&self, offset: usize, value: u8) {
        self.byte(offset).store(value, Ordering::Relaxed);
    }

    /// Makes what was written to `offset..offset + len` visible to a device of this coherency,
    /// before any later access of ours.
    pub fn publish(&self, offset: usize, len: usize, coherency: Coherency) {
        self.check(offset, len);
        match coherency {
            Coherency::Coherent => asm::dsb_st(),
            Coherency::Software => {
                asm::clean_to_poc(self.at.as_ptr().wrapping_add(offset), len);
                asm::dsb_sy();
            }
        }
    }

    /// Makes what a device of this coherency wrote to `offset..offset + len` visible to us, after
    /// any earlier access of ours.
    ///
    /// Without coherency the whole cache lines are dropped: nothing of ours may be in them that is
    /// not published.
    pub fn refresh(&self, offset: usize, len: usize, coherency: Coherency) {
        self.check(offset, len);
        asm::dsb_sy();
        if coherency == Coherency::Software {
            asm::clean_invalidate_to_poc(self.at.as_ptr().wrapping_add(offset), len);
            asm::dsb_sy();
        }
    }

    /// Makes all of it visible to a device.
    pub fn publish_all(&self, coherency: Coherency) {
        self.publish(0, self.len, coherency);
    }

    fn check(&self, offset: usize, len: usize) {
        assert!(offset <= self.len && len <= self.len - offset);
    }
}

#[cfg(test)]
pub(crate) mod testing {
    //! A pool over the host's memory, that a device model reads by physical address.

    use super::*;
    use std::collections::BTreeMap;

    /// Memory from `PA 0x8000_0000` on, as much as is asked for up to `limit`.
    pub(crate) struct Arena {
        words: &'static [AtomicU64],
        next: usize,
        free: BTreeMap<u64, usize>,
    }

    pub(crate) const ARENA: u64 = 0x8000_0000;

    impl Arena {
        pub(crate) fn new(limit: usize) -> Self {
            let words: Vec<AtomicU64> = (0..limit / 8).map(|_| AtomicU64::new(!0)).collect();
            Self {
                words: Vec::leak(words),
                next: 0,
                free: BTreeMap::new(),
            }
        }

        /// A view for a device model.
        pub(crate) fn view(&self) -> View {
            View { words: self.words }
        }

        pub(crate) fn taken(&self) -> usize {
            self.next - self.free.values().sum::<usize>()
        }
    }

    impl Pool for Arena {
        fn take(&mut self, bytes: usize, align: usize) -> Option<Memory> {
            assert!(align.is_power_of_two());
            let start = self.next.next_multiple_of(align);
            let end = start.checked_add(bytes.next_multiple_of(8))?;
            let words = self.words.get(start / 8..end / 8)?;
            words
                .iter()
                .for_each(|word| word.store(0, Ordering::Relaxed));
            // The gap is nobody's, and counts as given back.
            self.free
                .insert(ARENA + self.next as u64, start - self.next);
            self.next = end;
            let at = NonNull::from(words).cast();
            // SAFETY: the arena is leaked, and hands these bytes out once.
            Some(unsafe { Memory::new(Pa::new(ARENA + start as u64), at, bytes) })
        }

        fn give_back(&mut self, memory: Memory) {
            let old = self
                .free
                .insert(memory.pa().get(), memory.len().next_multiple_of(8));
            assert!(old.is_none_or(|len| len == 0), "given back twice");
        }
    }

    /// The arena by physical address.
    #[derive(Clone, Copy)]
    pub(crate) struct View {
        words: &'static [AtomicU64],
    }

    impl View {
        fn word(&self, pa: u64) -> Option<&AtomicU64> {
            assert!(pa.is_multiple_of(8));
            let offset = usize::try_from(pa.checked_sub(ARENA)?).unwrap();
            self.words.get(offset / 8)
        }

        /// Reads the 64 bits at `pa`; `None` is an external abort.
        pub(crate) fn read(&self, pa: u64) -> Option<u64> {
            Some(self.word(pa)?.load(Ordering::Relaxed))
        }

        pub(crate) fn write(&self, pa: u64, value: u64) -> Option<()> {
            self.word(pa)?.store(value, Ordering::Relaxed);
            Some(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::testing::{ARENA, Arena};
    use super::*;

    #[test]
    fn memory_comes_zeroed_and_aligned_and_ends() {
        let mut arena = Arena::new(0x4000);
        let first = arena.take(64, 64).unwrap();
        let second = arena.take(0x1000, 0x1000).unwrap();
        assert_eq!(first.pa(), Pa::new(ARENA));
        assert_eq!(second.pa(), Pa::new(ARENA + 0x1000));
        assert_eq!(second.read64(0xff8), 0);
        assert!(arena.take(0x4000, 8).is_none());
        arena.give_back(first);
        assert_eq!(arena.taken(), 0x1000);
    }

    #[test]
    fn words_and_bytes_share_the_memory() {
        let mut arena = Arena::new(0x1000);
        let memory = arena.take(0x100, 8).unwrap();
        memory.write64(8, 0x1122_3344_5566_7788);
        memory.write8(8, 0xaa);
        memory.publish_all(Coherency::Software);
        memory.refresh(8, 8, Coherency::Software);
        assert_eq!(memory.read64(8), 0x1122_3344_5566_77aa);
        assert_eq!(memory.read8(15), 0x11);
    }

    #[test]
    fn a_device_finds_the_memory_at_its_address() {
        let mut arena = Arena::new(0x1000);
        let device = arena.view();
        let memory = arena.take(0x100, 8).unwrap();
        memory.write64(8, 5);
        assert_eq!(device.read(ARENA + 8), Some(5));
        assert_eq!(device.write(ARENA + 0x10, 6), Some(()));
        assert_eq!(memory.read64(0x10), 6);
        assert_eq!(device.read(ARENA + 0x1000), None);
    }

    #[test]
    #[should_panic(expected = "no word at 0x100")]
    fn memory_has_no_word_behind_its_end() {
        let mut arena = Arena::new(0x1000);
        arena.take(0x100, 8).unwrap().read64(0x100);
    }
}
