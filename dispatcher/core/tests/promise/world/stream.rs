//! The stream of requests: publishes, and what the dispatcher makes of each delivery.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use flotilla_dispatcher_core::{Admission, Arrival, Origin, PromptCount, StreamSequence};
use flotilla_protocol::event::{ErrorCode, RequestError};
use flotilla_protocol::request::Slo;
use flotilla_protocol::{Class, Encoding, RequestId, Tenant};

use super::{Packet, World, index_of, model};

/// What a client asks for.
#[derive(Debug, Clone)]
pub struct Wish {
    pub model: u8,
    pub class: Class,
    pub tenant: Option<u8>,
    pub prompt_tokens: u32,
    pub prompt_count: PromptCount,
    pub output_tokens_max: u32,
    pub e2e_ms: Option<u32>,
    pub tpot_ms: Option<u32>,
    pub deadline_ms: Option<u64>,
    pub valid: bool,
    /// Whoever computes its answer dies.
    pub poison: bool,
}

#[derive(Debug)]
pub struct Message {
    pub request: RequestId,
    wish: Wish,
    published_ms: u64,
    deliveries: u32,
    pub acked: bool,
}

impl World {
    pub fn publish(&mut self, wish: &Wish) {
        let request = RequestId::from_random(u128::try_from(self.stream.len()).unwrap());
        self.store(request, wish.clone());
    }

    /// The same request under another sequence, as a client does whose publish was not answered in time.
    pub fn publish_again(&mut self, pick: usize) {
        let Some(index) = index_of(pick, self.stream.len()) else {
            return;
        };
        let message = self.stream.values().nth(index).unwrap();
        self.store(message.request.clone(), message.wish.clone());
    }

    fn store(&mut self, request: RequestId, wish: Wish) {
        let sequence = StreamSequence(u64::try_from(self.stream.len()).unwrap() + 1);
        let message = Message {
            request,
            wish,
            published_ms: self.now_ms,
            deliveries: 0,
            acked: false,
        };
        self.stream.insert(sequence, message);
        self.network.push(Packet::Message(sequence));
    }

    /// Requests that kill their workers.
    pub fn poison(&self) -> BTreeSet<RequestId> {
        let messages = self.stream.values();
        let poison = messages.filter(|message| message.wish.valid && message.wish.poison);
        poison.map(|message| message.request.clone()).collect()
    }

    pub fn is_poison(&self, request: &RequestId) -> bool {
        let mut messages = self.stream.values();
        messages.any(|message| message.request == *request && message.wish.poison)
    }

    pub fn unacked(&self) -> Vec<StreamSequence> {
        let unacked = self.stream.iter().filter(|(_, message)| !message.acked);
        unacked.map(|(sequence, _)| *sequence).collect()
    }

    pub fn redeliver(&mut self, pick: usize) {
        let unacked = self.unacked();
        if let Some(index) = index_of(pick, unacked.len()) {
            self.network.push(Packet::Message(unacked[index]));
        }
    }

    pub fn deliver_message(&mut self, sequence: StreamSequence) {
        let now = self.now();
        let message = self.stream.get_mut(&sequence).unwrap();
        if message.acked {
            return;
        }
        message.deliveries += 1;
        let fresh =
            message.deliveries == 1 && message.published_ms >= self.term_began_ms && self.term_is_first();
        let message = &self.stream[&sequence];
        let origin = if fresh { Origin::Fresh } else { Origin::MaybeSeen };
        let admission = if message.wish.valid && !self.removed_models.contains(&message.wish.model) {
            let arrival = self.arrival(sequence, message, origin);
            self.dispatcher.handle_arrival(now, arrival)
        } else {
            let error = RequestError {
                code: ErrorCode::InvalidRequest,
                message: "max_token is not a field".into(),
                param: Some("max_token".into()),
            };
            match origin {
                Origin::Fresh => {
                    self.dispatcher
                        .handle_rejected(sequence, &message.request, Encoding::Json, error)
                }
                Origin::MaybeSeen => {
                    let arrival = self.arrival(sequence, message, origin);
                    self.dispatcher.handle_refused(now, arrival, error)
                }
            }
        };
        if admission == Admission::Held {
            assert!(self.dispatcher.holds(&self.stream[&sequence].request));
        }
    }

    fn arrival(&self, sequence: StreamSequence, message: &Message, origin: Origin) -> Arrival {
        let age_ms = self.now_ms - message.published_ms;
        let wish = &message.wish;
        let left = |ms: u64| Duration::from_millis(ms.saturating_sub(age_ms));
        Arrival {
            sequence,
            request: message.request.clone(),
            class: wish.class,
            model: model(wish.model),
            encoding: Encoding::Json,
            body: Bytes::from_static(b"{}"),
            prompt_tokens: wish.prompt_tokens,
            prompt_count: wish.prompt_count,
            output_tokens_max: wish.output_tokens_max,
            tenant: wish
                .tenant
                .map(|index| Tenant::new(format!("tenant-{index}")).unwrap()),
            slo: (wish.e2e_ms.is_some() || wish.tpot_ms.is_some()).then(|| Slo {
                e2e_ms: wish.e2e_ms.map(f64::from),
                tpot_ms: wish.tpot_ms.map(f64::from),
                ..Slo::default()
            }),
            only_worker: None,
            age: Duration::from_millis(age_ms),
            deadline_in: wish.deadline_ms.map(left),
            origin,
        }
    }

    /// A message published at the very millisecond of a change of leader counts as older than the term.
    fn term_is_first(&self) -> bool {
        self.term == 1 || self.now_ms > self.term_began_ms
    }
}
