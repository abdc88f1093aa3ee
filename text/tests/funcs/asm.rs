//! Functions as only assemblers write them. Nobody calls them: a byte of each is enough.

use std::arch::global_asm;

use rvbpf_text::{Func, FuncKind, RxAddr, TextError};

// On x86_64 and riscv64 alike: `.zero` in place of instructions.
global_asm!(
    ".macro begin name",
    ".p2align 4",
    ".globl \\name",
    ".type \\name, @function",
    "\\name:",
    ".endm",
    ".text",
    // A symbol with a length, and no FDE.
    "begin asm_sized",
    ".zero 10",
    ".size asm_sized, . - asm_sized",
    // Neither.
    "begin asm_bare",
    ".zero 6",
    // Nothing says that this is code.
    ".p2align 4",
    "begin asm_before_data",
    ".zero 4",
    ".size asm_before_data, . - asm_before_data",
    ".globl asm_data",
    "asm_data:",
    ".zero 12",
    // Two FDEs, one function.
    "begin asm_two_parts",
    ".cfi_startproc",
    ".zero 6",
    ".cfi_endproc",
    ".cfi_startproc",
    ".zero 8",
    ".cfi_endproc",
    ".size asm_two_parts, . - asm_two_parts",
    // An FDE, and a symbol without a length.
    "begin asm_unsized",
    ".cfi_startproc",
    ".zero 12",
    ".cfi_endproc",
    // A second entry in the middle.
    "begin asm_outer",
    ".cfi_startproc",
    ".zero 6",
    ".globl asm_inner",
    ".type asm_inner, @function",
    "asm_inner:",
    ".zero 8",
    ".cfi_endproc",
    ".size asm_outer, . - asm_outer",
    // The unlikely part of a function: entered with a frame.
    ".p2align 4",
    ".type asm_part, @function",
    "asm_part:",
    ".cfi_startproc",
    ".cfi_def_cfa_offset 64",
    ".zero 8",
    ".cfi_endproc",
    // The same by its name alone.
    ".p2align 4",
    ".type asm_sized.cold, @function",
    "asm_sized.cold:",
    ".cfi_startproc",
    ".zero 8",
    ".cfi_endproc",
    ".size asm_sized.cold, . - asm_sized.cold",
    // Where a signal handler returns to.
    "begin asm_signal",
    ".cfi_startproc",
    ".cfi_signal_frame",
    ".zero 8",
    ".cfi_endproc",
    ".size asm_signal, . - asm_signal",
    // Rules that change nothing are no frame.
    "begin asm_top",
    ".cfi_startproc",
    ".cfi_undefined 6",
    ".zero 8",
    ".cfi_endproc",
    ".size asm_top, . - asm_top",
    // Other names.
    "begin __asm_alias",
    ".globl asm_alias",
    ".type asm_alias, @function",
    "asm_alias:",
    ".zero 8",
    ".size asm_alias, . - asm_alias",
    ".size __asm_alias, . - __asm_alias",
    ".p2align 4",
    ".purgem begin",
);

unsafe extern "C" {
    fn asm_sized();
    fn asm_bare();
    fn asm_before_data();
    fn asm_data();
    fn asm_two_parts();
    fn asm_unsized();
    fn asm_outer();
    fn asm_inner();
    fn asm_signal();
    fn asm_top();
    fn asm_alias();
}

fn rx(f: unsafe extern "C" fn()) -> RxAddr {
    RxAddr::new((f as *const ()).expose_provenance() as u64)
}

fn found(f: unsafe extern "C" fn()) -> (String, Option<usize>) {
    let func = Func::find(rx(f)).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!((func.entry, func.kind), (rx(f), FuncKind::Called));
    (func.name.unwrap().into(), func.len_bytes)
}

#[test]
fn lengths_come_from_symbols_and_unwind_entries() {
    for (f, name, len_bytes) in [
        (asm_sized as unsafe extern "C" fn(), "asm_sized", Some(10)),
        (asm_bare, "asm_bare", None),
        (asm_before_data, "asm_before_data", Some(4)),
        (asm_two_parts, "asm_two_parts", Some(14)),
        (asm_unsized, "asm_unsized", Some(12)),
        (asm_top, "asm_top", Some(8)),
        (asm_alias, "asm_alias", Some(8)),
    ] {
        assert_eq!(found(f), (name.into(), len_bytes));
    }
}

#[test]
fn a_function_ends_where_another_begins() {
    assert_eq!(found(asm_outer), ("asm_outer".into(), Some(6)));
    assert_eq!(found(asm_inner), ("asm_inner".into(), Some(8)));
}

#[test]
fn the_second_part_of_assembly_is_no_function() {
    let second = rx(asm_two_parts).checked_add(6).unwrap();
    let want = TextError::NotAFunction {
        addr: second,
        func: rx(asm_two_parts),
        name: Some("asm_two_parts".into()),
    };
    assert_eq!(Func::find(second), Err(want));
    let all = Func::all_in(second).unwrap();
    assert!(all.iter().all(|f| f.entry != second));
}

#[test]
fn parts_are_kept_but_never_found() {
    let all = Func::all_in(rx(asm_signal)).unwrap();
    let part = |name: &str| {
        let named = |f: &&Func| f.name.as_deref() == Some(name);
        all.iter().find(named).unwrap_or_else(|| panic!("{name}"))
    };
    for name in ["asm_part", "asm_sized.cold", "asm_signal"] {
        let part = part(name);
        assert_eq!(
            (part.kind, part.len_bytes),
            (FuncKind::Part, Some(8)),
            "{name}"
        );
        let want = TextError::FunctionPart {
            addr: part.entry,
            name: Some(name.into()),
        };
        assert_eq!(want, Func::find(part.entry).unwrap_err());
    }
    assert_eq!(part("asm_signal").entry, rx(asm_signal));
}

#[test]
fn data_between_functions_is_said() {
    let got = Func::find(rx(asm_data)).unwrap_err();
    assert!(
        matches!(&got, TextError::DataInText { addr, object }
            if *addr == rx(asm_data) && **object == std::env::current_exe().unwrap()),
        "{got:?}"
    );
    assert!(
        got.to_string().contains("no unwind entry and no symbol"),
        "{got}"
    );
}
