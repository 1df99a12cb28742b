//! virtio-blk: a disk in memory.
//!
//! ```text
//!  read by the device                      written by the device
//!  +------+----------+--------+- - - - -+  +- - - - -+--------+
//!  | type | reserved | sector |  data   |  |  data   | status |
//!  +------+----------+--------+- - - - -+  +- - - - -+--------+
//!  4 bytes   4 bytes   8 bytes   (out)        (in)     1 byte
//! ```
//!
//! VIRTIO 1.2, section 5.2.

use super::Device;
use super::queue::{Chain, MAX_SIZE, QueueError, Segments};
use crate::memory::GuestMemory;

/// A sector, whatever the block size (5.2.4).
pub const SECTOR: u64 = 512;

/// Bytes of device configuration.
const CONFIG_SIZE: usize = 0x24;

/// Feature bits (5.2.3).
const SEG_MAX: u64 = 1 << 2;
const READ_ONLY: u64 = 1 << 5;
const BLK_SIZE: u64 = 1 << 6;
const FLUSH: u64 = 1 << 9;
const MULTI_QUEUE: u64 = 1 << 12;

/// Request types (5.2.6).
const IN: u32 = 0;
const OUT: u32 = 1;
const SYNC: u32 = 4;
const GET_ID: u32 = 8;

/// What the status byte says (5.2.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// VIRTIO_BLK_S_OK.
    Ok = 0,
    /// VIRTIO_BLK_S_IOERR.
    IoError = 1,
    /// VIRTIO_BLK_S_UNSUPP.
    Unsupported = 2,
}

/// Whether a driver may write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// It may.
    ReadWrite,
    /// It may not, and VIRTIO_BLK_F_RO says so.
    ReadOnly,
}

/// A disk whose content is in this domain's memory.
#[derive(Debug)]
pub struct Block<'d> {
    disk: &'d mut [u8],
    access: Access,
    serial: [u8; 20],
    queues: u16,
    config: [u8; CONFIG_SIZE],
}

impl<'d> Block<'d> {
    /// Makes a disk of `disk`, with as many queues as the target has processors to use them. Bytes
    /// behind the last whole sector are left alone.
    pub fn new(disk: &'d mut [u8], access: Access, name: &str, queues: u16) -> Self {
        let mut serial = [0; 20];
        put(&mut serial, 0, name.as_bytes());
        let queues = queues.max(1);
        Self {
            config: config(sectors(disk), queues),
            disk,
            access,
            serial,
            queues,
        }
    }

    /// Returns its size in sectors.
    pub fn sectors(&self) -> u64 {
        sectors(self.disk)
    }

    /// Returns the part of the disk that starts at `sector`, if it is all there and whole sectors.
    fn part(&mut self, sector: u64, bytes: u64) -> Option<&mut [u8]> {
        let start = sector.checked_mul(SECTOR)?;
        let end = start.checked_add(bytes)?;
        if !bytes.is_multiple_of(SECTOR) || end > self.sectors() * SECTOR {
            return None;
        }
        let range = usize::try_from(start).ok()?..usize::try_from(end).ok()?;
        self.disk.get_mut(range)
    }

    /// Fills the guest's buffers from the disk. Returns the status and how much was written.
    fn read(
        &mut self,
        memory: &impl GuestMemory,
        sector: u64,
        mut data: Segments<'_>,
    ) -> Result<(Status, u32), QueueError> {
        let Some(part) = self.part(sector, data.bytes()) else {
            return Ok((Status::IoError, 0));
        };
        Ok((Status::Ok, data.write(memory, part)?))
    }

    /// Fills the disk from the guest's buffers.
    fn write(
        &mut self,
        memory: &impl GuestMemory,
        sector: u64,
        mut data: Segments<'_>,
    ) -> Result<Status, QueueError> {
        if self.access == Access::ReadOnly {
            return Ok(Status::IoError);
        }
        let Some(part) = self.part(sector, data.bytes()) else {
            return Ok(Status::IoError);
        };
        data.read(memory, part)?;
        Ok(Status::Ok)
    }
}

fn sectors(disk: &[u8]) -> u64 {
    disk.len() as u64 / SECTOR
}

/// Returns the device configuration, up to num_queues (5.2.4).
fn config(sectors: u64, queues: u16) -> [u8; CONFIG_SIZE] {
    let mut config = [0; CONFIG_SIZE];
    // A request has a header and a status beside its data.
    let segments = u32::from(MAX_SIZE - 2);
    let block_size = 512_u32;
    put(&mut config, 0x00, &sectors.to_le_bytes()); // capacity
    put(&mut config, 0x0c, &segments.to_le_bytes()); // seg_max
    put(&mut config, 0x14, &block_size.to_le_bytes()); // blk_size
    put(&mut config, 0x22, &queues.to_le_bytes()); // num_queues
    config
}

/// Writes `field` at `offset`, as far as there is room.
fn put(bytes: &mut [u8], offset: usize, field: &[u8]) {
    for (place, byte) in bytes.iter_mut().skip(offset).zip(field) {
        *place = *byte;
    }
}

impl Device for Block<'_> {
    const DEVICE_ID: u16 = 2;
    /// Mass storage, "other".
    const CLASS: u32 = 0x01_80_00;

    fn features(&self) -> u64 {
        let read_only = match self.access {
            Access::ReadOnly => READ_ONLY,
            Access::ReadWrite => 0,
        };
        SEG_MAX | BLK_SIZE | FLUSH | MULTI_QUEUE | read_only
    }

    fn queues(&self) -> u16 {
        self.queues
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn handle(
        &mut self,
        memory: &impl GuestMemory,
        _queue: u16,
        chain: &Chain,
    ) -> Result<u32, QueueError> {
        let mut out = chain.readable();
        let (mut kind, mut sector) = ([0; 4], [0; 8]);
        out.read(memory, &mut kind)?;
        out.read(memory, &mut [0; 4])?;
        out.read(memory, &mut sector)?;
        let kind = u32::from_le_bytes(kind);
        let sector = u64::from_le_bytes(sector);

        let answer = chain.writable();
        let room = answer.bytes().checked_sub(1).ok_or(QueueError::Malformed)?;
        let (mut data, mut last) = answer.split_at(room).ok_or(QueueError::Malformed)?;
        let (status, written) = match kind {
            IN => self.read(memory, sector, data)?,
            OUT => (self.write(memory, sector, out)?, 0),
            // The disk is memory: what was written is there.
            SYNC => (Status::Ok, 0),
            GET_ID => (Status::Ok, data.write(memory, &self.serial)?),
            _ => (Status::Unsupported, 0),
        };
        last.write(memory, &[status as u8])?;
        // The status byte counts if all before it was written too (2.7.8.2).
        Ok(if u64::from(written) == room {
            written + 1
        } else {
            written
        })
    }
}
