//! Events as lines on a serial console that the kernel writes to as well.
//!
//! A frame is one line: `MARK seq crc json`. The kernel may print in the middle
//! of a line, so a frame can arrive broken. It is then dropped for its checksum,
//! the gap in the sequence numbers is seen with the next whole frame (a
//! heartbeat at the latest), and the [`Receiver`] asks for it again with a
//! [`Request`] on the same line. Everything that is not a frame is console text.
//!
//! Key types: [`Event`], [`Receiver`], [`Request`]. Neighbours: `lab-init` sends,
//! `xtask` receives.

use std::{collections::BTreeMap, fmt, str::FromStr};

use base64::{Engine, prelude::BASE64_STANDARD};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Starts a frame; the record separator never stands in JSON.
const MARK: &str = "\u{1e}LAB ";
/// The most bytes of output or file that one frame carries.
pub const CHUNK_BYTES: usize = 3 << 10;

/// What happened on the riscv64 side.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// The machine is up.
    Ready {
        /// The kernel's release.
        kernel: String,
    },
    /// Nothing but: still here. Not part of the sequence; its number is that of
    /// the next event.
    Heartbeat,
    /// The test `name` of `job` begins.
    TestStarted {
        /// The job.
        job: String,
        /// The test.
        name: String,
    },
    /// The test that was started last has ended.
    TestEnded {
        /// How.
        outcome: Outcome,
        /// After how long.
        millis: u64,
    },
    /// A test that is marked `#[ignore]`.
    TestIgnored {
        /// The job.
        job: String,
        /// The test.
        name: String,
    },
    /// A part of what the running program wrote, or of what a failing test
    /// wrote; the latter comes just before its [`Event::TestEnded`].
    Output {
        /// Where to.
        stream: Stream,
        /// What.
        data: Blob,
    },
    /// A program job has ended.
    ProgramEnded {
        /// The job.
        job: String,
        /// Its exit code; 128 + N when signal N ended it.
        code: i32,
    },
    /// A job that could not be run at all.
    JobFailed {
        /// The job.
        job: String,
        /// Why.
        why: String,
    },
    /// A part of a file under the out folder. Parts come in order.
    File {
        /// Its name relative to the out folder.
        name: String,
        /// What.
        data: Blob,
    },
    /// All jobs are done.
    Done,
}

/// How a test ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// Exit code 0.
    Passed,
    /// Another exit code, a signal, or the time limit.
    Failed {
        /// Which of them, in words.
        how: String,
    },
}

/// Where output went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Bytes, as base64 in JSON.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Blob(pub Vec<u8>);

impl Serialize for Blob {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&BASE64_STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Blob {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = BASE64_STANDARD.decode(text);
        bytes.map(Blob).map_err(serde::de::Error::custom)
    }
}

/// The frame that carries `event` as number `seq`, with its line end.
#[must_use]
pub fn encode(seq: u64, event: &Event) -> String {
    let json = serde_json::to_string(event).expect("events hold strings and numbers only");
    let body = format!("{seq} {json}");
    let crc = crc32fast::hash(body.as_bytes());
    format!("{MARK}{crc:08x} {body}\n")
}

/// The number and event of a whole frame, without its mark.
fn decode(frame: &str) -> Option<(u64, Event)> {
    let (crc, body) = frame.split_once(' ')?;
    if u32::from_str_radix(crc, 16).ok()? != crc32fast::hash(body.as_bytes()) {
        return None;
    }
    let (seq, json) = body.split_once(' ')?;
    Some((seq.parse().ok()?, serde_json::from_str(json).ok()?))
}

/// What the host asks of the VM, one line each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Send these frames again.
    Resend {
        /// The first one.
        first: u64,
        /// The one after the last one.
        end: u64,
    },
    /// Everything has arrived: end the machine.
    End,
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Resend { first, end } => write!(f, "resend {first} {end}"),
            Self::End => write!(f, "end"),
        }
    }
}

impl FromStr for Request {
    type Err = ();

    fn from_str(line: &str) -> Result<Self, ()> {
        let words: Vec<_> = line.split_whitespace().collect();
        let number = |word: &str| word.parse().map_err(|_| ());
        match *words.as_slice() {
            ["resend", first, end] => {
                let (first, end) = (number(first)?, number(end)?);
                Ok(Self::Resend { first, end })
            }
            ["end"] => Ok(Self::End),
            _ => Err(()),
        }
    }
}

/// What one console line came to.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Received {
    /// Events that are now complete, in order.
    pub events: Vec<Event>,
    /// What to ask the VM for.
    pub request: Option<Request>,
    /// Text that is no frame: the kernel's, or a broken frame.
    pub console: Option<String>,
}

/// Puts events back in order.
#[derive(Debug, Default)]
pub struct Receiver {
    next: u64,
    held: BTreeMap<u64, Event>,
    asked_end: u64,
}

impl Receiver {
    /// Takes one line of the console.
    pub fn line(&mut self, line: &str) -> Received {
        let line = line.trim_end_matches(['\r', '\n']);
        let (text, frame) = match line.split_once(MARK) {
            Some((text, frame)) => (text, Some(frame)),
            None => (line, None),
        };
        let mut received = Received::default();
        let console = match frame.map(decode) {
            Some(Some((seq, event))) => {
                self.frame(seq, event, &mut received);
                text
            }
            Some(None) => line,
            None => text,
        };
        if !console.trim().is_empty() {
            received.console = Some(console.to_owned());
        }
        received
    }

    fn frame(&mut self, seq: u64, event: Event, received: &mut Received) {
        let heartbeat = event == Event::Heartbeat;
        if heartbeat {
            // What was asked for before the last heartbeat is lost again: ask anew.
            self.asked_end = self.next;
        } else if seq >= self.next {
            self.held.insert(seq, event);
        }
        while let Some(event) = self.held.remove(&self.next) {
            self.next += 1;
            received.events.push(event);
        }
        let end = self.held.keys().next().copied();
        let end = end.or((heartbeat && seq > self.next).then_some(seq));
        if let Some(end) = end {
            let first = self.next.max(self.asked_end);
            if first < end {
                received.request = Some(Request::Resend { first, end });
                self.asked_end = end;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn out(text: &str) -> Event {
        let data = Blob(text.as_bytes().to_vec());
        Event::Output {
            stream: Stream::Stdout,
            data,
        }
    }

    fn frames(count: u64) -> Vec<String> {
        (0..count)
            .map(|i| encode(i, &out(&format!("\u{1e}LAB {i}\n"))))
            .collect()
    }

    #[test]
    fn events_survive_the_line() {
        let mut receiver = Receiver::default();
        for (i, frame) in frames(3).iter().enumerate() {
            assert_eq!(frame.matches('\n').count(), 1);
            let got = receiver.line(frame);
            assert_eq!(got.events, [out(&format!("\u{1e}LAB {i}\n"))]);
            assert_eq!((got.request, got.console), (None, None));
        }
    }

    #[test]
    fn kernel_text_before_a_frame_is_console_text() {
        let mut receiver = Receiver::default();
        let got = receiver.line(&format!("[    1.0] oops{}", frames(1)[0]));
        assert_eq!(got.console.as_deref(), Some("[    1.0] oops"));
        assert_eq!(got.events.len(), 1);
    }

    #[test]
    fn a_frame_broken_by_the_kernel_is_asked_for_again() {
        let frames = frames(3);
        let mut receiver = Receiver::default();
        assert_eq!(receiver.line(&frames[0]).events.len(), 1);
        let (left, right) = frames[1].split_at(20);
        let got = receiver.line(&format!("{left}[    1.0] message"));
        assert!(got.events.is_empty() && got.request.is_none() && got.console.is_some());
        assert!(receiver.line(right).events.is_empty());
        let got = receiver.line(&frames[2]);
        assert!(got.events.is_empty());
        assert_eq!(got.request, Some(Request::Resend { first: 1, end: 2 }));
        let got = receiver.line(&frames[1]);
        assert_eq!(got.events.len(), 2);
        assert_eq!(got.request, None);
    }

    #[test]
    fn a_heartbeat_shows_that_the_last_frame_is_missing_and_asks_once_each() {
        let frames = frames(2);
        let mut receiver = Receiver::default();
        let beat = encode(2, &Event::Heartbeat);
        let want = Some(Request::Resend { first: 0, end: 2 });
        assert_eq!(receiver.line(&beat).request, want);
        // The answer to it is under way: frame 1 arrives, frame 0 is lost again.
        assert_eq!(receiver.line(&frames[1]).request, None);
        let want = Some(Request::Resend { first: 0, end: 1 });
        assert_eq!(receiver.line(&beat).request, want);
        assert_eq!(receiver.line(&frames[0]).events.len(), 2);
        assert_eq!(receiver.line(&beat).request, None);
        // What was resent for nothing changes nothing.
        assert_eq!(receiver.line(&frames[0]), Received::default());
    }

    #[test]
    fn requests_survive_the_line() {
        for request in [Request::Resend { first: 3, end: 9 }, Request::End] {
            assert_eq!(request.to_string().parse(), Ok(request));
        }
        assert_eq!("resend 3".parse::<Request>(), Err(()));
    }

    #[test]
    fn one_changed_byte_is_seen() {
        let frame = encode(7, &out("hello"));
        for i in MARK.len()..frame.len() - 1 {
            let mut bytes = frame.clone().into_bytes();
            bytes[i] ^= 1;
            let text = String::from_utf8(bytes).unwrap();
            let got = Receiver::default().line(&text);
            assert!(got.events.is_empty() && got.request.is_none(), "byte {i}");
        }
    }
}
