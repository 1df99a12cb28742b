//! Exceptions at EL1: what a test expects is recovered from, interrupts go to their handlers, and the
//! rest is printed before the domain powers off.
//!
//! A fault in one of `mmio`'s probes or in `instruction`'s page resumes behind the instruction, with
//! the syndrome in x16 or x20; one in an alias of a page returns to who called. What EL0 was entered
//! for ends with any exception. IL (bit 25) is set in the syndrome of every 32-bit instruction, so it
//! is never zero.

use core::arch::{asm, global_asm};
use core::fmt;
use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use crate::{console, gic, instruction, smccc};

/// The registers of the interrupted code, as the stub below lays them out.
#[repr(C)]
#[derive(Debug)]
pub struct Frame {
    /// x0 to x30.
    pub registers: [u64; 31],
    /// Where to return to.
    pub elr: u64,
    /// The state to return with.
    pub spsr: u64,
    /// The syndrome.
    pub esr: u64,
    /// The faulting address.
    pub far: u64,
    padding: u64,
}

/// A synchronous exception that was expected.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Fault(u64);

impl Fault {
    pub(crate) const fn new(syndrome: u64) -> Self {
        Self(syndrome)
    }

    /// Returns ESR_EL1.
    pub const fn syndrome(self) -> u64 {
        self.0
    }

    /// Returns the exception class (ESR_EL1.EC).
    pub const fn class(self) -> u64 {
        self.0 >> 26 & 0x3f
    }

    /// Tells whether it is a data abort with the status "synchronous external abort".
    pub const fn is_external_abort(self) -> bool {
        self.is_data_abort() && self.0 & 0x3f == 0x10
    }

    /// Tells whether it is a data abort, from EL1 or EL0.
    pub const fn is_data_abort(self) -> bool {
        self.class() == 0x25 || self.class() == 0x24
    }

    /// Tells whether it is an access or a fetch that stage 1 has no translation for.
    pub const fn is_translation(self) -> bool {
        let fetch = self.class() == 0x21 || self.class() == 0x20;
        (self.is_data_abort() || fetch) && self.0 & 0x3c == 0x04
    }

    /// Tells whether it is a data abort from EL1 with the status "alignment fault".
    pub const fn is_alignment(self) -> bool {
        self.class() == 0x25 && self.0 & 0x3f == 0x21
    }

    /// Tells whether the instruction was undefined (EC 0, "unknown reason").
    pub const fn is_undefined(self) -> bool {
        self.class() == 0
    }
}

impl fmt::Debug for Fault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "fault (ESR {:#010x}, class {:#x})",
            self.0,
            self.class()
        )
    }
}

global_asm!(
    r#"
    .macro vector number
    .balign 128
    sub     sp, sp, #288
    stp     x0, x1, [sp]
    mov     x1, #\number
    b       exception_common
    .endm

    .section .text.vectors, "ax"
    .balign 2048
    .global exception_vectors
exception_vectors:
    vector 0
    vector 1
    vector 2
    vector 3
    vector 4
    vector 5
    vector 6
    vector 7
    vector 8
    vector 9
    vector 10
    vector 11
    vector 12
    vector 13
    vector 14
    vector 15
    .balign 128

exception_common:
    stp     x2, x3, [sp, #16]
    stp     x4, x5, [sp, #32]
    stp     x6, x7, [sp, #48]
    stp     x8, x9, [sp, #64]
    stp     x10, x11, [sp, #80]
    stp     x12, x13, [sp, #96]
    stp     x14, x15, [sp, #112]
    stp     x16, x17, [sp, #128]
    stp     x18, x19, [sp, #144]
    stp     x20, x21, [sp, #160]
    stp     x22, x23, [sp, #176]
    stp     x24, x25, [sp, #192]
    stp     x26, x27, [sp, #208]
    stp     x28, x29, [sp, #224]
    mrs     x2, elr_el1
    mrs     x3, spsr_el1
    mrs     x4, esr_el1
    mrs     x5, far_el1
    stp     x30, x2, [sp, #240]
    stp     x3, x4, [sp, #256]
    str     x5, [sp, #272]
    mov     x0, sp
    bl      {handle}
    ldp     x30, x2, [sp, #240]
    ldr     x3, [sp, #256]
    msr     elr_el1, x2
    msr     spsr_el1, x3
    ldp     x2, x3, [sp, #16]
    ldp     x4, x5, [sp, #32]
    ldp     x6, x7, [sp, #48]
    ldp     x8, x9, [sp, #64]
    ldp     x10, x11, [sp, #80]
    ldp     x12, x13, [sp, #96]
    ldp     x14, x15, [sp, #112]
    ldp     x16, x17, [sp, #128]
    ldp     x18, x19, [sp, #144]
    ldp     x20, x21, [sp, #160]
    ldp     x22, x23, [sp, #176]
    ldp     x24, x25, [sp, #192]
    ldp     x26, x27, [sp, #208]
    ldp     x28, x29, [sp, #224]
    ldp     x0, x1, [sp], #288
    eret
    "#,
    handle = sym handle,
);

const SYNC: u64 = 4;
const IRQ: u64 = 5;
const SERROR: u64 = 7;
const SYNC_FROM_EL0: u64 = 8;

/// Handles every exception.
extern "C" fn handle(frame: &mut Frame, vector: u64) {
    match vector {
        SYNC if recover(frame) => {}
        SYNC_FROM_EL0 => instruction::leave_el0(frame),
        IRQ => handle_irq(),
        SERROR if SERRORS_EXPECTED.load(Ordering::Relaxed) != 0 => {
            SERRORS.fetch_add(1, Ordering::Relaxed);
            SERROR_SYNDROME.store(frame.esr, Ordering::Relaxed);
        }
        _ => report(frame, vector),
    }
}

unsafe extern "C" {
    static probe_start: u8;
    static probe_end: u8;
}

/// Goes on behind an instruction that was expected to fault.
fn recover(frame: &mut Frame) -> bool {
    let probes = &raw const probe_start as u64..&raw const probe_end as u64;
    let register = if probes.contains(&frame.elr) {
        16
    } else if instruction::page().contains(&frame.elr) {
        20
    } else if crate::mmu::aliases().contains(&frame.elr) {
        frame.registers[20] = frame.esr;
        frame.elr = frame.registers[30];
        return true;
    } else {
        return false;
    };
    frame.registers[register] = frame.esr;
    frame.elr += 4;
    true
}

/// What is called for an IRQ; null is the table of handlers in `gic`.
static IRQ_HANDLER: AtomicPtr<()> = AtomicPtr::new(core::ptr::null_mut());

fn handle_irq() {
    let handler = IRQ_HANDLER.load(Ordering::Acquire);
    if handler.is_null() {
        gic::handle_irq();
        return;
    }
    // SAFETY: only `set_irq_handler` stores here, and it stores a `fn()`.
    let handler: fn() = unsafe { core::mem::transmute(handler) };
    handler();
}

/// Calls `handler` for every IRQ, or `gic`'s own when it is `None`.
pub fn set_irq_handler(handler: Option<fn()>) {
    let pointer = handler.map_or(core::ptr::null_mut(), |handler| handler as *mut ());
    IRQ_HANDLER.store(pointer, Ordering::Release);
}

static SERRORS_EXPECTED: AtomicU64 = AtomicU64::new(0);
static SERRORS: AtomicU64 = AtomicU64::new(0);
static SERROR_SYNDROME: AtomicU64 = AtomicU64::new(0);

/// Counts SErrors from now on instead of stopping at the first.
pub fn expect_serrors() {
    SERRORS_EXPECTED.store(1, Ordering::Relaxed);
    // SAFETY: vectors are set; an SError that is pending is taken and counted.
    unsafe { asm!("msr daifclr, #4", options(nostack)) };
}

/// Returns how many SErrors were taken since [`expect_serrors`].
pub fn serrors() -> u64 {
    SERRORS.load(Ordering::Relaxed)
}

/// Returns ESR_EL1 of the last of them.
pub fn serror_syndrome() -> u64 {
    SERROR_SYNDROME.load(Ordering::Relaxed)
}

/// Tells whether an SError is pending (ISR_EL1.A).
pub fn is_serror_pending() -> bool {
    read_sysreg!("isr_el1") & 1 << 8 != 0
}

/// Lets IRQs be taken.
pub fn unmask_irqs() {
    // SAFETY: vectors are set, and the handlers keep to data of their own.
    unsafe { asm!("msr daifclr, #2", options(nostack)) };
}

/// Holds IRQs back.
pub fn mask_irqs() {
    // SAFETY: holding interrupts back breaks nothing.
    unsafe { asm!("msr daifset, #2", options(nostack)) };
}

/// Runs `action` with IRQs held back.
pub fn without_irqs<T>(action: impl FnOnce() -> T) -> T {
    let masked = read_sysreg!("daif") & 0x80 != 0;
    mask_irqs();
    let result = action();
    if !masked {
        unmask_irqs();
    }
    result
}

/// Prints an exception that nobody expected, and stops.
fn report(frame: &Frame, vector: u64) -> ! {
    console::release();
    println!(
        "unexpected exception {vector} on vCPU {}: ESR {:#010x} ELR {:#x} FAR {:#x} SPSR {:#x}",
        crate::cpu::index(),
        frame.esr,
        frame.elr,
        frame.far,
        frame.spsr
    );
    for (row, values) in frame.registers.chunks(4).enumerate() {
        println!("  x{:<2} {values:#018x?}", row * 4);
    }
    halt()
}

/// Powers the domain off after a failure.
pub(crate) fn halt() -> ! {
    smccc::system_off()
}
