//! Flattened device trees: reading those that may be malformed, and writing our own.
//!
//! A tree comes from outside: from firmware, or from whoever built the image. [`Tree::parse`] looks
//! at every token of it once, refuses what is malformed, and keeps a copy in which nothing can go
//! wrong any more: names are text, values lie inside, every node is closed. Reading a property can
//! then only fail because its value is not what its binding says, which is a [`Malformed`].
//!
//! ```text
//!   0        40                                                      totalsize
//!  +--------+--------------+-----------------+---------+- - - - - - -+
//!  | header | reservations | structure       | strings |   padding   |
//!  +--------+--------------+-----------------+---------+- - - - - - -+
//!                            BEGIN "" PROP … BEGIN "cpus" … END END
//! ```
//!
//! The copy holds the four parts without the padding and without `FDT_NOP` tokens, so that
//! [`Tree::fdt`] can hand it to the `fdt` crate, whose raw accessors panic on less than that.
//!
//! Devicetree Specification, release 0.4, chapter 5.
#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(not(test), warn(clippy::disallowed_macros, clippy::disallowed_methods))]
#![cfg_attr(
    not(test),
    warn(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)
)]

extern crate alloc;

mod error;
mod node;
mod parse;
mod tree;
mod write;

pub use error::{Block, Error, Fault, Malformed};
pub use node::{Cells, Interrupt, Node, Path, Property, Range, Region, Strings, Trigger};
pub use parse::{Extent, MAX_DEPTH, MAX_SIZE, extent};
pub use tree::Tree;
pub use write::{WriteError, Writer};

/// Begins a node: the name follows, ended by a NUL and padded to four bytes.
const FDT_BEGIN_NODE: u32 = 1;
/// Ends a node.
const FDT_END_NODE: u32 = 2;
/// A property: length, offset of the name, the value padded to four bytes.
const FDT_PROP: u32 = 3;
/// To be skipped.
const FDT_NOP: u32 = 4;
/// Ends the structure block.
const FDT_END: u32 = 9;
/// First word of the header.
const FDT_MAGIC: u32 = 0xd00d_feed;
/// Bytes of the header of version 17.
const HEADER_SIZE: usize = 40;
