//! The virtio transport over PCI, modern only.
//!
//! ```text
//!  BAR0 (64-bit)                    BAR2 (32-bit)
//!  0x0000 common configuration      0x000 MSI-X table
//!  0x1000 ISR status                0x800 MSI-X pending bits
//!  0x2000 device configuration
//!  0x3000 notification, 4 bytes for each queue
//! ```
//!
//! All writes to both BARs are posted: a driver that needs to know that one has been taken reads
//! something, which comes after it.
//!
//! VIRTIO 1.2, sections 3.1, 4.1 and 6.

use alloc::collections::TryReserveError;
use alloc::vec::Vec;
use core::fmt;

use abi::MapFlags;
use ioreq::Width;
use vpci::{BarIndex, BarKind, BusAddress, BusRange, ConfigAccess, Sbdf};

use super::Device;
use super::queue::{MAX_SIZE, Queue, QueueError, RingFeatures, Rings};
use crate::config::{ConfigSpace, Dword, Identity, NoRoom};
use crate::machine::{Function, Host, Progress, low};
use crate::memory::GuestMemory;
use crate::msix::{Gate, Msix};

/// PCI vendor of virtio devices; modern device IDs start behind 0x1040 (4.1.2).
const VENDOR: u16 = 0x1af4;
const MODERN: u16 = 0x1040;

/// Structures in BAR0.
const COMMON: u64 = 0x0000;
const COMMON_SIZE: usize = 0x40;
const ISR: u64 = 0x1000;
const DEVICE: u64 = 0x2000;
const NOTIFY: u64 = 0x3000;
const REGISTERS_SIZE: u64 = 0x4000;
const AREA: u64 = 0x1000;
const NOTIFY_MULTIPLIER: u32 = 4;

/// Structures in BAR2.
const PENDING: u64 = 0x800;
const MSIX_SIZE: u64 = 0x1000;

/// Capability IDs, and types of the vendor-specific ones (4.1.4).
const CAP_VENDOR: u8 = 0x09;
const CAP_EXPRESS: u8 = 0x10;
const CAP_MSIX: u8 = 0x11;
const CFG_COMMON: u32 = 1;
const CFG_NOTIFY: u32 = 2;
const CFG_ISR: u32 = 3;
const CFG_DEVICE: u32 = 4;
const CFG_PCI: u32 = 5;

/// PCI Express Device Control: initiate a function-level reset.
const INITIATE_RESET: u32 = 1 << 15;

/// Feature bits that are not the device's (6).
const INDIRECT_DESC: u64 = 1 << 28;
const EVENT_IDX: u64 = 1 << 29;
const VERSION_1: u64 = 1 << 32;

/// Device status (2.1).
const DRIVER_OK: u8 = 4;
const FEATURES_OK: u8 = 8;
const NEEDS_RESET: u8 = 64;
const FAILED: u8 = 128;

/// "No vector" (4.1.4.3).
const NO_VECTOR: u16 = 0xffff;

/// ISR status (4.1.4.5).
const ISR_QUEUE: u8 = 1;
const ISR_CONFIG: u8 = 2;

/// Bytes of one queue's chains after which others get their turn. A chain counts as a page at least.
const BATCH: u64 = 1 << 20;
const CHAIN_COST: u64 = 4096;

/// Why a function could not be made.
#[derive(Debug)]
pub enum BuildError {
    /// Config space is full.
    NoRoom,
    /// Memory is short.
    NoMemory,
}

impl From<NoRoom> for BuildError {
    fn from(_: NoRoom) -> Self {
        Self::NoRoom
    }
}

impl From<TryReserveError> for BuildError {
    fn from(_: TryReserveError) -> Self {
        Self::NoMemory
    }
}

impl fmt::Display for BuildError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::NoRoom => "no room left in config space",
            Self::NoMemory => "no memory left",
        })
    }
}

/// A queue's registers, and the queue once it is enabled.
#[derive(Debug)]
struct QueueState {
    size: u16,
    vector: u16,
    rings: Rings,
    queue: Option<Queue>,
    /// The driver has notified, and not all of what it made available has been handled.
    notified: bool,
}

impl QueueState {
    const fn new() -> Self {
        Self {
            size: MAX_SIZE,
            vector: NO_VECTOR,
            rings: Rings {
                descriptors: 0,
                driver: 0,
                device: 0,
            },
            queue: None,
            notified: false,
        }
    }
}

/// The registers that a virtio reset clears.
#[derive(Debug, Default)]
struct Registers {
    status: u8,
    isr: u8,
    device_feature_select: u32,
    driver_feature_select: u32,
    driver_features: u64,
    config_vector: u16,
    queue_select: u16,
}

/// The dwords of config space that mean something to this transport.
#[derive(Clone, Copy, Debug)]
struct Offsets {
    device_control: u16,
    /// The window that config space has on the BARs (4.1.4.9): the capability's first dword.
    access: u16,
    msix: u16,
}

/// A range that the hypervisor sends us accesses of.
#[derive(Clone, Copy, Debug)]
struct Claim {
    bar: BarIndex,
    range: Option<BusRange>,
}

/// A virtio device as a PCI function.
pub struct VirtioPci<D, M> {
    sbdf: Sbdf,
    device: D,
    memory: M,
    config: ConfigSpace,
    offsets: Offsets,
    msix: Msix,
    registers: Registers,
    queues: Vec<QueueState>,
    claims: [Claim; 2],
    /// A queue may be notified: there is something to look at in `poll`.
    attention: bool,
}

/// A structure of a BAR, at a byte offset.
enum Place {
    Common(u64),
    Isr,
    Device(u64),
    Notify(u64),
    Table(u64),
    Pending(u64),
    Nothing,
}

impl<D: Device, M: GuestMemory> VirtioPci<D, M> {
    /// Puts `device` behind a PCI function `sbdf` of the domain whose memory is `memory` and whose
    /// MSIs go to `doorbell`.
    ///
    /// # Errors
    ///
    /// If memory is short.
    pub fn new(sbdf: Sbdf, device: D, memory: M, doorbell: u64) -> Result<Self, BuildError> {
        let count = device.queues();
        // One vector for each queue and one for changes of configuration, as far as there is room.
        let vectors = count
            .saturating_add(1)
            .min(u16::try_from(PENDING / 16).unwrap_or(1));
        let mut config = ConfigSpace::new(&Identity {
            vendor: VENDOR,
            device: MODERN + D::DEVICE_ID,
            revision: 1,
            class: D::CLASS,
            subsystem_vendor: VENDOR,
            subsystem: MODERN + D::DEVICE_ID,
        });
        let [registers_bar, msix_bar] = bars()?;
        config.add_bar(registers_bar, BarKind::Memory64, REGISTERS_SIZE)?;
        config.add_bar(msix_bar, BarKind::Memory32, MSIX_SIZE)?;
        let size = u32::try_from(device.config().len()).unwrap_or(u32::MAX);
        let offsets = add_capabilities(&mut config, size, count, vectors)?;
        let mut queues = Vec::new();
        queues.try_reserve_exact(count.into())?;
        queues.resize_with(count.into(), QueueState::new);
        let claim = |bar| Claim { bar, range: None };
        let mut function = Self {
            sbdf,
            device,
            memory,
            config,
            offsets,
            msix: Msix::new(vectors, doorbell)?,
            registers: Registers::default(),
            queues,
            claims: [claim(registers_bar), claim(msix_bar)],
            attention: false,
        };
        function.reset_device();
        Ok(function)
    }

    fn offered_features(&self) -> u64 {
        self.device.features() | INDIRECT_DESC | EVENT_IDX | VERSION_1
    }

    /// Returns whether the driver has said that all is set up, and nothing has gone wrong since.
    fn is_running(&self) -> bool {
        let relevant = DRIVER_OK | FEATURES_OK | NEEDS_RESET | FAILED;
        self.registers.status & relevant == DRIVER_OK | FEATURES_OK
    }

    fn gate(&self) -> Gate {
        Gate::of(
            self.config.get(self.offsets.msix),
            self.config.is_bus_master(),
        )
    }

    fn selected(&mut self) -> Option<&mut QueueState> {
        self.queues
            .get_mut(usize::from(self.registers.queue_select))
    }

    /// Resets the virtio device; the PCI function around it stays as it is (2.4).
    fn reset_device(&mut self) {
        self.registers = Registers {
            config_vector: NO_VECTOR,
            ..Registers::default()
        };
        for state in &mut self.queues {
            *state = QueueState::new();
        }
    }

    /// Gives up on the driver until it resets the device (2.1.2).
    fn fail(&mut self, error: QueueError, host: &mut dyn Host) {
        host.report(
            self.sbdf,
            &format_args!("driver must reset the device: {error}"),
        );
        self.registers.status |= NEEDS_RESET;
        if self.registers.status & DRIVER_OK != 0 {
            self.interrupt(self.registers.config_vector, ISR_CONFIG, host);
        }
    }

    fn interrupt(&mut self, vector: u16, isr: u8, host: &mut dyn Host) {
        let gate = self.gate();
        if gate == Gate::Off {
            self.registers.isr |= isr;
        } else {
            self.msix.fire(vector, gate, self.sbdf, host);
        }
    }

    // The common configuration (4.1.4.3).

    /// Returns the structure as it reads.
    fn common(&self) -> [u8; COMMON_SIZE] {
        let registers = &self.registers;
        let half = |features: u64, select: u32| match select {
            0 => low(features),
            1 => low(features >> 32),
            _ => 0,
        };
        let queue = self.queues.get(usize::from(registers.queue_select));
        let rings = queue.map_or(Rings::default(), |state| state.rings);
        let size = queue.map_or(0, |state| state.size);
        let vector = queue.map_or(NO_VECTOR, |state| state.vector);
        let enabled = queue.is_some_and(|state| state.queue.is_some());
        let count = u16::try_from(self.queues.len()).unwrap_or(u16::MAX);
        let offered = half(self.offered_features(), registers.device_feature_select);
        let accepted = half(registers.driver_features, registers.driver_feature_select);
        let mut bytes = [0; COMMON_SIZE];
        #[rustfmt::skip]
        let fields: [(usize, &[u8]); 15] = [
            (0x00, &registers.device_feature_select.to_le_bytes()),
            (0x04, &offered.to_le_bytes()),
            (0x08, &registers.driver_feature_select.to_le_bytes()),
            (0x0c, &accepted.to_le_bytes()),
            (0x10, &registers.config_vector.to_le_bytes()),
            (0x12, &count.to_le_bytes()),
            (0x14, &[registers.status]),
            (0x16, &registers.queue_select.to_le_bytes()),
            (0x18, &size.to_le_bytes()),
            (0x1a, &vector.to_le_bytes()),
            (0x1c, &u16::from(enabled).to_le_bytes()),
            (0x1e, &registers.queue_select.to_le_bytes()), // queue_notify_off
            (0x20, &rings.descriptors.to_le_bytes()),
            (0x28, &rings.driver.to_le_bytes()),
            (0x30, &rings.device.to_le_bytes()),
        ];
        for (offset, field) in fields {
            for (place, byte) in bytes.iter_mut().skip(offset).zip(field) {
                *place = *byte;
            }
        }
        bytes
    }

    /// Out of line: what it needs of the stack, other reads do not.
    #[inline(never)]
    fn read_common(&self, offset: u64, width: Width) -> u64 {
        gather(&self.common(), offset, width)
    }

    /// Takes a write; one that has not a field's width (4.1.3.1) is ignored.
    fn write_common(&mut self, offset: u64, width: Width, value: u64, host: &mut dyn Host) {
        let word = low(value);
        let half = u16::try_from(word & 0xffff).unwrap_or_default();
        let byte = u8::try_from(word & 0xff).unwrap_or_default();
        match (offset, width) {
            (0x00, Width::Four) => self.registers.device_feature_select = word,
            (0x08, Width::Four) => self.registers.driver_feature_select = word,
            (0x0c, Width::Four) => self.write_features(word),
            (0x10, Width::Two) => self.registers.config_vector = self.vector(half),
            (0x14, Width::One) => self.write_status(byte),
            (0x16, Width::Two) => self.registers.queue_select = half,
            (0x1c, Width::Two) if half == 1 => self.enable_queue(host),
            (0x1a, Width::Two) => {
                let vector = self.vector(half);
                if let Some(state) = self.selected() {
                    state.vector = vector;
                }
            }
            _ => self.write_queue(offset, width, value),
        }
    }

    /// Returns the vector if there is one of that number (4.1.5.1.2.1).
    fn vector(&self, vector: u16) -> u16 {
        if usize::from(vector) < self.msix.vectors() {
            vector
        } else {
            NO_VECTOR
        }
    }

    fn write_features(&mut self, word: u32) {
        if self.registers.status & FEATURES_OK != 0 {
            return;
        }
        let (shift, keep) = match self.registers.driver_feature_select {
            0 => (0, 0xffff_ffff_0000_0000),
            1 => (32, 0x0000_0000_ffff_ffff),
            _ => return,
        };
        let kept = self.registers.driver_features & keep;
        self.registers.driver_features = kept | u64::from(word) << shift;
    }

    fn write_status(&mut self, value: u8) {
        if value == 0 {
            self.reset_device();
            return;
        }
        let mut status = value & !NEEDS_RESET | self.registers.status & NEEDS_RESET;
        if self.registers.status & FEATURES_OK == 0 {
            let accepted = self.registers.driver_features;
            let sound = accepted & !self.offered_features() == 0 && accepted & VERSION_1 != 0;
            if !sound {
                // The driver reads the status again, and sees that this will not do (3.1.1).
                status &= !FEATURES_OK;
            }
        }
        let was_running = self.is_running();
        self.registers.status = status;
        if self.is_running() && !was_running {
            // What was made available before counts too.
            for state in &mut self.queues {
                state.notified = state.queue.is_some();
            }
            self.attention = true;
        }
    }

    fn enable_queue(&mut self, host: &mut dyn Host) {
        if self.registers.status & FEATURES_OK == 0 {
            return;
        }
        let features = RingFeatures {
            indirect: self.registers.driver_features & INDIRECT_DESC != 0,
            event_index: self.registers.driver_features & EVENT_IDX != 0,
        };
        let index = usize::from(self.registers.queue_select);
        let Some(state) = self.queues.get_mut(index) else {
            return;
        };
        if state.queue.is_some() {
            return;
        }
        match Queue::new(&self.memory, state.rings, state.size, MAX_SIZE, features) {
            Ok(queue) => {
                state.queue = Some(queue);
                state.notified = true;
                self.attention = true;
            }
            Err(error) => self.fail(error, host),
        }
    }

    /// Takes size and addresses of the selected queue, as long as it is not enabled.
    fn write_queue(&mut self, offset: u64, width: Width, value: u64) {
        let Some(state) = self.selected().filter(|state| state.queue.is_none()) else {
            return;
        };
        if (offset, width) == (0x18, Width::Two) {
            state.size = u16::try_from(value).unwrap_or_default();
            return;
        }
        let address = match offset & !7 {
            0x20 => &mut state.rings.descriptors,
            0x28 => &mut state.rings.driver,
            0x30 => &mut state.rings.device,
            _ => return,
        };
        match (offset & 7, width) {
            (0, Width::Eight) => *address = value,
            (0, Width::Four) => *address = *address & !0xffff_ffff | value,
            (4, Width::Four) => *address = *address & 0xffff_ffff | value << 32,
            _ => {}
        }
    }

    // The BARs.

    fn place(&self, bar: BarIndex, offset: u64) -> Place {
        let [registers, msix] = self.claims;
        let inside = offset % AREA;
        if bar == registers.bar {
            return match offset - inside {
                COMMON => Place::Common(inside),
                ISR => Place::Isr,
                DEVICE => Place::Device(inside),
                NOTIFY => Place::Notify(inside),
                _ => Place::Nothing,
            };
        }
        if bar != msix.bar || offset >= MSIX_SIZE {
            Place::Nothing
        } else if offset < PENDING {
            Place::Table(offset)
        } else {
            Place::Pending(offset - PENDING)
        }
    }

    /// Reads a register. Bits above the width are whatever is there: who asked leaves them out.
    fn read_bar(&mut self, bar: BarIndex, offset: u64, width: Width) -> u64 {
        match self.place(bar, offset) {
            Place::Device(offset) => gather(self.device.config(), offset, width),
            Place::Common(offset) => self.read_common(offset, width),
            // Reading clears it.
            Place::Isr => u64::from(core::mem::take(&mut self.registers.isr)),
            Place::Table(offset) => self.msix.read_table(offset, width),
            Place::Pending(offset) => self.msix.read_pending(offset, width),
            Place::Notify(_) | Place::Nothing => 0,
        }
    }

    fn write_bar(
        &mut self,
        bar: BarIndex,
        offset: u64,
        width: Width,
        value: u64,
        host: &mut dyn Host,
    ) {
        match self.place(bar, offset) {
            Place::Common(offset) => self.write_common(offset, width, value, host),
            Place::Notify(offset) => {
                let queue = usize::try_from(offset / u64::from(NOTIFY_MULTIPLIER));
                if let Some(state) = queue.ok().and_then(|queue| self.queues.get_mut(queue)) {
                    state.notified = true;
                    self.attention = true;
                }
            }
            Place::Table(offset) => {
                self.msix.write_table(offset, width, value);
                self.msix.flush(self.gate(), self.sbdf, host);
            }
            // Of the block device's configuration nothing can be written.
            Place::Device(_) | Place::Isr | Place::Pending(_) | Place::Nothing => {}
        }
    }

    /// Returns the BAR and the offset in it that `address` is.
    fn find(&self, address: u64) -> Option<(BarIndex, u64)> {
        let address = BusAddress::new(address);
        let mut claims = self.claims.iter();
        claims.find_map(|claim| Some((claim.bar, claim.range?.offset_of(address)?)))
    }

    /// Claims what the BARs decode now, and gives back what they no longer do.
    fn move_claims(&mut self, host: &mut dyn Host) {
        // First give back, since one BAR may move to where another was.
        for claim in &mut self.claims {
            let wanted = self.config.decoded(claim.bar);
            if let Some(old) = claim.range.filter(|_| claim.range != wanted) {
                claim.range = None;
                if let Err(status) = host.unmap(self.sbdf, old.start().get()) {
                    host.report(self.sbdf, &format_args!("{old} not given back: {status:?}"));
                }
            }
        }
        for claim in &mut self.claims {
            let wanted = self.config.decoded(claim.bar);
            let Some(range) = wanted.filter(|_| claim.range.is_none()) else {
                continue;
            };
            let size = range.last().get() - range.start().get() + 1;
            match host.map(self.sbdf, range.start().get(), size, MapFlags::POSTED) {
                Ok(()) => claim.range = Some(range),
                // Outside the bridge's windows, or on top of another: nothing answers there.
                Err(status) => {
                    host.report(
                        self.sbdf,
                        &format_args!("{} at {range} not claimed: {status:?}", claim.bar),
                    );
                }
            }
        }
    }

    // The window in config space (4.1.4.9).

    /// Returns what it shows now, if that is an access that a BAR can have.
    fn window(&self) -> Option<(BarIndex, u64, Width)> {
        let at = self.offsets.access;
        let bar = BarIndex::new(u8::try_from(self.config.get(at + 4) & 0xff).ok()?)?;
        let offset = u64::from(self.config.get(at + 8));
        let width = Width::from_bytes(self.config.get(at + 12).into())?;
        let small = width != Width::Eight && offset.is_multiple_of(width.bytes());
        small.then_some((bar, offset, width))
    }

    fn is_window_data(&self, access: ConfigAccess) -> bool {
        access.offset().get() & !3 == self.offsets.access + 16
    }

    /// Handles what one queue's driver made available.
    fn run_queue(&mut self, index: u16) -> Result<Run, QueueError> {
        let Some(state) = self.queues.get_mut(usize::from(index)) else {
            return Ok(Run::default());
        };
        let Some(queue) = state.queue.as_mut().filter(|_| state.notified) else {
            return Ok(Run::default());
        };
        let mut left = BATCH;
        while left > 0 {
            match queue.pop(&self.memory)? {
                Some(chain) => {
                    let cost = chain.bytes().max(CHAIN_COST);
                    let written = self.device.handle(&self.memory, index, &chain)?;
                    queue.push(&self.memory, chain, written)?;
                    left = left.saturating_sub(cost);
                }
                None if queue.wait_for_more(&self.memory)? => {}
                None => {
                    state.notified = false;
                    break;
                }
            }
        }
        Ok(Run {
            interrupt: queue.wants_interrupt(&self.memory)?.then_some(state.vector),
            more: state.notified,
        })
    }
}

/// What came of handling a queue.
#[derive(Default)]
struct Run {
    interrupt: Option<u16>,
    more: bool,
}

impl<D: Device, M: GuestMemory> Function for VirtioPci<D, M> {
    fn config_read(&mut self, access: ConfigAccess, _host: &mut dyn Host) -> u32 {
        if let (true, Some((bar, offset, width))) = (self.is_window_data(access), self.window()) {
            return access.extract(low(self.read_bar(bar, offset, width)));
        }
        self.config.read(access)
    }

    fn config_write(&mut self, access: ConfigAccess, value: u32, host: &mut dyn Host) {
        if let (true, Some((bar, offset, width))) = (self.is_window_data(access), self.window()) {
            let value = u64::from(access.place(value)) & width.mask();
            return self.write_bar(bar, offset, width, value, host);
        }
        let dword = access.offset().get() & !3;
        if dword == self.offsets.device_control && access.place(value) & INITIATE_RESET != 0 {
            return self.reset(host);
        }
        self.config.write(access, value);
        self.move_claims(host);
        self.msix.flush(self.gate(), self.sbdf, host);
    }

    fn mmio_read(&mut self, address: u64, width: Width, _host: &mut dyn Host) -> u64 {
        match self.find(address) {
            Some((bar, offset)) => self.read_bar(bar, offset, width),
            None => width.mask(),
        }
    }

    fn mmio_write(&mut self, address: u64, width: Width, value: u64, host: &mut dyn Host) {
        if let Some((bar, offset)) = self.find(address) {
            self.write_bar(bar, offset, width, value, host);
        }
    }

    fn reset(&mut self, host: &mut dyn Host) {
        self.reset_device();
        self.config.reset();
        self.msix.reset();
        self.move_claims(host);
    }

    fn poll(&mut self, host: &mut dyn Host) -> Progress {
        // A function that is no bus master reads and writes no memory.
        if !self.attention || !self.is_running() || !self.config.is_bus_master() {
            return Progress::Idle;
        }
        self.attention = false;
        let mut progress = Progress::Idle;
        let count = u16::try_from(self.queues.len()).unwrap_or(u16::MAX);
        for index in 0..count {
            if !self.is_running() {
                return Progress::Idle;
            }
            match self.run_queue(index) {
                Ok(run) => {
                    if let Some(vector) = run.interrupt {
                        self.interrupt(vector, ISR_QUEUE, host);
                    }
                    if run.more {
                        self.attention = true;
                        progress = Progress::More;
                    }
                }
                Err(error) => self.fail(error, host),
            }
        }
        progress
    }
}

/// Reads `width` bytes, the first at `offset`; what is not there reads as zero.
fn gather(bytes: &[u8], offset: u64, width: Width) -> u64 {
    let rest = usize::try_from(offset)
        .ok()
        .and_then(|offset| bytes.get(offset..));
    let rest = rest.unwrap_or_default();
    match (width, rest.first_chunk(), rest.first_chunk()) {
        (Width::Four, Some(four), _) => u32::from_le_bytes(*four).into(),
        (_, _, Some(eight)) => u64::from_le_bytes(*eight),
        _ => rest
            .iter()
            .rev()
            .fold(0, |value, byte| value << 8 | u64::from(*byte)),
    }
}

fn bars() -> Result<[BarIndex; 2], NoRoom> {
    let bar = |index| BarIndex::new(index).ok_or(NoRoom);
    Ok([bar(0)?, bar(2)?])
}

/// Adds all capabilities: PCI Express, the four structures and the window (4.1.4), MSI-X.
fn add_capabilities(
    config: &mut ConfigSpace,
    device_size: u32,
    queues: u16,
    vectors: u16,
) -> Result<Offsets, NoRoom> {
    let express = config.add_capability(CAP_EXPRESS, &express())?;
    let structure = |kind: u32, bytes: u32, offset: u64, length: u32| {
        [
            // cap_len is in bits 23:16, cfg_type above.
            Dword::fixed(kind << 24 | bytes << 16),
            Dword::fixed(0), // BAR 0
            Dword::fixed(low(offset)),
            Dword::fixed(length),
        ]
    };
    config.add_capability(CAP_VENDOR, &structure(CFG_COMMON, 16, COMMON, 0x38))?;
    let length = u32::from(queues) * NOTIFY_MULTIPLIER;
    let [a, b, c, d] = structure(CFG_NOTIFY, 20, NOTIFY, length);
    config.add_capability(CAP_VENDOR, &[a, b, c, d, Dword::fixed(NOTIFY_MULTIPLIER)])?;
    config.add_capability(CAP_VENDOR, &structure(CFG_ISR, 16, ISR, 1))?;
    config.add_capability(CAP_VENDOR, &structure(CFG_DEVICE, 16, DEVICE, device_size))?;
    let writable = |writable| Dword { value: 0, writable };
    let window = [
        Dword::fixed(CFG_PCI << 24 | 20 << 16),
        writable(0xff),
        writable(u32::MAX),
        writable(u32::MAX),
        Dword::fixed(0),
    ];
    let access = config.add_capability(CAP_VENDOR, &window)?;
    let control = Dword {
        value: u32::from(vectors.saturating_sub(1)) << 16,
        writable: 0xc000_0000,
    };
    let pending = u32::try_from(PENDING).unwrap_or_default() | 2;
    let msix =
        config.add_capability(CAP_MSIX, &[control, Dword::fixed(2), Dword::fixed(pending)])?;
    Ok(Offsets {
        device_control: express + 8,
        access,
        msix,
    })
}

/// The PCI Express capability of an endpoint that is integrated in the root complex (7.5.3): version
/// 2, a function-level reset, and no link.
fn express() -> [Dword; 15] {
    let mut dwords = [Dword::fixed(0); 15];
    let [first, capabilities, control, ..] = &mut dwords;
    *first = Dword::fixed((2 | 9 << 4) << 16);
    // Role-based error reporting, function-level reset.
    *capabilities = Dword::fixed(1 << 15 | 1 << 28);
    // Relaxed ordering and no snoop are on at power-on; 512 bytes are the largest read.
    *control = Dword {
        value: 0x2810,
        writable: 0x7fff,
    };
    dwords
}
