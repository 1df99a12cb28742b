//! The control domain's calls: what there is, and who has which function (`kernel/docs/hypercalls.md`).
//!
//! A call that takes a while is a [`Pending`] of the vCPU that made it, and the operation in it its own
//! master: if the caller's domain is stopped meanwhile, it goes on before that domain starts again or is
//! off.

use crate::assign::Operation;
use crate::domain::{self, Domain};
use crate::exit::Next;
use crate::lifecycle::Lifecycle;
use crate::mmio::{self, Pending};
use crate::passthrough::AssignError;
use crate::pcpu::Running;
use crate::{physical, servers};
use abi::{AssignFlags, DomainState, Function, FunctionState, NONE, Status};
use alloc::sync::Arc;
use alloc::vec::Vec;
use kernel::steps::Advance;
use pci::Owner;
use vpci::{Sbdf, Vendor};

/// Handles a call. Nobody but the control domain learns anything by it.
#[cold]
#[inline(never)]
pub(crate) fn handle(running: &mut Running<'_>, function: Function) -> Next {
    let [_, a, b, c, d, ..] = running.state.frame.x;
    let done = if !running.domain.config.control {
        Err(Status::Denied)
    } else {
        match function {
            Function::DomainFind => find([a, b, c, d]).map(|number| [number, 0, 0]),
            Function::DomainInfo => domain(a).map(|domain| info(&domain)),
            Function::PciInfo => pci_info(a),
            Function::PciAssign => return start(running, || assign(a, b, c, d)),
            Function::PciUnassign => {
                let caller = running.domain;
                return start(running, || unassign(caller, a, b));
            }
            Function::PciEmulate => emulate(a, b, c, d).map(|()| [a, b, c]),
            _ => Err(Status::NotSupported),
        }
    };
    let x = &mut running.state.frame.x;
    match done {
        Ok([x1, x2, x3]) => {
            x[0] = Status::Ok.to_register();
            x[1] = x1;
            match function {
                Function::DomainInfo => x[2] = x2,
                Function::PciInfo => (x[2], x[3]) = (x2, x3),
                _ => {}
            }
        }
        Err(status) => x[0] = status.to_register(),
    }
    Next::Resume
}

/// DOMAIN_FIND.
fn find(name: [u64; 4]) -> Result<u64, Status> {
    let mut found = Err(Status::NotFound);
    domain::each(|domain| {
        if abi::registers_name(name, domain.name()) {
            found = Ok(domain.id.into());
        }
    });
    found
}

fn domain(number: u64) -> Result<Arc<Domain>, Status> {
    let number = u32::try_from(number).map_err(|_| Status::NotFound)?;
    domain::by_number(number).ok_or(Status::NotFound)
}

/// DOMAIN_INFO.
fn info(domain: &Domain) -> [u64; 3] {
    let state = match *domain.lifecycle.lock() {
        Lifecycle::Off => DomainState::Off,
        Lifecycle::Running => DomainState::Running,
        Lifecycle::Stopping { .. } => DomainState::Stopping,
    };
    let flag = |has: bool, bit: u64| if has { bit } else { 0 };
    let flags = flag(domain.pci.is_some(), abi::DOMAIN_HAS_BUS)
        | flag(domain.dma.is_some(), abi::DOMAIN_HAS_IOMMU)
        | flag(domain.config.control, abi::DOMAIN_IS_CONTROL);
    [state as u64, flags, 0]
}

fn sbdf(register: u64) -> Result<Sbdf, Status> {
    let number = u32::try_from(register).map_err(|_| Status::InvalidArgument)?;
    Ok(Sbdf::from(number))
}

/// PCI_INFO.
fn pci_info(host: u64) -> Result<[u64; 3], Status> {
    let host = sbdf(host)?;
    let physical = physical::get().ok_or(Status::NotFound)?;
    let index = physical.found.position(host).ok_or(Status::NotFound)?;
    let owner = physical.owners.lock().of(index);
    Ok(match owner {
        Owner::Nobody => [FunctionState::Free as u64, NONE, NONE],
        Owner::Broken => [FunctionState::Broken as u64, NONE, NONE],
        Owner::Resetting => [FunctionState::Busy as u64, NONE, NONE],
        Owner::Domain {
            domain,
            slot,
            settled,
        } => {
            let state = if settled {
                FunctionState::Assigned
            } else {
                FunctionState::Busy
            };
            [state as u64, domain.into(), u32::from(slot).into()]
        }
    })
}

/// PCI_ASSIGN.
fn assign(number: u64, host: u64, slot: u64, flags: u64) -> Result<Operation, Status> {
    let target = domain(number)?;
    let (host, slot) = (sbdf(host)?, sbdf(slot)?);
    let flags = AssignFlags::from_bits(flags).ok_or(Status::InvalidArgument)?;
    let allow_no_reset = flags.contains(AssignFlags::ALLOW_NO_RESET);
    let vendor = match flags.contains(AssignFlags::VENDOR_CAPABILITIES) {
        true => Vendor::Shown,
        false => Vendor::Hidden,
    };
    let name = target.clone();
    Operation::give(target, host, slot, allow_no_reset, vendor).map_err(|error| {
        error!("domain {} does not get {host}: {error}", name.name());
        error.status()
    })
}

/// PCI_EMULATE.
fn emulate(number: u64, slot: u64, model: u64, server: u64) -> Result<(), Status> {
    let (target, model) = (domain(number)?, domain(model)?);
    servers::emulate(&target, sbdf(slot)?, &model, server)
}

/// PCI_UNASSIGN.
fn unassign(caller: &Domain, number: u64, slot: u64) -> Result<Operation, Status> {
    let target = domain(number)?;
    let slot = sbdf(slot)?;
    let is_own = target.id == caller.id;
    Operation::take(target, slot, is_own).map_err(|error: AssignError| error.status())
}

/// Starts an operation that the running vCPU waits for.
fn start(running: &mut Running<'_>, operation: impl FnOnce() -> Result<Operation, Status>) -> Next {
    let mut operations = Vec::new();
    let room = operations
        .try_reserve_exact(1)
        .map_err(|_| Status::NoMemory);
    match room.and_then(|()| operation()) {
        Ok(operation) => operations.push(operation),
        Err(status) => running.state.frame.x[0] = status.to_register(),
    }
    go_on(running, operations)
}

/// Goes on with what the running vCPU waits for; its call returns when that is done.
pub(crate) fn go_on(running: &mut Running<'_>, mut operations: Vec<Operation>) -> Next {
    let Some(operation) = operations.first_mut() else {
        return Next::Resume;
    };
    let status = match operation.step() {
        Ok(Advance::Wait(milliseconds)) => {
            return mmio::sleep(running, Pending::Control(operations), milliseconds);
        }
        Ok(Advance::Done) => Status::Ok,
        Err(error) => error.status(),
    };
    running.state.frame.x[0] = status.to_register();
    Next::Resume
}

/// Goes on with what the vCPUs of a domain that has stopped were waiting for; returns after how many
/// milliseconds to come back, or `None` when all is done.
#[cold]
pub(crate) fn finish(domain: &Domain) -> Option<u32> {
    let mut wait: Option<u32> = None;
    for index in 0..domain.vcpus.len() {
        let Some(mut operations) = exchange(domain, index, None) else {
            continue;
        };
        let progress = operations.first_mut().map(Operation::step);
        if let Some(Ok(Advance::Wait(milliseconds))) = progress {
            wait = Some(wait.map_or(milliseconds, |least| least.min(milliseconds)));
            exchange(domain, index, Some(operations));
        }
    }
    wait
}

/// Takes the operation that a vCPU of a stopped domain waits for, or puts it back. It is not carried on
/// under the vCPU's lock: that may take others.
fn exchange(domain: &Domain, index: usize, put: Option<Vec<Operation>>) -> Option<Vec<Operation>> {
    let vcpu = domain.vcpus.get(index)?;
    let run = vcpu.run.lock();
    assert!(run.loaded.is_none(), "its domain has stopped");
    // SAFETY: it is loaded nowhere, and `run` is locked.
    let state = unsafe { &mut *vcpu.state() };
    if let Some(operations) = put {
        state.pending = Some(Pending::Control(operations));
        return None;
    }
    match state.pending.take() {
        Some(Pending::Control(operations)) => Some(operations),
        other => {
            state.pending = other;
            None
        }
    }
}
