//! GICv3: distributor, redistributors, CPU interface, and EL2's side of the virtual interface.
//!
//! ```text
//!   SPI ------> distributor --------+
//!   PPI, SGI -> redistributor ------+--> CPU interface (ICC_*) -> EL2: acknowledge
//!   LPI ------> ITS -> redistributor+                                    |
//!                                        virtual interface (ICH_*) <-----+ list registers
//!                                                 |
//!                                                 +--> the guest's ICC_* registers
//! ```
//!
//! All interrupts are Non-secure Group 1, with affinity routing. EL2 runs with EOImode 1: it drops
//! the priority of an interrupt when it has acknowledged it, and deactivates it itself or lets a
//! guest do so through a list register that names the physical interrupt.
//!
//! Arm Generic Interrupt Controller Architecture Specification, GIC architecture version 3 and 4
//! (IHI 0069); sections below are of that document.

pub mod cpu;
pub mod distributor;
pub mod lpi;
pub mod redistributor;
pub mod virt;

use crate::mmio::Timeout;
use core::fmt;

pub use distributor::{Distributor, Spi};
pub use redistributor::{Local, Redistributor};

/// The number of an interrupt (2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct IntId(u32);

/// What a range of interrupt numbers is for (2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Sent by software, from one pCPU to another.
    Sgi,
    /// Of one pCPU's own.
    Ppi,
    /// Shared.
    Spi,
    /// None at all: what acknowledging gives when nothing is pending.
    Special,
    /// Of one pCPU's own, extended range.
    ExtendedPpi,
    /// Shared, extended range.
    ExtendedSpi,
    /// A message, by way of the ITS.
    Lpi,
    /// A number that the architecture keeps for itself.
    Reserved,
}

impl IntId {
    /// The first LPI.
    pub const FIRST_LPI: Self = Self(8192);

    /// Makes an interrupt number.
    pub const fn new(number: u32) -> Self {
        Self(number)
    }

    /// Returns the number.
    pub const fn get(self) -> u32 {
        self.0
    }

    /// Returns what the number is for.
    pub const fn kind(self) -> Kind {
        match self.0 {
            0..=15 => Kind::Sgi,
            16..=31 => Kind::Ppi,
            32..=1019 => Kind::Spi,
            1020..=1023 => Kind::Special,
            1056..=1119 => Kind::ExtendedPpi,
            4096..=5119 => Kind::ExtendedSpi,
            8192.. => Kind::Lpi,
            _ => Kind::Reserved,
        }
    }
}

impl fmt::Display for IntId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "INTID {}", self.0)
    }
}

/// Where a pCPU is in the machine, as MPIDR_EL1 says.
///
/// Held as GICR_TYPER holds it: Aff3.Aff2.Aff1.Aff0, a byte each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Affinity(u32);

impl Affinity {
    /// Takes the affinity out of an MPIDR_EL1, or a device tree's `reg` of a cpu.
    pub const fn from_mpidr(mpidr: u64) -> Self {
        Self(((mpidr >> 8) & 0xff00_0000) as u32 | (mpidr & 0x00ff_ffff) as u32)
    }

    /// Returns it as MPIDR_EL1, GICD_IROUTER and PSCI have it.
    pub const fn mpidr(self) -> u64 {
        ((self.0 as u64 & 0xff00_0000) << 8) | (self.0 as u64 & 0x00ff_ffff)
    }

    /// Returns it as GICR_TYPER has it.
    pub const fn packed(self) -> u32 {
        self.0
    }

    /// Returns affinity level `n`, 0 to 3.
    const fn level(self, n: u32) -> u64 {
        (self.0 >> (8 * n)) as u64 & 0xff
    }
}

impl fmt::Display for Affinity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [aff3, aff2, aff1, aff0] = self.0.to_be_bytes();
        write!(f, "{aff3}.{aff2}.{aff1}.{aff0}")
    }
}

/// How a line says that there is an interrupt (GICD_ICFGR).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// Pending as long as the line is high.
    Level,
    /// Pending once for each rising edge.
    Edge,
}

/// The priority of an interrupt: a lower number goes first (4.8).
///
/// EL2 is not preempted by an interrupt, so this only chooses among those that are pending. All
/// are within what the 16 levels that every implementation has can tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(transparent)]
pub struct Priority(u8);

impl Priority {
    /// What pCPUs tell each other, and the scheduler's timer.
    pub const HIGH: Self = Self(0x80);
    /// Devices.
    pub const NORMAL: Self = Self(0xa0);
    /// The mask that lets all of these through.
    pub const MASK_NONE: Self = Self(0xff);

    /// Returns the number.
    pub const fn get(self) -> u8 {
        self.0
    }

    /// Four times the same, as a register of four priorities holds it.
    const fn times_four(self) -> u32 {
        self.0 as u32 * 0x0101_0101
    }
}

/// Why the interrupt controller cannot be used as asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// The registers are not those of a GICv3 or GICv4; this is what GICD_PIDR2 or GICR_PIDR2 holds.
    NotVersion3(u32),
    /// A register write never took effect.
    Timeout,
    /// No redistributor belongs to the pCPU.
    NoRedistributor(Affinity),
    /// The interrupt is not of a kind that the register block has, or not implemented.
    NoSuchInterrupt(IntId),
    /// The CPU interface cannot be used through system registers.
    NoSystemRegisters,
    /// There are no LPIs.
    NoLpis,
    /// Firmware has enabled LPIs and they cannot be turned off, so that their tables stay where
    /// they are.
    LpisStuck,
    /// There is no memory for the LPIs' tables.
    OutOfMemory,
}

impl From<Timeout> for Error {
    fn from(Timeout: Timeout) -> Self {
        Self::Timeout
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotVersion3(id) => write!(f, "not a GICv3 (PIDR2 {id:#x})"),
            Self::Timeout => f.write_str("the GIC does not take a register write"),
            Self::NoRedistributor(affinity) => write!(f, "no redistributor for pCPU {affinity}"),
            Self::NoSuchInterrupt(id) => write!(f, "the GIC has no {id} there"),
            Self::NoSystemRegisters => f.write_str("the GIC has no system register interface"),
            Self::NoLpis => f.write_str("the GIC has no LPIs"),
            Self::LpisStuck => f.write_str("LPIs were enabled by firmware and stay so"),
            Self::OutOfMemory => f.write_str("no memory for the tables of LPIs"),
        }
    }
}

/// Checks ArchRev of a peripheral ID register 2 (12.9, 12.11).
fn check_version(pidr2: u32) -> Result<(), Error> {
    match (pidr2 >> 4) & 0xf {
        3 | 4 => Ok(()),
        _ => Err(Error::NotVersion3(pidr2)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_has_its_kind() {
        let firsts = [
            (0, Kind::Sgi),
            (16, Kind::Ppi),
            (32, Kind::Spi),
            (1020, Kind::Special),
            (1024, Kind::Reserved),
            (1056, Kind::ExtendedPpi),
            (1120, Kind::Reserved),
            (4096, Kind::ExtendedSpi),
            (5120, Kind::Reserved),
            (8192, Kind::Lpi),
        ];
        for window in firsts.windows(2) {
            let (first, kind) = window[0];
            let next = window[1].0;
            assert_eq!(IntId::new(first).kind(), kind);
            assert_eq!(IntId::new(next - 1).kind(), kind);
        }
        assert_eq!(IntId::new(u32::MAX).kind(), Kind::Lpi);
    }

    #[test]
    fn an_affinity_leaves_out_what_is_not_affinity() {
        // MPIDR_EL1 has U, MT and a RES1 bit between Aff3 and Aff2.
        let affinity = Affinity::from_mpidr(0x0000_0004_c103_0201);
        assert_eq!(affinity.mpidr(), 0x0000_0004_0003_0201);
        assert_eq!(affinity.packed(), 0x0403_0201);
        assert_eq!(affinity.to_string(), "4.3.2.1");
    }
}
