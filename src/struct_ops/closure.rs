//! Closures as members of tables.
//!
//! A closure gets its arguments out of the BPF context, and its result goes into the return slots,
//! as for hooks that override a return value. A panic stays inside: the call returns zeros.

#![expect(
    unsafe_code,
    reason = "called by machine code; turns the cookie back into a closure"
)]

use std::any::Any;
use std::sync::Arc;

use trampoline::indirect::MemberProg;
use trampoline::mark::Of;
use trampoline::model::{FuncModel, Pass};
use trampoline::{Needs, Owner, RetFrom};

use super::member_fn::MemberFn;
use crate::panics::{self, Panics};

struct Shared<C> {
    closure: C,
    model: Arc<FuncModel>,
    panics: Arc<Panics>,
}

/// A program that runs `closure` for a member like `F`.
pub(super) fn program<F, C>(closure: C, model: Arc<FuncModel>, panics: Arc<Panics>) -> MemberProg
where
    F: MemberFn,
    C: Fn(F::Args) -> F::Ret + Send + Sync + 'static,
{
    panics::install_hook();
    let shared = Arc::new(Shared {
        closure,
        model,
        panics,
    });
    MemberProg {
        func: run::<F, C>,
        cookie: Some(Arc::as_ptr(&shared) as u64),
        ret: RetFrom::Slots,
        needs: Needs::empty(),
        owner: Owner(Some(shared as Arc<dyn Any + Send + Sync>)),
    }
}

unsafe extern "C" fn run<F, C>(ctx: *mut u64, cookie: u64) -> u64
where
    F: MemberFn,
    C: Fn(F::Args) -> F::Ret,
{
    // SAFETY: 1. the image that calls this was made for this closure, and keeps it.
    let shared = unsafe { &*(cookie as *const Shared<C>) };
    // SAFETY: 1. the context of a call of a member of this type.
    let args = unsafe { F::args(ctx, &shared.model) };
    match shared.panics.contain(Of::Member, || (shared.closure)(args)) {
        // SAFETY: 1. the context has the return slots of the model.
        Some(value) => unsafe { F::set_ret(ctx, &shared.model, &value) },
        // SAFETY: as above.
        None => unsafe { zero_by_reference(ctx, &shared.model) },
    }
    0
}

/// Clears a result that is returned by reference; return slots are zero already.
///
/// # Safety
/// 1. `ctx` is the context of a call of a function of this model.
unsafe fn zero_by_reference(ctx: *const u64, model: &FuncModel) {
    for slot in model.ret().slots() {
        if let Pass::Reference { size_bytes } = slot.pass {
            // SAFETY: 1. the first slot is the hidden pointer.
            let at = unsafe { ctx.read() } as *mut u8;
            // SAFETY: 1. the caller's room for the value.
            unsafe { at.write_bytes(0, size_bytes as usize) };
        }
    }
}
