//! Tells of SErrors: that one is pending while they are masked, which it takes two looks later, and each
//! that it has taken.

use runtime::platform::Platform;
use runtime::{exception, println, timer};

/// Milliseconds from one look to the next.
const PAUSE: u64 = 100;
/// Looks from where an SError is seen pending to where it is taken.
const HELD_BACK: u64 = 2;

/// Looks for ever.
pub fn main(_platform: &'static Platform) {
    println!("serror: ready");
    let (mut pending_since, mut told) = (None, 0);
    for look in 0.. {
        match pending_since {
            None if exception::is_serror_pending() => {
                println!("serror: one is pending");
                pending_since = Some(look);
            }
            Some(since) if look == since + HELD_BACK => exception::expect_serrors(),
            _ => {}
        }
        let taken = exception::serrors();
        if taken != told {
            told = taken;
            let esr = exception::serror_syndrome();
            println!("serror: {taken} taken, ESR {esr:#x}");
        }
        timer::sleep(PAUSE);
    }
}
