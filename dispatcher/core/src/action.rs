//! What the dispatcher wants done.

use bytes::Bytes;
use flotilla_protocol::assignment::Assignment;
use flotilla_protocol::event::{Accepted, Event, Failed, Finished, Progress, Tokens};
use flotilla_protocol::{Class, Encoding, Epoch, ModelName, RequestId, WorkerId};
use serde::{Deserialize, Serialize};

use crate::input::StreamSequence;

/// An order to the shell. Those of one request are carried out in the order in which they were polled.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Send it; tell the outcome by `handle_assign_reply`, without an answer after the assign timeout.
    Assign {
        /// The worker.
        worker: WorkerId,
        /// What to send.
        assignment: Assignment,
    },
    /// Read the request's journal; tell it by `handle_journal`. A read that fails is tried again for ever.
    ReadJournal {
        /// The request.
        request: RequestId,
    },
    /// Append the terminal event, unless the journal is terminal already; then call `handle_ended`.
    /// An attempt that is still open is fenced by it: the append retries behind what the attempt wrote.
    End {
        /// The request.
        request: RequestId,
        /// The answer's encoding.
        encoding: Encoding,
        /// `finished` or `failed`.
        #[serde(with = "EventShape")]
        event: Event,
    },
    /// Store a copy for operators. Comes before the same request's [`Action::End`], which must wait for it.
    DeadLetter {
        /// The request.
        request: RequestId,
        /// Every message that stands for it.
        sequences: Vec<StreamSequence>,
        /// Class.
        class: Class,
        /// Model.
        model: ModelName,
        /// The client's body.
        body: Bytes,
        /// Its encoding.
        encoding: Encoding,
        /// Why, in words.
        reason: String,
    },
    /// Acknowledge the messages: their request's journal is terminal. The dispatcher has forgotten them.
    Ack {
        /// The request.
        request: RequestId,
        /// Every message that stands for it.
        sequences: Vec<StreamSequence>,
    },
    /// Tell a worker that the request is cancelled.
    CancelOnWorker {
        /// The worker.
        worker: WorkerId,
        /// The request.
        request: RequestId,
    },
    /// Ask a worker to bring a model into its host memory, because requests wait for it. Best effort: no answer is
    /// needed.
    Prefetch {
        /// The worker.
        worker: WorkerId,
        /// The model.
        model: ModelName,
    },
    /// Ask a worker for a report, because it is late with one. Tell by `handle_absent` when nobody listens where it
    /// is asked; anything else tells nothing.
    AskForReport {
        /// The worker.
        worker: WorkerId,
    },
    /// Publish news to the client; it is not stored.
    Progress {
        /// The request.
        request: RequestId,
        /// The answer's encoding.
        encoding: Encoding,
        /// The news.
        progress: Progress,
    },
    /// A newer leader exists: give up the term. No action follows.
    StepDown {
        /// The newest epoch that a worker has seen.
        seen: Epoch,
    },
}

/// [`Event`] travels as a kind and a body; a recorded action holds both in one.
#[derive(Serialize, Deserialize)]
#[serde(remote = "Event", rename_all = "snake_case")]
enum EventShape {
    Accepted(Accepted),
    Progress(Progress),
    Tokens(Tokens),
    Finished(Finished),
    Failed(Failed),
}

#[cfg(test)]
mod tests {
    use flotilla_protocol::event::{ErrorCode, RequestError};

    use super::*;

    #[test]
    fn a_recorded_action_can_be_replayed() {
        let action = Action::End {
            request: RequestId::from_random(1),
            encoding: Encoding::Json,
            event: Event::failed(RequestError {
                code: ErrorCode::Poisoned,
                message: "three strikes".into(),
                param: None,
            }),
        };
        for encoding in [Encoding::Json, Encoding::MessagePack] {
            let recorded = encoding.encode(&action).unwrap();
            assert_eq!(encoding.decode::<Action>(&recorded, 1000).unwrap(), action);
        }
    }
}
