//! Redistributors: the interrupts of one pCPU, and its LPIs.
//!
//! One after the other in one or more regions, each with frames of 64 KiB:
//!
//! ```text
//!   +---------+----------+                  +---------+----------+---------+----------+
//!   | RD_base | SGI_base |   GICv4: twice   | RD_base | SGI_base |  VLPI   | reserved |
//!   +---------+----------+   as many        +---------+----------+---------+----------+
//!   GICR_TYPER: affinity, VLPIS, Last
//! ```

use super::lpi::{Pending, Properties};
use super::{Affinity, Error, IntId, Kind, Priority, Trigger, check_version};
use crate::address::Pa;
use crate::asm;
use crate::mmio::{Bus, Part, Reg32, Reg64, wait_until};
use tock_registers::{LocalRegisterCopy, register_bitfields};

register_bitfields! {u32,
    /// Redistributor control register (12.11).
    CTLR [
        /// LPIs are on.
        EnableLPIs OFFSET(0) NUMBITS(1) [],
        /// A write has not taken effect everywhere.
        RWP OFFSET(3) NUMBITS(1) []
    ],
    /// Redistributor wake register (12.11).
    WAKER [
        /// The pCPU is taken to be asleep.
        ProcessorSleep OFFSET(1) NUMBITS(1) [],
        /// The interface to the pCPU is quiet.
        ChildrenAsleep OFFSET(2) NUMBITS(1) []
    ]
}

register_bitfields! {u64,
    /// Redistributor type register (12.11).
    TYPER [
        /// There are physical LPIs.
        PLPIS OFFSET(0) NUMBITS(1) [],
        /// There are virtual LPIs, and two more frames for them.
        VLPIS OFFSET(1) NUMBITS(1) [],
        /// The last one of its region.
        Last OFFSET(4) NUMBITS(1) [],
        /// How an ITS without PTA names this redistributor.
        Processor_Number OFFSET(8) NUMBITS(16) [],
        /// Private interrupts: 31 is the last one; or 1087; or 1119.
        PPInum OFFSET(27) NUMBITS(5) [],
        /// Whose redistributor this is.
        Affinity_Value OFFSET(32) NUMBITS(32) []
    ]
}

const GICR_CTLR: Reg32<CTLR::Register> = Reg32::at(0x0000);
const GICR_TYPER: Reg64<TYPER::Register> = Reg64::at(0x0008);
const GICR_WAKER: Reg32<WAKER::Register> = Reg32::at(0x0014);
const GICR_PROPBASER: Reg64 = Reg64::at(0x0070);
const GICR_PENDBASER: Reg64 = Reg64::at(0x0078);
const GICR_PIDR2: Reg32 = Reg32::at(0xffe8);

// The second frame. The registers of the extended private interrupts follow at once on those of the
// first 32 (12.10), so that one array holds both.
const GICR_IGROUPR: Reg32 = Reg32::at(0x10080);
const GICR_ISENABLER: Reg32 = Reg32::at(0x10100);
const GICR_ICENABLER: Reg32 = Reg32::at(0x10180);
const GICR_ICPENDR: Reg32 = Reg32::at(0x10280);
const GICR_ISACTIVER: Reg32 = Reg32::at(0x10300);
const GICR_ICACTIVER: Reg32 = Reg32::at(0x10380);
const GICR_IPRIORITYR: usize = 0x10400;
const GICR_ICFGR: Reg32 = Reg32::at(0x10c00);

/// Size of a frame.
const FRAME: usize = 0x1_0000;

/// An interrupt of one pCPU's own: an SGI or a PPI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Local(IntId);

impl Local {
    /// Returns the private interrupt of this number, `None` if it is not a private one.
    pub const fn new(id: IntId) -> Option<Self> {
        match id.kind() {
            Kind::Sgi | Kind::Ppi | Kind::ExtendedPpi => Some(Self(id)),
            _ => None,
        }
    }

    /// Returns its number.
    pub const fn id(self) -> IntId {
        self.0
    }

    /// Returns its place in the arrays.
    const fn index(self) -> usize {
        match self.0.get() {
            id @ 1056.. => (id - 1056 + 32) as usize,
            id => id as usize,
        }
    }

    const fn bit(self) -> u32 {
        1 << (self.index() % 32)
    }
}

/// One pCPU's redistributor.
#[derive(Clone, Copy, Debug)]
pub struct Redistributor<B> {
    bus: Part<B>,
    address: Pa,
    typer: LocalRegisterCopy<u64, TYPER::Register>,
}

impl<B: Bus + Copy> Redistributor<B> {
    /// Finds the redistributor of the pCPU at `affinity` in the region at `start`.
    ///
    /// They are `stride` bytes apart where the device tree says so (`redistributor-stride`), else as
    /// GICR_TYPER says. `Ok(None)` if the pCPU's is not in this region.
    pub fn find(
        bus: B,
        start: Pa,
        stride: Option<usize>,
        affinity: Affinity,
    ) -> Result<Option<Self>, Error> {
        let mut base = 0;
        while let Some(frames) = Part::new(bus, base, 2 * FRAME) {
            check_version(GICR_PIDR2.get(&frames))?;
            let typer = GICR_TYPER.read(&frames);
            if typer.read(TYPER::Affinity_Value) == u64::from(affinity.packed()) {
                let address = Pa::new(start.get() + base as u64);
                return Ok(Some(Self {
                    bus: frames,
                    address,
                    typer,
                }));
            }
            if typer.is_set(TYPER::Last) {
                break;
            }
            let frames = if typer.is_set(TYPER::VLPIS) { 4 } else { 2 };
            base += stride.unwrap_or(frames * FRAME).max(2 * FRAME);
        }
        Ok(None)
    }

    /// Finds the redistributor of the pCPU at `affinity` in any of the regions, each with
    /// its address.
    pub fn find_in(
        regions: impl IntoIterator<Item = (B, Pa)>,
        stride: Option<usize>,
        affinity: Affinity,
    ) -> Result<Self, Error> {
        for (region, start) in regions {
            if let Some(found) = Self::find(region, start, stride, affinity)? {
                return Ok(found);
            }
        }
        Err(Error::NoRedistributor(affinity))
    }
}

impl<B: Bus> Redistributor<B> {
    /// Returns its address, as an ITS with PTA names it.
    pub const fn address(&self) -> Pa {
        self.address
    }

    /// Returns how an ITS without PTA names it.
    pub fn processor_number(&self) -> u16 {
        (self.typer.read(TYPER::Processor_Number) & 0xffff) as u16
    }

    /// Wakes the redistributor up, and puts all of the pCPU's interrupts into Group 1, inactive, not
    /// pending and of normal priority; the SGIs are enabled, at high priority, and the PPIs disabled.
    ///
    /// To be called on the pCPU itself, before its CPU interface is turned on.
    pub fn init(&mut self) -> Result<(), Error> {
        self.wake()?;
        for n in 0..self.words() {
            GICR_ICENABLER.nth(n).set(&self.bus, !0);
        }
        self.wait()?;
        for n in 0..self.words() {
            GICR_ICACTIVER.nth(n).set(&self.bus, !0);
            GICR_ICPENDR.nth(n).set(&self.bus, !0);
            GICR_IGROUPR.nth(n).set(&self.bus, !0);
        }
        for n in 0..8 * self.words() {
            let priority = if n < 4 {
                Priority::HIGH
            } else {
                Priority::NORMAL
            };
            let register = Reg32::<()>::at(GICR_IPRIORITYR).nth(n);
            register.set(&self.bus, priority.times_four());
        }
        GICR_ISENABLER.set(&self.bus, 0xffff);
        Ok(())
    }

    /// Wakes the redistributor up (12.11). Where only Secure software may, the register reads as
    /// zero: awake.
    fn wake(&self) -> Result<(), Error> {
        GICR_WAKER.modify(&self.bus, WAKER::ProcessorSleep::CLEAR);
        wait_until(|| !GICR_WAKER.read(&self.bus).is_set(WAKER::ChildrenAsleep))?;
        Ok(())
    }

    /// Returns how many words of 32 private interrupts there are.
    fn words(&self) -> usize {
        match self.typer.read(TYPER::PPInum) {
            1 => 2,
            2 => 3,
            _ => 1,
        }
    }

    /// Lets an interrupt through.
    pub fn enable(&self, local: Local) {
        GICR_ISENABLER
            .nth(local.index() / 32)
            .set(&self.bus, local.bit());
    }

    /// Makes an interrupt active, or not active: so a guest's timer is kept quiet while its vCPU has
    /// the interrupt, and again when the vCPU moves to another pCPU.
    pub fn set_active(&self, local: Local, active: bool) {
        let register = if active {
            GICR_ISACTIVER
        } else {
            GICR_ICACTIVER
        };
        register.nth(local.index() / 32).set(&self.bus, local.bit());
    }

    /// Says what the line of a PPI is like, and returns whether the redistributor lets that be
    /// chosen. The interrupt must be disabled (12.11).
    pub fn configure(&mut self, local: Local, trigger: Trigger) -> bool {
        let register = GICR_ICFGR.nth(local.index() / 16);
        let edge = 0b10 << (2 * (local.index() % 16));
        let old = register.get(&self.bus);
        let new = match trigger {
            Trigger::Level => old & !edge,
            Trigger::Edge => old | edge,
        };
        register.set(&self.bus, new);
        register.get(&self.bus) & edge == new & edge
    }

    /// Turns the pCPU's LPIs on, with the configuration that all share and a pending table of its
    /// own. The redistributor uses both tables from now on, for good.
    pub fn enable_lpis(&mut self, properties: &Properties, pending: Pending) -> Result<(), Error> {
        if !self.typer.is_set(TYPER::PLPIS) {
            return Err(Error::NoLpis);
        }
        self.disable_lpis()?;
        properties.program(|value| {
            GICR_PROPBASER.set(&self.bus, value);
            GICR_PROPBASER.get(&self.bus)
        });
        pending.program(|value| {
            GICR_PENDBASER.set(&self.bus, value);
            GICR_PENDBASER.get(&self.bus)
        });
        // The tables' addresses are there before LPIs are.
        asm::dsb_sy();
        GICR_CTLR.modify(&self.bus, CTLR::EnableLPIs::SET);
        asm::dsb_sy();
        Ok(())
    }

    /// Turns off LPIs that firmware left on. Not every implementation can (12.11).
    fn disable_lpis(&self) -> Result<(), Error> {
        if !GICR_CTLR.read(&self.bus).is_set(CTLR::EnableLPIs) {
            return Ok(());
        }
        GICR_CTLR.modify(&self.bus, CTLR::EnableLPIs::CLEAR);
        self.wait()?;
        if GICR_CTLR.read(&self.bus).is_set(CTLR::EnableLPIs) {
            return Err(Error::LpisStuck);
        }
        Ok(())
    }

    /// Waits until the last write to GICR_CTLR or GICR_ICENABLER has taken effect.
    fn wait(&self) -> Result<(), Error> {
        wait_until(|| !GICR_CTLR.read(&self.bus).is_set(CTLR::RWP))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dma::testing::Arena;
    use crate::mmio::testing::Array;

    const START: Pa = Pa::new(0x080a_0000);
    const PLPIS: u64 = 1;
    const VLPIS: u64 = 2;
    const LAST: u64 = 1 << 4;

    /// A region with redistributors of these types, `stride` apart.
    fn region(stride: usize, typers: &[u64]) -> Array {
        let bus = Array::new(stride * typers.len());
        for (n, typer) in typers.iter().enumerate() {
            bus.preset64(n * stride + 0x0008, *typer);
            bus.preset32(n * stride + 0xffe8, 0x3b);
        }
        bus
    }

    fn typer(affinity: u64, number: u64, flags: u64) -> u64 {
        affinity << 32 | number << 8 | flags
    }

    #[test]
    #[rustfmt::skip]
    fn a_redistributor_is_found_by_affinity() {
        let first = region(0x2_0000, &[
            typer(0x0000, 0, PLPIS), typer(0x0001, 1, PLPIS), typer(0x0100, 2, PLPIS | LAST),
            typer(0x0101, 9, PLPIS), // behind the last one: not there
        ]);
        let second = region(0x4_0000, &[
            typer(0x0101, 3, PLPIS | VLPIS), typer(0x0100_0000, 4, PLPIS | VLPIS), // no Last at all
        ]);
        let cases = [
            // MPIDR,        address,    processor number
            (0x8000_0000,    Some((0x080a_0000, 0))),
            (0x8000_0001,    Some((0x080c_0000, 1))),
            (0x0100,         Some((0x080e_0000, 2))),
            (0x0101,         Some((0x4000_0000, 3))),
            (0x1_0000_0000,  Some((0x4004_0000, 4))),
            (0x0002,         None),
        ];
        let regions = [(&first, START), (&second, Pa::new(0x4000_0000))];
        for (mpidr, place) in cases {
            let affinity = Affinity::from_mpidr(mpidr);
            let found = Redistributor::find_in(regions, None, affinity);
            let got = found.as_ref().ok().map(|r| (r.address().get(), r.processor_number()));
            assert_eq!(got, place, "{affinity}");
        }
        let absent = Affinity::from_mpidr(2);
        let error = Redistributor::find_in(regions, None, absent).err();
        assert_eq!(error, Some(Error::NoRedistributor(absent)));
    }

    #[test]
    fn a_stride_from_the_device_tree_counts_more() {
        let bus = region(0x8_0000, &[typer(0, 0, 0), typer(1, 1, LAST)]);
        let affinity = Affinity::from_mpidr(1);
        let found = Redistributor::find(&bus, START, Some(0x8_0000), affinity)
            .unwrap()
            .unwrap();
        assert_eq!(found.address(), Pa::new(0x0812_0000));
        // Without it there is no redistributor where one is looked for.
        let error = Redistributor::find(&bus, START, None, affinity).err();
        assert_eq!(error, Some(Error::NotVersion3(0)));
        // A stride of zero ends, too.
        assert!(Redistributor::find(&bus, START, Some(0), affinity).is_err());
    }

    #[test]
    fn init_wakes_and_disables_all_but_the_sgis() {
        let bus = region(0x2_0000, &[typer(0, 0, LAST | 1 << 27)]); // PPIs up to 1087
        bus.preset32(0x14, 0b010);
        let mut local = Redistributor::find(&bus, START, None, Affinity::from_mpidr(0))
            .unwrap()
            .unwrap();
        local.init().unwrap();
        assert_eq!(bus.read32(0x14), 0);
        assert_eq!(
            [0x10180, 0x10184, 0x10188].map(|r| bus.read32(r)),
            [!0, !0, 0]
        );
        assert_eq!(
            [0x10080, 0x10084, 0x10088].map(|r| bus.read32(r)),
            [!0, !0, 0]
        );
        assert_eq!([0x10100, 0x10104].map(|r| bus.read32(r)), [0xffff, 0]);
        assert_eq!(bus.read32(0x1040c), 0x8080_8080);
        assert_eq!(bus.read32(0x10410), 0xa0a0_a0a0);
        assert_eq!(bus.read32(0x1043c), 0xa0a0_a0a0);
        assert_eq!(bus.read32(0x10440), 0);
    }

    #[test]
    fn a_redistributor_that_sleeps_on_is_an_error() {
        let bus = region(0x2_0000, &[typer(0, 0, LAST)]);
        bus.preset32(0x14, 0b100);
        let mut local = Redistributor::find(&bus, START, None, Affinity::from_mpidr(0))
            .unwrap()
            .unwrap();
        assert_eq!(local.init(), Err(Error::Timeout));
    }

    #[test]
    #[rustfmt::skip]
    fn each_verb_writes_its_register() {
        let bus = region(0x2_0000, &[typer(0, 0, LAST | 2 << 27)]); // PPIs up to 1119
        let mut redistributor = Redistributor::find(&bus, START, None, Affinity::from_mpidr(0)).unwrap().unwrap();
        let last = || bus.writes.borrow().last().copied().unwrap();
        for (id, word, bit, config) in [
            (27,   0, 1 << 27, (0x10c04, 1 << 23)),
            (1056, 4, 1 << 0,  (0x10c08, 1 << 1)),
            (1119, 8, 1 << 31, (0x10c14, 1 << 31)),
        ] {
            let local = Local::new(IntId::new(id)).unwrap();
            redistributor.enable(local);
            assert_eq!(last(), (0x10100 + word, bit));
            redistributor.set_active(local, true);
            assert_eq!(last(), (0x10300 + word, bit));
            redistributor.set_active(local, false);
            assert_eq!(last(), (0x10380 + word, bit));
            assert!(redistributor.configure(local, Trigger::Edge));
            assert_eq!(last(), config);
        }
        for id in [32, 1055, 1120, 8192] {
            assert!(Local::new(IntId::new(id)).is_none(), "{id}");
        }
    }

    #[test]
    fn lpis_start_with_both_tables_in_place() {
        let bus = region(0x2_0000, &[typer(0, 0, LAST | PLPIS)]);
        let mut redistributor = Redistributor::find(&bus, START, None, Affinity::from_mpidr(0))
            .unwrap()
            .unwrap();
        let mut arena = Arena::new(0x10_0000);
        let properties = Properties::new(16, &mut arena).unwrap();
        let pending = Pending::new(16, &mut arena).unwrap();
        redistributor.enable_lpis(&properties, pending).unwrap();
        // 16 bits, inner shareable, write-back allocate: 0x7 << 7 | 1 << 10 | 15.
        assert_eq!(bus.read64(0x70), 0x8000_0000 | 0x78f);
        assert_eq!(bus.read64(0x78), 1 << 62 | 0x8001_0000 | 0x780);
        assert_eq!(bus.writes.borrow().last(), Some(&(0, 1)));
    }

    #[test]
    fn lpis_that_firmware_left_on_are_turned_off_first() {
        let bus = region(0x2_0000, &[typer(0, 0, LAST | PLPIS)]);
        bus.preset32(0, 1);
        let mut redistributor = Redistributor::find(&bus, START, None, Affinity::from_mpidr(0))
            .unwrap()
            .unwrap();
        let mut arena = Arena::new(0x10_0000);
        let properties = Properties::new(16, &mut arena).unwrap();
        let pending = Pending::new(16, &mut arena).unwrap();
        redistributor.enable_lpis(&properties, pending).unwrap();
        assert_eq!(bus.writes.borrow()[0], (0, 0));
        let none = region(0x2_0000, &[typer(0, 0, LAST)]);
        let mut none = Redistributor::find(&none, START, None, Affinity::from_mpidr(0))
            .unwrap()
            .unwrap();
        let pending = Pending::new(16, &mut arena).unwrap();
        assert_eq!(none.enable_lpis(&properties, pending), Err(Error::NoLpis));
    }
}
