//! A passed-through function: the config space that a guest sees of it.
//!
//! ```text
//!               read                     write
//!                 |                        |
//!      cells: one for each dword, value and number of its row
//!                 |                        |
//!   value, or the device's bits     rows: masks, and what to do
//!                                          |
//!                                     next_effect: what the kernel has to do
//! ```
//!
//! The values that a guest can read are worked out when the function is built and kept in one array,
//! so that a read is an indexed load; only fields that the tables call live go to the device.
//!
//! A write changes the model and nothing else. What it means for the machine is found by comparing
//! what the model wants with what the kernel was told last, so that nothing is lost however many
//! things change at once, and a reset is no special case.

mod builder;

use alloc::vec::Vec;
use core::fmt;

use crate::bar::{BarKind, PAGE, Pages};
use crate::capability;
use crate::emulated::{HEADER_TYPE, MULTI_FUNCTION};
use crate::msi::{self, Msi};
use crate::msix::{self, Area, Layout, Message};
use crate::port::Upstream;
use crate::register::Register;
use crate::{BarIndex, BarInfo, BusAddress, BusRange, ConfigAccess, PhysicalConfig};

/// Where a guest finds the function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Position {
    /// On the root bus: a PCI Express endpoint shows as integrated in the root complex, without link.
    RootBus,
    /// Below a port, with a link. Nothing gets through the port until [`Function::set_upstream`] says
    /// so.
    BelowPort,
    /// The same, and the port can forward requests to 256 functions: all functions there are one ARI device,
    /// of which each shows ARI (section 7.8.8).
    BelowAriPort,
}

/// Whether a guest sees the function's interrupt pin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pin {
    /// It has none.
    Hidden,
    /// It has the physical one, and the kernel routes it.
    Shown,
}

/// Whether a guest sees the function's vendor-specific capabilities.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vendor {
    /// It does not.
    Hidden,
    /// As they were when the function was built; they cannot be written.
    Shown,
}

/// What single root I/O virtualization makes of a function (PCI Express Base Specification, section 9).
/// The guest sees nothing of it: its capability is hidden.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Nothing.
    Ordinary,
    /// Others have virtual functions of it, which a reset would end: it shows no function level reset.
    Physical,
    /// It is a virtual function. Its own registers say neither who it is (section 9.3.4.1.1 and .2), nor
    /// where its BARs are (9.3.4.1.11), nor whether it decodes them (9.3.4.1.3).
    Virtual {
        /// The physical function's Vendor ID.
        vendor: u16,
        /// VF Device ID in the physical function's capability.
        device: u16,
    },
}

/// What the kernel knows of a function that is to be passed through.
#[derive(Clone, Copy, Debug)]
pub struct Setup<'a> {
    /// Its BARs.
    pub bars: &'a [BarInfo],
    /// Where the domain's functions send their MSIs.
    pub doorbell: BusAddress,
    /// Where the guest finds it.
    pub position: Position,
    /// Whether the guest sees its interrupt pin.
    pub pin: Pin,
    /// Whether the guest sees its vendor-specific capabilities.
    pub vendor: Vendor,
    /// Whether it is one of several functions in one.
    pub kind: Kind,
}

/// Why a function cannot be passed through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BuildError {
    /// Nothing answers.
    Absent,
    /// Not a type 0 header: a bridge, or unknown.
    HeaderLayout(u8),
    /// A BAR is described twice, or as none can be.
    Bar(BarIndex),
    /// The MSI-X table or its pending bits are not inside a memory BAR.
    Msix,
    /// No memory is left for the model.
    NoMemory,
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => f.write_str("no function answers there"),
            Self::HeaderLayout(layout) => {
                write!(f, "header layout {layout:#x} is not an endpoint's")
            }
            Self::Bar(bar) => write!(f, "{bar} is not one that a function can have"),
            Self::Msix => f.write_str("its MSI-X table is not inside a memory BAR"),
            Self::NoMemory => f.write_str("no memory left for its config space"),
        }
    }
}

impl core::error::Error for BuildError {}

/// Whether the kernel has something to do after a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Change {
    /// Nothing.
    None,
    /// Nothing, but the dword that was written reads as this now, and the rest as before.
    Value(u32),
    /// [`Function::next_effect`] says what.
    Effects,
}

/// What the kernel has to do. Effects come in the order in which they have to be carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Effect {
    /// The BAR no longer decodes `range`.
    UnmapBar {
        /// Which BAR.
        bar: BarIndex,
        /// Where it was.
        range: BusRange,
    },
    /// The BAR decodes `range`, if the bus has it to give: see [`crate::MemoryMap::claim_or_wait`].
    MapBar {
        /// Which BAR.
        bar: BarIndex,
        /// Where it is.
        range: BusRange,
    },
    /// The function may, or may not, access memory and send MSIs.
    BusMaster {
        /// Whether it may.
        enabled: bool,
    },
    /// The function may, or may not, assert its interrupt pin.
    Intx {
        /// Whether it may.
        enabled: bool,
    },
    /// MSI was set up, masked or turned off.
    Msi(Msi),
    /// MSI-X as a whole was turned on or off, or masked.
    Msix {
        /// MSI-X Enable.
        enabled: bool,
        /// Function Mask.
        masked: bool,
    },
    /// One MSI-X vector was set up or masked.
    MsixVector {
        /// Its number in the table.
        vector: u16,
        /// What it is to send.
        message: Message,
    },
    /// The guest asked for a function level reset. The model is reset already.
    Reset,
}

/// Answer to a read in a BAR that was not mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum BarRead {
    /// The model answers.
    Value(u64),
    /// The device answers, with an access of the same size.
    Device {
        /// Where, in the machine's physical memory.
        host: u64,
    },
}

/// What becomes of a write to a BAR that was not mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum BarWrite {
    /// The model took it.
    Done(Change),
    /// It is the device's, with an access of the same size.
    Device {
        /// Where, in the machine's physical memory.
        host: u64,
    },
}

/// How long a function's config space reads the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Steadiness {
    /// Some of it is the device's to say, at each read.
    Live,
    /// Until the model changes, or the device asserts its interrupt pin: Interrupt Status is clear.
    UntilInterrupt,
    /// Until the model changes.
    Steady,
}

/// How the device of a function is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// As the guest has set it up.
    Usable,
    /// In a reset.
    InReset,
    /// Not to be used: its reset has failed.
    Gone,
}

/// Command register, section 7.5.1.1.3.
mod command {
    pub(super) const MEMORY: u32 = 1 << 1;
    pub(super) const BUS_MASTER: u32 = 1 << 2;
    pub(super) const INTERRUPT_DISABLE: u32 = 1 << 10;
}

/// PowerState in the power management capability, section 7.5.2.2.
const POWER_STATE: u32 = 0b11;
const D3_HOT: u32 = 0b11;

/// Initiate Function Level Reset in Device Control, section 7.5.3.4.
const INITIATE_FLR: u32 = 1 << 15;

/// Expansion ROM Enable, section 7.5.1.2.4.
const ROM_ENABLE: u32 = 1;

/// Next Function Number in the ARI Capability register, section 7.8.8.2.
const NEXT_FUNCTION: u32 = 0xff00;

/// MSI-X Message Control, in the upper half of the capability's first dword.
const MSIX_ENABLE: u32 = 1 << 31;
const MSIX_MASK: u32 = 1 << 30;

/// Command and Status, by number of the dword.
const COMMAND: usize = 1;

/// One dword of config space.
#[derive(Clone, Copy, Debug, Default)]
struct Cell {
    /// What a read gives, apart from live bits.
    value: u32,
    /// Its row; 0 for a dword that never changes.
    row: u16,
    /// Whether some bits are live.
    live: bool,
}

/// What a write to a dword leads to, besides the new value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    /// Nothing.
    None,
    /// The kernel may have to do something.
    Effects,
    /// A BAR has moved, which matters while it decodes.
    Address,
    /// The power state may have changed.
    Power,
    /// A function level reset, if it is wanted.
    DeviceControl,
}

/// The order of effects.
#[derive(Clone, Copy, Debug)]
enum Step {
    Unmap,
    Map,
    Command,
    Msi,
    Msix,
    Reset,
}

/// A dword that is more than a constant.
#[derive(Clone, Copy, Debug)]
struct Row {
    register: Register,
    /// Its value after a reset.
    reset: u32,
    action: Action,
}

#[derive(Clone, Copy, Debug)]
struct Bar {
    info: BarInfo,
    /// Where the kernel was told that it is.
    told: Option<BusRange>,
}

#[derive(Clone, Copy, Debug)]
struct MsiModel {
    form: msi::Form,
    /// First dword of the capability.
    dword: usize,
    told: Msi,
}

impl MsiModel {
    /// Returns the dword of the pending bits, if there are any.
    fn pending(&self) -> Option<usize> {
        let (mask, _) = self.form.mask_bits()?;
        Some(self.dword + mask + 1)
    }
}

#[derive(Debug)]
struct MsixModel {
    layout: Layout,
    table: msix::Table,
    /// First dword of the capability.
    dword: usize,
    /// MSI-X Enable and Function Mask, as the kernel was told.
    told: u32,
}

/// A physical function, and what a guest sees of it.
#[derive(Debug)]
pub struct Function<P> {
    device: P,
    cells: Vec<Cell>,
    rows: Vec<Row>,
    bars: [Option<Bar>; BarIndex::RANGES],
    doorbell: BusAddress,
    upstream: Upstream,
    msi: Option<MsiModel>,
    msix: Option<MsixModel>,
    /// Dword of the power management capability that holds PowerState.
    power: Option<usize>,
    /// Dword of the ARI capability that holds Next Function Number.
    ari: Option<usize>,
    /// Whether a cell is live whatever the guest has set.
    live: bool,
    version: u32,
    /// The bits of Command that the kernel was told of.
    told: u32,
    reset_wanted: bool,
    /// How the device is.
    state: State,
    /// Which effects may be left: these, and those of later steps.
    pending: Option<Step>,
}

impl<P: PhysicalConfig> Function<P> {
    /// Builds the model of the function that `device` reaches. The device is only read.
    ///
    /// # Errors
    ///
    /// If there is no endpoint, if its BARs or its MSI-X table are not as they can be, or if memory
    /// is short.
    pub fn new(device: P, setup: &Setup<'_>) -> Result<Self, BuildError> {
        let header = [0x00, 0x0c].map(|offset| capability::dword(&device, offset));
        let [identity, layout] = header;
        let is_absent = match setup.kind {
            Kind::Ordinary | Kind::Physical => identity & 0xffff == 0xffff,
            Kind::Virtual { .. } => layout == u32::MAX,
        };
        if is_absent {
            return Err(BuildError::Absent);
        }
        let layout = (layout >> 16 & 0x7f) as u8;
        if layout != 0 {
            return Err(BuildError::HeaderLayout(layout));
        }
        let mut function = Self {
            device,
            cells: Vec::new(),
            rows: Vec::new(),
            bars: [None; BarIndex::RANGES],
            doorbell: setup.doorbell,
            upstream: match setup.position {
                Position::RootBus => Upstream::ROOT,
                Position::BelowPort | Position::BelowAriPort => Upstream::CLOSED,
            },
            msi: None,
            msix: None,
            power: None,
            ari: None,
            live: false,
            version: 0,
            told: 0,
            reset_wanted: false,
            state: State::Usable,
            pending: None,
        };
        builder::build(&mut function, setup)?;
        Ok(function)
    }

    /// Returns the way to the physical function's config space.
    pub const fn device(&self) -> &P {
        &self.device
    }

    /// Answers a read of config space.
    #[inline(always)]
    #[must_use]
    pub fn read(&self, access: ConfigAccess) -> u32 {
        let Some(cell) = self.cells.get(access.offset().dword()) else {
            return self.read_live(0, access);
        };
        if cell.live {
            return self.read_live(cell.value, access);
        }
        access.extract(cell.value)
    }

    /// Takes a write of config space.
    pub fn write(&mut self, access: ConfigAccess, value: u32) -> Change {
        let index = access.offset().dword();
        let Some(cell) = self.cells.get_mut(index).filter(|cell| cell.row != 0) else {
            return Change::None;
        };
        if self.state == State::Gone {
            return Change::None;
        }
        let Some(&row) = self.rows.get(usize::from(cell.row) - 1) else {
            return Change::None;
        };
        let (written, enables) = (access.place(value), access.enables());
        let before = cell.value;
        let after = row.register.after_write(before, written, enables);
        if before == after {
            return Change::None;
        }
        cell.value = after;
        self.version = self.version.wrapping_add(1);
        match row.action {
            Action::None => return Change::Value(after),
            Action::DeviceControl if after & INITIATE_FLR == 0 => return Change::Value(after),
            // The kernel knows that no BAR decodes, unless it has yet to ask.
            Action::Address
                if self.pending.is_none() && self.dword(COMMAND) & command::MEMORY == 0 =>
            {
                return Change::Value(after);
            }
            Action::Effects | Action::Address => {}
            Action::Power => self.change_power(index, before, after),
            // It leaves what belongs to the link (6.6.2).
            Action::DeviceControl => {
                self.reset_wanted = true;
                let _: Change = self.reset_but(|register| register.shared);
            }
        }
        self.pending = Some(Step::Unmap);
        Change::Effects
    }

    /// Returns the function to its state after power-on. Effects follow for all that has to be
    /// undone; the device itself is the kernel's to reset.
    pub fn reset(&mut self) -> Change {
        self.reset_but(|_| 0)
    }

    /// Does so, but for the bits of each register that `kept` says.
    fn reset_but(&mut self, kept: impl Fn(&Register) -> u32) -> Change {
        for cell in self.cells.iter_mut().filter(|cell| cell.row != 0) {
            if let Some(row) = self.rows.get(usize::from(cell.row) - 1) {
                let kept = kept(&row.register);
                cell.value = cell.value & kept | row.reset & !kept;
            }
        }
        self.version = self.version.wrapping_add(1);
        if let Some(msix) = &mut self.msix {
            msix.table.reset();
        }
        self.pending = Some(Step::Unmap);
        Change::Effects
    }

    /// Says whether the guest finds other functions at the same device. Matters for function 0.
    pub fn set_multi_function(&mut self, multi: bool) {
        let bit = if multi { MULTI_FUNCTION } else { 0 };
        self.set_fixed(HEADER_TYPE, MULTI_FUNCTION, bit);
    }

    /// Says which function the guest finds next at the same device, or 0 if this is the last: shown
    /// by ARI, where there is one.
    pub fn set_next_function(&mut self, function: u8) {
        if let Some(index) = self.ari {
            self.set_fixed(index, NEXT_FUNCTION, u32::from(function) << 8);
        }
    }

    /// Changes bits that a guest cannot, now and after a reset.
    fn set_fixed(&mut self, index: usize, mask: u32, bits: u32) {
        let Some(cell) = self.cells.get_mut(index) else {
            return;
        };
        cell.value = cell.value & !mask | bits;
        if let Some(row) = self.rows.get_mut(usize::from(cell.row).wrapping_sub(1)) {
            row.reset = row.reset & !mask | bits;
        }
        self.version = self.version.wrapping_add(1);
    }

    /// Says how long a guest reads what [`Function::steady_dword`] returns. A change of the model shows
    /// in [`Function::version`].
    #[must_use]
    pub fn steadiness(&self) -> Steadiness {
        let has_pin = || self.live_bits(COMMAND) != 0;
        let is_pending_live = || self.msi.is_some_and(|msi| self.masked(&msi) != 0);
        if self.state == State::Gone {
            Steadiness::Steady
        } else if self.live || is_pending_live() {
            Steadiness::Live
        } else if !has_pin() {
            Steadiness::Steady
        } else if self.command() & command::INTERRUPT_DISABLE != 0 {
            Steadiness::Live
        } else {
            Steadiness::UntilInterrupt
        }
    }

    /// Returns a number that is another one after each change of what a guest reads, except by live
    /// fields: one more after a change of the dword that was written, more than that after others.
    #[must_use]
    pub const fn version(&self) -> u32 {
        self.version
    }

    /// Returns a dword of config space as a guest reads it while the function is steady, without asking
    /// the device.
    #[must_use]
    pub fn steady_dword(&self, index: usize) -> u32 {
        match self.state {
            State::Gone => u32::MAX,
            State::Usable | State::InReset => self.dword(index),
        }
    }

    /// Says how the device is.
    ///
    /// After [`Effect::Reset`] or [`Function::reset`] it is in a reset: live fields read as zero, and nothing
    /// must be written; see [`crate::Bus::must_wait`]. If that fails it is gone: all of its config space
    /// reads as ones, and writes do nothing, until it is usable again, as after a reset.
    pub fn set_state(&mut self, state: State) {
        let before = core::mem::replace(&mut self.state, state);
        let is_gone = state == State::Gone;
        if is_gone == (before == State::Gone) {
            return;
        }
        for cell in &mut self.cells {
            let row = self.rows.get(usize::from(cell.row).wrapping_sub(1));
            cell.live = is_gone || row.is_some_and(|row| row.register.live != 0);
        }
        self.version = self.version.wrapping_add(2);
    }

    /// Returns how the device is.
    #[must_use]
    pub const fn state(&self) -> State {
        self.state
    }

    /// Says what the port above lets through: a BAR outside its windows is not decoded, and without its
    /// Bus Master Enable the function reaches nothing.
    pub fn set_upstream(&mut self, upstream: Upstream) -> Change {
        if self.upstream == upstream {
            return Change::None;
        }
        self.upstream = upstream;
        self.pending = Some(Step::Unmap);
        Change::Effects
    }

    /// Returns the next thing that the kernel has to do, until there is none left.
    ///
    /// Ranges are given up before others are asked for, and a reset comes when all that it ends has
    /// been ended.
    pub fn next_effect(&mut self) -> Option<Effect> {
        while let Some(step) = self.pending {
            let (effect, next) = match step {
                Step::Unmap => (self.next_unmap(), Some(Step::Map)),
                Step::Map => (self.next_map(), Some(Step::Command)),
                Step::Command => (self.next_command(), Some(Step::Msi)),
                Step::Msi => (self.next_msi(), Some(Step::Msix)),
                Step::Msix => (self.next_msix(), Some(Step::Reset)),
                Step::Reset => {
                    let wanted = core::mem::take(&mut self.reset_wanted);
                    (wanted.then_some(Effect::Reset), None)
                }
            };
            if effect.is_some() {
                return effect;
            }
            self.pending = next;
        }
        None
    }

    /// Returns where the device has its MSI-X table and pending bits, if it shows any.
    #[must_use]
    pub fn msix_layout(&self) -> Option<Layout> {
        Some(self.msix.as_ref()?.layout)
    }

    /// Returns the function's memory BARs, and its expansion ROM.
    pub fn bars(&self) -> impl Iterator<Item = BarInfo> {
        let bars = self.bars.iter().flatten().map(|bar| bar.info);
        bars.filter(|info| info.kind != BarKind::Io)
    }

    /// Returns the range that a BAR decodes now, if it is a memory BAR, memory decode is on, and the
    /// port above lets requests to it through. The expansion ROM has to be enabled besides; section
    /// 7.5.1.2.4.
    #[must_use]
    pub fn decoded(&self, bar: BarIndex) -> Option<BusRange> {
        self.range(&self.bars.get(bar.index())?.as_ref()?.info)
    }

    fn range(&self, info: &BarInfo) -> Option<BusRange> {
        if self.command() & command::MEMORY == 0 {
            return None;
        }
        let dword = info.index.dword();
        let low = self.dword(dword);
        let high = match info.kind {
            BarKind::Memory64 => self.dword(dword + 1),
            BarKind::Rom if low & ROM_ENABLE == 0 => return None,
            BarKind::Memory32 | BarKind::Rom => 0,
            BarKind::Io => return None,
        };
        info.range_at(u64::from(high) << 32 | u64::from(low))
            .filter(|range| self.upstream.reaches(*range))
    }

    /// Returns the parts of a BAR that may be mapped into the guest: whole pages without anything of
    /// MSI-X in them. Accesses to the rest trap; see [`Function::read_bar`].
    pub fn pages(&self, bar: BarIndex) -> impl Iterator<Item = Pages> + Clone + use<P> {
        let info = self.bar(bar).filter(BarInfo::is_mappable);
        let (host, size) = info.map_or((0, 0), |info| (info.host, info.size));
        let prefetchable = info.is_some_and(|info| info.prefetchable);
        let layout = self.msix.as_ref().map(|msix| msix.layout);
        let holes = layout.map_or([(0, 0); 2], |layout| {
            [layout.table, layout.pending].map(|place| hole(&place, bar))
        });
        let mut at = 0;
        core::iter::from_fn(move || {
            while let Some(&(_, end)) = holes.iter().find(|&&(start, end)| start <= at && at < end)
            {
                at = end;
            }
            if at >= size {
                return None;
            }
            let starts = holes.iter().map(|&(start, _)| start);
            let end = starts.filter(|&start| start > at).fold(size, u64::min);
            let (offset, host, size) = (at, host.checked_add(at)?, end - at);
            at = end;
            Some(Pages {
                offset,
                host,
                size,
                prefetchable,
            })
        })
    }

    /// Answers a read of `bytes` bytes at `offset` in a BAR. What no request can express, and what
    /// is past the end, reads as all ones.
    pub fn read_bar(&self, bar: BarIndex, offset: u64, bytes: u64) -> BarRead {
        const ONES: BarRead = BarRead::Value(u64::MAX);
        let Some(info) = self.bar(bar).filter(|info| in_bar(info, offset, bytes)) else {
            return ONES;
        };
        let table = match self.area(bar, offset) {
            (Area::Table(offset), Some(msix)) => (offset, &msix.table),
            _ => {
                let host = info.host.checked_add(offset);
                return host.map_or(ONES, |host| BarRead::Device { host });
            }
        };
        let (offset, table) = table;
        let low = u64::from(table.read(offset));
        let value = if bytes == 8 {
            u64::from(table.read(offset + 4)) << 32 | low
        } else {
            low >> (offset % 4 * 8) & ((1 << (bytes * 8)) - 1)
        };
        BarRead::Value(value)
    }

    /// Takes a write of `bytes` bytes at `offset` in a BAR. What no request can express, what is
    /// past the end, and what aims at pending bits or a ROM is dropped.
    pub fn write_bar(&mut self, bar: BarIndex, offset: u64, bytes: u64, value: u64) -> BarWrite {
        const DROPPED: BarWrite = BarWrite::Done(Change::None);
        let Some(info) = self.bar(bar).filter(|info| in_bar(info, offset, bytes)) else {
            return DROPPED;
        };
        let offset = match self.area(bar, offset).0 {
            Area::Table(offset) => offset,
            Area::Pending => return DROPPED,
            Area::Other if info.kind == BarKind::Rom => return DROPPED,
            Area::Other => {
                let host = info.host.checked_add(offset);
                return host.map_or(DROPPED, |host| BarWrite::Device { host });
            }
        };
        let Some(msix) = &mut self.msix else {
            return DROPPED;
        };
        let shift = offset % 4 * 8;
        let enables = if bytes == 8 {
            u64::MAX
        } else {
            ((1 << (bytes * 8)) - 1) << shift
        };
        let (low, high) = halves(value << shift);
        let (low_enables, high_enables) = halves(enables);
        msix.table.write(offset, low, low_enables);
        if bytes == 8 {
            msix.table.write(offset + 4, high, high_enables);
        }
        if !msix.table.has_changes() {
            return DROPPED;
        }
        self.pending = Some(Step::Unmap);
        BarWrite::Done(Change::Effects)
    }

    /// Returns a memory BAR.
    fn bar(&self, bar: BarIndex) -> Option<BarInfo> {
        let info = self.bars.get(bar.index())?.as_ref()?.info;
        (info.kind != BarKind::Io).then_some(info)
    }

    /// Returns what is at `offset` of a BAR, and the model of MSI-X if there is one.
    fn area(&self, bar: BarIndex, offset: u64) -> (Area, Option<&MsixModel>) {
        let msix = self.msix.as_ref();
        (
            msix.map_or(Area::Other, |msix| msix.layout.at(bar, offset)),
            msix,
        )
    }

    fn dword(&self, index: usize) -> u32 {
        self.cells.get(index).map_or(0, |cell| cell.value)
    }

    /// Answers a read of a dword that has live bits, or of a function that is gone. Asks the device only if
    /// live bits are wanted.
    #[cold]
    fn read_live(&self, value: u32, access: ConfigAccess) -> u32 {
        let live = self.live_bits(access.offset().dword()) & access.enables();
        if self.state == State::Gone {
            return access.size().mask();
        }
        if live == 0 || self.state == State::InReset {
            return access.extract(value);
        }
        let device = access.place(self.device.read(access.offset(), access.size()));
        access.extract(value | device & live)
    }

    /// Returns the bits of a dword that the device has to be asked for now. Interrupt Status is clear
    /// while the function sends messages, which it then does instead (7.7.1.2, 7.7.2.2); a vector that is
    /// not masked is never pending (7.7.1.8).
    fn live_bits(&self, index: usize) -> u32 {
        let row = self.cells.get(index).map_or(0, |cell| cell.row);
        let row = self.rows.get(usize::from(row).wrapping_sub(1));
        let live = row.map_or(0, |row| row.register.live);
        if index == COMMAND {
            return if self.sends_messages() { 0 } else { live };
        }
        match self.msi {
            Some(msi) if msi.pending() == Some(index) => live & self.masked(&msi),
            _ => live,
        }
    }

    /// Returns whether MSI or MSI-X is on.
    fn sends_messages(&self) -> bool {
        let by_msi = self
            .msi
            .is_some_and(|msi| self.dword(msi.dword) & msi::ENABLE != 0);
        let msix = self.msix.as_ref();
        by_msi || msix.is_some_and(|msix| self.dword(msix.dword) & MSIX_ENABLE != 0)
    }

    /// Returns which vectors of MSI are masked, if it is on.
    fn masked(&self, msi: &MsiModel) -> u32 {
        match msi.form.mask_bits() {
            Some((mask, _)) if self.dword(msi.dword) & msi::ENABLE != 0 => {
                self.dword(msi.dword + mask)
            }
            _ => 0,
        }
    }

    /// Takes a new power state, unless it is one that is not offered: then the old one stays.
    fn change_power(&mut self, index: usize, before: u32, after: u32) {
        if matches!(after & POWER_STATE, 0 | D3_HOT) {
            return;
        }
        if let Some(cell) = self.cells.get_mut(index) {
            cell.value = after & !POWER_STATE | before & POWER_STATE;
        }
    }

    /// Returns whether the function is in D0.
    fn is_awake(&self) -> bool {
        self.power
            .is_none_or(|index| self.dword(index) & POWER_STATE != D3_HOT)
    }

    fn next_unmap(&mut self) -> Option<Effect> {
        let (bar, range) = self.bars.iter().flatten().find_map(|bar| {
            let told = bar.told?;
            (self.range(&bar.info) != Some(told)).then_some((bar.info.index, told))
        })?;
        self.tell(bar, None);
        Some(Effect::UnmapBar { bar, range })
    }

    fn next_map(&mut self) -> Option<Effect> {
        let mut bars = self.bars.iter().flatten();
        let (bar, range) = bars.find_map(|bar| match bar.told {
            None => Some((bar.info.index, self.range(&bar.info)?)),
            Some(_) => None,
        })?;
        self.tell(bar, Some(range));
        Some(Effect::MapBar { bar, range })
    }

    /// Notes where the kernel was told that a BAR is.
    fn tell(&mut self, bar: BarIndex, range: Option<BusRange>) {
        if let Some(Some(bar)) = self.bars.get_mut(bar.index()) {
            bar.told = range;
        }
    }

    /// Returns Command as it takes effect: a function in D3hot answers config requests only, and sends
    /// nothing by itself, which the messages of an interrupt pin are, too (5.3.1.4.1).
    fn command(&self) -> u32 {
        let mut command = self.dword(COMMAND);
        if !self.is_awake() {
            command &= !(command::MEMORY | command::BUS_MASTER);
            command |= command::INTERRUPT_DISABLE;
        }
        if !self.upstream.lets_out() {
            command &= !command::BUS_MASTER;
        }
        command
    }

    fn next_command(&mut self) -> Option<Effect> {
        let wanted = self.command();
        let differs = (wanted ^ self.told) & (command::BUS_MASTER | command::INTERRUPT_DISABLE);
        if differs & command::BUS_MASTER != 0 {
            self.told ^= command::BUS_MASTER;
            let enabled = wanted & command::BUS_MASTER != 0;
            return Some(Effect::BusMaster { enabled });
        }
        if differs != 0 {
            self.told ^= command::INTERRUPT_DISABLE;
            let enabled = wanted & command::INTERRUPT_DISABLE == 0;
            return Some(Effect::Intx { enabled });
        }
        None
    }

    fn next_msi(&mut self) -> Option<Effect> {
        let model = self.msi?;
        let dword = |index| self.dword(model.dword + index);
        let wanted = model.form.state(dword, self.doorbell);
        let told = &mut self.msi.as_mut()?.told;
        if *told == wanted {
            return None;
        }
        *told = wanted;
        Some(Effect::Msi(wanted))
    }

    fn next_msix(&mut self) -> Option<Effect> {
        let control = self.dword(self.msix.as_ref()?.dword) & (MSIX_ENABLE | MSIX_MASK);
        let msix = self.msix.as_mut()?;
        if msix.told != control {
            msix.told = control;
            return Some(Effect::Msix {
                enabled: control & MSIX_ENABLE != 0,
                masked: control & MSIX_MASK != 0,
            });
        }
        let (vector, message) = msix.table.next_change()?;
        Some(Effect::MsixVector { vector, message })
    }
}

/// Returns start and end of the pages that a structure of MSI-X keeps out of a mapping of `bar`.
fn hole(place: &msix::Place, bar: BarIndex) -> (u64, u64) {
    if place.bar != bar {
        return (0, 0);
    }
    let end = place.offset.saturating_add(place.size);
    (place.offset & !(PAGE - 1), end.next_multiple_of(PAGE))
}

/// Returns whether an access is naturally aligned and inside the BAR.
fn in_bar(info: &BarInfo, offset: u64, bytes: u64) -> bool {
    matches!(bytes, 1 | 2 | 4 | 8) && offset.is_multiple_of(bytes) && offset < info.size
}

/// Splits a value into its lower and its upper half.
#[expect(clippy::cast_possible_truncation, reason = "the halves are wanted")]
const fn halves(value: u64) -> (u32, u32) {
    (value as u32, (value >> 32) as u32)
}
