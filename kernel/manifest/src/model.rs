//! The model: plain data, with names where one thing refers to another.

use alloc::string::String;
use alloc::vec::Vec;

use vpci::Sbdf;

/// The priority of a domain that asks for none.
pub const PRIORITY_DEFAULT: u32 = 8;

/// Faults in a second after which a function that says nothing of them is cut off from memory.
pub const MAX_FAULTS_DEFAULT: u32 = 10_000;

/// The most faults in a second that a function may be allowed: what it costs to count them is EL2's.
pub const MAX_FAULTS_MOST: u32 = 100_000;

/// Interrupts in a second that come through of a function that says nothing of them. Each one is EL2's to
/// pass on, which takes about a microsecond.
pub const MAX_INTERRUPTS_DEFAULT: u32 = 200_000;

/// The fewest and the most interrupts in a second that a function may be allowed.
pub const MAX_INTERRUPTS: core::ops::RangeInclusive<u32> = 1_000..=1_000_000;

/// A whole system.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Manifest {
    /// What the image holds besides the hypervisor.
    pub modules: Vec<Module>,
    /// The physical functions that are to have virtual ones.
    pub sriov: Vec<Sriov>,
    /// The domains to make, in that order.
    pub domains: Vec<Domain>,
}

/// A piece of the image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// By what the domains refer to it.
    pub name: String,
    /// Where it starts, counted from the manifest's first byte.
    pub offset: u64,
    /// How many bytes it has.
    pub size: u64,
}

/// Virtual functions that the hypervisor enables (PCI Express Base Specification, section 9).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sriov {
    /// The physical function.
    pub host: Sbdf,
    /// How many virtual ones it is to have.
    pub vfs: u32,
}

/// A domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Domain {
    /// How people and other domains call it.
    pub name: String,
    /// Bytes of memory.
    pub memory: u64,
    /// How many vCPUs it has.
    pub vcpus: u32,
    /// What its first vCPU starts.
    pub payload: Payload,
    /// The module that `/chosen` of its device tree names as initial RAM disk.
    pub initrd: Option<String>,
    /// The command line that `/chosen` holds; may be empty.
    pub cmdline: String,
    /// Whether it has a host bridge, and with it a PCI bus.
    pub host_bridge: bool,
    /// Whether it may own devices that reach memory.
    pub iommu: bool,
    /// Whether it may create, change and destroy other domains.
    pub control: bool,
    /// Whether the machine's console is its own at boot.
    pub console: bool,
    /// From 0 to 15; higher runs first.
    pub priority: u32,
    /// The pCPUs that it may run on; `None` is all.
    pub affinity: Option<Vec<u32>>,
    /// Modules of which it gets a copy of its own, mapped.
    pub modules: Vec<String>,
    /// The root ports on its bus.
    pub ports: Vec<Port>,
    /// The functions on its buses, besides the host bridge and the ports.
    pub functions: Vec<Function>,
    /// The ioreq servers through which it models devices of others.
    pub servers: Vec<Server>,
}

/// What the first vCPU of a domain starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payload {
    /// A module that is an arm64 `Image`, or a raw binary, copied into memory.
    Kernel(String),
    /// A module that is mapped at IPA 0 and entered there.
    Firmware(String),
}

/// A root port on a domain's bus, with a bus below it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Port {
    /// Where the domain sees it.
    pub slot: Sbdf,
    /// By what bus number the slots of functions below it are written. The domain's software gives the
    /// bus a number of its own.
    pub bus: u32,
    /// Whether the port can forward requests to 256 functions of one device; without, to eight.
    pub ari: bool,
}

/// A function on a bus of a domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    /// Where the domain sees it: on its root bus, or on the bus of a port, by that one's number. It is
    /// the function's name for device models too.
    pub slot: Sbdf,
    /// The physical function that it is; `None` if it is emulated.
    pub host: Option<Sbdf>,
    /// Who answers config accesses to it.
    pub backend: Backend,
    /// Whether it is given away even if it cannot be reset.
    pub allow_no_reset: bool,
    /// Whether the domain sees its vendor-specific capabilities.
    pub vendor_capabilities: bool,
    /// Faults in a second after which it is cut off from memory, until its reset.
    pub max_faults: Option<u32>,
    /// Interrupts in a second; what is more is held back.
    pub max_interrupts: Option<u32>,
}

/// Who answers config accesses to a function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backend {
    /// The hypervisor.
    Vpci,
    /// The ioreq server of that name.
    Server(String),
}

/// An ioreq server, as the domain that serves it has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// By what functions refer to it; no two servers of a system share one.
    pub name: String,
    /// The domain whose accesses it answers.
    pub target: String,
    /// What of that domain's memory the device model may reach.
    pub memory: Grant,
}

/// Memory of the target that a device model may map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Grant {
    /// All of it.
    All,
    /// Nothing.
    None,
    /// These ranges.
    Ranges(Vec<GuestRange>),
}

/// A range of a domain's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestRange {
    /// First IPA.
    pub base: u64,
    /// How many bytes there are.
    pub size: u64,
}

impl Manifest {
    /// Returns the module of that name.
    #[must_use]
    pub fn module(&self, name: &str) -> Option<&Module> {
        self.modules.iter().find(|module| module.name == name)
    }

    /// Returns the domain of that name, with its place in the list.
    #[must_use]
    pub fn domain(&self, name: &str) -> Option<(usize, &Domain)> {
        let mut domains = self.domains.iter().enumerate();
        domains.find(|(_, domain)| domain.name == name)
    }

    /// Returns the server of that name, and the place in the list of the domain that serves it.
    #[must_use]
    pub fn server(&self, name: &str) -> Option<(usize, &Server)> {
        self.servers().find(|(_, server)| server.name == name)
    }

    /// Returns all servers, each with the place in the list of the domain that serves it.
    pub fn servers(&self) -> impl Iterator<Item = (usize, &Server)> {
        let domains = self.domains.iter().enumerate();
        domains.flat_map(|(index, domain)| domain.servers.iter().map(move |server| (index, server)))
    }

    /// Returns where the last module ends, counted from the manifest's first byte.
    #[must_use]
    pub fn modules_end(&self) -> u64 {
        let ends = self.modules.iter().map(Module::end);
        ends.max().unwrap_or_default()
    }
}

impl Module {
    /// Returns where it ends; the last offset there is if that would be past it.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(self.size)
    }
}

impl Payload {
    /// Returns the module's name.
    #[must_use]
    pub fn module(&self) -> &str {
        match self {
            Self::Kernel(module) | Self::Firmware(module) => module,
        }
    }
}

impl GuestRange {
    /// Returns where it ends; the last address there is if that would be past it.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.base.saturating_add(self.size)
    }
}
