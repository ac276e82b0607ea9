//! What the process logs, and where.

use std::io;

use flotilla_config::{LogFormat, LogLevel};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt};

use crate::arguments::Command;
use crate::context::Context;

/// Starts logging to standard error. A role logs at the configured level; a command that prints a result
/// only warns, unless `-v` asks for more.
pub(crate) fn start(context: &Context, command: &Command) {
    let log = &context.config.log;
    let level = match (command.is_role(), context.global.verbose) {
        (true, 0) => filter(log.level),
        (false, 0) => filter(log.level).min(LevelFilter::WARN),
        (_, 1) => filter(log.level).max(LevelFilter::DEBUG),
        (_, 2..) => LevelFilter::TRACE,
    };
    let filter = Targets::new()
        .with_default(level.min(FOREIGN_LEVEL))
        .with_target("flotilla", level);
    let layer = match log.format {
        LogFormat::Text => fmt::layer()
            .with_writer(io::stderr)
            .with_ansi(io::IsTerminal::is_terminal(&io::stderr()))
            .boxed(),
        LogFormat::Json => fmt::layer().json().with_writer(io::stderr).boxed(),
    };
    tracing_subscriber::registry()
        .with(layer.with_filter(filter))
        .init();
}

fn filter(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    }
}

/// Most that other crates may say: theirs below a warning is about their own insides.
const FOREIGN_LEVEL: LevelFilter = LevelFilter::WARN;
