//! `flotilla dead`: requests that were given up, kept for operators.

use std::time::{Duration, SystemTime};

use clap::{Args, Subcommand};
use flotilla_client::{DeadLetter, DeadLetters};
use flotilla_protocol::{ModelName, RequestId};
use serde::Serialize;
use serde_json::{Value, json};

use crate::context::Context;
use crate::exit::Exit;
use crate::output::{self, Format};
use crate::table::{Table, bytes, numbers, or_dash, span_ms, words};

/// What to do with dead letters.
#[derive(Debug, Subcommand)]
pub(crate) enum DeadCommand {
    /// Lists them, the oldest first
    List {
        /// Only those of one model
        #[arg(long)]
        model: Option<ModelName>,
        /// How many at most
        #[arg(long, default_value_t = 100)]
        limit: usize,
    },
    /// Prints one of them with its request's body
    Show {
        /// Its number
        letter: u64,
    },
    /// Publishes their requests again, each under a new id, and removes the letters
    Replay(Selection),
    /// Removes them
    Purge(Selection),
}

/// Which letters.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct Selection {
    /// Their numbers
    letters: Vec<u64>,
    /// Those of one model
    #[arg(long)]
    model: Option<ModelName>,
    /// All of them
    #[arg(long)]
    all: bool,
}

/// Lists, shows, replays or removes dead letters.
///
/// # Errors
/// When the server cannot be asked, a letter is not there, or a request cannot be published.
pub(crate) async fn run(context: &Context, command: DeadCommand) -> anyhow::Result<Exit> {
    let connection = context.connect("flotilla-dead").await?;
    let letters = DeadLetters::open(&connection).await?;
    match command {
        DeadCommand::List { model, limit } => list(context, &letters, model.as_ref(), limit).await,
        DeadCommand::Show { letter } => show(context, &letters, letter).await,
        DeadCommand::Replay(selection) => replay(context, &letters, &selection).await,
        DeadCommand::Purge(selection) => purge(context, &letters, &selection).await,
    }
}

async fn list(
    context: &Context,
    letters: &DeadLetters,
    model: Option<&ModelName>,
    limit: usize,
) -> anyhow::Result<Exit> {
    let (found, total) = letters.list(model, limit).await?;
    context.format.print(&found, |found| vec![table(found)])?;
    let shown = u64::try_from(found.len()).unwrap_or(u64::MAX);
    if context.format == Format::Text && shown < total {
        output::line(format_args!("\n{shown} of {total}; --limit shows more"))?;
    }
    Ok(Exit::Ok)
}

fn table(letters: &[DeadLetter]) -> Table {
    let mut table = Table::new([
        numbers("LETTER"),
        numbers("AGE"),
        words("CLASS"),
        words("MODEL"),
        words("REQUEST"),
        numbers("BODY"),
        words("REASON"),
    ]);
    for letter in letters {
        table.row([
            letter.letter.to_string(),
            span_ms(age_ms(letter)),
            or_dash(letter.class),
            or_dash(letter.model.as_ref()),
            or_dash(letter.request.as_ref()),
            bytes(u64::try_from(letter.body_bytes).unwrap_or(u64::MAX)),
            letter.reason.clone(),
        ]);
    }
    table
}

/// By this machine's clock; zero when that is behind the server's.
fn age_ms(letter: &DeadLetter) -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let age = now
        .unwrap_or_default()
        .saturating_sub(Duration::from_millis(letter.stored_ms));
    u64::try_from(age.as_millis()).unwrap_or(u64::MAX)
}

async fn show(context: &Context, letters: &DeadLetters, letter: u64) -> anyhow::Result<Exit> {
    let (found, body) = letters.read(letter).await?;
    let read: Option<Value> = serde_json::from_slice(&body).ok();
    match context.format {
        Format::Json => {
            let body = read.unwrap_or_else(|| json!(String::from_utf8_lossy(&body)));
            context
                .format
                .print_line(&json!({"letter": found, "body": body}), "")?;
        }
        Format::Text => {
            for (name, value) in [
                ("request", or_dash(found.request.as_ref())),
                ("published to", found.published_to.clone()),
                ("age", span_ms(age_ms(&found))),
                ("reason", found.reason.clone()),
                ("content type", or_dash(found.content_type.clone())),
            ] {
                output::line(format_args!("{name:<13}{}", value.escape_debug()))?;
            }
            let text = match read {
                Some(read) => serde_json::to_string_pretty(&read)?,
                None => body.escape_ascii().to_string(),
            };
            output::line(text)?;
        }
    }
    Ok(Exit::Ok)
}

/// What a letter became.
#[derive(Debug, Serialize)]
struct Replayed {
    letter: u64,
    request: RequestId,
}

/// One after the other: the first that cannot be published ends it, since the others would fare alike.
async fn replay(context: &Context, letters: &DeadLetters, selection: &Selection) -> anyhow::Result<Exit> {
    for letter in selection.letters(letters).await? {
        let request = letters.replay(letter).await?;
        let sentence = format!("letter {letter} is request {request} now");
        context
            .format
            .print_line(&Replayed { letter, request }, sentence)?;
    }
    Ok(Exit::Ok)
}

async fn purge(context: &Context, letters: &DeadLetters, selection: &Selection) -> anyhow::Result<Exit> {
    let removed = if selection.letters.is_empty() {
        letters.purge(selection.model.as_ref()).await?
    } else {
        for letter in &selection.letters {
            // One that never was is a slip of the pen that should be told.
            letters.read(*letter).await?;
            letters.remove(*letter).await?;
        }
        u64::try_from(selection.letters.len()).unwrap_or(u64::MAX)
    };
    let sentence = format!("{removed} removed");
    context
        .format
        .print_line(&json!({"removed": removed}), sentence)?;
    Ok(Exit::Ok)
}

impl Selection {
    /// The numbers of the letters that are meant, as they are now.
    async fn letters(&self, letters: &DeadLetters) -> anyhow::Result<Vec<u64>> {
        if !self.letters.is_empty() {
            return Ok(self.letters.clone());
        }
        let (found, _) = letters.list(self.model.as_ref(), usize::MAX).await?;
        Ok(found.iter().map(|letter| letter.letter).collect())
    }
}
