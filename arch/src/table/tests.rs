use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::vec;
use std::vec::Vec;

use proptest::prelude::*;

use super::*;
use crate::address::{BLOCK_1G, BLOCK_2M, Ipa, PAGE_SIZE, Va};

/// Tables in a map, and beside them what a walker would see: what has been published.
///
/// It watches the order of changes: a frame must not go back while a walker can reach it or may
/// remember it, a table must be published before it is reached, and a valid entry must not take a
/// valid entry's place.
struct Model {
    tables: HashMap<u64, Vec<u64>>,
    seen: RefCell<HashMap<u64, Vec<u64>>>,
    /// Entries that were valid for the walker and are no more, since the last invalidation.
    stale: Cell<bool>,
    limit: usize,
    next: u64,
    root: Option<(u64, u8)>,
}

impl Model {
    fn new(limit: usize) -> Self {
        Self {
            tables: HashMap::new(),
            seen: RefCell::new(HashMap::new()),
            stale: Cell::new(false),
            limit,
            next: 0x8000_0000,
            root: None,
        }
    }

    fn reachable(&self, table: u64, level: u8, found: &mut BTreeSet<u64>) {
        found.insert(table);
        let seen = self.seen.borrow();
        for entry in seen.get(&table).into_iter().flatten().filter(|_| level < 3) {
            if entry & 3 == 3 {
                self.reachable(entry & 0xffff_ffff_f000, level + 1, found);
            }
        }
    }
}

impl Frames for Model {
    fn allocate(&mut self) -> Option<Pa> {
        if self.tables.len() == self.limit {
            return None;
        }
        self.next += PAGE_SIZE;
        self.tables.insert(self.next, vec![0; ENTRIES]);
        Some(Pa::new(self.next))
    }

    fn free(&mut self, table: Pa) {
        if let Some((root, level)) = self.root {
            let mut found = BTreeSet::new();
            self.reachable(root, level, &mut found);
            assert!(
                !found.contains(&table.get()),
                "{table} can still be reached"
            );
            assert!(!self.stale.get(), "{table} may be remembered");
        }
        self.tables.remove(&table.get()).expect("a table");
        self.seen.borrow_mut().remove(&table.get());
    }

    fn read(&self, table: Pa, index: usize) -> u64 {
        self.tables[&table.get()][index]
    }

    fn write(&mut self, table: Pa, index: usize, entry: u64) {
        self.tables.get_mut(&table.get()).expect("a table")[index] = entry;
    }

    fn publish(&self, table: Pa, first: usize, count: usize) {
        let mut seen = self.seen.borrow_mut();
        let new = !seen.contains_key(&table.get());
        assert!(
            !new || (first, count) == (0, ENTRIES),
            "{table} has unpublished entries"
        );
        let mut entries = seen
            .remove(&table.get())
            .unwrap_or_else(|| vec![0; ENTRIES]);
        let written = &self.tables[&table.get()];
        for (seen, now) in entries.iter_mut().zip(written).skip(first).take(count) {
            let (old, now) = (*seen, *now);
            if old & 1 == 1 && old != now {
                assert!(now & 1 == 0, "{old:#x} was not broken before {now:#x}");
                self.stale.set(true);
            }
            if old & 1 == 0 && now & 1 == 1 {
                assert!(!self.stale.get(), "made before the old one was invalidated");
            }
            *seen = now;
        }
        seen.insert(table.get(), entries);
    }
}

/// What was invalidated.
struct Log<'a>(&'a Cell<bool>, RefCell<Vec<(u64, u64)>>);

impl Invalidate for Log<'_> {
    fn ipa(&self, ipa: Ipa, len: u64) {
        self.0.set(false);
        self.1.borrow_mut().push((ipa.get(), len));
    }

    fn all(&self) {
        self.0.set(false);
        self.1.borrow_mut().push((0, u64::MAX));
    }
}

/// Invalidation that lets the model's flag fall, though the model is borrowed.
#[derive(Clone)]
struct Shared(std::rc::Rc<RefCell<Model>>);

impl Frames for Shared {
    fn allocate(&mut self) -> Option<Pa> {
        self.0.borrow_mut().allocate()
    }
    fn free(&mut self, table: Pa) {
        self.0.borrow_mut().free(table);
    }
    fn read(&self, table: Pa, index: usize) -> u64 {
        self.0.borrow().read(table, index)
    }
    fn write(&mut self, table: Pa, index: usize, entry: u64) {
        self.0.borrow_mut().write(table, index, entry);
    }
    fn publish(&self, table: Pa, first: usize, count: usize) {
        self.0.borrow().publish(table, first, count);
    }
}

impl Invalidate for Shared {
    fn ipa(&self, _: Ipa, _: u64) {
        self.0.borrow().stale.set(false);
    }
    fn all(&self) {
        self.0.borrow().stale.set(false);
    }
}

impl Shared {
    /// Returns how many tables there are.
    fn count(&self) -> usize {
        self.0.borrow().tables.len()
    }
}

fn shared(limit: usize) -> Shared {
    Shared(std::rc::Rc::new(RefCell::new(Model::new(limit))))
}

fn stage2(frames: &mut Shared) -> Stage2 {
    let tree = Stage2::new(frames, Format::Stage2).expect("a root");
    let mut model = frames.0.borrow_mut();
    model.root = Some((tree.root().get(), 1));
    tree
}

fn el2(frames: &mut Shared) -> El2 {
    let tree = El2::new(frames).expect("a root");
    let mut model = frames.0.borrow_mut();
    model.root = Some((tree.root().get(), 0));
    tree
}

#[test]
#[rustfmt::skip]
fn stage_2_descriptors_are_the_manuals() {
    let write_only = Rights::WRITE;
    let nothing = Access { rights: Rights::empty(), memory: Memory::Normal };
    let cases = [
        // format,       size,      access,               descriptor without the address
        (Format::Stage2, PAGE_SIZE, Access::RAM,          0x0000_0000_0000_07ff),
        (Format::Stage2, BLOCK_2M,  Access::RAM,          0x0000_0000_0000_07fd),
        (Format::Stage2, BLOCK_1G,  Access::RAM,          0x0000_0000_0000_07fd),
        (Format::Stage2, PAGE_SIZE, Access::DATA,         0x0040_0000_0000_07ff),
        (Format::Stage2, PAGE_SIZE, Access::READ_ONLY,    0x0040_0000_0000_077f),
        (Format::Stage2, PAGE_SIZE, Access::REGISTERS,    0x0040_0000_0000_07c7),
        (Format::Stage2, PAGE_SIZE, Access::PREFETCHABLE, 0x0040_0000_0000_07d7),
        (Format::Stage2, BLOCK_2M,  Access::PREFETCHABLE, 0x0040_0000_0000_07d5),
        (Format::Stage2, PAGE_SIZE, Access::DOORBELL,     0x0040_0000_0000_0787),
        (Format::Stage2, PAGE_SIZE, nothing,              0x0040_0000_0000_073f),
        (Format::Stage1, PAGE_SIZE, Access::RAM,          0x0000_0000_0000_0f43),
        (Format::Stage1, BLOCK_2M,  Access::DATA,         0x0060_0000_0000_0f41),
        (Format::Stage1, PAGE_SIZE, Access::READ_ONLY,    0x0060_0000_0000_0fc3),
        (Format::Stage1, PAGE_SIZE, Access::REGISTERS,    0x0060_0000_0000_0f47),
        (Format::Stage1, PAGE_SIZE, Access::PREFETCHABLE, 0x0060_0000_0000_0f47),
        (Format::Stage1, PAGE_SIZE, Access::DOORBELL,     0x0060_0000_0000_0f47),
        (Format::Stage1, PAGE_SIZE, nothing,              0x0060_0000_0000_0f83),
    ];
    for (format, size, access, expected) in cases {
        let mut frames = shared(8);
        let mut tree = Stage2::new(&mut frames, format).expect("a root");
        let (ipa, pa) = (Ipa::new(0x40_0000_0000), Pa::new(0x1_0000_0000));
        tree.map(&mut frames, ipa, pa, size, access).expect("free");
        let mut table = tree.root();
        let mut index = 0x100;
        for _ in 0..match size { PAGE_SIZE => 2, BLOCK_2M => 1, _ => 0 } {
            let entry = frames.read(table, index);
            assert_eq!(entry & 0xffff_0000_0000_0fff, 3, "a table descriptor has no attributes");
            (table, index) = (Pa::new(entry & !0xfff), 0);
        }
        let entry = frames.read(table, index);
        assert_eq!(entry, expected | 0x1_0000_0000, "{format:?} {size:#x} {access:?}: {entry:#x}");
        let (to, found) = tree.translate(&frames, ipa).expect("mapped");
        assert_eq!(to, pa);
        let is_said = access.rights != write_only && access.memory != Memory::Uncached;
        if format == Format::Stage2 || is_said {
            assert_eq!(found, access, "{format:?}");
        }
    }
}

#[test]
#[rustfmt::skip]
fn el2_descriptors_are_the_manuals() {
    let cases = [
        // protection,             memory,         size,      descriptor without the address
        (Protection::ReadExecute, Memory::Normal, PAGE_SIZE, 0x0000_0000_0000_07c3),
        (Protection::ReadOnly,    Memory::Normal, PAGE_SIZE, 0x0040_0000_0000_07c3),
        (Protection::ReadWrite,   Memory::Normal, PAGE_SIZE, 0x0040_0000_0000_0743),
        (Protection::ReadWrite,   Memory::Normal, BLOCK_2M,  0x0040_0000_0000_0741),
        (Protection::ReadWrite,   Memory::Device, BLOCK_1G,  0x0040_0000_0000_0745),
        (Protection::ReadWrite,   Memory::Config, BLOCK_2M,  0x0040_0000_0000_0749),
    ];
    for (protection, memory, size, expected) in cases {
        let mut frames = shared(8);
        let mut tree = el2(&mut frames);
        let (va, pa) = (Va::new(0xff80_c020_1000 & !(size - 1)), Pa::new(0x2_4000_0000));
        tree.map(&mut frames, va, pa, size, protection, memory).expect("free");
        let mut table = tree.root();
        let mut level_shift = 39;
        let entry = loop {
            let entry = frames.read(table, (va.get() >> level_shift & 511) as usize);
            if 1 << level_shift == size { break entry; }
            table = Pa::new(entry & !0xfff);
            level_shift -= 9;
        };
        assert_eq!(entry, expected | pa.get(), "{protection:?} {memory:?} {size:#x}: {entry:#x}");
    }
}

#[test]
fn the_largest_blocks_that_alignment_allows_are_used() {
    let mut frames = shared(100);
    let mut tree = stage2(&mut frames);
    // 4 KiB below 1 GiB up to 2 MiB + 4 KiB above 2 GiB.
    let (start, len) = (BLOCK_1G - PAGE_SIZE, BLOCK_1G + BLOCK_2M + 2 * PAGE_SIZE);
    tree.map(
        &mut frames,
        Ipa::new(start),
        Pa::new(start),
        len,
        Access::RAM,
    )
    .expect("free");
    // Root; two tables for the page below; two for the block and the page above.
    assert_eq!(frames.count(), 5);
    assert_eq!(frames.read(tree.root(), 1), 0x4000_07fd);
    let mut frames = shared(100);
    let mut tree = stage2(&mut frames);
    // The same range to an output that is 4 KiB off: pages only.
    tree.map(
        &mut frames,
        Ipa::new(0),
        Pa::new(PAGE_SIZE),
        2 * BLOCK_2M,
        Access::RAM,
    )
    .expect("free");
    assert_eq!(frames.count(), 4);
}

#[test]
#[rustfmt::skip]
fn what_cannot_be_mapped_is_refused_and_changes_nothing() {
    let mut frames = shared(100);
    let mut tree = stage2(&mut frames);
    tree.map(&mut frames, Ipa::new(0x4000_3000), Pa::new(0x3000), PAGE_SIZE, Access::RAM).expect("free");
    let before = frames.0.borrow().tables.clone();
    let cases = [
        // ipa,            pa,              len,         why
        (0x4000_0000,      0,               0x4000,      MapError::AlreadyMapped(Ipa::new(0x4000_3000))),
        (0x4000_0000,      0,               BLOCK_1G,    MapError::AlreadyMapped(Ipa::new(0x4000_3000))),
        (0x4000_0000,      0,               0,           MapError::Misaligned),
        (0x4000_0001,      0,               PAGE_SIZE,   MapError::Misaligned),
        (0x4000_0000,      0x800,           PAGE_SIZE,   MapError::Misaligned),
        (0x4000_0000,      0,               0x1800,      MapError::Misaligned),
        (0x7f_ffff_f000,   0,               0x2000,      MapError::OutOfRange),
        (1 << 39,          0,               PAGE_SIZE,   MapError::OutOfRange),
        (!0xfff,           0,               PAGE_SIZE,   MapError::OutOfRange),
        (0,                (1 << 48) - PAGE_SIZE, 2 * PAGE_SIZE, MapError::OutOfRange),
        (0,                !0xfff,          PAGE_SIZE,   MapError::OutOfRange),
    ];
    for (ipa, pa, len, why) in cases {
        let got = tree.map(&mut frames, Ipa::new(ipa), Pa::new(pa), len, Access::RAM);
        assert_eq!(got, Err(why), "{ipa:#x} {pa:#x} {len:#x}");
        assert_eq!(frames.0.borrow().tables, before);
    }
    assert_eq!(tree.translate(&frames, Ipa::new(1 << 39)), None);
}

#[test]
fn without_frames_a_mapping_leaves_nothing_behind() {
    for limit in 1..7 {
        let mut frames = shared(limit);
        let mut tree = stage2(&mut frames);
        // Takes the root, and two tables on either side of 1 GiB: the output is not aligned.
        let (ipa, len) = (Ipa::new(BLOCK_1G - PAGE_SIZE), BLOCK_2M + PAGE_SIZE);
        let got = tree.map(&mut frames, ipa, Pa::new(0), len, Access::RAM);
        if limit < 5 {
            assert_eq!(got, Err(MapError::OutOfTables), "{limit}");
            assert_eq!(frames.count(), 1);
            assert!((0..ENTRIES).all(|index| frames.read(tree.root(), index) == 0));
        } else {
            assert_eq!(got, Ok(()));
            assert_eq!(frames.count(), 5);
        }
    }
}

#[test]
fn a_change_inside_a_block_splits_it() {
    let mut frames = shared(100);
    let invalidate = frames.clone();
    let mut tree = stage2(&mut frames);
    let ram = 0x4000_0000;
    tree.map(
        &mut frames,
        Ipa::new(ram),
        Pa::new(ram),
        BLOCK_1G,
        Access::RAM,
    )
    .expect("free");
    assert_eq!(frames.count(), 1);
    // Some pages from the start of a block on, then the last one of all.
    for (hole, len, tables) in [(0x4020_0000, 0x1_1000, 3), (0x7fff_f000, PAGE_SIZE, 4)] {
        tree.unmap(&mut frames, &invalidate, Ipa::new(hole), len)
            .expect("mapped");
        assert_eq!(frames.count(), tables);
    }
    for (ipa, mapped) in [
        (0x4000_0000, true),
        (0x401f_ffff, true),
        (0x4020_0000, false),
        (0x4021_0fff, false),
        (0x4021_1000, true),
        (0x7fff_efff, true),
        (0x7fff_f000, false),
        (0x8000_0000, false),
    ] {
        let found = tree.translate(&frames, Ipa::new(ipa));
        let expected = mapped.then_some((Pa::new(ipa), Access::RAM));
        assert_eq!(found, expected, "{ipa:#x}");
    }
}

#[test]
fn only_the_range_that_was_changed_is_invalidated() {
    let mut frames = Model::new(100);
    let stale = Cell::new(false);
    let log = Log(&stale, RefCell::new(Vec::new()));
    let mut tree = Stage2::new(&mut frames, Format::Stage2).expect("a root");
    tree.map(&mut frames, Ipa::new(0), Pa::new(0), BLOCK_2M, Access::RAM)
        .expect("free");
    assert!(log.1.borrow().is_empty(), "an invalid entry is not cached");
    tree.unmap(&mut frames, &log, Ipa::new(0), BLOCK_2M)
        .expect("in range");
    tree.destroy(&mut frames, &log);
    assert_eq!(*log.1.borrow(), [(0, BLOCK_2M), (0, u64::MAX)]);
    assert!(frames.tables.is_empty());
}

/// As when a domain cannot be made half-way: it has tables on each level, and none is left.
#[test]
fn a_tree_that_is_given_up_leaves_no_table() {
    let mut frames = Model::new(100);
    let mut tree = Stage2::new(&mut frames, Format::Stage2).expect("a root");
    for (ipa, len) in [
        (PAGE_SIZE, PAGE_SIZE),
        (BLOCK_2M, BLOCK_2M),
        (BLOCK_1G, BLOCK_1G),
        (5 * BLOCK_1G - PAGE_SIZE, 2 * PAGE_SIZE),
    ] {
        tree.map(&mut frames, Ipa::new(ipa), Pa::new(ipa), len, Access::RAM)
            .expect("free");
    }
    assert!(frames.tables.len() > 5);
    let stale = Cell::new(false);
    tree.destroy(&mut frames, &Log(&stale, RefCell::new(Vec::new())));
    assert!(frames.tables.is_empty());
}

#[test]
#[rustfmt::skip]
fn registers_are_the_manuals() {
    let (pa40, pa44, pa48) = (PaRange::decode(0x2), PaRange::decode(0x4), PaRange::decode(0x6));
    assert_eq!(tcr_el2(48, pa44), 0x8084_3510);
    assert_eq!(MAIR_EL2, 0x04ff);
    let cases = [
        (39, pa40, VmidBits::Eight,   0x8002_3559),
        (39, pa44, VmidBits::Sixteen, 0x800c_3559),
        (44, pa44, VmidBits::Sixteen, 0x800c_3594),
        (48, pa48, VmidBits::Sixteen, 0x800d_3590),
        (30, pa48, VmidBits::Eight,   0x8005_3522),
    ];
    for (bits, pa_range, vmid, expected) in cases {
        let got = vtcr_el2(bits, pa_range, vmid);
        assert_eq!(got, expected, "{bits} {pa_range:?} {vmid:?}: {got:#x}");
    }
    assert_eq!(VmidBits::decode(0x0000_0000_0000_0020), VmidBits::Sixteen);
    assert_eq!(VmidBits::decode(0x0000_0000_1021_2100), VmidBits::Eight);
    let mut vmids = Vmids::new(VmidBits::Eight);
    let first = vmids.allocate().expect("one");
    assert_eq!(vttbr_el2(first, Pa::new(0x4567_8000)), 0x0001_0000_4567_8000);
}

#[test]
fn vmids_are_unique_and_come_back() {
    for (bits, count) in [(VmidBits::Eight, 255), (VmidBits::Sixteen, 65535)] {
        let mut vmids = Vmids::new(bits);
        let all: BTreeSet<Vmid> = core::iter::from_fn(|| vmids.allocate()).collect();
        assert_eq!(all.len(), count);
        assert!(!all.contains(&Vmid::NONE));
        let some = *all.iter().nth(100).expect("many");
        vmids.free(some);
        assert_eq!(vmids.allocate(), Some(some));
        assert_eq!(vmids.allocate(), None);
    }
}

#[test]
#[should_panic(expected = "was not handed out")]
fn a_vmid_comes_back_once() {
    let mut vmids = Vmids::new(VmidBits::Eight);
    let vmid = vmids.allocate().expect("one");
    vmids.free(vmid);
    vmids.free(vmid);
}

/// A step of the property test: map or unmap some pages near a boundary.
#[derive(Clone, Debug)]
struct Step {
    what: u8,
    page: u64,
    pages: u64,
    output: u64,
    rights: u8,
}

fn step() -> impl Strategy<Value = Step> {
    // Pages around 1 GiB, so that all levels are met; lengths up to a few blocks.
    let page = (0u64..2048, prop::bool::ANY)
        .prop_map(|(page, round)| 0x4_0000 - 1024 + if round { page & !511 } else { page });
    let pages = prop_oneof![1u64..8, Just(512u64), Just(1024), 1u64..1200];
    let output = (0u64..4096, prop::bool::ANY)
        .prop_map(|(page, round)| if round { page & !511 } else { page });
    (0u8..5, page, pages, output, 0u8..8).prop_map(|(what, page, pages, output, rights)| Step {
        what,
        page,
        pages,
        output,
        rights,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn the_tree_agrees_with_a_map_of_pages(
        steps in prop::collection::vec(step(), 1..40),
        limit in 4usize..14,
    ) {
        let mut frames = shared(limit);
        let invalidate = frames.clone();
        let mut tree = stage2(&mut frames);
        let mut model: BTreeMap<u64, (u64, Rights)> = BTreeMap::new();
        for Step { what, page, pages, output, rights } in steps {
            let (ipa, len) = (Ipa::new(page * PAGE_SIZE), pages * PAGE_SIZE);
            let range = page..page + pages;
            let rights = Rights::from_bits_truncate(rights);
            match what {
                0..3 => {
                    let access = Access { rights, memory: Memory::Normal };
                    let pa = Pa::new(output * PAGE_SIZE);
                    let taken = model.range(range.clone()).next().map(|(page, _)| *page);
                    match tree.map(&mut frames, ipa, pa, len, access) {
                        Ok(()) => {
                            prop_assert_eq!(taken, None);
                            model.extend(range.map(|p| (p, (output + p - page, rights))));
                        }
                        Err(MapError::AlreadyMapped(_)) => prop_assert!(taken.is_some()),
                        Err(error) => prop_assert_eq!(error, MapError::OutOfTables),
                    }
                }
                _ => match tree.unmap(&mut frames, &invalidate, ipa, len) {
                    Ok(()) => model.retain(|page, _| !range.contains(page)),
                    Err(error) => prop_assert_eq!(error, MapError::OutOfTables),
                },
            }
            for page in (0x4_0000 - 1030..0x4_0000 + 2300).step_by(3) {
                let found = tree.translate(&frames, Ipa::new(page * PAGE_SIZE + 5));
                let expected = model.get(&page).map(|(output, rights)| {
                    let access = Access { rights: *rights, memory: Memory::Normal };
                    (Pa::new(output * PAGE_SIZE + 5), access)
                });
                prop_assert_eq!(found, expected, "page {:#x}", page);
            }
                        let mut found = BTreeSet::new();
            frames.0.borrow().reachable(tree.root().get(), 1, &mut found);
            prop_assert_eq!(frames.count(), found.len());
        }
        frames.0.borrow_mut().limit = usize::MAX;
        tree.unmap(&mut frames, &invalidate, Ipa::new(0), 1 << 39).expect("in range");
        prop_assert_eq!(frames.count(), 1);
        frames.0.borrow_mut().root = None;
        tree.destroy(&mut frames, &invalidate);
        prop_assert!(frames.0.borrow().tables.is_empty());
    }
}
