//! What `perf`, gdb and unwinders are told of a program.
//!
//! Names are the kernel's: `bpf_prog_TAG_NAME`, where the tag is the start of the SHA-1 of the
//! instructions, as `bpftool prog` shows it; a program that the kernel has too has the same tag
//! there. Functions other than the entry add `.func_N`, the label that listings give them; the code
//! around them adds what it is for.
//!
//! How to unwind is read from the code itself: `sp` moves by additions of constants, a prologue
//! saves registers relative to it, an epilogue loads them from there, and what comes after a return
//! is inside the frame again. So every address of a function can be unwound from, leaves without a
//! frame among them, whatever prologues look like.
//!
//! Key function: [`publish`]. Neighbours: `dump` knows what code was made of; [`symbols`] tells the
//! others. Source: kernel `kernel/bpf/core.c` (`bpf_prog_calc_tag`, `bpf_get_prog_name`).

use rv64::{IOp, Insn, LoadOp, Reg, StoreOp};
use symbols::{Cfa, CodeInfo, LineEntry, Published, Row, SavedFrom, Symbol, Tools, Unwind};
use text::RxRange;

use super::dump::{Compiled, Stretch};
use super::insn::code;
use super::jit::{Around, Part};
use super::program::Program;

/// Tells `tools` of published code.
pub(super) fn publish(compiled: &Compiled, tools: Tools) -> Published {
    let funcs = functions(compiled);
    let info = CodeInfo {
        range: RxRange::new(compiled.base(), compiled.bytes().len()),
        bytes: compiled.bytes(),
        symbols: &names(compiled.program(), &funcs),
        lines: &lines(compiled),
        unwind: &funcs
            .iter()
            .filter(|func| has_frame(func))
            .map(|func| unwind(compiled, func))
            .collect::<Vec<_>>(),
        landings: &[],
    };
    symbols::publish(&info, tools)
}

impl Program {
    /// The first 8 bytes of the SHA-1 of the instructions, those that name maps without the maps.
    #[must_use]
    #[doc(alias = "bpf_prog_calc_tag")]
    pub fn tag(&self) -> [u8; 8] {
        const MAP_FD: u8 = 1;
        const MAP_VALUE: u8 = 2;
        let mut sha = sha1_smol::Sha1::new();
        let mut names_map = false;
        for mut insn in self.insns().iter().copied() {
            let is_first = insn.code == code::LD | code::DW | code::IMM
                && matches!(insn.src, MAP_FD | MAP_VALUE);
            if is_first || names_map {
                insn.imm = 0;
            }
            names_map = is_first;
            sha.update(&insn.to_bytes());
        }
        let digest = sha.digest().bytes();
        std::array::from_fn(|at| digest[at])
    }

    /// What it is called among symbols.
    #[must_use]
    #[doc(alias = "bpf_get_prog_name")]
    pub fn symbol(&self) -> String {
        let tag = u64::from_be_bytes(self.tag());
        format!("bpf_prog_{tag:016x}_{}", self.name())
    }
}

/// The stretches of each function.
fn functions(compiled: &Compiled) -> Vec<Vec<Stretch>> {
    let mut funcs: Vec<Vec<Stretch>> = Vec::new();
    for stretch in compiled.stretches() {
        match (stretch.part, funcs.last_mut()) {
            (
                Part::Insn(_) | Part::Around(Around::Rest | Around::Catch) | Part::End,
                Some(func),
            ) => func.push(stretch),
            _ => funcs.push(vec![stretch]),
        }
    }
    funcs
}

/// Where a function begins, and how many bytes it has.
fn bounds(func: &[Stretch]) -> (u32, u32) {
    let start = func.first().map_or(0, |stretch| stretch.start);
    let end = func.last().map_or(start, |stretch| stretch.end);
    (start as u32, (end - start) as u32)
}

/// What is come to from anywhere has whatever frame there was.
fn has_frame(func: &[Stretch]) -> bool {
    let part = func.first().map(|stretch| stretch.part);
    part != Some(Part::Around(Around::Stop))
}

fn names(program: &Program, funcs: &[Vec<Stretch>]) -> Vec<Symbol> {
    let symbol = program.symbol();
    let name = |func: &Vec<Stretch>| match func.first() {
        None | Some(Stretch { start: 0, .. }) => symbol.clone(),
        Some(first) => match first.part {
            Part::Prologue(start) => format!("{symbol}.func_{start}"),
            Part::Around(Around::Loop) => format!("{symbol}.bpf_loop"),
            Part::Around(Around::Stop) => format!("{symbol}.stop"),
            _ => format!("{symbol}.entry"),
        },
    };
    let of = |func: &Vec<Stretch>| {
        let ((off, len), name) = (bounds(func), name(func));
        Symbol { name, off, len }
    };
    funcs.iter().map(of).collect()
}

/// An entry wherever the line changes; line 0 where it ends.
fn lines(compiled: &Compiled) -> Vec<LineEntry> {
    let mut all: Vec<LineEntry> = Vec::new();
    for Stretch { start, end, part } in compiled.stretches() {
        let entry = match (compiled.line_of(part), all.last()) {
            _ if start == end => continue,
            (None, None) => continue,
            (None, Some(last)) => LineEntry {
                off: start as u32,
                file: last.file.clone(),
                line: 0,
                column: 0,
            },
            (Some(line), _) => LineEntry {
                off: start as u32,
                file: line.file.clone(),
                line: line.line,
                column: line.column,
            },
        };
        let same = |last: &LineEntry| {
            (&last.file, last.line, last.column) == (&entry.file, entry.line, entry.column)
        };
        if !all.last().is_some_and(same) {
            all.push(entry);
        }
    }
    all
}

fn unwind(compiled: &Compiled, func: &[Stretch]) -> Unwind {
    let (off, len) = bounds(func);
    let mut scan = Scan::new(off);
    for stretch in func {
        let code = &compiled.bytes()[stretch.start..stretch.end];
        let in_prologue = matches!(
            stretch.part,
            Part::Prologue(_) | Part::Around(Around::Entry | Around::Loop)
        );
        for line in rv64::disassemble(code, stretch.start as u64) {
            let next = line.address as u32 + line.bytes.len() as u32;
            if let Some(insn) = line.insn {
                scan.step(insn, next, in_prologue);
            }
        }
        if in_prologue {
            scan.inside = scan.now.clone();
        }
    }
    // What would hold behind the end of the function is of no use.
    let mut rows = scan.rows;
    rows.retain(|row| row.off < off + len);
    Unwind { off, len, rows }
}

/// A walk over the code of a function.
struct Scan {
    now: Row,
    /// What holds when the prologue is over.
    inside: Row,
    rows: Vec<Row>,
}

impl Scan {
    fn new(off: u32) -> Self {
        let entry = Row {
            off,
            cfa: Cfa::ENTRY,
            saved: Vec::new(),
            from: SavedFrom::Cfa,
        };
        Self {
            now: entry.clone(),
            inside: entry,
            rows: Vec::new(),
        }
    }

    /// Goes over `insn`, behind which is `next`.
    fn step(&mut self, insn: Insn, next: u32, in_prologue: bool) {
        let before = self.now.clone();
        match insn {
            Insn::I {
                op: IOp::Addi,
                rd: Reg::Sp,
                rs1: Reg::Sp,
                imm,
            } => self.now.cfa.off = self.now.cfa.off.wrapping_sub(imm.get() as u32),
            Insn::Store {
                op: StoreOp::Sd,
                rs2,
                rs1: Reg::Sp,
                imm,
            } if in_prologue && is_callees(rs2) => {
                let place = self.place(imm.get());
                self.now.saved.push((rs2.num() as u8, place));
            }
            Insn::Load {
                op: LoadOp::Ld,
                rd,
                rs1: Reg::Sp,
                imm,
            } => {
                let loaded = (rd.num() as u8, self.place(imm.get()));
                self.now.saved.retain(|saved| *saved != loaded);
            }
            // A return, or a jump that does not come back.
            Insn::Jalr { rd: Reg::Zero, .. } => {
                self.now.cfa = self.inside.cfa;
                self.now.saved.clone_from(&self.inside.saved);
            }
            _ => {}
        }
        if self.now != before {
            self.now.off = next;
            self.rows.push(self.now.clone());
        }
    }

    /// A distance from `sp`, from the caller's.
    fn place(&self, off: i64) -> i32 {
        (off - i64::from(self.now.cfa.off)) as i32
    }
}

/// `ra`, and what a function gives back as it was.
fn is_callees(reg: Reg) -> bool {
    matches!(reg.num(), 1 | 8 | 9 | 18..=27)
}

#[cfg(test)]
mod tests {
    use rv64::Features;
    use text::RxAddr;

    use super::super::insn::BpfReg::{R0, R1, R2, R3, R4, R6, R10};
    use super::super::{Budget, Cond, Env, LineInfo, Options, ProgramBuilder, Size};
    use super::*;

    fn compiled(b: &ProgramBuilder, lines: &[(usize, u32)]) -> Compiled {
        let line = |(insn, line): &(usize, u32)| LineInfo {
            insn: *insn,
            file: "a.c".into(),
            line: *line,
            column: 0,
            text: None,
        };
        let program = b.finish().unwrap().with_name("t");
        let program = program.with_line_info(lines.iter().map(line).collect());
        let options = Options {
            features: Features::RV64GC,
            ..Options::default()
        };
        let program = program.unwrap();
        program
            .compile(&Env::new(), options, RxAddr::new(0x1000))
            .unwrap()
    }

    /// A function with two ways out that calls one without a frame.
    fn calls() -> ProgramBuilder {
        let mut b = ProgramBuilder::new();
        let (leaf, out) = (b.label(), b.label());
        b.mov(R6, R1).call(leaf).branch(Cond::Eq, R0, 0, out);
        b.mov(R0, R6).exit();
        b.bind(out).mov(R0, 7).exit();
        b.bind(leaf).mov(R0, R1).exit();
        b
    }

    /// Tags that the kernel gives these programs: the second is libxdp's `xdp_pass`.
    #[test]
    fn tags_are_the_kernels() {
        let tag = |r0: i32| {
            let mut b = ProgramBuilder::new();
            b.mov(R0, r0).exit();
            b.finish().unwrap().with_name("p").symbol()
        };
        assert_eq!(tag(0), "bpf_prog_a04f5eef06a7f555_p");
        assert_eq!(tag(2), "bpf_prog_3b185187f1855c4c_p");
    }

    #[test]
    fn functions_have_symbols_that_cover_the_code() {
        let code = compiled(&calls(), &[]);
        let symbols = names(code.program(), &functions(&code));
        let names: Vec<&str> = symbols.iter().map(|symbol| &*symbol.name).collect();
        let first = code.program().symbol();
        assert_eq!(names, [&*first, &*format!("{first}.func_7")]);
        assert_eq!(symbols[0].off + symbols[0].len, symbols[1].off);
        assert_eq!(symbols[1].off + symbols[1].len, code.bytes().len() as u32);
    }

    #[test]
    fn every_place_of_a_frame_can_be_unwound() {
        let code = compiled(&calls(), &[]);
        let funcs = functions(&code);
        let rows = unwind(&code, &funcs[0]).rows;
        let drawn: Vec<String> = rows
            .iter()
            .map(|row| {
                let saved: Vec<_> = row
                    .saved
                    .iter()
                    .map(|(reg, off)| format!("x{reg}{off}"))
                    .collect();
                format!("{:x} sp+{} {}", row.off, row.cfa.off, saved.join(" "))
            })
            .collect();
        let want = [
            "2 sp+32 ",
            "4 sp+32 x1-8",
            "6 sp+32 x1-8 x8-16",
            "8 sp+32 x1-8 x8-16 x9-24",
        ];
        assert_eq!(drawn[..4], want, "{}", code.dump());
        let epilogue = |rows: &[String]| {
            rows.iter()
                .map(|row| row.split_once(' ').unwrap().1.to_owned())
                .collect::<Vec<_>>()
        };
        let out = ["sp+32 x8-16 x9-24", "sp+32 x9-24", "sp+32 ", "sp+0 "];
        assert_eq!(epilogue(&drawn[4..8]), out);
        assert_eq!(
            epilogue(&drawn[8..9]),
            ["sp+32 x1-8 x8-16 x9-24"],
            "behind the first return"
        );
        assert_eq!(epilogue(&drawn[9..]), out);
        assert!(
            unwind(&code, &funcs[1]).rows.is_empty(),
            "a leaf without a frame"
        );
    }

    #[test]
    fn a_leaf_with_stack_moves_sp_alone() {
        let mut b = ProgramBuilder::new();
        b.store(Size::Dw, R10, -8, R1).mov(R0, 0).exit();
        let code = compiled(&b, &[]);
        let rows = unwind(&code, &functions(&code)[0]).rows;
        let cfas: Vec<u32> = rows.iter().map(|row| row.cfa.off).collect();
        assert_eq!(cfas, [16, 0]);
        assert!(rows.iter().all(|row| row.saved.is_empty()));
    }

    #[test]
    fn lines_begin_where_their_code_does_and_end_with_their_function() {
        let code = compiled(&calls(), &[(0, 3), (1, 4), (3, 4), (5, 6)]);
        let lines: Vec<(u32, u32)> = lines(&code)
            .iter()
            .map(|line| (line.off, line.line))
            .collect();
        let at = |insn: u32| {
            let found = code
                .stretches()
                .find(|stretch| stretch.part == Part::Insn(insn));
            found.unwrap().start as u32
        };
        assert_eq!(
            lines,
            [(0, 3), (at(1), 4), (at(5), 6), (at(7), 0)],
            "{}",
            code.dump()
        );
    }

    /// What is around a program's functions has symbols of its own; its frames can be unwound, but
    /// for code that is come to from anywhere.
    #[test]
    fn what_is_around_functions_is_known_too() {
        let mut b = ProgramBuilder::new();
        let func = b.label();
        b.mov(R1, 3).ld_func(R2, func).mov(R3, 0).mov(R4, 0);
        b.call_helper(181).exit().bind(func).mov(R0, 0).exit();
        let options = Options {
            features: Features::RV64GC,
            budget: Some(Budget::Insns(100)),
            ..Options::default()
        };
        let program = b.finish().unwrap();
        let code = program
            .compile(&Env::new(), options, RxAddr::new(0x1000))
            .unwrap();
        let funcs = functions(&code);
        let symbols = names(code.program(), &funcs);
        let first = code.program().symbol();
        let tails: Vec<&str> = symbols
            .iter()
            .map(|symbol| symbol.name.strip_prefix(&first).unwrap())
            .collect();
        let want = ["", ".func_0", ".func_7", ".entry", ".bpf_loop", ".stop"];
        assert_eq!(tails, want);
        let saved =
            |func: &Vec<Stretch>| unwind(&code, func).rows.iter().map(|r| r.saved.len()).max();
        let saved: Vec<_> = funcs.iter().filter(|f| has_frame(f)).map(saved).collect();
        assert_eq!(saved, [Some(8), Some(2), None, Some(8), Some(6)]);
        assert!(!has_frame(&funcs[5]));
    }
}
