//! What EL2 asks of a device model.
//!
//! One word of the ring says what is asked; address and data are words of their own:
//!
//! ```text
//!   63                    32 31        16 15       8 7        0
//!  +------------------------+------------+----------+----------+
//!  | SBDF of the function   |     0      |  width   |   kind   |
//!  +------------------------+------------+----------+----------+
//! ```

use crate::sync::{high, low, word};
use vpci::Sbdf;

/// What kind of request it is.
///
/// A device model answers a kind that it does not know with all ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
#[non_exhaustive]
pub enum Kind {
    /// A read in the function's config space.
    ConfigRead = 1,
    /// A write in the function's config space.
    ConfigWrite = 2,
    /// A read in an MMIO range that the function claimed.
    MmioRead = 3,
    /// A write in an MMIO range that the function claimed.
    MmioWrite = 4,
    /// The function goes to its reset state and gives its MMIO ranges back.
    Reset = 5,
}

impl Kind {
    /// Says whether the answer carries data.
    pub const fn is_read(self) -> bool {
        matches!(self, Kind::ConfigRead | Kind::MmioRead)
    }

    const fn decode(bits: u32) -> Option<Self> {
        Some(match bits {
            1 => Kind::ConfigRead,
            2 => Kind::ConfigWrite,
            3 => Kind::MmioRead,
            4 => Kind::MmioWrite,
            5 => Kind::Reset,
            _ => return None,
        })
    }
}

/// The width of an access in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Width {
    /// A byte.
    One = 1,
    /// A halfword.
    Two = 2,
    /// A word.
    Four = 4,
    /// A doubleword.
    Eight = 8,
}

impl Width {
    /// Returns the width that has `bytes` bytes, if there is one.
    pub const fn from_bytes(bytes: u64) -> Option<Self> {
        Some(match bytes {
            1 => Width::One,
            2 => Width::Two,
            4 => Width::Four,
            8 => Width::Eight,
            _ => return None,
        })
    }

    /// Returns the number of bytes.
    pub const fn bytes(self) -> u64 {
        self as u64
    }

    /// Returns a mask of the bits that an access of this width carries: also what a read of all
    /// ones gives.
    pub const fn mask(self) -> u64 {
        !0 >> (64 - 8 * self.bytes())
    }
}

/// A synchronous request: the vCPU that caused it waits for the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// What is asked.
    pub kind: Kind,
    /// How wide the access is; of a [`Kind::Reset`], without meaning.
    pub width: Width,
    /// The function that is asked.
    pub sbdf: Sbdf,
    /// The offset in config space, or the bus address.
    pub address: u64,
    /// What a write writes.
    pub data: u64,
}

impl Request {
    /// Makes a reset of a function.
    pub const fn reset(sbdf: Sbdf) -> Self {
        Self {
            kind: Kind::Reset,
            width: Width::Eight,
            sbdf,
            address: 0,
            data: 0,
        }
    }

    /// Returns what the vCPU is given when nobody answers: all ones for a read.
    pub const fn unanswered(&self) -> u64 {
        self.answer(!0)
    }

    /// Returns what the vCPU is given when `data` is the answer: nothing wider than was asked.
    pub const fn answer(&self, data: u64) -> u64 {
        if self.kind.is_read() {
            data & self.width.mask()
        } else {
            0
        }
    }

    pub(crate) fn operation(&self) -> u64 {
        word(
            u32::from(self.sbdf),
            u32::from(self.width as u8) << 8 | u32::from(self.kind as u8),
        )
    }

    /// Decodes a request; `None` if this version has no such kind or width.
    pub(crate) fn decode(operation: u64, address: u64, data: u64) -> Option<Self> {
        Some(Self {
            kind: Kind::decode(low(operation) & 0xff)?,
            width: Width::from_bytes(operation >> 8 & 0xff_ffff)?,
            sbdf: Sbdf::from(high(operation)),
            address,
            data,
        })
    }
}

/// An MMIO write that no vCPU waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PostedWrite {
    /// How wide the write is.
    pub width: Width,
    /// The function that claimed the range.
    pub sbdf: Sbdf,
    /// The bus address.
    pub address: u64,
    /// What is written.
    pub data: u64,
}

impl PostedWrite {
    /// Returns the same write as a synchronous request, for when the ring is full.
    pub const fn synchronous(&self) -> Request {
        Request {
            kind: Kind::MmioWrite,
            width: self.width,
            sbdf: self.sbdf,
            address: self.address,
            data: self.data,
        }
    }

    /// Decodes an entry of the posted ring; `None` if it is not a write.
    pub(crate) fn decode(operation: u64, address: u64, data: u64) -> Option<Self> {
        let request = Request::decode(operation, address, data)?;
        (request.kind == Kind::MmioWrite).then_some(Self {
            width: request.width,
            sbdf: request.sbdf,
            address,
            data,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[rustfmt::skip]
    fn a_width_carries_its_bytes_and_no_more() {
        let cases = [
            (Width::One,   1, 0xff),
            (Width::Two,   2, 0xffff),
            (Width::Four,  4, 0xffff_ffff),
            (Width::Eight, 8, 0xffff_ffff_ffff_ffff),
        ];
        for (width, bytes, mask) in cases {
            assert_eq!(width.bytes(), bytes);
            assert_eq!(width.mask(), mask);
            assert_eq!(Width::from_bytes(bytes), Some(width));
        }
        for bytes in [0, 3, 5, 6, 7, 9, 16, u64::MAX] {
            assert_eq!(Width::from_bytes(bytes), None, "{bytes}");
        }
    }

    #[test]
    #[rustfmt::skip]
    fn a_request_is_encoded_as_the_picture_says() {
        let request = |kind, width| Request { kind, width, sbdf: Sbdf::from(0x1_00fa), address: 0x10, data: 7 };
        let cases = [
            (request(Kind::ConfigRead,  Width::One),   0x0001_00fa_0000_0101),
            (request(Kind::ConfigWrite, Width::Two),   0x0001_00fa_0000_0202),
            (request(Kind::MmioRead,    Width::Four),  0x0001_00fa_0000_0403),
            (request(Kind::MmioWrite,   Width::Eight), 0x0001_00fa_0000_0804),
            (request(Kind::Reset,       Width::Eight), 0x0001_00fa_0000_0805),
        ];
        for (request, operation) in cases {
            assert_eq!(request.operation(), operation, "{request:?}");
            assert_eq!(Request::decode(operation, 0x10, 7), Some(request));
        }
        for operation in [0, 0x0100, 0x0106, 0x0001, 0x0301, 0x1_0101, 0x01ff] {
            assert_eq!(Request::decode(operation, 0, 0), None, "{operation:#x}");
        }
    }

    #[test]
    fn only_reads_are_given_data_and_no_more_than_they_asked_for() {
        for (kind, given) in [
            (Kind::ConfigRead, 0xcdef),
            (Kind::MmioRead, 0xcdef),
            (Kind::ConfigWrite, 0),
            (Kind::MmioWrite, 0),
        ] {
            let request = Request {
                kind,
                width: Width::Two,
                sbdf: Sbdf::from(0),
                address: 0,
                data: 0,
            };
            assert_eq!(request.answer(0x89ab_cdef), given, "{kind:?}");
            let ones = if kind.is_read() { 0xffff } else { 0 };
            assert_eq!(request.unanswered(), ones, "{kind:?}");
        }
        assert_eq!(Request::reset(Sbdf::from(8)).unanswered(), 0);
    }

    #[test]
    fn a_posted_write_is_a_write_and_nothing_else() {
        let write = PostedWrite {
            width: Width::Four,
            sbdf: Sbdf::from(8),
            address: 0x1000_0000,
            data: 5,
        };
        let operation = write.synchronous().operation();
        assert_eq!(PostedWrite::decode(operation, 0x1000_0000, 5), Some(write));
        let read = word(8, 0x0403);
        assert_eq!(PostedWrite::decode(read, 0x1000_0000, 5), None);
        assert_eq!(PostedWrite::decode(0, 0x1000_0000, 5), None);
    }
}
