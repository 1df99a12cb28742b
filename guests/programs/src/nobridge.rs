//! Tests of a domain without host bridge: nothing in the device tree, and nothing behind it.

use runtime::exception::Fault;
use runtime::harness::{self, Outcome, Test};
use runtime::mmio::{Width, Window};
use runtime::platform::{self, Platform};
use runtime::{check, println};

/// Where a domain with a host bridge has it (README's memory map).
#[rustfmt::skip]
const WINDOWS: [(&str, usize, usize); 4] = [
    ("ECAM",          0x40_1000_0000, 0x1000_0000),
    ("32-bit window", 0x1000_0000,    0x2eff_0000),
    ("64-bit window", 0x50_0000_0000, 0x20_0000_0000),
    ("ITS",           0x0808_0000,    0x2_0000),
];

/// Runs the tests and powers off.
pub fn main(_platform: &'static Platform) {
    println!("nobridge: running");
    harness::run(&[
        Test {
            name: "tree_has_no_bridge",
            run: tree,
        },
        Test {
            name: "reads_abort",
            run: reads,
        },
        Test {
            name: "writes_abort",
            run: writes,
        },
    ])
}

fn tree() -> Outcome {
    let platform = platform::get();
    check!(platform.host_bridge.is_none(), "the tree has a host bridge");
    check!(platform.its.is_none(), "the tree has an ITS");
    let mut nodes = platform.tree.nodes();
    let pci = nodes.find(|node| {
        let kind = node.property("device_type").map(|property| property.value);
        kind == Some(b"pci\0") || node.base_name().starts_with("pci")
    });
    check!(pci.is_none(), "the tree has the node {pci:?}");
    Ok(())
}

/// Offsets into a window of `bytes` bytes, with all alignments among them.
fn offsets(bytes: usize) -> impl Iterator<Item = usize> {
    let strided = (0..64).map(move |index| bytes / 64 * index / 8 * 8 + index % 8);
    strided.chain([0, bytes - 8])
}

fn each(access: impl Fn(&Window, usize, Width) -> Option<Fault>) -> Outcome {
    for (name, base, bytes) in WINDOWS {
        // SAFETY: nothing of ours is there; a domain's memory starts at 1 GiB and is small.
        let window = unsafe { Window::new(base, bytes) };
        for offset in offsets(bytes) {
            for width in Width::ALL {
                let fault = access(&window, offset, width);
                // Alignment comes first where the memory type asks for it.
                let sound =
                    fault.is_some_and(|fault| fault.is_external_abort() || fault.is_alignment());
                check!(
                    sound,
                    "{name} at {:#x}, {width:?}: {fault:?}",
                    base + offset
                );
            }
        }
    }
    Ok(())
}

fn reads() -> Outcome {
    each(|window, offset, width| window.probe_read(offset, width).err())
}

fn writes() -> Outcome {
    each(|window, offset, width| window.probe_write(offset, width, u64::MAX).err())
}
