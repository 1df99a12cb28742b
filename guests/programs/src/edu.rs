//! Drives QEMU's `edu` device to DMA where it should, and where it must not.
//!
//! Transfers within this domain's memory must work; those to and from addresses that are not its own
//! must change nothing. What happened to other domains' memory, they say themselves (`neighbour`).
//!
//! The device (QEMU, docs/specs/edu.rst) copies between memory and a buffer of its own; a transfer
//! ends 100 ms after it was started.

use alloc::vec;
use alloc::vec::Vec;

use runtime::harness::{self, Outcome, Test};
use runtime::mmio::Window;
use runtime::platform::{self, HostBridge, Platform};
use runtime::{check, check_eq, cpu, println, skip, timer};

use crate::pci::{self, Function};

/// Device ID and vendor ID.
const ID: u32 = 0x11e8_1234;
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

/// Runs the tests and powers off.
pub fn main(_platform: &'static Platform) {
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
        for _ in 0..50 {
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

    /// Moves the device's buffer to memory.
    fn store(&self, to: u64, bytes: usize) -> bool {
        self.transfer(BUFFER, to, bytes, TO_MEMORY)
    }
}

macro_rules! edu {
    () => {
        match Edu::find() {
            Some(edu) => edu,
            None => skip!("there is no edu device on bus 0"),
        }
    };
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

fn without_bus_master() -> Outcome {
    let edu = edu!();
    let (source, target) = (pattern(0x99), vec![0_u8; BYTES]);
    check!(
        edu.load(address(&source), BYTES),
        "the transfer to the device does not end"
    );
    edu.function.config.write16(4, 0b010);
    edu.store(address(&target), BYTES);
    edu.function.enable();
    check_eq!(
        snapshot(&target),
        vec![0_u8; BYTES],
        "memory after a transfer without bus mastering"
    );
    Ok(())
}
