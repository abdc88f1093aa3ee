//! Programs that reach hooks.

use std::cell::Cell;
use std::sync::Arc;

use rvbpf::Runtime;
use testlib::functions::tl_add2;

use crate::common::{ADD2, Count, WEIGH12, assert_settled, hook, serial, sites, weigh_from};

#[test]
#[ignore = "open: did not settle within 20 s once, on rv64gc in a loaded VM"]
fn a_program_is_not_run_again_from_itself() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let inside = Arc::new(Count::new());
    let (at_entry, at_exit, at_fmod) = (inside.clone(), inside.clone(), inside.clone());
    let sum = |count: &Count| {
        if tl_add2(20, 22) == 42 {
            count.add();
        }
    };
    let hooked = hook(&rt, ADD2)
        .on_entry(move |_| sum(&at_entry))
        .on_exit(move |_, _| sum(&at_exit))
        .override_return(move |_| {
            sum(&at_fmod);
            None
        })
        .attach()
        .unwrap();
    for _ in 0..10 {
        assert_eq!(tl_add2(1, 2), 3);
    }
    assert_eq!(
        inside.get(),
        30,
        "the function is called from inside all the same"
    );
    for prog in hooked.stats().progs {
        assert_eq!((prog.runs, prog.missed), (10, 30), "{prog:?}");
    }
    hooked.detach().unwrap();
    assert_settled(&rt);
}

#[test]
fn a_hook_reached_from_another_runs() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let inner = hook(&rt, WEIGH12)
        // Back to where we come from: recursion, though through another hook.
        .on_entry(|_| assert_eq!(tl_add2(2, 2), 4))
        .on_exit(|call, ret| assert_eq!((call.args().11, *ret), (12, 650)))
        .override_return(|args| (args.0 == 100).then_some(-1))
        .attach()
        .unwrap();
    let outer = hook(&rt, ADD2)
        .on_entry(|_| {
            assert_eq!(weigh_from(1), (650, 650));
            assert_eq!(weigh_from(100).0, -1, "fmod_ret in a nested call");
        })
        .attach()
        .unwrap();
    // The exit program of `inner` is strict about its argument.
    assert_eq!(tl_add2(1, 2), 3);
    assert_eq!(outer.stats().progs[0].runs, 1);
    assert_eq!(outer.stats().missed, 2);
    let stats = inner.stats();
    let runs: Vec<_> = stats.progs.iter().map(|p| (p.runs, p.missed)).collect();
    assert_eq!(runs, [(2, 0), (2, 0), (2, 0)]);
    assert_eq!(
        stats.panics, 1,
        "the exit program saw the answer of the override"
    );
    rt.detach_all([&outer, &inner]).unwrap();
    assert_settled(&rt);
}

thread_local! {
    static DEPTH: Cell<usize> = const { Cell::new(0) };
}

/// Each program calls the next site. Nesting that is deeper than a thread remembers counts as
/// recursion; the functions run whatever happens.
#[test]
fn deep_nesting() {
    const LEVELS: usize = 40;
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let all = sites(LEVELS);
    let builders = all.iter().enumerate().map(|(i, site)| {
        let next = all.get(i + 1).copied();
        hook(&rt, *site).on_entry(move |call| {
            let (x,) = call.args();
            if let Some(next) = next {
                DEPTH.with(|d| d.set(d.get().max(i + 1)));
                assert_eq!(next(x), x + i as i64 + 1);
            }
        })
    });
    let hooks = rt.attach_all(builders).unwrap();
    assert_eq!(all[0](1000), 1000);
    let runs: Vec<_> = hooks
        .iter()
        .map(|h| (h.stats().runs, h.stats().missed))
        .collect();
    let deepest = runs.iter().position(|r| r.0 == 0).unwrap();
    assert!(deepest >= 8, "only {deepest} levels");
    assert_eq!(DEPTH.get(), deepest);
    for (i, run) in runs.iter().enumerate() {
        let want = match i.cmp(&deepest) {
            std::cmp::Ordering::Less => (1, 0),
            std::cmp::Ordering::Equal => (0, 1),
            std::cmp::Ordering::Greater => (0, 0),
        };
        assert_eq!(*run, want, "level {i}");
    }
    assert!(hooks.iter().all(|h| h.stats().panics == 0));
    rt.detach_all(&hooks).unwrap();
    assert_settled(&rt);
}

#[test]
fn programs_may_attach_and_detach() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let inner = rt.clone();
    let ran = Arc::new(Count::new());
    let count = ran.clone();
    let hooked = hook(&rt, ADD2)
        .on_entry(move |_| {
            let count = count.clone();
            let within = hook(&inner, WEIGH12)
                .on_entry(move |_| count.add())
                .attach()
                .unwrap();
            let (got, want) = weigh_from(7);
            assert_eq!(got, want);
            within.detach().unwrap();
        })
        .attach()
        .unwrap();
    for calls in 1..=50 {
        assert_eq!(tl_add2(1, 2), 3);
        assert_eq!(weigh_from(7).0, weigh_from(7).1);
        assert_eq!(ran.get(), calls);
    }
    assert_eq!(hooked.stats().panics, 0);
    hooked.detach().unwrap();
    assert_settled(&rt);
}

/// A program that detaches itself, and with it is gone when `detach` returns.
#[test]
fn a_program_may_detach_itself() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let slot: Arc<std::sync::Mutex<Option<rvbpf::Hook>>> = Arc::default();
    let mine = slot.clone();
    let exits = Arc::new(Count::new());
    let count = exits.clone();
    let hooked = hook(&rt, ADD2)
        .on_entry(move |_| drop(mine.lock().unwrap().take()))
        .on_exit(move |_, _| count.add())
        .attach()
        .unwrap();
    *slot.lock().unwrap() = Some(hooked);
    assert_eq!(tl_add2(1, 2), 3);
    assert!(slot.lock().unwrap().is_none(), "the entry program ran");
    assert_eq!(
        exits.get(),
        0,
        "no exit program runs once its hook is detached"
    );
    assert_eq!(tl_add2(1, 2), 3);
    assert_settled(&rt);
}
