//! Constants that are not in the code as the program's author gave them.
//!
//! Whoever chooses the constants of a program chooses bytes of executable memory, and could jump
//! into the midst of them. Blinded, a constant is loaded as two numbers, of which one is random:
//!
//! ```text
//!   li   rd, value ^ key
//!   li   t2, key            another key each time
//!   xor  rd, rd, t2
//! ```
//!
//! Blinded are what the kernel blinds: the constants of arithmetic, comparisons, stores and 64-bit
//! loads. Shifts by a constant and offsets are as they are: there are too few of them to choose
//! from. So is zero.
//!
//! Key type: [`Blind`]. Neighbours: `entropy` has the keys; `alu`, `flow` and `mem` ask for
//! constants. Source: kernel `kernel/bpf/core.c` (`bpf_jit_blind_insn`).

use rv64::{Reg, xor};

use super::super::op::AluOp;
use super::{Emit, TMP3};

/// The keys of a program's constants: one for each instruction, at least.
#[derive(Debug)]
pub(crate) struct Blind {
    keys: std::vec::IntoIter<u64>,
}

impl Blind {
    pub(crate) fn new(keys: Vec<u64>) -> Self {
        let keys = keys.into_iter();
        Self { keys }
    }

    /// A key that is as wide as the value, since narrow constants take fewer instructions.
    fn key(&mut self, value: i64) -> i64 {
        let Some(key) = self.keys.next() else {
            unreachable!("an instruction has one constant");
        };
        match i32::try_from(value) {
            Ok(_) => i64::from(key as i32),
            Err(_) => key as i64,
        }
    }
}

impl Emit<'_> {
    /// `rd` = a constant of the program, from the pool if it is there. Takes `TMP3` if it is blinded.
    pub(super) fn constant(&mut self, rd: Reg, value: i64) {
        let key = match &mut self.blind {
            Some(blind) if value != 0 => blind.key(value),
            _ => return self.open_constant(rd, value),
        };
        self.asm.li(rd, value ^ key);
        self.asm.li(TMP3, key);
        self.emit(xor(rd, rd, TMP3));
    }

    /// The same with zeros in the upper half.
    pub(super) fn constant_w(&mut self, rd: Reg, value: i32) {
        if value < 0 && self.is_blinded() {
            self.constant(rd, value.into());
            return self.zext_w(rd, rd);
        }
        self.constant(rd, i64::from(value as u32));
    }

    /// Whether the constants of this program are not to be seen.
    pub(super) fn is_blinded(&self) -> bool {
        self.blind.is_some()
    }

    /// Whether an operation's constant must go through a register, so as not to be seen.
    pub(super) fn hides(&self, op: AluOp, value: i32) -> bool {
        let is_shift = matches!(op, AluOp::Lsh | AluOp::Rsh | AluOp::Arsh);
        self.is_blinded() && value != 0 && !is_shift
    }
}
