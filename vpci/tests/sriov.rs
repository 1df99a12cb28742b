//! What single root I/O virtualization makes of a function: a VF that looks like any other, and a PF whose
//! VFs its owner can neither see nor end.

use std::cell::RefCell;

use vpci::{
    BarIndex, BarInfo, BarKind, BuildError, BusAddress, Change, ConfigAccess, Effect, Function,
    Kind, Offset, PhysicalConfig, Pin, Position, Sbdf, Setup, Size,
};

/// Config space, and what was written to it.
struct Space {
    dwords: Vec<u32>,
    written: RefCell<Vec<u16>>,
}

impl PhysicalConfig for Space {
    fn read(&self, offset: Offset, size: Size) -> u32 {
        self.dwords[usize::from(offset.get() / 4)] >> (offset.get() % 4 * 8) & size.mask()
    }

    fn write(&self, offset: Offset, _: Size, _: u32) {
        self.written.borrow_mut().push(offset.get());
    }
}

/// As QEMU's igb has it: PCI Express with function level reset, SR-IOV.
fn space(more: &[(u16, u32)]) -> Space {
    let mut dwords = vec![0; 1024];
    let common = [
        (0x00, 0x10c9_8086),
        (0x04, 0x0010_0000),
        (0x08, 0x0200_0001),
        (0x34, 0xa0),
        (0xa0, 0x0002_0010),
        (0xa4, 1 << 28),
        (0x100, 0x0001_0010),
        (0x108, 0x0000_0009),
        (0x10c, 0x0008_0008),
        (0x110, 0x0000_0002),
        (0x114, 0x0002_0080),
        (0x118, 0x10ca_0000),
    ];
    for &(offset, value) in common.iter().chain(more) {
        dwords[usize::from(offset / 4)] = value;
    }
    let written = RefCell::default();
    Space { dwords, written }
}

fn build(space: Space, kind: Kind) -> Result<Function<Space>, BuildError> {
    let bars = [BarInfo {
        index: BarIndex::new(0).unwrap(),
        kind: BarKind::Memory64,
        prefetchable: true,
        size: 0x4000,
        host: 0x80_0000_4000,
    }];
    let setup = Setup {
        bars: &bars,
        doorbell: BusAddress::new(0x0809_0040),
        position: Position::RootBus,
        pin: Pin::Hidden,
        vendor: vpci::Vendor::Hidden,
        kind,
    };
    Function::new(space, &setup)
}

fn access(offset: u16, size: Size) -> ConfigAccess {
    ConfigAccess::new(Sbdf::from_rid(0, 8), Offset::new(offset).unwrap(), size).unwrap()
}

fn dword(function: &Function<Space>, offset: u16) -> u32 {
    function.read(access(offset, Size::Four))
}

fn write(function: &mut Function<Space>, offset: u16, value: u32) -> Vec<Effect> {
    let _: Change = function.write(access(offset, Size::Four), value);
    std::iter::from_fn(|| function.next_effect()).collect()
}

/// What a VF's own registers hold: no name.
const NAMELESS: (u16, u32) = (0x00, 0xffff_ffff);

const VF: Kind = Kind::Virtual {
    vendor: 0x8086,
    device: 0x10ca,
};

#[test]
fn a_virtual_function_has_the_name_that_follows_from_its_physical_one() {
    let function = build(space(&[NAMELESS]), VF).unwrap();
    assert_eq!(dword(&function, 0x00), 0x10ca_8086);
    assert_eq!(function.read(access(0x00, Size::Two)), 0x8086);
    assert_eq!(function.read(access(0x03, Size::One)), 0x10);
    assert_eq!(dword(&function, 0x08), 0x0200_0001, "class and revision");
    assert_eq!(
        build(space(&[NAMELESS]), Kind::Ordinary).map(drop),
        Err(BuildError::Absent)
    );
    let absent = space(&[NAMELESS, (0x0c, 0xffff_ffff)]);
    assert_eq!(build(absent, VF).map(drop), Err(BuildError::Absent));
}

#[test]
fn a_virtual_function_has_bars_and_decodes_as_its_guest_says() {
    let mut function = build(space(&[NAMELESS]), VF).unwrap();
    assert_eq!(dword(&function, 0x10), 0xc, "64 bits, prefetchable");
    assert_eq!(write(&mut function, 0x10, u32::MAX), []);
    assert_eq!(dword(&function, 0x10), 0xffff_c00c);
    write(&mut function, 0x10, 0x1000_0000);
    let effects = write(&mut function, 0x04, 0b10);
    assert!(
        matches!(effects[..], [Effect::MapBar { .. }]),
        "{effects:?}"
    );
    assert_eq!(dword(&function, 0x04) & 0b10, 0b10);
    let effects = write(&mut function, 0x04, 0);
    assert!(
        matches!(effects[..], [Effect::UnmapBar { .. }]),
        "{effects:?}"
    );
    assert_eq!(*function.device().written.borrow(), [0; 0]);
}

#[test]
fn a_virtual_function_can_be_reset_by_its_guest() {
    let mut function = build(space(&[NAMELESS]), VF).unwrap();
    assert_ne!(dword(&function, 0xa4) & 1 << 28, 0);
    assert_eq!(write(&mut function, 0xa8, 1 << 15), [Effect::Reset]);
    assert_eq!(dword(&function, 0x00), 0x10ca_8086, "its name stays");
}

#[test]
fn the_owner_of_a_physical_function_neither_sees_its_virtual_ones_nor_ends_them() {
    let mut function = build(space(&[]), Kind::Physical).unwrap();
    assert_eq!(dword(&function, 0x00), 0x10c9_8086);
    assert_eq!(dword(&function, 0xa4) & 1 << 28, 0, "no FLR");
    assert_eq!(write(&mut function, 0xa8, 1 << 15), []);
    for offset in (0x100..0x140).step_by(4) {
        assert_eq!(dword(&function, offset), 0, "{offset:#x}");
        assert_eq!(write(&mut function, offset, u32::MAX), []);
    }
    assert_eq!(*function.device().written.borrow(), [0; 0]);
    // One without virtual functions may be reset.
    let mut ordinary = build(space(&[]), Kind::Ordinary).unwrap();
    assert_eq!(write(&mut ordinary, 0xa8, 1 << 15), [Effect::Reset]);
}
