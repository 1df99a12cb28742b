//! Accesses that stage 2 does not let through: to a device that EL2 emulates, or to nothing.

use crate::exit::{Exception, Next};
use crate::pcpu::Running;
use crate::{sched, terminal};
use arch::syndrome::{AbortKind, Access, DataAbort, fault_address};
use arch::sysreg;
use kernel::layout;
use vgic::Frame;

/// A load or store that reached something, decoded.
#[derive(Clone, Copy)]
pub(crate) struct Mmio {
    /// Where.
    pub(crate) ipa: u64,
    /// How.
    pub(crate) access: Access,
    /// The value of a store; `None` for a load.
    pub(crate) store: Option<u64>,
}

impl Mmio {
    /// Returns the width in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        u64::from(self.access.bytes)
    }
}

/// Handles a data abort.
pub(crate) fn data_abort(running: &mut Running<'_>, abort: DataAbort) -> Next {
    let far = sysreg::read!("far_el2");
    let refused = Next::Inject(Exception::DataAbort(far));
    // A table walk, a right that is missing, or the memory system's own no: HPFAR_EL2 need not say
    // where, and nothing that EL2 emulates is reached that way.
    if abort.table_walk || abort.kind != AbortKind::Translation {
        return refused;
    }
    // Loads and stores with writeback or of pairs, atomics, SIMD: no syndrome says what they are.
    let Some(access) = abort.access else {
        return refused;
    };
    let ipa = fault_address(sysreg::read!("hpfar_el2"), far);
    if !ipa.is_multiple_of(u64::from(access.bytes)) {
        return refused;
    }
    let store = abort
        .write
        .then(|| access.truncate(running.state.frame.register(access.rt)));
    let mmio = Mmio { ipa, access, store };
    route(running, mmio).unwrap_or(refused)
}

/// Finds who answers; `None` if nobody is there.
fn route(running: &mut Running<'_>, mmio: Mmio) -> Option<Next> {
    let ipa = mmio.ipa;
    if layout::GICD.contains(&ipa) {
        return Some(gic(
            running,
            mmio,
            Frame::Distributor,
            ipa - layout::GICD.start,
        ));
    }
    if layout::UART.contains(&ipa) {
        return Some(uart(running, mmio));
    }
    if layout::GITS.contains(&ipa) {
        let bridge = running.domain.config.host_bridge;
        return bridge.then(|| gic(running, mmio, Frame::Its, ipa - layout::GITS.start));
    }
    if (layout::GICR..layout::UART.start).contains(&ipa) {
        let offset = ipa - layout::GICR;
        let index = usize::try_from(offset / layout::GICR_STRIDE).ok()?;
        running.domain.vcpus.get(index)?;
        let frame = Frame::Redistributor(index);
        return Some(gic(running, mmio, frame, offset % layout::GICR_STRIDE));
    }
    if layout::RTC.contains(&ipa) {
        return Some(answer_load(
            running,
            mmio,
            kernel::rtc::read(ipa - layout::RTC.start),
        ));
    }
    if layout::FLASH.contains(&ipa) && running.domain.payload.firmware {
        return Some(answer_load(running, mmio, u64::MAX));
    }
    None
}

/// Completes an access: a load gets `value`, a store is done.
pub(crate) fn answer_load(running: &mut Running<'_>, mmio: Mmio, value: u64) -> Next {
    if mmio.store.is_none() {
        let access = mmio.access;
        running
            .state
            .frame
            .set_register(access.rt, access.extend(value));
    }
    Next::Skip
}

fn gic(running: &mut Running<'_>, mmio: Mmio, frame: Frame, offset: u64) -> Next {
    let interrupts = &running.domain.interrupts;
    match mmio.store {
        Some(value) => {
            interrupts.write(running, frame, offset, mmio.bytes(), value);
            Next::Skip
        }
        None => {
            let value = interrupts.read(running, frame, offset, mmio.bytes());
            answer_load(running, mmio, value)
        }
    }
}

fn uart(running: &mut Running<'_>, mmio: Mmio) -> Next {
    let domain = running.domain;
    let offset = mmio.ipa - layout::UART.start;
    let mut uart = domain.uart.lock();
    let (value, sent, line) = match mmio.store {
        Some(value) => {
            #[expect(clippy::cast_possible_truncation, reason = "registers have 32 bits")]
            let sent = uart.write(offset, value as u32);
            (0, sent, uart.line())
        }
        None => (uart.read(offset), None, uart.line()),
    };
    drop(uart);
    if let Some(byte) = sent
        && terminal::write(domain.id, byte).is_err()
    {
        // The store is made again when there is room.
        domain.wait_for_terminal();
        sched::block(running);
        return Next::Resume;
    }
    domain.interrupts.set_spi(domain, layout::UART_SPI, line);
    answer_load(running, mmio, u64::from(value))
}

/// Completes the access that a device model has answered.
pub(crate) fn answer(_running: &mut Running<'_>) {}
