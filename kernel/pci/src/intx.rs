//! Interrupt pins: from a function's pin to the interrupt that the machine makes of it.
//!
//! ```text
//!   function, pin --> bridge --> bridge --> root bus: interrupt-map --> controller, its specifier
//!                 each: pin + device number, modulo 4
//! ```
//!
//! What is below a bridge has the bridge's four pins, turned by the number of the device, so that the
//! first pins of several devices do not meet (PCI-to-PCI Bridge Architecture Specification 1.2, section
//! 9.1; PCI Express Base Specification, section 2.2.8.1).

use alloc::vec::Vec;

use vpci::Sbdf;

use crate::capability::PortKind;
use crate::config::{ConfigSpace, Function, header};
use crate::device::{Device, Hierarchy};
use crate::{MapError, push};

/// An interrupt pin: INTA to INTD.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pin(u8);

impl Pin {
    /// How many there are.
    const COUNT: u8 = 4;

    /// Decodes the Interrupt Pin register (section 7.5.1.1.13): 0 is none, and what is above 4 is
    /// reserved.
    pub fn decode(register: u8) -> Option<Self> {
        let pin = register.checked_sub(1)?;
        (pin < Self::COUNT).then_some(Self(pin))
    }

    /// Returns the pin of a bridge that this one, of the device of that number on the bus below, is.
    #[must_use]
    pub fn across(self, device: u8) -> Self {
        Self((self.0 + device % Self::COUNT) % Self::COUNT)
    }

    /// Returns its number, counted from 0.
    pub fn index(self) -> u32 {
        self.0.into()
    }
}

/// Returns the pin of a function, and whether it can be silenced: Interrupt Disable in Command, and
/// Interrupt Status with it, came with revision 2.3 of the PCI specification, and a function that lacks
/// the one has zeros there. The pin is left silenced. Nobody drives the function.
pub fn probe_pin<C: ConfigSpace + ?Sized>(function: Function<'_, C>) -> Option<(Pin, bool)> {
    let pin = Pin::decode(function.read8(header::INTERRUPT_PIN))?;
    let command = function.read16(header::COMMAND);
    let takes = |value: u16| {
        function.write16(header::COMMAND, value);
        function.read16(header::COMMAND) == value
    };
    let can_be_silenced = takes(command & !header::COMMAND_SILENT);
    Some((
        pin,
        takes(command | header::COMMAND_SILENT) && can_be_silenced,
    ))
}

impl Hierarchy {
    /// Returns the function on the root bus, and the pin of it, by which the interrupts of a pin of
    /// `device` come.
    pub fn root_pin(&self, device: &Device, pin: Pin) -> (Sbdf, Pin) {
        let (mut at, mut pin) = (device.sbdf, pin);
        for bridge in self.above(device) {
            let number = match bridge.port() {
                // A link leads to device 0; with ARI the bits belong to the function's number
                // (section 6.13).
                Some(PortKind::RootPort | PortKind::DownstreamPort) => 0,
                _ => at.device(),
            };
            (at, pin) = (bridge.sbdf, pin.across(number));
        }
        (at, pin)
    }
}

/// An interrupt of a controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wire {
    /// The controller, by its phandle.
    pub controller: u32,
    /// The first three cells of the specifier, zero where there are fewer.
    pub specifier: [u32; 3],
}

/// How many cells a controller's unit addresses and specifiers have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Widths {
    /// `#address-cells`, 0 if it has none.
    pub address: u32,
    /// `#interrupt-cells`.
    pub interrupt: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Row {
    /// Unit address and pin, masked.
    from: [u32; 4],
    to: Wire,
}

/// `interrupt-map` of a host bridge (Devicetree Specification 0.4, section 2.4.3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterruptMap {
    rows: Vec<Row>,
    mask: [u32; 4],
}

impl InterruptMap {
    /// Decodes the map and the mask that goes with it, all ones if there is none. `widths` tells what
    /// a controller's entries are like.
    pub fn decode(
        property: &[u8],
        mask: Option<&[u8]>,
        widths: impl Fn(u32) -> Option<Widths>,
    ) -> Result<Self, MapError> {
        let mask = match mask {
            None => [u32::MAX; 4],
            Some(bytes) => {
                let (mut cells, end) = cells(bytes)?;
                let mask = take(&mut cells).ok_or(MapError::Length)?;
                if end != 4 {
                    return Err(MapError::Length);
                }
                mask
            }
        };
        let (mut cells, mut left) = cells(property)?;
        let mut rows = Vec::new();
        while left > 0 {
            let from: [u32; 4] = take(&mut cells).ok_or(MapError::Length)?;
            let [controller] = take(&mut cells).ok_or(MapError::Length)?;
            let widths = widths(controller).ok_or(MapError::Controller(controller))?;
            let (address, interrupt) = (widths.address as usize, widths.interrupt as usize);
            left = left
                .checked_sub(5)
                .and_then(|left| left.checked_sub(address))
                .and_then(|left| left.checked_sub(interrupt))
                .ok_or(MapError::Length)?;
            let mut specifier = [0; 3];
            cells.by_ref().take(address).for_each(drop);
            for (index, cell) in cells.by_ref().take(interrupt).enumerate() {
                if let Some(slot) = specifier.get_mut(index) {
                    *slot = cell;
                }
            }
            let to = Wire {
                controller,
                specifier,
            };
            let from = masked(from, mask);
            push(&mut rows, Row { from, to })?;
        }
        Ok(Self { rows, mask })
    }

    /// Returns the interrupt of a pin of a function on the root bus.
    pub fn translate(&self, function: Sbdf, pin: Pin) -> Option<Wire> {
        // The unit address of a function is that of its config space: phys.hi without the bits that
        // say which space (PCI Bus Binding to IEEE Std 1275-1994, section 2.2.1.1).
        let address = u32::from(function.rid()) << 8;
        let from = masked([address, 0, 0, pin.index() + 1], self.mask);
        let row = self.rows.iter().find(|row| row.from == from)?;
        Some(row.to)
    }
}

/// Returns a property's cells and their number.
fn cells(property: &[u8]) -> Result<(impl Iterator<Item = u32>, usize), MapError> {
    let (cells, rest) = property.as_chunks::<4>();
    if !rest.is_empty() {
        return Err(MapError::Length);
    }
    let count = cells.len();
    Ok((cells.iter().map(|cell| u32::from_be_bytes(*cell)), count))
}

fn take<const N: usize>(cells: &mut impl Iterator<Item = u32>) -> Option<[u32; N]> {
    let mut taken = [0; N];
    for slot in &mut taken {
        *slot = cells.next()?;
    }
    Some(taken)
}

fn masked(cells: [u32; 4], mask: [u32; 4]) -> [u32; 4] {
    let mut cells = cells;
    for (cell, mask) in cells.iter_mut().zip(mask) {
        *cell &= mask;
    }
    cells
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{Bridge, Header};
    use crate::{Acs, Capabilities, Express};
    use proptest::prelude::*;
    use vpci::{Offset, Size};

    const GIC: u32 = 0x8002;
    const GIC_WIDTHS: Widths = Widths {
        address: 2,
        interrupt: 3,
    };

    fn name(text: &str) -> Sbdf {
        text.parse().unwrap()
    }

    fn pin(letter: char) -> Pin {
        Pin::decode(u8::try_from(letter).unwrap() - b'A' + 1).unwrap()
    }

    fn property(cells: &[u32]) -> Vec<u8> {
        cells.iter().flat_map(|cell| cell.to_be_bytes()).collect()
    }

    /// As QEMU's virt machine has it: four devices, four pins, SPIs 3 to 6.
    fn virt() -> (Vec<u8>, Vec<u8>) {
        let mut map = Vec::new();
        for device in 0..4 {
            for pin in 0..4 {
                let spi = 3 + (device + pin) % 4;
                map.extend([device << 11, 0, 0, pin + 1, GIC, 0, 0, 0, spi, 4]);
            }
        }
        (property(&map), property(&[0x1800, 0, 0, 7]))
    }

    fn widths(phandle: u32) -> Option<Widths> {
        (phandle == GIC).then_some(GIC_WIDTHS)
    }

    #[test]
    fn pins_are_a_to_d() {
        for register in 0..=u8::MAX {
            let pin = Pin::decode(register).map(Pin::index);
            let expected = (1..=4).contains(&register).then(|| u32::from(register) - 1);
            assert_eq!(pin, expected, "{register}");
        }
    }

    /// One function, of whose Command only some bits can be written.
    struct Old {
        command: core::cell::Cell<u16>,
        pin: u8,
        stuck: u16,
        writable: u16,
    }

    impl ConfigSpace for Old {
        fn read(&self, _: Sbdf, offset: Offset, size: Size) -> u32 {
            match (offset.get(), size) {
                (0x04, Size::Two) => (self.command.get() | self.stuck).into(),
                (0x3d, Size::One) => self.pin.into(),
                _ => 0,
            }
        }

        fn write(&self, _: Sbdf, offset: Offset, _: Size, value: u32) {
            assert_eq!(offset.get(), 0x04);
            self.command
                .set(u16::try_from(value).unwrap() & self.writable);
        }
    }

    #[test]
    #[rustfmt::skip]
    fn a_pin_is_silenced_where_that_can_be() {
        let cases = [
            // pin, writable, stuck, Command before, found,                   Command after
            (0,     0xffff,   0,     2,              None,                    2),
            (5,     0xffff,   0,     2,              None,                    2),
            (1,     0xffff,   0,     2,              Some((pin('A'), true)),  0x402),
            (4,     0xffff,   0,     0x406,          Some((pin('D'), true)),  0x406),
            (1,     0x0007,   0,     6,              Some((pin('A'), false)), 6),
            (2,     0xffff,   0x400, 0,              Some((pin('B'), false)), 0x400),
        ];
        for (pin, writable, stuck, before, expected, after) in cases {
            let old = Old { command: before.into(), pin, stuck, writable };
            let function = Function::new(&old, name("00:01.0"));
            assert_eq!(probe_pin(function), expected, "{pin} {writable:#x} {stuck:#x}");
            assert_eq!(old.command.get() | stuck, after, "{pin} {writable:#x} {stuck:#x}");
        }
    }

    #[test]
    #[rustfmt::skip]
    fn a_pin_turns_with_the_device() {
        let cases = [
            ('A', 0, 'A'), ('A', 1, 'B'), ('A', 2, 'C'), ('A', 3, 'D'), ('A', 4, 'A'), ('A', 31, 'D'),
            ('B', 0, 'B'), ('B', 3, 'A'), ('C', 2, 'A'), ('D', 0, 'D'), ('D', 1, 'A'), ('D', 30, 'B'),
        ];
        for (below, device, above) in cases {
            assert_eq!(pin(below).across(device), pin(above), "{below} of {device}");
        }
    }

    #[test]
    #[rustfmt::skip]
    fn the_map_of_virt_is_read() {
        let (map, mask) = virt();
        let map = InterruptMap::decode(&map, Some(&mask), widths).unwrap();
        let cases = [
            ("00:00.0", 'A', 3), ("00:01.0", 'A', 4), ("00:01.7", 'A', 4), ("00:02.0", 'B', 6),
            ("00:03.0", 'D', 5), ("00:05.0", 'A', 4), ("00:1f.3", 'C', 4),
        ];
        for (function, letter, spi) in cases {
            let wire = map.translate(name(function), pin(letter)).unwrap();
            assert_eq!((wire.controller, wire.specifier), (GIC, [0, spi, 4]), "{function} {letter}");
        }
    }

    /// Boards name one row for each pin, with a mask that leaves the address out; and controllers
    /// without addresses, of fewer or more cells than three.
    #[test]
    fn rows_are_as_wide_as_their_controllers() {
        #[rustfmt::skip]
        let map = property(&[
            0, 0, 0, 1, 1, 0, 99, 4,
            0, 0, 0, 2, 2, 7, 7, 0, 98, 4, 55,
            0, 0, 0, 3, 3, 12,
        ]);
        let widths = |phandle| {
            let (address, interrupt) = [(0, 3), (2, 4), (0, 1)][phandle as usize - 1];
            Some(Widths { address, interrupt })
        };
        let map = InterruptMap::decode(&map, Some(&property(&[0, 0, 0, 7])), widths).unwrap();
        let cases = [
            ('A', Some((1, [0, 99, 4]))),
            ('B', Some((2, [0, 98, 4]))),
            ('C', Some((3, [12, 0, 0]))),
            ('D', None),
        ];
        for (letter, expected) in cases {
            let wire = map.translate(name("05:1f.2"), pin(letter));
            let wire = wire.map(|wire| (wire.controller, wire.specifier));
            assert_eq!(wire, expected, "{letter}");
        }
    }

    #[test]
    fn a_map_without_mask_compares_everything() {
        let map = property(&[0x1_0800, 0, 0, 1, GIC, 0, 0, 0, 5, 4]);
        let map = InterruptMap::decode(&map, None, widths).unwrap();
        assert!(map.translate(name("01:01.0"), pin('A')).is_some());
        assert!(map.translate(name("00:01.0"), pin('A')).is_none());
        assert!(map.translate(name("01:01.1"), pin('A')).is_none());
        assert!(map.translate(name("01:01.0"), pin('B')).is_none());
    }

    #[test]
    fn a_property_that_is_no_map_is_refused() {
        let (map, mask) = virt();
        let cases = [
            (&map[..map.len() - 4], &mask[..], MapError::Length),
            (&map[..map.len() - 1], &mask[..], MapError::Length),
            (&map[..16], &mask[..], MapError::Length),
            (&map[..8], &mask[..], MapError::Length),
            (&map[..], &mask[4..], MapError::Length),
            (&map[..], &map[..20], MapError::Length),
            (&map[..], &mask[1..], MapError::Length),
            (&map[4..], &mask[..], MapError::Controller(0)),
        ];
        for (map, mask, error) in cases {
            assert_eq!(
                InterruptMap::decode(map, Some(mask), widths),
                Err(error),
                "{map:?} {mask:?}"
            );
        }
        let wide = |_| {
            Some(Widths {
                address: u32::MAX,
                interrupt: u32::MAX,
            })
        };
        let refused = InterruptMap::decode(&map, Some(&mask), wide);
        assert_eq!(refused, Err(MapError::Length));
    }

    proptest! {
        /// Whatever the bytes are, there is an answer.
        #[test]
        fn no_property_is_too_strange(
            map in prop::collection::vec(any::<u8>(), 0..200),
            mask in prop::option::of(prop::collection::vec(any::<u8>(), 0..20)),
            address in 0..3u32,
            interrupt in 0..5u32,
        ) {
            let widths = |_| Some(Widths { address, interrupt });
            if let Ok(map) = InterruptMap::decode(&map, mask.as_deref(), widths) {
                let _ = map.translate(name("00:01.0"), pin('A'));
            }
        }
    }

    fn device(text: &str, kind: Option<PortKind>, parent: Option<usize>) -> Device {
        let header = match kind {
            Some(PortKind::Endpoint) | None => Header::Endpoint,
            Some(_) => Header::Bridge(Bridge::default()),
        };
        Device {
            sbdf: name(text),
            vendor: 1,
            device: 1,
            class: 0,
            revision: 0,
            header,
            bars: [None; crate::device::BARS],
            capabilities: Capabilities::default(),
            express: kind.map(|kind| Express {
                offset: Offset::in_function(0x40),
                kind,
                function_level_reset: false,
                reports_link: false,
                control: 0,
                control_2: None,
            }),
            acs: Acs::default(),
            sriov: None,
            virtual_function: None,
            parent,
            usable: true,
        }
    }

    #[test]
    #[rustfmt::skip]
    fn pins_reach_the_root_bus_across_all_bridges() {
        let found = Hierarchy {
            devices: [
                device("00:03.0", Some(PortKind::RootPort),       None),    // 0
                device("00:04.0", Some(PortKind::RootPort),       None),    // 1
                device("01:00.0", Some(PortKind::Endpoint),       Some(0)), // 2
                device("01:00.1", Some(PortKind::Endpoint),       Some(0)), // 3
                device("01:01.0", Some(PortKind::Endpoint),       Some(0)), // 4: function 8, by ARI
                device("02:00.0", Some(PortKind::UpstreamPort),   Some(1)), // 5
                device("03:02.0", Some(PortKind::DownstreamPort), Some(5)), // 6
                device("04:00.0", Some(PortKind::ToConventional), Some(6)), // 7
                device("05:07.0", None,                           Some(7)), // 8
            ].into(),
            problems: Vec::new(),
        };
        let cases = [
            (0, 'A', "00:03.0", 'A'),
            (2, 'A', "00:03.0", 'A'),
            (3, 'B', "00:03.0", 'B'),
            (4, 'A', "00:03.0", 'A'),
            (6, 'A', "00:04.0", 'C'), // turned by 2, then by 0
            (7, 'D', "00:04.0", 'B'),
            (8, 'A', "00:04.0", 'B'), // 7 + 0 + 2 + 0
        ];
        for (index, letter, root, at_root) in cases {
            let found = found.root_pin(&found.devices[index], pin(letter));
            assert_eq!(found, (name(root), pin(at_root)), "{index} {letter}");
        }
    }
}
