//! Processes: after a fork parent and child have hooks and code of their own.
#![cfg(target_arch = "riscv64")]
#![expect(unsafe_code, reason = "forks")]

mod common;

use std::ffi::{c_long, c_void};
use std::process::Command;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use common::{
    ADD2, Child, Count, PATIENCE, SUM, WEIGH12, assert_settled, call_back, call_through, code_at,
    hook, in_child, pipe, send, serial, sites, vfork, weigh_from,
};
use rvbpf::{Hook, Runtime};
use testlib::functions::{tl_add2, tl_read_byte};

/// A child that waits for its turns.
struct InTurns {
    child: Child,
    go: i32,
    done: i32,
}

impl InTurns {
    /// Forks; the child runs `steps` one by one as it is told.
    fn fork(steps: impl FnOnce(&dyn Fn())) -> Self {
        let (go_read, go) = pipe();
        let (done, done_write) = pipe();
        let child = in_child(|| {
            let await_turn = || {
                send(done_write, 1);
                assert_eq!(tl_read_byte(go_read), 1, "the parent is gone");
            };
            assert_eq!(tl_read_byte(go_read), 1);
            steps(&await_turn);
            send(done_write, 2);
        });
        InTurns { child, go, done }
    }

    /// Lets the child take its next step and waits for the end of that.
    fn step(&self) {
        send(self.go, 1);
        let answer = tl_read_byte(self.done);
        assert!(answer == 1 || answer == 2, "the child died");
    }
}

fn counting(rt: &Runtime) -> (Hook, Arc<Count>) {
    let count = Arc::new(Count::new());
    let its = count.clone();
    (
        hook(rt, ADD2)
            .on_entry(|_| {})
            .on_exit(move |_, _| its.add())
            .attach()
            .unwrap(),
        count,
    )
}

/// Runs one call that is hooked `times` times; `count` is of one of the hooks.
fn call(count: &Count, times: u64) {
    let before = count.get();
    assert_eq!(tl_add2(20, 3), 23);
    assert_eq!(count.get() - before, times);
}

/// In turns, and after each turn of one side the other looks at its code and calls.
#[test]
fn parent_and_child_do_not_touch_each_other() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let plain = code_at(ADD2 as *const ());
    let (hooked, count) = counting(&rt);
    let with_hook = code_at(ADD2 as *const ());
    assert_ne!(plain, with_hook);
    let code = || code_at(ADD2 as *const ());

    let child = InTurns::fork(|turn| {
        assert_eq!(code(), with_hook);
        call(&count, 1);
        hooked.detach().unwrap();
        call(&count, 0);
        rt.synchronize(PATIENCE).unwrap();
        assert_eq!(code(), plain);
        turn();
        // The parent has detached, attached and retargeted.
        assert_eq!(code(), plain);
        call(&count, 0);
        let (again, new) = counting(&rt);
        let weigh = hook(&rt, WEIGH12).on_exit(|_, _| {}).attach().unwrap();
        call(&new, 1);
        assert_eq!(weigh_from(1), (650, 650));
        assert_eq!(weigh.stats().runs, 1);
        turn();
        // The parent has taken everything apart.
        call(&new, 1);
        assert_eq!(weigh_from(1), (650, 650));
        rt.detach_all([&again, &weigh]).unwrap();
        assert_settled(&rt);
        assert_eq!(code(), plain);
    });

    assert_eq!(code(), with_hook);
    child.step();
    // The child has detached and taken the site apart.
    assert_eq!(code(), with_hook);
    call(&count, 1);
    assert_eq!(
        hooked.stats().progs[1].runs,
        1,
        "the child's calls are its own"
    );
    hooked.detach().unwrap();
    let (again, new) = counting(&rt);
    let (third, _) = counting(&rt);
    call(&new, 1);
    third.detach().unwrap();
    let before = (code(), code_at(WEIGH12 as *const ()));
    child.step();
    // The child has hooked the same function and another.
    assert_eq!((code(), code_at(WEIGH12 as *const ())), before);
    call(&new, 1);
    assert_eq!(weigh_from(1), (650, 650));
    again.detach().unwrap();
    assert_settled(&rt);
    assert_eq!(code(), plain);
    call(&new, 0);
    child.step();
    child.child.join();
    call(&new, 0);
    assert_eq!(code(), plain);
}

/// The other way round: what the parent does before the child has done anything.
#[test]
fn the_parent_may_go_first() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let plain = code_at(ADD2 as *const ());
    let (hooked, count) = counting(&rt);
    let with_hook = code_at(ADD2 as *const ());
    let child = InTurns::fork(|turn| {
        // The parent has taken the hook apart and used the memory for others.
        assert_eq!(code_at(ADD2 as *const ()), with_hook);
        call(&count, 1);
        turn();
        hooked.detach().unwrap();
        call(&count, 0);
        assert_settled(&rt);
    });
    hooked.detach().unwrap();
    assert_settled(&rt);
    assert_eq!(code_at(ADD2 as *const ()), plain);
    let others = rt
        .attach_all(
            sites(64)
                .into_iter()
                .map(|s| hook(&rt, s).on_exit(|_, _| {})),
        )
        .unwrap();
    child.step();
    call(&count, 0);
    for (i, site) in sites(64).into_iter().enumerate() {
        assert_eq!(site(1), 1 + i as c_long);
    }
    child.step();
    child.child.join();
    drop(others);
    assert_settled(&rt);
}

/// Grandchildren, each of which changes something.
#[test]
fn forks_of_forks() {
    fn generation(rt: &Runtime, hooked: &Hook, left: u32) {
        in_child(|| {
            let before = hooked.stats().progs[0].runs;
            let (more, count) = counting(rt);
            call(&count, 1);
            assert_eq!(hooked.stats().progs[0].runs, before + 1);
            if left > 0 {
                generation(rt, hooked, left - 1);
            }
            call(&count, 1);
            more.detach().unwrap();
            call(&count, 0);
            assert_eq!(hooked.stats().progs[0].runs, before + 3);
        })
        .join();
    }
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let (hooked, count) = counting(&rt);
    generation(&rt, &hooked, 3);
    call(&count, 1);
    assert_eq!(hooked.stats().progs[0].runs, 1);
    hooked.detach().unwrap();
    assert_settled(&rt);
}

/// Forks at any moment of other threads' changes: what the child finds is whole.
#[test]
fn slow_forks_while_others_change_hooks() {
    const FORKS: usize = 200;
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let (stay, _) = counting(&rt);
    let sum = hook(&rt, SUM).on_exit(|_, _| {}).attach().unwrap();
    let stop = AtomicBool::new(false);
    let changes = AtomicU64::new(0);
    thread::scope(|s| {
        for half in 0..2 {
            let (rt, stop, changes) = (&rt, &stop, &changes);
            s.spawn(move || {
                let mine = &sites(64)[32 * half..32 * half + 32];
                while !stop.load(Ordering::Relaxed) {
                    let some = mine
                        .iter()
                        .step_by(3)
                        .map(|s| hook(rt, *s).on_entry(|_| {}).on_exit(|_, _| {}));
                    let hooks = rt.attach_all(some).unwrap();
                    for (i, site) in mine.iter().enumerate() {
                        assert_eq!(site(1), 1 + (32 * half + i) as c_long);
                    }
                    rt.detach_all(&hooks).unwrap();
                    changes.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for i in 0..FORKS {
            let child = in_child(|| {
                let before = stay.stats().progs[0].runs;
                assert_eq!(tl_add2(1, 2), 3);
                assert_eq!(stay.stats().progs[0].runs, before + 1);
                for (i, site) in sites(64).into_iter().enumerate() {
                    assert_eq!(site(1), 1 + i as c_long);
                }
                let (mine, count) = counting(&rt);
                let other = hook(&rt, sites(64)[i % 64])
                    .override_return(|_| Some(-1))
                    .attach()
                    .unwrap();
                call(&count, 1);
                assert_eq!(sites(64)[i % 64](5), -1);
                rt.detach_all([&mine, &other]).unwrap();
                call(&count, 0);
            });
            child.join();
        }
        stop.store(true, Ordering::Relaxed);
    });
    println!(
        "{FORKS} forks beside {} batches",
        changes.load(Ordering::Relaxed)
    );
    assert!(changes.load(Ordering::Relaxed) > 0);
    rt.detach_all([&stay, &sum]).unwrap();
    assert_settled(&rt);
}

static ARRIVED: AtomicU64 = AtomicU64::new(0);

extern "C-unwind" fn fork_inside(status: *mut c_void) -> c_long {
    // SAFETY:
    // 1. The child leaves the function as the parent does.
    let pid = common::checked(unsafe { libc::fork() });
    // SAFETY:
    // 1. `fork_in_call` passes a cell.
    unsafe { status.cast::<i32>().write(pid) };
    ARRIVED.fetch_add(1, Ordering::SeqCst);
    99
}

/// Both sides return through the image of a call that began before there were two.
fn fork_in_call(rt: &Runtime, hooked: &Hook, runs_at_exit: impl Fn() -> u64) {
    let before = runs_at_exit();
    let mut pid = 0;
    assert_eq!(call_through(fork_inside, (&raw mut pid).cast()), 100);
    assert_eq!(runs_at_exit(), before + 1);
    if pid == 0 {
        // The child: its hooks can be changed, and its parent's do not notice.
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            hooked.detach().unwrap();
            let (mine, count) = counting(rt);
            call(&count, 1);
            mine.detach().unwrap();
            assert_settled(rt);
        }));
        // SAFETY:
        // 1. Leaves at once.
        unsafe { libc::_exit(if result.is_ok() { 0 } else { 101 }) };
    }
    let mut status = -1;
    // SAFETY:
    // 1. Our own child; `status` is writable.
    common::checked(unsafe { libc::waitpid(pid, &raw mut status, 0) });
    assert_eq!(status, 0, "the child's wait status");
}

#[test]
fn fork_inside_a_hooked_function() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let exits = Arc::new(Count::new());
    let its = exits.clone();
    let hooked = hook(&rt, call_back())
        .on_entry(|_| {})
        .on_exit(move |_, ret| {
            assert_eq!(*ret, 100);
            its.add();
        });
    let hooked = hooked.attach().unwrap();
    for _ in 0..10 {
        fork_in_call(&rt, &hooked, || exits.get());
    }
    assert_eq!(hooked.stats().panics, 0);
    hooked.detach().unwrap();
    assert_settled(&rt);
}

/// The same from a shadow stack.
#[test]
fn fork_inside_a_function_of_unknown_arguments() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let model = rvbpf::FuncModel::untyped();
    // SAFETY:
    // 1. The model claims nothing.
    let builder = unsafe { rt.hook_addr(call_back() as *const (), model) }.unwrap();
    let exits = Arc::new(Count::new());
    let its = exits.clone();
    let hooked = builder.on_exit(move |_, _| its.add()).attach().unwrap();
    for _ in 0..10 {
        fork_in_call(&rt, &hooked, || exits.get());
    }
    hooked.detach().unwrap();
    assert_settled(&rt);
}

#[test]
fn fork_inside_a_program() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let inner = rt.clone();
    let hooked = hook(&rt, ADD2)
        .on_entry(move |_| {
            let rt = &inner;
            in_child(|| {
                // Inside the program on this side too: recursion is not run, others are.
                assert_eq!(tl_add2(1, 2), 3);
                let weigh = hook(rt, WEIGH12)
                    .on_entry(|_| {})
                    .on_exit(|_, _| {})
                    .attach()
                    .unwrap();
                assert_eq!(weigh_from(1), (650, 650));
                assert_eq!(weigh.stats().runs, 2);
                weigh.detach().unwrap();
            })
            .join();
        })
        .on_exit(|_, _| {})
        .attach()
        .unwrap();
    for _ in 0..5 {
        assert_eq!(tl_add2(1, 2), 3);
    }
    let stats = hooked.stats();
    assert_eq!((stats.runs, stats.missed, stats.panics), (10, 0, 0));
    hooked.detach().unwrap();
    assert_settled(&rt);
}

/// A child that leaves the program it was forked in, and so the call.
#[test]
fn a_child_may_leave_the_program_it_was_forked_in() {
    static PID: AtomicU64 = AtomicU64::new(u64::MAX);
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let hooked = hook(&rt, ADD2)
        .on_entry(|_| {
            // SAFETY:
            // 1. The child goes where the parent goes.
            let pid = common::checked(unsafe { libc::fork() });
            PID.store(pid as u64, Ordering::SeqCst);
        })
        .on_exit(|_, sum| assert_eq!(*sum, 3))
        .attach()
        .unwrap();
    assert_eq!(tl_add2(1, 2), 3);
    let pid = PID.load(Ordering::SeqCst) as i32;
    let (runs, panics) = (hooked.stats().runs, hooked.stats().panics);
    if pid == 0 {
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            assert_eq!((runs, panics), (2, 0));
            hooked.detach().unwrap();
            assert_settled(&rt);
        }));
        // SAFETY:
        // 1. Leaves at once.
        unsafe { libc::_exit(if result.is_ok() { 0 } else { 101 }) };
    }
    let mut status = -1;
    // SAFETY:
    // 1. Our own child; `status` is writable.
    common::checked(unsafe { libc::waitpid(pid, &raw mut status, 0) });
    assert_eq!((status, runs, panics), (0, 2, 0));
    hooked.detach().unwrap();
    assert_settled(&rt);
}

/// Set for a process that shall only end.
const END: &str = "RVBPF_TEST_END_AT_ONCE";

/// What other processes of this very file run.
#[test]
fn end_at_once() {
    if std::env::var_os(END).is_some() {
        std::process::exit(43);
    }
}

/// `posix_spawn` with a closure before the exec `fork`, and what `vfork` does.
#[test]
fn spawned_programs() {
    use std::os::unix::process::CommandExt;
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let (hooked, count) = counting(&rt);
    let command = || {
        let mut command = Command::new("/proc/self/exe");
        command
            .args(["--exact", "end_at_once", "--nocapture"])
            .env(END, "1");
        command
    };
    for _ in 0..5 {
        assert_eq!(command().status().unwrap().code(), Some(43));
        call(&count, 1);
        let mut forked = command();
        // SAFETY:
        // 1. The closure calls a hooked function, which is async-signal-safe.
        unsafe {
            forked.pre_exec(|| {
                assert_eq!(tl_add2(1, 2), 3);
                Ok(())
            })
        };
        assert_eq!(forked.status().unwrap().code(), Some(43));
        call(&count, 1);
    }
    vfork_and_call(&count);
    assert_eq!(hooked.stats().panics, 0);
    hooked.detach().unwrap();
    assert_settled(&rt);
}

extern "C" fn call_and_leave(_: *mut c_void) -> i32 {
    i32::from(tl_add2(40, 2) != 42)
}

/// The child shares the parent's memory, so its hooked call is counted in the parent.
fn vfork_and_call(count: &Count) {
    let before = count.get();
    assert_eq!(vfork(call_and_leave, ptr::null_mut()), 0);
    assert_eq!(count.get() - before, 1);
    call(count, 1);
}
