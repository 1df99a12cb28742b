//! PL011 UART, and the subset of it that SBSA calls the generic UART.
//!
//! PrimeCell UART (PL011) Technical Reference Manual, chapter 3.

use crate::mmio::{Bus, Reg32, Timeout, wait_until};
use tock_registers::register_bitfields;

register_bitfields! {u32,
    /// Data register (3.3.1).
    DR [
        /// The character, and on a read four error bits above it.
        DATA OFFSET(0) NUMBITS(8) [],
        /// Framing, parity, break and overrun error.
        ERRORS OFFSET(8) NUMBITS(4) []
    ],
    /// Flag register (3.3.3).
    FR [
        /// Still sending.
        BUSY OFFSET(3) NUMBITS(1) [],
        /// Receive FIFO is empty.
        RXFE OFFSET(4) NUMBITS(1) [],
        /// Transmit FIFO is full.
        TXFF OFFSET(5) NUMBITS(1) []
    ],
    /// Line control register (3.3.7).
    LCR_H [
        /// FIFOs are on.
        FEN OFFSET(4) NUMBITS(1) [],
        /// Character length.
        WLEN OFFSET(5) NUMBITS(2) [
            Eight = 3
        ]
    ],
    /// Control register (3.3.8).
    CR [
        /// UART is on.
        UARTEN OFFSET(0) NUMBITS(1) [],
        /// Transmitter is on.
        TXE OFFSET(8) NUMBITS(1) [],
        /// Receiver is on.
        RXE OFFSET(9) NUMBITS(1) []
    ],
    /// Interrupt FIFO level select register (3.3.9).
    IFLS [
        /// Transmit interrupt comes when the FIFO has become this empty.
        TXIFLSEL OFFSET(0) NUMBITS(3) [
            Half = 2
        ],
        /// Receive interrupt comes when the FIFO has become this full.
        RXIFLSEL OFFSET(3) NUMBITS(3) [
            Eighth = 0
        ]
    ],
    /// Interrupt mask, raw status, masked status and clear registers (3.3.10 to 3.3.13) alike.
    INT [
        /// Receive.
        RX OFFSET(4) NUMBITS(1) [],
        /// Transmit.
        TX OFFSET(5) NUMBITS(1) [],
        /// Receive timeout: less than a FIFO level came, and then nothing more.
        RT OFFSET(6) NUMBITS(1) [],
        /// Overrun error.
        OE OFFSET(10) NUMBITS(1) []
    ]
}

const UARTDR: Reg32<DR::Register> = Reg32::at(0x00);
const UARTFR: Reg32<FR::Register> = Reg32::at(0x18);
const UARTLCR_H: Reg32<LCR_H::Register> = Reg32::at(0x2c);
const UARTCR: Reg32<CR::Register> = Reg32::at(0x30);
const UARTIFLS: Reg32<IFLS::Register> = Reg32::at(0x34);
const UARTIMSC: Reg32<INT::Register> = Reg32::at(0x38);
const UARTMIS: Reg32<INT::Register> = Reg32::at(0x40);
const UARTICR: Reg32<INT::Register> = Reg32::at(0x44);

/// Depth of the deepest FIFO that there is.
const FIFO: u32 = 32;

/// Why the UART wants attention (3.3.12).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Interrupts {
    /// There is something to read.
    pub receive: bool,
    /// There is room to write.
    pub transmit: bool,
}

/// A UART.
#[derive(Debug)]
pub struct Pl011<B> {
    bus: B,
}

impl<B: Bus> Pl011<B> {
    /// Takes the registers over, without touching them.
    pub const fn new(bus: B) -> Self {
        Self { bus }
    }

    /// Turns receiver, transmitter and FIFOs on, with all interrupts masked, at the baud rate that
    /// firmware has set.
    ///
    /// The sequence is that of 3.3.8: off, last character out, line control, on. A UART that never
    /// gets its last character out is programmed all the same.
    pub fn init(&mut self) {
        UARTIMSC.set(&self.bus, 0);
        UARTCR.modify(&self.bus, CR::UARTEN::CLEAR);
        let _ = wait_until(|| !UARTFR.read(&self.bus).is_set(FR::BUSY));
        // Emptied by the FIFOs' being off for a moment. The write also latches the baud rate
        // registers, which keep their values.
        UARTLCR_H.modify(&self.bus, LCR_H::FEN::CLEAR);
        UARTLCR_H.write(&self.bus, LCR_H::WLEN::Eight + LCR_H::FEN::SET);
        UARTIFLS.write(&self.bus, IFLS::TXIFLSEL::Half + IFLS::RXIFLSEL::Eighth);
        UARTICR.set(&self.bus, 0x7ff);
        UARTCR.modify(&self.bus, CR::UARTEN::SET + CR::TXE::SET + CR::RXE::SET);
    }

    /// Returns whether a character can be sent at once.
    pub fn tx_ready(&self) -> bool {
        !UARTFR.read(&self.bus).is_set(FR::TXFF)
    }

    /// Sends a character if there is room for it, and returns whether there was.
    pub fn try_putc(&self, character: u8) -> bool {
        let ready = self.tx_ready();
        if ready {
            UARTDR.write(&self.bus, DR::DATA.val(u32::from(character)));
        }
        ready
    }

    /// Sends a character, and waits until there is room for it.
    pub fn putc(&self, character: u8) -> Result<(), Timeout> {
        wait_until(|| self.try_putc(character))
    }

    /// Waits until everything is on the line.
    pub fn flush(&self) -> Result<(), Timeout> {
        wait_until(|| !UARTFR.read(&self.bus).is_set(FR::BUSY))
    }

    /// Takes a character that came in. What came in broken is left out, a FIFO's worth of it at
    /// most.
    pub fn getc(&self) -> Option<u8> {
        for _ in 0..FIFO {
            if UARTFR.read(&self.bus).is_set(FR::RXFE) {
                return None;
            }
            let data = UARTDR.read(&self.bus);
            // Of the errors, an overrun (bit 3) concerns what was lost after this character.
            if data.read(DR::ERRORS) & 0b0111 == 0 {
                return Some((data.get() & 0xff) as u8);
            }
        }
        None
    }

    /// Chooses which of the interrupts reach the interrupt controller.
    pub fn enable_interrupts(&self, interrupts: Interrupts) {
        let mut mask = INT::RX::CLEAR + INT::TX::CLEAR;
        if interrupts.receive {
            mask += INT::RX::SET + INT::RT::SET + INT::OE::SET;
        }
        if interrupts.transmit {
            mask += INT::TX::SET;
        }
        UARTIMSC.write(&self.bus, mask);
    }

    /// Returns which of the enabled interrupts are active.
    pub fn interrupts(&self) -> Interrupts {
        let status = UARTMIS.read(&self.bus);
        Interrupts {
            receive: status.is_set(INT::RX) || status.is_set(INT::RT) || status.is_set(INT::OE),
            transmit: status.is_set(INT::TX),
        }
    }

    /// Clears interrupts. To be called before the FIFOs are served, so that what comes meanwhile
    /// raises the interrupt anew.
    pub fn clear_interrupts(&self, interrupts: Interrupts) {
        let mut clear = INT::RX::CLEAR + INT::TX::CLEAR;
        if interrupts.receive {
            clear += INT::RX::SET + INT::RT::SET + INT::OE::SET;
        }
        if interrupts.transmit {
            clear += INT::TX::SET;
        }
        UARTICR.write(&self.bus, clear);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mmio::testing::Array;

    const RECEIVE: Interrupts = Interrupts {
        receive: true,
        transmit: false,
    };
    const TRANSMIT: Interrupts = Interrupts {
        receive: false,
        transmit: true,
    };

    #[test]
    fn init_keeps_the_baud_rate_and_turns_both_ways_on() {
        let bus = Array::new(0x1000);
        bus.preset32(0x24, 13);
        bus.preset32(0x28, 1);
        bus.preset32(0x30, 0x8001);
        Pl011::new(&bus).init();
        assert_eq!(
            *bus.writes.borrow(),
            [
                (0x38, 0),      // all masked
                (0x30, 0x8000), // off; flow control stays as it was
                (0x2c, 0x00),   // FIFOs emptied
                (0x2c, 0x70),   // eight bits, FIFOs
                (0x34, 0x02),
                (0x44, 0x7ff),
                (0x30, 0x8301),
            ]
        );
        assert_eq!((bus.read32(0x24), bus.read32(0x28)), (13, 1));
    }

    #[test]
    fn putc_waits_for_room_but_not_for_ever() {
        let bus = Array::new(0x1000);
        let uart = Pl011::new(&bus);
        assert_eq!(uart.putc(b'x'), Ok(()));
        assert_eq!(*bus.writes.borrow(), [(0, u64::from(b'x'))]);
        bus.preset32(0x18, 1 << 5);
        assert!(!uart.tx_ready());
        assert_eq!(uart.putc(b'y'), Err(Timeout));
        assert_eq!(bus.writes.borrow().len(), 1);
    }

    #[test]
    fn getc_takes_what_is_there() {
        let bus = Array::new(0x1000);
        let uart = Pl011::new(&bus);
        bus.preset32(0, 0x800 | u32::from(b'k')); // an overrun happened behind it
        assert_eq!(uart.getc(), Some(b'k'));
        bus.preset32(0, 0x100); // framing errors for ever
        assert_eq!(uart.getc(), None);
        bus.preset32(0x18, 1 << 4);
        assert_eq!(uart.getc(), None);
    }

    #[test]
    #[rustfmt::skip]
    fn interrupts_are_masked_and_reported_by_direction() {
        let cases = [
            // enabled,                IMSC,   MIS,    reported
            (Interrupts::default(),    0x000,  0x000,  Interrupts::default()),
            (RECEIVE,                  0x450,  0x010,  RECEIVE),
            (RECEIVE,                  0x450,  0x040,  RECEIVE), // the timeout
            (RECEIVE,                  0x450,  0x400,  RECEIVE), // an overrun
            (TRANSMIT,                 0x020,  0x020,  TRANSMIT),
        ];
        for (enabled, imsc, mis, reported) in cases {
            let bus = Array::new(0x1000);
            let uart = Pl011::new(&bus);
            uart.enable_interrupts(enabled);
            assert_eq!(bus.read32(0x38), imsc);
            bus.preset32(0x40, mis);
            assert_eq!(uart.interrupts(), reported, "MIS {mis:#x}");
            uart.clear_interrupts(enabled);
            assert_eq!(bus.read32(0x44), imsc);
        }
    }
}
