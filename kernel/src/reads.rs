//! Pages of config space in stage 2, where loads read them without an exit.
//!
//! The window shows a block of ones again and again, which is split where something else is to be shown.
//! That takes tables. Where there are none left, a place traps, alone or with the others of its block: it
//! then reads the same, by EL2. What never happens is that it shows what was there before.

use arch::address::{BLOCK_2M, Ipa, PAGE_SIZE, Pa};
use arch::table::{Access, Frames, Invalidate, Stage2};
use core::ops::Range;

use crate::size;

/// Lets the whole window show `ones`, which is a block of 2 MiB, as far as there are tables.
pub fn map_ones(stage2: &mut Stage2, frames: &mut impl Frames, window: Range<u64>, ones: Pa) {
    for at in window.step_by(size(BLOCK_2M)) {
        let mapped = stage2.map(frames, Ipa::new(at), ones, BLOCK_2M, Access::READ_ONLY);
        if mapped.is_err() {
            // For want of a table; what is not mapped traps.
            return;
        }
    }
}

/// Maps a page of config space read-only, instead of what is mapped there; without one, the place traps.
pub fn put(
    stage2: &mut Stage2,
    frames: &mut impl Frames,
    tlb: &impl Invalidate,
    at: Ipa,
    page: Option<Pa>,
) {
    let now = stage2.translate(frames, at).map(|(pa, _)| pa);
    if now == page {
        return;
    }
    if now.is_some() && stage2.unmap(frames, tlb, at, PAGE_SIZE).is_err() {
        // There is no table to split the block of ones with: all of it traps.
        let block = Ipa::new(at.get() & !(BLOCK_2M - 1));
        let unmapped = stage2.unmap(frames, tlb, block, BLOCK_2M);
        assert!(unmapped.is_ok(), "a block is unmapped whole");
        return;
    }
    if let Some(page) = page {
        // On an error it traps.
        let _ = stage2.map(frames, at, page, PAGE_SIZE, Access::READ_ONLY);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arch::table::{ENTRIES, Format};
    use proptest::prelude::*;
    use std::cell::Cell;
    use std::collections::BTreeMap;

    /// Tables, of which there are only so many.
    struct Tables {
        tables: BTreeMap<u64, Vec<u64>>,
        limit: usize,
        next: u64,
        /// How often there was none.
        refused: u32,
    }

    impl Tables {
        fn new(limit: usize) -> Self {
            Self {
                tables: BTreeMap::new(),
                limit,
                next: 0x8000_0000,
                refused: 0,
            }
        }
    }

    impl Frames for Tables {
        fn allocate(&mut self) -> Option<Pa> {
            if self.tables.len() >= self.limit {
                self.refused += 1;
                return None;
            }
            self.next += PAGE_SIZE;
            self.tables.insert(self.next, vec![0; ENTRIES]);
            Some(Pa::new(self.next))
        }
        fn free(&mut self, table: Pa) {
            self.tables.remove(&table.get()).expect("a table");
        }
        fn read(&self, table: Pa, index: usize) -> u64 {
            self.tables[&table.get()][index]
        }
        fn write(&mut self, table: Pa, index: usize, entry: u64) {
            self.tables.get_mut(&table.get()).expect("a table")[index] = entry;
        }
        fn publish(&self, _: Pa, _: usize, _: usize) {}
    }

    /// How often something was invalidated.
    #[derive(Default)]
    struct Tlb(Cell<u32>);

    impl Invalidate for Tlb {
        fn ipa(&self, _: Ipa, _: u64) {
            self.0.set(self.0.get() + 1);
        }
        fn all(&self) {
            self.0.set(self.0.get() + 1);
        }
    }

    const START: u64 = 0x40_1000_0000;
    const BLOCKS: u64 = 3;
    const PAGES: u64 = BLOCKS * BLOCK_2M / PAGE_SIZE;
    const ONES: Pa = Pa::new(0x1_0020_0000);

    fn ipa(place: u64) -> Ipa {
        Ipa::new(START + place * PAGE_SIZE)
    }

    /// What a place shows: its part of the block of ones, a frame of its own, or nothing.
    fn ones(place: u64) -> Option<Pa> {
        Some(Pa::new(ONES.get() + place * PAGE_SIZE % BLOCK_2M))
    }

    fn own(number: u64) -> Option<Pa> {
        Some(Pa::new(0x2_0000_0000 + number * PAGE_SIZE))
    }

    fn window() -> Range<u64> {
        START..START + BLOCKS * BLOCK_2M
    }

    fn shows(stage2: &Stage2, tables: &Tables, place: u64) -> Option<Pa> {
        let (pa, access) = stage2.translate(tables, ipa(place))?;
        assert_eq!(access, Access::READ_ONLY);
        Some(pa)
    }

    #[test]
    fn a_window_shows_ones_as_far_as_there_are_tables() {
        for (limit, blocks) in [(1, 0), (2, BLOCKS), (9, BLOCKS)] {
            let mut tables = Tables::new(limit);
            let mut stage2 = Stage2::new(&mut tables, Format::Stage2).expect("a root");
            map_ones(&mut stage2, &mut tables, window(), ONES);
            for place in 0..PAGES {
                let expected = ones(place).filter(|_| place * PAGE_SIZE < blocks * BLOCK_2M);
                assert_eq!(shows(&stage2, &tables, place), expected, "{limit}");
            }
        }
    }

    #[test]
    fn without_a_table_to_split_it_a_block_traps_and_the_others_do_not() {
        // The root and one table for three blocks.
        let mut tables = Tables::new(2);
        let mut stage2 = Stage2::new(&mut tables, Format::Stage2).expect("a root");
        map_ones(&mut stage2, &mut tables, window(), ONES);
        let tlb = Tlb::default();
        put(&mut stage2, &mut tables, &tlb, ipa(513), own(1));
        assert_eq!(tlb.0.get(), 1);
        let expected = |place: u64| ones(place).filter(|_| place / 512 != 1);
        for place in 0..PAGES {
            assert_eq!(shows(&stage2, &tables, place), expected(place));
        }
        // As soon as there is one, places come back one by one.
        tables.limit = 3;
        for (place, page) in [(513, own(1)), (512, ones(512))] {
            put(&mut stage2, &mut tables, &tlb, ipa(place), page);
            assert_eq!(shows(&stage2, &tables, place), page);
        }
        assert_eq!(shows(&stage2, &tables, 514), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Whatever is shown where, and whenever tables run out and come back: a place shows what it is to
        /// show, or traps, and only for want of a table; nothing but its own block changes with it.
        #[test]
        fn a_place_shows_what_it_is_to_show_or_traps(
            steps in prop::collection::vec((0..PAGES, 0u64..4, 2usize..7), 1..60),
        ) {
            let mut tables = Tables::new(2);
            let mut stage2 = Stage2::new(&mut tables, Format::Stage2).expect("a root");
            map_ones(&mut stage2, &mut tables, window(), ONES);
            let tlb = Tlb::default();
            for (place, what, limit) in steps {
                // Few places, so that they meet.
                let place = place / 100 * 100;
                let places = || (0..PAGES).step_by(50);
                tables.limit = limit;
                let before: Vec<_> = places().map(|place| shows(&stage2, &tables, place)).collect();
                let page = match what {
                    0 => None,
                    1 => ones(place),
                    number => own(number),
                };
                let (refused, invalidated) = (tables.refused, tlb.0.get());
                put(&mut stage2, &mut tables, &tlb, ipa(place), page);
                let full = tables.refused > refused;
                for (other, before) in places().zip(before) {
                    let now = shows(&stage2, &tables, other);
                    if other == place {
                        prop_assert!(now == page || now.is_none() && full, "{now:?} for {page:?}");
                        let gone = before.is_some() && now != before;
                        prop_assert_eq!(gone, tlb.0.get() > invalidated);
                    } else {
                        let same_block = other / 512 == place / 512;
                        prop_assert!(now == before || now.is_none() && full && same_block);
                    }
                }
            }
        }
    }
}
