//! What is to be measured.
//!
//! Key type: [`Plan`]. Neighbour: `run` does it.

use std::path::PathBuf;

use super::Error;
use super::error::MAX_PROGRAMS;
use super::order::Order;
use super::place::Layout;
use super::spec::TlbSpec;

/// What is to be measured, and where it is written to.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// From few to many, at least one.
    pub(crate) programs: Vec<usize>,
    pub(crate) layouts: Vec<Layout>,
    pub(crate) orders: Vec<Order>,
    /// The core that is modelled.
    pub(crate) spec: TlbSpec,
    /// How often counters count the same.
    pub(crate) runs: usize,
    /// Any if not given.
    pub(crate) hart: Option<usize>,
    pub(crate) out: PathBuf,
}

impl Plan {
    /// Everything, with the U74 as the model.
    ///
    /// # Errors
    /// [`Error::Spec`], if the file that comes with the benchmark is wrong.
    pub(crate) fn full() -> Result<Self, Error> {
        let out = std::env::var_os("RVBPF_OUT");
        Ok(Self {
            programs: (0..=MAX_PROGRAMS.ilog2()).map(|log| 1 << log).collect(),
            layouts: Layout::ALL.into(),
            orders: Order::ALL.into(),
            spec: spec_of("u74.tlb".into(), include_str!("u74.tlb"))?,
            runs: 7,
            hart: None,
            out: out.map_or_else(|| "target/bench".into(), PathBuf::from),
        })
    }

    /// The same with what the arguments of a command line say.
    ///
    /// # Errors
    /// The [`Error`] that says what an argument should be.
    pub(crate) fn with_args(
        mut self,
        args: impl IntoIterator<Item = String>,
    ) -> Result<Self, Error> {
        let mut args = args.into_iter();
        while let Some(option) = args.next() {
            // Cargo gives it to every bench.
            if option == "--bench" {
                continue;
            }
            let known = [
                "--programs",
                "--layout",
                "--order",
                "--tlb",
                "--runs",
                "--hart",
                "--out",
            ];
            if !known.contains(&option.as_str()) {
                return Err(Error::UnknownOption { found: option });
            }
            let value = args.next().ok_or(Error::NoValue {
                option: option.clone(),
            })?;
            match option.as_str() {
                "--programs" => self.programs = each(&value, programs_of)?,
                "--layout" => self.layouts = each(&value, layout_of)?,
                "--order" => self.orders = each(&value, order_of)?,
                "--tlb" => self.spec = read_spec(value.into())?,
                "--runs" => self.runs = runs_of(value)?,
                "--hart" => {
                    let hart = value.parse();
                    self.hart = Some(hart.map_err(|_| Error::HartNumber { found: value })?);
                }
                _ => self.out = value.into(),
            }
        }
        self.programs.sort_unstable();
        self.programs.dedup();
        Ok(self)
    }

    /// The number of programs that layouts are compared at: 4,096, or the largest there is.
    pub(crate) fn compared_at(&self) -> usize {
        let found = self.programs.iter().find(|&&nr| nr == 4096);
        found.or(self.programs.last()).copied().unwrap_or_default()
    }
}

fn each<T>(list: &str, read: fn(&str) -> Result<T, Error>) -> Result<Vec<T>, Error> {
    list.split(',').map(read).collect()
}

fn programs_of(word: &str) -> Result<usize, Error> {
    let nr = word
        .parse()
        .ok()
        .filter(|nr| (1..=MAX_PROGRAMS).contains(nr));
    let found = || word.to_owned();
    nr.ok_or_else(|| Error::Programs { found: found() })
}

fn runs_of(word: String) -> Result<usize, Error> {
    let nr = word.parse().ok().filter(|nr| (1..=1000).contains(nr));
    nr.ok_or(Error::Runs { found: word })
}

fn layout_of(word: &str) -> Result<Layout, Error> {
    let found = Layout::ALL.into_iter().find(|layout| layout.name() == word);
    found.ok_or_else(|| Error::UnknownLayout { found: word.into() })
}

fn order_of(word: &str) -> Result<Order, Error> {
    let found = Order::ALL.into_iter().find(|order| order.name() == word);
    found.ok_or_else(|| Error::UnknownOrder { found: word.into() })
}

fn read_spec(path: PathBuf) -> Result<TlbSpec, Error> {
    match std::fs::read_to_string(&path) {
        Ok(text) => spec_of(path, &text),
        Err(error) => Err(Error::Read { path, error }),
    }
}

fn spec_of(path: PathBuf, text: &str) -> Result<TlbSpec, Error> {
    TlbSpec::parse(text).map_err(|error| Error::Spec { path, error })
}
