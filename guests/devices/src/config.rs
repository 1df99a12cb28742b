//! Config space of an emulated function: a type 0 header, BARs, capabilities, each dword with its
//! write rule.
//!
//! PCI Express Base Specification, section 7.5.1.

use core::fmt;

use vpci::register::Register;
use vpci::{BarIndex, BarKind, BusAddress, BusRange, ConfigAccess};

/// Dwords that are kept; the rest of config space reads as zero.
const DWORDS: usize = 64;

const COMMAND: u16 = 0x04;
const BAR0: u16 = 0x10;
const SUBSYSTEM: u16 = 0x2c;
const POINTER: u16 = 0x34;
const INTERRUPT: u16 = 0x3c;
const FIRST_CAPABILITY: u16 = 0x40;

/// Command (7.5.1.1.3): memory space, bus master, parity, SERR#, interrupt disable. There is no I/O.
const COMMAND_WRITABLE: u32 = 0x0546;
const MEMORY_SPACE: u32 = 1 << 1;
const BUS_MASTER: u32 = 1 << 2;
/// Status: there is a list of capabilities.
const CAPABILITIES: u32 = 1 << 20;

/// What a function says that it is.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Revision ID.
    pub revision: u8,
    /// Class code, 24 bits.
    pub class: u32,
    /// Subsystem vendor ID.
    pub subsystem_vendor: u16,
    /// Subsystem ID.
    pub subsystem: u16,
}

/// One dword of a capability: its value at power-on, and the bits that a guest can write.
#[derive(Clone, Copy, Debug)]
pub struct Dword {
    /// The value. Of a capability's first dword, the lower half is filled in.
    pub value: u32,
    /// The writable bits.
    pub writable: u32,
}

impl Dword {
    /// Returns a read-only dword.
    pub const fn fixed(value: u32) -> Self {
        Self { value, writable: 0 }
    }
}

/// Config space has no room left for a capability, or no such BAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoRoom;

impl fmt::Display for NoRoom {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("no room left in config space")
    }
}

#[derive(Clone, Copy, Debug)]
struct Cell {
    value: u32,
    initial: u32,
    rule: Register,
}

#[derive(Clone, Copy, Debug)]
struct Bar {
    size: u64,
    kind: BarKind,
}

/// Config space of one function.
#[derive(Clone, Debug)]
pub struct ConfigSpace {
    cells: [Cell; DWORDS],
    bars: [Option<Bar>; BarIndex::COUNT as usize],
    /// Where the next capability goes.
    free: u16,
    /// The last capability, whose pointer leads to the next.
    last: Option<u16>,
}

impl ConfigSpace {
    /// Makes config space without BARs and capabilities.
    pub fn new(identity: &Identity) -> Self {
        let empty = Cell {
            value: 0,
            initial: 0,
            rule: Register::HIDDEN,
        };
        let mut space = Self {
            cells: [empty; DWORDS],
            bars: [None; BarIndex::COUNT as usize],
            free: FIRST_CAPABILITY,
            last: None,
        };
        let pair = |low: u16, high: u16| u32::from(high) << 16 | u32::from(low);
        let class = identity.class << 8 | u32::from(identity.revision);
        let subsystem = pair(identity.subsystem_vendor, identity.subsystem);
        #[rustfmt::skip]
        let header = [
            (0x00,      pair(identity.vendor, identity.device), 0),
            (COMMAND,   0,                                      COMMAND_WRITABLE),
            (0x08,      class,                                  0),
            (0x0c,      0,                                      0xff), // cache line size
            (SUBSYSTEM, subsystem,                              0),
            (INTERRUPT, 0,                                      0xff), // interrupt line
        ];
        for (offset, value, writable) in header {
            space.define(offset, Dword { value, writable });
        }
        space
    }

    /// Adds a memory BAR of `size` bytes, a power of two from 4 KiB on.
    pub fn add_bar(&mut self, index: BarIndex, kind: BarKind, size: u64) -> Result<(), NoRoom> {
        let offset = BAR0 + u16::from(index.get()) * 4;
        let mask = !(size.max(16).next_power_of_two() - 1);
        let low = crate::machine::low(mask);
        let type_bits = match kind {
            BarKind::Io | BarKind::Rom => return Err(NoRoom),
            BarKind::Memory32 => 0b000,
            BarKind::Memory64 => 0b100,
        };
        let place = self.bars.get_mut(index.index()).ok_or(NoRoom)?;
        *place = Some(Bar { size, kind });
        self.define(
            offset,
            Dword {
                value: type_bits,
                writable: low,
            },
        );
        if kind == BarKind::Memory64 {
            let next = BarIndex::new(index.get() + 1).ok_or(NoRoom)?;
            let high = crate::machine::low(mask >> 32);
            self.define(
                BAR0 + u16::from(next.get()) * 4,
                Dword {
                    value: 0,
                    writable: high,
                },
            );
        }
        Ok(())
    }

    /// Adds a capability and returns where it is.
    pub fn add_capability(&mut self, id: u8, dwords: &[Dword]) -> Result<u16, NoRoom> {
        let offset = self.free;
        let bytes = u16::try_from(dwords.len() * 4).map_err(|_| NoRoom)?;
        let end = offset.checked_add(bytes).ok_or(NoRoom)?;
        if usize::from(end) > DWORDS * 4 {
            return Err(NoRoom);
        }
        for (at, dword) in (offset..end).step_by(4).zip(dwords) {
            self.define(at, *dword);
        }
        let first = self.get(offset);
        self.preset(offset, first & 0xffff_0000 | u32::from(id));
        match self.last {
            Some(last) => {
                let header = self.get(last);
                self.preset(last, header | u32::from(offset) << 8);
            }
            None => {
                self.preset(POINTER, offset.into());
                let status = self.get(COMMAND);
                self.preset(COMMAND, status | CAPABILITIES);
            }
        }
        self.last = Some(offset);
        self.free = end;
        Ok(offset)
    }

    fn define(&mut self, offset: u16, dword: Dword) {
        if let Some(cell) = self.cells.get_mut(usize::from(offset / 4)) {
            *cell = Cell {
                value: dword.value,
                initial: dword.value,
                rule: Register::kept(dword.writable),
            };
        }
    }

    fn preset(&mut self, offset: u16, value: u32) {
        if let Some(cell) = self.cells.get_mut(usize::from(offset / 4)) {
            cell.value = value;
            cell.initial = value;
        }
    }

    /// Returns the dword at `offset`; zero behind what is kept.
    pub fn get(&self, offset: u16) -> u32 {
        let cell = self.cells.get(usize::from(offset / 4));
        cell.map_or(0, |cell| cell.value)
    }

    /// Answers a read.
    pub fn read(&self, access: ConfigAccess) -> u32 {
        access.extract(self.get(access.offset().get()))
    }

    /// Takes a write, each bit as its rule says.
    pub fn write(&mut self, access: ConfigAccess, value: u32) {
        if let Some(cell) = self.cells.get_mut(access.offset().dword()) {
            let placed = access.place(value);
            cell.value = cell.rule.after_write(cell.value, placed, access.enables());
        }
    }

    /// Tells whether the function may write to memory and send MSIs.
    pub fn is_bus_master(&self) -> bool {
        self.get(COMMAND) & BUS_MASTER != 0
    }

    /// Returns the range that a BAR decodes; `None` if memory space is off, or there is no such BAR.
    pub fn decoded(&self, index: BarIndex) -> Option<BusRange> {
        if self.get(COMMAND) & MEMORY_SPACE == 0 {
            return None;
        }
        let bar = (*self.bars.get(index.index())?)?;
        let offset = BAR0 + u16::from(index.get()) * 4;
        let low = self.get(offset) & !0xf;
        let high = match bar.kind {
            BarKind::Memory64 => self.get(offset + 4),
            _ => 0,
        };
        let address = u64::from(high) << 32 | u64::from(low);
        BusRange::new(BusAddress::new(address), bar.size)
    }

    /// Returns to the state after power-on.
    pub fn reset(&mut self) {
        for cell in &mut self.cells {
            cell.value = cell.initial;
        }
    }
}
