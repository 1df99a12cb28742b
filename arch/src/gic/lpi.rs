//! The tables of LPIs in memory (5.1).
//!
//! ```text
//!   Properties, one for all: a byte per LPI from 8192 on    Pending, one per pCPU: a bit per
//!   +-----------------+------+--------+                     interrupt number, kept by the
//!   | priority [7:2]  | RES1 | enable |                     redistributor alone
//!   +-----------------+------+--------+
//! ```

use super::{Error, IntId, Priority};
use crate::dma::{Coherency, Memory, Pool};
use core::ops::Range;
use core::sync::atomic::{AtomicBool, Ordering};
use tock_registers::fields::FieldValue;
use tock_registers::{LocalRegisterCopy, register_bitfields};

register_bitfields! {u64,
    /// GICR_PROPBASER (12.11) and GICR_PENDBASER (12.11) in one; each has its own fields at
    /// the ends.
    BASER [
        /// PROPBASER: bits of an interrupt number, less one.
        IDbits OFFSET(0) NUMBITS(5) [],
        /// Inner cacheability; the outer one, at zero, is the same.
        InnerCache OFFSET(7) NUMBITS(3) [
            NonCacheable = 1,
            WriteBackAllocate = 7
        ],
        /// Shareability; reads as what the redistributor can do.
        Shareability OFFSET(10) NUMBITS(2) [
            None = 0,
            Inner = 1
        ],
        /// PENDBASER: the table is all zeros.
        PTZ OFFSET(62) NUMBITS(1) []
    ]
}

/// The smallest number of bits with which there are LPIs at all.
const MIN_ID_BITS: u32 = 14;
/// What is used at most: a million LPIs.
const MAX_ID_BITS: u32 = 20;

/// The LPI is let through.
const ENABLE: u8 = 1 << 0;
/// Reads as one (5.1.1).
const RES1: u8 = 1 << 1;

/// The configuration of all LPIs.
#[derive(Debug)]
pub struct Properties {
    memory: Memory,
    id_bits: u32,
    /// Some redistributor does not snoop.
    software: AtomicBool,
}

impl Properties {
    /// Makes the table for interrupt numbers of `id_bits` bits, with all LPIs disabled. What is
    /// more than is of use is cut.
    pub fn new(id_bits: u32, pool: &mut impl Pool) -> Result<Self, Error> {
        let id_bits = clamp(id_bits)?;
        let bytes = (1usize << id_bits) - IntId::FIRST_LPI.get() as usize;
        let memory = pool.take(bytes, 0x1000).ok_or(Error::OutOfMemory)?;
        let properties = Self {
            memory,
            id_bits,
            software: AtomicBool::new(true),
        };
        for offset in 0..bytes / 8 {
            let byte = u64::from(Priority::NORMAL.get() | RES1);
            properties
                .memory
                .write64(8 * offset, byte * 0x0101_0101_0101_0101);
        }
        properties.memory.publish_all(Coherency::Software);
        properties.software.store(false, Ordering::Relaxed);
        Ok(properties)
    }

    /// Returns the number behind the last LPI.
    pub fn end(&self) -> u32 {
        1 << self.id_bits
    }

    /// Lets LPIs through or stops them, from when the ITS has invalidated what it cached of them. What is
    /// pending of those that are stopped stays so.
    pub fn set(&self, lpis: Range<u32>, enabled: bool, priority: Priority) -> Result<(), Error> {
        let first = IntId::FIRST_LPI.get();
        if lpis.start < first || lpis.end > self.end() {
            return Err(Error::NoSuchInterrupt(IntId::new(lpis.start)));
        }
        let enable = if enabled { ENABLE } else { 0 };
        let byte = priority.get() & 0xfc | RES1 | enable;
        let places = (lpis.start - first) as usize..(lpis.end.max(lpis.start) - first) as usize;
        for place in places.clone() {
            self.memory.write8(place, byte);
        }
        let coherency = self.coherency();
        self.memory.publish(places.start, places.len(), coherency);
        Ok(())
    }

    fn coherency(&self) -> Coherency {
        // Relaxed: set once at boot of each pCPU, before any LPI is mapped to it.
        match self.software.load(Ordering::Relaxed) {
            true => Coherency::Software,
            false => Coherency::Coherent,
        }
    }

    /// Tells a redistributor of the table; `write` writes GICR_PROPBASER and reads it back.
    pub(super) fn program(&self, write: impl Fn(u64) -> u64) {
        let value = self.memory.pa().get() | u64::from(self.id_bits - 1);
        if program(value, write) == Coherency::Software {
            self.software.store(true, Ordering::Relaxed);
        }
    }
}

/// The pending table of one pCPU.
#[derive(Debug)]
pub struct Pending {
    memory: Memory,
}

impl Pending {
    /// Makes an empty table for interrupt numbers of `id_bits` bits.
    pub fn new(id_bits: u32, pool: &mut impl Pool) -> Result<Self, Error> {
        let bytes = (1 << clamp(id_bits)?) / 8;
        let memory = pool.take(bytes, 0x1_0000).ok_or(Error::OutOfMemory)?;
        memory.publish_all(Coherency::Software);
        Ok(Self { memory })
    }

    /// Tells a redistributor of the table; `write` writes GICR_PENDBASER and reads it back.
    pub(super) fn program(&self, write: impl Fn(u64) -> u64) {
        program(BASER::PTZ::SET.modify(self.memory.pa().get()), write);
    }
}

fn clamp(id_bits: u32) -> Result<u32, Error> {
    if id_bits < MIN_ID_BITS {
        return Err(Error::NoLpis);
    }
    Ok(id_bits.min(MAX_ID_BITS))
}

/// Writes a table's address as cacheable and shareable, or as neither if the redistributor cannot.
fn program(value: u64, write: impl Fn(u64) -> u64) -> Coherency {
    type Value = FieldValue<u64, BASER::Register>;
    let cacheable: Value = BASER::Shareability::Inner + BASER::InnerCache::WriteBackAllocate;
    let got = LocalRegisterCopy::<u64, BASER::Register>::new(write(cacheable.modify(value)));
    if got.read(BASER::Shareability) != 0 {
        return Coherency::Coherent;
    }
    let not: Value = BASER::Shareability::None + BASER::InnerCache::NonCacheable;
    write(not.modify(value));
    Coherency::Software
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dma::testing::{ARENA, Arena};
    use std::cell::RefCell;

    #[test]
    fn an_lpi_has_its_byte() {
        let mut arena = Arena::new(0x10_0000);
        let properties = Properties::new(16, &mut arena).unwrap();
        assert_eq!(properties.memory.len(), 0xe000);
        assert_eq!(properties.memory.read8(0), 0xa2);
        let set = |lpis, enabled| properties.set(lpis, enabled, Priority::HIGH);
        set(8192..8193, true).unwrap();
        set(65535..65536, false).unwrap();
        set(8200..8203, true).unwrap();
        set(9000..9000, true).unwrap();
        let bytes = |first: usize| [0, 1, 2, 3].map(|n| properties.memory.read8(first + n));
        assert_eq!(bytes(0), [0x83, 0xa2, 0xa2, 0xa2]);
        assert_eq!(bytes(7), [0xa2, 0x83, 0x83, 0x83]);
        assert_eq!(bytes(0xdffc), [0xa2, 0xa2, 0xa2, 0x82]);
        assert_eq!(bytes(9000 - 8192), [0xa2; 4]);
        for (start, end) in [
            (0, 1),
            (8191, 8193),
            (65535, 65537),
            (65536, 65537),
            (8192, u32::MAX),
        ] {
            let error = Error::NoSuchInterrupt(IntId::new(start));
            assert_eq!(set(start..end, true), Err(error), "{start}..{end}");
        }
    }

    #[test]
    fn the_size_follows_the_number_of_bits() {
        let mut arena = Arena::new(0x100_0000);
        assert_eq!(Properties::new(13, &mut arena).err(), Some(Error::NoLpis));
        assert_eq!(Properties::new(24, &mut arena).unwrap().end(), 1 << 20);
        let pending = Pending::new(16, &mut arena).unwrap();
        assert_eq!(pending.memory.len(), 0x2000);
        assert!(pending.memory.pa().is_aligned(0x1_0000));
        let mut empty = Arena::new(0x1000);
        assert_eq!(Pending::new(16, &mut empty).err(), Some(Error::OutOfMemory));
    }

    #[test]
    fn a_redistributor_that_does_not_snoop_is_told_so() {
        let mut arena = Arena::new(0x10_0000);
        let properties = Properties::new(14, &mut arena).unwrap();
        let written = RefCell::new(Vec::new());
        properties.program(|value| {
            written.borrow_mut().push(value);
            value & !(0b11 << 10)
        });
        assert_eq!(*written.borrow(), [ARENA | 0x78d, ARENA | 0x08d]);
        assert_eq!(properties.coherency(), Coherency::Software);
    }
}
