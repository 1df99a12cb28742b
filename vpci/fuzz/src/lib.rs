//! Bodies of the fuzz targets for `vpci`: what a guest, and a device, could send.
//!
//! Each body takes bytes that mean something whatever they are, drives the machine of `vpci/tests` with
//! them, and checks after each step that a guest has nothing that is not its own. libFuzzer calls the
//! bodies (`targets/`, with the feature `libfuzzer`); `tests/replay.rs` calls them with every file of
//! `corpus/`, on any toolchain.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;

use vpci::{
    BarIndex, BarInfo, BarKind, BusAddress, ConfigAccess, Decoder, Function, Kind, Offset, PAGE,
    PhysicalConfig, Pin, Position, Sbdf, Setup, Size, Vendor,
};

#[path = "../../tests/check/mod.rs"]
mod check;
#[path = "../../tests/dump/mod.rs"]
mod dump;
#[expect(dead_code, reason = "the tests use all of it")]
#[path = "../../tests/machine/mod.rs"]
mod machine;
#[path = "../../tests/playground/mod.rs"]
mod playground;

use check::check;
use machine::{DOORBELL, Device, HIGH, LOW, Machine};
use playground::Step;

/// Devices of every kind that there is: plain, with MSI, with MSI-X in a BAR of its own and beside
/// registers, conventional, virtio, with small and with large BARs.
const DUMPS: [&str; 8] = [
    include_str!("../../tests/devices/nvme.dump"),
    include_str!("../../tests/devices/e1000e.dump"),
    include_str!("../../tests/devices/igb.dump"),
    include_str!("../../tests/devices/edu.dump"),
    include_str!("../../tests/devices/xhci.dump"),
    include_str!("../../tests/devices/virtio-net.dump"),
    include_str!("../../tests/devices/ivshmem.dump"),
    include_str!("../../tests/devices/megasas-gen2.dump"),
];

/// Where the machine has the first device's BARs, and how far apart devices are.
const HOST: u64 = 0x1000_0000;
const HOST_STRIDE: u64 = 0x1000_0000;

/// A number taken from the bytes; zeros follow their end.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        let len = N.min(self.0.len());
        let (now, rest) = self.0.split_at(len);
        bytes[..len].copy_from_slice(now);
        self.0 = rest;
        bytes
    }

    fn byte(&mut self) -> u8 {
        self.take::<1>()[0]
    }

    fn word(&mut self) -> u64 {
        u16::from_le_bytes(self.take()).into()
    }

    fn long(&mut self) -> u64 {
        u32::from_le_bytes(self.take()).into()
    }

    fn index(&mut self, len: usize) -> usize {
        usize::from(self.byte()) % len
    }

    /// A value that a hostile guest would try: near the edges of the windows, or any.
    fn value(&mut self) -> u64 {
        let near = |base: u64, page: u8| base.wrapping_add(u64::from(page % 16) * 0x1000);
        match self.byte() % 8 {
            0 => near(LOW.0, self.byte()),
            1 => near(LOW.0 + LOW.1 - 0x8000, self.byte()),
            2 => near(HIGH.0, self.byte()),
            3 => HIGH.0 >> 32,
            4 => DOORBELL,
            5 => u64::MAX,
            6 => self.byte().into(),
            _ => self.long() << 32 | self.long(),
        }
    }

    fn bytes(&mut self) -> u64 {
        1 << (self.byte() & 3)
    }
}

/// Assigns three of the devices, as the first bytes choose.
fn machine_of(input: &mut Input<'_>) -> Machine {
    let mut machine = Machine::new();
    for (slot, host) in ["00:01.0", "00:02.0", "00:02.3"].iter().zip(1..) {
        let dump = dump::parse(DUMPS[input.index(DUMPS.len())], HOST + host * HOST_STRIDE);
        let device = device_of(&dump.dwords);
        // Each of them can be passed through.
        machine.try_assign(slot, device, &dump.bars).unwrap();
    }
    machine
}

fn device_of(dwords: &[u32]) -> Device {
    let device = Device::new(&[]);
    let bytes = dwords.iter().flat_map(|dword| dword.to_le_bytes());
    *device.bytes.borrow_mut() = bytes.collect();
    device
}

fn ecam(machine: &Machine, function: usize) -> u64 {
    vpci::ecam::offset_of(machine.functions[function].sbdf)
}

/// Accesses of any width and alignment to the config space of functions, bridge, stub and nobody.
pub fn config_access(data: &[u8]) {
    let mut input = Input(data);
    let mut machine = machine_of(&mut input);
    while !input.is_empty() {
        let what = input.byte();
        let base = match what & 7 {
            function @ 0..=2 => ecam(&machine, function.into()),
            3 => 0,
            4 => 0x8000 * 2,
            _ => input.long(),
        };
        let (offset, bytes) = (base + (input.word() & 0xfff), input.bytes());
        if what & 0x80 == 0 {
            let value = input.value();
            machine.write(offset, bytes, value);
            check(&machine);
        } else if let Some(value) = machine.read(offset, bytes) {
            // What is read in one piece is what its bytes are.
            let parts = (0..bytes).map(|at| machine.read(offset + at, 1).unwrap() << (8 * at));
            assert_eq!(
                parts.fold(0, |whole, part| whole | part),
                value,
                "{offset:#x} {bytes}"
            );
        }
    }
    machine.reset();
    check(&machine);
    assert!(
        machine.stage2.is_empty(),
        "something stays mapped after a reset"
    );
}

/// Root ports whose buses are renumbered, whose windows move and which let through or not, while what is
/// below them is programmed, and device models claim and give back. After each step all of it is held
/// against a model that goes through the ports at each access.
pub fn ports(data: &[u8]) {
    let mut input = Input(data);
    let mut machine = playground::playground();
    let mut claimed = Vec::new();
    while !input.is_empty() {
        let step = step_of(&mut input);
        playground::take(&mut machine, &mut claimed, &step);
        // Most numbers lead nowhere: all of them would take most of the time.
        let buses = (0..8)
            .chain((input.byte()..=255).step_by(85))
            .chain([254, 255]);
        playground::check(&machine, &claimed, buses);
    }
}

/// Takes a step from the bytes: most are to registers that decide what gets through.
fn step_of(input: &mut Input<'_>) -> Step {
    /// Registers of a port: offset and bytes.
    #[rustfmt::skip]
    const REGISTERS: [(u64, u64); 16] = [
        (0x04, 2), (0x18, 4), (0x19, 1), (0x1a, 1), (0x20, 4), (0x20, 2), (0x22, 2), (0x24, 4),
        (0x26, 2), (0x28, 4), (0x2c, 4), (0x3e, 2), (0x50, 2), (0x68, 2), (0x94, 2), (0x04, 4),
    ];
    const SLOTS: [u64; 6] = [0, 3, 0x10, 0x20, 0x21, 0xe0];
    let what = input.byte();
    let which = usize::from(what >> 4);
    let page = |input: &mut Input<'_>| LOW.0 + u64::from(input.byte() % 32) * 0x2_0000;
    match what & 0xf {
        0..=5 => {
            let (offset, bytes) = REGISTERS[input.index(16)];
            let value = input.long();
            Step::Port(which % playground::PORTS.len(), offset, bytes, value)
        }
        6 => {
            let (offset, bytes) = (input.word() & 0xfff, input.bytes());
            Step::Port(
                which % playground::PORTS.len(),
                offset,
                bytes,
                input.value(),
            )
        }
        7..=9 => {
            let (bus, slot) = (u64::from(input.byte()), SLOTS[which % SLOTS.len()]);
            Step::Function(bus, slot, 4, 2, input.byte().into())
        }
        10..=12 => {
            let (bus, slot) = (u64::from(input.byte()), SLOTS[which % SLOTS.len()]);
            Step::Function(bus, slot, 0x10, 8, page(input))
        }
        13 => Step::Claim(which % 2, page(input)),
        14 => Step::Unclaim(which % 2, page(input)),
        _ if which == 0 => Step::Reset,
        _ => {
            let (bus, offset) = (u64::from(input.byte()), input.word() & 0xfff);
            Step::Function(
                bus,
                SLOTS[which % SLOTS.len()],
                offset,
                input.bytes(),
                input.value(),
            )
        }
    }
}

/// A device whose config space is whatever the bytes are: what it claims of itself does no harm.
pub fn capability_chain(data: &[u8]) {
    let mut input = Input(data);
    let base = dump::parse(DUMPS[input.index(DUMPS.len())], HOST);
    let mut dwords = base.dwords;
    let flags = input.byte();
    while !input.is_empty() {
        let at = input.word() % 1024;
        let [a, b, c, d] = input.take();
        dwords[usize::try_from(at).unwrap()] = u32::from_le_bytes([a, b, c, d]);
    }
    let position = if flags & 1 == 0 {
        Position::RootBus
    } else {
        Position::BelowPort
    };
    let pin = if flags & 2 == 0 {
        Pin::Hidden
    } else {
        Pin::Shown
    };
    let vendor = if flags & 4 == 0 {
        Vendor::Hidden
    } else {
        Vendor::Shown
    };
    let kind = match flags >> 3 & 3 {
        1 => Kind::Physical,
        2 => Kind::Virtual {
            vendor: 0x8086,
            device: 0x10ca,
        },
        _ => Kind::Ordinary,
    };
    let setup = Setup {
        bars: &base.bars,
        doorbell: BusAddress::new(DOORBELL),
        position,
        pin,
        vendor,
        kind,
    };
    let Ok(mut function) = Function::new(device_of(&dwords), &setup) else {
        return;
    };
    check_chain(&function);
    check_extended_chain(&function);
    for offset in (0..0x1000).step_by(4) {
        let _ = function.write(access(offset), u32::MAX);
        while function.next_effect().is_some() {}
    }
    check_chain(&function);
    check_extended_chain(&function);
}

fn access(offset: u32) -> ConfigAccess {
    let offset = Offset::in_function(offset.into());
    ConfigAccess::new(Sbdf::from_rid(0, 8), offset, Size::Four).unwrap()
}

/// The chain that a guest follows ends, stays in its space, and has only what is on the list.
fn check_chain<P: PhysicalConfig>(function: &Function<P>) {
    const SHOWN: [u32; 5] = [0x01, 0x05, 0x09, 0x10, 0x11];
    let mut seen = BTreeSet::new();
    let mut at = function.read(access(0x34)) & 0xff;
    while at != 0 {
        assert!(
            at >= 0x40 && at.is_multiple_of(4) && seen.insert(at),
            "{at:#x} in {seen:x?}"
        );
        let header = function.read(access(at));
        assert!(
            SHOWN.contains(&(header & 0xff)),
            "capability {:#x}",
            header & 0xff
        );
        at = header >> 8 & 0xff;
    }
}

/// The same of the extended chain.
fn check_extended_chain<P: PhysicalConfig>(function: &Function<P>) {
    /// Null, AER, serial number, ARI, LTR.
    const SHOWN: [u32; 5] = [0x0000, 0x0001, 0x0003, 0x000e, 0x0018];
    let mut seen = BTreeSet::new();
    let mut at = 0x100_u32;
    while at != 0 {
        assert!(
            at >= 0x100 && at.is_multiple_of(4) && seen.insert(at),
            "{at:#x} in {seen:x?}"
        );
        let header = function.read(access(at));
        assert!(
            SHOWN.contains(&(header & 0xffff)),
            "extended capability {:#x}",
            header & 0xffff
        );
        at = header >> 20;
    }
}

/// BARs of any device, sized, placed, moved and turned on and off in any order.
pub fn bar_programming(data: &[u8]) {
    let mut input = Input(data);
    let mut machine = Machine::new();
    for (slot, number) in ["00:01.0", "00:02.0"].iter().zip(1..) {
        let device = Device::new(&[(0x00, 0x0001_1234), (0x08, 0xff00_0000)]);
        let bars = bars_of(&mut input, HOST + number * 0x100_0000_0000);
        if machine.try_assign(slot, device, &bars).is_err() {
            return;
        }
    }
    while !input.is_empty() {
        let what = input.byte();
        let base = ecam(&machine, usize::from(what & 1));
        match what >> 1 & 3 {
            0 => machine.write(base + 4, 2, input.byte().into()),
            1 | 2 => {
                let register = 0x10 + u64::from(input.byte() % 9) * 4;
                let (bytes, value) = (input.bytes(), input.value());
                machine.write(base + register, bytes, value);
            }
            _ => machine.reset(),
        }
        check(&machine);
    }
}

/// A set of BARs, of sizes and kinds that may make no sense together.
fn bars_of(input: &mut Input<'_>, mut host: u64) -> Vec<BarInfo> {
    let mut bars = Vec::new();
    for _ in 0..input.byte() % 7 {
        let [index, kind, size] = input.take();
        let kind = match kind % 8 {
            0 => BarKind::Io,
            1..=3 => BarKind::Memory32,
            4 => BarKind::Rom,
            _ => BarKind::Memory64,
        };
        let size = 1 << (size % 38);
        host = host.next_multiple_of(size);
        bars.push(BarInfo {
            index: match kind {
                BarKind::Rom => BarIndex::ROM,
                _ => BarIndex::new(index % BarIndex::COUNT).unwrap(),
            },
            kind,
            prefetchable: size & 1 == 0,
            size,
            host,
        });
        host += size.max(0x1000);
    }
    bars
}

/// Stores to MSI-X tables and what lies beside them, with the control registers set in between.
pub fn msix_table(data: &[u8]) {
    let mut input = Input(data);
    let mut machine = machine_of(&mut input);
    for function in 0..machine.functions.len() {
        place_bars(&mut machine, function);
    }
    while !input.is_empty() {
        let what = input.byte();
        let function = usize::from(what & 3) % machine.functions.len();
        if what & 4 != 0 {
            let (offset, value) = (0x40 + input.word() % 0xc0, input.value());
            let base = ecam(&machine, function);
            machine.write(base + offset, input.bytes(), value);
        } else {
            touch_bar(&mut machine, function, what & 8 != 0, &mut input);
        }
        check(&machine);
        check_vectors(&machine);
    }
}

/// Puts the BARs of a function one after the other into the windows, and turns decode on.
fn place_bars(machine: &mut Machine, function: usize) {
    let base = ecam(machine, function);
    let bars: Vec<_> = machine.functions[function].function.bars().collect();
    let mut at = LOW.0 + 0x400_0000 * (function as u64 + 1);
    for bar in bars {
        at = at.next_multiple_of(bar.size);
        match bar.kind {
            BarKind::Rom => machine.write(base + 0x30, 4, at | 1),
            _ => machine.write(base + 0x10 + u64::from(bar.index.get()) * 4, 4, at),
        }
        at += bar.size;
    }
    machine.write(base + 4, 2, 6);
}

/// Loads from, or stores to, a BAR where it is now.
fn touch_bar(machine: &mut Machine, function: usize, load: bool, input: &mut Input<'_>) {
    let bar = usize::from(input.byte()) % BarIndex::RANGES;
    let (offset, bytes) = (input.word(), input.bytes());
    let wanted = |decoder: &Decoder<usize>| {
        matches!(decoder, Decoder::Bar { function: id, bar: index }
            if *id == function && index.index() == bar)
    };
    let mut granted = machine.bus.memory.granted();
    let Some((range, _)) = granted.find(|(_, decoder)| wanted(decoder)) else {
        return;
    };
    drop(granted);
    let address = range.start().get() + offset;
    let host = if load {
        machine.load(address, bytes).err()
    } else {
        machine.store(address, bytes, input.value()).err()
    };
    if let Some(host) = host {
        // A processor translates each page that an unaligned access touches; this is the first.
        check::check_host(machine, host, bytes.min(PAGE - host % PAGE));
    }
}

/// A vector that may be sent is unmasked in the table, aims at the domain's doorbell, and is there.
fn check_vectors(machine: &Machine) {
    for assigned in &machine.functions {
        let vectors = assigned
            .function
            .msix_layout()
            .map_or(0, |layout| layout.vectors);
        for vector in assigned.vectors.keys() {
            assert!(*vector < vectors, "vector {vector} of {vectors}");
        }
    }
}
