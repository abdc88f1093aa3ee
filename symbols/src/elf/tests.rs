//! The object as others read it.

use object::{Object, ObjectSection, ObjectSymbol};
use text::{RxAddr, RxRange};

use super::*;
use crate::info::{Cfa, Landing, LineEntry, Row, SavedFrom, Symbol, Unwind};

const BASE: u64 = 0x3f_8000_1000;

pub(crate) fn sample() -> Vec<u8> {
    let symbol = |name: &str, off, len| Symbol {
        name: name.into(),
        off,
        len,
    };
    let line = |off, file: &str, line| LineEntry {
        off,
        file: file.into(),
        line,
        column: 1,
    };
    let saved = vec![(1, -8), (8, -16)];
    let rows = [
        (2, 32, vec![]),
        (6, 32, saved.clone()),
        (24, 32, vec![(1, -8)]),
        (26, 0, vec![]),
        (28, 32, saved.clone()),
    ];
    let row = |(off, cfa, saved)| Row {
        off,
        cfa: Cfa { reg: 2, off: cfa },
        saved,
        from: SavedFrom::Cfa,
    };
    let elsewhere = Row {
        from: SavedFrom::Reg(8),
        ..row((44, 0, saved))
    };
    let unwind = |off, len, rows| Unwind { off, len, rows };
    object(&CodeInfo {
        range: RxRange::new(RxAddr::new(BASE), 64),
        bytes: &[0; 64],
        symbols: &[
            symbol("bpf_prog_one", 0, 40),
            symbol("bpf_prog_one.func_9", 40, 24),
        ],
        lines: &[line(0, "a.c", 10), line(8, "b.h", 300), line(40, "a.c", 2)],
        unwind: &[
            unwind(0, 40, rows.map(row).into()),
            unwind(40, 24, vec![elsewhere]),
        ],
        landings: &[Landing {
            off: 50,
            len: 8,
            to: 60,
        }],
    })
}

#[test]
fn sections_and_symbols_are_found() {
    let bytes = sample();
    let file = object::File::parse(&*bytes).unwrap();
    assert_eq!(file.architecture(), object::Architecture::Riscv64);
    let text = file.section_by_name(".text").unwrap();
    assert_eq!((text.address(), text.size()), (BASE, 64));
    let symbols: Vec<_> = file
        .symbols()
        .map(|symbol| {
            (
                symbol.name().unwrap().to_owned(),
                symbol.address(),
                symbol.size(),
            )
        })
        .collect();
    let want = [("bpf_prog_one", 0, 40), ("bpf_prog_one.func_9", 40, 24)];
    assert_eq!(
        symbols,
        want.map(|(name, at, len)| (name.to_owned(), at, len))
    );
    let names: Vec<_> = file
        .sections()
        .map(|s| s.name().unwrap().to_owned())
        .collect();
    for name in [".eh_frame", ".debug_abbrev", ".debug_info", ".debug_line"] {
        assert!(names.iter().any(|have| have == name), "{name}: {names:?}");
    }
}

/// readelf, beside the assembler that `RVBPF_AS` names, reads the lines and the rows.
#[test]
fn readelf_reads_lines_and_rows() {
    let Some(assembler) = std::env::var("RVBPF_AS")
        .ok()
        .filter(|name| !name.is_empty())
    else {
        return;
    };
    let path = std::env::temp_dir().join(format!("rvbpf-elf-{}", std::process::id()));
    std::fs::write(&path, sample()).unwrap();
    let objdump = format!("{}objdump", assembler.strip_suffix("as").unwrap());
    let ask = |what: &str| {
        let out = std::process::Command::new(&objdump)
            .arg(what)
            .arg(&path)
            .output()
            .unwrap();
        assert!(out.status.success() && out.stderr.is_empty(), "{out:?}");
        String::from_utf8(out.stdout).unwrap()
    };
    let lines = ask("--dwarf=decodedline");
    let words = |text: &str| {
        text.split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let rows: Vec<_> = lines
        .lines()
        .map(words)
        .filter(|row| row.len() >= 3 && row[2].starts_with("0x"))
        .collect();
    let row = |at: usize| [&*rows[at][0], &*rows[at][1], &*rows[at][2]];
    assert_eq!(row(0), ["a.c", "10", "0x3f80001000"], "{lines}");
    assert_eq!(row(1), ["b.h", "300", "0x3f80001008"], "{lines}");
    assert_eq!(row(2), ["a.c", "2", "0x3f80001028"], "{lines}");
    let frames = ask("--dwarf=frames-interp");
    for want in [
        "0000003f80001000 sp+0",
        "0000003f80001002 sp+32",
        "0000003f80001006 sp+32 c-8 c-16",
        "0000003f80001018 sp+32 c-8 u",
        "0000003f8000101a sp+0 u u",
        "0000003f8000101c sp+32 c-8 c-16",
        "0000003f8000102c sp+0 exp exp",
    ] {
        let squeezed = words(&frames).join(" ");
        assert!(squeezed.contains(want), "{want} is not in\n{frames}");
    }
    let raw = words(&ask("--dwarf=frames")).join(" ");
    let want = "DW_CFA_expression: r1 (ra) (DW_OP_breg8 (s0): -8)";
    assert!(raw.contains(want), "{want} is not in\n{raw}");
    let info = ask("--dwarf=info");
    assert!(info.contains("DW_AT_name        : a.c"), "{info}");
    std::fs::remove_file(&path).unwrap();
}
