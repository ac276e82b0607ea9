//! What the server says about messages of our request stream that it, or somebody else, has given up.
//!
//! These are core messages and may be lost; what they tell is found by the next looks at the stream as well.

use flotilla_client::Connection;
use flotilla_dispatcher_core::StreamSequence;
use flotilla_protocol::{DecodeError, Encoding};
use serde::Deserialize;

/// Something became of a message without us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Advisory {
    /// The message.
    pub sequence: StreamSequence,
    /// The consumer that it was delivered to.
    pub consumer: String,
    /// What became of it.
    pub said: Said,
}

/// What became of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// It was delivered as often as its consumer allows, and stays where it is.
    MaxDeliveries {
        /// How often.
        deliveries: u64,
    },
    /// It was taken out: terminated by whoever had it, or removed by an operator.
    Terminated {
        /// Why, if somebody said.
        reason: Option<String>,
    },
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

impl Advisory {
    /// Reads what the server published on a subject.
    ///
    /// # Errors
    /// [`DecodeError`] when it is no advisory.
    pub fn read(subject: &str, body: &[u8]) -> Result<Self, DecodeError> {
        let raw: RawAdvisory = Encoding::Json.decode(body, ADVISORY_BYTES_MAX)?;
        let is_terminated = subject.contains(TERMINATED);
        Ok(Self {
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
}

const ADVISORIES: &str = "$JS.EVENT.ADVISORY.CONSUMER";
const MAX_DELIVERIES: &str = "MAX_DELIVERIES";
const TERMINATED: &str = "MSG_TERMINATED";
/// Largest advisory, in bytes: some names and a reason.
const ADVISORY_BYTES_MAX: usize = 16 << 10;
