//! Where code can be: near what its relocations need.
//!
//! Each target of limited reach leaves a window of addresses for the code's start, taken a little
//! too small rather than too large: all of the code is to be as near as its farthest place must be.
//! What all windows have in common is where the code can be.
//!
//! Key function: [`Plan::places`]. Neighbours: `pack_alloc` finds room there.

use pack_alloc::Near;
use text::RxAddr;

use super::error::{HostError, RelocFault};
use super::reloc::{PAIR_REACH_BYTES, Plan, RelocKind, RelocTarget};

/// First and last address that code may touch.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
struct Window {
    low: u64,
    high: u64,
}

impl Window {
    const ALL: Self = Self {
        low: 0,
        high: u64::MAX,
    };

    /// What is within reach of `target`: forward, all kinds reach two bytes less than back.
    fn around(target: u64, reach_bytes: u64) -> Self {
        Self {
            low: target.saturating_sub(reach_bytes - 2),
            high: target.saturating_add(reach_bytes),
        }
    }

    /// What both have in common, if that has room for `len_bytes`.
    fn with(self, other: Self, len_bytes: u64) -> Option<Self> {
        let low = self.low.max(other.low);
        let high = self.high.min(other.high);
        (high.checked_sub(low)? >= len_bytes).then_some(Self { low, high })
    }

    fn near(self) -> Near {
        if self == Self::ALL {
            return Near::Anywhere;
        }
        let reach_bytes = (self.high - self.low) / 2;
        Near::Within {
            of: RxAddr::new(self.low + reach_bytes),
            reach_bytes,
        }
    }
}

impl Plan<'_> {
    /// Where it would be best, all calls without stubs, and where it must be.
    ///
    /// # Errors
    /// [`RelocFault::OutOfReach`] of the first relocation for which there is no place that the ones
    /// before it allow as well.
    pub(super) fn places(&self) -> Result<(Near, Near), HostError> {
        let len = self.len_bytes() as u64;
        let mut need = Window::ALL;
        for (index, reloc) in self.relocs.iter().enumerate() {
            let (RelocTarget::Address(at), Some(reach_bytes)) =
                (reloc.target, reloc.kind.reach_bytes())
            else {
                continue;
            };
            let target = at.wrapping_add_signed(reloc.addend);
            need = need
                .with(Window::around(target, reach_bytes), len)
                .ok_or_else(|| {
                    let nearest = target.clamp(need.low, need.high);
                    let distance = target.wrapping_sub(nearest) as i64;
                    let fault = RelocFault::OutOfReach {
                        distance,
                        reach_bytes,
                    };
                    self.error(index, fault)
                })?;
        }
        let calls = self
            .relocs
            .iter()
            .filter(|reloc| reloc.kind == RelocKind::Call);
        let mut wish = need;
        for reloc in calls {
            if let RelocTarget::Address(at) = reloc.target {
                let target = at.wrapping_add_signed(reloc.addend);
                let window = Window::around(target, PAIR_REACH_BYTES);
                wish = wish.with(window, len).unwrap_or(wish);
            }
        }
        Ok((wish.near(), need.near()))
    }
}
