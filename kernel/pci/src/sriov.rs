//! Single root I/O virtualization: virtual functions (VFs) of a physical one (PF).
//!
//! ```text
//!   PF 01:00.0                        requester IDs                 memory
//!   SR-IOV: NumVFs = 3                                              VF BAR0
//!           First VF Offset = 0x180 -----> VF 1  02:10.0  <-------- +0 * size
//!           VF Stride = 2 ---------------> VF 2  02:10.2  <-------- +1 * size
//!           VF BAR0 to VF BAR5             VF 3  02:10.4  <-------- +2 * size
//! ```
//!
//! A VF has no Vendor ID, no Device ID and no BARs of its own: they follow from its PF's capability
//! (PCI Express Base Specification, section 9.3). It may lie on a bus after its PF's, which then is
//! nobody else's. VFs are functions like others here, once they are enabled; how many there are is
//! fixed before, and while they exist their PF is not reset, since that would end them.

use core::fmt;

use vpci::{BarIndex, BarKind, Offset, Sbdf};

use crate::config::{ConfigSpace, Function};
use crate::device::{BARS, Bar, Hierarchy};

/// Registers of the capability (section 9.3.3).
const CONTROL: u16 = 0x08;
const TOTAL: u16 = 0x0e;
const NUMBER: u16 = 0x10;
const DEPENDENCY: u16 = 0x12;
const FIRST: u16 = 0x14;
const STRIDE: u16 = 0x16;
const DEVICE_ID: u16 = 0x1a;
const SYSTEM_PAGE_SIZE: u16 = 0x20;
pub(crate) const BAR0: u16 = 0x24;

/// SR-IOV Control (section 9.3.3.3): VF Enable, VF MSE, ARI Capable Hierarchy.
const ENABLE: u16 = 1 << 0;
const MEMORY: u16 = 1 << 3;
const ARI_HIERARCHY: u16 = 1 << 4;
/// System Page Size: 4 KiB (section 9.3.3.13).
const PAGES_OF_4K: u32 = 1;

/// How long VFs may not be accessed after VF Enable was set, and how long the capability may not be used
/// after it was cleared, in milliseconds (section 9.3.3.3.1).
pub(crate) const AFTER_ENABLE: u32 = 100;
pub(crate) const AFTER_DISABLE: u32 = 1000;

/// How many VFs of a PF are to be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The PF.
    pub physical: Sbdf,
    /// Its VFs.
    pub count: u16,
}

/// What a PF's capability is set to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sriov {
    /// Where the capability is.
    pub offset: Offset,
    /// How many VFs there are.
    pub count: u16,
    /// Their Device ID.
    pub device: u16,
    /// The BARs of one VF, by index; their places are those of the first VF's.
    pub bars: [Option<Bar>; BARS],
    /// The first VF's distance from the PF, and each VF's from the one before, in requester IDs.
    pub(crate) first: u16,
    pub(crate) stride: u16,
    /// SR-IOV Control with no VF enabled.
    pub(crate) control: u16,
}

/// Which VF of which PF a function is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Virtual {
    /// The PF.
    pub physical: Sbdf,
    /// Its number, from 0.
    pub number: u16,
}

/// Why VFs are not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VirtualProblem {
    /// There is no such PF, or it has no such capability.
    NotPhysical,
    /// It has this many at most.
    Total(u16),
    /// Its VFs depend on those of another PF (section 9.3.3.8).
    Dependent,
    /// Its First VF Offset and VF Stride lead nowhere, or to where another function is.
    Place,
    /// No bus number is left for them.
    NoBus,
    /// The port above does not forward to other device numbers (section 6.13), and they have such.
    NoForwarding,
    /// This BAR is not of memory, or smaller than a page.
    Bar(BarIndex),
    /// This BAR, of so many bytes for each, does not fit in the windows.
    NoSpace(BarIndex, u64),
    /// This one does not answer.
    Absent(Sbdf),
}

impl fmt::Display for VirtualProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotPhysical => f.write_str("there is no function with SR-IOV"),
            Self::Total(total) => write!(f, "it has {total} at most"),
            Self::Dependent => f.write_str("they depend on those of another function"),
            Self::Place => f.write_str("their offset and stride make no sense"),
            Self::NoBus => f.write_str("no bus number is left for them"),
            Self::NoForwarding => f.write_str("the port above has no ARI forwarding"),
            Self::Bar(bar) => write!(f, "{bar} is not one that they can have"),
            Self::NoSpace(bar, size) => write!(f, "no room for {size:#x} bytes of {bar} for each"),
            Self::Absent(sbdf) => write!(f, "{sbdf} does not answer"),
        }
    }
}

/// Returns where the register of a VF BAR is, if the capability is at `base`.
fn register(base: u16, bar: &Bar) -> u16 {
    base + BAR0 + 4 * u16::from(bar.index.get())
}

/// Disables VFs that firmware left; returns whether there were any.
pub(crate) fn disable<C: ConfigSpace + ?Sized>(function: Function<'_, C>, offset: Offset) -> bool {
    let control = function.read16(offset.get() + CONTROL);
    function.write16(offset.get() + CONTROL, 0);
    control & ENABLE != 0
}

impl Sriov {
    /// Reads what NumVFs decides, and sets it. The BARs are yet to be sized. `ari` tells whether the
    /// port above forwards to all function numbers of the device.
    pub(crate) fn set_up<C: ConfigSpace + ?Sized>(
        function: Function<'_, C>,
        offset: Offset,
        wanted: Wanted,
        ari: bool,
    ) -> Result<Self, VirtualProblem> {
        let base = offset.get();
        let total = function.read16(base + TOTAL);
        if wanted.count > total {
            return Err(VirtualProblem::Total(total));
        }
        // With ARI a function's number is eight bits, and else three.
        let own = wanted.physical.rid() & 0xff;
        let leader = u16::from(function.read8(base + DEPENDENCY));
        if leader != own && (ari || leader != own & 7) {
            return Err(VirtualProblem::Dependent);
        }
        // The hierarchy and the number come first: offset and stride may depend on both (sections
        // 9.3.3.9 and 9.3.3.10).
        let control = if ari { ARI_HIERARCHY } else { 0 };
        function.write16(base + CONTROL, control);
        function.write16(base + NUMBER, wanted.count);
        function.write32(base + SYSTEM_PAGE_SIZE, PAGES_OF_4K);
        Ok(Self {
            offset,
            count: wanted.count,
            device: function.read16(base + DEVICE_ID),
            bars: [None; BARS],
            first: function.read16(base + FIRST),
            stride: function.read16(base + STRIDE),
            control,
        })
    }

    /// Returns where a VF is.
    pub(crate) fn place(&self, physical: Sbdf, number: u16) -> Option<Sbdf> {
        let ahead = u32::from(self.first) + u32::from(number) * u32::from(self.stride);
        let rid = u16::try_from(u32::from(physical.rid()) + ahead).ok()?;
        let apart = self.first != 0 && (self.count == 1 || self.stride != 0);
        apart.then_some(Sbdf::from_rid(physical.segment(), rid))
    }

    /// Enables the VFs, if they are not; returns whether they were not. They may be accessed after
    /// [`AFTER_ENABLE`].
    pub(crate) fn enable<C: ConfigSpace + ?Sized>(&self, function: Function<'_, C>) -> bool {
        let base = self.offset.get();
        if function.read16(base + CONTROL) & ENABLE != 0 {
            return false;
        }
        function.write16(base + CONTROL, self.control);
        function.write16(base + NUMBER, self.count);
        function.write32(base + SYSTEM_PAGE_SIZE, PAGES_OF_4K);
        for bar in self.bars.iter().flatten() {
            bar.write(function, register(base, bar));
        }
        function.write16(base + CONTROL, self.control | ENABLE | MEMORY);
        true
    }

    /// Returns whether the VFs are enabled where they were placed.
    pub(crate) fn is_enabled<C: ConfigSpace + ?Sized>(&self, function: Function<'_, C>) -> bool {
        let base = self.offset.get();
        let mut bars = self.bars.iter().flatten();
        function.read16(base + CONTROL) & (ENABLE | MEMORY) == ENABLE | MEMORY
            && function.read16(base + NUMBER) == self.count
            && bars.all(|bar| bar.is_written(function, register(base, bar)))
    }

    /// Returns the BARs of a VF.
    pub(crate) fn bars_of(&self, number: u16) -> [Option<Bar>; BARS] {
        self.bars.map(|bar| {
            let bar = bar?;
            let ahead = bar.size.checked_mul(number.into())?;
            let placement = bar.placement.and_then(|first| first.ahead(ahead));
            Some(Bar { placement, ..bar })
        })
    }
}

impl Hierarchy {
    /// Returns the positions of a PF's VFs.
    pub fn virtual_functions(&self, physical: Sbdf) -> impl Iterator<Item = usize> {
        let devices = self.devices.iter().enumerate();
        devices
            .filter(move |(_, device)| device.virtual_of(physical))
            .map(|(index, _)| index)
    }
}

/// Returns whether a VF can have such a BAR: memory, of a system page at least (section 9.3.3.14).
pub(crate) fn is_sound(bar: &Bar) -> bool {
    bar.kind != BarKind::Io && bar.size >= vpci::PAGE
}
