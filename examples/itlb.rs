//! What code layout does to the instruction TLB, in a few seconds.
//!
//! ```text
//! cargo xtask demo itlb
//! cargo run --release --example itlb -- --programs 1,64,4096 --order random --layout page,huge
//! ```
//!
//! Options, each with a value, lists with commas between: `--programs` (1 to 16384), `--layout`
//! (page, packed, hot-first, huge), `--order` (round-robin, random, zipf), `--tlb` (a file that
//! describes a core, as `benches/itlb/u74.tlb`), `--runs`, `--hart`, `--out` (a folder). The long
//! run, with all numbers of programs, is `cargo xtask bench itlb`; what is measured is said in
//! `benches/itlb/main.rs`.

#[cfg(target_arch = "riscv64")]
#[path = "../benches/itlb/mod.rs"]
mod itlb;

#[cfg(target_arch = "riscv64")]
use itlb::Error;
#[cfg(target_arch = "riscv64")]
use itlb::plan::Plan;

#[cfg(not(target_arch = "riscv64"))]
fn main() {
    println!("compiled programs run on riscv64 only: use cargo xtask demo itlb");
}

#[cfg(target_arch = "riscv64")]
fn main() -> std::process::ExitCode {
    match demo() {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("itlb: {error}");
            std::process::ExitCode::FAILURE
        }
    }
}

#[cfg(target_arch = "riscv64")]
fn demo() -> Result<(), Error> {
    let mut plan = Plan::full()?;
    plan.programs = vec![1, 16, 64, 256, 1024, 4096];
    let plan = plan.with_args(std::env::args().skip(1))?;
    println!(
        "Compiled BPF programs are called, and each call needs the translation of the program's \
         page. The\ninstruction TLB has room for a few: what does not fit misses. So it matters how \
         many pages the\nprograms are spread over.\n"
    );
    let outcome = itlb::measure(&plan)?;
    println!("\n{}", outcome.in_a_sentence());
    println!(
        "written to {}: itlb.json, itlb.csv, itlb_*.svg",
        plan.out.display()
    );
    Ok(())
}
