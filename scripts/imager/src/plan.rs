//! From a system file to a manifest and the files that go with it.

use std::ops::Range;
use std::path::PathBuf;

use manifest::{
    BLOCK, Backend, Domain, Function, Grant, GuestRange, Item, Manifest, Module, PAGE,
    PRIORITY_DEFAULT, Payload, Port, Server, Sriov,
};
use toml::Spanned;

use crate::qemu;
use crate::report::Report;
use crate::source::{Content, Use, make_state_file};
use crate::system::{self, System};
use crate::values::{Access, Size, Source};

/// Where files are that a system file does not name by their path.
#[derive(Clone, Debug, Default)]
pub struct Folders {
    /// The Debian guest, U-Boot, and `guests/`.
    pub artifacts: Option<PathBuf>,
    /// Files with an `@` in front.
    pub state: Option<PathBuf>,
}

/// What goes into an image.
#[derive(Debug)]
pub struct Plan {
    /// Modules follow each other from offset 0, where the manifest is yet to be put before them.
    pub(crate) manifest: Manifest,
    /// The files, each once, in the order of their offsets.
    pub(crate) contents: Vec<Placed>,
    /// Where the system file names each module of the manifest.
    module_places: Vec<Range<usize>>,
}

/// A file with its place among the modules.
#[derive(Debug)]
pub(crate) struct Placed {
    pub(crate) content: Content,
    pub(crate) offset: u64,
}

impl System {
    /// Makes a manifest of the system. Files in folders that are not given count as there.
    ///
    /// # Errors
    ///
    /// If a file is missing, or of the wrong kind, or a name stands for two of them.
    pub fn plan(&self, folders: &Folders) -> Result<Plan, Report> {
        let mut planner = Planner {
            system: self,
            folders,
            plan: Plan {
                manifest: Manifest::default(),
                contents: vec![],
                module_places: vec![],
            },
            lines: qemu::mistakes(self),
        };
        planner.plan.manifest.sriov = self.tables.machine.sriov.iter().map(sriov).collect();
        planner.grant_modules();
        for domain in &self.tables.domain {
            let domain = planner.domain(domain);
            planner.plan.manifest.domains.push(domain);
        }
        Report::of(planner.lines)?;
        Ok(planner.plan)
    }

    /// Makes a manifest of the system, with all files found or, those of the state folder, made.
    ///
    /// # Errors
    ///
    /// As [`System::plan`], or if a folder that is needed was not given.
    pub fn plan_files(&self, folders: &Folders) -> Result<Plan, Report> {
        let plan = self.plan(folders)?;
        let mut lines = vec![];
        for source in self.sources() {
            if let Some(option) = source.as_ref().option(folders) {
                let what = format!("{} needs {option}", source.as_ref());
                lines.push(self.file.line(&source.span(), what));
            }
        }
        Report::of(lines)?;
        for domain in &self.tables.domain {
            for module in &domain.modules {
                self.make(module, folders)?;
            }
        }
        Ok(plan)
    }

    fn sources(&self) -> impl Iterator<Item = &Spanned<Source>> {
        self.tables.domain.iter().flat_map(|domain| {
            let own = [&domain.kernel, &domain.firmware, &domain.initrd];
            let modules = domain.modules.iter().map(|module| &module.file);
            own.into_iter().flatten().chain(modules)
        })
    }

    fn make(&self, module: &system::Module, folders: &Folders) -> Result<(), Report> {
        let (Source::State(name), Some(size)) = (module.file.as_ref(), &module.size) else {
            return Ok(());
        };
        let Some(state) = &folders.state else {
            return Ok(());
        };
        let path = state.join(name);
        make_state_file(&path, size.as_ref().0).map_err(|error| Report::about(&path, error))
    }

    /// Returns where the file has what an error is about.
    fn place(&self, item: Item<'_>, field: &str, plan: &Plan) -> Range<usize> {
        let domain = |index: usize| &self.tables.domain[index];
        match item {
            Item::System if field == "memory" => self.tables.machine.memory.span(),
            Item::System => 0..0,
            Item::Module(index, _) => plan.module_places[index].clone(),
            Item::Sriov(index, _) => self.tables.machine.sriov[index].place(field),
            Item::Domain(index, _) => domain(index).place(field),
            Item::Port(index, _, at, _) => domain(index).port[at].place(field),
            Item::Function(index, _, at, _) => domain(index).pci[at].place(field),
            Item::Server(index, _, at, _) => domain(index).server[at].place(field),
        }
    }
}

impl system::Domain {
    fn place(&self, field: &str) -> Range<usize> {
        let place = match field {
            "memory" => Some(self.memory.span()),
            "vcpus" => span(&self.vcpus),
            "kernel" => span(&self.kernel),
            "firmware" => span(&self.firmware),
            "initrd" => span(&self.initrd),
            "cmdline" => span(&self.cmdline),
            "control" => span(&self.control),
            "console" => span(&self.console),
            "priority" => span(&self.priority),
            "affinity" => span(&self.affinity),
            "modules" => self.modules.last().map(|module| module.name.span()),
            "server" => self.server.last().map(|server| server.memory.span()),
            _ => None,
        };
        place.unwrap_or(self.name.span())
    }
}

impl system::Port {
    fn place(&self, field: &str) -> Range<usize> {
        match field {
            "bus" => self.bus.span(),
            _ => self.slot.span(),
        }
    }
}

impl system::Sriov {
    fn place(&self, field: &str) -> Range<usize> {
        match field {
            "vfs" => self.vfs.span(),
            _ => self.host.span(),
        }
    }
}

impl system::Pci {
    fn place(&self, field: &str) -> Range<usize> {
        let place = match field {
            "host" => span(&self.host),
            "backend" => Some(self.backend.span()),
            "allow_no_reset" => span(&self.allow_no_reset),
            "vendor_capabilities" => span(&self.vendor_capabilities),
            "max_faults" => span(&self.max_faults),
            "max_interrupts" => span(&self.max_interrupts),
            _ => None,
        };
        place.unwrap_or(self.slot.span())
    }
}

impl system::Server {
    fn place(&self, field: &str) -> Range<usize> {
        match field {
            "target" => self.target.span(),
            "memory" => self.memory.span(),
            _ => self.name.span(),
        }
    }
}

fn span<T>(value: &Option<Spanned<T>>) -> Option<Range<usize>> {
    value.as_ref().map(Spanned::span)
}

impl Plan {
    /// Checks whether the system can be made.
    ///
    /// # Errors
    ///
    /// All reasons why not.
    pub fn check(&self, system: &System) -> Result<(), Report> {
        let machine = manifest::Machine {
            pcpus: Some(*system.tables.machine.pcpus.as_ref()),
            memory: Some(system.tables.machine.memory.as_ref().0),
        };
        let mut lines = vec![];
        self.manifest.check_all(machine, &mut |error| {
            let place = system.place(error.item, error.field, self);
            lines.push(system.file.line(&place, error));
        });
        if lines.is_empty() {
            self.check_bss(system, &mut lines);
        }
        Report::of(lines)
    }

    /// Checks that kernels fit with what they clear behind their files, which a manifest does not tell.
    fn check_bss(&self, system: &System, lines: &mut Vec<String>) {
        for (domain, own) in self.manifest.domains.iter().zip(&system.tables.domain) {
            let Payload::Kernel(kernel) = &domain.payload else {
                continue;
            };
            let offset = |name: &str| self.manifest.module(name).map(|module| module.offset);
            let memory = |name: &str| {
                let mut contents = self.contents.iter();
                let placed = contents.find(|placed| Some(placed.offset) == offset(name));
                placed.map_or(0, |placed| placed.content.memory)
            };
            let initrd = domain.initrd.as_deref().map_or(0, memory);
            // The device tree has the last block for itself.
            let needed = memory(kernel).saturating_add(initrd).saturating_add(BLOCK);
            if needed > domain.memory {
                let item = format!("domain {}: memory", domain.name);
                let blocks = needed.div_ceil(BLOCK);
                let what = format!(
                    "{item}: kernel and initrd do not fit; write {}M or more",
                    blocks * 2
                );
                lines.push(system.file.line(&own.memory.span(), what));
            }
        }
    }

    /// Checks whether the machine's memory holds the image, the domains, and their copies of modules.
    ///
    /// # Errors
    ///
    /// If it does not.
    pub fn check_room(&self, system: &System, image: u64) -> Result<(), Report> {
        let memory = &system.tables.machine.memory;
        let domains = self.manifest.domains.iter();
        let domains = domains.map(|domain| {
            let modules = domain.modules.iter();
            let modules = modules.filter_map(|name| self.manifest.module(name));
            domain.memory + modules.map(|module| module.size).sum::<u64>()
        });
        let domains: u64 = domains.sum();
        if image + domains <= memory.as_ref().0 {
            return Ok(());
        }
        let megabytes = |bytes: u64| bytes.div_ceil(1 << 20);
        let what = format!(
            "memory: the image takes {}M and the domains {}M with their modules; write \"{}M\" or more",
            megabytes(image),
            megabytes(domains),
            megabytes(image + domains).next_multiple_of(64)
        );
        Err(system.file.refuse(&memory.span(), what))
    }
}

struct Planner<'s> {
    system: &'s System,
    folders: &'s Folders,
    plan: Plan,
    lines: Vec<String>,
}

impl Planner<'_> {
    /// Takes the modules first whose names the system file gives; the others' names can give way.
    fn grant_modules(&mut self) {
        for domain in &self.system.tables.domain {
            for module in &domain.modules {
                let size = module.size.as_ref().map(|size| *size.as_ref());
                let Some(offset) = self.content(&module.file, size, Use::Data) else {
                    continue;
                };
                let name = module.name.as_ref();
                match self.plan.manifest.module(name) {
                    Some(known) if known.offset == offset => {}
                    Some(_) => self.refuse(
                        &module.name.span(),
                        format!("modules: {name} is another file elsewhere; choose another name"),
                    ),
                    None => self.add(name.clone(), offset, module.file.span()),
                }
            }
        }
    }

    fn domain(&mut self, domain: &system::Domain) -> Domain {
        let payload = match (&domain.kernel, &domain.firmware) {
            (Some(kernel), None) => Payload::Kernel(self.module(kernel, Use::Code)),
            (None, Some(firmware)) => Payload::Firmware(self.module(firmware, Use::Code)),
            (kernel, _) => {
                let (place, what) = match kernel {
                    Some(kernel) => (kernel.span(), "has both kernel and firmware; leave one"),
                    None => (
                        domain.name.span(),
                        "lacks kernel = \"FILE\", or firmware; add one",
                    ),
                };
                self.refuse(&place, format!("domain {} {what}", domain.name.as_ref()));
                Payload::Kernel(String::new())
            }
        };
        let initrd = domain.initrd.as_ref();
        let text = |text: &Option<Spanned<String>>| text.clone().map(Spanned::into_inner);
        let set = |flag: &Option<Spanned<bool>>| flag.as_ref().is_some_and(|set| *set.as_ref());
        let number = |number: &Option<Spanned<u32>>, default| {
            number.as_ref().map_or(default, |number| *number.as_ref())
        };
        Domain {
            name: domain.name.as_ref().clone(),
            memory: domain.memory.as_ref().0,
            vcpus: number(&domain.vcpus, 1),
            payload,
            initrd: initrd.map(|initrd| self.module(initrd, Use::Data)),
            cmdline: text(&domain.cmdline).unwrap_or_default(),
            host_bridge: domain.host_bridge,
            iommu: domain.iommu,
            control: set(&domain.control),
            console: set(&domain.console),
            priority: number(&domain.priority, PRIORITY_DEFAULT),
            affinity: domain.affinity.clone().map(Spanned::into_inner),
            modules: domain
                .modules
                .iter()
                .map(|module| module.name.as_ref().clone())
                .collect(),
            ports: domain.port.iter().map(port).collect(),
            functions: domain.pci.iter().map(function).collect(),
            servers: domain.server.iter().map(server).collect(),
        }
    }

    /// Returns the name of the module that the file is, or becomes.
    fn module(&mut self, source: &Spanned<Source>, used: Use) -> String {
        let Some(offset) = self.content(source, None, used) else {
            return String::new();
        };
        let modules = &self.plan.manifest.modules;
        if let Some(module) = modules.iter().find(|module| module.offset == offset) {
            return module.name.clone();
        }
        let name = self.free_name(source.as_ref().file_name());
        self.add(name.clone(), offset, source.span());
        name
    }

    /// Makes a module's name of a file's name.
    fn free_name(&self, file: &str) -> String {
        let sound = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let name = file.chars().map(|c| if sound(c) { c } else { '-' });
        let name: String = name
            .skip_while(|c| !c.is_ascii_alphanumeric())
            .take(24)
            .collect();
        let name = if name.is_empty() { "file" } else { &name };
        let taken = |name: &String| self.plan.manifest.module(name).is_some();
        let mut names =
            std::iter::once(name.to_owned()).chain((2..).map(|number| format!("{name}-{number}")));
        names.find(|name| !taken(name)).unwrap_or_default()
    }

    fn add(&mut self, name: String, offset: u64, place: Range<usize>) {
        let contents = &self.plan.contents;
        let size = contents.iter().find(|placed| placed.offset == offset);
        let size = size.map_or(0, |placed| placed.content.size);
        self.plan
            .manifest
            .modules
            .push(Module { name, offset, size });
        self.plan.module_places.push(place);
    }

    /// Returns the offset of the file, after placing it behind the others if it is new.
    fn content(&mut self, source: &Spanned<Source>, size: Option<Size>, used: Use) -> Option<u64> {
        let found = source
            .as_ref()
            .find(self.system.file.folder(), self.folders, size, used);
        let content = match found {
            Ok(content) => content,
            Err(what) => {
                self.refuse(&source.span(), what);
                return None;
            }
        };
        let contents = &mut self.plan.contents;
        if let Some(placed) = contents
            .iter()
            .find(|placed| placed.content.path == content.path)
        {
            return Some(placed.offset);
        }
        let offset = contents.last().map_or(0, |last| {
            // An empty file is refused later, by its own name.
            (last.offset + last.content.size.max(1)).next_multiple_of(PAGE)
        });
        contents.push(Placed { content, offset });
        Some(offset)
    }

    fn refuse(&mut self, place: &Range<usize>, what: impl std::fmt::Display) {
        self.lines.push(self.system.file.line(place, what));
    }
}

fn port(port: &system::Port) -> Port {
    Port {
        slot: port.slot.as_ref().0,
        bus: *port.bus.as_ref(),
        ari: port.ari,
    }
}

fn sriov(sriov: &system::Sriov) -> Sriov {
    Sriov {
        host: sriov.host.as_ref().0,
        vfs: *sriov.vfs.as_ref(),
    }
}

fn function(pci: &system::Pci) -> Function {
    Function {
        slot: pci.slot.as_ref().0,
        host: pci.host.as_ref().map(|host| host.as_ref().0),
        backend: match pci.backend.as_ref().as_str() {
            "vpci" => Backend::Vpci,
            name => Backend::Server(name.into()),
        },
        allow_no_reset: is_set(&pci.allow_no_reset),
        vendor_capabilities: is_set(&pci.vendor_capabilities),
        max_faults: pci.max_faults.as_ref().map(|most| *most.as_ref()),
        max_interrupts: pci.max_interrupts.as_ref().map(|most| *most.as_ref()),
    }
}

/// Returns whether a flag is there and true.
fn is_set(flag: &Option<Spanned<bool>>) -> bool {
    flag.as_ref().is_some_and(|flag| *flag.as_ref())
}

fn server(server: &system::Server) -> Server {
    let memory = match server.memory.as_ref() {
        Access::All => Grant::All,
        Access::None => Grant::None,
        Access::Ranges(ranges) => {
            let ranges = ranges.iter().map(|range| GuestRange {
                base: range.base,
                size: range.size,
            });
            Grant::Ranges(ranges.collect())
        }
    };
    Server {
        name: server.name.as_ref().clone(),
        target: server.target.as_ref().clone(),
        memory,
    }
}
