//! The functions of `cxx/throws.cpp`: C++ exceptions, thrown and caught.
//!
//! Those that throw a number do so when it is below 0; those that catch it return 1000 less the
//! number. All have a pad of five nops.
#![expect(unsafe_code, reason = "declares C++ functions")]

use std::ffi::c_int;

unsafe extern "C-unwind" {
    /// Throws `value`, or returns it.
    pub safe fn tl_throw(value: c_int) -> c_int;
    /// The same with the sum of `n` `int`s, from a call of [`tl_throw`].
    pub fn tl_throw_variadic(n: c_int, ...) -> c_int;
    /// Jumps to [`tl_throw`] without a frame of its own.
    pub safe fn tl_throw_at_end(value: c_int) -> c_int;
    /// Calls [`tl_throw`], adds one, and has a destructor to run.
    pub safe fn tl_throw_past_cleanup(value: c_int) -> c_int;
}

unsafe extern "C" {
    /// How many destructors have run on this thread.
    pub safe fn tl_cleanups() -> c_int;
    /// Calls [`tl_throw`] and catches.
    pub safe fn tl_catch_throw(value: c_int) -> c_int;
    /// Calls [`tl_throw_at_end`] and catches.
    pub safe fn tl_catch_throw_at_end(value: c_int) -> c_int;
    /// Calls [`tl_throw_past_cleanup`] and catches.
    pub safe fn tl_catch_past_cleanup(value: c_int) -> c_int;
    /// Calls [`tl_throw_variadic`] with ten numbers, and catches.
    pub safe fn tl_catch_variadic(value: c_int) -> c_int;
}
