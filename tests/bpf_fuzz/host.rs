//! The functions of the host that programs call: what they return depends on their arguments
//! alone, and on every bit of them.

#![expect(unsafe_code, reason = "promises that the functions may be called")]

use rvbpf::bpf::Env;

/// How many arguments each function takes; its number is its place, from one on.
pub(crate) const ARITIES: [usize; 9] = [2, 2, 2, 2, 3, 1, 2, 5, 0];
/// The number of `bpf_throw`, which does not come back.
pub(crate) const THROW: i32 = 77;

extern "C" fn bytes(a: u8, b: i8) -> u8 {
    a.wrapping_mul(31) ^ b as u8
}

extern "C" fn halves(a: i16, b: u16) -> i16 {
    (i32::from(a) * 7 + i32::from(b)) as i16
}

extern "C" fn low(a: i8, b: i64) -> i8 {
    a.wrapping_add(b as i8)
}

extern "C" fn words(a: u32, b: u32) -> u32 {
    a.rotate_left(b) ^ b
}

extern "C" fn signed(a: i32, b: i32, c: i32) -> i32 {
    a.wrapping_mul(b).wrapping_sub(c)
}

extern "C" fn short(a: u16) -> u16 {
    a.swap_bytes()
}

extern "C" fn less(a: u64, b: i64) -> bool {
    (a as i64) < b
}

extern "C" fn all(a: u64, b: i64, c: u32, d: i32, e: u64) -> u64 {
    let words = [a, b as u64, c.into(), d as u64, e];
    let fold = |sum: u64, word: u64| sum.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ word;
    words.into_iter().fold(0, fold)
}

extern "C" fn none() -> i64 {
    i64::MIN + 1
}

/// All of them, both as helpers and as host functions.
pub(crate) fn env() -> Env {
    macro_rules! add {
        ($($id:literal: $func:ident as $ty:ty;)*) => {{
            let env = Env::new().throw(THROW);
            $(
                // SAFETY: 1. they take any arguments, touch no memory, and return.
                let env = unsafe { env.helper($id, $func as $ty) };
                // SAFETY: as above.
                let env = unsafe { env.host_fn($id, $func as $ty) };
            )*
            env
        }};
    }
    add! {
        1: bytes as extern "C" fn(u8, i8) -> u8;
        2: halves as extern "C" fn(i16, u16) -> i16;
        3: low as extern "C" fn(i8, i64) -> i8;
        4: words as extern "C" fn(u32, u32) -> u32;
        5: signed as extern "C" fn(i32, i32, i32) -> i32;
        6: short as extern "C" fn(u16) -> u16;
        7: less as extern "C" fn(u64, i64) -> bool;
        8: all as extern "C" fn(u64, i64, u32, i32, u64) -> u64;
        9: none as extern "C" fn() -> i64;
    }
}
