//! The `hostile` guest: see `programs::hostile`.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
runtime::entry!(programs::hostile::main);

#[cfg(not(target_os = "none"))]
fn main() {}
