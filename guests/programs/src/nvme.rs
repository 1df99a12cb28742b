//! A small driver for an NVMe controller: an admin queue, one more queue, and one command at a time.
//!
//! NVM Express Base Specification 1.4.

use alloc::alloc::{Layout, alloc};

use runtime::mmio::Window;
use runtime::{cpu, timer};

use crate::pci::Function;

/// Device ID and vendor ID of QEMU's.
pub(crate) const ID: u32 = 0x0010_1b36;
pub(crate) const BAR_SIZE: usize = 0x4000;
/// Its MSI-X table and pending bits in BAR0, and how many vectors there are.
pub(crate) const TABLE: usize = 0x2000;
pub(crate) const PENDING: usize = 0x3000;
pub(crate) const VECTORS: usize = 65;

/// Registers (3.1).
pub(crate) mod reg {
    pub(crate) const INTMS: usize = 0x0c;
    pub(crate) const CC: usize = 0x14;
    pub(crate) const CSTS: usize = 0x1c;
    pub(crate) const AQA: usize = 0x24;
    pub(crate) const ASQ: usize = 0x28;
    pub(crate) const ACQ: usize = 0x30;
    pub(crate) const DOORBELLS: usize = 0x1000;
}

/// CC: enable, 64-byte submissions, 16-byte completions.
pub(crate) const ENABLED: u32 = 4 << 20 | 6 << 16 | 1;
/// CSTS.
pub(crate) const READY: u32 = 1 << 0;
pub(crate) const FATAL: u32 = 1 << 1;

/// Opcodes of the admin queue.
const CREATE_SUBMISSION: u32 = 0x01;
pub(crate) const GET_LOG_PAGE: u32 = 0x02;
const CREATE_COMPLETION: u32 = 0x05;
pub(crate) const IDENTIFY: u32 = 0x06;
/// Opcodes of the other one.
pub(crate) const WRITE: u32 = 0x01;
pub(crate) const READ: u32 = 0x02;

/// The queues.
pub(crate) const ADMIN: usize = 0;
pub(crate) const OTHER: usize = 1;

pub(crate) const PAGE: usize = 0x1000;
/// Bytes of an entry of each kind of queue.
pub(crate) const SUBMISSION: usize = 64;
pub(crate) const COMPLETION: usize = 16;
/// Entries of each queue.
pub(crate) const DEPTH: u32 = 16;
/// Pages of the queues: each has one for submissions, and one behind it for completions.
pub(crate) const QUEUE_PAGES: usize = 4;

/// Milliseconds that a command may take.
const PATIENCE: u64 = 60_000;

/// Why the device is not driven on.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Error {
    /// It is gone.
    Gone,
    /// It does not answer.
    Late,
    /// It has given up ([`FATAL`]).
    Fatal,
    /// It refuses a command.
    Status(u32),
}

/// Returns whole pages that nobody else knows of.
pub(crate) fn set_aside(pages: usize) -> Window {
    let bytes = pages * PAGE;
    let layout = Layout::from_size_align(bytes, PAGE).unwrap_or(Layout::new::<u128>());
    // SAFETY: the layout has a size.
    let base = unsafe { alloc(layout) };
    assert!(!base.is_null() && layout.size() == bytes, "no memory");
    // SAFETY: just allocated, and never given back.
    unsafe { Window::new(base as usize, bytes) }
}

/// A controller, and memory for its queues.
pub(crate) struct Nvme {
    pub(crate) function: Function,
    pub(crate) registers: Window,
    queues: Window,
    /// Commands sent to the admin queue and to the other one.
    sent: [u32; 2],
    /// Milliseconds that a command may take.
    pub(crate) patience: u64,
    /// A command is not waited for once the controller has given up.
    pub(crate) minds_fatal: bool,
}

impl Nvme {
    /// Takes a controller whose BAR is placed and on. `queues` has [`QUEUE_PAGES`] pages.
    pub(crate) const fn new(function: Function, registers: Window, queues: Window) -> Self {
        Self {
            function,
            registers,
            queues,
            sent: [0; 2],
            patience: PATIENCE,
            minds_fatal: false,
        }
    }

    /// Turns the controller off, and on again with an admin queue.
    pub(crate) fn enable(&mut self, submissions: u64, completions: u64) -> Result<(), Error> {
        self.disable()?;
        let last = DEPTH - 1;
        self.registers.write32(reg::AQA, last << 16 | last);
        self.registers.write64(reg::ASQ, submissions);
        self.registers.write64(reg::ACQ, completions);
        self.sent = [0; 2];
        cpu::barrier();
        self.registers.write32(reg::CC, ENABLED);
        self.wait_for(|status| status == READY)
    }

    /// Turns the controller off: it forgets its queues.
    pub(crate) fn disable(&self) -> Result<(), Error> {
        self.registers.write32(reg::CC, 0);
        self.wait_for(|status| status & READY == 0)
    }

    fn wait_for(&self, reached: impl Fn(u32) -> bool) -> Result<(), Error> {
        self.wait(false, || reached(self.registers.read32(reg::CSTS)))
    }

    /// Sets both queues up.
    pub(crate) fn start(&mut self) -> Result<(), Error> {
        for offset in (0..QUEUE_PAGES * PAGE).step_by(8) {
            self.queues.write64(offset, 0);
        }
        let [
            submissions,
            completions,
            other_submissions,
            other_completions,
        ] = [0, 1, 2, 3].map(|page| (self.queues.base() + page * PAGE) as u64);
        self.enable(submissions, completions)?;
        let size = (DEPTH - 1) << 16 | 1;
        self.run(ADMIN, CREATE_COMPLETION, other_completions, [size, 1, 0])?;
        self.run(
            ADMIN,
            CREATE_SUBMISSION,
            other_submissions,
            [size, 1 << 16 | 1, 0],
        )
    }

    /// Writes a command into a queue: its opcode, its namespace, the address of its data, and the words
    /// from the tenth on. Returns where its completion will be.
    pub(crate) fn submit(
        &mut self,
        queue: usize,
        command: u32,
        data: u64,
        words: [u32; 3],
    ) -> Window {
        let at = (self.sent[queue] % DEPTH) as usize;
        let entry = self
            .queues
            .part(2 * queue * PAGE + at * SUBMISSION, SUBMISSION);
        for offset in (0..SUBMISSION).step_by(8) {
            entry.write64(offset, 0);
        }
        entry.write32(0, command);
        entry.write32(4, u32::from(queue == OTHER));
        entry.write64(24, data);
        for (offset, word) in (40..).step_by(4).zip(words) {
            entry.write32(offset, word);
        }
        self.sent[queue] += 1;
        cpu::barrier();
        let doorbell = reg::DOORBELLS + 8 * queue;
        self.registers.write32(doorbell, self.sent[queue] % DEPTH);
        self.queues
            .part((2 * queue + 1) * PAGE + at * COMPLETION, COMPLETION)
    }

    /// Sends a command and waits until it is done.
    pub(crate) fn run(
        &mut self,
        queue: usize,
        command: u32,
        data: u64,
        words: [u32; 3],
    ) -> Result<(), Error> {
        // The phase changes each time around.
        let phase = u32::from((self.sent[queue] / DEPTH).is_multiple_of(2)) << 16;
        let done = self.submit(queue, command, data, words);
        self.wait(self.minds_fatal, || done.read32(12) & 1 << 16 == phase)?;
        cpu::barrier();
        let status = done.read32(12) >> 17;
        let doorbell = reg::DOORBELLS + 8 * queue + 4;
        self.registers.write32(doorbell, self.sent[queue] % DEPTH);
        if status == 0 {
            Ok(())
        } else {
            Err(Error::Status(status))
        }
    }

    fn wait(&self, minds_fatal: bool, done: impl Fn() -> bool) -> Result<(), Error> {
        let (mut is_done, mut is_there, mut is_fatal) = (false, true, false);
        timer::wait_until(self.patience, || {
            is_done = done();
            is_there = is_done || self.function.id() == ID;
            is_fatal = minds_fatal && self.registers.read32(reg::CSTS) & FATAL != 0;
            is_done || !is_there || is_fatal
        });
        match (is_done, is_there) {
            (true, _) => Ok(()),
            (_, false) => Err(Error::Gone),
            _ if is_fatal => Err(Error::Fatal),
            _ => Err(Error::Late),
        }
    }
}
