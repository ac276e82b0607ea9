//! `flotilla dispatcher` and `flotilla worker`: one role in this process.

use std::time::Duration;

use clap::Args;
use flotilla_config::WorkerEngine;
use flotilla_worker::{Hardware, Stop};

use crate::commands::UsageError;
use crate::context::Context;
use crate::exit::Exit;
use crate::http::{DISPATCHER_PORT, Site, WORKER_PORT};
use crate::stop::{Asks, StdinWatch, run_until_asked};

/// Arguments of a role.
#[derive(Debug, Args)]
pub(crate) struct RoleArguments {
    /// Drains when standard input ends as well; `flotilla up` starts its children so
    #[arg(long, hide = true)]
    stop_with_stdin: bool,
}

impl RoleArguments {
    fn stdin(&self) -> StdinWatch {
        match self.stop_with_stdin {
            true => StdinWatch::Watched,
            false => StdinWatch::Ignored,
        }
    }
}

/// Arguments of `flotilla worker`; each but the role's stands for a setting.
#[derive(Debug, Args)]
pub(crate) struct WorkerArguments {
    #[command(flatten)]
    role: RoleArguments,
    /// What runs the models: cpu or simulated (= --set worker.engine=ENGINE)
    #[arg(long, value_name = "ENGINE")]
    engine: Option<String>,
    /// Profile of a simulated device, for every model or for one; may be repeated
    #[arg(long, value_name = "[MODEL=]FILE")]
    profile: Vec<String>,
    /// Simulated workers in this process, called ID-000, ID-001 and so on
    #[arg(long, value_name = "WORKERS")]
    count: Option<usize>,
}

impl WorkerArguments {
    /// The settings that the flags stand for, as `key=value`.
    pub(crate) fn settings(&self) -> Vec<String> {
        let engine = self.engine.iter();
        let mut settings: Vec<String> = engine.map(|engine| format!("worker.engine={engine}")).collect();
        if !self.profile.is_empty() {
            settings.push(format!("worker.simulated.profile={}", self.profile.join(",")));
        }
        settings.extend(self.count.map(|count| format!("worker.simulated.count={count}")));
        settings
    }

    /// Refuses flags that a real engine would leave unheard.
    fn check(&self, engine: WorkerEngine) -> Result<(), UsageError> {
        let flag = match (self.profile.is_empty(), self.count) {
            _ if engine == WorkerEngine::Simulated => return Ok(()),
            (false, _) => "--profile",
            (true, Some(_)) => "--count",
            (true, None) => return Ok(()),
        };
        Err(UsageError::new(format!(
            "{flag} is for workers that are simulated; add --engine simulated"
        )))
    }
}

/// Runs a dispatcher until it is asked to stop.
///
/// # Errors
/// When it cannot connect, fails, or was stopped before it had drained.
pub(crate) async fn dispatcher(context: &Context, arguments: &RoleArguments) -> anyhow::Result<Exit> {
    let http = &context.config.dispatcher.http;
    let site = Site {
        role: "dispatcher",
        metrics: [
            flotilla_dispatcher::METRICS,
            flotilla_dispatcher::JETSTREAM_METRICS,
        ]
        .concat(),
        enabled: http.enabled,
        listen: http.listen,
        port: DISPATCHER_PORT,
    };
    let (telemetry, _server) = site.open()?;
    let connection = context
        .connect(&name("dispatcher", context.config.dispatcher.id.as_deref()))
        .await?;
    let asks = Asks::default();
    let shutdown = asks.drain.clone();
    let role =
        async { Ok(flotilla_dispatcher::run(&context.config, connection, telemetry, shutdown).await?) };
    run_until_asked(role, asks, arguments.stdin(), DISPATCHER_DRAIN_MAX).await?;
    Ok(Exit::Ok)
}

/// Runs a worker, or several that are simulated, until it is asked to stop.
///
/// # Errors
/// When its device cannot be had, it cannot connect, fails, or was stopped before it had drained.
pub(crate) async fn worker(context: &Context, arguments: &WorkerArguments) -> anyhow::Result<Exit> {
    let config = &context.config.worker;
    arguments.check(config.engine)?;
    let site = Site {
        role: "worker",
        metrics: [flotilla_worker::METRICS, flotilla_worker::WEIGHTS_METRICS].concat(),
        enabled: config.http.enabled,
        listen: config.http.listen,
        port: WORKER_PORT,
    };
    let (telemetry, _server) = site.open()?;
    let hardware = Hardware::open(config)?;
    let name = name("worker", config.id.as_deref());
    let mut connections = Vec::new();
    for _ in 0..hardware.connection_count() {
        connections.push(context.connect(&name).await?);
    }
    let stop = Stop::default();
    let asks = Asks {
        drain: stop.drain.clone(),
        now: Some(stop.now.clone()),
    };
    let role = async {
        Ok(flotilla_worker::run_all(&context.config, &hardware, &connections, &telemetry, stop).await?)
    };
    let drain_max = config.drain_timeout + WORKER_END_MAX;
    run_until_asked(role, asks, arguments.role.stdin(), drain_max).await?;
    Ok(Exit::Ok)
}

/// What the server's monitoring shows.
fn name(role: &str, id: Option<&str>) -> String {
    match id {
        Some(id) => format!("flotilla-{role} {id}"),
        None => format!("flotilla-{role}"),
    }
}

/// A dispatcher only gives up its lease: anything longer is a server that does not answer.
pub(crate) const DISPATCHER_DRAIN_MAX: Duration = Duration::from_secs(10);
/// What a worker may take beyond its own drain time: handing back and leaving the fleet.
pub(crate) const WORKER_END_MAX: Duration = Duration::from_secs(5);
