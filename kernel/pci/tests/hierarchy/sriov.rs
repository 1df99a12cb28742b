//! Virtual functions: found, numbered, placed, grouped and brought back.

use proptest::prelude::*;

use super::simulation::{Machine, Node, now, time, wait};
use super::{device, downstream, enumerate, host, host_bridge, name, nvme, root_port, upstream};
use pci::{
    ClaimError, Groups, Hierarchy, HostBridge, Method, Owner, Owners, Problem, Progress, Reason,
    ResetError, Virtual, VirtualProblem, Wanted, Wish,
};

const VF_SIZE: u64 = 0x4000;

fn vf() -> Node {
    Node::endpoint(0xffff, 0x10ca, 0x020000)
        .express(0)
        .function_level_reset()
}

/// A physical function like QEMU's igb: eight virtual ones, 128 ahead, 2 apart.
fn igb() -> Node {
    nic([128, 128], 2)
}

fn nic(first: [u16; 2], stride: u16) -> Node {
    Node::endpoint(0x8086, 0x10c9, 0x020000)
        .bar(0, 0, 0x2_0000)
        .express(0)
        .function_level_reset()
        .ari()
        .sriov(8, first, stride, vf(), VF_SIZE)
}

fn port() -> Node {
    root_port().forwards_all()
}

fn wanted(physical: &str, count: u16) -> Wanted {
    let physical = name(physical);
    Wanted { physical, count }
}

fn find(machine: &Machine, host: &HostBridge, wanted: &[Wanted]) -> Hierarchy {
    pci::enumerate(machine, host, wanted, &mut wait).expect("memory")
}

fn names(found: &Hierarchy) -> Vec<String> {
    let devices = found.devices().iter();
    devices
        .map(|device| device.sbdf.to_string()[5..].into())
        .collect()
}

/// Returns where a BAR of a function is.
fn place(found: &Hierarchy, sbdf: &str, bar: usize) -> u64 {
    let bar = device(found, sbdf).bars[bar].expect("a BAR");
    bar.placement.expect("a place").bus.get()
}

/// Returns VF Enable and its neighbours, NumVFs, and the first BAR of a physical function.
fn registers(machine: &Machine, sbdf: &str) -> (u16, u16, u64) {
    let view = |node: &mut Node| {
        let at = 0x110;
        let address =
            u64::from(node.dword(at + 0x28)) << 32 | u64::from(node.dword(at + 0x24) & !15);
        (node.word(at + 8), node.word(at + 0x10), address)
    };
    machine.at(name(sbdf), view).expect("present")
}

#[test]
fn virtual_functions_are_functions_like_others() {
    let machine = Machine::new(
        0,
        vec![
            ((0, 0), host_bridge()),
            ((1, 0), port().with(0, 0, igb())),
            ((2, 0), root_port().with(0, 0, nvme())),
        ],
    );
    let found = find(&machine, &host(), &[wanted("01:00.0", 3)]);
    assert_eq!(found.problems(), []);
    assert_eq!(
        names(&found),
        [
            "00:00.0", "00:01.0", "00:02.0", "01:00.0", "01:10.0", "01:10.2", "01:10.4", "02:00.0"
        ]
    );
    let physical = device(&found, "01:00.0");
    let set = physical.sriov.expect("set up");
    assert_eq!((set.count, set.device), (3, 0x10ca));
    for (number, sbdf) in (0..).zip(["01:10.0", "01:10.2", "01:10.4"]) {
        let vf = device(&found, sbdf);
        assert_eq!((vf.vendor, vf.device, vf.class), (0x8086, 0x10ca, 0x020000));
        let physical = physical.sbdf;
        assert_eq!(vf.virtual_function, Some(Virtual { physical, number }));
        assert_eq!(vf.parent, found.position(name("00:01.0")));
        assert!(
            vf.usable
                && vf
                    .express
                    .is_some_and(|express| express.function_level_reset)
        );
        assert_eq!(found.requester_id(vf), vf.sbdf.rid());
        assert_eq!(
            place(&found, sbdf, 0),
            place(&found, "01:10.0", 0) + u64::from(number) * VF_SIZE
        );
    }
    let own: Vec<_> = found.virtual_functions(physical.sbdf).collect();
    assert_eq!(own, [4, 5, 6]);
    // Enabled, decoding, in a hierarchy that is capable of ARI; the port forwards to all of them.
    let first = place(&found, "01:10.0", 0);
    assert_eq!(registers(&machine, "01:00.0"), (0x19, 3, first));
    // All of them lie in the port's window, and nothing else does.
    let bridge = device(&found, "00:01.0").bridge().expect("a bridge");
    let window = bridge.prefetchable.expect("a window");
    assert_eq!(window.start().get(), first);
    assert!(first + 3 * VF_SIZE - 1 <= window.last().get());
    assert_eq!((bridge.children.clone(), bridge.subordinate), (3..7, 1));
}

#[test]
fn without_a_wish_there_are_none() {
    let busy = igb().left_vfs(2);
    let machine = Machine::new(0, vec![((1, 0), port().with(0, 0, busy))]);
    wait(100);
    let before = now();
    let found = find(&machine, &host(), &[]);
    assert_eq!(names(&found), ["00:01.0", "01:00.0"]);
    assert_eq!(
        registers(&machine, "01:00.0").0,
        0,
        "those of firmware are gone"
    );
    assert_eq!(now() - before, 1000);
    assert_eq!(
        enumerate(&machine, &host()).expect("memory").devices(),
        found.devices()
    );
    // And those that are wanted are others.
    let machine = Machine::new(0, vec![((1, 0), port().with(0, 0, igb().left_vfs(8)))]);
    let found = find(&machine, &host(), &[wanted("01:00.0", 1)]);
    assert_eq!(names(&found), ["00:01.0", "01:00.0", "01:10.0"]);
    assert_eq!(machine.at(name("01:00.0"), |node| node.resets), Some(1));
}

/// Virtual functions on later buses: those buses are nobody else's.
#[test]
fn buses_are_reserved_for_virtual_functions() {
    let switch = || {
        upstream()
            .with(
                0,
                0,
                downstream()
                    .forwards_all()
                    .with(0, 0, nic([0x1f0, 0x1f0], 0x80)),
            )
            .with(1, 0, downstream().with(0, 0, nvme()))
    };
    let machine = Machine::new(
        0,
        vec![
            ((1, 0), root_port().with(0, 0, switch())),
            ((2, 0), root_port().with(0, 0, nvme())),
        ],
    );
    let found = find(&machine, &host(), &[wanted("03:00.0", 3)]);
    assert_eq!(found.problems(), []);
    assert_eq!(
        names(&found),
        [
            "00:01.0", "00:02.0", "01:00.0", "02:00.0", "02:01.0", "03:00.0", "04:1e.0", "05:0e.0",
            "05:1e.0", "06:00.0", "07:00.0"
        ]
    );
    for (sbdf, buses) in [
        ("00:01.0", (1, 6)),
        ("01:00.0", (2, 6)),
        ("02:00.0", (3, 5)),
        ("02:01.0", (6, 6)),
        ("00:02.0", (7, 7)),
    ] {
        let bridge = device(&found, sbdf).bridge().expect("a bridge");
        assert_eq!((bridge.secondary, bridge.subordinate), buses, "{sbdf}");
    }
    // Of a function on the root bus, too.
    let machine = Machine::new(
        0,
        vec![
            ((1, 0), nic([0x100, 0x100], 1)),
            ((2, 0), root_port().with(0, 0, nvme())),
        ],
    );
    let found = find(&machine, &host(), &[wanted("00:01.0", 2)]);
    assert_eq!(
        names(&found),
        ["00:01.0", "00:02.0", "01:01.0", "01:01.1", "02:00.0"]
    );
    assert_eq!(found.problems(), []);
}

/// Without ARI the device says where else they are.
#[test]
fn offset_and_stride_are_those_of_the_hierarchy() {
    for (port, ari, expected) in [
        (port(), true, ["01:01.0", "01:01.1"]),
        (root_port(), false, ["02:00.0", "02:00.1"]),
    ] {
        let machine = Machine::new(0, vec![((1, 0), port.with(0, 0, nic([0x100, 8], 1)))]);
        let found = find(&machine, &host(), &[wanted("01:00.0", 2)]);
        assert_eq!(found.problems(), []);
        assert_eq!(names(&found)[2..], expected);
        let control = if ari { 0x19 } else { 0x09 };
        assert_eq!(registers(&machine, "01:00.0").0, control);
        let forwards = machine.at(name("00:01.0"), |port| port.word(0x4c + 0x28) & 0x20 != 0);
        assert_eq!(forwards, Some(ari));
    }
}

#[test]
#[rustfmt::skip]
fn what_cannot_be_had_is_named() {
    use VirtualProblem::{Dependent, NoBus, NoForwarding, NoSpace, NotPhysical, Place, Total};
    let bar = super::bar;
    let small = || HostBridge { last_bus: 1, ..host() };
    let huge = || Node::endpoint(0x8086, 0x10c9, 0x020000).bar(0, 0, 0x2_0000).express(0).function_level_reset()
        .ari().sriov(8, [128, 128], 2, vf(), 1 << 39);
    let cases = [
        // what,                        port,        function,                      buses,   how many, problem
        ("more than it has",            port(),      igb(),                         host(),  9, Total(8)),
        ("depends on another",          port(),      igb().dependent(1),            host(),  2, Dependent),
        ("no offset",                   port(),      nic([0, 0], 2),                host(),  2, Place),
        ("no stride",                   port(),      nic([128, 128], 0),            host(),  2, Place),
        ("past the last requester ID",  port(),      nic([0xff00, 0xff00], 0x100),  host(),  2, Place),
        ("no bus",                      port(),      nic([0x100, 0x100], 2),        small(), 2, NoBus),
        ("a port that does not forward", root_port(), igb(),                        host(),  2, NoForwarding),
        ("no capability",               port(),      nvme(),                        host(),  2, NotPhysical),
        ("no room",                     port(),      huge(),                        host(),  2, NoSpace(bar(0), 1 << 39)),
    ];
    for (what, port, function, host, count, problem) in cases {
        let machine = Machine::new(0, vec![((1, 0), port.with(0, 0, function))]);
        let found = find(&machine, &host, &[wanted("01:00.0", count)]);
        let physical = name("01:00.0");
        assert_eq!(found.problems(), [Problem::Virtual(physical, problem)], "{what}");
        assert!(!found.problems()[0].to_string().is_empty());
        // The function itself is as usable as any; nothing is enabled.
        assert!(device(&found, "01:00.0").usable, "{what}");
        assert!(found.virtual_functions(physical).all(|index| !found.devices()[index].usable), "{what}");
        assert_eq!(device(&found, "01:00.0").sriov, None, "{what}");
        if problem != NotPhysical {
            assert_eq!(registers(&machine, "01:00.0").0 & 1, 0, "{what}");
        }
    }
    let found = find(&Machine::new(0, vec![]), &host(), &[wanted("01:00.0", 1)]);
    assert_eq!(found.problems(), [Problem::Virtual(name("01:00.0"), NotPhysical)]);
}

#[test]
fn one_that_does_not_answer_is_left_out() {
    let nic = Node::endpoint(0x8086, 0x10c9, 0x020000)
        .express(0)
        .function_level_reset()
        .ari()
        .sriov(
            8,
            [128, 128],
            2,
            Node::endpoint(0xffff, 1, 0xff_ffff).left(8, &[0xff]),
            VF_SIZE,
        );
    let machine = Machine::new(0, vec![((1, 0), port().with(0, 0, nic))]);
    let start = now();
    let found = find(&machine, &host(), &[wanted("01:00.0", 3)]);
    let absent = |text| Problem::Virtual(name("01:00.0"), VirtualProblem::Absent(name(text)));
    assert_eq!(
        found.problems(),
        ["01:10.0", "01:10.2", "01:10.4"].map(absent)
    );
    assert!(now() - start < 1500, "they were all enabled at once");
    assert!(!device(&found, "01:10.0").usable);
    assert!(device(&found, "01:00.0").usable);
}

#[test]
fn a_virtual_function_stands_alone_below_a_port_that_isolates() {
    let groups = |port: Node, nic: Node| {
        let machine = Machine::new(0, vec![((1, 0), port.with(0, 0, nic))]);
        let found = find(&machine, &host(), &[wanted("01:00.0", 2)]);
        let groups = Groups::find(&found, |rid| Some((1, rid.into()))).expect("memory");
        let members = |sbdf: &str| {
            let index = found.position(name(sbdf)).expect("found");
            let members = groups.positions(&found, index);
            (members.count(), groups.reason(index))
        };
        ["01:00.0", "01:10.0", "01:10.2"].map(members)
    };
    assert_eq!(groups(port(), igb()), [(1, None); 3]);
    let open = Node::bridge(1, 1)
        .bar(0, 0, 0x1000)
        .express(4)
        .forwards_all();
    let below = Some(Reason::Below(name("00:01.0")));
    assert_eq!(groups(open, igb()), [(3, below); 3]);
    // Those that can reach each other say so, and redirect if they can.
    let with = |template: Node| {
        Node::endpoint(0x8086, 0x10c9, 0x020000)
            .express(0)
            .ari()
            .sriov(8, [128, 128], 2, template, VF_SIZE)
    };
    assert_eq!(groups(port(), with(vf().acs(0x0c))), [(1, None); 3]);
    let mut stuck = vf().acs(0x0c);
    stuck.make_writable(0x106, 0);
    let together = Some(Reason::MultiFunction(name("01:00.0")));
    assert_eq!(groups(port(), with(stuck)), [(3, together); 3]);
}

#[test]
fn a_reset_of_the_physical_function_brings_the_virtual_ones_back() {
    let machine = Machine::new(0, vec![((1, 0), port().with(0, 0, igb()))]);
    let found = find(&machine, &host(), &[wanted("01:00.0", 2)]);
    let before = registers(&machine, "01:00.0");
    let index = found.position(name("01:00.0")).expect("found");
    let method = found.reset_method(index, |_| false).expect("a reset");
    assert!(matches!(method, Method::FunctionLevel(_)));
    let mut reset = found.reset(index, method);
    assert_eq!(
        reset.step(&machine, &found, time()),
        Ok(Progress::Wait(100))
    );
    assert_eq!(registers(&machine, "01:00.0").0, 0, "they are gone");
    wait(100);
    assert_eq!(
        reset.step(&machine, &found, time()),
        Ok(Progress::Wait(100))
    );
    assert_eq!(registers(&machine, "01:00.0"), before, "and come back");
    wait(100);
    assert_eq!(reset.step(&machine, &found, time()), Ok(Progress::Done));
    assert!(
        machine
            .at(name("01:10.2"), |vf| vf.word(0) == 0xffff)
            .is_some()
    );
}

#[test]
fn a_virtual_function_is_reset_alone() {
    let slow = Node::endpoint(0x8086, 0x10c9, 0x020000)
        .express(0)
        .ari()
        .sriov(8, [128, 128], 2, vf().slow(5), VF_SIZE);
    let machine = Machine::new(0, vec![((1, 0), port().with(0, 0, slow))]);
    let found = find(&machine, &host(), &[wanted("01:00.0", 2)]);
    let reset = |sbdf: &str| {
        let index = found.position(name(sbdf)).expect("found");
        let method = found.reset_method(index, |_| false).expect("a reset");
        found.reset(index, method).run(&machine, &found, wait)
    };
    machine.at(name("01:10.0"), |vf| vf.space[4] = 6);
    machine.at(name("01:10.2"), |vf| vf.space[4] = 6);
    assert_eq!(reset("01:10.2"), Ok(()));
    let view = |vf: &mut Node| (vf.resets, vf.word(4));
    assert_eq!(machine.at(name("01:10.0"), view), Some((0, 6)));
    assert_eq!(machine.at(name("01:10.2"), view), Some((1, 0x400)));
    assert_eq!(registers(&machine, "01:00.0").0, 0x19);
    // One whose physical function is gone is reported.
    machine.at(name("01:00.0"), |node| node.space[0x110 + 8] = 0);
    machine.at(name("01:00.0"), Node::forget_virtual);
    assert_eq!(reset("01:10.2"), Err(ResetError::NotReady(name("01:10.2"))));
}

/// A reset of the whole bus, of a function that has no other.
#[test]
fn a_reset_of_the_bus_brings_all_back() {
    let nic = Node::endpoint(0x8086, 0x10c9, 0x020000)
        .bar(0, 0, 0x1000)
        .express(0)
        .ari()
        .sriov(8, [128, 128], 2, vf(), VF_SIZE);
    let machine = Machine::new(0, vec![((1, 0), port().with(0, 0, nic))]);
    let found = find(&machine, &host(), &[wanted("01:00.0", 2)]);
    let before = registers(&machine, "01:00.0");
    let index = found.position(name("01:00.0")).expect("found");
    assert_eq!(
        found.reset_method(index, |other| other == name("01:00.0")),
        None
    );
    let method = found.reset_method(index, |_| true).expect("a reset");
    assert_eq!(method, Method::SecondaryBus(name("00:01.0")));
    assert_eq!(
        found.reset(index, method).run(&machine, &found, wait),
        Ok(())
    );
    assert_eq!(registers(&machine, "01:00.0"), before);
    assert_eq!(machine.at(name("01:00.0"), |node| node.resets), Some(1));
}

/// Who may have a physical function and its virtual ones, and when each may be reset.
struct Table {
    machine: Machine,
    found: Hierarchy,
    groups: Groups,
    owners: Owners,
}

impl Table {
    fn new() -> Self {
        let machine = Machine::new(0, vec![((1, 0), port().with(0, 0, igb()))]);
        let found = find(&machine, &host(), &[wanted("01:00.0", 2)]);
        let groups = Groups::find(&found, |_| None).expect("memory");
        let owners = Owners::new(&found).expect("memory");
        Self {
            machine,
            found,
            groups,
            owners,
        }
    }

    fn index(&self, host: &str) -> usize {
        self.found.position(name(host)).expect("found")
    }

    /// Claims a function, and tells whether it is to be reset.
    fn claim(&mut self, host: &str, domain: u32) -> Result<bool, ClaimError> {
        let wish = Wish {
            domain,
            slot: name("00:05.0"),
            at_boot: false,
            allow_no_reset: false,
        };
        let claimed = self
            .owners
            .claim(&self.found, &self.groups, name(host), &wish, |_| None);
        claimed.map(|(_, method)| method.is_some())
    }

    /// Carries the reset out that was reserved for a function.
    fn reset(&mut self, host: &str) {
        let index = self.index(host);
        let method = self
            .found
            .reset_method(index, |_| false)
            .expect("function level reset");
        let reset = self.found.reset(index, method);
        let result = reset.clone().run(&self.machine, &self.found, wait);
        assert_eq!(result, Ok(()));
        self.owners.end_reset(&self.found, &reset, true);
    }

    /// Gives a function away.
    fn give(&mut self, host: &str, domain: u32) {
        if self.claim(host, domain) == Ok(true) {
            self.reset(host);
        }
        self.owners.settle(self.index(host));
    }

    /// Takes a function back, and tells whether it was reset.
    fn take_back(&mut self, host: &str) -> bool {
        let index = self.index(host);
        let method = self.owners.take_back(&self.found, index).expect("given");
        if method.is_some() {
            self.reset(host);
        }
        self.owners.release(index, true);
        method.is_some()
    }
}

#[test]
fn a_physical_function_is_not_reset_while_somebody_has_a_virtual_one() {
    let mut table = Table::new();
    table.give("01:10.0", 1);
    // Nobody had it: it needs no reset, and whoever has it may have it.
    assert_eq!(table.claim("01:00.0", 2), Ok(false));
    let physical = table.index("01:00.0");
    table.owners.settle(physical);
    assert_eq!(
        table
            .owners
            .begin_reset(&table.found, physical, |_| false, |_, _| true),
        None
    );
    // The other virtual function comes and goes meanwhile.
    assert_eq!(table.claim("01:10.2", 3), Ok(true));
    table.reset("01:10.2");
    let other = table.index("01:10.2");
    table.owners.settle(other);
    assert!(table.take_back("01:10.2"));
    // It is not the next one's before its virtual functions are back.
    assert!(!table.take_back("01:00.0"));
    let refused = ClaimError::Virtual(name("01:10.0"));
    assert_eq!(table.claim("01:00.0", 3), Err(refused));
    assert!(table.take_back("01:10.0"));
    assert_eq!(table.claim("01:00.0", 3), Ok(true));
    let resets = table.machine.at(name("01:00.0"), |node| node.resets);
    assert_eq!(resets, Some(1), "the one before they were enabled");
}

#[test]
fn virtual_functions_wait_for_the_reset_of_their_physical_one() {
    let mut table = Table::new();
    assert_eq!(table.claim("01:00.0", 1), Ok(true));
    assert_eq!(table.claim("01:10.0", 2), Err(ClaimError::Busy));
    table.reset("01:00.0");
    let physical = table.index("01:00.0");
    table.owners.settle(physical);
    // So they do when its domain starts again.
    let method = table
        .owners
        .begin_reset(&table.found, physical, |_| false, |_, _| false);
    assert!(method.is_some());
    assert_eq!(table.claim("01:10.2", 2), Err(ClaimError::Busy));
    table.reset("01:00.0");
    assert_eq!(table.owners.of(table.index("01:10.2")), Owner::Nobody);
    assert_eq!(table.claim("01:10.2", 2), Ok(true));
    // Reset when it was taken back, it may go on while they are given.
    let mut table = Table::new();
    table.give("01:00.0", 1);
    assert!(table.take_back("01:00.0"));
    table.give("01:10.0", 2);
    assert_eq!(table.claim("01:00.0", 3), Ok(false));
}

/// A network function: whether its port forwards all, the VFs that are wanted, the logarithm of the size of
/// their BAR, offset and stride.
type Nic = (bool, u16, u32, u16, u16);

fn nics() -> impl Strategy<Value = Vec<Nic>> {
    let nic = (any::<bool>(), 0u16..9, 12u32..34, 1u16..0x280, 1u16..0x90);
    prop::collection::vec(nic, 1..6)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

    #[test]
    fn virtual_functions_of_any_machine_are_apart(nics in nics(), small in any::<bool>()) {
        let root = nics.iter().zip(1..).map(|(&(all, _, size, first, stride), number)| {
            let function = Node::endpoint(0x8086, 0x10c9, 0x020000)
                .bar(0, 0, 0x2_0000)
                .express(0)
                .function_level_reset()
                .ari()
                .sriov(8, [first, first], stride, vf(), 1 << size);
            let port = if all { port() } else { root_port() };
            ((number, 0), port.with(0, 0, function))
        });
        let machine = Machine::new(0, root.collect());
        let mut host = host();
        if small {
            host.windows.truncate(1);
        }
        // Where the functions are depends on the buses that are reserved before them.
        let mut wishes = Vec::new();
        let mut found = find(&machine, &host, &wishes);
        for &(_, count, ..) in nics.iter().filter(|(_, count, ..)| *count != 0) {
            let mut free = found.devices().iter().filter(|device| {
                device.capabilities.sriov.is_some()
                    && wishes.iter().all(|wish: &Wanted| wish.physical < device.sbdf)
            });
            let Some(device) = free.next() else { break };
            wishes.push(Wanted { physical: device.sbdf, count });
            wait(100);
            found = find(&machine, &host, &wishes);
        }
        prop_assert!(found.devices().is_sorted_by(|a, b| a.sbdf < b.sbdf));
        let mut ranges = Vec::new();
        for device in found.devices() {
            let bars = device.bars.iter().flatten();
            for bar in bars.filter_map(|bar| Some((bar.placement?, bar.size))) {
                let (start, size) = (bar.0.bus.get(), bar.1);
                prop_assert!(start.is_multiple_of(size));
                ranges.push((start, start + size));
                let parent = device.parent.and_then(|parent| found.devices()[parent].bridge());
                if let Some(bridge) = parent.filter(|_| device.usable) {
                    let windows = [bridge.memory, bridge.prefetchable];
                    let mut windows = windows.iter().flatten();
                    let holds = windows.any(|window| {
                        window.start().get() <= start && start + size - 1 <= window.last().get()
                    });
                    prop_assert!(holds, "{} {start:#x}", device.sbdf);
                }
            }
            let Some(own) = device.virtual_function else { continue };
            let port = device.parent.map(|parent| &found.devices()[parent]).expect("a port");
            let bridge = port.bridge().expect("a bridge");
            let bus = device.sbdf.bus();
            prop_assert!((bridge.secondary..=bridge.subordinate).contains(&bus));
            let mut bridges = found.devices().iter().filter_map(|other| other.bridge());
            prop_assert!(bus == own.physical.bus() || bridges.all(|other| other.secondary != bus));
            prop_assert!(!device.usable || device.bars[0].is_some_and(|bar| bar.placement.is_some()));
        }
        ranges.sort_unstable();
        prop_assert!(ranges.windows(2).all(|pair| pair[0].1 <= pair[1].0), "{ranges:x?}");
    }
}
