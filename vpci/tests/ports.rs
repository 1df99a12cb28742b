//! Buses below root ports: walked as Linux, U-Boot and UEFI walk them, and held against a plain model
//! that goes through the ports at each access, while a guest renumbers buses and moves windows.

mod machine;
mod playground;

use std::collections::BTreeMap;

use machine::{E1000E, HIGH, LOW, Machine, NVME, ODD};
use playground::{
    BRIDGE_CONTROL, COMMAND, CONTROL_2, LINK_CONTROL, MASTER, MEMORY, MEMORY_BASE, MEMORY_LIMIT,
    MODELS, PORTS, PREF_BASE, PREF_BASE_UPPER, PREF_LIMIT, PREF_LIMIT_UPPER, SECONDARY_BUS,
    SUBORDINATE_BUS, Step, at, check, name, playground, read, take,
};
use proptest::prelude::*;
use vpci::{BusAddress, BusRange, Decoder};

const VENDOR_ID: u64 = 0x00;
const HEADER_TYPE: u64 = 0x0e;
const BAR_0: u64 = 0x10;
const PRIMARY_BUS: u64 = 0x18;
const LINK_STATUS: u64 = 0x52;
const MIB: u64 = 1 << 20;

/// Three ports, two of them in one device, with a passed-through function below each, and something on
/// the root bus. The configuration's numbers are no guest's.
fn tree() -> Machine {
    let mut machine = Machine::new();
    machine.add_port("00:1d.0", 0x40, false);
    machine.add_port("00:1c.0", 0x80, false);
    machine.add_port("00:1c.1", 0x20, false);
    machine.assign("00:01.0", &NVME);
    machine.assign("80:00.0", &E1000E);
    machine.assign("40:00.0", &NVME);
    machine.assign("40:00.5", &E1000E);
    machine
}

/// What a walk finds: functions by the numbers that it gave, and where it put their BARs.
#[derive(Debug, Default)]
struct Found {
    functions: Vec<(u64, u64, u64)>,
    bars: Vec<(u64, u64, u64)>,
}

/// Sizes the BARs of a function and returns register, size, and whether it has 64 bits.
fn bars(machine: &mut Machine, function: u64) -> Vec<(u64, u64, bool)> {
    let mut found = vec![];
    let mut register = BAR_0;
    let count = if read(machine, function + HEADER_TYPE, 1) & 0x7f == 1 {
        2
    } else {
        6
    };
    while register < BAR_0 + 4 * count {
        let bar = function + register;
        machine.write(bar, 4, 0xffff_ffff);
        let low = read(machine, bar, 4);
        machine.write(bar, 4, 0);
        let wide = low & 0b110 == 0b100;
        if low != 0 {
            found.push((bar, (!(low & !0xf) & 0xffff_ffff) + 1, wide));
        }
        register += if wide { 8 } else { 4 };
    }
    found
}

/// Returns the functions of a device, function 0 first, as every walker looks for them.
fn device(machine: &Machine, bus: u64, device: u64) -> Vec<(u64, u64)> {
    let mut found = vec![];
    for function in 0..8 {
        let id = read(machine, at(bus, device << 3 | function) + VENDOR_ID, 4);
        if id == 0xffff_ffff {
            if function == 0 {
                break;
            }
            continue;
        }
        found.push((device << 3 | function, id));
        let header = read(machine, at(bus, device << 3 | function) + HEADER_TYPE, 1);
        if function == 0 && header & 0x80 == 0 {
            break;
        }
    }
    found
}

fn is_bridge(machine: &Machine, function: u64) -> bool {
    read(machine, function + HEADER_TYPE, 1) & 0x7f == 1
}

/// Linux: numbers depth first, then sizes everything, then sets the bridges up and turns decode on
/// (`pci_scan_child_bus`, `pci_bus_size_bridges`, `pci_bus_assign_resources`, `pci_enable_bridge`).
fn linux(machine: &mut Machine) -> Found {
    fn scan(machine: &mut Machine, found: &mut Found, bus: u64, next: &mut u64) {
        // Below a port Linux looks at device 0 only (`only_one_child`).
        for number in 0..if bus == 0 { 32 } else { 1 } {
            for (function, id) in device(machine, bus, number) {
                found.functions.push((bus, function, id));
            }
        }
        for number in 0..256 {
            let bridge = at(bus, number);
            let there = found.functions.iter();
            if !there.clone().any(|f| (f.0, f.1) == (bus, number)) || !is_bridge(machine, bridge) {
                continue;
            }
            assert_eq!(read(machine, bridge + PRIMARY_BUS, 4) & 0xff_ffff, 0);
            let secondary = *next;
            *next += 1;
            machine.write(bridge + PRIMARY_BUS, 4, bus | secondary << 8 | 0xff << 16);
            assert!(device(machine, secondary + 1, 0).is_empty());
            scan(machine, found, secondary, next);
            machine.write(bridge + SUBORDINATE_BUS, 1, *next - 1);
        }
    }
    let mut found = Found::default();
    scan(machine, &mut found, 0, &mut 1);
    let mut place = LOW.0;
    let functions = found.functions.clone();
    let bridges = functions
        .iter()
        .map(|&(bus, function, _)| at(bus, function));
    let bridges: Vec<_> = bridges
        .filter(|bridge| is_bridge(machine, *bridge))
        .collect();
    let mut buses = vec![(0, None)];
    for &bridge in &bridges {
        buses.push((read(machine, bridge + SECONDARY_BUS, 1), Some(bridge)));
    }
    for (bus, bridge) in buses {
        let first = place;
        for &(_, function, _) in functions.iter().filter(|f| f.0 == bus) {
            for (bar, size, wide) in bars(machine, at(bus, function)) {
                place = place.next_multiple_of(size);
                machine.write(bar, 4, place);
                if wide {
                    machine.write(bar + 4, 4, 0);
                }
                found.bars.push((bar, place, size));
                place += size;
            }
        }
        place = place.next_multiple_of(MIB);
        let Some(bridge) = bridge else { continue };
        // `pci_setup_bridge`: the windows, or closed ones.
        let (base, limit) = if place == first {
            (0xfff0, 0)
        } else {
            (first >> 16, (place - 1) >> 16)
        };
        machine.write(bridge + MEMORY_BASE, 4, base | limit << 16);
        machine.write(bridge + PREF_LIMIT_UPPER, 4, 0);
        machine.write(bridge + PREF_BASE, 4, 0x0000_fff0);
        machine.write(bridge + PREF_BASE_UPPER, 4, 0);
        machine.write(bridge + BRIDGE_CONTROL, 2, 0x2);
    }
    // Drivers come in any order: the last function first. Each enables the bridges above first.
    for &(bus, function, _) in functions.iter().rev() {
        for &bridge in &bridges {
            if bus != 0 && read(machine, bridge + SECONDARY_BUS, 1) == bus {
                machine.write(bridge + COMMAND, 2, MEMORY | MASTER);
            }
        }
        machine.write(at(bus, function) + COMMAND, 2, MEMORY | MASTER);
    }
    found
}

/// U-Boot: numbers, places and enables in one go, so that windows still have no limit while functions
/// below are enabled already (`dm_pciauto_setup_device`, `dm_pciauto_prescan_setup_bridge`).
fn uboot(machine: &mut Machine) -> Found {
    fn scan(machine: &mut Machine, found: &mut Found, bus: u64, next: &mut u64, place: &mut u64) {
        for number in 0..32 {
            for (function, id) in device(machine, bus, number) {
                found.functions.push((bus, function, id));
                let config = at(bus, function);
                if !is_bridge(machine, config) {
                    setup(machine, found, config, place);
                    continue;
                }
                let secondary = *next;
                *next += 1;
                machine.write(config + COMMAND, 2, 0);
                machine.write(config + PRIMARY_BUS, 1, bus);
                machine.write(config + SECONDARY_BUS, 1, secondary);
                machine.write(config + SUBORDINATE_BUS, 1, 0xff);
                *place = place.next_multiple_of(MIB);
                machine.write(config + MEMORY_BASE, 2, *place >> 16);
                machine.write(config + PREF_BASE, 2, 0x1000);
                machine.write(config + PREF_LIMIT, 2, 0);
                machine.write(config + COMMAND, 2, MEMORY | MASTER | 1);
                scan(machine, found, secondary, next, place);
                machine.write(config + SUBORDINATE_BUS, 1, *next - 1);
                *place = place.next_multiple_of(MIB);
                machine.write(config + MEMORY_LIMIT, 2, (*place - 1) >> 16);
            }
        }
    }
    fn setup(machine: &mut Machine, found: &mut Found, config: u64, place: &mut u64) {
        let command = read(machine, config + COMMAND, 2);
        machine.write(config + COMMAND, 2, command & !MEMORY | MASTER);
        for (bar, size, wide) in bars(machine, config) {
            *place = place.next_multiple_of(size);
            machine.write(bar, 4, *place);
            if wide {
                machine.write(bar + 4, 4, 0);
            }
            found.bars.push((bar, *place, size));
            *place += size;
        }
        machine.write(config + COMMAND, 2, MEMORY | MASTER);
    }
    let mut found = Found::default();
    let mut place = LOW.0;
    scan(machine, &mut found, 0, &mut 1, &mut place);
    found
}

/// UEFI: bus numbers twice, first with open ends and then for good, then bridges from the top, 64-bit
/// BARs in prefetchable windows above 4 GiB, and at last all at once (`PciScanBus`, `ProgramBar`,
/// `ProgramPpbApperture`).
fn uefi(machine: &mut Machine) -> Found {
    fn scan(machine: &mut Machine, found: &mut Found, bus: u64, next: &mut u64) {
        for number in 0..32 {
            for (function, id) in device(machine, bus, number) {
                found.functions.push((bus, function, id));
                let config = at(bus, function);
                if !is_bridge(machine, config) {
                    continue;
                }
                machine.write(config + PRIMARY_BUS, 4, 0);
                let secondary = *next;
                *next += 1;
                machine.write(config + PRIMARY_BUS, 2, secondary << 8 | bus);
                machine.write(config + SUBORDINATE_BUS, 1, 0xff);
                scan(machine, found, secondary, next);
                machine.write(config + SUBORDINATE_BUS, 1, *next - 1);
            }
        }
    }
    let mut found = Found::default();
    scan(machine, &mut found, 0, &mut 1);
    let functions = found.functions.clone();
    let (mut low, mut high) = (LOW.0, HIGH.0);
    for &(bus, function, _) in &functions {
        let config = at(bus, function);
        if !is_bridge(machine, config) && bus == 0 {
            for (bar, size, wide) in bars(machine, config) {
                let place = if wide { &mut high } else { &mut low };
                *place = place.next_multiple_of(size);
                machine.write(bar, if wide { 8 } else { 4 }, *place);
                found.bars.push((bar, *place, size));
                *place += size;
            }
        }
        if !is_bridge(machine, config) {
            continue;
        }
        low = low.next_multiple_of(MIB);
        high = high.next_multiple_of(MIB);
        let secondary = read(machine, config + SECONDARY_BUS, 1);
        let (low_first, high_first) = (low, high);
        for &(_, below, _) in functions.iter().filter(|f| f.0 == secondary) {
            for (bar, size, wide) in bars(machine, at(secondary, below)) {
                let place = if wide { &mut high } else { &mut low };
                *place = place.next_multiple_of(size);
                machine.write(bar, if wide { 8 } else { 4 }, *place);
                found.bars.push((bar, *place, size));
                *place += size;
            }
        }
        low = low.next_multiple_of(MIB);
        high = high.next_multiple_of(MIB);
        machine.write(config + MEMORY_BASE, 2, low_first >> 16 & 0xfff0);
        machine.write(
            config + MEMORY_LIMIT,
            2,
            low.saturating_sub(1) >> 16 & 0xfff0,
        );
        machine.write(config + PREF_BASE, 2, high_first >> 16 & 0xfff0);
        machine.write(config + PREF_LIMIT, 2, (high - 1) >> 16 & 0xfff0);
        machine.write(config + PREF_BASE_UPPER, 4, high_first >> 32);
        machine.write(config + PREF_LIMIT_UPPER, 4, (high - 1) >> 32);
    }
    for &(bus, function, _) in &functions {
        machine.write(at(bus, function) + COMMAND, 2, MEMORY | MASTER);
    }
    found
}

/// Fails unless the walk found what `tree` has, all of it works, and nothing else does.
fn check_tree(machine: &Machine, found: &Found) {
    let mut functions = found.functions.clone();
    functions.sort_unstable();
    let expected = [
        (0, 0x00, 0x0008_1b36),
        (0, 0x08, 0x0010_1b36),
        (0, 0xe0, 0x000c_1b36),
        (0, 0xe1, 0x000c_1b36),
        (0, 0xe8, 0x000c_1b36),
        (1, 0x00, 0x10d3_8086),
        (3, 0x00, 0x0010_1b36),
        (3, 0x05, 0x10d3_8086),
    ];
    assert_eq!(functions, expected);
    assert_eq!(found.bars.len(), 1 + 3 + 1 + 3);
    for &(bar, place, size) in &found.bars {
        let range = BusRange::new(BusAddress::new(place), size).unwrap();
        let granted = machine.bus.memory.find(range.start());
        assert_eq!(granted.map(|(range, _)| range), Some(range), "{bar:#x}");
    }
    assert!(machine.functions.iter().all(|assigned| assigned.bus_master));
    for (of, as_what) in [("80:00.0", "01:00.0"), ("40:00.5", "03:00.5")] {
        assert_eq!(machine.bus.requester(name(of)), Some(name(as_what)));
    }
}

#[test]
#[cfg_attr(miri, ignore = "long; another walk is tried")]
fn linux_u_boot_and_uefi_find_what_is_there_and_bring_it_up() {
    type Walk = fn(&mut Machine) -> Found;
    let walks: [(&str, Walk); 3] = [("Linux", linux), ("U-Boot", uboot), ("UEFI", uefi)];
    for (who, walk) in walks {
        let mut machine = tree();
        let found = walk(&mut machine);
        println!("{who}: {found:x?}");
        check_tree(&machine, &found);
        // After a reset nothing is left of it, and it works again.
        machine.reset();
        assert!(machine.stage2.is_empty());
        assert!(!machine.functions.iter().any(|assigned| assigned.bus_master));
        for bus in 1..256 {
            assert!(device(&machine, bus, 0).is_empty());
        }
        let again = walk(&mut machine);
        check_tree(&machine, &again);
    }
}

/// What firmware has set up the next one sets up anew, with everything on.
/// A bus without ports, with every kind of function: passed through, emulated, devices of several
/// functions of one or both kinds, and one whose function 0 is a stub.
fn flat() -> Machine {
    let mut machine = Machine::new();
    machine.assign("00:01.0", &NVME);
    machine.emulate("00:02.0");
    machine.assign("00:03.3", &E1000E);
    machine.assign("00:04.0", &NVME);
    machine.emulate("00:04.1");
    machine.emulate("00:1f.0");
    machine.assign("00:1f.7", &E1000E);
    machine
}

fn check_flat(machine: &Machine, found: &Found) {
    let expected = [
        (0, 0x00, 0x0008_1b36),
        (0, 0x08, 0x0010_1b36),
        (0, 0x10, 0x1042_1af4),
        (0, 0x18, 0x0009_1b36), // the stub
        (0, 0x1b, 0x10d3_8086),
        (0, 0x20, 0x0010_1b36),
        (0, 0x21, 0x1042_1af4),
        (0, 0xf8, 0x1042_1af4),
        (0, 0xff, 0x10d3_8086),
    ];
    assert_eq!(found.functions, expected);
    let mut owners = BTreeMap::new();
    for &(bar, place, size) in &found.bars {
        let range = BusRange::new(BusAddress::new(place), size).unwrap();
        let (granted, decoder) = machine.bus.memory.find(range.start()).unwrap();
        assert_eq!(granted, range, "{bar:#x}");
        let owner = match decoder {
            Decoder::Bar { function, .. } => machine.functions[function].sbdf,
            Decoder::Ioreq { sbdf, .. } => sbdf,
        };
        let slot = bar >> 12;
        assert_eq!(u64::from(owner.rid()), slot, "{bar:#x}");
        *owners.entry(slot).or_insert(0) += 1;
    }
    let count = [
        (0x08, 1),
        (0x10, 1),
        (0x1b, 3),
        (0x20, 1),
        (0x21, 1),
        (0xf8, 1),
        (0xff, 3),
    ];
    assert_eq!(owners, BTreeMap::from(count), "and none of bridge or stub");
    assert_eq!(machine.bus.memory.granted().count(), found.bars.len());
    assert!(machine.functions.iter().all(|assigned| assigned.bus_master));
}

#[test]
fn linux_u_boot_and_uefi_bring_up_every_kind_of_function_on_a_flat_bus() {
    type Walk = fn(&mut Machine) -> Found;
    let walks: [(&str, Walk); 3] = [("Linux", linux), ("U-Boot", uboot), ("UEFI", uefi)];
    for (who, walk) in walks {
        let mut machine = flat();
        let found = walk(&mut machine);
        println!("{who}: {found:x?}");
        check_flat(&machine, &found);
        machine.reset();
        assert_eq!(machine.bus.memory.granted().count(), 0);
        let again = walk(&mut machine);
        check_flat(&machine, &again);
        // The next one finds what the one before has left.
        for (_, next) in walks {
            let found = next(&mut machine);
            check_flat(&machine, &found);
        }
    }
}

#[test]
fn linux_after_u_boot_renumbers_and_moves_what_is_in_use() {
    let mut machine = tree();
    uboot(&mut machine);
    for function in [0xe0, 0xe1, 0xe8] {
        // `pci_scan_bridge_extend` with PCI_REASSIGN_ALL_BUS.
        machine.write(at(0, function) + PRIMARY_BUS, 4, 0);
    }
    assert!(machine.functions.iter().all(|assigned| assigned.bus_master));
    let found = linux(&mut machine);
    check_tree(&machine, &found);
}

#[test]
fn a_function_below_a_port_shows_its_link() {
    let mut machine = tree();
    linux(&mut machine);
    let e1000e = at(1, 0) + 0xe0;
    assert_eq!(read(&machine, e1000e + 2, 2) >> 4 & 0xf, 0, "an endpoint");
    assert_eq!(read(&machine, e1000e + 0x12, 2), 0x1011);
    let nvme = at(3, 0) + 0x80;
    assert_eq!(
        read(&machine, nvme + 2, 2) >> 4 & 0xf,
        0,
        "integrated on the machine"
    );
    assert_eq!(read(&machine, nvme + 0x0c, 4), 0x0040_0011);
    assert_eq!(read(&machine, nvme + 0x12, 2), 0x1011);
    assert_eq!(read(&machine, at(0, 0xe0) + LINK_STATUS, 2), 0x3104);
    assert_eq!(
        read(&machine, at(0, 0xe1) + LINK_STATUS, 2),
        0x1104,
        "empty"
    );
}

#[test]
#[cfg_attr(miri, ignore = "long; another walk is tried")]
fn a_secondary_bus_reset_resets_what_is_below_and_nothing_else() {
    for (register, bit) in [(BRIDGE_CONTROL, 0x40), (LINK_CONTROL, 0x10)] {
        let mut machine = tree();
        linux(&mut machine);
        let before = machine.stage2.len();
        let port = at(0, 0xe8);
        let control = read(&machine, port + register, 2);
        machine.write(port + register, 2, control | bit);
        assert_eq!(machine.bus_resets, BTreeMap::from([(0x40, 1)]));
        assert!(
            device(&machine, 3, 0).is_empty(),
            "in reset it does not answer"
        );
        assert_eq!(device(&machine, 1, 0).len(), 1);
        assert!(machine.stage2.len() < before);
        let masters = machine.functions.iter().map(|assigned| assigned.bus_master);
        assert_eq!(masters.collect::<Vec<_>>(), [true, true, false, false]);
        machine.write(port + register, 2, control);
        assert_eq!(machine.bus_resets, BTreeMap::from([(0x40, 1)]));
        assert_eq!(device(&machine, 3, 0).len(), 2);
        assert_eq!(read(&machine, at(3, 5) + COMMAND, 2), 0);
        assert_eq!(read(&machine, at(3, 5) + BAR_0, 4), 0);
    }
}

#[test]
fn a_function_is_mapped_only_where_its_ports_windows_are() {
    let mut machine = Machine::new();
    machine.add_port("00:1c.0", 1, false);
    machine.assign("01:00.0", &NVME);
    let port = at(0, 0xe0);
    machine.write(port + PRIMARY_BUS, 4, 0x0001_0100);
    machine.write(at(1, 0) + BAR_0, 8, LOW.0 + MIB);
    machine.write(at(1, 0) + COMMAND, 2, MEMORY | MASTER);
    assert!(machine.stage2.is_empty() && !machine.functions[0].bus_master);
    let window = |first: u64, last: u64| (first >> 16) | last >> 16 << 16;
    machine.write(port + MEMORY_BASE, 4, window(LOW.0, LOW.0 + 2 * MIB - 1));
    assert!(machine.stage2.is_empty(), "Memory Space Enable is off");
    machine.write(port + COMMAND, 2, MEMORY);
    assert!(machine.stage2.contains_key(&(LOW.0 + MIB)));
    assert!(!machine.functions[0].bus_master, "Bus Master Enable is off");
    machine.write(port + COMMAND, 2, MEMORY | MASTER);
    assert!(machine.functions[0].bus_master);
    // The window moves away, and the prefetchable one over it.
    machine.write(port + MEMORY_BASE, 4, window(LOW.0, LOW.0 + MIB - 1));
    assert!(machine.stage2.is_empty());
    machine.write(port + PREF_BASE, 4, window(LOW.0 + MIB, LOW.0 + MIB));
    assert!(machine.stage2.contains_key(&(LOW.0 + MIB)));
    // Its number is taken away: it goes on, but is out of reach.
    machine.write(port + PRIMARY_BUS, 4, 0);
    assert!(machine.stage2.contains_key(&(LOW.0 + MIB)) && machine.functions[0].bus_master);
    machine.write(port + PRIMARY_BUS, 4, 0x0009_0900);
    machine.write(at(9, 0) + COMMAND, 2, 0);
    assert!(machine.stage2.is_empty());
}

#[test]
fn a_large_bar_takes_a_window_above_4_gib() {
    const GIB: u64 = 1 << 30;
    let mut machine = Machine::new();
    machine.add_port("00:1c.0", 1, false);
    machine.assign("01:00.0", &ODD);
    let port = at(0, 0xe0);
    machine.write(port + PRIMARY_BUS, 4, 0x0001_0100);
    machine.write(port + COMMAND, 2, MEMORY);
    let place = HIGH.0 + 8 * GIB;
    machine.write(at(1, 0) + BAR_0, 8, place);
    machine.write(at(1, 0) + COMMAND, 2, MEMORY);
    machine.write(port + PREF_BASE_UPPER, 4, place >> 32);
    for (limit, reached) in [
        (place + 8 * GIB - MIB - 1, false),
        (place + 8 * GIB - 1, true),
    ] {
        machine.write(port + PREF_LIMIT, 2, limit >> 16 & 0xfff0);
        machine.write(port + PREF_LIMIT_UPPER, 4, limit >> 32);
        let last = place + 8 * GIB - 4;
        let device = 0x80_0000_0000 + 8 * GIB - 4;
        let (load, store) = (machine.load(last, 4), machine.store(last, 4, 1));
        let expected = if reached {
            (Err(device), Err(device))
        } else {
            (Ok(u64::MAX), Ok(()))
        };
        assert_eq!((load, store), expected, "{limit:#x}");
    }
}

fn step() -> impl Strategy<Value = Step> {
    let number = || prop_oneof![4 => 0_u64..6, 1 => Just(0xff), 1 => 0_u64..256];
    let page = || (0_u64..16).prop_map(|page| LOW.0 + page * 0x4_0000);
    let megabyte = || (0_u64..5).prop_map(|place| (LOW.0 + place * MIB) >> 16);
    let which = || 0..PORTS.len();
    let port = prop_oneof![
        4 => (which(), number(), number(), number()).prop_map(|(port, a, b, c)| {
            Step::Port(port, PRIMARY_BUS, 4, a | b << 8 | c << 16)
        }),
        2 => (which(), number()).prop_map(|(port, n)| Step::Port(port, SECONDARY_BUS, 1, n)),
        2 => (which(), number()).prop_map(|(port, n)| Step::Port(port, SUBORDINATE_BUS, 1, n)),
        3 => (which(), megabyte(), megabyte())
            .prop_map(|(port, a, b)| Step::Port(port, MEMORY_BASE, 4, a | b << 16)),
        2 => (which(), megabyte(), megabyte())
            .prop_map(|(port, a, b)| Step::Port(port, PREF_BASE, 4, a | b << 16)),
        1 => (which(), 0_u64..2).prop_map(|(port, n)| Step::Port(port, PREF_LIMIT_UPPER, 4, n)),
        4 => (which(), 0_u64..8).prop_map(|(port, n)| Step::Port(port, COMMAND, 2, n)),
        1 => (which(), 0_u64..0x80).prop_map(|(port, n)| Step::Port(port, BRIDGE_CONTROL, 2, n)),
        1 => (which(), 0_u64..0x20).prop_map(|(port, n)| Step::Port(port, LINK_CONTROL, 2, n)),
        2 => (which(), 0_u64..0x40).prop_map(|(port, n)| Step::Port(port, CONTROL_2, 2, n)),
        1 => (which(), 0_u64..4).prop_map(|(port, n)| Step::Port(port, 0x94, 2, n)),
        1 => (which(), 0_u64..0x100, any::<u64>())
            .prop_map(|(port, offset, value)| Step::Port(port, offset & !3, 4, value)),
    ];
    let slot = || prop_oneof![3 => Just(0_u64), 1 => Just(3), 1 => Just(0x21), 1 => Just(0x20)];
    let function = prop_oneof![
        2 => (number(), slot(), page())
            .prop_map(|(bus, slot, value)| Step::Function(bus, slot, BAR_0, 8, value)),
        2 => (number(), slot(), 0_u64..8)
            .prop_map(|(bus, slot, value)| Step::Function(bus, slot, COMMAND, 2, value)),
    ];
    let model = || 0..MODELS.len();
    prop_oneof![
        8 => port,
        6 => function,
        2 => (model(), page()).prop_map(|(model, page)| Step::Claim(model, page)),
        1 => (model(), page()).prop_map(|(model, page)| Step::Unclaim(model, page)),
        1 => Just(Step::Reset),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases / 2))]

    #[test]
    #[cfg_attr(miri, ignore = "long, and without unsafe code there is little to find")]
    fn routing_agrees_with_a_model_that_asks_each_port(
        steps in prop::collection::vec(step(), 1..80),
    ) {
        let mut machine = playground();
        let mut claimed = vec![];
        check(&machine, &claimed, 0..=255);
        for step in &steps {
            take(&mut machine, &mut claimed, step);
            check(&machine, &claimed, 0..=255);
        }
        // Whatever was done, a walk of the reset tree finds the same.
        machine.reset();
        let mut fresh = playground();
        let (found, expected) = (linux(&mut machine), linux(&mut fresh));
        prop_assert_eq!(found.functions, expected.functions);
        prop_assert_eq!(found.bars, expected.bars);
    }
}
