//! Fleets on three servers: what differs from one server is that there may be no leader, or a copy that is behind.

use std::sync::atomic::Ordering;

use anyhow::{Context, Result};
use async_nats::client::RequestErrorKind;
use async_nats::jetstream::stream::Config as StreamConfig;
use flotilla_client::{Answer, Catalog, Connection, Events, NewRequest, new_request_id, submit};
use flotilla_protocol::{Class, Encoding, ModelName};
use flotilla_tests::{Fleet, Flow, PATIENCE, Question, eventually, server_name, simulated_model};
use futures_util::StreamExt;
use tokio::time::timeout;

/// Three servers that have found each other, and nothing else.
async fn servers_alone() -> Result<Fleet> {
    Fleet::builder()
        .servers(3)
        .dispatchers(0)
        .workers(0)
        .start()
        .await
}

/// The number of the server that leads a stream; none while one is elected.
async fn leader(connection: &Connection, stream: &str) -> Option<usize> {
    let info = connection.jetstream.get_stream(stream).await.ok()?;
    let leader = info.cached_info().cluster.as_ref()?.leader.clone()?;
    (0..3).find(|number| server_name(*number) == leader)
}

/// Answers everything on a subject for as long as it is kept.
async fn echo(connection: &Connection, subject: &'static str) -> Result<tokio::task::JoinHandle<()>> {
    let mut asked = connection.client.subscribe(subject).await?;
    connection.client.flush().await?;
    let client = connection.client.clone();
    Ok(tokio::spawn(async move {
        while let Some(message) = asked.next().await {
            if let Some(reply) = message.reply {
                // Whoever asked is told by silence.
                drop(client.publish(reply, message.payload).await);
            }
        }
    }))
}

async fn is_answered(connection: &Connection, subject: &'static str) -> Option<bool> {
    match connection.client.request(subject, "".into()).await {
        Ok(_) => Some(true),
        Err(error) if error.kind() == RequestErrorKind::NoResponders => Some(false),
        Err(_) => None,
    }
}

/// Without this every partition of the chaos runs would be none.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_that_are_cut_off_from_each_other_find_no_way_round() -> Result<()> {
    let fleet = servers_alone().await?;
    let (first, second, third) = (
        fleet.connect_to(0).await?,
        fleet.connect_to(1).await?,
        fleet.connect_to(2).await?,
    );
    let _echoes = [echo(&first, "of.first").await?, echo(&second, "of.second").await?];
    let until = async |what, connection, subject, wanted| {
        let is_so = async || (is_answered(connection, subject).await == Some(wanted)).then_some(());
        eventually(what, is_so).await;
    };
    until("a way from the second to the first", &second, "of.first", true).await;
    fleet
        .cluster
        .between(0, 1)
        .iter()
        .for_each(|wire| wire.proxy.cut());
    until("a cut", &second, "of.first", false).await;
    // Servers that connect to each other anew tell the others' addresses.
    fleet
        .cluster
        .routes_of(2)
        .iter()
        .for_each(|wire| wire.proxy.reset());
    until("a way from the third to the first", &third, "of.first", true).await;
    until("a way from the third to the second", &third, "of.second", true).await;
    assert_eq!(is_answered(&second, "of.first").await, Some(false));
    assert_eq!(is_answered(&first, "of.second").await, Some(false));
    fleet
        .cluster
        .between(0, 1)
        .iter()
        .for_each(|wire| wire.proxy.heal());
    until(
        "a way from the second to the first again",
        &second,
        "of.first",
        true,
    )
    .await;
    Ok(())
}

/// The dispatcher ended with an error of ours when its servers had no quorum yet, or were fewer than the copies.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fleet_that_starts_before_its_servers_waits_for_them_and_works() -> Result<()> {
    let mut fleet = servers_alone().await?;
    for server in &mut fleet.cluster.servers[1..] {
        server.kill()?;
    }
    fleet.add_dispatcher()?;
    fleet.add_worker()?;
    let waits = |fleet: &Fleet| fleet.dispatchers[0].log().matches("not ready").count();
    eventually("a dispatcher that waits", async || {
        (waits(&fleet) > 0).then_some(())
    })
    .await;
    fleet.cluster.servers[1].restart()?;
    let waited = waits(&fleet);
    eventually("one that waits for all", async || {
        (waits(&fleet) > waited).then_some(())
    })
    .await;
    fleet.cluster.servers[2].restart()?;
    fleet.wait_for_workers(1).await;
    let answer = fleet.ask(&Question::prompt("adder", "123+456=")).await?;
    assert!(answer.end.is_ok(), "{:?}", answer.end);
    assert!(fleet.dispatchers[0].is_running()? && fleet.workers[0].is_running()?);
    Ok(())
}

/// A request for it was ended as one for a model that nobody knows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn model_that_was_just_added_is_not_denied_by_a_server_that_lags_behind() -> Result<()> {
    let fleet = Fleet::builder().servers(3).workers(0).start().await?;
    fleet.cluster.wait_until_current().await?;
    let bucket = "KV_flotilla_models";
    let leads = leader(&fleet.connection, bucket).await.context("nobody leads")?;
    let lags = (leads + 1) % 3;
    let (ahead, behind) = (fleet.connect_to(leads).await?, fleet.connect_to(lags).await?);
    let (catalog, theirs) = (Catalog::open(&ahead).await?, Catalog::open(&behind).await?);
    let wires = fleet.cluster.routes_of(lags);
    wires
        .iter()
        .for_each(|wire| wire.set_flows(Flow::Stalled, Flow::Stalled));
    catalog.add(&simulated_model("new", 1 << 20)).await?;
    let found = theirs.entry(&ModelName::new("new")?).await;
    assert!(found.is_err(), "{found:?}");
    wires.iter().for_each(|wire| wire.proxy.heal());
    let found = eventually("the model", async || {
        theirs.entry(&ModelName::new("new").ok()?).await.ok()
    })
    .await;
    assert_eq!(found.map(|entry| entry.name), Some(ModelName::new("new")?));
    Ok(())
}

/// The relay has one copy. No worker could start while its server was away, for ever if that never came back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn relay_whose_server_is_gone_is_made_on_another_one() -> Result<()> {
    let mut fleet = Fleet::builder().servers(3).workers(0).start().await?;
    let relay = "OBJ_flotilla_relay";
    let at = eventually("a relay", async || leader(&fleet.connection, relay).await).await;
    fleet.cluster.wait_until_current().await?;
    fleet.cluster.servers[at].kill()?;
    fleet.add_worker()?;
    fleet.wait_for_workers(1).await;
    let now = eventually("another relay", async || leader(&fleet.connection, relay).await).await;
    assert_ne!(now, at);
    Ok(())
}

/// It stayed there and did nothing until the cut was healed, as its server answered its pings.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parts_whose_server_is_cut_off_go_to_another_one() -> Result<()> {
    let fleet = Fleet::builder().servers(3).start().await?;
    fleet.cluster.wait_until_current().await?;
    let at = eventually("the worker's server", async || {
        fleet.cluster.server_of("flotilla-worker w0").await
    })
    .await;
    let routes = fleet.cluster.routes_of(at);
    routes
        .iter()
        .for_each(|wire| wire.set_flows(Flow::Stalled, Flow::Stalled));
    let elsewhere = fleet.connect_to((at + 1) % 3).await?;
    for part in ["flotilla-worker w0", "flotilla-dispatcher d0"] {
        eventually(&format!("{part} elsewhere"), async || {
            let now = fleet.cluster.server_of(part).await?;
            (now != at).then_some(())
        })
        .await;
    }
    let question = Question::prompt("adder", "123+456=");
    let mut events = Events::subscribe(&elsewhere, question.request.clone()).await?;
    submit(&elsewhere, question.as_new()).await?;
    let answer = timeout(PATIENCE, Answer::collect(&mut events)).await??;
    assert!(answer.end.is_ok(), "{:?}", answer.end);
    routes.iter().for_each(|wire| wire.proxy.heal());
    Ok(())
}

/// What a client publishes while the stream's servers elect a leader is refused by nobody in particular.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn request_that_is_published_before_there_is_a_queue_is_queued_when_there_is_one() -> Result<()> {
    let fleet = Fleet::builder().dispatchers(0).workers(0).start().await?;
    let (sender, counts) = (fleet.connection.clone(), fleet.connection.client.statistics());
    let sent = || counts.out_messages.load(Ordering::Relaxed);
    let before = sent();
    let submitted = tokio::spawn(async move {
        let new = NewRequest {
            request: new_request_id(),
            class: Class::Interactive,
            model: ModelName::new("m").expect("a name"),
            encoding: Encoding::Json,
            body: "{}".into(),
        };
        submit(&sender, new).await
    });
    eventually("a first try", async || (sent() > before).then_some(())).await;
    let queue = StreamConfig {
        name: fleet.connection.subjects.requests_stream(),
        subjects: vec![fleet.connection.subjects.requests_all()],
        ..Default::default()
    };
    fleet.connection.jetstream.create_stream(queue).await?;
    submitted.await??;
    Ok(())
}
