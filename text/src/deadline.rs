//! When a wait ends.
//!
//! A patience may be as long as `Duration::MAX`, and `Instant` panics when it cannot hold a sum.
//!
//! Key type: [`Deadline`]. Neighbours: everything that waits with a patience of the user's.

use std::time::{Duration, Instant};

/// The end of a patience that begins now.
#[derive(Copy, Clone, Debug)]
pub struct Deadline(
    /// `None`: later than the clock can tell.
    Option<Instant>,
);

impl Deadline {
    /// `patience` from now.
    #[must_use]
    pub fn after(patience: Duration) -> Self {
        Self(Instant::now().checked_add(patience))
    }

    /// What is left of the patience; `Duration::MAX` if it has no end.
    #[must_use]
    pub fn left(self) -> Duration {
        let end = self.0;
        end.map_or(Duration::MAX, |end| {
            end.saturating_duration_since(Instant::now())
        })
    }

    /// Whether nothing is left of it.
    #[must_use]
    pub fn is_over(self) -> bool {
        self.left().is_zero()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_patience_does_not_end() {
        let never = Deadline::after(Duration::MAX);
        assert_eq!((never.left(), never.is_over()), (Duration::MAX, false));
        assert!(Deadline::after(Duration::ZERO).is_over());
        let later = Deadline::after(Duration::from_secs(3600));
        assert!(!later.is_over() && later.left() <= Duration::from_secs(3600));
    }
}
