//! Device models.
#![no_std]
#![forbid(unsafe_code)]
