//! From the Image header to the guest's `main`.
//!
//! The image is linked at zero and runs wherever it was put, at a 2 MiB boundary. The boot vCPU
//! applies the relocations, clears bss and takes the boot stack; a secondary vCPU finds its stack in
//! the [`Start`](crate::cpu::Start) that `CPU_ON` handed it. Both turn the MMU on before Rust code
//! uses atomics, since exclusives need cacheable memory.
//!
//! Header: Linux, Documentation/arch/arm64/booting.rst, section 4.

use core::arch::global_asm;

use crate::{exception, heap, mmu, platform, smccc};

unsafe extern "Rust" {
    /// The guest's first function, defined by `entry!`.
    fn __guest_main(platform: &'static platform::Platform);
}

global_asm!(
    r#"
    .section .head, "ax"
    .global _start
_start:
    b       boot_primary
    .long   0
    .quad   0                       // text_offset
    .quad   __image_size
    .quad   0xa                     // little endian, 4 KiB pages, anywhere in memory
    .quad   0, 0, 0
    .ascii  "ARM\x64"
    .long   0

boot_primary:
    msr     daifset, #0xf
    mov     x19, x0                 // the device tree

    // Apply R_AARCH64_RELATIVE: the word at base + offset becomes base + addend.
    adrp    x20, __image_start
    add     x20, x20, :lo12:__image_start
    adrp    x1, __rela_start
    add     x1, x1, :lo12:__rela_start
    adrp    x2, __rela_end
    add     x2, x2, :lo12:__rela_end
1:  cmp     x1, x2
    b.hs    2f
    ldp     x3, x4, [x1], #16
    ldr     x5, [x1], #8
    cmp     x4, #1027
    b.ne    1b
    add     x5, x5, x20
    str     x5, [x20, x3]
    b       1b

2:  adrp    x1, __bss_start
    adrp    x2, __bss_end           // both are page aligned
3:  cmp     x1, x2
    b.hs    4f
    stp     xzr, xzr, [x1], #16
    b       3b

4:  adrp    x1, {stack}
    add     x1, x1, :lo12:{stack}
    mov     x2, #{stack_size}
    add     sp, x1, x2
    mov     x29, xzr
    mov     x30, xzr
    adrp    x1, exception_vectors
    add     x1, x1, :lo12:exception_vectors
    msr     vbar_el1, x1
    mov     x1, #(3 << 20)          // CPACR_EL1.FPEN: nothing traps
    msr     cpacr_el1, x1
    msr     tpidr_el1, xzr
    isb
    mov     x0, x19
    mov     x1, x20
    bl      {boot}

    .global boot_secondary
boot_secondary:                     // x0: a Start, cleaned to the point of coherency
    msr     daifset, #0xf
    mov     x19, x0
    ldr     x1, [x19]               // stack
    mov     sp, x1
    mov     x29, xzr
    mov     x30, xzr
    adrp    x1, exception_vectors
    add     x1, x1, :lo12:exception_vectors
    msr     vbar_el1, x1
    mov     x1, #(3 << 20)
    msr     cpacr_el1, x1
    ldr     x1, [x19, #8]           // index
    msr     tpidr_el1, x1
    isb
    mov     x0, x19
    bl      {secondary}
    "#,
    stack = sym BOOT_STACK,
    stack_size = const BOOT_STACK_SIZE,
    boot = sym boot,
    secondary = sym secondary,
);

const BOOT_STACK_SIZE: usize = 0x1_0000;

#[repr(C, align(16))]
struct Stack(core::cell::UnsafeCell<[u8; BOOT_STACK_SIZE]>);

// SAFETY: only the assembly above takes the stack's address, once, for the boot vCPU.
unsafe impl Sync for Stack {}

static BOOT_STACK: Stack = Stack(core::cell::UnsafeCell::new([0; BOOT_STACK_SIZE]));

/// Runs the boot vCPU: MMU, heap, platform, `main`, power off.
extern "C" fn boot(device_tree: usize, image: usize) -> ! {
    mmu::build(image);
    mmu::enable();
    heap::init();
    let platform = platform::init(device_tree);
    // SAFETY: `entry!` defines the symbol with this signature.
    unsafe { __guest_main(platform) };
    smccc::system_off()
}

/// Runs a secondary vCPU: MMU, its function, off.
extern "C" fn secondary(start: &crate::cpu::Start) -> ! {
    mmu::enable();
    start.run();
    smccc::cpu_off()
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    crate::console::release();
    println!("guest panicked on vCPU {}: {info}", crate::cpu::index());
    exception::halt()
}
