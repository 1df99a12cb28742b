//! The tables of a root port that EL2 emulates.
//!
//! Sections are those of the PCI Express Base Specification, revision 6.0. A bit that has no row is
//! hidden, as in [`crate::tables`]: it reads as zero, and writes to it are ignored. Nothing here is
//! read from a device.

use crate::register::Access::{Emulated, Fixed, Hidden, Writable};
use crate::register::{Access, Field, Table};

const fn field(
    offset: u16,
    mask: u32,
    access: Access,
    section: &'static str,
    name: &'static str,
) -> Field {
    Field {
        offset,
        mask,
        access,
        section,
        name,
        why: "",
    }
}

/// Type 1 header. The port has no BAR, no I/O window and no interrupt pin; it detects no error, so
/// both Status registers stay clear.
#[rustfmt::skip]
pub const HEADER: Table = Table { name: "Type 1 header", section: "7.5.1.3", size: 0x40, fields: &[
    field(0x00, 0x0000_ffff, Fixed,    "7.5.1.1.1",  "Vendor ID"),
    field(0x00, 0xffff_0000, Fixed,    "7.5.1.1.2",  "Device ID"),
    field(0x04, 0x0000_0001, Hidden,   "7.5.1.1.3",  "I/O Space Enable"),
    field(0x04, 0x0000_0002, Emulated, "7.5.1.1.3",  "Memory Space Enable"),
    field(0x04, 0x0000_0004, Emulated, "7.5.1.1.3",  "Bus Master Enable"),
    field(0x04, 0x0000_0040, Writable, "7.5.1.1.3",  "Parity Error Response"),
    field(0x04, 0x0000_0100, Writable, "7.5.1.1.3",  "SERR# Enable"),
    field(0x04, 0x0000_0400, Hidden,   "7.5.1.1.3",  "Interrupt Disable"), // it has no pin
    field(0x04, 0x0010_0000, Fixed,    "7.5.1.1.4",  "Capabilities List"),
    field(0x04, 0xf900_0000, Hidden,   "7.5.1.1.4",  "Errors in Status"),
    field(0x08, 0x0000_00ff, Fixed,    "7.5.1.1.5",  "Revision ID"),
    field(0x08, 0xffff_ff00, Fixed,    "7.5.1.1.6",  "Class Code"),
    field(0x0c, 0x0000_00ff, Writable, "7.5.1.1.7",  "Cache Line Size"),
    field(0x0c, 0x0000_ff00, Hidden,   "7.5.1.1.8",  "Latency Timer"),
    field(0x0c, 0x007f_0000, Fixed,    "7.5.1.1.9",  "Header Layout"),
    field(0x0c, 0x0080_0000, Fixed,    "7.5.1.1.9",  "Multi-Function Device"), // filled in by the bus
    field(0x0c, 0xff00_0000, Hidden,   "7.5.1.1.10", "BIST"),
    field(0x10, 0xffff_ffff, Hidden,   "7.5.1.3.1",  "Base Address Register 0"),
    field(0x14, 0xffff_ffff, Hidden,   "7.5.1.3.1",  "Base Address Register 1"),
    field(0x18, 0x0000_00ff, Writable, "7.5.1.3.2",  "Primary Bus Number"),
    field(0x18, 0x0000_ff00, Emulated, "7.5.1.3.3",  "Secondary Bus Number"),
    field(0x18, 0x00ff_0000, Emulated, "7.5.1.3.4",  "Subordinate Bus Number"),
    field(0x18, 0xff00_0000, Hidden,   "7.5.1.3.5",  "Secondary Latency Timer"),
    field(0x1c, 0x0000_ffff, Hidden,   "7.5.1.3.6",  "I/O Base, I/O Limit"),
    field(0x1c, 0xffff_0000, Hidden,   "7.5.1.3.7",  "Secondary Status"),
    field(0x20, 0x0000_fff0, Emulated, "7.5.1.3.8",  "Memory Base"),
    field(0x20, 0xfff0_0000, Emulated, "7.5.1.3.8",  "Memory Limit"),
    field(0x24, 0x0001_0001, Fixed,    "7.5.1.3.9",  "Prefetchable memory is 64-bit"),
    field(0x24, 0x0000_fff0, Emulated, "7.5.1.3.9",  "Prefetchable Memory Base"),
    field(0x24, 0xfff0_0000, Emulated, "7.5.1.3.9",  "Prefetchable Memory Limit"),
    field(0x28, 0xffff_ffff, Emulated, "7.5.1.3.10", "Prefetchable Base Upper 32 Bits"),
    field(0x2c, 0xffff_ffff, Emulated, "7.5.1.3.10", "Prefetchable Limit Upper 32 Bits"),
    field(0x30, 0xffff_ffff, Hidden,   "7.5.1.3.11", "I/O Base, I/O Limit Upper 16 Bits"),
    field(0x34, 0x0000_00ff, Fixed,    "7.5.1.1.11", "Capabilities Pointer"),
    field(0x38, 0xffff_ffff, Hidden,   "7.5.1.3.12", "Expansion ROM Base Address"),
    field(0x3c, 0x0000_00ff, Writable, "7.5.1.1.12", "Interrupt Line"),
    field(0x3c, 0x0000_ff00, Hidden,   "7.5.1.1.13", "Interrupt Pin"),
    field(0x3c, 0x0001_0000, Writable, "7.5.1.3.13", "Parity Error Response Enable"),
    field(0x3c, 0x0002_0000, Writable, "7.5.1.3.13", "SERR# Enable"),
    field(0x3c, 0x0004_0000, Hidden,   "7.5.1.3.13", "ISA Enable"), // without an I/O window
    field(0x3c, 0x0018_0000, Hidden,   "7.5.1.3.13", "VGA Enable, VGA 16-bit Decode"),
    field(0x3c, 0x0040_0000, Emulated, "7.5.1.3.13", "Secondary Bus Reset"),
] };

/// PCI Express, as a root port has it. A slot is not implemented: Presence Detect State is one.
#[rustfmt::skip]
pub const EXPRESS: Table = Table { name: "PCI Express, root port", section: "7.5.3", size: 0x3c, fields: &[
    field(0x00, 0x0000_00ff, Fixed,    "7.5.3.1",    "Capability ID"),
    field(0x00, 0x0000_ff00, Fixed,    "7.5.3.1",    "Next Capability Pointer"),
    field(0x00, 0x000f_0000, Fixed,    "7.5.3.2",    "Capability Version"),
    field(0x00, 0x00f0_0000, Fixed,    "7.5.3.2",    "Device/Port Type"),
    field(0x00, 0x0100_0000, Fixed,    "7.5.3.2",    "Slot Implemented"),
    field(0x04, 0x0000_0007, Fixed,    "7.5.3.3",    "Max_Payload_Size Supported"),
    field(0x04, 0x0000_8000, Fixed,    "7.5.3.3",    "Role-Based Error Reporting"),
    field(0x08, 0x0000_000f, Writable, "7.5.3.4",    "Error Reporting Enables"),
    field(0x08, 0x0000_0010, Writable, "7.5.3.4",    "Enable Relaxed Ordering"),
    field(0x08, 0x0000_00e0, Writable, "7.5.3.4",    "Max_Payload_Size"),
    field(0x08, 0x0000_7000, Writable, "7.5.3.4",    "Max_Read_Request_Size"),
    field(0x08, 0x003f_0000, Hidden,   "7.5.3.5",    "Device Status"), // it detects no error
    field(0x0c, 0x0000_03ff, Fixed,    "7.5.3.6",    "Max Link Speed, Maximum Link Width"),
    field(0x0c, 0x0000_0c00, Hidden,   "7.5.3.6",    "ASPM Support"),
    field(0x0c, 0x0010_0000, Fixed,    "7.5.3.6",    "Data Link Layer Link Active Reporting Capable"),
    field(0x0c, 0x0020_0000, Fixed,    "7.5.3.6",    "Link Bandwidth Notification Capability"),
    field(0x0c, 0x0040_0000, Fixed,    "7.5.3.6",    "ASPM Optionality Compliance"),
    field(0x0c, 0xff00_0000, Fixed,    "7.5.3.6",    "Port Number"),
    field(0x10, 0x0000_0010, Emulated, "7.5.3.7",    "Link Disable"),
    field(0x10, 0x0000_0020, Fixed,    "7.5.3.7",    "Retrain Link"), // reads as zero, and is done at once
    field(0x10, 0x0000_00c0, Writable, "7.5.3.7",    "Common Clock Configuration, Extended Synch"),
    field(0x10, 0x0000_0c00, Writable, "7.5.3.7",    "Link Bandwidth Interrupt Enables"),
    field(0x10, 0x03ff_0000, Fixed,    "7.5.3.8",    "Current Link Speed, Negotiated Link Width"),
    field(0x10, 0x1000_0000, Fixed,    "7.5.3.8",    "Slot Clock Configuration"),
    field(0x10, 0x2000_0000, Fixed,    "7.5.3.8",    "Data Link Layer Link Active"), // while the link is up
    field(0x14, 0xffff_ffff, Hidden,   "7.5.3.9",    "Slot Capabilities"),
    field(0x18, 0x0040_0000, Fixed,    "7.5.3.11",   "Presence Detect State"),
    field(0x1c, 0x0000_000f, Writable, "7.5.3.12",   "System Error Enables, PME Interrupt Enable"),
    field(0x1c, 0x0000_0010, Hidden,   "7.5.3.12",   "Configuration RRS Software Visibility Enable"),
    field(0x20, 0xffff_ffff, Hidden,   "7.5.3.14",   "Root Status"),
    field(0x2c, 0x0000_00fe, Fixed,    "7.5.3.18",   "Supported Link Speeds Vector"),
    field(0x30, 0x0000_000f, Writable, "7.5.3.19",   "Target Link Speed"),
] };

/// What a port has in addition that may forward requests to all 256 functions of an ARI device.
#[rustfmt::skip]
pub const ARI: Table = Table { name: "ARI Forwarding", section: "7.5.3.15", size: 0x3c, fields: &[
    field(0x24, 0x0000_0020, Fixed,    "7.5.3.15",   "ARI Forwarding Supported"),
    field(0x28, 0x0000_0020, Emulated, "7.5.3.16",   "ARI Forwarding Enable"),
] };

/// MSI with one vector. The port has nothing to say yet, so none is ever sent.
#[rustfmt::skip]
pub const MSI: Table = Table { name: "MSI, root port", section: "7.7.1", size: 16, fields: &[
    field(0x00, 0x0000_00ff, Fixed,    "7.7.1.1",    "Capability ID"),
    field(0x00, 0x0000_ff00, Fixed,    "7.7.1.1",    "Next Capability Pointer"),
    field(0x00, 0x0001_0000, Writable, "7.7.1.2",    "MSI Enable"),
    field(0x00, 0x0080_0000, Fixed,    "7.7.1.2",    "64-bit Address Capable"),
    field(0x04, 0xffff_fffc, Writable, "7.7.1.3",    "Message Address"),
    field(0x08, 0xffff_ffff, Writable, "7.7.1.4",    "Message Upper Address"),
    field(0x0c, 0x0000_ffff, Writable, "7.7.1.5",    "Message Data"),
] };

/// Power management: D0 and D3hot, and no PME.
#[rustfmt::skip]
pub const POWER: Table = Table { name: "PCI Power Management, root port", section: "7.5.2", size: 8, fields: &[
    field(0x00, 0x0000_00ff, Fixed,    "7.5.2.1",    "Capability ID"),
    field(0x00, 0x0000_ff00, Fixed,    "7.5.2.1",    "Next Capability Pointer"),
    field(0x00, 0x0007_0000, Fixed,    "7.5.2.1",    "Version"),
    field(0x04, 0x0000_0003, Emulated, "7.5.2.2",    "PowerState"),
    field(0x04, 0x0000_0008, Fixed,    "7.5.2.2",    "No_Soft_Reset"),
] };

/// Every table of this module.
pub const ALL: &[&Table] = &[&HEADER, &EXPRESS, &ARI, &MSI, &POWER];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_fields_share_a_bit_and_each_is_inside_its_structure() {
        for table in ALL {
            assert!(table.size.is_multiple_of(4), "{}", table.name);
            let fields = table.fields.iter().enumerate();
            for (index, field) in fields {
                let inside = field.offset.is_multiple_of(4) && field.offset < table.size;
                assert!(inside && field.mask != 0, "{}: {}", table.name, field.name);
                let others = table.fields.iter().take(index);
                let mut shared = others
                    .filter(|other| other.offset == field.offset && other.mask & field.mask != 0);
                assert!(shared.next().is_none(), "{}: {}", table.name, field.name);
            }
        }
        for field in ARI.fields {
            let base = EXPRESS.fields.iter();
            let mut shared =
                base.filter(|other| other.offset == field.offset && other.mask & field.mask != 0);
            assert!(shared.next().is_none(), "{}", field.name);
        }
    }

    #[test]
    fn nothing_comes_from_a_device() {
        for table in ALL {
            for offset in (0..table.size).step_by(4) {
                let register = table.register(offset);
                let device = register.copied | register.live;
                assert_eq!(device, 0, "{} at {offset:#x}", table.name);
            }
        }
    }
}
