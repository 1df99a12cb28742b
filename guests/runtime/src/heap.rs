//! The global allocator: a buddy system over the 8 MiB behind the image's bss.

use core::alloc::{GlobalAlloc, Layout};
use core::ptr::NonNull;

use buddy_system_allocator::Heap;
use spin::Mutex;

use crate::exception;

/// Orders up to 2^26 bytes, more than the heap has.
struct Locked(Mutex<Heap<26>>);

#[global_allocator]
static HEAP: Locked = Locked(Mutex::new(Heap::empty()));

unsafe extern "C" {
    static __heap_start: u8;
    static __heap_end: u8;
}

/// Gives the allocator its memory.
pub(crate) fn init() {
    let start = &raw const __heap_start as usize;
    let end = &raw const __heap_end as usize;
    // SAFETY: the linker script sets this range aside, and this runs once.
    unsafe { HEAP.0.lock().init(start, end - start) };
}

// SAFETY: the buddy system hands out disjoint blocks that fit the layout. Interrupts are held back
// while the lock is taken, so that a handler may allocate too.
unsafe impl GlobalAlloc for Locked {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let block = exception::without_irqs(|| self.0.lock().alloc(layout));
        block.map_or(core::ptr::null_mut(), NonNull::as_ptr)
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        let Some(block) = NonNull::new(block) else {
            return;
        };
        // SAFETY: the caller says that `block` came from `alloc` with this layout.
        exception::without_irqs(|| unsafe { self.0.lock().dealloc(block, layout) });
    }
}
