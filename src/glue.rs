//! From machine code to closures.
//!
//! Each kind of closure has one generic `extern "C"` function here; an image calls it with the
//! context and, as cookie, the address of the closure's [`Shared`] block. Nothing here allocates,
//! and no panic gets out.

#![expect(
    unsafe_code,
    reason = "called by machine code; turns the cookie back into a closure"
)]

use std::any::Any;
use std::sync::Arc;

use text::RxAddr;
use trampoline::mark::Of;
use trampoline::model::FuncModel;
use trampoline::{Needs, Owner, Prog, ProgFn, ProgKind, ProgState, RetFrom, Traps};

use crate::call::Call;
use crate::func::HookFn;
use crate::panics::{self, Panics};
use crate::raw;

/// A closure with what its glue needs; the image's owner keeps it alive.
struct Shared<C> {
    closure: C,
    func: RxAddr,
    model: Arc<FuncModel>,
    state: Arc<ProgState>,
    panics: Arc<Panics>,
    is_alone: bool,
}

/// What every closure of one hook has in common.
#[derive(Clone, Debug)]
pub(crate) struct Site {
    pub(crate) func: RxAddr,
    pub(crate) model: Arc<FuncModel>,
    pub(crate) panics: Arc<Panics>,
    /// Closures that are added next run alone.
    pub(crate) is_alone: bool,
    pub(crate) traps: Traps,
}

impl Site {
    fn prog<C: Send + Sync + 'static>(&self, kind: ProgKind, func: ProgFn, closure: C) -> Prog {
        panics::install_hook();
        let state = Arc::<ProgState>::default();
        let shared: Arc<Shared<C>> = Arc::new(Shared {
            closure,
            func: self.func,
            model: self.model.clone(),
            state: state.clone(),
            panics: self.panics.clone(),
            is_alone: self.is_alone,
        });
        Prog {
            kind,
            func,
            cookie: Some(Arc::as_ptr(&shared) as u64),
            needs: Needs::PRESERVE,
            state,
            owner: Owner(Some(shared as Arc<dyn Any + Send + Sync>)),
        }
    }

    pub(crate) fn entry<F, C>(&self, closure: C) -> Prog
    where
        F: HookFn,
        C: Fn(&Call<'_, F>) + Send + Sync + 'static,
    {
        self.prog(ProgKind::Fentry, entry::<F, C>, closure)
    }

    pub(crate) fn exit<F, C>(&self, closure: C) -> Prog
    where
        F: HookFn,
        C: Fn(&Call<'_, F>, &F::Ret) + Send + Sync + 'static,
    {
        self.prog(ProgKind::Fexit, exit::<F, C>, closure)
    }

    pub(crate) fn fmod_ret<F, C>(&self, closure: C) -> Prog
    where
        F: HookFn,
        C: Fn(F::Args) -> Option<F::Ret> + Send + Sync + 'static,
    {
        self.prog(ProgKind::FmodRet(RetFrom::Slots), fmod_ret::<F, C>, closure)
    }

    pub(crate) fn session<F, C, D>(&self, enter: C, leave: D) -> Prog
    where
        F: HookFn,
        C: Fn(&Call<'_, F>, &mut u64) + Send + Sync + 'static,
        D: Fn(&Call<'_, F>, &F::Ret, &mut u64) + Send + Sync + 'static,
    {
        self.prog(ProgKind::Fsession, session::<F, C, D>, (enter, leave))
    }
}

impl<C> Shared<C> {
    /// # Safety
    /// 1. `cookie` is the cookie of a program made by [`Site::prog`] with a closure of type `C`,
    ///    and its owner lives.
    unsafe fn of<'a>(cookie: u64) -> &'a Self {
        // SAFETY: 1. caller's contract.
        unsafe { &*(cookie as *const Self) }
    }

    /// Runs `body` on the call, counts it, and keeps panics in. `None`: it panicked.
    ///
    /// # Safety
    /// 1. `ctx` is the context of a call of the function of this hook.
    unsafe fn run<F: HookFn, R>(
        &self,
        ctx: *const u64,
        body: impl FnOnce(&C, &Call<'_, F>) -> R,
    ) -> Option<R> {
        if !panics::can_contain() {
            self.state.add_missed();
            return None;
        }
        self.state.add_run();
        // SAFETY: 1. caller's contract.
        let call = unsafe { Call::<F>::new(ctx, &self.model, self.func) };
        let of = match self.is_alone {
            true => Of::Alone,
            false => Of::Image,
        };
        self.panics.contain(of, || body(&self.closure, &call))
    }
}

unsafe extern "C" fn entry<F, C>(ctx: *mut u64, cookie: u64) -> u64
where
    F: HookFn,
    C: Fn(&Call<'_, F>),
{
    // SAFETY: 1. the image that calls this was made for this program.
    let shared = unsafe { Shared::<C>::of(cookie) };
    // SAFETY: as above.
    unsafe { shared.run::<F, _>(ctx, |closure, call| closure(call)) };
    0
}

unsafe extern "C" fn exit<F, C>(ctx: *mut u64, cookie: u64) -> u64
where
    F: HookFn,
    C: Fn(&Call<'_, F>, &F::Ret),
{
    // SAFETY: 1. the image that calls this was made for this program.
    let shared = unsafe { Shared::<C>::of(cookie) };
    // SAFETY: 1. as above; exit programs run after the function.
    let ret = unsafe { F::ret(ctx, &shared.model) };
    // SAFETY: as above.
    unsafe { shared.run::<F, _>(ctx, |closure, call| closure(call, &ret)) };
    0
}

unsafe extern "C" fn fmod_ret<F, C>(ctx: *mut u64, cookie: u64) -> u64
where
    F: HookFn,
    C: Fn(F::Args) -> Option<F::Ret>,
{
    // SAFETY: 1. the image that calls this was made for this program.
    let shared = unsafe { Shared::<C>::of(cookie) };
    // SAFETY: as above.
    let answer = unsafe { shared.run::<F, _>(ctx, |closure, call| closure(call.args())) };
    match answer.flatten() {
        Some(value) => {
            // SAFETY: 1. images with fmod_ret programs have the return slots of the model.
            unsafe { F::set_ret(ctx, &shared.model, &value) };
            1
        }
        None => 0,
    }
}

unsafe extern "C" fn session<F, C, D>(ctx: *mut u64, cookie: u64) -> u64
where
    F: HookFn,
    C: Fn(&Call<'_, F>, &mut u64),
    D: Fn(&Call<'_, F>, &F::Ret, &mut u64),
{
    // SAFETY: 1. the image that calls this was made for this program.
    let shared = unsafe { Shared::<(C, D)>::of(cookie) };
    // SAFETY: 1. session programs always have the meta word.
    let cookie_at = unsafe { raw::session_cookie(ctx) };
    // SAFETY: 1. the cookie belongs to this program in this call.
    let cell = unsafe { &mut *cookie_at };
    // SAFETY: as for the cookie.
    if unsafe { raw::session_is_return(ctx) } {
        // SAFETY: 1. the function has returned.
        let ret = unsafe { F::ret(ctx, &shared.model) };
        // SAFETY: 1. the context of this call.
        unsafe { shared.run::<F, _>(ctx, |(_, leave), call| leave(call, &ret, cell)) };
    } else {
        // SAFETY: 1. the context of this call.
        unsafe { shared.run::<F, _>(ctx, |(enter, _), call| enter(call, cell)) };
    }
    0
}
