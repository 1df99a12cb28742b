//! Stage 1: an identity map of 39 bits, made once before the MMU is on.
//!
//! ```text
//!  0x00_0000_0000  devices: GIC, UART, 32-bit PCI window       device, nGnRE
//!  0x00_4000_0000  RAM; the image's text and constants read-only
//!  0x40_0000_0000  ECAM, 64-bit PCI window                     device, nGnRE
//!  0x70_0000_0000  ioreq rings, modules, windows on memory     normal
//!  0x7f_c000_0000  other names of pages: `alias`
//! ```
//!
//! Everything but the image's text is never executed. One level-1 table of 1 GiB blocks describes all
//! of it, except for the GiB with the image, which has a level-2 table, and the image's first 2 MiB,
//! which have a level-3 table.

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

const ENTRIES: usize = 512;
const PAGE: usize = 0x1000;
const BLOCK_2M: usize = 0x20_0000;
const BLOCK_1G: usize = 0x4000_0000;

const RAM: usize = 0x4000_0000;
const PCI: usize = 0x40_0000_0000;
const SHARED: usize = 0x70_0000_0000;

// Descriptor bits (Arm ARM, D8.3).
const VALID: u64 = 1 << 0;
/// A table at levels 1 and 2, a page at level 3.
const TABLE: u64 = 1 << 1;
const UNPRIVILEGED: u64 = 1 << 6;
const READ_ONLY: u64 = 1 << 7;
const INNER_SHAREABLE: u64 = 3 << 8;
const ACCESSED: u64 = 1 << 10;
const PRIVILEGED_EXECUTE_NEVER: u64 = 1 << 53;
const EXECUTE_NEVER: u64 = 1 << 54;

// Indices into MAIR_EL1.
const DEVICE: u64 = VALID | ACCESSED | PRIVILEGED_EXECUTE_NEVER | EXECUTE_NEVER;
const NORMAL: u64 = VALID | ACCESSED | INNER_SHAREABLE | EXECUTE_NEVER | 1 << 2;
const UNCACHED: u64 = VALID | ACCESSED | EXECUTE_NEVER | 2 << 2;
/// Index 0: device nGnRE. Index 1: normal, write-back, allocating. Index 2: normal, not cached.
const MAIR: u64 = 0x04 | 0xff << 8 | 0x44 << 16;

/// SCTLR_EL1: its RES1 bits, instruction cache, stack alignment check, data cache, MMU.
const SCTLR: u64 = 0x30d0_0800 | 1 << 12 | 1 << 3 | 1 << 2 | 1 << 0;

#[repr(C, align(4096))]
struct Table([AtomicU64; ENTRIES]);

impl Table {
    const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; ENTRIES])
    }

    fn set(&self, index: usize, entry: u64) {
        self.0[index % ENTRIES].store(entry, Ordering::Relaxed);
    }

    fn get(&self, index: usize) -> u64 {
        self.0[index % ENTRIES].load(Ordering::Relaxed)
    }

    fn address(&self) -> u64 {
        &raw const *self as u64
    }
}

static LEVEL1: Table = Table::new();
static LEVEL2: Table = Table::new();
static LEVEL3: Table = Table::new();
static ALIAS_LEVEL2: Table = Table::new();
static ALIAS_LEVEL3: Table = Table::new();

/// What an alias of a page may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alias {
    /// EL1's data, normal memory.
    Normal,
    /// EL1's data, normal memory that is not cached.
    Uncached,
    /// EL1's device registers.
    Device,
    /// Device registers that EL0 reaches too.
    UserDevice,
    /// EL1's code.
    Code,
    /// Code that EL0 may execute and not read, and EL1 may read and not execute.
    UserCode,
}

/// Aliases that there are.
pub const ALIASES: usize = ENTRIES;

const ALIAS_BASE: usize = 0x7f_c000_0000;

/// Returns the addresses of all aliases.
pub(crate) fn aliases() -> core::ops::Range<u64> {
    ALIAS_BASE as u64..(ALIAS_BASE + ALIASES * PAGE) as u64
}

/// Returns the address of alias `slot`.
pub const fn alias_address(slot: usize) -> usize {
    ALIAS_BASE + slot % ALIASES * PAGE
}

/// Gives the page at `page` a second name, number `slot`, instead of what that named before; returns
/// its address. `None` takes the name away.
///
/// # Safety
///
/// What is done with the alias changes no memory that Rust code refers to.
pub unsafe fn alias(slot: usize, page: Option<(usize, Alias)>) -> usize {
    let address = alias_address(slot);
    let entry = page.map(|(page, kind)| {
        page as u64
            | TABLE
            | match kind {
                Alias::Normal => NORMAL | PRIVILEGED_EXECUTE_NEVER,
                Alias::Uncached => UNCACHED | PRIVILEGED_EXECUTE_NEVER,
                Alias::Device => DEVICE,
                Alias::UserDevice => DEVICE | UNPRIVILEGED,
                Alias::Code => NORMAL,
                Alias::UserCode => NORMAL & !EXECUTE_NEVER | PRIVILEGED_EXECUTE_NEVER,
            }
    });
    // Break before make (D8.16.1). The upper levels change once, from a block that nothing uses.
    if ALIAS_LEVEL2.get(0) == 0 {
        ALIAS_LEVEL2.set(0, ALIAS_LEVEL3.address() | TABLE | VALID);
        LEVEL1.set(ALIAS_BASE / BLOCK_1G, 0);
        invalidate_alias(address);
        LEVEL1.set(
            ALIAS_BASE / BLOCK_1G,
            ALIAS_LEVEL2.address() | TABLE | VALID,
        );
    }
    ALIAS_LEVEL3.set(slot, 0);
    invalidate_alias(address);
    if let Some(entry) = entry {
        ALIAS_LEVEL3.set(slot, entry);
        invalidate_alias(address);
    }
    address
}

/// Has the addresses behind the aliases be translated by a table at `table`, which need not be memory. There is
/// an alias already.
///
/// # Safety
///
/// Nothing accesses these addresses but to see what comes of it.
pub unsafe fn translate_behind_aliases(table: usize) {
    ALIAS_LEVEL2.set(1, table as u64 | TABLE | VALID);
    invalidate_alias(ALIAS_BASE + BLOCK_2M);
}

fn invalidate_alias(address: usize) {
    // SAFETY: the page is an alias; what is done with those is `alias`'s contract.
    unsafe {
        asm!(
            "dsb  ishst",
            "tlbi vaae1is, {page}",
            "dsb  ish",
            "isb",
            page = in(reg) address >> 12,
            options(nostack),
        );
    }
}

unsafe extern "C" {
    static __image_start: u8;
    static __text_end: u8;
    static __rodata_end: u8;
    static __bss_end: u8;
}

/// Returns where the image is: its start, the ends of text and of constants, and of what is cleared.
fn image() -> [usize; 4] {
    [
        &raw const __image_start as usize,
        &raw const __text_end as usize,
        &raw const __rodata_end as usize,
        &raw const __bss_end as usize,
    ]
}

/// Writes the tables for an image at `base`. Runs with the MMU off.
pub(crate) fn build(base: usize) {
    for index in 0..ENTRIES {
        let address = index * BLOCK_1G;
        let normal = (RAM..PCI).contains(&address) || address >= SHARED;
        let attributes = if normal {
            NORMAL | PRIVILEGED_EXECUTE_NEVER
        } else {
            DEVICE
        };
        LEVEL1.set(index, address as u64 | attributes);
    }
    LEVEL1.set(base / BLOCK_1G, LEVEL2.address() | TABLE | VALID);
    let gib = base / BLOCK_1G * BLOCK_1G;
    for index in 0..ENTRIES {
        let address = gib + index * BLOCK_2M;
        LEVEL2.set(index, address as u64 | NORMAL | PRIVILEGED_EXECUTE_NEVER);
    }
    LEVEL2.set((base - gib) / BLOCK_2M, LEVEL3.address() | TABLE | VALID);
    let [_, text_end, rodata_end, bss_end] = image();
    for index in 0..ENTRIES {
        let address = base + index * PAGE;
        let rights = if address < text_end {
            READ_ONLY
        } else if address < rodata_end {
            READ_ONLY | PRIVILEGED_EXECUTE_NEVER
        } else {
            PRIVILEGED_EXECUTE_NEVER
        };
        LEVEL3.set(index, address as u64 | NORMAL | TABLE | rights);
    }
    // Whatever the caches still hold of these pages is older than what was just written past them.
    invalidate(base, bss_end);
}

/// Turns the MMU and the caches on for this vCPU.
pub(crate) fn enable() {
    // ID_AA64MMFR0_EL1.PARange has TCR_EL1.IPS's encoding; 5 is 48 bits, all that we could use.
    let physical = (read_sysreg!("id_aa64mmfr0_el1") & 0xf).min(5);
    // T0SZ 25 (39 bits), write-back walks, inner shareable, 4 KiB granule, no walks by TTBR1.
    let tcr = 25 | 1 << 8 | 1 << 10 | 3 << 12 | 1 << 23 | physical << 32;
    // SAFETY: the tables map the image, its stack and all that Rust refers to at the addresses where
    // they are, so turning translation on changes nothing but the memory type.
    unsafe {
        asm!(
            "dsb  sy",
            "msr  mair_el1, {mair}",
            "msr  tcr_el1, {tcr}",
            "msr  ttbr0_el1, {ttbr}",
            "isb",
            "tlbi vmalle1",
            "dsb  nsh",
            "ic   iallu",
            "dsb  nsh",
            "isb",
            "msr  sctlr_el1, {sctlr}",
            "isb",
            mair = in(reg) MAIR,
            tcr = in(reg) tcr,
            ttbr = in(reg) LEVEL1.address(),
            sctlr = in(reg) SCTLR,
            options(nostack),
        );
    }
}

/// Lets this page of the image be executed, beside being written: [`instruction`](crate::instruction)
/// writes the code it runs.
pub(crate) fn make_executable(page: usize) {
    let [base, ..] = image();
    let index = (page - base) / PAGE;
    assert!(
        index < ENTRIES,
        "{page:#x} is not in the image's first block"
    );
    LEVEL3.set(index, page as u64 | NORMAL | TABLE);
    // SAFETY: only a right is added, so an old translation in the TLB is not wrong, just stricter.
    unsafe {
        asm!(
            "dsb  ishst",
            "tlbi vaae1is, {page}",
            "dsb  ish",
            "isb",
            page = in(reg) page >> 12,
            options(nostack),
        );
    }
}

/// Returns the bytes in the smallest data cache line (CTR_EL0.DminLine).
fn line() -> usize {
    let log2_words = read_sysreg!("ctr_el0") >> 16 & 0xf;
    4 << log2_words
}

fn invalidate(start: usize, end: usize) {
    let line = line();
    for address in (start..end).step_by(line) {
        // SAFETY: the MMU is off, so no line of this range is dirty with what we wrote.
        unsafe { asm!("dc ivac, {}", in(reg) address, options(nostack)) };
    }
    // SAFETY: a barrier.
    unsafe { asm!("dsb sy", options(nostack)) };
}

/// Cleans and invalidates a range, so that a vCPU without its MMU reads what was written.
pub(crate) fn clean(start: usize, bytes: usize) {
    let line = line();
    let first = start / line * line;
    for address in (first..start + bytes).step_by(line) {
        // SAFETY: cleaning and invalidating loses nothing.
        unsafe { asm!("dc civac, {}", in(reg) address, options(nostack)) };
    }
    // SAFETY: a barrier.
    unsafe { asm!("dsb sy", options(nostack)) };
}
