//! The `functions` guest: see `programs::functions`.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
runtime::entry!(programs::functions::main);

#[cfg(not(target_os = "none"))]
fn main() {}
