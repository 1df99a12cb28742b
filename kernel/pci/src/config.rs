//! Config space of the machine's functions, and the registers in it that are used here.

use vpci::{Offset, PhysicalConfig, Sbdf, Size};

/// Config space of a whole segment: ECAM, or what else a machine has.
///
/// Accesses are naturally aligned. An absent function reads as all ones.
pub trait ConfigSpace {
    /// Reads `size` bytes at `offset` of `sbdf`.
    fn read(&self, sbdf: Sbdf, offset: Offset, size: Size) -> u32;
    /// Writes `size` bytes at `offset` of `sbdf`.
    fn write(&self, sbdf: Sbdf, offset: Offset, size: Size, value: u32);
}

/// One function's config space.
pub struct Function<'a, C: ?Sized> {
    config: &'a C,
    sbdf: Sbdf,
}

impl<C: ?Sized> Clone for Function<'_, C> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<C: ?Sized> Copy for Function<'_, C> {}

impl<'a, C: ConfigSpace + ?Sized> Function<'a, C> {
    /// Names the config space of `sbdf`.
    pub fn new(config: &'a C, sbdf: Sbdf) -> Self {
        Self { config, sbdf }
    }

    pub(crate) fn read8(&self, offset: u16) -> u8 {
        let [byte, ..] = self.read_bytes(offset, Size::One);
        byte
    }

    pub(crate) fn read16(&self, offset: u16) -> u16 {
        let [low, high, ..] = self.read_bytes(offset, Size::Two);
        u16::from_le_bytes([low, high])
    }

    pub(crate) fn read32(&self, offset: u16) -> u32 {
        u32::from_le_bytes(self.read_bytes(offset, Size::Four))
    }

    pub(crate) fn write8(&self, offset: u16, value: u8) {
        self.write(Offset::in_function(offset.into()), Size::One, value.into());
    }

    pub(crate) fn write16(&self, offset: u16, value: u16) {
        self.write(Offset::in_function(offset.into()), Size::Two, value.into());
    }

    pub(crate) fn write32(&self, offset: u16, value: u32) {
        self.write(Offset::in_function(offset.into()), Size::Four, value);
    }

    fn read_bytes(&self, offset: u16, size: Size) -> [u8; 4] {
        self.read(Offset::in_function(offset.into()), size)
            .to_le_bytes()
    }
}

impl<C: ConfigSpace + ?Sized> PhysicalConfig for Function<'_, C> {
    fn read(&self, offset: Offset, size: Size) -> u32 {
        self.config.read(self.sbdf, offset, size)
    }

    fn write(&self, offset: Offset, size: Size, value: u32) {
        self.config.write(self.sbdf, offset, size, value);
    }
}

/// Registers of the headers (PCI Express Base Specification, section 7.5.1).
pub(crate) mod header {
    pub(crate) const VENDOR_ID: u16 = 0x00;
    pub(crate) const DEVICE_ID: u16 = 0x02;
    pub(crate) const COMMAND: u16 = 0x04;
    pub(crate) const REVISION_AND_CLASS: u16 = 0x08;
    pub(crate) const HEADER_TYPE: u16 = 0x0e;
    pub(crate) const BAR0: u16 = 0x10;
    pub(crate) const ROM_TYPE_0: u16 = 0x30;
    /// Expansion ROM Base Address (section 7.5.1.2.4): the address, and the enable bit.
    pub(crate) const ROM_ADDRESS: u32 = !0x7ff;
    pub(crate) const ROM_ENABLE: u32 = 1;
    pub(crate) const INTERRUPT_PIN: u16 = 0x3d;

    /// Command: memory decode; on a bridge also forwarding of memory requests downstream.
    pub(crate) const COMMAND_MEMORY: u16 = 1 << 1;
    /// Command: bus mastering; on a bridge, forwarding of requests upstream.
    pub(crate) const COMMAND_MASTER: u16 = 1 << 2;
    /// Command: the interrupt pin is never asserted.
    pub(crate) const COMMAND_SILENT: u16 = 1 << 10;
    /// Header type: the device has several functions.
    pub(crate) const MULTI_FUNCTION: u8 = 1 << 7;
    /// Vendor ID of an absent function.
    pub(crate) const VENDOR_NONE: u16 = 0xffff;
    /// Vendor ID of a function that is not ready yet: Configuration Request Retry Status made visible.
    pub(crate) const VENDOR_RETRY: u16 = 0x0001;
    /// Class and subclass of a host bridge.
    pub(crate) const CLASS_HOST_BRIDGE: u32 = 0x0600;
}

/// Registers of the type 1 header (section 7.5.1.3).
pub(crate) mod bridge {
    /// Primary, secondary, subordinate bus, secondary latency timer.
    pub(crate) const PRIMARY_BUS: u16 = 0x18;
    pub(crate) const SECONDARY_BUS: u16 = 0x19;
    pub(crate) const SUBORDINATE_BUS: u16 = 0x1a;
    pub(crate) const IO_BASE: u16 = 0x1c;
    pub(crate) const IO_LIMIT: u16 = 0x1d;
    pub(crate) const MEMORY_BASE: u16 = 0x20;
    pub(crate) const MEMORY_LIMIT: u16 = 0x22;
    pub(crate) const PREFETCHABLE_BASE: u16 = 0x24;
    pub(crate) const PREFETCHABLE_LIMIT: u16 = 0x26;
    pub(crate) const PREFETCHABLE_BASE_UPPER: u16 = 0x28;
    pub(crate) const PREFETCHABLE_LIMIT_UPPER: u16 = 0x2c;
    pub(crate) const ROM_TYPE_1: u16 = 0x38;
    pub(crate) const CONTROL: u16 = 0x3e;

    /// Prefetchable base, bits 3:0: the window has 64 bits of address.
    pub(crate) const PREFETCHABLE_64: u16 = 1;
    /// Bridge control: the secondary bus is in reset.
    pub(crate) const CONTROL_RESET: u16 = 1 << 6;
}
