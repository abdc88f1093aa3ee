//! Code that others have changed in memory, held against its file.

use std::os::unix::fs::FileExt;

use rvbpf_text::{Func, ProcMaps, RxAddr, RxRange, TextError, check_unchanged};

use super::libraries::Copy;
use super::names::linked;

/// Writes into read-only text as debuggers do.
fn write(at: RxAddr, bytes: &[u8]) {
    let mut options = std::fs::File::options();
    let memory = options.write(true).open("/proc/self/mem").unwrap();
    memory.write_all_at(bytes, at.get()).unwrap();
}

fn read(at: RxAddr) -> [u8; 8] {
    let at = std::ptr::with_exposed_provenance::<[u8; 8]>(at.get() as usize);
    // SAFETY: the tests pass addresses inside of functions.
    unsafe { at.read_volatile() }
}

/// Whether this process may open the file behind a mapping.
fn opens_behind(addr: RxAddr) -> bool {
    let maps = ProcMaps::read().unwrap();
    let mapped = maps.find(addr).unwrap().range;
    let (start, end) = (mapped.start.get(), mapped.end().get());
    std::fs::File::open(format!("/proc/self/map_files/{start:x}-{end:x}")).is_ok()
}

/// The first bytes of a function.
fn entry_of(func: RxAddr) -> RxRange {
    RxRange::new(func, 16)
}

#[test]
fn nobody_has_changed_this_program_and_its_libraries() {
    let here = RxAddr::new((write as *const ()).expose_provenance() as u64);
    for addr in [here, linked(c"malloc"), linked(c"_Unwind_Backtrace")] {
        let funcs = Func::all_in(addr).unwrap();
        assert!(funcs.len() > 20);
        // Each takes a look at `/proc/self/maps`; some of all do.
        for func in funcs.iter().step_by(funcs.len() / 20) {
            let len_bytes = func.len_bytes.unwrap_or(0);
            let range = RxRange::new(func.entry, len_bytes);
            assert_eq!(check_unchanged(range), Ok(()), "{func:?}");
        }
    }
}

#[test]
fn what_is_changed_is_said_with_its_place() {
    let copy = Copy::load("changed", |_| ());
    let range = entry_of(copy.func);
    assert_eq!(check_unchanged(range), Ok(()));
    // Of a half, the second byte alone; where another instruction may begin; the entry.
    for (at_bytes, off_bytes) in [(15, 14), (5, 4), (2, 2), (0, 0)] {
        let at = copy.func.checked_add(at_bytes).unwrap();
        let half = copy.func.checked_add(off_bytes).unwrap();
        let [in_file, byte] = [read(half), [!read(at)[0]; 8]];
        write(at, &byte[..1]);
        let Err(TextError::ChangedByOthers {
            at,
            off_bytes: off,
            object,
            in_file: said,
            found,
        }) = check_unchanged(range)
        else {
            panic!("nothing is said of +{at_bytes}");
        };
        assert_eq!(
            (at, off as u64, &*object),
            (copy.func, off_bytes, &*copy.path)
        );
        // The range ends where the function's first bytes do.
        let len = (16 - off).min(8);
        assert_eq!(said[..2], in_file[..2], "+{at_bytes}");
        assert_eq!(found[..2], read(half)[..2], "+{at_bytes}");
        assert_eq!(
            (&said[len..], &found[len..]),
            (&[0; 8][len..], &[0; 8][len..])
        );
    }
    let error = check_unchanged(range).unwrap_err().to_string();
    assert!(error.contains("hooked by others: at +0"), "{error}");
    // Another file at its path proves nothing, nor does none. Where the kernel opens the right one
    // behind the mapping, that is taken.
    let path = copy.path.clone();
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "no library").unwrap();
    let is_known = opens_behind(copy.func);
    assert_eq!(check_unchanged(range).is_err(), is_known);
    std::fs::remove_file(&path).unwrap();
    assert_eq!(check_unchanged(range).is_err(), is_known);
    copy.close();
    assert_eq!(check_unchanged(range), Ok(()), "nobody's");
}

/// As a compiler's mark in the dynamic section says it: `DT_FLAGS` of `DF_TEXTREL`.
#[test]
fn text_that_the_dynamic_linker_may_have_changed_is_not_compared() {
    let copy = Copy::load("textrel", |bytes| {
        let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        let (table, count) = (word(32) as usize, usize::from(bytes[56]));
        let headers = (0..count).map(|i| table + 56 * i);
        let dynamic = headers.into_iter().find(|at| bytes[*at] == 2).unwrap();
        let start = word(dynamic + 8) as usize;
        // DT_SONAME makes room for it.
        let entries = (start..start + word(dynamic + 32) as usize).step_by(16);
        let soname = entries.into_iter().find(|at| word(*at) == 14).unwrap();
        bytes[soname] = 30;
        bytes[soname + 8..soname + 16].copy_from_slice(&4u64.to_le_bytes());
    });
    write(copy.func, &[0xff; 4]);
    assert_eq!(check_unchanged(entry_of(copy.func)), Ok(()));
    std::fs::remove_file(&copy.path).unwrap();
    copy.close();
}
