//! What a program became: BPF and RV64 side by side.
//!
//! ```text
//!   sum: 9 BPF instructions, 24 bytes at 0x3f80001000
//!
//!   ; for (; n; n--) [sum.c:4:5]
//!      1: (15) if r1 == 0x0 goto pc+3
//!             3f80001002      c501  beqz a0, 3f8000100a
//! ```
//!
//! The compiler notes where it begins each instruction; what is between two of these places was
//! made for the first. An instruction that became nothing has no RV64 line.
//!
//! Key type: [`Compiled`]. Neighbours: `jit` makes it, `loaded` keeps it, `disasm` has the BPF
//! text and [`rv64::disasm`] the other. Source: bpftool's `prog dump xlated` and `prog dump jited`.

use std::fmt;
use std::sync::atomic::AtomicU64;

use text::RxAddr;

use super::env::Env;
use super::error::LoadError;
use super::jit::{self, Around, Part, Place};
use super::line::LineInfo;
use super::loaded::Options;
use super::program::Program;

/// The code of a program for one address.
#[derive(Clone, Debug)]
pub struct Compiled {
    program: Program,
    base: RxAddr,
    bytes: Box<[u8]>,
    places: Box<[Place]>,
}

/// A stretch of code and where it comes from.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(crate) struct Stretch {
    pub(crate) start: usize,
    pub(crate) end: usize,
    pub(crate) part: Part,
}

impl Program {
    /// Compiles it for `base` without publishing the code, on any host: to look at, or to measure.
    ///
    /// # Errors
    /// [`LoadError::Refused`] when it refers to what `env` does not have; [`LoadError::Asm`] when
    /// it does not fit.
    pub fn compile(
        &self,
        env: &Env,
        options: Options,
        base: RxAddr,
    ) -> Result<Compiled, LoadError> {
        /// The code is not for running.
        static STOPS: AtomicU64 = AtomicU64::new(0);
        let object = jit::compile(self, env, options.plan(self, &STOPS)?)?;
        let linked = object.link(base.get())?;
        Ok(Compiled::new(self, base, linked.bytes, linked.places))
    }
}

impl Compiled {
    pub(crate) fn new(program: &Program, base: RxAddr, bytes: Vec<u8>, places: Vec<Place>) -> Self {
        Self {
            program: program.clone(),
            base,
            bytes: bytes.into(),
            places: places.into(),
        }
    }

    /// What it was compiled from.
    #[must_use]
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// Where its first byte is, or shall be.
    #[must_use]
    pub fn base(&self) -> RxAddr {
        self.base
    }

    /// The code, then the constants that it loads.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// BPF and RV64 side by side: under each instruction, in the kernel's text form, what it
    /// became, with addresses and bytes; above it its source line, where it has one of its own.
    #[must_use]
    pub fn dump(&self) -> String {
        self.to_string()
    }

    /// All code, in order, without the constants at its end.
    pub(crate) fn stretches(&self) -> impl Iterator<Item = Stretch> + '_ {
        let ends = self.places.iter().skip(1).map(|place| place.off as usize);
        self.places.iter().zip(ends).map(|(place, end)| Stretch {
            start: place.off as usize,
            end,
            part: place.part,
        })
    }

    /// The source line of a stretch.
    pub(crate) fn line_of(&self, part: Part) -> Option<&LineInfo> {
        match part {
            Part::Prologue(start) => self.program.line_of(start as usize),
            Part::Insn(at) => self.program.line_of(at as usize),
            Part::Around(_) | Part::End => None,
        }
    }

    fn code(&self, f: &mut fmt::Formatter<'_>, start: usize, end: usize) -> fmt::Result {
        let address = self.base.get().wrapping_add(start as u64);
        for line in rv64::disassemble(self.bytes.get(start..end).unwrap_or_default(), address) {
            writeln!(f, "          {line}")?;
        }
        Ok(())
    }
}

/// The listing of [`Compiled::dump`].
impl fmt::Display for Compiled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, nr_insns) = (self.program.name(), self.program.insns().len());
        let (nr_bytes, base) = (self.bytes.len(), self.base);
        writeln!(
            f,
            "{name}: {nr_insns} BPF instructions, {nr_bytes} bytes at {base}"
        )?;
        for Stretch { start, end, part } in self.stretches() {
            match part {
                Part::Around(Around::Entry) => writeln!(f, "\nentry:")?,
                Part::Around(Around::Loop) => writeln!(f, "\nbpf_loop:")?,
                Part::Around(Around::Rest) => {}
                Part::Around(Around::Catch) => writeln!(f, "after an exception:")?,
                Part::Around(Around::Stop) => writeln!(f, "\nthe budget is used up:")?,
                Part::Prologue(0) => writeln!(f)?,
                Part::Prologue(first) => writeln!(f, "\nfunc_{first}:")?,
                Part::Insn(at) => {
                    let line = self.line_of(part).filter(|line| line.insn == at as usize);
                    if let Some(line) = line {
                        writeln!(f, "; {line}")?;
                    }
                    writeln!(f, "{}", self.program.line(at as usize))?;
                }
                Part::End => {}
            }
            self.code(f, start, end)?;
        }
        let end = self.places.last().map_or(0, |place| place.off as usize);
        self.constants(f, end.next_multiple_of(8))
    }
}

impl Compiled {
    fn constants(&self, f: &mut fmt::Formatter<'_>, start: usize) -> fmt::Result {
        let words = self.bytes.get(start..).unwrap_or_default().chunks_exact(8);
        for (i, word) in words.enumerate() {
            if i == 0 {
                writeln!(f, "\nconstants:")?;
            }
            let at = self.base.get().wrapping_add((start + 8 * i) as u64);
            let word = word.iter().rev().fold(0, |all, b| all << 8 | u64::from(*b));
            writeln!(f, "          {at:x}  .dword {word:#x}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use rv64::Features;

    use super::super::insn::BpfReg::{R0, R1, R2, R6};
    use super::super::{AluOp, Cond, ProgramBuilder};
    use super::*;

    fn options() -> Options {
        Options {
            features: Features::RV64GC,
            ..Options::default()
        }
    }

    fn line(insn: usize, line: u32, text: &str) -> LineInfo {
        LineInfo {
            insn,
            file: "sum.c".into(),
            line,
            column: 3,
            text: Some(text.into()),
        }
    }

    /// Calls a function that adds up; its constant is too much for immediates.
    fn program() -> Program {
        let mut b = ProgramBuilder::new();
        let (sum, again, done) = (b.label(), b.label(), b.label());
        b.mov(R6, R1).call(sum).alu(AluOp::Add, R0, R6).exit();
        b.bind(sum)
            .mov(R0, 0)
            .bind(again)
            .branch(Cond::Eq, R1, 0, done);
        b.alu(AluOp::Add, R0, R1).alu(AluOp::Sub, R1, 1).jump(again);
        b.bind(done).ld_imm64(R2, 0x0123_4567_89ab_cdef);
        b.alu(AluOp::Xor, R0, R2).exit();
        let lines = vec![line(4, 3, "  long s = 0;"), line(5, 4, "while (n)")];
        let program = b.finish().unwrap().with_name("sum");
        program.with_line_info(lines).unwrap()
    }

    #[test]
    fn both_sides_stand_beside_each_other() {
        let code = program()
            .compile(&Env::new(), options(), RxAddr::new(0x3f_8000_1000))
            .unwrap();
        let dump = code.dump();
        let lines: Vec<&str> = dump.lines().collect();
        assert_eq!(
            lines[0],
            format!(
                "sum: 13 BPF instructions, {} bytes at 0x3f80001000",
                code.bytes().len()
            )
        );
        let block = |first: &str| -> Vec<&str> {
            let at = lines.iter().position(|line| *line == first);
            let at = at.unwrap_or_else(|| panic!("{first} is not in\n{dump}"));
            let code = lines[at + 1..]
                .iter()
                .take_while(|line| line.starts_with("       "));
            code.map(|line| line.trim().split_once("  ").unwrap().1.trim())
                .collect()
        };
        // What copies is made where it is wanted.
        assert_eq!(block("   0: (bf) r6 = r1"), [""; 0]);
        assert_eq!(block("   1: (85) call pc+2")[0], "84aa  mv s1, a0");
        assert!(
            block("func_4:").is_empty(),
            "a leaf has no prologue: {dump}"
        );
        assert!(block("")[0].ends_with("addi sp, sp, -32"), "{dump}");
        assert_eq!(block("; long s = 0; [sum.c:3:3]"), [""; 0]);
        assert_eq!(block("   4: (b7) r0 = 0"), ["4781  li a5, 0"]);
        assert_eq!(block("   6: (0f) r0 += r1"), ["97aa  add a5, a5, a0"]);
        assert!(
            dump.contains("; while (n) [sum.c:4:3]\n   5: (15) if r1 == 0x0"),
            "{dump}"
        );
    }

    /// Every byte of code is in exactly one stretch, and every instruction has one.
    #[test]
    fn stretches_cover_the_code() {
        let program = program();
        let code = program
            .compile(&Env::new(), options(), RxAddr::new(0x1000))
            .unwrap();
        let mut next = 0;
        let mut insns = Vec::new();
        for stretch in code.stretches() {
            assert_eq!(stretch.start, next);
            next = stretch.end;
            insns.extend(match stretch.part {
                Part::Insn(at) => Some(at as usize),
                _ => None,
            });
        }
        let want = program
            .ops()
            .iter()
            .enumerate()
            .filter(|(_, op)| op.is_some());
        assert_eq!(insns, want.map(|(at, _)| at).collect::<Vec<_>>());
        let rest = &code.bytes()[next..];
        assert!(rest.is_empty() || rest.ends_with(&0x0123_4567_89ab_cdef_u64.to_le_bytes()));
    }
}
