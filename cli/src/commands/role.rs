//! `flotilla dispatcher` and `flotilla worker`: one role in this process.

use std::time::Duration;

use clap::Args;
use flotilla_worker::Stop;

use crate::context::Context;
use crate::exit::Exit;
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

/// Runs a dispatcher until it is asked to stop.
///
/// # Errors
/// When it cannot connect, fails, or was stopped before it had drained.
pub(crate) async fn dispatcher(context: &Context, arguments: &RoleArguments) -> anyhow::Result<Exit> {
    let connection = context
        .connect(&name("dispatcher", context.config.dispatcher.id.as_deref()))
        .await?;
    let asks = Asks::default();
    let shutdown = asks.drain.clone();
    let role = async { Ok(flotilla_dispatcher::run(&context.config, connection, shutdown).await?) };
    run_until_asked(role, asks, arguments.stdin(), DISPATCHER_DRAIN_MAX).await?;
    Ok(Exit::Ok)
}

/// Runs a worker until it is asked to stop.
///
/// # Errors
/// When it cannot connect, fails, or was stopped before it had drained.
pub(crate) async fn worker(context: &Context, arguments: &RoleArguments) -> anyhow::Result<Exit> {
    let connection = context
        .connect(&name("worker", context.config.worker.id.as_deref()))
        .await?;
    let stop = Stop::default();
    let asks = Asks {
        drain: stop.drain.clone(),
        now: Some(stop.now.clone()),
    };
    let role = async { Ok(flotilla_worker::run(&context.config, connection, stop).await?) };
    let drain_max = context.config.worker.drain_timeout + WORKER_END_MAX;
    run_until_asked(role, asks, arguments.stdin(), drain_max).await?;
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
