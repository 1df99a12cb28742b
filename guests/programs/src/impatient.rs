//! Resets its domain while a device model has yet to answer two of its vCPUs, one of them in the middle of a
//! load of a pair: what the device model emulates is reset all the same before the domain starts again, and of
//! the load nothing is left. With `off` on the command line the domain powers off instead.

use core::sync::atomic::{AtomicU32, Ordering};

use runtime::mmio::Odd;
use runtime::platform::{self, HostBridge, Platform};
use runtime::{cpu, println, smccc, timer};

use crate::pci::{self, Function};

/// Requester IDs of the device model's function, and of the one that never answers.
const FUNCTION: u16 = 0x10;
const SILENT: u16 = 0x20;

const COMMAND: usize = 0x04;

/// What its BAR takes.
const BAR_SIZE: usize = 0x4000;

/// vCPUs that are about to ask the device model something.
static ASKING: AtomicU32 = AtomicU32::new(0);

/// Has the function do something, and vCPUs 0 and 1 ask it something that is answered no more.
pub fn main(platform: &'static Platform) {
    let Some(bridge) = platform.host_bridge else {
        return println!("impatient: FAILED: no host bridge");
    };
    let function = function(&bridge);
    let registers = if ends() {
        function.config
    } else {
        let Ok(read) = function.config.probe_odd(0, Odd::PairLoad) else {
            return println!("impatient: FAILED: a pair is not loaded");
        };
        let [id, command] = pci::halves(read);
        if id != function.id() {
            return println!("impatient: FAILED: a pair begins with {id:#x}");
        }
        println!("impatient: Command is {:#x}", command & 0xffff);
        let registers = pci::first_fit(&bridge, BAR_SIZE);
        function.place(0, registers.base());
        function.enable();
        registers
    };
    let others = (1..).zip(platform.cpus.iter().skip(1));
    for ((index, affinity), run) in others.zip([ask, stop]) {
        if cpu::start(*affinity, index, run, 0).is_err() {
            return println!("impatient: FAILED: vCPU {index} does not start");
        }
    }
    // The others run once this one waits, before the device model does.
    ASKING.fetch_add(1, Ordering::Relaxed);
    loop {
        let _ = registers.probe_odd(0, Odd::PairLoad);
    }
}

fn function(bridge: &HostBridge) -> Function {
    Function::new(bridge, if ends() { SILENT } else { FUNCTION })
}

/// Returns whether the domain is to power off.
fn ends() -> bool {
    platform::get().arguments() == "off"
}

fn ask(_: usize) {
    let Some(bridge) = platform::get().host_bridge else {
        return;
    };
    let function = function(&bridge);
    ASKING.fetch_add(1, Ordering::Relaxed);
    loop {
        function.config.read16(COMMAND);
    }
}

fn stop(_: usize) {
    while ASKING.load(Ordering::Relaxed) < 2 {
        core::hint::spin_loop();
    }
    if ends() {
        timer::sleep(50);
        smccc::system_off();
    }
    smccc::system_reset()
}
