//! The `intx` guest: see `programs::intx`.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
runtime::entry!(programs::intx::main);

#[cfg(not(target_os = "none"))]
fn main() {}
