//! PCI functions, as a guest without drivers needs them.

use alloc::format;

use runtime::harness::Failure;
use runtime::mmio::{Odd, Window};
use runtime::platform::{self, HostBridge};

/// Memory space and bus master, in Command.
pub(crate) const MEMORY_AND_MASTER: u16 = 0b110;

const VENDOR: usize = 0x00;
const COMMAND: usize = 0x04;
const BAR0: usize = 0x10;

/// Returns the host bridge; a test that needs it fails without.
pub(crate) fn bridge() -> Result<HostBridge, Failure> {
    let bridge = platform::get().host_bridge;
    bridge.ok_or_else(|| Failure::Failed("there is no host bridge".into()))
}

/// Returns the first function of bus 0 with that ID; a test that needs it fails without.
pub(crate) fn find(id: u32) -> Result<Function, Failure> {
    let found = Function::all(&bridge()?).find(|function| function.id() == id);
    found.ok_or_else(|| Failure::Failed(format!("there is no {id:08x}")))
}

/// Returns where a capability is; a test that needs it fails without.
pub(crate) fn capability(function: &Function, id: u8) -> Result<usize, Failure> {
    let found = function.capability(id);
    found.ok_or_else(|| Failure::Failed(format!("there is no capability {id:#x}")))
}

/// A function's config space.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Function {
    pub(crate) requester: u16,
    pub(crate) config: Window,
}

impl Function {
    /// Returns the function of that requester ID, which may be absent.
    pub(crate) fn new(bridge: &HostBridge, requester: u16) -> Self {
        Self {
            requester,
            config: bridge.function(requester),
        }
    }

    /// Returns vendor ID (low half) and device ID; all ones if there is no function.
    pub(crate) fn id(&self) -> u32 {
        self.config.read32(VENDOR)
    }

    /// Returns the functions of bus 0 that exist.
    pub(crate) fn all(bridge: &HostBridge) -> impl Iterator<Item = Self> {
        let functions = (0..256).map(|requester| Self::new(bridge, requester));
        functions.filter(|function| function.id() != u32::MAX)
    }

    /// Puts the 32-bit or 64-bit memory BAR `index` at `address`, and returns its size.
    pub(crate) fn place(&self, index: usize, address: usize) -> usize {
        let offset = BAR0 + index * 4;
        self.config.write16(COMMAND, 0);
        self.config.write32(offset, u32::MAX);
        let mask = self.config.read32(offset);
        let [low, high] = halves(address as u64);
        self.config.write32(offset, low);
        if mask & 0b100 != 0 {
            self.config.write32(offset + 4, high);
        }
        (!(mask & !0xf)).wrapping_add(1) as usize
    }

    /// Lets the function decode its BARs and reach memory.
    pub(crate) fn enable(&self) {
        self.config.write16(COMMAND, MEMORY_AND_MASTER);
    }
}

/// MSI-X (PCI Express Base Specification, section 7.7.2): capability ID, Enable in Message Control.
const MSIX: u8 = 0x11;
const MSIX_ENABLE: u16 = 1 << 15;

impl Function {
    /// Returns where a capability is.
    pub(crate) fn capability(&self, id: u8) -> Option<usize> {
        let mut offset = self.config.read8(0x34) & 0xfc;
        for _ in 0..48 {
            if offset < 0x40 {
                return None;
            }
            let [found, next] = self.config.read16(offset.into()).to_le_bytes();
            if found == id {
                return Some(offset.into());
            }
            offset = next & 0xfc;
        }
        None
    }

    /// Makes an MSI-X vector write `data` to `address`. `table` is the window on the table.
    pub(crate) fn set_vector(&self, table: &Window, vector: usize, address: u64, data: u32) {
        let entry = table.part(16 * vector, 16);
        let [low, high] = halves(address);
        for (offset, value) in [(12, 1), (0, low), (4, high), (8, data), (12, 0)] {
            entry.write32(offset, value);
        }
    }

    /// Turns MSI-X on; `None` if the function has none.
    pub(crate) fn enable_msix(&self) -> Option<()> {
        let offset = self.capability(MSIX)?;
        self.config.write16(offset + 2, MSIX_ENABLE);
        Some(())
    }
}

/// Returns whether loads of a page read memory, instead of trapping: an exclusive one then is no external
/// abort (on QEMU; for Device memory the architecture leaves it open), and it is more than a request to a
/// device can express.
pub(crate) fn is_mapped(page: &Window) -> bool {
    page.probe_odd(0, Odd::Exclusive).is_ok()
}

/// Returns the low and the high half.
#[expect(
    clippy::cast_possible_truncation,
    reason = "the halves are what is wanted"
)]
pub(crate) const fn halves(value: u64) -> [u32; 2] {
    [value as u32, (value >> 32) as u32]
}

/// Returns the part of a bridge's 32-bit window that starts at its first multiple of `size`.
pub(crate) fn first_fit(bridge: &HostBridge, size: usize) -> Window {
    let window = bridge.memory32;
    let offset = window.base().next_multiple_of(size) - window.base();
    window.part(offset, size)
}
