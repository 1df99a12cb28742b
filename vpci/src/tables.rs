//! The tables: every header and capability of which a guest sees anything.
//!
//! Sections are those of the PCI Express Base Specification, revision 6.0. A bit that has no row is
//! hidden: it reads as zero, and writes to it are ignored.

use crate::register::Access::{
    Emulated, Fixed, Hidden, Live, LiveClearedByOne, ReadOnly, Writable,
};
use crate::register::{Access, Field, Table};

const fn field(offset: u16, mask: u32, access: Access, name: &'static str) -> Field {
    Field {
        offset,
        mask,
        access,
        name,
    }
}

/// Type 0 header, without BARs: those depend on what the device has.
#[rustfmt::skip]
pub const HEADER: Table = Table { name: "Type 0 header", section: "7.5.1", size: 0x40, fields: &[
    field(0x00, 0x0000_ffff, ReadOnly,         "Vendor ID"),
    field(0x00, 0xffff_0000, ReadOnly,         "Device ID"),
    field(0x04, 0x0000_0001, Hidden,           "I/O Space Enable"), // no I/O BAR is shown
    field(0x04, 0x0000_0002, Emulated,         "Memory Space Enable"),
    field(0x04, 0x0000_0004, Emulated,         "Bus Master Enable"),
    field(0x04, 0x0000_0040, Writable,         "Parity Error Response"),
    field(0x04, 0x0000_0100, Writable,         "SERR# Enable"),
    field(0x04, 0x0000_0400, Emulated,         "Interrupt Disable"),
    field(0x04, 0x0001_0000, ReadOnly,         "Immediate Readiness"),
    field(0x04, 0x0010_0000, Fixed,            "Capabilities List"),
    field(0x04, 0x0020_0000, ReadOnly,         "66 MHz Capable"),
    field(0x04, 0x0080_0000, ReadOnly,         "Fast Back-to-Back Transactions Capable"),
    field(0x04, 0x0600_0000, ReadOnly,         "DEVSEL Timing"),
    field(0x04, 0x0100_0000, LiveClearedByOne, "Master Data Parity Error"),
    field(0x04, 0x0800_0000, LiveClearedByOne, "Signaled Target Abort"),
    field(0x04, 0x1000_0000, LiveClearedByOne, "Received Target Abort"),
    field(0x04, 0x2000_0000, LiveClearedByOne, "Received Master Abort"),
    field(0x04, 0x4000_0000, LiveClearedByOne, "Signaled System Error"),
    field(0x04, 0x8000_0000, LiveClearedByOne, "Detected Parity Error"),
    field(0x08, 0x0000_00ff, ReadOnly,         "Revision ID"),
    field(0x08, 0xffff_ff00, ReadOnly,         "Class Code"),
    field(0x0c, 0x0000_00ff, Writable,         "Cache Line Size"),
    field(0x0c, 0x0000_ff00, Hidden,           "Latency Timer"),
    field(0x0c, 0x007f_0000, Fixed,            "Header Layout"),
    field(0x0c, 0x0080_0000, Fixed,            "Multi-Function Device"),
    field(0x0c, 0xff00_0000, Hidden,           "BIST"),
    field(0x28, 0xffff_ffff, Hidden,           "Cardbus CIS Pointer"),
    field(0x2c, 0x0000_ffff, ReadOnly,         "Subsystem Vendor ID"),
    field(0x2c, 0xffff_0000, ReadOnly,         "Subsystem ID"),
    field(0x30, 0xffff_ffff, Hidden,           "Expansion ROM Base Address"),
    field(0x34, 0x0000_00ff, Fixed,            "Capabilities Pointer"),
    field(0x3c, 0x0000_00ff, Writable,         "Interrupt Line"),
    field(0x3c, 0xffff_0000, Hidden,           "Min_Gnt, Max_Lat"),
] };

/// What a function shows in addition that interrupts by pin.
#[rustfmt::skip]
pub const PIN: Table = Table { name: "INTx", section: "7.5.1", size: 0x40, fields: &[
    field(0x04, 0x0008_0000, Live,             "Interrupt Status"),
    field(0x3c, 0x0000_ff00, ReadOnly,         "Interrupt Pin"),
] };

/// Power management. Only D0 and D3hot are offered, and no PME.
#[rustfmt::skip]
pub const POWER: Table = Table { name: "PCI Power Management", section: "7.5.2", size: 8, fields: &[
    field(0x00, 0x0000_00ff, ReadOnly,         "Capability ID"),
    field(0x00, 0x0000_ff00, Fixed,            "Next Capability Pointer"),
    field(0x00, 0x0007_0000, ReadOnly,         "Version"),
    field(0x00, 0x0010_0000, ReadOnly,         "Immediate_Readiness_on_Return_to_D0"),
    field(0x00, 0x0020_0000, ReadOnly,         "Device Specific Initialization"),
    field(0x00, 0x0600_0000, Hidden,           "D1_Support, D2_Support"),
    field(0x00, 0xf800_0000, Hidden,           "PME_Support"),
    field(0x04, 0x0000_0003, Emulated,         "PowerState"),
    field(0x04, 0x0000_0008, Fixed,            "No_Soft_Reset"), // the model keeps its state
    field(0x04, 0x0000_8100, Hidden,           "PME_En, PME_Status"),
] };

/// MSI with a 32-bit address.
#[rustfmt::skip]
pub const MSI_32: Table = Table { name: "MSI, 32-bit", section: "7.7.1", size: 12, fields: &[
    field(0x00, 0x0000_00ff, ReadOnly,         "Capability ID"),
    field(0x00, 0x0000_ff00, Fixed,            "Next Capability Pointer"),
    field(0x00, 0x0001_0000, Emulated,         "MSI Enable"),
    field(0x00, 0x000e_0000, ReadOnly,         "Multiple Message Capable"),
    field(0x00, 0x0070_0000, Emulated,         "Multiple Message Enable"),
    field(0x00, 0x0180_0000, ReadOnly,         "64-bit Address Capable, Per-Vector Masking Capable"),
    field(0x04, 0xffff_fffc, Emulated,         "Message Address"),
    field(0x08, 0x0000_ffff, Emulated,         "Message Data"),
] };

/// MSI with a 64-bit address.
#[rustfmt::skip]
pub const MSI_64: Table = Table { name: "MSI, 64-bit", section: "7.7.1", size: 16, fields: &[
    field(0x00, 0x0000_00ff, ReadOnly,         "Capability ID"),
    field(0x00, 0x0000_ff00, Fixed,            "Next Capability Pointer"),
    field(0x00, 0x0001_0000, Emulated,         "MSI Enable"),
    field(0x00, 0x000e_0000, ReadOnly,         "Multiple Message Capable"),
    field(0x00, 0x0070_0000, Emulated,         "Multiple Message Enable"),
    field(0x00, 0x0180_0000, ReadOnly,         "64-bit Address Capable, Per-Vector Masking Capable"),
    field(0x04, 0xffff_fffc, Emulated,         "Message Address"),
    field(0x08, 0xffff_ffff, Emulated,         "Message Upper Address"),
    field(0x0c, 0x0000_ffff, Emulated,         "Message Data"),
] };

/// MSI with a 32-bit address and a mask bit for each vector.
#[rustfmt::skip]
pub const MSI_32_MASKED: Table = Table { name: "MSI, 32-bit with masks", section: "7.7.1", size: 20, fields: &[
    field(0x00, 0x0000_00ff, ReadOnly,         "Capability ID"),
    field(0x00, 0x0000_ff00, Fixed,            "Next Capability Pointer"),
    field(0x00, 0x0001_0000, Emulated,         "MSI Enable"),
    field(0x00, 0x000e_0000, ReadOnly,         "Multiple Message Capable"),
    field(0x00, 0x0070_0000, Emulated,         "Multiple Message Enable"),
    field(0x00, 0x0180_0000, ReadOnly,         "64-bit Address Capable, Per-Vector Masking Capable"),
    field(0x04, 0xffff_fffc, Emulated,         "Message Address"),
    field(0x08, 0x0000_ffff, Emulated,         "Message Data"),
    field(0x0c, 0xffff_ffff, Emulated,         "Mask Bits"),
    field(0x10, 0xffff_ffff, Live,             "Pending Bits"),
] };

/// MSI with a 64-bit address and a mask bit for each vector.
#[rustfmt::skip]
pub const MSI_64_MASKED: Table = Table { name: "MSI, 64-bit with masks", section: "7.7.1", size: 24, fields: &[
    field(0x00, 0x0000_00ff, ReadOnly,         "Capability ID"),
    field(0x00, 0x0000_ff00, Fixed,            "Next Capability Pointer"),
    field(0x00, 0x0001_0000, Emulated,         "MSI Enable"),
    field(0x00, 0x000e_0000, ReadOnly,         "Multiple Message Capable"),
    field(0x00, 0x0070_0000, Emulated,         "Multiple Message Enable"),
    field(0x00, 0x0180_0000, ReadOnly,         "64-bit Address Capable, Per-Vector Masking Capable"),
    field(0x04, 0xffff_fffc, Emulated,         "Message Address"),
    field(0x08, 0xffff_ffff, Emulated,         "Message Upper Address"),
    field(0x0c, 0x0000_ffff, Emulated,         "Message Data"),
    field(0x10, 0xffff_ffff, Emulated,         "Mask Bits"),
    field(0x14, 0xffff_ffff, Live,             "Pending Bits"),
] };

/// MSI-X. The table and the pending bits are in memory space.
#[rustfmt::skip]
pub const MSIX: Table = Table { name: "MSI-X", section: "7.7.2", size: 12, fields: &[
    field(0x00, 0x0000_00ff, ReadOnly,         "Capability ID"),
    field(0x00, 0x0000_ff00, Fixed,            "Next Capability Pointer"),
    field(0x00, 0x07ff_0000, ReadOnly,         "Table Size"),
    field(0x00, 0x4000_0000, Emulated,         "Function Mask"),
    field(0x00, 0x8000_0000, Emulated,         "MSI-X Enable"),
    field(0x04, 0xffff_ffff, ReadOnly,         "Table BIR, Table Offset"),
    field(0x08, 0xffff_ffff, ReadOnly,         "PBA BIR, PBA Offset"),
] };

/// PCI Express, as a root complex integrated endpoint shows it: without a link. Device Control is
/// kept in the model; payload sizes and ordering of the real path are not a guest's to choose.
#[rustfmt::skip]
pub const EXPRESS: Table = Table { name: "PCI Express", section: "7.5.3", size: 0x3c, fields: &[
    field(0x00, 0x0000_00ff, ReadOnly,         "Capability ID"),
    field(0x00, 0x0000_ff00, Fixed,            "Next Capability Pointer"),
    field(0x00, 0x000f_0000, ReadOnly,         "Capability Version"),
    field(0x00, 0x00f0_0000, Fixed,            "Device/Port Type"),
    field(0x00, 0x3e00_0000, ReadOnly,         "Interrupt Message Number"),
    field(0x04, 0x0000_0007, ReadOnly,         "Max_Payload_Size Supported"),
    field(0x04, 0x0000_0018, Hidden,           "Phantom Functions Supported"),
    field(0x04, 0x0000_0020, ReadOnly,         "Extended Tag Field Supported"),
    field(0x04, 0x0000_0fc0, ReadOnly,         "Endpoint L0s, L1 Acceptable Latency"),
    field(0x04, 0x0000_8000, ReadOnly,         "Role-Based Error Reporting"),
    field(0x04, 0x1000_0000, ReadOnly,         "Function Level Reset Capability"),
    field(0x08, 0x0000_000f, Writable,         "Error Reporting Enables"),
    field(0x08, 0x0000_0010, Writable,         "Enable Relaxed Ordering"),
    field(0x08, 0x0000_00e0, Writable,         "Max_Payload_Size"),
    field(0x08, 0x0000_0100, Writable,         "Extended Tag Field Enable"),
    field(0x08, 0x0000_0800, Writable,         "Enable No Snoop"),
    field(0x08, 0x0000_7000, Writable,         "Max_Read_Request_Size"),
    field(0x08, 0x0000_8000, Emulated,         "Initiate Function Level Reset"),
    field(0x08, 0x000f_0000, LiveClearedByOne, "Errors Detected"),
    field(0x08, 0x0020_0000, Live,             "Transactions Pending"),
    field(0x24, 0x0000_000f, ReadOnly,         "Completion Timeout Ranges Supported"),
    field(0x24, 0x0000_0010, ReadOnly,         "Completion Timeout Disable Supported"),
    field(0x28, 0x0000_001f, Writable,         "Completion Timeout Value, Disable"),
] };

/// What an endpoint below a port shows of its link, in addition.
#[rustfmt::skip]
pub const LINK: Table = Table { name: "PCI Express link", section: "7.5.3.6", size: 0x3c, fields: &[
    field(0x0c, 0x0000_03ff, ReadOnly,         "Max Link Speed, Maximum Link Width"),
    field(0x0c, 0x0000_0c00, Hidden,           "ASPM Support"),
    field(0x0c, 0x0003_f000, ReadOnly,         "L0s, L1 Exit Latency"),
    field(0x0c, 0x0040_0000, ReadOnly,         "ASPM Optionality Compliance"),
    field(0x0c, 0xff00_0000, ReadOnly,         "Port Number"),
    field(0x10, 0x0000_00c0, Writable,         "Common Clock Configuration, Extended Synch"),
    field(0x10, 0x03ff_0000, ReadOnly,         "Current Link Speed, Negotiated Link Width"),
    field(0x10, 0x1000_0000, ReadOnly,         "Slot Clock Configuration"),
    field(0x2c, 0x0000_00fe, ReadOnly,         "Supported Link Speeds Vector"),
] };

/// Device Serial Number.
#[rustfmt::skip]
pub const SERIAL_NUMBER: Table = Table { name: "Device Serial Number", section: "7.9.3", size: 12, fields: &[
    field(0x00, 0x000f_ffff, ReadOnly,         "Extended Capability ID, Version"),
    field(0x00, 0xfff0_0000, Fixed,            "Next Capability Offset"),
    field(0x04, 0xffff_ffff, ReadOnly,         "Serial Number, lower dword"),
    field(0x08, 0xffff_ffff, ReadOnly,         "Serial Number, upper dword"),
] };

/// Every table, for whoever wants to print or check them.
pub const ALL: &[&Table] = &[
    &HEADER,
    &PIN,
    &POWER,
    &MSI_32,
    &MSI_64,
    &MSI_32_MASKED,
    &MSI_64_MASKED,
    &MSIX,
    &EXPRESS,
    &LINK,
    &SERIAL_NUMBER,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_fields_share_a_bit() {
        for table in ALL {
            for offset in (0..table.size).step_by(4) {
                let fields = table.fields.iter().filter(|field| field.offset == offset);
                fields.fold(0, |seen, field| {
                    assert_eq!(seen & field.mask, 0, "{}: {}", table.name, field.name);
                    seen | field.mask
                });
            }
        }
    }

    #[test]
    fn every_field_is_inside_its_structure() {
        for table in ALL {
            assert!(table.size.is_multiple_of(4), "{}", table.name);
            for field in table.fields {
                let inside = field.offset.is_multiple_of(4) && field.offset < table.size;
                assert!(inside && field.mask != 0, "{}: {}", table.name, field.name);
            }
        }
    }

    #[test]
    fn tables_that_add_to_another_do_not_repeat_it() {
        for (base, extra) in [(HEADER, PIN), (EXPRESS, LINK)] {
            for field in extra.fields {
                let base = base
                    .fields
                    .iter()
                    .filter(|other| other.offset == field.offset);
                assert!(
                    base.clone().all(|other| other.mask & field.mask == 0),
                    "{}",
                    field.name
                );
            }
        }
    }

    /// A one is passed to the device with zeroes around it, so its byte must be only such bits as
    /// zeroes do no harm to: no writable field of ours may share it.
    #[test]
    fn bits_that_are_cleared_in_the_device_have_their_bytes_alone() {
        for table in ALL {
            for offset in (0..table.size).step_by(4) {
                let register = table.register(offset);
                for lane in [0xff, 0xff00, 0xff_0000, 0xff00_0000_u32] {
                    let shared = register.live_rw1c & lane != 0 && register.rw & lane != 0;
                    assert!(!shared, "{} at {offset:#x}", table.name);
                }
            }
        }
    }
}
