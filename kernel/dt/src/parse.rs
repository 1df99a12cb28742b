//! The one pass over a tree's bytes.

use alloc::vec::Vec;
use core::ops;

use crate::error::{Block, Error};
use crate::tree::{NodeRecord, PropertyRecord, Span, Tree};
use crate::{
    FDT_BEGIN_NODE, FDT_END, FDT_END_NODE, FDT_MAGIC, FDT_NOP, FDT_PROP, HEADER_SIZE, write,
};

/// The largest tree that is read: what the arm64 boot protocol allows
/// (Documentation/arch/arm64/booting.rst, section 2).
pub const MAX_SIZE: usize = 2 << 20;
/// The most nodes that may be open at once.
pub const MAX_DEPTH: usize = 32;
/// The format that is read and written.
const VERSION: u32 = 17;

/// How much of memory a tree takes, as its header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// All of it, with the padding at its end: what must not be given away.
    pub total: usize,
    /// Up to the end of the last block: what [`Tree::parse`] needs.
    pub used: usize,
}

/// Reads from a tree's first 40 bytes how long it is.
///
/// # Errors
///
/// If they are not the header of a tree that [`Tree::parse`] might take.
pub fn extent(header: &[u8]) -> Result<Extent, Error> {
    let header = Header::read(header)?;
    Ok(Extent {
        total: header.total,
        used: header.strings.end.max(header.structure.end),
    })
}

/// Where the header says that everything is. All ranges are inside `total`.
struct Header {
    total: usize,
    reservations: usize,
    structure: ops::Range<usize>,
    strings: ops::Range<usize>,
    boot_cpu: u32,
}

impl Header {
    fn read(bytes: &[u8]) -> Result<Self, Error> {
        let field = |index: usize| word_at(bytes, index * 4).ok_or(Error::Short(bytes.len()));
        let offset = |index: usize| field(index).map(|value| value as usize);
        let magic = field(0)?;
        if magic != FDT_MAGIC {
            return Err(Error::Magic(magic));
        }
        let (version, compatible) = (field(5)?, field(6)?);
        if version < VERSION || compatible > VERSION {
            return Err(Error::Version(version));
        }
        let header = Self {
            total: offset(1)?,
            reservations: offset(4)?,
            structure: offset(2)?..offset(2)?.saturating_add(offset(9)?),
            strings: offset(3)?..offset(3)?.saturating_add(offset(8)?),
            boot_cpu: field(7)?,
        };
        header.check()?;
        Ok(header)
    }

    fn check(&self) -> Result<(), Error> {
        if self.total > MAX_SIZE {
            return Err(Error::TooLarge(self.total));
        }
        let inside =
            |range: &ops::Range<usize>| range.start >= HEADER_SIZE && range.end <= self.total;
        if !inside(&self.structure) {
            return Err(Error::Outside(Block::Structure));
        }
        if !inside(&self.strings) {
            return Err(Error::Outside(Block::Strings));
        }
        if !inside(&(self.reservations..self.reservations.saturating_add(16))) {
            return Err(Error::Outside(Block::Reservations));
        }
        if !self.reservations.is_multiple_of(8) {
            return Err(Error::Unaligned(Block::Reservations));
        }
        if !self.structure.start.is_multiple_of(4) {
            return Err(Error::Unaligned(Block::Structure));
        }
        Ok(())
    }
}

impl Tree {
    /// Reads a tree, and copies what it needs of `bytes`.
    ///
    /// `bytes` may end where [`Extent::used`] says.
    ///
    /// # Errors
    ///
    /// If the bytes are not a well-formed tree, or the heap is exhausted.
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        let header = Header::read(bytes)?;
        let bytes = bytes.get(..header.total).unwrap_or(bytes);
        let reservations = reservations(bytes, header.reservations)?;
        let block = |range| bytes.get(range).ok_or(Error::Short(bytes.len()));
        let (structure, strings) = (block(header.structure)?, block(header.strings)?);

        let base = HEADER_SIZE + reservations.len();
        let mut blob = Vec::new();
        blob.try_reserve_exact(base + structure.len() + strings.len())
            .map_err(|_| Error::OutOfMemory)?;
        blob.resize(HEADER_SIZE, 0);
        blob.extend_from_slice(reservations);
        let mut parser = Parser {
            structure,
            strings,
            at: 0,
            base,
            copied: 0,
            dropped: 0,
            tree: Self {
                blob,
                nodes: Vec::new(),
                properties: Vec::new(),
                phandles: Vec::new(),
            },
        };
        parser.run()?;
        let mut tree = parser.tree;
        tree.place_strings(strings);
        let header = write::header(base, tree.blob.len(), strings.len(), header.boot_cpu);
        let header = header.ok_or(Error::TooLarge(tree.blob.len()))?;
        if let Some(place) = tree.blob.first_chunk_mut() {
            *place = header;
        }
        Ok(tree)
    }

    /// Appends the strings block, and moves the properties' names to where it now is.
    fn place_strings(&mut self, strings: &[u8]) {
        // Everything is below MAX_SIZE, and room for it was reserved.
        let base = u32::try_from(self.blob.len()).unwrap_or(u32::MAX);
        self.blob.extend_from_slice(strings);
        for property in &mut self.properties {
            property.name.start += base;
        }
    }
}

/// Returns the reservation block with its end mark.
fn reservations(bytes: &[u8], start: usize) -> Result<&[u8], Error> {
    let block = bytes.get(start..).unwrap_or_default();
    let (entries, _) = block.as_chunks::<16>();
    for (index, entry) in entries.iter().enumerate() {
        let [base, size] = [0, 8].map(|at| u64_at(entry, at).unwrap_or_default());
        if (base, size) == (0, 0) {
            return Ok(block.get(..(index + 1) * 16).unwrap_or_default());
        }
        if base.checked_add(size).is_none() {
            return Err(Error::Reservation);
        }
    }
    Err(Error::Reservation)
}

struct Parser<'b> {
    structure: &'b [u8],
    strings: &'b [u8],
    /// Where the next token starts.
    at: usize,
    /// Where the structure block starts in the copy.
    base: usize,
    /// Up to here, the structure block is in the copy.
    copied: usize,
    /// How many bytes of it were left out.
    dropped: usize,
    tree: Tree,
}

impl Parser<'_> {
    fn run(&mut self) -> Result<(), Error> {
        // The innermost open node, as an index, and how many are open.
        let mut open: Option<u32> = None;
        let mut depth = 0;
        loop {
            let at = self.at;
            match self.word()? {
                FDT_BEGIN_NODE if depth == MAX_DEPTH => return Err(Error::TooDeep(at)),
                FDT_BEGIN_NODE => {
                    open = Some(self.begin_node(at, open)?);
                    depth += 1;
                }
                FDT_END_NODE => {
                    open = self.end_node(open.ok_or(Error::Unbalanced(at))?);
                    depth -= 1;
                }
                FDT_PROP => self.property(at, open)?,
                FDT_NOP => self.drop_nop(at),
                FDT_END if open.is_some() => return Err(Error::Unbalanced(at)),
                FDT_END if self.tree.nodes.is_empty() => return Err(Error::Roots(at)),
                FDT_END => {
                    self.copy_up_to(self.at);
                    return Ok(());
                }
                token => return Err(Error::Token(token, at)),
            }
        }
    }

    fn begin_node(&mut self, at: usize, parent: Option<u32>) -> Result<u32, Error> {
        let start = self.at;
        let rest = self.structure.get(start..).unwrap_or_default();
        let name = text(rest).ok_or(Error::NodeName(at))?;
        let index = small(self.tree.nodes.len());
        match parent {
            None if index != 0 => return Err(Error::Roots(at)),
            None if !name.is_empty() => return Err(Error::NodeName(at)),
            Some(_) if name.is_empty() || name.contains('/') => return Err(Error::NodeName(at)),
            _ => {}
        }
        self.skip(name.len() + 1)?;
        let first = small(self.tree.properties.len());
        let record = NodeRecord {
            name: Span::new(self.place(start), name.len()),
            properties: first..first,
            parent: parent.unwrap_or(index),
            end: 0,
        };
        push(&mut self.tree.nodes, record)?;
        Ok(index)
    }

    /// Closes a node and returns its parent.
    fn end_node(&mut self, node: u32) -> Option<u32> {
        let end = small(self.tree.nodes.len());
        let record = self.tree.nodes.get_mut(node as usize)?;
        record.end = end;
        (record.parent != node).then_some(record.parent)
    }

    fn property(&mut self, at: usize, open: Option<u32>) -> Result<(), Error> {
        let node = open.ok_or(Error::MisplacedProperty(at))?;
        if small(self.tree.nodes.len()) != node + 1 {
            return Err(Error::MisplacedProperty(at));
        }
        let len = self.word()? as usize;
        let offset = self.word()? as usize;
        let start = self.at;
        let value = start
            .checked_add(len)
            .and_then(|end| self.structure.get(start..end))
            .ok_or(Error::Truncated(at))?;
        let name = text(self.strings.get(offset..).unwrap_or_default())
            .filter(|name| !name.is_empty())
            .ok_or(Error::PropertyName(at))?;
        if let ("phandle" | "linux,phandle", Ok(phandle)) = (name, value.try_into()) {
            push(&mut self.tree.phandles, (u32::from_be_bytes(phandle), node))?;
        }
        let record = PropertyRecord {
            name: Span::new(offset, name.len()),
            value: Span::new(self.place(start), len),
        };
        push(&mut self.tree.properties, record)?;
        if let Some(node) = self.tree.nodes.last_mut() {
            node.properties.end += 1;
        }
        self.skip(len)
    }

    /// Leaves the token between `at` and here out of the copy.
    fn drop_nop(&mut self, at: usize) {
        self.copy_up_to(at);
        self.copied = self.at;
        self.dropped += self.at - at;
    }

    fn copy_up_to(&mut self, end: usize) {
        let run = self.structure.get(self.copied..end).unwrap_or_default();
        self.tree.blob.extend_from_slice(run);
    }

    /// Returns where the copy has what is at `at` in the structure block.
    fn place(&self, at: usize) -> usize {
        self.base + at - self.dropped
    }

    fn word(&mut self) -> Result<u32, Error> {
        let word = word_at(self.structure, self.at).ok_or(Error::Truncated(self.at))?;
        self.at += 4;
        Ok(word)
    }

    /// Skips `len` bytes and what pads them to a word.
    fn skip(&mut self, len: usize) -> Result<(), Error> {
        self.at = (self.at + len).next_multiple_of(4);
        if self.at > self.structure.len() {
            return Err(Error::Truncated(self.structure.len()));
        }
        Ok(())
    }
}

/// Returns the text up to the first NUL; `None` if there is none, or if it is not UTF-8.
fn text(bytes: &[u8]) -> Option<&str> {
    let end = bytes.iter().position(|&byte| byte == 0)?;
    core::str::from_utf8(bytes.get(..end)?).ok()
}

fn word_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// Narrows a count or an offset, all of which are at most [`MAX_SIZE`] here.
fn small(value: usize) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

fn push<T>(list: &mut Vec<T>, value: T) -> Result<(), Error> {
    list.try_reserve(1).map_err(|_| Error::OutOfMemory)?;
    list.push(value);
    Ok(())
}
