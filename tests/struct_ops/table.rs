//! The table that `testlib/c/ops.c` calls.

use std::ffi::{c_int, c_long, c_void};

use rvbpf::bpf::BpfProg;
use rvbpf::struct_ops::{Link, MemberFn, MemberKey, StructOps as _, Table, TableBuilder};
use rvbpf::{Runtime, StructOps};
use testlib::ops::{tl_ops_mixed_sum, tl_ops_read};

rvbpf::abi_struct! {
    /// Two integer registers.
    pub(crate) struct Pair { pub(crate) a: c_long, pub(crate) b: c_long }
}
rvbpf::abi_struct! {
    /// Two floating-point registers.
    pub(crate) struct Point { pub(crate) x: f64, pub(crate) y: f64 }
}
rvbpf::abi_struct! {
    /// One of each.
    pub(crate) struct Tagged { pub(crate) tag: c_int, pub(crate) value: f32 }
}
rvbpf::abi_struct! {
    /// By reference.
    pub(crate) struct Big {
        pub(crate) a: c_long, pub(crate) b: c_long, pub(crate) c: c_long,
        pub(crate) d: c_long, pub(crate) e: c_long, pub(crate) f: c_long,
    }
}

type L = c_long;
pub(crate) type Stamp = extern "C" fn(L) -> L;
pub(crate) type Weigh12 = extern "C" fn(L, L, L, L, L, L, L, L, L, L, L, L) -> L;
pub(crate) type Mixed =
    extern "C" fn(Pair, Pair, Pair, L, Pair, L, Tagged, Point, Point, Point, Point, f32) -> f64;

/// `struct tl_ops`
#[derive(StructOps)]
#[repr(C)]
pub(crate) struct Ops {
    #[ops(function, default = stamp_default)]
    pub(crate) stamp: Stamp,
    #[ops(function, default = weigh12)]
    pub(crate) weigh12: Weigh12,
    #[ops(default = mul_add)]
    pub(crate) mul_add: extern "C" fn(f64, f32, f64) -> f64,
    #[ops(default = halve)]
    pub(crate) halve: extern "C" fn(f32) -> f32,
    #[ops(default = divmod)]
    pub(crate) divmod: extern "C" fn(L, L) -> Pair,
    #[ops(default = swap)]
    pub(crate) swap: extern "C" fn(Point) -> Point,
    #[ops(default = retag)]
    pub(crate) retag: extern "C" fn(Tagged, c_int) -> Tagged,
    #[ops(default = scale)]
    pub(crate) scale: extern "C" fn(Big, L) -> Big,
    pub(crate) narrow: Option<extern "C" fn(i8, u16, u32) -> i8>,
    pub(crate) wide: Option<extern "C" fn(u32) -> u32>,
    #[ops(function)]
    pub(crate) mixed: Option<Mixed>,
    #[ops(default = tl_ops_read)]
    pub(crate) block: extern "C" fn(c_int),
    pub(crate) flags: u64,
    pub(crate) tag: [u8; 5],
}

/// Its members.
pub(crate) const M: OpsMembers = Ops::MEMBERS;

pub(crate) extern "C" fn stamp_default(x: L) -> L {
    x
}

pub(crate) extern "C" fn weigh12(
    a: L,
    b: L,
    c: L,
    d: L,
    e: L,
    f: L,
    g: L,
    h: L,
    i: L,
    j: L,
    k: L,
    l: L,
) -> L {
    let all = [a, b, c, d, e, f, g, h, i, j, k, l];
    all.iter().zip(1..).map(|(x, n)| x * n).sum()
}

pub(crate) extern "C" fn mul_add(a: f64, b: f32, c: f64) -> f64 {
    a * f64::from(b) + c
}

pub(crate) extern "C" fn halve(x: f32) -> f32 {
    x / 2.0
}

pub(crate) extern "C" fn divmod(a: L, b: L) -> Pair {
    Pair { a: a / b, b: a % b }
}

pub(crate) extern "C" fn swap(p: Point) -> Point {
    Point { x: p.y, y: p.x }
}

pub(crate) extern "C" fn retag(t: Tagged, tag: c_int) -> Tagged {
    let value = t.value + 1.0;
    Tagged { tag, value }
}

pub(crate) extern "C" fn scale(v: Big, k: L) -> Big {
    Big {
        a: v.a * k,
        b: v.b * k,
        c: v.c * k,
        d: v.d * k,
        e: v.e * k,
        f: v.f * k,
    }
}

pub(crate) extern "C" fn narrow(a: i8, b: u16, c: u32) -> i8 {
    (i64::from(a) + i64::from(b) + i64::from(c)) as i8
}

/// `tl_ops_mixed_sum` by its type.
pub(crate) fn mixed_sum() -> Mixed {
    let raw: *const () = tl_ops_mixed_sum as *const ();
    // SAFETY: 1. that is its type in C.
    unsafe { std::mem::transmute::<*const (), Mixed>(raw) }
}

/// A builder that must be there.
pub(crate) fn builder(rt: &Runtime) -> TableBuilder<Ops> {
    Table::builder(rt).unwrap()
}

/// A link of a table of this file.
pub(crate) fn register(rt: &Runtime, table: &Table<Ops>) -> Link<Ops> {
    // SAFETY: 1. tests call nothing when their links are gone.
    unsafe { rt.register(table) }.unwrap()
}

/// As C has it.
pub(crate) fn c_ops(link: &Link<Ops>) -> *const c_void {
    link.as_ptr().cast()
}

/// A program as a member: those of these tests read and write their contexts, and end.
pub(crate) fn bpf<F: MemberFn>(
    builder: TableBuilder<Ops>,
    member: MemberKey<Ops, F>,
    prog: &BpfProg,
) -> TableBuilder<Ops> {
    // SAFETY: 1. see above.
    unsafe { builder.bpf(member, prog) }
}
