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
    /// Top of the stack of the pCPU where the vCPU is loaded.
    host_sp: u64,
}

const _: () = assert!(offset_of!(Frame, pc) == 248);
const _: () = assert!(offset_of!(Frame, pstate) == 256);
const _: () = assert!(offset_of!(Frame, host_sp) == 264);

/// PSTATE of a vCPU that starts: EL1h with debug exceptions, SErrors and interrupts masked.
pub const PSTATE_EL1H_MASKED: u64 = 0x3c5;

/// SPSR_EL2 (C5.2.20): the guest is in AArch32; its level, and which stack pointer it uses, if not; a
/// software step is not done yet; BTYPE; the two parts of AArch32's IT state.
const AARCH32: u64 = 1 << 4;
const EXCEPTION_LEVEL: u64 = 0b11 << 2;
const STACK_SELECT: u64 = 1;
const STEPPING: u64 = 1 << 21;
const BRANCH_TYPE: u64 = 0b11 << 10;
const IF_THEN: u64 = 0b11 << 25 | 0x3f << 10;

/// ESR_EL2.IL.
const INSTRUCTION_IS_LONG: u64 = 1 << 25;

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

    /// Says where exits find a stack.
    ///
    /// # Safety
    ///
    /// It is the top of the stack of the pCPU on which the vCPU runs from now on, and 16-byte aligned. What
    /// is on that stack is abandoned at an exit.
    pub const unsafe fn set_stack(&mut self, top: u64) {
        self.host_sp = top;
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

    /// Returns whether the guest is in AArch32.
    pub const fn is_aarch32(&self) -> bool {
        self.pstate & AARCH32 != 0
    }

    /// Returns whether the guest is at EL0.
    pub const fn is_el0(&self) -> bool {
        self.pstate & EXCEPTION_LEVEL == 0
    }

    /// Returns whether the guest's stack pointer is SP_EL0; else it is SP_EL1.
    pub const fn uses_sp_el0(&self) -> bool {
        self.pstate & STACK_SELECT == 0
    }

    /// Goes on after the instruction that exited, which has 32 bits.
    pub const fn skip(&mut self) {
        self.skip_exited(INSTRUCTION_IS_LONG);
    }

    /// Goes on at the HVC that was just executed, to make the call again.
    ///
    /// It may have been the last word of the address space, behind which the HVC left zero.
    pub const fn call_again(&mut self) {
        self.pc = self.pc.wrapping_sub(4);
    }

    /// Goes on after the instruction that exited with the syndrome `esr`.
    pub const fn skip_exited(&mut self, esr: u64) {
        if self.pstate & AARCH32 == 0 {
            self.pc = self.pc.wrapping_add(4);
            self.pstate &= !(STEPPING | BRANCH_TYPE);
        } else {
            self.skip_aarch32(esr);
        }
    }

    /// An instruction of 16 bits (ESR_EL2.IL is 0) is possible, and what is left of an IT block
    /// moves on (F1.2.1).
    #[cold]
    const fn skip_aarch32(&mut self, esr: u64) {
        let length = if esr & INSTRUCTION_IS_LONG == 0 { 2 } else { 4 };
        self.pc = self.pc.wrapping_add(length) & 0xffff_ffff;
        let pstate = self.pstate & !STEPPING;
        let it = pstate >> 8 & 0xfc | pstate >> 25 & 3;
        let next = if it & 7 == 0 {
            0
        } else {
            it & 0xe0 | it << 1 & 0x1f
        };
        self.pstate = pstate & !IF_THEN | (next & 0xfc) << 8 | (next & 3) << 25;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_made_again_where_it_was_made() {
        let cases = [
            (0x4000_0004, 0x4000_0000),
            (4, 0),
            (0, 0xffff_ffff_ffff_fffc),
        ];
        for (behind, at) in cases {
            let mut frame = Frame::new(behind, 0);
            frame.call_again();
            assert_eq!(frame.pc, at, "{behind:#x}");
        }
    }

    #[test]
    #[rustfmt::skip]
    fn a_skipped_instruction_is_over() {
        const T32: u64 = 0x30; // User mode, Thumb
        // IT[7:2] in 15:10, IT[1:0] in 26:25.
        let it = |it: u64| (it >> 2) << 10 | (it & 3) << 25;
        let cases = [
            // PC,     PSTATE,              IL,    PC after, PSTATE after
            (0x1000,   0x3c5,               true,  0x1004,   0x3c5),
            (0x1000,   0x3c5 | 1 << 21,     true,  0x1004,   0x3c5), // the step is done
            (0x1000,   0x3c5 | 0b10 << 10,  true,  0x1004,   0x3c5), // no target of a branch
            (u64::MAX - 3, 0x3c5,           true,  0,        0x3c5),
            (0x1000,   T32,                 true,  0x1004,   T32),
            (0x1000,   T32,                 false, 0x1002,   T32),
            (0xffff_fffe, T32,              false, 0,        T32),
            (0x1000,   T32 | it(0x04),      false, 0x1002,   T32 | it(0x08)), // ITTE EQ: 1 of 3
            (0x1000,   T32 | it(0x18),      false, 0x1002,   T32),            // the last
            (0x1000,   T32 | it(0xea),      true,  0x1004,   T32 | it(0xf4)),
        ];
        for (pc, pstate, il, pc_after, pstate_after) in cases {
            let mut frame = Frame::new(pc, 0);
            frame.pstate = pstate;
            frame.skip_exited(u64::from(il) << 25);
            assert_eq!((frame.pc, frame.pstate), (pc_after, pstate_after), "{pc:#x} {pstate:#x}");
        }
    }

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
