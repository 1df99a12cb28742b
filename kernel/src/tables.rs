//! Tables that are set aside for BARs, which a guest enables when it likes: then nothing is short.
//!
//! How many tables of stage 2 a BAR takes depends on the BAR alone. It is aligned to its size wherever a
//! guest puts it, no table maps anything but BARs (`layout`), and unmapping it gives its tables back. So a
//! function brings along as many as its BARs need, when it comes to a domain, and takes them away again.

use arch::address::{BLOCK_1G, BLOCK_2M, Pa};
use arch::table::{Access, Frames};
use vpci::Pages;

/// There are not enough frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfTables;

/// Tables that nobody uses, of zeros but for the first entry, which leads to the next one.
#[derive(Debug, Default)]
pub struct Reserve {
    first: Option<Pa>,
    count: usize,
}

impl Reserve {
    /// Makes an empty reserve.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            first: None,
            count: 0,
        }
    }

    /// Adds tables.
    ///
    /// # Errors
    ///
    /// If there are not so many frames. None is added then.
    pub fn add(&mut self, frames: &mut impl Frames, tables: usize) -> Result<(), OutOfTables> {
        for added in 0..tables {
            let Some(table) = frames.allocate() else {
                self.remove(frames, added);
                return Err(OutOfTables);
            };
            self.push(frames, table);
        }
        Ok(())
    }

    /// Gives tables back, as far as there are so many.
    pub fn remove(&mut self, frames: &mut impl Frames, tables: usize) {
        for _ in 0..tables {
            let Some(table) = self.pop(frames) else {
                return;
            };
            frames.free(table);
        }
    }

    /// Gives all tables back.
    pub fn clear(&mut self, frames: &mut impl Frames) {
        self.remove(frames, self.count);
    }

    /// Lends its tables, and takes back those that are freed meanwhile.
    pub fn lend<'a, F: Frames>(&'a mut self, frames: &'a mut F) -> Lent<'a, F> {
        Lent {
            reserve: self,
            frames,
        }
    }

    fn push(&mut self, frames: &mut impl Frames, table: Pa) {
        frames.write(table, 0, self.first.map_or(0, Pa::get));
        self.first = Some(table);
        self.count += 1;
    }

    fn pop(&mut self, frames: &mut impl Frames) -> Option<Pa> {
        let table = self.first?;
        let next = frames.read(table, 0);
        self.first = (next != 0).then_some(Pa::new(next));
        self.count -= 1;
        frames.write(table, 0, 0);
        Some(table)
    }
}

/// Tables of a [`Reserve`], and no others.
pub struct Lent<'a, F> {
    reserve: &'a mut Reserve,
    frames: &'a mut F,
}

impl<F: Frames> Frames for Lent<'_, F> {
    fn allocate(&mut self) -> Option<Pa> {
        self.reserve.pop(self.frames)
    }

    fn free(&mut self, table: Pa) {
        self.reserve.push(self.frames, table);
    }

    fn read(&self, table: Pa, index: usize) -> u64 {
        self.frames.read(table, index)
    }

    fn write(&mut self, table: Pa, index: usize, entry: u64) {
        self.frames.write(table, index, entry);
    }

    fn publish(&self, table: Pa, first: usize, count: usize) {
        self.frames.publish(table, first, count);
    }
}

/// Returns how many tables it takes to map a BAR, of which `pages` are the parts that are mapped, in
/// ascending order.
pub fn needed(pages: impl Iterator<Item = Pages> + Clone) -> u64 {
    let of_level = |block: u64| {
        let mut last = None;
        let tables = pages.clone().map(|pages| {
            let end = pages.offset + pages.size;
            let (from, to) = (pages.offset / block, (end - 1) / block);
            // The part before may end in the same table.
            let shared = u64::from(last.replace(to) == Some(from));
            // What is a block needs no table.
            let is_aligned = pages.host % block == pages.offset % block;
            let blocks = (end / block).saturating_sub(pages.offset.div_ceil(block));
            to - from + 1 - shared - if is_aligned { blocks } else { 0 }
        });
        tables.sum::<u64>()
    };
    of_level(BLOCK_1G) + of_level(BLOCK_2M)
}

/// Returns how pages of a BAR are mapped: what is said to be prefetchable a guest may take for Normal
/// memory, if it wants. See `kernel/docs/isolation.md`.
#[inline]
#[must_use]
pub const fn access(pages: Pages) -> Access {
    if pages.prefetchable {
        Access::PREFETCHABLE
    } else {
        Access::REGISTERS
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arch::address::{Ipa, PAGE_SIZE};
    use arch::table::{ENTRIES, Format, Invalidate, Memory, Stage2};
    use proptest::prelude::*;
    use std::collections::HashMap;

    /// Tables in a map, of which there can be so many.
    struct Tables {
        of: HashMap<u64, Vec<u64>>,
        next: u64,
        limit: usize,
    }

    impl Tables {
        fn new() -> Self {
            Self {
                of: HashMap::new(),
                next: 0x8000_0000,
                limit: usize::MAX,
            }
        }
    }

    impl Frames for Tables {
        fn allocate(&mut self) -> Option<Pa> {
            if self.of.len() >= self.limit {
                return None;
            }
            self.next += PAGE_SIZE;
            self.of.insert(self.next, vec![0; ENTRIES]);
            Some(Pa::new(self.next))
        }

        fn free(&mut self, table: Pa) {
            self.of.remove(&table.get()).unwrap();
        }

        fn read(&self, table: Pa, index: usize) -> u64 {
            self.of[&table.get()][index]
        }

        fn write(&mut self, table: Pa, index: usize, entry: u64) {
            self.of.get_mut(&table.get()).unwrap()[index] = entry;
        }

        fn publish(&self, _: Pa, _: usize, _: usize) {}
    }

    struct Nothing;

    impl Invalidate for Nothing {
        fn ipa(&self, _: Ipa, _: u64) {}
        fn all(&self) {}
    }

    const KIB: u64 = 1 << 10;
    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;

    /// A BAR, and the pages of it that are mapped.
    #[derive(Clone, Debug)]
    struct Bar {
        size: u64,
        parts: Vec<Pages>,
    }

    impl Bar {
        /// Makes a BAR with a hole.
        fn new(size: u64, host: u64, hole: (u64, u64)) -> Self {
            let parts = [(0, hole.0), (hole.0 + hole.1, size)].map(|(offset, end)| Pages {
                offset,
                host: host + offset,
                size: end.saturating_sub(offset),
                prefetchable: false,
            });
            let parts = parts.into_iter().filter(|pages| pages.size != 0);
            Self {
                size,
                parts: parts.collect(),
            }
        }

        fn tables(&self) -> usize {
            usize::try_from(needed(self.parts.iter().copied())).unwrap()
        }

        /// Maps it, or unmaps it.
        fn set(&self, stage2: &mut Stage2, frames: &mut impl Frames, at: u64, mapped: bool) {
            for pages in &self.parts {
                let (ipa, pa) = (Ipa::new(at + pages.offset), Pa::new(pages.host));
                let done = if mapped {
                    stage2.map(frames, ipa, pa, pages.size, Access::REGISTERS)
                } else {
                    stage2.unmap(frames, &Nothing, ipa, pages.size)
                };
                assert_eq!(done, Ok(()), "{self:x?} at {at:#x}, {mapped}");
            }
        }
    }

    #[test]
    #[rustfmt::skip]
    fn a_bar_needs_as_many_tables_as_it_takes_to_map_it() {
        let cases = [
            // size,    host,      hole,                 tables
            (4 * KIB,   0x1000,    (0, 0),               2),
            (16 * KIB,  0x4000,    (4 * KIB, 4 * KIB),   2),
            (MIB,       0x10_0000, (0, 64 * KIB),        2),
            (2 * MIB,   2 * MIB,   (0, 0),               1),
            (2 * MIB,   2 * MIB,   (0, 4 * KIB),         2),
            (2 * MIB,   MIB,       (0, 0),               2),  // no block at such an address
            (8 * MIB,   8 * MIB,   (MIB, 2 * MIB),       3),
            (8 * MIB,   8 * MIB,   (2 * MIB, 2 * MIB),   1),
            (8 * MIB,   4 * KIB,   (0, 0),               5),
            (GIB,       GIB,       (0, 0),               0),
            (GIB,       GIB,       (0, 4 * KIB),         2),
            (GIB,       2 * MIB,   (0, 0),               1),
            (4 * GIB,   4 * GIB,   (GIB, GIB),           0),
            (4 * GIB,   4 * GIB,   (GIB - MIB, 2 * MIB), 4),
        ];
        for (size, host, hole, tables) in cases {
            let bar = Bar::new(size, host, hole);
            assert_eq!(bar.tables(), tables, "{bar:x?}");
            for at in [0, 1, 5, 511] {
                let mut frames = Tables::new();
                let mut stage2 = Stage2::new(&mut frames, Format::Stage2).unwrap();
                let at = 0x50_0000_0000 + at * size;
                if at + size > 1 << 39 {
                    continue;
                }
                bar.set(&mut stage2, &mut frames, at, true);
                assert_eq!(frames.of.len(), 1 + tables, "{bar:x?} at {at:#x}");
                bar.set(&mut stage2, &mut frames, at, false);
                assert_eq!(frames.of.len(), 1, "{bar:x?} at {at:#x}");
            }
        }
    }

    #[test]
    fn only_prefetchable_memory_may_be_normal_memory() {
        let pages = |prefetchable| Pages {
            offset: 0,
            host: MIB,
            size: MIB,
            prefetchable,
        };
        let [plain, prefetchable] = [false, true].map(|set| access(pages(set)).memory);
        assert_eq!((plain, prefetchable), (Memory::Device, Memory::Uncached));
    }

    #[test]
    fn what_is_not_there_is_not_added() {
        let mut frames = Tables::new();
        let mut reserve = Reserve::new();
        frames.limit = 3;
        reserve.add(&mut frames, 2).unwrap();
        assert_eq!(reserve.add(&mut frames, 2), Err(OutOfTables));
        assert_eq!((reserve.count, frames.of.len()), (2, 2));
        reserve.remove(&mut frames, 1);
        assert_eq!((reserve.count, frames.of.len()), (1, 1));
        reserve.clear(&mut frames);
        assert_eq!((reserve.first, frames.of.len()), (None, 0));
    }

    fn bars() -> impl Strategy<Value = Vec<Bar>> {
        let bar = (0..11_u32, 0..11_u32, any::<(u64, u64)>());
        let bar = bar.prop_map(|(size, aligned, (from, len))| {
            let size = PAGE_SIZE << size;
            let page = |number: u64| number % (size / PAGE_SIZE) * PAGE_SIZE;
            let host = 0x80_0000_0000 + (PAGE_SIZE << aligned);
            Bar::new(size, host, (page(from), page(len).min(size - page(from))))
        });
        prop::collection::vec(bar, 1..7)
    }

    proptest! {
        /// Functions come, are moved and enabled in any order, and go: with no frame left but those that
        /// they have brought along.
        #[test]
        fn no_bar_is_ever_short_of_tables(
            functions in prop::collection::vec(bars(), 1..4),
            steps in prop::collection::vec((0..36_usize, any::<u64>()), 0..60),
        ) {
            let mut frames = Tables::new();
            let mut stage2 = Stage2::new(&mut frames, Format::Stage2).unwrap();
            let mut reserve = Reserve::new();
            let tables = |bars: &[Bar]| bars.iter().map(Bar::tables).sum();
            for bars in &functions {
                reserve.add(&mut frames, tables(bars)).unwrap();
            }
            let all: usize = functions.iter().map(|bars| tables(bars)).sum();
            prop_assert_eq!(frames.of.len(), 1 + all);
            frames.limit = 0;
            let bars: Vec<_> = functions.iter().flatten().collect();
            let mut at = vec![None; bars.len()];
            for (number, place) in steps {
                let number = number % bars.len();
                let bar = bars[number];
                let mut lent = reserve.lend(&mut frames);
                if let Some(old) = at[number].take() {
                    bar.set(&mut stage2, &mut lent, old, false);
                }
                let new = 0x50_0000_0000 + place % (0x20_0000_0000 / bar.size) * bar.size;
                let is_free = at.iter().zip(&bars).all(|(other, bar_there)| {
                    other.is_none_or(|other| new + bar.size <= other || other + bar_there.size <= new)
                });
                if is_free {
                    bar.set(&mut stage2, &mut lent, new, true);
                    at[number] = Some(new);
                }
            }
            let mut places = at.into_iter();
            for bars in &functions {
                for (bar, place) in bars.iter().zip(&mut places) {
                    if let Some(place) = place {
                        bar.set(&mut stage2, &mut reserve.lend(&mut frames), place, false);
                    }
                }
                reserve.remove(&mut frames, tables(bars));
            }
            prop_assert_eq!((reserve.first, frames.of.len()), (None, 1));
        }
    }
}
