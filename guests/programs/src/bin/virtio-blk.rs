//! The `virtio-blk` guest: see `programs::virtio_blk`.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
runtime::entry!(programs::virtio_blk::main);

#[cfg(not(target_os = "none"))]
fn main() {}
