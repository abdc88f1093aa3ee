//! Hard prologues: hooked from both ends, switched, taken apart, with threads running through them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use rvbpf::{EntryKind, Error, FuncModel, Hook, HookBuilder, Runtime, TrampError};

use crate::common::{Count, assert_settled, code_at, hook, serial};
use crate::fns::{CASES, Case, F, Takes};

/// Arguments that take every way through every function.
const ARGS: [std::ffi::c_long; 6] = [0, 1, 2, 7, 1000, -4];

fn of(takes: Takes) -> impl Iterator<Item = Case> {
    CASES.iter().copied().filter(move |c| c.takes == takes)
}

fn check(case: &Case) {
    for x in ARGS {
        assert_eq!((case.f)(x), (case.want)(x), "{}({x})", case.name);
    }
}

fn builder(rt: &Runtime, case: &Case) -> HookBuilder<F> {
    let builder = hook(rt, case.f);
    match case.takes {
        Takes::Trap => builder.allow_trap(),
        Takes::Jump | Takes::Nothing => builder,
    }
}

/// Hooked from both ends: what the programs see, what callers get, what is left afterwards.
fn both_ends(rt: &Runtime, case: &Case, kind: EntryKind) {
    let before = code_at(case.f as *const ());
    let (entries, exits) = (Arc::new(Count::new()), Arc::new(Count::new()));
    let (on_entry, on_exit) = (entries.clone(), exits.clone());
    let want = case.want;
    let hooked: Hook = builder(rt, case)
        .on_entry(move |call| {
            assert!(ARGS.contains(&call.args().0));
            on_entry.add();
        })
        .on_exit(move |call, ret| {
            assert_eq!(*ret, want(call.args().0));
            on_exit.add();
        })
        .attach()
        .unwrap();
    assert_eq!(hooked.kind(), Some(kind), "{}", case.name);
    assert_ne!(code_at(case.f as *const ()), before, "{}", case.name);
    check(case);
    let calls = ARGS.len() as u64;
    assert_eq!(
        (entries.get(), exits.get()),
        (calls, calls),
        "{}",
        case.name
    );
    assert_eq!(hooked.stats().panics, 0, "{}", case.name);
    hooked.detach().unwrap();
    assert_eq!(hooked.kind(), None);
    check(case);
    assert_eq!(entries.get(), calls, "{}: off", case.name);
    assert_settled(rt);
    assert_eq!(
        code_at(case.f as *const ()),
        before,
        "{}: its own instructions are back",
        case.name
    );
    check(case);
}

#[test]
fn functions_without_pads_take_jumps() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    for case in of(Takes::Jump) {
        check(&case);
        both_ends(&rt, &case, EntryKind::Jump);
    }
}

#[test]
fn a_trap_serves_where_no_jump_fits() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    for case in of(Takes::Trap) {
        check(&case);
        let refused = hook(&rt, case.f).on_entry(|_| {}).attach();
        let Err(Error::Tramp(TrampError::CannotMove { func, .. })) = &refused else {
            panic!("{}: {refused:?}", case.name);
        };
        assert_eq!(func.get(), case.f as usize as u64);
        let words = refused.unwrap_err().to_string();
        assert!(words.contains("allow a trap"), "{words}");
        assert_settled(&rt);
        both_ends(&rt, &case, EntryKind::Trap);
    }
}

#[test]
fn an_entry_that_is_a_loop_takes_nothing() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    for case in of(Takes::Nothing) {
        check(&case);
        let before = code_at(case.f as *const ());
        let refused = hook(&rt, case.f).on_entry(|_| {}).allow_trap().attach();
        assert!(
            matches!(refused, Err(Error::Tramp(TrampError::CannotTrap { .. }))),
            "{refused:?}"
        );
        assert_eq!(code_at(case.f as *const ()), before);
        check(&case);
        assert_settled(&rt);
    }
}

#[test]
fn programs_come_and_go_at_one_entry() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    for case in of(Takes::Jump).chain(of(Takes::Trap)) {
        let first = builder(&rt, &case).on_entry(|_| {}).attach().unwrap();
        check(&case);
        let second = builder(&rt, &case).on_exit(|_, _| {}).attach().unwrap();
        check(&case);
        first.detach().unwrap();
        check(&case);
        second.detach().unwrap();
        check(&case);
        // The stub is still there; now it leads to an image again.
        let third = builder(&rt, &case)
            .override_return(|(x,)| (x == 7).then_some(-1))
            .attach()
            .unwrap();
        for x in ARGS {
            let want = if x == 7 { -1 } else { (case.want)(x) };
            assert_eq!((case.f)(x), want, "{}({x})", case.name);
        }
        third.detach().unwrap();
        let calls = ARGS.len() as u64;
        let runs = [&first, &second, &third].map(|h| h.stats().runs);
        assert_eq!(runs, [2 * calls, 2 * calls, calls], "{}", case.name);
    }
    assert_settled(&rt);
}

/// A batch of all, or of none when one of them cannot be.
#[test]
fn a_batch_is_all_or_nothing() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let all = || of(Takes::Jump).chain(of(Takes::Trap));
    let before: Vec<_> = CASES.iter().map(|c| code_at(c.f as *const ())).collect();
    let with_bad = all().chain(of(Takes::Nothing));
    let builders = with_bad.map(|c| builder(&rt, &c).on_entry(|_| {}));
    assert!(rt.attach_all(builders).is_err());
    let now: Vec<_> = CASES.iter().map(|c| code_at(c.f as *const ())).collect();
    assert_eq!(now, before, "nothing has changed");
    let hooks = rt
        .attach_all(all().map(|c| builder(&rt, &c).on_exit(|_, _| {})))
        .unwrap();
    all().for_each(|c| check(&c));
    let called_by_others = ["jp_words_0", "jp_words_2"];
    for (hook, case) in hooks.iter().zip(all()) {
        if !called_by_others.contains(&case.name) {
            assert_eq!(hook.stats().runs, ARGS.len() as u64, "{}", case.name);
        }
    }
    rt.detach_all(&hooks).unwrap();
    assert_settled(&rt);
    let now: Vec<_> = CASES.iter().map(|c| code_at(c.f as *const ())).collect();
    assert_eq!(now, before, "nothing is left");
}

/// Two threads call without a pause while hooks come and go and functions are taken apart.
#[test]
fn calls_go_on_while_entries_change() {
    const ROUNDS: usize = 20;
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let done = AtomicBool::new(false);
    let cases = || of(Takes::Jump).chain(of(Takes::Trap));
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    cases().for_each(|c| check(&c));
                }
            });
        }
        for round in 0..ROUNDS {
            let builders = cases().map(|c| match round % 2 {
                0 => builder(&rt, &c).on_entry(|_| {}),
                _ => builder(&rt, &c).on_exit(|_, _| {}),
            });
            let hooks = rt.attach_all(builders).unwrap();
            cases().for_each(|c| check(&c));
            assert!(hooks.iter().all(|h| h.stats().runs > 0));
            rt.detach_all(&hooks).unwrap();
            if round % 3 == 0 {
                rt.synchronize(crate::common::PATIENCE).unwrap();
            }
        }
        done.store(true, Ordering::Relaxed);
    });
    assert_settled(&rt);
}

/// Functions of any ABI, Rust's too, by address.
#[test]
fn a_rust_function_is_hooked_by_address() {
    #[inline(never)]
    fn mix(words: &[u64], by: u64) -> u64 {
        words.iter().fold(by, |sum, w| sum.rotate_left(7) ^ w)
    }
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let plain = mix(std::hint::black_box(&[1, 2, 3]), 4);
    let mix: fn(&[u64], u64) -> u64 = std::hint::black_box(mix);
    // SAFETY: 1. nothing is claimed of the function.
    let builder = unsafe { rt.hook_addr(mix as *const (), FuncModel::untyped()) }.unwrap();
    let hooked = builder
        .on_entry(|_| {})
        .on_exit(|_, _| {})
        .attach()
        .unwrap();
    assert_eq!(hooked.kind(), Some(EntryKind::Jump));
    assert_eq!(mix(std::hint::black_box(&[1, 2, 3]), 4), plain);
    assert_eq!(hooked.stats().runs, 2);
    hooked.detach().unwrap();
    assert_settled(&rt);
}
