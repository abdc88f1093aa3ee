//! The generator: functions, calls, blocks.
//!
//! Every function has some registers for values, which are set when it begins and again after each
//! call, one register for the address of its memory, and a stack that is written whole when it
//! begins. So any instruction may go (`shrink`) and nothing unset is read. A function calls only
//! those after it; what a run costs is counted along, so that loops around calls end in time.
//!
//! Key function: [`case`]. Neighbours: `stmt` has the statements.

use rvbpf::bpf::{AluOp, BpfReg, Callee, Imm64, Op, Operand, Size, Width};

use super::case::{Body, Case, Keep, Slot};
use super::profile::Profile;
use super::rng::Rng;

/// What functions other than the first find at `r1`, at least.
const SUB_BUFFER_BYTES: i32 = 64;

/// What a function expects in `r1`.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
enum FirstArg {
    /// Memory of [`SUB_BUFFER_BYTES`].
    Buffer,
    Value,
}

/// A function that can be called.
#[derive(Copy, Clone, Debug)]
struct Sig {
    first: FirstArg,
    /// The most instructions of a call.
    cost: u64,
    is_called: bool,
}

/// What a program likes, in percent.
#[derive(Copy, Clone, Debug)]
pub(super) struct Style {
    pub(super) w32: usize,
    pub(super) imm: usize,
    /// Statements that are arithmetic.
    pub(super) alu: usize,
}

/// Whether a function calls others: those that do keep their registers elsewhere.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(super) enum Calls {
    Yes,
    No,
}

/// The program of a seed, for the compiler.
pub(crate) fn case(seed: u64) -> Case {
    case_for(seed, Profile::Ours)
}

/// The program of a seed.
pub(crate) fn case_for(seed: u64, profile: Profile) -> Case {
    let mut rng = Rng::new(seed);
    let subs = rng.below(4);
    let style = Style {
        w32: rng.pick(&[10, 50, 50, 90]),
        imm: rng.pick(&[30, 50, 80]),
        alu: rng.pick(&[20, 50, 80]),
    };
    let buffer_bytes = 8 * rng.between(8, 32);
    let mut sigs: Vec<Option<Sig>> = vec![None; subs + 1];
    let mut funcs = vec![Body::new(); subs + 1];
    // The last first: who calls must know what it costs.
    for index in (1..=subs).rev() {
        let first = rng.pick(&[FirstArg::Buffer, FirstArg::Buffer, FirstArg::Value]);
        let calls = rng.pick(&[Calls::Yes, Calls::No]);
        let mut func = Func::new(&mut rng, (style, profile), &mut sigs, index, calls);
        func.max_cost = profile.max_call_cost();
        func.enter(first, SUB_BUFFER_BYTES);
        let stmts = func.rng.between(2, 10);
        func.block(stmts);
        if func.rng.chance(60) {
            func.fold();
        }
        func.push(Op::Exit, Keep::Fixed);
        let cost = func.cost;
        funcs[index] = func.body;
        sigs[index] = Some(Sig {
            first,
            cost,
            is_called: false,
        });
    }
    let calls = match subs {
        0 => rng.pick(&[Calls::Yes, Calls::No]),
        _ => Calls::Yes,
    };
    funcs[0] = main(
        &mut Func::new(&mut rng, (style, profile), &mut sigs, 0, calls),
        buffer_bytes,
    );
    Case {
        seed,
        funcs,
        words: (0..buffer_bytes / 8).map(|_| rng.imm64()).collect(),
        args: [rng.imm64(), rng.imm64(), rng.imm64()],
    }
}

fn main(func: &mut Func<'_>, buffer_bytes: usize) -> Body {
    func.enter(FirstArg::Buffer, buffer_bytes as i32);
    // Now and then so long that branches do not reach.
    if func.rng.chance(2) {
        func.far_branch();
    }
    let stmts = func.rng.between(4, 24);
    func.block(stmts);
    for index in 1..func.sigs.len() {
        if func.sigs[index].is_some_and(|sig| !sig.is_called) {
            func.call_local(index);
        }
    }
    func.fold();
    func.push(Op::Exit, Keep::Fixed);
    std::mem::take(&mut func.body)
}

/// A function that is being made.
pub(super) struct Func<'a> {
    pub(super) rng: &'a mut Rng,
    pub(super) style: Style,
    pub(super) profile: Profile,
    sigs: &'a mut [Option<Sig>],
    index: usize,
    pub(super) calls: Calls,
    pub(super) body: Body,
    /// Where the address of its memory is.
    pub(super) base: Option<BpfReg>,
    pub(super) buffer_bytes: i32,
    pub(super) stack_bytes: i32,
    /// The registers for values; all are set.
    pub(super) data: Vec<BpfReg>,
    /// The one that was changed last: what is done at once with a result shows most.
    pub(super) recent: BpfReg,
    /// Those of them that count loops.
    pub(super) counters: Vec<BpfReg>,
    /// How often what comes next runs, at most.
    pub(super) times: u64,
    pub(super) cost: u64,
    pub(super) max_cost: u64,
    pub(super) loops: usize,
    pub(super) depth: usize,
}

impl<'a> Func<'a> {
    fn new(
        rng: &'a mut Rng,
        (style, profile): (Style, Profile),
        sigs: &'a mut [Option<Sig>],
        index: usize,
        calls: Calls,
    ) -> Self {
        Self {
            rng,
            style,
            profile,
            sigs,
            index,
            calls,
            body: Body::new(),
            base: None,
            buffer_bytes: 0,
            stack_bytes: 0,
            data: Vec::new(),
            recent: BpfReg::R0,
            counters: Vec::new(),
            times: 1,
            cost: 0,
            max_cost: profile.max_cost(),
            loops: 0,
            depth: 0,
        }
    }

    pub(super) fn push(&mut self, op: Op, keep: Keep) {
        let op = self.profile.fit(op);
        self.body.push(Some(Slot { op, keep }));
        if op.len_insns() == 2 {
            self.body.push(None);
        }
        self.cost += self.times;
    }

    pub(super) fn free(&mut self, op: Op) {
        self.push(op, Keep::Free);
    }

    pub(super) fn mov(&mut self, dst: BpfReg, src: Operand, keep: Keep) {
        let op = AluOp::Mov;
        let width = Width::W64;
        self.push(
            Op::Alu {
                op,
                width,
                dst,
                src,
            },
            keep,
        );
    }

    /// `dst += src`, of addresses.
    pub(super) fn add(&mut self, dst: BpfReg, src: Operand) {
        let op = AluOp::Add;
        let width = Width::W64;
        self.push(
            Op::Alu {
                op,
                width,
                dst,
                src,
            },
            Keep::Fixed,
        );
    }

    /// A register with a value.
    pub(super) fn value(&mut self) -> BpfReg {
        match self.data.contains(&self.recent) && self.rng.chance(35) {
            true => self.recent,
            false => self.rng.pick(&self.data),
        }
    }

    /// One that may be changed.
    pub(super) fn variable(&mut self) -> BpfReg {
        let free = |reg: &BpfReg| !self.counters.contains(reg);
        let free: Vec<_> = self.data.iter().copied().filter(free).collect();
        self.recent = self.rng.pick(&free);
        self.recent
    }

    /// Sets a register to any value.
    pub(super) fn set(&mut self, dst: BpfReg) {
        match self.rng.below(4) {
            0 => {
                let imm = Imm64::Value(self.rng.imm64());
                self.free(Op::LdImm64 { dst, imm });
            }
            1 => {
                let src = Operand::Imm(self.rng.imm());
                let width = self.width();
                let op = AluOp::Mov;
                self.free(Op::Alu {
                    op,
                    width,
                    dst,
                    src,
                });
            }
            _ => {
                let src = Operand::Imm(self.rng.imm());
                self.mov(dst, src, Keep::Free);
            }
        }
    }

    pub(super) fn width(&mut self) -> Width {
        match self.rng.chance(self.style.w32) {
            true => Width::W32,
            false => Width::W64,
        }
    }

    /// Shares the registers out, and sets them.
    fn enter(&mut self, first: FirstArg, buffer_bytes: i32) {
        if first == FirstArg::Buffer {
            let from = match self.calls {
                Calls::Yes => 6,
                Calls::No => 1,
            };
            let base = BpfReg::ALL[self.rng.between(from, 9)];
            if base != BpfReg::R1 {
                self.mov(base, Operand::Reg(BpfReg::R1), Keep::Fixed);
            }
            (self.base, self.buffer_bytes) = (Some(base), buffer_bytes);
        }
        let percent = self.rng.pick(&[40, 75, 100]);
        for reg in BpfReg::ALL.into_iter().take(10) {
            let always = matches!(reg, BpfReg::R0 | BpfReg::R2 | BpfReg::R8);
            if Some(reg) != self.base && (always || self.rng.chance(percent)) {
                self.data.push(reg);
            }
        }
        let args = match first {
            FirstArg::Buffer => 2..=5,
            FirstArg::Value => 1..=5,
        };
        for reg in self.data.clone() {
            let is_arg = args.contains(&reg.index());
            if is_arg && self.rng.chance(70) {
                continue;
            }
            let from = BpfReg::ALL[self.rng.between(*args.start(), 5)];
            match Some(from) != self.base && self.rng.chance(30) {
                true => self.mov(reg, Operand::Reg(from), Keep::Free),
                false => self.set(reg),
            }
        }
        let words = self.rng.between(0, self.profile.max_stack_words());
        self.stack_bytes = match self.rng.chance(25) {
            true => 0,
            false => 8 * words as i32,
        };
        for off in (0..self.stack_bytes).step_by(8) {
            let src = match self.rng.chance(50) {
                true => Operand::Reg(self.value()),
                false => Operand::Imm(self.rng.imm()),
            };
            let (size, dst) = (Size::Dw, BpfReg::R10);
            let off = (off - self.stack_bytes) as i16;
            self.push(
                Op::Store {
                    size,
                    dst,
                    off,
                    src,
                },
                Keep::Fixed,
            );
        }
    }

    /// Brings all values and the stack together in `r0`.
    fn fold(&mut self) {
        let mix = |func: &mut Self, src: BpfReg| {
            let (width, dst) = (Width::W64, BpfReg::R0);
            for (op, src) in [
                (AluOp::Mul, Operand::Imm(0x61c8_8647)),
                (AluOp::Xor, Operand::Reg(src)),
            ] {
                func.free(Op::Alu {
                    op,
                    width,
                    dst,
                    src,
                });
            }
        };
        let rest: Vec<_> = self.data.iter().copied().skip(1).collect();
        for reg in &rest {
            mix(self, *reg);
        }
        for off in (0..self.stack_bytes).step_by(8) {
            let dst = rest[0];
            self.load_word(dst, (off - self.stack_bytes) as i16);
            mix(self, dst);
        }
    }

    /// Whether a call of a function, now, is within everybody's means.
    pub(super) fn can_call(&self, index: usize) -> bool {
        let Some(sig) = self.sigs.get(index).copied().flatten() else {
            return false;
        };
        let fits = self.base.is_some() || self.stack_bytes >= SUB_BUFFER_BYTES;
        let cost = self.cost + self.times * (sig.cost + 20);
        cost <= self.max_cost && (fits || sig.first == FirstArg::Value)
    }

    /// A function that may be called.
    pub(super) fn callee(&mut self) -> Option<usize> {
        let index = self.index + 1 + self.rng.below(self.sigs.len() - self.index - 1);
        self.can_call(index).then_some(index)
    }

    pub(super) fn call_local(&mut self, index: usize) {
        let Some(sig) = self.sigs[index].as_mut() else {
            return;
        };
        sig.is_called = true;
        let (first, cost) = (sig.first, sig.cost);
        self.arguments(5);
        if first == FirstArg::Buffer {
            let on_stack = self.stack_bytes >= SUB_BUFFER_BYTES && self.rng.chance(30);
            match self.base.filter(|_| !on_stack) {
                Some(base) => self.mov(BpfReg::R1, Operand::Reg(base), Keep::Fixed),
                None => {
                    self.mov(BpfReg::R1, Operand::Reg(BpfReg::R10), Keep::Fixed);
                    self.add(BpfReg::R1, Operand::Imm(-self.stack_bytes));
                }
            }
        }
        self.free(Op::Call(Callee::Local(index as i32)));
        self.cost += self.times * cost;
        self.after_call();
    }

    /// Sets `r1` to as many; what has a value may keep it.
    pub(super) fn arguments(&mut self, args: usize) {
        for dst in &BpfReg::ALL[1..=args] {
            let is_set = self.data.contains(dst);
            if is_set && (self.counters.contains(dst) || self.rng.chance(50)) {
                continue;
            }
            match self.rng.chance(70) {
                true => {
                    let src = Operand::Reg(self.value());
                    self.mov(*dst, src, Keep::Free);
                }
                false => self.set(*dst),
            }
        }
    }

    /// Sets again what a call has spoiled.
    pub(super) fn after_call(&mut self) {
        let kept: Vec<_> = [0, 6, 7, 8, 9]
            .map(|reg| BpfReg::ALL[reg])
            .into_iter()
            .filter(|reg| self.data.contains(reg))
            .collect();
        for reg in self.data.clone() {
            if !(1..=5).contains(&reg.index()) {
                continue;
            }
            match self.rng.chance(40) {
                true => {
                    let src = Operand::Reg(self.rng.pick(&kept));
                    self.mov(reg, src, Keep::Free);
                }
                false => self.set(reg),
            }
        }
    }
}
