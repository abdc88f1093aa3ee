//! One call of a hooked function, as a program sees it.

#![expect(unsafe_code, reason = "looks into the context of a call")]

use std::fmt;
use std::marker::PhantomData;

use text::RxAddr;
use trampoline::model::FuncModel;

use crate::func::HookFn;

/// A call that is under way. Lives as long as the program runs.
pub struct Call<'c, F> {
    ctx: *const u64,
    model: &'c FuncModel,
    func: RxAddr,
    _of: PhantomData<F>,
}

impl<'c, F: HookFn> Call<'c, F> {
    /// # Safety
    /// 1. `ctx` is the context of a call of a function like `F`, laid out by `model`, and stays so
    ///    for `'c`.
    pub(crate) unsafe fn new(ctx: *const u64, model: &'c FuncModel, func: RxAddr) -> Self {
        Call {
            ctx,
            model,
            func,
            _of: PhantomData,
        }
    }

    /// The arguments that the function was called with.
    pub fn args(&self) -> F::Args {
        // SAFETY: 1. contract of `new`.
        unsafe { F::args(self.ctx, self.model) }
    }

    /// The argument slots of the BPF context, in the order of [`FuncModel::slots`].
    pub fn slots(&self) -> &[u64] {
        // SAFETY: 1. contract of `new`: so many words, which do not change for `'c`.
        unsafe { std::slice::from_raw_parts(self.ctx, self.model.nr_arg_slots()) }
    }

    /// Where each slot comes from.
    pub fn model(&self) -> &FuncModel {
        self.model
    }

    /// Whether this call is made in a signal handler, as far as can be known: then the closure must not
    /// wait for what the interrupted code may hold (locks, the allocator).
    ///
    /// What tells it is a frame of the kernel on the stack. One that an earlier handler has left in
    /// a part of the stack that nothing has written to since cannot be told from it, and counts.
    /// It costs a system call for each kilobyte of stack in use, so it is for closures that would wait.
    pub fn in_signal_handler(&self) -> bool {
        text::threads::may_be_in_handler()
    }

    /// The function.
    pub fn func(&self) -> RxAddr {
        self.func
    }
}

impl<F: HookFn> fmt::Debug for Call<'_, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call")
            .field("func", &self.func)
            .field("slots", &self.slots())
            .finish()
    }
}

/// Return value of a function without a Rust type: the slots that its model lists, in order. For
/// a function of which nothing is known these are `a0`, `a1`, `fa0`, `fa1`.
#[derive(Copy, Clone, Debug, Default, Eq, PartialEq)]
pub struct RetSlots {
    /// The slots; those that the model does not list are 0.
    pub slots: [u64; 4],
}
