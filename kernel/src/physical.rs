//! The machine's PCI functions, its SMMUs and its ITS.

use crate::domain::{Domain, MakeError, Memory, Tlb};
use crate::lines::Lines;
use crate::machine;
use crate::memory::{self, DmaPool, TableFrames};
use crate::panic::give_up;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use arch::address::{Ipa, PAGE_SIZE, Pa};
use arch::dma::Coherency;
use arch::gic::lpi::{Pending, Properties};
use arch::gic::{IntId, Priority, Trigger};
use arch::its::{Its, Needs};
use arch::mmio::{Bus, Window};
use arch::smmu::{self, AddressSpace, Smmu};
use arch::table::{Access, Format, Invalidate, Stage2, Vmid};
use core::fmt;
use dt::{Node, Tree};
use kernel::layout;
use pci::{ConfigSpace, Groups, Header, Hierarchy, HostBridge, RidMap};
use spin::{Mutex, Once};
use vpci::{Offset, PhysicalConfig, Sbdf, Size};

/// LPIs are numbered from here (Arm IHI 0069, 2.2).
const FIRST_LPI: u32 = 8192;
/// What an LPI number has at most: as many as there are MSI-X vectors in 32 functions.
const LPI_BITS: u32 = 16;
/// Events of one interrupt's worth of reading the SMMU's queue.
const EVENTS: usize = 256;
/// Events of one function that are shown, in a second.
const SHOWN_EVENTS: u32 = 4;

/// The physical config space: an ECAM window.
pub(crate) struct Ecam {
    window: Window,
    segment: u16,
    first_bus: u8,
}

impl Ecam {
    fn offset(&self, sbdf: Sbdf, offset: Offset) -> Option<usize> {
        let bus = sbdf.bus().checked_sub(self.first_bus)?;
        let function = usize::from(bus) << 20 | usize::from(sbdf.rid() & 0xff) << 12;
        let place = function | usize::from(offset.get());
        (sbdf.segment() == self.segment && place < self.window.len()).then_some(place)
    }
}

impl ConfigSpace for Ecam {
    fn read(&self, sbdf: Sbdf, offset: Offset, size: Size) -> u32 {
        let Some(place) = self.offset(sbdf, offset) else {
            return size.mask();
        };
        match size {
            Size::One => self.window.read8(place).into(),
            Size::Two => self.window.read16(place).into(),
            Size::Four => self.window.read32(place),
        }
    }

    #[expect(
        clippy::cast_possible_truncation,
        reason = "the size says how much is written"
    )]
    fn write(&self, sbdf: Sbdf, offset: Offset, size: Size, value: u32) {
        let Some(place) = self.offset(sbdf, offset) else {
            return;
        };
        match size {
            Size::One => self.window.write8(place, value as u8),
            Size::Two => self.window.write16(place, value as u16),
            Size::Four => self.window.write32(place, value),
        }
    }
}

/// The machine's PCI.
pub(crate) struct Physical {
    /// Config space.
    pub(crate) config: Ecam,
    /// What is there.
    pub(crate) found: Hierarchy,
    /// What cannot be kept apart.
    pub(crate) groups: Groups,
    /// The interrupt lines of the functions.
    pub(crate) lines: Lines,
    /// By position in `found`: the domain that has it.
    pub(crate) owners: Mutex<Vec<Option<u32>>>,
    streams: Option<RidMap>,
    devices: Option<RidMap>,
    smmus: Vec<Iommu>,
    /// The ITS and what goes with it.
    pub(crate) messages: Option<Messages>,
}

/// An SMMU.
struct Iommu {
    phandle: u32,
    interrupts: [Option<u32>; 2],
    smmu: Mutex<Smmu<Window>>,
    /// Who is behind it, by StreamID.
    attached: Mutex<Vec<Attached>>,
}

/// A StreamID that belongs to a domain.
struct Attached {
    stream: u32,
    domain: String,
    host: Sbdf,
    /// Events since it was attached, and those that were shown in the second that began at `since`.
    events: u64,
    shown: u32,
    since: u64,
}

/// The physical ITS, and where each LPI goes.
pub(crate) struct Messages {
    /// The ITS.
    pub(crate) its: Mutex<Its<Window>>,
    phandle: u32,
    properties: Properties,
    routes: Mutex<Vec<Route>>,
    senders: Mutex<Vec<Sender>>,
}

/// A DeviceID that functions of a domain send by: one function, or several behind a bridge that puts its
/// own name on what they send.
struct Sender {
    device: arch::its::Device,
    domain: u32,
    /// How many functions.
    users: usize,
}

/// Where an LPI goes.
enum Route {
    /// Nobody has it.
    Free,
    /// A function has it; nothing is programmed.
    Idle,
    /// To this event of this function, by its name, in the domain's virtual ITS.
    To(Arc<Domain>, Sbdf, u32),
}

static PHYSICAL: Once<Option<Physical>> = Once::new();

/// Returns the machine's PCI, if it has any.
pub(crate) fn get() -> Option<&'static Physical> {
    PHYSICAL.get().and_then(Option::as_ref)
}

macro_rules! or_give_up {
    ($result:expr, $node:expr) => {
        match $result {
            Ok(value) => value,
            Err(error) => give_up(format_args!("{}: {error}", $node.path())),
        }
    };
}

fn map(node: Node<'_>, index: usize) -> Window {
    let region = or_give_up!(node.mmio(index), node);
    // SAFETY: each device is found and driven by one driver, once.
    let window = unsafe { memory::map_device(region.base, region.size) };
    or_give_up!(window, node)
}

/// The SMMUs' registers, before anything else is done with them.
pub(crate) struct Aborted<'t>(Vec<(Node<'t>, Window)>);

/// Makes every SMMU abort everything: the first thing that is done to any device but the terminal.
pub(crate) fn abort_dma(tree: &Tree) -> Aborted<'_> {
    let nodes = tree.compatible("arm,smmu-v3");
    Aborted(
        nodes
            .map(|node| {
                let window = map(node, 0);
                or_give_up!(smmu::abort_all(&window), node);
                (node, window)
            })
            .collect(),
    )
}

/// Finds the ITS, the SMMUs and the PCI functions of the machine.
pub(crate) fn init(tree: &Tree, aborted: Aborted<'_>) {
    PHYSICAL.call_once(|| {
        let node = tree.compatible("pci-host-ecam-generic").next()?;
        Some(find(tree, node, aborted))
    });
    if let Some(physical) = get() {
        physical.enable_interrupts();
    }
}

#[cold]
fn find(tree: &Tree, node: Node<'_>, aborted: Aborted<'_>) -> Physical {
    let (config, host) = host_bridge(node);
    let found = match pci::enumerate(&config, &host) {
        Ok(found) => found,
        Err(_) => give_up(format_args!(
            "there is no memory to note what is on the PCI buses"
        )),
    };
    for problem in found.problems() {
        warning!("PCI {problem}");
    }
    let rid_map = |map: &str, mask: &str| {
        let map = node.property(map)?;
        let mask = node.property(mask).and_then(|mask| mask.u32().ok());
        match RidMap::decode(map.value, mask) {
            Ok(map) => Some(map),
            Err(error) => give_up(format_args!("{}: {} {error:?}", node.path(), map.name)),
        }
    };
    let streams = rid_map("iommu-map", "iommu-map-mask");
    let devices = rid_map("msi-map", "msi-map-mask");
    let stream = |rid| streams.as_ref()?.translate(rid).map(|(_, stream)| stream);
    let Ok(groups) = Groups::find(&found, stream) else {
        give_up(format_args!(
            "there is no memory to note which PCI functions go together"
        ))
    };
    let smmus = aborted
        .0
        .into_iter()
        .map(|(node, window)| iommu(node, window))
        .collect();
    info!("{} PCI functions", found.devices().len());
    for device in found.devices() {
        let (vendor, id, class) = (device.vendor, device.device, device.class);
        debug!(
            "PCI {}: {vendor:04x}:{id:04x}, class {class:06x}",
            device.sbdf
        );
    }
    Physical {
        lines: Lines::find(tree, node, &config, &found),
        owners: Mutex::new(alloc::vec![None; found.devices().len()]),
        config,
        found,
        groups,
        streams,
        devices,
        smmus,
        messages: messages(tree),
    }
}

#[cold]
fn host_bridge(node: Node<'_>) -> (Ecam, HostBridge) {
    let window = map(node, 0);
    let segment = node
        .property("linux,pci-domain")
        .map_or(Ok(0), |segment| segment.u32());
    let segment = or_give_up!(segment, node);
    let mut buses = [0, 255];
    if let Some(range) = node.property("bus-range") {
        let mut cells = or_give_up!(range.cells(), node);
        buses = buses.map(|_| cells.next().unwrap_or(0).min(255));
    }
    // What the window does not reach is not there.
    let reach = u32::try_from((window.len() >> 20).saturating_sub(1)).unwrap_or(u32::MAX);
    let number = |bus: u32| u8::try_from(bus).unwrap_or(u8::MAX);
    let first_bus = number(buses[0]);
    let last_bus = number(buses[1].min(buses[0].saturating_add(reach)));
    let windows = or_give_up!(node.ranges(), node)
        .filter_map(|range| pci::Window::decode(range.flags, range.child, range.parent, range.size))
        .collect();
    let Ok(segment) = u16::try_from(segment) else {
        give_up(format_args!(
            "{}: linux,pci-domain is above 65535",
            node.path()
        ));
    };
    let host = HostBridge {
        segment,
        first_bus,
        last_bus,
        windows,
    };
    (
        Ecam {
            window,
            segment,
            first_bus,
        },
        host,
    )
}

#[cold]
fn iommu(node: Node<'_>, window: Window) -> Iommu {
    let smmu = or_give_up!(Smmu::new(window, 1 << 16, &mut DmaPool), node);
    let names = node
        .property("interrupt-names")
        .and_then(|names| names.strings().ok());
    let position = |wanted: &str| names.clone()?.position(|name| name == wanted);
    let number = |wanted: &str| {
        let index = position(wanted)?;
        node.interrupts()
            .ok()?
            .nth(index)
            .map(|interrupt| interrupt.intid)
    };
    Iommu {
        phandle: node.phandle().unwrap_or(0),
        interrupts: [number("eventq"), number("gerror")],
        smmu: Mutex::new(smmu),
        attached: Mutex::new(Vec::new()),
    }
}

/// Sets up LPIs on every pCPU that has started, and the ITS.
#[cold]
fn messages(tree: &Tree) -> Option<Messages> {
    let machine = machine::get();
    let node = tree.compatible("arm,gic-v3-its").next()?;
    let bits = machine.distributor.lock().lpi_id_bits()?.min(LPI_BITS);
    let properties = or_give_up!(Properties::new(bits, &mut DmaPool), node);
    let region = or_give_up!(node.mmio(0), node);
    let collections = u16::try_from(machine.pcpus.len()).unwrap_or(u16::MAX);
    let needs = Needs {
        collections,
        device_ids: 1 << 16,
    };
    let mut its = or_give_up!(
        Its::new(map(node, 0), Pa::new(region.base), needs, &mut DmaPool),
        node
    );
    for cpu in machine.online() {
        let mut redistributor = machine.redistributors[cpu.number].lock();
        let pending = or_give_up!(Pending::new(bits, &mut DmaPool), node);
        or_give_up!(redistributor.enable_lpis(&properties, pending), node);
        let Ok(collection) = u16::try_from(cpu.number) else {
            continue;
        };
        let number = redistributor.processor_number();
        let place = Pa::new(redistributor.offset() as u64);
        or_give_up!(its.map_collection(collection, number, place), node);
    }
    let lpis = (properties.end() - FIRST_LPI) as usize;
    let mut routes = Vec::new();
    if routes.try_reserve_exact(lpis).is_err() {
        give_up(format_args!(
            "there is no memory to note where {lpis} LPIs go"
        ));
    }
    routes.resize_with(lpis, || Route::Free);
    Some(Messages {
        its: Mutex::new(its),
        phandle: node.phandle().unwrap_or(0),
        properties,
        routes: Mutex::new(routes),
        senders: Mutex::new(Vec::new()),
    })
}

impl Physical {
    /// Lets the SMMUs' interrupts through.
    fn enable_interrupts(&self) {
        let machine = machine::get();
        for iommu in &self.smmus {
            for number in iommu.interrupts.into_iter().flatten() {
                let mut distributor = machine.distributor.lock();
                match distributor.spi(IntId::new(number)) {
                    Ok(spi) => {
                        // They are pulses (SMMUv3, 3.18).
                        distributor.configure(spi, Trigger::Edge);
                        distributor.enable(spi);
                    }
                    Err(_) => warning!("the SMMU's interrupt {number} is none of the GIC's"),
                }
            }
            if iommu.smmu.lock().enable_interrupts().is_err() {
                warning!("an SMMU does not send interrupts: DMA faults are not reported");
            }
        }
    }

    /// Handles an interrupt if it is an SMMU's.
    pub(crate) fn interrupt(&self, number: u32) -> bool {
        let Some(iommu) = self
            .smmus
            .iter()
            .find(|iommu| iommu.interrupts.contains(&Some(number)))
        else {
            return false;
        };
        iommu.report();
        true
    }

    /// Returns the SMMU behind which a function is, and the StreamIDs that it has there.
    fn streams(&self, index: usize) -> Option<(&Iommu, Vec<u32>)> {
        let device = self.found.devices().get(index)?;
        let map = self.streams.as_ref()?;
        let mut streams = Vec::new();
        let mut iommu = None;
        for rid in self.found.requester_ids(device) {
            let (phandle, stream) = map.translate(rid)?;
            iommu = Some(self.smmus.iter().find(|iommu| iommu.phandle == phandle)?);
            streams.try_reserve(1).ok()?;
            streams.push(stream);
        }
        Some((iommu?, streams))
    }

    /// Returns whether a function's DMA is checked by an SMMU.
    pub(crate) fn is_behind_smmu(&self, index: usize) -> bool {
        self.streams(index).is_some()
    }

    /// Lets a function reach a domain's memory.
    pub(crate) fn attach(
        &self,
        index: usize,
        domain: &Domain,
        dma: &Dma,
    ) -> Result<(), smmu::Error> {
        let Some((iommu, streams)) = self.streams(index) else {
            return Ok(());
        };
        let host = self.found.devices()[index].sbdf;
        for stream in streams {
            // Locks: the SMMU, then what is behind it.
            let mut smmu = iommu.smmu.lock();
            let mut attached = iommu.attached.lock();
            attached
                .try_reserve(1)
                .map_err(|_| smmu::Error::OutOfMemory)?;
            // Functions that a bridge sends for have one StreamID, and go to one domain.
            let shared = |other: &Attached| other.stream == stream && other.domain == domain.name();
            if !attached.iter().any(shared) {
                let space = AddressSpace {
                    root: dma.root,
                    id: dma.id,
                    input_bits: Stage2::IPA_BITS,
                };
                smmu.attach(stream, &space, &mut DmaPool)?;
            }
            attached.push(Attached {
                stream,
                domain: String::from(domain.name()),
                host,
                events: 0,
                shown: 0,
                since: 0,
            });
        }
        Ok(())
    }

    /// Lets a function reach nothing.
    pub(crate) fn detach(&self, index: usize) {
        let Some((iommu, streams)) = self.streams(index) else {
            return;
        };
        let host = self.found.devices()[index].sbdf;
        for stream in streams {
            let mut smmu = iommu.smmu.lock();
            let mut attached = iommu.attached.lock();
            let is_its = |other: &Attached| other.stream == stream && other.host == host;
            let Some(place) = attached.iter().position(is_its) else {
                continue;
            };
            attached.swap_remove(place);
            if attached.iter().any(|other| other.stream == stream) {
                continue;
            }
            if smmu.detach(stream, &mut DmaPool).is_err() {
                error!("an SMMU does not answer: stream {stream:#x} may not be detached");
            }
        }
    }

    /// Returns the DeviceID by which the ITS knows a function.
    pub(crate) fn device_id(&self, index: usize) -> Option<u32> {
        let device = self.found.devices().get(index)?;
        let rid = self.found.requester_id(device);
        let (phandle, id) = self.devices.as_ref()?.translate(rid)?;
        (self.messages.as_ref()?.phandle == phandle).then_some(id)
    }

    /// Returns which EventIDs a function has, none if it sends no messages. Functions that have one
    /// DeviceID, since a bridge sends for them, divide its EventIDs among them.
    pub(crate) fn events(&self, index: usize) -> Option<Events> {
        let device = self.device_id(index)?;
        let mut own = None;
        let mut all = 0_u32;
        for other in 0..self.found.devices().len() {
            let count = self.vectors(other);
            if count == 0 || self.device_id(other) != Some(device) {
                continue;
            }
            // Those of a function with several MSIs are the low bits of one number.
            let room = count.next_power_of_two();
            let first = all.next_multiple_of(room);
            all = first + room;
            if other == index {
                own = Some((first, count));
            }
        }
        let (first, count) = own?;
        Some(Events {
            device,
            first,
            count,
            all,
        })
    }

    /// Returns how many vectors a function can have, whichever of MSI and MSI-X it is to use.
    pub(crate) fn vectors(&self, index: usize) -> u32 {
        let device = &self.found.devices()[index];
        if !matches!(device.header, Header::Endpoint) {
            return 0;
        }
        let config = pci::Function::new(&self.config, device.sbdf);
        let control = |capability: Offset| {
            let offset = Offset::in_function(u64::from(capability.get()) + 2);
            PhysicalConfig::read(&config, offset, Size::Two)
        };
        // Multiple Message Capable, where 6 and 7 are reserved (7.7.1.2); Table Size (7.7.2.2).
        let msi = device
            .capabilities
            .msi
            .map_or(0, |offset| 1 << (control(offset) >> 1 & 7).min(5));
        let msix = device
            .capabilities
            .msix
            .map_or(0, |offset| (control(offset) & 0x7ff) + 1);
        msi.max(msix)
    }

    /// Makes the tables through which a domain's devices reach its memory, and the doorbell.
    pub(crate) fn make_dma(&self, memory: &Memory, vmid: Vmid) -> Result<Dma, MakeError> {
        let iommu = self.smmus.first().ok_or(MakeError::NoIommu)?;
        self.make_tables(iommu, memory, vmid)
            .ok_or(MakeError::NoMemory("its devices' tables"))
    }

    fn make_tables(&self, iommu: &Iommu, memory: &Memory, vmid: Vmid) -> Option<Dma> {
        let (format, coherency) = {
            let smmu = iommu.smmu.lock();
            let format = match smmu.format() {
                smmu::Format::Stage1 => Format::Stage1,
                smmu::Format::Stage2 => Format::Stage2,
            };
            (format, smmu.coherency())
        };
        let mut frames = TableFrames::for_device(coherency == Coherency::Coherent);
        let mut stage2 = Stage2::new(&mut frames, format)?;
        for extent in memory.ram() {
            let (ipa, pa) = (Ipa::new(extent.ipa), extent.run.start);
            stage2
                .map(&mut frames, ipa, pa, extent.run.len, Access::DATA)
                .ok()?;
        }
        if let Some(messages) = &self.messages {
            let page = messages.its.lock().doorbell().align_down(PAGE_SIZE);
            let ipa = Ipa::new(layout::PHYSICAL_DOORBELL);
            stage2
                .map(&mut frames, ipa, page, PAGE_SIZE, Access::DOORBELL)
                .ok()?;
        }
        Some(Dma {
            root: stage2.root(),
            id: vmid.get(),
            coherent: coherency == Coherency::Coherent,
            tables: Some(stage2),
        })
    }
}

/// The translation of a domain's devices.
pub(crate) struct Dma {
    root: Pa,
    id: u16,
    coherent: bool,
    tables: Option<Stage2>,
}

impl Invalidate for Dma {
    fn ipa(&self, ipa: Ipa, len: u64) {
        for iommu in get().into_iter().flat_map(|physical| &physical.smmus) {
            if iommu.smmu.lock().invalidate(self.id, ipa, len).is_err() {
                give_up(format_args!(
                    "an SMMU does not invalidate: memory could not be reused"
                ));
            }
        }
    }

    fn all(&self) {
        for iommu in get().into_iter().flat_map(|physical| &physical.smmus) {
            if iommu.smmu.lock().invalidate_all(self.id).is_err() {
                give_up(format_args!(
                    "an SMMU does not invalidate: memory could not be reused"
                ));
            }
        }
    }
}

impl Drop for Dma {
    fn drop(&mut self) {
        if let Some(tables) = self.tables.take() {
            tables.destroy(&mut TableFrames::for_device(self.coherent), self);
        }
    }
}

impl Iommu {
    /// Reports what the SMMU refused: one line for each function and second, the rest is counted.
    #[cold]
    fn report(&self) {
        let mut smmu = self.smmu.lock();
        let mut attached = self.attached.lock();
        let now = crate::sched::now();
        let second = machine::get().frequency;
        for event in smmu.events().take(EVENTS) {
            let stream = event.stream();
            let Some(owner) = attached.iter_mut().find(|owner| owner.stream == stream) else {
                warning!("SMMU: stream {stream:#x} of no domain: {event}");
                continue;
            };
            owner.events += 1;
            if now.wrapping_sub(owner.since) >= second {
                if owner.shown > SHOWN_EVENTS {
                    let more = owner.shown - SHOWN_EVENTS;
                    warning!("SMMU: domain {}, {}: {more} more", owner.domain, owner.host);
                }
                owner.since = now;
                owner.shown = 0;
            }
            owner.shown += 1;
            if owner.shown <= SHOWN_EVENTS {
                let (domain, host, count) = (&owner.domain, owner.host, owner.events);
                warning!("SMMU: domain {domain}, {host}: {event} (event {count})");
            }
        }
        if let Some(errors) = smmu.global_errors() {
            warning!("SMMU: {errors:?}");
        }
    }
}

/// LPIs that a function has: one for each of its vectors.
pub(crate) struct Vectors {
    /// Its DeviceID.
    device: u32,
    /// The EventID of its first vector, the others following.
    first: u32,
    /// The LPI of each vector.
    lpis: Vec<u32>,
}

impl Vectors {
    /// Returns the EventID of a vector.
    pub(crate) fn event(&self, vector: u32) -> u32 {
        self.first + vector
    }
}

/// EventIDs that a function may use.
pub(crate) struct Events {
    /// The DeviceID that they are sent with.
    device: u32,
    /// How many the function has, from which on.
    first: u32,
    count: u32,
    /// How many all functions with this DeviceID have.
    all: u32,
}

/// Why a function got no interrupts.
#[derive(Debug)]
pub(crate) enum VectorError {
    /// There is no ITS for it.
    NoIts,
    /// There are not so many LPIs, or no memory to note them.
    TooMany,
    /// A function of another domain sends by its name.
    Shared,
    /// The ITS refused.
    Its(arch::its::Error),
}

impl fmt::Display for VectorError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoIts => f.write_str("no ITS takes its messages"),
            Self::TooMany => f.write_str("there are not enough LPIs for its vectors"),
            Self::Shared => f.write_str("a function of another domain sends messages by its name"),
            Self::Its(error) => write!(f, "{error}"),
        }
    }
}

impl Messages {
    /// Gives a domain's function an LPI for each of its vectors, all leading nowhere.
    pub(crate) fn allocate(&self, events: &Events, domain: u32) -> Result<Vectors, VectorError> {
        let mut senders = self.senders.lock();
        let sender = self.sender(&mut senders, events, domain)?;
        sender.users += 1;
        let mut taken = Vectors {
            device: events.device,
            first: events.first,
            lpis: Vec::new(),
        };
        let filled = self.fill(sender, &mut taken, events.count);
        drop(senders);
        match filled {
            Ok(()) => Ok(taken),
            Err(error) => {
                self.free(taken);
                Err(error)
            }
        }
    }

    /// Returns what the ITS knows of a DeviceID, which is made known to it if it is not.
    fn sender<'a>(
        &self,
        senders: &'a mut Vec<Sender>,
        events: &Events,
        domain: u32,
    ) -> Result<&'a mut Sender, VectorError> {
        let known = senders
            .iter()
            .position(|sender| sender.device.id() == events.device);
        let index = match known {
            Some(index) => index,
            None => {
                senders.try_reserve(1).map_err(|_| VectorError::TooMany)?;
                let mut its = self.its.lock();
                let device = its
                    .map_device(events.device, events.all, &mut DmaPool)
                    .map_err(VectorError::Its)?;
                senders.push(Sender {
                    device,
                    domain,
                    users: 0,
                });
                senders.len() - 1
            }
        };
        let sender = &mut senders[index];
        if sender.domain == domain {
            Ok(sender)
        } else {
            Err(VectorError::Shared)
        }
    }

    fn fill(
        &self,
        sender: &mut Sender,
        taken: &mut Vectors,
        count: u32,
    ) -> Result<(), VectorError> {
        taken
            .lpis
            .try_reserve_exact(count as usize)
            .map_err(|_| VectorError::TooMany)?;
        let mut its = self.its.lock();
        let mut routes = self.routes.lock();
        let mut from = 0;
        for vector in 0..count {
            let free = routes
                .iter()
                .skip(from)
                .position(|route| matches!(route, Route::Free));
            let index = from + free.ok_or(VectorError::TooMany)?;
            let lpi = u32::try_from(index).map_or(u32::MAX, |index| FIRST_LPI + index);
            let id = IntId::new(lpi);
            let _ = self.properties.set(id, true, Priority::NORMAL);
            its.map_event(&mut sender.device, taken.event(vector), id, 0)
                .map_err(VectorError::Its)?;
            if let Some(route) = routes.get_mut(index) {
                *route = Route::Idle;
            }
            taken.lpis.push(lpi);
            from = index + 1;
        }
        Ok(())
    }

    /// Takes LPIs back.
    pub(crate) fn free(&self, vectors: Vectors) {
        let mut senders = self.senders.lock();
        let known = senders
            .iter()
            .position(|sender| sender.device.id() == vectors.device);
        if let Some(index) = known {
            let sender = &mut senders[index];
            let mut its = self.its.lock();
            let events = (vectors.first..).take(vectors.lpis.len());
            let mut answers = true;
            for event in events {
                answers &= its.unmap_event(&mut sender.device, event).is_ok();
            }
            sender.users -= 1;
            if sender.users == 0 {
                let device = senders.swap_remove(index).device;
                answers &= its.unmap_device(device, &mut DmaPool).is_ok();
            }
            if !answers {
                error!("the ITS does not answer: a device stays mapped");
            }
        }
        drop(senders);
        let mut routes = self.routes.lock();
        for lpi in vectors.lpis {
            if let Some(route) = routes.get_mut((lpi - FIRST_LPI) as usize) {
                *route = Route::Free;
            }
        }
    }

    /// Says where a vector's messages go: to an event of a function of the domain's, or nowhere.
    pub(crate) fn route(&self, vectors: &Vectors, vector: u32, to: Option<(&Domain, Sbdf, u32)>) {
        let Some(lpi) = vectors.lpis.get(vector as usize) else {
            return;
        };
        let route = match to {
            Some((domain, function, event)) => {
                Route::To(domain.reference(0).domain, function, event)
            }
            None => Route::Idle,
        };
        let mut routes = self.routes.lock();
        let slot = routes.get_mut((lpi - FIRST_LPI) as usize);
        let old = slot.map(|slot| core::mem::replace(slot, route));
        // The last reference to a domain must not go away under the lock.
        drop(routes);
        drop(old);
    }

    /// Lets no vector of a device lead anywhere.
    pub(crate) fn unroute(&self, vectors: &Vectors) {
        for (vector, _) in (0..).zip(&vectors.lpis) {
            self.route(vectors, vector, None);
        }
    }

    /// Gives an LPI to the domain that it goes to.
    pub(crate) fn interrupt(&self, lpi: u32) {
        let to = match self
            .routes
            .lock()
            .get((lpi.wrapping_sub(FIRST_LPI)) as usize)
        {
            Some(Route::To(domain, function, event)) => Some((domain.clone(), *function, *event)),
            _ => None,
        };
        if let Some((domain, function, event)) = to
            && let Some(device) = domain.bus_numbers.requester(function)
        {
            // What the domain's ITS does not know is dropped, as hardware does.
            let _ = domain.interrupts.msi(&domain, device.into(), event);
        }
    }

    /// Returns what a device is to write its messages to.
    pub(crate) fn doorbell(&self) -> u64 {
        let doorbell = self.its.lock().doorbell().get();
        layout::PHYSICAL_DOORBELL | doorbell & (PAGE_SIZE - 1)
    }
}

/// Keeps `Tlb` in one place with the other translation that a domain has.
pub(crate) fn cpu_tlb(domain: &Domain) -> Tlb {
    Tlb {
        vttbr: domain.vttbr(),
    }
}
