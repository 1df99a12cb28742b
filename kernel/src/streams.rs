//! Who is behind an SMMU, by StreamID, and how often each is refused.
//!
//! ```text
//!   StreamID --> address space of a domain   a list for each SMMU, since StreamIDs are its own
//!            --> functions                   one, as a rule; more behind a bridge that hides them
//!            --> faults in this second       shown, counted, and a storm if there are too many
//! ```
//!
//! The SMMU knows streams, not functions. So a stream is attached for the first function that has it,
//! and detached with the last. A machine has a [`Guard`] for each of its SMMUs; a function may be behind
//! several, one for each of its requester IDs.

use alloc::string::String;
use alloc::vec::Vec;
use arch::address::Ipa;
use arch::dma::Coherency;
use arch::smmu::{AddressSpace, Error, Format};
use vpci::Sbdf;

/// Events of one stream that are shown, in a second.
pub const SHOWN: u32 = 4;

/// Why a function does not get a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JoinError {
    /// Another address space has it.
    Taken,
    /// There is no memory to note it.
    OutOfMemory,
}

/// What a function finds when it joins a stream, or leaves behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Others {
    /// Nobody else has the stream.
    None,
    /// Others have it too.
    Some,
}

/// A function that has a stream.
#[derive(Debug)]
struct Function {
    sbdf: Sbdf,
    /// Faults in a second that are still no storm.
    allowed: u32,
}

/// A stream that somebody has.
#[derive(Debug)]
struct Stream {
    id: u32,
    /// The VMID, or the ASID, of its address space.
    space: u16,
    domain: String,
    functions: Vec<Function>,
    /// Faults since the first function joined.
    faults: u64,
    second: Second,
    /// It is refused, after a storm.
    cut: bool,
    /// It is refused with a fault each time, since nobody uses it yet.
    listening: bool,
    /// Faults were lost since, maybe of this stream.
    lost: bool,
}

/// What there was of a function, or a stream, while it was listened to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Heard {
    /// Faults of it.
    pub faults: u64,
    /// There may have been more, which were lost.
    pub lost: bool,
}

/// Something that happens again and again, counted by the second.
#[derive(Clone, Copy, Debug, Default)]
pub struct Second {
    since: u64,
    count: u32,
}

/// How often it happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Count {
    /// In this second.
    pub now: u32,
    /// In the last one that it happened in, if this one has just begun.
    pub before: Option<u32>,
}

impl Second {
    /// Counts one at `now`, on a clock of which `frequency` ticks are a second.
    pub fn count(&mut self, now: u64, frequency: u64) -> Count {
        let over = self.count == 0 || now.wrapping_sub(self.since) >= frequency;
        let before = (over && self.count > 0).then_some(self.count);
        if over {
            *self = Self {
                since: now,
                count: 0,
            };
        }
        self.count = self.count.saturating_add(1);
        Count {
            now: self.count,
            before,
        }
    }
}

/// What is to be done about a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault<'s> {
    /// Whose it is.
    pub domain: &'s str,
    /// The first of the functions that have the stream.
    pub function: Sbdf,
    /// Which fault of the stream it is.
    pub number: u64,
    /// It is to be shown.
    pub shown: bool,
    /// Faults of an earlier second that were not.
    pub hidden: u32,
    /// There are more in this second than this many, which are allowed.
    pub storm: Option<u32>,
}

/// The streams behind one SMMU.
#[derive(Debug, Default)]
pub struct Streams {
    /// Ascending by StreamID.
    streams: Vec<Stream>,
}

impl Streams {
    /// Returns a list of none.
    pub const fn new() -> Self {
        Self {
            streams: Vec::new(),
        }
    }

    fn find(&self, id: u32) -> Result<usize, usize> {
        self.streams.binary_search_by_key(&id, |stream| stream.id)
    }

    fn get(&self, id: u32) -> Option<&Stream> {
        self.streams.get(self.find(id).ok()?)
    }

    fn get_mut(&mut self, id: u32) -> Option<&mut Stream> {
        let at = self.find(id).ok()?;
        self.streams.get_mut(at)
    }

    /// Returns the name of the domain that has a stream; nothing if none has.
    pub fn domain(&self, id: u32) -> &str {
        self.get(id).map_or("", |stream| &stream.domain)
    }

    /// Notes that a function has a stream, which goes through an address space of a domain. Returns
    /// whether others have it too, and so it is attached already.
    pub fn join(
        &mut self,
        id: u32,
        space: u16,
        domain: &str,
        function: Sbdf,
        allowed: u32,
    ) -> Result<Others, JoinError> {
        let function = Function {
            sbdf: function,
            allowed,
        };
        let at = match self.find(id) {
            Ok(at) => at,
            Err(at) => {
                let stream = Stream::new(id, space, domain).ok_or(JoinError::OutOfMemory)?;
                self.streams
                    .try_reserve(1)
                    .map_err(|_| JoinError::OutOfMemory)?;
                self.streams.insert(at, stream);
                at
            }
        };
        let Some(stream) = self.streams.get_mut(at) else {
            return Err(JoinError::OutOfMemory);
        };
        if stream.space != space {
            return Err(JoinError::Taken);
        }
        if stream.functions.iter().any(|f| f.sbdf == function.sbdf) {
            // It has the stream by two requester IDs.
            return Ok(Others::Some);
        }
        let others = match stream.functions.is_empty() {
            true => Others::None,
            false => Others::Some,
        };
        // Of a stream that is new, the room was made with it.
        stream
            .functions
            .try_reserve(1)
            .map_err(|_| JoinError::OutOfMemory)?;
        stream.functions.push(function);
        Ok(others)
    }

    /// Returns whether others have a stream that a function has; `None` if it has not.
    pub fn others(&self, id: u32, function: Sbdf) -> Option<Others> {
        let functions = &self.get(id)?.functions;
        let own = |other: &Function| other.sbdf == function;
        functions.iter().find(|other| own(other))?;
        match functions.iter().all(own) {
            true => Some(Others::None),
            false => Some(Others::Some),
        }
    }

    /// Forgets that a function has a stream. For the last one the stream has been detached.
    pub fn leave(&mut self, id: u32, function: Sbdf) {
        let Ok(at) = self.find(id) else { return };
        if let Some(stream) = self.streams.get_mut(at) {
            stream.functions.retain(|other| other.sbdf != function);
            if stream.functions.is_empty() {
                self.streams.remove(at);
            }
        }
    }

    /// Returns whether a stream goes through an address space: else the SMMU holds nothing of it.
    pub fn holds(&self, space: u16) -> bool {
        self.streams.iter().any(|stream| stream.space == space)
    }

    /// Counts a fault of a stream; `None` if nobody has it.
    pub fn fault(&mut self, id: u32, now: u64, frequency: u64) -> Option<Fault<'_>> {
        let stream = self.get_mut(id)?;
        stream.faults = stream.faults.saturating_add(1);
        let count = stream.second.count(now, frequency);
        let allowed = stream.functions.iter().map(|function| function.allowed);
        let allowed = allowed.min().unwrap_or(0);
        Some(Fault {
            domain: &stream.domain,
            function: stream.functions.first()?.sbdf,
            number: stream.faults,
            shown: count.now <= SHOWN && !stream.cut,
            hidden: count.before.unwrap_or(0).saturating_sub(SHOWN),
            storm: (count.now > allowed && !stream.cut).then_some(allowed),
        })
    }

    /// Returns what there was of a stream while it was only listened to. What was lost before this does not
    /// count the next time.
    fn heard(&mut self, id: u32) -> Heard {
        let listening = self.get_mut(id).filter(|stream| stream.listening);
        listening.map_or_else(Heard::default, |stream| Heard {
            faults: stream.faults,
            lost: core::mem::take(&mut stream.lost),
        })
    }

    /// Notes that faults were lost, of whichever streams: none that is listened to is known to be quiet.
    fn lose(&mut self) {
        for stream in &mut self.streams {
            stream.lost = stream.listening;
        }
    }

    /// Notes that a stream is listened to, or no longer; its faults count anew.
    fn set_listening(&mut self, id: u32, listening: bool) {
        if let Some(stream) = self.get_mut(id) {
            stream.listening = listening;
            stream.lost = false;
            stream.faults = 0;
            stream.second = Second::default();
        }
    }

    /// Notes that a stream is refused after a storm; faults that are still on their way are none.
    pub fn cut(&mut self, id: u32) {
        if let Some(stream) = self.get_mut(id) {
            stream.cut = true;
        }
    }

    /// Notes that a stream is translated again, and counts its faults anew.
    pub fn restore(&mut self, id: u32) {
        if let Some(stream) = self.get_mut(id) {
            stream.cut = false;
            stream.second = Second::default();
        }
    }
}

impl Stream {
    /// Returns a stream that nobody has yet, with room for one; `None` if there is no memory.
    fn new(id: u32, space: u16, domain: &str) -> Option<Self> {
        let (mut name, mut functions) = (String::new(), Vec::new());
        name.try_reserve_exact(domain.len()).ok()?;
        name.push_str(domain);
        functions.try_reserve(1).ok()?;
        Some(Self {
            id,
            space,
            domain: name,
            functions,
            faults: 0,
            second: Second::default(),
            cut: false,
            listening: false,
            lost: false,
        })
    }
}

/// What an SMMU does (`arch::smmu::Smmu`).
pub trait Translation {
    /// Returns what tables an address space must have.
    fn format(&self) -> Format;
    /// Refuses a stream's accesses with a fault each time. `detach` ends that.
    fn listen(&mut self, stream: u32) -> Result<(), Error>;
    /// Translates a stream's accesses from now on.
    fn attach(&mut self, stream: u32, space: &AddressSpace) -> Result<(), Error>;
    /// Refuses a stream's accesses from now on; none is under way any more.
    fn detach(&mut self, stream: u32) -> Result<(), Error>;
    /// Refuses a stream's accesses until `resume`, without events.
    fn refuse(&mut self, stream: u32) -> Result<(), Error>;
    /// Translates them again.
    fn resume(&mut self, stream: u32) -> Result<(), Error>;
    /// Forgets what is cached of a range of an address space.
    fn invalidate(&mut self, id: u16, at: Ipa, len: u64) -> Result<(), Error>;
    /// Forgets what is cached of an address space.
    fn invalidate_all(&mut self, id: u16) -> Result<(), Error>;
    /// Turns it off for good: nothing passes.
    fn turn_off(&mut self) -> Result<(), Error>;
    /// Returns whether that was done.
    fn is_off(&self) -> bool;
}

/// One SMMU, and who is behind it.
///
/// What a method here could not have the SMMU do is an error, and whoever called it has to turn the
/// SMMU off: until then somebody's memory may be reached by a function that should not.
#[derive(Debug)]
pub struct Guard<T> {
    /// The SMMU.
    pub smmu: T,
    streams: Streams,
}

/// A function as one that has a stream.
#[derive(Clone, Copy, Debug)]
pub struct Holder<'d> {
    /// Which it is.
    pub function: Sbdf,
    /// The domain that has it.
    pub domain: &'d str,
    /// Faults in a second that are no storm.
    pub allowed: u32,
}

impl<T: Translation> Guard<T> {
    /// Returns an SMMU that refuses every stream.
    pub const fn new(smmu: T) -> Self {
        Self {
            smmu,
            streams: Streams::new(),
        }
    }

    /// Returns who has which stream.
    pub const fn streams(&self) -> &Streams {
        &self.streams
    }

    /// Counts a fault of a stream; `None` if nobody has it.
    pub fn fault(&mut self, stream: u32, now: u64, frequency: u64) -> Option<Fault<'_>> {
        self.streams.fault(stream, now, frequency)
    }

    /// Notes that the SMMU lost faults, of whichever streams.
    pub fn lose(&mut self) {
        self.streams.lose();
    }

    /// Returns what a stream has tried since `listen`, if nobody uses it. What was lost before this does not
    /// count the next time.
    pub fn heard(&mut self, stream: u32) -> Heard {
        self.streams.heard(stream)
    }

    /// Has a function be heard that is to get a stream: what it tries is refused, and counted. A stream that
    /// others use stays as it is. If this is an error, `detach` undoes what there is to be undone.
    pub fn listen(&mut self, stream: u32, space: u16, holder: Holder<'_>) -> Result<(), Error> {
        if self.smmu.is_off() {
            return Err(Error::Off);
        }
        if self.join(stream, space, holder)? == Others::None {
            self.smmu.listen(stream)?;
            self.streams.set_listening(stream, true);
        }
        Ok(())
    }

    fn join(&mut self, stream: u32, space: u16, holder: Holder<'_>) -> Result<Others, Error> {
        let Holder {
            function,
            domain,
            allowed,
        } = holder;
        let joined = self.streams.join(stream, space, domain, function, allowed);
        joined.map_err(|error| match error {
            JoinError::Taken => Error::Attached(stream),
            JoinError::OutOfMemory => Error::OutOfMemory,
        })
    }

    /// Lets a function, which has been reset, reach an address space through a stream. If that is refused
    /// after a storm of others, it is translated again: they master the bus no more until their own reset.
    /// If this is an error, `detach` undoes what there is to be undone.
    pub fn attach(
        &mut self,
        stream: u32,
        space: &AddressSpace,
        holder: Holder<'_>,
    ) -> Result<(), Error> {
        if self.smmu.is_off() {
            return Err(Error::Off);
        }
        let others = self.join(stream, space.id, holder)?;
        let is = |what: fn(&Stream) -> bool| self.streams.get(stream).is_some_and(what);
        let (listening, cut) = (is(|s| s.listening), is(|s| s.cut));
        if listening {
            self.smmu.detach(stream)?;
            self.smmu.attach(stream, space)?;
            self.streams.set_listening(stream, false);
        } else if others == Others::None {
            self.smmu.attach(stream, space)?;
        } else if cut {
            self.restore(stream, holder.function)?;
        }
        Ok(())
    }

    /// Takes a stream from a function. While others have it too it stays attached, and it is for the
    /// function not to use it. After an error the function still has it.
    pub fn detach(&mut self, stream: u32, function: Sbdf) -> Result<(), Error> {
        if self.streams.others(stream, function) == Some(Others::None) {
            self.smmu.detach(stream)?;
        }
        self.streams.leave(stream, function);
        Ok(())
    }

    /// Forgets a range of an address space, if there is anything of it here.
    pub fn invalidate(&mut self, id: u16, at: Ipa, len: u64) -> Result<(), Error> {
        match self.streams.holds(id) {
            true => self.smmu.invalidate(id, at, len),
            false => Ok(()),
        }
    }

    /// Forgets an address space, if there is anything of it here.
    pub fn invalidate_all(&mut self, id: u16) -> Result<(), Error> {
        match self.streams.holds(id) {
            true => self.smmu.invalidate_all(id),
            false => Ok(()),
        }
    }

    /// Refuses a stream, if the function has it, and has its faults be no more storms.
    pub fn cut(&mut self, stream: u32, function: Sbdf) -> Result<(), Error> {
        if self.streams.others(stream, function).is_none() {
            return Ok(());
        }
        self.streams.cut(stream);
        self.smmu.refuse(stream)
    }

    /// Translates a stream again, if the function has it, and counts its faults anew.
    pub fn restore(&mut self, stream: u32, function: Sbdf) -> Result<(), Error> {
        if self.streams.others(stream, function).is_none() {
            return Ok(());
        }
        self.smmu.resume(stream)?;
        self.streams.restore(stream);
        Ok(())
    }
}

/// Which trees a domain's devices need, so that it does not matter behind which of a machine's SMMUs
/// they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trees {
    /// One in the format of stage 1.
    pub stage1: bool,
    /// One in the format of stage 2.
    pub stage2: bool,
    /// Whether all of the SMMUs snoop. What one of them does not see in the caches is written back
    /// for all: a tree for each would cost more.
    pub coherency: Coherency,
}

impl Trees {
    /// Returns what `smmus` need.
    pub fn of(smmus: impl IntoIterator<Item = (Format, Coherency)>) -> Self {
        let mut trees = Self {
            stage1: false,
            stage2: false,
            coherency: Coherency::Coherent,
        };
        for (format, coherency) in smmus {
            trees.stage1 |= format == Format::Stage1;
            trees.stage2 |= format == Format::Stage2;
            if coherency == Coherency::Software {
                trees.coherency = coherency;
            }
        }
        trees
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arch::address::Pa;
    use proptest::prelude::*;
    use std::collections::{BTreeMap, BTreeSet};

    fn function(n: u16) -> Sbdf {
        Sbdf::from_rid(0, n)
    }

    #[test]
    fn a_stream_lasts_from_the_first_function_to_the_last() {
        let mut streams = Streams::new();
        let (one, other) = (function(8), function(16));
        assert_eq!(streams.join(0x20, 7, "a", one, 9), Ok(Others::None));
        // By its own requester ID and by its bridge's.
        assert_eq!(streams.join(0x20, 7, "a", one, 9), Ok(Others::Some));
        assert_eq!(streams.others(0x20, one), Some(Others::None));
        assert_eq!(streams.join(0x20, 7, "a", other, 9), Ok(Others::Some));
        assert_eq!(
            streams.join(0x20, 8, "b", function(24), 9),
            Err(JoinError::Taken)
        );
        assert_eq!(streams.others(0x20, one), Some(Others::Some));
        assert!(streams.holds(7) && !streams.holds(8));
        streams.leave(0x20, one);
        assert_eq!(streams.others(0x20, one), None);
        assert_eq!(streams.others(0x20, other), Some(Others::None));
        streams.leave(0x20, other);
        assert!(!streams.holds(7));
        assert_eq!(streams.join(0x20, 8, "b", one, 9), Ok(Others::None));
    }

    #[test]
    fn faults_are_shown_a_few_times_in_a_second_and_counted() {
        let mut streams = Streams::new();
        let one = function(8);
        streams.join(0x20, 7, "a", one, 100).unwrap();
        assert_eq!(streams.fault(0x21, 0, 1000), None);
        let mut fault = |now| {
            let fault = streams.fault(0x20, now, 1000).unwrap();
            assert_eq!((fault.domain, fault.function), ("a", one));
            assert_eq!(fault.storm, None);
            (fault.number, fault.shown, fault.hidden)
        };
        for number in 1..=10 {
            assert_eq!(fault(5000 + number), (number, number <= 4, 0));
        }
        assert_eq!(fault(6000), (11, false, 0));
        // A second after the first.
        assert_eq!(fault(6001), (12, true, 7));
        assert_eq!(fault(6002), (13, true, 0));
        assert_eq!(fault(9000), (14, true, 0)); // all two were shown
        // A clock that goes round.
        assert_eq!(fault(u64::MAX), (15, true, 0));
        assert_eq!(fault(998), (16, true, 0));
        assert_eq!(fault(999), (17, true, 0));
    }

    #[test]
    fn a_storm_is_more_than_the_strictest_function_allows() {
        let mut streams = Streams::new();
        for (id, allowed) in [(1, vec![3]), (2, vec![9, 3, 5]), (3, vec![0])] {
            for (n, allowed) in (1..).zip(&allowed) {
                streams.join(id, 7, "a", function(n), *allowed).unwrap();
            }
            let least = *allowed.iter().min().unwrap();
            for round in 0..2 {
                for n in 1..=least {
                    let now = u64::from(n);
                    assert_eq!(streams.fault(id, now, 1000).unwrap().storm, None);
                }
                let storm = streams.fault(id, 999, 1000).unwrap();
                assert_eq!(storm.storm, Some(least), "{id} {round}");
                streams.cut(id);
                // What is still in the queue.
                for now in [999, 5000] {
                    let late = streams.fault(id, now, 1000).unwrap();
                    assert_eq!((late.storm, late.shown), (None, false));
                }
                streams.restore(id);
            }
        }
        // As many as are allowed, second after second, are no storm.
        streams.restore(1);
        for now in 0..1000 {
            let fault = streams.fault(1, now * 334, 1000).unwrap();
            assert_eq!(fault.storm, None, "{now}");
        }
    }

    #[test]
    #[rustfmt::skip]
    fn there_is_a_tree_for_each_format_and_the_strictest_smmu() {
        use Coherency::{Coherent, Software};
        use Format::{Stage1, Stage2};
        let cases: [(&[(Format, Coherency)], Trees); 5] = [
            // SMMUs                                      one tree for each
            (&[],                                         Trees { stage1: false, stage2: false, coherency: Coherent }),
            (&[(Stage2, Coherent), (Stage2, Coherent)],   Trees { stage1: false, stage2: true,  coherency: Coherent }),
            (&[(Stage2, Software), (Stage2, Coherent)],   Trees { stage1: false, stage2: true,  coherency: Software }),
            (&[(Stage1, Coherent)],                       Trees { stage1: true,  stage2: false, coherency: Coherent }),
            (&[(Stage2, Coherent), (Stage1, Software)],   Trees { stage1: true,  stage2: true,  coherency: Software }),
        ];
        for (smmus, expected) in cases {
            assert_eq!(Trees::of(smmus.iter().copied()), expected, "{smmus:?}");
        }
    }

    /// An SMMU that remembers what it was told, and may refuse to.
    #[derive(Debug)]
    struct Fake {
        format: Format,
        table: BTreeMap<u32, (AddressSpace, bool)>,
        forgot: Vec<u16>,
        broken: bool,
        off: bool,
    }

    impl Fake {
        fn answer(&self) -> Result<(), Error> {
            match self.broken && !self.off {
                true => Err(Error::Timeout),
                false => Ok(()),
            }
        }

        /// Returns the tables that a stream reaches.
        fn reached(&self, stream: u32) -> Option<u64> {
            let (space, open) = self.table.get(&stream)?;
            (*open && !self.off).then_some(space.root.get())
        }
    }

    impl Translation for Fake {
        fn format(&self) -> Format {
            self.format
        }
        fn listen(&mut self, stream: u32) -> Result<(), Error> {
            self.answer()?;
            assert!(!self.table.contains_key(&stream));
            Ok(())
        }
        fn attach(&mut self, stream: u32, space: &AddressSpace) -> Result<(), Error> {
            self.answer()?;
            assert!(!self.off);
            assert_eq!(self.table.insert(stream, (*space, true)), None);
            Ok(())
        }
        fn detach(&mut self, stream: u32) -> Result<(), Error> {
            self.answer()?;
            self.table.remove(&stream);
            Ok(())
        }
        fn refuse(&mut self, stream: u32) -> Result<(), Error> {
            self.answer()?;
            if let Some((_, open)) = self.table.get_mut(&stream) {
                *open = false;
            }
            Ok(())
        }
        fn resume(&mut self, stream: u32) -> Result<(), Error> {
            self.answer()?;
            if self.off {
                return Err(Error::Off);
            }
            if let Some((_, open)) = self.table.get_mut(&stream) {
                *open = true;
            }
            Ok(())
        }
        fn invalidate(&mut self, id: u16, _: Ipa, _: u64) -> Result<(), Error> {
            self.invalidate_all(id)
        }
        fn invalidate_all(&mut self, id: u16) -> Result<(), Error> {
            self.answer()?;
            self.forgot.push(id);
            Ok(())
        }
        fn turn_off(&mut self) -> Result<(), Error> {
            self.off = true;
            Ok(())
        }
        fn is_off(&self) -> bool {
            self.off
        }
    }

    /// A machine of three SMMUs, of both formats, and what each function's requester IDs lead to:
    /// the first two share a stream, the third is behind two SMMUs, the StreamIDs of the last two
    /// are the same at different SMMUs.
    const FORMATS: [Format; 3] = [Format::Stage2, Format::Stage1, Format::Stage2];
    const ROUTES: [&[(usize, u32)]; 5] = [
        &[(0, 8), (0, 0x100)],
        &[(0, 9), (0, 0x100)],
        &[(0, 16), (1, 16)],
        &[(1, 24)],
        &[(2, 24)],
    ];

    fn machine() -> [Guard<Fake>; 3] {
        FORMATS.map(|format| {
            Guard::new(Fake {
                format,
                table: BTreeMap::new(),
                forgot: Vec::new(),
                broken: false,
                off: false,
            })
        })
    }

    /// Returns the address space of a domain in a format.
    fn space(domain: u16, format: Format) -> AddressSpace {
        let stage1 = u64::from(format == Format::Stage1);
        AddressSpace {
            root: Pa::new(u64::from(domain) << 16 | stage1 << 12),
            id: domain,
            input_bits: 39,
            end: Pa::new(1 << 40),
        }
    }

    /// A function of a domain's, that may have ten faults in a second.
    fn holder(index: u16) -> Holder<'static> {
        Holder {
            function: function(index),
            domain: "d",
            allowed: 10,
        }
    }

    #[test]
    fn who_is_listened_to_reaches_nothing_and_is_counted() {
        let [mut guard, ..] = machine();
        let space = space(1, Format::Stage2);
        let heard = |guard: &mut Guard<Fake>| {
            let Heard { faults, lost } = guard.heard(8);
            assert!(!lost);
            faults
        };
        guard.listen(8, space.id, holder(0)).unwrap();
        assert!(guard.smmu.table.is_empty());
        assert_eq!(heard(&mut guard), 0);
        guard.fault(8, 0, 100).unwrap();
        guard.fault(8, 0, 100).unwrap();
        assert_eq!(heard(&mut guard), 2);
        // Another one of the domain's, by the same stream, which whoever is first attaches for both.
        guard.listen(8, space.id, holder(1)).unwrap();
        guard.attach(8, &space, holder(1)).unwrap();
        guard.attach(8, &space, holder(0)).unwrap();
        assert_eq!(guard.smmu.table.get(&8), Some(&(space, true)));
        // A stream in use has faults of its own.
        guard.fault(8, 0, 100).unwrap();
        assert_eq!(heard(&mut guard), 0);
        guard.listen(8, space.id, holder(2)).unwrap();
        assert_eq!(heard(&mut guard), 0);
        for index in 0..3 {
            guard.detach(8, function(index)).unwrap();
        }
        assert!(guard.smmu.table.is_empty());
        // Nor does it reach another domain's.
        guard.listen(8, space.id, holder(0)).unwrap();
        assert_eq!(
            guard.listen(8, 2, holder(1)),
            Err(Error::Attached(8)),
            "another space"
        );
    }

    /// Whoever fills the event queue meanwhile, faults of the stream may be among those that did not fit.
    #[test]
    fn who_is_listened_to_while_faults_are_lost_is_not_known_to_be_quiet() {
        let [mut guard, ..] = machine();
        let space = space(1, Format::Stage2);
        let quiet = Heard::default();
        let unsure = Heard {
            lost: true,
            ..quiet
        };
        // What was lost before says nothing.
        guard.attach(9, &space, holder(1)).unwrap();
        guard.lose();
        guard.listen(8, space.id, holder(0)).unwrap();
        assert_eq!(guard.heard(8), quiet);
        guard.lose();
        assert_eq!(guard.heard(8), unsure);
        assert_eq!(guard.heard(8), quiet, "it is listened to anew");
        guard.fault(8, 0, 100).unwrap();
        guard.lose();
        assert_eq!(
            guard.heard(8),
            Heard {
                faults: 1,
                lost: true
            }
        );
        // One in use is not listened to; nor is one that nobody has.
        guard.lose();
        for stream in [9, 10] {
            assert_eq!(guard.heard(stream), quiet);
        }
        guard.attach(8, &space, holder(0)).unwrap();
        guard.lose();
        assert_eq!(guard.heard(8), quiet);
        // It is left behind by nobody.
        guard.detach(8, function(0)).unwrap();
        guard.listen(8, space.id, holder(2)).unwrap();
        assert_eq!(guard.heard(8), quiet);
    }

    /// It has been reset, and made no storm; whoever did masters the bus no more.
    #[test]
    fn who_comes_to_a_stream_that_is_refused_is_translated() {
        let [mut guard, ..] = machine();
        let space = space(1, Format::Stage2);
        let open = |guard: &Guard<Fake>| guard.smmu.reached(8).is_some();
        guard.attach(8, &space, holder(0)).unwrap();
        for n in 1..=11 {
            let fault = guard.fault(8, n, 100).unwrap();
            assert_eq!(fault.storm, (n > 10).then_some(10));
        }
        guard.cut(8, function(0)).unwrap();
        assert!(!open(&guard));
        guard.listen(8, space.id, holder(1)).unwrap();
        assert!(!open(&guard), "it may not be as it should yet");
        guard.attach(8, &space, holder(1)).unwrap();
        assert!(open(&guard));
        for n in 12..=22 {
            let fault = guard.fault(8, n, 100).unwrap();
            assert_eq!(fault.storm, (n > 21).then_some(10), "it counts anew");
        }
        // Whoever stormed may leave meanwhile, and stay away.
        guard.cut(8, function(0)).unwrap();
        guard.detach(8, function(0)).unwrap();
        assert!(!open(&guard));
        guard.restore(8, function(1)).unwrap();
        assert!(open(&guard));
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Attach { function: usize, domain: u16 },
        Detach { function: usize },
        Cut { function: usize },
        Restore { function: usize },
        Invalidate { domain: u16, all: bool },
        Break { smmu: usize },
    }

    fn step() -> impl Strategy<Value = Step> {
        let (function, domain) = (0..ROUTES.len(), 1u16..4);
        prop_oneof![
            6 => (function.clone(), domain.clone())
                .prop_map(|(function, domain)| Step::Attach { function, domain }),
            6 => function.clone().prop_map(|function| Step::Detach { function }),
            3 => function.clone().prop_map(|function| Step::Cut { function }),
            3 => function.prop_map(|function| Step::Restore { function }),
            3 => (domain, any::<bool>()).prop_map(|(domain, all)| Step::Invalidate { domain, all }),
            1 => (0..FORMATS.len()).prop_map(|smmu| Step::Break { smmu }),
        ]
    }

    proptest! {
        /// Functions come and go, storm and are reset, and SMMUs break. Each stream reaches the
        /// tables of the domain whose function has it, in its SMMU's format, and no other; only
        /// SMMUs that hold a domain are told what it unmaps.
        #[test]
        fn each_function_reaches_its_domain_whichever_smmus_it_is_behind(
            steps in proptest::collection::vec(step(), 0..60)
        ) {
            let mut smmus = machine();
            let mut has: [Option<u16>; ROUTES.len()] = [None; ROUTES.len()];
            let mut cut: BTreeSet<(usize, u32)> = BTreeSet::new();
            let sbdf = |index: usize| function(index.try_into().unwrap());
            for step in steps {
                match step {
                    Step::Attach { function, domain } if has[function].is_none() => {
                        let mut attached = Ok(());
                        for (smmu, stream) in ROUTES[function] {
                            if attached.is_err() {
                                break;
                            }
                            let guard = &mut smmus[*smmu];
                            let space = space(domain, FORMATS[*smmu]);
                            let holder = Holder { function: sbdf(function), domain: "d", allowed: 1 };
                            attached = guard.attach(*stream, &space, holder);
                            if attached.is_ok() {
                                cut.remove(&(*smmu, *stream));
                            }
                        }
                        // As the kernel does it: whatever was done is undone.
                        match attached {
                            Ok(()) => has[function] = Some(domain),
                            Err(_) => for (smmu, stream) in ROUTES[function] {
                                let guard = &mut smmus[*smmu];
                                if guard.detach(*stream, sbdf(function)).is_err() {
                                    guard.smmu.turn_off().unwrap();
                                    prop_assert_eq!(guard.detach(*stream, sbdf(function)), Ok(()));
                                }
                            }
                        }
                        // It fails for a reason only: an SMMU that is broken, a stream of another's.
                        let foreign = |(smmu, stream): &(usize, u32)| (0..ROUTES.len()).any(|other| {
                            has[other].is_some_and(|of| of != domain)
                                && ROUTES[other].contains(&(*smmu, *stream))
                        });
                        let reason = ROUTES[function].iter()
                            .any(|route| smmus[route.0].smmu.broken || foreign(route));
                        prop_assert!(attached.is_ok() || reason);
                    }
                    Step::Attach { .. } => {}
                    Step::Detach { function } => {
                        for (smmu, stream) in ROUTES[function] {
                            let guard = &mut smmus[*smmu];
                            if guard.detach(*stream, sbdf(function)).is_err() {
                                guard.smmu.turn_off().unwrap();
                                prop_assert_eq!(guard.detach(*stream, sbdf(function)), Ok(()));
                            }
                        }
                        has[function] = None;
                    }
                    Step::Cut { function } => for (smmu, stream) in ROUTES[function] {
                        let guard = &mut smmus[*smmu];
                        if guard.cut(*stream, sbdf(function)).is_err() {
                            guard.smmu.turn_off().unwrap();
                        }
                        if has[function].is_some() {
                            cut.insert((*smmu, *stream));
                        }
                    }
                    Step::Restore { function } => for (smmu, stream) in ROUTES[function] {
                        let guard = &mut smmus[*smmu];
                        match guard.restore(*stream, sbdf(function)) {
                            Ok(()) if has[function].is_some() => drop(cut.remove(&(*smmu, *stream))),
                            Ok(()) => {}
                            Err(_) => guard.smmu.turn_off().unwrap(),
                        }
                    }
                    Step::Invalidate { domain, all } => for (n, guard) in smmus.iter_mut().enumerate() {
                        guard.smmu.forgot.clear();
                        let told = match all {
                            true => guard.invalidate_all(domain),
                            false => guard.invalidate(domain, Ipa::new(0), 1),
                        };
                        let holds = (0..ROUTES.len()).any(|function| {
                            has[function] == Some(domain) && ROUTES[function].iter().any(|r| r.0 == n)
                        });
                        prop_assert_eq!(told.is_err(), holds && guard.smmu.broken && !guard.smmu.off);
                        if told.is_err() {
                            guard.smmu.turn_off().unwrap();
                        } else {
                            prop_assert_eq!(guard.smmu.forgot.contains(&domain), holds);
                        }
                    }
                    Step::Break { smmu } => smmus[smmu].smmu.broken = true,
                }
                for (n, guard) in smmus.iter().enumerate() {
                    for stream in [8, 9, 16, 24, 0x100] {
                        let owner = (0..ROUTES.len()).find_map(|function| {
                            ROUTES[function].contains(&(n, stream)).then_some(has[function])?
                        });
                        if owner.is_none() {
                            cut.remove(&(n, stream));
                        }
                        let open = !guard.smmu.off && !cut.contains(&(n, stream));
                        let expected = owner.filter(|_| open).map(|domain| space(domain, FORMATS[n]).root.get());
                        prop_assert_eq!(guard.smmu.reached(stream), expected, "SMMU {} {:#x}", n, stream);
                    }
                }
            }
        }

        /// What joins and leaves, against a plain set of who has what; the table is attached when the
        /// first comes, and detached when the last goes.
        #[test]
        fn who_has_a_stream_is_who_joined_and_has_not_left(
            steps in proptest::collection::vec((any::<bool>(), 0u32..4, 0u16..4), 0..200)
        ) {
            let mut streams = Streams::new();
            let mut set: BTreeSet<(u32, u16)> = BTreeSet::new();
            let mut attached: BTreeSet<u32> = BTreeSet::new();
            for (joins, id, n) in steps {
                // Two spaces, by function: those of one never get a stream of the other.
                let space = n / 2;
                let foreign = set.iter().any(|(other, m)| *other == id && m / 2 != space);
                let alone = set.iter().all(|(other, m)| *other != id || *m == n);
                if joins {
                    let joined = streams.join(id, space, "d", function(n), 1);
                    prop_assert_eq!(joined == Err(JoinError::Taken), foreign);
                    if let Ok(others) = joined {
                        let new = set.iter().all(|(other, _)| *other != id);
                        prop_assert_eq!(others == Others::None, new);
                        if others == Others::None {
                            prop_assert!(attached.insert(id));
                        }
                        set.insert((id, n));
                    }
                } else {
                    let others = streams.others(id, function(n));
                    prop_assert_eq!(others.is_some(), set.contains(&(id, n)));
                    if let Some(others) = others {
                        prop_assert_eq!(others == Others::None, alone);
                        if others == Others::None {
                            prop_assert!(attached.remove(&id));
                        }
                    }
                    streams.leave(id, function(n));
                    set.remove(&(id, n));
                }
                for id in 0..4 {
                    prop_assert_eq!(attached.contains(&id), set.iter().any(|(other, _)| *other == id));
                }
                for space in 0..2 {
                    prop_assert_eq!(streams.holds(space), set.iter().any(|(_, m)| m / 2 == space));
                }
            }
        }
    }
}
