//! From the model to a device tree.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use dt::{WriteError, Writer};

use crate::COMPATIBLE;
use crate::model::{Backend, Domain, Function, Grant, Manifest, Module, Payload, Server};

impl Manifest {
    /// Writes the manifest as a device tree. It need not be one that [`Manifest::check`] takes.
    ///
    /// # Errors
    ///
    /// If a text in it holds a NUL, or it is too large for a device tree, or memory runs out.
    pub fn write(&self) -> Result<Vec<u8>, WriteError> {
        let mut tree = Writer::new(&[])?;
        tree.begin("")?;
        tree.string("compatible", COMPATIBLE)?;
        tree.u32("#address-cells", 2)?;
        tree.u32("#size-cells", 2)?;
        tree.begin("modules")?;
        tree.u32("#address-cells", 2)?;
        tree.u32("#size-cells", 2)?;
        for (index, module) in self.modules.iter().enumerate() {
            // By number: how long the tree is must not depend on where the modules are.
            tree.begin(&format!("module@{index:x}"))?;
            write_module(&mut tree, module)?;
            tree.end()?;
        }
        tree.end()?;
        if !self.sriov.is_empty() {
            tree.begin("sriov")?;
            for (index, sriov) in self.sriov.iter().enumerate() {
                tree.begin(&format!("function@{index:x}"))?;
                tree.u32("host", sriov.host.into())?;
                tree.u32("vfs", sriov.vfs)?;
                tree.end()?;
            }
            tree.end()?;
        }
        tree.begin("domains")?;
        for (index, domain) in self.domains.iter().enumerate() {
            tree.begin(&format!("domain@{index:x}"))?;
            write_domain(&mut tree, domain)?;
            tree.end()?;
        }
        tree.end()?;
        tree.end()?;
        tree.finish()
    }
}

fn write_module(tree: &mut Writer, module: &Module) -> Result<(), WriteError> {
    tree.numbers("reg", &[module.offset, module.size])?;
    tree.string("isthmus,name", &module.name)
}

fn write_domain(tree: &mut Writer, domain: &Domain) -> Result<(), WriteError> {
    tree.string("isthmus,name", &domain.name)?;
    tree.u64("memory-size", domain.memory)?;
    tree.u32("vcpus", domain.vcpus)?;
    match &domain.payload {
        Payload::Kernel(module) => tree.string("kernel", module)?,
        Payload::Firmware(module) => tree.string("firmware", module)?,
    }
    if let Some(module) = &domain.initrd {
        tree.string("initrd", module)?;
    }
    if !domain.cmdline.is_empty() {
        tree.string("bootargs", &domain.cmdline)?;
    }
    for (name, set) in [
        ("host-bridge", domain.host_bridge),
        ("iommu", domain.iommu),
        ("control", domain.control),
        ("console", domain.console),
    ] {
        flag_if(tree, name, set)?;
    }
    tree.u32("priority", domain.priority)?;
    if let Some(cpus) = &domain.affinity {
        tree.cells("affinity", cpus)?;
    }
    if !domain.modules.is_empty() {
        let names: Vec<&str> = domain.modules.iter().map(String::as_str).collect();
        tree.strings("modules", &names)?;
    }
    for (index, port) in domain.ports.iter().enumerate() {
        tree.begin(&format!("port@{index:x}"))?;
        tree.u32("slot", port.slot.into())?;
        tree.u32("bus", port.bus)?;
        flag_if(tree, "ari", port.ari)?;
        tree.end()?;
    }
    for (index, function) in domain.functions.iter().enumerate() {
        tree.begin(&format!("function@{index:x}"))?;
        write_function(tree, function)?;
        tree.end()?;
    }
    for (index, server) in domain.servers.iter().enumerate() {
        tree.begin(&format!("server@{index:x}"))?;
        write_server(tree, server)?;
        tree.end()?;
    }
    Ok(())
}

fn write_function(tree: &mut Writer, function: &Function) -> Result<(), WriteError> {
    tree.u32("slot", function.slot.into())?;
    if let Some(host) = function.host {
        tree.u32("host", host.into())?;
    }
    match &function.backend {
        Backend::Vpci => tree.string("backend", "vpci")?,
        Backend::Server(name) => tree.string("backend", name)?,
    }
    if let Some(faults) = function.max_faults {
        tree.u32("max-faults", faults)?;
    }
    if let Some(messages) = function.max_interrupts {
        tree.u32("max-interrupts", messages)?;
    }
    flag_if(tree, "allow-no-reset", function.allow_no_reset)?;
    flag_if(tree, "vendor-capabilities", function.vendor_capabilities)
}

fn write_server(tree: &mut Writer, server: &Server) -> Result<(), WriteError> {
    tree.string("isthmus,name", &server.name)?;
    tree.string("target", &server.target)?;
    match &server.memory {
        Grant::All => tree.string("memory", "all"),
        Grant::None => tree.string("memory", "none"),
        Grant::Ranges(ranges) => {
            let numbers = ranges.iter().flat_map(|range| [range.base, range.size]);
            let numbers: Vec<u64> = numbers.collect();
            tree.numbers("memory-ranges", &numbers)
        }
    }
}

fn flag_if(tree: &mut Writer, name: &str, set: bool) -> Result<(), WriteError> {
    if set { tree.flag(name) } else { Ok(()) }
}
