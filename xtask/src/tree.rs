//! The private Debian tree: the cross toolchain, QEMU, and the libraries that
//! programs need in the VM, all from Debian's packages.
//!
//! Key type: [`Tree`]. Neighbours: `enter` runs programs in it, `kernel` takes
//! its `apt` to fetch kernels, `initramfs` its libraries.
//! Source: `mmdebstrap(1)`.

use std::{
    env::consts::ARCH,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::geteuid;

use crate::{
    cache::{Cache, RoomMib, key_of},
    enter::Way,
    process::{output_of, probe, run_step},
    progress::Step,
};

/// The release that the tree is made of. Its Rust is the project's MSRV.
pub(crate) const SUITE: &str = "trixie";

/// What the tree holds beyond Debian's essential packages and apt.
const PACKAGES: [&str; 13] = [
    "rustc",
    "cargo",
    "rust-clippy",
    "rustfmt",
    "libstd-rust-dev:riscv64",
    "gcc",
    "libc6-dev",
    "gcc-riscv64-linux-gnu",
    "g++-riscv64-linux-gnu",
    "libc6-dev:riscv64",
    "libgcc-s1:riscv64",
    "qemu-system-riscv",
    "opensbi",
];

/// The suite alone, as it was released: one index that does not change under us.
const SETUP_HOOK: &str = r#"sed -i '/security\|-updates/d' "$1"/etc/apt/sources.list"#;
/// A place for the host's resolver to be mounted on.
const CUSTOMIZE_HOOK: &str = r#"rm -f "$1"/etc/resolv.conf; touch "$1"/etc/resolv.conf"#;

/// Room for the tree and for the packages while it is made.
const ROOM: RoomMib = RoomMib(4 << 10);

/// A whole Debian tree.
#[derive(Clone, Debug)]
pub(crate) struct Tree {
    pub(crate) root: PathBuf,
    pub(crate) way: Way,
}

impl Tree {
    /// The tree of this recipe, made when it is not there.
    pub(crate) fn open(cache: &Cache) -> Result<Self> {
        let way = Way::find()?;
        let recipe = Recipe::new(debian_arch(ARCH)?);
        let key = key_of(format!("{recipe:?}").as_bytes());
        let root = cache.folder(("tree", &key), 2, ROOM, |dir| recipe.make(dir, way))?;
        Ok(Self { root, way })
    }

    /// The path on the host of `path` in the tree.
    pub(crate) fn host_path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }
}

/// Debian's word for the host's architecture.
pub(crate) fn debian_arch(arch: &str) -> Result<&'static str> {
    match arch {
        "x86_64" => Ok("amd64"),
        "aarch64" => Ok("arm64"),
        _ => bail!("the lab knows x86_64, aarch64 and riscv64 hosts, and this one is {arch}"),
    }
}

/// Everything that decides what is in the tree; its hash is the tree's key.
#[derive(Debug)]
struct Recipe {
    /// `mmdebstrap`'s arguments before the suite.
    args: Vec<String>,
}

impl Recipe {
    fn new(host_arch: &str) -> Self {
        let args = vec![
            "--variant=apt".to_owned(),
            format!("--architectures={host_arch},riscv64"),
            format!("--include={}", PACKAGES.join(",")),
            format!("--setup-hook={SETUP_HOOK}"),
            format!("--customize-hook={CUSTOMIZE_HOOK}"),
            "--aptopt=Acquire::Retries \"3\"".to_owned(),
        ];
        Self { args }
    }

    /// Fills `dir`.
    fn make(&self, dir: &Path, way: Way) -> Result<()> {
        require_tools(way)?;
        let step = Step::new("making the lab's Debian tree (once; about 2 GB, a minute or two)");
        let mut command = match way {
            Way::Root => {
                let mut command = Command::new("mmdebstrap");
                command
                    .args(["--mode=root", "--format=directory"])
                    .args(&self.args);
                command.arg(SUITE).arg(dir);
                command
            }
            // Through tar, so that all files are the user's own.
            Way::UserNamespace => {
                let mut command = Command::new("sh");
                command
                    .args(["-c", UNPACK_AS_USER, "sh"])
                    .arg(dir)
                    .args(&self.args);
                command.arg(SUITE);
                command
            }
        };
        // Not `sudo`'s or the user's idea of where temporary files go: the tree
        // must be readable by the user namespace.
        run_step(
            command.env_remove("TMPDIR"),
            "making the lab's Debian tree",
            &step,
        )?;
        for needed in ["usr/bin/cargo", "usr/bin/qemu-system-riscv64"] {
            ensure!(
                dir.join(needed).exists(),
                "the lab's Debian tree came out without {needed}"
            );
        }
        step.done();
        Ok(())
    }
}

/// `sh DIR MMDEBSTRAP-ARGS...`; a failure of either end fails.
const UNPACK_AS_USER: &str = r#"
dir=$1; shift
{ mmdebstrap --mode=unshare --format=tar "$@" - || touch "$dir/failed"; } |
    tar --extract --no-same-owner --exclude='./dev/*' --directory "$dir" || exit 1
[ ! -e "$dir/failed" ]
"#;

/// A file of the host's, any of the places where it may be, and its Debian package.
type Need = (&'static [&'static str], &'static str);

/// What making and entering the tree takes.
const NEEDS: [Need; 3] = [
    (&["/usr/bin/mmdebstrap"], "mmdebstrap"),
    (&["/usr/bin/mount", "/bin/mount"], "mount"),
    (
        &[
            "/usr/share/keyrings/debian-archive-keyring.gpg",
            "/usr/share/keyrings/debian-archive-keyring.pgp",
        ],
        "debian-archive-keyring",
    ),
];
/// What it takes beyond that without root.
const USER_NEEDS: [Need; 1] = [(&["/usr/bin/newuidmap"], "uidmap")];

/// Installs what is missing, where we may.
fn require_tools(way: Way) -> Result<()> {
    let user_needs = match way {
        Way::Root => &[][..],
        Way::UserNamespace => &USER_NEEDS,
    };
    let missing = || missing(&[&NEEDS, user_needs].concat(), Path::exists);
    let packages = missing();
    if packages.is_empty() {
        return Ok(());
    }
    let apt = probe(Command::new("apt-get").arg("--version"));
    if !(geteuid().is_root() && apt) {
        bail!("{}", what_to_install(&packages, apt));
    }
    let step = Step::new(&format!("installing {}", packages.join(", ")));
    let install = || {
        let mut command = Command::new("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive");
        command
            .args(["install", "--yes", "--no-install-recommends"])
            .args(&packages);
        run_step(
            &mut command,
            &format!("installing {}", packages.join(", ")),
            &step,
        )
    };
    // The package lists may be missing or old; some of the host's sources may
    // be broken, and it is the installation that decides.
    if install().is_err() {
        let _ = output_of(Command::new("apt-get").arg("update"), "apt-get update");
        install()?;
    }
    let left = missing();
    ensure!(
        left.is_empty(),
        "{} were installed and are still not there",
        left.join(", ")
    );
    step.done();
    Ok(())
}

fn missing(needs: &[Need], exists: impl Fn(&Path) -> bool) -> Vec<&'static str> {
    let there = |files: &[&str]| files.iter().any(|file| exists(Path::new(file)));
    let missing = needs.iter().filter(|(files, _)| !there(files));
    missing.map(|(_, package)| *package).collect()
}

fn what_to_install(packages: &[&str], apt: bool) -> String {
    let names = packages.join(" ");
    if apt {
        format!(
            "the lab needs {names}: install with `apt-get install {names}`, or run this as root"
        )
    } else {
        format!(
            "the lab needs {names} (Debian's names): install them with your system's package manager"
        )
    }
}

/// The tools of the tree that the host's own tests use, as scripts in a folder
/// of the lab: each runs the tree's program with the tree's loader.
pub(crate) fn host_tools(tree: &Tree, dir: &Path) -> Result<PathBuf> {
    use std::os::unix::fs::PermissionsExt;
    fs::create_dir_all(dir)?;
    let loader = tree.host_path(match ARCH {
        "aarch64" => "usr/lib/aarch64-linux-gnu/ld-linux-aarch64.so.1",
        _ => "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2",
    });
    let libraries = loader.parent().context("loader")?;
    for name in ["as", "ld", "objcopy", "objdump"] {
        let tool = format!("riscv64-linux-gnu-{name}");
        let program = tree.host_path(&format!("usr/bin/{tool}"));
        let script = format!(
            "#!/bin/sh\nexec '{}' --library-path '{}' '{}' \"$@\"\n",
            loader.display(),
            libraries.display(),
            program.display(),
        );
        let path = dir.join(&tool);
        fs::write(&path, script)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    }
    Ok(dir.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_follows_the_recipe() {
        let key = |arch| key_of(format!("{:?}", Recipe::new(arch)).as_bytes());
        assert_eq!(key("amd64"), key("amd64"));
        assert_ne!(key("amd64"), key("arm64"));
    }

    #[test]
    fn an_unknown_host_is_named() {
        assert_eq!(debian_arch("aarch64").unwrap(), "arm64");
        assert!(
            debian_arch("s390x")
                .unwrap_err()
                .to_string()
                .contains("s390x")
        );
    }

    #[test]
    fn what_is_missing_is_named() {
        let all = missing(&NEEDS, |_| false);
        assert_eq!(all, ["mmdebstrap", "mount", "debian-archive-keyring"]);
        let one = missing(&NEEDS, |file| file != Path::new("/usr/bin/mmdebstrap"));
        assert_eq!(one, ["mmdebstrap"]);
        let text = what_to_install(&["mmdebstrap", "uidmap"], true);
        assert!(text.contains("apt-get install mmdebstrap uidmap"), "{text}");
        assert!(!what_to_install(&["mount"], false).contains("apt-get"));
    }

    #[test]
    fn a_failing_mmdebstrap_fails_the_unprivileged_way_too() {
        let dir = std::env::temp_dir().join(format!("xtask-tree-{}", std::process::id()));
        fs::create_dir_all(dir.join("bin")).unwrap();
        let fake = dir.join("bin/mmdebstrap");
        fs::write(
            &fake,
            "#!/bin/sh\ntar --create --files-from=/dev/null\nexit $EXIT\n",
        )
        .unwrap();
        probe(Command::new("chmod").arg("+x").arg(&fake));
        let path = format!("{}/bin:/usr/bin:/bin", dir.display());
        for (exit, want) in [("0", true), ("1", false)] {
            let mut command = Command::new("sh");
            command
                .args(["-c", UNPACK_AS_USER, "sh"])
                .arg(&dir)
                .arg(SUITE);
            command
                .env("PATH", &path)
                .env("EXIT", exit)
                .stderr(std::process::Stdio::null());
            assert_eq!(command.status().unwrap().success(), want);
        }
        fs::remove_dir_all(dir).unwrap();
    }
}
