//! Output on the PL011.
//!
//! A line is written under one lock, so that the lines of several vCPUs do not mix. Output needs no
//! set-up: the data register takes bytes from reset on (guests.md asks this of the hypervisor, and
//! QEMU's own PL011 does the same).

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicUsize, Ordering};

use spin::Mutex;

use crate::mmio::Window;
use crate::{exception, timer};

/// Data register (PL011 TRM, 3.3.1).
const UARTDR: usize = 0x00;
/// Flags: transmit FIFO full is bit 5 (3.3.3).
const UARTFR: usize = 0x18;
const TXFF: u32 = 1 << 5;
/// And the receive FIFO is empty.
const RXFE: u32 = 1 << 4;

/// Where the UART is until the device tree has been read, and if it names none.
const DEFAULT: usize = 0x0900_0000;

static BASE: AtomicUsize = AtomicUsize::new(DEFAULT);
static LOCK: Mutex<()> = Mutex::new(());

/// Sends output to the UART at `base` from now on.
pub(crate) fn set_base(base: usize) {
    BASE.store(base, Ordering::Relaxed);
}

/// Returns the UART's registers.
pub fn window() -> Window {
    // SAFETY: this is the UART, as the device tree or the virtual platform has it.
    unsafe { Window::new(BASE.load(Ordering::Relaxed), 0x1000) }
}

/// Returns a byte that was typed, if one waits.
pub fn read() -> Option<u8> {
    let window = window();
    if window.read32(UARTFR) & RXFE != 0 {
        return None;
    }
    Some(window.read8(UARTDR))
}

/// Waits until something is typed.
pub fn wait_for_key() {
    while read().is_none() {
        timer::sleep(5);
    }
}

struct Console(Window);

impl Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if byte == b'\n' {
                self.put(b'\r');
            }
            self.put(byte);
        }
        Ok(())
    }
}

impl Console {
    fn put(&self, byte: u8) {
        while self.0.read32(UARTFR) & TXFF != 0 {
            core::hint::spin_loop();
        }
        self.0.write8(UARTDR, byte);
    }
}

/// Writes formatted text.
pub fn print(text: fmt::Arguments<'_>) {
    exception::without_irqs(|| {
        let _guard = LOCK.lock();
        let _ = Console(window()).write_fmt(text);
    });
}

/// Writes formatted text and ends the line.
pub fn print_line(text: fmt::Arguments<'_>) {
    print(format_args!("{text}\n"));
}

/// Frees the lock, so that a vCPU that died while printing can say why.
pub(crate) fn release() {
    exception::mask_irqs();
    // SAFETY: whoever holds the lock is this vCPU, which does not go back to it, or another one whose
    // line gets mixed with ours before the domain powers off.
    unsafe { LOCK.force_unlock() };
}
