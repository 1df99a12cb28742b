//! The vCPUs: which one this is, and starting others.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::arch::asm;

use crate::{mmu, smccc};

const STACK_SIZE: usize = 0x8000;

/// What a secondary vCPU finds at the address in its x0. `start` reads the first two fields with the
/// MMU off.
#[repr(C)]
pub struct Start {
    stack: u64,
    index: u64,
    run: fn(usize),
    argument: usize,
    /// Owns the memory that `stack` is the end of.
    memory: Vec<u128>,
}

impl Start {
    pub(crate) fn run(&self) {
        (self.run)(self.argument);
    }
}

unsafe extern "C" {
    fn boot_secondary();
}

/// Returns this vCPU's index: 0 for the one that booted, and what [`start`] was given for others.
pub fn index() -> usize {
    small(read_sysreg!("tpidr_el1"))
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "usize has 64 bits on the only target"
)]
pub(crate) const fn small(value: u64) -> usize {
    value as usize
}

/// Returns this vCPU's affinity, as PSCI and the device tree write it.
pub fn affinity() -> u64 {
    read_sysreg!("mpidr_el1") & 0xff_00ff_ffff
}

/// Starts the vCPU with affinity `target` at `run(argument)`, with `index` as its index.
///
/// It turns itself off when `run` returns. Its stack and this bookkeeping are never given back, since
/// nobody can say when a vCPU that is off has left its stack for the last time.
pub fn start(
    target: u64,
    index: usize,
    run: fn(usize),
    argument: usize,
) -> Result<(), smccc::PsciError> {
    let memory: Vec<u128> = Vec::with_capacity(STACK_SIZE / size_of::<u128>());
    let stack = memory.as_ptr() as usize + STACK_SIZE;
    let start = Box::leak(Box::new(Start {
        stack: stack as u64,
        index: index as u64,
        run,
        argument,
        memory,
    }));
    let address = &raw const *start as usize;
    mmu::clean(address, size_of::<Start>());
    // Nothing of the heap's old content may be written back over what the new vCPU pushes.
    mmu::clean(stack - STACK_SIZE, STACK_SIZE);
    let entry = boot_secondary as *const () as u64;
    smccc::cpu_on(target, entry, address as u64)
}

/// Waits for an interrupt, pending ones included, also if they are masked.
pub fn wait_for_interrupt() {
    // SAFETY: waiting changes nothing.
    unsafe { asm!("dsb sy", "wfi", options(nostack)) };
}

/// Orders everything before it with everything after it, in the eyes of other vCPUs and of devices.
pub fn barrier() {
    // SAFETY: a barrier.
    unsafe { asm!("dsb sy", "isb", options(nostack)) };
}
