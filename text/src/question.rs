//! Questions that only the dynamic linker answers.
//!
//! It answers under a lock of its own (`dlopen`, `dlsym`), under which constructors run, of
//! libraries that another thread opens. Those may change text, and take whatever lock their
//! caller holds around that. So who holds such a lock looks first ([`Look::func`],
//! [`look_symbol`]), gives the lock back, and then asks ([`Question::ask`]).
//!
//! Key types: [`Lookup`], [`Question`]. Neighbours: `func` and `names` find out what must be asked,
//! `loaded` asks. Source: `dlsym(3)`; glibc `elf/dl-open.c`.
//!
//! [`Look::func`]: crate::Look::func
//! [`look_symbol`]: crate::look_symbol

use std::ffi::CString;

use crate::addr::RxAddr;
use crate::error::TextError;
use crate::loaded::{Loaded, Scope, look_up};

/// What a look comes to.
#[derive(Clone, Debug)]
pub enum Lookup<T> {
    /// It is known.
    Known(T),
    /// The dynamic linker must be asked.
    Ask(Question),
}

impl<T> Lookup<T> {
    /// The same of something that follows from what is known.
    pub fn map<U>(self, f: impl FnOnce(T) -> U) -> Lookup<U> {
        match self {
            Self::Known(known) => Lookup::Known(f(known)),
            Self::Ask(question) => Lookup::Ask(question),
        }
    }
}

/// What the dynamic linker is to be asked.
#[derive(Clone, Debug)]
pub struct Question {
    pub(crate) object: Loaded,
    pub(crate) scopes: Scopes,
    pub(crate) name: CString,
    /// Asked for first; then without.
    pub(crate) version: Option<CString>,
    /// If it knows nothing.
    pub(crate) otherwise: TextError,
}

/// Where the name is looked for.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) enum Scopes {
    /// In the object and what that needs.
    Object,
    /// Everywhere, then in the object.
    GlobalThenObject,
}

impl Question {
    /// Asks. Takes the dynamic linker's lock: the caller must hold none that a constructor, or
    /// whoever calls `dlopen`, may want.
    ///
    /// # Errors
    /// What is wrong if the dynamic linker knows nothing.
    pub fn ask(self) -> Result<RxAddr, TextError> {
        let object = Scope::Object(&self.object);
        let all = [Scope::Global, object];
        let scopes = match self.scopes {
            // Another namespace has functions of its own under the same names.
            Scopes::GlobalThenObject if self.object.namespace.is_other() => &all[1..],
            Scopes::Object => &all[1..],
            Scopes::GlobalThenObject => &all[..],
        };
        let found = scopes.iter().find_map(|scope| {
            let version = self.version.as_deref();
            let exact = version.and_then(|v| look_up(*scope, &self.name, Some(v)));
            exact.or_else(|| look_up(*scope, &self.name, None))
        });
        found.ok_or(self.otherwise)
    }
}
