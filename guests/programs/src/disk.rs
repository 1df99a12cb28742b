//! Drives a virtio-blk disk whenever this domain has one, on its root bus or below its first root port.
//!
//! The disk comes and goes (`control`), each time at another slot. It has to be as after a reset, to hold
//! what was written to it the last time, and to be kept busy until it is gone; then, from when a key is typed,
//! nothing may be written to the memory that it was told of.
//!
//! VIRTIO 1.2, sections 2.7, 3.1, 4.1 and 5.2.

use runtime::mmio::Window;
use runtime::platform::{HostBridge, Platform};
use runtime::{console, cpu, println, timer};
use vpci::Sbdf;

use crate::nvme::{self, PAGE};
use crate::owner;
use crate::pci::{self, Function};

/// Device ID and vendor ID.
const ID: u32 = 0x1042_1af4;
const BAR_SIZE: usize = 0x4000;

/// Common configuration (4.1.4.3) and the notification of queue 0, where our device model has them in BAR0.
const DRIVER_FEATURE_SELECT: usize = 0x08;
const DRIVER_FEATURE: usize = 0x0c;
const STATUS: usize = 0x14;
const QUEUE_SELECT: usize = 0x16;
const QUEUE_SIZE: usize = 0x18;
const QUEUE_ENABLE: usize = 0x1c;
const QUEUE_DESC: usize = 0x20;
const QUEUE_DRIVER: usize = 0x28;
const QUEUE_DEVICE: usize = 0x30;
const NOTIFY: usize = 0x3000;

/// Device status: ACKNOWLEDGE, DRIVER; FEATURES_OK; DRIVER_OK.
const DRIVER: u8 = 3;
const FEATURES_OK: u8 = 8;
const DRIVER_OK: u8 = 4;
/// Of the upper half of the features.
const VERSION_1: u32 = 1;

/// Requests (5.2.6).
const READ: u32 = 0;
const WRITE: u32 = 1;
/// Descriptor flags: there is a next one, the device writes.
const NEXT: u16 = 1;
const DEVICE_WRITES: u16 = 2;

/// Where the parts of the queue and of a request are in memory.
const DESCRIPTORS: usize = 0;
const AVAILABLE: usize = PAGE;
const USED: usize = 2 * PAGE;
const HEADER: usize = 3 * PAGE;
const RESULT: usize = HEADER + 16;
const DATA: usize = 4 * PAGE;
const DEPTH: u16 = 16;

/// Where the data is on the disk.
const SECTOR: u64 = 8;

/// Milliseconds in which nothing may be written.
const WATCH: u64 = 100;

/// Why the disk is not driven on.
enum End {
    /// It is gone.
    Gone,
    /// Something is wrong.
    Failed(&'static str, u64, u64),
}

/// Takes the disk each time it comes.
pub fn main(platform: &'static Platform) {
    let Some(bridge) = platform.host_bridge else {
        return println!("disk: FAILED: no host bridge");
    };
    let memory = nvme::set_aside(owner::PAGES);
    let below = open_port(&bridge);
    println!("disk: ready");
    for round in 1_u64.. {
        let function = loop {
            let mut places = (0..256).chain(0x100..0x108);
            let found = places.find_map(|requester| {
                let function = Function::new(&bridge, requester);
                (function.id() == ID).then_some(function)
            });
            if let Some(function) = found {
                break function;
            }
            timer::sleep(10);
        };
        let registers = match function.requester {
            0x100.. => below,
            _ => pci::first_fit(&bridge, BAR_SIZE),
        };
        let disk = Disk {
            bridge,
            function,
            registers,
            memory,
            sent: 0,
        };
        let end = disk.drive(round).and_then(|()| watch(&registers, &memory));
        if let Err(End::Failed(what, found, expected)) = end {
            return println!("disk: FAILED: {what} is {found:#x}, not {expected:#x}");
        }
        println!("disk: round {round} over");
    }
}

/// Lets the first root port lead to bus 1, and returns where a BAR can be there.
fn open_port(bridge: &HostBridge) -> Window {
    const MEBIBYTE: usize = 1 << 20;
    let window = pci::first_fit(bridge, 2 * MEBIBYTE).part(MEBIBYTE, BAR_SIZE);
    let is_port = |function: &Function| function.config.read8(0x0e) & 0x7f == 1;
    if let Some(port) = Function::all(bridge).find(is_port) {
        let [base, _] = pci::halves(window.base() as u64 >> 16);
        port.config.write32(0x18, 0x0001_0100);
        port.config.write32(0x20, base << 16 | base);
        port.enable();
    }
    window
}

/// Looks at the memory that the disk knew of, from when a key is typed: the device model has let go.
fn watch(registers: &Window, memory: &Window) -> Result<(), End> {
    same(
        "a register of nobody's",
        registers.read32(0),
        u32::MAX.into(),
    )?;
    console::wait_for_key();
    owner::silence(memory);
    timer::sleep(WATCH);
    match owner::first_change(memory) {
        None => Ok(()),
        Some(found) => Err(End::Failed("memory", found, owner::QUIET)),
    }
}

fn same(what: &'static str, found: impl Into<u64>, expected: u64) -> Result<(), End> {
    match found.into() {
        found if found == expected => Ok(()),
        found => Err(End::Failed(what, found, expected)),
    }
}

/// The disk, while this domain has it.
struct Disk {
    bridge: HostBridge,
    function: Function,
    registers: Window,
    memory: Window,
    /// How many requests were sent.
    sent: u16,
}

impl Disk {
    /// Sets the disk up, finds what was written to it before, writes something else, and reads until it is
    /// gone: that is no error.
    fn drive(mut self, round: u64) -> Result<(), End> {
        match self.try_drive(round) {
            Err(End::Gone) => Ok(()),
            other => other,
        }
    }

    fn try_drive(&mut self, round: u64) -> Result<(), End> {
        self.check_device()?;
        let config = self.function.config;
        same("Command", config.read16(0x04), 0)?;
        same("BAR0", config.read32(0x10), 0b100)?;
        same("BAR1", config.read32(0x14), 0)?;
        self.function.place(0, self.registers.base());
        self.function.enable();
        self.look()?;
        same("device status", self.registers.read8(STATUS), 0)?;
        self.start();
        self.request(READ)?;
        self.check_data(round - 1)?;
        for (offset, word) in (0..PAGE).step_by(8).zip(round << 32..) {
            self.memory.write64(DATA + offset, word);
        }
        self.request(WRITE)?;
        let slot = Sbdf::from_rid(0, self.function.requester);
        println!("disk: round {round} ok at {slot}");
        loop {
            self.request(READ)?;
            self.check_data(round)?;
        }
    }

    /// Its device has a function 0, which says whether there are others.
    fn check_device(&self) -> Result<(), End> {
        let first = self.function.requester & !7;
        let at = |function| Function::new(&self.bridge, first + function);
        let others = (1..8).any(|function| at(function).id() != u32::MAX);
        let multi = at(0).config.read8(0x0e) & 0x80;
        self.look()?;
        same("the multi-function bit", multi, u64::from(others) << 7)
    }

    fn check_data(&self, round: u64) -> Result<(), End> {
        for (offset, word) in (0..PAGE).step_by(8).zip(round << 32..) {
            let expected = if round == 0 { 0 } else { word };
            let found = self.memory.read64(DATA + offset);
            same("what was read", found, expected)?;
        }
        Ok(())
    }

    fn start(&self) {
        for offset in (0..DATA).step_by(8) {
            self.memory.write64(offset, 0);
        }
        let registers = &self.registers;
        registers.write8(STATUS, DRIVER);
        registers.write32(DRIVER_FEATURE_SELECT, 1);
        registers.write32(DRIVER_FEATURE, VERSION_1);
        registers.write8(STATUS, DRIVER | FEATURES_OK);
        registers.write16(QUEUE_SELECT, 0);
        registers.write16(QUEUE_SIZE, DEPTH);
        let parts = [
            (QUEUE_DESC, DESCRIPTORS),
            (QUEUE_DRIVER, AVAILABLE),
            (QUEUE_DEVICE, USED),
        ];
        for (register, part) in parts {
            let [low, high] = pci::halves((self.memory.base() + part) as u64);
            registers.write32(register, low);
            registers.write32(register + 4, high);
        }
        registers.write16(QUEUE_ENABLE, 1);
        registers.write8(STATUS, DRIVER | FEATURES_OK | DRIVER_OK);
    }

    /// Sends a request for a page of data, and waits until it is done.
    fn request(&mut self, kind: u32) -> Result<(), End> {
        let memory = &self.memory;
        memory.write32(HEADER, kind);
        memory.write64(HEADER + 8, SECTOR);
        memory.write8(RESULT, 0xff);
        let data = if kind == READ { DEVICE_WRITES } else { 0 };
        let chain = [
            (HEADER, 16, NEXT),
            (DATA, 0x1000, NEXT | data),
            (RESULT, 1, DEVICE_WRITES),
        ];
        for (index, (part, bytes, flags)) in (0_u16..).zip(chain) {
            let entry = memory.part(DESCRIPTORS + 16 * usize::from(index), 16);
            entry.write64(0, (memory.base() + part) as u64);
            entry.write32(8, bytes);
            entry.write16(12, flags);
            entry.write16(14, index + 1);
        }
        memory.write16(AVAILABLE + 4 + 2 * usize::from(self.sent % DEPTH), 0);
        cpu::barrier();
        self.sent = self.sent.wrapping_add(1);
        memory.write16(AVAILABLE + 2, self.sent);
        cpu::barrier();
        self.registers.write16(NOTIFY, 0);
        while memory.read16(USED + 2) != self.sent {
            self.look()?;
        }
        cpu::barrier();
        same("a request's status", memory.read8(RESULT), 0)
    }

    /// Says whether the disk has gone.
    fn look(&self) -> Result<(), End> {
        if self.function.id() == ID {
            Ok(())
        } else {
            Err(End::Gone)
        }
    }
}
