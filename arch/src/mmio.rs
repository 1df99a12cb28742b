//! Device registers: the bus they are on, a window on it, registers with typed fields.
//!
//! A driver names its registers once, as constants, and takes the bus as a parameter:
//!
//! ```text
//!   SMMU_CR0: Reg32<CR0::Register> = Reg32::at(0x20)
//!        |
//!        +-- write(bus, CR0::CMDQEN::SET) --> Bus::write32(0x20, 8) --> Window   str w1, [x0]
//!                                                                   \-> a model in a test
//! ```

use core::marker::PhantomData;
use tock_registers::fields::FieldValue;
use tock_registers::{LocalRegisterCopy, RegisterLongName};

/// What device registers are reached through: a device window on the machine, a model in a test.
///
/// Offsets count in bytes from the start of the device. Accesses to one device stay in program
/// order, as Device-nGnRE memory has it; they are not ordered against accesses to memory.
pub trait Bus {
    /// Returns the size of the device's registers in bytes.
    fn len(&self) -> usize;

    /// Returns whether there are no registers at all.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reads the byte at `offset`.
    fn read8(&self, offset: usize) -> u8;
    /// Reads the 16 bits at `offset`.
    fn read16(&self, offset: usize) -> u16;
    /// Reads the 32 bits at `offset`.
    fn read32(&self, offset: usize) -> u32;
    /// Reads the 64 bits at `offset`.
    fn read64(&self, offset: usize) -> u64;

    /// Writes the byte at `offset`.
    fn write8(&self, offset: usize, value: u8);
    /// Writes the 16 bits at `offset`.
    fn write16(&self, offset: usize, value: u16);
    /// Writes the 32 bits at `offset`.
    fn write32(&self, offset: usize, value: u32);
    /// Writes the 64 bits at `offset`.
    fn write64(&self, offset: usize, value: u64);
}

macro_rules! forward {
    ($self:ident, $to:expr, $base:expr) => {
        fn read8(&$self, offset: usize) -> u8 {
            $to.read8($base + offset)
        }
        fn read16(&$self, offset: usize) -> u16 {
            $to.read16($base + offset)
        }
        fn read32(&$self, offset: usize) -> u32 {
            $to.read32($base + offset)
        }
        fn read64(&$self, offset: usize) -> u64 {
            $to.read64($base + offset)
        }
        fn write8(&$self, offset: usize, value: u8) {
            $to.write8($base + offset, value);
        }
        fn write16(&$self, offset: usize, value: u16) {
            $to.write16($base + offset, value);
        }
        fn write32(&$self, offset: usize, value: u32) {
            $to.write32($base + offset, value);
        }
        fn write64(&$self, offset: usize, value: u64) {
            $to.write64($base + offset, value);
        }
    };
}

impl<B: Bus + ?Sized> Bus for &B {
    fn len(&self) -> usize {
        (**self).len()
    }
    forward!(self, (**self), 0);
}

/// A part of a device's registers that is numbered from zero itself, such as one redistributor's
/// frames.
#[derive(Clone, Copy, Debug)]
pub struct Part<B> {
    bus: B,
    base: usize,
    len: usize,
}

impl<B: Bus> Part<B> {
    /// Returns the `len` bytes of `bus` from `base` on, or `None` if it does not have them.
    pub fn new(bus: B, base: usize, len: usize) -> Option<Self> {
        let fits = base.checked_add(len)? <= bus.len();
        fits.then_some(Self { bus, base, len })
    }
}

impl<B: Bus> Bus for Part<B> {
    fn len(&self) -> usize {
        self.len
    }
    forward!(self, self.bus, self.base);
}

/// A device's registers in EL2's address space.
///
/// Each access is one plain load or store, and reaches only what the window covers.
#[derive(Debug)]
pub struct Window {
    base: *mut u8,
    len: usize,
}

// SAFETY: the registers stay mapped on every pCPU (`new`), and each access is a single load or
// store, which a device takes one at a time.
unsafe impl Send for Window {}
// SAFETY: as above; what a sequence of accesses means is for the driver's lock to say.
unsafe impl Sync for Window {}

impl Window {
    /// Takes a device's registers over.
    ///
    /// # Safety
    ///
    /// `base..base + len` is mapped device memory for as long as the window lives, is aligned to
    /// eight bytes, and no other `Window` covers any of it. What the device does to memory when
    /// its registers are written is its driver's to answer for.
    pub const unsafe fn new(base: *mut u8, len: usize) -> Self {
        Self { base, len }
    }

    /// Returns where a register of `T` at `offset` is.
    fn register<T>(&self, offset: usize) -> *mut T {
        let size = size_of::<T>();
        assert!(
            offset.is_multiple_of(size) && offset < self.len && size <= self.len - offset,
            "no register of {size} bytes at {offset:#x}"
        );
        self.base.wrapping_add(offset).cast()
    }
}

macro_rules! window_access {
    ($read:ident, $write:ident, $type:ty, $load:path, $store:path, $self:ident, $window:expr) => {
        #[inline]
        fn $read(&$self, offset: usize) -> $type {
            // SAFETY: the register is inside the window, aligned (`register`), and the window is
            // mapped device memory that is ours alone (`new`).
            unsafe { $load($window.register(offset)) }
        }
        #[inline]
        fn $write(&$self, offset: usize, value: $type) {
            // SAFETY: as for the read.
            unsafe { $store($window.register(offset), value) }
        }
    };
}

macro_rules! window_accesses {
    ($self:ident, $window:expr, $module:ident) => {
        fn len(&$self) -> usize {
            $window.len
        }
        window_access!(read8, write8, u8, $module::load8, $module::store8, $self, $window);
        window_access!(read16, write16, u16, $module::load16, $module::store16, $self, $window);
        window_access!(read32, write32, u32, $module::load32, $module::store32, $self, $window);
        window_access!(read64, write64, u64, $module::load64, $module::store64, $self, $window);
    };
}

impl Bus for Window {
    window_accesses!(self, self, access);
}

/// Registers of a device that is not EL2's own, and may refuse an access: config space, BARs.
///
/// A load that the device answers with a synchronous external abort gives all ones, and such a store
/// is dropped ([`crate::containment`]); a device that EL2 cannot do without has a [`Window`], where
/// that is the end.
#[derive(Debug)]
pub struct Foreign(Window);

impl Foreign {
    /// Makes the accesses of a window such that its device may refuse them.
    pub const fn new(window: Window) -> Self {
        Self(window)
    }

    /// Returns where in the registers an address of EL2's is, if it is in them.
    pub fn offset_of(&self, address: u64) -> Option<usize> {
        let offset = usize::try_from(address)
            .ok()?
            .checked_sub(self.0.base.addr())?;
        (offset < self.0.len).then_some(offset)
    }
}

impl Bus for Foreign {
    window_accesses!(self, self.0, foreign);
}

/// The loads and stores themselves.
///
/// The compiler may make a volatile access with writeback (`str w1, [x0], #4`), for which a
/// hypervisor below us gets no syndrome; so each is written out. The host twin is volatile.
macro_rules! access {
    ($load:ident, $store:ident, $type:ty, $ldr:literal, $str:literal, $listed:expr) => {
        #[inline(always)]
        pub(super) unsafe fn $load(at: *mut $type) -> $type {
            #[cfg(target_os = "none")]
            {
                let value: $type;
                // SAFETY: the caller gives an aligned address of mapped device memory.
                unsafe {
                    core::arch::asm!("2:", $ldr, $listed, value = out(reg) value, at = in(reg) at,
                        options(nostack, preserves_flags));
                }
                value
            }
            #[cfg(not(target_os = "none"))]
            // SAFETY: as above.
            unsafe {
                at.read_volatile()
            }
        }

        #[inline(always)]
        pub(super) unsafe fn $store(at: *mut $type, value: $type) {
            #[cfg(target_os = "none")]
            // SAFETY: the caller gives an aligned address of mapped device memory.
            unsafe {
                core::arch::asm!("2:", $str, $listed, value = in(reg) value, at = in(reg) at,
                    options(nostack, preserves_flags));
            }
            #[cfg(not(target_os = "none"))]
            // SAFETY: as above.
            unsafe {
                at.write_volatile(value);
            }
        }
    };
}

#[rustfmt::skip]
macro_rules! accesses {
    ($listed:expr) => {
        access!(load8, store8, u8, "ldrb {value:w}, [{at}]", "strb {value:w}, [{at}]", $listed);
        access!(load16, store16, u16, "ldrh {value:w}, [{at}]", "strh {value:w}, [{at}]", $listed);
        access!(load32, store32, u32, "ldr {value:w}, [{at}]", "str {value:w}, [{at}]", $listed);
        access!(load64, store64, u64, "ldr {value}, [{at}]", "str {value}, [{at}]", $listed);
    };
}

/// Accesses to a device of EL2's own.
mod access {
    accesses!("");
}

/// Accesses to other devices, which are listed.
mod foreign {
    accesses!(crate::containment::listed!());
}

macro_rules! register {
    ($(#[$doc:meta])* $name:ident, $type:ty, $read:ident, $write:ident) => {
        $(#[$doc])*
        pub struct $name<R: RegisterLongName = ()> {
            offset: usize,
            fields: PhantomData<R>,
        }

        impl<R: RegisterLongName> $name<R> {
            /// Names the register at `offset`.
            pub const fn at(offset: usize) -> Self {
                Self { offset, fields: PhantomData }
            }

            /// Returns the `n`th register of the array that begins with this one.
            pub const fn nth(&self, n: usize) -> Self {
                Self::at(self.offset + n * size_of::<$type>())
            }

            /// Reads the register.
            #[inline]
            pub fn read(&self, bus: &(impl Bus + ?Sized)) -> LocalRegisterCopy<$type, R> {
                LocalRegisterCopy::new(bus.$read(self.offset))
            }

            /// Reads the register as a number.
            #[inline]
            pub fn get(&self, bus: &(impl Bus + ?Sized)) -> $type {
                bus.$read(self.offset)
            }

            /// Writes `value`; the fields it does not name become zero.
            #[inline]
            pub fn write(&self, bus: &(impl Bus + ?Sized), value: FieldValue<$type, R>) {
                bus.$write(self.offset, value.into());
            }

            /// Writes a number.
            #[inline]
            pub fn set(&self, bus: &(impl Bus + ?Sized), value: $type) {
                bus.$write(self.offset, value);
            }

            /// Reads the register and writes it back with the fields in `value` changed.
            #[inline]
            pub fn modify(&self, bus: &(impl Bus + ?Sized), value: FieldValue<$type, R>) {
                self.set(bus, value.modify(self.get(bus)));
            }
        }
    };
}

register! {
    /// A register of 32 bits with the fields `R`.
    Reg32, u32, read32, write32
}
register! {
    /// A register of 64 bits with the fields `R`.
    Reg64, u64, read64, write64
}

/// The device did not do in time what it was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeout;

/// How often a register is read before a device counts as dead: each read takes some hundred
/// nanoseconds on hardware, which makes this about a tenth of a second.
const POLLS: u32 = if cfg!(test) { 10_000 } else { 1_000_000 };

/// Waits until `done`.
pub fn wait_until(mut done: impl FnMut() -> bool) -> Result<(), Timeout> {
    for _ in 0..POLLS {
        if done() {
            return Ok(());
        }
        core::hint::spin_loop();
    }
    Err(Timeout)
}

#[cfg(test)]
pub(crate) mod testing {
    //! A device that is plain memory, for tests.

    use super::Bus;
    use core::cell::RefCell;

    /// Registers that keep what is written, and a record of the writes.
    pub(crate) struct Array {
        pub(crate) bytes: RefCell<Vec<u8>>,
        pub(crate) writes: RefCell<Vec<(usize, u64)>>,
    }

    impl Array {
        pub(crate) fn new(len: usize) -> Self {
            Self {
                bytes: RefCell::new(vec![0; len]),
                writes: RefCell::default(),
            }
        }

        /// Sets what a read gives, as the device would, without recording a write.
        pub(crate) fn preset32(&self, offset: usize, value: u32) {
            self.bytes.borrow_mut()[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
        }

        pub(crate) fn preset64(&self, offset: usize, value: u64) {
            self.bytes.borrow_mut()[offset..offset + 8].copy_from_slice(&value.to_le_bytes());
        }
    }

    macro_rules! array_access {
        ($read:ident, $write:ident, $type:ty) => {
            fn $read(&self, offset: usize) -> $type {
                let bytes = self.bytes.borrow();
                let bytes = &bytes[offset..offset + size_of::<$type>()];
                <$type>::from_le_bytes(bytes.try_into().unwrap())
            }
            fn $write(&self, offset: usize, value: $type) {
                self.writes.borrow_mut().push((offset, u64::from(value)));
                self.bytes.borrow_mut()[offset..offset + size_of::<$type>()]
                    .copy_from_slice(&value.to_le_bytes());
            }
        };
    }

    impl Bus for Array {
        fn len(&self) -> usize {
            self.bytes.borrow().len()
        }
        array_access!(read8, write8, u8);
        array_access!(read16, write16, u16);
        array_access!(read32, write32, u32);
        array_access!(read64, write64, u64);
    }
}

#[cfg(test)]
mod tests {
    use super::testing::Array;
    use super::*;
    use tock_registers::register_bitfields;

    register_bitfields! {u32,
        CR0 [
            SMMUEN OFFSET(0) NUMBITS(1) [],
            CMDQEN OFFSET(3) NUMBITS(1) []
        ]
    }
    const SMMU_CR0: Reg32<CR0::Register> = Reg32::at(0x20);

    fn window(memory: &mut [u64]) -> Window {
        // SAFETY: the memory outlives the window in these tests, and is used through it alone.
        unsafe { Window::new(memory.as_mut_ptr().cast(), size_of_val(memory)) }
    }

    #[test]
    fn a_register_reads_writes_and_modifies_its_own_bits() {
        let bus = Array::new(0x100);
        SMMU_CR0.write(&bus, CR0::CMDQEN::SET);
        SMMU_CR0.modify(&bus, CR0::SMMUEN::SET);
        assert_eq!(*bus.writes.borrow(), [(0x20, 8), (0x20, 9)]);
        assert!(SMMU_CR0.read(&bus).is_set(CR0::CMDQEN));
        SMMU_CR0.nth(3).set(&bus, 7);
        assert_eq!(bus.writes.borrow().last(), Some(&(0x2c, 7)));
    }

    #[test]
    fn a_window_accesses_every_width() {
        let mut memory = [0u64; 4];
        let window = window(&mut memory);
        window.write64(8, 0x1122_3344_5566_7788);
        assert_eq!(window.read8(9), 0x77);
        assert_eq!(window.read16(10), 0x5566);
        assert_eq!(window.read32(12), 0x1122_3344);
        window.write8(8, 0xaa);
        window.write16(10, 0xbbbb);
        window.write32(12, 0xcccc_cccc);
        assert_eq!(window.read64(8), 0xcccc_cccc_bbbb_77aa);
    }

    #[test]
    fn a_foreign_device_is_accessed_in_the_same_way() {
        let mut memory = [0u64; 2];
        let foreign = Foreign::new(window(&mut memory));
        foreign.write64(8, 0x1122_3344_5566_7788);
        foreign.write16(10, 0xbbbb);
        assert_eq!(foreign.read32(8), 0xbbbb_7788);
        assert_eq!((foreign.read8(15), foreign.len()), (0x11, 16));
        let base = (&raw const memory).addr() as u64;
        let cases = [(0, Some(0)), (15, Some(15)), (16, None), (u64::MAX, None)];
        for (offset, found) in cases {
            assert_eq!(
                foreign.offset_of(base.wrapping_add(offset)),
                found,
                "{offset}"
            );
        }
    }

    #[test]
    #[should_panic(expected = "no register of 8 bytes at 0x1c")]
    fn a_window_ends_where_it_ends() {
        let mut memory = [0u64; 4];
        window(&mut memory).read64(0x1c);
    }

    #[test]
    #[should_panic(expected = "no register of 4 bytes at 0x20")]
    fn a_window_has_no_register_behind_its_end() {
        let mut memory = [0u64; 4];
        window(&mut memory).read32(0x20);
    }

    #[test]
    fn a_part_counts_from_its_own_start() {
        let bus = Array::new(0x100);
        let part = Part::new(&bus, 0x80, 0x40).unwrap();
        part.write32(4, 7);
        assert_eq!(bus.read32(0x84), 7);
        assert!(Part::new(&bus, 0x80, 0x81).is_none());
        assert!(Part::new(&bus, usize::MAX, 2).is_none());
    }

    #[test]
    fn waiting_ends_either_way() {
        let mut polls = 0;
        let third = || {
            polls += 1;
            polls == 3
        };
        assert_eq!(wait_until(third), Ok(()));
        assert_eq!(wait_until(|| false), Err(Timeout));
    }
}
