//! Daemons, roots, namespaces, other users, filters of system calls.

use std::ffi::{CStr, c_long};
use std::fs;
use std::io;
use std::path::PathBuf;
use std::ptr;

use crate::common::{checked, in_child, serial, wait_for};
use crate::{Answer, Hooks, exit_process, workload};

/// What hooks cannot do without.
const NEEDS_PROC: Answer = Answer::Refused(&["/proc"]);
const NOBODY: u32 = 65534;

fn ok(result: c_long) {
    assert!(result >= 0, "{}", io::Error::last_os_error());
}

/// An empty folder of this process.
fn empty_folder(name: &str) -> PathBuf {
    let dir = std::env::temp_dir().join(format!("rvbpf-host-{name}-{}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    dir
}

/// Whether this process may do what only root may. Without it a row says so and tests nothing.
fn is_root() -> bool {
    // SAFETY: 1. takes nothing, changes nothing.
    let is_root = unsafe { libc::geteuid() } == 0;
    if !is_root {
        eprintln!("not tried: this host can only be made by root");
    }
    is_root
}

#[test]
fn an_ordinary_process() {
    let _one = serial();
    in_child(|| Answer::Works.check(workload())).join();
}

/// A classic `daemon()`: new session, root folder, no descriptors.
fn daemonise() {
    // SAFETY: 1. the child has no use for its descriptors.
    ok(unsafe { libc::syscall(libc::SYS_close_range, 0, u32::MAX, 0) });
    // SAFETY: 1. no preconditions.
    checked(unsafe { libc::setsid() });
    std::env::set_current_dir("/").unwrap();
}

/// Files of a daemon, which get the lowest numbers, and what must stay in them.
struct Database {
    paths: Vec<PathBuf>,
    files: Vec<fs::File>,
}

const RECORD: [u8; 64] = *b"a record of the daemon's, which is there to stay, whatever runs\n";

impl Database {
    fn open() -> Self {
        let dir = std::env::temp_dir();
        let path = |i| dir.join(format!("rvbpf-host-db{i}-{}", std::process::id()));
        let paths: Vec<_> = (0..8).map(path).collect();
        let create = |path| {
            fs::write(path, RECORD.repeat(1 << 14)).unwrap();
            let mut options = fs::OpenOptions::new();
            options.read(true).write(true).open(path).unwrap()
        };
        let files = paths.iter().map(create).collect();
        Self { paths, files }
    }

    fn check_and_remove(self) {
        for (path, file) in self.paths.iter().zip(&self.files) {
            file.metadata().expect("the descriptor is still open");
            let bytes = fs::read(path).unwrap();
            assert_eq!(bytes.len(), 1 << 20);
            let whole = bytes.chunks(RECORD.len()).all(|record| record == RECORD);
            assert!(whole, "{} was written to", path.display());
            fs::remove_file(path).unwrap();
        }
    }
}

#[test]
fn a_daemon_that_hooks_afterwards() {
    let _one = serial();
    in_child(|| {
        daemonise();
        let database = Database::open();
        Answer::Works.check(workload());
        database.check_and_remove();
    })
    .join();
}

#[test]
fn a_daemon_that_was_hooked_before() {
    let _one = serial();
    in_child(|| {
        let hooks = Hooks::attach().unwrap();
        daemonise();
        let database = Database::open();
        hooks.call();
        let result = hooks.retarget();
        in_child(|| hooks.call()).join();
        Answer::Works.check(result.and_then(|()| hooks.end()));
        database.check_and_remove();
    })
    .join();
}

#[test]
fn a_root_without_proc() {
    let _one = serial();
    if !is_root() {
        return;
    }
    let dir = empty_folder("root");
    in_child(|| {
        std::os::unix::fs::chroot(&dir).unwrap();
        std::env::set_current_dir("/").unwrap();
        NEEDS_PROC.check(workload());
    })
    .join();
}

/// Hooked first, then without `/proc`: hooks go on to work, and either come off or say why not.
#[test]
fn a_root_without_proc_afterwards() {
    let _one = serial();
    if !is_root() {
        return;
    }
    let dir = empty_folder("later");
    in_child(|| {
        let hooks = Hooks::attach().unwrap();
        std::os::unix::fs::chroot(&dir).unwrap();
        std::env::set_current_dir("/").unwrap();
        hooks.call();
        match hooks.pad.detach() {
            Ok(()) => assert_eq!(hooks.counts[0].get(), 1),
            Err(error) => assert!(error.to_string().contains("/proc"), "{error}"),
        }
        crate::unhooked();
    })
    .join();
}

/// Runs `body` as the first process of a new PID namespace.
fn in_pid_namespace(body: impl FnOnce()) {
    // SAFETY: 1. the next child of this process is the namespace's first.
    checked(unsafe { libc::unshare(libc::CLONE_NEWPID | libc::CLONE_NEWNS) });
    // SAFETY: 1. the child runs `body` and ends.
    let pid = checked(unsafe { libc::fork() });
    if pid == 0 {
        exit_process(body);
    }
    assert_eq!(wait_for(pid), 0);
}

#[test]
fn a_pid_namespace_with_the_outer_proc() {
    let _one = serial();
    if !is_root() {
        return;
    }
    in_child(|| in_pid_namespace(|| Answer::WorksOrRefused(&["/proc"]).check(workload()))).join();
}

/// Mounts `/proc` anew, with these options, in the mount namespace of this process alone.
fn mount_proc(options: &CStr) {
    let (private, none) = (libc::MS_REC | libc::MS_PRIVATE, ptr::null());
    // SAFETY: 1. strings that end in a null byte; this namespace is the child's own.
    checked(unsafe { libc::mount(none, c"/".as_ptr(), none, private, none.cast()) });
    let (at, kind) = (c"/proc".as_ptr(), c"proc".as_ptr());
    // SAFETY: 1. as above.
    checked(unsafe { libc::mount(kind, at, kind, 0, options.as_ptr().cast()) });
}

#[test]
fn a_pid_namespace_with_its_own_proc() {
    let _one = serial();
    if !is_root() {
        return;
    }
    in_child(|| {
        in_pid_namespace(|| {
            mount_proc(c"");
            Answer::Works.check(workload());
        });
    })
    .join();
}

/// Gives up root, which also makes the process not dumpable.
fn become_nobody() {
    // SAFETY: 1. no preconditions.
    checked(unsafe { libc::setresgid(NOBODY, NOBODY, NOBODY) });
    // SAFETY: 1. no preconditions.
    checked(unsafe { libc::setresuid(NOBODY, NOBODY, NOBODY) });
}

#[test]
fn another_user_and_not_dumpable() {
    let _one = serial();
    if !is_root() {
        return;
    }
    in_child(|| {
        become_nobody();
        Answer::Works.check(workload());
    })
    .join();
}

#[test]
fn another_user_and_not_dumpable_afterwards() {
    let _one = serial();
    if !is_root() {
        return;
    }
    in_child(|| {
        let hooks = Hooks::attach().unwrap();
        become_nobody();
        hooks.call();
        hooks.retarget().unwrap();
        Answer::Works.check(hooks.end());
    })
    .join();
}

/// `/proc` shows a user no processes of others. A process always sees itself there, whatever user
/// it is: the kernel asks whether one may trace the other, which threads of one process may
/// (`kernel/ptrace.c`, `__ptrace_may_access`).
#[test]
fn another_user_and_a_proc_that_hides_processes() {
    let _one = serial();
    if !is_root() {
        return;
    }
    for options in [c"hidepid=2", c"hidepid=4,subset=pid"] {
        in_child(|| {
            println!("/proc with {options:?}");
            // SAFETY: 1. no preconditions.
            checked(unsafe { libc::unshare(libc::CLONE_NEWNS) });
            mount_proc(options);
            let hooks = Hooks::attach().unwrap();
            become_nobody();
            let other = fs::metadata("/proc/1");
            assert!(other.is_err(), "another process is shown");
            hooks.call();
            hooks.end().unwrap();
            Answer::Works.check(workload());
        })
        .join();
    }
}

/// Answers EPERM to these system calls, and allows the rest.
fn forbid(calls: &[c_long]) {
    const LOAD_NR: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS: seccomp_data.nr is at 0
    const JUMP_EQ: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
    const RETURN: u16 = 0x06; // BPF_RET | BPF_K
    let insn = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let mut filter = vec![insn(LOAD_NR, 0, 0, 0)];
    for &nr in calls {
        filter.push(insn(JUMP_EQ, 0, 1, nr as u32));
        filter.push(insn(
            RETURN,
            0,
            0,
            libc::SECCOMP_RET_ERRNO | libc::EPERM as u32,
        ));
    }
    filter.push(insn(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW));
    let program = libc::sock_fprog {
        len: filter.len() as u16,
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: 1. no preconditions.
    checked(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) });
    let mode = libc::SECCOMP_MODE_FILTER;
    // SAFETY: 1. the program lives through the call.
    checked(unsafe { libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const program, 0, 0) });
}

/// Filters of containers and browsers differ in what they refuse beyond what glibc needs.
#[test]
fn filters_of_system_calls() {
    const FLUSH_ICACHE: c_long = 259;
    const HWPROBE: c_long = 258;
    let _one = serial();
    let refused = |words| Answer::Refused(words);
    for (calls, answer) in [
        (&[HWPROBE, libc::SYS_membarrier][..], Answer::Works),
        (&[libc::SYS_memfd_create], refused(&["memfd_create"])),
        (&[FLUSH_ICACHE], refused(&["flush"])),
        (
            &[libc::SYS_process_vm_readv],
            Answer::WorksOrRefused(&["process_vm_readv", "read"]),
        ),
    ] {
        in_child(|| {
            forbid(calls);
            println!("without system calls {calls:?}");
            answer.check(workload());
        })
        .join();
    }
}
