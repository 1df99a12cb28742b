//! Single instructions: barriers, cache maintenance, waiting. On the host they do nothing.

macro_rules! instruction {
    ($(#[$doc:meta])* $name:ident, $text:literal) => {
        $(#[$doc])*
        #[inline(always)]
        pub fn $name() {
            #[cfg(target_os = "none")]
            // SAFETY: orders or waits; it changes no memory and no register that Rust uses. Not
            // `nomem`, so that the compiler keeps memory accesses on their side.
            unsafe {
                core::arch::asm!($text, options(nostack, preserves_flags));
            }
            #[cfg(not(target_os = "none"))]
            core::sync::atomic::fence(core::sync::atomic::Ordering::SeqCst);
        }
    };
}

instruction! {
    /// Instruction synchronization barrier.
    isb, "isb"
}
instruction! {
    /// Data synchronization barrier, full system, all accesses.
    dsb_sy, "dsb sy"
}
instruction! {
    /// Data synchronization barrier, full system, stores.
    dsb_st, "dsb st"
}
instruction! {
    /// Data synchronization barrier, inner shareable, all accesses.
    dsb_ish, "dsb ish"
}
instruction! {
    /// Data synchronization barrier, inner shareable, stores.
    dsb_ishst, "dsb ishst"
}
instruction! {
    /// Data synchronization barrier, this pCPU.
    dsb_nsh, "dsb nsh"
}
instruction! {
    /// Data memory barrier, outer shareable, stores.
    dmb_oshst, "dmb oshst"
}
instruction! {
    /// Waits for an interrupt, also one that is masked.
    wfi, "wfi"
}
instruction! {
    /// Waits for an event.
    wfe, "wfe"
}
instruction! {
    /// Invalidates all EL1 and EL0 translations of the current VMID, both stages, on all pCPUs.
    tlbi_vmalls12e1is, "tlbi vmalls12e1is"
}
instruction! {
    /// Invalidates all EL1 and EL0 stage 1 and combined translations of the current VMID, on all
    /// pCPUs.
    tlbi_vmalle1is, "tlbi vmalle1is"
}
instruction! {
    /// Invalidates the stage 1 and combined translations of the current VMID on this pCPU.
    tlbi_vmalle1, "tlbi vmalle1"
}
instruction! {
    /// Invalidates all translations of EL1 and EL0, of every VMID, on all pCPUs.
    tlbi_alle1is, "tlbi alle1is"
}
instruction! {
    /// Invalidates all instruction caches, on all pCPUs.
    ic_ialluis, "ic ialluis"
}

/// Invalidates the stage 2 translation of the page at `ipa` for the current VMID on all pCPUs.
#[inline(always)]
pub fn tlbi_ipas2e1is(ipa: u64) {
    #[cfg(target_os = "none")]
    // SAFETY: an invalidation changes no memory.
    unsafe {
        core::arch::asm!("tlbi ipas2e1is, {}", in(reg) ipa >> 12, options(nostack));
    }
    #[cfg(not(target_os = "none"))]
    let _ = ipa;
}

/// What PAR_EL1 would say of a walk that took an external abort, of level 3: that is an exception (D8.15), and what
/// is in PAR_EL1 then is not known.
#[cfg(target_os = "none")]
const WALK_REFUSED: u64 = 0x17 << 1 | 1;

macro_rules! translation {
    ($(#[$doc:meta])* $name:ident, $op:literal) => {
        $(#[$doc])*
        ///
        /// By stage 1 of the guest whose registers are loaded. Returns what the instruction left in
        /// PAR_EL1 (`syndrome::translated` decodes it); the guest's own content of it stays.
        pub fn $name(va: u64) -> u64 {
            #[cfg(target_os = "none")]
            {
                let own = crate::sysreg::read!("par_el1");
                let after: u64;
                // SAFETY: a translation changes no memory, and of registers PAR_EL1 only; or its operand, if
                // memory does not answer the walk.
                unsafe {
                    core::arch::asm!(concat!("2: at ", $op, ", {va}"), crate::containment::listed!(),
                        va = inout(reg) va => after, options(nostack));
                }
                isb();
                let result = crate::sysreg::read!("par_el1");
                crate::sysreg::write!("par_el1", own);
                if after == va { result } else { WALK_REFUSED }
            }
            #[cfg(not(target_os = "none"))]
            {
                let _ = va;
                1
            }
        }
    };
}

translation! {
    /// Translates an address as a load at EL1 would.
    at_s1e1r, "s1e1r"
}
translation! {
    /// Translates an address as a store at EL1 would.
    at_s1e1w, "s1e1w"
}
translation! {
    /// Translates an address as a load at EL0 would.
    at_s1e0r, "s1e0r"
}
translation! {
    /// Translates an address as a store at EL0 would.
    at_s1e0w, "s1e0w"
}

/// Returns the size in bytes of the smallest data cache line (CTR_EL0.DminLine).
pub fn data_cache_line() -> usize {
    4 << ((crate::sysreg::read!("ctr_el0") >> 16) & 0xf)
}

/// Applies an instruction at `$start`, and each `$step` bytes further on below `$end`: eight at a time, as
/// counting takes longer than most of them do.
///
/// # Safety
///
/// The instruction may be applied there.
#[cfg(target_os = "none")]
macro_rules! sweep {
    ($op:literal, $start:expr, $end:expr, $step:expr) => {{
        let (mut at, end, step) = ($start, $end, $step);
        while at < end {
            if end - at > 7 * step {
                sweep!(@$op, at, step, 1 2 3 4 5 6 7 8);
            } else {
                sweep!(@$op, at, step, 1);
            }
        }
    }};
    (@$op:literal, $at:ident, $step:ident, $($n:literal)*) => {
        core::arch::asm!(
            $(concat!("dc ", $op, ", {at} // ", $n), "add {at}, {at}, {step}",)*
            at = inout(reg) $at, step = in(reg) $step, options(nostack, preserves_flags)
        )
    };
}

macro_rules! maintenance {
    ($(#[$doc:meta])* $name:ident, $op:literal) => {
        $(#[$doc])*
        ///
        /// Complete when it returns.
        pub fn $name(start: *const u8, len: usize) {
            #[cfg(target_os = "none")]
            {
                let line = data_cache_line();
                let end = start.addr() + len;
                // SAFETY: cleaning loses nothing of what was written; the addresses are translated as
                // a load's would be.
                unsafe { sweep!($op, start.addr() & !(line - 1), end, line) };
                dsb_sy();
            }
            #[cfg(not(target_os = "none"))]
            let _ = (start, len);
        }
    };
}

maintenance! {
    /// Cleans the lines of `start..start + len` to the point of coherency.
    clean_to_poc, "cvac"
}
maintenance! {
    /// Cleans and invalidates the lines of `start..start + len` to the point of coherency.
    clean_invalidate_to_poc, "civac"
}
maintenance! {
    /// Cleans the lines of `start..start + len` to the point of unification.
    clean_to_pou, "cvau"
}

/// Cleans the line that holds `at` to the point of coherency.
///
/// Complete when it returns.
#[inline(always)]
pub fn clean_line_to_poc(at: *const u8) {
    #[cfg(target_os = "none")]
    // SAFETY: cleaning loses nothing of what was written; the address is translated as a load would be.
    unsafe {
        core::arch::asm!("dc cvac, {}", in(reg) at, options(nostack));
    }
    #[cfg(not(target_os = "none"))]
    let _ = at;
    dsb_sy();
}

/// Zeroes `start..start + len`, both multiples of 4 KiB, a block of DC ZVA at a time.
///
/// # Safety
///
/// The range is mapped, writable Normal memory that nothing else refers to.
pub unsafe fn zero_pages(start: *mut u8, len: usize) {
    assert!(start.addr().is_multiple_of(4096) && len.is_multiple_of(4096));
    #[cfg(target_os = "none")]
    {
        // DCZID_EL0: DZP forbids it, BS is log2 of the words of a block.
        let dczid = crate::sysreg::read!("dczid_el0");
        let block = 4usize << (dczid & 0xf);
        if dczid & 1 << 4 == 0 && block <= 4096 {
            // SAFETY: the blocks lie in the range (a page is a multiple of them), which is the caller's
            // to give.
            unsafe { sweep!("zva", start.addr(), start.addr() + len, block) };
            return;
        }
    }
    // SAFETY: as above.
    unsafe { start.write_bytes(0, len) };
}
