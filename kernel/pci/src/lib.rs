//! Physical PCI: enumeration, placement, capabilities, reset and isolation groups.
#![no_std]
#![forbid(unsafe_code)]
