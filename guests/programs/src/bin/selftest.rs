//! The `selftest` guest: see `programs::selftest`.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
runtime::entry!(programs::selftest::main);

#[cfg(not(target_os = "none"))]
fn main() {}
