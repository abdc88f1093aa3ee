//! Functions that cannot be hooked, and hooks that do not fit each other.

use std::ffi::c_long;

use rvbpf::model::Type;
use rvbpf::{EntryKind, Error, FuncModel, Runtime, TrampError};
use testlib::functions::{
    tl_add2, tl_no_pad, tl_pad_around_entry, tl_pad_at_0_mod_4, tl_pad_at_2_mod_4,
    tl_pad_just_enough, tl_pad_just_too_short, tl_pad_of_wide_nops, tl_pad_taken, tl_pad_too_short,
    tl_variant_cc,
};
use text::TextError;

use crate::common::{ADD2, WEIGH12, assert_settled, code_at, code_of, hook, serial, weigh_from};
use crate::{Before, assert_is, refused};

type F = extern "C" fn(c_long, c_long) -> c_long;

fn add_model() -> FuncModel {
    FuncModel::new(&[Type::I64, Type::I64], Type::I64).unwrap()
}

/// Hooks whatever is at `addr`, entry and exit.
fn attach_at(rt: &Runtime, addr: *const ()) -> Result<rvbpf::Hook, Error> {
    // SAFETY:
    // 1. Functions of two `long`s, or nothing at all.
    let builder = unsafe { rt.hook_addr(addr, add_model()) }?;
    builder.on_entry(|_| {}).on_exit(|_, _| {}).attach()
}

/// `addr` is refused, and `code_of` and the runtime are as before.
fn refused_at(addr: *const (), code_of: &[*const ()]) -> Error {
    let rt = Runtime::new().unwrap();
    let before = Before::new(&rt, code_of);
    let error = refused(attach_at(&rt, addr));
    before.assert_unchanged();
    assert_eq!(rt.stats().packs.nr_packs, 0, "nothing was begun");
    error
}

fn refused_function(f: F) -> Error {
    let error = refused_at(f as *const (), &[f as *const ()]);
    assert_eq!(f(40, 2), 42);
    error
}

/// The message shows these bytes.
fn assert_shows(error: &Error, found: &[u8]) {
    let hex: Vec<String> = found.iter().map(|b| format!("{b:02x}")).collect();
    assert!(
        error.to_string().contains(&hex.join(" ")),
        "{error} does not show {hex:?}"
    );
}

#[test]
fn pads_that_fit() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let fit: [F; 5] = [
        tl_pad_at_0_mod_4,
        tl_pad_at_2_mod_4,
        tl_pad_of_wide_nops,
        tl_pad_just_enough,
        tl_pad_around_entry,
    ];
    for (i, f) in fit.into_iter().enumerate() {
        let before = code_at(f as *const ());
        match attach_at(&rt, f as *const ()) {
            Ok(hooked) => {
                assert_eq!(f(40, 2), 42);
                assert_eq!(hooked.stats().runs, 2, "function {i}");
                hooked.detach().unwrap();
            }
            Err(error) => panic!("function {i}: {error}"),
        }
        assert_eq!(f(40, 2), 42);
        assert_settled(&rt);
        assert_eq!(
            code_at(f as *const ()),
            before,
            "function {i}: the nops are back"
        );
    }
}

/// Functions whose first instructions are moved, pads that are too short among them.
#[test]
fn functions_that_do_without_a_pad() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let funcs: [F; 3] = [tl_no_pad, tl_pad_just_too_short, tl_pad_too_short];
    for (i, f) in funcs.into_iter().enumerate() {
        let before = code_at(f as *const ());
        let hooked = attach_at(&rt, f as *const ()).unwrap();
        assert_eq!(hooked.kind(), Some(EntryKind::Jump), "function {i}");
        assert_eq!(f(40, 2), 42);
        assert_eq!(hooked.stats().runs, 2, "function {i}");
        hooked.detach().unwrap();
        assert_settled(&rt);
        assert_eq!(code_at(f as *const ()), before, "function {i}");
        assert_eq!(f(40, 2), 42);
    }
}

/// Inside of a function, even inside of a pad, is not at a function.
#[test]
fn not_a_function() {
    let _one = serial();
    for off in [2, 4, 10] {
        let inside = (ADD2 as *const ()).wrapping_byte_add(off);
        let error = refused_at(inside, &[ADD2 as *const ()]);
        assert_is!(
            &error,
            Error::Tramp(TrampError::Text(TextError::NotAFunction { func, .. }))
                if func.get() == ADD2 as usize as u64
        );
        assert!(
            error.to_string().contains("tl_add2"),
            "{error} does not name it"
        );
    }
    assert_eq!(tl_add2(1, 2), 3);
}

#[test]
fn a_pad_that_somebody_else_has_taken() {
    let _one = serial();
    let error = refused_function(tl_pad_taken);
    assert_is!(
        &error,
        Error::Tramp(TrampError::Text(TextError::PadTaken { .. }))
    );
    assert_shows(&error, &code_at(tl_pad_taken as F as *const ())[..8]);
}

#[test]
fn a_pad_that_another_runtime_has_taken() {
    let _one = serial();
    let (first, second) = (Runtime::new().unwrap(), Runtime::new().unwrap());
    let hooked = hook(&first, ADD2).on_entry(|_| {}).attach().unwrap();
    let before = Before::new(&second, &[ADD2 as *const ()]);
    // SAFETY:
    // 1. The function is of this type.
    let error = unsafe { second.hook(ADD2) }.and_then(|b| b.on_entry(|_| {}).attach());
    let error = refused(error);
    before.assert_unchanged();
    assert_is!(
        &error,
        Error::Tramp(TrampError::Text(TextError::PadTaken { .. }))
    );
    let Error::Tramp(TrampError::Text(TextError::PadTaken { site, found })) = &error else {
        unreachable!("checked above")
    };
    assert_eq!(code_of(*site)[..8], *found);
    assert_shows(&error, found);
    assert_eq!(tl_add2(1, 2), 3);
    assert_eq!(hooked.stats().runs, 1);
    // A batch with it is refused whole.
    let fine = hook(&second, WEIGH12).on_entry(|_| {});
    let fine_too = hook(&second, WEIGH12).on_exit(|_, _| {});
    assert!(
        second
            .attach_all([fine, fine_too])
            .is_ok_and(|hooks| hooks.len() == 2)
    );
    hooked.detach().unwrap();
    assert_settled(&first);
    // Free again.
    let hooked = hook(&second, ADD2).on_entry(|_| {}).attach().unwrap();
    assert_eq!(tl_add2(1, 2), 3);
    assert_eq!(hooked.stats().runs, 1);
    hooked.detach().unwrap();
    assert_settled(&second);
}

/// Two runtimes that hook the same function one after the other, each of which finds what the other
/// has left of the pad.
#[test]
fn runtimes_take_turns() {
    let _one = serial();
    let plain = code_at(ADD2 as *const ());
    let runtimes: Vec<Runtime> = (0..3).map(|_| Runtime::new().unwrap()).collect();
    // Packs of their own, with something in them: no two runtimes have the same places for images.
    let fill = |(i, rt): (usize, &Runtime)| {
        let sites = crate::common::sites(24)[8 * i..8 * i + 8 - i].to_vec();
        rt.attach_all(sites.into_iter().map(|s| hook(rt, s).on_entry(|_| {})))
    };
    let filled: Vec<_> = runtimes
        .iter()
        .enumerate()
        .map(|r| fill(r).unwrap())
        .collect();
    for turn in 0..60 {
        let rt = &runtimes[turn * 7 % 5 % 3];
        let hooked = hook(rt, ADD2)
            .on_entry(|_| {})
            .on_exit(|_, _| {})
            .attach()
            .unwrap();
        assert_eq!(tl_add2(1, 2), 3);
        for other in &runtimes {
            let refused = hook(other, ADD2).on_exit(|_, _| {}).attach();
            assert_eq!(refused.is_ok(), std::ptr::eq(other, rt));
        }
        assert_eq!(tl_add2(1, 2), 3);
        assert_eq!(hooked.stats().runs, 4);
        hooked.detach().unwrap();
        assert_eq!(tl_add2(1, 2), 3);
        if turn % 4 == 3 {
            runtimes[turn % 3]
                .synchronize(crate::common::PATIENCE)
                .unwrap();
            assert_eq!(tl_add2(1, 2), 3);
        }
    }
    drop(filled);
    runtimes.iter().for_each(assert_settled);
    assert_eq!(code_at(ADD2 as *const ()), plain);
}

#[test]
fn addresses_that_are_none() {
    let _one = serial();
    let code = [ADD2 as *const ()];
    for addr in [
        std::ptr::null(),
        std::ptr::without_provenance(0x1000),
        std::ptr::without_provenance(usize::MAX - 1),
    ] {
        let error = refused_at(addr, &code);
        assert_is!(
            error,
            Error::Tramp(TrampError::Text(TextError::Unmapped { .. }))
        );
    }
    let odd = (ADD2 as *const ()).wrapping_byte_add(1);
    assert_is!(
        refused_at(odd, &code),
        Error::Tramp(TrampError::Text(TextError::Misaligned {
            align_bytes: 2,
            ..
        }))
    );
    static DATA: u64 = 0x0001_0001_0001_0001;
    let mut stack = [1_u16; 64];
    stack[0] = 2;
    for data in [(&raw const DATA).cast(), stack.as_ptr().cast::<()>()] {
        let error = refused_at(data, &code);
        assert_is!(
            error,
            Error::Tramp(TrampError::Text(
                TextError::NotExecutable { .. } | TextError::DataInText { .. }
            ))
        );
    }
    assert_eq!(tl_add2(1, 2), 3);
}

#[test]
fn the_vector_calling_convention() {
    let _one = serial();
    let error = refused_function(tl_variant_cc);
    assert_is!(
        &error,
        Error::Tramp(TrampError::Text(TextError::VariantCc { .. }))
    );
    assert!(
        error.to_string().contains("tl_variant_cc"),
        "{error} does not name it"
    );
}

#[test]
fn hooks_of_one_function_agree_on_its_model() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let hooked = hook(&rt, ADD2).on_entry(|_| {}).attach().unwrap();
    let before = Before::new(&rt, &[ADD2 as *const ()]);
    let error = refused(attach_at(&rt, ADD2 as *const ()));
    assert_is!(error, Error::Tramp(TrampError::ModelMismatch { .. }));
    before.assert_unchanged();
    assert_eq!(tl_add2(1, 2), 3);
    assert_eq!(hooked.stats().runs, 1);
    hooked.detach().unwrap();
    // Nobody is attached now: any model will do.
    // SAFETY:
    // 1. The model claims nothing.
    let builder = unsafe { rt.hook_addr(ADD2 as *const (), FuncModel::untyped()) }.unwrap();
    let untyped = builder.on_exit(|_, _| {}).attach().unwrap();
    assert_eq!(tl_add2(1, 2), 3);
    assert_eq!(untyped.stats().runs, 1);
    untyped.detach().unwrap();
    // Two models within one batch.
    let [a, b] = [FuncModel::untyped(), add_model()].map(|m| {
        // SAFETY:
        // 1. As above; two integers fit into two `long`s.
        let builder = unsafe { rt.hook_addr(ADD2 as *const (), m) };
        builder.unwrap().on_entry(|_| {})
    });
    assert_is!(
        refused(rt.attach_all([a, b])),
        Error::Tramp(TrampError::ModelMismatch { .. })
    );
    assert_eq!((tl_add2(1, 2), weigh_from(1).0), (3, 650));
    assert_settled(&rt);
}

#[test]
fn attaching_nothing_and_detaching_twice() {
    let _one = serial();
    let rt = Runtime::new().unwrap();
    let before = Before::new(&rt, &[ADD2 as *const ()]);
    assert_is!(refused(hook(&rt, ADD2).attach()), Error::NoProgram);
    before.assert_unchanged();
    assert!(
        rt.attach_all(Vec::<rvbpf::HookBuilder<crate::common::Add2>>::new())
            .unwrap()
            .is_empty()
    );

    let stays = hook(&rt, ADD2).on_entry(|_| {}).attach().unwrap();
    let goes = hook(&rt, ADD2).on_entry(|_| {}).attach().unwrap();
    goes.detach().unwrap();
    let before = Before::new(&rt, &[ADD2 as *const ()]);
    assert_is!(refused(goes.detach()), Error::AlreadyDetached);
    // In a batch: also when it is named twice there.
    assert_is!(
        refused(rt.detach_all([&stays, &goes])),
        Error::AlreadyDetached
    );
    assert_is!(
        refused(rt.detach_all([&stays, &stays])),
        Error::AlreadyDetached
    );
    before.assert_unchanged();
    assert_eq!(tl_add2(1, 2), 3);
    assert_eq!((stays.stats().runs, goes.stats().runs), (1, 0));
    stays.detach().unwrap();
    drop(goes);
    assert_settled(&rt);
}
