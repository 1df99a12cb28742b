//! Server ids: numbers that find a value at once, and never mean another one later.
//!
//! ```text
//!   31                20 19                              0
//!  +--------------------+---------------------------------+
//!  |     generation     |         place in the table      |
//!  +--------------------+---------------------------------+
//! ```
//!
//! A place that becomes free is used again under the next generation; after the last generation it
//! is never used again. So an old id, kept by a device model or a configuration, names nothing.

use alloc::vec::Vec;

const PLACE_BITS: u32 = 20;
const PLACES: u32 = 1 << PLACE_BITS;
const LAST_GENERATION: u32 = u32::MAX >> PLACE_BITS;

/// Names a server, in hypercalls and in a device model's device tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct ServerId(u32);

impl ServerId {
    /// Makes an id of its number, which may or may not name a server.
    pub const fn new(id: u32) -> Self {
        Self(id)
    }

    /// Makes an id of what a register holds; `None` if no id has that number.
    pub fn from_register(register: u64) -> Option<Self> {
        u32::try_from(register).ok().map(Self)
    }

    /// Returns the number.
    pub const fn get(self) -> u32 {
        self.0
    }

    const fn place(self) -> usize {
        (self.0 % PLACES) as usize
    }
}

impl core::fmt::Display for ServerId {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// What the servers of a machine are, by id.
#[derive(Debug)]
pub struct Table<T> {
    entries: Vec<Entry<T>>,
    /// Places that may be used again; there is always room for all of them.
    free: Vec<u32>,
}

#[derive(Debug)]
struct Entry<T> {
    generation: u32,
    value: Option<T>,
}

/// Why a table takes no further value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableError {
    /// No memory is left.
    NoMemory,
    /// All ids are in use or used up.
    NoIds,
}

impl<T> Table<T> {
    /// Makes an empty table.
    pub const fn new() -> Self {
        Self {
            entries: Vec::new(),
            free: Vec::new(),
        }
    }

    /// Puts a value in and returns its id.
    pub fn insert(&mut self, value: T) -> Result<ServerId, TableError> {
        if let Some(place) = self.free.pop()
            && let Some(entry) = self.entries.get_mut(place as usize)
        {
            entry.value = Some(value);
            return Ok(ServerId(entry.generation << PLACE_BITS | place));
        }
        let place = u32::try_from(self.entries.len()).map_err(|_| TableError::NoIds)?;
        if place >= PLACES {
            return Err(TableError::NoIds);
        }
        self.entries
            .try_reserve(1)
            .map_err(|_| TableError::NoMemory)?;
        // So that `remove` never needs memory.
        self.free
            .try_reserve(self.entries.len() + 1 - self.free.len())
            .map_err(|_| TableError::NoMemory)?;
        self.entries.push(Entry {
            generation: 0,
            value: Some(value),
        });
        Ok(ServerId(place))
    }

    /// Returns the value of an id.
    pub fn get(&self, id: ServerId) -> Option<&T> {
        let entry = self.entries.get(id.place())?;
        entry.value.as_ref().filter(|_| entry.is(id))
    }

    /// Returns the value of an id, to change it.
    pub fn get_mut(&mut self, id: ServerId) -> Option<&mut T> {
        let entry = self.entries.get_mut(id.place())?;
        if entry.is(id) {
            entry.value.as_mut()
        } else {
            None
        }
    }

    /// Takes a value out; its id names nothing from here on.
    pub fn remove(&mut self, id: ServerId) -> Option<T> {
        let entry = self.entries.get_mut(id.place())?;
        if !entry.is(id) {
            return None;
        }
        let value = entry.value.take()?;
        if entry.generation < LAST_GENERATION {
            entry.generation += 1;
            self.free.push(id.0 % PLACES);
        }
        Some(value)
    }

    /// Returns all values with their ids.
    pub fn iter(&self) -> impl Iterator<Item = (ServerId, &T)> {
        (0..).zip(&self.entries).filter_map(|(place, entry)| {
            let id = ServerId(entry.generation << PLACE_BITS | place);
            Some((id, entry.value.as_ref()?))
        })
    }
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Entry<T> {
    const fn is(&self, id: ServerId) -> bool {
        self.generation == id.0 >> PLACE_BITS
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn an_id_finds_its_value_until_it_is_removed_and_nothing_after() {
        let mut table = Table::new();
        let a = table.insert("a").unwrap();
        let b = table.insert("b").unwrap();
        assert_eq!((a.get(), b.get()), (0, 1));
        assert_eq!(table.get(a), Some(&"a"));
        assert_eq!(table.remove(a), Some("a"));
        assert_eq!(table.remove(a), None);
        let c = table.insert("c").unwrap();
        assert_eq!(c.get(), 1 << 20, "the same place, the next generation");
        assert_eq!(table.get(a), None);
        assert_eq!(table.get_mut(a), None);
        *table.get_mut(c).unwrap() = "d";
        assert_eq!(
            table.iter().collect::<BTreeSet<_>>(),
            [(b, &"b"), (c, &"d")].into()
        );
        assert_eq!(table.get(ServerId::new(77)), None);
        assert_eq!(table.remove(ServerId::new(77)), None);
    }

    #[test]
    fn no_id_is_handed_out_twice() {
        let mut table = Table::default();
        let mut seen = BTreeSet::new();
        let rounds: usize = if cfg!(miri) { 100 } else { 10_000 };
        for _ in 0..rounds {
            let id = table.insert(()).unwrap();
            assert!(seen.insert(id), "{id}");
            table.remove(id);
        }
        // Each place had 4096 generations.
        assert_eq!(table.entries.len(), rounds.div_ceil(4096));
    }

    #[test]
    fn a_register_that_holds_no_id_is_refused() {
        assert_eq!(ServerId::from_register(5), Some(ServerId::new(5)));
        assert_eq!(ServerId::from_register(1 << 32), None);
        assert_eq!(ServerId::from_register(abi::NONE), None);
    }
}
