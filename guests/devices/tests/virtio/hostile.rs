//! A driver that breaks every rule gets DEVICE_NEEDS_RESET, and nothing else.

use crate::support::*;
use ioreq::Width;
use proptest::prelude::*;

const END: u64 = RAM + RAM_BYTES as u64;

/// Expects that the device has given up, says so by its configuration vector, and works again after
/// a reset.
fn expect_needs_reset(mut driver: Driver, what: &str) {
    assert_ne!(driver.status() & NEEDS_RESET, 0, "{what}");
    let messages = &driver.target.host.messages;
    assert_eq!(messages.last(), Some(&(DOORBELL, 0x100)), "{what}");
    let reports = &driver.target.host.reports;
    assert_eq!(reports.len(), 1, "{what}: {reports:?}");
    // It does nothing more.
    driver.target.ram.writes.borrow_mut().clear();
    driver.notify();
    driver.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    driver.notify();
    assert_ne!(
        driver.status() & NEEDS_RESET,
        0,
        "{what}: the driver cannot clear it"
    );
    assert!(driver.target.ram.writes.borrow().is_empty(), "{what}");
    driver.restart(INDIRECT | EVENT_IDX);
    assert_eq!(driver.request(0, 5, 512, WRITE), (0, 513), "{what}");
}

/// One descriptor: table, index, address, bytes, flags, next.
type Descriptor = (u64, u16, u64, u32, u16, u16);

#[test]
#[rustfmt::skip]
fn chains_that_make_no_sense_are_refused() {
    let cases: &[(&str, u64, &[Descriptor])] = &[
        ("loop of one",              0,        &[(DESCRIPTORS, 0, DATA, 16, NEXT, 0)]),
        ("loop of two",              0,        &[(DESCRIPTORS, 0, DATA, 16, NEXT, 1), (DESCRIPTORS, 1, DATA, 16, NEXT, 0)]),
        ("next past the table",      0,        &[(DESCRIPTORS, 0, DATA, 16, NEXT, QUEUE_SIZE)]),
        ("next far past the table",  0,        &[(DESCRIPTORS, 0, DATA, 16, NEXT, 0xffff)]),
        ("empty buffer",             0,        &[(DESCRIPTORS, 0, DATA, 0, 0, 0)]),
        ("empty last buffer",        0,        &[(DESCRIPTORS, 0, HEADER, 16, NEXT, 1), (DESCRIPTORS, 1, STATUS, 0, WRITE, 0)]),
        ("before memory",            0,        &[(DESCRIPTORS, 0, RAM - 1, 16, NEXT, 1), (DESCRIPTORS, 1, STATUS, 1, WRITE, 0)]),
        ("behind memory",            0,        &[(DESCRIPTORS, 0, HEADER, 16, NEXT, 1), (DESCRIPTORS, 1, END, 1, WRITE, 0)]),
        ("across the end",           0,        &[(DESCRIPTORS, 0, HEADER, 16, NEXT, 1), (DESCRIPTORS, 1, END - 1, 2, WRITE, 0)]),
        ("around the end of time",   0,        &[(DESCRIPTORS, 0, HEADER, 16, NEXT, 1), (DESCRIPTORS, 1, u64::MAX - 1, 16, WRITE, 0)]),
        ("four GiB",                 0,        &[(DESCRIPTORS, 0, HEADER, u32::MAX, NEXT, 1), (DESCRIPTORS, 1, STATUS, u32::MAX, WRITE, 0)]),
        ("readable after writable",  0,        &[(DESCRIPTORS, 0, STATUS, 1, WRITE | NEXT, 1), (DESCRIPTORS, 1, HEADER, 16, 0, 0)]),
        ("short header",             0,        &[(DESCRIPTORS, 0, HEADER, 15, NEXT, 1), (DESCRIPTORS, 1, STATUS, 1, WRITE, 0)]),
        ("no status",                0,        &[(DESCRIPTORS, 0, HEADER, 16, 0, 0)]),
        ("nothing to read",          0,        &[(DESCRIPTORS, 0, STATUS, 1, WRITE, 0)]),
        ("indirect, not negotiated", 0,        &[(DESCRIPTORS, 0, TABLE, 32, INDIRECT_TABLE, 0)]),
        ("indirect and next",        INDIRECT, &[(DESCRIPTORS, 0, TABLE, 32, INDIRECT_TABLE | NEXT, 1)]),
        ("indirect, empty",          INDIRECT, &[(DESCRIPTORS, 0, TABLE, 0, INDIRECT_TABLE, 0)]),
        ("indirect, odd size",       INDIRECT, &[(DESCRIPTORS, 0, TABLE, 24, INDIRECT_TABLE, 0)]),
        ("indirect, outside",        INDIRECT, &[(DESCRIPTORS, 0, END - 16, 32, INDIRECT_TABLE, 0)]),
        ("indirect in indirect",     INDIRECT, &[(DESCRIPTORS, 0, TABLE, 32, INDIRECT_TABLE, 0), (TABLE, 0, TABLE, 32, INDIRECT_TABLE, 0)]),
        ("indirect loop",            INDIRECT, &[(DESCRIPTORS, 0, TABLE, 32, INDIRECT_TABLE, 0), (TABLE, 0, DATA, 16, NEXT, 1), (TABLE, 1, DATA, 16, NEXT, 0)]),
        ("indirect past its table",  INDIRECT, &[(DESCRIPTORS, 0, TABLE, 32, INDIRECT_TABLE, 0), (TABLE, 0, DATA, 16, NEXT, 2)]),
        ("indirect, huge and looping", INDIRECT, &[(DESCRIPTORS, 0, TABLE, 0x1_0000, INDIRECT_TABLE, 0), (TABLE, 0, DATA, 16, NEXT, 0)]),
    ];
    for (what, features, descriptors) in cases {
        let mut driver = Driver::start(&Disk::default(), *features);
        driver.put_header(0, 5);
        for &(table, index, address, bytes, flags, next) in *descriptors {
            driver.describe(table, index, address, bytes, flags, next);
        }
        driver.make_available(0);
        driver.notify();
        assert!(driver.take_used().is_none(), "{what}");
        expect_needs_reset(driver, what);
    }
}

#[test]
fn a_chain_of_more_segments_than_any_queue_has_is_refused() {
    let mut driver = Driver::start(&Disk::default(), INDIRECT);
    for index in 0..300 {
        driver.describe(TABLE, index, DATA, 16, NEXT, index + 1);
    }
    driver.describe(TABLE, 300, DATA, 16, WRITE, 0);
    driver.describe(DESCRIPTORS, 1, TABLE, 301 * 16, INDIRECT_TABLE, 0);
    driver.describe(DESCRIPTORS, 0, HEADER, 16, NEXT, 1);
    driver.make_available(0);
    driver.notify();
    expect_needs_reset(driver, "301 segments");
}

#[test]
fn an_available_ring_that_makes_no_sense_is_refused() {
    // More requests than the queue has entries.
    let mut driver = Driver::start(&Disk::default(), 0);
    driver
        .target
        .ram
        .put(AVAILABLE + 2, &(QUEUE_SIZE + 1).to_le_bytes());
    driver.notify();
    expect_needs_reset(driver, "the index jumps");
    // Backwards.
    let mut driver = Driver::start(&Disk::default(), 0);
    driver.request(0, 5, 512, WRITE);
    driver.target.ram.put(AVAILABLE + 2, &0_u16.to_le_bytes());
    driver.notify();
    expect_needs_reset(driver, "the index goes back");
    // A head that is no descriptor.
    for head in [QUEUE_SIZE, 0xffff] {
        let mut driver = Driver::start(&Disk::default(), 0);
        driver.make_available(head);
        driver.notify();
        expect_needs_reset(driver, "no such head");
    }
}

#[test]
#[rustfmt::skip]
fn queues_that_cannot_be_are_refused() {
    let cases = [
        // size, descriptors,     available,     used
        (0,      DESCRIPTORS,     AVAILABLE,     USED),
        (3,      DESCRIPTORS,     AVAILABLE,     USED),
        (512,    DESCRIPTORS,     AVAILABLE,     USED),
        (0xffff, DESCRIPTORS,     AVAILABLE,     USED),
        (16,     DESCRIPTORS + 8, AVAILABLE,     USED),
        (16,     DESCRIPTORS,     AVAILABLE + 1, USED),
        (16,     DESCRIPTORS,     AVAILABLE,     USED + 2),
        (16,     RAM - 0x1000,    AVAILABLE,     USED),
        (16,     0,               0,             0),
        (16,     END - 240,       AVAILABLE,     USED),
        (16,     DESCRIPTORS,     END - 36,      USED),
        (16,     DESCRIPTORS,     AVAILABLE,     END - 132),
        (16,     DESCRIPTORS,     AVAILABLE,     u64::MAX - 3),
    ];
    for (size, descriptors, available, used) in cases {
        let what = format!("{size} {descriptors:#x} {available:#x} {used:#x}");
        let mut driver = Driver::probe(Target::new(&Disk::default()));
        driver.negotiate(VERSION_1);
        driver.set_up_msix(3);
        driver.common_write(0x10, Width::Two, 0);
        driver.common_write(0x18, Width::Two, size);
        for (offset, address) in [(0x20, descriptors), (0x28, available), (0x30, used)] {
            driver.common_write(offset, Width::Eight, address);
        }
        driver.common_write(0x1c, Width::Two, 1);
        assert_ne!(driver.status() & NEEDS_RESET, 0, "{what}");
        assert_eq!(driver.common_read(0x1c, Width::Two), 0, "{what}");
        assert!(driver.target.host.messages.is_empty(), "no interrupt before DRIVER_OK");
        driver.restart(0);
        assert_eq!(driver.request(0, 5, 512, WRITE), (0, 513), "{what}");
    }
}

#[test]
fn rings_on_top_of_each_other_harm_nobody() {
    let mut driver = Driver::probe(Target::new(&Disk::default()));
    driver.negotiate(VERSION_1);
    driver.common_write(0x18, Width::Two, QUEUE_SIZE.into());
    for offset in [0x20, 0x28, 0x30] {
        driver.common_write(offset, Width::Eight, DESCRIPTORS);
    }
    driver.common_write(0x1c, Width::Two, 1);
    driver.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    driver.target.ram.put(DESCRIPTORS, &[1; 256]);
    driver.notify();
    assert_ne!(driver.status() & NEEDS_RESET, 0);
}

#[test]
fn without_msix_the_isr_says_that_a_reset_is_needed() {
    let mut driver = Driver::start(&Disk::default(), 0);
    driver.target.set_config(driver.msix + 2, Width::Two, 0);
    driver.make_available(QUEUE_SIZE);
    driver.notify();
    assert_eq!(driver.target.read(driver.isr.address, Width::One), 2);
}

#[test]
fn a_queue_is_not_enabled_before_features_are() {
    let mut driver = Driver::probe(Target::new(&Disk::default()));
    driver.set_status(0);
    driver.set_up_queue();
    assert_eq!(driver.common_read(0x1c, Width::Two), 0);
    // Nor do requests run if a driver that never negotiated says that it is ready.
    driver.set_status(ACKNOWLEDGE | DRIVER | DRIVER_OK);
    driver.make_available(0);
    driver.notify();
    assert_eq!(driver.status() & NEEDS_RESET, 0);
    assert!(driver.take_used().is_none());
}

#[test]
fn a_flood_of_requests_is_served_in_turns() {
    // Each chain is a MiB or so of the same page: 16 of them are more than one turn.
    let mut driver = Driver::start(
        &Disk {
            bytes: 4 << 20,
            ..Disk::default()
        },
        0,
    );
    driver.put_header(1, 0);
    driver.describe(DESCRIPTORS, 0, HEADER, 16, NEXT, 1);
    for index in 1..10 {
        driver.describe(DESCRIPTORS, index, RAM, 0x4_0000, NEXT, index + 1);
    }
    driver.describe(DESCRIPTORS, 10, STATUS, 1, WRITE, 0);
    for _ in 0..QUEUE_SIZE {
        driver.make_available(0);
    }
    driver.notify();
    for _ in 0..QUEUE_SIZE {
        assert_eq!(driver.take_used(), Some((0, 1)));
    }
}

/// A step of a driver without manners.
#[derive(Clone, Debug)]
enum Step {
    Config(u64, Width, u32),
    Bar0(u64, Width, u64),
    Bar2(u64, Width, u64),
    Read(u64, Width),
    Memory(u64, Vec<u8>),
    Available(u16),
    Reset,
}

fn width() -> impl Strategy<Value = Width> {
    prop_oneof![
        Just(Width::One),
        Just(Width::Two),
        Just(Width::Four),
        Just(Width::Eight)
    ]
}

fn value() -> impl Strategy<Value = u64> {
    prop_oneof![
        Just(0_u64),
        Just(1),
        Just(u64::MAX),
        0..0x100_u64,
        RAM..END,
        Just(END - 1),
        any::<u64>()
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let config = (0..0x110_u64, width(), any::<u32>())
        .prop_map(|(at, width, value)| Step::Config(at, width, value));
    let bar0 = (prop_oneof![0..0x40_u64, 0..0x4000_u64], width(), value())
        .prop_map(|(at, width, value)| Step::Bar0(at, width, value));
    let bar2 = (0..0x1000_u64, width(), value())
        .prop_map(|(at, width, value)| Step::Bar2(at, width, value));
    let read = (0..0x4000_u64, width()).prop_map(|(at, width)| Step::Read(at, width));
    // Mostly where the queue and its requests are.
    let memory = (
        0x1000..0x7000_u64,
        prop::collection::vec(any::<u8>(), 1..64),
    )
        .prop_map(|(at, bytes)| Step::Memory(RAM + at, bytes));
    prop_oneof![
        2 => config,
        6 => bar0,
        2 => bar2,
        2 => read,
        6 => memory,
        6 => (0..QUEUE_SIZE + 2).prop_map(Step::Available),
        1 => Just(Step::Reset),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Whatever a driver does: no panic, no endless loop, and the device still works afterwards.
    #[test]
    fn nothing_breaks_the_device(steps in prop::collection::vec(step(), 1..120)) {
        let mut driver = Driver::start(&Disk::default(), INDIRECT);
        for step in steps {
            match step {
                Step::Config(at, width, value) => driver.target.set_config(at, width, value),
                Step::Bar0(at, width, value) => driver.target.write(BAR0 + at, width, value),
                Step::Bar2(at, width, value) => driver.target.write(BAR2 + at, width, value),
                Step::Read(at, width) => { driver.target.read(BAR0 + at, width); }
                Step::Memory(at, bytes) => driver.target.ram.put(at, &bytes),
                Step::Available(head) => {
                    driver.make_available(head);
                    driver.notify();
                }
                Step::Reset => driver.target.reset(),
            }
        }
        driver.target.reset();
        driver.target.host = Hypervisor::default();
        let mut driver = Driver::probe(driver.target);
        driver.restart(0);
        prop_assert_eq!(driver.request(0, 5, 512, WRITE).0, 0);
    }

    /// With random descriptors, the device writes to the used ring and to buffers that it was given
    /// to write, and to nothing else.
    #[test]
    fn only_what_was_given_is_written(
        descriptors in prop::collection::vec(
            (
                prop_oneof![Just(HEADER), Just(DATA), RAM..END, value()],
                prop_oneof![Just(16_u32), Just(1), Just(512), Just(513), 0..2000_u32],
                0..8_u16,
                0..QUEUE_SIZE + 1,
            ),
            usize::from(QUEUE_SIZE),
        ),
        heads in prop::collection::vec(0..QUEUE_SIZE, 1..16),
        kind in prop_oneof![Just(0_u32), Just(1), Just(4), Just(8), any::<u32>()],
        sector in 0..70_u64,
    ) {
        let mut driver = Driver::start(&Disk::default(), INDIRECT);
        driver.put_header(kind, sector);
        let mut allowed = vec![(USED, 0x1000_u64)];
        for (index, (address, bytes, flags, next)) in descriptors.into_iter().enumerate() {
            let index = u16::try_from(index).unwrap();
            // Without indirect tables, so that the buffers are those here.
            driver.describe(DESCRIPTORS, index, address, bytes, flags & 3, next);
            if flags & WRITE != 0 {
                allowed.push((address, bytes.into()));
            }
        }
        driver.target.ram.writes.borrow_mut().clear();
        for head in heads {
            driver.make_available(head);
        }
        driver.notify();
        for &(address, bytes) in driver.target.ram.writes.borrow().iter() {
            let inside = |&(start, length): &(u64, u64)| {
                address >= start && address - start <= length && bytes <= length - (address - start)
            };
            prop_assert!(allowed.iter().any(inside), "{address:#x} {bytes}");
        }
    }
}
