//! The protocol of NATS, as far as subjects and the lengths of messages go.

use anyhow::{Context, Result, bail};
use bytes::{Bytes, BytesMut};

/// One operation, as it came and as it is understood.
#[derive(Debug)]
pub(super) struct Operation {
    pub(super) frame: Frame,
    /// All of its bytes.
    pub(super) raw: Bytes,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Frame {
    /// `PUB`, `HPUB`: from a part.
    Publish(Message),
    /// `MSG`, `HMSG`: from the server.
    Deliver(Message),
    /// `SUB`.
    Subscribe {
        subject: String,
        /// The part's number for it, as text.
        number: String,
    },
    Other,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) subject: String,
    pub(super) reply: Option<String>,
    /// Headers and payload.
    pub(super) body: Bytes,
}

/// Takes the next operation out of what came, if all of it is there.
///
/// # Errors
/// It is not the protocol, or too large.
pub(super) fn take(buffer: &mut BytesMut) -> Result<Option<Operation>> {
    let Some(line_bytes) = buffer.windows(2).position(|two| two == b"\r\n") else {
        anyhow::ensure!(buffer.len() <= LINE_BYTES_MAX, "a line without an end");
        return Ok(None);
    };
    let line = std::str::from_utf8(&buffer[..line_bytes]).context("a line that is no text")?;
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    let (shape, body_bytes) = shape(&words).with_context(|| format!("cannot understand {line:?}"))?;
    let body_start = line_bytes + 2;
    let Some(body_bytes) = body_bytes else {
        let raw = buffer.split_to(body_start).freeze();
        let frame = shape.into_frame(Bytes::new());
        return Ok(Some(Operation { frame, raw }));
    };
    anyhow::ensure!(body_bytes <= BODY_BYTES_MAX, "a message of {body_bytes} bytes");
    if buffer.len() < body_start + body_bytes + 2 {
        return Ok(None);
    }
    let raw = buffer.split_to(body_start + body_bytes + 2).freeze();
    let frame = shape.into_frame(raw.slice(body_start..body_start + body_bytes));
    Ok(Some(Operation { frame, raw }))
}

/// What a control line says.
enum Shape {
    Publish(String, Option<String>),
    Deliver(String, Option<String>),
    Subscribe(String, String),
    Other,
}

impl Shape {
    fn into_frame(self, body: Bytes) -> Frame {
        match self {
            Self::Publish(subject, reply) => Frame::Publish(Message { subject, reply, body }),
            Self::Deliver(subject, reply) => Frame::Deliver(Message { subject, reply, body }),
            Self::Subscribe(subject, number) => Frame::Subscribe { subject, number },
            Self::Other => Frame::Other,
        }
    }
}

/// The operation, and how many bytes follow its line where some do.
fn shape(words: &[&str]) -> Result<(Shape, Option<usize>)> {
    let own = |text: &str| text.to_owned();
    let verb = words.first().map(|verb| verb.to_ascii_uppercase());
    let (shape, bytes) = match (verb.as_deref(), &words[words.len().min(1)..]) {
        (Some("PUB"), [subject, bytes]) | (Some("HPUB"), [subject, _, bytes]) => {
            (Shape::Publish(own(subject), None), bytes)
        }
        (Some("PUB"), [subject, reply, bytes]) | (Some("HPUB"), [subject, reply, _, bytes]) => {
            (Shape::Publish(own(subject), Some(own(reply))), bytes)
        }
        (Some("MSG"), [subject, _, bytes]) | (Some("HMSG"), [subject, _, _, bytes]) => {
            (Shape::Deliver(own(subject), None), bytes)
        }
        (Some("MSG"), [subject, _, reply, bytes]) | (Some("HMSG"), [subject, _, reply, _, bytes]) => {
            (Shape::Deliver(own(subject), Some(own(reply))), bytes)
        }
        (Some("SUB"), [subject, number] | [subject, _, number]) => {
            return Ok((Shape::Subscribe(own(subject), own(number)), None));
        }
        (Some("PUB" | "HPUB" | "MSG" | "HMSG" | "SUB"), _) => bail!("a wrong number of words"),
        _ => return Ok((Shape::Other, None)),
    };
    Ok((shape, Some(bytes.parse().context("a length that is no number")?)))
}

/// Longest line: what a server tells of itself has some kilobytes.
const LINE_BYTES_MAX: usize = 64 << 10;
/// Larger than any server of a test takes.
const BODY_BYTES_MAX: usize = 64 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn message(subject: &str, reply: Option<&str>, body: &'static [u8]) -> Message {
        Message {
            subject: subject.to_owned(),
            reply: reply.map(str::to_owned),
            body: Bytes::from_static(body),
        }
    }

    /// Every operation with a subject, and how it is understood.
    fn samples() -> Vec<(&'static [u8], Frame)> {
        let subscribe = |number: &str| Frame::Subscribe {
            subject: "a.>".to_owned(),
            number: number.to_owned(),
        };
        vec![
            (b"INFO {\"x\": \"a b\"}\r\n", Frame::Other),
            (b"SUB a.> 1\r\n", subscribe("1")),
            (b"SUB a.> q 2\r\n", subscribe("2")),
            (
                b"PUB a.b 3\r\nx\ry\r\n",
                Frame::Publish(message("a.b", None, b"x\ry")),
            ),
            (
                b"PUB a _I.1 2\r\n\r\n\r\n",
                Frame::Publish(message("a", Some("_I.1"), b"\r\n")),
            ),
            (
                b"HPUB a 3 4\r\nhhhp\r\n",
                Frame::Publish(message("a", None, b"hhhp")),
            ),
            (
                b"hpub a r 3 4\r\nhhhp\r\n",
                Frame::Publish(message("a", Some("r"), b"hhhp")),
            ),
            (b"MSG a 7 0\r\n\r\n", Frame::Deliver(message("a", None, b""))),
            (
                b"MSG a 7 r 1\r\nx\r\n",
                Frame::Deliver(message("a", Some("r"), b"x")),
            ),
            (
                b"HMSG a 7 3 4\r\nhhhp\r\n",
                Frame::Deliver(message("a", None, b"hhhp")),
            ),
            (
                b"HMSG a 7 r 3 4\r\nhhhp\r\n",
                Frame::Deliver(message("a", Some("r"), b"hhhp")),
            ),
            (b"UNSUB 7 3\r\n", Frame::Other),
            (b"PING\r\n", Frame::Other),
            (b"-ERR 'no'\r\n", Frame::Other),
        ]
    }

    #[test]
    fn operations_are_taken_whole_however_their_bytes_are_cut() {
        let bytes: Vec<u8> = samples().iter().flat_map(|(raw, _)| raw.to_vec()).collect();
        for step in [1, 2, 3, 7, bytes.len()] {
            let (mut buffer, mut taken) = (BytesMut::new(), Vec::new());
            for piece in bytes.chunks(step) {
                buffer.extend_from_slice(piece);
                while let Some(operation) = take(&mut buffer).unwrap() {
                    taken.push(operation);
                }
            }
            assert!(buffer.is_empty());
            let expected = samples();
            assert_eq!(taken.len(), expected.len());
            for (operation, (raw, frame)) in taken.iter().zip(&expected) {
                assert_eq!((&operation.raw[..], &operation.frame), (*raw, frame));
            }
        }
    }

    #[test]
    fn what_is_no_protocol_is_an_error_and_never_waited_for() {
        for bad in ["PUB a\r\n", "MSG a 1 x\r\n", "PUB a 99999999999\r\n"] {
            assert!(take(&mut BytesMut::from(bad)).is_err(), "{bad}");
        }
        assert!(take(&mut BytesMut::from(&vec![b'x'; LINE_BYTES_MAX + 1][..])).is_err());
    }
}
