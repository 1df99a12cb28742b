//! Walks the bus as Linux does it: scan, size the BARs, place them, turn decode on, follow the
//! capabilities, set MSI-X up.

mod machine;

use machine::{DOORBELL, E1000E, HIGH, LOW, Machine, NVME, ODD};
use vpci::{BarIndex, Change, ConfigAccess, Message, Offset, Size};

/// Registers of a type 0 header, as Linux names them.
const VENDOR_ID: u64 = 0x00;
const COMMAND: u64 = 0x04;
const STATUS: u64 = 0x06;
const HEADER_TYPE: u64 = 0x0e;
const BAR_0: u64 = 0x10;
const ROM: u64 = 0x30;
const CAPABILITIES: u64 = 0x34;

const MEMORY: u64 = 2;
const MASTER: u64 = 4;

fn ecam(slot: &str) -> u64 {
    vpci::ecam::offset_of(slot.parse().unwrap())
}

fn read(machine: &Machine, offset: u64, bytes: u64) -> u64 {
    machine.read(offset, bytes).unwrap()
}

/// Finds the functions as `pci_scan_slot` does: function 0 first, the others only if it says so.
fn scan(machine: &Machine) -> Vec<(String, u64)> {
    let mut found = vec![];
    for device in 0..32 {
        for function in 0..8 {
            let offset = device << 15 | function << 12;
            let id = read(machine, offset + VENDOR_ID, 4);
            if id == 0xffff_ffff {
                if function == 0 {
                    break;
                }
                continue;
            }
            found.push((format!("{device:02x}.{function}"), id));
            let multi = read(machine, offset + HEADER_TYPE, 1) & 0x80 != 0;
            if function == 0 && !multi {
                break;
            }
        }
    }
    found
}

/// Sizes a BAR, or the ROM without its enable bit, as `__pci_read_base` does, and returns flags and size.
fn size(machine: &mut Machine, register: u64) -> (u64, u64) {
    let rom = register & 0xff == ROM;
    let before = read(machine, register, 4);
    machine.write(register, 4, if rom { 0xffff_f800 } else { 0xffff_ffff });
    let mut sized = read(machine, register, 4);
    machine.write(register, 4, before);
    if sized == 0 {
        return (0, 0);
    }
    let flags = sized & 0xf;
    sized &= !0xf;
    if flags & 0b110 == 0b100 {
        let before = read(machine, register + 4, 4);
        machine.write(register + 4, 4, 0xffff_ffff);
        sized |= read(machine, register + 4, 4) << 32;
        machine.write(register + 4, 4, before);
    } else {
        sized |= 0xffff_ffff << 32;
    }
    (flags, sized.wrapping_neg())
}

/// Follows the chain of capabilities, as `__pci_find_next_cap_ttl` does: ID and pointer at once.
fn capabilities(machine: &Machine, function: u64) -> Vec<(u64, u64)> {
    let mut found = vec![];
    if read(machine, function + STATUS, 2) & 0x10 == 0 {
        return found;
    }
    let mut at = read(machine, function + CAPABILITIES, 1);
    while at >= 0x40 {
        assert!(found.len() < 48, "a loop");
        assert_eq!(at % 4, 0, "bits that are masked off");
        let entry = read(machine, function + at, 2);
        found.push((at, entry & 0xff));
        at = entry >> 8;
    }
    assert_eq!(at, 0, "the end of the chain");
    found
}

/// The same for extended capabilities.
fn extended(machine: &Machine, function: u64) -> Vec<(u64, u64)> {
    let mut found = vec![];
    let mut at = 0x100;
    while at != 0 {
        let header = read(machine, function + at, 4);
        if header == 0 {
            break;
        }
        found.push((at, header & 0xffff));
        at = header >> 20;
    }
    found
}

#[test]
fn a_scan_finds_what_is_there_and_nothing_else() {
    let mut machine = Machine::new();
    assert_eq!(scan(&machine), [("00.0".into(), 0x0008_1b36)]);
    machine.assign("00:01.0", &NVME);
    machine.assign("00:02.3", &E1000E);
    machine.emulate("00:05.0");
    machine.assign("00:1f.0", &ODD);
    machine.assign("00:1f.7", &NVME);
    let expected = [
        ("00.0", 0x0008_1b36),
        ("01.0", 0x0010_1b36),
        ("02.0", 0x0009_1b36), // the stub
        ("02.3", 0x10d3_8086),
        ("05.0", 0x1042_1af4), // a device model's
        ("1f.0", 0xbeef_1234),
        ("1f.7", 0x0010_1b36),
    ];
    assert_eq!(scan(&machine), expected.map(|(slot, id)| (slot.into(), id)));
    machine.reset();
    assert_eq!(scan(&machine), expected.map(|(slot, id)| (slot.into(), id)));
}

#[test]
fn a_physical_multi_function_bit_does_not_show_through() {
    let mut machine = Machine::new();
    machine.assign("00:01.0", &ODD);
    assert_eq!(read(&machine, ecam("00:01.0") + HEADER_TYPE, 1), 0);
}

#[test]
fn what_no_config_request_can_express_is_not_decoded() {
    let mut machine = Machine::new();
    machine.assign("00:01.0", &NVME);
    for (offset, bytes) in [
        (0x8001, 2),
        (0x8002, 4),
        (0x8004, 8),
        (0x8000, 16),
        (1 << 28, 4),
    ] {
        assert_eq!(machine.read(offset, bytes), None, "{offset:#x} {bytes}");
    }
    assert_eq!(machine.read(0x8000, 8), Some(0x0010_0000_0010_1b36));
    assert_eq!(machine.read(0x9000, 8), Some(u64::MAX));
}

#[test]
#[rustfmt::skip]
fn bars_are_sized_with_decode_off_and_on() {
    let mut machine = Machine::new();
    machine.assign("00:01.0", &NVME);
    machine.assign("00:02.0", &E1000E);
    machine.assign("00:03.0", &ODD);
    let cases = [
        // slot,    BAR, flags, size
        ("00:01.0", 0,   0x4,   0x4000),
        ("00:01.0", 2,   0x0,   0),
        ("00:02.0", 0,   0x0,   0x2_0000),
        ("00:02.0", 1,   0x0,   0x2_0000),
        ("00:02.0", 2,   0x0,   0),        // I/O is hidden
        ("00:02.0", 3,   0x0,   0x4000),
        ("00:03.0", 0,   0xc,   1 << 33),
        ("00:03.0", 2,   0x0,   0x100),
        ("00:03.0", 5,   0x0,   0x2000),
        ("00:01.0", 8,   0x0,   0),        // expansion ROM
        ("00:02.0", 8,   0x0,   0x4_0000),
        ("00:03.0", 8,   0x0,   0x800),
    ];
    for decode in [0, MEMORY] {
        for (slot, bar, flags, expected) in cases {
            machine.write(ecam(slot) + COMMAND, 2, decode);
            let register = ecam(slot) + if bar == 8 { ROM } else { BAR_0 + 4 * bar };
            assert_eq!(size(&mut machine, register), (flags, expected), "{slot} {bar}");
            assert_eq!(read(&machine, register, 4), flags, "back to zero");
        }
    }
    assert!(machine.stage2.is_empty());
}

#[test]
fn a_bar_is_mapped_where_it_is_put_while_decode_is_on() {
    let mut machine = Machine::new();
    machine.assign("00:01.0", &NVME);
    let nvme = ecam("00:01.0");
    machine.write(nvme + BAR_0, 4, 0x1040_0000);
    assert!(machine.stage2.is_empty(), "decode is off");
    machine.write(nvme + COMMAND, 2, MEMORY | MASTER);
    // Table and pending bits, in the third and the fourth page, trap.
    let at = |base: u64| [(base, 0x1000_0000), (base + 0x1000, 0x1000_1000)];
    assert!(machine.stage2.clone().into_iter().eq(at(0x1040_0000)));
    assert!(machine.functions[0].bus_master);
    // Moved by its upper half, with decode on: for a moment it is in no window.
    machine.write(nvme + BAR_0 + 4, 4, 0x50);
    assert!(machine.stage2.clone().into_iter().eq(at(0x50_1040_0000)));
    machine.write(nvme + BAR_0, 4, 0x2000_0000);
    assert!(machine.stage2.clone().into_iter().eq(at(0x50_2000_0000)));
    machine.write(nvme + BAR_0 + 7, 1, 0x80);
    assert!(machine.stage2.is_empty(), "outside the windows");
    machine.write(nvme + BAR_0 + 4, 4, 0x50);
    machine.write(nvme + COMMAND, 2, 0);
    assert!(machine.stage2.is_empty());
    assert!(!machine.functions[0].bus_master);
}

/// A guest sizes and sets all its BARs with decode off: each write would be a look at all of them.
#[test]
fn a_bar_that_is_moved_with_decode_off_is_nothing_for_the_kernel() {
    let mut machine = Machine::new();
    machine.assign("00:01.0", &NVME);
    let function = &mut machine.functions[0].function;
    let at = |offset, bytes| {
        let (offset, size) = (
            Offset::new(offset).unwrap(),
            Size::from_bytes(bytes).unwrap(),
        );
        ConfigAccess::new("00:01.0".parse().unwrap(), offset, size).unwrap()
    };
    let bar = at(0x10, 4);
    assert_eq!(function.write(bar, 0x1040_0000), Change::Value(0x1040_0004));
    assert_eq!(function.write(at(0x04, 2), 2), Change::Effects);
    assert_eq!(function.write(bar, 0x1050_0000), Change::Effects);
}

#[test]
fn two_bars_that_are_swapped_with_decode_on_both_arrive() {
    let mut machine = Machine::new();
    machine.assign("00:02.0", &E1000E);
    let e1000e = ecam("00:02.0");
    machine.write(e1000e + BAR_0, 4, LOW.0);
    machine.write(e1000e + BAR_0 + 4, 4, LOW.0 + 0x2_0000);
    machine.write(e1000e + COMMAND, 2, MEMORY);
    assert_eq!(machine.stage2.get(&LOW.0), Some(&0x1004_0000));
    assert_eq!(machine.stage2.get(&(LOW.0 + 0x2_0000)), Some(&0x1006_0000));
    machine.write(e1000e + BAR_0, 4, LOW.0 + 0x2_0000);
    assert_eq!(machine.stage2.get(&LOW.0), None);
    assert_eq!(
        machine.stage2.get(&(LOW.0 + 0x2_0000)),
        Some(&0x1006_0000),
        "was there first"
    );
    machine.write(e1000e + BAR_0 + 4, 4, LOW.0);
    assert_eq!(machine.stage2.get(&LOW.0), Some(&0x1006_0000));
    assert_eq!(machine.stage2.get(&(LOW.0 + 0x2_0000)), Some(&0x1004_0000));
}

#[test]
fn capabilities_on_the_list_are_shown_and_others_are_not() {
    let mut machine = Machine::new();
    machine.assign("00:01.0", &NVME);
    machine.assign("00:02.0", &E1000E);
    machine.assign("00:03.0", &ODD);
    let chains: [(&str, &[_], &[_]); 3] = [
        ("00:01.0", &[(0x40, 0x11), (0x80, 0x10), (0x60, 0x01)], &[]),
        (
            "00:02.0",
            &[(0xc8, 1), (0xd0, 5), (0xe0, 0x10), (0xa0, 0x11)],
            &[(0x100, 1), (0x140, 3)],
        ),
        ("00:03.0", &[(0x50, 5), (0x70, 0x11), (0x80, 1)], &[]),
    ];
    for (slot, standard, extra) in chains {
        assert_eq!(capabilities(&machine, ecam(slot)), standard, "{slot}");
        assert_eq!(extended(&machine, ecam(slot)), extra, "{slot}");
    }
    let e1000e = ecam("00:02.0");
    assert_eq!(read(&machine, e1000e + 0x144, 4), 0x5634_1200);
    assert_eq!(read(&machine, e1000e + 0x148, 4), 0x5254_00ff);
    assert_eq!(
        read(&machine, e1000e + 0x110, 4),
        0x1234_5678 & 0xf1c1,
        "of AER, the errors"
    );
    assert_eq!(
        read(&machine, e1000e + 0xe2, 2) >> 4 & 0xf,
        9,
        "an integrated endpoint"
    );
    assert_eq!(read(&machine, e1000e + 0xec, 4), 0, "which has no link");
    assert_eq!(
        read(&machine, ecam("00:03.0") + 0x44, 4),
        0,
        "vendor-specific is hidden"
    );
}

#[test]
fn an_expansion_rom_is_read_while_it_is_enabled() {
    let mut machine = Machine::new();
    machine.assign("00:02.0", &E1000E);
    machine.assign("00:03.0", &ODD);
    let (e1000e, odd) = (ecam("00:02.0"), ecam("00:03.0"));
    // As `pci_map_rom` does it, and on top of nothing: the BARs are elsewhere.
    for (bar, at) in [(0, 0x10_0000), (4, 0x12_0000), (12, 0x14_0000)] {
        machine.write(e1000e + BAR_0 + bar, 4, LOW.0 + at);
    }
    machine.write(e1000e + ROM, 4, LOW.0);
    machine.write(e1000e + COMMAND, 2, MEMORY);
    assert_eq!(machine.load(LOW.0, 4), Ok(u64::MAX), "not enabled");
    machine.write(e1000e + ROM, 4, LOW.0 | 1);
    assert_eq!(machine.stage2.get(&LOW.0), None, "it is not mapped");
    assert_eq!(machine.load(LOW.0 + 0x3_fff8, 8), Err(0x100f_fff8));
    assert_eq!(machine.store(LOW.0, 4, 0), Ok(()), "it takes no stores");
    // So is one that is smaller than a page.
    machine.write(odd + ROM, 4, (LOW.0 + 0x8_0000) | 1);
    machine.write(odd + COMMAND, 2, MEMORY);
    assert_eq!(machine.load(LOW.0 + 0x8_07fc, 4), Err(0x100b_07fc));
    assert_eq!(machine.store(LOW.0 + 0x8_07fc, 4, 0), Ok(()));
    assert_eq!(
        machine.load(LOW.0 + 0x8_0800, 4),
        Ok(u64::MAX),
        "past its end"
    );
    // On top of a BAR: that was there first.
    machine.write(e1000e + ROM, 4, (LOW.0 + 0x10_0000) | 1);
    assert_eq!(machine.stage2.get(&(LOW.0 + 0x10_0000)), Some(&0x1004_0000));
    assert_eq!(machine.load(LOW.0, 4), Ok(u64::MAX), "moved");
    machine.write(e1000e + ROM, 1, 0);
    machine.write(e1000e + ROM, 4, LOW.0 | 1);
    machine.write(e1000e + COMMAND, 2, 0);
    machine.write(odd + ROM, 4, 0);
    assert!(machine.stage2.is_empty());
}

/// What the driver of an MSI-X function does: `pci_alloc_irq_vectors`, then one interrupt each.
#[test]
fn msix_is_set_up_through_the_table() {
    let mut machine = Machine::new();
    machine.assign("00:01.0", &NVME);
    let nvme = ecam("00:01.0");
    let base = HIGH.0;
    machine.write(nvme + BAR_0, 8, base | 4);
    machine.write(nvme + COMMAND, 2, MEMORY | MASTER);
    machine.write(nvme + 0x42, 2, 0xc000);
    assert_eq!(read(&machine, nvme + 0x42, 2), 0xc040);
    assert_eq!(machine.functions[0].msix, (true, true));
    for vector in 0..65 {
        let entry = base + 0x2000 + vector * 16;
        assert_eq!(machine.load(entry + 12, 4), Ok(1), "masked after reset");
        machine.store(entry, 4, DOORBELL & 0xffff_ffff).unwrap();
        machine.store(entry + 4, 4, DOORBELL >> 32).unwrap();
        machine.store(entry + 8, 4, 0x100 + vector).unwrap();
        assert!(machine.functions[0].vectors.is_empty(), "still masked");
    }
    machine.write(nvme + 0x42, 2, 0x8000);
    assert_eq!(machine.functions[0].msix, (true, false));
    machine.store(base + 0x2000 + 12, 4, 0).unwrap();
    machine
        .store(base + 0x2000 + 64 * 16 + 8, 8, 0x140)
        .unwrap();
    let live = &machine.functions[0].vectors;
    assert!(live.iter().eq([(&0, &0x100), (&64, &0x140)]));
    // Aimed elsewhere: the vector is dead.
    machine.store(base + 0x2000, 4, 0x4000_0000).unwrap();
    assert!(!machine.functions[0].vectors.contains_key(&0));
    machine.store(base + 0x2000, 4, DOORBELL).unwrap();
    assert_eq!(machine.functions[0].vectors.get(&0), Some(&0x100));
    // Pending bits are the device's, and read-only.
    assert_eq!(machine.load(base + 0x3000, 8), Err(0x1000_3000));
    assert_eq!(machine.store(base + 0x3000, 8, u64::MAX), Ok(()));
    assert_eq!(
        machine.load(base + 0x2000, 8),
        Ok(DOORBELL),
        "and so is the table beside them"
    );
    // What else is in those pages is the device's.
    assert_eq!(machine.load(base + 0x2800, 4), Err(0x1000_2800));
    assert_eq!(machine.store(base + 0x3010, 4, 1), Err(0x1000_3010));
    machine.reset();
    let nvme = &machine.functions[0];
    assert!(nvme.vectors.is_empty() && nvme.msix == (false, false) && !nvme.bus_master);
    assert!(machine.stage2.is_empty());
}

#[test]
fn msi_is_set_up_through_the_capability() {
    let mut machine = Machine::new();
    machine.assign("00:03.0", &ODD);
    let msi = ecam("00:03.0") + 0x50;
    machine.write(msi + 4, 4, DOORBELL);
    machine.write(msi + 12, 2, 0x4321);
    assert_eq!(machine.functions[0].msi, None, "not enabled yet");
    machine.write(msi + 2, 2, 0x0021); // four vectors
    let live = Message::Live { data: 0x4321 };
    let expected = |message, vectors, mask| {
        Some(vpci::Msi {
            message,
            vectors,
            mask,
        })
    };
    assert_eq!(machine.functions[0].msi, expected(live, 4, 0));
    machine.write(msi + 16, 4, 0xffff_ff05);
    assert_eq!(
        read(&machine, msi + 16, 4),
        0x05,
        "the device has eight vectors"
    );
    assert_eq!(machine.functions[0].msi, expected(live, 4, 5));
    assert_eq!(
        read(&machine, msi + 20, 4),
        0x05,
        "pending bits are the device's"
    );
    machine.write(msi + 8, 4, 1);
    let address = vpci::BusAddress::new(1 << 32 | DOORBELL);
    let elsewhere = Message::Misdirected { address };
    assert_eq!(machine.functions[0].msi, expected(elsewhere, 4, 5));
    machine.write(msi + 2, 2, 0x0071);
    assert_eq!(
        machine.functions[0].msi.map(|msi| msi.vectors),
        Some(8),
        "more than it has"
    );
    machine.write(msi + 2, 2, 0);
    assert_eq!(machine.functions[0].msi, expected(Message::Off, 1, 0));
}

#[test]
fn a_function_level_reset_is_asked_for_and_done_to_the_model() {
    let mut machine = Machine::new();
    machine.assign("00:01.0", &NVME);
    machine.assign("00:02.0", &E1000E);
    let (nvme, e1000e) = (ecam("00:01.0"), ecam("00:02.0"));
    for function in [nvme, e1000e] {
        machine.write(function + BAR_0, 4, LOW.0 + function);
        machine.write(function + COMMAND, 2, MEMORY | MASTER);
    }
    machine.write(nvme + 0x88, 2, 0xa810);
    assert_eq!(machine.functions[0].resets, 1);
    assert_eq!(read(&machine, nvme + COMMAND, 2), 0);
    assert_eq!(read(&machine, nvme + BAR_0, 4), 4);
    assert_eq!(read(&machine, nvme + 0x88, 2), 0x2810);
    machine.write(e1000e + 0xe8, 2, 0xa810);
    assert_eq!(machine.functions[1].resets, 0, "it has no FLR");
    assert_eq!(read(&machine, e1000e + 0xe8, 2), 0x2810);
    assert_eq!(read(&machine, e1000e + COMMAND, 2), MEMORY | MASTER);
}

#[test]
fn a_function_in_d3_decodes_nothing_and_masters_nothing() {
    let mut machine = Machine::new();
    machine.assign("00:01.0", &NVME);
    let nvme = ecam("00:01.0");
    machine.write(nvme + BAR_0, 4, LOW.0);
    machine.write(nvme + COMMAND, 2, MEMORY | MASTER);
    machine.write(nvme + 0x64, 2, 3);
    assert!(machine.stage2.is_empty() && !machine.functions[0].bus_master);
    assert!(!machine.functions[0].intx, "not by its pin either");
    assert_eq!(read(&machine, nvme + 0x64, 2), 0x0b);
    machine.write(nvme + 0x64, 2, 1);
    assert_eq!(read(&machine, nvme + 0x64, 2), 0x0b, "D1 is not offered");
    machine.write(nvme + 0x64, 2, 0);
    assert_eq!(read(&machine, nvme + 0x64, 2), 0x08);
    machine.write(nvme + 0x64, 2, 2);
    assert_eq!(read(&machine, nvme + 0x64, 2), 0x08, "nor is D2");
    assert!(!machine.stage2.is_empty() && machine.functions[0].bus_master);
    assert!(machine.functions[0].intx);
}

#[test]
fn error_bits_of_the_header_are_not_shown() {
    let mut machine = Machine::new();
    machine.assign("00:03.0", &ODD);
    let odd = ecam("00:03.0");
    assert_eq!(read(&machine, odd + STATUS, 2), 0x0010);
    machine.write(odd + COMMAND, 4, 0xf900_0006);
    let written = machine.functions[0].function.device().written.borrow();
    assert_eq!(*written, [], "the device is not written to");
}

#[test]
fn a_bar_that_has_no_page_of_its_own_is_reached_by_traps() {
    let mut machine = Machine::new();
    machine.assign("00:03.0", &ODD);
    let odd = ecam("00:03.0");
    machine.write(odd + BAR_0 + 8, 4, LOW.0 + 0x100);
    machine.write(odd + BAR_0 + 20, 4, LOW.0 + 0x2000);
    machine.write(odd + COMMAND, 2, MEMORY);
    assert_eq!(machine.stage2.len(), 1, "the second page of BAR5");
    assert_eq!(machine.load(LOW.0 + 0x100, 4), Err(0x1009_0000));
    assert_eq!(machine.load(LOW.0 + 0x1fc, 4), Err(0x1009_00fc));
    assert_eq!(machine.load(LOW.0 + 0x200, 4), Ok(u64::MAX), "past its end");
    assert_eq!(machine.load(LOW.0 + 0x0fc, 4), Ok(u64::MAX), "before it");
    assert_eq!(machine.store(LOW.0 + 0x110, 8, 7), Err(0x1009_0010));
    // Table at 0x800 of BAR5, pending bits at 0x840, registers around them.
    let base = LOW.0 + 0x2000;
    assert_eq!(machine.load(base + 0x7fc, 4), Err(0x100a_07fc));
    assert_eq!(machine.load(base + 0x80c, 4), Ok(1));
    assert_eq!(machine.load(base + 0x820, 4), Err(0x100a_0820));
    assert_eq!(machine.load(base + 0x840, 8), Err(0x100a_0840));
    assert_eq!(machine.load(base + 0x1000, 8), Err(0x100a_1000));
    let function = &machine.functions[0].function;
    assert!(function.pages(BarIndex::new(2).unwrap()).next().is_none());
    assert!(function.pages(BarIndex::new(4).unwrap()).next().is_none());
}
