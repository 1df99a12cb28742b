//! Physical memory: which 4 KiB frames are free.
//!
//! One bit for each frame of RAM, in three levels: a bit above says that the word below it has a
//! free frame, so that the lowest free frame is found in a few steps however much memory there is.
//!
//! ```text
//!  level 2   one word for each GiB           .... 0 0 1 1
//!                                                     | |
//!  level 1   one word for each 16 MiB        ....1..0 1..0
//!                                                |    |
//!  level 0   one word for each 64 frames      0..1..1 1..1     a one: the frame is free
//! ```
//!
//! Regions of RAM follow each other in the bitmap without the gaps that lie between them in the
//! address space, except that a frame's bit in its word is always the same: frame number modulo 64.
//! Bits that stand for nothing are never free.

use crate::size;
use arch::address::{PAGE_SIZE, Pa};

/// Frames in a word of level 0, and words below a word of another level.
const WORD: usize = 64;
const LEVELS: usize = 3;

/// A run of frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Its first byte.
    pub start: Pa,
    /// Its length in bytes.
    pub len: u64,
}

impl Run {
    /// Returns the numbers of the first frame and of the one past the last that lie in the run.
    fn inner(self) -> (u64, u64) {
        let start = self.start.get().div_ceil(PAGE_SIZE);
        (
            start,
            (self.start.get().saturating_add(self.len) / PAGE_SIZE).max(start),
        )
    }

    /// Returns the same for the frames that the run touches.
    fn outer(self) -> (u64, u64) {
        let end = self
            .start
            .get()
            .saturating_add(self.len)
            .div_ceil(PAGE_SIZE);
        (self.start.get() / PAGE_SIZE, end)
    }
}

/// Why frames were not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// Regions of RAM overlap, or are not in ascending order.
    Unordered(Run),
    /// There is less metadata than the regions need.
    Metadata,
    /// Not a frame, or a run of frames, of one region of RAM.
    Foreign(Pa),
    /// The frame is free already.
    DoubleFree(Pa),
}

/// How much memory there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Frames in all.
    pub total: u64,
    /// Frames that are free.
    pub free: u64,
}

/// A region of RAM: frame number of its first frame, how many, and where its bits start. It is kept
/// in the metadata too.
type Region = [u64; 3];

/// The frame allocator.
pub struct Allocator<'a> {
    regions: &'a [Region],
    levels: [&'a mut [u64]; LEVELS],
    /// No frame below this bit is free.
    lowest: usize,
    statistics: Statistics,
}

/// How the metadata is laid out.
struct Layout {
    regions: usize,
    levels: [usize; LEVELS],
}

impl Layout {
    fn new(ram: &[Run]) -> Result<Self, Error> {
        let (mut bits, mut last) = (0, 0);
        for run in ram {
            let (start, end) = run.inner();
            if start < last {
                return Err(Error::Unordered(*run));
            }
            bits = first_bit(bits, start) + (end - start);
            last = end;
        }
        let level0 = size(bits).div_ceil(WORD);
        let level1 = level0.div_ceil(WORD);
        Ok(Self {
            regions: ram.len(),
            levels: [level0, level1, level1.div_ceil(WORD)],
        })
    }

    fn words(&self) -> usize {
        self.regions * size_of::<Region>() / size_of::<u64>() + self.levels.iter().sum::<usize>()
    }
}

/// Returns the first bit, from `bits` on, that can stand for frame `frame`.
fn first_bit(bits: u64, frame: u64) -> u64 {
    let modulo = WORD as u64 - 1;
    bits + (frame.wrapping_sub(bits) & modulo)
}

/// Returns the mask of `count` bits from `bit` on.
fn mask(bit: usize, count: usize) -> u64 {
    (u64::MAX >> (WORD - count)) << bit
}

impl<'a> Allocator<'a> {
    /// Returns how many words of metadata an allocator for `ram` needs.
    pub fn metadata_words(ram: &[Run]) -> Result<usize, Error> {
        Ok(Layout::new(ram)?.words())
    }

    /// Makes an allocator for `ram`, whose regions ascend. Everything is free, also the metadata
    /// itself if it lies there: reserve what is in use.
    pub fn new(ram: &[Run], metadata: &'a mut [u64]) -> Result<Self, Error> {
        let layout = Layout::new(ram)?;
        let metadata = metadata.get_mut(..layout.words()).ok_or(Error::Metadata)?;
        metadata.fill(0);
        let (regions, levels) = metadata.split_at_mut(layout.regions * size_of::<Region>() / 8);
        let (regions, _) = regions.as_chunks_mut();
        let (level0, levels) = levels.split_at_mut(layout.levels[0]);
        let (level1, level2) = levels.split_at_mut(layout.levels[1]);
        let mut bit = 0;
        for (region, run) in regions.iter_mut().zip(ram) {
            let (start, end) = run.inner();
            bit = first_bit(bit, start);
            *region = [start, end - start, bit];
            bit += end - start;
        }
        let mut allocator = Self {
            regions,
            levels: [level0, level1, level2],
            lowest: 0,
            statistics: Statistics::default(),
        };
        for [_, count, bit] in allocator.regions {
            allocator.set(size(*bit), size(*count));
            allocator.statistics.total += count;
        }
        Ok(allocator)
    }

    /// Returns how much memory there is.
    pub fn statistics(&self) -> Statistics {
        self.statistics
    }

    /// Takes the lowest free frame.
    pub fn allocate(&mut self) -> Option<Pa> {
        let bit = self.next_free(0, self.lowest)?;
        self.clear(bit, 1);
        self.lowest = bit + 1;
        let [start, _, first] = self
            .regions
            .iter()
            .rev()
            .find(|region| region[2] <= bit as u64)?;
        Some(Pa::new((start + (bit as u64 - first)) * PAGE_SIZE))
    }

    /// Takes the lowest run of `len` bytes that starts at a multiple of `align`, a power of two.
    pub fn allocate_run(&mut self, len: u64, align: u64) -> Option<Run> {
        let frames = size(len.div_ceil(PAGE_SIZE));
        let (start, bit, found) = self.find(frames, align)?;
        (found == frames).then(|| self.take(start, bit, frames))
    }

    /// Takes a run of `len` bytes, or the longest there is if none is so long. It starts at a
    /// multiple of `align`, a power of two, and is a multiple of it long.
    pub fn allocate_extent(&mut self, len: u64, align: u64) -> Option<Run> {
        let align = align.max(PAGE_SIZE);
        let frames = size(len.checked_next_multiple_of(align)? / PAGE_SIZE);
        let (start, bit, found) = self.find(frames, align)?;
        let frames = found - found % size(align / PAGE_SIZE);
        (frames != 0).then(|| self.take(start, bit, frames))
    }

    /// Gives a frame back.
    pub fn free(&mut self, frame: Pa) -> Result<(), Error> {
        self.free_run(Run {
            start: frame,
            len: PAGE_SIZE,
        })
    }

    /// Gives a run of frames back: one that was allocated, or part of it, or one that was reserved.
    /// On an error nothing is changed.
    pub fn free_run(&mut self, run: Run) -> Result<(), Error> {
        let (first, end) = run.inner();
        let region = self.regions.iter().find(|[start, count, _]| {
            *start <= first && first < end && end <= start + count && run.outer() == (first, end)
        });
        let [start, _, bit] = region.ok_or(Error::Foreign(run.start))?;
        let (bit, count) = (size(bit + (first - start)), size(end - first));
        if let Some(free) = self.next_free(0, bit).filter(|free| *free < bit + count) {
            let frame = first + (free - bit) as u64;
            return Err(Error::DoubleFree(Pa::new(frame * PAGE_SIZE)));
        }
        self.set(bit, count);
        Ok(())
    }

    /// Takes every frame that `run` touches, whatever of it is free and RAM, and returns how many
    /// frames that were.
    pub fn reserve(&mut self, run: Run) -> u64 {
        let before = self.statistics.free;
        let (first, end) = run.outer();
        for [start, count, bit] in self.regions {
            let (first, end) = (first.max(*start), end.min(start + count));
            if first < end {
                self.clear(size(bit + (first - start)), size(end - first));
            }
        }
        before - self.statistics.free
    }

    /// Returns the start and the first bit of the lowest run of `frames`, or of the longest there
    /// is, and how long it is.
    fn find(&self, frames: usize, align: u64) -> Option<(Pa, usize, usize)> {
        assert!(align.is_power_of_two(), "{align:#x} is no alignment");
        let align = (align / PAGE_SIZE).max(1);
        let mut best: Option<(Pa, usize, usize)> = None;
        for [start, count, first] in self.regions {
            let (first, end) = (size(*first), size(first + count));
            let mut bit = first.max(self.lowest);
            while let Some(free) = self.next_free(0, bit) {
                let frame = (start + (free - first) as u64).next_multiple_of(align);
                bit = first + size(frame - start);
                if free >= end || bit >= end {
                    break;
                }
                let length = self.length(bit, frames.min(end - bit));
                if length > best.map_or(0, |(_, _, length)| length) {
                    best = Some((Pa::new(frame * PAGE_SIZE), bit, length));
                }
                if length == frames {
                    return best;
                }
                bit += length + 1;
            }
        }
        best
    }

    fn take(&mut self, start: Pa, bit: usize, frames: usize) -> Run {
        self.clear(bit, frames);
        Run {
            start,
            len: frames as u64 * PAGE_SIZE,
        }
    }

    /// Returns the first bit from `from` on that is set at `level`.
    fn next_free(&self, level: usize, from: usize) -> Option<usize> {
        let words = &self.levels[level];
        let word = from / WORD;
        let bits = words.get(word)? & (u64::MAX << (from % WORD));
        let word = if bits != 0 {
            return Some(word * WORD + bits.trailing_zeros() as usize);
        } else if level + 1 < LEVELS {
            self.next_free(level + 1, word + 1)?
        } else {
            word + 1 + words[word + 1..].iter().position(|bits| *bits != 0)?
        };
        Some(word * WORD + words[word].trailing_zeros() as usize)
    }

    /// Returns how many frames are free from `bit` on, up to `limit`.
    fn length(&self, bit: usize, limit: usize) -> usize {
        let mut length = 0;
        while length < limit {
            let at = bit + length;
            let here = (self.levels[0][at / WORD] >> (at % WORD)).trailing_ones() as usize;
            length += here;
            if here < WORD - at % WORD {
                break;
            }
        }
        length.min(limit)
    }

    /// Makes frames free.
    fn set(&mut self, bit: usize, count: usize) {
        self.lowest = self.lowest.min(bit);
        self.change(bit, count, |word, mask| word | mask);
    }

    /// Makes frames used.
    fn clear(&mut self, bit: usize, count: usize) {
        self.change(bit, count, |word, mask| word & !mask);
    }

    /// Changes the bits of `count` frames, and what the levels above say of their words.
    fn change(&mut self, mut bit: usize, mut count: usize, new: impl Fn(u64, u64) -> u64) {
        while count > 0 {
            let here = count.min(WORD - bit % WORD);
            let word = &mut self.levels[0][bit / WORD];
            let old = *word;
            *word = new(old, mask(bit % WORD, here));
            self.statistics.free += u64::from(word.count_ones());
            self.statistics.free -= u64::from(old.count_ones());
            if (old == 0) != (*word == 0) {
                self.summarize(bit / WORD);
            }
            bit += here;
            count -= here;
        }
    }

    /// Tells the levels above whether a word of level 0 has a free frame.
    fn summarize(&mut self, mut index: usize) {
        for level in 1..LEVELS {
            let any = self.levels[level - 1][index] != 0;
            let word = &mut self.levels[level][index / WORD];
            let bit = 1 << (index % WORD);
            *word = if any { *word | bit } else { *word & !bit };
            index /= WORD;
        }
    }
}

/// Returns where in `ram` the first `len` bytes are that start at a multiple of `align`, a power of
/// two, and touch nothing in `taken`: room for the metadata, before there is an allocator.
pub fn place(ram: &[Run], taken: &[Run], len: u64, align: u64) -> Option<Pa> {
    let align = align.max(PAGE_SIZE);
    for region in ram {
        let end = region.start.checked_add(region.len)?.get();
        let mut start = region.start.get().checked_next_multiple_of(align)?;
        while start.checked_add(len).is_some_and(|last| last <= end) {
            let in_the_way = taken.iter().find(|run| {
                run.start.get() < start + len && start < run.start.get().saturating_add(run.len)
            });
            let Some(run) = in_the_way else {
                return Some(Pa::new(start));
            };
            start = run
                .start
                .get()
                .saturating_add(run.len)
                .checked_next_multiple_of(align)?;
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::vec;
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn run(start: u64, len: u64) -> Run {
        Run {
            start: Pa::new(start),
            len,
        }
    }

    fn metadata(ram: &[Run]) -> Vec<u64> {
        vec![0xdead_beef; Allocator::metadata_words(ram).expect("ordered")]
    }

    #[test]
    fn frames_are_handed_out_lowest_first() {
        let ram = [run(0x4000_0800, 0x3000), run(0x8000_0000, 0x1000)];
        let mut words = metadata(&ram);
        let mut frames = Allocator::new(&ram, &mut words).expect("ordered");
        assert_eq!(frames.statistics(), Statistics { total: 3, free: 3 });
        let all: Vec<_> = core::iter::from_fn(|| frames.allocate()).collect();
        // The region starts and ends inside of a frame: these two are not whole.
        assert_eq!(all, [0x4000_1000, 0x4000_2000, 0x8000_0000].map(Pa::new));
        frames.free(all[1]).expect("taken");
        assert_eq!(frames.allocate(), Some(all[1]));
    }

    #[test]
    fn what_was_not_taken_cannot_be_freed() {
        let ram = [run(0x4000_0000, MIB), run(0x4010_0000, MIB)];
        let mut words = metadata(&ram);
        let mut frames = Allocator::new(&ram, &mut words).expect("ordered");
        let taken = frames.allocate_run(0x4000, PAGE_SIZE).expect("free");
        assert_eq!(taken, run(0x4000_0000, 0x4000));
        #[rustfmt::skip]
        let cases = [
            (run(0x4000_0000, 0x5000),   Error::DoubleFree(Pa::new(0x4000_4000))),
            (run(0x4000_8000, 0x1000),   Error::DoubleFree(Pa::new(0x4000_8000))),
            (run(0x3fff_f000, 0x1000),   Error::Foreign(Pa::new(0x3fff_f000))),
            (run(0x4020_0000, 0x1000),   Error::Foreign(Pa::new(0x4020_0000))),
            (run(0x400f_f000, 0x2000),   Error::Foreign(Pa::new(0x400f_f000))), // two regions
            (run(0x4000_0800, 0x1000),   Error::Foreign(Pa::new(0x4000_0800))),
            (run(0x4000_0000, 0x0800),   Error::Foreign(Pa::new(0x4000_0000))),
            (run(0x4000_0000, 0),        Error::Foreign(Pa::new(0x4000_0000))),
            (run(0x4000_0000, u64::MAX), Error::Foreign(Pa::new(0x4000_0000))),
        ];
        for (run, error) in cases {
            assert_eq!(frames.free_run(run), Err(error), "{run:?}");
            assert_eq!(frames.statistics().free, 508);
        }
        frames
            .free_run(run(0x4000_1000, 0x2000))
            .expect("a part of it");
        assert_eq!(
            frames.free(Pa::new(0x4000_1000)),
            Err(Error::DoubleFree(Pa::new(0x4000_1000)))
        );
    }

    #[test]
    fn regions_must_ascend_and_fit() {
        for ram in [
            [run(0x8000_0000, MIB), run(0x4000_0000, MIB)],
            [run(0x4000_0000, MIB), run(0x400f_f000, MIB)],
        ] {
            assert_eq!(
                Allocator::metadata_words(&ram),
                Err(Error::Unordered(ram[1]))
            );
        }
        let ram = [run(0x4000_0000, MIB)];
        let mut words = metadata(&ram);
        words.pop();
        assert!(matches!(
            Allocator::new(&ram, &mut words),
            Err(Error::Metadata)
        ));
        // A GiB takes 32 KiB and some words; a TiB, as much for each of its GiB.
        assert_eq!(
            Allocator::metadata_words(&[run(0, 1 << 30)]),
            Ok(3 + 4096 + 64 + 1)
        );
        assert_eq!(
            Allocator::metadata_words(&[run(0, 1 << 40)]),
            Ok(3 + 1024 * (4096 + 64 + 1))
        );
    }

    #[test]
    fn reserved_frames_are_not_handed_out() {
        let ram = [run(0x4000_0000, 16 * MIB)];
        let mut words = metadata(&ram);
        let mut frames = Allocator::new(&ram, &mut words).expect("ordered");
        assert_eq!(frames.reserve(run(0x4000_0000, 4 * MIB)), 1024);
        assert_eq!(frames.reserve(run(0x403f_ffff, 2)), 1); // touches one more frame
        assert_eq!(frames.reserve(run(0x3000_0000, 256 * MIB)), 0); // no RAM
        assert_eq!(frames.reserve(run(0x40ff_f000, u64::MAX)), 1);
        assert_eq!(frames.allocate(), Some(Pa::new(0x4040_1000)));
        assert_eq!(
            frames.allocate_run(8 * MIB, 2 * MIB),
            Some(run(0x4060_0000, 8 * MIB))
        );
        assert_eq!(frames.allocate_run(4 * MIB, 2 * MIB), None);
        assert_eq!(
            frames.allocate_extent(64 * MIB, PAGE_SIZE),
            Some(run(0x40e0_0000, 2 * MIB - 0x1000))
        );
        assert_eq!(frames.allocate_extent(64 * MIB, 2 * MIB), None);
        frames
            .free_run(run(0x4000_0000, 4 * MIB))
            .expect("reserved");
        assert_eq!(
            frames.allocate_extent(64 * MIB, 2 * MIB),
            Some(run(0x4000_0000, 4 * MIB))
        );
    }

    #[test]
    fn a_tebibyte_is_managed_too() {
        let ram = [run(0x4000_0000, 1 << 30), run(1 << 40, 1 << 40)];
        let mut words = metadata(&ram);
        let mut frames = Allocator::new(&ram, &mut words).expect("ordered");
        let half = 1 << 39;
        assert_eq!(frames.allocate_run(half, 1 << 30), Some(run(1 << 40, half)));
        assert_eq!(frames.reserve(run(0x4000_0000, 1 << 30)), 1 << 18);
        assert_eq!(frames.allocate(), Some(Pa::new((1 << 40) + half)));
        let last = (1 << 41) - PAGE_SIZE;
        assert_eq!(
            frames.reserve(run(1 << 40, (1 << 40) - PAGE_SIZE)),
            (1 << 27) - 2
        );
        assert_eq!(frames.allocate(), Some(Pa::new(last)));
        assert_eq!(frames.allocate(), None);
        frames.free_run(ram[1]).expect("all taken");
        frames.free_run(ram[0]).expect("all reserved");
        let total = (1 << 18) + (1 << 28);
        assert_eq!(frames.statistics(), Statistics { total, free: total });
    }

    #[test]
    fn metadata_finds_a_place() {
        let ram = [run(0x4000_0000, MIB), run(0x8000_0000, MIB)];
        let taken = [
            run(0x4000_0000, 0x8_0000),
            run(0x400c_0800, 0x1000),
            run(0x7000_0000, 64),
        ];
        for (len, align, place_expected) in [
            (0x1000, 1, Some(0x4008_0000)),
            (0x4_0000, 0x1000, Some(0x4008_0000)),
            (0x4_0000, 0x10_0000, Some(0x8000_0000)),
            (0x4_1000, 0x1000, Some(0x8000_0000)),
            (MIB, 0x1000, Some(0x8000_0000)),
            (MIB + 1, 0x1000, None),
            (u64::MAX, 0x1000, None),
        ] {
            let got = place(&ram, &taken, len, align);
            assert_eq!(got, place_expected.map(Pa::new), "{len:#x} {align:#x}");
        }
    }

    /// A step of the property test, in frames.
    #[derive(Clone, Debug)]
    enum Step {
        Allocate,
        AllocateRun(u64, u32),
        AllocateExtent(u64, u32),
        Free(u64, u64),
        Reserve(u64, u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        let count = || prop_oneof![1u64..4, 1u64..200, 500u64..1200];
        let frame = || 0u64..3000;
        prop_oneof![
            4 => Just(Step::Allocate),
            4 => (count(), 0u32..10).prop_map(|(count, align)| Step::AllocateRun(count, align)),
            1 => (count(), 0u32..10).prop_map(|(count, align)| Step::AllocateExtent(count, align)),
            8 => (frame(), count()).prop_map(|(frame, count)| Step::Free(frame, count)),
            1 => (frame(), 1u64..300).prop_map(|(frame, count)| Step::Reserve(frame, count)),
        ]
    }

    /// Returns the longest run of free frames, at most `limit` long, at `frame`.
    fn length(free: &BTreeSet<u64>, regions: &[(u64, u64)], frame: u64, limit: u64) -> u64 {
        let end = regions
            .iter()
            .find(|(start, end)| (*start..*end).contains(&frame));
        let end = end.map_or(frame, |(_, end)| *end);
        (frame..end.min(frame + limit))
            .take_while(|frame| free.contains(frame))
            .count() as u64
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn the_bitmap_agrees_with_a_set(steps in prop::collection::vec(step(), 1..80)) {
            // Odd bounds; the second and third touch.
            let regions = [(3, 70), (100, 1601), (1601, 1602), (1700, 2900)];
            let ram = regions.map(|(start, end)| run(start << 12, (end - start) << 12));
            let mut words = metadata(&ram);
            let mut frames = Allocator::new(&ram, &mut words).expect("ordered");
            let mut free: BTreeSet<u64> = regions.iter().flat_map(|(a, b)| *a..*b).collect();
            for step in steps {
                match step {
                    Step::Allocate => {
                        prop_assert_eq!(frames.allocate(), free.pop_first().map(|f| Pa::new(f << 12)));
                    }
                    Step::AllocateRun(count, align) => {
                        let fits = free.iter().copied().find(|frame| {
                            frame % (1 << align) == 0
                                && length(&free, &regions, *frame, count) == count
                        });
                        let got = frames.allocate_run(count << 12, PAGE_SIZE << align);
                        prop_assert_eq!(got, fits.map(|frame| run(frame << 12, count << 12)));
                        for frame in fits.into_iter().flat_map(|frame| frame..frame + count) {
                            free.remove(&frame);
                        }
                    }
                    Step::AllocateExtent(count, align) => {
                        let unit = 1 << align;
                        let count = count.next_multiple_of(unit);
                        let lengths = free.iter().filter(|frame| **frame % unit == 0);
                        let best = lengths
                            .map(|frame| length(&free, &regions, *frame, count) / unit * unit)
                            .max()
                            .unwrap_or(0);
                        let got = frames.allocate_extent(count << 12, PAGE_SIZE << align);
                        prop_assert_eq!(got.map_or(0, |run| run.len >> 12), best);
                        if let Some(run) = got {
                            let start = run.start.get() >> 12;
                            prop_assert_eq!(start % unit, 0);
                            for frame in start..start + best {
                                prop_assert!(free.remove(&frame));
                            }
                        }
                    }
                    Step::Free(frame, count) => {
                        let inside =
                            regions.iter().any(|(a, b)| *a <= frame && frame + count <= *b);
                        let twice = free.range(frame..frame + count).next();
                        let got = frames.free_run(run(frame << 12, count << 12));
                        if !inside {
                            prop_assert_eq!(got, Err(Error::Foreign(Pa::new(frame << 12))));
                        } else if let Some(twice) = twice {
                            prop_assert_eq!(got, Err(Error::DoubleFree(Pa::new(*twice << 12))));
                        } else {
                            prop_assert_eq!(got, Ok(()));
                            free.extend(frame..frame + count);
                        }
                    }
                    Step::Reserve(frame, count) => {
                        let before = free.len();
                        free.retain(|f| !(frame..frame + count).contains(f));
                        let taken = frames.reserve(run(frame << 12, count << 12));
                        prop_assert_eq!(taken, (before - free.len()) as u64);
                    }
                }
                prop_assert_eq!(frames.statistics().free, free.len() as u64);
            }
        }
    }
}
