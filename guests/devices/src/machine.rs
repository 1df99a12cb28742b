//! The functions behind one ioreq server, and the way from its ring to them.

use alloc::boxed::Box;
use alloc::collections::TryReserveError;
use alloc::vec::Vec;
use core::fmt;

use abi::{MapFlags, Status};
use ioreq::{Changes, Client, Kind, Request, Width, Work};
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

/// Which functions a server has, and what they are made of.
pub trait Supply<'r>: Host {
    /// Returns the server's first function, or the one that comes next behind `after`.
    fn next(&mut self, after: Option<Sbdf>) -> Option<Sbdf>;

    /// Makes a function, in the state after power-on; without one, reads of it give all ones.
    fn make(&mut self, sbdf: Sbdf) -> Option<Box<dyn Function + 'r>>;

    /// Takes back what a function was made of. It has been dropped, and its ranges are nobody's.
    fn gone(&mut self, sbdf: Sbdf);
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

/// A function and its name; without one, it could not be made.
type Named<'r> = (Sbdf, Option<Box<dyn Function + 'r>>);

/// The functions of one server, and its end of the ring.
pub struct Machine<'r> {
    client: Client<'r>,
    functions: Functions<'r>,
    /// Something was written, so that a function may have something to do.
    written: bool,
}

/// The functions that there are, as far as it is known.
struct Functions<'r> {
    list: Vec<Named<'r>>,
    changes: Changes<'r>,
    /// Nobody has looked for them yet.
    new: bool,
}

impl<'r> Machine<'r> {
    /// Makes a machine that has yet to look for its functions.
    pub fn new(client: Client<'r>) -> Self {
        let functions = Functions {
            list: Vec::new(),
            changes: client.changes(),
            new: true,
        };
        Self {
            client,
            functions,
            written: false,
        }
    }

    /// Looks whether functions have come or gone, and returns how many there are.
    pub fn update(&mut self, supply: &mut impl Supply<'r>) -> usize {
        self.functions.update(supply);
        self.functions.list.len()
    }

    /// Returns how many slots the ring has.
    pub fn slots(&self) -> u32 {
        u32::try_from(self.client.slots()).unwrap_or(u32::MAX)
    }

    /// Serves what the ring has: the writes that were posted before the request in `slot` and the
    /// request, or all posted writes. Returns the slot that the caller then has to complete.
    pub fn serve(&mut self, slot: Option<u32>, supply: &mut impl Supply<'r>) -> Option<u32> {
        let functions = &mut self.functions;
        let mut complete = None;
        for work in self.client.work(slot) {
            // What brought the function that is asked is seen by now.
            functions.update(supply);
            match work {
                Work::Posted(write) => {
                    self.written = true;
                    functions.handle(&write.synchronous(), supply);
                }
                Work::Request(ticket, request) => {
                    complete = Some(ticket.slot());
                    self.written |= !request.kind.is_read();
                    ticket.answer(functions.handle(&request, supply));
                }
                Work::Unknown(ticket) => {
                    complete = Some(ticket.slot());
                    ticket.answer(u64::MAX);
                }
            }
        }
        functions.update(supply);
        complete
    }

    /// Lets every function do some of what is left to be done. Only writes give it anything to do.
    pub fn poll(&mut self, supply: &mut impl Supply<'r>) -> Progress {
        if !core::mem::take(&mut self.written) {
            return Progress::Idle;
        }
        self.functions.update(supply);
        for (_, function) in &mut self.functions.list {
            if let Some(function) = function {
                self.written |= function.poll(supply) == Progress::More;
            }
        }
        if self.written {
            Progress::More
        } else {
            Progress::Idle
        }
    }
}

impl<'r> Functions<'r> {
    /// Looks whether functions have come or gone, if there is any sign of it.
    ///
    /// What has gone is dropped before EL2 is told that this was seen: from then on nothing of the target's
    /// is accessed for it. What cannot be noted for want of memory is looked for again.
    fn update(&mut self, supply: &mut impl Supply<'r>) {
        let change = self.changes.pending();
        if (self.new || change.is_some()) && self.find(supply).is_ok() {
            self.new = false;
            if let Some(change) = change {
                self.changes.see(change);
            }
        }
    }

    fn find(&mut self, supply: &mut impl Supply<'r>) -> Result<(), TryReserveError> {
        let mut found = Vec::new();
        while let Some(sbdf) = supply.next(found.last().copied()) {
            found.try_reserve(1)?;
            found.push(sbdf);
        }
        let missing = |(sbdf, _): &Named<'_>| !found.contains(sbdf);
        while let Some(index) = self.list.iter().position(missing) {
            let (sbdf, function) = self.list.swap_remove(index);
            drop(function);
            supply.gone(sbdf);
        }
        for sbdf in found {
            if !self.list.iter().any(|(name, _)| *name == sbdf) {
                self.list.try_reserve(1)?;
                self.list.push((sbdf, None));
            }
        }
        for (sbdf, function) in &mut self.list {
            if function.is_none() {
                *function = supply.make(*sbdf);
            }
        }
        Ok(())
    }

    /// Answers one request; all ones where there is no such function or register.
    fn handle(&mut self, request: &Request, host: &mut dyn Host) -> u64 {
        let mut list = self.list.iter_mut();
        match list.find(|(name, _)| *name == request.sbdf) {
            Some((_, Some(function))) => handle(&mut **function, request, host),
            _ => request.unanswered(),
        }
    }
}

/// Answers one request to a function; all ones where it has no such register.
fn handle(function: &mut dyn Function, request: &Request, host: &mut dyn Host) -> u64 {
    let sbdf = request.sbdf;
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
