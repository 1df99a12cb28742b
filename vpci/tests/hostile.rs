//! A guest that writes at random: whatever it does, it reaches nothing that is not its own.

#[expect(dead_code, reason = "nothing is emulated")]
mod machine;

use std::collections::{BTreeMap, BTreeSet};

use machine::{DOORBELL, E1000E, HIGH, LOW, Machine, NVME, ODD};
use proptest::prelude::*;
use vpci::{BarKind, BusAddress, BusRange, Decoder, PAGE};

/// One thing that a guest does.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// A config write in one of the functions.
    Config {
        function: usize,
        offset: u64,
        bytes: u64,
        value: u64,
    },
    /// A store to a BAR, wherever it is now.
    Store {
        function: usize,
        bar: usize,
        offset: u64,
        bytes: u64,
        value: u64,
    },
    /// The domain resets.
    Reset,
}

/// Numbers that a hostile guest would try: addresses in and around the windows, and anything.
fn value() -> impl Strategy<Value = u64> {
    let near = |base: u64| (0_u64..8).prop_map(move |page| base + page * 0x1000);
    prop_oneof![
        near(LOW.0),
        near(LOW.0 - 0x2000),
        near(LOW.0 + LOW.1 - 0x4000),
        near(HIGH.0),
        Just(HIGH.0 >> 32),
        Just(DOORBELL),
        Just(0),
        Just(2),
        Just(6),
        Just(u64::MAX),
        any::<u64>(),
    ]
}

/// Registers worth aiming at, and anything.
fn offset() -> impl Strategy<Value = u64> {
    let bars = (0_u64..6).prop_map(|bar| 0x10 + bar * 4);
    let lists = (0x40_u64..0xd8).prop_map(|offset| offset & !1);
    prop_oneof![3 => bars, 1 => Just(0x30), 3 => Just(4), 2 => lists, 1 => 0_u64..0x1000]
}

fn step() -> impl Strategy<Value = Step> {
    let bytes =
        || prop_oneof![8 => Just(4_u64), 2 => Just(2), 2 => Just(1), 2 => Just(8), 1 => 0_u64..20];
    let config =
        (0_usize..4, offset(), bytes(), value()).prop_map(|(function, offset, bytes, value)| {
            Step::Config {
                function,
                offset,
                bytes,
                value,
            }
        });
    let aimed = prop_oneof![
        0_u64..0x900,
        0x2000_u64..0x2100,
        0_u64..0x4008,
        any::<u64>()
    ];
    let store = (0_usize..4, 0_usize..7, aimed, bytes(), value()).prop_map(
        |(function, bar, offset, bytes, value)| Step::Store {
            function,
            bar,
            offset,
            bytes,
            value,
        },
    );
    prop_oneof![60 => config, 30 => store, 1 => Just(Step::Reset)]
}

fn take(machine: &mut Machine, step: Step) {
    match step {
        Step::Config {
            function,
            offset,
            bytes,
            value,
        } => {
            let base = vpci::ecam::offset_of(machine.functions[function].sbdf);
            machine.write(base + (offset & 0xfff), bytes, value);
        }
        Step::Store {
            function,
            bar,
            offset,
            bytes,
            value,
        } => {
            let ranges: Vec<_> = machine.bus.memory.granted().collect();
            let wanted = |decoder: &Decoder<usize>| {
                matches!(decoder, Decoder::Bar { function: id, bar: index }
                    if *id == function && index.index() == bar)
            };
            let Some((range, _)) = ranges.iter().find(|(_, decoder)| wanted(decoder)) else {
                return;
            };
            let address = range.start().get().saturating_add(offset);
            if let Err(host) = machine.load(address, bytes) {
                assert!(host < 1 << 48, "{host:#x}");
            }
            if let Err(host) = machine.store(address, bytes, value) {
                check_host(machine, host, bytes);
            }
        }
        Step::Reset => machine.reset(),
    }
}

/// What goes to a device stays inside one memory BAR, and beside MSI-X table and pending bits.
fn check_host(machine: &Machine, host: u64, bytes: u64) {
    let inside = machine
        .functions
        .iter()
        .flat_map(|assigned| assigned.function.bars())
        .any(|bar| bar.host <= host && host + bytes <= bar.host + bar.size);
    assert!(inside, "{host:#x} is in no BAR");
    for reserved in [
        0x1000_2000..0x1000_2410,
        0x1008_0000..0x1008_0050,
        0x100a_0800..0x100a_0820,
    ] {
        assert!(!reserved.contains(&host), "{host:#x} is a table's");
    }
}

/// What must hold whatever the guest did.
fn check(machine: &Machine) {
    let windows =
        [LOW, HIGH].map(|(start, size)| BusRange::new(BusAddress::new(start), size).unwrap());
    // What each function decodes now, if it is where it may be.
    let mut decoded = vec![];
    for (id, assigned) in machine.functions.iter().enumerate() {
        for bar in assigned.function.bars() {
            let Some(range) = assigned.function.decoded(bar.index) else {
                continue;
            };
            if windows.iter().any(|window| window.covers(range)) {
                decoded.push((
                    range,
                    Decoder::Bar {
                        function: id,
                        bar: bar.index,
                    },
                ));
            }
        }
    }
    let granted: Vec<_> = machine.bus.memory.granted().collect();
    // Granted is decoded, and in order without overlap.
    assert!(
        granted.iter().all(|range| decoded.contains(range)),
        "{granted:?} of {decoded:?}"
    );
    assert!(
        granted
            .windows(2)
            .all(|pair| pair[0].0.last() < pair[1].0.start()),
        "{granted:?}"
    );
    // What is decoded and not granted has a reason to wait.
    for (range, decoder) in &decoded {
        let mut others = granted.iter().filter(|(_, other)| other != decoder);
        let granted = granted.contains(&(*range, *decoder));
        assert!(
            granted || others.any(|(other, _)| other.overlaps(*range)),
            "{decoder:?} waits"
        );
    }
    // Stage 2 holds what is granted, and nothing else.
    let mut expected = BTreeMap::new();
    for (range, decoder) in granted {
        let Decoder::Bar { function, bar } = decoder else {
            unreachable!()
        };
        expected.extend(machine.edges(function, bar, range));
    }
    assert_eq!(machine.stage2, expected);
    for &host in machine.stage2.values() {
        check_host(machine, host, PAGE);
        assert!(
            ![
                0x1000_2000,
                0x1000_3000,
                0x1008_0000,
                0x1008_2000,
                0x100a_0000
            ]
            .contains(&host)
        );
    }
    for assigned in &machine.functions {
        // The model itself never writes to the device.
        assert_eq!(*assigned.function.device().written.borrow(), []);
    }
}

fn hostile_machine() -> Machine {
    let mut machine = Machine::new();
    for (slot, kind) in [("00:01.0", &NVME), ("00:02.0", &E1000E), ("00:02.5", &ODD)] {
        machine.assign(slot, kind);
    }
    // A second NVMe function elsewhere on the machine would have other addresses; what matters here
    // is that two functions fight for the same ranges.
    let other = machine::Kind {
        dwords: NVME.dwords,
        bars: &[(0, BarKind::Memory64, true, 0x4000, 0x2000_0000)],
    };
    machine.assign("00:03.0", &other);
    machine
}

proptest! {
    #[test]
    #[cfg_attr(miri, ignore = "long, and without unsafe code there is little to find")]
    fn a_guest_that_writes_at_random_gets_nothing_foreign(
        steps in prop::collection::vec(step(), 1..60),
    ) {
        let mut machine = hostile_machine();
        for step in steps {
            take(&mut machine, step);
            check(&machine);
        }
        let bytes = |machine: &Machine| -> Vec<_> {
            (0..4).flat_map(|function| {
                let base = vpci::ecam::offset_of(machine.functions[function].sbdf);
                (0..0x1000).map(move |offset| base + offset)
            }).map(|offset| machine.read(offset, 1)).collect()
        };
        // A reset leaves nothing behind: config space is as new.
        machine.reset();
        check(&machine);
        prop_assert!(machine.stage2.is_empty());
        prop_assert_eq!(machine.bus.memory.granted().count(), 0);
        prop_assert_eq!(bytes(&machine), bytes(&hostile_machine()));
        for assigned in &machine.functions {
            prop_assert!(assigned.vectors.is_empty() && !assigned.bus_master);
            prop_assert_eq!(assigned.msix, (false, false));
        }
    }

    /// However it is accessed, a byte reads the same, and hidden bytes read as zero.
    #[test]
    fn reads_of_all_sizes_agree(steps in prop::collection::vec(step(), 0..20), offset in 0u64..0x200) {
        let mut machine = hostile_machine();
        for step in steps {
            take(&mut machine, step);
        }
        for assigned in &machine.functions {
            let base = vpci::ecam::offset_of(assigned.sbdf) + (offset & !7);
            let whole = machine.read(base, 8).unwrap();
            for bytes in [1, 2, 4] {
                for at in (0..8).step_by(bytes) {
                    let mask = (1 << (8 * bytes)) - 1;
                    let part = machine.read(base + at, bytes as u64).unwrap();
                    prop_assert_eq!(part, whole >> (8 * at) & mask);
                }
            }
        }
    }

    /// A device whose config space is noise is refused, or shown without harm.
    #[test]
    fn noise_is_survived(noise in prop::collection::vec(any::<u32>(), 1024), sane in any::<bool>()) {
        let device = machine::Device::new(&[]);
        for (dword, value) in noise.iter().enumerate() {
            device.bytes.borrow_mut()[dword * 4..dword * 4 + 4].copy_from_slice(&value.to_le_bytes());
        }
        if sane {
            device.bytes.borrow_mut()[0x0e] = 0;
            device.bytes.borrow_mut()[0x06] |= 0x10;
        }
        let bars = ODD.bars();
        let setup = vpci::Setup {
            bars: &bars,
            doorbell: BusAddress::new(DOORBELL),
            position: vpci::Position::BelowPort,
            pin: vpci::Pin::Shown,
            vendor: vpci::Vendor::Shown,
            kind: vpci::Kind::Ordinary,
        };
        let Ok(mut function) = vpci::Function::new(device, &setup) else { return Ok(()) };
        let access = |offset| {
            let offset = vpci::Offset::new(offset).unwrap();
            vpci::ConfigAccess::new(vpci::Sbdf::from_rid(0, 0), offset, vpci::Size::Four).unwrap()
        };
        let mut seen = BTreeSet::new();
        let mut at = function.read(access(0x34)) & 0xff;
        while at != 0 {
            prop_assert!(at >= 0x40 && at % 4 == 0 && seen.insert(at));
            at = function.read(access(u16::try_from(at).unwrap())) >> 8 & 0xff;
        }
        for offset in (0..0x1000).step_by(4) {
            let _ = function.write(access(offset), u32::MAX);
            while function.next_effect().is_some() {}
        }
    }
}
