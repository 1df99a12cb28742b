//! The `watch` guest: see `programs::watch`.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
runtime::entry!(programs::watch::main);

#[cfg(not(target_os = "none"))]
fn main() {}
