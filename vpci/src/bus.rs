//! One virtual bus hierarchy: which function answers which config access, and which address.
//!
//! ```text
//!  SBDF --> buses[bus] --> functions[device.function] --> Owner
//! ```
//!
//! A bus on which nothing sits costs one empty slot; a lookup is two indexed loads, however many
//! functions there are.

use alloc::vec::Vec;
use core::fmt;

use crate::emulated::{HEADER_TYPE, MULTI_FUNCTION};
use crate::{BarIndex, ConfigAccess, MemoryMap, Sbdf, ecam};

/// Functions that a bus can have.
const BUS_FUNCTIONS: usize = 256;

/// Who answers the config accesses of a function. `V` is the kernel's handle of a passed-through one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner<V> {
    /// The host bridge that EL2 emulates.
    HostBridge,
    /// Stands in for function 0 of a device that has others: guests look at function 0 first.
    Stub,
    /// A passed-through function.
    Vpci(V),
    /// The device model behind this ioreq server.
    Ioreq(u32),
}

/// Who decodes a range of memory space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decoder<V> {
    /// A BAR of a passed-through function.
    Bar {
        /// The kernel's handle of the function.
        function: V,
        /// Which of its BARs.
        bar: BarIndex,
    },
    /// A function of a device model.
    Ioreq {
        /// The ioreq server.
        server: u32,
        /// The function.
        sbdf: Sbdf,
        /// Whether writes to the range need no answer.
        posted: bool,
    },
}

/// Why a function was not put on the bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BusError {
    /// Another segment, or a bus number outside the hierarchy.
    NoSuchBus(Sbdf),
    /// Another function has that slot.
    Occupied(Sbdf),
    /// A stub comes and goes by itself.
    StubIsAutomatic,
    /// No memory is left for the bus's table.
    NoMemory,
}

impl fmt::Display for BusError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSuchBus(sbdf) => write!(f, "{sbdf} is on no bus of this hierarchy"),
            Self::Occupied(sbdf) => write!(f, "{sbdf} is taken already"),
            Self::StubIsAutomatic => f.write_str("a stub is put in by itself"),
            Self::NoMemory => f.write_str("no memory left for the table of a bus"),
        }
    }
}

impl core::error::Error for BusError {}

/// The functions of one bus, by device and function; empty as long as it has none.
type Functions<V> = Vec<Option<Owner<V>>>;

/// Routing table of one hierarchy, and the memory that its functions decode.
#[derive(Debug)]
pub struct Bus<V> {
    segment: u16,
    first: u8,
    buses: Vec<Functions<V>>,
    /// The bridge's windows, and who decodes what in them.
    pub memory: MemoryMap<Decoder<V>>,
}

impl<V: Copy + Eq> Bus<V> {
    /// Makes an empty hierarchy of the buses `first` to `last` of `segment`; none if `last` is the
    /// smaller.
    ///
    /// # Errors
    ///
    /// If memory is short.
    pub fn new(segment: u16, first: u8, last: u8) -> Result<Self, BusError> {
        let count = (usize::from(last) + 1).saturating_sub(first.into());
        let mut buses = Vec::new();
        buses
            .try_reserve_exact(count)
            .map_err(|_| BusError::NoMemory)?;
        buses.resize_with(count, Vec::new);
        Ok(Self {
            segment,
            first,
            buses,
            memory: MemoryMap::new(),
        })
    }

    /// Decodes an access at `offset` of the hierarchy's ECAM window, which starts with its first bus.
    ///
    /// Returns `None` for what no config request can express; see [`ecam::decode`].
    #[must_use]
    pub fn decode(&self, offset: u64, bytes: u64) -> Option<ConfigAccess> {
        let skipped = u64::from(self.first) * ecam::BUS;
        ecam::decode(self.segment, skipped.checked_add(offset)?, bytes)
    }

    /// Returns who answers for `sbdf`; `None` if nobody does, and reads give all ones.
    #[must_use]
    pub fn route(&self, sbdf: Sbdf) -> Option<Owner<V>> {
        *self.functions(sbdf)?.get(slot(sbdf))?
    }

    /// Returns every function there is, stubs included, in order.
    pub fn functions_present(&self) -> impl Iterator<Item = (Sbdf, Owner<V>)> {
        (self.first..=u8::MAX)
            .zip(&self.buses)
            .flat_map(move |(bus, functions)| {
                (0..=u8::MAX)
                    .zip(functions)
                    .filter_map(move |(slot, owner)| {
                        let rid = u16::from(bus) << 8 | u16::from(slot);
                        Some((Sbdf::from_rid(self.segment, rid), (*owner)?))
                    })
            })
    }

    /// Puts a function on the bus. If its device has no function 0, a stub appears there.
    ///
    /// The multi-function bits of the device may have to change: see [`Bus::is_multi_function`].
    ///
    /// # Errors
    ///
    /// If the slot is taken by anything but a stub, if there is no such bus, or if memory is short.
    pub fn insert(&mut self, sbdf: Sbdf, owner: Owner<V>) -> Result<(), BusError> {
        if owner == Owner::Stub {
            return Err(BusError::StubIsAutomatic);
        }
        let functions = self.functions_mut(sbdf).ok_or(BusError::NoSuchBus(sbdf))?;
        if functions.is_empty() {
            functions
                .try_reserve_exact(BUS_FUNCTIONS)
                .map_err(|_| BusError::NoMemory)?;
            functions.resize(BUS_FUNCTIONS, None);
        }
        let entry = functions
            .get_mut(slot(sbdf))
            .ok_or(BusError::NoSuchBus(sbdf))?;
        if !matches!(entry, None | Some(Owner::Stub)) {
            return Err(BusError::Occupied(sbdf));
        }
        *entry = Some(owner);
        if let Some(zero @ None) = functions.get_mut(function_0(sbdf)) {
            *zero = Some(Owner::Stub);
        }
        Ok(())
    }

    /// Takes a function off the bus and returns its owner; a stub appears or goes as needed.
    pub fn remove(&mut self, sbdf: Sbdf) -> Option<Owner<V>> {
        let functions = self.functions_mut(sbdf)?;
        let entry = functions.get_mut(slot(sbdf))?;
        if *entry == Some(Owner::Stub) {
            return None;
        }
        let owner = entry.take()?;
        let first = function_0(sbdf);
        let rest = functions.get(first + 1..first + usize::from(Sbdf::FUNCTIONS))?;
        let others = rest.iter().any(Option::is_some);
        if let Some(zero @ (None | Some(Owner::Stub))) = functions.get_mut(first) {
            *zero = others.then_some(Owner::Stub);
        }
        if functions.iter().all(Option::is_none) {
            *functions = Vec::new();
        }
        Some(owner)
    }

    /// Returns whether the device of `sbdf` has a function besides function 0. Its function 0 has to
    /// say so in its header.
    #[must_use]
    pub fn is_multi_function(&self, sbdf: Sbdf) -> bool {
        let first = function_0(sbdf);
        self.functions(sbdf)
            .and_then(|functions| functions.get(first + 1..first + usize::from(Sbdf::FUNCTIONS)))
            .is_some_and(|rest| rest.iter().any(Option::is_some))
    }

    /// Returns the number of the next function of the device of `sbdf`, or 0 if there is none. ARI says
    /// so in each function that has it.
    #[must_use]
    pub fn next_function(&self, sbdf: Sbdf) -> u8 {
        let mut after = (sbdf.function()..Sbdf::FUNCTIONS).skip(1);
        let is_there = |&function: &u8| {
            let sibling = sbdf.sibling(function);
            sibling.and_then(|sibling| self.route(sibling)).is_some()
        };
        after.find(is_there).unwrap_or(0)
    }

    /// Returns `answer`, which a device model gave to a read, with the multi-function bit set if the
    /// read covers it and the bus wants it there: a device model knows its own functions only.
    #[must_use]
    pub fn with_multi_function(&self, access: ConfigAccess, answer: u32) -> u32 {
        let sbdf = access.sbdf();
        let covered = access.offset().dword() == HEADER_TYPE && sbdf.function() == 0;
        if covered && self.is_multi_function(sbdf) {
            answer | access.extract(MULTI_FUNCTION)
        } else {
            answer
        }
    }

    fn functions(&self, sbdf: Sbdf) -> Option<&Functions<V>> {
        if sbdf.segment() != self.segment {
            return None;
        }
        let bus = sbdf.bus().checked_sub(self.first)?;
        self.buses.get(usize::from(bus))
    }

    fn functions_mut(&mut self, sbdf: Sbdf) -> Option<&mut Functions<V>> {
        if sbdf.segment() != self.segment {
            return None;
        }
        let bus = sbdf.bus().checked_sub(self.first)?;
        self.buses.get_mut(usize::from(bus))
    }
}

/// Returns the index of a function in the table of its bus.
fn slot(sbdf: Sbdf) -> usize {
    sbdf.device_function().into()
}

/// Returns the index of function 0 of the same device.
fn function_0(sbdf: Sbdf) -> usize {
    slot(sbdf) & !7
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;
    use std::string::ToString;

    fn name(text: &str) -> Sbdf {
        text.parse().unwrap()
    }

    #[test]
    fn a_function_answers_where_it_was_put() {
        let mut bus = Bus::new(0, 0, 255).unwrap();
        assert_eq!(bus.route(name("00:00.0")), None);
        bus.insert(name("00:00.0"), Owner::HostBridge).unwrap();
        bus.insert(name("00:01.0"), Owner::Vpci(7_u16)).unwrap();
        bus.insert(name("ff:1f.7"), Owner::Ioreq(3)).unwrap();
        #[rustfmt::skip]
        let cases = [
            ("0000:00:00.0", Some(Owner::HostBridge)),
            ("0000:00:00.1", None),
            ("0000:00:01.0", Some(Owner::Vpci(7))),
            ("0000:ff:1f.7", Some(Owner::Ioreq(3))),
            ("0000:ff:1f.0", Some(Owner::Stub)),
            ("0000:01:01.0", None),
            ("0001:00:01.0", None),
        ];
        for (sbdf, owner) in cases {
            assert_eq!(bus.route(name(sbdf)), owner, "{sbdf}");
        }
        let present = bus.functions_present().map(|(sbdf, _)| sbdf.to_string());
        let expected = [
            "0000:00:00.0",
            "0000:00:01.0",
            "0000:ff:1f.0",
            "0000:ff:1f.7",
        ];
        assert!(present.eq(expected));
    }

    #[test]
    fn a_stub_stands_in_for_a_missing_function_0() {
        let mut bus = Bus::new(0, 0, 0).unwrap();
        let (zero, two, five) = (name("00:03.0"), name("00:03.2"), name("00:03.5"));
        bus.insert(two, Owner::Vpci(2_u8)).unwrap();
        assert_eq!(bus.route(zero), Some(Owner::Stub));
        assert!(bus.is_multi_function(zero));
        assert_eq!(bus.remove(zero), None, "a stub cannot be removed");
        bus.insert(zero, Owner::Ioreq(1)).unwrap();
        assert_eq!(bus.route(zero), Some(Owner::Ioreq(1)));
        bus.insert(five, Owner::Vpci(5)).unwrap();
        let next = [zero, two, five, name("00:04.0")].map(|sbdf| bus.next_function(sbdf));
        assert_eq!(next, [2, 5, 0, 0]);
        assert_eq!(bus.remove(zero), Some(Owner::Ioreq(1)));
        assert_eq!(bus.route(zero), Some(Owner::Stub));
        assert_eq!(bus.remove(two), Some(Owner::Vpci(2)));
        assert_eq!(bus.route(zero), Some(Owner::Stub));
        assert_eq!(bus.remove(five), Some(Owner::Vpci(5)));
        assert_eq!(bus.route(zero), None);
        assert!(!bus.is_multi_function(zero));
        assert_eq!(bus.remove(five), None);
    }

    #[test]
    #[rustfmt::skip]
    fn function_0_of_a_device_model_says_that_there_are_others() {
        let mut bus = Bus::new(0, 0, 0).unwrap();
        bus.insert(name("00:01.0"), Owner::<u8>::Ioreq(1)).unwrap();
        let header = 0x8000_u64;
        let read = |bus: &Bus<u8>, offset, bytes| {
            bus.with_multi_function(bus.decode(header + offset, bytes).unwrap(), 0)
        };
        assert_eq!(read(&bus, 0x0e, 1), 0);
        bus.insert(name("00:01.4"), Owner::Ioreq(2)).unwrap();
        let cases = [
            (0x0c, 4, 0x0080_0000), (0x0e, 2, 0x80), (0x0e, 1, 0x80), (0x0c, 2, 0), (0x0d, 1, 0),
            (0x0f, 1, 0), (0x10, 4, 0), (0x400c, 4, 0),
        ];
        for (offset, bytes, expected) in cases {
            assert_eq!(read(&bus, offset, bytes), expected, "{offset:#x} {bytes}");
        }
    }

    #[test]
    fn a_slot_is_given_once() {
        let mut bus = Bus::new(1, 4, 5).unwrap();
        let slot = name("1:04:00.0");
        bus.insert(slot, Owner::Vpci(0_u8)).unwrap();
        let cases = [
            (slot, Owner::Vpci(0), BusError::Occupied(slot)),
            (slot, Owner::Ioreq(9), BusError::Occupied(slot)),
            (name("1:05:00.0"), Owner::Stub, BusError::StubIsAutomatic),
            (
                name("1:03:00.0"),
                Owner::Ioreq(9),
                BusError::NoSuchBus(name("1:03:00.0")),
            ),
            (
                name("1:06:00.0"),
                Owner::Ioreq(9),
                BusError::NoSuchBus(name("1:06:00.0")),
            ),
            (
                name("0:04:00.0"),
                Owner::Ioreq(9),
                BusError::NoSuchBus(name("0:04:00.0")),
            ),
        ];
        for (sbdf, owner, error) in cases {
            assert_eq!(bus.insert(sbdf, owner), Err(error), "{sbdf}");
            assert!(!error.to_string().is_empty());
        }
        assert_eq!(bus.remove(name("0:04:00.0")), None);
        assert!(!BusError::NoMemory.to_string().is_empty());
        let mut none = Bus::<u8>::new(0, 9, 3).unwrap();
        assert!(none.insert(name("09:00.0"), Owner::Ioreq(0)).is_err());
    }

    #[test]
    fn a_window_starts_with_the_first_bus() {
        let bus = Bus::<u8>::new(2, 0x40, 0x4f).unwrap();
        let access = bus.decode(0x10_8004, 2).unwrap();
        assert_eq!(access.sbdf(), name("2:41:01.0"));
        assert_eq!(access.offset().get(), 4);
        assert_eq!(bus.decode(u64::MAX, 1), None);
        assert_eq!(bus.decode(2, 4), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Against a plain map from names to owners.
        #[test]
        fn routing_agrees_with_a_plain_map(
            steps in prop::collection::vec((0u16..64, any::<bool>(), 0u8..3), 0..100),
        ) {
            let mut bus = Bus::new(0, 0, 1).unwrap();
            let mut plain = BTreeMap::new();
            for (number, insert, id) in steps {
                // Two devices on each of two buses.
                let sbdf = Sbdf::from_rid(0, (number & 0x20) << 3 | number & 0x0f);
                if insert {
                    let inserted = bus.insert(sbdf, Owner::Vpci(id)).is_ok();
                    prop_assert_eq!(inserted, !plain.contains_key(&sbdf));
                    plain.entry(sbdf).or_insert(id);
                } else {
                    prop_assert_eq!(bus.remove(sbdf), plain.remove(&sbdf).map(Owner::Vpci));
                }
                for number in 0..64 {
                    let sbdf = Sbdf::from_rid(0, (number & 0x20) << 3 | number & 0x1f);
                    let device = |other: &Sbdf| other.sibling(0) == sbdf.sibling(0);
                    let siblings = plain.keys().filter(|other| device(other) && **other != sbdf).count();
                    let expected = match plain.get(&sbdf) {
                        Some(&id) => Some(Owner::Vpci(id)),
                        None if sbdf.function() == 0 && siblings > 0 => Some(Owner::Stub),
                        None => None,
                    };
                    prop_assert_eq!(bus.route(sbdf), expected, "{}", sbdf);
                }
            }
        }
    }
}
