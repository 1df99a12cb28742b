//! Who may have what: groups, and resets that take others along.

use super::simulation::{Machine, Node, time, wait};
use super::{downstream, edu, enumerate, host, name, nvme, root_port, upstream};
use pci::{
    ClaimError, Groups, Hierarchy, Method, Owner, Owners, Progress, Reason, Reset, ResetError, Wish,
};
use vpci::Sbdf;

/// ```text
/// 00:01.0 nvme                       stands alone, resets itself
/// 00:02.0 pci-bridge 01:01.0 edu     one group, reset together or not at all
///                    01:02.0 edu
/// 00:03.0 root port  02:00.0 edu     apart by access control, reset together
///                    02:00.1 edu
/// 00:04.0 root port  03:00.0 switch  05:00.0 nvme, 06:00.0 nvme: a group, each resets itself
/// ```
fn machine() -> Machine {
    let apart = || edu().express(0).acs(0x0c);
    let switch = upstream().with(0, 0, downstream().with(0, 0, nvme())).with(
        1,
        0,
        downstream().with(0, 0, nvme()),
    );
    Machine::new(
        0,
        vec![
            ((1, 0), nvme()),
            (
                (2, 0),
                Node::bridge(1, 1).with(1, 0, edu()).with(2, 0, edu()),
            ),
            (
                (3, 0),
                root_port()
                    .with(0, 0, apart().multi_function())
                    .with(0, 1, apart()),
            ),
            ((4, 0), root_port().with(0, 0, switch)),
        ],
    )
}

struct Table {
    machine: Machine,
    found: Hierarchy,
    groups: Groups,
    owners: Owners,
}

fn wish(domain: u32) -> Wish {
    Wish {
        domain,
        slot: name("00:05.0"),
        at_boot: false,
        allow_no_reset: false,
    }
}

impl Table {
    fn new() -> Self {
        Self::of_machine(machine())
    }

    fn of_machine(machine: Machine) -> Self {
        let found = enumerate(&machine, &host()).expect("memory");
        let groups = Groups::find(&found, |_| None).expect("memory");
        let owners = Owners::new(&found).expect("memory");
        Self {
            machine,
            found,
            groups,
            owners,
        }
    }

    fn claim(&mut self, host: &str, wish: &Wish) -> Result<(usize, Option<Method>), ClaimError> {
        self.planned(host, wish, |_| None)
    }

    fn planned(
        &mut self,
        host: &str,
        wish: &Wish,
        planned: impl Fn(Sbdf) -> Option<u32>,
    ) -> Result<(usize, Option<Method>), ClaimError> {
        self.owners
            .claim(&self.found, &self.groups, name(host), wish, planned)
    }

    /// Gives a function away, with the reset that it takes.
    fn give(&mut self, host: &str, wish: &Wish) -> Option<Method> {
        let (index, method) = self
            .claim(host, wish)
            .unwrap_or_else(|error| panic!("{host}: {error:?}"));
        self.end(index, method, Ok(()));
        self.owners.settle(index);
        method
    }

    fn end(&mut self, index: usize, method: Option<Method>, expected: Result<(), ResetError>) {
        let Some(method) = method else { return };
        let reset = self.found.reset(index, method);
        let result = reset.clone().run(&self.machine, &self.found, wait);
        assert_eq!(result, expected);
        self.owners.end_reset(&self.found, &reset, result.is_ok());
    }

    /// Begins the reset of a function that a domain keeps, which has begun these already.
    fn begin_reset(
        &mut self,
        index: usize,
        begun: &[&Reset],
        along: impl Fn(u32, Sbdf) -> bool,
    ) -> Option<Method> {
        let Self { found, owners, .. } = self;
        let own = |index| begun.iter().any(|reset| reset.reserves(found, index));
        owners.begin_reset(found, index, own, along)
    }

    fn of(&self, host: &str) -> Owner {
        self.owners
            .of(self.found.position(name(host)).expect("found"))
    }

    fn index(&self, host: &str) -> usize {
        self.found.position(name(host)).expect("found")
    }
}

#[test]
fn a_function_has_one_owner() {
    let mut table = Table::new();
    let given = table.claim("00:01.0", &wish(1)).expect("free");
    assert_eq!(table.claim("00:01.0", &wish(1)), Err(ClaimError::Busy));
    assert_eq!(table.claim("00:01.0", &wish(2)), Err(ClaimError::Busy));
    assert_eq!(
        table.owners.take_back(&table.found, given.0),
        Err(ClaimError::Busy)
    );
    table.owners.settle(given.0);
    assert_eq!(table.claim("00:01.0", &wish(2)), Err(ClaimError::Taken(1)));
    assert_eq!(
        table.owners.take_back(&table.found, given.0),
        Ok(given.1),
        "the way it came"
    );
    assert_eq!(
        table.owners.take_back(&table.found, given.0),
        Err(ClaimError::Busy)
    );
    table.owners.release(given.0, true);
    assert_eq!(table.of("00:01.0"), Owner::Nobody);
    assert_eq!(
        table.owners.take_back(&table.found, given.0),
        Err(ClaimError::NotThere)
    );
    assert!(table.claim("00:01.0", &wish(2)).is_ok());
}

#[test]
fn what_is_no_endpoint_is_not_given() {
    let mut table = Table::new();
    for (host, error) in [
        ("00:02.0", ClaimError::NotUsable),
        ("04:00.0", ClaimError::NotUsable),
        ("00:09.0", ClaimError::NotThere),
        ("0001:00:01.0", ClaimError::NotThere),
    ] {
        assert_eq!(table.claim(host, &wish(1)), Err(error), "{host}");
    }
}

#[test]
fn a_group_goes_to_one_domain() {
    let mut table = Table::new();
    let group =
        |host, domain, port| ClaimError::Group(name(host), domain, Some(Reason::Below(name(port))));
    // Its neighbour is nobody's, and quiet.
    table.give("05:00.0", &wish(1));
    assert_eq!(
        table.claim("06:00.0", &wish(2)),
        Err(group("05:00.0", Some(1), "04:00.0"))
    );
    table.give("06:00.0", &wish(1));
    // Taken back, it is still the first one's as long as that has its neighbour.
    let index = table.index("05:00.0");
    let back = table
        .owners
        .take_back(&table.found, index)
        .expect("settled");
    assert_eq!(table.claim("06:00.0", &wish(2)), Err(ClaimError::Taken(1)));
    table.end(index, back, Ok(()));
    table.owners.release(index, true);
    assert_eq!(
        table.claim("05:00.0", &wish(2)),
        Err(group("06:00.0", Some(1), "04:00.0"))
    );
    assert!(table.claim("05:00.0", &wish(1)).is_ok());
}

#[test]
fn at_boot_a_group_that_two_are_to_have_goes_to_nobody() {
    let mut table = Table::new();
    let planned = |sbdf| (sbdf == name("06:00.0")).then_some(2);
    let error = table.planned("05:00.0", &wish(1), planned).err();
    assert_eq!(
        error,
        Some(ClaimError::Group(
            name("06:00.0"),
            Some(2),
            Some(Reason::Below(name("04:00.0")))
        ))
    );
    let planned = |sbdf| (sbdf == name("06:00.0")).then_some(1);
    assert!(table.planned("05:00.0", &wish(1), planned).is_ok());
}

#[test]
fn one_whose_reset_failed_keeps_its_group_from_others() {
    let mut table = Table::new();
    table.give("05:00.0", &wish(1));
    let index = table.index("05:00.0");
    table
        .owners
        .take_back(&table.found, index)
        .expect("settled");
    table.owners.release(index, false);
    assert_eq!(table.of("05:00.0"), Owner::Broken);
    assert_eq!(
        table.claim("06:00.0", &wish(1)),
        Err(ClaimError::Group(
            name("05:00.0"),
            None,
            Some(Reason::Below(name("04:00.0")))
        ))
    );
    // A reset that works makes it sound.
    table.give("05:00.0", &wish(1));
    assert!(table.claim("06:00.0", &wish(1)).is_ok());
}

#[test]
fn a_bus_is_reset_while_nobody_uses_it() {
    let mut table = Table::new();
    let bus = Some(Method::SecondaryBus(name("00:03.0")));
    let (index, method) = table.claim("02:00.0", &wish(1)).expect("free");
    assert_eq!(method, bus);
    // The other one is in the same reset, and so waits.
    assert_eq!(table.of("02:00.1"), Owner::Resetting);
    assert_eq!(table.claim("02:00.1", &wish(2)), Err(ClaimError::Busy));
    table.end(index, method, Ok(()));
    assert_eq!(table.of("02:00.1"), Owner::Nobody);
    // Before the first has arrived nobody can say whether there will be a way.
    assert_eq!(table.claim("02:00.1", &wish(1)), Err(ClaimError::Busy));
    table.owners.settle(index);
    // The first is in use, by whomever.
    assert_eq!(table.claim("02:00.1", &wish(1)), Err(ClaimError::NoReset));
    assert_eq!(table.claim("02:00.1", &wish(2)), Err(ClaimError::NoReset));
    let without = Wish {
        allow_no_reset: true,
        ..wish(2)
    };
    assert_eq!(table.give("02:00.1", &without), None);
    // Both in use: none can be reset on its way back, but the last one.
    let other = table.index("02:00.1");
    assert_eq!(table.owners.take_back(&table.found, index), Ok(None));
    table.owners.release(index, true);
    assert_eq!(table.owners.take_back(&table.found, other), Ok(bus));
    assert_eq!(table.of("02:00.0"), Owner::Resetting);
    table.end(other, bus, Ok(()));
    table.owners.release(other, true);
    assert_eq!(table.of("02:00.0"), Owner::Nobody);
}

#[test]
fn a_bus_is_reset_at_boot_and_with_its_domain() {
    let mut table = Table::new();
    let on_bus = Method::SecondaryBus(name("00:02.0"));
    let bus = Some(on_bus);
    let at_boot = Wish {
        at_boot: true,
        ..wish(1)
    };
    assert_eq!(table.give("01:01.0", &at_boot), bus);
    assert_eq!(table.give("01:02.0", &at_boot), bus);
    let [one, other] = ["01:01.0", "01:02.0"].map(|host| table.index(host));
    // A guest that resets one keeps using the other.
    assert_eq!(table.begin_reset(one, &[], |_, _| false), None);
    let elsewhere = |_, slot| slot == name("00:06.0");
    assert_eq!(table.begin_reset(one, &[], elsewhere), None);
    let method = table.begin_reset(one, &[], |domain, _| domain == 1);
    assert_eq!(method, bus);
    let reset = table.found.reset(one, on_bus);
    assert!(reset.covers(other));
    table.end(one, method, Ok(()));
    assert_eq!(
        table.of("01:02.0"),
        Owner::Domain {
            domain: 1,
            slot: name("00:05.0"),
            settled: true
        }
    );
}

#[test]
fn what_a_domain_keeps_is_sound_once_its_reset_has_not_failed() {
    let mut table = Table::new();
    let at_boot = Wish {
        at_boot: true,
        ..wish(1)
    };
    let [one, other, apart] = ["01:01.0", "01:02.0", "00:01.0"].map(|host| {
        table.give(host, &at_boot);
        table.index(host)
    });
    let method = table.begin_reset(one, &[], |_, _| true);
    let reset = table.found.reset(one, method.expect("the bus"));
    for sound in [false, true, false] {
        table.owners.end_reset(&table.found, &reset, sound);
        for (index, expected) in [(one, sound), (other, sound), (apart, true)] {
            assert_eq!(table.owners.is_sound(index), expected, "{index}");
        }
    }
    // What became of it does not depend on who has it.
    table.owners.release(one, true);
    assert!(!table.owners.is_sound(one));
    assert!(!table.owners.is_sound(usize::MAX));
}

#[test]
fn a_reset_that_fails_leaves_what_it_took_along_broken() {
    let mut table = Table::new();
    let (index, method) = table.claim("02:00.0", &wish(1)).expect("free");
    table
        .machine
        .at(name("02:00.1"), |node| node.freeze(0x10, &[0; 4]));
    let failed = Err(ResetError::NotRestored(name("02:00.1")));
    table.end(index, method, failed);
    table.owners.release(index, false);
    assert_eq!(table.of("02:00.0"), Owner::Broken);
    assert_eq!(table.of("02:00.1"), Owner::Broken);
    // They stand apart: the other one may be tried, with the same reset.
    assert!(table.claim("02:00.1", &wish(2)).is_ok());
}

/// A domain has a function on a bus, and one on a bus below that, beside one that nobody has. The latter bus
/// may come first, and may be in reset already since a guest asked for it.
#[test]
fn the_reset_of_a_bus_takes_over_that_of_a_bus_below_it() {
    let bus = || Node::bridge(1, 1).with(1, 0, edu());
    let outer = bus().with(2, 0, bus().with(2, 0, edu()));
    let mut table = Table::of_machine(Machine::new(0, vec![((2, 0), outer)]));
    let at_boot = Wish {
        at_boot: true,
        ..wish(1)
    };
    let [outer, inner] = ["01:01.0", "02:01.0"].map(|host| {
        table.give(host, &at_boot);
        table.index(host)
    });
    let all = |domain, _| domain == 1;
    for steps in 0..3 {
        let method = table.begin_reset(inner, &[], all);
        assert_eq!(method, Some(Method::SecondaryBus(name("01:02.0"))));
        let mut below = table.found.reset(inner, method.expect("the bus"));
        assert_eq!(table.of("02:02.0"), Owner::Resetting);
        for _ in 0..steps {
            let progress = below.step(&table.machine, &table.found, time());
            let Ok(Progress::Wait(milliseconds)) = progress else {
                panic!("{progress:?}");
            };
            wait(milliseconds);
        }
        let without = Wish {
            allow_no_reset: true,
            ..wish(2)
        };
        assert_eq!(table.claim("02:02.0", &without), Err(ClaimError::Busy));
        assert_eq!(table.begin_reset(outer, &[], all), None, "it is another's");
        let method = table.begin_reset(outer, &[&below], all);
        assert_eq!(
            method,
            Some(Method::SecondaryBus(name("00:02.0"))),
            "{steps}"
        );
        assert_eq!(table.claim("02:02.0", &without), Err(ClaimError::Busy));
        table.end(outer, method, Ok(()));
        assert_eq!(table.of("02:02.0"), Owner::Nobody, "{steps}");
        for bridge in ["00:02.0", "01:02.0"] {
            let held = table
                .machine
                .at(name(bridge), |node| node.space[0x3e] & 0x40);
            assert_eq!(held, Some(0), "{bridge} after {steps}");
        }
    }
}
