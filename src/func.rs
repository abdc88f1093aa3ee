//! Function pointers that can be hooked, and what their types say.
//!
//! Key types: [`HookFn`], implemented for `extern "C"` function pointers of 0 to 12 arguments,
//! safe and unsafe, variadic ones included; [`Untyped`] for everything else.

#![expect(
    unsafe_code,
    reason = "reads arguments out of a context, by the function's type"
)]

use std::sync::Arc;

use trampoline::model::{FuncModel, ModelError, Type};

use crate::abi::{self, AbiType};
use crate::call::RetSlots;

/// A function that can be hooked, with the types of its arguments and return value.
pub trait HookFn: Copy + 'static {
    /// Its (named) arguments.
    type Args: Copy;
    /// Its return value.
    type Ret: Copy;

    /// Where it is.
    fn addr(&self) -> u64;

    /// What LP64D makes of its type.
    ///
    /// # Errors
    /// A type that cannot be passed.
    fn model(&self) -> Result<Arc<FuncModel>, ModelError>;

    /// The arguments, out of a context.
    ///
    /// # Safety
    /// 1. `ctx` is the context of a call of such a function, laid out by `model`.
    #[doc(hidden)]
    unsafe fn args(ctx: *const u64, model: &FuncModel) -> Self::Args;

    /// The return value, out of a context.
    ///
    /// # Safety
    /// As [`HookFn::args`], and the function has returned.
    #[doc(hidden)]
    unsafe fn ret(ctx: *const u64, model: &FuncModel) -> Self::Ret;

    /// Puts a return value into a context.
    ///
    /// # Safety
    /// As [`HookFn::args`].
    #[doc(hidden)]
    unsafe fn set_ret(ctx: *mut u64, model: &FuncModel, value: &Self::Ret);
}

/// # Safety
/// As [`HookFn::ret`] for a function that returns `R`.
unsafe fn typed_ret<R: AbiType>(ctx: *const u64, model: &FuncModel) -> R {
    // SAFETY: 1. return slots stand behind the argument slots.
    unsafe { abi::load(ctx, model.nr_arg_slots(), model.ret().slots()) }
}

/// # Safety
/// As [`HookFn::set_ret`] for a function that returns `R`.
unsafe fn set_typed_ret<R: AbiType>(ctx: *mut u64, model: &FuncModel, value: &R) {
    let by_ref = if model.nr_arg_slots() > 0 {
        // SAFETY: 1. there is a first slot. It holds the hidden pointer where a value is returned
        //    by reference; else it is not used.
        unsafe { ctx.read() }
    } else {
        0
    };
    // SAFETY: 1. return slots stand behind the argument slots. 2. the hidden pointer is the
    //    caller's room for the value.
    unsafe {
        abi::store_ret(
            ctx,
            model.nr_arg_slots(),
            model.ret().slots(),
            by_ref,
            value,
        )
    };
}

macro_rules! hook_fn {
    ([$($unsafe:tt)?] [$($dots:tt)?] $make:ident: $($a:ident $i:literal)*) => {
        impl<R: AbiType, $($a: AbiType),*> HookFn
            for $($unsafe)? extern "C" fn($($a,)* $($dots)?) -> R
        {
            type Args = ($($a,)*);
            type Ret = R;

            fn addr(&self) -> u64 {
                *self as usize as u64
            }

            fn model(&self) -> Result<Arc<FuncModel>, ModelError> {
                let args: &[Type] = &[$(<$a as AbiType>::TYPE),*];
                Ok(Arc::new(FuncModel::$make(args, R::TYPE)?))
            }

            #[allow(unused_variables, clippy::unused_unit, reason = "functions without arguments")]
            unsafe fn args(ctx: *const u64, model: &FuncModel) -> Self::Args {
                ($({
                    let (first, slots) = model.arg_slots($i);
                    // SAFETY: 1. the model was made from these very types.
                    unsafe { abi::load::<$a>(ctx, first, slots) }
                },)*)
            }

            unsafe fn ret(ctx: *const u64, model: &FuncModel) -> R {
                // SAFETY: passed on.
                unsafe { typed_ret(ctx, model) }
            }

            unsafe fn set_ret(ctx: *mut u64, model: &FuncModel, value: &R) {
                // SAFETY: passed on.
                unsafe { set_typed_ret(ctx, model, value) }
            }
        }
    };
}

macro_rules! hook_fns {
    ($($a:ident $i:literal)*) => {
        hook_fn!([] [] new: $($a $i)*);
        hook_fn!([unsafe] [] new: $($a $i)*);
    };
}

macro_rules! hook_fns_variadic {
    ($($a:ident $i:literal)*) => {
        hook_fns!($($a $i)*);
        hook_fn!([unsafe] [...] variadic: $($a $i)*);
    };
}

hook_fns!();
hook_fns_variadic!(A 0);
hook_fns_variadic!(A 0 B 1);
hook_fns_variadic!(A 0 B 1 C 2);
hook_fns_variadic!(A 0 B 1 C 2 D 3);
hook_fns_variadic!(A 0 B 1 C 2 D 3 E 4);
hook_fns_variadic!(A 0 B 1 C 2 D 3 E 4 F 5);
hook_fns_variadic!(A 0 B 1 C 2 D 3 E 4 F 5 G 6);
hook_fns_variadic!(A 0 B 1 C 2 D 3 E 4 F 5 G 6 H 7);
hook_fns_variadic!(A 0 B 1 C 2 D 3 E 4 F 5 G 6 H 7 I 8);
hook_fns_variadic!(A 0 B 1 C 2 D 3 E 4 F 5 G 6 H 7 I 8 J 9);
hook_fns_variadic!(A 0 B 1 C 2 D 3 E 4 F 5 G 6 H 7 I 8 J 9 K 10);
hook_fns_variadic!(A 0 B 1 C 2 D 3 E 4 F 5 G 6 H 7 I 8 J 9 K 10 L 11);

/// A function known by its address and, perhaps, a model.
///
/// Arguments and return value are looked at as slots: [`Call::slots`](crate::Call::slots),
/// [`RetSlots`].
#[derive(Copy, Clone, Debug)]
pub struct Untyped(pub(crate) u64);

impl HookFn for Untyped {
    type Args = ();
    type Ret = RetSlots;

    fn addr(&self) -> u64 {
        self.0
    }

    fn model(&self) -> Result<Arc<FuncModel>, ModelError> {
        Ok(Arc::new(FuncModel::untyped()))
    }

    unsafe fn args(_: *const u64, _: &FuncModel) {}

    unsafe fn ret(ctx: *const u64, model: &FuncModel) -> RetSlots {
        let mut ret = RetSlots::default();
        let n = model.ret().slots().len().min(ret.slots.len());
        for (i, slot) in ret.slots[..n].iter_mut().enumerate() {
            // SAFETY: 1. return slots stand behind the argument slots.
            let at = unsafe { ctx.add(model.nr_arg_slots() + i) };
            // SAFETY: as above.
            *slot = unsafe { at.read() };
        }
        ret
    }

    unsafe fn set_ret(ctx: *mut u64, model: &FuncModel, value: &RetSlots) {
        let n = model.ret().slots().len().min(value.slots.len());
        for (i, slot) in value.slots[..n].iter().enumerate() {
            // SAFETY: 1. return slots stand behind the argument slots.
            let at = unsafe { ctx.add(model.nr_arg_slots() + i) };
            // SAFETY: as above.
            unsafe { at.write(*slot) };
        }
    }
}
