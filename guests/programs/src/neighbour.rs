//! A domain that minds its own business, and notices when somebody does not.
//!
//! It fills memory with a known pattern, checks it again and again, copies some of it about, and
//! prints a heartbeat. `rounds=N` on the command line ends it after N rounds; else it never ends.

use alloc::vec;
use alloc::vec::Vec;

use runtime::platform::Platform;
use runtime::{println, timer};

use crate::random::Random;

/// Words that are written once and must never change.
const GUARD: usize = 4 << 20 >> 3;
/// Words that are copied in each round.
const WORK: usize = 256 << 10 >> 3;
/// Rounds from one heartbeat to the next, and milliseconds from one round to the next.
const HEARTBEAT: u64 = 4;
const PAUSE: u64 = 250;

/// Checks its memory until it is told to end.
pub fn main(platform: &'static Platform) {
    let mut words = platform.arguments().split_ascii_whitespace();
    let rounds = words.find_map(|word| word.strip_prefix("rounds=")?.parse().ok());
    let guard = filled(0x6e65_6967_6862_6f75, GUARD);
    let mut copy = vec![0; WORK];
    println!("neighbour: ready, {} KiB watched", GUARD * 8 / 1024);
    for round in 1..=rounds.unwrap_or(u64::MAX) {
        let source = filled(round, WORK);
        copy.copy_from_slice(core::hint::black_box(&source));
        let copied = first_difference(&copy, round);
        let kept = first_difference(&guard, 0x6e65_6967_6862_6f75);
        if let Some((index, found, expected)) = copied.or(kept) {
            println!(
                "neighbour: FAILED in round {round}: word {index} is {found:#x}, not {expected:#x}"
            );
            return;
        }
        if round.is_multiple_of(HEARTBEAT) || round == 1 {
            println!("neighbour: round {round} ok");
        }
        timer::sleep(PAUSE);
    }
    println!("neighbour: done");
}

fn filled(seed: u64, words: usize) -> Vec<u64> {
    let mut random = Random::new(seed);
    (0..words).map(|_| random.next()).collect()
}

/// Returns the first word that is not what [`filled`] wrote.
fn first_difference(words: &[u64], seed: u64) -> Option<(usize, u64, u64)> {
    let mut random = Random::new(seed);
    words.iter().enumerate().find_map(|(index, word)| {
        // SAFETY: a reference may be read; volatile, since a device may have written here.
        let found = unsafe { core::ptr::from_ref(word).read_volatile() };
        let expected = random.next();
        (found != expected).then_some((index, found, expected))
    })
}
