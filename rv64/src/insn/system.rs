//! Fences, environment calls and control registers: Zifencei, Zicsr,
//! Zihintpause.
//!
//! Fences whose reserved fields are not zero, or that order nothing, are
//! decode errors (but for `fence.tso` and `pause`).
//!
//! Neighbours: `format` turns a row into functions; [`Csr`](crate::Csr) and
//! [`FenceSet`](crate::FenceSet) are operands.
//!
//! Source: Unprivileged ISA, chapters "RV32I", "Zifencei", "Zicsr",
//! "Zihintpause".

use super::bits::{MISC_MEM, SYSTEM, i, word};
use super::{Ext, Insn, format::rows, place};

rows! {
    /// No operands.
    PlainOp => Plain(), word;
    /// A service request to the environment. Environment Call and Breakpoints.
    Ecall ecall "ecall" I (0x0000_0073);
    /// A breakpoint. Environment Call and Breakpoints.
    Ebreak ebreak "ebreak" I (0x0010_0073);
    /// Makes this hart fetch what it has stored. Zifencei.
    FenceI fence_i "fence.i" Zifencei (0x0000_100f);
    /// A fence of total store order. Memory Ordering Instructions.
    FenceTso fence_tso "fence.tso" I (0x8330_000f);
    /// A hint that this hart is spinning. Zihintpause.
    Pause pause "pause" Zihintpause (0x0100_000f);
}

rows! {
    /// The memory fence.
    FenceOp => Fence(pred: pred, succ: succ), i;
    /// Orders `pred` before `succ`. Memory Ordering Instructions.
    Fence fence "fence" I (MISC_MEM, 0b000);
}

rows! {
    /// Control register with register.
    CsrRegOp => CsrReg(rd: rd, csr: csr, rs1: rs1), i;
    /// Swaps. Zicsr.
    Csrrw csrrw "csrrw" Zicsr (SYSTEM, 0b001);
    /// Reads, then sets the bits of `rs1`. Zicsr.
    Csrrs csrrs "csrrs" Zicsr (SYSTEM, 0b010);
    /// Reads, then clears the bits of `rs1`. Zicsr.
    Csrrc csrrc "csrrc" Zicsr (SYSTEM, 0b011);
}

rows! {
    /// Control register with immediate.
    CsrImmOp => CsrImm(rd: rd, csr: csr, imm: zimm), i;
    /// Swaps. Zicsr.
    Csrrwi csrrwi "csrrwi" Zicsr (SYSTEM, 0b101);
    /// Reads, then sets the bits of `imm`. Zicsr.
    Csrrsi csrrsi "csrrsi" Zicsr (SYSTEM, 0b110);
    /// Reads, then clears the bits of `imm`. Zicsr.
    Csrrci csrrci "csrrci" Zicsr (SYSTEM, 0b111);
}
