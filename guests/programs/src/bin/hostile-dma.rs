//! The `hostile-dma` guest: see `programs::hostile_dma`.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
runtime::entry!(programs::hostile_dma::main);

#[cfg(not(target_os = "none"))]
fn main() {}
