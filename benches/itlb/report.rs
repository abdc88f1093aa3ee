//! The numbers as a table for people, rows for machines, and a list of everything.
//!
//! Key functions: [`table`], [`rows`], [`csv`]. Neighbour: `plot` draws them.

use std::fmt::Write;

use serde::Serialize;

use super::order::Order;
use super::place::Layout;
use super::plan::Plan;
use super::results::{Memory, Results};

/// How much of the misses of one page per program may be left in huge pages.
pub(crate) const GOAL: f64 = 1.0 / 50.0;

/// One number, and what it is compared with.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Row {
    pub(crate) row: String,
    pub(crate) value: f64,
    pub(crate) unit: String,
    pub(crate) peer: Option<String>,
    pub(crate) peer_value: Option<f64>,
}

/// For each metric and order, a line for each number of programs, a column for each layout.
pub(crate) fn table(results: &Results, plan: &Plan) -> String {
    let mut out = String::new();
    for (index, metric) in results.metrics.iter().enumerate() {
        for &order in &plan.orders {
            let _ = writeln!(out, "\n{}; {order} order", metric.about);
            let _ = write!(out, "{:>8}", "programs");
            for layout in &plan.layouts {
                let _ = write!(out, "{:>12}", layout.name());
            }
            out.push('\n');
            let mut widest = 0.0_f64;
            for &nr in &plan.programs {
                let _ = write!(out, "{nr:>8}");
                for &layout in &plan.layouts {
                    let Some(value) = results.value(index, layout, order, nr) else {
                        let _ = write!(out, "{:>12}", "-");
                        continue;
                    };
                    widest = widest.max((value.max - value.min) / value.median.max(1e-9));
                    let _ = write!(out, "{:>12.4}", value.median);
                }
                out.push('\n');
            }
            if index >= results.nr_modelled {
                let percent = 100.0 * widest;
                let _ = writeln!(
                    out,
                    "medians; (max - min) / median is {percent:.1} % at most"
                );
            }
        }
    }
    out
}

/// What layouts hold in memory, in words.
pub(crate) fn memory(results: &Results) -> String {
    let mut out = String::new();
    for Memory {
        layout,
        programs,
        resident_bytes,
    } in &results.memory
    {
        let (about, kib) = (layout.about(), resident_bytes / 1024);
        let _ = writeln!(out, "memory of {programs} programs, {about}: {kib} KiB");
    }
    let (huge, small) = (results.lonely_bytes.0 / 1024, results.lonely_bytes.1 / 1024);
    let _ = writeln!(
        out,
        "a pack with one small program holds {huge} KiB in huge pages and {small} KiB in 4 KiB pages"
    );
    out
}

/// The comparisons at one number of programs.
pub(crate) fn rows(results: &Results, plan: &Plan) -> Vec<Row> {
    let nr = plan.compared_at();
    let mut rows = Vec::new();
    for (index, metric) in results.metrics.iter().enumerate() {
        for &order in &plan.orders {
            let value = |layout| results.value(index, layout, order, nr);
            let Some(page) = value(Layout::Page) else {
                continue;
            };
            for &layout in plan.layouts.iter().filter(|l| **l != Layout::Page) {
                let Some(value) = value(layout) else {
                    continue;
                };
                let what = word_of(results, index);
                rows.push(Row {
                    row: row_name(layout, &what, nr, order),
                    value: value.median,
                    unit: metric.unit.into(),
                    peer: Some(Layout::Page.about().into()),
                    peer_value: Some(page.median),
                });
            }
        }
    }
    rows.extend(memory_rows(results));
    rows
}

/// What a metric is called in rows: `misses` and `walks` of the model's first and last level.
fn word_of(results: &Results, index: usize) -> String {
    match index {
        0 => "misses".into(),
        last if last + 1 == results.nr_modelled => "walks".into(),
        _ => results.metrics[index].name.clone(),
    }
}

fn row_name(layout: Layout, what: &str, nr: usize, order: Order) -> String {
    format!("{layout}_vs_page_{what}_{nr}_{order}").replace('-', "_")
}

fn memory_rows(results: &Results) -> Vec<Row> {
    let memory = |layout| results.memory.iter().find(|memory| memory.layout == layout);
    let kib = |bytes: u64| bytes as f64 / 1024.0;
    let mut rows = Vec::new();
    for layout in [Layout::Packed, Layout::Huge] {
        if let (Some(one), Some(page)) = (memory(layout), memory(Layout::Page)) {
            rows.push(Row {
                row: format!("{layout}_memory_{}", one.programs),
                value: kib(one.resident_bytes),
                unit: "KiB".into(),
                peer: Some(Layout::Page.about().into()),
                peer_value: Some(kib(page.resident_bytes)),
            });
        }
    }
    rows.push(Row {
        row: "pack_with_one_program_memory".into(),
        value: kib(results.lonely_bytes.0),
        unit: "KiB".into(),
        peer: Some("the pack in 4 KiB pages".into()),
        peer_value: Some(kib(results.lonely_bytes.1)),
    });
    rows
}

/// Whether the goal is met; nothing if it was not measured, or there were no huge pages.
pub(crate) fn goal(rows: &[Row], results: &Results) -> Option<bool> {
    let row = rows
        .iter()
        .find(|row| row.row == "huge_vs_page_misses_4096_random")?;
    let page = row.peer_value?;
    results.is_huge.then_some(row.value <= page * GOAL)
}

/// Everything, one number a line.
pub(crate) fn csv(results: &Results) -> String {
    let mut out = "order,layout,programs,metric,source,median,min,max\n".to_owned();
    for point in &results.points {
        let (order, layout, nr) = (point.order, point.layout, point.programs);
        for (index, (metric, value)) in results.metrics.iter().zip(&point.values).enumerate() {
            let source = match index < results.nr_modelled {
                true => "model",
                false => "counted",
            };
            let (name, median, min, max) = (&metric.name, value.median, value.min, value.max);
            let _ = writeln!(
                out,
                "{order},{layout},{nr},{name},{source},{median},{min},{max}"
            );
        }
    }
    out
}
