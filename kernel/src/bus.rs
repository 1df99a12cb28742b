//! A domain's PCI bus: who answers, and what EL2 does when a guest programs a function.
//!
//! `vpci` decides, this module acts: an [`Effect`] becomes a stage 2 mapping, a register of the
//! device, or a route in the ITS.

use crate::domain::Domain;
use crate::memory::{self, TableFrames};
use crate::mmio::Mmio;
use crate::physical::{self, Ecam, Messages, Physical, VectorError, Vectors};
use alloc::vec::Vec;
use arch::address::{Ipa, PAGE_SIZE, Pa};
use arch::mmio::{Bus as _, Window};
use arch::table::Access;
use core::fmt;
use kernel::layout;
use pci::{Header, Method, Progress, Reset, ResetError};
use vpci::{
    BarInfo, BarRead, BarWrite, BuildError, BusAddress, BusError, BusRange, Change, Claimed,
    ConfigAccess, Decoder, Effect, Emulated, Message, Offset, Owner, PhysicalConfig, Pin, Position,
    Released, Sbdf, Setup, Size,
};

/// COMMAND (PCI Express Base Specification, 7.5.1.1.3).
const COMMAND: u16 = 0x04;
const MEMORY: u32 = 1 << 1;
const BUS_MASTER: u32 = 1 << 2;
const INTX_DISABLE: u32 = 1 << 10;

/// MSI-X Message Control (7.7.2.2): Enable and Function Mask.
const MSIX_ENABLE: u32 = 1 << 15;
const MSIX_MASK: u32 = 1 << 14;
/// An MSI-X table entry (7.7.2.5 on): address, data, Vector Control with its mask bit.
const ENTRY: u64 = 16;
const ENTRY_DATA: u64 = 8;
const ENTRY_CONTROL: u64 = 12;
const ENTRY_MASKED: u32 = 1;

/// MSI Message Control (7.7.1.2): Enable, Multiple Message Enable, 64-bit, Per-Vector Masking.
const MSI_ENABLE: u32 = 1;
const MSI_MULTIPLE: u32 = 0b111 << 4;
const MSI_WIDE: u32 = 1 << 7;
const MSI_MASKABLE: u32 = 1 << 8;

type Model = vpci::Function<pci::Function<'static, Ecam>>;

/// A domain's bus.
pub(crate) struct Bus {
    bus: vpci::Bus<usize>,
    bridge: Emulated,
    stub: Emulated,
    /// Passed-through functions; a place stays empty when its function is taken back.
    functions: Vec<Option<Assigned>>,
}

/// A function that a domain was given.
struct Assigned {
    slot: Sbdf,
    /// Its place in the machine's hierarchy.
    index: usize,
    model: Model,
    /// The parts of its BARs that are not mapped for the guest: where, and their registers.
    trapped: Vec<(u64, Window)>,
    vectors: Option<Vectors>,
    reset: Option<Method>,
    /// COMMAND as the device has it.
    command: u32,
}

/// Why a function was not assigned.
pub(crate) enum AssignError {
    /// The machine has no such function.
    NotThere,
    /// It is no endpoint, or has no place in the machine's windows.
    NotUsable,
    /// A domain has it.
    Taken,
    /// The domain was made without IOMMU.
    NoIommu,
    /// No SMMU checks its DMA.
    NotIsolated,
    /// It cannot be kept apart from this one, which the domain does not get.
    Group(Sbdf, Option<pci::Reason>),
    /// It cannot be reset.
    NoReset,
    /// Its reset failed.
    Reset(ResetError),
    /// It cannot be shown to a guest.
    Build(BuildError),
    /// The slot cannot be had.
    Slot(BusError),
    /// Its interrupts cannot be had.
    Vectors(VectorError),
    /// The SMMU refused.
    Smmu(arch::smmu::Error),
    /// There is no memory left.
    NoMemory,
}

impl fmt::Display for AssignError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotThere => f.write_str("the machine has no such function"),
            Self::NotUsable => {
                f.write_str("it is a bridge, or has no place in the machine's windows")
            }
            Self::Taken => f.write_str("another domain has it"),
            Self::NoIommu => f.write_str("the domain was made without iommu"),
            Self::NotIsolated => f.write_str("no SMMU checks its DMA"),
            Self::Group(other, reason) => {
                write!(f, "it goes with {other}, which the domain does not have")?;
                match reason {
                    Some(reason) => write!(f, " ({reason:?})"),
                    None => Ok(()),
                }
            }
            Self::NoReset => {
                f.write_str("it cannot be reset; say allow_no_reset to give it all the same")
            }
            Self::Reset(error) => write!(f, "its reset failed: {error:?}"),
            Self::Build(error) => write!(f, "{error}"),
            Self::Slot(error) => write!(f, "{error}"),
            Self::Vectors(error) => write!(f, "{error}"),
            Self::Smmu(error) => write!(f, "{error}"),
            Self::NoMemory => f.write_str("there is no memory left"),
        }
    }
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

    /// Decodes an access at `offset` of the ECAM window.
    #[inline]
    pub(crate) fn decode(&self, offset: u64, bytes: u64) -> Option<ConfigAccess> {
        self.bus.decode(offset, bytes)
    }

    /// Answers a config read.
    #[inline]
    pub(crate) fn config_read(&self, access: ConfigAccess) -> Answer {
        Answer::Done(u64::from(match self.bus.route(access.sbdf()) {
            None => access.size().mask(),
            Some(Owner::Vpci(id)) => match self.functions.get(id) {
                Some(Some(function)) => function.model.read(access),
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
                    && function.model.write(access, value) == Change::Effects
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
            None => Answer::Done(match assigned.model.read_bar(bar, offset, mmio.bytes()) {
                BarRead::Value(value) => value,
                BarRead::Device { host } => assigned.load(host, mmio.bytes()),
            }),
            Some(value) => {
                match assigned.model.write_bar(bar, offset, mmio.bytes(), value) {
                    BarWrite::Done(Change::None) => {}
                    BarWrite::Done(Change::Effects) => {
                        if let Some(reset) = self.carry_out(domain, function) {
                            return Answer::Resetting(function, reset);
                        }
                    }
                    BarWrite::Device { host } => assigned.store(host, mmio.bytes(), value),
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
        let physical = physical::get()?;
        let mut reset = None;
        while let Some(Some(assigned)) = self.functions.get_mut(id)
            && let Some(effect) = assigned.model.next_effect()
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
                Effect::BusMaster { enabled } => {
                    assigned.set_command(BUS_MASTER, enabled);
                }
                Effect::Intx { enabled: _ } => {}
                Effect::Msix { enabled, masked } => assigned.set_msix(physical, enabled, masked),
                Effect::MsixVector { vector, message } => {
                    assigned.set_vector(physical, domain, vector, message);
                }
                Effect::Msi(msi) => assigned.set_msi(physical, domain, msi),
                Effect::Reset => {
                    reset = assigned
                        .reset
                        .map(|method| physical.found.reset(assigned.index, method));
                }
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
        let host = config.host.ok_or(AssignError::NotThere)?;
        let physical = physical::get().ok_or(AssignError::NotThere)?;
        let index = physical.found.position(host).ok_or(AssignError::NotThere)?;
        let device = &physical.found.devices()[index];
        if !matches!(device.header, Header::Endpoint) || !device.usable {
            return Err(AssignError::NotUsable);
        }
        let dma = domain.dma.as_ref().ok_or(AssignError::NoIommu)?;
        if !physical.is_behind_smmu(index) {
            return Err(AssignError::NotIsolated);
        }
        let has = |sbdf: Sbdf| {
            domain
                .config
                .functions
                .iter()
                .any(|function| function.host == Some(sbdf))
        };
        if let Some(other) = physical
            .groups
            .members(&physical.found, index)
            .find(|m| !has(m.sbdf))
        {
            return Err(AssignError::Group(
                other.sbdf,
                physical.groups.reason(index),
            ));
        }
        let method = physical.found.reset_method(index, has);
        if method.is_none() && !config.allow_no_reset {
            return Err(AssignError::NoReset);
        }
        {
            let mut owners = physical.owners.lock();
            if owners[index].is_some() {
                return Err(AssignError::Taken);
            }
            owners[index] = Some(domain.id);
        }
        let given = self.give(domain, config, physical, index, method, dma, wait);
        if given.is_err() {
            physical.detach(index);
            physical.owners.lock()[index] = None;
        }
        given
    }

    #[expect(clippy::too_many_arguments, reason = "the second half of `assign`")]
    fn give(
        &mut self,
        domain: &Domain,
        config: &manifest::Function,
        physical: &'static Physical,
        index: usize,
        method: Option<Method>,
        dma: &physical::Dma,
        wait: impl FnMut(u32),
    ) -> Result<(), AssignError> {
        let device = &physical.found.devices()[index];
        if let Some(method) = method {
            let reset = physical.found.reset(index, method);
            reset
                .run(&physical.config, &physical.found, wait)
                .map_err(AssignError::Reset)?;
        }
        let bars: Vec<BarInfo> = device
            .bars
            .iter()
            .flatten()
            .filter_map(|bar| bar.info())
            .collect();
        let setup = Setup {
            bars: &bars,
            doorbell: BusAddress::new(layout::DOORBELL),
            position: Position::RootBus,
            pin: Pin::Hidden,
        };
        let config_space = pci::Function::new(&physical.config, device.sbdf);
        let model = vpci::Function::new(config_space, &setup).map_err(AssignError::Build)?;
        let wanted = vectors_of(physical, index, &model);
        let vectors = match (&physical.messages, physical.device_id(index)) {
            (Some(messages), Some(id)) if wanted > 0 => Some(
                messages
                    .allocate(id, wanted)
                    .map_err(AssignError::Vectors)?,
            ),
            _ => None,
        };
        let trapped = map_trapped(&model).map_err(|_| AssignError::NoMemory);
        let inserted = trapped.and_then(|trapped| {
            self.functions
                .try_reserve(1)
                .map_err(|_| AssignError::NoMemory)?;
            self.bus
                .memory
                .reserve(6)
                .map_err(|_| AssignError::NoMemory)?;
            physical
                .attach(index, domain, dma)
                .map_err(AssignError::Smmu)?;
            let id = self.functions.len();
            self.bus
                .insert(config.slot, Owner::Vpci(id))
                .map_err(AssignError::Slot)?;
            Ok(trapped)
        });
        let trapped = match inserted {
            Ok(trapped) => trapped,
            Err(error) => {
                if let (Some(messages), Some(vectors)) = (&physical.messages, vectors) {
                    messages.free(vectors);
                }
                return Err(error);
            }
        };
        let mut assigned = Assigned {
            slot: config.slot,
            index,
            model,
            trapped,
            vectors,
            reset: method,
            command: INTX_DISABLE,
        };
        assigned.set_command(MEMORY, true);
        self.functions.push(Some(assigned));
        let first = Sbdf::from_rid(0, config.slot.rid() & !7);
        let multi = self.bus.is_multi_function(first);
        for assigned in self.functions.iter_mut().flatten() {
            if assigned.slot.rid() == first.rid() {
                assigned.model.set_multi_function(multi);
            }
        }
        Ok(())
    }

    /// Puts all functions into the state of power-on for a domain that starts again: returns the
    /// resets that this takes.
    pub(crate) fn reset(&mut self, domain: &Domain) -> Vec<Reset> {
        self.bridge.reset();
        let mut resets = Vec::new();
        for id in 0..self.functions.len() {
            let Some(Some(assigned)) = self.functions.get_mut(id) else {
                continue;
            };
            let _ = assigned.model.reset();
            self.carry_out(domain, id);
            if let (Some(Some(assigned)), Some(physical)) =
                (self.functions.get_mut(id), physical::get())
                && let Some(method) = assigned.reset
            {
                resets.push(physical.found.reset(assigned.index, method));
            }
        }
        resets
    }

    /// Makes functions usable again after their reset, which disables them.
    pub(crate) fn after_reset(&mut self) {
        for assigned in self.functions.iter_mut().flatten() {
            assigned.command = INTX_DISABLE;
            assigned.set_command(MEMORY, true);
        }
    }

    /// Makes one function usable again after its reset.
    pub(crate) fn after_function_reset(&mut self, id: usize) {
        if let Some(Some(assigned)) = self.functions.get_mut(id) {
            let master = assigned.command & BUS_MASTER;
            assigned.command = INTX_DISABLE | master;
            assigned.set_command(MEMORY, true);
        }
    }

    /// Takes the functions away from a domain that stops for good: they reach nothing, and interrupt
    /// nobody.
    pub(crate) fn silence(&mut self, domain: &Domain) {
        let Some(physical) = physical::get() else {
            return;
        };
        for id in 0..self.functions.len() {
            if let Some(Some(assigned)) = self.functions.get_mut(id) {
                let _ = assigned.model.reset();
                self.carry_out(domain, id);
            }
            if let Some(Some(assigned)) = self.functions.get_mut(id) {
                assigned.set_command(BUS_MASTER | MEMORY, false);
                physical.detach(assigned.index);
            }
        }
    }
}

/// Returns how many vectors a function can have.
fn vectors_of(physical: &Physical, index: usize, model: &Model) -> u32 {
    if let Some(layout) = model.msix_layout() {
        return u32::from(layout.vectors).max(msi_vectors(physical, index));
    }
    msi_vectors(physical, index)
}

fn msi_vectors(physical: &Physical, index: usize) -> u32 {
    let device = &physical.found.devices()[index];
    let Some(offset) = device.capabilities.msi else {
        return 0;
    };
    let config = pci::Function::new(&physical.config, device.sbdf);
    // Multiple Message Capable: 6 and 7 are reserved.
    1 << (config.read(after(offset, 2), Size::Two) >> 1 & 7).min(5)
}

fn after(offset: Offset, bytes: u16) -> Offset {
    Offset::in_function(u64::from(offset.get() + bytes))
}

/// Maps what a guest does not reach by itself for EL2, which answers for it.
fn map_trapped(model: &Model) -> Result<Vec<(u64, Window)>, &'static str> {
    let mut trapped = Vec::new();
    for bar in model.bars() {
        let end = bar.host + bar.size;
        let mut at = bar.host & !(PAGE_SIZE - 1);
        let mut add = |from: u64, to: u64| {
            if from < to {
                // SAFETY: registers of the function, which was just taken over; the parts of its
                // BARs do not overlap, and the guest does not reach them.
                trapped.push((from, unsafe { memory::map_device(from, to - from)? }));
            }
            Ok::<(), &'static str>(())
        };
        if bar.kind == vpci::BarKind::Io {
            continue;
        }
        for pages in model.pages(bar.index) {
            add(at, pages.host)?;
            at = pages.host + pages.size;
        }
        add(at, end.next_multiple_of(8))?;
    }
    Ok(trapped)
}

impl Assigned {
    fn config(&self) -> &pci::Function<'static, Ecam> {
        self.model.device()
    }

    fn set_command(&mut self, bits: u32, on: bool) {
        self.command = if on {
            self.command | bits
        } else {
            self.command & !bits
        };
        self.config().write(
            Offset::in_function(u64::from(COMMAND)),
            Size::Two,
            self.command,
        );
    }

    /// Returns the registers that hold `host`, and where in them it is.
    fn registers(&self, host: u64, bytes: u64) -> Option<(&Window, usize)> {
        self.trapped.iter().find_map(|(start, window)| {
            let offset = host.checked_sub(*start)?;
            let fits = offset + bytes <= window.len() as u64 && offset.is_multiple_of(bytes);
            fits.then_some((window, usize::try_from(offset).ok()?))
        })
    }

    fn load(&self, host: u64, bytes: u64) -> u64 {
        let Some((window, offset)) = self.registers(host, bytes) else {
            return u64::MAX;
        };
        match bytes {
            1 => window.read8(offset).into(),
            2 => window.read16(offset).into(),
            4 => window.read32(offset).into(),
            _ => window.read64(offset),
        }
    }

    #[expect(
        clippy::cast_possible_truncation,
        reason = "the width says how much is stored"
    )]
    fn store(&self, host: u64, bytes: u64, value: u64) {
        let Some((window, offset)) = self.registers(host, bytes) else {
            return;
        };
        match bytes {
            1 => window.write8(offset, value as u8),
            2 => window.write16(offset, value as u16),
            4 => window.write32(offset, value as u32),
            _ => window.write64(offset, value),
        }
    }

    fn map(&self, domain: &Domain, bar: vpci::BarIndex, range: BusRange) {
        let mut stage2 = domain.stage2.lock();
        let Some(stage2) = stage2.as_mut() else {
            return;
        };
        for pages in self.model.pages(bar) {
            let ipa = Ipa::new(range.start().get() + pages.offset);
            let pa = Pa::new(pages.host);
            let frames = &mut TableFrames::for_pcpus();
            if let Err(error) = stage2.map(frames, ipa, pa, pages.size, Access::REGISTERS) {
                // What is not mapped reads ones; the guest's driver finds a device that is gone.
                error!(
                    "domain {}: {} {bar} is not mapped: {error:?}",
                    domain.name(),
                    self.slot
                );
            }
        }
    }

    fn unmap(&self, domain: &Domain, bar: vpci::BarIndex, range: BusRange) {
        let mut stage2 = domain.stage2.lock();
        let Some(stage2) = stage2.as_mut() else {
            return;
        };
        for pages in self.model.pages(bar) {
            let ipa = Ipa::new(range.start().get() + pages.offset);
            let frames = &mut TableFrames::for_pcpus();
            let tlb = physical::cpu_tlb(domain);
            if let Err(error) = stage2.unmap(frames, &tlb, ipa, pages.size) {
                // Only splitting a block needs memory, and what `map` mapped is unmapped whole.
                panic!("{} {bar} stays mapped: {error:?}", self.slot);
            }
        }
    }

    fn set_msix(&self, physical: &Physical, enabled: bool, masked: bool) {
        let Some(offset) = physical.found.devices()[self.index].capabilities.msix else {
            return;
        };
        let on = |on: bool, bit: u32| if on { bit } else { 0 };
        let control = on(enabled, MSIX_ENABLE) | on(masked, MSIX_MASK);
        self.config().write(after(offset, 2), Size::Two, control);
    }

    fn set_vector(&self, physical: &Physical, domain: &Domain, vector: u16, message: Message) {
        let Some(table) = self.model.msix_layout().map(|layout| layout.table) else {
            return;
        };
        let Some(bar) = self.model.bars().find(|bar| bar.index == table.bar) else {
            return;
        };
        let entry = bar.host + table.offset + u64::from(vector) * ENTRY;
        let (Some(messages), Some(vectors)) = (&physical.messages, &self.vectors) else {
            return;
        };
        self.store(entry + ENTRY_CONTROL, 4, ENTRY_MASKED.into());
        let event = u32::from(vector);
        match message {
            Message::Live { data } => {
                messages.route(vectors, event, Some((domain, self.slot.rid().into(), data)));
                let doorbell = messages.doorbell();
                self.store(entry, 4, doorbell & 0xffff_ffff);
                self.store(entry + 4, 4, doorbell >> 32);
                self.store(entry + ENTRY_DATA, 4, event.into());
                self.store(entry + ENTRY_CONTROL, 4, 0);
            }
            Message::Off => messages.route(vectors, event, None),
            Message::Misdirected { address } => {
                messages.route(vectors, event, None);
                let name = domain.name();
                warning!(
                    "domain {name}: {} aims an MSI at {address}: stopped",
                    self.slot
                );
            }
        }
    }

    fn set_msi(&self, physical: &Physical, domain: &Domain, msi: vpci::Msi) {
        let Some(offset) = physical.found.devices()[self.index].capabilities.msi else {
            return;
        };
        let (Some(messages), Some(vectors)) = (&physical.messages, &self.vectors) else {
            return;
        };
        let control =
            self.config().read(after(offset, 2), Size::Two) & !(MSI_ENABLE | MSI_MULTIPLE);
        self.config().write(after(offset, 2), Size::Two, control);
        let Message::Live { data } = msi.message else {
            for event in 0..u32::from(msi.vectors) {
                messages.route(vectors, event, None);
            }
            return;
        };
        for event in 0..u32::from(msi.vectors) {
            let base = data & !(u32::from(msi.vectors) - 1);
            let to = (domain, u32::from(self.slot.rid()), base | event);
            messages.route(vectors, event, Some(to));
        }
        let doorbell = messages.doorbell();
        let (low, high) = ((doorbell & 0xffff_ffff) as u32, (doorbell >> 32) as u32);
        if control & MSI_WIDE == 0 && high != 0 {
            warning!(
                "{}: its MSIs have 32-bit addresses and reach no ITS",
                self.slot
            );
            return;
        }
        self.config().write(after(offset, 4), Size::Four, low);
        let mut data_at = 8;
        if control & MSI_WIDE != 0 {
            self.config().write(after(offset, 8), Size::Four, high);
            data_at = 12;
        }
        self.config().write(after(offset, data_at), Size::Two, 0);
        if control & MSI_MASKABLE != 0 {
            self.config()
                .write(after(offset, data_at + 4), Size::Four, msi.mask);
        }
        let count = u32::from(msi.vectors).trailing_zeros() << 4;
        self.config()
            .write(after(offset, 2), Size::Two, control | count | MSI_ENABLE);
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
