//! GNU as, objcopy and objdump, when `RVBPF_AS` names the assembler.

use std::path::{Path, PathBuf};
use std::process::Command;

const MARCH: &str =
    "rv64imafd_zicsr_zifencei_zba_zbb_zbs_zicond_zacas_zabha_zicbop_zicfilp_zihintpause";

/// All that `flow` is to know.
const EVERYTHING: &str = "rv64imafdv_zicsr_zifencei_zba_zbb_zbs_zbc_zbkb_zbkx_zkn_zks_zicond_zacas\
     _zabha_zicbom_zicbop_zicboz_zawrs_zfh_zfa_zfbfmin_zvfh_zvfbfmin_zvfbfwma_zvbb_zvbc_zvkng\
     _zvksg_zimop_zihintntl_zihintpause";

/// Which compressed instructions the assembler may choose.
#[derive(Clone, Copy)]
pub(crate) enum Rvc {
    C,
    Zcb,
}

/// What the assembler made of a line.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Machine {
    Half(u32),
    Word,
}

impl Machine {
    pub(crate) fn short(self) -> Option<u32> {
        match self {
            Self::Half(half) => Some(half),
            Self::Word => None,
        }
    }
}

pub(crate) struct Gnu {
    assembler: String,
    dir: PathBuf,
}

impl Gnu {
    pub(crate) fn from_env() -> Option<Self> {
        let assembler = std::env::var("RVBPF_AS")
            .ok()
            .filter(|name| !name.is_empty())?;
        let thread = format!("{:?}", std::thread::current().id());
        let digits: String = thread.chars().filter(char::is_ascii_digit).collect();
        let dir = std::env::temp_dir().join(format!("rvbpf-as-{}-{digits}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        Some(Self { assembler, dir })
    }

    pub(crate) fn version(&self) -> String {
        let out = self.run(&self.assembler, &["--version".as_ref()]);
        String::from_utf8(out)
            .unwrap()
            .lines()
            .next()
            .unwrap_or_default()
            .to_owned()
    }

    /// One word for each line, nothing compressed.
    pub(crate) fn words(&self, lines: &[String]) -> Vec<u32> {
        let bytes = self.assemble(&lines.join("\n"), MARCH);
        let words: Vec<u32> = bytes
            .chunks(4)
            .map(|word| u32::from_le_bytes(word.try_into().unwrap()))
            .collect();
        assert_eq!(words.len(), lines.len());
        words
    }

    /// Each line compressed if it can be.
    pub(crate) fn compressed(&self, lines: &[String], rvc: Rvc) -> Vec<Machine> {
        let march = MARCH.replace(
            "imafd_",
            match rvc {
                Rvc::C => "imafdc_",
                Rvc::Zcb => "imafdc_zcb_",
            },
        );
        let bytes = self.assemble(&lines.join("\n"), &march);
        let mut at = 0;
        let mut all = Vec::new();
        while at < bytes.len() {
            let half = u16::from_le_bytes([bytes[at], bytes[at + 1]]);
            let wide = half & 3 == 3;
            all.push(if wide {
                Machine::Word
            } else {
                Machine::Half(half.into())
            });
            at += if wide { 4 } else { 2 };
        }
        assert_eq!(all.len(), lines.len());
        all
    }

    /// What each half-word stands for: its line of objdump, assembled without
    /// compression. Hints and what objdump does not know are `None`.
    pub(crate) fn expand_halves(&self) -> Vec<(u16, Option<u32>)> {
        let mut source = String::from(".option norelax\n");
        for half in (0..=u16::MAX).filter(|half| half & 3 != 3) {
            source += &format!(".insn 2, {half:#06x}\n");
        }
        let march = MARCH.replace("imafd_", "imafdc_zcb_");
        self.assemble(&source, &march);
        let listing = self.run(
            &self.beside("objdump"),
            &["-d".as_ref(), "-z".as_ref(), self.dir.join("a.o").as_ref()],
        );
        let listing = String::from_utf8(listing).unwrap();
        let mut all: Vec<(u16, Option<u32>)> = (0..=u16::MAX)
            .filter(|half| half & 3 == 3)
            .map(|half| (half, None))
            .collect();
        let (mut halves, mut lines) = (Vec::new(), Vec::new());
        for line in listing.lines() {
            let mut columns = line.split('\t');
            let (Some(at), Some(code)) = (columns.next(), columns.next()) else {
                continue;
            };
            let Ok(half) = u16::from_str_radix(code.trim(), 16) else {
                continue;
            };
            let at = i64::from_str_radix(at.trim().trim_end_matches(':'), 16).unwrap();
            let text: Vec<&str> = columns.collect();
            match expansion(half, at, &text) {
                Some(text) => {
                    halves.push(half);
                    lines.push(text);
                }
                None => all.push((half, None)),
            }
        }
        all.extend(
            halves
                .into_iter()
                .zip(self.words(&lines).into_iter().map(Some)),
        );
        assert_eq!(all.len(), 0x1_0000);
        all
    }

    /// What objdump calls each word, no aliases; `None` for what it does not know.
    pub(crate) fn texts(&self, words: &[u32]) -> Vec<Option<String>> {
        let lines: Vec<String> = words
            .iter()
            .map(|word| format!(".insn 4, {word:#010x}"))
            .collect();
        self.assemble(&lines.join("\n"), EVERYTHING);
        let args: [&Path; 4] = [
            "-d".as_ref(),
            "-z".as_ref(),
            "-Mno-aliases".as_ref(),
            &self.dir.join("a.o"),
        ];
        let listing = String::from_utf8(self.run(&self.beside("objdump"), &args)).unwrap();
        let text = |line: &str| {
            let (_, rest) = line.split_once(":\t")?;
            let (_, text) = rest.split_once('\t')?;
            let text = text.split(" #").next()?.split(" <").next()?;
            // A rounding mode may be unknown; a fence may order nothing.
            let known = |text: &String| {
                !text.starts_with(".insn")
                    && (!text.contains("unknown") || text.starts_with("fence"))
            };
            Some(Some(text.replace('\t', " ")).filter(known))
        };
        let all: Vec<_> = listing.lines().filter_map(text).collect();
        assert_eq!(all.len(), words.len());
        all
    }

    /// objdump's lines of `code` at `base`: address, parcel, and where it goes.
    pub(crate) fn listing(&self, code: &[u8], base: u64) -> Vec<(u64, u64, Option<u64>)> {
        let path = self.dir.join("code.bin");
        std::fs::write(&path, code).unwrap();
        let vma = format!("--adjust-vma={base:#x}");
        let args: [&Path; 7] = [
            "-D".as_ref(),
            "-z".as_ref(),
            "-bbinary".as_ref(),
            "-mriscv:rv64".as_ref(),
            "-Mno-aliases".as_ref(),
            vma.as_ref(),
            &path,
        ];
        let listing = String::from_utf8(self.run(&self.beside("objdump"), &args)).unwrap();
        let hex = |text: &str| u64::from_str_radix(text.trim().trim_start_matches("0x"), 16).ok();
        let line = |line: &str| {
            let (address, rest) = line.split_once(":\t")?;
            let (parcel, text) = rest.split_once('\t')?;
            let comment = text.split_once(" # ").map(|(_, comment)| comment);
            let operands = text.split_once('\t').map_or("", |(_, operands)| operands);
            let last = operands
                .rsplit(',')
                .next()
                .filter(|op| op.starts_with("0x3f"));
            let target = comment.or(last).and_then(hex);
            Some((hex(address)?, hex(parcel)?, target))
        };
        listing.lines().filter_map(line).collect()
    }

    fn assemble(&self, source: &str, march: &str) -> Vec<u8> {
        let (input, object, output) = (
            self.dir.join("a.s"),
            self.dir.join("a.o"),
            self.dir.join("a.bin"),
        );
        std::fs::write(&input, format!("{source}\n")).unwrap();
        let march = format!("-march={march}");
        let args: [&Path; 5] = [
            march.as_ref(),
            "-mno-relax".as_ref(),
            "-o".as_ref(),
            &object,
            &input,
        ];
        self.run(&self.assembler, &args);
        let args: [&Path; 4] = ["-O".as_ref(), "binary".as_ref(), &object, &output];
        self.run(&self.beside("objcopy"), &args);
        std::fs::read(&output).unwrap()
    }

    /// Another tool of the same binutils: the name with another end.
    fn beside(&self, tool: &str) -> String {
        format!("{}{tool}", self.assembler.strip_suffix("as").unwrap())
    }

    /// Runs a tool; the name may carry arguments of its own in front.
    fn run(&self, tool: &str, args: &[&Path]) -> Vec<u8> {
        let mut words = tool.split_whitespace();
        let mut command = Command::new(words.next().unwrap());
        let out = command.args(words).args(args).output().unwrap();
        assert!(
            out.status.success(),
            "{tool}: {}",
            String::from_utf8_lossy(&out.stderr)
        );
        out.stdout
    }
}

impl Drop for Gnu {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// The line to assemble for a half-word that objdump shows as `text`.
fn expansion(half: u16, at: i64, text: &[&str]) -> Option<String> {
    let (mnemonic, operands) = (*text.first()?, text.get(1).copied().unwrap_or(""));
    let operands = operands.split(" #").next()?.split(" <").next()?;
    if mnemonic.starts_with('.') || mnemonic.starts_with("c.") || mnemonic == "unimp" {
        return None;
    }
    let parts: Vec<&str> = operands.split(',').collect();
    match mnemonic {
        // A hint: c.addi of zero to another register than `zero`.
        "mv" | "addi" if half & 0xf07f == 1 || half & 0xe003 == 1 && parts.last() == Some(&"0") => {
            None
        }
        // c.addi16sp of zero is reserved, though objdump shows it.
        _ if half == 0x6101 => None,
        // c.mv stands for an add, though objdump's text is an addi.
        "mv" if half & 3 == 2 => Some(format!("add {},zero,{}", parts[0], parts[1])),
        // objdump shows where it goes, not how far.
        "j" | "beqz" | "bnez" => {
            let (target, rest) = parts.split_last()?;
            let target = i64::from_str_radix(target.trim_start_matches("0x"), 16).ok()?;
            let registers = rest
                .iter()
                .fold(String::new(), |all, part| all + part + ",");
            Some(format!(
                "{mnemonic} {registers}.{:+}",
                target.wrapping_sub(at)
            ))
        }
        _ => Some(format!("{mnemonic} {operands}")),
    }
}
