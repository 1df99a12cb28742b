//! Random machines: whatever they hold, places and buses are consistent.

use proptest::prelude::*;

use super::simulation::{Machine, Node};
use super::{check_placement, downstream, enumerate, host, root_port, upstream};

fn endpoint() -> impl Strategy<Value = Node> {
    let bars = prop::collection::vec((0u32..5, 4u32..30), 0..4);
    (bars, prop::option::of(11u32..25)).prop_map(|(bars, rom)| {
        let mut node = Node::endpoint(0x1234, 0x5678, 0x020000);
        let mut index = 0;
        for (kind, size) in bars {
            let flags = [0x0, 0x8, 0x4, 0xc, 0x1][kind as usize];
            if index + 1 < 6 {
                node = node.bar(index, flags, 1 << size);
            }
            index += if flags & 7 == 4 { 2 } else { 1 };
        }
        if let Some(size) = rom {
            node = node.rom(1 << size);
        }
        node
    })
}

fn node() -> impl Strategy<Value = Node> {
    endpoint().prop_recursive(4, 24, 4, |below| {
        let list = prop::collection::vec(below.clone(), 0..4);
        prop_oneof![
            below.prop_map(|node| root_port().with(0, 0, node)),
            list.clone()
                .prop_map(|nodes| fill(Node::bridge(1, 1).bar(0, 4, 0x100), nodes)),
            list.prop_map(|nodes| {
                let ports = nodes
                    .into_iter()
                    .map(|node| downstream().with(0, 0, node))
                    .collect();
                fill(upstream(), ports)
            }),
        ]
    })
}

fn fill(bridge: Node, nodes: Vec<Node>) -> Node {
    nodes
        .into_iter()
        .zip(1..)
        .fold(bridge, |bridge, (node, device)| {
            bridge.with(device, 0, node)
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_machine_is_placed_consistently(
        nodes in prop::collection::vec(node(), 1..8),
        small in prop::bool::ANY,
    ) {
        let root = nodes.into_iter().zip(1..).map(|(node, device)| ((device, 0), node)).collect();
        let machine = Machine::new(0, root);
        let mut host = host();
        if small {
            host.windows.truncate(1);
        }
        let found = enumerate(&machine, &host).expect("memory");
        check_placement(&machine, &found, &host);
        let again = enumerate(&machine, &host).expect("memory");
        prop_assert_eq!(found.devices(), again.devices());
        prop_assert!(found.devices().is_sorted_by(|a, b| a.sbdf < b.sbdf));
    }
}
