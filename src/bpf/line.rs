//! Where in a source instructions come from.
//!
//! Key types: [`LineInfo`], [`Program::with_line_info`]. Neighbours: `dump` shows it, `symbols`
//! tells `perf` and gdb. Source: kernel `include/uapi/linux/bpf.h` (`struct bpf_line_info`),
//! `kernel/bpf/verifier.c` (`check_btf_line`).

use std::fmt;
use std::sync::Arc;

use super::error::{Reason, Refusal};
use super::program::Program;

/// What one instruction, and those after it up to the next entry, were made of.
#[derive(Clone, Eq, PartialEq, Debug)]
#[doc(alias = "bpf_line_info")]
pub struct LineInfo {
    /// The instruction's index; constants of 64 bits count as two.
    pub insn: usize,
    /// The file's path, as the compiler had it.
    pub file: Arc<str>,
    /// The line, from 1.
    pub line: u32,
    /// The column, from 1; 0 where nobody knows.
    pub column: u32,
    /// The line's own text, where the object carries it.
    pub text: Option<Arc<str>>,
}

impl Program {
    /// Says where instructions come from: entries in the order of the program, each for an
    /// instruction of its own. An entry does not reach into the next function.
    ///
    /// # Errors
    /// [`Reason::LineInfo`], and the program is gone.
    #[doc(alias = "bpf_line_info")]
    pub fn with_line_info(self, lines: Vec<LineInfo>) -> Result<Self, Refusal> {
        let mut next = 0;
        for line in &lines {
            let what = match self.ops().get(line.insn) {
                None => Some("is behind the end of the program"),
                Some(None) => Some("is for the second half of a constant"),
                Some(Some(_)) if line.insn < next => Some("is not behind the entry before it"),
                Some(Some(_)) => None,
            };
            if let Some(what) = what {
                let (insn, reason) = (line.insn, Reason::LineInfo { what });
                return Err(Refusal { insn, reason });
            }
            next = line.insn + 1;
        }
        Ok(self.with_lines(lines.into()))
    }

    /// The entry that instruction `insn` belongs to.
    #[must_use]
    pub fn line_of(&self, insn: usize) -> Option<&LineInfo> {
        let func = self.funcs().partition_point(|func| func.start <= insn);
        let start = self.funcs().get(func.checked_sub(1)?)?.start;
        line_at(self.line_info(), insn).filter(|line| line.insn >= start)
    }
}

/// The last entry up to `insn`.
fn line_at(lines: &[LineInfo], insn: usize) -> Option<&LineInfo> {
    let behind = lines.partition_point(|line| line.insn <= insn);
    lines.get(behind.checked_sub(1)?)
}

/// As bpftool shows it: the text, if there is one, then the place.
impl fmt::Display for LineInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(text) = &self.text {
            write!(f, "{} ", text.trim())?;
        }
        write!(f, "[{}:{}", self.file, self.line)?;
        if self.column != 0 {
            write!(f, ":{}", self.column)?;
        }
        f.write_str("]")
    }
}

#[cfg(test)]
mod tests {
    use super::super::insn::BpfReg::{R0, R1};
    use super::super::{AluOp, ProgramBuilder};
    use super::*;

    fn line(insn: usize, line: u32) -> LineInfo {
        LineInfo {
            insn,
            file: "a.c".into(),
            line,
            column: 5,
            text: None,
        }
    }

    /// A constant at 0, two functions, the second from 5 on.
    fn program() -> Program {
        let mut b = ProgramBuilder::new();
        let func = b.label();
        b.ld_imm64(R1, 1 << 40)
            .call(func)
            .alu(AluOp::Add, R0, 1)
            .exit();
        b.bind(func).mov(R0, R1).exit();
        b.finish().unwrap()
    }

    #[test]
    fn an_entry_reaches_to_the_next_and_not_out_of_its_function() {
        let program = program()
            .with_line_info(vec![line(2, 7), line(3, 8)])
            .unwrap();
        let line_of = |insn| program.line_of(insn).map(|line| line.line);
        assert_eq!([0, 2, 3, 4].map(line_of), [None, Some(7), Some(8), Some(8)]);
        assert_eq!([5, 6, 99].map(line_of), [None; 3]);
    }

    #[test]
    fn entries_that_say_nothing_are_refused() {
        let refused = |lines| program().with_line_info(lines).map(|_| ()).unwrap_err();
        for (lines, insn, what) in [
            (vec![line(7, 1)], 7, "is behind the end of the program"),
            (vec![line(1, 1)], 1, "is for the second half of a constant"),
            (
                vec![line(2, 1), line(2, 2)],
                2,
                "is not behind the entry before it",
            ),
            (
                vec![line(3, 1), line(2, 2)],
                2,
                "is not behind the entry before it",
            ),
        ] {
            let reason = Reason::LineInfo { what };
            assert_eq!(refused(lines), Refusal { insn, reason });
        }
    }
}
