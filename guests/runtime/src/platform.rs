//! What the device tree says about the machine: `virt` itself, or a domain that looks like it.

use alloc::string::{String, ToString};
use alloc::vec::Vec;

use dt::{Malformed, Node, Region, Tree};
use spin::Once;

use crate::console;
use crate::cpu::small;
use crate::mmio::Window;

/// The machine, as this guest uses it.
#[derive(Debug)]
pub struct Platform {
    /// The tree itself.
    pub tree: Tree,
    /// The first range of memory.
    pub memory: Region,
    /// The affinity of each vCPU.
    pub cpus: Vec<u64>,
    /// The distributor's registers.
    pub distributor: Window,
    /// All redistributors, one behind the other.
    pub redistributors: Window,
    /// The ITS, both frames, if there is one.
    pub its: Option<Window>,
    /// The INTID of the UART.
    pub uart_intid: u32,
    /// The PCI host bridge, if there is one.
    pub host_bridge: Option<HostBridge>,
}

/// A PCI host bridge with an ECAM window.
#[derive(Clone, Copy, Debug)]
pub struct HostBridge {
    /// Config space: 1 MiB for each bus.
    pub ecam: Window,
    /// The window below 4 GiB: its address, which is the bus address too.
    pub memory32: Window,
    /// The window above 4 GiB, if there is one.
    pub memory64: Option<Window>,
}

/// A module that was granted to this domain.
#[derive(Clone, Debug)]
pub struct Module {
    /// Its name.
    pub name: String,
    /// Where it is.
    pub region: Region,
}

/// An ioreq server of this domain.
#[derive(Clone, Debug)]
pub struct Server {
    /// What hypercalls call it.
    pub id: u32,
    /// Its name in the system's description.
    pub name: String,
    /// The domain it serves.
    pub target: String,
    /// The ring's pages.
    pub ring: Region,
    /// Windows on the target's memory.
    pub memory: Vec<MemoryWindow>,
    /// Where the target's MSIs go; none if the target has no ITS.
    pub doorbell: Option<u64>,
}

/// A range of the target's memory that is mapped here.
#[derive(Clone, Copy, Debug)]
pub struct MemoryWindow {
    /// Where the target sees it.
    pub guest: u64,
    /// How long it is.
    pub size: u64,
    /// Where it is mapped.
    pub local: u64,
}

static PLATFORM: Once<Platform> = Once::new();

/// Returns the machine.
pub fn get() -> &'static Platform {
    PLATFORM.wait()
}

/// Reads the tree at `address`. What it lacks is a panic: there is no machine to run on.
pub(crate) fn init(address: usize) -> &'static Platform {
    // SAFETY: the boot protocol says that x0 is the address of a tree, inside memory.
    let header = unsafe { core::slice::from_raw_parts(address as *const u8, 40) };
    let extent = match dt::extent(header) {
        Ok(extent) => extent,
        Err(error) => panic!("device tree at {address:#x}: {error}"),
    };
    // SAFETY: the header says that the tree is this long.
    let bytes = unsafe { core::slice::from_raw_parts(address as *const u8, extent.used) };
    let tree = match Tree::parse(bytes) {
        Ok(tree) => tree,
        Err(error) => panic!("device tree: {error}"),
    };
    PLATFORM.call_once(|| match Platform::read(&tree) {
        Ok(parts) => parts,
        Err(error) => panic!("device tree: {error}"),
    })
}

fn window(region: Region) -> Window {
    // SAFETY: the tree names this range as a device's, and devices are not in memory.
    unsafe { Window::new(small(region.base), small(region.size)) }
}

impl Platform {
    fn read(tree: &Tree) -> Result<Self, Malformed<'_>> {
        let root = tree.root();
        let mut platform = Self {
            tree: tree.clone(),
            memory: tree
                .memory()
                .next()
                .unwrap_or(Err(root.malformed("memory", dt::Fault::Missing)))?,
            cpus: Vec::new(),
            distributor: window(Region { base: 0, size: 0 }),
            redistributors: window(Region { base: 0, size: 0 }),
            its: None,
            uart_intid: 33,
            host_bridge: None,
        };
        for cpu in tree.cpus() {
            platform.cpus.extend(cpu.reg()?.map(|region| region.base));
        }
        if let Some(uart) = tree.compatible("arm,pl011").next() {
            console::set_base(small(uart.mmio(0)?.base));
            if let Some(interrupt) = uart.interrupts()?.next() {
                platform.uart_intid = interrupt.intid;
            }
        }
        if let Some(gic) = tree.compatible("arm,gic-v3").next() {
            platform.distributor = window(gic.mmio(0)?);
            platform.redistributors = window(gic.mmio(1)?);
        }
        if let Some(its) = tree.compatible("arm,gic-v3-its").next() {
            platform.its = Some(window(its.mmio(0)?));
        }
        if let Some(bridge) = tree.compatible("pci-host-ecam-generic").next() {
            platform.host_bridge = Some(HostBridge::read(bridge)?);
        }
        Ok(platform)
    }

    /// Returns the command line.
    pub fn arguments(&self) -> &'static str {
        let chosen = get().tree.find("/chosen");
        let property = chosen.and_then(|node| node.property("bootargs"));
        property
            .and_then(|property| property.string().ok())
            .unwrap_or("")
    }

    /// Returns the modules that this domain was granted.
    pub fn modules(&self) -> Result<Vec<Module>, Malformed<'_>> {
        let read = |node: Node<'static>| {
            Ok(Module {
                name: name_of(node, "isthmus,name")?,
                region: node.mmio(0)?,
            })
        };
        get().tree.compatible("isthmus,module").map(read).collect()
    }

    /// Returns the ioreq servers that this domain serves.
    pub fn servers(&self) -> Result<Vec<Server>, Malformed<'_>> {
        let nodes = get().tree.compatible("isthmus,ioreq-server");
        nodes.map(Server::read).collect()
    }
}

fn name_of<'t>(node: Node<'t>, property: &'t str) -> Result<String, Malformed<'t>> {
    Ok(node.require(property)?.string()?.to_string())
}

impl Server {
    fn read(node: Node<'_>) -> Result<Self, Malformed<'_>> {
        let mut memory = Vec::new();
        if let Some(property) = node.property("isthmus,memory") {
            memory.extend(property.entries(6)?.map(|mut cells| MemoryWindow {
                guest: cells.number(2),
                size: cells.number(2),
                local: cells.number(2),
            }));
        }
        let doorbell = match node.property("isthmus,doorbell") {
            Some(property) => Some(property.u64()?),
            None => None,
        };
        Ok(Self {
            id: node.require("isthmus,server")?.u32()?,
            name: name_of(node, "isthmus,name")?,
            target: name_of(node, "isthmus,target")?,
            ring: node.mmio(0)?,
            memory,
            doorbell,
        })
    }
}

impl HostBridge {
    fn read(node: Node<'_>) -> Result<Self, Malformed<'_>> {
        let (mut memory32, mut memory64) = (None, None);
        for range in node.ranges()? {
            let region = Region {
                base: range.parent,
                size: range.size,
            };
            // The space code: 2 is 32-bit memory, 3 is 64-bit memory.
            match range.flags >> 24 & 3 {
                2 => memory32 = Some(window(region)),
                3 => memory64 = Some(window(region)),
                _ => {}
            }
        }
        Ok(Self {
            ecam: window(node.mmio(0)?),
            memory32: memory32.ok_or(node.malformed("ranges", dt::Fault::Missing))?,
            memory64,
        })
    }
}

impl HostBridge {
    /// Returns the config space of a function on this bridge's segment.
    pub fn function(&self, requester: u16) -> Window {
        self.ecam.part(usize::from(requester) << 12, 0x1000)
    }
}
