//! What kinds of instructions programs have.
//!
//! Key type: [`Seen`].

use std::collections::BTreeMap;

use rvbpf::bpf::{
    AluOp, AtomicOp, ByteOrder, Callee, Cond, Extend, Fault, Op, Operand, Program, Size, Width,
};

/// How often each kind occurs.
#[derive(Default)]
pub(crate) struct Seen {
    kinds: BTreeMap<String, u64>,
    insns: u64,
    programs: u64,
    most_insns: usize,
}

impl Seen {
    pub(crate) fn add(&mut self, program: &Program) {
        self.programs += 1;
        self.most_insns = self.most_insns.max(program.insns().len());
        for op in program.ops().iter().flatten() {
            self.insns += 1;
            *self.kinds.entry(kind(*op)).or_default() += 1;
        }
    }

    /// The kinds that do not occur.
    pub(crate) fn missing(&self) -> Vec<String> {
        let all = all().into_iter();
        all.filter(|kind| !self.kinds.contains_key(kind)).collect()
    }

    pub(crate) fn print(&self) {
        let rarest = self.kinds.iter().min_by_key(|(_, count)| **count);
        println!(
            "{} programs, {} instructions, {} at most, {} kinds, the rarest {rarest:?}",
            self.programs,
            self.insns,
            self.most_insns,
            self.kinds.len(),
        );
    }
}

fn operand(src: Operand) -> &'static str {
    match src {
        Operand::Reg(_) => "reg",
        Operand::Imm(_) => "imm",
    }
}

fn kind(op: Op) -> String {
    match op {
        Op::Alu { op, width, src, .. } => format!("{op:?} {width:?} {}", operand(src)),
        Op::Neg { width, .. } => format!("Neg {width:?}"),
        Op::Movsx { width, size, .. } => format!("Movsx {width:?} {size:?}"),
        Op::End { order, size, .. } => format!("End {order:?} {size:?}"),
        Op::AddrSpaceCast { .. } => "AddrSpaceCast".into(),
        Op::Arena(_) => "Arena".into(),
        Op::JumpReg { .. } => "JumpReg".into(),
        Op::LdImm64 { .. } => "LdImm64".into(),
        Op::Load {
            size,
            extend,
            fault,
            ..
        } => format!("Load {size:?} {extend:?} {fault:?}"),
        Op::Store { size, src, .. } => format!("Store {size:?} {}", operand(src)),
        Op::Atomic { op, size, .. } => format!("Atomic {op:?} {size:?}"),
        Op::LoadAcquire { size, .. } => format!("LoadAcquire {size:?}"),
        Op::StoreRelease { size, .. } => format!("StoreRelease {size:?}"),
        Op::Jump { .. } => "Jump".into(),
        Op::MayGoto { .. } => "MayGoto".into(),
        Op::Branch {
            cond, width, src, ..
        } => format!("Branch {cond:?} {width:?} {}", operand(src)),
        Op::Call(Callee::Local(_)) => "Call local".into(),
        Op::Call(Callee::Helper(id)) => format!("Call helper {id}"),
        Op::Call(Callee::Host { id, .. }) => format!("Call host {id}"),
        Op::Exit => "Exit".into(),
    }
}

/// All kinds but those that want an arena or a table.
fn all() -> Vec<String> {
    let fixed = ["LdImm64", "Jump", "MayGoto", "Call local", "Exit"];
    let mut all: Vec<String> = fixed.map(String::from).into();
    for width in [Width::W32, Width::W64] {
        all.push(format!("Neg {width:?}"));
        for src in ["reg", "imm"] {
            all.extend(AluOp::ALL.map(|op| format!("{op:?} {width:?} {src}")));
            all.extend(Cond::ALL.map(|cond| format!("Branch {cond:?} {width:?} {src}")));
        }
    }
    for size in [Size::B, Size::H] {
        all.push(format!("Movsx W32 {size:?}"));
    }
    for size in [Size::B, Size::H, Size::W] {
        all.push(format!("Movsx W64 {size:?}"));
        for fault in [Fault::Fatal, Fault::Zero] {
            all.push(format!("Load {size:?} {:?} {fault:?}", Extend::Sign));
        }
    }
    for size in [Size::H, Size::W, Size::Dw] {
        let orders = [ByteOrder::Le, ByteOrder::Be, ByteOrder::Swap];
        all.extend(orders.map(|order| format!("End {order:?} {size:?}")));
    }
    for size in Size::ALL {
        for fault in [Fault::Fatal, Fault::Zero] {
            all.push(format!("Load {size:?} {:?} {fault:?}", Extend::Zero));
        }
        all.extend(["reg", "imm"].map(|src| format!("Store {size:?} {src}")));
        all.extend(AtomicOp::ALL.map(|op| format!("Atomic {op:?} {size:?}")));
        all.push(format!("LoadAcquire {size:?}"));
        all.push(format!("StoreRelease {size:?}"));
    }
    for id in 1..=super::fuzz::host::ARITIES.len() {
        all.push(format!("Call helper {id}"));
        all.push(format!("Call host {id}"));
    }
    all
}
