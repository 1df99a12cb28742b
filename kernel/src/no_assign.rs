//! Stands in for `assign` in a build without vPCI: no function of the machine can be given away.

use crate::domain::Domain;
use crate::passthrough::AssignError;
use crate::servers::{self, Leaving};
use alloc::sync::Arc;
use kernel::steps::Advance;
use vpci::{Sbdf, Vendor};

/// Something that is on its way.
pub(crate) enum Operation {
    /// A device model lets go of a function.
    Leave(Leaving),
}

impl Operation {
    pub(crate) fn give(
        _domain: Arc<Domain>,
        _host: Sbdf,
        _slot: Sbdf,
        _allow_no_reset: bool,
        _vendor: Vendor,
    ) -> Result<Self, AssignError> {
        Err(AssignError::NotBuilt)
    }

    pub(crate) fn take(
        domain: Arc<Domain>,
        slot: Sbdf,
        _is_own: bool,
    ) -> Result<Self, AssignError> {
        let leaving = servers::withdraw(&domain, slot);
        leaving.map(Self::Leave).ok_or(AssignError::NothingThere)
    }

    pub(crate) fn step(&mut self) -> Result<Advance, AssignError> {
        match self {
            Self::Leave(leaving) => leaving.step(),
        }
    }
}

pub(crate) fn at_boot(
    domain: &Arc<Domain>,
    host: Sbdf,
    _function: &manifest::Function,
    _wait: impl FnMut(u32),
) {
    let error = AssignError::NotBuilt;
    error!("domain {} does not get {host}: {error}", domain.name());
}
