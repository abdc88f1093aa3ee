//! Dispatchers: comparisons in front of an indirect call, for the functions that are called most.
//!
//! Where the same site calls one of a few functions, harts without a good predictor of indirect
//! jumps lose many cycles each time they guess wrong. A dispatcher compares the address with those
//! that it knows and jumps there directly; others are called as ever. It costs three to five
//! instructions a level of its search: measure whether it wins where it is to be used.
//!
//! Key type: [`Dispatcher`]. Neighbours: [`trampoline::Chain`], and static calls, by which one
//! chain is replaced by the next under running callers. Source: kernel `kernel/bpf/dispatcher.c`.

#![expect(unsafe_code, reason = "the code is called as a function")]

use std::marker::PhantomData;

use text::{ForkMutex, RxAddr};
use trampoline::{Chain, StaticStub, TrampError, Trampolines};

use crate::abi::AbiType;
use crate::error::Error;
use crate::runtime::Runtime;
use crate::struct_ops::MemberFn;

/// A function that a dispatcher can call: with at most seven arguments.
pub trait DispatchFn: MemberFn {
    /// The dispatcher's own type: the function to call comes last.
    type Through: Copy;

    /// The function at `addr`.
    ///
    /// # Safety
    /// As for the type, for as long as anybody has the pointer.
    #[doc(hidden)]
    unsafe fn through(addr: u64) -> Self::Through;
}

macro_rules! dispatch_fn {
    ($($a:ident)*) => {
        impl<R: AbiType, $($a: AbiType),*> DispatchFn for extern "C" fn($($a),*) -> R {
            type Through = unsafe extern "C" fn($($a,)* extern "C" fn($($a),*) -> R) -> R;

            unsafe fn through(addr: u64) -> Self::Through {
                let addr = std::ptr::with_exposed_provenance::<()>(addr as usize);
                // SAFETY: 1. caller's contract. 2. function pointers are addresses.
                unsafe { std::mem::transmute::<*const (), Self::Through>(addr) }
            }
        }
    };
}

dispatch_fn!();
dispatch_fn!(A);
dispatch_fn!(A B);
dispatch_fn!(A B C);
dispatch_fn!(A B C D);
dispatch_fn!(A B C D E);
dispatch_fn!(A B C D E F);
dispatch_fn!(A B C D E F G);

/// A function that calls the function that it is given last, and knows some of them.
///
/// ```no_run
/// # #[cfg(target_arch = "riscv64")]
/// # fn demo(rt: &rvbpf::Runtime) -> Result<(), rvbpf::Error> {
/// extern "C" fn one(x: u64) -> u64 { x + 1 }
/// extern "C" fn two(x: u64) -> u64 { x + 2 }
/// type Step = extern "C" fn(u64) -> u64;
///
/// // SAFETY: it is not called when it is gone.
/// let steps = unsafe { rvbpf::Dispatcher::<Step>::new(rt) }?;
/// steps.set_targets(&[one as Step, two])?;
/// let call = steps.function();
/// // SAFETY: the dispatcher lives.
/// assert_eq!(unsafe { call(5, two) }, 7);
/// # Ok(()) }
/// ```
#[derive(Debug)]
#[doc(alias = "BPF_DISPATCHER")]
pub struct Dispatcher<F> {
    stub: StaticStub,
    /// Locked under the lock of changes alone, across which no fork comes.
    chain: ForkMutex<Chain>,
    runtime: Runtime,
    _of: PhantomData<fn() -> F>,
}

impl<F: DispatchFn> Dispatcher<F> {
    /// A dispatcher that knows no function yet.
    ///
    /// # Errors
    /// [`Error::Model`]; [`Error::Tramp`] with `NoFreeRegister`, or when there is no room for code.
    ///
    /// # Safety
    /// 1. Nobody calls it when this has been dropped.
    pub unsafe fn new(rt: &Runtime) -> Result<Self, Error> {
        if !cfg!(target_arch = "riscv64") {
            return Err(TrampError::UnsupportedHost.into());
        }
        let (mut chain, start) = Chain::new(rt.tramps(), &*F::type_model()?, &[])?;
        let stub = StaticStub::new(rt.tramps(), start)?;
        chain.calls_come_by(&stub);
        Ok(Dispatcher {
            stub,
            chain: ForkMutex::new(chain),
            runtime: rt.clone(),
            _of: PhantomData,
        })
    }

    /// Calls of these functions are direct jumps from now on, those of all others indirect. Calls
    /// that are under way, and calls while this runs, are as good as ever.
    ///
    /// # Errors
    /// [`Error::Tramp`] with `TooManyTargets`, `OutOfReach`, `Reentered` (this is a program within a
    /// change of its own thread), or when there is no room for code.
    pub fn set_targets(&self, targets: &[F]) -> Result<(), Error> {
        let targets = targets.iter().map(|f| RxAddr::new(f.addr()));
        let targets: Vec<RxAddr> = targets.collect();
        let model = F::type_model()?;
        let old = Trampolines::exclusively(|| {
            let mut now = self.chain.lock();
            let (mut chain, start) = Chain::new(self.runtime.tramps(), &model, &targets)?;
            chain.calls_come_by(&self.stub);
            self.stub.lead_within_change(start)?;
            Ok::<_, TrampError>(std::mem::replace(&mut *now, chain))
        })??;
        // It is freed when nobody is in it.
        drop(old);
        Ok(())
    }

    /// What is called: with the arguments, and the function that they are for.
    pub fn function(&self) -> F::Through {
        // SAFETY: 1. the stub leads to a chain for functions of this type, and whoever made it has
        //    promised not to call it when it is gone.
        unsafe { F::through(self.stub.at().get()) }
    }
}
