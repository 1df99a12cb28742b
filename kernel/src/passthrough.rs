//! A physical function that a domain has: taken over, shown through `vpci`, and driven as the model
//! says.

use crate::domain::{self, Domain};
use crate::memory::{self, TableFrames};
use crate::physical::{self, Ecam, Physical, Resetting, VectorError, Vectors};
use abi::Status;
use alloc::vec::Vec;
use arch::address::{Ipa, Pa};
use arch::asm;
use arch::mmio::{Bus as _, Foreign};
use core::fmt;
use kernel::intx::{self, Wiring};
use kernel::tables::{self, Reserve};
use kernel::{fallible, layout};
use pci::{ClaimError, ResetError};
use vpci::{
    BarIndex, BarRead, BarWrite, BuildError, BusAddress, BusError, BusRange, Change, ConfigAccess,
    Effect, Kind, Message, Offset, PhysicalConfig, Pin, Position, Sbdf, Setup, Size, State,
    Steadiness, Upstream, Vendor,
};

/// Command (PCI Express Base Specification, 7.5.1.1.3).
const COMMAND: u64 = 0x04;
const MEMORY: u32 = 1 << 1;
const BUS_MASTER: u32 = 1 << 2;
const INTX_DISABLE: u32 = 1 << 10;

/// Expansion ROM Base Address (7.5.1.2.4), and its enable bit.
const ROM: u16 = 0x30;
const ROM_ENABLE: u32 = 1;

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

/// What a domain is to have of a function.
#[derive(Clone, Copy)]
pub(crate) struct Look {
    /// Whether it sees vendor-specific capabilities.
    pub(crate) vendor: Vendor,
    /// Faults in a second that are no storm.
    pub(crate) faults: u32,
    /// Interrupts in a second that are not held back.
    pub(crate) interrupts: u32,
}

/// A function that a domain was given.
pub(crate) struct Assigned {
    slot: Sbdf,
    /// Its place in the machine's hierarchy.
    index: usize,
    model: Model,
    /// The parts of its BARs for which EL2 answers: where, and their registers.
    trapped: Vec<(u64, Foreign)>,
    /// How many tables it takes to map all of its BARs.
    tables: usize,
    vectors: Option<Vectors>,
    /// How many interrupts it may raise in a second.
    interrupts: u32,
    /// It is to be taken back as soon as it is in no reset that the domain asked for.
    recalled: bool,
    /// Its pin's place among the domain's, and the machine's line and the domain's SPI that it has.
    pin: Option<intx::Key>,
    wiring: Option<Wiring>,
    /// MSI as the device has it.
    msi: vpci::Msi,
    /// Whether the attempt to aim an MSI elsewhere was logged since the last reset.
    has_misdirected: bool,
}

/// Why a function was not assigned, or not taken back.
pub(crate) enum AssignError {
    /// The machine has no PCI.
    NoPci,
    /// The function is not to be had.
    Claim(ClaimError),
    /// The domain was made without IOMMU.
    NoIommu,
    /// No SMMU checks its DMA.
    NotIsolated,
    /// The domain has no bus.
    NoBus,
    /// No function of the machine is at that slot.
    NothingThere,
    /// A function is on its way to that slot.
    OnItsWay,
    /// The domain stopped for good.
    Gone,
    /// It is in a reset that its domain asked for.
    Resetting,
    /// Its reset failed.
    Reset(ResetError),
    /// It went on to reach for memory after its reset: this many times.
    NotQuiet(u64),
    /// Whether it did cannot be told: the SMMU lost faults for as long as it was listened to.
    Unheard,
    /// It cannot be shown to a guest.
    Build(BuildError),
    /// The slot cannot be had.
    Slot(BusError),
    /// Its interrupts cannot be had.
    Vectors(VectorError),
    /// The SMMU refused.
    Smmu(arch::smmu::Error),
    /// Its device model does not say that it has let go of it.
    Kept,
    /// There is no memory left.
    NoMemory,
}

impl fmt::Display for AssignError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoPci | Self::Claim(ClaimError::NotThere) => {
                f.write_str("the machine has no such function")
            }
            Self::Claim(error) => claim_error(*error, f),
            Self::NoIommu => f.write_str("the domain was made without iommu"),
            Self::NotIsolated => f.write_str("no SMMU checks its DMA"),
            Self::NoBus => f.write_str("the domain has no host bridge"),
            Self::NothingThere => f.write_str("no function of the machine is at that slot"),
            Self::OnItsWay => f.write_str("a function is on its way to that slot"),
            Self::Gone => f.write_str("the domain has stopped for good"),
            Self::Resetting => f.write_str("it is in a reset that the domain asked for"),
            Self::Reset(error) => write!(f, "its reset failed: {error}"),
            Self::NotQuiet(times) => {
                write!(f, "it reached for memory {times} times after its reset")
            }
            Self::Unheard => f.write_str("the SMMU loses faults, maybe of it, after its reset"),
            Self::Build(error) => write!(f, "{error}"),
            Self::Slot(error) => write!(f, "{error}"),
            Self::Vectors(error) => write!(f, "{error}"),
            Self::Smmu(error) => write!(f, "{error}"),
            Self::Kept => f.write_str("its device model has not let go of it"),
            Self::NoMemory => f.write_str("there is no memory left"),
        }
    }
}

fn claim_error(error: ClaimError, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match error {
        ClaimError::NotThere => f.write_str("the machine has no such function"),
        ClaimError::NotUsable => {
            f.write_str("it is a bridge, or has no place in the machine's windows")
        }
        ClaimError::Busy => f.write_str("it, or what has to be reset with it, is on its way"),
        ClaimError::Taken(domain) => write!(f, "domain {} has it", domain::Name(domain)),
        ClaimError::Group(other, owner, reason) => {
            write!(f, "it goes with {other}, ")?;
            match owner {
                Some(domain) => write!(f, "which is domain {}'s", domain::Name(domain))?,
                None => f.write_str("whose reset failed")?,
            }
            match reason {
                Some(reason) => write!(f, " ({reason})"),
                None => Ok(()),
            }
        }
        ClaimError::Virtual(other) => write!(
            f,
            "its reset would end {other}, which a domain has; take that back first"
        ),
        ClaimError::NoReset => {
            f.write_str("it cannot be reset; say allow_no_reset to give it all the same")
        }
    }
}

impl AssignError {
    /// Returns what the caller of a hypercall is told.
    pub(crate) fn status(&self) -> Status {
        match self {
            Self::NoPci | Self::NothingThere | Self::Claim(ClaimError::NotThere) => {
                Status::NotFound
            }
            Self::Build(BuildError::NoMemory)
            | Self::Slot(BusError::NoMemory)
            | Self::Smmu(arch::smmu::Error::OutOfMemory)
            | Self::Vectors(
                VectorError::TooMany | VectorError::Its(arch::its::Error::OutOfMemory),
            )
            | Self::NoMemory => Status::NoMemory,
            Self::Claim(ClaimError::NotUsable) | Self::Build(_) => Status::NotUsable,
            Self::Claim(ClaimError::Busy) | Self::OnItsWay | Self::Resetting => Status::Busy,
            Self::Claim(ClaimError::Taken(_)) => Status::Taken,
            Self::Claim(ClaimError::Group(..) | ClaimError::Virtual(_)) => Status::Group,
            Self::Claim(ClaimError::NoReset) => Status::NoReset,
            Self::NoIommu | Self::NotIsolated | Self::Smmu(_) => Status::NoIommu,
            Self::Slot(BusError::Occupied(_)) => Status::Occupied,
            Self::NoBus | Self::Slot(_) => Status::BadAddress,
            Self::Gone => Status::Gone,
            Self::Reset(_) | Self::NotQuiet(_) | Self::Unheard | Self::Kept => Status::ResetFailed,
            Self::Vectors(_) => Status::NotUsable,
        }
    }
}

fn after(offset: Offset, bytes: u16) -> Offset {
    Offset::in_function(u64::from(offset.get() + bytes))
}

/// What of an instruction's accesses can lie beyond the end of a page: most of two SIMD registers.
const ACROSS: u64 = 32;

/// Maps for EL2 what a guest does not reach by itself, and what an instruction can access along with it in the
/// pages before and behind.
fn map_trapped(model: &Model) -> Result<Vec<(u64, Foreign)>, &'static str> {
    let mut trapped = Vec::new();
    for bar in model.bars() {
        let end = bar.host + bar.size;
        // Not from the beginning of its page on: other functions may have that.
        let mut at = bar.host;
        let mut add = |from: u64, to: u64| {
            if from < to {
                let from = from.saturating_sub(ACROSS).max(bar.host);
                let to = (to + ACROSS).min(end);
                // SAFETY: registers of the function, which was just taken over; the parts of its
                // BARs are pages apart. Some the guest reaches, too: as its own.
                let window = unsafe { memory::map_device(from, to - from)? };
                fallible::push(&mut trapped, (from, Foreign::new(window)))
                    .map_err(|_| "there is no memory to note a device's registers")?;
            }
            Ok::<(), &'static str>(())
        };
        for pages in model.pages(bar.index) {
            add(at, pages.host)?;
            at = pages.host + pages.size;
        }
        add(at, end)?;
    }
    Ok(trapped)
}

/// Returns the virtual port that a slot of a domain is below.
fn port_above(domain: &Domain, slot: Sbdf) -> Option<&manifest::Port> {
    let mut ports = domain.config.ports.iter();
    ports.find(|port| port.bus == u32::from(slot.bus()))
}

impl Assigned {
    /// Makes what a domain is to see at `slot` of a function that is reset and quiet.
    #[cold]
    pub(crate) fn new(
        physical: &'static Physical,
        index: usize,
        domain: &Domain,
        slot: Sbdf,
        look: Look,
    ) -> Result<Self, AssignError> {
        let device = &physical.found.devices()[index];
        let bars = device.bars.iter().flatten().filter_map(|bar| bar.info());
        let bars = fallible::collect(bars).map_err(|_| AssignError::NoMemory)?;
        let line = physical.lines.of(index);
        let port = port_above(domain, slot);
        let setup = Setup {
            bars: &bars,
            doorbell: BusAddress::new(layout::DOORBELL),
            position: match port {
                None => Position::RootBus,
                Some(port) if port.ari => Position::BelowAriPort,
                Some(_) => Position::BelowPort,
            },
            pin: line.map_or(Pin::Hidden, |_| Pin::Shown),
            vendor: look.vendor,
            kind: match (device.virtual_function, device.sriov) {
                (Some(_), _) => Kind::Virtual {
                    vendor: device.vendor,
                    device: device.device,
                },
                (None, Some(_)) => Kind::Physical,
                (None, None) => Kind::Ordinary,
            },
        };
        let config_space = pci::Function::new(&physical.config, device.sbdf);
        let model = vpci::Function::new(config_space, &setup).map_err(AssignError::Build)?;
        let trapped = map_trapped(&model).map_err(|_| AssignError::NoMemory)?;
        let tables = model
            .bars()
            .map(|bar| tables::needed(model.pages(bar.index)));
        let tables = tables.fold(0_u64, u64::saturating_add);
        let tables = usize::try_from(tables).map_err(|_| AssignError::NoMemory)?;
        let assigned = Self {
            slot,
            index,
            model,
            trapped,
            tables,
            vectors: None,
            interrupts: look.interrupts,
            recalled: false,
            pin: None,
            wiring: line.map(|(pin, line)| Wiring {
                line,
                // Below a port there is device 0 only, with all functions.
                spi: match port {
                    None => intx::spi([slot.device()], pin),
                    Some(port) => intx::spi([0, port.slot.device()], pin),
                },
            }),
            msi: vpci::Msi::OFF,
            has_misdirected: false,
        };
        // Without a reset they may be on.
        assigned.set_msix(physical, false, false);
        assigned.stop_msi(physical);
        Ok(assigned)
    }

    /// Clears what the reset may have left of the owner before.
    #[cold]
    pub(crate) fn scrub(&self, physical: &Physical) -> Result<(), AssignError> {
        let device = &physical.found.devices()[self.index];
        let words = pci::kept_by_reset(device.class);
        if words.is_empty() {
            return Ok(());
        }
        let command = |value| {
            let offset = Offset::in_function(COMMAND);
            self.config().write(offset, Size::Two, value);
        };
        command(MEMORY | INTX_DISABLE);
        // It decodes before it is written to: memory writes may pass config requests (2.4.1).
        asm::dsb_sy();
        let scrubbed = words.iter().try_for_each(|word| {
            let bar = device.bars.get(word.bar).copied().flatten();
            let placed = bar.and_then(|bar| Some((bar.placement?.host, bar.size)));
            let Some((host, _)) = placed.filter(|(_, size)| word.offset + 4 <= *size) else {
                return Ok(());
            };
            // SAFETY: a register of the function, which nobody has yet; it is written here only, and
            // `trapped` has none that reset keeps.
            let window = unsafe { memory::map_device(host + word.offset, 4) };
            let window = window.map_err(|_| AssignError::NoMemory)?;
            Foreign::new(window).write32(0, 0);
            Ok(())
        });
        // And until that has left for it, which no config request passes then (2.4.1).
        asm::dsb_sy();
        command(INTX_DISABLE);
        scrubbed
    }

    /// Gives it as many interrupts as it can send messages.
    #[cold]
    pub(crate) fn allocate_vectors(
        &mut self,
        physical: &'static Physical,
        domain: u32,
    ) -> Result<(), AssignError> {
        if physical.vectors(self.index) == 0 {
            return Ok(());
        }
        // Without an ITS its interrupts would be shown and never come.
        let (Some(messages), Some(events)) = (&physical.messages, physical.events(self.index))
        else {
            return Err(AssignError::Vectors(VectorError::NoIts));
        };
        let vectors = messages
            .allocate(&events, domain, self.interrupts)
            .map_err(AssignError::Vectors)?;
        self.vectors = Some(vectors);
        Ok(())
    }

    /// Takes its interrupts back; those on their way lead nowhere.
    #[cold]
    pub(crate) fn free_vectors(&mut self, physical: &Physical) {
        if let (Some(messages), Some(vectors)) = (&physical.messages, self.vectors.take()) {
            messages.free(vectors);
        }
    }

    /// Returns its place in the machine's hierarchy.
    pub(crate) fn index(&self) -> usize {
        self.index
    }

    /// Returns how many tables it takes to map all of its BARs, wherever the guest puts them.
    pub(crate) fn tables(&self) -> usize {
        self.tables
    }

    /// Returns whether it is in a reset that the domain asked for.
    pub(crate) fn is_resetting(&self) -> bool {
        self.model.state() == State::InReset
    }

    /// Says whether it is to be taken back.
    pub(crate) fn recall(&mut self, recalled: bool) {
        self.recalled = recalled;
    }

    /// Returns whether it is to be taken back.
    pub(crate) fn is_recalled(&self) -> bool {
        self.recalled
    }

    /// Says what gets through the port above, and returns whether there are effects.
    pub(crate) fn set_upstream(&mut self, upstream: Upstream) -> bool {
        self.model.set_upstream(upstream) == Change::Effects
    }

    /// Returns its name: where the domain sees it, with the configuration's number of its bus.
    pub(crate) fn slot(&self) -> Sbdf {
        self.slot
    }

    /// Answers a config read.
    #[inline]
    pub(crate) fn config_read(&self, access: ConfigAccess) -> u32 {
        self.model.read(access)
    }

    /// Takes a config write.
    pub(crate) fn config_write(&mut self, access: ConfigAccess, value: u32) -> Change {
        self.model.write(access, value)
    }

    /// Returns a number that is another one after each change of what a guest reads; see
    /// [`vpci::Function::version`].
    pub(crate) fn version(&self) -> u32 {
        self.model.version()
    }

    /// Says how long reads give what [`Self::steady_dword`] returns.
    pub(crate) fn steadiness(&self) -> Steadiness {
        self.model.steadiness()
    }

    /// Returns a dword of config space as it reads while the function is steady.
    pub(crate) fn steady_dword(&self, index: usize) -> u32 {
        self.model.steady_dword(index)
    }

    /// Lets `map` map its page of config space at `at`, if it has not asserted its interrupt pin since its
    /// reset; returns whether it did. The page is hidden when it does. With `None`, the page has nothing
    /// to do with the pin any more.
    pub(crate) fn while_quiet(&self, domain: &Domain, at: Option<Ipa>, map: impl FnOnce()) -> bool {
        let pin = self.pin;
        pin.is_some_and(|pin| domain.pins.show(pin, at.map(Ipa::get), map))
    }

    /// Answers a load from a part of a BAR that the guest does not reach by itself.
    pub(crate) fn load(&self, bar: BarIndex, offset: u64, bytes: u64) -> u64 {
        match self.model.read_bar(bar, offset, bytes) {
            BarRead::Value(value) => {
                // A driver reads the table back to be sure that what it masked sends no more: the device's
                // answer comes after what EL2 wrote, and after messages from before that (2.4.1).
                if let Some(entry) = self.entry(0) {
                    let _ = self.read_device(entry + ENTRY_CONTROL, 4);
                }
                value
            }
            BarRead::Device { host } if bar == BarIndex::ROM => self.read_rom(host, bytes),
            BarRead::Device { host } => self.read_device(host, bytes),
        }
    }

    /// Takes a store to such a part, and returns whether there are effects.
    pub(crate) fn store(&mut self, bar: BarIndex, offset: u64, bytes: u64, value: u64) -> bool {
        match self.model.write_bar(bar, offset, bytes, value) {
            BarWrite::Done(change) => change == Change::Effects,
            BarWrite::Device { host } => {
                self.write_device(host, bytes, value);
                false
            }
        }
    }

    /// Returns what is to be done next.
    pub(crate) fn next_effect(&mut self) -> Option<Effect> {
        self.model.next_effect()
    }

    /// Carries out an effect that concerns the function alone.
    pub(crate) fn act(&mut self, domain: &Domain, effect: Effect) {
        let Some(physical) = physical::get() else {
            return;
        };
        match effect {
            Effect::BusMaster { enabled } => {
                if let Some(pin) = self.pin {
                    domain.pins.set(pin, BUS_MASTER, enabled);
                }
            }
            Effect::Intx { enabled } => {
                if let Some(pin) = self.pin {
                    domain.pins.allow(pin, enabled, domain.drive());
                }
            }
            Effect::Msix { enabled, masked } => self.set_msix(physical, enabled, masked),
            Effect::MsixVector { vector, message } => {
                self.set_vector(physical, domain, vector, message);
            }
            Effect::Msi(msi) => self.set_msi(physical, domain, msi),
            // Mappings and resets are the bus's.
            Effect::MapBar { .. } | Effect::UnmapBar { .. } | Effect::Reset => {}
        }
    }

    /// Puts the model into the state of power-on; effects undo what was done.
    pub(crate) fn forget(&mut self) {
        let _ = self.model.reset();
    }

    /// Silences the device and leaves it alone until `enable`; messages that are on their way no longer
    /// lead anywhere.
    pub(crate) fn stop(&mut self, domain: &Domain) {
        self.model.set_state(State::InReset);
        if let Some(pin) = self.pin {
            domain.pins.stop(pin, domain.drive());
        }
        if let Some(physical) = physical::get() {
            self.unroute(physical);
        }
        self.has_misdirected = false;
    }

    /// Starts the reset of the device, if it has one, together with others that the domain has at the
    /// slots that `along` tells; of the domain's resets in `begun` it replaces those that it covers. It is
    /// left alone until `enable`.
    pub(crate) fn start_reset(
        &mut self,
        domain: &Domain,
        begun: &[Resetting],
        along: impl Fn(Sbdf) -> bool,
    ) -> Option<Resetting> {
        let physical = physical::get()?;
        let found = &physical.found;
        let own = |index| begun.iter().any(|reset| reset.reserves(index));
        let along = |owner, slot| owner == domain.id && along(slot);
        let method = physical
            .owners
            .lock()
            .begin_reset(found, self.index, own, along)?;
        let reset = Resetting::new(found.reset(self.index, method));
        self.stop(domain);
        Some(reset)
    }

    /// Lets a function that is new on the bus be used.
    pub(crate) fn show(&mut self, domain: &Domain) {
        self.enable(domain);
        // As in `scrub`.
        asm::dsb_sy();
        self.mask_vectors();
    }

    /// Lets the device decode its BARs: what the guest reaches of them is for stage 2 to say.
    ///
    /// Not so if its reset has failed: to the guest it is gone then, and it reaches no memory, until another
    /// reset does not fail.
    pub(crate) fn enable(&mut self, domain: &Domain) {
        let is_sound = |physical: &Physical| physical.owners.lock().is_sound(self.index);
        if let Some(physical) = physical::get().filter(|physical| !is_sound(physical)) {
            self.model.set_state(State::Gone);
            physical.cut(self.index);
            let (name, slot) = (domain.name(), self.slot);
            error!("domain {name}: {slot} is out of use until it can be reset");
            return;
        }
        self.model.set_state(State::Usable);
        if self.plug(domain).is_err() {
            error!(
                "domain {}: there is no memory to start {}",
                domain.name(),
                self.slot
            );
        }
        if let Some(physical) = physical::get() {
            physical.restore(self.index);
        }
        if let Some(pin) = self.pin {
            domain.pins.start(pin, MEMORY);
        }
    }

    /// Lets the interrupts of its pin through.
    pub(crate) fn plug(&mut self, domain: &Domain) -> Result<(), intx::OutOfMemory> {
        let Some(physical) = physical::get().filter(|_| self.pin.is_none()) else {
            return Ok(());
        };
        let config = physical.mastered(self.index);
        let pin = domain.pins.add(config, self.wiring, self.interrupts)?;
        if let Some(wiring) = self.wiring
            && let Err(error) = physical.lines.join(wiring.line, domain)
        {
            domain.pins.remove(pin, domain.drive());
            return Err(error);
        }
        self.pin = Some(pin);
        Ok(())
    }

    /// Says whether it is function 0 of several, and which one comes next.
    pub(crate) fn set_siblings(&mut self, multi: bool, next: u8) {
        self.model.set_multi_function(multi);
        self.model.set_next_function(next);
    }

    /// Takes everything from the function: it reaches nothing, decodes nothing and interrupts nobody.
    pub(crate) fn silence(&mut self, domain: &Domain) {
        self.model.set_state(State::Usable);
        self.unplug(domain);
        if let Some(physical) = physical::get() {
            self.unroute(physical);
            physical.detach(self.index);
        }
    }

    /// Takes its pin from the domain's, and turns everything off in its Command.
    pub(crate) fn unplug(&mut self, domain: &Domain) {
        if let Some(pin) = self.pin.take() {
            domain.pins.remove(pin, domain.drive());
            if let (Some(physical), Some(wiring)) = (physical::get(), self.wiring) {
                physical.lines.leave(wiring.line, domain);
            }
        }
    }

    fn config(&self) -> &pci::Function<'static, Ecam> {
        self.model.device()
    }

    /// Returns the registers that hold `host`, and where in them it is.
    fn registers(&self, host: u64, bytes: u64) -> Option<(&Foreign, usize)> {
        self.trapped.iter().find_map(|(start, window)| {
            let offset = host.checked_sub(*start)?;
            let fits = offset + bytes <= window.len() as u64 && offset.is_multiple_of(bytes);
            fits.then_some((window, usize::try_from(offset).ok()?))
        })
    }

    fn read_device(&self, host: u64, bytes: u64) -> u64 {
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
    fn write_device(&self, host: u64, bytes: u64, value: u64) {
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

    /// Reads of the expansion ROM, which the device decodes just meanwhile: BARs may share its decoder
    /// (7.5.1.2.4), and EL2 answers for parts of them.
    fn read_rom(&self, host: u64, bytes: u64) -> u64 {
        self.set_rom(ROM_ENABLE);
        let value = self.read_device(host, bytes);
        self.set_rom(0);
        value
    }

    /// Lets the device decode its expansion ROM, or not: what was read before was read before that, and what
    /// follows finds it so.
    fn set_rom(&self, enable: u32) {
        let rom = physical::get().and_then(|physical| {
            let device = physical.found.devices().get(self.index)?;
            let [.., rom] = device.bars;
            u32::try_from(rom?.placement?.bus.get()).ok()
        });
        if let Some(address) = rom {
            let at = Offset::in_function(u64::from(ROM));
            // Config space and BARs may be two peripherals, which only a barrier keeps in order.
            asm::dsb_sy();
            self.config().write(at, Size::Four, address | enable);
            // What was read back has been written (7.2.2).
            self.config().read(at, Size::Four);
            asm::dsb_sy();
        }
    }

    /// Maps what the guest may reach of a BAR, with tables that are set aside for it.
    pub(crate) fn map(
        &self,
        domain: &Domain,
        tables: &mut Reserve,
        bar: BarIndex,
        range: BusRange,
    ) {
        let mut stage2 = domain.stage2.lock();
        let Some(stage2) = stage2.as_mut() else {
            return;
        };
        for pages in self.model.pages(bar) {
            let ipa = Ipa::new(range.start().get() + pages.offset);
            let pa = Pa::new(pages.host);
            let mut frames = TableFrames::for_pcpus();
            let lent = &mut tables.lend(&mut frames);
            let access = tables::access(pages);
            if let Err(error) = stage2.map(lent, ipa, pa, pages.size, access) {
                // Not for want of tables: it is beyond what they can lead to. What is not mapped reads
                // ones; the guest's driver finds a device that is gone.
                error!(
                    "domain {}: {} {bar} is not mapped: {error:?}",
                    domain.name(),
                    self.slot
                );
            }
        }
    }

    /// Unmaps what `map` mapped.
    pub(crate) fn unmap(
        &self,
        domain: &Domain,
        tables: &mut Reserve,
        bar: BarIndex,
        range: BusRange,
    ) {
        let mut stage2 = domain.stage2.lock();
        let Some(stage2) = stage2.as_mut() else {
            return;
        };
        for pages in self.model.pages(bar) {
            let ipa = Ipa::new(range.start().get() + pages.offset);
            let mut frames = TableFrames::for_pcpus();
            let tlb = physical::cpu_tlb(domain);
            let lent = &mut tables.lend(&mut frames);
            if let Err(error) = stage2.unmap(lent, &tlb, ipa, pages.size) {
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

    /// Sets up or masks one vector. A masked one keeps its route: a message that is on its way
    /// arrives, as it does on a machine; what comes later is pending in the device.
    fn set_vector(&mut self, physical: &Physical, domain: &Domain, vector: u16, message: Message) {
        let Some(entry) = self.entry(vector) else {
            return;
        };
        let (Some(messages), Some(vectors)) = (&physical.messages, &self.vectors) else {
            return;
        };
        self.write_device(entry + ENTRY_CONTROL, 4, ENTRY_MASKED.into());
        let event = u32::from(vector);
        match message {
            Message::Live { data } => {
                messages.route(vectors, event, Some((domain, self.slot, data)));
                let doorbell = messages.doorbell();
                self.write_device(entry, 4, doorbell & 0xffff_ffff);
                self.write_device(entry + 4, 4, doorbell >> 32);
                self.write_device(entry + ENTRY_DATA, 4, vectors.event(event).into());
                self.write_device(entry + ENTRY_CONTROL, 4, 0);
            }
            Message::Off => {}
            Message::Misdirected { address } => {
                messages.route(vectors, event, None);
                self.report_misdirected(domain, address);
            }
        }
    }

    /// Returns where a vector's entry is.
    fn entry(&self, vector: u16) -> Option<u64> {
        let table = self.model.msix_layout()?.table;
        let bar = self.model.bars().find(|bar| bar.index == table.bar)?;
        Some(bar.host + table.offset + u64::from(vector) * ENTRY)
    }

    /// Masks all vectors in the device, as a reset does, if it decodes its BARs.
    fn mask_vectors(&self) {
        let layout = self.model.msix_layout().filter(|_| self.pin.is_some());
        let count = layout.map_or(0, |layout| layout.vectors);
        for entry in (0..count).filter_map(|vector| self.entry(vector)) {
            self.write_device(entry + ENTRY_CONTROL, 4, ENTRY_MASKED.into());
        }
    }

    /// Lets no message of the function arrive any more.
    fn unroute(&self, physical: &Physical) {
        if let (Some(messages), Some(vectors)) = (&physical.messages, &self.vectors) {
            messages.unroute(vectors);
        }
    }

    /// Says once that the guest aims an MSI elsewhere: it could do so without end.
    fn report_misdirected(&mut self, domain: &Domain, address: BusAddress) {
        if !core::mem::replace(&mut self.has_misdirected, true) {
            let (name, slot) = (domain.name(), self.slot);
            warning!("domain {name}: {slot} aims an MSI at {address}: stopped");
        }
    }

    /// Turns MSI off in the device, and returns Message Control and where it is.
    fn stop_msi(&self, physical: &Physical) -> Option<(Offset, u32)> {
        let offset = physical.found.devices()[self.index].capabilities.msi?;
        let at = after(offset, 2);
        let control = self.config().read(at, Size::Two) & !(MSI_ENABLE | MSI_MULTIPLE);
        self.config().write(at, Size::Two, control);
        Some((offset, control))
    }

    /// Sets MSI up, masks vectors, or turns it off. A message that is on its way when it is turned off
    /// or masked arrives.
    fn set_msi(&mut self, physical: &Physical, domain: &Domain, msi: vpci::Msi) {
        let before = core::mem::replace(&mut self.msi, msi);
        let (Some(messages), Some(vectors)) = (&physical.messages, &self.vectors) else {
            return;
        };
        let Message::Live { data } = msi.message else {
            self.stop_msi(physical);
            if let Message::Misdirected { address } = msi.message {
                self.unroute(physical);
                self.report_misdirected(domain, address);
            }
            return;
        };
        // The device has EL2's address and data, which never change. So while it goes on with as many
        // vectors it need not stop, and nothing gets lost.
        let goes_on =
            matches!(before.message, Message::Live { .. }) && before.vectors == msi.vectors;
        if !goes_on || before.message != msi.message {
            let base = data & !(u32::from(msi.vectors) - 1);
            for event in 0..u32::from(msi.vectors) {
                let to = (domain, self.slot, base | event);
                messages.route(vectors, event, Some(to));
            }
        }
        if goes_on {
            if let Some(offset) = physical.found.devices()[self.index].capabilities.msi {
                let control = self.config().read(after(offset, 2), Size::Two);
                self.write_msi_mask(offset, control, msi.mask);
            }
            return;
        }
        let Some((offset, control)) = self.stop_msi(physical) else {
            return;
        };
        let doorbell = messages.doorbell();
        let (low, high) = ((doorbell & 0xffff_ffff) as u32, (doorbell >> 32) as u32);
        if control & MSI_WIDE == 0 && high != 0 {
            let slot = self.slot;
            warning!("{slot}: its MSIs have 32-bit addresses and reach no ITS");
            return;
        }
        self.config().write(after(offset, 4), Size::Four, low);
        if control & MSI_WIDE != 0 {
            self.config().write(after(offset, 8), Size::Four, high);
        }
        self.config().write(
            after(offset, msi_data(control)),
            Size::Two,
            vectors.event(0),
        );
        self.write_msi_mask(offset, control, msi.mask);
        let count = u32::from(msi.vectors).trailing_zeros() << 4;
        self.config()
            .write(after(offset, 2), Size::Two, control | count | MSI_ENABLE);
    }

    /// Masks vectors of MSI, if the device can.
    fn write_msi_mask(&self, offset: Offset, control: u32, mask: u32) {
        if control & MSI_MASKABLE != 0 {
            let at = after(offset, msi_data(control) + 4);
            self.config().write(at, Size::Four, mask);
        }
    }
}

/// Returns where Message Data is in the MSI capability.
const fn msi_data(control: u32) -> u16 {
    if control & MSI_WIDE == 0 { 8 } else { 12 }
}
