//! What the server says about messages of our request stream that it, or somebody else, has given up.
//!
//! These are core messages and may be lost; what they tell is found by the next looks at the stream as well.

use async_nats::Message;
use flotilla_client::Connection;
use flotilla_dispatcher_core::StreamSequence;
use flotilla_protocol::{DecodeError, Encoding};
use serde::Deserialize;

/// Something became of a message without us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Advisory {
    pub(crate) sequence: StreamSequence,
    pub(crate) consumer: String,
    pub(crate) said: Said,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Said {
    /// It was delivered as often as its consumer allows, and stays where it is.
    MaxDeliveries { deliveries: u64 },
    /// It was taken out: terminated by whoever had it, or removed by an operator.
    Terminated { reason: Option<String> },
}

/// As the server writes them; there is more in them.
#[derive(Debug, Deserialize)]
struct RawAdvisory {
    consumer: String,
    stream_seq: u64,
    deliveries: u64,
    #[serde(default)]
    reason: Option<String>,
}

/// Subjects of the advisories: those of maximum deliveries, and those of terminations.
pub(crate) fn subjects(connection: &Connection) -> [String; 2] {
    let stream = connection.subjects.requests_stream();
    [MAX_DELIVERIES, TERMINATED].map(|kind| format!("{ADVISORIES}.{kind}.{stream}.*"))
}

/// # Errors
/// [`DecodeError`] when the message is no advisory.
pub(crate) fn read(message: &Message) -> Result<Advisory, DecodeError> {
    let raw: RawAdvisory = Encoding::Json.decode(&message.payload, ADVISORY_BYTES_MAX)?;
    let is_terminated = message.subject.contains(TERMINATED);
    Ok(Advisory {
        sequence: StreamSequence(raw.stream_seq),
        consumer: raw.consumer,
        said: match is_terminated {
            true => Said::Terminated { reason: raw.reason },
            false => Said::MaxDeliveries {
                deliveries: raw.deliveries,
            },
        },
    })
}

const ADVISORIES: &str = "$JS.EVENT.ADVISORY.CONSUMER";
const MAX_DELIVERIES: &str = "MAX_DELIVERIES";
const TERMINATED: &str = "MSG_TERMINATED";
/// Largest advisory, in bytes: some names and a reason.
const ADVISORY_BYTES_MAX: usize = 16 << 10;
