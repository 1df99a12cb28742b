//! One virtual bus hierarchy: which function answers which config access, and which address.
//!
//! ```text
//!  SBDF --> reach[current bus number] --> buses[bus] --> functions[device.function] --> Owner
//!               |                           |
//!               |                           +-- by the number that the configuration gives it
//!               +-- as the guest has programmed the root ports
//! ```
//!
//! A function has the name that its configuration gives it, for as long as it is there. A guest finds
//! it by the number that its bus has at the moment: bus 0 always has its own, and a bus below a root
//! port the one that the guest gives the port. After a reset that is none, and the bus is out of reach.
//!
//! A lookup is three indexed loads, however many functions, buses and ports there are. A bus on which
//! nothing sits costs one empty place.
//!
//! Config requests go as the PCI Express Base Specification says (7.3.3): to the port whose secondary
//! to subordinate bus numbers hold the one that is asked for, and from there, as type 0 requests, to
//! the function if it is the secondary one. A port has no bridges below it, so that the numbers behind
//! the secondary one lead nowhere. Numbers that two ports claim are the first one's, in the order of
//! device and function; the root bus's own number is never a port's.

mod claims;

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;

use crate::emulated::{HEADER_TYPE, MULTI_FUNCTION};
use crate::port::Port;
use crate::{BarIndex, ConfigAccess, MemoryMap, PortChange, Sbdf, Upstream};
use claims::Claims;

/// Functions that a bus can have, and buses that a hierarchy can.
const COUNT: usize = 256;

/// Who answers the config accesses of a function. `V` is the kernel's handle of a passed-through one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner<V> {
    /// The host bridge that EL2 emulates.
    HostBridge,
    /// Stands in for function 0 of a device that has others: guests look at function 0 first.
    Stub,
    /// The root port above this bus.
    Port(u8),
    /// A passed-through function.
    Vpci(V),
    /// The device model behind this ioreq server.
    Ioreq(u32),
}

impl<V> Owner<V> {
    /// Returns for how many ranges there is room as long as the function is on the bus. A device model may
    /// be refused what it claims.
    const fn ranges(&self) -> usize {
        match self {
            Self::Vpci(_) => BarIndex::RANGES,
            Self::HostBridge | Self::Stub | Self::Port(_) | Self::Ioreq(_) => 0,
        }
    }
}

/// Who decodes a range of memory space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decoder<V> {
    /// A BAR of a passed-through function.
    Bar {
        /// The kernel's handle of the function.
        function: V,
        /// Which of its BARs.
        bar: BarIndex,
    },
    /// A function of a device model.
    Ioreq {
        /// The ioreq server.
        server: u32,
        /// The function, by its name.
        sbdf: Sbdf,
        /// Whether writes to the range need no answer.
        posted: bool,
    },
}

/// Why a function was not put on the bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BusError {
    /// Another segment, or a bus to which no port leads.
    NoSuchBus(Sbdf),
    /// Another function has that slot.
    Occupied(Sbdf),
    /// Below a port without ARI Forwarding there is device 0 only.
    NotBelowPort(Sbdf),
    /// A root port belongs on the root bus.
    NotOnRootBus(Sbdf),
    /// Another port leads to that bus, or it is the root bus.
    BusTaken(u8),
    /// Ports and stubs are put in by other means.
    NotAFunction,
    /// No memory is left for the bus's table.
    NoMemory,
}

impl fmt::Display for BusError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSuchBus(sbdf) => write!(f, "{sbdf} is on no bus of this hierarchy"),
            Self::Occupied(sbdf) => write!(f, "{sbdf} is taken already"),
            Self::NotBelowPort(sbdf) => {
                write!(
                    f,
                    "{sbdf}: a port without ARI Forwarding leads to device 0 only"
                )
            }
            Self::NotOnRootBus(sbdf) => write!(f, "{sbdf} is no place for a root port"),
            Self::BusTaken(bus) => write!(f, "bus {bus:02x} is there already"),
            Self::NotAFunction => f.write_str("a stub is put in by itself, and a port as one"),
            Self::NoMemory => f.write_str("no memory left for the table of a bus"),
        }
    }
}

impl core::error::Error for BusError {}

/// The functions of one bus, by device and function; none as long as it is empty.
type Functions<V> = Option<Box<[Option<Owner<V>>; COUNT]>>;

/// Where a bus number leads.
#[derive(Clone, Copy, Debug)]
struct Reach {
    /// To this bus, by its name.
    bus: u8,
    /// And there to the functions up to this one.
    last: u8,
}

/// A root port, and the bus below it.
#[derive(Debug)]
struct Link {
    slot: Sbdf,
    bus: u8,
    port: Port,
    /// What is below is being reset, until [`Bus::end_reset`].
    in_reset: bool,
}

/// Routing table of one hierarchy, and the memory that its functions decode.
#[derive(Debug)]
pub struct Bus<V> {
    segment: u16,
    first: u8,
    last: u8,
    /// By current number.
    reach: Box<[Option<Reach>; COUNT]>,
    /// By name.
    buses: Box<[Functions<V>; COUNT]>,
    /// In the order in which they were added.
    ports: Vec<Link>,
    /// By the name of the bus below, which of them leads there.
    links: Box<[Option<u8>; COUNT]>,
    /// What device models' functions below ports have claimed.
    claims: Claims<V>,
    /// The bridge's windows, and who decodes what in them.
    pub memory: MemoryMap<Decoder<V>>,
}

impl<V: Copy + Eq> Bus<V> {
    /// Makes an empty hierarchy whose root bus has the number `first`, and in which buses can be
    /// numbered up to `last`.
    ///
    /// # Errors
    ///
    /// If memory is short.
    pub fn new(segment: u16, first: u8, last: u8) -> Result<Self, BusError> {
        let mut bus = Self {
            segment,
            first,
            last,
            reach: table(|| None)?,
            buses: table(|| None)?,
            ports: Vec::new(),
            links: table(|| None)?,
            claims: Claims::new(),
            memory: MemoryMap::new(),
        };
        bus.find_buses();
        Ok(bus)
    }

    /// Returns who answers for `sbdf`, by the number that its bus has now; `None` if nobody does, and
    /// reads give all ones.
    #[inline(always)]
    #[must_use]
    pub fn route(&self, sbdf: Sbdf) -> Option<Owner<V>> {
        let reach = self.reach(sbdf)?;
        *self.on_bus(reach.bus)?.get(slot(sbdf))?
    }

    /// Returns the name of the function that is reached as `sbdf` now; `None` if nothing is.
    #[must_use]
    pub fn name(&self, sbdf: Sbdf) -> Option<Sbdf> {
        let bus = self.reach(sbdf)?.bus;
        Some(on(sbdf, bus))
    }

    /// Returns which bus a bus number leads to now, by its name, and the last function that is reached
    /// there; `None` if it leads nowhere.
    #[must_use]
    pub fn lead(&self, number: u8) -> Option<(u8, u8)> {
        let reach = (*self.reach.get(usize::from(number))?)?;
        Some((reach.bus, reach.last))
    }

    /// Returns where the function of that name is found now, if it is: its bus may have a number that
    /// leads elsewhere.
    #[must_use]
    pub fn place(&self, name: Sbdf) -> Option<Sbdf> {
        let place = on(name, self.number(name.bus())?);
        (self.name(place) == Some(name)).then_some(place)
    }

    /// Returns the names of all places of the device that the function of that name belongs to, and of
    /// the port above it: what can read otherwise when the function comes or goes.
    pub fn around(&self, name: Sbdf) -> impl Iterator<Item = Sbdf> + use<V> {
        let first = u16::from(name.bus()) << 8;
        let places = self.device(name);
        let rids = (first..=first | 0xff).skip(places.start).take(places.len());
        let segment = self.segment;
        let port = self.link(name.bus()).map(|link| link.slot);
        rids.map(move |rid| Sbdf::from_rid(segment, rid))
            .chain(port)
    }

    /// Returns the segment.
    pub(crate) const fn segment(&self) -> u16 {
        self.segment
    }

    /// Returns who answers for the function of that name, whether it can be reached or not.
    #[must_use]
    pub fn owner(&self, name: Sbdf) -> Option<Owner<V>> {
        if name.segment() != self.segment {
            return None;
        }
        *self.on_bus(name.bus())?.get(slot(name))?
    }

    /// Returns the number that the bus of that name has now; `None` if its port was given none.
    ///
    /// It is the port's secondary bus number, also while nothing gets down there.
    #[must_use]
    pub fn number(&self, bus: u8) -> Option<u8> {
        if bus == self.first {
            return Some(bus);
        }
        let (secondary, _) = self.link(bus)?.port.buses();
        (self.first < secondary && secondary <= self.last).then_some(secondary)
    }

    /// Returns as what a request of the function of that name travels upstream: its requester ID with
    /// the segment. `None` if none gets through the port above it.
    #[must_use]
    pub fn requester(&self, name: Sbdf) -> Option<Sbdf> {
        let number = self.number(name.bus())?;
        self.upstream(name).lets_out().then_some(on(name, number))
    }

    /// Returns what the port above the function of that name lets through.
    #[must_use]
    pub fn upstream(&self, name: Sbdf) -> Upstream {
        if name.bus() == self.first {
            return Upstream::ROOT;
        }
        let link = self.link(name.bus());
        link.map_or(Upstream::CLOSED, |link| link.port.upstream())
    }

    /// Returns every function there is, ports and stubs included, by name and in order.
    pub fn functions_present(&self) -> impl Iterator<Item = (Sbdf, Owner<V>)> {
        (0..=u8::MAX).flat_map(move |bus| self.functions_on(bus))
    }

    /// Returns the functions on the bus of that name, by their own names and in order.
    pub fn functions_on(&self, bus: u8) -> impl Iterator<Item = (Sbdf, Owner<V>)> {
        let functions = self.on_bus(bus).into_iter().flatten();
        (0..=u8::MAX)
            .zip(functions)
            .filter_map(move |(slot, owner)| {
                let rid = u16::from(bus) << 8 | u16::from(slot);
                Some((Sbdf::from_rid(self.segment, rid), (*owner)?))
            })
    }

    /// Returns the buses below ports, by name and in order.
    pub fn buses_below_ports(&self) -> impl Iterator<Item = u8> {
        let links = (0..=u8::MAX).zip(self.links.iter());
        links.filter_map(|(bus, link)| link.map(|_| bus))
    }

    /// Returns the next of them behind `after`.
    #[must_use]
    pub fn next_bus(&self, after: Option<u8>) -> Option<u8> {
        self.buses_below_ports().find(|bus| Some(*bus) > after)
    }

    /// Puts a root port at `slot`, and a bus below it that has the name `bus`. With `ari` the port can
    /// forward requests to 256 functions of one device, without to eight.
    ///
    /// # Errors
    ///
    /// If the slot is taken or not on the root bus, if the bus is there already, or if memory is short.
    pub fn add_port(&mut self, slot: Sbdf, bus: u8, ari: bool) -> Result<(), BusError> {
        if slot.segment() != self.segment || slot.bus() != self.first {
            return Err(BusError::NotOnRootBus(slot));
        }
        if bus < self.first || bus > self.last {
            return Err(BusError::NoSuchBus(on(slot, bus)));
        }
        if bus == self.first || self.link(bus).is_some() {
            return Err(BusError::BusTaken(bus));
        }
        self.ports.try_reserve(1).map_err(|_| BusError::NoMemory)?;
        self.put(slot, Owner::Port(bus))?;
        if let Some(link) = self.links.get_mut(usize::from(bus)) {
            // Each has a slot of its own on the root bus, of which there are no more.
            *link = u8::try_from(self.ports.len()).ok();
        }
        let port = Port::new(slot.device_function(), ari);
        self.ports.push(Link {
            slot,
            bus,
            port,
            in_reset: false,
        });
        self.find_buses();
        Ok(())
    }

    /// Puts a function on the bus, by its name. If its device has no function 0, a stub appears there. A
    /// passed-through one can claim as many ranges as it may have BARs without memory being short.
    ///
    /// The multi-function bits of the device may have to change: see [`Bus::is_multi_function`].
    ///
    /// # Errors
    ///
    /// If the slot is taken by anything but a stub, if there is no such bus, or if memory is short.
    pub fn insert(&mut self, name: Sbdf, owner: Owner<V>) -> Result<(), BusError> {
        if matches!(owner, Owner::Stub | Owner::Port(_)) {
            return Err(BusError::NotAFunction);
        }
        let room = owner.ranges();
        let reserved = self.memory.reserve(room);
        reserved.map_err(|_| BusError::NoMemory)?;
        self.put(name, owner)
            .inspect_err(|_| self.memory.give_up(room))
    }

    fn put(&mut self, name: Sbdf, owner: Owner<V>) -> Result<(), BusError> {
        let leads_there = name.bus() == self.first || self.link(name.bus()).is_some();
        if name.segment() != self.segment || name.bus() > self.last || !leads_there {
            return Err(BusError::NoSuchBus(name));
        }
        let device = self.device(name);
        if !device.contains(&slot(name)) {
            return Err(BusError::NotBelowPort(name));
        }
        let functions = self.buses.get_mut(usize::from(name.bus()));
        let functions = functions.ok_or(BusError::NoSuchBus(name))?;
        let functions = match functions {
            Some(functions) => functions,
            empty => empty.insert(table(|| None)?),
        };
        let entry = functions.get_mut(slot(name));
        let entry = entry.ok_or(BusError::NoSuchBus(name))?;
        if !matches!(entry, None | Some(Owner::Stub)) {
            return Err(BusError::Occupied(name));
        }
        *entry = Some(owner);
        if let Some(zero @ None) = functions.get_mut(device.start) {
            *zero = Some(Owner::Stub);
        }
        if let Some(link) = self.link_mut(name.bus()) {
            link.port.set_populated(true);
        }
        Ok(())
    }

    /// Takes a function off the bus, by its name, and returns its owner; a stub appears or goes as
    /// needed. Ports stay.
    pub fn remove(&mut self, name: Sbdf) -> Option<Owner<V>> {
        let owner = self.owner(name)?;
        if matches!(owner, Owner::Stub | Owner::Port(_)) {
            return None;
        }
        let device = self.device(name);
        let bus = self.buses.get_mut(usize::from(name.bus()))?;
        let functions = bus.as_mut()?;
        *functions.get_mut(slot(name))? = None;
        let rest = functions.get(device.start + 1..device.end)?;
        let others = rest.iter().any(Option::is_some);
        if let Some(zero @ (None | Some(Owner::Stub))) = functions.get_mut(device.start) {
            *zero = others.then_some(Owner::Stub);
        }
        if functions.iter().all(Option::is_none) {
            *bus = None;
            if let Some(link) = self.link_mut(name.bus()) {
                link.port.set_populated(false);
            }
        }
        self.memory.give_up(owner.ranges());
        Some(owner)
    }

    /// Returns the name of function 0 of the device that the function of that name belongs to.
    #[must_use]
    pub fn function_0(&self, name: Sbdf) -> Sbdf {
        let rid = name.rid();
        let within = if name.bus() == self.first { 7 } else { 0xff };
        Sbdf::from_rid(name.segment(), rid & !within)
    }

    /// Returns whether the device of the function of that name has a function besides function 0. Its
    /// function 0 has to say so in its header.
    #[must_use]
    pub fn is_multi_function(&self, name: Sbdf) -> bool {
        if name.segment() != self.segment {
            return false;
        }
        let device = self.device(name);
        self.on_bus(name.bus())
            .and_then(|functions| functions.get(device.start + 1..device.end))
            .is_some_and(|rest| rest.iter().any(Option::is_some))
    }

    /// Returns the number of the next function of the device of the function of that name, or 0 if there
    /// is none. ARI says so in each function that has it.
    #[must_use]
    pub fn next_function(&self, name: Sbdf) -> u8 {
        let device = self.device(name);
        let functions = self.on_bus(name.bus());
        let is_there = |at: &usize| {
            let owner = functions.and_then(|functions| functions.get(*at));
            owner.is_some_and(Option::is_some)
        };
        let next = (slot(name) + 1..device.end).find(is_there);
        next.map_or(0, |at| u8::try_from(at - device.start).unwrap_or(0))
    }

    /// Returns `answer`, which a device model gave to a read, with the multi-function bit set if the
    /// read covers it and the bus wants it there: a device model knows its own functions only.
    #[must_use]
    pub fn with_multi_function(&self, access: ConfigAccess, answer: u32) -> u32 {
        if access.offset().dword() != HEADER_TYPE {
            return answer;
        }
        match self.name(access.sbdf()) {
            Some(name) if name == self.function_0(name) && self.is_multi_function(name) => {
                answer | access.extract(MULTI_FUNCTION)
            }
            _ => answer,
        }
    }

    /// Answers a read of the port above the bus of that name.
    #[cold]
    #[must_use]
    pub fn read_port(&self, bus: u8, access: ConfigAccess) -> u32 {
        let link = self.link(bus);
        let answer = link.map_or(access.size().mask(), |link| link.port.read(access));
        self.with_multi_function(access, answer)
    }

    /// Takes a write to the port above the bus of that name. If something else gets through then,
    /// [`Bus::number`] and [`Bus::upstream`] of the functions below say what, and
    /// [`Bus::update_claims`] is to be called. After [`PortChange::Reset`] the bus is in reset until
    /// [`Bus::end_reset`].
    #[cold]
    pub fn write_port(&mut self, bus: u8, access: ConfigAccess, value: u32) -> PortChange {
        let Some(link) = self.link_mut(bus) else {
            return PortChange::None;
        };
        let change = link.port.write(access, value);
        link.in_reset |= change == PortChange::Reset;
        if change != PortChange::None {
            self.find_buses();
        }
        change
    }

    /// Says that everything on the bus of that name is reset.
    #[cold]
    pub fn end_reset(&mut self, bus: u8) {
        if let Some(link) = self.link_mut(bus) {
            link.in_reset = false;
        }
    }

    /// Returns whether a write to whom `route` has named has to be made again later, as after Configuration
    /// Request Retry Status (2.3.1): it is in a reset that has not ended. `in_reset` tells which
    /// passed-through functions are.
    ///
    /// A port takes no write while something below it is in reset. So nobody ends the reset of a bus
    /// early, or starts another one; and what is written to a function comes after its reset.
    #[must_use]
    pub fn must_wait(&self, owner: Owner<V>, in_reset: impl Fn(V) -> bool) -> bool {
        match owner {
            Owner::Vpci(function) => in_reset(function),
            Owner::Port(bus) => self.is_below_in_reset(bus, in_reset),
            Owner::HostBridge | Owner::Stub | Owner::Ioreq(_) => false,
        }
    }

    #[cold]
    fn is_below_in_reset(&self, bus: u8, in_reset: impl Fn(V) -> bool) -> bool {
        let mut below = self.functions_on(bus);
        self.link(bus).is_some_and(|link| link.in_reset)
            || below.any(|(_, owner)| matches!(owner, Owner::Vpci(function) if in_reset(function)))
    }

    /// Returns all ports to the state after power-on: nothing gets through any of them.
    pub fn reset_ports(&mut self) {
        for link in &mut self.ports {
            link.port.reset();
            link.in_reset = false;
        }
        self.find_buses();
    }

    /// Works out where each bus number leads.
    fn find_buses(&mut self) {
        self.reach.fill(None);
        let root = self.buses.get(usize::from(self.first));
        let root = root.and_then(|root| root.as_deref()).into_iter();
        // The first port has the last word.
        for owner in root.flatten().rev() {
            let Some(Owner::Port(bus)) = *owner else {
                continue;
            };
            let Some(link) = find(&self.links, &self.ports, bus) else {
                continue;
            };
            let (secondary, subordinate) = link.port.buses();
            let (first, last) = (usize::from(secondary), usize::from(subordinate));
            let Some(claimed) = self.reach.get_mut(first..=last) else {
                continue;
            };
            claimed.fill(None);
            if let Some(reach) = claimed.first_mut() {
                let reached = link.port.reach();
                *reach = reached.map(|last| Reach {
                    bus: link.bus,
                    last,
                });
            }
        }
        for (number, reach) in (0..=u8::MAX).zip(self.reach.iter_mut()) {
            if number == self.first && number <= self.last {
                *reach = Some(Reach {
                    bus: number,
                    last: 0xff,
                });
            } else if number < self.first || number > self.last {
                *reach = None;
            }
        }
    }

    #[inline]
    fn reach(&self, sbdf: Sbdf) -> Option<Reach> {
        let reach = (*self.reach.get(usize::from(sbdf.bus()))?)?;
        let exists = sbdf.device_function() <= reach.last && sbdf.segment() == self.segment;
        exists.then_some(reach)
    }

    #[inline]
    fn on_bus(&self, bus: u8) -> Option<&[Option<Owner<V>>; COUNT]> {
        self.buses.get(usize::from(bus))?.as_deref()
    }

    fn link(&self, bus: u8) -> Option<&Link> {
        find(&self.links, &self.ports, bus)
    }

    fn link_mut(&mut self, bus: u8) -> Option<&mut Link> {
        let index = (*self.links.get(usize::from(bus))?)?;
        self.ports.get_mut(usize::from(index))
    }

    /// Returns the places of the functions of one device in the table of their bus. Below a port there
    /// is one device, with as many functions as the port can reach.
    fn device(&self, name: Sbdf) -> core::ops::Range<usize> {
        if name.bus() == self.first {
            let start = slot(name) & !7;
            return start..start + usize::from(Sbdf::FUNCTIONS);
        }
        let ari = self
            .link(name.bus())
            .is_some_and(|link| link.port.has_ari());
        0..if ari { COUNT } else { Sbdf::FUNCTIONS.into() }
    }
}

/// Returns the port above the bus of that name.
fn find<'a>(links: &[Option<u8>; COUNT], ports: &'a [Link], bus: u8) -> Option<&'a Link> {
    ports.get(usize::from((*links.get(usize::from(bus))?)?))
}

/// Makes a table of empty places.
fn table<T>(empty: impl FnMut() -> T) -> Result<Box<[T; COUNT]>, BusError> {
    let mut list = Vec::new();
    list.try_reserve_exact(COUNT)
        .map_err(|_| BusError::NoMemory)?;
    list.resize_with(COUNT, empty);
    list.try_into().map_err(|_| BusError::NoMemory)
}

/// Returns the index of a function in the table of its bus.
fn slot(sbdf: Sbdf) -> usize {
    sbdf.device_function().into()
}

/// Returns the same device and function on another bus.
fn on(sbdf: Sbdf, bus: u8) -> Sbdf {
    let rid = u16::from(bus) << 8 | u16::from(sbdf.device_function());
    Sbdf::from_rid(sbdf.segment(), rid)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BusAddress, BusRange, ClaimError, ecam};
    use proptest::prelude::*;
    use std::collections::BTreeMap;
    use std::string::ToString;

    fn name(text: &str) -> Sbdf {
        text.parse().unwrap()
    }

    /// Writes a register of the port above `bus`.
    fn write(bus: &mut Bus<u8>, below: u8, offset: u64, bytes: u64, value: u32) -> PortChange {
        let access = ecam::decode(0, offset, bytes).unwrap();
        bus.write_port(below, access, value)
    }

    /// Has the claims that are ready granted, and returns them.
    fn ready(bus: &mut Bus<u8>) -> Vec<(BusRange, Decoder<u8>)> {
        let mut all = Vec::new();
        bus.memory
            .grant_ready(|range, decoder| all.push((range, decoder)));
        all
    }

    #[test]
    fn a_function_answers_where_it_was_put() {
        let mut bus = Bus::new(0, 0, 255).unwrap();
        bus.add_port(name("00:1c.0"), 0xff, true).unwrap();
        assert_eq!(bus.route(name("00:00.0")), None);
        bus.insert(name("00:00.0"), Owner::HostBridge).unwrap();
        bus.insert(name("00:01.0"), Owner::Vpci(7_u8)).unwrap();
        bus.insert(name("ff:1f.7"), Owner::Ioreq(3)).unwrap();
        #[rustfmt::skip]
        let cases = [
            ("0000:00:00.0", Some(Owner::HostBridge)),
            ("0000:00:00.1", None),
            ("0000:00:01.0", Some(Owner::Vpci(7))),
            ("0000:00:1c.0", Some(Owner::Port(0xff))),
            ("0000:ff:1f.7", Some(Owner::Ioreq(3))),
            ("0000:ff:1f.0", None),
            ("0000:ff:00.0", Some(Owner::Stub)),
            ("0000:01:01.0", None),
            ("0001:00:01.0", None),
        ];
        for (sbdf, owner) in cases {
            assert_eq!(bus.owner(name(sbdf)), owner, "{sbdf}");
            let reached = owner.filter(|_| name(sbdf).bus() == 0);
            assert_eq!(bus.route(name(sbdf)), reached, "{sbdf}: no number yet");
        }
        let present = bus.functions_present().map(|(sbdf, _)| sbdf.to_string());
        let expected = [
            "0000:00:00.0",
            "0000:00:01.0",
            "0000:00:1c.0",
            "0000:ff:00.0",
            "0000:ff:1f.7",
        ];
        assert!(present.eq(expected));
    }

    #[test]
    fn a_function_is_reached_by_the_number_that_the_guest_gives_its_bus() {
        let mut bus = Bus::new(0, 0, 255).unwrap();
        bus.add_port(name("00:1c.0"), 1, false).unwrap();
        bus.insert(name("01:00.2"), Owner::Vpci(7_u8)).unwrap();
        assert_eq!(bus.number(1), None);
        let _ = write(&mut bus, 1, 0x18, 4, 0x0008_0500);
        #[rustfmt::skip]
        let cases = [
            ("05:00.0", Some(Owner::Stub),    Some("01:00.0")),
            ("05:00.2", Some(Owner::Vpci(7)), Some("01:00.2")),
            ("05:00.3", None,                 Some("01:00.3")),
            ("05:01.0", None,                 None), // a port leads to device 0 only
            ("06:00.2", None,                 None), // type 1, and no bridge there
            ("01:00.2", None,                 None),
        ];
        for (sbdf, owner, known) in cases {
            assert_eq!(bus.route(name(sbdf)), owner, "{sbdf}");
            assert_eq!(bus.name(name(sbdf)), known.map(name), "{sbdf}");
        }
        assert_eq!(bus.number(1), Some(5));
        let function = name("01:00.2");
        assert_eq!(bus.requester(function), None, "no Bus Master Enable");
        let _ = write(&mut bus, 1, 0x04, 2, 4);
        assert_eq!(bus.requester(function), Some(name("05:00.2")));
        assert_eq!(bus.requester(name("00:03.1")), Some(name("00:03.1")));
        bus.reset_ports();
        assert_eq!(bus.route(name("05:00.2")), None);
        assert_eq!((bus.number(1), bus.requester(function)), (None, None));
        assert_eq!(bus.owner(function), Some(Owner::Vpci(7)));
    }

    #[test]
    #[rustfmt::skip]
    fn numbers_that_ports_share_are_the_first_ones() {
        let mut bus = Bus::new(0, 0, 255).unwrap();
        // Not in their order on purpose.
        for (slot, below) in [("00:02.0", 1), ("00:01.4", 2), ("00:01.0", 3)] {
            bus.add_port(name(slot), below, false).unwrap();
            bus.insert(Sbdf::new(0, below, 0, 0).unwrap(), Owner::Vpci(below)).unwrap();
        }
        let cases = [
            // 00:01.0,     00:01.4,     00:02.0,     numbers 0 to 7 lead to
            (0x0001_0100, 0x0002_0200, 0x0003_0300, [0, 3, 2, 1, 0, 0, 0, 0]),
            (0x0001_0100, 0x0001_0100, 0x0001_0100, [0, 3, 0, 0, 0, 0, 0, 0]),
            (0x0007_0100, 0x0002_0200, 0x0003_0300, [0, 3, 0, 0, 0, 0, 0, 0]),
            (0x0001_0700, 0x0002_0200, 0x0003_0300, [0, 0, 2, 1, 0, 0, 0, 0]),
            (0x0003_0200, 0x0004_0300, 0x0007_0400, [0, 0, 3, 0, 0, 0, 0, 0]),
            (0x0000_0000, 0x0000_0000, 0x0007_0700, [0, 0, 0, 0, 0, 0, 0, 1]),
            (0x00ff_0000, 0x0002_0200, 0x0007_0700, [0, 0, 0, 0, 0, 0, 0, 0]),
        ];
        for (first, second, third, expected) in cases {
            for (below, numbers) in [(3, first), (2, second), (1, third)] {
                let _ = write(&mut bus, below, 0x18, 4, numbers);
            }
            let led = [0, 1, 2, 3, 4, 5, 6, 7].map(|number| {
                match bus.route(Sbdf::new(0, number, 0, 0).unwrap()) {
                    Some(Owner::Vpci(below)) => below,
                    _ => 0,
                }
            });
            assert_eq!(led, expected, "{first:#x} {second:#x} {third:#x}");
        }
    }

    #[test]
    fn ari_forwarding_lets_256_functions_be_reached() {
        let mut bus = Bus::new(0, 0, 255).unwrap();
        bus.add_port(name("00:1c.0"), 1, true).unwrap();
        for rid in 0x100..0x200 {
            bus.insert(Sbdf::from_rid(0, rid), Owner::Ioreq(rid.into()))
                .unwrap();
        }
        let _ = write(&mut bus, 1, 0x18, 4, 0x0009_0900);
        let reached = |bus: &Bus<u8>| {
            let all = (0x900..0xa00).map(|rid| bus.route(Sbdf::from_rid(0, rid)));
            all.flatten().count()
        };
        assert_eq!(reached(&bus), 8);
        let _ = write(&mut bus, 1, 0x68, 2, 0x20);
        assert_eq!(reached(&bus), 256);
        assert_eq!(bus.route(name("09:1f.7")), Some(Owner::Ioreq(0x1ff)));
        let header = |sbdf| ecam::offset_of(name(sbdf)) + 0x0e;
        let shown = |sbdf| bus.with_multi_function(ecam::decode(0, header(sbdf), 1).unwrap(), 0);
        assert_eq!([shown("09:00.0"), shown("09:01.0")], [0x80, 0]);
    }

    /// 32 devices of 8 functions, each device whole.
    #[test]
    fn a_bus_can_be_full() {
        let mut bus = Bus::new(0, 0, 255).unwrap();
        for rid in 0..=0xff_u8 {
            let sbdf = Sbdf::from_rid(0, rid.into());
            bus.insert(sbdf, Owner::Vpci(rid)).unwrap();
        }
        for rid in 0..=0xff_u8 {
            let sbdf = Sbdf::from_rid(0, rid.into());
            assert_eq!(bus.route(sbdf), Some(Owner::Vpci(rid)));
            assert!(bus.is_multi_function(sbdf));
            assert_eq!(
                bus.insert(sbdf, Owner::Ioreq(0)),
                Err(BusError::Occupied(sbdf))
            );
        }
        for rid in 0..=0xff_u8 {
            let sbdf = Sbdf::from_rid(0, rid.into());
            assert_eq!(bus.remove(sbdf), Some(Owner::Vpci(rid)));
            let last = sbdf.function() == 7;
            let zero = bus.route(bus.function_0(sbdf));
            assert_eq!(zero, (!last).then_some(Owner::Stub), "{sbdf}");
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "long, and without unsafe code there is little to find")]
    fn as_many_buses_as_there_are_numbers() {
        let mut bus = Bus::new(0, 0, 255).unwrap();
        for below in 1..=248 {
            let slot = Sbdf::from_rid(0, u16::from(below) + 7);
            bus.add_port(slot, below, false).unwrap();
            let function = Sbdf::new(0, below, 0, 0).unwrap();
            bus.insert(function, Owner::Vpci(below)).unwrap();
            let numbers = u32::from(256 - u16::from(below)) * 0x0001_0100;
            let _ = write(&mut bus, below, 0x18, 4, numbers);
        }
        for below in 1..=248_u8 {
            let number = u8::try_from(256 - u16::from(below)).unwrap();
            let reached = Sbdf::new(0, number, 0, 0).unwrap();
            assert_eq!(bus.route(reached), Some(Owner::Vpci(below)));
        }
        assert_eq!(bus.buses_below_ports().count(), 248);
    }

    #[test]
    fn buses_below_ports_are_named_one_after_the_other() {
        let mut bus = Bus::<u8>::new(0, 0, 255).unwrap();
        assert_eq!(bus.next_bus(None), None);
        for (slot, below) in [("00:1c.0", 9), ("00:02.0", 255), ("00:1d.0", 4)] {
            bus.add_port(name(slot), below, false).unwrap();
        }
        assert!(bus.buses_below_ports().eq([4, 9, 255]));
        #[rustfmt::skip]
        let cases = [
            (None, Some(4)), (Some(0), Some(4)), (Some(3), Some(4)), (Some(4), Some(9)),
            (Some(9), Some(255)), (Some(255), None),
        ];
        for (after, next) in cases {
            assert_eq!(bus.next_bus(after), next, "{after:?}");
        }
    }

    #[test]
    fn a_port_says_whether_there_is_a_link_and_other_functions() {
        let mut bus = Bus::new(0, 0, 255).unwrap();
        bus.add_port(name("00:1c.0"), 1, false).unwrap();
        let read = |bus: &Bus<u8>, register, bytes| {
            let offset = ecam::offset_of(name("00:1c.0")) + register;
            bus.read_port(1, ecam::decode(0, offset, bytes).unwrap())
        };
        assert_eq!(read(&bus, 0x00, 4), 0x000c_1b36);
        assert_eq!(read(&bus, 0x0e, 1), 0x01);
        assert_eq!(read(&bus, 0x52, 2), 0x1104, "nothing is below");
        bus.add_port(name("00:1c.3"), 2, false).unwrap();
        bus.insert(name("01:00.0"), Owner::Ioreq(0)).unwrap();
        assert_eq!(read(&bus, 0x0e, 1), 0x81);
        assert_eq!(read(&bus, 0x52, 2), 0x3104);
        bus.remove(name("01:00.0")).unwrap();
        assert_eq!(read(&bus, 0x52, 2), 0x1104);
        let absent = ecam::decode(0, 0, 2).unwrap();
        assert_eq!(bus.read_port(9, absent), 0xffff);
        assert_eq!(bus.write_port(9, absent, 0), PortChange::None);
    }

    #[test]
    fn a_number_outside_of_the_buses_leads_nowhere() {
        let mut bus = Bus::<u8>::new(0, 1, 3).unwrap();
        bus.add_port(name("01:1c.0"), 2, false).unwrap();
        bus.insert(name("02:00.0"), Owner::Vpci(7)).unwrap();
        for (secondary, leads) in [(0, false), (2, true), (3, true), (4, false), (9, false)] {
            let _ = write(&mut bus, 2, 0x18, 4, secondary << 16 | secondary << 8);
            let number = u8::try_from(secondary).unwrap();
            let owner = bus.route(Sbdf::from_rid(0, u16::from(number) << 8));
            assert_eq!(owner, leads.then_some(Owner::Vpci(7)), "{secondary}");
            assert_eq!(bus.lead(number).is_some(), leads, "{secondary}");
        }
    }

    #[test]
    fn claims_below_a_port_come_and_go_with_its_windows() {
        let mut bus = Bus::<u8>::new(0, 0, 255).unwrap();
        let range = |start: u64, size| BusRange::new(BusAddress::new(start), size).unwrap();
        bus.memory
            .add_window(range(0x1000_0000, 0x1000_0000))
            .unwrap();
        bus.add_port(name("00:1c.0"), 1, false).unwrap();
        let decoder = |sbdf| Decoder::Ioreq {
            server: 0,
            sbdf: name(sbdf),
            posted: false,
        };
        let found = |bus: &Bus<u8>, at| bus.memory.find(BusAddress::new(at)).map(|(_, who)| who);
        let (below, beside) = ("01:00.0", "00:02.0");
        let bar = range(0x1010_0000, 0x1000);
        bus.claim(bar, name(below), decoder(below)).unwrap();
        assert_eq!(found(&bus, 0x1010_0000), None);
        assert_eq!(bus.claims_of(name(below)), 1);
        let taken = bus.claim(range(0x1010_0800, 0x1000), name(below), decoder(below));
        assert_eq!(
            taken,
            Err(ClaimError::Taken {
                range: bar,
                owner: decoder(below)
            })
        );
        let outside = range(0x2000_0000, 0x1000);
        let refused = bus.claim(outside, name(below), decoder(below));
        assert_eq!(refused, Err(ClaimError::Outside(outside)));
        // What does not get through is in nobody's way.
        bus.claim(bar, name(beside), decoder(beside)).unwrap();
        let _ = write(&mut bus, 1, 0x20, 4, 0x1010_1010);
        let _ = write(&mut bus, 1, 0x04, 2, 2);
        bus.update_claims(1);
        assert_eq!(
            found(&bus, 0x1010_0000),
            Some(decoder(beside)),
            "was there first"
        );
        let wanted = |sbdf| move |who| who == decoder(sbdf);
        assert!(bus.unclaim(bar.start(), wanted(beside)));
        assert_eq!(ready(&mut bus), [(bar, decoder(below))]);
        assert_eq!(found(&bus, 0x1010_0fff), Some(decoder(below)));
        let second = range(0x101f_f000, 0x1000);
        bus.claim(second, name(below), decoder(below)).unwrap();
        assert_eq!(found(&bus, 0x101f_f000), Some(decoder(below)));
        // Where nothing has changed, nothing is claimed again.
        bus.update_claims(1);
        let _ = write(&mut bus, 1, 0x20, 4, 0x1000_1010);
        bus.update_claims(1);
        assert_eq!(ready(&mut bus), []);
        assert_eq!(found(&bus, 0x1010_0000), None);
        assert!(!bus.unclaim(BusAddress::new(0x1010_0800), wanted(below)));
        assert!(bus.unclaim(bar.start(), wanted(below)));
        assert!(!bus.unclaim(bar.start(), wanted(below)));
        let _ = write(&mut bus, 1, 0x20, 4, 0x1010_1010);
        bus.update_claims(1);
        assert_eq!(found(&bus, 0x1010_0000), None);
        assert_eq!(found(&bus, 0x101f_f000), Some(decoder(below)));
        bus.unclaim_all(wanted(below));
        assert_eq!(bus.claims_of(name(below)), 0);
        assert_eq!(bus.memory.granted().count(), 0);
    }

    /// As a passed-through function's BAR does.
    #[test]
    fn a_claim_on_what_another_function_has_waits_for_it() {
        let mut bus = Bus::<u8>::new(0, 0, 255).unwrap();
        let range = |start: u64, size| BusRange::new(BusAddress::new(start), size).unwrap();
        bus.memory
            .add_window(range(0x1000_0000, 0x1000_0000))
            .unwrap();
        let decoder = |sbdf| Decoder::Ioreq {
            server: 0,
            sbdf: name(sbdf),
            posted: false,
        };
        let found = |bus: &Bus<u8>, at| bus.memory.find(BusAddress::new(at)).map(|(_, who)| who);
        let (one, other) = ("00:01.0", "00:02.0");
        let (first, second) = (range(0x1000_0000, 0x2000), range(0x1000_1000, 0x2000));
        bus.claim(first, name(one), decoder(one)).unwrap();
        bus.claim(second, name(other), decoder(other)).unwrap();
        assert_eq!(found(&bus, 0x1000_1000), Some(decoder(one)));
        assert_eq!(found(&bus, 0x1000_2000), None, "it is all or nothing");
        assert_eq!(bus.claims_of(name(other)), 1);
        let is = |sbdf| move |who| who == decoder(sbdf);
        assert!(!bus.unclaim(second.start(), is(one)), "another's");
        assert!(bus.unclaim(first.start(), is(one)));
        assert_eq!(ready(&mut bus), [(second, decoder(other))]);
        assert_eq!(found(&bus, 0x1000_1000), Some(decoder(other)));
        // One that is given up while it waits never comes.
        bus.claim(first, name(one), decoder(one)).unwrap();
        assert!(bus.unclaim(first.start(), is(one)));
        assert!(bus.unclaim(second.start(), is(other)));
        assert_eq!(ready(&mut bus), []);
        assert_eq!(bus.memory.granted().count(), 0);
    }

    #[test]
    fn a_stub_stands_in_for_a_missing_function_0() {
        let mut bus = Bus::new(0, 0, 0).unwrap();
        let (zero, two, five) = (name("00:03.0"), name("00:03.2"), name("00:03.5"));
        bus.insert(two, Owner::Vpci(2_u8)).unwrap();
        assert_eq!(bus.route(zero), Some(Owner::Stub));
        assert!(bus.is_multi_function(zero));
        assert_eq!(bus.remove(zero), None, "a stub cannot be removed");
        bus.insert(zero, Owner::Ioreq(1)).unwrap();
        assert_eq!(bus.route(zero), Some(Owner::Ioreq(1)));
        bus.insert(five, Owner::Vpci(5)).unwrap();
        let next = [zero, two, five, name("00:04.0")].map(|sbdf| bus.next_function(sbdf));
        assert_eq!(next, [2, 5, 0, 0]);
        assert_eq!(bus.remove(zero), Some(Owner::Ioreq(1)));
        assert_eq!(bus.route(zero), Some(Owner::Stub));
        assert_eq!(bus.remove(two), Some(Owner::Vpci(2)));
        assert_eq!(bus.route(zero), Some(Owner::Stub));
        assert_eq!(bus.remove(five), Some(Owner::Vpci(5)));
        assert_eq!(bus.route(zero), None);
        assert!(!bus.is_multi_function(zero));
        assert_eq!(bus.remove(five), None);
    }

    #[test]
    #[rustfmt::skip]
    fn function_0_of_a_device_model_says_that_there_are_others() {
        let mut bus = Bus::new(0, 0, 0).unwrap();
        bus.insert(name("00:01.0"), Owner::<u8>::Ioreq(1)).unwrap();
        let header = 0x8000_u64;
        let read = |bus: &Bus<u8>, offset, bytes| {
            bus.with_multi_function(ecam::decode(0, header + offset, bytes).unwrap(), 0)
        };
        assert_eq!(read(&bus, 0x0e, 1), 0);
        bus.insert(name("00:01.4"), Owner::Ioreq(2)).unwrap();
        let cases = [
            (0x0c, 4, 0x0080_0000), (0x0e, 2, 0x80), (0x0e, 1, 0x80), (0x0c, 2, 0), (0x0d, 1, 0),
            (0x0f, 1, 0), (0x10, 4, 0), (0x400c, 4, 0),
        ];
        for (offset, bytes, expected) in cases {
            assert_eq!(read(&bus, offset, bytes), expected, "{offset:#x} {bytes}");
        }
        // It may know of others itself.
        let access = ecam::decode(0, header + 0x0e, 1).unwrap();
        assert_eq!(bus.with_multi_function(access, 0x80), 0x80);
    }

    #[test]
    fn a_slot_is_given_once() {
        let mut bus = Bus::new(1, 4, 5).unwrap();
        let slot = name("1:04:00.0");
        bus.add_port(name("1:04:01.0"), 5, false).unwrap();
        bus.insert(slot, Owner::Vpci(0_u8)).unwrap();
        let cases = [
            (slot, Owner::Vpci(0), BusError::Occupied(slot)),
            (slot, Owner::Ioreq(9), BusError::Occupied(slot)),
            (name("1:05:00.0"), Owner::Stub, BusError::NotAFunction),
            (name("1:05:00.0"), Owner::Port(5), BusError::NotAFunction),
            (
                name("1:05:01.0"),
                Owner::Ioreq(9),
                BusError::NotBelowPort(name("1:05:01.0")),
            ),
            (
                name("1:04:01.0"),
                Owner::Ioreq(9),
                BusError::Occupied(name("1:04:01.0")),
            ),
            (
                name("1:03:00.0"),
                Owner::Ioreq(9),
                BusError::NoSuchBus(name("1:03:00.0")),
            ),
            (
                name("1:06:00.0"),
                Owner::Ioreq(9),
                BusError::NoSuchBus(name("1:06:00.0")),
            ),
            (
                name("0:04:00.0"),
                Owner::Ioreq(9),
                BusError::NoSuchBus(name("0:04:00.0")),
            ),
        ];
        for (sbdf, owner, error) in cases {
            assert_eq!(bus.insert(sbdf, owner), Err(error), "{sbdf}");
            assert!(!error.to_string().is_empty());
        }
        let cases = [
            (slot, 4, BusError::BusTaken(4)),
            (slot, 5, BusError::BusTaken(5)),
            (slot, 6, BusError::NoSuchBus(name("1:06:00.0"))),
            (name("1:04:01.0"), 4, BusError::BusTaken(4)),
            (
                name("1:05:01.0"),
                5,
                BusError::NotOnRootBus(name("1:05:01.0")),
            ),
            (
                name("0:04:01.0"),
                5,
                BusError::NotOnRootBus(name("0:04:01.0")),
            ),
        ];
        for (sbdf, below, error) in cases {
            assert_eq!(bus.add_port(sbdf, below, false), Err(error), "{sbdf}");
            assert!(!error.to_string().is_empty());
        }
        assert_eq!(bus.remove(name("0:04:00.0")), None);
        assert_eq!(bus.remove(name("1:04:01.0")), None, "ports stay");
        assert!(!BusError::NoMemory.to_string().is_empty());
        let mut none = Bus::<u8>::new(0, 9, 3).unwrap();
        assert!(none.insert(name("09:00.0"), Owner::Ioreq(0)).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases / 4))]

        /// Against a plain map from names to owners.
        #[test]
        #[cfg_attr(miri, ignore = "long, and without unsafe code there is little to find")]
        fn routing_agrees_with_a_plain_map(
            steps in prop::collection::vec((0u16..64, any::<bool>(), 0u8..3), 0..100),
        ) {
            let mut bus = Bus::new(0, 0, 0).unwrap();
            let mut plain = BTreeMap::new();
            for (number, insert, id) in steps {
                // Four devices of eight.
                let sbdf = Sbdf::from_rid(0, number & !0x10);
                if insert {
                    let inserted = bus.insert(sbdf, Owner::Vpci(id)).is_ok();
                    prop_assert_eq!(inserted, !plain.contains_key(&sbdf));
                    plain.entry(sbdf).or_insert(id);
                } else {
                    prop_assert_eq!(bus.remove(sbdf), plain.remove(&sbdf).map(Owner::Vpci));
                }
                for number in 0..64 {
                    let sbdf = Sbdf::from_rid(0, number);
                    let device = |other: &Sbdf| other.sibling(0) == sbdf.sibling(0);
                    let siblings = plain.keys().filter(|other| device(other) && **other != sbdf).count();
                    let expected = match plain.get(&sbdf) {
                        Some(&id) => Some(Owner::Vpci(id)),
                        None if sbdf.function() == 0 && siblings > 0 => Some(Owner::Stub),
                        None => None,
                    };
                    prop_assert_eq!(bus.route(sbdf), expected, "{}", sbdf);
                }
            }
        }
    }
}
