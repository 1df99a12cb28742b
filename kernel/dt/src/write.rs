//! Writing a tree, such as the one that a domain finds.

use alloc::vec::Vec;
use core::fmt;

use crate::{
    FDT_BEGIN_NODE, FDT_END, FDT_END_NODE, FDT_MAGIC, FDT_PROP, HEADER_SIZE, MAX_DEPTH, Region,
};

/// Why a tree could not be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteError {
    /// The heap is exhausted.
    OutOfMemory,
    /// The tree is larger than its header can say.
    TooLarge,
    /// A name or a text that a tree cannot hold.
    Name,
    /// A property outside all nodes, or after a child of its node.
    Misplaced,
    /// More nodes are open than allowed, or some are when the tree ends, or none when one is ended.
    Depth,
}

impl fmt::Display for WriteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OutOfMemory => "out of memory",
            Self::TooLarge => "the tree is too large",
            Self::Name => "a name or text that a device tree cannot hold",
            Self::Misplaced => "a property outside all nodes or after a child",
            Self::Depth => "nodes are nested too deeply, or begun and ended unequally often",
        })
    }
}

impl core::error::Error for WriteError {}

/// A tree in the making. Nodes are begun and ended, with properties before children between.
///
/// ```
/// # fn main() -> Result<(), dt::WriteError> {
/// let mut tree = dt::Writer::new(&[])?;
/// tree.begin("")?;
/// tree.begin("chosen")?;
/// tree.string("bootargs", "console=ttyAMA0")?;
/// tree.end()?;
/// tree.end()?;
/// let bytes = tree.finish()?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Writer {
    /// Header, reservations, structure so far.
    blob: Vec<u8>,
    structure: usize,
    strings: Vec<u8>,
    /// Where each name starts in `strings`, and how long it is.
    names: Vec<(u32, usize)>,
    depth: usize,
    /// Whether a property may follow.
    fresh: bool,
}

impl Writer {
    /// Starts a tree, with ranges of memory that its reader leaves alone.
    ///
    /// # Errors
    ///
    /// If the heap is exhausted.
    pub fn new(reservations: &[Region]) -> Result<Self, WriteError> {
        let mut blob = Vec::new();
        append(&mut blob, &[0; HEADER_SIZE])?;
        for region in reservations.iter().filter(|region| region.size != 0) {
            append(&mut blob, &region.base.to_be_bytes())?;
            append(&mut blob, &region.size.to_be_bytes())?;
        }
        append(&mut blob, &[0; 16])?;
        Ok(Self {
            structure: blob.len(),
            blob,
            strings: Vec::new(),
            names: Vec::new(),
            depth: 0,
            fresh: false,
        })
    }

    /// Begins a node. The first is the root, whose name is empty.
    ///
    /// # Errors
    ///
    /// If it is nested too deeply, or the name is not a node's name, or the heap is exhausted.
    pub fn begin(&mut self, name: &str) -> Result<(), WriteError> {
        let is_root = self.blob.len() == self.structure;
        if is_root != name.is_empty() || name.contains(['\0', '/']) {
            return Err(WriteError::Name);
        }
        if self.depth == MAX_DEPTH || (self.depth == 0 && !is_root) {
            return Err(WriteError::Depth);
        }
        self.word(FDT_BEGIN_NODE)?;
        append(&mut self.blob, name.as_bytes())?;
        append(&mut self.blob, &[0])?;
        self.pad()?;
        self.depth += 1;
        self.fresh = true;
        Ok(())
    }

    /// Ends the node that was begun last.
    ///
    /// # Errors
    ///
    /// If none is open, or the heap is exhausted.
    pub fn end(&mut self) -> Result<(), WriteError> {
        self.depth = self.depth.checked_sub(1).ok_or(WriteError::Depth)?;
        self.fresh = false;
        self.word(FDT_END_NODE)
    }

    /// Gives the node a property.
    ///
    /// # Errors
    ///
    /// If no node is open, or a child came first, or the name is empty or has a NUL, or the heap is
    /// exhausted. The methods below add what their type can get wrong.
    pub fn property(&mut self, name: &str, value: &[u8]) -> Result<(), WriteError> {
        self.property_in_pieces(name, value.len(), [value])
    }

    /// Gives the node a property without value.
    #[expect(clippy::missing_errors_doc, reason = "as `property` says")]
    pub fn flag(&mut self, name: &str) -> Result<(), WriteError> {
        self.property(name, &[])
    }

    /// Gives the node a property of one cell.
    #[expect(clippy::missing_errors_doc, reason = "as `property` says")]
    pub fn u32(&mut self, name: &str, value: u32) -> Result<(), WriteError> {
        self.property(name, &value.to_be_bytes())
    }

    /// Gives the node a property of one number of two cells.
    #[expect(clippy::missing_errors_doc, reason = "as `property` says")]
    pub fn u64(&mut self, name: &str, value: u64) -> Result<(), WriteError> {
        self.property(name, &value.to_be_bytes())
    }

    /// Gives the node a property of cells.
    #[expect(clippy::missing_errors_doc, reason = "as `property` says")]
    pub fn cells(&mut self, name: &str, cells: &[u32]) -> Result<(), WriteError> {
        let pieces = cells.iter().map(|cell| cell.to_be_bytes());
        self.property_in_pieces(name, size_of_val(cells), pieces)
    }

    /// Gives the node a property of numbers of two cells each, such as a `reg` of 2 + 2 cells.
    #[expect(clippy::missing_errors_doc, reason = "as `property` says")]
    pub fn numbers(&mut self, name: &str, numbers: &[u64]) -> Result<(), WriteError> {
        let pieces = numbers.iter().map(|number| number.to_be_bytes());
        self.property_in_pieces(name, size_of_val(numbers), pieces)
    }

    /// Gives the node a property that is a text without NUL.
    #[expect(clippy::missing_errors_doc, reason = "as `property` says")]
    pub fn string(&mut self, name: &str, value: &str) -> Result<(), WriteError> {
        self.strings(name, &[value])
    }

    /// Gives the node a property that is a list of texts without NUL.
    #[expect(clippy::missing_errors_doc, reason = "as `property` says")]
    pub fn strings(&mut self, name: &str, values: &[&str]) -> Result<(), WriteError> {
        if values.iter().any(|value| value.contains('\0')) {
            return Err(WriteError::Name);
        }
        let len = values.iter().map(|value| value.len() + 1).sum();
        let pieces = values.iter().flat_map(|value| [value.as_bytes(), b"\0"]);
        self.property_in_pieces(name, len, pieces)
    }

    /// Ends the tree, and returns its bytes.
    ///
    /// # Errors
    ///
    /// If a node is open, or there is none, or the tree is too large, or the heap is exhausted.
    pub fn finish(mut self) -> Result<Vec<u8>, WriteError> {
        if self.depth != 0 || self.blob.len() == self.structure {
            return Err(WriteError::Depth);
        }
        self.word(FDT_END)?;
        let strings = self.blob.len();
        append(&mut self.blob, &self.strings)?;
        let header = header(self.structure, self.blob.len(), self.strings.len(), 0);
        debug_assert_eq!(strings + self.strings.len(), self.blob.len());
        if let Some(place) = self.blob.first_chunk_mut() {
            *place = header.ok_or(WriteError::TooLarge)?;
        }
        Ok(self.blob)
    }

    fn property_in_pieces<P: AsRef<[u8]>>(
        &mut self,
        name: &str,
        len: usize,
        pieces: impl IntoIterator<Item = P>,
    ) -> Result<(), WriteError> {
        if !self.fresh {
            return Err(WriteError::Misplaced);
        }
        let offset = self.intern(name)?;
        self.word(FDT_PROP)?;
        self.word(u32::try_from(len).map_err(|_| WriteError::TooLarge)?)?;
        self.word(offset)?;
        for piece in pieces {
            append(&mut self.blob, piece.as_ref())?;
        }
        self.pad()
    }

    /// Returns where the name is in the strings block, after putting it there if it is new.
    fn intern(&mut self, name: &str) -> Result<u32, WriteError> {
        if name.is_empty() || name.contains('\0') {
            return Err(WriteError::Name);
        }
        let is_it = |&&(start, len): &&(u32, usize)| {
            let known = self.strings.get(start as usize..);
            len == name.len() && known.is_some_and(|known| known.starts_with(name.as_bytes()))
        };
        if let Some((start, _)) = self.names.iter().find(is_it) {
            return Ok(*start);
        }
        let start = u32::try_from(self.strings.len()).map_err(|_| WriteError::TooLarge)?;
        append(&mut self.strings, name.as_bytes())?;
        append(&mut self.strings, &[0])?;
        self.names
            .try_reserve(1)
            .map_err(|_| WriteError::OutOfMemory)?;
        self.names.push((start, name.len()));
        Ok(start)
    }

    fn word(&mut self, word: u32) -> Result<(), WriteError> {
        append(&mut self.blob, &word.to_be_bytes())
    }

    fn pad(&mut self) -> Result<(), WriteError> {
        let missing = self.blob.len().next_multiple_of(4) - self.blob.len();
        append(&mut self.blob, [0; 3].get(..missing).unwrap_or_default())
    }
}

fn append(blob: &mut Vec<u8>, bytes: &[u8]) -> Result<(), WriteError> {
    blob.try_reserve(bytes.len())
        .map_err(|_| WriteError::OutOfMemory)?;
    blob.extend_from_slice(bytes);
    Ok(())
}

/// Returns the header of a tree whose blocks follow each other, with nothing behind the strings.
pub(crate) fn header(
    structure: usize,
    total: usize,
    strings_len: usize,
    boot_cpu: u32,
) -> Option<[u8; HEADER_SIZE]> {
    let strings = total.checked_sub(strings_len)?;
    let size = |value| u32::try_from(value).ok();
    let fields = [
        FDT_MAGIC,
        size(total)?,
        size(structure)?,
        size(strings)?,
        size(HEADER_SIZE)?, // reservations
        17,                 // version
        16,                 // the last that it is compatible with
        boot_cpu,
        size(strings_len)?,
        size(strings.checked_sub(structure)?)?,
    ];
    let mut header = [0; HEADER_SIZE];
    for (place, field) in header.as_chunks_mut().0.iter_mut().zip(fields) {
        *place = field.to_be_bytes();
    }
    Some(header)
}
