//! The Isthmus hypervisor: the image that runs at EL2.
//!
//! ```text
//!   entry.S --> boot --> sched  <------------------------------+
//!                          |                                   |
//!                          v                                   |
//!                        guest --> exit --> hypercall, mmio,   |
//!                                           sysreg, irq ... ---+
//! ```
//!
//! EL2 is not preemptible: interrupts stay masked here, an exit is handled to its end on the pCPU's
//! only stack, and a vCPU that has to wait is left in its structure while another one gets the pCPU.
//! What is pure logic is in the library beside this program and in the crates below it.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![warn(clippy::disallowed_macros, clippy::disallowed_methods)]
#![cfg_attr(
    all(target_os = "none", not(all(feature = "ioreq", feature = "vpci"))),
    expect(dead_code, reason = "what only the part that is left out uses")
)]

#[cfg(target_os = "none")]
extern crate alloc;

#[cfg(target_os = "none")]
#[macro_use]
mod log;

#[cfg(target_os = "none")]
#[cfg_attr(not(feature = "vpci"), path = "no_assign.rs")]
mod assign;
#[cfg(target_os = "none")]
mod boot;
#[cfg(target_os = "none")]
mod bus;
#[cfg(target_os = "none")]
mod control;
#[cfg(target_os = "none")]
mod domain;
#[cfg(target_os = "none")]
mod exit;
#[cfg(target_os = "none")]
mod hypercall;
#[cfg(target_os = "none")]
mod interrupts;
#[cfg(target_os = "none")]
mod irq;
#[cfg(target_os = "none")]
mod lifecycle;
#[cfg(target_os = "none")]
mod lines;
#[cfg(target_os = "none")]
mod machine;
#[cfg(target_os = "none")]
mod memory;
#[cfg(target_os = "none")]
mod mmio;
#[cfg(target_os = "none")]
mod panic;
#[cfg(target_os = "none")]
#[cfg_attr(not(feature = "vpci"), path = "no_passthrough.rs")]
mod passthrough;
#[cfg(target_os = "none")]
mod pcpu;
#[cfg(target_os = "none")]
mod physical;
#[cfg(target_os = "none")]
mod psci;
#[cfg(target_os = "none")]
mod refusals;
#[cfg(target_os = "none")]
mod replay;
#[cfg(target_os = "none")]
mod sched;
#[cfg(target_os = "none")]
#[cfg_attr(not(feature = "ioreq"), path = "no_servers.rs")]
mod servers;
#[cfg(target_os = "none")]
mod shadow;
#[cfg(target_os = "none")]
mod smccc;
#[cfg(target_os = "none")]
mod sysreg;
#[cfg(target_os = "none")]
mod terminal;
#[cfg(target_os = "none")]
mod vcpu;

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("This program is the EL2 image; build it for aarch64-unknown-none-softfloat.");
    std::process::exit(1);
}
