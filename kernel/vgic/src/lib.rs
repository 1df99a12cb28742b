//! Virtual GICv3 and ITS of one domain.
#![no_std]
#![forbid(unsafe_code)]
