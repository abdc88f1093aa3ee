//! The crates that the tree's cargo builds from.
//!
//! It runs without network, so the host's cargo, which knows the host's
//! certificates and settings, lays the crates of `Cargo.lock` into the cache,
//! and a cargo home of the lab's own says that they are there.
//!
//! Key function: [`cargo_home`]. Source: `cargo-vendor(1)`, the Cargo Book's
//! "Source Replacement".

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use crate::{
    cache::{Cache, RoomMib, key_of},
    process::run_step,
    progress::Step,
    workspace::{Workspace, host_cargo},
};

const ROOM: RoomMib = RoomMib(1 << 10);
/// How many lock files' crates are kept, for those who go back and forth.
const KEEP: usize = 4;

/// The folder to be the tree's `CARGO_HOME`, for the crates of `Cargo.lock`.
pub(crate) fn cargo_home(cache: &Cache, workspace: &Workspace) -> Result<PathBuf> {
    let lock_path = workspace.root.join("Cargo.lock");
    let lock = fs::read(&lock_path).with_context(|| lock_path.display().to_string())?;
    let key = key_of(&lock);
    let home = cache.path(&format!("vendor-{key}"));
    let make = |dir: &Path| {
        let step = Step::new("fetching the crates of Cargo.lock (once)");
        let mut cargo = host_cargo();
        cargo.args(["vendor", "--locked", "--versioned-dirs", "--manifest-path"]);
        cargo
            .arg(workspace.root.join("Cargo.toml"))
            .arg(dir.join("crates"));
        run_step(&mut cargo, "fetching crates", &step)?;
        // The folder's name when it is whole.
        let crates = home.join("crates");
        let config = format!(
            "[source.crates-io]\nreplace-with = \"lab\"\n\n[source.lab]\ndirectory = {:?}\n",
            crates.display().to_string(),
        );
        fs::write(dir.join("config.toml"), config)?;
        step.done();
        Ok(())
    };
    cache.folder(("vendor", &key), KEEP, ROOM, make)
}
