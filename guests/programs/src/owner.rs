//! Drives an NVMe whenever this domain has one, and notices what another owner left behind.
//!
//! The device comes and goes (`control`). Each time it comes, its registers have to be those of a device
//! that nobody has used; a pattern is written to it and read back; and it is kept busy until it is gone.
//! From when a key is typed, which says that it has been reset, none of the memory that it was told of may
//! change until it comes again. The same program in two domains has that memory at the same addresses, so
//! what one told the device would hit the other.
//!
//! Before the reset the device may finish what it was doing. An SMMU has nothing under way when it is through
//! with CMD_SYNC (SMMUv3, IHI 0070, 4.7.3), but QEMU translates a read when it begins, and stores what was
//! read until the reset.

use runtime::mmio::Window;
use runtime::platform::{HostBridge, Platform};
use runtime::{console, cpu, println, timer};

use crate::nvme::{self, ADMIN, IDENTIFY, Nvme, OTHER, PAGE, READ, WRITE, reg};
use crate::pci::{self, Function};

pub(crate) const PAGES: usize = nvme::QUEUE_PAGES + 3;
const IDENTITY: usize = 4 * PAGE;
const OUT: usize = 5 * PAGE;
const IN: usize = 6 * PAGE;

/// What memory holds while no device is to know of it.
pub(crate) const QUIET: u64 = 0x7175_6965_7421_2121;
/// Milliseconds that memory is watched.
const WATCH: u64 = 300;

/// Why the device is not driven on.
enum End {
    /// It is gone.
    Gone,
    /// Something is wrong.
    Failed(&'static str, u64, u64),
}

impl From<nvme::Error> for End {
    fn from(error: nvme::Error) -> Self {
        match error {
            nvme::Error::Gone => Self::Gone,
            nvme::Error::Late => Self::Failed("answers to a command", 0, 1),
            nvme::Error::Fatal => Self::Failed("a fatal status", 1, 0),
            nvme::Error::Status(status) => Self::Failed("a command's status", status.into(), 0),
        }
    }
}

/// Takes the device each time it comes.
pub fn main(platform: &'static Platform) {
    let Some(bridge) = platform.host_bridge else {
        return println!("owner: FAILED: no host bridge");
    };
    let memory = nvme::set_aside(PAGES);
    silence(&memory);
    println!("owner: ready");
    for round in 1_u64.. {
        let function = loop {
            let found = Function::all(&bridge).find(|function| function.id() == nvme::ID);
            if let Some(function) = found {
                break function;
            }
            timer::sleep(10);
        };
        let end = Owner::take(function, &bridge, memory).and_then(|owner| owner.drive(round));
        if let Err(End::Failed(what, found, expected)) = end {
            return println!("owner: FAILED: {what} is {found:#x}, not {expected:#x}");
        }
        let registers = pci::first_fit(&bridge, nvme::BAR_SIZE);
        let left = registers.read32(reg::CC);
        console::wait_for_key();
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

pub(crate) fn silence(memory: &Window) {
    for offset in (0..memory.len()).step_by(8) {
        memory.write64(offset, QUIET);
    }
    cpu::barrier();
}

/// Returns the first word that is not quiet.
pub(crate) fn first_change(memory: &Window) -> Option<u64> {
    let mut words = (0..memory.len())
        .step_by(8)
        .map(|offset| memory.read64(offset));
    words.find(|word| *word != QUIET)
}

fn quiet(memory: &Window) -> Result<(), End> {
    let found = first_change(memory).unwrap_or(QUIET);
    same("memory that nobody may know", found, QUIET)
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
    nvme: Nvme,
    memory: Window,
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
        let registers = pci::first_fit(bridge, nvme::BAR_SIZE);
        function.place(0, registers.base());
        function.enable();
        for (what, offset) in [
            ("INTMS", reg::INTMS),
            ("CC", reg::CC),
            ("CSTS", reg::CSTS),
            ("AQA", reg::AQA),
        ] {
            same(what, registers.read32(offset).into(), 0)?;
        }
        same("ASQ", registers.read64(reg::ASQ), 0)?;
        same("ACQ", registers.read64(reg::ACQ), 0)?;
        for vector in 0..nvme::VECTORS {
            let entry = registers.part(nvme::TABLE + 16 * vector, 16);
            same("an MSI-X address", entry.read64(0), 0)?;
            same("MSI-X data", entry.read32(8).into(), 0)?;
            same("an MSI-X mask", entry.read32(12).into(), 1)?;
        }
        // What the next owner must not find.
        registers.part(nvme::TABLE, 16).write32(8, 0x5ec2_e7ed);
        let queues = memory.part(0, nvme::QUEUE_PAGES * PAGE);
        Ok(Self {
            nvme: Nvme::new(function, registers, queues),
            memory,
        })
    }

    fn drive(mut self, round: u64) -> Result<(), End> {
        self.nvme.start()?;
        self.run(ADMIN, IDENTIFY, IDENTITY, [1, 0, 0])?;
        same("the vendor", self.memory.read64(IDENTITY) & 0xffff, 0x1b36)?;
        let words = (0..PAGE).step_by(8);
        for (offset, word) in words.clone().zip(round << 32..) {
            self.memory.write64(OUT + offset, word);
        }
        // Eight blocks of 512 bytes.
        self.run(OTHER, WRITE, OUT, [8, 0, 7])?;
        self.run(OTHER, READ, IN, [8, 0, 7])?;
        for (offset, word) in words.zip(round << 32..) {
            same("what was read back", self.memory.read64(IN + offset), word)?;
        }
        println!("owner: round {round} ok");
        loop {
            self.run(OTHER, READ, IN, [8, 0, 7])?;
        }
    }

    fn run(&mut self, queue: usize, command: u32, data: usize, words: [u32; 3]) -> Result<(), End> {
        let data = (self.memory.base() + data) as u64;
        Ok(self.nvme.run(queue, command, data, words)?)
    }
}
