//! EL2's side of the virtual interface: list registers and what goes with them (12.4).
//!
//! What their fields are is for whoever fills them (`vgic`): here they are numbers.

use crate::sysreg;
use tock_registers::{LocalRegisterCopy, register_bitfields};

register_bitfields! {u64,
    /// VGIC type register (12.4).
    ICH_VTR_EL2 [
        /// List registers, less one.
        ListRegs OFFSET(0) NUMBITS(5) [],
        /// Bits of a preemption level, less one.
        PREbits OFFSET(26) NUMBITS(3) []
    ]
}

/// The most list registers there can be.
pub const MAX_LIST_REGISTERS: usize = 16;

/// What the virtual interface of this machine has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// List registers, 1 to 16.
    pub list_registers: usize,
    /// Registers of active priorities in each group: 1, 2 or 4.
    pub active_priorities: usize,
}

impl Shape {
    /// Reads it from this pCPU.
    pub fn read() -> Self {
        Self::decode(sysreg::read!("ich_vtr_el2"))
    }

    /// Decodes ICH_VTR_EL2.
    #[expect(clippy::cast_possible_truncation, reason = "fields of few bits")]
    pub fn decode(vtr: u64) -> Self {
        let vtr = LocalRegisterCopy::<u64, ICH_VTR_EL2::Register>::new(vtr);
        let preemption_bits = vtr.read(ICH_VTR_EL2::PREbits) as u32 + 1;
        Self {
            list_registers: (vtr.read(ICH_VTR_EL2::ListRegs) as usize + 1).min(MAX_LIST_REGISTERS),
            active_priorities: match preemption_bits {
                7.. => 4,
                6 => 2,
                _ => 1,
            },
        }
    }
}

macro_rules! register {
    ($(#[$doc:meta])* $read:ident, $write:ident, $name:literal) => {
        $(#[$doc])*
        #[inline(always)]
        pub fn $read() -> u64 {
            sysreg::read!($name)
        }

        #[doc = concat!("Writes `", $name, "`.")]
        #[inline(always)]
        pub fn $write(value: u64) {
            sysreg::write!($name, value);
        }
    };
}

register! {
    /// Reads what the virtual interface does (`ICH_HCR_EL2`).
    read_hcr, write_hcr, "ich_hcr_el2"
}
register! {
    /// Reads the guest's view of its CPU interface (`ICH_VMCR_EL2`).
    read_vmcr, write_vmcr, "ich_vmcr_el2"
}

/// Applies a macro to every list register: its number and its name.
macro_rules! list_registers {
    ($apply:ident) => {
        $apply! {
            0 "ich_lr0_el2", 1 "ich_lr1_el2", 2 "ich_lr2_el2", 3 "ich_lr3_el2",
            4 "ich_lr4_el2", 5 "ich_lr5_el2", 6 "ich_lr6_el2", 7 "ich_lr7_el2",
            8 "ich_lr8_el2", 9 "ich_lr9_el2", 10 "ich_lr10_el2", 11 "ich_lr11_el2",
            12 "ich_lr12_el2", 13 "ich_lr13_el2", 14 "ich_lr14_el2", 15 "ich_lr15_el2"
        }
    };
}

/// Reads a list register.
#[inline]
pub fn read_lr(index: usize) -> u64 {
    macro_rules! read_one {
        ($($n:literal $name:literal),*) => {
            match index {
                $($n => sysreg::read!($name),)*
                _ => 0,
            }
        };
    }
    list_registers!(read_one)
}

/// Writes `values` to the list registers from `first` on, and zero to those behind, of `count`: in a straight
/// line, without a jump for each.
#[inline]
pub fn write_lrs(first: usize, values: &[u64], count: usize) {
    macro_rules! write_all {
        ($($n:literal $name:literal),*) => {
            $(
                if $n >= count {
                    return;
                }
                if $n >= first {
                    sysreg::write!($name, values.get($n - first).copied().unwrap_or(0));
                }
            )*
        };
    }
    list_registers!(write_all);
}

/// The virtual interface of a vCPU that does not run. Its list registers are empty.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// `ICH_VMCR_EL2`.
    pub vmcr: u64,
    /// Active priorities of Group 0 and Group 1, as many as [`Shape`] says.
    pub active_priorities: [[u64; 4]; 2],
}

impl State {
    /// Takes the virtual interface's state over from the pCPU and turns it off.
    ///
    /// Returns without a barrier: an `isb`, or the return to another EL, makes it take effect.
    #[inline]
    pub fn save(&mut self, shape: &Shape) {
        self.vmcr = read_vmcr();
        let [group0, group1] = &mut self.active_priorities;
        group0[0] = sysreg::read!("ich_ap0r0_el2");
        group1[0] = sysreg::read!("ich_ap1r0_el2");
        if shape.active_priorities >= 2 {
            group0[1] = sysreg::read!("ich_ap0r1_el2");
            group1[1] = sysreg::read!("ich_ap1r1_el2");
        }
        if shape.active_priorities >= 4 {
            group0[2] = sysreg::read!("ich_ap0r2_el2");
            group1[2] = sysreg::read!("ich_ap1r2_el2");
            group0[3] = sysreg::read!("ich_ap0r3_el2");
            group1[3] = sysreg::read!("ich_ap1r3_el2");
        }
        write_hcr(0);
    }

    /// Gives the pCPU's virtual interface the state of this vCPU. It stays off until its list registers are
    /// filled.
    #[inline]
    pub fn restore(&self, shape: &Shape) {
        write_vmcr(self.vmcr);
        let [group0, group1] = &self.active_priorities;
        sysreg::write!("ich_ap0r0_el2", group0[0]);
        sysreg::write!("ich_ap1r0_el2", group1[0]);
        if shape.active_priorities >= 2 {
            sysreg::write!("ich_ap0r1_el2", group0[1]);
            sysreg::write!("ich_ap1r1_el2", group1[1]);
        }
        if shape.active_priorities >= 4 {
            sysreg::write!("ich_ap0r2_el2", group0[2]);
            sysreg::write!("ich_ap1r2_el2", group1[2]);
            sysreg::write!("ich_ap0r3_el2", group0[3]);
            sysreg::write!("ich_ap1r3_el2", group1[3]);
        }
    }
}

/// Turns the virtual interface of this pCPU off and empties it, as firmware may have left it.
pub fn init(shape: &Shape) {
    write_hcr(0);
    State::default().restore(shape);
    write_lrs(0, &[], shape.list_registers);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[rustfmt::skip]
    fn the_shape_follows_from_the_type_register() {
        let cases = [
            // ICH_VTR_EL2,  LRs, APRs
            (0x90b8_0003,    4,   1), // QEMU, GICv3
            (0x90a8_0003,    4,   1), // QEMU, GICv4
            (0xb410_000f,    16,  2),
            (0xd810_0000,    1,   4),
            (0x901f_001f,    16,  1), // more than there can be
        ];
        for (vtr, list_registers, active_priorities) in cases {
            let shape = Shape { list_registers, active_priorities };
            assert_eq!(Shape::decode(vtr), shape, "{vtr:#x}");
        }
    }
}
