//! What takes long says so: a spinner on a terminal, plain lines elsewhere.
//!
//! Key type: [`Step`].

use std::{
    io::{IsTerminal, stderr},
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};

/// One thing that takes long.
pub(crate) struct Step {
    label: String,
    start: Instant,
    /// None off a terminal.
    bar: Option<ProgressBar>,
    visible: Visible,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Visible {
    Yes,
    /// For tests.
    #[cfg_attr(not(test), expect(dead_code, reason = "made by tests only"))]
    No,
}

impl Step {
    /// Begins `label`, such as `making the Debian tree`.
    pub(crate) fn new(label: &str) -> Self {
        let bar = stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{spinner} {prefix} [{elapsed}] {wide_msg}");
            let style = style.unwrap_or_else(|_| ProgressStyle::default_spinner());
            let bar = ProgressBar::new_spinner()
                .with_style(style)
                .with_prefix(label.to_owned());
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        if bar.is_none() {
            eprintln!("{label} ...");
        }
        Self {
            label: label.to_owned(),
            start: Instant::now(),
            bar,
            visible: Visible::Yes,
        }
    }

    #[cfg(test)]
    pub(crate) fn hidden() -> Self {
        let label = String::new();
        Self {
            label,
            start: Instant::now(),
            bar: None,
            visible: Visible::No,
        }
    }

    /// How far it is.
    pub(crate) fn message(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.set_message(text.to_owned()),
            None if self.visible == Visible::Yes && text.starts_with("I: ") => {
                eprintln!("  {text}")
            }
            None => {}
        }
    }

    /// It is done.
    pub(crate) fn done(self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        eprintln!(
            "{}: done in {:.1} s",
            self.label,
            self.start.elapsed().as_secs_f64()
        );
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
