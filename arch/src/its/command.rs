//! The commands, as the queue holds them (IHI 0069, 5.3).

use super::Target;
use crate::address::Pa;
use crate::gic::IntId;

/// A command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    /// SYNC: waits until the redistributor has seen what came before.
    Sync { target: Target },
    /// MAPD: gives a device an ITT and a number of EventID bits, or takes it away.
    MapDevice { device: u32, itt: Option<(Pa, u32)> },
    /// MAPC: gives a collection a redistributor.
    MapCollection { collection: u16, target: Target },
    /// MAPTI: makes an event an LPI in a collection.
    MapEvent {
        device: u32,
        event: u32,
        lpi: IntId,
        collection: u16,
    },
    /// INVALL: forgets the cached configuration of all LPIs of a collection.
    InvalidateAll { collection: u16 },
    /// DISCARD: takes an event's mapping away.
    Discard { device: u32, event: u32 },
}

const VALID: u64 = 1 << 63;

impl Command {
    /// Returns the four words of the command.
    #[rustfmt::skip]
    pub(super) fn encode(self) -> [u64; 4] {
        let with = |number: u64, device: u32| number | u64::from(device) << 32;
        match self {
            Self::Sync { target } =>
                [0x05, 0, target.0, 0],
            Self::MapDevice { device, itt: Some((itt, event_bits)) } =>
                [with(0x08, device), u64::from(event_bits - 1), VALID | itt.get(), 0],
            Self::MapDevice { device, itt: None } =>
                [with(0x08, device), 0, 0, 0],
            Self::MapCollection { collection, target } =>
                [0x09, 0, VALID | target.0 | u64::from(collection), 0],
            Self::MapEvent { device, event, lpi, collection } =>
                [with(0x0a, device), u64::from(event) | u64::from(lpi.get()) << 32, collection.into(), 0],
            Self::InvalidateAll { collection } =>
                [0x0d, 0, collection.into(), 0],
            Self::Discard { device, event } =>
                [with(0x0f, device), event.into(), 0, 0],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[rustfmt::skip]
    fn each_command_has_its_fields_where_the_manual_says() {
        let target = Target(3 << 16);
        let lpi = IntId::new(8195);
        let itt = Some((Pa::new(0x8000_0100), 5));
        let cases = [
            (Command::Sync { target },                                [0x05, 0, 0x3_0000, 0]),
            (Command::MapDevice { device: 0x18, itt },                [0x18_0000_0008, 4, 0x8000_0000_8000_0100, 0]),
            (Command::MapDevice { device: 0x18, itt: None },          [0x18_0000_0008, 0, 0, 0]),
            (Command::MapCollection { collection: 7, target },        [0x09, 0, 0x8000_0000_0003_0007, 0]),
            (Command::MapEvent { device: 0x18, event: 2, lpi, collection: 1 }, [0x18_0000_000a, 0x2003_0000_0002, 1, 0]),
            (Command::InvalidateAll { collection: 1 },                [0x0d, 0, 1, 0]),
            (Command::Discard { device: 0x18, event: 2 },             [0x18_0000_000f, 2, 0, 0]),
        ];
        for (command, words) in cases {
            assert_eq!(command.encode(), words, "{command:?}");
        }
    }
}
