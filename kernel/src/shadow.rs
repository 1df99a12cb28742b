//! Config space that a guest reads without an exit.
//!
//! ```text
//!   ECAM window in stage 2                        what is there
//!
//!   2 MiB |############| -------------+
//!   2 MiB |############| -------------+-------->  one block of ones, for the whole machine
//!          ...                        |
//!   2 MiB |#|f|#|p|#|d|#| -- # -------+
//!            |   |   +---- d: a device model's function   nothing: it traps
//!            |   +-------- p: a port, stub or bridge      a frame, written by EL2 at each change
//!            +------------ f: a passed-through function   the same, while all of it is steady
//! ```
//!
//! All of it is read-only: a store takes a permission fault and goes the way of any config write, at whose
//! end the frame has the new values. Guests map config space as Device memory, past the caches, so each
//! update is cleaned to the point of coherency before the guest goes on.
//!
//! What cannot be shown traps, and reads the same then: a function of which the device itself has to be
//! asked, and whatever there is no frame or table for. Everything here happens under the lock of the
//! domain's bus, but for [`hide`].

use crate::domain::Domain;
use crate::memory::{self, TableFrames};
use crate::passthrough::Assigned;
use crate::physical;
use arch::address::{BLOCK_2M, Ipa, PAGE_SIZE, Pa};
use arch::asm;
use core::sync::atomic::{AtomicBool, Ordering};
use kernel::frames::Run;
use kernel::pages::{self, DWORDS};
use kernel::{layout, reads, size};
use spin::Mutex;
use vpci::{BusError, ConfigAccess, Emulated, Offset, Owner, Places, Sbdf, Size, Steadiness};

/// Whether reads may do without EL2 at all.
static ALLOWED: AtomicBool = AtomicBool::new(true);

/// The block of ones, once a domain has needed it. It is never given back.
static ONES: Mutex<Option<Pa>> = Mutex::new(None);

/// Lets all config reads trap, in domains that start from now on.
pub(crate) fn forbid() {
    // Relaxed: said while booting.
    ALLOWED.store(false, Ordering::Relaxed);
}

/// Returns the block of ones; `None` if there is no memory for it.
#[cold]
fn ones() -> Option<Pa> {
    let mut ones = ONES.lock();
    if ones.is_none() {
        let run = memory::allocate_run(BLOCK_2M, BLOCK_2M)?;
        let start = run.start.get() as *mut u128;
        // SAFETY: RAM that EL2 maps and that nobody else has: just allocated.
        let words = unsafe { core::slice::from_raw_parts_mut(start, size(BLOCK_2M) / 16) };
        words.fill(u128::MAX);
        asm::clean_to_poc(start.cast(), size(BLOCK_2M));
        *ones = Some(run.start);
    }
    *ones
}

/// A frame that holds a page of config space.
struct Page(Pa);

impl Page {
    fn pointer(&self, index: usize) -> *mut u32 {
        assert!(index < DWORDS);
        (self.0.get() as *mut u32).wrapping_add(index)
    }

    fn store(&self, index: usize, value: u32) {
        // SAFETY: in a frame of RAM that is ours until we are dropped. Guests read it meanwhile, by
        // whole dwords or several of them, each old or new.
        unsafe { self.pointer(index).write_volatile(value) };
    }
}

impl pages::Page for Page {
    fn new() -> Option<Self> {
        memory::allocate_frame().map(Self)
    }

    fn start(&self) -> Pa {
        self.0
    }

    fn set(&self, index: usize, value: u32) {
        self.store(index, value);
        asm::clean_line_to_poc(self.pointer(index).cast());
    }

    fn fill(&self, count: usize, value: impl Fn(usize) -> u32) {
        for index in 0..count {
            self.store(index, value(index));
        }
        asm::clean_to_poc(self.pointer(0).cast(), size(PAGE_SIZE));
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        memory::free_run(Run {
            start: self.0,
            len: PAGE_SIZE,
        });
    }
}

/// What pages are made of.
pub(crate) struct View<'a> {
    pub(crate) domain: &'a Domain,
    pub(crate) bus: &'a vpci::Bus<usize>,
    pub(crate) bridge: &'a Emulated,
    pub(crate) stub: &'a Emulated,
    pub(crate) functions: &'a [Option<Assigned>],
}

impl View<'_> {
    fn function(&self, id: usize) -> Option<&Assigned> {
        self.functions.get(id)?.as_ref()
    }
}

/// The pages of a domain's config space.
pub(crate) struct Pages {
    places: Places,
    frames: Frames,
}

#[derive(Default)]
struct Frames {
    /// The block of ones, once the window shows it.
    ones: Option<Pa>,
    own: pages::Frames<Page>,
}

impl Pages {
    /// Makes pages of which none is shown yet: everything traps.
    pub(crate) fn new() -> Result<Self, BusError> {
        Ok(Self {
            places: Places::new()?,
            frames: Frames::default(),
        })
    }

    /// Shows everything anew, before a guest starts.
    #[cold]
    pub(crate) fn show_all(&mut self, view: &View<'_>) {
        if self.frames.ones.is_none() {
            // Relaxed: said while booting.
            if !ALLOWED.load(Ordering::Relaxed) {
                return;
            }
            self.frames.ones = map_window(view.domain);
        }
        let frames = &mut self.frames;
        let show = |place, owner| frames.show(view, place, owner);
        self.places.update_all(view.bus, show);
    }

    /// Follows the bus numbers that the guest has changed.
    #[cold]
    pub(crate) fn follow(&mut self, view: &View<'_>) {
        let frames = &mut self.frames;
        let show = |place, owner| frames.show(view, place, owner);
        self.places.update(view.bus, show);
    }

    /// Shows the function of that name, what took its place, and all whose config space says something
    /// about it. One that has gone gives its frame back.
    #[cold]
    pub(crate) fn refresh(&mut self, view: &View<'_>, name: Sbdf) {
        for name in view.bus.around(name) {
            if let Some(place) = view.bus.place(name) {
                self.frames.show(view, place, view.bus.route(place));
            }
        }
        self.frames.own.keep(|id| view.function(id).is_some());
    }

    /// Shows what is at one place.
    #[cold]
    pub(crate) fn show(&mut self, view: &View<'_>, place: Sbdf) {
        self.frames.show(view, place, view.bus.route(place));
    }

    /// Shows a dword that has changed of a passed-through function, which is as steady as it was.
    #[inline]
    pub(crate) fn set(&self, id: usize, dword: usize, value: u32) {
        self.frames.own.set(id, dword, value);
    }

    /// Shows what has changed of a passed-through function, and for how long: one dword, or more.
    #[inline]
    pub(crate) fn changed(&mut self, view: &View<'_>, id: usize, dword: Option<usize>) {
        let (Some(_), Some(assigned)) = (self.frames.ones, view.function(id)) else {
            return;
        };
        let now = assigned.steadiness();
        let before = self.frames.own.steadiness(id);
        match (now, dword) {
            (Steadiness::Live, _) if before.is_none_or(|before| before == now) => {}
            (_, Some(index)) if before == Some(now) => {
                let value = assigned.steady_dword(index);
                self.frames.own.set(id, index, value);
            }
            _ => self.show_function(view, assigned),
        }
    }

    /// Shows a passed-through function anew.
    #[cold]
    pub(crate) fn show_function(&mut self, view: &View<'_>, assigned: &Assigned) {
        if let Some(place) = view.bus.place(assigned.slot()) {
            self.show(view, place);
        }
    }
}

impl Frames {
    /// Shows who is at a place.
    fn show(&mut self, view: &View<'_>, place: Sbdf, owner: Option<Owner<usize>>) {
        let Some(ones) = self.ones else { return };
        let at = ipa(place);
        let page = match owner {
            None => Some(Pa::new(ones.get() + at.get() % BLOCK_2M)),
            Some(Owner::Ioreq(_)) => None,
            Some(Owner::HostBridge) => self.own.bridge(dwords(place, |at| view.bridge.read(at))),
            Some(Owner::Stub) => self.own.stub(dwords(place, |at| view.stub.read(at))),
            Some(Owner::Port(bus)) => {
                let read = dwords(place, |at| view.bus.read_port(bus, at));
                self.own.port(bus, read)
            }
            Some(Owner::Vpci(id)) => return self.show_function(view, at, id),
        };
        put(view.domain, at, page);
    }

    fn show_function(&mut self, view: &View<'_>, at: Ipa, id: usize) {
        let domain = view.domain;
        let hide = || put(domain, at, None);
        // On its way to the domain, or away.
        let Some(assigned) = view.function(id) else {
            return hide();
        };
        let steadiness = assigned.steadiness();
        let page = self
            .own
            .function(id, steadiness, |index| assigned.steady_dword(index));
        let until_interrupt = steadiness == Steadiness::UntilInterrupt;
        let Some(page) = page else {
            assigned.while_quiet(domain, None, || {});
            return hide();
        };
        let show = || put(domain, at, Some(page));
        if !until_interrupt {
            assigned.while_quiet(domain, None, || {});
            show();
        } else if !assigned.while_quiet(domain, Some(at), show) {
            hide();
        }
    }
}

/// Returns what each dword reads as of what EL2 emulates at a place.
fn dwords(place: Sbdf, read: impl Fn(ConfigAccess) -> u32) -> impl Fn(usize) -> u32 {
    move |index| {
        let offset = Offset::in_function(index as u64 * 4);
        ConfigAccess::new(place, offset, Size::Four).map_or(0, &read)
    }
}

/// Returns where a place is in the ECAM window.
fn ipa(place: Sbdf) -> Ipa {
    Ipa::new(layout::ECAM.start + u64::from(place.rid()) * PAGE_SIZE)
}

/// Lets the whole window show ones; returns their block.
#[cold]
fn map_window(domain: &Domain) -> Option<Pa> {
    let ones = ones()?;
    let mut stage2 = domain.stage2.lock();
    let stage2 = stage2.as_mut()?;
    reads::map_ones(stage2, &mut TableFrames::for_pcpus(), layout::ECAM, ones);
    Some(ones)
}

/// Maps a page of config space read-only, instead of what is mapped there; without one, the place traps.
fn put(domain: &Domain, at: Ipa, page: Option<Pa>) {
    let mut stage2 = domain.stage2.lock();
    let Some(stage2) = stage2.as_mut() else {
        return;
    };
    let (frames, tlb) = (&mut TableFrames::for_pcpus(), physical::cpu_tlb(domain));
    reads::put(stage2, frames, &tlb, at, page);
}

/// Lets a page trap from now on, because its function asserts its interrupt pin.
#[cold]
pub(crate) fn hide(domain: &Domain, at: u64) {
    put(domain, Ipa::new(at), None);
}
