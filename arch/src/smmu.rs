//! SMMUv3: what stands between devices and memory.
//!
//! ```text
//!   StreamID --> stream table entry --> stage 2 (or stage 1) tables --> memory
//!                 abort | translate            |
//!                                              +--> event queue: what was refused, and why
//!   command queue: forget what you cached of an entry, of a translation
//! ```
//!
//! [`abort_all`] comes first, before any device is touched; then [`Smmu::new`] with every stream
//! refused; then [`Smmu::attach`] for each stream that a domain is given.
//!
//! EL2 uses stage 2 where there is one. An SMMU with stage 1 only is used as if it were stage 2, with
//! tables in stage 1's format that nobody but EL2 can change: [`Smmu::format`] says which it is.
//!
//! Arm System Memory Management Unit Architecture Specification, SMMU architecture version 3
//! (IHI 0070); sections below are of that document. Issue G has a register more: there, sections of
//! registers from 6.3.17 on are one further.

use crate::address::{Ipa, PAGE_SIZE, Pa};
use crate::dma::{Coherency, Memory, Pool};
use crate::mmio::{Bus, Timeout, wait_until};
use alloc::vec::Vec;
use core::fmt;

mod command;
mod event;
mod queue;
mod registers;
mod stream;
#[cfg(test)]
mod tests;

pub use event::{Access, Event, Kind};

use command::{Command, Scope};
use queue::{CommandQueue, EventQueue};
use registers::*;
use stream::StreamTable;

/// The most events that wait to be read.
pub const EVENTS: usize = 1 << queue::EVENTS;

/// Why the SMMU does not do as asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// A register write is never acknowledged, or a command never carried out.
    Timeout,
    /// It cannot read its commands.
    Unreadable,
    /// It was turned off, for good.
    Off,
    /// The SMMU lacks something that we cannot do without.
    Lacks(&'static str),
    /// There is no memory for a table or a queue.
    OutOfMemory,
    /// Memory lies beyond what the SMMU can reach.
    OutOfReach(Pa),
    /// The stream table ends before this StreamID.
    NoSuchStream(u32),
    /// The stream belongs to an address space already.
    Attached(u32),
    /// The SMMU cannot translate this many bits of input address.
    InputBits(u8),
    /// The SMMU tells fewer address spaces apart.
    NoSuchId(u16),
    /// A command is refused: its number, and CMDQ_CONS.ERR.
    Rejected {
        /// The opcode (4.1).
        command: u8,
        /// The error code (7.1).
        reason: u8,
    },
}

impl From<Timeout> for Error {
    fn from(Timeout: Timeout) -> Self {
        Self::Timeout
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Timeout => f.write_str("the SMMU does not answer"),
            Self::Unreadable => f.write_str("the SMMU cannot read its commands"),
            Self::Off => f.write_str("the SMMU failed and is off"),
            Self::Lacks(what) => write!(f, "the SMMU lacks {what}"),
            Self::OutOfMemory => f.write_str("no memory for a table of the SMMU"),
            Self::OutOfReach(pa) => write!(f, "the SMMU does not reach {pa}"),
            Self::NoSuchStream(id) => write!(f, "the SMMU has no StreamID {id:#x}"),
            Self::Attached(id) => write!(f, "StreamID {id:#x} belongs to a domain already"),
            Self::InputBits(bits) => write!(f, "the SMMU does not translate {bits} bits"),
            Self::NoSuchId(id) => write!(f, "the SMMU has no VMID or ASID {id}"),
            Self::Rejected { command, reason } => {
                write!(
                    f,
                    "the SMMU refuses command {command:#04x} (error {reason})"
                )
            }
        }
    }
}

/// Which stage translates, and so what the descriptors in its tables look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// VMSAv8-64 stage 1, of the EL1&0 regime, as an SMMU without stage 2 needs it: 4 KiB granule,
    /// AF set, AP[1] set (a device's accesses are unprivileged), nG set (else an entry would hold for
    /// every ASID), UXN and PXN set, AttrIndx one of [`Format::NORMAL`] and [`Format::DEVICE`].
    Stage1,
    /// VMSAv8-64 stage 2: 4 KiB granule, AF set, no concatenated tables.
    Stage2,
}

impl Format {
    /// AttrIndx of normal memory, write-back cacheable, in stage 1.
    pub const NORMAL: u64 = 0;
    /// AttrIndx of Device-nGnRE memory in stage 1.
    pub const DEVICE: u64 = 1;
}

/// What translates the addresses of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressSpace {
    /// The first table, in the SMMU's [`Format`]; of the level that `input_bits` asks for: level 0
    /// for 40 bits or more, level 1 for 31 or more, else level 2.
    pub root: Pa,
    /// Its VMID (its ASID, in stage 1). No other address space of this SMMU has the same.
    pub id: u16,
    /// Bits of an input address.
    pub input_bits: u8,
    /// No table is at this address or above, and none leads there.
    pub end: Pa,
}

/// What the SMMU can do (6.3.1 to 6.3.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Capabilities {
    /// Stage 1 translates.
    stage1: bool,
    /// Stage 2 translates.
    stage2: bool,
    /// The SMMU snoops when it reads tables and queues.
    coherency: Coherency,
    /// Bits of a physical address, 48 at most.
    output_bits: u8,
    /// Bits of a StreamID.
    stream_bits: u8,
    /// The stream table can have two levels.
    two_level: bool,
    /// Logarithm of the number of commands that a queue can hold.
    command_queue: u8,
    /// Logarithm of the number of events that a queue can hold.
    event_queue: u8,
    /// One command can invalidate a range of addresses.
    range_invalidation: bool,
    /// Bits of a VMID (of an ASID, without stage 2).
    id_bits: u8,
    /// The SMMU keeps translations for hypervisors.
    hypervisor: bool,
    /// Devices can ask for translations beforehand.
    ats: bool,
    /// The SMMU can send its interrupts as messages.
    msi: bool,
    /// A stream can be told not to stall.
    stall: bool,
}

impl Capabilities {
    /// Reads the ID registers, and checks that the SMMU can do what we need. `wired` is how firmware
    /// says that it is connected: an SMMU that could snoop may be where it cannot.
    fn read(bus: &impl Bus, wired: Coherency) -> Result<Self, Error> {
        let idr0 = SMMU_IDR0.read(bus);
        let idr1 = SMMU_IDR1.read(bus);
        let idr5 = SMMU_IDR5.read(bus);
        let (stage1, stage2) = (idr0.is_set(IDR0::S1P), idr0.is_set(IDR0::S2P));
        for (there, what) in [
            (bus.len() >= BYTES, "its second page of registers"),
            (stage1 || stage2, "a stage of translation"),
            (idr0.read(IDR0::TTF) & 0b10 != 0, "AArch64 tables"),
            (idr0.read(IDR0::TTENDIAN) != 3, "little-endian tables"),
            (idr5.is_set(IDR5::GRAN4K), "the 4 KiB granule"),
            (
                !idr1.is_set(IDR1::TABLES_PRESET),
                "a stream table of our own",
            ),
            (!idr1.is_set(IDR1::QUEUES_PRESET), "queues of our own"),
            // A PCI function whose access stalls may stop others (3.12).
            (idr0.read(IDR0::STALL_MODEL) != 2, "faults that end"),
        ] {
            there.then_some(()).ok_or(Error::Lacks(what))?;
        }
        let wide = if stage2 {
            idr0.is_set(IDR0::VMID16)
        } else {
            idr0.is_set(IDR0::ASID16)
        };
        Ok(Self {
            stage1,
            stage2,
            coherency: match (idr0.is_set(IDR0::COHACC), wired) {
                (true, Coherency::Coherent) => Coherency::Coherent,
                _ => Coherency::Software,
            },
            output_bits: match idr5.read(IDR5::OAS) {
                0 => 32,
                1 => 36,
                2 => 40,
                3 => 42,
                4 => 44,
                _ => 48,
            },
            stream_bits: byte(idr1.read(IDR1::SIDSIZE)).min(32),
            two_level: idr0.read(IDR0::ST_LEVEL) == 1,
            command_queue: byte(idr1.read(IDR1::CMDQS)).min(19),
            event_queue: byte(idr1.read(IDR1::EVENTQS)).min(19),
            range_invalidation: SMMU_IDR3.read(bus).is_set(IDR3::RIL),
            id_bits: if wide { 16 } else { 8 },
            hypervisor: idr0.is_set(IDR0::HYP),
            ats: idr0.is_set(IDR0::ATS),
            msi: idr0.is_set(IDR0::MSI),
            stall: idr0.read(IDR0::STALL_MODEL) == 0,
        })
    }

    /// Returns which stage translates for us.
    const fn format(&self) -> Format {
        if self.stage2 {
            Format::Stage2
        } else {
            Format::Stage1
        }
    }

    /// Returns the widest input address that can be translated.
    ///
    /// Stage 2 takes no more than the SMMU puts out (5.2, STE.S2T0SZ).
    const fn input_bits(&self) -> u8 {
        if self.stage2 { self.output_bits } else { 48 }
    }

    fn check(&self, space: &AddressSpace) -> Result<(), Error> {
        if !(25..=self.input_bits()).contains(&space.input_bits) {
            return Err(Error::InputBits(space.input_bits));
        }
        if u32::from(space.id) >> self.id_bits != 0 {
            return Err(Error::NoSuchId(space.id));
        }
        if space.root.get() >> self.output_bits != 0 || !space.root.is_aligned(PAGE_SIZE) {
            return Err(Error::OutOfReach(space.root));
        }
        // Of what lies above, the SMMU would drop the upper bits (3.4).
        if space.end.get() > 1 << self.output_bits {
            return Err(Error::OutOfReach(space.end));
        }
        Ok(())
    }

    fn reaches(&self, memory: &Memory) -> Result<(), Error> {
        match memory.pa().get() + memory.len() as u64 <= 1 << self.output_bits {
            true => Ok(()),
            false => Err(Error::OutOfReach(memory.pa())),
        }
    }
}

/// Returns a field of a few bits.
const fn byte(field: u32) -> u8 {
    (field & 0xff) as u8
}

/// What is wrong with the SMMU as a whole (7.5), since it was asked last: GERROR's bits of all that is
/// active.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GlobalErrors(u32);

impl GlobalErrors {
    /// Returns whether events were lost: they could not be written, or there was no room.
    pub fn events_lost(&self) -> bool {
        GERROR::EVENTQ_ABT_ERR.is_set(self.0)
    }

    /// Returns whether the SMMU has given up (service failure mode, 12.3): nothing passes any more,
    /// and it carries no command out.
    pub fn service_failure(&self) -> bool {
        GERROR::SFM_ERR.is_set(self.0)
    }
}

impl fmt::Display for GlobalErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut left = self.0;
        let mut separator = "";
        for (field, what) in [
            (GERROR::SFM_ERR, "service failure"),
            (GERROR::EVENTQ_ABT_ERR, "events lost"),
            (GERROR::PRIQ_ABT_ERR, "page requests lost"),
            (GERROR::MSI_CMDQ_ABT_ERR, "message about commands lost"),
            (GERROR::MSI_EVENTQ_ABT_ERR, "message about events lost"),
            (GERROR::MSI_PRIQ_ABT_ERR, "message about page requests lost"),
            (GERROR::MSI_GERROR_ABT_ERR, "message about errors lost"),
        ] {
            if field.is_set(self.0) {
                write!(f, "{separator}{what}")?;
                left &= !(field.mask << field.shift);
                separator = ", ";
            }
        }
        match left {
            0 => Ok(()),
            left => write!(f, "{separator}GERROR {left:#x}"),
        }
    }
}

/// Refuses every access of every device: the first thing to do with an SMMU.
///
/// What firmware may have set up is turned off, and nothing bypasses the SMMU while it is off
/// (6.3.14).
pub fn abort_all(bus: &impl Bus) -> Result<(), Error> {
    let idle = || !SMMU_GBPA.read(bus).is_set(GBPA::UPDATE);
    wait_until(idle)?;
    SMMU_GBPA.modify(bus, GBPA::ABORT::SET + GBPA::UPDATE::SET);
    wait_until(idle)?;
    SMMU_CR0.set(bus, 0);
    wait_until(|| SMMU_CR0ACK.get(bus) & !CR0_IGNORED == 0)?;
    Ok(())
}

/// A field of CR0ACK that reads as zero where it does nothing.
const CR0_IGNORED: u32 = CR0::ATSCHK::SET.value;

/// An SMMU.
#[derive(Debug)]
pub struct Smmu<B> {
    bus: B,
    capabilities: Capabilities,
    commands: CommandQueue,
    events: EventQueue,
    streams: StreamTable,
    /// Context descriptors by StreamID: stage 1 only.
    contexts: Vec<(u32, Memory)>,
    /// It was turned off, and refuses everything.
    off: bool,
    /// It has given up by itself, and refuses everything (12.3).
    service_failure: bool,
}

impl<B: Bus> Smmu<B> {
    /// Takes the SMMU over and turns it on, with every stream refused. StreamIDs up to `streams`
    /// less one get a place: what the machine's `iommu-map` leads to, cut to what the SMMU has.
    /// `wired` says whether firmware takes it to be where it can snoop.
    ///
    /// Also does [`abort_all`], if it has not been done.
    pub fn new(
        bus: B,
        wired: Coherency,
        streams: u64,
        pool: &mut impl Pool,
    ) -> Result<Self, Error> {
        abort_all(&bus)?;
        let capabilities = Capabilities::read(&bus, wired)?;
        reset(&bus, &capabilities)?;
        let streams = StreamTable::new(&capabilities, streams, pool)?;
        let commands = CommandQueue::new(&capabilities, pool)?;
        let events = EventQueue::new(&capabilities, pool)?;
        streams.install(&bus);
        commands.install(&bus);
        events.install(&bus);
        let contexts = Vec::new();
        let mut smmu = Self {
            bus,
            capabilities,
            commands,
            events,
            streams,
            contexts,
            off: false,
            service_failure: false,
        };
        smmu.turn_on()?;
        Ok(smmu)
    }

    /// Turns the queues on, has the SMMU forget what it cached under firmware, and then turns
    /// translation on.
    fn turn_on(&mut self) -> Result<(), Error> {
        let ats = if self.capabilities.ats {
            CR0::ATSCHK::SET
        } else {
            CR0::ATSCHK::CLEAR
        };
        let on = |fields| set_cr0(&self.bus, ats + fields);
        on(CR0::CMDQEN::SET)?;
        if self.capabilities.hypervisor {
            self.commands
                .run(&self.bus, [Command::InvalidateHypervisor])?;
        }
        self.commands.run(
            &self.bus,
            [Command::ForgetStreams, Command::InvalidateEverything],
        )?;
        on(CR0::CMDQEN::SET + CR0::EVENTQEN::SET)?;
        on(CR0::CMDQEN::SET + CR0::EVENTQEN::SET + CR0::SMMUEN::SET)
    }

    /// Returns what tables an address space must have.
    pub fn format(&self) -> Format {
        self.capabilities.format()
    }

    /// Returns whether tables have to be cleaned to the point of coherency for the SMMU to see them.
    pub fn coherency(&self) -> Coherency {
        self.capabilities.coherency
    }

    /// Translates a stream's addresses from now on, which was refused before.
    ///
    /// What the SMMU may have cached under `space.id` is from this address space. On an error the
    /// stream is refused; if [`Smmu::is_attached`] then says so, the SMMU may not know that yet, and
    /// it has to be detached before the tables can go.
    pub fn attach(
        &mut self,
        stream: u32,
        space: &AddressSpace,
        pool: &mut impl Pool,
    ) -> Result<(), Error> {
        if self.off {
            return Err(Error::Off);
        }
        self.capabilities.check(space)?;
        self.streams.provide(stream, &self.capabilities, pool)?;
        if !self.streams.is_clear(stream)? {
            return Err(Error::Attached(stream));
        }
        let entry = match self.format() {
            Format::Stage2 => stream::stage2(space, &self.capabilities),
            Format::Stage1 => {
                let context = self.context(stream, space, pool)?;
                stream::stage1(context, &self.capabilities)
            }
        };
        // It refuses as long as its first word does; all else is there before (3.21.3.1).
        self.streams.write_rest(stream, &entry)?;
        if let Err(error) = self.forget(stream) {
            self.streams.write_rest(stream, &[0; stream::WORDS])?;
            return Err(error);
        }
        self.resume(stream)
    }

    /// Refuses the accesses of a stream that is attached until [`Smmu::resume`], without recording
    /// them. What was let through before may still be under way.
    pub fn refuse(&mut self, stream: u32) -> Result<(), Error> {
        if self.off || !self.is_attached(stream) {
            return Ok(());
        }
        self.streams.write_first(stream, stream::ABORT)?;
        self.forget(stream)
    }

    /// Translates the accesses of a stream again, if it is attached. One that is listened to has no
    /// tables, and stays refused.
    pub fn resume(&mut self, stream: u32) -> Result<(), Error> {
        if self.off {
            return Err(Error::Off);
        }
        if !self.is_attached(stream) || self.streams.first(stream)? == stream::INVALID {
            return Ok(());
        }
        let context = self.context_of(stream).map(Memory::pa);
        self.streams.write_first(stream, stream::first(context))?;
        let seen = self.forget(stream);
        if seen.is_err() {
            // The rest stays: the SMMU may have read the entry meanwhile.
            self.streams.write_first(stream, stream::ABORT)?;
        }
        seen
    }

    /// Turns the SMMU off for good: it refuses everything that comes from then on, and what it cached
    /// means nothing. For one that does not carry commands out; if it does not take this either,
    /// nothing is known of what it lets through, unless it has given up by itself.
    ///
    /// What has passed it before may still be on its way to memory (6.3.9.6): that is for whoever
    /// stops the devices to wait for.
    pub fn turn_off(&mut self) -> Result<(), Error> {
        let shut = abort_all(&self.bus);
        self.off = shut.is_ok() || self.service_failure;
        match self.off {
            true => Ok(()),
            false => shut,
        }
    }

    /// Returns whether it was turned off.
    pub fn is_off(&self) -> bool {
        self.off
    }

    /// Makes a stream's context descriptor, and returns where it is.
    fn context(
        &mut self,
        stream: u32,
        space: &AddressSpace,
        pool: &mut impl Pool,
    ) -> Result<Pa, Error> {
        self.contexts
            .try_reserve(1)
            .map_err(|_| Error::OutOfMemory)?;
        let memory = match self.contexts.iter().position(|(of, _)| *of == stream) {
            // Of an attempt that failed.
            Some(at) => self.contexts.swap_remove(at).1,
            None => pool
                .take(stream::CONTEXT_BYTES, 64)
                .ok_or(Error::OutOfMemory)?,
        };
        for (n, word) in stream::context(space, &self.capabilities)
            .into_iter()
            .enumerate()
        {
            memory.write64(8 * n, word);
        }
        memory.publish_all(self.coherency());
        let pa = memory.pa();
        self.contexts.push((stream, memory));
        Ok(pa)
    }

    /// Refuses a stream's accesses from now on. When this returns none is under way any more that
    /// was let through before; if it fails, one may be. A stream without a place is refused anyway.
    pub fn detach(&mut self, stream: u32, pool: &mut impl Pool) -> Result<(), Error> {
        if !self.is_attached(stream) {
            return Ok(());
        }
        let id = self.streams.id(stream, self.context_of(stream))?;
        self.streams.write_first(stream, stream::ABORT)?;
        self.forget(stream)?;
        self.invalidate_all(id)?;
        self.streams.write_rest(stream, &[0; stream::WORDS])?;
        self.forget(stream)?;
        if let Some(at) = self.contexts.iter().position(|(of, _)| *of == stream) {
            pool.give_back(self.contexts.swap_remove(at).1);
        }
        Ok(())
    }

    /// Refuses a stream's accesses, as before, but records each as an event: its entry is not valid
    /// (C_BAD_STE, 7.3.5). [`Smmu::detach`] ends that.
    pub fn listen(&mut self, stream: u32, pool: &mut impl Pool) -> Result<(), Error> {
        if self.off {
            return Err(Error::Off);
        }
        self.streams.provide(stream, &self.capabilities, pool)?;
        if !self.streams.is_clear(stream)? {
            return Err(Error::Attached(stream));
        }
        self.streams.write_first(stream, stream::INVALID)?;
        self.forget(stream)
    }

    /// Returns whether a stream has tables, even if it is refused for now.
    pub fn is_attached(&self, stream: u32) -> bool {
        self.streams.is_clear(stream) == Ok(false)
    }

    /// Forgets what is cached of `len` bytes from `at` on in the address space `id`. When this
    /// returns no access is under way that used it, and the memory may serve another purpose.
    pub fn invalidate(&mut self, id: u16, at: Ipa, len: u64) -> Result<(), Error> {
        let scope = self.scope(id);
        let ranges = match self.capabilities.range_invalidation {
            true => command::ranges(at, len),
            false => command::pages(at, len),
        };
        match ranges {
            Some(ranges) => self.run(ranges.map(|range| Command::InvalidateRange { scope, range })),
            None => self.invalidate_all(id),
        }
    }

    /// Forgets everything that is cached of the address space `id`: after this the VMID may name
    /// another one.
    pub fn invalidate_all(&mut self, id: u16) -> Result<(), Error> {
        let scope = self.scope(id);
        self.run([Command::InvalidateAll { scope }])
    }

    /// Turns the interrupts for events and global errors on. They are edges.
    pub fn enable_interrupts(&mut self) -> Result<(), Error> {
        let fields = IRQ_CTRL::EVENTQ_IRQEN::SET + IRQ_CTRL::GERROR_IRQEN::SET;
        set_irq_ctrl(&self.bus, fields.value)
    }

    /// Takes the oldest event out of the queue.
    pub fn next_event(&mut self) -> Option<Event> {
        self.events.next(&self.bus)
    }

    /// Returns how often the event queue was found to have overflowed.
    pub fn overflows(&self) -> u64 {
        self.events.overflows()
    }

    /// Takes note of what is wrong with the SMMU as a whole and acknowledges it; `None` if nothing
    /// is. A refused command is not among it: that is told to whom it concerns.
    pub fn global_errors(&mut self) -> Option<GlobalErrors> {
        let errors = SMMU_GERROR.get(&self.bus);
        let seen = SMMU_GERRORN.get(&self.bus);
        let command = GERROR::CMDQ_ERR::SET.value;
        let active = (errors ^ seen) & !command;
        if active == 0 {
            return None;
        }
        SMMU_GERRORN.set(&self.bus, seen ^ active);
        let errors = GlobalErrors(active);
        self.service_failure |= errors.service_failure();
        Some(errors)
    }

    /// Has the SMMU forget what it cached of a stream's table entry.
    fn forget(&mut self, stream: u32) -> Result<(), Error> {
        self.run([Command::ForgetStream { stream }])
    }

    /// Has the SMMU carry commands out. One that is off has nothing to forget.
    fn run(&mut self, commands: impl IntoIterator<Item = Command>) -> Result<(), Error> {
        if self.off {
            return Ok(());
        }
        self.commands.run(&self.bus, commands)
    }

    fn scope(&self, id: u16) -> Scope {
        match self.format() {
            Format::Stage1 => Scope::Asid(id),
            Format::Stage2 => Scope::Vmid(id),
        }
    }

    fn context_of(&self, stream: u32) -> Option<&Memory> {
        self.contexts
            .iter()
            .find(|(of, _)| *of == stream)
            .map(|(_, memory)| memory)
    }
}

/// Puts what is not a table or a queue into a known state.
fn reset(bus: &impl Bus, capabilities: &Capabilities) -> Result<(), Error> {
    set_irq_ctrl(bus, 0)?;
    if capabilities.msi {
        // The wires are used, not messages (6.3.20, 6.3.31).
        SMMU_GERROR_IRQ_CFG0.set(bus, 0);
        SMMU_EVENTQ_IRQ_CFG0.set(bus, 0);
    }
    // What is active from before is not ours.
    SMMU_GERRORN.set(bus, SMMU_GERROR.get(bus));
    match capabilities.coherency {
        Coherency::Coherent => SMMU_CR1.write(
            bus,
            CR1::TABLE_SH::Inner
                + CR1::TABLE_OC::WriteBack
                + CR1::TABLE_IC::WriteBack
                + CR1::QUEUE_SH::Inner
                + CR1::QUEUE_OC::WriteBack
                + CR1::QUEUE_IC::WriteBack,
        ),
        Coherency::Software => SMMU_CR1.set(bus, 0),
    }
    // VMIDs here are the SMMU's own: what processors broadcast does not concern it. StreamIDs that
    // have no place are refused without events, as those are that have one and are not attached: who
    // makes them cannot be told, and so not stopped.
    SMMU_CR2.write(bus, CR2::PTM::SET + CR2::RECINVSID::CLEAR);
    Ok(())
}

/// Writes CR0 and waits until the SMMU has seen it.
fn set_cr0(
    bus: &impl Bus,
    fields: tock_registers::fields::FieldValue<u32, CR0::Register>,
) -> Result<(), Error> {
    SMMU_CR0.write(bus, fields);
    wait_until(|| (SMMU_CR0ACK.get(bus) ^ fields.value) & !CR0_IGNORED == 0)?;
    Ok(())
}

/// Writes IRQ_CTRL and waits until the SMMU has seen it.
fn set_irq_ctrl(bus: &impl Bus, value: u32) -> Result<(), Error> {
    SMMU_IRQ_CTRL.set(bus, value);
    wait_until(|| SMMU_IRQ_CTRLACK.get(bus) == value)?;
    Ok(())
}
