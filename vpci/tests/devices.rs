//! Config space of real devices (QEMU's, dumped by `scripts/dumps`) through the filter: what a guest sees
//! of each is stored beside the dump and reviewed, and some things hold for all of them.
//!
//! A view has a line for each dword that is not zero or that can be written: its offset, its value, and the
//! bits that writes change. `ISTHMUS_BLESS=1 cargo test -p vpci --test devices` writes the views anew.

mod dump;
#[expect(dead_code, reason = "only devices are needed")]
mod machine;

use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use dump::Dump;
use machine::{DOORBELL, Device};
use vpci::{
    BarIndex, BarInfo, BarKind, BusAddress, ConfigAccess, Function, Kind, Offset, PhysicalConfig,
    Pin, Position, Sbdf, Setup, Size, Vendor,
};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/devices")
}

/// Vendor ID and Device ID, as a virtual function has them, and what its physical function says.
const NAMELESS: u32 = u32::MAX;
const VIRTUAL: Kind = Kind::Virtual {
    vendor: 0x8086,
    device: 0x10ca,
};

/// Returns the BARs of a virtual function of QEMU's igb, as that says.
fn virtual_bars() -> Vec<BarInfo> {
    let bar = |(index, host)| BarInfo {
        index: BarIndex::new(index).unwrap(),
        kind: BarKind::Memory64,
        prefetchable: true,
        size: 0x4000,
        host,
    };
    [(0, 0x80_0000_0000), (3, 0x80_0000_8000)].map(bar).into()
}

/// Returns all dumps, by name.
fn dumps() -> Vec<(String, Dump)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder()).unwrap() {
        let path = entry.unwrap().path();
        if path
            .extension()
            .is_some_and(|extension| extension == "dump")
        {
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            let mut dump = dump::parse(&fs::read_to_string(&path).unwrap(), 0x80_0000_0000);
            if dump.dwords[0] == NAMELESS {
                dump.bars = virtual_bars();
            }
            found.push((name, dump));
        }
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    assert!(found.len() >= 20, "only {} dumps", found.len());
    found
}

fn device(dump: &Dump) -> Device {
    let device = Device::new(&[]);
    let bytes = dump.dwords.iter().flat_map(|dword| dword.to_le_bytes());
    *device.bytes.borrow_mut() = bytes.collect();
    device
}

/// Follows a chain as software does, and returns the offsets and headers of its capabilities.
fn chain(read: impl Fn(u32) -> u32) -> Vec<(u32, u32)> {
    let mut found = Vec::new();
    let mut at = if read(4) & 1 << 20 == 0 {
        0
    } else {
        read(0x34) & 0xfc
    };
    while at != 0 {
        assert!(found.len() < 48, "the chain does not end");
        found.push((at, read(at)));
        at = read(at) >> 8 & 0xfc;
    }
    found
}

fn extended_chain(read: impl Fn(u32) -> u32) -> Vec<(u32, u32)> {
    let mut found = Vec::new();
    let mut at = 0x100;
    while at != 0 && read(at) != 0 && read(at) != u32::MAX {
        assert!(found.len() < 64, "the extended chain does not end");
        found.push((at, read(at)));
        at = read(at) >> 20;
    }
    found
}

/// A PCI Express endpoint that was dumped below a port is shown below one.
fn position(dump: &Dump) -> Position {
    let read = |offset: u32| dump.dwords[offset as usize / 4];
    let express = chain(read)
        .into_iter()
        .find(|(_, header)| header & 0xff == 0x10);
    match express {
        Some((_, header)) if header >> 20 & 0xf == 0 => Position::BelowPort,
        _ => Position::RootBus,
    }
}

fn function(dump: &Dump) -> Function<Device> {
    let setup = Setup {
        bars: &dump.bars,
        doorbell: BusAddress::new(DOORBELL),
        position: position(dump),
        pin: Pin::Hidden,
        // All that a configuration can allow.
        vendor: Vendor::Shown,
        kind: if dump.dwords[0] == NAMELESS {
            VIRTUAL
        } else {
            Kind::Ordinary
        },
    };
    Function::new(device(dump), &setup).unwrap()
}

fn access(offset: u32) -> ConfigAccess {
    let offset = Offset::in_function(offset.into());
    ConfigAccess::new(Sbdf::from_rid(0, 8), offset, Size::Four).unwrap()
}

/// Returns the bits of a dword that writes change, in a function that nobody has used.
fn writable(dump: &Dump, offset: u32) -> u32 {
    let mut function = function(dump);
    let mut seen = [u32::MAX, 0];
    for written in [u32::MAX, 0] {
        let _ = function.write(access(offset), written);
        let now = function.read(access(offset));
        seen = [seen[0] & now, seen[1] | now];
    }
    seen[1] & !seen[0]
}

/// Writes down what a guest sees.
fn view(dump: &Dump) -> String {
    let function = function(dump);
    let mut text = String::new();
    for offset in (0..0x1000).step_by(4) {
        let (value, mask) = (function.read(access(offset)), writable(dump, offset));
        if value | mask != 0 {
            writeln!(text, "{offset:03x} {value:08x} {mask:08x}").unwrap();
        }
    }
    text
}

#[test]
#[cfg_attr(
    miri,
    ignore = "long; tests/reference.rs goes the same way with one device"
)]
fn views_are_as_reviewed() {
    let bless = std::env::var_os("ISTHMUS_BLESS").is_some();
    for (name, dump) in dumps() {
        let path = folder().join(format!("{name}.view"));
        let now = view(&dump);
        if bless {
            fs::write(&path, &now).unwrap();
        }
        let reviewed = fs::read_to_string(&path).unwrap_or_default();
        assert_eq!(
            now, reviewed,
            "{name}: a guest sees something else than was reviewed"
        );
    }
}

/// By number: what no guest is shown, whatever the device has.
#[test]
#[cfg_attr(
    miri,
    ignore = "long; tests/reference.rs goes the same way with one device"
)]
fn only_what_is_on_the_list_is_shown() {
    const SHOWN: [u32; 5] = [0x01, 0x05, 0x09, 0x10, 0x11];
    const SHOWN_EXTENDED: [u32; 5] = [0x0000, 0x0001, 0x0003, 0x000e, 0x0018];
    let (mut hidden, mut shown) = (BTreeSet::new(), BTreeSet::new());
    for (name, dump) in dumps() {
        let function = function(&dump);
        let read = |offset| function.read(access(offset));
        for (at, header) in chain(read) {
            assert!(
                SHOWN.contains(&(header & 0xff)),
                "{name}: {header:#x} at {at:#x}"
            );
            shown.insert(header & 0xff);
        }
        for (at, header) in extended_chain(read) {
            assert!(
                SHOWN_EXTENDED.contains(&(header & 0xffff)),
                "{name}: {header:#x} at {at:#x}"
            );
        }
        let physical = |offset: u32| dump.dwords[offset as usize / 4];
        hidden.extend(
            extended_chain(physical)
                .into_iter()
                .map(|(_, header)| header & 0xffff),
        );
    }
    // The dumps are such that this means something: SR-IOV, ATS and DVSEC are among what is hidden.
    for id in [0x0010, 0x000f, 0x0023] {
        assert!(
            hidden.contains(&id),
            "no device has extended capability {id:#x}"
        );
    }
    for id in [0x01, 0x05, 0x10, 0x11] {
        assert!(shown.contains(&id), "no device shows capability {id:#x}");
    }
}

/// Identity and class are the device's (a virtual function's are its physical one's to say), I/O BARs and the
/// pin are not shown, and a guest that writes ones everywhere does not reach the device.
#[test]
#[cfg_attr(
    miri,
    ignore = "long; tests/reference.rs goes the same way with one device"
)]
fn what_holds_for_all_of_them() {
    for (name, dump) in dumps() {
        let mut function = function(&dump);
        let read = |function: &Function<Device>, offset| function.read(access(offset));
        for offset in [0x00, 0x08, 0x2c] {
            let expected = match dump.dwords[offset as usize / 4] {
                NAMELESS => 0x10ca_8086,
                physical => physical,
            };
            assert_eq!(read(&function, offset), expected, "{name}: {offset:#x}");
        }
        assert_eq!(read(&function, 0x3c) & 0xff00, 0, "{name}: pin");
        for offset in (0..0x1000).step_by(4) {
            let _ = function.write(access(offset), u32::MAX);
            while function.next_effect().is_some() {}
        }
        for bar in dump.bars.iter().filter(|bar| bar.kind != BarKind::Rom) {
            let sized = read(&function, 0x10 + 4 * u32::from(bar.index.get()));
            assert_eq!(sized & 1, 0, "{name}: {} is I/O", bar.index);
        }
        assert_eq!(*function.device().written.borrow(), [], "{name}");
    }
}

/// What the model reads of a device does not change it.
#[test]
#[cfg_attr(
    miri,
    ignore = "long; tests/reference.rs goes the same way with one device"
)]
fn building_a_model_writes_nothing() {
    for (name, dump) in dumps() {
        let function = function(&dump);
        assert!(function.device().written.borrow().is_empty(), "{name}");
        let first = function.device().read(Offset::in_function(0), Size::Four);
        assert_eq!(first, dump.dwords[0], "{name}");
    }
}
