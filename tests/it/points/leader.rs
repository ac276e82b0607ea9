//! The leader is killed at every step of a request's life, and so is its successor before it knows what runs.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};
use flotilla_client::{Answer, Journal};
use flotilla_protocol::assignment::Assignment;
use flotilla_protocol::codec::decode_internal;
use flotilla_protocol::event::ErrorCode;
use flotilla_protocol::{Attempt, Class, RequestId, WorkerId, headers};
use flotilla_tests::{Fleet, Gate, Passing, Question, Verdict, Way, eventually};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::{Limiter, QUICK, Step, TOKENS, answered, ask, follow, outcome};
use crate::crashes::assert_journal_is_whole;
use crate::slow::again;

/// Where a request is when its leader dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Point {
    /// In the stream; the leader has not asked for it.
    Published,
    /// On its way to the leader.
    Pulled,
    /// In the leader's queue, where it waits for a worker.
    Queued,
    /// Its assignment is on its way to a worker.
    Assigning,
    /// It runs, and the worker's answer to the assignment is on its way to the leader.
    Assigned,
    /// It runs; this is the step that its worker makes next.
    Running(Step),
    /// It has ended, and the acknowledgement is on its way to the server.
    Ended,
    /// The leader refuses it, and the end is on its way to the journal.
    Refused,
    /// Its worker died twice, and its dead letter is on its way to the server.
    Poisoned,
    /// Its dead letter is stored, and its end is on its way to the journal.
    Buried,
}

/// What the leader's gate knows.
#[derive(Debug, Default)]
struct Watched {
    points: HashMap<RequestId, Point>,
    reached: HashSet<RequestId>,
    /// The requests that are acknowledged, or whose assignments are answered, at these subjects.
    subjects: HashMap<String, RequestId>,
    /// Nothing comes and goes any more.
    is_frozen: bool,
}

impl Watched {
    fn verdict(&mut self, message: &Passing<'_>) -> Verdict {
        if self.is_frozen || message.subject.starts_with(PULLS_OF_BATCH) {
            return Verdict::Hold;
        }
        let Some((request, points)) = self.leads_to(message) else {
            return Verdict::Pass;
        };
        let Some(point) = self.points.get(&request).filter(|point| points.contains(point)) else {
            return Verdict::Pass;
        };
        self.is_frozen = *point == Point::Assigned;
        self.reached.insert(request);
        Verdict::Hold
    }

    /// The request that a message is about, and the points that are over when it has come.
    fn leads_to(&mut self, message: &Passing<'_>) -> Option<(RequestId, &'static [Point])> {
        let subject = message.subject;
        match message.way {
            Way::ToPart if subject.starts_with("flotilla.request.") => {
                let request = RequestId::new(message.header("Nats-Msg-Id")?).ok()?;
                self.subjects.insert(message.reply?.to_owned(), request.clone());
                Some((request, &[Point::Pulled]))
            }
            Way::ToPart => Some((self.subjects.get(subject)?.clone(), &[Point::Assigned])),
            Way::ToServer if subject.starts_with("flotilla.worker.") && subject.ends_with(".assign") => {
                let assignment: Assignment = decode_internal(message.payload).ok()?;
                let reply = message.reply?.to_owned();
                self.subjects.insert(reply, assignment.request.clone());
                Some((assignment.request, &[Point::Assigning]))
            }
            Way::ToServer if message.payload == b"+ACK" => {
                Some((self.subjects.get(subject)?.clone(), &[Point::Ended]))
            }
            Way::ToServer if subject.starts_with("flotilla.dead.") => {
                let request = RequestId::new(message.header(headers::DEAD_REQUEST)?).ok()?;
                Some((request, &[Point::Poisoned]))
            }
            Way::ToServer => {
                let request = RequestId::new(subject.strip_prefix("flotilla.journal.")?).ok()?;
                Some((request, &[Point::Refused, Point::Buried]))
            }
        }
    }
}

/// The gate of a leader that is to die.
#[derive(Debug, Clone, Default)]
struct Leader {
    /// Guards what the gate's rule and the test both know.
    watched: Arc<Mutex<Watched>>,
}

impl Leader {
    fn gate(&self) -> Gate {
        let watched = Arc::clone(&self.watched);
        Gate::new(move |message| watched.lock().expect("nobody panics with it").verdict(message))
    }

    fn watch(&self, request: &RequestId, point: Point) {
        let mut watched = self.watched.lock().expect("nobody panics with it");
        watched.points.insert(request.clone(), point);
    }

    async fn reaches(&self, request: &RequestId, point: Point) {
        eventually(&format!("a request to be {point:?}"), async || {
            let watched = self.watched.lock().expect("nobody panics with it");
            watched.reached.contains(request).then_some(())
        })
        .await;
    }
}

/// The gate of a leader that cannot read journals, and those that it asked for.
fn unread(asked: &Arc<Mutex<HashSet<RequestId>>>) -> Gate {
    let asked = Arc::clone(asked);
    Gate::new(move |message| {
        if message.subject != "$JS.API.DIRECT.GET.FLOTILLA_JOURNAL" {
            return Verdict::Pass;
        }
        let question: Value = serde_json::from_slice(message.payload).unwrap_or_default();
        let journal = question["next_by_subj"].as_str().unwrap_or_default();
        let request = journal.strip_prefix("flotilla.journal.").unwrap_or_default();
        let mut asked = asked.lock().expect("nobody panics with it");
        asked.extend(RequestId::new(request).ok());
        Verdict::Hold
    })
}

/// A request and where it is to be.
struct Asked {
    question: Question,
    point: Point,
    answer: JoinHandle<Result<Answer>>,
}

/// The fleet and who holds what.
struct Stage {
    fleet: Fleet,
    leader: Leader,
    limiter: Limiter,
    question: Question,
}

impl Stage {
    /// Asks a request and waits until it is where it is to be.
    async fn bring_to(&mut self, point: Point) -> Result<Asked> {
        let mut question = again(&self.question);
        let mut worker = None;
        match point {
            Point::Published => question.class = Class::Batch,
            Point::Refused => question.body = json!({"prompt": "1+1=", "max_tokens": -1}),
            Point::Queued => worker = Some(LATE_WORKER),
            Point::Poisoned | Point::Buried => worker = Some(VICTIM),
            Point::Pulled | Point::Assigning | Point::Assigned | Point::Running(_) | Point::Ended => {}
        }
        match point {
            Point::Running(next) => self.limiter.limit(&question.request, next),
            Point::Poisoned | Point::Buried => self.limiter.limit(&question.request, Step::token(3)),
            _ => {}
        }
        self.leader.watch(&question.request, point);
        let answer = match worker {
            Some(worker) => {
                question.body["deadline_ms"] = json!(600_000);
                let worker = WorkerId::new(worker)?;
                follow(self.fleet.submit_to(&question, &worker).await?)
            }
            None => ask(&self.fleet, &question).await?,
        };
        self.wait_for(&question, point).await?;
        Ok(Asked {
            question,
            point,
            answer,
        })
    }

    async fn wait_for(&mut self, question: &Question, point: Point) -> Result<()> {
        let request = &question.request;
        match point {
            Point::Published => {}
            Point::Queued => {
                eventually("a request in the queue", async || {
                    let queue = self.fleet.admin("queue", &json!({})).await.ok()?;
                    let queue: Value = serde_json::from_slice(&queue.payload).ok()?;
                    let queued = queue["queued"].as_array()?;
                    queued
                        .iter()
                        .any(|entry| entry["request"] == request.as_str())
                        .then_some(())
                })
                .await;
            }
            Point::Running(_) => self.limiter.all_reached().await,
            Point::Poisoned | Point::Buried => {
                self.limiter.all_reached().await;
                self.fleet.workers[1].kill()?;
                self.fleet.restart_worker(1)?;
                // The first death makes a suspect, the second one a dead letter.
                self.runs_again(request).await;
                self.fleet.workers[1].kill()?;
                self.leader.reaches(request, point).await;
                self.fleet.restart_worker(1)?;
                self.fleet.wait_for_workers(2).await;
            }
            Point::Pulled | Point::Assigning | Point::Assigned | Point::Ended | Point::Refused => {
                self.leader.reaches(request, point).await;
            }
        }
        Ok(())
    }
}

impl Stage {
    /// Waits until a worker has the second attempt of a request, and the journal says so.
    async fn runs_again(&self, request: &RequestId) {
        let journal = Journal::new(&self.fleet.connection);
        eventually("the second attempt", async || {
            let entries = journal.read(request, 0).await.ok()?;
            entries.iter().find(|entry| entry.attempt == Attempt(2))?;
            let workers = self.fleet.status().await.ok()?.workers;
            let mut running = workers.iter().flat_map(|worker| &worker.report.running);
            running
                .any(|it| it.request == *request && it.attempt == Attempt(2))
                .then_some(())
        })
        .await;
    }
}

impl Asked {
    /// Waits for the end and compares it with the undisturbed one.
    async fn end(self, fleet: &Fleet, undisturbed: &Answer) -> Result<()> {
        let Self {
            question,
            point,
            answer,
        } = self;
        let answer = answered(&question, answer)
            .await
            .with_context(|| format!("{point:?}"))?;
        let code = match point {
            Point::Refused => Some(ErrorCode::InvalidRequest),
            Point::Poisoned | Point::Buried => Some(ErrorCode::Poisoned),
            Point::Published | Point::Pulled | Point::Queued | Point::Assigning => None,
            Point::Assigned | Point::Running(_) | Point::Ended => None,
        };
        if let Some(code) = code {
            assert_eq!(
                answer.end.as_ref().map_err(|error| error.code).err(),
                Some(code),
                "{point:?}"
            );
        } else {
            assert_eq!(outcome(&answer)?, outcome(undisturbed)?, "{point:?}");
            assert_eq!(answer.attempts, Attempt(1), "{point:?}: nothing is made twice");
        }
        assert_journal_is_whole(fleet, &question, &answer).await
    }
}

async fn stage(asked_for: &Arc<Mutex<HashSet<RequestId>>>) -> Result<(Stage, Gate)> {
    let (leader, limiter) = (Leader::default(), Limiter::default());
    let running = limiter.gate();
    let mut builder = Fleet::builder()
        .workers(2)
        .gate("d0", &leader.gate())
        .gate("d1", &unread(asked_for))
        .gate("w0", &running)
        .gate(VICTIM, &running)
        .set("worker.answer_channel_tokens=1")
        .set("dispatcher.strikes_max=1");
    for setting in QUICK {
        builder = builder.set(setting);
    }
    let body = json!({"prompt": "1+2=", "max_tokens": TOKENS, "logit_bias": {"2": -100}});
    let stage = Stage {
        fleet: builder.start().await?,
        leader,
        limiter,
        question: Question::new("adder", body),
    };
    Ok((stage, running))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leader_that_is_killed_at_any_step_leaves_requests_that_end_as_if_undisturbed() -> Result<()> {
    let asked_for = Arc::default();
    let (mut stage, running) = stage(&asked_for).await?;
    let undisturbed = stage.fleet.ask(&again(&stage.question)).await?;
    let mut asked = Vec::new();
    for point in [
        Point::Poisoned,
        Point::Buried,
        Point::Refused,
        Point::Queued,
        Point::Ended,
    ]
    .into_iter()
    .chain([Point::Published, Point::Pulled, Point::Assigning])
    {
        asked.push(stage.bring_to(point).await?);
    }
    let mut under_way = Vec::new();
    for next in [
        Step::ACCEPTED,
        Step::token(0),
        Step::token(1),
        Step::token(32),
        Step::END,
    ] {
        under_way.push(stage.bring_to(Point::Running(next)).await?);
    }
    under_way.push(stage.bring_to(Point::Assigned).await?);

    stage.fleet.dispatchers[0].kill()?;
    // Nobody leads, and nobody could: what runs comes to its end without a leader.
    running.open();
    let mut expected: HashSet<RequestId> = asked.iter().map(|asked| asked.question.request.clone()).collect();
    for under_way in under_way {
        expected.insert(under_way.question.request.clone());
        under_way.end(&stage.fleet, &undisturbed).await?;
    }
    stage.fleet.add_dispatcher()?;
    eventually("the second leader to ask for every journal", async || {
        (*asked_for.lock().expect("nobody panics with it") == expected).then_some(())
    })
    .await;
    stage.fleet.dispatchers[1].kill()?;
    stage.fleet.add_dispatcher()?;
    stage.fleet.add_worker()?;
    for asked in asked {
        asked.end(&stage.fleet, &undisturbed).await?;
    }
    stage.fleet.wait_for_an_empty_queue().await;
    let dead = stage
        .fleet
        .connection
        .jetstream
        .get_stream("FLOTILLA_DEAD")
        .await?;
    assert_eq!(dead.get_info().await?.state.messages, 2, "a dead letter each");
    Ok(())
}

/// How the leader asks for requests of the class `batch`.
const PULLS_OF_BATCH: &str = "$JS.API.CONSUMER.MSG.NEXT.FLOTILLA_REQUESTS.batch";
/// The worker that dies with what is to be a dead letter.
const VICTIM: &str = "w1";
/// A worker that comes when the last leader leads.
const LATE_WORKER: &str = "w2";
