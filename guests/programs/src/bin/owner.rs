//! The `owner` guest: see `programs::owner`.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
runtime::entry!(programs::owner::main);

#[cfg(not(target_os = "none"))]
fn main() {}
