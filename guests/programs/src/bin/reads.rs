//! The `reads` guest: see `programs::reads`.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
runtime::entry!(programs::reads::main);

#[cfg(not(target_os = "none"))]
fn main() {}
