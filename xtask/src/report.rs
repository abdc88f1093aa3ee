//! What is said about tests, and how many there were.
//!
//! Key type: [`Report`]. Neighbours: `test` feeds it the events of
//! [`lab_init::runner`], `ci` closes with it.

use std::fmt;

use lab_init::protocol::{Event, Outcome};

/// How many of the slowest tests are named.
const SLOWEST: usize = 15;
/// What is slow, in milliseconds.
const SLOW: u64 = 10_000;

/// Counts, and what is needed to say more.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Report {
    passed: usize,
    failed: usize,
    skipped: usize,
    /// Every failure, by place and name.
    failures: Vec<String>,
    /// How long each test took, in milliseconds, by place and name.
    took: Vec<(u64, String)>,
    running: Option<String>,
    output: Vec<u8>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)?;
        if self.skipped > 0 {
            write!(f, ", {} skipped", self.skipped)?;
        }
        Ok(())
    }
}

impl Report {
    /// Takes and shows what happened in `place`.
    pub(crate) fn event(&mut self, place: &str, event: Event) {
        match event {
            Event::Ready { kernel } => println!("== {place}: kernel {kernel} is up"),
            Event::TestStarted { job, name } => {
                self.running = Some(format!("{job}::{name}"));
                self.output.clear();
            }
            Event::TestEnded { outcome, millis } => self.ended(place, &outcome, millis),
            Event::TestIgnored { job, name } => {
                println!("SKIP {job}::{name} (#[ignore])");
                self.skipped += 1;
            }
            Event::Output { data, .. } => self.output.extend(data.0),
            Event::JobFailed { job, why } => self.fail(place, &job, &why),
            Event::Heartbeat | Event::ProgramEnded { .. } | Event::File { .. } | Event::Done => {}
        }
    }

    fn ended(&mut self, place: &str, outcome: &Outcome, millis: u64) {
        let name = self.running.take().unwrap_or_default();
        let seconds = millis as f64 / 1000.0;
        self.took.push((millis, format!("{name} ({place})")));
        let output = String::from_utf8_lossy(&std::mem::take(&mut self.output)).into_owned();
        if !output.is_empty() {
            println!("---- output of {name} ----\n{}\n----", output.trim_end());
        }
        match outcome {
            Outcome::Passed => {
                println!("PASS {name} ({seconds:.2} s)");
                self.passed += 1;
            }
            Outcome::Failed { how } => {
                self.fail(place, &name, &format!("{how}, after {seconds:.2} s"));
            }
        }
    }

    /// Counts and shows a failure.
    pub(crate) fn fail(&mut self, place: &str, name: &str, why: &str) {
        println!("FAIL {name}: {why}");
        self.failed += 1;
        self.failures.push(format!("{name} ({place})"));
    }

    /// A place that was lost, and the test that was running there.
    pub(crate) fn lost(&mut self, place: &str, why: &str) {
        let name = self.running.take().unwrap_or_else(|| "the run".to_owned());
        self.fail(place, &name, why);
        println!("what would have come after it in {place} did not run");
    }

    /// Adds what was counted elsewhere.
    pub(crate) fn add(&mut self, passed: usize, skipped: usize) {
        self.passed += passed;
        self.skipped += skipped;
    }

    pub(crate) fn failed(&self) -> usize {
        self.failed
    }

    /// The tests that took longest, the longest first.
    fn slowest(&self) -> Vec<&(u64, String)> {
        let mut slow: Vec<_> = self.took.iter().filter(|(took, _)| *took >= SLOW).collect();
        slow.sort_by(|a, b| b.cmp(a));
        slow.truncate(SLOWEST);
        slow
    }

    /// Says what was slow and what failed, closes with the counts, and tells whether all is well:
    /// something ran, and nothing failed.
    pub(crate) fn close(&self) -> bool {
        let slowest = self.slowest();
        if !slowest.is_empty() {
            println!("slowest:");
            let seconds = |millis: u64| millis / 1000;
            slowest
                .iter()
                .for_each(|(took, name)| println!("    {:>4} s  {name}", seconds(*took)));
        }
        if !self.failures.is_empty() {
            println!("failed:");
            self.failures.iter().for_each(|name| println!("    {name}"));
        }
        let ran = self.passed + self.failed > 0;
        if !ran {
            println!("no test ran");
        }
        println!("{self}");
        ran && self.failed == 0
    }
}

#[cfg(test)]
mod tests {
    use lab_init::protocol::{Blob, Stream};

    use super::*;

    fn started(name: &str) -> Event {
        Event::TestStarted {
            job: "job".to_owned(),
            name: name.to_owned(),
        }
    }

    fn ended(outcome: Outcome) -> Event {
        Event::TestEnded {
            outcome,
            millis: 10,
        }
    }

    #[test]
    fn the_slowest_are_named() {
        let mut report = Report::default();
        for (name, millis) in [("a", 20_000), ("b", 9_999), ("c", 30_000)] {
            report.event("vm", started(name));
            let outcome = Outcome::Passed;
            report.event("vm", Event::TestEnded { outcome, millis });
        }
        let names: Vec<_> = report.slowest().iter().map(|(_, name)| &**name).collect();
        assert_eq!(names, ["job::c (vm)", "job::a (vm)"]);
    }

    #[test]
    fn everything_is_counted() {
        let mut report = Report::default();
        assert!(!report.close(), "no test ran");
        report.event("vm", started("a"));
        report.event("vm", ended(Outcome::Passed));
        assert!(report.close());
        report.event(
            "vm",
            Event::TestIgnored {
                job: "job".to_owned(),
                name: "b".to_owned(),
            },
        );
        report.event("vm", started("c"));
        let data = Blob(b"words".to_vec());
        report.event(
            "vm",
            Event::Output {
                stream: Stream::Stdout,
                data,
            },
        );
        report.event(
            "vm",
            ended(Outcome::Failed {
                how: "exit status: 101".to_owned(),
            }),
        );
        report.event("vm", started("d"));
        report.lost("vm", "the kernel panicked");
        let why = "cannot start".to_owned();
        report.event(
            "vm",
            Event::JobFailed {
                job: "other".to_owned(),
                why,
            },
        );
        assert_eq!(report.to_string(), "1 passed, 3 failed, 1 skipped");
        assert_eq!(
            report.failures,
            ["job::c (vm)", "job::d (vm)", "other (vm)"]
        );
        assert!(!report.close());
    }
}
