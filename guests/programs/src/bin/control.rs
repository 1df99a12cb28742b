//! The `control` guest: see `programs::control`.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
runtime::entry!(programs::control::main);

#[cfg(not(target_os = "none"))]
fn main() {}
