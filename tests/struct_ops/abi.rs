//! Arguments and results as in C, whoever the member is.

use std::ffi::c_void;

use rvbpf::Runtime;
use rvbpf::bpf::BpfReg::{R0, R1, R2, R3, R4};
use rvbpf::bpf::{AluOp, BpfProg, Env, ProgramBuilder, Size};
use rvbpf::struct_ops::Table;
use testlib::functions as c;
use testlib::ops::*;

use crate::common::{assert_settled, serial};
use crate::table::{self, Big, M, Ops, Pair, Point, Tagged, bpf, builder, c_ops, register};

/// Calls what calls a member.
macro_rules! c {
    ($f:ident($($arg:expr),*)) => {
        // SAFETY: 1. the table of a link, or a pinned one, that the test has.
        unsafe { $f($($arg),*) }
    };
}

/// Calls every member from C and compares.
fn check_all(ops: *const c_void) {
    assert_eq!(c!(tl_ops_stamp(ops, -7)), -7);
    let want: i64 = (0..12).map(|i| (i + 1) * (100 + i)).sum();
    assert_eq!(c!(tl_ops_weigh12(ops, 100)), want);
    assert_eq!(c!(tl_ops_mul_add(ops, 2.5, 4.0, 0.25)), 10.25);
    assert_eq!(c!(tl_ops_halve(ops, 5.0)), 2.5);
    assert_eq!(c!(tl_ops_divmod(ops, -17, 5)), c::Pair { a: -3, b: -2 });
    let p = c::Point { x: 1.5, y: -2.5 };
    assert_eq!(c!(tl_ops_swap(ops, p)), c::Point { x: -2.5, y: 1.5 });
    let t = c::Tagged { tag: 1, value: 2.5 };
    assert_eq!(
        c!(tl_ops_retag(ops, t, -3)),
        c::Tagged {
            tag: -3,
            value: 3.5
        }
    );
    let v = c::Big {
        v: [1, 2, 3, 4, 5, -6],
    };
    assert_eq!(c!(tl_ops_scale(ops, v, 10)).v, [10, 20, 30, 40, 50, -60]);
    // 100 + 60000 + 4000000000 has the low byte 0xc4.
    assert_eq!(c!(tl_ops_narrow(ops, 100, 60_000, 4_000_000_000)), -60);
    assert_eq!(c!(tl_ops_wide(ops, 0x8000_0001)), 0xffff_ffff_8000_0002);
    assert_eq!(c!(tl_ops_mixed(ops, 1000)), mixed_of(1000));
}

fn mixed_of(k: i64) -> f64 {
    let ints = (0..10).map(|i| ((i + 1) * (k + i)) as f64).sum::<f64>();
    let rest = (11..22).map(|i| f64::from(i) * (f64::from(i) - 0.5));
    // The eleventh is the tag, a whole number.
    ints + rest.sum::<f64>() - 11.0 * 0.5
}

extern "C" fn wide(x: u32) -> u32 {
    x.wrapping_add(1)
}

fn functions(rt: &Runtime) -> Table<Ops> {
    builder(rt)
        .function(M.narrow, table::narrow)
        .function(M.wide, wide)
        .function(M.mixed, table::mixed_sum())
        .build()
        .unwrap()
}

fn closures(rt: &Runtime) -> Table<Ops> {
    let sum = table::mixed_sum();
    builder(rt)
        .closure(M.stamp, |(x,)| x)
        .closure(M.weigh12, |(a, b, c, d, e, f, g, h, i, j, k, l)| {
            table::weigh12(a, b, c, d, e, f, g, h, i, j, k, l)
        })
        .closure(M.mul_add, |(a, b, c)| table::mul_add(a, b, c))
        .closure(M.halve, |(x,)| x / 2.0)
        .closure(M.divmod, |(a, b)| table::divmod(a, b))
        .closure(M.swap, |(p,)| table::swap(p))
        .closure(M.retag, |(t, tag)| table::retag(t, tag))
        .closure(M.scale, |(v, k)| table::scale(v, k))
        .closure(M.narrow, |(a, b, c)| table::narrow(a, b, c))
        .closure(M.wide, |(x,)| x + 1)
        .closure(M.mixed, move |(p, q, r, a, s, b, t, u, v, w, x, y)| {
            sum(p, q, r, a, s, b, t, u, v, w, x, y)
        })
        .build()
        .unwrap()
}

fn loaded(rt: &Runtime, b: &ProgramBuilder) -> BpfProg {
    rt.load(&b.finish().unwrap(), &Env::tracing()).unwrap()
}

/// `r0 = ctx[0] + ctx[1] + … + ctx[n - 1]`
fn sum_of(rt: &Runtime, n: i16) -> BpfProg {
    let mut b = ProgramBuilder::new();
    b.mov(R0, 0);
    for i in 0..n {
        b.load(Size::Dw, R2, R1, 8 * i).alu(AluOp::Add, R0, R2);
    }
    b.exit();
    loaded(rt, &b)
}

#[test]
fn functions_are_called_as_in_c() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let table = functions(&rt);
    let link = register(&rt, &table);
    check_all(c_ops(&link));
    let pinned = link.pin().unwrap();
    check_all(std::ptr::from_ref(&*pinned).cast());
    drop(pinned);
    drop((link, table));
    assert_settled(&rt);
}

#[test]
fn a_function_in_two_tables_is_called_as_in_c() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let (first, second) = (functions(&rt), functions(&rt));
    let link = register(&rt, &second);
    check_all(c_ops(&link));
    link.update(&first).unwrap();
    check_all(c_ops(&link));
    drop((link, first, second));
    assert_settled(&rt);
}

#[test]
fn closures_are_called_as_in_c() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let table = closures(&rt);
    let link = register(&rt, &table);
    check_all(c_ops(&link));
    check_all(std::ptr::from_ref(&*link.pin().unwrap()).cast());
    assert_eq!(table.panics(), 0);
    drop((link, table));
    assert_settled(&rt);
}

/// A table whose results BPF programs compute.
fn programs(rt: &Runtime) -> Table<Ops> {
    let sum = sum_of(rt, 3);
    let twelve = sum_of(rt, 12);
    let bits = |value: u64| {
        let mut b = ProgramBuilder::new();
        b.ld_imm64(R0, value).exit();
        loaded(rt, &b)
    };
    let (double, float) = (bits(2.5f64.to_bits()), bits(1.25f32.to_bits().into()));
    // Two registers: what stands behind the two arguments.
    let mut b = ProgramBuilder::new();
    b.load(Size::Dw, R2, R1, 0).load(Size::Dw, R3, R1, 8);
    b.store(Size::Dw, R1, 16, R3).store(Size::Dw, R1, 24, R2);
    b.mov(R0, 0).exit();
    let turned = loaded(rt, &b);
    // By reference: to where slot 0 points; slot 1 points to the argument.
    let mut b = ProgramBuilder::new();
    b.load(Size::Dw, R2, R1, 0).load(Size::Dw, R3, R1, 8);
    for i in 0..6 {
        b.load(Size::Dw, R4, R3, 8 * i).alu(AluOp::Add, R4, 1);
        b.store(Size::Dw, R2, 8 * i, R4);
    }
    b.mov(R0, 0).exit();
    let plus_one = loaded(rt, &b);
    let table = bpf(builder(rt), M.stamp, &sum_of(rt, 1));
    let table = bpf(table, M.weigh12, &twelve);
    let table = bpf(table, M.mul_add, &double);
    let table = bpf(table, M.halve, &float);
    let table = bpf(table, M.divmod, &turned);
    let table = bpf(table, M.swap, &turned);
    let table = bpf(table, M.scale, &plus_one);
    let table = bpf(table, M.narrow, &sum);
    // SAFETY: 1. as the others.
    let table = unsafe { table.bpf_named("wide", &sum_of(rt, 1)) };
    table.build().unwrap()
}

#[test]
fn programs_find_their_arguments_and_their_results_are_extended() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let table = programs(&rt);
    let link = register(&rt, &table);
    for ops in [
        c_ops(&link),
        std::ptr::from_ref(&*link.pin().unwrap()).cast(),
    ] {
        assert_eq!(c!(tl_ops_stamp(ops, -7)), -7);
        assert_eq!(c!(tl_ops_weigh12(ops, 100)), (100..112).sum::<i64>());
        assert_eq!(c!(tl_ops_mul_add(ops, 0.0, 0.0, 0.0)), 2.5);
        assert_eq!(c!(tl_ops_halve(ops, 0.0)), 1.25);
        assert_eq!(c!(tl_ops_divmod(ops, 3, 4)), c::Pair { a: 4, b: 3 });
        let p = c::Point { x: 1.5, y: -2.5 };
        assert_eq!(c!(tl_ops_swap(ops, p)), c::Point { x: -2.5, y: 1.5 });
        let v = c::Big {
            v: [1, 2, 3, 4, 5, -6],
        };
        assert_eq!(c!(tl_ops_scale(ops, v, 10)).v, [2, 3, 4, 5, 6, -5]);
        assert_eq!(c!(tl_ops_narrow(ops, 100, 60_000, 4_000_000_000)), -60);
        assert_eq!(c!(tl_ops_wide(ops, 0x8000_0001)), 0xffff_ffff_8000_0001);
    }
    drop((link, table));
    assert_settled(&rt);
}

static SEEN: std::sync::Mutex<String> = std::sync::Mutex::new(String::new());

extern "C" fn look_back(x: i64) -> i64 {
    *SEEN.lock().unwrap() = std::backtrace::Backtrace::force_capture().to_string();
    x
}

#[test]
fn backtraces_go_through_stubs_and_images() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let direct = builder(&rt).function(M.stamp, look_back).build().unwrap();
    let closure = builder(&rt)
        .closure(M.stamp, |(x,)| look_back(x))
        .build()
        .unwrap();
    let link = register(&rt, &direct);
    for table in [&direct, &closure] {
        link.update(table).unwrap();
        SEEN.lock().unwrap().clear();
        c!(tl_ops_stamp(c_ops(&link), 1));
        let seen = SEEN.lock().unwrap().clone();
        let here = "backtraces_go_through_stubs_and_images";
        assert!(seen.contains("look_back") && seen.contains(here), "{seen}");
    }
    drop((link, direct, closure));
    assert_settled(&rt);
}

#[test]
fn what_a_table_leaves_out_returns_zeros() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let (sparse, full) = (builder(&rt).build().unwrap(), functions(&rt));
    let link = register(&rt, &sparse);
    let ops = c_ops(&link);
    let left_out = || {
        (
            c!(tl_ops_narrow(ops, 1, 2, 3)),
            c!(tl_ops_wide(ops, 1)),
            c!(tl_ops_mixed(ops, 5)),
        )
    };
    assert_eq!(left_out(), (0, 0, 0.0));
    assert!(link.pin().unwrap().narrow.is_none());
    link.update(&full).unwrap();
    assert_eq!(left_out(), (6, 2, mixed_of(5)));
    assert!(link.pin().unwrap().narrow.is_some());
    drop((link, sparse, full));
    assert_settled(&rt);
}

#[test]
fn data_comes_with_its_version() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let of = |flags, tag| {
        let b = builder(&rt).data(M.flags, flags);
        b.data(M.tag, tag).build().unwrap()
    };
    let (one, two) = (of(1, *b"first"), of(u64::MAX, *b"other"));
    let link = register(&rt, &one);
    let seen = || {
        let ops = link.as_ptr();
        // SAFETY: 1. the link lives, and nobody swaps while this reads.
        let flags = unsafe { (*ops).flags };
        // SAFETY: as above.
        let tag = unsafe { (*ops).tag };
        (flags, tag)
    };
    assert_eq!(seen(), (1, *b"first"));
    let before = link.pin().unwrap();
    link.update(&two).unwrap();
    assert_eq!(seen(), (u64::MAX, *b"other"));
    assert_eq!((before.flags, before.tag), (1, *b"first"));
    let after = link.pin().unwrap();
    assert_eq!((after.flags, after.tag), (u64::MAX, *b"other"));
    drop((before, after));
    drop((link, one, two));
    assert_settled(&rt);
}

#[test]
fn a_closure_that_panics_gives_zeros() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let table = builder(&rt)
        .closure(M.stamp, |_| panic!("on purpose"))
        .closure(M.swap, |_| -> Point { panic!("on purpose") })
        .closure(M.scale, |_| -> Big { panic!("on purpose") })
        .closure(M.divmod, |_| -> Pair { panic!("on purpose") })
        .closure(M.retag, |(_, tag)| Tagged { tag, value: 0.5 })
        .build()
        .unwrap();
    let link = register(&rt, &table);
    let ops = c_ops(&link);
    assert_eq!(c!(tl_ops_stamp(ops, 5)), 0);
    let p = c::Point { x: 1.0, y: 1.0 };
    assert_eq!(c!(tl_ops_swap(ops, p)), c::Point { x: 0.0, y: 0.0 });
    assert_eq!(c!(tl_ops_scale(ops, c::Big { v: [7; 6] }, 2)).v, [0; 6]);
    assert_eq!(c!(tl_ops_divmod(ops, 7, 2)), c::Pair { a: 0, b: 0 });
    let t = c::Tagged { tag: 1, value: 2.5 };
    assert_eq!(c!(tl_ops_retag(ops, t, 9)).tag, 9);
    assert_eq!(table.panics(), 4);
    drop((link, table));
    assert_settled(&rt);
}
