//! The commands, as the queue holds them (4).

use crate::address::{Ipa, PAGE_SIZE};

/// Whose translations a command is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    /// Stage 2 of this VMID.
    Vmid(u16),
    /// Stage 1 of this ASID, where there is no stage 2.
    Asid(u16),
}

/// A range of pages, as one command can name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) start: u64,
    /// `(NUM + 1) << SCALE` pages; `None` names the one page without these fields.
    pub(super) extent: Option<(u64, u64)>,
}

/// A command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    /// CFGI_STE: forgets a stream table entry, what led to it, and its context descriptor (4.3.1).
    ForgetStream { stream: u32 },
    /// CFGI_ALL: forgets all stream table entries and context descriptors (4.3.6).
    ForgetStreams,
    /// TLBI_S12_VMALL or TLBI_NH_ASID: forgets all of an address space (4.4.2, 4.4.3).
    InvalidateAll { scope: Scope },
    /// TLBI_S2_IPA or TLBI_NH_VA: forgets a range of an address space (4.4.2, 4.4.3).
    InvalidateRange { scope: Scope, range: Range },
    /// TLBI_NSNH_ALL: forgets all that is not of a hypervisor (4.4.4).
    InvalidateEverything,
    /// TLBI_EL2_ALL: forgets all that is of a hypervisor (4.4.2).
    InvalidateHypervisor,
    /// SYNC: is consumed when what came before is complete (4.7.3).
    Sync,
}

impl Command {
    /// Returns the two words of the command.
    pub(super) fn encode(self) -> [u64; 2] {
        match self {
            Self::ForgetStream { stream } => [0x03 | u64::from(stream) << 32, 0],
            Self::ForgetStreams => [0x04, 31],
            Self::InvalidateAll {
                scope: Scope::Vmid(id),
            } => [0x28 | u64::from(id) << 32, 0],
            Self::InvalidateAll {
                scope: Scope::Asid(id),
            } => [0x11 | u64::from(id) << 48, 0],
            Self::InvalidateRange {
                scope: Scope::Vmid(id),
                range,
            } => range.encode(0x2a | u64::from(id) << 32),
            Self::InvalidateRange {
                scope: Scope::Asid(id),
                range,
            } => range.encode(0x12 | u64::from(id) << 48),
            Self::InvalidateEverything => [0x30, 0],
            Self::InvalidateHypervisor => [0x20, 0],
            Self::Sync => [0x46, 0],
        }
    }
}

impl Range {
    /// Adds NUM, SCALE, TG and the address to a command (4.4.1.1).
    fn encode(self, command: u64) -> [u64; 2] {
        match self.extent {
            None => [command, self.start],
            // TG 1: pages of 4 KiB.
            Some((num, scale)) => [command | num << 12 | scale << 20, self.start | 1 << 10],
        }
    }
}

/// NUM has five bits.
const NUM: u64 = 0x1f;
/// More pages than this one by one take longer than forgetting all.
const MANY: u64 = 64;

/// Returns `len` bytes as the first page and a number of pages.
fn whole(at: Ipa, len: u64) -> Option<(u64, u64)> {
    let start = at.align_down(PAGE_SIZE).get();
    let end = at
        .get()
        .checked_add(len)?
        .checked_next_multiple_of(PAGE_SIZE)?;
    Some((start, (end - start) / PAGE_SIZE))
}

/// Cuts `len` bytes at `at` into ranges, for an SMMU with range invalidation (3.2 and 4.4.1.1); `None`
/// past the end of the address space.
pub(super) fn ranges(at: Ipa, len: u64) -> Option<Ranges> {
    let (start, pages) = whole(at, len)?;
    Some(Ranges {
        start,
        pages,
        single: false,
    })
}

/// Cuts `len` bytes at `at` into pages, for an SMMU without; `None` if there are too many.
pub(super) fn pages(at: Ipa, len: u64) -> Option<Ranges> {
    let (start, pages) = whole(at, len)?;
    (pages <= MANY).then_some(Ranges {
        start,
        pages,
        single: true,
    })
}

/// Ranges that follow each other.
#[derive(Clone, Debug)]
pub(super) struct Ranges {
    start: u64,
    pages: u64,
    single: bool,
}

impl Iterator for Ranges {
    type Item = Range;

    fn next(&mut self) -> Option<Range> {
        if self.pages == 0 {
            return None;
        }
        // Five bits of the number of pages at a time, from below.
        let scale = u64::from(self.pages.trailing_zeros());
        let num = (self.pages >> scale) & NUM;
        let start = self.start;
        // One page with both fields zero is reserved: it is named without them.
        let (extent, pages) = match (num, scale) {
            (1, 0) => (None, 1),
            _ if self.single => (None, 1),
            _ => (Some((num - 1, scale)), num << scale),
        };
        self.start += pages * PAGE_SIZE;
        self.pages -= pages;
        Some(Range { start, extent })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    #[rustfmt::skip]
    fn each_command_has_its_fields_where_the_manual_says() {
        let (vmid, asid) = (Scope::Vmid(0x1234), Scope::Asid(0x1234));
        let page = Range { start: 0x4020_1000, extent: None };
        let range = Range { start: 0x4020_1000, extent: Some((2, 9)) };
        let cases = [
            (Command::ForgetStream { stream: 0x18 },                  [0x18_0000_0003, 0]),
            (Command::ForgetStreams,                                  [0x04, 31]),
            (Command::InvalidateAll { scope: vmid },                  [0x1234_0000_0028, 0]),
            (Command::InvalidateAll { scope: asid },                  [0x1234_0000_0000_0011, 0]),
            (Command::InvalidateRange { scope: vmid, range: page },   [0x1234_0000_002a, 0x4020_1000]),
            (Command::InvalidateRange { scope: asid, range: page },   [0x1234_0000_0000_0012, 0x4020_1000]),
            (Command::InvalidateRange { scope: vmid, range },         [0x1234_0090_202a, 0x4020_1400]),
            (Command::InvalidateEverything,                           [0x30, 0]),
            (Command::InvalidateHypervisor,                           [0x20, 0]),
            (Command::Sync,                                           [0x46, 0]),
        ];
        for (command, words) in cases {
            assert_eq!(command.encode(), words, "{command:x?}");
        }
    }

    #[test]
    fn ranges_are_few() {
        let count = |len| ranges(Ipa::new(0x4000_0000), len).unwrap().count();
        assert_eq!(count(0), 0);
        assert_eq!(count(1), 1);
        assert_eq!(count(0x1000 * 31), 1);
        assert_eq!(count(2 << 20), 1);
        assert_eq!(count(512 << 20), 1);
        assert_eq!(count(0x1000 * 0x1_2345), 3);
        assert!(ranges(Ipa::new(!0xfff), 0x2000).is_none());
        assert_eq!(pages(Ipa::new(0), 64 << 12).unwrap().count(), 64);
        assert!(pages(Ipa::new(0), 65 << 12).is_none());
    }

    proptest! {
        #[test]
        fn ranges_cover_every_page_once(at in 0u64..1 << 39, len in 0u64..1 << 36, one in any::<bool>()) {
            let at = Ipa::new(at);
            let cut = if one { pages(at, len % (32 << 12)) } else { ranges(at, len) }.unwrap();
            let len = if one { len % (32 << 12) } else { len };
            let mut next = at.get() & !0xfff;
            for range in cut {
                prop_assert_eq!(range.start, next);
                let pages = match range.extent {
                    None => 1,
                    Some((num, scale)) => {
                        prop_assert!(num < 32 && scale < 32 && (num, scale) != (0, 0));
                        (num + 1) << scale
                    }
                };
                next += pages << 12;
            }
            prop_assert!(next >= at.get() + len && next < at.get() + len + 0x1000);
        }
    }
}
