//! What benches share: numbers with what they are compared with and what is wanted of them, the
//! counting of instructions, and how a bench ends.
//!
//! Key types: [`Row`], [`Goal`], [`Whose`]. Neighbour: `xtask/src/bench.rs`, which reads the file
//! that [`finish`] writes.
#![allow(dead_code, reason = "each bench uses a part of this")]

use std::path::PathBuf;
use std::process::ExitCode;

use perf_event::events::Hardware;
use perf_event::{Builder, Counter};
use serde::Serialize;

pub(crate) type Error = Box<dyn std::error::Error>;

/// One number, and what it is compared with.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) row: String,
    pub(crate) value: f64,
    pub(crate) unit: &'static str,
    pub(crate) peer: Option<&'static str>,
    pub(crate) peer_value: Option<f64>,
    /// What is wanted of it: a bench that misses it fails.
    #[serde(skip)]
    pub(crate) goal: Option<Goal>,
}

/// A bound that belongs to what is wanted.
#[derive(Copy, Clone, Debug)]
pub(crate) enum Goal {
    AtMost(f64),
    AtLeast(f64),
}

impl Goal {
    pub(crate) fn bound(self) -> f64 {
        match self {
            Goal::AtMost(bound) | Goal::AtLeast(bound) => bound,
        }
    }

    /// What is no number meets no goal.
    fn is_met(self, value: f64) -> bool {
        match self {
            Goal::AtMost(bound) => value <= bound,
            Goal::AtLeast(bound) => value >= bound,
        }
    }
}

impl Row {
    pub(crate) fn new(row: impl Into<String>, value: f64, unit: &'static str) -> Self {
        Self {
            row: row.into(),
            value,
            unit,
            peer: None,
            peer_value: None,
            goal: None,
        }
    }

    pub(crate) fn beside(self, peer: &'static str, value: f64) -> Self {
        Self {
            peer: Some(peer),
            peer_value: Some(value),
            ..self
        }
    }

    pub(crate) fn wants(self, goal: impl Into<Option<Goal>>) -> Self {
        Self {
            goal: goal.into(),
            ..self
        }
    }

    /// The bound of its goal for a table, and what its peer has.
    pub(crate) fn cells(&self) -> [String; 2] {
        let cell = |value: Option<f64>| value.map_or_else(|| "-".into(), |v| format!("{v}"));
        [cell(self.goal.map(Goal::bound)), cell(self.peer_value)]
    }
}

/// Writes `BENCH.json` (an array of [`Row`]) into the folder that `RVBPF_OUT` names, or into
/// `target/bench`, and fails if a goal is missed.
pub(crate) fn finish(bench: &str, rows: &[Row]) -> Result<ExitCode, Error> {
    let out = std::env::var_os("RVBPF_OUT").map_or_else(|| "target/bench".into(), PathBuf::from);
    std::fs::create_dir_all(&out)?;
    std::fs::write(
        out.join(format!("{bench}.json")),
        serde_json::to_vec_pretty(rows)?,
    )?;
    let mut code = ExitCode::SUCCESS;
    for row in rows {
        let Some(goal) = row.goal.filter(|goal| !goal.is_met(row.value)) else {
            continue;
        };
        let how = match goal {
            Goal::AtMost(_) => "at most",
            Goal::AtLeast(_) => "at least",
        };
        eprintln!(
            "bench {bench}: {} is {} {}, and is to be {how} {}",
            row.row,
            row.value,
            row.unit,
            goal.bound()
        );
        code = ExitCode::FAILURE;
    }
    Ok(code)
}

/// The end of a program whose bench failed, or not.
pub(crate) fn exit(bench: &str, done: Result<ExitCode, Error>) -> ExitCode {
    done.unwrap_or_else(|error| {
        eprintln!("bench {bench}: {error}");
        ExitCode::FAILURE
    })
}

/// Which instructions are counted of those that this thread makes its hart execute.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(crate) enum Whose {
    /// Those in user space.
    User,
    /// The kernel's too.
    All,
}

/// Counts instructions of this thread.
pub(crate) fn counter(whose: Whose) -> Result<Counter, Error> {
    let mut builder = Builder::new(Hardware::INSTRUCTIONS);
    builder.exclude_hv(true);
    match whose {
        Whose::User => builder.exclude_kernel(true),
        Whose::All => builder.include_kernel(),
    };
    let open = builder.build();
    Ok(open.map_err(|e| format!("instructions cannot be counted here: perf_event_open: {e}"))?)
}

/// The instructions of `work`, and of their counting.
pub(crate) fn count(counter: &mut Counter, work: impl FnOnce()) -> Result<u64, Error> {
    counter.reset()?;
    counter.enable()?;
    work();
    counter.disable()?;
    Ok(counter.read()?)
}

/// The least of many times, so that no timer tick is in it.
pub(crate) fn least(
    counter: &mut Counter,
    times: usize,
    mut work: impl FnMut(),
) -> Result<u64, Error> {
    let mut least = u64::MAX;
    for _ in 0..times {
        least = least.min(count(counter, &mut work)?);
    }
    Ok(least)
}
