//! The PL011 (Arm DDI 0183).

use core::sync::atomic::{AtomicU32, Ordering};

use runtime::harness::Outcome;
use runtime::{check, check_eq, console, exception, gic, platform, println, timer};

const DR: usize = 0x00;
const FR: usize = 0x18;
const LCR_H: usize = 0x2c;
const CR: usize = 0x30;
const IMSC: usize = 0x38;
const RIS: usize = 0x3c;
const MIS: usize = 0x40;
const ICR: usize = 0x44;
const PERIPHERAL_ID: usize = 0xfe0;

const FR_RXFE: u32 = 1 << 4;
const FR_TXFE: u32 = 1 << 7;
const RX: u32 = 1 << 4;
const TX: u32 = 1 << 5;
const RX_TIMEOUT: u32 = 1 << 6;

pub(super) fn identification() -> Outcome {
    let window = console::window();
    let expected = [0x11, 0x10, 0x14, 0x00, 0x0d, 0xf0, 0x05, 0xb1];
    for (index, expected) in expected.into_iter().enumerate() {
        let offset = PERIPHERAL_ID + index * 4;
        // QEMU shows revision 1 (0x14), hardware up to 3 (0x34).
        let value = window.read32(offset) & 0xff;
        let same = if index == 2 {
            value & 0xf == 4
        } else {
            value == expected
        };
        check!(
            same,
            "register {offset:#x} is {value:#x}, expected {expected:#x}"
        );
    }
    Ok(())
}

/// Output is taken byte by byte, and the FIFO runs empty.
pub(super) fn transmit() -> Outcome {
    let window = console::window();
    for byte in b"uart: bytes, " {
        window.write8(DR, *byte);
    }
    for byte in b"and words\r\n" {
        window.write32(DR, (*byte).into());
    }
    let empty = timer::wait_until(1000, || window.read32(FR) & FR_TXFE != 0);
    check!(empty, "the FIFO stays full: FR {:#x}", window.read32(FR));
    Ok(())
}

static SEEN: AtomicU32 = AtomicU32::new(0);
static RECEIVED: AtomicU32 = AtomicU32::new(0);

fn on_interrupt(_: u32) {
    let window = console::window();
    SEEN.fetch_or(window.read32(MIS), Ordering::Relaxed);
    while window.read32(FR) & FR_RXFE == 0 {
        RECEIVED.store(window.read32(DR) & 0xff | 1 << 8, Ordering::Relaxed);
    }
    window.write32(ICR, 0x7ff);
    window.write32(IMSC, 0);
}

fn with_interrupt(mask: u32, milliseconds: u64, before: impl FnOnce()) -> u32 {
    let window = console::window();
    let intid = platform::get().uart_intid;
    SEEN.store(0, Ordering::Relaxed);
    RECEIVED.store(0, Ordering::Relaxed);
    gic::set_handler(intid, Some(on_interrupt));
    gic::route(intid, runtime::cpu::affinity());
    gic::set_edge(intid, false);
    gic::enable(intid);
    window.write32(CR, 0x301);
    window.write32(ICR, 0x7ff);
    before();
    window.write32(IMSC, mask);
    exception::unmask_irqs();
    timer::wait_until(milliseconds, || SEEN.load(Ordering::Relaxed) != 0);
    exception::mask_irqs();
    window.write32(IMSC, 0);
    gic::disable(intid);
    gic::set_handler(intid, None);
    SEEN.load(Ordering::Relaxed)
}

/// The transmit interrupt comes when there is room again, and its line goes away with its cause.
pub(super) fn transmit_interrupt() -> Outcome {
    let window = console::window();
    window.write32(LCR_H, 0x70);
    let seen = with_interrupt(TX, 500, || {
        for byte in b"uart: interrupt\r\n" {
            window.write8(DR, *byte);
        }
    });
    check!(
        seen & TX != 0,
        "no interrupt: RIS {:#x}",
        window.read32(RIS)
    );
    check_eq!(seen & !TX, 0, "masked causes in MIS");
    let intid = platform::get().uart_intid;
    check!(!gic::is_pending(intid), "INTID {intid} is still pending");
    Ok(())
}

/// Waits for somebody to type a character.
pub(super) fn receive() -> Outcome {
    println!("uart: waiting for a character");
    let seen = with_interrupt(RX | RX_TIMEOUT, 20_000, || {});
    check!(seen & (RX | RX_TIMEOUT) != 0, "no interrupt in 20 s");
    let received = RECEIVED.load(Ordering::Relaxed);
    check!(received & 1 << 8 != 0, "an interrupt, but no character");
    println!(
        "uart: received {:?}",
        u8::try_from(received & 0xff).map_or('?', char::from)
    );
    Ok(())
}
