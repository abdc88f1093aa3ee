//! Which loaded objects are never closed.
//!
//! `dlclose` of a library must not unmap text that is hooked, so it needs a reference, which is
//! taken under the dynamic linker's lock. A constructor that another thread runs under that lock
//! may be waiting for this one. So no reference is taken where none is needed, and that is seen in
//! memory: the program, what it needs, and what that needs, are never closed; nor are this library,
//! objects that say so (`DF_1_NODELETE`), and what those need.
//!
//! Key function: [`holders`]. Neighbours: `loaded`, `dynamic`, `own`. Source: `dlclose(3)`; ELF gABI,
//! "Shared Object Dependencies".

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use crate::addr::RxAddr;
use crate::cache;
use crate::dynamic::Needs;
use crate::error::TextError;
use crate::loaded::Loaded;
use crate::namespaces::Namespace;
use crate::own::{Own, own_object};
use crate::proc_maps::ProcMaps;
use crate::state;

/// What holds an address.
#[derive(Clone, Eq, PartialEq, Debug)]
pub enum Holder {
    /// No object, or one that is never closed.
    Stays,
    /// An object that may be closed.
    MayGo {
        /// Its name, as `dlopen` knows it.
        name: CString,
        /// Where it lies.
        base: u64,
        /// The namespace in which it has that name.
        namespace: Namespace,
    },
}

/// The loaded objects, and which of them stay.
#[derive(Clone, Debug)]
pub(crate) struct Staying {
    objects: Vec<Loaded>,
    stays: Vec<bool>,
}

/// What holds each of `addrs`. The dynamic linker's lock for constructors is not taken.
///
/// # Errors
/// [`TextError::Map`]: the handlers of forks cannot be registered.
pub fn holders(addrs: impl Iterator<Item = RxAddr>) -> Result<Vec<Holder>, TextError> {
    state::watch_forks()?;
    let objects = Loaded::all();
    // Nothing is allocated or freed under the cache's lock: a hook of the allocator may come here.
    let known = cache::lock().staying.clone();
    let known = known.filter(|known| known.objects == objects);
    let staying = match known {
        Some(known) => known,
        None => {
            let staying = Arc::new(Staying::read()?);
            let before = cache::lock().staying.replace(staying.clone());
            drop(before);
            staying
        }
    };
    Ok(addrs.map(|addr| staying.holder(addr)).collect())
}

impl Staying {
    fn read() -> Result<Self, TextError> {
        let (mut objects, mut needs) = (Vec::new(), Vec::new());
        let mut maps = None;
        // In here nothing is closed, so what is read stays mapped.
        Loaded::each(&mut |object| {
            let maps = maps.get_or_insert_with(ProcMaps::read);
            let maps = maps.as_ref().ok();
            let read = maps.and_then(|maps| Needs::read(&object, maps));
            needs.push(match read {
                // Names mean others there, so what is needed is not known to stay.
                Some(read) if object.namespace.is_other() => Some(Needs {
                    is_kept: read.is_kept,
                    ..Needs::default()
                }),
                read => read,
            });
            objects.push(object);
        });
        if let Some(Err(e)) = maps {
            return Err(e);
        }
        let needs: Vec<Needs> = needs.into_iter().map(Option::unwrap_or_default).collect();
        let here = RxAddr::new(own_object as *const () as u64);
        let is_own = own_object().is_ok_and(|own| own == Own::Library);
        let is_root = |(object, needs): (&Loaded, &Needs)| {
            object.is_main() || needs.is_kept || is_own && object.segment_of(here).is_some()
        };
        let roots = objects.iter().zip(&needs).map(is_root).collect();
        let stays = closure(&needs, roots);
        Ok(Self { objects, stays })
    }

    fn holder(&self, addr: RxAddr) -> Holder {
        let mut all = self.objects.iter().zip(&self.stays);
        match all.find(|(object, _)| object.segment_of(addr).is_some()) {
            Some((object, false)) => Holder::MayGo {
                // A name that the dynamic linker gave ends at its first NUL.
                name: CString::new(object.path.as_os_str().as_bytes()).unwrap_or_default(),
                base: object.base,
                namespace: object.namespace,
            },
            _ => Holder::Stays,
        }
    }
}

/// What `stays` needs stays too. A name means the first object of that name, as it does to the
/// dynamic linker; one that is found in other ways (by a path) is not known to stay.
fn closure(needs: &[Needs], mut stays: Vec<bool>) -> Vec<bool> {
    let mut queue: Vec<usize> = (0..needs.len()).filter(|i| stays[*i]).collect();
    while let Some(i) = queue.pop() {
        for name in &needs[i].needed {
            let found = needs.iter().position(|n| n.soname.as_ref() == Some(name));
            if let Some(found) = found.filter(|found| !stays[*found]) {
                stays[found] = true;
                queue.push(found);
            }
        }
    }
    stays
}

#[cfg(test)]
mod tests {
    use super::*;

    fn needs(soname: &str, needed: &[&str]) -> Needs {
        Needs {
            soname: Some(soname.into()),
            needed: needed.iter().map(|n| (*n).into()).collect(),
            is_kept: false,
        }
    }

    #[test]
    fn what_is_needed_by_what_stays_stays() {
        let all = [
            needs("", &["a", "missing"]),
            needs("a", &["b"]),
            needs("b", &["a"]),
            needs("plugin", &["b", "c"]),
            needs("c", &[]),
            needs("a", &[]),
        ];
        let roots = vec![true, false, false, false, false, false];
        let want = [true, true, true, false, false, false];
        assert_eq!(closure(&all, roots), want);
    }

    #[test]
    fn the_program_and_what_it_needs_stay() {
        let own = what_is_needed_by_what_stays_stays as *const () as u64;
        let libc = libc::getppid as *const () as u64;
        let none = 16;
        let all = [own, libc, none].map(RxAddr::new);
        assert_eq!(
            holders(all.into_iter()).unwrap(),
            [Holder::Stays, Holder::Stays, Holder::Stays]
        );
    }
}
