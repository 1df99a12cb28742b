//! GICv3: distributor, this vCPU's redistributor, and the CPU interface.
//!
//! Arm Generic Interrupt Controller Architecture Specification, IHI 0069, chapter 12.

use core::arch::asm;

use spin::Mutex;

use crate::cpu::{self, small};
use crate::exception::without_irqs;
use crate::mmio::Window;
use crate::platform;

/// Distributor registers (12.9); those up to ICFGR are laid out alike in the redistributor's SGI frame.
pub mod reg {
    /// GICD_CTLR.
    pub const CTLR: usize = 0x0000;
    /// GICD_TYPER.
    pub const TYPER: usize = 0x0004;
    /// GICD_IIDR.
    pub const IIDR: usize = 0x0008;
    /// IGROUPRn.
    pub const IGROUPR: usize = 0x0080;
    /// ISENABLERn.
    pub const ISENABLER: usize = 0x0100;
    /// ICENABLERn.
    pub const ICENABLER: usize = 0x0180;
    /// ISPENDRn.
    pub const ISPENDR: usize = 0x0200;
    /// ICPENDRn.
    pub const ICPENDR: usize = 0x0280;
    /// ISACTIVERn.
    pub const ISACTIVER: usize = 0x0300;
    /// ICACTIVERn.
    pub const ICACTIVER: usize = 0x0380;
    /// IPRIORITYRn.
    pub const IPRIORITYR: usize = 0x0400;
    /// ICFGRn.
    pub const ICFGR: usize = 0x0c00;
    /// GICD_IROUTERn.
    pub const IROUTER: usize = 0x6000;
    /// GICR_CTLR.
    pub const GICR_CTLR: usize = 0x0000;
    /// GICR_TYPER.
    pub const GICR_TYPER: usize = 0x0008;
    /// GICR_WAKER.
    pub const GICR_WAKER: usize = 0x0014;
    /// GICR_PROPBASER.
    pub const GICR_PROPBASER: usize = 0x0070;
    /// GICR_PENDBASER.
    pub const GICR_PENDBASER: usize = 0x0078;
    /// Where the SGI frame begins.
    pub const SGI_FRAME: usize = 0x1_0000;
    /// Peripheral ID 2: the architecture revision is in bits 7:4.
    pub const PIDR2: usize = 0xffe8;
}

/// INTIDs from here on are SPIs.
pub const FIRST_SPI: u32 = 32;
/// INTIDs from here on are LPIs.
pub const FIRST_LPI: u32 = 8192;
/// What IAR gives when nothing is pending.
pub const SPURIOUS: u32 = 1023;

const RWP: u32 = 1 << 31;
const ARE: u32 = 1 << 4;
const ENABLE_GROUP1: u32 = 1 << 1;
const PROCESSOR_SLEEP: u32 = 1 << 1;
const CHILDREN_ASLEEP: u32 = 1 << 2;
const GICR_LAST: u64 = 1 << 4;
const GICR_STRIDE: usize = 0x2_0000;

/// The priority that every interrupt gets at first.
pub const DEFAULT_PRIORITY: u8 = 0xa0;

/// Returns the distributor.
pub fn distributor() -> Window {
    platform::get().distributor
}

/// Returns this vCPU's redistributor: the RD frame and the SGI frame behind it.
pub fn redistributor() -> Window {
    let all = platform::get().redistributors;
    let affinity = cpu::affinity();
    let packed = affinity & 0xff_ffff | affinity >> 8 & 0xff00_0000;
    let mut offset = 0;
    loop {
        let frame = all.part(offset, GICR_STRIDE);
        let typer = frame.read64(reg::GICR_TYPER);
        if typer >> 32 == packed {
            return frame;
        }
        assert!(
            typer & GICR_LAST == 0,
            "no redistributor for vCPU {affinity:#x}"
        );
        offset += GICR_STRIDE;
    }
}

/// Turns the distributor on, with every SPI disabled, in group 1, and sent to this vCPU.
pub fn init_distributor() {
    let gicd = distributor();
    gicd.write32(reg::CTLR, 0);
    wait(&gicd);
    gicd.write32(reg::CTLR, ARE);
    wait(&gicd);
    let affinity = cpu::affinity();
    for intid in FIRST_SPI..spi_end() {
        let index = intid as usize;
        if index.is_multiple_of(32) {
            gicd.write32(reg::ICENABLER + index / 8, u32::MAX);
            gicd.write32(reg::ICPENDR + index / 8, u32::MAX);
            gicd.write32(reg::ICACTIVER + index / 8, u32::MAX);
            gicd.write32(reg::IGROUPR + index / 8, u32::MAX);
        }
        gicd.write8(reg::IPRIORITYR + index, DEFAULT_PRIORITY);
        gicd.write64(reg::IROUTER + index * 8, affinity);
    }
    gicd.write32(reg::CTLR, ARE | ENABLE_GROUP1);
    wait(&gicd);
}

/// Returns the INTID behind the last SPI (GICD_TYPER.ITLinesNumber).
pub fn spi_end() -> u32 {
    let lines = distributor().read32(reg::TYPER) & 0x1f;
    (32 * (lines + 1)).min(1020)
}

/// Makes this vCPU ready for interrupts: redistributor awake, SGIs and PPIs disabled, interface on.
pub fn init_cpu() {
    let gicr = redistributor();
    let waker = gicr.read32(reg::GICR_WAKER);
    gicr.write32(reg::GICR_WAKER, waker & !PROCESSOR_SLEEP);
    while gicr.read32(reg::GICR_WAKER) & CHILDREN_ASLEEP != 0 {
        core::hint::spin_loop();
    }
    let sgi = gicr.part(reg::SGI_FRAME, 0x1_0000);
    sgi.write32(reg::ICENABLER, u32::MAX);
    sgi.write32(reg::ICPENDR, u32::MAX);
    sgi.write32(reg::ICACTIVER, u32::MAX);
    sgi.write32(reg::IGROUPR, u32::MAX);
    for intid in 0..FIRST_SPI as usize {
        sgi.write8(reg::IPRIORITYR + intid, DEFAULT_PRIORITY);
    }
    write_sysreg!("icc_sre_el1", 7);
    synchronize();
    write_sysreg!("icc_pmr_el1", 0xff);
    write_sysreg!("icc_bpr1_el1", 0);
    write_sysreg!("icc_ctlr_el1", 0);
    write_sysreg!("icc_igrpen1_el1", 1);
    synchronize();
}

/// Does what is missing for interrupts to reach this vCPU.
pub fn ensure_ready() {
    if distributor().read32(reg::CTLR) & ENABLE_GROUP1 == 0 {
        init_distributor();
    }
    if read_sysreg!("icc_igrpen1_el1") & 1 == 0 {
        init_cpu();
    }
}

fn wait(gicd: &Window) {
    while gicd.read32(reg::CTLR) & RWP != 0 {
        core::hint::spin_loop();
    }
}

fn synchronize() {
    // SAFETY: a barrier.
    unsafe { asm!("isb", options(nostack)) };
}

/// Returns the frame that has the registers of `intid`: this vCPU's, or the distributor.
fn frame(intid: u32) -> Window {
    if intid < FIRST_SPI {
        redistributor().part(reg::SGI_FRAME, 0x1_0000)
    } else {
        distributor()
    }
}

fn bit(intid: u32) -> (usize, u32) {
    (intid as usize / 32 * 4, 1 << (intid % 32))
}

/// Writes `intid`'s bit in a register file with one bit each.
fn set(file: usize, intid: u32) {
    let (offset, bit) = bit(intid);
    frame(intid).write32(file + offset, bit);
}

fn get(file: usize, intid: u32) -> bool {
    let (offset, bit) = bit(intid);
    frame(intid).read32(file + offset) & bit != 0
}

/// Lets an interrupt through.
pub fn enable(intid: u32) {
    set(reg::ISENABLER, intid);
}

/// Holds an interrupt back.
pub fn disable(intid: u32) {
    set(reg::ICENABLER, intid);
    if intid >= FIRST_SPI {
        wait(&distributor());
    } else {
        // GICR_CTLR.RWP is bit 3.
        while redistributor().read32(reg::GICR_CTLR) & 1 << 3 != 0 {
            core::hint::spin_loop();
        }
    }
}

/// Tells whether an interrupt is let through.
pub fn is_enabled(intid: u32) -> bool {
    get(reg::ISENABLER, intid)
}

/// Makes an interrupt pending.
pub fn set_pending(intid: u32) {
    set(reg::ISPENDR, intid);
}

/// Takes an interrupt's pending state back.
pub fn clear_pending(intid: u32) {
    set(reg::ICPENDR, intid);
}

/// Tells whether an interrupt is pending.
pub fn is_pending(intid: u32) -> bool {
    get(reg::ISPENDR, intid)
}

/// Tells whether an interrupt is active.
pub fn is_active(intid: u32) -> bool {
    get(reg::ISACTIVER, intid)
}

/// Sets an interrupt's priority.
pub fn set_priority(intid: u32, priority: u8) {
    frame(intid).write8(reg::IPRIORITYR + intid as usize, priority);
}

/// Makes an interrupt edge-triggered, or level-sensitive. It must be disabled.
pub fn set_edge(intid: u32, edge: bool) {
    let offset = reg::ICFGR + intid as usize / 16 * 4;
    let bit = 2 << (intid % 16 * 2);
    let window = frame(intid);
    let old = window.read32(offset);
    window.write32(offset, if edge { old | bit } else { old & !bit });
}

/// Sends an SPI to the vCPU with this affinity.
pub fn route(intid: u32, affinity: u64) {
    distributor().write64(reg::IROUTER + intid as usize * 8, affinity);
}

/// Sends an SGI to the vCPU with this affinity.
pub fn send_sgi(intid: u32, affinity: u64) {
    let (aff0, aff1) = (affinity & 0xff, affinity >> 8 & 0xff);
    let (aff2, aff3) = (affinity >> 16 & 0xff, affinity >> 32 & 0xff);
    let target = 1 << (aff0 & 0xf) | (aff0 >> 4) << 44;
    let value = target | aff1 << 16 | u64::from(intid & 0xf) << 24 | aff2 << 32 | aff3 << 48;
    // SAFETY: a barrier: what was written before is visible to whom the SGI reaches.
    unsafe { asm!("dsb ishst", options(nostack)) };
    write_sysreg!("icc_sgi1r_el1", value);
    synchronize();
}

/// Acknowledges the highest pending interrupt; [`SPURIOUS`] if there is none.
pub fn acknowledge() -> u32 {
    let intid = small(read_sysreg!("icc_iar1_el1"));
    // SAFETY: a barrier: the acknowledgement is complete before the handler looks at the device.
    unsafe { asm!("dsb sy", options(nostack)) };
    u32::try_from(intid & 0xff_ffff).unwrap_or(SPURIOUS)
}

/// Ends an interrupt: drops its priority and deactivates it.
pub fn end(intid: u32) {
    write_sysreg!("icc_eoir1_el1", u64::from(intid));
    synchronize();
}

/// Deactivates an interrupt, where ending it only drops its priority (see [`split_end`]).
pub fn deactivate(intid: u32) {
    write_sysreg!("icc_dir_el1", u64::from(intid));
    synchronize();
}

/// Makes [`end`] only drop the priority, or deactivate too (ICC_CTLR_EL1.EOImode).
pub fn split_end(split: bool) {
    write_sysreg!("icc_ctlr_el1", if split { 2 } else { 0 });
    synchronize();
}

/// Sets the priority below which nothing is delivered.
pub fn set_mask(priority: u8) {
    write_sysreg!("icc_pmr_el1", u64::from(priority));
    synchronize();
}

/// A function that handles an interrupt, given its INTID.
pub type Handler = fn(u32);

/// Handlers of SGIs, PPIs and SPIs, and one for all LPIs in the last place.
static HANDLERS: Mutex<[Option<Handler>; 1021]> = Mutex::new([None; 1021]);

fn place(intid: u32) -> usize {
    if intid >= FIRST_LPI {
        1020
    } else {
        intid.min(1019) as usize
    }
}

/// Calls `handler` for `intid`; all LPIs share one.
pub fn set_handler(intid: u32, handler: Option<Handler>) {
    without_irqs(|| HANDLERS.lock()[place(intid)] = handler);
}

/// Takes one interrupt: acknowledges it, calls its handler, ends it.
pub(crate) fn handle_irq() {
    let intid = acknowledge();
    if (1020..FIRST_LPI).contains(&intid) {
        return;
    }
    let handler = HANDLERS.lock()[place(intid)];
    match handler {
        Some(handler) => handler(intid),
        None => println!("interrupt {intid} has no handler"),
    }
    end(intid);
}
