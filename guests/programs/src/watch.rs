//! Watches its bus, and tells which functions come, whether they work, and which go.
//!
//! At three slots a function is a sign, if it comes while this domain runs: at 00:1e.0 to power off at once, at
//! 00:1f.0 to do so after [`DELAY`], and at 00:1d.0 to reset after that. So who gives it (`control`) knows when
//! this domain stops.

use runtime::mmio::{Odd, Width, Window};
use runtime::mmu::{self, Alias};
use runtime::platform::{HostBridge, Platform};
use runtime::{console, println, smccc, timer};

use crate::edu;
use crate::pci::{self, Function};

/// From a sign to what it asks for, in milliseconds: half of what the slow resets take.
const DELAY: u64 = 500;
/// From one look at the bus to the next.
const PAUSE: u64 = 2;

/// Devices on a bus. Each has so much of the 32-bit window for its first BAR.
const DEVICES: usize = 32;
const ROOM: usize = 0x10_0000;

const RESET: usize = 0x1d;
const OFF: usize = 0x1e;
const OFF_LATER: usize = 0x1f;

/// Device ID and vendor ID of what is known: QEMU's NVMe, the 82576 and its virtual function, the 82574.
const NVME: u32 = 0x0010_1b36;
const IGB: u32 = 0x10c9_8086;
const IGBVF: u32 = 0x10ca_8086;
const E1000E: u32 = 0x10d3_8086;
/// Where all of them have a register that is never all ones: version, or status.
const REGISTER: usize = 8;
/// Where the NVMe has nothing, in the page of its MSI-X table.
const BEHIND_TABLE: usize = 0x2800;

/// Watches for ever, or until there is a sign.
pub fn main(platform: &'static Platform) {
    let Some(bridge) = platform.host_bridge else {
        return println!("watch: FAILED: no host bridge");
    };
    println!("watch: ready");
    let mut known = [u32::MAX; DEVICES];
    for look in 0_u64.. {
        for (device, known) in known.iter_mut().enumerate().skip(1) {
            let function = Function::new(&bridge, u16::try_from(device << 3).unwrap_or(0));
            let id = function.id();
            if id == core::mem::replace(known, id) {
                continue;
            }
            if id == u32::MAX {
                println!("watch: {device:02x} is gone");
                continue;
            }
            match device {
                OFF if look > 0 => return,
                OFF_LATER if look > 0 => {
                    timer::sleep(DELAY);
                    return;
                }
                RESET if look > 0 => {
                    timer::sleep(DELAY);
                    smccc::system_reset();
                }
                _ => {}
            }
            let state = state(&bridge, function, device);
            println!("watch: {device:02x} is {id:08x}: {state}");
        }
        timer::sleep(PAUSE);
    }
}

/// Returns how it is with a function that is new.
fn state(bridge: &HostBridge, function: Function, device: usize) -> &'static str {
    let registers = place(bridge, device);
    function.place(0, registers.base());
    function.enable();
    match function.id() {
        edu::ID if edu::works(function, registers) => "works",
        edu::ID => "FAILED",
        NVME | IGB | IGBVF | E1000E => match registers.probe_read(REGISTER, Width::Word) {
            Ok(value) if value == Width::Word.ones() => "reads ones",
            Ok(_) => "works",
            // Behind its MSI-X table it is EL2 that reads, where that is contained.
            Err(fault) if fault.is_external_abort() => {
                match registers.probe_read(BEHIND_TABLE, Width::Word) {
                    Ok(value)
                        if value == Width::Word.ones() && walk_aborts(function, registers) =>
                    {
                        "aborts"
                    }
                    _ => "aborts, FAILED",
                }
            }
            Err(_) => "FAILED",
        },
        _ => "unknown",
    }
}

/// Returns whether it is this domain's, and nobody else's, if a table of stage 1 lies where a function with
/// memory answers with external aborts: EL2 translates addresses, too. Here it is the end of a pair that begins
/// at the end of the UART's page.
fn walk_aborts(function: Function, registers: Window) -> bool {
    // Nobody is in the slot behind.
    let table = registers.base() + ROOM;
    if function.place(2, table) == 0 {
        return false;
    }
    function.enable();
    let last = mmu::ALIASES - 1;
    // SAFETY: nothing refers to the UART's last registers, or to what lies behind the aliases.
    let pages = unsafe {
        let uart = mmu::alias(last, Some((console::window().base(), Alias::Device)));
        mmu::translate_behind_aliases(table);
        Window::new(uart, 0x2000)
    };
    match pages.probe_odd(0xffc, Odd::PairLoad) {
        // Synchronous external abort on a walk, level 3.
        Err(fault) => fault.syndrome() & 0x3f == 0x17,
        Ok(_) => false,
    }
}

fn place(bridge: &HostBridge, device: usize) -> Window {
    let first = pci::first_fit(bridge, ROOM).base() - bridge.memory32.base();
    bridge.memory32.part(first + device * ROOM, ROOM)
}
