//! What is made of a physical function: what is shown of it, and what is refused.

use std::cell::RefCell;
use std::collections::BTreeSet;

use proptest::prelude::*;
use vpci::{
    BarIndex, BarInfo, BarKind, BarRead, BarWrite, BuildError, BusAddress, Change, ConfigAccess,
    Effect, Function, Message, Msi, Offset, PAGE, PhysicalConfig, Pin, Position, Sbdf, Setup, Size,
    Steadiness, Vendor,
};

const DOORBELL: u64 = 0x0809_0040;

/// Config space of a device, in dwords. It takes no writes but those of error bits.
struct Space(RefCell<Vec<u32>>);

impl PhysicalConfig for Space {
    fn read(&self, offset: Offset, size: Size) -> u32 {
        self.0.borrow()[offset.dword()] >> offset.shift() & size.mask()
    }

    fn write(&self, offset: Offset, size: Size, value: u32) {
        let ones = (value & size.mask()) << offset.shift();
        self.0.borrow_mut()[offset.dword()] &= !ones;
    }
}

/// An endpoint with a capability list that starts at 0x40, and `more`.
fn space(more: &[(u16, u32)]) -> Space {
    let mut dwords = vec![0; 1024];
    for &(offset, value) in [(0x00, 0x5678_1234), (0x04, 0x0010_0000), (0x34, 0x40)]
        .iter()
        .chain(more)
    {
        dwords[usize::from(offset / 4)] = value;
    }
    Space(RefCell::new(dwords))
}

fn bar(index: u8, kind: BarKind, size: u64) -> BarInfo {
    let index = BarIndex::new(index).unwrap();
    let host = 0x80_0000_0000 | u64::from(index.get()) << 32;
    BarInfo {
        index,
        kind,
        prefetchable: false,
        size,
        host,
    }
}

fn build(
    space: Space,
    bars: &[BarInfo],
    position: Position,
    pin: Pin,
) -> Result<Function<Space>, BuildError> {
    let setup = Setup {
        bars,
        doorbell: BusAddress::new(DOORBELL),
        position,
        pin,
        vendor: Vendor::Hidden,
        kind: vpci::Kind::Ordinary,
    };
    Function::new(space, &setup)
}

/// A function that shows all that can be shown.
fn open(dwords: &[(u16, u32)], bars: &[BarInfo], position: Position) -> Function<Space> {
    let setup = Setup {
        bars,
        doorbell: BusAddress::new(DOORBELL),
        position,
        pin: Pin::Shown,
        vendor: Vendor::Shown,
        kind: vpci::Kind::Ordinary,
    };
    Function::new(space(dwords), &setup).unwrap()
}

/// Follows the chain of capabilities.
fn chain(function: &Function<Space>) -> Vec<u32> {
    let mut found = vec![];
    let mut at = dword(function, 0x34);
    while at != 0 {
        found.push(at);
        at = dword(function, u16::try_from(at).unwrap()) >> 8 & 0xff;
    }
    found
}

/// Follows the chain of extended capabilities: where they are, and their IDs.
fn extended(function: &Function<Space>) -> Vec<(u32, u32)> {
    let mut found = vec![];
    let mut at = 0x100;
    while at != 0 {
        let header = dword(function, u16::try_from(at).unwrap());
        if header == 0 {
            break;
        }
        found.push((at, header & 0xffff));
        at = header >> 20;
    }
    found
}

fn access(offset: u16, size: Size) -> ConfigAccess {
    ConfigAccess::new(Sbdf::from_rid(0, 8), Offset::new(offset).unwrap(), size).unwrap()
}

fn dword(function: &Function<Space>, offset: u16) -> u32 {
    function.read(access(offset, Size::Four))
}

fn write(function: &mut Function<Space>, offset: u16, value: u32) -> Vec<Effect> {
    let change = function.write(access(offset, Size::Four), value);
    let effects: Vec<_> = std::iter::from_fn(|| function.next_effect()).collect();
    assert!(change == Change::Effects || effects.is_empty());
    effects
}

#[test]
#[rustfmt::skip]
fn what_cannot_be_passed_through_is_refused() {
    use BarKind::{Io, Memory32, Memory64};
    let index = |bar| BarIndex::new(bar).unwrap();
    let memory = &[bar(0, Memory32, 0x4000), bar(1, Io, 0x4000)][..];
    type Case<'a> = (&'a str, &'a [(u16, u32)], &'a [BarInfo], BuildError);
    let cases: &[Case<'_>] = &[
        ("absent",         &[(0, 0xffff_ffff)],   &[], BuildError::Absent),
        ("VF",             &[(0, 0x1234_ffff)],   &[], BuildError::Absent),
        ("bridge",         &[(0x0c, 0x0001_0000)], &[], BuildError::HeaderLayout(1)),
        ("multi bridge",   &[(0x0c, 0x0081_0000)], &[], BuildError::HeaderLayout(1)),
        ("odd size",       &[], &[bar(0, Memory32, 0x3000)], BuildError::Bar(index(0))),
        ("twice",          &[], &[bar(1, Memory32, 0x1000), bar(1, Memory32, 0x1000)], BuildError::Bar(index(1))),
        ("in a pair",      &[], &[bar(1, Memory64, 0x1000), bar(2, Memory32, 0x1000)], BuildError::Bar(index(2))),
        ("around one",     &[], &[bar(2, Memory32, 0x1000), bar(1, Memory64, 0x1000)], BuildError::Bar(index(1))),
        ("no upper half",  &[], &[bar(5, Memory64, 0x1000)], BuildError::Bar(index(5))),
        ("table nowhere",  &[(0x40, 0x11), (0x44, 0x2), (0x48, 0x1000)], memory, BuildError::Msix),
        ("table in I/O",   &[(0x40, 0x11), (0x44, 0x1), (0x48, 0x1000)], memory, BuildError::Msix),
        ("table past end", &[(0x40, 0x0001_0011), (0x44, 0x3ff0), (0x48, 0)], memory, BuildError::Msix),
        ("PBA past end",   &[(0x40, 0x0041_0011), (0x44, 0), (0x48, 0x3ff8)], memory, BuildError::Msix),
        ("PBA nowhere",    &[(0x40, 0x11), (0x44, 0), (0x48, 0x7)], memory, BuildError::Msix),
        ("one on another", &[(0x40, 0x0001_0011), (0x44, 0x100), (0x48, 0x118)], memory, BuildError::Msix),
        ("and reversed",   &[(0x40, 0x07ff_0011), (0x44, 0x100), (0x48, 0x0f8)], memory, BuildError::Msix),
    ];
    for (what, dwords, bars, error) in cases {
        let got = build(space(dwords), bars, Position::RootBus, Pin::Hidden).map(drop);
        assert_eq!(got, Err(*error), "{what}");
        assert!(!error.to_string().is_empty());
    }
    assert!(!BuildError::NoMemory.to_string().is_empty());
}

#[test]
#[rustfmt::skip]
fn the_port_type_is_that_of_the_guests_bus() {
    use Position::{BelowPort, RootBus};
    let cases = [
        // physical, position, shown (version 2, link capabilities, control and status)
        (0x0002,  RootBus,     Some((0x0092, 0, 0))),
        (0x0012,  RootBus,     Some((0x0092, 0, 0))),
        (0x0092,  RootBus,     Some((0x0092, 0, 0))),
        (0x0002,  BelowPort,   Some((0x0002, 0x0043_3012, 0x1012_0000))),
        (0x0012,  BelowPort,   Some((0x0012, 0x0043_3012, 0x1012_0000))),
        (0x0092,  BelowPort,   Some((0x0002, 0x0040_0011, 0x1011_0000))), // has no link of its own
        (0x0042,  RootBus,     None), // a root port
        (0x00a2,  RootBus,     None), // an event collector
    ];
    for (physical, position, shown) in cases {
        let space = space(&[(0x40, physical << 16 | 0x10), (0x4c, 0x0047_3c12), (0x50, 0x1012_0003)]);
        let function = build(space, &[], position, Pin::Hidden).unwrap();
        let listed = function.read(access(0x34, Size::One)) == 0x40;
        assert_eq!(listed, shown.is_some(), "{physical:#x}");
        let Some((header, capabilities, status)) = shown else { continue };
        assert_eq!(dword(&function, 0x40), header << 16 | 0x10, "{physical:#x} {position:?}");
        assert_eq!(dword(&function, 0x4c), capabilities, "no ASPM");
        assert_eq!(dword(&function, 0x50), status);
    }
}

/// Version 1 of the capability is shorter, and what follows it is another structure.
#[test]
#[rustfmt::skip]
fn version_1_ends_early() {
    for (kind, size) in [(0x0091, 0x0c), (0x0001, 0x14)] {
        let next = 0x40 + size;
        let pm = u32::from(next);
        let space = space(&[(0x40, kind << 16 | pm << 8 | 0x10), (next, 0x0003_0001), (next + 4, 0)]);
        let function = build(space, &[], Position::RootBus, Pin::Hidden).unwrap();
        assert_eq!(dword(&function, next), 0x0003_0001, "{kind:#x}");
        let far = [(0x40, kind << 16 | 0x6410), (0x64, 0x5), (0x34, 0x40)];
        let mut other = build(self::space(&far), &[], Position::RootBus, Pin::Hidden).unwrap();
        let _ = write(&mut other, 0x68, 0x1c);
        assert_eq!(dword(&other, 0x68), 0x1c, "not Device Control 2");
        assert_eq!(dword(&function, 0x40) >> 8 & 0xff, pm);
    }
}

#[test]
fn capabilities_that_have_no_room_are_left_out() {
    type Case<'a> = (&'a str, &'a [(u16, u32)], &'a [u32]);
    let cases: &[Case<'_>] = &[
        (
            "past the end",
            &[(0x40, 0xf801_0001 | 0xf8 << 8), (0xf8, 0x0092_0010)],
            &[0x40],
        ),
        (
            "on another",
            &[
                (0x40, 0x0003_4401),
                (0x44, 0x0003_5001),
                (0x50, 0x0080_0005),
            ],
            &[0x40, 0x50],
        ),
        (
            "overlapping",
            &[(0x40, 0x0080_4805), (0x48, 0x0003_0001)],
            &[0x40],
        ),
        (
            "second of a kind",
            &[(0x40, 0x0003_5001), (0x50, 0x0003_6001), (0x60, 5)],
            &[0x40, 0x60],
        ),
        (
            "second MSI",
            &[(0x40, 0x0000_6005), (0x60, 0x0000_0005)],
            &[0x40],
        ),
        (
            "second PCIe",
            &[(0x40, 0x0092_8010), (0x80, 0x0092_0010)],
            &[0x40],
        ),
        (
            "second MSI-X",
            &[(0x40, 0x8011), (0x48, 0x800), (0x80, 0x11)],
            &[0x40],
        ),
        (
            "second of a kind, the first is not whole",
            &[(0x40, 0xf801), (0xf8, 0x6005), (0x60, 0x0000_0005)],
            &[0x40],
        ),
        (
            "second PCIe, the first is a port's",
            &[(0x40, 0x0042_8010), (0x80, 0x0092_0010)],
            &[],
        ),
    ];
    for (what, dwords, expected) in cases {
        let bars = [bar(0, BarKind::Memory32, 0x1000)];
        let function = build(space(dwords), &bars, Position::RootBus, Pin::Hidden).unwrap();
        assert_eq!(chain(&function), *expected, "{what}");
    }
}

#[test]
fn msi_without_masks_or_upper_address_is_shorter() {
    let mut function = build(
        space(&[(0x40, 0x0000_0005)]),
        &[],
        Position::RootBus,
        Pin::Hidden,
    )
    .unwrap();
    let address = u32::try_from(DOORBELL).unwrap();
    assert_eq!(write(&mut function, 0x44, address | 3), []);
    assert_eq!(dword(&function, 0x44), address);
    assert_eq!(write(&mut function, 0x48, 0xffff_0007), []);
    assert_eq!(dword(&function, 0x48), 7);
    assert_eq!(write(&mut function, 0x4c, 0xffff_ffff), []);
    assert_eq!(dword(&function, 0x4c), 0);
    let message = Message::Live { data: 7 };
    assert_eq!(
        write(&mut function, 0x40, 1 << 16),
        [Effect::Msi(Msi {
            message,
            vectors: 1,
            mask: 0
        })]
    );
    // With masks: one vector, so one mask bit.
    let mut function = build(
        space(&[(0x40, 0x0100_0005)]),
        &[],
        Position::RootBus,
        Pin::Hidden,
    )
    .unwrap();
    assert_eq!(write(&mut function, 0x4c, u32::MAX), []);
    assert_eq!(dword(&function, 0x4c), 1);
}

#[test]
fn an_interrupt_pin_is_shown_where_it_is_routed() {
    let dwords = [(0x04, 0x0018_0000), (0x3c, 0xff01_02ff)];
    let mut function = build(space(&dwords), &[], Position::RootBus, Pin::Shown).unwrap();
    assert_eq!(dword(&function, 0x3c), 0x0200);
    assert_eq!(
        function.read(access(0x06, Size::Two)),
        0x0008,
        "interrupt status, no list"
    );
    assert_eq!(
        write(&mut function, 0x04, 0x0400),
        [Effect::Intx { enabled: false }]
    );
    assert_eq!(
        write(&mut function, 0x04, 0x0404),
        [Effect::BusMaster { enabled: true }]
    );
    assert_eq!(write(&mut function, 0x04, 0x0000).len(), 2);
    let function = build(space(&dwords), &[], Position::RootBus, Pin::Hidden).unwrap();
    assert_eq!(dword(&function, 0x3c), 0);
    assert_eq!(function.read(access(0x06, Size::Two)), 0);
}

#[test]
fn the_serial_number_is_found_wherever_it_is() {
    let express = (0x40, 0x0092_0010);
    let serial = |at: u16| {
        [
            (at, 0x0001_0003),
            (at + 4, 0x1111_1111),
            (at + 8, 0x2222_2222),
        ]
    };
    let first: Vec<_> = [express].into_iter().chain(serial(0x100)).collect();
    let later: Vec<_> = [express, (0x100, 0x7f01_0001)]
        .into_iter()
        .chain(serial(0x7f0))
        .collect();
    let outside = [express, (0x100, 0xff81_0001), (0xff8, 0x0001_0003)];
    let conventional = serial(0x100);
    #[rustfmt::skip]
    let cases: [(&str, &[_], u32, u16); 4] = [
        ("first",        &first,        0x0001_0003, 0x100),
        ("later",        &later,        0x7f01_0001, 0x7f0),
        ("cut short",    &outside,      0x0001_0001, 0),
        ("conventional", &conventional, 0,           0),
    ];
    for (what, dwords, header, at) in cases {
        let function = build(space(dwords), &[], Position::RootBus, Pin::Hidden).unwrap();
        assert_eq!(dword(&function, 0x100), header, "{what}");
        if at != 0 {
            let found = [0, 4, 8].map(|offset| dword(&function, at + offset));
            assert_eq!(found, [0x0001_0003, 0x1111_1111, 0x2222_2222], "{what}");
        }
    }
}

/// An endpoint with a link, and what of its extended chain is shown.
#[test]
#[rustfmt::skip]
fn the_extended_chain_is_rewritten_in_the_devices_order() {
    use Position::{BelowAriPort, BelowPort, RootBus};
    type Case<'a> = (&'a str, &'a [(u16, u32)], Position, &'a [(u32, u32)]);
    let cases: &[Case<'_>] = &[
        ("all",        &[(0x100, 0x1401_0001), (0x140, 0x1501_0003), (0x150, 0x1601_000e), (0x160, 0x0001_0018)],
                       BelowAriPort, &[(0x100, 1), (0x140, 3), (0x150, 0xe), (0x160, 0x18)]),
        ("no ARI",     &[(0x100, 0x1401_0001), (0x140, 0x1501_0003), (0x150, 0x1601_000e), (0x160, 0x0001_0018)],
                       BelowPort, &[(0x100, 1), (0x140, 3), (0x160, 0x18)]),
        ("integrated", &[(0x100, 0x1401_0001), (0x140, 0x1501_0003), (0x150, 0x1601_000e), (0x160, 0x0001_0018)],
                       RootBus, &[(0x100, 1), (0x140, 3)]),
        ("backwards",  &[(0x100, 0x2001_0018), (0x200, 0x1801_000e), (0x180, 0x1401_0003), (0x140, 0x0002_0001)],
                       BelowAriPort, &[(0x100, 0x18), (0x200, 0xe), (0x180, 3), (0x140, 1)]),
        ("denied",     &[(0x100, 0x1401_0010), (0x140, 0x1501_000f), (0x150, 0x1601_0013), (0x160, 0x1701_001b),
                         (0x170, 0x1801_000d), (0x180, 0x1901_0015), (0x190, 0x1a01_000b), (0x1a0, 0x0001_0023)],
                       BelowPort, &[]),
        ("between",    &[(0x100, 0x1401_0010), (0x140, 0x1801_0003), (0x180, 0x2001_000f), (0x200, 0x0001_0018)],
                       BelowPort, &[(0x100, 0), (0x140, 3), (0x200, 0x18)]),
        ("loop",       &[(0x100, 0x1401_0001), (0x140, 0x1001_0003)], BelowPort, &[(0x100, 1), (0x140, 3)]),
        ("itself",     &[(0x100, 0x1001_0001)], BelowPort, &[(0x100, 1)]),
        ("header",     &[(0x100, 0x0401_0001)], BelowPort, &[(0x100, 1)]),
        ("overlap",    &[(0x100, 0x1081_0001), (0x108, 0x1201_0003), (0x120, 0x1401_0018), (0x140, 0x0001_000e)],
                       BelowAriPort, &[(0x100, 1), (0x140, 0xe)]),
        ("first",      &[(0x100, 0x1402_000e), (0x140, 0x0001_0003)], BelowAriPort, &[(0x100, 0xe), (0x140, 3)]),
        // Where the device has none, or none that is whole.
        ("only",       &[], BelowAriPort, &[(0x100, 0), (0x104, 0xe)]),
        ("behind",     &[(0x100, 0x10c1_0003), (0x10c, 0x0001_0018)], BelowAriPort, &[(0x100, 3), (0x10c, 0x18), (0x114, 0xe)]),
        ("a gap",      &[(0x100, 0x10c1_0018), (0x10c, 0x0001_0003)], BelowAriPort, &[(0x100, 0x18), (0x10c, 3), (0x118, 0xe)]),
        ("broken",     &[(0x100, 0xffc1_0003), (0xffc, 0x0001_000e)], BelowAriPort, &[(0x100, 3), (0x10c, 0xe)]),
        ("at the end", &[(0x100, 0xff81_0001), (0xff8, 0x0001_0018)], BelowPort, &[(0x100, 1), (0xff8, 0x18)]),
        ("cut short",  &[(0x100, 0xfe01_0018), (0xfe0, 0x0001_0001)], BelowPort, &[(0x100, 0x18)]),
        ("twice",      &[(0x100, 0x1401_0003), (0x140, 0x1801_0003), (0x180, 0x0001_0001)],
                       BelowPort, &[(0x100, 3), (0x180, 1)]),
    ];
    for (what, dwords, position, expected) in cases {
        let express = [(0x40, 0x0002_0010)];
        let dwords: Vec<_> = express.into_iter().chain(dwords.iter().copied()).collect();
        let mut function = open(&dwords, &[], *position);
        assert_eq!(extended(&function), *expected, "{what}");
        // Wherever ARI is, its second dword says which function comes next.
        function.set_next_function(5);
        for (at, _) in expected.iter().filter(|(_, id)| *id == 0xe) {
            let next = u16::try_from(at + 4).unwrap();
            assert_eq!(dword(&function, next), 0x0500, "{what}");
        }
    }
}

/// An endpoint without a link, below a port: of version 1, which ends before the link's registers, and of
/// version 2, which has them.
#[test]
fn an_integrated_endpoint_has_no_latencies() {
    for (express, link) in [(0x0091_0010, 0), (0x0092_0010, 0x0040_0011)] {
        let dwords = [(0x40, express), (0x100, 0x1401_0018), (0x140, 0x0001_0003)];
        let function = open(&dwords, &[], Position::BelowPort);
        assert_eq!(extended(&function), [(0x100, 0), (0x140, 3)]);
        assert_eq!(dword(&function, 0x4c), link, "{express:#x}");
    }
}

#[test]
#[rustfmt::skip]
fn what_is_shown_of_extended_capabilities() {
    let mut dwords = vec![(0x40, 0x0002_0010), (0x64, 0xffff_ffff)];
    for (offset, header) in [(0x100, 0x1402_0001), (0x140, 0x1501_000e), (0x150, 0x0001_0018)] {
        dwords.push((offset, header));
        dwords.extend((1..=10).map(|dword| (offset + dword * 4, 0xffff_ffff)).filter(|&(at, _)| at < 0x150 || offset == 0x150));
    }
    let mut function = open(&dwords, &[], Position::BelowAriPort);
    let cases = [
        // offset, reads,       after ones are written
        (0x104,    0xffff_f030, 0xffff_f030), // uncorrectable errors: status, mask, severity
        (0x108,    0xffff_f030, 0xffff_f030),
        (0x10c,    0xffff_f030, 0xffff_f030),
        (0x110,    0x0000_f1c1, 0x0000_f1c1), // correctable ones: status, mask
        (0x114,    0x0000_f1c1, 0x0000_f1c1),
        (0x118,    0x0000_001f, 0x0000_001f), // which was the first
        (0x11c,    0,           0),           // header log
        (0x128,    0,           0),
        (0x12c,    0,           0),           // not an endpoint's
        (0x144,    0,           0),           // next function, and control
        (0x154,    0,           0x1fff_1fff), // latencies
        (0x158,    0,           0),
        (0x064,    0x0000_081f, 0x0000_081f), // Device Capabilities 2
        (0x068,    0,           0x0000_041f), // Device Control 2
    ];
    for (offset, reads, after) in cases {
        assert_eq!(dword(&function, offset), reads, "{offset:#x}");
        assert_eq!(write(&mut function, offset, u32::MAX), [], "{offset:#x}");
        assert_eq!(dword(&function, offset), after, "{offset:#x}");
    }
    // Status is the device's: it changes there.
    function.device().0.borrow_mut()[0x104 / 4] = 0x10;
    assert_eq!(dword(&function, 0x104), 0x10);
    function.set_next_function(5);
    assert_eq!(dword(&function, 0x144), 0x0500);
    let _ = function.reset();
    assert_eq!(dword(&function, 0x144), 0x0500, "the bus is as it was");
    assert_eq!(dword(&function, 0x154), 0);
    function.set_next_function(0);
    assert_eq!(dword(&function, 0x144), 0);
    let mut without = open(&[(0x40, 0x0002_0010)], &[], Position::BelowPort);
    without.set_next_function(5);
    assert_eq!(extended(&without), []);
}

#[test]
#[rustfmt::skip]
fn vendor_specific_capabilities_are_shown_where_that_is_allowed() {
    let virtio = (0x00, 0x1041_1af4);
    type Case<'a> = (&'a str, &'a [(u16, u32)], &'a [u32], &'a [(u16, u32)]);
    let cases: &[Case<'_>] = &[
        ("two, and MSI", &[(0x40, 0x1110_5009), (0x44, 1), (0x48, 2), (0x4c, 3), (0x50, 0x2208_6009), (0x54, 4), (0x58, 5), (0x60, 5)],
                         &[0x40, 0x50, 0x60], &[(0x40, 0x1110_5009), (0x4c, 3), (0x54, 4), (0x58, 0)]),
        ("odd length",   &[(0x40, 0x0007_0009), (0x44, 0xffff_ffff), (0x48, 0xffff_ffff)], &[0x40], &[(0x44, 0x00ff_ffff), (0x48, 0)]),
        ("bare",         &[(0x40, 0xff04_0009), (0x44, 0xffff_ffff)], &[0x40], &[(0x40, 0xff04_0009), (0x44, 0)]),
        ("too short",    &[(0x40, 0x0003_5009), (0x50, 5)], &[0x50], &[(0x40, 0)]),
        ("past the end", &[(0x40, 0x0004_f009), (0xf0, 0x0014_0009)], &[0x40], &[(0xf0, 0)]),
        ("on another",   &[(0x40, 0x0014_4809), (0x48, 0x0008_6009), (0x60, 5)], &[0x40, 0x60], &[(0x48, 0x0008_6009)]),
        // virtio's: common configuration, and the window to all BARs.
        ("virtio",       &[virtio, (0x40, 0x0110_5009), (0x44, 4), (0x50, 0x0514_0009), (0x60, 0x7777_7777)], &[0x40], &[(0x44, 4), (0x50, 0), (0x60, 0)]),
        ("of another",   &[(0x00, 0x1041_1af5), (0x40, 0x0514_0009), (0x50, 0x7777_7777)], &[0x40], &[(0x50, 0x7777_7777)]),
        ("no virtio",    &[(0x00, 0x1100_1af4), (0x40, 0x0514_0009), (0x50, 0x7777_7777)], &[0x40], &[(0x50, 0x7777_7777)]),
    ];
    for (what, dwords, expected, values) in cases {
        let mut function = open(dwords, &[], Position::RootBus);
        assert_eq!(chain(&function), *expected, "{what}");
        for &(offset, value) in *values {
            assert_eq!(dword(&function, offset), value, "{what} {offset:#x}");
            if offset != 0x60 {
                assert_eq!(write(&mut function, offset, u32::MAX), [], "{what}");
                assert_eq!(dword(&function, offset), value, "{what}: written at {offset:#x}");
            }
        }
        let hidden = build(space(dwords), &[], Position::RootBus, Pin::Hidden).unwrap();
        let other = chain(&hidden).into_iter().all(|at| dword(&hidden, u16::try_from(at).unwrap()) & 0xff != 9);
        assert!(other, "{what}");
    }
}

#[test]
#[rustfmt::skip]
fn a_steady_page_is_what_reads_give_and_has_a_version() {
    let msi = (0x40, 0x0180_0005); // with masks, and so with pending bits
    type Case<'a> = (&'a str, &'a [(u16, u32)], Pin, Steadiness);
    let cases: [Case<'_>; 5] = [
        ("plain",    &[(0x40, 0x0003_0001)],                         Pin::Hidden, Steadiness::Steady),
        ("pin",      &[(0x40, 0x0003_0001)],                         Pin::Shown,  Steadiness::UntilInterrupt),
        ("MSI",      &[(0x40, 0x0080_0005)],                         Pin::Hidden, Steadiness::Steady),
        ("pending",  &[msi, (0x54, 1)],                              Pin::Hidden, Steadiness::Steady),
        ("errors",   &[(0x40, 0x0092_0010), (0x100, 0x0001_0001), (0x104, 0x10)], Pin::Hidden, Steadiness::Live),
    ];
    for (what, dwords, pin, steadiness) in cases {
        let bars = [bar(0, BarKind::Memory64, 0x4000)];
        let mut function = build(space(dwords), &bars, Position::RootBus, pin).unwrap();
        assert_eq!(function.steadiness(), steadiness, "{what}");
        let check = |function: &Function<Space>| {
            for index in 0..1024 {
                let read = dword(function, u16::try_from(index).unwrap() * 4);
                let is_live = what == "errors" && index == 0x104 / 4;
                let expected = if is_live { 0x10 } else { function.steady_dword(index) };
                assert_eq!(read, expected, "{what} {index}");
            }
        };
        check(&function);
        let mut version = function.version();
        let mut changes = |function: &Function<Space>| {
            function.version() - core::mem::replace(&mut version, function.version())
        };
        let _ = function.write(access(0x10, Size::Four), u32::MAX);
        assert_eq!(changes(&function), 1, "{what}: a BAR is written");
        let _ = function.write(access(0x10, Size::Four), u32::MAX);
        assert_eq!(changes(&function), 0, "{what}: the same again");
        let _ = function.write(access(0x00, Size::Four), u32::MAX);
        let _ = function.write(access(0xffc, Size::Four), u32::MAX);
        assert_eq!(changes(&function), 0, "{what}: read-only");
        function.set_multi_function(true);
        assert_ne!(changes(&function), 0, "{what}: the bus changes");
        check(&function);
        let _ = function.reset();
        assert_ne!(changes(&function), 0, "{what}: reset");
        assert_eq!(function.device().0.borrow()[0x104 / 4] != 0, what == "errors", "untouched");
    }
}

/// Registers of one do not become those of another that comes before it in the chain and behind it in
/// config space.
#[test]
fn capabilities_come_in_any_order() {
    let dwords = [(0x34, 0x80), (0x80, 0x0003_4001), (0x40, 0x0186_0005)];
    let mut function = build(space(&dwords), &[], Position::RootBus, Pin::Hidden).unwrap();
    write(&mut function, 0x84, 1);
    assert_eq!(dword(&function, 0x84) & 3, 0, "D1 is not offered");
    write(&mut function, 0x84, 3);
    assert_eq!(dword(&function, 0x84) & 3, 3);
}

/// What the device says where it is asked, by what the guest has set.
#[test]
#[rustfmt::skip]
fn live_fields_are_live_only_while_nobody_else_knows_them() {
    use Steadiness::{Live, Steady, UntilInterrupt};
    // MSI with 8 vectors and masks at 40h, MSI-X at 60h; the pin asserts, vectors 0 and 2 are pending.
    let dwords = [
        (0x04, 0x0018_0000), (0x40, 0x0186_6005), (0x54, 0b101), (0x60, 0x0000_0011), (0x68, 0x800),
    ];
    let steps = [
        // write to,  value,       steadiness,     Interrupt Status, pending bits
        (0x00, 0,                  UntilInterrupt, 1, 0),
        (0x04, 0x0400,             Live,           1, 0), // Interrupt Disable
        (0x40, 0x0001_0000,        Steady,         0, 0), // MSI on
        (0x50, 0b100,              Live,           0, 0b100), // vector 2 masked
        (0x50, 0b111,              Live,           0, 0b101),
        (0x50, 0b010,              Live,           0, 0), // not one that is pending
        (0x04, 0,                  Live,           0, 0),
        (0x50, 0,                  Steady,         0, 0),
        (0x50, 0b111,              Live,           0, 0b101),
        (0x40, 0,                  UntilInterrupt, 1, 0), // MSI off, vectors still masked
        (0x60, 0xc000_0000,        Steady,         0, 0), // MSI-X on, all of it masked
        (0x04, 0x0400,             Steady,         0, 0),
        (0x60, 0,                  Live,           1, 0),
        (0x04, 0,                  UntilInterrupt, 1, 0),
    ];
    let bars = [bar(0, BarKind::Memory32, 0x1000)];
    let mut function = build(space(&dwords), &bars, Position::RootBus, Pin::Shown).unwrap();
    for (number, (offset, value, steadiness, status, pending)) in steps.into_iter().enumerate() {
        write(&mut function, offset, value);
        assert_eq!(function.steadiness(), steadiness, "step {number}");
        assert_eq!(dword(&function, 0x04) >> 19 & 1, status, "step {number}");
        assert_eq!(function.read(access(0x06, Size::One)) >> 3 & 1, status, "step {number}");
        assert_eq!(dword(&function, 0x54), pending, "step {number}");
        assert_eq!(function.steady_dword(1) >> 19 & 1, 0, "step {number}");
    }
    let _ = function.reset();
    assert_eq!(function.steadiness(), UntilInterrupt);
}

proptest! {
    /// A function that calls itself steady never asks its device, and reads as its steady dwords say.
    #[test]
    fn a_steady_function_asks_nobody(
        pending: u32,
        writes in prop::collection::vec((0u16..0x80, any::<u32>()), 0..40),
        shown: bool,
    ) {
        let dwords = [
            (0x04, 0x0018_0000), (0x40, 0x0186_6005), (0x60, 0x0001_0011), (0x68, 0x800),
        ];
        let bars = [bar(0, BarKind::Memory32, 0x1000)];
        let pin = if shown { Pin::Shown } else { Pin::Hidden };
        let mut function = build(space(&dwords), &bars, Position::RootBus, pin).unwrap();
        for (offset, value) in writes {
            let version = function.version();
            let before: Vec<_> = (0..1024).map(|index| function.steady_dword(index)).collect();
            write(&mut function, offset & !3, value);
            let changes = function.version() - version;
            for (index, before) in before.into_iter().enumerate() {
                let is_written = usize::from(offset / 4) == index;
                let may_change = changes > 1 || changes == 1 && is_written;
                prop_assert!(may_change || function.steady_dword(index) == before);
            }
            let steadiness = function.steadiness();
            // Whatever the device has in its live fields now; its pin is quiet where it has to be.
            {
                let mut space = function.device().0.borrow_mut();
                let asserts = steadiness == Steadiness::Steady && pending & 1 != 0;
                space[0x04 / 4] = 0x0010_0000 | u32::from(asserts) << 19;
                space[0x54 / 4] = pending;
            }
            if steadiness != Steadiness::Live {
                for index in 0..1024 {
                    let read = dword(&function, u16::try_from(index).unwrap() * 4);
                    prop_assert_eq!(read, function.steady_dword(index), "{:#x}", index * 4);
                }
            }
        }
    }
}

/// Sections 7.5.3.4 and 7.5.3.16: what a function is not capable of it does not take.
#[test]
#[rustfmt::skip]
fn controls_without_their_capability_are_zero() {
    let cases = [
        // Device Capabilities, 2, Device Control, 2, after ones
        (0x0000_8000, 0x000,      0x0000_78ff, 0x000),
        (0x0000_8020, 0x000,      0x0000_79ff, 0x000), // extended tags
        (0x0000_8000, 0x001,      0x0000_78ff, 0x00f), // completion timeout ranges
        (0x0000_8000, 0x010,      0x0000_78ff, 0x010), // no completion timeout
        (0x0000_8000, 0x800,      0x0000_78ff, 0x400), // LTR
    ];
    for (capabilities, capabilities_2, control, control_2) in cases {
        let dwords = [(0x34, 0x40), (0x40, 0x0002_0010), (0x44, capabilities), (0x64, capabilities_2)];
        let mut function = open(&dwords, &[], Position::BelowPort);
        for (offset, expected) in [(0x48, control), (0x68, control_2)] {
            assert_eq!(write(&mut function, offset, u32::MAX), [], "no reset");
            let what = format!("{capabilities:#x} {capabilities_2:#x}: {offset:#x}");
            assert_eq!(dword(&function, offset), expected, "{what}");
        }
    }
}

/// Section 6.6.2: it does not touch what belongs to the link.
#[test]
#[rustfmt::skip]
fn a_function_level_reset_leaves_what_is_the_links() {
    let dwords = [
        (0x34, 0x40), (0x40, 0x0002_0010), (0x44, 0x1000_8021), (0x4c, 0x0000_0011),
        (0x64, 0x0000_081f),
        (0x100, 0x0001_0018),
    ];
    let mut function = open(&dwords, &[], Position::BelowPort);
    let registers = [
        // offset, after power-on, after ones, after FLR, after a reset
        (0x04,     0x0010_0000,    0x0010_0546, 0x0010_0000), // Command
        (0x0c,     0x0000_0000,    0x0000_00ff, 0x0000_0000), // Cache Line Size
        (0x48,     0x0000_2810,    0x0000_79ff, 0x0000_28f0), // Device Control: Max_Payload_Size
        (0x50,     0x0000_0000,    0x0000_00c0, 0x0000_00c0), // Link Control: clock, Extended Synch
        (0x68,     0x0000_0000,    0x0000_041f, 0x0000_0000), // Device Control 2
        (0x104,    0x0000_0000,    0x1fff_1fff, 0x0000_0000), // latencies
    ];
    for (offset, fresh, written, _) in registers {
        assert_eq!(dword(&function, offset), fresh, "{offset:#x}");
        write(&mut function, offset, 0xffff_7fff);
        assert_eq!(dword(&function, offset), written, "{offset:#x}");
    }
    assert!(write(&mut function, 0x48, 0x0000_f9ff).contains(&Effect::Reset));
    for (offset, _, _, left) in registers {
        assert_eq!(dword(&function, offset), left, "{offset:#x} after FLR");
    }
    let _ = function.reset();
    for (offset, fresh, ..) in registers {
        assert_eq!(dword(&function, offset), fresh, "{offset:#x} after a reset of the bus");
    }
}

#[test]
#[rustfmt::skip]
fn an_expansion_rom_decodes_while_both_its_enables_are_set() {
    let rom = BarInfo { index: BarIndex::ROM, kind: BarKind::Rom, prefetchable: false, size: 0x4_0000, host: 0x1234_0000 };
    let dwords = [(0x40, 0x0003_0001), (0x30, 0xfffc_000f)];
    let mut function = build(space(&dwords), &[rom], Position::RootBus, Pin::Hidden).unwrap();
    assert_eq!(dword(&function, 0x30), 0, "it starts disabled, wherever the device has it");
    // Sized as Linux does it: without the enable bit.
    assert_eq!(write(&mut function, 0x30, 0xffff_f800), []);
    assert_eq!(dword(&function, 0x30), 0xfffc_0000);
    assert_eq!(write(&mut function, 0x30, 0xffff_ffff), [], "memory decode is off");
    assert_eq!(dword(&function, 0x30), 0xfffc_0001);
    let range = |start| vpci::BusRange::new(BusAddress::new(start), 0x4_0000).unwrap();
    let map = |start| Effect::MapBar { bar: BarIndex::ROM, range: range(start) };
    let unmap = |start| Effect::UnmapBar { bar: BarIndex::ROM, range: range(start) };
    assert_eq!(write(&mut function, 0x30, 0x1000_0000), []);
    assert_eq!(write(&mut function, 0x04, 2), []);
    assert_eq!(function.decoded(BarIndex::ROM), None);
    assert_eq!(write(&mut function, 0x30, 0x1000_0001), [map(0x1000_0000)]);
    assert_eq!(write(&mut function, 0x30, 0x1004_0001), [unmap(0x1000_0000), map(0x1004_0000)]);
    let pin = |enabled| Effect::Intx { enabled };
    assert_eq!(write(&mut function, 0x44, 3), [unmap(0x1004_0000), pin(false)], "D3hot");
    assert_eq!(write(&mut function, 0x44, 0), [map(0x1004_0000), pin(true)]);
    assert_eq!(write(&mut function, 0x30, 0x1004_0000), [unmap(0x1004_0000)]);
    assert_eq!(write(&mut function, 0x30, 0x1004_0001), [map(0x1004_0000)]);
    assert_eq!(write(&mut function, 0x04, 0), [unmap(0x1004_0000)]);
    assert_eq!(function.pages(BarIndex::ROM).count(), 0, "it decodes only while it is read");
    // It is read, in any size, and not written.
    assert_eq!(function.read_bar(BarIndex::ROM, 0x3_ffff, 1), BarRead::Device { host: 0x1237_ffff });
    assert_eq!(function.write_bar(BarIndex::ROM, 0, 4, 1), BarWrite::Done(Change::None));
    assert_eq!(function.read_bar(BarIndex::ROM, 0x4_0000, 1), BarRead::Value(u64::MAX));
    let bad = BarInfo { size: 0x400, ..rom };
    let error = build(space(&dwords), &[bad], Position::RootBus, Pin::Hidden).map(drop);
    assert_eq!(error, Err(BuildError::Bar(BarIndex::ROM)));
    let twice = build(space(&dwords), &[rom, rom], Position::RootBus, Pin::Hidden).map(drop);
    assert_eq!(twice, Err(BuildError::Bar(BarIndex::ROM)));
}

/// MSI-X and a 64-bit BAR5 cannot name the ROM by accident.
#[test]
fn no_table_is_in_the_rom() {
    let rom = BarInfo {
        index: BarIndex::ROM,
        kind: BarKind::Rom,
        prefetchable: false,
        size: 0x4_0000,
        host: 0x1234_0000,
    };
    let dwords = [(0x40, 0x11), (0x44, 6), (0x48, 0x1006)];
    let got = build(space(&dwords), &[rom], Position::RootBus, Pin::Hidden).map(drop);
    assert_eq!(got, Err(BuildError::Msix));
}

#[test]
fn pages_of_a_bar_leave_out_those_of_msix() {
    let mapped = |table: u32, pending: u32, vectors: u32, size: u64| {
        let dwords = [
            (0x40, (vectors - 1) << 16 | 0x11),
            (0x44, table),
            (0x48, pending),
        ];
        let bars = [
            bar(0, BarKind::Memory64, size),
            bar(2, BarKind::Memory32, 0x2000),
        ];
        let function = build(space(&dwords), &bars, Position::RootBus, Pin::Hidden).unwrap();
        assert_eq!(
            function
                .msix_layout()
                .map(|layout| u32::from(layout.vectors)),
            Some(vectors)
        );
        let pages = function.pages(BarIndex::new(0).unwrap());
        pages
            .map(|pages| {
                assert_eq!(pages.host, 0x80_0000_0000 + pages.offset);
                (pages.offset / PAGE, pages.size / PAGE)
            })
            .collect::<Vec<_>>()
    };
    #[rustfmt::skip]
    let cases = [
        // table,  pending, vectors, size,    page and number of pages
        (0x0000,   0x0800,  1,       0x4000,  vec![(1, 3)]),
        (0x2000,   0x3000,  65,      0x4000,  vec![(0, 2)]),
        (0x1000,   0x3000,  1,       0x8000,  vec![(0, 1), (2, 1), (4, 4)]),
        (0x3000,   0x1000,  1,       0x8000,  vec![(0, 1), (2, 1), (4, 4)]),
        (0x0ff0,   0x7ff8,  2,       0x8000,  vec![(2, 5)]),         // across a page
        (0x0002,   0x1002,  1,       0x4000,  vec![(0, 4)]),         // in another BAR
        (0x0000,   0x8000,  2048,    0x10000, vec![(9, 7)]),
        (0x0000,   0x0ff8,  1,       0x1000,  vec![]),
    ];
    for (table, pending, vectors, size, expected) in cases {
        assert_eq!(
            mapped(table, pending, vectors, size),
            expected,
            "{table:#x} {pending:#x}"
        );
    }
}

#[test]
#[rustfmt::skip]
fn an_access_in_a_bar_is_aligned_and_inside() {
    let bars = [bar(0, BarKind::Memory32, 0x20), bar(1, BarKind::Io, 0x20)];
    let mut function = build(space(&[(0x34, 0)]), &bars, Position::RootBus, Pin::Hidden).unwrap();
    let host = bars[0].host;
    let cases = [
        // BAR, offset, bytes, where
        (0,     0x00,   1,     Some(host)),
        (0,     0x1f,   1,     Some(host + 0x1f)),
        (0,     0x1e,   2,     Some(host + 0x1e)),
        (0,     0x1c,   4,     Some(host + 0x1c)),
        (0,     0x18,   8,     Some(host + 0x18)),
        (0,     0x20,   1,     None), // past the end
        (0,     0x1f,   2,     None),
        (0,     0x1d,   4,     None),
        (0,     0x04,   8,     None),
        (0,     0x00,   0,     None),
        (0,     0x00,   3,     None),
        (0,     0x00,   16,    None),
        (0,     1 << 63, 8,    None),
        (1,     0x00,   4,     None), // I/O
        (2,     0x00,   4,     None), // no such BAR
    ];
    for (index, offset, bytes, host) in cases {
        let index = BarIndex::new(index).unwrap();
        let read = host.map_or(BarRead::Value(u64::MAX), |host| BarRead::Device { host });
        let write = host.map_or(BarWrite::Done(Change::None), |host| BarWrite::Device { host });
        assert_eq!(function.read_bar(index, offset, bytes), read, "{index} {offset:#x} {bytes}");
        assert_eq!(function.write_bar(index, offset, bytes, 0), write, "{index} {offset:#x} {bytes}");
    }
}

#[test]
#[rustfmt::skip]
fn a_table_is_read_and_written_in_any_size() {
    let dwords = [(0x40, 0x0001_0011), (0x44, 0), (0x48, 0x800)];
    let bars = [bar(0, BarKind::Memory32, 0x1000)];
    let mut function = build(space(&dwords), &bars, Position::RootBus, Pin::Hidden).unwrap();
    let index = BarIndex::new(0).unwrap();
    let cases = [
        // offset, bytes, stored,                 the whole vector then
        (0x10,     8,     0xffff_eeee_dddd_ccbb, [0xffff_eeee_dddd_ccb8, 0x0000_0001_0000_0000]),
        (0x18,     8,     0x1234_5678_9abc_def0, [0xffff_eeee_dddd_ccb8, 0x0000_0000_9abc_def0]),
        (0x1a,     2,     0xffff_ffff_ffff_5555, [0xffff_eeee_dddd_ccb8, 0x0000_0000_5555_def0]),
        (0x1c,     1,     0xff,                  [0xffff_eeee_dddd_ccb8, 0x0000_0001_5555_def0]),
        (0x17,     1,     0x00,                  [0x00ff_eeee_dddd_ccb8, 0x0000_0001_5555_def0]),
        (0x10,     4,     0x0000_0000,           [0x00ff_eeee_0000_0000, 0x0000_0001_5555_def0]),
    ];
    for (offset, bytes, stored, [low, high]) in cases {
        let _ = function.write_bar(index, offset, bytes, stored);
        assert_eq!(function.read_bar(index, 0x10, 8), BarRead::Value(low), "{offset:#x}");
        assert_eq!(function.read_bar(index, 0x18, 8), BarRead::Value(high), "{offset:#x}");
        assert_eq!(function.read_bar(index, 0x00, 8), BarRead::Value(0), "the other vector");
        assert_eq!(function.read_bar(index, 0x0c, 4), BarRead::Value(1), "the other vector");
    }
    assert_eq!(function.read_bar(index, 0x1a, 2), BarRead::Value(0x5555));
    assert_eq!(function.read_bar(index, 0x11, 1), BarRead::Value(0));
    assert_eq!(function.read_bar(index, 0x14, 4), BarRead::Value(0x00ff_eeee));
}

#[test]
fn several_vectors_that_change_at_once_are_all_told() {
    let dwords = [(0x40, 0x0007_0011), (0x44, 0), (0x48, 0x800)];
    let bars = [bar(0, BarKind::Memory32, 0x1000)];
    let mut function = build(space(&dwords), &bars, Position::RootBus, Pin::Hidden).unwrap();
    let index = BarIndex::new(0).unwrap();
    let mut store = |offset, bytes, value| {
        let _ = function.write_bar(index, offset, bytes, value);
    };
    // The kernel looks only after all of them.
    for vector in [6, 1, 3] {
        store(vector * 16, 8, DOORBELL);
        store(vector * 16 + 8, 4, vector);
        store(vector * 16 + 12, 1, 0xfe);
    }
    let effects: Vec<_> = std::iter::from_fn(|| function.next_effect()).collect();
    let live = |vector| Effect::MsixVector {
        vector,
        message: Message::Live {
            data: vector.into(),
        },
    };
    assert_eq!(effects, [live(1), live(3), live(6)]);
    assert_eq!(function.reset(), Change::Effects);
    let effects: Vec<_> = std::iter::from_fn(|| function.next_effect()).collect();
    let off = |vector| Effect::MsixVector {
        vector,
        message: Message::Off,
    };
    assert_eq!(effects, [off(1), off(3), off(6)]);
}

/// Places capabilities of all kinds at random, on top of each other and anywhere.
fn chains() -> impl Strategy<Value = Vec<(u16, u32)>> {
    let ids = prop::sample::select(vec![1_u32, 5, 0x10, 0x11, 9, 3]);
    let one = (0_u16..0x40, ids, any::<u32>(), any::<[u32; 3]>());
    prop::collection::vec(one, 1..8).prop_map(|placed| {
        let mut dwords = vec![];
        for (at, id, header, more) in placed {
            // The next pointer leads to any of the dwords from 0x40 on.
            let header = header & 0xff92_fc00 | 0x4000 | id;
            dwords.push((at * 4, header));
            dwords.extend(
                (1_u16..)
                    .zip(more)
                    .map(|(next, value)| (at * 4 + next * 4, value & 0x1ff8)),
            );
        }
        dwords.retain(|&(offset, _)| offset >= 0x40);
        dwords
    })
}

proptest! {
    #[test]
    fn any_chain_becomes_a_sound_one(dwords in chains(), start in 0x10_u32..0x40) {
        let space = space(&dwords);
        space.0.borrow_mut()[0x34 / 4] = start * 4;
        let before = space.0.borrow().clone();
        let bars = [bar(0, BarKind::Memory64, 0x4000_0000)];
        let Ok(mut function) = build(space, &bars, Position::BelowPort, Pin::Hidden) else {
            return Ok(());
        };
        let mut seen = BTreeSet::new();
        let mut at = dword(&function, 0x34);
        while at != 0 {
            prop_assert!(at >= 0x40 && at.is_multiple_of(4) && seen.insert(at), "{:x?}", seen);
            let header = dword(&function, u16::try_from(at).unwrap());
            prop_assert!([1, 5, 9, 0x10, 0x11].contains(&(header & 0xff)), "{at:#x}: {header:#x}");
            at = header >> 8 & 0xff;
        }
        // Whatever is written, a reset brings the first state back, and tells of nothing twice.
        let read = |function: &Function<Space>| -> Vec<_> {
            (0..0x200).step_by(4).map(|offset| dword(function, offset)).collect()
        };
        let first = read(&function);
        for offset in (0x08..0x200).step_by(4) {
            let _ = write(&mut function, offset, 0x0809_0043);
            let _ = write(&mut function, offset, 0xffff_ffff);
        }
        let _ = function.reset();
        while function.next_effect().is_some() {}
        *function.device().0.borrow_mut() = before;
        prop_assert_eq!(read(&function), first);
        prop_assert_eq!(function.next_effect(), None);
    }
}
