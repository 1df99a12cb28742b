//! Walks, places, groups and resets simulated machines.

mod ari;
mod ownership;
mod random;
mod simulation;
mod sriov;

use std::time::Duration;

use pci::{
    Device, Groups, Header, Hierarchy, HostBridge, Method, OutOfMemory, PortKind, Problem,
    Progress, Reason, ResetError, RidMap, Window,
};
use simulation::{Machine, Node, now, time, wait};
use vpci::{BarIndex, BarKind, BusAddress, BusRange, Offset, Sbdf};

fn bar(index: u8) -> BarIndex {
    BarIndex::new(index).expect("a BAR")
}

fn name(text: &str) -> Sbdf {
    text.parse().expect("a name")
}

/// Windows like those of QEMU's `virt`.
fn host() -> HostBridge {
    let window = |start, size| Window {
        bus: BusRange::new(BusAddress::new(start), size).expect("a range"),
        host: start,
        prefetchable: false,
    };
    HostBridge {
        segment: 0,
        first_bus: 0,
        last_bus: 255,
        windows: vec![
            window(0x1000_0000, 0x2eff_0000),
            window(0x80_0000_0000, 0x80_0000_0000),
        ],
    }
}

/// Enumerates a machine of which no virtual functions are wanted.
fn enumerate(machine: &Machine, host: &HostBridge) -> Result<Hierarchy, OutOfMemory> {
    pci::enumerate(machine, host, &[], &mut |_| {})
}

fn host_bridge() -> Node {
    Node::endpoint(0x1b36, 0x0008, 0x060000)
}

fn nvme() -> Node {
    Node::endpoint(0x1b36, 0x0010, 0x010802)
        .bar(0, 4, 0x4000)
        .msix()
        .power(true)
        .express(0)
        .function_level_reset()
}

fn edu() -> Node {
    Node::endpoint(0x1234, 0x11e8, 0x00ff00)
        .bar(0, 0, 0x10_0000)
        .msi()
}

fn root_port() -> Node {
    Node::bridge(0x1b36, 0x000c)
        .bar(0, 0, 0x1000)
        .msix()
        .express(4)
        .acs(0x5f)
}

fn downstream() -> Node {
    Node::bridge(0x104c, 0x8233).msi().express(6)
}

fn upstream() -> Node {
    Node::bridge(0x104c, 0x8232).msi().express(5)
}

fn virtio() -> Node {
    Node::endpoint(0x1af4, 0x1041, 0x020000)
        .bar(1, 0, 0x1000)
        .bar(4, 0xc, 0x4000)
        .msix()
}

/// A machine with ports, a switch, and both kinds of conventional bridge.
///
/// ```text
/// 00:00.0 host bridge      00:01.0 nvme
/// 00:02.0 root port        01:00.0 nvme
/// 00:03.0 root port        02:00.0 upstream - 03:00.0 down - 04:00.0 virtio
///                                             03:01.0 down - 05:00.0 edu
/// 00:04.0 pci-bridge       06:01.0 edu, 06:02.0 edu
/// 00:05.0 root port        07:00.0 pcie-pci-bridge - 08:03.0 edu
/// 00:1f.0, .1              two functions
/// ```
fn machine() -> Machine {
    let switch = upstream()
        .with(
            0,
            0,
            downstream().with(0, 0, virtio().express(0).power(false)),
        )
        .with(1, 0, downstream().with(0, 0, edu()));
    let conventional = Node::bridge(0x1b36, 0x0001)
        .bar(0, 4, 0x100)
        .with(1, 0, edu())
        .with(2, 0, edu());
    let adapter = Node::bridge(0x1b36, 0x000e)
        .bar(0, 4, 0x100)
        .express(7)
        .with(3, 0, edu());
    let two = || {
        Node::endpoint(0x8086, 0x2922, 0x010601)
            .bar(4, 1, 32)
            .bar(5, 0, 0x1000)
    };
    Machine::new(
        0,
        vec![
            ((0, 0), host_bridge()),
            ((1, 0), nvme()),
            (
                (2, 0),
                root_port().with(0, 0, nvme()).left(0x18, &[0, 9, 9]),
            ),
            ((3, 0), root_port().with(0, 0, switch)),
            ((4, 0), conventional),
            ((5, 0), root_port().with(0, 0, adapter)),
            ((0x1f, 0), two().multi_function()),
            ((0x1f, 1), two()),
        ],
    )
}

fn device<'a>(found: &'a Hierarchy, sbdf: &str) -> &'a Device {
    found
        .find(name(sbdf))
        .unwrap_or_else(|| panic!("{sbdf} was not found"))
}

#[test]
fn buses_are_numbered_depth_first() {
    let machine = machine();
    let found = enumerate(&machine, &host()).expect("memory");
    let names: Vec<_> = found.devices().iter().map(|device| device.sbdf).collect();
    let expected = [
        "00:00.0", "00:01.0", "00:02.0", "00:03.0", "00:04.0", "00:05.0", "00:1f.0", "00:1f.1",
        "01:00.0", "02:00.0", "03:00.0", "03:01.0", "04:00.0", "05:00.0", "06:01.0", "06:02.0",
        "07:00.0", "08:03.0",
    ];
    assert_eq!(names, expected.map(name));
    assert_eq!(found.problems(), []);
    for (sbdf, buses) in [
        ("00:02.0", [0, 1, 1]),
        ("00:03.0", [0, 2, 5]),
        ("02:00.0", [2, 3, 5]),
        ("03:00.0", [3, 4, 4]),
        ("03:01.0", [3, 5, 5]),
        ("00:04.0", [0, 6, 6]),
        ("00:05.0", [0, 7, 8]),
        ("07:00.0", [7, 8, 8]),
    ] {
        let in_bridge = machine.at(name(sbdf), |node| node.space[0x18..0x1b].to_vec());
        assert_eq!(in_bridge.as_deref(), Some(&buses[..]), "{sbdf}");
        let bridge = device(&found, sbdf).bridge().expect("a bridge");
        assert_eq!([bridge.secondary, bridge.subordinate], buses[1..], "{sbdf}");
    }
    let switch = device(&found, "00:03.0").bridge().expect("a bridge");
    assert_eq!(
        (switch.children.clone(), switch.below.clone()),
        (9..10, 9..14)
    );
    let above: Vec<_> = found
        .above(device(&found, "05:00.0"))
        .map(|device| device.sbdf)
        .collect();
    assert_eq!(above, ["03:01.0", "02:00.0", "00:03.0"].map(name));
}

#[test]
fn what_a_function_is_can_be_read_off() {
    let machine = machine();
    let found = enumerate(&machine, &host()).expect("memory");
    let nvme = device(&found, "01:00.0");
    assert_eq!(
        (nvme.vendor, nvme.device, nvme.class),
        (0x1b36, 0x0010, 0x010802)
    );
    assert_eq!((nvme.port(), nvme.usable), (Some(PortKind::Endpoint), true));
    assert_eq!(nvme.capabilities.msix, Offset::new(0x40));
    assert_eq!(nvme.capabilities.power, Offset::new(0x4c));
    assert_eq!(nvme.capabilities.express, Offset::new(0x54));
    assert_eq!(nvme.capabilities.msi, None);
    let vectors = |sbdf| device(&found, sbdf).capabilities.vectors;
    let expected = [
        ("01:00.0", 4), // MSI-X
        ("05:00.0", 1), // MSI
        ("00:1f.1", 0),
    ];
    for (sbdf, count) in expected {
        assert_eq!(vectors(sbdf), count, "{sbdf}");
    }
    let port = device(&found, "00:02.0");
    assert_eq!(
        (port.port(), port.capabilities.acs),
        (Some(PortKind::RootPort), Offset::new(0x100))
    );
    // Redirection, and no requests with addresses that claim to be translated.
    assert_eq!((port.acs.capability, port.acs.enabled), (0x5f, 0x1f));
    assert_eq!(machine.at(port.sbdf, |node| node.word(0x106)), Some(0x1f));
    let virtio = device(&found, "04:00.0");
    let info = virtio.bars[1].and_then(|bar| bar.info()).expect("placed");
    assert_eq!(
        (info.index, info.kind, info.size),
        (bar(1), BarKind::Memory32, 0x1000)
    );
    let bar = virtio.bars[4].expect("BAR 4");
    assert_eq!(
        (bar.kind, bar.prefetchable, bar.size),
        (BarKind::Memory64, true, 0x4000)
    );
    let ahci = device(&found, "00:1f.1");
    assert_eq!(
        ahci.bars[4].map(|bar| (bar.kind, bar.placement)),
        Some((BarKind::Io, None))
    );
}

#[test]
fn bars_have_places_of_their_own() {
    let machine = machine();
    let found = enumerate(&machine, &host()).expect("memory");
    check_placement(&machine, &found, &host());
    // Largest alignment first; the bridges' windows are multiples of a MiB.
    let place = |sbdf: &str, bar: usize| {
        let placement = device(&found, sbdf).bars[bar].and_then(|bar| bar.placement);
        placement.map(|placement| placement.bus.get())
    };
    assert_eq!(place("04:00.0", 4), Some(0x80_0000_0000));
    assert_eq!(
        place("06:02.0", 0),
        place("06:01.0", 0).map(|first| first + 0x10_0000)
    );
    // A BAR of 256 bytes has a page for itself.
    assert_eq!(place("00:04.0", 0).map(|address| address % 4096), Some(0));
}

/// Checks that each placed BAR is reached by its address, alone in its pages, and by nothing else.
fn check_placement(machine: &Machine, found: &Hierarchy, host: &HostBridge) {
    let mut pages = std::collections::BTreeSet::new();
    for (index, device) in found.devices().iter().enumerate() {
        let mut path: Vec<_> = found
            .above(device)
            .map(|d| (d.sbdf.device(), d.sbdf.function()))
            .collect();
        path.reverse();
        path.push((device.sbdf.device(), device.sbdf.function()));
        let command = machine
            .at(device.sbdf, |node| node.word(4))
            .expect("present");
        let expected = if device.bridge().is_some() && device.usable {
            0x406
        } else {
            0x400
        };
        assert_eq!(command, expected, "{}", device.sbdf);
        for bar in device
            .bars
            .iter()
            .flatten()
            .filter(|bar| bar.kind != BarKind::Io)
        {
            let Some(placement) = bar.placement else {
                assert!(!device.usable, "{} {bar:?} {index}", device.sbdf);
                continue;
            };
            assert!(device.usable);
            let (start, size) = (placement.bus.get(), bar.size);
            assert!(start % size.max(4096) == 0, "{} {bar:?}", device.sbdf);
            assert!(bar.kind == BarKind::Memory64 || start + size <= 1 << 32);
            let window = host
                .windows
                .iter()
                .find(|window| window.bus.contains(placement.bus));
            let window = window.expect("in a window");
            assert!(window.bus.contains(BusAddress::new(start + size - 1)));
            assert_eq!(
                placement.host - window.host,
                start - window.bus.start().get()
            );
            let reached = Some((path.clone(), bar.index.get()));
            for address in [start, start + size / 2, start + size - 1] {
                assert_eq!(
                    machine.decode(address),
                    reached,
                    "{} {address:#x}",
                    device.sbdf
                );
            }
            // Of large BARs, some pages do.
            for page in (start / 4096..(start + size).div_ceil(4096)).take(64) {
                assert!(pages.insert(page), "{} shares a page", device.sbdf);
            }
        }
    }
}

#[test]
fn what_firmware_left_running_is_stopped() {
    let busy = || nvme().left(0x04, &[0x06, 0x04]);
    let port = root_port()
        .left(0x04, &[0x07, 0])
        .left(0x18, &[0, 1, 1])
        .with(0, 0, busy());
    // A host bridge is on the root bus; what calls itself one elsewhere is a function like others.
    let so_called = host_bridge().bar(0, 0, 0x1000).left(0x04, &[0x06, 0]);
    let machine = Machine::new(
        0,
        vec![
            ((0, 0), host_bridge().left(0x04, &[0x06, 0])),
            ((1, 0), busy()),
            ((2, 0), port),
            (
                (3, 0),
                root_port().left(0x18, &[0, 2, 2]).with(0, 0, so_called),
            ),
        ],
    );
    let found = enumerate(&machine, &host()).expect("memory");
    for (sbdf, command) in [
        ("00:00.0", 0x402),
        ("00:01.0", 0x400),
        ("00:02.0", 0x406),
        ("01:00.0", 0x400),
        ("02:00.0", 0x400),
    ] {
        assert_eq!(
            machine.at(name(sbdf), |node| node.word(4)),
            Some(command),
            "{sbdf}"
        );
    }
    assert_eq!(found.devices().len(), 6);
    let bar = device(&found, "02:00.0").bars[0].and_then(|bar| bar.placement);
    assert!(bar.is_some(), "its BAR has a place");
}

#[test]
fn bus_numbers_run_out_without_harm() {
    let chain = root_port().with(0, 0, upstream().with(0, 0, downstream().with(0, 0, nvme())));
    let machine = Machine::new(
        4,
        vec![((1, 0), chain), ((2, 0), root_port().with(0, 0, nvme()))],
    );
    let few = HostBridge {
        first_bus: 4,
        last_bus: 6,
        ..host()
    };
    let found = enumerate(&machine, &few).expect("memory");
    let names: Vec<_> = found.devices().iter().map(|device| device.sbdf).collect();
    assert_eq!(
        names,
        ["04:01.0", "04:02.0", "05:00.0", "06:00.0"].map(name)
    );
    assert_eq!(
        found.problems(),
        [
            Problem::NoBus(name("06:00.0")),
            Problem::NoBus(name("04:02.0"))
        ]
    );
}

#[test]
fn what_does_not_fit_is_left_out_alone() {
    let gib = |count: u64| Node::endpoint(0x1234, 0x1111, 0x030000).bar(0, 0, count << 30);
    let wide = |flags| Node::endpoint(0x1234, 0x2222, 0x030000).bar(0, flags, 1 << 30);
    let machine = Machine::new(
        0,
        vec![
            ((1, 0), gib(1)),
            ((2, 0), edu()),
            // 64 bits: on the root bus it can go above, behind a bridge only if it is prefetchable.
            ((3, 0), wide(0x4)),
            ((4, 0), root_port().with(0, 0, wide(0xc))),
            (
                (5, 0),
                root_port()
                    .with(0, 0, wide(0x4).multi_function())
                    .with(0, 1, edu()),
            ),
            (
                (6, 0),
                Node::bridge(1, 1).bar(0, 0, 1 << 30).with(1, 0, edu()),
            ),
        ],
    );
    let found = enumerate(&machine, &host()).expect("memory");
    let unusable: Vec<_> = found
        .devices()
        .iter()
        .filter(|device| !device.usable)
        .map(|device| device.sbdf)
        .collect();
    // The first two windows hold no naturally aligned GiB below 4 GiB.
    assert_eq!(
        unusable,
        ["00:01.0", "00:06.0", "02:00.0", "03:01.0"].map(name)
    );
    let left_out: Vec<_> = found.problems().iter().map(ToString::to_string).collect();
    assert_eq!(left_out.len(), 3, "{left_out:?}");
    assert!(
        left_out[0].contains("no room for 0x40000000 bytes of BAR0"),
        "{left_out:?}"
    );
    check_placement(&machine, &found, &host());
}

#[test]
fn without_a_64_bit_window_all_goes_below() {
    let mut host = host();
    host.windows.truncate(1);
    host.windows[0].host = 0x60_1000_0000;
    let machine = machine();
    let found = enumerate(&machine, &host).expect("memory");
    assert_eq!(found.problems(), []);
    check_placement(&machine, &found, &host);
    host.windows.clear();
    let found = enumerate(&machine, &host).expect("memory");
    let usable: Vec<_> = found
        .devices()
        .iter()
        .filter(|device| device.usable)
        .map(|device| device.sbdf)
        .collect();
    assert_eq!(usable, [name("00:00.0")]);
}

#[test]
fn strange_functions_are_survived() {
    let mut looping = Node::endpoint(1, 2, 0).msi().power(true);
    looping.space[0x4f] = 0x40;
    let beyond = Node::endpoint(1, 3, 0)
        .left(0x06, &[0x10])
        .left(0x34, &[0xfc])
        .left(0xfc, &[5, 0x20]);
    let mut strange_bars = Node::endpoint(1, 4, 0)
        .bar(1, 6, 0x1000)
        .bar(5, 4, 0x1000)
        .bar(0, 2, 0x1000);
    strange_bars.space[0x34] = 0x40;
    // A BAR of 16 bytes whose kind bits follow what is written: QEMU's pvpanic-pci.
    let mut tiny = Node::endpoint(0x1b36, 0x0011, 0x088000).bar(0, 0, 16);
    tiny.make_writable(0x10, 0xfe);
    let cardbus = Node::endpoint(1, 5, 0x060700).left(0x0e, &[2]);
    let only_second = edu();
    let machine = Machine::new(
        0,
        vec![
            ((1, 0), looping),
            ((2, 0), beyond),
            ((3, 0), strange_bars),
            ((4, 0), cardbus),
            ((6, 0), tiny),
            ((5, 1), only_second), // without function 0 there is no device
        ],
    );
    let found = enumerate(&machine, &host()).expect("memory");
    assert_eq!(found.devices().len(), 5);
    let tiny = device(&found, "00:06.0").bars[0].expect("BAR 0");
    assert_eq!(
        (tiny.kind, tiny.prefetchable, tiny.size),
        (BarKind::Memory32, false, 16)
    );

    assert_eq!(
        device(&found, "00:01.0").capabilities.msi,
        Offset::new(0x40)
    );
    assert_eq!(device(&found, "00:02.0").capabilities.msi, None);
    assert_eq!(device(&found, "00:04.0").header, Header::Other(2));
    assert_eq!(
        found.problems(),
        [
            Problem::BadBar {
                sbdf: name("00:03.0"),
                bar: bar(1)
            },
            Problem::BadBar {
                sbdf: name("00:03.0"),
                bar: bar(5)
            },
            Problem::BadHeader(name("00:04.0")),
        ]
    );
    assert!(device(&found, "00:03.0").bars[0].is_some_and(|bar| bar.placement.is_some()));
}

/// An expansion ROM has a place, and stays disabled.
#[test]
fn expansion_roms_are_placed_and_disabled() {
    let with_rom = |size| Node::endpoint(1, 2, 0x020000).bar(0, 0, 0x2000).rom(size);
    let below = root_port().with(0, 0, with_rom(0x4_0000));
    let machine = Machine::new(
        0,
        vec![
            ((1, 0), with_rom(0x800).left(0x30, &[1, 0, 0, 0xfe])),
            ((2, 0), below),
            ((3, 0), with_rom(1 << 25)),
        ],
    );
    let found = enumerate(&machine, &host()).expect("memory");
    check_placement(&machine, &found, &host());
    let rom = |sbdf: &str| {
        let rom = device(&found, sbdf).bars[6];
        rom.map(|rom| (rom.index, rom.kind, rom.size, rom.placement.is_some()))
    };
    let expected = |size| Some((BarIndex::ROM, BarKind::Rom, size, true));
    assert_eq!(rom("00:01.0"), expected(0x800));
    assert_eq!(rom("01:00.0"), expected(0x4_0000));
    assert_eq!(rom("00:02.0"), None, "a bridge's is not used");
    assert_eq!(rom("00:03.0"), None, "more than there may be");
    for sbdf in ["00:01.0", "01:00.0"] {
        let device = device(&found, sbdf);
        let placed = device.bars[6].and_then(|rom| rom.info()).expect("placed");
        let register = machine.at(device.sbdf, |node| node.dword(0x30));
        assert_eq!(register.map(u64::from), Some(placed.host), "{sbdf}");
    }
}

/// Where there is little room, ROMs go first.
#[test]
fn a_function_works_without_room_for_its_rom() {
    let mut host = host();
    host.windows.truncate(1);
    let node = || {
        Node::endpoint(1, 2, 0x020000)
            .bar(0, 0, 1 << 27)
            .rom(1 << 24)
    };
    let root = (1..=8).map(|device| ((device, 0), node())).collect();
    let machine = Machine::new(0, root);
    let found = enumerate(&machine, &host).expect("memory");
    check_placement(&machine, &found, &host);
    let usable: Vec<_> = found
        .devices()
        .iter()
        .filter(|device| device.usable)
        .collect();
    assert_eq!(usable.len(), 5, "of 128 MiB each, in 751 MiB");
    let roms = usable.iter().filter(|device| device.bars[6].is_some());
    assert_eq!(roms.count(), 5, "the rest is enough for these");
    // A sixth that fits leaves too little.
    let node = |bar| Node::endpoint(1, 2, 0x020000).bar(0, 0, bar).rom(1 << 24);
    let root = [27, 27, 27, 27, 27, 26, 24, 24];
    let root = root
        .into_iter()
        .zip(1..)
        .map(|(bar, device)| ((device, 0), node(1 << bar)));
    let machine = Machine::new(0, root.collect());
    let found = enumerate(&machine, &host).expect("memory");
    check_placement(&machine, &found, &host);
    assert!(found.devices().iter().all(|device| device.usable));
    let roms = found
        .devices()
        .iter()
        .filter(|device| device.bars[6].is_some());
    assert_eq!((roms.count(), found.problems().len()), (0, 8));
    let without_rom = |problem: &&Problem| matches!(problem, Problem::NoSpaceForRom { .. });
    let problem = found.problems().iter().find(without_rom).expect("one");
    assert!(problem.to_string().contains("expansion ROM"));
}

/// As QEMU's devices arrive at its SMMU and its ITS.
#[test]
#[rustfmt::skip]
fn requesters_are_named_as_they_arrive() {
    let found = enumerate(&machine(), &host()).expect("memory");
    let cases: [(&str, &[u16]); 6] = [
        // function,  requester IDs, the last is the one that arrives
        ("00:01.0",   &[0x0008]),
        ("01:00.0",   &[0x0100]),
        ("05:00.0",   &[0x0500]),
        ("06:01.0",   &[0x0608, 0x0020]),
        ("06:02.0",   &[0x0610, 0x0020]),
        ("08:03.0",   &[0x0818, 0x0800]),
    ];
    for (sbdf, expected) in cases {
        let device = device(&found, sbdf);
        let ids: Vec<_> = found.requester_ids(device).collect();
        assert_eq!(ids, expected, "{sbdf}");
        assert_eq!(Some(&found.requester_id(device)), expected.last());
    }
}

#[test]
#[rustfmt::skip]
fn what_is_not_isolated_is_one_group() {
    let found = enumerate(&machine(), &host()).expect("memory");
    let map = RidMap::decode(&[[0; 4], [0, 0, 0, 1], [0; 4], [0, 1, 0, 0]].concat(), None).expect("a map");
    let groups = Groups::find(&found, |rid| map.translate(rid)).expect("memory");
    let cases: [(&str, &[&str], Option<Reason>); 8] = [
        ("00:00.0", &["00:00.0"], None),
        ("00:01.0", &["00:01.0"], None),
        ("01:00.0", &["01:00.0"], None),
        ("04:00.0", &["04:00.0", "05:00.0"], Some(Reason::Below(name("03:00.0")))),
        ("05:00.0", &["04:00.0", "05:00.0"], Some(Reason::Below(name("03:00.0")))),
        ("06:01.0", &["06:01.0", "06:02.0"], Some(Reason::Below(name("00:04.0")))),
        ("08:03.0", &["08:03.0"], Some(Reason::Below(name("07:00.0")))),
        ("00:1f.1", &["00:1f.0", "00:1f.1"], Some(Reason::MultiFunction(name("00:1f.0")))),
    ];
    for (sbdf, members, reason) in cases {
        let index = found.position(name(sbdf)).expect("found");
        let got: Vec<_> = groups.positions(&found, index).map(|(_, device)| device.sbdf).collect();
        let expected: Vec<_> = members.iter().copied().map(name).collect();
        assert_eq!(got, expected, "{sbdf}");
        if members.len() > 1 {
            let got = groups.reason(index);
            assert!(got == reason || matches!(got, Some(Reason::SharedId(0x20))), "{sbdf} {got:?}");
        }
    }
    // A map that cannot tell two functions apart.
    let groups = Groups::find(&found, |rid| Some((1, u32::from(rid & 0xf7ff)))).expect("memory");
    let [one, other] = ["00:00.0", "08:03.0"].map(|text| found.position(name(text)).expect("found"));
    let together = |groups: &Groups| groups.positions(&found, one).any(|(index, _)| index == other);
    assert!(together(&groups));
    // The same ID at another SMMU is another one, and so is one that no SMMU knows.
    let apart = |rid: u16| (rid >> 8 != 0).then_some((u32::from(rid >> 11), u32::from(rid & 0xf7ff)));
    let groups = Groups::find(&found, apart).expect("memory");
    assert!(!together(&groups));
}

#[test]
fn access_control_keeps_a_switch_and_its_functions_apart() {
    let isolated = |acs| downstream().acs(acs).with(0, 0, nvme());
    let endpoint = |acs| nvme().acs(acs);
    let switch = |acs| {
        root_port().with(
            0,
            0,
            upstream()
                .with(0, 0, isolated(0x1d))
                .with(1, 0, isolated(acs)),
        )
    };
    let machine = Machine::new(
        0,
        vec![
            ((1, 0), switch(0x1f)),
            ((2, 0), switch(0x0d)), // one port cannot forward upstream
            (
                (3, 0),
                Node::bridge(1, 1)
                    .express(4)
                    .acs(0x1c)
                    .with(0, 0, endpoint(0x0c).multi_function())
                    .with(0, 1, endpoint(0x0c)),
            ),
            (
                (4, 0),
                root_port()
                    .with(0, 0, endpoint(0x0c).multi_function())
                    .with(0, 1, endpoint(0x40)),
            ),
            (
                (5, 0),
                root_port()
                    .with(0, 0, endpoint(0x0c).multi_function())
                    .with(0, 1, nvme()),
            ),
        ],
    );
    let found = enumerate(&machine, &host()).expect("memory");
    let groups = Groups::find(&found, |_| None).expect("memory");
    let sizes: Vec<_> = (0..found.devices().len())
        .filter(|index| found.devices()[*index].bridge().is_none())
        .map(|index| {
            (
                found.devices()[index].sbdf.bus(),
                groups.positions(&found, index).count(),
            )
        })
        .collect();
    assert_eq!(
        sizes,
        [
            (3, 1),
            (4, 1), // isolated
            (7, 2),
            (8, 2), // a port does not isolate: the whole switch
            (9, 2),
            (9, 2), // the root port does not
            (10, 1),
            (10, 1), // one function redirects, the other never asks its peers
            (11, 2),
            (11, 2), // one has no access control
        ]
        .map(|(bus, count): (u8, usize)| (bus, count))
    );
}

/// One that redirects nothing can reach any of its siblings, wherever it comes among them.
#[test]
#[rustfmt::skip]
fn one_function_without_access_control_is_in_a_group_with_all_of_its_device() {
    let redirects = || nvme().acs(0x0c);
    let cases: [(&str, [Node; 4], &[usize]); 4] = [
        ("none",   [redirects(), redirects(), redirects(), redirects()], &[1, 1, 1, 1]),
        ("first",  [nvme(),      redirects(), redirects(), redirects()], &[4, 4, 4, 4]),
        ("middle", [redirects(), redirects(), nvme(),      redirects()], &[4, 4, 4, 4]),
        ("last",   [redirects(), redirects(), redirects(), nvme()],      &[4, 4, 4, 4]),
    ];
    for (which, [zero, one, two, five], expected) in cases {
        let machine = Machine::new(0, vec![
            ((0, 0), host_bridge()),
            ((1, 0), zero.multi_function()), ((1, 1), one), ((1, 2), two), ((1, 5), five),
            ((2, 0), nvme()),
        ]);
        let found = enumerate(&machine, &host()).expect("memory");
        let groups = Groups::find(&found, |_| None).expect("memory");
        let sizes: Vec<_> = (0..found.devices().len()).map(|index| groups.positions(&found, index).count()).collect();
        assert_eq!(sizes, [&[1], expected, &[1]].concat(), "{which}");
    }
}

#[test]
#[rustfmt::skip]
fn the_best_reset_is_chosen() {
    let advanced = edu().advanced_reset();
    let power = || edu().power(false);
    let machine = Machine::new(0, vec![
        ((1, 0), nvme()),
        ((2, 0), advanced),
        ((3, 0), power()),
        ((4, 0), edu().power(true)),
        ((5, 0), root_port().with(0, 0, power().multi_function()).with(0, 1, edu())),
    ]);
    let found = enumerate(&machine, &host()).expect("memory");
    let at = |offset| Offset::new(offset).expect("an offset");
    let bus = Some(Method::SecondaryBus(name("00:05.0")));
    let cases = [
        // function, both functions of bus 1 together, how
        ("00:01.0",  false, Some(Method::FunctionLevel(at(0x54)))),
        ("00:02.0",  false, Some(Method::Advanced(at(0x50)))),
        ("00:03.0",  false, Some(Method::Power(at(0x50)))),
        ("00:04.0",  false, None),
        ("01:00.0",  false, Some(Method::Power(at(0x50)))),
        ("01:00.0",  true,  bus),
        ("01:00.1",  false, None),
        ("01:00.1",  true,  bus),
    ];
    for (sbdf, together, expected) in cases {
        let index = found.position(name(sbdf)).expect("found");
        let own = name(sbdf);
        let got = found.reset_method(index, |other| together || other == own);
        assert_eq!(got, expected, "{sbdf} {together}");
    }
}

#[test]
fn a_reset_leaves_a_function_quiet_and_where_it_was() {
    let slow = || edu().slow(7);
    let machine = Machine::new(
        0,
        vec![
            ((1, 0), nvme().slow(5)),
            ((2, 0), edu().advanced_reset()),
            ((3, 0), virtio().power(false)),
            (
                (5, 0),
                root_port()
                    .with(0, 0, slow().multi_function())
                    .with(0, 1, edu()),
            ),
            (
                (6, 0),
                root_port().with(0, 0, upstream().with(0, 0, downstream().with(0, 0, slow()))),
            ),
            ((7, 0), Node::bridge(1, 1).with(1, 0, slow())),
        ],
    );
    let found = enumerate(&machine, &host()).expect("memory");
    let before: Vec<_> = found
        .devices()
        .iter()
        .map(|d| machine.at(d.sbdf, |n| n.space.clone()))
        .collect();
    for (sbdf, least) in [
        ("00:01.0", 100),
        ("00:02.0", 100),
        ("00:03.0", 20),
        ("01:00.1", 102),
        ("04:00.0", 102),
        ("05:01.0", 1019),
    ] {
        let index = found.position(name(sbdf)).expect("found");
        let method = found.reset_method(index, |_| true).expect("a reset");
        let resets = machine.at(name(sbdf), |node| {
            node.space[4] = 6;
            node.resets
        });
        let mut waited = 0;
        found
            .reset(index, method)
            .run(&machine, &found, |milliseconds| {
                wait(milliseconds);
                waited += milliseconds;
            })
            .unwrap_or_else(|error| panic!("{sbdf}: {error:?}"));
        assert!(
            waited >= least && waited < least + 200,
            "{sbdf}: {waited} ms"
        );
        assert_eq!(
            machine.at(name(sbdf), |node| node.resets),
            resets.map(|n| n + 1),
            "{sbdf}"
        );
        for (device, before) in found.devices().iter().zip(&before) {
            let now = machine.at(device.sbdf, |node| node.space.clone());
            assert_eq!(&now, before, "{} after the reset of {sbdf}", device.sbdf);
        }
    }
    check_placement(&machine, &found, &host());
}

#[test]
fn a_function_has_as_many_vectors_as_the_larger_of_its_capabilities() {
    let both = |msi: u8, msix: u8| {
        let node = Node::endpoint(1, 2, 0).msi().msix();
        node.left(0x42, &[msi]).left(0x52, &[msix, 0])
    };
    #[rustfmt::skip]
    let cases = [
        // Message Control of MSI and of MSI-X, vectors
        (0x80, 0x00, 1),
        (0x84, 0x00, 4),
        (0x8a, 0x1f, 32),
        (0x8a, 0x20, 33),
        (0x8e, 0x00, 32), // reserved
    ];
    for (msi, msix, expected) in cases {
        let machine = Machine::new(0, vec![((1, 0), both(msi, msix))]);
        let found = enumerate(&machine, &host()).expect("memory");
        let capabilities = device(&found, "00:01.0").capabilities;
        assert_eq!(capabilities.msix, Offset::new(0x50));
        assert_eq!(capabilities.vectors, expected, "{msi:#x} {msix:#x}");
    }
}

/// What is asleep may forget its BARs when it wakes up, and answers for nothing below.
#[test]
fn what_firmware_put_to_sleep_is_woken() {
    let asleep = |node: Node, at| node.left(at, &[3]);
    let endpoint = || asleep(virtio().power(false), 0x50);
    let port = asleep(Node::bridge(1, 1).power(false).express(4), 0x44);
    let machine = Machine::new(
        0,
        vec![
            ((1, 0), endpoint()),
            ((2, 0), port.with(0, 0, endpoint())),
            ((3, 0), asleep(edu().power(true), 0x54)),
        ],
    );
    let start = now();
    let found = pci::enumerate(&machine, &host(), &[], &mut wait).expect("memory");
    assert_eq!(
        now() - start,
        3 * 10,
        "the port's reset wakes what is below"
    );
    for device in found.devices() {
        let power = device.capabilities.power.expect("it has");
        let state = machine.at(device.sbdf, |node| {
            node.space[usize::from(power.get()) + 4] & 3
        });
        assert_eq!(state, Some(0), "{}", device.sbdf);
    }
    check_placement(&machine, &found, &host());
}

/// What firmware left in reset takes its time.
#[test]
fn a_bus_that_firmware_left_in_reset_is_waited_for() {
    let port = root_port().left(0x3e, &[0x40]).with(0, 0, nvme());
    let machine = Machine::new(0, vec![((1, 0), port)]);
    wait(1);
    let start = now();
    let found = pci::enumerate(&machine, &host(), &[], &mut wait).expect("memory");
    assert!(now() - start > 1000, "as long as a conventional bus takes");
    assert_eq!(found.devices().len(), 2);
}

/// Requests of phantom functions carry the names of other functions (section 2.2.6.2), which may be there.
#[test]
fn phantom_functions_are_turned_off() {
    let node = nvme().left(0x54 + 8, &[0x1f, 0x2b]);
    let machine = Machine::new(0, vec![((1, 0), node)]);
    let found = enumerate(&machine, &host()).expect("memory");
    let control = || machine.at(name("00:01.0"), |node| node.word(0x54 + 8));
    assert_eq!(control(), Some(0x291f), "the rest is firmware's");
    let method = found.reset_method(0, |_| false).expect("a reset");
    let reset = found.reset(0, method).run(&machine, &found, wait);
    assert_eq!((reset, control()), (Ok(()), Some(0x291f)));
}

/// What follows behind the end of config space is another function's, or the same one's header.
#[test]
#[rustfmt::skip]
fn a_capability_that_is_not_whole_is_none() {
    let plain = || Node::endpoint(1, 2, 0).left(0x06, &[0x10]).left(0x34, &[0x40]);
    let at = |last: usize, id: u8, version: u8| {
        plain().left(0x40, &[0, last.to_le_bytes()[0]]).left(last, &[id, 0, version, 0])
    };
    let extended = |last: u16, id: u8| {
        let next = (last << 4).to_le_bytes();
        plain().express(0).left(0x100, &[0x03, 0, 1 | next[0], next[1]]).left(last.into(), &[id, 0, 1, 0])
    };
    type Find = fn(&Device) -> Option<Offset>;
    let cases: [(&str, Node, Find, Option<u16>); 15] = [
        ("power",      at(0xf8, 0x01, 3),      |device| device.capabilities.power,    Some(0xf8)),
        ("power",      at(0xfc, 0x01, 3),      |device| device.capabilities.power,    None),
        ("MSI",        at(0xf4, 0x05, 0),      |device| device.capabilities.msi,      Some(0xf4)),
        ("MSI",        at(0xf8, 0x05, 0),      |device| device.capabilities.msi,      None),
        ("MSI-X",      at(0xf4, 0x11, 0),      |device| device.capabilities.msix,     Some(0xf4)),
        ("MSI-X",      at(0xf8, 0x11, 0),      |device| device.capabilities.msix,     None),
        ("Express 2",  at(0xc4, 0x10, 2),      |device| device.capabilities.express,  Some(0xc4)),
        ("Express 2",  at(0xc8, 0x10, 2),      |device| device.capabilities.express,  None),
        ("Express 1",  at(0xec, 0x10, 1),      |device| device.capabilities.express,  Some(0xec)),
        ("advanced",   at(0xf8, 0x13, 6),      |device| device.capabilities.advanced, Some(0xf8)),
        ("advanced",   at(0xfc, 0x13, 6),      |device| device.capabilities.advanced, None),
        ("ACS",        extended(0xff8, 0x0d),  |device| device.capabilities.acs,      Some(0xff8)),
        ("ACS",        extended(0xffc, 0x0d),  |device| device.capabilities.acs,      None),
        ("SR-IOV",     extended(0xfc0, 0x10),  |device| device.capabilities.sriov,    Some(0xfc0)),
        ("SR-IOV",     extended(0xfc4, 0x10),  |device| device.capabilities.sriov,    None),
    ];
    for (what, node, find, expected) in cases {
        let machine = Machine::new(0, vec![((1, 0), node)]);
        let found = enumerate(&machine, &host()).expect("memory");
        assert_eq!(find(device(&found, "00:01.0")), expected.and_then(Offset::new), "{what}");
    }
}

/// Nobody answers for the line of a function that nobody drives.
#[test]
fn a_pin_is_silent_while_nobody_drives_its_function() {
    let machine = Machine::new(
        0,
        vec![
            ((1, 0), nvme().left(0x04, &[0x06, 0x00])),
            ((2, 0), root_port().with(0, 0, edu())),
        ],
    );
    let found = enumerate(&machine, &host()).expect("memory");
    let command = |sbdf: &str| machine.at(name(sbdf), |node| node.word(4));
    let silent = [("00:01.0", 0x400), ("00:02.0", 0x406), ("01:00.0", 0x400)];
    for (sbdf, expected) in silent {
        assert_eq!(command(sbdf), Some(expected), "{sbdf} is found");
    }
    for sbdf in ["00:01.0", "01:00.0"] {
        let index = found.position(name(sbdf)).expect("found");
        let method = found.reset_method(index, |_| true).expect("a reset");
        // As its driver left it, and still waiting for completions.
        let express = method != Method::SecondaryBus(name("00:02.0"));
        machine.at(name(sbdf), |node| {
            node.space[4..6].copy_from_slice(&[0x06, 0x00]);
            node.space[0x54 + 0x0a] |= if express { 0x20 } else { 0 };
        });
        let mut reset = found.reset(index, method);
        let first = reset.step(&machine, &found, time());
        assert!(matches!(first, Ok(Progress::Wait(_))), "{sbdf}");
        if express {
            assert_eq!(command(sbdf), Some(0x400), "{sbdf} before its reset");
            machine.at(name(sbdf), |node| node.space[0x54 + 0x0a] &= !0x20);
        }
        reset.run(&machine, &found, wait).expect("it is reset");
        assert_eq!(command(sbdf), Some(0x400), "{sbdf} after its reset");
    }
}

/// Whoever carries a reset on may come at any time, and as often as he likes: the simulated functions
/// object if they are accessed before the specifications let them be.
#[test]
#[rustfmt::skip]
fn a_reset_that_is_looked_at_too_early_waits() {
    let cases = [
        // how,                     the machine,                                                      function,  least
        ("function level reset",    ((1, 0), nvme()),                                                 "00:01.0", 100),
        ("advanced features",       ((1, 0), edu().advanced_reset()),                                 "00:01.0", 100),
        ("power states",            ((1, 0), virtio().power(false)),                                  "00:01.0", 20),
        ("the bus below a port",    ((1, 0), root_port().with(0, 0, edu())),                          "01:00.0", 101),
        ("the same with its link",  ((1, 0), root_port().link(3).with(0, 0, edu())),                  "01:00.0", 131),
        ("a bus below a switch",    ((1, 0), root_port().with(0, 0, upstream().with(0, 0, downstream().with(0, 0, edu())))),
                                                                                                      "03:00.0", 101),
        ("a conventional bus",      ((1, 0), Node::bridge(1, 1).with(1, 0, edu())),                   "01:01.0", 1007),
    ];
    for (how, node, sbdf, least) in cases {
        let machine = Machine::new(0, vec![node]);
        let found = enumerate(&machine, &host()).expect("memory");
        let index = found.position(name(sbdf)).expect("found");
        let method = found.reset_method(index, |_| true).expect("a reset");
        let mut reset = found.reset(index, method);
        let start = now();
        let mut due = start;
        loop {
            let accesses = machine.accesses.get();
            let progress = reset.step(&machine, &found, time()).unwrap_or_else(|error| panic!("{how}: {error}"));
            if now() < due {
                assert_eq!(progress, Progress::Wait(due - now()), "{how}");
                assert_eq!(machine.accesses.get(), accesses, "{how}: it is touched before its time");
            }
            match progress {
                Progress::Wait(milliseconds) => due = now() + milliseconds,
                Progress::Done => break,
            }
            // Twice at the same time, too.
            if machine.accesses.get() == accesses {
                wait(1);
            }
        }
        let waited = now() - start;
        assert!(waited >= least && waited <= least + 40, "{how}: {waited} ms");
        assert_eq!(machine.at(name(sbdf), |node| node.resets), Some(1), "{how}");
    }
    // What is left is rounded up, so that who comes back then does not come in vain.
    for (nanoseconds, milliseconds) in [(0, 0), (1, 1), (999_999, 1), (1_000_000, 1), (1_000_001, 2), (u64::MAX, u32::MAX)] {
        assert_eq!(pci::milliseconds_up(Duration::from_nanos(nanoseconds)), milliseconds);
    }
}

/// Whoever carries it on may stop in the middle: nothing stays in reset, and nothing else is touched.
#[test]
fn a_reset_that_is_given_up_leaves_no_bus_in_reset() {
    let bus = Node::bridge(1, 1).with(1, 0, edu());
    let machine = Machine::new(0, vec![((1, 0), bus)]);
    let found = enumerate(&machine, &host()).expect("memory");
    let index = found.position(name("01:01.0")).expect("found");
    let method = found.reset_method(index, |_| true).expect("a reset");
    let control = || machine.at(name("00:01.0"), |node| node.space[0x3e] & 0x40);
    for (steps, held) in [(0, 0), (1, 0x40), (2, 0), (3, 0)] {
        let mut reset = found.reset(index, method);
        for _ in 0..steps {
            if let Ok(Progress::Wait(milliseconds)) = reset.step(&machine, &found, time()) {
                wait(milliseconds);
            }
        }
        assert_eq!(control(), Some(held), "{steps}");
        let accesses = machine.accesses.get();
        reset.give_up(&machine);
        assert_eq!(control(), Some(0), "{steps}");
        let touched = machine.accesses.get() - accesses;
        assert_eq!(touched != 0, held != 0, "{steps}");
        // The next one finds it in time.
        wait(1017);
        let again = found.reset(index, method).run(&machine, &found, wait);
        assert_eq!(again, Ok(()), "{steps}");
    }
}

#[test]
fn a_function_that_stays_away_is_reported() {
    let machine = Machine::new(0, vec![((1, 0), nvme().slow(u32::MAX))]);
    let found = enumerate(&machine, &host()).expect("memory");
    let method = found.reset_method(0, |_| false).expect("a reset");
    let mut waited = 0;
    let result = found
        .reset(0, method)
        .run(&machine, &found, |milliseconds| {
            wait(milliseconds);
            waited += milliseconds;
        });
    assert_eq!(result, Err(ResetError::NotReady(name("00:01.0"))));
    assert_eq!(waited, 1100);
    // One that waits for completions forever is reset all the same, and then has nothing to wait for.
    let pending = |node: &mut Node| node.space[0x54 + 0x0a] |= 0x20;
    let forgets = nvme().broken(|node| node.space[0x54 + 0x0a] &= !0x20);
    let machine = Machine::new(0, vec![((1, 0), forgets)]);
    let found = enumerate(&machine, &host()).expect("memory");
    machine.at(name("00:01.0"), pending);
    let mut reset = found.reset(0, method);
    let mut step = |expected| {
        assert_eq!(reset.step(&machine, &found, time()), Ok(expected));
        if let Progress::Wait(milliseconds) = expected {
            wait(milliseconds);
        }
    };
    for _ in 0..10 {
        step(Progress::Wait(10));
    }
    step(Progress::Wait(100));
    step(Progress::Done);
}

/// What a function may do in place of a reset, and what is found to be wrong with it then.
#[test]
#[rustfmt::skip]
fn a_reset_is_verified() {
    type Break = fn(&mut Node);
    let own = name("01:00.0");
    let cases: [(&str, Break, Option<ResetError>); 13] = [
        ("nothing",              |_| {},                                                  None),
        ("another vendor",       |node| node.freeze(0x00, &[0x86, 0x80]),                 Some(ResetError::OtherFunction(own))),
        ("another device",       |node| node.freeze(0x02, &[0x11, 0x00]),                 Some(ResetError::OtherFunction(own))),
        ("never ready",          |node| node.freeze(0x00, &[0x01, 0x00]),                 Some(ResetError::NotReady(own))),
        ("gone",                 |node| node.freeze(0x00, &[0xff, 0xff]),                 Some(ResetError::NotReady(own))),
        ("a bus master",         |node| node.freeze(0x04, &[0x04, 0x00]),                 Some(ResetError::NotQuiet(own))),
        ("decodes",              |node| node.freeze(0x04, &[0x02, 0x00]),                 Some(ResetError::NotQuiet(own))),
        ("BAR at zero",          |node| node.freeze(0x10, &[0x04, 0x00, 0x00, 0x00]),     Some(ResetError::NotRestored(own))),
        ("upper half of a BAR",  |node| node.freeze(0x14, &[0x00, 0x00, 0x00, 0x01]),     Some(ResetError::NotRestored(own))),
        ("MSI-X is on",          |node| node.space[0x43] |= 0x80,                         Some(ResetError::NotRestored(own))),
        ("MSI is on",            |node| node.space[0x92] |= 0x01,                         Some(ResetError::NotRestored(own))),
        ("access control off",   |node| node.freeze(0x106, &[0x00, 0x00]),                Some(ResetError::NotRestored(own))),
        ("waits forever",        |node| node.space[0x54 + 0x0a] |= 0x20,                  Some(ResetError::StillPending(own))),
    ];
    for (what, broken, expected) in cases {
        for flr in [true, false] {
            let node = Node::endpoint(0x1b36, 0x0010, 0x010802)
                .bar(0, 4, 0x4000).msix().power(true).express(0).msi().acs(0x0c);
            let node = if flr { node.function_level_reset() } else { node };
            let machine = Machine::new(0, vec![((2, 0), root_port().with(0, 0, node.broken(broken)))]);
            let found = enumerate(&machine, &host()).expect("memory");
            let index = found.position(own).expect("found");
            let method = found.reset_method(index, |_| true).expect("a reset");
            assert_eq!(flr, matches!(method, Method::FunctionLevel(_)));
            let result = found.reset(index, method).run(&machine, &found, wait);
            assert_eq!(result.err(), expected, "{what}, FLR {flr}");
        }
    }
}

/// Bridges lose their windows and access control with the reset of the bus that they are on.
#[test]
#[rustfmt::skip]
fn what_is_between_is_verified_too() {
    type Break = fn(&mut Node);
    let cases: [(&str, Break, Option<ResetError>); 10] = [
        ("nothing",         |_| {},                                        None),
        ("bus numbers",     |node| node.freeze(0x19, &[0]),                Some(ResetError::NotReady(name("03:00.0")))),
        ("last bus",        |node| node.freeze(0x1a, &[0xff]),             Some(ResetError::NotRestored(name("02:00.0")))),
        ("window",          |node| node.freeze(0x20, &[0xf0, 0xff]),       Some(ResetError::NotRestored(name("02:00.0")))),
        ("window's end",    |node| node.freeze(0x22, &[0x00, 0x00]),       Some(ResetError::NotRestored(name("02:00.0")))),
        ("prefetchable",    |node| node.freeze(0x24, &[0xf1, 0xff]),       Some(ResetError::NotRestored(name("02:00.0")))),
        ("its end",         |node| node.freeze(0x26, &[0xf1, 0xff]),       Some(ResetError::NotRestored(name("02:00.0")))),
        ("its upper half",  |node| node.freeze(0x28, &[0x00; 4]),          Some(ResetError::NotRestored(name("02:00.0")))),
        ("its end's",       |node| node.freeze(0x2c, &[0xff; 4]),          Some(ResetError::NotRestored(name("02:00.0")))),
        ("access control",  |node| node.freeze(0x106, &[0x00, 0x00]),      Some(ResetError::NotRestored(name("02:00.0")))),
    ];
    for (what, broken, expected) in cases {
        let down = downstream().acs(0x1d).broken(broken).with(0, 0, edu().bar(2, 0xc, 0x10_0000));
        let port = root_port().with(0, 0, upstream().with(0, 0, down));
        let machine = Machine::new(0, vec![((1, 0), port)]);
        let found = enumerate(&machine, &host()).expect("memory");
        let index = found.position(name("01:00.0")).expect("the switch");
        let reset = found.reset(index, Method::SecondaryBus(name("00:01.0")));
        let result = reset.run(&machine, &found, wait);
        assert_eq!(result.err(), expected, "{what}");
    }
}

#[test]
fn a_link_that_comes_up_late_is_waited_for() {
    for (looks, expected) in [
        (0, Ok(112)),
        (7, Ok(182)),
        (u32::MAX, Err(ResetError::NoLink(name("00:02.0")))),
    ] {
        let port = root_port().link(looks).with(0, 0, edu());
        let machine = Machine::new(0, vec![((2, 0), port)]);
        let found = enumerate(&machine, &host()).expect("memory");
        let index = found.position(name("01:00.0")).expect("found");
        let method = found.reset_method(index, |_| true).expect("a reset");
        let mut waited = 0;
        let result = found
            .reset(index, method)
            .run(&machine, &found, |milliseconds| {
                wait(milliseconds);
                waited += milliseconds;
            });
        assert_eq!(result.map(|()| waited), expected, "{looks}");
    }
}

#[test]
fn a_walk_of_an_empty_machine_is_short() {
    let machine = Machine::new(0, vec![((0, 0), host_bridge())]);
    enumerate(&machine, &host()).expect("memory");
    assert!(
        machine.accesses.get() < 100,
        "{} reads",
        machine.accesses.get()
    );
}

#[test]
#[rustfmt::skip]
fn windows_are_memory_only() {
    let cases = [
        // flags,     size,     prefetchable, if it is a window
        (0x0100_0000, 0x1_0000, None), // I/O
        (0x0000_0000, 0x1_0000, None), // config space
        (0x0200_0000, 0x1_0000, Some(false)),
        (0x0300_0000, 0x1_0000, Some(false)),
        (0x4300_0000, 0x1_0000, Some(true)),
        (0x0200_0000, 0,        None),
        (0x0200_0000, u64::MAX, None),
    ];
    for (flags, size, prefetchable) in cases {
        let window = Window::decode(flags, 0x1000_0000, 0x6000_0000, size);
        assert_eq!(window.map(|window| window.prefetchable), prefetchable, "{flags:#x} {size:#x}");
    }
}
