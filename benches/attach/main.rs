//! What attaching, retargeting and detaching cost, by the number of functions: of libcrypto, which
//! have no pads, and of a generated library of functions with pads; all at once, and one by one.
//!
//! | row | |
//! | --- | --- |
//! | `FUNCTIONS/N/build/WHAT` | a builder with one program for each of N functions |
//! | `FUNCTIONS/N/attach/WHAT` | all of them attached at once |
//! | `FUNCTIONS/N/retarget/WHAT` | one program more for each, at once |
//! | `FUNCTIONS/N/detach/WHAT` | all programs taken away at once |
//! | `FUNCTIONS/N/free/WHAT` | what is left behind freed, entries given back |
//! | `FUNCTIONS/one_by_one/N/…/WHAT` | the same, each function on its own |
//! | `first/…`, `forty/…` | the first hook of a process that has just started, and 40 by name |
//!
//! All numbers are for one function, but for those of `first` and `forty`, and for memory. The
//! suffix `busy` stands for: while 4 threads run without a pause.
//!
//! | `RVBPF_MEASURE` | WHAT |
//! | --- | --- |
//! | `insns` | `insns` (user space and kernel), `syscalls`, `flushes`, `maps_readings`, `thread_looks`, `memory` |
//! | `time` | `us`, idle and busy; beside the kernel's uprobes of the same functions |
//!
//! `RVBPF_ATTACH_MOST` bounds N. What is wanted stands beside the rows: of instructions for a function
//! of a batch and for a further hook, of the growth from 1,000 to 10,000 functions, and of the time
//! that the first hooks take. Not all of it is reached yet, so a miss is no failure.
#![cfg_attr(
    target_arch = "riscv64",
    expect(
        unsafe_code,
        reason = "hooks functions, and asks the kernel for probes"
    )
)]

#[path = "../common/mod.rs"]
mod common;
#[cfg(target_arch = "riscv64")]
mod hooks;
#[cfg(target_arch = "riscv64")]
mod meter;
#[cfg(target_arch = "riscv64")]
mod start;
#[cfg(target_arch = "riscv64")]
mod uprobe;

use std::process::ExitCode;

#[cfg(target_arch = "riscv64")]
fn main() -> ExitCode {
    if let Some(what) = start::asked() {
        return common::exit("attach", start::run(&what));
    }
    common::exit("attach", run())
}

#[cfg(not(target_arch = "riscv64"))]
fn main() -> ExitCode {
    common::exit("attach", Err("this runs on riscv64 alone".into()))
}

#[cfg(target_arch = "riscv64")]
fn run() -> Result<ExitCode, common::Error> {
    let measure = std::env::var("RVBPF_MEASURE").unwrap_or_default();
    let mut rows = Vec::new();
    match measure.as_str() {
        "insns" => {
            start::measure(&mut rows)?;
            hooks::count(&mut rows)?;
        }
        "time" | "" => {
            start::measure(&mut rows)?;
            hooks::time(&mut rows)?;
        }
        other => return Err(format!("RVBPF_MEASURE is {other}: it can be insns or time").into()),
    }
    common::finish("attach", &rows)
}
