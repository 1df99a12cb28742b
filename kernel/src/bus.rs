//! A domain's PCI buses: who answers, and what EL2 does when a guest programs a function or a port.
//!
//! `vpci` decides, this module acts: an [`Effect`] becomes a stage 2 mapping, a register of the
//! device, or a route in the ITS.

use crate::domain::Domain;
use crate::memory::TableFrames;
use crate::mmio::Mmio;
use crate::passthrough::{AssignError, Assigned};
use crate::physical::{self, Messages, Resetting};
use crate::shadow::{Pages, View};
use alloc::collections::TryReserveError;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU8, Ordering};
use kernel::tables::Reserve;
use kernel::{fallible, layout};
use pci::Progress;
use vpci::{
    BusAddress, BusError, BusRange, Change, Claimed, ConfigAccess, Decoder, Effect, Emulated,
    Owner, PortChange, Released, Sbdf,
};

/// Ranges that a device model may have claimed for one function: its BARs, and doorbells in them.
const CLAIMS: usize = 32;

/// The numbers that a domain's buses have now, for who sends a message and must not wait for the lock of
/// the bus. By name; a bus below a port that has none is at zero.
pub(crate) struct Numbers([AtomicU8; 256]);

impl Numbers {
    /// Makes the numbers after a reset: only the root bus has its own.
    pub(crate) const fn new() -> Self {
        Self([const { AtomicU8::new(0) }; 256])
    }

    // Relaxed, both: a message that is on its way when the guest changes a number may have either.
    fn set(&self, bus: u8, number: Option<u8>) {
        if let Some(place) = self.0.get(usize::from(bus)) {
            place.store(number.unwrap_or(0), Ordering::Relaxed);
        }
    }

    /// Returns as what the messages of the function of that name come to the ITS; `None` if its bus has
    /// no number.
    pub(crate) fn requester(&self, name: Sbdf) -> Option<Sbdf> {
        if name.bus() == 0 {
            return Some(name);
        }
        let number = self.0.get(usize::from(name.bus()))?.load(Ordering::Relaxed);
        let rid = u16::from(number) << 8 | u16::from(name.device_function());
        (number != 0).then(|| Sbdf::from_rid(name.segment(), rid))
    }
}

/// A domain's buses.
pub(crate) struct Bus {
    bus: vpci::Bus<usize>,
    bridge: Emulated,
    stub: Emulated,
    /// Passed-through functions. A place is empty while its function is on its way, and after it was
    /// taken back.
    functions: Vec<Option<Assigned>>,
    /// Its domain has stopped for good.
    is_gone: bool,
    /// What the guest reads of it without EL2.
    pages: Pages,
    /// Tables for BARs that are not mapped.
    tables: Reserve,
}

/// Who answers an access that EL2 does not.
#[derive(Clone, Copy)]
pub(crate) struct Elsewhere {
    /// The ioreq server.
    pub(crate) server: u32,
    /// The function, by its name.
    pub(crate) sbdf: Sbdf,
    /// A write needs no answer.
    pub(crate) posted: bool,
}

/// What became of an access.
pub(crate) enum Answer {
    /// It is done; a load gets this.
    Done(u64),
    /// A device model answers.
    Elsewhere(Elsewhere),
    /// The guest asked for a reset, which takes a while.
    Resetting(Scope, Vec<Resetting>),
    /// The access is to be made again: what it is for is in a reset.
    Again,
}

/// What became of a config request at first sight.
#[derive(Clone, Copy)]
pub(crate) enum Quick {
    /// It is done; a load gets this.
    Done(u64),
    /// A passed-through function was written, whose version was this, and there are effects.
    Effects(u64),
    /// It is not one to a passed-through function.
    Other,
}

/// What a guest resets.
#[derive(Clone, Copy)]
pub(crate) enum Scope {
    /// A passed-through function.
    Function(usize),
    /// Everything on a bus below a port, by its name.
    Bus(u8),
}

impl Bus {
    /// Makes a bus with a host bridge and root ports, and nothing below them.
    pub(crate) fn new(ports: &[manifest::Port]) -> Result<Self, BusError> {
        let mut bus = vpci::Bus::new(0, 0, 255)?;
        bus.insert(Sbdf::from_rid(0, 0), Owner::HostBridge)?;
        for port in ports {
            // The manifest's check lets no other number through.
            let below = u8::try_from(port.bus).map_err(|_| BusError::NoSuchBus(port.slot))?;
            bus.add_port(port.slot, below, port.ari)?;
        }
        for window in [layout::PCI_32, layout::PCI_64] {
            let start = BusAddress::new(window.start);
            let range = BusRange::new(start, window.end - window.start);
            let range = range.ok_or(BusError::NoMemory)?;
            let added = bus.memory.add_window(range);
            added.map_err(|_| BusError::NoMemory)?;
        }
        Ok(Self {
            bus,
            bridge: Emulated::host_bridge(),
            stub: Emulated::stub(),
            functions: Vec::new(),
            is_gone: false,
            pages: Pages::new()?,
            tables: Reserve::new(),
        })
    }

    /// Lends the pages out, with what they show.
    #[inline]
    fn with_pages(&mut self, domain: &Domain, f: impl FnOnce(&mut Pages, &View<'_>)) {
        let view = View {
            domain,
            bus: &self.bus,
            bridge: &self.bridge,
            stub: &self.stub,
            functions: &self.functions,
        };
        f(&mut self.pages, &view);
    }

    /// Shows all of config space to a guest that is about to start.
    pub(crate) fn show(&mut self, domain: &Domain) {
        self.with_pages(domain, Pages::show_all);
    }

    /// Shows the function of that name after it has come or gone, and what goes with it.
    pub(crate) fn refresh(&mut self, domain: &Domain, name: Sbdf) {
        self.with_pages(domain, |pages, view| pages.refresh(view, name));
    }

    /// Puts a device model's function on the bus.
    pub(crate) fn put_emulated(
        &mut self,
        domain: &Domain,
        slot: Sbdf,
        server: u32,
    ) -> Result<(), AssignError> {
        self.check_slot(domain, slot)?;
        self.bus
            .insert(slot, Owner::Ioreq(server))
            .map_err(AssignError::Slot)?;
        self.tell_siblings(slot);
        self.refresh(domain, slot);
        Ok(())
    }

    /// Takes a device model's function off the bus, with what it has claimed, and returns the server whose
    /// it was; `None` if there is none at that slot.
    pub(crate) fn take_emulated(&mut self, domain: &Domain, slot: Sbdf) -> Option<u32> {
        let Some(Owner::Ioreq(server)) = self.bus.owner(slot) else {
            return None;
        };
        self.give_up(domain, slot);
        self.unclaim_all(domain, server, Some(slot));
        Some(server)
    }

    /// Tells the functions of the device that the function of that name belongs to which others there are.
    fn tell_siblings(&mut self, name: Sbdf) {
        let first = self.bus.function_0(name);
        for assigned in self.functions.iter_mut().flatten() {
            let slot = assigned.slot();
            if self.bus.function_0(slot) == first {
                let multi = slot == first && self.bus.is_multi_function(first);
                assigned.set_siblings(multi, self.bus.next_function(slot));
            }
        }
    }

    /// Makes a config request, as far as what drivers do most goes: reads of passed-through functions, and
    /// writes that change a value and nothing else. The rest is for [`Bus::config_rest`].
    #[inline(always)]
    pub(crate) fn config(&mut self, access: ConfigAccess, store: Option<u64>) -> Quick {
        let Some(Owner::Vpci(id)) = self.bus.route(access.sbdf()) else {
            return Quick::Other;
        };
        let Some(Some(function)) = self.functions.get_mut(id) else {
            return Quick::Other;
        };
        let Some(value) = store else {
            return Quick::Done(function.config_read(access).into());
        };
        if function.is_resetting() || function.is_recalled() {
            return Quick::Other;
        }
        let before = function.version();
        match function.config_write(access, low_half(value)) {
            Change::None => {}
            Change::Value(value) => self.pages.set(id, access.offset().dword(), value),
            Change::Effects => return Quick::Effects(before.into()),
        }
        Quick::Done(0)
    }

    /// Completes a config request.
    #[inline(never)]
    pub(crate) fn config_rest(
        &mut self,
        domain: &Domain,
        access: ConfigAccess,
        store: Option<u64>,
        quick: Quick,
    ) -> Answer {
        let nothing = Answer::Done(access.size().mask().into());
        let in_reset = |id: usize| {
            let function = self.functions.get(id).and_then(Option::as_ref);
            function.is_some_and(|function| function.is_resetting() || function.is_recalled())
        };
        match (self.bus.route(access.sbdf()), quick, store) {
            (_, Quick::Done(value), _) => Answer::Done(value),
            (Some(owner), Quick::Other, Some(_)) if self.bus.must_wait(owner, in_reset) => {
                Answer::Again
            }
            (Some(Owner::Vpci(id)), Quick::Effects(before), _) => {
                self.after_write(domain, id, access, low_half(before))
            }
            (None | Some(Owner::Vpci(_)), ..) | (Some(Owner::Stub), _, Some(_)) => nothing,
            (Some(Owner::Ioreq(server)), ..) => match self.bus.name(access.sbdf()) {
                Some(sbdf) => Answer::Elsewhere(Elsewhere {
                    server,
                    sbdf,
                    posted: false,
                }),
                None => nothing,
            },
            (Some(Owner::HostBridge), _, None) => Answer::Done(self.bridge.read(access).into()),
            (Some(Owner::HostBridge), _, Some(value)) => {
                self.bridge.write(access, low_half(value));
                self.with_pages(domain, |pages, view| pages.show(view, access.sbdf()));
                nothing
            }
            (Some(Owner::Stub), _, None) => Answer::Done(self.stub.read(access).into()),
            (Some(Owner::Port(bus)), _, None) => {
                Answer::Done(self.bus.read_port(bus, access).into())
            }
            (Some(Owner::Port(bus)), _, Some(value)) => {
                let change = self.bus.write_port(bus, access, low_half(value));
                self.with_pages(domain, |pages, view| pages.show(view, access.sbdf()));
                match change {
                    PortChange::None => nothing,
                    PortChange::Forwarding => {
                        self.change_port(domain, bus);
                        nothing
                    }
                    PortChange::Reset => {
                        let resets = self.reset_bus(domain, bus);
                        Answer::Resetting(Scope::Bus(bus), resets)
                    }
                }
            }
        }
    }

    /// Does what follows from a config write to a passed-through function, whose version was `before`. Its page
    /// shows it once all is done.
    fn after_write(
        &mut self,
        domain: &Domain,
        id: usize,
        access: ConfigAccess,
        before: u32,
    ) -> Answer {
        let version = |bus: &Self| Some(bus.functions.get(id)?.as_ref()?.version());
        let changes = version(self).map_or(0, |now| now.wrapping_sub(before));
        let reset = self.carry_out(domain, id);
        if changes != 0 {
            let dword = (changes == 1).then(|| access.offset().dword());
            self.with_pages(domain, |pages, view| pages.changed(view, id, dword));
        }
        match reset {
            Some(reset) => Answer::Resetting(Scope::Function(id), only(reset)),
            None => Answer::Done(0),
        }
    }

    /// Returns what the guest gets where a device model answered `value`.
    pub(crate) fn config_answer(&self, access: ConfigAccess, value: u32) -> u32 {
        self.bus.with_multi_function(access, value)
    }

    /// Carries out an access in one of the bridge's windows that stage 2 does not let through.
    pub(crate) fn memory(&mut self, domain: &Domain, mmio: Mmio) -> Answer {
        let address = BusAddress::new(mmio.ipa);
        let nothing = Answer::Done(u64::MAX);
        let Some((range, decoder)) = self.bus.memory.find(address) else {
            return nothing;
        };
        let (function, bar) = match decoder {
            Decoder::Bar { function, bar } => (function, bar),
            Decoder::Ioreq {
                server,
                sbdf,
                posted,
            } => {
                return Answer::Elsewhere(Elsewhere {
                    server,
                    sbdf,
                    posted,
                });
            }
        };
        let (Some(offset), Some(Some(assigned))) =
            (range.offset_of(address), self.functions.get_mut(function))
        else {
            return nothing;
        };
        match mmio.store {
            None => Answer::Done(assigned.load(bar, offset, mmio.bytes())),
            Some(value) => {
                if assigned.store(bar, offset, mmio.bytes(), value) {
                    self.carry_out(domain, function);
                }
                Answer::Done(0)
            }
        }
    }

    /// Claims a range for a device model's function.
    pub(crate) fn claim(
        &mut self,
        range: BusRange,
        of: Sbdf,
        decoder: Decoder<usize>,
    ) -> Result<(), vpci::ClaimError<Decoder<usize>>> {
        if self.bus.claims_of(of) >= CLAIMS {
            return Err(vpci::ClaimError::NoMemory);
        }
        self.bus.claim(range, of, decoder)
    }

    /// Gives a range of a device model's function back; returns whether there was one.
    pub(crate) fn unclaim(
        &mut self,
        domain: &Domain,
        at: BusAddress,
        server: u32,
        of: Sbdf,
    ) -> bool {
        let is_own = |decoder| {
            matches!(decoder, Decoder::Ioreq { server: s, sbdf, .. }
            if s == server && sbdf == of)
        };
        let found = self.bus.unclaim(at, is_own);
        self.map_ready(domain);
        found
    }

    /// Gives back whatever the functions of a device model have claimed.
    pub(crate) fn unclaim_all(&mut self, domain: &Domain, server: u32, of: Option<Sbdf>) {
        self.bus.unclaim_all(|decoder| {
            matches!(decoder, Decoder::Ioreq { server: s, sbdf, .. }
                if s == server && of.is_none_or(|of| of == sbdf))
        });
        self.map_ready(domain);
    }

    /// Returns whether the function of that name is that server's.
    pub(crate) fn is_emulated_by(&self, name: Sbdf, server: u32) -> bool {
        self.bus.owner(name) == Some(Owner::Ioreq(server))
    }

    /// Returns as what a message of the function of that name comes to the ITS; `None` if none gets
    /// there.
    pub(crate) fn requester(&self, name: Sbdf) -> Option<Sbdf> {
        self.bus.requester(name)
    }

    /// Returns the first function of a device model on a bus, by their names, behind `after`.
    pub(crate) fn next_emulated(&self, bus: u8, after: Option<Sbdf>) -> Option<(Sbdf, u32)> {
        let mut functions = self.bus.functions_on(bus);
        functions.find_map(|(name, owner)| match owner {
            Owner::Ioreq(server) if Some(name) > after => Some((name, server)),
            _ => None,
        })
    }

    /// Returns the first function of a server, by their names, behind `after`.
    pub(crate) fn next_of_server(&self, server: u32, after: Option<Sbdf>) -> Option<Sbdf> {
        let mut present = self.bus.functions_present();
        let own = |(name, owner): &(Sbdf, Owner<usize>)| {
            *owner == Owner::Ioreq(server) && Some(*name) > after
        };
        present.find(own).map(|(name, _)| name)
    }

    /// Returns the functions of device models, by name: all that there are.
    pub(crate) fn emulated(&self) -> Result<Vec<(Sbdf, u32)>, TryReserveError> {
        let present = self.bus.functions_present();
        fallible::collect(present.filter_map(|(sbdf, owner)| match owner {
            Owner::Ioreq(server) => Some((sbdf, server)),
            _ => None,
        }))
    }

    /// Lets the functions below a port know what gets through it now.
    #[cold]
    fn change_port(&mut self, domain: &Domain, bus: u8) {
        domain.bus_numbers.set(bus, self.bus.number(bus));
        for id in 0..self.functions.len() {
            if let Some(Some(assigned)) = self.functions.get_mut(id)
                && assigned.slot().bus() == bus
                && assigned.set_upstream(self.bus.upstream(assigned.slot()))
            {
                self.carry_out(domain, id);
            }
        }
        self.bus.update_claims(bus);
        self.map_ready(domain);
        self.with_pages(domain, Pages::follow);
    }

    /// Resets the models of the passed-through functions below a port that holds its link down, and
    /// returns the resets of the devices. Device models are to be told.
    #[cold]
    fn reset_bus(&mut self, domain: &Domain, bus: u8) -> Vec<Resetting> {
        self.change_port(domain, bus);
        self.start_resets(domain, Vec::new(), |slot| slot.bus() == bus)
    }

    /// Puts the functions at the slots that `which` tells into the state of power-on: returns the resets
    /// that this takes, with those of them that have begun already. Those that are reset with another one have
    /// none of their own; nor have those that are to be taken back, which are reset then.
    fn start_resets(
        &mut self,
        domain: &Domain,
        mut resets: Vec<Resetting>,
        which: impl Fn(Sbdf) -> bool,
    ) -> Vec<Resetting> {
        for id in 0..self.functions.len() {
            let Some(Some(assigned)) = self.functions.get_mut(id) else {
                continue;
            };
            if !which(assigned.slot()) {
                continue;
            }
            assigned.forget();
            self.carry_out(domain, id);
            let Some(Some(assigned)) = self.functions.get_mut(id) else {
                continue;
            };
            if assigned.is_recalled() && !assigned.is_resetting() {
                continue;
            }
            assigned.stop(domain);
            let index = assigned.index();
            if resets.iter().any(|reset| reset.covers(index)) {
                continue;
            }
            if let Some(reset) = assigned.start_reset(domain, &resets, &which) {
                resets.retain_mut(|other| !reset.replaces(other));
                if resets.try_reserve(1).is_ok() {
                    resets.push(reset);
                } else {
                    error!("domain {}: no memory to reset a device", domain.name());
                }
            }
        }
        for assigned in self.functions.iter_mut().flatten() {
            let index = assigned.index();
            if assigned.is_recalled() && resets.iter().any(|reset| reset.covers(index)) {
                assigned.stop(domain);
            }
        }
        resets
    }

    /// Does what a model says, in its order. Returns the reset that the guest asked for.
    fn carry_out(&mut self, domain: &Domain, id: usize) -> Option<Resetting> {
        let mut reset = None;
        while let Some(Some(assigned)) = self.functions.get_mut(id)
            && let Some(effect) = assigned.next_effect()
        {
            match effect {
                Effect::MapBar { bar, range } => {
                    let decoder = Decoder::Bar { function: id, bar };
                    if let Ok(Claimed::Granted) = self.bus.memory.claim_or_wait(range, decoder) {
                        assigned.map(domain, &mut self.tables, bar, range);
                    }
                }
                Effect::UnmapBar { bar, range } => {
                    let decoder = Decoder::Bar { function: id, bar };
                    if matches!(self.bus.memory.release(range, decoder), Released::Granted) {
                        assigned.unmap(domain, &mut self.tables, bar, range);
                        self.map_ready(domain);
                    }
                }
                // Others of the domain's are in use.
                Effect::Reset => reset = assigned.start_reset(domain, &[], |_| false),
                other => assigned.act(domain, other),
            }
        }
        reset
    }

    /// Maps BARs whose ranges have become free.
    fn map_ready(&mut self, domain: &Domain) {
        self.bus.memory.grant_ready(|range, decoder| {
            if let Decoder::Bar { function, bar } = decoder
                && let Some(Some(assigned)) = self.functions.get_mut(function)
            {
                assigned.map(domain, &mut self.tables, bar, range);
            }
        });
    }

    /// Checks that a function can be put at a slot.
    fn check_slot(&self, domain: &Domain, slot: Sbdf) -> Result<(), AssignError> {
        if self.is_gone {
            return Err(AssignError::Gone);
        }
        let mut ports = domain.config.ports.iter();
        let port = ports.find(|port| port.bus == u32::from(slot.bus()));
        // As the manifest's check has it.
        let is_slot = match port {
            _ if slot.segment() != 0 => false,
            _ if slot.bus() == 0 => slot.device() != 0,
            Some(port) => port.ari || slot.device() == 0,
            None => false,
        };
        if !is_slot {
            return Err(AssignError::Slot(BusError::NoSuchBus(slot)));
        }
        if let Some(Owner::Vpci(id)) = self.bus.owner(slot)
            && let Some(None) = self.functions.get(id)
        {
            return Err(AssignError::OnItsWay);
        }
        Ok(())
    }

    /// Keeps a slot for a physical function, which nobody sees before `put`. Returns its place.
    pub(crate) fn reserve(&mut self, domain: &Domain, slot: Sbdf) -> Result<usize, AssignError> {
        self.check_slot(domain, slot)?;
        let is_free = |id: &usize| {
            let mut present = self.bus.functions_present();
            matches!(self.functions.get(*id), Some(None))
                && !present.any(|(_, owner)| owner == Owner::Vpci(*id))
        };
        let id = match (0..self.functions.len()).find(is_free) {
            Some(id) => id,
            None => {
                self.functions
                    .try_reserve(1)
                    .map_err(|_| AssignError::NoMemory)?;
                self.functions.push(None);
                self.functions.len() - 1
            }
        };
        self.bus
            .insert(slot, Owner::Vpci(id))
            .map_err(AssignError::Slot)?;
        // There may be a stub from now on, and the port above has a link.
        self.refresh(domain, slot);
        Ok(id)
    }

    /// Sets tables aside for a function that is about to come, so that its BARs can be mapped whenever the
    /// guest enables them.
    pub(crate) fn set_aside(&mut self, tables: usize) -> Result<(), AssignError> {
        let added = self.tables.add(&mut TableFrames::for_pcpus(), tables);
        added.map_err(|_| AssignError::NoMemory)
    }

    /// Gives those of a function back, of which nothing is mapped.
    pub(crate) fn give_back(&mut self, tables: usize) {
        self.tables.remove(&mut TableFrames::for_pcpus(), tables);
    }

    /// Gives up a slot that was kept.
    pub(crate) fn give_up(&mut self, domain: &Domain, slot: Sbdf) {
        self.bus.remove(slot);
        self.tell_siblings(slot);
        self.refresh(domain, slot);
    }

    /// Shows a function at the slot that was kept for it; returns it if the domain has stopped for good
    /// meanwhile.
    pub(crate) fn put(
        &mut self,
        domain: &Domain,
        id: usize,
        mut assigned: Assigned,
    ) -> Option<Assigned> {
        let (Some(place), false) = (self.functions.get_mut(id), self.is_gone) else {
            return Some(assigned);
        };
        let slot = assigned.slot();
        // Nothing is decoded yet, and it is no bus master: there is no effect.
        let _: bool = assigned.set_upstream(self.bus.upstream(slot));
        assigned.show(domain);
        *place = Some(assigned);
        self.tell_siblings(slot);
        self.refresh(domain, slot);
        None
    }

    /// Returns which of the machine's functions was given to the domain at a slot, if it can be taken back
    /// now: then `take` follows, or `keep`. `None` while it is in a reset that its domain asked for; from
    /// here on no other one begins. If that domain `is_own` of who wants it back, that is an error: when it
    /// has stopped, it waits for who takes, and its resets end with it.
    pub(crate) fn recall(
        &mut self,
        slot: Sbdf,
        is_own: bool,
    ) -> Result<Option<usize>, AssignError> {
        let Some(Owner::Vpci(id)) = self.bus.owner(slot) else {
            return Err(AssignError::NothingThere);
        };
        let Some(Some(assigned)) = self.functions.get_mut(id) else {
            return Err(AssignError::OnItsWay);
        };
        if !assigned.is_resetting() {
            return Ok(Some(assigned.index()));
        }
        assigned.recall(!is_own);
        if is_own {
            return Err(AssignError::Resetting);
        }
        Ok(None)
    }

    /// Leaves a function to the domain, which was to be taken back.
    pub(crate) fn keep(&mut self, slot: Sbdf) {
        if let Some(Owner::Vpci(id)) = self.bus.owner(slot)
            && let Some(Some(assigned)) = self.functions.get_mut(id)
        {
            assigned.recall(false);
        }
    }

    /// Takes a function off the bus: from here on its slot is empty, nothing of it is mapped, and it
    /// reaches nothing. [`Bus::recall`] has said that it is there.
    pub(crate) fn take(&mut self, domain: &Domain, slot: Sbdf) -> Option<Assigned> {
        let Some(Owner::Vpci(id)) = self.bus.owner(slot) else {
            return None;
        };
        if let Some(Some(assigned)) = self.functions.get_mut(id) {
            assigned.forget();
            self.carry_out(domain, id);
        }
        let mut assigned = self.functions.get_mut(id)?.take()?;
        self.bus.remove(slot);
        self.tell_siblings(slot);
        assigned.silence(domain);
        self.give_back(assigned.tables());
        self.refresh(domain, slot);
        Some(assigned)
    }

    /// Puts all functions into the state of power-on for a domain that starts again: returns the
    /// resets that this takes, with those that its guest has begun.
    pub(crate) fn reset(&mut self, domain: &Domain, begun: Vec<Resetting>) -> Vec<Resetting> {
        self.bridge.reset();
        self.bus.reset_ports();
        let mut after = None;
        while let Some(bus) = self.bus.next_bus(after) {
            self.change_port(domain, bus);
            after = Some(bus);
        }
        self.start_resets(domain, begun, |_| true)
    }

    /// Makes functions usable again after their reset, which disables them.
    pub(crate) fn after_reset(&mut self, domain: &Domain) {
        for assigned in self.functions.iter_mut().flatten() {
            assigned.enable(domain);
        }
    }

    /// Makes what a guest has reset usable again.
    pub(crate) fn after_reset_of(&mut self, domain: &Domain, scope: Scope) {
        for (id, assigned) in self.functions.iter_mut().enumerate() {
            let Some(assigned) = assigned else { continue };
            let was_reset = match scope {
                Scope::Function(function) => function == id,
                Scope::Bus(bus) => bus == assigned.slot().bus(),
            };
            if was_reset && assigned.is_resetting() {
                assigned.enable(domain);
            }
        }
        self.with_pages(domain, |pages, view| {
            for assigned in view.functions.iter().flatten() {
                pages.show_function(view, assigned);
            }
        });
    }

    /// Says that everything on the bus of that name is reset, device models' functions, too.
    pub(crate) fn end_reset(&mut self, bus: u8) {
        self.bus.end_reset(bus);
    }

    /// Takes the functions away from a domain that stops for good: they reach nothing, and interrupt
    /// nobody.
    pub(crate) fn silence(&mut self, domain: &Domain) {
        self.is_gone = true;
        for id in 0..self.functions.len() {
            if let Some(Some(assigned)) = self.functions.get_mut(id) {
                assigned.forget();
                self.carry_out(domain, id);
            }
            if let Some(Some(assigned)) = self.functions.get_mut(id) {
                assigned.silence(domain);
            }
        }
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        self.tables.clear(&mut TableFrames::for_pcpus());
    }
}

/// Carries resets out a step; returns after how many milliseconds to come back, or `None` when all
/// are done.
pub(crate) fn step(resets: &mut Vec<Resetting>) -> Option<u32> {
    let mut wait = None;
    resets.retain_mut(|reset| match reset.step() {
        Ok(Progress::Wait(milliseconds)) => {
            wait = Some(wait.map_or(milliseconds, |least: u32| least.min(milliseconds)));
            true
        }
        Ok(Progress::Done) => false,
        Err(error) => {
            error!("a reset failed: {error}");
            false
        }
    });
    wait
}

/// Returns a list of one reset. Without memory it is given up, which is told, and the function counts as
/// broken.
fn only(reset: Resetting) -> Vec<Resetting> {
    fallible::collect([reset]).unwrap_or_else(|_| {
        error!("a function is not reset: there is no memory to note it");
        Vec::new()
    })
}

/// Returns what a config request stores, which has four bytes at most.
#[expect(clippy::cast_possible_truncation, reason = "see above")]
const fn low_half(value: u64) -> u32 {
    value as u32
}

/// Keeps the name of what takes messages in one place.
pub(crate) fn message_interrupt(lpi: u32) {
    if let Some(messages) = physical::get().and_then(|physical| physical.messages.as_ref()) {
        Messages::interrupt(messages, lpi);
    }
}
