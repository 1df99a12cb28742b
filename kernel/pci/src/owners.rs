//! Who has which function, and what follows for who may have others.
//!
//! ```text
//!              claim                  settle
//!   Nobody ------------> Domain, not ---------> Domain, settled
//!    ^  ^                  settled                  |
//!    |  |    release          |                     | take_back
//!    |  +---------------------+<--------------------+
//!    |   end of reset
//!    +--------------------- Resetting: with another function, on the same bus
//! ```
//!
//! A reset of a physical function ends its virtual ones, so it is not reset while somebody has one of them.
//! It can be claimed all the same if nobody had it since its last reset; and its virtual ones, if nobody
//! has them, are `Resetting` while it is.
//!
//! A function whose reset failed is `Broken` where it would be `Nobody`'s: nobody can say whether it is
//! quiet, so others that cannot be kept apart from it are not given away either.

use alloc::vec::Vec;

use vpci::Sbdf;

use crate::device::{Header, Hierarchy};
use crate::group::{Groups, Reason};
use crate::reset::{Method, Reset};
use crate::{OutOfMemory, push};

/// Who has a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// Nobody. It decodes nothing, is no bus master, and its requests are refused.
    Nobody,
    /// Nobody, and its last reset failed.
    Broken,
    /// Nobody, and it is in a reset with another function.
    Resetting,
    /// A domain.
    Domain {
        /// Its number.
        domain: u32,
        /// Where the domain sees the function.
        slot: Sbdf,
        /// Whether it is there: else it is on its way, there or back.
        settled: bool,
    },
}

/// Who wants a function.
#[derive(Clone, Copy, Debug)]
pub struct Wish {
    /// The domain's number.
    pub domain: u32,
    /// Where the domain is to see the function.
    pub slot: Sbdf,
    /// The domain does not run yet, so that functions that it has already may be reset along.
    pub at_boot: bool,
    /// The function may be given even if it cannot be reset.
    pub allow_no_reset: bool,
}

/// Why a function is not to be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClaimError {
    /// There is no such function.
    NotThere,
    /// It is a bridge, or has no place in the machine's windows.
    NotUsable,
    /// It is on its way to or from a domain, or in a reset; or others are that would have to be reset
    /// with it.
    Busy,
    /// A domain has it.
    Taken(u32),
    /// It cannot be kept apart from this one, which a domain has, or is to have, or whose reset failed.
    Group(Sbdf, Option<u32>, Option<Reason>),
    /// It cannot be reset.
    NoReset,
    /// It has been used, and its reset would end this virtual function of it, which somebody has.
    Virtual(Sbdf),
}

/// What was claimed: how it is to be reset.
pub type Claimed = Option<Method>;

/// Who has what, by position in the hierarchy.
#[derive(Debug)]
pub struct Owners {
    of: Vec<Owner>,
    /// Whether a domain had the function since its last reset.
    used: Vec<bool>,
    /// Whether the last reset of the function, if there was one, did not fail.
    sound: Vec<bool>,
}

impl Owners {
    /// Makes a table in which nobody has anything.
    pub fn new(found: &Hierarchy) -> Result<Self, OutOfMemory> {
        let (mut of, mut used, mut sound) = (Vec::new(), Vec::new(), Vec::new());
        for _ in found.devices() {
            push(&mut sound, true)?;
            push(&mut of, Owner::Nobody)?;
            push(&mut used, false)?;
        }
        Ok(Self { of, used, sound })
    }

    /// Returns who has the function at this position.
    pub fn of(&self, index: usize) -> Owner {
        self.of.get(index).copied().unwrap_or(Owner::Nobody)
    }

    /// Reserves a function for a domain, and what has to be reset with it. `planned` tells who is to
    /// have a function that nobody has yet. Returns how the function is to be reset.
    ///
    /// A group goes to one domain: functions that cannot be kept apart from this one are the same
    /// domain's or nobody's. What nobody has is quiet, so it neither sends requests under an ID that it
    /// shares nor answers those of others.
    pub fn claim(
        &mut self,
        found: &Hierarchy,
        groups: &Groups,
        host: Sbdf,
        wish: &Wish,
        planned: impl Fn(Sbdf) -> Option<u32>,
    ) -> Result<(usize, Claimed), ClaimError> {
        let index = found.position(host).ok_or(ClaimError::NotThere)?;
        let device = found.devices().get(index).ok_or(ClaimError::NotThere)?;
        if !matches!(device.header, Header::Endpoint) || !device.usable {
            return Err(ClaimError::NotUsable);
        }
        match self.of(index) {
            Owner::Nobody | Owner::Broken => {}
            Owner::Domain {
                domain,
                settled: true,
                ..
            } => return Err(ClaimError::Taken(domain)),
            Owner::Domain { .. } | Owner::Resetting => return Err(ClaimError::Busy),
        }
        for (member, other) in groups.positions(found, index) {
            let group = |domain| ClaimError::Group(other.sbdf, domain, groups.reason(index));
            match self.of(member) {
                _ if member == index => {}
                Owner::Domain { domain, .. } if domain != wish.domain => {
                    return Err(group(Some(domain)));
                }
                Owner::Domain { .. } => {}
                Owner::Broken => return Err(group(None)),
                Owner::Resetting => return Err(ClaimError::Busy),
                Owner::Nobody => match planned(other.sbdf) {
                    Some(domain) if domain != wish.domain => return Err(group(Some(domain))),
                    _ => {}
                },
            }
        }
        let along = |domain, _| wish.at_boot && domain == wish.domain;
        let method = match self.given(found, index) {
            Some(virtual_function) if self.was_used(index) => {
                return Err(ClaimError::Virtual(virtual_function));
            }
            Some(_) => None,
            None => {
                let method = self.method(found, index, along)?;
                if method.is_none() && !wish.allow_no_reset {
                    return Err(ClaimError::NoReset);
                }
                method
            }
        };
        self.set(
            index,
            Owner::Domain {
                domain: wish.domain,
                slot: wish.slot,
                settled: false,
            },
        );
        self.mark(found, index, method);
        Ok((index, method))
    }

    /// Says that a function is where it was to go.
    pub fn settle(&mut self, index: usize) {
        if let Some(Owner::Domain { settled, .. }) = self.of.get_mut(index) {
            *settled = true;
        }
        self.note_use(index, true);
    }

    /// Reserves a function that a domain has for the way back. Returns how it is to be reset, if it can
    /// be while others stay in use: the next claim has to reset it again.
    ///
    /// # Errors
    ///
    /// If it is on its way already, or others are that would have to be reset with it.
    pub fn take_back(&mut self, found: &Hierarchy, index: usize) -> Result<Claimed, ClaimError> {
        match self.of(index) {
            Owner::Domain { settled: true, .. } => {}
            Owner::Domain { .. } | Owner::Resetting => return Err(ClaimError::Busy),
            Owner::Nobody | Owner::Broken => return Err(ClaimError::NotThere),
        }
        let method = match self.given(found, index) {
            Some(_) => None,
            None => self.method(found, index, |_, _| false)?,
        };
        if method.is_some() {
            self.note_use(index, false);
        }
        if let Some(Owner::Domain { settled, .. }) = self.of.get_mut(index) {
            *settled = false;
        }
        self.mark(found, index, method);
        Ok(method)
    }

    /// Says that nobody has a function any more; `sound` unless its reset failed.
    pub fn release(&mut self, index: usize, sound: bool) {
        if !sound {
            self.note_use(index, true);
        }
        self.set(index, if sound { Owner::Nobody } else { Owner::Broken });
    }

    /// Reserves what has to be reset along with a function that a domain has and keeps. Others that a
    /// domain has may be reset too if `along` says so of that and their slot; and so may what the caller has
    /// reserved already for resets that this one replaces if it covers them, as `own` tells. Returns how.
    pub fn begin_reset(
        &mut self,
        found: &Hierarchy,
        index: usize,
        own: impl Fn(usize) -> bool,
        along: impl Fn(u32, Sbdf) -> bool,
    ) -> Option<Method> {
        if self.given(found, index).is_some() {
            return None;
        }
        let method = found.reset_method(index, |other| {
            let position = found.position(other);
            position.is_some_and(|position| self.of(position) == Owner::Resetting && own(position))
                || self.together(found, index, other, &along)
        });
        self.mark(found, index, method);
        method
    }

    /// Returns whether a function is as its last reset should have left it, if there was one: else its
    /// domain is not to use it.
    pub fn is_sound(&self, index: usize) -> bool {
        self.sound.get(index).copied().unwrap_or(false)
    }

    /// Frees what was reserved for a reset; `sound` unless it failed.
    pub fn end_reset(&mut self, found: &Hierarchy, reset: &Reset, sound: bool) {
        for place in self.sound.get_mut(reset.affected()).into_iter().flatten() {
            *place = sound;
        }
        for index in affected(found, reset) {
            if self.of(index) == Owner::Resetting {
                self.set(index, if sound { Owner::Nobody } else { Owner::Broken });
            }
        }
    }

    /// Returns a virtual function of this one that a domain has, or is to have.
    fn given(&self, found: &Hierarchy, index: usize) -> Option<Sbdf> {
        let device = found.devices().get(index)?;
        device.sriov?;
        let mut own = found.virtual_functions(device.sbdf);
        let given = own.find(|index| matches!(self.of(*index), Owner::Domain { .. }))?;
        Some(found.devices().get(given)?.sbdf)
    }

    fn was_used(&self, index: usize) -> bool {
        self.used.get(index).copied().unwrap_or(true)
    }

    fn note_use(&mut self, index: usize, used: bool) {
        if let Some(place) = self.used.get_mut(index) {
            *place = used;
        }
    }

    fn set(&mut self, index: usize, owner: Owner) {
        if let Some(place) = self.of.get_mut(index) {
            *place = owner;
        }
    }

    /// Returns whether a function may be reset together with the one at `index`.
    fn together(
        &self,
        found: &Hierarchy,
        index: usize,
        other: Sbdf,
        along: impl Fn(u32, Sbdf) -> bool,
    ) -> bool {
        let Some(position) = found.position(other) else {
            return false;
        };
        position == index
            || match self.of(position) {
                Owner::Nobody | Owner::Broken => true,
                Owner::Resetting => false,
                Owner::Domain {
                    domain,
                    slot,
                    settled,
                } => settled && along(domain, slot),
            }
    }

    /// Returns how a function can be reset now. `Busy` if there is a better way as soon as others have
    /// arrived where they go.
    fn method(
        &self,
        found: &Hierarchy,
        index: usize,
        along: impl Fn(u32, Sbdf) -> bool,
    ) -> Result<Option<Method>, ClaimError> {
        let now = found.reset_method(index, |other| self.together(found, index, other, &along));
        let soon = found.reset_method(index, |other| {
            let owner = found.position(other).map(|position| self.of(position));
            self.together(found, index, other, &along)
                || matches!(
                    owner,
                    Some(Owner::Resetting | Owner::Domain { settled: false, .. })
                )
        });
        if now == soon {
            Ok(now)
        } else {
            Err(ClaimError::Busy)
        }
    }

    /// Marks what nobody has and a reset takes along.
    fn mark(&mut self, found: &Hierarchy, index: usize, method: Option<Method>) {
        let Some(method) = method else { return };
        let reset = found.reset(index, method);
        for index in affected(found, &reset) {
            if matches!(self.of(index), Owner::Nobody | Owner::Broken) {
                self.set(index, Owner::Resetting);
            }
        }
    }
}

impl Reset {
    /// Returns whether the function at this position is reserved for the reset, if nobody has it.
    pub fn reserves(&self, found: &Hierarchy, index: usize) -> bool {
        affected(found, self).any(|other| other == index)
    }
}

/// Returns the positions of what a reset changes: also of the virtual functions of physical ones.
fn affected<'a>(found: &'a Hierarchy, reset: &Reset) -> impl Iterator<Item = usize> + 'a {
    let ended = reset.affected().filter_map(|index| {
        let device = found.devices().get(index)?;
        device.sriov.map(|_| device.sbdf)
    });
    let ended = ended.flat_map(|physical| found.virtual_functions(physical));
    reset.affected().chain(ended)
}
