//! Stands in for `servers` in a build without ioreq: there are no device models.

use crate::bus::{Bus, Elsewhere};
use crate::domain::Domain;
use crate::passthrough::AssignError;
use crate::pcpu::Running;
use abi::Status;
use alloc::collections::TryReserveError;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use ioreq::{Request, TakeError};
use kernel::guest_tree;
use kernel::steps::Advance;
use vpci::Sbdf;

/// There is none.
pub(crate) enum Link {}

/// A domain has no servers.
#[derive(Default)]
pub(crate) struct Serving;

/// There is none.
pub(crate) enum Asked {}

/// There is none.
pub(crate) enum Leaving {}

/// How a request went off. Of these only the last one happens.
#[expect(dead_code, reason = "what `servers` does is matched all the same")]
pub(crate) enum Sent {
    Asked(Asked),
    Posted,
    Busy,
    Unanswered(u64),
}

/// Why the servers of a domain could not be made.
pub(crate) enum LinkError {
    /// This build has no ioreq.
    NotBuilt,
}

impl fmt::Display for LinkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotBuilt => f.write_str("this hypervisor was built without ioreq"),
        }
    }
}

impl Serving {
    pub(crate) fn new(_servers: usize) -> Option<Self> {
        Some(Self)
    }

    pub(crate) fn describe(&self) -> Result<Vec<Arc<guest_tree::Server>>, TryReserveError> {
        Ok(Vec::new())
    }

    pub(crate) fn attach(&self) -> bool {
        true
    }

    pub(crate) fn detach(&self) {}
}

impl Asked {
    pub(crate) fn answer(&self) -> Result<u64, TakeError> {
        match *self {}
    }

    pub(crate) fn is_void(&self, _bus: &Bus) -> bool {
        match *self {}
    }

    pub(crate) fn unanswered(&self) -> u64 {
        match *self {}
    }
}

pub(crate) fn send(_running: &mut Running<'_>, _to: Elsewhere, request: Request) -> Sent {
    Sent::Unanswered(request.unanswered())
}

pub(crate) fn take_stale(_running: &mut Running<'_>) {}

pub(crate) fn send_reset(_: &Domain, _vcpu: usize, _server: u32, _sbdf: Sbdf) -> Sent {
    Sent::Unanswered(0)
}

pub(crate) fn link(
    owner: &Arc<Domain>,
    _find: impl Fn(&str) -> Option<Arc<Domain>>,
) -> Result<(), LinkError> {
    if owner.config.servers.is_empty() {
        Ok(())
    } else {
        Err(LinkError::NotBuilt)
    }
}

pub(crate) fn emulate(
    _target: &Arc<Domain>,
    _slot: Sbdf,
    _model: &Domain,
    _server: u64,
) -> Result<(), Status> {
    Err(Status::NotSupported)
}

pub(crate) fn withdraw(_target: &Arc<Domain>, _slot: Sbdf) -> Option<Leaving> {
    None
}

impl Leaving {
    pub(crate) fn step(&self) -> Result<Advance, AssignError> {
        match *self {}
    }
}

pub(crate) fn wait(running: &mut Running<'_>) {
    running.state.frame.x[0] = Status::NotSupported.to_register();
}

pub(crate) fn complete(_: &Domain, _server: u64, _slot: u64) -> Result<(), Status> {
    Err(Status::NotSupported)
}

pub(crate) fn next_function(_: &Domain, _server: u64, _after: u64) -> Result<u64, Status> {
    Err(Status::NotSupported)
}

pub(crate) fn map(_: &Domain, _x: &[u64; 31]) -> Result<(), Status> {
    Err(Status::NotSupported)
}

pub(crate) fn unmap(_: &Domain, _x: &[u64; 31]) -> Result<(), Status> {
    Err(Status::NotSupported)
}

pub(crate) fn msi(_: &Domain, _x: &[u64; 31]) -> Result<(), Status> {
    Err(Status::NotSupported)
}
