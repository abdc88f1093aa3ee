//! Where things are: the checkout, cargo's target folder, the lab's cache.
//!
//! Key type: [`Workspace`]. Neighbours: everybody asks it.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::process::output_of;

/// The target that everything is built for.
pub(crate) const TARGET: &str = "riscv64gc-unknown-linux-gnu";

/// A package of this workspace or one that it depends on, as `cargo metadata`
/// tells it.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) license: Option<String>,
}

/// What `cargo metadata` tells.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Workspace {
    #[serde(rename = "workspace_root")]
    pub(crate) root: PathBuf,
    #[serde(rename = "target_directory")]
    pub(crate) target_dir: PathBuf,
    pub(crate) packages: Vec<Package>,
}

impl Workspace {
    /// The workspace that this program was built from.
    pub(crate) fn find() -> Result<Self> {
        Self::metadata(&["--no-deps"])
    }

    /// The same, with all packages that it depends on.
    pub(crate) fn with_dependencies() -> Result<Self> {
        Self::metadata(&[])
    }

    fn metadata(args: &[&str]) -> Result<Self> {
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
        let mut cargo = host_cargo();
        cargo.args([
            "metadata",
            "--format-version=1",
            "--locked",
            "--manifest-path",
        ]);
        let json = output_of(cargo.arg(manifest).args(args), "cargo metadata")?;
        serde_json::from_str(&json).context("cargo metadata")
    }

    /// Where the lab's own things go: under the target folder, where
    /// `cargo clean` finds them.
    pub(crate) fn lab_dir(&self) -> PathBuf {
        self.target_dir.join("lab")
    }

    /// Where benches leave their results.
    pub(crate) fn bench_dir(&self) -> PathBuf {
        self.target_dir.join("bench")
    }
}

/// The cargo that runs this program.
pub(crate) fn host_cargo() -> Command {
    Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// The lab's folder in the user's cache.
pub(crate) fn cache_dir() -> Result<PathBuf> {
    let set = |name| {
        env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    let base = set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")));
    match base {
        Some(base) => Ok(base.join("rvbpf")),
        None => bail!(
            "neither XDG_CACHE_HOME nor HOME is set: the lab does not know where its cache is"
        ),
    }
}
