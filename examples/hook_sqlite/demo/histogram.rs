//! A histogram whose buckets are powers of two of nanoseconds.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// 2^39 ns are nine minutes.
const BUCKETS: usize = 40;

const BAR_CHARS: u64 = 40;

/// Bucket `i` counts times of `2^i` to `2^(i+1)` nanoseconds. Any thread may add to it.
#[derive(Debug)]
pub(super) struct Histogram([AtomicU64; BUCKETS]);

impl Histogram {
    pub(super) fn new() -> Self {
        Histogram([const { AtomicU64::new(0) }; BUCKETS])
    }

    pub(super) fn add(&self, time_ns: u64) {
        let bucket = time_ns.max(1).ilog2() as usize;
        self.0[bucket.min(BUCKETS - 1)].fetch_add(1, Ordering::Relaxed);
    }

    /// How many times were added.
    pub(super) fn count(&self) -> u64 {
        self.counts().sum()
    }

    fn counts(&self) -> impl Iterator<Item = u64> {
        self.0.iter().map(|n| n.load(Ordering::Relaxed))
    }
}

impl fmt::Display for Histogram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts: Vec<u64> = self.counts().collect();
        let highest = counts.iter().copied().max().unwrap_or(0).max(1);
        let seen = |n: &u64| *n > 0;
        let first = counts.iter().position(seen).unwrap_or(0);
        let last = counts.iter().rposition(seen).unwrap_or(0);
        writeln!(f, "        from        to       calls")?;
        for (i, count) in counts.iter().enumerate().take(last + 1).skip(first) {
            let bar = "█".repeat((count * BAR_CHARS).div_ceil(highest) as usize);
            let (from, to) = (time(1 << i), time(2 << i));
            writeln!(f, "  {from:>10}{to:>10}{count:>12}  {bar}")?;
        }
        Ok(())
    }
}

/// A whole number and a unit.
fn time(ns: u64) -> String {
    format!("{:.0?}", Duration::from_nanos(ns))
}
