//! Static calls: a call through a direct jump, whose target can be changed at any time.
//!
//! A function pointer is loaded and predicted with each call. A static call is a call of a stub,
//! and the stub a direct jump: two instructions, which the change of text leads elsewhere under
//! running callers. For what is called often and changed seldom.
//!
//! Key types: [`StaticCall`], a stub in a pack, for code that finds its address at run time;
//! [`static_call!`](crate::static_call), a stub in the program's own text, which the compiler and
//! C code call directly. Neighbour: [`trampoline::StaticStub`] says why no call is lost.

#![expect(
    unsafe_code,
    reason = "stubs are called as functions of the type that they lead to"
)]

use std::marker::PhantomData;
use std::sync::OnceLock;

use text::RxAddr;
use trampoline::{StaticStub, TrampError, Trampolines};

use crate::error::Error;
use crate::runtime::Runtime;
use crate::struct_ops::MemberFn;

/// A stub in a pack.
///
/// Targets are functions of one type that stay for the life of the process. When it is dropped,
/// its stub is freed.
#[derive(Debug)]
pub struct StaticCall<F> {
    stub: StaticStub,
    /// Keeps the packs.
    _runtime: Runtime,
    _of: PhantomData<fn() -> F>,
}

impl<F: MemberFn> StaticCall<F> {
    /// A stub that leads to `target`.
    ///
    /// # Errors
    /// [`Error::Tramp`] when there is no room for it near the target.
    ///
    /// # Safety
    /// 1. Nobody calls the stub when this has been dropped.
    pub unsafe fn new(rt: &Runtime, target: F) -> Result<Self, Error> {
        if !cfg!(target_arch = "riscv64") {
            return Err(TrampError::UnsupportedHost.into());
        }
        Ok(StaticCall {
            stub: StaticStub::new(rt.tramps(), RxAddr::new(target.addr()))?,
            _runtime: rt.clone(),
            _of: PhantomData,
        })
    }

    /// What callers call: for C, and for code that is generated near it.
    pub fn stub(&self) -> F {
        // SAFETY: 1. the stub leads to functions of this type alone, and whoever made it has
        //    promised not to call it when it is gone.
        unsafe { F::at(self.stub.at().get()) }
    }

    /// Leads calls that begin afterwards to `target`. No thread is stopped, and no call is lost.
    ///
    /// # Errors
    /// [`Error::Tramp`] with `OutOfReach`: the target is farther than 2 GiB from the stub; with
    /// `Text`, when text cannot be changed; with `Reentered`, in a program within a change of its
    /// own thread.
    pub fn update(&self, target: F) -> Result<(), Error> {
        Ok(self.stub.lead(RxAddr::new(target.addr()))?)
    }
}

/// What [`static_call!`](crate::static_call) keeps of its stub.
#[doc(hidden)]
#[derive(Debug)]
pub struct TextStub(OnceLock<StaticStub>);

impl TextStub {
    /// Nothing is known of it.
    #[expect(clippy::new_without_default, reason = "for statics")]
    pub const fn new() -> Self {
        TextStub(OnceLock::new())
    }

    /// Leads the stub at `at` to `target`.
    ///
    /// # Errors
    /// As [`StaticCall::update`].
    ///
    /// # Safety
    /// 1. There is a stub of the macro's at `at`, for functions like `F`, always the same.
    pub unsafe fn update<F: MemberFn>(&self, at: u64, target: F) -> Result<(), Error> {
        let at = RxAddr::new(at);
        let stub = match self.0.get() {
            Some(stub) => stub,
            None => {
                // SAFETY: 1. caller's contract. Whoever comes second throws away what it read.
                let stub = unsafe { StaticStub::in_text(at) }?;
                // The lock of changes: a child of a fork must not find it half set.
                Trampolines::locked(|| self.0.get_or_init(|| stub))
            }
        };
        Ok(stub.lead(RxAddr::new(target.addr()))?)
    }
}

/// Declares a function that can be led elsewhere while it is called: a stub in the program's text
/// under a symbol of its own, which the compiler calls directly. On riscv64 alone.
///
/// `NAME::call(…)` calls it, `NAME::update(f)` leads it to another function of its type, and C code
/// calls it under the name that is given.
///
/// ```no_run
/// # #[cfg(target_arch = "riscv64")]
/// # mod demo {
/// extern "C" fn slow(x: u64) -> u64 { x + x }
/// extern "C" fn fast(x: u64) -> u64 { 2 * x }
///
/// rvbpf::static_call! {
///     /// Twice a number.
///     pub fn Double = "my_double" (x: u64) -> u64 { slow }
/// }
///
/// # fn main() -> Result<(), rvbpf::Error> {
/// assert_eq!(Double::call(3), 6);
/// Double::update(fast)?;
/// # Ok(()) }
/// # }
/// ```
#[macro_export]
macro_rules! static_call {
    (
        $(#[$meta:meta])*
        $vis:vis fn $name:ident = $symbol:literal ($($arg:ident: $ty:ty),* $(,)?)
        $(-> $ret:ty)? { $default:path }
    ) => {
        $(#[$meta])*
        #[derive(Debug)]
        $vis enum $name {}

        // The pair is written out: an assembler that relaxed it would leave no room.
        ::core::arch::global_asm!(
            ".option push",
            ".option norvc",
            ".option norelax",
            concat!(".section .text.", $symbol, ", \"ax\", @progbits"),
            ".balign 64",
            concat!(".globl ", $symbol),
            concat!(".type ", $symbol, ", @function"),
            concat!($symbol, ":"),
            "77: auipc t1, %pcrel_hi({default})",
            "jalr zero, %pcrel_lo(77b)(t1)",
            "auipc t1, 0",
            "lw t3, 16(t1)",
            "add t1, t1, t3",
            "jalr zero, 0(t1)",
            ".word 0",
            concat!(".size ", $symbol, ", . - ", $symbol),
            ".balign 64",
            ".previous",
            ".option pop",
            default = sym $default,
        );

        #[allow(
            unsafe_code,
            clippy::undocumented_unsafe_blocks,
            reason = "the stub above leads to functions of this type alone"
        )]
        const _: () = {
            unsafe extern "C" {
                #[link_name = $symbol]
                fn stub($($arg: $ty),*) $(-> $ret)?;
            }
            static STUB: $crate::TextStub = $crate::TextStub::new();
            const _: extern "C" fn($($ty),*) $(-> $ret)? = $default;

            impl $name {
                /// Calls it.
                #[inline(always)]
                $vis fn call($($arg: $ty),*) $(-> $ret)? {
                    // SAFETY: 1. the stub leads to functions of this type.
                    unsafe { stub($($arg),*) }
                }

                /// Leads calls that begin afterwards to `target`.
                ///
                /// # Errors
                /// As `rvbpf::StaticCall::update`.
                $vis fn update(
                    target: extern "C" fn($($ty),*) $(-> $ret)?,
                ) -> ::core::result::Result<(), $crate::Error> {
                    let at = stub as *const () as u64;
                    // SAFETY: 1. there is the stub above.
                    unsafe { STUB.update(at, target) }
                }
            }
        };
    };
}
