//! Collecting the answers of a batch as they end.
//!
//! Requests are visited in turns, so many at once: a visit follows the request's events for a while, and one without an end
//! is visited again when the others were. So an answer that takes for ever, or that nobody can give, keeps nobody from
//! being collected, and what is in memory is the answers of one round of visits.

mod visit;

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use flotilla_client::{Connection, EventsError};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::{BatchFile, BatchId, Fate, Loss, News, Output, RecordReader, Tally, Written};
use visit::{Seen, Visit};

/// Whether what has no answer yet is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Patience {
    /// Until each has.
    Wait,
    /// Each is looked at, and no more.
    NoWait,
}

/// Where it is known from what was published.
#[derive(Debug)]
pub(crate) enum Source {
    /// From whoever publishes beside this.
    Publisher(mpsc::Receiver<News>),
    /// From the record; without one anything may have been.
    Record(Option<RecordReader>),
}

/// What came of it. Requests are named as their author does.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Collected {
    /// Requests with an answer that were written now.
    pub(crate) answered: usize,
    /// Requests with an error that were written now.
    pub(crate) failed: usize,
    /// Requests that had been written before.
    pub(crate) written_before: usize,
    /// Requests that wait or run.
    pub(crate) unfinished: Vec<String>,
    /// Requests whose journals are gone or cannot be read. Who waits for answers has a line with an error for each.
    pub(crate) removed: Vec<String>,
    /// Requests of which there is no sign: never published, or gone long ago.
    pub(crate) unknown: Vec<String>,
}

impl Collected {
    /// Whether every request has its answer.
    pub(crate) fn is_whole(&self) -> bool {
        self.unfinished.is_empty() && self.removed.is_empty() && self.unknown.is_empty()
    }

    /// Requests are named in the order of the file, in which a person looks for them.
    fn sort(&mut self, batch: &BatchFile) {
        let lines = batch.lines.iter().enumerate();
        let places: HashMap<&str, usize> = lines
            .map(|(place, line)| (line.custom_id.as_str(), place))
            .collect();
        for names in [&mut self.unfinished, &mut self.removed, &mut self.unknown] {
            names.sort_by_key(|name| places.get(name.as_str()).copied());
        }
    }
}

/// Collects the answers of a batch.
pub(crate) struct Collector<'a> {
    connection: &'a Connection,
    batch: &'a BatchFile,
    id: &'a BatchId,
    tally: &'a Tally,
    output: Output,
    patience: Patience,
    source: Source,
    /// Who is to be visited, by index.
    queue: VecDeque<usize>,
    /// Where messages lie in the request stream, by index.
    places: HashMap<usize, u64>,
    /// How often a request was not found anywhere, one time after the other.
    not_found: HashMap<usize, u32>,
    trouble_since: Option<Instant>,
    collected: Collected,
}

impl<'a> Collector<'a> {
    pub(crate) fn new(
        connection: &'a Connection,
        (batch, id): (&'a BatchFile, &'a BatchId),
        tally: &'a Tally,
        output: Output,
        patience: Patience,
        source: Source,
    ) -> Self {
        let queue = match &source {
            Source::Publisher(_) => VecDeque::new(),
            Source::Record(_) => (0..batch.lines.len())
                .filter(|&index| !output.has(index))
                .collect(),
        };
        tally.answered(output.count());
        Self {
            connection,
            batch,
            id,
            tally,
            patience,
            source,
            queue,
            places: HashMap::new(),
            not_found: HashMap::new(),
            trouble_since: None,
            collected: Collected {
                written_before: output.count(),
                ..Collected::default()
            },
            output,
        }
    }

    /// Collects until every request has its answer, or was looked at. Cancelled, or killed, it goes on where it was when it
    /// runs again.
    ///
    /// # Errors
    /// Nobody can be asked, or the output cannot be written.
    pub(crate) async fn run(mut self) -> anyhow::Result<Collected> {
        let mut visits = FuturesUnordered::new();
        let mut is_told = matches!(self.source, Source::Publisher(_));
        self.read_record()?;
        loop {
            while visits.len() < AT_ONCE_MAX
                && let Some(index) = self.queue.pop_front()
            {
                visits.push(self.visit(index));
            }
            if visits.is_empty() && !is_told {
                break;
            }
            tokio::select! {
                Some((index, seen)) = visits.next() => self.take(index, seen)?,
                news = next_news(&mut self.source), if is_told => match news {
                    Some((index, _)) if self.output.has(index) => {}
                    Some((index, place)) => {
                        self.places.extend(place.map(|place| (index, place)));
                        self.queue.push_back(index);
                    }
                    None => is_told = false,
                },
            }
        }
        self.output.sync()?;
        self.collected.sort(self.batch);
        Ok(self.collected)
    }

    fn visit(&self, index: usize) -> impl Future<Output = (usize, Result<Seen, EventsError>)> + use<'a> {
        let visit = Visit {
            connection: self.connection,
            request: self
                .id
                .request(self.connection.owner.as_ref(), &self.batch.lines[index].custom_id),
            place: self.places.get(&index).copied(),
            patience: match self.patience {
                Patience::Wait => VISIT,
                Patience::NoWait => Duration::ZERO,
            },
        };
        async move { (index, visit.run().await) }
    }

    fn take(&mut self, index: usize, seen: Result<Seen, EventsError>) -> anyhow::Result<()> {
        let seen = match seen {
            Ok(seen) => seen,
            Err(error) => return self.take_trouble(index, error),
        };
        self.trouble_since = None;
        match seen {
            Seen::Ended(answer) => self.write(index, Fate::Ended(answer)),
            Seen::Broken(message) => self.write(index, Fate::Lost(Loss::broken(message))),
            Seen::UnderWay => {
                self.not_found.remove(&index);
                match self.patience {
                    Patience::Wait => self.queue.push_back(index),
                    Patience::NoWait => self.collected.unfinished.push(self.name(index)),
                }
                Ok(())
            }
            Seen::Nowhere => self.take_nowhere(index),
        }
    }

    /// One look is not enough: a server may lag behind the one that said that the request is done, and without the place of
    /// its message it may be on its way from the stream to the queue.
    fn take_nowhere(&mut self, index: usize) -> anyhow::Result<()> {
        let times = self.not_found.entry(index).or_default();
        *times += 1;
        let times = *times;
        if times >= NOWHERE_MAX {
            self.read_record()?;
            let is_placed = self.places.contains_key(&index);
            match (is_placed, self.patience) {
                (true, Patience::Wait) => return self.write(index, Fate::Lost(Loss::removed())),
                (true, Patience::NoWait) => self.collected.removed.push(self.name(index)),
                (false, Patience::Wait) if self.is_being_submitted() => self.queue.push_back(index),
                (false, _) => self.collected.unknown.push(self.name(index)),
            }
            return Ok(());
        }
        self.queue.push_back(index);
        Ok(())
    }

    /// Trouble with one request passes, or is trouble with all of them, for which there is a limit.
    fn take_trouble(&mut self, index: usize, error: EventsError) -> anyhow::Result<()> {
        let since = *self.trouble_since.get_or_insert_with(Instant::now);
        if since.elapsed() > TROUBLE_MAX || self.patience == Patience::NoWait {
            return Err(error.into());
        }
        self.queue.push_back(index);
        Ok(())
    }

    fn write(&mut self, index: usize, fate: Fate) -> anyhow::Result<()> {
        self.not_found.remove(&index);
        let line = &self.batch.lines[index];
        let request = self.id.request(self.connection.owner.as_ref(), &line.custom_id);
        match self.output.write(index, line, &request, fate)? {
            Written::Answered => self.collected.answered += 1,
            Written::Failed => {
                self.collected.failed += 1;
                self.tally.failed();
            }
            Written::Lost => {
                self.collected.removed.push(line.custom_id.clone());
                self.tally.failed();
            }
        }
        self.tally.answered(1);
        Ok(())
    }

    fn name(&self, index: usize) -> String {
        self.batch.lines[index].custom_id.clone()
    }

    /// Takes in what was published since.
    fn read_record(&mut self) -> anyhow::Result<()> {
        let Source::Record(Some(record)) = &mut self.source else {
            return Ok(());
        };
        for (number, place) in record.news()? {
            let found = self.batch.lines.binary_search_by_key(&number, |line| line.number);
            // A record of this very file names its lines; another one has been refused.
            if let (Ok(index), Some(place)) = (found, place) {
                self.places.insert(index, place);
            }
        }
        Ok(())
    }

    fn is_being_submitted(&self) -> bool {
        matches!(&self.source, Source::Record(Some(record)) if record.is_being_written())
    }
}

async fn next_news(source: &mut Source) -> Option<News> {
    match source {
        Source::Publisher(told) => told.recv().await,
        Source::Record(_) => None,
    }
}

/// Requests that are followed at once, each with a subscription and its answer so far.
const AT_ONCE_MAX: usize = 256;
/// How long a visit lasts: a round of ten thousand takes 200 s, and journals are kept for an hour.
const VISIT: Duration = Duration::from_secs(5);
/// Visits that find nothing, until there is nothing.
const NOWHERE_MAX: u32 = 3;
/// How long every visit may fail.
const TROUBLE_MAX: Duration = Duration::from_secs(60);
