//! LPIs and the ITS, as much as tests and drivers of MSIs need: flat tables, one collection per vCPU,
//! a polled command queue.
//!
//! IHI 0069, chapters 5 and 12.18.

use alloc::alloc::{Layout, alloc_zeroed, handle_alloc_error};
use core::arch::asm;

use crate::cpu::small;
use crate::gic::{self, reg};
use crate::mmio::Window;
use crate::platform;

const CTLR: usize = 0x0000;
const TYPER: usize = 0x0008;
const CBASER: usize = 0x0080;
const CWRITER: usize = 0x0088;
const CREADR: usize = 0x0090;
const BASER: usize = 0x0100;

const VALID: u64 = 1 << 63;
/// Inner shareable, and read-allocate write-allocate write-back inside.
const SHAREABLE: u64 = 1 << 10;
const CACHEABLE: u64 = 7 << 59;
/// The same cacheability in PROPBASER and PENDBASER.
const GICR_CACHEABLE: u64 = 7 << 7;
const GRANULE: usize = 0x1_0000;
const COMMANDS: usize = 0x1_0000;
/// LPIs 8192 to 16383: 14 bits of INTID.
const LPI_BITS: u64 = 14;
const DEVICE_BITS: usize = 16;

/// What an LPI's entry in the configuration table says.
const LPI_ENABLED: u8 = 1;

/// Returns zeroed memory that a device reads and that is never given back.
fn table(bytes: usize) -> usize {
    let Ok(layout) = Layout::from_size_align(bytes, GRANULE) else {
        panic!("no layout for {bytes:#x} bytes");
    };
    // SAFETY: the layout's size is not zero.
    let table = unsafe { alloc_zeroed(layout) };
    if table.is_null() {
        handle_alloc_error(layout);
    }
    table as usize
}

/// The ITS, with its command queue.
#[derive(Debug)]
pub struct Its {
    window: Window,
    commands: usize,
    write: usize,
    configuration: usize,
    entry_bytes: usize,
}

/// What a vCPU needs to turn its LPIs on.
#[derive(Clone, Copy, Debug)]
pub struct Lpis {
    its: Window,
    configuration: usize,
}

impl Lpis {
    /// Turns LPIs on for the calling vCPU, if they are not: the tables of LPIs that are on may not be
    /// moved.
    pub fn enable(self) {
        let gicr = gic::redistributor();
        if gicr.read32(reg::GICR_CTLR) & 1 != 0 {
            return;
        }
        let properties = GICR_CACHEABLE | SHAREABLE | self.configuration as u64 | (LPI_BITS - 1);
        gicr.write64(reg::GICR_PROPBASER, properties);
        // The table is zeroed: PTZ.
        let pending = GICR_CACHEABLE | SHAREABLE | 1 << 62 | table(GRANULE) as u64;
        gicr.write64(reg::GICR_PENDBASER, pending);
        gicr.write32(reg::GICR_CTLR, 1);
    }

    /// Returns what MAPC and MOVALL call the calling vCPU (GITS_TYPER.PTA).
    pub fn target(self) -> u64 {
        let gicr = gic::redistributor();
        if self.its.read64(TYPER) & 1 << 19 != 0 {
            gicr.base() as u64 >> 16
        } else {
            gicr.read64(reg::GICR_TYPER) >> 8 & 0xffff
        }
    }
}

/// A command did not complete: CREADR does not move on, or says "stalled".
#[derive(Debug)]
pub struct Stalled {
    /// GITS_CREADR.
    pub read: u64,
}

impl Its {
    /// Sets the ITS up, and LPIs on this vCPU; `None` if the machine has no ITS.
    pub fn new() -> Option<Self> {
        let window = platform::get().its?;
        let mut its = Self {
            window,
            commands: 0,
            write: 0,
            configuration: table(1 << LPI_BITS),
            entry_bytes: small(window.read64(TYPER) >> 4 & 0xf) + 1,
        };
        its.reset();
        its.lpis().enable();
        Some(its)
    }

    /// Starts the ITS anew, with empty tables, as a kernel does that was started by another.
    pub fn reset(&mut self) {
        let window = self.window;
        window.write32(CTLR, 0);
        // GITS_CTLR.Quiescent is bit 31.
        while window.read32(CTLR) & 1 << 31 == 0 {
            core::hint::spin_loop();
        }
        for index in 0..8 {
            give_table(&window, BASER + index * 8);
        }
        let commands = table(COMMANDS);
        let pages = (COMMANDS / 0x1000 - 1) as u64;
        let base = VALID | CACHEABLE | SHAREABLE | commands as u64 | pages;
        window.write64(CBASER, base);
        window.write64(CWRITER, 0);
        window.write32(CTLR, 1);
        (self.commands, self.write) = (commands, 0);
    }

    /// Returns what other vCPUs need to turn their LPIs on.
    pub fn lpis(&self) -> Lpis {
        Lpis {
            its: self.window,
            configuration: self.configuration,
        }
    }

    /// Returns what MAPC and MOVALL call the calling vCPU.
    pub fn target(&self) -> u64 {
        self.lpis().target()
    }

    /// Returns the address that devices write their MSIs to.
    pub fn doorbell(&self) -> u64 {
        self.window.base() as u64 + 0x1_0040
    }

    /// Enables or disables an LPI, and sets its priority. [`Its::inv`] makes it known.
    pub fn configure(&self, lpi: u32, priority: u8, enabled: bool) {
        let index = (lpi - gic::FIRST_LPI) as usize;
        assert!(
            index < (1 << LPI_BITS) - gic::FIRST_LPI as usize,
            "LPI {lpi} is past the table"
        );
        let entry = priority & 0xfc | if enabled { LPI_ENABLED } else { 0 };
        // SAFETY: the entry is in the table (asserted), which no Rust reference covers.
        unsafe { ((self.configuration + index) as *mut u8).write_volatile(entry) };
        publish();
    }

    /// MAPD: gives a device an interrupt translation table for `1 << event_bits` events.
    pub fn map_device(&mut self, device: u32, event_bits: u64) -> Result<(), Stalled> {
        let bytes = (self.entry_bytes << event_bits)
            .max(256)
            .next_multiple_of(GRANULE);
        let itt = table(bytes) as u64;
        self.command([
            0x08 | u64::from(device) << 32,
            event_bits - 1,
            itt | VALID,
            0,
        ])
    }

    /// MAPD with V = 0.
    pub fn unmap_device(&mut self, device: u32) -> Result<(), Stalled> {
        self.command([0x08 | u64::from(device) << 32, 0, 0, 0])
    }

    /// MAPC: sends a collection to the vCPU that [`Its::target`] names.
    pub fn map_collection(&mut self, collection: u16, target: u64) -> Result<(), Stalled> {
        self.command([0x09, 0, u64::from(collection) | target << 16 | VALID, 0])
    }

    /// MAPTI: makes an event of a device an LPI of a collection.
    pub fn map_event(
        &mut self,
        device: u32,
        event: u32,
        lpi: u32,
        collection: u16,
    ) -> Result<(), Stalled> {
        let names = u64::from(event) | u64::from(lpi) << 32;
        self.command([
            0x0a | u64::from(device) << 32,
            names,
            u64::from(collection),
            0,
        ])
    }

    /// MAPI: the same where the LPI has the event's number.
    pub fn map_identity(
        &mut self,
        device: u32,
        event: u32,
        collection: u16,
    ) -> Result<(), Stalled> {
        self.command([
            0x0b | u64::from(device) << 32,
            event.into(),
            collection.into(),
            0,
        ])
    }

    /// MOVI: moves an event to another collection.
    pub fn move_event(&mut self, device: u32, event: u32, collection: u16) -> Result<(), Stalled> {
        self.command([
            0x01 | u64::from(device) << 32,
            event.into(),
            collection.into(),
            0,
        ])
    }

    /// INT: makes an event's LPI pending.
    pub fn raise(&mut self, device: u32, event: u32) -> Result<(), Stalled> {
        self.command([0x03 | u64::from(device) << 32, event.into(), 0, 0])
    }

    /// CLEAR: takes an event's pending state back.
    pub fn clear(&mut self, device: u32, event: u32) -> Result<(), Stalled> {
        self.command([0x04 | u64::from(device) << 32, event.into(), 0, 0])
    }

    /// DISCARD: takes the mapping and the pending state of an event away.
    pub fn discard(&mut self, device: u32, event: u32) -> Result<(), Stalled> {
        self.command([0x0f | u64::from(device) << 32, event.into(), 0, 0])
    }

    /// INV: reads an event's configuration again.
    pub fn inv(&mut self, device: u32, event: u32) -> Result<(), Stalled> {
        self.command([0x0c | u64::from(device) << 32, event.into(), 0, 0])
    }

    /// INVALL: reads the configuration of a collection's LPIs again.
    pub fn inv_all(&mut self, collection: u16) -> Result<(), Stalled> {
        self.command([0x0d, 0, collection.into(), 0])
    }

    /// MOVALL: moves all LPIs that are pending on one vCPU to another.
    pub fn move_all(&mut self, from: u64, to: u64) -> Result<(), Stalled> {
        self.command([0x0e, 0, from << 16, to << 16])
    }

    /// SYNC: waits until what was commanded for a vCPU has been done.
    pub fn sync(&mut self, target: u64) -> Result<(), Stalled> {
        self.command([0x05, 0, target << 16, 0])
    }

    /// Queues one command and waits until it has been read.
    pub fn command(&mut self, command: [u64; 4]) -> Result<(), Stalled> {
        let slot = (self.commands + self.write) as *mut u64;
        for (index, word) in command.into_iter().enumerate() {
            // SAFETY: the queue has room for 32 bytes at `write`, and no Rust reference covers it.
            unsafe { slot.add(index).write_volatile(word) };
        }
        publish();
        self.write = (self.write + 32) % COMMANDS;
        self.window.write64(CWRITER, self.write as u64);
        let done =
            crate::timer::wait_until(1000, || self.window.read64(CREADR) == self.write as u64);
        if done {
            return Ok(());
        }
        let read = self.window.read64(CREADR);
        // Leave the command out, so that the next one is not stuck behind it.
        self.window.write32(CTLR, 0);
        let cbaser = self.window.read64(CBASER);
        self.window.write64(CBASER, cbaser);
        self.write = 0;
        self.window.write64(CWRITER, 0);
        self.window.write32(CTLR, 1);
        Err(Stalled { read })
    }
}

/// Gives the ITS a flat table of 64 KiB pages where GITS_BASERn asks for one.
fn give_table(window: &Window, offset: usize) {
    let old = window.read64(offset);
    let kind = old >> 56 & 7;
    if kind == 0 {
        return;
    }
    let entry = small(old >> 48 & 0x1f) + 1;
    // Type 1 is devices, 4 collections; as many of the one as there are requester IDs.
    let bytes = if kind == 1 {
        entry << DEVICE_BITS
    } else {
        GRANULE
    };
    let bytes = bytes.next_multiple_of(GRANULE);
    let pages = (bytes / GRANULE - 1) as u64;
    let table = table(bytes) as u64;
    // Page size 2 is 64 KiB.
    window.write64(
        offset,
        VALID | CACHEABLE | SHAREABLE | table | 2 << 8 | pages,
    );
}

/// Makes writes to tables visible to the ITS and the redistributors.
fn publish() {
    // SAFETY: a barrier.
    unsafe { asm!("dsb sy", options(nostack)) };
}
