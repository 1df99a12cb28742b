//! Who goes over the places that `Places` and `Bus::around` name knows who is at every place.

use std::collections::BTreeMap;

use proptest::prelude::*;
use vpci::{Bus, ConfigAccess, Offset, Owner, Places, Sbdf, Size};

type Known = BTreeMap<u16, Owner<u8>>;

/// Ports of the tree: slot, bus below, ARI.
const PORTS: [(u16, u8, bool); 3] = [(0x08, 7, false), (0x09, 3, true), (0xe0, 9, false)];

fn note(known: &mut Known, place: Sbdf, owner: Option<Owner<u8>>) {
    match owner {
        Some(owner) => known.insert(place.rid(), owner),
        None => known.remove(&place.rid()),
    };
}

#[derive(Clone, Debug)]
enum Step {
    /// Writes bus numbers, Command, Bridge Control, ARI Forwarding or the power state of a port.
    Port(usize, u16, u32),
    Insert(u16, u8),
    Remove(u16),
    Reset,
    /// Goes over everything.
    All,
}

fn step() -> impl Strategy<Value = Step> {
    let number = || prop::sample::select(vec![0_u32, 1, 2, 3, 0xff]);
    let numbers = (number(), number()).prop_map(|(first, last)| first << 8 | last << 16);
    let written = prop_oneof![
        6 => numbers.prop_map(|numbers| (0x18, numbers)),
        1 => any::<bool>().prop_map(|held| (0x3c, u32::from(held) << 22)),
        1 => any::<bool>().prop_map(|forward| (0x68, u32::from(forward) << 5)),
        1 => any::<bool>().prop_map(|off| (0x94, if off { 3 } else { 0 })),
    ];
    let name = || {
        let bus = prop::sample::select(vec![0_u16, 3, 7, 9]);
        let slot = prop::sample::select(vec![0_u16, 1, 4, 8, 0x0a, 0x18, 0xff]);
        (bus, slot).prop_map(|(bus, slot)| bus << 8 | slot)
    };
    prop_oneof![
        8 => (0..PORTS.len(), written).prop_map(|(port, (at, value))| Step::Port(port, at, value)),
        4 => (name(), any::<u8>()).prop_map(|(name, id)| Step::Insert(name, id)),
        3 => name().prop_map(Step::Remove),
        1 => Just(Step::Reset),
        1 => Just(Step::All),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    #[cfg_attr(miri, ignore = "long, and without unsafe code there is little to find")]
    fn every_change_of_hands_is_told(steps in prop::collection::vec(step(), 1..40)) {
        let sbdf = |rid| Sbdf::from_rid(0, rid);
        let mut bus = Bus::<u8>::new(0, 0, 255).unwrap();
        bus.insert(sbdf(0), Owner::HostBridge).unwrap();
        for (slot, below, ari) in PORTS {
            bus.add_port(sbdf(slot), below, ari).unwrap();
        }
        let mut places = Places::new().unwrap();
        let mut known = Known::new();
        places.update(&bus, |place, owner| note(&mut known, place, owner));
        for step in steps {
            match step {
                Step::Port(port, offset, value) => {
                    let (slot, below, _) = PORTS[port];
                    let offset = Offset::new(offset).unwrap();
                    let access = ConfigAccess::new(sbdf(slot), offset, Size::Four).unwrap();
                    let _ = bus.write_port(below, access, value);
                    places.update(&bus, |place, owner| note(&mut known, place, owner));
                }
                Step::Insert(name, id) => {
                    let _ = bus.insert(sbdf(name), Owner::Vpci(id));
                    tell(&bus, sbdf(name), &mut known);
                }
                Step::Remove(name) => {
                    let _ = bus.remove(sbdf(name));
                    tell(&bus, sbdf(name), &mut known);
                }
                Step::Reset => {
                    bus.reset_ports();
                    places.update(&bus, |place, owner| note(&mut known, place, owner));
                }
                Step::All => {
                    // Whoever is told of everything may have forgotten it.
                    known.clear();
                    places.update_all(&bus, |place, owner| note(&mut known, place, owner));
                }
            }
            // The numbers that are written, and those that are never.
            for rid in [0, 1, 2, 3, 4, 7, 9, 0xff].into_iter().flat_map(|bus| bus << 8..=bus << 8 | 0xff) {
                let owner = known.get(&rid).copied();
                prop_assert_eq!(owner, bus.route(sbdf(rid)), "{}", sbdf(rid));
            }
        }
    }
}

fn tell(bus: &Bus<u8>, name: Sbdf, known: &mut Known) {
    let places = bus.around(name).filter_map(|name| bus.place(name));
    places.for_each(|place| note(known, place, bus.route(place)));
}

#[test]
fn a_device_and_the_port_above_it_are_around_a_function() {
    let mut bus = Bus::<u8>::new(0, 0, 255).unwrap();
    for (slot, below, ari) in PORTS {
        bus.add_port(Sbdf::from_rid(0, slot), below, ari).unwrap();
    }
    let around = |rid| {
        let names = bus.around(Sbdf::from_rid(0, rid));
        names.map(|name| name.rid()).collect::<Vec<_>>()
    };
    assert_eq!(around(0x1b), (0x18..0x20).collect::<Vec<_>>());
    assert_eq!(around(0xff), (0xf8..0x100).collect::<Vec<_>>());
    let below = |bus: u16, last: u16, port| (bus..=bus | last).chain([port]).collect::<Vec<_>>();
    assert_eq!(around(0x702), below(0x700, 7, 0x08));
    assert_eq!(around(0x3ff), below(0x300, 0xff, 0x09));
}

/// Also when a port has got another number since, on a segment with a number.
#[test]
fn all_numbers_that_lead_somewhere_or_did_are_gone_over() {
    let sbdf = |rid| Sbdf::from_rid(3, rid);
    let mut bus = Bus::<u8>::new(3, 0, 255).unwrap();
    bus.add_port(sbdf(0x08), 7, false).unwrap();
    let renumber = |bus: &mut Bus<u8>, numbers| {
        let access = ConfigAccess::new(sbdf(0x08), Offset::new(0x18).unwrap(), Size::Four).unwrap();
        let _ = bus.write_port(7, access, numbers);
    };
    renumber(&mut bus, 0x0002_0200);
    let mut places = Places::new().unwrap();
    places.update(&bus, |_, _| {});
    renumber(&mut bus, 0x0005_0500);
    let mut told = Vec::new();
    places.update_all(&bus, |place, _| told.push(place));
    let all = [0, 2, 5]
        .into_iter()
        .flat_map(|number| number << 8..=number << 8 | 0xff);
    assert_eq!(told, all.map(sbdf).collect::<Vec<_>>());
}
