//! Which functions machine code calls: the program of this test, read from its own file.
//!
//! A function's instructions are followed from its entry, so that landing pads, where only the
//! unwinder goes, are not among them. Registers that hold an address known at build time (`auipc`,
//! `addi`, a load from the table of addresses) are followed too; where a call or jump goes through
//! any other register, that is said ([`Edge::Pointer`]).
//!
//! Source: psABI, "Code models" and "Program Linkage Table"; ELF gABI.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use object::{
    Object, ObjectSection, ObjectSymbol, ObjectSymbolTable, RelocationTarget, SectionKind,
    SymbolKind,
};
use rv64::{Flow, IOp, Insn, LoadOp, ROp, Reg, Step, step};

/// What a function leads to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Edge {
    /// The function that is here.
    To(u64),
    /// A function of another library.
    Symbol(String),
    /// What a register holds, at this instruction.
    Pointer(u64),
}

/// What a register is known to hold.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum Value {
    Address(u64),
    /// The word that the dynamic linker writes here.
    Word(u64),
}

type Regs = [Option<Value>; 32];

/// A program.
pub(crate) struct Program {
    /// By address: the end and the name.
    functions: BTreeMap<u64, (u64, String)>,
    /// Executable sections, by address.
    code: BTreeMap<u64, Vec<u8>>,
    /// Words that the dynamic linker writes.
    words: BTreeMap<u64, Edge>,
}

impl Program {
    /// The program that runs this.
    pub(crate) fn own() -> Self {
        Self::of(&fs::read("/proc/self/exe").unwrap())
    }

    /// The program of this ELF file.
    pub(crate) fn of(bytes: &[u8]) -> Self {
        let file = object::File::parse(bytes).unwrap();
        let mut functions = BTreeMap::new();
        for symbol in file.symbols() {
            let (at, size) = (symbol.address(), symbol.size());
            if symbol.kind() == SymbolKind::Text && size > 0 {
                let name = demangled(symbol.name().unwrap());
                functions.insert(at, (at + size, name));
            }
        }
        let sections = file.sections().filter(|s| s.kind() == SectionKind::Text);
        let code = sections.map(|s| (s.address(), s.data().unwrap().to_vec()));
        let table = file.dynamic_symbol_table();
        let mut words = BTreeMap::new();
        for (at, relocation) in file.dynamic_relocations().into_iter().flatten() {
            let edge = match relocation.target() {
                RelocationTarget::Symbol(index) => {
                    let symbol = table.as_ref().and_then(|t| t.symbol_by_index(index).ok());
                    let symbol = symbol.expect("a symbol of the table");
                    match symbol.is_undefined() {
                        true => Edge::Symbol(symbol.name().unwrap().to_owned()),
                        false => Edge::To(symbol.address()),
                    }
                }
                _ => Edge::To(relocation.addend() as u64),
            };
            words.insert(at, edge);
        }
        let code = code.collect();
        Self {
            functions,
            code,
            words,
        }
    }

    /// Functions whose names `is_meant` knows.
    pub(crate) fn named(&self, is_meant: impl Fn(&str) -> bool) -> Vec<u64> {
        let meant = self
            .functions
            .iter()
            .filter(|(_, (_, name))| is_meant(name));
        meant.map(|(at, _)| *at).collect()
    }

    pub(crate) fn name(&self, at: u64) -> String {
        let found = self.functions.get(&at);
        found.map_or_else(|| format!("{at:#x}"), |(_, name)| name.clone())
    }

    fn bytes(&self, at: u64) -> Option<&[u8]> {
        let (start, bytes) = self.code.range(..=at).next_back()?;
        bytes.get((at - start) as usize..).filter(|b| !b.is_empty())
    }

    /// What the function at `start` leads to. `is_end` knows functions that do not return.
    pub(crate) fn edges(&self, start: u64, is_end: &dyn Fn(&Edge) -> bool) -> BTreeSet<Edge> {
        // A stub of the linker's has no symbol: it ends with its jump.
        let end = self.functions.get(&start).map_or(start + 16, |f| f.0);
        let mut edges = BTreeSet::new();
        let mut known: BTreeMap<u64, Regs> = BTreeMap::new();
        let mut todo = vec![(start, [None; 32])];
        while let Some((at, regs)) = todo.pop() {
            if !(start..end).contains(&at) {
                edges.insert(Edge::To(at));
                continue;
            }
            let regs = match known.get(&at) {
                Some(before) => {
                    let met = meet(before, &regs);
                    if met == *before {
                        continue;
                    }
                    met
                }
                None => regs,
            };
            known.insert(at, regs);
            let step = self.bytes(at).and_then(step);
            // Not an instruction: the end of what is executed.
            let Some(step) = step else { continue };
            let mut after = regs;
            for reg in step.writes.iter() {
                after[reg.num() as usize] = None;
            }
            let value = value(&step, at, &regs);
            if let (Some(rd), Some(value)) = (step.writes.iter().next(), value) {
                after[rd.num() as usize] = Some(value);
            }
            let next = at + u64::from(step.len_bytes);
            let through = |base: Reg, off: i64| match regs[base.num() as usize] {
                Some(Value::Address(address)) => Edge::To(address.wrapping_add_signed(off)),
                Some(Value::Word(word)) => {
                    let found = self.words.get(&word).cloned();
                    found.unwrap_or(Edge::Pointer(at))
                }
                None => Edge::Pointer(at),
            };
            let mut called = |edge: Edge| {
                let comes_back = !is_end(&edge);
                edges.insert(edge);
                comes_back
            };
            match step.flow {
                Flow::Jump { .. } => todo.push((step.flow.target(at).unwrap(), after)),
                Flow::Branch { .. } => {
                    todo.push((step.flow.target(at).unwrap(), after));
                    todo.push((next, after));
                }
                Flow::Call { .. } => {
                    if called(Edge::To(step.flow.target(at).unwrap())) {
                        todo.push((next, of_callee(&after)));
                    }
                }
                Flow::IndirectCall { base, off, .. } => {
                    if called(through(base, off.get())) {
                        todo.push((next, of_callee(&after)));
                    }
                }
                Flow::IndirectJump { base, off } if base != Reg::Ra => {
                    called(through(base, off.get()));
                }
                Flow::IndirectJump { .. } => {}
                _ => todo.push((next, after)),
            }
        }
        edges
    }

    /// Where a path of `edges` ends, a stub of the linker's being passed through.
    pub(crate) fn through_stub(&self, edge: Edge) -> Edge {
        match edge {
            Edge::To(at) if !self.functions.contains_key(&at) => {
                let onward = self.edges(at, &|_| true);
                onward.into_iter().next().unwrap_or(Edge::Pointer(at))
            }
            edge => edge,
        }
    }
}

/// What both are known to hold.
fn meet(a: &Regs, b: &Regs) -> Regs {
    std::array::from_fn(|i| a[i].filter(|_| a[i] == b[i]))
}

/// What is known after a call: what the callee keeps.
fn of_callee(regs: &Regs) -> Regs {
    let is_kept = |i: usize| matches!(i, 2 | 3 | 4 | 8 | 9 | 18..=27);
    std::array::from_fn(|i| regs[i].filter(|_| is_kept(i)))
}

/// What an instruction at `at` puts into its register, if that is known at build time.
fn value(step: &Step, at: u64, regs: &Regs) -> Option<Value> {
    let of = |reg: Reg| regs[reg.num() as usize];
    if let Flow::Auipc { imm, .. } = step.flow {
        return Some(Value::Address(at.wrapping_add_signed(imm.get() << 12)));
    }
    match Insn::decode(step.word).ok()? {
        Insn::I {
            op: IOp::Addi,
            rs1,
            imm,
            ..
        } => match of(rs1)? {
            Value::Address(address) => Some(Value::Address(address.wrapping_add_signed(imm.get()))),
            word if imm.get() == 0 => Some(word),
            Value::Word(_) => None,
        },
        Insn::R {
            op: ROp::Add,
            rs1: Reg::Zero,
            rs2,
            ..
        } => of(rs2),
        Insn::Load {
            op: LoadOp::Ld,
            rs1,
            imm,
            ..
        } => match of(rs1)? {
            Value::Address(address) => Some(Value::Word(address.wrapping_add_signed(imm.get()))),
            Value::Word(_) => None,
        },
        _ => None,
    }
}

/// A name as rustc's older scheme makes it: `_ZN`, then parts with their lengths, the last of which
/// is a hash. Other names stay as they are.
pub(crate) fn demangled(name: &str) -> String {
    let mut rest = match name.strip_prefix("_ZN") {
        Some(rest) => rest,
        None => return name.to_owned(),
    };
    let mut parts = Vec::new();
    while let Some(end) = rest
        .find(|c: char| !c.is_ascii_digit())
        .filter(|end| *end > 0)
    {
        let (len, after) = rest.split_at(end);
        let Some((part, after)) = len.parse().ok().and_then(|len| after.split_at_checked(len))
        else {
            return name.to_owned();
        };
        // An underscore stands before what a name cannot begin with.
        parts.push(
            part.strip_prefix('_')
                .filter(|p| p.starts_with('$'))
                .unwrap_or(part),
        );
        rest = after;
    }
    if parts
        .last()
        .is_some_and(|hash| hash.len() == 17 && hash.starts_with('h'))
    {
        parts.pop();
    }
    let mut text = parts.join("::").replace("..", "::");
    if !text.contains('$') {
        return text;
    }
    for (code, sign) in [
        ("$LT$", "<"),
        ("$GT$", ">"),
        ("$u20$", " "),
        ("$RF$", "&"),
        ("$BP$", "*"),
        ("$C$", ","),
        ("$LP$", "("),
        ("$RP$", ")"),
        ("$u7b$", "{"),
        ("$u7d$", "}"),
        ("$u5b$", "["),
        ("$u5d$", "]"),
    ] {
        text = text.replace(code, sign);
    }
    text
}
