//! Writes the tables out as a page of documentation, and sees that the stored one is up to date.
//!
//! `ISTHMUS_BLESS=1 cargo test --package vpci --test document` writes it anew.

use std::fmt::Write as _;
use std::path::Path;
use std::{env, fs};

use vpci::register::{Access, Field, Table};
use vpci::{port, tables};

const INTRODUCTION: &str = "\
# Config space of passed-through functions

What a guest finds in the config space of a function that it has, field by field. This page is written by
`ISTHMUS_BLESS=1 cargo test --package vpci --test document` from the tables in `vpci/src/tables.rs`, of which the
behaviour comes too; do not edit it. Root ports come last. Sections are those of the PCI Express Base Specification,
revision 6.0.

| the guest | means |
|---|---|
| reads it | the device's value, read once when the function is assigned; writes do nothing |
| reads EL2's | EL2's value; writes do nothing |
| keeps it | kept for the guest and never passed on; zero after a reset, or what the specification says |
| shares it | the same, and a function level reset leaves it, since it belongs to the link (6.6.2) |
| sets it | kept for the guest, and EL2 acts on it |
| sets the address | bits above the size are the guest's and EL2 acts on them, those below are EL2's |
| sees it live | each read goes to the device; writes do nothing |
| does not see it | reads as zero; writes do nothing |

Nothing that a guest writes to config space reaches the device as it was written, and no field is cleared by a one.
Capabilities that are not on this page are left out of the chain, and so is a second one of the same kind (but for
the vendor-specific ones), one that overlaps another structure, and one that ends outside of its part of config space.
Never shown are SR-IOV, ATS, PRI, PASID, ACS, Resizable BAR and VPD: each would let a guest change what isolates it or
what EL2 has set up.

The extended chain begins at 100h. If what the device has there is not shown, a capability with ID 0000h stands there
and leads on.

While none of a function's fields is live, it reads the same until the guest writes to it, or EL2 changes what is on its
bus. Its page is then mapped, and reads do not trap: [config-reads.md](config-reads.md). Which fields are live depends
on what the guest has set, as their rows say; of a function with Advanced Error Reporting some always are.
";

const ADDRESSES: &str = "
## What base address registers do

- A BAR's bits below its size are fixed; the rest are the guest's to write, with memory decode on or off, in any order
  and by any bytes. Sizing works as section 7.5.1.2.1 says.
- A 64-bit BAR is where both halves together say. Between the writes of its halves it is where the one new and the one
  old half lead: outside the bridge's windows as a rule, and so nowhere.
- I/O BARs read as zero. The function's memory BARs have to be enough for its driver.
- The expansion ROM decodes while Memory Space Enable and its own enable bit are both set. It is not mapped: each read
  traps, and a store does nothing. A function may use one decoder for its ROM and its BARs, which nobody may access
  then while the ROM's enable bit is set (7.5.1.2.4). A guest can keep to that, but not for EL2, which has MSI-X tables
  and other parts of BARs to answer for. So the bit is set in the device during each read only, and nothing of EL2's
  falls into one. A guest's access to a BAR does, if another vCPU makes it, and is lost then if the decoder is one: it
  is one that no guest may make. A ROM for which the machine's windows have no room is hidden.
- A range outside the bridge's windows, or only partly inside one of them, is decoded by nobody: so RAM, the interrupt
  controller and what else a domain has are out of reach.
- Two BARs that overlap: the specification leaves open who answers. Here the one that came first keeps its whole range,
  and the other one waits until no one has any of it. (QEMU's bridge lets the newer one answer where they overlap. It
  is not followed in this: no write to one function shall change what another one decodes.)
- What is mapped are whole pages that hold nothing but the BAR, without those of MSI-X table and pending bits. Accesses
  to the rest trap: to BARs smaller than a page, and to registers beside an MSI-X table. They go to the device in the
  size in which they were made.
- Reads past the end of a BAR within its last page give all ones.

## What MSIs do

- The device gets EL2's address and data. A vector is live when the guest's address is the domain's doorbell; aimed
  elsewhere it stays masked in the device, and the attempt is logged.
- A vector that the guest masks is masked in the device, which keeps it pending, and sends it when it is unmasked.
  Messages that were on their way still arrive. Pending bits are the device's.
- The function mask and both enable bits are the device's, too.
- MSI with several vectors: the guest's data with its lowest bits replaced by the vector's number, as 7.7.1.5 says.
";

const PORTS: &str = "
# Config space of root ports

A root port is EL2's alone: nothing in it comes from a device (`vpci/src/port/tables.rs`). Its structures are at 00h,
40h (PCI Express, with ARI Forwarding if the configuration wants it), 80h (MSI) and 90h (power management).
";

const fn meaning(access: Access) -> &'static str {
    match access {
        Access::ReadOnly => "reads it",
        Access::Fixed => "reads EL2's",
        Access::Writable => "keeps it",
        Access::Shared => "shares it",
        Access::Emulated => "sets it",
        Access::Address => "sets the address",
        Access::Live => "sees it live",
        Access::Hidden => "does not see it",
    }
}

/// Returns where a field is, as the specification writes it: byte offset, and bits of the dword.
fn place(field: &Field) -> (String, String) {
    let mut bits = vec![];
    let mut rest = field.mask;
    while rest != 0 {
        let top = 31 - rest.leading_zeros();
        let ones = (rest << (31 - top)).leading_ones();
        let bottom = top + 1 - ones;
        bits.push(if ones == 1 {
            format!("{top}")
        } else {
            format!("{top}:{bottom}")
        });
        rest &= (1_u32 << bottom) - 1;
    }
    (format!("{:02x}h", field.offset), bits.join(", "))
}

fn structure(page: &mut String, table: &Table) {
    let (name, section) = (table.name, table.section);
    writeln!(page, "\n## {name}\n\nSection {section}.\n").unwrap();
    writeln!(
        page,
        "| offset | bits | section | field | the guest | why |"
    )
    .unwrap();
    writeln!(page, "|---|---|---|---|---|---|").unwrap();
    for field in table.fields {
        let (offset, bits) = place(field);
        let (section, name, why) = (field.section, field.name, field.why);
        let meaning = meaning(field.access);
        writeln!(
            page,
            "| {offset} | {bits} | {section} | {name} | {meaning} | {why} |"
        )
        .unwrap();
    }
}

#[test]
#[cfg_attr(miri, ignore = "long, and it only writes text")]
fn the_page_about_config_space_is_what_the_tables_say() {
    let mut page = String::from(INTRODUCTION);
    for table in tables::ALL {
        structure(&mut page, table);
    }
    page.push_str(ADDRESSES);
    page.push_str(PORTS);
    for table in port::tables::ALL {
        structure(&mut page, table);
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../kernel/docs/config-space.md");
    if env::var_os("ISTHMUS_BLESS").is_some() {
        fs::write(&path, &page).unwrap();
    }
    let stored = fs::read_to_string(&path).unwrap();
    assert!(
        stored == page,
        "{} is out of date; the first lines of this test say how to write it anew",
        path.display()
    );
}

#[test]
fn bits_are_written_as_ranges_from_the_top() {
    let field = |mask| Field {
        mask,
        ..tables::HEADER.fields[0]
    };
    #[rustfmt::skip]
    let cases = [
        (0xffff_ffff, "31:0"), (0x0000_0001, "0"), (0x8000_0000, "31"), (0x0000_8100, "15, 8"),
        (0xf800_0000, "31:27"), (0x0000_f1c1, "15:12, 8:6, 0"),
    ];
    for (mask, bits) in cases {
        assert_eq!(place(&field(mask)).1, bits, "{mask:#x}");
    }
}
