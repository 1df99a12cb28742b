//! Resets that take their time, and another vCPU that writes meanwhile: whatever the order, what a guest
//! reads afterwards is what the devices have.

#[expect(dead_code, reason = "one kind of device is enough")]
mod machine;

use machine::{E1000E, Machine, NVME};
use vpci::{BusAddress, BusRange, ConfigAccess, Owner, Sbdf, State, Steadiness};

const COMMAND: u64 = 0x04;
const ON: u64 = 0x6; // memory space, bus master
const PORT: u64 = 0xe0 << 12;
const BUS_NUMBERS: u64 = 0x18;
const MEMORY_WINDOW: u64 = 0x20;
const BRIDGE_CONTROL: u64 = 0x3e;
const BUS_RESET: u64 = 0x40;
const LINK_CONTROL: u64 = 0x50;
/// What is below the port: passed-through functions, and a device model's.
const FUNCTIONS: [u64; 2] = [1 << 20, 1 << 20 | 1 << 12];
const MODEL: u64 = 1 << 20 | 2 << 12;
const BAR: u64 = 0x10;
const MSIX_CONTROL: u64 = 0x42;
const MSIX_ENABLE: u64 = 0x8000;
const DEVICE_CONTROL: u64 = 0x88;
const FLR: u64 = 0x8000;

/// A config write: offset in the window, bytes, value.
type Write = (u64, u64, u64);

/// How far a reset has come.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Stage {
    Started,
    /// The devices have forgotten everything.
    Forgotten,
    /// The devices are ready; device models are being told.
    Ready,
}

/// What a vCPU waits for.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Resets {
    Function(usize),
    Bus(u8),
}

/// What happens.
#[derive(Clone, Copy, Debug)]
enum Event {
    /// This vCPU writes.
    Write(usize),
    /// The reset that it waits for goes on.
    Reset(usize),
}

struct Vcpu<'a> {
    writes: &'a [Write],
    resets: Option<(Resets, Stage)>,
}

struct System<'a> {
    machine: Machine,
    vcpus: [Vcpu<'a>; 2],
    in_reset: [bool; FUNCTIONS.len()],
}

impl<'a> System<'a> {
    fn new(scripts: [&'a [Write]; 2]) -> Self {
        let mut machine = Machine::new();
        machine.assign("01:00.0", &NVME);
        machine.assign("01:00.1", &NVME);
        machine.emulate("01:00.2");
        machine.write(PORT + BUS_NUMBERS, 4, 0x1_0100);
        machine.write(PORT + MEMORY_WINDOW, 4, 0x1ff0_1000);
        machine.write(PORT + COMMAND, 2, ON);
        for (function, number) in FUNCTIONS.into_iter().zip(0..) {
            machine.write(function + BAR, 8, 0x1000_0000 + number * 0x1_0000);
            machine.write(function + MSIX_CONTROL, 2, MSIX_ENABLE);
            machine.write(function + COMMAND, 2, ON);
        }
        machine.write(MODEL + COMMAND, 2, ON);
        let vcpus = scripts.map(|writes| Vcpu {
            writes,
            resets: None,
        });
        let in_reset = [false; FUNCTIONS.len()];
        Self {
            machine,
            vcpus,
            in_reset,
        }
    }

    /// Returns the access that a vCPU makes next, unless it waits for something.
    fn next(&self, vcpu: usize) -> Option<ConfigAccess> {
        let vcpu = &self.vcpus[vcpu];
        let (offset, bytes, _) = *vcpu.writes.first().filter(|_| vcpu.resets.is_none())?;
        let access = vpci::ecam::decode(0, offset, bytes).unwrap();
        let in_reset = |id: usize| self.in_reset[id];
        let bus = &self.machine.bus;
        let owner = bus.route(access.sbdf());
        let waits = owner.is_some_and(|owner| bus.must_wait(owner, in_reset));
        (!waits).then_some(access)
    }

    /// Returns what can happen next: a vCPU writes, or the reset that it waits for goes on.
    fn events(&self) -> Vec<Event> {
        let can_write = |vcpu: &usize| self.next(*vcpu).is_some();
        let waits = |vcpu: &usize| self.vcpus[*vcpu].resets.is_some();
        let writes = (0..2).filter(can_write).map(Event::Write);
        writes
            .chain((0..2).filter(waits).map(Event::Reset))
            .collect()
    }

    /// A vCPU makes its next write.
    fn write(&mut self, vcpu: usize) {
        let vcpu = &mut self.vcpus[vcpu];
        let [(offset, bytes, value), rest @ ..] = vcpu.writes else {
            return;
        };
        vcpu.writes = rest;
        let counts = |machine: &Machine| {
            let bus = machine.bus_resets.get(&1).copied().unwrap_or(0);
            (
                machine
                    .functions
                    .iter()
                    .map(|f| f.resets)
                    .collect::<Vec<_>>(),
                bus,
            )
        };
        let before = counts(&self.machine);
        self.machine.write(*offset, *bytes, *value);
        let after = counts(&self.machine);
        let function = before.0.iter().zip(&after.0).position(|(a, b)| a != b);
        let reset = match function {
            Some(id) => Some((Resets::Function(id), id..id + 1)),
            None => (before.1 != after.1).then_some((Resets::Bus(1), 0..FUNCTIONS.len())),
        };
        if let Some((reset, functions)) = reset {
            for in_reset in &mut self.in_reset[functions] {
                assert!(!*in_reset, "it is in reset already");
                *in_reset = true;
            }
            vcpu.resets = Some((reset, Stage::Started));
        }
    }

    /// The reset that a vCPU waits for goes on.
    fn go_on(&mut self, vcpu: usize) {
        let Some((reset, stage)) = self.vcpus[vcpu].resets else {
            return;
        };
        let functions = match reset {
            Resets::Function(id) => id..id + 1,
            Resets::Bus(_) => 0..FUNCTIONS.len(),
        };
        let next = match (stage, reset) {
            (Stage::Started, _) => {
                for assigned in &mut self.machine.functions[functions] {
                    assigned.bus_master = false;
                    assigned.msix = (false, false);
                    assigned.vectors.clear();
                }
                Some(Stage::Forgotten)
            }
            (Stage::Forgotten, _) => {
                self.in_reset[functions].fill(false);
                matches!(reset, Resets::Bus(_)).then_some(Stage::Ready)
            }
            (Stage::Ready, _) => {
                self.machine.reset_models(|sbdf| sbdf.bus() == 1);
                self.machine.bus.end_reset(1);
                None
            }
        };
        self.vcpus[vcpu].resets = next.map(|stage| (reset, stage));
    }

    /// Nothing of a function in reset is on, and what is on of others is what the guest reads.
    fn check(&self, schedule: &[Event]) {
        for (id, function) in FUNCTIONS.into_iter().enumerate() {
            let assigned = &self.machine.functions[id];
            let bar =
                |page: u64| (0x1000_0000 + id as u64 * 0x1_0000) / 0x1_0000 == page / 0x1_0000;
            let is_mapped = self.machine.stage2.keys().any(|page| bar(*page));
            if self.in_reset[id] {
                assert!(!is_mapped && !assigned.bus_master, "{schedule:?}");
                assert_eq!(assigned.msix, (false, false), "{schedule:?}");
                continue;
            }
            let read = |offset, bytes| self.machine.read(function + offset, bytes).unwrap();
            let Some(Owner::Vpci(_)) = self.machine.bus.route(sbdf(function)) else {
                assert!(!is_mapped && !assigned.bus_master, "{schedule:?}");
                continue;
            };
            let command = read(COMMAND, 2);
            let place = BusRange::new(BusAddress::new(read(BAR, 8) & !0xf), 0x4000).unwrap();
            let upstream = self.machine.bus.upstream(sbdf(function));
            let in_window = place.start().get() >= machine::LOW.0;
            let decodes = command & 2 != 0 && in_window && upstream.reaches(place);
            assert_eq!(is_mapped, decodes, "{id}: {schedule:?}");
            let masters = command & 4 != 0 && upstream.lets_out();
            assert_eq!(assigned.bus_master, masters, "{id}: {schedule:?}");
            let enabled = read(MSIX_CONTROL, 2) & MSIX_ENABLE != 0;
            assert_eq!(assigned.msix.0, enabled, "{id}: {schedule:?}");
        }
    }
}

fn sbdf(offset: u64) -> Sbdf {
    Sbdf::from_rid(0, u16::try_from(offset >> 12).unwrap())
}

/// Runs two scripts in every order, and returns what the guest reads in the end of the Command of the
/// functions and of the model.
fn in_every_order(scripts: [&[Write]; 2]) -> Vec<[u64; 3]> {
    let mut ends = vec![];
    // For each event that has happened, which it was of how many.
    let mut chosen: Vec<(usize, usize)> = vec![];
    loop {
        let mut system = System::new(scripts);
        let mut schedule = vec![];
        loop {
            let events = system.events();
            if events.is_empty() {
                break;
            }
            let step = schedule.len();
            if step == chosen.len() {
                chosen.push((0, events.len()));
            }
            let event = events[chosen[step].0];
            schedule.push(event);
            match event {
                Event::Write(vcpu) => system.write(vcpu),
                Event::Reset(vcpu) => system.go_on(vcpu),
            }
            system.check(&schedule);
        }
        assert!(
            system.vcpus.iter().all(|vcpu| vcpu.writes.is_empty()),
            "they wait for each other: {schedule:?}"
        );
        // While somebody leaves the link down, these are ones.
        let command = |function| system.machine.read(function + COMMAND, 2).unwrap();
        let end = [FUNCTIONS[0], FUNCTIONS[1], MODEL].map(command);
        if !ends.contains(&end) {
            ends.push(end);
        }
        while chosen.pop_if(|(which, of)| *which + 1 == *of).is_some() {}
        match chosen.last_mut() {
            Some((which, _)) => *which += 1,
            None => break,
        }
    }
    ends.sort_unstable();
    ends
}

/// What each vCPU writes last is there in the end: no reset takes it back.
const SET_UP: [Write; 4] = [
    (FUNCTIONS[0] + BAR, 4, 0x1000_0000),
    (FUNCTIONS[0] + MSIX_CONTROL, 2, MSIX_ENABLE),
    (FUNCTIONS[0] + COMMAND, 2, ON),
    (MODEL + COMMAND, 2, ON),
];

#[test]
#[cfg_attr(miri, ignore = "long: every order of two vCPUs' writes")]
fn a_bus_reset_that_another_vcpu_ends_takes_nothing_back() {
    for hold in [
        (PORT + BRIDGE_CONTROL, 2, BUS_RESET),
        (PORT + LINK_CONTROL, 2, 0x10),
    ] {
        let one = [hold];
        let mut other = vec![(PORT + BRIDGE_CONTROL, 2, 0), (PORT + LINK_CONTROL, 2, 0)];
        other.extend(SET_UP);
        // Either the reset comes first, and nothing is lost; or it comes last, and holds the link.
        let ends = in_every_order([&one, &other]);
        assert_eq!(ends, [[ON, 0, ON], [0xffff; 3]]);
    }
}

#[test]
#[cfg_attr(miri, ignore = "long: every order of two vCPUs' writes")]
fn writes_during_a_function_level_reset_come_after_it() {
    let one = [(FUNCTIONS[0] + DEVICE_CONTROL, 2, FLR)];
    let ends = in_every_order([&one, &SET_UP]);
    assert_eq!(ends, [[0, ON, ON], [ON, ON, ON]]);
}

#[test]
#[cfg_attr(miri, ignore = "long: every order of two vCPUs' writes")]
fn one_reset_comes_after_the_other() {
    let flr = (FUNCTIONS[0] + DEVICE_CONTROL, 2, FLR);
    let hold = (PORT + BRIDGE_CONTROL, 2, BUS_RESET);
    let release = (PORT + BRIDGE_CONTROL, 2, 0);
    let command = (FUNCTIONS[0] + COMMAND, 2, ON);
    for (one, other) in [
        (&[flr, command][..], &[hold, release, command][..]),
        (&[flr, flr], &[flr, command]),
        (&[hold, release, command], &[hold, release, command]),
        (
            &[flr, command],
            &[(PORT + COMMAND, 2, 0), (PORT + COMMAND, 2, ON)],
        ),
    ] {
        in_every_order([one, other]);
    }
}

#[test]
fn a_function_in_reset_is_not_asked() {
    const CORRECTABLE_ERRORS: u64 = 0x110;
    let mut machine = Machine::new();
    let id = machine.assign("00:03.0", &E1000E);
    let read = |machine: &Machine| machine.read((3 << 15) + CORRECTABLE_ERRORS, 4);
    for _ in 0..2 {
        assert_eq!(read(&machine), Some(0x1234_5678 & 0xf1c1));
        machine.functions[id].function.set_state(State::InReset);
        assert_eq!(read(&machine), Some(0));
        machine.functions[id].function.set_state(State::Usable);
    }
}

#[test]
fn a_function_whose_reset_failed_is_not_there() {
    let mut machine = Machine::new();
    for kind in [&E1000E, &NVME] {
        let slot = machine.functions.len() as u64 + 1;
        let id = machine.assign(&format!("00:0{slot}.0"), kind);
        let function = slot << 15;
        let dwords = || (0..0x1000).step_by(4);
        let all = |machine: &Machine| -> Vec<_> {
            let read = |offset| machine.read(function + offset, 4).unwrap();
            dwords().map(read).collect()
        };
        let fresh = all(&machine);
        let version = machine.functions[id].function.version();
        machine.functions[id].function.set_state(State::Gone);
        assert_ne!(machine.functions[id].function.version(), version);
        assert!(all(&machine).iter().all(|dword| *dword == 0xffff_ffff));
        assert_eq!(machine.read(function + 2, 2), Some(0xffff));
        for offset in dwords() {
            machine.write(function + offset, 4, 0xffff_ffff);
        }
        let assigned = &machine.functions[id];
        assert_eq!(assigned.function.steadiness(), Steadiness::Steady);
        assert_eq!(assigned.function.steady_dword(4), u32::MAX);
        assert!(!assigned.bus_master && machine.stage2.is_empty());
        assert_eq!(assigned.resets, 0);
        machine.functions[id].function.set_state(State::Usable);
        assert_eq!(all(&machine), fresh);
    }
}
