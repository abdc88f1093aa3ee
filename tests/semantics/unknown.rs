//! Return hooks of functions whose stack arguments nobody knows, and jumps across them.

use std::arch::global_asm;
use std::ffi::{c_int, c_long};
use std::sync::Arc;
use std::time::Duration;

use rvbpf::model::Type;
use rvbpf::{FuncModel, Hook, Runtime};
use testlib::functions::{tl_catch_jump, tl_sum, tl_weigh12};

use crate::common::{
    Count, JUMP, SUM, WEIGH12, assert_settled, hook, serial, wait_until, weigh_from,
};

// sp_probe: a hookable function that returns its stack pointer. sp_delta: calls it and returns how
// far below the caller's stack pointer that was.
global_asm!(
    ".section .text.sp_probe, \"ax\", @progbits",
    ".balign 4",
    ".type sp_probe, @function",
    "sp_probe:",
    ".option push",
    ".option norvc",
    ".rept 5",
    "nop",
    ".endr",
    ".option pop",
    "mv a0, sp",
    "ret",
    ".size sp_probe, . - sp_probe",
    ".type sp_delta, @function",
    "sp_delta:",
    "addi sp, sp, -16",
    "sd ra, 8(sp)",
    "call sp_probe",
    "sub a0, sp, a0",
    "ld ra, 8(sp)",
    "addi sp, sp, 16",
    "ret",
    ".size sp_delta, . - sp_delta",
    ".section __patchable_function_entries, \"awo\", @progbits, .text.sp_probe",
    ".balign 8",
    ".quad sp_probe",
    ".previous",
);

unsafe extern "C" {
    safe fn sp_probe() -> u64;
    safe fn sp_delta() -> i64;
}

fn untyped(rt: &Runtime, addr: *const ()) -> rvbpf::HookBuilder<rvbpf::Untyped> {
    // SAFETY:
    // 1. The model claims nothing.
    unsafe { rt.hook_addr(addr, FuncModel::untyped()) }.unwrap()
}

#[test]
fn a_function_of_unknown_arguments_sees_its_callers_stack_pointer() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    assert_eq!(sp_delta(), 0);
    let probe = sp_probe as extern "C" fn() -> u64;
    let at = probe as *const ();

    let both = untyped(&rt, at)
        .on_entry(|_| {})
        .on_exit(|_, _| {})
        .attach()
        .unwrap();
    assert_eq!(sp_delta(), 0, "untyped entry and exit hook");
    drop(both);
    let variadic = FuncModel::variadic(&[Type::I64], Type::I64).unwrap();
    // SAFETY:
    // 1. The function looks at no argument at all.
    let variadic = unsafe { rt.hook_addr(at, variadic) }.unwrap();
    let exit = variadic.on_exit(|_, _| {}).attach().unwrap();
    assert_eq!(sp_delta(), 0, "variadic exit hook");
    drop(exit);
    let entry = hook(&rt, probe).on_entry(|_| {}).attach().unwrap();
    assert_eq!(
        sp_delta(),
        0,
        "an entry hook is out of the way when the function runs"
    );
    drop(entry);
    let exit = hook(&rt, probe).on_exit(|_, _| {}).attach().unwrap();
    assert!(
        sp_delta() > 0,
        "a typed exit hook has its frame between: this test can fail"
    );
    drop(exit);
    assert_settled(&rt);
}

/// Twelve numbers: eight words in registers, the rest on the stack.
fn sum_of_12() -> c_long {
    // SAFETY:
    // 1. Twelve `long`s follow.
    unsafe {
        tl_sum(
            12, 1_i64, 2_i64, 3_i64, 4_i64, 5_i64, 6_i64, 7_i64, 8_i64, 9_i64, 10_i64, 11_i64,
            12_i64,
        )
    }
}

#[test]
fn variadic_functions_return_through_their_hooks() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let right = Arc::new(Count::new());
    let count = right.clone();
    let hooked = hook(&rt, SUM)
        .on_entry(|call| assert_eq!(call.args().0, 12))
        .on_exit(move |call, ret| {
            assert_eq!((call.args().0, *ret), (12, 78));
            count.add();
        })
        .attach()
        .unwrap();
    for _ in 0..100 {
        assert_eq!(sum_of_12(), 78);
    }
    assert_eq!(right.get(), 100);
    drop(hooked);
    let instead = hook(&rt, SUM)
        .on_exit(|_, _| {})
        .override_return(|(n,)| Some(-c_long::from(n)))
        .attach();
    assert_eq!(sum_of_12(), -12);
    drop(instead.unwrap());
    assert_eq!(sum_of_12(), 78);
    assert_settled(&rt);
}

#[test]
fn untyped_hooks_pass_stack_arguments_on() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let right = Arc::new(Count::new());
    let count = right.clone();
    let hooked = untyped(&rt, WEIGH12 as *const ())
        .on_exit(move |call, ret| {
            assert_eq!((call.slots()[0], ret.slots[0]), (1, 650));
            count.add();
        })
        .attach()
        .unwrap();
    for _ in 0..100 {
        assert_eq!(weigh_from(1), (650, 650));
    }
    assert_eq!(right.get(), 100);
    drop(hooked);
    assert_settled(&rt);
}

/// Calls that are jumped out of never return to their images. Their frames are left behind on
/// shadow stacks, until those are full and swept.
fn jumps(rt: &Runtime, jump: &Hook, catch: &Hook, rounds: c_int) {
    let (before_jump, before_catch) = (jump.stats().progs[0].runs, catch.stats().progs[1].runs);
    for i in 1..=rounds {
        assert_eq!(tl_catch_jump(i), i);
        // Frames of calls that do return lie above those that never will.
        if i % 64 == 0 {
            assert_eq!(sum_of_12(), 78);
            assert_eq!(weigh_from(i.into()).0, weigh_from(i.into()).1);
        }
    }
    assert_eq!(jump.stats().progs[0].runs - before_jump, rounds as u64);
    assert_eq!(
        catch.stats().progs[1].runs - before_catch,
        rounds as u64,
        "it did return"
    );
    assert_eq!(rt.stats().tramps.images, 4);
}

#[test]
fn longjmp_across_hooked_calls() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let catch = tl_catch_jump as extern "C" fn(c_int) -> c_int as *const ();
    let sum = hook(&rt, SUM).on_exit(|_, _| {}).attach().unwrap();
    let weigh = untyped(&rt, tl_weigh12 as *const ())
        .on_exit(|_, _| {})
        .attach()
        .unwrap();

    let typed_jump = hook(&rt, JUMP)
        .on_entry(|_| {})
        .on_exit(|_, _| {})
        .attach()
        .unwrap();
    let catch_hook = untyped(&rt, catch)
        .on_entry(|_| {})
        .on_exit(|_, _| {})
        .attach()
        .unwrap();
    jumps(&rt, &typed_jump, &catch_hook, 1000);
    typed_jump.detach().unwrap();

    let jump = untyped(&rt, JUMP as *const ())
        .on_entry(|_| {})
        .on_exit(|_, _| {})
        .attach()
        .unwrap();
    // A shadow stack has room for some 14,000 frames.
    jumps(&rt, &jump, &catch_hook, 40_000);
    // Below a call that has returned and one that has not, as below none.
    std::thread::scope(|s| {
        s.spawn(|| jumps(&rt, &jump, &catch_hook, 20_000))
            .join()
            .unwrap();
    });
    assert_eq!(jump.stats().missed, 0);
    rt.detach_all([&sum, &weigh, &jump, &catch_hook]).unwrap();
    assert_eq!(tl_catch_jump(5), 5);
    // At worst the images that were jumped out of are kept: typed and untyped `tl_jump`.
    wait_until("all is freed but what was jumped out of", || {
        rt.synchronize(Duration::from_millis(200)).is_ok() || rt.stats().tramps.retired <= 2
    });
}
