//! A tree of tables: what EL2 stage 1 and stage 2 have in common.
//!
//! The tree knows levels, addresses and the order of changes; attributes are bits that it carries.

use core::ops::Range;

use super::{ENTRIES, Frames, MapError};
use crate::address::{PAGE_SIZE, Pa};

/// Bits 47:12, the output address of a leaf or of a table (D8.3, "Translation table descriptor formats", 48-bit addresses).
const ADDRESS: u64 = 0x0000_ffff_ffff_f000;
/// One past the greatest output address.
const OUTPUT_END: u64 = 1 << 48;
/// The descriptor is valid.
const VALID: u64 = 1 << 0;
/// Above level 3: the descriptor leads to a table. At level 3: it is a page, not reserved.
const TABLE_OR_PAGE: u64 = 1 << 1;
/// The level of pages.
const LAST_LEVEL: u8 = 3;
/// The first level at which an entry may map memory.
const FIRST_BLOCK_LEVEL: u8 = 1;

/// What a descriptor says.
enum Entry {
    Invalid,
    Table(Pa),
    Leaf(u64),
}

impl Entry {
    fn decode(level: u8, entry: u64) -> Self {
        if entry & VALID == 0 {
            Self::Invalid
        } else if level < LAST_LEVEL && entry & TABLE_OR_PAGE != 0 {
            Self::Table(Pa::new(entry & ADDRESS))
        } else {
            Self::Leaf(entry)
        }
    }

    fn table(table: Pa) -> u64 {
        table.get() | TABLE_OR_PAGE | VALID
    }

    fn leaf(level: u8, output: u64, attributes: u64) -> u64 {
        let page = if level == LAST_LEVEL {
            TABLE_OR_PAGE
        } else {
            0
        };
        output | attributes | page | VALID
    }
}

/// The part of a range that falls to one entry of a table.
struct Piece {
    index: usize,
    range: Range<u64>,
}

impl Piece {
    /// Returns whether a leaf at `level` can map the piece to `output`.
    fn fits(&self, level: u8, output: u64) -> bool {
        let size = entry_size(level);
        level >= FIRST_BLOCK_LEVEL
            && self.range.end - self.range.start == size
            && output.is_multiple_of(size)
    }
}

/// Returns how many bytes an entry of `level` covers.
#[inline]
fn entry_size(level: u8) -> u64 {
    // Levels are 0 to 3: no check is needed.
    1u64.wrapping_shl(39u32.wrapping_sub(9 * u32::from(level)))
}

/// Returns the entry of a `level` table that `input` falls to.
#[expect(clippy::cast_possible_truncation, reason = "nine bits are left")]
fn index(level: u8, input: u64) -> usize {
    (input / entry_size(level) % ENTRIES as u64) as usize
}

/// Returns the first entry and the number of entries of one `level` table that `range` falls to.
fn entries(level: u8, range: &Range<u64>) -> (usize, usize) {
    let first = index(level, range.start);
    (first, index(level, range.end - 1) - first + 1)
}

/// Cuts a range, which lies within one table of `level`, into the pieces of its entries.
fn pieces(level: u8, range: Range<u64>) -> impl Iterator<Item = Piece> {
    let size = entry_size(level);
    let mut start = range.start;
    core::iter::from_fn(move || {
        if start >= range.end {
            return None;
        }
        let end = range.end.min((start | (size - 1)) + 1);
        let piece = Piece {
            index: index(level, start),
            range: start..end,
        };
        start = end;
        Some(piece)
    })
}

/// Tables that no walker reads, chained through entry 0. A chained entry has bit 0 clear, so that
/// a walker that still knows the table finds nothing in it.
#[derive(Default)]
struct Chain(Option<Pa>);

impl Chain {
    fn push(&mut self, frames: &mut impl Frames, table: Pa) {
        frames.write(table, 0, self.0.map_or(0, Pa::get));
        self.0 = Some(table);
    }

    /// Returns a table that is all zeros, if those that were pushed were.
    fn pop(&mut self, frames: &mut impl Frames) -> Option<Pa> {
        let table = self.0?;
        let next = frames.read(table, 0);
        self.0 = (next != 0).then_some(Pa::new(next));
        frames.write(table, 0, 0);
        Some(table)
    }

    fn free(&mut self, frames: &mut impl Frames) {
        while let Some(table) = self.pop(frames) {
            frames.free(table);
        }
    }
}

/// A tree of tables.
pub(super) struct Tree {
    root: Pa,
    first_level: u8,
}

impl Tree {
    /// Makes a tree that maps nothing.
    pub(super) fn new(frames: &mut impl Frames, first_level: u8) -> Option<Self> {
        let root = frames.allocate()?;
        frames.publish(root, 0, ENTRIES);
        Some(Self { root, first_level })
    }

    /// Returns the first table.
    pub(super) fn root(&self) -> Pa {
        self.root
    }

    /// Checks a range of input addresses.
    fn range(&self, input: u64, len: u64) -> Result<Range<u64>, MapError<u64>> {
        if (input | len) & (PAGE_SIZE - 1) != 0 || len == 0 {
            return Err(MapError::Misaligned);
        }
        let limit = entry_size(self.first_level) * ENTRIES as u64;
        match input.checked_add(len) {
            Some(end) if end <= limit => Ok(input..end),
            _ => Err(MapError::OutOfRange),
        }
    }

    /// Maps `len` bytes from `input` on to `output`, by the largest blocks that alignment allows.
    ///
    /// The tables that this takes are there before the first descriptor is written, so that an
    /// error leaves nothing behind that a walker could have seen.
    #[expect(
        clippy::needless_pass_by_ref_mut,
        reason = "the tables that `self` leads to change"
    )]
    pub(super) fn map(
        &mut self,
        frames: &mut impl Frames,
        input: u64,
        output: Pa,
        len: u64,
        attributes: u64,
    ) -> Result<(), MapError<u64>> {
        let range = self.range(input, len)?;
        if !output.is_aligned(PAGE_SIZE) {
            return Err(MapError::Misaligned);
        }
        if output
            .checked_add(len)
            .is_none_or(|end| end.get() > OUTPUT_END)
        {
            return Err(MapError::OutOfRange);
        }
        let output = output.get();
        let (table, level) = self.table_of(frames, &range);
        let missing = survey(frames, Some(table), level, range.clone(), output)
            .map_err(MapError::AlreadyMapped)?;
        let mut spare = Chain::default();
        for _ in 0..missing {
            let Some(table) = frames.allocate() else {
                spare.free(frames);
                return Err(MapError::OutOfTables);
            };
            spare.push(frames, table);
        }
        fill(
            frames,
            &mut spare,
            (table, false),
            level,
            range,
            output,
            attributes,
        );
        Ok(())
    }

    /// Unmaps what is mapped in a range, and frees the tables that it leaves empty.
    ///
    /// `invalidate` drops what is cached of the translation of a start and length.
    pub(super) fn unmap(
        &mut self,
        frames: &mut impl Frames,
        invalidate: &impl Fn(u64, u64),
        input: u64,
        len: u64,
    ) -> Result<(), MapError<u64>> {
        let range = self.range(input, len)?;
        self.split(frames, invalidate, range.start)?;
        self.split(frames, invalidate, range.end)?;
        let mut dead = Chain::default();
        clear(frames, &mut dead, self.root, self.first_level, range);
        invalidate(input, len);
        dead.free(frames);
        Ok(())
    }

    /// Returns the lowest table that there is of those that cover a whole range, and its level.
    fn table_of(&self, frames: &impl Frames, range: &Range<u64>) -> (Pa, u8) {
        let (mut table, mut level) = (self.root, self.first_level);
        let differing = range.start ^ (range.end - 1);
        while level < LAST_LEVEL && differing < entry_size(level) {
            let entry = frames.read(table, index(level, range.start));
            let Entry::Table(child) = Entry::decode(level, entry) else {
                break;
            };
            table = child;
            level += 1;
        }
        (table, level)
    }

    /// Returns the output address and the descriptor of an input address.
    pub(super) fn translate(&self, frames: &impl Frames, input: u64) -> Option<(Pa, u64)> {
        let mut level = self.first_level;
        if input >= entry_size(level) * ENTRIES as u64 {
            return None;
        }
        let mut table = self.root;
        loop {
            match Entry::decode(level, frames.read(table, index(level, input))) {
                Entry::Invalid => return None,
                Entry::Table(child) => table = child,
                Entry::Leaf(entry) => {
                    let offset = input & (entry_size(level) - 1);
                    return Some((Pa::new((entry & ADDRESS) + offset), entry));
                }
            }
            level += 1;
        }
    }

    /// Frees all tables. No walker uses the tree, and nothing of it is cached any more.
    pub(super) fn destroy(self, frames: &mut impl Frames) {
        free_below(frames, self.root, self.first_level);
    }

    /// Replaces each block that `boundary` lies inside of by a table of smaller ones, so that no
    /// leaf covers both sides of it.
    #[expect(
        clippy::needless_pass_by_ref_mut,
        reason = "the tables that `self` leads to change"
    )]
    fn split(
        &mut self,
        frames: &mut impl Frames,
        invalidate: &impl Fn(u64, u64),
        boundary: u64,
    ) -> Result<(), MapError<u64>> {
        let mut table = self.root;
        let mut level = self.first_level;
        while !boundary.is_multiple_of(entry_size(level)) {
            let slot = index(level, boundary);
            table = match Entry::decode(level, frames.read(table, slot)) {
                Entry::Invalid => return Ok(()),
                Entry::Table(child) => child,
                Entry::Leaf(entry) => {
                    let child = frames.allocate().ok_or(MapError::OutOfTables)?;
                    let size = entry_size(level);
                    fill_split(frames, child, level + 1, entry);
                    frames.write(table, slot, 0);
                    frames.publish(table, slot, 1);
                    invalidate(boundary & !(size - 1), size);
                    frames.write(table, slot, Entry::table(child));
                    frames.publish(table, slot, 1);
                    child
                }
            };
            level += 1;
        }
        Ok(())
    }
}

/// Returns how many tables are missing to map `range` to `output` below `table`, or the address of
/// something that is mapped already. Without a table, nothing is mapped.
fn survey(
    frames: &impl Frames,
    table: Option<Pa>,
    level: u8,
    range: Range<u64>,
    output: u64,
) -> Result<usize, u64> {
    let start = range.start;
    if level == LAST_LEVEL {
        let Some(table) = table else { return Ok(0) };
        let (first, count) = entries(level, &range);
        let taken = (0..count).find(|at| frames.read(table, first + at) & VALID != 0);
        return taken.map_or(Ok(0), |at| Err(start + at as u64 * PAGE_SIZE));
    }
    let mut missing = 0;
    for piece in pieces(level, range) {
        let output = output + (piece.range.start - start);
        let entry = match table {
            Some(table) => Entry::decode(level, frames.read(table, piece.index)),
            None => Entry::Invalid,
        };
        missing += match entry {
            Entry::Leaf(_) => return Err(piece.range.start),
            Entry::Table(child) => survey(frames, Some(child), level + 1, piece.range, output)?,
            Entry::Invalid if piece.fits(level, output) => 0,
            Entry::Invalid => 1 + survey(frames, None, level + 1, piece.range, output)?,
        };
    }
    Ok(missing)
}

/// Maps `range` to `output` below `table`, with tables from `spare`, which holds enough of them,
/// and publishes the table: all of it if it is new, or what was written.
///
/// A table is filled and published before the entry that leads to it is written.
fn fill(
    frames: &mut impl Frames,
    spare: &mut Chain,
    (table, is_new): (Pa, bool),
    level: u8,
    range: Range<u64>,
    output: u64,
    attributes: u64,
) {
    let (first, count) = if is_new {
        (0, ENTRIES)
    } else {
        entries(level, &range)
    };
    if level == LAST_LEVEL {
        let (at, pages) = entries(level, &range);
        for page in 0..pages {
            let output = output + page as u64 * PAGE_SIZE;
            frames.write(table, at + page, Entry::leaf(level, output, attributes));
        }
        return frames.publish(table, first, count);
    }
    let start = range.start;
    for piece in pieces(level, range) {
        let output = output + (piece.range.start - start);
        let (child, entry) = match Entry::decode(level, frames.read(table, piece.index)) {
            Entry::Table(child) => ((child, false), None),
            _ if piece.fits(level, output) => {
                frames.write(table, piece.index, Entry::leaf(level, output, attributes));
                continue;
            }
            _ => {
                let child = spare.pop(frames).expect("the survey counted the tables");
                ((child, true), Some(Entry::table(child)))
            }
        };
        fill(
            frames,
            spare,
            child,
            level + 1,
            piece.range,
            output,
            attributes,
        );
        if let Some(entry) = entry {
            frames.write(table, piece.index, entry);
        }
    }
    frames.publish(table, first, count);
}

/// Fills `table`, of `level`, with what the block `entry` one level above maps.
fn fill_split(frames: &mut impl Frames, table: Pa, level: u8, entry: u64) {
    let attributes = entry & !(ADDRESS | TABLE_OR_PAGE | VALID);
    let mut output = entry & ADDRESS;
    for slot in 0..ENTRIES {
        frames.write(table, slot, Entry::leaf(level, output, attributes));
        output += entry_size(level);
    }
    frames.publish(table, 0, ENTRIES);
}

/// Unmaps `range` below `table`, where no leaf reaches beyond it, and returns whether the table is
/// empty now. Tables below that are empty go to `dead`.
fn clear(
    frames: &mut impl Frames,
    dead: &mut Chain,
    table: Pa,
    level: u8,
    range: Range<u64>,
) -> bool {
    let (first, count) = entries(level, &range);
    for piece in pieces(level, range) {
        match Entry::decode(level, frames.read(table, piece.index)) {
            Entry::Invalid => continue,
            Entry::Leaf(_) => frames.write(table, piece.index, 0),
            Entry::Table(child) => {
                if !clear(frames, dead, child, level + 1, piece.range) {
                    continue;
                }
                frames.write(table, piece.index, 0);
                dead.push(frames, child);
            }
        }
    }
    frames.publish(table, first, count);
    (0..ENTRIES).all(|slot| frames.read(table, slot) == 0)
}

/// Frees `table` and every table below it.
fn free_below(frames: &mut impl Frames, table: Pa, level: u8) {
    if level < LAST_LEVEL {
        for slot in 0..ENTRIES {
            if let Entry::Table(child) = Entry::decode(level, frames.read(table, slot)) {
                free_below(frames, child, level + 1);
            }
        }
    }
    frames.free(table);
}
