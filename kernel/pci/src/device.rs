//! What was found: functions, bridges, BARs.

use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;

use vpci::{BarIndex, BarInfo, BarKind, BusAddress, BusRange, Sbdf};

use crate::capability::{Acs, Capabilities, Express, PortKind};
use crate::config::{ConfigSpace, Function, header};
use crate::sriov::{Sriov, Virtual, VirtualProblem};

/// Where a BAR was placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    /// In PCI memory space: what the BAR holds.
    pub bus: BusAddress,
    /// In the machine's physical memory.
    pub host: u64,
}

impl Placement {
    /// Returns the place so many bytes further on.
    pub(crate) fn ahead(self, bytes: u64) -> Option<Self> {
        Some(Self {
            bus: BusAddress::new(self.bus.get().checked_add(bytes)?),
            host: self.host.checked_add(bytes)?,
        })
    }
}

/// A base address register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bar {
    /// Which; the lower one of a pair.
    pub index: BarIndex,
    /// What it decodes. I/O is never placed.
    pub kind: BarKind,
    /// Whether reads have no side effects.
    pub prefetchable: bool,
    /// Its size, a power of two.
    pub size: u64,
    /// Where it is. The rest of its last page is nobody's.
    pub placement: Option<Placement>,
}

impl Bar {
    /// Returns the offset of its register in config space.
    pub(crate) fn register(&self) -> u16 {
        match self.kind {
            BarKind::Rom => header::ROM_TYPE_0,
            BarKind::Io | BarKind::Memory32 | BarKind::Memory64 => {
                header::BAR0 + 4 * u16::from(self.index.get())
            }
        }
    }

    /// Returns what has to be known to show the BAR to a guest; `None` for memory without a place.
    pub fn info(&self) -> Option<BarInfo> {
        let host = match (self.kind, self.placement) {
            (_, Some(placement)) => placement.host,
            (BarKind::Io, None) => 0,
            (BarKind::Memory32 | BarKind::Memory64 | BarKind::Rom, None) => return None,
        };
        let Self {
            index,
            kind,
            prefetchable,
            size,
            ..
        } = *self;
        Some(BarInfo {
            index,
            kind,
            prefetchable,
            size,
            host,
        })
    }
}

impl Bar {
    /// Writes where it was placed to its register, which is at `offset`.
    pub(crate) fn write<C: ConfigSpace + ?Sized>(&self, function: Function<'_, C>, offset: u16) {
        let address = self.placement.map_or(0, |placement| placement.bus.get());
        let [b0, b1, b2, b3, upper @ ..] = address.to_le_bytes();
        function.write32(offset, u32::from_le_bytes([b0, b1, b2, b3]));
        if self.kind == BarKind::Memory64 {
            function.write32(offset + 4, u32::from_le_bytes(upper));
        }
    }

    /// Returns whether its register, at `offset`, holds where it was placed.
    pub(crate) fn is_written<C: ConfigSpace + ?Sized>(
        &self,
        function: Function<'_, C>,
        offset: u16,
    ) -> bool {
        let address = self.placement.map_or(0, |placement| placement.bus.get());
        let mask = match self.kind {
            BarKind::Io => !3,
            BarKind::Memory32 | BarKind::Memory64 => !15,
            // The enable bit counts: it has to be off.
            BarKind::Rom => header::ROM_ADDRESS | header::ROM_ENABLE,
        };
        let low = u64::from(function.read32(offset) & mask);
        let high = match self.kind {
            BarKind::Memory64 => u64::from(function.read32(offset + 4)),
            BarKind::Io | BarKind::Memory32 | BarKind::Rom => 0,
        };
        high << 32 | low == address
    }
}

/// A bridge between two buses, or a port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bridge {
    /// The bus below; zero if there was no number for it.
    pub secondary: u8,
    /// The last bus below.
    pub subordinate: u8,
    /// The functions on the bus below, as positions in the hierarchy.
    pub children: Range<usize>,
    /// Everything below.
    pub below: Range<usize>,
    /// The window below 4 GiB.
    pub memory: Option<BusRange>,
    /// The prefetchable window.
    pub prefetchable: Option<BusRange>,
    /// Whether the prefetchable window has 64 bits of address.
    pub(crate) wide: bool,
}

/// The BARs that a function can have, and its expansion ROM.
pub(crate) const BARS: usize = BarIndex::RANGES;

/// What kind of header a function has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Header {
    /// Type 0.
    Endpoint,
    /// Type 1.
    Bridge(Bridge),
    /// A type that is not known; the function is left alone, disabled.
    Other(u8),
}

/// A function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Its name.
    pub sbdf: Sbdf,
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Class, subclass, programming interface: 24 bits.
    pub class: u32,
    /// Revision ID.
    pub revision: u8,
    /// Its kind of header.
    pub header: Header,
    /// Its BARs, by index, and behind them its expansion ROM, if that has a place.
    pub bars: [Option<Bar>; BARS],
    /// Where its capabilities are.
    pub capabilities: Capabilities,
    /// What its PCI Express capability says.
    pub express: Option<Express>,
    /// What of access control services it has, and what is on.
    pub acs: Acs,
    /// Its virtual functions, if it has some that are wanted.
    pub sriov: Option<Sriov>,
    /// Which virtual function it is, if it is one.
    pub virtual_function: Option<Virtual>,
    /// The bridge above; `None` on the root bus.
    pub parent: Option<usize>,
    /// Whether all its memory BARs are placed, and so are those of the bridges above. A function
    /// that is not usable stays disabled.
    pub usable: bool,
}

impl Device {
    /// Returns the bridge, if the function is one.
    pub fn bridge(&self) -> Option<&Bridge> {
        match &self.header {
            Header::Bridge(bridge) => Some(bridge),
            Header::Endpoint | Header::Other(_) => None,
        }
    }

    pub(crate) fn bridge_mut(&mut self) -> Option<&mut Bridge> {
        match &mut self.header {
            Header::Bridge(bridge) => Some(bridge),
            Header::Endpoint | Header::Other(_) => None,
        }
    }

    /// Returns whether it is a virtual function of `physical`.
    pub fn virtual_of(&self, physical: Sbdf) -> bool {
        self.virtual_function
            .is_some_and(|own| own.physical == physical)
    }

    /// Returns whether the function answers to config accesses. The Vendor ID of a virtual function
    /// reads as all ones (section 9.3.4.1.1), its class does not.
    pub(crate) fn answers<C: ConfigSpace + ?Sized>(&self, function: Function<'_, C>) -> bool {
        match self.virtual_function {
            None => {
                function.read16(header::VENDOR_ID) == self.vendor
                    && function.read16(header::DEVICE_ID) == self.device
            }
            Some(_) => function.read32(header::REVISION_AND_CLASS) != u32::MAX,
        }
    }

    /// Returns what the function is in PCI Express; `None` for a conventional one.
    pub fn port(&self) -> Option<PortKind> {
        self.express.map(|express| express.kind)
    }
}

/// A register of 32 bits in a BAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Word {
    /// The BAR.
    pub bar: usize,
    /// The offset in it.
    pub offset: u64,
}

/// Returns the registers of a class of devices that a reset may leave as the last owner wrote them, and
/// that take zeros while the device is off.
///
/// NVM Express: AQA, ASQ and ACQ, which hold where in its owner's memory the admin queues were. After a
/// reset the addresses are up to the implementation (Base Specification 1.4, sections 3.1.8 to 3.1.10).
#[rustfmt::skip]
pub const fn kept_by_reset(class: u32) -> &'static [Word] {
    const NVME: u32 = 0x01_0802;
    match class {
        NVME => &[
            Word { bar: 0, offset: 0x24 },
            Word { bar: 0, offset: 0x28 },
            Word { bar: 0, offset: 0x2c },
            Word { bar: 0, offset: 0x30 },
            Word { bar: 0, offset: 0x34 },
        ],
        _ => &[],
    }
}

/// Something that was left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Problem {
    /// There is no bus number for what is behind a bridge.
    NoBus(Sbdf),
    /// A BAR does not fit in the windows; the function is left disabled.
    NoSpace {
        /// The function.
        sbdf: Sbdf,
        /// The BAR.
        bar: BarIndex,
        /// Its size.
        size: u64,
    },
    /// There is no room for an expansion ROM; the function does without.
    NoSpaceForRom {
        /// The function.
        sbdf: Sbdf,
        /// The ROM's size.
        size: u64,
    },
    /// A BAR that the specification does not know.
    BadBar {
        /// The function.
        sbdf: Sbdf,
        /// The BAR.
        bar: BarIndex,
    },
    /// A header that the specification does not know.
    BadHeader(Sbdf),
    /// What ARI says comes after this function is not there, or came before.
    Chain(Sbdf),
    /// The virtual functions of this one are not there, or one of them.
    Virtual(Sbdf, VirtualProblem),
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoBus(sbdf) => write!(f, "{sbdf}: no bus number is left for the bus behind it"),
            Self::NoSpace { sbdf, bar, size } => {
                write!(f, "{sbdf}: disabled, no room for {size:#x} bytes of {bar}")
            }
            Self::NoSpaceForRom { sbdf, size } => {
                write!(
                    f,
                    "{sbdf}: no room for {size:#x} bytes of expansion ROM, which is hidden"
                )
            }
            Self::BadBar { sbdf, bar } => write!(f, "{sbdf}: {bar} is of no known kind"),
            Self::BadHeader(sbdf) => write!(f, "{sbdf}: disabled, its header is of no known type"),
            Self::Chain(sbdf) => write!(f, "{sbdf}: the next function of its device is not there"),
            Self::Virtual(sbdf, problem) => write!(f, "{sbdf}: virtual functions: {problem}"),
        }
    }
}

/// All functions below a host bridge, in ascending order of their names.
#[derive(Clone, Debug, Default)]
pub struct Hierarchy {
    pub(crate) devices: Vec<Device>,
    pub(crate) problems: Vec<Problem>,
}

impl Hierarchy {
    /// Returns the functions.
    pub fn devices(&self) -> &[Device] {
        &self.devices
    }

    /// Returns what was left out.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// Returns the position of a function.
    pub fn position(&self, sbdf: Sbdf) -> Option<usize> {
        self.devices
            .binary_search_by_key(&sbdf, |device| device.sbdf)
            .ok()
    }

    /// Returns a function.
    pub fn find(&self, sbdf: Sbdf) -> Option<&Device> {
        self.devices.get(self.position(sbdf)?)
    }

    /// Returns the bridges above a function, from the nearest to the root.
    pub fn above(&self, device: &Device) -> impl Iterator<Item = &Device> {
        let mut parent = device.parent;
        core::iter::from_fn(move || {
            let bridge = self.devices.get(parent?)?;
            parent = bridge.parent;
            Some(bridge)
        })
    }

    /// Returns the requester IDs under which requests of a function may reach the root complex: its
    /// own first. The last one is what a machine uses whose bridges follow the specification.
    ///
    /// A bridge to conventional PCI puts its own name on the requests from below: a conventional
    /// one its requester ID, one that is a PCI Express function device 0 function 0 of its
    /// secondary bus (PCI Express to PCI/PCI-X Bridge Specification, section 2.3).
    pub fn requester_ids(&self, device: &Device) -> impl Iterator<Item = u16> {
        let aliases = self.above(device).filter_map(|bridge| match bridge.port() {
            None => Some(bridge.sbdf.rid()),
            Some(PortKind::ToConventional) => Some(u16::from(bridge.bridge()?.secondary) << 8),
            Some(_) => None,
        });
        core::iter::once(device.sbdf.rid()).chain(aliases)
    }

    /// Returns the requester ID under which requests of a function reach the root complex.
    pub fn requester_id(&self, device: &Device) -> u16 {
        self.requester_ids(device)
            .last()
            .unwrap_or(device.sbdf.rid())
    }
}
