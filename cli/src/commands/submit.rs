//! `flotilla submit`: publishes a batch of requests.

use std::path::{Path, PathBuf};

use clap::Args;
use flotilla_client::Connection;
use serde::Serialize;
use tokio::sync::mpsc;

use crate::batch::{
    BatchFile, BatchId, Collected, Collector, Goal, Output, Patience, Published, Publisher, Record,
    RecordHead, Source, Tally,
};
use crate::commands::{Interrupted, results};
use crate::context::Context;
use crate::exit::Exit;
use crate::output::{self, Format};
use crate::stop::Signals;

/// Arguments of `flotilla submit`.
#[derive(Debug, Args)]
pub(crate) struct SubmitArguments {
    /// The requests, one a line: custom_id, method, url and body, as in OpenAI's batch API
    file: PathBuf,
    /// Names the batch instead of the hash of its file; the same file under another name is another batch
    #[arg(long, value_name = "NAME")]
    batch: Option<BatchId>,
    /// Collects the answers as well, as `flotilla results` does
    #[arg(long)]
    wait: bool,
    /// Where answers go [default: FILE with .results.jsonl for its ending]; "-" is standard output
    #[arg(long, short, value_name = "FILE", requires = "wait")]
    output: Option<PathBuf>,
}

/// What was submitted, for programs.
#[derive(Debug, Serialize)]
struct Submitted<'a> {
    batch: &'a BatchId,
    file: &'a Path,
    requests: usize,
    #[serde(flatten)]
    published: Published,
    /// The command that collects the answers.
    collect: String,
}

/// Checks a file, and publishes its requests. Ctrl-C ends it; run again, it goes on where it was.
///
/// # Errors
/// A line is wrong, or the fleet cannot be reached.
pub(crate) async fn run(context: &Context, arguments: &SubmitArguments) -> anyhow::Result<Exit> {
    let mut signals = Signals::new()?;
    let batch = BatchFile::read(&arguments.file, context.config.dispatcher.request_bytes_max)?;
    let connection = context.connect("flotilla-submit").await?;
    batch.check_sizes(connection.client.max_payload())?;
    let head = RecordHead::new(&batch, arguments.batch.clone(), &connection);
    let record = Record::open(&batch.path, &head)?;
    let submission = Submission {
        context,
        arguments,
        connection: &connection,
        batch: &batch,
        id: &head.batch,
    };
    let ended = tokio::select! {
        ended = submission.run(record) => ended,
        () = signals.next() => Err(Interrupted.into()),
    };
    if ended
        .as_ref()
        .is_err_and(|error: &anyhow::Error| error.is::<Interrupted>())
    {
        output::note("flotilla: run the same command again to go on");
    }
    ended
}

/// A submission under way.
struct Submission<'a> {
    context: &'a Context,
    arguments: &'a SubmitArguments,
    connection: &'a Connection,
    batch: &'a BatchFile,
    id: &'a BatchId,
}

impl Submission<'_> {
    async fn run(self, record: Record) -> anyhow::Result<Exit> {
        match self.arguments.wait {
            true => self.follow_through(record).await,
            false => self.publish(record).await,
        }
    }

    async fn publish(self, record: Record) -> anyhow::Result<Exit> {
        let tally = Tally::new(self.batch.lines.len(), Goal::Publish);
        let publisher = self.publisher(record, &tally, None);
        let published = tally.show(publisher.run()).await?;
        let submitted = Submitted {
            batch: self.id,
            file: &self.batch.path,
            requests: self.batch.lines.len(),
            published,
            collect: results::command(self.context, &self.batch.path),
        };
        let before = match published.published_before {
            0 => String::new(),
            count => format!(", {count} of them before"),
        };
        let sentence = format!(
            "{} requests of {} are published as batch {}{before}; collect the answers with: {}",
            submitted.requests,
            self.batch.path.display(),
            self.id,
            submitted.collect
        );
        self.context.format.print_line(&submitted, sentence)?;
        Ok(Exit::Ok)
    }

    async fn follow_through(self, record: Record) -> anyhow::Result<Exit> {
        let path = results::output_path(&self.batch.path, self.arguments.output.as_deref());
        let output = match &path {
            Some(path) => Output::open(path, self.batch, self.id, self.connection.owner.as_ref())?,
            None => Output::standard(),
        };
        let tally = Tally::new(self.batch.lines.len(), Goal::Both);
        let (collector, news) = mpsc::channel(NEWS_MAX);
        let publisher = self.publisher(record, &tally, Some(collector));
        let target = (self.batch, self.id);
        let collector = Collector::new(
            self.connection,
            target,
            &tally,
            output,
            Patience::Wait,
            Source::Publisher(news),
        );
        let both = async { tokio::try_join!(publisher.run(), collector.run()) };
        let (_, collected): (Published, Collected) = tally.show(both).await?;
        // Standard output is for answers where it has them.
        let format = path.as_ref().map_or(Format::Text, |_| self.context.format);
        results::tell(format, self.id, path.as_deref(), &collected)
    }

    fn publisher<'b>(
        &'b self,
        record: Record,
        tally: &'b Tally,
        collector: Option<mpsc::Sender<crate::batch::News>>,
    ) -> Publisher<'b> {
        Publisher {
            connection: self.connection,
            batch: self.batch,
            id: self.id,
            record,
            tally,
            collector,
        }
    }
}

/// Published requests of which the collector does not know yet; it takes them at once.
const NEWS_MAX: usize = 64;
