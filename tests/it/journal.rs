//! The journal on a real server: what is refused, what is republished, and how a reader mends gaps.

use std::pin::pin;

use anyhow::{Context, Result};
use async_nats::HeaderMap;
use async_nats::jetstream::stream::Config as StreamConfig;
use flotilla_client::{AppendError, Events, EventsError, Journal, NewEntry, new_request_id};
use flotilla_protocol::event::{Accepted, Event, FinishReason, Finished, Timings, Tokens, Usage};
use flotilla_protocol::{Attempt, Encoding, ModelName, RequestId, Strikes, WorkerId};
use flotilla_tests::{Fleet, eventually};
use futures_util::StreamExt;

async fn fleet_without_workers() -> Result<(Fleet, Journal)> {
    let fleet = Fleet::builder().workers(0).start().await?;
    eventually("the journal stream", async || {
        fleet
            .connection
            .jetstream
            .get_stream("FLOTILLA_JOURNAL")
            .await
            .ok()
            .map(drop)
    })
    .await;
    let journal = Journal::new(&fleet.connection);
    Ok((fleet, journal))
}

fn tokens(offset: u32) -> Event {
    Event::Tokens(Tokens {
        offset,
        token_ids: vec![offset],
        text: format!("{offset} "),
        logprobs: Vec::new(),
    })
}

fn finished(count: u32) -> Event {
    Event::Finished(Finished {
        finish_reason: FinishReason::Length,
        usage: Usage::new(1, count),
        timings: Timings::default(),
        data: None,
    })
}

fn entry<'a>(request: &'a RequestId, worker: &'a WorkerId, after: u64, event: &'a Event) -> NewEntry<'a> {
    NewEntry {
        request,
        expected_last_sequence: after,
        attempt: Attempt(1),
        worker: Some(worker),
        incarnation: Some(7),
        strikes: Strikes(2),
        alone: false,
        encoding: Encoding::Json,
        event,
    }
}

#[tokio::test]
async fn append_that_does_not_follow_the_newest_entry_is_refused_and_not_heard() -> Result<()> {
    let (fleet, journal) = fleet_without_workers().await?;
    let (request, worker) = (new_request_id(), WorkerId::new("w0")?);
    let mut events = Events::subscribe(&fleet.connection, request.clone()).await?;
    let first = journal.append(entry(&request, &worker, 0, &tokens(0))).await?;
    for stale in [0, first - 1, first + 1] {
        let refused = journal.append(entry(&request, &worker, stale, &tokens(1))).await;
        assert!(
            stale == first || matches!(refused, Err(AppendError::Conflict { .. })),
            "{stale}: {refused:?}"
        );
    }
    let second = journal
        .append(entry(&request, &worker, first, &finished(1)))
        .await?;
    assert!(second > first);
    let heard = [events.next().await?, events.next().await?].map(|e| e.map(|e| e.sequence));
    assert_eq!(
        heard,
        [Some(Some(first)), Some(Some(second))],
        "refused appends are not republished"
    );
    assert_eq!(events.next().await?, None);
    Ok(())
}

#[tokio::test]
async fn of_racing_writers_exactly_one_wins_each_place() -> Result<()> {
    let (_fleet, journal) = fleet_without_workers().await?;
    let (request, workers) = (new_request_id(), [WorkerId::new("a")?, WorkerId::new("b")?]);
    let mut after = 0;
    for offset in 0..50 {
        let event = tokens(offset);
        let (a, b) = tokio::join!(
            journal.append(entry(&request, &workers[0], after, &event)),
            journal.append(entry(&request, &workers[1], after, &event)),
        );
        after = match (a, b) {
            (Ok(sequence), Err(AppendError::Conflict { .. }))
            | (Err(AppendError::Conflict { .. }), Ok(sequence)) => sequence,
            other => panic!("one must win: {other:?}"),
        };
    }
    let stored = journal.read(&request, 0).await?;
    let offsets: Vec<u32> = stored
        .iter()
        .map(|entry| match &entry.event {
            Event::Tokens(tokens) => tokens.offset,
            other => panic!("only tokens were written: {other:?}"),
        })
        .collect();
    assert_eq!(offsets, (0..50).collect::<Vec<_>>());
    Ok(())
}

#[tokio::test]
async fn long_journal_is_read_whole_and_from_any_place() -> Result<()> {
    let (_fleet, journal) = fleet_without_workers().await?;
    let (request, other, worker) = (new_request_id(), new_request_id(), WorkerId::new("w0")?);
    let model = ModelName::new("m")?;
    let accepted = Event::Accepted(Accepted {
        request: request.clone(),
        model,
        prompt_tokens: 1,
    });
    let mut after = journal.append(entry(&request, &worker, 0, &accepted)).await?;
    let mut others = 0;
    for offset in 0..600 {
        after = journal
            .append(entry(&request, &worker, after, &tokens(offset)))
            .await?;
        others = journal
            .append(entry(&other, &worker, others, &tokens(offset)))
            .await?;
    }
    let stored = journal.read(&request, 0).await?;
    assert_eq!(
        stored.len(),
        601,
        "more than two batches, and nothing of the neighbour"
    );
    assert_eq!(
        (stored[0].strikes, stored[0].worker.as_ref()),
        (Strikes(2), Some(&worker))
    );
    let tail = journal.read(&request, stored[599].sequence).await?;
    assert_eq!(tail, stored[600..]);
    assert_eq!(journal.read(&request, after).await?, []);
    assert_eq!(journal.read(&new_request_id(), 0).await?, []);
    Ok(())
}

#[tokio::test]
async fn reader_that_missed_events_gets_every_one_once_and_in_order() -> Result<()> {
    let (fleet, journal) = fleet_without_workers().await?;
    let (request, worker) = (new_request_id(), WorkerId::new("w0")?);
    let mut after = 0;
    for offset in 0..5 {
        after = journal
            .append(entry(&request, &worker, after, &tokens(offset)))
            .await?;
    }
    // Subscribed too late for the first five: the sixth shows the gap.
    let mut events = Events::subscribe(&fleet.connection, request.clone()).await?;
    for offset in 5..10 {
        after = journal
            .append(entry(&request, &worker, after, &tokens(offset)))
            .await?;
    }
    journal
        .append(entry(&request, &worker, after, &finished(10)))
        .await?;
    let mut offsets = Vec::new();
    while let Some(delivered) = events.next().await? {
        if let Event::Tokens(tokens) = delivered.event {
            offsets.push(tokens.offset);
        }
    }
    assert_eq!(offsets, (0..10).collect::<Vec<_>>());
    Ok(())
}

/// Who hears of an event may read a copy of the journal that lacks it, and then waited as if nothing were missing.
#[tokio::test]
async fn reader_that_heard_of_more_than_a_copy_holds_asks_again_sooner_than_one_that_did_not() -> Result<()> {
    let fleet = Fleet::builder().dispatchers(0).workers(0).start().await?;
    let connection = &fleet.connection;
    // Does not republish: neither of the two hears of what is stored.
    let stream = StreamConfig {
        name: connection.subjects.journal_stream(),
        subjects: vec![connection.subjects.journal_all()],
        allow_direct: true,
        ..Default::default()
    };
    connection.jetstream.create_stream(stream).await?;
    let (told, untold, worker) = (new_request_id(), new_request_id(), WorkerId::new("w0")?);
    let mut ahead = Events::subscribe(connection, told.clone()).await?;
    let mut other = Events::subscribe(connection, untold.clone()).await?;
    let mut headers = HeaderMap::new();
    headers.insert("Nats-Sequence", "2");
    headers.insert("Nats-Last-Sequence", "1");
    let subject = connection.subjects.events(&told);
    connection
        .client
        .publish_with_headers(subject, headers, "".into())
        .await?;
    // They wait from the same moment on.
    let (mut ahead, mut other) = (pin!(ahead.next()), pin!(other.next()));
    let mut reads = connection
        .client
        .subscribe("$JS.API.DIRECT.GET.FLOTILLA_JOURNAL")
        .await?;
    tokio::select! {
        early = &mut ahead => panic!("nothing is stored: {early:?}"),
        early = &mut other => panic!("nothing is stored: {early:?}"),
        asked = reads.next() => asked.map(drop).context("the gap is looked for")?,
    }
    let journal = Journal::new(connection);
    for request in [&untold, &told] {
        journal.append(entry(request, &worker, 0, &tokens(0))).await?;
    }
    tokio::select! {
        biased;
        late = &mut other => panic!("this one had nothing to look for: {late:?}"),
        found = &mut ahead => assert_eq!(found?.context("an event")?.event, tokens(0)),
    }
    Ok(())
}

#[tokio::test]
async fn reader_that_missed_the_last_event_finds_it_after_a_silence() -> Result<()> {
    let (fleet, journal) = fleet_without_workers().await?;
    let (request, worker) = (new_request_id(), WorkerId::new("w0")?);
    let after = journal.append(entry(&request, &worker, 0, &tokens(0))).await?;
    journal
        .append(entry(&request, &worker, after, &finished(1)))
        .await?;
    // Nothing will ever be published again; only the journal knows.
    let mut events = Events::subscribe(&fleet.connection, request).await?;
    let first = events.next().await?.context("the stored token")?;
    assert_eq!(first.event, tokens(0));
    assert!(
        events
            .next()
            .await?
            .context("the stored end")?
            .event
            .kind()
            .is_terminal()
    );
    Ok(())
}

#[tokio::test]
async fn reader_of_a_journal_that_lost_its_beginning_is_told_so() -> Result<()> {
    let (fleet, journal) = fleet_without_workers().await?;
    let (request, worker) = (new_request_id(), WorkerId::new("w0")?);
    let first = journal.append(entry(&request, &worker, 0, &tokens(0))).await?;
    journal
        .append(entry(&request, &worker, first, &tokens(1)))
        .await?;
    let stream = fleet.connection.jetstream.get_stream("FLOTILLA_JOURNAL").await?;
    stream.delete_message(first).await?;
    let mut events = Events::from_start(&fleet.connection, request).await?;
    let refused = events.next().await;
    assert!(
        matches!(
            refused,
            Err(EventsError::Incomplete {
                seen: 0,
                offset: 1,
                ..
            })
        ),
        "{refused:?}"
    );
    Ok(())
}

#[tokio::test]
async fn event_that_is_not_stored_is_not_believed() -> Result<()> {
    let (fleet, journal) = fleet_without_workers().await?;
    let (request, worker) = (new_request_id(), WorkerId::new("w0")?);
    let mut events = Events::subscribe(&fleet.connection, request.clone()).await?;
    let forged = finished(9);
    let mut found = HeaderMap::new();
    found.insert("Flotilla-Event", forged.kind().as_str());
    let subject = fleet.connection.subjects.events(&request);
    let body = forged.encode(Encoding::Json)?;
    fleet
        .connection
        .client
        .publish_with_headers(subject, found, body)
        .await?;
    let first = journal.append(entry(&request, &worker, 0, &tokens(0))).await?;
    journal
        .append(entry(&request, &worker, first, &finished(1)))
        .await?;
    assert_eq!(events.next().await?.context("the stored token")?.event, tokens(0));
    assert_eq!(events.next().await?.context("the stored end")?.event, finished(1));
    Ok(())
}
