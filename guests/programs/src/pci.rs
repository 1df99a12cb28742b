//! PCI functions, as a guest without drivers needs them.

use runtime::mmio::Window;
use runtime::platform::HostBridge;

/// Memory space and bus master, in Command.
pub(crate) const MEMORY_AND_MASTER: u16 = 0b110;

const VENDOR: usize = 0x00;
const COMMAND: usize = 0x04;
const BAR0: usize = 0x10;

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
