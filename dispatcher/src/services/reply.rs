//! Answers of the service, good and bad.

use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::service::{NATS_SERVICE_ERROR, NATS_SERVICE_ERROR_CODE, Request};
use bytes::Bytes;
use flotilla_protocol::event::{Failed, RequestError};
use flotilla_protocol::{Encoding, headers};
use serde::Serialize;
use tokio::time::timeout;
use tracing::warn;

/// Sends an answer.
pub(super) async fn answer<T: Serialize>(request: &Request, encoding: Encoding, answer: &T) {
    let body = encoding.encode(answer).expect("an answer is plain data");
    send(request, HeaderMap::new(), encoding, body).await;
}

/// Sends a NATS service error with the error as body.
pub(super) async fn refuse(request: &Request, encoding: Encoding, error: &RequestError) {
    let mut found = HeaderMap::new();
    let message: String = error
        .message
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    found.insert(NATS_SERVICE_ERROR, message.as_str());
    found.insert(NATS_SERVICE_ERROR_CODE, error.code.status().to_string().as_str());
    let failed = Failed { error: error.clone() };
    let body = encoding.encode(&failed).expect("an error is plain data");
    send(request, found, encoding, body).await;
}

async fn send(request: &Request, mut found: HeaderMap, encoding: Encoding, body: Bytes) {
    found.insert(headers::CONTENT_TYPE, encoding.content_type());
    let subject = &request.message.subject;
    let sent = request.respond_with_headers(Ok(body), found);
    match timeout(SEND_PATIENCE, sent).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => warn!(%subject, %error, "an answer of the service was not sent"),
        Err(_) => warn!(%subject, "the connection takes no answer of the service"),
    }
}

/// How long the connection may be too busy to take an answer; askers have given up by then.
const SEND_PATIENCE: Duration = Duration::from_secs(5);
