//! Accesses that stage 2 does not let through: to a device that EL2 emulates, or to nothing.

use crate::assign::Operation;
use crate::bus::{self, Answer, Bus, Elsewhere, Quick, Scope};
use crate::domain::Domain;
use crate::exit::{Exception, Next};
use crate::memory::TableFrames;
use crate::pcpu::Running;
use crate::physical::Resetting;
use crate::servers::{self, Asked, Sent};
use crate::vcpu::Activity;
use crate::{control, replay, sched, terminal};
use alloc::vec::Vec;
use arch::address::Ipa;
use arch::syndrome::{AbortKind, Access, DataAbort, fault_address};
use arch::sysreg;
use arch::table::Rights;
use core::sync::atomic::Ordering;
use ioreq::{Kind, Request, TakeError, Width};
use kernel::layout;
use spin::Mutex;
use vgic::Frame;
use vpci::{ConfigAccess, Sbdf};

/// How often it is looked whether a reset that another vCPU has asked for is over, in milliseconds.
const RESET_POLL: u32 = 10;

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
        self.access.bytes()
    }
}

/// Handles a data abort.
pub(crate) fn data_abort(running: &mut Running<'_>, abort: DataAbort) -> Next {
    let far = sysreg::read!("far_el2");
    let ipa = match abort.kind() {
        // HPFAR_EL2 is valid for a translation fault, whether the syndrome is or not (D24.2.58).
        AbortKind::Translation if !abort.is_table_walk() => {
            fault_address(sysreg::read!("hpfar_el2"), far)
        }
        AbortKind::Permission if !abort.is_table_walk() && !abort.is_maintenance() => {
            match without_right(running, abort.is_write(), far) {
                Ok(ipa) => ipa,
                Err(next) => return next,
            }
        }
        // What the guest may only read is nothing for it to invalidate.
        AbortKind::Permission if !abort.is_table_walk() => return Next::Skip,
        // A table walk, or the memory system's own no: HPFAR_EL2 need not say where, and nothing that
        // EL2 emulates is reached that way.
        _ => return refuse(running, far),
    };
    // Loads and stores with writeback or of pairs, atomics, SIMD: no syndrome says what they are.
    let Some(access) = abort.access() else {
        return match abort.is_maintenance() {
            true => Next::Skip, // nothing of it is in a cache
            false => replay::begin(running, abort.is_write(), far, ipa),
        };
    };
    if !ipa.is_multiple_of(access.bytes()) {
        return refuse(running, far);
    }
    let store = abort
        .is_write()
        .then(|| access.truncate(running.state.frame.register(access.register())));
    let mmio = Mmio { ipa, access, store };
    route(running, mmio).unwrap_or_else(|| refuse(running, far))
}

/// Returns the IPA of an access for which stage 2 has no right: a store to config space that is mapped to
/// be read.
///
/// HPFAR_EL2 is not architected for a permission fault (D24.2.58), so FAR_EL2 is translated anew. The guest
/// may have changed its tables since: then it makes the access again, as whatever it is now.
#[inline]
fn without_right(running: &Running<'_>, write: bool, far: u64) -> Result<u64, Next> {
    let translated = replay::translate(&running.state.frame, write, far);
    let ipa = translated.map_err(|_| Next::Resume)?;
    if layout::ECAM.contains(&ipa) {
        return Ok(ipa);
    }
    Err(beside_config(running, far, ipa))
}

/// Says how a vCPU goes on whose access was let through to no more than reading, and is not one to config
/// space.
#[cold]
fn beside_config(running: &Running<'_>, far: u64, ipa: u64) -> Next {
    let stage2 = running.domain.stage2.lock();
    let found = stage2
        .as_ref()
        .and_then(|stage2| stage2.translate(&TableFrames::for_pcpus(), Ipa::new(ipa)));
    match found {
        Some((_, access)) if !access.rights.contains(Rights::WRITE) => refuse(running, far),
        _ => Next::Resume,
    }
}

/// What is not there, or not to be reached in this way, is a synchronous external abort; it is
/// counted, and nobody else is harmed.
#[cold]
#[inline(never)]
pub(crate) fn refuse(running: &Running<'_>, far: u64) -> Next {
    // Relaxed: a statistic.
    running.domain.refused.fetch_add(1, Ordering::Relaxed);
    Next::Inject(Exception::DataAbort(far))
}

/// Makes an access that is a part of an instruction. A second copy of `route`, so that the first is
/// where the most frequent exits need it.
#[cold]
#[inline(never)]
pub(crate) fn route_part(running: &mut Running<'_>, mmio: Mmio) -> Option<Next> {
    route(running, mmio)
}

/// Finds who answers; `None` if nobody is there.
#[inline(always)]
fn route(running: &mut Running<'_>, mmio: Mmio) -> Option<Next> {
    let ipa = mmio.ipa;
    let domain = running.domain;
    if let Some(bus) = &domain.pci {
        if layout::ECAM.contains(&ipa) {
            return config(running, bus, mmio);
        }
        if layout::PCI_32.contains(&ipa) || layout::PCI_64.contains(&ipa) {
            return Some(memory_space(running, bus, mmio));
        }
    }
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
#[inline(always)]
pub(crate) fn answer_load(running: &mut Running<'_>, mmio: Mmio, value: u64) -> Next {
    if mmio.store.is_none() {
        let access = mmio.access;
        match running
            .state
            .frame
            .x
            .get_mut(usize::from(access.register()))
        {
            Some(register) => *register = access.extend(value),
            // The zero register. It also stands for what is more than a register.
            None => replay::loaded(running, value),
        }
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
    let (value, sent) = domain.with_uart(|uart| match mmio.store {
        #[expect(clippy::cast_possible_truncation, reason = "registers have 32 bits")]
        Some(value) => (0, uart.write(offset, value as u32)),
        None => (uart.read(offset), None),
    });
    if let Some(byte) = sent
        && terminal::write(domain.id, byte).is_err()
    {
        // The store is made again when there is room.
        domain.wait_for_terminal();
        sched::block(running);
        if terminal::has_room() {
            sched::notify(&running.reference());
        }
        return Next::Resume;
    }
    answer_load(running, mmio, u64::from(value))
}

/// What a vCPU waits for, and how it goes on then.
pub(crate) enum Pending {
    /// An access to memory space, answered by a device model.
    Memory(Mmio, Asked),
    /// A config access, answered by a device model.
    Config(Config, Asked),
    /// Resets of devices, which the guest asked for.
    Reset(Config, Scope, Vec<Resetting>),
    /// The reset of this function of a device model's, on a bus that the guest resets; or room in the
    /// slot to ask for it.
    BusReset(Config, Option<Asked>, Option<Sbdf>, u8),
    /// The reset of a device model's function, or room in the slot to ask for it, and those of the others:
    /// before the domain starts.
    DomainReset(Option<Asked>, Vec<(Sbdf, u32)>),
    /// A call of the control domain that takes a while.
    Control(Vec<Operation>),
    /// What is in the way of the access, which is made again: a reset, or a request from before one
    /// that a device model still has.
    Again,
}

impl Pending {
    /// Returns the request that is not answered, if that is what is waited for.
    pub(crate) fn into_asked(self) -> Option<Asked> {
        match self {
            Self::Memory(_, asked) | Self::Config(_, asked) => Some(asked),
            Self::DomainReset(asked, _) | Self::BusReset(_, asked, ..) => asked,
            Self::Reset(..) | Self::Control(_) | Self::Again => None,
        }
    }
}

/// A config access on its way: one request, or two for eight bytes.
#[derive(Clone, Copy)]
pub(crate) struct Config {
    mmio: Mmio,
    access: ConfigAccess,
    /// The second request, and the answer to the first.
    high: Option<ConfigAccess>,
    low: Option<u64>,
}

impl Config {
    /// Returns what the next request stores, if it does.
    fn stored(&self) -> Option<u64> {
        let shift = if self.low.is_some() { 32 } else { 0 };
        let mask = u64::from(self.access.size().mask());
        self.mmio.store.map(|value| value >> shift & mask)
    }
}

/// Answers an access in the ECAM window.
#[inline(always)]
fn config(running: &mut Running<'_>, bus: &Mutex<Bus>, mmio: Mmio) -> Option<Next> {
    let offset = mmio.ipa - layout::ECAM.start;
    if mmio.bytes() == 8 {
        let (access, high) = vpci::ecam::decode_eight(0, offset)?;
        let config = Config {
            mmio,
            access,
            high: Some(high),
            low: None,
        };
        return Some(config_step(running, bus, &config));
    }
    let access = vpci::ecam::decode(0, offset, mmio.bytes())?;
    let answer = {
        let mut bus = bus.lock();
        match bus.config(access, mmio.store) {
            Quick::Done(value) => return Some(answer_load(running, mmio, value)),
            quick => bus.config_rest(running.domain, access, mmio.store, quick),
        }
    };
    let config = Config {
        mmio,
        access,
        high: None,
        low: None,
    };
    Some(config_answer(running, bus, &config, answer))
}

/// Makes the next request of a config access of eight bytes.
#[cold]
fn config_step(running: &mut Running<'_>, bus: &Mutex<Bus>, config: &Config) -> Next {
    let (access, store) = (config.access, config.stored());
    let answer = {
        let mut bus = bus.lock();
        let quick = bus.config(access, store);
        bus.config_rest(running.domain, access, store, quick)
    };
    config_answer(running, bus, config, answer)
}

/// Goes on with the answer to one request of a config access.
#[inline(never)]
fn config_answer(
    running: &mut Running<'_>,
    bus: &Mutex<Bus>,
    config: &Config,
    answer: Answer,
) -> Next {
    let access = config.access;
    match answer {
        Answer::Done(value) => config_done(running, bus, config, value),
        Answer::Elsewhere(to) => {
            let store = config.stored();
            let request = Request {
                kind: if store.is_some() {
                    Kind::ConfigWrite
                } else {
                    Kind::ConfigRead
                },
                width: width(u64::from(access.size().bytes())),
                sbdf: to.sbdf,
                address: access.offset().get().into(),
                data: store.unwrap_or(0),
            };
            match servers::send(running, to, request) {
                Sent::Asked(asked) => wait(running, Pending::Config(*config, asked)),
                Sent::Posted => config_done(running, bus, config, 0),
                Sent::Busy => wait(running, Pending::Again),
                Sent::Unanswered(value) => config_done(running, bus, config, value),
            }
        }
        Answer::Resetting(scope, resets) => reset(running, bus, *config, scope, resets),
        Answer::Again => try_again(running),
    }
}

/// Goes on after one request of a config access.
fn config_done(running: &mut Running<'_>, bus: &Mutex<Bus>, config: &Config, value: u64) -> Next {
    match (config.high, config.low) {
        (Some(access), None) => {
            let config = Config {
                access,
                low: Some(value),
                ..*config
            };
            config_step(running, bus, &config)
        }
        (_, Some(low)) => answer_load(running, config.mmio, value << 32 | low),
        (None, None) => answer_load(running, config.mmio, value),
    }
}

/// Answers an access in a window of the host bridge.
fn memory_space(running: &mut Running<'_>, bus: &Mutex<Bus>, mmio: Mmio) -> Next {
    let answer = bus.lock().memory(running.domain, mmio);
    match answer {
        Answer::Done(value) => answer_load(running, mmio, value),
        // Resets are asked for in config space only.
        Answer::Resetting(..) | Answer::Again => answer_load(running, mmio, u64::MAX),
        Answer::Elsewhere(to) => {
            let request = Request {
                kind: if mmio.store.is_some() {
                    Kind::MmioWrite
                } else {
                    Kind::MmioRead
                },
                width: width(mmio.bytes()),
                sbdf: to.sbdf,
                address: mmio.ipa,
                data: mmio.store.unwrap_or(0),
            };
            match servers::send(running, to, request) {
                Sent::Asked(asked) => wait(running, Pending::Memory(mmio, asked)),
                Sent::Posted => Next::Skip,
                Sent::Busy => wait(running, Pending::Again),
                Sent::Unanswered(value) => answer_load(running, mmio, value),
            }
        }
    }
}

fn width(bytes: u64) -> Width {
    Width::from_bytes(bytes).expect("an access has 1, 2, 4 or 8 bytes")
}

/// Makes the vCPU wait. The instruction is completed when what it waits for is there.
fn wait(running: &mut Running<'_>, pending: Pending) -> Next {
    running.state.pending = Some(pending);
    sched::wait_for_answer(running);
    Next::Resume
}

/// Makes the vCPU wait for a reset that another one has asked for, and then make its access again.
#[cold]
fn try_again(running: &mut Running<'_>) -> Next {
    sleep(running, Pending::Again, RESET_POLL)
}

/// Makes the vCPU wait for so many milliseconds.
#[cold]
pub(crate) fn sleep(running: &mut Running<'_>, pending: Pending, milliseconds: u32) -> Next {
    let next = wait(running, pending);
    sched::sleep(&running.reference(), Activity::Waiting, milliseconds);
    next
}

/// Carries resets of devices on, and goes on with the guest's access when they are done.
#[cold]
fn reset(
    running: &mut Running<'_>,
    bus: &Mutex<Bus>,
    config: Config,
    scope: Scope,
    mut resets: Vec<Resetting>,
) -> Next {
    if let Some(milliseconds) = bus::step(&mut resets) {
        return sleep(running, Pending::Reset(config, scope, resets), milliseconds);
    }
    bus.lock().after_reset_of(running.domain, scope);
    match scope {
        Scope::Function(_) => config_done(running, bus, &config, 0),
        Scope::Bus(below) => bus_reset(running, bus, config, below, None),
    }
}

/// Goes on with the reset of a bus: tells the device models, one function after the other, behind `after`.
#[cold]
fn bus_reset(
    running: &mut Running<'_>,
    bus: &Mutex<Bus>,
    config: Config,
    below: u8,
    mut after: Option<Sbdf>,
) -> Next {
    loop {
        let mut pci = bus.lock();
        let Some((sbdf, server)) = pci.next_emulated(below, after) else {
            pci.end_reset(below);
            drop(pci);
            return config_done(running, bus, &config, 0);
        };
        drop(pci);
        let to = Elsewhere {
            server,
            sbdf,
            posted: false,
        };
        match servers::send(running, to, Request::reset(sbdf)) {
            Sent::Asked(asked) => {
                let pending = Pending::BusReset(config, Some(asked), Some(sbdf), below);
                return wait(running, pending);
            }
            Sent::Busy => return wait(running, Pending::BusReset(config, None, after, below)),
            Sent::Posted | Sent::Unanswered(_) => after = Some(sbdf),
        }
    }
}

/// Asks for the next reset of a function of a device model's, for a vCPU that has not started. Returns what
/// it has to wait for; `None` when there is nothing more.
#[cold]
pub(crate) fn next_reset(
    domain: &Domain,
    vcpu: usize,
    mut rest: Vec<(Sbdf, u32)>,
) -> Option<Pending> {
    while let Some(&(sbdf, server)) = rest.last() {
        match servers::send_reset(domain, vcpu, server, sbdf) {
            // Something from before has the slot: it is asked for when that has been answered.
            Sent::Busy => return Some(Pending::DomainReset(None, rest)),
            Sent::Asked(asked) => {
                rest.pop();
                return Some(Pending::DomainReset(Some(asked), rest));
            }
            // Nobody is there.
            Sent::Posted | Sent::Unanswered(_) => rest.pop(),
        };
    }
    None
}

/// Goes on with what the loaded vCPU waits for, if it has come.
pub(crate) fn answer(running: &mut Running<'_>) {
    servers::take_stale(running);
    let Some(pending) = running.state.pending.take() else {
        return;
    };
    let bus = running.domain.pci.as_ref();
    let next = match pending {
        Pending::Again => Next::Resume,
        Pending::Reset(config, scope, resets) => match bus {
            Some(bus) => reset(running, bus, config, scope, resets),
            None => return,
        },
        Pending::Control(operation) => control::go_on(running, operation),
        Pending::BusReset(config, asked, after, below) => {
            if let Some(Err(asked)) = asked.map(|asked| taken(running, asked)) {
                let pending = Pending::BusReset(config, Some(asked), after, below);
                return wait_on(running, pending);
            }
            match bus {
                Some(bus) => bus_reset(running, bus, config, below, after),
                None => return,
            }
        }
        Pending::Memory(mmio, asked) => match taken(running, asked) {
            Ok(value) => answer_load(running, mmio, value),
            Err(asked) => return wait_on(running, Pending::Memory(mmio, asked)),
        },
        Pending::Config(config, asked) => {
            let value = match taken(running, asked) {
                Ok(value) => value,
                Err(asked) => return wait_on(running, Pending::Config(config, asked)),
            };
            let Some(bus) = bus else {
                return;
            };
            #[expect(clippy::cast_possible_truncation, reason = "of the request's width")]
            let value = bus.lock().config_answer(config.access, value as u32);
            config_done(running, bus, &config, value.into())
        }
        Pending::DomainReset(asked, rest) => {
            if let Some(Err(asked)) = asked.map(|asked| taken(running, asked)) {
                return wait_on(running, Pending::DomainReset(Some(asked), rest));
            }
            if let Some(pending) = next_reset(running.domain, running.vcpu.index, rest) {
                return wait_on(running, pending);
            }
            Next::Resume
        }
    };
    if running.state.replay.is_some() {
        replay::answered(running, next);
    } else if next == Next::Skip {
        running.state.frame.skip();
    }
}

/// Waits on for an answer that has not come yet. Who brings it says so after it is there.
fn wait_on(running: &mut Running<'_>, pending: Pending) {
    running.state.pending = Some(pending);
    sched::wait_for_answer(running);
}

/// Takes an answer, or what stands for the one of a device model that is gone.
fn taken(running: &mut Running<'_>, asked: Asked) -> Result<u64, Asked> {
    match asked.answer() {
        Ok(value) => Ok(value),
        Err(TakeError::Dropped) => Ok(asked.unanswered()),
        Err(TakeError::NotYet) => given_up(running, asked),
    }
}

/// Waits no longer for an answer of a function that has been taken away. It may still come; until then the
/// slot stays in use.
#[cold]
fn given_up(running: &mut Running<'_>, asked: Asked) -> Result<u64, Asked> {
    let bus = running.domain.pci.as_ref();
    let is_void = bus.is_some_and(|bus| asked.is_void(&bus.lock()));
    let stale = &mut running.state.stale;
    if !is_void || stale.try_reserve(1).is_err() {
        return Err(asked);
    }
    let value = asked.unanswered();
    stale.push(asked);
    Ok(value)
}
