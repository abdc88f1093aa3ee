//! `jit-PID.dump`: code with the time at which it came, for `perf inject --jit`.
//!
//! ```text
//!   header   "DTiJ" 1 40 machine 0 pid time 0
//!   lines    2 size time  address entries   (address line column file)…
//!   code     0 size time  pid tid address address bytes number   name code
//! ```
//!
//! One record of code for each function, after one of lines where there are any. The first page of
//! the file is mapped, readable and executable, for as long as the process lives: `perf record`
//! notes mappings, and so learns of the file.
//!
//! Key function: [`write`]. Source: Linux `tools/perf/Documentation/jitdump-specification.txt`.

#![expect(unsafe_code, reason = "maps the file's first page, for perf to see")]

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use crate::bytes::Bytes;
use crate::error::SymbolsError;
use crate::file::Growing;
use crate::info::{CodeInfo, LineEntry, Symbol};

const MAGIC: u32 = 0x4A69_5444;
const EM_RISCV: u32 = 243;
const HEADER_BYTES: u32 = 40;
const CODE_LOAD: u32 = 0;
const CODE_DEBUG_INFO: u32 = 2;

#[derive(Debug)]
struct Dump {
    file: Growing,
    pid: u32,
    nr_codes: u64,
}

static DUMP: Mutex<Option<Dump>> = Mutex::new(None);

/// Begins the file.
pub(crate) fn open() -> Result<(), SymbolsError> {
    let mut dump = DUMP.lock().unwrap_or_else(PoisonError::into_inner);
    if dump.is_none() {
        *dump = Some(Dump::create()?);
    }
    Ok(())
}

/// Adds code.
pub(crate) fn write(info: &CodeInfo<'_>) {
    let mut dump = DUMP.lock().unwrap_or_else(PoisonError::into_inner);
    // In the child of a fork: a file of its own, for the code that comes from here on.
    if dump
        .as_ref()
        .is_some_and(|dump| dump.pid != std::process::id())
    {
        *dump = Dump::create().ok();
    }
    if let Some(dump) = dump.as_mut() {
        dump.add(info);
    }
}

impl Dump {
    fn create() -> Result<Self, SymbolsError> {
        let pid = std::process::id();
        let dir = std::env::var_os("JITDUMPDIR").map_or_else(|| PathBuf::from("."), PathBuf::from);
        let path = dir.join(format!("jit-{pid}.dump"));
        match Growing::create(&path, &header(pid), mark) {
            Ok(file) => Ok(Self {
                file,
                pid,
                nr_codes: 0,
            }),
            Err(source) => Err(SymbolsError::File { path, source }),
        }
    }

    fn add(&mut self, info: &CodeInfo<'_>) {
        let mut out = Bytes::default();
        for symbol in info.symbols {
            let lines = lines_of(info, symbol);
            if !lines.is_empty() {
                debug_info(&mut out, info, symbol, lines);
            }
            code_load(&mut out, info, symbol, self.pid, self.nr_codes);
            self.nr_codes += 1;
        }
        // What cannot be written is lost.
        let _ = self.file.add(&out.0);
    }
}

fn header(pid: u32) -> Vec<u8> {
    let mut out = Bytes::default();
    out.u32(MAGIC);
    out.u32(1);
    out.u32(HEADER_BYTES);
    out.u32(EM_RISCV);
    out.u32(0);
    out.u32(pid);
    out.u64(now_ns());
    out.u64(0);
    out.0
}

/// The mapping that `perf record` notes; it stays.
fn mark(file: &File) -> std::io::Result<()> {
    // SAFETY: 1. a fresh mapping disturbs nothing.
    let at = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            4096,
            libc::PROT_READ | libc::PROT_EXEC,
            libc::MAP_PRIVATE,
            file.as_raw_fd(),
            0,
        )
    };
    if at == libc::MAP_FAILED {
        return Err(std::io::Error::last_os_error());
    }
    Ok(())
}

/// The clock that `perf record -k mono` uses.
fn now_ns() -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: 1. `time` is a place for the result.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

fn lines_of<'a>(info: &CodeInfo<'a>, symbol: &Symbol) -> &'a [LineEntry] {
    let at = |off| info.lines.partition_point(|line| line.off < off);
    &info.lines[at(symbol.off)..at(symbol.off + symbol.len)]
}

/// A record: its kind, its size with this header, the time, what is in it.
fn record(out: &mut Bytes, kind: u32, body: &Bytes) {
    out.u32(kind);
    out.u32(16 + body.0.len() as u32);
    out.u64(now_ns());
    out.0.extend(&body.0);
}

fn debug_info(out: &mut Bytes, info: &CodeInfo<'_>, symbol: &Symbol, lines: &[LineEntry]) {
    let start = info.range.start.get();
    let mut body = Bytes::default();
    body.u64(start + u64::from(symbol.off));
    body.u64(lines.len() as u64);
    for line in lines {
        body.u64(start + u64::from(line.off));
        body.u32(line.line);
        body.u32(line.column);
        body.str(&line.file);
    }
    body.align(0, 8, 0);
    record(out, CODE_DEBUG_INFO, &body);
}

fn code_load(out: &mut Bytes, info: &CodeInfo<'_>, symbol: &Symbol, pid: u32, number: u64) {
    let start = info.range.start.get() + u64::from(symbol.off);
    let (from, len) = (symbol.off as usize, symbol.len as usize);
    let mut body = Bytes::default();
    body.u32(pid);
    // SAFETY: 1. it has no conditions.
    body.u32(unsafe { libc::gettid() } as u32);
    body.u64(start);
    body.u64(start);
    body.u64(len as u64);
    body.u64(number);
    body.str(&symbol.name);
    body.0
        .extend(info.bytes.get(from..from + len).unwrap_or_default());
    record(out, CODE_LOAD, &body);
}

#[cfg(test)]
mod tests {
    use text::{RxAddr, RxRange};

    use super::*;

    fn u32_at(bytes: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
    }

    #[test]
    fn records_are_the_specifications() {
        let symbols = [("f", 0, 2), ("g", 2, 4)].map(|(name, off, len)| Symbol {
            name: name.into(),
            off,
            len,
        });
        let lines = [LineEntry {
            off: 4,
            file: "a.c".into(),
            line: 7,
            column: 3,
        }];
        let info = CodeInfo {
            range: RxRange::new(RxAddr::new(0x3f_8000_0000), 6),
            bytes: &[1, 2, 3, 4, 5, 6],
            symbols: &symbols,
            lines: &lines,
            unwind: &[],
            landings: &[],
        };
        let dir = std::env::temp_dir().join(format!("rvbpf-dump-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("jit.dump");
        let mut dump = Dump {
            file: Growing::create(&path, &[], |_| Ok(())).unwrap(),
            pid: 77,
            nr_codes: 0,
        };
        dump.add(&info);
        let bytes = std::fs::read(&path).unwrap();
        std::fs::remove_dir_all(&dir).unwrap();
        let mut at = 0;
        let mut records = Vec::new();
        while at < bytes.len() {
            let len = u32_at(&bytes, at + 4) as usize;
            records.push((u32_at(&bytes, at), bytes[at + 16..at + len].to_vec()));
            at += len;
        }
        let kinds: Vec<u32> = records.iter().map(|(kind, _)| *kind).collect();
        assert_eq!(kinds, [CODE_LOAD, CODE_DEBUG_INFO, CODE_LOAD]);
        assert_eq!(u32_at(&records[0].1, 0), 77);
        assert!(records[0].1.ends_with(b"f\0\x01\x02"));
        assert!(records[2].1.ends_with(b"g\0\x03\x04\x05\x06"));
        let g = 0x3f_8000_0002_u64.to_le_bytes();
        assert_eq!(records[2].1[8..16], g);
        assert_eq!(records[1].1[..8], g);
        let entry = [
            &0x3f_8000_0004_u64.to_le_bytes()[..],
            &[7, 0, 0, 0, 3, 0, 0, 0],
            b"a.c\0",
        ];
        assert_eq!(records[1].1[16..36], entry.concat());
        assert_eq!(header(5).len(), HEADER_BYTES as usize);
    }
}
