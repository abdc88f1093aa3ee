//! Who runs when, and who sees what.

use std::ffi::{c_int, c_long, c_void};
use std::sync::{Arc, Mutex};

use rvbpf::{MAX_LINKS, ProgKind, Runtime};
use testlib::functions::{tl_add2, tl_fib};

use crate::common::{
    ADD2, Count, WEIGH12, assert_settled, call_back, call_through, hook, serial, weigh_from,
};

/// What happened, in order.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<&'static str>>>);

impl Log {
    fn put(&self, what: &'static str) {
        self.0.lock().unwrap().push(what);
    }

    fn take(&self) -> Vec<&'static str> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }

    /// A closure's own handle, and its word.
    fn word(&self, what: &'static str) -> impl Fn() + Send + Sync + 'static {
        let log = self.clone();
        move || log.put(what)
    }
}

#[test]
fn programs_run_in_the_order_of_the_kernel() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let log = Log::default();
    let [x1, m1, e1, s1, r1] = ["x1", "m1", "e1", "s1", "r1"].map(|w| log.word(w));
    let first = hook(&rt, ADD2)
        .on_exit(move |_, _| x1())
        .override_return(move |_| {
            m1();
            None
        })
        .on_entry(move |_| e1())
        .on_session(move |_, _| s1(), move |_, _, _| r1())
        .attach()
        .unwrap();
    let [e2, m2, x2, s2, r2] = ["e2", "m2", "x2", "s2", "r2"].map(|w| log.word(w));
    let second = hook(&rt, ADD2)
        .on_entry(move |_| e2())
        .override_return(move |_| {
            m2();
            None
        })
        .on_exit(move |_, _| x2())
        .on_session(move |_, _| s2(), move |_, _, _| r2())
        .attach()
        .unwrap();

    assert_eq!(tl_add2(1, 2), 3);
    assert_eq!(
        log.take(),
        ["e1", "s1", "e2", "s2", "m1", "m2", "x1", "r1", "x2", "r2"]
    );

    first.detach().unwrap();
    assert_eq!(tl_add2(1, 2), 3);
    assert_eq!(log.take(), ["e2", "s2", "m2", "x2", "r2"]);

    second.detach().unwrap();
    assert_eq!(tl_add2(1, 2), 3);
    assert!(log.take().is_empty());
    assert_settled(&rt);
}

static CALLED: Count = Count::new();

extern "C-unwind" fn called(_: *mut c_void) -> c_long {
    CALLED.add();
    41
}

/// The first non-zero answer ends the chain, skips the function, and is what the caller gets;
/// with exit programs, which see it, and without.
fn the_chain_ends(with_exit: bool) {
    let rt = Runtime::new().unwrap();
    let log = Log::default();
    let null = std::ptr::null_mut();
    CALLED.take();
    assert_eq!(call_through(called, null), 42);
    assert_eq!(CALLED.take(), 1);

    let [e, m1, m2, m3, x] = ["e", "m1", "m2", "m3", "x"].map(|w| log.word(w));
    let mut builder = hook(&rt, call_back())
        .override_return(move |_| {
            m1();
            None
        })
        .override_return(move |(_, arg)| {
            m2();
            arg.is_null().then_some(77)
        })
        .override_return(move |_| {
            m3();
            None
        })
        .on_entry(move |_| e());
    if with_exit {
        builder = builder.on_exit(move |call, ret| {
            assert_eq!(call.args().0 as usize, called as usize);
            assert_eq!(*ret, if call.args().1.is_null() { 77 } else { 42 });
            x();
        });
    }
    let hooked = builder.attach().unwrap();
    let exit: &[&str] = if with_exit { &["x"] } else { &[] };

    assert_eq!(call_through(called, null), 77);
    assert_eq!(CALLED.take(), 0, "the function ran");
    assert_eq!(log.take(), [&["e", "m1", "m2"], exit].concat());

    assert_eq!(call_through(called, std::ptr::dangling_mut()), 42);
    assert_eq!(CALLED.take(), 1);
    assert_eq!(log.take(), [&["e", "m1", "m2", "m3"], exit].concat());
    assert_eq!(hooked.stats().panics, 0);

    hooked.detach().unwrap();
    assert_eq!(call_through(called, null), 42);
    assert_settled(&rt);
}

#[test]
fn the_first_answer_ends_the_fmod_ret_chain() {
    let _one = serial();
    the_chain_ends(false);
}

#[test]
fn exit_programs_see_the_answer_of_the_fmod_ret_chain() {
    let _one = serial();
    the_chain_ends(true);
}

#[test]
fn zero_can_be_returned_instead() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let hooked = hook(&rt, ADD2)
        .override_return(|(a, _)| (a < 0).then_some(0))
        .attach()
        .unwrap();
    assert_eq!((tl_add2(-5, 1), tl_add2(5, 1)), (0, 6));
    hooked.detach().unwrap();
    assert_eq!(tl_add2(-5, 1), -4);
    assert_settled(&rt);
}

#[test]
fn exit_programs_see_arguments_and_return_value() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let sink = seen.clone();
    let add = hook(&rt, ADD2)
        .on_exit(move |call, ret| sink.lock().unwrap().push((call.args(), *ret)))
        .attach()
        .unwrap();
    let wide = Arc::new(Mutex::new(None));
    let sink = wide.clone();
    let weigh = hook(&rt, WEIGH12)
        .on_exit(move |call, ret| *sink.lock().unwrap() = Some((call.args(), *ret)))
        .attach()
        .unwrap();

    assert_eq!(tl_add2(c_int::MAX, -1), c_int::MAX - 1);
    assert_eq!(tl_add2(-3, 1), -2);
    assert_eq!(
        *seen.lock().unwrap(),
        [((c_int::MAX, -1), c_int::MAX - 1), ((-3, 1), -2)]
    );
    let (got, want) = weigh_from(-4);
    assert_eq!(got, want);
    let args = (-4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
    assert_eq!(*wide.lock().unwrap(), Some((args, want)));

    rt.detach_all([&add, &weigh]).unwrap();
    assert_settled(&rt);
}

#[test]
fn sessions_have_a_cookie_for_each_call() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let (zero, kept) = (Arc::new(Count::new()), Arc::new(Count::new()));
    let mut builder = hook(&rt, tl_fib as extern "C" fn(u64) -> u64);
    // Two sessions, so that cookies could be mixed up between programs as well as calls.
    for salt in [0x1111_0000_0000_0000_u64, 0x2222_0000_0000_0000] {
        let (zero, kept) = (zero.clone(), kept.clone());
        builder = builder.on_session(
            move |call, cookie| {
                if *cookie == 0 {
                    zero.add();
                }
                *cookie = salt | call.args().0;
            },
            move |call, ret, cookie| {
                if *cookie == salt | call.args().0 && *ret <= call.args().0.pow(4) {
                    kept.add();
                }
            },
        );
    }
    let hooked = builder.attach().unwrap();
    // fib(n) by two recursive calls makes 2 fib(n + 1) - 1 of them.
    let (n, calls) = (15, 2 * 987 - 1);
    assert_eq!(tl_fib(n), 610);
    assert_eq!((zero.get(), kept.get()), (2 * calls, 2 * calls));
    let stats = hooked.stats();
    assert_eq!(
        stats.missed, 0,
        "recursion of the function itself is not of the program"
    );
    assert_eq!(stats.runs, 4 * calls, "both ends of both programs");
    hooked.detach().unwrap();
    assert_eq!(tl_fib(n), 610);
    assert_eq!(zero.get(), 2 * calls);
    assert_settled(&rt);
}

#[test]
fn as_many_programs_as_the_kernel_allows() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    assert_eq!(MAX_LINKS, 38);
    let order = Arc::new(Mutex::new(Vec::new()));
    let mut hooks = Vec::new();
    for i in 0..MAX_LINKS {
        let order = order.clone();
        let builder = hook(&rt, ADD2);
        let builder = match i % 4 {
            0 => builder.on_entry(move |_| order.lock().unwrap().push(i)),
            1 => builder.on_exit(move |_, sum| order.lock().unwrap().push(i + *sum as usize)),
            2 => builder.override_return(move |_| {
                order.lock().unwrap().push(i);
                None
            }),
            _ => builder.on_session(|_, at| *at += 1, |_, _, at| assert_eq!(*at, 1)),
        };
        hooks.push(builder.attach().unwrap());
    }
    assert_eq!(tl_add2(30, 70), 100);
    let of = |rest: usize, add: usize| {
        (0..MAX_LINKS)
            .filter(move |i| i % 4 == rest)
            .map(move |i| i + add)
    };
    let want: Vec<usize> = of(0, 0).chain(of(2, 0)).chain(of(1, 100)).collect();
    assert_eq!(*order.lock().unwrap(), want);
    for (i, hooked) in hooks.iter().enumerate() {
        let stats = hooked.stats();
        let runs = if stats.progs[0].kind == ProgKind::Fsession {
            2
        } else {
            1
        };
        assert_eq!(
            (stats.runs, stats.missed, stats.panics),
            (runs, 0, 0),
            "program {i}"
        );
    }
    // Taken off from the middle outwards: whoever stays is not disturbed.
    while !hooks.is_empty() {
        drop(hooks.remove(hooks.len() / 2));
        assert_eq!(tl_add2(30, 70), 100);
    }
    assert_settled(&rt);
}
