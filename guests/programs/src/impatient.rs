//! Resets its domain while a device model has yet to answer it: what the device model emulates is reset all
//! the same before the domain starts again.

use runtime::platform::Platform;
use runtime::{cpu, println, smccc};

use crate::pci::{Function, MEMORY_AND_MASTER};

/// Requester ID of the device model's function.
const FUNCTION: u16 = 0x10;

const COMMAND: usize = 0x04;

/// Has the function do something, and its first vCPU ask it something that is answered no more.
pub fn main(platform: &'static Platform) {
    let Some(bridge) = platform.host_bridge else {
        return println!("impatient: FAILED: no host bridge");
    };
    let config = Function::new(&bridge, FUNCTION).config;
    println!("impatient: Command is {:#x}", config.read16(COMMAND));
    config.write16(COMMAND, MEMORY_AND_MASTER);
    let own = cpu::affinity();
    let other = platform.cpus.iter().find(|affinity| **affinity != own);
    let started = other.map(|other| cpu::start(*other, 1, reset, 0));
    if !matches!(started, Some(Ok(()))) {
        return println!("impatient: FAILED: no second vCPU");
    }
    // The second vCPU runs once this one waits, before the device model does.
    loop {
        config.read16(COMMAND);
    }
}

fn reset(_: usize) {
    smccc::system_reset()
}
