//! C text of the generated ABI cases.
//!
//! For signature `n`: `abi_f<n>`, the callee, which copies every argument it gets into
//! `tl_abi_got` and returns the bytes of `tl_abi_ret`; and `abi_c<n>`, the caller, which sends the
//! bytes of `tl_abi_in` through `tl_abi_entry` and copies what comes back into `tl_abi_out`. They
//! stand in different files, so that nothing but the calling convention lies between them.

use crate::sig::{Layout, Sig, Signed, Ty, buffer_offsets};
use std::fmt::Write;

/// What both sides of a chunk include: the types, and each callee's prototype.
pub(crate) fn header(first: usize, sigs: &[Sig]) -> String {
    let mut out = String::from("#include \"abi.h\"\n");
    for (i, sig) in sigs.iter().enumerate() {
        let n = first + i;
        for (k, ty) in sig.args().enumerate() {
            typedef(&mut out, ty, &format!("t{n}_{k}"));
        }
        if sig.ret != Ty::Void {
            typedef(&mut out, &sig.ret, &format!("r{n}"));
        }
        let ret = ret_type(n, sig);
        let params = params(n, sig);
        _ = writeln!(
            out,
            "{ret} abi_f{n}({params});\ntypedef {ret} (*p{n})({params});"
        );
    }
    out
}

/// The callees of a chunk.
pub(crate) fn callees(chunk: usize, first: usize, sigs: &[Sig]) -> String {
    let mut out = format!("#include \"gen{chunk}.h\"\n");
    for (i, sig) in sigs.iter().enumerate() {
        let n = first + i;
        let offsets = buffer_offsets(sig);
        let nr_named = sig.named.len();
        _ = writeln!(out, "{} abi_f{n}({}) {{", ret_type(n, sig), params(n, sig));
        for (k, at) in offsets[..nr_named].iter().enumerate() {
            _ = writeln!(out, "  memcpy(tl_abi_got + {at}, &a{k}, sizeof a{k});");
        }
        if sig.extra.is_some() {
            _ = writeln!(out, "  va_list ap; va_start(ap, a{});", nr_named - 1);
            for (k, at) in offsets.iter().enumerate().skip(nr_named) {
                _ = writeln!(
                    out,
                    "  t{n}_{k} a{k} = va_arg(ap, t{n}_{k}); \
                     memcpy(tl_abi_got + {at}, &a{k}, sizeof a{k});"
                );
            }
            out.push_str("  va_end(ap);\n");
        }
        out.push_str("  tl_abi_nr_calls++;\n");
        if sig.ret != Ty::Void {
            _ = writeln!(out, "  r{n} r; memcpy(&r, tl_abi_ret, sizeof r); return r;");
        }
        out.push_str("}\n");
    }
    out
}

/// The callers of a chunk.
pub(crate) fn callers(chunk: usize, first: usize, sigs: &[Sig]) -> String {
    let mut out = format!("#include \"gen{chunk}.h\"\n");
    for (i, sig) in sigs.iter().enumerate() {
        let n = first + i;
        let offsets = buffer_offsets(sig);
        _ = writeln!(out, "void abi_c{n}(void) {{");
        for (k, at) in offsets.iter().enumerate() {
            _ = writeln!(
                out,
                "  t{n}_{k} a{k}; memcpy(&a{k}, tl_abi_in + {at}, sizeof a{k});"
            );
        }
        let args = (0..offsets.len())
            .map(|k| format!("a{k}"))
            .collect::<Vec<_>>()
            .join(", ");
        if sig.ret == Ty::Void {
            _ = writeln!(out, "  ((p{n})tl_abi_entry)({args});\n}}");
        } else {
            _ = writeln!(
                out,
                "  r{n} r = ((p{n})tl_abi_entry)({args});\n  memcpy(tl_abi_out, &r, sizeof r);\n}}"
            );
        }
    }
    out
}

/// The table that Rust reads.
pub(crate) fn table(nr_sigs: usize) -> String {
    let mut out = String::new();
    for n in 0..nr_sigs {
        _ = writeln!(out, "void abi_c{n}(void); void abi_f{n}(void);");
    }
    out.push_str("const struct { void (*caller)(void), (*callee)(void); } tl_abi_cases[] = {\n");
    for n in 0..nr_sigs {
        _ = writeln!(out, "  {{ abi_c{n}, abi_f{n} }},");
    }
    out.push_str("};\n");
    out
}

fn ret_type(n: usize, sig: &Sig) -> String {
    if sig.ret == Ty::Void {
        "void".into()
    } else {
        format!("r{n}")
    }
}

fn params(n: usize, sig: &Sig) -> String {
    let mut params: Vec<String> = (0..sig.named.len())
        .map(|k| format!("t{n}_{k} a{k}"))
        .collect();
    if sig.extra.is_some() {
        params.push("...".into());
    }
    if params.is_empty() {
        "void".into()
    } else {
        params.join(", ")
    }
}

/// A typedef, and the compiler's word that it is laid out as [`Ty`] says.
fn typedef(out: &mut String, ty: &Ty, name: &str) {
    let (size, align) = (ty.size_bytes(), ty.align_bytes());
    _ = writeln!(out, "typedef {};", declare(ty, name));
    _ = writeln!(out, "_Static_assert(sizeof({name}) == {size}, \"size\");");
    _ = writeln!(
        out,
        "_Static_assert(_Alignof({name}) == {align}, \"alignment\");"
    );
}

/// The C declaration of `name` with this type.
fn declare(ty: &Ty, name: &str) -> String {
    let members = |members: &[Ty]| {
        let each = members.iter().enumerate();
        let each = each.map(|(i, ty)| declare(ty, &format!("m{i}")) + "; ");
        each.collect::<String>()
    };
    match ty {
        Ty::Void => format!("void {name}"),
        Ty::Bool => format!("_Bool {name}"),
        Ty::Int(size, signed) => {
            let word = match size {
                1 => "char",
                2 => "short",
                4 => "int",
                8 => "long",
                _ => "__int128",
            };
            let sign = if *signed == Signed::Yes {
                "signed"
            } else {
                "unsigned"
            };
            format!("{sign} {word} {name}")
        }
        Ty::Ptr => format!("void *{name}"),
        Ty::Float(size) => format!("{} {name}", real(*size)),
        Ty::Complex(size) => format!("{} _Complex {name}", real(*size)),
        Ty::Array(element, n) => declare(element, &format!("{name}[{n}]")),
        Ty::Struct(list, layout) => {
            let attribute = match layout {
                Layout::C => "",
                Layout::Packed => "__attribute__((packed)) ",
                Layout::Aligned16 => "__attribute__((aligned(16))) ",
            };
            format!("struct {attribute}{{ {}}} {name}", members(list))
        }
        Ty::Union(list) => format!("union {{ {}}} {name}", members(list)),
    }
}

fn real(size: u32) -> &'static str {
    match size {
        2 => "_Float16",
        4 => "float",
        8 => "double",
        _ => "long double",
    }
}
