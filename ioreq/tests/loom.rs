//! Both ends of a ring in all interleavings that the memory model allows, up to a bound on preemptions.
//!
//! Two things about loom. It runs the stores to a word in the order in which it explores them, so it
//! cannot show what the acquires and releases are for that keep one store after another side's load
//! or store of the same word: those of the consumer index, of `is_attached`, and of `outstanding`.
//! All others are needed for these tests to pass. And it overlooks interleavings where a thread has
//! yielded, or loads a word before it stores it; hence the tests here without a loop.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p ioreq --release --test loom --target-dir target/loom`
#![cfg(loom)]

mod common;

use common::{attached, memory, read, write};
use ioreq::{
    AttachError, Client, EventSet, Line, PostError, Poster, PublishError, Server, ServerWork,
    Sleep, TakeError, Wake, Work,
};
use loom::sync::Notify;
use loom::sync::atomic::{AtomicU64, Ordering};
use loom::thread;
use std::sync::Arc;

/// Explores `test` with as many preemptions as finish in seconds.
fn explore(preemptions: usize, test: impl Fn() + Send + Sync + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(preemptions);
    model.check(test);
}

/// Lets a value live as long as the threads that use it; the process ends with the test.
fn forever<T>(value: T) -> &'static T {
    Box::leak(Box::new(value))
}

/// A server that a device model is attached to, and its memory.
fn ring(slots: u32, posted: u32) -> (&'static Server<'static>, Poster, &'static [Line]) {
    let (layout, lines) = memory(slots, posted);
    let lines = forever(lines);
    let (server, poster) = attached(layout, lines);
    (forever(server), poster, lines)
}

/// Waits for the answer, as a vCPU does that is woken now and then.
fn wait_for(server: &Server<'_>, pending: &ioreq::Pending) -> u64 {
    loop {
        match server.take_answer(pending) {
            Ok(data) => return data,
            Err(TakeError::NotYet) => thread::yield_now(),
            Err(TakeError::Dropped) => panic!("nobody died"),
        }
    }
}

#[test]
fn the_answer_is_that_to_the_request() {
    explore(3, || {
        let (server, _, lines) = ring(1, 0);
        let device = thread::spawn(move || {
            let mut client = Client::new(lines).unwrap();
            for _ in 0..2 {
                let (ticket, request) = loop {
                    match client.work(Some(0)).next() {
                        Some(Work::Request(ticket, request)) => break (ticket, request),
                        _ => thread::yield_now(),
                    }
                };
                assert_eq!(request, read(request.address));
                ticket.answer(request.address + 1);
                server.complete(0).unwrap();
            }
        });
        for address in [0x10, 0x20] {
            let pending = server.publish(0, read(address)).unwrap();
            assert_eq!(wait_for(server, &pending), address + 1);
        }
        device.join().unwrap();
    });
}

#[test]
fn posted_writes_arrive_whole_and_in_order_when_the_ring_is_full_at_times() {
    explore(3, || {
        let (server, mut poster, lines) = ring(0, 2);
        let device = thread::spawn(move || {
            let mut client = Client::new(lines).unwrap();
            let mut expected = 1;
            while expected <= 4 {
                let mut idle = true;
                for work in client.work(None) {
                    let Work::Posted(seen) = work else {
                        panic!("{work:?}");
                    };
                    assert_eq!(seen, write(expected, expected));
                    expected += 1;
                    idle = false;
                }
                if idle {
                    thread::yield_now();
                }
            }
        });
        for index in 1..=4 {
            while let Err(error) = server.post(&mut poster, &write(index, index)) {
                assert_eq!(error, PostError::Full);
                thread::yield_now();
            }
        }
        device.join().unwrap();
    });
}

/// The writes of another vCPU, if the slot counts them, are there.
#[test]
fn a_request_comes_after_its_own_writes_and_those_that_it_counts_are_whole() {
    explore(3, || {
        let (server, mut poster, lines) = ring(1, 4);
        server.post(&mut poster, &write(1, 1)).unwrap();
        let device = thread::spawn(move || {
            let _pending = server.publish(0, read(0)).unwrap();
            let mut client = Client::new(lines).unwrap();
            let mut seen = 0;
            for work in client.work(Some(0)) {
                match work {
                    Work::Posted(post) => {
                        seen += 1;
                        assert_eq!(post, write(seen, seen));
                    }
                    Work::Request(_, request) => assert_eq!(request, read(0)),
                    Work::Unknown(_) => panic!("half a request"),
                }
            }
            assert_eq!(seen, lines[3].words()[4].load(Ordering::Relaxed));
            assert!(seen >= 1, "the vCPU's own write");
        });
        server.post(&mut poster, &write(2, 2)).unwrap();
        device.join().unwrap();
    });
}

/// The guest orders its two vCPUs itself, with a flag; the device model sees the same order.
#[test]
fn writes_of_another_vcpu_come_before_a_request_that_the_guest_ordered_after_them() {
    explore(2, || {
        let (server, mut poster, lines) = ring(1, 2);
        let flag = Arc::new(AtomicU64::new(0));
        let ordered = flag.clone();
        let other = thread::spawn(move || {
            server.post(&mut poster, &write(1, 1)).unwrap();
            ordered.store(1, Ordering::Release);
        });
        while flag.load(Ordering::Acquire) == 0 {
            thread::yield_now();
        }
        let _pending = server.publish(0, read(0)).unwrap();
        let device = thread::spawn(move || {
            let mut client = Client::new(lines).unwrap();
            let work: Vec<_> = client.work(Some(0)).collect();
            let [Work::Posted(seen), Work::Request(..)] = work.as_slice() else {
                panic!("{work:?}");
            };
            assert_eq!(*seen, write(1, 1));
        });
        device.join().unwrap();
        other.join().unwrap();
    });
}

#[test]
fn of_two_who_complete_one_does() {
    explore(3, || {
        let (server, _, lines) = ring(1, 0);
        let pending = server.publish(0, read(0)).unwrap();
        let mut client = Client::new(lines).unwrap();
        let Some(Work::Request(ticket, _)) = client.work(Some(0)).next() else {
            panic!("no request");
        };
        ticket.answer(7);
        let rival = thread::spawn(move || server.complete(0).is_ok());
        let own = server.complete(0).is_ok();
        let rival = rival.join().unwrap();
        assert!(own ^ rival, "{own} {rival}");
        assert_eq!(server.take_answer(&pending), Ok(7));
    });
}

/// One vCPU of the device model answers, and another, which has been told by nothing that orders
/// memory, completes.
#[test]
fn an_answer_is_whole_whoever_completes_it() {
    explore(3, || {
        let (server, _, lines) = ring(1, 0);
        let pending = server.publish(0, read(0)).unwrap();
        let mut client = Client::new(lines).unwrap();
        let Some(Work::Request(ticket, _)) = client.work(Some(0)).next() else {
            panic!("no request");
        };
        let device = thread::spawn(move || ticket.answer(7));
        while server.complete(0).is_err() {
            thread::yield_now();
        }
        assert_eq!(server.take_answer(&pending), Ok(7));
        device.join().unwrap();
    });
}

/// A vCPU that looks without having been woken finds nothing, or all of it.
#[test]
fn an_answer_that_is_there_is_whole() {
    explore(3, || {
        let (server, _, lines) = ring(1, 0);
        let pending = server.publish(0, read(0)).unwrap();
        let mut client = Client::new(lines).unwrap();
        let Some(Work::Request(ticket, _)) = client.work(Some(0)).next() else {
            panic!("no request");
        };
        let vcpu = thread::spawn(move || {
            let answer = server.take_answer(&pending);
            assert!(
                matches!(answer, Ok(7) | Err(TakeError::NotYet)),
                "{answer:?}"
            );
        });
        ticket.answer(7);
        server.complete(0).unwrap();
        vcpu.join().unwrap();
    });
}

#[test]
fn who_takes_a_request_of_a_new_function_knows_of_it_and_what_it_has_let_go_of_is_let_go_of() {
    explore(3, || {
        let (server, mut poster, lines) = ring(1, 0);
        let memory = forever(AtomicU64::new(0));
        let device = thread::spawn(move || {
            let mut client = Client::new(lines).unwrap();
            let mut changes = client.changes();
            let early = changes.pending();
            if let Some(Work::Request(..)) = client.work(Some(0)).next() {
                assert_eq!(changes.pending(), Some(1), "then {early:?}");
            }
            // The last access to the target's memory.
            memory.store(1, Ordering::Relaxed);
            if let Some(change) = changes.pending() {
                changes.see(change);
            }
        });
        let change = server.change_functions(&mut poster);
        let _asked = server.publish(0, read(0)).unwrap();
        if server.has_seen(change) {
            assert_eq!(memory.load(Ordering::Relaxed), 1);
        }
        device.join().unwrap();
    });
}

#[test]
fn no_request_is_left_behind_by_a_death() {
    explore(3, || {
        let (server, _, _) = ring(1, 0);
        let killer = thread::spawn(move || {
            server.detach();
            server.outstanding().count()
        });
        let published = server.publish(0, read(0));
        let woken = killer.join().unwrap();
        match published {
            Ok(pending) => {
                assert_eq!(woken, 1, "the vCPU would sleep for ever");
                assert_eq!(server.take_answer(&pending), Err(TakeError::Dropped));
            }
            Err(error) => assert_eq!(error, PublishError::Detached),
        }
        assert_eq!(server.outstanding().count(), 0);
    });
}

#[test]
fn a_death_and_a_completion_at_once_give_one_outcome() {
    explore(3, || {
        let (server, _, lines) = ring(1, 0);
        let pending = server.publish(0, read(0)).unwrap();
        let mut client = Client::new(lines).unwrap();
        let Some(Work::Request(ticket, _)) = client.work(Some(0)).next() else {
            panic!("no request");
        };
        ticket.answer(7);
        let device = thread::spawn(move || server.complete(0));
        let killer = thread::spawn(move || server.detach());
        let mut outcome = server.take_answer(&pending);
        device.join().unwrap().ok();
        killer.join().unwrap();
        if outcome == Err(TakeError::NotYet) {
            outcome = server.take_answer(&pending);
        }
        assert!(
            matches!(outcome, Ok(7) | Err(TakeError::Dropped)),
            "{outcome:?}"
        );
        assert_eq!(server.outstanding().count(), 0);
    });
}

#[test]
fn a_new_instance_sees_each_request_that_was_sent_to_it() {
    explore(3, || {
        let (server, mut poster, lines) = ring(1, 0);
        let old = server.publish(0, read(1)).unwrap();
        server.detach();
        let taker = thread::spawn(move || {
            let mut result = server.attach(&mut poster);
            while let Err(error) = result {
                assert_eq!(error, AttachError::Outstanding(0));
                thread::yield_now();
                result = server.attach(&mut poster);
            }
        });
        assert_eq!(server.take_answer(&old), Err(TakeError::Dropped));
        let published = server.publish(0, read(2));
        taker.join().unwrap();
        let mut client = Client::new(lines).unwrap();
        let work = client.work(Some(0)).next();
        match (published, work) {
            (Ok(pending), Some(Work::Request(_, seen))) => assert_eq!(seen, *pending.request()),
            (Err(PublishError::Detached), None) => {}
            (published, work) => panic!("{published:?} {work:?}"),
        }
    });
}

#[test]
fn no_event_is_lost_and_what_it_is_about_is_visible() {
    explore(3, || {
        let set = forever(EventSet::new(2).unwrap());
        let data = forever([AtomicU64::new(0), AtomicU64::new(0)]);
        let signal = move |event: u32| {
            data[event as usize].store(1, Ordering::Relaxed);
            let _ = set.signal(event);
        };
        let one = thread::spawn(move || signal(0));
        let two = thread::spawn(move || signal(1));
        let mut taken = 0;
        while taken < 2 {
            match set.take() {
                Some(event) => {
                    assert_eq!(data[event as usize].load(Ordering::Relaxed), 1);
                    taken += 1;
                }
                None => thread::yield_now(),
            }
        }
        assert_eq!(set.take(), None);
        one.join().unwrap();
        two.join().unwrap();
    });
}

/// A vCPU of a device model that waits for work, as the kernel would have it.
struct Sleeper {
    /// Which servers have work.
    servers: EventSet,
    wake: Notify,
}

impl Sleeper {
    fn new() -> Self {
        Self {
            servers: EventSet::new(1).unwrap(),
            wake: Notify::new(),
        }
    }

    fn signal(&self, server: u32) {
        if self.servers.signal(server) == Wake::Needed {
            self.wake.notify();
        }
    }

    fn wait(&self) -> u32 {
        loop {
            if let Some(server) = self.servers.take() {
                return server;
            }
            if self.servers.sleep() == Sleep::Blocked {
                self.wake.wait();
                self.servers.awake();
            }
        }
    }
}

/// Loom reports a deadlock if the device model sleeps although there is work.
#[test]
fn no_wake_up_is_lost() {
    explore(3, || {
        let sleeper = forever(Sleeper::new());
        let signals = thread::spawn(move || {
            sleeper.signal(0);
        });
        assert_eq!(sleeper.wait(), 0);
        signals.join().unwrap();
    });
}

/// The whole way: two vCPUs ask, the device model sleeps in between, each gets its answer.
#[test]
fn two_vcpus_are_served_by_a_device_model_that_sleeps() {
    explore(2, || {
        let (server, _, lines) = ring(2, 0);
        let sleeper = forever(Sleeper::new());
        let vcpu = move |slot: u32| {
            let address = u64::from(slot) * 16;
            let pending = server.publish(slot, read(address)).unwrap();
            sleeper.signal(0);
            pending
        };
        let one = thread::spawn(move || vcpu(1));
        let zero = thread::spawn(move || vcpu(0));
        let mut client = Client::new(lines).unwrap();
        let mut served = 0;
        while served < 2 {
            sleeper.wait();
            // As IOREQ_WAIT: one piece of work for each call, and the server's turn comes again.
            let Some(ServerWork::Slot(slot)) = server.next_work() else {
                continue;
            };
            if server.has_work() {
                sleeper.signal(0);
            }
            for work in client.work(Some(slot)) {
                let Work::Request(ticket, request) = work else {
                    panic!("{work:?}");
                };
                ticket.answer(request.address + 1);
            }
            server.complete(slot).unwrap();
            served += 1;
        }
        let answers = [zero, one].map(|vcpu| wait_for(server, &vcpu.join().unwrap()));
        assert_eq!(answers, [1, 17]);
    });
}
