//! Other people's code in our packs: it runs, others know of it, and it goes.
#![cfg(target_arch = "riscv64")]
#![expect(unsafe_code, reason = "runs the code that it hosts")]

use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicBool, Ordering};

use rv64::Reg::{A0, A1, Fp, Ra, Sp, T0, T1, Zero};
use rv64::{Insn, addi, auipc, imm, jal, jalr, ld, lw, offset, ret, sd};
use rvbpf::Runtime;
use rvbpf::host::{
    Cfa, HostCode, HostError, Hosted, Reloc, RelocFault, RelocKind, RelocTarget, Row, SavedFrom,
    Symbol, Unwind,
};

fn words(insns: &[Insn]) -> Vec<u8> {
    insns
        .iter()
        .flat_map(|insn| insn.encode().to_le_bytes())
        .collect()
}

fn reloc(off: usize, kind: RelocKind, target: RelocTarget) -> Reloc {
    Reloc {
        off,
        kind,
        target,
        addend: 0,
    }
}

fn run(at: *const (), a: u64, b: u64) -> u64 {
    // SAFETY: 1. the code of these tests is a function of up to two integers.
    unsafe { std::mem::transmute::<*const (), extern "C" fn(u64, u64) -> u64>(at)(a, b) }
}

extern "C" fn add(a: u64, b: u64) -> u64 {
    a + b
}

/// A call with a frame around it: `callee(a, b) + 1`.
fn around_call() -> Vec<u8> {
    words(&[
        addi(Sp, Sp, imm!(-16)),
        sd(Ra, Sp, imm!(8)),
        sd(Fp, Sp, imm!(0)),
        addi(Fp, Sp, imm!(16)),
        auipc(Ra, imm!(0)),
        jalr(Ra, Ra, imm!(0)),
        addi(A0, A0, imm!(1)),
        ld(Ra, Sp, imm!(8)),
        ld(Fp, Sp, imm!(0)),
        addi(Sp, Sp, imm!(16)),
        ret(),
    ])
}

fn unwind_of_call() -> Unwind {
    let row = |off, cfa, saved: &[(u8, i32)]| Row {
        off,
        cfa: Cfa { reg: 2, off: cfa },
        saved: saved.to_vec(),
        from: SavedFrom::Cfa,
    };
    Unwind {
        off: 0,
        len: 44,
        rows: vec![
            row(4, 16, &[]),
            row(12, 16, &[(1, -8), (8, -16)]),
            row(40, 0, &[]),
        ],
    }
}

fn with_call(rt: &Runtime, callee: *const ()) -> Hosted {
    let relocs = [reloc(
        16,
        RelocKind::Call,
        RelocTarget::Address(callee as u64),
    )];
    rt.host(&around_call(), &relocs).unwrap()
}

#[test]
fn hosted_code_calls_what_it_was_linked_with() {
    let rt = Runtime::new().unwrap();
    let ours = with_call(&rt, add as *const ());
    assert_eq!(run(ours.entry(), 2, 3), 6);
    // libc is far away from this executable.
    let libc = with_call(&rt, libc::labs as *const ());
    assert_eq!(run(libc.entry(), -41_i64 as u64, 0), 42);
    assert!(libc.rx().len_bytes > around_call().len(), "room for a stub");
}

#[test]
fn data_is_reached_and_code_jumps_within_itself() {
    let rt = Runtime::new().unwrap();
    static VALUE: u32 = 40;
    let value = &raw const VALUE as u64;
    let mut code = words(&[
        auipc(T0, imm!(0)),
        lw(A0, T0, imm!(0)),
        auipc(T1, imm!(0)),
        ld(T1, T1, imm!(0)),
        lw(A1, T1, imm!(0)),
        jal(Zero, offset!(0)),
    ]);
    code.extend([0; 8]);
    code.extend(words(&[rv64::add(A0, A0, A1), ret()]));
    let relocs = [
        reloc(0, RelocKind::PcrelHi20, RelocTarget::Address(value)),
        reloc(4, RelocKind::PcrelLo12I, RelocTarget::Code(0)),
        reloc(8, RelocKind::GotHi20, RelocTarget::Address(value)),
        reloc(12, RelocKind::PcrelLo12I, RelocTarget::Code(8)),
        reloc(20, RelocKind::Jal, RelocTarget::Code(32)),
        reloc(24, RelocKind::Abs64, RelocTarget::Code(32)),
    ];
    let hosted = rt.host(&code, &relocs).unwrap();
    assert_eq!(run(hosted.entry(), 0, 0), 80);
}

/// Code that must be within a `jal` of our text is placed there, or refused: never somewhere else.
#[test]
fn code_is_placed_where_it_reaches() {
    let rt = Runtime::new().unwrap();
    let target = RelocTarget::Address(add as *const () as u64);
    let tail = words(&[jal(Zero, offset!(0))]);
    match rt.host(&tail, &[reloc(0, RelocKind::Jal, target)]) {
        Ok(hosted) => assert_eq!(run(hosted.entry(), 2, 3), 5),
        // A large executable leaves no room so near.
        Err(error) => assert!(matches!(error, HostError::Pack(_)), "{error}"),
    }
    let two = words(&[jal(Zero, offset!(0)), jal(Zero, offset!(0))]);
    let apart = |off, at| reloc(off, RelocKind::Jal, RelocTarget::Address(at));
    let relocs = [apart(0, 0x10_0000_0000), apart(4, 0x20_0000_0000)];
    let before = rt.stats().packs.nr_live;
    let error = rt.host(&two, &relocs).unwrap_err();
    let HostError::Reloc {
        index: 1, fault, ..
    } = error
    else {
        panic!("{error}");
    };
    let reach_bytes = 1 << 20;
    let distance = 0x10_0000_0000 - (1 << 20);
    assert_eq!(
        fault,
        RelocFault::OutOfReach {
            distance,
            reach_bytes
        }
    );
    assert_eq!(rt.stats().packs.nr_live, before);
}

static SEEN: AtomicBool = AtomicBool::new(false);

/// Whether the stack leads back to the test.
#[inline(never)]
extern "C" fn look_back(_: u64, _: u64) -> u64 {
    let mut frames = [std::ptr::null_mut::<c_void>(); 64];
    // SAFETY: 1. there is room for so many.
    let nr = unsafe { libc::backtrace(frames.as_mut_ptr(), 64 as c_int) };
    let test = unwinders_pass_through as *const () as usize;
    let is_test = |frame: &*mut c_void| (test..test + 1024).contains(&(*frame as usize));
    SEEN.store(frames[..nr as usize].iter().any(is_test), Ordering::Relaxed);
    0
}

#[test]
fn unwinders_pass_through() {
    let rt = Runtime::new().unwrap();
    let relocs = [reloc(
        16,
        RelocKind::Call,
        RelocTarget::Address(look_back as *const () as u64),
    )];
    let code = around_call();
    let symbol = Symbol {
        name: "around".into(),
        off: 0,
        len: 44,
    };
    let host = HostCode::new(&code, &relocs)
        .symbols(vec![symbol])
        .unwind(vec![unwind_of_call()]);
    let known = rt.host_code(host).unwrap();
    assert_eq!(known.symbol("around"), Some(known.entry()));
    assert_eq!(known.symbol("other"), None);
    assert_eq!(run(known.entry(), 0, 0), 1);
    assert!(SEEN.load(Ordering::Relaxed));
    // Without rows the walk ends in the hosted code: the check can fail.
    let unknown = with_call(&rt, look_back as *const ());
    assert_eq!(run(unknown.entry(), 0, 0), 1);
    assert!(!SEEN.load(Ordering::Relaxed));
}

#[test]
fn what_is_hosted_is_freed_and_what_is_wrong_is_not_placed() {
    let rt = Runtime::new().unwrap();
    let before = rt.stats().packs;
    let hosted = with_call(&rt, add as *const ());
    let clone = hosted.clone();
    assert_eq!(rt.stats().packs.nr_live, before.nr_live + 1);
    drop(hosted);
    assert_eq!(run(clone.entry(), 1, 1), 3);
    drop(clone);
    assert_eq!(rt.stats().packs.nr_live, before.nr_live);
    let code = around_call();
    let late = Symbol {
        name: "late".into(),
        off: 40,
        len: 8,
    };
    let host = HostCode::new(&code, &[]).symbols(vec![late]);
    assert!(matches!(rt.host_code(host), Err(HostError::Symbol { .. })));
    let mut unordered = unwind_of_call();
    unordered.rows.swap(0, 1);
    let mut by_no_register = unwind_of_call();
    by_no_register.rows[0].cfa.reg = 40;
    let mut from_no_register = unwind_of_call();
    from_no_register.rows[1].from = SavedFrom::Reg(32);
    let of_nothing = Unwind {
        len: 0,
        rows: Vec::new(),
        ..unwind_of_call()
    };
    for unwind in [unordered, by_no_register, from_no_register, of_nothing] {
        let host = HostCode::new(&code, &[]).unwind(vec![unwind]);
        let got = rt.host_code(host);
        assert!(matches!(got, Err(HostError::Unwind { off: 0 })), "{got:?}");
    }
    assert!(matches!(rt.host(&[], &[]), Err(HostError::Empty)));
    assert_eq!(rt.stats().packs.nr_live, before.nr_live);
}
