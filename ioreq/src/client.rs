//! The device model's end of a ring.
//!
//! ```ignore
//! let mut complete = None;
//! loop {
//!     let (server, slot) = hypercall::ioreq_wait(complete.take());
//!     for work in clients[server].work(slot) {
//!         match work {
//!             Work::Posted(write) => device.write(write),
//!             Work::Request(ticket, request) => {
//!                 complete = Some((server, ticket.slot()));
//!                 ticket.answer(device.serve(&request));
//!             }
//!             Work::Unknown(ticket) => {
//!                 complete = Some((server, ticket.slot()));
//!                 ticket.answer(!0);
//!             }
//!         }
//!     }
//! }
//! ```

use crate::layout::{HeaderError, Line, Ring, Slot, State, read_header, tag};
use crate::request::{PostedWrite, Request};
use crate::sync::{AtomicU64, Ordering, high, low};
use core::fmt;

/// The device model's end of a ring.
#[derive(Debug)]
pub struct Client<'a> {
    ring: Ring<'a>,
    /// How many posted writes were taken, modulo 2^32. EL2's copy is in the ring.
    consumed: u32,
}

/// The changes of the server's functions, seen by the device model.
#[derive(Debug)]
pub struct Changes<'a> {
    made: &'a AtomicU64,
    shared: &'a AtomicU64,
    /// How many were seen, modulo 2^32. EL2's copy is in the ring.
    seen: u32,
}

impl Changes<'_> {
    /// Returns which change was the last one, if it was not seen yet.
    ///
    /// Who has taken a request of a function sees the change that brought the function.
    pub fn pending(&self) -> Option<u32> {
        // Acquire: pairs with the release in `Server::change_functions`.
        let made = low(self.made.load(Ordering::Acquire));
        (made != self.seen).then_some(made)
    }

    /// Says that everything up to `change` is taken note of: functions that have gone are let go of, and
    /// the target's memory is no longer accessed for them.
    pub fn see(&mut self, change: u32) {
        self.seen = change;
        // Release: pairs with the acquire in `Server::has_seen`.
        self.shared.store(u64::from(change), Ordering::Release);
    }
}

/// Why there is no ring to serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientError {
    /// The memory does not start with the magic.
    NoRing,
    /// It is a ring of another version.
    Version(u64),
    /// The header contradicts itself, or the memory is smaller than it says.
    Malformed,
}

impl From<HeaderError> for ClientError {
    fn from(error: HeaderError) -> Self {
        match error {
            HeaderError::NoRing => ClientError::NoRing,
            HeaderError::Version(version) => ClientError::Version(version),
            HeaderError::Malformed => ClientError::Malformed,
        }
    }
}

/// What a device model has to do.
#[derive(Debug)]
#[must_use]
pub enum Work<'a> {
    /// A write that wants no answer.
    Posted(PostedWrite),
    /// A request that wants one.
    Request(Ticket<'a>, Request),
    /// A request of a kind that this version does not know: the answer is all ones.
    Unknown(Ticket<'a>),
}

/// The right to answer one request, once, at any time.
#[must_use]
pub struct Ticket<'a> {
    slot: u32,
    generation: u32,
    state: &'a AtomicU64,
    data: &'a AtomicU64,
}

impl Ticket<'_> {
    /// Returns the slot, which is the number of the target's vCPU.
    pub const fn slot(&self) -> u32 {
        self.slot
    }

    /// Answers the request. Then the device model completes it by hypercall.
    pub fn answer(self, data: u64) {
        // Relaxed: ordered by the release below.
        self.data.store(data, Ordering::Relaxed);
        // Release: pairs with the acquire in `Server::complete`.
        let answered = tag(self.generation, State::Answered);
        self.state.store(answered, Ordering::Release);
    }
}

impl fmt::Debug for Ticket<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "slot {}, generation {}", self.slot, self.generation)
    }
}

impl<'a> Client<'a> {
    /// Takes up the ring in `lines`.
    pub fn new(lines: &'a [Line]) -> Result<Self, ClientError> {
        let layout = read_header(lines)?;
        let ring = Ring::new(lines, &layout).ok_or(ClientError::Malformed)?;
        // Relaxed: nobody else writes it from here on.
        let consumed = low(ring.consumer.load(Ordering::Relaxed));
        Ok(Self { ring, consumed })
    }

    /// Returns the changes of the server's functions. There is one who looks at them.
    pub fn changes(&self) -> Changes<'a> {
        Changes {
            made: self.ring.changes,
            shared: self.ring.seen,
            // Relaxed: nobody else writes it from here on.
            seen: low(self.ring.seen.load(Ordering::Relaxed)),
        }
    }

    /// Returns how many slots there are.
    pub fn slots(&self) -> usize {
        self.ring.slot_count()
    }

    /// Returns what there is to do: for a slot, the writes that were posted before its request, and
    /// then the request; without one, or if it has no request, the writes posted so far.
    ///
    /// The caller takes all of it. What is posted meanwhile is left for the next time, so that no
    /// target keeps a device model from its other work; EL2 signals it again.
    pub fn work(&mut self, slot: Option<u32>) -> impl Iterator<Item = Work<'a>> {
        let mut request = slot.and_then(|slot| self.requested(slot));
        let limit = match request {
            // Relaxed: ordered by the acquire in `requested`; so are the writes before the request.
            Some((_, _, Slot { posted, .. })) => posted.load(Ordering::Relaxed),
            // Acquire: pairs with the release in `Server::post`.
            None => self.ring.producer.load(Ordering::Acquire),
        };
        core::iter::from_fn(move || {
            if let Some(write) = self.posted(low(limit)) {
                return Some(Work::Posted(write));
            }
            let (slot, generation, shared) = request.take()?;
            Some(read_request(slot, generation, &shared))
        })
    }

    /// Returns a slot with the generation of its request, if there is one.
    fn requested(&self, slot: u32) -> Option<(u32, u32, Slot<'a>)> {
        let shared = self.ring.slot(slot)?;
        // Acquire: pairs with the release in `Server::publish`, so that the rest is visible.
        let state = shared.state.load(Ordering::Acquire);
        (low(state) == State::Requested as u32).then_some((slot, high(state), shared))
    }

    /// Takes the next posted write before `limit`, if any is left; what is no write is passed over.
    fn posted(&mut self, limit: u32) -> Option<PostedWrite> {
        loop {
            // More than the ring holds is less than nothing: the limit was passed before.
            let left = limit.wrapping_sub(self.consumed);
            if left == 0 || left > self.ring.capacity {
                return None;
            }
            let entry = self.ring.entry(self.consumed)?;
            // Relaxed: ordered by the acquire that showed us the limit.
            let operation = entry.operation.load(Ordering::Relaxed);
            let address = entry.address.load(Ordering::Relaxed);
            let data = entry.data.load(Ordering::Relaxed);
            self.consumed = self.consumed.wrapping_add(1);
            // Release: pairs with the acquire in `Server::post`: the entry has been read.
            self.ring
                .consumer
                .store(u64::from(self.consumed), Ordering::Release);
            if let Some(write) = PostedWrite::decode(operation, address, data) {
                return Some(write);
            }
        }
    }
}

/// Reads the request in a slot.
fn read_request<'a>(slot: u32, generation: u32, shared: &Slot<'a>) -> Work<'a> {
    // Relaxed: ordered by the acquire in `requested`.
    let operation = shared.operation.load(Ordering::Relaxed);
    let address = shared.address.load(Ordering::Relaxed);
    let data = shared.data.load(Ordering::Relaxed);
    let ticket = Ticket {
        slot,
        generation,
        state: shared.state,
        data: shared.data,
    };
    match Request::decode(operation, address, data) {
        Some(request) => Work::Request(ticket, request),
        None => Work::Unknown(ticket),
    }
}
