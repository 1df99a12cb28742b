//! What of the hypervisor can be tested on the host.
#![cfg_attr(not(test), no_std)]
#![cfg_attr(not(test), warn(clippy::disallowed_macros, clippy::disallowed_methods))]

extern crate alloc;

pub mod console;
pub mod fallible;
pub mod features;
pub mod frames;
pub mod give;
pub mod guest_tree;
pub mod intx;
pub mod layout;
pub mod pace;
pub mod pages;
pub mod placement;
pub mod reads;
pub mod rescue;
pub mod rtc;
pub mod steps;
pub mod streams;
pub mod tables;
pub mod uart;
pub mod wired;

/// Returns a number of bytes, or of anything else in memory, as Rust counts it.
#[expect(
    clippy::cast_possible_truncation,
    reason = "EL2 is 64-bit; on a smaller host only tests run, with small numbers"
)]
pub const fn size(number: u64) -> usize {
    number as usize
}
