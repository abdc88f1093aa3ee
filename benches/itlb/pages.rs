//! Which pages are really there: `/proc/self/smaps`.
//!
//! Key type: [`Pages`]. Source: `proc_pid_smaps(5)`, kernel `Documentation/filesystems/proc.rst`.

use std::collections::BTreeSet;

use super::Error;
use super::tlb::PageSize;

/// The mappings of this process, in order.
#[derive(Debug)]
pub(crate) struct Pages {
    mappings: Vec<Mapping>,
}

#[derive(Debug, Default)]
struct Mapping {
    start: u64,
    end: u64,
    /// Of them, in pages of the system's pool.
    page_kb: u64,
    /// Translated by entries of 2 MiB.
    huge_kb: u64,
    resident_kb: u64,
}

impl Mapping {
    /// Whether all of it is.
    fn is_huge(&self) -> bool {
        self.page_kb >= 2048 || self.huge_kb * 1024 >= self.end - self.start
    }
}

impl Pages {
    /// Reads them.
    pub(crate) fn read() -> Result<Self, Error> {
        const PATH: &str = "/proc/self/smaps";
        let text = std::fs::read_to_string(PATH).map_err(|error| Error::Read {
            path: PATH.into(),
            error,
        })?;
        Ok(Self::parse(&text))
    }

    pub(crate) fn parse(text: &str) -> Self {
        let mut mappings: Vec<Mapping> = Vec::new();
        for line in text.lines() {
            let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
            if let Some((start, end)) = range_of(word) {
                mappings.push(Mapping {
                    start,
                    end,
                    ..Mapping::default()
                });
                continue;
            }
            let kb = rest.trim().trim_end_matches(" kB").parse::<u64>();
            let (Some(mapping), Ok(kb)) = (mappings.last_mut(), kb) else {
                continue;
            };
            match word {
                "KernelPageSize:" => mapping.page_kb = kb,
                "ShmemPmdMapped:" | "FilePmdMapped:" | "AnonHugePages:" => mapping.huge_kb += kb,
                // What is of the pool is not in Rss.
                "Rss:" | "Shared_Hugetlb:" | "Private_Hugetlb:" => mapping.resident_kb += kb,
                _ => {}
            }
        }
        Self { mappings }
    }

    /// The size of the page at `address`; of a mapping that is huge in part, the small one.
    pub(crate) fn size_at(&self, address: u64) -> PageSize {
        match self.at(address).is_some_and(|(_, m)| m.is_huge()) {
            true => PageSize::M2,
            false => PageSize::K4,
        }
    }

    /// Pages that are there, of the mappings in which `addresses` lie.
    pub(crate) fn resident_bytes(&self, addresses: impl Iterator<Item = u64>) -> u64 {
        let found = addresses.filter_map(|address| Some(self.at(address)?.0));
        let found: BTreeSet<usize> = found.collect();
        let kb = found.iter().map(|&index| self.mappings[index].resident_kb);
        kb.sum::<u64>() * 1024
    }

    fn at(&self, address: u64) -> Option<(usize, &Mapping)> {
        let index = self.mappings.partition_point(|m| m.end <= address);
        let mapping = self.mappings.get(index)?;
        (mapping.start <= address).then_some((index, mapping))
    }
}

/// `start-end` in hex.
fn range_of(word: &str) -> Option<(u64, u64)> {
    let (start, end) = word.split_once('-')?;
    let hex = |digits| u64::from_str_radix(digits, 16).ok();
    Some((hex(start)?, hex(end)?))
}
