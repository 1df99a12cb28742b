//! Raises interrupts by the pins of QEMU's `edu` devices.
//!
//! With two of them, at slots whose pins meet on one line, it tests that line, once a key is typed. With one
//! it makes trouble: the device asserts its pin, and nobody answers, which must not matter to whoever is on
//! the same line of the machine.
//!
//! The device (QEMU, docs/specs/edu.rst) asserts its pin while its interrupt status is not zero.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, Ordering};

use runtime::gic;
use runtime::harness::{self, Outcome, Test};
use runtime::mmio::Window;
use runtime::platform::{self, Platform};
use runtime::{check, check_eq, console, cpu, exception, println, timer};
use spin::Once;

use crate::pci::{self, Function};

/// Device ID and vendor ID.
const ID: u32 = 0x11e8_1234;
const BAR_SIZE: usize = 0x10_0000;

/// Registers in BAR0: interrupt status, and what sets and clears bits of it.
const STATUS: usize = 0x24;
const RAISE: usize = 0x60;
const ACKNOWLEDGE: usize = 0x64;

/// Registers in config space.
const COMMAND: usize = 0x04;
const CONFIG_STATUS: usize = 0x06;
const INTERRUPT_PIN: usize = 0x3d;
const INTERRUPT_DISABLE: u16 = 1 << 10;
const INTERRUPT_STATUS: u16 = 1 << 3;

/// The INTID of INTA of a device whose number is a multiple of four; others turn (the device tree's
/// interrupt-map).
const FIRST_LINE: u32 = 32 + 3;

/// How long something that must not come is waited for, and something that must, in milliseconds.
const QUIET: u64 = 50;
const LONG: u64 = 5_000;

/// Tests a line with two devices, or blocks one with a single device.
pub fn main(_platform: &'static Platform) {
    let edus = EDUS.call_once(find);
    if let [edu] = edus.as_slice() {
        edu.raise();
        println!("intx: the device asserts its pin, and nobody answers");
        loop {
            cpu::wait_for_interrupt();
        }
    }
    // By then the other domain's device asserts the machine's line.
    console::wait_for_key();
    harness::run(&[
        Test {
            name: "intx_two_on_one_line",
            run: two_on_one_line,
        },
        Test {
            name: "intx_comes_and_goes",
            run: comes_and_goes,
        },
        Test {
            name: "intx_comes_again",
            run: comes_again,
        },
        Test {
            name: "intx_split_end",
            run: split_end,
        },
        Test {
            name: "intx_shared",
            run: shared,
        },
        Test {
            name: "intx_disabled",
            run: disabled,
        },
        Test {
            name: "intx_disabled_while_pending",
            run: disabled_while_pending,
        },
        Test {
            name: "intx_cleared_active",
            run: cleared_active,
        },
    ])
}

/// A device, with its BAR placed.
struct Edu {
    function: Function,
    registers: Window,
}

static EDUS: Once<Vec<Edu>> = Once::new();

fn find() -> Vec<Edu> {
    let Some(bridge) = platform::get().host_bridge else {
        return Vec::new();
    };
    let start = pci::first_fit(&bridge, BAR_SIZE).base() - bridge.memory32.base();
    let functions = Function::all(&bridge).filter(|function| function.id() == ID);
    let places = (start..).step_by(BAR_SIZE);
    let edus = functions.zip(places).map(|(function, offset)| {
        let registers = bridge.memory32.part(offset, BAR_SIZE);
        function.place(0, registers.base());
        function.enable();
        Edu {
            function,
            registers,
        }
    });
    edus.collect()
}

/// Returns the two devices, with nothing to say.
fn both() -> [&'static Edu; 2] {
    let edus = EDUS.call_once(find);
    [0, 1].map(|index| {
        let edu = &edus[index];
        edu.function.enable();
        edu.acknowledge();
        edu
    })
}

impl Edu {
    fn raise(&self) {
        self.registers.write32(RAISE, 1);
    }

    fn acknowledge(&self) {
        let status = self.registers.read32(STATUS);
        self.registers.write32(ACKNOWLEDGE, status);
    }

    fn disable(&self, disable: bool) {
        let bit = if disable { INTERRUPT_DISABLE } else { 0 };
        self.function
            .config
            .write16(COMMAND, pci::MEMORY_AND_MASTER | bit);
    }

    fn shows_status(&self) -> bool {
        self.function.config.read16(CONFIG_STATUS) & INTERRUPT_STATUS != 0
    }

    fn line(&self) -> u32 {
        line(&self.function)
    }
}

/// Returns the INTID of a function's pin.
pub(crate) fn line(function: &Function) -> u32 {
    let device = u32::from(function.requester >> 3 & 0x1f);
    let pin = u32::from(function.config.read8(INTERRUPT_PIN));
    FIRST_LINE + (device + pin - 1) % 4
}

/// How often the line's interrupt came, and after how many times the handler sees to the devices.
static CAME: AtomicU32 = AtomicU32::new(0);
static PATIENCE: AtomicU32 = AtomicU32::new(0);
/// How often Interrupt Status was not what the device's own register said.
static WRONG: AtomicU32 = AtomicU32::new(0);

/// Leaves the devices alone until they have come a few times; then sees to one at each time.
fn handler(_: u32) {
    let came = CAME.fetch_add(1, Ordering::Relaxed) + 1;
    compare_status();
    if came >= PATIENCE.load(Ordering::Relaxed)
        && let Some(edus) = EDUS.get()
        && let Some(edu) = edus.iter().find(|edu| edu.registers.read32(STATUS) != 0)
    {
        edu.acknowledge();
        compare_status();
    }
}

fn compare_status() {
    for edu in EDUS.get().into_iter().flatten() {
        let asserts = edu.registers.read32(STATUS) != 0;
        if edu.shows_status() != asserts {
            WRONG.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Runs `raise` with the line's interrupt let through, and returns how often that came until nothing came
/// any more, which is not before `least` have come. The handler sees to the devices from the `patience`th
/// time on.
fn count(line: u32, patience: u32, least: u32, raise: impl FnOnce()) -> u32 {
    CAME.store(0, Ordering::Relaxed);
    PATIENCE.store(patience, Ordering::Relaxed);
    gic::set_handler(line, Some(handler));
    gic::set_edge(line, false);
    gic::enable(line);
    exception::unmask_irqs();
    raise();
    timer::wait_until(LONG, || CAME.load(Ordering::Relaxed) >= least);
    let mut last = CAME.load(Ordering::Relaxed);
    while timer::wait_until(QUIET, || CAME.load(Ordering::Relaxed) != last) {
        last = CAME.load(Ordering::Relaxed);
        if last > 100 {
            break;
        }
    }
    exception::mask_irqs();
    gic::disable(line);
    gic::set_handler(line, None);
    last
}

fn two_on_one_line() -> Outcome {
    gic::ensure_ready();
    let [one, other] = both();
    check_eq!(one.function.config.read8(INTERRUPT_PIN), 1, "pin");
    check_eq!(one.line(), other.line(), "lines");
    check!(!one.shows_status(), "Interrupt Status of a quiet device");
    check!(
        pci::is_mapped(&one.function.config),
        "reads trap before the first interrupt"
    );
    Ok(())
}

fn comes_and_goes() -> Outcome {
    let [one, other] = both();
    for edu in [one, other, one] {
        check_eq!(count(edu.line(), 1, 1, || edu.raise()), 1, "interrupts");
        check!(!edu.shows_status(), "Interrupt Status after the end");
        check!(!gic::is_pending(edu.line()), "the line stays high");
        let wrong = WRONG.load(Ordering::Relaxed);
        check_eq!(wrong, 0, "Interrupt Status in the handler");
        check!(
            !pci::is_mapped(&edu.function.config),
            "reads do not trap after an interrupt"
        );
    }
    Ok(())
}

fn comes_again() -> Outcome {
    let [one, _] = both();
    let came = count(one.line(), 5, 5, || one.raise());
    check_eq!(
        came,
        5,
        "interrupts of a device that is left alone four times"
    );
    Ok(())
}

/// Raises the device's interrupt and takes it with the end split: what follows is left of it.
fn take_split(edu: &Edu, line: u32) -> Outcome {
    gic::enable(line);
    edu.raise();
    let pending = || gic::is_pending(line);
    check!(timer::wait_until(LONG, pending), "it is not pending");
    gic::split_end(true);
    check_eq!(gic::acknowledge(), line, "what came");
    gic::end(line);
    check!(gic::is_active(line), "it is not active");
    Ok(())
}

/// Ends what [`take_split`] began, after the device was seen to and `end` has ended the interrupt.
fn end_split(edu: &Edu, line: u32, end: impl Fn()) -> Outcome {
    end();
    let pending = || gic::is_pending(line);
    check!(timer::wait_until(LONG, pending), "it does not come again");
    check_eq!(gic::acknowledge(), line, "what came again");
    gic::end(line);
    edu.acknowledge();
    end();
    gic::split_end(false);
    check!(!gic::is_active(line), "it is active");
    let quiet = || !gic::is_pending(line);
    check!(timer::wait_until(LONG, quiet), "it is pending");
    gic::disable(line);
    check_eq!(count(line, 1, 1, || edu.raise()), 1, "interrupts");
    Ok(())
}

fn split_end() -> Outcome {
    let [one, _] = both();
    let line = one.line();
    take_split(one, line)?;
    end_split(one, line, || gic::deactivate(line))
}

fn shared() -> Outcome {
    let [one, other] = both();
    let came = count(one.line(), 1, 2, || {
        one.raise();
        other.raise();
    });
    check!((2..=3).contains(&came), "{came} interrupts of two devices");
    check_eq!(one.registers.read32(STATUS), 0, "status of the first");
    check_eq!(other.registers.read32(STATUS), 0, "status of the second");
    Ok(())
}

fn disabled() -> Outcome {
    let [one, other] = both();
    one.disable(true);
    check_eq!(count(one.line(), 1, 0, || one.raise()), 0, "interrupts");
    check!(one.shows_status(), "Interrupt Status is off");
    // The other one is not concerned, and the first one is seen to first.
    check_eq!(count(one.line(), 2, 3, || other.raise()), 3, "interrupts");
    one.raise();
    check_eq!(
        count(one.line(), 1, 1, || one.disable(false)),
        1,
        "interrupts"
    );
    Ok(())
}

fn disabled_while_pending() -> Outcome {
    let [one, _] = both();
    one.raise();
    let pending = || gic::is_pending(one.line());
    check!(timer::wait_until(LONG, pending), "it is not pending");
    one.disable(true);
    check!(!pending(), "it is pending all the same");
    one.disable(false);
    check!(timer::wait_until(LONG, pending), "it is not pending again");
    check_eq!(count(one.line(), 1, 1, || ()), 1, "interrupts");
    Ok(())
}

/// The active state can be cleared in the distributor, too.
fn cleared_active() -> Outcome {
    let [one, _] = both();
    let line = one.line();
    take_split(one, line)?;
    end_split(one, line, || {
        let (word, bit) = (line as usize / 32 * 4, 1 << (line % 32));
        gic::distributor().write32(gic::reg::ICACTIVER + word, bit);
    })
}
