//! What makes a manifest impossible.
//!
//! Every rule is here, once, with the words that a person reads. An [`Error`] names the thing and the
//! field as the system file does; what is wrong, and what to write instead, is its [`Mistake`].

use core::fmt;

use vpci::Sbdf;

use crate::model::{
    Backend, Domain, Function, Grant, GuestRange, MAX_FAULTS_MOST, MAX_INTERRUPTS, Manifest,
    Module, Payload, Port, Server, Sriov,
};
use crate::{BLOCK, PAGE, RAM_BASE, RAM_LIMIT};

/// The longest name.
const NAME_LEN: usize = 31;
/// The longest command line: what Linux takes, without its NUL (arch/arm64, `COMMAND_LINE_SIZE`).
const CMDLINE_LEN: usize = 2047;
/// The redistributors lie between 0x080a_0000 and the UART, 128 KiB each.
const VCPUS: u32 = (0x0900_0000 - 0x080a_0000) / 0x2_0000;
/// The flash bank that firmware is mapped in.
const FLASH: u64 = 64 << 20;
/// What a domain's device tree takes of its memory.
const DEVICE_TREE: u64 = 2 << 20;
/// Where modules that a domain was granted are mapped, from 0x71_0000_0000 up.
const MODULE_WINDOW: u64 = 4 << 30;
/// Where windows on the memory of targets are mapped, from 0x72_0000_0000 to the end of 39 bits.
const TARGET_WINDOW: u64 = 0x80_0000_0000 - 0x72_0000_0000;
/// What each such window is aligned to.
const TARGET_ALIGNMENT: u64 = 1 << 30;
/// The highest priority.
const PRIORITY_MAX: u32 = 15;

/// What is known of the machine that the system is for. `None` is not checked.
#[derive(Clone, Copy, Debug, Default)]
pub struct Machine {
    /// How many pCPUs there are.
    pub pcpus: Option<u32>,
    /// How many bytes of memory there are.
    pub memory: Option<u64>,
}

/// A mistake in a manifest, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Error<'m> {
    /// The thing that is wrong.
    pub item: Item<'m>,
    /// The field of it, as the system file calls it.
    pub field: &'static str,
    /// What is wrong with the field.
    pub mistake: Mistake<'m>,
}

/// A thing in a manifest. Numbers are places in the lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Item<'m> {
    /// All of it.
    System,
    /// A module.
    Module(usize, &'m Module),
    /// A physical function that is to have virtual ones.
    Sriov(usize, &'m Sriov),
    /// A domain.
    Domain(usize, &'m Domain),
    /// A root port of a domain.
    Port(usize, &'m Domain, usize, &'m Port),
    /// A function of a domain.
    Function(usize, &'m Domain, usize, &'m Function),
    /// A server of a domain.
    Server(usize, &'m Domain, usize, &'m Server),
}

/// What is wrong with a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mistake<'m> {
    /// Nothing is to be made.
    NoDomains,
    /// All domains together do not fit the machine.
    MachineMemory(u64, u64),
    /// Not a name.
    Name,
    /// Two things of a kind have the name.
    NameTaken,
    /// `vpci` as a server's name.
    NameReserved,
    /// The module has no bytes.
    ModuleEmpty,
    /// The module does not start at a page, or reaches past all offsets.
    ModulePlace,
    /// The module shares bytes with another.
    ModuleOverlap(&'m str),
    /// There is no such module.
    NoModule(&'m str),
    /// The module is granted twice.
    ModuleTwice(&'m str),
    /// The granted modules do not fit where they are mapped.
    ModulesTooLarge(u64),
    /// Not a multiple of [`BLOCK`].
    MemoryUnaligned(u64),
    /// What is to be put in it does not fit.
    MemoryTooSmall(u64),
    /// Past [`RAM_LIMIT`].
    MemoryTooLarge(u64),
    /// The firmware does not fit its flash bank.
    FirmwareTooLarge(u64),
    /// No vCPU, or more than the redistributors' window holds.
    Vcpus(u32),
    /// The command line is too long, or has a NUL.
    Cmdline(usize),
    /// Above the highest priority.
    Priority(u32),
    /// No pCPU to run on.
    AffinityEmpty,
    /// The same pCPU twice.
    AffinityTwice(u32),
    /// A pCPU that the machine does not have.
    AffinityBeyond(u32, u32),
    /// No virtual function, or more than a function can have.
    Vfs(u32),
    /// The physical function is named twice.
    SriovTwice,
    /// A second domain is the control domain.
    ControlTwice(&'m str),
    /// A second domain has the console.
    ConsoleTwice(&'m str),
    /// A function or a port, but no host bridge.
    NoHostBridge,
    /// A physical function, but no IOMMU.
    NoIommu,
    /// Another function of the domain is there.
    SlotTaken,
    /// A port of the domain is there.
    SlotOfPort,
    /// The host bridge is there.
    SlotOfHostBridge,
    /// The slot is on no bus of the domain.
    SlotOffBus,
    /// The slot is not of device 0, below a port that leads to that one only.
    SlotBelowPort,
    /// A port that is not on bus 0 of segment 0.
    PortOffRoot,
    /// Not the number of a bus below a port.
    PortBus(u32),
    /// Two ports with the same bus.
    PortBusTaken(Sbdf),
    /// The physical function is given away twice.
    HostTaken(&'m str, Sbdf),
    /// vPCI without a physical function.
    HostMissing,
    /// A device model with a physical function.
    HostEmulated,
    /// What only a physical function can have, on an emulated one.
    PhysicalOnly,
    /// `max_faults` on an emulated function.
    FaultsEmulated,
    /// More faults than may be allowed.
    FaultsTooMany,
    /// Fewer or more interrupts than may be allowed.
    Interrupts,
    /// There is no such server.
    NoServer(&'m str),
    /// The server's target is another domain.
    ServerOfOther(&'m str, &'m str),
    /// There is no such domain.
    NoTarget(&'m str),
    /// A domain serves itself.
    OwnTarget,
    /// Its target has no bus.
    TargetNoBridge(&'m str),
    /// A list of no ranges.
    RangesEmpty,
    /// A range without bytes, or not of whole pages.
    RangeUnaligned(GuestRange),
    /// A range that is not inside the target's memory.
    RangeOutside(GuestRange, u64),
    /// Two ranges share bytes.
    RangeOverlap(GuestRange, GuestRange),
    /// All windows of the domain do not fit where they are mapped.
    WindowsTooLarge(u64),
}

impl Manifest {
    /// Checks whether the system can be made, up to the first reason why not.
    ///
    /// # Errors
    ///
    /// That reason.
    pub fn check(&self, machine: Machine) -> Result<(), Error<'_>> {
        let mut first = None;
        self.check_all(machine, &mut |error| {
            first.get_or_insert(error);
        });
        first.map_or(Ok(()), Err)
    }

    /// Checks whether the system can be made, and reports every reason why not.
    pub fn check_all<'m>(&'m self, machine: Machine, report: &mut dyn FnMut(Error<'m>)) {
        self.check_system(machine, report);
        for (index, module) in self.modules.iter().enumerate() {
            let item = Item::Module(index, module);
            self.check_module(index, module, &mut |field, mistake| {
                report(Error {
                    item,
                    field,
                    mistake,
                });
            });
        }
        for (index, sriov) in self.sriov.iter().enumerate() {
            let item = Item::Sriov(index, sriov);
            self.check_sriov(index, *sriov, &mut |field, mistake| {
                report(Error {
                    item,
                    field,
                    mistake,
                });
            });
        }
        for (index, domain) in self.domains.iter().enumerate() {
            let item = Item::Domain(index, domain);
            let mut report_domain = |field, mistake| {
                report(Error {
                    item,
                    field,
                    mistake,
                })
            };
            self.check_domain(index, domain, machine, &mut report_domain);
            self.check_memory(domain, &mut report_domain);
            self.check_grants(domain, &mut report_domain);
            for (at, port) in domain.ports.iter().enumerate() {
                let item = Item::Port(index, domain, at, port);
                check_port(domain, at, port, &mut |field, mistake| {
                    report(Error {
                        item,
                        field,
                        mistake,
                    });
                });
            }
            for (at, function) in domain.functions.iter().enumerate() {
                let item = Item::Function(index, domain, at, function);
                self.check_function(index, domain, at, function, &mut |field, mistake| {
                    report(Error {
                        item,
                        field,
                        mistake,
                    });
                });
            }
            for (at, server) in domain.servers.iter().enumerate() {
                let item = Item::Server(index, domain, at, server);
                self.check_server(index, domain, at, server, &mut |field, mistake| {
                    report(Error {
                        item,
                        field,
                        mistake,
                    });
                });
            }
        }
    }

    fn check_system<'m>(&'m self, machine: Machine, report: &mut dyn FnMut(Error<'m>)) {
        let mut report = |field, mistake| {
            report(Error {
                item: Item::System,
                field,
                mistake,
            });
        };
        if self.domains.is_empty() {
            report("domain", Mistake::NoDomains);
        }
        let sizes = self.domains.iter().map(|domain| domain.memory);
        let wanted = sizes.fold(0, u64::saturating_add);
        if let Some(memory) = machine.memory.filter(|&memory| wanted > memory) {
            report("memory", Mistake::MachineMemory(wanted, memory));
        }
    }

    fn check_module<'m>(&'m self, index: usize, module: &'m Module, report: Report<'_, 'm>) {
        let before = self.modules.iter().take(index);
        check_name(
            &module.name,
            before.clone().map(|other| &other.name),
            report,
        );
        if module.size == 0 {
            report("file", Mistake::ModuleEmpty);
        }
        let end = module.offset.checked_add(module.size);
        if !module.offset.is_multiple_of(PAGE) || end.is_none() {
            report("file", Mistake::ModulePlace);
        }
        // Two names for the same bytes are no mistake.
        let overlaps = |other: &&Module| {
            other.offset < module.end()
                && module.offset < other.end()
                && (other.offset, other.size) != (module.offset, module.size)
        };
        if let Some(other) = before.clone().find(overlaps) {
            report("file", Mistake::ModuleOverlap(&other.name));
        }
    }

    fn check_sriov<'m>(&'m self, index: usize, sriov: Sriov, report: Report<'_, 'm>) {
        let mut before = self.sriov.iter().take(index);
        if before.any(|other| other.host == sriov.host) {
            report("host", Mistake::SriovTwice);
        }
        // NumVFs has 16 bits (PCI Express Base Specification, section 9.3.3.7).
        if !(1..=u32::from(u16::MAX)).contains(&sriov.vfs) {
            report("vfs", Mistake::Vfs(sriov.vfs));
        }
    }

    fn check_domain<'m>(
        &'m self,
        index: usize,
        domain: &'m Domain,
        machine: Machine,
        report: Report<'_, 'm>,
    ) {
        let before = || self.domains.iter().take(index);
        check_name(&domain.name, before().map(|other| &other.name), report);
        if !(1..=VCPUS).contains(&domain.vcpus) {
            report("vcpus", Mistake::Vcpus(domain.vcpus));
        }
        if domain.cmdline.len() > CMDLINE_LEN || domain.cmdline.contains('\0') {
            report("cmdline", Mistake::Cmdline(domain.cmdline.len()));
        }
        if domain.priority > PRIORITY_MAX {
            report("priority", Mistake::Priority(domain.priority));
        }
        if let Some(other) = before().find(|other| domain.control && other.control) {
            report("control", Mistake::ControlTwice(&other.name));
        }
        if let Some(other) = before().find(|other| domain.console && other.console) {
            report("console", Mistake::ConsoleTwice(&other.name));
        }
        if let Some(cpus) = &domain.affinity {
            check_affinity(cpus, machine.pcpus, report);
        }
    }

    fn check_memory<'m>(&'m self, domain: &'m Domain, report: Report<'_, 'm>) {
        let mut size_of = |field, name: &'m str| match self.module(name) {
            Some(module) => module.size,
            None => {
                report(field, Mistake::NoModule(name));
                0
            }
        };
        let payload = match &domain.payload {
            Payload::Kernel(name) => size_of("kernel", name),
            Payload::Firmware(name) => size_of("firmware", name),
        };
        let initrd = domain.initrd.as_deref();
        let initrd = initrd.map_or(0, |name| size_of("initrd", name));
        let copied = match domain.payload {
            Payload::Kernel(_) => payload,
            Payload::Firmware(_) => 0,
        };
        if matches!(domain.payload, Payload::Firmware(_)) && payload > FLASH {
            report("firmware", Mistake::FirmwareTooLarge(payload));
        }
        let needed = [copied, initrd, DEVICE_TREE];
        let needed = needed.into_iter().fold(0, u64::saturating_add);
        if !domain.memory.is_multiple_of(BLOCK) {
            report("memory", Mistake::MemoryUnaligned(domain.memory));
        } else if domain.memory < needed {
            report("memory", Mistake::MemoryTooSmall(round_up(needed, BLOCK)));
        } else if domain.memory > RAM_LIMIT - RAM_BASE {
            report("memory", Mistake::MemoryTooLarge(domain.memory));
        }
    }

    /// Checks what the domain is granted: modules, and memory of others.
    fn check_grants<'m>(&'m self, domain: &'m Domain, report: Report<'_, 'm>) {
        let mut total = 0u64;
        for (at, name) in domain.modules.iter().enumerate() {
            match self.module(name) {
                Some(module) => total = total.saturating_add(round_up(module.size, BLOCK)),
                None => report("modules", Mistake::NoModule(name)),
            }
            if domain.modules.iter().take(at).any(|other| other == name) {
                report("modules", Mistake::ModuleTwice(name));
            }
        }
        if total > MODULE_WINDOW {
            report("modules", Mistake::ModulesTooLarge(total));
        }
        let windows = domain.servers.iter().flat_map(|server| {
            let target = self.domain(&server.target).map(|(_, target)| target.memory);
            let (all, ranges) = match &server.memory {
                Grant::All => (target, &[][..]),
                Grant::None => (None, &[][..]),
                Grant::Ranges(ranges) => (None, ranges.as_slice()),
            };
            all.into_iter().chain(ranges.iter().map(|range| range.size))
        });
        let total = windows
            .map(|size| round_up(size, TARGET_ALIGNMENT))
            .fold(0, u64::saturating_add);
        if total > TARGET_WINDOW {
            report("server", Mistake::WindowsTooLarge(total));
        }
    }

    fn check_function<'m>(
        &'m self,
        index: usize,
        domain: &'m Domain,
        at: usize,
        function: &'m Function,
        report: Report<'_, 'm>,
    ) {
        let slot = function.slot;
        if !domain.host_bridge {
            report("slot", Mistake::NoHostBridge);
        }
        let above = |port: &&Port| port.bus == u32::from(slot.bus());
        match domain.ports.iter().find(above) {
            _ if slot.segment() != 0 => report("slot", Mistake::SlotOffBus),
            _ if slot.bus() == 0 && slot.device() == 0 => {
                report("slot", Mistake::SlotOfHostBridge);
            }
            _ if slot.bus() == 0 => {}
            Some(port) if port.ari || slot.device() == 0 => {}
            Some(_) => report("slot", Mistake::SlotBelowPort),
            None => report("slot", Mistake::SlotOffBus),
        }
        if domain.ports.iter().any(|port| port.slot == slot) {
            report("slot", Mistake::SlotOfPort);
        }
        let mut before = domain.functions.iter().take(at);
        if before.any(|other| other.slot == slot) {
            report("slot", Mistake::SlotTaken);
        }
        if let Some(host) = function.host {
            self.check_host(index, domain, at, host, report);
        }
        if function
            .max_faults
            .is_some_and(|most| most > MAX_FAULTS_MOST)
        {
            report("max_faults", Mistake::FaultsTooMany);
        }
        if function
            .max_interrupts
            .is_some_and(|most| !MAX_INTERRUPTS.contains(&most))
        {
            report("max_interrupts", Mistake::Interrupts);
        }
        match &function.backend {
            Backend::Vpci if function.host.is_none() => report("host", Mistake::HostMissing),
            Backend::Vpci => {}
            Backend::Server(name) => self.check_emulated(domain, function, name, report),
        }
    }

    fn check_host<'m>(
        &'m self,
        index: usize,
        domain: &'m Domain,
        at: usize,
        host: Sbdf,
        report: Report<'_, 'm>,
    ) {
        if !domain.iommu {
            report("host", Mistake::NoIommu);
        }
        let others = self.domains.iter().take(index);
        let others = others.flat_map(|other| other.functions.iter().map(move |f| (other, f)));
        let own = domain.functions.iter().take(at).map(|f| (domain, f));
        if let Some((other, f)) = others.chain(own).find(|(_, f)| f.host == Some(host)) {
            report("host", Mistake::HostTaken(&other.name, f.slot));
        }
    }

    fn check_emulated<'m>(
        &'m self,
        domain: &'m Domain,
        function: &'m Function,
        name: &'m str,
        report: Report<'_, 'm>,
    ) {
        match self.server(name) {
            None => report("backend", Mistake::NoServer(name)),
            Some((_, server)) if server.target != domain.name => {
                report("backend", Mistake::ServerOfOther(name, &server.target));
            }
            Some(_) => {}
        }
        if function.host.is_some() {
            report("host", Mistake::HostEmulated);
        }
        if function.allow_no_reset {
            report("allow_no_reset", Mistake::PhysicalOnly);
        }
        if function.vendor_capabilities {
            report("vendor_capabilities", Mistake::PhysicalOnly);
        }
        if function.max_faults.is_some() {
            report("max_faults", Mistake::FaultsEmulated);
        }
        if function.max_interrupts.is_some() {
            report("max_interrupts", Mistake::PhysicalOnly);
        }
    }

    fn check_server<'m>(
        &'m self,
        index: usize,
        domain: &'m Domain,
        at: usize,
        server: &'m Server,
        report: Report<'_, 'm>,
    ) {
        let others = self.domains.iter().take(index);
        let others = others.flat_map(|other| &other.servers);
        let before = others.chain(domain.servers.iter().take(at));
        check_name(&server.name, before.map(|other| &other.name), report);
        if server.name == "vpci" {
            report("name", Mistake::NameReserved);
        }
        if server.target == domain.name {
            report("target", Mistake::OwnTarget);
        }
        let Some((_, target)) = self.domain(&server.target) else {
            return report("target", Mistake::NoTarget(&server.target));
        };
        if !target.host_bridge && target.name != domain.name {
            report("target", Mistake::TargetNoBridge(&server.target));
        }
        if let Grant::Ranges(ranges) = &server.memory {
            check_ranges(ranges, target.memory, report);
        }
    }
}

/// Takes a field and what is wrong with it.
type Report<'r, 'm> = &'r mut dyn FnMut(&'static str, Mistake<'m>);

fn check_name<'m>(
    name: &'m str,
    mut before: impl Iterator<Item = &'m alloc::string::String>,
    report: Report<'_, 'm>,
) {
    let letter = |c: char| c.is_ascii_alphanumeric();
    let sound = name.len() <= NAME_LEN
        && name.starts_with(letter)
        && name
            .chars()
            .all(|c| letter(c) || matches!(c, '-' | '_' | '.'));
    if !sound {
        report("name", Mistake::Name);
    }
    if before.any(|other| other == name) {
        report("name", Mistake::NameTaken);
    }
}

fn check_port<'m>(domain: &'m Domain, at: usize, port: &'m Port, report: Report<'_, 'm>) {
    if !domain.host_bridge {
        report("slot", Mistake::NoHostBridge);
    }
    if port.slot.segment() != 0 || port.slot.bus() != 0 {
        report("slot", Mistake::PortOffRoot);
    } else if port.slot.device() == 0 {
        report("slot", Mistake::SlotOfHostBridge);
    }
    let before = domain.ports.iter().take(at);
    if before.clone().any(|other| other.slot == port.slot) {
        report("slot", Mistake::SlotOfPort);
    }
    if !(1..=255).contains(&port.bus) {
        report("bus", Mistake::PortBus(port.bus));
    } else if let Some(other) = before.clone().find(|other| other.bus == port.bus) {
        report("bus", Mistake::PortBusTaken(other.slot));
    }
}

fn check_affinity(cpus: &[u32], pcpus: Option<u32>, report: Report<'_, '_>) {
    if cpus.is_empty() {
        report("affinity", Mistake::AffinityEmpty);
    }
    for (at, &cpu) in cpus.iter().enumerate() {
        if let Some(pcpus) = pcpus.filter(|&pcpus| cpu >= pcpus) {
            report("affinity", Mistake::AffinityBeyond(cpu, pcpus));
        }
        if cpus.iter().take(at).any(|&other| other == cpu) {
            report("affinity", Mistake::AffinityTwice(cpu));
        }
    }
}

fn check_ranges(ranges: &[GuestRange], memory: u64, report: Report<'_, '_>) {
    let end = RAM_BASE.saturating_add(memory);
    if ranges.is_empty() {
        report("memory", Mistake::RangesEmpty);
    }
    for (at, range) in ranges.iter().enumerate() {
        let whole = |number: u64| number.is_multiple_of(PAGE);
        if range.size == 0 || !whole(range.base) || !whole(range.size) {
            report("memory", Mistake::RangeUnaligned(*range));
        }
        let fits = range
            .base
            .checked_add(range.size)
            .is_some_and(|last| last <= end);
        if range.base < RAM_BASE || !fits {
            report("memory", Mistake::RangeOutside(*range, end));
        }
        let overlaps = |other: &&GuestRange| other.base < range.end() && range.base < other.end();
        if let Some(other) = ranges.iter().take(at).find(overlaps) {
            report("memory", Mistake::RangeOverlap(*range, *other));
        }
    }
}

fn round_up(size: u64, alignment: u64) -> u64 {
    size.checked_next_multiple_of(alignment).unwrap_or(u64::MAX)
}

impl fmt::Display for Error<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}: {}", self.item, self.field, self.mistake)
    }
}

impl core::error::Error for Error<'_> {}

/// The thing, with what separates it from its field.
impl fmt::Display for Item<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::System => Ok(()),
            Self::Module(_, module) => write!(f, "module {}: ", module.name),
            Self::Sriov(_, sriov) => write!(f, "sriov {}: ", sriov.host),
            Self::Domain(_, domain) => write!(f, "domain {}: ", domain.name),
            Self::Port(_, domain, _, port) => {
                write!(f, "domain {}: port {}: ", domain.name, port.slot)
            }
            Self::Function(_, domain, _, function) => {
                write!(f, "domain {}: function {}: ", domain.name, function.slot)
            }
            Self::Server(_, domain, _, server) => {
                write!(f, "domain {}: server {}: ", domain.name, server.name)
            }
        }
    }
}

/// A number of bytes, as the system file would have it.
struct Bytes(u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(30, "G"), (20, "M"), (10, "K")];
        let whole = |&&(shift, _): &&(u32, &str)| self.0 != 0 && self.0.trailing_zeros() >= shift;
        match units.iter().find(whole) {
            Some((shift, unit)) => write!(f, "{}{unit}", self.0 >> shift),
            None => write!(f, "{} bytes", self.0),
        }
    }
}

impl fmt::Display for GuestRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}+{:#x}", self.base, self.size)
    }
}

impl fmt::Display for Mistake<'_> {
    #[rustfmt::skip]
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NoDomains              => write!(f, "there is no domain; describe at least one"),
            Self::MachineMemory(wanted, memory) => write!(f, "the domains want {} together, but the machine has {}; give them less, or the machine more", Bytes(wanted), Bytes(memory)),
            Self::Name                   => write!(f, "not a name; write 1 to {NAME_LEN} letters, digits, '-', '_' and '.', a letter or digit first"),
            Self::NameTaken              => write!(f, "the name is taken; choose another"),
            Self::NameReserved           => write!(f, "vpci stands for the hypervisor; choose another name"),
            Self::ModuleEmpty            => write!(f, "the module is empty; name a file that has contents"),
            Self::ModulePlace            => write!(f, "the module's place in the image is not a page boundary, or past the end; pack the image again"),
            Self::ModuleOverlap(other)   => write!(f, "the module overlaps module {other}; pack the image again"),
            Self::NoModule(name)         => write!(f, "there is no module {name}; name one that is in the image"),
            Self::ModuleTwice(name)      => write!(f, "module {name} is granted twice; grant it once"),
            Self::ModulesTooLarge(total) => write!(f, "the modules take {}, and there is room for {}; grant fewer or smaller ones", Bytes(total), Bytes(MODULE_WINDOW)),
            Self::MemoryUnaligned(size)  => write!(f, "{} is not a multiple of 2M; write {}", Bytes(size), Bytes(round_up(size, BLOCK))),
            Self::MemoryTooSmall(needed) => write!(f, "what is loaded does not fit; write {} or more", Bytes(needed)),
            Self::MemoryTooLarge(size)   => write!(f, "{} reach into the ECAM window; write {} or less", Bytes(size), Bytes(RAM_LIMIT - RAM_BASE)),
            Self::FirmwareTooLarge(size) => write!(f, "{} are more than its flash bank has; write a file of {} or less", Bytes(size), Bytes(FLASH)),
            Self::Vcpus(_)               => write!(f, "write a number from 1 to {VCPUS}"),
            Self::Cmdline(len)           => write!(f, "{len} bytes, or one of them a NUL; write at most {CMDLINE_LEN}, without"),
            Self::Priority(_)            => write!(f, "write a number from 0 to {PRIORITY_MAX}"),
            Self::AffinityEmpty          => write!(f, "no pCPU is left to run on; name at least one, or leave the field out for all"),
            Self::AffinityTwice(cpu)     => write!(f, "pCPU {cpu} is named twice; name it once"),
            Self::AffinityBeyond(cpu, pcpus) => write!(f, "there is no pCPU {cpu}; write numbers below {pcpus}"),
            Self::Vfs(_)                 => write!(f, "write a number from 1 to {}", u16::MAX),
            Self::SriovTwice             => write!(f, "the function is named already; name it once"),
            Self::ControlTwice(other)    => write!(f, "domain {other} is the control domain already; leave one of the two"),
            Self::ConsoleTwice(other)    => write!(f, "domain {other} has the console already; leave one of the two"),
            Self::NoHostBridge           => write!(f, "the domain has no host bridge to put a function below; write host_bridge = true"),
            Self::NoIommu                => write!(f, "assigning a device to a domain without iommu is refused; write iommu = true"),
            Self::SlotTaken              => write!(f, "another function of the domain is there; choose a free slot"),
            Self::SlotOfPort             => write!(f, "a port of the domain is there; choose a free slot"),
            Self::SlotOfHostBridge       => write!(f, "device 0 is the host bridge; choose a slot from 00:01.0 up"),
            Self::SlotOffBus             => write!(f, "no bridge of the domain leads there; choose a slot on bus 00, or add [[domain.port]] with that bus"),
            Self::SlotBelowPort          => write!(f, "a port leads to device 0 only; choose a slot of device 00, or write ari = true for the port"),
            Self::PortOffRoot            => write!(f, "a root port belongs on the root bus; choose a slot on bus 00"),
            Self::PortBus(_)             => write!(f, "the bus below a port has a number of its own; write one from 1 to 255"),
            Self::PortBusTaken(other)    => write!(f, "the port at {other} has that bus already; choose another number"),
            Self::HostTaken(other, slot) => write!(f, "domain {other} has it already, at {slot}; give it to one of the two"),
            Self::HostMissing            => write!(f, "vpci needs a physical function; write host = \"0000:BB:DD.F\", or name a server as backend"),
            Self::HostEmulated           => write!(f, "a server emulates the function, so it has no physical one; leave host out, or write backend = \"vpci\""),
            Self::PhysicalOnly           => write!(f, "only physical functions need it; leave it out"),
            Self::FaultsEmulated         => write!(f, "only physical functions have DMA that can fault; leave it out"),
            Self::FaultsTooMany          => write!(f, "write a number from 0 to {MAX_FAULTS_MOST}"),
            Self::Interrupts             => write!(f, "write a number from {} to {}", MAX_INTERRUPTS.start(), MAX_INTERRUPTS.end()),
            Self::NoServer(name)         => write!(f, "no domain has a server {name}; write \"vpci\", or give the device model's domain a server of that name"),
            Self::ServerOfOther(name, target) => write!(f, "server {name} serves domain {target}; name a server whose target is this domain"),
            Self::NoTarget(name)         => write!(f, "there is no domain {name}; name the domain whose devices it models"),
            Self::TargetNoBridge(name)   => write!(f, "domain {name} has no host bridge to put functions below; write host_bridge = true there"),
            Self::OwnTarget              => write!(f, "a domain cannot model its own devices; name another"),
            Self::RangesEmpty            => write!(f, "the list is empty; write \"none\""),
            Self::RangeUnaligned(range)  => write!(f, "{range} is not one page of 4K or more; write multiples of 0x1000"),
            Self::RangeOutside(range, end) => write!(f, "{range} is not in the target's memory; stay in {RAM_BASE:#x}..{end:#x}"),
            Self::RangeOverlap(range, other) => write!(f, "{range} overlaps {other}; make them one"),
            Self::WindowsTooLarge(total) => write!(f, "the memory of its targets takes {}, and there is room for {}; grant less", Bytes(total), Bytes(TARGET_WINDOW)),
        }
    }
}
