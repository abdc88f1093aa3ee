//! The demo from its first line to its last.
//!
//! - [`latency`]: how long one function takes, by a program at both its ends.
//! - [`churn`]: hooks come and go while SQLite works, and its answers stay the same.
//! - [`faults`]: calls of the allocator that fail on purpose.
//! - [`workload`], [`db`], [`histogram`]: what these three work with.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{env, fs, io, process};

use rvbpf::Runtime;

mod churn;
mod db;
mod faults;
mod histogram;
mod latency;
mod workload;

pub(crate) type Outcome<T = ()> = Result<T, Box<dyn Error + Send + Sync>>;

pub(crate) fn run() -> Outcome {
    let begin = Instant::now();
    let dir = ScratchDir::new()?;
    // Asked for now: SQLite tells its allocator's methods only before its first use.
    let allocator = faults::Allocator::of_sqlite()?;
    let rt = Runtime::new()?;

    println!(
        "This is SQLite, as it comes, compiled with -fpatchable-function-entry=5: each of its\n\
         functions begins with 10 bytes of nops. rvbpf turns them into a jump while the\n\
         functions run, and back. No thread is stopped, and nothing traps.\n"
    );
    println!("0. Without hooks");
    println!(
        "   {} threads, each with its own database: together {} inserts, then joins, an index,\n   \
         updates, deletes, VACUUM, integrity_check. Hashing every row that comes back ...",
        workload::THREADS,
        workload::INSERTS
    );
    let round = Instant::now();
    let expected = workload::run(dir.path())?;
    println!(
        "   took {:.1?}; SQLite's answers hash to {expected:x?}\n",
        round.elapsed()
    );

    latency::show(&rt, dir.path(), &expected)?;
    churn::show(&rt, dir.path(), &expected)?;
    faults::show(&rt, dir.path(), &allocator)?;
    back_to_zero(&rt)?;
    println!("All of it checked, in {:.0?}.", begin.elapsed());
    Ok(())
}

/// Nothing that was attached has left anything behind.
fn back_to_zero(rt: &Runtime) -> Outcome {
    println!("4. What is left of all this");
    rt.synchronize(Duration::from_secs(10))?;
    let stats = rt.stats();
    let (tramps, packs) = (&stats.tramps, &stats.packs);
    println!(
        "   hooked functions {}, attached programs {}",
        tramps.sites, tramps.links
    );
    println!(
        "   trampolines in use {}, waiting to be freed {}",
        tramps.images, tramps.retired
    );
    println!(
        "   bytes of code {}, empty packs {}\n",
        packs.occupied_bytes, packs.nr_packs
    );
    let left = tramps.sites + tramps.links + tramps.images + tramps.retired;
    ensure(
        left == 0 && packs.occupied_bytes == 0 && packs.nr_packs <= 1,
        "something was left behind",
    )
}

/// An error that says `otherwise`, unless `holds`.
fn ensure(holds: bool, otherwise: &str) -> Outcome {
    if holds { Ok(()) } else { Err(otherwise.into()) }
}

/// A new folder that goes when this is dropped.
struct ScratchDir(PathBuf);

impl ScratchDir {
    fn new() -> io::Result<Self> {
        let dir = env::temp_dir().join(format!("hook_sqlite-{}", process::id()));
        fs::create_dir(&dir)?;
        Ok(ScratchDir(dir))
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for ScratchDir {
    fn drop(&mut self) {
        // If it cannot be removed, the system's own cleaning of temporary files will.
        let _ = fs::remove_dir_all(&self.0);
    }
}
