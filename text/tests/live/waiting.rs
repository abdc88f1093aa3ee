//! Changes without traps: under threads that block all signals, which a trap would kill.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rvbpf_text::{
    Detour, DetourKind, DetourState, RxAddr, TextError, divert_all, testing, undivert_all,
};

use super::detour_fns::*;
use super::fns::*;
use super::park::{Parked, parked_in};
use crate::alone;

/// Blocks every signal that can be blocked, on this thread.
fn block_all() {
    let mut set = std::mem::MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: the set is live.
    unsafe { libc::sigfillset(set.as_mut_ptr()) };
    // SAFETY: the set is live; a null old set is allowed.
    let done =
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, set.as_ptr(), std::ptr::null_mut()) };
    assert_eq!(done, 0);
}

/// How long a thread that blocks all signals sleeps between two calls: one that comes by all the
/// time is found running, waiting at the entry, and is not proved outside.
const REST: Duration = Duration::from_millis(40);

/// Threads that block all signals, call `f` again and again, and sleep in between.
fn with_deaf_callers(nr: usize, f: impl Fn() + Sync, while_there: impl FnOnce()) {
    let (nr_there, nr_calls, stop) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
    struct Stopper<'a>(&'a AtomicBool);
    impl Drop for Stopper<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }
    std::thread::scope(|s| {
        let _stopper = Stopper(&stop);
        for _ in 0..nr {
            s.spawn(|| {
                block_all();
                nr_there.fetch_add(1, Ordering::SeqCst);
                while !stop.load(Ordering::SeqCst) {
                    f();
                    nr_calls.fetch_add(1, Ordering::SeqCst);
                    std::thread::sleep(REST);
                }
            });
        }
        parked_in(|| nr_there.load(Ordering::SeqCst) == nr as u64);
        while_there();
        let now = nr_calls.load(Ordering::SeqCst);
        parked_in(|| nr_calls.load(Ordering::SeqCst) > now + nr as u64);
    });
}

fn kinds(far: &FarAway) -> [(DetourKind, RxAddr); 2] {
    [(DetourKind::Near, rx(d_target)), (FAR, far.target())]
}

#[test]
fn every_layout_is_changed_under_a_thread_that_blocks_all_signals() {
    let _alone = alone();
    let far = FarAway::new();
    with_deaf_callers(
        1,
        || (),
        || {
            for site in SITES {
                for (kind, to) in kinds(&far) {
                    let what = format!("{} {kind:?}", site.name);
                    let before = site.bytes();
                    let detour = [site.detour(kind, to)];
                    assert_eq!(divert_all(&detour), Ok(vec![DetourState::Jump]), "{what}");
                    assert_eq!(call(site.at(), 5), 5 + LED, "{what}");
                    assert_eq!(divert_all(&detour), Ok(vec![DetourState::Jump]), "{what}");
                    assert_eq!(undivert_all(&detour), Ok(()), "{what}");
                    assert_eq!(site.bytes(), before, "{what}");
                    assert_eq!(call(site.at(), 5), 5 + site.adds(), "{what}");
                }
            }
        },
    );
}

/// All sites in one batch, called meanwhile by threads that nothing can interrupt, and by some that
/// are asked.
#[test]
fn callers_that_block_all_signals_run_old_or_new() {
    let _alone = alone();
    let far = FarAway::new();
    let detours: Vec<Detour> = SITES
        .iter()
        .zip(kinds(&far).into_iter().cycle())
        .map(|(site, (kind, to))| site.detour(kind, to))
        .collect();
    let call_all = || {
        for site in SITES {
            let got = call(site.at(), 5);
            assert!(got == 5 + site.adds() || got == 5 + LED, "{got}");
        }
    };
    let stop = AtomicBool::new(false);
    let mut nr_changes = 0;
    std::thread::scope(|s| {
        s.spawn(|| {
            while !stop.load(Ordering::SeqCst) {
                call_all();
            }
        });
        with_deaf_callers(2, call_all, || {
            let end = Instant::now() + Duration::from_secs(2);
            while Instant::now() < end || nr_changes == 0 {
                let all_jump = Ok(vec![DetourState::Jump; detours.len()]);
                match divert_all(&detours) {
                    Err(TextError::SigtrapBlocked { .. }) => continue,
                    became => assert_eq!(became, all_jump),
                }
                SITES
                    .iter()
                    .for_each(|site| assert_eq!(call(site.at(), 5), 5 + LED));
                while let Err(e) = undivert_all(&detours) {
                    assert!(matches!(e, TextError::SigtrapBlocked { .. }), "{e}");
                }
                SITES
                    .iter()
                    .for_each(|site| assert_eq!(call(site.at(), 5), 5 + site.adds()));
                nr_changes += 2;
            }
        });
        stop.store(true, Ordering::SeqCst);
    });
    println!("{nr_changes} changes");
    assert!(nr_changes > 0);
}

/// A thread sleeps in the covered bytes, so that the change is not made; the entry is open again.
#[test]
fn a_thread_that_stays_inside_leaves_all_as_it_was() {
    let _alone = alone();
    let site = SITES[1];
    let before = site.bytes();
    let far = FarAway::new();
    let detour = [site.detour(FAR, far.target())];
    let off = site.insns[0].0;
    let parked = Parked::at(site.at().checked_add(u64::from(off)).unwrap(), 1);
    let nr_calls = AtomicU64::new(0);
    let call_it = || {
        assert_eq!(call(site.at(), 5), 5 + site.adds());
        nr_calls.fetch_add(1, Ordering::SeqCst);
    };
    with_deaf_callers(1, call_it, || {
        let refused = divert_all(&detour);
        assert!(
            matches!(refused, Err(TextError::SigtrapBlocked { .. })),
            "{refused:?}"
        );
        assert_eq!(site.bytes(), before);
    });
    assert_eq!(parked.go_on(), 5 + site.adds_from(off));
    with_deaf_callers(
        1,
        || (),
        || {
            assert_eq!(divert_all(&detour), Ok(vec![DetourState::Jump]));
            undivert_all(&detour).unwrap();
        },
    );
    assert_eq!(site.bytes(), before);
}

/// It runs all the time and hears nothing, so it cannot be proved outside, and the entry is not
/// kept from it for good.
#[test]
fn a_thread_that_never_shows_where_it_is_is_named() {
    let _alone = alone();
    let site = SITES[0];
    let before = site.bytes();
    let near = [site.detour(DetourKind::Near, rx(d_target))];
    let (is_there, stop) = (AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|s| {
        s.spawn(|| {
            block_all();
            is_there.store(true, Ordering::SeqCst);
            while !stop.load(Ordering::SeqCst) {
                assert_eq!(call(site.at(), 5), 5 + site.adds());
            }
        });
        parked_in(|| is_there.load(Ordering::SeqCst));
        let refused = divert_all(&near);
        stop.store(true, Ordering::SeqCst);
        assert!(
            matches!(refused, Err(TextError::SigtrapBlocked { .. })),
            "{refused:?}"
        );
    });
    assert_eq!(site.bytes(), before);
    assert_eq!(divert_all(&near), Ok(vec![DetourState::Jump]));
    undivert_all(&near).unwrap();
}

#[test]
fn flushes_that_are_refused_leave_what_works() {
    let _alone = alone();
    let far = FarAway::new();
    let site = SITES[6];
    let detour = [site.detour(FAR, far.target())];
    let before = site.bytes();
    with_deaf_callers(
        1,
        || (),
        || {
            let mut nr_refused = 0;
            for (pass, n) in (0..12).flat_map(|pass| [(pass, 1), (pass, 1000)]) {
                testing::refuse_flushes_after(pass, n);
                let diverted = divert_all(&detour).map(drop);
                testing::refuse_next_flushes(0);
                let got = call(site.at(), 5);
                match diverted {
                    Ok(()) => assert_eq!(got, 5 + LED, "{pass} {n}"),
                    Err(TextError::Flush { .. }) if n == 1 => {
                        assert_eq!(site.bytes(), before, "{pass}")
                    }
                    Err(TextError::Flush { .. }) => {
                        assert!(got == 5 + LED || got == 5 + site.adds(), "{pass}: {got}");
                    }
                    Err(e) => panic!("{pass} {n}: {e}"),
                }
                nr_refused += u32::from(diverted.is_err());
                undivert_all(&detour).unwrap();
                assert_eq!(site.bytes(), before, "{pass} {n}");
                assert_eq!(call(site.at(), 5), 5 + site.adds());
            }
            assert!(nr_refused > 2, "{nr_refused}");
        },
    );
}

/// A thread of real-time priority that blocks all signals, on the only hart that the thread which
/// changes may use.
#[test]
fn a_waiting_thread_of_real_time_priority_does_not_keep_the_hart() {
    fn set_policy(policy: i32, priority: i32) -> bool {
        let param = libc::sched_param {
            sched_priority: priority,
        };
        // SAFETY: the structure is live; 0 is this thread.
        unsafe { libc::sched_setscheduler(0, policy, &raw const param) == 0 }
    }
    let _alone = alone();
    let site = SITES[0];
    let near = [site.detour(DetourKind::Near, rx(d_target))];
    let (stop, may_rise) = (AtomicBool::new(false), AtomicBool::new(true));
    let nr_calls = AtomicU64::new(0);
    let nr_changes = std::thread::scope(|s| {
        let changing = s.spawn(|| {
            // SAFETY: all zero is an empty set.
            let mut first: libc::cpu_set_t = unsafe { std::mem::zeroed() };
            // SAFETY: the set is live.
            unsafe { libc::CPU_SET(0, &mut first) };
            // SAFETY: the set is live; 0 is this thread. What it starts inherits it.
            let done = unsafe { libc::sched_setaffinity(0, size_of_val(&first), &raw const first) };
            assert_eq!(done, 0);
            std::thread::scope(|s| {
                s.spawn(|| {
                    block_all();
                    may_rise.store(set_policy(libc::SCHED_FIFO, 50), Ordering::SeqCst);
                    nr_calls.fetch_add(1, Ordering::SeqCst);
                    while !stop.load(Ordering::SeqCst) {
                        let got = call(site.at(), 5);
                        assert!(got == 5 + site.adds() || got == 5 + LED, "{got}");
                        nr_calls.fetch_add(1, Ordering::SeqCst);
                        std::thread::sleep(REST);
                    }
                });
                parked_in(|| nr_calls.load(Ordering::SeqCst) > 0);
                let mut nr_changes = 0;
                for _ in 0..4 {
                    match divert_all(&near) {
                        Ok(_) => nr_changes += 1,
                        Err(e) => assert!(matches!(e, TextError::SigtrapBlocked { .. }), "{e}"),
                    }
                    while undivert_all(&near).is_err() {}
                }
                stop.store(true, Ordering::SeqCst);
                // SAFETY: 0 is this thread.
                assert_eq!(unsafe { libc::sched_getscheduler(0) }, libc::SCHED_OTHER);
                nr_changes
            })
        });
        changing.join().unwrap()
    });
    println!("{nr_changes} changes, rose: {may_rise:?}");
    assert!(nr_changes > 0);
}
