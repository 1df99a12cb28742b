//! Device models: what a domain needs to emulate PCI functions for another one.
//!
//! ```text
//!   ioreq ring --> Machine --> Function (by SBDF)
//!                                config space   config::ConfigSpace
//!                                MSI-X          msix::Msix
//!                                virtio         virtio::pci --> virtio::queue --> a virtio::Device
//!                                                  |                                 |
//!                              hypercalls <-- Host |           guest memory <-- GuestMemory
//! ```
//!
//! Everything is pure logic. What a function wants of the hypervisor it asks a [`Host`] for, and the
//! target's memory is behind [`GuestMemory`]; which functions there are at the moment, and what each is made
//! of, is a [`Supply`]'s to say. The domain's program implements the three.
//!
//! The target is not trusted. Nothing it writes, into registers or into memory, makes a function
//! panic, loop, or touch memory that was not granted.

#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::indexing_slicing))]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod config;
mod machine;
mod memory;
pub mod msix;
pub mod virtio;

pub use machine::{Function, Host, Machine, Progress, Supply};
pub use memory::{GuestMemory, OutOfBounds};
