//! Holds back single messages between a part and the server, so that a test can end a part at an exact point.
//!
//! A message that is held stays where it is until the gate is opened; whatever comes after it passes. So a test says
//! which message is the last that a part gets out or hears, waits until it has been held, and kills the part.

use std::fmt;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use tokio::sync::watch;

/// Which way a message goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From the part to the server.
    ToServer,
    /// From the server to the part.
    ToPart,
}

/// A message on its way.
#[derive(Debug, Clone, Copy)]
pub struct Passing<'a> {
    /// Its way.
    pub way: Way,
    /// Its subject.
    pub subject: &'a str,
    /// Where an answer to it is expected.
    pub reply: Option<&'a str>,
    /// Its body.
    pub payload: &'a [u8],
    headers: &'a [u8],
}

/// What a rule says of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on.
    Pass,
    /// It stays until the gate is opened.
    Hold,
}

type Rule = dyn FnMut(&Passing<'_>) -> Verdict + Send;

/// A rule for the messages of one part. Clones are one gate.
#[derive(Clone)]
pub struct Gate {
    /// Guards what the rule remembers: both ways of every connection ask it, each for a moment, and need the answer
    /// before their next byte.
    rule: Arc<Mutex<Rule>>,
    is_open: watch::Sender<bool>,
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_open = *self.is_open.borrow();
        f.debug_struct("Gate")
            .field("is_open", &is_open)
            .finish_non_exhaustive()
    }
}

impl Gate {
    /// A closed gate, which asks a rule about each message.
    pub fn new(rule: impl FnMut(&Passing<'_>) -> Verdict + Send + 'static) -> Self {
        Self {
            rule: Arc::new(Mutex::new(rule)),
            is_open: watch::Sender::new(false),
        }
    }

    /// Lets go what was held, in its order, and everything that comes.
    pub fn open(&self) {
        self.is_open.send_replace(true);
    }

    fn verdict(&self, message: &Passing<'_>) -> Verdict {
        if *self.is_open.borrow() {
            return Verdict::Pass;
        }
        let mut rule = self.rule.lock().expect("a rule does not panic");
        rule(message)
    }
}

impl<'a> Passing<'a> {
    /// The value of a header.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&'a str> {
        let headers = std::str::from_utf8(self.headers).ok()?;
        let mut fields = headers.split("\r\n").filter_map(|line| line.split_once(':'));
        fields
            .find(|(field, _)| *field == name)
            .map(|(_, value)| value.trim())
    }
}

/// One direction of one connection, cut into messages.
pub(crate) struct Sieve {
    way: Way,
    gate: Gate,
    is_open: watch::Receiver<bool>,
    /// Bytes that are no whole message yet.
    rest: Vec<u8>,
    held: Vec<u8>,
}

impl Sieve {
    pub(crate) fn new(way: Way, gate: &Gate) -> Self {
        Self {
            way,
            gate: gate.clone(),
            is_open: gate.is_open.subscribe(),
            rest: Vec::new(),
            held: Vec::new(),
        }
    }

    /// Takes bytes in and gives those that go on.
    pub(crate) fn sift(&mut self, bytes: &[u8]) -> Bytes {
        self.rest.extend_from_slice(bytes);
        let mut passed = self.let_go();
        let mut begin = 0;
        while let Some((length, message)) = first_message(self.way, &self.rest[begin..]) {
            let end = begin + length;
            let verdict = message.map_or(Verdict::Pass, |message| self.gate.verdict(&message));
            let into = match verdict {
                Verdict::Pass => &mut passed,
                Verdict::Hold => &mut self.held,
            };
            into.extend_from_slice(&self.rest[begin..end]);
            begin = end;
        }
        self.rest.drain(..begin);
        passed.into()
    }

    /// Waits until the gate is open and gives what was held; for ever when nothing is.
    pub(crate) async fn opened(&mut self) -> Bytes {
        let opened = self.is_open.wait_for(|is_open| *is_open).await.is_ok();
        if !opened || self.held.is_empty() {
            return std::future::pending().await;
        }
        std::mem::take(&mut self.held).into()
    }

    fn let_go(&mut self) -> Vec<u8> {
        if *self.is_open.borrow() {
            std::mem::take(&mut self.held)
        } else {
            Vec::new()
        }
    }
}

/// How many bytes the first operation has, and its message if it carries one; nothing while it is not whole.
fn first_message(way: Way, bytes: &[u8]) -> Option<(usize, Option<Passing<'_>>)> {
    let line_end = bytes.windows(2).position(|pair| pair == b"\r\n")?;
    let body = line_end + 2;
    let line = std::str::from_utf8(&bytes[..line_end]).unwrap_or_default();
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    let Some(parts) = parts(&words) else {
        return Some((body, None));
    };
    let content = bytes.get(body..body + parts.bytes)?;
    let length = body + parts.bytes + 2;
    let (headers, payload) = content.split_at(parts.header_bytes.min(content.len()));
    let message = Passing {
        way,
        subject: parts.subject,
        reply: parts.reply,
        payload,
        headers,
    };
    (bytes.len() >= length).then_some((length, Some(message)))
}

/// What the line before a message says.
struct Parts<'a> {
    subject: &'a str,
    reply: Option<&'a str>,
    header_bytes: usize,
    /// Of headers and body.
    bytes: usize,
}

/// Reads `PUB` and `HPUB` of a client, `MSG` and `HMSG` of a server; other operations carry no message.
fn parts<'a>(words: &[&'a str]) -> Option<Parts<'a>> {
    let (subject, reply, header_bytes, bytes) = match *words {
        ["PUB", subject, bytes] | ["MSG", subject, _, bytes] => (subject, None, "0", bytes),
        ["PUB", subject, reply, bytes] | ["MSG", subject, _, reply, bytes] => {
            (subject, Some(reply), "0", bytes)
        }
        ["HPUB", subject, headers, bytes] | ["HMSG", subject, _, headers, bytes] => {
            (subject, None, headers, bytes)
        }
        ["HPUB", subject, reply, headers, bytes] | ["HMSG", subject, _, reply, headers, bytes] => {
            (subject, Some(reply), headers, bytes)
        }
        _ => return None,
    };
    Some(Parts {
        subject,
        reply,
        header_bytes: header_bytes.parse().ok()?,
        bytes: bytes.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const WIRE: &[u8] = b"CONNECT {\"verbose\":false}\r\nPUB a 2\r\nhi\r\n\
        HPUB b in.1 23 27\r\nNATS/1.0\r\nKind: end\r\n\r\nbody\r\nSUB x 1\r\nPUB a in.2 0\r\n\r\nPING\r\n";

    fn told(message: &Passing<'_>) -> (String, Option<String>, Option<String>, Vec<u8>) {
        (
            message.subject.to_owned(),
            message.reply.map(str::to_owned),
            message.header("Kind").map(str::to_owned),
            message.payload.to_vec(),
        )
    }

    #[test]
    fn every_message_is_asked_about_however_the_bytes_come() {
        for size in 1..WIRE.len() {
            let seen = Arc::new(Mutex::new(Vec::new()));
            let gate = Gate::new({
                let seen = Arc::clone(&seen);
                move |message| {
                    seen.lock().unwrap().push(told(message));
                    Verdict::Pass
                }
            });
            let mut sieve = Sieve::new(Way::ToServer, &gate);
            let passed: Vec<u8> = WIRE.chunks(size).flat_map(|chunk| sieve.sift(chunk)).collect();
            assert_eq!(passed, WIRE, "in pieces of {size}");
            let seen = seen.lock().unwrap();
            let expected = [
                ("a", None, None, "hi"),
                ("b", Some("in.1"), Some("end"), "body"),
                ("a", Some("in.2"), None, ""),
            ]
            .map(|(subject, reply, kind, body)| {
                let owned = |text: &str| text.to_owned();
                (
                    owned(subject),
                    reply.map(owned),
                    kind.map(owned),
                    body.as_bytes().to_vec(),
                )
            });
            assert_eq!(*seen, expected);
        }
    }

    #[tokio::test]
    async fn held_messages_come_in_order_when_the_gate_is_opened_and_the_others_before() {
        let gate = Gate::new(|message| match message.subject {
            "a" => Verdict::Hold,
            _ => Verdict::Pass,
        });
        let mut sieve = Sieve::new(Way::ToServer, &gate);
        let passed = sieve.sift(WIRE);
        assert!(!passed.windows(5).any(|bytes| bytes == b"PUB a"), "{passed:?}");
        assert!(passed.ends_with(b"SUB x 1\r\nPING\r\n"));
        gate.open();
        assert_eq!(
            &sieve.opened().await[..],
            b"PUB a 2\r\nhi\r\nPUB a in.2 0\r\n\r\n"
        );
        assert_eq!(&sieve.sift(b"PUB a 2\r\nhi\r\n")[..], b"PUB a 2\r\nhi\r\n");
    }
}
