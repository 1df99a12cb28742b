//! A guest's driver for LPIs and the ITS.

use vgic::Frame;

use super::{Machine, RAM};

pub(crate) const PROPERTIES: u64 = RAM + 0x1_0000;
pub(crate) const PENDINGS: u64 = RAM + 0x4_0000;
pub(crate) const QUEUE: u64 = RAM + 0x8_0000;
pub(crate) const DEVICES: u64 = RAM + 0xa_0000;
pub(crate) const COLLECTIONS: u64 = RAM + 0xc_0000;
pub(crate) const VALID: u64 = 1 << 63;
pub(crate) const QUEUE_BYTES: u64 = 0x1000;

/// A command of the queue.
pub(crate) type Command = [u64; 4];

pub(crate) fn movi(device: u64, event: u64, collection: u64) -> Command {
    [0x01 | device << 32, event, collection, 0]
}
pub(crate) fn int(device: u64, event: u64) -> Command {
    [0x03 | device << 32, event, 0, 0]
}
pub(crate) fn clear(device: u64, event: u64) -> Command {
    [0x04 | device << 32, event, 0, 0]
}
pub(crate) fn sync(vcpu: u64) -> Command {
    [0x05, 0, vcpu << 16, 0]
}
pub(crate) fn mapd(device: u64, bits: u64) -> Command {
    [0x08 | device << 32, bits - 1, VALID | (RAM + 0x10_0000), 0]
}
pub(crate) fn unmapd(device: u64) -> Command {
    [0x08 | device << 32, 0, 0, 0]
}
pub(crate) fn mapc(collection: u64, vcpu: u64) -> Command {
    [0x09, 0, VALID | vcpu << 16 | collection, 0]
}
pub(crate) fn unmapc(collection: u64) -> Command {
    [0x09, 0, collection, 0]
}
pub(crate) fn mapti(device: u64, event: u64, intid: u64, collection: u64) -> Command {
    [0x0a | device << 32, event | intid << 32, collection, 0]
}
pub(crate) fn mapi(device: u64, event: u64, collection: u64) -> Command {
    [0x0b | device << 32, event, collection, 0]
}
pub(crate) fn inv(device: u64, event: u64) -> Command {
    [0x0c | device << 32, event, 0, 0]
}
pub(crate) fn invall(collection: u64) -> Command {
    [0x0d, 0, collection, 0]
}
pub(crate) fn movall(from: u64, to: u64) -> Command {
    [0x0e, 0, from << 16, to << 16]
}
pub(crate) fn discard(device: u64, event: u64) -> Command {
    [0x0f | device << 32, event, 0, 0]
}

impl Machine {
    pub(crate) fn its(&mut self, offset: u64, value: u64) {
        self.write(Frame::Its, offset, 8, value);
    }

    pub(crate) fn its_read(&mut self, offset: u64) -> u64 {
        self.read(Frame::Its, offset, 8)
    }

    /// Turns LPIs on for a vCPU, as Linux does.
    pub(crate) fn enable_lpis(&mut self, vcpu: usize, pendings: u64) {
        let redistributor = Frame::Redistributor(vcpu);
        self.write(redistributor, 0x70, 8, PROPERTIES | 0x780 | 15);
        self.write(redistributor, 0x78, 8, pendings);
        self.gicr(vcpu, 0, 1);
    }

    pub(crate) fn pendings(vcpu: usize) -> u64 {
        PENDINGS + vcpu as u64 * 0x1_0000
    }

    /// Gives the ITS its tables and turns it on.
    pub(crate) fn enable_its(&mut self) {
        self.its(0x100, VALID | DEVICES);
        self.its(0x108, VALID | COLLECTIONS);
        self.its(0x80, VALID | QUEUE | (QUEUE_BYTES / 0x1000 - 1));
        self.write(Frame::Its, 0, 4, 1);
    }

    /// Brings everything up, with a collection for each vCPU.
    pub(crate) fn bring_up(&mut self) {
        self.enable_all();
        for vcpu in 0..self.cpus.len() {
            self.enable_lpis(vcpu, Self::pendings(vcpu) | 1 << 62);
        }
        self.enable_its();
        for vcpu in 0..self.cpus.len() as u64 {
            self.command(mapc(vcpu, vcpu));
        }
    }

    /// Puts a command into the queue, and returns whether it was carried out.
    pub(crate) fn command(&mut self, command: Command) -> bool {
        let failed = self.vgic.failed_commands();
        let at = self.its_read(0x88);
        let start = (QUEUE + at - RAM) as usize;
        for (index, word) in command.iter().enumerate() {
            let word = word.to_le_bytes();
            self.outside.memory[start + index * 8..][..8].copy_from_slice(&word);
        }
        let next = (at + 32) % QUEUE_BYTES;
        self.its(0x88, next);
        assert_eq!(self.its_read(0x90), next, "CREADR");
        self.vgic.failed_commands() == failed
    }

    /// Writes an LPI's configuration; it counts once the ITS is told.
    pub(crate) fn configure(&mut self, intid: u64, priority: u8, enabled: bool) {
        let at = (PROPERTIES - RAM + intid - 8192) as usize;
        self.outside.memory[at] = priority | u8::from(enabled);
    }

    pub(crate) fn msi(&mut self, device: u32, event: u32) -> bool {
        let taken = self.vgic.msi(device, event, &mut self.outside).is_ok();
        self.settle();
        taken
    }

    pub(crate) fn pending_bit(&self, vcpu: usize, intid: u64) -> bool {
        let at = (Self::pendings(vcpu) - RAM + intid / 8) as usize;
        self.outside.memory[at] >> (intid % 8) & 1 != 0
    }
}
