//! A target domain for tests: its memory, EL2's end of the ring, and a driver as Linux has it.

use std::cell::RefCell;
use std::fmt::Display;
use std::rc::Rc;

use abi::{MapFlags, Status};
use devices::virtio::block::{Access, Block};
use devices::virtio::pci::VirtioPci;
use devices::{Function, GuestMemory, Host, Machine, OutOfBounds, Progress, Supply};
use ioreq::{Client, Kind, Layout, Line, PostedWrite, Poster, Request, Server, ServerWork, Width};
use vpci::Sbdf;

/// Where the target's memory starts, and how long it is.
pub(crate) const RAM: u64 = 0x4000_0000;
pub(crate) const RAM_BYTES: usize = 0x8_0000;
/// The target's doorbell.
pub(crate) const DOORBELL: u64 = 0x0809_0040;

/// Guest memory that notes what is written to it.
#[derive(Clone)]
pub(crate) struct Ram {
    bytes: Rc<RefCell<Vec<u8>>>,
    pub(crate) writes: Rc<RefCell<Vec<(u64, u64)>>>,
}

impl Ram {
    pub(crate) fn new() -> Self {
        Self {
            bytes: Rc::new(RefCell::new(vec![0; RAM_BYTES])),
            writes: Rc::default(),
        }
    }

    fn index(&self, address: u64, bytes: u64) -> Result<usize, OutOfBounds> {
        let error = OutOfBounds { address, bytes };
        let offset = address.checked_sub(RAM).ok_or(error)?;
        let end = offset.checked_add(bytes).ok_or(error)?;
        if end > RAM_BYTES as u64 {
            return Err(error);
        }
        Ok(usize::try_from(offset).unwrap())
    }

    /// Reads as the driver.
    pub(crate) fn get(&self, address: u64, bytes: usize) -> Vec<u8> {
        let index = self.index(address, bytes as u64).unwrap();
        self.bytes.borrow()[index..index + bytes].to_vec()
    }

    /// Writes as the driver.
    pub(crate) fn put(&self, address: u64, bytes: &[u8]) {
        let index = self.index(address, bytes.len() as u64).unwrap();
        self.bytes.borrow_mut()[index..index + bytes.len()].copy_from_slice(bytes);
    }

    pub(crate) fn get_u16(&self, address: u64) -> u16 {
        u16::from_le_bytes(self.get(address, 2).try_into().unwrap())
    }

    pub(crate) fn get_u32(&self, address: u64) -> u32 {
        u32::from_le_bytes(self.get(address, 4).try_into().unwrap())
    }
}

impl GuestMemory for Ram {
    fn check(&self, address: u64, bytes: u64) -> Result<(), OutOfBounds> {
        self.index(address, bytes).map(|_| ())
    }

    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<(), OutOfBounds> {
        let index = self.index(address, buffer.len() as u64)?;
        buffer.copy_from_slice(&self.bytes.borrow()[index..index + buffer.len()]);
        Ok(())
    }

    fn write(&self, address: u64, bytes: &[u8]) -> Result<(), OutOfBounds> {
        self.index(address, bytes.len() as u64)?;
        self.writes.borrow_mut().push((address, bytes.len() as u64));
        self.put(address, bytes);
        Ok(())
    }

    fn load_u16(&self, address: u64) -> Result<u16, OutOfBounds> {
        self.index(address, 2)?;
        assert_eq!(address % 2, 0);
        Ok(self.get_u16(address))
    }

    fn store_u16(&self, address: u64, value: u16) -> Result<(), OutOfBounds> {
        assert_eq!(address % 2, 0);
        self.write(address, &value.to_le_bytes())
    }
}

/// Makes a function.
pub(crate) type Make = Box<dyn FnMut(Sbdf) -> Option<Box<dyn Function>>>;

/// A hypervisor that remembers what it was asked.
#[derive(Default)]
pub(crate) struct Hypervisor {
    /// The functions that there are, in order, and what makes them.
    pub(crate) functions: Vec<Sbdf>,
    make: Option<Make>,
    /// What was made and what has gone.
    pub(crate) made: Vec<Sbdf>,
    pub(crate) gone: Vec<Sbdf>,
    pub(crate) claims: Vec<(Sbdf, u64, u64)>,
    pub(crate) messages: Vec<(u64, u32)>,
    pub(crate) reports: Vec<String>,
    /// Claims of anything at or above this are refused.
    pub(crate) limit: Option<u64>,
}

impl Host for Hypervisor {
    fn map(&mut self, sbdf: Sbdf, address: u64, size: u64, flags: MapFlags) -> Result<(), Status> {
        assert_eq!(flags, MapFlags::POSTED);
        let overlaps = |&(_, start, bytes): &(Sbdf, u64, u64)| {
            start < address + size && address < start + bytes
        };
        if self.claims.iter().any(overlaps) {
            return Err(Status::Busy);
        }
        if self.limit.is_some_and(|limit| address >= limit) {
            return Err(Status::BadAddress);
        }
        self.claims.push((sbdf, address, size));
        Ok(())
    }

    fn unmap(&mut self, sbdf: Sbdf, address: u64) -> Result<(), Status> {
        let claim = self
            .claims
            .iter()
            .position(|claim| (claim.0, claim.1) == (sbdf, address));
        self.claims.remove(claim.ok_or(Status::NotFound)?);
        Ok(())
    }

    fn msi(&mut self, _: Sbdf, address: u64, data: u32) -> Result<(), Status> {
        self.messages.push((address, data));
        if data == 0xdead {
            Err(Status::Denied)
        } else {
            Ok(())
        }
    }

    fn report(&mut self, sbdf: Sbdf, what: &dyn Display) {
        self.reports.push(format!("{sbdf}: {what}"));
    }
}

impl Supply<'static> for Hypervisor {
    fn next(&mut self, after: Option<Sbdf>) -> Option<Sbdf> {
        let mut functions = self.functions.iter().copied();
        functions.find(|function| Some(*function) > after)
    }

    fn make(&mut self, sbdf: Sbdf) -> Option<Box<dyn Function>> {
        self.made.push(sbdf);
        self.make.as_mut()?(sbdf)
    }

    fn gone(&mut self, sbdf: Sbdf) {
        self.gone.push(sbdf);
    }
}

/// The function under test, 00:02.0.
pub(crate) fn function() -> Sbdf {
    Sbdf::new(0, 0, 2, 0).unwrap()
}

/// A target domain with one vCPU, and a device model that serves it a disk.
pub(crate) struct Target {
    pub(crate) ram: Ram,
    pub(crate) host: Hypervisor,
    server: Server<'static>,
    poster: Poster,
    machine: Machine<'static>,
}

/// How a disk is made for a test.
pub(crate) struct Disk {
    pub(crate) bytes: usize,
    pub(crate) access: Access,
    pub(crate) queues: u16,
}

impl Default for Disk {
    fn default() -> Self {
        Self {
            bytes: 64 * 512,
            access: Access::ReadWrite,
            queues: 2,
        }
    }
}

impl Target {
    pub(crate) fn new(disk: &Disk) -> Self {
        let content: Vec<u8> = (0..disk.bytes)
            .map(|at| u8::try_from(at / 512 % 256).unwrap())
            .collect();
        let layout = Layout::new(1, 16).unwrap();
        let lines: Vec<Line> = (0..layout.lines()).map(|_| Line::new()).collect();
        let lines: &'static [Line] = lines.leak();
        let (server, mut poster) = Server::new(lines, layout).unwrap();
        server.attach(&mut poster).unwrap();
        let ram = Ram::new();
        let machine = Machine::new(Client::new(lines).unwrap());
        assert_eq!(machine.slots(), 1);
        let (access, queues, memory) = (disk.access, disk.queues, ram.clone());
        let make: Make = Box::new(move |sbdf| {
            let block = Block::new(content.clone().leak(), access, "serial", queues);
            let virtio = VirtioPci::new(sbdf, block, memory.clone(), DOORBELL).unwrap();
            Some(Box::new(virtio))
        });
        let host = Hypervisor {
            functions: vec![function()],
            make: Some(make),
            ..Hypervisor::default()
        };
        Self {
            ram,
            host,
            server,
            poster,
            machine,
        }
    }

    /// Sends a synchronous request, as EL2 does for a vCPU that waits.
    pub(crate) fn request(&mut self, request: Request) -> u64 {
        let pending = self.server.publish(0, request).unwrap();
        while let Some(work) = self.server.next_work() {
            let slot = match work {
                ServerWork::Posted => None,
                ServerWork::Slot(slot) => Some(slot),
            };
            if let Some(slot) = self.machine.serve(slot, &mut self.host) {
                self.server.complete(slot).unwrap();
            }
        }
        let answer = self.server.take_answer(&pending).unwrap();
        self.settle();
        answer
    }

    /// Gives and takes functions, as EL2 does; returns which change that was.
    pub(crate) fn change(&mut self, functions: &[Sbdf]) -> u32 {
        let removed = |sbdf: Sbdf| !functions.contains(&sbdf);
        self.host.claims.retain(|(sbdf, ..)| !removed(*sbdf));
        self.host.functions = functions.to_vec();
        self.server.change_functions(&mut self.poster)
    }

    /// Returns whether the device model has seen that change.
    pub(crate) fn has_seen(&self, change: u32) -> bool {
        self.server.has_seen(change)
    }

    /// Changes what functions are made of.
    pub(crate) fn run_out(&mut self, make: Option<Make>) -> Option<Make> {
        core::mem::replace(&mut self.host.make, make)
    }

    /// Posts a notification that the device model has yet to look at.
    pub(crate) fn post(&mut self, address: u64) {
        let write = PostedWrite {
            width: Width::Two,
            sbdf: function(),
            address,
            data: 0,
        };
        self.server.post(&mut self.poster, &write).unwrap();
    }

    /// Lets the device model look at what was posted.
    pub(crate) fn take_posted(&mut self) {
        while let Some(work) = self.server.next_work() {
            assert_eq!(work, ServerWork::Posted);
            assert_eq!(self.machine.serve(None, &mut self.host), None);
        }
    }

    /// Lets the device model do some of what is left to be done.
    pub(crate) fn poll(&mut self) -> Progress {
        self.machine.poll(&mut self.host)
    }

    /// Reads the ID of a function.
    pub(crate) fn id_of(&mut self, sbdf: Sbdf) -> u64 {
        self.request(Request {
            sbdf,
            ..Self::access(Kind::ConfigRead, 0, Width::Four, 0)
        })
    }

    /// Lets the device model do all that is left to be done.
    pub(crate) fn settle(&mut self) {
        self.take_posted();
        while self.machine.poll(&mut self.host) == Progress::More {}
    }

    fn access(kind: Kind, address: u64, width: Width, data: u64) -> Request {
        Request {
            kind,
            width,
            sbdf: function(),
            address,
            data,
        }
    }

    pub(crate) fn config(&mut self, offset: u64, width: Width) -> u32 {
        let value = self.request(Self::access(Kind::ConfigRead, offset, width, 0));
        u32::try_from(value).unwrap()
    }

    pub(crate) fn set_config(&mut self, offset: u64, width: Width, value: u32) {
        self.request(Self::access(Kind::ConfigWrite, offset, width, value.into()));
    }

    /// Reads memory space: all ones where nobody has claimed it.
    pub(crate) fn read(&mut self, address: u64, width: Width) -> u64 {
        if self.owner(address).is_none() {
            return width.mask();
        }
        self.request(Self::access(Kind::MmioRead, address, width, 0))
    }

    /// Writes memory space, posted; nothing happens where nobody has claimed it.
    pub(crate) fn write(&mut self, address: u64, width: Width, data: u64) {
        let Some(sbdf) = self.owner(address) else {
            return;
        };
        let write = PostedWrite {
            width,
            sbdf,
            address,
            data,
        };
        self.server.post(&mut self.poster, &write).unwrap();
        self.settle();
    }

    fn owner(&self, address: u64) -> Option<Sbdf> {
        let mut claims = self.host.claims.iter();
        claims.find_map(|&(sbdf, start, bytes)| {
            (start..start + bytes).contains(&address).then_some(sbdf)
        })
    }

    pub(crate) fn reset(&mut self) {
        self.request(Request::reset(function()));
    }
}

/// Where the driver puts the BARs.
pub(crate) const BAR0: u64 = 0x50_0001_0000;
pub(crate) const BAR2: u64 = 0x1000_0000;

/// Status bits.
pub(crate) const ACKNOWLEDGE: u8 = 1;
pub(crate) const DRIVER: u8 = 2;
pub(crate) const DRIVER_OK: u8 = 4;
pub(crate) const FEATURES_OK: u8 = 8;
pub(crate) const NEEDS_RESET: u8 = 64;

/// Feature bits.
pub(crate) const BLK_RO: u64 = 1 << 5;
pub(crate) const INDIRECT: u64 = 1 << 28;
pub(crate) const EVENT_IDX: u64 = 1 << 29;
pub(crate) const VERSION_1: u64 = 1 << 32;

/// Descriptor flags.
pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const INDIRECT_TABLE: u16 = 4;

/// Where the driver puts its queue, and how many entries it has.
pub(crate) const DESCRIPTORS: u64 = RAM + 0x1000;
pub(crate) const AVAILABLE: u64 = RAM + 0x2000;
pub(crate) const USED: u64 = RAM + 0x3000;
pub(crate) const QUEUE_SIZE: u16 = 16;
/// Where its requests are, and an indirect table.
pub(crate) const HEADER: u64 = RAM + 0x5000;
pub(crate) const STATUS: u64 = RAM + 0x5010;
pub(crate) const TABLE: u64 = RAM + 0x6000;
pub(crate) const DATA: u64 = RAM + 0x1_0000;

/// A structure that a virtio capability points to.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Structure {
    pub(crate) address: u64,
    pub(crate) length: u32,
    pub(crate) extra: u32,
}

/// A driver that has found the function and turned it on.
pub(crate) struct Driver {
    pub(crate) target: Target,
    pub(crate) common: Structure,
    pub(crate) notify: Structure,
    pub(crate) isr: Structure,
    pub(crate) device: Structure,
    /// The config-space window, and the MSI-X capability.
    pub(crate) window: u64,
    pub(crate) msix: u64,
    pub(crate) express: u64,
    pub(crate) features: u64,
    available: u16,
    used: u16,
}

impl Driver {
    /// Finds the function: IDs, BAR sizes, capabilities; then places and enables it.
    pub(crate) fn probe(mut target: Target) -> Self {
        assert_eq!(target.config(0, Width::Four), 0x1042_1af4);
        target.set_config(4, Width::Two, 0);
        let mut sizes = [0_u64; 6];
        for (bar, size) in sizes.iter_mut().enumerate() {
            let offset = 0x10 + bar as u64 * 4;
            let old = target.config(offset, Width::Four);
            target.set_config(offset, Width::Four, u32::MAX);
            let mask = target.config(offset, Width::Four);
            target.set_config(offset, Width::Four, old);
            *size = u64::from((!(mask & !0xf)).wrapping_add(1)) * u64::from(mask & !0xf != 0);
        }
        assert_eq!(
            sizes,
            [0x4000, 0x10, 0x1000, 0, 0, 0],
            "BAR1 is BAR0's upper half"
        );
        target.set_config(
            0x10,
            Width::Four,
            u32::try_from(BAR0 & 0xffff_ffff).unwrap(),
        );
        target.set_config(0x14, Width::Four, u32::try_from(BAR0 >> 32).unwrap());
        target.set_config(0x18, Width::Four, u32::try_from(BAR2).unwrap());
        target.set_config(4, Width::Two, 6);
        let mut driver = Self {
            target,
            common: Structure::default(),
            notify: Structure::default(),
            isr: Structure::default(),
            device: Structure::default(),
            window: 0,
            msix: 0,
            express: 0,
            features: 0,
            available: 0,
            used: 0,
        };
        driver.walk_capabilities();
        driver
    }

    fn walk_capabilities(&mut self) {
        assert_ne!(
            self.target.config(6, Width::Two) & 0x10,
            0,
            "there is a list"
        );
        let mut next = u64::from(self.target.config(0x34, Width::One));
        let mut found = 0;
        while next != 0 {
            let id = self.target.config(next, Width::One);
            match id {
                0x09 => self.note_structure(next),
                0x10 => self.express = next,
                0x11 => self.msix = next,
                other => panic!("capability {other:#x}"),
            }
            next = u64::from(self.target.config(next + 1, Width::One));
            found += 1;
            assert!(found <= 7);
        }
        assert_eq!(found, 7);
    }

    fn note_structure(&mut self, at: u64) {
        let bar = self.target.config(at + 4, Width::One);
        let offset = u64::from(self.target.config(at + 8, Width::Four));
        let length = self.target.config(at + 12, Width::Four);
        let extra = self.target.config(at + 16, Width::Four);
        let structure = Structure {
            address: BAR0 + offset,
            length,
            extra,
        };
        let kind = self.target.config(at + 3, Width::One);
        assert_eq!(bar, 0);
        match kind {
            1 => self.common = structure,
            2 => self.notify = structure,
            3 => self.isr = structure,
            4 => self.device = structure,
            5 => self.window = at,
            other => panic!("structure {other}"),
        }
    }

    pub(crate) fn common_read(&mut self, offset: u64, width: Width) -> u64 {
        self.target.read(self.common.address + offset, width)
    }

    pub(crate) fn common_write(&mut self, offset: u64, width: Width, value: u64) {
        self.target
            .write(self.common.address + offset, width, value);
    }

    pub(crate) fn status(&mut self) -> u8 {
        u8::try_from(self.common_read(0x14, Width::One)).unwrap()
    }

    pub(crate) fn set_status(&mut self, status: u8) {
        self.common_write(0x14, Width::One, status.into());
    }

    pub(crate) fn offered(&mut self) -> u64 {
        let mut features = 0;
        for half in [0, 1] {
            self.common_write(0x00, Width::Four, half);
            features |= self.common_read(0x04, Width::Four) << (32 * half);
        }
        features
    }

    /// Negotiates up to FEATURES_OK; returns the status that the device then has.
    pub(crate) fn negotiate(&mut self, features: u64) -> u8 {
        self.set_status(0);
        assert_eq!(self.status(), 0);
        self.set_status(ACKNOWLEDGE);
        self.set_status(ACKNOWLEDGE | DRIVER);
        self.features = features;
        for half in [0, 1] {
            self.common_write(0x08, Width::Four, half);
            self.common_write(0x0c, Width::Four, features >> (32 * half) & 0xffff_ffff);
        }
        self.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK);
        self.status()
    }

    /// Sets queue 0 up, with vector 1.
    pub(crate) fn set_up_queue(&mut self) {
        for address in [DESCRIPTORS, AVAILABLE, USED] {
            self.target.ram.put(address, &[0; 0x1000]);
        }
        (self.available, self.used) = (0, 0);
        self.common_write(0x16, Width::Two, 0);
        self.common_write(0x18, Width::Two, QUEUE_SIZE.into());
        self.common_write(0x1a, Width::Two, 1);
        for (offset, address) in [(0x20, DESCRIPTORS), (0x28, AVAILABLE), (0x30, USED)] {
            self.common_write(offset, Width::Four, address & 0xffff_ffff);
            self.common_write(offset + 4, Width::Four, address >> 32);
        }
        self.common_write(0x1c, Width::Two, 1);
    }

    /// Sets MSI-X up: vector N sends data 0x100 + N.
    pub(crate) fn set_up_msix(&mut self, vectors: u64) {
        self.target.set_config(self.msix + 2, Width::Two, 0xc000);
        for vector in 0..vectors {
            let entry = BAR2 + vector * 16;
            self.target.write(entry, Width::Four, DOORBELL);
            self.target.write(entry + 4, Width::Four, 0);
            self.target.write(entry + 8, Width::Four, 0x100 + vector);
            self.target.write(entry + 12, Width::Four, 0);
        }
        self.target.set_config(self.msix + 2, Width::Two, 0x8000);
    }

    /// Does all of it, with `features` beside VERSION_1.
    pub(crate) fn start(disk: &Disk, features: u64) -> Self {
        let mut driver = Self::probe(Target::new(disk));
        driver.restart(features);
        driver
    }

    pub(crate) fn restart(&mut self, features: u64) {
        let status = self.negotiate(features | VERSION_1);
        assert_eq!(status, ACKNOWLEDGE | DRIVER | FEATURES_OK);
        self.set_up_msix(3);
        self.common_write(0x10, Width::Two, 0);
        self.set_up_queue();
        self.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
        assert_eq!(
            self.status(),
            ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK
        );
    }

    pub(crate) fn notify(&mut self) {
        self.target.write(self.notify.address, Width::Two, 0);
    }

    /// Writes a descriptor to `table`.
    pub(crate) fn describe(
        &self,
        table: u64,
        index: u16,
        address: u64,
        bytes: u32,
        flags: u16,
        next: u16,
    ) {
        let mut descriptor = address.to_le_bytes().to_vec();
        descriptor.extend(bytes.to_le_bytes());
        descriptor.extend(flags.to_le_bytes());
        descriptor.extend(next.to_le_bytes());
        self.target
            .ram
            .put(table + u64::from(index) * 16, &descriptor);
    }

    /// Makes the chain that starts at `head` available, without a notification.
    pub(crate) fn make_available(&mut self, head: u16) {
        let slot = u64::from(self.available % QUEUE_SIZE);
        self.target
            .ram
            .put(AVAILABLE + 4 + slot * 2, &head.to_le_bytes());
        self.available = self.available.wrapping_add(1);
        self.target
            .ram
            .put(AVAILABLE + 2, &self.available.to_le_bytes());
    }

    /// Returns the next chain that was given back, and how many bytes were written.
    pub(crate) fn take_used(&mut self) -> Option<(u32, u32)> {
        if self.target.ram.get_u16(USED + 2) == self.used {
            return None;
        }
        let slot = USED + 4 + u64::from(self.used % QUEUE_SIZE) * 8;
        self.used = self.used.wrapping_add(1);
        Some((
            self.target.ram.get_u32(slot),
            self.target.ram.get_u32(slot + 4),
        ))
    }

    /// Writes the header of a request.
    pub(crate) fn put_header(&self, kind: u32, sector: u64) {
        let mut header = kind.to_le_bytes().to_vec();
        header.extend([0; 4]);
        header.extend(sector.to_le_bytes());
        self.target.ram.put(HEADER, &header);
        self.target.ram.put(STATUS, &[0xff]);
    }

    /// Sends a request with one buffer of data, and returns the status byte and the written length.
    pub(crate) fn request(
        &mut self,
        kind: u32,
        sector: u64,
        bytes: u32,
        data_flags: u16,
    ) -> (u8, u32) {
        self.request_in_pieces(kind, sector, &[bytes], data_flags)
    }

    /// Sends a request whose data is cut into several buffers, one behind the other.
    pub(crate) fn request_in_pieces(
        &mut self,
        kind: u32,
        sector: u64,
        pieces: &[u32],
        data_flags: u16,
    ) -> (u8, u32) {
        self.put_header(kind, sector);
        let table = DESCRIPTORS;
        self.describe(table, 0, HEADER, 16, NEXT, 1);
        let mut address = DATA;
        let mut index = 1;
        for &bytes in pieces.iter().filter(|&&bytes| bytes > 0) {
            self.describe(table, index, address, bytes, NEXT | data_flags, index + 1);
            address += u64::from(bytes);
            index += 1;
        }
        self.describe(table, index, STATUS, 1, WRITE, 0);
        self.make_available(0);
        self.notify();
        let (head, written) = self.take_used().expect("the request is done");
        assert_eq!(head, 0);
        (self.target.ram.get(STATUS, 1)[0], written)
    }
}
