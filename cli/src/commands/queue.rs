//! `flotilla queue`: what waits and what runs.

use flotilla_protocol::admin::QueueStatus;

use crate::admin::{self, Nothing};
use crate::context::Context;
use crate::exit::Exit;
use crate::output::{self, Format};
use crate::table::{Table, numbers, span_ms, words};

/// Prints the leading dispatcher's queue.
///
/// # Errors
/// When no dispatcher answers.
pub(crate) async fn run(context: &Context) -> anyhow::Result<Exit> {
    let connection = context.connect("flotilla-queue").await?;
    let status: QueueStatus = admin::ask(&connection, "queue", &Nothing {}).await?;
    context
        .format
        .print(&status, |status| vec![queued(status), assigned(status)])?;
    if context.format == Format::Text {
        output::line(format_args!(
            "\n{} queued in memory, {} in the stream, {} on workers; dispatcher {} leads, epoch {}",
            status.queued_total,
            status.stream_pending,
            status.assigned.len(),
            status.dispatcher,
            status.epoch
        ))?;
    }
    Ok(Exit::Ok)
}

fn queued(status: &QueueStatus) -> Table {
    let mut table = Table::new([
        words("QUEUED"),
        words("CLASS"),
        words("MODEL"),
        numbers("PROMPT TOKENS"),
        numbers("ATTEMPTS"),
        numbers("AGE"),
    ]);
    for request in &status.queued {
        table.row([
            request.request.to_string(),
            request.class.to_string(),
            request.model.to_string(),
            request.prompt_tokens.to_string(),
            request.attempts.to_string(),
            span_ms(request.age_ms),
        ]);
    }
    table
}

fn assigned(status: &QueueStatus) -> Table {
    let mut table = Table::new([
        words("RUNNING"),
        words("CLASS"),
        words("MODEL"),
        words("WORKER"),
        numbers("ATTEMPT"),
        numbers("AGE"),
    ]);
    for request in &status.assigned {
        table.row([
            request.request.to_string(),
            request.class.to_string(),
            request.model.to_string(),
            request.worker.to_string(),
            request.attempt.to_string(),
            span_ms(request.age_ms),
        ]);
    }
    table
}
