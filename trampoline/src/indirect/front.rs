//! What C code calls: one stub for each member, at an address that never changes.
//!
//! Key type: [`Front`]. Neighbours: `code` makes the stubs, `cells` holds what they load, `member`
//! what they call.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use pack_alloc::Near;
use text::{RxAddr, RxRange};

use super::cells::{self, Cells, MAX_CELLS};
use super::code::{self, MAX_FRAME_BYTES, StubSpec, stub_frame_bytes};
use super::member::{Placed, Version, place};
use super::{Member, Workshop};
use crate::Trampolines;
use crate::error::TrampError;
use crate::model::FuncModel;

/// How far the stubs may be from their cells.
const REACH_BYTES: u64 = (1 << 31) - (1 << 20);

/// The stubs of a table, and where each leads. Nothing is freed before this is dropped, which must
/// wait until nobody can be in a stub ([`Leaving::of_front`](super::Leaving::of_front)).
#[derive(Debug)]
pub struct Front {
    placed: Placed,
    stubs: Vec<RxAddr>,
    cells: Cells,
    /// Calls that are nested too deeply to be remembered by name, and pins that found no place.
    deep: Box<AtomicI64>,
    /// The number of the version that calls go to; 0: none.
    current: AtomicU64,
    /// What calls find when there is no version.
    vacant: Arc<Version>,
}

impl Front {
    /// Stubs for members of these models. Calls get zeros until [`Front::lead`], or reach the
    /// members of `vacant`, which fit the models.
    ///
    /// # Errors
    /// [`TrampError::TooManyMembers`]; [`TrampError::FrameTooLarge`], [`TrampError::Layout`],
    /// [`TrampError::Pack`].
    pub fn new(
        shop: &Workshop,
        models: &[Arc<FuncModel>],
        vacant: Vec<Member>,
    ) -> Result<Front, TrampError> {
        if !cfg!(all(target_arch = "riscv64", target_os = "linux")) {
            return Err(TrampError::UnsupportedHost);
        }
        for model in models {
            let size_bytes = stub_frame_bytes(model);
            if size_bytes > MAX_FRAME_BYTES {
                let func = cells::address();
                return Err(TrampError::FrameTooLarge { func, size_bytes });
            }
        }
        let max = MAX_CELLS;
        let taken = Trampolines::locked(|| Cells::take(models.len()));
        let cells = taken.ok_or(TrampError::TooManyMembers { max })?;
        Self::with_cells(shop, models, vacant, cells)
    }

    fn with_cells(
        shop: &Workshop,
        models: &[Arc<FuncModel>],
        vacant: Vec<Member>,
        cells: Cells,
    ) -> Result<Front, TrampError> {
        let vacant = Arc::new(Version::new(shop, models, vacant)?);
        let deep = Box::new(AtomicI64::new(0));
        let specs: Vec<StubSpec<'_>> = (models.iter().enumerate())
            .map(|(i, model)| StubSpec {
                model,
                cell: cells.addr(i),
            })
            .collect();
        let near = Near::Within {
            of: cells::address(),
            reach_bytes: REACH_BYTES,
        };
        let trial = cells::address().get() & !63;
        let made = place(shop, near, trial, "bpf_struct_ops_stubs", |base| {
            code::stubs(&specs, deep.as_ptr() as u64, shop.features, base)
        });
        let (placed, stubs) = made?;
        let front = Front {
            placed,
            stubs,
            cells,
            deep,
            current: AtomicU64::new(0),
            vacant,
        };
        front.vacate();
        Ok(front)
    }

    /// What C code calls for member `i`.
    pub fn stub(&self, i: usize) -> RxAddr {
        self.stubs[i]
    }

    /// Leads calls that begin afterwards to `version`, whose number, by which it is pinned, is
    /// neither 0 nor that of another, nor the address of code.
    pub fn lead(&self, version: &Version, number: u64) {
        (0..self.cells.len()).for_each(|i| self.cells.store(i, version.entry(i)));
        self.current.store(number, Ordering::Release);
    }

    /// Leads calls that begin afterwards to what there is without a version.
    pub fn vacate(&self) {
        self.lead(&self.vacant, 0);
    }

    pub(super) fn current(&self) -> &AtomicU64 {
        &self.current
    }

    pub(super) fn vacant(&self) -> &Arc<Version> {
        &self.vacant
    }

    pub(super) fn count(&self, by: i64) {
        self.deep.fetch_add(by, Ordering::SeqCst);
    }

    /// Nobody is counted.
    pub(super) fn is_counted_out(&self) -> bool {
        self.deep.load(Ordering::Acquire) == 0
    }

    /// Where the stubs are.
    pub fn rx(&self) -> RxRange {
        self.placed.rx()
    }
}

#[cfg(all(test, target_arch = "riscv64"))]
mod tests {
    use super::*;
    use crate::model::Type;
    use pack_alloc::{Config, PackAlloc};

    #[test]
    fn cells_run_out_with_a_clear_error_and_come_back() {
        let shop = Workshop {
            packs: Arc::new(PackAlloc::new(Config::default())),
            features: rv64::Features::RV64GC,
            tools: symbols::Tools::empty(),
        };
        let model = Arc::new(FuncModel::new(&[Type::I64], Type::I64).unwrap());
        let of = |n: usize| Front::new(&shop, &vec![model.clone(); n], vec![Member::Absent; n]);
        let full = || {
            (0..8)
                .map(|_| of(MAX_CELLS / 8).unwrap())
                .collect::<Vec<_>>()
        };
        let fronts = full();
        assert!(matches!(
            of(1),
            Err(TrampError::TooManyMembers { max: MAX_CELLS })
        ));
        drop(fronts);
        drop(full());
        assert_eq!(shop.packs.stats().nr_live, 0);
    }
}
