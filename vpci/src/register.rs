//! Registers as tables: what a guest may see of each field, and what becomes of its writes.
//!
//! A [`Table`] is one header or one capability, field by field, as the specification lists them. Of
//! it a [`Register`] is made for each dword when the crate is compiled: masks that say what a read
//! and a write do. Names and sections stay out of the program. A bit that no field covers is hidden,
//! so that what nobody thought of stays out of a guest's reach; a test sees to it that there is none.

/// What a guest may do with a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// The device's value, read once when the function is built. Writes are ignored.
    ReadOnly,
    /// The model's value. Writes are ignored.
    Fixed,
    /// Kept in the model and never passed on; starts at zero.
    Writable,
    /// The same, and a function level reset leaves it, since it belongs to the link (6.6.2).
    Shared,
    /// Kept in the model, which acts on a write.
    Emulated,
    /// The address part of a BAR: bits above its size are kept in the model, those below are the
    /// model's. The model acts on a write.
    Address,
    /// Each read goes to the device. Writes are ignored.
    Live,
    /// Reads as zero; writes are ignored.
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
    /// Where the specification describes it.
    pub section: &'static str,
    /// The specification's name for it.
    pub name: &'static str,
    /// Why a guest gets it so, where that is not plain.
    pub why: &'static str,
}

impl Field {
    /// Returns the field with a reason.
    #[must_use]
    pub const fn because(self, why: &'static str) -> Self {
        Self { why, ..self }
    }
}

/// A header or a capability, or part of one: all of its fields.
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
    pub const fn register(&self, offset: u16) -> Register {
        let (mut register, mut fields) = (Register::HIDDEN, self.fields);
        while let [field, rest @ ..] = fields {
            if field.offset == offset {
                register = register.with(field);
            }
            fields = rest;
        }
        register
    }

    /// Returns the masks of all `N` dwords.
    ///
    /// # Panics
    ///
    /// If `N` is not their number. For use while compiling.
    #[must_use]
    pub const fn registers<const N: usize>(&self) -> [Register; N] {
        assert!(self.size as usize == N * 4, "not the structure's size");
        let mut registers = [Register::HIDDEN; N];
        let mut offset = 0;
        let mut rest = registers.as_mut_slice();
        while let [register, more @ ..] = rest {
            *register = self.register(offset);
            offset += 4;
            rest = more;
        }
        registers
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
    /// Left alone by a function level reset; some of what is taken as written.
    pub shared: u32,
    /// Read from the device each time.
    pub live: u32,
}

impl Register {
    /// A dword of which a guest sees nothing.
    pub const HIDDEN: Self = Self {
        copied: 0,
        rw: 0,
        shared: 0,
        live: 0,
    };

    /// Returns a register that is kept in the model, of which `rw` is taken as written.
    #[must_use]
    pub const fn kept(rw: u32) -> Self {
        Self { rw, ..Self::HIDDEN }
    }

    /// Returns this register with `field` added.
    const fn with(self, field: &Field) -> Self {
        let (mut with, mask) = (self, field.mask);
        match field.access {
            Access::ReadOnly => with.copied |= mask,
            Access::Writable | Access::Emulated => with.rw |= mask,
            Access::Shared => {
                with.rw |= mask;
                with.shared |= mask;
            }
            Access::Live => with.live |= mask,
            Access::Fixed | Access::Address | Access::Hidden => {}
        }
        with
    }

    /// Returns this register with the masks of `other` added.
    pub(crate) const fn and(self, other: Self) -> Self {
        Self {
            copied: self.copied | other.copied,
            rw: self.rw | other.rw,
            shared: self.shared | other.shared,
            live: self.live | other.live,
        }
    }

    /// Returns what `old` becomes when a guest writes the byte lanes in `enables`.
    ///
    /// What is not taken as written is read-only, and a byte that is not enabled keeps every bit. No bit is
    /// cleared by a one: those that are on hardware are the device's, live or hidden.
    #[must_use]
    pub const fn after_write(&self, old: u32, written: u32, enables: u32) -> u32 {
        let taken = self.rw & enables;
        old & !taken | written & taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    #[rustfmt::skip]
    fn a_write_changes_only_the_enabled_writable_bits() {
        let register = Register::kept(0xf000_00ff);
        let cases = [
            // old,       written,     enables,     becomes
            (0x0000_0000, 0xffff_ffff, 0xffff_ffff, 0xf000_00ff), // the rest is read-only
            (0xf000_00aa, 0x8000_0055, 0xffff_ffff, 0x8000_0055),
            (0xf000_00aa, 0xffff_ff55, 0x0000_00ff, 0xf000_0055), // only the enabled byte
            (0x1234_56ff, 0x0000_0000, 0xffff_ffff, 0x0234_5600),
        ];
        for (old, written, enables, becomes) in cases {
            let got = register.after_write(old, written, enables);
            assert_eq!(got, becomes, "{written:#010x} & {enables:#010x} over {old:#010x}");
        }
    }

    #[test]
    #[rustfmt::skip]
    fn a_dword_is_the_sum_of_its_fields() {
        const fn field(offset: u16, mask: u32, access: Access) -> Field {
            Field { offset, mask, access, section: "none", name: "a field", why: "" }
        }
        const TABLE: Table = Table { name: "t", section: "none", size: 12, fields: &[
            field(0, 0x0000_000f, Access::ReadOnly),
            field(4, 0x0000_0001, Access::ReadOnly),
            field(4, 0x0000_0002, Access::Fixed),
            field(4, 0x0000_0004, Access::Writable),
            field(4, 0x0000_0008, Access::Emulated),
            field(4, 0x0000_0010, Access::Live),
            field(4, 0x0000_0020, Access::Address),
            field(4, 0x0000_0040, Access::Hidden),
            field(4, 0x0000_0080, Access::Shared),
        ] };
        let sum = Register { copied: 0x01, rw: 0x8c, shared: 0x80, live: 0x10 };
        assert_eq!(TABLE.register(4), sum);
        assert_eq!(TABLE.register(8), Register::HIDDEN);
        let first = Register { copied: 0x0f, ..Register::HIDDEN };
        assert_eq!(TABLE.registers(), [first, sum, Register::HIDDEN]);
        assert_eq!(field(0, 1, Access::Hidden).because("so").why, "so");
    }

    #[test]
    #[rustfmt::skip]
    fn a_dword_of_two_structures_has_the_masks_of_both() {
        let one = Register { copied: 0x5, rw: 0x50, shared: 0x500, live: 0x5000 };
        let other = Register { copied: 0x6, rw: 0x60, shared: 0x600, live: 0x6000 };
        let both = Register { copied: 0x7, rw: 0x70, shared: 0x700, live: 0x7000 };
        assert_eq!(one.and(other), both);
        assert_eq!(other.and(one), both);
        assert_eq!(one.and(Register::HIDDEN), one);
    }

    proptest! {
        #[test]
        fn lanes_that_are_not_enabled_keep_their_bits(
            rw: u32, old: u32, written: u32, enables: u32,
        ) {
            let becomes = Register::kept(rw).after_write(old, written, enables);
            prop_assert_eq!(becomes & !enables, old & !enables);
            prop_assert_eq!(becomes & !rw, old & !rw);
            prop_assert_eq!(becomes & rw & enables, written & rw & enables);
        }
    }
}
