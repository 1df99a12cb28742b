//! The frames whose pages guests read as config space (`shadow`, in the program).
//!
//! Each of what EL2 knows has a frame of its own, which is made when it is first shown and goes with it. What there is
//! no frame for is not shown: it traps, and reads the same by EL2.

use alloc::vec::Vec;
use arch::address::{PAGE_SIZE, Pa};
use vpci::Steadiness;

use crate::size;

/// Dwords of a page.
pub const DWORDS: usize = size(PAGE_SIZE) / 4;

/// As many of them as what EL2 emulates has: none in extended config space.
const EMULATED_DWORDS: usize = 0x100 / 4;

/// A frame of zeros at first, which goes back when it is dropped.
pub trait Page: Sized {
    /// Takes one; `None` if there is none.
    fn new() -> Option<Self>;
    /// Returns where it is.
    fn start(&self) -> Pa;
    /// Changes one dword; guests see it when it returns.
    fn set(&self, index: usize, value: u32);
    /// Changes the first `count` dwords.
    fn fill(&self, count: usize, value: impl Fn(usize) -> u32);
}

/// The page of a passed-through function.
struct Function<P> {
    page: P,
    /// What the function was when the page was last placed.
    steadiness: Steadiness,
}

/// The frames of a domain.
pub struct Frames<P> {
    bridge: Option<P>,
    /// All stubs are alike.
    stub: Option<P>,
    /// By the name of the bus below.
    ports: Vec<(u8, P)>,
    functions: Vec<Option<Function<P>>>,
}

impl<P> Default for Frames<P> {
    fn default() -> Self {
        Self {
            bridge: None,
            stub: None,
            ports: Vec::new(),
            functions: Vec::new(),
        }
    }
}

impl<P: Page> Frames<P> {
    /// Returns the host bridge's frame, with what it reads as; `None` if there is no memory for it.
    pub fn bridge(&mut self, read: impl Fn(usize) -> u32) -> Option<Pa> {
        emulated(&mut self.bridge, read)
    }

    /// Returns that of the stubs, likewise.
    pub fn stub(&mut self, read: impl Fn(usize) -> u32) -> Option<Pa> {
        emulated(&mut self.stub, read)
    }

    /// Returns that of a port, likewise.
    pub fn port(&mut self, bus: u8, read: impl Fn(usize) -> u32) -> Option<Pa> {
        let index = match self.ports.iter().position(|(other, _)| *other == bus) {
            Some(index) => index,
            None => {
                self.ports.try_reserve(1).ok()?;
                self.ports.push((bus, P::new()?));
                self.ports.len() - 1
            }
        };
        let (_, page) = self.ports.get(index)?;
        page.fill(EMULATED_DWORDS, read);
        Some(page.start())
    }

    /// Returns a function's frame, with what it reads as; `None` if it has to trap.
    pub fn function(
        &mut self,
        id: usize,
        steadiness: Steadiness,
        value: impl Fn(usize) -> u32,
    ) -> Option<Pa> {
        let missing = (id + 1).saturating_sub(self.functions.len());
        self.functions.try_reserve(missing).ok()?;
        self.functions
            .resize_with(self.functions.len() + missing, || None);
        let own = self.functions.get_mut(id)?;
        if steadiness == Steadiness::Live {
            if let Some(own) = own {
                own.steadiness = steadiness;
            }
            return None;
        }
        let own = match own {
            Some(own) => own,
            None => own.insert(Function {
                page: P::new()?,
                steadiness,
            }),
        };
        own.steadiness = steadiness;
        own.page.fill(DWORDS, value);
        Some(own.page.start())
    }

    /// Returns what a function was when its page was last placed; `None` if it has none.
    #[inline]
    pub fn steadiness(&self, id: usize) -> Option<Steadiness> {
        Some(self.functions.get(id)?.as_ref()?.steadiness)
    }

    /// Changes a dword of a function that is as steady as it was.
    #[inline]
    pub fn set(&self, id: usize, dword: usize, value: u32) {
        if let Some(Some(own)) = self.functions.get(id)
            && own.steadiness != Steadiness::Live
        {
            own.page.set(dword, value);
        }
    }

    /// Gives the frames of functions back that are no more.
    pub fn keep(&mut self, is_there: impl Fn(usize) -> bool) {
        for (id, page) in self.functions.iter_mut().enumerate() {
            if !is_there(id) {
                *page = None;
            }
        }
    }
}

/// Returns the frame of something that EL2 emulates, with what it reads as.
fn emulated<P: Page>(own: &mut Option<P>, read: impl Fn(usize) -> u32) -> Option<Pa> {
    let page = match own {
        Some(page) => page,
        None => own.insert(P::new()?),
    };
    page.fill(EMULATED_DWORDS, read);
    Some(page.start())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::cell::{Cell, RefCell};
    use std::collections::BTreeMap;

    thread_local! {
        /// The frames that are taken, and what they hold.
        static TAKEN: RefCell<BTreeMap<u64, Vec<u32>>> = const { RefCell::new(BTreeMap::new()) };
        /// How many there are.
        static LIMIT: Cell<usize> = const { Cell::new(0) };
    }

    struct Fake(u64);

    impl Page for Fake {
        fn new() -> Option<Self> {
            TAKEN.with_borrow_mut(|taken| {
                let start = (1..).find(|start| !taken.contains_key(start))?;
                (taken.len() < LIMIT.get()).then(|| {
                    taken.insert(start, vec![0; DWORDS]);
                    Self(start)
                })
            })
        }
        fn start(&self) -> Pa {
            Pa::new(self.0 * PAGE_SIZE)
        }
        fn set(&self, index: usize, value: u32) {
            TAKEN.with_borrow_mut(|taken| taken.get_mut(&self.0).expect("taken")[index] = value);
        }
        fn fill(&self, count: usize, value: impl Fn(usize) -> u32) {
            (0..count).for_each(|index| self.set(index, value(index)));
        }
    }

    impl Drop for Fake {
        fn drop(&mut self) {
            let gone = TAKEN.with_borrow_mut(|taken| taken.remove(&self.0));
            assert!(gone.is_some(), "given back twice");
        }
    }

    fn holds(start: Pa) -> Vec<u32> {
        TAKEN.with_borrow(|taken| taken[&(start.get() / PAGE_SIZE)].clone())
    }

    /// What is shown: the bridge, the stubs, two ports, three functions.
    const BRIDGE: usize = 0;
    const STUB: usize = 1;
    const PORTS: usize = 2;
    const FUNCTIONS: usize = 4;
    const ALL: usize = 7;

    const STEADINESS: [Steadiness; 3] = [
        Steadiness::Live,
        Steadiness::Steady,
        Steadiness::UntilInterrupt,
    ];

    fn value(seed: u32) -> impl Fn(usize) -> u32 {
        move |index| seed << 16 | u32::try_from(index).expect("a page is small")
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// However few frames there are, and whenever they come and go: a page is shown if its frame is there, and
        /// reads as what it is of; else nothing is, and only for want of a frame. No page loses its frame, or what is
        /// in it, to another one, and none keeps it when its function has gone.
        #[test]
        fn a_page_is_shown_with_its_own_frame_or_not_at_all(
            steps in prop::collection::vec((0..ALL, 0usize..5, 1u32..1000, 0usize..9), 1..80),
        ) {
            let mut frames = Frames::<Fake>::default();
            let mut shown: BTreeMap<usize, (Pa, Vec<u32>)> = BTreeMap::new();
            for (what, how, seed, limit) in steps {
                LIMIT.set(limit);
                let taken = || TAKEN.with_borrow(BTreeMap::len);
                let before = taken();
                let id = what.saturating_sub(FUNCTIONS);
                let (page, dwords) = match (what, how) {
                    (BRIDGE, _) => (frames.bridge(value(seed)), EMULATED_DWORDS),
                    (STUB, _) => (frames.stub(value(seed)), EMULATED_DWORDS),
                    (PORTS..FUNCTIONS, _) => {
                        let bus = u8::try_from(what).expect("a bus");
                        (frames.port(bus, value(seed)), EMULATED_DWORDS)
                    }
                    (_, 3) => {
                        // A dword of what is shown, or not, changes.
                        frames.set(id, 5, seed);
                        if frames.steadiness(id).is_some_and(|now| now != Steadiness::Live) {
                            shown.get_mut(&what).expect("it is shown").1[5] = seed;
                        }
                        continue;
                    }
                    (_, 4) => {
                        frames.keep(|other| other != id);
                        let had = shown.remove(&what).is_some();
                        prop_assert_eq!(taken(), before - usize::from(had));
                        prop_assert_eq!(frames.steadiness(id), None);
                        continue;
                    }
                    (_, how) => (frames.function(id, STEADINESS[how], value(seed)), DWORDS),
                };
                let is_live = what >= FUNCTIONS && how == 0;
                let had = shown.contains_key(&what);
                match page {
                    Some(start) => {
                        prop_assert!(!is_live && (had || before < limit));
                        let mut expected: Vec<u32> = (0..dwords).map(value(seed)).collect();
                        expected.resize(DWORDS, 0);
                        shown.insert(what, (start, expected));
                    }
                    None if is_live => {}
                    None => prop_assert!(!had && before >= limit),
                }
                if what >= FUNCTIONS && (page.is_some() || had) {
                    prop_assert_eq!(frames.steadiness(id), Some(STEADINESS[how]));
                }
                prop_assert_eq!(taken(), shown.len());
                for (what, (start, expected)) in &shown {
                    prop_assert_eq!(&holds(*start), expected, "{}", what);
                }
            }
            drop(frames);
            prop_assert_eq!(TAKEN.with_borrow(BTreeMap::len), 0);
        }
    }
}
