//! Functions by name, held against what the dynamic linker says.

use std::ffi::CStr;

use rvbpf_text::{Func, RxAddr, TextError, find_symbol};

/// What the dynamic linker finds for this program.
pub(crate) fn linked(name: &CStr) -> RxAddr {
    // SAFETY: a NUL-terminated name.
    let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
    assert!(!found.is_null(), "{name:?}");
    RxAddr::new(found.expose_provenance() as u64)
}

#[test]
fn exported_functions_are_those_of_the_dynamic_linker() {
    // `realpath` has an old version beside the default one on most machines, `memcpy` and
    // `strlen` have several implementations.
    for name in [
        c"malloc",
        c"free",
        c"qsort",
        c"realpath",
        c"memcpy",
        c"strlen",
        c"getpid",
    ] {
        let text = name.to_str().unwrap();
        assert_eq!(find_symbol(None, text), Ok(linked(name)), "{text}");
        assert_eq!(
            find_symbol(Some("libc.so.6"), text),
            Ok(linked(name)),
            "{text}"
        );
    }
}

#[test]
fn objects_are_called_by_their_files() {
    let malloc = find_symbol(Some("libc.so.6"), "malloc");
    assert!(malloc.is_ok());
    let path = Func::find(malloc.clone().unwrap()).unwrap().object.unwrap();
    let path = path.to_str().unwrap();
    let above: Vec<&str> = path.rsplit('/').take(2).collect();
    for name in [
        "libc",
        "libc.so",
        path,
        &format!("{}/{}", above[1], above[0]),
    ] {
        assert_eq!(find_symbol(Some(name), "malloc"), malloc, "{name}");
    }
    for name in [
        "lib",
        "libc.so.",
        "ibc.so.6",
        "",
        "/libc.so.6",
        "etc/libc.so.6",
    ] {
        let got = find_symbol(Some(name), "malloc");
        assert!(
            matches!(got, Err(TextError::ObjectNotLoaded { .. })),
            "{name}: {got:?}"
        );
    }
}

#[test]
fn a_function_has_one_name_and_one_length() {
    let malloc = Func::find(linked(c"malloc")).unwrap();
    assert_eq!(malloc.name.as_deref(), Some("malloc"));
    assert!(malloc.len_bytes.is_some_and(|len| len > 16));
    // With several implementations, the chosen one bears the name.
    let memcpy = Func::find(linked(c"memcpy")).unwrap();
    assert!(memcpy.name.is_some_and(|name| name.contains("mem")));
}

#[test]
fn functions_of_this_program_have_names_too() {
    let errors = Func::all_in(RxAddr::new((linked as *const ()).expose_provenance() as u64));
    let is_it = |f: &&Func| {
        f.name
            .as_deref()
            .is_some_and(|n| n.contains("5names6linked"))
    };
    let func = errors.unwrap().into_iter().find(|f| is_it(&f)).unwrap();
    let name = func.name.unwrap();
    assert_eq!(find_symbol(None, &name), Ok(func.entry));
    let exe = std::env::current_exe().unwrap();
    let file = exe.file_name().unwrap().to_str().unwrap();
    assert_eq!(find_symbol(Some(file), &name), Ok(func.entry));
}

#[test]
fn names_that_are_none_are_said() {
    let unknown = find_symbol(Some("libc.so.6"), "mallok").unwrap_err();
    assert_eq!(
        unknown,
        TextError::UnknownSymbol {
            symbol: "mallok".into(),
            object: Some("libc.so.6".into()),
            nearest: Some("malloc".into()),
        }
    );
    let anywhere = find_symbol(None, "no_such_function_anywhere").unwrap_err();
    assert!(matches!(
        &anywhere,
        TextError::UnknownSymbol {
            object: None,
            nearest: None,
            ..
        }
    ));
    let data = find_symbol(None, "environ").unwrap_err();
    assert_eq!(
        data.to_string(),
        "`environ` of libc.so.6 is data, not a function"
    );
    let used = find_symbol(Some("libgcc_s.so.1"), "malloc").unwrap_err();
    assert_eq!(
        used.to_string(),
        "libgcc_s.so.1 calls `malloc` but does not define it: name the object that does, or \
         none, to look in all of them"
    );
    let missing = find_symbol(Some("libfoo.so.3"), "malloc")
        .unwrap_err()
        .to_string();
    assert!(
        missing.contains("no loaded object is called `libfoo.so.3`"),
        "{missing}"
    );
    assert!(missing.contains("libc.so.6"), "{missing}");
    assert!(
        missing.contains("such as `libz.so.1`, and load it before"),
        "{missing}"
    );
}

#[test]
fn a_name_of_several_functions_is_said() {
    let here = RxAddr::new((linked as *const ()).expose_provenance() as u64);
    let mut names: Vec<_> = Func::all_in(here)
        .unwrap()
        .into_iter()
        .filter_map(|f| f.name)
        .collect();
    names.sort_unstable();
    // What compilers emit into every unit that uses it.
    let twice = names.windows(2).find(|pair| pair[0] == pair[1]);
    let [name, _] = twice.expect("this program has some") else {
        unreachable!()
    };
    let got = find_symbol(None, name);
    assert!(
        matches!(&got, Err(TextError::AmbiguousSymbol { symbol, .. }) if symbol == name),
        "{got:?}"
    );
}
