//! The driver against a model of an SMMU that reads its queue and its stream table from memory.

use super::*;
use crate::dma::testing::{Arena, View};
use crate::mmio::testing::Array;
use proptest::prelude::*;
use std::cell::RefCell;
use std::collections::BTreeMap;

/// What sort of SMMU it is.
#[derive(Clone, Copy, Debug)]
struct Fake {
    idr0: u32,
    idr1: u32,
    idr3: u32,
    idr5: u32,
    /// Carries out one command for each look at CMDQ_CONS.
    slow: bool,
    /// Acknowledges nothing.
    dead: bool,
}

/// As QEMU's `virt-10.0`.
const NESTED: Fake = Fake {
    idr0: 0x0d44_101b,
    idr1: 0x0273_0010,
    idr3: 0x1414,
    idr5: 0x74,
    slow: false,
    dead: false,
};
/// As QEMU's with stage 1 only.
const STAGE1: Fake = Fake {
    idr0: 0x0d44_101a,
    idr3: 0x1404,
    ..NESTED
};

const CMDQ_CONS: usize = 0x9c;
const GERROR: usize = 0x60;
const GERRORN: usize = 0x64;
const EVENTQ_PROD: usize = 0x1_00a8;
const EVENTQ_CONS: usize = 0x1_00ac;

struct Model {
    kind: Fake,
    memory: View,
    registers: Array,
    inner: RefCell<Inner>,
}

#[derive(Default)]
struct Inner {
    /// Commands as they were carried out.
    log: Vec<[u64; 2]>,
    /// What the SMMU caches of the stream table.
    cached: BTreeMap<u32, Option<[u64; 8]>>,
    /// Pages that the SMMU caches, by VMID or ASID; and what it found there.
    pages: BTreeMap<(u16, u64), u32>,
    /// Opcodes that are refused.
    illegal: Vec<u64>,
    /// After how many more CFGI_STE they are refused.
    fail_after: Option<u32>,
    /// How often a command cannot be read.
    unreadable: u32,
    /// How often GBPA still reads with UPDATE.
    updating: u32,
    /// Commands are carried out only just before GERROR is read, once there are several.
    late: bool,
}

impl Model {
    fn new(kind: Fake, arena: &Arena) -> Self {
        let registers = Array::new(0x2_0000);
        for (offset, value) in [
            (0, kind.idr0),
            (4, kind.idr1),
            (0xc, kind.idr3),
            (0x14, kind.idr5),
            (0x44, 0x1000),
        ] {
            registers.preset32(offset, value);
        }
        Self {
            kind,
            memory: arena.view(),
            registers,
            inner: RefCell::default(),
        }
    }

    fn base(&self, register: usize) -> (u64, u32) {
        let base = self.registers.read64(register);
        (base & 0x000f_ffff_ffff_ffe0, (base & 0x1f) as u32)
    }

    fn run(&self, most: usize) {
        let (base, log2) = self.base(0x90);
        for _ in 0..most {
            let cons = self.registers.read32(CMDQ_CONS);
            let read = cons & 0xf_ffff;
            let stopped = (self.registers.read32(GERROR) ^ self.registers.read32(GERRORN)) & 1 != 0;
            let on = self.registers.read32(0x20) & 8 != 0;
            if !on || stopped || read == self.registers.read32(0x98) {
                return;
            }
            let at = base + u64::from(read & ((1 << log2) - 1)) * 16;
            let words = [at, at + 8].map(|pa| self.memory.read(pa).unwrap());
            let unreadable = self.inner.borrow().unreadable;
            let error = match unreadable {
                0 => u32::from(!self.carry_out(words)),
                _ => 2,
            };
            if error != 0 {
                self.inner.borrow_mut().unreadable = unreadable.saturating_sub(1);
                self.registers
                    .preset32(CMDQ_CONS, cons & !(0x7f << 24) | error << 24);
                self.registers
                    .preset32(GERROR, self.registers.read32(GERROR) ^ 1);
                return;
            }
            let next = (read + 1) & ((2 << log2) - 1);
            // The error code stays, as QEMU leaves it.
            self.registers
                .preset32(CMDQ_CONS, cons & (0x7f << 24) | next);
        }
    }

    fn carry_out(&self, words: [u64; 2]) -> bool {
        let mut inner = self.inner.borrow_mut();
        let (stage1, stage2) = (self.kind.idr0 & 2 != 0, self.kind.idr0 & 1 != 0);
        let code = words[0] & 0xff;
        let known = match code {
            0x03 | 0x04 | 0x30 | 0x46 => true,
            0x11 | 0x12 => stage1,
            0x28 | 0x2a => stage2,
            _ => false,
        };
        if !known || inner.illegal.contains(&code) {
            return false;
        }
        if code == 0x03
            && let Some(left) = inner.fail_after
        {
            inner.fail_after = Some(left.saturating_sub(1));
            if left == 0 {
                return false;
            }
        }
        match code {
            0x03 => drop(inner.cached.remove(&((words[0] >> 32) as u32))),
            0x04 => inner.cached.clear(),
            0x30 => inner.pages.clear(),
            0x28 | 0x11 => {
                let id = id_of(words[0]);
                inner.pages.retain(|(of, _), _| *of != id);
            }
            0x2a | 0x12 => {
                let id = id_of(words[0]);
                // Without TG it is one page (4.4.1.1).
                let pages = match words[1] >> 10 & 3 {
                    0 => 1,
                    _ => ((words[0] >> 12 & 0x1f) + 1) << (words[0] >> 20 & 0x1f),
                };
                let named = words[1] >> 12..(words[1] >> 12) + pages;
                let gone = |(of, page): &(u16, u64)| *of == id && named.contains(page);
                inner.pages.retain(|key, _| !gone(key));
            }
            _ => {}
        }
        if code != 0x46 {
            inner.log.push(words);
        }
        true
    }

    /// Reads a stream's entry as hardware does when the stream makes an access.
    fn entry(&self, stream: u32) -> Option<[u64; 8]> {
        let mut inner = self.inner.borrow_mut();
        let entry = inner
            .cached
            .entry(stream)
            .or_insert_with(|| self.fetch(stream));
        if let Some(words) = entry {
            // It refuses, or it is whole.
            let whole = words[0] <= 1 || words[1] != 0 && (words[2] != 0 || words[0] >> 6 != 0);
            assert!(whole, "half an entry: {words:x?}");
        }
        *entry
    }

    /// `None` is C_BAD_STREAMID.
    fn fetch(&self, stream: u32) -> Option<[u64; 8]> {
        let base = self.registers.read64(0x80) & 0x000f_ffff_ffff_ffc0;
        let config = self.registers.read32(0x88);
        let stream = u64::from(stream);
        if stream >> (config & 0x3f) != 0 {
            return None;
        }
        let at = match config >> 16 & 3 {
            0 => base + stream * 64,
            _ => {
                let split = config >> 6 & 0x1f;
                let first = self.memory.read(base + (stream >> split) * 8)?;
                let span = (first & 0x1f) as u32;
                if span == 0 {
                    return None;
                }
                assert_eq!(span, split + 1);
                (first & 0x000f_ffff_ffff_ffc0) + (stream & ((1 << split) - 1)) * 64
            }
        };
        Some([0, 1, 2, 3, 4, 5, 6, 7].map(|n| self.memory.read(at + 8 * n).unwrap()))
    }

    /// Returns the tables that a stream's accesses go through now, and under which VMID or ASID.
    fn reached(&self, stream: u32) -> Option<(u64, u16)> {
        let words = self.entry(stream)?;
        match words[0] >> 1 & 7 {
            0b000 => None,
            0b101 => {
                let context = words[0] & 0x000f_ffff_ffff_ffc0;
                let word = |n: u64| self.memory.read(context + 8 * n).unwrap();
                Some((word(1), (word(0) >> 48) as u16))
            }
            0b110 => Some((words[3], (words[2] & 0xffff) as u16)),
            other => panic!("configuration {other:#b}"),
        }
    }

    /// Reads a page as a stream: returns what is in the cache, and else what `found` says is in the
    /// tables, which it keeps.
    fn read_page(&self, stream: u32, page: u64, found: impl Fn(u64) -> u32) -> Option<u32> {
        let (root, id) = self.reached(stream)?;
        let mut inner = self.inner.borrow_mut();
        Some(*inner.pages.entry((id, page)).or_insert_with(|| found(root)))
    }

    /// Records an event; returns whether there was room.
    fn record(&self, words: [u64; 4]) -> bool {
        let (base, log2) = self.base(0xa0);
        let written = self.registers.read32(EVENTQ_PROD);
        let read = self.registers.read32(EVENTQ_CONS);
        if (written ^ read) & ((2 << log2) - 1) == 1 << log2 {
            // Only if the last overflow has been acknowledged.
            if (written ^ read) >> 31 == 0 {
                self.registers.preset32(EVENTQ_PROD, written ^ 1 << 31);
            }
            return false;
        }
        let at = base + u64::from(written & ((1 << log2) - 1)) * 32;
        for (n, word) in words.into_iter().enumerate() {
            self.memory.write(at + 8 * n as u64, word).unwrap();
        }
        let next = ((written & 0xf_ffff) + 1) & ((2 << log2) - 1);
        self.registers
            .preset32(EVENTQ_PROD, written & 1 << 31 | next);
        true
    }
}

/// Returns the VMID or the ASID that a command names.
fn id_of(word: u64) -> u16 {
    match word & 0xff {
        0x11 | 0x12 => (word >> 48) as u16,
        _ => (word >> 32 & 0xffff) as u16,
    }
}

impl Bus for Model {
    fn len(&self) -> usize {
        0x2_0000
    }
    fn read8(&self, _: usize) -> u8 {
        unreachable!()
    }
    fn read16(&self, _: usize) -> u16 {
        unreachable!()
    }
    fn read32(&self, offset: usize) -> u32 {
        let mut inner = self.inner.borrow_mut();
        if offset == 0x44 && inner.updating > 0 {
            inner.updating -= 1;
            return self.registers.read32(0x44) | 1 << 31;
        }
        drop(inner);
        if offset == CMDQ_CONS && self.kind.slow {
            self.run(1);
        }
        let waiting =
            || self.registers.read32(0x98) - (self.registers.read32(CMDQ_CONS) & 0xf_ffff);
        if offset == GERROR && self.inner.borrow().late && waiting() > 2 {
            self.inner.borrow_mut().late = false;
            self.run(usize::MAX);
        }
        self.registers.read32(offset)
    }
    fn read64(&self, offset: usize) -> u64 {
        self.registers.read64(offset)
    }
    fn write8(&self, _: usize, _: u8) {
        unreachable!()
    }
    fn write16(&self, _: usize, _: u16) {
        unreachable!()
    }
    fn write32(&self, offset: usize, value: u32) {
        match offset {
            0x44 if value >> 31 == 0 => return,
            0x44 => {
                self.inner.borrow_mut().updating = if self.kind.dead { u32::MAX } else { 3 };
                self.registers.write32(0x44, value & !(1 << 31));
                return;
            }
            // Acknowledged at once, with what is implemented.
            0x20 => self.registers.preset32(0x24, value & !0x10),
            0x50 => self.registers.preset32(0x54, value),
            _ => {}
        }
        self.registers.write32(offset, value);
        if !self.kind.slow && !self.kind.dead && !self.inner.borrow().late {
            self.run(usize::MAX);
        }
    }
    fn write64(&self, offset: usize, value: u64) {
        self.registers.write64(offset, value);
    }
}

const SPACE: AddressSpace = AddressSpace {
    root: Pa::new(0x4020_3000),
    id: 7,
    input_bits: 39,
    end: Pa::new(1 << 44),
};

fn started<'a>(model: &'a Model, arena: &mut Arena) -> Smmu<&'a Model> {
    Smmu::new(model, Coherency::Coherent, 0x1_0000, arena).unwrap()
}

fn codes(model: &Model) -> Vec<u64> {
    core::mem::take(&mut model.inner.borrow_mut().log)
        .iter()
        .map(|words| words[0] & 0xff)
        .collect()
}

#[test]
fn everything_is_refused_before_anything_else() {
    let arena = Arena::new(0);
    let model = Model::new(NESTED, &arena);
    model.registers.preset32(0x20, 0xd); // left on by firmware
    model.registers.preset32(0x24, 0xd);
    abort_all(&model).unwrap();
    // GBPA keeps its other fields; then translation off.
    assert_eq!(
        *model.registers.writes.borrow(),
        [(0x44, 0x10_1000), (0x20, 0)]
    );
    let dead = Model::new(
        Fake {
            dead: true,
            ..NESTED
        },
        &arena,
    );
    assert_eq!(abort_all(&dead), Err(Error::Timeout));
}

#[test]
#[rustfmt::skip]
fn capabilities_are_those_of_the_id_registers() {
    let arena = Arena::new(0);
    let capabilities = |kind: Fake| Capabilities::read(&Model::new(kind, &arena), Coherency::Coherent);
    let nested = capabilities(NESTED).unwrap();
    assert_eq!(nested, Capabilities {
        stage1: true, stage2: true, coherency: Coherency::Coherent, output_bits: 44,
        stream_bits: 16, two_level: true, command_queue: 19, event_queue: 19,
        range_invalidation: true, id_bits: 16,
        hypervisor: false, ats: false, msi: false, stall: false,
    });
    assert_eq!((nested.format(), nested.input_bits()), (Format::Stage2, 44));
    let stage1 = capabilities(STAGE1).unwrap();
    assert_eq!((stage1.format(), stage1.input_bits()), (Format::Stage1, 48));
    for (kind, lacks) in [
        (Fake { idr0: NESTED.idr0 & !3, ..NESTED },             "a stage of translation"),
        (Fake { idr0: NESTED.idr0 & !(2 << 2), ..NESTED },      "AArch64 tables"),
        (Fake { idr0: NESTED.idr0 | 3 << 21, ..NESTED },        "little-endian tables"),
        (Fake { idr5: 0x64, ..NESTED },                         "the 4 KiB granule"),
        (Fake { idr1: NESTED.idr1 | 1 << 30, ..NESTED },        "a stream table of our own"),
        (Fake { idr1: NESTED.idr1 | 1 << 29, ..NESTED },        "queues of our own"),
        (Fake { idr0: NESTED.idr0 & !(3 << 24) | 2 << 24, ..NESTED }, "faults that end"),
    ] {
        assert_eq!(capabilities(kind), Err(Error::Lacks(lacks)));
    }
    // A device tree that names less than there is.
    let model = Model::new(NESTED, &arena);
    let half = crate::mmio::Part::new(&model, 0, 0x1_0000).unwrap();
    let lacks = Err(Error::Lacks("its second page of registers"));
    assert_eq!(Capabilities::read(&half, Coherency::Coherent), lacks);
}

#[test]
fn it_starts_with_every_stream_refused() {
    for slow in [false, true] {
        let mut arena = Arena::new(0x40_0000);
        let model = Model::new(Fake { slow, ..NESTED }, &arena);
        started(&model, &mut arena);
        assert_eq!(codes(&model), [0x04, 0x30]);
        let register = |offset| model.registers.read32(offset);
        assert_eq!(register(0x20), 0xd); // SMMUEN, EVENTQEN, CMDQEN
        assert_eq!(register(0x28), 0xd75); // all write-back, inner shareable
        assert_eq!(register(0x2c), 0b100); // PTM
        assert_eq!(register(0x44), 0x10_1000); // ABORT when it is off again
        assert_eq!(register(0x88), 1 << 16 | 6 << 6 | 16);
        assert_eq!(model.registers.read64(0x90) & 0x1f, 8);
        assert_eq!(model.registers.read64(0xa0) & 0x1f, 11);
        assert_eq!(model.entry(0x18), None);
        // The last write to CR0 is the one with SMMUEN, after everything else.
        let writes = model.registers.writes.borrow();
        assert_eq!(writes.last(), Some(&(0x20, 0xd)));
    }
}

#[test]
fn a_stream_is_attached_and_detached() {
    for slow in [false, true] {
        let mut arena = Arena::new(0x40_0000);
        let model = Model::new(Fake { slow, ..NESTED }, &arena);
        let mut smmu = started(&model, &mut arena);
        assert_eq!(model.entry(0x18), None); // and is cached as such
        codes(&model);
        smmu.attach(0x18, &SPACE, &mut arena).unwrap();
        assert!(smmu.is_attached(0x18) && !smmu.is_attached(0x19));
        let entry = model.entry(0x18).unwrap();
        // S2PS 44 bits, T0SZ 25, SL0 1, write-back, inner shareable, AA64, AFFD, R.
        let third = 0x0424_0000_0000_0000 | 4 << 48 | 1 << 51 | 0x3559 << 32 | 7;
        assert_eq!(
            entry,
            [0xd, 1 << 44 | 1 << 19, third, 0x4020_3000, 0, 0, 0, 0]
        );
        assert_eq!(model.entry(0x19), Some([1, 0, 0, 0, 0, 0, 0, 0])); // its neighbor
        assert_eq!(codes(&model), [0x03, 0x03]);

        assert_eq!(
            smmu.attach(0x18, &SPACE, &mut arena),
            Err(Error::Attached(0x18))
        );
        smmu.detach(0x18, &mut arena).unwrap();
        assert_eq!(model.entry(0x18), Some([1, 0, 0, 0, 0, 0, 0, 0]));
        assert_eq!(codes(&model), [0x03, 0x28, 0x03]);
        smmu.detach(0x18, &mut arena).unwrap();
        smmu.detach(0x4000, &mut arena).unwrap();
        assert_eq!(codes(&model), []);
        smmu.attach(0x18, &SPACE, &mut arena).unwrap();
    }
}

#[test]
#[rustfmt::skip]
fn a_stage_2_entry_follows_the_address_space() {
    let arena = Arena::new(0);
    let nested = Capabilities::read(&Model::new(NESTED, &arena), Coherency::Coherent).unwrap();
    let wide = Capabilities { output_bits: 48, ..nested };
    let apart = Capabilities { coherency: Coherency::Software, ..nested };
    let cases = [
        // capabilities, bits, upper half of the third word
        (nested, 39, 0x042c_3559), // T0SZ 25, SL0 1
        (nested, 44, 0x042c_3594), // T0SZ 20, SL0 2
        (nested, 30, 0x042c_3522), // T0SZ 34, SL0 0
        (wide,   48, 0x042d_3590), // T0SZ 16, SL0 2, PS 48
        (apart,  39, 0x042c_0059), // walks without caches
    ];
    for (capabilities, input_bits, upper) in cases {
        let entry = stream::stage2(&AddressSpace { input_bits, ..SPACE }, &capabilities);
        assert_eq!(entry[2] >> 32, upper, "{input_bits}: {:#x}", entry[2] >> 32);
    }
}

#[test]
fn stage_1_takes_the_place_of_stage_2() {
    let mut arena = Arena::new(0x40_0000);
    let model = Model::new(STAGE1, &arena);
    let mut smmu = started(&model, &mut arena);
    assert_eq!(smmu.format(), Format::Stage1);
    codes(&model);
    let before = arena.taken();
    smmu.attach(0x18, &SPACE, &mut arena).unwrap();
    let entry = model.entry(0x18).unwrap();
    let context = entry[0] & 0x000f_ffff_ffff_ffc0;
    assert_eq!(entry[0] & 0x3f, 0b1011);
    assert_eq!(entry[1..], [1 << 44 | 1 << 19 | 0xd4, 0, 0, 0, 0, 0, 0]);
    let word = |n: u64| model.memory.read(context + 8 * n).unwrap();
    // ASID, ASET, A, R, AA64, AFFD, IPS 44 bits; V, EPD1, inner shareable, write-back, T0SZ 25.
    assert_eq!(word(0), 0x0007_e20c_c000_3519);
    assert_eq!([word(1), word(2), word(3)], [0x4020_3000, 0, 0x04ff]);
    smmu.invalidate(7, Ipa::new(0x4000_0000), 0x1000).unwrap();
    smmu.detach(0x18, &mut arena).unwrap();
    assert_eq!(codes(&model), [0x03, 0x03, 0x12, 0x03, 0x11, 0x03]);
    // The table of the second level stays.
    assert_eq!(arena.taken(), before + 0x1000);
}

#[test]
fn an_address_space_that_does_not_fit_is_refused() {
    let mut arena = Arena::new(0x40_0000);
    let model = Model::new(
        Fake {
            idr0: NESTED.idr0 & !(1 << 18),
            ..NESTED
        },
        &arena,
    );
    let mut smmu = started(&model, &mut arena);
    codes(&model);
    let root = Pa::new(1 << 44);
    let end = Pa::new((1 << 44) + 1);
    for (stream, space, error) in [
        (
            0x18,
            AddressSpace {
                input_bits: 45,
                ..SPACE
            },
            Error::InputBits(45),
        ),
        (
            0x18,
            AddressSpace {
                input_bits: 24,
                ..SPACE
            },
            Error::InputBits(24),
        ),
        (
            0x18,
            AddressSpace { id: 256, ..SPACE },
            Error::NoSuchId(256),
        ),
        (
            0x18,
            AddressSpace { root, ..SPACE },
            Error::OutOfReach(root),
        ),
        (0x18, AddressSpace { end, ..SPACE }, Error::OutOfReach(end)),
        (0x1_0000, SPACE, Error::NoSuchStream(0x1_0000)),
        (u32::MAX, SPACE, Error::NoSuchStream(u32::MAX)),
    ] {
        assert_eq!(smmu.attach(stream, &space, &mut arena), Err(error));
        // Nothing has to be undone.
        assert!(!smmu.is_attached(stream));
        assert_eq!(smmu.detach(stream, &mut arena), Ok(()));
        assert_eq!([smmu.refuse(stream), smmu.resume(stream)], [Ok(()), Ok(())]);
    }
    assert_eq!(
        smmu.attach(0x18, &SPACE, &mut Arena::new(0)),
        Err(Error::OutOfMemory)
    );
    assert_eq!(codes(&model), []);
    smmu.attach(0x18, &SPACE, &mut arena).unwrap();
}

#[test]
#[rustfmt::skip]
fn the_stream_table_has_the_shape_that_fits() {
    let cases = [
        // SIDSIZE, wanted,     2-level,  LOG2SIZE, SPLIT
        (16,        0x1_0000,   1,        16,       Some(6)),
        (16,        0x1_0000,   0,        16,       None),
        (16,        0x100,      1,        8,        None),
        (16,        0x101,      1,        9,        Some(6)),
        (6,         0x1_0000,   1,        6,        None),
        (0,         0x1_0000,   1,        0,        None),
        (32,        1 << 24,    1,        24,       Some(8)),
        (32,        1 << 32,    1,        27,       Some(10)),
    ];
    for (bits, wanted, two_level, log2, split) in cases {
        let kind = Fake {
            idr0: NESTED.idr0 & !(3 << 27) | two_level << 27, idr1: NESTED.idr1 & !0x3f | bits, ..NESTED
        };
        let mut arena = Arena::new(0x100_0000);
        let model = Model::new(kind, &arena);
        let mut smmu = Smmu::new(&model, Coherency::Coherent, wanted, &mut arena).unwrap();
        let config = model.registers.read32(0x88);
        assert_eq!(config & 0x3f, log2, "{bits} {wanted:#x}");
        assert_eq!((config >> 16 == 1).then_some(config >> 6 & 0x1f), split, "{bits} {wanted:#x}");
        let last = u32::try_from((1u64 << log2) - 1).unwrap();
        smmu.attach(last, &SPACE, &mut arena).unwrap();
        assert!(model.entry(last).is_some_and(|entry| entry[0] == 0xd));
        if last > 0 {
            assert!(model.entry(0).is_none_or(|entry| entry[0] == 1));
        }
    }
}

#[test]
fn without_coherency_nothing_is_cacheable() {
    let mut arena = Arena::new(0x40_0000);
    let model = Model::new(
        Fake {
            idr0: NESTED.idr0 & !(1 << 4),
            ..NESTED
        },
        &arena,
    );
    let smmu = started(&model, &mut arena);
    assert_eq!(smmu.coherency(), Coherency::Software);
    assert_eq!(model.registers.read32(0x28), 0);
    // Where firmware says that it is not wired up for it, what the SMMU itself says does not count.
    let model = Model::new(NESTED, &arena);
    let smmu = Smmu::new(&model, Coherency::Software, 0x1_0000, &mut arena).unwrap();
    assert_eq!(smmu.coherency(), Coherency::Software);
    assert_eq!(model.registers.read32(0x28), 0);
}

#[test]
fn invalidation_uses_ranges_where_there_are_any() {
    let mut arena = Arena::new(0x40_0000);
    let model = Model::new(NESTED, &arena);
    let mut smmu = started(&model, &mut arena);
    codes(&model);
    smmu.invalidate(7, Ipa::new(0x4000_0000), 2 << 20).unwrap();
    // NUM 0, SCALE 9; TG 1.
    assert_eq!(model.inner.borrow().log, [[0x7_0090_002a, 0x4000_0400]]);
    codes(&model);

    let model = Model::new(
        Fake {
            idr3: 0,
            slow: true,
            ..NESTED
        },
        &arena,
    );
    let mut smmu = started(&model, &mut arena);
    codes(&model);
    smmu.invalidate(7, Ipa::new(0x4000_0fff), 2).unwrap();
    assert_eq!(
        model.inner.borrow().log,
        [[0x7_0000_002a, 0x4000_0000], [0x7_0000_002a, 0x4000_1000]]
    );
    codes(&model);
    smmu.invalidate(7, Ipa::new(0x4000_0000), 2 << 20).unwrap();
    assert_eq!(model.inner.borrow().log, [[0x7_0000_0028, 0]]);
    smmu.invalidate(7, Ipa::new(u64::MAX), 2).unwrap();
    assert_eq!(codes(&model), [0x28, 0x28]);
}

#[test]
fn the_command_queue_wraps_and_fills_up() {
    for (slow, bits) in [(false, 19), (true, 19), (false, 1), (true, 1), (true, 0)] {
        let mut arena = Arena::new(0x40_0000);
        let idr1 = NESTED.idr1 & !(0x1f << 21) | bits << 21;
        let model = Model::new(
            Fake {
                idr1,
                idr3: 0,
                slow,
                ..NESTED
            },
            &arena,
        );
        let mut smmu = started(&model, &mut arena);
        codes(&model);
        for _ in 0..20 {
            smmu.invalidate(7, Ipa::new(0), 64 << 12).unwrap();
        }
        assert_eq!(codes(&model), [0x2a; 20 * 64]);
    }
}

#[test]
fn a_refused_command_is_an_error_and_the_queue_goes_on() {
    for slow in [false, true] {
        let mut arena = Arena::new(0x40_0000);
        let model = Model::new(Fake { slow, ..NESTED }, &arena);
        let mut smmu = started(&model, &mut arena);
        model.inner.borrow_mut().illegal.push(0x28);
        let refused = Err(Error::Rejected {
            command: 0x28,
            reason: 1,
        });
        assert_eq!(smmu.invalidate_all(7), refused);
        assert_eq!(smmu.invalidate_all(7), refused);
        model.inner.borrow_mut().illegal.clear();
        // CMDQ_CONS.ERR stays, and means nothing any more.
        assert_ne!(model.registers.read32(CMDQ_CONS) >> 24, 0);
        assert_eq!(smmu.invalidate_all(7), Ok(()));
        assert_eq!(smmu.global_errors(), None);
    }
}

#[test]
fn a_command_that_cannot_be_read_is_read_again() {
    for slow in [false, true] {
        let mut arena = Arena::new(0x40_0000);
        let model = Model::new(Fake { slow, ..NESTED }, &arena);
        let mut smmu = started(&model, &mut arena);
        codes(&model);
        for times in 1..=3 {
            model.inner.borrow_mut().unreadable = times;
            assert_eq!(smmu.invalidate_all(7), Ok(()), "{times}");
            assert_eq!(codes(&model), [0x28]);
        }
        model.inner.borrow_mut().unreadable = 1000;
        for _ in 0..2 {
            assert_eq!(smmu.invalidate_all(7), Err(Error::Unreadable));
            assert_eq!(
                smmu.attach(0x18, &SPACE, &mut arena),
                Err(Error::Unreadable)
            );
        }
        assert_eq!(codes(&model), []);
        assert_eq!(smmu.turn_off(), Ok(()));
    }
}

#[test]
fn an_smmu_that_is_off_refuses_everything_and_has_nothing_to_forget() {
    for kind in [NESTED, STAGE1] {
        let mut arena = Arena::new(0x40_0000);
        let model = Model::new(kind, &arena);
        let mut smmu = started(&model, &mut arena);
        let before = arena.taken();
        smmu.attach(0x18, &SPACE, &mut arena).unwrap();
        codes(&model);
        smmu.turn_off().unwrap();
        assert!(smmu.is_off());
        assert_eq!(model.registers.read32(0x20), 0);
        assert_eq!(model.registers.read32(0x44), 0x10_1000);
        assert_eq!(smmu.attach(0x19, &SPACE, &mut arena), Err(Error::Off));
        assert_eq!(smmu.resume(0x18), Err(Error::Off));
        assert_eq!(smmu.refuse(0x18), Ok(()));
        assert_eq!(smmu.invalidate(7, Ipa::new(0), 0x1000), Ok(()));
        assert_eq!(smmu.invalidate_all(7), Ok(()));
        assert_eq!(smmu.detach(0x18, &mut arena), Ok(()));
        assert!(!smmu.is_attached(0x18));
        assert_eq!(codes(&model), []);
        // Of the stream all is given back but the table of the second level.
        assert_eq!(arena.taken(), before + 0x1000);
    }
}

#[test]
fn an_smmu_that_cannot_be_turned_off_is_told_unless_it_gave_up_itself() {
    let mut arena = Arena::new(0x40_0000);
    let model = Model::new(NESTED, &arena);
    let mut smmu = started(&model, &mut arena);
    model.inner.borrow_mut().updating = u32::MAX; // GBPA is never taken
    assert_eq!(smmu.turn_off(), Err(Error::Timeout));
    assert!(!smmu.is_off());
    model.registers.preset32(GERROR, 1 << 8);
    assert!(smmu.global_errors().unwrap().service_failure());
    assert_eq!(smmu.turn_off(), Ok(()));
    assert_eq!(smmu.attach(0x18, &SPACE, &mut arena), Err(Error::Off));
}

#[test]
fn a_stream_is_refused_for_a_while() {
    for kind in [NESTED, STAGE1] {
        let mut arena = Arena::new(0x40_0000);
        let model = Model::new(kind, &arena);
        let mut smmu = started(&model, &mut arena);
        smmu.refuse(0x18).unwrap();
        smmu.resume(0x18).unwrap();
        assert!(!smmu.is_attached(0x18));
        smmu.attach(0x18, &SPACE, &mut arena).unwrap();
        let entry = model.entry(0x18).unwrap();
        smmu.refuse(0x18).unwrap();
        assert_eq!(model.entry(0x18).unwrap()[0], 1);
        assert!(smmu.is_attached(0x18));
        assert_eq!(
            smmu.attach(0x18, &SPACE, &mut arena),
            Err(Error::Attached(0x18))
        );
        smmu.resume(0x18).unwrap();
        assert_eq!(model.entry(0x18), Some(entry));
        // What is refused can be detached, and is as new.
        smmu.refuse(0x18).unwrap();
        smmu.detach(0x18, &mut arena).unwrap();
        assert_eq!(model.entry(0x18), Some([1, 0, 0, 0, 0, 0, 0, 0]));
    }
}

#[test]
fn an_entry_that_may_have_been_read_is_not_taken_for_clear() {
    let mut arena = Arena::new(0x40_0000);
    let model = Model::new(NESTED, &arena);
    let mut smmu = started(&model, &mut arena);
    model.inner.borrow_mut().fail_after = Some(1);
    let refused = Err(Error::Rejected {
        command: 0x03,
        reason: 1,
    });
    // The second of the two commands fails: between them the entry translated.
    assert_eq!(smmu.attach(0x18, &SPACE, &mut arena), refused);
    assert_eq!(model.fetch(0x18).unwrap()[0], 1);
    assert!(smmu.is_attached(0x18));
    model.inner.borrow_mut().fail_after = None;
    codes(&model);
    smmu.detach(0x18, &mut arena).unwrap();
    assert_eq!(codes(&model), [0x03, 0x28, 0x03]);
}

#[test]
fn what_fails_half_way_leaves_the_stream_refused() {
    let mut arena = Arena::new(0x40_0000);
    let model = Model::new(STAGE1, &arena);
    let mut smmu = started(&model, &mut arena);
    model.inner.borrow_mut().illegal.push(0x03);
    let refused = Err(Error::Rejected {
        command: 0x03,
        reason: 1,
    });
    assert_eq!(smmu.attach(0x18, &SPACE, &mut arena), refused);
    assert!(!smmu.is_attached(0x18));
    assert_eq!(model.fetch(0x18), Some([1, 0, 0, 0, 0, 0, 0, 0]));
    model.inner.borrow_mut().illegal.clear();
    let before = arena.taken();
    smmu.attach(0x18, &SPACE, &mut arena).unwrap();
    assert_eq!(arena.taken(), before);
    // What a failed detach left in the caches is not forgotten by us.
    model.inner.borrow_mut().illegal.push(0x11);
    assert!(smmu.detach(0x18, &mut arena).is_err());
    assert!(smmu.detach(0x18, &mut arena).is_err());
    assert_eq!(
        smmu.attach(0x18, &SPACE, &mut arena),
        Err(Error::Attached(0x18))
    );
    model.inner.borrow_mut().illegal.clear();
    smmu.detach(0x18, &mut arena).unwrap();
    assert_eq!(arena.taken(), before - stream::CONTEXT_BYTES);
}

#[test]
fn an_smmu_that_stops_answering_is_an_error_each_time() {
    let mut arena = Arena::new(0x40_0000);
    let model = Model::new(NESTED, &arena);
    let mut smmu = started(&model, &mut arena);
    model.registers.preset32(0x20, 0); // it takes no commands any more
    assert_eq!(smmu.invalidate_all(7), Err(Error::Timeout));
    for _ in 0..2 {
        assert_eq!(smmu.attach(0x18, &SPACE, &mut arena), Err(Error::Timeout));
    }
    assert_eq!(model.fetch(0x18), Some([1, 0, 0, 0, 0, 0, 0, 0]));
}

#[test]
fn what_an_earlier_error_left_is_not_taken_for_where_the_queue_has_stopped() {
    let mut arena = Arena::new(0x40_0000);
    let model = Model::new(NESTED, &arena);
    let mut smmu = started(&model, &mut arena);
    model.inner.borrow_mut().illegal.push(0x28);
    let refused = Err(Error::Rejected {
        command: 0x28,
        reason: 1,
    });
    // ERR stays from now on.
    assert_eq!(smmu.invalidate_all(7), refused);
    // The queue gets from one command to another between the looks at CMDQ_CONS and GERROR.
    model.inner.borrow_mut().late = true;
    codes(&model);
    let scope = Scope::Vmid(7);
    let commands = [Command::ForgetStreams, Command::InvalidateAll { scope }];
    assert_eq!(smmu.commands.run(&smmu.bus, commands), refused);
    assert_eq!(codes(&model), [0x04]);
}

#[test]
fn events_come_in_order_through_wraps() {
    let mut arena = Arena::new(0x40_0000);
    let model = Model::new(NESTED, &arena);
    let mut smmu = started(&model, &mut arena);
    let event = |n: u64| [0x18_0000_0010, 0x0280_0000_0000, n << 12, n << 12];
    let mut next = 0;
    for _ in 0..7 {
        for n in next..next + 1000 {
            assert!(model.record(event(n)));
        }
        for n in next..next + 1000 {
            assert_eq!(smmu.next_event(), Some(Event::new(event(n))));
        }
        assert_eq!(smmu.next_event(), None);
        next += 1000;
    }
    assert_eq!(smmu.overflows(), 0);
}

#[test]
fn an_overflow_is_counted_and_acknowledged() {
    let mut arena = Arena::new(0x40_0000);
    let idr1 = NESTED.idr1 & !(0x1f << 16) | 2 << 16;
    let model = Model::new(Fake { idr1, ..NESTED }, &arena);
    let mut smmu = started(&model, &mut arena);
    for round in 1..=3 {
        let recorded = (0..10).filter(|n| model.record([0x10, 0, *n, 0])).count();
        assert_eq!(recorded, 4);
        let events = std::iter::from_fn(|| smmu.next_event());
        let addresses: Vec<u64> = events.map(|event| event.address().unwrap().get()).collect();
        assert_eq!(addresses, [0, 1, 2, 3]);
        assert_eq!(smmu.overflows(), round);
    }
}

#[test]
fn global_errors_are_told_once() {
    let mut arena = Arena::new(0x40_0000);
    let model = Model::new(NESTED, &arena);
    model.registers.preset32(GERROR, 0x1); // left by firmware
    let mut smmu = started(&model, &mut arena);
    assert_eq!(smmu.global_errors(), None);
    let mut raise = |bits| {
        let old = model.registers.read32(GERROR);
        model.registers.preset32(GERROR, old ^ bits);
        let errors = smmu.global_errors().expect("active");
        // Acknowledged, all but a command's error, which is told to whom it concerns.
        assert_eq!(
            model.registers.read32(GERROR),
            model.registers.read32(GERRORN)
        );
        assert_eq!(smmu.global_errors(), None);
        (
            errors.events_lost(),
            errors.service_failure(),
            errors.to_string(),
        )
    };
    #[rustfmt::skip]
    let cases = [
        // bits,    events, failure, in words
        (1 << 2,    true,   false,   "events lost"),
        (1 << 8,    false,  true,    "service failure"),
        (1 << 2 | 1 << 8, true, true, "service failure, events lost"),
        (0xf8,      false,  false,   "page requests lost, message about commands lost, \
                                      message about events lost, \
                                      message about page requests lost, message about errors lost"),
        (1 << 9,    false,  false,   "GERROR 0x200"),
        (1 << 2 | 1 << 31, true, false, "events lost, GERROR 0x80000000"),
    ];
    for (bits, lost, failure, words) in cases {
        assert_eq!(raise(bits), (lost, failure, words.into()), "{bits:#x}");
    }
}

#[test]
fn interrupts_are_turned_on_when_they_are_wanted() {
    let mut arena = Arena::new(0x40_0000);
    let model = Model::new(
        Fake {
            idr0: NESTED.idr0 | 1 << 13,
            ..NESTED
        },
        &arena,
    );
    model.registers.preset32(0x68, 0x0808_0040);
    let mut smmu = started(&model, &mut arena);
    assert_eq!(model.registers.read32(0x68), 0);
    assert_eq!(model.registers.read32(0x50), 0);
    smmu.enable_interrupts().unwrap();
    assert_eq!(model.registers.read32(0x50), 0b101);
}

/// What happens to an SMMU in a history.
#[derive(Clone, Copy, Debug)]
enum Step {
    Attach {
        stream: usize,
        space: u16,
    },
    Detach {
        stream: usize,
    },
    Refuse {
        stream: usize,
    },
    Resume {
        stream: usize,
    },
    /// Another page is mapped at `page` of a space, and the old one forgotten.
    Remap {
        space: u16,
        page: u16,
    },
    /// A device reads.
    Read {
        stream: usize,
        page: u16,
    },
}

/// Neighbors in a table, tables apart, and both ends.
const STREAMS: [u32; 6] = [0, 0x18, 0x19, 0x3f, 0x40, 0x3ff];
const SPACES: u16 = 3;
const PAGES: u16 = 6;

fn space(n: u16) -> AddressSpace {
    AddressSpace {
        root: Pa::new(0x4020_0000 + 0x1000 * u64::from(n)),
        id: 1 + n,
        ..SPACE
    }
}

fn step() -> impl Strategy<Value = Step> {
    let (stream, page) = (0..STREAMS.len(), 0..PAGES);
    prop_oneof![
        (stream.clone(), 0..SPACES).prop_map(|(stream, space)| Step::Attach { stream, space }),
        stream.clone().prop_map(|stream| Step::Detach { stream }),
        stream.clone().prop_map(|stream| Step::Refuse { stream }),
        stream.clone().prop_map(|stream| Step::Resume { stream }),
        (0..SPACES, page.clone()).prop_map(|(space, page)| Step::Remap { space, page }),
        (stream, page).prop_map(|(stream, page)| Step::Read { stream, page }),
    ]
}

fn kind() -> impl Strategy<Value = Fake> {
    (any::<[bool; 5]>()).prop_map(|[stage1, linear, ranges, coherent, slow]| {
        let kind = if stage1 { STAGE1 } else { NESTED };
        let without = |bit: u32, is: bool| if is { 0 } else { bit };
        Fake {
            idr0: kind.idr0 & !(without(1 << 27, !linear) | without(1 << 4, coherent)),
            idr3: kind.idr3 & !without(1 << 10, ranges),
            slow,
            ..kind
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Whatever is done, each stream reaches what a plain list says, and no page that was taken away.
    #[test]
    fn a_stream_reaches_what_it_was_given(kind in kind(), steps in proptest::collection::vec(step(), 1..80)) {
        let mut arena = Arena::new(0x8_0000);
        let model = Model::new(kind, &arena);
        let mut smmu = Smmu::new(&model, Coherency::Coherent, 0x400, &mut arena).unwrap();
        let mut given: [Option<(u16, bool)>; STREAMS.len()] = [None; STREAMS.len()];
        // What is mapped at the pages of each space.
        let mut mapped: BTreeMap<(u16, u16), u32> = BTreeMap::new();
        for n in 0..SPACES {
            mapped.extend((0..PAGES).map(|page| ((n, page), 0)));
        }
        for step in steps {
            match step {
                Step::Attach { stream, space: n } => {
                    let attached = smmu.attach(STREAMS[stream], &space(n), &mut arena);
                    match given[stream] {
                        Some(_) => prop_assert_eq!(attached, Err(Error::Attached(STREAMS[stream]))),
                        None => {
                            prop_assert_eq!(attached, Ok(()));
                            given[stream] = Some((n, true));
                        }
                    }
                }
                Step::Detach { stream } => {
                    prop_assert_eq!(smmu.detach(STREAMS[stream], &mut arena), Ok(()));
                    if let Some((n, _)) = given[stream].take()
                        && given.iter().flatten().all(|(other, _)| *other != n)
                    {
                        // The space can go, and another one have its ID.
                        let id = space(n).id;
                        prop_assert!(model.inner.borrow().pages.keys().all(|(of, _)| *of != id));
                        mapped.iter_mut().filter(|((of, _), _)| *of == n).for_each(|(_, at)| *at += 1);
                    }
                }
                Step::Refuse { stream } => {
                    prop_assert_eq!(smmu.refuse(STREAMS[stream]), Ok(()));
                    given[stream] = given[stream].map(|(n, _)| (n, false));
                }
                Step::Resume { stream } => {
                    prop_assert_eq!(smmu.resume(STREAMS[stream]), Ok(()));
                    given[stream] = given[stream].map(|(n, _)| (n, true));
                }
                Step::Remap { space: n, page } => {
                    mapped.entry((n, page)).and_modify(|at| *at += 1);
                    let ipa = Ipa::new(u64::from(page) << 12);
                    prop_assert_eq!(smmu.invalidate(space(n).id, ipa, 0x1000), Ok(()));
                }
                Step::Read { stream, page } => {
                    let got = model.read_page(STREAMS[stream], page.into(), |root| {
                        let n = (0..SPACES).find(|n| space(*n).root.get() == root).unwrap();
                        mapped[&(n, page)]
                    });
                    let expected = given[stream].filter(|(_, open)| *open).map(|(n, _)| mapped[&(n, page)]);
                    prop_assert_eq!(got, expected);
                }
            }
            for (stream, given) in STREAMS.iter().zip(&given) {
                let reached = given.filter(|(_, open)| *open).map(|(n, _)| (space(n).root.get(), space(n).id));
                prop_assert_eq!(model.reached(*stream), reached, "{:#x}", stream);
                prop_assert_eq!(smmu.is_attached(*stream), given.is_some());
            }
        }
        // Nothing is left over.
        for stream in STREAMS {
            smmu.detach(stream, &mut arena).unwrap();
        }
        prop_assert!(smmu.contexts.is_empty());
    }
}

#[test]
fn a_stream_that_is_listened_to_is_refused_with_an_event() {
    for kind in [NESTED, STAGE1] {
        let mut arena = Arena::new(0x40_0000);
        let model = Model::new(kind, &arena);
        let mut smmu = started(&model, &mut arena);
        // What the SMMU has cached is forgotten each time.
        let first = |model: &Model| model.entry(9).map(|words| words[0]);
        assert_eq!(first(&model).unwrap_or(1), 1);
        smmu.listen(9, &mut arena).unwrap();
        assert_eq!(first(&model), Some(0), "C_BAD_STE");
        assert_eq!(smmu.listen(9, &mut arena), Err(Error::Attached(9)));
        assert_eq!(
            smmu.attach(9, &SPACE, &mut arena),
            Err(Error::Attached(9)),
            "not before it is detached"
        );
        // There are no tables that it could be translated by.
        smmu.resume(9).unwrap();
        assert_eq!(first(&model), Some(0));
        smmu.detach(9, &mut arena).unwrap();
        assert_eq!(first(&model), Some(1));
        smmu.attach(9, &SPACE, &mut arena).unwrap();
        assert_eq!(smmu.listen(9, &mut arena), Err(Error::Attached(9)));
        assert_ne!(first(&model), Some(0));
        assert_eq!(
            smmu.listen(0x1_0000, &mut arena),
            Err(Error::NoSuchStream(0x1_0000))
        );
    }
}
