//! What is done in steps, and undone if one fails.
//!
//! The steps are a list, in their order. Each one either is done, has to wait, or fails; a step that
//! fails leaves nothing of itself behind, and those before it are undone, the last one first. So at any
//! time either everything up to a step is there, or nothing.

/// How far a step has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Advance {
    /// It is done.
    Done,
    /// It goes on after this many milliseconds.
    Wait(u32),
}

/// Carries steps out.
pub trait Act<S> {
    /// Why a step fails.
    type Error;

    /// Begins a step, or goes on with it after it had to wait.
    ///
    /// # Errors
    ///
    /// Whatever it is, nothing of this step is left.
    fn act(&mut self, step: S) -> Result<Advance, Self::Error>;

    /// Takes back what a step did that was done.
    fn undo(&mut self, step: S);
}

/// A list of steps that is being worked through.
#[derive(Debug)]
pub struct Sequence<S: 'static> {
    steps: &'static [S],
    done: usize,
}

impl<S: Copy> Sequence<S> {
    /// Starts with the first of `steps`.
    pub const fn new(steps: &'static [S]) -> Self {
        Self { steps, done: 0 }
    }

    /// Goes on until all is done, a step has to wait, or one fails: then everything is undone.
    pub fn go_on<A: Act<S>>(&mut self, actor: &mut A) -> Result<Advance, A::Error> {
        while let Some(step) = self.steps.get(self.done) {
            match actor.act(*step) {
                Ok(Advance::Done) => self.done += 1,
                Ok(wait) => return Ok(wait),
                Err(error) => {
                    self.undo(actor);
                    return Err(error);
                }
            }
        }
        Ok(Advance::Done)
    }

    fn undo(&mut self, actor: &mut impl Act<S>) {
        let done = self.steps.get(..self.done).unwrap_or_default();
        for step in done.iter().rev() {
            actor.undo(*step);
        }
        self.done = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEPS: &[char] = &['a', 'b', 'c', 'd'];

    /// Notes what it is told; one step fails, after it has waited some times.
    struct Actor {
        fails: Option<char>,
        waits: u32,
        there: Vec<char>,
        log: String,
    }

    impl Act<char> for Actor {
        type Error = char;

        fn act(&mut self, step: char) -> Result<Advance, char> {
            if step == 'c' && self.waits > 0 {
                self.waits -= 1;
                self.log.push('.');
                return Ok(Advance::Wait(self.waits));
            }
            self.log.push(step);
            if self.fails == Some(step) {
                return Err(step);
            }
            self.there.push(step);
            Ok(Advance::Done)
        }

        fn undo(&mut self, step: char) {
            assert_eq!(self.there.pop(), Some(step), "the last one first");
            self.log.push(step.to_ascii_uppercase());
        }
    }

    #[test]
    #[rustfmt::skip]
    fn whatever_fails_nothing_is_left() {
        let cases = [
            // fails,   waits, what is done
            (None,      0,     "abcd"),
            (None,      3,     "ab...cd"),
            (Some('a'), 2,     "a"),
            (Some('b'), 2,     "abA"),
            (Some('c'), 0,     "abcBA"),
            (Some('c'), 2,     "ab..cBA"),
            (Some('d'), 1,     "ab.cdCBA"),
        ];
        for (fails, waits, log) in cases {
            let mut actor = Actor { fails, waits, there: Vec::new(), log: String::new() };
            let mut sequence = Sequence::new(STEPS);
            let end = loop {
                match sequence.go_on(&mut actor) {
                    Ok(Advance::Wait(_)) => {}
                    end => break end,
                }
            };
            assert_eq!(end.err(), fails);
            assert_eq!(actor.log, log);
            assert_eq!(actor.there.len(), if fails.is_some() { 0 } else { STEPS.len() });
        }
    }
}
