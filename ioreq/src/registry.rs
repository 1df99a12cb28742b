//! Which server answers an access of one target: the functions and MMIO ranges that each owns.
//!
//! There is one registry for each target domain, so that no domain waits for another's lock. A
//! server is named by its id, and found by a handle of the kernel's choice (a reference to its
//! `Server`, say), which each entry has a copy of: one search finds it all.

use crate::request::{Sbdf, Width};
use crate::{GuestAddress, ServerId};
use abi::{MapFlags, Status};
use alloc::collections::TryReserveError;
use alloc::vec::Vec;

/// The servers of one target, with what they own in it.
#[derive(Debug)]
pub struct Registry<H> {
    /// Where ranges may lie.
    windows: Vec<Window>,
    /// Sorted by id.
    servers: Vec<(ServerId, H)>,
    /// Sorted by SBDF.
    functions: Vec<Function<H>>,
    /// Sorted by start; none overlap.
    ranges: Vec<Range<H>>,
}

/// A window of the target's host bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// The first address.
    pub start: GuestAddress,
    /// How many bytes there are.
    pub size: u64,
}

impl Window {
    /// Says whether everything from `start` to `last` lies inside.
    fn contains(&self, start: GuestAddress, last: GuestAddress) -> bool {
        let inside = |at: GuestAddress| {
            let offset = at.get().checked_sub(self.start.get());
            offset.is_some_and(|offset| offset < self.size)
        };
        start <= last && inside(start) && inside(last)
    }
}

/// A function of the target, and who emulates it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function<H> {
    /// Where the target sees it.
    pub sbdf: Sbdf,
    /// Its server.
    pub server: ServerId,
    /// How the kernel finds the server.
    pub handle: H,
}

/// An MMIO range that is claimed for a function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range<H> {
    /// The first address.
    pub start: GuestAddress,
    /// The last address.
    pub last: GuestAddress,
    /// Whether writes are posted.
    pub flags: MapFlags,
    /// The function.
    pub sbdf: Sbdf,
    /// Its server.
    pub server: ServerId,
    /// How the kernel finds the server.
    pub handle: H,
}

/// Why the registry stays as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegistryError {
    /// No server of this target has that id.
    NoSuchServer(ServerId),
    /// A server of that id is there already.
    ServerExists(ServerId),
    /// The function has an owner already.
    FunctionTaken(Sbdf),
    /// The function is not the server's.
    NotOwner(Sbdf),
    /// The function has no range that starts there.
    NoSuchRange(GuestAddress),
    /// The range has no byte, or goes past the end of the address space.
    NotARange,
    /// The range is not wholly in one of the bridge's windows.
    OutsideWindows,
    /// Part of the range is claimed already; this claim starts there.
    Overlap(GuestAddress),
    /// No memory is left.
    NoMemory,
}

impl From<TryReserveError> for RegistryError {
    fn from(_: TryReserveError) -> Self {
        RegistryError::NoMemory
    }
}

impl From<RegistryError> for Status {
    fn from(error: RegistryError) -> Status {
        match error {
            RegistryError::NoSuchServer(_) | RegistryError::NoSuchRange(_) => Status::NotFound,
            RegistryError::NotOwner(_) => Status::Denied,
            RegistryError::NotARange => Status::InvalidArgument,
            RegistryError::OutsideWindows => Status::BadAddress,
            RegistryError::ServerExists(_)
            | RegistryError::FunctionTaken(_)
            | RegistryError::Overlap(_) => Status::Busy,
            RegistryError::NoMemory => Status::NoMemory,
        }
    }
}

impl<H: Clone> Registry<H> {
    /// Makes the registry of a target whose bridge has these windows.
    pub fn new(windows: &[Window]) -> Result<Self, RegistryError> {
        let mut own = Vec::new();
        own.try_reserve_exact(windows.len())?;
        own.extend_from_slice(windows);
        Ok(Self {
            windows: own,
            servers: Vec::new(),
            functions: Vec::new(),
            ranges: Vec::new(),
        })
    }

    /// Adds a server, which owns nothing yet.
    pub fn add_server(&mut self, id: ServerId, handle: H) -> Result<(), RegistryError> {
        let Err(place) = self.find_server(id) else {
            return Err(RegistryError::ServerExists(id));
        };
        self.servers.try_reserve(1)?;
        self.servers.insert(place, (id, handle));
        Ok(())
    }

    /// Removes a server with all that it owns.
    pub fn remove_server(&mut self, id: ServerId) -> Result<H, RegistryError> {
        let place = self.find_server(id);
        let place = place.map_err(|_| RegistryError::NoSuchServer(id))?;
        self.functions.retain(|function| function.server != id);
        self.ranges.retain(|range| range.server != id);
        Ok(self.servers.remove(place).1)
    }

    /// Gives a server a function.
    pub fn add_function(&mut self, id: ServerId, sbdf: Sbdf) -> Result<(), RegistryError> {
        let handle = self.handle(id)?.clone();
        let Err(place) = self.find_function(sbdf) else {
            return Err(RegistryError::FunctionTaken(sbdf));
        };
        self.functions.try_reserve(1)?;
        let function = Function {
            sbdf,
            server: id,
            handle,
        };
        self.functions.insert(place, function);
        Ok(())
    }

    /// Takes a function from a server, with its ranges.
    pub fn remove_function(&mut self, id: ServerId, sbdf: Sbdf) -> Result<(), RegistryError> {
        self.check_owner(id, sbdf)?;
        self.functions.retain(|function| function.sbdf != sbdf);
        self.unmap_all(sbdf);
        Ok(())
    }

    /// Claims the `size` bytes from `start` for a function of a server.
    pub fn map(
        &mut self,
        id: ServerId,
        sbdf: Sbdf,
        start: GuestAddress,
        size: u64,
        flags: MapFlags,
    ) -> Result<(), RegistryError> {
        let handle = self.check_owner(id, sbdf)?.handle.clone();
        let last = last_of(start, size).ok_or(RegistryError::NotARange)?;
        if !self
            .windows
            .iter()
            .any(|window| window.contains(start, last))
        {
            return Err(RegistryError::OutsideWindows);
        }
        // All that start at or before our last byte; only the last of them can reach us.
        let place = self.ranges.partition_point(|range| range.start <= last);
        let below = place
            .checked_sub(1)
            .and_then(|below| self.ranges.get(below));
        if let Some(below) = below.filter(|below| below.last >= start) {
            return Err(RegistryError::Overlap(below.start));
        }
        self.ranges.try_reserve(1)?;
        let range = Range {
            start,
            last,
            flags,
            sbdf,
            server: id,
            handle,
        };
        self.ranges.insert(place, range);
        Ok(())
    }

    /// Gives back the range that a function of a server claimed from `start`.
    pub fn unmap(
        &mut self,
        id: ServerId,
        sbdf: Sbdf,
        start: GuestAddress,
    ) -> Result<(), RegistryError> {
        self.check_owner(id, sbdf)?;
        let found = self
            .ranges
            .binary_search_by_key(&start, |range| range.start);
        let place = found.map_err(|_| RegistryError::NoSuchRange(start))?;
        if self
            .ranges
            .get(place)
            .is_none_or(|range| range.sbdf != sbdf)
        {
            return Err(RegistryError::NoSuchRange(start));
        }
        self.ranges.remove(place);
        Ok(())
    }

    /// Gives back all ranges of a function: it is reset.
    pub fn unmap_all(&mut self, sbdf: Sbdf) {
        self.ranges.retain(|range| range.sbdf != sbdf);
    }

    /// Returns the range in which an access lies, wholly.
    pub fn route(&self, address: GuestAddress, width: Width) -> Option<&Range<H>> {
        let past = self.ranges.partition_point(|range| range.start <= address);
        let range = self.ranges.get(past.checked_sub(1)?)?;
        let last = last_of(address, width.bytes())?;
        (last <= range.last).then_some(range)
    }

    /// Returns who emulates a function.
    pub fn owner(&self, sbdf: Sbdf) -> Option<&Function<H>> {
        self.functions.get(self.find_function(sbdf).ok()?)
    }

    /// Checks that a function is a server's, and returns it.
    pub fn check_owner(&self, id: ServerId, sbdf: Sbdf) -> Result<&Function<H>, RegistryError> {
        self.handle(id)?;
        let owned = self.owner(sbdf).filter(|function| function.server == id);
        owned.ok_or(RegistryError::NotOwner(sbdf))
    }

    /// Returns how the kernel finds a server.
    pub fn handle(&self, id: ServerId) -> Result<&H, RegistryError> {
        let place = self.find_server(id).ok();
        let server = place.and_then(|place| self.servers.get(place));
        let (_, handle) = server.ok_or(RegistryError::NoSuchServer(id))?;
        Ok(handle)
    }

    /// Returns all servers.
    pub fn servers(&self) -> impl Iterator<Item = (ServerId, &H)> {
        self.servers.iter().map(|(id, handle)| (*id, handle))
    }

    /// Returns all functions.
    pub fn functions(&self) -> &[Function<H>] {
        &self.functions
    }

    /// Returns all ranges, by address.
    pub fn ranges(&self) -> &[Range<H>] {
        &self.ranges
    }

    fn find_server(&self, id: ServerId) -> Result<usize, usize> {
        self.servers.binary_search_by_key(&id, |(id, _)| *id)
    }

    fn find_function(&self, sbdf: Sbdf) -> Result<usize, usize> {
        self.functions
            .binary_search_by_key(&sbdf, |function| function.sbdf)
    }
}

/// Returns the last of `size` addresses from `start`; `None` if there is no such address.
fn last_of(start: GuestAddress, size: u64) -> Option<GuestAddress> {
    let last = start.get().checked_add(size.checked_sub(1)?)?;
    Some(GuestAddress::new(last))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec;

    const A: ServerId = ServerId::new(1);
    const B: ServerId = ServerId::new(2);
    const NOBODY: ServerId = ServerId::new(3);

    fn at(address: u64) -> GuestAddress {
        GuestAddress::new(address)
    }

    /// Servers "a" with functions 8 and 16, and "b" with function 24.
    fn registry() -> Registry<&'static str> {
        let windows = [
            Window {
                start: at(0x1000_0000),
                size: 0x1000_0000,
            },
            Window {
                start: at(0xffff_ffff_ffff_0000),
                size: 0x1_0000,
            },
        ];
        let mut registry = Registry::new(&windows).unwrap();
        registry.add_server(B, "b").unwrap();
        registry.add_server(A, "a").unwrap();
        for (server, sbdf) in [(A, 16), (A, 8), (B, 24)] {
            registry.add_function(server, sbdf).unwrap();
        }
        registry
    }

    #[test]
    #[rustfmt::skip]
    fn a_claim_is_made_or_refused_with_the_reason() {
        use RegistryError::*;
        let cases = [
            // server, sbdf, start,                 size,         result
            (A,      8,  0x1000_2000,           0x1000,       Ok(())),
            (B,      24, 0x1000_4000,           0x1000,       Ok(())),
            (A,      16, 0x1000_3000,           0x1000,       Ok(())), // fits between
            (A,      8,  0x1000_2000,           0x1000,       Err(Overlap(at(0x1000_2000)))),
            (A,      8,  0x1000_1fff,           2,            Err(Overlap(at(0x1000_2000)))),
            (A,      8,  0x1000_4fff,           1,            Err(Overlap(at(0x1000_4000)))),
            (A,      8,  0x1000_0000,           0x1000_0000,  Err(Overlap(at(0x1000_4000)))),
            (A,      8,  0x1000_5000,           1,            Ok(())),
            (A,      24, 0x1000_6000,           0x1000,       Err(NotOwner(24))),
            (A,      32, 0x1000_6000,           0x1000,       Err(NotOwner(32))),
            (NOBODY, 8,  0x1000_6000,           0x1000,       Err(NoSuchServer(NOBODY))),
            (A,      8,  0x1000_6000,           0,            Err(NotARange)),
            (A,      8,  0x1000_6000,           u64::MAX,     Err(NotARange)),
            (A,      8,  0x0fff_ffff,           2,            Err(OutsideWindows)),
            (A,      8,  0x1fff_f000,           0x1001,       Err(OutsideWindows)),
            (A,      8,  0x1fff_f000,           0x1000,       Ok(())),
            (A,      8,  0x4000_0000,           0x1000,       Err(OutsideWindows)),
            (A,      8,  0x1fff_f000,           1 << 63,      Err(OutsideWindows)),
            (A,      8,  0xffff_ffff_ffff_f000, 0x1000,       Ok(())),
            (A,      8,  0xffff_ffff_ffff_f000, 0x1001,       Err(NotARange)),
        ];
        let mut registry = registry();
        for (server, sbdf, start, size, result) in cases {
            let got = registry.map(server, sbdf, at(start), size, MapFlags::NONE);
            assert_eq!(got, result, "{start:#x}+{size:#x}");
        }
        assert!(registry.ranges().is_sorted_by_key(|range| range.start));
    }

    #[test]
    #[rustfmt::skip]
    fn an_access_is_routed_if_it_lies_wholly_in_a_range() {
        let mut registry = registry();
        for (server, sbdf, start, size, flags) in [
            (A, 8,  0x1000_0000, 0x1000, MapFlags::NONE),
            (B, 24, 0x1000_1000, 0x10,   MapFlags::POSTED),
            (A, 16, 0x1800_0000, 4,      MapFlags::NONE),
        ] {
            registry.map(server, sbdf, at(start), size, flags).unwrap();
        }
        let cases = [
            (0x0fff_ffff, Width::One,   None),
            (0x1000_0000, Width::One,   Some((8,  "a", 0x1000_0000))),
            (0x1000_0ff8, Width::Eight, Some((8,  "a", 0x1000_0000))),
            (0x1000_0fff, Width::One,   Some((8,  "a", 0x1000_0000))),
            (0x1000_0ffc, Width::Eight, None), // crosses into the next
            (0x1000_1000, Width::Four,  Some((24, "b", 0x1000_1000))),
            (0x1000_100f, Width::One,   Some((24, "b", 0x1000_1000))),
            (0x1000_1010, Width::One,   None),
            (0x1800_0000, Width::Four,  Some((16, "a", 0x1800_0000))),
            (0x1800_0000, Width::Eight, None),
            (u64::MAX,    Width::One,   None),
            (u64::MAX,    Width::Two,   None),
            (0,           Width::One,   None),
        ];
        for (address, width, expected) in cases {
            let range = registry.route(at(address), width);
            let got = range.map(|range| (range.sbdf, range.handle, range.start.get()));
            assert_eq!(got, expected, "{address:#x} {width:?}");
        }
        let posted = registry.route(at(0x1000_1000), Width::One).unwrap();
        assert!(posted.flags.contains(MapFlags::POSTED));
        assert_eq!(posted.server, B);
    }

    #[test]
    fn a_range_is_given_back_by_the_function_that_claimed_it() {
        let mut registry = registry();
        let start = at(0x1000_0000);
        registry.map(A, 8, start, 16, MapFlags::NONE).unwrap();
        let cases = [
            (A, 16, start, Err(RegistryError::NoSuchRange(start))),
            (B, 24, start, Err(RegistryError::NoSuchRange(start))),
            (B, 8, start, Err(RegistryError::NotOwner(8))),
            (NOBODY, 8, start, Err(RegistryError::NoSuchServer(NOBODY))),
            (A, 8, at(1), Err(RegistryError::NoSuchRange(at(1)))),
            (A, 8, start, Ok(())),
            (A, 8, start, Err(RegistryError::NoSuchRange(start))),
        ];
        for (server, sbdf, start, result) in cases {
            assert_eq!(registry.unmap(server, sbdf, start), result);
        }
        assert_eq!(registry.route(start, Width::One), None);
    }

    #[test]
    fn a_function_has_one_owner_and_its_ranges_go_with_it() {
        let mut registry = registry();
        assert_eq!(
            registry.add_function(B, 8),
            Err(RegistryError::FunctionTaken(8))
        );
        assert_eq!(
            registry.add_function(NOBODY, 9),
            Err(RegistryError::NoSuchServer(NOBODY))
        );
        for (sbdf, start) in [(8, 0x1000_0000), (16, 0x1000_1000), (8, 0x1000_2000)] {
            let flags = MapFlags::NONE;
            registry.map(A, sbdf, at(start), 0x1000, flags).unwrap();
        }
        assert_eq!(
            registry.remove_function(B, 8),
            Err(RegistryError::NotOwner(8))
        );
        registry.remove_function(A, 8).unwrap();
        assert_eq!(registry.owner(8), None);
        assert_eq!(registry.ranges().len(), 1);
        registry.add_function(B, 8).unwrap();
        assert_eq!(registry.owner(8).unwrap().handle, "b");
        assert_eq!(registry.check_owner(B, 8).unwrap().server, B);
        registry.unmap_all(16);
        assert_eq!(registry.ranges(), []);
        assert_eq!(registry.owner(16).unwrap().server, A, "still its owner");
    }

    #[test]
    fn a_server_goes_with_all_that_it_owns() {
        let mut registry = registry();
        let flags = MapFlags::NONE;
        registry.map(A, 8, at(0x1000_0000), 1, flags).unwrap();
        registry.map(B, 24, at(0x1000_0001), 1, flags).unwrap();
        assert_eq!(
            registry.add_server(A, "c"),
            Err(RegistryError::ServerExists(A))
        );
        assert_eq!(registry.remove_server(A), Ok("a"));
        assert_eq!(
            registry.remove_server(A),
            Err(RegistryError::NoSuchServer(A))
        );
        assert_eq!(registry.functions().len(), 1);
        assert_eq!(registry.ranges().len(), 1);
        assert_eq!(registry.servers().collect::<vec::Vec<_>>(), [(B, &"b")]);
        assert_eq!(registry.handle(B), Ok(&"b"));
    }

    #[test]
    fn each_error_has_its_status() {
        let cases = [
            (RegistryError::NoSuchServer(A), Status::NotFound),
            (RegistryError::NoSuchRange(at(0)), Status::NotFound),
            (RegistryError::NotOwner(8), Status::Denied),
            (RegistryError::NotARange, Status::InvalidArgument),
            (RegistryError::OutsideWindows, Status::BadAddress),
            (RegistryError::Overlap(at(0)), Status::Busy),
            (RegistryError::ServerExists(A), Status::Busy),
            (RegistryError::FunctionTaken(8), Status::Busy),
            (RegistryError::NoMemory, Status::NoMemory),
        ];
        for (error, status) in cases {
            assert_eq!(Status::from(error), status, "{error:?}");
        }
    }
}
