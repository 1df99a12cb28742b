//! Building the model: what of the physical function is shown, and how it is laid out.
//!
//! Whatever the device's registers hold, the result is sound: structures never overlap, the chain of
//! capabilities ends, and what no table names is hidden.

use super::{
    Action, Bar, BuildError, COMMAND, Cell, Function, INITIATE_FLR, Kind, MsiModel, MsixModel, Pin,
    Position, ROM_ENABLE, Row, Setup, Vendor, halves,
};
use crate::bar::BarKind;
use crate::capability::{self, Capability, extended, id};
use crate::msi::{self, Msi};
use crate::msix::{self, Layout};
use crate::register::Register;
use crate::{BarIndex, BarInfo, Offset, PhysicalConfig, tables};

// What the tables come to, without their names.
static HEADER: [Register; 16] = tables::HEADER.registers();
static PIN: [Register; 16] = tables::PIN.registers();
static POWER: [Register; 2] = tables::POWER.registers();
static MSIX: [Register; 3] = tables::MSIX.registers();
static VENDOR: [Register; 1] = tables::VENDOR.registers();
static EXPRESS: [Register; 15] = tables::EXPRESS.registers();
static LINK: [Register; 15] = tables::LINK.registers();
static ERRORS: [Register; 11] = tables::ERRORS.registers();
static SERIAL_NUMBER: [Register; 3] = tables::SERIAL_NUMBER.registers();
static ARI: [Register; 2] = tables::ARI.registers();
static LATENCY: [Register; 2] = tables::LATENCY.registers();

/// Registers of the header, by number of the dword, and a bit of Status.
const CAPABILITIES_POINTER: usize = 0x34 / 4;
const CAPABILITIES_LIST: u32 = 1 << 20;

/// Where the chain of extended capabilities begins.
const EXTENDED_START: u16 = 0x100;

/// In the power management capability: D3hot keeps the state, as the model does.
const NO_SOFT_RESET: u32 = 1 << 3;

/// Function Level Reset Capability in Device Capabilities, section 7.5.3.3.
const FLR_CAPABLE: u32 = 1 << 28;

/// Dwords of the PCI Express capability, by number.
const DEVICE_CAPABILITIES: usize = 1;
const DEVICE_CONTROL: usize = 2;
const LINK_CAPABILITIES: usize = 3;
const LINK_CONTROL: usize = 4;
const DEVICE_CAPABILITIES_2: usize = 0x24 / 4;
const DEVICE_CONTROL_2: usize = 0x28 / 4;

/// What a device has to be capable of for some of its controls not to be zero: dword and bits of the
/// one, and of the other. Sections 7.5.3.3, 7.5.3.4, 7.5.3.15 and 7.5.3.16.
#[rustfmt::skip]
const CONTROLS: [(usize, u32, usize, u32); 5] = [
    (DEVICE_CAPABILITIES,   1 << 5,      DEVICE_CONTROL,   1 << 8), // extended tags
    (DEVICE_CAPABILITIES,   FLR_CAPABLE, DEVICE_CONTROL,   INITIATE_FLR),
    (DEVICE_CAPABILITIES_2, 0x00f,       DEVICE_CONTROL_2, 0x00f),  // completion timeout ranges, value
    (DEVICE_CAPABILITIES_2, 0x010,       DEVICE_CONTROL_2, 0x010),  // completion timeout disable
    (DEVICE_CAPABILITIES_2, 0x800,       DEVICE_CONTROL_2, 0x400),  // LTR
];

/// The link of an endpoint that has none of its own: 2.5 GT/s, x1, without ASPM; and that it runs.
/// Sections 7.5.3.6 and 7.5.3.8.
const PLAIN_LINK: u32 = 0x0040_0011;
const PLAIN_LINK_STATUS: u32 = 0x1011 << 16;

/// Device Control after a reset: relaxed ordering and no snoop on, 512 byte reads. Section 7.5.3.4.
const DEVICE_CONTROL_RESET: u32 = 0x2810;

/// Extended Capability ID and Capability Version of ARI, section 7.8.8.1.
const ARI_HEADER: u32 = 0x0001_000e;

/// Vendor of virtio devices, their Device IDs, and the type of the capability that is a window to
/// all BARs: what is read and written in config space there is read and written in a BAR (virtio
/// 1.2, sections 4.1.2.1 and 4.1.4.9).
const VIRTIO_VENDOR: u32 = 0x1af4;
const VIRTIO_DEVICES: core::ops::RangeInclusive<u32> = 0x1000..=0x107f;
const VIRTIO_WINDOW: u32 = 5;

/// Makes the cells and rows of a function that has none yet.
pub(super) fn build<P: PhysicalConfig>(
    function: &mut Function<P>,
    setup: &Setup<'_>,
) -> Result<(), BuildError> {
    Builder::new(function).build(setup)
}

/// A function under construction.
struct Builder<'a, P> {
    function: &'a mut Function<P>,
    /// Dwords that a structure has taken, so that a broken chain cannot lay one over another.
    taken: [u64; 16],
    /// The dword and the shift at which the pointer to the next capability goes.
    link: (usize, u32),
    /// The extended capability that was shown last.
    extended: Option<u16>,
    express: bool,
    has_link: bool,
    /// Whether it is a function of an ARI device.
    has_ari: bool,
    /// Whether a function level reset is offered, if the device has it.
    resettable: bool,
}

impl<'a, P: PhysicalConfig> Builder<'a, P> {
    const fn new(function: &'a mut Function<P>) -> Self {
        Self {
            function,
            taken: [0; 16],
            link: (CAPABILITIES_POINTER, 0),
            extended: None,
            express: false,
            has_link: false,
            has_ari: false,
            resettable: true,
        }
    }

    fn build(mut self, setup: &Setup<'_>) -> Result<(), BuildError> {
        self.take(0, HEADER.len());
        self.lay(0, &HEADER)?;
        self.act(COMMAND, Action::Effects);
        match setup.kind {
            Kind::Ordinary => {}
            Kind::Physical => self.resettable = false,
            Kind::Virtual { vendor, device } => {
                self.cell(0)?.value = u32::from(device) << 16 | u32::from(vendor);
            }
        }
        if setup.pin == Pin::Shown {
            self.lay(0, &PIN)?;
        }
        for info in setup.bars {
            self.add_bar(*info)?;
        }
        // The chain is short: the walk never visits a dword twice.
        let mut chain = [None; 64];
        let found = capability::walk(&self.function.device);
        for (slot, found) in chain.iter_mut().zip(found) {
            *slot = Some(found);
        }
        // The first of a kind counts, as it does for EL2, even if it is not shown.
        let mut known = [false; 256];
        for found in chain.into_iter().flatten() {
            let known = known.get_mut(usize::from(found.id));
            let is_known = known.is_none_or(|known| core::mem::replace(known, true));
            if !is_known || found.id == id::VENDOR.into() {
                self.add_capability(found, setup)?;
            }
        }
        if self.express {
            self.add_extended()?;
        }
        let pending = self.function.msi.and_then(|msi| msi.pending());
        for (index, cell) in self.function.cells.iter().enumerate() {
            let row = usize::from(cell.row).wrapping_sub(1);
            if let Some(row) = self.function.rows.get_mut(row) {
                row.reset = cell.value;
            }
            // These two depend on what the guest has set.
            let changes = index == COMMAND || Some(index) == pending;
            self.function.live |= cell.live && !changes;
        }
        Ok(())
    }

    /// Takes the dwords of a structure; `false` if it does not fit or another one has any of them.
    fn take(&mut self, base: u16, dwords: usize) -> bool {
        let first = usize::from(base / 4);
        let end = if base < EXTENDED_START {
            EXTENDED_START
        } else {
            Offset::SPACE
        };
        if first + dwords > usize::from(end / 4) {
            return false;
        }
        let range = first..first + dwords;
        let bits = |dword: usize| (dword / 64, 1_u64 << (dword % 64));
        let is_taken = |dword| {
            let (word, bit) = bits(dword);
            self.taken.get(word).is_none_or(|word| word & bit != 0)
        };
        if range.clone().any(is_taken) {
            return false;
        }
        for dword in range {
            let (word, bit) = bits(dword);
            if let Some(word) = self.taken.get_mut(word) {
                *word |= bit;
            }
        }
        true
    }

    /// Makes the cells of a structure at `base`, or adds to those that are there.
    fn lay(&mut self, base: u16, registers: &[Register]) -> Result<(), BuildError> {
        for (offset, register) in (base..).step_by(4).zip(registers) {
            if *register == Register::HIDDEN {
                continue;
            }
            let copied = match register.copied {
                0 => 0,
                mask => capability::dword(&self.function.device, offset) & mask,
            };
            let index = usize::from(offset / 4);
            self.cell(index)?.value |= copied;
            self.add_masks(index, *register)?;
        }
        Ok(())
    }

    /// Returns the cell of a dword.
    fn cell(&mut self, index: usize) -> Result<&mut Cell, BuildError> {
        let cells = &mut self.function.cells;
        let missing = (index + 1).saturating_sub(cells.len());
        cells
            .try_reserve(missing)
            .map_err(|_| BuildError::NoMemory)?;
        cells.resize(cells.len() + missing, Cell::default());
        cells.get_mut(index).ok_or(BuildError::NoMemory)
    }

    /// Adds to what reads and writes of a dword do.
    fn add_masks(&mut self, index: usize, register: Register) -> Result<(), BuildError> {
        if register.rw | register.live == 0 {
            return Ok(());
        }
        let rows = self.function.rows.len();
        let cell = self.cell(index)?;
        cell.live |= register.live != 0;
        if cell.row == 0 {
            cell.row = u16::try_from(rows + 1).map_err(|_| BuildError::NoMemory)?;
            self.function
                .rows
                .try_reserve(1)
                .map_err(|_| BuildError::NoMemory)?;
            self.function.rows.push(Row {
                register,
                reset: 0,
                action: Action::None,
            });
        } else if let Some(row) = self.row(index) {
            row.register = row.register.and(register);
        }
        Ok(())
    }

    fn row(&mut self, index: usize) -> Option<&mut Row> {
        let row = self.function.cells.get(index)?.row;
        self.function.rows.get_mut(usize::from(row).checked_sub(1)?)
    }

    /// Says what a write to a dword leads to.
    fn act(&mut self, index: usize, action: Action) {
        if let Some(row) = self.row(index) {
            row.action = action;
        }
    }

    /// Adds a BAR: the bits that a guest can write are those of the address above the size.
    fn add_bar(&mut self, info: BarInfo) -> Result<(), BuildError> {
        let error = BuildError::Bar(info.index);
        let pair = info.kind == BarKind::Memory64;
        let upper = BarIndex::new(info.index.get() + 1).filter(|_| pair);
        let below = info.index.get().checked_sub(1).and_then(BarIndex::new);
        let bar = |index: BarIndex| self.function.bars.get(index.index()).copied().flatten();
        let is_upper_half = below
            .and_then(bar)
            .is_some_and(|bar| bar.info.kind == BarKind::Memory64);
        let is_taken = bar(info.index).is_some() || upper.and_then(bar).is_some();
        if !info.is_sound() || is_upper_half || is_taken {
            return Err(error);
        }
        if let Some(slot) = self.function.bars.get_mut(info.index.index()) {
            *slot = Some(Bar { info, told: None });
        }
        let (low, high) = halves(info.address_mask());
        let index = info.index.dword();
        let low = if info.kind == BarKind::Rom {
            low | ROM_ENABLE
        } else {
            low
        };
        self.cell(index)?.value = info.type_bits();
        self.add_masks(index, Register::kept(low))?;
        self.act(index, Action::Address);
        if pair {
            self.add_masks(index + 1, Register::kept(high))?;
            self.act(index + 1, Action::Address);
        }
        Ok(())
    }

    /// Shows a capability, if it is one on the list, and whole.
    fn add_capability(&mut self, found: Capability, setup: &Setup<'_>) -> Result<(), BuildError> {
        match u8::try_from(found.id) {
            Ok(id::POWER) => self.add_power(found.offset),
            Ok(id::MSI) => self.add_msi(found.offset),
            Ok(id::MSIX) => self.add_msix(found.offset),
            Ok(id::EXPRESS) => self.add_express(found.offset, setup.position),
            Ok(id::VENDOR) if setup.vendor == Vendor::Shown => self.add_vendor(found.offset),
            _ => Ok(()),
        }
    }

    /// Shows the registers of a capability and links it into the chain; `false` if it has no room.
    fn show(&mut self, base: u16, registers: &[Register]) -> Result<bool, BuildError> {
        if !self.take(base, registers.len()) {
            return Ok(false);
        }
        self.lay(base, registers)?;
        self.link(base)?;
        Ok(true)
    }

    /// Links a capability into the chain.
    fn link(&mut self, base: u16) -> Result<(), BuildError> {
        let (index, shift) = self.link;
        self.cell(index)?.value |= u32::from(base) << shift;
        self.cell(COMMAND)?.value |= CAPABILITIES_LIST;
        self.link = (usize::from(base / 4), 8);
        Ok(())
    }

    /// Shows a vendor-specific capability as it is now. There may be several.
    fn add_vendor(&mut self, base: u16) -> Result<(), BuildError> {
        let [identity, header] =
            [0, base].map(|offset| capability::dword(&self.function.device, offset));
        let is_virtio =
            identity & 0xffff == VIRTIO_VENDOR && VIRTIO_DEVICES.contains(&(identity >> 16));
        if is_virtio && header >> 24 == VIRTIO_WINDOW {
            return Ok(());
        }
        // The length is in bytes, and counts what was just read.
        let length = header >> 16 & 0xff;
        let (whole, rest) = ((length / 4) as usize, length % 4);
        let dwords = whole + usize::from(rest != 0);
        if whole == 0 || !self.take(base, dwords) {
            return Ok(());
        }
        self.lay(base, &VENDOR)?;
        for (offset, index) in (base + 4..).step_by(4).zip(1..dwords) {
            let copied = if index < whole {
                u32::MAX
            } else {
                (1 << (rest * 8)) - 1
            };
            let register = Register {
                copied,
                ..Register::HIDDEN
            };
            self.lay(offset, &[register])?;
        }
        self.link(base)
    }

    fn add_power(&mut self, base: u16) -> Result<(), BuildError> {
        if !self.show(base, &POWER)? {
            return Ok(());
        }
        let index = usize::from(base / 4) + 1;
        self.cell(index)?.value |= NO_SOFT_RESET;
        self.act(index, Action::Power);
        self.function.power = Some(index);
        Ok(())
    }

    fn add_msi(&mut self, base: u16) -> Result<(), BuildError> {
        let form = msi::Form::decode(capability::dword(&self.function.device, base));
        if !self.show(base, form.registers())? {
            return Ok(());
        }
        let first = usize::from(base / 4);
        for index in first..first + form.registers().len() {
            self.act(index, Action::Effects);
        }
        if let Some((mask, bits)) = form.mask_bits()
            && let Some(row) = self.row(first + mask)
        {
            row.register.rw &= bits;
        }
        self.function.msi = Some(MsiModel {
            form,
            dword: first,
            told: Msi::OFF,
        });
        Ok(())
    }

    fn add_msix(&mut self, base: u16) -> Result<(), BuildError> {
        if !self.show(base, &MSIX)? {
            return Ok(());
        }
        let [control, table, pending] =
            [0, 4, 8].map(|offset| capability::dword(&self.function.device, base + offset));
        let layout = Layout::decode(control, table, pending).ok_or(BuildError::Msix)?;
        for place in [layout.table, layout.pending] {
            let size = self.function.bar(place.bar).map_or(0, |info| info.size);
            if place.offset.saturating_add(place.size) > size {
                return Err(BuildError::Msix);
            }
        }
        let table = msix::Table::new(layout.vectors, self.function.doorbell);
        let dword = usize::from(base / 4);
        self.act(dword, Action::Effects);
        self.function.msix = Some(MsixModel {
            layout,
            table: table.map_err(|_| BuildError::NoMemory)?,
            dword,
            told: 0,
        });
        Ok(())
    }

    fn add_express(&mut self, base: u16, position: Position) -> Result<(), BuildError> {
        const ENDPOINT: u32 = 0;
        const LEGACY_ENDPOINT: u32 = 1;
        const INTEGRATED_ENDPOINT: u32 = 9;
        let header = capability::dword(&self.function.device, base);
        let (version, physical) = (header >> 16 & 0xf, header >> 20 & 0xf);
        let kind = match (physical, position) {
            (ENDPOINT | LEGACY_ENDPOINT | INTEGRATED_ENDPOINT, Position::RootBus) => {
                INTEGRATED_ENDPOINT
            }
            (LEGACY_ENDPOINT, _) => LEGACY_ENDPOINT,
            (ENDPOINT | INTEGRATED_ENDPOINT, _) => ENDPOINT,
            _ => return Ok(()),
        };
        // Version 1 ends with the registers that its kind of function has.
        let dwords = match (version, physical) {
            (0 | 1, INTEGRATED_ENDPOINT) => 0x0c / 4,
            (0 | 1, _) => 0x14 / 4,
            _ => EXPRESS.len(),
        };
        let registers = EXPRESS.get(..dwords).unwrap_or(&EXPRESS);
        if !self.show(base, registers)? {
            return Ok(());
        }
        self.express = true;
        self.has_ari = position == Position::BelowAriPort;
        let first = usize::from(base / 4);
        match (position, physical) {
            (Position::RootBus, _) => {}
            (_, INTEGRATED_ENDPOINT) if dwords > LINK_CONTROL => {
                self.cell(first + LINK_CAPABILITIES)?.value |= PLAIN_LINK;
                self.cell(first + LINK_CONTROL)?.value |= PLAIN_LINK_STATUS;
            }
            (_, INTEGRATED_ENDPOINT) => {}
            _ => {
                self.has_link = true;
                self.lay(base, LINK.get(..dwords).unwrap_or(&LINK))?;
            }
        }
        self.cell(first)?.value |= kind << 20;
        if !self.resettable {
            self.cell(first + DEVICE_CAPABILITIES)?.value &= !FLR_CAPABLE;
        }
        self.cell(first + DEVICE_CONTROL)?.value |= DEVICE_CONTROL_RESET;
        self.act(first + DEVICE_CONTROL, Action::DeviceControl);
        for (capabilities, supported, control, bits) in CONTROLS {
            let can = self.function.dword(first + capabilities) & supported != 0;
            if let (false, true, Some(row)) = (can, control < dwords, self.row(first + control)) {
                row.register.rw &= !bits;
            }
        }
        Ok(())
    }

    /// Shows the extended capabilities that are on the list: the first of each kind, in the order of
    /// the device's chain. ARI comes last, and anywhere, if the device has none.
    fn add_extended(&mut self) -> Result<(), BuildError> {
        let mut shown: [Option<(Capability, &[Register])>; 4] = [None; 4];
        for found in capability::walk_extended(&self.function.device) {
            let registers: &[Register] = match found.id {
                extended::ERRORS => &ERRORS,
                extended::SERIAL_NUMBER => &SERIAL_NUMBER,
                extended::ARI if self.has_ari => &ARI,
                extended::LATENCY if self.has_link => &LATENCY,
                _ => continue,
            };
            let is_same = |(other, _): &(Capability, _)| other.id == found.id;
            let is_known = shown.iter().flatten().any(is_same);
            let free = shown.iter_mut().find(|slot| slot.is_none());
            if let (false, Some(slot)) = (is_known, free) {
                *slot = Some((found, registers));
            }
        }
        for (found, registers) in shown.into_iter().flatten() {
            if !self.take(found.offset, registers.len()) {
                continue;
            }
            self.lay(found.offset, registers)?;
            self.link_extended(found.offset)?;
            if found.id == extended::ARI {
                self.add_ari(found.offset)?;
            }
        }
        if self.has_ari && self.function.ari.is_none() {
            // Not at the head of the chain, which leads to the others.
            let mut places = (EXTENDED_START + 4..Offset::SPACE).step_by(4);
            if let Some(base) = places.find(|base| self.take(*base, ARI.len())) {
                self.link_extended(base)?;
                self.add_ari(base)?;
            }
        }
        Ok(())
    }

    /// Lays ARI out, which is EL2's.
    fn add_ari(&mut self, base: u16) -> Result<(), BuildError> {
        let index = usize::from(base / 4);
        self.cell(index + 1)?;
        self.cell(index)?.value |= ARI_HEADER;
        self.function.ari = Some(index + 1);
        Ok(())
    }

    /// Links an extended capability into its chain, which begins at 0x100: if nothing is shown there,
    /// a capability without registers leads on (PCI Code and ID Assignment Specification, ID 0000h).
    fn link_extended(&mut self, base: u16) -> Result<(), BuildError> {
        let before = self.extended.replace(base).unwrap_or(EXTENDED_START);
        if before != base {
            self.cell(usize::from(before / 4))?.value |= u32::from(base) << 20;
        }
        Ok(())
    }
}
