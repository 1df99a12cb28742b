//! Command and event queue (3.5).
//!
//! Both are rings. An index has one bit more than the ring needs, which changes at each turn: equal
//! indexes are an empty ring, indexes that differ in that bit alone a full one.

use super::command::Command;
use super::event::Event;
use super::registers::*;
use super::{Capabilities, Error};
use crate::asm;
use crate::dma::{Coherency, Memory, Pool};
use crate::mmio::{Bus, wait_until};

/// A page of commands.
const COMMANDS: u8 = 8;
/// More events than a transfer of a page makes when nothing of it is mapped.
pub(super) const EVENTS: u8 = 11;

/// CMDQ_CONS.ERR: the SMMU could not read the command (7.1, CERROR_ABT).
const CERROR_ABT: u32 = 2;
/// How often the SMMU is asked to read a command again that it could not read.
const FETCHES: u32 = 3;

/// The memory of a ring, and how its indexes count.
#[derive(Debug)]
struct Ring {
    memory: Memory,
    coherency: Coherency,
    log2: u8,
    /// Bytes of an entry.
    entry: usize,
}

impl Ring {
    fn new(
        log2: u8,
        entry: usize,
        capabilities: &Capabilities,
        pool: &mut impl Pool,
    ) -> Result<Self, Error> {
        // A base is aligned to its size, and to 32 bytes (6.3.25).
        let bytes = (entry << log2).max(32);
        let memory = pool.take(bytes, bytes).ok_or(Error::OutOfMemory)?;
        capabilities.reaches(&memory)?;
        let coherency = capabilities.coherency;
        memory.publish_all(coherency);
        Ok(Self {
            memory,
            coherency,
            log2,
            entry,
        })
    }

    /// Returns what the base register is to hold.
    fn base(&self) -> u64 {
        let fields = BASE::LOG2SIZE.val(u64::from(self.log2)) + BASE::ALLOCATE::SET;
        fields.modify(self.memory.pa().get())
    }

    /// Returns the index after `index`.
    fn after(&self, index: u32) -> u32 {
        (index + 1) & self.mask()
    }

    /// Returns the bits of an index, the wrap bit included.
    fn mask(&self) -> u32 {
        (2 << self.log2) - 1
    }

    fn is_full(&self, written: u32, read: u32) -> bool {
        (written ^ read) & self.mask() == 1 << self.log2
    }

    fn is_empty(&self, written: u32, read: u32) -> bool {
        (written ^ read) & self.mask() == 0
    }

    fn offset(&self, index: u32) -> usize {
        (index & (self.mask() >> 1)) as usize * self.entry
    }
}

/// The command queue: we write, the SMMU reads.
#[derive(Debug)]
pub(super) struct CommandQueue {
    ring: Ring,
    written: u32,
}

impl CommandQueue {
    /// Makes a queue.
    pub(super) fn new(capabilities: &Capabilities, pool: &mut impl Pool) -> Result<Self, Error> {
        let log2 = capabilities.command_queue.min(COMMANDS);
        Ok(Self {
            ring: Ring::new(log2, 16, capabilities, pool)?,
            written: 0,
        })
    }

    /// Tells the SMMU where the queue is; it is off.
    pub(super) fn install(&self, bus: &impl Bus) {
        SMMU_CMDQ_BASE.set(bus, self.ring.base());
        SMMU_CMDQ_PROD.set(bus, 0);
        SMMU_CMDQ_CONS.set(bus, 0);
    }

    /// Has the SMMU carry commands out, and waits until they are complete.
    ///
    /// A command that the SMMU refuses is an error; those after it are carried out all the same.
    pub(super) fn run(
        &mut self,
        bus: &impl Bus,
        commands: impl IntoIterator<Item = Command>,
    ) -> Result<(), Error> {
        let mut refused = Ok(());
        for command in commands.into_iter().chain([Command::Sync]) {
            match self.wait(bus, |ring, written, read| !ring.is_full(written, read)) {
                // There is no room to go on in.
                Err(error @ (Error::Timeout | Error::Unreadable)) => return Err(error),
                other => refused = refused.and(other),
            }
            self.put(self.written, command);
            self.written = self.ring.after(self.written);
            SMMU_CMDQ_PROD.set(bus, self.written);
        }
        refused.and(self.wait(bus, Ring::is_empty))
    }

    /// Waits until the queue has got as far as `done` says, past commands that are refused, of which
    /// the first is the error. A command that the SMMU could not read it reads again.
    fn wait(&self, bus: &impl Bus, done: impl Fn(&Ring, u32, u32) -> bool) -> Result<(), Error> {
        let mut refused = Ok(());
        let mut fetches = 0;
        wait_until(|| {
            let seen = SMMU_CMDQ_CONS.read(bus);
            if seen.read(CMDQ_CONS::ERR) == 0 || !has_stopped(bus) {
                return done(&self.ring, self.written, seen.read(CMDQ_CONS::RD));
            }
            // Only now it stands still: what was seen may be from before, and of an earlier error.
            let cons = SMMU_CMDQ_CONS.read(bus);
            let (at, reason) = (cons.read(CMDQ_CONS::RD), cons.read(CMDQ_CONS::ERR));
            if reason == CERROR_ABT {
                fetches += 1;
                if fetches > FETCHES {
                    return true;
                }
            } else {
                refused = refused.and(Err(self.replace(at, reason)));
            }
            // Acknowledged, and nothing else with it: the queue goes on at the same place (7.1).
            let seen = SMMU_GERRORN.get(bus);
            SMMU_GERRORN.set(bus, seen ^ GERROR::CMDQ_ERR::SET.value);
            false
        })?;
        if fetches > FETCHES {
            return Err(Error::Unreadable);
        }
        refused
    }

    /// Puts something harmless in the place of the command at which the queue has stopped.
    fn replace(&self, at: u32, reason: u32) -> Error {
        let command = self.ring.memory.read64(self.ring.offset(at));
        self.put(at, Command::Sync);
        Error::Rejected {
            command: (command & 0xff) as u8,
            reason: (reason & 0xff) as u8,
        }
    }

    /// Writes a command into the queue, visible to the SMMU.
    fn put(&self, index: u32, command: Command) {
        let offset = self.ring.offset(index);
        let [first, second] = command.encode();
        self.ring.memory.write64(offset, first);
        self.ring.memory.write64(offset + 8, second);
        self.ring
            .memory
            .publish(offset, self.ring.entry, self.ring.coherency);
    }
}

/// Returns whether the command queue has stopped. CMDQ_CONS.ERR alone may be from an error before.
fn has_stopped(bus: &impl Bus) -> bool {
    let active = SMMU_GERROR.get(bus) ^ SMMU_GERRORN.get(bus);
    GERROR::CMDQ_ERR.is_set(active)
}

/// The event queue: the SMMU writes, we read.
#[derive(Debug)]
pub(super) struct EventQueue {
    ring: Ring,
    read: u32,
    overflows: u64,
}

impl EventQueue {
    /// Makes a queue.
    pub(super) fn new(capabilities: &Capabilities, pool: &mut impl Pool) -> Result<Self, Error> {
        let log2 = capabilities.event_queue.min(EVENTS);
        Ok(Self {
            ring: Ring::new(log2, 32, capabilities, pool)?,
            read: 0,
            overflows: 0,
        })
    }

    /// Tells the SMMU where the queue is; it is off.
    pub(super) fn install(&self, bus: &impl Bus) {
        SMMU_EVENTQ_BASE.set(bus, self.ring.base());
        SMMU_EVENTQ_PROD.set(bus, 0);
        SMMU_EVENTQ_CONS.set(bus, 0);
    }

    /// Takes the oldest event.
    pub(super) fn next(&mut self, bus: &impl Bus) -> Option<Event> {
        let written = SMMU_EVENTQ_PROD.read(bus);
        let overflow = written.read(EVENTQ_PTR::OVFLG);
        let empty = self
            .ring
            .is_empty(written.read(EVENTQ_PTR::INDEX), self.read);
        let overflowed = overflow != SMMU_EVENTQ_CONS.read(bus).read(EVENTQ_PTR::OVFLG);
        self.overflows += u64::from(overflowed);
        let event = (!empty).then(|| self.take());
        if overflowed || event.is_some() {
            let index = EVENTQ_PTR::INDEX.val(self.read);
            SMMU_EVENTQ_CONS.write(bus, index + EVENTQ_PTR::OVFLG.val(overflow));
        }
        event
    }

    fn take(&mut self) -> Event {
        let offset = self.ring.offset(self.read);
        self.ring
            .memory
            .refresh(offset, self.ring.entry, self.ring.coherency);
        let words = [0, 8, 16, 24].map(|n| self.ring.memory.read64(offset + n));
        // Read before the SMMU is told that it may write here again.
        asm::dsb_sy();
        self.read = self.ring.after(self.read);
        Event::new(words)
    }

    /// Returns how often the queue was found to have overflowed.
    pub(super) fn overflows(&self) -> u64 {
        self.overflows
    }
}
