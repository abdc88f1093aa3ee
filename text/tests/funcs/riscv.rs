//! What only riscv64 has: vector functions, and stubs as this machine writes them.

use std::arch::global_asm;
use std::ffi::CString;

use object::{Object as _, ObjectSymbol};
use rvbpf_text::{Convention, Func, Mapping, ProcMaps, RxAddr, TextError};

use super::names::linked;

global_asm!(
    ".text",
    ".p2align 2",
    ".variant_cc asm_vector",
    ".globl asm_vector",
    ".type asm_vector, @function",
    "asm_vector: ret",
    ".size asm_vector, . - asm_vector",
    // A function that may be there or not, and is not.
    ".weak asm_nowhere",
    ".globl asm_calls_nowhere",
    ".type asm_calls_nowhere, @function",
    "asm_calls_nowhere: tail asm_nowhere@plt",
    ".size asm_calls_nowhere, . - asm_calls_nowhere",
);

unsafe extern "C" {
    fn asm_vector();
    fn asm_calls_nowhere();
}

#[test]
fn vector_functions_are_refused_by_name() {
    let addr = RxAddr::new((asm_vector as *const ()).expose_provenance() as u64);
    let symbol = "asm_vector".into();
    assert_eq!(Func::find(addr), Err(TextError::VariantCc { symbol }));
    let all = Func::all_in(addr).unwrap();
    let func = all.iter().find(|f| f.entry == addr).unwrap();
    assert_eq!(func.convention, Convention::Variant);
}

fn word(at: u64) -> u64 {
    let at = std::ptr::with_exposed_provenance::<u64>(at as usize);
    // SAFETY: the tests pass addresses inside mappings that stay.
    unsafe { at.read_unaligned() }
}

/// A stub, where it is and what it loads.
struct Stub {
    at: RxAddr,
    slot: u64,
}

/// All stubs of a loaded file.
fn stubs(path: &std::path::Path) -> Vec<Stub> {
    let maps = ProcMaps::read().unwrap();
    let path = path.canonicalize().unwrap();
    let is_text =
        |m: &&Mapping| m.is_private_text() && m.path == path.as_os_str().as_encoded_bytes();
    let mut stubs = Vec::new();
    for text in maps.all().iter().filter(is_text) {
        for at in (text.range.start.get()..text.range.end().get() - 16).step_by(4) {
            let (first, second) = (word(at), word(at + 8));
            // auipc t3; ld t3, _(t3); jalr t1, t3
            if first & 0xfff == 0xe17
                && first >> 32 & 0xf_ffff == 0xe_3e03
                && second as u32 == 0xe_0367
            {
                let hi = i64::from(first as u32 as i32 >> 12) << 12;
                let lo = i64::from((first >> 32) as u32 as i32 >> 20);
                stubs.push(Stub {
                    at: RxAddr::new(at),
                    slot: at.wrapping_add_signed(hi + lo),
                });
            }
        }
    }
    stubs
}

/// The names that the file gives its slots, by address in the file.
fn slot_names(path: &std::path::Path) -> Vec<(u64, String)> {
    let bytes = std::fs::read(path).unwrap();
    let elf = object::File::parse(&*bytes).unwrap();
    let relocations = elf.dynamic_relocations().unwrap();
    let name = |(at, relocation): (u64, object::Relocation)| match relocation.target() {
        object::RelocationTarget::Symbol(i) => {
            let table = elf.dynamic_symbol_table()?;
            let symbol = object::ObjectSymbolTable::symbol_by_index(&table, i).ok()?;
            Some((at, symbol.name().ok()?.to_owned()))
        }
        _ => None,
    };
    relocations.filter_map(name).collect()
}

/// What stubs lead to.
#[derive(Default)]
struct Followed {
    bound: usize,
    unbound: usize,
    nowhere: usize,
}

/// Follows every stub of an object.
fn follow(in_object: RxAddr) -> Followed {
    let func = Func::find(in_object).unwrap();
    let path = func.object.unwrap();
    let names = slot_names(&path);
    let bytes = std::fs::read(&*path).unwrap();
    let elf = object::File::parse(&*bytes).unwrap();
    let name = func.name.unwrap();
    let is_it = |s: &object::Symbol<'_, '_>| s.name() == Ok(&*name) && !s.is_undefined();
    let mut symbols = elf.dynamic_symbols().chain(elf.symbols());
    let base = in_object.get() - symbols.find(is_it).unwrap().address();
    let mut followed = Followed::default();
    for stub in stubs(&path) {
        let Some((_, name)) = names.iter().find(|(at, _)| base + at == stub.slot) else {
            continue;
        };
        let c_name = CString::new(&**name).unwrap();
        // SAFETY: a NUL-terminated name.
        let want = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c_name.as_ptr()) };
        let before = word(stub.slot);
        let got = Func::find(stub.at);
        if want.is_null() {
            let is_said = matches!(&got, Err(TextError::UnresolvedStub { symbol, .. })
                if **symbol == **name);
            assert!(is_said, "{name}: {got:?}");
            followed.nowhere += 1;
            continue;
        }
        let want = RxAddr::new(want.expose_provenance() as u64);
        assert_eq!(got.map(|f| f.entry), Ok(want), "{name}");
        assert_eq!(word(stub.slot), before, "looking does not bind");
        if before == want.get() {
            followed.bound += 1;
        } else {
            followed.unbound += 1;
        }
    }
    followed
}

#[test]
fn stubs_of_this_program_lead_to_functions() {
    let addr = RxAddr::new((asm_calls_nowhere as *const ()).expose_provenance() as u64);
    let followed = follow(addr);
    assert!(followed.bound > 10, "{}", followed.bound);
    assert_eq!(
        followed.unbound, 0,
        "this program is bound when it is loaded"
    );
    assert_eq!(followed.nowhere, 1);
}

#[test]
fn stubs_that_are_not_bound_yet_lead_to_what_they_will_call() {
    let followed = follow(linked(c"_Unwind_Backtrace"));
    assert!(followed.unbound > 3, "{}", followed.unbound);
}
