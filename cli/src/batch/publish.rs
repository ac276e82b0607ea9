//! Publishing the requests of a batch, each once.

use std::time::Duration;

use anyhow::Context as _;
use flotilla_client::{Connection, Journal, NewRequest, SubmitError, Submitted, submit};
use flotilla_protocol::{Class, Encoding, RequestId};
use futures_util::StreamExt;
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::time::sleep;

use super::{BatchFile, BatchId, Line, Record, Tally};

/// A line of the batch by its index, and where its message lies if that is known.
pub(crate) type News = (usize, Option<u64>);

/// Publishes what of a batch is not published yet.
pub(crate) struct Publisher<'a> {
    pub(crate) connection: &'a Connection,
    pub(crate) batch: &'a BatchFile,
    pub(crate) id: &'a BatchId,
    pub(crate) record: Record,
    pub(crate) tally: &'a Tally,
    /// Who collects the answers meanwhile, if anybody does.
    pub(crate) collector: Option<mpsc::Sender<News>>,
}

/// What was done.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(crate) struct Published {
    /// Requests that were published now.
    pub(crate) published: usize,
    /// Requests that had been before.
    pub(crate) published_before: usize,
}

/// How one request came to be in the queue.
enum Course {
    Now(u64),
    /// The server had it.
    Double(u64),
    /// Its journal has entries.
    Begun,
}

impl Publisher<'_> {
    /// Publishes, in the order of the file, as fast as the queue has room. Cancelled, or killed, it goes on where it was
    /// when it runs again.
    ///
    /// # Errors
    /// A request cannot be published, or not be noted.
    pub(crate) async fn run(mut self) -> anyhow::Result<Published> {
        let mut done = Published::default();
        let mut missing = Vec::new();
        for (index, line) in self.batch.lines.iter().enumerate() {
            match self.record.published(line.number) {
                Some(stream_seq) => {
                    done.published_before += 1;
                    self.tell(index, stream_seq).await;
                }
                None => missing.push(index),
            }
        }
        let (connection, batch, id, tally) = (self.connection, self.batch, self.id, self.tally);
        let courses = futures_util::stream::iter(missing).map(async |index| {
            let course = publish(connection, batch, id, &batch.lines[index], tally).await;
            (index, course)
        });
        let mut courses = std::pin::pin!(courses.buffer_unordered(AT_ONCE_MAX));
        while let Some((index, course)) = courses.next().await {
            let stream_seq = match course? {
                Course::Now(stream_seq) => {
                    done.published += 1;
                    Some(stream_seq)
                }
                Course::Double(stream_seq) => {
                    done.published_before += 1;
                    Some(stream_seq)
                }
                Course::Begun => {
                    done.published_before += 1;
                    None
                }
            };
            self.record.note(self.batch.lines[index].number, stream_seq)?;
            self.tell(index, stream_seq).await;
        }
        self.record.sync()?;
        Ok(done)
    }

    async fn tell(&self, index: usize, stream_seq: Option<u64>) {
        self.tally.published();
        if let Some(collector) = &self.collector {
            // A collector that has ended does so with an error, which ends this as well.
            let _ = collector.send((index, stream_seq)).await;
        }
    }
}

async fn publish(
    connection: &Connection,
    batch: &BatchFile,
    id: &BatchId,
    line: &Line,
    tally: &Tally,
) -> anyhow::Result<Course> {
    let request = id.request(connection.owner.as_ref(), &line.custom_id);
    if has_begun(connection, &request).await? {
        return Ok(Course::Begun);
    }
    let new = NewRequest {
        request,
        class: Class::Batch,
        model: line.model.clone(),
        encoding: Encoding::Json,
        body: batch.body(line)?,
    };
    let stored = submit_patiently(connection, new, tally).await;
    let stored = stored.with_context(|| {
        format!(
            "line {} of {} is not published",
            line.number,
            batch.path.display()
        )
    })?;
    Ok(match stored.is_double {
        true => Course::Double(stored.stream_seq),
        false => Course::Now(stored.stream_seq),
    })
}

/// Waits for room in the queue, however long that takes.
async fn submit_patiently(
    connection: &Connection,
    new: NewRequest,
    tally: &Tally,
) -> Result<Submitted, SubmitError> {
    let (mut pause, mut silences) = (PAUSE_MIN, 0);
    loop {
        let waits = match submit(connection, new.clone()).await {
            Err(SubmitError::Busy { .. }) => Some(tally.waits()),
            // The same id again is the same request.
            Err(SubmitError::Unconfirmed { .. }) if silences < SILENCES_MAX => {
                silences += 1;
                None
            }
            ended => return ended,
        };
        sleep(pause).await;
        drop(waits);
        pause = PAUSE_MAX.min(pause * 2);
    }
}

/// Whether a request was published before, as far as its journal tells.
async fn has_begun(connection: &Connection, request: &RequestId) -> anyhow::Result<bool> {
    let (mut pause, mut silences) = (PAUSE_MIN, 0);
    loop {
        match Journal::new(connection).read_all(request).await {
            Ok(content) => return Ok(content.last_sequence > 0),
            Err(error) if silences == SILENCES_MAX => return Err(error.into()),
            Err(_) => silences += 1,
        }
        sleep(pause).await;
        pause = PAUSE_MAX.min(pause * 2);
    }
}

/// Requests on their way at once: their bodies are in memory, and a server confirms as many in a moment.
const AT_ONCE_MAX: usize = 64;
/// After a question without an answer, or in a full queue; doubled each time.
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// Between two tries in a queue that stays full: it is worked off by some requests a second at least.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// Questions without an answer, one after the other, until the server counts as gone. Each has its own time limit.
const SILENCES_MAX: u32 = 3;
