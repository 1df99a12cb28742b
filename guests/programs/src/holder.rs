//! Does not let go of a function that it was given: one vCPU resets it all the time, by the port above, and
//! the other one resets the domain in the middle of that.

use runtime::platform::{HostBridge, Platform};
use runtime::{cpu, platform, println, smccc, timer};

use crate::pci::Function;

/// Requester IDs of the port, and of the function below as this program numbers the bus.
const PORT: u16 = 0xe0;
const FUNCTION: u16 = 0x100;

/// Bus numbers; Secondary Bus Reset in Bridge Control (PCI Express Base Specification, 7.5.1.3).
const BUSES: usize = 0x18;
const BRIDGE_CONTROL: usize = 0x3e;
const SECONDARY_BUS_RESET: u16 = 1 << 6;

/// Milliseconds until the domain is reset: the second vCPU waits for the function then.
const MEANWHILE: u64 = 30;

/// Waits until the function comes, and holds it.
pub fn main(platform: &'static Platform) {
    let Some(bridge) = platform.host_bridge else {
        return println!("holder: FAILED: no host bridge");
    };
    port(&bridge).config.write32(BUSES, 0x0001_0100);
    println!("holder: ready");
    while Function::new(&bridge, FUNCTION).id() == u32::MAX {
        timer::sleep(5);
    }
    println!("holder: holds it");
    let own = cpu::affinity();
    let other = platform.cpus.iter().find(|affinity| **affinity != own);
    let started = other.map(|other| cpu::start(*other, 1, reset, 0));
    if !matches!(started, Some(Ok(()))) {
        return println!("holder: FAILED: no second vCPU");
    }
    timer::sleep(MEANWHILE);
    smccc::system_reset()
}

fn port(bridge: &HostBridge) -> Function {
    Function::new(bridge, PORT)
}

fn reset(_: usize) {
    let Some(bridge) = platform::get().host_bridge else {
        return;
    };
    let port = port(&bridge).config;
    loop {
        port.write16(BRIDGE_CONTROL, SECONDARY_BUS_RESET);
        port.write16(BRIDGE_CONTROL, 0);
    }
}
