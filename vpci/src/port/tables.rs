//! The tables of a root port that EL2 emulates.
//!
//! Sections are those of the PCI Express Base Specification, revision 6.0. Every bit of every structure
//! has a row, as in [`crate::tables`], and the same page of documentation comes of them. Nothing here
//! is read from a device.

use crate::register::Access::{Emulated, Fixed, Hidden, Writable};
use crate::register::Table;
use crate::tables::field;

const NO_MESSAGES: &str = "Kept, and nothing follows: no error and no PME is ever reported";

/// Type 1 header. The port has no BAR, no I/O window and no interrupt pin; it detects no error, so
/// both Status registers stay clear.
#[rustfmt::skip]
pub const HEADER: Table = Table { name: "Root port: type 1 header", section: "7.5.1.3", size: 0x40, fields: &[
    field(0x00, 0x0000_ffff, Fixed,    "7.5.1.1.1",  "Vendor ID")
        .because("QEMU's root port, so that guests know it"),
    field(0x00, 0xffff_0000, Fixed,    "7.5.1.1.2",  "Device ID"),
    field(0x04, 0x0000_0001, Hidden,   "7.5.1.1.3",  "I/O Space Enable"),
    field(0x04, 0x0000_0002, Emulated, "7.5.1.1.3",  "Memory Space Enable"),
    field(0x04, 0x0000_0004, Emulated, "7.5.1.1.3",  "Bus Master Enable"),
    field(0x04, 0x0000_0038, Hidden,   "7.5.1.1.3",  "Special Cycle Enable, Memory Write and Invalidate, VGA Palette Snoop"),
    field(0x04, 0x0000_0040, Writable, "7.5.1.1.3",  "Parity Error Response"),
    field(0x04, 0x0000_0080, Hidden,   "7.5.1.1.3",  "IDSEL Stepping/Wait Cycle Control"),
    field(0x04, 0x0000_0100, Writable, "7.5.1.1.3",  "SERR# Enable"),
    field(0x04, 0x0000_0200, Hidden,   "7.5.1.1.3",  "Fast Back-to-Back Transactions Enable"),
    field(0x04, 0x0000_0400, Hidden,   "7.5.1.1.3",  "Interrupt Disable")
        .because("It has no pin"),
    field(0x04, 0x0000_f800, Hidden,   "7.5.1.1.3",  "Reserved"),
    field(0x04, 0x0001_0000, Hidden,   "7.5.1.1.4",  "Immediate Readiness"),
    field(0x04, 0x0006_0000, Hidden,   "7.5.1.1.4",  "Reserved"),
    field(0x04, 0x0008_0000, Hidden,   "7.5.1.1.4",  "Interrupt Status"),
    field(0x04, 0x0010_0000, Fixed,    "7.5.1.1.4",  "Capabilities List"),
    field(0x04, 0x0020_0000, Hidden,   "7.5.1.1.4",  "66 MHz Capable"),
    field(0x04, 0x0040_0000, Hidden,   "7.5.1.1.4",  "Reserved"),
    field(0x04, 0x0080_0000, Hidden,   "7.5.1.1.4",  "Fast Back-to-Back Transactions Capable"),
    field(0x04, 0x0600_0000, Hidden,   "7.5.1.1.4",  "DEVSEL Timing"),
    field(0x04, 0xf900_0000, Hidden,   "7.5.1.1.4",  "Master Data Parity Error, Signaled Target Abort, Received Target Abort, Received Master Abort, Signaled System Error, Detected Parity Error"),
    field(0x08, 0x0000_00ff, Fixed,    "7.5.1.1.5",  "Revision ID"),
    field(0x08, 0xffff_ff00, Fixed,    "7.5.1.1.6",  "Class Code"),
    field(0x0c, 0x0000_00ff, Writable, "7.5.1.1.7",  "Cache Line Size"),
    field(0x0c, 0x0000_ff00, Hidden,   "7.5.1.1.8",  "Latency Timer"),
    field(0x0c, 0x007f_0000, Fixed,    "7.5.1.1.9",  "Header Layout"),
    field(0x0c, 0x0080_0000, Fixed,    "7.5.1.1.9",  "Multi-Function Device")
        .because("Says what is on the domain's bus"),
    field(0x0c, 0xff00_0000, Hidden,   "7.5.1.1.10", "BIST"),
    field(0x10, 0xffff_ffff, Hidden,   "7.5.1.2.1",  "Base Address Register 0"),
    field(0x14, 0xffff_ffff, Hidden,   "7.5.1.2.1",  "Base Address Register 1"),
    field(0x18, 0x0000_00ff, Writable, "7.5.1.3.2",  "Primary Bus Number"),
    field(0x18, 0x0000_ff00, Emulated, "7.5.1.3.3",  "Secondary Bus Number"),
    field(0x18, 0x00ff_0000, Emulated, "7.5.1.3.4",  "Subordinate Bus Number"),
    field(0x18, 0xff00_0000, Hidden,   "7.5.1.3.5",  "Secondary Latency Timer"),
    field(0x1c, 0x0000_ffff, Hidden,   "7.5.1.3.6",  "I/O Base, I/O Limit"),
    field(0x1c, 0xffff_0000, Hidden,   "7.5.1.3.7",  "Secondary Status"),
    field(0x20, 0x000f_000f, Hidden,   "7.5.1.3.8",  "Memory Base and Limit, read-only bits"),
    field(0x20, 0x0000_fff0, Emulated, "7.5.1.3.8",  "Memory Base"),
    field(0x20, 0xfff0_0000, Emulated, "7.5.1.3.8",  "Memory Limit"),
    field(0x24, 0x000f_000f, Fixed,    "7.5.1.3.9",  "Prefetchable Memory Base and Limit, read-only bits")
        .because("One: the window has 64-bit addresses"),
    field(0x24, 0x0000_fff0, Emulated, "7.5.1.3.9",  "Prefetchable Memory Base"),
    field(0x24, 0xfff0_0000, Emulated, "7.5.1.3.9",  "Prefetchable Memory Limit"),
    field(0x28, 0xffff_ffff, Emulated, "7.5.1.3.10", "Prefetchable Base Upper 32 Bits"),
    field(0x2c, 0xffff_ffff, Emulated, "7.5.1.3.10", "Prefetchable Limit Upper 32 Bits"),
    field(0x30, 0xffff_ffff, Hidden,   "7.5.1.3.11", "I/O Base, I/O Limit Upper 16 Bits"),
    field(0x34, 0x0000_00ff, Fixed,    "7.5.1.1.11", "Capabilities Pointer"),
    field(0x34, 0xffff_ff00, Hidden,   "7.5.1.3",    "Reserved"),
    field(0x38, 0xffff_ffff, Hidden,   "7.5.1.3.12", "Expansion ROM Base Address"),
    field(0x3c, 0x0000_00ff, Writable, "7.5.1.1.12", "Interrupt Line"),
    field(0x3c, 0x0000_ff00, Hidden,   "7.5.1.1.13", "Interrupt Pin"),
    field(0x3c, 0x0003_0000, Writable, "7.5.1.3.13", "Parity Error Response Enable, SERR# Enable")
        .because(NO_MESSAGES),
    field(0x3c, 0x0004_0000, Hidden,   "7.5.1.3.13", "ISA Enable")
        .because("There is no I/O window"),
    field(0x3c, 0x0018_0000, Hidden,   "7.5.1.3.13", "VGA Enable, VGA 16-bit Decode"),
    field(0x3c, 0x0020_0000, Hidden,   "7.5.1.3.13", "Master Abort Mode"),
    field(0x3c, 0x0040_0000, Emulated, "7.5.1.3.13", "Secondary Bus Reset"),
    field(0x3c, 0x0f80_0000, Hidden,   "7.5.1.3.13", "Fast Back-to-Back Transactions Enable, discard timers"),
    field(0x3c, 0xf000_0000, Hidden,   "7.5.1.3.13", "Reserved"),
] };

/// PCI Express, as a root port has it. A slot is not implemented: Presence Detect State is one.
#[rustfmt::skip]
pub const EXPRESS: Table = Table { name: "Root port: PCI Express (10h)", section: "7.5.3", size: 0x3c, fields: &[
    field(0x00, 0x0000_00ff, Fixed,    "7.5.3.1",    "Capability ID"),
    field(0x00, 0x0000_ff00, Fixed,    "7.5.3.1",    "Next Capability Pointer"),
    field(0x00, 0x000f_0000, Fixed,    "7.5.3.2",    "Capability Version"),
    field(0x00, 0x00f0_0000, Fixed,    "7.5.3.2",    "Device/Port Type"),
    field(0x00, 0x0100_0000, Fixed,    "7.5.3.2",    "Slot Implemented")
        .because("Zero: there is no hot-plug"),
    field(0x00, 0x3e00_0000, Fixed,    "7.5.3.2",    "Interrupt Message Number"),
    field(0x00, 0xc000_0000, Hidden,   "7.5.3.2",    "Undefined, Flit Mode Supported"),
    field(0x04, 0x0000_0007, Fixed,    "7.5.3.3",    "Max_Payload_Size Supported"),
    field(0x04, 0x0000_0038, Hidden,   "7.5.3.3",    "Phantom Functions Supported, Extended Tag Field Supported"),
    field(0x04, 0x0000_0fc0, Hidden,   "7.5.3.3",    "Endpoint L0s Acceptable Latency, Endpoint L1 Acceptable Latency"),
    field(0x04, 0x0000_7000, Hidden,   "7.5.3.3",    "Undefined"),
    field(0x04, 0x0000_8000, Fixed,    "7.5.3.3",    "Role-Based Error Reporting"),
    field(0x04, 0x0003_0000, Hidden,   "7.5.3.3",    "ERR_COR Subclass Capable, Rx_MPS_Fixed"),
    field(0x04, 0x0ffc_0000, Hidden,   "7.5.3.3",    "Captured Slot Power Limit Value, Captured Slot Power Limit Scale"),
    field(0x04, 0x1000_0000, Hidden,   "7.5.3.3",    "Function Level Reset Capability"),
    field(0x04, 0xe000_0000, Hidden,   "7.5.3.3",    "Reserved; in later revisions Mixed_MPS_Supported, TEE-IO Supported"),
    field(0x08, 0x0000_000f, Writable, "7.5.3.4",    "Correctable, Non-Fatal, Fatal Error and Unsupported Request Reporting Enable")
        .because(NO_MESSAGES),
    field(0x08, 0x0000_0010, Writable, "7.5.3.4",    "Enable Relaxed Ordering"),
    field(0x08, 0x0000_00e0, Writable, "7.5.3.4",    "Max_Payload_Size"),
    field(0x08, 0x0000_0f00, Hidden,   "7.5.3.4",    "Extended Tag Field Enable, Phantom Functions Enable, Aux Power PM Enable, Enable No Snoop"),
    field(0x08, 0x0000_7000, Writable, "7.5.3.4",    "Max_Read_Request_Size"),
    field(0x08, 0x0000_8000, Hidden,   "7.5.3.4",    "Initiate Function Level Reset"),
    field(0x08, 0x003f_0000, Hidden,   "7.5.3.5",    "Errors Detected, AUX Power Detected, Transactions Pending")
        .because("It detects no error"),
    field(0x08, 0xffc0_0000, Hidden,   "7.5.3.5",    "Emergency Power Reduction Detected, reserved"),
    field(0x0c, 0x0000_03ff, Fixed,    "7.5.3.6",    "Max Link Speed, Maximum Link Width"),
    field(0x0c, 0x0000_0c00, Hidden,   "7.5.3.6",    "ASPM Support"),
    field(0x0c, 0x0003_f000, Hidden,   "7.5.3.6",    "L0s Exit Latency, L1 Exit Latency"),
    field(0x0c, 0x000c_0000, Hidden,   "7.5.3.6",    "Clock Power Management, Surprise Down Error Reporting Capable"),
    field(0x0c, 0x0010_0000, Fixed,    "7.5.3.6",    "Data Link Layer Link Active Reporting Capable"),
    field(0x0c, 0x0020_0000, Fixed,    "7.5.3.6",    "Link Bandwidth Notification Capability"),
    field(0x0c, 0x0040_0000, Fixed,    "7.5.3.6",    "ASPM Optionality Compliance"),
    field(0x0c, 0x0080_0000, Hidden,   "7.5.3.6",    "Reserved"),
    field(0x0c, 0xff00_0000, Fixed,    "7.5.3.6",    "Port Number"),
    field(0x10, 0x0000_000f, Hidden,   "7.5.3.7",    "ASPM Control, PTM Propagation Delay, Read Completion Boundary"),
    field(0x10, 0x0000_0010, Emulated, "7.5.3.7",    "Link Disable"),
    field(0x10, 0x0000_0020, Fixed,    "7.5.3.7",    "Retrain Link")
        .because("Reads as zero, and is done at once"),
    field(0x10, 0x0000_00c0, Writable, "7.5.3.7",    "Common Clock Configuration, Extended Synch"),
    field(0x10, 0x0000_0300, Hidden,   "7.5.3.7",    "Enable Clock Power Management, Hardware Autonomous Width Disable"),
    field(0x10, 0x0000_0c00, Writable, "7.5.3.7",    "Link Bandwidth Management and Link Autonomous Bandwidth Interrupt Enable")
        .because("Kept, and nothing follows: the link never changes"),
    field(0x10, 0x0000_f000, Hidden,   "7.5.3.7",    "SRIS Clocking, Flit Mode Disable, DRS Signaling Control"),
    field(0x10, 0x03ff_0000, Fixed,    "7.5.3.8",    "Current Link Speed, Negotiated Link Width"),
    field(0x10, 0x0c00_0000, Hidden,   "7.5.3.8",    "Undefined, Link Training"),
    field(0x10, 0x1000_0000, Fixed,    "7.5.3.8",    "Slot Clock Configuration"),
    field(0x10, 0x2000_0000, Fixed,    "7.5.3.8",    "Data Link Layer Link Active")
        .because("While there is something below, and neither Secondary Bus Reset nor Link Disable is set"),
    field(0x10, 0xc000_0000, Hidden,   "7.5.3.8",    "Link Bandwidth Management Status, Link Autonomous Bandwidth Status"),
    field(0x14, 0xffff_ffff, Hidden,   "7.5.3.9",    "Slot Capabilities"),
    field(0x18, 0x0000_ffff, Hidden,   "7.5.3.10",   "Slot Control"),
    field(0x18, 0x003f_0000, Hidden,   "7.5.3.11",   "Slot Status, events and states of a slot"),
    field(0x18, 0x0040_0000, Fixed,    "7.5.3.11",   "Presence Detect State")
        .because("One, as where there is no slot"),
    field(0x18, 0xff80_0000, Hidden,   "7.5.3.11",   "Electromechanical Interlock Status, Data Link Layer State Changed, reserved"),
    field(0x1c, 0x0000_000f, Writable, "7.5.3.12",   "System Error on Correctable, Non-Fatal and Fatal Error Enable, PME Interrupt Enable")
        .because(NO_MESSAGES),
    field(0x1c, 0x0000_0010, Hidden,   "7.5.3.12",   "Configuration RRS Software Visibility Enable"),
    field(0x1c, 0x0000_ffe0, Hidden,   "7.5.3.12",   "No NFM Subtree Below This Root Port, reserved"),
    field(0x1c, 0xffff_0000, Hidden,   "7.5.3.13",   "Root Capabilities"),
    field(0x20, 0xffff_ffff, Hidden,   "7.5.3.14",   "Root Status"),
    field(0x24, 0xffff_ffdf, Hidden,   "7.5.3.15",   "Device Capabilities 2, without ARI Forwarding Supported"),
    field(0x28, 0x0000_ffdf, Hidden,   "7.5.3.16",   "Device Control 2, without ARI Forwarding Enable"),
    field(0x28, 0xffff_0000, Hidden,   "7.5.3.17",   "Device Status 2"),
    field(0x2c, 0x0000_0001, Hidden,   "7.5.3.18",   "Reserved"),
    field(0x2c, 0x0000_00fe, Fixed,    "7.5.3.18",   "Supported Link Speeds Vector"),
    field(0x2c, 0xffff_ff00, Hidden,   "7.5.3.18",   "Crosslink, SKP OS, retimers, DRS Supported"),
    field(0x30, 0x0000_000f, Writable, "7.5.3.19",   "Target Link Speed"),
    field(0x30, 0x0000_fff0, Hidden,   "7.5.3.19",   "Compliance, Hardware Autonomous Speed Disable, de-emphasis, transmit margin"),
    field(0x30, 0xffff_0000, Hidden,   "7.5.3.20",   "Link Status 2"),
    field(0x34, 0xffff_ffff, Hidden,   "7.5.3.21",   "Slot Capabilities 2"),
    field(0x38, 0x0000_ffff, Hidden,   "7.5.3.22",   "Slot Control 2"),
    field(0x38, 0xffff_0000, Hidden,   "7.5.3.23",   "Slot Status 2"),
] };

/// The rest of PCI Express of a port that may forward requests to all 256 functions of an ARI device.
#[rustfmt::skip]
pub const ARI: Table = Table { name: "Root port: PCI Express (10h), with ARI Forwarding", section: "7.5.3.15", size: 0x3c, fields: &[
    field(0x24, 0x0000_0020, Fixed,    "7.5.3.15",   "ARI Forwarding Supported"),
    field(0x28, 0x0000_0020, Emulated, "7.5.3.16",   "ARI Forwarding Enable"),
] };

/// The rest of PCI Express of a port that may not.
#[rustfmt::skip]
pub const NO_ARI: Table = Table { name: "Root port: PCI Express (10h), without ARI Forwarding", section: "7.5.3.15", size: 0x3c, fields: &[
    field(0x24, 0x0000_0020, Hidden,   "7.5.3.15",   "ARI Forwarding Supported"),
    field(0x28, 0x0000_0020, Hidden,   "7.5.3.16",   "ARI Forwarding Enable"),
] };

/// MSI with one vector. The port has nothing to say yet, so none is ever sent.
#[rustfmt::skip]
pub const MSI: Table = Table { name: "Root port: MSI (05h)", section: "7.7.1", size: 16, fields: &[
    field(0x00, 0x0000_00ff, Fixed,    "7.7.1.1",    "Capability ID"),
    field(0x00, 0x0000_ff00, Fixed,    "7.7.1.1",    "Next Capability Pointer"),
    field(0x00, 0x0001_0000, Writable, "7.7.1.2",    "MSI Enable")
        .because("Kept, and nothing follows: the port has nothing to say"),
    field(0x00, 0x000e_0000, Fixed,    "7.7.1.2",    "Multiple Message Capable")
        .because("One vector"),
    field(0x00, 0x0070_0000, Hidden,   "7.7.1.2",    "Multiple Message Enable"),
    field(0x00, 0x0080_0000, Fixed,    "7.7.1.2",    "64-bit Address Capable"),
    field(0x00, 0x0700_0000, Hidden,   "7.7.1.2",    "Per-Vector Masking Capable, Extended Message Data Capable, Extended Message Data Enable"),
    field(0x00, 0xf800_0000, Hidden,   "7.7.1.2",    "Reserved"),
    field(0x04, 0x0000_0003, Hidden,   "7.7.1.3",    "Reserved"),
    field(0x04, 0xffff_fffc, Writable, "7.7.1.3",    "Message Address"),
    field(0x08, 0xffff_ffff, Writable, "7.7.1.4",    "Message Upper Address"),
    field(0x0c, 0x0000_ffff, Writable, "7.7.1.5",    "Message Data"),
    field(0x0c, 0xffff_0000, Hidden,   "7.7.1.6",    "Extended Message Data"),
] };

/// Power management: D0 and D3hot, and no PME.
#[rustfmt::skip]
pub const POWER: Table = Table { name: "Root port: PCI Power Management (01h)", section: "7.5.2", size: 8, fields: &[
    field(0x00, 0x0000_00ff, Fixed,    "7.5.2.1",    "Capability ID"),
    field(0x00, 0x0000_ff00, Fixed,    "7.5.2.1",    "Next Capability Pointer"),
    field(0x00, 0x0007_0000, Fixed,    "7.5.2.1",    "Version"),
    field(0x00, 0x0038_0000, Hidden,   "7.5.2.1",    "PME Clock, Immediate_Readiness_on_Return_to_D0, Device Specific Initialization"),
    field(0x00, 0x01c0_0000, Hidden,   "7.5.2.1",    "Aux_Current"),
    field(0x00, 0x0600_0000, Hidden,   "7.5.2.1",    "D1_Support, D2_Support"),
    field(0x00, 0xf800_0000, Hidden,   "7.5.2.1",    "PME_Support"),
    field(0x04, 0x0000_0003, Emulated, "7.5.2.2",    "PowerState")
        .because("D0 and D3hot; in D3hot nothing gets through"),
    field(0x04, 0x0000_0004, Hidden,   "7.5.2.2",    "Reserved"),
    field(0x04, 0x0000_0008, Fixed,    "7.5.2.2",    "No_Soft_Reset")
        .because("One: D3hot keeps the state"),
    field(0x04, 0x0000_00f0, Hidden,   "7.5.2.2",    "Reserved"),
    field(0x04, 0x0000_8100, Hidden,   "7.5.2.2",    "PME_En, PME_Status"),
    field(0x04, 0x0000_7e00, Hidden,   "7.5.2.2",    "Data_Select, Data_Scale"),
    field(0x04, 0x00ff_0000, Hidden,   "7.5.2.2",    "Reserved and undefined"),
    field(0x04, 0xff00_0000, Hidden,   "7.5.2.3",    "Data"),
] };

/// Every table of this module.
pub const ALL: &[Table] = &[HEADER, EXPRESS, ARI, NO_ARI, MSI, POWER];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tables::tests::{check_fields, check_structure};

    #[test]
    fn every_bit_of_every_structure_has_one_row() {
        let structures: [&[Table]; 5] = [
            &[HEADER],
            &[EXPRESS, ARI],
            &[EXPRESS, NO_ARI],
            &[MSI],
            &[POWER],
        ];
        for parts in structures {
            check_structure(parts);
        }
    }

    #[test]
    fn every_field_is_inside_its_structure_and_described() {
        ALL.iter().for_each(check_fields);
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
