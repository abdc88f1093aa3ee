//! Numbers that repeat, and the constants that programs are made of.
//!
//! Key type: [`Rng`], which is splitmix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number
//! generators", 2014).

/// A sequence that its seed determines.
pub(crate) struct Rng(u64);

/// Where instructions choose between forms: bounds of immediates, single bits and their
/// neighbours, shift amounts, multipliers.
const EDGES: [i32; 34] = [
    0,
    1,
    -1,
    2,
    -2,
    3,
    5,
    7,
    8,
    9,
    16,
    24,
    31,
    32,
    33,
    63,
    64,
    0x7f,
    0x80,
    0xff,
    0x100,
    2047,
    2048,
    -2048,
    -2049,
    4095,
    4096,
    0xffff,
    0x1_0000,
    0x7fff_ffff,
    i32::MIN,
    i32::MIN + 1,
    0x7fff_f800,
    -0x1_0000,
];

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// One of `0..n`; 0 for no number at all.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.next() >> 33) as usize % n.max(1)
    }

    /// One of `from..=to`.
    pub(crate) fn between(&mut self, from: usize, to: usize) -> usize {
        from + self.below(to - from + 1)
    }

    /// So many times of a hundred.
    pub(crate) fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    /// A constant of an instruction.
    pub(crate) fn imm(&mut self) -> i32 {
        let bit = 1_i32 << self.below(32);
        match self.below(10) {
            0..=3 => self.pick(&EDGES),
            4 => bit,
            5 => !bit,
            6 => bit.wrapping_sub(1),
            7 => i32::from(self.next() as i8),
            8 => i32::from(self.next() as i16),
            _ => self.next() as i32,
        }
    }

    /// A constant of 64 bits.
    pub(crate) fn imm64(&mut self) -> u64 {
        let high = self.imm();
        let low = self.imm();
        match self.below(8) {
            0 => 1 << self.below(64),
            1 => (1 << self.below(64)) - 1,
            2 => u64::from(low as u32),
            3 => low as u64,
            4 => u64::from(high as u32) << 32 | u64::from(low as u32),
            5 => u64::from(high as u32) << 32,
            6 => self.pick(&[i64::MIN as u64, i64::MAX as u64, u64::MAX, 0]),
            _ => self.next(),
        }
    }
}
