//! A driver as Linux has it finds the disk, sets it up and uses it, over a real ring.

use crate::support::*;
use devices::virtio::block::Access;
use ioreq::{Kind, Request, Width};

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;

#[test]
fn the_header_says_virtio_block() {
    let mut target = Target::new(&Disk::default());
    #[rustfmt::skip]
    let cases = [
        (0x00, Width::Two,  0x1af4),
        (0x02, Width::Two,  0x1042),
        (0x08, Width::One,  1),
        (0x09, Width::One,  0),
        (0x0a, Width::Two,  0x0180),
        (0x0e, Width::One,  0),
        (0x2c, Width::Four, 0x1042_1af4),
        (0x30, Width::Four, 0),
        (0x3d, Width::One,  0), // no pin: there is no INTx
        (0xffc, Width::Four, 0),
    ];
    for (offset, width, expected) in cases {
        assert_eq!(target.config(offset, width), expected, "{offset:#x}");
    }
}

#[test]
fn structures_are_where_the_capabilities_say() {
    let mut driver = Driver::probe(Target::new(&Disk::default()));
    assert_eq!(driver.common.length, 0x38);
    assert_eq!(driver.notify.extra, 4);
    assert_eq!(driver.notify.length, 2 * 4);
    assert_eq!(driver.device.length, 0x24);
    assert_eq!(driver.common_read(0x12, Width::Two), 2, "queues");
    assert_eq!(
        driver.target.config(driver.msix + 2, Width::Two),
        2,
        "three vectors"
    );
    let claims: Vec<_> = driver
        .target
        .host
        .claims
        .iter()
        .map(|claim| (claim.1, claim.2))
        .collect();
    assert_eq!(claims, [(BAR0, 0x4000), (BAR2, 0x1000)]);
}

#[test]
fn bars_are_claimed_as_long_as_memory_space_is_on() {
    let mut driver = Driver::probe(Target::new(&Disk::default()));
    let target = &mut driver.target;
    target.set_config(4, Width::Two, 4);
    assert!(target.host.claims.is_empty());
    assert_eq!(target.read(BAR0, Width::Four), 0xffff_ffff);
    // Moved while off, and BAR2 to where BAR0 was.
    target.set_config(0x10, Width::Four, 0x3000_0000);
    target.set_config(0x14, Width::Four, 0);
    target.set_config(4, Width::Two, 6);
    let starts = |target: &Target| {
        target
            .host
            .claims
            .iter()
            .map(|claim| claim.1)
            .collect::<Vec<_>>()
    };
    assert_eq!(starts(target), [0x3000_0000, BAR2]);
    // Moved while on: given back and claimed again at once.
    target.set_config(0x18, Width::Four, 0x3001_0000);
    assert_eq!(starts(target), [0x3000_0000, 0x3001_0000]);
    // The device answers at the new place.
    assert_eq!(target.read(0x3000_0012, Width::Two), 2);
}

#[test]
fn a_claim_that_is_refused_is_made_again_later() {
    let mut driver = Driver::probe(Target::new(&Disk::default()));
    let target = &mut driver.target;
    target.host.limit = Some(0x7000_0000);
    target.set_config(0x18, Width::Four, 0x8000_0000);
    assert_eq!(target.host.claims.len(), 1);
    assert!(
        target.host.reports[0].contains("not claimed: BadAddress"),
        "{:?}",
        target.host.reports
    );
    target.host.limit = None;
    target.set_config(0x3c, Width::One, 5);
    assert_eq!(target.host.claims.len(), 2);
}

#[test]
fn features_are_taken_if_they_were_offered_and_modern() {
    let mut driver = Driver::probe(Target::new(&Disk::default()));
    let offered = driver.offered();
    assert_eq!(
        offered,
        1 << 2 | 1 << 6 | 1 << 9 | 1 << 12 | INDIRECT | EVENT_IDX | VERSION_1
    );
    driver.common_write(0, Width::Four, 2);
    assert_eq!(driver.common_read(4, Width::Four), 0, "no third half");
    let good = ACKNOWLEDGE | DRIVER | FEATURES_OK;
    #[rustfmt::skip]
    let cases = [
        (offered,                   true),
        (VERSION_1,                 true),
        (0,                         false), // legacy
        (offered & !VERSION_1,      false),
        (VERSION_1 | BLK_RO,        false), // not offered
        (VERSION_1 | 1 << 33,       false), // ACCESS_PLATFORM
        (u64::MAX,                  false),
    ];
    for (features, taken) in cases {
        let status = driver.negotiate(features);
        assert_eq!(status == good, taken, "{features:#x}: {status:#x}");
    }
    // Once they are taken, they stay.
    driver.negotiate(offered);
    driver.common_write(0x08, Width::Four, 0);
    driver.common_write(0x0c, Width::Four, 0);
    assert_eq!(driver.common_read(0x0c, Width::Four), offered & 0xffff_ffff);
    driver.common_write(0x08, Width::Four, 7);
    driver.common_write(0x0c, Width::Four, 1);
    assert_eq!(driver.common_read(0x0c, Width::Four), 0);
}

#[test]
fn the_configuration_describes_the_disk() {
    let mut driver = Driver::start(&Disk::default(), 0);
    #[rustfmt::skip]
    let cases = [
        (0x00, Width::Four,  64),
        (0x04, Width::Four,  0),
        (0x00, Width::Eight, 64),
        (0x0c, Width::Four,  254),
        (0x14, Width::Four,  512),
        (0x22, Width::Two,   2),
        (0x23, Width::One,   0),
        (0x24, Width::Four,  0),
        (0x20, Width::Four,  2 << 16),
    ];
    for (offset, width, expected) in cases {
        let value = driver.target.read(driver.device.address + offset, width);
        assert_eq!(value, expected, "{offset:#x}");
    }
    assert_eq!(driver.common_read(0x15, Width::One), 0, "generation");
    driver.target.write(driver.device.address, Width::Four, 0);
    assert_eq!(driver.target.read(driver.device.address, Width::Four), 64);
}

#[test]
fn sectors_are_read_and_written() {
    for features in [0, EVENT_IDX, INDIRECT, EVENT_IDX | INDIRECT] {
        let mut driver = Driver::start(&Disk::default(), features);
        assert_eq!(driver.request(IN, 5, 1024, WRITE), (0, 1025));
        assert_eq!(driver.target.ram.get(DATA, 512), [5; 512]);
        assert_eq!(driver.target.ram.get(DATA + 512, 512), [6; 512]);
        driver.target.ram.put(DATA, &[0xab; 512]);
        assert_eq!(driver.request(OUT, 63, 512, 0), (0, 1));
        assert_eq!(driver.request(FLUSH, 0, 0, 0), (0, 1));
        driver.target.ram.put(DATA, &[0; 512]);
        assert_eq!(driver.request(IN, 63, 512, WRITE), (0, 513));
        assert_eq!(driver.target.ram.get(DATA, 512), [0xab; 512]);
        let ended = driver.target.host.messages.len();
        assert!(ended >= 1, "features {features:#x}");
        assert!(
            driver
                .target
                .host
                .messages
                .iter()
                .all(|&message| message == (DOORBELL, 0x101))
        );
    }
}

#[test]
fn a_request_may_be_cut_anywhere() {
    let mut driver = Driver::start(&Disk::default(), 0);
    assert_eq!(
        driver.request_in_pieces(IN, 1, &[1, 510, 1, 512], WRITE),
        (0, 1025)
    );
    assert_eq!(
        driver.target.ram.get(DATA, 1024),
        [[1; 512], [2; 512]].concat()
    );
    driver.target.ram.put(DATA, &[0x5a; 1024]);
    assert_eq!(
        driver.request_in_pieces(OUT, 10, &[500, 24, 500], 0),
        (0, 1)
    );
    assert_eq!(driver.request(IN, 11, 512, WRITE), (0, 513));
    assert_eq!(driver.target.ram.get(DATA, 512), [0x5a; 512]);
    // Header in three pieces, status in the same buffer as the data.
    driver.put_header(IN, 3);
    driver.describe(DESCRIPTORS, 0, HEADER, 3, NEXT, 7);
    driver.describe(DESCRIPTORS, 7, HEADER + 3, 10, NEXT, 2);
    driver.describe(DESCRIPTORS, 2, HEADER + 13, 3, NEXT, 5);
    driver.describe(DESCRIPTORS, 5, DATA, 513, WRITE, 0);
    driver.make_available(0);
    driver.notify();
    assert_eq!(driver.take_used(), Some((0, 513)));
    assert_eq!(
        driver.target.ram.get(DATA, 513),
        [[3; 512].as_slice(), &[0]].concat()
    );
}

#[test]
fn an_indirect_table_is_followed() {
    let mut driver = Driver::start(&Disk::default(), INDIRECT);
    driver.put_header(IN, 9);
    driver.describe(TABLE, 0, HEADER, 16, NEXT, 2);
    driver.describe(TABLE, 2, DATA, 512, NEXT | WRITE, 1);
    driver.describe(TABLE, 1, STATUS, 1, WRITE, 0);
    driver.describe(DESCRIPTORS, 4, TABLE, 3 * 16, INDIRECT_TABLE, 0);
    driver.make_available(4);
    driver.notify();
    assert_eq!(driver.take_used(), Some((4, 513)));
    assert_eq!(driver.target.ram.get(DATA, 512), [9; 512]);
}

#[test]
fn the_serial_number_is_given_as_far_as_there_is_room() {
    let mut driver = Driver::start(&Disk::default(), 0);
    assert_eq!(driver.request(GET_ID, 0, 20, WRITE), (0, 21));
    assert_eq!(
        driver.target.ram.get(DATA, 20),
        *b"serial\0\0\0\0\0\0\0\0\0\0\0\0\0\0"
    );
    assert_eq!(driver.request(GET_ID, 0, 4, WRITE), (0, 5));
    assert_eq!(
        driver.request(GET_ID, 0, 32, WRITE),
        (0, 20),
        "the status is not reached"
    );
}

#[test]
fn what_cannot_be_done_is_a_status() {
    let mut driver = Driver::start(&Disk::default(), 0);
    #[rustfmt::skip]
    let cases = [
        // type, sector,   bytes, flags, status
        (IN,     64,       512,   WRITE, 1), // past the end
        (IN,     63,       1024,  WRITE, 1),
        (IN,     u64::MAX, 512,   WRITE, 1), // overflows
        (IN,     1 << 55,  512,   WRITE, 1),
        (IN,     0,        511,   WRITE, 1), // no whole sector
        (OUT,    64,       512,   0,     1),
        (OUT,    0,        513,   0,     1),
        (OUT,    u64::MAX, 512,   0,     1),
        (11,     0,        16,    0,     2), // discard
        (13,     0,        16,    0,     2), // write zeroes
        (0xffff_ffff, 0,   0,     0,     2),
        (IN,     0,        0,     0,     0), // nothing is read
    ];
    for (kind, sector, bytes, flags, status) in cases {
        let (got, _) = driver.request(kind, sector, bytes, flags);
        assert_eq!(got, status, "type {kind} sector {sector:#x} bytes {bytes}");
        assert_eq!(driver.status() & NEEDS_RESET, 0);
    }
}

#[test]
fn a_read_only_disk_cannot_be_written() {
    let disk = Disk {
        access: Access::ReadOnly,
        ..Disk::default()
    };
    let mut driver = Driver::start(&disk, BLK_RO);
    assert_ne!(driver.offered() & BLK_RO, 0);
    driver.target.ram.put(DATA, &[0xee; 512]);
    assert_eq!(driver.request(OUT, 2, 512, 0).0, 1);
    assert_eq!(driver.request(IN, 2, 512, WRITE), (0, 513));
    assert_eq!(driver.target.ram.get(DATA, 512), [2; 512]);
}

#[test]
fn a_disk_ends_with_its_last_whole_sector() {
    let disk = Disk {
        bytes: 1500,
        ..Disk::default()
    };
    let mut driver = Driver::start(&disk, 0);
    assert_eq!(driver.target.read(driver.device.address, Width::Four), 2);
    assert_eq!(driver.request(IN, 2, 512, WRITE).0, 1);
}

#[test]
fn a_long_list_of_requests_wraps_around_the_rings() {
    let mut driver = Driver::start(&Disk::default(), EVENT_IDX);
    for round in 0..0x1_0010_u32 {
        let sector = u64::from(round % 64);
        // All three descriptors stay what they are but for the header.
        if round == 0 {
            driver.request(IN, sector, 512, WRITE);
            continue;
        }
        driver.put_header(IN, sector);
        driver.make_available(0);
        driver.notify();
        assert_eq!(driver.take_used(), Some((0, 513)), "round {round}");
    }
}

#[test]
fn several_requests_are_one_interrupt() {
    let mut driver = Driver::start(&Disk::default(), 0);
    driver.request(IN, 0, 512, WRITE);
    driver.target.host.messages.clear();
    for _ in 0..5 {
        driver.make_available(0);
    }
    driver.notify();
    assert_eq!(driver.target.host.messages, [(DOORBELL, 0x101)]);
    for _ in 0..5 {
        assert!(driver.take_used().is_some());
    }
}

#[test]
fn a_driver_can_do_without_interrupts() {
    // By the flag of the available ring.
    let mut driver = Driver::start(&Disk::default(), 0);
    driver.target.ram.put(AVAILABLE, &1_u16.to_le_bytes());
    driver.request(IN, 0, 512, WRITE);
    assert!(driver.target.host.messages.is_empty());
    driver.target.ram.put(AVAILABLE, &0_u16.to_le_bytes());
    driver.request(IN, 0, 512, WRITE);
    assert_eq!(driver.target.host.messages.len(), 1);

    // By the event index: the third request from now.
    let mut driver = Driver::start(&Disk::default(), EVENT_IDX);
    let event = AVAILABLE + 4 + 2 * u64::from(QUEUE_SIZE);
    driver.target.ram.put(event, &2_u16.to_le_bytes());
    for expected in [0, 0, 1, 1, 1] {
        driver.request(IN, 0, 512, WRITE);
        assert_eq!(driver.target.host.messages.len(), expected);
    }
    // The device says for which request it wants to be notified.
    let wanted = driver
        .target
        .ram
        .get_u16(USED + 4 + 8 * u64::from(QUEUE_SIZE));
    assert_eq!(wanted, 5);
}

#[test]
fn a_masked_vector_stays_pending_until_it_is_unmasked() {
    let mut driver = Driver::start(&Disk::default(), 0);
    let control = BAR2 + 16 + 12;
    driver.target.write(control, Width::Four, 1);
    driver.request(IN, 0, 512, WRITE);
    assert!(driver.target.host.messages.is_empty());
    assert_eq!(driver.target.read(BAR2 + 0x800, Width::Eight), 0b10);
    assert_eq!(driver.target.read(BAR2 + 0x800, Width::One), 0b10);
    driver.target.write(control, Width::Four, 0);
    assert_eq!(driver.target.host.messages, [(DOORBELL, 0x101)]);
    assert_eq!(driver.target.read(BAR2 + 0x800, Width::Four), 0);
    // Likewise for all vectors at once.
    driver
        .target
        .set_config(driver.msix + 2, Width::Two, 0xc000);
    driver.request(IN, 0, 512, WRITE);
    assert_eq!(driver.target.host.messages.len(), 1);
    driver
        .target
        .set_config(driver.msix + 2, Width::Two, 0x8000);
    assert_eq!(driver.target.host.messages.len(), 2);
}

#[test]
fn the_table_is_read_and_written_in_every_width() {
    let mut driver = Driver::start(&Disk::default(), 0);
    let target = &mut driver.target;
    target.write(BAR2 + 0x20, Width::Eight, 0x1234_5678_0809_0040);
    assert_eq!(
        target.read(BAR2 + 0x20, Width::Eight),
        0x1234_5678_0809_0040
    );
    assert_eq!(target.read(BAR2 + 0x20, Width::Four), 0x0809_0040);
    assert_eq!(target.read(BAR2 + 0x22, Width::Two), 0x0809);
    target.write(BAR2 + 0x29, Width::One, 0xcc);
    assert_eq!(target.read(BAR2 + 0x28, Width::Four), 0xcc02);
    assert_eq!(
        target.read(BAR2 + 0x30, Width::Four),
        0xffff_ffff,
        "past its end"
    );
}

#[test]
fn a_message_goes_to_the_doorbell_or_nowhere() {
    let mut driver = Driver::start(&Disk::default(), 0);
    driver.target.write(BAR2 + 16, Width::Four, DOORBELL + 4);
    driver.request(IN, 0, 512, WRITE);
    assert!(driver.target.host.messages.is_empty());
    assert!(
        driver.target.host.reports[0].contains("no doorbell"),
        "{:?}",
        driver.target.host.reports
    );
    driver.target.write(BAR2 + 16, Width::Four, DOORBELL);
    driver.target.write(BAR2 + 24, Width::Four, 0xdead);
    driver.request(IN, 0, 512, WRITE);
    assert!(driver.target.host.reports[1].contains("refused: Denied"));
}

#[test]
fn without_msix_the_isr_says_what_happened() {
    let mut driver = Driver::start(&Disk::default(), 0);
    driver.target.set_config(driver.msix + 2, Width::Two, 0);
    driver.request(IN, 0, 512, WRITE);
    assert!(driver.target.host.messages.is_empty());
    assert_eq!(driver.target.read(driver.isr.address, Width::One), 1);
    assert_eq!(
        driver.target.read(driver.isr.address, Width::One),
        0,
        "reading clears it"
    );
}

#[test]
fn a_queue_without_vector_interrupts_nobody() {
    let mut driver = Driver::start(&Disk::default(), 0);
    for (written, read) in [(2, 2), (3, 0xffff), (0xffff, 0xffff)] {
        driver.common_write(0x1a, Width::Two, written);
        assert_eq!(driver.common_read(0x1a, Width::Two), read);
        driver.common_write(0x10, Width::Two, written);
        assert_eq!(driver.common_read(0x10, Width::Two), read);
    }
    driver.request(IN, 0, 512, WRITE);
    assert!(driver.target.host.messages.is_empty());
}

#[test]
fn without_bus_mastering_nothing_happens() {
    let mut driver = Driver::start(&Disk::default(), 0);
    driver.target.set_config(4, Width::Two, 2);
    driver.put_header(IN, 7);
    driver.describe(DESCRIPTORS, 0, HEADER, 16, NEXT, 1);
    driver.describe(DESCRIPTORS, 1, DATA, 512, NEXT | WRITE, 2);
    driver.describe(DESCRIPTORS, 2, STATUS, 1, WRITE, 0);
    driver.target.ram.writes.borrow_mut().clear();
    driver.make_available(0);
    driver.notify();
    assert!(driver.take_used().is_none());
    assert!(driver.target.ram.writes.borrow().is_empty());
    driver.target.set_config(4, Width::Two, 6);
    assert_eq!(driver.take_used(), Some((0, 513)));
    assert_eq!(driver.target.host.messages, [(DOORBELL, 0x101)]);
}

#[test]
fn requests_wait_for_the_driver_to_be_ready() {
    let mut driver = Driver::probe(Target::new(&Disk::default()));
    driver.negotiate(VERSION_1);
    driver.set_up_msix(3);
    driver.set_up_queue();
    driver.put_header(IN, 7);
    driver.describe(DESCRIPTORS, 0, HEADER, 16, NEXT, 1);
    driver.describe(DESCRIPTORS, 1, DATA, 512, NEXT | WRITE, 2);
    driver.describe(DESCRIPTORS, 2, STATUS, 1, WRITE, 0);
    driver.make_available(0);
    driver.notify();
    assert!(driver.take_used().is_none());
    driver.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    assert_eq!(
        driver.take_used(),
        Some((0, 513)),
        "without another notification"
    );
}

#[test]
fn a_queue_keeps_what_it_was_enabled_with() {
    let mut driver = Driver::start(&Disk::default(), 0);
    driver.common_write(0x18, Width::Two, 8);
    driver.common_write(0x20, Width::Eight, 0x1234_5000);
    driver.common_write(0x1c, Width::Two, 0);
    driver.common_write(0x1c, Width::Two, 1);
    assert_eq!(driver.common_read(0x18, Width::Two), u64::from(QUEUE_SIZE));
    assert_eq!(driver.common_read(0x20, Width::Eight), DESCRIPTORS);
    assert_eq!(driver.common_read(0x1c, Width::Two), 1);
    assert_eq!(driver.request(IN, 5, 512, WRITE), (0, 513));
    // The other queue can be set up with 64-bit writes; a queue that is not there reads as zero.
    driver.common_write(0x16, Width::Two, 1);
    assert_eq!(driver.common_read(0x1e, Width::Two), 1);
    driver.common_write(0x28, Width::Eight, AVAILABLE);
    assert_eq!(driver.common_read(0x28, Width::Eight), AVAILABLE);
    driver.common_write(0x28, Width::Two, 0);
    driver.common_write(0x2a, Width::Four, 0);
    assert_eq!(driver.common_read(0x28, Width::Eight), AVAILABLE);
    driver.common_write(0x16, Width::Two, 2);
    for offset in [0x18, 0x1a, 0x1c] {
        driver.common_write(offset, Width::Two, 1);
    }
    driver.common_write(0x20, Width::Four, 1);
    assert_eq!(driver.common_read(0x18, Width::Two), 0);
    assert_eq!(driver.common_read(0x1a, Width::Two), 0xffff);
    assert_eq!(driver.common_read(0x20, Width::Eight), 0);
    assert_eq!(
        driver.common_read(0x3c, Width::Eight),
        0,
        "past the last field"
    );
}

#[test]
fn a_device_reset_leaves_the_function_as_it_is() {
    let mut driver = Driver::start(&Disk::default(), 0);
    driver.request(IN, 5, 512, WRITE);
    driver.set_status(0);
    assert_eq!(driver.status(), 0);
    assert_eq!(driver.common_read(0x1c, Width::Two), 0);
    assert_eq!(driver.common_read(0x10, Width::Two), 0xffff);
    assert_eq!(driver.target.host.claims.len(), 2);
    driver.restart(EVENT_IDX);
    assert_eq!(driver.request(IN, 5, 512, WRITE), (0, 513));
}

#[test]
fn a_reset_of_the_domain_brings_back_the_state_after_power_on() {
    let mut fresh = Target::new(&Disk::default());
    let mut driver = Driver::start(&Disk::default(), 0);
    driver.target.ram.put(DATA, &[0x77; 512]);
    driver.request(OUT, 0, 512, 0);
    driver.target.reset();
    assert!(driver.target.host.claims.is_empty());
    for offset in (0..0x1000).step_by(4) {
        let (after, before) = (
            driver.target.config(offset, Width::Four),
            fresh.config(offset, Width::Four),
        );
        assert_eq!(after, before, "{offset:#x}");
    }
    // The disk keeps its content; a reset through the PCI Express capability does the same.
    for _ in 0..2 {
        let mut again = Driver::probe(driver.target);
        again.restart(0);
        assert_eq!(again.request(IN, 0, 512, WRITE), (0, 513));
        assert_eq!(again.target.ram.get(DATA, 512), [0x77; 512]);
        assert_ne!(
            again.target.config(again.express + 4, Width::Four) & 1 << 28,
            0
        );
        let control = again.target.config(again.express + 8, Width::Two);
        again
            .target
            .set_config(again.express + 8, Width::Two, control | 1 << 15);
        assert!(again.target.host.claims.is_empty());
        driver = again;
    }
}

#[test]
fn config_space_has_a_window_on_the_registers() {
    let mut driver = Driver::probe(Target::new(&Disk::default()));
    let window = driver.window;
    let aim = |target: &mut Target, bar: u32, offset: u32, length: u32| {
        target.set_config(window + 4, Width::One, bar);
        target.set_config(window + 8, Width::Four, offset);
        target.set_config(window + 12, Width::Four, length);
    };
    let target = &mut driver.target;
    aim(target, 0, 0x2000, 4);
    assert_eq!(target.config(window + 16, Width::Four), 64, "capacity");
    aim(target, 0, 0x14, 1);
    target.set_config(window + 16, Width::One, ACKNOWLEDGE.into());
    assert_eq!(
        target.config(window + 16, Width::One),
        u32::from(ACKNOWLEDGE)
    );
    aim(target, 2, 0, 4);
    target.set_config(window + 16, Width::Four, 0x0809_0043);
    assert_eq!(target.config(window + 16, Width::Four), 0x0809_0040);
    // What it cannot be aimed at reads as zero.
    for (bar, offset, length) in [
        (0, 0, 3),
        (0, 0, 8),
        (0, 2, 4),
        (6, 0, 4),
        (0, 0x9000, 4),
        (1, 0, 4),
        (2, 0x1000, 4),
    ] {
        aim(target, bar, offset, length);
        assert_eq!(
            target.config(window + 16, Width::Four),
            0,
            "{bar} {offset:#x} {length}"
        );
        target.set_config(window + 16, Width::Four, 0xffff);
    }
    assert_eq!(driver.status(), ACKNOWLEDGE);
}

#[test]
fn what_is_not_there_reads_as_ones() {
    let mut driver = Driver::probe(Target::new(&Disk::default()));
    let request = |kind, sbdf, address, width| Request {
        kind,
        width,
        sbdf,
        address,
        data: 0,
    };
    let absent = vpci::Sbdf::new(0, 0, 3, 0).unwrap();
    let target = &mut driver.target;
    #[rustfmt::skip]
    let cases = [
        (request(Kind::ConfigRead,  absent,     0,             Width::Two),   0xffff),
        (request(Kind::MmioRead,    absent,     BAR0,          Width::Four),  0xffff_ffff),
        (request(Kind::ConfigRead,  function(), 0x1000,        Width::Four),  0xffff_ffff),
        (request(Kind::ConfigRead,  function(), 1,             Width::Two),   0xffff),
        (request(Kind::ConfigRead,  function(), 0,             Width::Eight), u64::MAX),
        (request(Kind::ConfigWrite, function(), 0,             Width::Eight), 0),
        (request(Kind::MmioRead,    function(), BAR0 + 0x4000, Width::Four),  0xffff_ffff),
        (request(Kind::MmioWrite,   function(), BAR0 + 0x4000, Width::Four),  0),
        (request(Kind::MmioRead,    function(), BAR0 + 0x3000, Width::Four),  0),
        (request(Kind::MmioWrite,   function(), BAR0 + 0x1000, Width::Four),  0),
        (request(Kind::MmioWrite,   function(), BAR0 + 0x3800, Width::Four),  0),
    ];
    for (request, expected) in cases {
        assert_eq!(target.request(request), expected, "{request:?}");
    }
}
