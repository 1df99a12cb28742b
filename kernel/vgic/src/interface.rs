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

use crate::{Hcr, Host, Vgic};

/// A virtual CPU interface (Arm IHI 0069, chapter 12).
pub trait Interface {
    /// Reads `ICH_HCR_EL2`.
    fn hcr(&self) -> u64;
    /// Writes `ICH_HCR_EL2`.
    fn set_hcr(&mut self, value: u64);
    /// Reads `ICH_VMCR_EL2`.
    fn vmcr(&self) -> u64;
    /// Reads a list register.
    fn read(&self, index: usize) -> u64;
    /// Writes the list registers from `first` on, and zero to all behind `lrs`.
    fn write(&mut self, first: usize, lrs: &[u64]);
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
        if !self.gic.lists(vcpu) {
            return false;
        }
        self.gic.sync(vcpu, interface, host);
        // What is left in hardware means nothing, and must raise no maintenance interrupt.
        interface.set_hcr(0);
        true
    }

    /// Takes everything back from a vCPU that is loaded no longer.
    #[inline]
    pub fn unload(&mut self, vcpu: usize, interface: &mut impl Interface, host: &mut impl Host) {
        if !self.take_back(vcpu, interface, host) {
            self.gic.close(vcpu);
        }
    }

    /// Brings the list registers of a loaded vCPU up to date. Returns the PPIs whose physical interrupt
    /// has to be made inactive on this pCPU, a bit for each INTID of the domain's.
    ///
    /// What is in hardware is looked at if it has to be chosen anew, or if `ICH_HCR_EL2.En` is not set: who
    /// takes the maintenance interrupt clears it.
    #[inline]
    pub fn refill(
        &mut self,
        vcpu: usize,
        interface: &mut impl Interface,
        host: &mut impl Host,
    ) -> u32 {
        let hcr = Hcr::from_bits_retain(interface.hcr());
        if (self.gic.is_out_of_date(vcpu) || !hcr.contains(Hcr::EN))
            && !self.gic.renew(vcpu, interface, host)
        {
            self.gic.sync(vcpu, interface, host);
        }
        self.gic.flush(vcpu, interface)
    }
}
