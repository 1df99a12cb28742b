//! A tree that is known to be well-formed, and the ways to find a node in it.

use alloc::vec::Vec;
use core::ops;

use fdt::Fdt;

use crate::error::{Fault, Malformed};
use crate::node::{Node, Region};

/// A device tree: an owned copy, and an index of its nodes and properties.
#[derive(Clone, Debug)]
pub struct Tree {
    /// Header, reservations, structure without NOPs, strings.
    pub(crate) blob: Vec<u8>,
    /// In the order of the structure block, so that a node's descendants follow it.
    pub(crate) nodes: Vec<NodeRecord>,
    /// Likewise; each node's are adjacent.
    pub(crate) properties: Vec<PropertyRecord>,
    /// Each phandle with its node.
    pub(crate) phandles: Vec<(u32, u32)>,
}

#[derive(Clone, Debug)]
pub(crate) struct NodeRecord {
    pub(crate) name: Span,
    pub(crate) properties: ops::Range<u32>,
    /// The root is its own parent.
    pub(crate) parent: u32,
    /// The first node after this one that is not a descendant.
    pub(crate) end: u32,
}

#[derive(Clone, Debug)]
pub(crate) struct PropertyRecord {
    pub(crate) name: Span,
    pub(crate) value: Span,
}

/// A piece of the copy.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    pub(crate) start: u32,
    len: u32,
}

impl Span {
    /// Both are less than [`crate::MAX_SIZE`] here.
    pub(crate) fn new(start: usize, len: usize) -> Self {
        let small = |value| u32::try_from(value).unwrap_or(u32::MAX);
        Self {
            start: small(start),
            len: small(len),
        }
    }
}

impl Tree {
    /// Returns the tree as bytes: well-formed, without padding and NOPs.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.blob
    }

    /// Returns the tree as the `fdt` crate sees it.
    ///
    /// Its accessors of raw nodes and properties (`all_nodes`, `find_node`, `children`,
    /// `properties`, `memory_reservations`) do not panic. Those that decode, `memory`, `cpus`,
    /// `chosen`, `reg` and their like, may still do so.
    ///
    /// # Errors
    ///
    /// Never: the header is our own.
    pub fn fdt(&self) -> Result<Fdt<'_>, fdt::FdtError> {
        Fdt::new(&self.blob)
    }

    /// Returns the root node.
    #[must_use]
    pub fn root(&self) -> Node<'_> {
        Node::new(self, 0)
    }

    /// Returns all nodes, each before its children.
    pub fn nodes(&self) -> impl Iterator<Item = Node<'_>> + Clone {
        let end = u32::try_from(self.nodes.len()).unwrap_or(u32::MAX);
        (0..end).map(|index| Node::new(self, index))
    }

    /// Returns the node at `path`, which starts with a slash or with an alias.
    ///
    /// A name without a unit address finds the first node that has the name with any.
    #[must_use]
    pub fn find(&self, path: &str) -> Option<Node<'_>> {
        if let Some(names) = path.strip_prefix('/') {
            return find_below(self.root(), names);
        }
        let (alias, names) = path.split_once('/').unwrap_or((path, ""));
        let target = self.find("/aliases")?.property(alias)?.string().ok()?;
        find_below(find_below(self.root(), target.strip_prefix('/')?)?, names)
    }

    /// Returns the node that has the phandle.
    #[must_use]
    pub fn by_phandle(&self, phandle: u32) -> Option<Node<'_>> {
        let (_, index) = self.phandles.iter().find(|(value, _)| *value == phandle)?;
        Some(Node::new(self, *index))
    }

    /// Returns the nodes that are compatible with `model` and not disabled.
    pub fn compatible<'t>(&'t self, model: &'t str) -> impl Iterator<Item = Node<'t>> {
        self.nodes()
            .filter(move |node| node.is_compatible(model) && node.is_available())
    }

    /// Returns the ranges that the reservation block takes out of memory.
    pub fn reservations(&self) -> impl Iterator<Item = Region> + '_ {
        let fdt = self.fdt().ok();
        fdt.into_iter()
            .flat_map(|fdt| fdt.memory_reservations())
            .map(|entry| Region {
                base: entry.address().addr() as u64,
                size: entry.size() as u64,
            })
    }

    /// Returns the ranges of all memory nodes that are not disabled.
    pub fn memory(&self) -> impl Iterator<Item = Result<Region, Malformed<'_>>> {
        let is_memory = |node: &Node<'_>| {
            node.property("device_type")
                .is_some_and(|kind| kind.value == b"memory\0")
                && node.is_available()
        };
        self.nodes().filter(is_memory).flat_map(each_region)
    }

    /// Returns the ranges that children of `/reserved-memory` take out of memory.
    ///
    /// A child that only asks for some range, with `size` in place of `reg`, has none.
    pub fn reserved_memory(&self) -> impl Iterator<Item = Result<Region, Malformed<'_>>> {
        self.find("/reserved-memory")
            .into_iter()
            .flat_map(Node::children)
            .filter(|node| node.property("reg").is_some())
            .flat_map(each_region)
    }

    /// Returns the processors that are not disabled.
    pub fn cpus(&self) -> impl Iterator<Item = Node<'_>> {
        self.find("/cpus")
            .into_iter()
            .flat_map(Node::children)
            .filter(|node| node.base_name() == "cpu" && node.is_available())
    }

    /// Returns the console that `/chosen` names, and the options that it names with it.
    ///
    /// # Errors
    ///
    /// If `stdout-path` is not text, or leads nowhere.
    pub fn stdout(&self) -> Result<Option<(Node<'_>, &str)>, Malformed<'_>> {
        let Some(property) = self
            .find("/chosen")
            .and_then(|chosen| chosen.property("stdout-path"))
        else {
            return Ok(None);
        };
        let (path, options) = split_options(property.string()?);
        match self.find(path) {
            Some(node) => Ok(Some((node, options))),
            None => Err(property.malformed(Fault::Word)),
        }
    }

    pub(crate) fn slice(&self, span: Span) -> &[u8] {
        let start = span.start as usize;
        let end = start + span.len as usize;
        self.blob.get(start..end).unwrap_or_default()
    }
}

/// Splits what follows a colon, such as `115200n8`, off a path.
fn split_options(path: &str) -> (&str, &str) {
    path.split_once(':').unwrap_or((path, ""))
}

fn find_below<'t>(node: Node<'t>, names: &str) -> Option<Node<'t>> {
    names
        .split('/')
        .filter(|name| !name.is_empty())
        .try_fold(node, |node, name| node.child(name))
}

/// Returns the ranges of a node's `reg`, or the one reason why there are none.
fn each_region(node: Node<'_>) -> impl Iterator<Item = Result<Region, Malformed<'_>>> {
    let (regions, error) = match node.reg() {
        Ok(regions) => (Some(regions), None),
        Err(error) => (None, Some(Err(error))),
    };
    regions.into_iter().flatten().map(Ok).chain(error)
}
