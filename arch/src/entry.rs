//! The ways into EL2 and out of it. The code is in `entry.S`; the kernel supplies `isthmus_early`,
//! `isthmus_main` and `isthmus_secondary`; for what a guest exits with `isthmus_synchronous`, a table of functions,
//! `isthmus_interrupt` and `isthmus_serror`; for what EL2 itself takes `isthmus_abort` and `isthmus_fault`.

use crate::frame::Frame;
use core::mem::offset_of;

core::arch::global_asm!(include_str!("entry.S"));

/// What a pCPU needs to turn its MMU on, and where it goes from there.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, align(16))]
pub struct Start {
    /// TTBR0_EL2.
    pub ttbr: u64,
    /// TCR_EL2.
    pub tcr: u64,
    /// MAIR_EL2.
    pub mair: u64,
    /// Top of the stack of a secondary pCPU.
    pub stack: u64,
    /// What `isthmus_secondary` gets.
    pub argument: u64,
}

const _: () = assert!(offset_of!(Start, ttbr) == 0 && offset_of!(Start, tcr) == 8);
const _: () = assert!(offset_of!(Start, mair) == 16 && offset_of!(Start, stack) == 24);
const _: () = assert!(offset_of!(Start, argument) == 32 && size_of::<Start>() == 48);

/// What an exception that EL2 itself took left behind. `isthmus_abort` may change it, and says whether
/// EL2 is to go on with it.
#[derive(Debug)]
#[repr(C, align(16))]
pub struct Fault {
    /// x0 to x30; in `isthmus_fault`, x15 to x18 are lost.
    pub x: [u64; 31],
    /// ELR_EL2.
    pub pc: u64,
    /// SPSR_EL2.
    pub pstate: u64,
    /// The stack pointer at the exception.
    pub sp: u64,
}

const _: () = assert!(offset_of!(Fault, pc) == 248 && offset_of!(Fault, sp) == 264);
const _: () = assert!(size_of::<Fault>() == 272);

/// Size of a stack of EL2's. Each fills the upper half of twice that, aligned, and below it nothing is
/// mapped for a page at least: whether a stack is exhausted is one bit of its pointer (`entry.S`).
pub const STACK_SIZE: u64 = 32 << 10;

unsafe extern "C" {
    static boot_stack_guard: u8;
    static image_start: u8;
    static __rodata_start: u8;
    static __data_start: u8;
    static __image_end: u8;
    static __foreign_start: i32;
    static __foreign_end: i32;
    fn secondary_start();
    fn consume_serror();
    fn enter_guest(frame: *mut Frame) -> !;
    fn continue_on_stack(stack: u64, function: extern "C" fn(u64) -> !, argument: u64) -> !;
}

/// Where the parts of the image lie; each is page aligned.
#[derive(Clone, Copy, Debug)]
pub struct Image {
    /// First byte, and first byte of the text.
    pub start: u64,
    /// First byte of the read-only data.
    pub rodata: u64,
    /// First byte of the writable data.
    pub data: u64,
    /// The page below the boot stack, which must not be mapped.
    pub guard: u64,
    /// First byte behind it all.
    pub end: u64,
}

/// Returns where the image runs.
pub fn image() -> Image {
    Image {
        start: (&raw const image_start).addr() as u64,
        rodata: (&raw const __rodata_start).addr() as u64,
        data: (&raw const __data_start).addr() as u64,
        guard: (&raw const boot_stack_guard).addr() as u64,
        end: (&raw const __image_end).addr() as u64,
    }
}

/// Returns where the accesses to devices are that may refuse them, as `containment` has it.
pub(crate) fn foreign() -> &'static [i32] {
    let (start, end) = (&raw const __foreign_start, &raw const __foreign_end);
    let count = (end.addr() - start.addr()) / size_of::<i32>();
    // SAFETY: read-only data of the image (link.ld), aligned to words.
    unsafe { core::slice::from_raw_parts(start, count) }
}

/// Returns where PSCI is told to start a pCPU; its argument is the physical address of a [`Start`].
pub fn secondary_entry() -> u64 {
    secondary_start as *const () as u64
}

/// Takes an SError that is pending (ISR_EL1.A), so that it is nobody else's any more.
pub fn take_serror() {
    // SAFETY: unmasks SErrors for one instruction; the vector of the exception knows that place.
    unsafe { consume_serror() };
}

/// Runs the guest of `frame` until its next exit, which arrives in one of `isthmus_synchronous`, `isthmus_interrupt`
/// and `isthmus_serror`.
///
/// # Safety
///
/// `frame` belongs to a vCPU whose other registers are loaded on this pCPU, nothing else refers to
/// it, it has this pCPU's stack (`Frame::set_stack`), and it lives until that vCPU is no longer loaded.
pub unsafe fn enter(frame: *mut Frame) -> ! {
    // SAFETY: as above.
    unsafe { enter_guest(frame) }
}

/// Abandons the current stack and calls `function` with `argument` on another.
///
/// # Safety
///
/// `stack` is the top of a mapped stack that nothing uses, and 16-byte aligned.
pub unsafe fn switch_stack(stack: u64, function: extern "C" fn(u64) -> !, argument: u64) -> ! {
    // SAFETY: as above.
    unsafe { continue_on_stack(stack, function, argument) }
}
