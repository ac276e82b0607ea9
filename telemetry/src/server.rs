//! The HTTP side: three paths, one request a connection, everything bounded.
//!
//! It has a thread and a runtime of its own: a role whose thread is stuck is told to be, and a long answer takes no time
//! from the role.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use thiserror::Error;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Builder;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::health::Verdict;
use crate::listen::{Listen, ListenError};
use crate::telemetry::Telemetry;

/// A server that answers until it is dropped.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    end: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

/// Nobody can be answered.
#[derive(Debug, Error)]
pub enum StartError {
    /// The address cannot be had.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The system gives no thread.
    #[error("no thread for metrics")]
    Thread(#[from] io::Error),
}

impl Server {
    /// Begins to answer.
    ///
    /// # Errors
    /// [`StartError`]: the address cannot be had, or no thread.
    ///
    /// # Panics
    /// When the system does not know where a socket listens that it has just bound.
    pub fn start(listen: Listen, telemetry: Telemetry) -> Result<Self, StartError> {
        let listener = listen.bind()?;
        let address = listener.local_addr().expect("a bound socket has an address");
        listener.set_nonblocking(true)?;
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let end = CancellationToken::new();
        let ended = end.clone();
        let thread = thread::Builder::new().name("http".to_owned()).spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    () = serve_all(listener, &telemetry) => {}
                    () = keep_up(&telemetry) => {}
                    () = ended.cancelled() => {}
                }
            });
        })?;
        info!(%address, "metrics and health are told over HTTP");
        Ok(Self {
            address,
            end,
            thread: Some(thread),
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end.cancel();
        if let Some(Err(_)) = self.thread.take().map(JoinHandle::join) {
            error!("the thread that tells metrics has panicked");
        }
    }
}

async fn keep_up(telemetry: &Telemetry) {
    let mut rounds = interval(UPKEEP_EVERY);
    rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        rounds.tick().await;
        telemetry.keep_up();
    }
}

async fn serve_all(listener: std::net::TcpListener, telemetry: &Telemetry) {
    match TcpListener::from_std(listener) {
        Ok(listener) => accept(listener, telemetry).await,
        Err(error) => error!(%error, "metrics cannot be told"),
    }
}

/// Accepts connections; beyond the limit they wait in the system's own queue.
async fn accept(listener: TcpListener, telemetry: &Telemetry) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        let place = Arc::clone(&places).acquire_owned().await;
        let place = place.expect("nobody closes the semaphore");
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                warn!(%error, "a connection for metrics was not accepted");
                sleep(ACCEPT_AGAIN).await;
                continue;
            }
        };
        let telemetry = telemetry.clone();
        connections.spawn(async move {
            serve(stream, telemetry).await;
            drop(place);
        });
        while connections.try_join_next().is_some() {}
    }
}

/// Answers one request.
async fn serve(stream: TcpStream, telemetry: Telemetry) {
    let service = service_fn(move |request| {
        let telemetry = telemetry.clone();
        async move { Ok::<_, Infallible>(answer(&request, &telemetry).await) }
    });
    let connection = http1::Builder::new()
        .keep_alive(false)
        .max_buf_size(HEAD_BYTES_MAX)
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_MAX)
        .serve_connection(TokioIo::new(stream), service);
    match timeout(CONNECTION_MAX, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!(%error, "a connection for metrics failed"),
        Err(_) => debug!("a connection for metrics took too long"),
    }
}

async fn answer(request: &Request<Incoming>, telemetry: &Telemetry) -> Response<Full<Bytes>> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut refusal = text(
            StatusCode::METHOD_NOT_ALLOWED,
            "GET and HEAD are answered\n".to_owned(),
        );
        refusal
            .headers_mut()
            .insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return refusal;
    }
    match request.uri().path() {
        "/metrics" => {
            let mut answer = text(StatusCode::OK, telemetry.scrape().await);
            let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
            answer.headers_mut().insert(CONTENT_TYPE, kind);
            answer
        }
        "/livez" => verdict(telemetry.health().live()),
        "/readyz" => verdict(telemetry.health().ready()),
        _ => text(
            StatusCode::NOT_FOUND,
            "there are /metrics, /livez and /readyz\n".to_owned(),
        ),
    }
}

fn verdict(Verdict { is_well, text: words }: Verdict) -> Response<Full<Bytes>> {
    let status = if is_well {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    text(status, words)
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

/// Answered at once: a few Prometheus servers and probes ask, each now and then.
const CONNECTIONS_MAX: usize = 32;
/// Bytes of a request's head; the least that the library takes, and ten times what Prometheus sends.
const HEAD_BYTES_MAX: usize = 8 << 10;
/// How long a request's head may take.
const HEAD_MAX: Duration = Duration::from_secs(2);
/// How long a connection may take in all, the reading of the answer too: as long as Prometheus waits.
const CONNECTION_MAX: Duration = Duration::from_secs(10);
/// A thousand records a second are some 40 kB until then.
const UPKEEP_EVERY: Duration = Duration::from_secs(5);
/// Accepting fails when descriptors are short, which passes.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);
