//! Capabilities: where a function has them, and what those say that matters here.

use vpci::Offset;
use vpci::capability::{self, Capability, extended, id};

use crate::config::{ConfigSpace, Function};

/// IDs of capabilities, and of extended ones, that no guest is shown.
const ADVANCED: u8 = 0x13;
const ACS: u16 = 0x000d;
const SRIOV: u16 = 0x0010;

/// PMCSR in the power management capability (section 7.5.2.2).
pub(crate) const POWER_CONTROL: u16 = 4;
/// PMCSR: nothing is lost on the way from D3hot to D0.
const NO_SOFT_RESET: u16 = 1 << 3;
/// AF capabilities, bit 1: function level reset (PCI ECN "Advanced Capabilities for Conventional
/// PCI").
const ADVANCED_RESET: u8 = 1 << 1;

/// Where a function's capabilities are. The first of each kind counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// Power management (01h).
    pub power: Option<Offset>,
    /// Whether its power management resets it on the way from D3hot to D0 (No_Soft_Reset is 0).
    pub power_reset: bool,
    /// MSI (05h).
    pub msi: Option<Offset>,
    /// PCI Express (10h).
    pub express: Option<Offset>,
    /// MSI-X (11h).
    pub msix: Option<Offset>,
    /// How many vectors it can have, whichever of MSI and MSI-X is used.
    pub vectors: u16,
    /// Advanced features of conventional PCI (13h).
    pub advanced: Option<Offset>,
    /// Whether these can reset it.
    pub advanced_reset: bool,
    /// Access control services (extended, 000Dh).
    pub acs: Option<Offset>,
    /// Alternative routing ID (extended, 000Eh).
    pub ari: Option<Offset>,
    /// Single root I/O virtualization (extended, 0010h).
    pub sriov: Option<Offset>,
}

impl Capabilities {
    /// Walks both lists of a function. What ends outside of its part of config space is no capability.
    pub(crate) fn find<C: ConfigSpace + ?Sized>(function: Function<'_, C>) -> Self {
        let mut found = Self::default();
        for capability in capability::walk(&function) {
            let (place, size) = match u8::try_from(capability.id) {
                Ok(id::POWER) => (&mut found.power, 8),
                Ok(id::MSI) => (&mut found.msi, 12),
                Ok(id::EXPRESS) if function.read16(capability.offset + 2) & 0xf < 2 => {
                    (&mut found.express, 0x14)
                }
                Ok(id::EXPRESS) => (&mut found.express, 0x3c),
                Ok(id::MSIX) => (&mut found.msix, 12),
                Ok(ADVANCED) => (&mut found.advanced, 8),
                _ => continue,
            };
            note(place, capability, size, 0x100);
        }
        if let Some(offset) = found.power {
            let control = function.read16(offset.get() + POWER_CONTROL);
            found.power_reset = control & NO_SOFT_RESET == 0;
        }
        let control = |offset: Offset| function.read16(offset.get() + 2);
        // Multiple Message Capable, where 6 and 7 are reserved (7.7.1.2); Table Size (7.7.2.2).
        let by_msi = found.msi.map_or(0, |at| 1 << (control(at) >> 1 & 7).min(5));
        let by_msix = found.msix.map_or(0, |at| (control(at) & 0x7ff) + 1);
        found.vectors = by_msix.max(by_msi);
        if let Some(offset) = found.advanced {
            found.advanced_reset = function.read8(offset.get() + 3) & ADVANCED_RESET != 0;
        }
        if found.express.is_some() {
            for capability in capability::walk_extended(&function) {
                let (place, size) = match capability.id {
                    ACS => (&mut found.acs, 8),
                    extended::ARI => (&mut found.ari, 8),
                    SRIOV => (&mut found.sriov, 0x40),
                    _ => continue,
                };
                note(place, capability, size, Offset::SPACE);
            }
        }
        found
    }
}

/// Notes where a capability is, if it is the first of its kind that is whole: its `size` bytes end before
/// `end`.
fn note(place: &mut Option<Offset>, found: Capability, size: u16, end: u16) {
    let offset = Offset::new(found.offset).filter(|_| found.offset + size <= end);
    *place = place.or(offset);
}

/// What a PCI Express function is (section 7.5.3.2, Device/Port Type).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortKind {
    /// An endpoint, also a legacy one or one integrated into the root complex.
    Endpoint,
    /// A port of the root complex.
    RootPort,
    /// The port of a switch that looks to the root complex.
    UpstreamPort,
    /// A port of a switch that looks away from it.
    DownstreamPort,
    /// A bridge from PCI Express to conventional PCI.
    ToConventional,
    /// Something else, such as a bridge from conventional PCI.
    Other,
}

impl PortKind {
    /// Returns whether a link leads away from the root complex there, to a single device.
    pub(crate) fn is_above_link(self) -> bool {
        matches!(self, Self::RootPort | Self::DownstreamPort)
    }
}

/// Device Control in the PCI Express capability.
pub(crate) const DEVICE_CONTROL: u16 = 0x08;
/// Device Status.
pub(crate) const DEVICE_STATUS: u16 = 0x0a;
/// Link Capabilities, and Link Status.
pub(crate) const LINK_CAPABILITIES: u16 = 0x0c;
pub(crate) const LINK_STATUS: u16 = 0x12;
/// Device Capabilities 2, from version 2 of the capability on.
pub(crate) const DEVICE_CAPABILITIES_2: u16 = 0x24;
/// Device Control 2, from version 2 of the capability on.
pub(crate) const DEVICE_CONTROL_2: u16 = 0x28;
/// Device Capabilities 2 and Device Control 2: ARI Forwarding, supported and on (section 7.5.3.15).
const ARI_FORWARDING: u16 = 1 << 5;
/// ARI Capability, and where in it Next Function Number is (section 7.8.8.2).
pub(crate) const NEXT_FUNCTION: u16 = 0x05;
/// Device Control: initiate a function level reset.
pub(crate) const INITIATE_RESET: u16 = 1 << 15;

/// Device Control: requests may carry the names of functions that are not there (section 2.2.6.2).
const PHANTOM_FUNCTIONS: u16 = 1 << 9;

/// What the PCI Express capability says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Express {
    /// Where it is.
    pub offset: Offset,
    /// What the function is.
    pub kind: PortKind,
    /// Whether it can be reset alone.
    pub function_level_reset: bool,
    /// Whether a port tells if its link is up (Data Link Layer Link Active Reporting Capable).
    pub(crate) reports_link: bool,
    /// Device Control as firmware left it, since payload sizes fit together along a path; but requests carry
    /// the function's own name only.
    pub(crate) control: u16,
    /// Device Control 2, if there is one.
    pub(crate) control_2: Option<u16>,
}

impl Express {
    pub(crate) fn read<C: ConfigSpace + ?Sized>(function: Function<'_, C>, offset: Offset) -> Self {
        let base = offset.get();
        let flags = function.read16(base + 2);
        let kind = match flags >> 4 & 0xf {
            0 | 1 | 9 => PortKind::Endpoint,
            4 => PortKind::RootPort,
            5 => PortKind::UpstreamPort,
            6 => PortKind::DownstreamPort,
            7 => PortKind::ToConventional,
            _ => PortKind::Other,
        };
        Self {
            offset,
            kind,
            function_level_reset: function.read32(base + 4) & 1 << 28 != 0,
            reports_link: function.read32(base + LINK_CAPABILITIES) & 1 << 20 != 0,
            control: function.read16(base + DEVICE_CONTROL) & !(INITIATE_RESET | PHANTOM_FUNCTIONS),
            control_2: (flags & 0xf >= 2).then(|| function.read16(base + DEVICE_CONTROL_2)),
        }
    }

    /// Makes a port forward to all function numbers of the device below (section 6.13), if it can; returns
    /// whether it does.
    pub(crate) fn forward_all<C: ConfigSpace + ?Sized>(
        &mut self,
        function: Function<'_, C>,
    ) -> bool {
        let base = self.offset.get();
        let Some(control) = &mut self.control_2 else {
            return false;
        };
        if function.read16(base + DEVICE_CAPABILITIES_2) & ARI_FORWARDING == 0 {
            return false;
        }
        *control |= ARI_FORWARDING;
        function.write16(base + DEVICE_CONTROL_2, *control);
        true
    }

    /// Sets the control registers to what they were.
    pub(crate) fn restore<C: ConfigSpace + ?Sized>(self, function: Function<'_, C>) {
        function.write16(self.offset.get() + DEVICE_CONTROL, self.control);
        if let Some(control) = self.control_2 {
            function.write16(self.offset.get() + DEVICE_CONTROL_2, control);
        }
    }
}

/// Access control services of a function: what it has, and what is on (section 7.7.11).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Acs {
    /// What the function can do.
    pub capability: u16,
    /// What of it is on.
    pub enabled: u16,
}

impl Acs {
    /// Requests that claim another bus are refused.
    pub const SOURCE_VALIDATION: u16 = 1 << 0;
    /// Requests with addresses that the device says are translated are refused: ATS is off.
    pub const TRANSLATION_BLOCKING: u16 = 1 << 1;
    /// Requests to peers go through the root complex.
    pub const REQUEST_REDIRECT: u16 = 1 << 2;
    /// And so do their completions.
    pub const COMPLETION_REDIRECT: u16 = 1 << 3;
    /// What comes back from there is let through.
    pub const UPSTREAM_FORWARDING: u16 = 1 << 4;
    /// What a port needs to keep apart what is below it.
    pub const ISOLATION: u16 = Self::SOURCE_VALIDATION
        | Self::REQUEST_REDIRECT
        | Self::COMPLETION_REDIRECT
        | Self::UPSTREAM_FORWARDING;

    /// Turns on what isolates, what blocks translated requests, and nothing else.
    pub(crate) fn enable<C: ConfigSpace + ?Sized>(
        function: Function<'_, C>,
        offset: Option<Offset>,
    ) -> Self {
        let Some(offset) = offset.map(Offset::get) else {
            return Self::default();
        };
        let capability = function.read16(offset + 4);
        let wanted = Self::ISOLATION | Self::TRANSLATION_BLOCKING;
        function.write16(offset + 6, capability & wanted);
        Self {
            capability,
            enabled: function.read16(offset + 6),
        }
    }

    /// Returns whether a port keeps apart what is below it.
    pub fn isolates_port(self) -> bool {
        self.enabled & Self::ISOLATION == Self::ISOLATION
    }

    /// Returns whether a function of a device with several is kept apart from the others: what it
    /// has of redirection is on. One that lacks the capability may reach its siblings unseen, one
    /// that has it without redirection does not send to peers (section 6.12.1.2).
    pub fn isolates_function(self, has_capability: bool) -> bool {
        let redirection = Self::REQUEST_REDIRECT | Self::COMPLETION_REDIRECT;
        has_capability && self.capability & redirection & !self.enabled == 0
    }
}
