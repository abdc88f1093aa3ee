//! All functions of an object, held against its file.

use object::{Object as _, ObjectSymbol, SymbolFlags, SymbolKind};
use rvbpf_text::{Func, FuncKind, ProcMaps, RxAddr};

use super::names::linked;

fn check(funcs: &[Func]) {
    let maps = ProcMaps::read().unwrap();
    for pair in funcs.windows(2) {
        let end = pair[0].entry.get() + pair[0].len_bytes.unwrap_or(1) as u64;
        assert!(end <= pair[1].entry.get(), "{pair:?}");
    }
    for func in funcs {
        let mapping = maps.find(func.entry).unwrap();
        assert_eq!(mapping.perms[2], b'x', "{func:?}");
        assert_ne!(func.len_bytes, Some(0), "{func:?}");
    }
}

#[test]
fn every_function_of_this_program_is_known() {
    let here = RxAddr::new((check as *const ()).expose_provenance() as u64);
    let funcs = Func::all_in(here).unwrap();
    check(&funcs);
    let bytes = std::fs::read("/proc/self/exe").unwrap();
    let elf = object::File::parse(&*bytes).unwrap();
    let at = |addr| funcs.binary_search_by_key(&addr, |f: &Func| f.entry).ok();
    let base = {
        let name = funcs[at(here).unwrap()].name.clone().unwrap();
        let symbol = elf.symbols().find(|s| s.name() == Ok(&name)).unwrap();
        here.get() - symbol.address()
    };
    let (mut count, mut cut) = (0, 0);
    for symbol in elf
        .symbols()
        .filter(|s| s.kind() == SymbolKind::Text && !s.is_undefined())
    {
        let is_func = matches!(symbol.flags(),
            SymbolFlags::Elf { st_info, .. } if st_info.0 & 0xf == 2);
        if !is_func || symbol.size() == 0 {
            continue;
        }
        let name = symbol.name().unwrap();
        let func = at(RxAddr::new(base + symbol.address())).map(|i| &funcs[i]);
        let func = func.unwrap_or_else(|| panic!("{name}"));
        count += 1;
        if func.len_bytes != Some(symbol.size() as usize) {
            cut += 1;
        }
    }
    assert!(count > 500, "{count}");
    // Only where symbols lie in each other, or an alias is longer.
    assert!(cut * 100 < count, "{cut} of {count}");
}

#[test]
fn every_export_of_the_c_library_is_known() {
    let funcs = Func::all_in(linked(c"malloc")).unwrap();
    check(&funcs);
    let path = funcs[0].object.clone().unwrap();
    let bytes = std::fs::read(&*path).unwrap();
    let elf = object::File::parse(&*bytes).unwrap();
    let base = {
        let is_it = |s: &object::Symbol<'_, '_>| s.name() == Ok("malloc") && !s.is_undefined();
        let malloc = elf.dynamic_symbols().find(is_it).unwrap();
        linked(c"malloc").get() - malloc.address()
    };
    let mut count = 0;
    for symbol in elf.dynamic_symbols() {
        if symbol.kind() == SymbolKind::Text && !symbol.is_undefined() {
            let addr = RxAddr::new(base + symbol.address());
            let found = funcs.binary_search_by_key(&addr, |f| f.entry);
            assert!(found.is_ok(), "{:?}", symbol.name());
            count += 1;
        }
    }
    assert!(count > 1500, "{count}");
    // Internal ones have no names, but lengths.
    let unnamed = funcs.iter().filter(|f| f.name.is_none());
    let (known, all) = unnamed.fold((0, 0), |(known, all), f| {
        (known + usize::from(f.len_bytes.is_some()), all + 1)
    });
    assert!(all > 300 && known == all, "{known} of {all}");
    assert!(funcs.iter().any(|f| f.kind == FuncKind::Part));
}
