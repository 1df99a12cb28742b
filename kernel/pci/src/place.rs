//! Placement: BARs into the windows of the host bridge, and the windows of bridges around them.
//!
//! There are two kinds of window. Below 4 GiB lies what is not prefetchable; 64-bit prefetchable
//! BARs go to the window above, if there is one and all bridges on the way can forward it. Needs
//! are added up from the leaves to the root, largest alignment first, so that next to nothing is
//! lost between them; then places are handed out from the root to the leaves. When something does
//! not fit, the BAR in question tries the other kind of window, or its function is left out, and all
//! is added up anew. Expansion ROMs get what is left then. The BARs of a physical function's virtual
//! ones are one piece, aligned as one of them is.

use alloc::vec::Vec;
use core::cmp::Reverse;

use vpci::{BarIndex, BarKind, BusAddress, BusRange};

use crate::device::{BARS, Device, Hierarchy, Placement, Problem};
use crate::sriov::VirtualProblem;
use crate::{OutOfMemory, push};

/// Functions never share a page.
const PAGE: u64 = 4096;
/// What bridges' windows are multiples of.
const BRIDGE_UNIT: u64 = 1 << 20;
/// Where a function's expansion ROM is among its BARs.
const ROM: usize = BarIndex::ROM.index();
/// One past the addresses that 32 bits reach.
const GIB_4: u64 = 1 << 32;

/// A window of the host bridge, as `ranges` has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Where it is in PCI memory space.
    pub bus: BusRange,
    /// Where it is in the machine's physical memory.
    pub host: u64,
    /// Whether it is for prefetchable memory only.
    pub prefetchable: bool,
}

impl Window {
    /// Makes a window of an entry of `ranges`: its first cell, and the rest as numbers. `None` for
    /// what is not memory, or no range (IEEE 1275 PCI bus binding, section 2.2.1.1).
    pub fn decode(flags: u32, bus: u64, host: u64, size: u64) -> Option<Self> {
        let is_memory = flags >> 24 & 0b10 != 0;
        let bus = BusRange::new(BusAddress::new(bus), size).filter(|_| is_memory)?;
        host.checked_add(size)?;
        Some(Self {
            bus,
            host,
            prefetchable: flags & 1 << 30 != 0,
        })
    }
}

/// A host bridge and what is its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostBridge {
    /// The segment.
    pub segment: u16,
    /// Its root bus.
    pub first_bus: u8,
    /// The last bus number below it.
    pub last_bus: u8,
    /// Its memory windows.
    pub windows: Vec<Window>,
}

/// The kinds of window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pool {
    /// Below 4 GiB.
    Memory,
    /// 64 bits, prefetchable.
    Prefetchable,
}

const POOLS: [Pool; 2] = [Pool::Memory, Pool::Prefetchable];

impl Pool {
    /// Returns the part of a window that belongs to the pool, as its start and one past its end.
    fn part(self, window: &Window) -> Option<(u64, u64)> {
        let (start, last) = (window.bus.start().get(), window.bus.last().get());
        // Address zero means "not placed" to much software.
        let (start, end) = (start.max(PAGE), last.saturating_add(1));
        let part = match self {
            Self::Memory if window.prefetchable => return None,
            Self::Memory => (start, end.min(GIB_4)),
            Self::Prefetchable if window.prefetchable => (start, end),
            Self::Prefetchable => (start.max(GIB_4), end),
        };
        (part.0 < part.1).then_some(part)
    }
}

/// A memory BAR, all of a physical function's virtual ones, or an expansion ROM, on its way to a place.
struct Slot {
    device: usize,
    /// Its number; from `VIRTUAL` on it is one of SR-IOV.
    bar: usize,
    size: u64,
    align: u64,
    pool: Pool,
    other: Option<Pool>,
    address: u64,
}

/// Where the numbers of SR-IOV's BARs start, behind those of a header.
const VIRTUAL: usize = BARS;

/// A bridge's window on its way to a place.
#[derive(Clone, Copy, Default)]
struct Need {
    size: u64,
    align: u64,
    address: u64,
}

/// Something that takes up space on a bus.
#[derive(Clone, Copy)]
enum Owner {
    Slot(usize),
    Bridge(usize),
}

#[derive(Clone, Copy)]
struct Item {
    size: u64,
    align: u64,
    owner: Owner,
}

/// Places all BARs and bridge windows.
pub(crate) fn place(found: &mut Hierarchy, host: &HostBridge) -> Result<(), OutOfMemory> {
    let mut plan = Plan::new(found, host)?;
    plan.add_up(&found.devices)?;
    while let Some((owner, pool)) = plan.hand_out_root(&found.devices, host)? {
        plan.relieve(found, owner, pool)?;
        plan.add_up(&found.devices)?;
    }
    plan.add_roms(found)?;
    plan.add_up(&found.devices)?;
    while plan.hand_out_root(&found.devices, host)?.is_some() {
        plan.leave_out_rom(found)?;
        plan.add_up(&found.devices)?;
    }
    plan.hand_out(&found.devices)?;
    plan.apply(&mut found.devices, host);
    place_virtual(found);
    Ok(())
}

struct Plan {
    /// In ascending order of devices.
    slots: Vec<Slot>,
    /// For each device that is a bridge, what its windows need.
    needs: [Vec<Need>; 2],
    /// Room to sort in.
    items: Vec<Item>,
}

impl Plan {
    fn new(found: &Hierarchy, host: &HostBridge) -> Result<Self, OutOfMemory> {
        let has_window = host
            .windows
            .iter()
            .any(|window| Pool::Prefetchable.part(window).is_some());
        let mut slots = Vec::new();
        for (index, device) in found.devices.iter().enumerate() {
            let on_root = device.parent.is_none();
            let forwarded = || {
                found
                    .above(device)
                    .all(|above| above.bridge().is_some_and(|b| b.wide))
            };
            // Each virtual function has a BAR behind the one's before it.
            let bars = device.bars.iter().zip(core::iter::repeat(1));
            let sriov = device.sriov.iter();
            let sriov = sriov.flat_map(|sriov| {
                sriov
                    .bars
                    .iter()
                    .zip(core::iter::repeat(sriov.count.into()))
            });
            for (bar_index, (bar, count)) in bars.chain(sriov).enumerate() {
                let Some(bar) = bar.filter(|bar| !matches!(bar.kind, BarKind::Io | BarKind::Rom))
                else {
                    continue;
                };
                let wide = bar.kind == BarKind::Memory64 && has_window;
                let (pool, other) = if wide && bar.prefetchable && forwarded() {
                    (Pool::Prefetchable, Some(Pool::Memory))
                } else if wide && on_root {
                    // No bridge stands between that could not tell it from prefetchable memory.
                    (Pool::Memory, Some(Pool::Prefetchable))
                } else {
                    (Pool::Memory, None)
                };
                let align = bar.size.max(PAGE);
                push(
                    &mut slots,
                    Slot {
                        device: index,
                        bar: bar_index,
                        size: align.saturating_mul(count),
                        align,
                        pool,
                        other,
                        address: 0,
                    },
                )?;
            }
        }
        let mut needs = [Vec::new(), Vec::new()];
        for list in &mut needs {
            list.try_reserve_exact(found.devices.len())?;
            list.resize(found.devices.len(), Need::default());
        }
        Ok(Self {
            slots,
            needs,
            items: Vec::new(),
        })
    }

    /// Adds the expansion ROMs of what is usable.
    fn add_roms(&mut self, found: &mut Hierarchy) -> Result<(), OutOfMemory> {
        for (device, found) in found.devices.iter_mut().enumerate() {
            let Some(rom) = found.bars.get_mut(ROM) else {
                continue;
            };
            if !found.usable {
                *rom = None;
            }
            if let Some(rom) = rom {
                let slot = Slot {
                    device,
                    bar: ROM,
                    size: rom.size.max(PAGE),
                    align: rom.size.max(PAGE),
                    pool: Pool::Memory,
                    other: None,
                    address: 0,
                };
                push(&mut self.slots, slot)?;
            }
        }
        self.slots
            .sort_unstable_by_key(|slot| (slot.device, slot.bar));
        Ok(())
    }

    fn need(&mut self, pool: Pool, bridge: usize) -> Option<&mut Need> {
        let [memory, prefetchable] = &mut self.needs;
        match pool {
            Pool::Memory => memory.get_mut(bridge),
            Pool::Prefetchable => prefetchable.get_mut(bridge),
        }
    }

    /// Collects what is on the bus below `parent` and takes up space of `pool`, largest alignment
    /// first.
    fn collect(
        &mut self,
        devices: &[Device],
        parent: Option<usize>,
        pool: Pool,
    ) -> Result<(), OutOfMemory> {
        let bus = match parent
            .and_then(|parent| devices.get(parent))
            .and_then(Device::bridge)
        {
            Some(bridge) => bridge.children.clone(),
            None => 0..devices.partition_point(|device| device.parent.is_none()),
        };
        self.items.clear();
        let first = self.slots.partition_point(|slot| slot.device < bus.start);
        let last = self.slots.partition_point(|slot| slot.device < bus.end);
        for (index, slot) in self.slots.iter().enumerate().take(last).skip(first) {
            if slot.pool == pool {
                let (size, align, owner) = (slot.size, slot.align, Owner::Slot(index));
                push(&mut self.items, Item { size, align, owner })?;
            }
        }
        for index in bus {
            let need = self.need(pool, index).map_or(Need::default(), |need| *need);
            if need.size != 0 {
                let owner = Owner::Bridge(index);
                push(
                    &mut self.items,
                    Item {
                        size: need.size,
                        align: need.align,
                        owner,
                    },
                )?;
            }
        }
        // Stable in effect: what is alike keeps its order.
        self.items.sort_unstable_by_key(|item| {
            let order = match item.owner {
                Owner::Slot(index) => (0, index),
                Owner::Bridge(index) => (1, index),
            };
            (Reverse(item.align), order)
        });
        Ok(())
    }

    /// Adds up what bridges need, from the leaves to the root.
    fn add_up(&mut self, devices: &[Device]) -> Result<(), OutOfMemory> {
        for index in (0..devices.len()).rev() {
            if devices.get(index).and_then(Device::bridge).is_none() {
                continue;
            }
            for pool in POOLS {
                self.collect(devices, Some(index), pool)?;
                let end = self.items.iter().try_fold(0u64, |end, item| {
                    end.checked_next_multiple_of(item.align)?
                        .checked_add(item.size)
                });
                // More than there are addresses fits nowhere.
                let size = end.and_then(|end| end.checked_next_multiple_of(BRIDGE_UNIT));
                let align = self
                    .items
                    .first()
                    .map_or(0, |item| item.align)
                    .max(BRIDGE_UNIT);
                if let Some(need) = self.need(pool, index) {
                    *need = Need {
                        size: size.unwrap_or(u64::MAX),
                        align,
                        address: 0,
                    };
                }
            }
        }
        Ok(())
    }

    /// Hands the windows of the host bridge out to what is on the root bus, or returns what does
    /// not fit.
    fn hand_out_root(
        &mut self,
        devices: &[Device],
        host: &HostBridge,
    ) -> Result<Option<(Owner, Pool)>, OutOfMemory> {
        for pool in POOLS {
            self.collect(devices, None, pool)?;
            let mut parts = Vec::new();
            for window in &host.windows {
                if let Some(part) = pool.part(window) {
                    push(&mut parts, part)?;
                }
            }
            for position in 0..self.items.len() {
                let Some(item) = self.items.get(position).copied() else {
                    break;
                };
                let found = parts.iter_mut().find_map(|(cursor, end)| {
                    let start = cursor.checked_next_multiple_of(item.align)?;
                    let next = start.checked_add(item.size).filter(|next| next <= end)?;
                    *cursor = next;
                    Some(start)
                });
                match found {
                    Some(address) => self.set(item.owner, pool, address),
                    None => return Ok(Some((item.owner, pool))),
                }
            }
        }
        Ok(None)
    }

    /// Hands the windows of bridges out to what is below.
    fn hand_out(&mut self, devices: &[Device]) -> Result<(), OutOfMemory> {
        for index in 0..devices.len() {
            for pool in POOLS {
                let need = self.need(pool, index).map_or(Need::default(), |need| *need);
                if need.size == 0 {
                    continue;
                }
                self.collect(devices, Some(index), pool)?;
                let mut cursor = need.address;
                for position in 0..self.items.len() {
                    if let Some(item) = self.items.get(position).copied() {
                        let start = cursor.next_multiple_of(item.align);
                        self.set(item.owner, pool, start);
                        cursor = start + item.size;
                    }
                }
            }
        }
        Ok(())
    }

    fn set(&mut self, owner: Owner, pool: Pool, address: u64) {
        match owner {
            Owner::Slot(index) => {
                if let Some(slot) = self.slots.get_mut(index) {
                    slot.address = address;
                }
            }
            Owner::Bridge(index) => {
                if let Some(need) = self.need(pool, index) {
                    need.address = address;
                }
            }
        }
    }

    /// Makes `owner` need less of `pool`: its largest BAR goes elsewhere, or its function goes out.
    fn relieve(
        &mut self,
        found: &mut Hierarchy,
        owner: Owner,
        pool: Pool,
    ) -> Result<(), OutOfMemory> {
        let range = match owner {
            Owner::Slot(index) => index..index + 1,
            Owner::Bridge(index) => {
                let bridge = found.devices.get(index).and_then(Device::bridge);
                let below = bridge.map_or(0..0, |bridge| bridge.below.clone());
                let first = self.slots.partition_point(|slot| slot.device < below.start);
                first..self.slots.partition_point(|slot| slot.device < below.end)
            }
        };
        let candidates = self.slots.get_mut(range).unwrap_or_default();
        let largest = candidates
            .iter_mut()
            .filter(|slot| slot.pool == pool)
            .max_by_key(|slot| slot.size);
        let Some(slot) = largest else {
            return Ok(());
        };
        if let Some(other) = slot.other.take() {
            slot.pool = other;
            return Ok(());
        }
        let (out, bar) = (slot.device, slot.bar);
        self.leave_out(found, out, bar)
    }

    /// Leaves the largest expansion ROM out: its function works without. Without any, all fits.
    fn leave_out_rom(&mut self, found: &mut Hierarchy) -> Result<(), OutOfMemory> {
        let roms = self
            .slots
            .iter()
            .enumerate()
            .filter(|(_, slot)| slot.bar == ROM);
        let Some((largest, _)) = roms.max_by_key(|(_, slot)| slot.size) else {
            return Ok(());
        };
        let index = self.slots.remove(largest).device;
        let Some(device) = found.devices.get_mut(index) else {
            return Ok(());
        };
        let (sbdf, rom) = (device.sbdf, device.bars.get_mut(ROM).and_then(Option::take));
        let size = rom.map_or(0, |rom| rom.size);
        push(&mut found.problems, Problem::NoSpaceForRom { sbdf, size })
    }

    /// Leaves a function out, and everything below it; or its virtual functions, if it is one of their
    /// BARs that does not fit.
    fn leave_out(
        &mut self,
        found: &mut Hierarchy,
        index: usize,
        bar: usize,
    ) -> Result<(), OutOfMemory> {
        let Some(device) = found.devices.get_mut(index) else {
            return Ok(());
        };
        let physical = device.sbdf;
        if let Some(number) = bar.checked_sub(VIRTUAL) {
            let sriov = device.sriov.take();
            if let Some(bar) = sriov.and_then(|sriov| sriov.bars.get(number).copied()?) {
                let problem = VirtualProblem::NoSpace(bar.index, bar.size);
                push(&mut found.problems, Problem::Virtual(physical, problem))?;
            }
            self.slots
                .retain(|slot| slot.device != index || slot.bar < VIRTUAL);
            for device in &mut found.devices {
                device.usable &= !device.virtual_of(physical);
            }
            return Ok(());
        }
        if let Some(bar) = device.bars.get(bar).copied().flatten() {
            let problem = Problem::NoSpace {
                sbdf: device.sbdf,
                bar: bar.index,
                size: bar.size,
            };
            push(&mut found.problems, problem)?;
        }
        // Its virtual functions go out with it.
        let left = core::mem::take(&mut device.sriov).is_some();
        for device in found.devices.iter_mut().filter(|_| left) {
            device.usable &= !device.virtual_of(physical);
        }
        let Some(device) = found.devices.get_mut(index) else {
            return Ok(());
        };
        let below = device.bridge().map_or(0..0, |bridge| bridge.below.clone());
        let out = |device| device == index || below.contains(&device);
        self.slots.retain(|slot| !out(slot.device));
        for (index, device) in found.devices.iter_mut().enumerate() {
            if out(index) {
                device.usable = false;
                device.sriov = None;
            }
        }
        Ok(())
    }

    /// Notes the places.
    fn apply(&self, devices: &mut [Device], host: &HostBridge) {
        for slot in &self.slots {
            let Some(device) = devices.get_mut(slot.device) else {
                continue;
            };
            let bar = match (slot.bar.checked_sub(VIRTUAL), &mut device.sriov) {
                (None, _) => device.bars.get_mut(slot.bar),
                (Some(number), Some(sriov)) => sriov.bars.get_mut(number),
                (Some(_), None) => None,
            };
            if let Some(Some(bar)) = bar {
                bar.placement = placement(slot.address, host);
            }
        }
        let [memory, prefetchable] = &self.needs;
        let needs = memory.iter().zip(prefetchable);
        for (device, (memory, prefetchable)) in devices.iter_mut().zip(needs) {
            if let Some(bridge) = device.bridge_mut() {
                let range = |need: &Need| BusRange::new(BusAddress::new(need.address), need.size);
                bridge.memory = range(memory);
                bridge.prefetchable = range(prefetchable);
            }
        }
    }
}

/// Gives virtual functions the BARs that follow from their physical function's.
fn place_virtual(found: &mut Hierarchy) {
    for index in 0..found.devices.len() {
        let own = found.devices.get(index).and_then(|d| d.virtual_function);
        let sriov = own.and_then(|own| found.find(own.physical)?.sriov);
        if let (Some(own), Some(sriov), Some(device)) = (own, sriov, found.devices.get_mut(index)) {
            device.bars = sriov.bars_of(own.number);
        }
    }
}

/// Returns the place at a bus address, which is in a window of the host bridge.
fn placement(address: u64, host: &HostBridge) -> Option<Placement> {
    let bus = BusAddress::new(address);
    host.windows.iter().find_map(|window| {
        let offset = window.bus.offset_of(bus)?;
        Some(Placement {
            bus,
            host: window.host.checked_add(offset)?,
        })
    })
}
