//! The `serror` guest: see `programs::serror`.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
runtime::entry!(programs::serror::main);

#[cfg(not(target_os = "none"))]
fn main() {}
