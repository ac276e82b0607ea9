//! The worker against a real nats-server: what it writes, says and leaves behind. The test plays the dispatcher.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

mod elastic;
mod fleet;
mod simulated;

use flotilla_client::{Catalog, Journal, NewEntry};
use flotilla_protocol::assignment::{AssignReply, AttemptEnd, Cancel, Control, ControlReply, Refusal};
use flotilla_protocol::catalog::{CatalogEntry, Quantize};
use flotilla_protocol::codec::{decode_internal, encode_internal};
use flotilla_protocol::event::{Accepted, ErrorCode, Event, EventKind, FinishReason, Phase};
use flotilla_protocol::fleet::{ModelState, WorkerState};
use flotilla_protocol::subject::encode_token;
use flotilla_protocol::{Attempt, Encoding, Epoch, ModelName, Strikes, WorkerId, headers};
use flotilla_tests::ModelFolderBuilder;
use futures_util::StreamExt;
use tokio::time::timeout;

use fleet::{Fleet, PATIENCE, answer, assignment, make_journals, worker_id};

const SUM: &str = r#"{"prompt": "123+456=", "max_tokens": 8}"#;

#[tokio::test]
async fn assigned_request_is_answered_in_its_journal_and_told_once() {
    let mut fleet = Fleet::start().await;
    let assignment = assignment("r1", "adder", SUM);
    assert!(matches!(
        fleet.assign(&assignment).await,
        AssignReply::Accepted { .. }
    ));
    let again = fleet.assign(&assignment).await;
    assert!(
        matches!(again, AssignReply::Accepted { .. }),
        "its answer may have been lost"
    );
    let done = fleet.done().await;
    assert_eq!((done.end, done.output_tokens), (AttemptEnd::Terminal, 3));
    let journal = fleet.journal(&assignment.request).await;
    let kinds: Vec<_> = journal.iter().map(|entry| entry.event.kind()).collect();
    assert_eq!(kinds[0], EventKind::Accepted);
    assert_eq!(kinds.iter().filter(|kind| kind.is_terminal()).count(), 1);
    assert_eq!(answer(&journal).0, "579");
    let Some(Event::Finished(finished)) = journal.last().map(|entry| &entry.event) else {
        panic!("the last event is finished: {kinds:?}");
    };
    assert_eq!(finished.finish_reason, FinishReason::Stop);
    assert_eq!(finished.usage.prompt_tokens, done.prompt_tokens);
    assert_eq!(finished.timings.queued_ms.to_bits(), 5.0_f64.to_bits());
    assert!(journal.iter().all(|entry| entry.worker == Some(worker_id())));
}

#[tokio::test]
async fn requests_that_lag_behind_one_another_are_all_answered() {
    let mut fleet = Fleet::start_with(&["worker.answer_channel_tokens=1", "worker.slots=8"]).await;
    let requests: Vec<_> = (0..8)
        .map(|n| assignment(&format!("r{n}"), "adder", SUM))
        .collect();
    for request in &requests {
        let answer = fleet.assign(request).await;
        assert!(matches!(answer, AssignReply::Accepted { .. }), "{answer:?}");
    }
    for _ in &requests {
        assert_eq!(fleet.done().await.end, AttemptEnd::Terminal);
    }
    for request in &requests {
        assert_eq!(answer(&fleet.journal(&request.request).await).0, "579");
    }
}

#[tokio::test]
async fn client_hears_of_a_prompt_that_takes_several_steps_before_the_first_token() {
    let mut fleet = Fleet::start_with(&["worker.batch_tokens_max=16"]).await;
    let long = r#"{"prompt": "11111111111111111111111111111111+1=", "max_tokens": 1}"#;
    let assignment = assignment("r1", "adder", long);
    let subject = fleet.connection.subjects.events(&assignment.request);
    let mut events = fleet.connection.client.subscribe(subject).await.unwrap();
    fleet.connection.client.flush().await.unwrap();
    fleet.assign(&assignment).await;
    loop {
        let event = timeout(PATIENCE, events.next()).await.unwrap().unwrap();
        let found = event.headers.unwrap();
        let kind: EventKind = found.get(headers::EVENT).unwrap().as_str().parse().unwrap();
        assert_ne!(kind, EventKind::Tokens, "no news came before the first token");
        if let Event::Progress(progress) = Event::decode(kind, Encoding::Json, &event.payload).unwrap()
            && progress.phase == Phase::Prefill
        {
            assert_eq!(found.get(headers::ATTEMPT).unwrap().as_str(), "1");
            break;
        }
    }
    fleet.done().await;
}

#[tokio::test]
async fn later_attempt_continues_the_answer_of_an_earlier_one() {
    let mut fleet = Fleet::start().await;
    fleet.assign(&assignment("whole", "adder", SUM)).await;
    fleet.done().await;
    let (text, tokens) = answer(&fleet.journal(&assignment("whole", "adder", SUM).request).await);

    let mut second = assignment("r1", "adder", SUM);
    second.attempt = Attempt(2);
    fleet.write_begun(&second, &text[..1], &tokens[..1]).await;
    fleet.assign(&second).await;
    assert_eq!(fleet.done().await.end, AttemptEnd::Terminal);
    let continued = fleet.journal(&second.request).await;
    assert_eq!(answer(&continued), (text, tokens));
    assert_eq!(continued.last().unwrap().attempt, Attempt(2));
}

#[tokio::test]
async fn attempt_that_is_older_than_the_journals_writes_nothing() {
    let mut fleet = Fleet::start().await;
    let first = assignment("r1", "adder", SUM);
    let newer = Event::Accepted(Accepted {
        request: first.request.clone(),
        model: first.model.clone(),
        prompt_tokens: 9,
    });
    let elsewhere = WorkerId::new("w0").unwrap();
    let entry = NewEntry {
        request: &first.request,
        expected_last_sequence: 0,
        attempt: Attempt(4),
        worker: Some(&elsewhere),
        incarnation: Some(7),
        strikes: Strikes(2),
        alone: false,
        encoding: Encoding::Json,
        event: &newer,
    };
    Journal::new(&fleet.connection).append(entry).await.unwrap();
    fleet.assign(&first).await;
    let fenced = AttemptEnd::Fenced {
        attempt: Attempt(4),
        strikes: Strikes(2),
    };
    assert_eq!(fleet.done().await.end, fenced);
    assert_eq!(fleet.journal(&first.request).await.len(), 1);
}

#[tokio::test]
async fn request_that_the_model_cannot_serve_fails_with_the_field() {
    let mut fleet = Fleet::start().await;
    let chat = r#"{"messages": [{"role": "user", "content": "1+1="}]}"#;
    let assignment = assignment("r1", "adder", chat);
    fleet.assign(&assignment).await;
    assert_eq!(fleet.done().await.end, AttemptEnd::Terminal);
    let journal = fleet.journal(&assignment.request).await;
    let Some(Event::Failed(failed)) = journal.last().map(|entry| &entry.event) else {
        panic!("the answer failed");
    };
    assert_eq!(failed.error.code, ErrorCode::InvalidRequest);
    assert_eq!(failed.error.param.as_deref(), Some("messages"));
}

#[tokio::test]
async fn model_that_nobody_added_is_unloadable_and_the_journal_untouched() {
    let mut fleet = Fleet::start().await;
    let assignment = assignment("r1", "unheard-of", SUM);
    fleet.assign(&assignment).await;
    let end = fleet.done().await.end;
    assert!(matches!(end, AttemptEnd::ModelUnloadable { .. }), "{end:?}");
    assert!(fleet.journal(&assignment.request).await.is_empty());
    let refused = fleet.assign(&assignment).await;
    assert!(
        matches!(refused, AssignReply::Refused(Refusal::ModelUnloadable { .. })),
        "{refused:?}"
    );
}

#[tokio::test]
async fn cancelled_request_is_finished_as_cancelled() {
    let mut fleet = Fleet::start().await;
    // Without its stream the journal takes no `accepted`, so nothing is made before the word comes.
    fleet.remove_journals().await;
    let assignment = assignment("r1", "adder", SUM);
    fleet.assign(&assignment).await;
    let cancel = Cancel {
        request: assignment.request.clone(),
    };
    let subject = fleet.connection.subjects.worker_cancel(&worker_id());
    let body = encode_internal(&cancel).unwrap();
    fleet.connection.client.publish(subject, body).await.unwrap();
    // An order is answered after the cancellations before it.
    let model = assignment.model.clone();
    order(
        &fleet,
        &Control::Load {
            model,
            keep_alive: None,
        },
    )
    .await;
    make_journals(&fleet.connection).await;
    assert_eq!(fleet.done().await.end, AttemptEnd::Terminal);
    let journal = fleet.journal(&assignment.request).await;
    let Some(Event::Finished(finished)) = journal.last().map(|entry| &entry.event) else {
        panic!("the answer is finished");
    };
    assert_eq!(finished.finish_reason, FinishReason::Cancelled);
    assert_eq!(finished.usage.completion_tokens, 0);
}

#[tokio::test]
async fn request_whose_deadline_passes_fails_and_its_journal_says_why() {
    let mut fleet = Fleet::start().await;
    fleet.remove_journals().await;
    let mut hurried = assignment("r1", "adder", SUM);
    hurried.deadline_in_ms = Some(1);
    fleet.assign(&hurried).await;
    // The report after the one that lists it is made some milliseconds later, when the deadline is over.
    while fleet.report().await.running.is_empty() {}
    fleet.report().await;
    make_journals(&fleet.connection).await;
    assert_eq!(fleet.done().await.end, AttemptEnd::Terminal);
    let journal = fleet.journal(&hurried.request).await;
    let Some(Event::Failed(failed)) = journal.last().map(|entry| &entry.event) else {
        panic!("the answer failed");
    };
    assert_eq!(failed.error.code, ErrorCode::DeadlineExceeded);
}

#[tokio::test]
async fn worker_that_is_told_to_stop_now_hands_back_what_it_cannot_write() {
    let mut fleet = Fleet::start().await;
    fleet.remove_journals().await;
    fleet.assign(&assignment("r1", "adder", SUM)).await;
    fleet.stop.now.cancel();
    let end = fleet.done().await.end;
    assert!(matches!(end, AttemptEnd::HandedBack { .. }), "{end:?}");
    let ended = timeout(PATIENCE, &mut fleet.worker).await.unwrap().unwrap();
    ended.unwrap();
}

#[tokio::test]
async fn order_to_load_makes_a_model_ready_and_the_order_to_unload_gives_its_memory_back() {
    let mut fleet = Fleet::start().await;
    let model = ModelName::new("sorter").unwrap();
    let load = Control::Load {
        model: model.clone(),
        keep_alive: None,
    };
    order(&fleet, &load).await;
    let ready = loop {
        let report = fleet.report().await;
        if report.models.iter().any(|model| model.state == ModelState::Ready) {
            break report;
        }
    };
    assert!(ready.devices[0].pages_weights > 0);
    order(&fleet, &Control::Unload { model }).await;
    loop {
        let report = fleet.report().await;
        if report.models.is_empty() {
            assert_eq!(report.devices[0].pages_weights, 0);
            return;
        }
    }
}

#[tokio::test]
async fn stale_leader_is_refused_with_the_epoch_that_was_seen() {
    let mut fleet = Fleet::start().await;
    let mut newer = assignment("r1", "adder", SUM);
    newer.epoch = Epoch(7);
    fleet.assign(&newer).await;
    fleet.done().await;
    let refused = fleet.assign(&assignment("r2", "adder", SUM)).await;
    assert_eq!(
        refused,
        AssignReply::Refused(Refusal::StaleEpoch { seen: Epoch(7) })
    );
}

#[tokio::test]
async fn drained_worker_says_so_leaves_no_registration_and_ends() {
    let mut fleet = Fleet::start().await;
    let bucket = fleet.connection.subjects.bucket("workers");
    let workers = fleet.connection.jetstream.get_key_value(bucket).await.unwrap();
    let mut changes = workers.watch_with_history("w1").await.unwrap();
    let registered = timeout(PATIENCE, changes.next()).await.unwrap().unwrap().unwrap();
    assert_eq!(registered.key, "w1");
    fleet.stop.drain.cancel();
    while fleet.report().await.state != WorkerState::Draining {}
    let ended = timeout(PATIENCE, &mut fleet.worker).await.unwrap().unwrap();
    ended.unwrap();
    assert!(workers.get("w1").await.unwrap().is_none());
}

#[tokio::test]
async fn worker_outlives_its_server_and_answers_when_it_is_back() {
    let mut fleet = Fleet::start().await;
    fleet.assign(&assignment("r1", "adder", SUM)).await;
    fleet.done().await;
    fleet.server.kill().unwrap();
    fleet.server.restart().unwrap();
    let after = assignment("r2", "adder", SUM);
    let assigned = async {
        // What was sent before both sides are connected again is lost.
        while fleet.try_assign(&after).await.is_none() {
            fleet.report().await;
        }
    };
    timeout(PATIENCE, assigned).await.unwrap();
    assert_eq!(fleet.done().await.end, AttemptEnd::Terminal);
    assert_eq!(answer(&fleet.journal(&after.request).await).0, "579");
}

#[tokio::test]
async fn models_of_the_folder_are_in_the_catalog() {
    let fleet = Fleet::start().await;
    let entries = Catalog::open(&fleet.connection)
        .await
        .unwrap()
        .list()
        .await
        .unwrap();
    let names: Vec<_> = entries.iter().map(|entry| entry.name.as_str()).collect();
    assert_eq!(names, ["adder", "reverser", "sorter"]);
}

/// Loads a model and gives the pages of its weights.
async fn load(fleet: &mut Fleet, model: &ModelName) -> u64 {
    let load = Control::Load {
        model: model.clone(),
        keep_alive: None,
    };
    order(fleet, &load).await;
    loop {
        let report = fleet.report().await;
        if report.models.iter().any(|model| model.state == ModelState::Ready) {
            return report.devices[0].pages_weights;
        }
    }
}

#[tokio::test]
async fn a_loaded_model_that_the_catalog_quantises_leaves_and_comes_back_smaller() {
    let mut fleet = Fleet::start().await;
    let folder = tempfile::tempdir().unwrap();
    ModelFolderBuilder::default().write(folder.path()).unwrap();
    let model = ModelName::new("random").unwrap();
    let entry = flotilla_worker::describe(model.clone(), folder.path()).unwrap();
    let catalog = Catalog::open(&fleet.connection).await.unwrap();
    catalog.add(&entry).await.unwrap();
    let stored = load(&mut fleet, &model).await;

    let entry = CatalogEntry {
        quantize: Some(Quantize::Int4),
        ..entry
    };
    let bucket = fleet.connection.subjects.bucket("models");
    let store = fleet.connection.jetstream.get_key_value(bucket).await.unwrap();
    let body = Encoding::Json.encode(&entry).unwrap();
    store.put(encode_token(model.as_str()), body).await.unwrap();
    while !fleet.report().await.models.is_empty() {}
    let quantised = load(&mut fleet, &model).await;
    assert!(quantised * 5 < stored * 2, "{stored} pages, then {quantised}");
}

async fn order(fleet: &Fleet, order: &Control) {
    let subject = fleet.connection.subjects.control(&worker_id());
    let body = encode_internal(order).unwrap();
    let message = fleet.connection.client.request(subject, body).await.unwrap();
    assert_eq!(
        decode_internal::<ControlReply>(&message.payload).unwrap(),
        ControlReply::Accepted
    );
}
