//! Interrupts in the order of their priority: a list for each of the 32 priorities.
//!
//! The links are in the interrupts, so that adding, removing and finding the most urgent one take
//! the same few steps however many there are, and nothing is allocated. Interrupts of one priority
//! are served in the order in which they came, so that none can starve another.

use crate::irq::{Intid, Irqs, NONE};

/// Priorities that exist: the upper five bits of the register's eight.
const LEVELS: usize = 32;

#[derive(Clone, Copy, Debug)]
struct Ends {
    first: Intid,
    last: Intid,
}

/// Which end of its priority's list an interrupt is put at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// It was taken from there.
    Front,
    /// It is new.
    Back,
}

/// The queue. Its members are at home on one vCPU, which the methods are given: private interrupts
/// have the same numbers on each.
#[derive(Clone, Debug)]
pub(crate) struct Queue {
    /// The most significant bit stands for level 0.
    levels: u32,
    ends: [Ends; LEVELS],
}

impl Queue {
    pub(crate) const fn new() -> Self {
        Self {
            levels: 0,
            ends: [Ends {
                first: NONE,
                last: NONE,
            }; LEVELS],
        }
    }

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.levels == 0
    }

    /// Returns the level of the most urgent member, 32 if there is none.
    #[inline]
    pub(crate) fn best_level(&self) -> u32 {
        self.levels.leading_zeros()
    }

    /// Returns the most urgent member.
    #[inline]
    pub(crate) fn first(&self) -> Option<Intid> {
        Some(self.ends.get(self.best_level() as usize)?.first)
    }

    /// Removes the most urgent member.
    #[inline]
    pub(crate) fn pop(&mut self, irqs: &mut Irqs, vcpu: usize) -> Option<Intid> {
        let level = self.best_level() as usize;
        let ends = self.ends.get_mut(level)?;
        let intid = ends.first;
        let irq = irqs.get_mut(vcpu, intid)?;
        ends.first = core::mem::replace(&mut irq.next, NONE);
        if ends.first == NONE {
            self.levels &= !bit(level);
        } else if let Some(next) = irqs.get_mut(vcpu, ends.first) {
            next.previous = NONE;
        }
        Some(intid)
    }

    /// Adds an interrupt that is in no queue.
    pub(crate) fn push(&mut self, irqs: &mut Irqs, vcpu: usize, intid: Intid, end: End) {
        let Some(irq) = irqs.get_mut(vcpu, intid) else {
            return;
        };
        let level = irq.level();
        let Some(ends) = self.ends.get_mut(level) else {
            return;
        };
        if self.levels & bit(level) == 0 {
            self.levels |= bit(level);
            (irq.next, irq.previous) = (NONE, NONE);
            (ends.first, ends.last) = (intid, intid);
            return;
        }
        let neighbor = match end {
            End::Front => {
                (irq.next, irq.previous) = (ends.first, NONE);
                core::mem::replace(&mut ends.first, intid)
            }
            End::Back => {
                (irq.next, irq.previous) = (NONE, ends.last);
                core::mem::replace(&mut ends.last, intid)
            }
        };
        if let Some(neighbor) = irqs.get_mut(vcpu, neighbor) {
            match end {
                End::Front => neighbor.previous = intid,
                End::Back => neighbor.next = intid,
            }
        }
    }

    /// Removes an interrupt that is in this queue.
    pub(crate) fn remove(&mut self, irqs: &mut Irqs, vcpu: usize, intid: Intid) {
        let Some(irq) = irqs.get_mut(vcpu, intid) else {
            return;
        };
        let (level, next, previous) = (irq.level(), irq.next, irq.previous);
        (irq.next, irq.previous) = (NONE, NONE);
        let Some(ends) = self.ends.get_mut(level) else {
            return;
        };
        if next == NONE && previous == NONE {
            self.levels &= !bit(level);
            return;
        }
        match irqs.get_mut(vcpu, next).filter(|_| next != NONE) {
            Some(next) => next.previous = previous,
            None => ends.last = previous,
        }
        match irqs.get_mut(vcpu, previous).filter(|_| previous != NONE) {
            Some(previous) => previous.next = next,
            None => ends.first = next,
        }
    }
}

const fn bit(level: usize) -> u32 {
    0x8000_0000 >> (level & 31)
}
