//! Nodes, their properties, and what the values of properties mean.

use core::{fmt, slice, str};

use crate::MAX_DEPTH;
use crate::error::{Fault, Malformed};
use crate::tree::{NodeRecord, PropertyRecord, Tree};

/// A node of a tree.
#[derive(Clone, Copy)]
pub struct Node<'t> {
    tree: &'t Tree,
    index: u32,
}

/// A property of a node.
#[derive(Clone, Copy, Debug)]
pub struct Property<'t> {
    /// The node that has it.
    pub node: Node<'t>,
    /// Its name.
    pub name: &'t str,
    /// Its value, as the tree has it.
    pub value: &'t [u8],
}

/// A range of addresses that does not reach past 2^64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// The first address. In the `reg` of a processor, its MPIDR.
    pub base: u64,
    /// How many bytes there are; 0 where the parent has `#size-cells` of 0.
    pub size: u64,
}

/// One entry of `ranges`: what a bus makes of addresses below it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// The first of three address cells, 0 where there are two or one. In PCI's `ranges` it says
    /// which space is meant (IEEE 1275 PCI bus binding, section 2.2.1.1).
    pub flags: u32,
    /// First address on the bus.
    pub child: u64,
    /// The same place seen from the parent.
    pub parent: u64,
    /// How many bytes there are.
    pub size: u64,
}

/// An interrupt at a GIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interrupt {
    /// Its INTID.
    pub intid: u32,
    /// What raises it.
    pub trigger: Trigger,
}

/// What raises an interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// A change of the line.
    Edge,
    /// The line's level.
    Level,
}

impl<'t> Node<'t> {
    pub(crate) fn new(tree: &'t Tree, index: u32) -> Self {
        Self { tree, index }
    }

    /// Returns the tree that it is a node of.
    #[must_use]
    pub fn tree(self) -> &'t Tree {
        self.tree
    }

    /// Returns its name with the unit address; the root's is empty.
    #[must_use]
    pub fn name(self) -> &'t str {
        self.record().map_or("", |record| {
            str::from_utf8(self.tree.slice(record.name)).unwrap_or_default()
        })
    }

    /// Returns its name without the unit address.
    #[must_use]
    pub fn base_name(self) -> &'t str {
        let name = self.name();
        name.split_once('@').map_or(name, |(base, _)| base)
    }

    /// Returns the names from the root down to it, to be shown.
    #[must_use]
    pub fn path(self) -> Path<'t> {
        Path(self)
    }

    /// Returns its parent; the root has none.
    #[must_use]
    pub fn parent(self) -> Option<Self> {
        let parent = self.record()?.parent;
        (parent != self.index).then_some(Self::new(self.tree, parent))
    }

    /// Returns its children in order.
    pub fn children(self) -> impl Iterator<Item = Self> + Clone {
        let end = self.end();
        let first = Self::new(self.tree, self.index + 1);
        core::iter::successors(Some(first), |child| Some(Self::new(self.tree, child.end())))
            .take_while(move |child| child.index < end)
    }

    /// Returns all nodes below it, each before its children.
    pub fn descendants(self) -> impl Iterator<Item = Self> + Clone {
        (self.index + 1..self.end()).map(move |index| Self::new(self.tree, index))
    }

    /// Returns the child of that name; without a unit address, the first that has it with any.
    #[must_use]
    pub fn child(self, name: &str) -> Option<Self> {
        self.children()
            .find(|child| child.name() == name)
            .or_else(|| self.children().find(|child| child.base_name() == name))
    }

    /// Returns its properties in order.
    pub fn properties(self) -> impl Iterator<Item = Property<'t>> {
        let records = self.property_records().iter();
        records.map(move |record| self.read(record))
    }

    /// Returns the property of that name, if the node has one.
    #[must_use]
    pub fn property(self, name: &str) -> Option<Property<'t>> {
        let mut records = self.property_records().iter();
        let record = records.find(|record| self.tree.slice(record.name) == name.as_bytes())?;
        Some(self.read(record))
    }

    /// Returns the property of that name.
    ///
    /// # Errors
    ///
    /// If the node does not have it.
    pub fn require(self, name: &'t str) -> Result<Property<'t>, Malformed<'t>> {
        self.property(name)
            .ok_or(self.malformed(name, Fault::Missing))
    }

    /// Returns whether `compatible` names that model.
    #[must_use]
    pub fn is_compatible(self, model: &str) -> bool {
        self.property("compatible").is_some_and(|property| {
            let mut models = property.value.split(|&byte| byte == 0);
            models.any(|name| name == model.as_bytes())
        })
    }

    /// Returns whether `status` lets the node be used.
    #[must_use]
    pub fn is_available(self) -> bool {
        self.property("status")
            .is_none_or(|status| matches!(status.value, b"okay\0" | b"ok\0"))
    }

    /// Returns the phandle by which other nodes refer to it.
    #[must_use]
    pub fn phandle(self) -> Option<u32> {
        let mut phandles = self.tree.phandles.iter();
        let (phandle, _) = phandles.find(|(_, index)| *index == self.index)?;
        Some(*phandle)
    }

    /// Returns how many cells an address of a child has; 2 unless the node says otherwise.
    ///
    /// # Errors
    ///
    /// If `#address-cells` is not a number.
    pub fn address_cells(self) -> Result<u32, Malformed<'t>> {
        self.cell_count("#address-cells", 2)
    }

    /// Returns how many cells the size of a child's range has; 1 unless the node says otherwise.
    ///
    /// # Errors
    ///
    /// If `#size-cells` is not a number.
    pub fn size_cells(self) -> Result<u32, Malformed<'t>> {
        self.cell_count("#size-cells", 1)
    }

    /// Returns the ranges of `reg`, as the parent's bus numbers them.
    ///
    /// # Errors
    ///
    /// If it is missing, or not a list of addresses and sizes of at most two cells.
    pub fn reg(self) -> Result<impl Iterator<Item = Region> + Clone + 't, Malformed<'t>> {
        let property = self.require("reg")?;
        let (address, size) = match self.parent() {
            Some(parent) => (parent.address_cells()?, parent.size_cells()?),
            None => (2, 1),
        };
        for cells in [address, size] {
            if cells > 2 {
                return Err(property.malformed(Fault::Cells(cells)));
            }
        }
        let entries = property.entries((address + size) as usize)?;
        let entries = entries.map(move |mut cells| Region {
            base: cells.number(address),
            size: cells.number(size),
        });
        let mut ends = entries.clone();
        if ends.any(|region| region.base.checked_add(region.size).is_none()) {
            return Err(property.malformed(Fault::Overflow));
        }
        Ok(entries)
    }

    /// Returns a range of `reg` as the processor sees it: through the `ranges` of each bus above.
    ///
    /// # Errors
    ///
    /// If there is no such range, or no way from the processor to it.
    pub fn mmio(self, index: usize) -> Result<Region, Malformed<'t>> {
        let missing = self.malformed("reg", Fault::Missing);
        let mut region = self.reg()?.nth(index).ok_or(missing)?;
        let mut bus = self.parent();
        while let Some(node) = bus.filter(|node| node.parent().is_some()) {
            region.base = node.translate(region)?;
            bus = node.parent();
        }
        Ok(region)
    }

    /// Returns what a bus makes of the addresses below it. Without entries, they are the parent's.
    ///
    /// # Errors
    ///
    /// If it is missing, which means that nothing below can be reached, or is not a list of ranges
    /// of at most three cells for the child's address, and two for the parent's and for the size.
    pub fn ranges(self) -> Result<impl Iterator<Item = Range> + Clone + 't, Malformed<'t>> {
        let property = self.require("ranges")?;
        let child = self.address_cells()?;
        let parent = self.parent().map_or(Ok(2), Self::address_cells)?;
        let size = self.size_cells()?;
        for (cells, most) in [(child, 3), (parent, 2), (size, 2)] {
            if !(1..=most).contains(&cells) {
                return Err(property.malformed(Fault::Cells(cells)));
            }
        }
        let entries = property.entries((child + parent + size) as usize)?;
        let entries = entries.map(move |mut cells| Range {
            flags: if child == 3 {
                cells.next().unwrap_or_default()
            } else {
                0
            },
            child: cells.number(child.min(2)),
            parent: cells.number(parent),
            size: cells.number(size),
        });
        let fits = |range: Range| {
            let mut starts = [range.child, range.parent].into_iter();
            starts.all(|start| start.checked_add(range.size).is_some())
        };
        if !entries.clone().all(fits) {
            return Err(property.malformed(Fault::Overflow));
        }
        Ok(entries)
    }

    /// Returns the interrupts that it raises at a GIC.
    ///
    /// # Errors
    ///
    /// If it has none, or its interrupt controller does not count them in three cells or more, or
    /// one of them is not an interrupt as the GIC's binding has it.
    pub fn interrupts(self) -> Result<impl Iterator<Item = Interrupt> + Clone + 't, Malformed<'t>> {
        let property = self.require("interrupts")?;
        let controller = self.interrupt_parent()?;
        let cells = controller.require("#interrupt-cells")?.u32()?;
        if !(3..=8).contains(&cells) {
            return Err(property.malformed(Fault::Cells(cells)));
        }
        let entries = property.entries(cells as usize)?;
        let decode = |mut cells: Cells<'t>| {
            let mut next = || cells.next().unwrap_or_default();
            Interrupt::decode([next(), next(), next()])
        };
        if let Some(kind) = entries
            .clone()
            .find(|entry| decode(entry.clone()).is_none())
        {
            let kind = kind.clone().next().unwrap_or_default();
            return Err(property.malformed(Fault::Value(kind)));
        }
        Ok(entries.filter_map(decode))
    }

    /// Returns the interrupt controller or nexus that its interrupts go to.
    ///
    /// # Errors
    ///
    /// If neither it nor a node above names one.
    pub fn interrupt_parent(self) -> Result<Self, Malformed<'t>> {
        let mut nodes = core::iter::successors(Some(self), |node| node.parent());
        let property = nodes
            .find_map(|node| node.property("interrupt-parent"))
            .ok_or(self.malformed("interrupt-parent", Fault::Missing))?;
        property.target()
    }

    /// Returns the error that the node's property is wrong.
    #[must_use]
    pub fn malformed(self, property: &'t str, fault: Fault) -> Malformed<'t> {
        Malformed {
            node: self,
            property,
            fault,
        }
    }

    /// Returns what the parent of this bus calls the start of a range on the bus.
    fn translate(self, region: Region) -> Result<u64, Malformed<'t>> {
        let mut ranges = self.ranges()?.peekable();
        if ranges.peek().is_none() {
            return Ok(region.base);
        }
        let inside = |range: &Range| {
            let offset = region.base.checked_sub(range.child)?;
            let rest = range.size.checked_sub(offset)?;
            (region.size <= rest).then(|| range.parent + offset)
        };
        ranges
            .find_map(|range| inside(&range))
            .ok_or(self.malformed("ranges", Fault::Untranslated(region.base)))
    }

    fn cell_count(self, name: &'t str, default: u32) -> Result<u32, Malformed<'t>> {
        self.property(name)
            .map_or(Ok(default), |property| property.u32())
    }

    fn property_records(self) -> &'t [PropertyRecord] {
        let range = self.record().map(|record| record.properties.clone());
        let range = range.map_or(0..0, |range| range.start as usize..range.end as usize);
        self.tree.properties.get(range).unwrap_or_default()
    }

    fn read(self, record: &PropertyRecord) -> Property<'t> {
        Property {
            node: self,
            name: str::from_utf8(self.tree.slice(record.name)).unwrap_or_default(),
            value: self.tree.slice(record.value),
        }
    }

    fn record(self) -> Option<&'t NodeRecord> {
        self.tree.nodes.get(self.index as usize)
    }

    fn end(self) -> u32 {
        self.record().map_or(u32::MAX, |record| record.end)
    }
}

impl PartialEq for Node<'_> {
    fn eq(&self, other: &Self) -> bool {
        core::ptr::eq(self.tree, other.tree) && self.index == other.index
    }
}

impl Eq for Node<'_> {}

impl fmt::Debug for Node<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Node({})", self.path())
    }
}

/// A node's path, to be shown.
#[derive(Clone, Copy)]
pub struct Path<'t>(Node<'t>);

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut names = [""; MAX_DEPTH];
        let mut node = self.0;
        let mut depth = 0;
        while let (Some(parent), Some(place)) = (node.parent(), names.get_mut(depth)) {
            *place = node.name();
            node = parent;
            depth += 1;
        }
        if depth == 0 {
            return f.write_str("/");
        }
        let names = names.iter().take(depth).rev();
        names.into_iter().try_for_each(|name| write!(f, "/{name}"))
    }
}

impl<'t> Property<'t> {
    /// Reads one cell.
    ///
    /// # Errors
    ///
    /// If the value is not four bytes.
    pub fn u32(self) -> Result<u32, Malformed<'t>> {
        let bytes = self.value.try_into();
        bytes
            .map(u32::from_be_bytes)
            .map_err(|_| self.wrong_length())
    }

    /// Reads one number of two cells.
    ///
    /// # Errors
    ///
    /// If the value is not eight bytes.
    pub fn u64(self) -> Result<u64, Malformed<'t>> {
        let bytes = self.value.try_into();
        bytes
            .map(u64::from_be_bytes)
            .map_err(|_| self.wrong_length())
    }

    /// Reads cells.
    ///
    /// # Errors
    ///
    /// If the value is not a multiple of four bytes.
    pub fn cells(self) -> Result<Cells<'t>, Malformed<'t>> {
        let (cells, rest) = self.value.as_chunks();
        if !rest.is_empty() {
            return Err(self.wrong_length());
        }
        Ok(Cells(cells.iter()))
    }

    /// Reads entries of `count` cells each.
    ///
    /// # Errors
    ///
    /// If the value is not a multiple of that.
    pub fn entries(
        self,
        count: usize,
    ) -> Result<impl Iterator<Item = Cells<'t>> + Clone + 't, Malformed<'t>> {
        let cells = self.cells()?.0.as_slice();
        if count == 0 || !cells.len().is_multiple_of(count) {
            return Err(self.wrong_length());
        }
        Ok(cells.chunks_exact(count).map(|entry| Cells(entry.iter())))
    }

    /// Reads text.
    ///
    /// # Errors
    ///
    /// If the value is not UTF-8 that ends with its only NUL.
    pub fn string(self) -> Result<&'t str, Malformed<'t>> {
        let mut strings = self.strings()?;
        match (strings.next(), strings.next()) {
            (Some(string), None) => Ok(string),
            _ => Err(self.malformed(Fault::Text)),
        }
    }

    /// Reads a list of texts.
    ///
    /// # Errors
    ///
    /// If the value is not UTF-8, or does not end with a NUL.
    pub fn strings(self) -> Result<Strings<'t>, Malformed<'t>> {
        let text = str::from_utf8(self.value).map_err(|_| self.malformed(Fault::Text))?;
        if !text.is_empty() && !text.ends_with('\0') {
            return Err(self.malformed(Fault::Text));
        }
        Ok(Strings(text))
    }

    /// Returns the node whose phandle is the value.
    ///
    /// # Errors
    ///
    /// If the value is not four bytes, or no node has that phandle.
    pub fn target(self) -> Result<Node<'t>, Malformed<'t>> {
        let phandle = self.u32()?;
        let node = self.node.tree.by_phandle(phandle);
        node.ok_or(self.malformed(Fault::Phandle(phandle)))
    }

    /// Returns the error that this property is wrong.
    #[must_use]
    pub fn malformed(self, fault: Fault) -> Malformed<'t> {
        self.node.malformed(self.name, fault)
    }

    fn wrong_length(self) -> Malformed<'t> {
        self.malformed(Fault::Length(self.value.len()))
    }
}

/// The cells of a value, one after the other.
#[derive(Clone, Debug)]
pub struct Cells<'t>(slice::Iter<'t, [u8; 4]>);

impl Cells<'_> {
    /// Takes a number of at most two cells; missing ones count as 0.
    pub fn number(&mut self, cells: u32) -> u64 {
        self.take(cells as usize)
            .fold(0, |number, cell| number << 32 | u64::from(cell))
    }
}

impl Iterator for Cells<'_> {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        self.0.next().map(|cell| u32::from_be_bytes(*cell))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.0.size_hint()
    }
}

impl ExactSizeIterator for Cells<'_> {}

/// The texts of a value, one after the other.
#[derive(Clone, Debug)]
pub struct Strings<'t>(&'t str);

impl<'t> Iterator for Strings<'t> {
    type Item = &'t str;

    fn next(&mut self) -> Option<&'t str> {
        let (first, rest) = self.0.split_once('\0')?;
        self.0 = rest;
        Some(first)
    }
}

impl Interrupt {
    /// Reads the first three cells of an interrupt, as a GIC's binding has them (Linux,
    /// Documentation/devicetree/bindings/interrupt-controller/arm,gic-v3.yaml).
    #[must_use]
    pub fn decode([kind, number, flags]: [u32; 3]) -> Option<Self> {
        #[rustfmt::skip]
        let (first, count) = match kind {
            0 => (32, 988),    // SPI
            1 => (16, 16),     // PPI
            2 => (4096, 1024), // extended SPI
            3 => (1056, 64),   // extended PPI
            _ => return None,
        };
        let trigger = match flags & 0xf {
            1 | 2 => Trigger::Edge,
            4 | 8 => Trigger::Level,
            _ => return None,
        };
        (number < count).then(|| Self {
            intid: first + number,
            trigger,
        })
    }
}
