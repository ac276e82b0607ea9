//! `flotilla journal`: every stored event of a request.

use clap::Args;
use flotilla_client::{Entry, Journal};
use flotilla_protocol::RequestId;
use flotilla_protocol::event::Event;
use serde_json::{Value, json};

use crate::commands::run::finish_reason;
use crate::context::Context;
use crate::exit::Exit;

/// Arguments of `flotilla journal`.
#[derive(Debug, Args)]
pub(crate) struct JournalArguments {
    /// The request's id
    request: RequestId,
}

/// Prints one line an event.
///
/// # Errors
/// When the journal cannot be read or holds nothing of the request.
pub(crate) async fn run(context: &Context, arguments: &JournalArguments) -> anyhow::Result<Exit> {
    let connection = context.connect("flotilla-journal").await?;
    let entries = Journal::new(&connection).read(&arguments.request, 0).await?;
    if entries.is_empty() {
        anyhow::bail!(
            "the journal holds nothing of {}: it waits, has expired, or never was",
            arguments.request
        );
    }
    for entry in &entries {
        context.format.print_line(&as_json(entry), sentence(entry))?;
    }
    Ok(Exit::Ok)
}

fn as_json(entry: &Entry) -> Value {
    let body = match &entry.event {
        Event::Accepted(body) => json!(body),
        Event::Progress(body) => json!(body),
        Event::Tokens(body) => json!(body),
        Event::Finished(body) => json!(body),
        Event::Failed(body) => json!(body),
    };
    json!({
        "sequence": entry.sequence,
        "event": entry.event.kind(),
        "attempt": entry.attempt,
        "worker": entry.worker,
        "strikes": entry.strikes,
        "body": body,
    })
}

fn sentence(entry: &Entry) -> String {
    let writer = entry
        .worker
        .as_ref()
        .map_or("dispatcher", |worker| worker.as_str());
    let told = match &entry.event {
        Event::Accepted(body) => format!(
            "model {}, {} prompt tokens, {} strikes",
            body.model, body.prompt_tokens, entry.strikes
        ),
        Event::Progress(body) => body.phase.to_string(),
        Event::Tokens(body) => format!(
            "{} tokens from {}: {:?}",
            body.token_ids.len(),
            body.offset,
            body.text
        ),
        Event::Finished(body) => format!(
            "{}, {} tokens, queued {:.1} ms, load {:.1} ms, prefill {:.1} ms, decode {:.1} ms",
            finish_reason(body.finish_reason),
            body.usage.completion_tokens,
            body.timings.queued_ms,
            body.timings.load_ms,
            body.timings.prefill_ms,
            body.timings.decode_ms
        ),
        Event::Failed(body) => body.error.to_string(),
    };
    format!(
        "{:>8}  attempt {} by {writer}  {:<8}  {told}",
        entry.sequence,
        entry.attempt,
        entry.event.kind().as_str()
    )
}
