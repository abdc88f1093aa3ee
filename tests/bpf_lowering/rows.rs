//! The matrix.
//!
//! Neighbours: `block` makes programs of it.

use rvbpf::bpf::{
    AluOp, AtomicOp, BpfReg, ByteOrder, Cond, Extend, Fault, Imm64, Op, Operand, Size, Width,
};

use super::block::{Block, Form, Input, Look, mov};

use BpfReg::{R0, R1, R2, R3, R6, R8, R9, R10};

const WIDTHS: [Width; 2] = [Width::W64, Width::W32];

/// One of each kind: the result, an argument, a kept one in reach of compressed instructions, and
/// one beyond.
const KINDS: [BpfReg; 4] = [R0, R2, R6, R8];

/// A destination and a source of each kind, the same or not.
fn pairs() -> Vec<(BpfReg, BpfReg)> {
    let mut pairs = vec![(R2, R3), (R8, R9)];
    pairs.extend(KINDS.into_iter().flat_map(|a| KINDS.map(|b| (a, b))));
    pairs
}

/// All destinations and sources.
fn all_pairs() -> Vec<(BpfReg, BpfReg)> {
    let regs = &BpfReg::ALL[..10];
    regs.iter()
        .flat_map(|a| regs.iter().map(|b| (*a, *b)))
        .collect()
}

/// Constants where instructions choose between forms: powers of two and their neighbours, bounds of
/// 12 and 20 bits, shift amounts, masks, multipliers.
fn constants() -> Vec<i32> {
    let mut all: Vec<i32> = (0..64).collect();
    for bit in 0..32 {
        let power = 1_i32 << bit;
        for imm in [power, power.wrapping_sub(1), power.wrapping_add(1)] {
            all.extend([imm, imm.wrapping_neg(), !imm]);
        }
    }
    all.extend([0x0ff0, 0xff00, 0x5555_5555, 0x1234_5678, -0x1234_5678]);
    all.extend([
        0x7fff_f800,
        0x7fff_f7ff,
        0x7ff0_0000,
        0xff_fff0,
        6,
        10,
        100,
        1000,
    ]);
    all.sort_unstable();
    all.dedup();
    all
}

/// Fewer, for where they only go into a register.
fn some_constants() -> Vec<i32> {
    let fits = |imm: &i32| {
        let near = [
            0,
            1,
            2047,
            2048,
            4095,
            4096,
            0xffff,
            0x10000,
            0x7ffff,
            0x80000,
            i32::MAX,
        ];
        near.iter().any(|n| imm.wrapping_abs().abs_diff(*n) <= 1) || imm.count_ones() == 1
    };
    constants().into_iter().filter(fits).collect()
}

fn alu(op: AluOp, width: Width, dst: BpfReg, src: Operand) -> Op {
    Op::Alu {
        op,
        width,
        dst,
        src,
    }
}

pub(crate) fn alu_registers() -> Vec<Block> {
    let mut blocks = Vec::new();
    for op in AluOp::ALL {
        for width in WIDTHS {
            for (dst, src) in all_pairs() {
                let op = alu(op, width, dst, Operand::Reg(src));
                blocks.push(Block::new(op, &[dst, src]));
            }
        }
    }
    blocks
}

pub(crate) fn alu_forms() -> Vec<Block> {
    let mut blocks = Vec::new();
    for op in AluOp::ALL {
        for width in WIDTHS {
            for (dst, src) in [(R0, R2), (R2, R8), (R8, R6), (R2, R2), (R8, R8)] {
                for (a, b) in Form::ALL.iter().flat_map(|a| Form::ALL.map(|b| (*a, b))) {
                    for look in [Look::Whole, Look::Half(dst)] {
                        let op = alu(op, width, dst, Operand::Reg(src));
                        blocks.push(Block::new(op, &[dst, src]).forms(&[a, b]).look(look));
                    }
                }
            }
        }
    }
    blocks
}

pub(crate) fn alu_constants() -> Vec<Block> {
    let mut blocks = Vec::new();
    let constants = constants();
    for op in AluOp::ALL {
        for width in WIDTHS {
            for (i, imm) in constants.iter().enumerate() {
                // Each constant with two kinds of register, which change.
                for dst in [KINDS[i % 4], KINDS[(i / 4 + 1 + i % 4) % 4]] {
                    let op = alu(op, width, dst, Operand::Imm(*imm));
                    let block = Block::new(op, &[dst]).input(Input::Near(*imm));
                    let (form, look) = match i % 5 {
                        0 => (Form::Zero, Look::Whole),
                        1 => (Form::Sign, Look::Whole),
                        2 => (Form::Any, Look::Half(dst)),
                        _ => (Form::Any, Look::Whole),
                    };
                    blocks.push(block.forms(&[form]).look(look));
                }
            }
        }
    }
    blocks
}

pub(crate) fn unary() -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut push = |op: Op, dst: BpfReg, src: BpfReg| {
        for form in Form::ALL {
            for look in [Look::Whole, Look::Half(dst)] {
                blocks.push(Block::new(op, &[src]).forms(&[form]).look(look));
            }
        }
    };
    for dst in BpfReg::ALL.into_iter().take(10) {
        for width in WIDTHS {
            push(Op::Neg { width, dst }, dst, dst);
        }
        for order in [ByteOrder::Le, ByteOrder::Be, ByteOrder::Swap] {
            for size in [Size::H, Size::W, Size::Dw] {
                push(Op::End { order, size, dst }, dst, dst);
            }
        }
    }
    for (dst, src) in all_pairs() {
        for (width, size) in [
            (Width::W32, Size::B),
            (Width::W32, Size::H),
            (Width::W64, Size::B),
            (Width::W64, Size::H),
            (Width::W64, Size::W),
        ] {
            let op = Op::Movsx {
                width,
                size,
                dst,
                src,
            };
            push(op, dst, src);
        }
    }
    for dst in KINDS {
        for bit in 0..64 {
            let power = 1_u64 << bit;
            for value in [power, power - 1, !power, power.wrapping_add(power << 1)] {
                let imm = Imm64::Value(value);
                blocks.push(Block::new(Op::LdImm64 { dst, imm }, &[]));
            }
        }
    }
    blocks
}

/// `r10` is another number on each side: what is done with it must be what is done with a copy.
pub(crate) fn frame_pointer() -> Vec<Block> {
    let mut blocks = Vec::new();
    let (twin, copy) = (R3, R9);
    let copied = |dst: BpfReg| vec![mov(copy, Operand::Reg(R10)), mov(twin, Operand::Reg(dst))];
    // Both results are told apart, and nothing of the frame is left.
    let end = |dst: BpfReg| {
        [
            alu(AluOp::Xor, Width::W64, dst, Operand::Reg(twin)),
            mov(twin, Operand::Imm(0)),
            mov(copy, Operand::Imm(0)),
        ]
    };
    for dst in KINDS {
        for width in WIDTHS {
            for op in AluOp::ALL {
                let mut ops = copied(dst);
                ops.push(alu(op, width, dst, Operand::Reg(R10)));
                ops.push(alu(op, width, twin, Operand::Reg(copy)));
                ops.extend(end(dst));
                blocks.push(several(ops, &[dst]));
            }
            for cond in Cond::ALL {
                // Which of them is on the left.
                for (flip, left) in [(false, dst), (true, dst), (false, R10)] {
                    let branch = |a: BpfReg, b: BpfReg, off| Op::Branch {
                        cond,
                        width,
                        dst: if flip { b } else { a },
                        src: Operand::Reg(if flip { a } else { b }),
                        off,
                    };
                    let other = R1;
                    let mut ops = vec![
                        mov(copy, Operand::Reg(R10)),
                        mov(other, Operand::Reg(left)),
                        mov(dst, Operand::Imm(1)),
                        branch(other, R10, 1),
                        mov(dst, Operand::Imm(2)),
                        mov(twin, Operand::Imm(1)),
                        branch(other, copy, 1),
                        mov(twin, Operand::Imm(2)),
                        mov(other, Operand::Imm(0)),
                    ];
                    ops.extend(end(dst));
                    blocks.push(several(ops, &[dst]));
                }
            }
        }
        for (width, size) in [
            (Width::W32, Size::H),
            (Width::W64, Size::B),
            (Width::W64, Size::W),
        ] {
            let movsx = |dst, src| Op::Movsx {
                width,
                size,
                dst,
                src,
            };
            let mut ops = copied(dst);
            ops.extend([movsx(dst, R10), movsx(twin, copy)]);
            ops.extend(end(dst));
            blocks.push(several(ops, &[dst]));
        }
    }
    blocks
}

fn several(ops: Vec<Op>, operands: &[BpfReg]) -> Block {
    let mut block = Block::new(Op::Jump { off: 0 }, operands);
    block.ops = ops;
    block
}

/// A register tells whether the branch was taken.
fn branch(cond: Cond, width: Width, dst: BpfReg, src: Operand) -> Vec<Op> {
    vec![
        mov(R1, Operand::Imm(1)),
        Op::Branch {
            cond,
            width,
            dst,
            src,
            off: 1,
        },
        mov(R1, Operand::Imm(2)),
    ]
}

pub(crate) fn branch_registers() -> Vec<Block> {
    let mut blocks = Vec::new();
    for cond in Cond::ALL {
        for width in WIDTHS {
            for (dst, src) in pairs() {
                for (a, b) in Form::ALL.iter().flat_map(|a| Form::ALL.map(|b| (*a, b))) {
                    let ops = branch(cond, width, dst, Operand::Reg(src));
                    blocks.push(several(ops, &[dst, src]).forms(&[a, b]));
                }
            }
        }
    }
    blocks
}

pub(crate) fn branch_constants() -> Vec<Block> {
    let mut blocks = Vec::new();
    for cond in Cond::ALL {
        let constants = match cond {
            Cond::Set => constants(),
            _ => some_constants(),
        };
        for width in WIDTHS {
            for (i, imm) in constants.iter().enumerate() {
                for (dst, form) in [
                    (KINDS[i % 4], Form::Any),
                    (KINDS[(i + 1) % 4], Form::ALL[i % 3]),
                ] {
                    let ops = branch(cond, width, dst, Operand::Imm(*imm));
                    let block = several(ops, &[dst]).input(Input::Near(*imm));
                    blocks.push(block.forms(&[form]));
                }
            }
        }
    }
    blocks
}

/// Offsets where forms change: 12 bits, compressed ones, 16 bits.
const OFFSETS: [i16; 24] = [
    0, 1, 3, 4, 8, 31, 32, 124, 128, 248, 256, 2040, 2047, 2048, 2056, 4096, 6144, 32760, -1, -8,
    -2048, -2049, -4097, -32768,
];

fn place(off: i16, align: u32) -> Input {
    let expected = None;
    Input::Place {
        off,
        align,
        expected,
    }
}

pub(crate) fn loads() -> Vec<Block> {
    let mut blocks = Vec::new();
    for size in Size::ALL {
        for extend in [Extend::Zero, Extend::Sign] {
            if (size, extend) == (Size::Dw, Extend::Sign) {
                continue;
            }
            let load = |fault, dst, src, off| Op::Load {
                size,
                extend,
                fault,
                dst,
                src,
                off,
            };
            for (dst, src) in all_pairs() {
                let op = load(Fault::Fatal, dst, src, 8);
                blocks.push(Block::new(op, &[src]).input(place(8, 1)));
            }
            for off in OFFSETS {
                for (dst, src) in [(R0, R2), (R2, R2), (R6, R8), (R8, R6)] {
                    for fault in [Fault::Fatal, Fault::Zero] {
                        for look in [Look::Whole, Look::Half(dst)] {
                            let block = Block::new(load(fault, dst, src, off), &[src]);
                            blocks.push(block.input(place(off, 1)).look(look));
                        }
                    }
                }
            }
        }
        for (dst, src) in pairs() {
            for off in [0, -8, 2040, 2048, -32768] {
                let op = Op::LoadAcquire {
                    size,
                    dst,
                    src,
                    off,
                };
                let block = Block::new(op, &[src]).input(place(off, size.bytes()));
                blocks.push(block.clone().look(Look::Half(dst)));
                blocks.push(block);
            }
        }
    }
    blocks
}

pub(crate) fn stores() -> Vec<Block> {
    let mut blocks = Vec::new();
    for size in Size::ALL {
        for (dst, src) in all_pairs() {
            let off = 8;
            let op = Op::Store {
                size,
                dst,
                off,
                src: Operand::Reg(src),
            };
            blocks.push(Block::new(op, &[dst, src]).input(place(off, 1)));
        }
        for (i, off) in OFFSETS.into_iter().enumerate() {
            for (dst, src) in [(R0, R2), (R2, R3), (R6, R8), (R8, R6)] {
                let op = Op::Store {
                    size,
                    dst,
                    off,
                    src: Operand::Reg(src),
                };
                blocks.push(Block::new(op, &[dst, src]).input(place(off, 1)));
            }
            let constants = some_constants();
            for (j, imm) in constants.into_iter().enumerate() {
                let dst = KINDS[(i + j) % 4];
                if (i + j) % 3 == 0 {
                    let op = Op::Store {
                        size,
                        dst,
                        off,
                        src: Operand::Imm(imm),
                    };
                    blocks.push(Block::new(op, &[dst]).input(place(off, 1)));
                }
            }
        }
        for (dst, src) in pairs() {
            for off in [0, -8, 2040, 2048, -32768] {
                let op = Op::StoreRelease {
                    size,
                    dst,
                    off,
                    src,
                };
                let input = place(off, size.bytes());
                blocks.push(Block::new(op, &[dst, src]).input(input));
            }
        }
    }
    blocks
}

pub(crate) fn atomics() -> Vec<Block> {
    let mut blocks = Vec::new();
    for op in AtomicOp::ALL {
        for size in Size::ALL {
            let atomic = |dst, src, off| {
                let atomic = Op::Atomic {
                    op,
                    size,
                    dst,
                    off,
                    src,
                };
                let expected = (op == AtomicOp::Cmpxchg).then_some(size);
                let align = size.bytes();
                let input = Input::Place {
                    off,
                    align,
                    expected,
                };
                Block::new(atomic, &[dst, R0, src]).input(input)
            };
            for (dst, src) in all_pairs() {
                blocks.push(atomic(dst, src, 8));
            }
            for off in [0, 4, -4, 2040, 2048, -2048, -4096, 32752, -32768] {
                let off = off / size.bytes() as i16 * size.bytes() as i16;
                for (dst, src) in [(R2, R8), (R6, R0), (R8, R8), (R0, R2)] {
                    blocks.push(atomic(dst, src, off));
                    let result = op.result(src).unwrap_or(src);
                    if result != dst {
                        blocks.push(atomic(dst, src, off).look(Look::Half(result)));
                    }
                }
            }
        }
    }
    blocks
}

/// Atomic accesses at any byte: what is misaligned brings 0 and stores nothing.
pub(crate) fn misaligned_atomics() -> Vec<Block> {
    let mut blocks = Vec::new();
    for size in [Size::H, Size::W, Size::Dw] {
        let at = |off, expected| Input::Place {
            off,
            align: 1,
            expected,
        };
        for (dst, src) in [(R2, R8), (R6, R0), (R8, R8), (R0, R2)] {
            for off in [0, 1, 3, 2047, 2048, -4097] {
                for op in AtomicOp::ALL {
                    let expected = (op == AtomicOp::Cmpxchg).then_some(size);
                    let atomic = Op::Atomic {
                        op,
                        size,
                        dst,
                        off,
                        src,
                    };
                    let block = Block::new(atomic, &[dst, R0, src]);
                    blocks.push(block.input(at(off, expected)));
                }
                let load = Op::LoadAcquire {
                    size,
                    dst: src,
                    src: dst,
                    off,
                };
                let store = Op::StoreRelease {
                    size,
                    dst,
                    off,
                    src,
                };
                for op in [load, store] {
                    blocks.push(Block::new(op, &[dst, src]).input(at(off, None)));
                }
            }
        }
    }
    blocks
}

/// From `r10`: everything that accesses memory, after a store of all that is there.
pub(crate) fn stack() -> Vec<Block> {
    let mut blocks = Vec::new();
    for size in Size::ALL {
        for off in [-8_i16, -16, -24, -128, -256, -264, -504, -512] {
            for reg in KINDS {
                let (dst, src) = (R10, Operand::Reg(reg));
                let before = Op::Store {
                    size: Size::Dw,
                    dst,
                    off,
                    src: Operand::Reg(R3),
                };
                let after = Op::Load {
                    size: Size::Dw,
                    extend: Extend::Zero,
                    fault: Fault::Fatal,
                    dst: R1,
                    src: R10,
                    off,
                };
                let load = |extend, fault| Op::Load {
                    size,
                    extend,
                    fault,
                    dst: reg,
                    src: R10,
                    off,
                };
                let mut ops = vec![
                    load(Extend::Zero, Fault::Fatal),
                    load(Extend::Zero, Fault::Zero),
                    Op::LoadAcquire {
                        size,
                        dst: reg,
                        src: R10,
                        off,
                    },
                    Op::StoreRelease {
                        size,
                        dst,
                        off,
                        src: reg,
                    },
                    Op::Store {
                        size,
                        dst,
                        off,
                        src,
                    },
                    Op::Store {
                        size,
                        dst,
                        off,
                        src: Operand::Imm(-3),
                    },
                ];
                if size != Size::Dw {
                    ops.push(load(Extend::Sign, Fault::Fatal));
                }
                ops.extend(AtomicOp::ALL.map(|op| Op::Atomic {
                    op,
                    size,
                    dst,
                    off,
                    src: reg,
                }));
                for op in ops {
                    blocks.push(several(vec![before, op, after], &[R0, R3, reg]));
                }
            }
        }
    }
    blocks
}
