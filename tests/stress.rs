//! Threads call while others attach, retarget and detach: nothing crashes, nothing is lost, and
//! whatever can be counted exactly is.
//!
//! 25,000 changes with 2 harts, among the tests of this file. With 4 or more the VM's harts may
//! outnumber those of its host, and then a flush costs fifty times as much: 2,000.
//! `RVBPF_STRESS_CHANGES` says otherwise. A change is one program attached to, or detached from,
//! one site; batches make many of them at once.
#![cfg(target_arch = "riscv64")]
#![expect(unsafe_code, reason = "attaches a raw program")]

mod common;

use std::ffi::c_long;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::{Site, assert_settled, footprint, harts, hook, serial, sites};
use rvbpf::{Hook, HookBuilder, Needs, RawProg, Runtime};

const SITES: usize = 64;

/// Changes in all: as many as the environment says, or as suit this number of harts.
fn changes() -> u64 {
    let given = std::env::var("RVBPF_STRESS_CHANGES").ok();
    let fitting = if harts() >= 4 { 2_000 } else { 25_000 };
    given.map_or(fitting, |n| n.parse().expect("a number"))
}

/// Calls to each site.
struct Calls([AtomicU64; SITES]);

impl Calls {
    fn new() -> Self {
        Calls([const { AtomicU64::new(0) }; SITES])
    }

    fn call(&self, i: usize, site: Site, x: c_long) {
        assert_eq!(site(x), x + i as c_long, "site {i}");
        self.0[i].fetch_add(1, Ordering::Relaxed);
    }

    fn of(&self, i: usize) -> u64 {
        self.0[i].load(Ordering::SeqCst)
    }
}

fn say(what: &str, changes: u64, begin: Instant, calls: u64) {
    let took = begin.elapsed();
    let rate = changes as f64 / took.as_secs_f64();
    println!(
        "{what}: {changes} changes in {took:.1?} ({rate:.0}/s) beside {calls} calls, {} harts",
        harts()
    );
}

/// Numbers that repeat: where the next change goes.
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

/// Every kind of program, so that images change between all their forms.
fn with_program(rt: &Runtime, site: Site, kind: usize) -> HookBuilder<Site> {
    let builder = hook(rt, site);
    match kind % 5 {
        0 => builder.on_entry(|call| assert!(call.args().0 >= 0)),
        1 => builder.on_exit(|call, ret| assert!(*ret >= call.args().0)),
        2 => builder.override_return(|_| None),
        3 => builder.on_session(
            |_, cookie| *cookie += 1,
            |_, _, cookie| assert_eq!(*cookie, 1),
        ),
        // SAFETY:
        // 1. The program returns. 2. It does not look at its context.
        _ => unsafe { builder.raw(RawProg::fexit(nothing).needs(Needs::STATS)) },
    }
}

unsafe extern "C" fn nothing(_: *mut u64) -> u64 {
    0
}

/// Callers run all the time, changers too: what stays attached sees every call, and what comes and
/// goes sees no more than there were.
#[test]
fn slow_callers_and_changers() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let start = footprint(&rt.stats());
    let all = sites(SITES);
    let watched = all
        .iter()
        .map(|s| hook(&rt, *s).on_entry(|_| {}).on_exit(|_, _| {}));
    let watched = rt.attach_all(watched.step_by(2)).unwrap();
    let (calls, stop, done) = (Calls::new(), AtomicBool::new(false), AtomicU64::new(0));
    let begin = Instant::now();
    let goal = changes() * 2 / 5;

    thread::scope(|s| {
        for first in 0..2 {
            let (all, calls, stop) = (&all, &calls, &stop);
            s.spawn(move || {
                for x in 0.. {
                    for i in 0..SITES {
                        calls.call((i + 32 * first) % SITES, all[(i + 32 * first) % SITES], x);
                    }
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                }
            });
        }
        let changers: Vec<_> = (0..2)
            .map(|half| {
                let (rt, all, done) = (&rt, &all, &done);
                s.spawn(move || change_until(rt, all, done, goal, half))
            })
            .collect();
        for changer in changers {
            changer.join().unwrap();
        }
        stop.store(true, Ordering::Relaxed);
    });

    let total: u64 = (0..SITES).map(|i| calls.of(i)).sum();
    say(
        "callers and changers",
        done.load(Ordering::Relaxed),
        begin,
        total,
    );
    for (hook, i) in watched.iter().zip((0..SITES).step_by(2)) {
        let stats = hook.stats();
        let seen: Vec<_> = stats.progs.iter().map(|p| (p.runs, p.missed)).collect();
        assert_eq!(seen, [(calls.of(i), 0); 2], "site {i}");
        assert_eq!(stats.panics, 0);
    }
    rt.detach_all(&watched).unwrap();
    assert_settled(&rt);
    assert_eq!(footprint(&rt.stats()), start);
}

/// Attaches and detaches batches of random sites and kinds until `goal` changes have been made.
fn change_until(rt: &Runtime, all: &[Site], done: &AtomicU64, goal: u64, half: usize) {
    let mut dice = Dice(half as u64 + 1);
    let mut attached: Vec<Hook> = Vec::new();
    while done.load(Ordering::Relaxed) < goal {
        let batch = [1, 4, 16, 64][dice.roll(4)];
        let builders = (0..batch).map(|_| with_program(rt, all[dice.roll(SITES)], dice.roll(5)));
        let builders: Vec<_> = builders.collect();
        // Each site takes 38 programs; both changers together stay below that.
        let mut new = rt.attach_all(builders).unwrap();
        done.fetch_add(batch, Ordering::Relaxed);
        attached.append(&mut new);
        while attached.len() > 96 {
            let batch = (1 + dice.roll(64)).min(attached.len());
            let from = dice.roll(attached.len() - batch + 1);
            let gone: Vec<Hook> = attached.drain(from..from + batch).collect();
            rt.detach_all(&gone).unwrap();
            done.fetch_add(batch as u64, Ordering::Relaxed);
            assert!(gone.iter().all(|h| h.stats().panics == 0));
        }
    }
    rt.detach_all(&attached).unwrap();
    done.fetch_add(attached.len() as u64, Ordering::Relaxed);
}

/// Callers stop at a barrier while programs change: then who saw which call is known exactly.
#[test]
fn slow_between_barriers() {
    const CALLERS: usize = 2;
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let all = sites(SITES);
    let (calls, stop) = (Calls::new(), AtomicBool::new(false));
    let gate = Barrier::new(CALLERS + 1);
    let begin = Instant::now();
    let goal = changes() * 11 / 20;
    let mut done = 0;

    thread::scope(|s| {
        for caller in 0..CALLERS {
            let (all, calls, stop, gate) = (&all, &calls, &stop, &gate);
            s.spawn(move || {
                for x in 0.. {
                    gate.wait();
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    // Not the same for any two sites.
                    (0..SITES)
                        .for_each(|i| (0..=i % 4 + caller).for_each(|_| calls.call(i, all[i], x)));
                    gate.wait();
                }
            });
        }
        // Each round: some sites get a program, some lose one, some keep theirs.
        let mut live: Vec<(usize, Hook, u64)> = Vec::new();
        let mut dice = Dice(99);
        while done < goal {
            let chosen: Vec<usize> = (0..SITES).filter(|_| dice.roll(3) > 0).collect();
            let builders = chosen
                .iter()
                .map(|&i| with_program(&rt, all[i], dice.roll(5)));
            let builders: Vec<_> = builders.collect();
            let new = rt.attach_all(builders).unwrap();
            done += new.len() as u64;
            live.extend(chosen.iter().zip(new).map(|(&i, h)| (i, h, calls.of(i))));
            gate.wait();
            gate.wait();
            let (goes, stays): (Vec<_>, Vec<_>) = live.drain(..).partition(|_| dice.roll(8) > 0);
            rt.detach_all(goes.iter().map(|(_, h, _)| h)).unwrap();
            done += goes.len() as u64;
            for (i, hook, since) in &goes {
                let stats = hook.stats();
                let ends = if stats.progs[0].kind == rvbpf::ProgKind::Fsession {
                    2
                } else {
                    1
                };
                assert_eq!(
                    stats.runs,
                    ends * (calls.of(*i) - since),
                    "site {i}: {stats:?}"
                );
                assert_eq!((stats.missed, stats.panics), (0, 0));
            }
            // The counters of what is gone must not move any more: looked at again at the end.
            live = stays;
            while live.len() > 20 * SITES {
                live.pop();
                done += 1;
            }
        }
        stop.store(true, Ordering::Relaxed);
        gate.wait();
        done += live.len() as u64;
        rt.detach_all(live.iter().map(|(_, h, _)| h)).unwrap();
    });
    say(
        "between barriers",
        done,
        begin,
        (0..SITES).map(|i| calls.of(i)).sum(),
    );
    assert_settled(&rt);
}

/// One site, one change at a time, as fast as they go, under callers that do nothing else.
#[test]
fn slow_one_hot_site() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let site = sites(1)[0];
    let (calls, stop) = (Calls::new(), AtomicBool::new(false));
    let stay = hook(&rt, site)
        .on_entry(|_| {})
        .on_exit(|_, _| {})
        .attach()
        .unwrap();
    let begin = Instant::now();
    let goal = changes() / 20;
    thread::scope(|s| {
        for _ in 0..2 {
            s.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    (0..1000).for_each(|x| calls.call(0, site, x));
                }
            });
        }
        for i in 0..goal as usize / 2 {
            with_program(&rt, site, i)
                .attach()
                .unwrap()
                .detach()
                .unwrap();
        }
        stop.store(true, Ordering::Relaxed);
    });
    say("one hot site", goal, begin, calls.of(0));
    let seen: Vec<_> = stay
        .stats()
        .progs
        .iter()
        .map(|p| (p.runs, p.missed))
        .collect();
    assert_eq!(seen, [(calls.of(0), 0); 2]);
    stay.detach().unwrap();
    assert_settled(&rt);
}

/// Code memory does not grow with the number of changes, with nobody asking for it to be freed.
#[test]
fn slow_code_is_freed_along_the_way() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let stop = AtomicBool::new(false);
    let mut most = 0;
    thread::scope(|s| {
        s.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                sites(SITES)
                    .into_iter()
                    .enumerate()
                    .for_each(|(i, site)| assert_eq!(site(1), 1 + i as c_long));
                thread::sleep(Duration::from_micros(100));
            }
        });
        for i in 0..changes() as usize / 256 {
            let builders = sites(SITES)
                .into_iter()
                .map(|site| with_program(&rt, site, i));
            let hooks = rt.attach_all(builders.collect::<Vec<_>>()).unwrap();
            rt.detach_all(&hooks).unwrap();
            most = most.max(rt.stats().packs.occupied_bytes);
        }
        stop.store(true, Ordering::Relaxed);
    });
    println!("at most {most} bytes of code at a time");
    assert!(most < 2 << 20, "{most} bytes");
    assert_settled(&rt);
}
