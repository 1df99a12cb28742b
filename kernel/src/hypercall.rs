//! Hypercalls of our own (`kernel/docs/hypercalls.md`).

use crate::control;
use crate::exit::Next;
use crate::pcpu::Running;
use crate::servers;
use crate::smccc::NOT_SUPPORTED;
use abi::{Function, Status};

/// Handles a call. The HVC has been carried out, so the guest goes on behind it.
#[inline]
pub(crate) fn handle(running: &mut Running<'_>, id: u32) -> Next {
    let x = &mut running.state.frame.x;
    match Function::try_from(id) {
        Ok(Function::Version) => {
            x[0] = Status::Ok.to_register();
            x[1] = abi::VERSION.to_register();
        }
        Ok(Function::Features) => {
            let function = u32::try_from(x[1])
                .ok()
                .and_then(|id| Function::try_from(id).ok());
            x[0] = if function.is_some_and(is_built) {
                Status::Ok.to_register()
            } else {
                NOT_SUPPORTED
            };
        }
        Ok(Function::CallCount) => x[0] = Function::ALL.len() as u64,
        Ok(Function::Uid) => {
            for (register, word) in x.iter_mut().zip(abi::uid_registers()) {
                *register = u64::from(word);
            }
        }
        Ok(Function::Revision) => {
            x[0] = u64::from(abi::VERSION.major);
            x[1] = u64::from(abi::VERSION.minor);
        }
        Ok(Function::IoreqWait) => servers::wait(running),
        Ok(Function::IoreqComplete) => {
            let done = servers::complete(running.domain, x[1], x[2]);
            answer(running, done);
        }
        Ok(Function::IoreqFunction) => {
            let done = servers::next_function(running.domain, x[1], x[2]);
            let done = done.map(|name| running.state.frame.x[1] = name);
            answer(running, done);
        }
        Ok(Function::IoreqMap) => answer(
            running,
            servers::map(running.domain, &running.state.frame.x),
        ),
        Ok(Function::IoreqUnmap) => {
            answer(
                running,
                servers::unmap(running.domain, &running.state.frame.x),
            );
        }
        Ok(Function::IoreqMsi) => answer(
            running,
            servers::msi(running.domain, &running.state.frame.x),
        ),
        Ok(
            function @ (Function::DomainFind
            | Function::DomainInfo
            | Function::PciInfo
            | Function::PciAssign
            | Function::PciUnassign
            | Function::PciEmulate),
        ) if is_built(function) => {
            return control::handle(running, function);
        }
        _ => x[0] = NOT_SUPPORTED,
    }
    Next::Resume
}

/// Returns whether a function is in this build.
fn is_built(function: Function) -> bool {
    let ioreq = [
        Function::IoreqWait,
        Function::IoreqComplete,
        Function::IoreqMap,
        Function::IoreqUnmap,
        Function::IoreqMsi,
        Function::IoreqFunction,
        Function::PciEmulate,
    ];
    let pci = [Function::PciInfo, Function::PciAssign];
    (cfg!(feature = "ioreq") || !ioreq.contains(&function))
        && (cfg!(feature = "vpci") || !pci.contains(&function))
        && (cfg!(any(feature = "ioreq", feature = "vpci")) || function != Function::PciUnassign)
}

fn answer(running: &mut Running<'_>, done: Result<(), Status>) {
    running.state.frame.x[0] = done.err().unwrap_or(Status::Ok).to_register();
}
