//! `flotilla results`: collects the answers of a batch.

use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;

use crate::batch::{
    BatchFile, BatchId, Collected, Collector, Goal, Output, Patience, RecordHead, RecordReader, Source,
    Tally, beside, path_of, records_of,
};
use crate::commands::{Interrupted, UsageError};
use crate::context::Context;
use crate::exit::Exit;
use crate::output::{self, Format};
use crate::stop::Signals;

/// Arguments of `flotilla results`.
#[derive(Debug, Args)]
pub(crate) struct ResultsArguments {
    /// The file that was submitted; or the batch's id, in the folder of its file
    #[arg(value_name = "FILE|BATCH")]
    batch: PathBuf,
    /// The name that the batch was given; only needed where it was submitted from another place
    #[arg(long = "batch", value_name = "NAME")]
    name: Option<BatchId>,
    /// Where answers go [default: FILE with .results.jsonl for its ending]; "-" is standard output
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Writes the answers that are there, and says how many are missing
    #[arg(long)]
    no_wait: bool,
}

/// What was collected, for programs.
#[derive(Debug, Serialize)]
struct Told<'a> {
    batch: &'a BatchId,
    output: Option<&'a Path>,
    #[serde(flatten)]
    collected: &'a Collected,
}

/// Writes answers as they end, until all are there. Ctrl-C ends it; run again, it goes on where it was.
///
/// # Errors
/// The file is none that was submitted, the fleet cannot be reached, or answers cannot be written.
pub(crate) async fn run(context: &Context, arguments: &ResultsArguments) -> anyhow::Result<Exit> {
    let mut signals = Signals::new()?;
    let file = find(&arguments.batch)?;
    let batch = BatchFile::read(&file, context.config.dispatcher.request_bytes_max)?;
    let connection = context.connect("flotilla-results").await?;
    let record = RecordReader::open(&file)?;
    let named = record.as_ref().map(|(head, _)| head.batch.clone());
    let head = RecordHead::new(&batch, arguments.name.clone().or(named), &connection);
    if let Some((found, _)) = &record {
        found.check(&path_of(&file), &file, &head)?;
    }
    let path = output_path(&file, arguments.output.as_deref());
    let output = match &path {
        Some(path) => Output::open(path, &batch, &head.batch, connection.owner.as_ref())?,
        None => Output::standard(),
    };
    let patience = match arguments.no_wait {
        true => Patience::NoWait,
        false => Patience::Wait,
    };
    let tally = Tally::new(batch.lines.len(), Goal::Collect);
    let source = Source::Record(record.map(|(_, reader)| reader));
    let collector = Collector::new(
        &connection,
        (&batch, &head.batch),
        &tally,
        output,
        patience,
        source,
    );
    let collected = tokio::select! {
        collected = tally.show(collector.run()) => collected?,
        () = signals.next() => {
            output::note("flotilla: run the same command again to go on");
            return Err(Interrupted.into());
        }
    };
    let format = path.as_ref().map_or(Format::Text, |_| context.format);
    tell(format, &head.batch, path.as_deref(), &collected)
}

/// The file of what the argument names.
fn find(named: &Path) -> anyhow::Result<PathBuf> {
    if named.exists() {
        return Ok(named.to_owned());
    }
    let name = named.display().to_string();
    let found = match name.parse::<BatchId>() {
        Ok(batch) => records_of(Path::new("."), &batch)?,
        Err(_) => None,
    };
    found.ok_or_else(|| {
        UsageError::new(format!(
            "there is no file {name}, and nothing in this folder was submitted as a batch of that id; give the file that \
             was submitted"
        ))
        .into()
    })
}

/// Where answers go; `None` is standard output.
pub(super) fn output_path(batch: &Path, asked: Option<&Path>) -> Option<PathBuf> {
    match asked {
        Some(path) if path == Path::new("-") => None,
        Some(path) => Some(path.to_owned()),
        None => Some(beside(&batch.with_extension(""), ".results.jsonl")),
    }
}

/// The command that collects the answers of a batch.
pub(super) fn command(context: &Context, batch: &Path) -> String {
    let mut command = format!("flotilla results {}", batch.display());
    if let Some(config) = &context.global.config {
        command.push_str(&format!(" --config {}", config.display()));
    }
    if let Some(url) = &context.global.nats {
        command.push_str(&format!(" --nats {url}"));
    }
    command
}

/// Says what was collected and what is missing, by name.
pub(super) fn tell(
    format: Format,
    batch: &BatchId,
    output: Option<&Path>,
    collected: &Collected,
) -> anyhow::Result<Exit> {
    let told = Told {
        batch,
        output,
        collected,
    };
    let place = output.map_or("standard output".to_owned(), |path| path.display().to_string());
    let sentence = format!(
        "{} answers and {} errors of batch {batch} are written to {place}{}",
        collected.answered,
        collected.failed,
        match collected.written_before {
            0 => String::new(),
            count => format!(", where {count} were before"),
        }
    );
    match output {
        Some(_) => format.print_line(&told, sentence)?,
        None => output::note(&format!("flotilla: {sentence}")),
    }
    tell_missing(collected);
    Ok(match collected.is_whole() {
        true => Exit::Ok,
        false => Exit::Failed,
    })
}

fn tell_missing(collected: &Collected) {
    let missing = [
        (&collected.unfinished, "not answered yet"),
        (
            &collected.removed,
            "past answering: their journals were removed (nats.journal_max_age_s, nats.journal_max_bytes) or cannot be read",
        ),
        (
            &collected.unknown,
            "neither in the queue nor in the journal: never published, or removed; `flotilla submit` publishes what is \
             missing",
        ),
    ];
    for (names, what) in missing.into_iter().filter(|(names, _)| !names.is_empty()) {
        output::note(&format!(
            "flotilla: {} requests are {what}: {}",
            names.len(),
            listed(names)
        ));
    }
}

fn listed(names: &[String]) -> String {
    let shown = names[..names.len().min(NAMES_SHOWN_MAX)].join(", ");
    match names.len().saturating_sub(NAMES_SHOWN_MAX) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

/// Of requests that have no answer; --json has all.
const NAMES_SHOWN_MAX: usize = 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_go_beside_the_batch_unless_somebody_says_where() {
        let path = |batch: &str, asked: Option<&str>| output_path(Path::new(batch), asked.map(Path::new));
        assert_eq!(path("a/b.jsonl", None), Some("a/b.results.jsonl".into()));
        assert_eq!(path("b", None), Some("b.results.jsonl".into()));
        assert_eq!(path("b", Some("c")), Some("c".into()));
        assert_eq!(path("b", Some("-")), None);
    }

    #[test]
    fn many_names_are_cut_short() {
        let names: Vec<String> = (0..NAMES_SHOWN_MAX + 2).map(|n| n.to_string()).collect();
        assert!(listed(&names).ends_with(", 19 and 2 more"), "{}", listed(&names));
        assert_eq!(listed(&names[..2]), "0, 1");
    }
}
