//! What was accepted against what is answered, while the term lasts.

use std::collections::HashSet;

use flotilla_dispatcher_core::{Order, Round, StreamSequence};
use flotilla_protocol::RequestId;
use flotilla_protocol::admin::Reconciliation;
use tokio::time::timeout;
use tracing::{error, info, warn};

use super::Term;
use crate::advisory::{Advisory, Said};
use crate::courier::{Errand, KEPT};
use crate::deliveries::Receipt;
use crate::error::chain;
use crate::ground::Ground;
use crate::intake::Pulled;
use crate::scout::{Known, Scout, ScoutFault, is_missing};
use crate::topology::ensure_topology;

/// A look that has ended, with the one who looked.
pub(super) type Looked = (Box<Scout>, Result<Round, ScoutFault>);

/// A message that was to be got out of the stream; `None` when it is not there any more, or could not be got now.
pub(super) type Swept = (StreamSequence, Option<Pulled>);

impl Term {
    /// Looks at the streams, unless the look before is still under way.
    pub(super) fn reconcile(&mut self) {
        let Some(mut scout) = self.scout.take() else {
            return;
        };
        let known = Known {
            messages: self.deliveries.sequences().collect(),
            requests: self.known_requests(),
            ended: std::mem::take(&mut self.acked),
            last_before_term: self.last_before_term,
        };
        self.looks.spawn(async move {
            let found = scout.look(known).await;
            (scout, found)
        });
    }

    fn known_requests(&self) -> HashSet<RequestId> {
        let held = self.core.held().cloned();
        let listed = self
            .core
            .fleet(self.now())
            .flat_map(|(report, _)| &report.running);
        held.chain(listed.map(|run| run.request.clone())).collect()
    }

    /// Notes that a request is acknowledged: its journal has an end.
    pub(super) fn note_acked(&mut self, request: &RequestId) {
        if self.acked.len() < ACKED_MAX {
            self.acked.push(request.clone());
        }
    }

    pub(super) fn take_looked(&mut self, (scout, found): Looked) {
        self.scout = Some(scout);
        let round = match found {
            Ok(round) => round,
            Err(ScoutFault::Missing { stream }) => return self.restore(stream),
            Err(fault) => {
                warn!(
                    error = chain(&fault),
                    "the streams cannot be compared with what is held"
                );
                return self.reconciler.handle_failed_round();
            }
        };
        let (core, deliveries, now) = (&self.core, &self.deliveries, self.now());
        let holds = |sequence| deliveries.contains(sequence) || core.holds_message(sequence);
        let knows = |request: &RequestId| core.holds(request) || core.runs_somewhere(request);
        for order in self.reconciler.handle_round(now, round, holds, knows) {
            self.carry_out_reconciling(order);
        }
    }

    /// Makes a stream again that somebody has removed. The sequences of a new request stream begin anew, so what is
    /// held is answered first; until then publishes find no stream, and clients hear so.
    fn restore(&mut self, stream: String) {
        self.reconciler.handle_failed_round();
        let held = self.deliveries.len();
        let is_requests = stream == self.ground.connection.subjects.requests_stream();
        error!(stream, held, "a stream was removed; what was in it is lost");
        if is_requests && held > 0 {
            return;
        }
        let ground = self.ground.clone();
        self.errands.spawn(async move {
            if let Err(error) = ensure_topology(&ground.connection, &ground.config).await {
                error!(
                    stream,
                    error = chain(&error),
                    "a stream that was removed cannot be made again"
                );
            }
            Errand::Done
        });
    }

    fn carry_out_reconciling(&mut self, order: Order) {
        match order {
            Order::Sweep(sequence) => {
                warn!(
                    stream_seq = sequence.0,
                    "a message that nobody answers for is got out of the stream"
                );
                self.sweep(sequence);
            }
            Order::Gone(sequence) => error!(
                stream_seq = sequence.0,
                "the message of a request is gone from the stream; should this dispatcher end before the request does, \
                 the request is lost"
            ),
            Order::Lost(request) => error!(
                request_id = %request,
                "a request was begun, has no end, and its message is gone from the stream: nobody will answer it"
            ),
        }
    }

    /// Gets a message out of the stream, to be admitted as one that may have been seen.
    fn sweep(&mut self, sequence: StreamSequence) {
        if self.sweeps.len() < SWEEPS_MAX {
            let ground = self.ground.clone();
            self.sweeps
                .spawn(async move { (sequence, get(&ground, sequence).await) });
        }
    }

    pub(super) fn take_swept(&mut self, (sequence, swept): Swept) {
        match swept {
            Some(_) if self.deliveries.contains(sequence) => {}
            // What there is no room for is found again.
            Some(pulled) if self.has_room() => {
                info!(stream_seq = sequence.0, "a message that was stuck is admitted");
                self.take_pulled(pulled);
            }
            Some(_) | None => {}
        }
    }

    /// The server says that something became of a message without us.
    pub(super) fn take_advisory(&mut self, advisory: &Advisory) {
        let Advisory { sequence, .. } = *advisory;
        let is_held = self.deliveries.contains(sequence);
        match &advisory.said {
            Said::MaxDeliveries { deliveries } => {
                self.reconciler.handle_max_deliveries();
                warn!(
                    stream_seq = sequence.0,
                    consumer = advisory.consumer,
                    deliveries,
                    is_held,
                    "the server will not deliver a message any more; does a consumer have max_deliver?"
                );
                if is_held {
                    self.deliveries.insert(sequence, Receipt::Removal(sequence));
                } else {
                    self.sweep(sequence);
                }
            }
            Said::Terminated { reason } if reason.as_deref() == Some(KEPT) => {}
            Said::Terminated { .. } if self.removed.contains(&sequence) => {}
            Said::Terminated { reason } => {
                self.reconciler.handle_terminated();
                error!(
                    stream_seq = sequence.0,
                    consumer = advisory.consumer,
                    reason,
                    is_held,
                    "somebody else has taken a message out of the stream; a request that is held is answered all the same"
                );
            }
        }
    }

    /// Notes that a message is removed by us.
    pub(super) fn note_removed(&mut self, receipts: &[Receipt]) {
        for receipt in receipts {
            if let Receipt::Removal(sequence) = receipt {
                self.removed.push_back(*sequence);
            }
        }
        while self.removed.len() > REMOVED_MAX {
            self.removed.pop_front();
        }
    }

    pub(super) fn reconciliation(&self) -> Reconciliation {
        let held = u64::try_from(self.deliveries.len()).unwrap_or(u64::MAX);
        let stats = self.core.stats();
        self.reconciler.status(self.now(), held, stats.ended_unacked)
    }
}

async fn get(ground: &Ground, sequence: StreamSequence) -> Option<Pulled> {
    let connection = &ground.connection;
    let got = timeout(connection.request_timeout, async {
        let name = connection.subjects.requests_stream();
        let stream = connection.jetstream.get_stream_no_info(name).await?;
        match stream.get_raw_message(sequence.0).await {
            Ok(message) => Ok(Some(message)),
            Err(error) if is_missing(error.kind()) => Ok(None),
            Err(error) => Err(async_nats::Error::from(error)),
        }
    });
    match got.await {
        Ok(Ok(message)) => message.map(Pulled::swept),
        Ok(Err(error)) => {
            warn!(stream_seq = sequence.0, %error, "a stuck message cannot be got yet");
            None
        }
        Err(_) => {
            warn!(stream_seq = sequence.0, "no answer about a stuck message");
            None
        }
    }
}

/// Acknowledged requests between two looks; of more the journals are looked at.
const ACKED_MAX: usize = 100_000;
/// Messages that are got out of the stream at once, each with its body.
const SWEEPS_MAX: usize = 32;
/// Messages that we removed and of which the server's word may still come.
const REMOVED_MAX: usize = 1024;
