//! Which domains to make, as data.
#![no_std]
#![forbid(unsafe_code)]
