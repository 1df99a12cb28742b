//! Buses below root ports to play on, and a plain model of what a guest reaches there: it goes through
//! the ports at each access.

use std::collections::BTreeMap;

use vpci::{BarIndex, BarInfo, BarKind, BusAddress, BusRange, Decoder, Owner, Sbdf};

use crate::machine::{HIGH, LOW, Machine, NVME};

pub(crate) const COMMAND: u64 = 0x04;
pub(crate) const SECONDARY_BUS: u64 = 0x19;
pub(crate) const SUBORDINATE_BUS: u64 = 0x1a;
pub(crate) const MEMORY_BASE: u64 = 0x20;
pub(crate) const MEMORY_LIMIT: u64 = 0x22;
pub(crate) const PREF_BASE: u64 = 0x24;
pub(crate) const PREF_LIMIT: u64 = 0x26;
pub(crate) const PREF_BASE_UPPER: u64 = 0x28;
pub(crate) const PREF_LIMIT_UPPER: u64 = 0x2c;
pub(crate) const BRIDGE_CONTROL: u64 = 0x3e;
pub(crate) const LINK_CONTROL: u64 = 0x50;
pub(crate) const CONTROL_2: u64 = 0x68;

pub(crate) const MEMORY: u64 = 2;
pub(crate) const MASTER: u64 = 4;

pub(crate) fn name(text: &str) -> Sbdf {
    text.parse().unwrap()
}

/// The config space of a function, by the number that its bus has now.
pub(crate) fn at(bus: u64, device_function: u64) -> u64 {
    bus << 20 | device_function << 12
}

pub(crate) fn read(machine: &Machine, offset: u64, bytes: u64) -> u64 {
    machine.read(offset, bytes).unwrap()
}

/// A port as the plain model knows it: what a guest reads in its registers, taken apart again.
pub(crate) struct Plain {
    below: u8,
    secondary: u64,
    subordinate: u64,
    windows: [(u64, u64); 2],
    memory: bool,
    master: bool,
    open: bool,
    ari: bool,
}

impl Plain {
    fn read(machine: &Machine, slot: u64, below: u8) -> Self {
        let register = |offset, bytes| read(machine, at(0, slot) + offset, bytes);
        let base = |offset| (register(offset, 2) & 0xfff0) << 16;
        let limit = |offset| (register(offset, 2) & 0xfff0) << 16 | 0xf_ffff;
        let upper = |offset| register(offset, 4) << 32;
        let command = register(COMMAND, 2);
        let in_reset =
            register(BRIDGE_CONTROL, 2) & 0x40 != 0 || register(LINK_CONTROL, 2) & 0x10 != 0;
        Self {
            below,
            secondary: register(SECONDARY_BUS, 1),
            subordinate: register(SUBORDINATE_BUS, 1),
            windows: [
                (base(MEMORY_BASE), limit(MEMORY_LIMIT)),
                (
                    upper(PREF_BASE_UPPER) + base(PREF_BASE),
                    upper(PREF_LIMIT_UPPER) + limit(PREF_LIMIT),
                ),
            ],
            memory: command & MEMORY != 0,
            master: command & MASTER != 0,
            open: !in_reset && register(0x94, 1) & 3 == 0,
            ari: register(CONTROL_2, 2) & 0x20 != 0,
        }
    }

    fn lets_through(&self, range: BusRange) -> bool {
        let (first, last) = (range.start().get(), range.last().get());
        let inside = |&(base, limit): &(u64, u64)| base <= first && last <= limit;
        self.open && self.memory && self.windows.iter().any(inside)
    }
}

/// The ports of `playground`, in their order: slots and the buses below.
pub(crate) const PORTS: [(u64, u8); 3] = [(0x10, 3), (0xe0, 1), (0xe1, 2)];

/// Where device models' functions are.
pub(crate) const MODELS: [&str; 2] = ["00:03.0", "02:1f.7"];

pub(crate) fn playground() -> Machine {
    let mut machine = Machine::new();
    machine.add_port("00:1c.0", 1, false);
    machine.add_port("00:1c.1", 2, true);
    machine.add_port("00:02.0", 3, false);
    let functions = ["00:04.0", "01:00.0", "02:00.0", "02:04.1", "03:00.3"];
    for (slot, number) in functions.into_iter().zip(0..) {
        let bar = BarInfo {
            index: BarIndex::new(0).unwrap(),
            kind: BarKind::Memory64,
            prefetchable: false,
            size: 0x4000,
            host: 0x2000_0000 + number * 0x1_0000,
        };
        machine.try_assign(slot, NVME.device(), &[bar]).unwrap();
    }
    for model in MODELS {
        machine.bus.insert(name(model), Owner::Ioreq(0)).unwrap();
    }
    machine
}

/// What a guest, or a device model, does.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// A write to a port.
    Port(usize, u64, u64, u64),
    /// A write to whatever is reached by these numbers.
    Function(u64, u64, u64, u64, u64),
    /// A device model's function decodes a range, or no longer.
    Claim(usize, u64),
    Unclaim(usize, u64),
    Reset,
}

pub(crate) fn is_model(decoder: Decoder<usize>, model: Sbdf) -> bool {
    matches!(decoder, Decoder::Ioreq { sbdf, .. } if sbdf == model)
}

/// Takes a step; `claimed` is what device models believe to have.
pub(crate) fn take(machine: &mut Machine, claimed: &mut Vec<(Sbdf, BusRange)>, step: &Step) {
    match *step {
        Step::Port(port, offset, bytes, value) => {
            machine.write(at(0, PORTS[port].0) + offset, bytes, value);
        }
        Step::Function(bus, slot, offset, bytes, value) => {
            machine.write(at(bus, slot) + offset, bytes, value);
        }
        Step::Claim(model, page) => {
            let sbdf = name(MODELS[model]);
            let range = BusRange::new(BusAddress::new(page), 0x1000).unwrap();
            let decoder = Decoder::Ioreq {
                server: 0,
                sbdf,
                posted: false,
            };
            if machine.bus.claim(range, sbdf, decoder).is_ok() {
                claimed.push((sbdf, range));
            }
        }
        Step::Unclaim(model, page) => {
            let sbdf = name(MODELS[model]);
            let is_it = |(of, range): &(Sbdf, BusRange)| *of == sbdf && range.start().get() == page;
            let had = claimed.iter().any(is_it);
            let at = BusAddress::new(page);
            let gone = machine.bus.unclaim(at, |decoder| is_model(decoder, sbdf));
            assert_eq!(gone, had);
            claimed.retain(|claim| !is_it(claim));
            machine.grant_waiting();
        }
        Step::Reset => machine.reset(),
    }
    for model in MODELS {
        let count = claimed.iter().filter(|(of, _)| *of == name(model)).count();
        assert_eq!(machine.bus.claims_of(name(model)), count);
    }
}

/// Goes through the ports, as a request for `bus` does, and returns the name of what it reaches.
pub(crate) fn plain_route(ports: &[Plain], bus: u64, slot: u64) -> Option<Sbdf> {
    let name = |bus: u64| Sbdf::from_rid(0, u16::try_from(bus << 8 | slot).unwrap());
    if bus == 0 {
        return Some(name(0));
    }
    let port = ports
        .iter()
        .find(|port| port.secondary <= bus && bus <= port.subordinate)?;
    let exists = slot < 8 || port.ari;
    let converted = bus == port.secondary && port.open && exists;
    converted.then(|| name(port.below.into()))
}

/// What must hold whatever was done, as seen from some bus numbers.
pub(crate) fn check(
    machine: &Machine,
    claimed: &[(Sbdf, BusRange)],
    buses: impl Iterator<Item = u8>,
) {
    let ports = PORTS.map(|(slot, below)| Plain::read(machine, slot, below));
    // Config requests.
    for bus in buses.map(u64::from) {
        for slot in [0, 3, 7, 8, 0x10, 0x18, 0x20, 0x21, 0xe0, 0xff] {
            let reached = Sbdf::from_rid(0, u16::try_from(bus << 8 | slot).unwrap());
            let expected = plain_route(&ports, bus, slot);
            assert_eq!(machine.bus.name(reached), expected, "{reached}");
            let owner = expected.and_then(|name| machine.bus.owner(name));
            assert_eq!(machine.bus.route(reached), owner, "{reached}");
        }
    }
    // Who would decode what, if nobody else did.
    let above = |name: Sbdf| ports.iter().find(|port| port.below == name.bus());
    let through = |name: Sbdf, range: BusRange| {
        name.bus() == 0 || above(name).is_some_and(|port| port.lets_through(range))
    };
    let in_windows = |range: BusRange| {
        let window = |(start, size)| BusRange::new(BusAddress::new(start), size).unwrap();
        [LOW, HIGH]
            .into_iter()
            .any(|place| window(place).covers(range))
    };
    let mut wanted = vec![];
    for (id, assigned) in machine.functions.iter().enumerate() {
        let register = |offset: u16| {
            let offset = vpci::Offset::new(offset).unwrap();
            let access = vpci::ConfigAccess::new(assigned.sbdf, offset, vpci::Size::Four).unwrap();
            u64::from(assigned.function.read(access))
        };
        let command = register(4);
        let address = register(0x14) << 32 | register(0x10) & !0xf;
        let range = BusRange::new(BusAddress::new(address), 0x4000).unwrap();
        let bar = vpci::BarIndex::new(0).unwrap();
        if command & MEMORY != 0 && in_windows(range) && through(assigned.sbdf, range) {
            wanted.push((range, Decoder::Bar { function: id, bar }));
        }
        let open = above(assigned.sbdf).is_none_or(|port| port.open && port.master);
        assert_eq!(assigned.bus_master, command & MASTER != 0 && open);
    }
    for &(sbdf, range) in claimed {
        if through(sbdf, range) {
            let (server, posted) = (0, false);
            wanted.push((
                range,
                Decoder::Ioreq {
                    server,
                    sbdf,
                    posted,
                },
            ));
        }
    }
    let granted: Vec<_> = machine.bus.memory.granted().collect();
    assert!(
        granted.iter().all(|entry| wanted.contains(entry)),
        "{granted:?} of {wanted:?}"
    );
    assert!(
        granted
            .windows(2)
            .all(|pair| pair[0].0.last() < pair[1].0.start())
    );
    for entry in &wanted {
        let mut others = granted.iter().filter(|other| *other != entry);
        let in_the_way = others.any(|(range, _)| range.overlaps(entry.0));
        assert!(
            granted.contains(entry) || in_the_way,
            "{entry:?} waits for nobody"
        );
    }
    let mut mapped = BTreeMap::new();
    for (range, decoder) in granted {
        if let Decoder::Bar { function, bar } = decoder {
            mapped.extend(machine.edges(function, bar, range));
        }
    }
    assert_eq!(machine.stage2, mapped);
    // What requests from below travel as.
    for name in machine.bus.functions_present().map(|(name, _)| name) {
        let expected = match above(name) {
            None => Some(name),
            Some(port) if port.secondary != 0 && port.open && port.master => {
                let rid = port.secondary << 8 | u64::from(name.device_function());
                Some(Sbdf::from_rid(0, u16::try_from(rid).unwrap()))
            }
            Some(_) => None,
        };
        assert_eq!(machine.bus.requester(name), expected, "{name}");
    }
}
