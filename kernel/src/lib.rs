//! What of the hypervisor can be tested on the host.
#![cfg_attr(not(test), no_std)]

pub mod frames;
