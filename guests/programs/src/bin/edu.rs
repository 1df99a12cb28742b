//! The `edu` guest: see `programs::edu`.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
runtime::entry!(programs::edu::main);

#[cfg(not(target_os = "none"))]
fn main() {}
