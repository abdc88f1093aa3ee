//! When nobody is inside any more.

use std::ffi::c_int;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rvbpf::Runtime;
use rvbpf::struct_ops::{Link, OpsError, Table};

use crate::common::{
    PATIENCE, PROMPT, Stopper, assert_settled, gettid, in_child, is_asleep, serial, wait_until,
};
use crate::table::{M, Ops, builder, register};
use testlib::ops::{tl_ops_block, tl_ops_read};

/// A thread that is inside `block` until a byte is written.
fn blocked(link: &Link<Ops>) -> (JoinHandle<()>, UnixStream) {
    let (reader, writer) = UnixStream::pair().unwrap();
    let ops = link.as_ptr() as usize;
    let (tell, told) = std::sync::mpsc::channel();
    let thread = thread::spawn(move || {
        tell.send(gettid()).unwrap();
        // SAFETY: 1. the test keeps the link until this thread has ended.
        unsafe { tl_ops_block(ops as *const _, reader.as_raw_fd()) };
    });
    let tid = told.recv().unwrap();
    wait_until("the thread reads", || is_asleep(tid));
    (thread, writer)
}

/// Drops with what owns it.
struct Witness(Arc<AtomicUsize>);

impl Drop for Witness {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

fn reading(rt: &Runtime, dropped: &Arc<AtomicUsize>) -> Table<Ops> {
    let witness = Witness(dropped.clone());
    builder(rt)
        .closure(M.block, move |(fd,)| {
            let _in_use = &witness;
            tl_ops_read(fd)
        })
        .build()
        .unwrap()
}

#[test]
fn unregister_waits_for_a_thread_that_is_blocked_inside() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let dropped = Arc::new(AtomicUsize::new(0));
    let table = reading(&rt, &dropped);
    let link = register(&rt, &table);
    let (thread, mut writer) = blocked(&link);
    drop(table);
    let mut leave = link.begin_unregister().unwrap();
    assert!(!leave.is_left());
    let still = leave.wait(Duration::from_millis(50));
    assert!(
        matches!(still, Err(OpsError::StillInside { tid: Some(tid), .. }) if tid > 0),
        "{still:?}"
    );
    // Calls that begin now find the default, and do not keep the old one from being left.
    let (second, mut second_writer) = blocked(&link);
    assert_eq!(dropped.load(Ordering::SeqCst), 0);
    writer.write_all(b"x").unwrap();
    thread.join().unwrap();
    leave.wait(PROMPT).unwrap();
    assert!(leave.is_left());
    assert_eq!(dropped.load(Ordering::SeqCst), 1);
    second_writer.write_all(b"x").unwrap();
    second.join().unwrap();
    drop((leave, link));
    assert_settled(&rt);
}

#[test]
fn an_update_waits_for_nobody_and_keeps_what_is_in_use() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let dropped = Arc::new(AtomicUsize::new(0));
    let link = register(&rt, &reading(&rt, &dropped));
    let (thread, mut writer) = blocked(&link);
    link.update(&builder(&rt).build().unwrap()).unwrap();
    assert!(rt.synchronize(Duration::from_millis(50)).is_err());
    assert_eq!(
        (dropped.load(Ordering::SeqCst), rt.stats().ops.retired),
        (0, 1)
    );
    // In the new version, and its second stay does not count as the first.
    let (second, mut second_writer) = blocked(&link);
    writer.write_all(b"x").unwrap();
    thread.join().unwrap();
    rt.synchronize(PROMPT).unwrap();
    assert_eq!(
        (dropped.load(Ordering::SeqCst), rt.stats().ops.retired),
        (1, 0)
    );
    second_writer.write_all(b"x").unwrap();
    second.join().unwrap();
    drop(link);
    assert_settled(&rt);
}

#[test]
fn a_pin_keeps_its_version() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let dropped = Arc::new(AtomicUsize::new(0));
    let link = register(&rt, &reading(&rt, &dropped));
    // More than a thread remembers by name; in another order than they came.
    let mut pins: Vec<_> = (0..20).map(|_| link.pin().unwrap()).collect();
    link.update(&builder(&rt).build().unwrap()).unwrap();
    while let Some(pin) = pins.pop() {
        assert!(rt.synchronize(Duration::ZERO).is_err());
        assert_eq!(dropped.load(Ordering::SeqCst), 0);
        pins.reverse();
        drop(pin);
    }
    rt.synchronize(PROMPT).unwrap();
    assert_eq!(dropped.load(Ordering::SeqCst), 1);
    let pin = link.pin().unwrap();
    assert!(matches!(
        link.unregister(PATIENCE),
        Err(OpsError::Myself { table: "Ops" })
    ));
    drop(pin);
    drop(link);
    assert_settled(&rt);
}

#[test]
fn a_member_that_unregisters_its_own_table_is_told() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let link: Arc<std::sync::OnceLock<Link<Ops>>> = Arc::default();
    let weak = Arc::downgrade(&link);
    let table = builder(&rt)
        .closure(M.stamp, move |(x,)| {
            let link = weak.upgrade().unwrap();
            let told = link.get().unwrap().unregister(PATIENCE);
            assert!(matches!(told, Err(OpsError::Myself { .. })), "{told:?}");
            x + 1
        })
        .build()
        .unwrap();
    link.set(register(&rt, &table)).unwrap();
    let stamp = link.get().unwrap().get(M.stamp);
    assert_eq!((stamp(1), table.panics()), (2, 0));
    assert_eq!(stamp(1), 1, "the default");
    drop((link, table));
    assert_settled(&rt);
}

/// Calls itself through the table, deeper than anybody remembers by name.
#[test]
fn members_inside_members_are_all_remembered() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let dropped = Arc::new(AtomicUsize::new(0));
    let (go, at_depth) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicUsize::new(0)),
    );
    let link: Arc<std::sync::OnceLock<usize>> = Arc::default();
    let table = {
        let (witness, go, at_depth) = (Witness(dropped.clone()), go.clone(), at_depth.clone());
        let link = link.clone();
        builder(&rt).closure(M.stamp, move |(x,)| {
            let _in_use = &witness;
            let ops = *link.get().unwrap() as *const std::ffi::c_void;
            if x > 0 {
                // SAFETY: 1. the test keeps the link.
                return unsafe { testlib::ops::tl_ops_stamp(ops, x - 1) } + 1;
            }
            at_depth.fetch_add(1, Ordering::SeqCst);
            while !go.load(Ordering::SeqCst) {
                thread::yield_now();
            }
            100
        })
    };
    let registered = register(&rt, &table.build().unwrap());
    link.set(registered.as_ptr() as usize).unwrap();
    let stamp = registered.get(M.stamp);
    let depths = [0, 3, 6, 7, 30];
    let threads = depths.map(|depth| thread::spawn(move || stamp(depth)));
    while at_depth.load(Ordering::SeqCst) < depths.len() {
        thread::yield_now();
    }
    registered.update(&builder(&rt).build().unwrap()).unwrap();
    assert!(rt.synchronize(Duration::from_millis(100)).is_err());
    assert_eq!(dropped.load(Ordering::SeqCst), 0);
    go.store(true, Ordering::SeqCst);
    for (thread, depth) in threads.into_iter().zip(depths) {
        assert_eq!(thread.join().unwrap(), 100 + depth);
    }
    rt.synchronize(PROMPT).unwrap();
    assert_eq!(dropped.load(Ordering::SeqCst), 1);
    drop(registered);
    assert_settled(&rt);
}

#[test]
fn tables_that_nobody_has_are_freed_along_the_way() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let dropped = Arc::new(AtomicUsize::new(0));
    let link = register(&rt, &reading(&rt, &dropped));
    for _ in 0..200 {
        link.update(&reading(&rt, &dropped)).unwrap();
    }
    let retired = rt.stats().ops.retired;
    assert!(retired < 100, "{retired} are still there");
    assert_eq!(dropped.load(Ordering::SeqCst), 200 - retired);
    let fd: c_int = -1;
    (link.get(M.block))(fd);
    drop(link);
    assert_settled(&rt);
    assert_eq!(dropped.load(Ordering::SeqCst), 201);
}

/// A child of a fork has the tables, whatever another thread did with them in that moment, and what
/// it does with them is its own affair.
#[test]
fn a_child_swaps_and_unregisters_for_itself() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let of = |by: i64| {
        builder(&rt)
            .closure(M.stamp, move |(x,)| x + by)
            .build()
            .unwrap()
    };
    let (one, two, three) = (of(1), of(2), of(3));
    let link = register(&rt, &one);
    let stamp = link.get(M.stamp);
    let stop = AtomicBool::new(false);
    thread::scope(|s| {
        let stopper = Stopper(&stop);
        s.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                link.update(&two).unwrap();
                link.update(&one).unwrap();
                let _ = rt.synchronize(Duration::ZERO);
            }
        });
        for _ in 0..10 {
            let child = in_child(|| {
                link.update(&three).unwrap();
                assert_eq!(stamp(1), 4);
                assert_eq!((link.pin().unwrap().stamp)(1), 4);
                link.unregister(PATIENCE).unwrap();
                assert_eq!(stamp(1), 1);
            });
            child.join();
            let here = stamp(1);
            assert!(here == 2 || here == 3, "{here}");
        }
        drop(stopper);
    });
    drop((link, one, two, three));
    assert_settled(&rt);
}
