//! The state of one interrupt, and where to find it.

use alloc::vec::Vec;

use bitflags::bitflags;

use crate::sparse::{Budget, CHUNK, Sparse};
use crate::{OutOfMemory, filled};

/// Interrupts of one vCPU: 16 SGIs and 16 PPIs.
pub(crate) const PRIVATE: usize = 32;
/// The first LPI (Arm IHI 0069, section 2.2.1).
pub(crate) const FIRST_LPI: usize = 8192;
/// LPIs with 16 bits of INTID.
pub(crate) const LPIS: usize = 0x1_0000 - FIRST_LPI;
/// No vCPU.
pub(crate) const NOBODY: u16 = 0xffff;
/// No interrupt: the INTID that reads as "spurious".
pub(crate) const NONE: Intid = Intid(1023);

/// An interrupt's number (Arm IHI 0069, section 2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(transparent)]
pub struct Intid(pub(crate) u16);

impl Intid {
    /// Makes an INTID of its number.
    #[must_use]
    pub const fn new(number: u16) -> Self {
        Self(number)
    }

    /// Returns the INTID of the shared interrupt that device trees call `number`.
    #[must_use]
    pub const fn spi(number: u16) -> Self {
        Self(number + 32)
    }

    /// Returns its number.
    #[must_use]
    pub const fn get(self) -> u16 {
        self.0
    }

    /// Makes an INTID of an index into a table of at most 65,536.
    pub(crate) const fn at(index: usize) -> Self {
        Self((index as u64 & 0xffff) as u16)
    }

    pub(crate) fn index(self) -> usize {
        usize::from(self.0)
    }

    pub(crate) fn is_private(self) -> bool {
        self.index() < PRIVATE
    }

    pub(crate) fn is_lpi(self) -> bool {
        self.index() >= FIRST_LPI
    }
}

bitflags! {
    /// What is known of an interrupt.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub(crate) struct Flags: u16 {
        const ENABLED = 1 << 0;
        /// Group 1, else group 0.
        const GROUP1 = 1 << 1;
        /// Edge-triggered, else level-sensitive.
        const EDGE = 1 << 2;
        /// Pending by an edge, a message, or a write to a set-pending register.
        const LATCH = 1 << 3;
        /// The line is high. For a mapped interrupt: the physical one came.
        const LINE = 1 << 4;
        /// Active; while in a list register: as of the last look at it.
        const ACTIVE = 1 << 5;
        /// The latch went into the list register, and comes back unless it is acknowledged.
        const PUSHED = 1 << 6;
        /// The physical interrupt came again while this one was in a list register.
        const RAISED = 1 << 7;
        /// The physical interrupt is active on behalf of this one.
        const PHYSICAL = 1 << 8;
        /// Becomes active when it leaves its list register: the guest wrote so.
        const MAKE_ACTIVE = 1 << 9;
        /// Becomes inactive when it leaves its list register: the guest wrote so.
        const MAKE_IDLE = 1 << 10;
        /// Goes to any vCPU (`GICD_IROUTER.Interrupt_Routing_Mode`).
        const ANY = 1 << 11;
        /// What may make it pending.
        const PENDING = Self::LATCH.bits() | Self::LINE.bits();
    }
}

/// Where an interrupt is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Place {
    /// Nowhere: there is nothing to deliver.
    #[default]
    Idle,
    /// In a queue of what can be delivered to its `home`.
    Ready,
    /// In the queue of what is active on its `home`, outside the list registers.
    Active,
    /// In a list register of its `home`.
    Listed,
}

/// One interrupt.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Irq {
    pub(crate) flags: Flags,
    pub(crate) priority: u8,
    pub(crate) place: Place,
    /// The vCPU that it goes to when it is pending, or [`NOBODY`].
    pub(crate) route: u16,
    /// The vCPU that has it now, unless it is idle.
    pub(crate) home: u16,
    pub(crate) next: Intid,
    pub(crate) previous: Intid,
}

impl Default for Irq {
    fn default() -> Self {
        Self {
            flags: Flags::empty(),
            priority: 0,
            place: Place::Idle,
            route: NOBODY,
            home: NOBODY,
            next: NONE,
            previous: NONE,
        }
    }
}

impl Irq {
    pub(crate) fn reset(route: u16, edge: bool) -> Self {
        let mut flags = Flags::GROUP1;
        flags.set(Flags::EDGE, edge);
        Self {
            flags,
            route,
            ..Self::default()
        }
    }

    pub(crate) fn has(&self, flags: Flags) -> bool {
        self.flags.contains(flags)
    }

    /// Returns whether it is pending, the list registers apart.
    pub(crate) fn is_pending(&self) -> bool {
        self.has(Flags::LATCH) || self.flags & (Flags::LINE | Flags::EDGE) == Flags::LINE
    }

    pub(crate) fn group(&self) -> usize {
        usize::from(self.has(Flags::GROUP1))
    }

    /// Returns its place among the 32 priorities, 0 is the most urgent.
    pub(crate) fn level(&self) -> usize {
        usize::from(self.priority >> 3)
    }
}

/// All interrupts of a domain.
#[derive(Debug)]
pub(crate) struct Irqs {
    private: Vec<[Irq; PRIVATE]>,
    shared: Vec<Irq>,
    lpis: Sparse<Irq>,
}

impl Irqs {
    pub(crate) fn new(vcpus: usize, shared: usize) -> Result<Self, OutOfMemory> {
        Ok(Self {
            private: filled(vcpus, [Irq::default(); PRIVATE])?,
            shared: filled(shared, Irq::default())?,
            lpis: Sparse::new(),
        })
    }

    /// Gives every interrupt its state after reset, and frees the LPIs.
    pub(crate) fn reset(&mut self, budget: &mut Budget) {
        for (vcpu, irqs) in self.private.iter_mut().enumerate() {
            let route = u16::try_from(vcpu).unwrap_or(NOBODY);
            for (number, irq) in irqs.iter_mut().enumerate() {
                *irq = Irq::reset(route, number < 16);
            }
        }
        // GICD_IROUTERn is unknown after reset; ours is 0.0.0.0, which the caller resolves.
        self.shared.fill(Irq::reset(NOBODY, false));
        self.lpis.clear(budget);
    }

    pub(crate) fn shared_count(&self) -> usize {
        self.shared.len()
    }

    #[inline]
    pub(crate) fn get(&self, vcpu: usize, intid: Intid) -> Option<&Irq> {
        match intid.index() {
            index @ ..PRIVATE => self.private.get(vcpu)?.get(index),
            index @ ..FIRST_LPI => self.shared.get(index - PRIVATE),
            index => self.lpis.get(index - FIRST_LPI),
        }
    }

    #[inline]
    pub(crate) fn get_mut(&mut self, vcpu: usize, intid: Intid) -> Option<&mut Irq> {
        match intid.index() {
            index @ ..PRIVATE => self.private.get_mut(vcpu)?.get_mut(index),
            index @ ..FIRST_LPI => self.shared.get_mut(index - PRIVATE),
            index => self.lpis.get_mut(index - FIRST_LPI),
        }
    }

    /// Makes an LPI exist. It is an edge of group 1 that is not enabled.
    pub(crate) fn make_lpi(
        &mut self,
        intid: Intid,
        budget: &mut Budget,
    ) -> Result<(), OutOfMemory> {
        let index = intid.index().checked_sub(FIRST_LPI).ok_or(OutOfMemory)?;
        let irq = self.lpis.entry(index, budget)?;
        irq.flags |= Flags::EDGE | Flags::GROUP1;
        Ok(())
    }

    /// Returns the end of the numbers that [`Self::lpi_chunk`] knows.
    pub(crate) fn lpi_chunks(&self) -> usize {
        self.lpis.chunk_count()
    }

    /// Returns the numbers of the LPIs in a chunk, if it exists.
    pub(crate) fn lpi_chunk(&self, number: usize) -> Option<core::ops::Range<usize>> {
        let first = FIRST_LPI + number * CHUNK;
        self.lpis
            .chunk_exists(number)
            .then_some(first..first + CHUNK)
    }
}
