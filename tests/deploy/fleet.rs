//! A fleet of containers: it answers, loses a worker and a leader, grows, and is replaced under load.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, ensure};
use flotilla_client::{Connection, Journal};
use flotilla_protocol::admin::FleetStatus;
use flotilla_tests::{eventually, status};
use futures_util::future::try_join_all;
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::asking::{self, AGAIN_AFTER, connect};
use crate::compose::{Compose, Servers, docker, inspect, log};

/// Asks, compares the answer and tells who made it.
async fn ask(client: &Connection, left: u32, right: u32) -> Result<Vec<String>> {
    let (request, answer) = asking::ask(client, "adder", &format!("{left}+{right}=")).await?;
    ensure!(
        answer.text == (left + right).to_string(),
        "{left}+{right}={}",
        answer.text
    );
    let entries = loop {
        match Journal::new(client).read(&request, 0).await {
            Ok(entries) => break entries,
            // It may meet a server that is being replaced.
            Err(_) => sleep(AGAIN_AFTER).await,
        }
    };
    ensure!(
        entries
            .iter()
            .filter(|entry| entry.event.kind().is_terminal())
            .count()
            == 1
    );
    let workers = entries.into_iter().filter_map(|entry| entry.worker);
    Ok(workers.map(|worker| worker.to_string()).collect())
}

async fn workers(operator: &Connection) -> Option<FleetStatus> {
    status(operator).await.ok()
}

/// The container whose dispatcher leads.
fn leader(compose: &Compose) -> Result<(String, String)> {
    for service in ["dispatcher-a", "dispatcher-b"] {
        let container = compose.container(service)?;
        let log = log(&container)?;
        let last = log
            .lines()
            .rev()
            .find(|line| line.contains("\"leads\"") || line.contains("the term ends"));
        if last.is_some_and(|line| line.contains("\"leads\"")) {
            return Ok((service.to_owned(), container));
        }
    }
    anyhow::bail!("nobody leads\n{}", compose.logs())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fleet_of_containers_answers_survives_grows_and_is_replaced_under_load() -> Result<()> {
    let compose = Compose::up(Servers::One).await?;
    let all = [
        ("nats", 1),
        ("dispatcher-a", 1),
        ("dispatcher-b", 1),
        ("worker", 1),
        ("prometheus", 1),
    ];
    compose.wait_until_healthy(&all)?;
    let client = connect(&compose, "client").await?;
    let operator = connect(&compose, "operator").await?;
    ask(&client, 123, 456).await.context("a first answer")?;
    runs_with_few_rights(&compose)?;
    prometheus_sees_everything(&compose).await?;

    let worker = compose.container("worker")?;
    docker(&["kill", &worker])?;
    compose.run(&["up", "-d", "worker"])?;
    ask(&client, 1, 2).await.context("after a worker was killed")?;

    let (service, container) = leader(&compose)?;
    docker(&["kill", &container])?;
    ask(&client, 3, 4).await.context("after the leader was killed")?;
    compose.run(&["up", "-d", &service])?;
    compose.wait_until_healthy(&all)?;

    compose.run(&["up", "-d", "--scale", "worker=4", "worker"])?;
    eventually("four workers", async || {
        (workers(&operator).await?.workers.len() == 4).then_some(())
    })
    .await;
    let asked = (0..64).map(|number| ask(&client, number, 7));
    let by: BTreeSet<String> = try_join_all(asked).await?.into_iter().flatten().collect();
    ensure!(by.len() >= 2, "64 requests at once all ran on {by:?}");

    is_replaced_under_load(&compose, &client).await
}

/// As `docker compose` does it with a new image: one service after the other.
async fn is_replaced_under_load(compose: &Compose, client: &Connection) -> Result<()> {
    let is_over = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..4)
        .map(|number| {
            let (client, is_over) = (client.clone(), is_over.clone());
            tokio::spawn(async move {
                let mut asked = 0;
                while !is_over.load(Ordering::Relaxed) {
                    ask(&client, number, asked).await?;
                    asked += 1;
                }
                anyhow::Ok(asked)
            })
        })
        .collect();
    let replaced = async {
        for service in ["dispatcher-a", "dispatcher-b", "worker", "nats"] {
            let words = [
                "up",
                "-d",
                "--force-recreate",
                "--no-deps",
                "--scale",
                "worker=4",
                service,
            ];
            tokio::task::block_in_place(|| compose.run(&words))?;
            let count = if service == "worker" { 4 } else { 1 };
            tokio::task::block_in_place(|| compose.wait_until_healthy(&[(service, count)]))?;
        }
        anyhow::Ok(())
    };
    let replaced = replaced.await;
    is_over.store(true, Ordering::Relaxed);
    let mut asked = 0;
    for client in clients {
        asked += client.await??;
    }
    replaced?;
    ensure!(asked > 0, "nobody asked anything meanwhile");
    Ok(())
}

fn runs_with_few_rights(compose: &Compose) -> Result<()> {
    for service in ["dispatcher-a", "worker"] {
        let container = compose.container(service)?;
        let told = inspect(&container)?;
        let at = |path: &str| told.pointer(path).cloned().unwrap_or(Value::Null);
        ensure!(
            at("/Config/User") == "65532:65532",
            "{service} is {}",
            at("/Config/User")
        );
        ensure!(
            at("/HostConfig/ReadonlyRootfs") == true,
            "{service} can write its root"
        );
        ensure!(
            at("/HostConfig/CapDrop") == json!(["ALL"]),
            "{service} has capabilities"
        );
    }
    Ok(())
}

async fn prometheus_sees_everything(compose: &Compose) -> Result<()> {
    eventually("both dispatchers and the worker are scraped", async || {
        let answer = query(compose, "sum(up) by (job)").await.ok()?;
        let of = |job: &str| {
            let result = answer.pointer("/data/result")?.as_array()?;
            let series = result
                .iter()
                .find(|it| it.pointer("/metric/job") == Some(&job.into()))?;
            series.pointer("/value/1")?.as_str().map(str::to_owned)
        };
        (of("flotilla-dispatcher")? == "2" && of("flotilla-worker")? == "1").then_some(())
    })
    .await;
    Ok(())
}

async fn query(compose: &Compose, expression: &str) -> Result<Value> {
    let address = ([127, 0, 0, 1], compose.prometheus_port).into();
    let expression = expression.replace(' ', "%20");
    let (code, body) = flotilla_tests::get(address, &format!("/api/v1/query?query={expression}")).await?;
    ensure!(code == 200, "{code}: {body}");
    Ok(serde_json::from_str(&body)?)
}
