//! The `silent` guest: see `programs::silent`.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
runtime::entry!(programs::silent::main);

#[cfg(not(target_os = "none"))]
fn main() {}
