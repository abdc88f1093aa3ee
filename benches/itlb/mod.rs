//! What code layout does to the instruction TLB: what the bench, the example and the tests share.
//! See `main.rs`.
//!
//! | file | has |
//! | --- | --- |
//! | `plan` | what is to be measured |
//! | `corpus`, `order`, `place` | the programs, the order of calls, where programs are put |
//! | `call` | the loop that calls them |
//! | `spec`, `tlb` | the model |
//! | `counters`, `machine`, `pages` | what the hart counts, what machine it is, what pages there are |
//! | `run` | all of it, in turn |
//! | `results`, `report`, `plot` | the numbers, as tables, files and curves |

#[cfg(target_arch = "riscv64")]
mod call;
pub(crate) mod corpus;
#[cfg(target_arch = "riscv64")]
pub(crate) mod counters;
mod error;
#[cfg(target_arch = "riscv64")]
pub(crate) mod machine;
pub(crate) mod order;
pub(crate) mod pages;
pub(crate) mod place;
pub(crate) mod plan;
pub(crate) mod plot;
pub(crate) mod report;
pub(crate) mod results;
#[cfg(target_arch = "riscv64")]
pub(crate) mod run;
pub(crate) mod spec;
pub(crate) mod tlb;

use std::path::Path;

pub(crate) use error::Error;

use plan::Plan;
use report::Row;
use results::Results;

/// What came out.
#[cfg(target_arch = "riscv64")]
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) results: Results,
    pub(crate) rows: Vec<Row>,
    /// Whether huge pages do as much as they shall, where that was measured.
    pub(crate) goal: Option<bool>,
}

#[cfg(target_arch = "riscv64")]
impl Outcome {
    /// What the numbers say of huge pages, in random order.
    pub(crate) fn in_a_sentence(&self) -> String {
        let is_it = |row: &&Row| {
            row.row.starts_with("huge_vs_page_misses_") && row.row.ends_with("_random")
        };
        let found = self.rows.iter().find(is_it);
        let Some((row, page)) = found.and_then(|row| Some((row, row.peer_value?))) else {
            return "Layouts page and huge were not both measured in random order.".into();
        };
        let nr: String = row.row.chars().filter(char::is_ascii_digit).collect();
        let huge = row.value;
        let pages = match self.results.is_huge {
            true => "in packs of 2 MiB pages",
            false => "in packs, of 4 KiB pages for want of others",
        };
        let goal = match self.goal {
            Some(true) => " At most 1/50 is the goal: it is met.",
            Some(false) => " At most 1/50 is the goal: it is missed.",
            None => "",
        };
        format!(
            "In the model, {nr} programs called at random miss the first level {page:.3} times a \
             call with a page\nfor each, and {huge:.3} times {pages}.{goal}"
        )
    }
}

/// Measures what `plan` says, shows it, and writes it to the plan's folder.
///
/// # Errors
/// [`Error`].
#[cfg(target_arch = "riscv64")]
pub(crate) fn measure(plan: &Plan) -> Result<Outcome, Error> {
    let machine = machine::Machine::look(plan.hart)?;
    println!("{machine}\nmodel:   {}", plan.spec);
    let start = std::time::Instant::now();
    let mut progress = |step: &str| {
        eprintln!("[{:5.1} s] {step}", start.elapsed().as_secs_f64());
    };
    let results = run::run(plan, &machine, &mut progress)?;
    for note in &results.notes {
        println!("note:    {note}");
    }
    print!("{}", report::table(&results, plan));
    print!("\n{}", report::memory(&results));
    let rows = report::rows(&results, plan);
    write(plan, &results, &rows)?;
    let goal = report::goal(&rows, &results);
    Ok(Outcome {
        results,
        rows,
        goal,
    })
}

/// Writes `itlb.json`, `itlb.csv` and a plot for each metric.
pub(crate) fn write(plan: &Plan, results: &Results, rows: &[Row]) -> Result<(), Error> {
    let put = |name: &str, text: String| {
        let path = plan.out.join(name);
        std::fs::write(&path, text).map_err(|error| Error::Write { path, error })
    };
    make(&plan.out)?;
    let json = serde_json::to_string_pretty(rows).map_err(|error| Error::Write {
        path: plan.out.join("itlb.json"),
        error: error.into(),
    })?;
    put("itlb.json", json + "\n")?;
    put("itlb.csv", report::csv(results))?;
    for (index, metric) in results.metrics.iter().enumerate() {
        let plot = plot::draw(results, index, &plan.orders, &plan.layouts);
        let plot = plot.map_err(|error| Error::Plot {
            metric: metric.name.clone(),
            error,
        })?;
        put(&format!("itlb_{}.svg", metric.name), plot)?;
    }
    Ok(())
}

fn make(folder: &Path) -> Result<(), Error> {
    std::fs::create_dir_all(folder).map_err(|error| Error::Write {
        path: folder.into(),
        error,
    })
}
