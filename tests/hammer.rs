//! A thousand functions as compilers leave them, hooked and unhooked at random under load.
//!
//! Four threads call all of them and check every result; meanwhile threads are created, block,
//! are cancelled, and the process forks. A changer knows what its own thread calls, so it knows how
//! often each of its programs must have run on that thread: neither less nor more.
//!
//! 2,000 changes with 2 harts; 500 with 4 or more, where the VM's harts may outnumber those of its
//! host and a flush costs fifty times as much. `RVBPF_HAMMER_CHANGES` says otherwise.
#![cfg(target_arch = "riscv64")]
#![expect(unsafe_code, reason = "cancels threads, forks")]

mod common;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ffi::{c_int, c_long, c_void};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::{assert_settled, checked, footprint, harts, hook, in_child, pipe, send, serial};
use rvbpf::{EntryKind, Hook, HookBuilder, Runtime};
use testlib::functions::{plain, tl_plain, tl_read_byte};

type F = extern "C" fn(c_long) -> c_long;

fn changes() -> u64 {
    let given = std::env::var("RVBPF_HAMMER_CHANGES").ok();
    let fitting = if harts() >= 4 { 500 } else { 2_000 };
    given.map_or(fitting, |n| n.parse().expect("a number"))
}

/// Numbers that repeat.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % below
    }
}

fn check(n: usize, x: c_long) {
    assert_eq!(tl_plain[n](x), plain(n, x), "tl_plain[{n}]({x})");
}

thread_local! {
    /// Runs of this thread, by function.
    static RUNS: [Cell<u32>; 1000] = const { [const { Cell::new(0) }; 1000] };
}

fn ran(n: usize) {
    RUNS.with(|runs| runs[n].set(runs[n].get() + 1));
}

fn runs(n: usize) -> u32 {
    RUNS.with(|runs| runs[n].take())
}

/// A hook of `tl_plain[n]` that counts one run a call on the calling thread.
fn counting(rt: &Runtime, n: usize, kind: usize) -> HookBuilder<F> {
    let builder = hook(rt, tl_plain[n] as F).allow_trap();
    match kind {
        0 => builder.on_entry(move |_| ran(n)),
        1 => builder.on_exit(move |call, ret| {
            assert_eq!(*ret, plain(n, call.args().0));
            ran(n);
        }),
        _ => builder.override_return(move |_| {
            ran(n);
            None
        }),
    }
}

/// What is attached, by function.
#[derive(Default)]
struct Live(BTreeMap<usize, Hook>);

impl Live {
    /// Attaches to functions that have nothing yet, calls each of them, and counts.
    fn attach(&mut self, rt: &Runtime, dice: &mut Dice, batch: usize) -> u64 {
        let mut chosen: Vec<usize> = (0..batch).map(|_| dice.roll(1000)).collect();
        chosen.sort_unstable();
        chosen.dedup();
        chosen.retain(|n| !self.0.contains_key(n));
        let builders = chosen.iter().map(|&n| counting(rt, n, dice.roll(3)));
        let hooks = rt.attach_all(builders.collect::<Vec<_>>()).unwrap();
        self.0.extend(chosen.iter().copied().zip(hooks));
        for &n in &chosen {
            let calls = 1 + dice.roll(2);
            (0..calls).for_each(|i| check(n, (i * 37 + n) as c_long - 500));
            assert_eq!(runs(n), calls as u32, "tl_plain[{n}], attached");
        }
        chosen.len() as u64
    }

    /// Detaches some, calls each of them, and nothing runs.
    fn detach(&mut self, rt: &Runtime, dice: &mut Dice, batch: usize) -> u64 {
        let names: Vec<usize> = self.0.keys().copied().collect();
        let from = dice.roll(names.len());
        let chosen = &names[from..names.len().min(from + batch)];
        let gone: Vec<Hook> = chosen.iter().filter_map(|n| self.0.remove(n)).collect();
        rt.detach_all(&gone).unwrap();
        for (&n, hook) in chosen.iter().zip(&gone) {
            check(n, 99);
            assert_eq!(runs(n), 0, "tl_plain[{n}], detached");
            assert_eq!(hook.stats().panics, 0);
        }
        gone.len() as u64
    }
}

/// What else happens to a process.
fn disturb(stop: &AtomicBool) -> u64 {
    let mut dice = Dice(7);
    let mut done = 0;
    while !stop.load(Ordering::Relaxed) {
        let n = dice.roll(1000);
        match dice.roll(16) {
            0 => in_child(move || (0..50).for_each(|i| check((n + i) % 1000, 5))).join(),
            1..4 => cancel_a_sleeper(n),
            4..8 => block_a_thread(n),
            _ => thread::spawn(move || (0..20).for_each(|i| check((n + i) % 1000, 12345)))
                .join()
                .unwrap(),
        }
        done += 1;
        thread::sleep(Duration::from_millis(2));
    }
    done
}

/// A thread that is cancelled in a system call.
fn cancel_a_sleeper(n: usize) {
    extern "C" fn sleeper(fd: *mut c_void) -> *mut c_void {
        tl_read_byte(fd.addr() as c_int);
        fd
    }
    check(n, 3);
    let (from, to) = pipe();
    let fd = std::ptr::without_provenance_mut(from as usize);
    let mut id = 0;
    // SAFETY: 1. `sleeper` may run on any thread; `id` is writable.
    let made = unsafe { libc::pthread_create(&raw mut id, std::ptr::null(), sleeper, fd) };
    assert_eq!(made, 0);
    thread::sleep(Duration::from_millis(1));
    // SAFETY: 1. a thread that has not been joined.
    assert_eq!(unsafe { libc::pthread_cancel(id) }, 0);
    // SAFETY: as above; it is joined once.
    assert_eq!(unsafe { libc::pthread_join(id, std::ptr::null_mut()) }, 0);
    close([from, to]);
}

fn close(fds: [c_int; 2]) {
    for fd in fds {
        // SAFETY: 1. our own descriptor, closed once.
        checked(unsafe { libc::close(fd) });
    }
}

/// A thread that sleeps in `read` is not disturbed.
fn block_a_thread(n: usize) {
    let (from, to) = pipe();
    let reader = thread::spawn(move || {
        check(n, 4);
        let mut byte = 0_u8;
        // SAFETY: 1. room for one byte.
        let got = unsafe { libc::read(from, (&raw mut byte).cast(), 1) };
        assert_eq!(got, 1, "{}", std::io::Error::last_os_error());
        check(n, 5);
    });
    thread::sleep(Duration::from_millis(3));
    send(to, 1);
    reader.join().unwrap();
    close([from, to]);
}

/// Changes until `goal` have been made; `sizes` are those of batches.
fn change(rt: &Runtime, goal: u64, sizes: &[usize]) {
    let mut dice = Dice(goal);
    let mut live = Live::default();
    let mut done = 0;
    while done < goal {
        let batch = sizes[dice.roll(sizes.len())];
        if live.0.len() < 300 + dice.roll(300) {
            done += live.attach(rt, &mut dice, batch);
        } else {
            done += live.detach(rt, &mut dice, batch);
        }
        if dice.roll(500) == 0 {
            // Entries become their own again, and are written anew later.
            let hooks: Vec<Hook> = std::mem::take(&mut live.0).into_values().collect();
            rt.detach_all(&hooks).unwrap();
            done += hooks.len() as u64;
            rt.synchronize(common::PATIENCE).unwrap();
        }
    }
    let hooks: Vec<Hook> = live.0.into_values().collect();
    let has_pad = |h: &Hook| h.kind() == Some(EntryKind::Pad);
    assert!(!hooks.iter().any(has_pad), "as compilers leave them");
    let kinds = hooks.iter().filter(|h| h.kind() == Some(EntryKind::Jump));
    println!("{} of {} by jumps at the end", kinds.count(), hooks.len());
    rt.detach_all(&hooks).unwrap();
}

/// One thread changes, five others and whoever they start have the harts as well: without this most of
/// the time goes by in the queue. Refused to whoever is not root; then it takes three times as long.
fn come_first() {
    // SAFETY: 1. plain numbers; 0 is the calling thread.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -20) };
}

fn hammer(goal: u64, sizes: &[usize]) {
    let _one = serial();
    (0..1000).for_each(|n| (-3..9).for_each(|x| check(n, x)));
    let rt = Runtime::new().unwrap();
    let start = footprint(&rt.stats());
    let (stop, calls) = (AtomicBool::new(false), AtomicU64::new(0));
    let begin = Instant::now();
    let disturbed = thread::scope(|scope| {
        for first in 0..4 {
            let (stop, calls) = (&stop, &calls);
            scope.spawn(move || {
                let mut dice = Dice(first);
                while !stop.load(Ordering::Relaxed) {
                    (0..500).for_each(|i| check(dice.roll(1000), i));
                    calls.fetch_add(500, Ordering::Relaxed);
                }
            });
        }
        let disturber = scope.spawn(|| disturb(&stop));
        come_first();
        change(&rt, goal, sizes);
        stop.store(true, Ordering::Relaxed);
        disturber.join().unwrap()
    });
    let took = begin.elapsed();
    let calls = calls.into_inner();
    println!(
        "{goal} changes in {took:.1?}, beside {calls} calls and {disturbed} threads and forks, \
         {} harts",
        harts()
    );
    assert_settled(&rt);
    assert_eq!(footprint(&rt.stats()), start);
    (0..1000).for_each(|n| check(n, 1));
}

#[test]
fn slow_one_at_a_time() {
    hammer(changes() / 20, &[1]);
}

#[test]
fn slow_in_batches() {
    hammer(changes() - changes() / 20, &[1, 8, 64, 256]);
}
