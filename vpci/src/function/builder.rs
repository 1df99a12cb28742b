//! Building the model: what of the physical function is shown, and how it is laid out.
//!
//! Whatever the device's registers hold, the result is sound: structures never overlap, the chain of
//! capabilities ends, and what no table names is hidden.

use super::{
    Action, Bar, BuildError, COMMAND, Cell, Function, INITIATE_FLR, MsiModel, MsixModel, Pin,
    Position, Row, Setup, halves,
};
use crate::bar::BarKind;
use crate::capability::{self, Capability, extended, id};
use crate::msi::{self, Msi};
use crate::msix::{self, Layout};
use crate::register::{Register, Table};
use crate::{BarIndex, BarInfo, Offset, PhysicalConfig, tables};

/// Registers of the header, by number of the dword, and a bit of Status.
const CAPABILITIES_POINTER: usize = 0x34 / 4;
const CAPABILITIES_LIST: u32 = 1 << 20;

/// In the power management capability: D3hot keeps the state, as the model does.
const NO_SOFT_RESET: u32 = 1 << 3;

/// Function Level Reset Capability in Device Capabilities, section 7.5.3.3.
const FLR_CAPABLE: u32 = 1 << 28;

/// Device Control after a reset: relaxed ordering and no snoop on, 512 byte reads. Section 7.5.3.4.
const DEVICE_CONTROL_RESET: u32 = 0x2810;

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
    express: bool,
}

impl<'a, P: PhysicalConfig> Builder<'a, P> {
    const fn new(function: &'a mut Function<P>) -> Self {
        Self {
            function,
            taken: [0; 16],
            link: (CAPABILITIES_POINTER, 0),
            express: false,
        }
    }

    fn build(mut self, setup: &Setup<'_>) -> Result<(), BuildError> {
        self.take(0, &tables::HEADER);
        self.lay(0, &tables::HEADER)?;
        self.act(COMMAND, Action::Effects);
        if setup.pin == Pin::Shown {
            self.lay(0, &tables::PIN)?;
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
        for found in chain.into_iter().flatten() {
            self.add_capability(found, setup.position)?;
        }
        if self.express {
            self.add_serial_number()?;
        }
        for cell in &self.function.cells {
            let row = usize::from(cell.row).wrapping_sub(1);
            if let Some(row) = self.function.rows.get_mut(row) {
                row.reset = cell.value;
            }
        }
        Ok(())
    }

    /// Takes the dwords of a structure; `false` if it does not fit or another one has any of them.
    fn take(&mut self, base: u16, table: &Table) -> bool {
        let (first, last) = (base / 4, (base + table.size) / 4);
        let end = if base < 0x100 { 0x100 } else { Offset::SPACE };
        if base + table.size > end {
            return false;
        }
        let bits = |dword: u16| (usize::from(dword / 64), 1_u64 << (dword % 64));
        for dword in first..last {
            let (word, bit) = bits(dword);
            if self.taken.get(word).is_none_or(|word| word & bit != 0) {
                return false;
            }
        }
        for dword in first..last {
            let (word, bit) = bits(dword);
            if let Some(word) = self.taken.get_mut(word) {
                *word |= bit;
            }
        }
        true
    }

    /// Makes the cells of a structure at `base`, or adds to those that are there.
    fn lay(&mut self, base: u16, table: &Table) -> Result<(), BuildError> {
        for offset in (0..table.size).step_by(4) {
            let register = table.register(offset);
            if register == Register::HIDDEN {
                continue;
            }
            let copied = match register.copied {
                0 => 0,
                mask => capability::dword(&self.function.device, base + offset) & mask,
            };
            let index = usize::from((base + offset) / 4);
            self.cell(index)?.value |= copied;
            self.add_masks(index, register)?;
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
        if register.rw | register.rw1c | register.live == 0 {
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
        self.cell(index)?.value = info.type_bits();
        self.add_masks(index, Register::kept(low, 0))?;
        self.act(index, Action::Effects);
        if pair {
            self.add_masks(index + 1, Register::kept(high, 0))?;
            self.act(index + 1, Action::Effects);
        }
        Ok(())
    }

    /// Shows a capability, if it is one on the list, the first of its kind, and whole.
    fn add_capability(&mut self, found: Capability, position: Position) -> Result<(), BuildError> {
        match u8::try_from(found.id) {
            Ok(id::POWER) => self.add_power(found.offset),
            Ok(id::MSI) => self.add_msi(found.offset),
            Ok(id::MSIX) => self.add_msix(found.offset),
            Ok(id::EXPRESS) => self.add_express(found.offset, position),
            _ => Ok(()),
        }
    }

    /// Shows the registers of a capability and links it into the chain; `false` if it has no room.
    fn show(&mut self, base: u16, table: &Table) -> Result<bool, BuildError> {
        if !self.take(base, table) {
            return Ok(false);
        }
        self.lay(base, table)?;
        let (index, shift) = self.link;
        self.cell(index)?.value |= u32::from(base) << shift;
        self.cell(COMMAND)?.value |= CAPABILITIES_LIST;
        self.link = (usize::from(base / 4), 8);
        Ok(true)
    }

    fn add_power(&mut self, base: u16) -> Result<(), BuildError> {
        if self.function.power.is_some() || !self.show(base, &tables::POWER)? {
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
        if self.function.msi.is_some() || !self.show(base, form.table())? {
            return Ok(());
        }
        let first = usize::from(base / 4);
        for index in first..first + usize::from(form.table().size / 4) {
            self.act(index, Action::Effects);
        }
        if let Some((mask, bits)) = form.mask_bits() {
            for index in [first + mask, first + mask + 1] {
                if let Some(row) = self.row(index) {
                    row.register.rw &= bits;
                    row.register.live &= bits;
                }
            }
        }
        self.function.msi = Some(MsiModel {
            form,
            dword: first,
            told: Msi::OFF,
        });
        Ok(())
    }

    fn add_msix(&mut self, base: u16) -> Result<(), BuildError> {
        if self.function.msix.is_some() || !self.show(base, &tables::MSIX)? {
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
            (LEGACY_ENDPOINT, Position::BelowPort) => LEGACY_ENDPOINT,
            (ENDPOINT | INTEGRATED_ENDPOINT, Position::BelowPort) => ENDPOINT,
            _ => return Ok(()),
        };
        // Version 1 ends with the registers that its kind of function has.
        let size = match (version, physical) {
            (0 | 1, INTEGRATED_ENDPOINT) => 0x0c,
            (0 | 1, _) => 0x14,
            _ => tables::EXPRESS.size,
        };
        let table = Table {
            size,
            ..tables::EXPRESS
        };
        if self.express || !self.show(base, &table)? {
            return Ok(());
        }
        self.express = true;
        if position == Position::BelowPort && physical != INTEGRATED_ENDPOINT {
            self.lay(
                base,
                &Table {
                    size,
                    ..tables::LINK
                },
            )?;
        }
        let first = usize::from(base / 4);
        self.cell(first)?.value |= kind << 20;
        let can_reset = self.cell(first + 1)?.value & FLR_CAPABLE != 0;
        self.cell(first + 2)?.value |= DEVICE_CONTROL_RESET;
        if let Some(row) = self.row(first + 2) {
            if can_reset {
                row.action = Action::DeviceControl;
            } else {
                row.register.rw &= !INITIATE_FLR;
            }
        }
        Ok(())
    }

    /// Shows the serial number, the only extended capability so far. If it is not the first, a
    /// capability without registers leads to it: the chain has to begin at 0x100.
    fn add_serial_number(&mut self) -> Result<(), BuildError> {
        const START: u16 = 0x100;
        let mut chain = capability::walk_extended(&self.function.device);
        let Some(found) = chain.find(|found| found.id == extended::SERIAL_NUMBER) else {
            return Ok(());
        };
        drop(chain);
        if !self.take(found.offset, &tables::SERIAL_NUMBER) {
            return Ok(());
        }
        self.lay(found.offset, &tables::SERIAL_NUMBER)?;
        if found.offset != START {
            self.cell(usize::from(START / 4))?.value = u32::from(found.offset) << 20;
        }
        Ok(())
    }
}
