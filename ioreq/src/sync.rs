//! The atomics: the real ones, or loom's when a test explores the interleavings.

#[cfg(not(loom))]
pub(crate) use core::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

/// Returns the low half of a word.
#[expect(
    clippy::cast_possible_truncation,
    reason = "the low half is what is wanted"
)]
pub(crate) const fn low(word: u64) -> u32 {
    word as u32
}

/// Returns the high half of a word.
pub(crate) const fn high(word: u64) -> u32 {
    low(word >> 32)
}

/// Makes a word of its two halves.
pub(crate) const fn word(high: u32, low: u32) -> u64 {
    (high as u64) << 32 | low as u64
}
