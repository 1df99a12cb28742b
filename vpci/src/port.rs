//! A PCI Express root port that EL2 emulates, and what it lets through to the bus below it.
//!
//! ```text
//!   0x00  type 1 header      bus numbers, windows, Secondary Bus Reset
//!   0x40  PCI Express        Link Disable, ARI Forwarding
//!   0x80  MSI                set up by a driver, never sent
//!   0x90  power management   D0 and D3hot
//! ```
//!
//! The port decides only what passes: config requests by bus number, memory requests by its windows,
//! requests from below by Bus Master Enable. Who is below it is [`crate::Bus`]'s to know.

pub mod tables;

use crate::register::Register;
use crate::{BusRange, ConfigAccess};

/// Dwords that are kept. The rest of its config space reads as zero.
const DWORDS: usize = 0x98 / 4;

// What the tables come to, without their names.
static HEADER: [Register; 16] = tables::HEADER.registers();
static EXPRESS_REGISTERS: [Register; 15] = tables::EXPRESS.registers();
static ARI: [Register; 15] = tables::ARI.registers();
static MSI: [Register; 4] = tables::MSI.registers();
static POWER_REGISTERS: [Register; 2] = tables::POWER.registers();

/// Its structures, and where they are.
const STRUCTURES: [(u16, &[Register]); 4] = [
    (0x00, &HEADER),
    (0x40, &EXPRESS_REGISTERS),
    (0x80, &MSI),
    (0x90, &POWER_REGISTERS),
];

/// Numbers of the dwords that mean something here.
const COMMAND: usize = 1;
const BUS_NUMBERS: usize = 0x18 / 4;
const MEMORY: usize = 0x20 / 4;
const PREFETCHABLE: usize = 0x24 / 4;
const PREFETCHABLE_BASE: usize = 0x28 / 4;
const PREFETCHABLE_LIMIT: usize = 0x2c / 4;
const BRIDGE_CONTROL: usize = 0x3c / 4;
const EXPRESS: u16 = 0x40;
const LINK_CAPABILITIES: usize = 0x4c / 4;
const LINK: usize = 0x50 / 4;
const CAPABILITIES_2: usize = 0x64 / 4;
const CONTROL_2: usize = 0x68 / 4;
const POWER: usize = 0x94 / 4;

/// Command (7.5.1.1.3).
const MEMORY_SPACE: u32 = 1 << 1;
const BUS_MASTER: u32 = 1 << 2;
/// Bridge Control (7.5.1.3.13), in the upper half of its dword.
const SECONDARY_BUS_RESET: u32 = 1 << 22;
/// Link Control and Link Status (7.5.3.7, 7.5.3.8).
const LINK_DISABLE: u32 = 1 << 4;
const LINK_ACTIVE: u32 = 1 << 29;
/// Device Capabilities 2 and Device Control 2 (7.5.3.15, 7.5.3.16).
const ARI_FORWARDING: u32 = 1 << 5;
/// PMCSR (7.5.2.2).
const POWER_STATE: u32 = 0b11;
const D3_HOT: u32 = 0b11;

/// The state after power-on, by offset: what is fixed, and what starts other than zero.
#[rustfmt::skip]
const RESET: &[(u16, u32)] = &[
    (0x00, 0x000c_1b36), // QEMU's root port
    (0x04, 0x0010_0000), // there are capabilities
    (0x08, 0x0604_0000), // a PCI-to-PCI bridge
    (0x0c, 0x0001_0000), // type 1
    (0x24, 0x0001_0001), // prefetchable memory has 64 bits
    (0x34, 0x0000_0040),
    (0x40, 0x0042_8010), // version 2, root port, no slot
    (0x44, 0x0000_8000), // payloads of 128 bytes, role-based error reporting
    (0x48, 0x0000_2010), // relaxed ordering, 512 byte reads
    (0x4c, 0x0070_0104), // 16 GT/s, x16
    (0x50, 0x1104_0000), // so it runs, with the slot's clock
    (0x58, 0x0040_0000), // something is present
    (0x6c, 0x0000_001e), // 2.5 to 16 GT/s
    (0x70, 0x0000_0004),
    (0x80, 0x0080_9005), // MSI with 64-bit addresses
    (0x90, 0x0003_0001), // power management, version 3
    (0x94, 0x0000_0008), // D3hot keeps the state
];

/// What of a function's traffic gets through the port above it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Upstream {
    windows: [Option<BusRange>; 2],
    bus_master: bool,
}

impl Upstream {
    /// On the root bus there is no port in the way.
    pub const ROOT: Self = Self {
        windows: [Some(BusRange::ALL), None],
        bus_master: true,
    };

    /// A port as it is after a reset: nothing gets through.
    pub const CLOSED: Self = Self {
        windows: [None, None],
        bus_master: false,
    };

    /// Returns whether memory requests to all of `range` get down to the function.
    #[must_use]
    pub fn reaches(&self, range: BusRange) -> bool {
        let windows = self.windows.iter().flatten();
        windows.into_iter().any(|window| window.covers(range))
    }

    /// Returns whether requests of the function, MSIs among them, get up.
    #[must_use]
    pub const fn lets_out(&self) -> bool {
        self.bus_master
    }
}

/// Whether something follows from a write to a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum PortChange {
    /// Nothing.
    None,
    /// Other things get through than before.
    Forwarding,
    /// The same, and everything below is reset: Secondary Bus Reset or Link Disable was set.
    Reset,
}

/// A root port, 1b36:000c.
#[derive(Clone, Debug)]
pub(crate) struct Port {
    dwords: [u32; DWORDS],
    /// Whether it can forward requests to functions above 7.
    ari: bool,
    /// Its number, in Link Capabilities.
    number: u8,
    /// Whether there is something below.
    populated: bool,
}

impl Port {
    /// Makes a port with the Port Number `number` and nothing below.
    pub(crate) fn new(number: u8, ari: bool) -> Self {
        let mut port = Self {
            dwords: [0; DWORDS],
            ari,
            number,
            populated: false,
        };
        port.reset();
        port
    }

    /// Returns to the state after power-on.
    pub(crate) fn reset(&mut self) {
        self.dwords = [0; DWORDS];
        for &(offset, value) in RESET {
            if let Some(dword) = self.dwords.get_mut(usize::from(offset / 4)) {
                *dword = value;
            }
        }
        self.dwords[LINK_CAPABILITIES] |= u32::from(self.number) << 24;
        if self.ari {
            self.dwords[CAPABILITIES_2] |= ARI_FORWARDING;
        }
    }

    /// Says whether there is something below.
    pub(crate) const fn set_populated(&mut self, populated: bool) {
        self.populated = populated;
    }

    /// Returns whether it has ARI Forwarding.
    pub(crate) const fn has_ari(&self) -> bool {
        self.ari
    }

    /// Answers a read, but for the multi-function bit.
    pub(crate) fn read(&self, access: ConfigAccess) -> u32 {
        let index = access.offset().dword();
        let mut dword = self.dwords.get(index).copied().unwrap_or(0);
        if index == LINK && self.populated && !self.is_held() {
            dword |= LINK_ACTIVE;
        }
        access.extract(dword)
    }

    /// Takes a write.
    pub(crate) fn write(&mut self, access: ConfigAccess, value: u32) -> PortChange {
        let index = access.offset().dword();
        let register = self.register(access.offset().get() & !3);
        let before = (self.buses(), self.upstream(), self.reach());
        let was_held = self.is_held();
        let Some(dword) = self.dwords.get_mut(index) else {
            return PortChange::None;
        };
        let mut after = register.after_write(*dword, access.place(value), access.enables());
        if index == POWER && !matches!(after & POWER_STATE, 0 | D3_HOT) {
            // A state that is not offered: it stays in the old one (7.5.2.2).
            after = after & !POWER_STATE | *dword & POWER_STATE;
        }
        *dword = after;
        if self.is_held() && !was_held {
            PortChange::Reset
        } else if before == (self.buses(), self.upstream(), self.reach()) {
            PortChange::None
        } else {
            PortChange::Forwarding
        }
    }

    /// Returns the masks of the dword at `offset`.
    fn register(&self, offset: u16) -> Register {
        let ari: &[(u16, &[Register])] = if self.ari { &[(EXPRESS, &ARI)] } else { &[] };
        let found = STRUCTURES
            .iter()
            .chain(ari)
            .filter_map(|(base, registers)| {
                let offset = offset.checked_sub(*base)?;
                registers.get(usize::from(offset / 4)).copied()
            });
        found.fold(Register::HIDDEN, Register::and)
    }

    /// Returns secondary and subordinate bus number: config requests to these and what lies between
    /// them are the port's.
    pub(crate) const fn buses(&self) -> (u8, u8) {
        let [_, secondary, subordinate, _] = self.dwords[BUS_NUMBERS].to_le_bytes();
        (secondary, subordinate)
    }

    /// Returns the last function that config requests reach on the bus below; `None` if the link is
    /// down. Without ARI Forwarding there is device 0 only (7.3.1).
    pub(crate) const fn reach(&self) -> Option<u8> {
        if !self.is_open() {
            None
        } else if self.dwords[CONTROL_2] & ARI_FORWARDING != 0 {
            Some(0xff)
        } else {
            Some(7)
        }
    }

    /// Returns what it lets through of memory requests, and of requests from below.
    pub(crate) fn upstream(&self) -> Upstream {
        let command = self.dwords[COMMAND];
        if !self.is_open() {
            return Upstream::CLOSED;
        }
        Upstream {
            windows: if command & MEMORY_SPACE != 0 {
                self.windows()
            } else {
                [None, None]
            },
            bus_master: command & BUS_MASTER != 0,
        }
    }

    /// Returns its windows: memory, and prefetchable memory. One whose limit lies below its base is
    /// none (7.5.1.3.8, 7.5.1.3.9).
    fn windows(&self) -> [Option<BusRange>; 2] {
        let low = |dword: u32| {
            let base = (dword & 0xfff0) << 16;
            let limit = dword & 0xfff0_0000 | 0xf_ffff;
            (u64::from(base), u64::from(limit))
        };
        let high = |dword: u32| u64::from(dword) << 32;
        let (base, limit) = low(self.dwords[MEMORY]);
        let (prefetchable_base, prefetchable_limit) = low(self.dwords[PREFETCHABLE]);
        [
            BusRange::between(base, limit),
            BusRange::between(
                high(self.dwords[PREFETCHABLE_BASE]) | prefetchable_base,
                high(self.dwords[PREFETCHABLE_LIMIT]) | prefetchable_limit,
            ),
        ]
    }

    /// Returns whether the link is held down, so that what is below is in reset.
    const fn is_held(&self) -> bool {
        self.dwords[BRIDGE_CONTROL] & SECONDARY_BUS_RESET != 0
            || self.dwords[LINK] & LINK_DISABLE != 0
    }

    /// Returns whether anything can get through at all: in D3hot the link is not there for requests
    /// (5.3.1.4.1).
    const fn is_open(&self) -> bool {
        !self.is_held() && self.dwords[POWER] & POWER_STATE != D3_HOT
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BusAddress, Offset, Sbdf, Size};

    fn access(offset: u16, size: Size) -> ConfigAccess {
        ConfigAccess::new(Sbdf::from_rid(0, 0xe0), Offset::new(offset).unwrap(), size).unwrap()
    }

    fn read(port: &Port, offset: u16) -> u32 {
        port.read(access(offset, Size::Four))
    }

    fn write(port: &mut Port, offset: u16, value: u32) -> PortChange {
        port.write(access(offset, Size::Four), value)
    }

    fn range(first: u64, last: u64) -> BusRange {
        BusRange::new(BusAddress::new(first), last - first + 1).unwrap()
    }

    #[test]
    #[rustfmt::skip]
    fn every_register_takes_what_the_specification_lets_it() {
        let cases = [
            // offset, after reset,  after all ones
            (0x00, 0x000c_1b36, 0x000c_1b36),
            (0x04, 0x0010_0000, 0x0010_0146),
            (0x08, 0x0604_0000, 0x0604_0000),
            (0x0c, 0x0001_0000, 0x0001_00ff),
            (0x10, 0,           0),
            (0x14, 0,           0),
            (0x18, 0,           0x00ff_ffff),
            (0x1c, 0,           0),           // no I/O window
            (0x20, 0,           0xfff0_fff0),
            (0x24, 0x0001_0001, 0xfff1_fff1),
            (0x28, 0,           0xffff_ffff),
            (0x2c, 0,           0xffff_ffff),
            (0x30, 0,           0),
            (0x34, 0x40,        0x40),
            (0x38, 0,           0),
            (0x3c, 0,           0x0043_00ff),
            (0x40, 0x0042_8010, 0x0042_8010),
            (0x44, 0x0000_8000, 0x0000_8000),
            (0x48, 0x0000_2010, 0x0000_70ff),
            (0x4c, 0x1c70_0104, 0x1c70_0104),
            (0x50, 0x1104_0000, 0x1104_0cd0),
            (0x54, 0,           0),
            (0x58, 0x0040_0000, 0x0040_0000),
            (0x5c, 0,           0x0000_000f),
            (0x60, 0,           0),
            (0x64, 0x0000_0020, 0x0000_0020),
            (0x68, 0,           0x0000_0020),
            (0x6c, 0x0000_001e, 0x0000_001e),
            (0x70, 0x0000_0004, 0x0000_000f),
            (0x7c, 0,           0),
            (0x80, 0x0080_9005, 0x0081_9005),
            (0x84, 0,           0xffff_fffc),
            (0x88, 0,           0xffff_ffff),
            (0x8c, 0,           0x0000_ffff),
            (0x90, 0x0003_0001, 0x0003_0001),
            (0x94, 0x0000_0008, 0x0000_000b),
            (0x98, 0,           0),
            (0x100, 0,          0),
            (0xffc, 0,          0),
        ];
        let mut port = Port::new(0x1c, true);
        let mut plain = Port::new(0x1c, false);
        for (offset, before, after) in cases {
            assert_eq!(read(&port, offset), before, "{offset:#x}");
            let _ = write(&mut port, offset, u32::MAX);
            assert_eq!(read(&port, offset), after, "{offset:#x}");
            let _ = write(&mut plain, offset, u32::MAX);
            let ari = if matches!(offset, 0x64 | 0x68) { 0x20 } else { 0 };
            assert_eq!(read(&plain, offset), after & !ari, "{offset:#x}");
        }
        port.reset();
        for (offset, before, _) in cases {
            assert_eq!(read(&port, offset), before, "{offset:#x}");
        }
    }

    #[test]
    fn windows_open_with_memory_space_and_close_with_base_above_limit() {
        let mut port = Port::new(0, false);
        assert_eq!(write(&mut port, 0x20, 0x1020_1010), PortChange::None);
        assert!(!port.upstream().reaches(range(0x1010_0000, 0x1010_0fff)));
        assert_eq!(write(&mut port, 0x04, 2), PortChange::Forwarding);
        #[rustfmt::skip]
        let cases = [
            (0x1010_0000, 0x102f_ffff, true),
            (0x100f_ffff, 0x1010_0fff, false),
            (0x102f_f000, 0x1030_0000, false),
            (0x0000_0000, 0x000f_ffff, true), // the prefetchable one, as it is after a reset
            (0x0000_0000, 0x0010_0000, false),
        ];
        for (first, last, expected) in cases {
            let reaches = port.upstream().reaches(range(first, last));
            assert_eq!(reaches, expected, "{first:#x}");
        }
        assert!(!port.upstream().lets_out());
        assert_eq!(write(&mut port, 0x20, 0x1000_1010), PortChange::Forwarding);
        assert!(!port.upstream().reaches(range(0x1010_0000, 0x1010_0fff)));
        let _ = write(&mut port, 0x24, 0xfff0_0000);
        let _ = write(&mut port, 0x28, 0x50);
        let _ = write(&mut port, 0x2c, 0x50);
        let high = range(0x50_0000_0000, 0x50_ffff_ffff);
        assert!(port.upstream().reaches(high));
        let _ = write(&mut port, 0x2c, 0x4f);
        assert!(!port.upstream().reaches(high));
        let _ = write(&mut port, 0x28, 0);
        let _ = write(&mut port, 0x2c, u32::MAX);
        assert!(port.upstream().reaches(BusRange::ALL));
    }

    #[test]
    fn secondary_bus_reset_and_link_disable_hold_the_link_down() {
        for (offset, bit) in [(0x3c, SECONDARY_BUS_RESET), (0x50, LINK_DISABLE)] {
            let mut port = Port::new(0, false);
            port.set_populated(true);
            let _ = write(&mut port, 0x04, 6);
            assert_eq!(read(&port, 0x50), 0x3104_0000, "the link is up");
            assert_eq!(write(&mut port, offset, bit), PortChange::Reset);
            assert_eq!(read(&port, 0x50) & LINK_ACTIVE, 0);
            assert_eq!(port.upstream(), Upstream::CLOSED);
            assert_eq!(port.reach(), None);
            assert_eq!(write(&mut port, offset, bit), PortChange::None, "once");
            assert_eq!(write(&mut port, offset, 0), PortChange::Forwarding);
            assert_eq!(port.reach(), Some(7));
            assert!(port.upstream().lets_out());
        }
    }

    #[test]
    fn in_d3_nothing_gets_through_and_d1_is_not_offered() {
        let mut port = Port::new(0, true);
        let _ = write(&mut port, 0x04, 6);
        let _ = write(&mut port, 0x68, ARI_FORWARDING);
        assert_eq!(port.reach(), Some(0xff));
        assert_eq!(write(&mut port, 0x94, 1), PortChange::None);
        assert_eq!(read(&port, 0x94), 8);
        assert_eq!(write(&mut port, 0x94, 3), PortChange::Forwarding);
        assert_eq!((port.reach(), port.upstream()), (None, Upstream::CLOSED));
        assert_eq!(write(&mut port, 0x94, 0), PortChange::Forwarding);
        assert_eq!(port.reach(), Some(0xff));
    }

    #[test]
    fn only_what_matters_is_reported() {
        let mut port = Port::new(0, false);
        #[rustfmt::skip]
        let cases = [
            (0x18, Size::One,  0x55, PortChange::None),       // the primary number
            (0x19, Size::One,  0x01, PortChange::Forwarding),
            (0x1a, Size::One,  0x02, PortChange::Forwarding),
            (0x18, Size::Four, 0x0002_0155, PortChange::None),
            (0x04, Size::Two,  0x0140, PortChange::None),
            (0x04, Size::Two,  0x0004, PortChange::Forwarding),
            (0x3c, Size::One,  0x40, PortChange::None),       // Interrupt Line
            (0x3e, Size::Two,  0x03, PortChange::None),
            (0x84, Size::Four, 0x0809_0040, PortChange::None),
        ];
        for (offset, size, value, expected) in cases {
            let change = port.write(access(offset, size), value);
            assert_eq!(change, expected, "{offset:#x}");
        }
        assert_eq!(port.buses(), (1, 2));
    }
}
