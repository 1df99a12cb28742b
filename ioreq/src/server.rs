//! EL2's end of a ring.
//!
//! What EL2 asked it remembers on its own side: in the [`Pending`] that the blocked vCPU keeps, and
//! in a private record per slot that no device model sees:
//!
//! ```text
//!            publish               complete                  take_answer
//!   Idle ---------------> Waiting ----------> Taking --> Done -----------> Idle
//!                            |                                              ^
//!                            +----- take_answer, device model is gone ------+
//! ```
//!
//! Only the slot's own vCPU publishes and takes; of several who complete, one gets from `Waiting` to
//! `Taking` and reads the shared slot, once.

use crate::event::EventSet;
use crate::layout::{Layout, Line, Ring, Slot, State, tag};
use crate::request::{PostedWrite, Request};
use crate::sync::{AtomicU32, AtomicU64, Ordering, fence, high, low, word};
use abi::Status;
use alloc::vec::Vec;

/// EL2's end of a ring, shared by all pCPUs.
#[derive(Debug)]
pub struct Server<'a> {
    ring: Ring<'a>,
    layout: Layout,
    /// One while a device model serves, zero else.
    attached: AtomicU32,
    /// What [`Poster`] knows, for those who publish. The device model's copy is in the ring.
    posted: AtomicU32,
    /// Likewise.
    changes: AtomicU32,
    records: Vec<Record>,
    /// Event 0 is the posted ring, event `1 + n` slot `n`. Nobody sleeps on it: a device model does so
    /// on the set of its servers.
    work: EventSet,
}

/// What EL2 alone knows of a slot. A line of its own: vCPUs on different pCPUs use different ones.
#[derive(Debug)]
#[repr(align(64))]
struct Record {
    /// The generation in the high half, the phase in the low one.
    phase: AtomicU64,
    answer: AtomicU64,
}

/// How far a slot's request has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
enum Phase {
    /// None is outstanding.
    Idle,
    /// The device model has it.
    Waiting,
    /// Somebody who completes it is reading the answer.
    Taking,
    /// The answer is in the record.
    Done,
}

impl Phase {
    const fn of(self, generation: u32) -> u64 {
        word(generation, self as u32)
    }

    const fn is(self, word: u64) -> bool {
        low(word) == self as u32
    }
}

/// The right to post writes, and to change which functions there are: there is one for each server, and
/// the kernel keeps it in a lock.
#[derive(Debug)]
pub struct Poster {
    /// How many writes were posted, modulo 2^32.
    posted: u32,
    /// The consumer index when it was last read.
    consumer: u32,
    /// How often the server's functions have changed, modulo 2^32.
    changes: u32,
}

/// A request that is outstanding; the vCPU that waits for it keeps this.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub struct Pending {
    request: Request,
    slot: u32,
    generation: u32,
}

impl Pending {
    /// Returns what was asked.
    pub const fn request(&self) -> &Request {
        &self.request
    }

    /// Returns the slot.
    pub const fn slot(&self) -> u32 {
        self.slot
    }
}

/// Why there is no such server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerError {
    /// The memory is smaller than the layout.
    TooSmall,
    /// No memory is left for EL2's own records.
    NoMemory,
}

/// Why a request was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PublishError {
    /// There is no such slot.
    NoSuchSlot,
    /// The slot's last request is still outstanding.
    Outstanding,
    /// No device model serves: reads give all ones, writes are dropped.
    Detached,
}

/// Why a write was not posted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PostError {
    /// The ring is full: send the write as a synchronous request, which is served after those.
    Full,
    /// No device model serves: the write is dropped.
    Detached,
    /// The device model wrote a consumer index that cannot be: do as if the ring were full.
    ConsumerIndex(u64),
}

/// Why there is no answer to take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TakeError {
    /// The device model has not answered yet: block again.
    NotYet,
    /// The device model is gone: [`Request::unanswered`], or publish again once another serves.
    Dropped,
}

/// Why no device model can be attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachError {
    /// One is attached.
    Attached,
    /// A vCPU has not yet taken back what it asked of the one before: wake it and try again.
    Outstanding(u32),
}

/// What a device model did wrong when it said that a request is complete.
///
/// The request that it spoke of, if there is one, stays outstanding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProtocolError {
    /// There is no such slot.
    NoSuchSlot(u32),
    /// Nothing is outstanding in the slot, or it is being completed already.
    NothingAsked,
    /// The slot is not marked as answered.
    NotAnswered(State),
    /// The answer is to an earlier request, or to none that there ever was.
    Stale {
        /// The generation of the outstanding request.
        asked: u32,
        /// The generation of the answer.
        answered: u32,
    },
    /// The slot's state is none that the protocol has.
    UnknownState(u32),
}

impl From<ProtocolError> for Status {
    fn from(error: ProtocolError) -> Status {
        match error {
            ProtocolError::NoSuchSlot(_) => Status::NotFound,
            ProtocolError::NothingAsked
            | ProtocolError::NotAnswered(_)
            | ProtocolError::Stale { .. }
            | ProtocolError::UnknownState(_) => Status::Protocol,
        }
    }
}

/// What a device model is told to look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerWork {
    /// The posted ring, and whether its functions have changed.
    Posted,
    /// The slot, after the writes that were posted before its request.
    Slot(u32),
}

impl<'a> Server<'a> {
    /// Makes EL2's end of a ring in `lines`, with no device model attached.
    pub fn new(lines: &'a [Line], layout: Layout) -> Result<(Self, Poster), ServerError> {
        let ring = Ring::new(lines, &layout).ok_or(ServerError::TooSmall)?;
        let events = layout.slots().checked_add(1).ok_or(ServerError::NoMemory)?;
        let work = EventSet::new(events).map_err(|_| ServerError::NoMemory)?;
        let mut records = Vec::new();
        records
            .try_reserve_exact(ring.slot_count())
            .map_err(|_| ServerError::NoMemory)?;
        records.resize_with(ring.slot_count(), || Record {
            phase: AtomicU64::new(Phase::Idle.of(0)),
            answer: AtomicU64::new(0),
        });
        let server = Self {
            ring,
            layout,
            attached: AtomicU32::new(0),
            posted: AtomicU32::new(0),
            changes: AtomicU32::new(0),
            records,
            work,
        };
        Ok((
            server,
            Poster {
                posted: 0,
                consumer: 0,
                changes: 0,
            },
        ))
    }

    /// Returns the layout.
    pub const fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Says whether a device model serves.
    pub fn is_attached(&self) -> bool {
        // Acquire: pairs with the release in `attach`, so that the ring is seen as it left it.
        self.attached.load(Ordering::Acquire) != 0
    }

    /// Makes the ring ready for a device model, the first or a new instance, before it sees it.
    ///
    /// The memory must no longer be mapped by the one before. Writes that were posted for that one
    /// are dropped. Which functions there are it finds out when it starts, so that it has seen all changes.
    pub fn attach(&self, poster: &mut Poster) -> Result<(), AttachError> {
        if self.is_attached() {
            return Err(AttachError::Attached);
        }
        if let Some(slot) = self.outstanding().next() {
            return Err(AttachError::Outstanding(slot));
        }
        poster.consumer = poster.posted;
        let posted = poster.posted;
        // Relaxed: ordered by the release below.
        self.ring.write_header(&self.layout);
        for index in [self.ring.producer, self.ring.consumer] {
            index.store(u64::from(posted), Ordering::Relaxed);
        }
        for count in [self.ring.changes, self.ring.seen] {
            count.store(u64::from(poster.changes), Ordering::Relaxed);
        }
        for state in self.ring.states() {
            state.store(tag(0, State::Free), Ordering::Relaxed);
        }
        self.work.clear();
        // Release: pairs with the acquire in `is_attached`.
        self.attached.store(1, Ordering::Release);
        Ok(())
    }

    /// Ends the service of a device model that has died or is killed.
    ///
    /// The kernel then wakes the vCPUs of all slots in [`Server::outstanding`]: they take
    /// [`TakeError::Dropped`].
    pub fn detach(&self) {
        // Relaxed: ordered by the fence.
        self.attached.store(0, Ordering::Relaxed);
        // Pairs with the fence in `publish`: either that sees that we are detached, or we see in
        // `outstanding` that it waits.
        fence(Ordering::SeqCst);
    }

    /// Returns the slots whose requests the device model has.
    pub fn outstanding(&self) -> impl Iterator<Item = u32> {
        // Acquire: pairs with the release in `take_answer`, so that a slot which is found idle is no
        // longer written by its vCPU.
        let waits = |record: &Record| {
            let phase = record.phase.load(Ordering::Acquire);
            Phase::Waiting.is(phase) || Phase::Taking.is(phase)
        };
        let slots = 0..self.layout.slots();
        let records = slots.zip(&self.records);
        records.filter_map(move |(slot, record)| waits(record).then_some(slot))
    }

    /// Sends a request of the vCPU that owns the slot.
    ///
    /// Then the vCPU blocks until it is woken and [`Server::take_answer`] has an answer; and the
    /// device model is told that this server has work.
    pub fn publish(&self, slot: u32, request: Request) -> Result<Pending, PublishError> {
        let (record, shared) = self.slot(slot).ok_or(PublishError::NoSuchSlot)?;
        // Relaxed: only this vCPU makes an idle slot busy and a busy one idle.
        let before = record.phase.load(Ordering::Relaxed);
        if !Phase::Idle.is(before) {
            return Err(PublishError::Outstanding);
        }
        // Only to keep the slot idle when nobody serves; the look below decides.
        if !self.is_attached() {
            return Err(PublishError::Detached);
        }
        let generation = high(before).wrapping_add(1);
        // Relaxed: who completes sees it after the release of `Requested`, below.
        let waiting = Phase::Waiting.of(generation);
        record.phase.store(waiting, Ordering::Relaxed);
        // Pairs with the fence in `detach`.
        fence(Ordering::SeqCst);
        // Relaxed: nothing was written to the shared slot. The exchange fails only if the device
        // model guessed the generation and completes what it was never asked: so be it.
        let phase = &record.phase;
        if !self.is_attached()
            && phase
                .compare_exchange(waiting, before, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
        {
            return Err(PublishError::Detached);
        }
        // Acquire: pairs with the release in `post`, so that the writes this counts are visible to
        // the device model, whichever vCPU posted them.
        let posted = self.posted.load(Ordering::Acquire);
        // Relaxed: ordered by the release of `Requested`.
        let operation = request.operation();
        shared.operation.store(operation, Ordering::Relaxed);
        shared.address.store(request.address, Ordering::Relaxed);
        shared.data.store(request.data, Ordering::Relaxed);
        shared.posted.store(u64::from(posted), Ordering::Relaxed);
        // Release: pairs with the acquire in `Client::work`.
        let requested = tag(generation, State::Requested);
        shared.state.store(requested, Ordering::Release);
        self.work.mark(1 + slot);
        Ok(Pending {
            request,
            slot,
            generation,
        })
    }

    /// Takes the answer out of the slot because the device model says that there is one.
    ///
    /// Then the kernel wakes the slot's vCPU. The answer is EL2's own from here on: what the device
    /// model does to the slot changes nothing any more.
    pub fn complete(&self, slot: u32) -> Result<(), ProtocolError> {
        let (record, shared) = self.slot(slot).ok_or(ProtocolError::NoSuchSlot(slot))?;
        // Acquire: pairs with the release in `Ticket::answer`, so that `data` is visible, and, by
        // way of the device model, with that in `publish`, so that the record is.
        let found = shared.state.load(Ordering::Acquire);
        let waiting = record.phase.load(Ordering::Relaxed);
        if !Phase::Waiting.is(waiting) {
            return Err(ProtocolError::NothingAsked);
        }
        check_answered(high(waiting), found)?;
        let generation = high(waiting);
        let taking = Phase::Taking.of(generation);
        // Relaxed: it decides who reads, and whoever does has acquired above.
        record
            .phase
            .compare_exchange(waiting, taking, Ordering::Relaxed, Ordering::Relaxed)
            .map_err(|_| ProtocolError::NothingAsked)?;
        // Relaxed: ordered by the acquire above.
        let data = shared.data.load(Ordering::Relaxed);
        // Relaxed: nobody but us acts on `Free`.
        let free = tag(generation, State::Free);
        shared.state.store(free, Ordering::Relaxed);
        record.answer.store(data, Ordering::Relaxed);
        // Release: pairs with the acquire in `take_answer`.
        let done = Phase::Done.of(generation);
        record.phase.store(done, Ordering::Release);
        Ok(())
    }

    /// Returns the answer to a request, once it is complete.
    ///
    /// Called by the vCPU that published it, when it is woken and before it blocks.
    pub fn take_answer(&self, pending: &Pending) -> Result<u64, TakeError> {
        let (record, _) = self.slot(pending.slot).ok_or(TakeError::Dropped)?;
        let generation = pending.generation;
        // Acquire: pairs with the release in `complete`, so that the answer is visible.
        let phase = record.phase.load(Ordering::Acquire);
        let idle = Phase::Idle.of(generation);
        if phase == Phase::Done.of(generation) {
            let data = record.answer.load(Ordering::Relaxed);
            // Release: pairs with the acquire in `outstanding`.
            record.phase.store(idle, Ordering::Release);
            return Ok(pending.request.answer(data));
        }
        let waiting = Phase::Waiting.of(generation);
        if phase != waiting || self.is_attached() {
            return Err(TakeError::NotYet);
        }
        // Release: as above. It fails if somebody completes it right now, and will wake us.
        record
            .phase
            .compare_exchange(waiting, idle, Ordering::Release, Ordering::Relaxed)
            .map_or(Err(TakeError::NotYet), |_| Err(TakeError::Dropped))
    }

    /// Posts a write that nobody waits for.
    ///
    /// Then the device model is told that this server has work.
    pub fn post(&self, poster: &mut Poster, write: &PostedWrite) -> Result<(), PostError> {
        if !self.is_attached() {
            return Err(PostError::Detached);
        }
        let index = poster.posted;
        if index.wrapping_sub(poster.consumer) >= self.ring.capacity {
            poster.consumer = self.consumer(poster)?;
        }
        if index.wrapping_sub(poster.consumer) >= self.ring.capacity {
            return Err(PostError::Full);
        }
        let entry = self.ring.entry(index).ok_or(PostError::Full)?;
        // Relaxed: ordered by the releases below.
        let operation = write.synchronous().operation();
        entry.operation.store(operation, Ordering::Relaxed);
        entry.address.store(write.address, Ordering::Relaxed);
        entry.data.store(write.data, Ordering::Relaxed);
        let next = index.wrapping_add(1);
        poster.posted = next;
        // Release: pairs with the acquire in `Client::work`.
        self.ring.producer.store(u64::from(next), Ordering::Release);
        // Release: pairs with the acquire in `publish`.
        self.posted.store(next, Ordering::Release);
        self.work.mark(0);
        Ok(())
    }

    /// Reads how far the device model has come: no less than before, and no more than was posted.
    fn consumer(&self, poster: &Poster) -> Result<u32, PostError> {
        // Acquire: pairs with the release in `Client::posted`, so that the entries which it has read
        // may be written again.
        let found = self.ring.consumer.load(Ordering::Acquire);
        let refused = PostError::ConsumerIndex(found);
        let consumer = u32::try_from(found).map_err(|_| refused)?;
        let (progress, most) = (
            consumer.wrapping_sub(poster.consumer),
            poster.posted.wrapping_sub(poster.consumer),
        );
        if progress > most {
            return Err(refused);
        }
        Ok(consumer)
    }

    /// Says that the server's functions have changed, after they have and before anything is asked of a
    /// new one. Returns which change it is.
    ///
    /// Then the device model is told that this server has work.
    pub fn change_functions(&self, poster: &mut Poster) -> u32 {
        let change = poster.changes.wrapping_add(1);
        poster.changes = change;
        // Relaxed: only a number.
        self.changes.store(change, Ordering::Relaxed);
        // Release: pairs with the acquire in `Changes::pending`.
        self.ring
            .changes
            .store(u64::from(change), Ordering::Release);
        self.work.mark(0);
        change
    }

    /// Says whether the device model has seen a change: it has let go of what was taken away. None that
    /// serves has nothing to let go of.
    pub fn has_seen(&self, change: u32) -> bool {
        // Acquire: pairs with the release in `Changes::see`, so that its last accesses are over.
        let seen = self.ring.seen.load(Ordering::Acquire);
        // Relaxed: no change is older than one that the caller knows of.
        let made = self.changes.load(Ordering::Relaxed);
        let is_behind = |seen: u32| made.wrapping_sub(seen) <= made.wrapping_sub(change);
        !self.is_attached() || u32::try_from(seen).is_ok_and(is_behind)
    }

    /// Returns what the device model has not been told of yet, once.
    pub fn next_work(&self) -> Option<ServerWork> {
        let event = self.work.take()?;
        Some(match event.checked_sub(1) {
            None => ServerWork::Posted,
            Some(slot) => ServerWork::Slot(slot),
        })
    }

    /// Returns the same, and whether there is more: for [`EventSet::take_work`] of a set of servers.
    pub fn look(&self) -> Option<(ServerWork, bool)> {
        let work = self.next_work()?;
        Some((work, self.has_work()))
    }

    /// Says whether [`Server::next_work`] has more.
    pub fn has_work(&self) -> bool {
        self.work.is_pending()
    }

    fn slot(&self, slot: u32) -> Option<(&Record, Slot<'a>)> {
        Some((self.records.get(slot as usize)?, self.ring.slot(slot)?))
    }
}

/// Checks that `found` says that the request of generation `asked` is answered.
fn check_answered(asked: u32, found: u64) -> Result<(), ProtocolError> {
    if found == tag(asked, State::Answered) {
        return Ok(());
    }
    let answered = high(found);
    Err(match State::try_from(low(found)) {
        Ok(State::Answered) => ProtocolError::Stale { asked, answered },
        Ok(other) => ProtocolError::NotAnswered(other),
        Err(unknown) => ProtocolError::UnknownState(unknown),
    })
}
