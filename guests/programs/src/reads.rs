//! Config space that is read without the hypervisor: it says the same, and changes as it should.
//!
//! With the word `traps` on the command line all reads are expected to trap. Either way the guest prints
//! a sum of each function's config space, which has to be the same.
//!
//! Which reads trap is told by exclusive loads: see `pci::is_mapped`.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use runtime::exception::Fault;
use runtime::harness::{self, Failure, Outcome, Test};
use runtime::mmio::{Odd, Width, Window};
use runtime::platform::{self, Platform};
use runtime::{check, check_eq, cpu, gic, instruction, println, timer};

use crate::pci::{self, Function, bridge, capability, find};

/// Runs the tests and powers off.
#[rustfmt::skip]
pub fn main(_platform: &'static Platform) {
    gic::init_distributor();
    gic::init_cpu();
    harness::run(&[
        Test { name: "reads_sums", run: sums },
        Test { name: "reads_which_trap", run: which_trap },
        Test { name: "reads_of_absent_functions", run: absent },
        Test { name: "reads_after_writes", run: after_writes },
        Test { name: "reads_by_another_vcpu", run: by_another },
        Test { name: "reads_while_live", run: while_live },
        Test { name: "reads_after_a_reset", run: after_reset },
        Test { name: "reads_of_numbered_buses", run: numbered },
        Test { name: "reads_sums_again", run: sums },
        Test { name: "reads_refused_accesses", run: refused },
    ])
}

/// Vendor ID and Device ID of what the system has.
const IGB: u32 = 0x10c9_8086;
const NVME: u32 = 0x0010_1b36;
const VIRTIO_BLK: u32 = 0x1042_1af4;
const PVPANIC: u32 = 0x0011_1b36;
const PORT: u32 = 0x000c_1b36;
const BRIDGE: u32 = 0x0008_1b36;
const STUB: u32 = 0x0009_1b36;

/// Bytes of a function's config space, and of a device model's those that are not zero.
const SPACE: usize = 0x1000;
const MODELED: usize = 0x100;

const COMMAND: usize = 0x04;
const INTERRUPT_DISABLE: u16 = 1 << 10;
const CACHE_LINE_SIZE: usize = 0x0c;
const BAR0: usize = 0x10;
const INTERRUPT_LINE: usize = 0x3c;
const BUS_NUMBERS: usize = 0x18;
const BRIDGE_CONTROL: usize = 0x3e;
const SECONDARY_BUS_RESET: u16 = 1 << 6;
/// Slot of a function that no system of ours has.
const ABSENT: u16 = 0xf8;

/// Whether all reads are to trap.
fn all_trap() -> bool {
    let mut words = platform::get().arguments().split_ascii_whitespace();
    words.any(|word| word == "traps")
}

/// Returns whether reads of a page trap.
fn traps(page: &Window) -> bool {
    !pci::is_mapped(page)
}

/// Fails unless reads of a function trap, or do not.
fn check_traps(function: &Function, expected: bool, when: &str) -> Outcome {
    let id = function.id();
    check_eq!(
        traps(&function.config),
        expected || all_trap(),
        "{id:08x} {when}: whether it traps"
    );
    Ok(())
}

/// Returns a page read by accesses of one width.
fn read(page: &Window, width: Width) -> Vec<u8> {
    read_first(SPACE, page, width)
}

/// Returns the first so many bytes of a page.
fn read_first(count: usize, page: &Window, width: Width) -> Vec<u8> {
    let mut bytes = Vec::new();
    for offset in (0..count).step_by(width.bytes()) {
        let value: u64 = match width {
            Width::Byte => page.read8(offset).into(),
            Width::Half => page.read16(offset).into(),
            Width::Word => page.read32(offset).into(),
            Width::Double => page.read64(offset),
        };
        bytes.extend_from_slice(&value.to_le_bytes()[..width.bytes()]);
    }
    bytes
}

/// FNV-1a.
fn sum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, byte| {
        (sum ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    })
}

/// Prints a sum of each function of bus 0. Every width reads the same.
fn sums() -> Outcome {
    let mut count = 0;
    for function in Function::all(&bridge()?) {
        let bytes = read(&function.config, Width::Word);
        let (slot, id) = (function.requester, function.id());
        // A device model is asked by a switch to another domain and back each time, and on a busy machine that
        // takes some milliseconds: no more of it than its function has anything in.
        let compared = if id == VIRTIO_BLK { MODELED } else { SPACE };
        for width in Width::ALL {
            check!(
                read_first(compared, &function.config, width) == bytes[..compared],
                "{slot:02x} by {width:?}",
            );
        }
        println!("reads: {slot:02x} {id:08x} {:016x}", sum(&bytes));
        count += 1;
    }
    check_eq!(count, 8, "functions");
    Ok(())
}

/// What EL2 answers by itself, and knows, does not trap.
fn which_trap() -> Outcome {
    for (id, expected) in [
        (BRIDGE, false),
        (STUB, false),
        (PORT, false),
        (PVPANIC, false),
        (NVME, false),
        // AER, and a device model's.
        (IGB, true),
        (VIRTIO_BLK, true),
    ] {
        check_traps(&find(id)?, expected, "at first")?;
    }
    let absent = bridge()?.function(ABSENT);
    check_eq!(traps(&absent), all_trap(), "an absent function");
    Ok(())
}

/// Absent functions read as ones, on all buses, in all widths.
fn absent() -> Outcome {
    let bridge = bridge()?;
    for requester in (ABSENT..=u16::MAX).step_by(0x107) {
        let page = bridge.function(requester);
        for offset in [0, 8, 0x10, 0x100, 0xff8] {
            for width in Width::ALL {
                let value = page.probe_read(offset, width).unwrap_or(0);
                check_eq!(value, width.ones(), "{requester:#x} {offset:#x} {width:?}");
                let written = page.probe_write(offset, width, 0);
                check!(written.is_ok(), "a write to {requester:#x} {offset:#x}");
                let value = page.probe_read(offset, width).unwrap_or(0);
                check_eq!(value, width.ones(), "after a write");
            }
        }
    }
    Ok(())
}

/// What is written is read, whatever the store.
fn after_writes() -> Outcome {
    for id in [NVME, PVPANIC, IGB] {
        let function = find(id)?;
        let page = &function.config;
        for value in [0x5a_u8, 0xff, 0x00, 0x81] {
            page.write8(CACHE_LINE_SIZE, value);
            page.write8(INTERRUPT_LINE, !value);
            check_eq!(page.read8(CACHE_LINE_SIZE), value, "{id:08x}: by bytes");
            check_eq!(page.read8(INTERRUPT_LINE), !value, "{id:08x}: by bytes");
        }
        page.write32(COMMAND, 0x0146);
        check_eq!(page.read32(COMMAND) & 0xffff, 0x0146, "{id:08x}: Command");
        page.write16(COMMAND, 0);
        check_eq!(page.read16(COMMAND), 0, "{id:08x}: Command");
        page.write64(BAR0, u64::MAX);
        let size = page.read64(BAR0);
        check_eq!(page.read32(BAR0), (size & 0xffff_ffff) as u32, "a half");
        check!(size & !0xf != 0, "{id:08x}: BAR0 is {size:#x}");
        // A pair of words, and a store that moves its base: no syndrome says what they are.
        let odd = |odd, name| match page.probe_odd(BAR0, odd) {
            Ok(_) => Ok(()),
            Err(fault) => Err(Failure::Failed(alloc::format!(
                "{id:08x}: {name}: {fault:?}"
            ))),
        };
        odd(Odd::PairStore, "a pair")?;
        check_eq!(page.read64(BAR0) & !0xf_0000_000f, 0, "{id:08x}: a pair");
        page.write32(BAR0 + 4, u32::MAX);
        odd(Odd::PreIndexStore, "writeback")?;
        page.write64(BAR0, 0);
        let kept = read(page, Width::Word);
        for offset in (0x100..SPACE).step_by(0x1c) {
            page.write32(offset, 0x5a5a_a5a5);
        }
        check!(read(page, Width::Word) == kept, "{id:08x}: it was written");
        page.write8(CACHE_LINE_SIZE, 0);
        page.write8(INTERRUPT_LINE, 0);
    }
    let port = find(PORT)?;
    port.config.write8(INTERRUPT_LINE, 0x77);
    check_eq!(port.config.read8(INTERRUPT_LINE), 0x77, "a port");
    port.config.write8(INTERRUPT_LINE, 0);
    let bridge = find(BRIDGE)?;
    bridge.config.write16(COMMAND, u16::MAX);
    check_eq!(bridge.config.read16(COMMAND), 0x0546, "the host bridge");
    bridge.config.write16(COMMAND, 0);
    find(STUB)?.config.write16(COMMAND, u16::MAX);
    check_eq!(find(STUB)?.config.read16(COMMAND), 0, "a stub");
    Ok(())
}

/// The function that the second vCPU looks at, what it is to see, and what it has seen.
static WATCHED: AtomicU32 = AtomicU32::new(NOTHING);
static WRITTEN: AtomicU32 = AtomicU32::new(0);
static SEEN: AtomicU64 = AtomicU64::new(0);
const NOTHING: u32 = u32::MAX;
/// It has seen something else than it should have.
const WRONG: u64 = 1 << 63;
/// How long it is waited for, in milliseconds.
const LONG: u64 = 30_000;

/// Returns what is said to have been seen of a function: it may be said late, when the next is watched already.
fn of(requester: u16, seen: u32) -> u64 {
    u64::from(requester) << 8 | u64::from(seen)
}

/// Reads while the other vCPU writes: never anything but what it writes, and that as soon as it is done.
fn watch(_: usize) {
    let Ok(bridge) = bridge() else { return };
    loop {
        // Acquire, all: what the other has written before it says so is there.
        let watched = WATCHED.load(Ordering::Acquire);
        let Ok(requester) = u16::try_from(watched) else {
            continue;
        };
        let page = bridge.function(requester);
        let told = WRITTEN.load(Ordering::Acquire);
        let seen = u32::from(page.read8(CACHE_LINE_SIZE));
        let after = WRITTEN.load(Ordering::Acquire);
        // It may be the next one already.
        let is_right = seen >= told && seen <= after + 1;
        if WATCHED.load(Ordering::Acquire) != watched {
            continue;
        }
        if !is_right {
            let told = u64::from(told) << 32;
            SEEN.store(WRONG | told | of(requester, seen), Ordering::Release);
        } else if seen == told && SEEN.load(Ordering::Acquire) & WRONG == 0 {
            SEEN.store(of(requester, seen), Ordering::Release);
        }
    }
}

fn by_another() -> Outcome {
    let platform = platform::get();
    let Some(&other) = platform.cpus.get(1) else {
        return Err(Failure::Failed("there is no second vCPU".into()));
    };
    let started = cpu::start(other, 1, watch, 0);
    check!(started.is_ok(), "vCPU 1 does not start: {started:?}");
    for id in [NVME, IGB] {
        let function = find(id)?;
        WRITTEN.store(0, Ordering::Release);
        WATCHED.store(function.requester.into(), Ordering::Release);
        for value in 1..=0xff_u8 {
            function.config.write8(CACHE_LINE_SIZE, value);
            WRITTEN.store(value.into(), Ordering::Release);
            let expected = of(function.requester, value.into());
            timer::wait_until(LONG, || {
                let seen = SEEN.load(Ordering::Acquire);
                seen == expected || seen & WRONG != 0
            });
            check_eq!(SEEN.load(Ordering::Acquire), expected, "{id:08x}");
        }
        WATCHED.store(NOTHING, Ordering::Release);
        function.config.write8(CACHE_LINE_SIZE, 0);
    }
    Ok(())
}

/// A function with a pin is asked while its guest has silenced the pin, and not if it sends messages.
fn while_live() -> Outcome {
    let nvme = find(NVME)?;
    let control = capability(&nvme, 0x11)? + 2;
    for (offset, value, expected, when) in [
        (COMMAND, INTERRUPT_DISABLE, true, "with Interrupt Disable"),
        (COMMAND, 0, false, "without"),
        (COMMAND, INTERRUPT_DISABLE, true, "with it again"),
        (control, 0x8000, false, "with MSI-X, too"),
        (COMMAND, 0, false, "with MSI-X"),
        (COMMAND, INTERRUPT_DISABLE, false, "with both"),
        (control, 0, true, "with Interrupt Disable only"),
        (COMMAND, 0, false, "as at first"),
    ] {
        nvme.config.write16(offset, value);
        check_traps(&nvme, expected, when)?;
        let mask = if offset == control { 0x8000 } else { u16::MAX };
        check_eq!(nvme.config.read16(offset) & mask, value, "what was written");
    }
    Ok(())
}

/// After a function level reset a function reads as at first.
fn after_reset() -> Outcome {
    let nvme = find(NVME)?;
    let fresh = read(&nvme.config, Width::Word);
    nvme.config.write8(CACHE_LINE_SIZE, 0x40);
    nvme.config.write16(COMMAND, 0x0546);
    nvme.config.write64(BAR0, u64::MAX);
    let device_control = capability(&nvme, 0x10)? + 8;
    nvme.config.write16(device_control, 1 << 15);
    let now = read(&nvme.config, Width::Word);
    let differs = now.iter().zip(&fresh).position(|(now, fresh)| now != fresh);
    check_eq!(differs, None, "the first byte that is not as it was");
    check_traps(&nvme, false, "after a reset")
}

/// A function is where its port's bus number says, and nowhere else.
fn numbered() -> Outcome {
    let bridge = bridge()?;
    let ports: Vec<_> = Function::all(&bridge)
        .filter(|function| function.id() == PORT)
        .collect();
    let [first, second] = ports.as_slice() else {
        return Err(Failure::Failed("there are not two ports".into()));
    };
    let number = |port: &Function, number: u16| {
        let number = u32::from(number);
        port.config.write32(BUS_NUMBERS, number << 16 | number << 8);
    };
    let at = |number: u16| Function::new(&bridge, number << 8);
    // pvpanic is below the first one, behind the second there is another.
    let found = || -> Vec<u16> {
        let is_there = |number: &u16| at(*number).id() == PVPANIC;
        (1..=0xff).filter(is_there).collect()
    };
    check_eq!(found(), [], "after a reset");
    for (one, other) in [
        (1, 2),
        (7, 2),
        (7, 0xff),
        (2, 7),
        (2, 2),
        (0x80, 2),
        (0xff, 0xff),
    ] {
        number(first, one);
        number(second, other);
        let mut expected = alloc::vec![one, other];
        expected.sort_unstable();
        expected.dedup();
        check_eq!(found(), expected, "numbers {one:#x} and {other:#x}");
        for number in expected {
            check_traps(&at(number), false, "below a port")?;
            check_eq!(at(number).config.read64(0xff8), 0, "its end");
            check_eq!(
                bridge.function(number << 8 | 1).read32(0),
                u32::MAX,
                "beside it"
            );
            check_eq!(
                bridge.function(number << 8 | 8).read32(0),
                u32::MAX,
                "device 1"
            );
        }
    }
    // Each is the one that the port says it is.
    number(first, 3);
    number(second, 4);
    at(3).config.write8(CACHE_LINE_SIZE, 0x33);
    at(4).config.write8(CACHE_LINE_SIZE, 0x44);
    number(first, 4);
    check_eq!(at(4).config.read8(CACHE_LINE_SIZE), 0x33, "the first one's");
    number(second, 3);
    check_eq!(
        at(3).config.read8(CACHE_LINE_SIZE),
        0x44,
        "the second one's"
    );
    // While its bus is in reset it is not there, and then it is as at first.
    first.config.write16(BRIDGE_CONTROL, SECONDARY_BUS_RESET);
    check_eq!(found(), [3], "the first one's bus is in reset");
    check_eq!(traps(&at(4).config), all_trap(), "where it was");
    first.config.write16(BRIDGE_CONTROL, 0);
    check_eq!(found(), [3, 4], "no longer");
    check_eq!(at(4).config.read8(CACHE_LINE_SIZE), 0, "it was reset");
    check_eq!(at(3).config.read8(CACHE_LINE_SIZE), 0x44, "it was not");
    at(3).config.write8(CACHE_LINE_SIZE, 0);
    number(first, 0);
    number(second, 0);
    check_eq!(found(), [], "without numbers");
    Ok(())
}

/// Exchanges a word at `offset` with zero, in one access.
fn exchange(page: &Window, offset: usize) -> Result<(), Fault> {
    const SWP_W3_W4_X1: u32 = 0xb823_8024;
    let mut x = [0; 18];
    x[1] = (page.base() + offset) as u64;
    // SAFETY: it changes x4, and config space.
    unsafe { instruction::execute(SWP_W3_W4_X1, &mut x) }
}

/// An atomic is more than config requests can express, whether reads trap or not.
fn refused() -> Outcome {
    for id in [BRIDGE, PORT, NVME, IGB, VIRTIO_BLK] {
        let page = find(id)?.config;
        let kept = page.read32(BAR0);
        let swapped = exchange(&page, BAR0);
        check!(
            swapped.is_err_and(Fault::is_external_abort),
            "{id:08x}: {swapped:?}"
        );
        check_eq!(page.read32(BAR0), kept, "{id:08x}: after it");
    }
    Ok(())
}
