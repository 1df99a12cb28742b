//! The `disk` guest: see `programs::disk`.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
runtime::entry!(programs::disk::main);

#[cfg(not(target_os = "none"))]
fn main() {}
