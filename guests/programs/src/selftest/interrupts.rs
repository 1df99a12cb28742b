//! The interrupt controller: SGIs, SPIs, priorities, states.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, Ordering};

use runtime::gic::{self, DEFAULT_PRIORITY, reg};
use runtime::harness::Outcome;
use runtime::{check, check_eq, cpu, exception, timer};
use spin::Mutex;

/// What was delivered, in order.
static LOG: Mutex<Vec<u32>> = Mutex::new(Vec::new());

pub(super) fn record(intid: u32) {
    LOG.lock().push(intid);
}

/// Takes what was delivered so far.
pub(super) fn take_log() -> Vec<u32> {
    exception::without_irqs(|| core::mem::take(&mut *LOG.lock()))
}

pub(super) fn log_length() -> usize {
    exception::without_irqs(|| LOG.lock().len())
}

/// Makes interrupts be recorded, lets them through, and forgets what was recorded.
pub(super) fn watch(intids: impl IntoIterator<Item = u32>) {
    for intid in intids {
        gic::set_handler(intid, Some(record));
        gic::set_priority(intid, DEFAULT_PRIORITY);
        gic::enable(intid);
    }
    take_log();
}

/// Ends what [`watch`] began.
pub(super) fn unwatch(intids: impl IntoIterator<Item = u32>) {
    for intid in intids {
        gic::disable(intid);
        gic::clear_pending(intid);
        gic::set_priority(intid, DEFAULT_PRIORITY);
        gic::set_handler(intid, None);
    }
}

/// Lets IRQs be taken until `count` have been recorded, or 200 ms have passed.
pub(super) fn let_in(count: usize) -> Vec<u32> {
    exception::unmask_irqs();
    timer::wait_until(200, || log_length() >= count);
    exception::mask_irqs();
    take_log()
}

/// SPIs that no device has, on QEMU's `virt` and in a domain.
const SPIS: core::ops::Range<u32> = 96..128;

pub(super) fn identification() -> Outcome {
    let gicd = gic::distributor();
    check_eq!(
        gicd.read32(reg::PIDR2) >> 4 & 0xf,
        3,
        "architecture revision"
    );
    let spis = gic::spi_end();
    check!(spis >= SPIS.end, "INTIDs end at {spis}");
    let bits = gicd.read32(reg::TYPER) >> 19 & 0x1f;
    check!(bits >= 9, "{} bits of INTID", bits + 1);
    check_eq!(
        gic::redistributor().read32(reg::PIDR2) >> 4 & 0xf,
        3,
        "revision of the redistributor"
    );
    Ok(())
}

pub(super) fn sgi_all() -> Outcome {
    watch(0..16);
    for intid in 0..16 {
        gic::send_sgi(intid, cpu::affinity());
        check_eq!(let_in(1), [intid], "SGI {intid}");
    }
    unwatch(0..16);
    Ok(())
}

/// The highest priority comes first; equals come in any order (IHI 0069, 4.8.2).
pub(super) fn priorities() -> Outcome {
    watch(0..8);
    for intid in 0..8_u8 {
        gic::set_priority(intid.into(), 0x80 - intid * 0x10);
        gic::send_sgi(intid.into(), cpu::affinity());
    }
    check_eq!(let_in(8), [7, 6, 5, 4, 3, 2, 1, 0], "falling INTIDs");
    for intid in (0..8).rev() {
        gic::set_priority(intid, DEFAULT_PRIORITY);
        gic::send_sgi(intid, cpu::affinity());
    }
    let mut log = let_in(8);
    log.sort_unstable();
    check_eq!(log, [0, 1, 2, 3, 4, 5, 6, 7], "equal priorities");
    unwatch(0..8);
    Ok(())
}

/// The SGI that [`nested`] sends while it is being handled.
static INNER: AtomicU32 = AtomicU32::new(0);
const OUTER: u32 = 1;

fn nested(intid: u32) {
    record(intid);
    let inner = INNER.load(Ordering::Relaxed);
    gic::send_sgi(inner, cpu::affinity());
    exception::unmask_irqs();
    timer::wait_until(5, || false);
    exception::mask_irqs();
    record(intid + 100);
}

/// A higher priority preempts a handler, the same or a lower one waits for its end.
pub(super) fn preemption() -> Outcome {
    watch([OUTER, 2]);
    gic::set_handler(OUTER, Some(nested));
    INNER.store(2, Ordering::Relaxed);
    gic::set_priority(OUTER, 0x80);
    for (priority, expected) in [
        (0x40, [1, 2, 101]),
        (0x78, [1, 2, 101]),
        (0x80, [1, 101, 2]),
        (0x90, [1, 101, 2]),
    ] {
        gic::set_priority(2, priority);
        gic::send_sgi(OUTER, cpu::affinity());
        check_eq!(let_in(3), expected, "inner priority {priority:#x}");
    }
    unwatch([OUTER, 2]);
    Ok(())
}

/// The priority mask holds back what is not above it.
pub(super) fn mask() -> Outcome {
    watch([3, 4]);
    gic::set_priority(3, 0x60);
    gic::set_priority(4, 0xa0);
    gic::set_mask(0x80);
    gic::send_sgi(3, cpu::affinity());
    gic::send_sgi(4, cpu::affinity());
    check_eq!(let_in(2), [3], "above the mask");
    gic::set_mask(0xa0);
    check_eq!(let_in(1).len(), 0, "a priority that equals the mask");
    gic::set_mask(0xff);
    check_eq!(let_in(1), [4], "with the mask lifted");
    unwatch([3, 4]);
    Ok(())
}

/// WFI ends when an interrupt is pending, also a masked one.
pub(super) fn wfi_masked() -> Outcome {
    watch([5]);
    for _ in 0..10 {
        gic::send_sgi(5, cpu::affinity());
        cpu::wait_for_interrupt();
        check_eq!(log_length(), 0, "delivered although masked");
        check_eq!(let_in(1), [5], "delivered");
    }
    unwatch([5]);
    Ok(())
}

pub(super) fn spi_edge() -> Outcome {
    let intid = SPIS.start;
    gic::disable(intid);
    gic::set_edge(intid, true);
    watch([intid]);
    gic::route(intid, cpu::affinity());
    for _ in 0..3 {
        gic::set_pending(intid);
        check!(gic::is_pending(intid), "it is not pending");
        check_eq!(let_in(1), [intid], "delivered");
        check!(!gic::is_pending(intid), "it is still pending");
    }
    // Two edges before it is taken are one interrupt.
    gic::set_pending(intid);
    gic::set_pending(intid);
    check_eq!(let_in(2), [intid], "two edges");
    unwatch([intid]);
    Ok(())
}

/// A level-sensitive interrupt that software made pending stays so until it is taken.
pub(super) fn spi_level() -> Outcome {
    let intid = SPIS.start + 1;
    gic::disable(intid);
    gic::set_edge(intid, false);
    watch([intid]);
    gic::route(intid, cpu::affinity());
    gic::set_pending(intid);
    check_eq!(let_in(1), [intid], "delivered");
    gic::set_pending(intid);
    gic::clear_pending(intid);
    check_eq!(let_in(1).len(), 0, "delivered after it was cleared");
    unwatch([intid]);
    Ok(())
}

pub(super) fn spi_disabled() -> Outcome {
    let intid = SPIS.start + 2;
    gic::set_edge(intid, true);
    watch([intid]);
    gic::disable(intid);
    gic::set_pending(intid);
    check_eq!(let_in(1).len(), 0, "delivered while disabled");
    check!(gic::is_pending(intid), "no longer pending");
    gic::enable(intid);
    check_eq!(let_in(1), [intid], "delivered once enabled");
    unwatch([intid]);
    Ok(())
}

/// More interrupts than any CPU interface has list registers: none is lost, none comes twice, and
/// they come in the order of their priorities.
pub(super) fn overflow() -> Outcome {
    let all = || (0..16).chain(SPIS);
    // Ranks spread over 16 priorities, not in the order of INTIDs.
    let priority = |intid: u32| u8::try_from(intid * 7 % 16 * 8 + 0x40).unwrap_or(DEFAULT_PRIORITY);
    for intid in SPIS {
        gic::disable(intid);
        gic::set_edge(intid, true);
        gic::route(intid, cpu::affinity());
    }
    watch(all());
    for round in 0..3 {
        for intid in all() {
            gic::set_priority(intid, priority(intid));
            if intid < 16 {
                gic::send_sgi(intid, cpu::affinity());
            } else {
                gic::set_pending(intid);
            }
        }
        let mut log = let_in(48);
        let sorted = log
            .windows(2)
            .all(|pair| priority(pair[0]) <= priority(pair[1]));
        check!(sorted, "round {round}: out of order: {log:?}");
        log.sort_unstable();
        check!(
            log.iter().copied().eq(all()),
            "round {round}: delivered {log:?}"
        );
    }
    unwatch(all());
    Ok(())
}

const PENDING: u32 = 1 << 0;
const ACTIVE: u32 = 1 << 1;

/// What the registers said while the handler ran.
static STATE: AtomicU32 = AtomicU32::new(0);

fn state(intid: u32) -> u32 {
    let pending = if gic::is_pending(intid) { PENDING } else { 0 };
    let active = if gic::is_active(intid) { ACTIVE } else { 0 };
    pending | active
}

fn look(intid: u32) {
    record(intid);
    STATE.store(state(intid), Ordering::Relaxed);
    if log_length() == 1 {
        // Once more, while it is active.
        gic::set_pending(intid);
        STATE.store(
            state(intid) << 8 | STATE.load(Ordering::Relaxed),
            Ordering::Relaxed,
        );
    }
}

/// Pending, active, active and pending, and nothing again.
pub(super) fn active() -> Outcome {
    let intid = SPIS.start + 3;
    gic::disable(intid);
    gic::set_edge(intid, true);
    watch([intid]);
    gic::route(intid, cpu::affinity());
    gic::set_handler(intid, Some(look));
    gic::set_pending(intid);
    check_eq!(state(intid), PENDING, "before");
    exception::unmask_irqs();
    timer::wait_until(100, || log_length() >= 2);
    exception::mask_irqs();
    check_eq!(take_log(), [intid, intid], "delivered");
    check_eq!(
        STATE.load(Ordering::Relaxed),
        ACTIVE,
        "in the second handler"
    );
    check_eq!(state(intid), 0, "after");
    unwatch([intid]);
    Ok(())
}

/// With EOImode 1, ending an interrupt drops its priority and leaves it active.
pub(super) fn split_end() -> Outcome {
    watch([6, 7]);
    gic::split_end(true);
    gic::send_sgi(6, cpu::affinity());
    check!(timer::wait_until(100, || gic::is_pending(6)), "not pending");
    let intid = gic::acknowledge();
    check_eq!(intid, 6, "acknowledged");
    gic::end(intid);
    check!(gic::is_active(6), "deactivated by the priority drop");
    // The priority is dropped: another one of the same priority gets through.
    gic::send_sgi(7, cpu::affinity());
    let mut other = gic::SPURIOUS;
    timer::wait_until(100, || {
        other = gic::acknowledge();
        other != gic::SPURIOUS
    });
    check_eq!(other, 7, "acknowledged after the drop");
    gic::end(7);
    gic::deactivate(7);
    // Active, so the same SGI waits.
    gic::send_sgi(6, cpu::affinity());
    check_eq!(
        gic::acknowledge(),
        gic::SPURIOUS,
        "acknowledged while active"
    );
    gic::deactivate(6);
    timer::wait_until(100, || {
        other = gic::acknowledge();
        other != gic::SPURIOUS
    });
    check_eq!(other, 6, "acknowledged after it was deactivated");
    gic::end(6);
    gic::deactivate(6);
    gic::split_end(false);
    unwatch([6, 7]);
    Ok(())
}

/// Fields keep what is written, in each width that the architecture allows, and registers that are
/// not there read as zero.
pub(super) fn registers() -> Outcome {
    let gicd = gic::distributor();
    let intid = SPIS.start as usize + 4;
    let word = reg::IPRIORITYR + intid / 4 * 4;
    gicd.write32(word, 0x40_50_60_70);
    check_eq!(gicd.read32(word), 0x40_50_60_70, "IPRIORITYR, a word");
    gicd.write8(word + 2, 0x88);
    check_eq!(gicd.read8(word + 2), 0x88, "IPRIORITYR, a byte");
    check_eq!(
        gicd.read32(word),
        0x40_88_60_70,
        "IPRIORITYR, its neighbours"
    );
    gicd.write32(word, u32::from_ne_bytes([DEFAULT_PRIORITY; 4]));
    let router = reg::IROUTER + intid * 8;
    gicd.write64(router, cpu::affinity());
    check_eq!(gicd.read64(router), cpu::affinity(), "IROUTER");
    // IGROUPR may be written out to its end and beyond (guests do).
    for offset in (reg::IGROUPR..reg::ISENABLER).step_by(4) {
        gicd.write32(offset, u32::MAX);
    }
    let end = gic::spi_end() as usize;
    if end < 1020 {
        check_eq!(
            gicd.read32(reg::IGROUPR + end / 8),
            0,
            "IGROUPR behind the last SPI"
        );
        check_eq!(
            gicd.read32(reg::ISENABLER + end / 8),
            0,
            "ISENABLER behind the last SPI"
        );
    }
    check_eq!(
        gicd.read32(reg::ISENABLER),
        0,
        "ISENABLER0 is in the redistributor"
    );
    Ok(())
}
