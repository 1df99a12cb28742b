//! The stream table: what becomes of a stream's accesses (5.1, 5.2).
//!
//! ```text
//!   linear: StreamID is the index             two levels: its upper bits are the index of a
//!   +-----+-----+-----+---                    descriptor, its lower SPLIT bits that in a table
//!   | STE | STE | STE |                       +------+------+---
//!   +-----+-----+-----+---                    | desc | desc |       --> | STE | STE |
//! ```
//!
//! An entry refuses or translates as its first word says, so that is what is written last when a
//! stream is attached, and first when it is detached.

use super::registers::*;
use super::{AddressSpace, Capabilities, Error, Format};
use crate::address::Pa;
use crate::dma::{Coherency, Memory, Pool, index};
use crate::mmio::Bus;
use alloc::vec::Vec;
use tock_registers::fields::FieldValue;
use tock_registers::register_bitfields;

/// Words of a stream table entry, and of a context descriptor.
pub(super) const WORDS: usize = 8;
const ENTRY_BYTES: usize = 8 * WORDS;
/// Size of a context descriptor.
pub(super) const CONTEXT_BYTES: usize = 64;

register_bitfields! {u64,
    /// Stream table entry (5.2), first word.
    STE0 [
        V OFFSET(0) NUMBITS(1) [],
        Config OFFSET(1) NUMBITS(3) [
            Abort = 0b000,
            Stage1 = 0b101,
            Stage2 = 0b110
        ]
        // S1ContextPtr is bits 51 to 6.
    ],
    /// Second word.
    STE1 [
        S1CIR OFFSET(2) NUMBITS(2) [WriteBack = 1],
        S1COR OFFSET(4) NUMBITS(2) [WriteBack = 1],
        S1CSH OFFSET(6) NUMBITS(2) [Inner = 3],
        /// Events that are alike may be recorded as one.
        MEV OFFSET(19) NUMBITS(1) [],
        /// A fault does not stall.
        S1STALLD OFFSET(27) NUMBITS(1) [],
        /// Shareability is the incoming one.
        SHCFG OFFSET(44) NUMBITS(2) [Incoming = 1]
    ],
    /// Third word. The manual counts its bits from 128.
    STE2 [
        S2VMID OFFSET(0) NUMBITS(16) [],
        S2T0SZ OFFSET(32) NUMBITS(6) [],
        S2SL0 OFFSET(38) NUMBITS(2) [],
        S2IR0 OFFSET(40) NUMBITS(2) [WriteBack = 1],
        S2OR0 OFFSET(42) NUMBITS(2) [WriteBack = 1],
        S2SH0 OFFSET(44) NUMBITS(2) [Inner = 3],
        /// 0 is 4 KiB.
        S2TG OFFSET(46) NUMBITS(2) [],
        S2PS OFFSET(48) NUMBITS(3) [],
        /// AArch64 tables.
        S2AA64 OFFSET(51) NUMBITS(1) [],
        /// The access flag does not count.
        S2AFFD OFFSET(53) NUMBITS(1) [],
        /// Faults are recorded.
        S2R OFFSET(58) NUMBITS(1) []
    ],
    /// Context descriptor (5.4), first word. The second is the table's address.
    CD0 [
        T0SZ OFFSET(0) NUMBITS(6) [],
        IR0 OFFSET(8) NUMBITS(2) [WriteBack = 1],
        OR0 OFFSET(10) NUMBITS(2) [WriteBack = 1],
        SH0 OFFSET(12) NUMBITS(2) [Inner = 3],
        /// The upper half of the address space is not translated.
        EPD1 OFFSET(30) NUMBITS(1) [],
        V OFFSET(31) NUMBITS(1) [],
        IPS OFFSET(32) NUMBITS(3) [],
        /// The access flag does not count.
        AFFD OFFSET(35) NUMBITS(1) [],
        /// AArch64 tables.
        AA64 OFFSET(41) NUMBITS(1) [],
        /// Faults are recorded.
        R OFFSET(45) NUMBITS(1) [],
        /// Faults abort.
        A OFFSET(46) NUMBITS(1) [],
        /// The ASID is the SMMU's own.
        ASET OFFSET(47) NUMBITS(1) [],
        ASID OFFSET(48) NUMBITS(16) []
    ]
}

/// First word of an entry that refuses everything, and records nothing.
pub(super) const ABORT: u64 = STE0::V::SET.value;

/// First word of an entry that refuses everything, each time with an event.
pub(super) const INVALID: u64 = 0;

/// Memory attributes of [`Format::NORMAL`] and [`Format::DEVICE`] (MAIR, fourth word of a context
/// descriptor).
const MAIR: u64 = 0xff << (8 * Format::NORMAL) | 0x04 << (8 * Format::DEVICE);

/// Returns the code of an output address size (IDR5.OAS, STE.S2PS, CD.IPS).
fn output_size(capabilities: &Capabilities) -> u64 {
    match capabilities.output_bits {
        ..36 => 0,
        36..40 => 1,
        40..42 => 2,
        42..44 => 3,
        44..48 => 4,
        48.. => 5,
    }
}

/// Returns the first word of the entry of a stream that is translated: by stage 1, if it has a context
/// descriptor.
pub(super) fn first(context: Option<Pa>) -> u64 {
    let fields: FieldValue<u64, STE0::Register> = match context {
        Some(_) => STE0::V::SET + STE0::Config::Stage1,
        None => STE0::V::SET + STE0::Config::Stage2,
    };
    fields.value | context.map_or(0, Pa::get)
}

/// Returns the entry of a stream that stage 2 translates.
pub(super) fn stage2(space: &AddressSpace, capabilities: &Capabilities) -> [u64; WORDS] {
    let start = match space.input_bits {
        40.. => 2, // level 0
        31.. => 1, // level 1
        _ => 0,    // level 2
    };
    let mut third = STE2::S2VMID.val(u64::from(space.id))
        + STE2::S2T0SZ.val(64 - u64::from(space.input_bits))
        + STE2::S2SL0.val(start)
        + STE2::S2PS.val(output_size(capabilities))
        + STE2::S2AA64::SET
        + STE2::S2AFFD::SET
        + STE2::S2R::SET;
    if capabilities.coherency == Coherency::Coherent {
        third += STE2::S2IR0::WriteBack + STE2::S2OR0::WriteBack + STE2::S2SH0::Inner;
    }
    let second: FieldValue<u64, STE1::Register> = STE1::SHCFG::Incoming + STE1::MEV::SET;
    [
        first(None),
        second.value,
        third.value,
        space.root.get(),
        0,
        0,
        0,
        0,
    ]
}

/// Returns the entry of a stream that stage 1 translates, as its context descriptor says.
pub(super) fn stage1(context: Pa, capabilities: &Capabilities) -> [u64; WORDS] {
    let mut second: FieldValue<u64, STE1::Register> = STE1::SHCFG::Incoming + STE1::MEV::SET;
    if capabilities.coherency == Coherency::Coherent {
        second += STE1::S1CIR::WriteBack + STE1::S1COR::WriteBack + STE1::S1CSH::Inner;
    }
    if capabilities.stall {
        second += STE1::S1STALLD::SET;
    }
    [first(Some(context)), second.value, 0, 0, 0, 0, 0, 0]
}

/// Returns the context descriptor of a stage 1 that translates like a stage 2.
pub(super) fn context(space: &AddressSpace, capabilities: &Capabilities) -> [u64; WORDS] {
    let mut first = CD0::T0SZ.val(64 - u64::from(space.input_bits))
        + CD0::EPD1::SET
        + CD0::V::SET
        + CD0::IPS.val(output_size(capabilities))
        + CD0::AFFD::SET
        + CD0::AA64::SET
        + CD0::R::SET
        + CD0::A::SET
        + CD0::ASET::SET
        + CD0::ASID.val(u64::from(space.id));
    if capabilities.coherency == Coherency::Coherent {
        first += CD0::IR0::WriteBack + CD0::OR0::WriteBack + CD0::SH0::Inner;
    }
    [first.value, space.root.get(), 0, MAIR, 0, 0, 0, 0]
}

/// The stream table.
#[derive(Debug)]
pub(super) struct StreamTable {
    memory: Memory,
    coherency: Coherency,
    /// Bits of a StreamID that there is room for.
    bits: u8,
    /// Bits of the second level, and its tables by index of the first; `None` if linear.
    split: Option<(u8, Vec<(usize, Memory)>)>,
}

/// A linear table of as many bits is not worth a second level: 16 KiB.
const LINEAR_BITS: u8 = 8;
/// The most bits of the first level: 1 MiB.
const FIRST_BITS: u8 = 17;

impl StreamTable {
    /// Makes a table for `streams` StreamIDs, all refused.
    pub(super) fn new(
        capabilities: &Capabilities,
        streams: u64,
        pool: &mut impl Pool,
    ) -> Result<Self, Error> {
        let wanted = streams.max(2).next_power_of_two().trailing_zeros();
        let bits = capabilities.stream_bits.min(super::byte(wanted));
        let (bits, split) = shape(bits, capabilities.two_level);
        let bytes = match split {
            None => ENTRY_BYTES << bits,
            Some(split) => 8 << (bits - split),
        };
        let align = bytes.max(ENTRY_BYTES);
        let memory = pool.take(align, align).ok_or(Error::OutOfMemory)?;
        capabilities.reaches(&memory)?;
        if split.is_none() {
            refuse(&memory);
        }
        let coherency = capabilities.coherency;
        memory.publish_all(coherency);
        Ok(Self {
            memory,
            coherency,
            bits,
            split: split.map(|split| (split, Vec::new())),
        })
    }

    /// Tells the SMMU where the table is; it is off.
    pub(super) fn install(&self, bus: &impl Bus) {
        let base = BASE::ALLOCATE::SET.modify(self.memory.pa().get());
        SMMU_STRTAB_BASE.set(bus, base);
        let size = STRTAB_BASE_CFG::LOG2SIZE.val(u32::from(self.bits));
        let shape = match self.split {
            None => STRTAB_BASE_CFG::FMT::Linear + STRTAB_BASE_CFG::SPLIT.val(0),
            Some((split, _)) => {
                STRTAB_BASE_CFG::FMT::TwoLevel + STRTAB_BASE_CFG::SPLIT.val(u32::from(split))
            }
        };
        SMMU_STRTAB_BASE_CFG.write(bus, size + shape);
    }

    /// Sees to it that a stream has an entry. What the SMMU cached on the way to it is to be
    /// forgotten before it is used.
    pub(super) fn provide(
        &mut self,
        stream: u32,
        capabilities: &Capabilities,
        pool: &mut impl Pool,
    ) -> Result<(), Error> {
        if u64::from(stream) >> self.bits != 0 {
            return Err(Error::NoSuchStream(stream));
        }
        let Some((split, tables)) = &mut self.split else {
            return Ok(());
        };
        let first = stream as usize >> *split;
        let Err(at) = tables.binary_search_by_key(&first, |(first, _)| *first) else {
            return Ok(());
        };
        tables.try_reserve(1).map_err(|_| Error::OutOfMemory)?;
        let bytes = ENTRY_BYTES << *split;
        let memory = pool.take(bytes, bytes).ok_or(Error::OutOfMemory)?;
        if let Err(error) = capabilities.reaches(&memory) {
            pool.give_back(memory);
            return Err(error);
        }
        refuse(&memory);
        memory.publish_all(self.coherency);
        // Span, one more than the bits of the table, and where it is (5.1).
        self.memory
            .write64(8 * first, u64::from(*split + 1) | memory.pa().get());
        self.memory.publish(8 * first, 8, self.coherency);
        tables.insert(at, (first, memory));
        Ok(())
    }

    /// Returns where a stream's entry is; `None` if it has none yet, and so is refused.
    fn entry(&self, stream: u32) -> Result<Option<(&Memory, usize)>, Error> {
        if u64::from(stream) >> self.bits != 0 {
            return Err(Error::NoSuchStream(stream));
        }
        let n = index(u64::from(stream));
        let Some((split, tables)) = &self.split else {
            return Ok(Some((&self.memory, n * ENTRY_BYTES)));
        };
        let found = tables.binary_search_by_key(&(n >> split), |(first, _)| *first);
        let table = found.ok().and_then(|at| tables.get(at));
        let offset = (n & ((1 << split) - 1)) * ENTRY_BYTES;
        Ok(table.map(|(_, memory)| (memory, offset)))
    }

    /// Returns whether a stream's accesses are refused, and nothing is left in its entry.
    pub(super) fn is_clear(&self, stream: u32) -> Result<bool, Error> {
        let entry = self.entry(stream)?;
        Ok(entry.is_none_or(|(memory, offset)| {
            let rest = (1..WORDS).all(|n| memory.read64(offset + 8 * n) == 0);
            memory.read64(offset) == ABORT && rest
        }))
    }

    /// Returns the VMID of a stream; or the ASID, if it has a context descriptor.
    pub(super) fn id(&self, stream: u32, context: Option<&Memory>) -> Result<u16, Error> {
        let (memory, offset) = self.entry(stream)?.ok_or(Error::NoSuchStream(stream))?;
        let id = match context {
            Some(context) => CD0::ASID.read(context.read64(0)),
            None => STE2::S2VMID.read(memory.read64(offset + 16)),
        };
        Ok((id & 0xffff) as u16)
    }

    /// Returns the first word of an entry.
    pub(super) fn first(&self, stream: u32) -> Result<u64, Error> {
        let (memory, offset) = self.entry(stream)?.ok_or(Error::NoSuchStream(stream))?;
        Ok(memory.read64(offset))
    }

    /// Writes the first word of an entry: from here on it refuses, or translates.
    pub(super) fn write_first(&self, stream: u32, word: u64) -> Result<(), Error> {
        let (memory, offset) = self.entry(stream)?.ok_or(Error::NoSuchStream(stream))?;
        memory.write64(offset, word);
        memory.publish(offset, 8, self.coherency);
        Ok(())
    }

    /// Writes all words of an entry but the first, while it refuses.
    pub(super) fn write_rest(&self, stream: u32, words: &[u64; WORDS]) -> Result<(), Error> {
        let (memory, offset) = self.entry(stream)?.ok_or(Error::NoSuchStream(stream))?;
        assert_eq!(memory.read64(offset), ABORT);
        for (n, word) in words.iter().enumerate().skip(1) {
            memory.write64(offset + 8 * n, *word);
        }
        memory.publish(offset, ENTRY_BYTES, self.coherency);
        Ok(())
    }
}

/// Makes all entries of a table refuse.
fn refuse(memory: &Memory) {
    for entry in 0..memory.len() / ENTRY_BYTES {
        memory.write64(entry * ENTRY_BYTES, ABORT);
    }
}

/// Chooses the shape of a table: how many bits of a StreamID it has room for, and how many of these
/// are of the second level.
///
/// SPLIT is 6, 8 or 10 (6.3.24): second-level tables of 4, 16 or 64 KiB.
fn shape(bits: u8, two_level: bool) -> (u8, Option<u8>) {
    if bits <= LINEAR_BITS || !two_level {
        return (bits, None);
    }
    let split = [6, 8, 10]
        .into_iter()
        .find(|split| bits <= FIRST_BITS + split)
        .unwrap_or(10);
    (bits.min(FIRST_BITS + split), Some(split))
}
