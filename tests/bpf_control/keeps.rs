//! Whether a program leaves the registers of its caller's alone.

use std::arch::global_asm;
use std::sync::atomic::AtomicU64;

use rvbpf::bpf::BpfProg;

/// `s0` to `s11`.
type Kept = [u64; 12];

unsafe extern "C" {
    /// Calls `entry` with `arg`, the registers holding 100, 101, … ; what they hold then.
    fn rvbpf_test_keeps(entry: *const (), arg: u64, kept: &mut Kept);
}

global_asm!(
    "rvbpf_test_keeps:",
    "addi sp, sp, -128",
    "sd ra, 0(sp)",
    "sd a2, 8(sp)",
    ".irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11",
    "sd s\\n, 16 + 8 * \\n(sp)",
    "li s\\n, 100 + \\n",
    ".endr",
    "mv t0, a0",
    "mv a0, a1",
    "jalr t0",
    "ld a2, 8(sp)",
    ".irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11",
    "sd s\\n, 8 * \\n(a2)",
    "ld s\\n, 16 + 8 * \\n(sp)",
    ".endr",
    "ld ra, 0(sp)",
    "addi sp, sp, 128",
    "ret",
);

/// Runs a program with the address of a counter.
pub(super) fn assert_kept(prog: &BpfProg) {
    let (cell, mut kept) = (AtomicU64::new(0), [0; 12]);
    let entry = std::ptr::with_exposed_provenance(prog.rx().start.get() as usize);
    // SAFETY:
    // 1. The code begins with a function of five integers, of which the programs read the first.
    // 2. They end, as tests have seen before.
    unsafe { rvbpf_test_keeps(entry, cell.as_ptr() as u64, &mut kept) };
    let want: Vec<u64> = (100..112).collect();
    assert_eq!(kept.as_slice(), want);
}
