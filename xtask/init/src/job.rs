//! What is to be run: a list of [`Job`]s, given to the VM as JSON in
//! [`JOBS_PATH`].
//!
//! Neighbours: `runner` carries jobs out, `xtask` writes them.

use std::{collections::BTreeMap, num::ParseIntError, path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};

/// Where the VM finds its job list.
pub const JOBS_PATH: &str = "/lab/jobs.json";
/// The folder whose files come back to the host, named to programs by [`OUT_VAR`].
pub const OUT_DIR: &str = "/out";
/// The variable that names the folder for files that a program wants to keep.
pub const OUT_VAR: &str = "RVBPF_OUT";

/// The variable that gives every test so many seconds, if that is more than it has.
pub const LIMIT_VAR: &str = "RVBPF_TEST_LIMIT_SECS";
/// The variable that, whatever it holds, shows what tests print that pass.
pub const SHOW_VAR: &str = "RVBPF_SHOW_OUTPUT";

/// How long a test may take.
pub const TEST_LIMIT: Duration = Duration::from_secs(120);
/// How long a test may take whose function name starts with [`SLOW_PREFIX`].
pub const SLOW_TEST_LIMIT: Duration = Duration::from_secs(600);
/// Function names with this prefix ask for [`SLOW_TEST_LIMIT`].
pub const SLOW_PREFIX: &str = "slow_";

/// One executable and what to do with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// How people call it, such as `rvbpf::stress` or `hook_sqlite`.
    pub name: String,
    /// The executable.
    pub path: PathBuf,
    /// Its working folder.
    pub dir: PathBuf,
    /// Variables added to the environment.
    pub env: BTreeMap<String, String>,
    /// What to do with it.
    pub kind: Kind,
    /// A program, with arguments, that starts the executable; empty for none.
    pub launcher: Vec<String>,
}

/// What to do with a job's executable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// A libtest executable: list its tests, then one process per test.
    Tests {
        /// Only tests whose names contain one of these; all when empty.
        filters: Vec<String>,
        /// No tests whose names contain one of these.
        skip: Vec<String>,
    },
    /// A program: run it once, its output streamed.
    Program {
        /// Its arguments.
        args: Vec<String>,
    },
}

impl Job {
    /// How long the test `name` (`module::function`) may take.
    ///
    /// # Errors
    /// [`LIMIT_VAR`] is no number.
    pub fn test_limit(&self, name: &str) -> Result<Duration, ParseIntError> {
        let function = name.rsplit("::").next().unwrap_or(name);
        let usual = if function.starts_with(SLOW_PREFIX) {
            SLOW_TEST_LIMIT
        } else {
            TEST_LIMIT
        };
        let given = self.env.get(LIMIT_VAR).map(|secs| secs.parse());
        Ok(usual.max(Duration::from_secs(given.transpose()?.unwrap_or(0))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(given: Option<&str>, name: &str) -> Result<Duration, ParseIntError> {
        let given = given.map(|secs| (LIMIT_VAR.to_owned(), secs.to_owned()));
        let job = Job {
            name: "rvbpf::stress".into(),
            path: PathBuf::new(),
            dir: PathBuf::new(),
            env: given.into_iter().collect(),
            kind: Kind::Tests {
                filters: Vec::new(),
                skip: Vec::new(),
            },
            launcher: Vec::new(),
        };
        job.test_limit(name)
    }

    #[test]
    fn only_the_function_name_asks_for_time() {
        for (name, want) in [
            ("slow_storm", SLOW_TEST_LIMIT),
            ("poke::tests::slow_storm", SLOW_TEST_LIMIT),
            ("slow_module::quick", TEST_LIMIT),
            ("not_slow_storm", TEST_LIMIT),
        ] {
            assert_eq!(limit(None, name), Ok(want), "{name}");
        }
    }

    #[test]
    fn the_user_may_give_more_time_not_less() {
        let secs = Duration::from_secs;
        assert_eq!(limit(Some("3600"), "slow_storm"), Ok(secs(3600)));
        assert_eq!(limit(Some("200"), "slow_storm"), Ok(SLOW_TEST_LIMIT));
        assert_eq!(limit(Some("200"), "storm"), Ok(secs(200)));
        assert!(limit(Some("an hour"), "storm").is_err());
    }
}
