//! Functions that are refused, through the facade: the error says which instruction stands against
//! it, and what to do.

use std::arch::global_asm;

use rvbpf::{Error, FuncModel, HookBuilder, Runtime, TrampError};
use text::{Func, RxAddr, TextError};
use trampoline::prologue::Refusal;

use crate::common::serial;
use crate::{Before, assert_is, refused};

/// `er!("name", "lines"…)`: a function `er_name` with unwind tables and a size. Nobody calls it.
macro_rules! er {
    ($name:literal, $($line:literal),+ $(,)?) => {
        global_asm!(
            ".option push",
            ".option rvc",
            ".text",
            ".balign 8",
            concat!(".globl er_", $name),
            concat!(".type er_", $name, ", @function"),
            concat!("er_", $name, ":"),
            ".cfi_startproc",
            $($line,)+
            ".cfi_endproc",
            concat!(".size er_", $name, ", . - er_", $name),
            ".option pop",
        );
    };
}

er!("short", "ret");
er!("undecodable", ".half 0", ".half 0", ".half 0", "ret");
er!(
    "branched_into",
    "c.addi a0, 1",
    "2:",
    "c.addi a0, 2",
    "c.addi a0, 3",
    "bnez a0, 2b",
    "ret"
);
er!(
    "loop",
    "1:",
    "c.addi a0, -1",
    "c.addi a1, 1",
    "c.addi a2, 1",
    "bnez a0, 1b",
    "ret"
);
er!(
    "returned_into",
    "c.jalr a0",
    "c.addi a0, 1",
    "c.addi a0, 1",
    "ret"
);
er!("system_call", "c.li a7, 1", "ecall", "c.addi a0, 1", "ret");
er!(
    "breakpoint",
    "c.addi a0, 1",
    "c.ebreak",
    "c.addi a0, 1",
    "ret"
);
er!(
    "custom",
    "c.addi a1, 1",
    "c.addi a0, 1",
    "add a0, a0, t0",
    "c.addi a0, 1",
    "ret"
);

global_asm!(
    ".text",
    ".balign 8",
    // A function that nothing says the end of.
    ".globl er_endless",
    ".type er_endless, @function",
    "er_endless:",
    "ret",
    // Nothing says that this is code.
    ".balign 8",
    ".globl er_before_data",
    ".type er_before_data, @function",
    "er_before_data:",
    "ret",
    ".size er_before_data, . - er_before_data",
    ".balign 8",
    ".globl er_data",
    "er_data:",
    ".dword 0",
    ".dword 0",
    // What has been moved out of a function.
    ".type er_short.cold, @function",
    "er_short.cold:",
    "ret",
    ".size er_short.cold, . - er_short.cold",
);

unsafe extern "C" {
    fn er_short();
    fn er_undecodable();
    fn er_branched_into();
    fn er_loop();
    fn er_returned_into();
    fn er_system_call();
    fn er_breakpoint();
    fn er_custom();
    fn er_endless();
    fn er_data();
}

type F = unsafe extern "C" fn();

fn begin(rt: &Runtime, addr: *const ()) -> Result<HookBuilder<rvbpf::Untyped>, Error> {
    // SAFETY:
    // 1. Nothing is claimed of it.
    unsafe { rt.hook_addr(addr, FuncModel::untyped()) }
}

/// The error of hooking what is at `addr`, which must be refused; all `words` are in its message.
fn refused_with(rt: &Runtime, addr: *const (), words: &[&str]) -> Error {
    let before = Before::new(rt, &[addr]);
    let error = refused(begin(rt, addr).and_then(|b| b.on_entry(|_| {}).attach()));
    before.assert_unchanged();
    let message = error.to_string();
    for word in words {
        assert!(message.contains(word), "{message} does not say {word}");
    }
    error
}

/// The instruction is named, and the ways out are.
#[test]
fn instructions_that_cannot_be_moved() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let at = |f: F, off: u64| f as usize as u64 + off;
    for (f, word, off, is_it) in [
        (
            er_short as F,
            "2 bytes",
            0,
            (|r| matches!(r, Refusal::TooShort { len: 2, .. })) as fn(&Refusal) -> bool,
        ),
        (er_undecodable, "no instruction", 0, |r| {
            matches!(r, Refusal::Undecodable { .. })
        }),
        (er_branched_into, "into the bytes", 6, |r| {
            matches!(r, Refusal::BranchesInto { .. })
        }),
        (er_loop, "in a loop", 6, |r| {
            matches!(r, Refusal::LoopsToEntry { .. })
        }),
        (er_returned_into, "this call returns", 0, |r| {
            matches!(r, Refusal::ReturnsInto { .. })
        }),
        (er_system_call, "system call", 2, |r| {
            matches!(r, Refusal::SystemCall { .. })
        }),
        (er_breakpoint, "debugger", 2, |r| {
            matches!(r, Refusal::Breakpoint { .. })
        }),
        (er_custom, "reads t0", 4, |r| {
            matches!(
                r,
                Refusal::CustomEntry {
                    reg: rv64::Reg::T0,
                    ..
                }
            )
        }),
    ] {
        let place = format!("{:#x}: ", at(f, off));
        let ways_out = ["allow a trap", "-fpatchable-function-entry=5"];
        let error = refused_with(
            &rt,
            f as *const (),
            &[&[word, &*place], &ways_out[..]].concat(),
        );
        let Error::Tramp(TrampError::CannotMove { func, source }) = &error else {
            panic!("is {error:?}");
        };
        assert!(func.get() == at(f, 0) && is_it(source), "is {source:?}");
    }
}

#[test]
fn addresses_of_no_function() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let error = refused_with(
        &rt,
        er_data as *const (),
        &["no unwind entry and no symbol"],
    );
    assert_is!(
        error,
        Error::Tramp(TrampError::Text(TextError::DataInText { .. }))
    );
    let all = Func::all_in(RxAddr::new(er_short as usize as u64)).unwrap();
    let is_part = |f: &&Func| f.name.as_deref() == Some("er_short.cold");
    let part = all.iter().find(is_part).unwrap().entry.get() as *const ();
    let error = refused_with(&rt, part, &["er_short.cold", "pass the function itself"]);
    assert_is!(
        error,
        Error::Tramp(TrampError::Text(TextError::FunctionPart { .. }))
    );
    let words = [
        "-fasynchronous-unwind-tables",
        "-fpatchable-function-entry=5",
    ];
    let error = refused_with(&rt, er_endless as *const (), &words);
    assert_is!(error, Error::Tramp(TrampError::UnknownExtent { .. }));
}

#[test]
fn names_of_no_function() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let error = |object, name: &str, words: &[&str]| {
        // SAFETY:
        // 1. Nothing is claimed of it.
        let error = refused(unsafe { rt.hook_symbol(object, name, FuncModel::untyped()) });
        let message = error.to_string();
        for word in words {
            assert!(message.contains(word), "{message} does not say {word}");
        }
        error
    };
    assert_is!(
        error(Some("libnone.so"), "f", &["load it before", "libc.so.6"]),
        Error::Tramp(TrampError::Text(TextError::ObjectNotLoaded { .. }))
    );
    assert_is!(
        error(
            Some("libc.so.6"),
            "pthread_mutex_lok",
            &["pthread_mutex_lock"]
        ),
        Error::Tramp(TrampError::Text(TextError::UnknownSymbol { .. }))
    );
    assert_is!(
        error(Some("libc.so.6"), "environ", &["is data"]),
        Error::Tramp(TrampError::Text(TextError::SymbolIsData { .. }))
    );
}
