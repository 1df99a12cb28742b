//! The distributor: shared interrupts.
//!
//! Each register array has a bit, two bits, a byte or a word for each interrupt; shared interrupts
//! beyond 1019 have arrays of their own, counted from zero again.
//!
//! ```text
//!   GICD_ISENABLER<n>   32 interrupts, a bit each     GICD_IPRIORITYR<n>   4 interrupts, a byte each
//!   GICD_ICFGR<n>       16 interrupts, two bits each  GICD_IROUTER<n>      one interrupt, 64 bits
//! ```
//!
//! Most arrays come as a pair, one to set bits and one to clear them, where zeros change nothing: so
//! those need no lock.

use super::{Affinity, Error, IntId, Kind, Priority, Trigger, check_version};
use crate::mmio::{Bus, Reg32, Reg64, wait_until};
use tock_registers::{LocalRegisterCopy, register_bitfields};

register_bitfields! {u32,
    /// Distributor control register (12.9), with one Security state or as Non-secure sees it.
    CTLR [
        /// Group 1 is on (`EnableGrp1A` where there are two Security states).
        EnableGrp1 OFFSET(1) NUMBITS(1) [],
        /// Affinity routing is on.
        ARE OFFSET(4) NUMBITS(1) [],
        /// A write has not taken effect everywhere.
        RWP OFFSET(31) NUMBITS(1) []
    ],
    /// Interrupt controller type register (12.9).
    TYPER [
        /// Shared interrupts up to 32 * (n + 1) - 1, or 1019.
        ITLinesNumber OFFSET(0) NUMBITS(5) [],
        /// There are extended SPIs.
        ESPI OFFSET(8) NUMBITS(1) [],
        /// There are LPIs.
        LPIS OFFSET(17) NUMBITS(1) [],
        /// Bits of an interrupt number, less one.
        IDbits OFFSET(19) NUMBITS(5) [],
        /// Extended SPIs up to 4096 + 32 * (n + 1) - 1.
        ESPI_range OFFSET(27) NUMBITS(5) []
    ]
}

const GICD_CTLR: Reg32<CTLR::Register> = Reg32::at(0x0000);
const GICD_TYPER: Reg32<TYPER::Register> = Reg32::at(0x0004);
const GICD_PIDR2: Reg32 = Reg32::at(0xffe8);

/// The register arrays of a range of interrupts.
struct Bank {
    first: u32,
    igroupr: Reg32,
    isenabler: Reg32,
    icenabler: Reg32,
    ispendr: Reg32,
    icpendr: Reg32,
    icactiver: Reg32,
    ipriorityr: usize,
    icfgr: Reg32,
    irouter: Reg64,
}

/// Interrupts 0 to 1019. The first 32 are the redistributors' (12.8).
const SHARED: Bank = Bank {
    first: 0,
    igroupr: Reg32::at(0x0080),
    isenabler: Reg32::at(0x0100),
    icenabler: Reg32::at(0x0180),
    ispendr: Reg32::at(0x0200),
    icpendr: Reg32::at(0x0280),
    icactiver: Reg32::at(0x0380),
    ipriorityr: 0x0400,
    icfgr: Reg32::at(0x0c00),
    irouter: Reg64::at(0x6000),
};

/// Interrupts 4096 to 5119 (12.8, the registers with an E at the end).
const EXTENDED: Bank = Bank {
    first: 4096,
    igroupr: Reg32::at(0x1000),
    isenabler: Reg32::at(0x1200),
    icenabler: Reg32::at(0x1400),
    ispendr: Reg32::at(0x1600),
    icpendr: Reg32::at(0x1800),
    icactiver: Reg32::at(0x1c00),
    ipriorityr: 0x2000,
    icfgr: Reg32::at(0x3000),
    irouter: Reg64::at(0x8000),
};

/// A shared interrupt that the distributor has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spi(IntId);

impl Spi {
    /// Returns its number.
    pub const fn id(self) -> IntId {
        self.0
    }

    const fn bank(self) -> &'static Bank {
        match self.0.kind() {
            Kind::ExtendedSpi => &EXTENDED,
            _ => &SHARED,
        }
    }

    /// Returns the interrupt's place in its bank's arrays.
    const fn index(self) -> usize {
        (self.0.get() - self.bank().first) as usize
    }

    const fn bit(self) -> u32 {
        1 << (self.index() % 32)
    }
}

/// The distributor.
#[derive(Debug)]
pub struct Distributor<B> {
    bus: B,
    typer: LocalRegisterCopy<u32, TYPER::Register>,
}

impl<B: Bus> Distributor<B> {
    /// Takes the distributor over, after a look at whether it is one of a GICv3 or GICv4.
    pub fn new(bus: B) -> Result<Self, Error> {
        check_version(GICD_PIDR2.get(&bus))?;
        let typer = GICD_TYPER.read(&bus);
        Ok(Self { bus, typer })
    }

    /// Puts all shared interrupts into Group 1, disabled, inactive, not pending, level, of normal
    /// priority and routed to `boot`, and turns the distributor on with affinity routing.
    pub fn init(&mut self, boot: Affinity) -> Result<(), Error> {
        // Affinity routing must not be turned on while a group is enabled, nor off ever (12.9.4).
        let routing = GICD_CTLR.read(&self.bus).read(CTLR::ARE);
        GICD_CTLR.write(&self.bus, CTLR::ARE.val(routing));
        self.wait()?;
        let (shared, extended) = self.limits();
        // What an interrupt is like must not change while it is enabled (12.9, GICD_ICFGR).
        self.disable_bank(&SHARED, 32, shared);
        self.disable_bank(&EXTENDED, 0, extended);
        self.wait()?;
        self.reset_bank(&SHARED, 32, shared);
        self.reset_bank(&EXTENDED, 0, extended);
        GICD_CTLR.write(&self.bus, CTLR::ARE::SET);
        self.wait()?;
        self.route_bank(&SHARED, 32, shared, boot);
        self.route_bank(&EXTENDED, 0, extended, boot);
        GICD_CTLR.write(&self.bus, CTLR::ARE::SET + CTLR::EnableGrp1::SET);
        self.wait()
    }

    fn disable_bank(&self, bank: &Bank, from: usize, to: usize) {
        for n in from / 32..to / 32 {
            bank.icenabler.nth(n).set(&self.bus, !0);
        }
    }

    fn reset_bank(&self, bank: &Bank, from: usize, to: usize) {
        for n in from / 32..to / 32 {
            bank.icpendr.nth(n).set(&self.bus, !0);
            bank.icactiver.nth(n).set(&self.bus, !0);
            bank.igroupr.nth(n).set(&self.bus, !0);
        }
        for n in from / 16..to / 16 {
            bank.icfgr.nth(n).set(&self.bus, 0);
        }
        for n in from / 4..to / 4 {
            let priorities = Reg32::<()>::at(bank.ipriorityr).nth(n);
            priorities.set(&self.bus, Priority::NORMAL.times_four());
        }
    }

    fn route_bank(&self, bank: &Bank, from: usize, to: usize, target: Affinity) {
        for n in from..to {
            // There is no router for the four special numbers.
            if !(bank.first == 0 && n >= 1020) {
                bank.irouter.nth(n).set(&self.bus, target.mpidr());
            }
        }
    }

    /// Returns behind which number the shared interrupts end, and at which place the extended ones.
    fn limits(&self) -> (usize, usize) {
        let shared = 32 * (self.typer.read(TYPER::ITLinesNumber) as usize + 1);
        let extended = if self.typer.is_set(TYPER::ESPI) {
            32 * (self.typer.read(TYPER::ESPI_range) as usize + 1)
        } else {
            0
        };
        (shared, extended)
    }

    /// Returns the shared interrupt of this number, if the distributor has it.
    pub fn spi(&self, id: IntId) -> Result<Spi, Error> {
        let spi = Spi(id);
        let (shared, extended) = self.limits();
        let there = match id.kind() {
            Kind::Spi => spi.index() < shared,
            Kind::ExtendedSpi => spi.index() < extended,
            _ => false,
        };
        there.then_some(spi).ok_or(Error::NoSuchInterrupt(id))
    }

    /// Returns how many bits an interrupt number has, if there are LPIs.
    pub fn lpi_id_bits(&self) -> Option<u32> {
        let bits = self.typer.read(TYPER::IDbits) + 1;
        (self.typer.is_set(TYPER::LPIS) && bits >= 14).then_some(bits)
    }

    /// Lets an interrupt through.
    pub fn enable(&self, spi: Spi) {
        spi.bank()
            .isenabler
            .nth(spi.index() / 32)
            .set(&self.bus, spi.bit());
    }

    /// Stops an interrupt. When this returns it is not forwarded any more, though it may have been
    /// just before.
    pub fn disable(&self, spi: Spi) -> Result<(), Error> {
        spi.bank()
            .icenabler
            .nth(spi.index() / 32)
            .set(&self.bus, spi.bit());
        self.wait()
    }

    /// Returns whether an interrupt is pending.
    pub fn is_pending(&self, spi: Spi) -> bool {
        self.test(&spi.bank().ispendr, spi)
    }

    /// Says what the line of an interrupt is like, and returns whether the distributor lets that be
    /// chosen. The interrupt must be disabled (12.9).
    ///
    /// The interrupts of 16 share a register, hence `&mut`.
    pub fn configure(&mut self, spi: Spi, trigger: Trigger) -> bool {
        let register = spi.bank().icfgr.nth(spi.index() / 16);
        let edge = 0b10 << (2 * (spi.index() % 16));
        let old = register.get(&self.bus);
        let new = match trigger {
            Trigger::Level => old & !edge,
            Trigger::Edge => old | edge,
        };
        register.set(&self.bus, new);
        register.get(&self.bus) & edge == new & edge
    }

    fn test(&self, register: &Reg32, spi: Spi) -> bool {
        register.nth(spi.index() / 32).get(&self.bus) & spi.bit() != 0
    }

    /// Waits until the last write to GICD_CTLR or GICD_ICENABLER has taken effect.
    fn wait(&self) -> Result<(), Error> {
        wait_until(|| !GICD_CTLR.read(&self.bus).is_set(CTLR::RWP))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mmio::testing::Array;

    /// A distributor with 288 interrupts as QEMU has it, and 64 extended ones.
    fn array() -> Array {
        let bus = Array::new(0x10000);
        bus.preset32(0x0004, 0x037a_0008 | 1 << 8 | 1 << 27);
        bus.preset32(0xffe8, 0x3b);
        bus
    }

    #[test]
    fn another_version_is_refused() {
        let bus = array();
        bus.preset32(0xffe8, 0x2b);
        assert_eq!(Distributor::new(&bus).err(), Some(Error::NotVersion3(0x2b)));
    }

    #[test]
    fn init_reaches_every_shared_interrupt_and_no_other() {
        let bus = array();
        let boot = Affinity::from_mpidr(0x8000_0100);
        Distributor::new(&bus).unwrap().init(boot).unwrap();
        // The state that each array is left in: first and last word, and the words around.
        for (register, untouched, value) in [
            (0x0180, 0x0180 + 4 * 9, !0u32), // disabled, 32..288
            (0x0280, 0x0280 + 4 * 9, !0),
            (0x0380, 0x0380 + 4 * 9, !0),
            (0x0080, 0x0080 + 4 * 9, !0),
            (0x0400 + 28, 0x0400 + 288, 0xa0a0_a0a0),
            (0x1400 - 4, 0x1400 + 8, !0), // extended, 4096..4160
            (0x2000 - 4, 0x2000 + 64, 0xa0a0_a0a0),
        ] {
            assert_eq!(bus.read32(register), 0, "before {register:#x}");
            assert_eq!(bus.read32(register + 4), value, "{register:#x}");
            assert_eq!(bus.read32(untouched - 4), value, "{untouched:#x}");
            assert_eq!(bus.read32(untouched), 0, "behind {untouched:#x}");
        }
        for (register, value) in [
            (0x6000 + 8 * 31, 0),
            (0x6000 + 8 * 32, 0x100),
            (0x6000 + 8 * 287, 0x100),
            (0x6000 + 8 * 288, 0),
            (0x8000 + 8 * 63, 0x100),
            (0x8000 + 8 * 64, 0),
        ] {
            assert_eq!(bus.read64(register), value, "{register:#x}");
        }
        assert_eq!(bus.read32(0), 0x12);
        assert_eq!(bus.writes.borrow()[0], (0, 0));
    }

    #[test]
    fn init_never_turns_affinity_routing_off_nor_changes_what_is_enabled() {
        let bus = array();
        bus.preset32(0, 0x53); // as firmware left it: both groups, ARE, DS
        let boot = Affinity::from_mpidr(0);
        Distributor::new(&bus).unwrap().init(boot).unwrap();
        let writes = bus.writes.borrow();
        let control = writes.iter().filter(|(register, _)| *register == 0);
        let control: Vec<u64> = control.map(|(_, value)| *value).collect();
        assert_eq!(control, [0x10, 0x10, 0x12]);
        let place = |of: fn(&usize) -> bool| writes.iter().position(|(register, _)| of(register));
        let last = |of: fn(&usize) -> bool| writes.iter().rposition(|(register, _)| of(register));
        let disabled = last(|at| (0x180..0x200).contains(at) || (0x1400..0x1600).contains(at));
        let changed = place(|at| {
            (0x80..0x100).contains(at) || (0x400..0x800).contains(at) || (0xc00..0xd00).contains(at)
        });
        assert!(disabled.unwrap() < changed.unwrap());
    }

    #[test]
    fn a_write_that_never_takes_effect_is_an_error() {
        struct Stuck(Array);
        impl Bus for Stuck {
            fn len(&self) -> usize {
                self.0.len()
            }
            fn read8(&self, offset: usize) -> u8 {
                self.0.read8(offset)
            }
            fn read16(&self, offset: usize) -> u16 {
                self.0.read16(offset)
            }
            fn read32(&self, offset: usize) -> u32 {
                self.0.read32(offset) | if offset == 0 { 1 << 31 } else { 0 }
            }
            fn read64(&self, offset: usize) -> u64 {
                self.0.read64(offset)
            }
            fn write8(&self, offset: usize, value: u8) {
                self.0.write8(offset, value);
            }
            fn write16(&self, offset: usize, value: u16) {
                self.0.write16(offset, value);
            }
            fn write32(&self, offset: usize, value: u32) {
                self.0.write32(offset, value);
            }
            fn write64(&self, offset: usize, value: u64) {
                self.0.write64(offset, value);
            }
        }
        let mut distributor = Distributor::new(Stuck(array())).unwrap();
        assert_eq!(
            distributor.init(Affinity::from_mpidr(0)),
            Err(Error::Timeout)
        );
    }

    #[test]
    #[rustfmt::skip]
    fn an_interrupt_is_found_if_it_exists() {
        let bus = array();
        let distributor = Distributor::new(&bus).unwrap();
        let cases = [
            (0, false), (31, false), (32, true), (287, true), (288, false),
            (1020, false), (4096, true), (4159, true), (4160, false), (8192, false),
        ];
        for (id, there) in cases {
            assert_eq!(distributor.spi(IntId::new(id)).is_ok(), there, "{id}");
        }
        assert_eq!(distributor.lpi_id_bits(), Some(16));
    }

    #[test]
    #[rustfmt::skip]
    fn each_verb_writes_its_register() {
        let bus = array();
        let mut distributor = Distributor::new(&bus).unwrap();
        let uart = distributor.spi(IntId::new(33)).unwrap();
        let extended = distributor.spi(IntId::new(4096 + 33)).unwrap();
        let last = || bus.writes.borrow().last().copied().unwrap();
        for (spi, enable, disable, pending, config) in [
            (uart,     0x0104, 0x0184, 0x0204, 0x0c08),
            (extended, 0x1204, 0x1404, 0x1604, 0x3008),
        ] {
            distributor.enable(spi);
            assert_eq!(last(), (enable, 2));
            distributor.disable(spi).unwrap();
            assert_eq!(last(), (disable, 2));
            assert!(!distributor.is_pending(spi));
            bus.preset32(pending, 2);
            assert!(distributor.is_pending(spi));
            assert!(distributor.configure(spi, Trigger::Edge));
            assert_eq!(last(), (config, 0b1000));
            assert!(distributor.configure(spi, Trigger::Level));
            assert_eq!(last(), (config, 0));
        }
    }
}
