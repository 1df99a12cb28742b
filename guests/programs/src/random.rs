//! Numbers that look random and are the same in every run.

/// A xorshift generator (Marsaglia, "Xorshift RNGs", 2003) with a multiplication at the end.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    /// Starts a sequence.
    pub(crate) const fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    /// Returns the next number.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Returns a number below `end`.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "usize has 64 bits on the only target"
    )]
    pub(crate) fn below(&mut self, end: usize) -> usize {
        self.next() as usize % end
    }

    /// Returns a number that is likely to matter: small, all ones, near a power of two, an address,
    /// or any.
    pub(crate) fn interesting(&mut self) -> u64 {
        let number = self.next();
        let small = number >> 8 & 0xf;
        match number & 7 {
            0 => small,
            1 => u64::MAX - small,
            2 => (1 << (number >> 16 & 63)) + small,
            3 => 0x4000_0000 + (number >> 16 & 0x0fff_ffff),
            4 => 0x40_1000_0000 + (number >> 16 & 0x0fff_ffff),
            5 => number & 0xffff_ffff,
            6 => 0,
            _ => number,
        }
    }
}
