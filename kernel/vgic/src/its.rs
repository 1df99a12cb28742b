//! The interrupt translation service: from a device's message to an LPI of a vCPU
//! (Arm IHI 0069, chapter 5).
//!
//! ```text
//!   DeviceID --> device --+
//!                         +--> event: INTID, collection --> vCPU
//!   EventID --------------+
//! ```
//!
//! What a guest maps is kept here, not in the tables that it offers: nothing that it writes there
//! later counts. What is kept is limited (`sparse`); a command that needs more fails. A command
//! with wrong parameters is ignored and counted, and the next one carried out, which the
//! architecture allows; a queue that is not memory stalls.

use crate::access::Access;
use crate::distributor::{IIDR, identification};
use crate::gic::Gic;
use crate::irq::{FIRST_LPI, Intid};
use crate::redistributor::shareable;
use crate::sparse::{Budget, CHUNK, Sparse};
use crate::{Dropped, Host, Vgic, lpi};

const CTLR: u32 = 0x0000;
const IIDR_OFFSET: u32 = 0x0004;
const TYPER: u32 = 0x0008;
const TYPER_HIGH: u32 = 0x000c;
const CBASER: u32 = 0x0080;
const CBASER_HIGH: u32 = 0x0084;
const CWRITER: u32 = 0x0088;
const CWRITER_HIGH: u32 = 0x008c;
const CREADR: u32 = 0x0090;
const CREADR_HIGH: u32 = 0x0094;
const BASER: u32 = 0x0100;
const BASER_END: u32 = 0x0110;
const ID: u32 = 0xffd0;
const ID_END: u32 = 0x1_0000;

const CTLR_ENABLED: u64 = 1 << 0;
const CTLR_QUIESCENT: u64 = 1 << 31;
const VALID: u64 = 1 << 63;
/// Fields of `GITS_CBASER`: valid, caches, address, shareability, size.
const CBASER_FIELDS: u64 = VALID | 7 << 59 | 7 << 53 | 0x000f_ffff_ffff_f000 | 0xcff;
/// Fields of `GITS_BASER<n>` that can be written: valid, caches, address, shareability, size.
const BASER_FIELDS: u64 = VALID | 7 << 59 | 7 << 53 | 0x0000_ffff_ffff_f000 | 0xcff;
const BASER_INDIRECT: u64 = 1 << 62;
/// Entries of eight bytes in pages of 64 KiB.
const BASER_FIXED: u64 = 7 << 48 | 2 << 8;
const BASER_DEVICES: u64 = 1 << 56;
const BASER_COLLECTIONS: u64 = 4 << 56;
/// Where the next command is, in `GITS_CWRITER` and `GITS_CREADR`.
const OFFSET: u64 = 0xf_ffe0;
/// `GITS_CWRITER.Retry`, `GITS_CREADR.Stalled`.
const STALLED: u64 = 1;
/// Bytes of a command.
const COMMAND: usize = 32;

/// Bits of an EventID and of a collection number.
const EVENT_BITS: u32 = 16;

/// One event of a device. INTID 0 stands for none.
#[derive(Clone, Copy, Debug, Default)]
struct Event {
    intid: u16,
    collection: u16,
}

#[derive(Debug)]
struct Device {
    /// Bits of its EventIDs; 0 if it is not mapped.
    bits: u32,
    events: Sparse<Event>,
}

impl Default for Device {
    fn default() -> Self {
        Self {
            bits: 0,
            events: Sparse::new(),
        }
    }
}

impl Device {
    /// Forgets its events and what is pending of them; returns how many were looked at.
    fn forget_events(&mut self, gic: &mut Gic, host: &mut impl Host) -> usize {
        // Of those that do not exist, as many at once as are made together.
        let mut looked = self.events.chunk_count();
        for event in self.events.iter_mut() {
            looked += 1;
            if event.intid != 0 {
                lpi::clear(gic, Intid(event.intid), host);
            }
        }
        self.events.clear(&mut gic.budget);
        looked
    }
}

/// What a message comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// The vCPU that the LPI goes to.
    pub vcpu: usize,
    /// The LPI.
    pub intid: Intid,
}

#[derive(Debug)]
pub(crate) struct Its {
    device_bits: u32,
    enabled: bool,
    stalled: bool,
    commands: u64,
    write: u64,
    read: u64,
    devices_base: u64,
    collections_base: u64,
    devices: Sparse<Device>,
    /// The vCPU of each collection, plus one.
    collections: Sparse<u16>,
    failed: u64,
}

impl Its {
    pub(crate) fn new(device_bits: u32) -> Self {
        Self {
            device_bits: device_bits.clamp(1, 20),
            enabled: false,
            stalled: false,
            commands: 0,
            write: 0,
            read: 0,
            devices_base: BASER_FIXED | BASER_DEVICES,
            collections_base: BASER_FIXED | BASER_COLLECTIONS,
            devices: Sparse::new(),
            collections: Sparse::new(),
            failed: 0,
        }
    }

    /// Puts the registers into their state after reset, and forgets what was mapped.
    pub(crate) fn reset(&mut self, budget: &mut Budget) {
        self.drop_devices(budget);
        self.collections.clear(budget);
        *self = Self::new(self.device_bits);
    }

    fn drop_devices(&mut self, budget: &mut Budget) {
        for device in self.devices.iter_mut() {
            device.events.clear(budget);
        }
        self.devices.clear(budget);
    }

    // Registers.

    pub(crate) fn read(&self, access: Access) -> u64 {
        match access.offset {
            TYPER | TYPER_HIGH => access.read_wide(self.typer()),
            CBASER | CBASER_HIGH => access.read_wide(self.commands),
            CWRITER | CWRITER_HIGH => access.read_wide(self.write),
            CREADR | CREADR_HIGH => {
                access.read_wide(self.read | if self.stalled { STALLED } else { 0 })
            }
            BASER..BASER_END if access.offset & 8 == 0 => access.read_wide(self.devices_base),
            BASER..BASER_END => access.read_wide(self.collections_base),
            _ if !access.is_word() => 0,
            CTLR if self.enabled => CTLR_ENABLED,
            CTLR => CTLR_QUIESCENT,
            IIDR_OFFSET => u64::from(IIDR),
            offset @ ID..ID_END => u64::from(identification(offset)),
            _ => 0,
        }
    }

    /// Returns `GITS_TYPER`: physical LPIs, ITT entries of 8 bytes, 16 bits of EventID, processor
    /// numbers as targets, collections in memory.
    fn typer(&self) -> u64 {
        let device_bits = u64::from(self.device_bits - 1);
        1 | 7 << 4 | u64::from(EVENT_BITS - 1) << 8 | device_bits << 13
    }

    pub(crate) fn write(
        &mut self,
        gic: &mut Gic,
        access: Access,
        value: u64,
        host: &mut impl Host,
    ) {
        match access.offset {
            CTLR if access.is_word() => {
                self.enabled = value & CTLR_ENABLED != 0;
            }
            CBASER | CBASER_HIGH if !self.enabled => {
                let value = access.write_wide(self.commands, value);
                self.commands = shareable(value & CBASER_FIELDS);
                (self.read, self.write, self.stalled) = (0, 0, false);
            }
            CWRITER | CWRITER_HIGH => {
                let value = access.write_wide(self.write, value);
                if value & OFFSET < self.queue_size() {
                    self.write = value & OFFSET;
                }
                self.stalled &= value & STALLED == 0;
            }
            BASER..BASER_END if !self.enabled => self.write_base(gic, access, value, host),
            _ => {}
        }
    }

    /// Writes `GITS_BASER0` or `GITS_BASER1`. A table elsewhere holds nothing yet.
    fn write_base(&mut self, gic: &mut Gic, access: Access, value: u64, host: &mut impl Host) {
        let devices = access.offset & 8 == 0;
        let (base, fixed, fields) = if devices {
            let fields = BASER_FIELDS | BASER_INDIRECT;
            (&mut self.devices_base, BASER_FIXED | BASER_DEVICES, fields)
        } else {
            (
                &mut self.collections_base,
                BASER_FIXED | BASER_COLLECTIONS,
                BASER_FIELDS,
            )
        };
        let value = shareable(access.write_wide(*base, value) & fields) | fixed;
        if core::mem::replace(base, value) == value {
            return;
        }
        if devices {
            for device in self.devices.iter_mut() {
                device.forget_events(gic, host);
            }
            self.devices.clear(&mut gic.budget);
        } else {
            self.collections.clear(&mut gic.budget);
        }
    }

    fn queue_size(&self) -> u64 {
        ((self.commands & 0xff) + 1) << 12
    }

    // Translation.

    /// Translates a message.
    fn resolve(&self, device: u32, event: u32) -> Option<Target> {
        if !self.enabled {
            return None;
        }
        let event = self.event(device, event)?;
        Some(Target {
            vcpu: usize::from(self.vcpu_of(event.collection)?),
            intid: Intid(event.intid),
        })
    }

    fn event(&self, device: u32, event: u32) -> Option<Event> {
        let device = self.devices.get(device as usize)?;
        let event = *device.events.get(event as usize)?;
        (event.intid != 0).then_some(event)
    }

    fn vcpu_of(&self, collection: u16) -> Option<u16> {
        let vcpu = self.collections.get(usize::from(collection))?;
        vcpu.checked_sub(1)
    }

    // Commands.

    fn has_commands(&self) -> bool {
        let ready = self.enabled && !self.stalled && self.commands & VALID != 0;
        ready && self.read != self.write
    }

    /// Carries commands out until there are no more, or until `budget` is spent.
    fn process(&mut self, gic: &mut Gic, budget: usize, host: &mut impl Host) {
        let base = self.commands & 0x000f_ffff_ffff_f000;
        let mut spent = 0;
        while self.has_commands() && spent < budget {
            let mut bytes = [0; COMMAND];
            if host.read_guest(base + self.read, &mut bytes).is_err() {
                self.stalled = true;
                self.failed += 1;
                return;
            }
            match self.execute(gic, &Command::decode(&bytes), host) {
                Ok(touched) => spent += 1 + touched / CHUNK,
                Err(Failed) => {
                    spent += 1;
                    self.failed += 1;
                }
            }
            self.read = (self.read + COMMAND as u64) % self.queue_size();
        }
    }

    /// Carries one command out, and returns how many interrupts it had to look at.
    #[rustfmt::skip]
    fn execute(
        &mut self,
        gic: &mut Gic,
        command: &Command,
        host: &mut impl Host,
    ) -> Result<usize, Failed> {
        match command.number {
            0x01 => self.movi(gic, command, host),
            0x03 => self.int(gic, command, host),
            0x04 => self.clear(gic, command, host),
            0x05 => Ok(0), // SYNC: every command is complete when the next one starts.
            0x08 => self.mapd(gic, command, host),
            0x09 => self.mapc(gic, command),
            0x0a => self.mapti(gic, command, command.intid(), host),
            0x0b => self.mapti(gic, command, command.event(), host),
            0x0c => self.inv(gic, command, host),
            0x0d => self.invall(gic, command, host),
            0x0e => Self::movall(gic, command, host),
            0x0f => self.discard(gic, command, host),
            _ => Err(Failed),
        }
    }

    fn mapd(
        &mut self,
        gic: &mut Gic,
        command: &Command,
        host: &mut impl Host,
    ) -> Result<usize, Failed> {
        let number = self.device_number(command)?;
        let bits = command.event_bits();
        if command.valid() && bits > EVENT_BITS {
            return Err(Failed);
        }
        let device = self.devices.get_mut(number);
        let touched = device.map_or(0, |device| device.forget_events(gic, host));
        if command.valid() {
            let device = self.devices.entry(number, &mut gic.budget);
            device.map_err(|_| Failed)?.bits = bits;
        } else if let Some(device) = self.devices.get_mut(number) {
            device.bits = 0;
        }
        Ok(touched)
    }

    fn mapc(&mut self, gic: &mut Gic, command: &Command) -> Result<usize, Failed> {
        let collection = self.collection(command)?;
        if !command.valid() {
            if let Some(vcpu) = self.collections.get_mut(usize::from(collection)) {
                *vcpu = 0;
            }
            return Ok(0);
        }
        let vcpu = vcpu(gic, command.target())?;
        let entry = self
            .collections
            .entry(usize::from(collection), &mut gic.budget);
        *entry.map_err(|_| Failed)? = vcpu + 1;
        Ok(0)
    }

    fn mapti(
        &mut self,
        gic: &mut Gic,
        command: &Command,
        intid: u32,
        host: &mut impl Host,
    ) -> Result<usize, Failed> {
        let number = self.device_number(command)?;
        let collection = self.collection(command)?;
        let lpis = FIRST_LPI..FIRST_LPI + lpi::limit(gic);
        if !lpis.contains(&(intid as usize)) {
            return Err(Failed);
        }
        let intid = Intid::at(intid as usize);
        let device = self.devices.get_mut(number).ok_or(Failed)?;
        if device.bits == 0 || u64::from(command.event()) >> device.bits != 0 {
            return Err(Failed);
        }
        gic.irqs
            .make_lpi(intid, &mut gic.budget)
            .map_err(|_| Failed)?;
        let event = device
            .events
            .entry(command.event() as usize, &mut gic.budget);
        *event.map_err(|_| Failed)? = Event {
            intid: intid.0,
            collection,
        };
        lpi::load(gic, intid, host);
        Ok(0)
    }

    fn movi(
        &mut self,
        gic: &mut Gic,
        command: &Command,
        host: &mut impl Host,
    ) -> Result<usize, Failed> {
        let collection = self.collection(command)?;
        let vcpu = self.vcpu_of(collection).ok_or(Failed)?;
        let event = self.event_mut(command)?;
        event.collection = collection;
        let intid = Intid(event.intid);
        lpi::relocate(gic, intid, vcpu, host);
        Ok(0)
    }

    fn discard(
        &mut self,
        gic: &mut Gic,
        command: &Command,
        host: &mut impl Host,
    ) -> Result<usize, Failed> {
        let event = core::mem::take(self.event_mut(command)?);
        lpi::clear(gic, Intid(event.intid), host);
        Ok(0)
    }

    fn int(&self, gic: &mut Gic, command: &Command, host: &mut impl Host) -> Result<usize, Failed> {
        let target = self
            .resolve(command.device(), command.event())
            .ok_or(Failed)?;
        // With LPIs off at the target the message is lost, as one from a device would be.
        lpi::raise(gic, target.vcpu, target.intid, host).ok();
        Ok(0)
    }

    fn clear(
        &self,
        gic: &mut Gic,
        command: &Command,
        host: &mut impl Host,
    ) -> Result<usize, Failed> {
        let event = self
            .event(command.device(), command.event())
            .ok_or(Failed)?;
        lpi::clear(gic, Intid(event.intid), host);
        Ok(0)
    }

    fn inv(&self, gic: &mut Gic, command: &Command, host: &mut impl Host) -> Result<usize, Failed> {
        let event = self
            .event(command.device(), command.event())
            .ok_or(Failed)?;
        lpi::load(gic, Intid(event.intid), host);
        Ok(0)
    }

    fn invall(
        &self,
        gic: &mut Gic,
        command: &Command,
        host: &mut impl Host,
    ) -> Result<usize, Failed> {
        let collection = self.collection(command)?;
        self.vcpu_of(collection).ok_or(Failed)?;
        // To read what belongs to other collections too does no harm.
        Ok(lpi::load_all(gic, host))
    }

    fn movall(gic: &mut Gic, command: &Command, host: &mut impl Host) -> Result<usize, Failed> {
        let from = vcpu(gic, command.target())?;
        let to = vcpu(gic, command.second_target())?;
        let mut looked = 0;
        for chunk in 0..gic.irqs.lpi_chunks() {
            let Some(numbers) = gic.irqs.lpi_chunk(chunk) else {
                continue;
            };
            looked += CHUNK;
            for number in numbers {
                let intid = Intid::at(number);
                if gic.irqs.get(0, intid).is_some_and(|irq| irq.route == from) {
                    lpi::relocate(gic, intid, to, host);
                }
            }
        }
        Ok(looked)
    }

    /// Returns the DeviceID of a command, if the guest's table has room for it.
    fn device_number(&self, command: &Command) -> Result<usize, Failed> {
        let number = command.device();
        let limit = entries(self.devices_base).min(1 << self.device_bits);
        let exists = u64::from(number) < limit;
        exists.then_some(number as usize).ok_or(Failed)
    }

    /// Returns the collection of a command, likewise.
    fn collection(&self, command: &Command) -> Result<u16, Failed> {
        let number = command.collection();
        let exists = u64::from(number) < entries(self.collections_base);
        exists.then_some(number).ok_or(Failed)
    }

    /// Returns the mapped event that a command names.
    fn event_mut(&mut self, command: &Command) -> Result<&mut Event, Failed> {
        let device = self.devices.get_mut(command.device() as usize);
        let event = device.and_then(|device| device.events.get_mut(command.event() as usize));
        event.filter(|event| event.intid != 0).ok_or(Failed)
    }
}

/// Returns how many entries the table of a `GITS_BASER<n>` has.
fn entries(base: u64) -> u64 {
    let per_page = 0x1_0000 / 8;
    let pages = (base & 0xff) + 1;
    match (base & VALID != 0, base & BASER_INDIRECT != 0) {
        (false, _) => 0,
        (true, false) => pages * per_page,
        (true, true) => pages * per_page * per_page,
    }
}

/// Returns the vCPU that a target names: its processor number, as `GITS_TYPER.PTA` is zero.
fn vcpu(gic: &Gic, target: u64) -> Result<u16, Failed> {
    let exists = target < gic.cpus.len() as u64;
    u16::try_from(target).ok().filter(|_| exists).ok_or(Failed)
}

/// A command that was ignored.
struct Failed;

/// A command of the queue (Arm IHI 0069, section 5.3).
struct Command {
    number: u8,
    words: [u64; 4],
}

impl Command {
    fn decode(bytes: &[u8; COMMAND]) -> Self {
        let mut words = [0; 4];
        let (chunks, _) = bytes.as_chunks::<8>();
        for (word, bytes) in words.iter_mut().zip(chunks) {
            *word = u64::from_le_bytes(*bytes);
        }
        let [first, ..] = words;
        Self {
            number: (first & 0xff) as u8,
            words,
        }
    }

    fn device(&self) -> u32 {
        let [word, ..] = self.words;
        (word >> 32) as u32
    }

    fn event(&self) -> u32 {
        let [_, word, ..] = self.words;
        (word & 0xffff_ffff) as u32
    }

    fn intid(&self) -> u32 {
        let [_, word, ..] = self.words;
        (word >> 32) as u32
    }

    fn event_bits(&self) -> u32 {
        (self.event() & 0x1f) + 1
    }

    fn valid(&self) -> bool {
        let [_, _, word, _] = self.words;
        word & VALID != 0
    }

    fn collection(&self) -> u16 {
        let [_, _, word, _] = self.words;
        (word & 0xffff) as u16
    }

    fn target(&self) -> u64 {
        let [_, _, word, _] = self.words;
        word >> 16 & 0x7_ffff_ffff
    }

    fn second_target(&self) -> u64 {
        let [.., word] = self.words;
        word >> 16 & 0x7_ffff_ffff
    }
}

impl Vgic {
    /// Translates a message.
    #[must_use]
    pub fn resolve(&self, device: u32, event: u32) -> Option<Target> {
        self.its.as_ref()?.resolve(device, event)
    }

    /// Makes pending what [`Self::resolve`] returned.
    ///
    /// # Errors
    ///
    /// Returns [`Dropped`] if the vCPU has LPIs turned off.
    pub fn raise(&mut self, target: Target, host: &mut impl Host) -> Result<(), Dropped> {
        lpi::raise(&mut self.gic, target.vcpu, target.intid, host)
    }

    /// Takes a message from a device.
    ///
    /// # Errors
    ///
    /// Returns [`Dropped`] if the message has no translation, or its vCPU has LPIs turned off.
    pub fn msi(&mut self, device: u32, event: u32, host: &mut impl Host) -> Result<(), Dropped> {
        let target = self.resolve(device, event).ok_or(Dropped)?;
        self.raise(target, host)
    }

    /// Returns whether commands wait in the queue of the ITS.
    #[must_use]
    #[inline]
    pub fn has_commands(&self) -> bool {
        self.its.as_ref().is_some_and(Its::has_commands)
    }

    /// Carries commands out. `budget` limits the work: each command counts as one, and one more for
    /// every 32 interrupts that it has to look at.
    pub fn process(&mut self, budget: usize, host: &mut impl Host) {
        if let Some(its) = &mut self.its {
            its.process(&mut self.gic, budget, host);
        }
    }

    /// Returns how many commands failed since the last reset.
    #[must_use]
    pub fn failed_commands(&self) -> u64 {
        self.its.as_ref().map_or(0, |its| its.failed)
    }
}
