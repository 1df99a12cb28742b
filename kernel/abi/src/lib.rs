//! What the hypervisor and its domains agree on.
#![no_std]
#![forbid(unsafe_code)]
