//! The tables: every header and capability of which a guest sees anything.
//!
//! Sections are those of the PCI Express Base Specification, revision 6.0. Every bit of every
//! structure has a row. Of these tables come what reads and writes do (`function::builder`), and the
//! page `kernel/docs/config-space.md`, which `tests/document.rs` writes and checks.

use crate::register::Access::{Address, Emulated, Fixed, Hidden, Live, ReadOnly, Shared, Writable};
use crate::register::{Access, Field, Table};

pub(crate) const fn field(
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

const ERRORS_ARE_EL2S: &str = "Errors are reported to the root complex, which is EL2's, and no \
    driver decides by these bits; a guest that wants to look finds them in AER, where the device \
    has it";
const PATH_IS_EL2S: &str = "Kept, and not passed on: what the path to memory can take is not a \
    guest's to say";
const ROUTE_IS_EL2S: &str = "EL2 writes its own address and data to the device, and none but the \
    domain's doorbell is obeyed";

const PENDING_WHILE_MASKED: &str = "Only the device knows, and a guest that polls a masked vector \
    asks. Zero for a vector that is not masked, and while MSI is off";

/// Type 0 header of what exists in EL2 only: the host bridge, and a stub for a missing function 0.
#[rustfmt::skip]
pub const STAND_IN: Table = Table { name: "Type 0 header of the host bridge and of stubs", section: "7.5.1", size: 0x40, fields: &[
    field(0x00, 0xffff_ffff, Fixed,     "7.5.1.1.1",  "Vendor ID, Device ID")
        .because("QEMU's, so that guests know them"),
    field(0x04, 0x0000_0001, Hidden,    "7.5.1.1.3",  "I/O Space Enable"),
    field(0x04, 0x0000_0006, Writable,  "7.5.1.1.3",  "Memory Space Enable, Bus Master Enable")
        .because("Nothing follows: there is no BAR, and forwarding cannot be turned off. A stub takes no writes at all"),
    field(0x04, 0x0000_0038, Hidden,    "7.5.1.1.3",  "Special Cycle Enable, Memory Write and Invalidate, VGA Palette Snoop"),
    field(0x04, 0x0000_0040, Writable,  "7.5.1.1.3",  "Parity Error Response"),
    field(0x04, 0x0000_0080, Hidden,    "7.5.1.1.3",  "IDSEL Stepping/Wait Cycle Control"),
    field(0x04, 0x0000_0100, Writable,  "7.5.1.1.3",  "SERR# Enable"),
    field(0x04, 0x0000_0200, Hidden,    "7.5.1.1.3",  "Fast Back-to-Back Transactions Enable"),
    field(0x04, 0x0000_0400, Writable,  "7.5.1.1.3",  "Interrupt Disable"),
    field(0x04, 0x0000_f800, Hidden,    "7.5.1.1.3",  "Reserved"),
    field(0x04, 0xffff_0000, Hidden,    "7.5.1.1.4",  "Status"),
    field(0x08, 0xffff_ffff, Fixed,     "7.5.1.1.5",  "Revision ID, Class Code"),
    field(0x0c, 0x0000_ffff, Hidden,    "7.5.1.1.7",  "Cache Line Size, Latency Timer"),
    field(0x0c, 0x00ff_0000, Fixed,     "7.5.1.1.9",  "Header Type"),
    field(0x0c, 0xff00_0000, Hidden,    "7.5.1.1.10", "BIST"),
    field(0x10, 0xffff_ffff, Hidden,    "7.5.1.2.1",  "Base Address Register 0"),
    field(0x14, 0xffff_ffff, Hidden,    "7.5.1.2.1",  "Base Address Register 1"),
    field(0x18, 0xffff_ffff, Hidden,    "7.5.1.2.1",  "Base Address Register 2"),
    field(0x1c, 0xffff_ffff, Hidden,    "7.5.1.2.1",  "Base Address Register 3"),
    field(0x20, 0xffff_ffff, Hidden,    "7.5.1.2.1",  "Base Address Register 4"),
    field(0x24, 0xffff_ffff, Hidden,    "7.5.1.2.1",  "Base Address Register 5"),
    field(0x28, 0xffff_ffff, Hidden,    "7.5.1.2.2",  "Cardbus CIS Pointer"),
    field(0x2c, 0xffff_ffff, Fixed,     "7.5.1.2.3",  "Subsystem Vendor ID, Subsystem ID"),
    field(0x30, 0xffff_ffff, Hidden,    "7.5.1.2.4",  "Expansion ROM Base Address"),
    field(0x34, 0xffff_ffff, Hidden,    "7.5.1.1.11", "Capabilities Pointer, reserved"),
    field(0x38, 0xffff_ffff, Hidden,    "7.5.1.2",    "Reserved"),
    field(0x3c, 0x0000_00ff, Writable,  "7.5.1.1.12", "Interrupt Line"),
    field(0x3c, 0x0000_ff00, Hidden,    "7.5.1.1.13", "Interrupt Pin"),
    field(0x3c, 0xffff_0000, Hidden,    "7.5.1.2.5",  "Min_Gnt, Max_Lat"),
] };

/// Type 0 header, without what depends on the interrupt pin.
#[rustfmt::skip]
pub const HEADER: Table = Table { name: "Type 0 header", section: "7.5.1", size: 0x40, fields: &[
    field(0x00, 0x0000_ffff, ReadOnly,  "7.5.1.1.1",  "Vendor ID"),
    field(0x00, 0xffff_0000, ReadOnly,  "7.5.1.1.2",  "Device ID"),
    field(0x04, 0x0000_0001, Hidden,    "7.5.1.1.3",  "I/O Space Enable")
        .because("No I/O BAR is shown"),
    field(0x04, 0x0000_0002, Emulated,  "7.5.1.1.3",  "Memory Space Enable")
        .because("On in the device; what a guest reaches is for stage 2 to say"),
    field(0x04, 0x0000_0004, Emulated,  "7.5.1.1.3",  "Bus Master Enable"),
    field(0x04, 0x0000_0038, Hidden,    "7.5.1.1.3",  "Special Cycle Enable, Memory Write and Invalidate, VGA Palette Snoop"),
    field(0x04, 0x0000_0040, Writable,  "7.5.1.1.3",  "Parity Error Response"),
    field(0x04, 0x0000_0080, Hidden,    "7.5.1.1.3",  "IDSEL Stepping/Wait Cycle Control"),
    field(0x04, 0x0000_0100, Writable,  "7.5.1.1.3",  "SERR# Enable"),
    field(0x04, 0x0000_0200, Hidden,    "7.5.1.1.3",  "Fast Back-to-Back Transactions Enable"),
    field(0x04, 0x0000_0400, Emulated,  "7.5.1.1.3",  "Interrupt Disable"),
    field(0x04, 0x0000_f800, Hidden,    "7.5.1.1.3",  "Reserved"),
    field(0x04, 0x0001_0000, ReadOnly,  "7.5.1.1.4",  "Immediate Readiness"),
    field(0x04, 0x0006_0000, Hidden,    "7.5.1.1.4",  "Reserved"),
    field(0x04, 0x0010_0000, Fixed,     "7.5.1.1.4",  "Capabilities List"),
    field(0x04, 0x0020_0000, ReadOnly,  "7.5.1.1.4",  "66 MHz Capable"),
    field(0x04, 0x0040_0000, Hidden,    "7.5.1.1.4",  "Reserved"),
    field(0x04, 0x0080_0000, ReadOnly,  "7.5.1.1.4",  "Fast Back-to-Back Transactions Capable"),
    field(0x04, 0x0100_0000, Hidden,    "7.5.1.1.4",  "Master Data Parity Error")
        .because(ERRORS_ARE_EL2S),
    field(0x04, 0x0600_0000, ReadOnly,  "7.5.1.1.4",  "DEVSEL Timing"),
    field(0x04, 0xf800_0000, Hidden,    "7.5.1.1.4",  "Signaled Target Abort, Received Target Abort, Received Master Abort, Signaled System Error, Detected Parity Error")
        .because(ERRORS_ARE_EL2S),
    field(0x08, 0x0000_00ff, ReadOnly,  "7.5.1.1.5",  "Revision ID"),
    field(0x08, 0xffff_ff00, ReadOnly,  "7.5.1.1.6",  "Class Code"),
    field(0x0c, 0x0000_00ff, Writable,  "7.5.1.1.7",  "Cache Line Size"),
    field(0x0c, 0x0000_ff00, Hidden,    "7.5.1.1.8",  "Latency Timer"),
    field(0x0c, 0x007f_0000, Fixed,     "7.5.1.1.9",  "Header Layout"),
    field(0x0c, 0x0080_0000, Fixed,     "7.5.1.1.9",  "Multi-Function Device")
        .because("Says what is on the domain's bus, not on the machine's"),
    field(0x0c, 0xff00_0000, Hidden,    "7.5.1.1.10", "BIST")
        .because("A self-test may take the device off its bus"),
    field(0x10, 0xffff_ffff, Address,   "7.5.1.2.1",  "Base Address Register 0"),
    field(0x14, 0xffff_ffff, Address,   "7.5.1.2.1",  "Base Address Register 1"),
    field(0x18, 0xffff_ffff, Address,   "7.5.1.2.1",  "Base Address Register 2"),
    field(0x1c, 0xffff_ffff, Address,   "7.5.1.2.1",  "Base Address Register 3"),
    field(0x20, 0xffff_ffff, Address,   "7.5.1.2.1",  "Base Address Register 4"),
    field(0x24, 0xffff_ffff, Address,   "7.5.1.2.1",  "Base Address Register 5"),
    field(0x28, 0xffff_ffff, Hidden,    "7.5.1.2.2",  "Cardbus CIS Pointer"),
    field(0x2c, 0x0000_ffff, ReadOnly,  "7.5.1.2.3",  "Subsystem Vendor ID"),
    field(0x2c, 0xffff_0000, ReadOnly,  "7.5.1.2.3",  "Subsystem ID"),
    field(0x30, 0x0000_0001, Address,   "7.5.1.2.4",  "Expansion ROM Enable"),
    field(0x30, 0x0000_00fe, Hidden,    "7.5.1.2.4",  "Expansion ROM Validation Status, Validation Details"),
    field(0x30, 0x0000_0700, Hidden,    "7.5.1.2.4",  "Reserved"),
    field(0x30, 0xffff_f800, Address,   "7.5.1.2.4",  "Expansion ROM Base Address"),
    field(0x34, 0x0000_00ff, Fixed,     "7.5.1.1.11", "Capabilities Pointer"),
    field(0x34, 0xffff_ff00, Hidden,    "7.5.1.2",    "Reserved"),
    field(0x38, 0xffff_ffff, Hidden,    "7.5.1.2",    "Reserved"),
    field(0x3c, 0x0000_00ff, Writable,  "7.5.1.1.12", "Interrupt Line"),
    field(0x3c, 0xffff_0000, Hidden,    "7.5.1.2.5",  "Min_Gnt, Max_Lat"),
] };

/// The rest of the header, of a function that interrupts by pin.
#[rustfmt::skip]
pub const PIN: Table = Table { name: "Type 0 header, with an interrupt pin", section: "7.5.1", size: 0x40, fields: &[
    field(0x04, 0x0008_0000, Live,      "7.5.1.1.4",  "Interrupt Status")
        .because("Drivers that share a line ask whether it is theirs. Zero while MSI or MSI-X is on, since \
            the function sends messages then (7.7.1.2, 7.7.2.2). EL2 knows it to be zero while \
            Interrupt Disable is clear, in D0, and the pin has not interrupted since the last reset"),
    field(0x3c, 0x0000_ff00, ReadOnly,  "7.5.1.1.13", "Interrupt Pin"),
] };

/// The rest of the header, of one that does not.
#[rustfmt::skip]
pub const NO_PIN: Table = Table { name: "Type 0 header, without an interrupt pin", section: "7.5.1", size: 0x40, fields: &[
    field(0x04, 0x0008_0000, Hidden,    "7.5.1.1.4",  "Interrupt Status"),
    field(0x3c, 0x0000_ff00, Hidden,    "7.5.1.1.13", "Interrupt Pin"),
] };

/// Power management. Only D0 and D3hot are offered, and no PME.
#[rustfmt::skip]
pub const POWER: Table = Table { name: "PCI Power Management (01h)", section: "7.5.2", size: 8, fields: &[
    field(0x00, 0x0000_00ff, ReadOnly,  "7.5.2.1",    "Capability ID"),
    field(0x00, 0x0000_ff00, Fixed,     "7.5.2.1",    "Next Capability Pointer"),
    field(0x00, 0x0007_0000, ReadOnly,  "7.5.2.1",    "Version"),
    field(0x00, 0x0008_0000, Hidden,    "7.5.2.1",    "PME Clock"),
    field(0x00, 0x0010_0000, ReadOnly,  "7.5.2.1",    "Immediate_Readiness_on_Return_to_D0"),
    field(0x00, 0x0020_0000, ReadOnly,  "7.5.2.1",    "Device Specific Initialization"),
    field(0x00, 0x01c0_0000, Hidden,    "7.5.2.1",    "Aux_Current"),
    field(0x00, 0x0600_0000, Hidden,    "7.5.2.1",    "D1_Support, D2_Support"),
    field(0x00, 0xf800_0000, Hidden,    "7.5.2.1",    "PME_Support")
        .because("What wakes the machine is EL2's to say"),
    field(0x04, 0x0000_0003, Emulated,  "7.5.2.2",    "PowerState")
        .because("D0 and D3hot; in D3hot BARs, interrupts and bus mastering are off, and the device stays in D0"),
    field(0x04, 0x0000_0004, Hidden,    "7.5.2.2",    "Reserved"),
    field(0x04, 0x0000_0008, Fixed,     "7.5.2.2",    "No_Soft_Reset")
        .because("One: the device keeps its state"),
    field(0x04, 0x0000_00f0, Hidden,    "7.5.2.2",    "Reserved"),
    field(0x04, 0x0000_8100, Hidden,    "7.5.2.2",    "PME_En, PME_Status"),
    field(0x04, 0x0000_7e00, Hidden,    "7.5.2.2",    "Data_Select, Data_Scale"),
    field(0x04, 0x00ff_0000, Hidden,    "7.5.2.2",    "Reserved and undefined"),
    field(0x04, 0xff00_0000, Hidden,    "7.5.2.3",    "Data"),
] };

/// What all forms of MSI begin with.
#[rustfmt::skip]
pub const MSI: Table = Table { name: "MSI (05h)", section: "7.7.1", size: 4, fields: &[
    field(0x00, 0x0000_00ff, ReadOnly,  "7.7.1.1",    "Capability ID"),
    field(0x00, 0x0000_ff00, Fixed,     "7.7.1.1",    "Next Capability Pointer"),
    field(0x00, 0x0001_0000, Emulated,  "7.7.1.2",    "MSI Enable"),
    field(0x00, 0x000e_0000, ReadOnly,  "7.7.1.2",    "Multiple Message Capable"),
    field(0x00, 0x0070_0000, Emulated,  "7.7.1.2",    "Multiple Message Enable"),
    field(0x00, 0x0080_0000, ReadOnly,  "7.7.1.2",    "64-bit Address Capable"),
    field(0x00, 0x0100_0000, ReadOnly,  "7.7.1.2",    "Per-Vector Masking Capable"),
    field(0x00, 0x0600_0000, Hidden,    "7.7.1.2",    "Extended Message Data Capable, Extended Message Data Enable")
        .because("Sixteen bits of data are enough for any ITS"),
    field(0x00, 0xf800_0000, Hidden,    "7.7.1.2",    "Reserved"),
] };

/// The rest of MSI with a 32-bit address.
#[rustfmt::skip]
pub const MSI_32: Table = Table { name: "MSI (05h), 32-bit address", section: "7.7.1", size: 12, fields: &[
    field(0x04, 0x0000_0003, Hidden,    "7.7.1.3",    "Reserved"),
    field(0x04, 0xffff_fffc, Emulated,  "7.7.1.3",    "Message Address").because(ROUTE_IS_EL2S),
    field(0x08, 0x0000_ffff, Emulated,  "7.7.1.5",    "Message Data"),
    field(0x08, 0xffff_0000, Hidden,    "7.7.1.6",    "Extended Message Data"),
] };

/// The rest of MSI with a 64-bit address.
#[rustfmt::skip]
pub const MSI_64: Table = Table { name: "MSI (05h), 64-bit address", section: "7.7.1", size: 16, fields: &[
    field(0x04, 0x0000_0003, Hidden,    "7.7.1.3",    "Reserved"),
    field(0x04, 0xffff_fffc, Emulated,  "7.7.1.3",    "Message Address").because(ROUTE_IS_EL2S),
    field(0x08, 0xffff_ffff, Emulated,  "7.7.1.4",    "Message Upper Address"),
    field(0x0c, 0x0000_ffff, Emulated,  "7.7.1.5",    "Message Data"),
    field(0x0c, 0xffff_0000, Hidden,    "7.7.1.6",    "Extended Message Data"),
] };

/// The rest of MSI with a 32-bit address and a mask bit for each vector.
#[rustfmt::skip]
pub const MSI_32_MASKED: Table = Table { name: "MSI (05h), 32-bit address and masks", section: "7.7.1", size: 20, fields: &[
    field(0x04, 0x0000_0003, Hidden,    "7.7.1.3",    "Reserved"),
    field(0x04, 0xffff_fffc, Emulated,  "7.7.1.3",    "Message Address").because(ROUTE_IS_EL2S),
    field(0x08, 0x0000_ffff, Emulated,  "7.7.1.5",    "Message Data"),
    field(0x08, 0xffff_0000, Hidden,    "7.7.1.6",    "Extended Message Data"),
    field(0x0c, 0xffff_ffff, Emulated,  "7.7.1.7",    "Mask Bits")
        .because("As many as the function can have vectors"),
    field(0x10, 0xffff_ffff, Live,      "7.7.1.8",    "Pending Bits")
        .because(PENDING_WHILE_MASKED),
] };

/// The rest of MSI with a 64-bit address and a mask bit for each vector.
#[rustfmt::skip]
pub const MSI_64_MASKED: Table = Table { name: "MSI (05h), 64-bit address and masks", section: "7.7.1", size: 24, fields: &[
    field(0x04, 0x0000_0003, Hidden,    "7.7.1.3",    "Reserved"),
    field(0x04, 0xffff_fffc, Emulated,  "7.7.1.3",    "Message Address").because(ROUTE_IS_EL2S),
    field(0x08, 0xffff_ffff, Emulated,  "7.7.1.4",    "Message Upper Address"),
    field(0x0c, 0x0000_ffff, Emulated,  "7.7.1.5",    "Message Data"),
    field(0x0c, 0xffff_0000, Hidden,    "7.7.1.6",    "Extended Message Data"),
    field(0x10, 0xffff_ffff, Emulated,  "7.7.1.7",    "Mask Bits")
        .because("As many as the function can have vectors"),
    field(0x14, 0xffff_ffff, Live,      "7.7.1.8",    "Pending Bits")
        .because(PENDING_WHILE_MASKED),
] };

/// MSI-X. The table and the pending bits are in memory space.
#[rustfmt::skip]
pub const MSIX: Table = Table { name: "MSI-X (11h)", section: "7.7.2", size: 12, fields: &[
    field(0x00, 0x0000_00ff, ReadOnly,  "7.7.2.1",    "Capability ID"),
    field(0x00, 0x0000_ff00, Fixed,     "7.7.2.1",    "Next Capability Pointer"),
    field(0x00, 0x07ff_0000, ReadOnly,  "7.7.2.2",    "Table Size"),
    field(0x00, 0x3800_0000, Hidden,    "7.7.2.2",    "Reserved"),
    field(0x00, 0x4000_0000, Emulated,  "7.7.2.2",    "Function Mask"),
    field(0x00, 0x8000_0000, Emulated,  "7.7.2.2",    "MSI-X Enable"),
    field(0x04, 0xffff_ffff, ReadOnly,  "7.7.2.3",    "Table BIR, Table Offset"),
    field(0x08, 0xffff_ffff, ReadOnly,  "7.7.2.4",    "PBA BIR, PBA Offset"),
] };

/// One entry of the MSI-X table, which is in a BAR.
#[rustfmt::skip]
pub const MSIX_ENTRY: Table = Table { name: "MSI-X table entry, in a BAR", section: "7.7.2", size: 16, fields: &[
    field(0x00, 0x0000_0003, Hidden,    "7.7.2.5",    "Message Address, lowest bits"),
    field(0x00, 0xffff_fffc, Emulated,  "7.7.2.5",    "Message Address").because(ROUTE_IS_EL2S),
    field(0x04, 0xffff_ffff, Emulated,  "7.7.2.6",    "Message Upper Address"),
    field(0x08, 0xffff_ffff, Emulated,  "7.7.2.7",    "Message Data"),
    field(0x0c, 0x0000_0001, Emulated,  "7.7.2.8",    "Mask Bit"),
    field(0x0c, 0xffff_fffe, Hidden,    "7.7.2.8",    "Reserved, ST Lower, ST Upper")
        .because("No TPH Requester capability is shown"),
] };

/// Vendor-specific, where the configuration allows it. What follows is of any length.
#[rustfmt::skip]
pub const VENDOR: Table = Table { name: "Vendor-Specific (09h)", section: "7.9.4", size: 4, fields: &[
    field(0x00, 0x0000_00ff, ReadOnly,  "7.9.4",      "Capability ID"),
    field(0x00, 0x0000_ff00, Fixed,     "7.9.4",      "Next Capability Pointer"),
    field(0x00, 0x00ff_0000, ReadOnly,  "7.9.4",      "Capability Length"),
    field(0x00, 0xff00_0000, ReadOnly,  "7.9.4",      "Vendor Specific Information")
        .because("To the end of the length: read once, when the function is assigned. What a vendor \
            lets software write there is not known, so nothing is written. Of virtio's, the window \
            to all BARs (virtio 1.2, 4.1.4.9, cfg_type 5) is left out: reading it acts"),
] };

/// PCI Express, without what depends on whether there is a link.
#[rustfmt::skip]
pub const EXPRESS: Table = Table { name: "PCI Express (10h)", section: "7.5.3", size: 0x3c, fields: &[
    field(0x00, 0x0000_00ff, ReadOnly,  "7.5.3.1",    "Capability ID"),
    field(0x00, 0x0000_ff00, Fixed,     "7.5.3.1",    "Next Capability Pointer"),
    field(0x00, 0x000f_0000, ReadOnly,  "7.5.3.2",    "Capability Version"),
    field(0x00, 0x00f0_0000, Fixed,     "7.5.3.2",    "Device/Port Type")
        .because("On the root bus an integrated endpoint, below a port an endpoint"),
    field(0x00, 0x0100_0000, Hidden,    "7.5.3.2",    "Slot Implemented"),
    field(0x00, 0x3e00_0000, ReadOnly,  "7.5.3.2",    "Interrupt Message Number"),
    field(0x00, 0xc000_0000, Hidden,    "7.5.3.2",    "Undefined, Flit Mode Supported"),
    field(0x04, 0x0000_0007, ReadOnly,  "7.5.3.3",    "Max_Payload_Size Supported"),
    field(0x04, 0x0000_0018, Hidden,    "7.5.3.3",    "Phantom Functions Supported")
        .because("Requests under the names of other functions would not be checked as this one's"),
    field(0x04, 0x0000_0020, ReadOnly,  "7.5.3.3",    "Extended Tag Field Supported"),
    field(0x04, 0x0000_0fc0, ReadOnly,  "7.5.3.3",    "Endpoint L0s Acceptable Latency, Endpoint L1 Acceptable Latency"),
    field(0x04, 0x0000_7000, Hidden,    "7.5.3.3",    "Undefined"),
    field(0x04, 0x0000_8000, ReadOnly,  "7.5.3.3",    "Role-Based Error Reporting"),
    field(0x04, 0x0003_0000, Hidden,    "7.5.3.3",    "ERR_COR Subclass Capable, Rx_MPS_Fixed"),
    field(0x04, 0x0ffc_0000, Hidden,    "7.5.3.3",    "Captured Slot Power Limit Value, Captured Slot Power Limit Scale"),
    field(0x04, 0x1000_0000, ReadOnly,  "7.5.3.3",    "Function Level Reset Capability"),
    field(0x04, 0xe000_0000, Hidden,    "7.5.3.3",    "Reserved; in later revisions Mixed_MPS_Supported, TEE-IO Supported"),
    field(0x08, 0x0000_000f, Writable,  "7.5.3.4",    "Correctable, Non-Fatal, Fatal Error and Unsupported Request Reporting Enable")
        .because("Kept, and not passed on: messages go to the root complex, which is EL2's"),
    field(0x08, 0x0000_0010, Writable,  "7.5.3.4",    "Enable Relaxed Ordering").because(PATH_IS_EL2S),
    field(0x08, 0x0000_00e0, Shared,    "7.5.3.4",    "Max_Payload_Size").because(PATH_IS_EL2S),
    field(0x08, 0x0000_0100, Writable,  "7.5.3.4",    "Extended Tag Field Enable").because(PATH_IS_EL2S),
    field(0x08, 0x0000_0600, Hidden,    "7.5.3.4",    "Phantom Functions Enable, Aux Power PM Enable"),
    field(0x08, 0x0000_0800, Writable,  "7.5.3.4",    "Enable No Snoop").because(PATH_IS_EL2S),
    field(0x08, 0x0000_7000, Writable,  "7.5.3.4",    "Max_Read_Request_Size").because(PATH_IS_EL2S),
    field(0x08, 0x0000_8000, Emulated,  "7.5.3.4",    "Initiate Function Level Reset")
        .because("EL2 resets the device and waits for it; reads as zero. Hidden if the device has no FLR"),
    field(0x08, 0x000f_0000, Hidden,    "7.5.3.5",    "Correctable, Non-Fatal, Fatal Error and Unsupported Request Detected")
        .because(ERRORS_ARE_EL2S),
    field(0x08, 0x0010_0000, Hidden,    "7.5.3.5",    "AUX Power Detected"),
    field(0x08, 0x0020_0000, Hidden,    "7.5.3.5",    "Transactions Pending")
        .because("What software waits for before a reset, and resets are EL2's, which does wait for it"),
    field(0x08, 0xffc0_0000, Hidden,    "7.5.3.5",    "Emergency Power Reduction Detected, reserved"),
    field(0x14, 0xffff_ffff, Hidden,    "7.5.3.9",    "Slot Capabilities"),
    field(0x18, 0x0000_ffff, Hidden,    "7.5.3.10",   "Slot Control"),
    field(0x18, 0xffff_0000, Hidden,    "7.5.3.11",   "Slot Status"),
    field(0x1c, 0x0000_ffff, Hidden,    "7.5.3.12",   "Root Control"),
    field(0x1c, 0xffff_0000, Hidden,    "7.5.3.13",   "Root Capabilities"),
    field(0x20, 0xffff_ffff, Hidden,    "7.5.3.14",   "Root Status"),
    field(0x24, 0x0000_000f, ReadOnly,  "7.5.3.15",   "Completion Timeout Ranges Supported"),
    field(0x24, 0x0000_0010, ReadOnly,  "7.5.3.15",   "Completion Timeout Disable Supported"),
    field(0x24, 0x0000_07e0, Hidden,    "7.5.3.15",   "ARI Forwarding Supported, AtomicOp routing and completers, No RO-enabled PR-PR Passing"),
    field(0x24, 0xffff_f000, Hidden,    "7.5.3.15",   "TPH, 10-Bit Tags, OBFF, TLP prefixes, Emergency Power Reduction, DMWr, FRS")
        .because("Each takes part in what is on the path, which is EL2's"),
    field(0x28, 0x0000_001f, Writable,  "7.5.3.16",   "Completion Timeout Value, Completion Timeout Disable")
        .because(PATH_IS_EL2S),
    field(0x28, 0x0000_03e0, Hidden,    "7.5.3.16",   "ARI Forwarding Enable, AtomicOp Requester Enable, AtomicOp Egress Blocking, IDO Request Enable, IDO Completion Enable"),
    field(0x28, 0x0000_f800, Hidden,    "7.5.3.16",   "Emergency Power Reduction Request, 10-Bit Tag Requester Enable, OBFF Enable, End-End TLP Prefix Blocking"),
    field(0x28, 0xffff_0000, Hidden,    "7.5.3.17",   "Device Status 2"),
    field(0x34, 0xffff_ffff, Hidden,    "7.5.3.21",   "Slot Capabilities 2"),
    field(0x38, 0x0000_ffff, Hidden,    "7.5.3.22",   "Slot Control 2"),
    field(0x38, 0xffff_0000, Hidden,    "7.5.3.23",   "Slot Status 2"),
] };

/// The rest of PCI Express, of an endpoint below a port.
#[rustfmt::skip]
pub const LINK: Table = Table { name: "PCI Express (10h), with a link", section: "7.5.3.6", size: 0x3c, fields: &[
    field(0x0c, 0x0000_03ff, ReadOnly,  "7.5.3.6",    "Max Link Speed, Maximum Link Width"),
    field(0x0c, 0x0000_0c00, Hidden,    "7.5.3.6",    "ASPM Support")
        .because("The link and its power states are EL2's"),
    field(0x0c, 0x0003_f000, ReadOnly,  "7.5.3.6",    "L0s Exit Latency, L1 Exit Latency"),
    field(0x0c, 0x003c_0000, Hidden,    "7.5.3.6",    "Clock Power Management, Surprise Down and Link Active Reporting Capable, Link Bandwidth Notification Capability"),
    field(0x0c, 0x0040_0000, ReadOnly,  "7.5.3.6",    "ASPM Optionality Compliance"),
    field(0x0c, 0x0080_0000, Hidden,    "7.5.3.6",    "Reserved"),
    field(0x0c, 0xff00_0000, ReadOnly,  "7.5.3.6",    "Port Number"),
    field(0x10, 0x0000_003f, Hidden,    "7.5.3.7",    "ASPM Control, PTM Propagation Delay, Read Completion Boundary, Link Disable, Retrain Link"),
    field(0x10, 0x0000_00c0, Shared,    "7.5.3.7",    "Common Clock Configuration, Extended Synch")
        .because("Kept, and not passed on: system software sets them together with the port's"),
    field(0x10, 0x0000_ff00, Hidden,    "7.5.3.7",    "Clock power management, autonomous width, bandwidth interrupts, SRIS, Flit Mode Disable, DRS"),
    field(0x10, 0x03ff_0000, ReadOnly,  "7.5.3.8",    "Current Link Speed, Negotiated Link Width")
        .because("As they were when the function was assigned"),
    field(0x10, 0x0c00_0000, Hidden,    "7.5.3.8",    "Undefined, Link Training"),
    field(0x10, 0x1000_0000, ReadOnly,  "7.5.3.8",    "Slot Clock Configuration"),
    field(0x10, 0xe000_0000, Hidden,    "7.5.3.8",    "Data Link Layer Link Active, Link Bandwidth Management Status, Link Autonomous Bandwidth Status"),
    field(0x24, 0x0000_0800, ReadOnly,  "7.5.3.15",   "LTR Mechanism Supported"),
    field(0x28, 0x0000_0400, Writable,  "7.5.3.16",   "LTR Mechanism Enable")
        .because("Kept, and not passed on: the device sends no LTR messages"),
    field(0x2c, 0x0000_0001, Hidden,    "7.5.3.18",   "Reserved"),
    field(0x2c, 0x0000_00fe, ReadOnly,  "7.5.3.18",   "Supported Link Speeds Vector"),
    field(0x2c, 0xffff_ff00, Hidden,    "7.5.3.18",   "Crosslink, SKP OS, retimers, DRS Supported"),
    field(0x30, 0x0000_ffff, Hidden,    "7.5.3.19",   "Link Control 2"),
    field(0x30, 0xffff_0000, Hidden,    "7.5.3.20",   "Link Status 2"),
] };

/// The rest of PCI Express, of an integrated endpoint.
#[rustfmt::skip]
pub const NO_LINK: Table = Table { name: "PCI Express (10h), without a link", section: "7.5.3.6", size: 0x3c, fields: &[
    field(0x0c, 0xffff_ffff, Hidden,    "7.5.3.6",    "Link Capabilities"),
    field(0x10, 0x0000_ffff, Hidden,    "7.5.3.7",    "Link Control"),
    field(0x10, 0xffff_0000, Hidden,    "7.5.3.8",    "Link Status"),
    field(0x24, 0x0000_0800, Hidden,    "7.5.3.15",   "LTR Mechanism Supported"),
    field(0x28, 0x0000_0400, Hidden,    "7.5.3.16",   "LTR Mechanism Enable"),
    field(0x2c, 0xffff_ffff, Hidden,    "7.5.3.18",   "Link Capabilities 2"),
    field(0x30, 0x0000_ffff, Hidden,    "7.5.3.19",   "Link Control 2"),
    field(0x30, 0xffff_0000, Hidden,    "7.5.3.20",   "Link Status 2"),
] };

/// Advanced Error Reporting, as far as an endpoint has it without prefixes and root ports' registers.
#[rustfmt::skip]
pub const ERRORS: Table = Table { name: "Advanced Error Reporting (0001h)", section: "7.8.4", size: 0x2c, fields: &[
    field(0x00, 0x000f_ffff, ReadOnly,  "7.8.4.1",    "Extended Capability ID, Capability Version"),
    field(0x00, 0xfff0_0000, Fixed,     "7.8.4.1",    "Next Capability Offset"),
    field(0x04, 0x0000_0fcf, Hidden,    "7.8.4.2",    "Reserved and undefined"),
    field(0x04, 0xffff_f030, Live,      "7.8.4.2",    "Uncorrectable Error Status")
        .because("To see what went wrong. EL2 does not clear it either, so that it stays for who looks after the machine; and nothing tells EL2 when it changes"),
    field(0x08, 0x0000_0fcf, Hidden,    "7.8.4.3",    "Reserved and undefined"),
    field(0x08, 0xffff_f030, ReadOnly,  "7.8.4.3",    "Uncorrectable Error Mask")
        .because("What is reported is EL2's to say"),
    field(0x0c, 0x0000_0fcf, Hidden,    "7.8.4.4",    "Reserved and undefined"),
    field(0x0c, 0xffff_f030, ReadOnly,  "7.8.4.4",    "Uncorrectable Error Severity"),
    field(0x10, 0x0000_f1c1, Live,      "7.8.4.5",    "Correctable Error Status"),
    field(0x10, 0xffff_0e3e, Hidden,    "7.8.4.5",    "Reserved"),
    field(0x14, 0x0000_f1c1, ReadOnly,  "7.8.4.6",    "Correctable Error Mask"),
    field(0x14, 0xffff_0e3e, Hidden,    "7.8.4.6",    "Reserved"),
    field(0x18, 0x0000_001f, Live,      "7.8.4.7",    "First Error Pointer"),
    field(0x18, 0x0000_01e0, Hidden,    "7.8.4.7",    "ECRC Generation and Check, Capable and Enable"),
    field(0x18, 0xffff_fe00, Hidden,    "7.8.4.7",    "Multiple Header Recording, TLP Prefix Log Present, header log sizes, reserved"),
    field(0x1c, 0xffff_ffff, Hidden,    "7.8.4.8",    "Header Log, first dword")
        .because("It holds addresses of the machine's bus"),
    field(0x20, 0xffff_ffff, Hidden,    "7.8.4.8",    "Header Log, second dword"),
    field(0x24, 0xffff_ffff, Hidden,    "7.8.4.8",    "Header Log, third dword"),
    field(0x28, 0xffff_ffff, Hidden,    "7.8.4.8",    "Header Log, fourth dword"),
] };

/// Device Serial Number.
#[rustfmt::skip]
pub const SERIAL_NUMBER: Table = Table { name: "Device Serial Number (0003h)", section: "7.9.3", size: 12, fields: &[
    field(0x00, 0x000f_ffff, ReadOnly,  "7.9.3",      "Extended Capability ID, Capability Version"),
    field(0x00, 0xfff0_0000, Fixed,     "7.9.3",      "Next Capability Offset"),
    field(0x04, 0xffff_ffff, ReadOnly,  "7.9.3",      "Serial Number, lower dword"),
    field(0x08, 0xffff_ffff, ReadOnly,  "7.9.3",      "Serial Number, upper dword"),
] };

/// Alternative Routing-ID Interpretation. All functions of a device have it, or none (7.8.8): those below a
/// port that can forward to them, whatever the device has.
#[rustfmt::skip]
pub const ARI: Table = Table { name: "Alternative Routing-ID Interpretation (000Eh), below a port with ARI Forwarding", section: "7.8.8", size: 8, fields: &[
    field(0x00, 0x000f_ffff, Fixed,     "7.8.8.1",    "Extended Capability ID, Capability Version")
        .because("Shown whether the device has it or not: of an ARI device, each function has"),
    field(0x00, 0xfff0_0000, Fixed,     "7.8.8.1",    "Next Capability Offset"),
    field(0x04, 0x0000_0003, Hidden,    "7.8.8.2",    "MFVC Function Groups Capability, ACS Function Groups Capability"),
    field(0x04, 0x0000_00fc, Hidden,    "7.8.8.2",    "Reserved"),
    field(0x04, 0x0000_ff00, Fixed,     "7.8.8.2",    "Next Function Number")
        .because("Says what is on the domain's bus, not on the machine's"),
    field(0x04, 0xffff_0000, Hidden,    "7.8.8.3",    "ARI Control"),
] };

/// Latency Tolerance Reporting. Below a port only.
#[rustfmt::skip]
pub const LATENCY: Table = Table { name: "Latency Tolerance Reporting (0018h), below a port", section: "7.8.2", size: 8, fields: &[
    field(0x00, 0x000f_ffff, ReadOnly,  "7.8.2.1",    "Extended Capability ID, Capability Version"),
    field(0x00, 0xfff0_0000, Fixed,     "7.8.2.1",    "Next Capability Offset"),
    field(0x04, 0x0000_1fff, Writable,  "7.8.2.2",    "Max Snoop LatencyValue, Max Snoop LatencyScale")
        .because("Kept, and not passed on"),
    field(0x04, 0x0000_e000, Hidden,    "7.8.2.2",    "Reserved"),
    field(0x04, 0x1fff_0000, Writable,  "7.8.2.3",    "Max No-Snoop LatencyValue, Max No-Snoop LatencyScale")
        .because("Kept, and not passed on"),
    field(0x04, 0xe000_0000, Hidden,    "7.8.2.3",    "Reserved"),
] };

/// Every table, for whoever wants to print or check them.
pub const ALL: &[Table] = &[
    STAND_IN,
    HEADER,
    PIN,
    NO_PIN,
    POWER,
    MSI,
    MSI_32,
    MSI_64,
    MSI_32_MASKED,
    MSI_64_MASKED,
    MSIX,
    MSIX_ENTRY,
    VENDOR,
    EXPRESS,
    LINK,
    NO_LINK,
    ERRORS,
    SERIAL_NUMBER,
    ARI,
    LATENCY,
];

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::vec::Vec;

    /// Every structure that a guest can meet, as the tables that make it up.
    const STRUCTURES: &[&[Table]] = &[
        &[STAND_IN],
        &[HEADER, PIN],
        &[HEADER, NO_PIN],
        &[POWER],
        &[MSI, MSI_32],
        &[MSI, MSI_64],
        &[MSI, MSI_32_MASKED],
        &[MSI, MSI_64_MASKED],
        &[MSIX],
        &[MSIX_ENTRY],
        &[VENDOR],
        &[EXPRESS, LINK],
        &[EXPRESS, NO_LINK],
        &[ERRORS],
        &[SERIAL_NUMBER],
        &[ARI],
        &[LATENCY],
    ];

    /// Fails unless each bit of a structure is in one field of the tables that make it up.
    pub(crate) fn check_structure(parts: &[Table]) {
        let size = parts.iter().map(|part| part.size).max().unwrap();
        for offset in (0..size).step_by(4) {
            let fields = parts.iter().flat_map(|part| part.fields);
            let named = fields.filter(|field| field.offset == offset);
            let seen = named.fold(0, |seen, field| {
                assert_eq!(seen & field.mask, 0, "{}: {}", parts[0].name, field.name);
                seen | field.mask
            });
            assert_eq!(seen, u32::MAX, "{} at {offset:#x}", parts[0].name);
        }
    }

    pub(crate) fn check_fields(table: &Table) {
        assert!(table.size.is_multiple_of(4), "{}", table.name);
        for field in table.fields {
            let inside = field.offset.is_multiple_of(4) && field.offset < table.size;
            assert!(inside && field.mask != 0, "{}: {}", table.name, field.name);
            assert!(field.section.starts_with("7."), "{}", field.name);
            assert!(!field.name.is_empty() && !field.why.ends_with('.'));
        }
    }

    #[test]
    fn every_bit_of_every_structure_has_one_row() {
        for parts in STRUCTURES {
            check_structure(parts);
        }
    }

    #[test]
    fn every_table_is_part_of_a_structure() {
        let names: Vec<_> = STRUCTURES
            .iter()
            .copied()
            .flatten()
            .map(|t| t.name)
            .collect();
        for table in ALL {
            assert!(names.contains(&table.name), "{}", table.name);
        }
    }

    #[test]
    fn every_field_is_inside_its_structure_and_described() {
        ALL.iter().for_each(check_fields);
    }

    /// What the page that a guest may read without a trap depends on.
    #[test]
    fn few_fields_are_read_from_the_device_each_time() {
        let fields = ALL.iter().flat_map(|table| table.fields);
        let live: Vec<_> = fields
            .filter(|field| field.access == Live)
            .map(|field| field.name)
            .collect();
        let expected = [
            "Interrupt Status",
            "Pending Bits",
            "Pending Bits",
            "Uncorrectable Error Status",
            "Correctable Error Status",
            "First Error Pointer",
        ];
        assert_eq!(live, expected);
    }
}
