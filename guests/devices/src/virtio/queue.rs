//! A split virtqueue, from the device's side.
//!
//! ```text
//!  descriptors             available ring (driver)      used ring (device)
//!  +---------------------+ +-------+-----+----------+-+ +-------+-----+------------+-+
//!  | addr | len | fl | nx | | flags | idx | ring ... |e| | flags | idx | {id, len}  |e|
//!  +---------------------+ +-------+-----+----------+-+ +-------+-----+------------+-+
//!    16 bytes each, `size`                  used_event             avail_event
//! ```
//!
//! Everything here comes from a guest that may be hostile: each word is read once, and what cannot be
//! right is a [`QueueError`], after which the transport asks for a reset.
//!
//! Virtual I/O Device (VIRTIO) Version 1.2, section 2.7.

use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{Ordering, fence};

use crate::memory::{GuestMemory, OutOfBounds, read_array};

/// The largest queue that any device here offers, and the most segments that a chain may have.
pub const MAX_SIZE: u16 = 256;

const DESCRIPTOR: u64 = 16;
/// Descriptor flags (2.7.5).
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
/// Flag of the available ring: the driver wants no interrupts (2.7.6).
const NO_INTERRUPT: u16 = 1;

/// What a driver did wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueError {
    /// A ring, a table or a buffer is not in the granted memory.
    OutOfBounds(OutOfBounds),
    /// A size that is no power of two, or more than the device offers.
    Size(u16),
    /// A ring's address is not aligned as 2.7 wants it.
    Unaligned(u64),
    /// The available index moved on by more than the queue has entries.
    IndexJump {
        /// How far the device had come.
        from: u16,
        /// What the driver wrote.
        to: u16,
    },
    /// A descriptor's number is not below the queue's (or the table's) size.
    NoSuchDescriptor(u16),
    /// A chain is longer than its table, so it has a loop.
    Loop,
    /// A buffer of no bytes.
    Empty,
    /// The buffers of one chain are 4 GiB or more together.
    TooLong,
    /// A buffer for the device to read follows one for it to write.
    ReadableAfterWritable,
    /// An indirect table inside of one, together with NEXT, without having been negotiated, or with a
    /// length that is no multiple of a descriptor's.
    BadIndirect,
    /// The request that the chain holds is not one: a header or a status byte is missing.
    Malformed,
    /// No memory is left to follow the chain.
    NoMemory,
}

impl From<OutOfBounds> for QueueError {
    fn from(error: OutOfBounds) -> Self {
        Self::OutOfBounds(error)
    }
}

impl fmt::Display for QueueError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OutOfBounds(error) => error.fmt(formatter),
            other => write!(formatter, "{other:?}"),
        }
    }
}

/// A buffer of a chain: where, and how many bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Where it is in guest memory.
    pub address: u64,
    /// How long it is; never zero.
    pub bytes: u32,
}

/// A request: the buffers that the device reads, and those that it writes. All are in granted memory.
#[derive(Debug, Default)]
pub struct Chain {
    head: u16,
    segments: Vec<Segment>,
    readable: usize,
}

impl Chain {
    /// Returns the buffers that the device may read.
    pub fn readable(&self) -> Segments<'_> {
        Segments::new(self.segments.get(..self.readable).unwrap_or_default())
    }

    /// Returns the buffers that the device may write.
    pub fn writable(&self) -> Segments<'_> {
        Segments::new(self.segments.get(self.readable..).unwrap_or_default())
    }

    /// Returns how many bytes all buffers have together.
    pub fn bytes(&self) -> u64 {
        let sizes = self.segments.iter().map(|segment| u64::from(segment.bytes));
        sizes.sum()
    }

    fn push(&mut self, descriptor: &Descriptor) -> Result<(), QueueError> {
        if descriptor.bytes == 0 {
            return Err(QueueError::Empty);
        }
        let writable = descriptor.flags & WRITE != 0;
        if !writable && self.readable < self.segments.len() {
            return Err(QueueError::ReadableAfterWritable);
        }
        if self.segments.len() == usize::from(MAX_SIZE) {
            return Err(QueueError::Loop);
        }
        self.segments
            .try_reserve(1)
            .map_err(|_| QueueError::NoMemory)?;
        self.segments.push(Segment {
            address: descriptor.address,
            bytes: descriptor.bytes,
        });
        if !writable {
            self.readable += 1;
        }
        Ok(())
    }

    /// Checks what only all segments together can show.
    fn check(&self, memory: &impl GuestMemory) -> Result<(), QueueError> {
        if self.bytes() > u64::from(u32::MAX) {
            return Err(QueueError::TooLong);
        }
        for segment in &self.segments {
            memory.check(segment.address, segment.bytes.into())?;
        }
        Ok(())
    }
}

/// A run of bytes spread over buffers, of which pieces can be taken: a device assumes nothing of how
/// a request is cut into buffers (2.7.4).
#[derive(Clone, Debug)]
pub struct Segments<'c> {
    /// What is left of the first buffer.
    first: Option<Segment>,
    rest: &'c [Segment],
    /// How many bytes there are; the buffers may hold more.
    bytes: u64,
}

impl<'c> Segments<'c> {
    fn new(segments: &'c [Segment]) -> Self {
        Self {
            first: None,
            rest: segments,
            bytes: segments
                .iter()
                .map(|segment| u64::from(segment.bytes))
                .sum(),
        }
    }

    /// Returns how many bytes there are.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Takes a piece of at most `limit` bytes from the front; `None` at the end.
    pub fn take(&mut self, limit: u64) -> Option<Segment> {
        let limit = limit.min(self.bytes);
        if limit == 0 {
            return None;
        }
        let first = match self.first.take() {
            Some(first) => first,
            None => {
                let (first, rest) = self.rest.split_first()?;
                self.rest = rest;
                *first
            }
        };
        let bytes = u32::try_from(limit).map_or(first.bytes, |limit| limit.min(first.bytes));
        if bytes < first.bytes {
            self.first = Some(Segment {
                // The segment was found to be in granted memory, which does not reach 2^64.
                address: first.address.wrapping_add(bytes.into()),
                bytes: first.bytes - bytes,
            });
        }
        self.bytes -= u64::from(bytes);
        Some(Segment { bytes, ..first })
    }

    /// Takes bytes from the front and fills `buffer` with them; [`QueueError::Malformed`] if there
    /// are fewer.
    pub fn read(
        &mut self,
        memory: &impl GuestMemory,
        mut buffer: &mut [u8],
    ) -> Result<(), QueueError> {
        while !buffer.is_empty() {
            let piece = self
                .take(buffer.len() as u64)
                .ok_or(QueueError::Malformed)?;
            let (now, later) = buffer.split_at_mut(piece.bytes as usize);
            memory.read(piece.address, now)?;
            buffer = later;
        }
        Ok(())
    }

    /// Takes bytes from the front and writes `bytes` to them, and returns how many there was room for.
    pub fn write(
        &mut self,
        memory: &impl GuestMemory,
        mut bytes: &[u8],
    ) -> Result<u32, QueueError> {
        let mut written = 0;
        while let Some(piece) = self.take(bytes.len() as u64) {
            let (now, later) = bytes.split_at(piece.bytes as usize);
            memory.write(piece.address, now)?;
            bytes = later;
            written += piece.bytes;
        }
        Ok(written)
    }

    /// Splits into the first `bytes` bytes and the rest; `None` if there are fewer.
    pub fn split_at(mut self, bytes: u64) -> Option<(Self, Self)> {
        if bytes > self.bytes {
            return None;
        }
        let mut front = self.clone();
        front.bytes = bytes;
        let mut left = bytes;
        while left > 0 {
            left -= u64::from(self.take(left)?.bytes);
        }
        Some((front, self))
    }
}

struct Descriptor {
    address: u64,
    bytes: u32,
    flags: u16,
    next: u16,
}

impl Descriptor {
    fn read(memory: &impl GuestMemory, table: u64, index: u16) -> Result<Self, QueueError> {
        let at = table.wrapping_add(u64::from(index) * DESCRIPTOR);
        let [
            a0,
            a1,
            a2,
            a3,
            a4,
            a5,
            a6,
            a7,
            l0,
            l1,
            l2,
            l3,
            f0,
            f1,
            n0,
            n1,
        ] = read_array(memory, at)?;
        Ok(Self {
            address: u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]),
            bytes: u32::from_le_bytes([l0, l1, l2, l3]),
            flags: u16::from_le_bytes([f0, f1]),
            next: u16::from_le_bytes([n0, n1]),
        })
    }
}

/// Which of the queue's features were negotiated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingFeatures {
    /// VIRTIO_F_INDIRECT_DESC.
    pub indirect: bool,
    /// VIRTIO_F_EVENT_IDX.
    pub event_index: bool,
}

/// Where a driver put a queue's three parts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rings {
    /// The descriptor table.
    pub descriptors: u64,
    /// The available ring.
    pub driver: u64,
    /// The used ring.
    pub device: u64,
}

/// A queue that a driver has enabled.
#[derive(Debug)]
pub struct Queue {
    rings: Rings,
    size: u16,
    features: RingFeatures,
    /// The next entry of the available ring that has not been looked at.
    next_available: u16,
    /// What the used ring's index is.
    next_used: u16,
    /// What the used ring's index was when the driver was last told, or chose not to be.
    told: u16,
}

impl Queue {
    /// Takes over a queue of `size` entries, if it can be one.
    pub fn new(
        memory: &impl GuestMemory,
        rings: Rings,
        size: u16,
        limit: u16,
        features: RingFeatures,
    ) -> Result<Self, QueueError> {
        if !size.is_power_of_two() || size > limit.min(MAX_SIZE) {
            return Err(QueueError::Size(size));
        }
        let entries = u64::from(size);
        let parts = [
            (rings.descriptors, 16, entries * DESCRIPTOR),
            (rings.driver, 2, 6 + entries * 2),
            (rings.device, 4, 6 + entries * 8),
        ];
        for (address, alignment, bytes) in parts {
            if !address.is_multiple_of(alignment) {
                return Err(QueueError::Unaligned(address));
            }
            memory.check(address, bytes)?;
        }
        Ok(Self {
            rings,
            size,
            features,
            next_available: 0,
            next_used: 0,
            told: 0,
        })
    }

    /// Takes the next chain that the driver made available.
    pub fn pop(&mut self, memory: &impl GuestMemory) -> Result<Option<Chain>, QueueError> {
        let index = memory.load_u16(self.rings.driver + 2)?;
        if index == self.next_available {
            return Ok(None);
        }
        if index.wrapping_sub(self.next_available) > self.size {
            return Err(QueueError::IndexJump {
                from: self.next_available,
                to: index,
            });
        }
        let slot = u64::from(self.next_available & (self.size - 1));
        let head = u16::from_le_bytes(read_array(memory, self.rings.driver + 4 + 2 * slot)?);
        self.next_available = self.next_available.wrapping_add(1);
        self.follow(memory, head).map(Some)
    }

    fn follow(&self, memory: &impl GuestMemory, head: u16) -> Result<Chain, QueueError> {
        let mut chain = Chain {
            head,
            ..Chain::default()
        };
        let mut index = head;
        for _ in 0..self.size {
            if index >= self.size {
                return Err(QueueError::NoSuchDescriptor(index));
            }
            let descriptor = Descriptor::read(memory, self.rings.descriptors, index)?;
            if descriptor.flags & INDIRECT != 0 {
                self.follow_indirect(memory, &descriptor, &mut chain)?;
            } else {
                chain.push(&descriptor)?;
            }
            if descriptor.flags & NEXT == 0 {
                chain.check(memory)?;
                return Ok(chain);
            }
            index = descriptor.next;
        }
        Err(QueueError::Loop)
    }

    /// Follows the chain in an indirect table (2.7.5.3), which ends the chain that led to it.
    fn follow_indirect(
        &self,
        memory: &impl GuestMemory,
        table: &Descriptor,
        chain: &mut Chain,
    ) -> Result<(), QueueError> {
        let entries = u64::from(table.bytes) / DESCRIPTOR;
        let whole = u64::from(table.bytes).is_multiple_of(DESCRIPTOR) && entries > 0;
        if !self.features.indirect || table.flags & NEXT != 0 || !whole {
            return Err(QueueError::BadIndirect);
        }
        memory.check(table.address, table.bytes.into())?;
        let mut index = 0;
        for _ in 0..entries.min(MAX_SIZE.into()) {
            if u64::from(index) >= entries {
                return Err(QueueError::NoSuchDescriptor(index));
            }
            let descriptor = Descriptor::read(memory, table.address, index)?;
            if descriptor.flags & INDIRECT != 0 {
                return Err(QueueError::BadIndirect);
            }
            chain.push(&descriptor)?;
            if descriptor.flags & NEXT == 0 {
                return Ok(());
            }
            index = descriptor.next;
        }
        Err(QueueError::Loop)
    }

    /// Gives a chain back, of whose writable buffers `written` bytes were written.
    pub fn push(
        &mut self,
        memory: &impl GuestMemory,
        chain: Chain,
        written: u32,
    ) -> Result<(), QueueError> {
        let slot = u64::from(self.next_used & (self.size - 1));
        let mut element = [0; 8];
        let (id, len) = element.split_at_mut(4);
        id.copy_from_slice(&u32::from(chain.head).to_le_bytes());
        len.copy_from_slice(&written.to_le_bytes());
        memory.write(self.rings.device + 4 + 8 * slot, &element)?;
        self.next_used = self.next_used.wrapping_add(1);
        // Release: pairs with the driver's read of the index, behind which it reads the element.
        memory.store_u16(self.rings.device + 2, self.next_used)?;
        Ok(())
    }

    /// Tells whether the driver wants an interrupt for what was given back since it was last asked.
    pub fn wants_interrupt(&mut self, memory: &impl GuestMemory) -> Result<bool, QueueError> {
        let told = core::mem::replace(&mut self.told, self.next_used);
        if told == self.next_used {
            return Ok(false);
        }
        // The used index is written before the driver's wish is read: pairs with the driver's
        // barrier between writing its wish and looking at the index once more.
        fence(Ordering::SeqCst);
        if !self.features.event_index {
            return Ok(memory.load_u16(self.rings.driver)? & NO_INTERRUPT == 0);
        }
        let event = memory.load_u16(self.rings.driver + 4 + 2 * u64::from(self.size))?;
        // 2.7.10: an interrupt is due when the index has passed the event.
        let passed = self.next_used.wrapping_sub(event).wrapping_sub(1);
        Ok(passed < self.next_used.wrapping_sub(told))
    }

    /// Asks the driver to notify for the next chain, and tells whether one is there already.
    pub fn wait_for_more(&self, memory: &impl GuestMemory) -> Result<bool, QueueError> {
        if self.features.event_index {
            let event = self.rings.device + 4 + 8 * u64::from(self.size);
            memory.store_u16(event, self.next_available)?;
            // Our wish is written before the index is read once more: pairs with the driver's
            // barrier between writing the index and reading our wish.
            fence(Ordering::SeqCst);
        }
        Ok(memory.load_u16(self.rings.driver + 2)? != self.next_available)
    }
}
