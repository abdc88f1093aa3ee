//! The handful of instruction words this room stores itself.
//!
//! `text` knows no other room, so the few words that a live change needs are encoded here, each
//! with its field picture. Everything else is `rv64`'s. Neighbours: [`crate::poke`],
//! [`crate::pad`],
//! [`crate::detour`].
//! Source: RISC-V unprivileged manual, chapters RV32I and "C" (`c.nop`, `c.j`, `c.ebreak`), "Base
//! Instruction-Length Encoding", Zicfilp (`lpad`).

use crate::addr::RxAddr;

/// `addi x0, x0, 0`.
pub(crate) const NOP: u32 = 0x0000_0013;
/// `c.nop`, half a word.
pub(crate) const C_NOP: u16 = 0x0001;
/// `c.nop; c.nop`: a word of compressed entry pad.
pub(crate) const C_NOP_PAIR: u32 = 0x0001_0001;
/// `c.ebreak`: a trap of half a word.
pub(crate) const C_EBREAK: u16 = 0x9002;
/// `ebreak`.
pub(crate) const EBREAK: u32 = 0x0010_0073;
/// `c.j .+8`: jumps over the word it starts and the word after it.
const C_J_8: u32 = 0xa021;
/// `c.j .`: jumps to itself.
pub(crate) const C_J_0: u16 = 0xa001;
/// `ecall`.
pub(crate) const ECALL: u32 = 0x0000_0073;
/// `li a7, SYS_rt_sigprocmask`.
pub(crate) const LI_A7_SIGPROCMASK: u32 = 135 << 20 | 17 << 7 | 0x13;
/// `li a0, 0`, of two bytes and of four.
pub(crate) const C_LI_A0_0: u32 = 0x4501;
pub(crate) const LI_A0_0: u32 = 10 << 7 | 0x13;

/// `t0`, the alternate link register: a call's.
const T0: u32 = 5;
/// `t1`, a temporary that is no link register: a jump's.
const T1: u32 = 6;

/// `| imm[31:12] | rd | 0010111 |`; `hi20` in `[-2^19, 2^19)`.
const fn auipc(rd: u32, hi20: i32) -> u32 {
    ((hi20 as u32) << 12) | (rd << 7) | 0x17
}

/// `| imm[11:0] | rs1 | 000 | rd | 1100111 |`; `lo12` in `[-2048, 2047]`.
const fn jalr(rd: u32, rs1: u32, lo12: i32) -> u32 {
    ((lo12 as u32) << 20) | (rs1 << 15) | (rd << 7) | 0x67
}

/// The two words of a site that leads to a target.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) enum Pair {
    /// `auipc t0, hi20; jalr t0, lo12(t0)`.
    Call,
    /// `auipc t1, hi20; jalr x0, lo12(t1)`. Neither writes nor reads a link register, so the
    /// return-address predictor sees nothing of it (Unprivileged ISA, "Unconditional Jumps").
    Jump,
}

impl Pair {
    /// The pair that leads from `site` to `target`, or `None` when it does not reach.
    pub(crate) fn words(self, site: RxAddr, target: RxAddr) -> Option<[u32; 2]> {
        let (hi20, lo12) = target.rel_to(site).hi20_lo12()?;
        Some(match self {
            Self::Call => [auipc(T0, hi20), jalr(T0, T0, lo12)],
            Self::Jump => [auipc(T1, hi20), jalr(0, T1, lo12)],
        })
    }
}

/// `jal x0, to`, at `at`: `| imm[20|10:1|11|19:12] | rd = x0 | 1101111 |`; `None` when it does not
/// reach.
pub(crate) const fn jump_near(at: RxAddr, to: RxAddr) -> Option<u32> {
    let rel = to.rel_to(at);
    if !rel.fits_jal() {
        return None;
    }
    let off = rel.get() as u32;
    let [sign, high, mid, low] = [
        off >> 20 & 1,
        off >> 12 & 0xff,
        off >> 11 & 1,
        off >> 1 & 0x3ff,
    ];
    Some(sign << 31 | low << 21 | mid << 20 | high << 12 | 0x6f)
}

/// `auipc x, hi20; jalr x0, lo12(x)`, at `at`; `None` when it does not reach. `scratch` is the
/// number of a register.
pub(crate) const fn jump_far(at: RxAddr, to: RxAddr, scratch: u8) -> Option<[u32; 2]> {
    match to.rel_to(at).hi20_lo12() {
        Some((hi20, lo12)) => {
            let x = scratch as u32;
            Some([auipc(x, hi20), jalr(0, x, lo12)])
        }
        None => None,
    }
}

/// The length of an instruction by its first half; `None` of one longer than 4 bytes, which is not
/// in use.
pub(crate) const fn len_bytes(first_half: u16) -> Option<u8> {
    match (first_half & 3, first_half & 0x1c) {
        (3, 0x1c) => None,
        (3, _) => Some(4),
        _ => Some(2),
    }
}

/// Whether an instruction with these halves is a breakpoint.
pub(crate) const fn is_breakpoint(first_half: u16, second_half: u16) -> bool {
    first_half == C_EBREAK || (second_half as u32) << 16 | first_half as u32 == EBREAK
}

/// Whether an instruction, of two bytes or four, is a jump or a branch.
pub(crate) const fn is_transfer(word: u32) -> bool {
    match (word & 3, word >> 13 & 7) {
        // jal, jalr, branches
        (3, _) => matches!(word & 0x7f, 0x6f | 0x67 | 0x63),
        // c.j, c.beqz, c.bnez
        (1, 5..=7) => true,
        // c.jr, c.jalr, and c.ebreak: no second register
        (2, 4) => word & 0x7c == 0,
        _ => false,
    }
}

/// Where `jal` and `c.j` at `at` lead, behind the number of the register that gets the address after
/// them.
pub(crate) const fn jump_target(word: u32, at: RxAddr) -> Option<(u32, RxAddr)> {
    /// The bits of `word` from `from` on, to where they belong.
    const fn bits(word: u32, from: u32, nr: u32, to: u32) -> u32 {
        (word >> from & ((1 << nr) - 1)) << to
    }
    let (link, off) = match (word & 3, word >> 13 & 7) {
        // | imm[20|10:1|11|19:12] | rd | 1101111 |
        (3, _) if word & 0x7f == 0x6f => {
            let low = bits(word, 21, 10, 1) | bits(word, 20, 1, 11) | bits(word, 12, 8, 12);
            (word >> 7 & 31, low as i32 | (word as i32 >> 31) << 20)
        }
        // | 101 | imm[11|4|9:8|10|6|7|3:1|5] | 01 |
        (1, 5) => {
            let low = bits(word, 11, 1, 4) | bits(word, 9, 2, 8) | bits(word, 8, 1, 10);
            let high = bits(word, 7, 1, 6) | bits(word, 6, 1, 7);
            let low = low | high | bits(word, 3, 3, 1) | bits(word, 2, 1, 5);
            (0, low as i32 - bits(word, 12, 1, 11) as i32)
        }
        _ => return None,
    };
    Some((link, moved(at, off)))
}

/// The same of `auipc x, hi20; jalr rd, lo12(x)`, the first of them at `at`.
pub(crate) const fn pair_target(words: [u32; 2], at: RxAddr) -> Option<(u32, RxAddr)> {
    let [first, second] = words;
    let is_pair = first & 0x7f == 0x17 && second & 0x707f == 0x67;
    if !is_pair || first >> 7 & 31 != second >> 15 & 31 {
        return None;
    }
    let hi = moved(at, (first & 0xffff_f000) as i32);
    Some((second >> 7 & 31, moved(hi, second as i32 >> 20)))
}

/// From where `auipc x, hi20; ld y, lo12(x); jalr rd, 0(y)` at `at` loads where it goes.
pub(crate) const fn loaded_target(words: [u32; 3], at: RxAddr) -> Option<RxAddr> {
    let [first, load, jump] = words;
    let is_it = first & 0x7f == 0x17 && load & 0x707f == 0x3003;
    // The jump may be a compressed one: only its lower half counts then.
    let base = match jump & 3 {
        3 if jump & 0xfff0_707f == 0x67 => jump >> 15 & 31,
        2 if jump & 0xe07f == 0x8002 => jump >> 7 & 31,
        _ => return None,
    };
    if !is_it || first >> 7 & 31 != load >> 15 & 31 || load >> 7 & 31 != base {
        return None;
    }
    let hi = moved(at, (first & 0xffff_f000) as i32);
    Some(moved(hi, load as i32 >> 20))
}

/// The length of the nop that the word begins with.
pub(crate) const fn nop_bytes(word: u32) -> Option<usize> {
    match word {
        NOP => Some(4),
        _ if word as u16 == C_NOP => Some(2),
        _ => None,
    }
}

const fn moved(at: RxAddr, off_bytes: i32) -> RxAddr {
    RxAddr::new(at.get().wrapping_add_signed(off_bytes as i64))
}

/// Whether the word is the first of a pair.
pub(crate) const fn is_pair_auipc(word: u32) -> bool {
    word & 0xfff == (T0 << 7) | 0x17 || word & 0xfff == (T1 << 7) | 0x17
}

/// `| imm[20|10:1|11|19:12] | rd = x0 | 1101111 |`, `j .+8`.
const J_8: u32 = 8 << 20 | 0x6f;

/// Whether the word is `lpad` (`auipc x0, …`), the landing pad of Zicfilp.
pub(crate) const fn is_lpad(word: u32) -> bool {
    word & 0xfff == 0x17
}

/// Whether all of the word is nops, four bytes of them or two times two.
pub(crate) const fn is_nops(word: u32) -> bool {
    word == NOP || word == C_NOP_PAIR
}

/// The word that closes a pad: from its first byte it jumps over itself and the word after it.
/// What a thread finds two bytes into the word is what it found there before.
pub(crate) const fn close(hi_word: u32) -> u32 {
    if hi_word & 3 == 3 {
        J_8
    } else {
        (hi_word & 0xffff_0000) | C_J_8
    }
}

/// The word with a lower half on which a hart stays, without looking at the upper one.
pub(crate) const fn wait(word: u32) -> u32 {
    (word & 0xffff_0000) | C_J_0 as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Words from GNU as 2.44.
    #[test]
    fn words_are_those_of_gnu_as() {
        for (asm, got, want) in [
            ("auipc t0, 0", auipc(T0, 0), 0x0000_0297),
            ("auipc t0, 0x7ffff", auipc(T0, 0x7ffff), 0x7fff_f297),
            ("auipc t0, 0x80000", auipc(T0, -0x80000), 0x8000_0297),
            ("auipc t1, 1", auipc(T1, 1), 0x0000_1317),
            ("jalr t0, 0(t0)", jalr(T0, T0, 0), 0x0002_82e7),
            ("jalr t0, -2048(t0)", jalr(T0, T0, -2048), 0x8002_82e7),
            ("jalr t0, 2047(t0)", jalr(T0, T0, 2047), 0x7ff2_82e7),
            ("jalr zero, -1(t1)", jalr(0, T1, -1), 0xfff3_0067),
            ("j .+8", J_8, 0x0080_006f),
            ("nop", NOP, 0x0000_0013),
        ] {
            assert_eq!(got, want, "{asm}: {got:#010x}");
        }
        assert_eq!(C_J_8, 0xa021, "c.j .+8");
        assert_eq!(wait(0x8002_82e7), 0x8002_a001, "c.j .");
        assert_eq!(LI_A7_SIGPROCMASK, 0x0870_0893, "li a7, 135");
        assert_eq!(LI_A0_0, 0x0000_0513, "li a0, 0");
    }

    /// Words from GNU as 2.44.
    #[test]
    fn jumps_are_those_of_gnu_as() {
        let at = RxAddr::new(0x40_0000);
        for (off, want) in [
            (0_i64, Some(0x0000_006f)),
            (2, Some(0x0020_006f)),
            (0x800, Some(0x0010_006f)),
            (0x1000, Some(0x0000_106f)),
            (-2, Some(0xffff_f06f)),
            (0xf_fffe, Some(0x7fff_f06f)),
            (-0x10_0000, Some(0x8000_006f)),
            (0x5_5554, Some(0x5545_506f)),
            (0x10_0000, None),
            (-0x10_0002, None),
            (1, None),
        ] {
            let to = RxAddr::new(0x40_0000_u64.wrapping_add_signed(off));
            assert_eq!(jump_near(at, to), want, "j .{off:+#x}");
            if let Some(word) = want {
                assert_eq!(jump_target(word, at), Some((0, to)), "j .{off:+#x}");
                assert_eq!(
                    jump_target(word | 1 << 7, at),
                    Some((1, to)),
                    "jal .{off:+#x}"
                );
            }
        }
        let to = RxAddr::new(0x40_0000 + 0x1234_5678);
        // auipc t3, 0x12345; jr 0x678(t3)
        assert_eq!(jump_far(at, to, 28), Some([0x1234_5e17, 0x678e_0067]));
        assert_eq!(jump_far(at, RxAddr::new(1 << 40), 28), None);
        assert_eq!(pair_target([0x1234_5e17, 0x678e_0067], at), Some((0, to)));
        // auipc ra, 0xffffb; jalr 562(ra)
        let to = RxAddr::new(at.get() - 0x5000 + 562);
        assert_eq!(pair_target([0xffff_b097, 0x2320_80e7], at), Some((1, to)));
        // auipc t0, 0; jalr t0, -2048(t0)
        let to = RxAddr::new(at.get() - 2048);
        assert_eq!(pair_target([0x0000_0297, 0x8002_82e7], at), Some((5, to)));
        let other = "auipc t3, 0x12345; jr 0x678(t4)";
        assert_eq!(pair_target([0x1234_5e17, 0x678e_8067], at), None, "{other}");
        assert_eq!(pair_target([NOP, 0x2320_80e7], at), None);
        // auipc t3, 1; ld t3, -24(t3); jr t3, of two bytes and of four.
        let slot = Some(RxAddr::new(at.get() + 0x1000 - 24));
        for jump in [0x0001_8e02, 0x000e_0067] {
            let words = [0x0000_1e17, 0xfe8e_3e03, jump];
            assert_eq!(loaded_target(words, at), slot, "{jump:#x}");
        }
        let other = "auipc t3, 1; ld t3, -24(t3); jr t4";
        let words = [0x0000_1e17, 0xfe8e_3e03, 0x000e_8067];
        assert_eq!(loaded_target(words, at), None, "{other}");
        assert_eq!(
            [NOP, 0x8082_0001, ECALL].map(nop_bytes),
            [Some(4), Some(2), None]
        );
        assert_eq!(jump_target(ECALL, at), None);
    }

    /// Offsets from llvm-objdump 14.
    #[test]
    fn compressed_jumps_lead_where_llvm_says() {
        for (word, off) in [
            (0xa001_u32, 0_i64),
            (0xa021, 8),
            (0xaffd, 2046),
            (0xb001, -2048),
            (0xab91, 1364),
            (0xa46d, 682),
            (0xb46d, -1366),
            (0xb251, -1660),
        ] {
            let at = RxAddr::new(0x40_0000);
            let to = RxAddr::new(0x40_0000_u64.wrapping_add_signed(off));
            assert_eq!(jump_target(word, at), Some((0, to)), "{word:#06x}");
        }
        assert_eq!(jump_target(0xc3a1, RxAddr::new(0)), None, "c.beqz");
    }

    /// Words from GNU as 2.44.
    #[test]
    fn transfers_are_known() {
        for (asm, word, want) in [
            ("jal zero, .+8", J_8, true),
            ("jalr zero, 0(t0)", 0x0002_8067, true),
            ("beq a0, a1, .+8", 0x00b5_0463, true),
            ("c.j .", 0xa001, true),
            ("c.beqz a5, .+64", 0xc3a1, true),
            ("c.bnez a0, .+4", 0xe111, true),
            ("c.jr ra", 0x8082, true),
            ("c.jalr a5", 0x9782, true),
            ("c.mv a2, s5", 0x8656, false),
            ("c.add a0, a1", 0x952e, false),
            ("c.li a0, 0", C_LI_A0_0, false),
            ("c.addi4spn a0, sp, 8", 0x0028, false),
            ("addi a1, a1, 1668", 0x6845_8593, false),
            ("ecall", ECALL, false),
        ] {
            assert_eq!(is_transfer(word), want, "{asm}");
        }
    }

    #[test]
    fn lengths_and_breakpoints() {
        for (half, want) in [
            (0x9002, Some(2)),
            (0x0000, Some(2)),
            (0x0013, Some(4)),
            (0x006f, Some(4)),
            (0x001f, None),
            (0x003f, None),
            (0x007f, None),
        ] {
            assert_eq!(len_bytes(half), want, "{half:#06x}");
        }
        assert!(is_breakpoint(C_EBREAK, 0) && is_breakpoint(0x73, 0x10));
        assert!(!is_breakpoint(0x73, 0) && !is_breakpoint(0x13, 0x10));
    }

    #[test]
    fn closing_keeps_the_upper_half() {
        assert_eq!(close(C_NOP_PAIR), 0x0001_a021);
        assert_eq!(close(NOP), J_8);
        assert_eq!(close(auipc(T1, 0x1234)), J_8);
    }

    #[test]
    fn kinds() {
        assert!(is_pair_auipc(auipc(T0, -1)) && is_pair_auipc(auipc(T1, -1)));
        assert!(!is_pair_auipc(auipc(7, 0)));
        assert!(is_lpad(0x0000_0017) && !is_lpad(auipc(T0, 0)));
        assert!(is_nops(NOP) && is_nops(C_NOP_PAIR) && !is_nops(0x0001_0013));
    }
}
