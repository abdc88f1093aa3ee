//! Every error, and that nothing has changed after it.

use std::time::Duration;

use rvbpf::bpf::BpfReg::{R0, R2, R10};
use rvbpf::bpf::{AluOp, Env, ProgramBuilder};
use rvbpf::struct_ops::{OpsError, StructOps as _, Table};
use rvbpf::{Runtime, StructOps};

use crate::common::{assert_settled, serial};
use crate::table::{M, Ops, builder, register, stamp_default};

extern "C" fn takes_two(a: i64, b: i64) -> i64 {
    a + b
}

extern "C" fn other_sign(x: u64) -> u64 {
    x
}

#[test]
fn a_function_of_another_model_is_refused() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let too_many: extern "C" fn(i64, i64) -> i64 = takes_two;
    let table = builder(&rt).function_named("stamp", too_many).build();
    let text = table.unwrap_err().to_string();
    assert_eq!(
        text,
        "Ops::stamp has other arguments or another result than the function for it"
    );
    // 64 bits are 64 bits: the calling convention knows no difference.
    let unsigned: extern "C" fn(u64) -> u64 = other_sign;
    assert!(
        builder(&rt)
            .function_named("stamp", unsigned)
            .build()
            .is_ok()
    );
    let stamp: extern "C" fn(i64) -> i64 = stamp_default;
    let table = builder(&rt).function_named("stump", stamp).build();
    assert_eq!(
        table.unwrap_err().to_string(),
        "Ops has no member function stump"
    );
    // Data is no function.
    let table = builder(&rt).function_named("flags", stamp).build();
    assert!(matches!(table, Err(OpsError::NoSuchMember { .. })));
    assert_settled(&rt);
}

/// A member that must be there.
#[derive(StructOps)]
#[repr(C)]
struct Strict {
    open: extern "C" fn(i32) -> i32,
    #[ops(default = close)]
    close: extern "C" fn(i32),
}

const STRICT: StrictMembers = Strict::MEMBERS;

extern "C" fn close(_: i32) {}
extern "C" fn open(x: i32) -> i32 {
    x + 1
}

#[test]
fn a_missing_member_is_named() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let table = Table::<Strict>::builder(&rt).unwrap().build();
    assert_eq!(
        table.unwrap_err().to_string(),
        "Strict::open is missing: it has no default"
    );
    let table = Table::<Strict>::builder(&rt).unwrap();
    let table = table.function(STRICT.open, open).build().unwrap();
    // SAFETY: 1. nothing is called afterwards.
    let link = unsafe { rt.register(&table) }.unwrap();
    assert_eq!((link.get(STRICT.open))(2), 3);
    (link.get(STRICT.close))(0);
    assert_eq!((link.pin().unwrap().open)(3), 4);
    link.unregister(Duration::from_secs(10)).unwrap();
    assert_eq!((link.get(STRICT.open))(2), 0, "vacant");
    drop((link, table));
    assert_settled(&rt);
}

#[test]
fn a_table_serves_one_link() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let [one, two] = [(); 2].map(|()| builder(&rt).build().unwrap());
    let link = register(&rt, &one);
    // SAFETY: 1. nothing is called.
    let again = unsafe { rt.register(&one) };
    let text = again.unwrap_err().to_string();
    assert_eq!(text, "this table of Ops is registered already");
    let other = register(&rt, &two);
    assert!(matches!(
        other.update(&one),
        Err(OpsError::AlreadyRegistered { .. })
    ));
    link.update(&one).unwrap();
    assert_eq!(rt.stats().ops.links, 2);
    drop(link);
    other.update(&one).unwrap();
    assert!(matches!(other.begin_unregister().map(drop), Ok(())));
    for refused in [other.update(&two), other.unregister(Duration::ZERO)] {
        assert!(matches!(refused, Err(OpsError::Unregistered { .. })));
    }
    assert!(other.pin().is_none());
    drop((other, one, two));
    assert_settled(&rt);
    assert_eq!(rt.stats().ops, Default::default());
}

#[test]
fn a_table_of_another_type_is_refused() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let ops = builder(&rt).build().unwrap();
    let strict = Table::<Strict>::builder(&rt).unwrap();
    let strict = strict.function(STRICT.open, open).build().unwrap();
    let link = register(&rt, &ops);
    let refused = link.any().update(&strict.any());
    assert_eq!(
        refused.unwrap_err().to_string(),
        "a link of Ops cannot be updated by a table of Strict"
    );
    assert_eq!(
        (link.any().type_name(), strict.any().type_name()),
        ("Ops", "Strict")
    );
    let other = builder(&rt).closure(M.stamp, |_| 8).build().unwrap();
    link.any().update(&other.any()).unwrap();
    assert_eq!((link.get(M.stamp))(1), 8);
    drop((link, ops, strict, other));
    assert_settled(&rt);
}

#[test]
fn a_program_for_hooks_is_refused() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let asks = |helper| {
        let mut b = ProgramBuilder::new();
        b.mov(R2, R10).alu(AluOp::Add, R2, -8);
        b.call_helper(helper).exit();
        rt.load(&b.finish().unwrap(), &Env::tracing()).unwrap()
    };
    // get_func_ip, get_attach_cookie, get_func_ret
    for helper in [173, 174, 184] {
        // SAFETY: 1. it is not called.
        let table = unsafe { builder(&rt).bpf(M.stamp, &asks(helper)) }.build();
        let text = table.unwrap_err().to_string();
        assert_eq!(
            text,
            "the program for Ops::stamp asks for a hooked function's address, cookie or return \
             value: it is one for hooks",
        );
    }
    // get_func_arg_cnt means the same here as there.
    // SAFETY: 1. it returns a number.
    let table = unsafe { builder(&rt).bpf(M.weigh12, &asks(185)) }.build();
    let table = table.unwrap();
    let link = register(&rt, &table);
    let weigh12 = link.get(M.weigh12);
    assert_eq!(weigh12(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0), 12);
    drop((link, table));
    assert_settled(&rt);
}

#[test]
fn a_program_finds_nothing_of_a_hook() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let mut b = ProgramBuilder::new();
    b.mov(R0, 4).exit();
    let prog = rt.load(&b.finish().unwrap(), &Env::tracing()).unwrap();
    // SAFETY: 1. it returns a number.
    let table: Table<Ops> = unsafe { builder(&rt).bpf_named("stamp", &prog) }
        .build()
        .unwrap();
    drop(prog);
    let link = register(&rt, &table);
    drop(table);
    assert_eq!((link.get(M.stamp))(1), 4, "the link keeps what it needs");
    drop(link);
    assert_settled(&rt);
}
