//! MSI-X of an emulated function: the table is `vpci`'s, the pending bits are kept here.
//!
//! PCI Express Base Specification, sections 6.1.4 and 7.7.2.

use alloc::collections::TryReserveError;
use alloc::vec::Vec;

use ioreq::Width;
use vpci::msix::{Message, Table};
use vpci::{BusAddress, Sbdf};

use crate::machine::{Host, low};

/// In the capability's first dword (Message Control is its upper half).
pub const ENABLE: u32 = 1 << 31;
/// Function mask, likewise.
pub const MASK: u32 = 1 << 30;

/// What the function's registers allow it to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// MSI-X is off: an interrupt is forgotten.
    Off,
    /// The function is masked, or no bus master: an interrupt stays pending.
    Held,
    /// Nothing holds interrupts back but their vectors' masks.
    Open,
}

impl Gate {
    /// Reads it from the capability's first dword and the bus master bit.
    pub const fn of(control: u32, bus_master: bool) -> Self {
        if control & ENABLE == 0 {
            Self::Off
        } else if control & MASK != 0 || !bus_master {
            Self::Held
        } else {
            Self::Open
        }
    }
}

/// The table and the pending bits.
#[derive(Debug)]
pub struct Msix {
    table: Table,
    doorbell: BusAddress,
    pending: Vec<bool>,
}

impl Msix {
    /// Makes `vectors` masked vectors, whose messages may go to `doorbell` only.
    ///
    /// # Errors
    ///
    /// If memory is short.
    pub fn new(vectors: u16, doorbell: u64) -> Result<Self, TryReserveError> {
        let mut pending = Vec::new();
        pending.try_reserve_exact(vectors.into())?;
        pending.resize(vectors.into(), false);
        let doorbell = BusAddress::new(doorbell);
        Ok(Self {
            table: Table::new(vectors, doorbell)?,
            doorbell,
            pending,
        })
    }

    /// Returns how many vectors there are.
    pub fn vectors(&self) -> usize {
        self.pending.len()
    }

    /// Sends vector `index`, or notes that it is pending.
    pub fn fire(&mut self, index: u16, gate: Gate, sbdf: Sbdf, host: &mut dyn Host) {
        if gate == Gate::Off {
            return;
        }
        if let Some(pending) = self.pending.get_mut(usize::from(index)) {
            *pending = true;
            self.send(index, gate, sbdf, host);
        }
    }

    /// Sends what is pending and no longer held back.
    pub fn flush(&mut self, gate: Gate, sbdf: Sbdf, host: &mut dyn Host) {
        for index in 0..self.pending.len() {
            if let Ok(index) = u16::try_from(index) {
                self.send(index, gate, sbdf, host);
            }
        }
    }

    fn send(&mut self, index: u16, gate: Gate, sbdf: Sbdf, host: &mut dyn Host) {
        let Some(pending) = self.pending.get_mut(usize::from(index)) else {
            return;
        };
        if !*pending || gate != Gate::Open {
            return;
        }
        match self.table.message(index) {
            None | Some(Message::Off) => {}
            Some(Message::Live { data }) => {
                *pending = false;
                if let Err(status) = host.msi(sbdf, self.doorbell.get(), data) {
                    host.report(sbdf, &format_args!("MSI refused: {status:?}"));
                }
            }
            Some(Message::Misdirected { address }) => {
                *pending = false;
                host.report(
                    sbdf,
                    &format_args!("MSI to {address}, which is no doorbell"),
                );
            }
        }
    }

    /// Masks all vectors and forgets what is pending.
    pub fn reset(&mut self) {
        self.table.reset();
        self.pending.fill(false);
    }

    /// Reads the table at byte `offset`.
    pub fn read_table(&self, offset: u64, width: Width) -> u64 {
        let dword = |at: u64| u64::from(self.table.read(at));
        match width {
            Width::Eight => dword(offset + 4) << 32 | dword(offset),
            _ => dword(offset) >> (8 * (offset % 4)) & width.mask(),
        }
    }

    /// Writes the table at byte `offset`. What is unmasked is sent by [`Msix::flush`].
    pub fn write_table(&mut self, offset: u64, width: Width, value: u64) {
        match width {
            Width::Eight => {
                self.table.write(offset, low(value), u32::MAX);
                self.table.write(offset + 4, low(value >> 32), u32::MAX);
            }
            _ => {
                let shift = 8 * (offset % 4);
                let enables = low(width.mask() << shift);
                self.table.write(offset, low(value << shift), enables);
            }
        }
    }

    /// Reads the pending bits at byte `offset`.
    pub fn read_pending(&self, offset: u64, width: Width) -> u64 {
        let first = usize::try_from(offset.saturating_mul(8)).unwrap_or(usize::MAX);
        let bits = self.pending.iter().skip(first).take(64);
        let word = bits
            .enumerate()
            .fold(0, |word, (bit, &set)| word | u64::from(set) << bit);
        word & width.mask()
    }
}
