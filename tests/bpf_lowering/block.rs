//! One instruction between loads of its operands and stores of all registers.
//!
//! ```text
//!   home = address of its area
//!   operands = *(home + ...)             as 64 bits, or 32 with zeros or sign
//!   the instruction
//!   *(home + ...) = r0 to r9             or the lower half of the result alone
//! ```
//!
//! Key types: [`Block`], [`Input`]. Neighbours: `rows` makes blocks, `run` puts programs together.

use rvbpf::bpf::{AluOp, BpfReg, Extend, Fault, Imm64, Op, Operand, Size, Width};

use super::rng::Rng;

/// Words of an area: three operands, a spare one, and what registers hold afterwards.
pub(crate) const AREA_WORDS: usize = 16;
const OPERANDS: usize = 3;
const RESULTS_WORD: usize = 4;

/// What is known of an operand's upper half.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) enum Form {
    Any,
    Zero,
    Sign,
}

impl Form {
    pub(crate) const ALL: [Self; 3] = [Self::Any, Self::Zero, Self::Sign];
}

/// Who looks at a result.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) enum Look {
    /// At all of it.
    Whole,
    /// At the lower half of this register alone.
    Half(BpfReg),
}

/// What operands are.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(crate) enum Input {
    /// Numbers, often alike.
    Numbers,
    /// The first is often near this one.
    Near(i32),
    /// The first is so many bytes below a place in the arena that is a multiple of `align`; the
    /// second is often what is there.
    Place {
        off: i16,
        align: u32,
        expected: Option<Size>,
    },
}

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct Block {
    /// Registers, and which operands they hold; the first counts where one comes twice.
    pub(crate) operands: Vec<(BpfReg, Form, usize)>,
    pub(crate) input: Input,
    pub(crate) ops: Vec<Op>,
    pub(crate) look: Look,
}

impl Block {
    /// One instruction on numbers.
    pub(crate) fn new(op: Op, operands: &[BpfReg]) -> Self {
        let mut all: Vec<(BpfReg, Form, usize)> = Vec::new();
        for (i, reg) in operands.iter().enumerate() {
            if all.iter().all(|(other, ..)| other != reg) {
                all.push((*reg, Form::Any, i));
            }
        }
        Self {
            operands: all,
            input: Input::Numbers,
            ops: vec![op],
            look: Look::Whole,
        }
    }

    pub(crate) fn input(mut self, input: Input) -> Self {
        self.input = input;
        self
    }

    pub(crate) fn forms(mut self, forms: &[Form]) -> Self {
        for ((_, form, _), to) in self.operands.iter_mut().zip(forms) {
            *form = *to;
        }
        self
    }

    pub(crate) fn look(mut self, look: Look) -> Self {
        self.look = look;
        self
    }

    /// A register that the block does not use otherwise.
    pub(crate) fn home(&self) -> BpfReg {
        let used = |reg: &BpfReg| {
            self.operands.iter().any(|(operand, ..)| operand == reg)
                || self.ops.iter().any(|op| uses(*op, *reg))
        };
        let free = BpfReg::ALL[..10].iter().rev().find(|reg| !used(reg));
        *free.expect("a block uses at most nine registers")
    }

    /// Its instructions for the area at `addr`.
    pub(crate) fn emit(&self, addr: u64, to: &mut Vec<Op>) {
        let home = self.home();
        to.push(Op::LdImm64 {
            dst: home,
            imm: Imm64::Value(addr),
        });
        for (dst, form, index) in &self.operands {
            let (size, extend) = match form {
                Form::Any => (Size::Dw, Extend::Zero),
                Form::Zero => (Size::W, Extend::Zero),
                Form::Sign => (Size::W, Extend::Sign),
            };
            to.push(Op::Load {
                size,
                extend,
                fault: Fault::Fatal,
                dst: *dst,
                src: home,
                off: 8 * *index as i16,
            });
        }
        to.extend(&self.ops);
        let store = |size, reg: BpfReg| Op::Store {
            size,
            dst: home,
            off: (8 * (RESULTS_WORD + reg.index())) as i16,
            src: Operand::Reg(reg),
        };
        if let Look::Half(reg) = self.look {
            to.push(store(Size::W, reg));
            to.push(mov(reg, Operand::Imm(0)));
        }
        for reg in &BpfReg::ALL[..10] {
            if self.look != Look::Half(*reg) {
                to.push(store(Size::Dw, *reg));
            }
        }
    }

    /// Puts operands into its area.
    pub(crate) fn fill(&self, area: &mut [u64], rng: &mut Rng, arena: Arena<'_>) {
        let mut words = [rng.imm64(), rng.imm64(), rng.imm64()];
        match self.input {
            Input::Numbers => alike(&mut words, rng),
            Input::Near(imm) => {
                words[1] = imm as i64 as u64;
                alike(&mut words, rng);
            }
            Input::Place {
                off,
                align,
                expected,
            } => {
                let step = align as usize;
                let at = step * rng.below((size_of_val(arena.words) - 8) / step);
                words[0] = (arena.addr + at as u64).wrapping_add_signed(-i64::from(off));
                if let Some(size) = expected.filter(|_| rng.chance(60)) {
                    words[1] = arena.value(at, size, words[1]);
                }
            }
        }
        area[..OPERANDS].copy_from_slice(&words);
        area[RESULTS_WORD - 1..].fill(0);
    }
}

/// The memory that loads and stores go to.
#[derive(Copy, Clone)]
pub(crate) struct Arena<'a> {
    pub(crate) addr: u64,
    pub(crate) words: &'a [u64],
}

impl Arena<'_> {
    /// What is at a place, with other bits of `upper` above it.
    fn value(&self, at: usize, size: Size, upper: u64) -> u64 {
        let word = self.words[at / 8] >> (8 * (at % 8));
        let mask = u64::MAX >> (64 - size.bits());
        word & mask | upper & !mask
    }
}

/// Two numbers are often equal, in all or in half of their bits, or neighbours.
fn alike(words: &mut [u64; 3], rng: &mut Rng) {
    let [a, b, _] = words;
    const LOW: u64 = 0xffff_ffff;
    match rng.below(8) {
        0 => *a = *b,
        1 => *a = *a & !LOW | *b & LOW,
        2 => *a = *b & !LOW | *a & LOW,
        3 => *a = b.wrapping_add(1),
        4 => *a = b.wrapping_sub(1),
        _ => {}
    }
}

pub(crate) fn mov(dst: BpfReg, src: Operand) -> Op {
    Op::Alu {
        op: AluOp::Mov,
        width: Width::W64,
        dst,
        src,
    }
}

/// Whether an instruction names a register, or changes `r0` without naming it.
fn uses(op: Op, reg: BpfReg) -> bool {
    let is = |operand: Operand| operand == Operand::Reg(reg);
    match op {
        Op::Alu { dst, src, .. } | Op::Branch { dst, src, .. } | Op::Store { dst, src, .. } => {
            dst == reg || is(src)
        }
        Op::Neg { dst, .. } | Op::End { dst, .. } | Op::LdImm64 { dst, .. } => dst == reg,
        Op::Atomic { op, dst, src, .. } => {
            dst == reg || src == reg || (op.result(src) == Some(BpfReg::R0) && reg == BpfReg::R0)
        }
        Op::Movsx { dst, src, .. }
        | Op::Load { dst, src, .. }
        | Op::LoadAcquire { dst, src, .. }
        | Op::StoreRelease { dst, src, .. } => dst == reg || src == reg,
        _ => false,
    }
}
