//! Nested functions of GNU C find the frame of their function by `t2`, at whatever place they look.

use std::ffi::c_long;

use rvbpf::model::Type;
use rvbpf::{EntryKind, FuncModel, Runtime};
use testlib::functions::{tl_outer, tl_outer_late};

use crate::common::{assert_settled, serial};

/// What programs leave in temporaries.
#[inline(never)]
fn spoil(n: u64) -> u64 {
    let out: u64;
    // SAFETY: 1. changes nothing but registers that it names.
    unsafe {
        std::arch::asm!(
            "mv {out}, {n}", "li t2, 1", "li t3, 2", "fmv.d.x ft0, zero",
            n = in(reg) n, out = lateout(reg) out,
            out("t2") _, out("t3") _, out("ft0") _,
        );
    };
    out
}

#[test]
fn their_chain_survives() {
    let _one = serial();
    let (plain, late) = (tl_outer(5, 20), tl_outer_late(5, 20));
    let sum: c_long = 5 + 20 + 21;
    assert_eq!((plain, late), (101 * sum, 300 * 20 + 11 * (5 + 8)));
    let typed = FuncModel::new(&[Type::I64], Type::I64).unwrap();
    for name in ["tl_inner.0", "tl_inner_late.1"] {
        for model in [typed.clone(), FuncModel::untyped()] {
            for at_exit in [false, true] {
                let rt = Runtime::new().unwrap();
                // SAFETY: 1. of `long` and to `long`, or nothing is claimed.
                let builder = unsafe { rt.hook_symbol(None, name, model.clone()) }.unwrap();
                let builder = builder.on_entry(|call| {
                    spoil(call.slots()[0]);
                });
                let builder = match at_exit {
                    true => builder.on_exit(|call, _| {
                        spoil(call.slots()[0]);
                    }),
                    false => builder,
                };
                let hook = builder.attach().unwrap();
                assert_eq!(hook.kind(), Some(EntryKind::Pad));
                assert_eq!(tl_outer(5, 20), plain, "{name}");
                assert_eq!(tl_outer_late(5, 20), late, "{name}");
                assert_eq!(hook.stats().progs[0].runs, 2);
                drop(hook);
                assert_settled(&rt);
            }
        }
    }
}
