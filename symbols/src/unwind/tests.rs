//! Tables of landings, read as the personality reads them.

use text::{RxAddr, RxRange};

use super::*;

/// One number and what is behind it.
fn uleb(bytes: &[u8]) -> (u64, &[u8]) {
    let len = bytes.iter().position(|b| b & 0x80 == 0).unwrap() + 1;
    let value = bytes[..len]
        .iter()
        .rev()
        .fold(0, |v, b| v << 7 | u64::from(b & 0x7f));
    (value, &bytes[len..])
}

/// Call sites of a table: offset, length, landing, action.
fn call_sites(table: &[u8]) -> Vec<[u64; 4]> {
    assert_eq!(table[..3], [DW_EH_PE_OMIT, DW_EH_PE_OMIT, DW_EH_PE_ULEB128]);
    let (len, rest) = uleb(&table[3..]);
    let mut rest = &rest[..len as usize];
    let mut all = Vec::new();
    while !rest.is_empty() {
        all.push([0; 4].map(|_| {
            let (value, behind) = uleb(rest);
            rest = behind;
            value
        }));
    }
    all
}

#[test]
fn each_function_finds_its_landings() {
    let unwind = |off, len| Unwind {
        off,
        len,
        rows: Vec::new(),
    };
    let landing = |off, to| Landing { off, len: 8, to };
    let info = CodeInfo {
        range: RxRange::new(RxAddr::new(0x1000), 400),
        bytes: &[0; 400],
        symbols: &[],
        lines: &[],
        unwind: &[unwind(0, 300), unwind(300, 100)],
        landings: &[landing(12, 260), landing(40, 280), landing(320, 380)],
    };
    let bytes = eh_frame(&info);
    let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    let mut at = 4 + u32_at(0) as usize;
    let mut found = Vec::new();
    while u32_at(at) != 0 {
        // Length, way to the CIE, start, bytes, and the length of what we look for.
        let named_at = at + 4 + 4 + 8 + 8 + 1;
        assert_eq!(bytes[named_at - 1], 4);
        found.push(call_sites(&bytes[named_at + u32_at(named_at) as usize..]));
        at += 4 + u32_at(at) as usize;
    }
    let want = [vec![[12, 8, 260, 0], [40, 8, 280, 0]], vec![[20, 8, 80, 0]]];
    assert_eq!(found, want);
}
