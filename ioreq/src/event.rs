//! Who has work: a set of numbered events that some pCPUs signal and others take.
//!
//! The kernel keeps one for each server (its slots, and its posted ring) and one for each
//! device-model domain (its servers). A vCPU of the device model that finds nothing goes to sleep;
//! no wake-up is lost, because each side first does its own and then looks at the other's:
//!
//! ```text
//!   signal: event = 1; fence; sleepers?      sleep: sleepers += 1; fence; any event?
//! ```
//!
//! With a sequentially consistent fence in both, at least one of them sees what the other did.

use crate::sync::{AtomicU32, AtomicU64, Ordering, fence};
use alloc::collections::TryReserveError;
use alloc::vec::Vec;

/// A set of events, each of them pending or not.
#[derive(Debug)]
pub struct EventSet {
    words: Vec<AtomicU64>,
    /// The word in which the search for the next event starts, so that each gets its turn.
    turn: AtomicU32,
    sleepers: AtomicU32,
}

/// What the one who signalled has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Wake {
    /// Nothing: nobody sleeps.
    NotNeeded,
    /// Wake one of those that sleep.
    Needed,
}

/// How the one who wanted to sleep goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Sleep {
    /// It blocks; whoever signals next is told to wake it, and then it calls [`EventSet::awake`].
    Blocked,
    /// It looks again: something was signalled meanwhile.
    LookAgain,
}

impl EventSet {
    /// Makes a set of the events from zero up to `count`.
    pub fn new(count: u32) -> Result<Self, TryReserveError> {
        let length = count.div_ceil(u64::BITS) as usize;
        let mut words = Vec::new();
        words.try_reserve_exact(length)?;
        words.resize_with(length, || AtomicU64::new(0));
        Ok(Self {
            words,
            turn: AtomicU32::new(0),
            sleepers: AtomicU32::new(0),
        })
    }

    /// Makes an event pending. An event that the set does not have is ignored.
    pub fn signal(&self, event: u32) -> Wake {
        self.mark(event);
        // Pairs with the fence in `sleep`.
        fence(Ordering::SeqCst);
        if self.sleepers.load(Ordering::Relaxed) == 0 {
            Wake::NotNeeded
        } else {
            Wake::Needed
        }
    }

    /// Makes an event pending in a set in which nobody sleeps.
    pub(crate) fn mark(&self, event: u32) {
        if let Some(word) = self.words.get((event / u64::BITS) as usize) {
            // Release: pairs with the acquire in `take`, so that what the event is about is visible.
            word.fetch_or(1 << (event % u64::BITS), Ordering::Release);
        }
    }

    /// Takes a pending event out of the set, each in its turn.
    pub fn take(&self) -> Option<u32> {
        // Relaxed: a hint, nothing depends on it.
        let turn = self.turn.load(Ordering::Relaxed);
        let (mut index, mut mask) = (turn / u64::BITS, !0 << (turn % u64::BITS));
        // All words from the turn on, past the end, and around to the part before the turn.
        for _ in 0..self.words.len() + 2 {
            let Some(word) = self.words.get(index as usize) else {
                (index, mask) = (0, !0);
                continue;
            };
            if let Some(bit) = take_from(word, mask) {
                let event = index * u64::BITS + bit;
                self.turn.store(event + 1, Ordering::Relaxed);
                return Some(event);
            }
            (index, mask) = (index + 1, !0);
        }
        None
    }

    /// Takes the next piece of work that an event is about: `look` takes it, and says whether there is more.
    /// An event of which there is none left is passed over.
    pub fn take_work<W>(&self, look: impl Fn(u32) -> Option<(W, bool)>) -> Option<(u32, W)> {
        while let Some(event) = self.take() {
            let Some((work, more)) = look(event) else {
                continue;
            };
            if more {
                // Whoever sleeps was woken when the work came; the caller takes it if nobody else does.
                self.mark(event);
            }
            return Some((event, work));
        }
        None
    }

    /// Says whether an event is pending.
    pub fn is_pending(&self) -> bool {
        // Relaxed: a look; who wants the event takes it.
        let pending = |word: &AtomicU64| word.load(Ordering::Relaxed) != 0;
        self.words.iter().any(pending)
    }

    /// Announces that the caller wants to sleep until an event is signalled.
    pub fn sleep(&self) -> Sleep {
        // Relaxed: ordered by the fence.
        self.sleepers.fetch_add(1, Ordering::Relaxed);
        // Pairs with the fence in `signal`.
        fence(Ordering::SeqCst);
        if self.is_pending() {
            self.awake();
            Sleep::LookAgain
        } else {
            Sleep::Blocked
        }
    }

    /// Takes back the announcement: the caller has been woken.
    pub fn awake(&self) {
        // Relaxed: at worst somebody is woken in vain.
        self.sleepers.fetch_sub(1, Ordering::Relaxed);
    }

    /// Forgets all pending events, and whoever slept: they are no more.
    pub fn clear(&self) {
        // Relaxed: at worst somebody is woken in vain, as above.
        self.sleepers.store(0, Ordering::Relaxed);
        for word in &self.words {
            // Relaxed: there is nothing to see behind a forgotten event.
            word.store(0, Ordering::Relaxed);
        }
    }
}

/// Takes the lowest pending event of `mask` out of a word.
fn take_from(word: &AtomicU64, mask: u64) -> Option<u32> {
    loop {
        // Relaxed: only the exchange below decides.
        let pending = word.load(Ordering::Relaxed) & mask;
        let lowest = pending & pending.wrapping_neg();
        if lowest == 0 {
            return None;
        }
        // Acquire: pairs with the release in `signal`. Somebody else may have been faster.
        if word.fetch_and(!lowest, Ordering::Acquire) & lowest != 0 {
            return Some(lowest.trailing_zeros());
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::vec::Vec;

    fn drain(set: &EventSet) -> Vec<u32> {
        core::iter::from_fn(|| set.take()).collect()
    }

    #[test]
    fn an_event_is_taken_once_however_often_it_was_signalled() {
        let set = EventSet::new(200).unwrap();
        for event in [5, 199, 64, 5, 5] {
            assert_eq!(set.signal(event), Wake::NotNeeded);
        }
        assert!(set.is_pending());
        assert_eq!(drain(&set), [5, 64, 199]);
        assert!(!set.is_pending());
        assert_eq!(drain(&set), []);
    }

    #[test]
    fn each_event_gets_its_turn() {
        let set = EventSet::new(130).unwrap();
        let busy = [0, 1, 63, 64, 129];
        let mut taken = Vec::new();
        for _ in 0..2 * busy.len() {
            for event in busy {
                let _ = set.signal(event);
            }
            taken.extend(set.take());
        }
        assert_eq!(taken, [0, 1, 63, 64, 129, 0, 1, 63, 64, 129]);
    }

    #[test]
    fn every_event_is_found_from_every_turn() {
        for first in 0..130 {
            for second in 0..130 {
                let set = EventSet::new(130).unwrap();
                let _ = set.signal(first);
                assert_eq!(set.take(), Some(first));
                let _ = set.signal(second);
                assert_eq!(set.take(), Some(second), "after {first}");
            }
            if cfg!(miri) {
                break;
            }
        }
    }

    #[test]
    fn all_are_found_in_one_round() {
        let set = EventSet::new(300).unwrap();
        let _ = set.signal(250);
        assert_eq!(set.take(), Some(250));
        let all: BTreeSet<u32> = (0..300).collect();
        for &event in &all {
            let _ = set.signal(event);
        }
        assert_eq!(BTreeSet::from_iter(drain(&set)), all);
    }

    #[test]
    fn who_sleeps_is_woken_and_who_finds_an_event_does_not_sleep() {
        let set = EventSet::new(1).unwrap();
        assert_eq!(set.sleep(), Sleep::Blocked);
        assert_eq!(set.signal(0), Wake::Needed);
        set.awake();
        assert_eq!(set.signal(0), Wake::NotNeeded);
        assert_eq!(set.sleep(), Sleep::LookAgain);
        assert_eq!(set.take(), Some(0));
        assert_eq!(set.sleep(), Sleep::Blocked);
    }

    #[test]
    fn events_that_the_set_does_not_have_are_ignored() {
        let set = EventSet::new(0).unwrap();
        let _ = set.signal(0);
        let _ = set.signal(u32::MAX);
        assert_eq!(set.take(), None);
        let set = EventSet::new(64).unwrap();
        let _ = set.signal(64);
        assert_eq!(set.take(), None);
    }

    #[test]
    fn a_cleared_set_is_empty_and_nobody_sleeps() {
        let set = EventSet::new(70).unwrap();
        assert_eq!(set.sleep(), Sleep::Blocked);
        let _ = set.signal(3);
        let _ = set.signal(69);
        set.clear();
        assert_eq!(set.take(), None);
        assert_eq!(set.signal(3), Wake::NotNeeded);
    }
}
