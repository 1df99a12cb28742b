//! The physical Interrupt Translation Service: from a device's message to an LPI on a pCPU.
//!
//! ```text
//!   DeviceID --> device table --> ITT (one per device)
//!   EventID  -----------------------^ |
//!                                     +--> LPI, collection --> collection table --> redistributor
//! ```
//!
//! The tables are in memory and the ITS writes them itself, as commands in a queue tell it. Commands
//! are waited for, many at once where there are many, but for [`Its::reconfigure`]: an interrupt is mapped
//! once in a device's life, and the order of unmapping and reusing is worth more than speed.
//!
//! Arm Generic Interrupt Controller Architecture Specification (IHI 0069), sections 5.2 (ITS), 5.3
//! (commands), 12.19 (registers).

use crate::address::Pa;
use crate::asm;
use crate::dma::{Coherency, Memory, Pool, index};
use crate::gic::{IntId, Kind};
use crate::mmio::{Bus, Reg32, Reg64, wait_until};
use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;
use tock_registers::{LocalRegisterCopy, register_bitfields};

mod command;
#[cfg(test)]
mod tests;

use command::Command;

register_bitfields! {u32,
    /// ITS control register (12.19).
    CTLR [
        /// The ITS is on.
        Enabled OFFSET(0) NUMBITS(1) [],
        /// The ITS is off and has finished.
        Quiescent OFFSET(31) NUMBITS(1) []
    ]
}

register_bitfields! {u64,
    /// ITS type register (12.19).
    TYPER [
        /// Bytes of an ITT entry, less one.
        ITT_entry_size OFFSET(4) NUMBITS(4) [],
        /// Bits of an EventID, less one.
        ID_bits OFFSET(8) NUMBITS(5) [],
        /// Bits of a DeviceID, less one.
        Devbits OFFSET(13) NUMBITS(5) [],
        /// A redistributor is named by its physical address, not by its processor number.
        PTA OFFSET(19) NUMBITS(1) [],
        /// Collections that need no memory.
        HCC OFFSET(24) NUMBITS(8) [],
        /// Bits of a collection's number, less one, if CIL.
        CIDbits OFFSET(32) NUMBITS(4) [],
        /// CIDbits counts; else there are 16 bits.
        CIL OFFSET(36) NUMBITS(1) []
    ],
    /// ITS translation table descriptors (12.19), and what CBASER has in common with them.
    BASER [
        /// Pages, less one.
        Size OFFSET(0) NUMBITS(8) [],
        Page_Size OFFSET(8) NUMBITS(2) [],
        Shareability OFFSET(10) NUMBITS(2) [
            None = 0,
            Inner = 1
        ],
        /// Bytes of an entry, less one.
        Entry_Size OFFSET(48) NUMBITS(5) [],
        Type OFFSET(56) NUMBITS(3) [
            Devices = 1,
            Collections = 4
        ],
        InnerCache OFFSET(59) NUMBITS(3) [
            NonCacheable = 1,
            WriteBackAllocate = 7
        ],
        /// The table's pages are named by another table.
        Indirect OFFSET(62) NUMBITS(1) [],
        Valid OFFSET(63) NUMBITS(1) []
    ],
    /// Where we write next (12.19).
    CWRITER [
        /// Go on after a stall.
        Retry OFFSET(0) NUMBITS(1) [],
        /// In units of a command.
        Offset OFFSET(5) NUMBITS(15) []
    ],
    /// Where the ITS reads next (12.19).
    CREADR [
        /// It does not go on: the command there is wrong.
        Stalled OFFSET(0) NUMBITS(1) [],
        /// In units of a command.
        Offset OFFSET(5) NUMBITS(15) []
    ]
}

const GITS_CTLR: Reg32<CTLR::Register> = Reg32::at(0x0000);
const GITS_TYPER: Reg64<TYPER::Register> = Reg64::at(0x0008);
const GITS_CBASER: Reg64<BASER::Register> = Reg64::at(0x0080);
const GITS_CWRITER: Reg64<CWRITER::Register> = Reg64::at(0x0088);
const GITS_CREADR: Reg64<CREADR::Register> = Reg64::at(0x0090);
const GITS_BASER: Reg64<BASER::Register> = Reg64::at(0x0100);
const GITS_PIDR2: Reg32 = Reg32::at(0xffe8);

/// How many GITS_BASER there are.
const BASERS: usize = 8;
/// Where in the second frame devices write (12.19).
const TRANSLATER: u64 = 0x1_0040;
/// Size of the command queue in bytes, and in commands.
const QUEUE_BYTES: usize = 0x1_0000;
const QUEUE: usize = QUEUE_BYTES / size_of::<[u64; 4]>();
/// A table of this size is not worth an indirect one.
const FLAT_BYTES: u64 = 0x1_0000;
/// Alignment of an ITT (5.2.2).
const ITT_ALIGN: usize = 256;

/// Why the ITS does not do as asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// The registers are not those of an ITS of GICv3 or GICv4; this is what GITS_PIDR2 holds.
    NotVersion3(u32),
    /// The ITS does not become quiet, or does not take commands.
    Timeout,
    /// The ITS refuses a command: its number.
    Rejected(u8),
    /// The ITS does not take a table as GITS_BASER of this number offers it.
    TableRefused(usize),
    /// There is no memory for a table.
    OutOfMemory,
    /// Memory lies beyond what the ITS can reach.
    OutOfReach(Pa),
    /// The ITS has no place for this DeviceID.
    NoSuchDevice(u32),
    /// The DeviceID is mapped already.
    DeviceInUse(u32),
    /// The device would have more events than the ITS can tell apart.
    TooManyEvents(u32),
    /// The device has no such event, or it is not mapped.
    NoSuchEvent(u32),
    /// The event is mapped already.
    EventInUse(u32),
    /// An event can only be an LPI.
    NotAnLpi(IntId),
    /// The collection does not exist, or has no redistributor.
    NoSuchCollection(u16),
}

impl From<crate::mmio::Timeout> for Error {
    fn from(_: crate::mmio::Timeout) -> Self {
        Self::Timeout
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotVersion3(id) => write!(f, "not an ITS (PIDR2 {id:#x})"),
            Self::Timeout => f.write_str("the ITS does not answer"),
            Self::Rejected(command) => write!(f, "the ITS refuses command {command:#04x}"),
            Self::TableRefused(n) => write!(f, "the ITS does not take its table {n}"),
            Self::OutOfMemory => f.write_str("no memory for a table of the ITS"),
            Self::OutOfReach(pa) => write!(f, "the ITS does not reach {pa}"),
            Self::NoSuchDevice(id) => write!(f, "the ITS has no DeviceID {id:#x}"),
            Self::DeviceInUse(id) => write!(f, "DeviceID {id:#x} is mapped already"),
            Self::TooManyEvents(n) => write!(f, "the ITS has no {n} events for a device"),
            Self::NoSuchEvent(id) => write!(f, "EventID {id} is not mapped"),
            Self::EventInUse(id) => write!(f, "EventID {id} is mapped already"),
            Self::NotAnLpi(id) => write!(f, "{id} is not an LPI"),
            Self::NoSuchCollection(id) => write!(f, "collection {id} is not mapped"),
        }
    }
}

/// How much the ITS is to have room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needs {
    /// Collections: one for each pCPU.
    pub collections: u16,
    /// DeviceIDs, from zero on: what the machine's `msi-map` leads to. Cut to what the ITS can.
    pub device_ids: u64,
}

/// How commands name a redistributor, in the bits where they want it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Target(u64);

/// A device whose messages the ITS translates. Owns its interrupt translation table.
#[derive(Debug)]
#[must_use = "the ITS uses its memory until it is unmapped"]
pub struct Device {
    id: u32,
    itt: Memory,
    events: Vec<Option<Event>>,
}

#[derive(Clone, Copy, Debug)]
struct Event {
    lpi: IntId,
    collection: u16,
}

impl Device {
    /// Returns the DeviceID.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Returns how many events there may be; EventIDs count from zero.
    #[expect(clippy::cast_possible_truncation, reason = "made of 32 bits")]
    pub fn events(&self) -> u32 {
        self.events.len() as u32
    }

    /// Returns which LPI an event is, and in which collection.
    pub fn event(&self, event: u32) -> Option<(IntId, u16)> {
        let event = (*self.events.get(event as usize)?)?;
        Some((event.lpi, event.collection))
    }

    fn slot(&mut self, event: u32) -> Result<&mut Option<Event>, Error> {
        self.events
            .get_mut(event as usize)
            .ok_or(Error::NoSuchEvent(event))
    }
}

/// The device table, as far as there is memory for it.
#[derive(Debug)]
struct Table {
    memory: Memory,
    coherency: Coherency,
    entry: u64,
    /// Entries in all.
    entries: u64,
    /// Size of the pages that `memory` names, if it does not hold the entries itself.
    indirect: Option<u64>,
    /// The pages that are there.
    pages: Vec<Memory>,
}

/// An ITS.
#[derive(Debug)]
pub struct Its<B> {
    bus: B,
    base: Pa,
    typer: LocalRegisterCopy<u64, TYPER::Register>,
    queue: Memory,
    coherency: Coherency,
    /// The next command's place.
    next: usize,
    /// The first command that was refused of those that are waited for.
    refused: Option<u8>,
    devices: Table,
    in_use: Vec<u32>,
    collections: Vec<Option<Target>>,
    /// Kept for the ITS.
    _collection_table: Option<Table>,
}

impl<B: Bus> Its<B> {
    /// Takes the ITS at `base` over, gives it tables and a command queue, and turns it on.
    pub fn new(bus: B, base: Pa, needs: Needs, pool: &mut impl Pool) -> Result<Self, Error> {
        let Needs {
            collections,
            device_ids,
        } = needs;
        let pidr2 = GITS_PIDR2.get(&bus);
        if !matches!((pidr2 >> 4) & 0xf, 3 | 4) {
            return Err(Error::NotVersion3(pidr2));
        }
        let typer = GITS_TYPER.read(&bus);
        check_collections(typer, collections)?;
        turn_off(&bus)?;

        let mut devices = None;
        let mut collection_table = None;
        for n in 0..BASERS {
            let kind = GITS_BASER.nth(n).read(&bus).read_as_enum(BASER::Type);
            let (table, entries) = match kind {
                Some(BASER::Type::Value::Devices) => (
                    &mut devices,
                    device_ids.min(1 << (typer.read(TYPER::Devbits) + 1)),
                ),
                Some(BASER::Type::Value::Collections) => {
                    (&mut collection_table, u64::from(collections))
                }
                None => continue,
            };
            *table = Some(Table::install(&bus, n, entries, pool)?);
        }
        // An ITS that holds the device table itself does not exist: MAPD has to be given memory.
        let devices = devices.ok_or(Error::TableRefused(0))?;
        if let Some(table) = &collection_table
            && table.entries < u64::from(collections)
        {
            return Err(Error::NoSuchCollection(collections - 1));
        }

        let queue = pool
            .take(QUEUE_BYTES, QUEUE_BYTES)
            .ok_or(Error::OutOfMemory)?;
        let coherency = install_queue(&bus, &queue)?;
        let mut targets = Vec::new();
        resize(&mut targets, usize::from(collections))?;
        GITS_CTLR.modify(&bus, CTLR::Enabled::SET);
        Ok(Self {
            bus,
            base,
            typer,
            queue,
            coherency,
            next: 0,
            refused: None,
            devices,
            in_use: Vec::new(),
            collections: targets,
            _collection_table: collection_table,
        })
    }

    /// Returns where devices write their EventID to: GITS_TRANSLATER.
    pub fn doorbell(&self) -> Pa {
        Pa::new(self.base.get() + TRANSLATER)
    }

    /// Sends a collection's interrupts to the redistributor at `address` that has this processor
    /// number, of which the ITS takes what it wants.
    pub fn map_collection(
        &mut self,
        collection: u16,
        processor_number: u16,
        address: Pa,
    ) -> Result<(), Error> {
        let target = match self.typer.is_set(TYPER::PTA) {
            true => Target(address.get() & 0x000f_ffff_ffff_0000),
            false => Target(u64::from(processor_number) << 16),
        };
        let slot = self
            .collections
            .get_mut(usize::from(collection))
            .ok_or(Error::NoSuchCollection(collection))?;
        *slot = Some(target);
        self.run(Command::MapCollection { collection, target }, Some(target))?;
        // What the redistributor may have cached of the LPIs' configuration is from before.
        self.run(Command::InvalidateAll { collection }, Some(target))
    }

    /// Starts to translate the messages of a device that has up to `events` events.
    pub fn map_device(
        &mut self,
        id: u32,
        events: u32,
        pool: &mut impl Pool,
    ) -> Result<Device, Error> {
        if self.in_use.contains(&id) {
            return Err(Error::DeviceInUse(id));
        }
        let most = self.typer.read(TYPER::ID_bits) + 1;
        let event_bits = events
            .max(2)
            .checked_next_power_of_two()
            .map(u32::trailing_zeros)
            .filter(|bits| u64::from(*bits) <= most)
            .ok_or(Error::TooManyEvents(events))?;
        self.devices
            .provide(u64::from(id), pool)
            .map_err(|error| match error {
                Error::NoSuchDevice(_) => Error::NoSuchDevice(id),
                other => other,
            })?;
        let mut slots = Vec::new();
        resize(&mut slots, events as usize)?;
        self.in_use.try_reserve(1).map_err(|_| Error::OutOfMemory)?;

        let entry = index(self.typer.read(TYPER::ITT_entry_size)) + 1;
        let bytes = (entry << event_bits).next_multiple_of(ITT_ALIGN);
        let itt = pool.take(bytes, ITT_ALIGN).ok_or(Error::OutOfMemory)?;
        // Nothing says whether the ITS snoops when it reads an ITT; it is as with its tables.
        itt.publish_all(self.devices.coherency);
        let command = Command::MapDevice {
            device: id,
            itt: Some((itt.pa(), event_bits)),
        };
        if let Err(error) = self.run(command, None) {
            // A refused command has not touched the memory; one without answer may still.
            if matches!(error, Error::Rejected(_)) {
                pool.give_back(itt);
            }
            return Err(error);
        }
        self.in_use.push(id);
        Ok(Device {
            id,
            itt,
            events: slots,
        })
    }

    /// Ends the translation of a device's messages and gives its memory back. Its LPIs may be used
    /// again afterwards.
    ///
    /// If the ITS fails meanwhile the memory stays taken, as the ITS may use it.
    pub fn unmap_device(&mut self, mut device: Device, pool: &mut impl Pool) -> Result<(), Error> {
        let events = 0..device.events();
        self.unmap_events(&mut device, events)?;
        let command = Command::MapDevice {
            device: device.id,
            itt: None,
        };
        let any = self.collections.iter().flatten().next().copied();
        self.run(command, any)?;
        self.in_use.retain(|id| *id != device.id);
        pool.give_back(device.itt);
        Ok(())
    }

    /// Makes events of a device LPIs, from `first` on, which go to a collection. On an error they are to be
    /// unmapped: the ITS may know some of them.
    pub fn map_events(
        &mut self,
        device: &mut Device,
        events: Range<u32>,
        first: IntId,
        collection: u16,
    ) -> Result<(), Error> {
        let target = self.target(collection)?;
        let lpis = (first.get()..).map(IntId::new);
        for (event, lpi) in events.clone().zip(lpis.clone()) {
            if lpi.kind() != Kind::Lpi {
                return Err(Error::NotAnLpi(lpi));
            }
            if device.slot(event)?.is_some() {
                return Err(Error::EventInUse(event));
            }
        }
        self.refused = None;
        for (event, lpi) in events.zip(lpis) {
            *device.slot(event)? = Some(Event { lpi, collection });
            self.post(Command::MapEvent {
                device: device.id,
                event,
                lpi,
                collection,
            })?;
        }
        // The redistributor takes the LPIs' configuration anew.
        self.post(Command::InvalidateAll { collection })?;
        self.post(Command::Sync { target })?;
        self.finish()
    }

    /// Ends the mappings of events, of those that are mapped; what is pending of them is not any more.
    pub fn unmap_events(&mut self, device: &mut Device, events: Range<u32>) -> Result<(), Error> {
        self.refused = None;
        let mut last = None;
        for event in events.clone() {
            let Some(Event { collection, .. }) = *device.slot(event)? else {
                continue;
            };
            self.post(Command::Discard {
                device: device.id,
                event,
            })?;
            let target = self.target(collection)?;
            if let Some(before) = last.replace(target).filter(|before| *before != target) {
                self.post(Command::Sync { target: before })?;
            }
        }
        if let Some(target) = last {
            self.post(Command::Sync { target })?;
        }
        match self.finish() {
            // It does not discard what it did not map.
            Ok(()) | Err(Error::Rejected(_)) => {}
            Err(error) => return Err(error),
        }
        for event in events {
            *device.slot(event)? = None;
        }
        Ok(())
    }

    /// Has `change` change the configuration of LPIs of a collection, and the redistributor take it anew.
    /// This does not wait for the ITS: returns whether the queue had room, without which nothing is done.
    pub fn reconfigure(&mut self, collection: u16, change: impl FnOnce()) -> Result<bool, Error> {
        let target = self.target(collection)?;
        if self.room() < 2 {
            return Ok(false);
        }
        change();
        self.put(Command::InvalidateAll { collection });
        self.put(Command::Sync { target });
        self.start();
        Ok(true)
    }

    fn target(&self, collection: u16) -> Result<Target, Error> {
        let target = self
            .collections
            .get(usize::from(collection))
            .copied()
            .flatten();
        target.ok_or(Error::NoSuchCollection(collection))
    }

    /// Has the ITS carry out a command, and waits until a redistributor has seen its effect.
    fn run(&mut self, command: Command, sync: Option<Target>) -> Result<(), Error> {
        self.refused = None;
        self.post(command)?;
        if let Some(target) = sync {
            self.post(Command::Sync { target })?;
        }
        self.finish()
    }

    /// Puts a command into the queue, when there is room for it.
    fn post(&mut self, command: Command) -> Result<(), Error> {
        if self.room() == 0 {
            self.start();
            wait_until(|| self.room() > 0)?;
        }
        self.put(command);
        Ok(())
    }

    /// Has the ITS carry out what is in the queue.
    fn start(&self) {
        GITS_CWRITER.write(&self.bus, CWRITER::Offset.val(self.next as u64));
    }

    fn put(&mut self, command: Command) {
        self.replace(self.next, command);
        self.next = (self.next + 1) % QUEUE;
    }

    /// Writes a command into the queue, visible to the ITS.
    fn replace(&self, at: usize, command: Command) {
        let offset = at * size_of::<[u64; 4]>();
        for (n, word) in command.encode().into_iter().enumerate() {
            self.queue.write64(offset + 8 * n, word);
        }
        self.queue
            .publish(offset, size_of::<[u64; 4]>(), self.coherency);
    }

    /// Returns for how many commands there is room, past those that the ITS refuses: a queue is full when one
    /// place is left.
    fn room(&mut self) -> usize {
        let creadr = GITS_CREADR.read(&self.bus);
        if creadr.is_set(CREADR::Stalled) {
            self.skip_stalled();
        }
        (index(creadr.read(CREADR::Offset)) % QUEUE + QUEUE - self.next - 1) % QUEUE
    }

    /// Waits until the ITS has carried out all commands, past those that it refuses.
    fn finish(&mut self) -> Result<(), Error> {
        self.start();
        wait_until(|| self.room() == QUEUE - 1)?;
        self.refused
            .map_or(Ok(()), |command| Err(Error::Rejected(command)))
    }

    /// Puts something harmless in the place of the command at which the ITS stalls, and lets it go
    /// on.
    fn skip_stalled(&mut self) {
        let at = index(GITS_CREADR.read(&self.bus).read(CREADR::Offset)) % QUEUE;
        let command = self.queue.read64(at * size_of::<[u64; 4]>()) & 0xff;
        let target = self.collections.iter().flatten().next().copied();
        self.replace(
            at,
            Command::Sync {
                target: target.unwrap_or(Target(0)),
            },
        );
        let offset = CWRITER::Offset.val(self.next as u64);
        GITS_CWRITER.write(&self.bus, offset + CWRITER::Retry::SET);
        self.refused.get_or_insert(command as u8);
    }
}

/// Checks that there are as many collections.
fn check_collections(
    typer: LocalRegisterCopy<u64, TYPER::Register>,
    collections: u16,
) -> Result<(), Error> {
    let bits = match typer.is_set(TYPER::CIL) {
        true => typer.read(TYPER::CIDbits) + 1,
        false => 16,
    };
    match u64::from(collections) <= 1 << bits {
        true => Ok(()),
        false => Err(Error::NoSuchCollection(collections - 1)),
    }
}

/// Turns the ITS off, as firmware may have left it on: its tables and its queue must not change
/// while it is on (12.19, GITS_BASER).
fn turn_off(bus: &impl Bus) -> Result<(), Error> {
    GITS_CTLR.modify(bus, CTLR::Enabled::CLEAR);
    wait_until(|| GITS_CTLR.read(bus).is_set(CTLR::Quiescent))?;
    Ok(())
}

/// Tells the ITS where its queue is; returns whether it snoops when it reads it.
fn install_queue(bus: &impl Bus, queue: &Memory) -> Result<Coherency, Error> {
    if queue.pa().get() + queue.len() as u64 > 1 << 52 {
        return Err(Error::OutOfReach(queue.pa()));
    }
    queue.publish_all(Coherency::Software);
    let pages = BASER::Size.val((QUEUE_BYTES / 0x1000 - 1) as u64);
    let value = (BASER::Valid::SET + pages).modify(queue.pa().get());
    let coherency = write_cacheable(bus, &GITS_CBASER, value);
    GITS_CWRITER.set(bus, 0);
    // The queue is there before the ITS is turned on.
    asm::dsb_sy();
    Ok(coherency)
}

/// Writes a table's address as cacheable and shareable, or as neither if the ITS cannot.
fn write_cacheable(bus: &impl Bus, register: &Reg64<BASER::Register>, value: u64) -> Coherency {
    let cacheable = BASER::Shareability::Inner + BASER::InnerCache::WriteBackAllocate;
    register.set(bus, cacheable.modify(value));
    if register.read(bus).read(BASER::Shareability) != 0 {
        return Coherency::Coherent;
    }
    let not = BASER::Shareability::None + BASER::InnerCache::NonCacheable;
    register.set(bus, not.modify(value));
    Coherency::Software
}

/// A way of laying out a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Layout {
    /// GITS_BASER.Page_Size.
    page_code: u64,
    /// Pages that GITS_BASER names.
    pages: u64,
    indirect: bool,
}

impl Layout {
    const PAGES: [(u64, u64); 3] = [(0, 0x1000), (1, 0x4000), (2, 0x1_0000)];
    /// The most that GITS_BASER.Size can say.
    const MOST: u64 = 256;

    const fn page(self) -> u64 {
        Self::PAGES[index(self.page_code)].1
    }

    /// Chooses the smallest pages with which `bytes` of entries fit; indirect where that saves
    /// memory and can be done; else as much as fits.
    fn choose(bytes: u64, page_codes: &[u64], can_indirect: bool) -> Option<Self> {
        let sizes = || {
            Self::PAGES
                .into_iter()
                .filter(|(code, _)| page_codes.contains(code))
        };
        let flat = sizes().find_map(|(page_code, page)| {
            let pages = bytes.div_ceil(page).max(1);
            (pages <= Self::MOST).then_some(Self {
                page_code,
                pages,
                indirect: false,
            })
        });
        if let Some(flat) = flat
            && (bytes <= FLAT_BYTES || !can_indirect)
        {
            return Some(flat);
        }
        let indirect = sizes().find_map(|(page_code, page)| {
            let pages = (bytes.div_ceil(page) * 8).div_ceil(page);
            (can_indirect && pages <= Self::MOST).then_some(Self {
                page_code,
                pages,
                indirect: true,
            })
        });
        let (page_code, _) = sizes().next_back()?;
        let cut = Self {
            page_code,
            pages: Self::MOST,
            indirect: can_indirect,
        };
        Some(indirect.or(flat).unwrap_or(cut))
    }
}

impl Table {
    /// Gives the ITS memory for table `n`, which is to have up to `entries` entries.
    fn install(
        bus: &impl Bus,
        n: usize,
        entries: u64,
        pool: &mut impl Pool,
    ) -> Result<Self, Error> {
        let register = GITS_BASER.nth(n);
        let entry = register.read(bus).read(BASER::Entry_Size) + 1;
        let (page_codes, count) = supported_pages(bus, &register);
        register.write(bus, BASER::Indirect::SET);
        let can_indirect = register.read(bus).is_set(BASER::Indirect);
        let layout = page_codes
            .get(..count)
            .and_then(|codes| Layout::choose(entries * entry, codes, can_indirect))
            .ok_or(Error::TableRefused(n))?;

        let page = layout.page();
        let memory = pool
            .take(index(page * layout.pages), index(page))
            .ok_or(Error::OutOfMemory)?;
        reachable(&memory)?;
        memory.publish_all(Coherency::Software);
        let indirect = if layout.indirect {
            BASER::Indirect::SET
        } else {
            BASER::Indirect::CLEAR
        };
        let fields = BASER::Valid::SET
            + indirect
            + BASER::Page_Size.val(layout.page_code)
            + BASER::Size.val(layout.pages - 1);
        let coherency = write_cacheable(bus, &register, fields.modify(memory.pa().get()));
        let got = register.read(bus);
        if !got.is_set(BASER::Valid) || got.read(BASER::Page_Size) != layout.page_code {
            return Err(Error::TableRefused(n));
        }

        let room = match layout.indirect {
            true => (memory.len() / 8) as u64 * (page / entry),
            false => memory.len() as u64 / entry,
        };
        Ok(Self {
            memory,
            coherency,
            entry,
            entries: entries.min(room),
            indirect: layout.indirect.then_some(page),
            pages: Vec::new(),
        })
    }

    /// Sees to it that there is memory for entry `n`.
    fn provide(&mut self, n: u64, pool: &mut impl Pool) -> Result<(), Error> {
        if n >= self.entries {
            return Err(Error::NoSuchDevice(0));
        }
        let Some(page) = self.indirect else {
            return Ok(());
        };
        let at = index(n / (page / self.entry) * 8);
        if self.memory.read64(at) != 0 {
            return Ok(());
        }
        self.pages.try_reserve(1).map_err(|_| Error::OutOfMemory)?;
        let memory = pool
            .take(index(page), index(page))
            .ok_or(Error::OutOfMemory)?;
        if let Err(error) = reachable(&memory) {
            pool.give_back(memory);
            return Err(error);
        }
        memory.publish_all(self.coherency);
        // Valid, and where the page is (5.2.1).
        self.memory.write64(at, 1 << 63 | memory.pa().get());
        self.memory.publish(at, 8, self.coherency);
        self.pages.push(memory);
        Ok(())
    }
}

/// Returns which page sizes a table may have: the field keeps those it knows.
fn supported_pages(bus: &impl Bus, register: &Reg64<BASER::Register>) -> ([u64; 3], usize) {
    let mut codes = [0; 3];
    let mut count = 0;
    for (code, _) in Layout::PAGES {
        register.write(bus, BASER::Page_Size.val(code));
        if register.read(bus).read(BASER::Page_Size) == code {
            codes[count] = code;
            count += 1;
        }
    }
    (codes, count)
}

/// Checks that a table is where GITS_BASER can say: with all page sizes, below 2^48.
fn reachable(memory: &Memory) -> Result<(), Error> {
    match memory.pa().get() + memory.len() as u64 <= 1 << 48 {
        true => Ok(()),
        false => Err(Error::OutOfReach(memory.pa())),
    }
}

/// Makes a list of `len` empty places.
fn resize<T>(list: &mut Vec<Option<T>>, len: usize) -> Result<(), Error> {
    list.try_reserve_exact(len)
        .map_err(|_| Error::OutOfMemory)?;
    list.resize_with(len, || None);
    Ok(())
}
