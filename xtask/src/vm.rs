//! One boot of the VM: starts it, puts its events in order, and knows when it
//! is lost.
//!
//! Key function: [`run`]. Neighbours: [`lab_init::protocol`], whose other end is
//! the VM's first process; `lab` builds the command.

use std::{
    io::{BufRead, BufReader, Read, Write},
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{self, RecvTimeoutError, Sender},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use lab_init::protocol::{Event, Receiver, Request};

use crate::process::Tail;

/// How long the machine may take to switch itself off.
const END_LIMIT: Duration = Duration::from_secs(20);

/// What is done with text on the console that is no event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Console {
    /// Kept, and shown when the VM is lost.
    Kept,
    /// Shown as it comes.
    Shown,
}

/// Runs `command`, a VM with its console on standard input and output, to its
/// end, and tells `sink` what happens in it.
///
/// # Errors
/// When the VM ends before its jobs do, when its kernel panics, or when it is
/// silent for longer than `silence`.
pub(crate) fn run(
    mut command: Command,
    silence: Duration,
    console: Console,
    sink: &mut dyn FnMut(Event),
) -> Result<()> {
    let command = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut vm = Vm(command.spawn().context("cannot start the VM")?);
    let (sender, lines) = mpsc::channel();
    forward(vm.0.stdout.take(), sender.clone());
    forward(vm.0.stderr.take(), sender);
    let mut state = State {
        requests: vm.0.stdin.take(),
        ..State::default()
    };
    loop {
        let limit = if state.done { END_LIMIT } else { silence };
        match lines.recv_timeout(limit) {
            Ok(line) => state.line(&line, console, sink),
            // Its work is done and here: how it ends does not matter.
            Err(_) if state.done => return Ok(()),
            Err(RecvTimeoutError::Timeout) => {
                return state.lost(&format!("it was silent for {} s", silence.as_secs()));
            }
            Err(RecvTimeoutError::Disconnected) => {
                let status = vm.0.wait()?;
                return state.lost(&format!("it ended by itself ({status})"));
            }
        }
    }
}

/// Ends with us.
struct Vm(Child);

impl Drop for Vm {
    fn drop(&mut self) {
        // It has usually ended, and then this is refused.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[derive(Default)]
struct State {
    receiver: Receiver,
    requests: Option<ChildStdin>,
    tail: Tail,
    panic: Option<String>,
    done: bool,
}

impl State {
    fn line(&mut self, line: &str, console: Console, sink: &mut dyn FnMut(Event)) {
        let received = self.receiver.line(line);
        if let Some(text) = received.console {
            if console == Console::Shown {
                eprintln!("console: {text}");
            }
            if let Some(at) = text.find("Kernel panic") {
                self.panic = Some(text[at..].to_owned());
            }
            self.tail.push(text);
        } else if self.done {
            // A heartbeat after the end: our word was lost.
            self.request(Request::End);
        }
        if let Some(request) = received.request {
            self.request(request);
        }
        for event in received.events {
            if event == Event::Done {
                self.done = true;
                self.request(Request::End);
            } else {
                sink(event);
            }
        }
    }

    fn request(&mut self, request: Request) {
        if let Some(line) = &mut self.requests {
            // A VM that is gone is seen on the other pipe.
            let _ = writeln!(line, "{request}").and_then(|()| line.flush());
        }
    }

    fn lost(&self, how: &str) -> Result<()> {
        let how = self.panic.as_deref().unwrap_or(how);
        bail!(
            "the VM was lost: {how}; its console's last lines:\n{}",
            self.tail.text()
        )
    }
}

/// Sends the lines that come out of `pipe`, from a thread of its own.
fn forward(pipe: Option<impl Read + Send + 'static>, sender: Sender<String>) {
    let Some(pipe) = pipe else { return };
    thread::spawn(move || {
        for line in BufReader::new(pipe).split(b'\n').map_while(Result::ok) {
            if sender
                .send(String::from_utf8_lossy(&line).into_owned())
                .is_err()
            {
                return;
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use lab_init::protocol::{Blob, Stream, encode};

    use super::*;

    /// A VM that is a shell script.
    fn fake(script: &str) -> (Result<()>, Vec<Event>) {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        let mut events = Vec::new();
        let silence = Duration::from_millis(500);
        let result = run(command, silence, Console::Kept, &mut |event| {
            events.push(event)
        });
        (result, events)
    }

    fn ready() -> Event {
        Event::Ready {
            kernel: "6.12".to_owned(),
        }
    }

    fn frame(seq: u64, event: &Event) -> String {
        format!("printf '%s\\n' '{}'\n", encode(seq, event).trim_end())
    }

    #[test]
    fn a_vm_that_does_its_work_is_told_to_end() {
        let script = frame(0, &ready()) + &frame(1, &Event::Done) + "read word; [ $word = end ]";
        let (result, events) = fake(&script);
        result.unwrap();
        assert_eq!(events, [ready()]);
    }

    #[test]
    fn a_lost_frame_is_fetched() {
        let data = Blob(b"out".to_vec());
        let out = Event::Output {
            stream: Stream::Stdout,
            data,
        };
        let script = frame(0, &ready())
            + &frame(2, &Event::Done)
            + "read a b c; [ \"$a $b $c\" = 'resend 1 2' ] || exit 9\n"
            + &frame(1, &out)
            + "read word";
        let (result, events) = fake(&script);
        result.unwrap();
        assert_eq!(events, [ready(), out]);
    }

    #[test]
    fn each_loss_is_told_with_the_last_lines() {
        let panic = "echo '[ 3.1] Kernel panic - not syncing: sysrq triggered'; echo last";
        for (script, want) in [
            ("echo last; exit 3", "ended by itself (exit status: 3)"),
            ("echo last; exec sleep 60", "silent for 0 s"),
            (panic, "lost: Kernel panic - not syncing: sysrq triggered"),
            ("echo last >&2", "ended by itself"),
        ] {
            let (result, _) = fake(script);
            let text = result.unwrap_err().to_string();
            assert!(
                text.contains(want) && text.ends_with("    last"),
                "{script}: {text}"
            );
        }
    }

    #[test]
    fn a_vm_that_cannot_be_started_is_said() {
        let command = Command::new("/nowhere/qemu");
        let result = run(command, Duration::ZERO, Console::Kept, &mut |_| {});
        assert_eq!(result.unwrap_err().to_string(), "cannot start the VM");
    }
}
