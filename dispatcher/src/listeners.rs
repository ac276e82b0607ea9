//! Whether anybody listens to the events of requests that are worth nothing without their client.
//!
//! A request with `cancel_on_disconnect` is asked after by a progress event that wants a reply: where nobody listens, the
//! server says so at once; where somebody does, nobody replies, which is the good news. A client that comes back in
//! time is not missed. A leader knows nothing of what an earlier one has noticed, which costs one more wait.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::time::Duration;

use async_nats::client::RequestErrorKind;
use async_nats::{HeaderMap, Request};
use flotilla_client::Connection;
use flotilla_protocol::event::{Event, Phase, Progress};
use flotilla_protocol::{Encoding, RequestId, headers};
use futures_util::{StreamExt, stream};
use tokio::time::Instant;

/// The requests that are asked after.
#[derive(Debug)]
pub(crate) struct Listeners {
    lost_after: Duration,
    watched: BTreeMap<RequestId, Watched>,
    /// The last one that was asked after; the next round begins behind it.
    cursor: Option<RequestId>,
}

#[derive(Debug)]
struct Watched {
    encoding: Encoding,
    /// When nobody was there first, and nobody since.
    alone_since: Option<Instant>,
}

/// One request to ask after.
#[derive(Debug)]
pub(crate) struct Probe {
    pub(crate) request: RequestId,
    encoding: Encoding,
}

/// Whether somebody listens to a request.
pub(crate) type Heard = (RequestId, bool);

impl Listeners {
    /// Without any requests yet; those to which nobody listens for so long are given up.
    pub(crate) fn new(lost_after: Duration) -> Self {
        Self {
            lost_after,
            watched: BTreeMap::new(),
            cursor: None,
        }
    }

    /// How long to wait between two rounds: several of them fall into the time after which a client is lost.
    pub(crate) fn round_interval(&self) -> Duration {
        self.lost_after / 3
    }

    /// Asks after a request from now on.
    pub(crate) fn watch(&mut self, request: RequestId, encoding: Encoding) {
        let watched = Watched {
            encoding,
            alone_since: None,
        };
        self.watched.entry(request).or_insert(watched);
    }

    /// A request has ended.
    pub(crate) fn forget(&mut self, request: &RequestId) {
        self.watched.remove(request);
    }

    /// Whom to ask after now.
    pub(crate) fn next_round(&mut self) -> Vec<Probe> {
        let begin = self.cursor.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
        let after = self.watched.range::<RequestId, _>((begin, Bound::Unbounded));
        let before = self.cursor.as_ref().map(|cursor| self.watched.range(..=cursor));
        let round: Vec<Probe> = after
            .chain(before.into_iter().flatten())
            .take(ROUND_MAX)
            .map(|(request, watched)| Probe {
                request: request.clone(),
                encoding: watched.encoding,
            })
            .collect();
        self.cursor = round.last().map(|probe| probe.request.clone());
        round
    }

    /// What a round has found. Returns the requests whose clients are lost; they are not asked after any more.
    pub(crate) fn handle_round(&mut self, now: Instant, found: Vec<Heard>) -> Vec<RequestId> {
        let mut lost = Vec::new();
        for (request, is_heard) in found {
            let Some(watched) = self.watched.get_mut(&request) else {
                continue;
            };
            if is_heard {
                watched.alone_since = None;
            } else if now.duration_since(*watched.alone_since.get_or_insert(now)) >= self.lost_after {
                self.watched.remove(&request);
                lost.push(request);
            }
        }
        lost
    }
}

/// Asks after requests, each with the phase that it is in.
pub(crate) async fn probe(connection: Connection, probes: Vec<(Phase, Probe)>) -> Vec<Heard> {
    let asked = probes.into_iter().map(|(phase, probe)| {
        let connection = connection.clone();
        async move { ask(&connection, probe, phase).await }
    });
    stream::iter(asked)
        .buffer_unordered(PROBES_AT_ONCE_MAX)
        .collect()
        .await
}

/// Only the server's word that nobody listens counts: silence is a listener, and a broken connection is no news.
async fn ask(connection: &Connection, probe: Probe, phase: Phase) -> Heard {
    let event = Event::Progress(Progress {
        phase,
        position: None,
        fraction: None,
        eta_ms: None,
    });
    let body = event.encode(probe.encoding).expect("progress can be written");
    let mut found = HeaderMap::new();
    found.insert(headers::EVENT, event.kind().as_str());
    found.insert(headers::ATTEMPT, "0");
    found.insert(headers::CONTENT_TYPE, probe.encoding.content_type());
    let question = Request::new()
        .headers(found)
        .payload(body)
        .timeout(Some(ANSWER_MAX));
    let subject = connection.subjects.events(&probe.request);
    let answer = connection.within(connection.client.send_request(subject, question));
    let refusal = answer.await.ok().and_then(Result::err);
    let nobody = refusal.is_some_and(|error| error.kind() == RequestErrorKind::NoResponders);
    (probe.request, !nobody)
}

/// Requests of one round; more are asked after in turn, so that their clients are missed later.
const ROUND_MAX: usize = 4096;
/// Probes under way: those that are heard wait for [`ANSWER_MAX`] each.
const PROBES_AT_ONCE_MAX: usize = 1024;
/// The server answers in a round trip that nobody listens.
const ANSWER_MAX: Duration = Duration::from_millis(250);

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u128) -> RequestId {
        RequestId::from_random(number)
    }

    fn listeners(count: u128) -> Listeners {
        let mut listeners = Listeners::new(Duration::from_secs(6));
        for number in 0..count {
            listeners.watch(id(number), Encoding::Json);
        }
        listeners
    }

    #[test]
    fn request_is_lost_when_nobody_listened_for_long_enough() {
        let (mut listeners, start) = (listeners(1), Instant::now());
        let mut round = |after_s, is_heard| {
            let now = start + Duration::from_secs(after_s);
            listeners.handle_round(now, vec![(id(0), is_heard)])
        };
        assert_eq!(round(0, false), []);
        assert_eq!(round(4, false), []);
        // The client is back, for a moment.
        assert_eq!(round(5, true), []);
        assert_eq!(round(6, false), []);
        assert_eq!(round(11, false), []);
        assert_eq!(round(12, false), [id(0)]);
        assert_eq!(round(14, false), [], "it is told once");
    }

    #[test]
    fn rounds_of_many_requests_reach_each_of_them_in_turn() {
        let count = ROUND_MAX + ROUND_MAX / 2;
        let mut listeners = listeners(count as u128);
        let mut asked = BTreeMap::<RequestId, usize>::new();
        for _ in 0..3 {
            let round = listeners.next_round();
            assert_eq!(round.len(), ROUND_MAX);
            for probe in round {
                *asked.entry(probe.request).or_default() += 1;
            }
        }
        assert_eq!(asked.len(), count);
        assert!(asked.values().all(|times| *times == 2));
        // What has ended is not asked after, the one that comes next included.
        listeners.forget(&id(0));
        assert!(listeners.next_round().iter().all(|probe| probe.request != id(0)));
    }

    #[test]
    fn few_requests_are_asked_after_once_in_a_round() {
        let mut listeners = listeners(3);
        for _ in 0..3 {
            let round: Vec<RequestId> = listeners
                .next_round()
                .into_iter()
                .map(|probe| probe.request)
                .collect();
            assert_eq!(round.len(), 3);
        }
        listeners.forget(&id(2));
        assert_eq!(listeners.next_round().len(), 2);
    }
}
