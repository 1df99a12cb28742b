//! Tests from inside a domain.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
runtime::entry!(main);

#[cfg(target_os = "none")]
fn main(platform: &'static runtime::platform::Platform) {
    runtime::println!(
        "memory {:#x?} cpus {:?} its {:?}",
        platform.memory,
        platform.cpus,
        platform.its
    );
    runtime::println!("{:#x?}", platform.host_bridge);
}

#[cfg(not(target_os = "none"))]
fn main() {}
