//! Both ends of a ring on real threads, with events between them as the kernel has them.
#![cfg(not(loom))]

mod common;

use common::{attached, memory, read, write};
use ioreq::{
    Client, EventSet, PostError, Poster, Server, ServerWork, Sleep, TakeError, Wake, Work,
};
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, Thread};

/// What the kernel would have: the lock around the poster, and who sleeps.
struct Kernel<'a> {
    server: Server<'a>,
    poster: Mutex<Poster>,
    /// The one event of the device-model domain: its server.
    servers: EventSet,
    device: Thread,
    done: AtomicBool,
}

impl Kernel<'_> {
    fn signal(&self) {
        if self.servers.signal(0) == Wake::Needed {
            self.device.unpark();
        }
    }

    /// A write to a range whose writes are posted.
    fn write(&self, slot: u32, address: u64, data: u64) {
        let write = write(address, data);
        let result = self.server.post(&mut self.poster.lock().unwrap(), &write);
        match result {
            Ok(()) => self.signal(),
            Err(PostError::Full) => assert_eq!(self.ask(slot, write.synchronous()), 0),
            Err(error) => panic!("{error:?}"),
        }
    }

    /// Blocks the vCPU until the request is answered.
    fn ask(&self, slot: u32, request: ioreq::Request) -> u64 {
        let pending = self.server.publish(slot, request).unwrap();
        self.signal();
        loop {
            match self.server.take_answer(&pending) {
                Ok(data) => return data,
                Err(TakeError::NotYet) => thread::yield_now(),
                Err(TakeError::Dropped) => panic!("nobody died"),
            }
        }
    }

    /// `IOREQ_WAIT`; `None` at the end.
    fn wait(&self) -> Option<ServerWork> {
        loop {
            while self.servers.take().is_some() {
                if let Some(work) = self.server.next_work() {
                    if self.server.has_work() {
                        let _ = self.servers.signal(0);
                    }
                    return Some(work);
                }
            }
            if self.done.load(Ordering::Acquire) {
                return None;
            }
            if self.servers.sleep() == Sleep::Blocked {
                thread::park();
                self.servers.awake();
            }
        }
    }
}

/// Each vCPU writes a counter of its own, posted, and reads it back every so often: it must find its
/// last write, however full the ring was.
#[test]
fn vcpus_find_their_own_writes() {
    const VCPUS: u32 = 3;
    let rounds: u64 = if cfg!(miri) { 20 } else { 10_000 };
    let (layout, lines) = memory(VCPUS, 8);
    let (server, poster) = attached(layout, &lines);
    let kernel = Kernel {
        server,
        poster: Mutex::new(poster),
        servers: EventSet::new(1).unwrap(),
        device: thread::current(),
        done: AtomicBool::new(false),
    };
    let writes = thread::scope(|scope| {
        let vcpu = |slot: u32| {
            let address = u64::from(slot);
            for round in 1..=rounds {
                kernel.write(slot, address, round);
                if round.is_multiple_of(1 + address) {
                    assert_eq!(kernel.ask(slot, read(address)), round, "vCPU {slot}");
                }
            }
        };
        let vcpus = [0, 1, 2].map(|slot| scope.spawn(move || vcpu(slot)));
        let kernel = &kernel;
        scope.spawn(move || {
            let results = vcpus.map(thread::ScopedJoinHandle::join);
            kernel.done.store(true, Ordering::Release);
            kernel.signal();
            kernel.device.unpark();
            assert!(results.iter().all(Result::is_ok));
        });
        serve(kernel, &lines)
    });
    assert_eq!(writes, u64::from(VCPUS) * rounds);
}

/// Lets the vCPUs go when the device model's thread ends, also in the middle of a failed test.
struct Death<'a>(&'a Server<'a>);

impl Drop for Death<'_> {
    fn drop(&mut self) {
        self.0.detach();
    }
}

/// The device model: a register for each vCPU. Returns how many writes it saw.
fn serve(kernel: &Kernel<'_>, lines: &[ioreq::Line]) -> u64 {
    let _death = Death(&kernel.server);
    let mut client = Client::new(lines).unwrap();
    let mut registers = BTreeMap::new();
    let mut writes = 0;
    let mut store = |registers: &mut BTreeMap<u64, u64>, address, data| {
        let before = registers.insert(address, data).unwrap_or(0);
        assert_eq!(data, before + 1, "in order, and none twice");
        writes += 1;
    };
    while let Some(work) = kernel.wait() {
        let slot = match work {
            ServerWork::Posted => None,
            ServerWork::Slot(slot) => Some(slot),
        };
        for work in client.work(slot) {
            match work {
                Work::Posted(write) => store(&mut registers, write.address, write.data),
                Work::Request(ticket, request) => {
                    let slot = ticket.slot();
                    if !request.kind.is_read() {
                        store(&mut registers, request.address, request.data);
                    }
                    ticket.answer(registers[&request.address]);
                    kernel.server.complete(slot).unwrap();
                }
                Work::Unknown(_) => panic!("a request that nobody sent"),
            }
        }
    }
    writes
}
