//! The function model against the compiler: for each generated signature, the registers and stack
//! words that a C caller really fills, and those that a C callee really returns in, hold the bytes
//! where [`trampoline::model::FuncModel`] says, extended as it says. No hook is involved.
#![cfg(target_arch = "riscv64")]

#[path = "abi/common.rs"]
#[expect(unsafe_code, reason = "reads arguments that are passed by reference")]
mod common;

use common::{gather, model_of, to_type};
use std::sync::Mutex;
use testlib::abi::{self, Bytes, Case, Dump};
use testlib::sig::{Rng, Ty};
use trampoline::model::{FuncModel, Loc, Pass, Slot, SlotOf, StackArgs, Type};

/// Random values each signature is called with.
const ROUNDS: usize = 4;

/// What the probe looks for and what it found, for by-reference arguments live only that long.
static LOOK: Mutex<Option<Look>> = Mutex::new(None);

struct Look {
    slots: Vec<Slot>,
    types: Vec<Ty>,
    found: Result<Vec<Vec<u8>>, String>,
}

fn at_entry(dump: &Dump, loc: Loc) -> u64 {
    match loc {
        Loc::Int(n) => dump.a[usize::from(n)],
        Loc::Fp(n) => dump.fa[usize::from(n)],
        Loc::Stack(n) => dump.stack[usize::from(n)],
    }
}

fn at_return(dump: &Dump, loc: Loc) -> u64 {
    match loc {
        Loc::Int(n) => dump.ret_a[usize::from(n)],
        Loc::Fp(n) => dump.ret_fa[usize::from(n)],
        Loc::Stack(_) => panic!("nothing is returned on the stack"),
    }
}

extern "C" fn probe(dump: &Dump) {
    let mut look = LOOK.lock().unwrap();
    let look = look.as_mut().unwrap();
    look.found = gather(&look.slots, look.types.iter(), |_, slot| {
        at_entry(dump, slot.loc)
    });
}

/// The slots of this call, the arguments for `...` among them.
fn call_slots(case: &Case, model: &FuncModel) -> Vec<Slot> {
    let Some(extra) = &case.sig.extra else {
        return model.slots().to_vec();
    };
    let named: Vec<Type> = case.sig.named.iter().map(to_type).collect();
    let extra: Vec<Type> = extra.iter().map(to_type).collect();
    FuncModel::variadic_call(&named, &extra, to_type(&case.sig.ret)).unwrap()
}

/// Everything wrong with one call.
fn check(case: &Case, sent: &Bytes) -> Vec<String> {
    let model = model_of(&case.sig);
    let slots = call_slots(case, &model);
    *LOOK.lock().unwrap() = Some(Look {
        slots: slots.clone(),
        types: case.sig.args().cloned().collect(),
        found: Err("the probe did not run".into()),
    });
    let seen = abi::call(case, sent, Some(probe));
    let found = LOOK.lock().unwrap().take().unwrap().found;

    let mut wrong = seen.damage();
    let mut expect = |holds: bool, what: String| {
        if !holds {
            wrong.push(what);
        }
    };
    expect(seen.nr_calls == 1, format!("{} calls", seen.nr_calls));
    expect(
        seen.bytes == *sent,
        format!("bare call: {:x?}\n  sent {sent:x?}", seen.bytes),
    );
    expect(
        found.as_ref() == Ok(&sent.args),
        format!("slots: {found:x?}\n  sent {sent:x?}"),
    );

    let dump = &seen.dump;
    match model.ret().pass() {
        Pass::Value => {
            let ret = gather(
                model.ret().slots(),
                [&case.sig.ret].into_iter(),
                |_, slot| at_return(dump, slot.loc),
            );
            let want = vec![sent.ret.clone()];
            expect(
                ret.as_ref() == Ok(&want),
                format!("returned {ret:x?}, not {want:x?}"),
            );
        }
        Pass::Reference { .. } => {
            expect(
                model.slots()[0].of == SlotOf::RetPtr,
                "no hidden argument".into(),
            );
            expect(
                dump.a[0] == dump.ret_a[0],
                "a0 is not the hidden argument".into(),
            );
        }
    }
    if let StackArgs::Known { slots: known } = model.stack_args() {
        let words = slots.iter().map(|slot| match slot.loc {
            Loc::Stack(n) => n + 1,
            _ => 0,
        });
        expect(
            known == words.max().unwrap_or(0),
            format!("{known} stack words"),
        );
    }
    wrong
}

#[test]
fn slots_are_where_the_compiler_puts_the_bytes() {
    let cases = abi::cases();
    assert!(cases.len() >= 500);
    let mut rng = Rng(1);
    let mut nr_wrong = 0;
    for case in &cases {
        for _ in 0..ROUNDS {
            let wrong = check(case, &Bytes::random(&case.sig, &mut rng));
            if !wrong.is_empty() {
                nr_wrong += 1;
                println!(
                    "case {}: {:?}\n {}",
                    case.index,
                    case.sig,
                    wrong.join("\n ")
                );
                break;
            }
        }
    }
    assert_eq!(nr_wrong, 0, "of {} signatures", cases.len());
}

/// The generator must reach the corners it is there for.
#[test]
fn signatures_cover_the_convention() {
    let cases = abi::cases();
    let count = |what: &dyn Fn(&Case, &FuncModel) -> bool| {
        cases
            .iter()
            .filter(|case| what(case, &model_of(&case.sig)))
            .count()
    };
    let has =
        |what: fn(&Slot) -> bool| count(&move |_: &Case, m: &FuncModel| m.slots().iter().any(what));
    let figures = [
        ("variadic", count(&|case, _| case.sig.extra.is_some())),
        ("stack arguments", has(|s| matches!(s.loc, Loc::Stack(_)))),
        (
            "stack float",
            has(|s| matches!(s.loc, Loc::Stack(_)) && s.size_bytes == 4),
        ),
        (
            "by reference",
            has(|s| matches!(s.pass, Pass::Reference { .. })),
        ),
        ("fa7", has(|s| s.loc == Loc::Fp(7))),
        ("returned by reference", has(|s| s.of == SlotOf::RetPtr)),
        (
            "returned in a0 and a1",
            returned(&cases, &[Loc::Int(0), Loc::Int(1)]),
        ),
        (
            "returned in fa0 and fa1",
            returned(&cases, &[Loc::Fp(0), Loc::Fp(1)]),
        ),
        (
            "returned in a0 and fa0",
            returned(&cases, &[Loc::Int(0), Loc::Fp(0)]),
        ),
        (
            "returned in fa0 and a0",
            returned(&cases, &[Loc::Fp(0), Loc::Int(0)]),
        ),
        ("split between a7 and the stack", count(&|_, m| splits(m))),
        (
            "register skipped for an even pair",
            count(&|case, m| skips(case, m)),
        ),
    ];
    for (what, nr) in figures {
        println!("{nr:4} {what}");
    }
    for (what, nr) in figures {
        assert!(nr >= 5, "{what}: {nr} of {}", cases.len());
    }
}

fn returned(cases: &[Case], want: &[Loc]) -> usize {
    let is_there = |case: &&Case| {
        let model = model_of(&case.sig);
        model
            .ret()
            .slots()
            .iter()
            .map(|slot| slot.loc)
            .eq(want.iter().copied())
    };
    cases.iter().filter(is_there).count()
}

/// A variadic argument that leaves an integer register unused.
fn skips(case: &Case, model: &FuncModel) -> bool {
    let slots = call_slots(case, model);
    let regs: Vec<u8> = slots.iter().filter_map(|slot| int_reg(slot.loc)).collect();
    regs.windows(2).any(|pair| pair[1] != pair[0] + 1)
}

fn int_reg(loc: Loc) -> Option<u8> {
    match loc {
        Loc::Int(n) => Some(n),
        Loc::Fp(_) | Loc::Stack(_) => None,
    }
}

fn splits(model: &FuncModel) -> bool {
    let pairs = model.slots().windows(2);
    pairs.into_iter().any(|pair| {
        pair[0].of == pair[1].of && pair[0].loc == Loc::Int(7) && pair[1].loc == Loc::Stack(0)
    })
}
