//! The functions behind one ioreq server, and the way from its ring to them.

use alloc::boxed::Box;
use alloc::collections::TryReserveError;
use alloc::vec::Vec;
use core::fmt;

use abi::{MapFlags, Status};
use ioreq::{Client, Kind, Request, Width, Work};
use vpci::{ConfigAccess, Offset, Sbdf, Size};

/// What a function asks of the hypervisor.
pub trait Host {
    /// Claims an MMIO range of the target for `sbdf`.
    fn map(&mut self, sbdf: Sbdf, address: u64, size: u64, flags: MapFlags) -> Result<(), Status>;

    /// Gives the range at `address` back.
    fn unmap(&mut self, sbdf: Sbdf, address: u64) -> Result<(), Status>;

    /// Sends an MSI of `sbdf` to the target.
    fn msi(&mut self, sbdf: Sbdf, address: u64, data: u32) -> Result<(), Status>;

    /// Notes something that an operator may want to know of `sbdf`. The target can cause it at will.
    fn report(&mut self, sbdf: Sbdf, what: &dyn fmt::Display);
}

/// Whether a function has something left to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Progress {
    /// Nothing: it waits for a request.
    Idle,
    /// It stopped to let others have their turn.
    More,
}

/// An emulated function.
pub trait Function {
    /// Answers a read of config space.
    fn config_read(&mut self, access: ConfigAccess, host: &mut dyn Host) -> u32;

    /// Takes a write to config space.
    fn config_write(&mut self, access: ConfigAccess, value: u32, host: &mut dyn Host);

    /// Answers a read of an MMIO range that it claimed; all ones where it has nothing.
    fn mmio_read(&mut self, address: u64, width: Width, host: &mut dyn Host) -> u64;

    /// Takes a write to an MMIO range that it claimed.
    fn mmio_write(&mut self, address: u64, width: Width, value: u64, host: &mut dyn Host);

    /// Returns to the state after power-on, and gives its ranges back.
    fn reset(&mut self, host: &mut dyn Host);

    /// Does some of what requests left to be done.
    fn poll(&mut self, host: &mut dyn Host) -> Progress;
}

/// A function and its name.
type Named<'r> = (Sbdf, Box<dyn Function + 'r>);

/// The functions of one server, and its end of the ring.
pub struct Machine<'r> {
    client: Client<'r>,
    functions: Vec<Named<'r>>,
    /// Something was written, so that a function may have something to do.
    written: bool,
}

impl<'r> Machine<'r> {
    /// Makes a machine without functions: every read gives all ones.
    pub fn new(client: Client<'r>) -> Self {
        Self {
            client,
            functions: Vec::new(),
            written: false,
        }
    }

    /// Adds a function.
    ///
    /// # Errors
    ///
    /// If memory is short.
    pub fn add(
        &mut self,
        sbdf: Sbdf,
        function: Box<dyn Function + 'r>,
    ) -> Result<(), TryReserveError> {
        self.functions.try_reserve(1)?;
        self.functions.push((sbdf, function));
        Ok(())
    }

    /// Returns how many slots the ring has.
    pub fn slots(&self) -> u32 {
        u32::try_from(self.client.slots()).unwrap_or(u32::MAX)
    }

    /// Serves what the ring has: the writes that were posted before the request in `slot` and the
    /// request, or all posted writes. Returns the slot that the caller then has to complete.
    pub fn serve(&mut self, slot: Option<u32>, host: &mut dyn Host) -> Option<u32> {
        let functions = &mut self.functions;
        let mut complete = None;
        for work in self.client.work(slot) {
            match work {
                Work::Posted(write) => {
                    self.written = true;
                    handle(functions, &write.synchronous(), host);
                }
                Work::Request(ticket, request) => {
                    complete = Some(ticket.slot());
                    self.written |= !request.kind.is_read();
                    ticket.answer(handle(functions, &request, host));
                }
                Work::Unknown(ticket) => {
                    complete = Some(ticket.slot());
                    ticket.answer(u64::MAX);
                }
            }
        }
        complete
    }

    /// Lets every function do some of what is left to be done. Only writes give it anything to do.
    pub fn poll(&mut self, host: &mut dyn Host) -> Progress {
        if !core::mem::take(&mut self.written) {
            return Progress::Idle;
        }
        for (_, function) in &mut self.functions {
            self.written |= function.poll(host) == Progress::More;
        }
        if self.written {
            Progress::More
        } else {
            Progress::Idle
        }
    }
}

/// Answers one request; all ones where there is no such function or register.
fn handle(functions: &mut [Named<'_>], request: &Request, host: &mut dyn Host) -> u64 {
    let sbdf = request.sbdf;
    let Some((_, function)) = functions.iter_mut().find(|(name, _)| *name == sbdf) else {
        return request.unanswered();
    };
    let (address, width) = (request.address, request.width);
    let written = request.data & width.mask();
    let data = match request.kind {
        Kind::MmioRead => function.mmio_read(address, width, host),
        Kind::MmioWrite => {
            function.mmio_write(address, width, written, host);
            0
        }
        Kind::Reset => {
            function.reset(host);
            0
        }
        Kind::ConfigRead => match config_access(sbdf, address, width) {
            Some(access) => u64::from(function.config_read(access, host)),
            None => request.unanswered(),
        },
        Kind::ConfigWrite => {
            if let Some(access) = config_access(sbdf, address, width) {
                function.config_write(access, low(written), host);
            }
            0
        }
        _ => request.unanswered(),
    };
    request.answer(data)
}

fn config_access(sbdf: Sbdf, offset: u64, width: Width) -> Option<ConfigAccess> {
    let offset = Offset::new(u16::try_from(offset).ok()?)?;
    ConfigAccess::new(sbdf, offset, Size::from_bytes(width.bytes())?)
}

/// Returns the low half.
#[expect(
    clippy::cast_possible_truncation,
    reason = "the low half is what is wanted"
)]
pub(crate) const fn low(value: u64) -> u32 {
    value as u32
}
