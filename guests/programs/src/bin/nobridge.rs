//! The `nobridge` guest: see `programs::nobridge`.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
runtime::entry!(programs::nobridge::main);

#[cfg(not(target_os = "none"))]
fn main() {}
