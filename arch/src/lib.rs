//! What is specific to 64-bit Arm.
//!
//! Knows nothing of PCI functions or domains. Compiles on the host too, so that decoders and table
//! builders run under plain `cargo test`.
#![cfg_attr(not(test), no_std)]
#![cfg_attr(not(test), warn(clippy::disallowed_macros, clippy::disallowed_methods))]

extern crate alloc;

pub mod address;
pub mod asm;
pub mod containment;
pub mod context;
pub mod dma;
#[cfg(target_os = "none")]
pub mod entry;
pub mod frame;
pub mod gic;
pub mod its;
pub mod load_store;
pub mod mmio;
pub mod pl011;
pub mod smmu;
pub mod syndrome;
pub mod sysreg;
pub mod table;
