//! A domain's PCI bus: who answers, and what EL2 does when a guest programs a function.
//!
//! `vpci` decides, this module acts: an [`Effect`] becomes a stage 2 mapping, a register of the
//! device, or a route in the ITS.

use crate::domain::Domain;
use crate::mmio::Mmio;
use crate::passthrough::{AssignError, Assigned};
use crate::physical::{self, Messages};
use alloc::vec::Vec;
use kernel::layout;
use pci::{Progress, Reset};
use vpci::{
    BarIndex, BusAddress, BusError, BusRange, Claimed, ConfigAccess, Decoder, Effect, Emulated,
    Owner, Released, Sbdf,
};

/// Ranges that a device model may have claimed for one function: its BARs, and doorbells in them.
const CLAIMS: usize = 32;

/// A domain's bus.
pub(crate) struct Bus {
    bus: vpci::Bus<usize>,
    bridge: Emulated,
    stub: Emulated,
    /// Passed-through functions; a place stays empty when its function is taken back.
    functions: Vec<Option<Assigned>>,
}

/// Who answers an access that EL2 does not.
#[derive(Clone, Copy)]
pub(crate) struct Elsewhere {
    /// The ioreq server.
    pub(crate) server: u32,
    /// The function.
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
    /// The guest asked for a reset of this function, which takes a while.
    Resetting(usize, Reset),
}

impl Bus {
    /// Makes a bus with a host bridge and nothing else.
    pub(crate) fn new() -> Option<Self> {
        let mut bus = vpci::Bus::new(0, 0, 255).ok()?;
        bus.insert(Sbdf::from_rid(0, 0), Owner::HostBridge).ok()?;
        for window in [layout::PCI_32, layout::PCI_64] {
            let start = BusAddress::new(window.start);
            bus.memory
                .add_window(BusRange::new(start, window.end - window.start)?)
                .ok()?;
        }
        Some(Self {
            bus,
            bridge: Emulated::host_bridge(),
            stub: Emulated::stub(),
            functions: Vec::new(),
        })
    }

    /// Puts a device model's function on the bus.
    pub(crate) fn add_emulated(&mut self, slot: Sbdf, server: u32) -> Result<(), BusError> {
        self.bus.insert(slot, Owner::Ioreq(server))
    }

    /// Answers a config read.
    #[inline]
    pub(crate) fn config_read(&self, access: ConfigAccess) -> Answer {
        Answer::Done(u64::from(match self.bus.route(access.sbdf()) {
            None => access.size().mask(),
            Some(Owner::Vpci(id)) => match self.functions.get(id) {
                Some(Some(function)) => function.config_read(access),
                _ => access.size().mask(),
            },
            Some(Owner::HostBridge) => self.bridge.read(access),
            Some(Owner::Stub) => self.stub.read(access),
            Some(Owner::Ioreq(server)) => {
                let sbdf = access.sbdf();
                return Answer::Elsewhere(Elsewhere {
                    server,
                    sbdf,
                    posted: false,
                });
            }
        }))
    }

    /// Returns what the guest gets where a device model answered `value`.
    pub(crate) fn config_answer(&self, access: ConfigAccess, value: u32) -> u32 {
        self.bus.with_multi_function(access, value)
    }

    /// Carries out a config write.
    pub(crate) fn config_write(
        &mut self,
        domain: &Domain,
        access: ConfigAccess,
        value: u32,
    ) -> Answer {
        match self.bus.route(access.sbdf()) {
            None | Some(Owner::Stub) => {}
            Some(Owner::HostBridge) => self.bridge.write(access, value),
            Some(Owner::Vpci(id)) => {
                if let Some(Some(function)) = self.functions.get_mut(id)
                    && function.config_write(access, value)
                    && let Some(reset) = self.carry_out(domain, id)
                {
                    return Answer::Resetting(id, reset);
                }
            }
            Some(Owner::Ioreq(server)) => {
                let sbdf = access.sbdf();
                return Answer::Elsewhere(Elsewhere {
                    server,
                    sbdf,
                    posted: false,
                });
            }
        }
        Answer::Done(0)
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
                if assigned.store(bar, offset, mmio.bytes(), value)
                    && let Some(reset) = self.carry_out(domain, function)
                {
                    return Answer::Resetting(function, reset);
                }
                Answer::Done(0)
            }
        }
    }

    /// Claims a range for a device model's function.
    pub(crate) fn claim(
        &mut self,
        range: BusRange,
        decoder: Decoder<usize>,
    ) -> Result<(), vpci::ClaimError<Decoder<usize>>> {
        let same = |other: &Decoder<usize>| match (other, &decoder) {
            (Decoder::Ioreq { sbdf: a, .. }, Decoder::Ioreq { sbdf: b, .. }) => a == b,
            _ => false,
        };
        if self
            .bus
            .memory
            .granted()
            .filter(|(_, other)| same(other))
            .count()
            >= CLAIMS
        {
            return Err(vpci::ClaimError::NoMemory);
        }
        self.bus.memory.claim(range, decoder)
    }

    /// Gives a range of a device model's function back; returns whether there was one.
    pub(crate) fn unclaim(
        &mut self,
        domain: &Domain,
        at: BusAddress,
        server: u32,
        of: Sbdf,
    ) -> bool {
        let Some((range, decoder)) = self.bus.memory.find(at) else {
            return false;
        };
        let is_own = matches!(decoder, Decoder::Ioreq { server: s, sbdf, .. }
            if s == server && sbdf == of);
        if !is_own || range.start() != at {
            return false;
        }
        let released = self.bus.memory.release(range, decoder);
        self.map_ready(domain);
        matches!(released, Released::Granted)
    }

    /// Gives back whatever the functions of a device model have claimed.
    pub(crate) fn unclaim_all(&mut self, domain: &Domain, server: u32, of: Option<Sbdf>) {
        let wanted = |decoder| {
            matches!(decoder, Decoder::Ioreq { server: s, sbdf, .. }
                if s == server && of.is_none_or(|of| of == sbdf))
        };
        while self.bus.memory.release_any(wanted).is_some() {}
        self.map_ready(domain);
    }

    /// Returns whether a function is that server's.
    pub(crate) fn is_emulated_by(&self, sbdf: Sbdf, server: u32) -> bool {
        self.bus.route(sbdf) == Some(Owner::Ioreq(server))
    }

    /// Returns the functions of device models: all that there are on the bus.
    pub(crate) fn emulated(&self) -> Vec<(Sbdf, u32)> {
        let present = self.bus.functions_present();
        present
            .filter_map(|(sbdf, owner)| match owner {
                Owner::Ioreq(server) => Some((sbdf, server)),
                _ => None,
            })
            .collect()
    }

    /// Does what a model says, in its order. Returns the reset that the guest asked for.
    fn carry_out(&mut self, domain: &Domain, id: usize) -> Option<Reset> {
        let mut reset = None;
        while let Some(Some(assigned)) = self.functions.get_mut(id)
            && let Some(effect) = assigned.next_effect()
        {
            match effect {
                Effect::MapBar { bar, range } => {
                    let decoder = Decoder::Bar { function: id, bar };
                    if let Ok(Claimed::Granted) = self.bus.memory.claim_or_wait(range, decoder) {
                        assigned.map(domain, bar, range);
                    }
                }
                Effect::UnmapBar { bar, range } => {
                    let decoder = Decoder::Bar { function: id, bar };
                    if matches!(self.bus.memory.release(range, decoder), Released::Granted) {
                        assigned.unmap(domain, bar, range);
                        self.map_ready(domain);
                    }
                }
                Effect::Reset => reset = assigned.start_reset(domain),
                other => assigned.act(domain, other),
            }
        }
        reset
    }

    /// Maps BARs whose ranges have become free.
    fn map_ready(&mut self, domain: &Domain) {
        while let Some((range, decoder)) = self.bus.memory.next_ready() {
            if let Decoder::Bar { function, bar } = decoder
                && let Some(Some(assigned)) = self.functions.get_mut(function)
            {
                assigned.map(domain, bar, range);
            }
        }
    }

    /// Gives a physical function to the domain, reset and quiet. On an error nothing is changed.
    pub(crate) fn assign(
        &mut self,
        domain: &Domain,
        config: &manifest::Function,
        wait: impl FnMut(u32),
    ) -> Result<(), AssignError> {
        self.functions
            .try_reserve(1)
            .map_err(|_| AssignError::NoMemory)?;
        self.bus
            .memory
            .reserve(BarIndex::RANGES)
            .map_err(|_| AssignError::NoMemory)?;
        let id = self.functions.len();
        self.bus
            .insert(config.slot, Owner::Vpci(id))
            .map_err(AssignError::Slot)?;
        match Assigned::take(domain, config, wait) {
            Ok(assigned) => self.functions.push(Some(assigned)),
            Err(error) => {
                self.bus.remove(config.slot);
                return Err(error);
            }
        }
        self.tell_siblings(config.slot);
        Ok(())
    }

    /// Tells the functions of a device which others it has now.
    fn tell_siblings(&mut self, of: Sbdf) {
        for assigned in self.functions.iter_mut().flatten() {
            let slot = assigned.slot();
            if slot.sibling(0) == of.sibling(0) {
                let multi = slot.function() == 0 && self.bus.is_multi_function(slot);
                assigned.set_siblings(multi, self.bus.next_function(slot));
            }
        }
    }

    /// Puts all functions into the state of power-on for a domain that starts again: returns the
    /// resets that this takes.
    pub(crate) fn reset(&mut self, domain: &Domain) -> Vec<Reset> {
        self.bridge.reset();
        let mut resets = Vec::new();
        for id in 0..self.functions.len() {
            if let Some(Some(assigned)) = self.functions.get_mut(id) {
                assigned.forget();
                self.carry_out(domain, id);
            }
            if let Some(Some(assigned)) = self.functions.get_mut(id) {
                resets.extend(assigned.start_reset(domain));
            }
        }
        resets
    }

    /// Makes functions usable again after their reset, which disables them.
    pub(crate) fn after_reset(&mut self, domain: &Domain) {
        for assigned in self.functions.iter_mut().flatten() {
            assigned.enable(domain);
        }
    }

    /// Makes one function usable again after its reset.
    pub(crate) fn after_function_reset(&mut self, domain: &Domain, id: usize) {
        if let Some(Some(assigned)) = self.functions.get_mut(id) {
            assigned.enable(domain);
        }
    }

    /// Takes the functions away from a domain that stops for good: they reach nothing, and interrupt
    /// nobody.
    pub(crate) fn silence(&mut self, domain: &Domain) {
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

/// Carries resets out a step; returns after how many milliseconds to come back, or `None` when all
/// are done.
pub(crate) fn step(resets: &mut Vec<Reset>) -> Option<u32> {
    let physical = physical::get()?;
    let mut wait = None;
    resets.retain_mut(
        |reset| match reset.step(&physical.config, &physical.found) {
            Ok(Progress::Wait(milliseconds)) => {
                wait = Some(wait.map_or(milliseconds, |least: u32| least.min(milliseconds)));
                true
            }
            Ok(Progress::Done) => false,
            Err(error) => {
                error!("a reset failed: {error:?}");
                false
            }
        },
    );
    wait
}

/// Keeps the name of what takes messages in one place.
pub(crate) fn message_interrupt(lpi: u32) {
    if let Some(messages) = physical::get().and_then(|physical| physical.messages.as_ref()) {
        Messages::interrupt(messages, lpi);
    }
}
