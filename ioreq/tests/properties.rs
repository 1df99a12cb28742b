//! Both ends of a ring in random order: against a simple model, and with a hostile device model.
#![cfg(not(loom))]

mod common;

use common::{attached, memory, read, write};
use ioreq::{
    AttachError, Client, Pending, PostError, PublishError, ServerWork, State, TakeError, Ticket,
    Work,
};
use proptest::prelude::*;
use std::collections::{BTreeSet, VecDeque};
use std::sync::atomic::Ordering;

const SLOTS: u32 = 3;
const POSTED: u32 = 4;
const LENGTH: usize = if cfg!(miri) { 40 } else { 150 };

/// How often to try: once under Miri, which is slow.
fn config() -> ProptestConfig {
    ProptestConfig {
        cases: if cfg!(miri) { 1 } else { 128 },
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

/// A step of a vCPU, of the device model, or of the kernel.
#[derive(Clone, Debug)]
enum Step {
    Publish(u32),
    Post,
    Take(u32),
    /// The device model looks into a slot, or at the posted ring alone.
    Look(Option<u32>),
    Answer(u32, u64),
    Complete(u32),
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let slot = || 0..SLOTS;
    prop_oneof![
        4 => slot().prop_map(Step::Publish),
        6 => Just(Step::Post),
        4 => slot().prop_map(Step::Take),
        4 => prop::option::weighted(0.7, slot()).prop_map(Step::Look),
        4 => (slot(), any::<u64>()).prop_map(|(slot, data)| Step::Answer(slot, data)),
        4 => slot().prop_map(Step::Complete),
        1 => Just(Step::Restart),
    ]
}

/// How far a slot is, in the model.
#[derive(Default)]
struct Slot<'a> {
    pending: Option<Pending>,
    /// Writes that had been posted before the request.
    before: u64,
    ticket: Option<Ticket<'a>>,
    answered: Option<u64>,
    complete: bool,
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn both_ends_agree_with_a_simple_model(steps in prop::collection::vec(step(), 1..LENGTH)) {
        let (layout, lines) = memory(SLOTS, POSTED);
        let (server, mut poster) = attached(layout, &lines);
        let mut client = Client::new(&lines).unwrap();
        let mut slots: [Slot<'_>; SLOTS as usize] = Default::default();
        let mut queue = VecDeque::new();
        let (mut posted, mut asked) = (0, 0);
        let mut untold = BTreeSet::new();

        for step in steps {
            match step {
                Step::Publish(number) => {
                    let slot = &mut slots[number as usize];
                    asked += 1;
                    match server.publish(number, read(asked)) {
                        Ok(pending) => {
                            prop_assert!(slot.pending.is_none());
                            *slot = Slot { pending: Some(pending), before: posted, ..Slot::default() };
                            untold.insert(number + 1);
                        }
                        Err(error) => {
                            prop_assert_eq!(error, PublishError::Outstanding);
                            prop_assert!(slot.pending.is_some());
                        }
                    }
                }
                Step::Post => match server.post(&mut poster, &write(posted, posted)) {
                    Ok(()) => {
                        queue.push_back(posted);
                        posted += 1;
                        untold.insert(0);
                        prop_assert!(queue.len() <= POSTED as usize);
                    }
                    Err(error) => {
                        prop_assert_eq!(error, PostError::Full);
                        prop_assert_eq!(queue.len(), POSTED as usize);
                    }
                },
                Step::Look(number) => {
                    // What is outstanding and not answered is seen, after all that came before it.
                    let visible = number.filter(|&number| {
                        let slot = &slots[number as usize];
                        slot.pending.is_some() && slot.answered.is_none()
                    });
                    let limit = visible.map_or(posted, |number| slots[number as usize].before);
                    let mut found = None;
                    for work in client.work(number) {
                        prop_assert!(found.is_none(), "the request is the last");
                        match work {
                            Work::Posted(seen) => {
                                let expected = queue.pop_front();
                                prop_assert_eq!(Some(seen.address), expected);
                                prop_assert!(seen.address < limit);
                            }
                            Work::Request(ticket, request) => found = Some((ticket, request)),
                            Work::Unknown(ticket) => panic!("{ticket:?}"),
                        }
                    }
                    prop_assert!(queue.front().is_none_or(|&next| next >= limit));
                    prop_assert_eq!(found.is_some(), visible.is_some());
                    if let (Some(number), Some((ticket, request))) = (visible, found) {
                        let slot = &mut slots[number as usize];
                        prop_assert_eq!(ticket.slot(), number);
                        prop_assert_eq!(Some(&request), slot.pending.as_ref().map(Pending::request));
                        slot.ticket = Some(ticket);
                    }
                }
                Step::Answer(number, data) => {
                    let slot = &mut slots[number as usize];
                    if let Some(ticket) = slot.ticket.take() {
                        ticket.answer(data);
                        slot.answered = Some(data);
                    }
                }
                Step::Complete(number) => {
                    let slot = &mut slots[number as usize];
                    let due = slot.pending.is_some() && slot.answered.is_some() && !slot.complete;
                    prop_assert_eq!(server.complete(number).is_ok(), due);
                    slot.complete |= due;
                }
                Step::Take(number) => {
                    let slot = &mut slots[number as usize];
                    let Some(pending) = &slot.pending else { continue };
                    let expected = slot.answered.filter(|_| slot.complete);
                    let expected = expected.map(|data| data & 0xffff_ffff).ok_or(TakeError::NotYet);
                    prop_assert_eq!(server.take_answer(pending), expected);
                    if expected.is_ok() {
                        *slot = Slot::default();
                    }
                }
                Step::Restart => {
                    server.detach();
                    for number in server.outstanding().collect::<Vec<_>>() {
                        let error = server.attach(&mut poster);
                        prop_assert_eq!(error, Err(AttachError::Outstanding(number)));
                        let slot = &mut slots[number as usize];
                        let pending = slot.pending.take().unwrap();
                        prop_assert_eq!(server.take_answer(&pending), Err(TakeError::Dropped));
                        prop_assert!(!slot.complete);
                        *slot = Slot::default();
                    }
                    prop_assert_eq!(server.attach(&mut poster), Ok(()));
                    client = Client::new(&lines).unwrap();
                    queue.clear();
                    untold.clear();
                }
            }
        }
        // Each piece of work was announced, and once.
        let told: Vec<u32> = std::iter::from_fn(|| server.next_work())
            .map(|work| match work {
                ServerWork::Posted => 0,
                ServerWork::Slot(slot) => slot + 1,
            })
            .collect();
        prop_assert_eq!(told, Vec::from_iter(untold));
    }
}

/// What a hostile device model does: it writes any word of the ring, and completes any slot.
#[derive(Clone, Debug)]
enum Attack {
    Write {
        line: usize,
        word: usize,
        value: u64,
    },
    /// It marks a slot with a state and the right or nearly right generation.
    Mark {
        slot: u32,
        state: u32,
        off_by: u64,
    },
    Complete(u32),
    /// The target goes on meanwhile.
    Publish(u32),
    Post,
    Take(u32),
}

fn attack(lines: usize) -> impl Strategy<Value = Attack> {
    let value = || prop_oneof![any::<u64>(), 0..8u64, (0..8u64).prop_map(|n| n << 32 | 2)];
    let slot = || 0..SLOTS + 1;
    prop_oneof![
        4 => (0..lines, 0..8usize, value())
            .prop_map(|(line, word, value)| Attack::Write { line, word, value }),
        4 => (0..SLOTS, 0..4u32, prop_oneof![4 => Just(0u64), 1 => any::<u64>()])
            .prop_map(|(slot, state, off_by)| Attack::Mark { slot, state, off_by }),
        4 => slot().prop_map(Attack::Complete),
        3 => slot().prop_map(Attack::Publish),
        3 => Just(Attack::Post),
        3 => slot().prop_map(Attack::Take),
    ]
}

proptest! {
    #![proptest_config(config())]

    /// The vCPUs get what the slot held when it was completed, and nothing else: no request is lost,
    /// none is answered twice, and the honest vCPU in the last slot is served all the while.
    #[test]
    fn a_hostile_device_model_hurts_nobody_but_its_own_requests(
        attacks in prop::collection::vec(attack(3 + SLOTS as usize + POSTED as usize / 2), 1..LENGTH),
    ) {
        let (layout, lines) = memory(SLOTS, POSTED);
        let (server, mut poster) = attached(layout, &lines);
        let shared = |slot: u32, word: usize| &lines[3 + slot as usize].words()[word];
        let mut pending: [Option<(Pending, Option<u64>)>; SLOTS as usize] = Default::default();
        let mut generations = [0u64; SLOTS as usize];

        for attack in attacks {
            match attack {
                Attack::Write { line, word, value } => {
                    lines[line].words()[word].store(value, Ordering::Relaxed);
                }
                Attack::Mark { slot, state, off_by } => {
                    let generation = generations[slot as usize].wrapping_add(off_by) << 32;
                    shared(slot, 0).store(generation | u64::from(state), Ordering::Relaxed);
                }
                Attack::Publish(number) => {
                    let result = server.publish(number, read(0));
                    let Some(slot) = pending.get_mut(number as usize) else {
                        prop_assert_eq!(result.err(), Some(PublishError::NoSuchSlot));
                        continue;
                    };
                    // Whatever the slot looks like: only EL2's own record counts.
                    prop_assert_eq!(result.is_ok(), slot.is_none());
                    if let Ok(sent) = result {
                        *slot = Some((sent, None));
                        generations[number as usize] += 1;
                        let tag = generations[number as usize] << 32 | State::Requested as u64;
                        prop_assert_eq!(shared(number, 0).load(Ordering::Relaxed), tag);
                    }
                }
                Attack::Post => {
                    // It may fail, and then the write goes as a request; it must not panic or block.
                    let _ = server.post(&mut poster, &write(0, 0));
                }
                Attack::Complete(number) => {
                    let Some(slot) = pending.get_mut(number as usize) else {
                        prop_assert!(server.complete(number).is_err());
                        continue;
                    };
                    let tag = generations[number as usize] << 32 | State::Answered as u64;
                    let marked = shared(number, 0).load(Ordering::Relaxed) == tag;
                    let data = shared(number, 3).load(Ordering::Relaxed);
                    let waiting = slot.as_mut().filter(|(_, answer)| answer.is_none());
                    let due = marked && waiting.is_some();
                    prop_assert_eq!(server.complete(number).is_ok(), due);
                    if let Some((_, answer)) = waiting.filter(|_| due) {
                        *answer = Some(data & 0xffff_ffff);
                    }
                }
                Attack::Take(number) => {
                    let Some(slot) = pending.get_mut(number as usize) else { continue };
                    let Some((sent, answer)) = slot else { continue };
                    let expected = answer.ok_or(TakeError::NotYet);
                    prop_assert_eq!(server.take_answer(sent), expected);
                    if expected.is_ok() {
                        *slot = None;
                    }
                }
            }
        }
        // The device model is killed; every vCPU goes on, and a new instance serves them.
        server.detach();
        for (sent, answer) in pending.iter().flatten() {
            let expected = answer.ok_or(TakeError::Dropped);
            prop_assert_eq!(server.take_answer(sent), expected);
        }
        prop_assert_eq!(server.attach(&mut poster), Ok(()));
        let mut client = Client::new(&lines).unwrap();
        server.post(&mut poster, &write(1, 1)).unwrap();
        for number in 0..SLOTS {
            let sent = server.publish(number, read(5)).unwrap();
            for work in client.work(Some(number)) {
                if let Work::Request(ticket, _) = work {
                    ticket.answer(6);
                }
            }
            prop_assert_eq!(server.complete(number), Ok(()));
            prop_assert_eq!(server.take_answer(&sent), Ok(6));
        }
    }

    /// A client on a garbled ring may see nonsense, but neither panics nor goes on for ever.
    #[test]
    fn a_client_survives_any_memory(
        words in prop::collection::vec(any::<u64>(), 0..80),
        slots in 0..4u32,
        posted in prop_oneof![Just(0u32), Just(1), Just(2), Just(4)],
        slot in prop::option::of(0..5u32),
    ) {
        let (layout, lines) = memory(slots, posted);
        let (_server, _) = attached(layout, &lines);
        let client = Client::new(&lines);
        prop_assert!(client.is_ok());
        let all = lines.iter().skip(1).flat_map(|line| line.words());
        for (word, value) in all.zip(&words) {
            word.store(*value, Ordering::Relaxed);
        }
        let count = client.unwrap().work(slot).count();
        prop_assert!(count <= posted as usize + 1);
        let header = lines.iter().flat_map(|line| line.words());
        for (word, value) in header.zip(&words) {
            word.store(*value, Ordering::Relaxed);
        }
        prop_assert_eq!(Client::new(&lines).is_ok(), words.is_empty());
    }
}
