//! Whether buckets and streams exist, and reads of buckets that are not behind.
//!
//! The client library's own reads of a key are answered by any copy of the bucket's stream, and with several servers a copy
//! may lack what was confirmed a moment ago, or for as long as its server is cut off. That is good enough for what a
//! watch corrects, and not for what somebody decides on: whether a model exists, who leads.

use std::error::Error as _;

use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::context::{GetStreamError, GetStreamErrorKind, KeyValueError};
use async_nats::jetstream::kv::{self, Operation};
use async_nats::jetstream::stream::{LastRawMessageError, LastRawMessageErrorKind};

/// Whether the server says that there is no such stream. That it cannot tell, as while a cluster elects a leader, is another
/// thing.
#[must_use]
pub fn is_missing_stream(error: &GetStreamError) -> bool {
    matches!(
        error.kind(),
        GetStreamErrorKind::JetStream(refusal) if refusal.error_code() == ErrorCode::STREAM_NOT_FOUND
    )
}

/// The same of a bucket.
#[must_use]
pub fn is_missing_bucket(error: &KeyValueError) -> bool {
    let source = error.source().and_then(|source| source.downcast_ref());
    source.is_some_and(is_missing_stream)
}

/// What a key holds, as the server has it that leads the bucket's stream; `None` when it never held anything, or that has
/// expired.
///
/// # Errors
/// What the client says: the server does not answer, or nobody leads.
pub async fn newest_entry(store: &kv::Store, key: &str) -> Result<Option<kv::Entry>, LastRawMessageError> {
    let subject = format!("{}{key}", store.prefix);
    let message = match store.stream.get_last_raw_message_by_subject(&subject).await {
        Ok(message) => message,
        Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let operation = message.headers.get(OPERATION_HEADER).map(|value| value.as_str());
    Ok(Some(kv::Entry {
        bucket: store.name.clone(),
        key: key.to_owned(),
        value: message.payload,
        revision: message.sequence,
        delta: 0,
        created: message.time,
        operation: match operation {
            Some("DEL") => Operation::Delete,
            Some("PURGE") => Operation::Purge,
            Some(_) | None => Operation::Put,
        },
        seen_current: true,
    }))
}

/// What was done to the key; absent on a put.
const OPERATION_HEADER: &str = "KV-Operation";

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(code: u64) -> GetStreamError {
        let refusal = serde_json::json!({"code": 500, "err_code": code, "description": "refused"});
        GetStreamError::new(GetStreamErrorKind::JetStream(
            serde_json::from_value(refusal).unwrap(),
        ))
    }

    #[test]
    fn what_the_server_cannot_tell_now_is_not_called_missing() {
        assert!(is_missing_stream(&refused(10059)));
        for elections in [10008, 10118] {
            assert!(!is_missing_stream(&refused(elections)));
        }
        assert!(!is_missing_stream(&GetStreamError::new(
            GetStreamErrorKind::Request
        )));
    }
}
