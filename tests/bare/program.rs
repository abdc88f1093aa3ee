//! The functions that are reached from where no function of another library may be called, and what
//! they call.
//!
//! A root is a function that an image, the kernel or `fork` calls, or one that runs with all signals
//! blocked. From there calls are followed in the machine code of this very program
//! ([`crate::graph`]), and none may lead to a function of another library: not to those that the
//! compiler calls by itself, either. Where a call goes through a pointer, the function is named
//! below, and what the pointer leads to is a root of its own, or the host's.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, VecDeque};
use std::ffi::c_int;
use std::hint::black_box;

use rvbpf::bpf::{BpfReg, Env, Extend, Fault, Op, Program as Bpf, Size};
use rvbpf::struct_ops::{StructOps as _, Table};
use rvbpf::{Runtime, StructOps};
use testlib::functions::tl_add2;

use crate::graph::{Edge, Program, demangled};

/// By name.
const ROOTS: [&str; 29] = [
    // What images call.
    "rvbpf_trampoline::slow::run_slow",
    "rvbpf_shadow_grow_0_1",
    "rvbpf_ops_register_0_1",
    "rvbpf::glue::entry",
    "rvbpf::glue::exit",
    "rvbpf::glue::fmod_ret",
    "rvbpf::glue::session",
    // Handlers of signals, and what they ask the crates above.
    "rvbpf_text::detour::trap::handler::on_trap",
    "rvbpf_text::detour::tick::handler::on_tick",
    "rvbpf_text::threads::ask::on_signal",
    "rvbpf::bpf::faults::handler::on_fault",
    "<rvbpf_text::detour::pass::Inside as rvbpf_text::threads::Watch>::busy_here",
    "<rvbpf_text::detour::pass::Inside as rvbpf_text::threads::Watch>::carry",
    "<rvbpf_text::detour::pass::Inside as rvbpf_text::threads::Watch>::seen_at",
    "<rvbpf_text::threads::RangesOnly as rvbpf_text::threads::Watch>::busy_here",
    "<rvbpf_trampoline::life::Ranges as rvbpf_text::threads::Watch>::busy_here",
    "<rvbpf_trampoline::indirect::leave::Group as rvbpf_text::threads::Watch>::busy_here",
    // Handlers of forks.
    "rvbpf_text::fork::before_fork",
    "rvbpf_text::fork::after_in_parent",
    "rvbpf_text::fork::after_in_child",
    "rvbpf_text::fork::lock",
    "rvbpf_text::fork::unlock_in_parent",
    "rvbpf_text::fork::unlock_in_child",
    "rvbpf_pack_alloc::registry::before_fork",
    "rvbpf_pack_alloc::registry::after_fork",
    "rvbpf_trampoline::owner::prepare",
    "rvbpf_trampoline::owner::parent",
    "rvbpf_trampoline::owner::child",
    // What runs with all signals blocked, those of traps included.
    "rvbpf_text::txn::Stores::bring",
];

/// Beginnings of names of functions that are not followed.
const NOT_FOLLOWED: [&str; 8] = [
    // They do not return.
    "core::panicking::",
    "core::option::unwrap_failed",
    "core::option::expect_failed",
    "core::result::unwrap_failed",
    "core::slice::index::slice_",
    // Runs the host's closure, and disposes of its panic.
    "std::panic::catch_unwind",
    // Only where a thread panics.
    "std::panicking::panic_count::is_zero_slow_path",
    // Only where a change was under way at the fork, whose gate is closed in the child. The
    // allocator has given its locks back: `rvbpf_text::fork`.
    "rvbpf_text::detour::gate::open_in_child",
];
/// Those of them that do not return.
const NR_ENDS: usize = 5;

/// Beginnings of names of functions that call through pointers.
const THROUGH_POINTERS: [&str; 8] = [
    // Programs, and back into the image.
    "rvbpf_trampoline::slow::",
    "rvbpf_shadow_grow_0_1",
    // Handlers of the host.
    "rvbpf_text::signal::Chain::hand_on",
    // A `Watch`: roots above.
    "rvbpf_text::threads::ask::",
    // Handlers of crates: roots above.
    "rvbpf_text::fork::before_fork",
    "rvbpf_text::fork::after_in_",
    // A function of the compiler's, for a variable without a destructor.
    "std::thread::local::LocalKey",
    // Closures that were passed by reference, of the same crate.
    "rvbpf_text::txn::Stores::",
];

fn begins(name: &str, beginnings: &[&str]) -> bool {
    beginnings
        .iter()
        .any(|beginning| name.starts_with(beginning))
}

extern "C" fn double(n: u64) -> u64 {
    n + n
}

/// A table of functions.
#[derive(StructOps)]
#[repr(C)]
struct Ops {
    #[ops(default = double)]
    double: extern "C" fn(u64) -> u64,
}

/// Uses all kinds of hooks, so that the linker keeps what they need.
fn use_all() {
    let rt = Runtime::new().unwrap();
    type Add2 = extern "C" fn(c_int, c_int) -> c_int;
    // SAFETY: 1. the function is of this type.
    let hooked = unsafe { rt.hook(tl_add2 as Add2) }.unwrap();
    let hooked = hooked
        .on_entry(|_| {})
        .on_exit(|_, _| {})
        .on_session(|_, _| {}, |_, _, _| {})
        .override_return(|_| None)
        .attach()
        .unwrap();
    let (dst, src) = (BpfReg::R0, BpfReg::R1);
    let probe = Op::Load {
        size: Size::Dw,
        extend: Extend::Zero,
        fault: Fault::Zero,
        dst,
        src,
        off: 0,
    };
    let insns = [probe, Op::Exit].map(|op| op.encode().0);
    let program = Bpf::new(insns.to_vec()).unwrap();
    let prog = rt.load(&program, &Env::new()).unwrap();
    // SAFETY: 1. it ends, and its load may fault.
    assert_eq!(unsafe { prog.run([8, 0, 0, 0, 0]) }, Ok(0));
    assert_eq!(black_box(tl_add2)(20, 3), 23);
    hooked.detach().unwrap();

    let members = Ops::MEMBERS;
    let table = Table::<Ops>::builder(&rt).unwrap();
    let table = table.closure(members.double, |(n,)| 2 * n).build().unwrap();
    // SAFETY: 1. nothing calls it when the link is gone.
    let link = unsafe { rt.register(&table) }.unwrap();
    assert_eq!((link.get(members.double))(4), 8);
}

/// The paths from `root` that end where none may.
fn paths(program: &Program, root: u64) -> Vec<String> {
    let is_end = |edge: &Edge| match edge {
        Edge::To(at) => begins(&program.name(*at), &NOT_FOLLOWED[..NR_ENDS]),
        Edge::Symbol(_) | Edge::Pointer(_) => false,
    };
    let mut from = BTreeMap::from([(root, root)]);
    let mut todo = VecDeque::from([root]);
    let mut found = Vec::new();
    while let Some(at) = todo.pop_front() {
        for edge in program.edges(at, &is_end) {
            let end = match program.through_stub(edge) {
                Edge::To(to) if begins(&program.name(to), &NOT_FOLLOWED) => continue,
                Edge::To(to) => {
                    if let Entry::Vacant(place) = from.entry(to) {
                        place.insert(at);
                        todo.push_back(to);
                    }
                    continue;
                }
                Edge::Symbol(name) => name,
                Edge::Pointer(_) if begins(&program.name(at), &THROUGH_POINTERS) => continue,
                Edge::Pointer(pc) => format!("a pointer at {pc:#x}"),
            };
            let mut path = vec![end];
            let mut here = at;
            while here != root {
                path.push(program.name(here));
                here = from[&here];
            }
            path.push(program.name(root));
            path.reverse();
            found.push(path.join("\n    -> "));
        }
    }
    found
}

#[test]
fn no_call_leads_out_of_the_program_where_hooks_and_handlers_run() {
    use_all();
    let program = Program::own();
    if !program.named(|name| name.starts_with("_R")).is_empty() {
        eprintln!("not tried: this compiler's names are of the newer scheme");
        return;
    }
    let mut found = Vec::new();
    for root in ROOTS {
        let at = program.named(|name| name == root);
        if at.is_empty() {
            found.push(format!("there is no {root}"));
        }
        found.extend(at.into_iter().flat_map(|at| paths(&program, at)));
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn names_are_read() {
    for (name, want) in [
        ("_ZN4text4fork4lock17h0123456789abcdefE", "text::fork::lock"),
        (
            "_ZN38_$LT$a..B$u20$as$u20$c..D$LT$E$GT$$GT$1f17h0123456789abcdefE",
            "<a::B as c::D<E>>::f",
        ),
        ("memcpy", "memcpy"),
    ] {
        assert_eq!(demangled(name), want);
    }
}

/// The check finds what it looks for: through a stub of the linker's, and over two functions.
#[test]
fn a_call_that_leads_out_is_found() {
    #[inline(never)]
    #[unsafe(no_mangle)]
    extern "C" fn bare_test_root(n: usize) -> usize {
        bare_test_between(n + 1)
    }
    #[inline(never)]
    #[unsafe(no_mangle)]
    extern "C" fn bare_test_between(n: usize) -> usize {
        let bytes = [n as u8; 300];
        black_box(&bytes).len() + n
    }
    assert_eq!(bare_test_root(black_box(1)), 302);
    let program = Program::own();
    let root = program.named(|name| name == "bare_test_root");
    let found = paths(&program, root[0]);
    let want = "bare_test_root\n    -> bare_test_between\n    -> memset";
    assert_eq!(found, [want]);
}
