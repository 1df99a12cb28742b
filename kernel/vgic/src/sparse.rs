//! A table that is large in numbers and small in use: what a guest maps is allocated, nothing else.
//!
//! An index finds its entry in two steps, however many there are. What the tables of one domain
//! take together is limited by a [`Budget`], so that no guest can use up the heap of EL2.

use alloc::boxed::Box;
use alloc::vec::Vec;

use crate::OutOfMemory;

/// Entries that are allocated together.
pub(crate) const CHUNK: usize = 32;

/// Bytes that the tables of a domain may still take.
#[derive(Debug)]
pub(crate) struct Budget(usize);

impl Budget {
    pub(crate) const fn new(bytes: usize) -> Self {
        Self(bytes)
    }

    fn take(&mut self, bytes: usize) -> Result<(), OutOfMemory> {
        self.0 = self.0.checked_sub(bytes).ok_or(OutOfMemory)?;
        Ok(())
    }

    fn give_back(&mut self, bytes: usize) {
        self.0 = self.0.saturating_add(bytes);
    }
}

type Chunk<T> = Option<Box<[T]>>;

/// The table. An entry that was never written does not exist.
#[derive(Debug)]
pub(crate) struct Sparse<T> {
    chunks: Vec<Chunk<T>>,
    taken: usize,
}

impl<T: Default> Sparse<T> {
    pub(crate) const fn new() -> Self {
        Self {
            chunks: Vec::new(),
            taken: 0,
        }
    }

    #[inline]
    pub(crate) fn get(&self, index: usize) -> Option<&T> {
        self.chunks.get(index / CHUNK)?.as_ref()?.get(index % CHUNK)
    }

    #[inline]
    pub(crate) fn get_mut(&mut self, index: usize) -> Option<&mut T> {
        self.chunks
            .get_mut(index / CHUNK)?
            .as_mut()?
            .get_mut(index % CHUNK)
    }

    /// Returns the entry, which is made with its neighbors if it does not exist.
    pub(crate) fn entry(
        &mut self,
        index: usize,
        budget: &mut Budget,
    ) -> Result<&mut T, OutOfMemory> {
        let number = index / CHUNK;
        if number >= self.chunks.len() {
            self.grow(number + 1, budget)?;
        }
        let chunk = self.chunks.get_mut(number).ok_or(OutOfMemory)?;
        if chunk.is_none() {
            let bytes = CHUNK * size_of::<T>();
            budget.take(bytes)?;
            match new_chunk() {
                Ok(new) => *chunk = Some(new),
                Err(error) => {
                    budget.give_back(bytes);
                    return Err(error);
                }
            }
            self.taken += bytes;
        }
        chunk
            .as_mut()
            .and_then(|chunk| chunk.get_mut(index % CHUNK))
            .ok_or(OutOfMemory)
    }

    /// Returns the entries that exist.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.chunks.iter_mut().flatten().flatten()
    }

    /// Frees every entry.
    pub(crate) fn clear(&mut self, budget: &mut Budget) {
        self.chunks = Vec::new();
        budget.give_back(self.taken);
        self.taken = 0;
    }

    /// Returns how many chunks there may be: the end of [`Self::chunk_exists`].
    pub(crate) fn chunk_count(&self) -> usize {
        self.chunks.len()
    }

    /// Returns whether the entries from `number * CHUNK` on exist.
    pub(crate) fn chunk_exists(&self, number: usize) -> bool {
        matches!(self.chunks.get(number), Some(Some(_)))
    }

    /// Makes room for `length` chunks, in powers of two so that growing is cheap.
    fn grow(&mut self, length: usize, budget: &mut Budget) -> Result<(), OutOfMemory> {
        let length = length.next_power_of_two();
        let more = length - self.chunks.len();
        let bytes = more * size_of::<Chunk<T>>();
        budget.take(bytes)?;
        if self.chunks.try_reserve_exact(more).is_err() {
            budget.give_back(bytes);
            return Err(OutOfMemory);
        }
        self.chunks.resize_with(length, || None);
        self.taken += bytes;
        Ok(())
    }
}

fn new_chunk<T: Default>() -> Result<Box<[T]>, OutOfMemory> {
    let mut chunk = Vec::new();
    chunk.try_reserve_exact(CHUNK).map_err(|_| OutOfMemory)?;
    chunk.resize_with(CHUNK, T::default);
    Ok(chunk.into_boxed_slice())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_made_on_demand_and_paid_for() {
        let mut budget = Budget::new(8192);
        let mut table = Sparse::<u64>::new();
        assert_eq!(table.get(200), None);
        *table.entry(200, &mut budget).unwrap() = 7;
        assert_eq!(table.get(200), Some(&7));
        assert_eq!(table.get(201), Some(&0), "neighbors come with it");
        assert_eq!(table.get(0), None, "other chunks do not");
        assert!(table.chunk_exists(200 / CHUNK) && !table.chunk_exists(2));
        assert_eq!(
            budget.0,
            8192 - CHUNK * 8 - 8 * size_of::<Option<Box<[u64]>>>()
        );
        table.clear(&mut budget);
        assert_eq!(budget.0, 8192);
        assert_eq!(table.get(200), None);
    }

    #[test]
    fn a_spent_budget_refuses_and_takes_nothing() {
        let mut budget = Budget::new(100);
        let mut table = Sparse::<u64>::new();
        assert!(table.entry(0, &mut budget).is_err());
        assert!(table.entry(1 << 20, &mut budget).is_err());
        table.clear(&mut budget);
        assert_eq!(budget.0, 100);
    }
}
