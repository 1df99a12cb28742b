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
const STATUS: u64 = 0x06;
const CACHE_LINE_SIZE: u64 = 0x0c;
const HEADER_TYPE: u64 = 0x0e;
const BAR_0: u64 = 0x10;
const PRIMARY_BUS: u64 = 0x18;
const IO_BASE: u64 = 0x1c;
const IO_UPPER: u64 = 0x30;
const ROM: u64 = 0x30;
const ROM_1: u64 = 0x38;
const INTERRUPT_LINE: u64 = 0x3c;
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

/// A base address register that was sized.
#[derive(Clone, Copy, Debug)]
struct Sized {
    register: u64,
    size: u64,
    wide: bool,
    prefetchable: bool,
}

impl Sized {
    fn new(register: u64, low: u64, high: u64) -> Self {
        let wide = low & 0b110 == 0b100;
        let high = if wide { high } else { 0xffff_ffff };
        let size = (high << 32 | low & !0xf).wrapping_neg();
        let prefetchable = low & 8 != 0;
        Self {
            register,
            size,
            wide,
            prefetchable,
        }
    }

    /// Takes its place off what is left from `next`.
    fn take(self, next: &mut u64) -> u64 {
        let place = next.next_multiple_of(self.size);
        *next = place + self.size;
        place
    }
}

/// Returns the registers that may be BARs in a function's header.
fn registers(machine: &Machine, function: u64) -> std::ops::Range<u64> {
    let count = if is_bridge(machine, function) { 2 } else { 6 };
    function + BAR_0..function + BAR_0 + 4 * count
}

/// Writes ones to a register, and returns what sticks and what was there before.
fn ones(machine: &mut Machine, register: u64) -> (u64, u64) {
    let before = read(machine, register, 4);
    machine.write(register, 4, 0xffff_ffff);
    (read(machine, register, 4), before)
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

/// Linux (6.12; `pci_scan_child_bus_extend`, `__pci_read_base`, `pci_read_bridge_windows`,
/// `pci_scan_bridge_extend` with PCI_REASSIGN_ALL_BUS, `pci_bus_assign_resources`, `pci_setup_bridge`,
/// `pci_enable_bridge`): finds and sizes what is on a bus, takes all bridges there their numbers, gives
/// them new ones and goes down. Then it sets BARs, those below a bridge before the bridge's windows, and
/// drivers turn decode on.
fn linux(machine: &mut Machine) -> Found {
    /// With decode off, each half by itself.
    fn size(machine: &mut Machine, function: u64) -> Vec<Sized> {
        let mut found = vec![];
        let mut registers = registers(machine, function).step_by(4);
        while let Some(register) = registers.next() {
            let command = read(machine, function + COMMAND, 2);
            if command & 3 != 0 {
                machine.write(function + COMMAND, 2, command & !3);
            }
            let (low, before) = ones(machine, register);
            machine.write(register, 4, before);
            let mut high = 0;
            if low & 0b110 == 0b100 {
                let before;
                (high, before) = ones(machine, register + 4);
                machine.write(register + 4, 4, before);
                registers.next();
            }
            if command & 3 != 0 {
                machine.write(function + COMMAND, 2, command);
            }
            if low != 0 {
                found.push(Sized::new(register, low, high));
            }
        }
        found
    }
    fn probe_windows(machine: &mut Machine, bridge: u64) {
        machine.write(bridge + IO_BASE, 2, 0xe0f0);
        assert_eq!(read(machine, bridge + IO_BASE, 2), 0, "no I/O window");
        machine.write(bridge + IO_BASE, 2, 0);
        if read(machine, bridge + PREF_BASE, 4) & 0xfff0_fff0 == 0 {
            machine.write(bridge + PREF_BASE, 4, 0xffe0_fff0);
            assert_eq!(read(machine, bridge + PREF_BASE, 4), 0xffe1_fff1);
            machine.write(bridge + PREF_BASE, 4, 0);
        }
        let (upper, before) = ones(machine, bridge + PREF_BASE_UPPER);
        machine.write(bridge + PREF_BASE_UPPER, 4, before);
        assert_eq!(upper, 0xffff_ffff, "64 bits");
    }
    type Bars = BTreeMap<u64, Vec<Sized>>;
    fn scan(machine: &mut Machine, found: &mut Found, bars: &mut Bars, bus: u64, next: &mut u64) {
        let mut bridges = vec![];
        // Below a port Linux looks at device 0 only (`only_one_child`).
        for number in 0..if bus == 0 { 32 } else { 1 } {
            for (slot, id) in device(machine, bus, number) {
                let function = at(bus, slot);
                found.functions.push((bus, slot, id));
                let sized = size(machine, function);
                bars.insert(function, sized);
                if is_bridge(machine, function) {
                    probe_windows(machine, function);
                    bridges.push(function);
                }
            }
        }
        for pass in [0, 1] {
            for &bridge in &bridges {
                let buses = read(machine, bridge + PRIMARY_BUS, 4);
                let control = read(machine, bridge + BRIDGE_CONTROL, 2);
                machine.write(bridge + BRIDGE_CONTROL, 2, control & !0x20);
                if pass == 0 {
                    machine.write(bridge + PRIMARY_BUS, 4, buses & !0xff_ffff);
                } else {
                    machine.write(bridge + STATUS, 2, 0xffff);
                    let secondary = *next;
                    *next += 1;
                    let numbers = bus | secondary << 8 | 0xff << 16;
                    machine.write(bridge + PRIMARY_BUS, 4, buses & !0xff_ffff | numbers);
                    assert!(device(machine, secondary + 1, 0).is_empty());
                    scan(machine, found, bars, secondary, next);
                    machine.write(bridge + SUBORDINATE_BUS, 1, *next - 1);
                }
                machine.write(bridge + BRIDGE_CONTROL, 2, control);
            }
        }
    }
    /// `pci_std_update_resource`.
    fn place(machine: &mut Machine, found: &mut Found, bar: Sized, place: u64) {
        let command = bar.register & !0xfff | COMMAND;
        let before = read(machine, command, 2);
        if bar.wide {
            machine.write(command, 2, before & !MEMORY);
        }
        machine.write(bar.register, 4, place & 0xffff_ffff);
        assert_eq!(read(machine, bar.register, 4) & !0xf, place & 0xffff_ffff);
        if bar.wide {
            machine.write(bar.register + 4, 4, place >> 32);
            assert_eq!(read(machine, bar.register + 4, 4), place >> 32);
            machine.write(command, 2, before);
        }
        found.bars.push((bar.register, place, bar.size));
    }
    let (mut found, mut bars) = (Found::default(), BTreeMap::new());
    scan(machine, &mut found, &mut bars, 0, &mut 1);
    let (mut low, mut high) = (LOW.0, HIGH.0);
    let functions = found.functions.clone();
    let on = |bus| functions.iter().filter(move |f| f.0 == bus);
    for &(_, slot, _) in on(0) {
        for bar in bars[&at(0, slot)].clone() {
            let next = if bar.wide { &mut high } else { &mut low };
            let address = bar.take(next);
            place(machine, &mut found, bar, address);
        }
    }
    let mut bridges = vec![];
    for &(_, slot, _) in on(0) {
        let bridge = at(0, slot);
        if !is_bridge(machine, bridge) {
            continue;
        }
        low = low.next_multiple_of(MIB);
        high = high.next_multiple_of(MIB);
        let (low_first, high_first) = (low, high);
        let secondary = read(machine, bridge + SECONDARY_BUS, 1);
        bridges.push((secondary, bridge));
        for &(_, slot, _) in on(secondary) {
            for bar in bars[&at(secondary, slot)].clone() {
                let is_high = bar.wide && bar.prefetchable;
                let address = bar.take(if is_high { &mut high } else { &mut low });
                place(machine, &mut found, bar, address);
            }
        }
        low = low.next_multiple_of(MIB);
        high = high.next_multiple_of(MIB);
        let window = |first: u64, end: u64| match first == end {
            true => (0x0000_fff0, 0, 0),
            false => {
                let (last, field) = (end - 1, 0xfff0);
                let both = first >> 16 & field | (last >> 16 & field) << 16;
                (both, first >> 32, last >> 32)
            }
        };
        machine.write(bridge + IO_UPPER, 4, 0x0000_ffff);
        machine.write(bridge + IO_BASE, 2, 0x00f0);
        machine.write(bridge + IO_UPPER, 4, 0);
        machine.write(bridge + MEMORY_BASE, 4, window(low_first, low).0);
        let (both, base_upper, limit_upper) = window(high_first, high);
        machine.write(bridge + PREF_LIMIT_UPPER, 4, 0);
        machine.write(bridge + PREF_BASE, 4, both);
        machine.write(bridge + PREF_BASE_UPPER, 4, base_upper);
        machine.write(bridge + PREF_LIMIT_UPPER, 4, limit_upper);
        machine.write(bridge + BRIDGE_CONTROL, 2, 0x2);
    }
    // Drivers come in any order: the last function first. Each enables the bridges above first.
    for &(bus, slot, _) in functions.iter().rev() {
        let above = bridges.iter().filter(|(below, _)| *below == bus);
        for config in above.map(|(_, bridge)| *bridge).chain([at(bus, slot)]) {
            for bit in [MEMORY, MASTER] {
                let command = read(machine, config + COMMAND, 2);
                machine.write(config + COMMAND, 2, command | bit);
            }
        }
    }
    found
}

/// U-Boot (2026.07; `pci_bind_bus_devices`, `dm_pciauto_setup_device`, `dm_pci_hose_probe_bus`): finds what
/// is on a bus, and then sizes, places and enables one after the other, with decode as it was; it goes down
/// where it meets a bridge, whose windows still have no limit while functions below are enabled already.
fn uboot(machine: &mut Machine) -> Found {
    fn bind(machine: &Machine, bus: u64) -> Vec<(u64, u64)> {
        let mut found = vec![];
        let mut is_multi = false;
        for slot in 0..if bus == 0 { 256 } else { 8 } {
            let function = at(bus, slot);
            if slot % 8 == 0 {
                is_multi = false;
            } else if !is_multi {
                continue;
            }
            let vendor = read(machine, function + VENDOR_ID, 2);
            if matches!(vendor, 0 | 0xffff) {
                continue;
            }
            if slot % 8 == 0 {
                is_multi = read(machine, function + HEADER_TYPE, 1) & 0x80 != 0;
            }
            let id = read(machine, function + VENDOR_ID + 2, 2);
            found.push((slot, id << 16 | vendor));
        }
        found
    }
    fn scan(machine: &mut Machine, found: &mut Found, bus: u64, last: &mut u64, place: &mut u64) {
        for (slot, id) in bind(machine, bus) {
            found.functions.push((bus, slot, id));
            let config = at(bus, slot);
            setup(machine, found, config, place);
            if !is_bridge(machine, config) {
                continue;
            }
            let command = read(machine, config + COMMAND, 2);
            *last += 1;
            machine.write(config + PRIMARY_BUS, 1, bus);
            machine.write(config + SECONDARY_BUS, 1, *last);
            machine.write(config + SUBORDINATE_BUS, 1, 0xff);
            *place = place.next_multiple_of(MIB);
            machine.write(config + MEMORY_BASE, 2, *place >> 16 & 0xfff0);
            machine.write(config + PREF_BASE, 2, 0xfff1);
            machine.write(config + PREF_LIMIT, 2, 0x0001);
            machine.write(config + PREF_BASE_UPPER, 2, 0);
            machine.write(config + PREF_LIMIT_UPPER, 2, 0);
            machine.write(config + IO_BASE, 1, 0xf0);
            machine.write(config + IO_BASE + 1, 1, 0);
            machine.write(config + COMMAND, 2, command | MEMORY | MASTER);
            scan(machine, found, *last, last, place);
            machine.write(config + SUBORDINATE_BUS, 1, *last);
            *place = place.next_multiple_of(MIB);
            machine.write(config + MEMORY_LIMIT, 2, (*place - 1) >> 16 & 0xfff0);
        }
    }
    fn setup(machine: &mut Machine, found: &mut Found, config: u64, next: &mut u64) {
        let mut command = read(machine, config + COMMAND, 2) & !3 | MASTER;
        let mut registers = registers(machine, config).step_by(4);
        while let Some(register) = registers.next() {
            let (low, _) = ones(machine, register);
            if low == 0 {
                continue;
            }
            let mut high = 0;
            if low & 0b110 == 0b100 {
                (high, _) = ones(machine, register + 4);
                registers.next();
            }
            let bar = Sized::new(register, low, high);
            let place = bar.take(next);
            machine.write(register, 4, place);
            if bar.wide {
                machine.write(register + 4, 4, 0);
            }
            found.bars.push((register, place, bar.size));
            command |= MEMORY;
        }
        let rom = config
            + if is_bridge(machine, config) {
                ROM_1
            } else {
                ROM
            };
        machine.write(rom, 4, 0xffff_fffe);
        let sized = read(machine, rom, 4);
        if sized != 0 {
            let size = (0xffff_ffff << 32 | sized & !1).wrapping_neg();
            *next = next.next_multiple_of(size);
            machine.write(rom, 4, *next);
            *next += size;
            command |= MEMORY;
        }
        machine.write(config + COMMAND, 2, command);
        machine.write(config + CACHE_LINE_SIZE, 1, 8);
        machine.write(config + CACHE_LINE_SIZE + 1, 1, 0x80);
    }
    let mut found = Found::default();
    scan(machine, &mut found, 0, &mut 0, &mut { LOW.0 });
    found
}

/// UEFI (edk2, August 2026; `ResetAllPpbBusNumber`, `PciScanBus`, `GatherPpbInfo`, `BarExisted`,
/// `InitializePpb`, `ProgramResource`): takes all bridges their numbers, from the bottom, and gives them new
/// ones; then turns all decode off, sizes, and closes the bridges' windows; then sets BARs, those below a
/// bridge before its windows, of which only those that are needed.
fn uefi(machine: &mut Machine) -> Found {
    fn reset(machine: &mut Machine, bus: u64) {
        let functions = (0..32).flat_map(|number| device(machine, bus, number));
        let functions: Vec<_> = functions.collect();
        for (slot, _) in functions {
            let config = at(bus, slot);
            if !is_bridge(machine, config) {
                continue;
            }
            let numbers = read(machine, config + PRIMARY_BUS, 4);
            if numbers >> 8 & 0xff != 0 {
                reset(machine, numbers >> 8 & 0xff);
            }
            machine.write(config + PRIMARY_BUS, 4, numbers & !0xff_ffff);
        }
    }
    fn scan(machine: &mut Machine, found: &mut Found, bus: u64, last: &mut u64) {
        for number in 0..32 {
            for (slot, id) in device(machine, bus, number) {
                found.functions.push((bus, slot, id));
                let config = at(bus, slot);
                if !is_bridge(machine, config) {
                    continue;
                }
                *last += 1;
                machine.write(config + PRIMARY_BUS, 2, *last << 8 | bus);
                machine.write(config + SUBORDINATE_BUS, 1, 0xff);
                scan(machine, found, *last, last);
                machine.write(config + SUBORDINATE_BUS, 1, *last);
            }
        }
    }
    fn gather(machine: &mut Machine, config: u64) -> Vec<Sized> {
        let command = read(machine, config + COMMAND, 2);
        machine.write(config + COMMAND, 2, command & !7);
        let mut exists = |register| {
            let (sticks, before) = ones(machine, register);
            machine.write(register, 4, before);
            sticks
        };
        let mut found = vec![];
        let is_bridge = exists(config + PREF_BASE) & 0xfff0_fff0 == 0xfff0_fff0
            && exists(config + PREF_BASE_UPPER) != 0
            && exists(config + MEMORY_BASE) == 0xfff0_fff0;
        let mut registers =
            (config + BAR_0..config + BAR_0 + if is_bridge { 8 } else { 24 }).step_by(4);
        while let Some(register) = registers.next() {
            let low = exists(register);
            if low == 0 {
                continue;
            }
            let wide = low & 0b110 == 0b100;
            let high = if wide { exists(register + 4) } else { 0 };
            if wide {
                registers.next();
            }
            found.push(Sized::new(register, low, high));
        }
        found
    }
    fn close(machine: &mut Machine, bridge: u64) {
        for (base, bytes) in [
            (IO_BASE, 1),
            (MEMORY_BASE, 2),
            (PREF_BASE, 2),
            (PREF_BASE_UPPER, 4),
            (IO_UPPER, 2),
        ] {
            machine.write(bridge + base, bytes, 0xffff_ffff);
            machine.write(bridge + base + bytes, bytes, 0);
        }
        machine.write(bridge + INTERRUPT_LINE, 1, 0);
    }
    fn place(machine: &mut Machine, found: &mut Found, bar: Sized, place: u64) {
        machine.write(bar.register, 4, place & 0xffff_ffff);
        if bar.wide {
            machine.write(bar.register + 4, 4, place >> 32);
        }
        found.bars.push((bar.register, place, bar.size));
    }
    let mut found = Found::default();
    reset(machine, 0);
    scan(machine, &mut found, 0, &mut 0);
    let functions = found.functions.clone();
    let mut bars = BTreeMap::new();
    for config in functions.iter().map(|&(bus, slot, _)| at(bus, slot)) {
        let sized = gather(machine, config);
        bars.insert(config, sized);
        if is_bridge(machine, config) {
            close(machine, config);
        }
    }
    let (mut low, mut high) = (LOW.0, HIGH.0);
    for &(_, slot, _) in functions.iter().filter(|f| f.0 == 0) {
        let config = at(0, slot);
        for bar in bars[&config].clone() {
            let address = bar.take(if bar.wide { &mut high } else { &mut low });
            place(machine, &mut found, bar, address);
        }
        if !is_bridge(machine, config) {
            continue;
        }
        low = low.next_multiple_of(MIB);
        high = high.next_multiple_of(MIB);
        let secondary = read(machine, config + SECONDARY_BUS, 1);
        let (low_first, high_first) = (low, high);
        for &(_, below, _) in functions.iter().filter(|f| f.0 == secondary) {
            for bar in bars[&at(secondary, below)].clone() {
                // A bridge's window above 4 GiB is for what is prefetchable (`DegradeResource`).
                let is_high = bar.wide && bar.prefetchable;
                let address = bar.take(if is_high { &mut high } else { &mut low });
                place(machine, &mut found, bar, address);
            }
        }
        low = low.next_multiple_of(MIB);
        high = high.next_multiple_of(MIB);
        if low != low_first {
            machine.write(config + MEMORY_BASE, 2, low_first >> 16);
            machine.write(config + MEMORY_LIMIT, 2, (low - 1) >> 16);
        }
        if high != high_first {
            machine.write(config + PREF_BASE, 2, high_first >> 16 & 0xffff);
            machine.write(config + PREF_LIMIT, 2, (high - 1) >> 16 & 0xffff);
            machine.write(config + PREF_BASE_UPPER, 4, high_first >> 32);
            machine.write(config + PREF_LIMIT_UPPER, 4, (high - 1) >> 32);
        }
    }
    for config in functions.iter().map(|&(bus, slot, _)| at(bus, slot)) {
        let command = read(machine, config + COMMAND, 2);
        machine.write(config + COMMAND, 2, command | MEMORY | MASTER | 1);
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
