//! Both ends of a ring, one step after the other.
#![cfg(not(loom))]

mod common;

use abi::Status;
use common::{attached, memory, read, write};
use ioreq::{
    AttachError, Client, ClientError, EventSet, Kind, Line, PostError, ProtocolError, PublishError,
    Request, Server, ServerError, ServerWork, Sleep, State, TakeError, Wake, Width, Work,
};
use std::sync::atomic::Ordering;
use vpci::Sbdf;

/// The word of a line, as somebody who does not keep to the protocol reaches it.
fn word(lines: &[Line], line: usize, word: usize) -> &std::sync::atomic::AtomicU64 {
    &lines[line].words()[word]
}

const PRODUCER: usize = 1;
const CONSUMER: usize = 2;
const SLOT0: usize = 3;

fn requests(client: &mut Client<'_>, slot: u32) -> Vec<String> {
    let mut seen = Vec::new();
    for work in client.work(Some(slot)) {
        match work {
            Work::Posted(write) => seen.push(format!("write {:#x}", write.address)),
            Work::Request(ticket, request) => {
                seen.push(format!("{:?} {:#x}", request.kind, request.address));
                ticket.answer(request.address + 1);
            }
            Work::Unknown(ticket) => ticket.answer(!0),
        }
    }
    seen
}

#[test]
fn a_request_is_answered_with_what_the_device_model_says() {
    let (layout, lines) = memory(2, 4);
    let (server, _) = attached(layout, &lines);
    let mut client = Client::new(&lines).unwrap();
    assert_eq!(client.slots(), 2);
    for round in 0..3 {
        for slot in [0, 1] {
            let request = read(0x1000 + u64::from(slot));
            let pending = server.publish(slot, request).unwrap();
            assert_eq!((pending.slot(), *pending.request()), (slot, request));
            assert_eq!(server.next_work(), Some(ServerWork::Slot(slot)));
            assert_eq!(server.take_answer(&pending), Err(TakeError::NotYet));
            assert_eq!(server.outstanding().collect::<Vec<_>>(), [slot]);
            let Some(Work::Request(ticket, seen)) = client.work(Some(slot)).next() else {
                panic!("round {round}: no request in {slot}");
            };
            assert_eq!((ticket.slot(), seen), (slot, request));
            ticket.answer(0x1_2345_6789);
            assert_eq!(server.take_answer(&pending), Err(TakeError::NotYet));
            assert_eq!(server.complete(slot), Ok(()));
            assert_eq!(server.take_answer(&pending), Ok(0x2345_6789));
            assert_eq!(server.outstanding().next(), None);
        }
    }
    assert!(!server.has_work());
}

#[test]
fn posted_writes_arrive_in_order_and_before_a_later_request() {
    let (layout, lines) = memory(1, 4);
    let (server, mut poster) = attached(layout, &lines);
    let mut client = Client::new(&lines).unwrap();
    for round in 0..5 {
        server.post(&mut poster, &write(1, 1)).unwrap();
        server.post(&mut poster, &write(2, 2)).unwrap();
        let pending = server.publish(0, read(3)).unwrap();
        server.post(&mut poster, &write(4, 4)).unwrap();
        let expected = ["write 0x1", "write 0x2", "MmioRead 0x3"];
        assert_eq!(requests(&mut client, 0), expected, "round {round}");
        server.complete(0).unwrap();
        assert_eq!(server.take_answer(&pending), Ok(4));
        // The write that came after the request: the slot is empty now.
        assert_eq!(requests(&mut client, 0), ["write 0x4"]);
        assert_eq!(client.work(None).count(), 0);
    }
    assert_eq!(server.next_work(), Some(ServerWork::Posted));
}

#[test]
fn writes_that_were_taken_already_are_not_taken_again_for_an_older_request() {
    let (layout, lines) = memory(1, 4);
    let (server, mut poster) = attached(layout, &lines);
    let mut client = Client::new(&lines).unwrap();
    server.post(&mut poster, &write(1, 1)).unwrap();
    let _pending = server.publish(0, read(2)).unwrap();
    server.post(&mut poster, &write(3, 3)).unwrap();
    assert_eq!(client.work(None).count(), 2);
    assert_eq!(requests(&mut client, 0), ["MmioRead 0x2"]);
}

#[test]
fn a_full_ring_is_followed_by_the_same_write_as_a_request() {
    let (layout, lines) = memory(1, 2);
    let (server, mut poster) = attached(layout, &lines);
    let mut client = Client::new(&lines).unwrap();
    server.post(&mut poster, &write(1, 1)).unwrap();
    server.post(&mut poster, &write(2, 2)).unwrap();
    let third = write(3, 3);
    assert_eq!(server.post(&mut poster, &third), Err(PostError::Full));
    let pending = server.publish(0, third.synchronous()).unwrap();
    let expected = ["write 0x1", "write 0x2", "MmioWrite 0x3"];
    assert_eq!(requests(&mut client, 0), expected);
    server.complete(0).unwrap();
    assert_eq!(server.take_answer(&pending), Ok(0), "a write has no data");
    assert_eq!(server.post(&mut poster, &third), Ok(()));
}

#[test]
fn a_server_without_a_posted_ring_sends_all_writes_as_requests() {
    let (layout, lines) = memory(1, 0);
    let (server, mut poster) = attached(layout, &lines);
    assert_eq!(server.post(&mut poster, &write(1, 1)), Err(PostError::Full));
    let _pending = server.publish(0, write(1, 1).synchronous()).unwrap();
    let mut client = Client::new(&lines).unwrap();
    assert_eq!(requests(&mut client, 0), ["MmioWrite 0x1"]);
    assert_eq!(client.work(None).count(), 0);
}

#[test]
fn indexes_wrap_around() {
    let (layout, lines) = memory(1, 2);
    let (server, mut poster) = attached(layout, &lines);
    let mut client = Client::new(&lines).unwrap();
    for index in 0..100 {
        server.post(&mut poster, &write(index, 0)).unwrap();
        assert_eq!(requests(&mut client, 0), [format!("write {index:#x}")]);
    }
    assert_eq!(word(&lines, PRODUCER, 0).load(Ordering::Relaxed), 100);
    assert_eq!(word(&lines, CONSUMER, 0).load(Ordering::Relaxed), 100);
}

#[test]
fn a_slot_takes_one_request_at_a_time() {
    let (layout, lines) = memory(1, 0);
    let (server, _) = attached(layout, &lines);
    assert_eq!(
        server.publish(1, read(0)).unwrap_err(),
        PublishError::NoSuchSlot
    );
    let pending = server.publish(0, read(0)).unwrap();
    assert_eq!(
        server.publish(0, read(0)).unwrap_err(),
        PublishError::Outstanding
    );
    let mut client = Client::new(&lines).unwrap();
    assert_eq!(requests(&mut client, 0).len(), 1);
    server.complete(0).unwrap();
    assert_eq!(
        server.publish(0, read(0)).unwrap_err(),
        PublishError::Outstanding,
        "the answer has not been taken"
    );
    assert_eq!(server.take_answer(&pending), Ok(1));
    assert_eq!(server.take_answer(&pending), Err(TakeError::NotYet));
    assert!(server.publish(0, read(0)).is_ok());
}

#[test]
#[rustfmt::skip]
fn a_completion_that_breaks_the_protocol_is_refused_and_the_request_stays() {
    let cases = [
        // what the device model left in the slot's state, and what it is told
        (0x0000_0002_0000_0000, ProtocolError::NotAnswered(State::Free)),
        (0x0000_0002_0000_0001, ProtocolError::NotAnswered(State::Requested)),
        (0x0000_0001_0000_0002, ProtocolError::Stale { asked: 2, answered: 1 }),
        (0x0000_0003_0000_0002, ProtocolError::Stale { asked: 2, answered: 3 }),
        (0x0000_0002_0000_0003, ProtocolError::UnknownState(3)),
        (0xffff_ffff_ffff_ffff, ProtocolError::UnknownState(0xffff_ffff)),
    ];
    for (state, error) in cases {
        let (layout, lines) = memory(2, 0);
        let (server, _) = attached(layout, &lines);
        let mut client = Client::new(&lines).unwrap();
        let first = server.publish(0, read(0)).unwrap();
        requests(&mut client, 0);
        server.complete(0).unwrap();
        assert_eq!(server.take_answer(&first), Ok(1));
        let second = server.publish(0, read(8)).unwrap();
        word(&lines, SLOT0, 0).store(state, Ordering::Relaxed);
        assert_eq!(server.complete(0), Err(error), "{state:#x}");
        assert_eq!(server.take_answer(&second), Err(TakeError::NotYet));
        // Another slot is not hurt, and the right answer is still taken.
        let other = server.publish(1, read(16)).unwrap();
        requests(&mut client, 1);
        assert_eq!(server.complete(1), Ok(()));
        assert_eq!(server.take_answer(&other), Ok(17));
        word(&lines, SLOT0, 3).store(5, Ordering::Relaxed);
        word(&lines, SLOT0, 0).store(0x2_0000_0002, Ordering::Relaxed);
        assert_eq!(server.complete(0), Ok(()));
        assert_eq!(server.take_answer(&second), Ok(5));
    }
}

#[test]
fn nothing_is_completed_that_was_not_asked() {
    let (layout, lines) = memory(1, 0);
    let (server, _) = attached(layout, &lines);
    assert_eq!(server.complete(1), Err(ProtocolError::NoSuchSlot(1)));
    assert_eq!(server.complete(!0), Err(ProtocolError::NoSuchSlot(!0)));
    for state in 0..3 {
        word(&lines, SLOT0, 0).store(state, Ordering::Relaxed);
        assert_eq!(server.complete(0), Err(ProtocolError::NothingAsked));
    }
    let pending = server.publish(0, read(0)).unwrap();
    requests(&mut Client::new(&lines).unwrap(), 0);
    assert_eq!(server.complete(0), Ok(()));
    word(&lines, SLOT0, 0).store(0x1_0000_0002, Ordering::Relaxed);
    word(&lines, SLOT0, 3).store(0xbad, Ordering::Relaxed);
    assert_eq!(server.complete(0), Err(ProtocolError::NothingAsked));
    assert_eq!(server.take_answer(&pending), Ok(1), "as completed");
    assert_eq!(server.complete(0), Err(ProtocolError::NothingAsked));
}

#[test]
fn a_consumer_index_that_cannot_be_is_refused() {
    let (layout, lines) = memory(1, 2);
    let (server, mut poster) = attached(layout, &lines);
    for address in 0..2 {
        server.post(&mut poster, &write(address, 0)).unwrap();
    }
    for consumer in [3, u64::from(u32::MAX), 1 << 32, u64::MAX] {
        word(&lines, CONSUMER, 0).store(consumer, Ordering::Relaxed);
        assert_eq!(
            server.post(&mut poster, &write(2, 0)),
            Err(PostError::ConsumerIndex(consumer))
        );
    }
    word(&lines, CONSUMER, 0).store(1, Ordering::Relaxed);
    assert_eq!(server.post(&mut poster, &write(2, 0)), Ok(()));
    // Backwards again.
    word(&lines, CONSUMER, 0).store(0, Ordering::Relaxed);
    assert_eq!(
        server.post(&mut poster, &write(3, 0)),
        Err(PostError::ConsumerIndex(0))
    );
}

#[test]
fn when_the_device_model_dies_every_request_is_dropped_and_the_next_one_starts_afresh() {
    let (layout, lines) = memory(3, 2);
    let (server, mut poster) = attached(layout, &lines);
    assert_eq!(server.attach(&mut poster), Err(AttachError::Attached));
    let mut client = Client::new(&lines).unwrap();
    let answered = server.publish(0, read(0)).unwrap();
    requests(&mut client, 0);
    server.complete(0).unwrap();
    let lost = server.publish(1, read(8)).unwrap();
    server.post(&mut poster, &write(1, 1)).unwrap();

    server.detach();
    assert!(!server.is_attached());
    assert_eq!(server.outstanding().collect::<Vec<_>>(), [1]);
    assert_eq!(server.attach(&mut poster), Err(AttachError::Outstanding(1)));
    assert_eq!(server.take_answer(&answered), Ok(1), "it was in time");
    assert_eq!(server.take_answer(&lost), Err(TakeError::Dropped));
    assert_eq!(lost.request().unanswered(), 0xffff_ffff);
    assert_eq!(
        server.publish(2, read(0)).unwrap_err(),
        PublishError::Detached
    );
    assert_eq!(
        server.post(&mut poster, &write(1, 1)),
        Err(PostError::Detached)
    );

    for line in &lines {
        for word in line.words() {
            word.store(0xdead, Ordering::Relaxed);
        }
    }
    server.attach(&mut poster).unwrap();
    assert!(!server.has_work());
    let mut client = Client::new(&lines).unwrap();
    assert_eq!(client.work(None).count(), 0, "the posted write is dropped");
    let again = server.publish(1, *lost.request()).unwrap();
    assert_eq!(requests(&mut client, 1), ["MmioRead 0x8"]);
    server.complete(1).unwrap();
    assert_eq!(server.take_answer(&again), Ok(9));
    server.post(&mut poster, &write(1, 1)).unwrap();
    server.post(&mut poster, &write(2, 1)).unwrap();
    assert_eq!(client.work(None).count(), 2);
}

/// What the call says in which a device model waits, of two servers of its.
#[test]
fn whoever_waits_is_told_of_each_piece_of_work_once_and_of_none_that_is_no_more() {
    let (layout, lines) = memory(2, 4);
    let (other_layout, other_lines) = memory(1, 4);
    let (server, mut poster) = attached(layout, &lines);
    let (other, mut other_poster) = attached(other_layout, &other_lines);
    let servers = [&server, &other];
    let waits = EventSet::new(2).unwrap();
    let told = || waits.take_work(|event| servers.get(event as usize)?.look());
    assert_eq!(waits.sleep(), Sleep::Blocked);
    // Both slots of one, and writes of the other, each of which wakes it.
    let asked = [0, 1].map(|slot| server.publish(slot, read(1)).unwrap());
    assert_eq!([0, 0].map(|event| waits.signal(event)), [Wake::Needed; 2]);
    other.post(&mut other_poster, &write(1, 1)).unwrap();
    assert_eq!(waits.signal(1), Wake::Needed);
    waits.awake();
    assert_eq!(told(), Some((0, ServerWork::Slot(0))));
    assert_eq!(told(), Some((1, ServerWork::Posted)));
    assert_eq!(waits.sleep(), Sleep::LookAgain);
    assert_eq!(told(), Some((0, ServerWork::Slot(1))));
    assert_eq!(told(), None);
    assert_eq!(waits.sleep(), Sleep::Blocked);
    waits.awake();
    // Whoever asked has gone meanwhile, with the target: it is answered like any other, once.
    let mut client = Client::new(&lines).unwrap();
    assert_eq!(requests(&mut client, 0), ["MmioRead 0x1"]);
    assert_eq!(server.complete(0), Ok(()));
    assert_eq!(server.complete(0), Err(ProtocolError::NothingAsked));
    assert_eq!(server.take_answer(&asked[0]), Ok(2));
    // The device model goes, and comes again: of what it was not told the new one hears nothing.
    server.post(&mut poster, &write(3, 3)).unwrap();
    assert_eq!(waits.signal(0), Wake::NotNeeded);
    server.detach();
    assert_eq!(server.take_answer(&asked[1]), Err(TakeError::Dropped));
    server.attach(&mut poster).unwrap();
    assert_eq!(waits.sleep(), Sleep::LookAgain);
    assert_eq!(told(), None);
    assert_eq!(waits.sleep(), Sleep::Blocked);
    waits.clear();
    let again = server.publish(1, read(5)).unwrap();
    assert_eq!(waits.signal(0), Wake::NotNeeded, "nobody sleeps any more");
    assert_eq!(told(), Some((0, ServerWork::Slot(1))));
    // An event of no server's.
    assert_eq!(waits.signal(7), Wake::NotNeeded);
    assert_eq!(told(), None);
    let mut client = Client::new(&lines).unwrap();
    assert_eq!(requests(&mut client, 1), ["MmioRead 0x5"]);
    assert_eq!(server.complete(1), Ok(()));
    assert_eq!(server.take_answer(&again), Ok(6));
}

#[test]
fn the_device_model_says_which_changes_of_its_functions_it_has_seen() {
    let (layout, lines) = memory(1, 2);
    let (server, mut poster) = attached(layout, &lines);
    let mut changes = Client::new(&lines).unwrap().changes();
    assert_eq!(changes.pending(), None);
    let first = server.change_functions(&mut poster);
    let second = server.change_functions(&mut poster);
    assert_eq!(server.next_work(), Some(ServerWork::Posted));
    assert_eq!(server.next_work(), None, "both are told at once");
    let seen = |change| server.has_seen(change);
    assert_eq!([first, second].map(seen), [false, false]);
    assert_eq!(changes.pending(), Some(second));
    let third = server.change_functions(&mut poster);
    changes.see(second);
    assert_eq!([first, second, third].map(seen), [true, true, false]);
    assert_eq!(changes.pending(), Some(third));
    changes.see(third);
    assert_eq!([first, second, third].map(seen), [true, true, true]);
    assert_eq!(changes.pending(), None);
}

#[test]
fn what_a_device_model_says_of_changes_is_judged() {
    let (layout, lines) = memory(1, 0);
    let (server, mut poster) = attached(layout, &lines);
    let change = server.change_functions(&mut poster);
    #[rustfmt::skip]
    let cases = [
        // said,                  believed
        (0,                       false),
        (2,                       false), // there is none such
        (u64::from(u32::MAX),     false),
        (1 << 32 | 1,             false),
        (u64::MAX,                false),
        (1,                       true),
    ];
    for (said, believed) in cases {
        word(&lines, CONSUMER, 1).store(said, Ordering::Relaxed);
        assert_eq!(server.has_seen(change), believed, "{said:#x}");
    }
    // What it says EL2 to have said means nothing to EL2.
    word(&lines, PRODUCER, 1).store(7, Ordering::Relaxed);
    let next = server.change_functions(&mut poster);
    assert_eq!(next, change + 1);
    assert_eq!(word(&lines, PRODUCER, 1).load(Ordering::Relaxed), 2);
}

#[test]
fn a_device_model_that_is_gone_or_new_has_nothing_to_let_go_of() {
    let (layout, lines) = memory(1, 0);
    let (server, mut poster) = attached(layout, &lines);
    let before = server.change_functions(&mut poster);
    assert!(!server.has_seen(before));
    server.detach();
    assert!(server.has_seen(before));
    let meanwhile = server.change_functions(&mut poster);
    server.attach(&mut poster).unwrap();
    assert!(!server.has_work());
    assert!(server.has_seen(before) && server.has_seen(meanwhile));
    let mut changes = Client::new(&lines).unwrap().changes();
    assert_eq!(changes.pending(), None);
    let after = server.change_functions(&mut poster);
    assert!(!server.has_seen(after));
    changes.see(after);
    assert!(server.has_seen(after));
}

#[test]
fn an_answer_of_the_old_instance_is_stale_for_the_new_one() {
    let (layout, lines) = memory(1, 0);
    let (server, mut poster) = attached(layout, &lines);
    let old = server.publish(0, read(0)).unwrap();
    let mut client = Client::new(&lines).unwrap();
    let Some(Work::Request(ticket, _)) = client.work(Some(0)).next() else {
        panic!("no request");
    };
    server.detach();
    assert_eq!(server.take_answer(&old), Err(TakeError::Dropped));
    server.attach(&mut poster).unwrap();
    let new = server.publish(0, read(0)).unwrap();
    ticket.answer(7);
    let stale = ProtocolError::Stale {
        asked: 2,
        answered: 1,
    };
    assert_eq!(server.complete(0), Err(stale));
    assert_eq!(server.take_answer(&old), Err(TakeError::NotYet));
    assert_eq!(server.take_answer(&new), Err(TakeError::NotYet));
}

#[test]
fn requests_that_this_version_does_not_know_are_answered_with_ones() {
    let (layout, lines) = memory(1, 0);
    let (server, _) = attached(layout, &lines);
    let mut client = Client::new(&lines).unwrap();
    let pending = server.publish(0, read(0)).unwrap();
    word(&lines, SLOT0, 1).store(0x0000_0008_0000_0477, Ordering::Relaxed);
    let work = client.work(Some(0)).next();
    let Some(Work::Unknown(ticket)) = work else {
        panic!("{work:?}");
    };
    assert_eq!(format!("{ticket:?}"), "slot 0, generation 1");
    ticket.answer(!0);
    server.complete(0).unwrap();
    assert_eq!(server.take_answer(&pending), Ok(0xffff_ffff));
}

#[test]
fn a_posted_entry_that_is_no_write_is_passed_over() {
    let (layout, lines) = memory(0, 2);
    let (server, mut poster) = attached(layout, &lines);
    let mut client = Client::new(&lines).unwrap();
    server.post(&mut poster, &write(1, 1)).unwrap();
    server.post(&mut poster, &write(2, 2)).unwrap();
    word(&lines, SLOT0, 0).store(0, Ordering::Relaxed);
    let work: Vec<_> = client.work(None).collect();
    let [Work::Posted(second)] = work.as_slice() else {
        panic!("{work:?}");
    };
    assert_eq!(*second, write(2, 2));
}

#[test]
fn all_kinds_and_widths_go_over_unchanged() {
    let (layout, lines) = memory(1, 0);
    let (server, _) = attached(layout, &lines);
    let mut client = Client::new(&lines).unwrap();
    let kinds = [
        Kind::ConfigRead,
        Kind::ConfigWrite,
        Kind::MmioRead,
        Kind::MmioWrite,
        Kind::Reset,
    ];
    for kind in kinds {
        for width in [Width::One, Width::Two, Width::Four, Width::Eight] {
            let request = Request {
                kind,
                width,
                sbdf: Sbdf::from(0xffff_fff9),
                address: 0x1234_5678_9abc_def0,
                data: 0xfedc_ba98_7654_3210,
            };
            let pending = server.publish(0, request).unwrap();
            let Some(Work::Request(ticket, seen)) = client.work(Some(0)).next() else {
                panic!("{request:?}");
            };
            assert_eq!(seen, request);
            ticket.answer(!0);
            server.complete(0).unwrap();
            assert_eq!(server.take_answer(&pending), Ok(request.unanswered()));
        }
    }
    let pending = server
        .publish(0, Request::reset(Sbdf::from_rid(0, 8)))
        .unwrap();
    assert_eq!(requests(&mut client, 0), ["Reset 0x0"]);
    server.complete(0).unwrap();
    assert_eq!(server.take_answer(&pending), Ok(0));
}

#[test]
fn memory_that_does_not_fit_is_refused() {
    let (layout, lines) = memory(1, 2);
    for short in 0..lines.len() {
        let (server, client) = (
            Server::new(&lines[..short], layout).err(),
            Client::new(&lines[..short]).err(),
        );
        assert_eq!(server, Some(ServerError::TooSmall));
        assert_eq!(client, Some(ClientError::NoRing));
    }
    let (server, _) = attached(layout, &lines);
    assert_eq!(*server.layout(), layout);
    let short = Client::new(&lines[..lines.len() - 1]).err();
    assert_eq!(short, Some(ClientError::Malformed));
    word(&lines, 0, 1).store(2, Ordering::Relaxed);
    assert_eq!(Client::new(&lines).err(), Some(ClientError::Version(2)));
}

#[test]
fn each_protocol_error_has_its_status() {
    let stale = ProtocolError::Stale {
        asked: 2,
        answered: 1,
    };
    let cases = [
        (ProtocolError::NoSuchSlot(9), Status::NotFound),
        (ProtocolError::NothingAsked, Status::Protocol),
        (ProtocolError::NotAnswered(State::Free), Status::Protocol),
        (stale, Status::Protocol),
        (ProtocolError::UnknownState(3), Status::Protocol),
    ];
    for (error, status) in cases {
        assert_eq!(Status::from(error), status, "{error:?}");
    }
}
