//! A small EL1 runtime for bare-metal guests.
//!
//! A guest is an arm64 `Image` that a domain (or QEMU's `virt` itself) enters at EL1 with the address
//! of its device tree in x0. The runtime relocates it, turns stage 1 on with an identity map, and calls
//! the function that [`entry!`] names:
//!
//! ```text
//! start   Image header, relocation, stack     mmu         identity map
//! cpu     this vCPU, starting others          exception   vectors, faults that a test expects
//! mmio    one-instruction device accesses     platform    what the device tree says
//! gic     GICv3; its: LPIs                    timer       the generic timer
//! smccc   HVC, PSCI, Isthmus's hypercalls     console     PL011, print!
//! heap    the global allocator                harness     tables of tests
//! ```
//!
//! On any other target the crate is empty: nothing in it makes sense on the host.

#![no_std]

#[cfg(target_os = "none")]
extern crate alloc;

#[cfg(target_os = "none")]
#[macro_use]
mod macros {
    /// Reads a system register.
    #[macro_export]
    macro_rules! read_sysreg {
        ($name:literal) => {{
            let value: u64;
            // SAFETY: reading a register changes no memory; `nomem` is left out, so the compiler
            // moves no memory access across it.
            unsafe {
                core::arch::asm!(concat!("mrs {}, ", $name), out(reg) value, options(nostack, preserves_flags))
            };
            value
        }};
    }

    /// Writes a system register. What the write does to the machine is the caller's to answer for.
    #[macro_export]
    macro_rules! write_sysreg {
        ($name:literal, $value:expr) => {{
            let value: u64 = $value;
            // SAFETY: the registers that guests write here control interrupts, timers and traps;
            // the ones that control translation are written by `mmu` alone.
            unsafe {
                core::arch::asm!(concat!("msr ", $name, ", {}"), in(reg) value, options(nostack, preserves_flags))
            };
        }};
    }

    /// Prints on the console.
    #[macro_export]
    macro_rules! print {
        ($($argument:tt)*) => { $crate::console::print(format_args!($($argument)*)) };
    }

    /// Prints a line on the console.
    #[macro_export]
    macro_rules! println {
        () => { $crate::print!("\n") };
        ($($argument:tt)*) => { $crate::console::print_line(format_args!($($argument)*)) };
    }

    /// Names the guest's first function: `fn main(platform: &'static Platform)`.
    ///
    /// The domain powers off when it returns.
    #[macro_export]
    macro_rules! entry {
        ($main:path) => {
            // SAFETY: the runtime declares this symbol with the same signature, and no one else
            // defines it: two would not link.
            #[unsafe(no_mangle)]
            fn __guest_main(platform: &'static $crate::platform::Platform) {
                let main: fn(&'static $crate::platform::Platform) = $main;
                main(platform)
            }
        };
    }
}

#[cfg(target_os = "none")]
pub mod console;
#[cfg(target_os = "none")]
pub mod cpu;
#[cfg(target_os = "none")]
pub mod exception;
#[cfg(target_os = "none")]
pub mod gic;
#[cfg(target_os = "none")]
pub mod harness;
#[cfg(target_os = "none")]
mod heap;
#[cfg(target_os = "none")]
pub mod instruction;
#[cfg(target_os = "none")]
pub mod its;
#[cfg(target_os = "none")]
pub mod mmio;
#[cfg(target_os = "none")]
pub mod mmu;
#[cfg(target_os = "none")]
pub mod platform;
#[cfg(target_os = "none")]
pub mod smccc;
#[cfg(target_os = "none")]
mod start;
#[cfg(target_os = "none")]
pub mod timer;
