//! The `holder` guest: see `programs::holder`.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
runtime::entry!(programs::holder::main);

#[cfg(not(target_os = "none"))]
fn main() {}
