//! Virtio devices: split queues, the PCI transport, and the devices themselves.

pub mod block;
pub mod pci;
pub mod queue;

use crate::memory::GuestMemory;
use queue::{Chain, QueueError};

/// A kind of virtio device, without its transport.
pub trait Device {
    /// Its virtio device ID (VIRTIO 1.2, section 5).
    const DEVICE_ID: u16;
    /// Its PCI class code.
    const CLASS: u32;

    /// Returns its feature bits, without those of queues and transport.
    fn features(&self) -> u64;

    /// Returns how many queues it has.
    fn queues(&self) -> u16;

    /// Returns its device-specific configuration.
    fn config(&self) -> &[u8];

    /// Handles a request of `queue`, and returns how many bytes it wrote.
    ///
    /// # Errors
    ///
    /// If the chain is no request at all: the driver has to reset the device.
    fn handle(
        &mut self,
        memory: &impl GuestMemory,
        queue: u16,
        chain: &Chain,
    ) -> Result<u32, QueueError>;
}
