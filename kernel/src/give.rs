//! Giving a function of the machine to a domain, by steps that are undone if one fails.
//!
//! ```text
//!   step      done                                       undone
//!   Slot      the guest's slot is kept, and empty        given up
//!   Claim     the function is the domain's to have       nobody's, or broken if its reset failed
//!   Reset     it is as at power-on, disabled
//!   Listen    what it sends is refused and counted:      refused
//!             it sends nothing, and none was lost
//!   Model     what the guest is to see of it, and tables forgotten
//!             for its BARs; what a reset keeps of the
//!             last owner's is zero
//!   Vectors   LPIs for its messages                      freed
//!   Attach    it reaches the domain's memory             refused
//!   Pin       its interrupt pin is wired up              taken off
//!   Show      it is on the domain's bus
//! ```
//!
//! The domain may reset or stop for good meanwhile. That is found out in the last step: a domain that is
//! gone has nothing shown to it, and all is undone.

use crate::steps::{Act, Advance, Sequence};
use core::time::Duration;
use pci::milliseconds_up;

/// How long a function is listened to.
const LISTEN: Duration = Duration::from_millis(10);
/// How often at most, if something was lost each time.
const LISTENS: u32 = 10;

/// What is done, in its order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The guest's slot is kept.
    Slot,
    /// The function is the domain's to have.
    Claim,
    /// It is reset.
    Reset,
    /// It sends nothing.
    Listen,
    /// What the guest is to see of it is made.
    Model,
    /// It has LPIs.
    Vectors,
    /// It reaches the domain's memory.
    Attach,
    /// Its interrupt pin is wired up.
    Pin,
    /// It is on the domain's bus.
    Show,
}

/// All steps.
pub const STEPS: &[Step] = &[
    Step::Slot,
    Step::Claim,
    Step::Reset,
    Step::Listen,
    Step::Model,
    Step::Vectors,
    Step::Attach,
    Step::Pin,
    Step::Show,
];

/// Why a function is not known to be quiet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Noise<E> {
    /// It is not.
    Heard(E),
    /// Some of what was sent was lost, by whomever: it can be listened to anew.
    Unsure(E),
}

/// What carries the steps out. One that fails leaves nothing, but for `listen` and `attach`: what these
/// leave, `detach` takes back.
pub trait Parts {
    /// Why one fails.
    type Error;

    /// Keeps the slot.
    fn keep_slot(&mut self) -> Result<(), Self::Error>;
    /// Gives the slot up.
    fn give_up_slot(&mut self);
    /// Claims the function, and says how it is to be reset.
    fn claim(&mut self) -> Result<(), Self::Error>;
    /// Says that the function is nobody's; `sound` unless it may not be as it should.
    fn release(&mut self, sound: bool);
    /// Resets the function, or goes on with that.
    fn reset(&mut self) -> Result<Advance, Self::Error>;
    /// Refuses what the function sends, and counts it.
    fn listen(&mut self) -> Result<(), Self::Error>;
    /// Returns what was refused since, or since this was last unsure, as an error if it was anything.
    fn heard(&mut self) -> Result<(), Noise<Self::Error>>;
    /// Lets the function reach nothing.
    fn detach(&mut self);
    /// Makes what the guest is to see.
    fn make_model(&mut self) -> Result<(), Self::Error>;
    /// Drops that.
    fn drop_model(&mut self);
    /// Gives it LPIs.
    fn allocate_vectors(&mut self) -> Result<(), Self::Error>;
    /// Takes them back.
    fn free_vectors(&mut self);
    /// Lets it reach the domain's memory.
    fn attach(&mut self) -> Result<(), Self::Error>;
    /// Wires its interrupt pin up.
    fn plug(&mut self) -> Result<(), Self::Error>;
    /// Takes that off.
    fn unplug(&mut self);
    /// Puts it on the domain's bus, if the domain is still there.
    fn show(&mut self) -> Result<(), Self::Error>;
}

/// A function on its way to a domain.
pub struct Give<P> {
    sequence: Sequence<Step>,
    state: State<P>,
}

struct State<P> {
    parts: P,
    /// Nothing has shown that it is not as it should be.
    sound: bool,
    /// Until when it is listened to.
    listening: Option<Duration>,
    /// How often it was, in vain.
    unsure: u32,
    now: Duration,
}

impl<P: Parts> Give<P> {
    /// Starts; nothing is done before the first call of [`Self::go_on`].
    pub fn new(parts: P) -> Self {
        Self {
            sequence: Sequence::new(STEPS),
            state: State {
                parts,
                sound: true,
                listening: None,
                unsure: 0,
                now: Duration::ZERO,
            },
        }
    }

    /// Returns what carries it out.
    pub fn parts(&self) -> &P {
        &self.state.parts
    }

    /// Goes on, `now` being the time since whatever it was at the first call.
    ///
    /// # Errors
    ///
    /// Whatever it is, everything is as it was before.
    pub fn go_on(&mut self, now: Duration) -> Result<Advance, P::Error> {
        self.state.now = now;
        self.sequence.go_on(&mut self.state)
    }
}

impl<P: Parts> Act<Step> for State<P> {
    type Error = P::Error;

    fn act(&mut self, step: Step) -> Result<Advance, P::Error> {
        let parts = &mut self.parts;
        match step {
            Step::Slot => parts.keep_slot()?,
            Step::Claim => parts.claim()?,
            Step::Reset => return parts.reset().inspect_err(|_| self.sound = false),
            Step::Listen => return self.listen(),
            Step::Model => parts.make_model()?,
            Step::Vectors => parts.allocate_vectors()?,
            Step::Attach => parts.attach()?,
            Step::Pin => parts.plug()?,
            Step::Show => parts.show()?,
        }
        Ok(Advance::Done)
    }

    fn undo(&mut self, step: Step) {
        let parts = &mut self.parts;
        match step {
            Step::Slot => parts.give_up_slot(),
            Step::Claim => parts.release(self.sound),
            Step::Listen | Step::Attach => parts.detach(),
            Step::Model => parts.drop_model(),
            Step::Vectors => parts.free_vectors(),
            Step::Pin => parts.unplug(),
            // It stays reset and disabled; and on the bus it is last of all.
            Step::Reset | Step::Show => {}
        }
    }
}

impl<P: Parts> State<P> {
    fn listen(&mut self) -> Result<Advance, P::Error> {
        let parts = &mut self.parts;
        let Some(until) = self.listening else {
            let listens = parts.listen();
            listens.inspect_err(|_| parts.detach())?;
            self.listening = Some(self.now.saturating_add(LISTEN));
            return Ok(Advance::Wait(milliseconds_up(LISTEN)));
        };
        let left = until.saturating_sub(self.now);
        if !left.is_zero() {
            return Ok(Advance::Wait(milliseconds_up(left)));
        }
        match parts.heard() {
            Ok(()) => Ok(Advance::Done),
            Err(Noise::Unsure(_)) if self.unsure + 1 < LISTENS => {
                self.unsure += 1;
                self.listening = Some(self.now.saturating_add(LISTEN));
                Ok(Advance::Wait(milliseconds_up(LISTEN)))
            }
            Err(Noise::Heard(error) | Noise::Unsure(error)) => {
                self.sound = false;
                parts.detach();
                Err(error)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whose the function is, and whether it may be given away again.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Owner {
        Nobody,
        Broken,
        OnItsWay,
        Domain,
    }

    /// What the SMMU does with what the function sends.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Stream {
        Refused,
        Heard,
        Translated,
    }

    /// What of the machine and the domain an assignment changes.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct Things {
        slot: bool,
        owner: Owner,
        stream: Stream,
        model: bool,
        vectors: u32,
        plugged: bool,
        shown: bool,
    }

    const NOTHING: Things = Things {
        slot: false,
        owner: Owner::Nobody,
        stream: Stream::Refused,
        model: false,
        vectors: 0,
        plugged: false,
        shown: false,
    };

    const ALL: Things = Things {
        slot: true,
        owner: Owner::Domain,
        stream: Stream::Translated,
        model: true,
        vectors: 3,
        plugged: true,
        shown: true,
    };

    /// Why it went wrong.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Why {
        /// The step itself.
        Failed(Step),
        /// Something was sent while it was listened to.
        Heard,
        /// That was lost whenever it was listened to.
        Unsure,
        /// The domain has stopped for good.
        Gone,
    }

    /// A function, a domain, and what is to go wrong.
    struct Fake {
        things: Things,
        fails: Option<Step>,
        /// What a failing `listen` and `attach` leave half done.
        noisy: bool,
        /// How often something is lost while it is listened to.
        losses: u32,
        gone: bool,
        /// How often the reset has to wait.
        waits: u32,
    }

    impl Fake {
        fn step(&self, step: Step) -> Result<(), Why> {
            match self.fails {
                Some(fails) if fails == step => Err(Why::Failed(step)),
                _ => Ok(()),
            }
        }
    }

    impl Parts for Fake {
        type Error = Why;

        fn keep_slot(&mut self) -> Result<(), Why> {
            assert_eq!(self.things, NOTHING);
            if self.gone {
                return Err(Why::Gone);
            }
            self.step(Step::Slot)?;
            self.things.slot = true;
            Ok(())
        }
        fn give_up_slot(&mut self) {
            assert!(core::mem::take(&mut self.things.slot));
        }
        fn claim(&mut self) -> Result<(), Why> {
            self.step(Step::Claim)?;
            self.things.owner = Owner::OnItsWay;
            Ok(())
        }
        fn release(&mut self, sound: bool) {
            assert_eq!(self.things.owner, Owner::OnItsWay);
            assert_eq!(self.things.stream, Stream::Refused, "it reaches something");
            self.things.owner = if sound { Owner::Nobody } else { Owner::Broken };
        }
        fn reset(&mut self) -> Result<Advance, Why> {
            assert_eq!(self.things.owner, Owner::OnItsWay);
            if let Some(left) = self.waits.checked_sub(1) {
                self.waits = left;
                return Ok(Advance::Wait(50));
            }
            self.step(Step::Reset)?;
            Ok(Advance::Done)
        }
        fn listen(&mut self) -> Result<(), Why> {
            assert_eq!(self.things.stream, Stream::Refused);
            // Of several streams the first may be done.
            self.things.stream = Stream::Heard;
            self.step(Step::Listen)
        }
        fn heard(&mut self) -> Result<(), Noise<Why>> {
            assert_eq!(self.things.stream, Stream::Heard);
            if self.noisy {
                return Err(Noise::Heard(Why::Heard));
            }
            let Some(left) = self.losses.checked_sub(1) else {
                return Ok(());
            };
            self.losses = left;
            Err(Noise::Unsure(Why::Unsure))
        }
        fn detach(&mut self) {
            self.things.stream = Stream::Refused;
        }
        fn make_model(&mut self) -> Result<(), Why> {
            self.step(Step::Model)?;
            self.things.model = true;
            Ok(())
        }
        fn drop_model(&mut self) {
            assert_eq!(self.things.vectors, 0, "LPIs are lost");
            assert!(core::mem::take(&mut self.things.model));
        }
        fn allocate_vectors(&mut self) -> Result<(), Why> {
            assert!(self.things.model);
            self.step(Step::Vectors)?;
            self.things.vectors = 3;
            Ok(())
        }
        fn free_vectors(&mut self) {
            assert_eq!(core::mem::take(&mut self.things.vectors), 3);
        }
        fn attach(&mut self) -> Result<(), Why> {
            assert_eq!(self.things.stream, Stream::Heard);
            self.things.stream = Stream::Translated;
            self.step(Step::Attach)
        }
        fn plug(&mut self) -> Result<(), Why> {
            self.step(Step::Pin)?;
            self.things.plugged = true;
            Ok(())
        }
        fn unplug(&mut self) {
            assert!(core::mem::take(&mut self.things.plugged));
        }
        fn show(&mut self) -> Result<(), Why> {
            let Things { owner, .. } = self.things;
            assert_eq!(
                self.things,
                Things {
                    owner,
                    shown: false,
                    ..ALL
                }
            );
            self.step(Step::Show)?;
            if self.gone {
                return Err(Why::Gone);
            }
            self.things.owner = Owner::Domain;
            self.things.shown = true;
            Ok(())
        }
    }

    fn fake() -> Fake {
        Fake {
            things: NOTHING,
            fails: None,
            noisy: false,
            losses: 0,
            gone: false,
            waits: 2,
        }
    }

    /// Carries an assignment on until it has ended, as soon as it says; `meanwhile` is told how many
    /// waits there were. Returns how it ended, how long it took, and what is there then.
    fn carry_on(fake: Fake, meanwhile: impl Fn(u32, &mut Fake)) -> (Result<(), Why>, u32, Things) {
        let mut give = Give::new(fake);
        let (mut now, mut waits) = (0, 0);
        loop {
            match give.go_on(Duration::from_millis(now.into())) {
                Ok(Advance::Wait(milliseconds)) => {
                    let things = give.parts().things;
                    assert!(things.slot && !things.shown && !things.model);
                    assert_ne!(things.stream, Stream::Translated);
                    now += milliseconds;
                    meanwhile(waits, &mut give.state.parts);
                    waits += 1;
                }
                end => return (end.map(|_| ()), now, give.parts().things),
            }
        }
    }

    #[test]
    fn in_the_end_everything_is_there() {
        assert_eq!(carry_on(fake(), |_, _| {}), (Ok(()), 110, ALL));
    }

    #[test]
    fn whichever_step_fails_everything_is_as_before() {
        for step in STEPS {
            let fails = Some(*step);
            let (end, _, things) = carry_on(Fake { fails, ..fake() }, |_, _| {});
            assert_eq!(end, Err(Why::Failed(*step)));
            let owner = match step {
                Step::Reset => Owner::Broken,
                _ => Owner::Nobody,
            };
            assert_eq!(things, Things { owner, ..NOTHING }, "{step:?}");
        }
    }

    #[test]
    fn what_sends_after_its_reset_goes_to_nobody() {
        let (end, time, things) = carry_on(
            Fake {
                noisy: true,
                ..fake()
            },
            |_, _| {},
        );
        assert_eq!((end, time), (Err(Why::Heard), 110));
        let owner = Owner::Broken;
        assert_eq!(things, Things { owner, ..NOTHING });
    }

    /// Others may fill the SMMU's queue, for a while.
    #[test]
    fn it_is_listened_to_anew_while_something_is_lost() {
        for (losses, end, time) in [
            (1, Ok(()), 120),
            (9, Ok(()), 200),
            (10, Err(Why::Unsure), 200),
            (u32::MAX, Err(Why::Unsure), 200),
        ] {
            let expected = match end {
                Ok(()) => ALL,
                Err(_) => Things {
                    owner: Owner::Broken,
                    ..NOTHING
                },
            };
            let fake = Fake { losses, ..fake() };
            assert_eq!(carry_on(fake, |_, _| {}), (end, time, expected), "{losses}");
        }
    }

    /// It stops for good before the assignment, or in any of its waits: those of the reset, and the one in
    /// which it is listened to.
    #[test]
    fn a_domain_that_stops_meanwhile_gets_nothing() {
        let at_once = Fake {
            gone: true,
            ..fake()
        };
        assert_eq!(carry_on(at_once, |_, _| {}), (Err(Why::Gone), 0, NOTHING));
        for when in 0..3 {
            let stops = |waits, fake: &mut Fake| fake.gone |= waits == when;
            assert_eq!(
                carry_on(fake(), stops),
                (Err(Why::Gone), 110, NOTHING),
                "{when}"
            );
        }
    }

    /// Whoever carries it on may come too early: it is listened to for as long as is due all the same.
    #[test]
    fn it_is_listened_to_for_its_whole_time() {
        let mut give = Give::new(Fake { waits: 0, ..fake() });
        for (now, left) in [(100_000, 10), (100_000, 10), (109_000, 1), (109_999, 1)] {
            give.state.parts.noisy = true;
            let end = give.go_on(Duration::from_micros(now));
            assert_eq!(end, Ok(Advance::Wait(left)), "{now}");
        }
        give.state.parts.noisy = false;
        assert_eq!(
            give.go_on(Duration::from_micros(110_000)),
            Ok(Advance::Done)
        );
        assert_eq!(give.parts().things, ALL);
    }
}
