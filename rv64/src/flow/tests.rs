//! What instructions read and write, against the text that GNU binutils have for them.
//!
//! A register that is read or written is named in the text, and the first operand is what is
//! written, but for stores, branches and a few others. So the text says it all, and shares nothing
//! with the tables. The texts of this crate's own rows are those of `tests/data/words.txt`, which
//! GNU as has confirmed; those of other extensions are in `tests/data/flow.txt`, written by
//!
//! ```text
//! RVBPF_AS=riscv64-linux-gnu-as cargo test -p rvbpf-rv64 update_flow -- --ignored
//! ```
//!
//! A word that is asked for and has no line there is one that objdump does not know.

use std::collections::BTreeMap;

use super::*;
use crate::testing::{Rng, gnu::Gnu};
use crate::{FReg, Features, imm, insn, offset};

const WORDS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/words.txt");
const FLOW: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/flow.txt");

/// Words of rows, of vectors and of cryptography, known and unknown.
fn subjects() -> Vec<u32> {
    let mut all = Vec::new();
    // rs2, rs1, rm, rd: distinct; each bit alone; none; all.
    let regs = |rs2: u32, rs1: u32, rd: u32| rs2 << 20 | rs1 << 15 | rd << 7;
    let fills = [
        0,
        !0,
        regs(12, 11, 10),
        regs(1, 2, 4),
        regs(16, 1, 8),
        regs(8, 4, 16) | 1 << 31,
        regs(2, 16, 1) | 3 << 30,
        regs(4, 8, 2) | 5 << 12,
    ];
    for &(bits, mask, _) in other::ROWS {
        all.extend(fills.map(|fill| bits | fill & !mask));
    }
    let op_v = |funct6: u32, vm: u32, form: u32| funct6 << 26 | vm << 25 | form << 12 | 0x57;
    for (funct6, vm, form) in product(64, 2, 7) {
        all.push(op_v(funct6, vm, form) | regs(12, 11, 10));
        all.push(op_v(funct6, vm, form) | regs(0, 0, 0));
    }
    for (form, funct6) in [
        (1, 16),
        (1, 18),
        (1, 19),
        (2, 16),
        (2, 18),
        (2, 20),
        (3, 39),
    ] {
        for (vs1, vm, some) in product(32, 2, 2) {
            all.push(op_v(funct6, vm, form) | regs(12 * some, vs1, 10));
        }
    }
    for reg in 0..32 {
        all.push(op_v(0, 1, 4) | regs(1, reg, 2));
        all.push(op_v(16, 1, 2) | regs(3, 0, reg));
        all.push(op_v(16, 1, 6) | regs(0, reg, 3));
        all.push(0x0200_0007 | regs(0, reg, 4));
        all.push(0x0a00_0007 | regs(reg, 0, 4));
    }
    all.extend((0..128).map(|top| top << 25 | regs(12, 11, 10) | 0x7057));
    for (funct6, vm, vs1) in product(64, 2, 32) {
        all.push(funct6 << 26 | vm << 25 | regs(12, vs1, 10) | 0x2077);
    }
    for (form, funct6, _) in product(8, 64, 1) {
        all.push(funct6 << 26 | 1 << 25 | form << 12 | regs(12, 11, 10) | 0x77);
    }
    let modes = [
        (0, 0),
        (0, 1),
        (0, 8),
        (0, 11),
        (0, 16),
        (1, 12),
        (2, 12),
        (3, 12),
    ];
    for ((mop, rs2), opcode) in modes
        .into_iter()
        .flat_map(|mode| [(mode, 0x07), (mode, 0x27)])
    {
        for (width, vm_mew, nf) in product(8, 4, 8) {
            let upper = nf << 29 | vm_mew >> 1 << 28 | mop << 26 | (vm_mew & 1) << 25;
            all.push(upper | regs(rs2, 11, 10) | width << 12 | opcode);
        }
    }
    // objdump shows rounds of AES that there are not.
    all.retain(|&word| Insn::decode(word).is_err() && !is_late_round(word));
    all.sort_unstable();
    all.dedup();
    all
}

fn is_late_round(word: u32) -> bool {
    word & 0xff00_707f == 0x3100_1013 && place::bits(word, 23, 20) > 10
}

fn product(a: u32, b: u32, c: u32) -> impl Iterator<Item = (u32, u32, u32)> {
    (0..a * b * c).map(move |n| (n / (b * c), n / c % b, n % c))
}

/// What a text says is read and written, each at least.
fn mentioned(text: &str) -> (RegSet, RegSet) {
    let (mnemonic, operands) = text.split_once(' ').unwrap_or((text, ""));
    let reg = |name: &str| Reg::ALL.into_iter().find(|reg| reg.name() == name);
    let float = |name: &str| FReg::ALL.into_iter().find(|reg| reg.name() == name);
    let tokens: Vec<&str> = operands
        .split([',', '(', ')', ' '])
        .filter(|token| !token.is_empty())
        .collect();
    let named: Vec<Option<Reg>> = tokens.iter().map(|token| reg(token)).collect();
    let set = |tokens: &[&str]| {
        let floats: Vec<FReg> = tokens.iter().filter_map(|token| float(token)).collect();
        let ints: RegSet = tokens.iter().filter_map(|token| reg(token)).collect();
        ints.union(RegSet::of_floats(&floats))
    };
    let all = set(&tokens);
    let (first, rest) = tokens.split_at(tokens.len().min(1));
    let (first, rest) = (set(first), set(rest));
    let pair = |set: RegSet| -> RegSet {
        let both = |reg: Reg| [Some(reg), Reg::from_num(reg.num() + 1)];
        set.iter().flat_map(both).flatten().collect()
    };
    let name = mnemonic.split('.').next().unwrap_or_default();
    let none = RegSet::EMPTY;
    match name {
        "beq" | "bne" | "blt" | "bge" | "bltu" | "bgeu" | "beqz" | "bnez" => (all, none),
        "fsh" | "fsw" | "fsd" | "fsq" => (all, none),
        "sb" | "sh" | "sw" | "sd" | "jr" | "csrw" | "cbo" | "prefetch" => (all, none),
        "ret" => (RegSet::of(&[Reg::Ra]), none),
        "jalr" if named.len() == 1 => (all, RegSet::of(&[Reg::Ra])),
        "ecall" => (
            (10..18).filter_map(Reg::from_num).collect(),
            RegSet::of(&[Reg::A0]),
        ),
        "amocas" if mnemonic.starts_with("amocas.q") => {
            let value: RegSet = named[1].into_iter().collect();
            let base: RegSet = named[2].into_iter().collect();
            let pairs = pair(first).union(pair(value));
            (pairs.union(base), pair(first))
        }
        "amocas" => (all, first),
        _ => (rest, first),
    }
}

fn check(word: u32, text: Option<&str>) {
    let step = step(&word.to_le_bytes());
    let (Some(text), Some(step)) = (text, step) else {
        assert_eq!(
            step.is_some(),
            text.is_some(),
            "{word:#010x} {text:?} {step:?}"
        );
        return;
    };
    assert_eq!((step.len_bytes, step.word), (4, word), "{text}");
    assert_eq!((step.reads, step.writes), mentioned(text), "{text}");
}

#[test]
fn rows_read_and_write_what_their_text_names() {
    let words = std::fs::read_to_string(WORDS).unwrap();
    for line in words.lines().filter(|line| !line.starts_with('#')) {
        let (word, text) = line.split_once(' ').unwrap();
        check(u32::from_str_radix(word, 16).unwrap(), Some(text));
    }
}

#[test]
fn other_extensions_match_the_snapshot_of_objdump() {
    let text = std::fs::read_to_string(FLOW).unwrap();
    let mut lines: BTreeMap<u32, &str> = text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| {
            let (word, text) = line.split_once(' ').unwrap();
            (u32::from_str_radix(word, 16).unwrap(), text)
        })
        .collect();
    for word in subjects() {
        check(word, lines.remove(&word));
    }
    assert!(lines.is_empty(), "lines without a subject: {lines:x?}");
}

#[test]
fn every_row_is_in_the_snapshot() {
    let text = std::fs::read_to_string(FLOW).unwrap();
    for &(bits, mask, name) in other::ROWS {
        assert_eq!(bits & !mask, 0, "{name}: fixed bits inside operands");
        let line = |line: &str| {
            let word = u32::from_str_radix(line.split(' ').next()?, 16).ok()?;
            let (_, text) = line.split_once(' ')?;
            Some(word & mask == bits && text.starts_with(name))
        };
        assert!(text.lines().filter_map(line).any(|same| same), "{name}");
    }
}

/// Nothing that objdump does not know is known here, wherever one looks.
#[test]
fn objdump_knows_what_is_known_here() {
    let Some(gnu) = Gnu::from_env() else {
        return;
    };
    let mut rng = Rng(11);
    let majors = [
        0x03, 0x07, 0x0f, 0x13, 0x17, 0x1b, 0x23, 0x27, 0x2f, 0x33, 0x37, 0x3b, 0x43, 0x47, 0x4b,
        0x4f, 0x53, 0x57, 0x63, 0x67, 0x6f, 0x73, 0x77,
    ];
    let words: Vec<u32> = (0..200_000)
        .map(|_| rng.next() as u32 & !0x7f | rng.pick(&majors))
        .collect();
    let mut both = 0;
    for (word, text) in words.iter().zip(gnu.texts(&words)) {
        if let Some(step) = step(&word.to_le_bytes()) {
            let text = text.unwrap_or_else(|| panic!("{word:#010x} {step:?}"));
            both += 1;
            assert_eq!(
                (step.reads, step.writes),
                mentioned(&text),
                "{text} {word:#010x}"
            );
        }
    }
    assert!(both > 50_000, "{both} words were instructions");
}

#[test]
fn half_words_are_what_they_stand_for() {
    for half in 0..=u16::MAX {
        let got = step(&half.to_le_bytes());
        match Insn::decode_compressed(half) {
            Ok(insn) => {
                let got = got.unwrap();
                assert_eq!((got.len_bytes, got.word), (2, insn.encode()), "{half:#06x}");
                let wide = step(&got.word.to_le_bytes()).unwrap();
                let want = Step {
                    len_bytes: 2,
                    ..wide
                };
                assert_eq!(got, want, "{half:#06x}");
            }
            Err(DecodeError::Hint { .. }) => {
                let got = got.unwrap();
                assert_eq!(got.flow, Flow::Next);
                assert!(got.reads.is_empty() && got.writes.is_empty());
            }
            Err(_) => {
                let known = [
                    0x6081, 0x6181, 0x6281, 0x6381, 0x6481, 0x6581, 0x6681, 0x6781,
                ];
                assert_eq!(got.is_some(), known.contains(&half), "{half:#06x}");
            }
        }
    }
}

#[test]
fn operations_of_shadow_stacks() {
    let push = step(&0x6081_u16.to_le_bytes()).unwrap();
    assert_eq!(push.reads, RegSet::of(&[Reg::Ra]));
    let wide = step(&push.word.to_le_bytes()).unwrap();
    assert_eq!(wide.reads, push.reads, "c.sspush and sspush");
    let pop = step(&0x6281_u16.to_le_bytes()).unwrap();
    assert_eq!(step(&pop.word.to_le_bytes()).unwrap().reads, pop.reads);
    let ntl = step(&0x900a_u16.to_le_bytes()).unwrap();
    assert_eq!(ntl.word, add(Reg::Zero, Reg::Zero, Reg::Sp).encode());
}

#[test]
fn flows() {
    use Reg::{A0, A1, Ra, T0, Zero};
    let flow = |insn: Insn| step(&insn.encode().to_le_bytes()).unwrap().flow;
    for far in [-0x10_0000, -2, 0, 2, 0xf_fffe] {
        let off = Offset::new(far).unwrap();
        assert_eq!(flow(insn::jal(Zero, off)), Flow::Jump { off });
        assert_eq!(flow(insn::jal(T0, off)), Flow::Call { link: T0, off });
        let target = 0x80_0000_u64.wrapping_add_signed(far);
        assert_eq!(flow(insn::jal(Ra, off)).target(0x80_0000), Some(target));
    }
    for near in [-4096, -2, 0, 2, 4094] {
        let off = Offset::new(near).unwrap();
        for (op, cond) in [
            (insn::beq as fn(_, _, _) -> _, Cond::Eq),
            (insn::bne, Cond::Ne),
            (insn::blt, Cond::Lt),
            (insn::bge, Cond::Ge),
            (insn::bltu, Cond::Ltu),
            (insn::bgeu, Cond::Geu),
        ] {
            let want = Flow::Branch {
                cond,
                rs1: A0,
                rs2: A1,
                off,
            };
            assert_eq!(flow(op(A0, A1, off)), want);
            assert_eq!(cond.branch(A0, A1, off), op(A0, A1, off));
            let target = 0x8000_u64.wrapping_add_signed(near);
            assert_eq!(want.target(0x8000), Some(target));
        }
    }
    for imm in [imm!(-2048), imm!(0), imm!(2047)] {
        let jump = Flow::IndirectJump { base: A0, off: imm };
        assert_eq!(flow(insn::jalr(Zero, A0, imm)), jump);
        let call = Flow::IndirectCall {
            link: Ra,
            base: Ra,
            off: imm,
        };
        assert_eq!(flow(insn::jalr(Ra, Ra, imm)), call);
        assert!(jump.is_jump() && !jump.is_call() && call.is_call() && !call.is_jump());
    }
    for imm in [imm!(-0x80000), imm!(0), imm!(0x7ffff)] {
        assert_eq!(flow(insn::auipc(A0, imm)), Flow::Auipc { rd: A0, imm });
        assert_eq!(flow(insn::lpad(imm)), Flow::Next);
    }
    assert_eq!(flow(insn::ecall()), Flow::Ecall);
    assert_eq!(flow(insn::ebreak()), Flow::Ebreak);
    assert_eq!(flow(insn::fence_i()), Flow::Next);
    let short = insn::jal(Zero, offset!(-4)).compress_for(Features::RV64GC);
    let got = step(&short.unwrap().to_le_bytes()).unwrap();
    assert_eq!((got.len_bytes, got.flow.target(100)), (2, Some(96)));
}

#[test]
fn what_is_not_whole_or_too_long_is_nothing() {
    assert_eq!(step(&[]), None);
    assert_eq!(step(&[0x13]), None);
    assert_eq!(step(&[0x13, 0, 0]), None, "the first half of a nop");
    assert_eq!(step(&[0, 0]), None, "c.unimp");
    assert_eq!(step(&[0x1f, 0, 0, 0, 0, 0]), None, "48 bits");
    let round = |n: u32| step(&(0x3100_1013 | n << 20).to_le_bytes());
    assert!(round(10).is_some() && round(11).is_none(), "aes64ks1i");
    assert_eq!(step(&0x1020_0073_u32.to_le_bytes()), None, "sret");
    assert_eq!(step(&0x0000_000b_u32.to_le_bytes()), None, "a vendor's");
}

#[test]
#[ignore = "writes tests/data/flow.txt; asks for RVBPF_AS"]
fn update_flow() {
    let gnu = Gnu::from_env().expect("RVBPF_AS");
    let words = subjects();
    let mut out = format!("# {}; word and objdump's text\n", gnu.version());
    for (word, text) in words.iter().zip(gnu.texts(&words)) {
        if let Some(text) = text {
            out += &format!("{word:08x} {text}\n");
        }
    }
    std::fs::write(FLOW, out).unwrap();
}
