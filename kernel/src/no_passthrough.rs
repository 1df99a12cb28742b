//! Stands in for `passthrough` in a build without vPCI: no function can be taken.
#![expect(
    clippy::needless_pass_by_ref_mut,
    reason = "the signatures are those of `passthrough`"
)]

use crate::domain::Domain;
use crate::physical::Resetting;
use abi::Status;
use arch::address::Ipa;
use core::fmt;
use kernel::tables::Reserve;
use vpci::{
    BarIndex, BusError, BusRange, Change, ConfigAccess, Effect, Sbdf, Steadiness, Upstream,
};

/// There is none.
pub(crate) enum Assigned {}

/// Why a function was not assigned.
pub(crate) enum AssignError {
    /// This build has no vPCI.
    NotBuilt,
    /// The slot cannot be had.
    Slot(BusError),
    /// No function of the machine is at that slot.
    NothingThere,
    /// A function is on its way to that slot.
    OnItsWay,
    /// The domain stopped for good.
    Gone,
    /// It is in a reset.
    Resetting,
    /// Its device model does not say that it has let go of it.
    Kept,
    /// There is no memory left.
    NoMemory,
}

impl fmt::Display for AssignError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotBuilt => f.write_str("this hypervisor was built without vpci"),
            Self::Slot(error) => write!(f, "{error}"),
            Self::NothingThere => f.write_str("no function of the machine is at that slot"),
            Self::OnItsWay => f.write_str("a function is on its way to that slot"),
            Self::Gone => f.write_str("the domain has stopped for good"),
            Self::Resetting => f.write_str("it is in a reset"),
            Self::Kept => f.write_str("its device model has not let go of it"),
            Self::NoMemory => f.write_str("there is no memory left"),
        }
    }
}

impl AssignError {
    pub(crate) fn status(&self) -> Status {
        match self {
            Self::NotBuilt => Status::NotSupported,
            Self::NothingThere => Status::NotFound,
            Self::OnItsWay | Self::Resetting => Status::Busy,
            Self::Slot(BusError::NoMemory) | Self::NoMemory => Status::NoMemory,
            Self::Slot(BusError::Occupied(_)) => Status::Occupied,
            Self::Slot(_) => Status::BadAddress,
            Self::Gone => Status::Gone,
            Self::Kept => Status::ResetFailed,
        }
    }
}

impl Assigned {
    pub(crate) fn index(&self) -> usize {
        match *self {}
    }

    pub(crate) fn tables(&self) -> usize {
        match *self {}
    }

    pub(crate) fn is_resetting(&self) -> bool {
        match *self {}
    }

    pub(crate) fn recall(&mut self, _recalled: bool) {
        match *self {}
    }

    pub(crate) fn is_recalled(&self) -> bool {
        match *self {}
    }

    pub(crate) fn set_upstream(&mut self, _upstream: Upstream) -> bool {
        match *self {}
    }

    pub(crate) fn slot(&self) -> Sbdf {
        match *self {}
    }

    pub(crate) fn config_read(&self, _access: ConfigAccess) -> u32 {
        match *self {}
    }

    pub(crate) fn config_write(&mut self, _access: ConfigAccess, _value: u32) -> Change {
        match *self {}
    }

    pub(crate) fn version(&self) -> u32 {
        match *self {}
    }

    pub(crate) fn steadiness(&self) -> Steadiness {
        match *self {}
    }

    pub(crate) fn steady_dword(&self, _index: usize) -> u32 {
        match *self {}
    }

    pub(crate) fn while_quiet(&self, _: &Domain, _: Option<Ipa>, _: impl FnOnce()) -> bool {
        match *self {}
    }

    pub(crate) fn load(&self, _bar: BarIndex, _offset: u64, _bytes: u64) -> u64 {
        match *self {}
    }

    pub(crate) fn store(&mut self, _: BarIndex, _: u64, _: u64, _: u64) -> bool {
        match *self {}
    }

    pub(crate) fn next_effect(&mut self) -> Option<Effect> {
        match *self {}
    }

    pub(crate) fn act(&mut self, _domain: &Domain, _effect: Effect) {
        match *self {}
    }

    pub(crate) fn map(&self, _: &Domain, _: &mut Reserve, _: BarIndex, _: BusRange) {
        match *self {}
    }

    pub(crate) fn unmap(&self, _: &Domain, _: &mut Reserve, _: BarIndex, _: BusRange) {
        match *self {}
    }

    pub(crate) fn forget(&mut self) {
        match *self {}
    }

    pub(crate) fn stop(&mut self, _domain: &Domain) {
        match *self {}
    }

    pub(crate) fn show(&mut self, _domain: &Domain) {
        match *self {}
    }

    pub(crate) fn start_reset(
        &mut self,
        _domain: &Domain,
        _begun: &[Resetting],
        _along: impl Fn(Sbdf) -> bool,
    ) -> Option<Resetting> {
        match *self {}
    }

    pub(crate) fn enable(&mut self, _domain: &Domain) {
        match *self {}
    }

    pub(crate) fn set_siblings(&mut self, _multi: bool, _next: u8) {
        match *self {}
    }

    pub(crate) fn silence(&mut self, _domain: &Domain) {
        match *self {}
    }
}
