//! Which domains to make, as data: the model, its checks, and its form as a device tree.
//!
//! The image tool makes a [`Manifest`] of a system file, checks it and writes it; the hypervisor
//! reads it back at boot and checks it again, since it trusts nobody's tool. Both use the same
//! [`Manifest::check`], so that what is refused, and with which words, is the same.
//!
//! ```text
//!   system file --imager--> Manifest --write--> device tree in the image --read--> Manifest
//!                              |                                                      |
//!                            check                                                  check
//! ```
//!
//! `kernel/docs/manifest.md` has the device tree's binding as a table.
#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(not(test), warn(clippy::disallowed_macros, clippy::disallowed_methods))]
#![cfg_attr(
    not(test),
    warn(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)
)]

extern crate alloc;

mod check;
mod model;
mod read;
#[cfg_attr(
    not(test),
    expect(
        clippy::disallowed_macros,
        clippy::disallowed_methods,
        reason = "the image tool writes manifests, on the host; EL2 reads them"
    )
)]
mod write;

pub use check::{Error, Item, Machine, Mistake};
pub use model::{
    Backend, Domain, Function, Grant, GuestRange, MAX_FAULTS_DEFAULT, MAX_FAULTS_MOST,
    MAX_INTERRUPTS, MAX_INTERRUPTS_DEFAULT, Manifest, Module, PRIORITY_DEFAULT, Payload, Port,
    Server, Sriov,
};
pub use read::ReadError;

/// `compatible` of the manifest's root. The number changes when an older reader would go wrong.
pub const COMPATIBLE: &str = "isthmus,manifest-1";
/// What modules in the image, and ranges of guest memory, are aligned to.
pub const PAGE: u64 = 4 << 10;
/// What a domain's memory is a multiple of: a block of stage 2.
pub const BLOCK: u64 = 2 << 20;
/// Where a domain's memory starts.
pub const RAM_BASE: u64 = 0x4000_0000;
/// Where it ends at the latest: below the ECAM window.
pub const RAM_LIMIT: u64 = 0x40_0000_0000;
