//! The machine's PCI functions, its SMMUs and its ITS.

use crate::domain::{self, Domain, MakeError, Memory, Tlb};
use crate::lines::Lines;
use crate::memory::{self, DmaPool, TableFrames};
use crate::panic::give_up;
use crate::{machine, pcpu, refusals, sched};
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use arch::address::{Ipa, PAGE_SIZE, Pa};
use arch::asm;
use arch::dma::Coherency;
use arch::gic::lpi::{Pending, Properties};
use arch::gic::{IntId, Priority, Trigger};
use arch::its::{Its, Needs};
use arch::mmio::{Bus, Foreign, Window};
use arch::smmu::{self, AddressSpace, Smmu};
use arch::table::{Access, Format, Invalidate, Stage2, Vmid};
use core::fmt;
use core::ops::Range;
use dt::{Node, Tree};
use kernel::pace::Pace;
use kernel::streams::{Fault, Guard, Heard, Holder, Second, Translation, Trees};
use kernel::{fallible, layout};
use pci::{
    ConfigSpace, Groups, Header, Hierarchy, HostBridge, Owners, Progress, Reset, ResetError,
    RidMap, Wanted,
};
use spin::{Mutex, Once};
use vpci::{Offset, PhysicalConfig, Sbdf, Size};

/// LPIs are numbered from here (Arm IHI 0069, 2.2).
const FIRST_LPI: u32 = 8192;
/// What an LPI number has at most: as many as there are MSI-X vectors in 32 functions.
const LPI_BITS: u32 = 16;
/// Events that are read from an SMMU's queue in one go, and after how many microseconds the next ones
/// are if there are more: meanwhile guests run.
const EVENTS: usize = 256;
const PAUSE_MICROSECONDS: u64 = 1_000;

/// COMMAND (PCI Express Base Specification, 7.5.1.1.3).
const COMMAND: Offset = Offset::in_function(0x04);
const BUS_MASTER: u32 = 1 << 2;
/// What a function reads as that does not answer.
const NO_ANSWER: u32 = 0xffff;

/// The physical config space: an ECAM window.
pub(crate) struct Ecam {
    window: Foreign,
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

    /// Returns whose config space an address of EL2's is.
    fn function_at(&self, address: u64) -> Option<Sbdf> {
        let rid = u16::try_from(self.window.offset_of(address)? >> 12).ok()?;
        let rid = rid.checked_add(u16::from(self.first_bus) << 8)?;
        Some(Sbdf::from_rid(self.segment, rid))
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
    /// Who has it.
    pub(crate) owners: Mutex<Owners>,
    /// By position in `found`: whether it may master the bus.
    masters: Vec<Mutex<Master>>,
    streams: Option<RidMap>,
    devices: Option<RidMap>,
    smmus: Vec<Iommu>,
    /// The ITS and what goes with it.
    pub(crate) messages: Option<Messages>,
}

/// A function as a bus master.
#[derive(Default)]
struct Master {
    /// It made a storm of faults, or what is to check its DMA failed: it may not, until its reset.
    cut: bool,
    /// How often that was so.
    times: u32,
}

/// The config space of a function that a domain has: its COMMAND is written without bus mastering while
/// that is taken from it.
pub(crate) struct Mastered {
    physical: &'static Physical,
    index: usize,
    function: pci::Function<'static, Ecam>,
}

impl PhysicalConfig for Mastered {
    fn read(&self, offset: Offset, size: Size) -> u32 {
        self.function.read(offset, size)
    }

    fn write(&self, offset: Offset, size: Size, value: u32) {
        if offset == COMMAND {
            self.physical.set_command(self.index, value);
        } else {
            self.function.write(offset, size, value);
        }
    }
}

/// An SMMU.
///
/// Locks: a function's `Master`, then `state`; never two of a kind.
struct Iommu {
    /// Its node's path.
    name: String,
    phandle: u32,
    interrupts: [Option<u32>; 2],
    state: Mutex<IommuState>,
}

/// The driver of an SMMU, with the kernel's memory.
struct Driver(Smmu<Window>);

impl Translation for Driver {
    fn format(&self) -> smmu::Format {
        self.0.format()
    }
    fn listen(&mut self, stream: u32) -> Result<(), smmu::Error> {
        self.0.listen(stream, &mut DmaPool)
    }
    fn attach(&mut self, stream: u32, space: &AddressSpace) -> Result<(), smmu::Error> {
        self.0.attach(stream, space, &mut DmaPool)
    }
    fn detach(&mut self, stream: u32) -> Result<(), smmu::Error> {
        self.0.detach(stream, &mut DmaPool)
    }
    fn refuse(&mut self, stream: u32) -> Result<(), smmu::Error> {
        self.0.refuse(stream)
    }
    fn resume(&mut self, stream: u32) -> Result<(), smmu::Error> {
        self.0.resume(stream)
    }
    fn invalidate(&mut self, id: u16, at: Ipa, len: u64) -> Result<(), smmu::Error> {
        self.0.invalidate(id, at, len)
    }
    fn invalidate_all(&mut self, id: u16) -> Result<(), smmu::Error> {
        self.0.invalidate_all(id)
    }
    fn turn_off(&mut self) -> Result<(), smmu::Error> {
        self.0.turn_off()
    }
    fn is_off(&self) -> bool {
        self.0.is_off()
    }
}

/// What changes of an SMMU.
struct IommuState {
    guard: Guard<Driver>,
    /// Events of streams that nobody has.
    strangers: Second,
    /// Times that events were lost, and those of them that were overflows.
    losses: Second,
    overflows: u64,
    /// Events are not read before this: they are read again then.
    resume_at: Option<u64>,
}

/// What reading an SMMU's events led to.
enum Drained {
    /// There is nothing to do.
    Quiet,
    /// There are more of them.
    More,
    /// Too many are of this stream.
    Storm { stream: u32, allowed: u32 },
    /// The SMMU has given up.
    Failed,
}

/// The physical ITS, and where each LPI goes.
pub(crate) struct Messages {
    /// Its lock is held while functions come and go, for many commands.
    its: Mutex<Its<Window>>,
    /// Where devices write to, physically.
    translater: Pa,
    phandle: u32,
    properties: Properties,
    routes: Mutex<Routes>,
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

/// Where messages go, and how fast they come.
struct Routes {
    /// By LPI, from the first one on.
    lpis: Vec<Route>,
    /// By number: the functions that have LPIs.
    sources: Vec<Option<Source>>,
}

/// Where an LPI goes.
enum Route {
    /// Nobody has it.
    Free,
    /// The source of this number has it; nothing is programmed.
    Idle(u32),
    /// To this event of this function, by its name, in the domain's virtual ITS.
    To(u32, Arc<Domain>, Sbdf, u32),
}

/// A function as one that sends messages.
struct Source {
    host: Sbdf,
    domain: u32,
    lpis: Range<u32>,
    pace: Pace,
    /// Its LPIs are stopped, until they may go on.
    held: bool,
    /// It was said that they were.
    told: bool,
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
    let mut aborted = Vec::new();
    for node in tree.compatible("arm,smmu-v3") {
        let window = map(node, 0);
        or_give_up!(smmu::abort_all(&window), node);
        or_give_up!(fallible::push(&mut aborted, (node, window)), node);
    }
    Aborted(aborted)
}

/// Finds the ITS, the SMMUs and the PCI functions of the machine, and enables the virtual functions that
/// are wanted.
pub(crate) fn init(
    tree: &Tree,
    aborted: Aborted<'_>,
    wanted: &[Wanted],
    wait: &mut dyn FnMut(u32),
) {
    PHYSICAL.call_once(|| {
        let node = tree.compatible("pci-host-ecam-generic").next()?;
        Some(find(tree, node, aborted, wanted, wait))
    });
    if let Some(physical) = get() {
        physical.enable_interrupts();
    }
}

#[cold]
fn find(
    tree: &Tree,
    node: Node<'_>,
    aborted: Aborted<'_>,
    wanted: &[Wanted],
    wait: &mut dyn FnMut(u32),
) -> Physical {
    let (config, host) = host_bridge(node);
    let found = match pci::enumerate(&config, &host, wanted, wait) {
        Ok(found) => found,
        Err(_) => give_up(format_args!(
            "there is no memory to note what is on the PCI buses"
        )),
    };
    for problem in found.problems() {
        warning!("PCI {problem}");
    }
    match refusals::count() {
        0 => {}
        count => warning!(
            "PCI: {count} config accesses were answered with an external abort, as if nothing were there"
        ),
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
    let stream = |rid| streams.as_ref()?.translate(rid);
    let Ok(groups) = Groups::find(&found, stream) else {
        give_up(format_args!(
            "there is no memory to note which PCI functions go together"
        ))
    };
    let smmus = aborted.0.into_iter();
    let smmus = smmus.filter_map(|(node, window)| iommu(node, window, streams.as_ref()));
    let smmus = or_give_up!(fallible::collect(smmus), node);
    let masters = found.devices().iter().map(|_| Mutex::default());
    let masters = or_give_up!(fallible::collect(masters), node);
    let Ok(owners) = Owners::new(&found) else {
        give_up(format_args!(
            "there is no memory to note who has which PCI function"
        ))
    };
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
        owners: Mutex::new(owners),
        masters,
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
    let region = or_give_up!(node.mmio(0), node);
    // SAFETY: as in `map`.
    let window = unsafe { memory::map_config_space(region.base, region.size) };
    let window = Foreign::new(or_give_up!(window, node));
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
    let windows = or_give_up!(node.ranges(), node).filter_map(|range| {
        pci::Window::decode(range.flags, range.child, range.parent, range.size)
    });
    let windows = or_give_up!(fallible::collect(windows), node);
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

/// Takes an SMMU over. One that we cannot use stays as it is, which lets nothing through.
#[cold]
fn iommu(node: Node<'_>, window: Window, streams: Option<&RidMap>) -> Option<Iommu> {
    let phandle = node.phandle().unwrap_or(0);
    let end = streams.map_or(0, |map| map.end(phandle));
    if end == 0 {
        debug!("{}: no PCI function is behind it", node.path());
        return None;
    }
    let wired = match node.property("dma-coherent") {
        Some(_) => Coherency::Coherent,
        None => Coherency::Software,
    };
    let smmu = match Smmu::new(window, wired, end, &mut DmaPool) {
        Ok(smmu) => smmu,
        Err(error) => {
            warning!("{}: {error}: nothing passes it", node.path());
            return None;
        }
    };
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
    Some(Iommu {
        name: or_give_up!(fallible::display(node.path()), node),
        phandle,
        interrupts: match number("combined") {
            // One line for all of them (devicetree binding arm,smmu-v3).
            Some(combined) => [Some(combined), None],
            None => [number("eventq"), number("gerror")],
        },
        state: Mutex::new(IommuState {
            guard: Guard::new(Driver(smmu)),
            strangers: Second::default(),
            losses: Second::default(),
            overflows: 0,
            resume_at: None,
        }),
    })
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
        let address = redistributor.address();
        or_give_up!(its.map_collection(collection, number, address), node);
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
        translater: its.doorbell(),
        its: Mutex::new(its),
        phandle: node.phandle().unwrap_or(0),
        properties,
        routes: Mutex::new(Routes {
            lpis: routes,
            sources: Vec::new(),
        }),
        senders: Mutex::new(Vec::new()),
    })
}

impl Physical {
    /// Lets the SMMUs' interrupts through.
    fn enable_interrupts(&self) {
        let machine = machine::get();
        for iommu in &self.smmus {
            if iommu.interrupts == [None, None] {
                let name = &iommu.name;
                warning!("{name}: it has no interrupts: DMA faults are not reported");
            }
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
            if iommu.state.lock().guard.smmu.0.enable_interrupts().is_err() {
                let name = &iommu.name;
                warning!("{name}: it sends no interrupts: DMA faults are not reported");
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
        self.report(iommu);
        true
    }

    /// Returns the streams that a function has, for each of its requester IDs one, and the SMMU of
    /// each; `None` for one that none checks.
    fn streams(&self, index: usize) -> impl Iterator<Item = Option<(&Iommu, u32)>> {
        let device = self.found.devices().get(index);
        let requesters = device.into_iter().flat_map(|d| self.found.requester_ids(d));
        requesters.map(|rid| {
            let (phandle, stream) = self.streams.as_ref()?.translate(rid)?;
            let iommu = self.smmus.iter().find(|iommu| iommu.phandle == phandle)?;
            Some((iommu, stream))
        })
    }

    /// Returns whether a function's DMA is checked by an SMMU, whichever way it takes.
    pub(crate) fn is_behind_smmu(&self, index: usize) -> bool {
        self.streams(index).all(|stream| stream.is_some())
    }

    /// Refuses what a function sends, but lets it be heard: it is about to go to `domain`. A stream that
    /// another function of the domain uses stays as it is. On an error it is to be detached.
    pub(crate) fn listen(
        &self,
        index: usize,
        allowed: u32,
        domain: &Domain,
        dma: &Dma,
    ) -> Result<(), smmu::Error> {
        let host = self.found.devices()[index].sbdf;
        for stream in self.streams(index) {
            let (iommu, stream) = stream.ok_or(smmu::Error::NoSuchStream(host.rid().into()))?;
            let guard = &mut iommu.state.lock().guard;
            let space = dma.space(guard.smmu.format());
            let holder = Holder {
                function: host,
                domain: domain.name(),
                allowed,
            };
            guard.listen(stream, space.ok_or(smmu::Error::OutOfMemory)?.id, holder)?;
        }
        Ok(())
    }

    /// Returns what a function has tried since `listen`, or since this was last asked and something lost.
    pub(crate) fn heard(&self, index: usize) -> Heard {
        let mut all = Heard::default();
        for (iommu, stream) in self.streams(index).flatten() {
            // Others may have made so many events that some are still unread.
            iommu.state.lock().resume_at = None;
            self.report_some(iommu, smmu::EVENTS);
            let mut state = iommu.state.lock();
            let heard = state.guard.heard(stream);
            all.faults = all.faults.saturating_add(heard.faults);
            // Still: they make more, or another pCPU has read some and paused.
            all.lost |= heard.lost || state.resume_at.is_some();
        }
        all
    }

    /// Lets a function reach a domain's memory. It may make so many faults in a second. On an error
    /// it is to be detached.
    pub(crate) fn attach(
        &self,
        index: usize,
        allowed: u32,
        domain: &Domain,
        dma: &Dma,
    ) -> Result<(), smmu::Error> {
        let host = self.found.devices()[index].sbdf;
        for stream in self.streams(index) {
            let (iommu, stream) = stream.ok_or(smmu::Error::NoSuchStream(host.rid().into()))?;
            let guard = &mut iommu.state.lock().guard;
            let space = dma.space(guard.smmu.format());
            let holder = Holder {
                function: host,
                domain: domain.name(),
                allowed,
            };
            guard.attach(stream, &space.ok_or(smmu::Error::OutOfMemory)?, holder)?;
        }
        Ok(())
    }

    /// Lets a function reach nothing. A stream that others have too stays theirs: the function does
    /// not master the bus any more.
    pub(crate) fn detach(&self, index: usize) {
        let Some(device) = self.found.devices().get(index) else {
            return;
        };
        for (iommu, stream) in self.streams(index).flatten() {
            let detach = || iommu.state.lock().guard.detach(stream, device.sbdf);
            if let Err(error) = detach() {
                self.fail(iommu, &error);
                // It is off, so that this only tidies up.
                let _ = detach();
            }
        }
    }

    /// Returns the config space of a function, for who writes its COMMAND.
    pub(crate) fn mastered(&'static self, index: usize) -> Mastered {
        Mastered {
            physical: self,
            index,
            function: pci::Function::new(&self.config, self.found.devices()[index].sbdf),
        }
    }

    /// Writes a function's COMMAND: without bus mastering while that is taken from it.
    fn set_command(&self, index: usize, command: u32) {
        let (Some(device), Some(master)) =
            (self.found.devices().get(index), self.masters.get(index))
        else {
            return;
        };
        let master = master.lock();
        let command = if master.cut {
            command & !BUS_MASTER
        } else {
            command
        };
        self.config.write(device.sbdf, COMMAND, Size::Two, command);
    }

    /// Takes bus mastering from a function until its reset, and has its streams refused without
    /// events. Returns how often that was so, or `None` if it was already: then its streams may be others'
    /// again, and are refused once more.
    #[cold]
    pub(crate) fn cut(&self, index: usize) -> Option<u32> {
        let (device, master) = (self.found.devices().get(index)?, self.masters.get(index)?);
        let mut failed = None;
        let times = {
            let mut master = master.lock();
            let again = core::mem::replace(&mut master.cut, true);
            if !again {
                master.times = master.times.saturating_add(1);
            }
            let command = match self.config.read(device.sbdf, COMMAND, Size::Two) {
                NO_ANSWER => 0,
                command => command & !BUS_MASTER,
            };
            self.config.write(device.sbdf, COMMAND, Size::Two, command);
            // The answer does not overtake what the function wrote before (PCI Express Base
            // Specification, 2.4.1): when it is here, nothing of that is on its way.
            let _ = self.config.read(device.sbdf, COMMAND, Size::Two);
            asm::dsb_sy();
            for (iommu, stream) in self.streams(index).flatten() {
                let refused = iommu.state.lock().guard.cut(stream, device.sbdf);
                if let Err(error) = refused {
                    failed = Some((iommu, error));
                }
            }
            (!again).then_some(master.times)
        };
        if let Some((iommu, error)) = failed {
            self.fail(iommu, &error);
        }
        times
    }

    /// Gives back to a function that was reset what `cut` took: its driver may have it master the bus.
    pub(crate) fn restore(&self, index: usize) {
        let (Some(device), Some(master)) =
            (self.found.devices().get(index), self.masters.get(index))
        else {
            return;
        };
        let mut failed = None;
        {
            let mut master = master.lock();
            if !master.cut {
                return;
            }
            for (iommu, stream) in self.streams(index).flatten() {
                let resumed = iommu.state.lock().guard.restore(stream, device.sbdf);
                if let Err(error) = resumed {
                    failed = Some((iommu, error));
                }
            }
            master.cut = failed.is_some();
        }
        if let Some((iommu, error)) = failed {
            warning!("PCI {}: it stays cut off from memory: {error}", device.sbdf);
            self.fail(iommu, &error);
        }
    }

    /// Gives an SMMU up that did not do what it was told, so that nothing depends on what it cached:
    /// it is turned off, which lets nothing through, and whoever is behind it is cut off. Then the
    /// others can go on. If it does not take that either, nobody's memory is safe.
    #[cold]
    fn fail(&self, iommu: &Iommu, why: &dyn fmt::Display) {
        {
            let smmu = &mut iommu.state.lock().guard.smmu;
            if smmu.is_off() {
                return;
            }
            if let Err(error) = smmu.turn_off() {
                let name = &iommu.name;
                give_up(format_args!(
                    "{name}: {why}, and cannot be turned off: {error}"
                ));
            }
        }
        error!(
            "{}: {why}: it is off, and what is behind it reaches no memory",
            iommu.name
        );
        for index in 0..self.found.devices().len() {
            if self.holds(index, iommu, |_| true) {
                self.cut(index);
            }
        }
    }

    /// Returns whether a function was given a stream of this SMMU that is `one`.
    fn holds(&self, index: usize, iommu: &Iommu, one: impl Fn(u32) -> bool) -> bool {
        let Some(device) = self.found.devices().get(index) else {
            return false;
        };
        let here = self.streams(index).flatten();
        let mut here = here.filter(|(other, id)| core::ptr::eq(*other, iommu) && one(*id));
        here.any(|(_, id)| {
            let state = iommu.state.lock();
            state.guard.streams().others(id, device.sbdf).is_some()
        })
    }

    /// Reports what an SMMU refused, as much of it as is read in one go, and does something about
    /// functions that do not stop.
    #[cold]
    fn report(&self, iommu: &Iommu) {
        self.report_some(iommu, EVENTS);
    }

    fn report_some(&self, iommu: &Iommu, mut budget: usize) {
        loop {
            let drained = iommu.state.lock().drain(&iommu.name, &mut budget);
            match drained {
                Drained::Quiet => return,
                Drained::More => {
                    let pause = machine::get().ticks(PAUSE_MICROSECONDS);
                    let at = crate::sched::now().saturating_add(pause);
                    iommu.state.lock().resume_at = Some(at);
                    crate::sched::look_at_devices(at);
                    return;
                }
                Drained::Storm { stream, allowed } => self.storm(iommu, stream, allowed),
                Drained::Failed => self.fail(iommu, &"service failure"),
            }
        }
    }

    /// Goes on where `report` paused, and with interrupts that were held back.
    pub(crate) fn look_again(&self) {
        for iommu in &self.smmus {
            let resume_at = iommu.state.lock().resume_at;
            match resume_at {
                Some(at) if sched::now() < at => sched::look_at_devices(at),
                Some(_) => self.report(iommu),
                None => {}
            }
        }
        // They come to the boot pCPU, and only its timer is set for them.
        if pcpu::this().number != 0 {
            return;
        }
        if let Some(messages) = &self.messages {
            messages.go_on();
        }
        self.lines.go_on();
    }

    /// Cuts off all functions that have a stream.
    #[cold]
    fn storm(&self, iommu: &Iommu, stream: u32, allowed: u32) {
        for (index, device) in self.found.devices().iter().enumerate() {
            if !self.holds(index, iommu, |id| id == stream) {
                continue;
            }
            if let Some(times) = self.cut(index) {
                let state = iommu.state.lock();
                let (name, host) = (state.guard.streams().domain(stream), device.sbdf);
                warning!(
                    "SMMU: domain {name}, {host}: more than {allowed} faults in a second: cut off from memory until its reset (time {times})"
                );
            }
        }
    }

    /// Returns which function's registers an address of EL2's belongs to, and the domain that has it.
    pub(crate) fn function_at(&self, address: u64) -> Option<(Sbdf, Option<u32>)> {
        let devices = self.found.devices();
        let holds = |device: &pci::Device| {
            device.bars.iter().flatten().any(|bar| {
                let offset = bar.info().and_then(|bar| address.checked_sub(bar.host));
                offset.is_some_and(|offset| offset < bar.size)
            })
        };
        let sbdf = self
            .config
            .function_at(address)
            .or_else(|| Some(devices.iter().find(|device| holds(device))?.sbdf))?;
        let owner = self
            .found
            .position(sbdf)
            .map(|index| self.owners.lock().of(index));
        let domain = match owner {
            Some(pci::Owner::Domain { domain, .. }) => Some(domain),
            _ => None,
        };
        Some((sbdf, domain))
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
            host: self.found.devices()[index].sbdf,
            device,
            first,
            count,
            all,
        })
    }

    /// Returns how many vectors a function can have, as it said when it was found.
    pub(crate) fn vectors(&self, index: usize) -> u32 {
        let device = &self.found.devices()[index];
        match device.header {
            Header::Endpoint => device.capabilities.vectors.into(),
            Header::Bridge(_) | Header::Other(_) => 0,
        }
    }

    /// Makes the tables through which a domain's devices reach its memory, and the doorbell: whichever
    /// of the machine's SMMUs they are behind.
    pub(crate) fn make_dma(&self, memory: &Memory, vmid: Vmid) -> Result<Dma, MakeError> {
        if self.smmus.is_empty() {
            return Err(MakeError::NoIommu);
        }
        let trees = Trees::of(self.smmus.iter().map(|iommu| {
            let smmu = &iommu.state.lock().guard.smmu.0;
            (smmu.format(), smmu.coherency())
        }));
        let no_memory = MakeError::NoMemory("its devices' tables");
        self.make_trees(trees, memory, vmid).ok_or(no_memory)
    }

    fn make_trees(&self, trees: Trees, memory: &Memory, vmid: Vmid) -> Option<Dma> {
        let messages = self.messages.as_ref();
        let doorbell = messages.map(|messages| messages.translater.align_down(PAGE_SIZE));
        let end = doorbell.map_or(0, |page| page.get() + PAGE_SIZE);
        let mut dma = Dma {
            id: vmid.get(),
            end: Pa::new(memory::ram_end().get().max(end)),
            coherent: trees.coherency == Coherency::Coherent,
            trees: [None, None],
        };
        let wanted = [
            (trees.stage1, Format::Stage1),
            (trees.stage2, Format::Stage2),
        ];
        for ((wanted, format), tree) in wanted.into_iter().zip(&mut dma.trees) {
            if wanted {
                let mut frames = TableFrames::for_device(dma.coherent);
                *tree = Some(make_tree(&mut frames, format, memory, doorbell)?);
            }
        }
        Some(dma)
    }
}

fn make_tree(
    frames: &mut TableFrames,
    format: Format,
    memory: &Memory,
    doorbell: Option<Pa>,
) -> Option<Stage2> {
    let mut tree = Stage2::new(frames, format)?;
    let ram = memory.ram().map(|extent| {
        let (ipa, pa) = (Ipa::new(extent.ipa), extent.run.start);
        (ipa, pa, extent.run.len, Access::DATA)
    });
    let doorbell = doorbell.map(|page| {
        let ipa = Ipa::new(layout::PHYSICAL_DOORBELL);
        (ipa, page, PAGE_SIZE, Access::DOORBELL)
    });
    for (ipa, pa, len, access) in ram.chain(doorbell) {
        if tree.map(frames, ipa, pa, len, access).is_err() {
            // No SMMU has seen it.
            tree.destroy(frames, &Unseen);
            return None;
        }
    }
    Some(tree)
}

/// Stands for the caches of SMMUs that have never seen a tree.
struct Unseen;

impl Invalidate for Unseen {
    fn ipa(&self, _ipa: Ipa, _len: u64) {}
    fn all(&self) {}
}

/// The reset of a function on its way, and what is reserved for it.
pub(crate) struct Resetting {
    reset: Reset,
    done: bool,
    /// Another one does what this one would, and has what is reserved for it.
    replaced: bool,
}

impl Resetting {
    /// Starts a reset for which `Owners` has reserved what goes along.
    pub(crate) fn new(reset: Reset) -> Self {
        Self {
            reset,
            done: false,
            replaced: false,
        }
    }

    /// Takes the next step, if its time has come.
    pub(crate) fn step(&mut self) -> Result<Progress, ResetError> {
        let Some(physical) = get() else {
            return Ok(Progress::Done);
        };
        let now = sched::uptime();
        let progress = self.reset.step(&physical.config, &physical.found, now)?;
        self.done = progress == Progress::Done;
        Ok(progress)
    }

    /// Returns whether this one does what another one would: that may go then.
    pub(crate) fn replaces(&self, other: &mut Self) -> bool {
        other.replaced |= self.reset.covers(other.reset.index());
        other.replaced
    }

    /// Returns whether it has reserved the function at this position, if nobody has that.
    pub(crate) fn reserves(&self, index: usize) -> bool {
        get().is_some_and(|physical| self.reset.reserves(&physical.found, index))
    }

    /// Returns whether the function at this position is reset, too.
    pub(crate) fn covers(&self, index: usize) -> bool {
        self.reset.covers(index)
    }
}

impl Drop for Resetting {
    fn drop(&mut self) {
        if let Some(physical) = get()
            && !self.replaced
        {
            self.reset.give_up(&physical.config);
            let mut owners = physical.owners.lock();
            owners.end_reset(&physical.found, &self.reset, self.done);
        }
    }
}

/// The translation of a domain's devices: a tree in the format of stage 1 and one in that of stage 2,
/// as far as the machine's SMMUs need them.
pub(crate) struct Dma {
    id: u16,
    /// Nothing in them leads to this address or above.
    end: Pa,
    coherent: bool,
    trees: [Option<Stage2>; 2],
}

impl Dma {
    /// Returns the address space for an SMMU that has tables in this format.
    fn space(&self, format: smmu::Format) -> Option<AddressSpace> {
        let [stage1, stage2] = &self.trees;
        let tree = match format {
            smmu::Format::Stage1 => stage1,
            smmu::Format::Stage2 => stage2,
        };
        Some(AddressSpace {
            root: tree.as_ref()?.root(),
            id: self.id,
            input_bits: Stage2::IPA_BITS,
            end: self.end,
        })
    }

    /// Has each SMMU forget what it holds of the address space. One that does not is given up.
    fn forget(&self, forget: impl Fn(&mut Guard<Driver>) -> Result<(), smmu::Error>) {
        let Some(physical) = get() else { return };
        for iommu in &physical.smmus {
            let forgotten = forget(&mut iommu.state.lock().guard);
            if let Err(error) = forgotten {
                physical.fail(iommu, &error);
            }
        }
    }
}

impl Invalidate for Dma {
    fn ipa(&self, ipa: Ipa, len: u64) {
        self.forget(|guard| guard.invalidate(self.id, ipa, len));
    }

    fn all(&self) {
        self.forget(|guard| guard.invalidate_all(self.id));
    }
}

impl Drop for Dma {
    fn drop(&mut self) {
        for tree in core::mem::take(&mut self.trees).into_iter().flatten() {
            tree.destroy(&mut TableFrames::for_device(self.coherent), self);
        }
    }
}

impl IommuState {
    /// Reads and reports events, at most `budget`: a few lines for each stream and second, the rest
    /// is counted.
    fn drain(&mut self, name: &str, budget: &mut usize) -> Drained {
        let now = crate::sched::now();
        if self.resume_at.is_some_and(|at| now < at) {
            return Drained::Quiet;
        }
        self.resume_at = None;
        let smmu = &mut self.guard.smmu.0;
        if smmu.is_off() {
            return Drained::Quiet;
        }
        let frequency = machine::get().frequency;
        let errors = smmu.global_errors();
        if let Some(errors) = &errors {
            if !errors.events_lost() {
                warning!("{name}: {errors}");
            }
            if errors.service_failure() {
                return Drained::Failed;
            }
        }
        let drained = self.read_events(budget, now, frequency);
        let lost = errors.is_some_and(|errors| errors.events_lost());
        self.tell_losses(name, lost, now, frequency);
        drained
    }

    fn read_events(&mut self, budget: &mut usize, now: u64, frequency: u64) -> Drained {
        while *budget > 0 {
            let Some(event) = self.guard.smmu.0.next_event() else {
                return Drained::Quiet;
            };
            *budget -= 1;
            let stream = event.stream();
            let Some(fault) = self.guard.fault(stream, now, frequency) else {
                if self.strangers.count(now, frequency).now <= kernel::streams::SHOWN {
                    warning!("SMMU: stream {stream:#x} of no domain: {event}");
                }
                continue;
            };
            tell(&fault, &event);
            if let Some(allowed) = fault.storm {
                return Drained::Storm { stream, allowed };
            }
        }
        Drained::More
    }

    /// Says that there are faults of which nothing else is said.
    fn tell_losses(&mut self, name: &str, lost: bool, now: u64, frequency: u64) {
        let overflows = self.guard.smmu.0.overflows();
        if !lost && overflows == self.overflows {
            return;
        }
        self.overflows = overflows;
        self.guard.lose();
        if self.losses.count(now, frequency).now == 1 {
            warning!("{name}: faults came faster than they are read: some are not reported");
        }
    }
}

fn tell(fault: &Fault<'_>, event: &smmu::Event) {
    let (domain, host) = (fault.domain, fault.function);
    if fault.hidden > 0 {
        warning!("SMMU: domain {domain}, {host}: {} more", fault.hidden);
    }
    if fault.shown {
        let number = fault.number;
        warning!("SMMU: domain {domain}, {host}: {event} (event {number})");
    }
}

/// LPIs that a function has: one for each of its vectors.
pub(crate) struct Vectors {
    /// Its DeviceID.
    device: u32,
    /// The EventID of its first vector, the others following.
    first: u32,
    /// The LPI of each vector.
    lpis: Range<u32>,
    /// The number of the source that it is.
    source: u32,
}

impl Vectors {
    fn events(&self) -> Range<u32> {
        self.first..self.first + (self.lpis.end - self.lpis.start)
    }

    /// Returns the EventID of a vector.
    pub(crate) fn event(&self, vector: u32) -> u32 {
        self.first + vector
    }
}

/// EventIDs that a function may use.
pub(crate) struct Events {
    /// The function.
    host: Sbdf,
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
    /// Gives a domain's function an LPI for each of its vectors, all leading nowhere. So many messages may
    /// come in a second.
    pub(crate) fn allocate(
        &self,
        events: &Events,
        domain: u32,
        allowed: u32,
    ) -> Result<Vectors, VectorError> {
        let mut senders = self.senders.lock();
        let sender = self.sender(&mut senders, events, domain)?;
        sender.users += 1;
        let (source, lpis) = self.take_lpis(events, domain, allowed);
        let taken = Vectors {
            device: events.device,
            first: events.first,
            lpis,
            source,
        };
        let filled = match taken.lpis.is_empty() {
            true => Err(VectorError::TooMany),
            false => self.fill(sender, &taken),
        };
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

    fn fill(&self, sender: &mut Sender, taken: &Vectors) -> Result<(), VectorError> {
        let mut its = self.its.lock();
        let _ = self
            .properties
            .set(taken.lpis.clone(), true, Priority::NORMAL);
        let (events, first) = (taken.events(), IntId::new(taken.lpis.start));
        let mapped = its.map_events(&mut sender.device, events, first, 0);
        mapped.map_err(VectorError::Its)
    }

    /// Takes LPIs for a function, in a row, and makes it a source of that number; of none if there are not
    /// so many.
    fn take_lpis(&self, events: &Events, domain: u32, allowed: u32) -> (u32, Range<u32>) {
        let Routes { lpis, sources } = &mut *self.routes.lock();
        let mut first = FIRST_LPI;
        let end = (FIRST_LPI..).zip(lpis.iter()).find_map(|(lpi, route)| {
            if !matches!(route, Route::Free) {
                first = lpi + 1;
            }
            (lpi + 1 - first == events.count).then_some(lpi + 1)
        });
        let is_full = sources.iter().all(Option::is_some);
        let has_room = !is_full || fallible::push(sources, None).is_ok();
        let mut numbered = (0..).zip(sources);
        let free = numbered.find(|(_, source)| source.is_none());
        let (Some(end), true, Some((number, source))) = (end, has_room, free) else {
            return (0, 0..0);
        };
        let routes = lpis.iter_mut().skip((first - FIRST_LPI) as usize);
        for route in routes.take(events.count as usize) {
            *route = Route::Idle(number);
        }
        let lpis = first..end;
        *source = Some(Source {
            host: events.host,
            domain,
            lpis: lpis.clone(),
            pace: Pace::new(allowed),
            held: false,
            told: false,
        });
        (number, lpis)
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
            let unmapped = its.unmap_events(&mut sender.device, vectors.events());
            let mut answers = unmapped.is_ok();
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
        if vectors.lpis.is_empty() {
            return;
        }
        let Routes { lpis, sources } = &mut *self.routes.lock();
        for lpi in vectors.lpis {
            if let Some(route) = lpis.get_mut((lpi - FIRST_LPI) as usize) {
                *route = Route::Free;
            }
        }
        if let Some(source) = sources.get_mut(vectors.source as usize) {
            *source = None;
        }
    }

    /// Says where a vector's messages go: to an event of a function of the domain's, or nowhere.
    pub(crate) fn route(&self, vectors: &Vectors, vector: u32, to: Option<(&Domain, Sbdf, u32)>) {
        let Some(lpi) = vectors.lpis.clone().nth(vector as usize) else {
            return;
        };
        let source = vectors.source;
        let route = match to {
            Some((domain, function, event)) => {
                Route::To(source, domain.reference(0).domain, function, event)
            }
            None => Route::Idle(source),
        };
        let mut routes = self.routes.lock();
        let slot = routes.lpis.get_mut((lpi - FIRST_LPI) as usize);
        let old = slot.map(|slot| core::mem::replace(slot, route));
        // The last reference to a domain must not go away under the lock.
        drop(routes);
        drop(old);
        // Whoever takes the message finds the route, if the device is told to send it after this.
        asm::dmb_oshst();
    }

    /// Lets no vector of a device lead anywhere.
    pub(crate) fn unroute(&self, vectors: &Vectors) {
        for (vector, _) in (0..).zip(vectors.lpis.clone()) {
            self.route(vectors, vector, None);
        }
    }

    /// Gives an LPI to the domain that it goes to.
    pub(crate) fn interrupt(&self, lpi: u32) {
        let mut routes = self.routes.lock();
        let Routes { lpis, sources } = &mut *routes;
        let (source, to) = match lpis.get(lpi.wrapping_sub(FIRST_LPI) as usize) {
            Some(Route::To(source, domain, function, event)) => {
                (*source, Some((domain.clone(), *function, *event)))
            }
            Some(Route::Idle(source)) => (*source, None),
            Some(Route::Free) | None => return,
        };
        let known = sources.get_mut(source as usize).and_then(Option::as_mut);
        let many = known.is_some_and(|source| source.pace.count());
        drop(routes);
        if many {
            self.hold_back(source);
        }
        if let Some((domain, function, event)) = to
            && let Some(device) = domain.bus_numbers.requester(function)
        {
            // What the domain's ITS does not know is dropped, as hardware does.
            let _ = domain.interrupts.msi(&domain, device.into(), event);
        }
    }

    /// Stops the LPIs of a source that sends faster than it may, until it may go on: what it sends
    /// meanwhile is pending in the redistributor (Arm IHI 0069, 5.1).
    #[cold]
    fn hold_back(&self, number: u32) {
        let mut routes = self.routes.lock();
        let Some(Some(source)) = routes.sources.get_mut(number as usize) else {
            return;
        };
        let Some(due) = source.pace.due(sched::time()) else {
            return;
        };
        source.held = source.held || self.let_through(source, false);
        if source.held {
            sched::look_at_devices(due);
        }
        let told = core::mem::replace(&mut source.told, true);
        let (host, domain, allowed) = (source.host, source.domain, source.pace.allowed());
        drop(routes);
        if !told {
            warning!(
                "domain {}, {host}: more than {allowed} messages in a second: they are held back",
                domain::Name(domain)
            );
        }
    }

    /// Lets the LPIs of sources through again that were stopped for long enough.
    fn go_on(&self) {
        let time = sched::time();
        let mut routes = self.routes.lock();
        for source in routes.sources.iter_mut().flatten() {
            if !source.held {
                continue;
            }
            let due = source.pace.due(time);
            source.held = due.is_some() || !self.let_through(source, true);
            if source.held {
                let pause = machine::get().ticks(PAUSE_MICROSECONDS);
                sched::look_at_devices(due.unwrap_or(time.now.saturating_add(pause)));
            }
        }
    }

    /// Lets the LPIs of a source through, or stops them; returns whether the ITS was told. Nobody waits
    /// for the ITS here, nor for those who do: what has to be done again costs as much as a message.
    fn let_through(&self, source: &Source, enabled: bool) -> bool {
        let Some(mut its) = self.its.try_lock() else {
            return false;
        };
        let change = || {
            let lpis = source.lpis.clone();
            let _ = self.properties.set(lpis, enabled, Priority::NORMAL);
        };
        its.reconfigure(0, change) == Ok(true)
    }

    /// Returns what a device is to write its messages to.
    pub(crate) fn doorbell(&self) -> u64 {
        layout::PHYSICAL_DOORBELL | self.translater.get() & (PAGE_SIZE - 1)
    }
}

/// Keeps `Tlb` in one place with the other translation that a domain has.
pub(crate) fn cpu_tlb(domain: &Domain) -> Tlb {
    Tlb {
        vttbr: domain.vttbr(),
    }
}
