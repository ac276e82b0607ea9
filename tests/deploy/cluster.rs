//! Three servers in containers: one dies, then another one is cut off from the network, and both come back.

use std::collections::BTreeSet;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use flotilla_client::{Answer, Connection, Journal};
use flotilla_protocol::RequestId;
use flotilla_tests::{chaos, eventually};
use futures_util::{StreamExt, TryStreamExt, stream};
use serde_json::Value;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::asking::{AGAIN_AFTER, PATIENCE, ask, connect};
use crate::compose::{Compose, Servers, docker};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cluster_of_containers_that_loses_a_server_and_its_quorum_ends_every_request_once() -> Result<()> {
    let compose = Compose::up(Servers::Three).await?;
    let tried = loses_servers(&compose).await;
    tried.with_context(|| compose.logs())
}

async fn loses_servers(compose: &Compose) -> Result<()> {
    all_are_healthy(compose)?;
    let client = connect(compose, "client").await?;
    let operator = connect(compose, "operator").await?;
    everything_is_kept_three_times(&operator).await;
    let mut load = Load::prepare(&client).await?;

    load.release(150);
    load.wait_for(50).await?;
    let killed = leader(&operator).await;
    docker(&["kill", &compose.container(&killed)?])?;
    // Two of three are enough, once they have elected who leads.
    load.release(100);
    load.wait_for(200).await?;

    load.release(100);
    let cut = leader(&operator).await;
    let container = compose.container(&cut)?;
    compose.cut(&container)?;
    // One is not: nothing of these is stored until another one is back.
    load.release(100);
    let names = Servers::Three.names().iter();
    let left = names.copied().find(|name| *name != killed && *name != cut);
    let left = compose.container(left.context("a third server")?)?;
    eventually("a server that knows no leader", async || {
        knows_no_leader(&left).then_some(())
    })
    .await;
    compose.mend(&cut, &container)?;
    load.wait_for(400).await?;

    load.release(50);
    docker(&["start", &compose.container(&killed)?])?;
    load.wait_for(REQUESTS).await?;
    all_are_healthy(compose)?;
    everything_is_kept_three_times(&operator).await;
    journals_are_whole(&operator, &load.told).await?;
    nothing_is_left_over(&operator).await
}

fn all_are_healthy(compose: &Compose) -> Result<()> {
    let roles = ["dispatcher-a", "dispatcher-b", "worker", "prometheus"];
    let services = Servers::Three.names().iter().chain(&roles);
    let one_each: Vec<(&str, usize)> = services.map(|service| (*service, 1)).collect();
    compose.wait_until_healthy(&one_each)
}

/// 500 requests, let go in portions, so that each fault meets some that are under way and some that are yet to come.
struct Load {
    gate: Arc<Semaphore>,
    waiting: JoinSet<Result<Told>>,
    /// Those that have ended.
    told: Vec<Told>,
}

/// A request that has its answer.
struct Told {
    request: RequestId,
    token_ids: Vec<u32>,
}

impl Load {
    /// Asks every question once while nothing disturbs the answers; the 500 wait for [`Load::release`].
    async fn prepare(client: &Connection) -> Result<Self> {
        let undisturbed = stream::iter(questions()).map(async |(model, prompt)| {
            let (_, answer) = ask(client, model, &prompt).await?;
            anyhow::Ok((model, prompt, answer))
        });
        let undisturbed: Vec<_> = undisturbed.buffered(AT_ONCE).try_collect().await?;
        let gate = Arc::new(Semaphore::new(0));
        let mut waiting = JoinSet::new();
        for (model, prompt, expected) in undisturbed.into_iter().cycle().take(REQUESTS) {
            let (client, gate) = (client.clone(), Arc::clone(&gate));
            waiting.spawn(async move {
                gate.acquire().await?.forget();
                let (request, answer) = ask(&client, model, &prompt).await?;
                is_the_same(&request, &answer, &expected)?;
                let token_ids = answer.token_ids;
                Ok(Told { request, token_ids })
            });
        }
        let told = Vec::new();
        Ok(Self { gate, waiting, told })
    }

    fn release(&self, requests: usize) {
        self.gate.add_permits(requests);
    }

    /// Waits until so many have ended, and fails at once when one does so wrongly.
    async fn wait_for(&mut self, count: usize) -> Result<()> {
        let ended = async {
            while self.told.len() < count {
                let told = self.waiting.join_next().await.context("no more requests")?;
                self.told.push(told??);
            }
            anyhow::Ok(())
        };
        let ended = timeout(PATIENCE, ended).await;
        ended.with_context(|| format!("{} of {count} requests have ended", self.told.len()))?
    }
}

/// Questions for all three models.
fn questions() -> impl Iterator<Item = (&'static str, String)> {
    (0..50).map(|number| match number % 3 {
        0 => ("adder", format!("{}+{}=", 17 * number, 999 - number)),
        1 => ("sorter", format!("sort {}=", 98_765_432 - 12_345 * number)),
        _ => (
            "reverser",
            format!("reverse {}=", "flotilla".repeat(1 + number % 2)),
        ),
    })
}

fn is_the_same(request: &RequestId, answer: &Answer, expected: &Answer) -> Result<()> {
    ensure!(
        (&answer.token_ids, &answer.text) == (&expected.token_ids, &expected.text),
        "{request} is {:?}, undisturbed it is {:?}",
        answer.text,
        expected.text
    );
    Ok(())
}

/// The server that leads the queue; waits while one is elected.
async fn leader(operator: &Connection) -> String {
    let stream = operator.subjects.requests_stream();
    eventually("a leader of the queue", async || {
        let info = operator.jetstream.get_stream(&stream).await.ok()?;
        info.cached_info().cluster.as_ref()?.leader.clone()
    })
    .await
}

/// Whether a server on its own has noticed that it is.
fn knows_no_leader(container: &str) -> bool {
    let monitor = "http://127.0.0.1:8222/jsz";
    let told = docker(&["exec", container, "wget", "-q", "-O", "-", monitor]);
    let told = told
        .ok()
        .and_then(|told| serde_json::from_str::<Value>(&told).ok());
    let cluster = told.as_ref().and_then(|told| told.get("meta_cluster"));
    cluster.is_some_and(|cluster| {
        let leader = cluster.get("leader").and_then(Value::as_str);
        leader.is_none_or(str::is_empty)
    })
}

async fn everything_is_kept_three_times(operator: &Connection) {
    eventually("three copies of everything", async || {
        are_kept_three_times(operator).await.ok()?.then_some(())
    })
    .await;
}

/// Whether all servers have all of every stream and bucket; weights on their way are kept once.
async fn are_kept_three_times(operator: &Connection) -> Result<bool> {
    let mut seen = BTreeSet::new();
    let mut streams = operator.jetstream.streams();
    while let Some(stream) = streams.try_next().await? {
        let name = stream.config.name.clone();
        if name == RELAY {
            continue;
        }
        let followers = stream.cluster.map(|cluster| cluster.replicas).unwrap_or_default();
        if stream.config.num_replicas != 3 || followers.iter().filter(|it| it.current).count() != 2 {
            return Ok(false);
        }
        seen.insert(name);
    }
    let subjects = &operator.subjects;
    let wanted = [
        subjects.requests_stream(),
        subjects.journal_stream(),
        subjects.dead_stream(),
    ];
    Ok(wanted.iter().all(|name| seen.contains(name)))
}

/// Reads back what is stored of each request: every token once, in order, and one end.
async fn journals_are_whole(operator: &Connection, told: &[Told]) -> Result<()> {
    let journal = Journal::new(operator);
    let checked = stream::iter(told).map(async |Told { request, token_ids }| {
        let entries = loop {
            match journal.read(request, 0).await {
                Ok(entries) => break entries,
                Err(_) => sleep(AGAIN_AFTER).await,
            }
        };
        let checked = chaos::check_journal(request, &entries, token_ids);
        checked.map_err(|problem| anyhow::anyhow!("{problem}"))
    });
    let checked = checked.buffer_unordered(AT_ONCE).try_collect::<()>();
    timeout(PATIENCE, checked)
        .await
        .context("journals cannot be read")?
}

/// Every request is acknowledged, and none is a dead letter.
async fn nothing_is_left_over(operator: &Connection) -> Result<()> {
    let messages = async |stream: String| {
        let stream = operator.jetstream.get_stream(stream).await.ok()?;
        Some(stream.cached_info().state.messages)
    };
    eventually("an empty queue", async || {
        let waiting = messages(operator.subjects.requests_stream()).await?;
        (waiting == 0).then_some(())
    })
    .await;
    let dead = messages(operator.subjects.dead_stream()).await;
    ensure!(dead == Some(0), "{dead:?} dead letters");
    Ok(())
}

const REQUESTS: usize = 500;
const AT_ONCE: usize = 10;
/// Has one copy, and is made anew where its server is lost.
const RELAY: &str = "OBJ_flotilla_relay";
