//! The whole LP64D ABI through every kind of image: for each generated signature, what a hooked
//! function and its caller see is bit for bit what they see unhooked, and what a program sees in
//! its context is what was sent. The programs wreck every register that a call may change, `errno`
//! and `fcsr`; the gate of [`testlib::abi`] looks at those that a call must keep.
//!
//! One test per mix of programs; each goes through all signatures. Source of the signatures and
//! how to get other ones: `testlib/build.rs`.
#![cfg(target_arch = "riscv64")]
#![expect(unsafe_code, reason = "attaches programs and reads their contexts")]

#[path = "abi/common.rs"]
mod common;
#[path = "abi/watch.rs"]
mod watch;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use common::{gather, model_of};
use pack_alloc::{Config, PackAlloc};
use testlib::abi::{self, Bytes, Case, Seen};
use testlib::functions::{tl_get_errno, tl_set_errno};
use testlib::sig::{Rng, Ty};
use text::RxAddr;
use trampoline::model::{FuncModel, Loc, Pass};
use trampoline::{Attach, Prog, ProgKind, RetFrom, Trampolines, Traps};
use watch::{Event, Watch, Who, program, watch};

/// Random values each hooked signature is called with.
const ROUNDS: usize = 2;

/// What the caller's `errno` is before and must be after.
const ERRNO: i32 = 1234;

/// Which model the programs are attached with.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Typing {
    /// The signature's own.
    Typed,
    /// [`FuncModel::untyped`].
    Untyped,
}

fn model(case: &Case, typing: Typing) -> FuncModel {
    match typing {
        Typing::Typed => model_of(&case.sig),
        Typing::Untyped => FuncModel::untyped(),
    }
}

fn attachment(case: &Case, typing: Typing, who: Who) -> Attach {
    let kind = match who {
        Who::Entry => ProgKind::Fentry,
        Who::Exit => ProgKind::Fexit,
        Who::LetPass | Who::Override => ProgKind::FmodRet(RetFrom::Slots),
    };
    Attach {
        func: RxAddr::new(case.callee as usize as u64),
        model: Arc::new(model(case, typing)),
        prog: Prog {
            cookie: Some(who as u64),
            ..Prog::new(kind, program)
        },
        traps: Traps::Refused,
    }
}

/// Attaches `who` to every callee in one transaction, calls each, detaches, calls each again.
fn run(typing: Typing, who: &[Who]) {
    // The callees and the watch are shared by all tests of this file.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let cases = abi::cases();
    assert!(cases.len() >= 500, "{} signatures", cases.len());
    let packs = Arc::new(PackAlloc::new(Config::default()));
    let tramps = Trampolines::new(packs).unwrap();
    let wanted: Vec<Attach> = cases
        .iter()
        .flat_map(|case| who.iter().map(|who| attachment(case, typing, *who)))
        .collect();
    // SAFETY: 1. each model is that of the generated signature, or claims nothing; 2. `program`
    // takes the context of the case that is being called, and keeps to the psABI.
    let links = unsafe { tramps.attach(&wanted) }.unwrap();
    let mut failures = failures(&cases, typing, who);
    tramps.detach(&links).unwrap();
    failures.extend(self::failures(&cases, typing, &[]));
    tramps.synchronize(Duration::from_secs(10)).unwrap();
    for failure in failures.iter().take(20) {
        println!("{failure}");
    }
    assert_eq!(
        failures.len(),
        0,
        "of {} signatures, {typing:?} {who:?}",
        cases.len()
    );
}

/// One text per signature that went wrong.
fn failures(cases: &[Case], typing: Typing, who: &[Who]) -> Vec<String> {
    let mut rng = Rng(2);
    let mut failures = Vec::new();
    for case in cases {
        for _ in 0..ROUNDS {
            let wrong = check(case, typing, who, &Bytes::random(&case.sig, &mut rng));
            if !wrong.is_empty() {
                let wrong = wrong.join("\n  ");
                failures.push(format!(
                    "case {} {who:?}: {:?}\n  {wrong}",
                    case.index, case.sig
                ));
                break;
            }
        }
    }
    failures
}

/// Everything wrong with one call.
fn check(case: &Case, typing: Typing, who: &[Who], sent: &Bytes) -> Vec<String> {
    let model = model(case, typing);
    let overrides = who.contains(&Who::Override);
    // What the program returns is not what the function would.
    let mut expected = sent.clone();
    let mut from_callee = sent.clone();
    if overrides {
        from_callee.ret = sent.ret.iter().map(|byte| !byte).collect();
        expected.args = case.sig.args().map(untouched).collect();
    }
    let ret = sent.ret.clone();
    let (sig, events) = (case.sig.clone(), Vec::new());
    let looking_for = Watch {
        sig,
        model: model.clone(),
        ret,
        events,
    };
    tl_set_errno(ERRNO);
    let (seen, events) = watch(looking_for, || abi::call(case, &from_callee, None));
    let errno = tl_get_errno();

    let mut wrong = seen.damage();
    let mut expect = |holds: bool, what: String| {
        if !holds {
            wrong.push(what);
        }
    };
    expect(errno == ERRNO, format!("errno {errno}"));
    expect(
        seen.nr_calls == u64::from(!overrides),
        format!("{} calls", seen.nr_calls),
    );
    expect(
        seen.bytes == expected,
        format!("{:x?}\n  is not {expected:x?}", seen.bytes),
    );
    let order: Vec<Who> = events.iter().map(|event| event.who).collect();
    expect(
        order == in_order(who),
        format!("programs that ran: {order:?}"),
    );
    for event in &events {
        match typing {
            Typing::Typed => wrong.extend(check_event(case, sent, event)),
            Typing::Untyped => wrong.extend(check_words(&seen, event)),
        }
    }
    if typing == Typing::Typed {
        wrong.extend(check_ret_regs(case, &model, sent, &seen));
    }
    wrong
}

/// An argument buffer into which no callee has written.
fn untouched(ty: &Ty) -> Vec<u8> {
    ty.value_mask()
        .into_iter()
        .map(|mask| if mask == 0 { 0 } else { 0xee })
        .collect()
}

/// The order in which an image runs its programs: fentry, fmod_ret, fexit.
fn in_order(who: &[Who]) -> Vec<Who> {
    let place = |who: &Who| match who {
        Who::Entry => 0,
        Who::LetPass | Who::Override => 1,
        Who::Exit => 2,
    };
    let mut order = who.to_vec();
    order.sort_by_key(place);
    order
}

/// Did a program see in its slots what was sent, and at exit what is returned?
fn check_event(case: &Case, sent: &Bytes, event: &Event) -> Vec<String> {
    let mut wrong = Vec::new();
    let named = &sent.args[..case.sig.named.len()];
    if event.args.as_deref() != Ok(named) {
        wrong.push(format!(
            "{:?} saw {:x?}\n  not {named:x?}",
            event.who, event.args
        ));
    }
    if event.who == Who::Exit && event.ret.as_ref() != Some(&Ok(sent.ret.clone())) {
        wrong.push(format!(
            "exit saw {:x?} returned, not {:x?}",
            event.ret, sent.ret
        ));
    }
    wrong
}

/// The same for an untyped hook: its slots are the registers at the gate.
fn check_words(seen: &Seen, event: &Event) -> Vec<String> {
    let d = &seen.dump;
    let mut want = [d.a, d.fa].concat();
    if event.who == Who::Exit {
        want.extend(d.ret_a);
        want.extend(d.ret_fa);
    }
    if event.words == want {
        return Vec::new();
    }
    vec![format!(
        "{:?} saw {:x?}\n  not {want:x?}",
        event.who, event.words
    )]
}

/// Is the return value, in the registers that reach the caller, extended as the psABI asks?
fn check_ret_regs(case: &Case, model: &FuncModel, sent: &Bytes, seen: &Seen) -> Vec<String> {
    if model.ret().pass() != Pass::Value {
        return Vec::new();
    }
    let reg = |loc| match loc {
        Loc::Int(n) => seen.dump.ret_a[usize::from(n)],
        Loc::Fp(n) => seen.dump.ret_fa[usize::from(n)],
        Loc::Stack(_) => panic!("nothing is returned on the stack"),
    };
    let ret = gather(
        model.ret().slots(),
        [&case.sig.ret].into_iter(),
        |_, slot| reg(slot.loc),
    );
    if ret.as_ref() == Ok(&vec![sent.ret.clone()]) {
        return Vec::new();
    }
    vec![format!("registers hold {ret:x?}, not {:x?}", sent.ret)]
}

macro_rules! mixes {
    ($($name:ident: $typing:ident [$($who:ident),*];)*) => {$(
        #[test]
        fn $name() {
            run(Typing::$typing, &[$(Who::$who),*]);
        }
    )*};
}

mixes! {
    bare: Typed [];
    fentry: Typed [Entry];
    fexit: Typed [Exit];
    fentry_and_fexit: Typed [Entry, Exit];
    two_of_each: Typed [Entry, Entry, Exit, Exit];
    fmod_ret_that_lets_pass: Typed [LetPass];
    all_kinds: Typed [Entry, LetPass, Exit];
    override_return: Typed [Override];
    override_return_seen_by_fexit: Typed [Entry, Override, Exit];
    untyped_fentry: Untyped [Entry];
    untyped_fexit: Untyped [Exit];
    untyped_fentry_and_fexit: Untyped [Entry, Exit];
    untyped_all_kinds: Untyped [Entry, LetPass, Exit];
}
