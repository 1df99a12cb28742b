//! Loads and stores whose syndrome says nothing: the hypervisor has to decode the instruction.
//!
//! Each is compared with plain accesses to the same registers, at EL1 and at EL0.

use core::arch::global_asm;
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use alloc::vec;
use alloc::vec::Vec;
use runtime::exception::Fault;
use runtime::harness::Outcome;
use runtime::mmio::{Width, Window};
use runtime::mmu::{self, Alias};
use runtime::platform::{self, HostBridge};
use runtime::{check, check_eq, console, cpu, exception, gic, instruction, skip, smccc, timer};

use super::vcpus::LONG;
use super::{on_isthmus, vcpu};
use crate::pci::{self, Function};
use crate::simd::Registers;

/// A load or store with x1 (at EL0 also SP) as base.
struct Row {
    name: &'static str,
    word: u32,
    /// The index register, x2.
    index: u64,
    /// Where the first byte is, from the base on, and by how much the base moves.
    offset: isize,
    moves: u64,
    bank: Bank,
    registers: &'static [usize],
    /// Bytes of each register, and of each access that it consists of.
    bytes: usize,
    part: usize,
}

/// The registers of a row.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Bank {
    /// X or W, zero-extended.
    X,
    /// W, sign-extended to 32 bits.
    SignedW,
    /// X, sign-extended.
    SignedX,
    /// SIMD.
    V,
}

use Bank::{SignedW, SignedX, V, X};

macro_rules! rows {
    ($($name:literal $word:literal $index:literal $offset:literal $moves:literal $bank:ident $registers:expr, $bytes:literal $part:literal;)*) => {
        &[$(Row {
            name: $name, word: $word, index: $index, offset: $offset, moves: $moves as i64 as u64,
            bank: $bank, registers: &$registers, bytes: $bytes, part: $part,
        },)*]
    };
}

#[rustfmt::skip]
const LOADS: &[Row] = rows! {
    // instruction                word         x2  offset moves registers  bytes part
    "ldr w3, [x1], #8"            0xb840_8423   0    0    8  X       [3],       4  4;
    "ldr w3, [x1, #8]!"           0xb840_8c23   0    8    8  X       [3],       4  4;
    "ldr x3, [x1], #-8"           0xf85f_8423   0    0   -8  X       [3],       8  8;
    "ldr x3, [x1, #16]!"          0xf841_0c23   0   16   16  X       [3],       8  8;
    "ldrb w3, [x1], #1"           0x3840_1423   0    0    1  X       [3],       1  1;
    "ldrh w3, [x1, #2]!"          0x7840_2c23   0    2    2  X       [3],       2  2;
    "ldrsb w3, [x1], #1"          0x38c0_1423   0    0    1  SignedW [3],       1  1;
    "ldrsb x3, [x1, #-1]!"        0x389f_fc23   0   -1   -1  SignedX [3],       1  1;
    "ldrsh w3, [x1], #2"          0x78c0_2423   0    0    2  SignedW [3],       2  2;
    "ldrsh x3, [x1, #6]!"         0x7880_6c23   0    6    6  SignedX [3],       2  2;
    "ldrsw x3, [x1], #4"          0xb880_4423   0    0    4  SignedX [3],       4  4;
    "ldr wzr, [x1], #4"           0xb840_443f   0    0    4  X       [31],      4  4;
    "ldp w3, w4, [x1]"            0x2940_1023   0    0    0  X       [3, 4],    4  4;
    "ldp w3, w4, [x1, #8]"        0x2941_1023   0    8    0  X       [3, 4],    4  4;
    "ldp x3, x4, [x1]"            0xa940_1023   0    0    0  X       [3, 4],    8  8;
    "ldp x3, x4, [x1], #16"       0xa8c1_1023   0    0   16  X       [3, 4],    8  8;
    "ldp x3, x4, [x1, #-16]!"     0xa9ff_1023   0  -16  -16  X       [3, 4],    8  8;
    "ldp x3, x1, [x1]"            0xa940_0423   0    0    0  X       [3, 1],    8  8;
    "ldp w3, wzr, [x1]"           0x2940_7c23   0    0    0  X       [3, 31],   4  4;
    "ldnp x3, x4, [x1]"           0xa840_1023   0    0    0  X       [3, 4],    8  8;
    "ldpsw x3, x4, [x1]"          0x6940_1023   0    0    0  SignedX [3, 4],    4  4;
    "ldpsw x3, x4, [x1, #8]!"     0x69c1_1023   0    8    8  SignedX [3, 4],    4  4;
    "ldr b0, [x1]"                0x3d40_0020   0    0    0  V       [0],       1  1;
    "ldr h1, [x1, #2]"            0x7d40_0421   0    2    0  V       [1],       2  2;
    "ldr s2, [x1]"                0xbd40_0022   0    0    0  V       [2],       4  4;
    "ldr d3, [x1]"                0xfd40_0023   0    0    0  V       [3],       8  8;
    "ldr q4, [x1]"                0x3dc0_0024   0    0    0  V       [4],      16  8;
    "ldr q5, [x1], #16"           0x3cc1_0425   0    0   16  V       [5],      16  8;
    "ldr q6, [x1, #16]!"          0x3cc1_0c26   0   16   16  V       [6],      16  8;
    "ldur q7, [x1, #-16]"         0x3cdf_0027   0  -16    0  V       [7],      16  8;
    "ldr b8, [x1, x2]"            0x3c62_6828   5    5    0  V       [8],       1  1;
    "ldr q9, [x1, x2]"            0x3ce2_6829  32   32    0  V       [9],      16  8;
    "ldr s10, [x1, w2, uxtw]"     0xbc62_482a 0xffff_ffff_0000_0010 16 0 V [10], 4  4;
    "ldr d11, [x1, w2, sxtw]"     0xfc62_c82b 0xffff_fff0 -16 0 V    [11],      8  8;
    "ldp s12, s13, [x1]"          0x2d40_342c   0    0    0  V       [12, 13],  4  4;
    "ldp d14, d15, [x1], #16"     0x6cc1_3c2e   0    0   16  V       [14, 15],  8  8;
    "ldp q16, q17, [x1]"          0xad40_4430   0    0    0  V       [16, 17], 16  8;
    "ldp q18, q19, [x1, #-32]!"   0xadff_4c32   0  -32  -32  V       [18, 19], 16  8;
    "ldnp q20, q21, [x1]"         0xac40_5434   0    0    0  V       [20, 21], 16  8;
    "ld1 {v22.4s}, [x1]"          0x4c40_7836   0    0    0  V       [22],     16  4;
    "ld1 {v23.16b}, [x1], #16"    0x4cdf_7037   0    0   16  V       [23],     16  1;
    "ld1 {v24.4h}, [x1], x2"      0x0cc2_7438  24    0   24  V       [24],      8  2;
    "ld1 {v25.2d}, [x1]"          0x4c40_7c39   0    0    0  V       [25],     16  8;
    "ld1 {v26.1d}, [x1]"          0x0c40_7c3a   0    0    0  V       [26],      8  8;
};

#[rustfmt::skip]
const STORES: &[Row] = rows! {
    "str w3, [x1], #4"            0xb800_4423   0    0    4  X       [3],       4  4;
    "str w3, [x1, #4]!"           0xb800_4c23   0    4    4  X       [3],       4  4;
    "str x3, [x1], #8"            0xf800_8423   0    0    8  X       [3],       8  8;
    "strb w3, [x1], #1"           0x3800_1423   0    0    1  X       [3],       1  1;
    "strb w3, [x1, #1]!"          0x3800_1c23   0    1    1  X       [3],       1  1;
    "strh w3, [x1], #4"           0x7800_4423   0    0    4  X       [3],       2  2;
    "str wzr, [x1], #4"           0xb800_443f   0    0    4  X       [31],      4  4;
    "stp w3, w4, [x1]"            0x2900_1023   0    0    0  X       [3, 4],    4  4;
    "stp w3, w4, [x1, #-8]!"      0x29bf_1023   0   -8   -8  X       [3, 4],    4  4;
    "stp x3, x4, [x1]"            0xa900_1023   0    0    0  X       [3, 4],    8  8;
    "stp x3, x4, [x1], #16"       0xa881_1023   0    0   16  X       [3, 4],    8  8;
    "stp x3, x3, [x1]"            0xa900_0c23   0    0    0  X       [3, 3],    8  8;
    "stnp x3, x4, [x1]"           0xa800_1023   0    0    0  X       [3, 4],    8  8;
    "str b0, [x1]"                0x3d00_0020   0    0    0  V       [0],       1  1;
    "str h0, [x1]"                0x7d00_0020   0    0    0  V       [0],       2  2;
    "str s2, [x1], #4"            0xbc00_4422   0    0    4  V       [2],       4  4;
    "str d3, [x1]"                0xfd00_0023   0    0    0  V       [3],       8  8;
    "str q4, [x1]"                0x3d80_0024   0    0    0  V       [4],      16  8;
    "stur q5, [x1, #-16]"         0x3c9f_0025   0  -16    0  V       [5],      16  8;
    "str q6, [x1, x2]"            0x3ca2_6826  16   16    0  V       [6],      16  8;
    "stp s7, s8, [x1]"            0x2d00_2027   0    0    0  V       [7, 8],    4  4;
    "stp d9, d10, [x1]"           0x6d00_2829   0    0    0  V       [9, 10],   8  8;
    "stp d11, d12, [x1, #-16]!"   0x6dbf_302b   0  -16  -16  V       [11, 12],  8  8;
    "st1 {v13.4s}, [x1]"          0x4c00_782d   0    0    0  V       [13],     16  4;
    "st1 {v14.2d}, [x1], #16"     0x4c9f_7c2e   0    0   16  V       [14],     16  8;
    "st1 {v15.8b}, [x1]"          0x0c00_702f   0    0    0  V       [15],      8  1;
};

/// With the stack pointer as base.
#[rustfmt::skip]
const STACK: &[Row] = rows! {
    "ldr w3, [sp], #8"            0xb840_87e3   0    0    8  X       [3],       4  4;
    "ldp x3, x4, [sp, #16]!"      0xa9c1_13e3   0   16   16  X       [3, 4],    8  8;
    "ldr q0, [sp], #16"           0x3cc1_07e0   0    0   16  V       [0],      16  8;
};

/// What is no row of single accesses. LSE's need not exist, and what is CONSTRAINED UNPREDICTABLE may be
/// undefined.
#[rustfmt::skip]
const REFUSED: &[(&str, u32)] = &[
    ("ldxr w3, [x1]",                0x885f_7c23),
    ("ldaxr x3, [x1]",               0xc85f_fc23),
    ("ldxp x3, x4, [x1]",            0xc87f_1023),
    ("swp w3, w4, [x1]",             0xb823_8024),
    ("ldadd w3, w4, [x1]",           0xb823_0024),
    ("stadd w3, [x1]",               0xb823_003f),
    ("cas w3, w4, [x1]",             0x88a3_7c24),
    ("casp x2, x3, x4, x5, [x1]",    0x4822_7c24),
    ("ld2 {v0.4s, v1.4s}, [x1]",     0x4c40_8820),
    ("ld1 {v0.4s, v1.4s}, [x1]",     0x4c40_a820),
    ("ld1 {v0.s}[1], [x1]",          0x0d40_9020),
    ("ld1r {v0.4s}, [x1]",           0x4d40_c820),
    ("ldp x3, x3, [x1]",             0xa940_0c23),
    ("ldr x1, [x1], #8",             0xf840_8421),
    ("stp x3, x1, [x1, #16]!",       0xa981_0423),
];
const DC_ZVA: u32 = 0xd50b_7421;

/// A function that no test system has.
const ABSENT: u16 = 0x00f8;

/// Registers that stay as they are, or what was written last.
struct Target {
    name: &'static str,
    window: Window,
    /// Where the rows' first byte goes, a multiple of 16.
    first: usize,
    /// Widths that the registers take, and how many bytes of them there are; no stores if there are
    /// none. Of each byte the bits `mask` can be written.
    widths: &'static [usize],
    len: usize,
    mask: u8,
}

impl Target {
    const fn loads(name: &'static str, window: Window, first: usize) -> Self {
        Self {
            name,
            window,
            first,
            widths: &[],
            len: 0,
            mask: 0,
        }
    }
}

/// Returns the function of a device model, its BARs placed and on, and the first of them.
fn device_model(bridge: &HostBridge) -> Option<(Function, Window)> {
    const VIRTIO: u32 = 0x1af4;
    let function = Function::all(bridge).find(|function| function.id() & 0xffff == VIRTIO)?;
    let window = pci::first_fit(bridge, 0x8000);
    function.place(0, window.base());
    function.place(2, window.base() + 0x4000);
    function.enable();
    Some((function, window))
}

fn targets() -> Vec<Target> {
    let mut targets = vec![
        Target::loads("the UART's identification", console::window(), 0xfd0),
        Target::loads(
            "the distributor's identification",
            gic::distributor(),
            0xffd0,
        ),
        Target {
            // INTIDs 64 to 79, which have no device.
            name: "priorities",
            window: gic::distributor(),
            first: 0x440,
            widths: &[1, 4],
            len: 16,
            mask: 0xf8,
        },
        Target {
            // IBRD, which takes 16 bits.
            name: "the UART's divisor",
            window: console::window(),
            first: 0x24,
            widths: &[2],
            len: 2,
            mask: 0xff,
        },
    ];
    if let Some(bridge) = platform::get().host_bridge {
        targets.push(Target::loads("the host bridge", bridge.function(0), 0));
        targets.push(Target::loads(
            "an absent function",
            bridge.function(ABSENT),
            0x20,
        ));
        if let Some((function, window)) = device_model(&bridge) {
            targets.push(Target::loads(
                "a device model's function",
                function.config,
                0,
            ));
            targets.push(Target {
                // virtio's queue_desc and queue_driver (4.1.4.3).
                name: "a device model's registers",
                window,
                first: 0x20,
                widths: &[4, 8],
                len: 16,
                mask: 0xff,
            });
        }
    }
    targets
}

fn width(bytes: usize) -> Width {
    let index = bytes.trailing_zeros() as usize;
    Width::ALL[index]
}

/// Where a row is executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Level {
    El1,
    El0,
}

/// What a row left behind.
struct After {
    result: Result<(), Fault>,
    x: [u64; 18],
    sp: u64,
    simd: Registers,
}

/// Registers before a row, but for base and index: no two alike, and with their signs set.
fn pattern() -> [u64; 18] {
    core::array::from_fn(|n| 0xf8c0_9080_e8d8_a8b8 ^ (n as u64) << 3 ^ (n as u64) << 59)
}

/// Executes a row with the base at `base`.
fn execute(level: Level, word: u32, base: u64, index: u64) -> After {
    let mut x = pattern();
    (x[1], x[2]) = (base, index);
    let mut sp = base;
    Registers::pattern(0xa5).load();
    let result = match level {
        // SAFETY: a row moves x1 to x5, SIMD registers, the stack pointer at EL0, and a target.
        Level::El1 => unsafe { instruction::execute(word, &mut x) },
        // SAFETY: as above.
        Level::El0 => unsafe { instruction::execute_el0(word, &mut x, &mut sp) },
    };
    After {
        result,
        x,
        sp,
        simd: Registers::current(),
    }
}

/// Returns the address of a target's first byte for `level`.
fn address(level: Level, target: &Target) -> u64 {
    let at = target.window.base() + target.first;
    match level {
        Level::El1 => at as u64,
        Level::El0 => {
            let page = (at & !0xfff, Alias::UserDevice);
            // SAFETY: device registers that a test may access anyway.
            let alias = unsafe { mmu::alias(0, Some(page)) };
            (alias + (at & 0xfff)) as u64
        }
    }
}

/// Reads `bytes` of a target in parts, by plain loads.
fn read(target: &Target, bytes: usize, part: usize) -> Result<u128, Fault> {
    let mut value = 0;
    for at in (0..bytes).step_by(part) {
        let read = target.window.probe_read(target.first + at, width(part))?;
        value |= u128::from(read) << (8 * at);
    }
    Ok(value)
}

impl Row {
    fn size(&self) -> usize {
        self.bytes * self.registers.len()
    }

    /// Returns what a general-purpose register becomes.
    #[expect(clippy::cast_possible_truncation, reason = "it has 64 bits")]
    fn extend(&self, value: u128) -> u64 {
        let unused = 64 - 8 * self.bytes;
        let signed = (((value as u64) << unused).cast_signed() >> unused).cast_unsigned();
        match self.bank {
            SignedX => signed,
            SignedW => signed & 0xffff_ffff,
            X | V => value as u64,
        }
    }
}

/// Checks a load against plain ones.
fn check_load(level: Level, target: &Target, row: &Row, on_stack: bool) -> Outcome {
    let place = (row.name, target.name, level);
    let mut values = Vec::new();
    for at in (0..row.size()).step_by(row.bytes) {
        let part = Target::loads(target.name, target.window, target.first + at);
        match read(&part, row.bytes, row.part) {
            Ok(value) => values.push(value),
            Err(fault) => check!(false, "{place:?}: plain: {fault:?}"),
        }
    }
    let base = address(level, target).wrapping_add_signed(-row.offset as i64);
    let after = execute(level, row.word, base, row.index);
    check_eq!(after.result, Ok(()), "{place:?}");
    let moved = base.wrapping_add(row.moves);
    let (mut x, mut simd) = (pattern(), Registers::pattern(0xa5));
    x[2] = row.index;
    x[1] = if on_stack { base } else { moved };
    for (register, value) in row.registers.iter().zip(values) {
        match (row.bank, *register) {
            (V, register) => simd.q[register] = value,
            (_, 31) => {}
            (_, register) => x[register] = row.extend(value),
        }
    }
    check_eq!(after.x, x, "{place:?}: general registers");
    check!(after.simd == simd, "{place:?}: SIMD: {:x?}", after.simd);
    let sp = if on_stack { moved } else { base };
    check_eq!(
        after.sp,
        if level == Level::El0 { sp } else { base },
        "{place:?}: SP"
    );
    Ok(())
}

/// Checks a store by reading what is there afterwards.
fn check_store(level: Level, target: &Target, row: &Row) -> Outcome {
    let place = (row.name, target.name, level);
    let part = target.widths[0];
    let before = read(target, target.len, part).map_err(|fault| fault.syndrome());
    let base = address(level, target).wrapping_add_signed(-row.offset as i64);
    let after = execute(level, row.word, base, row.index);
    let now = read(target, target.len, part).map_err(|fault| fault.syndrome());
    // Everything zero again, by plain stores.
    for at in (0..target.len).step_by(part) {
        let _ = target.window.probe_write(target.first + at, width(part), 0);
    }
    check_eq!(after.result, Ok(()), "{place:?}");
    let mut x = pattern();
    (x[1], x[2]) = (base, row.index);
    let simd = Registers::pattern(0xa5);
    let mut expected = before;
    for (index, register) in row.registers.iter().enumerate() {
        let value = match (row.bank, *register) {
            (V, register) => simd.q[register],
            (_, 31) => 0,
            (_, register) => u128::from(x[register]),
        };
        for byte in 0..row.bytes {
            let shift = 8 * (index * row.bytes + byte);
            let mask = u128::from(target.mask) << shift;
            let new = (value >> (8 * byte) & u128::from(target.mask)) << shift;
            expected = expected.map(|old| old & !mask | new);
        }
    }
    check_eq!(now, expected, "{place:?}: what was stored");
    x[1] = base.wrapping_add(row.moves);
    check_eq!(after.x, x, "{place:?}: general registers");
    check!(
        after.simd == simd,
        "{place:?}: SIMD changed: {:x?}",
        after.simd
    );
    Ok(())
}

fn loads_at(level: Level) -> Outcome {
    if !on_isthmus() {
        skip!("not on Isthmus");
    }
    for target in &targets() {
        for row in LOADS {
            if target.widths.is_empty()
                || target.len >= row.size() && target.widths.contains(&row.part)
            {
                check_load(level, target, row, false)?;
            }
        }
    }
    Ok(())
}

pub(super) fn loads() -> Outcome {
    loads_at(Level::El1)
}

pub(super) fn loads_el0() -> Outcome {
    loads_at(Level::El0)?;
    for target in targets().iter().filter(|target| target.widths.is_empty()) {
        for row in STACK {
            check_load(Level::El0, target, row, true)?;
        }
    }
    Ok(())
}

fn stores_at(level: Level) -> Outcome {
    if !on_isthmus() {
        skip!("not on Isthmus");
    }
    for target in &targets() {
        for row in STORES {
            if target.len >= row.size() && target.widths.contains(&row.part) {
                check_store(level, target, row)?;
            }
        }
    }
    Ok(())
}

pub(super) fn stores() -> Outcome {
    stores_at(Level::El1)
}

pub(super) fn stores_el0() -> Outcome {
    stores_at(Level::El0)
}

/// What no row of accesses expresses gets an external abort, and changes nothing; where config space is
/// mapped to be read, that goes for stores.
pub(super) fn refused() -> Outcome {
    if !on_isthmus() {
        skip!("not on Isthmus");
    }
    for target in targets().iter().filter(|target| target.widths.is_empty()) {
        let is_mapped = pci::is_mapped(&target.window);
        for level in [Level::El1, Level::El0] {
            for (name, word) in REFUSED {
                let stores = !name.starts_with("ld") || name.starts_with("ldadd");
                if is_mapped && !stores {
                    continue;
                }
                let place = (*name, target.name, level);
                let base = address(level, target);
                let after = execute(level, *word, base, 0);
                let refused = after
                    .result
                    .is_err_and(|fault| fault.is_external_abort() || fault.is_undefined());
                check!(refused, "{place:?}: {:?}", after.result);
                let mut x = pattern();
                (x[1], x[2]) = (base, 0);
                check_eq!(after.x, x, "{place:?}: general registers");
                check!(
                    after.simd == Registers::pattern(0xa5),
                    "{place:?}: SIMD changed"
                );
            }
        }
        // To Device memory it is an alignment fault of stage 1.
        let page = (target.window.base() + target.first) & !0xfff;
        // SAFETY: nothing of it is accessed but by the row.
        let alias = unsafe { mmu::alias(0, Some((page, Alias::Normal))) };
        let result = execute(Level::El1, DC_ZVA, alias as u64, 0).result;
        let refused = result.is_err_and(Fault::is_external_abort);
        check!(refused, "dc zva to {}: {result:?}", target.name);
    }
    Ok(())
}

global_asm!(
    r#"
    .section .text.with_stack, "ax"
    // x0 = address: `ldr w0, [sp], #16` with SP_EL1, and with SP_EL0; x0 = value, x1 = SP afterwards.
    .global load_by_sp1, load_by_sp0
load_by_sp1:
    mov     x2, sp
    mov     sp, x0
    ldr     w0, [sp], #16
    mov     x1, sp
    mov     sp, x2
    ret
load_by_sp0:
    msr     spsel, #0
    mov     x2, sp
    mov     sp, x0
    ldr     w0, [sp], #16
    mov     x1, sp
    mov     sp, x2
    msr     spsel, #1
    ret
    "#
);

/// A value, and the stack pointer.
#[repr(C)]
struct Loaded {
    value: u64,
    sp: u64,
}

unsafe extern "C" {
    fn load_by_sp1(address: u64) -> Loaded;
    fn load_by_sp0(address: u64) -> Loaded;
}

/// The stack pointer is a base register too.
pub(super) fn stack_pointer() -> Outcome {
    if !on_isthmus() {
        skip!("not on Isthmus");
    }
    for target in targets().iter().filter(|target| target.widths.is_empty()) {
        let at = (target.window.base() + target.first) as u64;
        let plain = read(target, 4, 4).map_err(|fault| fault.syndrome());
        for (name, load) in [
            ("SP_EL1", load_by_sp1 as unsafe extern "C" fn(u64) -> Loaded),
            ("SP_EL0", load_by_sp0),
        ] {
            // SAFETY: the load reads a target; interrupts, which need the stack, are held back.
            let loaded = exception::without_irqs(|| unsafe { load(at) });
            check_eq!(Ok(loaded.value.into()), plain, "{name}, {}", target.name);
            check_eq!(loaded.sp, at + 16, "{name}, {}: afterwards", target.name);
        }
    }
    Ok(())
}

/// An access over the end of a page is decided part by part.
pub(super) fn page_ends() -> Outcome {
    const LOAD: u32 = 0xa8c1_1023; // ldp x3, x4, [x1], #16
    const STORE: u32 = 0xa881_1023; // stp x3, x4, [x1], #16
    if !on_isthmus() {
        skip!("not on Isthmus");
    }
    let Some(bridge) = platform::get().host_bridge else {
        skip!("there is no host bridge");
    };
    let uart = console::window().base();
    let absent = bridge.function(ABSENT).base();
    let memory = vec![0x5a_u8; 0x2000];
    let ram = (memory.as_ptr() as usize).next_multiple_of(0x1000);
    let map = |slot: usize, page| {
        // SAFETY: registers and a hole that a test may access, and memory that is loaded only.
        unsafe { mmu::alias(slot, page) as u64 }
    };
    // SAFETY: the identification of the UART.
    let last = unsafe { Window::new(uart, 0x1000) }.probe_read(0xff8, Width::Double);
    for (level, kind) in [(Level::El1, Alias::Device), (Level::El0, Alias::UserDevice)] {
        let base = map(4, Some((uart, kind))) + 0xff8;
        let end = map(5, Some((absent, kind)));
        let far = || runtime::read_sysreg!("far_el1");
        let unchanged = |after: &After| {
            after.x[1] == base && after.x[3..] == pattern()[3..] && after.sp == base
        };

        let after = execute(level, LOAD, base, 0);
        check_eq!(after.result, Ok(()), "{level:?}: two devices");
        check_eq!(
            (Ok(after.x[3]), after.x[4], after.x[1]),
            (last, u64::MAX, base + 16),
            "{level:?}: two devices"
        );
        let after = execute(level, STORE, base, 0);
        check_eq!(after.result, Ok(()), "{level:?}: two devices, stored");

        map(5, None);
        for word in [LOAD, STORE] {
            let after = execute(level, word, base, 0);
            let missing = after.result.is_err_and(Fault::is_translation);
            check!(missing, "{level:?}: not mapped behind: {:?}", after.result);
            check_eq!(far(), end, "{level:?}: not mapped behind: FAR");
            check!(
                unchanged(&after),
                "{level:?}: not mapped behind: {:x?}",
                after.x
            );
        }
        if level == Level::El0 {
            map(5, Some((absent, Alias::Device)));
            let result = execute(level, LOAD, base, 0).result;
            let denied = result.is_err_and(|fault| fault.syndrome() & 0x3f == 0x0f);
            check!(denied, "not EL0's behind: {result:?}");
        }
        // Memory behind a device, and before it.
        map(5, Some((ram, kind)));
        let after = execute(level, LOAD, base, 0);
        let aborted = after.result.is_err_and(Fault::is_external_abort);
        check!(aborted, "{level:?}: memory behind: {:?}", after.result);
        check_eq!(far(), end, "{level:?}: memory behind: FAR");
        check!(
            unchanged(&after),
            "{level:?}: memory behind: {:x?}",
            after.x
        );
        map(4, Some((ram, kind)));
        map(5, Some((gic::distributor().base(), kind)));
        let after = execute(level, LOAD, base, 0);
        let aborted = after.result.is_err_and(Fault::is_external_abort);
        check!(aborted, "{level:?}: memory before: {:?}", after.result);
        check!(
            unchanged(&after),
            "{level:?}: memory before: {:x?}",
            after.x
        );
        // Parts that are not aligned cannot be told apart.
        let base = map(4, Some((gic::distributor().base(), kind))) + 4;
        let result = execute(level, 0xa940_1023, base, 0).result; // ldp x3, x4, [x1]
        let aborted = result.is_err_and(|fault| fault.is_data_abort());
        check!(aborted, "{level:?}: not aligned: {result:?}");
    }
    map(4, None);
    map(5, None);
    Ok(())
}

// Another vCPU interferes.

static STOP: AtomicU32 = AtomicU32::new(0);
static TURNS: AtomicUsize = AtomicUsize::new(0);
static PAGES: [AtomicUsize; 2] = [AtomicUsize::new(0), AtomicUsize::new(0)];

const LDP: u32 = 0x2940_1023; // ldp w3, w4, [x1]
const LDR_POST: u32 = 0xb840_8423; // ldr w3, [x1], #8
const STP: u32 = 0x2900_1023; // stp w3, w4, [x1]
const LDP_ELSEWHERE: u32 = 0x2940_10a3; // ldp w3, w4, [x5]
const NOP: u32 = 0xd503_201f;
const RET: u32 = 0xd65f_03c0;

/// Slots of the code and of what it accesses.
const CODE: usize = 8;
const DATA: usize = 9;

fn write_code(page: usize, word: u32) {
    // SAFETY: the page is memory that only the race executes.
    unsafe {
        (page as *mut u32).write_volatile(word);
        (page as *mut u32).add(1).write_volatile(RET);
        core::arch::asm!(
            "dc  cvau, {page}",
            "dsb ish",
            "ic  ivau, {page}",
            "dsb ish",
            "isb",
            page = in(reg) page,
            options(nostack),
        );
    }
}

fn until_stopped(mut turn: impl FnMut(usize)) {
    while STOP.load(Ordering::Acquire) == 0 {
        turn(TURNS.fetch_add(1, Ordering::AcqRel));
    }
}

/// Writes one instruction over the other, with no regard for who executes it.
fn rewrite(_: usize) {
    let page = PAGES[0].load(Ordering::Acquire);
    let words = [
        LDP,
        NOP,
        LDP_ELSEWHERE,
        NOP,
        LDR_POST,
        LDP_ELSEWHERE,
        STP,
        NOP,
    ];
    until_stopped(|turn| write_code(page, words[turn % words.len()]));
}

/// Leaves what was moved where it is for a while.
fn pause() {
    for _ in 0..1000 {
        core::hint::spin_loop();
    }
}

/// Moves the code from one page to another, where it is different.
fn move_code(_: usize) {
    until_stopped(|turn| {
        let page = PAGES[turn % 2].load(Ordering::Acquire);
        // SAFETY: both are pages of code for the race.
        unsafe { mmu::alias(CODE, Some((page, Alias::Code))) };
        pause();
    });
}

/// Moves what is accessed from one device to another.
fn move_data(_: usize) {
    until_stopped(|turn| {
        let page = PAGES[turn % 2].load(Ordering::Acquire);
        // SAFETY: both are device registers that a test may read.
        unsafe { mmu::alias(DATA, Some((page, Alias::Device))) };
        pause();
    });
}

/// Executes the code over and over while `other` interferes on another vCPU; `is_sane` judges x1, x3
/// and x4, or the fault.
fn race(
    what: &str,
    target: u64,
    other: fn(usize),
    [base, elsewhere]: [u64; 2],
    is_sane: impl Fn(Result<[u64; 3], Fault>) -> bool,
) -> Outcome {
    STOP.store(0, Ordering::Release);
    TURNS.store(0, Ordering::Release);
    check_eq!(cpu::start(target, 1, other, 0), Ok(()), "{what}: CPU_ON");
    let started = timer::wait_until(LONG, || TURNS.load(Ordering::Acquire) > 0);
    let code = mmu::alias_address(CODE);
    let mut outcome = Ok(());
    let (mut rounds, mut done) = (0, 0);
    let end = timer::now() + timer::ticks(LONG);
    while (rounds < 10_000 || done < 100) && timer::now() < end {
        rounds += 1;
        let mut x = [0; 18];
        (x[1], x[3], x[4], x[5]) = (base, 3, 4, elsewhere);
        // SAFETY: what the page holds changes x1, x3 and x4 only, and reads device registers.
        let result = unsafe { instruction::call(code, &mut x) };
        let left = [x[1], x[3], x[4]];
        done += u32::from(result.is_ok());
        if !is_sane(result.map(|()| left)) {
            outcome = Err((result, left));
            break;
        }
    }
    STOP.store(1, Ordering::Release);
    let ended = timer::wait_until(LONG, || smccc::affinity_info(target, 0) == 1);
    check!(outcome.is_ok(), "{what}: {:x?}", outcome);
    check!(started && ended, "{what}: the other vCPU is stuck");
    check!(done >= 100, "{what}: done {done} times of {rounds}");
    Ok(())
}

/// Code and tables may change while an instruction is decoded.
pub(super) fn races() -> Outcome {
    if !on_isthmus() {
        skip!("not on Isthmus");
    }
    let (Some(target), Some(bridge)) = (vcpu(1), platform::get().host_bridge) else {
        skip!("there is one vCPU, or no host bridge");
    };
    let mut memory = vec![0_u8; 0x3000];
    let first = (memory.as_mut_ptr() as usize).next_multiple_of(0x1000);
    let pages = [first, first + 0x1000];
    // Subsystem IDs and expansion ROM, which no store changes.
    const SUBSYSTEM: usize = 0x2c;
    let host = bridge.function(0);
    let values = [host.read32(SUBSYSTEM), host.read32(SUBSYSTEM + 4)].map(u64::from);
    let base = (host.base() + SUBSYSTEM) as u64;
    let absent = bridge.function(ABSENT).base();
    let elsewhere = (absent + 8) as u64;
    let ones = u64::from(u32::MAX);
    let sane = move |result: Result<[u64; 3], Fault>| {
        // A page of code may be missing for a moment.
        let Ok([x1, x3, x4]) = result else {
            return result.is_err_and(Fault::is_translation);
        };
        [
            [base, 3, 4],
            [base, values[0], values[1]],
            [base + 8, values[0], 4],
            [base, ones, ones],
        ]
        .contains(&[x1, x3, x4])
    };
    let set_pages = |pages: [usize; 2]| {
        for (place, page) in PAGES.iter().zip(pages) {
            place.store(page, Ordering::Release);
        }
    };
    // SAFETY: pages of code for the race.
    let code = |page| unsafe { mmu::alias(CODE, Some((page, Alias::Code))) };

    set_pages(pages);
    write_code(pages[0], LDP);
    write_code(pages[1], LDR_POST);
    code(pages[0]);
    let bases = [base, elsewhere];
    race("code is rewritten", target, rewrite, bases, |result| {
        result.is_ok() && sane(result)
    })?;
    write_code(pages[0], LDP);
    race("code is moved", target, move_code, bases, sane)?;

    write_code(pages[0], LDP);
    code(pages[0]);
    set_pages([host.base(), absent]);
    // SAFETY: device registers that a test may read.
    let page = unsafe { mmu::alias(DATA, Some((absent, Alias::Device))) };
    let data = (page + SUBSYSTEM) as u64;
    let is_of_either = |result: Result<[u64; 3], Fault>| match result {
        Ok([x1, x3, x4]) => x1 == data && ([x3, x4] == values || [x3, x4] == [ones; 2]),
        Err(fault) => fault.is_translation(),
    };
    race("data is moved", target, move_data, [data; 2], is_of_either)?;
    // SAFETY: nothing uses the names any more.
    unsafe {
        mmu::alias(CODE, None);
        mmu::alias(DATA, None);
    }
    Ok(())
}
