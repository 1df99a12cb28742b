//! What each pCPU has of its own.

use crate::domain::Domain;
use crate::sched::Queue;
use crate::sysreg::Features;
use crate::vcpu::{State, Vcpu, VcpuRef};
use arch::sysreg;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use kernel::placement::Load;
use spin::Mutex;

/// A physical processing element.
pub(crate) struct Pcpu {
    /// Its number: the boot pCPU is 0, the others follow in the device tree's order.
    pub(crate) number: usize,
    /// Its affinity, as MPIDR_EL1 has it.
    pub(crate) mpidr: u64,
    /// It has started.
    pub(crate) online: AtomicBool,
    /// Something changed that the scheduler must look at before a guest is entered.
    pub(crate) resched: AtomicBool,
    /// What it does, as `Load` encodes it: a hint for others.
    load: AtomicUsize,
    /// Who waits for it.
    pub(crate) queue: Mutex<Queue>,
    local: UnsafeCell<Local>,
}

// SAFETY: `local` is reached by the pCPU itself only (`Pcpu::local`); the rest is made for sharing.
unsafe impl Sync for Pcpu {}

/// What only the pCPU itself looks at.
#[derive(Default)]
pub(crate) struct Local {
    /// The vCPU whose registers are loaded, whether it runs or waits.
    pub(crate) loaded: Option<VcpuRef>,
    /// The FP and SIMD registers are the loaded vCPU's, and may have changed.
    pub(crate) simd_live: bool,
    /// When the running vCPU's time slice ends.
    pub(crate) slice_end: u64,
    /// What the hypervisor's timer is set to.
    pub(crate) timer: Option<u64>,
    /// When to look again at devices that have more to say.
    pub(crate) devices: Option<u64>,
    /// What it can do, as guests see it.
    pub(crate) features: Features,
    /// Which vCPU of a domain was loaded last, for some of the domains (`comes_after_another`).
    ran: [Option<(u32, usize)>; RAN],
}

/// Domains for which a pCPU remembers whom it loaded last.
const RAN: usize = 16;

impl Local {
    /// Notes that a vCPU is loaded here, and returns whether another one of its domain may have been
    /// since it was here: then the TLB may hold what that one translates in its own way.
    pub(crate) fn comes_after_another(&mut self, domain: u32, vcpu: usize) -> bool {
        // Where two domains meet in a place, each takes the other for a stranger, which costs time.
        let place = &mut self.ran[domain as usize % RAN];
        place.replace((domain, vcpu)) != Some((domain, vcpu))
    }
}

impl Pcpu {
    /// Makes the data of pCPU `number`.
    pub(crate) fn new(number: usize, mpidr: u64) -> Self {
        Self {
            number,
            mpidr,
            online: AtomicBool::new(false),
            resched: AtomicBool::new(false),
            load: AtomicUsize::new(Load::Runs(0).encode()),
            queue: Mutex::new(Queue::default()),
            local: UnsafeCell::new(Local::default()),
        }
    }

    /// Says that the caller runs on this pCPU from now on.
    pub(crate) fn adopt(&'static self) {
        sysreg::write!("tpidr_el2", core::ptr::from_ref(self).addr() as u64);
    }

    /// Returns what only this pCPU looks at.
    ///
    /// # Safety
    ///
    /// The caller runs on this pCPU, and keeps no other reference to any of it meanwhile: callers
    /// do not hold the result across a call that may take it too.
    #[expect(clippy::mut_from_ref, reason = "the contract above makes it unique")]
    pub(crate) unsafe fn local(&self) -> &mut Local {
        // SAFETY: as above; interrupts are masked at EL2, so nothing comes between.
        unsafe { &mut *self.local.get() }
    }

    /// Returns what this pCPU does, as far as is known.
    pub(crate) fn load(&self) -> Load {
        // Relaxed: a guess; `sched::idle` says why none is lost.
        Load::decode(self.load.load(Ordering::Relaxed))
    }

    /// Says what this pCPU does.
    pub(crate) fn set_load(&self, load: Load) {
        // Relaxed: as above.
        self.load.store(load.encode(), Ordering::Relaxed);
    }

    /// Asks the scheduler to look again before this pCPU enters a guest.
    pub(crate) fn set_resched(&self) {
        // Relaxed: read by the same pCPU, or after the interrupt that tells of it.
        self.resched.store(true, Ordering::Relaxed);
    }
}

/// Returns the pCPU that the caller runs on.
#[inline(always)]
pub(crate) fn this() -> &'static Pcpu {
    let address = sysreg::read!("tpidr_el2");
    // SAFETY: `adopt` is the first thing that a pCPU does, with data that is never freed.
    unsafe { &*(address as *const Pcpu) }
}

/// Returns the pCPU that the caller runs on, or `None` before it is known.
pub(crate) fn try_this() -> Option<&'static Pcpu> {
    let address = sysreg::read!("tpidr_el2");
    // SAFETY: entry.S sets the register to zero, and `adopt` to data that is never freed.
    unsafe { (address as *const Pcpu).as_ref() }
}

/// A vCPU that is loaded on the pCPU that handles its exit.
pub(crate) struct Running<'a> {
    /// Where.
    pub(crate) cpu: &'static Pcpu,
    /// Whose.
    pub(crate) domain: &'a Domain,
    /// Which.
    pub(crate) vcpu: &'a Vcpu,
    /// Its registers, as far as they are not in the machine's.
    pub(crate) state: &'a mut State,
}

impl Running<'_> {
    /// Returns the reference that lists and other pCPUs keep of the vCPU.
    pub(crate) fn reference(&self) -> VcpuRef {
        // SAFETY: runs on this pCPU; the reference to it is gone after the clone.
        let loaded = unsafe { &self.cpu.local().loaded };
        loaded.clone().expect("the running vCPU is loaded")
    }
}
