//! What cargo built: its messages, read.
//!
//! Key type: [`Built`]. Neighbours: `lab` makes the command, `test`, `run` and
//! `bench` use what came out. Source: the Cargo Book, "External tools".

use std::{
    collections::BTreeSet,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::initramfs::files_under;

/// An executable that cargo built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Executable {
    /// The target's name, as in a path of Rust.
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    /// The folder of its package.
    pub(crate) dir: PathBuf,
}

/// What one call of cargo built.
#[derive(Debug, Default)]
pub(crate) struct Built {
    pub(crate) executables: Vec<Executable>,
    /// Shared libraries: cdylibs, and what build scripts of this workspace left
    /// in their `OUT_DIR`.
    pub(crate) libraries: Vec<PathBuf>,
    /// Folders in which build scripts say that libraries are.
    pub(crate) library_dirs: Vec<PathBuf>,
}

#[derive(Deserialize)]
struct Message {
    reason: String,
    #[serde(default)]
    package_id: String,
    manifest_path: Option<PathBuf>,
    target: Option<Target>,
    profile: Option<Profile>,
    #[serde(default)]
    filenames: Vec<PathBuf>,
    executable: Option<PathBuf>,
    #[serde(default)]
    linked_paths: Vec<String>,
    out_dir: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

#[derive(Deserialize)]
struct Profile {
    test: bool,
}

/// Which executables are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Want {
    /// Test executables.
    Tests,
    /// Programs: binaries, examples, benches.
    Programs,
}

/// Runs a build that was told `--message-format=json-render-diagnostics`.
/// Cargo's own words go to our standard error.
pub(crate) fn build(command: &mut Command, want: Want) -> Result<Built> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start cargo")?;
    let mut built = Built::default();
    let mut out_dirs = BTreeSet::new();
    for line in BufReader::new(child.stdout.take().context("no pipe")?).lines() {
        let line = line?;
        if let Ok(message) = serde_json::from_str(&line) {
            built.take(message, want, &mut out_dirs);
        }
    }
    if !child.wait()?.success() {
        bail!("cargo could not build it; see above");
    }
    for dir in out_dirs {
        built
            .libraries
            .extend(files_under(&dir, &is_shared_library)?);
    }
    Ok(built)
}

impl Built {
    fn take(&mut self, message: Message, want: Want, out_dirs: &mut BTreeSet<PathBuf>) {
        match message.reason.as_str() {
            "compiler-artifact" => {
                let Some((target, profile)) = message.target.zip(message.profile) else {
                    return;
                };
                if target.kind.iter().any(|kind| kind == "cdylib") {
                    let libraries = message.filenames.into_iter();
                    self.libraries
                        .extend(libraries.filter(|path| is_shared_library(path)));
                }
                let tests = profile.test && !target.kind.iter().any(|kind| kind == "bench");
                let wanted = tests == (want == Want::Tests);
                let dir = message.manifest_path.as_deref().and_then(Path::parent);
                if let (true, Some(path), Some(dir)) = (wanted, message.executable, dir) {
                    let (name, dir) = (target.name.replace('-', "_"), dir.to_owned());
                    self.executables.push(Executable { name, path, dir });
                }
            }
            "build-script-executed" => {
                let dirs = message.linked_paths.iter();
                let dirs = dirs.map(|path| path.split_once('=').map_or(&**path, |(_, path)| path));
                self.library_dirs.extend(dirs.map(PathBuf::from));
                // `path+file://` is what cargo calls a package of the workspace.
                if message.package_id.starts_with("path+") {
                    out_dirs.extend(message.out_dir);
                }
            }
            _ => {}
        }
    }
}

fn is_shared_library(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.ends_with(".so") || name.contains(".so.")
}

#[cfg(test)]
mod tests {
    use super::*;

    const MESSAGES: [&str; 4] = [
        r#"{"reason":"compiler-artifact","package_id":"path+file:///w/rv64#0.1.0","manifest_path":"/w/rv64/Cargo.toml","target":{"kind":["lib"],"name":"rv64-x"},"profile":{"test":true},"filenames":["/t/deps/rv64-1"],"executable":"/t/deps/rv64-1"}"#,
        r#"{"reason":"compiler-artifact","package_id":"path+file:///w#0.1.0","manifest_path":"/w/Cargo.toml","target":{"kind":["example"],"name":"demo"},"profile":{"test":false},"filenames":["/t/demo"],"executable":"/t/demo"}"#,
        r#"{"reason":"compiler-artifact","package_id":"path+file:///w#0.1.0","manifest_path":"/w/Cargo.toml","target":{"kind":["cdylib"],"name":"plugin"},"profile":{"test":false},"filenames":["/t/libplugin.so"],"executable":null}"#,
        r#"{"reason":"build-script-executed","package_id":"registry+https://x#sys@1.0.0","linked_libs":[],"linked_paths":["native=/t/out"],"out_dir":"/t/out"}"#,
    ];

    fn taken(want: Want) -> (Built, BTreeSet<PathBuf>) {
        let (mut built, mut out_dirs) = (Built::default(), BTreeSet::new());
        for message in MESSAGES {
            built.take(serde_json::from_str(message).unwrap(), want, &mut out_dirs);
        }
        (built, out_dirs)
    }

    #[test]
    fn messages_are_read() {
        let (built, out_dirs) = taken(Want::Tests);
        let rv64 = Executable {
            name: "rv64_x".to_owned(),
            path: PathBuf::from("/t/deps/rv64-1"),
            dir: PathBuf::from("/w/rv64"),
        };
        assert_eq!(built.executables, [rv64]);
        assert_eq!(built.libraries, [Path::new("/t/libplugin.so")]);
        assert_eq!(built.library_dirs, [Path::new("/t/out")]);
        assert!(out_dirs.is_empty(), "of our own packages only");
        assert_eq!(taken(Want::Programs).0.executables[0].name, "demo");
    }

    #[test]
    fn shared_libraries_are_known_by_name() {
        for (name, want) in [("liba.so", true), ("liba.so.1.2", true), ("a.solid", false)] {
            assert_eq!(is_shared_library(Path::new(name)), want, "{name}");
        }
    }
}
