//! The `bench` guest: see `programs::bench`.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
runtime::entry!(programs::bench::main);

#[cfg(not(target_os = "none"))]
fn main() {}
