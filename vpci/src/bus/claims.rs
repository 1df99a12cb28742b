//! What the functions of device models decode.
//!
//! A device model claims a range when its own function decodes it, and knows nothing of the port above.
//! So claims are kept here, and one of a function below a port is in the memory map only while the port
//! lets requests to it through. What is not in the map is in nobody's way; and where others are in its way
//! it waits, as a passed-through function's BAR does.

use alloc::vec::Vec;

use super::{Bus, Decoder};
use crate::{BusAddress, BusRange, ClaimError, Claimed, Released, Sbdf};

/// A claim.
#[derive(Clone, Copy, Debug)]
struct Claim<V> {
    range: BusRange,
    decoder: Decoder<V>,
    /// Whether it is in the memory map, granted or waiting.
    active: bool,
}

/// The claims of all functions.
#[derive(Debug)]
pub(super) struct Claims<V>(Vec<Claim<V>>);

impl<V> Claims<V> {
    pub(super) const fn new() -> Self {
        Self(Vec::new())
    }
}

impl<V: Copy + Eq> Bus<V> {
    /// Gives `range` to the function `name` of a device model, as soon as the port above it lets requests
    /// to it through and nobody else has any of it.
    ///
    /// # Errors
    ///
    /// If the range is not inside a window of the host bridge, if the function has claimed any of it
    /// already, or if memory is short.
    pub fn claim(
        &mut self,
        range: BusRange,
        name: Sbdf,
        decoder: Decoder<V>,
    ) -> Result<(), ClaimError<Decoder<V>>> {
        // What passed-through functions have room for stays theirs.
        self.memory.reserve(1)?;
        self.claim_in_room(range, name, decoder)
            .inspect_err(|_| self.memory.give_up(1))
    }

    fn claim_in_room(
        &mut self,
        range: BusRange,
        name: Sbdf,
        decoder: Decoder<V>,
    ) -> Result<(), ClaimError<Decoder<V>>> {
        let windows = self.memory.windows();
        if !windows.iter().any(|window| window.covers(range)) {
            return Err(ClaimError::Outside(range));
        }
        let own = |claim: &&Claim<V>| claim.decoder.function() == Some(name);
        let mut own = self.claims.0.iter().filter(own);
        if let Some(other) = own.find(|claim| claim.range.overlaps(range)) {
            let (range, owner) = (other.range, other.decoder);
            return Err(ClaimError::Taken { range, owner });
        }
        self.claims
            .0
            .try_reserve(1)
            .map_err(|_| ClaimError::NoMemory)?;
        let active = self.upstream(name).reaches(range);
        if active {
            let _: Claimed = self.memory.claim_or_wait(range, decoder)?;
        }
        self.claims.0.push(Claim {
            range,
            decoder,
            active,
        });
        Ok(())
    }

    /// Returns how many ranges the function `name` of a device model has claimed.
    #[must_use]
    pub fn claims_of(&self, name: Sbdf) -> usize {
        let claims = self.claims.0.iter();
        let own = claims.filter(|claim| claim.decoder.function() == Some(name));
        own.count()
    }

    /// Takes back the range that a device model's function claimed from `at`, if `wanted` says that it
    /// is the one; returns whether it was. Others may be ready then: see [`crate::MemoryMap::grant_ready`].
    pub fn unclaim(&mut self, at: BusAddress, wanted: impl Fn(Decoder<V>) -> bool) -> bool {
        let claims = &mut self.claims.0;
        let is_wanted = |claim: &Claim<V>| claim.range.start() == at && wanted(claim.decoder);
        let Some(index) = claims.iter().position(is_wanted) else {
            return false;
        };
        let claim = claims.swap_remove(index);
        let _: Released = self.memory.release(claim.range, claim.decoder);
        self.memory.give_up(1);
        true
    }

    /// Takes back whatever `wanted` picks of the ranges that device models' functions claimed. Others
    /// may be ready then.
    pub fn unclaim_all(&mut self, wanted: impl Fn(Decoder<V>) -> bool) {
        let before = self.claims.0.len();
        self.claims.0.retain(|claim| !wanted(claim.decoder));
        self.memory.release_all(wanted);
        self.memory.give_up(before - self.claims.0.len());
    }

    /// Puts claims of functions on the bus of that name into the memory map, or takes them out, as the
    /// port above lets through now. Others may be ready then.
    pub fn update_claims(&mut self, bus: u8) {
        let name = super::on(Sbdf::from_rid(self.segment, 0), bus);
        let upstream = self.upstream(name);
        for open in [false, true] {
            for claim in &mut self.claims.0 {
                let is_below = claim.decoder.function().map(Sbdf::bus) == Some(bus);
                let reaches = upstream.reaches(claim.range);
                if !is_below || reaches == claim.active || reaches != open {
                    continue;
                }
                if open {
                    // Without memory it stays out, until the port changes again.
                    let claimed = self.memory.claim_or_wait(claim.range, claim.decoder);
                    claim.active = matches!(claimed, Ok(Claimed::Granted | Claimed::Waiting));
                } else {
                    let _: Released = self.memory.release(claim.range, claim.decoder);
                    claim.active = false;
                }
            }
        }
    }
}

impl<V> Decoder<V> {
    /// Returns the function, if it is a device model's.
    const fn function(&self) -> Option<Sbdf> {
        match self {
            Self::Ioreq { sbdf, .. } => Some(*sbdf),
            Self::Bar { .. } => None,
        }
    }
}
