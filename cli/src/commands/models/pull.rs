//! `flotilla models pull`: brings a model's files to a worker and shows how far they are.

use std::collections::VecDeque;
use std::time::Duration;

use anyhow::bail;
use clap::Args;
use flotilla_client::Connection;
use flotilla_protocol::admin::{ResidencyReply, ResidencyRequest};
use flotilla_protocol::fleet::{FetchReport, FetchState, Report};
use flotilla_protocol::{ModelName, WorkerId};
use serde::Serialize;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::admin;
use crate::commands::{Interrupted, ps};
use crate::context::Context;
use crate::output::StatusLine;
use crate::progress::bar;
use crate::stop::Signals;
use crate::table::{bytes, span_ms};

/// Arguments of `flotilla models pull`.
#[derive(Debug, Args)]
pub(crate) struct PullArguments {
    /// The model's name
    name: ModelName,
    /// The worker; the one with most room unless it is given
    #[arg(long)]
    worker: Option<WorkerId>,
}

/// What came.
#[derive(Debug, Serialize)]
struct Pulled {
    model: ModelName,
    worker: WorkerId,
    bytes: u64,
    elapsed_ms: u128,
}

/// Orders the files and waits for them. Ctrl-C ends the wait; the worker goes on.
///
/// # Errors
/// The worker refuses, does not get the files, or is lost.
pub(super) async fn run(context: &Context, arguments: PullArguments) -> anyhow::Result<()> {
    let mut signals = Signals::new()?;
    let connection = context.connect("flotilla-models").await?;
    let started = Instant::now();
    let question = ResidencyRequest {
        model: arguments.name.clone(),
        worker: arguments.worker,
        keep_alive: None,
    };
    let reply: ResidencyReply = admin::ask(&connection, "fetch", &question).await?;
    let Some(worker) = reply.workers.into_iter().next() else {
        bail!("no worker was told");
    };
    let (model, mut status) = (arguments.name, StatusLine::new());
    let followed = tokio::select! {
        followed = follow(&connection, &model, &worker, &mut status) => followed,
        () = signals.next() => Err(Interrupted.into()),
    };
    status.clear();
    let pulled = Pulled {
        bytes: followed?,
        elapsed_ms: started.elapsed().as_millis(),
        model,
        worker,
    };
    let sentence = format!(
        "{} is on {}, {}",
        pulled.model,
        pulled.worker,
        bytes(pulled.bytes)
    );
    context.format.print_line(&pulled, sentence)
}

/// Shows what the worker's reports say until the files are there; returns their bytes.
async fn follow(
    connection: &Connection,
    model: &ModelName,
    worker: &WorkerId,
    status: &mut StatusLine,
) -> anyhow::Result<u64> {
    let mut ticks = interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut rate, mut first_seq, mut seen) = (Rate::default(), None, Instant::now());
    loop {
        ticks.tick().await;
        let fleet = ps::ask(connection).await?;
        let report = fleet.workers.into_iter().map(|status| status.report);
        let Some(report) = report.into_iter().find(|report| report.worker == *worker) else {
            if seen.elapsed() > LOST_AFTER {
                bail!("worker {worker} is lost; what came stays for its next start");
            }
            continue;
        };
        seen = Instant::now();
        // The report that was there at first may be older than the order, and tell how an earlier one ended.
        if *first_seq.get_or_insert(report.seq) == report.seq {
            continue;
        }
        match fetch_of(&report, model) {
            None => status.show(&format!("waiting for the files of {model}")),
            Some(fetch) => match &fetch.state {
                FetchState::Running => status.show(&rate.line(Instant::now(), fetch)),
                FetchState::Done => return Ok(fetch.bytes),
                FetchState::Failed { reason } => bail!("{worker} does not get {model}: {reason}"),
            },
        }
    }
}

fn fetch_of<'a>(report: &'a Report, model: &ModelName) -> Option<&'a FetchReport> {
    report.fetches.iter().find(|fetch| fetch.model == *model)
}

/// How many bytes come in a second, lately.
#[derive(Debug, Default)]
struct Rate {
    samples: VecDeque<(Instant, u64)>,
}

impl Rate {
    /// One line: a bar, bytes, rate and the time that is left.
    fn line(&mut self, now: Instant, fetch: &FetchReport) -> String {
        let total = fetch.bytes_total.unwrap_or(fetch.bytes).max(1);
        let done = fetch.bytes.min(total);
        let mut line = format!("{}, {} of {}", bar(done, total), bytes(done), bytes(total));
        if let Some(per_s) = self.per_s(now, done).filter(|per_s| *per_s > 0) {
            let left_ms = u128::from(total - done) * 1000 / u128::from(per_s);
            let left = span_ms(u64::try_from(left_ms).unwrap_or(u64::MAX));
            line.push_str(&format!(", {}/s, about {left} left", bytes(per_s)));
        }
        line
    }

    fn per_s(&mut self, now: Instant, done: u64) -> Option<u64> {
        self.samples.push_back((now, done));
        while self.samples.len() > SAMPLES_MAX {
            self.samples.pop_front();
        }
        let (at, before) = *self.samples.front()?;
        let elapsed_ms = now.duration_since(at).as_millis();
        let came = u128::from(done.saturating_sub(before));
        u64::try_from((came * 1000).checked_div(elapsed_ms)?).ok()
    }
}

/// Workers report every second, and when something happens.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Longer than a dispatcher waits for a worker's reports, or than the next dispatcher takes to lead.
const LOST_AFTER: Duration = Duration::from_secs(15);
/// Of the rate: ten seconds.
const SAMPLES_MAX: usize = 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_tells_part_bytes_rate_and_time_left() {
        let fetch = |mib: u64| FetchReport {
            model: ModelName::new("m").unwrap(),
            bytes: mib << 20,
            bytes_total: Some(100 << 20),
            state: FetchState::Running,
        };
        let (mut rate, start) = (Rate::default(), Instant::now());
        assert_eq!(
            rate.line(start, &fetch(0)),
            "[........................] 0 %, 0 B of 100.0 MiB"
        );
        assert_eq!(
            rate.line(start + Duration::from_secs(2), &fetch(50)),
            "[############............] 50 %, 50.0 MiB of 100.0 MiB, 25.0 MiB/s, about 2.0 s left"
        );
    }
}
