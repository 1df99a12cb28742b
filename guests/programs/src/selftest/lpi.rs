//! The ITS: all its commands, by what they do to LPIs.

use alloc::vec::Vec;
use core::fmt;

use runtime::gic::{self, DEFAULT_PRIORITY, FIRST_LPI};
use runtime::harness::{Failure, Outcome};
use runtime::its::{Its, Lpis, Stalled};
use runtime::{check, check_eq, cpu, platform, skip, timer};
use spin::Mutex;

use super::interrupts::{let_in, record, take_log};
use super::vcpu;
use super::vcpus::LONG;

/// A DeviceID that no function of a test system has.
const DEVICE: u32 = 0x00f1;
const EVENT_BITS: u64 = 4;
const COLLECTION: u16 = 0;
const OTHER_COLLECTION: u16 = 1;

/// The first LPI, and others counted from it.
const LPI: u32 = FIRST_LPI + 16;

/// The ITS, once a test has set it up.
static ITS: Mutex<Option<Its>> = Mutex::new(None);

/// Says that a command did not complete.
fn stalled(error: Stalled) -> Failure {
    Failure::Failed(alloc::format!("a command is stuck: {error:?}"))
}

/// Runs a test with the ITS set up and event N of the device mapped to LPI + N.
fn with_its(test: impl FnOnce(&mut Its) -> Outcome) -> Outcome {
    if platform::get().its.is_none() {
        skip!("there is no ITS");
    }
    let mut place = ITS.lock();
    if place.is_none() {
        *place = Its::new();
    }
    let Some(its) = place.as_mut() else {
        skip!("there is no ITS");
    };
    prepare(its).map_err(stalled)?;
    let outcome = test(its);
    its.unmap_device(DEVICE).map_err(stalled)?;
    gic::set_handler(LPI, None);
    outcome
}

fn prepare(its: &mut Its) -> Result<(), Stalled> {
    gic::set_handler(LPI, Some(record));
    take_log();
    let target = its.target();
    its.map_collection(COLLECTION, target)?;
    its.map_device(DEVICE, EVENT_BITS)?;
    for event in 0..4 {
        its.configure(LPI + event, DEFAULT_PRIORITY, true);
        its.map_event(DEVICE, event, LPI + event, COLLECTION)?;
        its.inv(DEVICE, event)?;
    }
    its.sync(target)
}

/// Raises an event and returns what is delivered.
fn raise_event(its: &mut Its, event: u32) -> Result<Vec<u32>, Failure> {
    its.raise(DEVICE, event).map_err(stalled)?;
    Ok(let_in(1))
}

/// Compares what was delivered.
fn expect(log: &[u32], lpis: &[u32], what: impl fmt::Display) -> Outcome {
    check_eq!(log, lpis, "{what}");
    Ok(())
}

pub(super) fn identification() -> Outcome {
    let Some(window) = platform::get().its else {
        skip!("there is no ITS");
    };
    let typer = window.read64(8);
    check!(typer & 1 != 0, "no physical LPIs");
    let (event_bits, device_bits) = ((typer >> 8 & 0x1f) + 1, (typer >> 13 & 0x1f) + 1);
    check!(event_bits >= 5, "{event_bits} bits of EventID");
    check!(
        device_bits >= 16,
        "{device_bits} bits of DeviceID: a requester ID has 16"
    );
    check_eq!(window.read32(0xffe8) >> 4 & 0xf, 3, "architecture revision");
    Ok(())
}

/// INT, also for each of several events, and more than once.
pub(super) fn raise() -> Outcome {
    with_its(|its| {
        for round in 0..3 {
            for event in 0..4 {
                let log = raise_event(its, event)?;
                expect(
                    &log,
                    &[LPI + event],
                    format_args!("round {round}, event {event}"),
                )?;
            }
        }
        Ok(())
    })
}

/// A disabled LPI waits, until it is enabled and the ITS is told (INV, INVALL).
pub(super) fn disabled() -> Outcome {
    with_its(|its| {
        for all in [false, true] {
            its.configure(LPI, DEFAULT_PRIORITY, false);
            its.inv(DEVICE, 0).map_err(stalled)?;
            expect(&raise_event(its, 0)?, &[], "while disabled")?;
            its.configure(LPI, DEFAULT_PRIORITY, true);
            let told = if all {
                its.inv_all(COLLECTION)
            } else {
                its.inv(DEVICE, 0)
            };
            told.map_err(stalled)?;
            expect(&let_in(1), &[LPI], "once enabled")?;
        }
        Ok(())
    })
}

/// CLEAR takes the pending state back.
pub(super) fn clear() -> Outcome {
    with_its(|its| {
        its.raise(DEVICE, 1).map_err(stalled)?;
        its.clear(DEVICE, 1).map_err(stalled)?;
        its.sync(its.target()).map_err(stalled)?;
        expect(&let_in(1), &[], "after CLEAR")?;
        expect(&raise_event(its, 1)?, &[LPI + 1], "raised again")
    })
}

/// DISCARD takes mapping and pending state away.
pub(super) fn discard() -> Outcome {
    with_its(|its| {
        its.raise(DEVICE, 2).map_err(stalled)?;
        its.discard(DEVICE, 2).map_err(stalled)?;
        its.sync(its.target()).map_err(stalled)?;
        expect(&let_in(1), &[], "pending when discarded")?;
        expect(&raise_event(its, 2)?, &[], "raised after DISCARD")?;
        its.map_event(DEVICE, 2, LPI + 2, COLLECTION)
            .map_err(stalled)?;
        expect(&raise_event(its, 2)?, &[LPI + 2], "mapped again")
    })
}

/// MAPI: the LPI is the event's number.
pub(super) fn identity() -> Outcome {
    with_its(|its| {
        its.unmap_device(DEVICE).map_err(stalled)?;
        its.map_device(DEVICE, 14).map_err(stalled)?;
        its.map_identity(DEVICE, LPI, COLLECTION).map_err(stalled)?;
        expect(&raise_event(its, LPI)?, &[LPI], "the event of that number")
    })
}

/// What is not mapped is ignored, and the commands behind it are not.
pub(super) fn unmapped() -> Outcome {
    with_its(|its| {
        for (device, event) in [(DEVICE, 9), (DEVICE, 0x1_0000), (0x00f2, 0), (0xffff, 0)] {
            its.raise(device, event).map_err(stalled)?;
        }
        expect(&let_in(1), &[], "unmapped events")?;
        expect(&raise_event(its, 3)?, &[LPI + 3], "a mapped one afterwards")
    })
}

/// More LPIs at once than there are list registers.
pub(super) fn many() -> Outcome {
    with_its(|its| {
        const COUNT: u32 = 64;
        its.unmap_device(DEVICE).map_err(stalled)?;
        its.map_device(DEVICE, 6).map_err(stalled)?;
        for event in 0..COUNT {
            its.configure(LPI + event, DEFAULT_PRIORITY, true);
            its.map_event(DEVICE, event, LPI + event, COLLECTION)
                .map_err(stalled)?;
        }
        its.inv_all(COLLECTION).map_err(stalled)?;
        for event in 0..COUNT {
            its.raise(DEVICE, event).map_err(stalled)?;
        }
        let mut log = let_in(COUNT as usize);
        log.sort_unstable();
        let all: Vec<u32> = (LPI..LPI + COUNT).collect();
        expect(&log, &all, "64 LPIs")
    })
}

/// What the other vCPU works with.
#[derive(Default)]
struct Other {
    /// How it turns its LPIs on.
    lpis: Option<Lpis>,
    /// What the ITS calls it, once it is ready.
    target: Option<u64>,
    /// What it was given.
    log: Vec<u32>,
    /// That it may end.
    release: bool,
}

static OTHER: Mutex<Option<Other>> = Mutex::new(None);

fn other(_: usize) {
    gic::init_cpu();
    loop {
        let intid = gic::acknowledge();
        if intid != gic::SPURIOUS {
            gic::end(intid);
        }
        let mut place = OTHER.lock();
        let Some(other) = place.as_mut().filter(|other| !other.release) else {
            return;
        };
        if let (None, Some(lpis)) = (other.target, other.lpis) {
            lpis.enable();
            other.target = Some(lpis.target());
        }
        if intid != gic::SPURIOUS {
            other.log.push(intid);
        }
        drop(place);
        core::hint::spin_loop();
    }
}

/// Runs a test with a second vCPU that takes LPIs of the other collection.
fn with_other(test: impl FnOnce(&mut Its, u64) -> Outcome) -> Outcome {
    let Some(affinity) = vcpu(1) else {
        skip!("there is one vCPU");
    };
    with_its(|its| {
        *OTHER.lock() = Some(Other {
            lpis: Some(its.lpis()),
            ..Other::default()
        });
        check_eq!(cpu::start(affinity, 1, other, 0), Ok(()), "CPU_ON");
        let target = || OTHER.lock().as_ref().and_then(|other| other.target);
        timer::wait_until(LONG, || target().is_some());
        let Some(target) = target() else {
            return Err(Failure::Failed("the other vCPU does not run".into()));
        };
        its.map_collection(OTHER_COLLECTION, target)
            .map_err(stalled)?;
        let outcome = test(its, target);
        if let Some(other) = OTHER.lock().as_mut() {
            other.release = true;
        }
        let off = timer::wait_until(LONG, || runtime::smccc::affinity_info(affinity, 0) == 1);
        check!(off, "the other vCPU does not go off");
        outcome
    })
}

/// Takes what the other vCPU was given, once it is so much.
fn other_log(count: usize) -> Vec<u32> {
    let length = || OTHER.lock().as_ref().map_or(0, |other| other.log.len());
    timer::wait_until(LONG, || length() >= count);
    let mut place = OTHER.lock();
    place
        .as_mut()
        .map_or(Vec::new(), |other| core::mem::take(&mut other.log))
}

/// MOVI: from now on the event goes to another vCPU, with its pending state.
pub(super) fn move_event() -> Outcome {
    with_other(|its, target| {
        expect(&raise_event(its, 0)?, &[LPI], "before")?;
        its.move_event(DEVICE, 0, OTHER_COLLECTION)
            .map_err(stalled)?;
        its.sync(target).map_err(stalled)?;
        its.raise(DEVICE, 0).map_err(stalled)?;
        expect(&other_log(1), &[LPI], "after MOVI")?;
        expect(&let_in(1), &[], "after MOVI, here")?;
        // Pending here when it is moved: taken there.
        its.raise(DEVICE, 1).map_err(stalled)?;
        its.move_event(DEVICE, 1, OTHER_COLLECTION)
            .map_err(stalled)?;
        its.sync(target).map_err(stalled)?;
        expect(&other_log(1), &[LPI + 1], "pending when moved")?;
        expect(&let_in(1), &[], "pending when moved, here")
    })
}

/// MOVALL: what is pending on one vCPU is pending on another.
pub(super) fn move_all() -> Outcome {
    with_other(|its, target| {
        for event in 0..4 {
            its.raise(DEVICE, event).map_err(stalled)?;
        }
        its.move_all(its.target(), target).map_err(stalled)?;
        its.sync(target).map_err(stalled)?;
        let mut log = other_log(4);
        log.sort_unstable();
        let (here, later) = (let_in(1), other_log(0));
        let all = [LPI, LPI + 1, LPI + 2, LPI + 3];
        check!(
            log == all,
            "moved {log:x?}, left here {here:x?}, late {later:x?}"
        );
        expect(&here, &[], "left here")
    })
}

/// A kernel that takes over from another starts the ITS anew.
pub(super) fn reset() -> Outcome {
    with_its(|its| {
        expect(&raise_event(its, 0)?, &[LPI], "before")?;
        its.reset();
        its.raise(DEVICE, 0).map_err(stalled)?;
        expect(&let_in(1), &[], "nothing is mapped any more")?;
        prepare(its).map_err(stalled)?;
        expect(&raise_event(its, 0)?, &[LPI], "mapped again")
    })
}
