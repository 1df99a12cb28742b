//! From what a load or store moves to the words that mean it: the way back, for tests and the fuzzer.

use super::{Bank, Extend, Index, LoadStore, Offset};

fn field(value: i32, bits: u32) -> u32 {
    value.cast_unsigned() & ((1 << bits) - 1)
}

/// Returns the words that mean this.
pub(crate) fn encodings(what: &LoadStore) -> Vec<u32> {
    let mut words = Vec::new();
    let scale = what.bytes.ilog2();
    let registers = u32::from(what.base) << 5 | u32::from(what.first);
    let load = u32::from(!what.store);
    if let Some(second) = what.second {
        let Offset::Immediate(offset) = what.offset else {
            panic!("a pair has a constant");
        };
        let (opc, simd) = match what.bank {
            Bank::Simd => (scale - 2, 1),
            Bank::General { sign_extend, .. } => (if sign_extend { 1 } else { (scale - 2) * 2 }, 0),
        };
        let indices: &[u32] = match what.index {
            Index::Post => &[1],
            Index::Offset => &[0, 2],
            Index::Pre => &[3],
        };
        for index in indices {
            words.push(
                opc << 30
                    | 0b101 << 27
                    | simd << 26
                    | index << 23
                    | load << 22
                    | field(offset >> scale, 7) << 15
                    | u32::from(second) << 10
                    | registers,
            );
        }
        return words;
    }
    let (size, opc, simd) = match what.bank {
        Bank::Simd => (scale & 3, (scale & 4) >> 1 | load, 1),
        Bank::General { sign_extend, wide } => match (sign_extend, wide) {
            (false, _) => (scale, load, 0),
            (true, true) => (scale, 2, 0),
            (true, false) => (scale, 3, 0),
        },
    };
    let single = size << 30 | 0b111 << 27 | simd << 26 | opc << 22 | registers;
    match (what.offset, what.index) {
        (Offset::Immediate(offset), index) => {
            let index = match index {
                Index::Offset => 0,
                Index::Post => 1,
                Index::Pre => 3,
            };
            if (-256..256).contains(&offset) {
                words.push(single | field(offset, 9) << 12 | index << 10);
            }
            if index == 0 && offset >= 0 && offset % (1 << scale) == 0 {
                words.push(single | 1 << 24 | field(offset >> scale, 12) << 10);
            }
        }
        (
            Offset::Register {
                register,
                extend,
                shift,
            },
            Index::Offset,
        ) => {
            let options: &[u32] = match extend {
                Extend::Unsigned => &[2],
                Extend::Signed => &[6],
                Extend::Whole => &[3, 7],
            };
            for option in options {
                for s in 0..2 {
                    if u32::from(shift) == s * scale {
                        let fields = u32::from(register) << 16 | option << 13 | s << 12;
                        words.push(single | 1 << 21 | fields | 2 << 10);
                    }
                }
            }
        }
        _ => {}
    }
    if what.bank == Bank::Simd && what.bytes >= 8 {
        let list = u32::from(what.bytes == 16) << 30
            | 0b11 << 26
            | load << 22
            | 0b0111 << 12
            | what.part.ilog2() << 10
            | registers;
        match (what.offset, what.index) {
            (Offset::Immediate(0), Index::Offset) => words.push(list),
            (Offset::Immediate(_), Index::Post) => words.push(list | 1 << 23 | 31 << 16),
            (Offset::Register { register, .. }, Index::Post) => {
                words.push(list | 1 << 23 | u32::from(register) << 16);
            }
            _ => {}
        }
    }
    words
}
