//! From a device tree to the model.
//!
//! Whatever the reader does not know is an error: a manifest that was understood by half would make
//! a system that nobody asked for.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use dt::{Fault, Malformed, Node, Property, Tree};
use vpci::Sbdf;

use crate::COMPATIBLE;
use crate::model::{
    Backend, Domain, Function, Grant, GuestRange, Manifest, Module, PRIORITY_DEFAULT, Payload,
    Port, Server, Sriov,
};

/// Why a device tree is not a manifest.
#[derive(Clone, Copy, Debug)]
pub enum ReadError<'t> {
    /// The root is not compatible with [`COMPATIBLE`].
    Compatible,
    /// A property is missing, or not what the binding says.
    Malformed(Malformed<'t>),
    /// The binding has no such property.
    UnknownProperty(Property<'t>),
    /// The binding has no such node.
    UnknownNode(Node<'t>),
    /// Both properties are there, and exclude each other.
    Both(Node<'t>, &'static str, &'static str),
    /// The heap is exhausted.
    OutOfMemory,
}

impl fmt::Display for ReadError<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Compatible => write!(f, "/: compatible is not \"{COMPATIBLE}\""),
            Self::Malformed(malformed) => malformed.fmt(f),
            Self::UnknownProperty(property) => {
                let Property { node, name, .. } = property;
                write!(f, "{}: there is no property {name}", node.path())
            }
            Self::UnknownNode(node) => write!(f, "{}: there is no such node", node.path()),
            Self::Both(node, one, other) => {
                write!(f, "{}: {one} and {other} exclude each other", node.path())
            }
            Self::OutOfMemory => write!(f, "out of memory"),
        }
    }
}

impl core::error::Error for ReadError<'_> {}

impl<'t> From<Malformed<'t>> for ReadError<'t> {
    fn from(malformed: Malformed<'t>) -> Self {
        Self::Malformed(malformed)
    }
}

type Result<'t, T> = core::result::Result<T, ReadError<'t>>;

impl Manifest {
    /// Reads a manifest. Whether it makes sense is for [`Manifest::check`] to say.
    ///
    /// # Errors
    ///
    /// If the tree is not as the binding says, or the heap is exhausted.
    pub fn read(tree: &Tree) -> Result<'_, Self> {
        let root = tree.root();
        if !root.is_compatible(COMPATIBLE) {
            return Err(ReadError::Compatible);
        }
        known(root, &["compatible", "#address-cells", "#size-cells"])?;
        let mut manifest = Self::default();
        for node in root.children() {
            match node.name() {
                "modules" => read_modules(node, &mut manifest.modules)?,
                "sriov" => read_sriov(node, &mut manifest.sriov)?,
                "domains" => read_domains(node, &mut manifest.domains)?,
                _ => return Err(ReadError::UnknownNode(node)),
            }
        }
        Ok(manifest)
    }
}

fn read_modules<'t>(list: Node<'t>, modules: &mut Vec<Module>) -> Result<'t, ()> {
    known(list, &["#address-cells", "#size-cells"])?;
    for node in list.children() {
        if node.base_name() != "module" {
            return Err(ReadError::UnknownNode(node));
        }
        known(node, &["reg", "isthmus,name"])?;
        leaf(node)?;
        let mut reg = node.reg()?;
        let (Some(place), None) = (reg.next(), reg.next()) else {
            let property = node.require("reg")?;
            let length = Fault::Length(property.value.len());
            return Err(property.malformed(length).into());
        };
        let module = Module {
            name: text(node, "isthmus,name")?,
            offset: place.base,
            size: place.size,
        };
        push(modules, module)?;
    }
    Ok(())
}

fn read_sriov<'t>(list: Node<'t>, sriov: &mut Vec<Sriov>) -> Result<'t, ()> {
    known(list, &[])?;
    for node in list.children() {
        if node.base_name() != "function" {
            return Err(ReadError::UnknownNode(node));
        }
        known(node, &["host", "vfs"])?;
        leaf(node)?;
        let entry = Sriov {
            host: number(node, "host")?.into(),
            vfs: number(node, "vfs")?,
        };
        push(sriov, entry)?;
    }
    Ok(())
}

fn read_domains<'t>(list: Node<'t>, domains: &mut Vec<Domain>) -> Result<'t, ()> {
    known(list, &[])?;
    for node in list.children() {
        if node.base_name() != "domain" {
            return Err(ReadError::UnknownNode(node));
        }
        push(domains, read_domain(node)?)?;
    }
    Ok(())
}

#[rustfmt::skip]
const DOMAIN: &[&str] = &[
    "isthmus,name", "memory-size", "vcpus", "kernel", "firmware", "initrd", "bootargs", "host-bridge",
    "iommu", "control", "console", "priority", "affinity", "modules",
];

fn read_domain(node: Node<'_>) -> Result<'_, Domain> {
    known(node, DOMAIN)?;
    let payload = match (node.property("kernel"), node.property("firmware")) {
        (Some(_), Some(_)) => return Err(ReadError::Both(node, "kernel", "firmware")),
        (None, Some(_)) => Payload::Firmware(text(node, "firmware")?),
        (_, None) => Payload::Kernel(text(node, "kernel")?),
    };
    let mut domain = Domain {
        name: text(node, "isthmus,name")?,
        memory: node.require("memory-size")?.u64()?,
        vcpus: node.require("vcpus")?.u32()?,
        payload,
        initrd: optional(node, "initrd", text)?,
        cmdline: optional(node, "bootargs", text)?.unwrap_or_default(),
        host_bridge: flag(node, "host-bridge")?,
        iommu: flag(node, "iommu")?,
        control: flag(node, "control")?,
        console: flag(node, "console")?,
        priority: optional(node, "priority", number)?.unwrap_or(PRIORITY_DEFAULT),
        affinity: optional(node, "affinity", numbers)?,
        modules: optional(node, "modules", texts)?.unwrap_or_default(),
        ports: Vec::new(),
        functions: Vec::new(),
        servers: Vec::new(),
    };
    for child in node.children() {
        leaf(child)?;
        match child.base_name() {
            "port" => push(&mut domain.ports, read_port(child)?)?,
            "function" => push(&mut domain.functions, read_function(child)?)?,
            "server" => push(&mut domain.servers, read_server(child)?)?,
            _ => return Err(ReadError::UnknownNode(child)),
        }
    }
    Ok(domain)
}

fn read_port(node: Node<'_>) -> Result<'_, Port> {
    known(node, &["slot", "bus", "ari"])?;
    Ok(Port {
        slot: number(node, "slot")?.into(),
        bus: number(node, "bus")?,
        ari: flag(node, "ari")?,
    })
}

fn read_function(node: Node<'_>) -> Result<'_, Function> {
    let names = [
        "slot",
        "host",
        "backend",
        "allow-no-reset",
        "max-faults",
        "max-interrupts",
        "vendor-capabilities",
    ];
    known(node, &names)?;
    let backend = match node.require("backend")?.string()? {
        "vpci" => Backend::Vpci,
        name => Backend::Server(owned(name)?),
    };
    Ok(Function {
        slot: number(node, "slot")?.into(),
        host: optional(node, "host", number)?.map(Sbdf::from),
        backend,
        allow_no_reset: flag(node, "allow-no-reset")?,
        vendor_capabilities: flag(node, "vendor-capabilities")?,
        max_faults: optional(node, "max-faults", number)?,
        max_interrupts: optional(node, "max-interrupts", number)?,
    })
}

fn read_server(node: Node<'_>) -> Result<'_, Server> {
    known(node, &["isthmus,name", "target", "memory", "memory-ranges"])?;
    let memory = match (node.property("memory"), node.property("memory-ranges")) {
        (Some(_), Some(_)) => return Err(ReadError::Both(node, "memory", "memory-ranges")),
        (_, Some(ranges)) => Grant::Ranges(guest_ranges(ranges)?),
        (_, None) => match node.require("memory")?.string()? {
            "all" => Grant::All,
            "none" => Grant::None,
            _ => return Err(node.malformed("memory", Fault::Word).into()),
        },
    };
    Ok(Server {
        name: text(node, "isthmus,name")?,
        target: text(node, "target")?,
        memory,
    })
}

fn guest_ranges(property: Property<'_>) -> Result<'_, Vec<GuestRange>> {
    let mut ranges = Vec::new();
    for mut cells in property.entries(4)? {
        let range = GuestRange {
            base: cells.number(2),
            size: cells.number(2),
        };
        push(&mut ranges, range)?;
    }
    Ok(ranges)
}

/// Refuses properties that are not in the list.
fn known<'t>(node: Node<'t>, names: &[&str]) -> Result<'t, ()> {
    let mut properties = node.properties();
    match properties.find(|property| !names.contains(&property.name)) {
        Some(property) => Err(ReadError::UnknownProperty(property)),
        None => Ok(()),
    }
}

/// Refuses children.
fn leaf(node: Node<'_>) -> Result<'_, ()> {
    match node.children().next() {
        Some(child) => Err(ReadError::UnknownNode(child)),
        None => Ok(()),
    }
}

fn optional<'t, T>(
    node: Node<'t>,
    name: &'static str,
    read: impl Fn(Node<'t>, &'static str) -> Result<'t, T>,
) -> Result<'t, Option<T>> {
    match node.property(name) {
        Some(_) => read(node, name).map(Some),
        None => Ok(None),
    }
}

fn flag<'t>(node: Node<'t>, name: &'static str) -> Result<'t, bool> {
    match node.property(name) {
        Some(property) if !property.value.is_empty() => {
            let length = Fault::Length(property.value.len());
            Err(property.malformed(length).into())
        }
        property => Ok(property.is_some()),
    }
}

fn number<'t>(node: Node<'t>, name: &'static str) -> Result<'t, u32> {
    Ok(node.require(name)?.u32()?)
}

fn numbers<'t>(node: Node<'t>, name: &'static str) -> Result<'t, Vec<u32>> {
    collect(node.require(name)?.cells()?.map(Ok))
}

fn text<'t>(node: Node<'t>, name: &'static str) -> Result<'t, String> {
    owned(node.require(name)?.string()?)
}

fn texts<'t>(node: Node<'t>, name: &'static str) -> Result<'t, Vec<String>> {
    collect(node.require(name)?.strings()?.map(owned))
}

fn owned(text: &str) -> Result<'static, String> {
    let mut string = String::new();
    string
        .try_reserve_exact(text.len())
        .map_err(|_| ReadError::OutOfMemory)?;
    string.push_str(text);
    Ok(string)
}

fn collect<'t, T>(items: impl Iterator<Item = Result<'t, T>>) -> Result<'t, Vec<T>> {
    let mut list = Vec::new();
    for item in items {
        push(&mut list, item?)?;
    }
    Ok(list)
}

fn push<T>(list: &mut Vec<T>, item: T) -> Result<'static, ()> {
    list.try_reserve(1).map_err(|_| ReadError::OutOfMemory)?;
    list.push(item);
    Ok(())
}
