//! The memory side of a bus: the bridge's windows, and who decodes which range of them.
//!
//! No address ever has two owners. A BAR that is set on top of another one waits until that one has
//! moved away; a range outside the windows is never given to anyone.
//!
//! Ranges are kept sorted, so that finding the owner of an address takes a binary search.

use alloc::vec::Vec;

use crate::{BusAddress, BusRange};

/// Why a range was not given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClaimError<T> {
    /// Not wholly inside one window of the bridge.
    Outside(BusRange),
    /// Some of it is decoded by another owner already.
    Taken {
        /// The range that is in the way.
        range: BusRange,
        /// Who has it.
        owner: T,
    },
    /// No memory is left for the entry.
    NoMemory,
}

/// What became of a claim that may wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Claimed {
    /// The range is the claimant's from now on.
    Granted,
    /// Another owner has some of the range. The claim is kept; see [`MemoryMap::grant_ready`].
    Waiting,
    /// The range lies outside the windows. The claim is forgotten.
    Outside,
}

/// What a range was before it was given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Released {
    /// It was granted. Others may be ready now; see [`MemoryMap::grant_ready`].
    Granted,
    /// It was waiting.
    Waiting,
    /// Nobody had claimed it.
    Nothing,
}

#[derive(Clone, Copy, Debug)]
struct Entry<T> {
    range: BusRange,
    owner: T,
}

/// Windows, and the ranges in them that are taken.
#[derive(Debug)]
pub struct MemoryMap<T> {
    windows: Vec<BusRange>,
    /// Sorted by start; no two overlap.
    granted: Vec<Entry<T>>,
    /// In the order in which they were claimed.
    waiting: Vec<Entry<T>>,
    /// How many claims either list has room for.
    room: usize,
}

impl<T> Default for MemoryMap<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> MemoryMap<T> {
    /// Makes a map without windows: nothing can be claimed in it.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            windows: Vec::new(),
            granted: Vec::new(),
            waiting: Vec::new(),
            room: 0,
        }
    }
}

impl<T: Copy + Eq> MemoryMap<T> {
    /// Adds a window of the bridge.
    ///
    /// # Errors
    ///
    /// If memory is short. Windows that overlap are the caller's mistake, and harmless.
    pub fn add_window(&mut self, window: BusRange) -> Result<(), ClaimError<T>> {
        reserve(&mut self.windows, 1)?;
        self.windows.push(window);
        Ok(())
    }

    /// Returns the windows.
    #[must_use]
    pub fn windows(&self) -> &[BusRange] {
        &self.windows
    }

    /// Makes room for `more` claims than before, so that as many as were asked for, in all, cannot fail for
    /// lack of memory. [`MemoryMap::give_up`] is its opposite.
    ///
    /// # Errors
    ///
    /// If memory is short. Then there is as much room as before.
    pub fn reserve(&mut self, more: usize) -> Result<(), ClaimError<T>> {
        let room = self.room.saturating_add(more);
        let granted = room.saturating_sub(self.granted.len());
        reserve(&mut self.granted, granted)?;
        let waiting = room.saturating_sub(self.waiting.len());
        reserve(&mut self.waiting, waiting)?;
        self.room = room;
        Ok(())
    }

    /// Gives room for claims up, which are released.
    pub fn give_up(&mut self, room: usize) {
        self.room = self.room.saturating_sub(room);
    }

    /// Returns who decodes `address`, and the whole range that it has there.
    #[must_use]
    pub fn find(&self, address: BusAddress) -> Option<(BusRange, T)> {
        let after = self.first_after(address);
        let entry = self.granted.get(after.checked_sub(1)?)?;
        entry
            .range
            .contains(address)
            .then_some((entry.range, entry.owner))
    }

    /// Returns all ranges that are granted, in order.
    pub fn granted(&self) -> impl Iterator<Item = (BusRange, T)> {
        self.granted.iter().map(|entry| (entry.range, entry.owner))
    }

    /// Gives `range` to `owner`.
    ///
    /// # Errors
    ///
    /// If the range is not inside a window, if anybody has any of it, or if memory is short.
    pub fn claim(&mut self, range: BusRange, owner: T) -> Result<(), ClaimError<T>> {
        let index = self.free_slot(range)?;
        reserve(&mut self.granted, 1)?;
        self.granted.insert(index, Entry { range, owner });
        Ok(())
    }

    /// Gives `range` to `owner` now, or as soon as nobody else has any of it.
    ///
    /// # Errors
    ///
    /// If memory is short.
    pub fn claim_or_wait(&mut self, range: BusRange, owner: T) -> Result<Claimed, ClaimError<T>> {
        match self.claim(range, owner) {
            Ok(()) => Ok(Claimed::Granted),
            Err(ClaimError::Outside(_)) => Ok(Claimed::Outside),
            Err(ClaimError::Taken { .. }) => {
                reserve(&mut self.waiting, 1)?;
                self.waiting.push(Entry { range, owner });
                Ok(Claimed::Waiting)
            }
            Err(ClaimError::NoMemory) => Err(ClaimError::NoMemory),
        }
    }

    /// Takes `range` back from `owner`; it must be exactly the range that was claimed.
    pub fn release(&mut self, range: BusRange, owner: T) -> Released {
        let same = |entry: &Entry<T>| entry.range == range && entry.owner == owner;
        let index = self.first_after(range.start()).wrapping_sub(1);
        if self.granted.get(index).is_some_and(same) {
            self.granted.remove(index);
            return Released::Granted;
        }
        let Some(index) = self.waiting.iter().position(same) else {
            return Released::Nothing;
        };
        self.waiting.remove(index);
        Released::Waiting
    }

    /// Grants the waiting claims that are in nobody's way any more, the oldest first, and tells of each. To
    /// be called after each release.
    pub fn grant_ready(&mut self, mut tell: impl FnMut(BusRange, T)) {
        let mut waiting = core::mem::take(&mut self.waiting);
        // One pass does: what is granted makes nobody else ready. Without memory a claim goes on waiting,
        // for the next release.
        waiting.retain(|&Entry { range, owner }| {
            let waits = self.claim(range, owner).is_err();
            if !waits {
                tell(range, owner);
            }
            waits
        });
        self.waiting = waiting;
    }

    /// Takes back all ranges whose owner `wanted` picks, granted or waiting. Others may be ready then; see
    /// [`MemoryMap::grant_ready`].
    pub fn release_all(&mut self, wanted: impl Fn(T) -> bool) {
        self.granted.retain(|entry| !wanted(entry.owner));
        self.waiting.retain(|entry| !wanted(entry.owner));
    }

    /// Returns the index of the first granted range that starts after `address`.
    fn first_after(&self, address: BusAddress) -> usize {
        self.granted
            .partition_point(|entry| entry.range.start() <= address)
    }

    /// Returns where `range` belongs among the granted ones.
    fn free_slot(&self, range: BusRange) -> Result<usize, ClaimError<T>> {
        if !self.windows.iter().any(|window| window.covers(range)) {
            return Err(ClaimError::Outside(range));
        }
        let index = self.first_after(range.start());
        let before = index
            .checked_sub(1)
            .and_then(|index| self.granted.get(index));
        let neighbors = before.into_iter().chain(self.granted.get(index));
        for entry in neighbors {
            if entry.range.overlaps(range) {
                return Err(ClaimError::Taken {
                    range: entry.range,
                    owner: entry.owner,
                });
            }
        }
        Ok(index)
    }
}

/// Makes room for `more` entries.
fn reserve<E, T>(list: &mut Vec<E>, more: usize) -> Result<(), ClaimError<T>> {
    list.try_reserve(more).map_err(|_| ClaimError::NoMemory)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn range(start: u64, size: u64) -> BusRange {
        BusRange::new(BusAddress::new(start), size).unwrap()
    }

    fn map() -> MemoryMap<u8> {
        let mut map = MemoryMap::default();
        map.add_window(range(0x1000, 0x1000)).unwrap();
        map.add_window(range(0x10000, 0x10000)).unwrap();
        map
    }

    #[test]
    #[rustfmt::skip]
    fn a_claim_needs_a_window_and_room() {
        let mut map = map();
        map.claim(range(0x1100, 0x100), 1).unwrap();
        let taken = ClaimError::Taken { range: range(0x1100, 0x100), owner: 1 };
        let cases = [
            (range(0x0000, 0x100),  Err(ClaimError::Outside(range(0x0000, 0x100)))),
            (range(0x0f80, 0x100),  Err(ClaimError::Outside(range(0x0f80, 0x100)))),
            (range(0x1f80, 0x100),  Err(ClaimError::Outside(range(0x1f80, 0x100)))),
            (range(0x1000, 0xf001), Err(ClaimError::Outside(range(0x1000, 0xf001)))), // two windows
            (range(0x1100, 0x100),  Err(taken)),
            (range(0x11ff, 1),      Err(taken)),
            (range(0x1000, 0x101),  Err(taken)),
            (range(0x1000, 0x100),  Ok(())),
            (range(0x1200, 0xe00),  Ok(())),
            (range(0x1f000, 0x1000), Ok(())),
        ];
        for (range, expected) in cases {
            assert_eq!(map.claim(range, 2), expected, "{range}");
        }
    }

    #[test]
    #[rustfmt::skip]
    fn an_address_has_the_owner_of_its_range() {
        let mut map = map();
        map.claim(range(0x1100, 0x100), 1).unwrap();
        map.claim(range(0x1200, 0x10), 2).unwrap();
        let cases = [
            (0x10ff, None), (0x1100, Some(1)), (0x11ff, Some(1)),
            (0x1200, Some(2)), (0x120f, Some(2)), (0x1210, None), (0, None), (u64::MAX, None),
        ];
        for (address, owner) in cases {
            let found = map.find(BusAddress::new(address));
            assert_eq!(found.map(|(_, owner)| owner), owner, "{address:#x}");
        }
        assert_eq!(map.granted().count(), 2);
        assert_eq!(map.windows().len(), 2);
    }

    fn ready(map: &mut MemoryMap<u8>) -> Vec<(BusRange, u8)> {
        let mut all = Vec::new();
        map.grant_ready(|range, owner| all.push((range, owner)));
        all
    }

    #[test]
    fn a_claim_on_a_taken_range_waits_for_it() {
        let mut map = map();
        map.reserve(4).unwrap();
        let both = range(0x1100, 0x200);
        assert_eq!(
            map.claim_or_wait(range(0x1100, 0x100), 1),
            Ok(Claimed::Granted)
        );
        assert_eq!(
            map.claim_or_wait(range(0x1200, 0x100), 2),
            Ok(Claimed::Granted)
        );
        assert_eq!(map.claim_or_wait(both, 3), Ok(Claimed::Waiting));
        assert_eq!(map.claim_or_wait(both, 4), Ok(Claimed::Waiting));
        assert_eq!(map.claim_or_wait(range(0, 1), 5), Ok(Claimed::Outside));
        assert_eq!(map.release(range(0x1100, 0x100), 1), Released::Granted);
        assert_eq!(ready(&mut map), [], "half of it is still taken");
        assert_eq!(map.release(range(0x1200, 0x100), 2), Released::Granted);
        assert_eq!(ready(&mut map), [(both, 3)]);
        assert_eq!(ready(&mut map), []);
        assert_eq!(map.release(both, 4), Released::Waiting);
        assert_eq!(map.release(both, 4), Released::Nothing);
        assert_eq!(map.release(range(0x1100, 0x100), 3), Released::Nothing);
    }

    #[test]
    fn all_that_are_ready_are_granted_at_once_the_oldest_first() {
        let mut map = map();
        let all = range(0x1100, 0x600);
        map.claim(all, 0).unwrap();
        let at = |n: u64, size: u64| range(0x1100 + 0x100 * n, 0x100 * size);
        // Each of two is in the way of the one behind it.
        let waiting = [
            (at(0, 2), 1),
            (at(1, 2), 2),
            (at(2, 2), 3),
            (at(3, 2), 4),
            (at(4, 2), 5),
        ];
        for (range, owner) in waiting {
            assert_eq!(map.claim_or_wait(range, owner), Ok(Claimed::Waiting));
        }
        assert_eq!(map.release(all, 0), Released::Granted);
        let [one, two, three, four, five] = waiting;
        assert_eq!(ready(&mut map), [one, three, five]);
        map.release_all(|owner| owner == 3 || owner == 5);
        assert_eq!(ready(&mut map), [four]);
        assert_eq!(map.release(one.0, 1), Released::Granted);
        assert_eq!(ready(&mut map), [two]);
        assert_eq!(ready(&mut map), []);
    }

    #[test]
    fn all_of_one_owner_can_be_taken_back() {
        let mut map = map();
        let (a, b) = (range(0x1100, 0x100), range(0x1200, 0x100));
        map.claim(a, 1).unwrap();
        map.claim(b, 2).unwrap();
        assert_eq!(map.claim_or_wait(b, 1), Ok(Claimed::Waiting));
        map.release_all(|owner| owner == 1);
        assert!(map.granted().eq([(b, 2)]));
        assert_eq!(map.release(b, 2), Released::Granted);
        assert_eq!(ready(&mut map), [], "what waited is gone, too");
    }

    proptest! {
        /// Against a model that keeps an owner for each address.
        #[test]
        #[cfg_attr(miri, ignore = "long, and without unsafe code there is little to find")]
        fn no_address_ever_has_two_owners(
            steps in prop::collection::vec((0u64..64, 1u64..16, 0u8..4, 0u8..3), 0..60),
        ) {
            let mut map = MemoryMap::new();
            map.add_window(range(8, 40)).unwrap();
            let mut owners = [None; 80];
            let mut paint = |range: BusRange, owner: Option<u8>| {
                for address in range.start().get()..=range.last().get() {
                    let slot = &mut owners[usize::try_from(address).unwrap()];
                    assert!(slot.is_none() || owner.is_none(), "{range}");
                    *slot = owner;
                }
            };
            for (start, size, owner, step) in steps {
                let range = range(start, size);
                match step {
                    0 => if map.release(range, owner) == Released::Granted {
                        paint(range, None);
                        map.grant_ready(|range, owner| paint(range, Some(owner)));
                        map.grant_ready(|range, _| panic!("{range} was ready before"));
                    }
                    1 => if map.claim(range, owner).is_ok() { paint(range, Some(owner)) },
                    _ => if map.claim_or_wait(range, owner) == Ok(Claimed::Granted) {
                        paint(range, Some(owner));
                    }
                }
            }
            for (address, owner) in owners.into_iter().enumerate() {
                let address = BusAddress::new(address as u64);
                prop_assert_eq!(map.find(address).map(|(_, owner)| owner), owner);
                prop_assert!(owner.is_none() || range(8, 40).contains(address));
            }
        }
    }
}
