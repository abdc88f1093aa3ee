//! A histogram of how long `sqlite3_step` takes.

#![expect(unsafe_code, reason = "promises what a C function looks like")]

use std::ffi::c_int;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use libsqlite3_sys as sqlite;
use rvbpf::Runtime;

use super::histogram::Histogram;
use super::{Outcome, ensure, workload};

type Step = unsafe extern "C" fn(*mut sqlite::sqlite3_stmt) -> c_int;

pub(super) fn show(rt: &Runtime, dir: &Path, expected: &[u64]) -> Outcome {
    println!("1. How long does sqlite3_step take?");
    println!(
        "   A session runs at both ends of each call: where it begins, the time is noted, where\n   \
         it ends, the difference is counted. The {} threads do their work once more ...",
        workload::THREADS
    );
    let times = Arc::new(Histogram::new());
    let start = Instant::now();
    let now_ns = move || start.elapsed().as_nanos() as u64;

    // SAFETY:
    // 1. `sqlite3_step` is declared so in sqlite3.h.
    let hook = unsafe { rt.hook(sqlite::sqlite3_step as Step) }?
        .on_session(move |_, began_ns| *began_ns = now_ns(), {
            let times = times.clone();
            move |_, _, began_ns| times.add(now_ns() - *began_ns)
        })
        .attach()?;
    let answers = workload::run(dir)?;
    hook.detach()?;

    let (calls, stats) = (times.count(), hook.stats());
    ensure(
        answers == expected,
        "SQLite answered differently while it was timed",
    )?;
    ensure(
        calls >= workload::INSERTS as u64,
        "calls of sqlite3_step were not seen",
    )?;
    ensure(
        stats.runs == 2 * calls && stats.missed == 0,
        "not every call ran both ends",
    )?;
    println!("\n{times}\n   {calls} calls; the answers are the same as without the hook\n");
    Ok(())
}
