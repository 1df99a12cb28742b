//! Functions that exist in EL2 only: the host bridge, and the stub that stands in for a missing
//! function 0.
//!
//! Neither has a BAR, a capability or an interrupt. Their IDs are QEMU's, so that guests know them.

use crate::register::Register;
use crate::{ConfigAccess, tables};

/// Dwords of a type 0 header. The rest of their config space reads as zero.
const DWORDS: usize = 16;

/// The dword that holds Header Type.
pub(crate) const HEADER_TYPE: usize = 3;

/// Its bit that says there are functions besides function 0.
pub(crate) const MULTI_FUNCTION: u32 = 1 << 23;

/// What tells one emulated function from another.
struct Identity {
    device: u16,
    class: u32,
}

/// QEMU's `gpex-root`: a host bridge.
const HOST_BRIDGE: Identity = Identity {
    device: 0x0008,
    class: 0x06_0000,
};

/// QEMU's number for `pxb`, which no driver of Linux takes, with the class "other system peripheral",
/// which none takes either.
const STUB: Identity = Identity {
    device: 0x0009,
    class: 0x08_8000,
};

/// Red Hat, whose numbers QEMU uses.
const VENDOR: u32 = 0x1b36;

/// Subsystem of all of QEMU's own devices, 1af4:1100.
const SUBSYSTEM: u32 = 0x1100_1af4;

/// Which bits a guest can write. Nothing follows from any of them.
static REGISTERS: [Register; DWORDS] = tables::STAND_IN.registers();

/// Config space of an emulated function without BARs.
#[derive(Clone, Debug)]
pub struct Emulated {
    dwords: [u32; DWORDS],
}

impl Emulated {
    /// Makes the host bridge, 1b36:0008.
    #[must_use]
    pub const fn host_bridge() -> Self {
        Self::new(&HOST_BRIDGE)
    }

    /// Makes a stub: a multi-function function 0 that does nothing, 1b36:0009.
    #[must_use]
    pub const fn stub() -> Self {
        let mut stub = Self::new(&STUB);
        stub.dwords[3] |= MULTI_FUNCTION;
        stub
    }

    const fn new(identity: &Identity) -> Self {
        let mut dwords = [0; DWORDS];
        dwords[0] = (identity.device as u32) << 16 | VENDOR;
        dwords[2] = identity.class << 8;
        dwords[11] = SUBSYSTEM;
        Self { dwords }
    }

    /// Answers a read.
    #[must_use]
    pub fn read(&self, access: ConfigAccess) -> u32 {
        let dword = self.dwords.get(access.offset().dword());
        access.extract(dword.map_or(0, |&dword| dword))
    }

    /// Takes a write. Nothing ever follows from it.
    pub fn write(&mut self, access: ConfigAccess, value: u32) {
        let index = access.offset().dword();
        if let (Some(dword), Some(register)) = (self.dwords.get_mut(index), REGISTERS.get(index)) {
            *dword = register.after_write(*dword, access.place(value), access.enables());
        }
    }

    /// Returns to the state after power-on.
    pub fn reset(&mut self) {
        for (dword, register) in self.dwords.iter_mut().zip(&REGISTERS) {
            *dword &= !register.rw;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Offset, Sbdf, Size};

    fn access(offset: u16, size: Size) -> ConfigAccess {
        ConfigAccess::new(Sbdf::from_rid(0, 0), Offset::new(offset).unwrap(), size).unwrap()
    }

    #[test]
    #[rustfmt::skip]
    fn bridge_and_stub_look_like_qemus() {
        let cases = [
            // offset, size,       bridge,      stub
            (0x00,     Size::Four, 0x0008_1b36, 0x0009_1b36),
            (0x02,     Size::Two,  0x0008,      0x0009),
            (0x04,     Size::Four, 0,           0),
            (0x08,     Size::Four, 0x0600_0000, 0x0880_0000),
            (0x0a,     Size::Two,  0x0600,      0x0880),
            (0x0e,     Size::One,  0x00,        0x80),
            (0x10,     Size::Four, 0,           0),
            (0x2c,     Size::Four, 0x1100_1af4, 0x1100_1af4),
            (0x34,     Size::One,  0,           0),
            (0x3d,     Size::One,  0,           0),
            (0x40,     Size::Four, 0,           0),
            (0x100,    Size::Four, 0,           0),
            (0xffc,    Size::Four, 0,           0),
        ];
        let (bridge, stub) = (Emulated::host_bridge(), Emulated::stub());
        for (offset, size, of_bridge, of_stub) in cases {
            assert_eq!(bridge.read(access(offset, size)), of_bridge, "bridge {offset:#x}");
            assert_eq!(stub.read(access(offset, size)), of_stub, "stub {offset:#x}");
        }
    }

    #[test]
    #[rustfmt::skip]
    fn writes_change_command_and_interrupt_line_only() {
        for offset in (0..0x1000).step_by(4) {
            let mut bridge = Emulated::host_bridge();
            let before = bridge.read(access(offset, Size::Four));
            bridge.write(access(offset, Size::Four), u32::MAX);
            let expected = match offset {
                0x04 => 0x0546,
                0x3c => 0xff,
                _ => before,
            };
            assert_eq!(bridge.read(access(offset, Size::Four)), expected, "{offset:#x}");
            bridge.reset();
            assert_eq!(bridge.read(access(offset, Size::Four)), before, "{offset:#x}");
        }
    }
}
