//! On which processor a virtual one had best run: pure logic of the scheduler.

/// What a processor does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Load {
    /// Nothing: it waits for an interrupt.
    Idle,
    /// It runs something of this priority.
    Runs(usize),
}

impl Load {
    /// Makes a number of it, for an atomic.
    pub const fn encode(self) -> usize {
        match self {
            Self::Idle => 0,
            Self::Runs(priority) => priority + 1,
        }
    }

    /// Takes the number back.
    pub const fn decode(number: usize) -> Self {
        match number.checked_sub(1) {
            None => Self::Idle,
            Some(priority) => Self::Runs(priority),
        }
    }
}

/// Chooses among the processors `allowed`, each with its number and what it does, for something of
/// this priority that ran on `last` before.
///
/// An idle one is best, then the one that runs the least important thing if that has to give way.
/// Among equals `last` is best, whose caches may still be warm. Where it has to wait in any case it
/// waits for `last`, if that is allowed, and else for the least important one.
pub fn choose(
    allowed: impl Iterator<Item = (usize, Load)>,
    last: usize,
    priority: usize,
) -> Option<usize> {
    let rank = |(number, load): &(usize, Load)| {
        let load = match *load {
            Load::Runs(running) if running >= priority => Load::Runs(priority),
            less => less,
        };
        (load, *number != last)
    };
    allowed.min_by_key(rank).map(|(number, _)| number)
}

#[cfg(test)]
mod tests {
    use super::Load::{Idle, Runs};
    use super::*;

    #[test]
    #[rustfmt::skip]
    fn the_best_processor_is_chosen() {
        type Case<'a> = (&'a [(usize, Load)], usize, usize, Option<usize>);
        let cases: [Case<'_>; 9] = [
            // processors,                        last, priority, chosen
            (&[(0, Idle), (1, Idle)],                1, 8, Some(1)),
            (&[(0, Idle), (1, Runs(0))],             1, 8, Some(0)),
            (&[(0, Runs(8)), (1, Runs(8))],          1, 8, Some(1)), // waits where it was
            (&[(0, Runs(8)), (1, Runs(9))],          1, 8, Some(1)),
            (&[(0, Runs(7)), (1, Runs(9))],          1, 8, Some(0)), // preempts
            (&[(0, Runs(7)), (1, Runs(3))],          0, 8, Some(1)), // the least important
            (&[(0, Runs(3)), (1, Runs(3))],          1, 8, Some(1)),
            (&[(2, Runs(9)), (3, Runs(9))],          0, 8, Some(2)), // may not go back to 0
            (&[],                                    0, 8, None),
        ];
        for (processors, last, priority, chosen) in cases {
            let got = choose(processors.iter().copied(), last, priority);
            assert_eq!(got, chosen, "{processors:?}, last {last}, priority {priority}");
        }
    }

    #[test]
    fn a_load_survives_its_encoding() {
        for load in [Idle, Runs(0), Runs(15)] {
            assert_eq!(Load::decode(load.encode()), load);
        }
    }
}
