//! What can be wrong with a tree, or with a property of it.

use core::fmt;

use crate::node::Node;

/// One of the parts that the header points to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Block {
    /// The memory reservation block.
    Reservations,
    /// The structure block.
    Structure,
    /// The strings block.
    Strings,
}

/// Why bytes are not a device tree. Offsets count from the start of the structure block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// Fewer bytes than a header, or than the header says.
    Short(usize),
    /// The first word is not the magic number.
    Magic(u32),
    /// Not readable by a reader of version 17.
    Version(u32),
    /// Larger than [`crate::MAX_SIZE`].
    TooLarge(usize),
    /// The block is not inside the tree.
    Outside(Block),
    /// The block does not start at a multiple of its alignment.
    Unaligned(Block),
    /// The reservation block has no end, or an entry past the end of the address space.
    Reservation,
    /// The structure block ends inside a token.
    Truncated(usize),
    /// No token has this number.
    Token(u32, usize),
    /// More than [`crate::MAX_DEPTH`] nodes are open.
    TooDeep(usize),
    /// The node's name is not ended, not UTF-8, empty, or holds a slash.
    NodeName(usize),
    /// The property's name is outside the strings block, not ended, not UTF-8, or empty.
    PropertyName(usize),
    /// A property stands outside all nodes, or after a child of its node.
    MisplacedProperty(usize),
    /// A node is ended that was not begun, or begun and not ended.
    Unbalanced(usize),
    /// There is not exactly one root.
    Roots(usize),
    /// The heap is exhausted.
    OutOfMemory,
}

impl fmt::Display for Error {
    #[rustfmt::skip]
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Short(len)          => write!(f, "{len} bytes are too few"),
            Self::Magic(word)         => write!(f, "it starts with {word:#010x}, not 0xd00dfeed"),
            Self::Version(version)    => write!(f, "version {version} is not readable as version 17"),
            Self::TooLarge(size)      => write!(f, "{size} bytes are more than {}", crate::MAX_SIZE),
            Self::Outside(block)      => write!(f, "the {block} block is not inside the tree"),
            Self::Unaligned(block)    => write!(f, "the {block} block is not aligned"),
            Self::Reservation         => write!(f, "the reservation block has no end, or a range past the address space"),
            Self::Truncated(at)       => write!(f, "structure+{at:#x}: the block ends inside a token"),
            Self::Token(token, at)    => write!(f, "structure+{at:#x}: {token:#x} is not a token"),
            Self::TooDeep(at)         => write!(f, "structure+{at:#x}: more than {} nodes are open", crate::MAX_DEPTH),
            Self::NodeName(at)        => write!(f, "structure+{at:#x}: bad node name"),
            Self::PropertyName(at)    => write!(f, "structure+{at:#x}: bad property name"),
            Self::MisplacedProperty(at) => write!(f, "structure+{at:#x}: a property outside all nodes or after a child"),
            Self::Unbalanced(at)      => write!(f, "structure+{at:#x}: nodes are begun and ended unequally often"),
            Self::Roots(at)           => write!(f, "structure+{at:#x}: there must be exactly one root"),
            Self::OutOfMemory         => write!(f, "out of memory"),
        }
    }
}

impl core::error::Error for Error {}

impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Reservations => "reservation",
            Self::Structure => "structure",
            Self::Strings => "strings",
        })
    }
}

/// What is wrong with the value of a property.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The node lacks the property.
    Missing,
    /// The value has a length that its type does not have.
    Length(usize),
    /// The value is not UTF-8 text that ends with a NUL.
    Text,
    /// A count of cells is outside what can be decoded.
    Cells(u32),
    /// A range reaches past the end of the address space.
    Overflow,
    /// No `ranges` of a parent covers the address.
    Untranslated(u64),
    /// The phandle leads to no node.
    Phandle(u32),
    /// The number means nothing here.
    Value(u32),
    /// The text means nothing here.
    Word,
}

impl fmt::Display for Fault {
    #[rustfmt::skip]
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing            => write!(f, "is missing"),
            Self::Length(len)        => write!(f, "has a wrong length of {len} bytes"),
            Self::Text               => write!(f, "is not text"),
            Self::Cells(count)       => write!(f, "cannot be decoded with {count} cells"),
            Self::Overflow           => write!(f, "reaches past the end of the address space"),
            Self::Untranslated(addr) => write!(f, "holds {addr:#x}, which no bus above translates"),
            Self::Phandle(phandle)   => write!(f, "names phandle {phandle:#x}, which no node has"),
            Self::Value(value)       => write!(f, "holds {value:#x}, which has no meaning here"),
            Self::Word               => write!(f, "holds a word that has no meaning here"),
        }
    }
}

/// A property that is not what its binding says.
#[derive(Clone, Copy, Debug)]
pub struct Malformed<'t> {
    /// The node that has the property, or should have it.
    pub node: Node<'t>,
    /// The property's name.
    pub property: &'t str,
    /// What is wrong with it.
    pub fault: Fault,
}

impl fmt::Display for Malformed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} {}", self.node.path(), self.property, self.fault)
    }
}

impl core::error::Error for Malformed<'_> {}
