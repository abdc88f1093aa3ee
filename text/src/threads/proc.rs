//! What `/proc/self` says of threads and stacks, parsed by hand.
//!
//! [`Tasks`] is the folder of threads, [`Task`] one thread's files; [`StackRuns`] is where stacks
//! end.
//!
//! A thread has an id in each PID namespace that it is in, and `/proc` shows those of the namespace
//! that it was mounted for: see [`Tid`].
//! Parsing is in pure functions over bytes, tested on samples of the kernel's text.
//!
//! Source: `fs/proc/base.c` (`proc_pid_syscall`, `proc_task_readdir`, `proc_pid_schedstat`),
//! `fs/proc/array.c` (`proc_pid_status`), `fs/proc/task_mmu.c`.

use std::ffi::CStr;

use super::sys::{self, Errno, Fd};
use crate::bare::Buf;
use crate::signal::set_of;
use crate::sys::{BlockedSignals, FAULTS};

/// One line of `/proc/self/task/TID/syscall`.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(super) enum SyscallLine {
    /// On a cpu, or about to be.
    Running,
    /// Off-cpu in the kernel.
    Blocked {
        /// System call number; -1 in a page fault or another trap.
        nr: i64,
        /// First argument (0 outside a system call).
        arg0: u64,
        /// User stack pointer.
        sp: u64,
        /// User pc: where it will go on.
        pc: u64,
    },
}

impl SyscallLine {
    /// `running`, `-1 SP PC` or `NR A0 A1 A2 A3 A4 A5 SP PC`; all but the number in hex.
    pub(super) fn parse(line: &[u8]) -> Option<Self> {
        let line = line.trim_ascii();
        if line == b"running" {
            return Some(Self::Running);
        }
        let mut fields = line.split(|&byte| byte == b' ');
        let nr = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
        let mut values = [0_u64; 8];
        let mut nr_values = 0;
        for field in fields {
            *values.get_mut(nr_values)? = hex(field.strip_prefix(b"0x")?)?;
            nr_values += 1;
        }
        match nr_values {
            2 => Some(Self::Blocked {
                nr,
                arg0: 0,
                sp: values[0],
                pc: values[1],
            }),
            8 => Some(Self::Blocked {
                nr,
                arg0: values[0],
                sp: values[6],
                pc: values[7],
            }),
            _ => None,
        }
    }

    /// Whether this is a thread that waits for a child in its own memory. `clone3` hides its flags
    /// in memory; it does not block for long unless it is a `vfork`.
    pub(super) fn in_vfork(self) -> bool {
        let Self::Blocked { nr, arg0, .. } = self else {
            return false;
        };
        #[cfg(target_arch = "x86_64")]
        if nr == libc::SYS_vfork {
            return true;
        }
        nr == libc::SYS_clone3 || (nr == libc::SYS_clone && arg0 & libc::CLONE_VFORK as u64 != 0)
    }
}

/// A thread, by its ids.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(super) struct Tid {
    /// As system calls have it.
    pub(super) own: i32,
    /// As `/proc` has it: another one if that is mounted for an outer PID namespace.
    pub(super) shown: i32,
}

/// The folder of this process's threads.
pub(super) struct Tasks {
    folder: Fd,
    me: Tid,
}

/// The kernel that shows the files, and the one that runs these threads.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(super) enum Shown {
    /// They are the same.
    Ours,
    /// An emulator of user programs passes the files on from its host, with its own registers.
    Emulators,
    /// The kernel does not let us see what a thread does.
    Nothing(Errno),
}

impl Tasks {
    /// Opens it. ENOENT where `/proc` is not mounted, or for a PID namespace that this process is
    /// not in.
    pub(super) fn open() -> Result<Self, Errno> {
        let folder = open_folder()?;
        let status = sys::open(None, c"/proc/thread-self/status")?;
        let mut room = Buf::<STATUS_BYTES>::new();
        let buf = room.zeroed();
        let got = status.read_from_start(buf)?;
        let me = ids(&buf[..got]).ok_or(libc::EIO)?;
        match me.own == sys::gettid() {
            true => Ok(Self { folder, me }),
            false => Err(libc::ENOENT),
        }
    }

    /// Whose threads these files show.
    ///
    /// A thread that reads its own line sees that very read: its number and a stack pointer just
    /// below its caller's frame.
    pub(super) fn shown(&self) -> Shown {
        let here = std::ptr::from_ref(&self).addr() as u64;
        match Task::open(self, self.me).and_then(|own| own.syscall()) {
            Err(errno) => Shown::Nothing(errno),
            Ok(SyscallLine::Blocked {
                nr: libc::SYS_pread64,
                sp,
                ..
            }) if here
                .checked_sub(sp)
                .is_some_and(|below| below < OWN_FRAMES_BYTES) =>
            {
                Shown::Ours
            }
            Ok(_) => Shown::Emulators,
        }
    }

    /// The thread that is shown as `shown`.
    fn tid(&self, shown: i32) -> Result<Tid, Errno> {
        if self.me.own == self.me.shown {
            return Ok(Tid { own: shown, shown });
        }
        let mut room = Buf::<STATUS_BYTES>::new();
        let buf = room.zeroed();
        ids(self.read(shown, "/status", buf)?).ok_or(libc::EIO)
    }

    /// Whether the thread blocks signal `signo`, by the `SigBlk` row of its status.
    pub(super) fn blocks_signal(&self, tid: Tid, signo: i32) -> Result<bool, Errno> {
        let mut room = Buf::<STATUS_BYTES>::new();
        let buf = room.zeroed();
        let status = self.read(tid.shown, "/status", buf)?;
        let mask = row(status, b"SigBlk:").and_then(hex).ok_or(libc::EIO)?;
        Ok(mask >> (signo - 1) & 1 == 1)
    }

    /// Whether the thread will never run user code: it has ended, though it is there still (a
    /// leader that waits for the others), or it is a worker of io_uring, which blocks all signals.
    /// These rows can be read whoever this process is.
    pub(super) fn is_in_kernel_for_good(&self, tid: Tid) -> Result<bool, Errno> {
        let mut room = Buf::<STAT_BYTES>::new();
        let buf = room.zeroed();
        let stat = self.read(tid.shown, "/stat", buf)?;
        never_in_user_code(stat).ok_or(libc::EIO)
    }

    fn read<'a>(&self, shown: i32, name: &str, buf: &'a mut [u8]) -> Result<&'a [u8], Errno> {
        let mut path = [0; PATH_BYTES];
        let file = sys::open(Some(&self.folder), task_path(&mut path, shown, name))?;
        let got = file.read_from_start(buf)?;
        Ok(&buf[..got])
    }
}

/// The files of one thread, opened once per look at it.
pub(super) struct Task {
    syscall: Fd,
    schedstat: Option<Fd>,
    status: Option<Fd>,
}

impl Task {
    /// Opens the files of a thread.
    pub(super) fn open(tasks: &Tasks, tid: Tid) -> Result<Self, Errno> {
        let mut path = [0; PATH_BYTES];
        let mut open = |name| {
            let path = task_path(&mut path, tid.shown, name);
            sys::open(Some(&tasks.folder), path)
        };
        let syscall = open("/syscall")?;
        let schedstat = open("/schedstat").ok();
        let mut task = Self {
            syscall,
            schedstat,
            status: None,
        };
        // A kernel without scheduler statistics has no such file, or shows zeros for ever.
        if !matches!(task.runs_by_schedstat(), Ok(1..)) {
            task.schedstat = None;
            task.status = Some(open("/status")?);
        }
        Ok(task)
    }

    /// The thread's syscall line, as read and as parsed.
    pub(super) fn syscall(&self) -> Result<SyscallLine, Errno> {
        let mut room = Buf::<256>::new();
        let buf = room.zeroed();
        let got = self.syscall.read_from_start(buf)?;
        SyscallLine::parse(&buf[..got]).ok_or(libc::EIO)
    }

    /// A number that differs if the thread has been put on and taken off a cpu in between.
    pub(super) fn nr_runs(&self) -> Result<u64, Errno> {
        if self.schedstat.is_some() {
            return self.runs_by_schedstat();
        }
        let mut room = Buf::<STATUS_BYTES>::new();
        let buf = room.zeroed();
        let status = self.status.as_ref().ok_or(libc::ENOENT)?;
        let got = status.read_from_start(buf)?;
        nr_switches(&buf[..got]).ok_or(libc::EIO)
    }

    fn runs_by_schedstat(&self) -> Result<u64, Errno> {
        let mut room = Buf::<96>::new();
        let buf = room.zeroed();
        let file = self.schedstat.as_ref().ok_or(libc::ENOENT)?;
        let got = file.read_from_start(buf)?;
        nr_timeslices(&buf[..got]).ok_or(libc::EIO)
    }
}

/// Lists all threads of this process, which `tasks` shows, into `tids`.
///
/// Every thread that lives through the call is in the list. The kernel walks its list of threads
/// and ends early, without a word, if the thread that it stands on dies; so a walk counts only if
/// it fitted into one call and the last thread listed is alive after it: then that thread was
/// alive when the walk stepped on from it, and what it stepped to was the true end. Gives EAGAIN
/// if threads die faster than that; the caller tries again.
pub(super) fn list_threads(
    tasks: &Tasks,
    tids: &mut Vec<Tid>,
    buf: &mut Vec<u8>,
) -> Result<(), Errno> {
    let mut shown = Vec::new();
    loop {
        let folder = open_folder()?;
        let got = list_whole(&folder, buf)?;
        if got + DIRENT_MAX_BYTES > buf.len() {
            buf.resize(buf.len() * 2, 0);
            continue;
        }
        tids_of_dirents(&buf[..got], &mut shown);
        break;
    }
    tids.clear();
    for &shown in &shown {
        match tasks.tid(shown) {
            Ok(tid) => tids.push(tid),
            // It has ended since.
            Err(libc::ENOENT | libc::ESRCH) => {}
            Err(errno) => return Err(errno),
        }
    }
    match (tids.last(), shown.last()) {
        (Some(last), Some(&shown)) if last.shown == shown && sys::is_alive(last.own) => Ok(()),
        _ => Err(libc::EAGAIN),
    }
}

/// Reads the folder to its end, or gives EAGAIN.
///
/// With a signal pending the kernel ends the list early and says nothing (`fs/readdir.c`,
/// `filldir64`): threads that come later would be taken for gone. So signals are blocked, and, since
/// not all can be (nor what an instruction raises), a second call must find nothing left. Nothing
/// of libc is called meanwhile, not even to make an array of zeros: where `memset` is closed
/// ([`crate::detour`]) it takes a signal to lead this thread on.
fn list_whole(folder: &Fd, buf: &mut [u8]) -> Result<usize, Errno> {
    let _blocked = BlockedSignals::but(set_of(&FAULTS));
    let got = folder.list(buf)?;
    if got + DIRENT_MAX_BYTES > buf.len() {
        return Ok(got);
    }
    match folder.list(&mut buf[got..])? {
        0 => Ok(got),
        _ => Err(libc::EAGAIN),
    }
}

fn open_folder() -> Result<Fd, Errno> {
    sys::open(None, c"/proc/self/task")
}

/// The parts of the address space that can hold stacks: runs of adjacent writable mappings,
/// sorted.
///
/// A stack is one run from its sp up, or part of one; a guard page or a hole ends it. Runs are
/// read after the start of a proof, and a frame that matters was pushed by a signal that
/// interrupted a range which its thread had entered *before* the start: on a stack that was there
/// when the runs were read and cannot go before that handler returns. So such a frame lies below
/// the end of the run that held the stack then. (Stacks grow down: an sp below its run as read is
/// a reason to read again.)
#[derive(Default)]
pub(super) struct StackRuns(Vec<(u64, u64)>);

impl StackRuns {
    /// Reads the mappings anew; of this thread, because a process whose first thread has ended
    /// shows none.
    pub(super) fn read(&mut self, buf: &mut Vec<u8>) -> Result<(), Errno> {
        let maps = sys::open(None, c"/proc/thread-self/maps")?;
        let mut len_bytes = 0;
        loop {
            if len_bytes == buf.len() {
                buf.resize(buf.len() * 2, 0);
            }
            match maps.read_on(&mut buf[len_bytes..]) {
                Ok(0) => break,
                Ok(got) => len_bytes += got,
                Err(libc::EINTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        self.parse(&buf[..len_bytes]).ok_or(libc::EIO)
    }

    fn parse(&mut self, maps: &[u8]) -> Option<()> {
        self.0.clear();
        for line in maps
            .split(|&byte| byte == b'\n')
            .filter(|line| !line.is_empty())
        {
            let mut fields = line.split(|&byte| byte == b' ');
            let bounds = fields.next()?;
            if !fields.next()?.starts_with(b"rw") {
                continue;
            }
            let dash = bounds.iter().position(|&byte| byte == b'-')?;
            let (start, end) = (hex(&bounds[..dash])?, hex(&bounds[dash + 1..])?);
            match self.0.last_mut() {
                Some(last) if last.1 == start => last.1 = end,
                _ => self.0.push((start, end)),
            }
        }
        Some(())
    }

    /// The end of the run that holds `sp`.
    pub(super) fn end_of(&self, sp: u64) -> Option<u64> {
        let after = self.0.partition_point(|&(start, _)| start <= sp);
        let (_, end) = *self.0.get(after.checked_sub(1)?)?;
        (sp < end).then_some(end)
    }
}

/// More than the frames of a few small functions.
const OWN_FRAMES_BYTES: u64 = 64 << 10;
const PATH_BYTES: usize = 32;
const STATUS_BYTES: usize = 4096;
const STAT_BYTES: usize = 1024;
/// A directory entry for a thread id: 19 bytes of head, ten digits, a null byte, rounded up.
const DIRENT_MAX_BYTES: usize = 64;

/// `TID/name` as a C string in `buf`.
fn task_path<'a>(buf: &'a mut [u8; PATH_BYTES], tid: i32, name: &str) -> &'a CStr {
    use std::io::Write as _;
    let mut rest = &mut buf[..];
    // 11 digits and 10 letters fit; if they did not, the path would be cut and not exist.
    let _ = write!(rest, "{tid}{name}\0");
    CStr::from_bytes_until_nul(buf).unwrap_or(c"")
}

/// The third number of a schedstat line: how often the thread was put on a cpu.
fn nr_timeslices(line: &[u8]) -> Option<u64> {
    let field = line.trim_ascii().split(|&byte| byte == b' ').nth(2)?;
    std::str::from_utf8(field).ok()?.parse().ok()
}

/// Voluntary and other context switches of a status text, added.
fn nr_switches(status: &[u8]) -> Option<u64> {
    let number =
        |name: &[u8]| -> Option<u64> { std::str::from_utf8(row(status, name)?).ok()?.parse().ok() };
    number(b"voluntary_ctxt_switches:")?.checked_add(number(b"nonvoluntary_ctxt_switches:")?)
}

/// What follows `name` on its row of a status text.
fn row<'a>(status: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let mut lines = status.split(|&byte| byte == b'\n');
    lines
        .find_map(|line| line.strip_prefix(name))
        .map(<[u8]>::trim_ascii)
}

/// The ids of the thread with this status text. `NSpid` has one for each PID namespace from that of
/// `/proc` to the thread's own.
fn ids(status: &[u8]) -> Option<Tid> {
    let number = |field: &[u8]| std::str::from_utf8(field).ok()?.parse().ok();
    let shown = number(row(status, b"Pid:")?)?;
    let own = match row(status, b"NSpid:") {
        Some(all) => number(all.rsplit(u8::is_ascii_whitespace).next()?)?,
        // A kernel without namespaces.
        None => shown,
    };
    Some(Tid { own, shown })
}

/// Of a thread with this stat text: see [`Tasks::is_in_kernel_for_good`].
fn never_in_user_code(stat: &[u8]) -> Option<bool> {
    // include/linux/sched.h; of every worker since threads of the process are workers (5.12).
    const PF_IO_WORKER: u64 = 0x10;
    // "(name)" may hold anything but the last bracket.
    let after_name = stat.iter().rposition(|&byte| byte == b')')? + 1;
    let mut fields = stat[after_name..].trim_ascii().split(|&byte| byte == b' ');
    let state = fields.next()?;
    let flags: u64 = std::str::from_utf8(fields.nth(5)?).ok()?.parse().ok()?;
    Some(matches!(state, b"Z" | b"X") || flags & PF_IO_WORKER != 0)
}

fn tids_of_dirents(mut dirents: &[u8], tids: &mut Vec<i32>) {
    // struct linux_dirent64: u64 ino, i64 off, u16 reclen, u8 type, then the name.
    while let Some(&[low, high]) = dirents.get(16..18) {
        let reclen_bytes = usize::from(u16::from_ne_bytes([low, high]));
        let Some(entry) = dirents.get(..reclen_bytes).filter(|entry| entry.len() > 19) else {
            return;
        };
        let name = entry[19..]
            .split(|&byte| byte == 0)
            .next()
            .unwrap_or_default();
        tids.extend(
            std::str::from_utf8(name)
                .ok()
                .and_then(|name| name.parse::<i32>().ok()),
        );
        dirents = &dirents[reclen_bytes..];
    }
}

fn hex(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || digits.len() > 16 {
        return None;
    }
    digits.iter().try_fold(0, |value: u64, &digit| {
        Some(value << 4 | u64::from(char::from(digit).to_digit(16)?))
    })
}

#[cfg(test)]
mod tests {
    #![expect(unsafe_code, reason = "signals")]

    use super::*;

    #[test]
    fn syscall_lines() {
        let blocked = |nr, arg0, sp, pc| Some(SyscallLine::Blocked { nr, arg0, sp, pc });
        for (line, want) in [
            ("running\n", Some(SyscallLine::Running)),
            (
                "63 0x3 0x3fc9c1a0 0x10 0x0 0x0 0x0 0x3fd2b3c0 0x3fb7e2d8ac\n",
                blocked(63, 3, 0x3fd2_b3c0, 0x3f_b7e2_d8ac),
            ),
            (
                "-1 0x3fd2b3c0 0x3fb7e2d8ac\n",
                blocked(-1, 0, 0x3fd2_b3c0, 0x3f_b7e2_d8ac),
            ),
            ("-1 0x0 0x0\n", blocked(-1, 0, 0, 0)),
            ("", None),
            ("63\n", None),
            ("63 0x3\n", None),
            ("63 0x3 0x1 0x10 0x0 0x0 0x0 0x3 0x3 0x3\n", None),
            ("63 3 4\n", None),
            ("-1 0x 0x1\n", None),
            ("-1 0x11112222333344445 0x1\n", None),
        ] {
            assert_eq!(SyscallLine::parse(line.as_bytes()), want, "{line:?}");
        }
    }

    #[test]
    fn a_vfork_parent_is_known_by_its_call() {
        let line = |nr, arg0| SyscallLine::Blocked {
            nr,
            arg0,
            sp: 8,
            pc: 8,
        };
        assert!(line(libc::SYS_clone, 0x4111).in_vfork());
        assert!(!line(libc::SYS_clone, 0x11).in_vfork());
        assert!(line(libc::SYS_clone3, 0).in_vfork());
        assert!(!line(libc::SYS_read, 0x4000).in_vfork());
    }

    const STATUS: &[u8] = b"Name:\tsh\nSigPnd:\t0000000000000000\nSigBlk:\t8000000000010000\n\
        SigIgn:\t0000000000000000\nvoluntary_ctxt_switches:\t151\nnonvoluntary_ctxt_switches:\t545\n";

    #[test]
    fn status_rows() {
        assert_eq!(nr_switches(STATUS), Some(151 + 545));
        assert_eq!(
            row(STATUS, b"SigBlk:").and_then(hex),
            Some(1 << 63 | 1 << 16)
        );
        assert_eq!(
            nr_switches(b"Name:\tx\nvoluntary_ctxt_switches:\t1\n"),
            None
        );
        assert_eq!(nr_timeslices(b"123 456 789\n"), Some(789));
        assert_eq!(nr_timeslices(b"123 456\n"), None);
    }

    #[test]
    fn a_thread_has_an_id_in_each_namespace() {
        let own_and_shown = |status: &[u8]| ids(status).map(|tid| (tid.own, tid.shown));
        for (status, want) in [
            ("Pid:\t77\nNSpid:\t77\n", Some((77, 77))),
            (
                "Tgid:\t900\nPid:\t901\nNSpid:\t901\t40\t3\n",
                Some((3, 901)),
            ),
            ("Pid:\t77\nPPid:\t1\n", Some((77, 77))),
            ("NSpid:\t901\t3\n", None),
            ("Pid:\t77\nNSpid:\t\n", None),
        ] {
            assert_eq!(own_and_shown(status.as_bytes()), want, "{status:?}");
        }
    }

    #[test]
    fn threads_that_run_no_user_code_are_known_by_their_stat() {
        for (stat, want) in [
            ("81 (iou-sqp-80) S 1 80 80 0 -1 4210704 0 0", Some(true)),
            ("81 (iou) S 1 (x) R 1 80 80 0 -1 4194368 0 0", Some(false)),
            ("80 (leader) Z 1 80 80 0 -1 4227084 0 0", Some(true)),
            ("80 (x) R 1 80 80 0 -1", None),
            ("80", None),
        ] {
            assert_eq!(never_in_user_code(stat.as_bytes()), want, "{stat}");
        }
    }

    #[test]
    fn runs_join_adjacent_writable_mappings_only() {
        let mut runs = StackRuns::default();
        runs.parse(
            b"1000-2000 r-xp 00000000 00:00 0 /bin/x\n\
              2000-3000 rw-p 00000000 00:00 0 /bin/x\n\
              3000-4000 rw-p 00000000 00:00 0 [heap]\n\
              4000-5000 ---p 00000000 00:00 0\n\
              5000-7000 rw-p 00000000 00:00 0\n\
              8000-9000 rw-s 00000000 00:00 0 /memfd:a b (deleted)\n",
        )
        .expect("the sample parses");
        assert_eq!(
            runs.0,
            [(0x2000, 0x4000), (0x5000, 0x7000), (0x8000, 0x9000)]
        );
        for (sp, want) in [
            (0x1fff, None),
            (0x2000, Some(0x4000)),
            (0x3fff, Some(0x4000)),
            (0x4000, None),
            (0x7000, None),
            (0x8ff8, Some(0x9000)),
            (0, None),
        ] {
            assert_eq!(runs.end_of(sp), want, "{sp:#x}");
        }
        assert_eq!(runs.parse(b"zz-1000 rw-p\n"), None);
    }

    /// Signals that come all the time end no list early.
    #[test]
    fn threads_are_listed_whole_under_signals() {
        use std::sync::atomic::{AtomicBool, Ordering};
        const THREADS: usize = 40;
        extern "C" fn nothing(_: libc::c_int) {}
        let handler: extern "C" fn(libc::c_int) = nothing;
        // SAFETY: 1. the handler does nothing.
        unsafe { libc::signal(libc::SIGURG, handler as libc::sighandler_t) };
        let tasks = Tasks::open().expect("/proc is there");
        let (me, done) = (sys::gettid(), AtomicBool::new(false));
        std::thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    while !done.load(Ordering::Relaxed) {
                        std::thread::park_timeout(std::time::Duration::from_millis(50));
                    }
                });
            }
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    // SAFETY: 1. the signal has a handler.
                    unsafe { libc::syscall(libc::SYS_tgkill, sys::getpid(), me, libc::SIGURG) };
                }
            });
            let (mut tids, mut buf) = (Vec::new(), vec![0; 64 << 10]);
            let short = (0..500).find_map(|_| {
                while list_threads(&tasks, &mut tids, &mut buf) == Err(libc::EAGAIN) {}
                (tids.len() < THREADS + 2).then_some(tids.len())
            });
            done.store(true, Ordering::Relaxed);
            assert_eq!(short, None, "threads are missing");
        });
    }

    #[test]
    fn the_kernels_own_files_parse() {
        let (mut tids, mut buf) = (Vec::new(), vec![0; 256]);
        let tasks = Tasks::open().expect("/proc is there");
        while list_threads(&tasks, &mut tids, &mut buf) == Err(libc::EAGAIN) {}
        let me = tasks.me;
        assert!(tids.contains(&me), "{tids:?}");
        assert_eq!((me.own, me.shown), (sys::gettid(), sys::gettid()));
        let mut runs = StackRuns::default();
        assert_eq!(runs.read(&mut buf), Ok(()));
        let here = std::ptr::from_ref(&runs).addr() as u64;
        assert!(runs.end_of(here).is_some_and(|end| end > here));
        let own = Task::open(&tasks, me).expect("own files open");
        assert!(matches!(
            own.syscall(),
            Ok(SyscallLine::Blocked {
                nr: libc::SYS_pread64,
                ..
            })
        ));
        assert!(own.nr_runs().is_ok());
        assert_eq!(tasks.shown(), Shown::Ours);
        assert_eq!(tasks.blocks_signal(me, libc::SIGRTMAX()), Ok(false));
        assert_eq!(tasks.is_in_kernel_for_good(me), Ok(false));
        let nobody = Tid {
            own: i32::MAX,
            shown: i32::MAX,
        };
        assert_eq!(Task::open(&tasks, nobody).err(), Some(libc::ENOENT));
    }
}
