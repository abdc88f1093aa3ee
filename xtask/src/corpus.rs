//! The corpus of `bench jit`: programs in C, compiled for BPF, and for riscv64 as their peer.
//!
//! The bench runs where no compiler and no linker is. It gets two files: `corpus.json` with the
//! instructions of each program and the places in them that take the address of its memory, and
//! `libcorpus.so` with the same programs for the machine that it runs on.
//!
//! Key function: [`build`]. Neighbours: `clang` compiles, `bench` takes the files along.
//! Source: kernel `Documentation/bpf/llvm_reloc.rst`; RFC 9669, section 5.4 (64-bit constants).

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use object::{
    File, Object, ObjectSection, ObjectSymbol, Relocation, RelocationFlags, RelocationTarget,
    Section, Symbol,
    elf::{R_BPF_64_32, R_BPF_64_64},
};
use serde::Serialize;

use crate::{
    clang::Clang,
    lab::{Lab, Place},
    machine::Cpu,
    process::output_of,
};

/// Where the sources are, from the workspace's root.
const SOURCES: &str = "benches/jit/corpus";
/// The source that is no program.
const NATIVE: &str = "native.c";
/// The section with the programs' instructions, and the one with their memory.
const CODE: &str = "socket";
const MEMORY: &str = ".bss";

/// A program as the bench reads it.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Program {
    name: String,
    /// Each instruction as one little-endian number.
    insns: Vec<u64>,
    /// 64-bit constants, by their first instruction, that are an address: so far into the memory.
    addresses: Vec<(usize, u64)>,
    memory_bytes: u64,
    /// Where `in` and `out` are in the memory.
    in_off: u64,
    out_off: u64,
}

/// Compiles the corpus into `dir` for the machine of `place`, and gives the files that the bench
/// reads.
pub(crate) fn build(lab: &Lab, place: Place, dir: &Path) -> Result<Vec<PathBuf>> {
    let sources = lab.workspace.root.join(SOURCES);
    let clang = Clang::open(lab)?;
    fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
    let files = c_files(&sources)?;
    let mut programs = Vec::new();
    for file in files.iter().filter(|file| !file.ends_with(NATIVE)) {
        let name = file.file_stem().unwrap_or_default().to_string_lossy();
        let object = dir.join(format!("{name}.o"));
        let mut command = clang.command(&[dir, &sources]);
        command.args([
            "-target", "bpf", "-mcpu=v4", "-O2", "-Wall", "-Werror", "-c",
        ]);
        command.arg(file).arg("-o").arg(&object);
        output_of(&mut command, &format!("compiling {name} for BPF"))?;
        let bytes = fs::read(&object).with_context(|| object.display().to_string())?;
        programs.push(link(&name, &bytes).with_context(|| object.display().to_string())?);
    }
    let json = dir.join("corpus.json");
    fs::write(&json, serde_json::to_vec(&programs)?)?;

    let library = dir.join("libcorpus.so");
    let mut command = clang.command(&[dir, &sources]);
    command.args(["--target=riscv64-linux-gnu", "-mabi=lp64d", "-O2"]);
    command.arg(format!("-march={}", march(place)?));
    command.args([
        "-Wall",
        "-Werror",
        "-ffreestanding",
        "-fPIC",
        "-shared",
        "-nostdlib",
    ]);
    command.args(&files).arg("-o").arg(&library);
    output_of(&mut command, "compiling the corpus for riscv64")?;
    Ok(vec![json, library])
}

/// The sources, in the order of their names.
fn c_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(dir).with_context(|| dir.display().to_string())?;
    let files: std::io::Result<Vec<_>> = entries.map(|entry| Ok(entry?.path())).collect();
    let mut files = files?;
    files.retain(|file| file.extension().is_some_and(|extension| extension == "c"));
    files.sort();
    Ok(files)
}

/// The instructions that clang may use there.
fn march(place: Place) -> Result<String> {
    let here;
    let extensions = match place {
        Place::Vm(machine) => match machine.cpu {
            Cpu::Rv64gc => "",
            Cpu::U74 => "_zba_zbb",
            Cpu::Rva22 => "_zba_zbb_zbs",
            Cpu::Rva23 => "_v_zba_zbb_zbs_zicond",
        },
        Place::Here => {
            here = known(&fs::read_to_string("/proc/cpuinfo").context("/proc/cpuinfo")?);
            &here
        }
    };
    Ok(format!("rv64gc{extensions}"))
}

/// The extensions of that list that a `cpuinfo` tells of.
fn known(cpuinfo: &str) -> String {
    let isa = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("isa")?.split_once(": "));
    let isa = isa.map_or("", |(_, isa)| isa.trim());
    let (base, rest) = isa.split_once('_').unwrap_or((isa, ""));
    let vector = base.get(4..).is_some_and(|letters| letters.contains('v'));
    let mut found = String::from(if vector { "_v" } else { "" });
    for name in ["zba", "zbb", "zbs", "zicond"] {
        if rest.split('_').any(|word| word == name) {
            found += "_";
            found += name;
        }
    }
    found
}

/// The one program of an object.
fn link(name: &str, bytes: &[u8]) -> Result<Program> {
    let file = File::parse(bytes)?;
    let code = file
        .section_by_name(CODE)
        .with_context(|| format!("no section {CODE}"))?;
    let memory = file
        .section_by_name(MEMORY)
        .with_context(|| format!("no section {MEMORY}"))?;
    let symbol = |name: &str| {
        let found = file.symbol_by_name(name);
        found.with_context(|| format!("no symbol {name}"))
    };
    ensure!(
        symbol(name)?.address() == 0,
        "{name} is not the first function"
    );
    let insns = code.data()?.chunks_exact(8);
    let insns = insns.map(|b| u64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]));
    let mut program = Program {
        name: name.to_owned(),
        insns: insns.collect(),
        addresses: Vec::new(),
        memory_bytes: memory.size(),
        in_off: symbol("in")?.address(),
        out_off: symbol("out")?.address(),
    };
    for (at, relocation) in code.relocations() {
        let RelocationTarget::Symbol(index) = relocation.target() else {
            bail!("a relocation at {at:#x} against no symbol");
        };
        let symbol = file.symbol_by_index(index)?;
        program.relocate(at, &relocation, &symbol, (&code, &memory))?;
    }
    Ok(program)
}

impl Program {
    fn relocate(
        &mut self,
        at: u64,
        relocation: &Relocation,
        symbol: &Symbol<'_, '_>,
        (code, memory): (&Section<'_, '_>, &Section<'_, '_>),
    ) -> Result<()> {
        let RelocationFlags::Elf { r_type } = relocation.flags() else {
            bail!("a relocation at {at:#x} that is not ELF's");
        };
        // Addends are in the instructions.
        let insn = usize::try_from(at / 8)?;
        let place = self
            .insns
            .get_mut(insn)
            .context("a relocation outside the code")?;
        let imm = (*place >> 32) as u32 as i32;
        let of = |section: &Section<'_, '_>| symbol.section_index() == Some(section.index());
        match r_type {
            R_BPF_64_64 if of(memory) => {
                let off = symbol.address().wrapping_add_signed(imm.into());
                self.addresses.push((insn, off));
            }
            R_BPF_64_32 if of(code) => {
                let target = (symbol.address() / 8) as i64 + i64::from(imm) + 1;
                let imm = i32::try_from(target - insn as i64 - 1)?;
                *place = *place & 0xffff_ffff | u64::from(imm as u32) << 32;
            }
            _ => bail!(
                "instruction {insn} refers to {}, which is neither memory of `corpus.h` nor a \
                 function of {CODE}: programs of the corpus have no other data",
                symbol.name().unwrap_or("?"),
            ),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_machine_has_is_read() {
        let has = |isa: &str| known(&format!("processor\t: 0\nisa\t\t: {isa}\nmmu\t: sv39\n"));
        assert_eq!(has("rv64imafdc_zicntr_zba_zbb"), "_zba_zbb");
        assert_eq!(has("rv64imafdcv_zicond_zba"), "_v_zba_zicond");
        assert_eq!(has("rv64imafdc"), "");
        assert_eq!(known(""), "");
    }
}
