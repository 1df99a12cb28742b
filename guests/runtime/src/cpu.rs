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

/// A stack, and what a vCPU is to do on it. It can be used again once that vCPU is off.
#[derive(Clone, Copy)]
pub struct Launch(&'static Start);

impl Launch {
    /// Makes a launch: `run(argument)`, with `index` as the vCPU's index.
    ///
    /// Its memory is never given back, since nobody can say when a vCPU that is off has left its
    /// stack for the last time.
    pub fn new(index: usize, run: fn(usize), argument: usize) -> Self {
        let memory: Vec<u128> = Vec::with_capacity(STACK_SIZE / size_of::<u128>());
        let stack = memory.as_ptr() as usize + STACK_SIZE;
        Self(Box::leak(Box::new(Start {
            stack: stack as u64,
            index: index as u64,
            run,
            argument,
            memory,
        })))
    }

    /// Starts the vCPU with affinity `target`. It turns itself off when the function returns.
    pub fn start(self, target: u64) -> Result<(), smccc::PsciError> {
        let address = &raw const *self.0 as usize;
        mmu::clean(address, size_of::<Start>());
        // Nothing of the stack's old content may be written back over what the vCPU pushes before
        // its caches are on.
        mmu::clean(small(self.0.stack) - STACK_SIZE, STACK_SIZE);
        let entry = boot_secondary as *const () as u64;
        smccc::cpu_on(target, entry, address as u64)
    }
}

/// Starts the vCPU with affinity `target` at `run(argument)`, with `index` as its index.
pub fn start(
    target: u64,
    index: usize,
    run: fn(usize),
    argument: usize,
) -> Result<(), smccc::PsciError> {
    Launch::new(index, run, argument).start(target)
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
