//! PCI config space of the functions that a domain sees, and the bus they sit on.
//!
//! Everything here is pure logic: no address of the machine, no page table, no lock. A config access
//! is decoded once ([`ecam::decode`]), routed by its function, and answered by a model of that
//! function. What follows from a write for the machine is handed back as data, for the kernel to
//! carry out.
//!
//! It leaves to others: the physical bus (reached through [`PhysicalConfig`]), stage-2 tables,
//! interrupts, and device models, whose functions this crate only knows by their server's number.
#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(not(test), warn(clippy::disallowed_macros, clippy::disallowed_methods))]
#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::indexing_slicing))]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod access;
mod address;
mod bar;
mod bus;
pub mod capability;
pub mod ecam;
mod emulated;
mod function;
mod memory;
mod msi;
pub mod msix;
mod places;
pub mod port;
pub mod register;
mod sbdf;
pub mod tables;

pub use access::{ConfigAccess, Offset, PhysicalConfig, Size};
pub use address::{BusAddress, BusRange};
pub use bar::{BarIndex, BarInfo, BarKind, PAGE, Pages};
pub use bus::{Bus, BusError, Decoder, Owner};
pub use emulated::Emulated;
pub use function::{
    BarRead, BarWrite, BuildError, Change, Effect, Function, Kind, Pin, Position, Setup, State,
    Steadiness, Vendor,
};
pub use memory::{ClaimError, Claimed, MemoryMap, Released};
pub use msi::Msi;
pub use msix::Message;
pub use places::Places;
pub use port::{PortChange, Upstream};
pub use sbdf::{ParseSbdfError, Sbdf};
