//! All that a process tells: what was counted, what is read at a scrape, how it is.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use thiserror::Error;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tracing::debug;

use crate::health::{Health, Part};
use crate::metric::{Kind, Metric};
use crate::process;
use crate::readings::Readings;

/// What a process tells of itself. Clones share everything.
#[derive(Debug, Clone)]
pub struct Telemetry(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    role: &'static str,
    version: &'static str,
    health: Arc<Health>,
    /// A lock, because owners come and go while scrapes ask them; it is held for a copy.
    owners: Mutex<Vec<mpsc::Sender<Ask>>>,
    recorder: Option<PrometheusHandle>,
    /// The role's own runtime, which is not the one that answers.
    runtime: Handle,
}

/// The metrics cannot be counted.
#[derive(Debug, Error)]
pub enum InstallError {
    /// A process counts once.
    #[error("the process counts its metrics already, or a histogram has no buckets")]
    Recorder(#[from] BuildError),
}

/// What scrapes ask an owner of things. Dropped, it is asked no more.
#[derive(Debug)]
pub struct Source(mpsc::Receiver<Ask>);

/// One scrape's question.
#[derive(Debug)]
pub struct Ask(oneshot::Sender<Answer>);

/// Fills in what an owner found; run by who asked, so that the owner loses no time with it.
struct Answer(Box<dyn FnOnce(&mut Readings) + Send>);

impl Telemetry {
    /// Begins to count `metrics` for the whole process, which runs in `role`.
    ///
    /// # Errors
    /// [`InstallError`] when the process counts already.
    ///
    /// # Panics
    /// Outside of a runtime.
    pub fn install(
        role: &'static str,
        version: &'static str,
        metrics: &[&'static Metric],
    ) -> Result<Self, InstallError> {
        let mut builder = PrometheusBuilder::new();
        for metric in metrics {
            if let Kind::Histogram(buckets) = metric.kind {
                let name = Matcher::Full(metric.name.to_owned());
                builder = builder.set_buckets_for_metric(name, buckets.upper)?;
            }
        }
        let handle = builder.install_recorder()?;
        metrics.iter().for_each(|metric| metric.describe());
        Ok(Self::new(role, version, Some(handle)))
    }

    /// One that nobody asks: nothing is counted.
    ///
    /// # Panics
    /// Outside of a runtime.
    #[must_use]
    pub fn off() -> Self {
        Self::new("", "", None)
    }

    fn new(role: &'static str, version: &'static str, recorder: Option<PrometheusHandle>) -> Self {
        Self(Arc::new(Inner {
            role,
            version,
            health: Arc::new(Health::new()),
            owners: Mutex::default(),
            recorder,
            runtime: Handle::current(),
        }))
    }

    /// A part of the process whose health counts. It is ready when it says so and `need` finds nothing missing.
    #[must_use]
    pub fn part(
        &self,
        name: impl Into<String>,
        need: impl Fn() -> Result<(), &'static str> + Send + Sync + 'static,
    ) -> Part {
        self.0.health.part(name.into(), need)
    }

    /// Lets scrapes ask one more owner of things.
    #[must_use]
    pub fn source(&self) -> Source {
        let (asks, asked) = mpsc::channel(ASKS_MAX);
        self.owners().push(asks);
        Source(asked)
    }

    pub(crate) fn health(&self) -> &Health {
        &self.0.health
    }

    /// Everything, in the text format of Prometheus.
    pub(crate) async fn scrape(&self) -> String {
        let mut readings = self.ask().await;
        let tasks = self.0.runtime.metrics().num_alive_tasks();
        process::read(&mut readings, self.0.version, self.0.role, tasks);
        let recorder = self.0.recorder.as_ref();
        let mut text = recorder.map(PrometheusHandle::render).unwrap_or_default();
        readings.write(&mut text);
        text
    }

    /// Sorts what was recorded into buckets, so that it takes no memory when nobody scrapes; to be called every few
    /// seconds.
    pub(crate) fn keep_up(&self) {
        if let Some(recorder) = &self.0.recorder {
            recorder.run_upkeep();
        }
    }

    /// Asks all owners at once. What one does not say in time is missing from this scrape.
    async fn ask(&self) -> Readings {
        let mut readings = Readings::default();
        let owners = {
            let mut owners = self.owners();
            owners.retain(|owner| !owner.is_closed());
            owners.clone()
        };
        let mut answers = Vec::new();
        for owner in owners {
            let (ask, answer) = oneshot::channel();
            match owner.try_send(Ask(ask)) {
                Ok(()) => answers.push(answer),
                Err(error) => debug!(%error, "an owner is not asked for its metrics"),
            }
        }
        let all = async {
            for answer in answers {
                // An owner that is gone has nothing to say.
                if let Ok(Answer(fill)) = answer.await {
                    fill(&mut readings);
                }
            }
        };
        if timeout(ANSWER_MAX, all).await.is_err() {
            debug!("an owner did not tell its metrics in time");
        }
        readings
    }

    fn owners(&self) -> MutexGuard<'_, Vec<mpsc::Sender<Ask>>> {
        self.0.owners.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Source {
    /// The next question; for ever pending when no more can come. Cancelling loses nothing.
    pub async fn asked(&mut self) -> Ask {
        match self.0.recv().await {
            Some(ask) => ask,
            None => std::future::pending().await,
        }
    }
}

impl Ask {
    /// Answers with what `fill` will read, from what it took with it.
    pub fn answer(self, fill: impl FnOnce(&mut Readings) + Send + 'static) {
        // A scrape that was given up needs no answer.
        let _ = self.0.send(Answer(Box::new(fill)));
    }
}

impl std::fmt::Debug for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Answer")
    }
}

/// Scrapes that wait for the same owner; as many as there are connections would be of no use to anybody.
const ASKS_MAX: usize = 4;
/// How long a scrape waits for owners: far longer than the loop of one that is well takes for a turn, far shorter than
/// the 10 s after which Prometheus gives up.
const ANSWER_MAX: Duration = Duration::from_secs(2);
