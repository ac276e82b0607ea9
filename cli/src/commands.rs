//! The commands, one file each.

pub(crate) mod bench;
pub(crate) mod cancel;
pub(crate) mod child;
pub(crate) mod config;
pub(crate) mod dead;
pub(crate) mod doctor;
pub(crate) mod drain;
pub(crate) mod health;
pub(crate) mod journal;
pub(crate) mod models;
pub(crate) mod profile;
pub(crate) mod ps;
pub(crate) mod queue;
pub(crate) mod results;
pub(crate) mod role;
pub(crate) mod run;
pub(crate) mod simulate;
pub(crate) mod submit;
pub(crate) mod top;
pub(crate) mod up;
pub(crate) mod why;

use thiserror::Error;

use crate::arguments::Command;
use crate::context::Context;
use crate::exit::Exit;

/// Arguments that clap cannot refuse by itself.
#[derive(Debug, Error)]
#[error("{message}")]
pub(crate) struct UsageError {
    message: String,
}

impl UsageError {
    /// What is wrong and what to do.
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
        }
    }
}

/// Somebody pressed Ctrl-C.
#[derive(Debug, Error)]
#[error("interrupted")]
pub(crate) struct Interrupted;

/// Runs a command to its end.
///
/// # Errors
/// What the command could not do; [`Exit::of`] has its code.
pub(crate) async fn run(context: &Context, command: Command) -> anyhow::Result<Exit> {
    match command {
        Command::Up(arguments) => up::run(context, arguments).await,
        Command::Dispatcher(arguments) => role::dispatcher(context, &arguments).await,
        Command::Worker(arguments) => role::worker(context, &arguments).await,
        Command::Run(arguments) => run::run(context, *arguments).await,
        Command::Submit(arguments) => submit::run(context, &arguments).await,
        Command::Results(arguments) => results::run(context, &arguments).await,
        Command::Ps => ps::run(context).await,
        Command::Top(arguments) => top::run(context, &arguments).await,
        Command::Models(command) => models::run(context, command).await,
        Command::Profile(command) => profile::run(context, command).await,
        Command::Queue => queue::run(context).await,
        Command::Why(arguments) => why::run(context, &arguments).await,
        Command::Cancel(arguments) => cancel::run(context, &arguments).await,
        Command::Journal(arguments) => journal::run(context, &arguments).await,
        Command::Dead(command) => dead::run(context, command).await,
        Command::Config(command) => config::run(context, &command),
        Command::Drain(arguments) => drain::run(context, &arguments).await,
        Command::Doctor => doctor::run(context).await,
        Command::Health(arguments) => health::run(context, &arguments),
        Command::Bench(command) => bench::run(context, command).await,
        Command::Simulate(arguments) => simulate::run(context, &arguments),
        Command::Child(arguments) => child::run(&arguments),
    }
}
