//! An access to a register frame, decoded.

/// How many bytes are accessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Width {
    Byte,
    Word,
    Double,
}

/// A naturally aligned access.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Access {
    pub(crate) offset: u32,
    pub(crate) width: Width,
}

impl Access {
    /// Decodes an access; `None` if no register of the GIC takes it, as with two bytes.
    pub(crate) fn new(offset: u64, size: u64) -> Option<Self> {
        let width = match size {
            1 => Width::Byte,
            4 => Width::Word,
            8 => Width::Double,
            _ => return None,
        };
        let offset = u32::try_from(offset).ok()?;
        (u64::from(offset) % size == 0).then_some(Self { offset, width })
    }

    pub(crate) fn is_word(self) -> bool {
        self.width == Width::Word
    }

    /// Returns what a read of the 64-bit register at or below the offset gives.
    pub(crate) fn read_wide(self, register: u64) -> u64 {
        match (self.width, self.offset & 4) {
            (Width::Double, _) => register,
            (Width::Word, 0) => register & 0xffff_ffff,
            (Width::Word, _) => register >> 32,
            (Width::Byte, _) => 0,
        }
    }

    /// Returns what the 64-bit register holds after `value` was written to it or to half of it.
    pub(crate) fn write_wide(self, register: u64, value: u64) -> u64 {
        match (self.width, self.offset & 4) {
            (Width::Double, _) => value,
            (Width::Word, 0) => register & !0xffff_ffff | value & 0xffff_ffff,
            (Width::Word, _) => register & 0xffff_ffff | value << 32,
            (Width::Byte, _) => register,
        }
    }
}
