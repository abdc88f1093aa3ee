//! The functions of a loaded object: what unwinders are told of, joined with symbols.
//!
//! | source | says | is there |
//! | --- | --- | --- |
//! | `.eh_frame` | start and length | in memory, for all that compilers made |
//! | dynamic symbols | names; lengths of what assemblers made | in memory, for what is exported |
//! | `.symtab` | the same of all functions | in the file, unless it is stripped |
//!
//! Where they disagree: a symbol with a length holds all FDEs inside it, as assemblers write
//! several for one function. A function ends where the next one starts, whatever its length says:
//! code in which another function starts must not be overwritten as if nobody came there. A
//! stretch that nobody calls is kept, as a part ([`FuncKind::Part`]).
//!
//! Key types: [`Catalog`], [`Entry`]. Neighbours: `eh_frame`, `dynamic` and `object` read the
//! sources, `cache` keeps what is made of them, `func` answers with it.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use object::{Object as _, ObjectSymbol, SymbolFlags};

use crate::addr::RxAddr;
use crate::cache;
use crate::caller::DirectReturns;
use crate::dynamic::{self, Dynamic, RawSymbol, Slot};
use crate::eh_frame::{self, Fde, Start};
use crate::error::TextError;
use crate::file;
use crate::func::{Convention, FuncKind};
use crate::loaded::Loaded;
use crate::object::{STO_RISCV_VARIANT_CC, with_file};
use crate::proc_maps::ProcMaps;

const STT_NOTYPE: u8 = 0;
const STT_FUNC: u8 = 2;
const STT_TLS: u8 = 6;
const STT_GNU_IFUNC: u8 = 10;
const STB_LOCAL: u8 = 0;
const SHN_UNDEF: u16 = 0;
const SHN_ABS: u16 = 0xfff1;

/// What a symbol stands for.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) enum SymbolKind {
    /// A function.
    Func,
    /// A function that chooses another one when the object is loaded.
    Ifunc,
    /// A place of which is not said what is there.
    Unknown,
    /// Data, of the process or of a thread.
    Data,
    /// What another object defines.
    Undefined,
}

/// Who can use a symbol.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) enum Reach {
    /// Every object.
    Exported,
    /// Objects that were linked with an older version of this one.
    OldVersion,
    /// This object.
    Local,
}

/// A symbol of an object.
#[derive(Clone, Debug)]
pub(crate) struct Symbol {
    pub(crate) name: Box<str>,
    pub(crate) addr: RxAddr,
    pub(crate) kind: SymbolKind,
    pub(crate) reach: Reach,
    size: u64,
    conv: Convention,
    /// The version that is asked for, of one that is undefined.
    pub(crate) version: Option<Box<str>>,
}

/// A function, or a part of one.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) struct Entry {
    pub(crate) start: RxAddr,
    pub(crate) len_bytes: Option<usize>,
    pub(crate) kind: FuncKind,
    pub(crate) conv: Convention,
    /// Which symbol names it.
    symbol: Option<usize>,
}

/// What is at an address.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) enum At<'a> {
    /// A function or a part starts here.
    Start(&'a Entry),
    /// One has started before and does not end before.
    Inside(&'a Entry),
    /// Nothing that is known to be code.
    Nothing,
}

/// What is known of the functions of a loaded object.
#[derive(Debug)]
pub(crate) struct Catalog {
    loaded: Loaded,
    pub(crate) path: Arc<Path>,
    pub(crate) soname: Option<Box<str>>,
    /// The dynamic ones by index, then the others.
    pub(crate) symbols: Vec<Symbol>,
    pub(crate) slots: BTreeMap<u64, Slot>,
    /// In order of address, one for each.
    pub(crate) entries: Vec<Entry>,
    pub(crate) direct: DirectReturns,
}

impl Catalog {
    /// The catalog of an object, read when it is asked for first.
    ///
    /// # Errors
    /// [`TextError::Map`] when the mappings of this process cannot be read.
    pub(crate) fn of(loaded: &Loaded) -> Result<Arc<Self>, TextError> {
        let is_it = |c: &&Arc<Self>| c.loaded == *loaded;
        if let Some(known) = cache::lock().catalogs.iter().find(is_it) {
            return Ok(Arc::clone(known));
        }
        // Mappings that were read earlier may lack those of the object.
        let catalog = Arc::new(Self::read(loaded, &ProcMaps::read()?));
        let catalogs = &mut cache::lock().catalogs;
        catalogs.retain(|c| c.loaded.base != loaded.base);
        catalogs.push(Arc::clone(&catalog));
        Ok(catalog)
    }

    fn read(loaded: &Loaded, maps: &ProcMaps) -> Self {
        let dynamic = Dynamic::read(loaded, maps);
        let mut symbols: Vec<Symbol> = dynamic
            .symbols
            .into_iter()
            .map(|raw| Symbol::new(raw, loaded, Reach::Exported))
            .collect();
        // Without a file, or with a stripped one, what is loaded must do.
        let local = local_symbols(loaded, maps).unwrap_or_default();
        add_local(&mut symbols, local);
        let path = if loaded.is_main() {
            std::fs::read_link(&loaded.path).unwrap_or_else(|_| loaded.path.clone())
        } else {
            loaded.path.clone()
        };
        let mut catalog = Self {
            path: path.into(),
            soname: dynamic.soname,
            entries: join(&symbols, &eh_frame::read(loaded, maps), loaded),
            direct: DirectReturns::of(&symbols),
            symbols,
            slots: dynamic.slots,
            loaded: loaded.clone(),
        };
        catalog.name_chosen(maps);
        catalog
    }

    /// What is at an address.
    pub(crate) fn at(&self, addr: RxAddr) -> At<'_> {
        let after = self.entries.partition_point(|e| e.start <= addr);
        let Some(entry) = after.checked_sub(1).and_then(|i| self.entries.get(i)) else {
            return At::Nothing;
        };
        let off = addr.get() - entry.start.get();
        match entry.len_bytes {
            _ if off == 0 => At::Start(entry),
            Some(len_bytes) if off >= len_bytes as u64 => At::Nothing,
            // One without a length does not end before the next one, as far as anybody knows.
            _ if self.loaded.is_executed(addr) => At::Inside(entry),
            _ => At::Nothing,
        }
    }

    /// The name of a function.
    pub(crate) fn name(&self, entry: &Entry) -> Option<&str> {
        entry.symbol.map(|i| &*self.symbols[i].name)
    }

    /// The last component of its path.
    pub(crate) fn file_name(&self) -> String {
        self.path
            .file_name()
            .unwrap_or(self.path.as_os_str())
            .to_string_lossy()
            .into()
    }

    /// Functions that others have chosen bear their names, unless they have one of their own.
    fn name_chosen(&mut self, maps: &ProcMaps) {
        for (slot, what) in &self.slots {
            let is_chooser = |s: &Symbol| s.kind == SymbolKind::Ifunc && s.reach == Reach::Exported;
            let chooser = match *what {
                Slot::Symbol(i) => Some(i as usize),
                Slot::Chosen(by) => self
                    .symbols
                    .iter()
                    .position(|s| s.addr == by && is_chooser(s)),
            };
            let Some(chooser) = chooser.filter(|i| self.symbols.get(*i).is_some_and(is_chooser))
            else {
                continue;
            };
            let Some(chosen) = dynamic::load(RxAddr::new(*slot), maps) else {
                continue;
            };
            let found = self.entries.binary_search_by_key(&chosen, |e| e.start);
            if let Ok(i) = found {
                self.entries[i].symbol.get_or_insert(chooser);
            }
        }
    }
}

impl Symbol {
    fn new(raw: RawSymbol, loaded: &Loaded, reach: Reach) -> Self {
        let addr = RxAddr::new(loaded.base.wrapping_add(raw.value));
        let kind = match (raw.section, raw.kind) {
            (SHN_UNDEF, _) => SymbolKind::Undefined,
            (SHN_ABS, _) => SymbolKind::Data,
            (_, STT_FUNC) if loaded.is_executed(addr) => SymbolKind::Func,
            (_, STT_GNU_IFUNC) if loaded.is_executed(addr) => SymbolKind::Ifunc,
            (_, STT_NOTYPE) if loaded.is_executed(addr) => SymbolKind::Unknown,
            _ => SymbolKind::Data,
        };
        let conv = if raw.other & STO_RISCV_VARIANT_CC == 0 {
            Convention::Standard
        } else {
            Convention::Variant
        };
        let reach = match raw.binding {
            STB_LOCAL => Reach::Local,
            _ if raw.is_old => Reach::OldVersion,
            _ => reach,
        };
        Self {
            name: raw.name,
            addr,
            kind,
            reach,
            size: raw.size,
            conv,
            version: raw.version,
        }
    }

    /// Whether a compiler has moved it out of another function: `f.cold`, `f.cold.1`.
    fn is_cold(&self) -> bool {
        self.name.ends_with(".cold") || self.name.contains(".cold.")
    }

    /// The less, the better a name it is for its function.
    fn rank(&self) -> (u8, usize, usize, &str) {
        let reach = match (self.kind, self.reach) {
            // It names what it chooses.
            (SymbolKind::Ifunc, _) => 4,
            (SymbolKind::Unknown, _) => 3,
            (_, Reach::Exported) => 0,
            (_, Reach::OldVersion) => 1,
            (_, Reach::Local) => 2,
        };
        let underscores = self.name.len() - self.name.trim_start_matches('_').len();
        (reach, underscores, self.name.len(), &self.name)
    }
}

/// The symbols of the file.
fn local_symbols(loaded: &Loaded, maps: &ProcMaps) -> Result<Vec<Symbol>, TextError> {
    let file = file::open(loaded, maps)?;
    with_file(loaded, &file, maps, |elf| {
        let symbols = elf.symbols().filter_map(|symbol| {
            let SymbolFlags::Elf {
                st_info, st_other, ..
            } = symbol.flags()
            else {
                return None;
            };
            let name = String::from_utf8_lossy(symbol.name_bytes().ok()?).into_owned();
            let (kind, binding) = (st_info.0 & 0xf, st_info.0 >> 4);
            // Versions stand behind an `@`.
            let name = name.split('@').next()?;
            let is_thing = matches!(kind, STT_NOTYPE..=STT_FUNC | STT_TLS | STT_GNU_IFUNC);
            // `$x` and `$d` say where code and data begin, `.L…` are an assembler's own.
            let is_mark = name.is_empty() || name.starts_with('$') || name.starts_with(".L");
            if symbol.is_undefined() || is_mark || !is_thing {
                return None;
            }
            let raw = RawSymbol {
                name: name.into(),
                value: symbol.address(),
                size: symbol.size(),
                kind,
                binding,
                other: st_other.0,
                section: symbol.section_index().map_or(SHN_ABS, |_| 1),
                is_old: false,
                version: None,
            };
            Some(Symbol::new(raw, loaded, Reach::Local))
        });
        Ok(symbols.collect())
    })
}

/// Adds those that are not known yet.
fn add_local(symbols: &mut Vec<Symbol>, local: Vec<Symbol>) {
    let known: HashSet<(RxAddr, Box<str>)> =
        symbols.iter().map(|s| (s.addr, s.name.clone())).collect();
    let is_new = |s: &Symbol| !known.contains(&(s.addr, s.name.clone()));
    symbols.extend(local.into_iter().filter(is_new));
}

/// What is known of the code from one address on.
#[derive(Default)]
struct Known {
    /// The end of the longest stretch that starts here; 0 without one.
    end: u64,
    /// That of the longest function.
    symbol_end: u64,
    fde: Option<Start>,
    symbol: Option<usize>,
}

/// The functions that symbols and FDEs speak of.
fn join(symbols: &[Symbol], fdes: &[Fde], loaded: &Loaded) -> Vec<Entry> {
    let mut known: BTreeMap<u64, Known> = BTreeMap::new();
    for fde in fdes.iter().filter(|f| loaded.is_executed(f.range.start)) {
        let at = known.entry(fde.range.start.get()).or_default();
        at.end = at.end.max(fde.range.end().get());
        at.fde = Some(match at.fde {
            Some(Start::Called) => Start::Called,
            _ => fde.start,
        });
    }
    for (i, symbol) in symbols.iter().enumerate() {
        let start = symbol.addr.get();
        let at = match symbol.kind {
            SymbolKind::Func | SymbolKind::Ifunc => known.entry(start).or_default(),
            // What is there is said by an FDE.
            SymbolKind::Unknown => match known.get_mut(&start) {
                Some(at) => at,
                None => continue,
            },
            SymbolKind::Data | SymbolKind::Undefined => continue,
        };
        let end = start.saturating_add(symbol.size);
        at.end = at.end.max(end);
        at.symbol_end = at.symbol_end.max(end);
        if at
            .symbol
            .is_none_or(|than| symbol.rank() < symbols[than].rank())
        {
            at.symbol = Some(i);
        }
    }
    entries(&known, symbols)
}

/// Makes entries of it: parts of assembled functions go, lengths are found and cut.
fn entries(known: &BTreeMap<u64, Known>, symbols: &[Symbol]) -> Vec<Entry> {
    let (mut covered, mut in_symbol) = (0, 0);
    let mut entries: Vec<Entry> = Vec::new();
    for (start, at) in known {
        let is_inside = at.symbol.is_none() && *start < in_symbol;
        covered = covered.max(at.end);
        in_symbol = in_symbol.max(at.symbol_end);
        if is_inside {
            continue;
        }
        if let Some(before) = entries.last_mut() {
            let room = (start - before.start.get()) as usize;
            before.len_bytes = before.len_bytes.map(|len| len.min(room));
        }
        // One without a length of its own lies in what covers it, or has none.
        let end = if at.end > *start { at.end } else { covered };
        entries.push(Entry {
            start: RxAddr::new(*start),
            len_bytes: (end > *start).then(|| (end - start) as usize),
            kind: kind_of(at, symbols),
            conv: at.symbol.map_or(Convention::Standard, |i| symbols[i].conv),
            // The name of one that chooses is that of what it has chosen.
            symbol: at.symbol.filter(|i| symbols[*i].kind != SymbolKind::Ifunc),
        });
    }
    entries
}

fn kind_of(at: &Known, symbols: &[Symbol]) -> FuncKind {
    let symbol = at.symbol.map(|i| &symbols[i]);
    let is_exported = symbol.is_some_and(|s| s.reach != Reach::Local);
    let is_part = match at.fde {
        Some(Start::Signal) => true,
        Some(Start::InFrame) => !is_exported,
        Some(Start::Called) | None => symbol.is_some_and(Symbol::is_cold),
    };
    if is_part {
        FuncKind::Part
    } else {
        FuncKind::Called
    }
}
