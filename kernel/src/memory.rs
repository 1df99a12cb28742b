//! EL2's memory: its translation, the frames, the heap.
//!
//! ```text
//!   0                                             2^47                       2^48
//!  +-----------------------------------------------+--------------------------+
//!  |  RAM and device registers, each at its PA     |  guard | stack | guard . |
//!  +-----------------------------------------------+--------------------------+
//! ```
//!
//! The image keeps its rights page by page (text read-only, data never executable); all other RAM is
//! read-write. Tables are made with the MMU off by `isthmus_early`, just enough to reach the image
//! and the device tree, out of pages in the image; the rest follows once the device tree is read.

use alloc::sync::Arc;
use arch::address::{BLOCK_2M, PAGE_SIZE, Pa, Va};
use arch::dma;
use arch::entry::{self, Image, STACK_SIZE, Start};
use arch::mmio::Window;
use arch::table::{El2, Frames, MAIR_EL2, MapError, Memory, PaRange, Protection, tcr_el2};
use arch::{asm, sysreg};
use buddy_system_allocator::Heap;
use core::alloc::{GlobalAlloc, Layout};
use core::cell::UnsafeCell;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};
use kernel::frames::{Allocator, Run, Statistics};
use kernel::size;
use spin::Mutex;

/// Where stacks are mapped: above every PA that EL2 maps.
const STACKS: u64 = 1 << 47;
/// Bytes of a page, in memory.
const PAGE: usize = size(PAGE_SIZE);
/// Pages for tables before the frame allocator is there.
const EARLY_TABLES: usize = 24;
/// Bytes of heap before the frame allocator is there: the device tree is read with it.
const EARLY_HEAP: usize = 128 << 10;
/// What the heap grows by, at least.
const HEAP_STEP: usize = 1 << 20;

/// The frames, once the device tree has said which there are.
static FRAMES: Mutex<Option<Allocator<'static>>> = Mutex::new(None);
/// Where RAM ends.
static RAM_END: AtomicU64 = AtomicU64::new(0);
/// EL2's own translation.
static TABLES: Mutex<Option<El2>> = Mutex::new(None);

#[repr(C, align(4096))]
struct EarlyPages {
    pages: UnsafeCell<[[u8; PAGE]; EARLY_TABLES]>,
    used: UnsafeCell<usize>,
    /// The tables, on their way from `isthmus_early` to `init_early`.
    tables: UnsafeCell<Option<El2>>,
}

// SAFETY: used by the boot pCPU alone, before others start (`TableFrames::allocate` stops using it
// once there are frames).
unsafe impl Sync for EarlyPages {}

static EARLY_PAGES: EarlyPages = EarlyPages {
    pages: UnsafeCell::new([[0; PAGE]; EARLY_TABLES]),
    used: UnsafeCell::new(0),
    tables: UnsafeCell::new(None),
};

#[repr(C, align(4096))]
struct EarlyHeap(UnsafeCell<[u8; EARLY_HEAP]>);

// SAFETY: handed to the heap once, in `init_heap`, and never touched otherwise.
unsafe impl Sync for EarlyHeap {}

static EARLY_HEAP_MEMORY: EarlyHeap = EarlyHeap(UnsafeCell::new([0; EARLY_HEAP]));

/// Tables in RAM that EL2 maps at its PA.
///
/// Tables of domains go through it too: EL2 and the walkers of the pCPUs are coherent, and an SMMU
/// that does not snoop gets its tables cleaned.
pub(crate) struct TableFrames {
    /// Clean what is written to the point of coherency.
    clean: bool,
}

impl TableFrames {
    /// Tables that only pCPUs walk.
    pub(crate) const fn for_pcpus() -> Self {
        Self { clean: false }
    }

    /// Tables that a device walks, which may not snoop.
    pub(crate) const fn for_device(coherent: bool) -> Self {
        Self { clean: !coherent }
    }

    fn pointer(table: Pa, index: usize) -> *mut u64 {
        assert!(index < arch::table::ENTRIES);
        (table.get() as *mut u64).wrapping_add(index)
    }
}

impl Frames for TableFrames {
    fn allocate(&mut self) -> Option<Pa> {
        if !mmu_is_on() || FRAMES.lock().is_none() {
            return early_page();
        }
        let frame = allocate_frame()?;
        if self.clean {
            asm::clean_to_poc(frame.get() as *const u8, PAGE);
        }
        Some(frame)
    }

    fn free(&mut self, table: Pa) {
        free_run(Run {
            start: table,
            len: PAGE_SIZE,
        });
    }

    fn read(&self, table: Pa, index: usize) -> u64 {
        // SAFETY: a table that `allocate` gave out is mapped at its PA, and the index is inside.
        unsafe { Self::pointer(table, index).read_volatile() }
    }

    fn write(&mut self, table: Pa, index: usize, entry: u64) {
        // SAFETY: as above; nothing of Rust's lies in a table.
        unsafe { Self::pointer(table, index).write_volatile(entry) };
    }

    fn publish(&self, table: Pa, first: usize, count: usize) {
        if self.clean {
            asm::clean_to_poc(Self::pointer(table, first).cast(), count * 8);
        }
        asm::dsb_ishst();
        asm::isb();
    }
}

/// Before the frame allocator: pages of the image.
fn early_page() -> Option<Pa> {
    // SAFETY: the boot pCPU is alone, and nobody holds a reference to either cell.
    unsafe {
        let used = EARLY_PAGES.used.get();
        let page = (*EARLY_PAGES.pages.get()).as_ptr().wrapping_add(*used);
        if *used == EARLY_TABLES {
            return None;
        }
        *used += 1;
        Some(Pa::new(page.addr() as u64))
    }
}

fn mmu_is_on() -> bool {
    sysreg::read!("sctlr_el2") & 1 != 0
}

/// Makes the first tables, with the MMU off and before anything else: the image, and the device
/// tree read-only. Nothing here may use atomics, which Device memory does not support.
#[unsafe(no_mangle)]
extern "C" fn isthmus_early(device_tree: u64, _image: u64, start: &mut Start) {
    let Some(mut tables) = El2::new(&mut TableFrames::for_pcpus()) else {
        return;
    };
    let _ = map_image(&mut tables, entry::image());
    let first = Pa::new(device_tree).align_down(PAGE_SIZE).get();
    let len = early_tree_size(device_tree).next_multiple_of(PAGE_SIZE);
    let _ = tables.map(
        &mut TableFrames::for_pcpus(),
        Va::new(first),
        Pa::new(first),
        len + PAGE_SIZE,
        Protection::ReadOnly,
        Memory::Normal,
    );
    start.ttbr = tables.root().get();
    start.tcr = tcr_el2(El2::VA_BITS, pa_range());
    start.mair = MAIR_EL2;
    // SAFETY: the boot pCPU is alone, and nobody holds a reference to the cell.
    unsafe { *EARLY_PAGES.tables.get() = Some(tables) };
}

/// Returns the size of the device tree from its header, by aligned single accesses.
fn early_tree_size(device_tree: u64) -> u64 {
    const MAGIC: u32 = 0xd00d_feed;
    if device_tree == 0 || !device_tree.is_multiple_of(8) {
        return PAGE_SIZE;
    }
    let header = device_tree as *const u32;
    // SAFETY: the boot protocol puts a device tree there, in RAM, aligned to eight bytes.
    let (magic, size) = unsafe { (header.read_volatile(), header.add(1).read_volatile()) };
    if u32::from_be(magic) != MAGIC {
        return PAGE_SIZE;
    }
    u64::from(u32::from_be(size)).clamp(PAGE_SIZE, dt::MAX_SIZE as u64)
}

/// Maps the parts of the image with the rights of each, without the page below the boot stack.
fn map_image(tables: &mut El2, image: Image) -> Result<(), MapError<Va>> {
    let parts = [
        (image.start, image.rodata, Protection::ReadExecute),
        (image.rodata, image.data, Protection::ReadOnly),
        (image.data, image.guard, Protection::ReadWrite),
        (image.guard + PAGE_SIZE, image.end, Protection::ReadWrite),
    ];
    for (start, end, protection) in parts {
        if start < end {
            let frames = &mut TableFrames::for_pcpus();
            let (va, pa) = (Va::new(start), Pa::new(start));
            tables.map(frames, va, pa, end - start, protection, Memory::Normal)?;
        }
    }
    Ok(())
}

/// Returns how many bits of PA this pCPU has.
pub(crate) fn pa_range() -> PaRange {
    PaRange::decode(sysreg::read!("id_aa64mmfr0_el1"))
}

/// Gives the heap its first memory, and takes over the tables that `isthmus_early` made.
pub(crate) fn init_early() {
    // SAFETY: called once, by the boot pCPU alone; nothing else uses the memory or the cell.
    unsafe {
        HEAP.heap
            .lock()
            .init(EARLY_HEAP_MEMORY.0.get().addr(), EARLY_HEAP);
        *TABLES.lock() = (*EARLY_PAGES.tables.get()).take();
    }
}

/// What another pCPU needs to turn its MMU on.
pub(crate) fn start_values() -> Start {
    let root = with_tables(|tables| tables.root().get());
    Start {
        ttbr: root,
        tcr: tcr_el2(El2::VA_BITS, pa_range()),
        mair: MAIR_EL2,
        ..Start::default()
    }
}

fn with_tables<R>(f: impl FnOnce(&mut El2) -> R) -> R {
    f(TABLES
        .lock()
        .as_mut()
        .expect("isthmus_early made the tables"))
}

/// Maps all RAM but `mapped`, which is already, and starts the frame allocator with all RAM but
/// `taken`. Both lists, and `ram`, ascend and do not overlap.
pub(crate) fn init_frames(ram: &[Run], mapped: &[Run], taken: &[Run]) -> Result<(), &'static str> {
    for region in ram {
        let mut start = region.start.get().next_multiple_of(PAGE_SIZE);
        let end = (region.start.get() + region.len) & !(PAGE_SIZE - 1);
        for hole in mapped.iter().filter(|hole| hole.start.get() < end) {
            let hole_end = hole.start.get() + hole.len;
            if hole_end <= start {
                continue;
            }
            map_ram(start, hole.start.get())?;
            start = start.max(hole_end.next_multiple_of(PAGE_SIZE));
        }
        map_ram(start, end)?;
    }
    let words = Allocator::metadata_words(ram).map_err(|_| "the regions of RAM overlap")?;
    let bytes = (words as u64 * 8).next_multiple_of(PAGE_SIZE);
    let metadata = kernel::frames::place(ram, taken, bytes, PAGE_SIZE)
        .ok_or("there is not enough RAM to manage it")?;
    // SAFETY: RAM that nobody uses (`place`), just mapped, page aligned, and never freed.
    let slice = unsafe { core::slice::from_raw_parts_mut(metadata.get() as *mut u64, words) };
    let mut allocator = Allocator::new(ram, slice).map_err(|_| "the regions of RAM overlap")?;
    for run in taken {
        allocator.reserve(*run);
    }
    allocator.reserve(Run {
        start: metadata,
        len: bytes,
    });
    *FRAMES.lock() = Some(allocator);
    let end = ram.last().map_or(0, |run| run.start.get() + run.len);
    // Relaxed: other pCPUs start later.
    RAM_END.store(end, Ordering::Relaxed);
    Ok(())
}

/// Returns where the machine's RAM ends.
pub(crate) fn ram_end() -> Pa {
    // Relaxed: written once, before other pCPUs start.
    Pa::new(RAM_END.load(Ordering::Relaxed))
}

fn map_ram(start: u64, end: u64) -> Result<(), &'static str> {
    if start >= end {
        return Ok(());
    }
    if end > STACKS {
        return Err("there is RAM above 128 TiB, which EL2 does not map");
    }
    with_tables(|tables| {
        tables.map(
            &mut TableFrames::for_pcpus(),
            Va::new(start),
            Pa::new(start),
            end - start,
            Protection::ReadWrite,
            Memory::Normal,
        )
    })
    .map_err(|_| "RAM cannot be mapped")
}

/// Maps a device's registers and returns the window on them.
///
/// # Safety
///
/// `pa..pa + len` are registers of a device that the caller is the driver of, and no other window
/// covers any of it.
pub(crate) unsafe fn map_device(pa: u64, len: u64) -> Result<Window, &'static str> {
    // SAFETY: the caller's to keep.
    unsafe { map_registers(pa, len, Memory::Device) }
}

/// Does so with a PCI host bridge's config space.
///
/// # Safety
///
/// That of [`map_device`].
pub(crate) unsafe fn map_config_space(pa: u64, len: u64) -> Result<Window, &'static str> {
    // SAFETY: the caller's to keep.
    unsafe { map_registers(pa, len, Memory::Config) }
}

unsafe fn map_registers(pa: u64, len: u64, memory: Memory) -> Result<Window, &'static str> {
    let start = pa & !(PAGE_SIZE - 1);
    let end = pa
        .checked_add(len)
        .ok_or("a device lies beyond the address space")?;
    let end = end.next_multiple_of(PAGE_SIZE);
    if end > STACKS {
        return Err("a device lies above 128 TiB, which EL2 does not map");
    }
    // Devices may share a page; each page is mapped once.
    for page in Steps::new(start, end) {
        let mapped = with_tables(|tables| {
            tables.map(
                &mut TableFrames::for_pcpus(),
                Va::new(page.0),
                Pa::new(page.0),
                page.1,
                Protection::ReadWrite,
                memory,
            )
        });
        match mapped {
            Ok(()) | Err(MapError::AlreadyMapped(_)) => {}
            Err(_) => return Err("a device's registers cannot be mapped"),
        }
    }
    let len = usize::try_from(len).map_err(|_| "a device is larger than memory")?;
    // SAFETY: mapped as Device memory just now, never unmapped; the rest is the caller's.
    Ok(unsafe { Window::new(pa as *mut u8, len) })
}

/// Cuts a range into pieces that are each mapped at once: one page if the range is small, so that
/// devices in one page do not get into each other's way, 2 MiB blocks where they fit.
struct Steps {
    at: u64,
    end: u64,
}

impl Steps {
    fn new(at: u64, end: u64) -> Self {
        Self { at, end }
    }
}

impl Iterator for Steps {
    type Item = (u64, u64);

    fn next(&mut self) -> Option<(u64, u64)> {
        if self.at >= self.end {
            return None;
        }
        let block = self.at.is_multiple_of(BLOCK_2M) && self.end - self.at >= BLOCK_2M;
        let len = if block { BLOCK_2M } else { PAGE_SIZE };
        let piece = (self.at, len);
        self.at += len;
        Some(piece)
    }
}

/// Returns the top of the stack of pCPU `number`.
pub(crate) fn stack_top(number: usize) -> u64 {
    STACKS + (number as u64 + 1) * 2 * STACK_SIZE
}

/// Makes the stack of pCPU `number`, with nothing mapped below it, and returns its top.
pub(crate) fn make_stack(number: usize) -> Result<u64, &'static str> {
    let bottom = stack_top(number) - STACK_SIZE;
    let run = allocate_run(STACK_SIZE, PAGE_SIZE).ok_or("there is no memory for a stack")?;
    with_tables(|tables| {
        tables.map(
            &mut TableFrames::for_pcpus(),
            Va::new(bottom),
            run.start,
            STACK_SIZE,
            Protection::ReadWrite,
            Memory::Normal,
        )
    })
    .map_err(|_| "a stack cannot be mapped")?;
    Ok(stack_top(number))
}

/// Takes a frame and zeroes it.
pub(crate) fn allocate_frame() -> Option<Pa> {
    let frame = FRAMES.lock().as_mut()?.allocate()?;
    zero(Run {
        start: frame,
        len: PAGE_SIZE,
    });
    Some(frame)
}

/// Takes a run of frames; what it holds is undefined.
pub(crate) fn allocate_run(len: u64, align: u64) -> Option<Run> {
    FRAMES.lock().as_mut()?.allocate_run(len, align)
}

/// Takes the longest run of frames there is, up to `len`; what it holds is undefined.
pub(crate) fn allocate_extent(len: u64, align: u64) -> Option<Run> {
    FRAMES.lock().as_mut()?.allocate_extent(len, align)
}

/// Gives frames back.
pub(crate) fn free_run(run: Run) {
    let freed = FRAMES.lock().as_mut().map(|frames| frames.free_run(run));
    assert!(
        matches!(freed, Some(Ok(()))),
        "{run:?} was not allocated: {freed:?}"
    );
}

/// Zeroes frames that nobody uses.
pub(crate) fn zero(run: Run) {
    // SAFETY: RAM that EL2 maps; the caller has taken it from the allocator and uses it for nothing.
    unsafe { asm::zero_pages(run.start.get() as *mut u8, size(run.len)) };
}

/// Zeroes frames for a domain, which may look at them past the caches: a vCPU starts with its MMU off.
///
/// It finds zeros there, and no line that is written back later over what it has put in their place.
pub(crate) fn zero_for_domain(run: Run) {
    /// As much at a time as is still in a cache when it is cleaned.
    const PART: u64 = 64 << 10;
    for offset in (0..run.len).step_by(size(PART)) {
        let part = Run {
            start: Pa::new(run.start.get() + offset),
            len: PART.min(run.len - offset),
        };
        zero(part);
        asm::clean_invalidate_to_poc(part.start.get() as *const u8, size(part.len));
    }
}

/// Returns how much memory there is.
pub(crate) fn statistics() -> Statistics {
    FRAMES
        .lock()
        .as_ref()
        .map(Allocator::statistics)
        .unwrap_or_default()
}

/// Says what is left, for who looks for memory that does not come back.
#[cold]
pub(crate) fn report() {
    let heap = HEAP.heap.lock();
    let (used, size) = (heap.stats_alloc_user(), heap.stats_total_bytes());
    drop(heap);
    let free = statistics().free;
    debug!("{free} frames are free, and {used} of the heap's {size} bytes in use");
}

/// Memory for what drivers share with devices.
pub(crate) struct DmaPool;

impl dma::Pool for DmaPool {
    fn take(&mut self, bytes: usize, align: usize) -> Option<dma::Memory> {
        let len = (bytes as u64).next_multiple_of(PAGE_SIZE);
        let run = allocate_run(len, (align as u64).max(PAGE_SIZE))?;
        zero(run);
        let at = NonNull::new(run.start.get() as *mut u8)?;
        // SAFETY: RAM that EL2 maps at its PA, and that belongs to nobody else until it is freed.
        Some(unsafe { dma::Memory::new(run.start, at, bytes) })
    }

    fn give_back(&mut self, memory: dma::Memory) {
        free_run(Run {
            start: memory.pa(),
            len: (memory.len() as u64).next_multiple_of(PAGE_SIZE),
        });
    }
}

/// There is no memory for something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NoMemory;

/// EL2's heap. It grows by frames when it is full.
struct GrowingHeap {
    heap: Mutex<Heap<32>>,
    /// What `try_arc` sets aside.
    promised: Mutex<Option<Promise>>,
}

/// A block for the next allocation of just this layout on one pCPU, if that fails otherwise.
struct Promise {
    cpu: u64,
    layout: Layout,
    block: NonNull<u8>,
}

// SAFETY: the block is nobody's until it is given out.
unsafe impl Send for Promise {}

#[global_allocator]
static HEAP: GrowingHeap = GrowingHeap {
    heap: Mutex::new(Heap::empty()),
    promised: Mutex::new(None),
};

/// Puts a value into an `Arc`.
///
/// `Arc::new` ends the program when the heap is exhausted, and stable Rust has no other way to make one. So
/// a block is set aside first, which the allocator gives out should there be nothing else.
pub(crate) fn try_arc<T>(value: T) -> Result<Arc<T>, NoMemory> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _one = ONE_AT_A_TIME.lock();
    let layout = kernel::fallible::arc_layout::<T>().ok_or(NoMemory)?;
    // SAFETY: the layout has a size: that of two counters at least.
    let block = NonNull::new(unsafe { HEAP.alloc(layout) }).ok_or(NoMemory)?;
    let cpu = sysreg::read!("tpidr_el2");
    *HEAP.promised.lock() = Some(Promise { cpu, layout, block });
    #[expect(clippy::disallowed_methods, reason = "what it allocates is set aside")]
    let made = Arc::new(value);
    let unused = HEAP.promised.lock().take();
    if let Some(unused) = unused {
        // SAFETY: it was allocated above with this layout, and not given out.
        unsafe { HEAP.dealloc(unused.block.as_ptr(), unused.layout) };
    }
    Ok(made)
}

/// Gives the heap so many bytes more, which what a guest does later can take without growing it.
pub(crate) fn reserve_heap(bytes: usize) -> Result<(), &'static str> {
    let layout = Layout::from_size_align(bytes, PAGE).map_err(|_| "the heap cannot be so large")?;
    HEAP.grow(layout).ok_or("there is no memory for the heap")
}

impl GrowingHeap {
    /// Gives out the block that this pCPU set aside for such an allocation.
    #[cold]
    fn keep_promise(&self, layout: Layout) -> Option<NonNull<u8>> {
        let cpu = sysreg::read!("tpidr_el2");
        let mut promised = self.promised.lock();
        let promise = promised.take_if(|promise| promise.cpu == cpu && promise.layout == layout)?;
        Some(promise.block)
    }

    fn grow(&self, layout: Layout) -> Option<()> {
        let least = layout
            .size()
            .max(layout.align())
            .checked_next_power_of_two()?;
        let bytes = least.max(HEAP_STEP);
        let run = allocate_run(bytes as u64, bytes as u64)
            .or_else(|| allocate_run(least as u64, (least as u64).max(PAGE_SIZE)))?;
        let start = size(run.start.get());
        // SAFETY: RAM that EL2 maps, which now belongs to the heap.
        unsafe { self.heap.lock().add_to_heap(start, start + size(run.len)) };
        Some(())
    }
}

// SAFETY: the heap gives out memory that is its own, and every block once; the lock makes it whole.
unsafe impl GlobalAlloc for GrowingHeap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let first = self.heap.lock().alloc(layout);
        first
            .or_else(|()| {
                self.grow(layout).ok_or(())?;
                self.heap.lock().alloc(layout)
            })
            .or_else(|()| self.keep_promise(layout).ok_or(()))
            .map_or(core::ptr::null_mut(), NonNull::as_ptr)
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        let Some(pointer) = NonNull::new(pointer) else {
            return;
        };
        // SAFETY: the caller gives back what `alloc` gave out with this layout.
        unsafe { self.heap.lock().dealloc(pointer, layout) };
    }
}
