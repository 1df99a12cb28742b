//! The device-model domain that serves disks: virtio-blk functions for other domains.
//!
//! Everything it needs it finds in its device tree: its ioreq servers, the windows on each target's
//! memory, and the modules that are the disks. Which functions a server has it is told by EL2, and
//! whenever that changes. A function's disk is the first free one of those modules that are named like its
//! server, with a point and a number or without (`blk0`, `blk0.1`); else the first free one of all. It
//! keeps its contents when its function goes, and is free for the next. The command line may say more:
//!
//! - `ro=NAME`: the driver may not write to the disk in module NAME;
//! - `queues=N`: how many queues each function has, instead of one for each vCPU of its target.

use alloc::boxed::Box;
use alloc::format;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::Cell;
use core::fmt;
use core::sync::atomic::{AtomicU8, AtomicU16, AtomicU64, Ordering};

use abi::{MapFlags, Status};
use devices::virtio::block::{Access, Block};
use devices::virtio::pci::VirtioPci;
use devices::{Function, GuestMemory, Host, Machine, OutOfBounds, Progress, Supply};
use ioreq::{Client, Line};
use runtime::platform::{MemoryWindow, Module, Platform, Server};
use runtime::{println, smccc};
use vpci::Sbdf;

/// A function has no more queues than this, however many vCPUs its target has.
const MAX_QUEUES: u16 = 16;

/// Reports of one server that are printed; a target can cause as many as it likes.
const MAX_REPORTS: u32 = 32;

/// Serves disks until the domain is stopped.
pub fn main(platform: &'static Platform) {
    let mut services = match start(platform) {
        Ok(services) => services,
        Err(why) => return println!("virtio-blk: {why}"),
    };
    let functions: usize = services.iter_mut().map(Service::update).sum();
    println!(
        "virtio-blk: ready, {} server(s), {functions} function(s)",
        services.len()
    );
    serve(&mut services);
}

/// A server, with its functions.
struct Service {
    host: Hypercalls,
    machine: Machine<'static>,
}

fn start(platform: &'static Platform) -> Result<Vec<Service>, alloc::string::String> {
    let servers = platform.servers().map_err(|error| format!("{error}"))?;
    let modules = platform.modules().map_err(|error| format!("{error}"))?;
    let disks = Rc::new(Disks {
        modules: modules.into_iter().map(|m| (m, Cell::new(None))).collect(),
        arguments: platform.arguments(),
    });
    if servers.is_empty() {
        return Err("no ioreq server in the device tree".into());
    }
    let mut services = Vec::new();
    for server in servers {
        let client = Client::new(ring(&server));
        let client = client.map_err(|error| format!("{}: {error:?}", server.name))?;
        let machine = Machine::new(client);
        let queues = disks
            .queues()
            .unwrap_or(machine.slots())
            .min(MAX_QUEUES.into());
        let host = Hypercalls {
            memory: Windows(server.memory.clone()),
            queues: u16::try_from(queues).unwrap_or(MAX_QUEUES),
            server,
            disks: disks.clone(),
            reports: 0,
        };
        services.push(Service { host, machine });
    }
    Ok(services)
}

impl Service {
    fn update(&mut self) -> usize {
        self.machine.update(&mut self.host)
    }

    /// Serves what waits in one slot, and returns what is to be completed.
    fn serve(&mut self, slot: Option<u32>) -> Option<(u32, u32)> {
        let complete = self.machine.serve(slot, &mut self.host)?;
        Some((self.host.server.id, complete))
    }
}

/// Waits for requests and serves them, for ever.
fn serve(services: &mut [Service]) {
    let mut complete = None;
    loop {
        let answered = complete.take();
        match smccc::ioreq_wait(answered) {
            Ok(work) => {
                let service = services
                    .iter_mut()
                    .find(|service| service.host.server.id == work.server);
                complete = service.and_then(|service| service.serve(work.slot));
            }
            // The request is gone, with its domain or by a reset; there may be other work.
            Err(_) if answered.is_some() => {}
            Err(status) => return println!("virtio-blk: IOREQ_WAIT: {status:?}"),
        }
        // While queues are being handled, requests must not wait for the queues to be empty.
        while poll(services) == Progress::More {
            finish(complete.take());
            for service in services.iter_mut() {
                for slot in 0..service.machine.slots() {
                    finish(service.serve(Some(slot)));
                }
            }
        }
    }
}

fn poll(services: &mut [Service]) -> Progress {
    let mut progress = Progress::Idle;
    for service in services {
        if service.machine.poll(&mut service.host) == Progress::More {
            progress = Progress::More;
        }
    }
    progress
}

fn finish(complete: Option<(u32, u32)>) {
    if let Some((server, slot)) = complete {
        // A request that is gone meanwhile needs no completion.
        let _ = smccc::ioreq_complete(server, slot);
    }
}

/// The modules, and what the command line says of them.
struct Disks {
    modules: Vec<(Module, User)>,
    arguments: &'static str,
}

/// The server and the function whose disk a module is.
type User = Cell<Option<(u32, Sbdf)>>;

impl Disks {
    /// Finds a function a disk.
    fn take(&self, server: &Server, sbdf: Sbdf) -> Option<&Module> {
        let free = |name: &str| {
            let mut modules = self.modules.iter();
            modules.find(|(module, user)| module.name == name && user.get().is_none())
        };
        let named = (0..self.modules.len()).find_map(|number| {
            let plain = || (number == 0).then(|| free(&server.name)).flatten();
            free(&format!("{}.{number}", server.name)).or_else(plain)
        });
        let any = || self.modules.iter().find(|(_, user)| user.get().is_none());
        let (module, user) = named.or_else(any)?;
        user.set(Some((server.id, sbdf)));
        Some(module)
    }

    /// Takes a function's disk back.
    fn give_back(&self, server: &Server, sbdf: Sbdf) {
        for (_, user) in &self.modules {
            if user.get() == Some((server.id, sbdf)) {
                user.set(None);
            }
        }
    }

    fn access(&self, module: &Module) -> Access {
        let mut values = self.values("ro");
        if values.any(|name| name == module.name) {
            Access::ReadOnly
        } else {
            Access::ReadWrite
        }
    }

    fn queues(&self) -> Option<u32> {
        self.values("queues").next()?.parse().ok()
    }

    fn values<'d>(&'d self, name: &'d str) -> impl Iterator<Item = &'d str> {
        let words = self.arguments.split_ascii_whitespace();
        words.filter_map(move |word| word.strip_prefix(name)?.strip_prefix('='))
    }
}

/// Returns a module's bytes, to one function at a time.
fn content(module: &Module) -> &'static mut [u8] {
    let (base, size) = (module.region.base, module.region.size);
    // SAFETY: the module is a private copy of this domain's, mapped read-write, outside of what the
    // runtime uses; it is taken (`Disks::take`), and was given back by no function that still exists.
    unsafe { core::slice::from_raw_parts_mut(base as *mut u8, address(size)) }
}

/// Returns a server's ring.
pub(crate) fn ring(server: &Server) -> &'static [Line] {
    let lines = address(server.ring.size) / size_of::<Line>();
    // SAFETY: the ring is page aligned and stays mapped as long as the domain lives; a line is made
    // of atomics, so that EL2 may write it at the same time.
    unsafe { core::slice::from_raw_parts(server.ring.base as *const Line, lines) }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "usize has 64 bits on the only target"
)]
const fn address(value: u64) -> usize {
    value as usize
}

/// What functions ask of the hypervisor, and are made of.
struct Hypercalls {
    server: Server,
    memory: Windows,
    queues: u16,
    disks: Rc<Disks>,
    reports: u32,
}

impl Host for Hypercalls {
    fn map(&mut self, sbdf: Sbdf, address: u64, size: u64, flags: MapFlags) -> Result<(), Status> {
        smccc::ioreq_map(self.server.id, sbdf.into(), address, size, flags)
    }

    fn unmap(&mut self, sbdf: Sbdf, address: u64) -> Result<(), Status> {
        smccc::ioreq_unmap(self.server.id, sbdf.into(), address)
    }

    fn msi(&mut self, sbdf: Sbdf, address: u64, data: u32) -> Result<(), Status> {
        smccc::ioreq_msi(self.server.id, sbdf.into(), address, data)
    }

    fn report(&mut self, sbdf: Sbdf, what: &dyn fmt::Display) {
        self.reports = self.reports.saturating_add(1);
        if self.reports <= MAX_REPORTS {
            println!("virtio-blk: {sbdf}: {what}");
        }
    }
}

impl Supply<'static> for Hypercalls {
    fn next(&mut self, after: Option<Sbdf>) -> Option<Sbdf> {
        let next = smccc::ioreq_function(self.server.id, after.map(u32::from));
        next.ok().map(Sbdf::from)
    }

    fn make(&mut self, sbdf: Sbdf) -> Option<Box<dyn Function>> {
        let name = &self.server.name;
        let disks = self.disks.clone();
        let Some(module) = disks.take(&self.server, sbdf) else {
            println!("virtio-blk: {name}: no module left for {sbdf}");
            return None;
        };
        let access = disks.access(module);
        let disk = content(module);
        println!(
            "virtio-blk: {name}: {sbdf} of {} is disk {} ({} KiB, {access:?})",
            self.server.target,
            module.name,
            disk.len() / 1024
        );
        let block = Block::new(disk, access, &module.name, self.queues);
        let doorbell = self.server.doorbell.unwrap_or(u64::MAX);
        match VirtioPci::new(sbdf, block, self.memory.clone(), doorbell) {
            Ok(function) => Some(Box::new(function)),
            Err(error) => {
                println!("virtio-blk: {name}: {sbdf}: {error}");
                disks.give_back(&self.server, sbdf);
                None
            }
        }
    }

    fn gone(&mut self, sbdf: Sbdf) {
        println!("virtio-blk: {}: {sbdf} has gone", self.server.name);
        self.disks.give_back(&self.server, sbdf);
    }
}

/// The windows on a target's memory.
#[derive(Clone)]
struct Windows(Vec<MemoryWindow>);

impl Windows {
    /// Returns where `bytes` bytes at the guest's `address` are mapped here.
    fn find(&self, guest: u64, bytes: u64) -> Result<usize, OutOfBounds> {
        let inside = |window: &MemoryWindow| {
            let offset = guest.checked_sub(window.guest)?;
            let fits = offset <= window.size && bytes <= window.size - offset;
            fits.then(|| address(window.local + offset))
        };
        self.0.iter().find_map(inside).ok_or(OutOfBounds {
            address: guest,
            bytes,
        })
    }
}

/// Bytes of the words that memory is copied by where both sides are aligned alike.
const WORD: usize = size_of::<u64>();

// The guest writes its memory while we read it, so every access is an atomic one.
impl GuestMemory for Windows {
    fn check(&self, address: u64, bytes: u64) -> Result<(), OutOfBounds> {
        self.find(address, bytes).map(|_| ())
    }

    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<(), OutOfBounds> {
        let mut local = self.find(address, buffer.len() as u64)?;
        // SAFETY: a u64 may have any value.
        let (head, words, tail) = unsafe { buffer.align_to_mut::<u64>() };
        let aligned = local.wrapping_add(head.len()).is_multiple_of(WORD);
        if !aligned {
            read_bytes(local, buffer);
            return Ok(());
        }
        read_bytes(local, head);
        local += head.len();
        for word in words.iter_mut() {
            // SAFETY: the word is inside a window, which is mapped for ever, and aligned (both are so
            // at the first word).
            *word = unsafe { AtomicU64::from_ptr(local as *mut u64) }.load(Ordering::Relaxed);
            local += WORD;
        }
        read_bytes(local, tail);
        Ok(())
    }

    fn write(&self, address: u64, bytes: &[u8]) -> Result<(), OutOfBounds> {
        let mut local = self.find(address, bytes.len() as u64)?;
        // SAFETY: a u64 may have any value.
        let (head, words, tail) = unsafe { bytes.align_to::<u64>() };
        let aligned = local.wrapping_add(head.len()).is_multiple_of(WORD);
        if !aligned {
            write_bytes(local, bytes);
            return Ok(());
        }
        write_bytes(local, head);
        local += head.len();
        for word in words {
            // SAFETY: as in `read`.
            unsafe { AtomicU64::from_ptr(local as *mut u64) }.store(*word, Ordering::Relaxed);
            local += WORD;
        }
        write_bytes(local, tail);
        Ok(())
    }

    fn load_u16(&self, address: u64) -> Result<u16, OutOfBounds> {
        let local = self.find_u16(address)?;
        // SAFETY: `find_u16` found it inside a window, and even.
        Ok(unsafe { AtomicU16::from_ptr(local as *mut u16) }.load(Ordering::Acquire))
    }

    fn store_u16(&self, address: u64, value: u16) -> Result<(), OutOfBounds> {
        let local = self.find_u16(address)?;
        // SAFETY: as in `load_u16`.
        unsafe { AtomicU16::from_ptr(local as *mut u16) }.store(value, Ordering::Release);
        Ok(())
    }
}

impl Windows {
    fn find_u16(&self, address: u64) -> Result<usize, OutOfBounds> {
        let local = self.find(address, 2)?;
        if local.is_multiple_of(2) {
            Ok(local)
        } else {
            Err(OutOfBounds { address, bytes: 2 })
        }
    }
}

/// Reads bytes that the caller found to be inside a window.
fn read_bytes(local: usize, buffer: &mut [u8]) {
    for (byte, at) in buffer.iter_mut().zip(local..) {
        // SAFETY: the byte is inside a window, which is mapped for ever.
        *byte = unsafe { AtomicU8::from_ptr(at as *mut u8) }.load(Ordering::Relaxed);
    }
}

/// Writes bytes that the caller found to be inside a window.
fn write_bytes(local: usize, bytes: &[u8]) {
    for (byte, at) in bytes.iter().zip(local..) {
        // SAFETY: as in `read_bytes`.
        unsafe { AtomicU8::from_ptr(at as *mut u8) }.store(*byte, Ordering::Relaxed);
    }
}
