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

use async_nats::jetstream::context::PublishError;
use async_nats::jetstream::stream::{PurgeError, Stream};
use async_nats::{Subject, Subscriber};
use bytes::Bytes;
use flotilla_client::{Connection, is_missing_stream};
use flotilla_protocol::weights::{Generation, Root, SegmentId};
use thiserror::Error;
use tracing::warn;

pub use live::{LiveChunks, Part};
pub use sweep::Swept;

/// The bucket, over a connection that carries nothing but weights.
#[derive(Debug, Clone)]
pub struct Relay {
    connection: Connection,
    stream: Stream<()>,
    bucket: String,
    bytes_max: Option<u64>,
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
    /// Opens the bucket of the connection's namespace. A bucket whose server is away is opened all the same: it is made
    /// anew elsewhere, and not needed before something is copied.
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
        let name = stream_name(&bucket);
        let bytes_max = match connection.within(connection.jetstream.get_stream(&name)).await {
            Ok(Ok(stream)) => u64::try_from(stream.cached_info().config.max_bytes).ok(),
            Ok(Err(error)) if is_missing_stream(&error) => return Err(RelayError::Missing { bucket }),
            Ok(Err(error)) => {
                warn!(%error, "the relay for weights does not answer; copies wait for it");
                None
            }
            Err(error) => {
                warn!(%error, "the relay for weights does not answer; copies wait for it");
                None
            }
        };
        let stream = match connection.jetstream.get_stream_no_info(name).await {
            Ok(stream) => stream,
            Err(error) => {
                let source = error.into();
                return Err(RelayError::Open { bucket, source });
            }
        };
        Ok(Self {
            connection,
            stream,
            bucket,
            bytes_max,
            chunk_bytes,
        })
    }

    /// The connection.
    #[must_use]
    pub const fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Most bytes that it holds; `None` for as many as the server has room for, and when that could not be told.
    #[must_use]
    pub const fn bytes_max(&self) -> Option<u64> {
        self.bytes_max
    }

    /// Listens to a subject.
    pub(crate) async fn subscribe(&self, subject: String) -> Result<Subscriber, RelayError> {
        let subscribed = self.connection.client.subscribe(subject.clone());
        match self.connection.within(subscribed).await {
            Ok(Ok(subscriber)) => Ok(subscriber),
            Ok(Err(error)) => Err(RelayError::Read {
                subject,
                source: error.into(),
            }),
            Err(_) => Err(RelayError::Late { subject }),
        }
    }

    /// Tells other parts something; nobody knows whether they hear it.
    pub(crate) async fn tell(
        &self,
        subject: impl Into<Subject>,
        body: Bytes,
    ) -> Result<(), async_nats::Error> {
        let told = self.connection.client.publish(subject.into(), body);
        Ok(self.connection.within(told).await??)
    }

    fn chunk_subject(&self, name: CopyName, object: CopyObject) -> String {
        format!("$O.{}.C.{}", self.bucket, nuid(name, object))
    }

    fn meta_subject(&self, name: CopyName, object: CopyObject) -> String {
        let object = object_name(name, object);
        format!("$O.{}.M.{}", self.bucket, base64_url(object.as_bytes()))
    }
}

/// No answer about this came in time.
fn late(subject: &str) -> RelayError {
    RelayError::Late {
        subject: subject.to_owned(),
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
