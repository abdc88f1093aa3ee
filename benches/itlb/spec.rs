//! What TLBs a core has, from a small text file.
//!
//! ```text
//! # What follows a # is a comment.
//! core SiFive U74
//! level ITLB entries=40 ways=full pages=4K,2M,1G replacement=lru
//! level UTLB entries=512 ways=1 pages=4K,2M,1G replacement=lru
//! ```
//!
//! One line a level, the one next to the hart first. `ways=full` is fully associative, `ways=1`
//! direct-mapped; `pages` are the sizes that an entry can hold (a larger page is held in pieces);
//! `replacement` is `lru`, `fifo` or `random`.
//!
//! Key types: [`TlbSpec`], [`SpecError`]. Neighbour: `tlb` is the model of it.

use std::fmt;

use super::tlb::PageSize;

/// The TLBs that translate a core's instruction fetches.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct TlbSpec {
    pub(crate) core: String,
    /// At least one.
    pub(crate) levels: Vec<LevelSpec>,
}

/// One level.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct LevelSpec {
    pub(crate) name: String,
    pub(crate) entries: usize,
    /// Entries of a set: a divisor of `entries`, the number of sets a power of two.
    pub(crate) ways: usize,
    /// At least one, from small to large.
    pub(crate) pages: Vec<PageSize>,
    pub(crate) replacement: Replacement,
}

/// Which entry of a full set makes room.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(crate) enum Replacement {
    /// The one not used for longest.
    Lru,
    /// The one there for longest.
    Fifo,
    /// Any.
    Random,
}

impl Replacement {
    const ALL: [(&'static str, Self); 3] = [
        ("lru", Self::Lru),
        ("fifo", Self::Fifo),
        ("random", Self::Random),
    ];
}

/// Why a file says nothing that can be modelled.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("line {line}: {fault}")]
pub(crate) struct SpecError {
    /// From 1.
    pub(crate) line: usize,
    pub(crate) fault: SpecFault,
}

/// What is wrong with a line.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum SpecFault {
    #[error("a line begins with core or level, not with {found}")]
    UnknownLine { found: String },
    #[error("core wants the core's name, once")]
    Core,
    #[error("the file ends without a line that says core")]
    NoCore,
    #[error("the file ends without a line that says level")]
    NoLevel,
    #[error("level wants a name of its own before its entries")]
    LevelName,
    #[error("{found} is none of entries=, ways=, pages=, replacement=, or is there twice")]
    Setting { found: String },
    #[error("{setting}= is missing")]
    Missing { setting: &'static str },
    #[error("entries is a number from 1 to {MAX_ENTRIES}, not {found}")]
    Entries { found: String },
    #[error("ways is full or a number that divides {entries} into a power of two, not {found}")]
    Ways { found: String, entries: usize },
    #[error("pages are some of 4K, 2M, 1G with commas between, not {found}")]
    Pages { found: String },
    #[error("replacement is lru, fifo or random, not {found}")]
    Replacement { found: String },
}

/// More than any core has.
const MAX_ENTRIES: usize = 1 << 20;

impl TlbSpec {
    /// Reads a file.
    ///
    /// # Errors
    /// [`SpecError`]: the first line that is not as it should be.
    pub(crate) fn parse(text: &str) -> Result<Self, SpecError> {
        let mut core = None;
        let mut levels: Vec<LevelSpec> = Vec::new();
        for (line, text) in (1..).zip(text.lines()) {
            let at = |fault| SpecError { line, fault };
            let text = text.split('#').next().unwrap_or_default().trim();
            let (word, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
            match word {
                "" => {}
                "core" if !rest.is_empty() && core.is_none() => core = Some(rest.trim().to_owned()),
                "core" => return Err(at(SpecFault::Core)),
                "level" => {
                    let level = LevelSpec::parse(rest).map_err(at)?;
                    if levels.iter().any(|other| other.name == level.name) {
                        return Err(at(SpecFault::LevelName));
                    }
                    levels.push(level);
                }
                _ => {
                    let found = word.to_owned();
                    return Err(at(SpecFault::UnknownLine { found }));
                }
            }
        }
        let end = |fault| SpecError {
            line: text.lines().count().max(1),
            fault,
        };
        let core = core.ok_or_else(|| end(SpecFault::NoCore))?;
        if levels.is_empty() {
            return Err(end(SpecFault::NoLevel));
        }
        Ok(Self { core, levels })
    }
}

/// `SiFive U74: ITLB of 40 entries, fully associative; UTLB of 512 entries, direct-mapped`.
impl fmt::Display for TlbSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.core)?;
        for (index, level) in self.levels.iter().enumerate() {
            let before = if index == 0 { ":" } else { ";" };
            let (name, entries, ways) = (&level.name, level.entries, level.ways);
            write!(f, "{before} {name} of {entries} entries, ")?;
            match ways {
                1 => f.write_str("direct-mapped")?,
                ways if ways == entries => f.write_str("fully associative")?,
                ways => write!(f, "{ways} ways")?,
            }
        }
        Ok(())
    }
}

impl LevelSpec {
    /// What follows `level`.
    fn parse(text: &str) -> Result<Self, SpecFault> {
        const NAMES: [&str; 4] = ["entries", "ways", "pages", "replacement"];
        let mut words = text.split_whitespace();
        let name = words
            .next()
            .filter(|word| !word.contains('='))
            .ok_or(SpecFault::LevelName)?;
        let mut values = [None; NAMES.len()];
        for word in words {
            let slot = word.split_once('=').and_then(|(name, value)| {
                let at = NAMES.iter().position(|known| *known == name)?;
                Some((at, value))
            });
            match slot {
                Some((at, value)) if values[at].is_none() => values[at] = Some(value),
                _ => {
                    let found = word.to_owned();
                    return Err(SpecFault::Setting { found });
                }
            }
        }
        let value = |at: usize| {
            let setting = NAMES[at];
            values[at].ok_or(SpecFault::Missing { setting })
        };
        let entries = entries_of(value(0)?)?;
        Ok(Self {
            name: name.to_owned(),
            entries,
            ways: ways_of(value(1)?, entries)?,
            pages: pages_of(value(2)?)?,
            replacement: replacement_of(value(3)?)?,
        })
    }
}

fn entries_of(word: &str) -> Result<usize, SpecFault> {
    let entries = word.parse().ok().filter(|n| (1..=MAX_ENTRIES).contains(n));
    let found = || word.to_owned();
    entries.ok_or_else(|| SpecFault::Entries { found: found() })
}

fn ways_of(word: &str, entries: usize) -> Result<usize, SpecFault> {
    let ways = match word {
        "full" => Some(entries),
        word => word.parse().ok(),
    };
    let fits = |ways: &usize| {
        (1..=entries).contains(ways) && entries % ways == 0 && (entries / ways).is_power_of_two()
    };
    let found = || word.to_owned();
    ways.filter(fits).ok_or_else(|| SpecFault::Ways {
        found: found(),
        entries,
    })
}

fn pages_of(word: &str) -> Result<Vec<PageSize>, SpecFault> {
    let page = |name: &str| PageSize::ALL.into_iter().find(|p| p.to_string() == name);
    let pages: Option<Vec<PageSize>> = word.split(',').map(page).collect();
    let found = || word.to_owned();
    let mut pages = pages.ok_or_else(|| SpecFault::Pages { found: found() })?;
    pages.sort_unstable();
    pages.dedup();
    Ok(pages)
}

fn replacement_of(word: &str) -> Result<Replacement, SpecFault> {
    let all = Replacement::ALL.iter();
    let found = all.copied().find(|(name, _)| *name == word);
    found
        .map(|(_, replacement)| replacement)
        .ok_or_else(|| SpecFault::Replacement {
            found: word.to_owned(),
        })
}
