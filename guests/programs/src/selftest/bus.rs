//! The PCI bus, seen through the ECAM window.

use runtime::harness::Outcome;
use runtime::mmio::{Odd, Width, Window};
use runtime::platform::{self, HostBridge};
use runtime::{check, check_eq, skip};

use super::on_isthmus;
use crate::pci::{self, Function};

/// QEMU's host bridge, and Isthmus's.
const HOST_BRIDGE: u32 = 0x0008_1b36;
/// A function that no test system has.
const ABSENT: u16 = 0x00f8;

macro_rules! bridge {
    () => {{
        let bridge: HostBridge = match platform::get().host_bridge {
            Some(bridge) => bridge,
            None => skip!("there is no host bridge"),
        };
        bridge
    }};
}

pub(super) fn host_bridge() -> Outcome {
    let bridge = bridge!();
    let config = bridge.function(0);
    check_eq!(config.read32(0), HOST_BRIDGE, "vendor and device");
    check_eq!(config.read32(8) >> 8, 0x06_0000, "class");
    check_eq!(config.read8(0x0e) & 0x7f, 0, "header type");
    Ok(())
}

/// Reads of a function that is not there give ones, in each width and at each place.
pub(super) fn absent() -> Outcome {
    let bridge = bridge!();
    for requester in [ABSENT, 0x0100, 0x80f8, 0xffff] {
        let config = bridge.function(requester);
        for offset in [0, 4, 0x10, 0x3c, 0xf8, 0x100, 0xff8] {
            for width in Width::ALL {
                let offset = offset / width.bytes() * width.bytes();
                let value = config.probe_read(offset, width);
                check_eq!(
                    value,
                    Ok(width.ones()),
                    "{requester:#06x} {offset:#x} {width:?}"
                );
            }
        }
    }
    Ok(())
}

/// Returns `width` bytes of config space as the dwords around them have them.
fn from_dwords(config: &Window, offset: usize, width: Width) -> u64 {
    let dword = |at: usize| u64::from(config.read32(at & !3));
    let eight = dword(offset) | dword(offset + 4) << 32;
    eight >> (8 * (offset % 4)) & width.ones()
}

/// Bytes, halfwords and doublewords agree with the words.
pub(super) fn widths() -> Outcome {
    let bridge = bridge!();
    for function in Function::all(&bridge) {
        for width in Width::ALL {
            for offset in (0..0x40 - 4).step_by(width.bytes()) {
                // Status may change between two reads: its bytes are compared with themselves.
                let value = function.config.probe_read(offset, width);
                let expected = from_dwords(&function.config, offset, width);
                check_eq!(
                    value,
                    Ok(expected),
                    "{:#06x} {offset:#x} {width:?}",
                    function.requester
                );
            }
        }
    }
    Ok(())
}

/// Pairs and writeback have no valid syndrome, and work all the same (more of them in `accesses`). What
/// no config request can express is an external abort, but for loads where config space is mapped.
pub(super) fn odd_accesses() -> Outcome {
    let bridge = bridge!();
    let config = bridge.function(0);
    let pair = u64::from(config.read32(8)) | u64::from(config.read32(12)) << 32;
    let moved = u64::from(config.read32(8)) | 4 << 32;
    for (odd, value) in [(Odd::PairLoad, pair), (Odd::PostIndexLoad, moved)] {
        check_eq!(config.probe_odd(8, odd), Ok(value), "{odd:?}");
    }
    for odd in [Odd::PairStore, Odd::PreIndexStore] {
        // Zeros over the capability pointer's dword and the one after, which cannot be written.
        let stored = config.probe_odd(0x30, odd).map(|_| ());
        check_eq!(stored, Ok(()), "{odd:?}");
    }
    if on_isthmus() {
        for odd in [Odd::Exclusive, Odd::ZeroBlock] {
            if odd == Odd::Exclusive && pci::is_mapped(&config) {
                continue;
            }
            let result = config.probe_odd(0, odd);
            // DC ZVA to device memory is an alignment fault before anything else.
            let refused =
                result.is_err_and(|fault| fault.is_external_abort() || fault.is_alignment());
            check!(refused, "{odd:?}: {result:?}");
        }
    }
    check_eq!(config.read32(0), HOST_BRIDGE, "the host bridge afterwards");
    Ok(())
}

/// An access that is not aligned aborts, in stage 1 or as the bus cannot express it. Loads of config space
/// that is mapped are stage 1's alone, and not every version of QEMU minds them.
pub(super) fn unaligned() -> Outcome {
    let bridge = bridge!();
    if !on_isthmus() {
        skip!("not on Isthmus");
    }
    for requester in [0, ABSENT] {
        let config = bridge.function(requester);
        for (offset, width) in [
            (1, Width::Half),
            (3, Width::Half),
            (1, Width::Word),
            (2, Width::Word),
            (4 + 2, Width::Double),
        ] {
            let read = config.probe_read(offset, width);
            let write = config.probe_write(offset, width, u64::MAX).map(|()| 0);
            for (what, result) in [("read", read), ("write", write)] {
                let refused =
                    result.is_err_and(|fault| fault.is_external_abort() || fault.is_alignment());
                let is_load = what == "read" && pci::is_mapped(&config);
                check!(
                    refused || is_load,
                    "{what} of {width:?} at {offset:#x} of {requester:#06x}: {result:?}"
                );
            }
        }
    }
    // Across the end of a function.
    let across = bridge.ecam.part(0, 0x2000).probe_read(0xfff, Width::Word);
    let is_load = pci::is_mapped(&bridge.function(0));
    check!(
        across.is_err() || is_load,
        "across two functions: {across:?}"
    );
    Ok(())
}

pub(super) fn writes_dropped() -> Outcome {
    let bridge = bridge!();
    let absent = bridge.function(ABSENT);
    for width in Width::ALL {
        let result = absent.probe_write(0, width, 0);
        check!(
            result.is_ok(),
            "{width:?} to an absent function: {result:?}"
        );
    }
    check_eq!(absent.read32(0), u32::MAX, "the absent function");
    let host = bridge.function(0);
    host.write32(0, 0);
    host.write32(8, u32::MAX);
    check_eq!(host.read32(0), HOST_BRIDGE, "the host bridge's IDs");
    check_eq!(host.read32(8) >> 8, 0x06_0000, "the host bridge's class");
    Ok(())
}
