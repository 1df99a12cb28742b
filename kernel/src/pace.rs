//! How fast something may come that costs EL2 time each time.
//!
//! ```text
//!   counted ... counted   as many as may come in a millisecond: now the clock is looked at
//!                           so many took their time, or longer   counting starts anew
//!                           they came faster                     held back until that time is over
//! ```
//!
//! So the clock is read seldom, a pause lasts about a millisecond, and in the long run no more comes than is
//! allowed. What comes although it is held back counts too, and makes the pause longer: ten milliseconds at
//! most.

/// What a clock says.
#[derive(Clone, Copy, Debug)]
pub struct Time {
    /// How many ticks have passed.
    pub now: u64,
    /// How many of them are a second.
    pub frequency: u64,
}

/// How fast something comes, and how fast it may.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// How many may come in a second: one at least.
    allowed: u32,
    /// When counting started, and how many came since.
    since: u64,
    count: u32,
}

impl Pace {
    /// Returns the pace of what may come so many times a second.
    pub const fn new(allowed: u32) -> Self {
        Self {
            allowed: if allowed == 0 { 1 } else { allowed },
            since: 0,
            count: 0,
        }
    }

    /// Returns how many may come in a second.
    pub const fn allowed(&self) -> u32 {
        self.allowed
    }

    /// Counts one. Returns whether [`Self::due`] is to be asked.
    #[inline]
    pub const fn count(&mut self) -> bool {
        self.count = self.count.saturating_add(1);
        self.count >= self.allowed.div_ceil(1000)
    }

    /// Returns until when what comes is to be held back; `None` if it has come no faster than it may.
    #[cold]
    pub fn due(&mut self, time: Time) -> Option<u64> {
        let Time { now, frequency } = time;
        self.count = self.count.min(self.allowed.div_ceil(100));
        let takes = u64::from(self.count).saturating_mul(frequency) / u64::from(self.allowed);
        let due = self.since.saturating_add(takes);
        if due > now {
            return Some(due);
        }
        self.since = now;
        self.count = 0;
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FREQUENCY: u64 = 62_500_000;

    fn at(now: u64) -> Time {
        let frequency = FREQUENCY;
        Time { now, frequency }
    }

    /// Has one come at `now`; returns until when it is held back.
    fn comes(pace: &mut Pace, now: u64) -> Option<u64> {
        pace.count().then(|| pace.due(at(now))).flatten()
    }

    #[test]
    fn what_comes_too_fast_is_held_back_until_its_time_is_over() {
        // Two in a millisecond.
        let mut pace = Pace::new(2_000);
        let millisecond = FREQUENCY / 1_000;
        let start = 10 * millisecond;
        let second = start + millisecond / 2;
        // It has not come for long.
        assert_eq!([start, second].map(|now| comes(&mut pace, now)), [None; 2]);
        // Two more at once should have taken one.
        assert_eq!(comes(&mut pace, second), None);
        assert_eq!(comes(&mut pace, second), Some(second + millisecond));
        // One that comes all the same has to have its time, too.
        let due = second + 3 * millisecond / 2;
        assert_eq!(comes(&mut pace, second + 1), Some(due));
        assert_eq!(pace.due(at(due - 1)), Some(due));
        assert_eq!(pace.due(at(due)), None);
        // But no more than ten milliseconds.
        for _ in 0..1_000 {
            comes(&mut pace, due);
        }
        let late = due + 10 * millisecond;
        assert_eq!(comes(&mut pace, late - 1), Some(late));
        assert_eq!(pace.due(at(late)), None);
    }

    #[test]
    fn any_numbers_will_do() {
        for allowed in [0, 1, 999, 1_000, u32::MAX] {
            let mut pace = Pace::new(allowed);
            for _ in 0..5_000 {
                if pace.count() {
                    for (now, frequency) in [(0, 1), (0, u64::MAX), (u64::MAX, 1)] {
                        pace.due(Time { now, frequency });
                    }
                }
            }
        }
    }

    proptest! {
        /// What comes whenever it can, and now and then although it is held back, comes no faster than it
        /// may: a few at the beginning, and those that came all the same, aside.
        #[test]
        fn in_the_long_run_no_more_comes_than_may(
            allowed in 1_000_u32..2_000_000,
            gaps in proptest::collection::vec((0_u64..200_000, 0_u32..4), 1..3_000)
        ) {
            let mut pace = Pace::new(allowed);
            let (mut now, mut count, mut late) = (FREQUENCY, 0_u64, 0_u64);
            for (gap, more) in gaps {
                now += gap;
                count += 1;
                let mut held = comes(&mut pace, now);
                for _ in 0..more {
                    if held.is_some() {
                        count += 1;
                        late += 1;
                        held = comes(&mut pace, now);
                    }
                }
                if let Some(due) = held {
                    prop_assert!(due > now);
                    now = due;
                    prop_assert_eq!(pace.due(at(now)), None);
                }
            }
            let time = now - FREQUENCY;
            let may = u64::from(allowed) * (time + 1) / FREQUENCY;
            let burst = u64::from(allowed.div_ceil(1_000));
            prop_assert!(count <= may + 2 * burst + late.min(4), "{count} in {time} ticks");
        }

        /// What comes evenly, and no faster than it may, is never held back.
        #[test]
        fn what_keeps_its_pace_is_left_alone(allowed in 1_u32..1_000_000, slower in 0_u64..1_000) {
            let mut pace = Pace::new(allowed);
            let gap = FREQUENCY.div_ceil(allowed.into()) + slower;
            for n in 1..3_000 {
                prop_assert_eq!(comes(&mut pace, FREQUENCY + n * gap), None);
            }
        }
    }
}
