//! What an exit saves: the general-purpose registers and where the guest was.

use core::mem::offset_of;

/// The registers of a vCPU that every exit saves and every entry restores.
///
/// While its guest runs, SP_EL2 is the address of this structure (`entry.S` knows the offsets).
#[derive(Clone, Debug)]
#[repr(C, align(64))]
pub struct Frame {
    /// x0 to x30.
    pub x: [u64; 31],
    /// Where the guest goes on (ELR_EL2).
    pub pc: u64,
    /// The guest's PSTATE (SPSR_EL2).
    pub pstate: u64,
    /// The stack of the pCPU that runs it; set at each entry.
    host_sp: u64,
}

const _: () = assert!(offset_of!(Frame, pc) == 248);
const _: () = assert!(offset_of!(Frame, pstate) == 256);
const _: () = assert!(offset_of!(Frame, host_sp) == 264);

/// PSTATE of a vCPU that starts: EL1h with debug exceptions, SErrors and interrupts masked.
pub const PSTATE_EL1H_MASKED: u64 = 0x3c5;

impl Frame {
    /// Makes the state in which a guest's software starts at `entry` with `x0` as argument.
    pub const fn new(entry: u64, x0: u64) -> Self {
        let mut x = [0; 31];
        x[0] = x0;
        Self {
            x,
            pc: entry,
            pstate: PSTATE_EL1H_MASKED,
            host_sp: 0,
        }
    }

    /// Returns register `n` as an instruction names it: 31 is the zero register.
    pub fn register(&self, n: u8) -> u64 {
        self.x.get(usize::from(n)).copied().unwrap_or(0)
    }

    /// Sets register `n` as an instruction names it: writes to 31 are dropped.
    pub fn set_register(&mut self, n: u8, value: u64) {
        if let Some(register) = self.x.get_mut(usize::from(n)) {
            *register = value;
        }
    }

    /// Goes on after the 32-bit instruction that exited.
    pub const fn skip(&mut self) {
        self.pc = self.pc.wrapping_add(4);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn register_31_reads_zero_and_drops_writes() {
        let mut frame = Frame::new(0x1000, 7);
        frame.set_register(31, 5);
        frame.set_register(30, 6);
        assert_eq!(
            (frame.register(31), frame.register(30), frame.register(0)),
            (0, 6, 7)
        );
    }
}
