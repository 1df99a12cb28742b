//! MSI and MSI-X under any sequence of writes: what the kernel was told last is what the registers say.

#[expect(dead_code, reason = "only devices are needed")]
mod machine;

use std::collections::BTreeMap;

use machine::{DOORBELL, Device, Kind, NVME, ODD};
use proptest::prelude::*;
use vpci::{
    BarIndex, BarRead, BarWrite, BusAddress, Change, ConfigAccess, Effect, Function, Message, Msi,
    Offset, Pin, Position, Sbdf, Setup, Size, Vendor,
};

fn build(kind: &Kind) -> Function<Device> {
    let bars = kind.bars();
    let setup = Setup {
        bars: &bars,
        doorbell: BusAddress::new(DOORBELL),
        position: Position::RootBus,
        pin: Pin::Hidden,
        vendor: Vendor::Hidden,
        kind: vpci::Kind::Ordinary,
    };
    Function::new(kind.device(), &setup).unwrap()
}

fn access(offset: u16, size: Size) -> ConfigAccess {
    ConfigAccess::new(Sbdf::from_rid(0, 8), Offset::new(offset).unwrap(), size).unwrap()
}

/// What the kernel knows.
struct Told {
    vectors: BTreeMap<u16, Message>,
    msix: (bool, bool),
    msi: Msi,
}

impl Default for Told {
    fn default() -> Self {
        Self {
            vectors: BTreeMap::new(),
            msix: (false, false),
            msi: Msi::OFF,
        }
    }
}

impl Told {
    /// Takes all effects; none says again what was said before.
    fn take(&mut self, function: &mut Function<Device>) {
        while let Some(effect) = function.next_effect() {
            match effect {
                Effect::MsixVector { vector, message } => {
                    let before = self.vectors.insert(vector, message);
                    assert_ne!(before.unwrap_or(Message::Off), message, "vector {vector}");
                }
                Effect::Msix { enabled, masked } => {
                    assert_ne!(self.msix, (enabled, masked));
                    self.msix = (enabled, masked);
                }
                Effect::Msi(msi) => {
                    assert_ne!(self.msi, msi);
                    self.msi = msi;
                }
                _ => {}
            }
        }
    }
}

/// A message as the specification says it: 7.7.2.5 to 7.7.2.8.
fn expected(address: u64, data: u32, masked: bool) -> Message {
    if masked {
        Message::Off
    } else if address == DOORBELL {
        Message::Live { data }
    } else {
        let address = BusAddress::new(address);
        Message::Misdirected { address }
    }
}

fn value() -> impl Strategy<Value = u64> {
    prop_oneof![
        3 => Just(DOORBELL),
        2 => Just(0),
        2 => Just(1),
        1 => Just(u64::MAX),
        1 => any::<u64>(),
    ]
}

fn bytes() -> impl Strategy<Value = u64> {
    prop::sample::select(vec![4_u64, 4, 4, 8, 8, 2, 1])
}

/// Where a table is, what is around it, how many vectors it has, and where its control register is.
struct Table<'a> {
    kind: &'a Kind,
    bar: u8,
    offset: u64,
    vectors: u16,
    control: u16,
}

const TABLES: [Table<'_>; 2] = [
    Table {
        kind: &NVME,
        bar: 0,
        offset: 0x2000,
        vectors: 65,
        control: 0x42,
    },
    Table {
        kind: &ODD,
        bar: 5,
        offset: 0x800,
        vectors: 2,
        control: 0x72,
    },
];

proptest! {
    #[test]
    fn the_kernel_knows_each_vector_as_it_is(
        which in 0_usize..2,
        steps in prop::collection::vec((0_u64..0x50, bytes(), value(), 0_u8..20), 1..80),
    ) {
        let table = &TABLES[which];
        let (mut function, mut told) = (build(table.kind), Told::default());
        let bar = BarIndex::new(table.bar).unwrap();
        for (at, bytes, value, what) in steps {
            let at = at & !(bytes - 1);
            let change = match what {
                0 => function.reset(),
                1..=3 => {
                    let value = u32::try_from(value & 0xffff).unwrap();
                    function.write(access(table.control, Size::Two), value)
                }
                _ => match function.write_bar(bar, table.offset + at, bytes, value) {
                    BarWrite::Done(change) => change,
                    BarWrite::Device { host } => {
                        let end = table.offset + u64::from(table.vectors) * 16;
                        prop_assert!(at + table.offset >= end, "{host:#x} is the table's");
                        Change::None
                    }
                },
            };
            // Sometimes the kernel comes late: nothing gets lost meanwhile.
            if what % 3 == 0 {
                continue;
            }
            told.take(&mut function);
            prop_assert!(change == Change::None || function.next_effect().is_none());
        }
        told.take(&mut function);
        let entry = |at| match function.read_bar(bar, table.offset + at, 8) {
            BarRead::Value(value) => value,
            BarRead::Device { host } => panic!("{host:#x} is the table's"),
        };
        for vector in 0..table.vectors {
            let at = u64::from(vector) * 16;
            let (address, rest) = (entry(at), entry(at + 8));
            prop_assert_eq!((address & 3, rest >> 33), (0, 0), "reserved bits");
            let data = u32::try_from(rest & 0xffff_ffff).unwrap();
            let now = told.vectors.get(&vector).copied().unwrap_or(Message::Off);
            prop_assert_eq!(now, expected(address, data, rest >> 32 & 1 != 0), "{}", vector);
        }
        let control = function.read(access(table.control, Size::Two));
        prop_assert_eq!(told.msix, (control & 0x8000 != 0, control & 0x4000 != 0));
        prop_assert_eq!(&*function.device().written.borrow(), &[][..]);
    }

    /// MSI with eight vectors, masks and a 64-bit address.
    #[test]
    fn the_kernel_knows_msi_as_it_is(
        steps in prop::collection::vec((0x50_u16..0x68, bytes(), value(), 0_u8..20), 1..60),
    ) {
        let (mut function, mut told) = (build(&ODD), Told::default());
        for (at, bytes, value, what) in steps {
            let size = Size::from_bytes(bytes).unwrap_or(Size::Four);
            let value = u32::try_from(value & 0xffff_ffff).unwrap();
            let _: Change = match what {
                0 => function.reset(),
                1..=6 => function.write(access(0x52, Size::Two), value | u32::from(what) << 4 | 1),
                _ => function.write(access(at & !(size.bytes() - 1), size), value),
            };
            if what % 3 != 0 {
                told.take(&mut function);
            }
        }
        told.take(&mut function);
        let read = |offset| function.read(access(offset, Size::Four));
        let control = read(0x50) >> 16;
        let address = u64::from(read(0x58)) << 32 | u64::from(read(0x54));
        let message = expected(address, read(0x5c), control & 1 == 0);
        let now = if control & 1 == 0 {
            Msi::OFF
        } else {
            let vectors = 1 << (control >> 4 & 7).min(3);
            Msi { message, vectors, mask: read(0x60) }
        };
        prop_assert_eq!(told.msi, now);
        prop_assert_eq!(read(0x60) & !0xff, 0, "masks of vectors that there are not");
    }
}

/// A vector that moves to another vCPU, as Linux does it without an ITS that can: masked, changed, unmasked.
#[test]
fn a_vector_that_moves_is_told_of_once() {
    let (mut function, bar) = (build(&NVME), BarIndex::new(0).unwrap());
    let mut store = |offset: u64, bytes, value| {
        let _ = function.write_bar(bar, 0x2000 + offset, bytes, value);
    };
    store(0, 8, DOORBELL);
    store(8, 8, 5);
    store(12, 4, 1);
    store(8, 4, 9);
    store(12, 4, 0);
    let effects: Vec<_> = std::iter::from_fn(|| function.next_effect()).collect();
    let message = Message::Live { data: 9 };
    assert_eq!(effects, [Effect::MsixVector { vector: 0, message }]);
}
