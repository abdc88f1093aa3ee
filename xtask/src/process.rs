//! Running other programs, with errors that say what went wrong.
//!
//! Neighbours: everybody who starts a program; `progress` shows how far it is.

use std::{
    collections::VecDeque,
    io::{BufRead, BufReader},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

use crate::progress::Step;

/// How many of a failed program's last lines are shown.
const TAIL_LINES: usize = 20;

/// Runs `command`, which people call `what`, and gives its standard output.
pub(crate) fn output_of(command: &mut Command, what: &str) -> Result<String> {
    let output = command.stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("cannot start {what}"))?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        bail!("{what} failed ({}):\n{}", output.status, text.trim_end());
    }
    String::from_utf8(output.stdout).with_context(|| format!("{what} wrote something odd"))
}

/// Runs `command`, shows its standard error line by line in `step`, and keeps
/// the last lines for the error.
pub(crate) fn run_step(command: &mut Command, what: &str, step: &Step) -> Result<()> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {what}"))?;
    let mut tail = Tail::default();
    let lines = BufReader::new(child.stderr.take().context("no pipe")?).split(b'\n');
    for line in lines {
        let line = String::from_utf8_lossy(&line?).trim_end().to_owned();
        step.message(&line);
        tail.push(line);
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("{}", explain(what, &status.to_string(), &tail.text()));
    }
    Ok(())
}

/// Runs `command` with our own output; whether it succeeded.
pub(crate) fn succeeds(command: &mut Command, what: &str) -> Result<bool> {
    let status = command.stdin(Stdio::null()).status();
    Ok(status
        .with_context(|| format!("cannot start {what}"))?
        .success())
}

/// Whether `command` can be started and succeeds, silently.
pub(crate) fn probe(command: &mut Command) -> bool {
    let quiet = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    quiet.status().is_ok_and(|status| status.success())
}

/// One sentence for the failures that users can do something about, then what
/// the program said.
fn explain(what: &str, status: &str, said: &str) -> String {
    const NETWORK: [&str; 7] = [
        "Temporary failure resolving",
        "Could not resolve",
        "Couldn't resolve",
        "Could not connect",
        "Network is unreachable",
        "failed to download",
        "Connection timed out",
    ];
    let found = |words: &[&str]| words.iter().any(|word| said.contains(word));
    // Named first: such a server's failures speak of the network too.
    let sentence = if found(&["Mirror sync in progress"]) {
        format!("{what} failed: the package server is being updated; try again in an hour")
    } else if found(&NETWORK) {
        format!("{what} failed: the network or the package server cannot be reached")
    } else if found(&["No space left on device"]) {
        format!("{what} failed: no space left on the disk")
    } else {
        format!("{what} failed ({status})")
    };
    format!("{sentence}; it said:\n{said}")
}

/// The last lines of something long.
#[derive(Debug, Default)]
pub(crate) struct Tail(VecDeque<String>);

impl Tail {
    pub(crate) fn push(&mut self, line: String) {
        if self.0.len() == TAIL_LINES {
            self.0.pop_front();
        }
        self.0.push_back(line);
    }

    pub(crate) fn text(&self) -> String {
        let lines: Vec<_> = self.0.iter().map(|line| format!("    {line}")).collect();
        lines.join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_that_users_can_mend_have_a_sentence() {
        for (said, want) in [
            ("E: Temporary failure resolving 'mirror'", "network"),
            ("error: failed to download from", "network"),
            (
                "E: failed to download. Mirror sync in progress?",
                "being updated",
            ),
            ("tar: write error: No space left on device", "no space"),
            ("E: something else", "exit status: 1"),
        ] {
            let got = explain("making the tree", "exit status: 1", said);
            let first = got.lines().next().unwrap();
            assert!(first.contains(want), "{said}: {first}");
            assert!(got.contains(said));
        }
    }

    #[test]
    fn a_failed_program_is_quoted() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo gone wrong >&2; exit 3"]);
        let error = run_step(&mut command, "it", &Step::hidden()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "it failed (exit status: 3); it said:\n    gone wrong"
        );
        let error = output_of(&mut command, "it").unwrap_err();
        assert_eq!(error.to_string(), "it failed (exit status: 3):\ngone wrong");
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = output_of(&mut Command::new("/nowhere/qemu"), "qemu").unwrap_err();
        assert_eq!(error.to_string(), "cannot start qemu");
        assert!(!probe(&mut Command::new("/nowhere/qemu")));
    }

    #[test]
    fn a_tail_is_the_end() {
        let mut tail = Tail::default();
        (0..TAIL_LINES + 2).for_each(|i| tail.push(i.to_string()));
        let text = tail.text();
        assert_eq!(text.lines().count(), TAIL_LINES);
        assert_eq!(text.lines().next(), Some("    2"));
    }
}
