//! What compiled BPF programs execute: the corpus of C programs under `benches/jit/corpus`, compiled
//! by clang for BPF, then by us and by the kernel, and by clang for riscv64.
//!
//! | row | value | peer |
//! | --- | --- | --- |
//! | `executed/PROGRAM` | instructions of one run of our code | `kernel`: of the kernel's code |
//! | `native/PROGRAM` | the same | `clang`: of native code, `clang -O2` for the same processor |
//! | `bytes/PROGRAM` | size of our code | `kernel`: size of the kernel's |
//! | `compile/PROGRAM` | microseconds that our compiler takes | `cranelift`: by rbpf's, if it accepts the program (`peers/examples/compile.rs`) |
//! | `geomean/ROWS` | geometric mean of value / peer's value | 1 |
//!
//! Every program runs in four ways: compiled by us, interpreted, in the kernel, native; results and
//! memory must agree, or the bench fails.
//!
//! *How it is counted.* perf counts the instructions of this thread; the difference between many runs
//! and one, over the runs between, is what one run takes. Code in user space is called in a loop in
//! assembly, whose instructions are subtracted (`count`). The kernel's code runs in place, under
//! `BPF_PROG_TEST_RUN`, which repeats it; what surrounds it is what an empty program takes there, less
//! that program's own instructions, which are known: its image has no branch (`kernel`). Both sides
//! get the same BPF instructions, but for the address of their memory, and the same extensions: those
//! that the kernel's compiler knows (C, Zba, Zbb). Counts mean something only where the machine
//! counts, as under `cargo xtask bench jit`.
//!
//! What differs is the address of the memory: as a constant, the kernel's own takes four to six
//! instructions, by where it lies, and one in user space would take about as many.
//!
//! Writes `jit.json` (an array of [`Row`]) into the folder that `RVBPF_OUT` names; with `RVBPF_KEEP`
//! set, the code too. Fails when a target is missed: no program may execute more than the kernel's
//! code, and all together, in the geometric mean, no more than 0.7 of it.
#![cfg_attr(
    target_arch = "riscv64",
    expect(
        unsafe_code,
        reason = "runs the programs of the corpus; system calls, assembly"
    )
)]

#[cfg(target_arch = "riscv64")]
mod corpus;
#[cfg(target_arch = "riscv64")]
mod count;
#[cfg(target_arch = "riscv64")]
mod inputs;
#[cfg(target_arch = "riscv64")]
mod kernel;
#[cfg(target_arch = "riscv64")]
mod measure;

#[cfg(target_arch = "riscv64")]
fn main() -> std::process::ExitCode {
    match measure::run() {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench jit: {error}");
            std::process::ExitCode::FAILURE
        }
    }
}

#[cfg(not(target_arch = "riscv64"))]
fn main() {
    println!("compiled programs run on riscv64 only: use cargo xtask bench jit");
}
