//! The hand-written functions of `c/functions.c`, `c/sites.c`, `c/plain.c`, `c/pads.S` and
//! `c/gate.S`.
//!
//! All have a pad of five 2-byte nops unless they say otherwise.
#![expect(unsafe_code, reason = "declares C functions")]

use std::ffi::{c_int, c_long, c_void};

/// Two integer registers in, two out.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair {
    /// First.
    pub a: c_long,
    /// Second.
    pub b: c_long,
}

/// Two floating-point registers in, two out.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// First.
    pub x: f64,
    /// Second.
    pub y: f64,
}

/// One integer and one floating-point register.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tagged {
    /// First.
    pub tag: c_int,
    /// Second.
    pub value: f32,
}

/// By reference, in and out.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Big {
    /// 48 bytes.
    pub v: [c_long; 6],
}

unsafe extern "C-unwind" {
    /// `callback(arg) + 1`. What the callback throws passes through.
    pub fn tl_call(
        callback: extern "C-unwind" fn(*mut c_void) -> c_long,
        arg: *mut c_void,
    ) -> c_long;
}

unsafe extern "C" {
    /// `a + b`, wrapping is undefined.
    pub safe fn tl_add2(a: c_int, b: c_int) -> c_int;
    /// `a + 2b + … + 12l`: eight arguments in registers, four on the stack.
    pub safe fn tl_weigh12(
        a: c_long,
        b: c_long,
        c: c_long,
        d: c_long,
        e: c_long,
        f: c_long,
        g: c_long,
        h: c_long,
        i: c_long,
        j: c_long,
        k: c_long,
        l: c_long,
    ) -> c_long;
    /// `a * b + c`.
    pub safe fn tl_mul_add(a: f64, b: f32, c: f64) -> f64;
    /// `x / 2`.
    pub safe fn tl_halve(x: f32) -> f32;
    /// `a + b`.
    pub safe fn tl_pair_sum(p: Pair) -> c_long;
    /// Quotient and remainder; `b` is not 0.
    pub fn tl_divmod(a: c_long, b: c_long) -> Pair;
    /// `(y, x)`.
    pub safe fn tl_swap(p: Point) -> Point;
    /// The new tag, and the value plus 1.
    pub safe fn tl_retag(t: Tagged, tag: c_int) -> Tagged;
    /// Each element times `k`.
    pub safe fn tl_big_scale(b: Big, k: c_long) -> Big;
    /// The sum of `n` `long`s.
    pub fn tl_sum(n: c_int, ...) -> c_long;
    /// The sum of `n` `double`s.
    pub fn tl_sum_doubles(n: c_int, ...) -> f64;
    /// Fibonacci by two recursive calls that go through the entry: `2 * fib(n + 1) - 1` calls for
    /// `n >= 1` with `fib(1) = fib(2) = 1`.
    pub safe fn tl_fib(n: u64) -> u64;
    /// Sets `errno`, returns the old one.
    pub safe fn tl_set_errno(value: c_int) -> c_int;
    /// `errno`.
    pub safe fn tl_get_errno() -> c_int;
    /// Sets `fcsr`, returns the old one.
    pub fn tl_set_fcsr(value: u64) -> u64;
    /// `fcsr`.
    pub safe fn tl_get_fcsr() -> u64;
    /// Blocks in `read`; the byte, or -1 at the end or on an error.
    pub safe fn tl_read_byte(fd: c_int) -> c_long;
    /// Spins until `*stop` is not 0; how many turns that took.
    pub fn tl_spin_until(stop: *const c_int) -> u64;
    /// `longjmp` out of [`tl_jump`], a hookable call, back into this one. Returns `value`, 1 for 0.
    pub safe fn tl_catch_jump(value: c_int) -> c_int;
    /// Calls `sigsetjmp`, which returns `rounds + 1` times: so many, and 1000 times the sum of what
    /// it returned.
    pub safe fn tl_setjmp_rounds(rounds: c_long) -> c_long;
    /// Calls `getcontext`, which returns `rounds + 1` times: so many.
    pub safe fn tl_getcontext_rounds(rounds: c_long) -> c_long;
    /// Calls `f` while a handler of `signo`, with these flags, leaves it by `siglongjmp`. The signal
    /// that came; 0: none.
    pub fn tl_left_by_signal(
        signo: c_int,
        flags: c_int,
        f: extern "C-unwind" fn(*mut c_void) -> c_long,
        arg: *mut c_void,
    ) -> c_int;
    /// What a child of `vfork` has exited with: `code`.
    pub safe fn tl_vfork_exits(code: c_int) -> c_long;
    /// Calls its nested function `tl_inner.0` twice: `100 * (a + 2 * x + 1) + a + 2 * x + 1`.
    pub safe fn tl_outer(a: c_long, x: c_long) -> c_long;
    /// Calls its nested function `tl_inner_late.1`, which reads its chain if it gets 7:
    /// `300 * x + 11 * (a + 8)` for other numbers.
    pub safe fn tl_outer_late(a: c_long, x: c_long) -> c_long;
    /// Only called by [`tl_catch_jump`]; here so that it can be hooked.
    pub fn tl_jump(value: c_int);

    /// `x + i` for `tl_sites[i]`.
    pub safe static tl_sites: [extern "C" fn(c_long) -> c_long; 128];

    /// `5 * x + 1`; local to its file and without a pad.
    pub safe static tl_kept: extern "C" fn(c_long) -> c_long;
    /// Calls [`tl_kept`] twice, whose code the compiler has seen.
    pub safe fn tl_keeper(a: c_long, b: c_long, c: c_long, d: f64) -> c_long;

    /// Functions without pads; [`plain`] says what they return.
    pub safe static tl_plain: [extern "C" fn(c_long) -> c_long; 1000];

    /// `a + b`. The pad begins at 0 mod 4.
    pub safe fn tl_pad_at_0_mod_4(a: c_long, b: c_long) -> c_long;
    /// `a + b`. The pad begins at 2 mod 4.
    pub safe fn tl_pad_at_2_mod_4(a: c_long, b: c_long) -> c_long;
    /// `a + b`. Five 4-byte nops, as without the C extension.
    pub safe fn tl_pad_of_wide_nops(a: c_long, b: c_long) -> c_long;
    /// `a + b`. Four 2-byte nops at 0 mod 4: exactly two aligned words.
    pub safe fn tl_pad_just_enough(a: c_long, b: c_long) -> c_long;
    /// `a + b`. Four 2-byte nops at 2 mod 4: one aligned word, and that is too short.
    pub safe fn tl_pad_just_too_short(a: c_long, b: c_long) -> c_long;
    /// `a + b`. Two 2-byte nops.
    pub safe fn tl_pad_too_short(a: c_long, b: c_long) -> c_long;
    /// `a + b`. Two nops before the entry, three after it; listed with the first of the two.
    pub safe fn tl_pad_around_entry(a: c_long, b: c_long) -> c_long;
    /// `a + b`. The pad holds a jump over itself.
    pub safe fn tl_pad_taken(a: c_long, b: c_long) -> c_long;
    /// `a + b`. No pad.
    pub safe fn tl_no_pad(a: c_long, b: c_long) -> c_long;
    /// `a + b`. A pad, but the symbol says vector calling convention (`STO_RISCV_VARIANT_CC`).
    pub safe fn tl_variant_cc(a: c_long, b: c_long) -> c_long;

    /// Overwrites every integer and floating-point register that a call may change. No pad.
    pub safe fn tl_clobber();
}

/// What `tl_plain[n]` returns of `x`.
#[must_use]
pub fn plain(n: usize, x: c_long) -> c_long {
    const TABLE: [u64; 10] = [1, 2, 3, 5, 8, 13, 21, 34, 55, 89];
    let (arg, n, x) = (x, n as u64, x as u64);
    let result = match n % 8 {
        0 => (x ^ n).wrapping_mul(3).wrapping_add(n) ^ (x >> 2),
        1 => (0..x & 7).fold(n, |sum, i| sum.wrapping_mul(5).wrapping_add(i)),
        2 => (x.wrapping_add(n) / 2).wrapping_add(n),
        3 => {
            let i = x.wrapping_add(n);
            let entry = TABLE.get((i & 63) as usize).copied().unwrap_or(0);
            entry.wrapping_add(i)
        }
        4 => x.wrapping_add(n).wrapping_mul(2),
        5 => match x & 7 {
            0 => x.wrapping_add(n),
            1 => x.wrapping_sub(n),
            2 => x ^ n,
            3 => x | n,
            4 => x & n,
            5 => (x / 2).wrapping_add(n),
            6 => x.wrapping_mul(2).wrapping_add(n),
            _ => n,
        },
        6 if arg < 0 => n.wrapping_neg(),
        6 => x.wrapping_add(n),
        _ => (arg as f64 * 2.0 + n as f64) as c_long as u64,
    };
    result as c_long
}
