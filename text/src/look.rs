//! One look at what is mapped, for many questions.
//!
//! What is asked of one address costs a reading of `/proc/self/maps`, which takes longer the more
//! there is; whoever asks of many looks once.
//!
//! Key type: [`Look`]. Neighbours: `pad`, `func`, `original`, `unchanged`, which answer.

use crate::addr::{RxAddr, RxRange};
use crate::caller::DirectReturn;
use crate::catalog::{At, Catalog};
use crate::error::TextError;
use crate::func::{self, Func};
use crate::loaded::Loaded;
use crate::original;
use crate::pad::Pad;
use crate::proc_maps::ProcMaps;
use crate::question::Lookup;
use crate::state;
use crate::unchanged;

/// What was mapped when it was made. It is for the questions of one moment: code that is asked of
/// must stay mapped meanwhile, which whoever asks in order to hook it sees to anyway.
#[derive(Debug)]
pub struct Look {
    maps: ProcMaps,
}

impl Look {
    /// Looks.
    ///
    /// # Errors
    /// [`TextError::MapsUnseen`] when the kernel does not show what is mapped.
    pub fn now() -> Result<Self, TextError> {
        state::watch_forks()?;
        Ok(Self {
            maps: ProcMaps::read()?,
        })
    }

    /// The pad of `func`: see [`Pad::find`].
    ///
    /// # Errors
    /// As there.
    pub fn pad(&self, func: RxAddr) -> Result<Pad, TextError> {
        Pad::find_by(func, &self.maps)
    }

    /// The function that runs when `addr` is called, without asking the dynamic linker where a stub
    /// leads that is not bound yet: the answer to that question is the next address to look at.
    /// For callers who hold a lock; others have [`Func::find`].
    ///
    /// # Errors
    /// As there.
    pub fn func(&self, addr: RxAddr) -> Result<Lookup<Func>, TextError> {
        func::find_by(addr, &self.maps)
    }

    /// Why the function at `func` must return straight to its caller, and its name; `None` if it
    /// need not, as far as is known. `unwinder` is code of the unwinder that is told of images.
    ///
    /// # Errors
    /// [`TextError::Map`].
    pub fn direct_return(
        &self,
        func: RxAddr,
        unwinder: RxAddr,
    ) -> Result<Option<(DirectReturn, Box<str>)>, TextError> {
        let Some(loaded) = Loaded::find(func) else {
            return Ok(None);
        };
        let catalog = Catalog::of(&loaded)?;
        let name = match catalog.at(func) {
            At::Start(entry) => catalog.name(entry),
            At::Inside(_) | At::Nothing => None,
        };
        if let Some(found) = catalog.direct.find(func, name) {
            return Ok(Some(found));
        }
        let is_told = || loaded.segment_of(unwinder).is_some();
        let is_near = |other: &Loaded| other.namespace.is_of(loaded.namespace);
        let has_unwinder = |other: Loaded| Catalog::of(&other).map(|c| c.direct.has_unwinder());
        // Another namespace has an unwinder of its own, or none.
        let alone = if loaded.namespace.is_other() {
            let near = Loaded::all().into_iter().filter(is_near);
            near.map(has_unwinder)
                .collect::<Result<Vec<_>, _>>()?
                .contains(&true)
        } else {
            catalog.direct.has_unwinder() && !is_told()
        };
        Ok(alone.then(|| (DirectReturn::OwnUnwinder, name.unwrap_or("it").into())))
    }

    /// The bytes of `range` as they would be without the pads that are armed and the detours that
    /// stand in it. What others have changed is seen as it is.
    ///
    /// # Errors
    /// [`TextError::Unmapped`], [`TextError::Map`].
    pub fn original_text(&self, range: RxRange) -> Result<Vec<u8>, TextError> {
        original::read_by(range, &self.maps)
    }

    /// That the text of `range`, without our own sites, is what the object's file has.
    ///
    /// # Errors
    /// [`TextError::ChangedByOthers`] with the first place where it is not;
    /// [`TextError::Unmapped`],
    /// [`TextError::Map`].
    pub fn check_unchanged(&self, range: RxRange) -> Result<(), TextError> {
        unchanged::check_by(range, &self.maps)
    }
}
