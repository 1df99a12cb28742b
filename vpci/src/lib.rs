//! PCI config space of passed-through functions, and the bus they sit on.
#![no_std]
#![forbid(unsafe_code)]
