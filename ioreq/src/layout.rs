//! How the memory that EL2 and a device model share is laid out.
//!
//! It is an array of cache lines of eight words, each word an atomic. The first lines are
//!
//! ```text
//!   line  word 0      word 1      word 2      word 3      word 4      word 5      word 6
//!  +----+-----------+-----------+-----------+-----------+-----------+-----------+-----------+
//!  | 0  | magic     | version   | bytes     | slots at  | slots     | posted at | posted    |
//!  | 1  | producer  | changes   | (written by EL2 only)                                     |
//!  | 2  | consumer  | seen      | (written by the device model only)                        |
//!  +----+-----------+-----------+-----------+-----------+-----------+-----------+-----------+
//! ```
//!
//! and then come the synchronous slots, a line each, and the posted writes, two to a line:
//!
//! ```text
//!  | s  | state     | operation | address   | data      | posted    |  (producer when it was sent)
//!  | p  | operation | address   | data      |     0     | operation | address   | data      |
//! ```
//!
//! The high half of `slots` and `posted` is the size of one in bytes, the low half their number;
//! "at" is an offset in bytes. A slot's state has its generation in the high half.

use crate::sync::{AtomicU64, Ordering, high, low, word};

/// Word 0 of the first line: "ISTHMUS" and a version of the magic itself.
pub const MAGIC: u64 = u64::from_le_bytes(*b"ISTHMUS\x01");

/// The version of the layout and of the protocol.
pub const VERSION: u32 = 1;

const LINE_BYTES: u32 = 64;
const ENTRY_BYTES: u32 = 32;
/// Header, producer's line, consumer's line.
const FIRST_SLOT: usize = 3;

/// A cache line of the shared memory.
///
/// Any bytes are valid, so that memory which is aligned to 64 bytes, mapped as long as it is used,
/// and only accessed through atomics by this side may be seen as a slice of lines.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Line([AtomicU64; 8]);

impl Line {
    /// Makes a line of zeroes.
    pub fn new() -> Self {
        Self(core::array::from_fn(|_| AtomicU64::new(0)))
    }

    /// Returns the words, which either side can reach behind the protocol's back.
    pub const fn words(&self) -> &[AtomicU64; 8] {
        &self.0
    }
}

impl Default for Line {
    fn default() -> Self {
        Self::new()
    }
}

/// What the two sides have to agree on before they share memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    slots: u32,
    posted: u32,
    lines: usize,
}

/// Why there is no such layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayoutError {
    /// The posted ring's length is neither zero nor a power of two.
    NotPowerOfTwo(u32),
    /// It would not fit into the address space.
    TooLarge,
}

impl Layout {
    /// Lays out `slots` synchronous slots, one for each vCPU of the target, and `posted` posted
    /// writes: a power of two, or zero for a server without them.
    pub fn new(slots: u32, posted: u32) -> Result<Self, LayoutError> {
        if posted != 0 && !posted.is_power_of_two() {
            return Err(LayoutError::NotPowerOfTwo(posted));
        }
        let lines = FIRST_SLOT as u64 + u64::from(slots) + u64::from(posted.div_ceil(2));
        let bytes = lines * u64::from(LINE_BYTES);
        if isize::try_from(bytes).is_err() {
            return Err(LayoutError::TooLarge);
        }
        let lines = usize::try_from(lines).map_err(|_| LayoutError::TooLarge)?;
        Ok(Self {
            slots,
            posted,
            lines,
        })
    }

    /// Returns how many synchronous slots there are.
    pub const fn slots(&self) -> u32 {
        self.slots
    }

    /// Returns how many posted writes the ring holds.
    pub const fn posted(&self) -> u32 {
        self.posted
    }

    /// Returns how many lines there are.
    pub const fn lines(&self) -> usize {
        self.lines
    }

    /// Returns how many bytes there are.
    pub const fn bytes(&self) -> usize {
        self.lines * LINE_BYTES as usize
    }

    /// Returns how many bytes the pages have that hold it all; `page` is a power of two.
    pub const fn page_bytes(&self, page: usize) -> usize {
        self.bytes().next_multiple_of(page)
    }

    /// Returns where each part is, in bytes: all of it, the slots, the posted writes.
    const fn offsets(&self) -> [u64; 3] {
        let line = LINE_BYTES as u64;
        let slots = FIRST_SLOT as u64 * line;
        [self.bytes() as u64, slots, slots + self.slots as u64 * line]
    }
}

/// Who has a slot, as the low half of its state word says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum State {
    /// Nobody: there is nothing to do.
    Free = 0,
    /// The device model: a request waits to be answered.
    Requested = 1,
    /// EL2: the answer waits to be taken.
    Answered = 2,
}

impl TryFrom<u32> for State {
    type Error = u32;

    fn try_from(value: u32) -> Result<Self, u32> {
        Ok(match value {
            0 => State::Free,
            1 => State::Requested,
            2 => State::Answered,
            other => return Err(other),
        })
    }
}

/// Makes a slot's state word.
pub(crate) const fn tag(generation: u32, state: State) -> u64 {
    word(generation, state as u32)
}

/// A synchronous slot.
pub(crate) struct Slot<'a> {
    pub(crate) state: &'a AtomicU64,
    pub(crate) operation: &'a AtomicU64,
    pub(crate) address: &'a AtomicU64,
    pub(crate) data: &'a AtomicU64,
    /// The posted ring's producer index when the request was sent.
    pub(crate) posted: &'a AtomicU64,
}

/// A posted write.
pub(crate) struct Entry<'a> {
    pub(crate) operation: &'a AtomicU64,
    pub(crate) address: &'a AtomicU64,
    pub(crate) data: &'a AtomicU64,
}

/// The shared memory, cut into its parts; the sizes are this side's own copy.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ring<'a> {
    header: &'a Line,
    pub(crate) producer: &'a AtomicU64,
    pub(crate) consumer: &'a AtomicU64,
    /// How often the server's functions have changed, and how many changes the device model has seen.
    pub(crate) changes: &'a AtomicU64,
    pub(crate) seen: &'a AtomicU64,
    slots: &'a [Line],
    posted: &'a [Line],
    /// How many posted writes there is room for: zero or a power of two.
    pub(crate) capacity: u32,
}

impl<'a> Ring<'a> {
    /// Cuts `lines` up as `layout` says; `None` if there are too few of them.
    pub(crate) fn new(lines: &'a [Line], layout: &Layout) -> Option<Self> {
        let (head, rest) = lines.split_first_chunk::<FIRST_SLOT>()?;
        let [
            header,
            Line([producer, changes, ..]),
            Line([consumer, seen, ..]),
        ] = head;
        let (slots, rest) = rest.split_at_checked(layout.slots as usize)?;
        let posted = rest.get(..layout.posted.div_ceil(2) as usize)?;
        Some(Self {
            header,
            producer,
            consumer,
            changes,
            seen,
            slots,
            posted,
            capacity: layout.posted,
        })
    }

    /// Returns how many slots there are.
    pub(crate) fn slot_count(&self) -> usize {
        self.slots.len()
    }

    /// Returns a slot, if there is one of that number.
    pub(crate) fn slot(&self, slot: u32) -> Option<Slot<'a>> {
        let Line([state, operation, address, data, posted, ..]) = self.slots.get(slot as usize)?;
        Some(Slot {
            state,
            operation,
            address,
            data,
            posted,
        })
    }

    /// Returns all slots.
    pub(crate) fn states(&self) -> impl Iterator<Item = &'a AtomicU64> {
        self.slots.iter().map(|Line([state, ..])| state)
    }

    /// Returns the posted write that the free-running `index` means; `None` if there is no ring.
    pub(crate) fn entry(&self, index: u32) -> Option<Entry<'a>> {
        let place = index & self.capacity.checked_sub(1)?;
        let Line(words) = self.posted.get((place / 2) as usize)?;
        let [o0, a0, d0, _, o1, a1, d1, _] = words;
        let (operation, address, data) = if place & 1 == 0 {
            (o0, a0, d0)
        } else {
            (o1, a1, d1)
        };
        Some(Entry {
            operation,
            address,
            data,
        })
    }

    /// Writes the header that `read_header` reads.
    ///
    /// Relaxed: the device model sees the memory only after this.
    pub(crate) fn write_header(&self, layout: &Layout) {
        let Line([magic, version, bytes, slots_at, slots, posted_at, posted, _]) = self.header;
        let places = [bytes, slots_at, posted_at];
        for (place, offset) in places.into_iter().zip(layout.offsets()) {
            place.store(offset, Ordering::Relaxed);
        }
        magic.store(MAGIC, Ordering::Relaxed);
        version.store(u64::from(VERSION), Ordering::Relaxed);
        slots.store(word(LINE_BYTES, layout.slots), Ordering::Relaxed);
        posted.store(word(ENTRY_BYTES, layout.posted), Ordering::Relaxed);
    }
}

/// Why a header cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HeaderError {
    NoRing,
    Version(u64),
    Malformed,
}

/// Reads the header and checks it against what this version knows and against the memory there is.
///
/// Relaxed: EL2 wrote it before the device model could see the memory.
pub(crate) fn read_header(lines: &[Line]) -> Result<Layout, HeaderError> {
    let Some(Line(words)) = lines.first() else {
        return Err(HeaderError::NoRing);
    };
    let read = words.each_ref().map(|word| word.load(Ordering::Relaxed));
    let [magic, version, bytes, slots_at, slots, posted_at, posted, _] = read;
    if magic != MAGIC {
        return Err(HeaderError::NoRing);
    }
    if version != u64::from(VERSION) {
        return Err(HeaderError::Version(version));
    }
    let layout = Layout::new(low(slots), low(posted)).map_err(|_| HeaderError::Malformed)?;
    let offsets = [bytes, slots_at, posted_at] == layout.offsets();
    let sizes = [high(slots), high(posted)] == [LINE_BYTES, ENTRY_BYTES];
    if offsets && sizes && layout.lines <= lines.len() {
        Ok(layout)
    } else {
        Err(HeaderError::Malformed)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::vec::Vec;

    fn lines(count: usize) -> Vec<Line> {
        (0..count).map(|_| Line::new()).collect()
    }

    #[test]
    #[rustfmt::skip]
    fn sizes_follow_from_the_counts() {
        let cases = [
            // slots, posted, lines, in pages
            (0,       0,      3,     0x1000),
            (1,       0,      4,     0x1000),
            (1,       1,      5,     0x1000),
            (1,       2,      5,     0x1000),
            (2,       64,     37,    0x1000),
            (61,      0,      64,    0x1000),
            (62,      0,      65,    0x2000),
            (4096,    256,    4227,  0x4_3000),
        ];
        for (slots, posted, lines, pages) in cases {
            let layout = Layout::new(slots, posted).unwrap();
            assert_eq!(layout.lines(), lines, "{slots} {posted}");
            assert_eq!(layout.bytes(), lines * 64);
            assert_eq!(layout.page_bytes(4096), pages);
            assert_eq!((layout.slots(), layout.posted()), (slots, posted));
        }
        assert_eq!(Layout::new(1, 3), Err(LayoutError::NotPowerOfTwo(3)));
        assert!(Layout::new(u32::MAX, 1 << 31).is_ok(), "memory is the limit");
    }

    #[test]
    fn a_line_is_a_cache_line() {
        assert_eq!(size_of::<Line>(), 64);
        assert_eq!(align_of::<Line>(), 64);
    }

    #[test]
    fn each_part_has_its_own_words() {
        let layout = Layout::new(2, 4).unwrap();
        let memory = lines(layout.lines());
        let ring = Ring::new(&memory, &layout).unwrap();
        let at = |word: &AtomicU64| {
            let start = core::ptr::from_ref(&memory[0]) as usize;
            core::ptr::from_ref(word) as usize - start
        };
        assert_eq!(at(ring.producer), 64);
        assert_eq!(at(ring.consumer), 128);
        for (slot, line) in [(0, 192), (1, 256)] {
            let slot = ring.slot(slot).unwrap();
            let words = [
                slot.state,
                slot.operation,
                slot.address,
                slot.data,
                slot.posted,
            ];
            assert_eq!(
                words.map(at),
                [0, 8, 16, 24, 32].map(|offset| line + offset)
            );
        }
        assert!(ring.slot(2).is_none());
        for (index, place) in [(0, 320), (1, 352), (2, 384), (3, 416), (4, 320), (!0, 416)] {
            let entry = ring.entry(index).unwrap();
            let words = [entry.operation, entry.address, entry.data];
            assert_eq!(words.map(at), [place, place + 8, place + 16], "{index}");
        }
    }

    #[test]
    fn a_slice_that_is_too_short_is_refused() {
        let layout = Layout::new(2, 4).unwrap();
        for count in 0..layout.lines() {
            assert!(Ring::new(&lines(count), &layout).is_none(), "{count}");
        }
        assert!(Ring::new(&lines(layout.lines() + 1), &layout).is_some());
    }

    #[test]
    fn a_ring_of_no_posted_writes_has_no_entries() {
        let layout = Layout::new(1, 0).unwrap();
        let memory = lines(layout.lines());
        assert!(Ring::new(&memory, &layout).unwrap().entry(0).is_none());
    }

    #[test]
    fn a_header_is_read_as_it_was_written_or_refused() {
        let layout = Layout::new(3, 8).unwrap();
        let memory = lines(layout.lines());
        assert_eq!(read_header(&[]), Err(HeaderError::NoRing));
        assert_eq!(read_header(&memory), Err(HeaderError::NoRing));
        Ring::new(&memory, &layout).unwrap().write_header(&layout);
        assert_eq!(read_header(&memory), Ok(layout));
        let short = &memory[..layout.lines() - 1];
        assert_eq!(read_header(short), Err(HeaderError::Malformed));
        let refused = [
            (0, HeaderError::NoRing),
            (1, HeaderError::Version(VERSION as u64 ^ 1 << 40)),
            (2, HeaderError::Malformed),
            (3, HeaderError::Malformed),
            (4, HeaderError::Malformed),
            (5, HeaderError::Malformed),
            (6, HeaderError::Malformed),
        ];
        for (word, error) in refused {
            memory[0].words()[word].fetch_xor(1 << 40, Ordering::Relaxed);
            assert_eq!(read_header(&memory), Err(error), "word {word}");
            memory[0].words()[word].fetch_xor(1 << 40, Ordering::Relaxed);
        }
        memory[0].words()[6].fetch_xor(1, Ordering::Relaxed);
        assert_eq!(
            read_header(&memory),
            Err(HeaderError::Malformed),
            "nine posted writes"
        );
    }
}
