//! Physical PCI: what is on the machine's buses, and where.
//!
//! Firmware leaves bus numbers, bridge windows and BARs at zero, or as it liked them; [`enumerate`]
//! walks everything below a host bridge and sets them anew. What it finds is a [`Hierarchy`]: the
//! functions in ascending order of their names, each with its capabilities, BARs and parent. From
//! that follow the requester IDs that reach the SMMU and the ITS, the groups of functions that
//! cannot be kept apart, and the way in which a function is reset. Virtual functions that are wanted
//! are enabled and found with the others.
//!
//! Pure logic: config space is reached through [`ConfigSpace`], and time passes at the caller's.
#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(not(test), warn(clippy::disallowed_macros, clippy::disallowed_methods))]
#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::indexing_slicing))]

extern crate alloc;

mod capability;
mod config;
mod device;
mod enumerate;
mod group;
mod intx;
mod map;
mod owners;
mod place;
mod reset;
mod sriov;

pub use capability::{Acs, Capabilities, Express, PortKind};
pub use config::{ConfigSpace, Function};
pub use device::{Bar, Bridge, Device, Header, Hierarchy, Placement, Problem, Word, kept_by_reset};
pub use enumerate::enumerate;
pub use group::{Groups, Reason};
pub use intx::{InterruptMap, Pin, Widths, Wire, probe_pin};
pub use map::{MapError, RidMap};
pub use owners::{ClaimError, Claimed, Owner, Owners, Wish};
pub use place::{HostBridge, Window};
pub use reset::{Method, Progress, Reset, ResetError, milliseconds_up};
pub use sriov::{Sriov, Virtual, VirtualProblem, Wanted};

/// There is no memory to note what was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfMemory;

impl From<alloc::collections::TryReserveError> for OutOfMemory {
    fn from(_: alloc::collections::TryReserveError) -> Self {
        Self
    }
}

/// Adds to a list.
fn push<T>(list: &mut alloc::vec::Vec<T>, item: T) -> Result<(), OutOfMemory> {
    list.try_reserve(1)?;
    list.push(item);
    Ok(())
}
