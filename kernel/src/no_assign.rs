//! Stands in for `assign` in a build without vPCI: nothing can be given away.

use crate::domain::Domain;
use crate::passthrough::AssignError;
use alloc::sync::Arc;
use kernel::steps::Advance;
use vpci::{Sbdf, Vendor};

/// There is none.
pub(crate) enum Operation {}

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

    pub(crate) fn take(_: Arc<Domain>, _slot: Sbdf, _is_own: bool) -> Result<Self, AssignError> {
        Err(AssignError::NotBuilt)
    }

    pub(crate) fn step(&mut self) -> Result<Advance, AssignError> {
        match *self {}
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
