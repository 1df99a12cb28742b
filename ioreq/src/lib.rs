//! Shared-ring requests from the hypervisor to device models.
#![no_std]
#![forbid(unsafe_code)]
