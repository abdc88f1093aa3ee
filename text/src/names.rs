//! Functions by their names.
//!
//! Objects are asked in the order in which they were loaded, which is that of the dynamic linker:
//! first for what they export, then for what only their files name. An object is called by its
//! file's name, or by the beginning of it up to a `.` or a `-`: `libz` and `libz.so` are
//! `libz.so.1`, but `libc` is not `libcrypto.so.3`.
//!
//! Key function: [`find_symbol`]. Neighbours: `catalog` knows the symbols, `question` asks the
//! dynamic linker what a function with several implementations is. Source: `ld.so(8)`; ELF gABI,
//! "Shared Object Dependencies".

use std::ffi::CString;
use std::path::Path;
use std::sync::Arc;

use crate::addr::RxAddr;
use crate::catalog::{Catalog, Reach, Symbol, SymbolKind};
use crate::dynamic::{self, Slot};
use crate::error::TextError;
use crate::func::is_code;
use crate::loaded::Loaded;
use crate::proc_maps::ProcMaps;
use crate::question::{Lookup, Question, Scopes};
use crate::state;

/// The function `name` of the loaded object that is called `object`: by its file's name
/// (`libz.so.1`), the beginning of it (`libz`), or the end of its path (`lib/libz.so.1`). Without
/// one, of the first object that has it, in the dynamic linker's order.
///
/// Of a function with several versions the default one is found; of one with several
/// implementations, the one that was chosen for this machine.
///
/// The dynamic linker may be asked (`dlopen`, `dlsym`), whose lock glibc does not free in the child
/// of a `fork`: a child that was made while another thread opened a library must not come here.
///
/// # Errors
/// [`TextError::ObjectNotLoaded`], [`TextError::UnknownSymbol`], [`TextError::SymbolIsData`],
/// [`TextError::SymbolUndefined`], [`TextError::AmbiguousSymbol`], [`TextError::UnknownChoice`].
pub fn find_symbol(object: Option<&str>, name: &str) -> Result<RxAddr, TextError> {
    match look_symbol(object, name)? {
        Lookup::Known(found) => Ok(found),
        Lookup::Ask(question) => question.ask(),
    }
}

/// The same, without asking the dynamic linker which of several implementations it has chosen. For
/// callers who hold a lock.
///
/// # Errors
/// As [`find_symbol`].
pub fn look_symbol(object: Option<&str>, name: &str) -> Result<Lookup<RxAddr>, TextError> {
    state::watch_forks()?;
    let all = Loaded::all();
    let meant = match object {
        Some(object) => called(&all, object)?,
        None => all.clone(),
    };
    if let (Some(object), true) = (object, meant.is_empty()) {
        return Err(TextError::ObjectNotLoaded {
            object: object.into(),
            loaded: all.iter().map(|o| file_name(&o.real_path())).collect(),
        });
    }
    // One after the other: most of what is loaded need not be read.
    for reach in [Reach::Exported, Reach::Local] {
        for loaded in &meant {
            let catalog = Catalog::of(loaded)?;
            if let Some(symbol) = defined(&catalog, name, reach)? {
                return function(symbol, loaded, &catalog);
            }
        }
    }
    let meant: Result<Vec<_>, _> = meant.iter().map(Catalog::of).collect();
    Err(not_found(object, name, &meant?))
}

/// A name for the dynamic linker.
pub(crate) fn c_string(name: &str) -> Option<CString> {
    CString::new(name).ok()
}

/// Those of `all` that are called `object`.
fn called(all: &[Arc<Loaded>], object: &str) -> Result<Vec<Arc<Loaded>>, TextError> {
    let mut maps = None;
    let mut called = Vec::new();
    for loaded in all {
        if !is_path_called(&loaded.real_path(), object) {
            if object.contains('/') {
                continue;
            }
            let maps = match &mut maps {
                Some(maps) => maps,
                none => none.insert(ProcMaps::read()?),
            };
            let soname = dynamic::soname(loaded, maps);
            if !soname.is_some_and(|name| begins_with(&name, object)) {
                continue;
            }
        }
        called.push(Arc::clone(loaded));
    }
    Ok(called)
}

fn is_path_called(path: &Path, object: &str) -> bool {
    if object.contains('/') {
        return path.ends_with(object.trim_start_matches('/'))
            && (!object.starts_with('/') || path.as_os_str() == object);
    }
    begins_with(&file_name(path), object)
}

fn begins_with(name: &str, object: &str) -> bool {
    let rest = name.strip_prefix(object);
    !object.is_empty() && rest.is_some_and(|r| r.is_empty() || r.starts_with(['.', '-']))
}

/// The last component of a path.
pub(crate) fn file_name(path: &Path) -> Box<str> {
    let name = path.file_name().unwrap_or(path.as_os_str());
    name.to_string_lossy().into()
}

/// The symbol of this name that is defined; functions of the same name in several files of an
/// object are not one.
fn defined<'a>(
    catalog: &'a Catalog,
    name: &'a str,
    reach: Reach,
) -> Result<Option<&'a Symbol>, TextError> {
    let is_it = |s: &&Symbol| s.reach == reach && s.kind != SymbolKind::Undefined;
    let mut found = catalog.named(name).filter(is_it);
    let Some(first) = found.next() else {
        return Ok(None);
    };
    if found.any(|other| other.addr != first.addr) {
        return Err(TextError::AmbiguousSymbol {
            symbol: name.into(),
            object: catalog.file_name(),
        });
    }
    Ok(Some(first))
}

fn function(
    symbol: &Symbol,
    loaded: &Arc<Loaded>,
    catalog: &Catalog,
) -> Result<Lookup<RxAddr>, TextError> {
    if !is_code(symbol.kind, symbol.addr, catalog) {
        return Err(TextError::SymbolIsData {
            symbol: symbol.name.clone(),
            object: catalog.file_name(),
        });
    }
    match symbol.kind {
        SymbolKind::Ifunc => chosen(symbol, loaded, catalog, &ProcMaps::read()?),
        _ => Ok(Lookup::Known(symbol.addr)),
    }
}

/// What an indirect function has chosen: a slot holds it if the object calls the function itself;
/// else the dynamic linker is to be asked, which knows those that are exported.
fn chosen(
    symbol: &Symbol,
    loaded: &Arc<Loaded>,
    catalog: &Catalog,
    maps: &ProcMaps,
) -> Result<Lookup<RxAddr>, TextError> {
    let otherwise = TextError::UnknownChoice {
        symbol: symbol.name.clone(),
        object: catalog.file_name(),
    };
    let is_its = |(_, what): &(&u64, &Slot)| **what == Slot::Chosen(symbol.addr);
    if let Some((slot, _)) = catalog.slots.iter().find(is_its) {
        let found = dynamic::load(RxAddr::new(*slot), maps);
        let found = found.filter(|found| loaded.is_executed(*found));
        return found.map(Lookup::Known).ok_or(otherwise);
    }
    match c_string(&symbol.name) {
        Some(name) if symbol.reach == Reach::Exported => Ok(Lookup::Ask(Question {
            object: Arc::clone(loaded),
            scopes: Scopes::Object,
            name,
            version: None,
            otherwise,
        })),
        _ => Err(otherwise),
    }
}

fn not_found(object: Option<&str>, name: &str, meant: &[Arc<Catalog>]) -> TextError {
    let is_used = |c: &Catalog| c.named(name).next().is_some();
    if let (Some(_), Some(user)) = (object, meant.iter().find(|c| is_used(c))) {
        return TextError::SymbolUndefined {
            symbol: name.into(),
            object: user.file_name(),
        };
    }
    let known = meant.iter().flat_map(|catalog| {
        let is_named = |s: &&Symbol| is_code(s.kind, s.addr, catalog);
        catalog.symbols.iter().filter(is_named).map(|s| &*s.name)
    });
    TextError::UnknownSymbol {
        symbol: name.into(),
        object: object.map(Into::into),
        nearest: nearest(name, known).map(Into::into),
    }
}

/// The most similar name, if a third of it is wrong at most.
fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let most = name.len().div_ceil(3);
    let is_near = |other: &&str| other.len().abs_diff(name.len()) <= most;
    known
        .filter(is_near)
        .map(|other| (distance(name.as_bytes(), other.as_bytes()), other))
        .filter(|(distance, _)| *distance <= most)
        .min()
        .map(|(_, other)| other)
}

/// How many letters must be added, left out or changed to make one of the other.
fn distance(one: &[u8], other: &[u8]) -> usize {
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (i, a) in one.iter().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, b) in other.iter().enumerate() {
            let change = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = change.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn similar_names_are_found() {
        let known = || ["deflate", "inflate", "deflateInit_", "crc32"].into_iter();
        for (name, want) in [
            ("deflat", Some("deflate")),
            ("inflaet", Some("inflate")),
            ("crc23", Some("crc32")),
            ("reflate", Some("deflate")),
            ("uncompress", None),
            ("", None),
        ] {
            assert_eq!(nearest(name, known()), want, "{name}");
        }
    }

    #[test]
    fn every_symbol_is_found_by_its_name() {
        for loaded in Loaded::all() {
            let catalog = Catalog::of(&loaded).unwrap();
            for (i, symbol) in catalog.symbols.iter().enumerate().step_by(7) {
                let mut named = catalog.named(&symbol.name);
                let is_it = |s: &Symbol| std::ptr::eq(s, &catalog.symbols[i]);
                assert!(named.any(is_it), "{}", symbol.name);
            }
            assert!(catalog.named("no such name").next().is_none());
        }
    }

    #[test]
    fn distances_count_letters() {
        for (one, other, want) in [
            ("", "", 0),
            ("abc", "", 3),
            ("", "ab", 2),
            ("kitten", "sitting", 3),
            ("ab", "ba", 2),
        ] {
            assert_eq!(distance(one.as_bytes(), other.as_bytes()), want);
        }
    }
}
