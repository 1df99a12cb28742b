//! The machine's UART, and who shares it.

use crate::domain;
use alloc::collections::TryReserveError;
use arch::mmio::Window;
use arch::pl011::{Interrupts, Pl011};
use core::fmt;
use kernel::console::{Console, Full};
use spin::Mutex;

struct Terminal {
    uart: Pl011<Window>,
    console: Console,
    /// The UART's interrupt arrives, so that what has no room in its FIFO waits for it.
    interrupts: bool,
}

static TERMINAL: Mutex<Option<Terminal>> = Mutex::new(None);

/// Takes the machine's UART over.
pub(crate) fn init(window: Window) -> Result<(), TryReserveError> {
    let mut uart = Pl011::new(window);
    uart.init();
    *TERMINAL.lock() = Some(Terminal {
        uart,
        console: Console::new()?,
        interrupts: false,
    });
    Ok(())
}

impl Terminal {
    /// Gives the UART what it has room for; before there are interrupts, all of it.
    fn drain(&mut self) {
        while let Some(byte) = self.console.peek() {
            let sent = if self.interrupts {
                self.uart.try_putc(byte)
            } else {
                // A UART that takes nothing any more keeps nobody from running.
                self.uart.putc(byte).is_ok()
            };
            if !sent {
                break;
            }
            self.console.pop();
        }
        if self.interrupts {
            self.uart.enable_interrupts(Interrupts {
                receive: true,
                transmit: self.console.peek().is_some(),
            });
        }
    }
}

fn with<R>(f: impl FnOnce(&mut Terminal) -> R) -> Option<R> {
    TERMINAL.lock().as_mut().map(f)
}

/// From now on the UART's interrupt arrives (`interrupt`).
pub(crate) fn use_interrupts() {
    with(|terminal| {
        terminal.interrupts = true;
        terminal.drain();
    });
}

/// Handles the UART's interrupt.
pub(crate) fn interrupt() {
    loop {
        let typed = with(|terminal| {
            terminal.uart.clear_interrupts(terminal.uart.interrupts());
            terminal.drain();
            loop {
                let byte = terminal.uart.getc()?;
                let typed = terminal.console.typed(byte);
                if typed.is_some() {
                    return typed;
                }
            }
        });
        let Some(Some((domain, byte))) = typed else {
            break;
        };
        domain::typed(domain, byte);
    }
    with(Terminal::drain);
    if has_room() {
        domain::terminal_has_room();
    }
}

/// Returns whether a domain that found the terminal full may try again.
pub(crate) fn has_room() -> bool {
    with(|terminal| terminal.console.has_room()).unwrap_or(true)
}

/// Writes a line of EL2's own.
pub(crate) fn log(line: fmt::Arguments<'_>) {
    with(|terminal| {
        terminal.console.log(line);
        terminal.drain();
    });
}

/// Adds a domain's console.
pub(crate) fn attach(id: u32, name: &str, focus: bool) -> Result<(), TryReserveError> {
    with(|terminal| terminal.console.attach(id, name, focus)).unwrap_or(Ok(()))
}

/// Removes a domain's console.
pub(crate) fn detach(id: u32) {
    with(|terminal| {
        terminal.console.detach(id);
        terminal.drain();
    });
}

/// Shows the line that a domain has begun.
pub(crate) fn end_line(id: u32) {
    with(|terminal| {
        terminal.console.end_line(id);
        terminal.drain();
    });
}

/// Writes a byte of a domain's.
pub(crate) fn write(id: u32, byte: u8) -> Result<(), Full> {
    with(|terminal| {
        let written = terminal.console.write(id, byte);
        terminal.drain();
        written
    })
    .unwrap_or(Ok(()))
}

/// Sends everything that waits, whatever state the lock is in: the machine is about to stop.
pub(crate) fn last_words(line: fmt::Arguments<'_>) {
    for _ in 0..1_000_000 {
        if let Some(mut guard) = TERMINAL.try_lock() {
            if let Some(terminal) = guard.as_mut() {
                terminal.interrupts = false;
                terminal.console.log(line);
                terminal.drain();
                let _ = terminal.uart.flush();
            }
            return;
        }
        core::hint::spin_loop();
    }
    // SAFETY: who holds the lock is stopped or is the caller itself, which does not come back.
    unsafe { TERMINAL.force_unlock() };
    if let Some(terminal) = TERMINAL.lock().as_mut() {
        terminal.interrupts = false;
        terminal.console.log(line);
        terminal.drain();
        let _ = terminal.uart.flush();
    }
}
