//! What code layout does to the instruction TLB, and why code is put into packs.
//!
//! Compiled BPF programs, 1 to 16,384, are called one after the other, at random, or by Zipf's law.
//! They lie in one page each, as in the kernel before packs, or packed, in 4 KiB pages or in pages
//! of 2 MiB (`place`). The code is real, its pages are, and it runs: the results are summed up and
//! compared.
//!
//! *Counted.* On a board, cycles, instructions and misses of instruction TLBs, on one hart, several
//! times: the median is shown, and how far runs are apart. Instructions and cycles include the loop
//! that calls, seven instructions a call. In QEMU only instructions are, where it counts them.
//!
//! *Model.* Everywhere, the TLBs of a core (`tlb`; the U74's unless told otherwise), driven by the
//! addresses that were executed: the loop's page and the pages of each program, in the order of the
//! calls, after one pass through all of them. What is the model's says so. A miss of a level is an
//! access that came as far as this level and was not translated there: in rows, `misses` are those
//! of the first level, whatever the second does with them, and `walks` those of the last.
//!
//! Writes `itlb.json`, `itlb.csv` and plots into the folder that `RVBPF_OUT` names, or into
//! `target/bench`. Fails when the huge pack misses more than 1/50 of what one page per program
//! misses, at 4,096 programs in random order, in the first level of the model. Options:
//! `examples/itlb.rs`.

#[cfg(target_arch = "riscv64")]
#[path = "mod.rs"]
mod itlb;

#[cfg(target_arch = "riscv64")]
fn main() -> std::process::ExitCode {
    let args = std::env::args().skip(1);
    let plan = itlb::plan::Plan::full().and_then(|plan| plan.with_args(args));
    match plan.and_then(|plan| itlb::measure(&plan)) {
        Ok(outcome) => {
            println!("\n{}", outcome.in_a_sentence());
            match outcome.goal {
                Some(false) => std::process::ExitCode::FAILURE,
                Some(true) | None => std::process::ExitCode::SUCCESS,
            }
        }
        Err(error) => {
            eprintln!("bench itlb: {error}");
            std::process::ExitCode::FAILURE
        }
    }
}

#[cfg(not(target_arch = "riscv64"))]
fn main() {
    println!("compiled programs run on riscv64 only: use cargo xtask bench itlb");
}
