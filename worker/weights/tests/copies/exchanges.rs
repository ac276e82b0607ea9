//! Copies whose exchanges fail in every way that the other side has: each is whole in the end, and nobody waits for ever.
//!
//! A row has a sender and a receiver of its own, each behind a proxy that disturbs one exchange, and a model that nobody else
//! wants, so that all rows run at once.

use std::sync::Arc;
use std::time::Duration;

use flotilla_tests::{Exchanges, Fault, PATIENCE, Refusal, Rule, Side};
use futures_util::{StreamExt, stream};
use tokio::time::timeout;

use crate::assert_is_copy;
use crate::world::{Traits, World, model, root};

/// Who is disturbed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Sender,
    Receiver,
}

type Row = (Part, &'static str, Side, Fault, Option<u32>);

const CHUNKS: &str = "$O.flotilla_relay.C.>";
const DESCRIPTIONS: &str = "$O.flotilla_relay.M.>";
const READS: &str = "$JS.API.DIRECT.GET.OBJ_flotilla_relay";
const CLAIMS: &str = "$KV.flotilla_claims.>";
const HOLDERS: &str = "$JS.API.STREAM.INFO.KV_flotilla_holders";
const PURGES: &str = "$JS.API.STREAM.PURGE.OBJ_flotilla_relay";
const ASKS: &str = "flotilla.worker.*.copy";
const HAVES: &str = "flotilla.copy.*.*.have";
const NEWS: &str = "flotilla.copy.*.*.news";
/// After the time of an answer.
const LATE: Fault = Fault::Late(Duration::from_millis(1500));
const NO_MEMORY: Refusal = Refusal::JetStream(10028, "insufficient memory resources available");

fn rows() -> Vec<Row> {
    use Fault::{Refused, Silent, Twice};
    use Part::{Receiver, Sender};
    use Side::{Answer, Delivery, Question};
    vec![
        (Sender, CHUNKS, Question, Silent, Some(1)),
        (Sender, CHUNKS, Answer, Silent, Some(1)),
        (Sender, CHUNKS, Answer, LATE, Some(1)),
        (Sender, CHUNKS, Question, Twice, None),
        (Sender, CHUNKS, Answer, Twice, None),
        (Sender, CHUNKS, Question, Refused(NO_MEMORY), Some(2)),
        (Sender, CHUNKS, Question, Refused(Refusal::NoResponders), Some(1)),
        (Sender, DESCRIPTIONS, Question, Silent, Some(1)),
        (Sender, CLAIMS, Question, Silent, Some(1)),
        (Sender, CLAIMS, Answer, Silent, Some(1)),
        (Sender, PURGES, Question, Silent, Some(1)),
        (Sender, ASKS, Delivery, Silent, Some(1)),
        (Sender, ASKS, Delivery, Twice, None),
        (Sender, HAVES, Delivery, Silent, Some(1)),
        (Sender, HAVES, Delivery, Twice, None),
        (Receiver, HOLDERS, Question, Silent, Some(1)),
        (
            Receiver,
            HOLDERS,
            Question,
            Refused(Refusal::NoResponders),
            Some(1),
        ),
        (Receiver, ASKS, Answer, Silent, Some(1)),
        (Receiver, ASKS, Question, Refused(Refusal::NoResponders), Some(1)),
        (Receiver, ASKS, Answer, Twice, None),
        (Receiver, READS, Answer, Silent, Some(1)),
        (Receiver, READS, Question, Refused(Refusal::NoResponders), Some(1)),
        (Receiver, READS, Answer, Twice, None),
        (Receiver, CHUNKS, Delivery, Silent, Some(2)),
        (Receiver, CHUNKS, Delivery, Silent, None),
        (Receiver, CHUNKS, Delivery, Twice, None),
        (
            Receiver,
            CHUNKS,
            Delivery,
            Fault::Late(Duration::from_millis(300)),
            None,
        ),
        (Receiver, NEWS, Delivery, Silent, Some(3)),
        (Receiver, NEWS, Delivery, Twice, None),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copies_are_whole_whatever_one_exchange_meets() {
    let world = World::start_with(&["nats.request_timeout_ms=1000"]).await;
    let rows = rows().into_iter().enumerate();
    let failed: Vec<String> = stream::iter(rows)
        .map(async |(number, row)| {
            let outcome = run(&world, number, &row).await;
            outcome.err().map(|fault| format!("{row:?}: {fault}"))
        })
        .buffer_unordered(ROWS_AT_ONCE)
        .filter_map(std::future::ready)
        .collect()
        .await;
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

async fn run(world: &World, number: usize, (part, subject, side, fault, times): &Row) -> Result<(), String> {
    let sender = Exchanges::start(world.port()).await.unwrap();
    let receiver = Exchanges::start(world.port()).await.unwrap();
    let at = |part: &str| Traits::named(Box::leak(format!("{part}{number}").into_boxed_str()));
    let a = world.worker_at(sender.url(), at("a")).await;
    let b = world.worker_at(receiver.url(), at("b")).await;
    let seed = 100 + 10 * number as u64;
    let (_folder, files) = model(seed..seed + 3);
    a.exports.hold(Arc::clone(&files)).await;
    let rule = Rule {
        times: *times,
        ..Rule::new(subject, *side, fault.clone())
    };
    let mut disturbance = match part {
        Part::Sender => sender.disturb(rule),
        Part::Receiver => receiver.disturb(rule),
    };
    let mut told = Vec::new();
    let imported = loop {
        let imported = timeout(PATIENCE, b.importer.import(root(&files))).await;
        match imported.map_err(|_| format!("it hangs after {told:?}"))? {
            Ok(imported) => break imported,
            // A worker tries again some time later.
            Err(error) if told.len() < TRIES_MAX => told.push(error),
            Err(error) => return Err(format!("{error} after {told:?}")),
        }
    };
    let met = disturbance.wait_until_met(1).await;
    met.map_err(|error| error.to_string())?;
    assert_is_copy(&imported, &files);
    Ok(())
}

const ROWS_AT_ONCE: usize = 10;
const TRIES_MAX: usize = 3;
