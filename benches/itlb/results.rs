//! The numbers, as they are found.
//!
//! Key types: [`Results`], [`Point`], [`Metric`]. Neighbours: `run` fills them in, `report` and
//! `plot` show them.

use super::order::Order;
use super::place::Layout;

/// Everything that was found.
#[derive(Clone, Debug, Default)]
pub(crate) struct Results {
    /// What each point has a value of: first the levels of the model, then what was counted.
    pub(crate) metrics: Vec<Metric>,
    /// How many of them are the model's.
    pub(crate) nr_modelled: usize,
    pub(crate) points: Vec<Point>,
    pub(crate) memory: Vec<Memory>,
    /// What a pack holds with one small program in it, in bytes: in huge pages, in ordinary ones.
    pub(crate) lonely_bytes: (u64, u64),
    /// What the reader must know: counters that are missing, huge pages that are.
    pub(crate) notes: Vec<String>,
    /// Whether the layout in huge pages was in huge pages.
    pub(crate) is_huge: bool,
}

/// Something that there is a number of for each call.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Metric {
    /// In files: `model_itlb_misses`, `cycles`.
    pub(crate) name: String,
    /// For people: `misses of the ITLB per call, model of SiFive U74`.
    pub(crate) about: String,
    pub(crate) unit: &'static str,
}

/// What was found of so many programs, laid out and called like this.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Point {
    pub(crate) layout: Layout,
    pub(crate) order: Order,
    pub(crate) programs: usize,
    /// By metric, per call.
    pub(crate) values: Vec<Spread>,
}

/// Of several runs.
#[derive(Copy, Clone, Debug, PartialEq)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Spread {
    /// Of the model, which gives the same each time.
    pub(crate) fn exact(value: f64) -> Self {
        Self {
            median: value,
            min: value,
            max: value,
        }
    }

    /// Of numbers, at least one.
    pub(crate) fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |index: usize| values.get(index).copied().unwrap_or(f64::NAN);
        Self {
            median: at(values.len() / 2),
            min: at(0),
            max: at(values.len().saturating_sub(1)),
        }
    }
}

/// What a layout's packs hold.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(crate) struct Memory {
    pub(crate) layout: Layout,
    pub(crate) programs: usize,
    pub(crate) resident_bytes: u64,
}

impl Results {
    /// The value of a metric at a point, if that was measured.
    pub(crate) fn value(
        &self,
        metric: usize,
        layout: Layout,
        order: Order,
        programs: usize,
    ) -> Option<Spread> {
        let is_it = |p: &&Point| (p.layout, p.order, p.programs) == (layout, order, programs);
        self.points.iter().find(is_it)?.values.get(metric).copied()
    }
}
