//! ECAM: from an offset in the window to a config access.
//!
//! Each function owns 4 KiB, so the offset is itself an address:
//!
//! ```text
//!   27        20 19     15 14   12 11                    0
//!  +------------+---------+-------+-----------------------+
//!  |    bus     | device  | func  |  config space offset  |
//!  +------------+---------+-------+-----------------------+
//! ```
//!
//! PCI Express Base Specification, section 7.2.2.

use crate::{ConfigAccess, Offset, Sbdf, Size};

/// Bytes of the window that one function takes.
pub const FUNCTION: u64 = 1 << 12;

/// Decodes an access at `offset` in the window of `segment`, which starts with bus 0.
///
/// Returns `None` for what a config request cannot express: a size other than one, two or four
/// bytes, an address that is not naturally aligned, or one past the last bus.
#[must_use]
pub fn decode(segment: u16, offset: u64, bytes: u64) -> Option<ConfigAccess> {
    let size = Size::from_bytes(bytes)?;
    let sbdf = Sbdf::from_rid(segment, u16::try_from(offset / FUNCTION).ok()?);
    ConfigAccess::new(sbdf, Offset::in_function(offset), size)
}

/// Decodes an access of eight bytes: the two requests that it becomes, low half first.
///
/// Returns `None` if it is not naturally aligned, or past the last bus.
#[must_use]
pub fn decode_eight(segment: u16, offset: u64) -> Option<(ConfigAccess, ConfigAccess)> {
    if !offset.is_multiple_of(8) {
        return None;
    }
    let low = decode(segment, offset, 4)?;
    let high = decode(segment, offset + 4, 4)?;
    Some((low, high))
}

/// Returns where the config space of `sbdf` starts in the window of its segment.
#[must_use]
pub fn offset_of(sbdf: Sbdf) -> u64 {
    u64::from(sbdf.rid()) * FUNCTION
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    #[rustfmt::skip]
    fn an_offset_names_function_and_register() {
        let cases = [
            // offset,  bytes, function,        register
            (0x000_0000, 4,    "0000:00:00.0",  0x000),
            (0x000_0ffc, 4,    "0000:00:00.0",  0xffc),
            (0x000_1000, 1,    "0000:00:00.1",  0x000),
            (0x000_8000, 2,    "0000:00:01.0",  0x000),
            (0x00f_b006, 2,    "0000:00:1f.3",  0x006),
            (0x010_0000, 4,    "0000:01:00.0",  0x000),
            (0xfff_ffff, 1,    "0000:ff:1f.7",  0xfff),
        ];
        for (offset, bytes, function, register) in cases {
            let access = decode(0, offset, bytes).unwrap();
            assert_eq!(access.sbdf(), function.parse().unwrap(), "{offset:#x}");
            assert_eq!(access.offset().get(), register, "{offset:#x}");
        }
    }

    #[test]
    #[rustfmt::skip]
    fn what_no_request_can_express_is_refused() {
        let cases = [
            // offset,     bytes
            (0x0000_0001,  2),
            (0x0000_0002,  4),
            (0x0000_0fff,  2), // crosses into the next function
            (0x0000_0ffe,  4),
            (0x0000_0000,  0),
            (0x0000_0000,  3),
            (0x0000_0000,  8),
            (0x0000_0000,  u64::MAX),
            (0x1000_0000,  4), // past bus 255
            (u64::MAX,     1),
        ];
        for (offset, bytes) in cases {
            assert_eq!(decode(0, offset, bytes), None, "{offset:#x} {bytes}");
        }
    }

    #[test]
    fn eight_bytes_are_two_requests() {
        let (low, high) = decode_eight(7, 0x10_0ff8).unwrap();
        assert_eq!((low.offset().get(), high.offset().get()), (0xff8, 0xffc));
        assert_eq!(low.sbdf(), "0007:01:00.0".parse().unwrap());
        assert_eq!((low.size(), high.size()), (Size::Four, Size::Four));
        for offset in [4, 1, 0x1000_0000, u64::MAX, u64::MAX - 7] {
            assert_eq!(decode_eight(0, offset), None, "{offset:#x}");
        }
    }

    proptest! {
        #[test]
        fn decoding_never_leaves_the_function(offset: u64, bytes in 0u64..10, narrow in 0u64..1 << 28) {
            for offset in [offset, narrow] {
                let Some(access) = decode(3, offset, bytes) else { continue };
                let start = offset_of(access.sbdf());
                prop_assert_eq!(start + u64::from(access.offset().get()), offset);
                prop_assert!(offset + bytes <= start + FUNCTION);
                prop_assert_eq!(access.sbdf().segment(), 3);
            }
        }
    }
}
