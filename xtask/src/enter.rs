//! Running programs inside the Debian tree.
//!
//! A program gets a root of its own, in a mount namespace of its own: a tmpfs
//! with the tree's folders, the host's `/proc`, `/sys` and `/dev`, and the
//! folders that it works on, at the paths they have outside. All mounts vanish
//! with the program, and nothing is written into the tree to make room for
//! them.
//!
//! Key types: [`Way`], [`Inside`]. Source: `mount_namespaces(7)`,
//! `user_namespaces(7)`.

use std::{
    env,
    ffi::OsStr,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Result, bail};
use rustix::process::geteuid;

use crate::{process::probe, tree::Tree};

/// How we get a mount namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// As root.
    Root,
    /// In a user namespace in which we are root.
    UserNamespace,
}

impl Way {
    /// The way that works here.
    pub(crate) fn find() -> Result<Self> {
        let root = geteuid().is_root();
        let ways = if root {
            &[Self::Root, Self::UserNamespace][..]
        } else {
            &[Self::UserNamespace]
        };
        let works = |way: &&Self| probe(Command::new("unshare").args(way.flags()).arg("true"));
        match ways.iter().find(works) {
            Some(way) => Ok(*way),
            None => bail!("{}", no_rights(root)),
        }
    }

    fn flags(self) -> &'static [&'static str] {
        match self {
            Self::Root => &["--mount"],
            Self::UserNamespace => &["--mount", "--map-root-user"],
        }
    }
}

fn no_rights(root: bool) -> &'static str {
    if root {
        "the lab may not make mounts here, although it is root: run it where mount namespaces are \
         allowed (a container needs CAP_SYS_ADMIN, a chroot must be a mount point)"
    } else {
        "the lab is not root and may not make user namespaces here: run it as root, or allow them \
         (sysctl user.max_user_namespaces=10000, kernel.unprivileged_userns_clone=1 on old \
         kernels, kernel.apparmor_restrict_unprivileged_userns=0 on Ubuntu)"
    }
}

/// `sh STAGE TREE DIR... -- PROGRAM ARGS...`: builds the root on STAGE and
/// replaces itself by PROGRAM in it.
const SCRIPT: &str = r#"
set -eu
PATH=/usr/sbin:/usr/bin:/sbin:/bin
stage=$1 tree=$2
shift 2
mount -t tmpfs -o mode=755 tmpfs "$stage"
mkdir -p -m 1777 "$stage/tmp"
for entry in "$tree"/*; do
    name=${entry##*/}
    if [ -L "$entry" ]; then
        cp -P "$entry" "$stage/$name"
        continue
    fi
    mkdir -p "$stage/$name"
    case $name in
    proc | sys | dev) mount --rbind "/$name" "$stage/$name" ;;
    usr | etc | var) mount --bind "$entry" "$stage/$name" ;;
    esac
done
[ ! -e /etc/resolv.conf ] || mount --bind /etc/resolv.conf "$stage/etc/resolv.conf"
while [ "$1" != -- ]; do
    mkdir -p "$stage$1"
    mount --bind "$1" "$stage$1"
    shift
done
shift
exec chroot "$stage" "$@"
"#;

/// A program that will run in the tree.
pub(crate) struct Inside {
    way: Way,
    stage: PathBuf,
    tree: PathBuf,
    binds: Vec<PathBuf>,
    env: Vec<(String, String)>,
    dir: PathBuf,
}

impl Inside {
    /// In `tree`, seeing nothing else; `stage` is an empty folder.
    pub(crate) fn new(tree: &Tree, stage: &Path) -> Self {
        let mut env: Vec<(String, String)> = [
            ("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
            ("HOME", "/tmp"),
            ("LC_ALL", "C.UTF-8"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
        let passed = ["TERM", "CI", "http_proxy", "https_proxy", "no_proxy"];
        env.extend(
            passed
                .iter()
                .filter_map(|name| Some(((*name).to_owned(), env::var(name).ok()?))),
        );
        Self {
            way: tree.way,
            stage: stage.to_owned(),
            tree: tree.root.clone(),
            binds: Vec::new(),
            env,
            dir: PathBuf::from("/"),
        }
    }

    /// Seeing the host's `dir` too.
    pub(crate) fn bind(mut self, dir: &Path) -> Self {
        self.binds.push(dir.to_owned());
        self
    }

    /// With a variable.
    pub(crate) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        let value = value.as_ref().to_string_lossy().into_owned();
        self.env.push((name.to_owned(), value));
        self
    }

    /// Working in `dir`.
    pub(crate) fn dir(mut self, dir: &Path) -> Self {
        self.dir = dir.to_owned();
        self
    }

    /// The command that runs `program`. It replaces itself by the program, and
    /// the program ends when we do.
    pub(crate) fn command(self, program: &str) -> Command {
        let mut command = Command::new("unshare");
        command
            .args(self.way.flags())
            .args(["sh", "-c", SCRIPT, "sh"]);
        command
            .arg(&self.stage)
            .arg(&self.tree)
            .args(&self.binds)
            .arg("--");
        command.args(["/usr/bin/env", "-i", "-C"]).arg(&self.dir);
        command.args(
            self.env
                .iter()
                .map(|(name, value)| format!("{name}={value}")),
        );
        command.args(["setpriv", "--pdeathsig", "KILL", "--", program]);
        command
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lack_of_rights_says_what_to_do() {
        assert!(no_rights(true).contains("CAP_SYS_ADMIN"));
        assert!(no_rights(false).contains("run it as root"));
    }

    /// The script itself, with a tree that is a folder of links to the host's.
    #[test]
    fn a_program_sees_the_tree_and_what_is_bound_at_the_same_path() {
        let Ok(way) = Way::find() else {
            eprintln!("no rights for mounts here: not tested");
            return;
        };
        let dir = std::env::temp_dir().join(format!("xtask-enter-{}", std::process::id()));
        let (stage, root, work) = (dir.join("stage"), dir.join("tree"), dir.join("work here"));
        for made in [
            &stage,
            &work,
            &root.join("usr"),
            &root.join("etc"),
            &root.join("dev"),
        ] {
            std::fs::create_dir_all(made).unwrap();
        }
        let host = ["bin", "lib", "lib64", "sbin"];
        for name in host
            .iter()
            .filter(|name| Path::new("/").join(name).is_symlink())
        {
            std::os::unix::fs::symlink(format!("usr/{name}"), root.join(name)).unwrap();
        }
        std::fs::write(work.join("file"), "bound").unwrap();
        std::fs::write(root.join("etc/resolv.conf"), "").unwrap();
        let tree = Tree {
            root: root.clone(),
            way,
        };
        // The host's /usr serves as the tree's.
        let inside = Inside::new(&tree, &stage)
            .bind(Path::new("/usr"))
            .bind(&work)
            .dir(&work);
        let mut command = inside.env("WORD", "two words").command("sh");
        command.args([
            "-c",
            "echo $(cat file) \"$WORD\" $(ls -d /home 2>/dev/null)",
        ]);
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(text.trim(), "bound two words", "{errors}");
        assert_eq!(
            std::fs::read_dir(&stage).unwrap().count(),
            0,
            "the mounts are gone"
        );
        assert_eq!(std::fs::read_dir(root.join("usr")).unwrap().count(), 0);
        std::fs::remove_dir_all(dir).unwrap();
    }
}
