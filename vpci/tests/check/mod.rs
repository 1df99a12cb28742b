//! What holds for a machine whatever its guest did.

use std::collections::BTreeMap;

use vpci::{BarInfo, BusAddress, BusRange, Decoder, PAGE};

use crate::machine::{HIGH, LOW, Machine};

/// Checks that a guest reaches what its BARs decode inside the bridge's windows, in whole pages that are
/// no one else's, and nothing besides.
pub(crate) fn check(machine: &Machine) {
    let windows =
        [LOW, HIGH].map(|(start, size)| BusRange::new(BusAddress::new(start), size).unwrap());
    let granted: Vec<_> = machine.bus.memory.granted().collect();
    for pair in granted.windows(2) {
        assert!(pair[0].0.last() < pair[1].0.start(), "{granted:?}");
    }
    let mut expected = BTreeMap::new();
    for (range, decoder) in granted {
        let Decoder::Bar { function, bar } = decoder else {
            panic!("there is no device model");
        };
        assert!(
            windows.iter().any(|window| window.covers(range)),
            "{range:?}"
        );
        let decoded = machine.functions[function].function.decoded(bar);
        assert_eq!(decoded, Some(range), "{bar:?} of function {function}");
        expected.extend(machine.edges(function, bar, range));
    }
    assert_eq!(machine.stage2, expected, "stage 2 is not what is granted");
    for &host in machine.stage2.values() {
        check_host(machine, host, PAGE);
    }
    for assigned in &machine.functions {
        // What EL2 emulates never reaches the device.
        assert_eq!(*assigned.function.device().written.borrow(), []);
    }
}

/// Checks that `host..host + bytes` is inside one memory BAR, and beside MSI-X table and pending bits.
pub(crate) fn check_host(machine: &Machine, host: u64, bytes: u64) {
    let inside = |bar: &BarInfo| bar.host <= host && host + bytes <= bar.host + bar.size;
    let owner = machine.functions.iter().find_map(|assigned| {
        let bar = assigned.function.bars().find(inside)?;
        Some((assigned, bar))
    });
    let Some((assigned, bar)) = owner else {
        panic!("{host:#x} is in no BAR");
    };
    let Some(layout) = assigned.function.msix_layout() else {
        return;
    };
    for place in [layout.table, layout.pending] {
        let start = bar.host + place.offset;
        let clear = place.bar != bar.index || host + bytes <= start || host >= start + place.size;
        // Pending bits may be read: a single access to them comes from a read.
        assert!(
            clear || bytes < PAGE && place == layout.pending,
            "{host:#x} is the table's"
        );
    }
}
