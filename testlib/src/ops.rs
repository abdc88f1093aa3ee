//! C code that calls tables of functions: `c/ops.c`.
//!
//! The table itself is declared by whoever tests it; here it is a pointer.
#![expect(unsafe_code, reason = "declares C functions")]

use std::ffi::{c_int, c_long, c_schar, c_uint, c_ulong, c_ushort, c_void};

use crate::functions::{Big, Pair, Point, Tagged};

/// `const struct tl_ops *`
pub type OpsPtr = *const c_void;

type L = c_long;

unsafe extern "C" {
    /// Calls `stamp`.
    pub fn tl_ops_stamp(ops: OpsPtr, x: L) -> L;
    /// Calls `weigh12` with `first` and what follows it.
    pub fn tl_ops_weigh12(ops: OpsPtr, first: L) -> L;
    /// Calls `mul_add`.
    pub fn tl_ops_mul_add(ops: OpsPtr, a: f64, b: f32, c: f64) -> f64;
    /// Calls `halve`.
    pub fn tl_ops_halve(ops: OpsPtr, x: f32) -> f32;
    /// Calls `divmod`.
    pub fn tl_ops_divmod(ops: OpsPtr, a: L, b: L) -> Pair;
    /// Calls `swap`.
    pub fn tl_ops_swap(ops: OpsPtr, p: Point) -> Point;
    /// Calls `retag`.
    pub fn tl_ops_retag(ops: OpsPtr, t: Tagged, tag: c_int) -> Tagged;
    /// Calls `scale`.
    pub fn tl_ops_scale(ops: OpsPtr, b: Big, k: L) -> Big;
    /// Calls `narrow`, and gives the whole register.
    pub fn tl_ops_narrow(ops: OpsPtr, a: c_schar, b: c_ushort, c: c_uint) -> L;
    /// Calls `wide`, and gives the whole register.
    pub fn tl_ops_wide(ops: OpsPtr, x: c_uint) -> c_ulong;
    /// Calls `mixed` with arguments in all places that there are.
    pub fn tl_ops_mixed(ops: OpsPtr, k: L) -> f64;
    /// Calls `block`.
    pub fn tl_ops_block(ops: OpsPtr, fd: c_int);
    /// What `mixed` is to compute: a function of its type.
    pub fn tl_ops_mixed_sum();
    /// Reads a byte from `fd`, which may take long.
    pub safe fn tl_ops_read(fd: c_int);
}
