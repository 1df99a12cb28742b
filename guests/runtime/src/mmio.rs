//! Device accesses that are one load or store each.
//!
//! A load or store with writeback has no valid syndrome when it traps, and the compiler may make one
//! of `write_volatile`; so each access is an instruction written here.
//!
//! The `probe_…` methods do the same and survive a fault: the exception handler goes on behind the
//! instruction, with the syndrome in x16 (see [`exception`](crate::exception)).

use core::arch::{asm, global_asm};

use crate::exception::Fault;

/// How much one access moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// One byte.
    Byte,
    /// Two bytes.
    Half,
    /// Four bytes.
    Word,
    /// Eight bytes.
    Double,
}

impl Width {
    /// All four widths.
    pub const ALL: [Self; 4] = [Self::Byte, Self::Half, Self::Word, Self::Double];

    /// Returns how many bytes it moves.
    pub const fn bytes(self) -> usize {
        match self {
            Self::Byte => 1,
            Self::Half => 2,
            Self::Word => 4,
            Self::Double => 8,
        }
    }

    /// Returns what a read of all ones gives.
    pub const fn ones(self) -> u64 {
        u64::MAX >> (64 - 8 * self.bytes())
    }
}

/// A range of device registers.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    base: usize,
    len: usize,
}

impl Window {
    /// Returns a window on `base..base + len`.
    ///
    /// # Safety
    ///
    /// No access in the range changes memory that Rust code refers to: it holds a device's
    /// registers, a hole, or memory set aside for this.
    pub const unsafe fn new(base: usize, len: usize) -> Self {
        Self { base, len }
    }

    /// Returns its address.
    pub const fn base(&self) -> usize {
        self.base
    }

    /// Returns how many bytes it has.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Tells whether it has no bytes.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the part of it from `offset` on that is `len` bytes long.
    pub fn part(&self, offset: usize, len: usize) -> Self {
        assert!(
            offset <= self.len && len <= self.len - offset,
            "no part at {offset:#x}"
        );
        Self {
            base: self.base + offset,
            len,
        }
    }

    fn at(&self, offset: usize, bytes: usize) -> usize {
        assert!(
            offset < self.len && bytes <= self.len - offset,
            "no register at {offset:#x} of {:#x}",
            self.base
        );
        self.base + offset
    }
}

macro_rules! accessors {
    ($($read:ident $write:ident $type:ident $bytes:literal $load:literal $store:literal)*) => { impl Window { $(
        #[doc = concat!("Reads ", stringify!($bytes), " byte(s) at `offset`.")]
        pub fn $read(&self, offset: usize) -> $type {
            let address = self.at(offset, $bytes);
            let value: u64;
            // SAFETY: the address is in the window (asserted), which `new` says is ours to read.
            unsafe { asm!($load, address = in(reg) address, value = out(reg) value, options(nostack, preserves_flags)) };
            value as $type
        }

        #[doc = concat!("Writes ", stringify!($bytes), " byte(s) at `offset`.")]
        pub fn $write(&self, offset: usize, value: $type) {
            let address = self.at(offset, $bytes);
            let value = u64::from(value);
            // SAFETY: the address is in the window (asserted), which `new` says is ours to write.
            unsafe { asm!($store, address = in(reg) address, value = in(reg) value, options(nostack, preserves_flags)) };
        }
    )* } };
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "a load leaves the bits above its width zero"
)]
mod accessors {
    use super::{Window, asm};

    accessors! {
        read8  write8  u8  1 "ldrb {value:w}, [{address}]" "strb {value:w}, [{address}]"
        read16 write16 u16 2 "ldrh {value:w}, [{address}]" "strh {value:w}, [{address}]"
        read32 write32 u32 4 "ldr {value:w}, [{address}]"  "str {value:w}, [{address}]"
        read64 write64 u64 8 "ldr {value}, [{address}]"    "str {value}, [{address}]"
    }
}

/// What a probe gives back, in x0 and x1: a value, and the syndrome of the fault or zero.
#[repr(C)]
struct Probed {
    value: u64,
    syndrome: u64,
}

impl Probed {
    fn result(self) -> Result<u64, Fault> {
        if self.syndrome == 0 {
            Ok(self.value)
        } else {
            Err(Fault::new(self.syndrome))
        }
    }
}

global_asm!(
    r#"
    .macro probe name:req, instruction:vararg
    .global \name
\name:
    mov     x16, xzr
    \instruction
    mov     x1, x16
    ret
    .endm

    .section .text.probe, "ax"
    .global probe_start, probe_end
probe_start:
    probe probe_read_1, ldrb w0, [x0]
    probe probe_read_2, ldrh w0, [x0]
    probe probe_read_4, ldr  w0, [x0]
    probe probe_read_8, ldr  x0, [x0]
    probe probe_write_1, strb w1, [x0]
    probe probe_write_2, strh w1, [x0]
    probe probe_write_4, str  w1, [x0]
    probe probe_write_8, str  x1, [x0]
    probe probe_write_pre_index, str w1, [x0, #4]!
    probe probe_write_pair, stp w1, w1, [x0]
    probe probe_read_exclusive, ldxr w0, [x0]
    probe probe_read_simd, .inst 0x3dc00000     // ldr q0, [x0]
    probe probe_zero_block, dc zva, x0
    .global probe_read_post_index, probe_read_pair
probe_read_post_index:
    mov     x16, xzr
    mov     x3, x0
    ldr     w2, [x3], #4
    sub     x3, x3, x0              // 4, if the base moved on as it should
    orr     x0, x2, x3, lsl #32
    mov     x1, x16
    ret
probe_read_pair:
    mov     x16, xzr
    ldp     w2, w3, [x0]
    orr     x0, x2, x3, lsl #32
    mov     x1, x16
    ret
probe_end:
    "#
);

unsafe extern "C" {
    fn probe_read_1(address: usize) -> Probed;
    fn probe_read_2(address: usize) -> Probed;
    fn probe_read_4(address: usize) -> Probed;
    fn probe_read_8(address: usize) -> Probed;
    fn probe_write_1(address: usize, value: u64) -> Probed;
    fn probe_write_2(address: usize, value: u64) -> Probed;
    fn probe_write_4(address: usize, value: u64) -> Probed;
    fn probe_write_8(address: usize, value: u64) -> Probed;
    fn probe_read_post_index(address: usize) -> Probed;
    fn probe_write_pre_index(address: usize, value: u64) -> Probed;
    fn probe_read_pair(address: usize) -> Probed;
    fn probe_write_pair(address: usize, value: u64) -> Probed;
    fn probe_read_exclusive(address: usize) -> Probed;
    fn probe_read_simd(address: usize) -> Probed;
    fn probe_zero_block(address: usize) -> Probed;
}

/// An access that is not a plain load or store of a general register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Odd {
    /// A word load that moves the base register after.
    PostIndexLoad,
    /// A word store that moves the base register before.
    PreIndexStore,
    /// A load of two words.
    PairLoad,
    /// A store of two words.
    PairStore,
    /// An exclusive load.
    Exclusive,
    /// A load of a SIMD register.
    Simd,
    /// `DC ZVA`.
    ZeroBlock,
}

impl Odd {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::PostIndexLoad,
        Self::PreIndexStore,
        Self::PairLoad,
        Self::PairStore,
        Self::Exclusive,
        Self::Simd,
        Self::ZeroBlock,
    ];
}

impl Window {
    /// Reads at `offset`, which may fault and need not be aligned.
    pub fn probe_read(&self, offset: usize, width: Width) -> Result<u64, Fault> {
        let address = self.at(offset, width.bytes());
        // SAFETY: the bytes are in the window (checked by `at`), and a fault is recovered from.
        let probed = unsafe {
            match width {
                Width::Byte => probe_read_1(address),
                Width::Half => probe_read_2(address),
                Width::Word => probe_read_4(address),
                Width::Double => probe_read_8(address),
            }
        };
        probed.result()
    }

    /// Writes at `offset`, which may fault and need not be aligned.
    pub fn probe_write(&self, offset: usize, width: Width, value: u64) -> Result<(), Fault> {
        let address = self.at(offset, width.bytes());
        // SAFETY: as in `probe_read`.
        let probed = unsafe {
            match width {
                Width::Byte => probe_write_1(address, value),
                Width::Half => probe_write_2(address, value),
                Width::Word => probe_write_4(address, value),
                Width::Double => probe_write_8(address, value),
            }
        };
        probed.result().map(|_| ())
    }

    /// Makes an odd access at `offset`, with zeros where it stores.
    ///
    /// A pair is returned with the first word in the low half; a post-indexed load with how far the
    /// base moved in the high half.
    pub fn probe_odd(&self, offset: usize, odd: Odd) -> Result<u64, Fault> {
        // DC ZVA is the widest: it clears an aligned block of at most 2 KiB.
        let bytes = if odd == Odd::ZeroBlock { 2048 } else { 16 };
        let address = self.at(offset, bytes);
        // SAFETY: what is accessed is in the window (checked by `at`), and a fault is recovered from.
        let probed = unsafe {
            match odd {
                Odd::PostIndexLoad => probe_read_post_index(address),
                Odd::PreIndexStore => probe_write_pre_index(address, 0),
                Odd::PairLoad => probe_read_pair(address),
                Odd::PairStore => probe_write_pair(address, 0),
                Odd::Exclusive => probe_read_exclusive(address),
                Odd::Simd => probe_read_simd(address),
                Odd::ZeroBlock => probe_zero_block(address),
            }
        };
        probed.result()
    }
}
