//! Events: what the SMMU refused, and why (7.2, 7.3).
//!
//! ```text
//!   word 0   63        32 31                          7         0
//!           +------------+---------------------------+-----------+
//!           |  StreamID  |                           |   type    |
//!   word 1  +------------+---------------------------+-----------+
//!           |                 ... 35 RnW ...                     |
//!   word 2  +----------------------------------------------------+
//!           |  input address                                     |
//!   word 3  +----------------------------------------------------+
//!           |  IPA, or address of the fetch that failed          |
//!           +----------------------------------------------------+
//! ```

use crate::address::{Ipa, Pa};
use core::fmt;

/// Why an access was refused (7.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// F_UUT: an access of a sort that the SMMU does not know.
    UnsupportedUpstream,
    /// C_BAD_STREAMID: the stream table has no such stream.
    BadStreamId,
    /// F_STE_FETCH: the stream table could not be read.
    StreamFetch,
    /// C_BAD_STE: the stream table entry is not valid.
    BadStream,
    /// F_BAD_ATS_TREQ: a translation was asked for that may not be.
    BadAtsRequest,
    /// F_STREAM_DISABLED: accesses without a SubstreamID are refused.
    StreamDisabled,
    /// F_TRANSL_FORBIDDEN: the device says that it has translated itself, and may not.
    TranslationForbidden,
    /// C_BAD_SUBSTREAMID: there is no such substream.
    BadSubstreamId,
    /// F_CD_FETCH: the context descriptor could not be read.
    ContextFetch,
    /// C_BAD_CD: the context descriptor is not valid.
    BadContext,
    /// F_WALK_EABT: a translation table could not be read.
    WalkAbort,
    /// F_TRANSLATION: nothing is mapped there.
    Translation,
    /// F_ADDR_SIZE: an address is too large.
    AddressSize,
    /// F_ACCESS: the access flag is not set.
    AccessFlag,
    /// F_PERMISSION: what is mapped there does not allow it.
    Permission,
    /// F_TLB_CONFLICT: the SMMU has cached translations that contradict each other.
    TlbConflict,
    /// F_CFG_CONFLICT: the SMMU has cached entries that contradict each other.
    ConfigConflict,
    /// Another one, by its number.
    Other(u8),
}

impl Kind {
    fn decode(number: u8) -> Self {
        match number {
            0x01 => Self::UnsupportedUpstream,
            0x02 => Self::BadStreamId,
            0x03 => Self::StreamFetch,
            0x04 => Self::BadStream,
            0x05 => Self::BadAtsRequest,
            0x06 => Self::StreamDisabled,
            0x07 => Self::TranslationForbidden,
            0x08 => Self::BadSubstreamId,
            0x09 => Self::ContextFetch,
            0x0a => Self::BadContext,
            0x0b => Self::WalkAbort,
            0x10 => Self::Translation,
            0x11 => Self::AddressSize,
            0x12 => Self::AccessFlag,
            0x13 => Self::Permission,
            0x20 => Self::TlbConflict,
            0x21 => Self::ConfigConflict,
            other => Self::Other(other),
        }
    }

    /// Returns whether the record has an input address, and what comes with it.
    fn has_address(self) -> bool {
        use Kind::*;
        self.is_translation()
            || matches!(
                self,
                UnsupportedUpstream | BadAtsRequest | TranslationForbidden | TlbConflict
            )
    }

    /// Returns whether the record tells of a translation that failed.
    fn is_translation(self) -> bool {
        use Kind::*;
        matches!(
            self,
            WalkAbort | Translation | AddressSize | AccessFlag | Permission
        )
    }

    fn is_fetch(self) -> bool {
        matches!(
            self,
            Self::StreamFetch | Self::ContextFetch | Self::WalkAbort
        )
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::UnsupportedUpstream => "unsupported kind of access",
            Self::BadStreamId => "no such stream",
            Self::StreamFetch => "stream table not readable",
            Self::BadStream => "stream table entry not valid",
            Self::BadAtsRequest => "translation request not allowed",
            Self::StreamDisabled => "stream disabled",
            Self::TranslationForbidden => "translated access not allowed",
            Self::BadSubstreamId => "no such substream",
            Self::ContextFetch => "context descriptor not readable",
            Self::BadContext => "context descriptor not valid",
            Self::WalkAbort => "translation table not readable",
            Self::Translation => "not mapped",
            Self::AddressSize => "address too large",
            Self::AccessFlag => "access flag not set",
            Self::Permission => "not permitted",
            Self::TlbConflict => "conflicting translations",
            Self::ConfigConflict => "conflicting stream table entries",
            Self::Other(number) => return write!(f, "event {number:#04x}"),
        })
    }
}

/// What a device was about to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read memory.
    Read,
    /// Write memory.
    Write,
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::Write => "write",
        })
    }
}

/// A record of the event queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    words: [u64; 4],
}

impl Event {
    /// Takes a record as the queue holds it.
    pub const fn new(words: [u64; 4]) -> Self {
        Self { words }
    }

    /// Returns why the access was refused.
    pub fn kind(&self) -> Kind {
        Kind::decode((self.words[0] & 0xff) as u8)
    }

    /// Returns whose access it was.
    pub const fn stream(&self) -> u32 {
        (self.words[0] >> 32) as u32
    }

    /// Returns the address that the device gave, if the record has it. It is an IPA where stage 2
    /// alone translates.
    pub fn address(&self) -> Option<Ipa> {
        self.kind().has_address().then_some(Ipa::new(self.words[2]))
    }

    /// Returns what the device was about to do, if the record says so.
    pub fn access(&self) -> Option<Access> {
        let read = self.words[1] >> 35 & 1 != 0;
        let access = if read { Access::Read } else { Access::Write };
        // A request for a translation is for rights of its own (7.3.6).
        let says = self.kind().has_address() && self.kind() != Kind::BadAtsRequest;
        says.then_some(access)
    }

    /// Returns which fetch of the SMMU's own failed, if it was one.
    pub fn fetched(&self) -> Option<Pa> {
        self.kind()
            .is_fetch()
            .then_some(Pa::new(self.words[3] & 0x000f_ffff_ffff_fff8))
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let (Some(access), Some(address)) = (self.access(), self.address()) {
            write!(f, "{access} at {:#x}: ", address.get())?;
        }
        write!(f, "{}", self.kind())?;
        if let Some(fetched) = self.fetched() {
            write!(f, " ({fetched})")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[rustfmt::skip]
    fn records_of_a_real_queue_are_decoded() {
        use Access::*;
        use Kind::*;
        let cases = [
            // word 0,             word 1,                word 2,       word 3
            ([0x0000001800000010, 0x0000028800000000, 0x0000000040286000, 0x0000000040286000],
                Translation, Read, 0x4028_6000, "read at 0x40286000: not mapped"),
            ([0x0000001800000010, 0x0000028000000000, 0x0000000040287000, 0x0000000040287000],
                Translation, Write, 0x4028_7000, "write at 0x40287000: not mapped"),
            ([0x0000001800000013, 0x0000028000000000, 0x0000000040283000, 0x0000000040283000],
                Permission, Write, 0x4028_3000, "write at 0x40283000: not permitted"),
            ([0x0000001800000010, 0x0000028000000000, 0x0000000100001000, 0x0000000040283000],
                Translation, Write, 0x1_0000_1000, "write at 0x100001000: not mapped"),
            ([0x0000001800000010, 0x0000020800000000, 0x0000000200000000, 0x0000000000000000],
                Translation, Read, 0x2_0000_0000, "read at 0x200000000: not mapped"),
        ];
        for (words, kind, access, address, text) in cases {
            let event = Event::new(words);
            assert_eq!(event.kind(), kind);
            assert_eq!(event.stream(), 0x18);
            assert_eq!(event.access(), Some(access));
            assert_eq!(event.address(), Some(Ipa::new(address)));
            assert_eq!(event.to_string(), text);
        }
    }

    #[test]
    fn a_record_without_address_shows_none() {
        let event = Event::new([0x0000_0018_0000_0004, !0, !0, !0]);
        assert_eq!((event.address(), event.access()), (None, None));
        assert_eq!(event.fetched(), None);
        assert_eq!(event.to_string(), "stream table entry not valid");
        let event = Event::new([0x0000_0018_0000_0003, 0, 0, 0x8000_1000]);
        assert_eq!(
            event.to_string(),
            "stream table not readable (PA 0x80001000)"
        );
        let event = Event::new([0x0000_0018_0000_0005, 1 << 35, 0x4000_0000, 0]);
        assert_eq!(event.access(), None);
        assert_eq!(event.to_string(), "translation request not allowed");
    }

    #[test]
    fn every_number_is_some_kind() {
        for number in 0..=255u8 {
            let event = Event::new([u64::from(number), !0, !0, !0]);
            assert!(!event.to_string().is_empty());
        }
    }
}
