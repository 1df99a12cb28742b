//! Where things are in a domain's IPA space: QEMU's `virt` machine, which unmodified arm64 payloads
//! know, with a 64-bit PCI window that 39 bits reach.

use core::ops::Range;

/// Firmware, if the domain has one; what lies behind it reads ones.
pub const FLASH: Range<u64> = 0..0x0800_0000;
/// The distributor.
pub const GICD: Range<u64> = 0x0800_0000..0x0801_0000;
/// The ITS, with the translation frame.
pub const GITS: Range<u64> = 0x0808_0000..0x080a_0000;
/// Where a device writes its MSIs to (GITS_TRANSLATER).
pub const DOORBELL: u64 = 0x0809_0040;
/// The first redistributor.
pub const GICR: u64 = 0x080a_0000;
/// Size of a redistributor.
pub const GICR_STRIDE: u64 = 0x2_0000;
/// The most redistributors that there is room for.
pub const MAX_VCPUS: usize = ((UART.start - GICR) / GICR_STRIDE) as usize;
/// The PL011.
pub const UART: Range<u64> = 0x0900_0000..0x0900_1000;
/// The PL031.
pub const RTC: Range<u64> = 0x0901_0000..0x0901_1000;
/// The host bridge's window for 32-bit BARs.
pub const PCI_32: Range<u64> = 0x1000_0000..0x3eff_0000;
/// RAM.
pub const RAM: u64 = 0x4000_0000;
/// Config space of 256 buses.
pub const ECAM: Range<u64> = 0x40_1000_0000..0x40_2000_0000;
/// The host bridge's window for 64-bit BARs.
pub const PCI_64: Range<u64> = 0x50_0000_0000..0x70_0000_0000;
/// The rings of a device model's servers.
pub const RINGS: u64 = 0x70_0000_0000;
/// From one ring to the next.
pub const RING_STRIDE: u64 = 0x10_0000;
/// Modules that the domain was granted.
pub const MODULES: u64 = 0x71_0000_0000;
/// A device model's windows on the memory of its targets.
pub const WINDOWS: u64 = 0x72_0000_0000;
/// The page of the physical ITS that the domain's devices write their MSIs to, in the SMMU's tables
/// only. Below 4 GiB, for devices whose MSIs have 32-bit addresses.
pub const PHYSICAL_DOORBELL: u64 = 0x0f00_0000;

/// The SPI of the PL011, counted from 0.
pub const UART_SPI: u32 = 1;
/// The SPI of the PL031.
pub const RTC_SPI: u32 = 2;
/// The first of the SPIs of INTA to INTD, and how many these are.
pub const INTX_SPI: u32 = 3;
/// See [`INTX_SPI`].
pub const INTX_SPIS: u32 = 4;
/// SPIs of a domain's distributor.
pub const SPIS: usize = 96;

/// The PPIs of the timers, counted from 0: secure, non-secure, virtual, hypervisor.
pub const TIMER_PPIS: [u32; 4] = [13, 14, 11, 10];

/// Returns the affinity of vCPU `index`, as MPIDR_EL1 has it: 16 at Aff0, as an SGI can reach.
pub const fn affinity(index: usize) -> u64 {
    let index = index as u64;
    (index % 16) | ((index / 16 % 256) << 8) | ((index / 4096) << 16)
}
