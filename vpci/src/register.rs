//! Registers as tables: what a guest may see of each field, and what becomes of its writes.
//!
//! A [`Table`] is one header or one capability, field by field, as the specification lists them. Of
//! it a [`Register`] is made for each dword: masks that say what a read and a write do. A bit that
//! no field covers is hidden, so that what nobody thought of stays out of a guest's reach.

/// What a guest may do with a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// The device's value, read once when the function is built. Writes are ignored.
    ReadOnly,
    /// The model's value. Writes are ignored.
    Fixed,
    /// Kept in the model and never passed on; starts at zero.
    Writable,
    /// Kept in the model, which acts on a write.
    Emulated,
    /// Each read goes to the device. Writes are ignored.
    Live,
    /// Each read goes to the device, and so does each one that is written; a zero never does.
    ///
    /// Its byte holds nothing else that the device lets software write: the rest of that byte is
    /// written as zeroes.
    LiveClearedByOne,
    /// Reads as zero; writes are ignored. The same as no row at all, for what a reader might miss.
    Hidden,
}

/// One field of a register.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// Byte offset of its dword in the structure.
    pub offset: u16,
    /// Its bits in the dword.
    pub mask: u32,
    /// What a guest may do with it.
    pub access: Access,
    /// The specification's name for it.
    pub name: &'static str,
}

/// A header or a capability: all of its fields that are not hidden.
#[derive(Clone, Copy, Debug)]
pub struct Table {
    /// What the specification calls it.
    pub name: &'static str,
    /// Where the specification describes it.
    pub section: &'static str,
    /// Bytes of config space that it covers, a multiple of four.
    pub size: u16,
    /// Its fields.
    pub fields: &'static [Field],
}

impl Table {
    /// Returns the masks of the dword at byte `offset` of the structure.
    #[must_use]
    pub fn register(&self, offset: u16) -> Register {
        let fields = self.fields.iter().filter(|field| field.offset == offset);
        fields.fold(Register::HIDDEN, |register, field| register.with(field))
    }
}

/// One dword: which bits come from where, and which a write reaches.
///
/// A bit in none of the masks is the model's and read-only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Register {
    /// Copied from the device when the function is built.
    pub copied: u32,
    /// Taken as written.
    pub rw: u32,
    /// Cleared by a one.
    pub rw1c: u32,
    /// Read from the device each time.
    pub live: u32,
    /// Ones that are written go to the device.
    pub live_rw1c: u32,
}

impl Register {
    /// A dword of which a guest sees nothing.
    pub const HIDDEN: Self = Self {
        copied: 0,
        rw: 0,
        rw1c: 0,
        live: 0,
        live_rw1c: 0,
    };

    /// Returns a register that is kept in the model: what is taken as written, and what a one clears.
    #[must_use]
    pub const fn kept(rw: u32, rw1c: u32) -> Self {
        Self {
            rw,
            rw1c,
            ..Self::HIDDEN
        }
    }

    /// Returns this register with `field` added.
    const fn with(self, field: &Field) -> Self {
        let (mut with, mask) = (self, field.mask);
        match field.access {
            Access::ReadOnly => with.copied |= mask,
            Access::Writable | Access::Emulated => with.rw |= mask,
            Access::Live => with.live |= mask,
            Access::LiveClearedByOne => {
                with.live |= mask;
                with.live_rw1c |= mask;
            }
            Access::Fixed | Access::Hidden => {}
        }
        with
    }

    /// Returns this register with the masks of `other` added.
    pub(crate) const fn and(self, other: Self) -> Self {
        Self {
            copied: self.copied | other.copied,
            rw: self.rw | other.rw,
            rw1c: self.rw1c | other.rw1c,
            live: self.live | other.live,
            live_rw1c: self.live_rw1c | other.live_rw1c,
        }
    }

    /// Returns what `old` becomes when a guest writes the byte lanes in `enables`.
    ///
    /// A bit in neither mask is read-only, and a byte that is not enabled keeps every bit, so that
    /// writing Command alone clears nothing in Status.
    #[must_use]
    pub const fn after_write(&self, old: u32, written: u32, enables: u32) -> u32 {
        let taken = self.rw & enables;
        let cleared = self.rw1c & enables & written;
        (old & !taken & !cleared) | (written & taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    #[rustfmt::skip]
    fn a_write_changes_only_the_enabled_writable_bits() {
        let register = Register::kept(0x0000_00ff, 0xf000_0000);
        let cases = [
            // old,       written,     enables,     becomes
            (0x0000_0000, 0xffff_ffff, 0xffff_ffff, 0x0000_00ff), // the rest is read-only
            (0xf000_00aa, 0x8000_0055, 0xffff_ffff, 0x7000_0055), // a written one clears
            (0xf000_00aa, 0xffff_ff55, 0x0000_00ff, 0xf000_0055), // only the enabled byte
            (0x1234_5600, 0x0000_0000, 0xffff_ffff, 0x1234_5600), // a written zero clears nothing
        ];
        for (old, written, enables, becomes) in cases {
            let got = register.after_write(old, written, enables);
            assert_eq!(got, becomes, "{written:#010x} & {enables:#010x} over {old:#010x}");
        }
    }

    #[test]
    #[rustfmt::skip]
    fn a_dword_is_the_sum_of_its_fields() {
        const FIELDS: &[Field] = &[
            Field { offset: 0, mask: 0x0000_000f, access: Access::ReadOnly,         name: "a" },
            Field { offset: 4, mask: 0x0000_0001, access: Access::ReadOnly,         name: "b" },
            Field { offset: 4, mask: 0x0000_0002, access: Access::Fixed,            name: "c" },
            Field { offset: 4, mask: 0x0000_0004, access: Access::Writable,         name: "d" },
            Field { offset: 4, mask: 0x0000_0008, access: Access::Emulated,         name: "e" },
            Field { offset: 4, mask: 0x0000_0010, access: Access::Live,             name: "f" },
            Field { offset: 4, mask: 0x0000_0020, access: Access::LiveClearedByOne, name: "g" },
            Field { offset: 4, mask: 0x0000_0040, access: Access::Hidden,           name: "h" },
        ];
        let table = Table { name: "t", section: "none", size: 12, fields: FIELDS };
        let sum = Register { copied: 0x01, rw: 0x0c, rw1c: 0, live: 0x30, live_rw1c: 0x20 };
        assert_eq!(table.register(4), sum);
        assert_eq!(table.register(8), Register::HIDDEN);
    }

    proptest! {
        #[test]
        fn lanes_that_are_not_enabled_keep_their_bits(
            rw: u32, rw1c: u32, old: u32, written: u32, enables: u32,
        ) {
            let becomes = Register::kept(rw, rw1c & !rw).after_write(old, written, enables);
            prop_assert_eq!(becomes & !enables, old & !enables);
            let fixed = !rw & !rw1c;
            prop_assert_eq!(becomes & fixed, old & fixed);
            prop_assert_eq!(becomes & rw & enables, written & rw & enables);
        }
    }
}
