//! The `neighbour` guest: see `programs::neighbour`.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
runtime::entry!(programs::neighbour::main);

#[cfg(not(target_os = "none"))]
fn main() {}
