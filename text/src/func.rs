//! Functions of this process: which one is at an address, where it ends, and where one is that
//! has a name.
//!
//! Works for stripped objects, and for text that carries pads and detours: nothing here depends
//! on the bytes of functions. (The bytes of stubs are looked at; nobody hooks those.)
//!
//! Key types: [`Func`], [`find_symbol`]. Neighbours: `catalog` knows the functions of an object,
//! `stub` what leads to them, `question` asks the dynamic linker. Source: ELF gABI, chapter 5;
//! `dlsym(3)`; GCC manual, function attribute `ifunc`.

use std::path::Path;
use std::sync::Arc;

use crate::addr::RxAddr;
use crate::catalog::{At, Catalog, Entry, SymbolKind};
use crate::dynamic::{self, Slot};
use crate::error::TextError;
use crate::loaded::Loaded;
use crate::look::Look;
use crate::names::c_string;
use crate::object;
use crate::pad;
use crate::proc_maps::ProcMaps;
use crate::question::{Lookup, Question, Scopes};
use crate::span::Span;
use crate::state;
use crate::stub::{self, STUB_BYTES};

pub use crate::names::{find_symbol, look_symbol};

/// Stubs may lead to stubs: of a library to that of a program, which takes its address.
const MAX_STUBS: usize = 8;

/// A function, or a part of one.
#[derive(Clone, Eq, PartialEq, Debug)]
pub struct Func {
    /// Its first instruction.
    pub entry: RxAddr,
    /// Its length in bytes, up to the next function at most; `None` when nothing says it
    /// (assembly without symbols' sizes, code that was made at run time).
    pub len_bytes: Option<usize>,
    /// Its name, as it is best known: exported before local, without underscores before with.
    pub name: Option<Box<str>>,
    /// The file of the object that it is part of; `None` for code that was made at run time.
    pub object: Option<Arc<Path>>,
    /// How it is entered.
    pub kind: FuncKind,
    /// How it gets its arguments.
    pub convention: Convention,
}

/// How code is entered.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug)]
pub enum FuncKind {
    /// By calls.
    Called,
    /// By jumps from the function that it is a part of (`.cold`), or by return from a signal
    /// handler.
    Part,
}

/// How a function gets its arguments.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug)]
pub enum Convention {
    /// In integer and floating-point registers, and on the stack.
    Standard,
    /// In vector registers too (`STO_RISCV_VARIANT_CC`).
    Variant,
}

impl Func {
    /// The function that runs when `addr` is called. Stubs of procedure linkage tables, bound or
    /// not, and other names of a function lead to it. Of code that belongs to no object (made at
    /// run time) nothing is known but that it can be executed.
    ///
    /// # Errors
    /// [`TextError::Misaligned`], [`TextError::Unmapped`], [`TextError::NotExecutable`];
    /// [`TextError::NotAFunction`] inside of one, [`TextError::FunctionPart`],
    /// [`TextError::DataInText`]; [`TextError::UnresolvedStub`]; [`TextError::VariantCc`].
    pub fn find(addr: RxAddr) -> Result<Self, TextError> {
        let mut at = addr;
        for _ in 0..MAX_STUBS {
            match Look::now()?.func(at)? {
                Lookup::Known(func) => return Ok(func),
                Lookup::Ask(question) => at = question.ask()?,
            }
        }
        Err(too_many_stubs(addr))
    }

    /// Every function of the object that holds `addr`, and every part of one, in order of
    /// address.
    ///
    /// # Errors
    /// [`TextError::Unmapped`] when no object holds `addr`.
    pub fn all_in(addr: RxAddr) -> Result<Vec<Self>, TextError> {
        state::watch_forks()?;
        let loaded = Loaded::find(addr).ok_or(TextError::Unmapped { addr })?;
        let catalog = Catalog::of(&loaded)?;
        let entries = catalog.entries.iter();
        Ok(entries.map(|entry| Self::new(entry, &catalog)).collect())
    }

    fn new(entry: &Entry, catalog: &Catalog) -> Self {
        Self {
            entry: entry.start,
            len_bytes: entry.len_bytes,
            name: catalog.name(entry).map(Into::into),
            object: Some(Arc::clone(&catalog.path)),
            kind: entry.kind,
            convention: entry.conv,
        }
    }

    fn anonymous(entry: RxAddr) -> Self {
        Self {
            entry,
            len_bytes: None,
            name: None,
            object: None,
            kind: FuncKind::Called,
            convention: Convention::Standard,
        }
    }

    fn at(addr: RxAddr, catalog: &Catalog) -> Result<Self, TextError> {
        let name_of = |entry| catalog.name(entry).map(Into::into);
        match catalog.at(addr) {
            At::Start(entry) if entry.kind == FuncKind::Part => Err(TextError::FunctionPart {
                addr,
                name: name_of(entry),
            }),
            At::Start(entry) if entry.conv == Convention::Variant => Err(TextError::VariantCc {
                symbol: name_of(entry).unwrap_or_default(),
            }),
            At::Start(entry) => Ok(Self::new(entry, catalog)),
            At::Inside(entry) => Err(TextError::NotAFunction {
                addr,
                func: entry.start,
                name: name_of(entry),
            }),
            At::Nothing => Err(TextError::DataInText {
                addr,
                object: (*catalog.path).into(),
            }),
        }
    }
}

/// Whether, as far as is known already, a function that can be hooked starts at `addr`, which is no
/// stub: nothing but its first instructions is read. `false` says nothing.
#[must_use]
pub fn is_entry(addr: RxAddr) -> bool {
    let Some(loaded) = Loaded::find(addr) else {
        return false;
    };
    let (Some(catalog), Some(object)) = (Catalog::known(&loaded), object::known(&loaded)) else {
        return false;
    };
    let is_function = match catalog.at(addr) {
        At::Start(entry) => {
            entry.kind == FuncKind::Called
                && entry.conv == Convention::Standard
                && !entry.may_be_stub
        }
        At::Inside(_) | At::Nothing => false,
    };
    is_function && pad::is_untaken(&object, addr)
}

/// What is at `addr`: see [`Look::func`].
pub(crate) fn find_by(addr: RxAddr, maps: &ProcMaps) -> Result<Lookup<Func>, TextError> {
    let mut at = addr;
    for _ in 0..MAX_STUBS {
        maps.check_executable(at)?;
        let Some(loaded) = Loaded::find(at) else {
            return Ok(Lookup::Known(Func::anonymous(at)));
        };
        let catalog = Catalog::of(&loaded)?;
        match target_of(at, &catalog, &loaded, maps)? {
            Some(Lookup::Known(target)) => at = target,
            Some(Lookup::Ask(question)) => return Ok(Lookup::Ask(question)),
            None => return Func::at(at, &catalog).map(Lookup::Known),
        }
    }
    Err(too_many_stubs(addr))
}

fn too_many_stubs(addr: RxAddr) -> TextError {
    TextError::UnresolvedStub {
        addr,
        symbol: "another stub".into(),
    }
}

/// Where the stub at `addr` leads; `None` when there is none.
fn target_of(
    addr: RxAddr,
    catalog: &Catalog,
    loaded: &Arc<Loaded>,
    maps: &ProcMaps,
) -> Result<Option<Lookup<RxAddr>>, TextError> {
    let Some(slot) = words_at(addr, maps).and_then(|words| stub::slot_of(addr, words)) else {
        return Ok(None);
    };
    let Some(what) = catalog.slots.get(&slot.get()) else {
        return Ok(None);
    };
    let bound = dynamic::load(slot, maps).filter(|target| {
        let asks = words_at(*target, maps).is_some_and(stub::is_resolver);
        target.get() != 0 && !asks
    });
    match bound {
        Some(target) => Ok(Some(Lookup::Known(target))),
        None => bind(addr, *what, catalog, loaded).map(|q| Some(Lookup::Ask(q))),
    }
}

/// What says what the dynamic linker will put into the slot of the stub at `addr`.
fn bind(
    addr: RxAddr,
    slot: Slot,
    catalog: &Catalog,
    loaded: &Arc<Loaded>,
) -> Result<Question, TextError> {
    let symbol = match slot {
        Slot::Symbol(i) => catalog.symbols.get(i as usize),
        Slot::Chosen(_) => None,
    };
    let otherwise = TextError::UnresolvedStub {
        addr,
        symbol: symbol.map_or_else(|| "an indirect function".into(), |s| s.name.clone()),
    };
    let Some((symbol, name)) = symbol.and_then(|s| Some((s, c_string(&s.name)?))) else {
        return Err(otherwise);
    };
    Ok(Question {
        object: Arc::clone(loaded),
        scopes: Scopes::GlobalThenObject,
        name,
        version: symbol.version.as_deref().and_then(c_string),
        otherwise,
    })
}

/// As many words as a stub has.
fn words_at(addr: RxAddr, maps: &ProcMaps) -> Option<[u32; 4]> {
    let at = addr.get();
    let span = Span::at(at, STUB_BYTES, maps)?;
    Some([
        span.u32(at)?,
        span.u32(at + 4)?,
        span.u32(at + 8)?,
        span.u32(at + 12)?,
    ])
}

/// Whether a symbol of this kind, at this address, is a function.
pub(crate) fn is_code(kind: SymbolKind, addr: RxAddr, catalog: &Catalog) -> bool {
    match kind {
        SymbolKind::Func | SymbolKind::Ifunc => true,
        SymbolKind::Unknown => matches!(catalog.at(addr), At::Start(_)),
        SymbolKind::Data | SymbolKind::Undefined => false,
    }
}
