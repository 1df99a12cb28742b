//! `iommu-map` and `msi-map`: from requester IDs to StreamIDs and DeviceIDs.
//!
//! Devicetree bindings, `pci/pci-iommu.yaml` and `pci/pci-msi.txt`: entries of four cells, which are
//! requester ID base, phandle of the controller, output base, length; and a mask that is applied to
//! the requester ID first.

use alloc::vec::Vec;

use crate::{OutOfMemory, push};

/// A run of requester IDs, mapped to a run of outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    base: u32,
    controller: u32,
    output: u32,
    length: u32,
}

/// Why a property is no map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapError {
    /// It is not made of whole entries.
    Length,
    /// An entry of an `interrupt-map` names a controller that there is not.
    Controller(u32),
    /// An entry ends beyond the requester IDs, or beyond the outputs.
    Range,
    /// An entry begins at a requester ID that the mask makes another one of.
    Mask,
    /// There is no memory for it.
    OutOfMemory,
}

impl From<OutOfMemory> for MapError {
    fn from(_: OutOfMemory) -> Self {
        Self::OutOfMemory
    }
}

/// A map of requester IDs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RidMap {
    entries: Vec<Entry>,
    mask: u32,
}

impl RidMap {
    /// Decodes a map property and the mask that goes with it, all ones if there is none.
    ///
    /// The first entry that covers a requester ID counts, as in every other reader of such maps.
    pub fn decode(property: &[u8], mask: Option<u32>) -> Result<Self, MapError> {
        let mask = mask.unwrap_or(u32::MAX);
        let (cells, rest) = property.as_chunks::<4>();
        let (rows, odd) = cells.as_chunks::<4>();
        if !rest.is_empty() || !odd.is_empty() {
            return Err(MapError::Length);
        }
        let mut entries = Vec::new();
        for row in rows {
            let [base, controller, output, length] = row.map(u32::from_be_bytes);
            let fits = base.checked_add(length).is_some_and(|end| end <= 0x1_0000);
            if !fits || output.checked_add(length).is_none() {
                return Err(MapError::Range);
            }
            if base & !mask != 0 {
                return Err(MapError::Mask);
            }
            push(
                &mut entries,
                Entry {
                    base,
                    controller,
                    output,
                    length,
                },
            )?;
        }
        Ok(Self { entries, mask })
    }

    /// Returns the phandle of the controller and the ID by which it knows a requester.
    pub fn translate(&self, rid: u16) -> Option<(u32, u32)> {
        let rid = u32::from(rid) & self.mask;
        self.entries.iter().find_map(|entry| {
            let offset = rid
                .checked_sub(entry.base)
                .filter(|offset| *offset < entry.length)?;
            Some((entry.controller, entry.output + offset))
        })
    }

    /// Returns one more than the highest ID that a controller gets, and zero if it gets none.
    pub fn end(&self, controller: u32) -> u64 {
        let led_there = |entry: &&Entry| entry.controller == controller && entry.length > 0;
        let ends = self.entries.iter().filter(led_there);
        let ends = ends.map(|entry| u64::from(entry.output) + u64::from(entry.length));
        ends.max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn property(cells: &[u32]) -> Vec<u8> {
        cells.iter().flat_map(|cell| cell.to_be_bytes()).collect()
    }

    #[test]
    #[rustfmt::skip]
    fn requesters_are_found_by_range() {
        let two = property(&[
            0x0000, 7, 0x1_0000, 0x100,
            0x0200, 8, 0x0,      0x080,
        ]);
        let all = property(&[0, 9, 0, 0x1_0000]);
        let low = property(&[0, 7, 0x1_0000, 0x100]);
        let over = property(&[
            0x00, 7, 0x00,  0x10,
            0x10, 8, 0x110, 0x10,
            0x00, 9, 0x00,  0x100,
            0x50, 5, 0x00,  0,
        ]);
        let none = property(&[]);
        let cases = [
            // map, mask,          rid,    controller and output
            (&all, None,           0x0000, Some((9, 0))),
            (&all, None,           0xffff, Some((9, 0xffff))),
            (&two, None,           0x0000, Some((7, 0x1_0000))),
            (&two, None,           0x00ff, Some((7, 0x1_00ff))),
            (&two, None,           0x0100, None),
            (&two, None,           0x0200, Some((8, 0))),
            (&two, None,           0x027f, Some((8, 0x7f))),
            (&two, None,           0x0280, None),
            (&two, Some(0xff_f8),  0x000f, Some((7, 0x1_0008))),
            (&two, Some(0xff_f8),  0x0287, None),
            (&low, Some(0x00_ff),  0x5512, Some((7, 0x1_0012))),
            (&low, Some(0x00_ff),  0x55ff, Some((7, 0x1_00ff))),
            (&low, Some(0),        0x55ff, Some((7, 0x1_0000))),
            (&over, None,          0x000f, Some((7, 0x0f))),
            (&over, None,          0x0010, Some((8, 0x110))), // the first that covers it
            (&over, None,          0x0020, Some((9, 0x20))),
            (&over, None,          0x0100, None),
            (&none, None,          0x0000, None),
        ];
        for (map, mask, rid, expected) in cases {
            let map = RidMap::decode(map, mask).expect("sound");
            assert_eq!(map.translate(rid), expected, "{rid:#x}");
        }
    }

    #[test]
    #[rustfmt::skip]
    fn a_property_that_is_no_map_is_refused() {
        let cases = [
            (property(&[0, 1, 0]),                 MapError::Length),
            (property(&[0, 1, 0, 1])[1..].into(),  MapError::Length),
            (property(&[1, 1, 0, 0x1_0000]),       MapError::Range),
            (property(&[u32::MAX, 1, 0, 2]),       MapError::Range),
            (property(&[0, 1, u32::MAX, 2]),       MapError::Range),
            (property(&[0x200, 1, 0, 1]),          MapError::Mask),
        ];
        for (bytes, error) in cases {
            assert_eq!(RidMap::decode(&bytes, Some(0xff)), Err(error), "{bytes:?}");
        }
    }

    #[test]
    fn each_controller_has_an_end() {
        let map = property(&[
            0x000,
            7,
            0x1_0000,
            0x100, //
            0x200,
            8,
            0x0,
            0x080, //
            0x300,
            7,
            0x400,
            0x001, //
            0x400,
            8,
            0xffff_ff00,
            0xff, //
            0x500,
            9,
            0x1000,
            0x000,
        ]);
        let map = RidMap::decode(&map, None).expect("sound");
        let ends = [7, 8, 9, 10].map(|controller| map.end(controller));
        assert_eq!(ends, [0x1_0100, 0xffff_ffff, 0, 0]);
    }
}
