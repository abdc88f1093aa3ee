//! Runs jobs and tells what happens.
//!
//! Tests run one process each, one after the other: a test that crashes takes
//! nobody along, a test that hangs can be named and killed, and tests that
//! measure or race have the machine to themselves.
//!
//! Key function: [`run`]. Neighbours: `job` says what to run, `protocol` what is
//! told.

use std::{
    ffi::OsStr,
    fs::File,
    io::{Read, Seek, SeekFrom},
    os::unix::process::{CommandExt, ExitStatusExt},
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc::{self, RecvTimeoutError, Sender},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{MemfdFlags, memfd_create},
    io::Errno,
    process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open},
};

use crate::{
    job::{Job, Kind, LIMIT_VAR, SHOW_VAR},
    protocol::{Blob, CHUNK_BYTES, Event, Outcome, Stream},
};

/// How long listing a job's tests may take.
const LIST_LIMIT: Duration = Duration::from_secs(60);
/// The most that is told of what one test wrote.
const OUTPUT_LIMIT_BYTES: u64 = 1 << 20;
/// How long output may still come after a program has ended (from children that
/// hold its pipes).
const OUTPUT_GRACE: Duration = Duration::from_secs(2);

/// Runs `jobs` in order and tells `sink` what happens. A job that cannot be run
/// is told as [`Event::JobFailed`] and the next one goes on.
pub fn run(jobs: &[Job], sink: &mut dyn FnMut(Event)) {
    for job in jobs {
        let result = match &job.kind {
            Kind::Tests { filters, skip } => run_tests(job, &chosen(filters, skip), sink),
            Kind::Program { args } => run_program(job, args, sink),
        };
        if let Err(error) = result {
            let why = format!("{error:#}");
            sink(Event::JobFailed {
                job: job.name.clone(),
                why,
            });
        }
    }
}

/// libtest's arguments for these tests.
fn chosen<'a>(filters: &'a [String], skip: &'a [String]) -> Vec<&'a str> {
    let skip = skip.iter().flat_map(|name| ["--skip", name]);
    filters.iter().map(String::as_str).chain(skip).collect()
}

fn run_tests(job: &Job, chosen: &[&str], sink: &mut dyn FnMut(Event)) -> Result<()> {
    let ignored = list(job, chosen, Some("--ignored"))?;
    for name in list(job, chosen, None)? {
        let job_name = job.name.clone();
        if ignored.contains(&name) {
            sink(Event::TestIgnored {
                job: job_name,
                name,
            });
            continue;
        }
        sink(Event::TestStarted {
            job: job_name,
            name: name.clone(),
        });
        let start = Instant::now();
        let args = ["--exact", &name, "--nocapture", "--test-threads=1"];
        let limit = job.test_limit(&name).context(LIMIT_VAR)?;
        let ended = run_captured(job, &args, limit)?;
        let millis = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
        let outcome = ended.outcome();
        if outcome != Outcome::Passed || job.env.contains_key(SHOW_VAR) {
            for part in ended.output.chunks(CHUNK_BYTES) {
                let data = Blob(part.to_vec());
                sink(Event::Output {
                    stream: Stream::Stdout,
                    data,
                });
            }
        }
        sink(Event::TestEnded { outcome, millis });
    }
    Ok(())
}

/// The names of a libtest executable's tests.
fn list(job: &Job, chosen: &[&str], extra: Option<&str>) -> Result<Vec<String>> {
    let mut args = vec!["--list", "--format=terse"];
    args.extend(extra);
    args.extend(chosen);
    let ended = run_captured(job, &args, LIST_LIMIT)?;
    let text = String::from_utf8_lossy(&ended.output);
    if ended.outcome() != Outcome::Passed {
        bail!("listing its tests failed: {}\n{text}", ended.how());
    }
    let names = text.lines().filter_map(|line| line.strip_suffix(": test"));
    Ok(names.map(str::to_owned).collect())
}

/// A process that has ended, and what it wrote.
struct Ended {
    /// None: it was killed at its time limit.
    status: Option<ExitStatus>,
    limit: Duration,
    output: Vec<u8>,
}

impl Ended {
    fn outcome(&self) -> Outcome {
        match self.status {
            Some(status) if status.success() => Outcome::Passed,
            _ => Outcome::Failed { how: self.how() },
        }
    }

    fn how(&self) -> String {
        match self.status {
            None => format!("hung: killed after its limit of {} s", self.limit.as_secs()),
            Some(status) => status.to_string(),
        }
    }
}

/// Runs a job's executable to its end or its limit, its output kept.
fn run_captured(job: &Job, args: &[&str], limit: Duration) -> Result<Ended> {
    // A file, not a pipe: a grandchild that outlives the test holds up nobody.
    let fd = memfd_create("output", MemfdFlags::CLOEXEC).context("no file for the output")?;
    let mut output = File::from(fd);
    let mut child = command(job)
        .args(args)
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output.try_clone()?)
        .spawn()
        .with_context(|| format!("cannot start {}", job.path.display()))?;
    let ended = wait(&child, limit)?;
    let threads = if ended {
        String::new()
    } else {
        describe_threads(child.id())
    };
    // The child is not reaped yet, so its number still names its own group.
    kill_group(&child);
    let status = Some(child.wait()?).filter(|_| ended);
    let mut bytes = read_tail(&mut output)?;
    bytes.extend_from_slice(threads.as_bytes());
    Ok(Ended {
        status,
        limit,
        output: bytes,
    })
}

fn read_tail(output: &mut File) -> Result<Vec<u8>> {
    let len_bytes = output.seek(SeekFrom::End(0))?;
    let skipped_bytes = len_bytes.saturating_sub(OUTPUT_LIMIT_BYTES);
    output.seek(SeekFrom::Start(skipped_bytes))?;
    let mut bytes = Vec::new();
    if skipped_bytes > 0 {
        bytes.extend_from_slice(format!("[{skipped_bytes} bytes left out]\n").as_bytes());
    }
    output.take(OUTPUT_LIMIT_BYTES).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn command(job: &Job) -> Command {
    let mut words = job
        .launcher
        .iter()
        .map(OsStr::new)
        .chain([job.path.as_os_str()]);
    let mut command = Command::new(words.next().unwrap_or_default());
    command.args(words);
    command
        .current_dir(&job.dir)
        .envs(&job.env)
        .process_group(0);
    command
}

/// Waits until `child` has ended, without reaping it, or `limit` has passed:
/// whether it has ended.
fn wait(child: &Child, limit: Duration) -> Result<bool> {
    let pidfd = pidfd_open(pid_of(child), PidfdFlags::empty()).context("pidfd_open")?;
    let start = Instant::now();
    loop {
        // None, no limit, when it is too long for a timespec.
        let left = Timespec::try_from(limit.saturating_sub(start.elapsed())).ok();
        match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], left.as_ref()) {
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error).context("poll"),
        }
    }
}

fn pid_of(child: &Child) -> Pid {
    Pid::from_child(child)
}

/// Ends what a job may have left behind in its process group.
fn kill_group(child: &Child) {
    // ESRCH, nobody left, is the usual answer.
    let _ = kill_process_group(pid_of(child), Signal::KILL);
}

/// Where the threads of a hanging process are, for the report.
fn describe_threads(pid: u32) -> String {
    let mut text = String::from("\nthreads when the limit passed:\n");
    let tasks = format!("/proc/{pid}/task");
    for task in std::fs::read_dir(tasks).into_iter().flatten().flatten() {
        let read = |file: &str| {
            let text = std::fs::read_to_string(task.path().join(file)).unwrap_or_default();
            text.trim().to_owned()
        };
        let status = read("status");
        let state = status.lines().find_map(|line| line.strip_prefix("State:"));
        text += &format!(
            "  {} {}: {}; in {}; syscall {}\n",
            task.file_name().to_string_lossy(),
            read("comm"),
            state.unwrap_or("gone").trim(),
            read("wchan"),
            read("syscall"),
        );
    }
    text
}

/// Runs a program, its output told as it comes.
fn run_program(job: &Job, args: &[String], sink: &mut dyn FnMut(Event)) -> Result<()> {
    let mut child = command(job)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {}", job.path.display()))?;
    let (sender, parts) = mpsc::channel();
    forward(child.stdout.take(), Stream::Stdout, sender.clone());
    forward(child.stderr.take(), Stream::Stderr, sender);
    let mut ended = None;
    loop {
        match parts.recv_timeout(Duration::from_millis(100)) {
            Ok(event) => sink(event),
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                if wait(&child, Duration::ZERO)? {
                    let since: &mut Instant = ended.get_or_insert_with(Instant::now);
                    if since.elapsed() > OUTPUT_GRACE {
                        break;
                    }
                }
            }
        }
    }
    wait(&child, Duration::MAX)?;
    kill_group(&child);
    let status = child.wait()?;
    let code = status.code().or(status.signal().map(|signal| 128 + signal));
    let code = code.unwrap_or(1);
    sink(Event::ProgramEnded {
        job: job.name.clone(),
        code,
    });
    Ok(())
}

/// Sends what comes out of `pipe` until its end, from a thread of its own.
fn forward(pipe: Option<impl Read + Send + 'static>, stream: Stream, sender: Sender<Event>) {
    let Some(mut pipe) = pipe else { return };
    thread::spawn(move || {
        let mut part = [0; CHUNK_BYTES];
        while let Ok(len_bytes @ 1..) = pipe.read(&mut part) {
            let data = Blob(part[..len_bytes].to_vec());
            if sender.send(Event::Output { stream, data }).is_err() {
                return;
            }
        }
    });
}

/// Tells the files under `dir`, except those below folders that cannot be read.
pub fn send_files(dir: &Path, sink: &mut dyn FnMut(Event)) -> Result<()> {
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let bytes = std::fs::read(&path)?;
            let name = path.strip_prefix(dir)?.to_string_lossy().into_owned();
            // An empty file is a file too: one part at least.
            let mut parts = bytes.chunks(CHUNK_BYTES);
            let mut part = Some(parts.next().unwrap_or_default());
            while let Some(bytes) = part {
                let data = Blob(bytes.to_vec());
                sink(Event::File {
                    name: name.clone(),
                    data,
                });
                part = parts.next();
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
