//! `cargo xtask run` and `demo`: one program in the lab.
//!
//! Key types: [`Program`]. Neighbours: `lab` builds and runs, `bench` runs its
//! programs through here.

use std::{
    io::{Write, stderr, stdout},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use lab_init::{
    job::Kind,
    protocol::{Event, Stream},
};

use crate::{
    cargo::{Executable, Want},
    lab::{Lab, Load, Place},
    vm::Console,
};

/// What is to be run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Program {
    pub(crate) what: What,
    /// The program's arguments.
    pub(crate) args: Vec<String>,
}

/// Where the program comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum What {
    /// Cargo builds it, given these arguments: `--example NAME` and the like.
    Target(Vec<String>),
    /// It is there already.
    File(PathBuf),
}

/// With or without optimisation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Profile {
    Dev,
    Release,
}

impl Program {
    /// Reads `--example NAME ARGS...`, `--bin NAME ARGS...`, either with
    /// `-p PACKAGE` before it, or `PATH ARGS...`.
    pub(crate) fn parse(words: &[String]) -> Result<Self> {
        const HOW: &str = "say what to run: `-- --example NAME`, `-- --bin NAME` (either with \
                           `-p PACKAGE` before it) or `-- PATH`, and then the program's arguments";
        let mut target = Vec::new();
        let mut rest = words.iter();
        while let Some(word) = rest.next() {
            match word.as_str() {
                option @ ("-p" | "--package" | "--example" | "--bin") => {
                    let name = rest
                        .next()
                        .with_context(|| format!("{option} wants a name"))?;
                    target.extend([option.to_owned(), name.clone()]);
                    if matches!(option, "--example" | "--bin") {
                        let args = rest.as_slice();
                        let args = args
                            .strip_prefix(&["--".to_owned()])
                            .unwrap_or(args)
                            .to_vec();
                        return Ok(Self {
                            what: What::Target(target),
                            args,
                        });
                    }
                }
                path if target.is_empty() && !path.starts_with('-') => {
                    let (what, args) = (What::File(path.into()), rest.as_slice().to_vec());
                    return Ok(Self { what, args });
                }
                _ => bail!(HOW),
            }
        }
        bail!(HOW)
    }
}

/// Builds `program` and what it needs.
pub(crate) fn load(
    lab: &Lab,
    program: &Program,
    profile: Profile,
    env: &[(&str, &str)],
) -> Result<Load> {
    let kind = Kind::Program {
        args: program.args.clone(),
    };
    match &program.what {
        What::Target(target) => {
            let mut args: Vec<&str> = target.iter().map(String::as_str).collect();
            args.extend((profile == Profile::Release).then_some("--release"));
            let built = lab.build("build", &args, Want::Programs)?;
            let [executable] = built.executables.as_slice() else {
                bail!("cargo built {} programs, not one", built.executables.len());
            };
            let mut load = Load::of(&built);
            load.add(executable, kind, env);
            Ok(load)
        }
        What::File(path) => {
            let path = path
                .canonicalize()
                .with_context(|| path.display().to_string())?;
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            let dir = path.parent().unwrap_or(Path::new("/")).to_owned();
            let mut load = Load::default();
            load.add(&Executable { name, path, dir }, kind, env);
            Ok(load)
        }
    }
}

/// Runs a load of one program, its output going to ours, and gives its exit code.
pub(crate) fn run(lab: &Lab, place: Place, load: &Load, console: Console) -> Result<i32> {
    run_with(lab, place, load, console, &mut |event| {
        if let Event::Output { stream, data } = event {
            write_out(stream, &data.0);
        }
    })
}

/// The same, with `sink` told what happens.
pub(crate) fn run_with(
    lab: &Lab,
    place: Place,
    load: &Load,
    console: Console,
    sink: &mut dyn FnMut(Event),
) -> Result<i32> {
    let mut code = None;
    let mut failed = None;
    lab.run(place, load, console, &mut |event| match event {
        Event::ProgramEnded { code: ended, .. } => code = Some(ended),
        Event::JobFailed { job, why } => failed = Some(format!("{job}: {why}")),
        other => sink(other),
    })?;
    if let Some(why) = failed {
        bail!(why);
    }
    code.context("the program's end was not told")
}

/// A closed output (`| head`) is no reason to stop the program.
fn write_out(stream: Stream, bytes: &[u8]) {
    let _ = match stream {
        Stream::Stdout => stdout().write_all(bytes).and_then(|()| stdout().flush()),
        Stream::Stderr => stderr().write_all(bytes),
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Program> {
        Program::parse(
            &line
                .split_whitespace()
                .map(str::to_owned)
                .collect::<Vec<_>>(),
        )
    }

    #[test]
    fn command_lines_are_read() {
        let target = |words: &str| What::Target(words.split(' ').map(str::to_owned).collect());
        for (line, what, args) in [
            ("--example a x -y", target("--example a"), "x -y"),
            ("-p p --bin a -- --z", target("-p p --bin a"), "--z"),
            ("./file --x", What::File("./file".into()), "--x"),
        ] {
            let got = parse(line).unwrap();
            assert_eq!(
                (got.what, got.args.join(" ")),
                (what, args.to_owned()),
                "{line}"
            );
        }
    }

    #[test]
    fn what_cannot_be_read_says_how() {
        for line in ["", "--what", "-p p", "-p p file"] {
            let error = parse(line).unwrap_err().to_string();
            assert!(error.contains("say what to run"), "{line}: {error}");
        }
        assert!(
            parse("--example")
                .unwrap_err()
                .to_string()
                .contains("wants a name")
        );
    }
}
