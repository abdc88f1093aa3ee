//! What images look like: listings, and their hot paths counted.

use super::*;
use crate::model::Type;
use crate::prog::Prog;

const FUNC: RxAddr = RxAddr::new(0x1000_0000);
const RESUME: RxAddr = RxAddr::new(0x1000_000a);
const BASE: u64 = 0x2000_0000;

extern "C" fn nothing(_: *mut u64, _: u64) -> u64 {
    0
}

fn two_ints() -> FuncModel {
    FuncModel::new(&[Type::I32, Type::I32], Type::I32).unwrap()
}

fn spec<'a>(model: &'a FuncModel, progs: &'a [Prog]) -> ImageSpec<'a> {
    ImageSpec {
        func: FUNC,
        resume: RESUME,
        model,
        takes_chain: false,
        progs,
        inflight: 0x3000_0000,
        desc: 0x3000_1000,
        features: Features::RV64GC,
    }
}

/// The instructions from the start of the image, data left out, until a jump leaves it.
fn listing(spec: &ImageSpec<'_>) -> Vec<String> {
    let code = spec.generate(BASE).unwrap();
    let (mut at, mut lines) = (0, Vec::new());
    while let Ok((insn, len)) = rv64::Insn::decode_at(&code.bytes[at..]) {
        let text = insn.to_string();
        lines.push(text.clone());
        at += len;
        // The hot path jumps over a slow jump and the data before the key.
        if text.starts_with("beq t1, tp") || text.starts_with("beq\tt1") {
            let by: usize = text.rsplit([' ', '+']).next().unwrap().parse().unwrap();
            at += by - len;
        }
        if text.starts_with("jalr zero") || text.starts_with("jr") || text == "ret" {
            break;
        }
    }
    lines
}

fn hot_path(kinds: &[ProgKind]) -> Vec<String> {
    let progs: Vec<_> = kinds.iter().map(|k| Prog::new(*k, nothing)).collect();
    listing(&spec(&two_ints(), &progs))
}

#[test]
fn fentry_listing() {
    let want = "
        addi sp, sp, -48
        sd ra, 40(sp)
        sd s0, 32(sp)
        addi s0, sp, 48
        sd a0, 16(sp)
        sd a1, 24(sp)
        csrr t3, fcsr
        sw t3, 8(sp)
        lw t3, 256(tp)
        sw t3, 12(sp)
        ld t1, 64(tp)
        beq t1, tp, .+36
        auipc t1, 0x0
        sd t1, 64(tp)
        addi a0, sp, 16
        ld t2, -16(t1)
        jalr t2
        sd tp, 64(tp)
        lw t3, 8(sp)
        csrw fcsr, t3
        lw t3, 12(sp)
        sw t3, 256(tp)
        ld a0, 16(sp)
        ld a1, 24(sp)
        ld ra, 40(sp)
        ld s0, 32(sp)
        addi sp, sp, 48
        auipc t1, 0xf0000
        jalr zero, -96(t1)";
    let want: Vec<_> = want.trim().lines().map(str::trim).collect();
    assert_eq!(hot_path(&[ProgKind::Fentry]), want);
}

/// What an image adds to a call, without the site, the slot and the programs. Growing one of
/// these is a decision, not an accident: `cargo xtask bench trampoline` has the limits.
#[test]
fn hot_paths_stay_short() {
    let fmod = ProgKind::FmodRet(RetFrom::Value);
    for (kinds, insns) in [
        (&[ProgKind::Fentry][..], 29),
        (&[ProgKind::Fexit], 40),
        (&[ProgKind::Fentry, ProgKind::Fexit], 54),
        (&[ProgKind::Fsession], 61),
        (&[fmod], 31),
    ] {
        assert_eq!(hot_path(kinds).len(), insns, "{kinds:?}");
    }
}

#[test]
fn bare_programs_cost_less() {
    let mut prog = Prog::new(ProgKind::Fentry, nothing);
    prog.needs = Needs::empty();
    assert_eq!(listing(&spec(&two_ints(), &[prog])).len(), 21);
}

/// Its cookie is one store more for a program that looks for it, and a load if it has one.
#[test]
fn cookies_cost_those_who_ask() {
    let mut prog = Prog::new(ProgKind::Fentry, nothing);
    let plain = listing(&spec(&two_ints(), &[prog.clone()])).len();
    prog.needs |= Needs::COOKIE;
    let without = listing(&spec(&two_ints(), &[prog.clone()]));
    assert_eq!(without.len(), plain + 1);
    prog.cookie = Some(7);
    let with = listing(&spec(&two_ints(), &[prog]));
    assert_eq!(with.len(), plain + 2);
    let frame_off = |lines: &[String], reg: &str| {
        let store = format!("sd {reg}, 8(sp)");
        lines.contains(&store)
    };
    assert!(frame_off(&without, "zero"), "{without:#?}");
    assert!(frame_off(&with, "a1"), "{with:#?}");
}

#[test]
fn exit_blocks_begin_with_an_aligned_word_and_end_inside() {
    for model in [two_ints(), FuncModel::untyped()] {
        let progs: Vec<_> = (0..38)
            .map(|_| Prog::new(ProgKind::Fsession, nothing))
            .collect();
        let code = spec(&model, &progs).generate(BASE).unwrap();
        assert_eq!(code.exits.len(), 38);
        for (i, x) in code.exits.iter().enumerate() {
            assert_eq!((x.prog, x.at_bytes % 4), (i, 0));
            let first = code.bytes[x.at_bytes as usize];
            assert_eq!(first & 3, 3, "a word, not two half-words");
            assert!(x.at_bytes < x.next_bytes && (x.next_bytes as usize) < code.bytes.len());
        }
    }
}

#[test]
fn a_frame_that_no_load_reaches_is_refused() {
    let model = FuncModel::new(&[Type::I64; 128], Type::Void).unwrap();
    let exit = [Prog::new(ProgKind::Fexit, nothing)];
    assert!(
        spec(&model, &exit).generate(BASE).is_ok(),
        "the largest model fits"
    );
    let sessions = vec![Prog::new(ProgKind::Fsession, nothing); 38];
    let refused = spec(&model, &sessions).generate(BASE).map(|_| ());
    assert!(matches!(
        refused,
        Err(TrampError::FrameTooLarge { func: FUNC, .. })
    ));
}
