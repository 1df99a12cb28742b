//! Functions that come and go while the device model runs.

use crate::support::*;
use devices::Progress;
use ioreq::Width;
use vpci::Sbdf;

const ID: u64 = 0x1042_1af4;
const ABSENT: u64 = 0xffff_ffff;

fn other() -> Sbdf {
    Sbdf::new(0, 0, 2, 3).unwrap()
}

#[test]
fn a_function_is_there_when_it_is_first_asked_for() {
    let mut target = Target::new(&Disk::default());
    assert_eq!(target.id_of(other()), ABSENT);
    let change = target.change(&[function(), other()]);
    assert!(!target.has_seen(change));
    // The request may come before anybody has told that there is a change.
    assert_eq!(target.id_of(other()), ID);
    assert!(target.has_seen(change));
    assert_eq!(target.id_of(function()), ID);
    assert_eq!(target.host.made, [function(), other()], "each once");
    let change = target.change(&[other()]);
    target.settle();
    assert!(target.has_seen(change));
    assert_eq!(target.host.gone, [function()]);
    assert_eq!(target.id_of(function()), ABSENT);
    assert_eq!(target.id_of(other()), ID);
}

#[test]
fn what_comes_back_is_as_after_power_on() {
    let mut driver = Driver::start(&Disk::default(), 0);
    driver.target.change(&[]);
    driver.target.settle();
    driver.target.change(&[function()]);
    assert_eq!(driver.target.config(4, Width::Two), 0, "Command");
    assert_eq!(driver.target.config(0x14, Width::Four), 0, "BAR1");
    assert!(driver.target.host.claims.is_empty());
    let mut driver = Driver::probe(driver.target);
    assert_eq!(driver.status(), 0);
    driver.restart(0);
    assert_eq!(driver.request(0, 1, 512, WRITE), (0, 513));
}

#[test]
fn nothing_is_written_for_a_function_that_has_gone() {
    let mut driver = Driver::start(&Disk::default(), 0);
    driver.put_header(0, 1);
    driver.describe(DESCRIPTORS, 0, HEADER, 16, NEXT, 1);
    driver.describe(DESCRIPTORS, 1, DATA, 512, NEXT | WRITE, 2);
    driver.describe(DESCRIPTORS, 2, STATUS, 1, WRITE, 0);
    driver.make_available(0);
    // It was posted before, and is looked at after.
    driver.target.post(driver.notify.address);
    driver.target.ram.writes.borrow_mut().clear();
    let change = driver.target.change(&[]);
    driver.target.settle();
    assert!(driver.target.has_seen(change));
    assert_eq!(*driver.target.ram.writes.borrow(), []);
    assert!(driver.take_used().is_none());
}

#[test]
fn a_driver_that_always_has_more_does_not_keep_a_function_that_has_gone() {
    let mut driver = Driver::start(
        &Disk {
            bytes: 4 << 20,
            ..Disk::default()
        },
        0,
    );
    driver.put_header(0, 0);
    driver.describe(DESCRIPTORS, 0, HEADER, 16, NEXT, 1);
    driver.describe(DESCRIPTORS, 1, RAM + 0x2_0000, 0x4_0000, NEXT | WRITE, 2);
    driver.describe(DESCRIPTORS, 2, STATUS, 1, WRITE, 0);
    for _ in 0..QUEUE_SIZE {
        driver.make_available(0);
    }
    driver.target.post(driver.notify.address);
    driver.target.take_posted();
    assert_eq!(driver.target.poll(), Progress::More);
    assert!(driver.take_used().is_some());
    let change = driver.target.change(&[]);
    driver.target.ram.writes.borrow_mut().clear();
    assert_eq!(driver.target.poll(), Progress::Idle);
    assert!(driver.target.has_seen(change));
    assert_eq!(*driver.target.ram.writes.borrow(), []);
}

#[test]
fn a_function_that_cannot_be_made_is_tried_again_at_the_next_change() {
    let mut target = Target::new(&Disk::default());
    let make = target.run_out(None);
    assert_eq!(target.id_of(function()), ABSENT);
    assert_eq!(target.id_of(function()), ABSENT);
    assert_eq!(target.host.made, [function()], "it is tried once");
    target.run_out(make);
    assert_eq!(target.id_of(function()), ABSENT);
    target.change(&[function()]);
    assert_eq!(target.id_of(function()), ID);
}
