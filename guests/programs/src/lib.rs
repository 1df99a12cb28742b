//! Bare-metal guests: device models, tests and benchmarks.
//!
//! Each module is one program, and each has a binary of its name in `src/bin`, which the runtime
//! enters. They are built for `aarch64-unknown-none-softfloat` only; on the host there is nothing.
#![no_std]

#[cfg(target_os = "none")]
extern crate alloc;

#[cfg(target_os = "none")]
pub mod bench;
#[cfg(target_os = "none")]
pub mod control;
#[cfg(target_os = "none")]
pub mod disk;
#[cfg(target_os = "none")]
pub mod edu;
#[cfg(target_os = "none")]
pub mod functions;
#[cfg(target_os = "none")]
pub mod holder;
#[cfg(target_os = "none")]
pub mod hostile;
#[cfg(target_os = "none")]
pub mod hostile_dma;
#[cfg(target_os = "none")]
pub mod igb;
#[cfg(target_os = "none")]
pub mod impatient;
#[cfg(target_os = "none")]
pub mod intx;
#[cfg(target_os = "none")]
pub mod neighbour;
#[cfg(target_os = "none")]
pub mod nobridge;
#[cfg(target_os = "none")]
mod nvme;
#[cfg(target_os = "none")]
pub mod owner;
#[cfg(target_os = "none")]
mod pci;
#[cfg(target_os = "none")]
mod random;
#[cfg(target_os = "none")]
pub mod reads;
#[cfg(target_os = "none")]
pub mod selftest;
#[cfg(target_os = "none")]
pub mod serror;
#[cfg(target_os = "none")]
pub mod silent;
#[cfg(target_os = "none")]
mod simd;
#[cfg(target_os = "none")]
pub mod virtio_blk;
#[cfg(target_os = "none")]
pub mod watch;
