//! Drives QEMU's `edu` device to DMA where it should, and where it must not.
//!
//! Transfers within this domain's memory must work; those to and from addresses that are not its own
//! must change nothing. What happened to other domains' memory, they say themselves (`neighbour`).
//!
//! The device (QEMU, docs/specs/edu.rst) copies between memory and a buffer of its own; a transfer
//! ends 100 ms after it was started.

use alloc::format;
use alloc::vec;
use alloc::vec::Vec;

use core::sync::atomic::{AtomicU32, Ordering};

use runtime::gic::{self, FIRST_LPI};
use runtime::harness::{self, Outcome, Test};
use runtime::its::{Its, Stalled};
use runtime::mmio::Window;
use runtime::platform::{self, HostBridge, Platform};
use runtime::{check, check_eq, console, cpu, exception, println, skip, smccc, timer};

use spin::Once;

use crate::intx;
use crate::pci::{self, Function};

/// Device ID and vendor ID.
pub(crate) const ID: u32 = 0x11e8_1234;
const BAR_SIZE: usize = 0x10_0000;

/// Registers in BAR0.
const IDENTIFICATION: usize = 0x00;
const IDENTIFIED: u32 = 0x0100_00ed;
const DMA_SOURCE: usize = 0x80;
const DMA_TARGET: usize = 0x88;
const DMA_COUNT: usize = 0x90;
const DMA_COMMAND: usize = 0x98;
const START: u64 = 1 << 0;
const TO_MEMORY: u64 = 1 << 1;

/// The device's buffer, as it names it.
const BUFFER: u64 = 0x4_0000;

/// Bytes that a test moves: each faulting one is some events for the hypervisor.
const BYTES: usize = 64;

/// How long something that must come is waited for, in milliseconds.
const LONG: u64 = 30_000;

/// Runs the tests and powers off; with `storm` on the command line it does what is typed: makes faults until
/// the device is taken from it, and resets the domain, asserts its pin for long, or sends messages without end.
pub fn main(platform: &'static Platform) {
    if platform.arguments() == "storm" {
        return storm();
    }
    harness::run(&[
        Test {
            name: "edu_found",
            run: found,
        },
        Test {
            name: "edu_round_trip",
            run: round_trip,
        },
        Test {
            name: "edu_write_outside",
            run: write_outside,
        },
        Test {
            name: "edu_read_outside",
            run: read_outside,
        },
        Test {
            name: "edu_still_works",
            run: round_trip,
        },
        Test {
            name: "edu_without_bus_master",
            run: without_bus_master,
        },
        Test {
            name: "edu_each",
            run: each,
        },
    ])
}

/// The device, with its BAR placed.
struct Edu {
    function: Function,
    registers: Window,
}

impl Edu {
    fn find() -> Option<Self> {
        let bridge: HostBridge = platform::get().host_bridge?;
        let function = Function::all(&bridge).find(|function| function.id() == ID)?;
        let registers = pci::first_fit(&bridge, BAR_SIZE);
        function.place(0, registers.base());
        function.enable();
        Some(Self {
            function,
            registers,
        })
    }

    /// Starts a transfer and waits for its end; tells whether it came.
    fn transfer(&self, source: u64, target: u64, bytes: usize, command: u64) -> bool {
        self.registers.write64(DMA_SOURCE, source);
        self.registers.write64(DMA_TARGET, target);
        self.registers.write64(DMA_COUNT, bytes as u64);
        cpu::barrier();
        self.registers.write64(DMA_COMMAND, command | START);
        let end = timer::now() + timer::ticks(LONG);
        while timer::now() < end {
            timer::sleep(20);
            if self.registers.read64(DMA_COMMAND) & START == 0 {
                cpu::barrier();
                return true;
            }
        }
        false
    }

    /// Moves memory into the device's buffer.
    fn load(&self, from: u64, bytes: usize) -> bool {
        self.transfer(from, BUFFER, bytes, 0)
    }

    /// Returns whether the device moves what it is told to.
    fn works(&self, seed: u8) -> bool {
        let (source, target) = (pattern(seed), vec![0_u8; BYTES]);
        self.load(address(&source), BYTES);
        self.store(address(&target), BYTES);
        snapshot(&target) == source
    }

    /// Makes the device's message an LPI.
    fn send_by(&self, its: &mut Its, lpi: u32) -> Result<(), Stalled> {
        let device = self.function.requester.into();
        its.map_device(device, 1)?;
        its.configure(lpi, gic::DEFAULT_PRIORITY, true);
        its.map_event(device, 0, lpi, 0)?;
        its.inv(device, 0)?;
        let config = &self.function.config;
        let [low, high] = pci::halves(its.doorbell());
        config.write32(MSI + 4, low);
        config.write32(MSI + 8, high);
        config.write16(MSI + 12, 0);
        config.write16(MSI + 2, 1);
        Ok(())
    }

    /// Moves the device's buffer to memory.
    fn store(&self, to: u64, bytes: usize) -> bool {
        self.transfer(BUFFER, to, bytes, TO_MEMORY)
    }
}

/// Returns whether a device whose BAR is at `registers`, enabled, is one and moves what it is told to.
pub(crate) fn works(function: Function, registers: Window) -> bool {
    let edu = Edu {
        function,
        registers,
    };
    edu.registers.read32(IDENTIFICATION) == IDENTIFIED && edu.works(0x44)
}

macro_rules! edu {
    () => {
        match Edu::find() {
            Some(edu) => edu,
            None => skip!("there is no edu device on bus 0"),
        }
    };
}

/// What one transfer moves at most: the device's buffer.
const BUFFER_BYTES: usize = 4096;

/// Works, and does what is typed.
fn storm() {
    let Some(edu) = Edu::find() else {
        return println!("storm: there is no edu device on bus 0");
    };
    if !edu.works(0x11) {
        return println!("storm: FAILED: the device does not work");
    }
    println!("storm: the device works");
    loop {
        match console::read() {
            Some(b'f') => return faults(&edu),
            Some(b'p') => pin(&edu),
            Some(b'm') => {
                if let Err(error) = messages(&edu) {
                    return println!("storm: FAILED: {error}");
                }
            }
            _ => timer::sleep(10),
        }
    }
}

/// How often a pin's interrupt is ended before the device is seen to.
const ENDS: u32 = 100;

/// Ends its pin's interrupt many times, and leaves the device alone.
fn pin(edu: &Edu) {
    let line = intx::line(&edu.function);
    REGISTERS.call_once(|| edu.registers);
    gic::ensure_ready();
    gic::set_handler(
        line,
        Some(|_| {
            if CAME.fetch_add(1, Ordering::Relaxed) + 1 == ENDS
                && let Some(registers) = REGISTERS.get()
            {
                registers.write32(ACKNOWLEDGE, registers.read32(STATUS));
            }
        }),
    );
    gic::set_edge(line, false);
    gic::enable(line);
    let start = timer::now();
    exception::unmask_irqs();
    edu.registers.write32(RAISE, 1);
    timer::wait_until(LONG, || CAME.load(Ordering::Relaxed) == ENDS);
    exception::mask_irqs();
    let milliseconds = (timer::now() - start) / timer::ticks(1);
    gic::disable(line);
    let came = CAME.swap(0, Ordering::Relaxed);
    println!("storm: the pin came {came} times in {milliseconds} ms");
}

/// Sends messages as fast as it can until something is typed.
fn messages(edu: &Edu) -> Result<(), &'static str> {
    const STUCK: &str = "the ITS does not go on";
    let mut its = Its::new().ok_or("there is no ITS")?;
    REGISTERS.call_once(|| edu.registers);
    gic::set_handler(
        FIRST_LPI,
        Some(|_| {
            CAME.fetch_add(1, Ordering::Relaxed);
            if let Some(registers) = REGISTERS.get() {
                SEEN.fetch_or(registers.read32(STATUS), Ordering::Relaxed);
            }
        }),
    );
    let target = its.target();
    its.map_collection(0, target).map_err(|_| STUCK)?;
    edu.send_by(&mut its, FIRST_LPI).map_err(|_| STUCK)?;
    its.sync(target).map_err(|_| STUCK)?;
    println!("storm: messages without end");
    CAME.store(0, Ordering::Relaxed);
    let (start, mut sent) = (timer::now(), 0);
    exception::unmask_irqs();
    while console::read().is_none() {
        for _ in 0..64 {
            edu.registers.write32(RAISE, 1);
        }
        sent += 64;
    }
    let came = CAME.load(Ordering::Relaxed);
    let milliseconds = (timer::now() - start) / timer::ticks(1);
    edu.registers.write32(RAISE, LAST);
    let ended = timer::wait_until(LONG, || SEEN.load(Ordering::Relaxed) & LAST != 0);
    exception::mask_irqs();
    println!("storm: of {sent} messages {came} came in {milliseconds} ms");
    if !ended {
        return Err("the last message is lost");
    }
    println!("storm: the last one came");
    Ok(())
}

/// Makes more faults than are allowed, no longer works, and starts anew.
fn faults(edu: &Edu) {
    let memory = platform::get().memory;
    let end = timer::now() + timer::ticks(LONG);
    loop {
        edu.store(memory.base + memory.size, BUFFER_BYTES);
        if !edu.works(0x22) {
            break;
        }
        // The pCPU that is told of the faults may be late.
        if timer::now() > end {
            return println!("storm: FAILED: the device still works");
        }
    }
    // What the guest says of bus mastering does not help.
    edu.function.config.write16(4, 0b010);
    edu.function.enable();
    if edu.works(0x33) {
        return println!("storm: FAILED: the device works again without a reset");
    }
    println!("storm: the device is cut off");
    smccc::system_reset()
}

fn found() -> Outcome {
    let Some(edu) = Edu::find() else {
        return Err(harness::Failure::Failed(
            "there is no edu device on bus 0".into(),
        ));
    };
    let size = edu.function.place(0, edu.registers.base());
    edu.function.enable();
    println!(
        "edu: at requester {:#06x}, BAR0 at {:#x}",
        edu.function.requester,
        edu.registers.base()
    );
    check_eq!(size, BAR_SIZE, "size of BAR0");
    check_eq!(
        edu.registers.read32(IDENTIFICATION),
        IDENTIFIED,
        "identification"
    );
    // The liveness register inverts what is written.
    edu.registers.write32(4, 0x1234_5678);
    check_eq!(edu.registers.read32(4), !0x1234_5678, "liveness");
    Ok(())
}

fn pattern(seed: u8) -> Vec<u8> {
    (0..BYTES)
        .map(|index| seed.wrapping_add(u8::try_from(index % 251).unwrap_or(0)))
        .collect()
}

/// Returns a buffer's address. What the device writes there is read back with [`snapshot`].
fn address(buffer: &[u8]) -> u64 {
    buffer.as_ptr() as u64
}

/// Reads a buffer that a device may have written.
fn snapshot(buffer: &[u8]) -> Vec<u8> {
    let byte = |byte: &u8| {
        // SAFETY: the reference says that it is readable; volatile, since a device changes it.
        unsafe { core::ptr::from_ref(byte).read_volatile() }
    };
    buffer.iter().map(byte).collect()
}

fn round_trip() -> Outcome {
    let edu = edu!();
    let (source, target) = (pattern(0x11), vec![0_u8; BYTES]);
    check!(
        edu.load(address(&source), BYTES),
        "the transfer to the device does not end"
    );
    check!(
        edu.store(address(&target), BYTES),
        "the transfer from the device does not end"
    );
    check_eq!(snapshot(&target), source, "what came back");
    Ok(())
}

/// Addresses that no domain may reach by DMA: none of them is this domain's memory.
fn outside() -> Vec<u64> {
    let memory = platform::get().memory;
    let end = memory.base + memory.size;
    vec![
        end,
        end + 0x20_0000,
        end + 0x1000_0000,
        end + 0x4000_0000,
        memory.base - 0x1000,
        0,
        0x0800_0000,
        0x0900_0000,
        0x40_1000_0000,
        0x70_0000_0000,
    ]
}

fn write_outside() -> Outcome {
    let edu = edu!();
    let (source, witness) = (pattern(0x77), pattern(0x33));
    check!(
        edu.load(address(&source), BYTES),
        "the transfer to the device does not end"
    );
    for target in outside() {
        let ended = edu.store(target, BYTES);
        println!("edu: wrote {BYTES} bytes to {target:#x}, which is not ours: ended {ended}");
    }
    check_eq!(snapshot(&witness), pattern(0x33), "our own memory");
    check_eq!(snapshot(&source), pattern(0x77), "the source");
    Ok(())
}

fn read_outside() -> Outcome {
    let edu = edu!();
    let mut leaks = 0;
    for source in outside() {
        let (known, target) = (pattern(0x55), vec![0_u8; BYTES]);
        check!(
            edu.load(address(&known), BYTES),
            "the transfer to the device does not end"
        );
        let ended = edu.load(source, BYTES);
        check!(
            edu.store(address(&target), BYTES),
            "the transfer from the device does not end"
        );
        // A read that was stopped leaves the device's buffer as it was, or gives what a bus gives on
        // which nobody answers. Memory that nobody used looks the same; that of the neighbours, who
        // fill theirs with random words, does not.
        let got = snapshot(&target);
        let nothing = [0, 0xff]
            .iter()
            .any(|&byte| got.iter().all(|&other| other == byte));
        let blocked = got == known || nothing;
        println!(
            "edu: read {BYTES} bytes from {source:#x}, which is not ours: ended {ended}, got {:02x?}",
            &got[..8]
        );
        leaks += usize::from(!blocked);
    }
    check_eq!(leaks, 0, "reads that gave data");
    Ok(())
}

/// Registers and MSI capability of the device: an interrupt is raised by a write, with any value.
const RAISE: usize = 0x60;
const ACKNOWLEDGE: usize = 0x64;
const MSI: usize = 0x40;

/// What was raised with which value and is not acknowledged.
const STATUS: usize = 0x24;
/// What is raised last.
const LAST: u32 = 1 << 31;

/// LPIs that came, less the first: one bit for each. Of a storm, how many.
static CAME: AtomicU32 = AtomicU32::new(0);
/// The registers of the device that storms, and what they said when an LPI came.
static REGISTERS: Once<Window> = Once::new();
static SEEN: AtomicU32 = AtomicU32::new(0);

/// Each device of the bus moves memory, and interrupts as itself.
fn each() -> Outcome {
    let Some(mut its) = Its::new() else {
        skip!("there is no ITS");
    };
    let Some(bridge) = platform::get().host_bridge else {
        skip!("there is no host bridge");
    };
    let stalled =
        |error: Stalled| harness::Failure::Failed(format!("a command is stuck: {error:?}"));
    gic::set_handler(
        FIRST_LPI,
        Some(|lpi| {
            CAME.fetch_or(1 << (lpi - FIRST_LPI), Ordering::Relaxed);
        }),
    );
    let target = its.target();
    its.map_collection(0, target).map_err(stalled)?;
    let window = bridge.memory32;
    let start = window.base().next_multiple_of(BAR_SIZE) - window.base();
    let functions = Function::all(&bridge).filter(|function| function.id() == ID);
    let mut devices = Vec::new();
    for (index, function) in functions.enumerate() {
        let registers = window.part(start + index * BAR_SIZE, BAR_SIZE);
        function.place(0, registers.base());
        devices.push(Edu {
            function,
            registers,
        });
    }
    for (lpi, edu) in (FIRST_LPI..).zip(&devices) {
        edu.function.enable();
        edu.send_by(&mut its, lpi).map_err(stalled)?;
    }
    its.sync(target).map_err(stalled)?;
    for (bit, edu) in devices.iter().enumerate() {
        let requester = edu.function.requester;
        check!(edu.works(0x44), "{requester:#06x} does not move memory");
        CAME.store(0, Ordering::Relaxed);
        edu.registers.write32(RAISE, 1);
        exception::unmask_irqs();
        timer::wait_until(LONG, || CAME.load(Ordering::Relaxed) != 0);
        exception::mask_irqs();
        edu.registers.write32(ACKNOWLEDGE, 1);
        let came = CAME.load(Ordering::Relaxed);
        check_eq!(came, 1 << bit, "interrupts of {requester:#06x}");
    }
    println!("edu: {} devices work", devices.len());
    Ok(())
}

fn without_bus_master() -> Outcome {
    let edu = edu!();
    let (source, target) = (pattern(0x99), vec![0_u8; BYTES]);
    check!(
        edu.load(address(&source), BYTES),
        "the transfer to the device does not end"
    );
    edu.function.config.write16(4, 0b010);
    let ended = edu.store(address(&target), BYTES);
    edu.function.enable();
    check!(ended, "the transfer without bus mastering does not end");
    check_eq!(
        snapshot(&target),
        vec![0_u8; BYTES],
        "memory after a transfer without bus mastering"
    );
    Ok(())
}
