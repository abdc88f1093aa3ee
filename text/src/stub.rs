//! Stubs of procedure linkage tables, through which objects call each other.
//!
//! ```text
//!   stub:  [lpad 0]                  Zicfilp's landing pad, when the code has them
//!          auipc t3, hi(slot)
//!          ld    t3, lo(slot)(t3)    the slot: filled when the object is loaded, or at its
//!          jalr  t1, t3              first call; until then it leads to the table's first entry
//!          nop
//! ```
//!
//! A stub has no symbol. It is known by its instructions, and by a relocation for the slot that
//! they load.
//!
//! Key functions: [`slot_of`], [`is_resolver`]. Neighbours: `dynamic` knows the slots, `func`
//! follows them. Source: RISC-V ELF psABI, "Procedure Linkage Table".

use crate::addr::RxAddr;
use crate::insn;

/// As far as a stub is looked at.
pub(crate) const STUB_BYTES: usize = 16;

const AUIPC_T2: u32 = 7 << 7 | 0x17;
const AUIPC_T3: u32 = 28 << 7 | 0x17;
/// `ld t3, 0(t3)`.
const LD_T3: u32 = 28 << 15 | 3 << 12 | 28 << 7 | 0x03;
/// `jalr t1, 0(t3)`.
const JALR_T1_T3: u32 = 28 << 15 | 6 << 7 | 0x67;
/// `sub t1, t1, t3`, the second instruction of a table.
const SUB_T1_T1_T3: u32 = 0x20 << 25 | 28 << 20 | 6 << 15 | 6 << 7 | 0x33;

/// The slot that the stub at `at` loads, if `words` are one.
pub(crate) fn slot_of(at: RxAddr, words: [u32; 4]) -> Option<RxAddr> {
    let skip = usize::from(insn::is_lpad(words[0]));
    let (pc, rest) = (at.get() + 4 * skip as u64, &words[skip..]);
    let (hi, lo) = (rest[0], rest[1]);
    let is_stub = hi & 0xfff == AUIPC_T3 && lo & 0xf_ffff == LD_T3 && rest[2] == JALR_T1_T3;
    let hi = i64::from((hi & 0xffff_f000) as i32);
    let lo = i64::from(lo as i32 >> 20);
    is_stub.then(|| RxAddr::new(pc.wrapping_add_signed(hi + lo)))
}

/// Whether these first eight bytes may be those of a stub.
pub(crate) fn may_begin_with(bytes: u64) -> bool {
    let (first, second) = (bytes as u32, (bytes >> 32) as u32);
    let is_auipc = |word: u32| word & 0xfff == AUIPC_T3;
    is_auipc(first) || (insn::is_lpad(first) && is_auipc(second))
}

/// Whether `words` are the first entry of a table, which asks the dynamic linker.
pub(crate) fn is_resolver(words: [u32; 4]) -> bool {
    let skip = usize::from(insn::is_lpad(words[0]));
    words[skip] & 0xfff == AUIPC_T2 && words[skip + 1] == SUB_T1_T1_T3
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOP: u32 = insn::NOP;

    /// Words from GNU as 2.44.
    #[test]
    fn stubs_are_known() {
        let at = RxAddr::new(0x10_0000);
        // auipc t3, 0x12; ld t3, -0x18(t3); jalr t1, t3; nop
        let stub = [0x0001_2e17, 0xfe8e_3e03, 0x000e_0367, NOP];
        assert_eq!(slot_of(at, stub), Some(RxAddr::new(0x11_1fe8)));
        // auipc t3, -1; ld t3, 8(t3)
        let back = [0xffff_fe17, 0x008e_3e03, 0x000e_0367, NOP];
        assert_eq!(slot_of(at, back), Some(RxAddr::new(0x0f_f008)));
        let lpad = [0x0000_0017, stub[0], stub[1], stub[2]];
        assert_eq!(slot_of(at, lpad), Some(RxAddr::new(0x11_1fec)));
        for (i, other) in [
            (0, 0x0001_2317), // auipc t1
            (1, 0xfe8e_2e03), // lw
            (2, 0x000e_0067), // jr t3
        ] {
            let mut words = stub;
            words[i] = other;
            assert_eq!(slot_of(at, words), None, "{other:#x}");
        }
    }

    #[test]
    fn the_first_entry_is_known() {
        // auipc t2, 2; sub t1, t1, t3; ld t3, 0(t2); addi t1, t1, -44
        let first = [0x0000_2397, 0x41c3_0333, 0x0003_be03, 0xfd43_0313];
        assert!(is_resolver(first));
        assert!(is_resolver([0x17, first[0], first[1], first[2]]));
        assert!(!is_resolver([first[0], NOP, first[2], first[3]]));
        assert_eq!(slot_of(RxAddr::new(0), first), None);
    }
}
