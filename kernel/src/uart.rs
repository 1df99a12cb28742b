//! The PL011 that a domain sees (Arm DDI 0183, PrimeCell UART PL011, revision r1p5).
//!
//! Characters that the guest writes are gone at once, so its transmit FIFO is always empty; what is
//! typed waits in the receive FIFO, and what is typed or pasted faster than the guest reads waits behind
//! it, as a line with flow control would have it. Output works without any set-up, as firmware expects.

use crate::wired::Line;
use alloc::collections::VecDeque;

/// Depth of the receive FIFO.
const FIFO: usize = 32;
/// Characters that wait behind it.
const BACKLOG: usize = 4096;

/// Offsets of the registers (DDI 0183, table 3-1).
mod offset {
    pub(super) const DR: u64 = 0x000;
    pub(super) const RSR: u64 = 0x004;
    pub(super) const FR: u64 = 0x018;
    pub(super) const ILPR: u64 = 0x020;
    pub(super) const IBRD: u64 = 0x024;
    pub(super) const FBRD: u64 = 0x028;
    pub(super) const LCR_H: u64 = 0x02c;
    pub(super) const CR: u64 = 0x030;
    pub(super) const IFLS: u64 = 0x034;
    pub(super) const IMSC: u64 = 0x038;
    pub(super) const RIS: u64 = 0x03c;
    pub(super) const MIS: u64 = 0x040;
    pub(super) const ICR: u64 = 0x044;
    pub(super) const DMACR: u64 = 0x048;
    pub(super) const ID: u64 = 0xfe0;
}

/// UARTFR (3.3.3).
const FR_TXFE: u32 = 1 << 7;
const FR_RXFF: u32 = 1 << 6;
const FR_RXFE: u32 = 1 << 4;
/// UARTCR (3.3.8) after reset: transmitter and receiver enabled, the UART itself not.
const CR_RESET: u32 = 0x300;
/// UARTIFLS (3.3.9) after reset: both FIFOs at one half.
const IFLS_RESET: u32 = 0x12;
/// UARTLCR_H.FEN (3.3.7).
const LCR_H_FEN: u32 = 1 << 4;
/// Interrupts (3.3.10 to 3.3.13): receive, transmit, receive timeout, overrun.
const INT_RX: u32 = 1 << 4;
const INT_TX: u32 = 1 << 5;
const INT_RT: u32 = 1 << 6;
const INT_OE: u32 = 1 << 10;
const INT_ALL: u32 = 0x7ff;
/// UARTDR.OE, UARTRSR.OE: a character was lost (3.3.1, 3.3.2).
const DR_OE: u32 = 1 << 11;
const RSR_OE: u32 = 1 << 3;
/// UARTPeriphID0 to 3 and UARTPCellID0 to 3 (3.3.15 on): part 0x011, Arm, revision r1p5.
const IDENTIFICATION: [u32; 8] = [0x11, 0x10, 0x34, 0x00, 0x0d, 0xf0, 0x05, 0xb1];

/// The receive FIFO itself: a ring, whose oldest character is at `first`.
#[derive(Debug, Default)]
struct Fifo {
    characters: [u8; FIFO],
    first: usize,
    len: usize,
}

impl Fifo {
    fn len(&self) -> usize {
        self.len
    }

    fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn clear(&mut self) {
        self.len = 0;
    }

    /// Adds a character; who calls has looked whether there is room.
    fn push_back(&mut self, character: u8) {
        self.characters[(self.first + self.len) % FIFO] = character;
        self.len += 1;
    }

    fn pop_front(&mut self) -> Option<u8> {
        self.len = self.len.checked_sub(1)?;
        let character = self.characters[self.first];
        self.first = (self.first + 1) % FIFO;
        Some(character)
    }
}

/// A domain's UART.
#[derive(Debug)]
pub struct Uart {
    received: Fifo,
    backlog: VecDeque<u8>,
    lost: bool,
    error: u32,
    ilpr: u32,
    ibrd: u32,
    fbrd: u32,
    lcr_h: u32,
    cr: u32,
    ifls: u32,
    imsc: u32,
    ris: u32,
    dmacr: u32,
}

impl Default for Uart {
    fn default() -> Self {
        Self {
            received: Fifo::default(),
            backlog: VecDeque::new(),
            lost: false,
            error: 0,
            ilpr: 0,
            ibrd: 0,
            fbrd: 0,
            lcr_h: 0,
            cr: CR_RESET,
            ifls: IFLS_RESET,
            imsc: 0,
            ris: 0,
            dmacr: 0,
        }
    }
}

impl Line for Uart {
    fn line(&self) -> bool {
        self.ris & self.imsc != 0
    }
}

impl Uart {
    /// Reads the register at `offset`. What is none reads zero.
    pub fn read(&mut self, offset: u64) -> u32 {
        match offset & !3 {
            offset::DR => self.take(),
            offset::RSR => self.error,
            offset::FR => self.flags(),
            offset::ILPR => self.ilpr,
            offset::IBRD => self.ibrd,
            offset::FBRD => self.fbrd,
            offset::LCR_H => self.lcr_h,
            offset::CR => self.cr,
            offset::IFLS => self.ifls,
            offset::IMSC => self.imsc,
            offset::RIS => self.ris,
            offset::MIS => self.ris & self.imsc,
            offset::DMACR => self.dmacr,
            id @ offset::ID..=0xffc => {
                let index = usize::try_from((id - offset::ID) / 4).unwrap_or(usize::MAX);
                IDENTIFICATION.get(index).copied().unwrap_or(0)
            }
            _ => 0,
        }
    }

    /// Writes the register at `offset`, and returns the character that goes out.
    pub fn write(&mut self, offset: u64, value: u32) -> Option<u8> {
        match offset & !3 {
            offset::DR => {
                self.ris |= INT_TX;
                return Some(value.to_le_bytes()[0]);
            }
            offset::RSR => self.error = 0,
            offset::ILPR => self.ilpr = value & 0xff,
            offset::IBRD => self.ibrd = value & 0xffff,
            offset::FBRD => self.fbrd = value & 0x3f,
            offset::LCR_H => {
                // FIFOs that are turned on or off lose what they hold.
                if (self.lcr_h ^ value) & LCR_H_FEN != 0 {
                    self.received.clear();
                }
                self.lcr_h = value & 0xff;
                self.refill();
                self.level();
            }
            offset::CR => self.cr = value & 0xffff,
            offset::IFLS => {
                self.ifls = value & 0x3f;
                self.level();
            }
            offset::IMSC => self.imsc = value & INT_ALL,
            offset::ICR => {
                self.ris &= !value;
                self.level();
            }
            offset::DMACR => self.dmacr = value & 7,
            _ => {}
        }
        None
    }

    /// Takes a character that was typed.
    pub fn receive(&mut self, character: u8) {
        if self.backlog.is_empty() && self.received.len() < self.depth() {
            self.received.push_back(character);
        } else if self.backlog.len() < BACKLOG && self.backlog.try_reserve(1).is_ok() {
            self.backlog.push_back(character);
        } else {
            self.lost = true;
            self.ris |= INT_OE;
        }
        // Nothing follows at once, so the timeout is over at once (2.4.2).
        self.ris |= INT_RT;
        self.level();
    }

    fn take(&mut self) -> u32 {
        let Some(character) = self.received.pop_front() else {
            return 0;
        };
        self.error = 0;
        self.refill();
        let mut value = u32::from(character);
        if core::mem::take(&mut self.lost) {
            value |= DR_OE;
            self.error = RSR_OE;
        }
        self.level();
        value
    }

    /// Moves what waits behind the FIFO into it. Nothing follows at once then, as in `receive`. Memory for what
    /// waits is kept as long as something does.
    fn refill(&mut self) {
        while self.received.len() < self.depth()
            && let Some(character) = self.backlog.pop_front()
        {
            self.received.push_back(character);
            self.ris |= INT_RT;
        }
        if self.backlog.is_empty() {
            self.backlog = VecDeque::new();
        }
    }

    fn flags(&self) -> u32 {
        let mut flags = FR_TXFE;
        if self.received.is_empty() {
            flags |= FR_RXFE;
        }
        if self.received.len() == self.depth() {
            flags |= FR_RXFF;
        }
        flags
    }

    fn depth(&self) -> usize {
        if self.lcr_h & LCR_H_FEN != 0 { FIFO } else { 1 }
    }

    /// Makes the interrupts follow the fill level of the receive FIFO.
    fn level(&mut self) {
        let trigger = if self.lcr_h & LCR_H_FEN == 0 {
            1
        } else {
            // UARTIFLS.RXIFLSEL: an eighth, a quarter, a half, three quarters, seven eighths.
            match self.ifls >> 3 & 7 {
                0 => FIFO / 8,
                1 => FIFO / 4,
                2 => FIFO / 2,
                3 => FIFO / 4 * 3,
                _ => FIFO / 8 * 7,
            }
        };
        if self.received.len() >= trigger {
            self.ris |= INT_RX;
        } else {
            self.ris &= !INT_RX;
        }
        if self.received.is_empty() {
            self.ris &= !INT_RT;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_byte_store_alone_sends() {
        let mut uart = Uart::default();
        assert_eq!(uart.write(offset::DR, 0x1241), Some(0x41));
        assert_eq!(uart.read(offset::FR), FR_TXFE | FR_RXFE);
        assert!(!uart.line());
    }

    #[test]
    fn what_is_typed_interrupts_until_it_is_read() {
        let mut uart = Uart::default();
        uart.write(offset::LCR_H, 0x70);
        uart.write(offset::IMSC, INT_RX | INT_RT);
        uart.receive(b'a');
        uart.receive(b'b');
        assert!(uart.line());
        assert_eq!(uart.read(offset::MIS), INT_RT);
        assert_eq!((uart.read(offset::DR), uart.read(offset::DR)), (0x61, 0x62));
        assert!(!uart.line());
        assert_eq!(uart.read(offset::FR) & FR_RXFE, FR_RXFE);
        for _ in 0..FIFO / 2 {
            uart.receive(b'x');
        }
        assert_eq!(uart.read(offset::MIS), INT_RX | INT_RT);
    }

    #[test]
    fn the_transmit_interrupt_comes_after_a_character_and_is_cleared() {
        let mut uart = Uart::default();
        uart.write(offset::IMSC, INT_TX);
        assert!(!uart.line());
        uart.write(offset::DR, 1);
        assert!(uart.line());
        uart.write(offset::ICR, INT_TX);
        assert!(!uart.line());
    }

    #[test]
    fn what_does_not_fit_is_lost_and_says_so() {
        let mut uart = Uart::default();
        uart.write(offset::LCR_H, LCR_H_FEN);
        for _ in 0..FIFO + BACKLOG {
            uart.receive(b'x');
        }
        assert_eq!(uart.read(offset::RIS) & INT_OE, 0);
        uart.receive(b'x');
        assert_eq!(uart.read(offset::RIS) & INT_OE, INT_OE);
        assert_eq!(uart.read(offset::FR) & FR_RXFF, FR_RXFF);
        assert_eq!(uart.read(offset::DR), DR_OE | 0x78);
        assert_eq!(uart.read(offset::RSR), RSR_OE);
        uart.write(offset::RSR, 0);
        assert_eq!(uart.read(offset::RSR), 0);
    }

    #[test]
    fn what_is_pasted_arrives_whole() {
        let mut uart = Uart::default();
        uart.write(offset::LCR_H, LCR_H_FEN);
        let pasted: Vec<u8> = (0..200).collect();
        pasted.iter().for_each(|character| uart.receive(*character));
        let mut read = Vec::new();
        while uart.read(offset::FR) & FR_RXFE == 0 {
            read.push(uart.read(offset::DR).to_le_bytes()[0]);
        }
        assert_eq!(read, pasted);
        assert_eq!(uart.backlog.capacity(), 0, "what nothing waits in");
    }

    /// PL011 TRM, 3.3.9: from how many characters on there is an interrupt, by UARTIFLS.RXIFLSEL; from one on if the
    /// FIFOs are off, which are empty whenever they are turned on or off.
    #[test]
    fn the_guest_says_how_full_the_fifo_is_when_it_interrupts() {
        let mut uart = Uart::default();
        for (level, characters) in [(0, 4), (1, 8), (2, 16), (3, 24), (4, 28)] {
            uart.write(offset::LCR_H, LCR_H_FEN);
            uart.write(offset::IFLS, level << 3);
            for number in 1..=characters {
                uart.receive(b'x');
                let is_due = uart.read(offset::RIS) & INT_RX != 0;
                assert_eq!(is_due, number == characters, "{level}: {number}");
            }
            uart.write(offset::IFLS, 4 << 3);
            let is_due = uart.read(offset::RIS) & INT_RX != 0;
            assert_eq!(is_due, level == 4, "{level}: there need be more now");
            uart.write(offset::LCR_H, 0);
            assert_eq!(uart.read(offset::FR) & FR_RXFE, FR_RXFE);
            assert_eq!(uart.read(offset::RIS) & INT_RX, 0);
            uart.receive(b'x');
            assert_eq!(uart.read(offset::RIS) & INT_RX, INT_RX, "without FIFOs");
        }
    }

    #[test]
    fn what_nothing_depends_on_holds_what_it_has_bits_for() {
        let mut uart = Uart::default();
        let cases = [
            (offset::ILPR, 0xff),
            (offset::IBRD, 0xffff),
            (offset::FBRD, 0x3f),
            (offset::LCR_H, 0xff),
            (offset::CR, 0xffff),
            (offset::IFLS, 0x3f),
        ];
        for (offset, bits) in cases {
            for value in [u32::MAX, 0] {
                assert_eq!(uart.write(offset, value), None);
                assert_eq!(uart.read(offset), value & bits, "{offset:#x}");
            }
        }
    }

    #[test]
    fn it_is_a_pl011() {
        let mut uart = Uart::default();
        let id: Vec<u32> = (0..8).map(|n| uart.read(offset::ID + n * 4)).collect();
        assert_eq!(id, IDENTIFICATION);
    }

    proptest! {
        #[test]
        fn no_access_panics(accesses in prop::collection::vec(any::<(u16, u32, u8)>(), 0..200)) {
            let mut uart = Uart::default();
            for (offset, value, what) in accesses {
                match what % 3 {
                    0 => { uart.read(offset.into()); }
                    1 => { uart.write(offset.into(), value); }
                    _ => uart.receive(what),
                }
                prop_assert!(uart.received.len() <= FIFO);
            }
        }
    }
}
