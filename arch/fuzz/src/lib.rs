//! The body of the fuzz target for `arch`: words that a guest could have EL2 decode.
//!
//! libFuzzer calls the body (`targets/`, with the feature `libfuzzer`); `tests/replay.rs` calls it with
//! every file of `corpus/`, on any toolchain.
#![forbid(unsafe_code)]

use arch::load_store::{Bank, Extend, Index, LoadStore, Offset, Undecoded, Values, decode};

#[path = "../../src/load_store/tests/encode.rs"]
mod encode;

/// Classes of loads and stores that are no row of single accesses: name, bits that tell, their values.
/// Arm ARM (DDI 0487) C4.1.94, "Loads and stores".
#[rustfmt::skip]
const REFUSED: &[(&str, u32, u32)] = &[
    ("exclusive, ordered, compare and swap", 0x3f00_0000, 0x0800_0000),
    ("LDAPR, STLR with an offset, copy, set",  0x3b20_0000, 0x1900_0000),
    ("memory tags, copy and set",            0x3f20_0000, 0x1920_0000),
    ("literal",                              0x3b00_0000, 0x1800_0000),
    ("unprivileged",                         0x3b20_0c00, 0x3800_0800),
    ("atomic",                               0x3b20_0c00, 0x3820_0000),
    ("authenticated, prefetch of a range",   0x3b20_0400, 0x3820_0400),
    ("prefetch, unsigned offset",            0xffc0_0000, 0xf980_0000),
    ("prefetch, unscaled offset",            0xffe0_0c00, 0xf880_0000),
    ("prefetch, register offset",            0xffe0_0c00, 0xf8a0_0800),
    ("store of tag and pair",                0xfe40_0000, 0x6800_0000),
    ("single structures",                    0xbf00_0000, 0x0d00_0000),
    ("two registers, or reserved",           0xbf00_8000, 0x0c00_8000),
    ("four registers, or two",               0xbf00_5000, 0x0c00_0000),
    ("system instructions",                  0xfff8_0000, 0xd508_0000),
];

/// Values of registers, and words. Each is decoded, or refused as its class has to be; what it means is
/// one of the ways to write what was decoded; and it goes where the architecture says.
pub fn instruction(data: &[u8]) {
    let number = |bytes: &[u8]| {
        let join = |value, byte: &u8| value << 8 | u64::from(*byte);
        bytes.iter().rev().fold(0, join)
    };
    let (registers, words) = data.split_at(data.len().min(16));
    let (base, index) = registers.split_at(registers.len().min(8));
    let (base, index) = (number(base), number(index));
    for word in words.chunks_exact(4) {
        let word = number(word) & 0xffff_ffff;
        let word = u32::try_from(word).unwrap_or_default();
        match decode(word) {
            Ok(what) => check(word, &what, base, index),
            Err(refused) => check_refused(word, refused),
        }
    }
}

fn check(word: u32, what: &LoadStore, base: u64, index: u64) {
    for (class, mask, bits) in REFUSED {
        assert_ne!(
            word & mask,
            *bits,
            "{word:#010x} is of a class {class}: {what:?}"
        );
    }
    let words = encode::encodings(what);
    assert!(
        words.contains(&word),
        "{word:#010x}: {what:?} is {words:x?}"
    );
    assert!(what.first < 32 && what.base < 32 && what.second.is_none_or(|second| second < 32));
    assert!(
        what.bytes.is_power_of_two() && what.part == what.bytes.min(8) || what.bank == Bank::Simd
    );
    assert!([1, 2, 4, 8].contains(&what.part) && what.part <= what.bytes && what.bytes <= 16);
    if let Bank::General { sign_extend, wide } = what.bank {
        assert!(what.bytes <= 8 && !(what.store && sign_extend), "{what:?}");
        assert!(!(what.bytes == 8 && !wide && sign_extend), "{what:?}");
        let moved = what.first == what.base || what.second == Some(what.base);
        let written = what.index != Index::Offset && what.base != 31;
        assert!(!(moved && written), "unpredictable: {what:?}");
    }
    assert!(
        what.store || what.second != Some(what.first),
        "unpredictable: {what:?}"
    );
    check_target(what, base, index);
    check_values(what, base, index);
}

fn check_refused(word: u32, refused: Undecoded) {
    // Bits 28:25 are x1x0 for all loads and stores (C4.1).
    let is_access = word >> 27 & 1 == 1 && word >> 25 & 1 == 0;
    let is_system = word & 0xfff8_0000 == 0xd508_0000;
    let expected = if is_access || is_system {
        Undecoded::Unsupported
    } else {
        Undecoded::NoAccess
    };
    assert_eq!(refused, expected, "{word:#010x}");
}

/// The address, in arithmetic that does not wrap.
fn check_target(what: &LoadStore, base: u64, index: u64) {
    const REGISTERS: u128 = 1 << 64;
    let register = |number: u8| match number {
        31 => 0,
        number if number == what.base => base,
        _ => index,
    };
    let offset = match what.offset {
        Offset::Immediate(offset) => {
            assert!((-1024..=65520).contains(&offset), "{what:?}");
            i128::from(offset)
        }
        Offset::Register {
            register: number,
            extend,
            shift,
        } => {
            assert!(shift <= 4 && number < 32, "{what:?}");
            let value = register(number);
            let low = value & 0xffff_ffff;
            let value = match extend {
                Extend::Unsigned => i128::from(low),
                Extend::Signed if low >> 31 == 1 => i128::from(low) - (1 << 32),
                Extend::Signed => i128::from(low),
                Extend::Whole => i128::from(value),
            };
            value << shift
        }
    };
    let sum = (i128::from(base) + offset).rem_euclid(REGISTERS.cast_signed());
    let sum = u64::try_from(sum).unwrap_or_default();
    let target = what.target(register, base);
    let expected = match what.index {
        Index::Offset => (sum, None),
        Index::Pre => (sum, Some(sum)),
        Index::Post => (base, Some(sum)),
    };
    assert_eq!((target.address, target.writeback), expected, "{what:?}");
}

/// What a load puts into its registers is what a store takes out of them, and nothing else.
fn check_values(what: &LoadStore, base: u64, index: u64) {
    let places = || (0..what.size()).step_by(what.part.into());
    let part = |at: u8| base.rotate_left(at.into()) ^ index;
    let bits = 8 * u32::from(what.part);
    let mask = u64::MAX >> (64 - bits);
    let mut values = Values::default();
    for at in places() {
        values.set_part(what, at, part(at));
    }
    for at in places() {
        assert_eq!(values.part(what, at), part(at) & mask, "{what:?} at {at}");
    }
    for value in values.registers() {
        assert!(
            what.bytes == 16 || value >> (8 * u32::from(what.bytes)) == 0,
            "{what:?}"
        );
    }
    if let Some(access) = what.access(what.first) {
        let bytes = u64::from(what.bytes);
        assert_eq!((access.bytes(), access.register()), (bytes, what.first));
    }
}
