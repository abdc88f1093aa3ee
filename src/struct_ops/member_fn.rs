//! Function pointers that can be members of tables.
//!
//! Key types: [`MemberFn`], [`FnField`]. Neighbour: `func` has hooks' functions, of which these are
//! those that take as many arguments as they say.

#![expect(unsafe_code, reason = "turns addresses into function pointers")]

use std::sync::Arc;

use trampoline::model::{FuncModel, ModelError};

use crate::abi::AbiType;
use crate::func::HookFn;

/// An `extern "C"` function pointer of 0 to 12 arguments, safe or not.
pub trait MemberFn: HookFn + Send + Sync {
    /// What LP64D makes of the type.
    ///
    /// # Errors
    /// A type that cannot be passed.
    fn type_model() -> Result<Arc<FuncModel>, ModelError>;

    /// The function at `addr`.
    ///
    /// # Safety
    /// 1. There is a function of this type, for as long as anybody has the pointer.
    #[doc(hidden)]
    unsafe fn at(addr: u64) -> Self;
}

/// How a member function stands in the struct.
pub trait FnField: 'static {
    /// The function pointer.
    type Fn: MemberFn;
    /// Whether a table may do without: the field is null then.
    #[doc(hidden)]
    const OPTIONAL: bool;
}

macro_rules! member_fn {
    ([$($unsafe:tt)?] $($a:ident)*) => {
        impl<R: AbiType, $($a: AbiType),*> MemberFn for $($unsafe)? extern "C" fn($($a),*) -> R {
            fn type_model() -> Result<Arc<FuncModel>, ModelError> {
                Ok(Arc::new(FuncModel::new(&[$(<$a as AbiType>::TYPE),*], R::TYPE)?))
            }

            unsafe fn at(addr: u64) -> Self {
                let addr = std::ptr::with_exposed_provenance::<()>(addr as usize);
                // SAFETY: 1. caller's contract. 2. function pointers are addresses.
                unsafe { std::mem::transmute::<*const (), Self>(addr) }
            }
        }

        impl<R: AbiType, $($a: AbiType),*> FnField for $($unsafe)? extern "C" fn($($a),*) -> R {
            type Fn = Self;
            const OPTIONAL: bool = false;
        }

        impl<R: AbiType, $($a: AbiType),*> FnField
            for Option<$($unsafe)? extern "C" fn($($a),*) -> R>
        {
            type Fn = $($unsafe)? extern "C" fn($($a),*) -> R;
            const OPTIONAL: bool = true;
        }
    };
}

macro_rules! member_fns {
    ($($a:ident)*) => {
        member_fn!([] $($a)*);
        member_fn!([unsafe] $($a)*);
    };
}

member_fns!();
member_fns!(A);
member_fns!(A B);
member_fns!(A B C);
member_fns!(A B C D);
member_fns!(A B C D E);
member_fns!(A B C D E F);
member_fns!(A B C D E F G);
member_fns!(A B C D E F G H);
member_fns!(A B C D E F G H I);
member_fns!(A B C D E F G H I J);
member_fns!(A B C D E F G H I J K);
member_fns!(A B C D E F G H I J K L);
