// The ways into EL2: reset of the boot pCPU, start of the others, and exceptions.
//
// Everything here is position independent. The MMU is off until enable_mmu, so memory is Device:
// accesses are aligned and there are no exclusives.

// Offsets in `Frame` (arch/src/frame.rs, which asserts them).
.equ FRAME_ELR, 248
.equ FRAME_SPSR, 256
.equ FRAME_HOST_SP, 264

// Size of `Fault` (likewise).
.equ FAULT_SIZE, 272

// Offsets in `Start` (arch/src/entry.rs, which asserts them).
.equ START_TTBR, 0
.equ START_TCR, 8
.equ START_MAIR, 16
.equ START_STACK, 24
.equ START_ARGUMENT, 32

// SCTLR_EL2 (Arm ARM D24.2.175): RES1 bits, and SA; the MMU, caches and WXN come in enable_mmu.
.equ SCTLR_OFF, 0x30c50838
.equ SCTLR_ON, 0x30c5083d | (1 << 12) | (1 << 19)

.section .head, "ax"
.global image_start
image_start:
    b       start
    .long   0

// Takes EL2's control registers over from whatever ran before: masks everything, leaves VHE
// (firmware may enter with HCR_EL2.E2H set), turns the MMU off. Clobbers x9.
.macro take_over
    msr     daifset, #0xf
    mrs     x9, CurrentEL
    cmp     x9, #(2 << 2)
    b.ne    park
    mov     x9, #(1 << 31)              // HCR_EL2.RW, E2H = TGE = 0
    msr     hcr_el2, x9
    isb
    ldr     x9, =SCTLR_OFF
    msr     sctlr_el2, x9
    isb
    mov     x9, #0x33ff                 // CPTR_EL2: RES1, nothing trapped
    msr     cptr_el2, x9
    adr     x9, vectors
    msr     vbar_el2, x9
    msr     tpidr_el2, xzr
    msr     oslar_el1, xzr              // reset locks it, and debug exceptions with it (D2.10)
    msr     spsel, #1
    isb
.endm

// Turns the MMU and the caches on. x0 = TTBR0_EL2, x1 = TCR_EL2, x2 = MAIR_EL2; clobbers x9.
.macro enable_mmu
    msr     ttbr0_el2, x0
    msr     tcr_el2, x1
    msr     mair_el2, x2
    dsb     sy
    isb
    tlbi    alle2
    ic      iallu
    dsb     nsh
    isb
    ldr     x9, =SCTLR_ON
    msr     sctlr_el2, x9
    isb
.endm

.section .text.entry, "ax"
start:
    take_over
    mov     x19, x0                     // device tree
    adrp    x20, __image_start

    // R_AARCH64_RELATIVE (AAELF64 5.7.16) is the only kind that the linker leaves.
    adrp    x1, __rela_start
    add     x1, x1, :lo12:__rela_start
    adrp    x2, __rela_end
    add     x2, x2, :lo12:__rela_end
1:  cmp     x1, x2
    b.hs    2f
    ldp     x3, x4, [x1], #16
    ldr     x5, [x1], #8
    cmp     x4, #0x403
    b.ne    park
    add     x5, x5, x20
    str     x5, [x20, x3]
    b       1b

2:  adrp    x1, __bss_start
    add     x1, x1, :lo12:__bss_start
    adrp    x2, __image_end
3:  stp     xzr, xzr, [x1], #16
    cmp     x1, x2
    b.lo    3b

    // What was written went past the caches: drop the lines that could hide it (the boot protocol
    // says that they are clean).
    adrp    x1, __rodata_start
    mrs     x3, ctr_el0
    ubfx    x3, x3, #16, #4             // DminLine: log2 of words
    mov     x4, #4
    lsl     x3, x4, x3
    dsb     sy
4:  dc      ivac, x1
    add     x1, x1, x3
    cmp     x1, x2
    b.lo    4b
    dsb     sy

    adrp    x1, boot_stack_top
    mov     sp, x1
    mov     x29, xzr
    mov     x30, xzr
    sub     sp, sp, #48                 // a Start
    mov     x0, x19
    mov     x1, x20
    mov     x2, sp
    bl      isthmus_early
    ldp     x0, x1, [sp, #START_TTBR]
    ldr     x2, [sp, #START_MAIR]
    add     sp, sp, #48
    enable_mmu
    mov     x0, x19
    mov     x1, x20
    mov     x29, xzr
    bl      isthmus_main
    b       park

// Where PSCI starts a pCPU. x0 = address of its Start.
.global secondary_start
secondary_start:
    take_over
    mov     x19, x0
    ldp     x0, x1, [x19, #START_TTBR]
    ldr     x2, [x19, #START_MAIR]
    enable_mmu
    ldr     x9, [x19, #START_STACK]
    mov     sp, x9
    mov     x29, xzr
    mov     x30, xzr
    ldr     x0, [x19, #START_ARGUMENT]
    bl      isthmus_secondary
    b       park

// Nothing more can be done by this pCPU.
park:
    wfe
    b       park

// Continues on the stack whose top is x0, at the function x1 with the argument x2; never returns.
.global continue_on_stack
continue_on_stack:
    mov     sp, x0
    mov     x0, x2
    mov     x29, xzr
    mov     x30, xzr
    br      x1

// x2 to x29 to a `Frame` or `Fault` at SP, and x0 to x30 back from there.
.macro store_registers
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
.endm
.macro load_registers
    ldr     x30, [sp, #240]
    ldp     x28, x29, [sp, #224]
    ldp     x26, x27, [sp, #208]
    ldp     x24, x25, [sp, #192]
    ldp     x22, x23, [sp, #176]
    ldp     x20, x21, [sp, #160]
    ldp     x18, x19, [sp, #144]
    ldp     x16, x17, [sp, #128]
    ldp     x14, x15, [sp, #112]
    ldp     x12, x13, [sp, #96]
    ldp     x10, x11, [sp, #80]
    ldp     x8, x9, [sp, #64]
    ldp     x6, x7, [sp, #48]
    ldp     x4, x5, [sp, #32]
    ldp     x2, x3, [sp, #16]
    ldp     x0, x1, [sp, #0]
.endm

// An exception that EL2 itself took: never expected. The stack may be what is broken, so the report
// is written from a stack of its own; the guest's SP_EL0 is lost, which no longer matters.
.macro from_el2 number
    .balign 0x80
    msr     sp_el0, x0
    mov     x0, #\number
    b       fault_in_el2
.endm

// A synchronous exception that EL2 itself took: expected where a device refuses an access
// (containment.rs). Such a place has a sound stack, which is used here. Each stack fills the upper half
// of 64 KiB (arch/src/entry.rs, STACK_SIZE): below it bit 15 of SP is clear, and nothing is stored. No
// register is free to look, so SP and x0 are added and told apart again.
.macro sync_from_el2
    .balign 0x80
    sub     sp, sp, #FAULT_SIZE
    add     sp, sp, x0
    sub     x0, sp, x0                  // the stack pointer
    tbz     x0, #15, 1f
    sub     x0, sp, x0                  // x0 again
    sub     sp, sp, x0
    b       sync_in_el2
1:  sub     x0, sp, x0
    sub     sp, sp, x0
    add     sp, sp, #FAULT_SIZE
    msr     sp_el0, x0
    mov     x0, #4
    b       fault_in_el2
.endm

// An SError that EL2 itself took: expected in consume_serror only.
.macro serror_from_el2
    .balign 0x80
    stp     x0, x1, [sp, #-16]!
    mrs     x0, elr_el2
    adr     x1, consume_serror
    sub     x0, x0, x1
    cmp     x0, #(consume_serror_end - consume_serror)
    b.hs    1f
    mrs     x0, spsr_el2
    orr     x0, x0, #(1 << 8)           // PSTATE.A: it stays masked
    msr     spsr_el2, x0
    ldp     x0, x1, [sp], #16
    eret
1:  ldp     x0, x1, [sp], #16
    msr     sp_el0, x0
    mov     x0, #7
    b       fault_in_el2
.endm

// An exit of a guest. While a guest runs, SP_EL2 is the address of its vCPU's Frame, so the registers
// go straight to where they belong, and the pCPU's stack is found there too.
.macro leave_guest
    .balign 0x80
    stp     x0, x1, [sp, #0]
    store_registers
    mrs     x2, elr_el2
    mrs     x3, spsr_el2
    stp     x30, x2, [sp, #240]
    ldr     x4, [sp, #FRAME_HOST_SP]
    str     x3, [sp, #FRAME_SPSR]
    mov     x0, sp
    mov     sp, x4
    mov     x29, xzr
.endm
.macro sync_from_guest
    leave_guest
    mrs     x1, esr_el2                 // once: an abort that EL2 contains leaves its own there
    adr     x2, isthmus_synchronous
    ubfx    x3, x1, #26, #6             // EC
    ldr     x2, [x2, x3, lsl #3]
    blr     x2
    b       enter_guest
.endm
.macro from_guest handler
    leave_guest
    bl      \handler
    b       enter_guest
.endm

.balign 0x800
vectors:
    from_el2 0
    from_el2 1
    from_el2 2
    from_el2 3
    sync_from_el2
    from_el2 5
    from_el2 6
    serror_from_el2
.rept 2
    sync_from_guest
    from_guest isthmus_interrupt
    from_guest isthmus_interrupt
    from_guest isthmus_serror
.endr

// Enters the guest whose Frame is x0.
.global enter_guest
enter_guest:
    mov     sp, x0
    ldp     x2, x3, [sp, #FRAME_ELR]
    msr     elr_el2, x2
    msr     spsr_el2, x3
    load_registers
    eret
    // No speculation past the exception return.
    dsb     nsh
    isb

// Takes the SError that is pending.
.global consume_serror
consume_serror:
    msr     daifclr, #4
    isb
    msr     daifset, #4
consume_serror_end:
    ret

sync_in_el2:
    // A Fault is at SP.
    stp     x0, x1, [sp, #0]
    store_registers
    mrs     x2, elr_el2
    mrs     x3, spsr_el2
    add     x4, sp, #FAULT_SIZE
    stp     x30, x2, [sp, #240]
    stp     x3, x4, [sp, #FRAME_SPSR]
    mov     x0, sp
    bl      isthmus_abort
    tbz     w0, #0, 1f
    ldp     x2, x3, [sp, #FRAME_ELR]
    msr     elr_el2, x2
    msr     spsr_el2, x3
    load_registers
    add     sp, sp, #FAULT_SIZE
    eret
    dsb     nsh
    isb
1:  load_registers
    add     sp, sp, #FAULT_SIZE
    msr     sp_el0, x0
    mov     x0, #4

fault_in_el2:
    // x0 = vector number, the old x0 in SP_EL0. x15 to x18 are lost.

    adrp    x18, fault_depth
    add     x18, x18, :lo12:fault_depth
2:  ldaxr   w17, [x18]
    add     w16, w17, #1
    stlxr   w15, w16, [x18]
    cbnz    w15, 2b
    cbnz    w17, park
    mov     x16, sp
    adrp    x18, fault_stack_top
    mov     sp, x18
    mrs     x17, sp_el0
    sub     sp, sp, #288
    stp     x17, x1, [sp, #0]
    stp     x2, x3, [sp, #16]
    stp     x4, x5, [sp, #32]
    stp     x6, x7, [sp, #48]
    stp     x8, x9, [sp, #64]
    stp     x10, x11, [sp, #80]
    stp     x12, x13, [sp, #96]
    stp     x14, xzr, [sp, #112]
    stp     xzr, xzr, [sp, #128]
    stp     xzr, x19, [sp, #144]
    stp     x20, x21, [sp, #160]
    stp     x22, x23, [sp, #176]
    stp     x24, x25, [sp, #192]
    stp     x26, x27, [sp, #208]
    stp     x28, x29, [sp, #224]
    mrs     x2, elr_el2
    mrs     x3, spsr_el2
    stp     x30, x2, [sp, #240]
    stp     x3, x16, [sp, #FRAME_SPSR]
    mov     x1, x0
    mov     x0, sp
    bl      isthmus_fault
    b       park

.section .bss.stacks, "aw", %nobits
.balign 65536
fault_depth:
    .space  8
.balign 4096
fault_stack:
    .space  8192
fault_stack_top:
    .space  7 * 4096 - 3 * 4096         // up to the upper half, less the guard
.global boot_stack_guard
boot_stack_guard:
    .space  4096
boot_stack:
    .space  32768
.global boot_stack_top
boot_stack_top:
