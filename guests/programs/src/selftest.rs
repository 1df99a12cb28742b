//! Tests from inside a domain.

use runtime::harness;
use runtime::platform::Platform;

/// Runs the tests and powers off.
pub fn main(_platform: &'static Platform) {
    harness::run(&[])
}
