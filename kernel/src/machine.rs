//! What the machine consists of, found once at boot.

use crate::pcpu::Pcpu;
use alloc::vec::Vec;
use arch::gic::{Distributor, Local, Redistributor, virt};
use arch::mmio::Window;
use arch::table::Vmids;
use core::sync::atomic::Ordering;
use spin::{Mutex, Once};

/// The machine.
pub(crate) struct Machine {
    /// All pCPUs of the device tree; those that have started are `online`.
    pub(crate) pcpus: Vec<Pcpu>,
    /// Counts of the system counter in a second.
    pub(crate) frequency: u64,
    /// The distributor.
    pub(crate) distributor: Mutex<Distributor<Window>>,
    /// The redistributor of each pCPU.
    pub(crate) redistributors: Vec<Mutex<Redistributor<&'static Window>>>,
    /// What the virtual CPU interface is like, alike on all pCPUs.
    pub(crate) interface: virt::Shape,
    /// ICH_VTR_EL2.
    pub(crate) vtr: u64,
    /// VTCR_EL2, alike on all pCPUs.
    pub(crate) vtcr: u64,
    /// Who has which VMID.
    pub(crate) vmids: Mutex<Vmids>,
    /// The machine's UART's interrupt.
    pub(crate) uart: Option<u32>,
}

static MACHINE: Once<Machine> = Once::new();

/// Says what the machine is.
pub(crate) fn set(machine: Machine) -> &'static Machine {
    MACHINE.call_once(|| machine)
}

/// Returns the machine.
///
/// # Panics
///
/// Before `set`: boot is in order.
#[inline(always)]
pub(crate) fn get() -> &'static Machine {
    MACHINE.get().expect("the machine is known")
}

impl Machine {
    /// Returns the pCPUs that have started.
    pub(crate) fn online(&self) -> impl Iterator<Item = &Pcpu> {
        // Relaxed: a pCPU that has just started misses nothing by being left out.
        self.pcpus
            .iter()
            .filter(|cpu| cpu.online.load(Ordering::Relaxed))
    }

    /// Returns so many microseconds in counts of the system counter.
    pub(crate) fn ticks(&self, microseconds: u64) -> u64 {
        microseconds * self.frequency / 1_000_000
    }

    /// Makes a private interrupt of this pCPU active or inactive.
    pub(crate) fn set_active(&self, cpu: &Pcpu, interrupt: Local, active: bool) {
        self.redistributors[cpu.number]
            .lock()
            .set_active(interrupt, active);
    }
}
