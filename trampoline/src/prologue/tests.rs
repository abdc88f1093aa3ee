//! Hard prologues and what they become, what is refused, and copies with mistakes in them.

mod cases;
mod machine;
mod random;

use rv64::Reg::{A0, A1, A2, A3, Fp, Ra, Sp, T0, T1, T2, T3, T4, T5, T6, Tp, Zero};
use rv64::{Code, Features, Insn, disassemble, imm, insn, offset};

use super::*;
use cases::cases;

const ENTRY: u64 = 0x10_0000_0000;
/// Where a `j` reaches from, an `auipc`, and nothing but a constant.
const NEAR: u64 = ENTRY + 0x1_0abc;
const FAR: u64 = ENTRY + 0x4000_0abc;
const BEYOND: u64 = ENTRY + 0x100_0000_0000;

/// A function at [`ENTRY`], compressed where it can be.
fn function(write: impl FnOnce(&mut Asm)) -> Vec<u8> {
    let mut asm = Asm::new(Features::RV64GC);
    write(&mut asm);
    asm.finish(ENTRY).unwrap().bytes
}

fn code(insns: &[Insn]) -> Vec<u8> {
    function(|asm| insns.iter().for_each(|&insn| asm.emit(insn)))
}

/// Plans for a function whose object is itself.
fn planned(bytes: &[u8], reach: Reach) -> Result<Prologue, Refusal> {
    let jumps = Jumps::scan([(ENTRY, bytes)]);
    let body = Body {
        entry: ENTRY,
        bytes,
        jumps: &jumps,
    };
    plan(&body, reach)
}

/// A copy, the size of its instructions, and where it does the work of which.
struct Copy {
    code: Code,
    insns_bytes: u32,
    offsets: Vec<(u8, u32)>,
}

fn copy(prologue: &Prologue, at: u64) -> Copy {
    let mut asm = Asm::new(Features::RV64GC);
    let labels = prologue.emit(&mut asm);
    let end = asm.here();
    let code = asm.finish(at).unwrap();
    Copy {
        insns_bytes: code.offset(end),
        offsets: labels
            .into_iter()
            .map(|(off, label)| (off, code.offset(label)))
            .collect(),
        code,
    }
}

/// The instructions of a copy, without addresses and encodings.
fn listing(copy: &Copy) -> Vec<String> {
    let insns = &copy.code.bytes[..copy.insns_bytes as usize];
    let text = |line: rv64::Line<'_>| {
        let text = line.to_string();
        let words: Vec<_> = text.split_whitespace().skip(2).collect();
        words.join(" ")
    };
    disassemble(insns, copy.code.base).map(text).collect()
}

/// One row of the table.
struct Case {
    name: &'static str,
    bytes: Vec<u8>,
    reach: Reach,
    at: u64,
    want: &'static str,
}

fn call(link: Reg, by: i64) -> Insn {
    insn::jal(link, rv64::Offset::new(by).unwrap())
}

/// Makes room for any reach behind what matters.
fn padded(insns: &[Insn]) -> Vec<u8> {
    let tail = [
        insn::addi(A3, A3, imm!(1)),
        insn::addi(A3, A3, imm!(1)),
        insn::ret(),
    ];
    code(&[insns, &tail].concat())
}

#[test]
fn copies_are_as_listed() {
    let mut wrong = String::new();
    for case in cases() {
        let prologue = planned(&case.bytes, case.reach).unwrap();
        let copy = copy(&prologue, case.at);
        let got = listing(&copy).join("\n");
        let want: Vec<_> = case.want.trim().lines().map(str::trim).collect();
        if got != want.join("\n") {
            wrong += &format!("{}:\n{got}\n\n", case.name);
        }
    }
    assert!(wrong.is_empty(), "\n{wrong}");
}

#[test]
fn copies_mean_the_same() {
    for case in cases() {
        let prologue = planned(&case.bytes, case.reach).unwrap();
        for at in [NEAR, FAR, BEYOND, ENTRY - 0x7000_0000, 0x1000] {
            let copy = copy(&prologue, at);
            let same = same_meaning(&prologue, &case.bytes, &copy.code.bytes, at);
            assert_eq!(
                same,
                Ok(()),
                "{} at {at:#x}: {:#?}",
                case.name,
                listing(&copy)
            );
        }
    }
}

/// One bit of a copy is wrong, in its instructions or its constants: that is found.
#[test]
fn every_wrong_bit_is_found() {
    let mut tried = 0;
    for case in cases() {
        let prologue = planned(&case.bytes, case.reach).unwrap();
        for at in [NEAR, FAR, BEYOND] {
            let copy = copy(&prologue, at);
            let pool = at as u32 + copy.insns_bytes;
            let pool = pool.next_multiple_of(8) - at as u32;
            let ignored = ignored_bits(&copy, prologue.scratch());
            for bit in 0..copy.code.bytes.len() as u32 * 8 {
                let byte = bit / 8;
                if (copy.insns_bytes..pool).contains(&byte) || ignored.contains(&bit) {
                    continue;
                }
                let mut bytes = copy.code.bytes.clone();
                bytes[byte as usize] ^= 1 << (bit % 8);
                let same = same_meaning(&prologue, &case.bytes, &bytes, at);
                assert!(
                    same.is_err(),
                    "{} at {at:#x}, bit {bit}: {:#?}",
                    case.name,
                    listing(&copy)
                );
                tried += 1;
            }
        }
    }
    assert!(tried > 5000, "{tried}");
}

/// Bit 0 of where a `jalr` goes, which no hart looks at: in the instruction, and in the constant
/// that is loaded for it.
fn ignored_bits(copy: &Copy, scratch: Reg) -> Vec<u32> {
    let (mut at, mut bits, mut upper) = (0, Vec::new(), 0);
    while at < copy.insns_bytes {
        let step = step(&copy.code.bytes[at as usize..]).unwrap();
        match (step.flow, Insn::decode(step.word)) {
            (Flow::Auipc { imm, .. }, _) => upper = at.wrapping_add((imm.get() << 12) as u32),
            (Flow::IndirectJump { .. }, _) if step.len_bytes == 4 => bits.push(at * 8 + 20),
            (_, Ok(Insn::Load { rd, imm, .. })) if rd == scratch => {
                bits.push(upper.wrapping_add(imm.get() as u32) * 8);
            }
            _ => {}
        }
        at += u32::from(step.len_bytes);
    }
    bits
}

/// Mistakes of the kinds that one makes when code is moved.
#[test]
fn mistakes_are_told_apart() {
    let bytes = padded(&[
        insn::auipc(A0, imm!(0x10)),
        insn::beq(A1, Zero, offset!(0x100)),
        insn::addi(A0, A0, imm!(8)),
    ]);
    let prologue = planned(&bytes, Reach::Far).unwrap();
    let good = |asm: &mut Asm| asm.la_abs(A0, ENTRY + 0x1_0000);
    let branch = |asm: &mut Asm, cond, target| {
        let over = asm.new_label();
        asm.branch(cond, A1, Zero, over);
        asm.jump_abs(target, T1);
        asm.bind(over);
    };
    let resume = ENTRY + u64::from(prologue.covered_bytes());
    let taken = ENTRY + 4 + 0x100;
    let check = |write: &dyn Fn(&mut Asm)| {
        let mut asm = Asm::new(Features::RV64GC);
        write(&mut asm);
        let code = asm.finish(FAR).unwrap();
        same_meaning(&prologue, &bytes, &code.bytes, FAR)
    };
    let right = |asm: &mut Asm| {
        good(asm);
        branch(asm, rv64::Cond::Ne, taken);
        asm.jump_abs(resume, T3);
    };
    assert_eq!(check(&right), Ok(()), "with another scratch register");
    let wrong_constant = |asm: &mut Asm| {
        asm.la_abs(A0, ENTRY + 0x1_0004);
        branch(asm, rv64::Cond::Ne, taken);
        asm.jump_abs(resume, T1);
    };
    let (path, reg) = (0, A0);
    let register = Err(Difference::Register { path, reg });
    assert_eq!(check(&wrong_constant), register);
    let not_inverted = |asm: &mut Asm| {
        good(asm);
        branch(asm, rv64::Cond::Eq, taken);
        asm.jump_abs(resume, T1);
    };
    assert_eq!(check(&not_inverted), Err(Difference::Exit { path }));
    let other_condition = |asm: &mut Asm| {
        good(asm);
        branch(asm, rv64::Cond::Ge, taken);
        asm.jump_abs(resume, T1);
    };
    assert_eq!(check(&other_condition), Err(Difference::Branches { path }));
    let no_branch = |asm: &mut Asm| {
        good(asm);
        asm.jump_abs(resume, T1);
    };
    assert_eq!(check(&no_branch), Err(Difference::Branches { path }));
    let short_jump = |asm: &mut Asm| {
        good(asm);
        branch(asm, rv64::Cond::Ne, taken);
        asm.jump_abs(resume - 2, T1);
    };
    assert_eq!(check(&short_jump), Err(Difference::Exit { path: 1 }));
    let static_chain = |asm: &mut Asm| {
        good(asm);
        branch(asm, rv64::Cond::Ne, taken);
        asm.jump_abs(resume, T2);
    };
    let (path, reg) = (1, T2);
    assert_eq!(
        check(&static_chain),
        Err(Difference::Register { path, reg })
    );
    let more = |asm: &mut Asm| {
        good(asm);
        asm.emit(insn::sd(A0, Sp, imm!(-8)));
        branch(asm, rv64::Cond::Ne, taken);
        asm.jump_abs(resume, T1);
    };
    assert_eq!(check(&more), Err(Difference::Effect { path: 0, nth: 0 }));
    let endless = |asm: &mut Asm| {
        let again = asm.here();
        asm.jump(again);
    };
    assert_eq!(check(&endless), Err(Difference::Endless { at: FAR }));
    let nothing = |asm: &mut Asm| asm.emit_encoded(&[0, 0]);
    assert_eq!(check(&nothing), Err(Difference::NoInstruction { at: FAR }));
}

/// Code that others jump to the middle of, and code of other kinds that cannot be moved.
#[test]
fn refusals() {
    use Refusal::*;
    let at = |off: u64| ENTRY + off;
    let addi = insn::addi(A3, A3, imm!(100)); // four bytes
    let short = insn::addi(A3, A3, imm!(1)); // two
    let c = code(&[short]);
    assert_eq!(c.len(), 2);
    for (name, bytes, reach, want) in [
        (
            "a function of four bytes",
            code(&[short, insn::ret()]),
            Reach::Far,
            TooShort {
                entry: ENTRY,
                len: 4,
                needed: 8,
            },
        ),
        (
            "its last instruction is cut off",
            code(&[short, short, short, addi])[..8].to_vec(),
            Reach::Far,
            TooShort {
                entry: ENTRY,
                len: 8,
                needed: 10,
            },
        ),
        (
            "nothing at all",
            Vec::new(),
            Reach::Near,
            TooShort {
                entry: ENTRY,
                len: 0,
                needed: 4,
            },
        ),
        (
            "no instruction",
            [c.clone(), vec![0, 0, 0, 0, 0, 0, 0, 0]].concat(),
            Reach::Near,
            Undecodable {
                at: at(2),
                bytes: [0; 4],
            },
        ),
        (
            "a loop into the covered bytes",
            code(&[short, short, addi, insn::bne(A0, Zero, offset!(-6))]),
            Reach::Near,
            BranchesInto {
                from: at(8),
                to: at(2),
            },
        ),
        (
            "a loop to the entry",
            code(&[addi, addi, insn::bne(A0, Zero, offset!(-8))]),
            Reach::Far,
            LoopsToEntry { from: at(8) },
        ),
        (
            "a covered loop to the entry",
            padded(&[short, insn::bne(A0, Zero, offset!(-2))]),
            Reach::Far,
            LoopsToEntry { from: at(2) },
        ),
        (
            "a covered loop",
            padded(&[short, short, insn::bne(A0, Zero, offset!(-2))]),
            Reach::Far,
            BranchesInto {
                from: at(4),
                to: at(2),
            },
        ),
        (
            "a jump into an instruction",
            padded(&[insn::beq(A0, A1, offset!(6)), addi]),
            Reach::Far,
            BranchesInto {
                from: at(0),
                to: at(6),
            },
        ),
        (
            "a call of what is covered",
            padded(&[short, call(Ra, 2), addi]),
            Reach::Near,
            BranchesInto {
                from: at(2),
                to: at(4),
            },
        ),
        (
            "a call first",
            padded(&[call(T0, 0x1000)]),
            Reach::Far,
            ReturnsInto { at: at(0) },
        ),
        (
            "a call in between",
            padded(&[insn::auipc(Ra, imm!(1)), insn::jalr(Ra, A0, imm!(0))]),
            Reach::Far,
            ReturnsInto { at: at(4) },
        ),
        (
            "a system call",
            padded(&[short, insn::ecall()]),
            Reach::Near,
            SystemCall { at: at(2) },
        ),
        (
            "a breakpoint",
            padded(&[insn::ebreak()]),
            Reach::Near,
            Breakpoint { at: at(0) },
        ),
        (
            "millicode",
            padded(&[addi, addi, insn::jr(T0)]),
            Reach::Far,
            CustomEntry { at: at(8), reg: T0 },
        ),
        (
            "a nested function, behind a branch",
            padded(&[insn::beq(A0, Zero, offset!(64)), insn::ld(A0, T2, imm!(8))]),
            Reach::Near,
            CustomEntry { at: at(2), reg: T2 },
        ),
    ] {
        assert_eq!(planned(&bytes, reach), Err(want), "{name}");
    }
}

/// Four instructions cannot write all five, so no function shows this.
#[test]
fn scratch_is_what_is_not_written() {
    let of = |regs: &[Reg]| scratch(RegSet::of(regs));
    assert_eq!(of(&[]), Some(T1));
    assert_eq!(of(&[T1, T0, T2, T3]), Some(T4));
    assert_eq!(of(&[T1, T3, T4, T5]), Some(T6));
    assert_eq!(of(&[T1, T3, T4, T5, T6]), None);
}

#[test]
fn a_trap_covers_one_instruction() {
    let bytes = code(&[insn::addi(Sp, Sp, imm!(-16)), insn::ret()]);
    let jumps = Jumps::scan([(ENTRY, &bytes[..])]);
    let body = |bytes, jumps| Body {
        entry: ENTRY,
        bytes,
        jumps,
    };
    let trap = plan_trap(&body(&bytes, &jumps)).unwrap();
    assert_eq!((trap.covered_bytes(), trap.falls_through()), (2, true));
    assert_eq!(
        listing(&copy(&trap, NEAR)),
        ["addi sp, sp, -16", "j 1000000002"]
    );
    // One that is alone, and calls.
    let bytes = code(&[call(Ra, 0x1000)]);
    let jumps = Jumps::default();
    let trap = plan_trap(&body(&bytes, &jumps)).unwrap();
    assert_eq!((trap.covered_bytes(), trap.falls_through()), (4, false));
    let looping = code(&[
        insn::addi(A0, A0, imm!(-1)),
        insn::bne(A0, Zero, offset!(-2)),
    ]);
    let jumps = Jumps::scan([(ENTRY, &looping[..])]);
    let from = ENTRY + 2;
    assert_eq!(
        plan_trap(&body(&looping, &jumps)),
        Err(Refusal::LoopsToEntry { from })
    );
}

/// Jumps of other functions count, and their calls and tail calls of the entry do not.
#[test]
fn the_whole_object_is_looked_at() {
    let bytes = padded(&[insn::addi(A3, A3, imm!(1)); 4]);
    let other = ENTRY - 0x100;
    let from_other = |insn: Insn| {
        let other_bytes = code(&[insn]);
        let jumps = Jumps::scan([(ENTRY, &bytes[..]), (other, &other_bytes[..])]);
        let body = Body {
            entry: ENTRY,
            bytes: &bytes,
            jumps: &jumps,
        };
        plan(&body, Reach::Far).map(|_| ())
    };
    assert_eq!(from_other(call(Ra, 0x100)), Ok(()));
    assert_eq!(from_other(call(Zero, 0x100)), Ok(()), "a tail call");
    assert_eq!(
        from_other(call(Zero, 0x108)),
        Ok(()),
        "behind what is covered"
    );
    let (from, to) = (other, ENTRY + 6);
    let into = Err(Refusal::BranchesInto { from, to });
    assert_eq!(from_other(call(Zero, 0x106)), into);
    assert_eq!(from_other(call(Ra, 0x106)), into);
}

/// Where a fused pair is computed, its two halves begin; all else begins where it stands.
#[test]
fn threads_are_carried_to_labels() {
    let bytes = padded(&[
        insn::auipc(A0, imm!(1)),
        insn::add(A1, Zero, A2),
        insn::ld(A0, A0, imm!(16)),
    ]);
    let prologue = planned(&bytes, Reach::Far).unwrap();
    assert_eq!(prologue.offsets().collect::<Vec<_>>(), [0, 4, 6]);
    let copy = copy(&prologue, FAR);
    assert_eq!(copy.offsets, [(0, 0), (4, 0), (6, 2)]);
    // From each of them the copy goes on as the original does.
    for (off, at) in copy.offsets {
        let mut original = machine::Machine::random(off.into());
        if off > 0 {
            original.regs[A0 as usize] = ENTRY + 0x1000;
        }
        let mut moved = original.clone();
        (original.pc, moved.pc) = (ENTRY + u64::from(off), FAR + u64::from(at));
        original.run(ENTRY, &bytes[..prologue.covered_bytes().into()]);
        moved.run(FAR, &copy.code.bytes);
        moved.forget(RegSet::of(&[prologue.scratch()]), &original);
        moved.agrees(&original, "carried");
    }
}
