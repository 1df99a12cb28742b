//! Guest memory, as a device model reaches it.

use core::fmt;

/// An access to something that was not granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfBounds {
    /// Where the access began.
    pub address: u64,
    /// How many bytes it wanted.
    pub bytes: u64,
}

impl fmt::Display for OutOfBounds {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{} bytes at {:#x} are not granted",
            self.bytes, self.address
        )
    }
}

/// The memory of a target domain that its configuration grants.
///
/// The guest runs while a device model reads it, so whatever is read may be different when it is
/// read again: a caller reads once and judges its copy. Addresses are those that the guest sees.
pub trait GuestMemory {
    /// Checks that all of `bytes` bytes at `address` are granted, in one window.
    fn check(&self, address: u64, bytes: u64) -> Result<(), OutOfBounds>;

    /// Fills `buffer` with what is at `address`.
    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<(), OutOfBounds>;

    /// Writes `bytes` to `address`.
    fn write(&self, address: u64, bytes: &[u8]) -> Result<(), OutOfBounds>;

    /// Loads the 16 bits at `address`, which is even. Acquire: what the guest wrote before it stored
    /// this value is seen by the reads that follow.
    fn load_u16(&self, address: u64) -> Result<u16, OutOfBounds>;

    /// Stores 16 bits at `address`, which is even. Release: the guest that sees this value sees what
    /// was written before it.
    fn store_u16(&self, address: u64, value: u16) -> Result<(), OutOfBounds>;
}

/// Reads `N` bytes.
pub(crate) fn read_array<const N: usize>(
    memory: &impl GuestMemory,
    address: u64,
) -> Result<[u8; N], OutOfBounds> {
    let mut bytes = [0; N];
    memory.read(address, &mut bytes)?;
    Ok(bytes)
}
