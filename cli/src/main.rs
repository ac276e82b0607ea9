//! The one binary: `flotilla`.

mod admin;
mod arguments;
mod commands;
mod context;
mod exit;
mod fleet;
mod output;
mod stop;
mod table;
mod telemetry;

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;

use crate::arguments::Arguments;
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
    let context = Context::load(arguments.global)?;
    telemetry::start(&context, &arguments.command);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let ended = runtime.block_on(commands::run(&context, arguments.command));
    // A read of standard input cannot be interrupted: waiting for it would hang the exit.
    runtime.shutdown_timeout(Duration::from_millis(100));
    ended
}
