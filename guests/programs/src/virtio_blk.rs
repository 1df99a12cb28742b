//! The device-model domain that serves disks: virtio-blk functions for other domains.
//!
//! Everything it needs it finds in its device tree: its ioreq servers, the functions of each, the
//! windows on each target's memory, and the modules that are the disks. A function's disk is the
//! module that is named like its server, or like its server with a point and the function's place
//! (`blk0.1`); else the next module that no name claims. The command line may say more:
//!
//! - `ro=NAME`: the driver may not write to the disk in module NAME;
//! - `queues=N`: how many queues each function has, instead of one for each vCPU of its target.

use alloc::boxed::Box;
use alloc::format;
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicU8, AtomicU16, AtomicU64, Ordering};

use abi::{MapFlags, Status};
use devices::virtio::block::{Access, Block};
use devices::virtio::pci::VirtioPci;
use devices::{GuestMemory, Host, Machine, OutOfBounds, Progress};
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
    let functions: usize = services.iter().map(|service| service.functions).sum();
    println!(
        "virtio-blk: ready, {} server(s), {functions} function(s)",
        services.len()
    );
    serve(&mut services);
}

/// A server, with its functions.
struct Service {
    host: Hypercalls,
    functions: usize,
    machine: Machine<'static>,
}

fn start(platform: &'static Platform) -> Result<Vec<Service>, alloc::string::String> {
    let servers = platform.servers().map_err(|error| format!("{error}"))?;
    let mut disks = Disks {
        modules: platform.modules().map_err(|error| format!("{error}"))?,
        arguments: platform.arguments(),
    };
    if servers.is_empty() {
        return Err("no ioreq server in the device tree".into());
    }
    let mut services = Vec::new();
    for server in servers {
        let name = server.name.clone();
        let service = Service::new(server, &mut disks).map_err(|why| format!("{name}: {why}"))?;
        services.push(service);
    }
    Ok(services)
}

impl Service {
    fn new(server: Server, disks: &mut Disks) -> Result<Self, alloc::string::String> {
        let client = Client::new(ring(&server)).map_err(|error| format!("{error:?}"))?;
        let mut machine = Machine::new(client);
        let memory = Windows(server.memory.clone());
        let doorbell = server.doorbell.unwrap_or(u64::MAX);
        let queues = disks
            .queues()
            .unwrap_or(machine.slots())
            .min(MAX_QUEUES.into());
        for (index, &sbdf) in server.functions.iter().enumerate() {
            let sbdf = Sbdf::from(sbdf);
            let module = disks
                .take(&server, index)
                .ok_or_else(|| format!("no module left for {sbdf}"))?;
            let access = disks.access(&module);
            let disk = content(&module);
            println!(
                "virtio-blk: {}: {sbdf} of {} is disk {} ({} KiB, {access:?})",
                server.name,
                server.target,
                module.name,
                disk.len() / 1024
            );
            let queues = u16::try_from(queues).unwrap_or(MAX_QUEUES);
            let block = Block::new(disk, access, &module.name, queues);
            let function = VirtioPci::new(sbdf, block, memory.clone(), doorbell)
                .map_err(|error| format!("{sbdf}: {error}"))?;
            machine
                .add(sbdf, Box::new(function))
                .map_err(|_| format!("{sbdf}: no memory left"))?;
        }
        Ok(Self {
            functions: server.functions.len(),
            host: Hypercalls {
                server: server.id,
                reports: 0,
            },
            machine,
        })
    }

    /// Serves what waits in one slot, and returns what is to be completed.
    fn serve(&mut self, slot: Option<u32>) -> Option<(u32, u32)> {
        let complete = self.machine.serve(slot, &mut self.host)?;
        Some((self.host.server, complete))
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
                    .find(|service| service.host.server == work.server);
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

/// The modules that are not yet a function's disk, and what the command line says of them.
struct Disks {
    modules: Vec<Module>,
    arguments: &'static str,
}

impl Disks {
    fn take(&mut self, server: &Server, index: usize) -> Option<Module> {
        let numbered = format!("{}.{index}", server.name);
        let position = |name: &str| self.modules.iter().position(|module| module.name == name);
        let plain = if index == 0 {
            position(&server.name)
        } else {
            None
        };
        let any = (!self.modules.is_empty()).then_some(0);
        let position = position(&numbered).or(plain).or(any)?;
        Some(self.modules.remove(position))
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

/// Returns a module's bytes.
fn content(module: &Module) -> &'static mut [u8] {
    let (base, size) = (module.region.base, module.region.size);
    // SAFETY: the module is a private copy of this domain's, mapped read-write, outside of what the
    // runtime uses; each module is taken once.
    unsafe { core::slice::from_raw_parts_mut(base as *mut u8, address(size)) }
}

/// Returns a server's ring.
fn ring(server: &Server) -> &'static [Line] {
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

/// What functions ask of the hypervisor.
struct Hypercalls {
    server: u32,
    reports: u32,
}

impl Host for Hypercalls {
    fn map(&mut self, sbdf: Sbdf, address: u64, size: u64, flags: MapFlags) -> Result<(), Status> {
        smccc::ioreq_map(self.server, sbdf.into(), address, size, flags)
    }

    fn unmap(&mut self, sbdf: Sbdf, address: u64) -> Result<(), Status> {
        smccc::ioreq_unmap(self.server, sbdf.into(), address)
    }

    fn msi(&mut self, sbdf: Sbdf, address: u64, data: u32) -> Result<(), Status> {
        smccc::ioreq_msi(self.server, sbdf.into(), address, data)
    }

    fn report(&mut self, sbdf: Sbdf, what: &dyn fmt::Display) {
        self.reports = self.reports.saturating_add(1);
        if self.reports <= MAX_REPORTS {
            println!("virtio-blk: {sbdf}: {what}");
        }
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
