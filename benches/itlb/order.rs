//! In which order programs are called.
//!
//! Key types: [`Order`], [`Rng`]. Every sequence is the same each time: the seed is the number of
//! programs. Source: Vigna's splitmix64; Zipf's law with the exponent 1.

use std::fmt;

/// An order of calls.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(crate) enum Order {
    /// One after the other, as they were loaded, and again.
    RoundRobin,
    /// Each with the same chance.
    Random,
    /// The hottest with the chance 1/H, the second with 1/2H, the third with 1/3H … Which is the
    /// hottest has nothing to do with which was loaded first.
    Zipf,
}

impl Order {
    pub(crate) const ALL: [Self; 3] = [Self::RoundRobin, Self::Random, Self::Zipf];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::RoundRobin => "round-robin",
            Self::Random => "random",
            Self::Zipf => "zipf",
        }
    }

    /// The calls: `nr_calls` of the programs 0 to `nr_programs` - 1.
    pub(crate) fn calls(self, nr_programs: usize, nr_calls: usize) -> Vec<u32> {
        let mut rng = Rng::new(nr_programs as u64);
        match self {
            Self::RoundRobin => (0..nr_calls).map(|n| (n % nr_programs) as u32).collect(),
            Self::Random => (0..nr_calls)
                .map(|_| rng.below(nr_programs as u64) as u32)
                .collect(),
            Self::Zipf => {
                let by_rank = rng.shuffled(nr_programs);
                let until = cumulated(nr_programs);
                let total = until.last().copied().unwrap_or_default();
                let mut call = || {
                    let at = rng.unit() * total;
                    let rank = until.partition_point(|&until| until <= at);
                    by_rank[rank.min(nr_programs - 1)]
                };
                (0..nr_calls).map(|_| call()).collect()
            }
        }
    }
}

impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// 1, 1 + 1/2, 1 + 1/2 + 1/3, …
fn cumulated(nr: usize) -> Vec<f64> {
    let mut sum = 0.0;
    let mut add = |rank: usize| {
        sum += 1.0 / rank as f64;
        sum
    };
    (1..=nr).map(&mut add).collect()
}

/// Numbers that look random.
#[derive(Clone, Debug)]
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// 0 to `end` - 1, each with the same chance but for 1 in 2^64 / `end`.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        (u128::from(self.next()) * u128::from(end) >> 64) as u64
    }

    /// From 0, below 1.
    pub(crate) fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// 0 to `nr` - 1 in any order (Fisher and Yates).
    pub(crate) fn shuffled(&mut self, nr: usize) -> Vec<u32> {
        let mut all: Vec<u32> = (0..nr as u32).collect();
        for end in (1..nr).rev() {
            all.swap(end, self.below(end as u64 + 1) as usize);
        }
        all
    }
}
