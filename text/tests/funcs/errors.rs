//! Addresses that are no functions, each with its sentence.

use std::sync::atomic::AtomicU64;

use rvbpf_text::{Backing, CodeMap, Func, Place, RxAddr, TextError};

#[inline(never)]
fn of_this_program(n: u64) -> u64 {
    std::hint::black_box(n).rotate_left(3) ^ 0x5555
}

fn rx(f: fn(u64) -> u64) -> RxAddr {
    RxAddr::new((f as *const ()).expose_provenance() as u64)
}

#[test]
fn a_function_of_this_program_is_found() {
    let func = Func::find(rx(of_this_program)).unwrap();
    assert_eq!(func.entry, rx(of_this_program));
    assert!(func.len_bytes.is_some_and(|len| (4..4096).contains(&len)));
    assert!(func.name.unwrap().contains("of_this_program"));
    assert_eq!(*func.object.unwrap(), *std::env::current_exe().unwrap());
}

#[test]
fn the_middle_of_a_function_is_said() {
    let addr = rx(of_this_program).checked_add(4).unwrap();
    let got = Func::find(addr).unwrap_err();
    let TextError::NotAFunction { func, .. } = got else {
        panic!("{got:?}");
    };
    assert_eq!(func, rx(of_this_program));
    let text = got.to_string();
    assert!(text.contains("4 bytes inside `"), "{text}");
    assert!(text.contains("of_this_program"), "{text}");
}

#[test]
fn what_cannot_be_executed_is_said() {
    static DATA: AtomicU64 = AtomicU64::new(0);
    let addr = RxAddr::new((&raw const DATA).expose_provenance() as u64);
    assert_eq!(Func::find(addr), Err(TextError::NotExecutable { addr }));
    let addr = RxAddr::new(0x10);
    assert_eq!(Func::find(addr), Err(TextError::Unmapped { addr }));
    assert_eq!(Func::all_in(addr), Err(TextError::Unmapped { addr }));
    let addr = RxAddr::new(rx(of_this_program).get() + 1);
    assert!(matches!(
        Func::find(addr),
        Err(TextError::Misaligned { .. })
    ));
}

#[test]
fn of_code_made_at_run_time_nothing_is_known() {
    let map = CodeMap::new(4096, Place::Anywhere, Backing::Memfd).unwrap();
    let addr = map.rx().start;
    let func = Func::find(addr).unwrap();
    assert_eq!(
        (func.entry, func.len_bytes, func.name, func.object),
        (addr, None, None, None)
    );
    assert_eq!(Func::all_in(addr), Err(TextError::Unmapped { addr }));
}

#[test]
fn sentences_say_what_to_do() {
    let addr = RxAddr::new(0x1000);
    for (error, want) in [
        (
            TextError::NotAFunction {
                addr,
                func: RxAddr::new(0xff0),
                name: None,
            },
            "no function starts at 0x1000: it is 16 bytes inside the code at 0xff0; pass the \
             function's first instruction",
        ),
        (
            TextError::FunctionPart {
                addr,
                name: Some("f.cold".into()),
            },
            "`f.cold` is no function but a part of one, which is never called: pass the function \
             itself",
        ),
        (
            TextError::UnresolvedStub {
                addr,
                symbol: "f".into(),
            },
            "the stub at 0x1000 leads to f, which no loaded object defines: load the library that \
             does first",
        ),
        (
            TextError::UnknownSymbol {
                symbol: "deflat".into(),
                object: Some("libz.so.1".into()),
                nearest: Some("deflate".into()),
            },
            "libz.so.1 has no `deflat` (did you mean `deflate`?): functions that are neither \
             exported nor in the symbol table of a file have no names, and can be given by their \
             addresses",
        ),
        (
            TextError::AmbiguousSymbol {
                symbol: "init".into(),
                object: "a.so".into(),
            },
            "a.so has several functions `init`: give the address of the one that is meant",
        ),
        (
            TextError::UnknownChoice {
                symbol: "f".into(),
                object: "a.so".into(),
            },
            "`f` of a.so has several implementations, and nothing tells which one this machine \
             uses: give the address of the one that is meant",
        ),
    ] {
        assert_eq!(error.to_string(), want);
    }
}
