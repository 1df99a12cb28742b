//! What of the hypervisor can be tested on the host.
#![cfg_attr(not(test), no_std)]

extern crate alloc;

pub mod console;
pub mod features;
pub mod frames;
pub mod guest_tree;
pub mod layout;
pub mod rescue;
pub mod rtc;
pub mod uart;
