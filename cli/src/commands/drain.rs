//! `flotilla drain`: a worker takes no new work, finishes or hands back what it runs, and ends.

use std::time::Duration;

use anyhow::bail;
use clap::Args;
use flotilla_client::Connection;
use flotilla_protocol::WorkerId;
use flotilla_protocol::admin::{DrainReply, DrainRequest};
use flotilla_protocol::fleet::Report;
use serde::Serialize;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::admin::{self, AdminError};
use crate::commands::{Interrupted, ps};
use crate::context::Context;
use crate::exit::Exit;
use crate::output::StatusLine;
use crate::stop::Signals;
use crate::table::span_ms;

/// Arguments of `flotilla drain`.
#[derive(Debug, Args)]
pub(crate) struct DrainArguments {
    /// The worker's id
    worker: WorkerId,
    /// Returns when the worker has been told, and does not wait until it is gone
    #[arg(long)]
    no_wait: bool,
}

/// How it ended.
#[derive(Debug, Serialize)]
struct Drained {
    worker: WorkerId,
    incarnation: u64,
    elapsed_ms: u128,
    /// Another start of it reports: somebody has started it again.
    is_back: bool,
}

/// Has a worker drained, and waits until it is gone. Ctrl-C ends the wait; the worker goes on draining.
///
/// # Errors
/// When no dispatcher answers, or the worker is unknown or does not take the order.
pub(crate) async fn run(context: &Context, arguments: &DrainArguments) -> anyhow::Result<Exit> {
    let mut signals = Signals::new()?;
    let connection = context.connect("flotilla-drain").await?;
    let reply = order(&connection, &arguments.worker).await?;
    if arguments.no_wait {
        let sentence = format!("{} drains; `flotilla ps` shows what it still runs", reply.worker);
        context.format.print_line(&reply, sentence)?;
        return Ok(Exit::Ok);
    }
    let mut status = StatusLine::new();
    let followed = tokio::select! {
        followed = follow(&connection, reply, &mut status) => followed,
        () = signals.next() => Err(Interrupted.into()),
    };
    status.clear();
    let drained = followed?;
    let elapsed = span_ms(u64::try_from(drained.elapsed_ms).unwrap_or(u64::MAX));
    let sentence = match drained.is_back {
        false => format!("{} is gone after {elapsed}", drained.worker),
        true => format!(
            "{} ended and is back after {elapsed}: its supervisor has started it again",
            drained.worker
        ),
    };
    context.format.print_line(&drained, sentence)?;
    Ok(Exit::Ok)
}

async fn order(connection: &Connection, worker: &WorkerId) -> anyhow::Result<DrainReply> {
    let question = DrainRequest {
        worker: worker.clone(),
    };
    match admin::ask(connection, "drain", &question).await {
        Err(AdminError::NoLeader { .. }) if ps::ask(connection).await.is_ok() => bail!(
            "the dispatcher that leads is of a version that drains no workers; update it, or send SIGTERM to the \
             process of {worker}"
        ),
        reply => Ok(reply?),
    }
}

/// Shows what the worker's reports say until there are none any more.
async fn follow(
    connection: &Connection,
    reply: DrainReply,
    status: &mut StatusLine,
) -> anyhow::Result<Drained> {
    let DrainReply { worker, incarnation } = reply;
    let started = Instant::now();
    let mut ticks = interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut missing_since = None;
    let is_back = loop {
        ticks.tick().await;
        let fleet = ps::ask(connection).await?;
        let mut reports = fleet.workers.iter().map(|status| &status.report);
        match reports.find(|report| report.worker == worker) {
            Some(report) if report.incarnation != incarnation => break true,
            Some(report) => {
                missing_since = None;
                status.show(&sentence(report));
            }
            None if missing_since.get_or_insert_with(Instant::now).elapsed() > GONE_AFTER => break false,
            None => {}
        }
    };
    Ok(Drained {
        worker,
        incarnation,
        elapsed_ms: started.elapsed().as_millis(),
        is_back,
    })
}

fn sentence(report: &Report) -> String {
    match report.running.len() {
        0 => format!("{} runs nothing any more and ends", report.worker),
        1 => format!("{} drains, 1 request still runs", report.worker),
        count => format!("{} drains, {count} requests still run", report.worker),
    }
}

const LOOK_EVERY: Duration = Duration::from_millis(250);
/// A dispatcher that begins to lead knows no worker until it has heard of each, which takes it a moment.
const GONE_AFTER: Duration = Duration::from_secs(2);
