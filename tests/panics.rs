//! What a user reads of panics in hooks: the first of each hook, and all of the program's own.
#![cfg(target_arch = "riscv64")]
#![expect(unsafe_code, reason = "the common part calls C")]

mod common;

use std::panic;
use std::sync::atomic::{AtomicU64, Ordering};

use common::{ADD2, assert_settled, hook, sites};
use rvbpf::Runtime;
use testlib::functions::tl_add2;

static REPORTED: AtomicU64 = AtomicU64::new(0);

/// The only test of this process: the panic hook is the process's.
#[test]
fn the_first_panic_of_each_hook_is_reported() {
    panic::set_hook(Box::new(|_| {
        REPORTED.fetch_add(1, Ordering::Relaxed);
    }));
    let reported = || REPORTED.swap(0, Ordering::Relaxed);
    let rt = Runtime::new().unwrap();
    let site = sites(1)[0];
    let hooks = [
        hook(&rt, ADD2)
            .on_entry(|_| panic!("entry"))
            .on_exit(|_, _| panic!("exit"))
            .attach()
            .unwrap(),
        hook(&rt, ADD2)
            .on_entry(|_| panic!("another hook"))
            .attach()
            .unwrap(),
        hook(&rt, site)
            .on_entry(|_| {
                // A panic that a closure deals with itself is reported as any, and not counted.
                assert!(panic::catch_unwind(|| panic!("caught")).is_err());
            })
            .attach()
            .unwrap(),
    ];
    assert_eq!(reported(), 0);
    for _ in 0..10 {
        assert_eq!(tl_add2(1, 2), 3);
    }
    assert_eq!(reported(), 2, "once for each hook");
    let panics: Vec<u64> = hooks.iter().map(|h| h.stats().panics).collect();
    assert_eq!(panics, [20, 10, 0]);

    for _ in 0..10 {
        assert!(panic::catch_unwind(|| panic!("of the program")).is_err());
    }
    assert_eq!(reported(), 10);
    assert_eq!(site(1), 1);
    assert_eq!(hooks[2].stats().panics, 0);
    rt.detach_all(&hooks).unwrap();
    assert_settled(&rt);
}
