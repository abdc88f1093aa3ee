//! Fetching packages of any Debian suite and taking files out of them, without
//! installing them: kernels, a compiler, libraries to hook later.
//!
//! Key type: [`Apt`]. Neighbours: `kernel`, `clang` and `debian` use it; `tree` lends it
//! `apt`.
//! Source: `apt-get(8)`, `apt.conf(5)`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use crate::{
    enter::Inside,
    initramfs::files_under,
    process::{output_of, run_step},
    progress::Step,
    tree::{SUITE, Tree},
};

/// Debian's word for the guest's architecture.
pub(crate) const GUEST_ARCH: &str = "riscv64";

/// The package index of one suite and one architecture, in a folder of its own.
pub(crate) struct Apt<'a> {
    tree: &'a Tree,
    stage: &'a Path,
    dir: PathBuf,
    arch: &'static str,
}

impl<'a> Apt<'a> {
    /// Fetches the index of `suite` for `arch`, which is Debian's word, into
    /// `dir/apt`.
    pub(crate) fn update(
        tree: &'a Tree,
        stage: &'a Path,
        dir: &Path,
        (suite, arch): (&str, &'static str),
        step: &Step,
    ) -> Result<Self> {
        let dir = dir.join("apt");
        for name in ["lists/partial", "cache/archives/partial", "debs"] {
            fs::create_dir_all(dir.join(name))?;
        }
        let sources = fs::read_to_string(tree.host_path("etc/apt/sources.list"))?;
        fs::write(dir.join("sources.list"), sources.replace(SUITE, suite))?;
        fs::write(dir.join("status"), "")?;
        let apt = Self {
            tree,
            stage,
            dir,
            arch,
        };
        let mut update = apt.command("apt-get", &apt.dir);
        run_step(
            update.args(["update", "--error-on=any"]),
            "fetching the package index",
            step,
        )?;
        Ok(apt)
    }

    /// The packages that `package` depends on.
    pub(crate) fn depends(&self, package: &str) -> Result<Vec<String>> {
        let mut command = self.command("apt-cache", &self.dir);
        command.args(["depends", "--important", "--no-recommends", package]);
        let text = output_of(&mut command, "apt-cache depends")?;
        Ok(parse_depends(&text))
    }

    /// Fetches `packages` and gives their files.
    pub(crate) fn download(&self, packages: &[String], step: &Step) -> Result<Vec<PathBuf>> {
        let debs = self.dir.join("debs");
        let mut command = self.command("apt-get", &debs);
        command.arg("download").args(packages);
        run_step(
            &mut command,
            &format!("fetching {}", packages.join(", ")),
            step,
        )?;
        let files: std::io::Result<Vec<_>> = fs::read_dir(&debs)?
            .map(|entry| Ok(entry?.path()))
            .collect();
        let files = files?;
        ensure!(
            files.len() == packages.len(),
            "fetching packages gave {} files",
            files.len()
        );
        Ok(files)
    }

    /// Takes the files that match the tar `pattern` out of a package, into `into`.
    pub(crate) fn extract(&self, deb: &Path, pattern: &str, into: &Path) -> Result<()> {
        let script = r#"set -e; dpkg-deb --fsys-tarfile "$1" > data.tar
            if tar --list --file data.tar --wildcards "$2" >/dev/null 2>&1; then
                tar --extract --file data.tar --directory "$3" --no-same-owner --wildcards "$2"
            fi; rm data.tar"#;
        let inside = Inside::new(self.tree, self.stage)
            .bind(&self.dir)
            .bind(into)
            .dir(&self.dir);
        let mut command = inside.command("sh");
        command
            .args(["-c", script, "sh"])
            .arg(deb)
            .arg(pattern)
            .arg(into);
        output_of(&mut command, "unpacking a package").map(drop)
    }

    fn command(&self, program: &str, dir: &Path) -> Command {
        let inside = Inside::new(self.tree, self.stage).bind(&self.dir).dir(dir);
        let mut command = inside.command(program);
        let dir = self.dir.display();
        let options = [
            format!("APT::Architecture={}", self.arch),
            format!("APT::Architectures={}", self.arch),
            "APT::Sandbox::User=root".to_owned(),
            "Acquire::Retries=3".to_owned(),
            // A mirror that lags serves an index past its date. It is signed all the
            // same.
            "Acquire::Check-Valid-Until=false".to_owned(),
            "Acquire::Languages=none".to_owned(),
            format!("Dir::Etc::SourceList={dir}/sources.list"),
            "Dir::Etc::SourceParts=/dev/null".to_owned(),
            format!("Dir::State={dir}"),
            format!("Dir::State::Lists={dir}/lists"),
            format!("Dir::State::status={dir}/status"),
            format!("Dir::Cache={dir}/cache"),
        ];
        options.iter().for_each(|option| {
            command.args(["-o", option]);
        });
        command
    }
}

/// Moves the one file under `files` whose name begins with `name`.
pub(crate) fn keep(files: &Path, name: &str, to: &Path) -> Result<()> {
    let wanted = |path: &Path| {
        let file = path.file_name().unwrap_or_default();
        file.to_string_lossy().starts_with(name) && !path.is_symlink()
    };
    let found = files_under(files, &wanted)?;
    ensure!(
        found.len() == 1,
        "the packages hold {} files {name}, not one",
        found.len()
    );
    fs::create_dir_all(to.parent().context("a place in a folder")?)?;
    fs::rename(&found[0], to).with_context(|| to.display().to_string())
}

fn parse_depends(text: &str) -> Vec<String> {
    let depends = text.lines().filter_map(|line| {
        let line = line.trim();
        line.strip_prefix("Depends: ")
            .or_else(|| line.strip_prefix("PreDepends: "))
    });
    depends
        .filter(|name| !name.starts_with('<'))
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_are_read() {
        let text = "linux-image-riscv64\n  Depends: linux-image-7.2.3-riscv64\n  \
                    Depends: <virtual>\n  PreDepends: base\n |Depends: other\n";
        assert_eq!(parse_depends(text), ["linux-image-7.2.3-riscv64", "base"]);
    }
}
