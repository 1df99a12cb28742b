//! Executes instructions that are only known at run time, and survives what they do.
//!
//! The instruction is written into a page of its own, between nothing and a return. A fault in that
//! page resumes behind the instruction with the syndrome in x20 (see [`exception`](crate::exception)).

use core::arch::{asm, global_asm};
use core::ops::Range;

use spin::Mutex;

use crate::exception::{self, Fault, Frame};
use crate::mmu::{self, Alias};

global_asm!(
    r#"
    .section .data.scratch, "aw"
    .balign 4096
    .global scratch_page
scratch_page:
    .space 4096

    .section .text.execute, "ax"
    // Runs the code at x1 with x0 to x17 from the array at x0, stores them back there, and returns
    // the syndrome of a fault, or zero.
    .global execute_scratch, execute_return, execute_at_el0
execute_at_el0:
    msr     elr_el1, x1
    mov     x2, #0x3c0              // EL0, everything masked
    msr     spsr_el1, x2
execute_scratch:                    // x2: not zero if at EL0
    stp     x29, x30, [sp, #-48]!
    mov     x29, sp
    stp     x19, x20, [sp, #16]
    stp     x21, x22, [sp, #32]
    mov     x19, x0
    mov     x21, x1
    mov     x22, x2
    mov     x20, xzr
    ldp     x2, x3, [x19, #16]
    ldp     x4, x5, [x19, #32]
    ldp     x6, x7, [x19, #48]
    ldp     x8, x9, [x19, #64]
    ldp     x10, x11, [x19, #80]
    ldp     x12, x13, [x19, #96]
    ldp     x14, x15, [x19, #112]
    ldp     x16, x17, [x19, #128]
    ldp     x0, x1, [x19]
    cbnz    x22, 1f
    blr     x21
    b       execute_return
1:  eret                            // to EL0, whose next exception ends here
execute_return:
    stp     x0, x1, [x19]
    stp     x2, x3, [x19, #16]
    stp     x4, x5, [x19, #32]
    stp     x6, x7, [x19, #48]
    stp     x8, x9, [x19, #64]
    stp     x10, x11, [x19, #80]
    stp     x12, x13, [x19, #96]
    stp     x14, x15, [x19, #112]
    stp     x16, x17, [x19, #128]
    mov     x0, x20
    ldp     x21, x22, [sp, #32]
    ldp     x19, x20, [sp, #16]
    ldp     x29, x30, [sp], #48
    ret
    "#
);

unsafe extern "C" {
    static scratch_page: u8;
    fn execute_scratch(registers: *mut [u64; 18], code: usize, el0: u64) -> u64;
    fn execute_at_el0(registers: *mut [u64; 18], code: usize) -> u64;
    fn execute_return();
}

/// `ret`, and `svc #0`.
const RET: u32 = 0xd65f_03c0;
const SVC: u32 = 0xd400_0001;
/// The exception class of `svc`.
const CLASS_SVC: u64 = 0x15;
/// PSTATE of what goes on at EL1: EL1h, everything masked.
const EL1H_MASKED: u64 = 0x3c5;
/// Where in the page the instruction is for EL0.
const FOR_EL0: usize = 8;
const PAGE: usize = 0x1000;

/// Goes on at EL1 after an exception of EL0, with its syndrome in x20, or zero if it was the `svc` that
/// ends there.
pub(crate) fn leave_el0(frame: &mut Frame) {
    let class = frame.esr >> 26 & 0x3f;
    frame.registers[20] = if class == CLASS_SVC { 0 } else { frame.esr };
    frame.elr = execute_return as *const () as u64;
    frame.spsr = EL1H_MASKED;
}

/// Serialises the users of the page, and says whether it is executable yet.
static READY: Mutex<bool> = Mutex::new(false);

/// Returns the addresses of the page.
pub(crate) fn page() -> Range<u64> {
    let start = &raw const scratch_page as u64;
    start..start + PAGE as u64
}

/// Executes `instruction` with x0 to x17 from `registers`, which then holds what it left there.
///
/// # Safety
///
/// The instruction changes no memory that Rust code refers to, no register of x18 to x30 but x20, no
/// system register that this program depends on, and does not branch.
pub unsafe fn execute(instruction: u32, registers: &mut [u64; 18]) -> Result<(), Fault> {
    let mut ready = READY.lock();
    let page = &raw const scratch_page as usize;
    if !*ready {
        mmu::make_executable(page);
        *ready = true;
    }
    // SAFETY: the page is ours alone (the lock), writable, and 4 KiB long; the barriers make the
    // vCPU fetch what was written. All vCPUs fetch the same, so what is there already can stay.
    unsafe {
        if (page as *const u32).read_volatile() != instruction {
            write(page, instruction);
        }
    }
    // SAFETY: the caller answers for the instruction; the code around it keeps to the C convention.
    outcome(unsafe { execute_scratch(registers, page, 0) })
}

/// Executes `instruction` at EL0, with `sp` as stack pointer, which then holds what was left there too.
///
/// # Safety
///
/// As for [`execute`].
pub unsafe fn execute_el0(
    instruction: u32,
    registers: &mut [u64; 18],
    sp: &mut u64,
) -> Result<(), Fault> {
    let _ready = READY.lock();
    let page = &raw const scratch_page as usize;
    // SAFETY: the page is ours alone (the lock); the alias is of that page, and executed only.
    let code = unsafe {
        write(page, instruction);
        mmu::alias(ALIAS, Some((page, Alias::UserCode)))
    };
    // Interrupts would write ELR_EL1 before `eret`.
    let syndrome = exception::without_irqs(|| {
        // Used for nothing else.
        write_sysreg!("sp_el0", *sp);
        // SAFETY: the caller answers for the instruction; what EL0 does ends in `leave_el0`, with this
        // stack as it is.
        let syndrome = unsafe { execute_at_el0(registers, code + FOR_EL0) };
        *sp = read_sysreg!("sp_el0");
        syndrome
    });
    outcome(syndrome)
}

/// Calls the code at `code`, which may be changed meanwhile.
///
/// # Safety
///
/// `code` is in an alias of a page, and what it holds is a `ret` behind instructions as for
/// [`execute`].
pub unsafe fn call(code: usize, registers: &mut [u64; 18]) -> Result<(), Fault> {
    // SAFETY: the caller's promise.
    outcome(unsafe { execute_scratch(registers, code, 0) })
}

fn outcome(syndrome: u64) -> Result<(), Fault> {
    if syndrome == 0 {
        Ok(())
    } else {
        Err(Fault::new(syndrome))
    }
}

/// The alias by which EL0 executes the page.
const ALIAS: usize = mmu::ALIASES - 1;

/// Writes an instruction and a return to the page, for EL1 and for EL0, and makes them what is fetched.
///
/// # Safety
///
/// `page` is the scratch page, and the caller holds its lock.
unsafe fn write(page: usize, instruction: u32) {
    // SAFETY: the caller's promise.
    unsafe {
        (page as *mut u32).write_volatile(instruction);
        (page as *mut u32).add(1).write_volatile(RET);
        (page as *mut u32).add(2).write_volatile(instruction);
        (page as *mut u32).add(3).write_volatile(SVC);
        asm!(
            "dc  cvau, {page}",
            "dsb ish",
            "ic  ivau, {page}",
            "dsb ish",
            "isb",
            page = in(reg) page,
            options(nostack),
        );
    }
}
