//! An allocator with a hook in it: every allocation of this process, those of the hooks' own
//! machinery included, goes through a hookable C function.
#![cfg(target_arch = "riscv64")]
#![expect(unsafe_code, reason = "a global allocator")]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::ffi::{c_long, c_void};
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use common::{ADD2, Count, assert_settled, call_back, call_through, hook, serial, sites};
use rvbpf::bpf::BpfReg::{R0, R1, R2};
use rvbpf::bpf::{Env, ProgramBuilder, TraceSink, trace_pipe};
use rvbpf::{Error, Runtime, TrampError};
use testlib::functions::tl_add2;

struct ThroughC;

#[global_allocator]
static ALLOC: ThroughC = ThroughC;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

extern "C-unwind" fn allocate(layout: *mut c_void) -> c_long {
    ALLOCATIONS.fetch_add(1, Ordering::SeqCst);
    // SAFETY: 1. `ThroughC::alloc` passes its layout.
    let layout = unsafe { layout.cast::<Layout>().read() };
    // SAFETY: 1. the caller's promise.
    unsafe { System.alloc(layout) as c_long }
}

// SAFETY: 1. memory is the system allocator's; the way to it goes through C.
unsafe impl GlobalAlloc for ThroughC {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // `tl_call` adds one.
        (call_through(allocate, (&raw const layout).cast_mut().cast()) - 1) as *mut u8
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: passed on.
        unsafe { System.dealloc(ptr, layout) };
    }
}

fn allocations() -> u64 {
    ALLOCATIONS.load(Ordering::SeqCst)
}

/// Work that allocates.
fn work() -> usize {
    let words: Vec<String> = (0..50).map(|i| format!("{i}")).collect();
    black_box(words).concat().len()
}

#[test]
fn a_handler_may_allocate_through_what_it_hooks() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let bytes = Arc::new(AtomicU64::new(0));
    let sum = bytes.clone();
    let hooked = hook(&rt, call_back())
        .on_entry(move |_| {
            let text = black_box(format!("an allocation of {} bytes", 42));
            sum.fetch_add(text.len() as u64, Ordering::Relaxed);
        })
        .on_exit(|_, ret| assert!(*ret != 1 && work() == 90))
        .attach()
        .unwrap();
    let before = (allocations(), hooked.stats());
    for _ in 0..100 {
        assert_eq!(work(), 90);
    }
    assert_eq!(thread::spawn(work).join().unwrap(), 90);
    let after = (allocations(), hooked.stats());
    // `stats` allocates its answer after it has looked at the counters, or before: so from one
    // call to the other all allocations are counted once, but for that one.
    let (runs, missed) = (
        after.1.progs[0].runs - before.1.progs[0].runs,
        after.1.progs[0].missed - before.1.progs[0].missed,
    );
    let seen = runs + missed;
    let made = after.0 - before.0;
    assert!(
        made > 5000 && seen.abs_diff(made) <= 4,
        "{made} allocations, {seen} seen"
    );
    assert!(runs > 1000 && missed > runs, "{runs} runs, {missed} missed");
    assert_eq!(after.1.panics, 0);
    hooked.detach().unwrap();
    let after = hooked.stats();
    work();
    assert_eq!(hooked.stats(), after);
    assert_settled(&rt);
}

/// Attaching, retargeting, detaching and freeing allocate under the lock of changes; programs run
/// there as anywhere.
#[test]
fn hooks_change_while_their_own_allocations_are_hooked() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let runs = Arc::new(Count::new());
    let count = runs.clone();
    let watching = hook(&rt, call_back())
        .on_entry(move |_| count.add())
        .on_exit(|_, _| {})
        .attach()
        .unwrap();
    for _ in 0..20 {
        let before = runs.get();
        let other = hook(&rt, call_back())
            .on_entry(|_| drop(black_box(Box::new(1))))
            .attach()
            .unwrap();
        let builders = sites(32)
            .into_iter()
            .map(|s| hook(&rt, s).on_exit(|_, _| {}));
        let batch = rt.attach_all(builders).unwrap();
        assert!(runs.get() > before + 32, "no allocation was seen");
        rt.detach_all(batch.iter().chain([&other])).unwrap();
        rt.synchronize(common::PATIENCE).unwrap();
    }
    assert_eq!(watching.stats().panics, 0);
    watching.detach().unwrap();
    assert_settled(&rt);
}

thread_local! {
    static TRYING: Cell<bool> = const { Cell::new(false) };
}

/// A program that runs inside a change and wants to make one is told so; outside it may.
#[test]
fn a_change_within_a_change_is_refused() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let (refused, made, other) = (
        Arc::new(Count::new()),
        Arc::new(Count::new()),
        Arc::new(Count::new()),
    );
    let counts = (refused.clone(), made.clone(), other.clone());
    let inner = rt.clone();
    let watching = hook(&rt, call_back())
        .on_entry(move |_| {
            if !TRYING.replace(false) {
                return;
            }
            // SAFETY: 1. the function is of this type.
            let builder = unsafe { inner.hook(ADD2) };
            match builder.and_then(|b| b.on_entry(|_| {}).attach()) {
                Ok(_detached_at_once) => counts.1.add(),
                Err(Error::Tramp(TrampError::Reentered)) => counts.0.add(),
                Err(_) => counts.2.add(),
            }
            TRYING.set(true);
        })
        .attach()
        .unwrap();

    TRYING.set(true);
    drop(black_box(Box::new(5)));
    TRYING.set(false);
    assert_eq!(
        (refused.get(), made.get(), other.get()),
        (0, 1, 0),
        "outside of a change it works"
    );

    let builder = hook(&rt, sites(1)[0]).on_entry(|_| {});
    TRYING.set(true);
    let hooked = builder.attach();
    TRYING.set(false);
    let hooked = hooked.unwrap();
    println!("refused {}, made {}", refused.get(), made.get());
    assert!(refused.get() > 0, "no allocation inside the change");
    assert_eq!(other.get(), 0);
    assert_eq!((sites(1)[0](1), tl_add2(1, 2)), (1, 3));
    assert_eq!(hooked.stats().runs, 1);
    assert_eq!(watching.stats().panics, 0);
    rt.detach_all([&hooked, &watching]).unwrap();
    assert_settled(&rt);
}

/// Threads allocate while the hook on allocation comes and goes.
#[test]
fn slow_the_hook_on_allocation_comes_and_goes() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let stop = std::sync::atomic::AtomicBool::new(false);
    thread::scope(|s| {
        for _ in 0..2 {
            s.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    assert_eq!(work(), 90);
                }
            });
        }
        for i in 0..200 {
            let builder = hook(&rt, call_back());
            let hooked = match i % 3 {
                0 => builder.on_entry(|_| drop(black_box(vec![1_u8; 100]))),
                1 => builder
                    .on_exit(|_, ret| assert!(*ret != 0 && black_box(vec![2_u8; 10]).len() == 10)),
                _ => builder.on_session(
                    |_, c| *c = black_box(Box::new(3)).as_ref() + 4,
                    |_, _, c| assert_eq!(*c, 7),
                ),
            }
            .attach()
            .unwrap();
            assert_eq!(work(), 90);
            assert_eq!(hooked.stats().panics, 0);
            hooked.detach().unwrap();
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert_settled(&rt);
}

/// Lines that came whole.
static LINES: AtomicU64 = AtomicU64::new(0);

fn count(line: &[u8]) {
    let whole = line.ends_with(b": bpf_trace_printk: one more\n");
    LINES.fetch_add(whole.into(), Ordering::SeqCst);
}

/// A line for each allocation, and no allocation for a line: the program never reaches itself.
#[test]
fn a_program_prints_from_inside_the_allocator() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    static FORMAT: &[u8] = b"one more\0";
    let mut b = ProgramBuilder::new();
    b.ld_imm64(R1, FORMAT.as_ptr().expose_provenance() as u64);
    b.mov(R2, FORMAT.len() as i32)
        .call_helper(6)
        .mov(R0, 0)
        .exit();
    let prog = rt.load(&b.finish().unwrap(), &Env::tracing()).unwrap();
    trace_pipe(TraceSink::Call(count));
    // SAFETY: 1. the program ends, and does not allocate. 2. It prints a format that stays.
    let hooked = unsafe { hook(&rt, call_back()).raw(prog.fentry()) }
        .attach()
        .unwrap();
    let before = (allocations(), LINES.load(Ordering::SeqCst));
    let there = thread::spawn(work);
    assert_eq!((there.join().unwrap(), work()), (90, 90));
    let after = (allocations(), LINES.load(Ordering::SeqCst));
    hooked.detach().unwrap();
    trace_pipe(TraceSink::Fd(libc::STDERR_FILENO));
    let made = after.0 - before.0;
    assert!(made > 100, "{made}");
    assert_eq!(after.1 - before.1, made);
    assert_eq!(hooked.stats().missed, 0);
    drop((hooked, prog));
    assert_settled(&rt);
}
