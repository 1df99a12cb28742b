//! Which places of config space have changed hands, for a kernel that keeps something at each.
//!
//! A place is 4 KiB of the ECAM window: what one bus, device and function number lead to. There are
//! 65,536, so that only those are gone over that can have changed: the 256 of a bus number that leads
//! elsewhere than before ([`Places::update`]), and those of a device one of whose functions has come
//! or gone ([`Bus::around`]).

use alloc::boxed::Box;
use alloc::vec::Vec;

use crate::{Bus, BusError, Owner, Sbdf};

/// Bus numbers.
const NUMBERS: usize = 256;

/// What [`Bus::lead`] says of a bus number.
type Lead = Option<(u8, u8)>;

/// Where each bus number led when it was last gone over.
#[derive(Debug)]
pub struct Places {
    leads: Box<[Lead; NUMBERS]>,
}

impl Places {
    /// Makes the state in which nothing is at any place.
    ///
    /// # Errors
    ///
    /// If memory is short.
    pub fn new() -> Result<Self, BusError> {
        let mut leads = Vec::new();
        leads
            .try_reserve_exact(NUMBERS)
            .map_err(|_| BusError::NoMemory)?;
        leads.resize(NUMBERS, None);
        let leads = leads.try_into().map_err(|_| BusError::NoMemory)?;
        Ok(Self { leads })
    }

    /// Goes over the places of the bus numbers that lead elsewhere than when they were last gone over, and
    /// says who is at each now.
    pub fn update<V: Copy + Eq>(&mut self, bus: &Bus<V>, show: impl FnMut(Sbdf, Option<Owner<V>>)) {
        self.go_over(bus, |before, now| before != now, show);
    }

    /// Goes over the places of all bus numbers that lead somewhere, or did.
    pub fn update_all<V: Copy + Eq>(
        &mut self,
        bus: &Bus<V>,
        show: impl FnMut(Sbdf, Option<Owner<V>>),
    ) {
        self.go_over(bus, |before, now| before.is_some() || now.is_some(), show);
    }

    fn go_over<V: Copy + Eq>(
        &mut self,
        bus: &Bus<V>,
        is_wanted: impl Fn(Lead, Lead) -> bool,
        mut show: impl FnMut(Sbdf, Option<Owner<V>>),
    ) {
        for (number, lead) in (0..=u8::MAX).zip(self.leads.iter_mut()) {
            let now = bus.lead(number);
            if !is_wanted(core::mem::replace(lead, now), now) {
                continue;
            }
            for slot in 0..=u8::MAX {
                let rid = u16::from(number) << 8 | u16::from(slot);
                let place = Sbdf::from_rid(bus.segment(), rid);
                show(place, bus.route(place));
            }
        }
    }
}
