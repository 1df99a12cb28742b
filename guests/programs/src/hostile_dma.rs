//! A guest that aims the DMA of its functions at everything that is not its own.
//!
//! First an NVMe does so on purpose: its completions, its submissions and its data are put all over the
//! machine's memory and devices, until it is cut off; a network controller's packets, too. Then config
//! space, BARs and MSI-X tables of all functions are written at random, while they master the bus; and then
//! by two vCPUs at once. Between, the NVMe is reset, and has to reach this domain's memory as it should.
//!
//! What is tried follows from a seed, `seed=N` on the command line; with `aim` nothing is tried but the
//! first. That nothing came of it the neighbours say, and the hypervisor's log.

use alloc::vec;
use alloc::vec::Vec;
use core::hint::black_box;
use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};

use runtime::mmio::{Width, Window};
use runtime::platform::{self, HostBridge, Platform};
use runtime::{cpu, exception, println, smccc, timer};
use spin::Once;

use crate::nvme::{self, ADMIN, GET_LOG_PAGE, IDENTIFY, Nvme, OTHER, PAGE, READ, WRITE, reg};
use crate::pci::{self, Function};
use crate::random::Random;

/// The machine's memory, as the system file has it.
const MACHINE: Range<u64> = 0x4000_0000..0x6000_0000;
/// How far apart the places are that completions are aimed at: less than a neighbour watches.
const STEP: usize = 0x20_0000;
/// What else there is, by physical address and by this domain's: flash, GIC and ITS, the page that MSIs are
/// written to, UART, SMMU, windows, config space, and addresses that are too large.
const ELSEWHERE: [u64; 16] = [
    0,
    0x0800_0000,
    0x0808_0000,
    DOORBELL,
    0x080a_0000,
    0x0900_0000,
    0x0905_0000,
    0x0f00_1000,
    0x1000_0000,
    0x3f00_0000,
    0x40_1000_0000,
    0x50_0000_0000,
    0x70_0000_0000,
    0x80_0000_0000,
    0xfff_ffff_f000,
    0xffff_ffff_ffff_f000,
];
/// The physical ITS's page, in the tables of this domain's functions only: it can be written, by what sends
/// messages.
const DOORBELL: u64 = 0x0f00_0000;

/// How long something that must come is waited for, in milliseconds.
const LONG: u64 = 30_000;

const FIRST_SEED: u64 = 0x686f_7374_696c_6521;

/// Tries everything and powers off.
pub fn main(platform: &'static Platform) {
    let argument = |name: &str| {
        let mut words = platform.arguments().split_ascii_whitespace();
        words.find_map(|word| word.strip_prefix(name))
    };
    let seed = argument("seed=").and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or(FIRST_SEED);
    println!("hostile-dma: seed={seed}");
    exception::expect_serrors();
    let Some(bridge) = platform.host_bridge else {
        return println!("hostile-dma: FAILED: no host bridge");
    };
    let witness = black_box(vec![0x5555_aaaa_5555_aaaa_u64; 0x1_0000]);
    let targets = TARGETS.call_once(|| Target::all(&bridge));
    let done = Hostile::new(targets, seed).and_then(|mut hostile| {
        if argument("aim").is_some() {
            hostile.aim();
        } else {
            hostile.works()?;
            hostile.aim();
            hostile.works()?;
            hostile.send()?;
            hostile.transfer()?;
            hostile.storm()?;
            hostile.hammer()?;
            hostile.race()?;
        }
        Ok(())
    });
    if let Err(why) = done {
        return println!("hostile-dma: FAILED: {why}");
    }
    if black_box(&witness)
        .iter()
        .any(|&word| word != 0x5555_aaaa_5555_aaaa)
    {
        return println!("hostile-dma: FAILED: this domain's memory has changed");
    }
    println!("hostile-dma: survived");
}

/// Header (PCI Express Base Specification, 7.5.1).
const COMMAND: usize = 0x04;
const HEADER_TYPE: usize = 0x0e;
const BAR0: usize = 0x10;
const BUS_NUMBERS: usize = 0x18;
const MEMORY_BASE: usize = 0x20;
const ROM: usize = 0x30;
const BRIDGE_CONTROL: usize = 0x3e;
const SECONDARY_BUS_RESET: u16 = 1 << 6;
/// Capabilities: power management, MSI, PCI Express, MSI-X.
const POWER: u8 = 0x01;
const MSI: u8 = 0x05;
const EXPRESS: u8 = 0x10;
const MSIX: u8 = 0x11;
/// Device Capabilities, and Control, of PCI Express: function level reset (7.5.3.3, 7.5.3.4).
const DEVICE_CAPABILITIES: usize = 4;
const HAS_FUNCTION_RESET: u32 = 1 << 28;
const DEVICE_CONTROL: usize = 8;
const FUNCTION_RESET: u16 = 1 << 15;
const LINK_CONTROL: usize = 0x10;

/// Registers of a port.
const PORT_PLACES: [usize; 10] = [
    COMMAND,
    BAR0,
    BUS_NUMBERS,
    MEMORY_BASE,
    MEMORY_BASE + 2,
    MEMORY_BASE + 4,
    MEMORY_BASE + 8,
    MEMORY_BASE + 12,
    BRIDGE_CONTROL,
    0x3c,
];

static TARGETS: Once<Vec<Target>> = Once::new();

/// A function that is written to, with the port that it is below, if it is.
struct Target {
    function: Function,
    /// The port, and the number of its bus.
    port: Option<(Function, u16)>,
    /// Which BARs it has, and where they are when all is well.
    bars: Vec<(usize, Window)>,
    /// Where it has registers that matter.
    places: Vec<usize>,
    /// Where the capability is that it can be reset by.
    reset: Option<usize>,
    /// Message Control of MSI-X, and its table in a BAR.
    message_control: Option<usize>,
    table: Option<Window>,
}

impl Target {
    /// Numbers the buses and places all BARs.
    fn all(bridge: &HostBridge) -> Vec<Self> {
        let mut targets = Vec::new();
        let (mut number, mut next) = (0, bridge.memory32.base());
        for function in Function::all(bridge) {
            let kind = function.config.read8(HEADER_TYPE) & 0x7f;
            if kind == 1 {
                number += 1;
                open(&function, number);
                let below = Function::new(bridge, number << 8);
                if below.id() != u32::MAX {
                    targets.push(Self::new(
                        below,
                        Some((function, number)),
                        bridge,
                        &mut next,
                    ));
                }
            } else if function.requester != 0 {
                targets.push(Self::new(function, None, bridge, &mut next));
            }
        }
        targets
    }

    fn new(
        function: Function,
        port: Option<(Function, u16)>,
        bridge: &HostBridge,
        next: &mut usize,
    ) -> Self {
        let (mut bars, mut places) = (Vec::new(), vec![COMMAND, ROM]);
        let mut index = 0;
        while index < 6 {
            let size = function.place(index, 0);
            let wide = function.config.read32(BAR0 + 4 * index) & 0b100 != 0;
            places.push(BAR0 + 4 * index);
            if (16..=0x100_0000).contains(&size) {
                *next = next.next_multiple_of(size.max(PAGE));
                let window = bridge.memory32.part(*next - bridge.memory32.base(), size);
                bars.push((index, window));
                *next += size;
            }
            index += if wide { 2 } else { 1 };
        }
        for id in [POWER, MSI, EXPRESS, MSIX] {
            if let Some(at) = function.capability(id) {
                places.extend((at..at + 0x18).step_by(2));
            }
        }
        places.extend((0x100..0x108).step_by(4));
        let config = function.config;
        let msix = function.capability(MSIX);
        // Message Control, and Table Offset and BIR (7.7.2.2, 7.7.2.3).
        let table = msix.and_then(|at| {
            let place = config.read32(at + 4) as usize;
            let vectors = usize::from(config.read16(at + 2) & 0x7ff) + 1;
            let (_, bar) = bars.iter().find(|(index, _)| *index == place & 7)?;
            Some(bar.part(place & !7, 16 * vectors))
        });
        let express = function.capability(EXPRESS);
        let resets = |at: &usize| config.read32(at + DEVICE_CAPABILITIES) & HAS_FUNCTION_RESET != 0;
        Self {
            reset: express.filter(resets),
            message_control: msix.map(|at| at + 2),
            table,
            function,
            port,
            bars,
            places,
        }
    }

    /// Returns the bytes of its config space, or its port's, that have a bit which resets it, and the bit.
    fn resets(&self, of_port: bool) -> impl Iterator<Item = (usize, u64)> {
        let function = self.reset.map(|at| (at + DEVICE_CONTROL + 1, 0x80));
        let port = Some((BRIDGE_CONTROL, u64::from(SECONDARY_BUS_RESET)));
        if of_port { port } else { function }.into_iter()
    }

    /// Lets the function do everything, where it is.
    fn turn_on(&self) {
        let config = &self.function.config;
        config.write16(COMMAND, pci::MEMORY_AND_MASTER);
        if let Some(at) = self.message_control {
            config.write16(at, 0x8000);
            config.write16(at, 0);
        }
        WRITTEN.fetch_add(3, Ordering::Relaxed);
    }

    /// Resets the function, whatever has become of it, and has it decode its BARs and master the bus.
    fn revive(&self) {
        if let Some((port, number)) = &self.port {
            open(port, *number);
        }
        wake(&self.function);
        let config = &self.function.config;
        match (self.reset, &self.port) {
            (Some(at), _) => config.write16(at + DEVICE_CONTROL, FUNCTION_RESET),
            (None, Some((port, _))) => {
                for control in [SECONDARY_BUS_RESET, 0] {
                    port.config.write16(BRIDGE_CONTROL, control);
                }
            }
            (None, None) => {}
        }
        for (index, window) in &self.bars {
            self.function.place(*index, window.base());
        }
        self.function.enable();
    }
}

/// Lets everything through a port.
fn open(port: &Function, number: u16) {
    wake(port);
    if let Some(at) = port.capability(EXPRESS) {
        port.config.write16(at + LINK_CONTROL, 0);
    }
    port.config.write16(BRIDGE_CONTROL, 0);
    let number = u32::from(number);
    port.config.write32(BUS_NUMBERS, number << 16 | number << 8);
    port.config.write32(MEMORY_BASE, 0x3ee0_1000);
    // Nothing that can be prefetched.
    port.config.write32(MEMORY_BASE + 4, 0x0000_fff0);
    port.config.write16(COMMAND, pci::MEMORY_AND_MASTER);
}

/// Turns a function's power on.
fn wake(function: &Function) {
    if let Some(at) = function.capability(POWER) {
        function.config.write16(at + 4, 0);
    }
}

/// What went on so far.
struct Hostile {
    targets: &'static [Target],
    random: Random,
    memory: Window,
    nvme: Nvme,
    /// The NVMe's place among the targets.
    index: usize,
}

/// The log of errors, 64 bytes of it.
const LOG: u32 = 15 << 16 | 1;
/// Pages beyond those of the queues.
const OUT: usize = nvme::QUEUE_PAGES * PAGE;
const IN: usize = OUT + PAGE;
const PAGES: usize = nvme::QUEUE_PAGES + 2;

impl Hostile {
    fn new(targets: &'static [Target], seed: u64) -> Result<Self, &'static str> {
        let is_nvme = |target: &Target| target.function.id() == nvme::ID;
        let index = targets.iter().position(is_nvme).ok_or("no NVMe")?;
        let target = &targets[index];
        let (_, registers) = target.bars.first().ok_or("no BAR")?;
        let memory = nvme::set_aside(PAGES);
        let queues = memory.part(0, OUT);
        println!("hostile-dma: {} functions", targets.len());
        let nvme = Nvme::new(target.function, *registers, queues);
        let random = Random::new(seed);
        targets.iter().for_each(Target::revive);
        Ok(Self {
            targets,
            random,
            memory,
            nvme,
            index,
        })
    }

    /// Resets the NVMe, and fails unless it reaches this domain's memory.
    fn works(&mut self) -> Result<(), &'static str> {
        self.targets[self.index].revive();
        self.nvme.patience = LONG;
        self.reaches().map_err(|error| {
            println!("hostile-dma: {error:?}");
            "the NVMe does not work"
        })
    }

    fn reaches(&mut self) -> Result<(), nvme::Error> {
        let (out, into) = (self.memory.part(OUT, PAGE), self.memory.part(IN, PAGE));
        let mut pattern = self.random.clone();
        for offset in (0..PAGE).step_by(8) {
            out.write64(offset, pattern.next());
            into.write64(offset, 0);
        }
        self.nvme.start()?;
        let logged = into.base() as u64;
        self.nvme.run(ADMIN, GET_LOG_PAGE, logged, [LOG, 0, 0])?;
        self.nvme.run(OTHER, WRITE, out.base() as u64, [0, 0, 7])?;
        self.nvme.run(OTHER, READ, into.base() as u64, [0, 0, 7])?;
        let differs = |offset: usize| out.read64(offset) != into.read64(offset);
        if (0..PAGE).step_by(8).any(differs) {
            return Err(nvme::Error::Status(u32::MAX));
        }
        Ok(())
    }
}

/// Ways in which the NVMe is aimed.
impl Hostile {
    /// Has the NVMe write completions to, and read submissions from, a page in every [`STEP`] of the
    /// machine's memory, and elsewhere.
    fn aim(&mut self) {
        let own = self.memory.base() as u64;
        let (mut stopped, mut posted, mut lost) = (0, 0, 0);
        let mut count = |end: Option<bool>| match end {
            Some(true) => posted += 1,
            Some(false) => stopped += 1,
            None => lost += 1,
        };
        let memory = platform::get().memory;
        let begin = (memory.base + memory.size).max(MACHINE.start);
        for base in (begin..MACHINE.end).step_by(STEP) {
            let page = base + (self.random.below(STEP) & !(PAGE - 1)) as u64;
            count(self.fetch_and_complete(own, page));
            if self.random.below(4) == 0 {
                count(self.fetch_and_complete(page, own + PAGE as u64));
            }
        }
        for page in ELSEWHERE {
            count(self.fetch_and_complete(own, page));
            count(self.fetch_and_complete(page, own + PAGE as u64));
        }
        println!(
            "hostile-dma: aimed: {stopped} stopped, {posted} completed, {lost} without an end"
        );
    }

    /// Has the network controller read its ring of packets to send from each of the places.
    fn send(&mut self) -> Result<(), &'static str> {
        let is_network = |target: &&Target| target.function.id() == E1000E;
        let target = self.targets.iter().find(is_network);
        let target = target.ok_or("no network controller")?;
        let (_, registers) = target.bars.first().ok_or("no BAR")?;
        for _ in 0..16 {
            let [low, high] = pci::halves(self.elsewhere() & !0xf);
            for (register, value) in [
                (TCTL, 0),
                (TDBAL, low),
                (TDBAH, high),
                (TDLEN, 0x80),
                (TDH, 0),
                (TCTL, TCTL_ENABLE),
                (TDT, 1),
            ] {
                registers.write32(register, value);
            }
        }
        println!("hostile-dma: sent nothing");
        Ok(())
    }

    /// Has the NVMe fetch commands and post completions. Returns whether it says that it has, or that it
    /// could not.
    fn fetch_and_complete(&mut self, submissions: u64, completions: u64) -> Option<bool> {
        /// No command.
        const OPCODE: u32 = 0xff;
        // The fifth is written to what takes MSIs.
        let commands = if completions == DOORBELL { 6 } else { 1 };
        let table = self.nvme.registers.part(nvme::TABLE, nvme::COMPLETION);
        self.nvme.function.enable_msix()?;
        // Vector 0 is masked, so that it becomes pending; the ITS has nothing for it.
        self.nvme.function.set_vector(&table, 0, MSI_TARGET, 0);
        table.write32(12, 1);
        self.nvme.enable(submissions, completions).ok()?;
        for _ in 0..commands {
            self.nvme.submit(ADMIN, OPCODE, 0, [0; 3]);
        }
        let registers = self.nvme.registers;
        let (mut is_fatal, mut is_pending) = (false, false);
        timer::wait_until(LONG, || {
            is_fatal = registers.read32(reg::CSTS) & nvme::FATAL != 0;
            is_pending = registers.read32(nvme::PENDING) & 1 != 0;
            is_fatal || is_pending
        });
        // Let it be sent.
        table.write32(12, 0);
        let _ = self.nvme.disable();
        (is_fatal || is_pending).then_some(is_pending)
    }

    /// Has the NVMe move data to and from what is not this domain's memory.
    fn transfer(&mut self) -> Result<(), &'static str> {
        const BLOCK: usize = 512;
        let into = self.memory.part(IN, PAGE);
        const TIMES: usize = 16;
        for _ in 0..TIMES {
            let to = self.elsewhere();
            is_told(self.nvme.run(ADMIN, GET_LOG_PAGE, to, [LOG, 0, 0]))?;
            // One block of the disk is zeros; then it is what the device could read.
            for offset in (0..PAGE).step_by(8) {
                into.write64(offset, 0);
            }
            let (own, from) = (into.base() as u64, self.elsewhere());
            is_told(self.nvme.run(OTHER, WRITE, own, [8, 0, 0]))?;
            is_told(self.nvme.run(OTHER, WRITE, from, [8, 0, 0]))?;
            is_told(self.nvme.run(OTHER, READ, own, [8, 0, 0]))?;
            let first = into.read8(0);
            let nothing = matches!(first, 0 | 0xff);
            if !nothing || (0..BLOCK).any(|offset| into.read8(offset) != first) {
                println!("hostile-dma: at {from:#x} is {:#x}", into.read64(0));
                return Err("the NVMe has read what is not this domain's");
            }
        }
        println!("hostile-dma: moved nothing by {TIMES} writes and {TIMES} reads");
        Ok(())
    }

    /// Returns an address that is not this domain's memory, with some bytes behind it in its page.
    fn elsewhere(&mut self) -> u64 {
        let page = match self.random.below(4) {
            0 => ELSEWHERE[self.random.below(ELSEWHERE.len())],
            _ => foreign(MACHINE.start + self.random.next() % (MACHINE.end - MACHINE.start)),
        };
        page & !(PAGE as u64 - 1) | (self.random.below(0xe00) & !3) as u64
    }

    /// Makes faults until the NVMe is cut off, and sees that only a reset helps.
    fn storm(&mut self) -> Result<(), &'static str> {
        // The first command that it cannot fetch makes it give up.
        self.nvme.minds_fatal = true;
        let to = MACHINE.end - STEP as u64;
        let end = timer::now() + timer::ticks(LONG);
        // Each is 4 KiB. Faults that the hypervisor comes too late for are lost.
        while !is_fatal(self.nvme.run(ADMIN, IDENTIFY, to, [1, 0, 0])) && timer::now() < end {}
        let config = self.nvme.function.config;
        for command in [pci::MEMORY_AND_MASTER, 0b010, 0] {
            config.write16(COMMAND, command);
            config.write16(COMMAND, pci::MEMORY_AND_MASTER);
            if !is_fatal(self.nvme.start()) {
                return Err("the NVMe works after a storm of faults");
            }
        }
        self.nvme.minds_fatal = false;
        println!("hostile-dma: cut off");
        self.works()?;
        println!("hostile-dma: works after a reset");
        Ok(())
    }

    /// Writes to config space, BARs and MSI-X tables at random.
    fn hammer(&mut self) -> Result<(), &'static str> {
        const ROUNDS: usize = 8;
        const WRITES: usize = 1000;
        for _ in 0..ROUNDS {
            self.targets.iter().for_each(Target::revive);
            let _ = self.nvme.start();
            for _ in 0..WRITES {
                meddle(self.targets, &mut self.random, 64);
                if self.random.below(16) == 0 {
                    self.command();
                }
            }
            self.works()?;
        }
        let writes = WRITTEN.load(Ordering::Relaxed);
        println!("hostile-dma: hammered: {writes} writes, and it works");
        Ok(())
    }

    /// Sends the NVMe a command at random.
    fn command(&mut self) {
        let [opcode, queue] = pci::halves(self.random.next() & 0x1_0000_00ff);
        let words = [(); 3].map(|()| pci::halves(self.random.interesting())[0]);
        let data = self.elsewhere();
        self.nvme.submit(queue as usize, opcode, data, words);
    }

    /// Does the same by two vCPUs at once.
    fn race(&mut self) -> Result<(), &'static str> {
        const RESETS: usize = 2;
        const WRITES: usize = 5000;
        let other = platform::get().cpus.get(1).copied().ok_or("no vCPU 1")?;
        let before = WRITTEN.load(Ordering::Relaxed);
        let [seed, _] = pci::halves(self.random.next());
        cpu::start(other, 1, meddle_on, seed as usize).map_err(|_| "vCPU 1 does not start")?;
        for _ in 0..RESETS {
            self.targets.iter().for_each(Target::revive);
        }
        PHASE.store(MEDDLE, Ordering::Release);
        for round in 0..WRITES {
            meddle(self.targets, &mut self.random, 64);
            if round % 1000 == 0 {
                self.targets.iter().for_each(Target::revive);
            }
        }
        PHASE.store(END, Ordering::Release);
        if !timer::wait_until(LONG, || smccc::affinity_info(other, 0) == 1) {
            return Err("vCPU 1 does not end");
        }
        self.works()?;
        let writes = WRITTEN.load(Ordering::Relaxed) - before;
        println!("hostile-dma: raced: {writes} writes, and it works");
        Ok(())
    }
}

/// Returns whether the device has given up.
fn is_fatal(result: Result<(), nvme::Error>) -> bool {
    matches!(result, Err(nvme::Error::Fatal))
}

/// Returns whether a command was answered, and fails if the device is gone.
fn is_told(result: Result<(), nvme::Error>) -> Result<bool, &'static str> {
    match result {
        Ok(()) => Ok(true),
        Err(nvme::Error::Status(_)) => Ok(false),
        Err(nvme::Error::Gone) => Err("the NVMe is gone"),
        Err(nvme::Error::Late | nvme::Error::Fatal) => Err("the NVMe does not answer"),
    }
}

/// Returns an address that is not this domain's memory.
fn foreign(address: u64) -> u64 {
    let memory = platform::get().memory;
    let end = memory.base + memory.size;
    if (memory.base..end).contains(&address) {
        address + memory.size
    } else {
        address
    }
}

/// What vCPU 1 does: turns functions on that are in a reset; writes at random; ends.
static PHASE: AtomicU64 = AtomicU64::new(TURN_ON);
const TURN_ON: u64 = 0;
const MEDDLE: u64 = 1;
const END: u64 = 2;

/// Config writes and BAR writes so far.
static WRITTEN: AtomicU64 = AtomicU64::new(0);

/// Gets in vCPU 0's way until [`END`].
fn meddle_on(seed: usize) {
    exception::expect_serrors();
    let mut random = Random::new(seed as u64);
    let Some(targets) = TARGETS.get() else { return };
    loop {
        match PHASE.load(Ordering::Acquire) {
            TURN_ON => targets.iter().for_each(Target::turn_on),
            MEDDLE => meddle(targets, &mut random, usize::MAX),
            _ => return,
        }
    }
}

/// Writes once to the config space of a function or of its port, and once to a BAR, or to the MSI-X table
/// in it. Resets, which take long, are asked for once in `resets` times only.
fn meddle(targets: &[Target], random: &mut Random, resets: usize) {
    let target = &targets[random.below(targets.len())];
    let port = target.port.filter(|_| random.below(4) == 0);
    let (config, offset) = match port {
        Some((port, _)) => (port.config, PORT_PLACES[random.below(PORT_PLACES.len())]),
        None => (
            target.function.config,
            target.places[random.below(target.places.len())],
        ),
    };
    let width = Width::ALL[random.below(4)];
    let offset = match random.below(8) {
        0 => random.below(0xff8),
        1 => offset + random.below(4),
        2 => offset & !(width.bytes() - 1),
        _ => offset,
    };
    let mut value = match random.below(4) {
        0 => random.interesting(),
        1 => target.bars[random.below(target.bars.len())].1.base() as u64,
        2 => ELSEWHERE[random.below(ELSEWHERE.len())],
        _ => u64::from(pci::MEMORY_AND_MASTER) | random.next() & 0x8400_8501,
    };
    for (place, mask) in target.resets(port.is_some()) {
        if (offset..offset + width.bytes()).contains(&place) && random.below(resets) != 0 {
            value &= !(mask << (8 * (place - offset)));
        }
    }
    let _ = config.probe_write(offset, width, value);
    let _ = config.probe_read(random.below(0xff8), width);
    let (_, registers) = target.bars[random.below(target.bars.len())];
    let registers = match target.table {
        Some(table) if random.below(4) == 0 => table,
        _ => registers,
    };
    let offset = random.below(registers.len() - 7);
    let offset = match random.below(8) {
        0 => offset,
        1..4 => offset & 0xff8,
        _ => offset & !7,
    };
    // An address of 64 bits may be written in two halves.
    let [low, high] = match random.below(4) {
        0 => pci::halves(MSI_TARGET),
        1 => pci::halves(DOORBELL | 0x40),
        _ => pci::halves(random.interesting()),
    };
    let [low, high] = [low, high].map(|half| foreign(half.into()));
    let _ = registers.probe_write(offset, width, high << 32 | low);
    let _ = registers.probe_read(offset, width);
    WRITTEN.fetch_add(2, Ordering::Relaxed);
}

/// Device ID and vendor ID of the 82574L network controller, and its registers (Intel 82574 GbE Controller
/// Family Datasheet, 10.2.6): the ring of packets to send, and that it is used.
const E1000E: u32 = 0x10d3_8086;
const TCTL: usize = 0x0400;
const TCTL_ENABLE: u32 = 1 << 1;
const TDBAL: usize = 0x3800;
const TDBAH: usize = 0x3804;
const TDLEN: usize = 0x3808;
const TDH: usize = 0x3810;
const TDT: usize = 0x3818;

/// GITS_TRANSLATER of this domain's ITS.
const MSI_TARGET: u64 = 0x0809_0040;
