//! What operators ask, in JSON.

use async_nats::service::Request;
use flotilla_protocol::Encoding;
use flotilla_protocol::admin::{
    CancelRequest, DrainRequest, QueueStatus, ResidencyRequest, WhyReply, WhyRequest,
};
use flotilla_protocol::event::{ErrorCode, RequestError};
use flotilla_protocol::{Class, DecodeError};
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tracing::warn;

use super::{Query, Verb, orders, reply, residency};
use crate::ground::Ground;

/// Answers one question.
pub(super) async fn answer(ground: Ground, verb: Verb, request: Request, owner: mpsc::Sender<Query>) {
    let answered = async {
        match verb {
            Verb::Queue => {
                let mut status = ask(&ground, &owner, Query::Queue).await?;
                status.stream_pending = stream_pending(&ground).await?;
                reply::answer::<QueueStatus>(&request, Encoding::Json, &status).await;
            }
            Verb::Workers => {
                let status = ask(&ground, &owner, Query::Fleet).await?;
                reply::answer(&request, Encoding::Json, &status).await;
            }
            Verb::Why => {
                let asked: WhyRequest = decode(&request)?;
                let id = asked.request.clone();
                let found = ask(&ground, &owner, |answer| Query::Why(id, answer)).await?;
                let told = WhyReply {
                    request: asked.request,
                    found: found.map(|found| *found),
                };
                reply::answer(&request, Encoding::Json, &told).await;
            }
            Verb::Profiles => {
                let status = ask(&ground, &owner, Query::Profiles).await?;
                reply::answer(&request, Encoding::Json, &status).await;
            }
            Verb::Reconciliation => {
                let status = ask(&ground, &owner, Query::Reconciliation).await?;
                reply::answer(&request, Encoding::Json, &status).await;
            }
            Verb::Cancel => {
                let asked: CancelRequest = decode(&request)?;
                let told = ask(&ground, &owner, |answer| Query::Cancel(asked.request, answer)).await?;
                reply::answer(&request, Encoding::Json, &told).await;
            }
            Verb::Load => {
                let asked: ResidencyRequest = decode(&request)?;
                let fleet = ask(&ground, &owner, Query::Fleet).await?;
                let told = residency::load(&ground, &fleet, &asked).await?;
                reply::answer(&request, Encoding::Json, &told).await;
            }
            Verb::Unload => {
                let asked: ResidencyRequest = decode(&request)?;
                let fleet = ask(&ground, &owner, Query::Fleet).await?;
                let told = residency::unload(&ground, &fleet, &asked).await?;
                reply::answer(&request, Encoding::Json, &told).await;
            }
            Verb::Fetch => {
                let asked: ResidencyRequest = decode(&request)?;
                let fleet = ask(&ground, &owner, Query::Fleet).await?;
                let told = residency::fetch(&ground, &fleet, &asked).await?;
                reply::answer(&request, Encoding::Json, &told).await;
            }
            Verb::Drain => {
                let asked: DrainRequest = decode(&request)?;
                let fleet = ask(&ground, &owner, Query::Fleet).await?;
                let told = orders::drain(&ground, &fleet, asked).await?;
                reply::answer(&request, Encoding::Json, &told).await;
            }
        }
        Ok::<(), RequestError>(())
    };
    if let Err(error) = answered.await {
        reply::refuse(&request, Encoding::Json, &error).await;
    }
}

/// Asks the owner of the core; it answers at once unless its term ends.
pub(super) async fn ask<T>(
    ground: &Ground,
    owner: &mpsc::Sender<Query>,
    query: impl FnOnce(oneshot::Sender<T>) -> Query,
) -> Result<T, RequestError> {
    let (answer, answered) = oneshot::channel();
    let asked = timeout(ground.connection.request_timeout, async {
        owner.send(query(answer)).await.ok()?;
        answered.await.ok()
    });
    asked.await.ok().flatten().ok_or_else(|| RequestError {
        code: ErrorCode::Internal,
        message: "this dispatcher does not lead any more; ask again".to_owned(),
        param: None,
    })
}

fn decode<T: DeserializeOwned>(request: &Request) -> Result<T, RequestError> {
    let decoded: Result<T, DecodeError> = Encoding::Json.decode(&request.message.payload, QUESTION_BYTES_MAX);
    Ok(decoded?)
}

/// Messages that wait in the stream and were not pulled.
pub(super) async fn stream_pending(ground: &Ground) -> Result<u64, RequestError> {
    let connection = &ground.connection;
    let counted = timeout(connection.request_timeout, async {
        let name = connection.subjects.requests_stream();
        let stream = connection.jetstream.get_stream_no_info(name).await?;
        let mut pending = 0;
        for class in Class::ALL {
            pending += stream.consumer_info(class.as_str()).await?.num_pending;
        }
        Ok::<u64, async_nats::Error>(pending)
    });
    let problem = match counted.await {
        Ok(Ok(pending)) => return Ok(pending),
        Ok(Err(error)) => error.to_string(),
        Err(_) => "no answer in time".to_owned(),
    };
    warn!(error = problem, "the request stream's state cannot be read");
    Err(RequestError {
        code: ErrorCode::Internal,
        message: format!("the request stream's state cannot be read: {problem}"),
        param: None,
    })
}

/// Largest question, in bytes: a few names.
const QUESTION_BYTES_MAX: usize = 4 << 10;
