//! The `impatient` guest: see `programs::impatient`.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
runtime::entry!(programs::impatient::main);

#[cfg(not(target_os = "none"))]
fn main() {}
