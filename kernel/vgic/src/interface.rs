//! The virtual CPU interface of the pCPU on which a vCPU is loaded, and what moves between it and here.
//!
//! ```text
//!         refill                                   guest takes and ends interrupts
//!   queues -----> list registers <----------------------------------------------->
//!          <----- take_back, unload
//! ```
//!
//! What comes while list registers are free is posted: it is in no queue any more, and in hardware only
//! once `refill` has run. So who asks what a vCPU has, or fills list registers from the queues again,
//! takes that back too. Nothing is posted to a vCPU that is not loaded: it may stay so, and what is posted
//! goes nowhere else.

use crate::lr::LIST_REGISTERS;
use crate::{Host, Vgic};

/// A virtual CPU interface (Arm IHI 0069, chapter 12).
pub trait Interface {
    /// Reads `ICH_HCR_EL2`.
    fn hcr(&self) -> u64;
    /// Writes `ICH_HCR_EL2`.
    fn set_hcr(&mut self, value: u64);
    /// Reads `ICH_VMCR_EL2`.
    fn vmcr(&self) -> u64;
    /// Returns how many list registers there are.
    fn list_registers(&self) -> usize;
    /// Reads the first list registers.
    fn read(&self, lrs: &mut [u64]);
    /// Writes the first list registers.
    fn write(&mut self, lrs: &[u64]);
}

impl Vgic {
    /// Takes back what the list registers of a loaded vCPU hold, and what was posted to it, before it is
    /// looked at or filled anew. Returns whether anything was: then they have to be filled again.
    #[inline]
    pub fn take_back(
        &mut self,
        vcpu: usize,
        interface: &mut impl Interface,
        host: &mut impl Host,
    ) -> bool {
        if !self.lists(vcpu) {
            return false;
        }
        self.empty(vcpu, interface, host);
        true
    }

    /// Takes everything back from a vCPU that is loaded no longer.
    #[inline]
    pub fn unload(&mut self, vcpu: usize, interface: &mut impl Interface, host: &mut impl Host) {
        if !self.take_back(vcpu, interface, host) {
            self.gic.close(vcpu);
        }
    }

    #[inline]
    fn empty(&mut self, vcpu: usize, interface: &mut impl Interface, host: &mut impl Host) {
        let mut lrs = [0; LIST_REGISTERS];
        let used = self.used(vcpu);
        let lrs = lrs.get_mut(..used).unwrap_or_default();
        interface.read(lrs);
        self.sync(vcpu, interface.hcr(), lrs, host);
        // What is left in hardware means nothing, and must raise no maintenance interrupt.
        interface.set_hcr(0);
    }

    /// Brings the list registers of a loaded vCPU up to date. Returns the PPIs whose physical interrupt
    /// has to be made inactive on this pCPU, a bit for each INTID of the domain's.
    #[inline]
    pub fn refill(
        &mut self,
        vcpu: usize,
        interface: &mut impl Interface,
        host: &mut impl Host,
    ) -> u32 {
        // What was posted to empty list registers only has to be written.
        if self.used(vcpu) != 0 || self.needs_sync(vcpu) {
            self.empty(vcpu, interface, host);
        }
        let mut lrs = [0; LIST_REGISTERS];
        let lrs = lrs
            .get_mut(..interface.list_registers())
            .unwrap_or_default();
        let listing = self.flush(vcpu, interface.vmcr(), lrs);
        interface.write(lrs);
        interface.set_hcr(listing.hcr.bits());
        listing.deactivate
    }
}
