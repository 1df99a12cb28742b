//! Tables of tests that run inside a domain.
//!
//! Each test prints one line, `test NAME ok`, `test NAME FAILED: why` or `test NAME skipped: why`;
//! after the last comes `tests: N passed, N failed`, and the domain powers off.

use alloc::string::String;

use crate::smccc;

/// Why a test did not pass.
#[derive(Debug)]
pub enum Failure {
    /// What was found wrong.
    Failed(String),
    /// What the test needs and this machine lacks.
    Skipped(String),
}

/// What a test returns.
pub type Outcome = Result<(), Failure>;

/// A named test.
pub struct Test {
    /// Its name: one word.
    pub name: &'static str,
    /// The test.
    pub run: fn() -> Outcome,
}

/// Fails the test unless the condition holds. The rest is the message, as for `format!`.
#[macro_export]
macro_rules! check {
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            return Err($crate::harness::Failure::Failed(alloc::format!($($message)+)));
        }
    };
}

/// Fails the test unless both are equal.
#[macro_export]
macro_rules! check_eq {
    ($left:expr, $right:expr, $($message:tt)+) => {{
        let (left, right) = (&$left, &$right);
        if left != right {
            return Err($crate::harness::Failure::Failed(alloc::format!(
                "{}: {:x?}, expected {:x?}",
                format_args!($($message)+),
                left,
                right
            )));
        }
    }};
}

/// Leaves the test: this machine lacks something it needs.
#[macro_export]
macro_rules! skip {
    ($($message:tt)+) => {
        return Err($crate::harness::Failure::Skipped(alloc::format!($($message)+)))
    };
}

/// Runs the tests in order and powers the domain off.
pub fn run(tests: &[Test]) -> ! {
    let (mut passed, mut failed) = (0, 0);
    for test in tests {
        match (test.run)() {
            Ok(()) => {
                passed += 1;
                println!("test {} ok", test.name);
            }
            Err(Failure::Failed(why)) => {
                failed += 1;
                println!("test {} FAILED: {why}", test.name);
            }
            Err(Failure::Skipped(why)) => println!("test {} skipped: {why}", test.name),
        }
    }
    println!("tests: {passed} passed, {failed} failed");
    smccc::system_off()
}
