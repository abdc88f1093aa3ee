//! Pokes under threads that execute the site: they see the old or the new, never a mixture, and
//! after a poke has returned they see the new.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rvbpf_text::{Insn, PadWords, RxAddr, TextError, arm_all, restore_all, text_poke};

use super::fns::*;
use crate::alone;

/// A machine under load needs 100 times as long for a round: this long at most (or
/// `RVBPF_BUDGET_SECS`), if this many rounds are done.
const BUDGET_SECS: u64 = 45;
const ENOUGH: u64 = 100;

/// What a checking thread has seen.
#[derive(Default)]
struct Seen {
    calls: AtomicU64,
    last: AtomicU64,
}

/// Runs `change` `rounds` times while three threads call `func` and check each result against
/// `allowed`; `change` returns what calls must yield from now on.
pub(crate) fn hammer(
    func: RxAddr,
    allowed: &[u64],
    rounds: u64,
    mut change: impl FnMut(u64) -> u64,
) -> u64 {
    let done = AtomicBool::new(false);
    let seen: [Seen; 3] = Default::default();
    let begin = Instant::now();
    let budget = Duration::from_secs(from_env("RVBPF_BUDGET_SECS", BUDGET_SECS));
    let mut done_rounds = 0;
    std::thread::scope(|s| {
        let checkers: Vec<_> = seen
            .iter()
            .map(|seen| {
                let done = &done;
                s.spawn(move || {
                    while !done.load(Ordering::Relaxed) {
                        let got = call(func, 5);
                        assert!(allowed.contains(&got), "{got} is neither old nor new");
                        seen.last.store(got, Ordering::Relaxed);
                        seen.calls.fetch_add(1, Ordering::Release);
                    }
                })
            })
            .collect();
        let stop = StopOnDrop(&done);
        for round in 0..rounds {
            done_rounds = round + 1;
            if round >= ENOUGH && begin.elapsed() > budget {
                println!("the machine is slow: not all {rounds} rounds");
                break;
            }
            let want = change(round);
            assert_eq!(call(func, 5), want, "round {round}");
            if round % 50 == 0 {
                for (i, seen) in seen.iter().enumerate() {
                    // The call after the one that is under way began after the poke.
                    let from = seen.calls.load(Ordering::Acquire);
                    while seen.calls.load(Ordering::Acquire) < from + 2 {
                        assert!(!checkers[i].is_finished(), "checker {i} failed");
                        std::thread::yield_now();
                    }
                    let last = seen.last.load(Ordering::Relaxed);
                    assert_eq!(last, want, "round {round}: thread {i} is stale");
                }
            }
        }
        drop(stop);
    });
    let calls = seen.iter().map(|s| s.calls.load(Ordering::Relaxed)).sum();
    println!("{done_rounds} rounds, {calls} calls, {:?}", begin.elapsed());
    calls
}

struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn from_env(name: &str, default: u64) -> u64 {
    let value = std::env::var(name).ok();
    value.and_then(|n| n.parse().ok()).unwrap_or(default)
}

pub(crate) fn rounds(default: u64) -> u64 {
    from_env("RVBPF_ROUNDS", default)
}

#[test]
fn slow_thirty_thousand_pokes_show_old_or_new() {
    let _alone = alone();
    let images = Images::new();
    let w = words(pad_c_2mod4);
    let (a, b) = images.two_in_reach(w.hi, 100, 200);
    arm_all(&[(w, a)]).unwrap();
    let states = [(Insn::Call(a), 101), (Insn::Call(b), 201), (Insn::Nop, 6)];
    hammer(rx(pad_c_2mod4), &[6, 101, 201], rounds(30_000), |i| {
        let (old, new) = (states[i as usize % 3], states[(i as usize + 1) % 3]);
        text_poke(w.hi, old.0, new.0).unwrap();
        new.1
    });
    restore_all(&[w]).unwrap();
}

fn arm_and_restore(func: Func, w: PadWords, n: u64) {
    let images = Images::new();
    // Two windows, so that a thread that mixed them would go astray.
    let (a, b) = (images.put(0x4000, 100), images.put(0x1_8400, 200));
    hammer(rx(func), &[6, 101, 201], rounds(n), |i| match i % 4 {
        0 => {
            arm_all(&[(w, a)]).unwrap();
            101
        }
        1 => {
            restore_all(&[w]).unwrap();
            6
        }
        2 => {
            arm_all(&[(w, b)]).unwrap();
            201
        }
        _ => {
            text_poke(w.hi, Insn::Call(b), Insn::Nop).unwrap();
            6
        }
    });
    restore_all(&[w]).unwrap();
}

#[test]
fn slow_compressed_pads_are_armed_and_restored_under_load() {
    let _alone = alone();
    arm_and_restore(pad_c_2mod4, words(pad_c_2mod4), 400);
}

#[test]
fn slow_pads_of_two_nops_are_armed_and_restored_under_load() {
    let _alone = alone();
    arm_and_restore(pad_4, words(pad_4), 400);
}

/// Where `on_trap` lets its thread go on, and when.
static GO_ON_AT: AtomicU64 = AtomicU64::new(0);
static TRAP: AtomicU32 = AtomicU32::new(IDLE);
const IDLE: u32 = 0;
const WAITING: u32 = 1;
const GO_ON: u32 = 2;

/// Pretends that the thread was interrupted at `GO_ON_AT`, and keeps it for a while.
extern "C" fn on_trap(_: i32, _: *mut libc::siginfo_t, context: *mut libc::ucontext_t) {
    if TRAP.swap(WAITING, Ordering::SeqCst) != IDLE {
        // A second trap: the thread found an `ebreak` where it went on.
        // SAFETY: ends the process.
        unsafe { libc::_exit(99) };
    }
    // SAFETY: the kernel passes the context that it will restore.
    let pc = unsafe { &mut (*context).uc_mcontext.__gregs[0] };
    *pc = GO_ON_AT.load(Ordering::SeqCst);
    while TRAP.load(Ordering::SeqCst) != GO_ON {
        // SAFETY: sleeping has no conditions.
        unsafe { libc::usleep(1000) };
    }
}

/// Has SIGTRAP handled by `on_trap` while it lives.
struct Trapping(libc::sigaction);

impl Trapping {
    fn new() -> Self {
        // SAFETY: all zero is a valid `sigaction`.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = on_trap as usize;
        action.sa_flags = libc::SA_SIGINFO;
        let mut before = action;
        // SAFETY: both structures are live; the handler is async-signal-safe.
        unsafe { libc::sigaction(libc::SIGTRAP, &raw const action, &raw mut before) };
        Self(before)
    }
}

impl Drop for Trapping {
    fn drop(&mut self) {
        // SAFETY: gives the old handler back.
        unsafe { libc::sigaction(libc::SIGTRAP, &raw const self.0, std::ptr::null_mut()) };
    }
}

/// Runs `change` while a thread stands, in a signal frame, at `at`; lets it go on when `change`
/// says so by its argument, or returns. The thread must come out of its function unharmed.
fn with_a_thread_at<T>(at: RxAddr, change: impl FnOnce(&dyn Fn()) -> T) -> T {
    let _trapping = Trapping::new();
    GO_ON_AT.store(at.get(), Ordering::SeqCst);
    TRAP.store(IDLE, Ordering::SeqCst);
    let go_on = || TRAP.store(GO_ON, Ordering::SeqCst);
    std::thread::scope(|s| {
        let inside = s.spawn(|| call(rx(trap_into), 5));
        while TRAP.load(Ordering::SeqCst) != WAITING {
            std::thread::yield_now();
        }
        let result = change(&go_on);
        go_on();
        assert_eq!(inside.join().unwrap(), 6, "went astray from {at}");
        result
    })
}

/// Emulators interrupt only between blocks, so a thread never stops inside a pad by itself: here
/// one does, at each place between the words.
#[test]
fn a_thread_inside_a_pad_is_waited_for_and_finds_its_nops() {
    let _alone = alone();
    let images = Images::new();
    for (f, offsets) in [(pad_c_2mod4 as Func, &[2u64, 4, 6][..]), (pad_4, &[4])] {
        let w = words(f);
        let image = images.put(0x4000, 100);
        let bare = word(w.lo);
        for off in offsets {
            let at = w.hi.checked_add(*off).unwrap();
            with_a_thread_at(at, |go_on| {
                std::thread::scope(|s| {
                    let arming = s.spawn(|| arm_all(&[(w, image)]));
                    std::thread::sleep(Duration::from_millis(300));
                    let (is_early, lo) = (arming.is_finished(), word(w.lo));
                    go_on();
                    arming.join().unwrap().unwrap();
                    assert!(!is_early, "armed with a thread at +{off}");
                    assert_eq!(lo, bare, "partner stored with a thread at +{off}");
                });
            });
            assert_eq!(call(rx(f), 5), 101);
            restore_all(&[w]).unwrap();
        }
    }
}

#[test]
fn a_thread_that_stays_inside_is_named_and_the_pad_given_back() {
    let _alone = alone();
    let images = Images::new();
    let w = words(pad_4);
    let bare = [word(w.hi), word(w.lo)];
    let image = images.put(0x4000, 100);
    let armed = with_a_thread_at(w.lo, |_| arm_all(&[(w, image)]));
    assert!(matches!(armed, Err(TextError::Stuck { .. })), "{armed:?}");
    assert_eq!([word(w.hi), word(w.lo)], bare);
    arm_all(&[(w, image)]).unwrap();
    assert_eq!(call(rx(pad_4), 5), 101);
    restore_all(&[w]).unwrap();
}
