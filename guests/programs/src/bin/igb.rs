//! The `igb` guest: see `programs::igb`.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
runtime::entry!(programs::igb::main);

#[cfg(not(target_os = "none"))]
fn main() {}
