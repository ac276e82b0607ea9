//! Spans on their way to the collector.
//!
//! It has a thread and a runtime of its own, as what tells metrics has. A batch that does not get through is tried again
//! for a while, behind which the queue fills and what comes is dropped.

use std::io;
use std::mem;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::redirect::Policy;
use reqwest::{Client, StatusCode};
use thiserror::Error;
use tokio::runtime::Builder;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use super::tracer::Ended;
use super::{SPANS, Sampler, Tracer, authorities, wire};

/// Sends spans until it is dropped, which takes up to three seconds for what is left.
#[derive(Debug)]
pub struct Exporter {
    end: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

/// Where spans go, and which.
#[derive(Debug)]
pub struct ExporterSettings {
    /// Address of the collector, without `/v1/traces`.
    pub endpoint: String,
    /// Headers of each export.
    pub headers: Vec<(String, String)>,
    /// How long one export may take.
    pub timeout: Duration,
    /// Spans that may wait.
    pub queue_spans_max: usize,
    /// Which traces are told.
    pub sampler: Sampler,
    /// What is told of this process.
    pub resource: Vec<(String, String)>,
}

/// Spans cannot be sent.
#[derive(Debug, Error)]
pub enum ExporterError {
    /// A header is none.
    #[error("{name:?} is no header of HTTP, or its value is none")]
    Header {
        /// Its name.
        name: String,
    },
    /// The HTTP client cannot be made.
    #[error("no HTTP client for spans")]
    Client(#[source] reqwest::Error),
    /// The system gives no thread.
    #[error("no thread for spans")]
    Thread(#[from] io::Error),
}

impl Exporter {
    /// Begins to send what is given to the tracer.
    ///
    /// # Errors
    /// [`ExporterError`].
    pub fn start(settings: ExporterSettings) -> Result<(Tracer, Self), ExporterError> {
        let (queue, queued) = mpsc::channel(settings.queue_spans_max);
        let end = CancellationToken::new();
        let tracer = Tracer::new(settings.sampler, queue);
        let sending = Sending {
            collector: Collector::new(settings)?,
            queued,
            batch: Vec::with_capacity(BATCH_SPANS_MAX),
            fails: false,
        };
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let ended = end.clone();
        let thread = thread::Builder::new()
            .name("spans".to_owned())
            .spawn(move || runtime.block_on(sending.run(&ended)))?;
        let thread = Some(thread);
        Ok((tracer, Self { end, thread }))
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        self.end.cancel();
        if let Some(Err(_)) = self.thread.take().map(JoinHandle::join) {
            error!("the thread that sends spans has panicked");
        }
    }
}

/// What sends.
struct Sending {
    collector: Collector,
    queued: mpsc::Receiver<Ended>,
    /// What is sent next, or again.
    batch: Vec<Ended>,
    /// Whether the last export failed; said once.
    fails: bool,
}

impl Sending {
    async fn run(mut self, end: &CancellationToken) {
        tokio::select! {
            () = end.cancelled() => {}
            () = self.send_all() => {}
        }
        if timeout(FLUSH_MAX, self.flush()).await.is_err() {
            self.lose("the process ends");
        }
        let left = self.queued.len() as u64;
        if left > 0 {
            SPANS.increment(&["undelivered"], left);
            warn!(spans = left, "spans are lost, as the process ends");
        }
    }

    /// Sends batch after batch. Cancelling it leaves what is not sent in the batch.
    async fn send_all(&mut self) {
        while self.fill().await {
            self.deliver().await;
        }
    }

    /// Waits for a batch; false when nobody can give spans any more.
    async fn fill(&mut self) -> bool {
        if self.queued.recv_many(&mut self.batch, BATCH_SPANS_MAX).await == 0 {
            return false;
        }
        let due = Instant::now() + BATCH_AFTER;
        while self.batch.len() < BATCH_SPANS_MAX {
            let room = BATCH_SPANS_MAX - self.batch.len();
            let more = self.queued.recv_many(&mut self.batch, room);
            match timeout_at(due, more).await {
                Ok(0) | Err(_) => break,
                Ok(_) => {}
            }
        }
        true
    }

    /// Sends the batch, if need be again and again for a while.
    async fn deliver(&mut self) {
        let (begun, mut pause) = (Instant::now(), PAUSE_MIN);
        loop {
            match self.collector.export(&self.batch).await {
                Ok(taken) => return self.sent(taken),
                Err(fault) if fault.may_pass() && begun.elapsed() < AGAIN_MAX => {
                    self.complain(&fault);
                    sleep(fault.pause().unwrap_or(pause).min(PAUSE_MAX)).await;
                    pause = (pause * 2).min(PAUSE_MAX);
                }
                Err(fault) => {
                    self.complain(&fault);
                    return self.lose("the collector does not take them");
                }
            }
        }
    }

    /// Tries once to send whatever is left.
    async fn flush(&mut self) {
        loop {
            while self.batch.len() < BATCH_SPANS_MAX
                && let Ok(span) = self.queued.try_recv()
            {
                self.batch.push(span);
            }
            if self.batch.is_empty() {
                return;
            }
            match self.collector.export(&self.batch).await {
                Ok(taken) => self.sent(taken),
                Err(fault) => {
                    self.complain(&fault);
                    self.lose("the process ends");
                }
            }
        }
    }

    fn sent(&mut self, taken: Taken) {
        let spans = self.batch.drain(..).len() as u64;
        if mem::replace(&mut self.fails, false) {
            info!("the collector takes spans again");
        }
        if let Some((count, reason)) = &taken.rejected {
            warn!(spans = count, reason, "the collector did not take all spans");
        }
        let rejected = taken.rejected.map_or(0, |(count, _)| count.min(spans));
        SPANS.increment(&["sent"], spans - rejected);
        SPANS.increment(&["undelivered"], rejected);
    }

    fn lose(&mut self, because: &str) {
        let spans = self.batch.drain(..).len();
        SPANS.increment(&["undelivered"], spans as u64);
        debug!(spans, because, "spans are lost");
    }

    fn complain(&mut self, fault: &Fault) {
        if !mem::replace(&mut self.fails, true) {
            let url = &self.collector.url;
            warn!(url, error = %fault, "the collector does not take spans; they wait, and what is too much is dropped");
        }
    }
}

/// Where batches go.
struct Collector {
    http: Client,
    url: String,
    headers: HeaderMap,
    resource: Vec<(String, String)>,
}

/// A batch that was taken.
struct Taken {
    /// Spans in it that were not, and why.
    rejected: Option<(u64, String)>,
}

/// Why a batch was not taken.
#[derive(Debug, Error)]
enum Fault {
    #[error("no answer: {0}")]
    NoAnswer(String),
    #[error("the answer is {status}")]
    Status {
        status: StatusCode,
        retry_after: Option<Duration>,
    },
}

impl Fault {
    /// Whether it may go better another time, as OTLP has it.
    fn may_pass(&self) -> bool {
        match self {
            Self::NoAnswer(_) => true,
            Self::Status { status, .. } => matches!(status.as_u16(), 429 | 502 | 503 | 504),
        }
    }

    /// How long the collector asks to be left alone.
    fn pause(&self) -> Option<Duration> {
        match self {
            Self::NoAnswer(_) => None,
            Self::Status { retry_after, .. } => *retry_after,
        }
    }
}

impl Collector {
    fn new(settings: ExporterSettings) -> Result<Self, ExporterError> {
        let tls = match settings.endpoint.starts_with("https") {
            true => authorities::trusting_the_system(),
            false => authorities::trusting_nobody(),
        };
        let http = Client::builder()
            .tls_backend_preconfigured(tls)
            .user_agent(concat!("flotilla/", env!("CARGO_PKG_VERSION")))
            .redirect(Policy::none())
            .timeout(settings.timeout)
            .build();
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
        for (name, value) in settings.headers {
            let (key, value) = (HeaderName::try_from(&name), HeaderValue::try_from(value));
            let (Ok(key), Ok(mut value)) = (key, value) else {
                return Err(ExporterError::Header { name });
            };
            value.set_sensitive(true);
            headers.insert(key, value);
        }
        Ok(Self {
            http: http.map_err(ExporterError::Client)?,
            url: format!("{}/v1/traces", settings.endpoint),
            headers,
            resource: settings.resource,
        })
    }

    async fn export(&self, batch: &[Ended]) -> Result<Taken, Fault> {
        let request = self.http.post(&self.url).headers(self.headers.clone());
        let sent = request.body(wire::body(&self.resource, batch)).send().await;
        let mut response = sent.map_err(|error| Fault::NoAnswer(told(&error)))?;
        let status = response.status();
        if !status.is_success() {
            let seconds = response.headers().get("retry-after");
            let seconds = seconds.and_then(|seconds| seconds.to_str().ok()?.parse().ok());
            return Err(Fault::Status {
                status,
                retry_after: seconds.map(Duration::from_secs),
            });
        }
        let mut body = Vec::new();
        // What breaks off was taken all the same.
        while let Ok(Some(chunk)) = response.chunk().await
            && body.len() + chunk.len() <= ANSWER_BYTES_MAX
        {
            body.extend_from_slice(&chunk);
        }
        Ok(Taken {
            rejected: wire::rejected(&body),
        })
    }
}

/// An error with its causes, which say more than it does.
fn told(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}

/// Spans of one export: some 200 kB.
const BATCH_SPANS_MAX: usize = 512;
/// How long a batch that is not full waits for more: who looks for a trace waits for it.
const BATCH_AFTER: Duration = Duration::from_secs(1);
/// How long a batch is tried again: a collector that is started again is back by then.
const AGAIN_MAX: Duration = Duration::from_secs(30);
/// First pause after a failure.
const PAUSE_MIN: Duration = Duration::from_millis(500);
/// Longest pause, whatever the collector asks for.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// What the end of a process may take longer because of spans.
const FLUSH_MAX: Duration = Duration::from_secs(3);
/// Of an answer: an empty one, or a sentence about spans that were not taken.
const ANSWER_BYTES_MAX: usize = 64 << 10;
