//! Devices with functions above 7: found by what ARI says, grouped and brought back.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::simulation::{Machine, Node, wait};
use super::{
    check_placement, device, downstream, enumerate, host, name, nvme, root_port, upstream,
};
use pci::{Groups, Hierarchy, Method, Problem, Reason, VirtualProblem, Wanted};

fn port() -> Node {
    root_port().forwards_all()
}

/// Puts a device below a port: its functions, by their numbers.
fn fill(port: Node, functions: impl IntoIterator<Item = (u8, Node)>) -> Node {
    let functions = functions.into_iter();
    functions.fold(port, |port, (number, node)| {
        port.with(number >> 3, number & 7, node)
    })
}

/// Returns the numbers of what was found on a bus.
fn numbers(found: &Hierarchy, bus: u8) -> Vec<u8> {
    let devices = found.devices().iter().map(|device| device.sbdf);
    let on_bus = devices.filter(|sbdf| sbdf.bus() == bus);
    on_bus.map(|sbdf| sbdf.device_function()).collect()
}

/// An interface and a switch, each with such a device below; the second is reset with the switch.
fn machine() -> Machine {
    let ari = |next| nvme().acs(0x0c).ari_before(next);
    let functions = || {
        [
            (0, ari(1).multi_function()),
            (1, ari(8)),
            (8, ari(0xff).left(4, &[0x06, 0])),
            (0xff, ari(0)),
        ]
    };
    let down = downstream().acs(0x1d).forwards_all();
    let switch = upstream().with(0, 0, fill(down, functions()));
    Machine::new(
        0,
        vec![
            ((1, 0), fill(port(), functions())),
            ((2, 0), root_port().with(0, 0, switch)),
        ],
    )
}

#[test]
fn functions_above_7_are_functions_like_others() {
    let machine = machine();
    let found = enumerate(&machine, &host()).expect("memory");
    assert_eq!(found.problems(), []);
    let groups = Groups::find(&found, |rid| Some((0, rid.into()))).expect("memory");
    for bus in [1, 4] {
        assert_eq!(numbers(&found, bus), [0, 1, 8, 0xff]);
        for (index, device) in found.devices().iter().enumerate() {
            if device.sbdf.bus() == bus {
                assert!(device.usable);
                assert_eq!(found.requester_id(device), device.sbdf.rid());
                assert_eq!(groups.positions(&found, index).count(), 1);
            }
        }
    }
    // They are off, also what firmware left on, and their BARs are where the ports lead.
    check_placement(&machine, &found, &host());
}

#[test]
fn a_reset_brings_functions_above_7_back() {
    let machine = machine();
    let found = enumerate(&machine, &host()).expect("memory");
    let reset = |sbdf: &str, method| {
        let index = found.position(name(sbdf)).expect("found");
        found.reset(index, method).run(&machine, &found, wait)
    };
    let resets = |sbdf: &str| machine.at(name(sbdf), |node| node.resets);
    let express = device(&found, "01:01.0").express.expect("PCI Express");
    let alone = Method::FunctionLevel(express.offset);
    assert_eq!(reset("01:01.0", alone), Ok(()));
    assert_eq!((resets("01:00.0"), resets("01:01.0")), (Some(0), Some(1)));
    let bus = Method::SecondaryBus(name("00:01.0"));
    assert_eq!(reset("01:01.0", bus), Ok(()));
    assert_eq!((resets("01:00.0"), resets("01:1f.7")), (Some(1), Some(1)));
    // The port itself is reset with the switch that it belongs to.
    let switch = Method::SecondaryBus(name("00:02.0"));
    assert_eq!(reset("02:00.0", switch), Ok(()));
    assert_eq!(resets("04:1f.7"), Some(1));
    check_placement(&machine, &found, &host());
}

/// One that redirects nothing can reach any function of its device, whatever their numbers.
#[test]
fn all_functions_of_a_link_are_one_device() {
    let open = |at: u8| {
        let ari = |number: u8, next| {
            let node = nvme().ari_before(next);
            let node = if number == at { node } else { node.acs(0x0c) };
            (number, node)
        };
        let functions = [ari(0, 8), ari(8, 9), ari(9, 0x20), ari(0x20, 0)];
        let other = root_port().with(0, 0, nvme().acs(0x0c));
        let root = vec![((1, 0), fill(port(), functions)), ((2, 0), other)];
        let found = enumerate(&Machine::new(0, root), &host()).expect("memory");
        let groups = Groups::find(&found, |_| None).expect("memory");
        let all = ["01:00.0", "01:01.0", "01:01.1", "01:04.0", "02:00.0"];
        all.map(|sbdf| {
            let index = found.position(name(sbdf)).expect("found");
            (
                groups.positions(&found, index).count(),
                groups.reason(index),
            )
        })
    };
    let together = (4, Some(Reason::MultiFunction(name("01:00.0"))));
    for at in [0, 8, 9, 0x20] {
        let expected = [together, together, together, together, (1, None)];
        assert_eq!(open(at), expected, "{at:#x}");
    }
    assert_eq!(open(0x80), [(1, None); 5]);
}

#[test]
fn only_a_port_that_can_leads_to_functions_above_7() {
    let functions = || [(0, nvme().ari_before(8)), (8, nvme().ari_before(0))];
    let found = |root: Node| {
        let machine = Machine::new(0, vec![((1, 0), root)]);
        let found = enumerate(&machine, &host()).expect("memory");
        assert_eq!(found.problems(), []);
        let forwards = |port: &mut Node| port.word(0x4c + 0x28) & 0x20 != 0;
        (numbers(&found, 1), machine.at(name("00:01.0"), forwards))
    };
    let both = fill(port(), functions());
    assert_eq!(found(both), (vec![0, 8], Some(true)));
    let cannot = fill(root_port(), functions());
    assert_eq!(found(cannot), (vec![0], Some(false)));
    let [(_, zero), _] = functions();
    let without = fill(port(), [(0, nvme()), (8, zero)]);
    assert_eq!(found(without), (vec![0], Some(false)), "function 0 counts");
    // On the root bus, what comes next is another device.
    let root = vec![((0, 0), nvme().ari_before(9)), ((1, 0), nvme())];
    let found = enumerate(&Machine::new(0, root), &host()).expect("memory");
    assert_eq!(
        (numbers(&found, 0), found.problems()),
        (vec![0, 8], &[][..])
    );
}

/// With ARI, the function that virtual ones depend on is named by all eight bits.
#[test]
fn a_physical_function_above_7_depends_on_itself_only() {
    let vf = Node::endpoint(0xffff, 0x10ca, 0x020000).express(0);
    let nic = |leader| {
        let nic = nvme().ari_before(0);
        nic.sriov(8, [16, 16], 1, vf.clone(), 0x4000)
            .dependent(leader)
    };
    for (leader, expected) in [
        (8, (vec![0, 8, 24, 25], None)),
        (0, (vec![0, 8], Some(VirtualProblem::Dependent))),
    ] {
        let functions = [(0, nvme().ari_before(8)), (8, nic(leader))];
        let machine = Machine::new(0, vec![((1, 0), fill(port(), functions))]);
        let physical = name("01:01.0");
        let wanted = [Wanted { physical, count: 2 }];
        let found = pci::enumerate(&machine, &host(), &wanted, &mut wait).expect("memory");
        let problems = expected
            .1
            .map(|problem| Problem::Virtual(physical, problem));
        assert_eq!(numbers(&found, 1), expected.0);
        assert!(found.problems().iter().eq(problems.iter()));
    }
}

proptest! {
    /// Whatever the functions say of each other, the walk ends: what it finds is what the chain leads to as
    /// long as the numbers grow, and functions 0 to 7 besides.
    #[test]
    fn a_chain_is_followed_as_long_as_it_makes_sense(
        functions in prop::collection::btree_map(0..20_u8, prop::option::weighted(0.9, 0..20_u8), 1..20),
        first in prop::option::weighted(0.9, 0..20_u8),
    ) {
        let mut functions: BTreeMap<u8, Option<u8>> = functions;
        functions.insert(0, first);
        let nodes = functions.iter().map(|(&number, &next)| {
            let node = nvme().multi_function();
            (number, match next {
                Some(next) => node.ari_before(next),
                None => node,
            })
        });
        let machine = Machine::new(0, vec![((1, 0), fill(port(), nodes))]);
        let found = enumerate(&machine, &host()).expect("memory");
        let mut expected: Vec<u8> = functions.keys().copied().filter(|number| *number < 8).collect();
        let (mut at, mut broken) = (0, None);
        while let Some(&Some(next)) = functions.get(&at) && next != 0 {
            if next <= at || !functions.contains_key(&next) {
                broken = Some(at);
                break;
            }
            at = next;
            expected.push(at);
        }
        expected.sort_unstable();
        expected.dedup();
        prop_assert_eq!(numbers(&found, 1), expected);
        let broken = broken.map(|at| Problem::Chain(vpci::Sbdf::from_rid(0, 0x100 | u16::from(at))));
        prop_assert!(found.problems().iter().eq(broken.iter()));
        check_placement(&machine, &found, &host());
    }
}
