//! The driver against a model of an ITS that reads its queue and its tables from memory.

use super::*;
use crate::dma::testing::{ARENA, Arena, View};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

const BASE: u64 = 0x0808_0000;
const NEEDS: Needs = Needs {
    collections: 2,
    device_ids: 1 << 20,
};

/// What sort of ITS it is.
#[derive(Clone, Copy)]
struct Fake {
    typer: u64,
    indirect: bool,
    /// Page sizes by code.
    pages: &'static [u64],
    snoops: bool,
    /// A wrong command stalls the queue; else it is left out.
    stalls: bool,
    /// Carries out one command for each look at GITS_CREADR.
    slow: bool,
    /// Does not carry out commands at all.
    dead: bool,
    /// Never becomes quiet.
    restless: bool,
}

/// As QEMU's: ITT entries of 12 bytes, 16 bits of everything, no PTA.
const QEMU: Fake = Fake {
    typer: 0x1f_0001_efb1,
    indirect: true,
    pages: &[0, 1, 2],
    snoops: true,
    stalls: true,
    slow: false,
    dead: false,
    restless: false,
};

#[derive(Default)]
struct Inner {
    baser: [u64; 8],
    cbaser: u64,
    enabled: bool,
    read: u64,
    write: u64,
    stalled: bool,
    collections: BTreeMap<u64, u64>,
    devices: BTreeMap<u64, (u64, u64)>,
    events: BTreeMap<(u64, u64), (u64, u64)>,
    synced: BTreeSet<u64>,
    log: Vec<u64>,
}

struct Model {
    kind: Fake,
    memory: View,
    inner: RefCell<Inner>,
}

impl Model {
    fn new(kind: Fake, arena: &Arena) -> Self {
        let mut inner = Inner {
            enabled: true,
            ..Inner::default()
        };
        inner.baser[0] = 1 << 56 | 7 << 48;
        inner.baser[1] = 4 << 56 | 7 << 48;
        Self {
            kind,
            memory: arena.view(),
            inner: RefCell::new(inner),
        }
    }

    fn run(&self, most: usize) {
        let mut inner = self.inner.borrow_mut();
        for _ in 0..most {
            if !inner.enabled || inner.stalled || inner.read == inner.write || self.kind.dead {
                return;
            }
            let at = (inner.cbaser & 0x000f_ffff_ffff_f000) + inner.read * 32;
            let words = [0, 8, 16, 24].map(|n| self.memory.read(at + n).unwrap());
            if self.carry_out(&mut inner, words).is_none() && self.kind.stalls {
                inner.stalled = true;
                return;
            }
            inner.log.push(words[0] & 0xff);
            inner.read = (inner.read + 1) % 2048;
        }
    }

    /// Returns `None` if the command is wrong.
    fn carry_out(&self, inner: &mut Inner, words: [u64; 4]) -> Option<()> {
        let (device, event, collection) =
            (words[0] >> 32, words[1] & 0xffff_ffff, words[2] & 0xffff);
        match words[0] & 0xff {
            0x05 => {
                inner.synced.insert(words[2]);
            }
            0x08 if words[2] >> 63 == 0 => {
                inner.devices.remove(&device)?;
            }
            0x08 => {
                self.device_entry(inner, device)?;
                let itt = words[2] & 0x000f_ffff_ffff_ff00;
                inner.devices.insert(device, (itt, words[1] + 1));
            }
            0x09 => {
                inner
                    .collections
                    .insert(collection, words[2] & 0x000f_ffff_ffff_0000);
            }
            0x0a => {
                let (_, bits) = inner.devices.get(&device)?;
                inner.collections.get(&collection)?;
                if event >> bits != 0 {
                    return None;
                }
                inner
                    .events
                    .insert((device, event), (words[1] >> 32, collection));
            }
            0x0f => {
                inner.events.remove(&(device, event))?;
            }
            0x0d => {
                inner.collections.get(&collection)?;
            }
            _ => return None,
        }
        Some(())
    }

    /// Looks a device's entry up, as the ITS would before it writes it.
    fn device_entry(&self, inner: &Inner, device: u64) -> Option<u64> {
        let baser = inner.baser[0];
        let page = [0x1000, 0x4000, 0x1_0000][(baser >> 8 & 3) as usize];
        let size = ((baser & 0xff) + 1) * page;
        let base = baser & 0x0000_ffff_ffff_f000;
        if baser >> 62 & 1 == 0 {
            return (device * 8 < size).then_some(base + device * 8);
        }
        let first = device / (page / 8) * 8;
        if first >= size {
            return None;
        }
        let entry = self.memory.read(base + first)?;
        (entry >> 63 == 1).then_some((entry & 0x000f_ffff_ffff_f000) + device % (page / 8) * 8)
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
        let inner = self.inner.borrow();
        match offset {
            0x0000 if self.kind.restless => 0,
            0x0000 => u32::from(inner.enabled) | u32::from(!inner.enabled) << 31,
            0xffe8 => 0x3b,
            _ => unreachable!("{offset:#x}"),
        }
    }
    fn read64(&self, offset: usize) -> u64 {
        if offset == 0x90 && self.kind.slow {
            self.run(1);
        }
        let inner = self.inner.borrow();
        match offset {
            0x08 => self.kind.typer,
            0x80 => inner.cbaser,
            0x90 => inner.read << 5 | u64::from(inner.stalled),
            0x100..0x140 => inner.baser[(offset - 0x100) / 8],
            _ => unreachable!("{offset:#x}"),
        }
    }
    fn write8(&self, _: usize, _: u8) {
        unreachable!()
    }
    fn write16(&self, _: usize, _: u16) {
        unreachable!()
    }
    fn write32(&self, offset: usize, value: u32) {
        assert_eq!(offset, 0);
        self.inner.borrow_mut().enabled = value & 1 != 0;
    }
    fn write64(&self, offset: usize, mut value: u64) {
        {
            let mut inner = self.inner.borrow_mut();
            if !self.kind.snoops {
                value &= !(0b11 << 10);
            }
            match offset {
                0x80 => {
                    assert!(!inner.enabled);
                    inner.cbaser = value;
                    inner.read = 0;
                }
                0x88 => {
                    inner.write = value >> 5;
                    inner.stalled &= value & 1 == 0;
                }
                0x100..0x140 => {
                    assert!(!inner.enabled, "tables must not change while the ITS is on");
                    let old = &mut inner.baser[(offset - 0x100) / 8];
                    let fixed = 0x71f << 48;
                    if !self.kind.indirect {
                        value &= !(1 << 62);
                    }
                    if !self.kind.pages.contains(&(value >> 8 & 3)) {
                        value = value & !(3 << 8) | self.kind.pages[0] << 8;
                    }
                    *old = value & !fixed | *old & fixed;
                }
                _ => unreachable!("{offset:#x}"),
            }
        }
        if !self.kind.slow {
            self.run(usize::MAX);
        }
    }
}

/// An ITS that is on, with two collections.
fn started<'a>(model: &'a Model, arena: &mut Arena) -> Its<&'a Model> {
    let mut its = Its::new(model, Pa::new(BASE), NEEDS, arena).unwrap();
    its.map_collection(0, 0, Pa::new(0x080a_0000)).unwrap();
    its.map_collection(1, 1, Pa::new(0x080c_0000)).unwrap();
    its
}

#[test]
fn an_interrupt_is_mapped_and_unmapped() {
    for slow in [false, true] {
        let mut arena = Arena::new(0x40_0000);
        let model = Model::new(Fake { slow, ..QEMU }, &arena);
        let mut its = started(&model, &mut arena);
        assert_eq!(its.doorbell(), Pa::new(0x0809_0040));
        let before = arena.taken();
        let mut device = its.map_device(0x18, 5, &mut arena).unwrap();
        assert_eq!(device.events(), 5);
        its.map_events(&mut device, 4..5, IntId::new(8192), 0)
            .unwrap();
        assert_eq!(device.event(4), Some((IntId::new(8192), 0)));
        assert_eq!(model.inner.borrow().events, [((0x18, 4), (8192, 0))].into());
        its.unmap_device(device, &mut arena).unwrap();
        let inner = model.inner.borrow();
        assert!(inner.events.is_empty() && inner.devices.is_empty());
        // MAPC INVALL twice; MAPD; MAPTI INVALL; DISCARD; MAPD.
        let log: Vec<u64> = inner.log.iter().copied().filter(|n| *n != 5).collect();
        assert_eq!(log, [9, 13, 9, 13, 8, 10, 13, 15, 8]);
        assert_eq!(inner.synced, [0, 1 << 16].into());
        // What stays is the page of the device table.
        assert_eq!(arena.taken(), before + 0x1000);
    }
}

#[test]
fn a_redistributor_is_named_by_address_where_the_its_says_so() {
    let mut arena = Arena::new(0x40_0000);
    let model = Model::new(
        Fake {
            typer: QEMU.typer | 1 << 19,
            ..QEMU
        },
        &arena,
    );
    started(&model, &mut arena);
    assert_eq!(
        model.inner.borrow().collections,
        [(0, 0x080a_0000), (1, 0x080c_0000)].into()
    );
}

#[test]
fn a_large_device_table_is_indirect_and_grows() {
    let mut arena = Arena::new(0x40_0000);
    let model = Model::new(QEMU, &arena);
    let mut its = started(&model, &mut arena);
    assert_eq!(its.devices.entries, 0x1_0000);
    let before = arena.taken();
    let mut devices = Vec::new();
    for id in [0, 511, 512, 0xffff] {
        devices.push(its.map_device(id, 1, &mut arena).unwrap());
    }
    // Three pages, four ITTs: two events of twelve bytes are the least, in 256.
    assert_eq!(arena.taken(), before + 3 * 0x1000 + 4 * 0x100);
    assert_eq!(
        its.map_device(0x1_0000, 1, &mut arena).err(),
        Some(Error::NoSuchDevice(0x1_0000))
    );
    assert_eq!(
        its.map_device(511, 1, &mut arena).err(),
        Some(Error::DeviceInUse(511))
    );
}

#[test]
#[rustfmt::skip]
fn a_table_is_laid_out_as_the_its_allows() {
    let layout = |page_code, pages, indirect| Some(Layout { page_code, pages, indirect });
    let cases: [(u64, &[u64], bool, Option<Layout>); 9] = [
        // bytes,    pages,      indirect
        (16,         &[0, 1, 2], true,    layout(0, 1, false)),
        (0x1_0000,   &[0, 1, 2], true,    layout(0, 16, false)),
        (0x8_0000,   &[0, 1, 2], true,    layout(0, 1, true)),
        (0x8_0000,   &[0, 1, 2], false,   layout(0, 128, false)),
        (0x20_0000,  &[0, 1, 2], false,   layout(1, 128, false)),
        (0x20_0000,  &[2],       false,   layout(2, 32, false)),
        (1 << 35,    &[0, 1, 2], true,    layout(2, 64, true)),   // 2^32 devices
        (1 << 35,    &[0],       false,   layout(0, 256, false)), // cut
        (16,         &[],        true,    None),
    ];
    for (bytes, pages, indirect, expected) in cases {
        let got = Layout::choose(bytes, pages, indirect);
        assert_eq!(got, expected, "{bytes:#x} {pages:?} {indirect}");
    }
}

#[test]
fn a_flat_table_ends_where_its_memory_ends() {
    let mut arena = Arena::new(0x80_0000);
    let kind = Fake {
        typer: QEMU.typer | 0x1f << 13,
        indirect: false,
        pages: &[0],
        ..QEMU
    };
    let model = Model::new(kind, &arena);
    let mut its = started(&model, &mut arena);
    assert_eq!(its.devices.entries, 256 * 4096 / 8);
    assert!(its.map_device(0x1_ffff, 1, &mut arena).is_ok());
    assert_eq!(
        its.map_device(0x2_0000, 1, &mut arena).err(),
        Some(Error::NoSuchDevice(0x2_0000))
    );
}

#[test]
fn an_its_that_does_not_snoop_is_told_so() {
    let mut arena = Arena::new(0x40_0000);
    let model = Model::new(
        Fake {
            snoops: false,
            ..QEMU
        },
        &arena,
    );
    let its = started(&model, &mut arena);
    assert_eq!(
        (its.coherency, its.devices.coherency),
        (Coherency::Software, Coherency::Software)
    );
    let inner = model.inner.borrow();
    for register in [inner.cbaser, inner.baser[0], inner.baser[1]] {
        assert_eq!(register >> 59 & 7, 1, "{register:#x}");
        assert!(register & 0xffff_ffff >= ARENA & 0xffff_f000);
    }
}

#[test]
fn a_refused_command_is_an_error_and_the_queue_goes_on() {
    let mut arena = Arena::new(0x40_0000);
    let model = Model::new(QEMU, &arena);
    let mut its = started(&model, &mut arena);
    let mut device = its.map_device(0x18, 4, &mut arena).unwrap();
    model.inner.borrow_mut().devices.clear();
    let refused = its.map_events(&mut device, 0..1, IntId::new(8192), 0);
    assert_eq!(refused, Err(Error::Rejected(0x0a)));
    // It may know it, as far as we do.
    its.unmap_events(&mut device, 0..4).unwrap();
    assert_eq!(device.event(0), None);
    let mut other = its.map_device(0x20, 4, &mut arena).unwrap();
    its.map_events(&mut other, 0..1, IntId::new(8193), 1)
        .unwrap();
    assert_eq!(model.inner.borrow().events, [((0x20, 0), (8193, 1))].into());
}

#[test]
fn the_queue_wraps() {
    let mut arena = Arena::new(0x40_0000);
    let model = Model::new(QEMU, &arena);
    let mut its = started(&model, &mut arena);
    let mut device = its.map_device(0x18, 4, &mut arena).unwrap();
    for n in 0..3000u16 {
        its.map_events(&mut device, 0..1, IntId::new(8192), n % 2)
            .unwrap();
        its.unmap_events(&mut device, 0..1).unwrap();
    }
    assert!(model.inner.borrow().log.len() > 3 * QUEUE);
    assert_eq!(device.event(0), None);
}

/// More than the queue holds, and some of them are refused in the middle.
#[test]
fn many_events_are_mapped_and_unmapped_at_once() {
    for (slow, stalls) in [(false, false), (true, true)] {
        let mut arena = Arena::new(0x40_0000);
        let kind = Fake {
            slow,
            stalls,
            ..QEMU
        };
        let model = Model::new(kind, &arena);
        let mut its = started(&model, &mut arena);
        let mut device = its.map_device(0x18, 5_000, &mut arena).unwrap();
        let first = IntId::new(9_000);
        its.map_events(&mut device, 1..4_000, first, 1).unwrap();
        let event = |event: u32| ((0x18, event.into()), (8_999 + u64::from(event), 1));
        assert_eq!(model.inner.borrow().events, (1..4_000).map(event).collect());
        assert_eq!(device.event(3_999), Some((IntId::new(12_998), 1)));
        assert_eq!(device.event(4_000), None);
        let log = model.inner.borrow().log.clone();
        assert_eq!(log[log.len() - 3..], [10, 13, 5]);
        // The ITS has lost some; they are gone all the same.
        for lost in [7, 8, 3_000] {
            model.inner.borrow_mut().events.remove(&(0x18, lost));
        }
        its.unmap_events(&mut device, 0..4_000).unwrap();
        assert!(model.inner.borrow().events.is_empty());
        assert!((0..5_000).all(|event| device.event(event).is_none()));
        // If one is refused, the others may be there.
        model.inner.borrow_mut().devices.insert(0x18, (0, 4));
        let mapped = its.map_events(&mut device, 10..20, first, 1);
        let refused = if stalls {
            Err(Error::Rejected(10))
        } else {
            Ok(())
        };
        assert_eq!(mapped, refused);
        assert_eq!(model.inner.borrow().events.len(), 6);
        its.unmap_device(device, &mut arena).unwrap();
        assert!(model.inner.borrow().events.is_empty());
    }
}

#[test]
fn a_change_is_not_waited_for_and_needs_room() {
    let mut arena = Arena::new(0x40_0000);
    let model = Model::new(Fake { slow: true, ..QEMU }, &arena);
    let mut its = started(&model, &mut arena);
    model.inner.borrow_mut().log.clear();
    // The ITS looks at the queue when it is asked how far it is, once each time.
    let mut changes = 0;
    while its.reconfigure(1, || changes += 1) == Ok(true) {
        assert!(changes < QUEUE, "the queue never fills up");
    }
    let refused = changes;
    assert_eq!(
        its.reconfigure(1, || changes += 1),
        Ok(true),
        "a place is free by now"
    );
    assert_eq!(changes, refused + 1);
    assert_eq!(
        its.reconfigure(2, || changes += 1),
        Err(Error::NoSuchCollection(2))
    );
    // Whoever waits for a command waits for those before it.
    let device = its.map_device(0x18, 1, &mut arena).unwrap();
    assert_eq!(device.id(), 0x18);
    let log = &model.inner.borrow().log;
    assert_eq!(log.iter().filter(|n| **n == 13).count(), changes);
    assert_eq!(log[..4], [13, 5, 13, 5]);
}

#[test]
fn a_dead_its_is_an_error_each_time() {
    let mut arena = Arena::new(0x40_0000);
    let model = Model::new(Fake { dead: true, ..QEMU }, &arena);
    let mut its = Its::new(&model, Pa::new(BASE), NEEDS, &mut arena).unwrap();
    for _ in 0..3 {
        assert_eq!(its.map_collection(0, 0, Pa::new(0)), Err(Error::Timeout));
    }
    let restless = Model::new(
        Fake {
            restless: true,
            ..QEMU
        },
        &arena,
    );
    assert_eq!(
        Its::new(&restless, Pa::new(BASE), NEEDS, &mut arena).err(),
        Some(Error::Timeout)
    );
}

#[test]
fn what_is_not_there_is_refused_without_a_command() {
    let mut arena = Arena::new(0x40_0000);
    let model = Model::new(QEMU, &arena);
    let mut its = started(&model, &mut arena);
    let mut device = its.map_device(0x18, 4, &mut arena).unwrap();
    its.map_events(&mut device, 0..1, IntId::new(8192), 0)
        .unwrap();
    let commands = model.inner.borrow().log.len();
    let lpi = IntId::new(8193);
    assert_eq!(
        its.map_events(&mut device, 0..1, lpi, 0),
        Err(Error::EventInUse(0))
    );
    assert_eq!(
        its.map_events(&mut device, 4..5, lpi, 0),
        Err(Error::NoSuchEvent(4))
    );
    assert_eq!(
        its.map_events(&mut device, 1..2, lpi, 2),
        Err(Error::NoSuchCollection(2))
    );
    let spi = IntId::new(40);
    assert_eq!(
        its.map_events(&mut device, 1..2, spi, 0),
        Err(Error::NotAnLpi(spi))
    );
    let unmapped = its.unmap_events(&mut device, 3..5);
    assert_eq!(unmapped, Err(Error::NoSuchEvent(4)));
    assert_eq!(
        its.map_device(0x20, 0x1_0001, &mut arena).err(),
        Some(Error::TooManyEvents(0x1_0001))
    );
    assert_eq!(
        its.map_device(0x20, u32::MAX, &mut arena).err(),
        Some(Error::TooManyEvents(u32::MAX))
    );
    assert_eq!(model.inner.borrow().log.len(), commands);
}

#[test]
fn running_out_of_memory_is_an_error_and_keeps_nothing() {
    let mut arena = Arena::new(0x40_0000);
    let model = Model::new(QEMU, &arena);
    let mut its = started(&model, &mut arena);
    let mut empty = Arena::new(0);
    assert_eq!(
        its.map_device(0x18, 4, &mut empty).err(),
        Some(Error::OutOfMemory)
    );
    let device = its.map_device(0x18, 4, &mut arena).unwrap();
    its.unmap_device(device, &mut arena).unwrap();
}
