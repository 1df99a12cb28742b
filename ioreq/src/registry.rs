//! Which server answers an access of one target: the functions and MMIO ranges that each owns.
//!
//! There is one registry for each target domain, so that no domain waits for another's lock. A
//! server is named by its id, and found by a handle of the kernel's choice (a reference to its
//! `Server`, say), which each entry has a copy of: one search finds it all.

use crate::ServerId;
use crate::request::Width;
use abi::{MapFlags, Status};
use alloc::collections::TryReserveError;
use alloc::vec::Vec;
use vpci::{BusAddress, BusRange, Sbdf};

/// How many ranges a function may claim, so that no device model uses up EL2's memory.
///
/// A function has at most six BARs and an expansion ROM (PCI Local Bus Specification 3.0, section
/// 6.2.5); each may be cut into parts whose writes are posted or not.
pub const CLAIMS_PER_FUNCTION: usize = 32;

/// The servers of one target, with what they own in it.
#[derive(Debug)]
pub struct Registry<H> {
    /// The windows of the host bridge, in which ranges may lie.
    windows: Vec<BusRange>,
    /// Sorted by id.
    servers: Vec<(ServerId, H)>,
    /// Sorted by SBDF.
    functions: Vec<Function<H>>,
    /// Sorted by start; none overlap.
    claims: Vec<Claim<H>>,
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
pub struct Claim<H> {
    /// The range.
    pub range: BusRange,
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
    NoSuchRange(BusAddress),
    /// The range is not wholly in one of the bridge's windows.
    OutsideWindows,
    /// Part of the range is claimed already; this claim starts there.
    Overlap(BusAddress),
    /// The function has claimed as many ranges as it may.
    TooManyClaims(Sbdf),
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
            RegistryError::OutsideWindows => Status::BadAddress,
            RegistryError::ServerExists(_)
            | RegistryError::FunctionTaken(_)
            | RegistryError::Overlap(_) => Status::Busy,
            RegistryError::TooManyClaims(_) | RegistryError::NoMemory => Status::NoMemory,
        }
    }
}

impl<H: Clone> Registry<H> {
    /// Makes the registry of a target whose bridge has these windows.
    pub fn new(windows: &[BusRange]) -> Result<Self, RegistryError> {
        let mut own = Vec::new();
        own.try_reserve_exact(windows.len())?;
        own.extend_from_slice(windows);
        Ok(Self {
            windows: own,
            servers: Vec::new(),
            functions: Vec::new(),
            claims: Vec::new(),
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
        self.claims.retain(|claim| claim.server != id);
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

    /// Claims a range for a function of a server.
    pub fn map(
        &mut self,
        id: ServerId,
        sbdf: Sbdf,
        range: BusRange,
        flags: MapFlags,
    ) -> Result<(), RegistryError> {
        let handle = self.check_owner(id, sbdf)?.handle.clone();
        if !self.windows.iter().any(|window| window.covers(range)) {
            return Err(RegistryError::OutsideWindows);
        }
        // All that start at or before our last byte; only the last of them can reach us.
        let place = self.claims_up_to(range.last());
        let below = place
            .checked_sub(1)
            .and_then(|below| self.claims.get(below));
        if let Some(below) = below.filter(|below| below.range.overlaps(range)) {
            return Err(RegistryError::Overlap(below.range.start()));
        }
        let claimed = self.claims.iter().filter(|claim| claim.sbdf == sbdf);
        if claimed.count() >= CLAIMS_PER_FUNCTION {
            return Err(RegistryError::TooManyClaims(sbdf));
        }
        self.claims.try_reserve(1)?;
        let claim = Claim {
            range,
            flags,
            sbdf,
            server: id,
            handle,
        };
        self.claims.insert(place, claim);
        Ok(())
    }

    /// Gives back the range that a function of a server claimed from `start`.
    pub fn unmap(
        &mut self,
        id: ServerId,
        sbdf: Sbdf,
        start: BusAddress,
    ) -> Result<(), RegistryError> {
        self.check_owner(id, sbdf)?;
        let place = self.claims_up_to(start).checked_sub(1);
        let is_it = |claim: &Claim<H>| claim.range.start() == start && claim.sbdf == sbdf;
        let place = place.filter(|&place| self.claims.get(place).is_some_and(is_it));
        self.claims
            .remove(place.ok_or(RegistryError::NoSuchRange(start))?);
        Ok(())
    }

    /// Gives back all ranges of a function: it is reset.
    pub fn unmap_all(&mut self, sbdf: Sbdf) {
        self.claims.retain(|claim| claim.sbdf != sbdf);
    }

    /// Returns the claim to the range in which an access lies, wholly.
    pub fn route(&self, address: BusAddress, width: Width) -> Option<&Claim<H>> {
        let place = self.claims_up_to(address).checked_sub(1)?;
        let access = BusRange::new(address, width.bytes())?;
        let claim = self.claims.get(place)?;
        claim.range.covers(access).then_some(claim)
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

    /// Returns all claims, by address.
    pub fn claims(&self) -> &[Claim<H>] {
        &self.claims
    }

    fn find_server(&self, id: ServerId) -> Result<usize, usize> {
        self.servers.binary_search_by_key(&id, |(id, _)| *id)
    }

    fn find_function(&self, sbdf: Sbdf) -> Result<usize, usize> {
        self.functions
            .binary_search_by_key(&sbdf, |function| function.sbdf)
    }

    /// Returns how many claims start at or before an address.
    fn claims_up_to(&self, address: BusAddress) -> usize {
        self.claims
            .partition_point(|claim| claim.range.start() <= address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec;

    const A: ServerId = ServerId::new(1);
    const B: ServerId = ServerId::new(2);
    const NOBODY: ServerId = ServerId::new(3);

    fn at(address: u64) -> BusAddress {
        BusAddress::new(address)
    }

    fn range(start: u64, size: u64) -> BusRange {
        BusRange::new(at(start), size).unwrap()
    }

    fn function(number: u32) -> Sbdf {
        Sbdf::from(number)
    }

    /// Servers "a" with functions 8 and 16, and "b" with function 24.
    fn registry() -> Registry<&'static str> {
        let windows = [
            range(0x1000_0000, 0x1000_0000),
            range(0xffff_ffff_ffff_0000, 0x1_0000),
        ];
        let mut registry = Registry::new(&windows).unwrap();
        registry.add_server(B, "b").unwrap();
        registry.add_server(A, "a").unwrap();
        for (server, sbdf) in [(A, 16), (A, 8), (B, 24)] {
            registry.add_function(server, function(sbdf)).unwrap();
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
            (A,      24, 0x1000_6000,           0x1000,       Err(NotOwner(function(24)))),
            (A,      32, 0x1000_6000,           0x1000,       Err(NotOwner(function(32)))),
            (NOBODY, 8,  0x1000_6000,           0x1000,       Err(NoSuchServer(NOBODY))),
            (A,      8,  0x0fff_ffff,           2,            Err(OutsideWindows)),
            (A,      8,  0x1fff_f000,           0x1001,       Err(OutsideWindows)),
            (A,      8,  0x1fff_f000,           0x1000,       Ok(())),
            (A,      8,  0x4000_0000,           0x1000,       Err(OutsideWindows)),
            (A,      8,  0x1fff_f000,           1 << 63,      Err(OutsideWindows)),
            (A,      8,  0xffff_ffff_ffff_f000, 0x1000,       Ok(())),
        ];
        let mut registry = registry();
        for (server, sbdf, start, size, result) in cases {
            let got = registry.map(server, function(sbdf), range(start, size), MapFlags::NONE);
            assert_eq!(got, result, "{start:#x}+{size:#x}");
        }
        assert!(registry.claims().is_sorted_by_key(|claim| claim.range.start()));
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
            registry.map(server, function(sbdf), range(start, size), flags).unwrap();
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
            let claim = registry.route(at(address), width);
            let got = claim.map(|claim| {
                (u32::from(claim.sbdf), claim.handle, claim.range.start().get())
            });
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
        registry
            .map(A, function(8), range(0x1000_0000, 16), MapFlags::NONE)
            .unwrap();
        let cases = [
            (A, 16, start, Err(RegistryError::NoSuchRange(start))),
            (B, 24, start, Err(RegistryError::NoSuchRange(start))),
            (B, 8, start, Err(RegistryError::NotOwner(function(8)))),
            (NOBODY, 8, start, Err(RegistryError::NoSuchServer(NOBODY))),
            (A, 8, at(1), Err(RegistryError::NoSuchRange(at(1)))),
            (A, 8, start, Ok(())),
            (A, 8, start, Err(RegistryError::NoSuchRange(start))),
        ];
        for (server, sbdf, start, result) in cases {
            assert_eq!(registry.unmap(server, function(sbdf), start), result);
        }
        assert_eq!(registry.route(start, Width::One), None);
    }

    #[test]
    fn a_function_claims_so_many_ranges_and_no_more() {
        let mut registry = registry();
        let mut claim = |number: u32, index| {
            let range = range(0x1000_0000 + index * 16, 16);
            registry.map(A, function(number), range, MapFlags::NONE)
        };
        for index in 0..CLAIMS_PER_FUNCTION as u64 {
            assert_eq!(claim(8, index), Ok(()));
        }
        let full = RegistryError::TooManyClaims(function(8));
        assert_eq!(claim(8, 100), Err(full));
        assert_eq!(claim(16, 100), Ok(()), "another has its own");
    }

    #[test]
    fn a_function_has_one_owner_and_its_ranges_go_with_it() {
        let mut registry = registry();
        assert_eq!(
            registry.add_function(B, function(8)),
            Err(RegistryError::FunctionTaken(function(8)))
        );
        assert_eq!(
            registry.add_function(NOBODY, function(9)),
            Err(RegistryError::NoSuchServer(NOBODY))
        );
        for (sbdf, start) in [(8, 0x1000_0000), (16, 0x1000_1000), (8, 0x1000_2000)] {
            let flags = MapFlags::NONE;
            registry
                .map(A, function(sbdf), range(start, 0x1000), flags)
                .unwrap();
        }
        assert_eq!(
            registry.remove_function(B, function(8)),
            Err(RegistryError::NotOwner(function(8)))
        );
        registry.remove_function(A, function(8)).unwrap();
        assert_eq!(registry.owner(function(8)), None);
        assert_eq!(registry.claims().len(), 1);
        registry.add_function(B, function(8)).unwrap();
        assert_eq!(registry.owner(function(8)).unwrap().handle, "b");
        assert_eq!(registry.check_owner(B, function(8)).unwrap().server, B);
        registry.unmap_all(function(16));
        assert_eq!(registry.claims(), []);
        assert_eq!(
            registry.owner(function(16)).unwrap().server,
            A,
            "still its owner"
        );
    }

    #[test]
    fn a_server_goes_with_all_that_it_owns() {
        let mut registry = registry();
        let flags = MapFlags::NONE;
        registry
            .map(A, function(8), range(0x1000_0000, 1), flags)
            .unwrap();
        registry
            .map(B, function(24), range(0x1000_0001, 1), flags)
            .unwrap();
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
        assert_eq!(registry.claims().len(), 1);
        assert_eq!(registry.servers().collect::<vec::Vec<_>>(), [(B, &"b")]);
        assert_eq!(registry.handle(B), Ok(&"b"));
    }

    #[test]
    fn each_error_has_its_status() {
        let cases = [
            (RegistryError::NoSuchServer(A), Status::NotFound),
            (RegistryError::NoSuchRange(at(0)), Status::NotFound),
            (RegistryError::NotOwner(function(8)), Status::Denied),
            (RegistryError::OutsideWindows, Status::BadAddress),
            (RegistryError::Overlap(at(0)), Status::Busy),
            (RegistryError::ServerExists(A), Status::Busy),
            (RegistryError::FunctionTaken(function(8)), Status::Busy),
            (RegistryError::TooManyClaims(function(8)), Status::NoMemory),
            (RegistryError::NoMemory, Status::NoMemory),
        ];
        for (error, status) in cases {
            assert_eq!(Status::from(error), status, "{error:?}");
        }
    }
}
