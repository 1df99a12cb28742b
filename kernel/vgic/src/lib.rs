//! Virtual GICv3 with ITS of one domain (Arm IHI 0069).
//!
//! ```text
//!                  inputs: set_level, pulse, sgi, msi          guest: read, write
//!                                  |                                  |
//!                                  v                                  v
//!  +------------------+   +------------------------------------------------------+
//!  | ITS              |   | distributor, redistributors: the state of interrupts |
//!  | devices, events, |-->|   idle -> ready (a queue of a vCPU) <-> listed       |
//!  | collections      |   |             active (likewise)      <-> listed        |
//!  +------------------+   +------------------------------------------------------+
//!                                  |  ^                     |
//!                           refill |  | take_back           | Host::kick
//!                                  v  |                     v
//!                         list registers of a pCPU      the kernel
//! ```
//!
//! This crate decides; the kernel owns the lock, the list registers, and guest memory. List
//! registers stay in hardware while a vCPU is loaded, and nobody looks at them where nothing
//! changed. The kernel does so
//!
//! - when a vCPU is loaded: [`Vgic::refill`], and the physical interrupts behind mapped ones are made
//!   active or not as [`Vgic::mapped_active`] says;
//! - when [`Host::kick`] was called for it and it enters the guest again, and after a maintenance
//!   interrupt: [`Vgic::refill`];
//! - before it waits, as [`Vgic::pending`] may say that it need not, and before its guest is told the
//!   state of interrupts: [`Vgic::take_back`]. If it goes on, [`Vgic::refill`] comes first;
//! - when it is unloaded: [`Vgic::unload`].
//!
//! What a guest sees: one security state (`GICD_CTLR.DS`), affinity routing always on, five bits of
//! priority, and as much of an ITS as there is without GICv4. Both groups work; interrupts reset
//! to group 1, which guests that never heard of groups expect. Reserved registers, and accesses of
//! a width or alignment that a register does not have, read zero and are ignored.
//!
//! Left to the kernel: the timers, `ICC_*` registers other than the SGI ones and `ICC_DIR_EL1`, and
//! what a message's writer may write to.
#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(not(test), warn(clippy::disallowed_macros, clippy::disallowed_methods))]
#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::indexing_slicing))]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod access;
mod distributor;
mod gic;
mod interface;
mod irq;
mod its;
mod lpi;
mod lr;
mod queue;
mod redistributor;
mod sparse;

use alloc::vec::Vec;

use access::Access;
use gic::Gic;
use its::Its;

pub use gic::Group;
pub use interface::Interface;
pub use irq::Intid;
pub use its::Target;
pub use lr::Hcr;

/// There is no memory left for what was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfMemory;

/// A guest address that is not memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadAddress;

/// A message that went nowhere: its event is not mapped, or LPIs are off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dropped;

/// What a domain's interrupt controller is made of.
#[derive(Clone, Copy, Debug)]
pub struct Config<'a> {
    /// The affinity of each vCPU, as its `MPIDR_EL1` has it. At most 4,096 vCPUs.
    pub affinities: &'a [u64],
    /// Shared interrupts. Rounded up to a multiple of 32, and limited to 988.
    pub spis: usize,
    /// Whether there is an ITS, and with it LPIs.
    pub its: bool,
    /// Bits of an ITS DeviceID: 16, and more where there are several PCI segments. At most 20.
    pub device_bits: u32,
    /// `ICH_VTR_EL2` of the machine.
    pub vtr: u64,
}

/// What the controller needs of the kernel.
///
/// It is called with the domain's lock held, so it must not come back to the controller.
pub trait Host {
    /// Has the list registers of `vcpu` brought up to date soon: wakes it if it waits, and takes it
    /// out of the guest if it runs. (One that waits may look at [`Vgic::pending`] first.)
    fn kick(&mut self, vcpu: usize);

    /// Reads guest memory.
    ///
    /// # Errors
    ///
    /// Returns [`BadAddress`] if not all of it is memory.
    fn read_guest(&mut self, ipa: u64, bytes: &mut [u8]) -> Result<(), BadAddress>;

    /// Writes guest memory.
    ///
    /// # Errors
    ///
    /// Returns [`BadAddress`] if not all of it is memory.
    fn write_guest(&mut self, ipa: u64, bytes: &[u8]) -> Result<(), BadAddress>;

    /// Returns the state of the line of a mapped interrupt, if it can be seen from here.
    fn line(&mut self, vcpu: usize, intid: Intid) -> Option<bool> {
        let _ = (vcpu, intid);
        None
    }

    /// Hears that a level-sensitive shared interrupt is no longer active: the guest ended it, by the
    /// register that deactivates it where it has split the two, or cleared its active state.
    ///
    /// Returns whether the line falls with that, as the lines do whose level EL2 holds until the guest
    /// has seen to it. If it stays high the interrupt is pending again, without further ado.
    fn ended(&mut self, intid: Intid) -> bool {
        let _ = intid;
        false
    }
}

/// A part of the controller that is accessed through memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame {
    /// `GICD`, 64 KiB.
    Distributor,
    /// `GICR` of the vCPU, 128 KiB.
    Redistributor(usize),
    /// `GITS` with the translation frame, 128 KiB.
    Its,
}

/// The interrupt controller of one domain.
#[derive(Debug)]
pub struct Vgic {
    gic: Gic,
    its: Option<Its>,
}

impl Vgic {
    /// Makes the controller of a domain, in its state after reset.
    ///
    /// # Errors
    ///
    /// Returns [`OutOfMemory`] if there is none left, or if the configuration exceeds the limits.
    pub fn new(config: &Config<'_>) -> Result<Self, OutOfMemory> {
        let mut vgic = Self {
            gic: Gic::new(config)?,
            its: config.its.then(|| Its::new(config.device_bits)),
        };
        vgic.reset();
        Ok(vgic)
    }

    /// Puts everything into its state after reset, lines and mapped interrupts included.
    ///
    /// No vCPU is loaded: what list registers hold is forgotten.
    pub fn reset(&mut self) {
        if let Some(its) = &mut self.its {
            its.reset(&mut self.gic.budget);
        }
        self.gic.reset();
    }

    /// Answers a guest's read of `size` bytes at `offset` in `frame`.
    ///
    /// If [`Self::shows_state`] says so, call [`Self::refresh`] for the reading vCPU first.
    pub fn read(&mut self, frame: Frame, offset: u64, size: u64, host: &mut impl Host) -> u64 {
        let Some(access) = Access::new(offset, size) else {
            return 0;
        };
        match frame {
            Frame::Distributor => distributor::read(&mut self.gic, access, host),
            Frame::Redistributor(vcpu) => redistributor::read(&mut self.gic, vcpu, access, host),
            Frame::Its => self.its.as_ref().map_or(0, |its| its.read(access)),
        }
    }

    /// Carries out a guest's write of `size` bytes at `offset` in `frame`.
    ///
    /// If [`Self::shows_state`] says so, call [`Self::refresh`] for the writing vCPU first. Look at
    /// [`Self::has_commands`] afterwards.
    pub fn write(
        &mut self,
        frame: Frame,
        offset: u64,
        size: u64,
        value: u64,
        host: &mut impl Host,
    ) {
        let Some(access) = Access::new(offset, size) else {
            return;
        };
        match frame {
            Frame::Distributor => distributor::write(&mut self.gic, access, value, host),
            Frame::Redistributor(vcpu) => {
                redistributor::write(&mut self.gic, vcpu, access, value, host);
            }
            Frame::Its => {
                if let Some(its) = &mut self.its {
                    its.write(&mut self.gic, access, value, host);
                }
            }
        }
    }

    /// Returns whether a register shows what only the list registers know: what is pending and what
    /// is active.
    ///
    /// Interrupts in the list registers of other vCPUs are shown as they were when those were last
    /// looked at, and these vCPUs are kicked, so that a guest that looks again sees the truth.
    #[must_use]
    pub fn shows_state(frame: Frame, offset: u64) -> bool {
        let offset = match frame {
            Frame::Distributor => offset,
            Frame::Redistributor(_) => offset.wrapping_sub(redistributor::SGI_FRAME),
            Frame::Its => return false,
        };
        (0x200..0x400).contains(&offset)
    }
}

/// Returns `count` copies of a value.
fn filled<T: Clone>(count: usize, value: T) -> Result<Vec<T>, OutOfMemory> {
    let mut values = Vec::new();
    values.try_reserve_exact(count).map_err(|_| OutOfMemory)?;
    values.resize(count, value);
    Ok(values)
}
