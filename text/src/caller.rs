//! Functions that must return straight to their caller.
//!
//! A hook that looks at a function's return calls it with another return address, and from another
//! frame. Most functions cannot tell. These can:
//!
//! | what | which | with another return address |
//! | --- | --- | --- |
//! | [`DirectReturn::Twice`] | `setjmp`, `getcontext`, … | its second return is into a frame that is gone |
//! | [`DirectReturn::SharedStack`] | `vfork` | the child's return takes the parent's frame down |
//! | [`DirectReturn::LooksAtCaller`] | `dlopen`, `dlsym`, … | it serves the object that called it, and finds none |
//! | [`DirectReturn::Unwinder`] | `_Unwind_Resume`, `__cxa_throw`, … | it unwinds into the hook, which unwinds by it |
//! | [`DirectReturn::OwnUnwinder`] | all of an object, or of a `dlmopen` namespace, with an unwinder of its own | that unwinder knows no frames but those of objects |
//!
//! They are known by the addresses that their names have in the object that defines them: so
//! aliases, versions and stubs are found, however a function was asked for. An object has an
//! unwinder of its own if it defines `_Unwind_RaiseException`, or throws C++ exceptions and does not
//! import that function: `-static-libgcc`. One that is stripped and exports nothing of it is not
//! found.
//!
//! Key type: [`DirectReturn`]. Neighbours: `catalog` collects them, `look` answers. Source: glibc
//! (`RETURN_ADDRESS` in `dlfcn/`, `elf/dl-iteratephdr.c`), `vfork(2)`, `setjmp(3)`, Itanium C++ ABI
//! "Exception Handling", Level I.

use crate::addr::RxAddr;
use crate::catalog::{Symbol, SymbolKind};

/// Why a function must return straight to its caller.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug)]
#[non_exhaustive]
pub enum DirectReturn {
    /// It returns again to where it was called, when the frames below are gone.
    Twice,
    /// It returns in a child that uses the stack of its parent, and again in the parent.
    SharedStack,
    /// Its return address says which object has called it.
    LooksAtCaller,
    /// It unwinds the stack that it is called on.
    Unwinder,
    /// Its object, or its namespace, brings an unwinder, which is not told of images.
    OwnUnwinder,
}

impl DirectReturn {
    /// The reason, behind the name of the function.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Twice => "returns more than once, the second time into a frame that is gone",
            Self::SharedStack => "returns in a child that uses the stack of its parent",
            Self::LooksAtCaller => "finds out by its return address which object has called it",
            Self::Unwinder => "unwinds the stack that it is called on",
            Self::OwnUnwinder => {
                "is in an object, or a namespace (dlmopen), with an unwinder of its own, which does \
                 not know the frames of hooks"
            }
        }
    }

    fn of_name(name: &str) -> Option<Self> {
        Some(match name {
            "setjmp" | "_setjmp" | "__setjmp" | "sigsetjmp" | "__sigsetjmp"
            | "__sigsetjmp_cancel" | "getcontext" | "__getcontext" | "swapcontext"
            | "__swapcontext" => Self::Twice,
            "vfork" | "__vfork" | "__libc_vfork" => Self::SharedStack,
            "dlopen" | "__dlopen" | "dlmopen" | "__dlmopen" | "dlsym" | "__dlsym" | "dlvsym"
            | "__dlvsym" | "dl_iterate_phdr" | "__dl_iterate_phdr" => Self::LooksAtCaller,
            RAISE
            | RESUME
            | "_Unwind_Resume_or_Rethrow"
            | "_Unwind_ForcedUnwind"
            | THROW
            | "__cxa_rethrow"
            | "_ZSt17rethrow_exceptionNSt15__exception_ptr13exception_ptrE"
            | "__pthread_unwind"
            | "__pthread_unwind_next"
            | "___pthread_unwind_next" => Self::Unwinder,
            _ => return None,
        })
    }
}

const RAISE: &str = "_Unwind_RaiseException";
const RESUME: &str = "_Unwind_Resume";
const THROW: &str = "__cxa_throw";

/// The functions of one object that must return straight to their callers.
#[derive(Default, Debug)]
pub(crate) struct DirectReturns {
    /// In order of address.
    at: Vec<(RxAddr, DirectReturn, Box<str>)>,
    has_unwinder: bool,
}

impl DirectReturns {
    /// Those that `symbols` name.
    pub(crate) fn of(symbols: &[Symbol]) -> Self {
        let (mut at, mut imports, mut throws, mut has_unwinder) = (Vec::new(), false, false, false);
        for symbol in symbols {
            let is_defined = match symbol.kind {
                SymbolKind::Func | SymbolKind::Unknown => true,
                SymbolKind::Undefined => false,
                SymbolKind::Ifunc | SymbolKind::Data => continue,
            };
            imports |= !is_defined && matches!(&*symbol.name, RAISE | RESUME);
            if !is_defined {
                continue;
            }
            throws |= &*symbol.name == THROW;
            has_unwinder |= &*symbol.name == RAISE;
            if let Some(why) = DirectReturn::of_name(&symbol.name) {
                at.push((symbol.addr, why, symbol.name.clone()));
            }
        }
        at.sort_by_key(|(addr, ..)| *addr);
        Self {
            at,
            has_unwinder: has_unwinder || throws && !imports,
        }
    }

    /// Whether the object unwinds by code of its own.
    pub(crate) fn has_unwinder(&self) -> bool {
        self.has_unwinder
    }

    /// What is known of the function at `func`, by its addresses or by the `name` that it bears.
    pub(crate) fn find(
        &self,
        func: RxAddr,
        name: Option<&str>,
    ) -> Option<(DirectReturn, Box<str>)> {
        let found = self.at.binary_search_by_key(&func, |(addr, ..)| *addr);
        let known = found.ok().map(|i| (self.at[i].1, self.at[i].2.clone()));
        known.or_else(|| Some((DirectReturn::of_name(name?)?, name?.into())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_why() {
        for (name, want) in [
            ("_setjmp", Some(DirectReturn::Twice)),
            ("vfork", Some(DirectReturn::SharedStack)),
            ("dlvsym", Some(DirectReturn::LooksAtCaller)),
            ("_Unwind_Resume", Some(DirectReturn::Unwinder)),
            ("__cxa_throw", Some(DirectReturn::Unwinder)),
            ("longjmp", None),
            ("fork", None),
            ("dlclose", None),
            ("_Unwind_Find_FDE", None),
        ] {
            assert_eq!(DirectReturn::of_name(name), want, "{name}");
        }
    }
}
