//! The one binary: `flotilla`.

mod admin;
mod arguments;
mod batch;
mod cancelling;
mod commands;
mod context;
mod exit;
mod fleet;
mod http;
mod output;
mod progress;
mod stop;
mod table;
mod telemetry;

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use tokio::runtime::{Builder, Runtime};

use crate::arguments::{Arguments, Command};
use crate::context::Context;
use crate::exit::Exit;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let exit = match run(arguments) {
        Ok(exit) => exit,
        Err(error) => {
            exit::report(&error);
            Exit::of(&error)
        }
    };
    exit.into()
}

fn run(arguments: Arguments) -> anyhow::Result<Exit> {
    let (global, command) = arguments.split();
    let context = Context::load(global)?;
    telemetry::start(&context, &command);
    let runtime = runtime(&command)?;
    let ended = runtime.block_on(commands::run(&context, command));
    // A read of standard input cannot be interrupted: waiting for it would hang the exit.
    runtime.shutdown_timeout(Duration::from_millis(100));
    ended
}

/// A role runs on one thread: its traffic goes through one connection's task and one owner's task anyway, and
/// handing each message from thread to thread costs more than what is done with it. What computes, the engine
/// and long prompts, has threads of its own.
fn runtime(command: &Command) -> std::io::Result<Runtime> {
    let mut builder = match command.is_role() {
        true => Builder::new_current_thread(),
        false => Builder::new_multi_thread(),
    };
    builder.enable_all().build()
}
