//! What the tests share: operands worth trying, a machine, random numbers.

pub(crate) mod gnu;
pub(crate) mod machine;

use crate::{Csr, EvenReg, FReg, FenceSet, Offset, Order, Reg, Rm, SImm, UImm};

/// Values of an operand worth trying.
pub(crate) trait Edges: Sized {
    /// Those that show each bit of the field, and the ends.
    fn edges() -> Vec<Self>;
    /// One in the middle, held while another operand is tried.
    fn middle() -> Self;
}

macro_rules! edges {
    ($ty:ty, $middle:expr, $all:expr) => {
        impl Edges for $ty {
            fn edges() -> Vec<Self> {
                $all.into_iter().collect()
            }

            fn middle() -> Self {
                $middle
            }
        }
    };
}

/// Each bit of the number alone, none and all, and those that compressed
/// forms treat apart.
const REG_NUMS: [u32; 9] = [0, 1, 2, 4, 8, 15, 16, 24, 31];

edges!(Reg, Reg::A5, REG_NUMS.into_iter().filter_map(Reg::from_num));
edges!(
    FReg,
    FReg::Fa5,
    REG_NUMS.into_iter().filter_map(FReg::from_num)
);
edges!(
    EvenReg,
    EvenReg::new(Reg::A2).unwrap(),
    Reg::ALL.into_iter().filter_map(EvenReg::new)
);
edges!(Order, Order::Relaxed, Order::ALL);
edges!(Rm, Rm::Dyn, Rm::ALL);
edges!(
    FenceSet,
    FenceSet::RW,
    (1..16).filter_map(FenceSet::from_bits)
);
edges!(
    Csr,
    Csr::FCSR,
    [
        1, 2, 3, 8, 9, 0xa, 0xf, 0xc00, 0xc01, 0xc02, 0xc20, 0xc21, 0xc22, 0, 0x7c0, 0x800, 0xfff
    ]
    .into_iter()
    .filter_map(Csr::new)
);

impl<const BITS: u32> Edges for SImm<BITS> {
    fn edges() -> Vec<Self> {
        signed_edges(BITS).filter_map(Self::new).collect()
    }

    fn middle() -> Self {
        Self::new(5).unwrap()
    }
}

impl<const BITS: u32> Edges for UImm<BITS> {
    fn edges() -> Vec<Self> {
        [0, (1 << BITS) - 1]
            .into_iter()
            .chain((0..BITS).map(|bit| 1 << bit))
            .filter_map(Self::new)
            .collect()
    }

    fn middle() -> Self {
        Self::new(5).unwrap()
    }
}

impl<const BITS: u32> Edges for Offset<BITS> {
    fn edges() -> Vec<Self> {
        signed_edges(BITS).filter_map(Self::new).collect()
    }

    fn middle() -> Self {
        Self::new(12).unwrap()
    }
}

/// Each bit alone, the ends, and what stands beside zero and the ends.
fn signed_edges(bits: u32) -> impl Iterator<Item = i64> {
    let end = 1_i64 << (bits - 1);
    let mut all: Vec<i64> = (0..bits).map(|bit| 1 << bit).collect();
    all.extend([
        -end,
        -end + 1,
        -end + 2,
        -32,
        -31,
        -29,
        -3,
        -2,
        -1,
        0,
        3,
        33,
        end - 2,
        end - 1,
    ]);
    all.sort_unstable();
    all.dedup();
    all.into_iter()
}

/// Random numbers that are the same in every run (SplitMix64).
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ x >> 31
    }

    /// Below `end`.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    /// All sizes and shapes: runs of ones, few bits, many bits.
    pub(crate) fn shaped(&mut self) -> u64 {
        let x = self.next();
        match self.below(6) {
            0 => x,
            1 => x >> self.below(64),
            2 => ((x as i64) >> self.below(64)) as u64,
            3 => (x >> self.below(64)) << self.below(64),
            4 => 1 << (x & 63) | 1 << (x >> 8 & 63),
            _ => u64::MAX >> (x & 63) << (x >> 8 & 63) ^ x >> (x >> 16 & 63),
        }
    }
}

/// FNV-1a.
pub(crate) fn hash(words: &[u32]) -> u64 {
    let bytes = words.iter().flat_map(|word| word.to_le_bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// Numbers around which the immediates of compressed forms begin and end.
pub(crate) fn compressed_edges() -> Vec<i64> {
    let mut all = vec![0, 3, 20, 63, 64, 255, 1024];
    for bit in 0..12 {
        let power = 1 << bit;
        all.extend([
            power,
            -power,
            power - 1,
            power - 2,
            power - 4,
            power - 8,
            power - 16,
        ]);
        all.extend([-power - 1, -power - 2, -power - 16, power + 4, power + 8]);
    }
    all.sort_unstable();
    all.dedup();
    all
}
