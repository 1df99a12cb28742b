//! System registers by their assembler name, for those that `aarch64-cpu` lacks or where the plain
//! number is what is wanted.
//!
//! ```ignore
//! let esr = sysreg::read!("esr_el2");
//! sysreg::write!("vttbr_el2", value);
//! sysreg::read!("s3_4_c12_c11_2"); // ICH_EISR_EL2, by encoding
//! ```
//!
//! Neither is ordered against memory accesses or other registers: an `asm::isb()` is the caller's.
//! On the host a read gives zero and a write does nothing.

/// Reads a system register.
#[macro_export]
macro_rules! sysreg_read {
    ($name:expr) => {{
        #[cfg(target_os = "none")]
        {
            let value: u64;
            // SAFETY: reading a system register changes no memory.
            unsafe {
                core::arch::asm!(concat!("mrs {}, ", $name), out(reg) value, options(nostack));
            }
            value
        }
        #[cfg(not(target_os = "none"))]
        {
            0u64
        }
    }};
}

/// Writes a system register.
///
/// Not `unsafe`: what a register means for memory safety (tables, stacks) is stated where the value
/// is made. The compiler moves no memory access across it.
#[macro_export]
macro_rules! sysreg_write {
    ($name:expr, $value:expr) => {{
        let value: u64 = $value;
        #[cfg(target_os = "none")]
        // SAFETY: no memory of Rust's changes; see above for what the registers mean.
        unsafe {
            core::arch::asm!(concat!("msr ", $name, ", {}"), in(reg) value, options(nostack));
        }
        #[cfg(not(target_os = "none"))]
        let _ = value;
    }};
}

pub use {sysreg_read as read, sysreg_write as write};
