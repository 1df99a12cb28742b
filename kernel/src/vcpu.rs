//! A vCPU: its registers and where it stands.

use crate::domain::Domain;
use crate::mmio::Pending;
use crate::replay::Replay;
use crate::servers::Asked;
use alloc::collections::TryReserveError;
use alloc::sync::Arc;
use alloc::vec::Vec;
use arch::context::{Debug, El1, Simd, Timers};
use arch::frame::Frame;
use arch::gic;
use core::cell::UnsafeCell;
use core::mem::offset_of;
use core::sync::atomic::{AtomicU32, Ordering};
use spin::Mutex;

/// Names a vCPU and keeps its domain alive.
#[derive(Clone)]
pub(crate) struct VcpuRef {
    /// Whose.
    pub(crate) domain: Arc<Domain>,
    /// Which of the domain's.
    pub(crate) index: usize,
}

impl VcpuRef {
    /// Returns the vCPU.
    pub(crate) fn get(&self) -> &Vcpu {
        &self.domain.vcpus[self.index]
    }

    /// Returns whether both name the same vCPU.
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.domain, &other.domain) && self.index == other.index
    }
}

/// A virtual processing element.
pub(crate) struct Vcpu {
    /// Its number in the domain.
    pub(crate) index: usize,
    /// Its affinity as the guest sees it in MPIDR_EL1.
    pub(crate) mpidr: u64,
    /// What has to be done before its guest is entered again: `request` bits.
    pub(crate) requests: AtomicU32,
    /// Where it stands.
    pub(crate) run: Mutex<Run>,
    state: UnsafeCell<State>,
}

// SAFETY: `state` is reached by whoever owns it (`Vcpu::state`); the rest is made for sharing.
unsafe impl Sync for Vcpu {}
// SAFETY: nothing in it belongs to a thread.
unsafe impl Send for Vcpu {}

/// What may be asked of a vCPU before its guest is entered again.
pub(crate) mod request {
    /// Bring the list registers up to date with the virtual GIC.
    pub(crate) const INTERRUPTS: u32 = 1 << 0;
    /// The domain stops: unload, without saving.
    pub(crate) const STOP: u32 = 1 << 1;
    /// A device model answered.
    pub(crate) const ANSWER: u32 = 1 << 2;
}

/// Where a vCPU stands.
pub(crate) struct Run {
    /// What it does.
    pub(crate) activity: Activity,
    /// The pCPU that has its registers, or is about to load them.
    pub(crate) loaded: Option<usize>,
    /// The pCPU that had them last.
    pub(crate) last: usize,
    /// The pCPU whose timer wakes it.
    pub(crate) sleeps_on: Option<usize>,
}

/// What a vCPU does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Activity {
    /// Powered off, in PSCI's sense.
    Off,
    /// Waits in a pCPU's queue.
    Ready,
    /// Runs on the pCPU where it is loaded.
    Running,
    /// Waits for an interrupt, or for whatever else is worth trying again.
    Blocked,
    /// Waits for a device model's answer, and for nothing else.
    Waiting,
}

/// The registers of a vCPU.
pub(crate) struct State {
    /// What every exit saves. While the vCPU is loaded SP_EL2 may point here.
    pub(crate) frame: Frame,
    /// EL1's registers, while not loaded.
    pub(crate) el1: El1,
    /// Its timers, while not loaded.
    pub(crate) timers: Timers,
    /// The virtual CPU interface, while not loaded.
    pub(crate) interface: gic::virt::State,
    /// FP and SIMD, while not live.
    pub(crate) simd: Simd,
    /// The debug registers.
    pub(crate) debug: Debug,
    /// The guest has used them.
    pub(crate) debugs: bool,
    /// The OS lock of the debug registers (OSLSR_EL1.OSLK).
    pub(crate) os_lock: bool,
    /// Writes to its translation registers trap, after maintenance by set and way.
    pub(crate) watches_caches: bool,
    /// A virtual SError is pending, while not loaded.
    pub(crate) serror_pending: bool,
    /// What the vCPU waits for.
    pub(crate) pending: Option<Pending>,
    /// The load or store that is being carried out in parts.
    pub(crate) replay: Option<Replay>,
    /// Requests from before resets of the domain, or of functions that have gone, which device models have
    /// not answered yet.
    pub(crate) stale: Vec<Asked>,
    /// The vCPU sleeps in IOREQ_WAIT.
    pub(crate) waits_for_work: bool,
}

impl State {
    /// Makes the registers of a vCPU that starts at `entry` with `x0`.
    pub(crate) fn new(entry: u64, x0: u64) -> Self {
        Self {
            frame: Frame::new(entry, x0),
            el1: El1::new(),
            timers: Timers::default(),
            interface: gic::virt::State::default(),
            simd: Simd::default(),
            debug: Debug::default(),
            debugs: false,
            os_lock: false,
            watches_caches: false,
            serror_pending: false,
            pending: None,
            replay: None,
            stale: Vec::new(),
            waits_for_work: false,
        }
    }

    /// Lets nobody wait for what a vCPU that is off has asked a device model.
    pub(crate) fn forget_asked(&mut self) -> Result<(), TryReserveError> {
        if !matches!(self.pending, None | Some(Pending::Control(_))) {
            self.stale.try_reserve(1)?;
            let pending = self.pending.take();
            self.stale.extend(pending.and_then(Pending::into_asked));
        }
        Ok(())
    }
}

impl Vcpu {
    /// Makes a vCPU that is off.
    pub(crate) fn new(index: usize, mpidr: u64, pcpu: usize) -> Self {
        Self {
            index,
            mpidr,
            requests: AtomicU32::new(0),
            run: Mutex::new(Run {
                activity: Activity::Off,
                loaded: None,
                last: pcpu,
                sleeps_on: None,
            }),
            state: UnsafeCell::new(State::new(0, 0)),
        }
    }

    /// Returns where the registers are.
    ///
    /// They belong to the pCPU on which the vCPU is loaded; to who holds the lock `run` while it is
    /// loaded nowhere. Who makes a reference of the pointer is one of the two.
    pub(crate) fn state(&self) -> *mut State {
        self.state.get()
    }

    /// Returns the vCPU that this frame belongs to.
    ///
    /// # Safety
    ///
    /// It is a vCPU's, which lives as long as the result is used.
    pub(crate) unsafe fn of<'a>(frame: *const Frame) -> &'a Self {
        let offset = offset_of!(Self, state) + offset_of!(State, frame);
        // SAFETY: as above; an `UnsafeCell` is laid out as what it holds.
        unsafe { &*frame.byte_sub(offset).cast() }
    }

    /// Asks for something before the guest is entered again. Who asks then sees to it that the
    /// vCPU's pCPU looks (`sched::notify`).
    pub(crate) fn request(&self, bits: u32) {
        // Release: what the request is about is visible to who takes it.
        self.requests.fetch_or(bits, Ordering::Release);
    }

    /// Takes all requests.
    pub(crate) fn take_requests(&self) -> u32 {
        self.take(u32::MAX)
    }

    /// Takes those of the requests `bits` that are there, and leaves others for who answers them.
    pub(crate) fn take(&self, bits: u32) -> u32 {
        // Acquire: pairs with `request`.
        self.requests.fetch_and(!bits, Ordering::Acquire) & bits
    }
}
