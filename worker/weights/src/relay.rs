//! The relay: a bounded bucket of the object store through which copies pass.
//!
//! Every segment is an ordinary object (ADR-20), so that stock tools read it. What is not ordinary is how it gets in
//! and out: chunks go in many at a time, carry where they belong, and are taken live by whoever listens; what live
//! delivery lost is read by direct gets. An object's chunks lie under `<root>.<generation>.<segment>`, so that
//! everything of one copy can be found and removed by whoever knows that its claim is gone.

mod fetch;
mod live;
mod put;
mod sweep;

use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::context::{GetStreamErrorKind, PublishError};
use async_nats::jetstream::stream::{PurgeError, Stream};
use flotilla_client::Connection;
use flotilla_protocol::weights::{Generation, Root, SegmentId};
use thiserror::Error;

pub use live::{LiveChunks, Part};
pub use sweep::Swept;

/// The bucket, over a connection that carries nothing but weights.
#[derive(Debug, Clone)]
pub struct Relay {
    connection: Connection,
    stream: Stream,
    bucket: String,
    chunk_bytes: usize,
}

/// One time that a root is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CopyName {
    /// What is sent.
    pub root: Root,
    /// Which time.
    pub generation: Generation,
}

/// What an object of a copy is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CopyObject {
    /// The manifest.
    Manifest,
    /// A segment.
    Segment {
        /// Its place in the manifest.
        segment: usize,
        /// Its name.
        id: SegmentId,
    },
}

/// Why the relay does not do what is asked.
#[derive(Debug, Error)]
pub enum RelayError {
    /// There is none. It is made by the dispatcher and never on the way.
    #[error("there is no bucket {bucket} for copies of weights; a dispatcher makes it when it starts")]
    Missing {
        /// Its name.
        bucket: String,
    },
    /// The server takes smaller messages than a chunk.
    #[error(
        "the server's max_payload is {max_payload} bytes; weights travel in chunks of {CHUNK_BYTES_MIN} bytes or more, \
         so set it to 1MB or more (8MB is usual)"
    )]
    PayloadTooSmall {
        /// What the server allows.
        max_payload: usize,
    },
    /// It is full of other things.
    #[error("the bucket {bucket} is full")]
    Full {
        /// Its name.
        bucket: String,
    },
    /// The server cannot say whether it is there.
    #[error("cannot open the bucket {bucket}")]
    Open {
        /// Its name.
        bucket: String,
        /// What the client says.
        #[source]
        source: async_nats::Error,
    },
    /// Something was not stored, or nobody knows.
    #[error("cannot write {subject}")]
    Write {
        /// What.
        subject: String,
        /// What the client says.
        #[source]
        source: PublishError,
    },
    /// Something was not removed, or nobody knows.
    #[error("cannot remove {subject}")]
    Remove {
        /// What.
        subject: String,
        /// What the client says.
        #[source]
        source: PurgeError,
    },
    /// Something cannot be read.
    #[error("cannot read {subject}")]
    Read {
        /// What.
        subject: String,
        /// What the client says.
        #[source]
        source: async_nats::Error,
    },
    /// No answer within the time limit.
    #[error("no answer from the relay in time about {subject}")]
    Late {
        /// About what.
        subject: String,
    },
}

impl Relay {
    /// Opens the bucket of the connection's namespace.
    ///
    /// # Errors
    /// [`RelayError`]: it is missing, or the server takes too small messages.
    pub async fn open(connection: Connection) -> Result<Self, RelayError> {
        let bucket = connection.subjects.bucket(BUCKET);
        let max_payload = connection.client.max_payload();
        let chunk_bytes = CHUNK_BYTES_MAX.min(max_payload.saturating_sub(HEADER_BYTES_MAX));
        if chunk_bytes < CHUNK_BYTES_MIN {
            return Err(RelayError::PayloadTooSmall { max_payload });
        }
        let stream = match connection.jetstream.get_stream(stream_name(&bucket)).await {
            Ok(stream) => stream,
            Err(error) => return Err(unopened(bucket, error)),
        };
        Ok(Self {
            connection,
            stream,
            bucket,
            chunk_bytes,
        })
    }

    /// The connection.
    #[must_use]
    pub const fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Most bytes that it holds; `None` for as many as the server has room for.
    #[must_use]
    pub fn bytes_max(&self) -> Option<u64> {
        u64::try_from(self.stream.cached_info().config.max_bytes).ok()
    }

    fn chunk_subject(&self, name: CopyName, object: CopyObject) -> String {
        format!("$O.{}.C.{}", self.bucket, nuid(name, object))
    }

    fn meta_subject(&self, name: CopyName, object: CopyObject) -> String {
        let object = object_name(name, object);
        format!("$O.{}.M.{}", self.bucket, base64_url(object.as_bytes()))
    }
}

fn unopened(bucket: String, error: async_nats::jetstream::context::GetStreamError) -> RelayError {
    match error.kind() {
        GetStreamErrorKind::JetStream(refusal) if refusal.error_code() == ErrorCode::STREAM_NOT_FOUND => {
            RelayError::Missing { bucket }
        }
        _ => RelayError::Open {
            bucket,
            source: error.into(),
        },
    }
}

/// Under which tokens the chunks of an object lie; ADR-20 calls it a nuid and demands that it is unique.
fn nuid(name: CopyName, object: CopyObject) -> String {
    let CopyName { root, generation } = name;
    match object {
        CopyObject::Manifest => format!("{root}.{generation}.{MANIFEST_TOKEN}"),
        CopyObject::Segment { segment, .. } => format!("{root}.{generation}.{segment}"),
    }
}

/// What stock tools call an object.
fn object_name(name: CopyName, object: CopyObject) -> String {
    match object {
        CopyObject::Manifest => format!("m-{}", name.root),
        CopyObject::Segment { id, .. } => format!("s-{id}"),
    }
}

/// The name of the stream behind a bucket.
#[must_use]
pub fn stream_name(bucket: &str) -> String {
    format!("OBJ_{bucket}")
}

/// Base64 with the alphabet for URLs and with padding, as ADR-20 writes names and digests.
fn base64_url(bytes: &[u8]) -> String {
    base64::Engine::encode(&base64::engine::general_purpose::URL_SAFE, bytes)
}

/// The part of the bucket's name after the namespace.
pub const BUCKET: &str = "relay";
/// A message costs the server as much as so many bytes: larger ones gain nothing.
const CHUNK_BYTES_MAX: usize = 1 << 20;
/// Below that, a copy would be messages more than bytes.
const CHUNK_BYTES_MIN: usize = 64 << 10;
/// Headers and subject of a chunk count as payload.
const HEADER_BYTES_MAX: usize = 1024;
const MANIFEST_TOKEN: &str = "m";
/// Where in its object a chunk begins.
const OFFSET_HEADER: &str = "Flotilla-Offset";
