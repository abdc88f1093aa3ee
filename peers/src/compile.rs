//! How long it takes to compile a BPF program: ours, and rbpf's way through Cranelift.
//!
//! Both begin with a program that has been checked and end with code for an address. rbpf's call
//! sets Cranelift up and maps the code as well, which cannot be taken apart; for programs of more
//! than a few instructions that is little.
//!
//! Key function: [`compare`].

use std::time::Instant;

use rvbpf::RxAddr;
use rvbpf::bpf::{Env, Options, Program};
use serde::Serialize;

use crate::cranelift::Error;

/// How often each is compiled; the least counts, since everything else only adds.
const ROUNDS: usize = 9;

/// A row of a bench, as `cargo xtask bench` reads it.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// `compile/` and the program's name.
    pub row: String,
    /// Ours.
    pub value: f64,
    /// Of both.
    pub unit: &'static str,
    /// Who else.
    pub peer: Option<&'static str>,
    /// Theirs.
    pub peer_value: Option<f64>,
}

/// Compiles `program` both ways; without rbpf where it does not accept the program.
///
/// # Errors
/// A program that this crate cannot compile.
pub fn compare(name: &str, program: &Program) -> Result<Row, Error> {
    let peer_value = cranelift_us(program).ok();
    Ok(Row {
        row: format!("compile/{name}"),
        value: ours_us(program)?,
        unit: "us",
        peer: peer_value.map(|_| "cranelift"),
        peer_value,
    })
}

/// Microseconds that our compiler takes.
///
/// # Errors
/// A program that it refuses.
pub fn ours_us(program: &Program) -> Result<f64, Error> {
    let (env, options) = (Env::tracing(), Options::default());
    least_us(|| {
        let code = program.compile(&env, options, RxAddr::new(0x3f_8000_0000))?;
        std::hint::black_box(code.bytes());
        Ok(())
    })
}

/// Microseconds that rbpf's Cranelift backend takes.
///
/// # Errors
/// A program that rbpf does not accept or cannot compile.
pub fn cranelift_us(program: &Program) -> Result<f64, Error> {
    let bytes: Vec<u8> = program
        .insns()
        .iter()
        .flat_map(|insn| insn.to_bytes())
        .collect();
    let mut vm = rbpf::EbpfVmNoData::new(Some(&bytes))?;
    // Before the first there are things to be set up once.
    vm.cranelift_compile()?;
    least_us(|| Ok(vm.cranelift_compile()?))
}

fn least_us(mut f: impl FnMut() -> Result<(), Error>) -> Result<f64, Error> {
    let mut least = f64::INFINITY;
    for _ in 0..ROUNDS {
        let start = Instant::now();
        f()?;
        least = least.min(start.elapsed().as_secs_f64() * 1e6);
    }
    Ok(least)
}
