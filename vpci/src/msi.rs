//! MSI: the capability that a guest programs, and what the kernel makes of it.
//!
//! As with MSI-X, the guest's address and data never reach the device.
//!
//! PCI Express Base Specification, section 7.7.1 (capability) and 6.1.4 (behaviour).

use crate::msix::Message;
use crate::register::{Register, Table};
use crate::{BusAddress, tables};

// What the tables of the four forms come to, without their names.
static PLAIN_32: [Register; 3] = form(&tables::MSI_32);
static PLAIN_64: [Register; 4] = form(&tables::MSI_64);
static MASKED_32: [Register; 5] = form(&tables::MSI_32_MASKED);
static MASKED_64: [Register; 6] = form(&tables::MSI_64_MASKED);

/// Returns the registers of a form: what all begin with, and the rest.
const fn form<const N: usize>(rest: &Table) -> [Register; N] {
    let mut registers = rest.registers();
    if let Some(first) = registers.first_mut() {
        *first = tables::MSI.register(0);
    }
    registers
}

/// MSI Enable, in the dword of Message Control.
pub(crate) const ENABLE: u32 = 1 << 16;

/// What a guest has set MSI to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Msi {
    /// The message of vector 0. The lowest bits of the data are replaced by the vector's number.
    pub message: Message,
    /// How many vectors there are: 1, 2, 4, 8, 16 or 32.
    pub vectors: u8,
    /// Which of them are masked, one bit each.
    pub mask: u32,
}

impl Msi {
    /// As it is after a reset.
    pub const OFF: Self = Self {
        message: Message::Off,
        vectors: 1,
        mask: 0,
    };
}

/// Which of the four forms a capability has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Form {
    wide: bool,
    masked: bool,
    /// Base-2 logarithm of the vectors that the device can have.
    capable: u32,
}

impl Form {
    /// Decodes the dword of Message Control.
    pub(crate) fn decode(control: u32) -> Self {
        Self {
            wide: control & 1 << 23 != 0,
            masked: control & 1 << 24 != 0,
            // 6 and 7 are reserved.
            capable: (control >> 17 & 7).min(5),
        }
    }

    /// Returns the registers that such a capability has.
    pub(crate) const fn registers(self) -> &'static [Register] {
        match (self.wide, self.masked) {
            (false, false) => &PLAIN_32,
            (true, false) => &PLAIN_64,
            (false, true) => &MASKED_32,
            (true, true) => &MASKED_64,
        }
    }

    /// Returns the dword of the mask bits, if there are any, and which bits it has.
    pub(crate) const fn mask_bits(self) -> Option<(usize, u32)> {
        if !self.masked {
            return None;
        }
        let bits = u32::MAX >> (32 - (1_u32 << self.capable));
        Some((self.data() + 1, bits))
    }

    /// Returns the dword of Message Data.
    const fn data(self) -> usize {
        if self.wide { 3 } else { 2 }
    }

    /// Returns what the capability asks for, given a way to read its dwords.
    pub(crate) fn state(self, dword: impl Fn(usize) -> u32, doorbell: BusAddress) -> Msi {
        let control = dword(0);
        if control & ENABLE == 0 {
            return Msi::OFF;
        }
        let high = if self.wide { dword(2) } else { 0 };
        let address = u64::from(high) << 32 | u64::from(dword(1));
        let data = dword(self.data());
        let enabled = (control >> 20 & 7).min(self.capable);
        Msi {
            message: Message::to(address, data, doorbell),
            vectors: 1 << enabled,
            mask: self.mask_bits().map_or(0, |(mask, _)| dword(mask)),
        }
    }
}
