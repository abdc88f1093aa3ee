//! Every kind at the edges of its reach, and what is refused.

use pack_alloc::Near;
use rv64::Reg::{A0, A1, Ra, T0, T1, Zero};
use rv64::{FReg, addi, beq, bne, disassemble, fld, fsd, j, jal, jalr, lw, nop, offset, sd};

use super::super::error::HostError;
use super::*;

const BASE: u64 = 0x3f_8000_0000;

fn words(insns: &[Insn]) -> Vec<u8> {
    insns
        .iter()
        .flat_map(|insn| insn.encode().to_le_bytes())
        .collect()
}

fn half(insn: Insn) -> Vec<u8> {
    insn.compress().unwrap().to_le_bytes().to_vec()
}

fn reloc(off: usize, kind: RelocKind, target: RelocTarget) -> Reloc {
    Reloc {
        off,
        kind,
        target,
        addend: 0,
    }
}

fn linked(bytes: &[u8], relocs: &[Reloc]) -> Result<Vec<u8>, RelocFault> {
    let fault = |error| match error {
        HostError::Reloc { fault, .. } => fault,
        other => panic!("{other}"),
    };
    Plan::new(bytes, relocs)
        .map_err(fault)?
        .link(BASE)
        .map_err(fault)
}

/// Where the instruction at `off` goes or points.
fn target(code: &[u8], off: u64) -> Option<u64> {
    let line = disassemble(code, BASE).find(|line| line.address == BASE + off);
    line.unwrap().target()
}

/// Kind, code, the offset of what shows the target, lowest and highest distance.
fn kinds() -> Vec<(RelocKind, Vec<u8>, u64, i64, i64)> {
    vec![
        (
            RelocKind::Jal,
            words(&[jal(Ra, offset!(0))]),
            0,
            -(1 << 20),
            (1 << 20) - 2,
        ),
        (
            RelocKind::Branch,
            words(&[bne(A0, A1, offset!(0))]),
            0,
            -4096,
            4094,
        ),
        (RelocKind::RvcJump, half(j(offset!(0))), 0, -2048, 2046),
        (
            RelocKind::RvcBranch,
            half(beq(A0, Zero, offset!(0))),
            0,
            -256,
            254,
        ),
    ]
}

#[test]
fn jumps_reach_as_far_as_they_can_and_no_farther() {
    for (kind, code, at, low, high) in kinds() {
        for (distance, reaches) in [
            (low, true),
            (high, true),
            (0, true),
            (low - 2, false),
            (high + 2, false),
        ] {
            let to = BASE.wrapping_add_signed(distance);
            let relocs = [reloc(0, kind, RelocTarget::Address(to))];
            match linked(&code, &relocs) {
                Ok(code) => {
                    assert!(reaches, "{kind:?} {distance}");
                    assert_eq!(target(&code, at), Some(to), "{kind:?} {distance}");
                }
                Err(fault) => {
                    let reach_bytes = kind.reach_bytes().unwrap();
                    assert!(!reaches, "{kind:?} {distance}: {fault}");
                    assert_eq!(
                        fault,
                        RelocFault::OutOfReach {
                            distance,
                            reach_bytes
                        }
                    );
                }
            }
        }
    }
}

/// Code at either end of where it is said that it can be.
#[test]
fn code_reaches_from_wherever_it_may_be_placed() {
    let at_target = [reloc(0, RelocKind::Jal, RelocTarget::Address(BASE))];
    for (kind, code, ..) in kinds() {
        let relocs = at_target.map(|reloc| Reloc { kind, ..reloc });
        let plan = || Plan::new(&code, &relocs).unwrap();
        let (_, Near::Within { of, reach_bytes }) = plan().places().unwrap() else {
            panic!("{kind:?} reaches everywhere");
        };
        let (low, high) = (of.get() - reach_bytes, of.get() + reach_bytes);
        let last = high - code.len() as u64;
        for start in [low.next_multiple_of(2), last - last % 2] {
            let linked = plan().link(start);
            assert!(linked.is_ok(), "{kind:?} at {start:#x}: {linked:?}");
        }
    }
}

#[test]
fn targets_may_be_in_the_code_and_have_addends() {
    for (kind, mut code, at, ..) in kinds() {
        code.extend(words(&[nop(), nop()]));
        let relocs = [Reloc {
            addend: -2,
            ..reloc(0, kind, RelocTarget::Code(code.len()))
        }];
        let len = code.len() as u64;
        let code = linked(&code, &relocs).unwrap();
        assert_eq!(target(&code, at), Some(BASE + len - 2), "{kind:?}");
    }
}

#[test]
fn pairs_meet_their_targets_whatever_the_halves_signs_are() {
    let code = words(&[auipc(T0, imm!(0)), addi(A0, T0, imm!(0))]);
    let store = words(&[auipc(T0, imm!(0)), fsd(FReg::Fa0, T0, imm!(0))]);
    let load = words(&[auipc(T0, imm!(0)), fld(FReg::Fa0, T0, imm!(0))]);
    let far = (1 << 31) - (1 << 11);
    for (code, kind) in [
        (&code, RelocKind::PcrelLo12I),
        (&load, RelocKind::PcrelLo12I),
        (&store, RelocKind::PcrelLo12S),
    ] {
        for distance in [
            0,
            1,
            2047,
            2048,
            2049,
            -2048,
            -2049,
            0x7ff_f800,
            far - 1,
            -far,
            -(1 << 31),
        ] {
            let to = BASE.wrapping_add_signed(distance);
            let relocs = [
                reloc(0, RelocKind::PcrelHi20, RelocTarget::Address(to)),
                reloc(4, kind, RelocTarget::Code(0)),
            ];
            let code = linked(code, &relocs).unwrap();
            assert_eq!(target(&code, 4), Some(to), "{kind:?} {distance}");
        }
        for distance in [far, -(1 << 31) - 2049] {
            let to = BASE.wrapping_add_signed(distance);
            let fault = linked(
                code,
                &[reloc(0, RelocKind::PcrelHi20, RelocTarget::Address(to))],
            );
            let reach_bytes = PAIR_REACH_BYTES;
            assert_eq!(
                fault,
                Err(RelocFault::OutOfReach {
                    distance,
                    reach_bytes
                })
            );
        }
    }
}

#[test]
fn calls_go_straight_where_they_reach_and_through_stubs_where_not() {
    let code = words(&[
        auipc(Ra, imm!(0)),
        jalr(Ra, Ra, imm!(0)),
        auipc(T1, imm!(0)),
        jalr(Zero, T1, imm!(0)),
    ]);
    let both = |to| [0, 8].map(|off| reloc(off, RelocKind::Call, RelocTarget::Address(to)));
    let near = BASE + 0x7000_0000;
    let straight = linked(&code, &both(near)).unwrap();
    assert_eq!([4, 12].map(|off| target(&straight, off)), [Some(near); 2]);
    let far = 0x12_3456_789a;
    let code = linked(&code, &both(far)).unwrap();
    assert_eq!(
        [4, 12].map(|off| target(&code, off)),
        [Some(BASE + 16); 2],
        "one stub for both"
    );
    assert_eq!(
        target(&code, 20),
        Some(BASE + 32),
        "it loads the address behind it"
    );
    assert_eq!(code[32..], far.to_le_bytes());
    assert_eq!(code.len(), 40);
}

#[test]
fn addresses_are_stored_once_and_found() {
    let mut code = words(&[
        auipc(T0, imm!(0)),
        rv64::ld(A0, T0, imm!(0)),
        auipc(T1, imm!(0)),
        rv64::ld(A1, T1, imm!(0)),
    ]);
    code.extend([0; 8]);
    let (here, far) = (RelocTarget::Code(4), RelocTarget::Address(0xdead_beef_0000));
    let relocs = [
        reloc(0, RelocKind::GotHi20, far),
        reloc(4, RelocKind::PcrelLo12I, RelocTarget::Code(0)),
        reloc(8, RelocKind::GotHi20, far),
        reloc(12, RelocKind::PcrelLo12I, RelocTarget::Code(8)),
        Reloc {
            addend: 3,
            ..reloc(16, RelocKind::Abs64, here)
        },
    ];
    let code = linked(&code, &relocs).unwrap();
    assert_eq!([4, 12].map(|off| target(&code, off)), [Some(BASE + 24); 2]);
    assert_eq!(code[24..], 0xdead_beef_0000_u64.to_le_bytes());
    assert_eq!(code[16..24], (BASE + 7).to_le_bytes());
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    let code = words(&[
        auipc(T0, imm!(0)),
        jalr(Ra, T1, imm!(0)),
        lw(A0, T0, imm!(0)),
        sd(A0, T0, imm!(0)),
    ]);
    let refused = |relocs: &[Reloc]| Plan::new(&code, relocs).unwrap_err().to_string();
    let at = |off, kind| reloc(off, kind, RelocTarget::Code(0));
    for (relocs, want) in [
        (
            vec![at(13, RelocKind::Abs64)],
            "relocation 0 (Abs64 at 0xd): it needs 8 bytes there, and the code ends at 0x10",
        ),
        (
            vec![at(usize::MAX, RelocKind::Jal)],
            "relocation 0 (Jal at 0xffffffffffffffff): it needs 4 bytes there, and the code ends at 0x10",
        ),
        (
            vec![at(1, RelocKind::Jal)],
            "relocation 0 (Jal at 0x1): instructions stand at even offsets",
        ),
        (
            vec![at(0, RelocKind::Call)],
            "relocation 0 (Call at 0x0): there is 0x300e7, which is not a jalr through the register that the auipc before it sets",
        ),
        (
            vec![at(8, RelocKind::Branch)],
            "relocation 0 (Branch at 0x8): there is 0x2a503, which is not a branch",
        ),
        (
            vec![at(8, RelocKind::RvcJump)],
            "relocation 0 (RvcJump at 0x8): there is 0xa503, which is not a jump",
        ),
        (
            vec![reloc(8, RelocKind::PcrelLo12I, RelocTarget::Code(0))],
            "relocation 0 (PcrelLo12I at 0x8): its target, 0x0, is no offset of a PcrelHi20 or GotHi20 relocation",
        ),
        (
            vec![reloc(0, RelocKind::PcrelHi20, RelocTarget::Code(17))],
            "relocation 0 (PcrelHi20 at 0x0): its target, 0x11, is beyond the code, which ends at 0x10",
        ),
        (
            vec![at(0, RelocKind::PcrelHi20), at(2, RelocKind::Abs64)],
            "relocation 1 (Abs64 at 0x2): relocation 0 changes the same bytes",
        ),
        (
            vec![at(0, RelocKind::PcrelHi20), at(12, RelocKind::PcrelLo12I)],
            "relocation 1 (PcrelLo12I at 0xc): there is 0xa2b023, which is not an addition of a constant, a load or a jalr",
        ),
        (
            vec![at(0, RelocKind::PcrelHi20), at(8, RelocKind::PcrelLo12S)],
            "relocation 1 (PcrelLo12S at 0x8): there is 0x2a503, which is not a store",
        ),
    ] {
        assert_eq!(refused(&relocs), want);
    }
    assert!(matches!(Plan::new(&[], &[]), Err(HostError::Empty)));
    let odd = linked(
        &words(&[jal(Ra, offset!(0))]),
        &[reloc(0, RelocKind::Jal, RelocTarget::Address(BASE + 9))],
    );
    assert_eq!(odd, Err(RelocFault::OddTarget { target: BASE + 9 }));
}
