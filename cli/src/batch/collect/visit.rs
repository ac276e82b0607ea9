//! One look at a request.

use std::time::Duration;

use flotilla_client::{Answer, AnswerBuilder, Connection, Events, EventsError, ReadError};
use flotilla_protocol::RequestId;
use flotilla_protocol::admin::{StandingReply, StandingRequest};
use tokio::time::{Instant, sleep, timeout_at};

use crate::admin::{self, AdminError};

/// A look at a request that lasts until its answer ended, or for a while.
pub(super) struct Visit<'a> {
    pub(super) connection: &'a Connection,
    pub(super) request: RequestId,
    /// Where its message lay in the request stream, if that is known.
    pub(super) place: Option<u64>,
    /// How long it may last; zero for what is stored already.
    pub(super) patience: Duration,
}

/// What was found.
#[derive(Debug)]
pub(super) enum Seen {
    /// Its answer ended.
    Ended(Box<Answer>),
    /// It waits or runs, or nobody can say.
    UnderWay,
    /// It has no journal, and is not in the queue.
    Nowhere,
    /// Its journal cannot be read and never will.
    Broken(String),
}

impl Visit<'_> {
    /// Looks.
    ///
    /// # Errors
    /// Nobody can be asked at this moment.
    pub(super) async fn run(self) -> Result<Seen, EventsError> {
        let seen = match self.follow(self.patience).await {
            // Its message leaves the queue after its journal has an end, so that an end is there now if ever.
            Ok(Seen::Nowhere) if self.has_left_the_queue().await => self.follow(Duration::ZERO).await,
            Ok(Seen::Nowhere) => Ok(Seen::UnderWay),
            seen => seen,
        };
        match seen {
            Err(
                error @ (EventsError::Incomplete { .. } | EventsError::Read(ReadError::NotAnEvent { .. })),
            ) => Ok(Seen::Broken(error.to_string())),
            Err(error) => {
                sleep(TROUBLE_PAUSE.min(self.patience)).await;
                Err(error)
            }
            Ok(seen) => Ok(seen),
        }
    }

    async fn follow(&self, patience: Duration) -> Result<Seen, EventsError> {
        let mut events = Events::from_start(self.connection, self.request.clone()).await?;
        let mut builder = AnswerBuilder::default();
        let mut seen = Seen::Nowhere;
        let until = Instant::now() + patience;
        // What is stored already is delivered without waiting, so that a time that is over lets it through.
        while let Ok(delivered) = timeout_at(until, events.next()).await {
            let delivered = delivered?.expect("the builder ends with the last event");
            if let Some(answer) = builder.push(delivered) {
                return Ok(Seen::Ended(Box::new(answer)));
            }
            seen = Seen::UnderWay;
        }
        Ok(seen)
    }

    /// Whether the leading dispatcher says so; one that does not answer, or does not know the question, does not.
    async fn has_left_the_queue(&self) -> bool {
        let question = StandingRequest {
            stream_seq: self.place,
        };
        let subject = self.connection.subjects.standing(&self.request);
        let asked: Result<StandingReply, AdminError> =
            admin::ask_at(self.connection, subject, "standing", &question).await;
        match asked {
            Ok(standing) => standing == StandingReply::Gone,
            Err(error) => {
                tracing::debug!(request_id = %self.request, %error, "nobody says where the request stands");
                false
            }
        }
    }
}

/// After a failure, so that a server that refuses at once is not asked without pause.
const TROUBLE_PAUSE: Duration = Duration::from_secs(1);
