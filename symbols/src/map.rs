//! `/tmp/perf-PID.map`: a line for each function, which `perf report` reads at its end.
//!
//! ```text
//!   3f80001000 2e bpf_prog_a04f5eef06a7f555_sum
//!   start      bytes, both hex
//! ```
//!
//! Lines of code that is gone stay, since samples of it may be in the records; when other code
//! comes to the same place, the file is written anew without them. A child of a fork has a file of
//! its own, from the first code on that comes or goes in it.
//!
//! Key type: [`Registered`]. Source: Linux `tools/perf/Documentation/jit-interface.txt`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::error::SymbolsError;
use crate::file::Growing;
use crate::info::CodeInfo;

/// The file of this process, and what is in it.
#[derive(Debug)]
struct Map {
    path: PathBuf,
    pid: u32,
    file: Option<Growing>,
    /// By first address.
    lines: BTreeMap<u64, Line>,
}

#[derive(Clone, Debug)]
struct Line {
    end: u64,
    name: String,
}

static MAP: Mutex<Option<Map>> = Mutex::new(None);

/// Code that is in the map. Nothing is taken back: see above.
#[derive(Debug)]
pub(crate) struct Registered;

/// Begins the file.
pub(crate) fn open() -> Result<(), SymbolsError> {
    let mut map = MAP.lock().unwrap_or_else(PoisonError::into_inner);
    if map.is_none() {
        *map = Some(Map::create(Path::new("/tmp"))?);
    }
    Ok(())
}

impl Registered {
    pub(crate) fn new(info: &CodeInfo<'_>) -> Self {
        let mut map = MAP.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(map) = map.as_mut() {
            map.add(info);
        }
        Self
    }
}

impl Map {
    fn create(dir: &Path) -> Result<Self, SymbolsError> {
        let pid = std::process::id();
        let path = dir.join(format!("perf-{pid}.map"));
        match Growing::create(&path, &[], |_| Ok(())) {
            Ok(file) => Ok(Self {
                path,
                pid,
                file: Some(file),
                lines: BTreeMap::new(),
            }),
            Err(source) => Err(SymbolsError::File { path, source }),
        }
    }

    fn add(&mut self, info: &CodeInfo<'_>) {
        let (start, end) = (info.range.start.get(), info.range.end().get());
        let before = self.lines.range(..start).next_back();
        let from = before
            .filter(|(_, line)| line.end > start)
            .map_or(start, |(at, _)| *at);
        let stale: Vec<u64> = self.lines.range(from..end).map(|(at, _)| *at).collect();
        for at in &stale {
            self.lines.remove(at);
        }
        let mut text = String::new();
        for symbol in info.symbols {
            let at = start + u64::from(symbol.off);
            let line = Line {
                end: at + u64::from(symbol.len),
                name: symbol.name.replace(char::is_control, "_"),
            };
            line.write(at, &mut text);
            self.lines.insert(at, line);
        }
        let is_new_process = self.pid != std::process::id();
        if is_new_process || !stale.is_empty() {
            self.write_anew();
        } else if let Some(file) = &self.file {
            // What cannot be written is lost.
            let _ = file.add(text.as_bytes());
        }
    }

    fn write_anew(&mut self) {
        self.pid = std::process::id();
        self.path.set_file_name(format!("perf-{}.map", self.pid));
        let mut text = String::new();
        for (at, line) in &self.lines {
            line.write(*at, &mut text);
        }
        self.file = Growing::create(&self.path, text.as_bytes(), |_| Ok(())).ok();
    }
}

impl Line {
    fn write(&self, at: u64, out: &mut String) {
        // Strings take everything.
        let _ = writeln!(out, "{at:x} {:x} {}", self.end - at, self.name);
    }
}

#[cfg(test)]
mod tests {
    use text::{RxAddr, RxRange};

    use super::*;
    use crate::info::Symbol;

    fn add(map: &mut Map, start: u64, len_bytes: usize, name: &str) {
        let symbols = [Symbol {
            name: name.into(),
            off: 0,
            len: len_bytes as u32,
        }];
        map.add(&CodeInfo {
            range: RxRange::new(RxAddr::new(start), len_bytes),
            bytes: &[],
            symbols: &symbols,
            lines: &[],
            unwind: &[],
            landings: &[],
        });
    }

    #[test]
    fn lines_stay_until_their_place_is_taken() {
        let dir = std::env::temp_dir().join(format!("rvbpf-map-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let mut map = Map::create(&dir).unwrap();
        let text = |map: &Map| std::fs::read_to_string(&map.path).unwrap();
        add(&mut map, 0x3f80_0000, 0x40, "one");
        add(&mut map, 0x3f80_0040, 0x100, "two\nlines");
        assert_eq!(text(&map), "3f800000 40 one\n3f800040 100 two_lines\n");
        add(&mut map, 0x3f80_0080, 8, "three");
        assert_eq!(text(&map), "3f800000 40 one\n3f800080 8 three\n");
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
