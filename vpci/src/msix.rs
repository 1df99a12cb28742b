//! MSI-X: the table that a guest programs, and what the kernel makes of it.
//!
//! The guest's address and data never reach the device. A vector whose address is the domain's
//! doorbell is live, and the kernel programs the physical entry with an address and data of its own;
//! any other vector stays masked in the device.
//!
//! ```text
//!  vector n, 16 bytes:   +0 address   +4 upper address   +8 data   +12 control (bit 0: masked)
//! ```
//!
//! PCI Express Base Specification, section 7.7.2 (capability) and 6.1.4 (behaviour).

use alloc::collections::TryReserveError;
use alloc::vec::Vec;
use core::ops::Range;

use crate::register::Register;
use crate::{BarIndex, BusAddress, tables};

/// Bytes of a vector's entry in the table.
const ENTRY: u64 = 16;

/// What a guest has asked to be sent for a vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// Nothing: the vector is masked, or MSI is off.
    Off,
    /// `data`, to the domain's doorbell.
    Live {
        /// What the guest wants written there; its event, for an ITS.
        data: u32,
    },
    /// Something, but not to the domain's doorbell. The device must not send it.
    Misdirected {
        /// Where the guest wants it sent.
        address: BusAddress,
    },
}

impl Message {
    /// Returns what `data` to `address` is for a domain with that doorbell.
    pub(crate) fn to(address: u64, data: u32, doorbell: BusAddress) -> Self {
        if address == doorbell.get() {
            Self::Live { data }
        } else {
            let address = BusAddress::new(address);
            Self::Misdirected { address }
        }
    }
}

/// A structure of MSI-X in memory space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The BAR that it is in.
    pub bar: BarIndex,
    /// Where it starts in that BAR.
    pub offset: u64,
    /// Its length in bytes.
    pub size: u64,
}

impl Place {
    /// Returns whether the byte at `offset` of `bar` belongs to it.
    fn contains(&self, bar: BarIndex, offset: u64) -> bool {
        self.bar == bar && offset >= self.offset && offset - self.offset < self.size
    }

    /// Returns whether the two share a byte.
    fn overlaps(&self, other: &Self) -> bool {
        self.contains(other.bar, other.offset) || other.contains(self.bar, self.offset)
    }
}

/// Where table and pending bits are, as the capability says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Number of vectors, 1 to 2048.
    pub vectors: u16,
    /// The table.
    pub table: Place,
    /// The pending bits.
    pub pending: Place,
}

impl Layout {
    /// Decodes the three dwords of the capability.
    ///
    /// Returns `None` if they name a BAR that cannot be, or if table and pending bits overlap.
    #[must_use]
    pub fn decode(control: u32, table: u32, pending: u32) -> Option<Self> {
        let vectors = u16::try_from(control >> 16 & 0x7ff).ok()? + 1;
        let place = |register: u32, size| {
            let bar = BarIndex::new(u8::try_from(register & 7).ok()?)?;
            let offset = u64::from(register & !7);
            Some(Place { bar, offset, size })
        };
        let table = place(table, u64::from(vectors) * ENTRY)?;
        let pending = place(pending, u64::from(vectors).div_ceil(64) * 8)?;
        (!table.overlaps(&pending)).then_some(Self {
            vectors,
            table,
            pending,
        })
    }

    /// Returns what is at `offset` of `bar`.
    pub(crate) fn at(&self, bar: BarIndex, offset: u64) -> Area {
        if self.table.contains(bar, offset) {
            Area::Table(offset - self.table.offset)
        } else if self.pending.contains(bar, offset) {
            Area::Pending
        } else {
            Area::Other
        }
    }
}

/// What an address in a BAR belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Area {
    /// The MSI-X table, so many bytes from its start.
    Table(u64),
    /// The pending bits.
    Pending,
    /// The device's own registers.
    Other,
}

/// The four registers of an entry: which of their bits a guest can write.
static ENTRY_REGISTERS: [Register; 4] = tables::MSIX_ENTRY.registers();

#[derive(Clone, Copy, Debug)]
struct Vector {
    registers: [u32; 4],
    /// What the kernel was told last.
    told: Message,
}

impl Vector {
    /// As it is after a reset: masked. Section 7.7.2.8.
    const RESET: [u32; 4] = [0, 0, 0, 1];

    fn message(&self, doorbell: BusAddress) -> Message {
        let [low, high, data, control] = self.registers;
        if control & 1 != 0 {
            return Message::Off;
        }
        let address = u64::from(high) << 32 | u64::from(low);
        Message::to(address, data, doorbell)
    }
}

/// A table of vectors, as a guest sees it.
#[derive(Debug)]
pub struct Table {
    doorbell: BusAddress,
    vectors: Vec<Vector>,
    /// Vectors that may differ from what the kernel was told.
    changed: Range<usize>,
}

impl Table {
    /// Makes a table of `vectors` masked vectors, whose messages are good if they go to `doorbell`.
    ///
    /// # Errors
    ///
    /// If memory is short.
    pub fn new(vectors: u16, doorbell: BusAddress) -> Result<Self, TryReserveError> {
        let mut list = Vec::new();
        list.try_reserve_exact(vectors.into())?;
        let masked = Vector {
            registers: Vector::RESET,
            told: Message::Off,
        };
        list.resize(vectors.into(), masked);
        Ok(Self {
            doorbell,
            vectors: list,
            changed: 0..0,
        })
    }

    /// Reads the dword that holds byte `offset` of the table; all ones past its end.
    #[must_use]
    pub fn read(&self, offset: u64) -> u32 {
        let (vector, register) = split(offset);
        self.vectors
            .get(vector)
            .and_then(|vector| vector.registers.get(register))
            .map_or(u32::MAX, |&value| value)
    }

    /// Writes the byte lanes in `enables` of the dword that holds byte `offset` of the table.
    pub fn write(&mut self, offset: u64, value: u32, enables: u32) {
        let (index, register) = split(offset);
        let Some(vector) = self.vectors.get_mut(index) else {
            return;
        };
        let rule = ENTRY_REGISTERS.get(register);
        if let (Some(old), Some(rule)) = (vector.registers.get_mut(register), rule) {
            *old = rule.after_write(*old, value, enables);
        }
        if vector.message(self.doorbell) != vector.told {
            self.mark(index..index + 1);
        }
    }

    /// Masks all vectors and forgets their messages.
    pub fn reset(&mut self) {
        for vector in &mut self.vectors {
            vector.registers = Vector::RESET;
        }
        self.mark(0..self.vectors.len());
    }

    /// Returns whether [`Table::next_change`] has something to say.
    #[must_use]
    pub fn has_changes(&self) -> bool {
        !self.changed.is_empty()
    }

    /// Returns the next vector whose message is not what was last returned for it, and the message.
    pub fn next_change(&mut self) -> Option<(u16, Message)> {
        for index in self.changed.by_ref() {
            let vector = self.vectors.get_mut(index)?;
            let message = vector.message(self.doorbell);
            if vector.told != message {
                vector.told = message;
                return Some((u16::try_from(index).ok()?, message));
            }
        }
        None
    }

    /// Returns what vector `index` sends now.
    #[must_use]
    pub fn message(&self, index: u16) -> Option<Message> {
        let vector = self.vectors.get(usize::from(index))?;
        Some(vector.message(self.doorbell))
    }

    /// Adds to the vectors that may have changed. The range may come to hold some that have not.
    fn mark(&mut self, more: Range<usize>) {
        self.changed = if self.changed.is_empty() {
            more
        } else {
            self.changed.start.min(more.start)..self.changed.end.max(more.end)
        };
    }
}

/// Splits an offset in the table into the number of a vector and that of its register.
fn split(offset: u64) -> (usize, usize) {
    let dword = usize::try_from(offset / 4).unwrap_or(usize::MAX);
    (dword / 4, dword % 4)
}
