//! Isolation groups: functions that cannot be kept apart, and so go to one domain together.
//!
//! The SMMU tells requesters apart by what arrives at the root complex. Functions that arrive under
//! one ID are one to it, and functions that can reach each other on the way there never arrive.

use alloc::vec::Vec;
use core::fmt;

use vpci::Sbdf;

use crate::capability::PortKind;
use crate::device::{Device, Header, Hierarchy};
use crate::{OutOfMemory, push};

/// Why functions cannot be kept apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Their requests carry the same ID.
    SharedId(u32),
    /// They are functions of this device, which does not redirect what they send to each other.
    MultiFunction(Sbdf),
    /// They are below this port or bridge, which does not isolate.
    Below(Sbdf),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SharedId(id) => write!(f, "their requests all arrive as {id:#x}"),
            Self::MultiFunction(first) => {
                write!(f, "device {first} does not keep its functions apart")
            }
            Self::Below(port) => write!(f, "{port} does not keep apart what is below it"),
        }
    }
}

/// The groups of a hierarchy.
pub struct Groups {
    /// For each function, the first of its group; and why it is there, if it is not alone.
    first: Vec<(usize, Option<Reason>)>,
}

impl Groups {
    /// Finds the groups. `stream` tells which SMMU knows a requester ID, and by which ID; those that
    /// none knows are told apart as they are.
    pub fn find(
        found: &Hierarchy,
        stream: impl Fn(u16) -> Option<(u32, u32)>,
    ) -> Result<Self, OutOfMemory> {
        let mut groups = Self { first: Vec::new() };
        for index in 0..found.devices.len() {
            push(&mut groups.first, (index, None))?;
        }
        groups.join_same_ids(found, stream)?;
        for (index, device) in found.devices.iter().enumerate() {
            groups.join_siblings(found, index, device);
            groups.join_below(found, index, device);
        }
        Ok(groups)
    }

    /// Returns why a function is in a group with others.
    pub fn reason(&self, index: usize) -> Option<Reason> {
        let root = self.root(index);
        self.first
            .iter()
            .enumerate()
            .find_map(|(member, (_, reason))| reason.filter(|_| self.root(member) == root))
    }

    /// Returns the endpoints in a function's group, with their positions in the hierarchy. Bridges are
    /// nobody's.
    pub fn positions<'a>(
        &'a self,
        found: &'a Hierarchy,
        index: usize,
    ) -> impl Iterator<Item = (usize, &'a Device)> {
        let root = self.root(index);
        found
            .devices
            .iter()
            .enumerate()
            .filter(move |(member, _)| self.root(*member) == root)
            .filter(|(_, device)| matches!(device.header, Header::Endpoint))
    }

    fn root(&self, mut index: usize) -> usize {
        while let Some((next, _)) = self.first.get(index) {
            if *next == index {
                break;
            }
            index = *next;
        }
        index
    }

    /// Makes one group of two: the one whose first function comes first takes the other in.
    fn join(&mut self, one: usize, other: usize, reason: Reason) {
        let (one, other) = (self.root(one), self.root(other));
        if one != other
            && let Some(entry) = self.first.get_mut(one.max(other))
        {
            *entry = (one.min(other), Some(reason));
        }
    }

    fn join_same_ids(
        &mut self,
        found: &Hierarchy,
        stream: impl Fn(u16) -> Option<(u32, u32)>,
    ) -> Result<(), OutOfMemory> {
        let mut ids = Vec::new();
        for (index, device) in found.devices.iter().enumerate() {
            // A bridge's own requests are rare, and EL2's.
            if device.bridge().is_none() {
                for rid in found.requester_ids(device) {
                    let known = stream(rid);
                    let (smmu, id) =
                        known.map_or((None, rid.into()), |(smmu, id)| (Some(smmu), id));
                    push(&mut ids, ((smmu, id), index))?;
                }
            }
        }
        ids.sort_unstable();
        for pair in ids.windows(2) {
            if let [(id, one), (same, other)] = pair
                && id == same
            {
                self.join(*one, *other, Reason::SharedId(id.1));
            }
        }
        Ok(())
    }

    /// Joins a function that lacks what keeps it from its siblings with all functions of its device.
    ///
    /// A virtual function without access control services has no way to its siblings: those of an SR-IOV
    /// device that could send to each other have the capability (section 6.12.1.2). One that has it, and
    /// does not redirect, goes with its physical function.
    fn join_siblings(&mut self, found: &Hierarchy, index: usize, device: &Device) {
        let has_acs = device.capabilities.acs.is_some();
        let is_isolated = match (device.virtual_function, device.port()) {
            (Some(_), _) => !has_acs || device.acs.isolates_function(has_acs),
            (None, Some(PortKind::RootPort | PortKind::DownstreamPort)) => {
                device.acs.isolates_port()
            }
            (None, _) => device.acs.isolates_function(has_acs),
        };
        if is_isolated {
            return;
        }
        if let Some(own) = device.virtual_function {
            if let Some(physical) = found.position(own.physical) {
                self.join(physical, index, Reason::MultiFunction(own.physical));
            }
            return;
        }
        let parent = device.parent.and_then(|parent| found.devices.get(parent));
        let is_alone = parent
            .and_then(Device::port)
            .is_some_and(PortKind::is_above_link);
        // A link leads to one device; with ARI it has all the numbers of its bus (section 6.13).
        let function_0 = |sbdf: Sbdf| match is_alone {
            true => Sbdf::from_rid(sbdf.segment(), sbdf.rid() & 0xff00),
            false => sbdf.sibling(0).unwrap_or(sbdf),
        };
        let first = function_0(device.sbdf);
        let siblings = found.devices.iter().enumerate();
        let start = found.devices.partition_point(|other| other.sbdf < first);
        for (sibling, other) in siblings.skip(start) {
            if function_0(other.sbdf) != first {
                break;
            }
            if other.virtual_function.is_none() {
                self.join(sibling, index, Reason::MultiFunction(first));
            }
        }
    }

    /// Joins everything below a port that does not isolate; if that is a port of a switch, everything
    /// below the switch, since what enters by this port can leave by any other.
    fn join_below(&mut self, found: &Hierarchy, index: usize, device: &Device) {
        let Some(bridge) = device.bridge() else {
            return;
        };
        let (top, below) = match device.port() {
            Some(PortKind::RootPort | PortKind::DownstreamPort) if device.acs.isolates_port() => {
                return;
            }
            // What is below a switch is up to its ports that look down.
            Some(PortKind::UpstreamPort) => return,
            Some(PortKind::DownstreamPort) => {
                let parent = device
                    .parent
                    .and_then(|parent| Some((parent, found.devices.get(parent)?)));
                match parent.and_then(|(parent, switch)| Some((parent, switch.bridge()?))) {
                    Some((parent, switch)) => (parent, switch.below.clone()),
                    None => (index, bridge.below.clone()),
                }
            }
            _ => (index, bridge.below.clone()),
        };
        for member in below {
            self.join(top, member, Reason::Below(device.sbdf));
        }
    }
}
