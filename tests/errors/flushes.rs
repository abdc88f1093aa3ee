//! A kernel that refuses to flush: the change is taken back, and the set of hooks is as before,
//! whichever of its flushes is refused, and whether or not taking it back is refused as well.

use std::ffi::c_long;
use std::sync::Arc;

use rvbpf::{Error, Hook, Runtime, TrampError};
use testlib::functions::tl_add2;
use text::TextError;
use text::testing::{flush_count, refuse_flushes_after};

use crate::common::{
    ADD2, Count, WEIGH12, assert_settled, hook, in_child, serial, sites, weigh_from,
};

/// Refuses flushes from the `pass`th on, `n` of them, while `change` runs.
fn refusing<T>(pass: u32, n: u32, change: impl FnOnce() -> T) -> T {
    refuse_flushes_after(pass, n);
    let result = change();
    refuse_flushes_after(0, 0);
    result
}

fn assert_refused(error: &Error) {
    let text = match error {
        Error::Tramp(TrampError::Text(text)) => text,
        Error::Tramp(TrampError::Pack(pack_alloc::PackError::Text(text))) => text,
        _ => panic!("is {error:?}"),
    };
    assert_eq!(*text, TextError::Flush { errno: libc::EPERM });
}

/// Tries `change` with its first flush refused, then its second and so on, once alone and once with
/// all that follow. After each refusal `as_before` must hold. What it gives when nothing is refused
/// any more.
fn at_every_flush<T>(what: &str, change: impl Fn() -> Result<T, Error>, as_before: impl Fn()) -> T {
    for pass in 0.. {
        for n in [1, u32::MAX] {
            let before = flush_count();
            match refusing(pass, n, &change) {
                Err(error) => {
                    assert_refused(&error);
                    as_before();
                }
                Ok(done) => {
                    // A change that has got through in spite of it did not need that flush.
                    println!(
                        "{what}: {pass} flushes, each refused once ({} asked)",
                        flush_count() - before
                    );
                    assert!(pass > 0, "{what}: nothing was refused");
                    return done;
                }
            }
        }
    }
    unreachable!("a change has a last flush")
}

/// Programs on `ADD2`, each of which counts its runs.
struct Counting {
    rt: Runtime,
    runs: Arc<Count>,
    /// Brings a pack: making one may try several kinds of memory, and copes with refusals.
    other: Hook,
}

impl Counting {
    fn new() -> Self {
        let rt = Runtime::new().unwrap();
        let other = hook(&rt, WEIGH12).on_entry(|_| {}).attach().unwrap();
        Counting {
            rt,
            runs: Arc::default(),
            other,
        }
    }

    fn end(self) {
        drop(self.other);
        assert_settled(&self.rt);
    }

    /// Two programs: one before, one after.
    fn attach(&self) -> Result<Hook, Error> {
        let (enter, leave) = (self.runs.clone(), self.runs.clone());
        hook(&self.rt, ADD2)
            .on_entry(move |_| enter.add())
            .on_exit(move |_, _| leave.add())
            .attach()
    }

    /// Calls run `n` programs, and the runtime says so too.
    fn assert_hooks(&self, n: usize) {
        for a in 0..3 {
            let before = self.runs.get();
            assert_eq!(tl_add2(a, 3), a + 3);
            assert_eq!(self.runs.get() - before, 2 * n as u64);
        }
        let stats = self.rt.stats().tramps;
        assert_eq!((stats.links, stats.images), (2 * n + 1, n.min(1) + 1));
    }
}

#[test]
fn refused_while_attaching_retargeting_and_detaching() {
    let _one = serial();
    let c = Counting::new();
    let first = at_every_flush("attach", || c.attach(), || c.assert_hooks(0));
    c.assert_hooks(1);
    let second = at_every_flush("add a program", || c.attach(), || c.assert_hooks(1));
    c.assert_hooks(2);
    at_every_flush("remove a program", || first.detach(), || c.assert_hooks(2));
    c.assert_hooks(1);
    at_every_flush("detach the last", || second.detach(), || c.assert_hooks(1));
    c.assert_hooks(0);
    let again = at_every_flush(
        "attach to an idle site",
        || c.attach(),
        || c.assert_hooks(0),
    );
    c.assert_hooks(1);
    again.detach().unwrap();
    at_every_flush(
        "take apart",
        || c.rt.synchronize(crate::common::PATIENCE),
        || {
            let before = c.runs.get();
            assert_eq!(tl_add2(1, 2), 3);
            assert_eq!(c.runs.get(), before);
        },
    );
    c.end();
}

#[test]
fn refused_in_a_batch() {
    let _one = serial();
    let c = Counting::new();
    let stays = c.attach().unwrap();
    let site_runs = Arc::new(Count::new());
    let builders = || {
        // New sites in several pages.
        let site = |s| {
            let runs = site_runs.clone();
            hook(&c.rt, s).on_entry(move |_| runs.add())
        };
        sites(64).into_iter().step_by(9).map(site)
    };
    let call_sites = |runs: u64| {
        site_runs.take();
        for (i, site) in sites(64).into_iter().enumerate() {
            assert_eq!(site(1), 1 + i as c_long);
        }
        assert_eq!(site_runs.get(), runs);
    };
    let links = |n: usize| assert_eq!(c.rt.stats().tramps.links, n);
    let some = at_every_flush(
        "attach to 8",
        || c.rt.attach_all(builders()),
        || {
            call_sites(0);
            c.assert_hooks(1);
        },
    );
    call_sites(8);
    at_every_flush(
        "detach from 9",
        || c.rt.detach_all(some.iter().chain([&stays])),
        || {
            call_sites(8);
            links(11);
            let before = c.runs.get();
            assert_eq!(tl_add2(1, 2), 3);
            assert_eq!(c.runs.get(), before + 2);
        },
    );
    call_sites(0);
    c.assert_hooks(0);
    c.end();
}

/// Dropping a hook cannot report that it was refused: the programs stay attached, and alive, until
/// the runtime goes; even then nobody calls what is gone.
#[test]
fn refused_while_dropping() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let runs = Arc::new(Count::new());
    let count = runs.clone();
    let hooked = hook(&rt, WEIGH12)
        .on_entry(move |_| count.add())
        .attach()
        .unwrap();
    refusing(0, u32::MAX, || drop(hooked));
    assert_eq!(weigh_from(1), (650, 650));
    assert_eq!((runs.get(), rt.stats().tramps.links), (1, 1));
    // Others may still come and go.
    let other = hook(&rt, WEIGH12).on_exit(|_, _| {}).attach().unwrap();
    assert_eq!(weigh_from(1), (650, 650));
    other.detach().unwrap();
    assert_eq!(weigh_from(1), (650, 650));
    assert_eq!(runs.take(), 3);
    // The last handle tries once more.
    drop((other, rt));
    assert_eq!(weigh_from(1), (650, 650));
    assert_eq!((runs.get(), Arc::strong_count(&runs)), (0, 1));
}

/// A kernel that refuses for good: the programs stay, though their runtime is gone.
#[test]
fn refused_to_the_end() {
    let _one = serial();
    in_child(|| {
        let rt = Runtime::new().unwrap();
        let runs = Arc::new(Count::new());
        let count = runs.clone();
        let hooked = hook(&rt, WEIGH12)
            .on_entry(move |_| count.add())
            .attach()
            .unwrap();
        refusing(0, u32::MAX, || drop((hooked, rt)));
        assert_eq!(weigh_from(1), (650, 650));
        assert_eq!(runs.get(), 1);
        let rt = Runtime::new().unwrap();
        let others = rt
            .attach_all(
                sites(64)
                    .into_iter()
                    .map(|s| hook(&rt, s).on_exit(|_, _| {})),
            )
            .unwrap();
        assert_eq!(weigh_from(1), (650, 650));
        assert_eq!(runs.get(), 2);
        drop(others);
    })
    .join();
}
