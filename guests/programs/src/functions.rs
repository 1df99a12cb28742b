//! What a guest finds of physical functions that it has: small BARs, an expansion ROM, capabilities, and
//! MSIs that are masked, moved and aimed elsewhere.
//!
//! The functions are QEMU's igb (82576, whose interrupts software can raise), ivshmem, pvpanic,
//! virtio-net and nvme.

use alloc::vec::Vec;
use core::hint::black_box;
use core::sync::atomic::{AtomicU32, Ordering};

use runtime::exception;
use runtime::gic::{self, DEFAULT_PRIORITY, FIRST_LPI};
use runtime::harness::{self, Failure, Outcome, Test};
use runtime::its::{Its, Stalled};
use runtime::mmio::{Odd, Width, Window};
use runtime::mmu::{self, Alias};
use runtime::platform::{self, Platform};
use runtime::{check, check_eq, cpu, timer};
use spin::Mutex;

use crate::pci::{self, Function, bridge, capability, find};

/// Runs the tests and powers off.
#[rustfmt::skip]
pub fn main(_platform: &'static Platform) {
    harness::run(&[
        Test { name: "small_bars", run: small_bars },
        Test { name: "bars_on_top_of_each_other", run: overlap },
        Test { name: "large_bar", run: large_bar },
        Test { name: "pair_across_pages", run: across },
        Test { name: "expansion_rom", run: expansion_rom },
        Test { name: "vendor_capabilities", run: vendor_capabilities },
        Test { name: "errors_are_read_only", run: errors },
        Test { name: "msix", run: msix },
        Test { name: "msi", run: msi },
        Test { name: "msix_again", run: msix },
        Test { name: "set_up_in_a_reset", run: set_up_in_a_reset },
    ])
}

/// Vendor ID and Device ID of what is looked for.
const IGB: u32 = 0x10c9_8086;
const IVSHMEM: u32 = 0x1110_1af4;
const PVPANIC: u32 = 0x0011_1b36;
const VIRTIO_NET: u32 = 0x1041_1af4;
const NVME: u32 = 0x0010_1b36;

/// Returns `size` bytes of the 32-bit window.
fn window(offset: usize, size: usize) -> Result<Window, Failure> {
    Ok(bridge()?.memory32.part(offset, size))
}

/// Returns the offsets of capabilities with that ID, in the order of the chain.
fn capabilities(function: &Function, id: u8) -> Vec<usize> {
    let mut found = Vec::new();
    let mut at = function.config.read8(0x34).into();
    while at != 0 {
        if function.config.read8(at) == id {
            found.push(at);
        }
        at = function.config.read8(at + 1).into();
    }
    found
}

/// ivshmem's interrupt mask, which holds what is written.
const MASK: usize = 0;

/// BARs of 16 and of 256 bytes in one page of the guest's: each is reached, and nothing beside them.
fn small_bars() -> Outcome {
    let (panic, memory) = (find(PVPANIC)?, find(IVSHMEM)?);
    let page = window(0x10_0000, 0x1000)?;
    check_eq!(
        panic.place(0, page.base() + 0x230),
        16,
        "size of pvpanic's BAR"
    );
    check_eq!(
        memory.place(0, page.base() + 0x300),
        256,
        "size of ivshmem's BAR"
    );
    check_eq!(page.read32(0x300), u32::MAX, "with decode off");
    panic.enable();
    memory.enable();
    let events = page.read8(0x230);
    check!(
        events != 0 && events != 0xff,
        "pvpanic has events {events:#x}"
    );
    for value in [0xa5a5_0ff0, 0x1234_5678] {
        page.write32(0x300 + MASK, value);
        check_eq!(page.read32(0x300 + MASK), value, "what was written");
    }
    for offset in [0x000, 0x220, 0x240, 0x2f8, 0x400, 0xff8] {
        check_eq!(page.read64(offset), u64::MAX, "beside them, at {offset:#x}");
        page.write64(offset, 0);
    }
    check_eq!(
        page.read32(0x300 + MASK),
        0x1234_5678,
        "after stores beside it"
    );
    Ok(())
}

/// Whoever comes first has the range; the other one has it when that one has gone.
fn overlap() -> Outcome {
    let (panic, memory) = (find(PVPANIC)?, find(IVSHMEM)?);
    let page = window(0x10_0000, 0x1000)?;
    memory.place(0, page.base());
    memory.enable();
    panic.place(0, page.base());
    panic.enable();
    page.write32(MASK, 0x7777_0000);
    check_eq!(page.read32(MASK), 0x7777_0000, "ivshmem was there first");
    memory.place(0, page.base() + 0x800);
    memory.enable();
    check!(
        page.read8(0) < 0x80,
        "pvpanic follows: {:#x}",
        page.read8(0)
    );
    check_eq!(page.read32(0x800 + MASK), 0x7777_0000, "ivshmem has moved");
    // On RAM, the interrupt controller, and outside the windows it is nowhere.
    let ram = black_box(alloc::vec![0x5555_5555_u32; 2048]);
    let aligned = (ram.as_ptr() as usize).next_multiple_of(0x1000);
    for address in [aligned, 0x0800_0000, 0x0900_0000, 0x3f00_0000] {
        memory.place(0, address);
        memory.enable();
        check_eq!(page.read32(0x800), u32::MAX, "it has left");
        check!(
            black_box(&ram).iter().all(|&word| word == 0x5555_5555),
            "our memory is still ours"
        );
    }
    Ok(())
}

/// A 64-bit BAR, moved by its halves with decode on. Its memory is prefetchable, so the guest may take it for
/// Normal memory, and access what is not aligned. (QEMU 10.0 lets that pass for Device memory, too.)
fn large_bar() -> Outcome {
    let memory = find(IVSHMEM)?;
    let Some(high) = bridge()?.memory64 else {
        return Err(Failure::Failed("there is no window above 4 GiB".into()));
    };
    let low = window(0x40_0000, 0x10_0000)?;
    check_eq!(memory.place(2, low.base()), 0x10_0000, "size of the memory");
    memory.enable();
    low.write64(0x8_0000, 0x0123_4567_89ab_cdef);
    let [below, above] = pci::halves(high.base() as u64);
    memory.config.write32(0x1c, above);
    check_eq!(low.read64(0x8_0000), u64::MAX, "half moved");
    memory.config.write32(0x18, below);
    let high = high.part(0, 0x10_0000);
    check_eq!(high.read64(0x8_0000), 0x0123_4567_89ab_cdef, "moved");
    let page = high.base() + 0x8_0000;
    // SAFETY: a device's memory, to which Rust has no reference.
    let normal = unsafe { Window::new(mmu::alias(0, Some((page, Alias::Uncached))), 0x1000) };
    let stored = normal.probe_write(3, Width::Word, 0x5555_5555);
    check!(stored.is_ok(), "not aligned: {stored:?}");
    let loaded = normal.probe_read(1, Width::Word);
    check!(loaded == Ok(0x5555_abcd), "not aligned: {loaded:x?}");
    memory.config.write16(4, 0);
    check_eq!(high.read64(0x8_0000), u64::MAX, "with decode off");
    Ok(())
}

/// A pair of which one half is a register in a page that does not trap, and the other one the address of an
/// MSI-X vector.
fn across() -> Outcome {
    let nvme = find(NVME)?;
    let table = nvme.config.read32(capability(&nvme, 0x11)? + 4) as usize;
    check!(table.is_multiple_of(0x1000), "the table is at {table:#x}");
    let registers = window(0xa0_0000, 0x4000)?;
    nvme.place(0, registers.base());
    nvme.enable();
    registers.write32(table, 0x0123_4568);
    let before = registers.read32(table - 4);
    check!(before != u32::MAX, "there is no register before the table");
    match registers.probe_odd(table - 4, Odd::PairLoad) {
        Ok(pair) => check_eq!(pair, 0x0123_4568 << 32 | u64::from(before), "the pair"),
        Err(fault) => return Err(Failure::Failed(alloc::format!("{fault:?}"))),
    }
    nvme.config.write16(4, 0);
    Ok(())
}

fn expansion_rom() -> Outcome {
    const ROM: usize = 0x30;
    let net = find(VIRTIO_NET)?;
    net.config.write32(ROM, 0xffff_f800);
    let size = (!(net.config.read32(ROM) & !0x7ff)).wrapping_add(1) as usize;
    check!(size.is_power_of_two() && size >= 0x1000, "{size:#x} bytes");
    let rom = window(0x80_0000, size)?;
    let [address, _] = pci::halves(rom.base() as u64);
    net.config.write32(ROM, address);
    net.config.write16(4, 2);
    check_eq!(rom.read16(0), 0xffff, "not enabled");
    net.config.write32(ROM, address | 1);
    check_eq!(rom.read16(0), 0xaa55, "signature");
    check_eq!((rom.read8(0), rom.read8(1)), (0x55, 0xaa), "by bytes");
    let structure: usize = rom.read16(0x18).into();
    check_eq!(
        rom.read32(structure),
        u32::from_le_bytes(*b"PCIR"),
        "its structure"
    );
    for width in Width::ALL {
        let stored = rom.probe_write(0, width, 0);
        check!(stored.is_ok(), "a store of {width:?}: {stored:?}");
    }
    let pair = rom.probe_odd(0, Odd::PairStore);
    check!(pair.is_ok(), "a store of a pair: {pair:?}");
    check_eq!(rom.read16(0), 0xaa55, "stores do nothing");
    // Memory Space Enable counts more.
    net.config.write16(4, 0);
    check_eq!(rom.read16(0), 0xffff, "memory decode off");
    net.config.write16(4, 2);
    check_eq!(rom.read16(0), 0xaa55, "on again");
    net.config.write32(ROM, address);
    check_eq!(rom.read16(0), 0xffff, "disabled again");
    net.config.write16(4, 0);
    Ok(())
}

/// virtio's structures are found by its capabilities, all but the window to all BARs.
fn vendor_capabilities() -> Outcome {
    let net = find(VIRTIO_NET)?;
    let found = capabilities(&net, 0x09);
    let kinds: Vec<u8> = found.iter().map(|at| net.config.read8(at + 3)).collect();
    check!(kinds.contains(&1) && kinds.contains(&4), "{kinds:?}");
    check!(!kinds.contains(&5), "the window to all BARs is shown");
    for (at, kind) in found.iter().zip(&kinds) {
        let before = net.config.read32(at + 8);
        net.config.write32(at + 8, !before);
        check_eq!(
            net.config.read32(at + 8),
            before,
            "structure {kind} can be written"
        );
    }
    let Some(common) = found.iter().zip(&kinds).find(|&(_, &kind)| kind == 1) else {
        return Ok(());
    };
    let (bar, offset) = (
        net.config.read8(common.0 + 4),
        net.config.read32(common.0 + 8),
    );
    let registers = window(0x90_0000, 0x4000)?;
    net.place(bar.into(), registers.base());
    net.enable();
    // device_feature_select, device_feature: VIRTIO_F_VERSION_1 is bit 32.
    registers.write32(offset as usize, 1);
    check_eq!(
        registers.read32(offset as usize + 4) & 1,
        1,
        "VIRTIO_F_VERSION_1"
    );
    net.config.write16(4, 0);
    let igb = find(IGB)?;
    check_eq!(
        capabilities(&igb, 0x09).len(),
        0,
        "those of a function without permission"
    );
    Ok(())
}

/// AER is there, and what is written to it is not kept.
fn errors() -> Outcome {
    let igb = find(IGB)?;
    check_eq!(igb.config.read32(0x100) & 0xffff, 1, "extended capability");
    for offset in (0x104..0x12c).step_by(4) {
        let before = igb.config.read32(offset);
        igb.config.write32(offset, !before);
        check_eq!(igb.config.read32(offset), before, "at {offset:#x}");
    }
    Ok(())
}

/// Registers of igb (Intel 82576 datasheet, 8.8): raising, enabling and clearing causes. Those of the
/// other causes are named by their aliases, which QEMU has alone.
const ICR: usize = 0x00c0;
const ICS: usize = 0x00c8;
const IMS: usize = 0x00d0;
const IMC: usize = 0x00d8;
const GPIE: usize = 0x1514;
const GPIE_MSIX: u32 = 1 << 4;
const EICS: usize = 0x1520;
const EIMS: usize = 0x1524;
const EIMC: usize = 0x1528;
const EICR: usize = 0x1580;
/// A cause that means nothing else: link status change.
const LINK_CHANGE: u32 = 1 << 2;

/// Where the MSI-X table and the pending bits are in BAR3.
const TABLE: usize = 0;
const PENDING: usize = 0x2000;

/// LPIs of the events, and the collection that they are in.
const LPI: u32 = FIRST_LPI + 64;
const EVENTS: u32 = 8;
const COLLECTION: u16 = 0;

/// How long something that must come is waited for, in milliseconds.
const LONG: u64 = 30_000;

static LOG: Mutex<Vec<u32>> = Mutex::new(Vec::new());
static ITS: Mutex<Option<Its>> = Mutex::new(None);

fn record(lpi: u32) {
    LOG.lock().push(lpi - LPI);
}

/// Returns the events that arrive: all that do before `count` have, or a while has passed.
fn arrived(count: usize) -> Vec<u32> {
    exception::unmask_irqs();
    let wait = if count == 0 { 30 } else { LONG };
    let enough = || count != 0 && exception::without_irqs(|| LOG.lock().len()) >= count;
    timer::wait_until(wait, enough);
    exception::mask_irqs();
    core::mem::take(&mut *LOG.lock())
}

fn expect(events: &[u32], what: &str) -> Outcome {
    check_eq!(arrived(events.len()), events, "{what}");
    Ok(())
}

fn stalled(error: Stalled) -> Failure {
    Failure::Failed(alloc::format!("a command is stuck: {error:?}"))
}

/// igb with its BARs placed, its interrupts off, and its events known to the ITS.
struct Igb {
    function: Function,
    registers: Window,
    msix: Window,
    doorbell: u64,
}

impl Igb {
    /// Returns it as it is, once its events are known.
    fn find() -> Result<Self, Failure> {
        let Some(doorbell) = ITS.lock().as_ref().map(Its::doorbell) else {
            return Err(Failure::Failed("there is no ITS".into()));
        };
        Ok(Self {
            function: find(IGB)?,
            registers: window(0x20_0000, 0x2_0000)?,
            msix: window(0x30_0000, 0x4000)?,
            doorbell,
        })
    }

    fn new() -> Result<Self, Failure> {
        let mut place = ITS.lock();
        let is_new = place.is_none();
        *place = place.take().or_else(Its::new);
        drop(place);
        let igb = Self::find()?;
        gic::ensure_ready();
        if is_new && let Some(its) = ITS.lock().as_mut() {
            igb.map(its).map_err(stalled)?;
        }
        igb.function.place(0, igb.registers.base());
        igb.function.place(3, igb.msix.base());
        igb.function.enable();
        igb.registers.write32(IMC, u32::MAX);
        igb.registers.write32(EIMC, u32::MAX);
        igb.clear();
        arrived(0);
        Ok(igb)
    }

    fn map(&self, its: &mut Its) -> Result<(), Stalled> {
        gic::set_handler(LPI, Some(record));
        let (device, target) = (self.function.requester.into(), its.target());
        its.map_collection(COLLECTION, target)?;
        its.map_device(device, 5)?;
        for event in 0..EVENTS {
            its.configure(LPI + event, DEFAULT_PRIORITY, true);
            its.map_event(device, event, LPI + event, COLLECTION)?;
            its.inv(device, event)?;
        }
        its.sync(target)
    }

    /// Has it send an MSI, and returns where the capability is.
    fn set_msi(&self, data: u16) -> Result<usize, Failure> {
        let config = self.function.config;
        let at = capability(&self.function, 0x05)?;
        let [low, high] = pci::halves(self.doorbell);
        config.write32(at + 4, low);
        config.write32(at + 8, high);
        config.write16(at + 12, data);
        config.write16(at + 2, 1);
        Ok(at)
    }

    /// Raises what it sends an MSI for.
    fn raise_msi(&self) {
        self.clear();
        // Reading clears, too.
        self.registers.read32(ICR);
        self.registers.write32(IMS, LINK_CHANGE);
        self.registers.write32(ICS, LINK_CHANGE);
    }

    /// Takes all causes back.
    fn clear(&self) {
        self.registers.write32(ICR, u32::MAX);
        self.registers.write32(EICR, u32::MAX);
    }

    /// Raises MSI-X vectors.
    fn raise(&self, vectors: u32) {
        self.clear();
        self.registers.write32(EIMS, vectors);
        self.registers.write32(EICS, vectors);
    }

    /// Sets a vector up.
    fn set(&self, vector: usize, address: u64, event: u32) {
        let entry = TABLE + vector * 16;
        self.msix.write64(entry, address);
        self.msix.write32(entry + 8, event);
    }

    fn mask(&self, vector: usize, masked: bool) {
        self.msix.write32(TABLE + vector * 16 + 12, masked.into());
    }

    fn pending(&self) -> u64 {
        self.msix.read64(PENDING)
    }
}

fn msix() -> Outcome {
    const ENABLE: u16 = 1 << 15;
    const MASK_ALL: u16 = 1 << 14;
    let igb = Igb::new()?;
    let control = capability(&igb.function, 0x11)? + 2;
    let set = |bits: u16| igb.function.config.write16(control, bits);
    igb.registers.write32(GPIE, GPIE_MSIX);
    check_eq!(igb.msix.read32(TABLE + 12), 1, "masked at first");
    igb.set(0, igb.doorbell, 1);
    igb.set(2, igb.doorbell, 6);
    set(ENABLE);
    igb.raise(1);
    expect(&[], "a masked vector")?;
    check_eq!(igb.pending(), 1, "it is pending");
    igb.msix.write64(PENDING, 0);
    check_eq!(igb.pending(), 1, "pending bits cannot be written");
    igb.mask(0, false);
    expect(&[1], "unmasked")?;
    check_eq!(igb.pending(), 0, "no longer pending");
    igb.raise(1);
    expect(&[1], "raised again")?;
    // Masked and unmasked with nothing pending.
    igb.mask(0, true);
    igb.mask(0, false);
    expect(&[], "nothing was raised")?;
    igb.set(0, igb.doorbell, 3);
    igb.raise(1);
    expect(&[3], "another event")?;
    igb.mask(2, false);
    igb.raise(0b101);
    let mut events = arrived(2);
    events.sort_unstable();
    check_eq!(events, [3, 6], "two vectors");

    set(ENABLE | MASK_ALL);
    igb.raise(0b101);
    expect(&[], "function mask")?;
    check_eq!(igb.pending(), 0b101, "both are pending");
    // Moved to another event while it is pending.
    igb.mask(0, true);
    igb.set(0, igb.doorbell, 4);
    igb.mask(0, false);
    set(ENABLE);
    let mut events = arrived(2);
    events.sort_unstable();
    check_eq!(events, [4, 6], "after the function mask");

    // Aimed at memory, and back.
    let witness = black_box(alloc::vec![0_u32; 64]);
    igb.set(0, witness.as_ptr() as u64 & !3, 4);
    igb.raise(1);
    expect(&[], "aimed at memory")?;
    check!(
        black_box(&witness).iter().all(|&word| word == 0),
        "memory was written"
    );
    igb.mask(0, true);
    igb.set(0, igb.doorbell, 5);
    igb.mask(0, false);
    expect(&[5], "aimed back: it was pending")?;
    set(0);
    igb.raise(1);
    expect(&[], "off")?;
    igb.mask(0, true);
    igb.mask(2, true);
    igb.registers.write32(GPIE, 0);
    Ok(())
}

/// igb's MSI has one vector, a 64-bit address, mask and pending bits.
fn msi() -> Outcome {
    let igb = Igb::new()?;
    let config = igb.function.config;
    let at = capability(&igb.function, 0x05)?;
    check_eq!(config.read16(at + 2) & 0x180, 0x180, "64-bit, with masks");
    let raise = || igb.raise_msi();
    igb.set_msi(2)?;
    raise();
    expect(&[2], "enabled")?;
    config.write32(at + 16, 1);
    raise();
    expect(&[], "masked")?;
    check_eq!(config.read32(at + 20), 1, "pending");
    // Data that changes meanwhile takes nothing away.
    config.write16(at + 12, 7);
    check_eq!(config.read32(at + 20), 1, "still pending");
    config.write32(at + 16, 0);
    expect(&[7], "unmasked")?;
    check_eq!(config.read32(at + 20), 0, "no longer pending");
    raise();
    expect(&[7], "raised again")?;
    let witness = black_box(alloc::vec![0_u32; 64]);
    let [elsewhere, _] = pci::halves(witness.as_ptr() as u64 & !3);
    config.write32(at + 4, elsewhere);
    raise();
    expect(&[], "aimed at memory")?;
    check!(
        black_box(&witness).iter().all(|&word| word == 0),
        "memory was written"
    );
    config.write16(at + 2, 0);
    igb.set_msi(7)?;
    raise();
    expect(&[7], "aimed back")?;
    config.write16(at + 2, 0);
    Ok(())
}

/// Times that vCPU 1 is to set igb up, and has.
static ASKED: AtomicU32 = AtomicU32::new(0);
static ANSWERED: AtomicU32 = AtomicU32::new(0);

/// Sets igb up as often as it is asked to.
fn set_up(_: usize) {
    let Ok(igb) = Igb::find() else { return };
    loop {
        // Acquire, release: what was written before is there.
        let asked = ASKED.load(Ordering::Acquire);
        if asked == ANSWERED.load(Ordering::Relaxed) {
            continue;
        }
        if igb.set_msi(5).is_err() {
            return;
        }
        igb.function.place(0, igb.registers.base());
        igb.function.enable();
        ANSWERED.store(asked, Ordering::Release);
    }
}

/// What another vCPU writes while a function is in a reset comes after it, and is there.
fn set_up_in_a_reset() -> Outcome {
    const FLR: u16 = 1 << 15;
    let igb = Igb::new()?;
    let config = igb.function.config;
    let control = capability(&igb.function, 0x10)? + 8;
    let msi = capability(&igb.function, 0x05)? + 2;
    let Some(&other) = platform::get().cpus.get(1) else {
        return Err(Failure::Failed("there is no second vCPU".into()));
    };
    let started = cpu::start(other, 1, set_up, 0);
    check!(started.is_ok(), "vCPU 1 does not start: {started:?}");
    for round in 1..=10 {
        ASKED.store(round, Ordering::Release);
        // Takes a tenth of a second, while this vCPU waits and the other one runs.
        config.write16(control, FLR);
        let answered = || ANSWERED.load(Ordering::Acquire) == round;
        check!(timer::wait_until(LONG, answered), "vCPU 1 is stuck");
        if config.read16(msi) & 1 == 0 {
            // It was before the reset.
            continue;
        }
        igb.raise_msi();
        return expect(&[5], "after the reset");
    }
    Err(Failure::Failed("vCPU 1 always comes first".into()))
}
