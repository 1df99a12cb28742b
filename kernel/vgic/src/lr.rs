//! The hypervisor's side of the virtual CPU interface: list registers and controls
//! (Arm IHI 0069, section 12.4).
//!
//! ```text
//!   63   62   61  60    55      48     44    41     32   31          0
//!  +-------+----+---+  +----------+   +--------+----+-+ +-------------+
//!  | state | HW | G |  | priority |   | pINTID, or EOI| |   vINTID    |
//!  +-------+----+---+  +----------+   +--------+----+-+ +-------------+
//! ```

use bitflags::bitflags;

use crate::irq::Intid;

/// List registers that the architecture allows.
pub(crate) const LIST_REGISTERS: usize = 16;

bitflags! {
    /// The bits of `ICH_LR<n>_EL2` that stand alone.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) struct Lr: u64 {
        /// A maintenance interrupt when the guest ends it (only without `HW`).
        const EOI = 1 << 41;
        const GROUP1 = 1 << 60;
        /// Ending it deactivates the physical interrupt in the pINTID field.
        const HW = 1 << 61;
        const PENDING = 1 << 62;
        const ACTIVE = 1 << 63;
        const _ = !0;
    }

    /// The bits of `ICH_HCR_EL2` that [`crate::Vgic::refill`] decides.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Hcr: u64 {
        /// The virtual CPU interface works.
        const EN = 1 << 0;
        /// Maintenance interrupt while at most one list register is in use.
        const UIE = 1 << 1;
        /// Maintenance interrupt while `EOIcount` is not zero.
        const LRENPIE = 1 << 2;
        /// Maintenance interrupt while nothing is pending in the list registers.
        const NPIE = 1 << 3;
        /// Maintenance interrupt while the guest has group 0 enabled.
        const VGRP0EIE = 1 << 4;
        /// Maintenance interrupt while the guest has group 0 disabled.
        const VGRP0DIE = 1 << 5;
        /// Maintenance interrupt while the guest has group 1 enabled.
        const VGRP1EIE = 1 << 6;
        /// Maintenance interrupt while the guest has group 1 disabled.
        const VGRP1DIE = 1 << 7;
        /// Writes to `ICC_DIR_EL1` are trapped.
        const TDIR = 1 << 14;
    }
}

impl Lr {
    pub(crate) const fn of(intid: Intid, priority: u8) -> Self {
        Self::from_bits_retain(intid.0 as u64 | (priority as u64) << 48)
    }

    pub(crate) const fn with_physical(self, physical: u16) -> Self {
        Self::from_bits_retain(self.bits() | Self::HW.bits() | (physical as u64 & 0x1fff) << 32)
    }

    pub(crate) const fn intid(self) -> Intid {
        Intid((self.bits() & 0xffff) as u16)
    }

    pub(crate) const fn is_invalid(self) -> bool {
        self.bits() & (Self::PENDING.bits() | Self::ACTIVE.bits()) == 0
    }
}

/// Returns `ICH_HCR_EL2.EOIcount`: interrupts that the guest ended outside the list registers.
pub(crate) const fn eoi_count(hcr: u64) -> u32 {
    (hcr >> 27 & 0x1f) as u32
}

/// Returns the groups that the guest has enabled at its CPU interface, in `ICH_VMCR_EL2`.
pub(crate) const fn enabled_groups(vmcr: u64) -> u8 {
    (vmcr & 3) as u8
}

/// Returns the priority that an interrupt must be more urgent than, in `ICH_VMCR_EL2`.
pub(crate) const fn priority_mask(vmcr: u64) -> u8 {
    (vmcr >> 24 & 0xff) as u8
}

/// What `ICH_VTR_EL2` says of the virtual CPU interface.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Vtr(pub(crate) u64);

impl Vtr {
    /// Returns the number of list registers, at most 16.
    pub(crate) const fn list_registers(self) -> usize {
        let count = (self.0 & 0x1f) as usize + 1;
        if count > 16 { 16 } else { count }
    }

    /// Returns whether `ICC_DIR_EL1` can be trapped alone (`TDS`).
    pub(crate) const fn traps_dir(self) -> bool {
        self.0 & 1 << 19 != 0
    }
}
