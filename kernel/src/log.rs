//! EL2's log: lines with a time and a level on the machine's terminal.

use crate::terminal;
use arch::sysreg;
use core::fmt;
use core::sync::atomic::{AtomicU8, Ordering};

/// How much a line matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Level {
    /// Something does not work.
    Error,
    /// Something is not as it should be, and goes on.
    Warn,
    /// What a person wants to follow.
    Info,
    /// What a developer wants to follow.
    Debug,
}

impl Level {
    /// Returns the level that boot arguments call so.
    pub(crate) fn named(name: &str) -> Option<Self> {
        Some(match name {
            "error" => Self::Error,
            "warn" => Self::Warn,
            "info" => Self::Info,
            "debug" => Self::Debug,
            _ => return None,
        })
    }
}

/// The least important level that is shown.
static SHOWN: AtomicU8 = AtomicU8::new(Level::Info as u8);

/// Chooses the least important level that is shown.
pub(crate) fn show(level: Level) {
    // Relaxed: nothing hangs on when it takes effect.
    SHOWN.store(level as u8, Ordering::Relaxed);
}

/// Writes a line if its level is shown.
pub(crate) fn write(level: Level, text: fmt::Arguments<'_>) {
    if level as u8 > SHOWN.load(Ordering::Relaxed) {
        return;
    }
    let mark = match level {
        Level::Error => "error: ",
        Level::Warn => "warning: ",
        Level::Info => "",
        Level::Debug => "debug: ",
    };
    let (seconds, micros) = time();
    terminal::log(format_args!(
        "[{seconds:5}.{micros:06}] isthmus: {mark}{text}"
    ));
}

/// Returns the time since the counter started, in seconds and microseconds.
fn time() -> (u64, u64) {
    let frequency = sysreg::read!("cntfrq_el0").max(1);
    let count = sysreg::read!("cntpct_el0");
    (count / frequency, count % frequency * 1_000_000 / frequency)
}

macro_rules! error {
    ($($text:tt)*) => { crate::log::write(crate::log::Level::Error, format_args!($($text)*)) };
}
macro_rules! warning {
    ($($text:tt)*) => { crate::log::write(crate::log::Level::Warn, format_args!($($text)*)) };
}
macro_rules! info {
    ($($text:tt)*) => { crate::log::write(crate::log::Level::Info, format_args!($($text)*)) };
}
macro_rules! debug {
    ($($text:tt)*) => { crate::log::write(crate::log::Level::Debug, format_args!($($text)*)) };
}
