//! Drives an NVMe whenever this domain has one, and notices what another owner left behind.
//!
//! The device comes and goes (`control`). Each time it comes, its registers have to be those of a device
//! that nobody has used; a pattern is written to it and read back; and it is kept busy until it is gone.
//! Between, none of the memory that it was told of may change. The same program in two domains has that
//! memory at the same addresses, so what one told the device would hit the other.
//!
//! NVM Express Base Specification 1.4.

use alloc::alloc::{Layout, alloc};

use runtime::mmio::Window;
use runtime::platform::{HostBridge, Platform};
use runtime::{cpu, println, timer};

use crate::pci::{self, Function};

/// Device ID and vendor ID of QEMU's.
const ID: u32 = 0x0010_1b36;
const BAR_SIZE: usize = 0x4000;
/// Its MSI-X table in BAR0, and the entries of it.
const TABLE: usize = 0x2000;
const VECTORS: usize = 65;

/// Registers (3.1).
const INTMS: usize = 0x0c;
const CC: usize = 0x14;
const CSTS: usize = 0x1c;
const AQA: usize = 0x24;
const ASQ: usize = 0x28;
const ACQ: usize = 0x30;
const DOORBELLS: usize = 0x1000;
/// Enable, 64-byte submissions, 16-byte completions.
const ENABLED: u32 = 4 << 20 | 6 << 16 | 1;
const READY: u32 = 1;

/// Commands: of the admin queue, of others.
const CREATE_SUBMISSION: u32 = 0x01;
const CREATE_COMPLETION: u32 = 0x05;
const IDENTIFY: u32 = 0x06;
const WRITE: u32 = 0x01;
const READ: u32 = 0x02;

const PAGE: usize = 0x1000;
/// Entries of each queue.
const DEPTH: u32 = 16;
const PAGES: usize = 7;
const IDENTITY: usize = 4 * PAGE;
const OUT: usize = 5 * PAGE;
const IN: usize = 6 * PAGE;

/// What memory holds while no device is to know of it.
const QUIET: u64 = 0x7175_6965_7421_2121;
/// Milliseconds that memory is watched after the device has gone.
const WATCH: u64 = 300;

/// Why the device is not driven on.
enum End {
    /// It is gone.
    Gone,
    /// Something is wrong.
    Failed(&'static str, u64, u64),
}

/// Takes the device each time it comes.
pub fn main(platform: &'static Platform) {
    let Some(bridge) = platform.host_bridge else {
        return println!("owner: FAILED: no host bridge");
    };
    let memory = set_aside();
    silence(&memory);
    println!("owner: ready");
    for round in 1_u64.. {
        let function = loop {
            let found = Function::all(&bridge).find(|function| function.id() == ID);
            if let Some(function) = found {
                break function;
            }
            timer::sleep(10);
        };
        let end = Owner::take(function, &bridge, memory).and_then(|owner| owner.drive(round));
        if let Err(End::Failed(what, found, expected)) = end {
            return println!("owner: FAILED: {what} is {found:#x}, not {expected:#x}");
        }
        let registers = pci::first_fit(&bridge, BAR_SIZE);
        let left = registers.read32(CC);
        silence(&memory);
        timer::sleep(WATCH);
        if let Err(End::Failed(what, found, expected)) = quiet(&memory)
            .and_then(|()| same("a register of nobody's", left.into(), u32::MAX.into()))
        {
            return println!("owner: FAILED: {what} is {found:#x}, not {expected:#x}");
        }
        println!("owner: round {round} over");
    }
}

/// Returns memory that only the device and this program know of.
fn set_aside() -> Window {
    let bytes = PAGES * PAGE;
    let layout = Layout::from_size_align(bytes, PAGE).unwrap_or(Layout::new::<u128>());
    // SAFETY: the layout has a size.
    let base = unsafe { alloc(layout) };
    assert!(!base.is_null() && layout.size() == bytes, "no memory");
    // SAFETY: just allocated, and never given back.
    unsafe { Window::new(base as usize, bytes) }
}

fn silence(memory: &Window) {
    for offset in (0..memory.len()).step_by(8) {
        memory.write64(offset, QUIET);
    }
    cpu::barrier();
}

fn quiet(memory: &Window) -> Result<(), End> {
    for offset in (0..memory.len()).step_by(8) {
        same("memory that nobody may know", memory.read64(offset), QUIET)?;
    }
    Ok(())
}

fn same(what: &'static str, found: u64, expected: u64) -> Result<(), End> {
    if found == expected {
        Ok(())
    } else {
        Err(End::Failed(what, found, expected))
    }
}

/// The device, while this domain has it.
struct Owner {
    function: Function,
    registers: Window,
    memory: Window,
    /// Commands sent to the admin queue and to the other one.
    sent: [u32; 2],
}

impl Owner {
    /// Looks for what another one left, and sets the device up.
    fn take(function: Function, bridge: &HostBridge, memory: Window) -> Result<Self, End> {
        quiet(&memory)?;
        let config = function.config;
        same("Command", config.read16(0x04).into(), 0)?;
        same("BAR0", config.read32(0x10).into(), 0b100)?;
        same("BAR1", config.read32(0x14).into(), 0)?;
        same("Interrupt Line", config.read8(0x3c).into(), 0)?;
        let registers = pci::first_fit(bridge, BAR_SIZE);
        function.place(0, registers.base());
        function.enable();
        for (what, offset) in [("INTMS", INTMS), ("CC", CC), ("CSTS", CSTS), ("AQA", AQA)] {
            same(what, registers.read32(offset).into(), 0)?;
        }
        same("ASQ", registers.read64(ASQ), 0)?;
        same("ACQ", registers.read64(ACQ), 0)?;
        for vector in 0..VECTORS {
            let entry = registers.part(TABLE + 16 * vector, 16);
            same("an MSI-X address", entry.read64(0), 0)?;
            same("MSI-X data", entry.read32(8).into(), 0)?;
            same("an MSI-X mask", entry.read32(12).into(), 1)?;
        }
        // What the next owner must not find.
        registers.part(TABLE, 16).write32(8, 0x5ec2_e7ed);
        Ok(Self {
            function,
            registers,
            memory,
            sent: [0; 2],
        })
    }

    fn drive(mut self, round: u64) -> Result<(), End> {
        for offset in (0..4 * PAGE).step_by(8) {
            self.memory.write64(offset, 0);
        }
        let queues = [0, 1, 2, 3].map(|page| (self.memory.base() + page * PAGE) as u64);
        let last = DEPTH - 1;
        self.registers.write32(AQA, last << 16 | last);
        self.registers.write64(ASQ, queues[0]);
        self.registers.write64(ACQ, queues[1]);
        cpu::barrier();
        self.registers.write32(CC, ENABLED);
        while self.registers.read32(CSTS) != READY {
            self.look()?;
        }
        self.run(0, IDENTIFY, IDENTITY, [1, 0, 0])?;
        same("the vendor", self.memory.read64(IDENTITY) & 0xffff, 0x1b36)?;
        let size = last << 16 | 1;
        self.run(0, CREATE_COMPLETION, 3 * PAGE, [size, 1, 0])?;
        self.run(0, CREATE_SUBMISSION, 2 * PAGE, [size, 1 << 16 | 1, 0])?;
        let words = (0..PAGE).step_by(8);
        for (offset, word) in words.clone().zip(round << 32..) {
            self.memory.write64(OUT + offset, word);
        }
        // Eight blocks of 512 bytes.
        self.run(1, WRITE, OUT, [8, 0, 7])?;
        self.run(1, READ, IN, [8, 0, 7])?;
        for (offset, word) in words.zip(round << 32..) {
            same("what was read back", self.memory.read64(IN + offset), word)?;
        }
        println!("owner: round {round} ok");
        loop {
            self.run(1, READ, IN, [8, 0, 7])?;
        }
    }

    /// Sends a command and waits until it is done.
    fn run(&mut self, queue: u32, command: u32, data: usize, words: [u32; 3]) -> Result<(), End> {
        let index = queue as usize;
        let sent = self.sent[index];
        let at = (sent % DEPTH) as usize;
        let entry = self.memory.part(2 * index * PAGE + at * 64, 64);
        for offset in (0..64).step_by(8) {
            entry.write64(offset, 0);
        }
        entry.write32(0, command);
        entry.write32(4, queue);
        entry.write64(24, (self.memory.base() + data) as u64);
        for (offset, word) in (40..).step_by(4).zip(words) {
            entry.write32(offset, word);
        }
        let done = self.memory.part((2 * index + 1) * PAGE + at * 16, 16);
        self.sent[index] = sent + 1;
        let next = (sent + 1) % DEPTH;
        cpu::barrier();
        self.registers.write32(DOORBELLS + 8 * index, next);
        // The phase changes each time around.
        let phase = u32::from((sent / DEPTH).is_multiple_of(2)) << 16;
        while done.read32(12) & 1 << 16 != phase {
            self.look()?;
        }
        cpu::barrier();
        same("a command's status", u64::from(done.read32(12) >> 17), 0)?;
        self.registers.write32(DOORBELLS + 8 * index + 4, next);
        Ok(())
    }

    /// Says whether the device has gone.
    fn look(&self) -> Result<(), End> {
        if self.function.id() == ID {
            Ok(())
        } else {
            Err(End::Gone)
        }
    }
}
