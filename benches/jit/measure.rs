//! The rows of the bench.

use std::path::{Path, PathBuf};

use rvbpf::Runtime;
use rvbpf::bpf::{Env, Interpreter, Options, Program};
use serde::Serialize;

use crate::corpus::{Library, Memory, Source};
use crate::count::{Count, Entry};
use crate::kernel::{Compiler, KernelProg, Map};

pub(crate) type Error = Box<dyn std::error::Error>;

/// The most instructions of a program that is interpreted.
const BUDGET: u64 = 10_000_000;

/// The geometric mean of executed instructions that must be reached, the kernel's being 1.
const TARGET: f64 = 0.7;

/// One number, and what it is compared with.
#[derive(Serialize)]
struct Row {
    row: String,
    value: f64,
    unit: &'static str,
    peer: &'static str,
    peer_value: f64,
}

impl Row {
    fn new(row: String, value: u64, unit: &'static str, peer: &'static str, theirs: u64) -> Self {
        Self {
            row,
            value: value as f64,
            unit,
            peer,
            peer_value: theirs as f64,
        }
    }

    fn ratio(&self) -> f64 {
        self.value / self.peer_value
    }

    /// Whether it is above what must be reached beside the kernel.
    fn misses(&self) -> bool {
        match self.row.as_str() {
            "geomean/executed" => self.ratio() > TARGET,
            row => row.starts_with("executed/") && self.ratio() > 1.0,
        }
    }
}

pub(crate) fn run() -> Result<(), Error> {
    let material = std::env::var_os("RVBPF_MATERIAL").map(PathBuf::from);
    let material = material.ok_or("no RVBPF_MATERIAL: use cargo xtask bench jit")?;
    let out = std::env::var_os("RVBPF_OUT").map_or_else(|| "target/bench".into(), PathBuf::from);
    std::fs::create_dir_all(&out)?;
    let _compiler = Compiler::on()?;
    let mut bench = Bench::new(&material, &out)?;
    for source in Source::read_all(&material)? {
        let measured = bench.program(&source);
        measured.map_err(|error| format!("{}: {error}", source.name))?;
    }
    bench.means();
    std::fs::write(
        out.join("jit.json"),
        serde_json::to_vec_pretty(&bench.rows)?,
    )?;
    let missed = bench.rows.iter().filter(|row| row.misses());
    let missed: Vec<&str> = missed.map(|row| row.row.as_str()).collect();
    match missed.is_empty() {
        true => Ok(()),
        false => Err(format!("more than their targets: {}", missed.join(", ")).into()),
    }
}

struct Bench {
    rt: Runtime,
    env: Env,
    options: Options,
    library: Library,
    count: Count,
    /// What surrounds a run in the kernel.
    around: u64,
    /// Where code is kept, if it is.
    keep: Option<PathBuf>,
    rows: Vec<Row>,
}

impl Bench {
    fn new(material: &Path, out: &Path) -> Result<Self, Error> {
        let mut count = Count::new()?;
        let around = surroundings(&mut count)?;
        let mut options = Options::default();
        let known = &mut options.features;
        // The kernel's compiler does not know them.
        (known.zbs, known.zicond, known.zcb) = (false, false, false);
        println!("extensions of both sides: {:?}", options.features);
        Ok(Self {
            rt: Runtime::new()?,
            env: Env::new(),
            options,
            library: Library::open(material)?,
            count,
            around,
            keep: std::env::var_os("RVBPF_KEEP").map(|_| out.to_owned()),
            rows: Vec::new(),
        })
    }

    fn program(&mut self, source: &Source) -> Result<(), Error> {
        let input = crate::inputs::of(&source.name);
        let native = self.native(source, &input)?;
        self.interpret(source, &input)?
            .expect(&native, "interpreted")?;
        let ours = self.compiled(source, &input)?;
        ours.expect(&native, "compiled")?;
        let kernel = self.kernel(source, &input)?;
        kernel.expect(&native, "in the kernel")?;
        let name = &source.name;
        self.rows.extend([
            Row::new(
                format!("executed/{name}"),
                ours.insns,
                "insns",
                "kernel",
                kernel.insns,
            ),
            Row::new(
                format!("native/{name}"),
                ours.insns,
                "insns",
                "clang",
                native.insns,
            ),
            Row::new(
                format!("bytes/{name}"),
                ours.bytes,
                "bytes",
                "kernel",
                kernel.bytes,
            ),
        ]);
        Ok(())
    }

    fn interpret(&self, source: &Source, input: &[u8]) -> Result<Outcome, Error> {
        let memory = Memory::new(source, input);
        let program = Program::new(source.insns_at(memory.addr()))?;
        let interpreter = Interpreter::new(&program, &self.env)?;
        // SAFETY: 1. programs of the corpus keep to their memory, which the kernel has verified or
        // will.
        let result = unsafe { interpreter.run([0; 5], BUDGET) }?;
        Ok(Outcome::new(result as u32, memory.out()))
    }

    fn compiled(&mut self, source: &Source, input: &[u8]) -> Result<Outcome, Error> {
        let memory = Memory::new(source, input);
        let program = Program::new(source.insns_at(memory.addr()))?;
        let program = program.with_name(source.name.clone());
        let prog = self.rt.load_with(&program, &self.env, self.options)?;
        self.keep(&source.name, "ours", prog.compiled().bytes())?;
        // SAFETY: 1. as above: interpreted, it has come to its end.
        let result = unsafe { prog.run([0; 5]) }?;
        // SAFETY: 1. the same. 2. what is called lives as long as `prog`.
        let insns = unsafe { self.count.calls(Entry(prog.rx().start.get())) }?;
        Ok(Outcome {
            insns,
            bytes: prog.compiled().bytes().len() as u64,
            ..Outcome::new(result as u32, memory.out())
        })
    }

    fn native(&mut self, source: &Source, input: &[u8]) -> Result<Outcome, Error> {
        self.library.fill(input);
        let entry = self.library.entry(&source.name)?;
        // SAFETY: 1. the library's programs keep to its memory.
        let result = unsafe { entry.call() };
        // SAFETY: 1. the same. 2. the library stays.
        let insns = unsafe { self.count.calls(entry) }?;
        Ok(Outcome {
            insns,
            ..Outcome::new(result, self.library.out())
        })
    }

    fn kernel(&mut self, source: &Source, input: &[u8]) -> Result<Outcome, Error> {
        let map = Map::new(&source.memory(input))?;
        let prog = KernelProg::load(&source.insns_of(map.fd()))?;
        let image = prog.image()?;
        self.keep(&source.name, "kernel", &image)?;
        let result = prog.run(1)?;
        let taken = self.count.per_run(|runs| prog.run(runs).map(drop))?;
        Ok(Outcome {
            insns: taken - self.around,
            bytes: image.len() as u64,
            ..Outcome::new(result, source.out_of(&map.value()?))
        })
    }

    fn keep(&self, name: &str, whose: &str, code: &[u8]) -> Result<(), Error> {
        match &self.keep {
            Some(dir) => Ok(std::fs::write(
                dir.join(format!("{name}.{whose}.bin")),
                code,
            )?),
            None => Ok(()),
        }
    }

    fn means(&mut self) {
        for kind in ["executed", "native", "bytes"] {
            let rows = self.rows.iter().filter(|row| row.row.starts_with(kind));
            let logs: Vec<f64> = rows.map(|row| row.ratio().ln()).collect();
            let mean = (logs.iter().sum::<f64>() / logs.len() as f64).exp();
            let peer = match kind {
                "native" => "clang",
                _ => "kernel",
            };
            self.rows.push(Row {
                row: format!("geomean/{kind}"),
                value: mean,
                unit: "of the peer's",
                peer,
                peer_value: 1.0,
            });
        }
    }
}

/// What one run in the kernel takes beyond the program's own instructions.
fn surroundings(count: &mut Count) -> Result<u64, Error> {
    /// `r0 = 0; exit`.
    const EMPTY: [u64; 2] = [0xb7, 0x95];
    let empty = KernelProg::load(&EMPTY)?;
    let taken = count.per_run(|runs| empty.run(runs).map(drop))?;
    let image = empty.image()?;
    Ok(taken - straight_insns(&image)?)
}

/// How many instructions a code without branches executes: all up to its return.
fn straight_insns(code: &[u8]) -> Result<u64, Error> {
    const C_JR_RA: [u8; 2] = [0x82, 0x80];
    const RET: [u8; 4] = [0x67, 0x80, 0x00, 0x00];
    let (mut at, mut insns) = (0, 0);
    while let Some(half) = code.get(at..at + 2) {
        insns += 1;
        if half == C_JR_RA || code.get(at..at + 4) == Some(&RET) {
            return Ok(insns);
        }
        // A conditional branch or a jump, of either size.
        let word = u16::from_le_bytes([half[0], half[1]]);
        let wide = word & 3 == 3;
        let branches = match wide {
            true => word & 0x7f >= 0x63,
            false => word & 3 == 1 && word >> 13 >= 5,
        };
        if branches {
            return Err("the kernel's empty program branches".into());
        }
        at += if wide { 4 } else { 2 };
    }
    Err("the kernel's empty program does not return".into())
}

/// What a program did.
struct Outcome {
    result: u32,
    out: Vec<u8>,
    insns: u64,
    bytes: u64,
}

impl Outcome {
    fn new(result: u32, out: Vec<u8>) -> Self {
        Self {
            result,
            out,
            insns: 0,
            bytes: 0,
        }
    }

    /// Whether it did what native code did.
    fn expect(&self, native: &Self, way: &str) -> Result<(), Error> {
        if self.result != native.result {
            let (got, want) = (self.result, native.result);
            return Err(format!("{way}: gave {got:#x}, native code {want:#x}").into());
        }
        match (0..native.out.len()).find(|&i| self.out.get(i) != native.out.get(i)) {
            Some(i) => Err(format!("{way}: byte {i} of its output is not native code's").into()),
            None => Ok(()),
        }
    }
}
