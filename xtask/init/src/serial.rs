//! The VM's end of the serial line.
//!
//! Every frame that was sent is kept until the host says that it has everything,
//! so that any can be sent again. Two threads serve the line: one sends a
//! heartbeat, one answers the host's requests.
//!
//! Key type: [`Serial`]. Neighbours: [`lab_init::protocol`], whose other end is
//! in `xtask`.

use std::{
    fs::File,
    io::{BufRead, BufReader, Write},
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{self, Receiver, Sender},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result};
use lab_init::protocol::{Event, Request, encode};
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};

/// How often the VM says that it is there.
const HEARTBEAT: Duration = Duration::from_secs(2);
/// How long the VM waits for the host's last word.
const END_LIMIT: Duration = Duration::from_secs(60);

/// The line to the host.
pub(crate) struct Serial {
    sent: Arc<Mutex<Sent>>,
    end: Receiver<()>,
}

/// Everything sent so far; the index is the sequence number.
struct Sent {
    line: File,
    frames: Vec<String>,
}

impl Serial {
    /// Takes `/dev/console` over, in raw mode.
    pub(crate) fn open() -> Result<Self> {
        let line = File::options().read(true).write(true).open("/dev/console");
        let line = line.context("/dev/console")?;
        let mut termios = tcgetattr(&line).context("tcgetattr")?;
        termios.make_raw();
        tcsetattr(&line, OptionalActions::Now, &termios).context("tcsetattr")?;
        let requests = BufReader::new(line.try_clone()?);
        let sent = Arc::new(Mutex::new(Sent {
            line,
            frames: Vec::new(),
        }));
        let (sender, end) = mpsc::channel();
        let for_requests = Arc::clone(&sent);
        thread::spawn(move || answer(requests, &for_requests, &sender));
        let for_heartbeat = Arc::clone(&sent);
        thread::spawn(move || {
            loop {
                thread::sleep(HEARTBEAT);
                // A line that cannot be written to is seen by whoever sends an event.
                let _ = locked(&for_heartbeat, Sent::heartbeat);
            }
        });
        Ok(Self { sent, end })
    }

    /// Sends one event.
    pub(crate) fn send(&self, event: Event) -> Result<()> {
        let ended = event == Event::Done;
        locked(&self.sent, |sent| {
            let frame = encode(sent.frames.len() as u64, &event);
            sent.frames.push(frame);
            sent.write(sent.frames.len() - 1)?;
            // The host learns at once whether the last frame arrived.
            if ended { sent.heartbeat() } else { Ok(()) }
        })
    }

    /// Waits until the host has everything.
    pub(crate) fn wait_for_end(&self) {
        // No word for so long: the host is gone, and there is nobody to tell.
        let _ = self.end.recv_timeout(END_LIMIT);
    }
}

impl Sent {
    fn write(&mut self, seq: usize) -> Result<()> {
        let frame = self
            .frames
            .get(seq)
            .context("the host asks for a frame never sent")?;
        Ok(self.line.write_all(frame.as_bytes())?)
    }

    fn heartbeat(&mut self) -> Result<()> {
        let frame = encode(self.frames.len() as u64, &Event::Heartbeat);
        Ok(self.line.write_all(frame.as_bytes())?)
    }
}

fn locked<T>(sent: &Mutex<Sent>, f: impl FnOnce(&mut Sent) -> T) -> T {
    f(&mut sent.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Answers the host's requests until the line ends.
fn answer(requests: BufReader<File>, sent: &Mutex<Sent>, end: &Sender<()>) {
    for line in requests.lines() {
        let Ok(line) = line else { return };
        match line.parse() {
            Ok(Request::Resend { first, end }) => locked(sent, |sent| {
                for seq in first..end {
                    // What cannot be sent now is asked for again.
                    let _ = sent.write(usize::try_from(seq).unwrap_or(usize::MAX));
                }
            }),
            Ok(Request::End) => {
                // Nobody waits yet: the word is kept in the channel.
                let _ = end.send(());
            }
            // Noise on the line; the host repeats what matters.
            Err(()) => {}
        }
    }
}
