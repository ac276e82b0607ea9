//! The server as a client sees it.

#![expect(
    clippy::unwrap_used,
    reason = "all of this crate is test code, its client included"
)]

use std::time::Duration;

use flotilla_telemetry::{Listen, Server, Telemetry, catalogue};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

catalogue! {
    ORDERS: counter "test_orders_total" [] "Orders.";
    WAITS: histogram(flotilla_telemetry::SECONDS) "test_wait_seconds" ["model"] "Waits.";
    QUEUE: gauge "test_queue_requests" ["model"] "Length of the queue.";
}

struct Site {
    telemetry: Telemetry,
    server: Server,
}

impl Site {
    fn start(telemetry: Telemetry) -> Self {
        let server = Server::start(Listen::At(([127, 0, 0, 1], 0).into()), telemetry.clone());
        Self {
            telemetry,
            server: server.unwrap(),
        }
    }

    /// The status and the body of an answer to `head`.
    async fn ask(&self, head: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.server.address()).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = String::new();
        let read = timeout(PATIENCE, stream.read_to_string(&mut answer)).await;
        read.expect("an answer ends its connection").unwrap();
        let status = answer.split(' ').nth(1).and_then(|word| word.parse().ok());
        let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned());
        (status.unwrap_or_default(), body.unwrap_or_default())
    }

    async fn get(&self, path: &str) -> (u16, String) {
        self.ask(&format!("GET {path} HTTP/1.1\r\nHost: here\r\n\r\n"))
            .await
    }

    /// Asks until the status is as wanted.
    async fn wait_for(&self, path: &str, wanted: u16) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (status, body) = self.get(path).await;
            if status == wanted {
                return body;
            }
            assert!(Instant::now() < deadline, "{path} stays {status}: {body}");
            sleep(Duration::from_millis(20)).await;
        }
    }
}

/// All of it in one test, as a process counts once.
#[tokio::test]
async fn what_was_counted_and_what_is_read_are_scraped() {
    let site = Site::start(Telemetry::install("tester", "1.2.3", METRICS).unwrap());
    assert!(
        Telemetry::install("tester", "1.2.3", METRICS).is_err(),
        "a process counts once"
    );
    ORDERS.increment(&[], 2);
    WAITS.record(&["m"], 0.3);
    let mut source = site.telemetry.source();
    let owner = async {
        let ask = source.asked().await;
        ask.answer(|readings| readings.count(&QUEUE, &["m"], 7));
    };
    let ((status, text), ()) = tokio::join!(site.get("/metrics"), owner);
    assert_eq!(status, 200);
    for line in [
        "# HELP test_orders_total Orders.",
        "# TYPE test_orders_total counter",
        "test_orders_total 2",
        "test_wait_seconds_bucket{model=\"m\",le=\"0.25\"} 0",
        "test_wait_seconds_bucket{model=\"m\",le=\"0.5\"} 1",
        "test_wait_seconds_count{model=\"m\"} 1",
        "# TYPE test_queue_requests gauge",
        "test_queue_requests{model=\"m\"} 7",
        "flotilla_build_info{version=\"1.2.3\",role=\"tester\"} 1",
    ] {
        assert!(text.lines().any(|it| it == line), "{line} is not in\n{text}");
    }
    drop(source);
    let (_, text) = site.get("/metrics").await;
    assert!(!text.contains("test_queue_requests"), "its owner is gone\n{text}");
    assert!(text.contains("test_orders_total 2"));
}

#[tokio::test]
async fn other_methods_paths_and_long_heads_are_refused() {
    let site = Site::start(Telemetry::off());
    assert_eq!(site.get("/").await.0, 404);
    assert_eq!(
        site.ask("POST /metrics HTTP/1.1\r\nHost: here\r\nContent-Length: 0\r\n\r\n")
            .await
            .0,
        405
    );
    let long = "x".repeat(64 << 10);
    let mut stream = TcpStream::connect(site.server.address()).await.unwrap();
    let head = format!("GET /metrics HTTP/1.1\r\nHost: here\r\nLong: {long}");
    // The server may close before it has read all of it.
    let _ = stream.write_all(head.as_bytes()).await;
    let mut answer = Vec::new();
    let _ = timeout(PATIENCE, stream.read_to_end(&mut answer))
        .await
        .expect("it does not wait for more");
    let answer = String::from_utf8_lossy(&answer);
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 431"),
        "{answer}"
    );
    assert_eq!(site.get("/livez").await.0, 200);
}

#[tokio::test]
async fn clients_that_send_nothing_do_not_keep_others_out() {
    let site = Site::start(Telemetry::off());
    let mut silent = Vec::new();
    for _ in 0..40 {
        silent.push(TcpStream::connect(site.server.address()).await.unwrap());
    }
    assert_eq!(timeout(PATIENCE, site.get("/livez")).await.unwrap().0, 200);
}

/// A loop on a thread of its own that is stuck, as one in a deadlock would be.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stuck_loop_fails_its_probe_until_it_turns_again() {
    let site = Site::start(Telemetry::off());
    let part = site.telemetry.part("worker", || Ok(()));
    part.set_ready("takes work");
    assert_eq!(site.get("/readyz").await.0, 200);
    let (let_go, stuck) = std::sync::mpsc::channel::<()>();
    let owner = tokio::spawn(async move {
        // What a bug would be: this thread waits and the loop with it.
        part.while_waiting(async move {
            let let_go = tokio::task::block_in_place(|| stuck.recv());
            assert!(let_go.is_err(), "nothing is sent, only let go");
        })
        .await;
        part.while_waiting(std::future::pending::<()>()).await;
    });
    let told = site.wait_for("/livez", 503).await;
    assert!(told.starts_with("worker: does not turn"), "{told}");
    drop(let_go);
    site.wait_for("/livez", 200).await;
    owner.abort();
}

const PATIENCE: Duration = Duration::from_secs(40);
