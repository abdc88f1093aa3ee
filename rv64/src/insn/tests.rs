//! The rows against GNU as, and against themselves.
//!
//! `tests/data/words.txt` holds what GNU as made of every row with every edge
//! operand; `tests/data/halves.txt` holds a digest of what all half-words
//! stand for. Both are written by `update_snapshots`, from the assembler that
//! `RVBPF_AS` names:
//!
//! ```text
//! RVBPF_AS=riscv64-linux-gnu-as cargo test -p rvbpf-rv64 update_snapshots -- --ignored
//! ```
//!
//! (objcopy and objdump are found beside it.) With `RVBPF_AS` set the other
//! tests ask the assembler as well.

use std::collections::{BTreeMap, HashSet};

use proptest::prelude::*;

use super::*;
use crate::insn::alias::mv_add;
use crate::testing::gnu::{self, Rvc};
use crate::testing::{Rng, hash};
use crate::{DecodeError, Features, PrefetchOffset, Reg};

const WORDS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/words.txt");
const HALVES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/halves.txt");

/// Half-words per line of the digest.
const BLOCK: usize = 64;

/// What the words are checked on: rows, register names, aliases.
fn subjects() -> Vec<Insn> {
    let mut all = Insn::edges();
    all.extend(Reg::ALL.map(|reg| add(reg, reg, reg)));
    all.extend(crate::FReg::ALL.map(|reg| fsgnjx_d(reg, reg, reg)));
    let (a, b) = (Reg::A0, Reg::A1);
    all.extend([
        nop(),
        mv(a, b),
        not(a, b),
        neg(a, b),
        sext_w(a, b),
        zext_w(a, b),
        seqz(a, b),
    ]);
    all.extend([
        snez(a, b),
        j(crate::offset!(-6)),
        jr(a),
        jalr(Reg::Ra, a, crate::imm!(0)),
        ret(),
    ]);
    all.extend([
        csrr(a, crate::Csr::VL),
        csrw(crate::Csr::FRM, a),
        fence_full(),
        unimp(),
    ]);
    all.extend([
        beq(a, Reg::Zero, crate::offset!(8)),
        bne(a, Reg::Zero, crate::offset!(-8)),
    ]);
    all.extend([
        fmv_s(crate::FReg::Fa0, crate::FReg::Fs1),
        fmv_d(crate::FReg::Fa0, crate::FReg::Fs1),
    ]);
    all.extend([
        lpad(crate::imm!(0)),
        lpad(crate::imm!(-1)),
        lpad(crate::imm!(0x12345)),
    ]);
    for bytes in [-2048, -32, 0, 32, 2016] {
        let offset = PrefetchOffset::new(bytes).unwrap();
        all.extend([
            prefetch_i(a, offset),
            prefetch_r(b, offset),
            prefetch_w(Reg::Sp, offset),
        ]);
    }
    all.sort_unstable_by_key(|insn| insn.encode());
    all.dedup();
    all
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

#[test]
fn every_row_matches_the_snapshot_of_gnu_as() {
    let text = read(WORDS);
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let snapshot: BTreeMap<&str, u32> = lines
        .map(|line| {
            let (word, text) = line.split_once(' ').unwrap();
            (text, u32::from_str_radix(word, 16).unwrap())
        })
        .collect();
    let subjects = subjects();
    for insn in &subjects {
        let text = insn.to_string();
        let want = *snapshot
            .get(text.as_str())
            .unwrap_or_else(|| panic!("no line for {text}"));
        let got = insn.encode();
        assert_eq!(got, want, "{text}: {got:#010x}, GNU as {want:#010x}");
    }
    assert_eq!(snapshot.len(), subjects.len(), "lines without a subject");
}

#[test]
fn every_row_has_a_line_of_its_own() {
    let named: HashSet<&str> = subjects().iter().map(|insn| insn.mnemonic()).collect();
    for (bits, mask, mnemonic) in Insn::patterns() {
        assert!(named.contains(mnemonic), "{mnemonic}");
        assert_eq!(bits & !mask, 0, "{mnemonic}: fixed bits inside operands");
        assert_eq!(bits & 3, 3, "{mnemonic}: not a 32-bit instruction");
    }
}

#[test]
fn no_two_rows_overlap() {
    let patterns = Insn::patterns();
    for (at, &(bits, mask, name)) in patterns.iter().enumerate() {
        for &(other_bits, other_mask, other) in &patterns[at + 1..] {
            let both = mask & other_mask;
            // `fence` and `pause` meet where `fence` has its empty set.
            let hint = [name, other].contains(&"pause") && [name, other].contains(&"fence");
            assert!(
                hint || (bits ^ other_bits) & both != 0,
                "{name} and {other}"
            );
        }
    }
}

#[test]
fn edges_decode_to_themselves() {
    for insn in subjects() {
        assert_eq!(Insn::decode(insn.encode()), Ok(insn), "{insn}");
    }
}

#[test]
fn gnu_as_agrees_when_it_is_there() {
    let Some(gnu) = gnu::Gnu::from_env() else {
        return;
    };
    let subjects = subjects();
    let texts: Vec<String> = subjects.iter().map(ToString::to_string).collect();
    let words = gnu.words(&texts);
    for ((insn, text), want) in subjects.iter().zip(&texts).zip(words) {
        assert_eq!(insn.encode(), want, "{text}");
    }
}

/// Integer and memory rows with registers and numbers at which compressed
/// forms begin and end.
fn compressible() -> Vec<Insn> {
    let imms = crate::testing::compressed_edges();
    let regs = [
        Reg::Zero,
        Reg::Ra,
        Reg::Sp,
        Reg::Fp,
        Reg::A0,
        Reg::A5,
        Reg::A6,
    ];
    let mut all = Vec::new();
    for middle in Insn::edges() {
        for rd in regs {
            for rs1 in regs {
                for with in regs {
                    all.extend(placed(middle, rd, rs1, with));
                }
                for &imm in &imms {
                    all.extend(numbered(middle, rd, rs1, imm));
                }
            }
        }
    }
    let mut seen = HashSet::new();
    all.retain(|insn| seen.insert(*insn));
    all
}

fn placed(insn: Insn, a: Reg, b: Reg, c: Reg) -> Option<Insn> {
    Some(match insn {
        Insn::R { op, .. } => Insn::R {
            op,
            rd: a,
            rs1: b,
            rs2: c,
        },
        Insn::Unary { op, .. } => Insn::Unary { op, rd: a, rs1: b },
        _ => return None,
    })
}

fn numbered(insn: Insn, a: Reg, b: Reg, imm: i64) -> Option<Insn> {
    let fp = crate::FReg::from_num(a.num())?;
    Some(match insn {
        Insn::I { op, .. } => Insn::I {
            op,
            rd: a,
            rs1: b,
            imm: crate::SImm::new(imm)?,
        },
        Insn::Shift { op, .. } => Insn::Shift {
            op,
            rd: a,
            rs1: b,
            shamt: crate::UImm::new(imm)?,
        },
        Insn::Load { op, .. } => Insn::Load {
            op,
            rd: a,
            rs1: b,
            imm: crate::SImm::new(imm)?,
        },
        Insn::Store { op, .. } => Insn::Store {
            op,
            rs2: a,
            rs1: b,
            imm: crate::SImm::new(imm)?,
        },
        Insn::FLoad { op, .. } => Insn::FLoad {
            op,
            fd: fp,
            rs1: b,
            imm: crate::SImm::new(imm)?,
        },
        Insn::FStore { op, .. } => Insn::FStore {
            op,
            fs2: fp,
            rs1: b,
            imm: crate::SImm::new(imm)?,
        },
        Insn::U { op, .. } => Insn::U {
            op,
            rd: a,
            imm: crate::SImm::new(imm)?,
        },
        Insn::Jal { op, .. } => Insn::Jal {
            op,
            rd: a,
            offset: crate::Offset::new(imm)?,
        },
        Insn::Branch { op, .. } => Insn::Branch {
            op,
            rs1: a,
            rs2: b,
            offset: crate::Offset::new(imm)?,
        },
        Insn::Jalr { op, .. } => Insn::Jalr {
            op,
            rd: a,
            rs1: b,
            imm: crate::SImm::new(imm)?,
        },
        _ => return None,
    })
}

/// Two instructions that do the same: what `c.mv`, the commuted register
/// forms and the branches on zero are chosen for.
fn same(one: Insn, other: Insn) -> bool {
    let normal = |insn: Insn| match insn {
        Insn::I {
            op: IOp::Addi,
            rd,
            rs1,
            imm,
        } if imm.get() == 0 && rs1 != Reg::Zero => mv_add(rd, rs1),
        Insn::R {
            op: op @ (ROp::Add | ROp::And | ROp::Or | ROp::Xor | ROp::Addw | ROp::Mul),
            rd,
            rs1,
            rs2,
        } => Insn::R {
            op,
            rd,
            rs1: rs1.min(rs2),
            rs2: rs1.max(rs2),
        },
        Insn::Branch {
            op: op @ (BranchOp::Beq | BranchOp::Bne),
            rs1,
            rs2,
            offset,
        } => Insn::Branch {
            op,
            rs1: rs1.min(rs2),
            rs2: rs1.max(rs2),
            offset,
        },
        _ => insn,
    };
    normal(one) == normal(other)
}

#[test]
fn what_compresses_stands_for_the_same() {
    let mut count = 0;
    for insn in compressible() {
        assert_eq!(insn.compress_for(Features::RV64G), None);
        let Some(half) = insn.compress_for(Features::ALL) else {
            continue;
        };
        let back = Insn::decode_compressed(half);
        assert!(
            back.is_ok_and(|back| same(back, insn)),
            "{insn}: {half:#06x} is {back:?}"
        );
        count += 1;
    }
    assert!(count > 4000, "{count}");
}

#[test]
fn every_half_word_is_an_error_or_comes_back() {
    let mut count = 0;
    for half in 0..=u16::MAX {
        let insn = match Insn::decode_compressed(half) {
            Ok(insn) => insn,
            Err(DecodeError::Half { half: same } | DecodeError::Hint { half: same }) => {
                assert_eq!(half, same);
                continue;
            }
            Err(error) => panic!("{half:#06x}: {error}"),
        };
        count += 1;
        let again = insn.compress_for(Features::ALL).unwrap();
        // c.addi and c.addi16sp meet at `addi sp, sp, -32` and `16`.
        let two_ways = half & 0xef83 == 0x6101;
        assert!(
            again == half || two_ways,
            "{half:#06x}: {insn} compresses to {again:#06x}"
        );
        assert_eq!(Insn::decode_compressed(again), Ok(insn));
        assert_eq!(Insn::decode_at(&half.to_le_bytes()), Ok((insn, 2)));
    }
    assert!(count > 40_000, "{count}");
}

/// The digest's lines: the first half-word, how many are instructions, and a
/// hash of the words that they stand for.
fn digest(word: impl Fn(u16) -> Option<u32>) -> Vec<String> {
    let halves: Vec<u16> = (0..=u16::MAX).collect();
    let lines = halves.chunks(BLOCK).map(|block| {
        let words: Vec<u32> = block.iter().map(|&half| word(half).unwrap_or(0)).collect();
        let count = words.iter().filter(|&&word| word != 0).count();
        format!("{:04x} {count} {:016x}", block[0], hash(&words))
    });
    lines.collect()
}

#[test]
fn half_words_match_the_digest_of_objdump() {
    let text = read(HALVES);
    let want: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    let got = digest(|half| Insn::decode_compressed(half).ok().map(Insn::encode));
    assert_eq!(got.len(), want.len());
    for (got, want) in got.iter().zip(want) {
        assert_eq!(got, want, "set RVBPF_AS to see the instruction");
    }
}

#[test]
fn objdump_agrees_when_it_is_there() {
    let Some(gnu) = gnu::Gnu::from_env() else {
        return;
    };
    for (half, want) in gnu.expand_halves() {
        let got = Insn::decode_compressed(half).ok().map(Insn::encode);
        assert_eq!(
            got,
            want,
            "{half:#06x}: {:?}",
            Insn::decode_compressed(half)
        );
    }
}

#[test]
fn gnu_as_compresses_the_same_when_it_is_there() {
    let Some(gnu) = gnu::Gnu::from_env() else {
        return;
    };
    let all = compressible();
    let texts: Vec<String> = all.iter().map(ToString::to_string).collect();
    for (rvc, features) in [(Rvc::C, Features::RV64GC), (Rvc::Zcb, Features::ALL)] {
        let codes = gnu.compressed(&texts, rvc);
        for ((insn, text), code) in all.iter().zip(&texts).zip(codes) {
            let got = insn.compress_for(features);
            // GNU as does not know that these commute.
            let commuted = match *insn {
                Insn::Branch { rs1: Reg::Zero, .. } => true,
                Insn::R {
                    op: ROp::Mul,
                    rd,
                    rs1,
                    ..
                } => rd != rs1,
                _ => false,
            };
            if !commuted {
                assert_eq!(
                    got.map(u32::from),
                    code.short(),
                    "{text}: {got:#06x?}, GNU as {code:x?}"
                );
            }
        }
    }
}

#[test]
fn random_words_are_errors_or_come_back() {
    let mut rng = Rng(11);
    let mut count = 0_u32;
    for _ in 0..3_000_000 {
        let word = rng.next() as u32 | 3;
        if let Ok(insn) = Insn::decode(word) {
            assert_eq!(insn.encode(), word, "{insn}");
            count += 1;
        }
    }
    assert!(count > 500_000, "{count}");
}

/// Each bit of each row flipped alone: another instruction, or an error.
#[test]
fn neighbours_of_rows_are_errors_or_come_back() {
    for insn in subjects() {
        for bit in 0..32 {
            let word = insn.encode() ^ 1 << bit;
            if let Ok(other) = Insn::decode(word) {
                assert_eq!(other.encode(), word, "{other}");
                assert_ne!(other, insn);
            }
        }
    }
}

#[test]
fn reserved_and_unknown_words_are_errors() {
    for (word, what) in [
        (0x0000_0000, "all zeros"),
        (0xffff_ffff, "all ones"),
        (0x0000_5053, "fadd.s with rounding mode 5"),
        (0x4205_f553, "fcvt.d.s with a rounding mode"),
        (0x0010_000f, "fence with an empty set"),
        (0x0330_008f, "fence with rd"),
        (0x9330_000f, "fence with another mode"),
        (0x28c5_c5af, "amocas.q of an odd pair"),
        (0x1015_252f, "lr.w with rs2"),
        (0x0000_2067, "jalr with another funct3"),
        (0x0000_7003, "ldu"),
        (0x0205_951b, "slliw by 32"),
        (0x0205_7057, "vector"),
        (0x3020_0073, "mret"),
        (0x0000_200f, "cbo"),
        (0x0000_401b, "OP-IMM-32 with another funct3"),
    ] {
        assert_eq!(
            Insn::decode(word),
            Err(DecodeError::Word { word }),
            "{what}"
        );
    }
}

#[test]
fn bytes_are_taken_by_length() {
    let word = ret().encode().to_le_bytes();
    assert_eq!(Insn::decode_at(&word), Ok((ret(), 4)));
    assert_eq!(Insn::decode_at(&[0x82, 0x80, 0xff]), Ok((ret(), 2)));
    let truncated = |have_bytes, need_bytes| {
        Err(DecodeError::Truncated {
            have_bytes,
            need_bytes,
        })
    };
    assert_eq!(Insn::decode_at(&[]), truncated(0, 2));
    assert_eq!(Insn::decode_at(&word[..1]), truncated(1, 2));
    assert_eq!(Insn::decode_at(&word[..3]), truncated(3, 4));
    assert_eq!(
        Insn::decode_at(&[0x1f, 0, 0, 0]),
        Err(DecodeError::Long { half: 0x1f })
    );
    assert_eq!(Insn::decode_at(&[0, 0]), Err(DecodeError::Half { half: 0 }));
    assert_eq!(
        Insn::decode_at(&[0x05, 0]),
        Err(DecodeError::Hint { half: 5 })
    );
}

proptest! {
    /// Any row, any operand bits: what decodes is that row again.
    #[test]
    fn operands_survive(row in 0..Insn::patterns().len(), bits: u32) {
        let (fixed, mask, mnemonic) = Insn::patterns()[row];
        let word = fixed | bits & !mask;
        match Insn::decode(word) {
            Ok(insn) => {
                // Or what has a pattern of its own within it: `pause` is a `fence`.
                let is_of = |(fixed, mask, name): &(u32, u32, &str)| {
                    word & mask == *fixed && *name == insn.mnemonic()
                };
                prop_assert!(Insn::patterns().iter().any(is_of), "{} {:#010x}", mnemonic, word);
                prop_assert_eq!(insn.encode(), word);
                prop_assert_eq!(Insn::decode(insn.encode()), Ok(insn));
            }
            // Reserved operands: a rounding mode, an odd pair, an empty set.
            Err(_) => prop_assert!(
                mnemonic.starts_with('f') || mnemonic == "amocas.q", "{} {:#010x}", mnemonic, word
            ),
        }
    }
}

/// Writes both snapshots; read the difference before committing it.
#[test]
#[ignore = "writes the snapshots"]
fn update_snapshots() {
    let gnu = gnu::Gnu::from_env().expect("RVBPF_AS");
    let texts: Vec<String> = subjects().iter().map(ToString::to_string).collect();
    let mut out = format!("# {}; word and text\n", gnu.version());
    for (word, text) in gnu.words(&texts).into_iter().zip(&texts) {
        out += &format!("{word:08x} {text}\n");
    }
    std::fs::write(WORDS, out).unwrap();
    let expanded: BTreeMap<u16, Option<u32>> = gnu.expand_halves().into_iter().collect();
    let mut out = format!(
        "# {}; first half-word of {BLOCK}, instructions, FNV-1a\n",
        gnu.version()
    );
    for line in digest(|half| expanded[&half]) {
        out += &(line + "\n");
    }
    std::fs::write(HALVES, out).unwrap();
}
