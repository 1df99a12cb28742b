//! Reset: back to the state of power-on, before a function is given and after it is taken back.
//!
//! A reset takes tens to hundreds of milliseconds, most of them spent waiting. So it is a machine of
//! steps, each of which says how long to wait until the next one. Who comes sooner is sent away: nothing
//! is touched before its time.
//!
//! ```text
//!   Quiet --> Pending --> initiate --> Held --> Link --> Ready --> Verify --> done
//!   off but   requests    FLR, bus,    bus or   up       each      BARs, windows, ACS as they were,
//!   its pin   complete    D3hot        D3hot    again    answers   MSIs off, quiet, nothing pending
//! ```
//!
//! What has been asked for need not have happened. A function that comes back late, as another one,
//! with registers that do not hold, or still at work, has not been reset.

use core::fmt;
use core::ops::Range;
use core::time::Duration;

use vpci::{Offset, Sbdf};

use crate::capability::{
    DEVICE_CONTROL, DEVICE_STATUS, INITIATE_RESET, LINK_STATUS, POWER_CONTROL, PortKind,
};
use crate::config::{ConfigSpace, Function, bridge, header};
use crate::device::{Device, Header, Hierarchy};
use crate::sriov::AFTER_ENABLE;

/// How a function can be reset, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Function level reset by the PCI Express capability.
    FunctionLevel(Offset),
    /// Function level reset by the advanced features capability.
    Advanced(Offset),
    /// Reset of the whole bus below this bridge.
    SecondaryBus(Sbdf),
    /// Down to D3hot and up again.
    Power(Offset),
}

/// Why a reset failed. Whether the function is disabled nobody can say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResetError {
    /// The link below this port did not come up within a second.
    NoLink(Sbdf),
    /// The function did not come back within a second.
    NotReady(Sbdf),
    /// Another one came back in its place.
    OtherFunction(Sbdf),
    /// Its BARs, windows or access control do not hold what was written to them, its virtual functions are
    /// not enabled, or MSIs are on.
    NotRestored(Sbdf),
    /// It is a bus master, or decodes addresses, although it was told not to.
    NotQuiet(Sbdf),
    /// Requests of it are still not completed.
    StillPending(Sbdf),
}

impl fmt::Display for ResetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoLink(port) => write!(f, "the link below {port} did not come up"),
            Self::NotReady(sbdf) => write!(f, "{sbdf} did not come back"),
            Self::OtherFunction(sbdf) => write!(f, "{sbdf} came back as another function"),
            Self::NotRestored(sbdf) => write!(f, "{sbdf} does not hold what is written to it"),
            Self::NotQuiet(sbdf) => write!(f, "{sbdf} stays on"),
            Self::StillPending(sbdf) => write!(f, "{sbdf} still waits for completions"),
        }
    }
}

/// How a reset goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The next step is due after this many milliseconds.
    Wait(u32),
    /// The function is reset, its BARs are where they were, and it is disabled.
    Done,
}

/// Device Status: requests of the function are not completed.
const TRANSACTIONS_PENDING: u16 = 1 << 5;
/// AF Control and AF Status in the advanced features capability, and their bits.
const ADVANCED_CONTROL: u16 = 4;
const ADVANCED_STATUS: u16 = 5;
const ADVANCED_INITIATE: u8 = 1 << 0;
const ADVANCED_PENDING: u8 = 1 << 0;
/// PMCSR: the power state; and a bit that a one clears.
const POWER_STATE: u16 = 3;
const POWER_STATE_D3HOT: u16 = 3;
const POWER_EVENT: u16 = 1 << 15;

/// Link Status: the data link layer is up.
const LINK_ACTIVE: u16 = 1 << 13;

/// How often something is looked at again, in milliseconds.
const POLL: u32 = 10;
/// How long completions may take (section 2.8: 50 ms in the default range, and some room).
const PENDING: u32 = 100;
/// After function level reset, and after a bus was in reset (sections 6.6.2, 6.6.1).
const AFTER_RESET: u32 = 100;
/// After the reset of a conventional bus: 2^25 clocks of 33 MHz (PCI Local Bus Specification 3.0,
/// section 4.3.2, T_rhfa).
pub(crate) const AFTER_CONVENTIONAL_RESET: u32 = 1017;
/// How long a bus is held in reset: T_rst is a millisecond.
const BUS_RESET: u32 = 2;
/// Between D3hot and D0 (section 5.9).
pub(crate) const POWER_CHANGE: u32 = 10;
/// After which a function that does not answer is broken (section 6.6.1).
const READY: u32 = 1000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Quiet,
    Pending { waited: u32 },
    Held,
    Link { waited: u32 },
    Ready { next: usize, waited: u32 },
    Verify { waited: u32 },
}

/// A reset on its way.
#[derive(Clone, Debug)]
pub struct Reset {
    index: usize,
    method: Method,
    affected: Range<usize>,
    stage: Stage,
    /// When the next step may be taken.
    due: Duration,
}

impl Hierarchy {
    /// Returns how a function can be reset. `together` tells which functions go the same way as it,
    /// so that they may be reset with it.
    pub fn reset_method(&self, index: usize, together: impl Fn(Sbdf) -> bool) -> Option<Method> {
        let device = self.devices.get(index)?;
        let capabilities = &device.capabilities;
        if let Some(express) = device
            .express
            .filter(|express| express.function_level_reset)
        {
            return Some(Method::FunctionLevel(express.offset));
        }
        if capabilities.advanced_reset {
            return capabilities.advanced.map(Method::Advanced);
        }
        if let Some((bridge, below)) = self.bus_of(device)
            && self
                .devices
                .get(below)?
                .iter()
                .all(|device| !matches!(device.header, Header::Endpoint) || together(device.sbdf))
        {
            return Some(Method::SecondaryBus(bridge));
        }
        capabilities
            .power
            .filter(|_| capabilities.power_reset)
            .map(Method::Power)
    }

    /// Returns the bridge above a function, and everything below that.
    fn bus_of(&self, device: &Device) -> Option<(Sbdf, Range<usize>)> {
        let parent = self.devices.get(device.parent?)?;
        Some((parent.sbdf, parent.bridge()?.below.clone()))
    }

    /// Starts the reset of a function by `method`, which `reset_method` returned for it.
    pub fn reset(&self, index: usize, method: Method) -> Reset {
        let alone = index..index + 1;
        let affected = match method {
            Method::SecondaryBus(_) => {
                let bus = self
                    .devices
                    .get(index)
                    .and_then(|device| self.bus_of(device));
                bus.map_or(alone, |(_, below)| below)
            }
            Method::FunctionLevel(_) | Method::Advanced(_) | Method::Power(_) => alone,
        };
        Reset {
            index,
            method,
            affected,
            stage: Stage::Quiet,
            due: Duration::ZERO,
        }
    }
}

impl Reset {
    /// Takes the next step, if its time has come. `found` is the hierarchy that the reset was started on,
    /// and `now` the time since whatever it was at the first step.
    pub fn step<C: ConfigSpace + ?Sized>(
        &mut self,
        config: &C,
        found: &Hierarchy,
        now: Duration,
    ) -> Result<Progress, ResetError> {
        let left = self.due.saturating_sub(now);
        if !left.is_zero() {
            return Ok(Progress::Wait(milliseconds_up(left)));
        }
        let progress = self.advance(config, found)?;
        if let Progress::Wait(milliseconds) = progress {
            self.due = now.saturating_add(Duration::from_millis(milliseconds.into()));
        }
        Ok(progress)
    }

    fn advance<C: ConfigSpace + ?Sized>(
        &mut self,
        config: &C,
        found: &Hierarchy,
    ) -> Result<Progress, ResetError> {
        let Some(device) = found.devices.get(self.index) else {
            return Ok(Progress::Done);
        };
        let function = Function::new(config, device.sbdf);
        match self.stage {
            Stage::Quiet => {
                for device in self.devices(found) {
                    let function = Function::new(config, device.sbdf);
                    function.write16(header::COMMAND, header::COMMAND_SILENT);
                }
                self.stage = Stage::Pending { waited: 0 };
                self.advance(config, found)
            }
            Stage::Pending { waited }
                if waited < PENDING && self.pending(config, found).is_some() =>
            {
                self.stage = Stage::Pending {
                    waited: waited + POLL,
                };
                Ok(Progress::Wait(POLL))
            }
            Stage::Pending { .. } => Ok(self.start(config, function)),
            Stage::Held => self.release(config, found, function),
            Stage::Link { waited } => self.wait_for_link(config, found, waited),
            Stage::Ready { next, waited } => self.bring_back(config, found, next, waited),
            Stage::Verify { waited } => self.verify(config, found, waited),
        }
    }

    /// Carries the reset out; `wait` waits for some milliseconds.
    pub fn run<C: ConfigSpace + ?Sized>(
        mut self,
        config: &C,
        found: &Hierarchy,
        mut wait: impl FnMut(u32),
    ) -> Result<(), ResetError> {
        let mut now = Duration::ZERO;
        while let Progress::Wait(milliseconds) = self.step(config, found, now)? {
            wait(milliseconds);
            now = now.saturating_add(Duration::from_millis(milliseconds.into()));
        }
        Ok(())
    }

    /// Ends the reset where it is: a bus that it holds comes out of it, maybe too early, so that what is below
    /// has not been reset, but can be the next time.
    pub fn give_up<C: ConfigSpace + ?Sized>(&self, config: &C) {
        if let (Stage::Held, Method::SecondaryBus(above)) = (self.stage, self.method) {
            release_bus(config, above);
        }
    }

    /// Returns the position of the function that it is for.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Returns whether the function at this position is reset, too.
    pub fn covers(&self, index: usize) -> bool {
        self.affected.contains(&index)
    }

    /// Returns the positions of all that are reset.
    pub fn affected(&self) -> Range<usize> {
        self.affected.clone()
    }

    fn devices<'a>(&self, found: &'a Hierarchy) -> impl Iterator<Item = &'a Device> {
        found
            .devices
            .get(self.affected.clone())
            .unwrap_or_default()
            .iter()
    }

    /// Returns a function of which requests are still on their way: their completions would meet one
    /// that has forgotten them.
    fn pending<C: ConfigSpace + ?Sized>(&self, config: &C, found: &Hierarchy) -> Option<Sbdf> {
        let pending = self.devices(found).find(|device| {
            let function = Function::new(config, device.sbdf);
            let express = device.capabilities.express.is_some_and(|offset| {
                function.read16(offset.get() + DEVICE_STATUS) & TRANSACTIONS_PENDING != 0
            });
            let advanced = device.capabilities.advanced.is_some_and(|offset| {
                function.read8(offset.get() + ADVANCED_STATUS) & ADVANCED_PENDING != 0
            });
            express || advanced
        });
        pending.map(|device| device.sbdf)
    }

    fn start<C: ConfigSpace + ?Sized>(
        &mut self,
        config: &C,
        function: Function<'_, C>,
    ) -> Progress {
        let ready = Stage::Ready {
            next: self.affected.start,
            waited: 0,
        };
        let (stage, wait) = match self.method {
            Method::FunctionLevel(offset) => {
                let control = function.read16(offset.get() + DEVICE_CONTROL);
                function.write16(offset.get() + DEVICE_CONTROL, control | INITIATE_RESET);
                (ready, AFTER_RESET)
            }
            Method::Advanced(offset) => {
                function.write8(offset.get() + ADVANCED_CONTROL, ADVANCED_INITIATE);
                (ready, AFTER_RESET)
            }
            Method::SecondaryBus(above) => {
                let above = Function::new(config, above);
                let control = above.read16(bridge::CONTROL);
                above.write16(bridge::CONTROL, control | bridge::CONTROL_RESET);
                (Stage::Held, BUS_RESET)
            }
            Method::Power(offset) => {
                set_power_state(function, offset, POWER_STATE_D3HOT);
                (Stage::Held, POWER_CHANGE)
            }
        };
        self.stage = stage;
        Progress::Wait(wait)
    }

    fn release<C: ConfigSpace + ?Sized>(
        &mut self,
        config: &C,
        found: &Hierarchy,
        function: Function<'_, C>,
    ) -> Result<Progress, ResetError> {
        self.stage = self.first_ready();
        Ok(Progress::Wait(match self.method {
            Method::SecondaryBus(sbdf) => {
                release_bus(config, sbdf);
                let port = found.find(sbdf);
                match port.and_then(Device::port) {
                    Some(PortKind::RootPort | PortKind::DownstreamPort)
                        if reports_link(port).is_some() =>
                    {
                        self.stage = Stage::Link { waited: 0 };
                        POLL
                    }
                    Some(
                        PortKind::RootPort | PortKind::UpstreamPort | PortKind::DownstreamPort,
                    ) => AFTER_RESET,
                    _ => AFTER_CONVENTIONAL_RESET,
                }
            }
            Method::Power(offset) => {
                set_power_state(function, offset, 0);
                POWER_CHANGE
            }
            Method::FunctionLevel(_) | Method::Advanced(_) => 0,
        }))
    }

    fn first_ready(&self) -> Stage {
        Stage::Ready {
            next: self.affected.start,
            waited: 0,
        }
    }

    /// Waits until the link is up: the time that functions have counts from there (section 6.6.1, for
    /// ports of more than 5 GT/s; harmless with others).
    fn wait_for_link<C: ConfigSpace + ?Sized>(
        &mut self,
        config: &C,
        found: &Hierarchy,
        waited: u32,
    ) -> Result<Progress, ResetError> {
        if let Method::SecondaryBus(sbdf) = self.method
            && let Some(offset) = reports_link(found.find(sbdf))
            && Function::new(config, sbdf).read16(offset.get() + LINK_STATUS) & LINK_ACTIVE == 0
        {
            if waited >= READY {
                return Err(ResetError::NoLink(sbdf));
            }
            self.stage = Stage::Link {
                waited: waited + POLL,
            };
            return Ok(Progress::Wait(POLL));
        }
        self.stage = self.first_ready();
        Ok(Progress::Wait(AFTER_RESET))
    }

    /// Programs the functions anew, in ascending order so that bridges come before what is below
    /// them, each as soon as it answers: with its own ID, and not with "try again" (section 2.3.1.1) or
    /// with nothing.
    fn bring_back<C: ConfigSpace + ?Sized>(
        &mut self,
        config: &C,
        found: &Hierarchy,
        mut next: usize,
        waited: u32,
    ) -> Result<Progress, ResetError> {
        while let Some(device) = found
            .devices
            .get(next)
            .filter(|_| self.affected.contains(&next))
        {
            let function = Function::new(config, device.sbdf);
            let vendor = function.read16(header::VENDOR_ID);
            if !device.answers(function) {
                if waited >= READY {
                    return Err(match vendor {
                        header::VENDOR_NONE | header::VENDOR_RETRY => {
                            ResetError::NotReady(device.sbdf)
                        }
                        _ => ResetError::OtherFunction(device.sbdf),
                    });
                }
                self.stage = Stage::Ready {
                    next,
                    waited: waited + POLL,
                };
                return Ok(Progress::Wait(POLL));
            }
            // Nobody would answer for its pin.
            function.write16(header::COMMAND, header::COMMAND_SILENT);
            let enabled = found.restore(config, next);
            next += 1;
            if enabled {
                self.stage = Stage::Ready { next, waited: 0 };
                return Ok(Progress::Wait(AFTER_ENABLE));
            }
        }
        self.verify(config, found, 0)
    }

    /// Looks whether everything is as it should be.
    fn verify<C: ConfigSpace + ?Sized>(
        &mut self,
        config: &C,
        found: &Hierarchy,
        waited: u32,
    ) -> Result<Progress, ResetError> {
        for (index, device) in self.affected.clone().zip(self.devices(found)) {
            if !found.is_restored(config, index) {
                return Err(ResetError::NotRestored(device.sbdf));
            }
            if !found.is_quiet(config, index) {
                return Err(ResetError::NotQuiet(device.sbdf));
            }
        }
        let Some(sbdf) = self.pending(config, found) else {
            return Ok(Progress::Done);
        };
        if waited >= PENDING {
            return Err(ResetError::StillPending(sbdf));
        }
        self.stage = Stage::Verify {
            waited: waited + POLL,
        };
        Ok(Progress::Wait(POLL))
    }
}

/// Returns how many whole milliseconds a time takes at most.
pub fn milliseconds_up(time: Duration) -> u32 {
    u32::try_from(time.as_nanos().div_ceil(1_000_000)).unwrap_or(u32::MAX)
}

fn release_bus<C: ConfigSpace + ?Sized>(config: &C, above: Sbdf) {
    let above = Function::new(config, above);
    let control = above.read16(bridge::CONTROL);
    above.write16(bridge::CONTROL, control & !bridge::CONTROL_RESET);
}

/// Returns where a port's PCI Express capability is, if it tells whether the link is up.
fn reports_link(port: Option<&Device>) -> Option<Offset> {
    let express = port?.express.filter(|express| express.reports_link)?;
    Some(express.offset)
}

/// Brings a function to D0; returns whether it was not there, and so needs [`POWER_CHANGE`].
pub(crate) fn wake<C: ConfigSpace + ?Sized>(function: Function<'_, C>, offset: Offset) -> bool {
    let is_asleep = function.read16(offset.get() + POWER_CONTROL) & POWER_STATE != 0;
    if is_asleep {
        set_power_state(function, offset, 0);
    }
    is_asleep
}

fn set_power_state<C: ConfigSpace + ?Sized>(function: Function<'_, C>, offset: Offset, state: u16) {
    let control = function.read16(offset.get() + POWER_CONTROL);
    let kept = control & !(POWER_STATE | POWER_EVENT);
    function.write16(offset.get() + POWER_CONTROL, kept | state);
}
