//! Packs in which code runs: riscv64 only.
#![cfg(target_arch = "riscv64")]
#![expect(unsafe_code, reason = "calls the code that it has made, and forks")]

use std::sync::atomic::{AtomicBool, Ordering};

use rvbpf_pack_alloc::{Config, HugePolicy, Near, PackAlloc, PackCode};
use text::{ProcMaps, RxAddr};

/// `li a0, value; ret`, with `value` in 0 to 2047.
fn returns(value: u32) -> [u8; 8] {
    let mut code = [0; 8];
    code[..4].copy_from_slice(&(value << 20 | 0x513).to_le_bytes());
    code[4..].copy_from_slice(&0x8067_u32.to_le_bytes());
    code
}

fn publish(packs: &PackAlloc, value: u32, near: Near) -> PackCode {
    let mut buf = packs.alloc(8, 64, near).expect("room");
    buf.rw().copy_from_slice(&returns(value));
    packs.finalize(buf).expect("published")
}

fn call(code: &PackCode) -> u64 {
    let entry = std::ptr::with_exposed_provenance::<()>(code.rx().start.get() as usize);
    // SAFETY: 1. a published function of this type starts there.
    let function = unsafe { std::mem::transmute::<*const (), extern "C" fn() -> u64>(entry) };
    function()
}

fn near_here() -> Near {
    let of = RxAddr::new(near_here as fn() -> Near as usize as u64);
    Near::Within {
        of,
        reach_bytes: (2 << 30) - 4096,
    }
}

/// The kB that `row` shows for the mapping at `addr`.
fn smaps_kb(addr: u64, row: &str) -> u64 {
    let smaps = std::fs::read_to_string("/proc/self/smaps").expect("smaps");
    let start = ProcMaps::read().expect("maps");
    let start = start
        .find(RxAddr::new(addr))
        .expect("mapped")
        .range
        .start
        .get();
    let mut lines = smaps
        .lines()
        .skip_while(|line| !line.starts_with(&format!("{start:x}-")));
    let line = lines
        .find(|line| line.starts_with(row))
        .expect("the row is there");
    line.split_whitespace()
        .nth(1)
        .expect("a number")
        .parse()
        .expect("a number")
}

#[test]
fn code_runs_where_it_was_promised() {
    let packs = PackAlloc::new(Config::default());
    let codes: Vec<_> = (0..500)
        .map(|value| publish(&packs, value, near_here()))
        .collect();
    for (value, code) in codes.iter().enumerate() {
        assert_eq!(call(code), value as u64);
    }
    // Reused chunks hold the new code, on every round.
    for round in 0..200 {
        let code = publish(&packs, round, Near::Anywhere);
        assert_eq!(call(&code), u64::from(round));
        packs.free(code).expect("freed");
    }
    drop(codes);
    assert_eq!(packs.stats().nr_live, 0);
}

#[test]
fn freed_code_is_illegal() {
    let packs = PackAlloc::new(Config::default());
    let code = publish(&packs, 1, near_here());
    let at = code.rx().start.get();
    let keep = publish(&packs, 2, near_here());
    packs.free(code).expect("freed");
    // SAFETY: 1. the child only jumps there and dies of it.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        let entry = std::ptr::with_exposed_provenance::<()>(at as usize);
        // SAFETY: 1. an illegal instruction stands there, and this process is to die of it.
        let function = unsafe { std::mem::transmute::<*const (), extern "C" fn() -> u64>(entry) };
        function();
        // SAFETY: 1. ends the process without running anything of the parent's.
        unsafe { libc::_exit(0) };
    }
    let mut status = 0;
    // SAFETY: 1. `status` is writable.
    unsafe { libc::waitpid(pid, &raw mut status, 0) };
    assert!(
        libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGILL,
        "{status:#x}"
    );
    assert_eq!(call(&keep), 2);
}

#[test]
fn huge_packs_are_huge_and_ordinary_ones_are_not() {
    let packs = PackAlloc::new(Config::default());
    let code = publish(&packs, 7, near_here());
    assert_eq!(call(&code), 7);
    assert_eq!(packs.stats().nr_huge_packs, 1, "{}", packs.stats());
    let at = code.rx().start.get();
    let huge_kb = smaps_kb(at, "ShmemPmdMapped")
        + smaps_kb(at, "FilePmdMapped")
        + smaps_kb(at, "Shared_Hugetlb")
        + smaps_kb(at, "Private_Hugetlb");
    assert_eq!(huge_kb, 2048);

    let mut config = Config::default();
    config.huge = HugePolicy::Never;
    let packs = PackAlloc::new(config);
    let code = publish(&packs, 8, near_here());
    assert_eq!(call(&code), 8);
    assert_eq!(packs.stats().nr_huge_packs, 0);
    let at = code.rx().start.get();
    assert_eq!(
        smaps_kb(at, "ShmemPmdMapped") + smaps_kb(at, "FilePmdMapped"),
        0
    );
}

#[test]
fn short_reach_works_near_one_of_our_own() {
    let packs = PackAlloc::new(Config::default());
    let anchor = publish(&packs, 1, near_here());
    let near = Near::Within {
        of: anchor.rx().start,
        reach_bytes: 1 << 20,
    };
    let code = publish(&packs, 2, near);
    let distance = code.rx().start.rel_to(anchor.rx().start);
    assert!(distance.fits_jal());
    assert_eq!(call(&code), 2);
}

/// The lock is held across the fork: the child allocates and frees while a thread of the parent
/// was doing the same, and neither sees the other's changes.
#[test]
fn a_fork_amid_allocations_leaves_both_sides_working() {
    let packs = PackAlloc::new(Config::default());
    let kept = publish(&packs, 11, near_here());
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let code = publish(&packs, 3, near_here());
                assert_eq!(call(&code), 3);
                packs.free(code).expect("freed");
            }
        });
        for _ in 0..20 {
            // SAFETY: 1. the child runs only this crate's code, which is made for it, and exits.
            let pid = unsafe { libc::fork() };
            if pid == 0 {
                let works = (0..5).all(|value| {
                    let code = publish(&packs, 40 + value, near_here());
                    call(&code) == u64::from(40 + value) && packs.free(code).is_ok()
                });
                let code = if works && call(&kept) == 11 { 7 } else { 1 };
                // SAFETY: 1. ends the process without running anything of the parent's.
                unsafe { libc::_exit(code) };
            }
            let mut status = 0;
            // SAFETY: 1. `status` is writable.
            unsafe { libc::waitpid(pid, &raw mut status, 0) };
            assert_eq!(
                (libc::WIFEXITED(status), libc::WEXITSTATUS(status)),
                (true, 7)
            );
            assert_eq!(call(&kept), 11);
        }
        stop.store(true, Ordering::Relaxed);
    });
    drop(kept);
    assert_eq!(packs.stats().nr_live, 0);
}
