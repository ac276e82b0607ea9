//! A dispatcher without workers: what it ends by itself, and how it hands over.

use flotilla_client::{Answer, Connection, Events, NewRequest, new_request_id, submit};
use flotilla_config::Config;
use flotilla_dispatcher::{DispatcherError, run};
use flotilla_protocol::admin::QueueStatus;
use flotilla_protocol::event::{ErrorCode, Failed};
use flotilla_protocol::{Class, Encoding, ModelName};
use flotilla_telemetry::Telemetry;
use flotilla_tests::{Flow, PATIENCE};
use futures_util::StreamExt;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::server::Server;

struct Dispatcher {
    shutdown: CancellationToken,
    task: JoinHandle<Result<(), DispatcherError>>,
}

async fn start(server: &Server, id: &str) -> Dispatcher {
    let config = server.config(&[&format!("dispatcher.id={id}")]);
    let connection = Connection::open(&config.nats, id).await.unwrap();
    start_with(config, connection)
}

fn start_with(config: Config, connection: Connection) -> Dispatcher {
    let shutdown = CancellationToken::new();
    let stop = shutdown.clone();
    let task = tokio::spawn(async move { run(&config, connection, Telemetry::off(), stop).await });
    Dispatcher { shutdown, task }
}

impl Dispatcher {
    async fn stop(self) {
        self.shutdown.cancel();
        timeout(PATIENCE, self.task).await.unwrap().unwrap().unwrap();
    }
}

/// Asks until somebody leads.
async fn leader(connection: &Connection) -> QueueStatus {
    let asked = async {
        loop {
            let subject = connection.subjects.admin("queue");
            if let Ok(message) = connection.client.request(subject, "{}".into()).await {
                return serde_json::from_slice(&message.payload).unwrap();
            }
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, asked).await.expect("somebody leads")
}

/// Under chaos, dispatchers that started while the server went away ended with an error of ours.
#[tokio::test]
async fn dispatcher_that_starts_waits_for_a_server_that_does_not_answer() {
    let server = Server::start();
    let proxy = server.proxy().await;
    let url = format!("nats.url={}", proxy.url());
    let config = server.config(&["dispatcher.id=d0", "nats.request_timeout_ms=200", &url]);
    let connection = Connection::open(&config.nats, "d0").await.unwrap();
    let observer = server.connect().await;
    let mut questions = observer.client.subscribe("$JS.API.STREAM.INFO.*").await.unwrap();
    observer.client.flush().await.unwrap();
    proxy.set_flows(Flow::Open, Flow::Stalled);
    let dispatcher = start_with(config, connection);
    for _ in 0..3 {
        let asked = timeout(PATIENCE, questions.next()).await.unwrap();
        assert!(asked.is_some(), "it asks again and again");
    }
    proxy.heal();
    assert_eq!(leader(&observer).await.dispatcher, "d0");
    dispatcher.stop().await;
}

async fn error_code(connection: &Connection, body: &'static str) -> ErrorCode {
    let request = new_request_id();
    let mut events = Events::subscribe(connection, request.clone()).await.unwrap();
    let new = NewRequest {
        request,
        class: Class::Interactive,
        model: ModelName::new("nobody").unwrap(),
        encoding: Encoding::Json,
        body: body.into(),
    };
    submit(connection, new).await.unwrap();
    let answer = timeout(PATIENCE, Answer::collect(&mut events)).await.unwrap();
    answer.unwrap().end.unwrap_err().code
}

#[tokio::test]
async fn request_for_an_unknown_model_is_ended_and_gone_from_the_queue() {
    let server = Server::start();
    let dispatcher = start(&server, "a").await;
    let connection = server.connect().await;
    leader(&connection).await;
    assert_eq!(
        error_code(&connection, r#"{"prompt":"x"}"#).await,
        ErrorCode::UnknownModel
    );
    let stream = connection
        .jetstream
        .get_stream("FLOTILLA_REQUESTS")
        .await
        .unwrap();
    let emptied = async { while stream.get_info().await.unwrap().state.messages > 0 {} };
    timeout(PATIENCE, emptied)
        .await
        .expect("the message is acknowledged");
    dispatcher.stop().await;
}

#[tokio::test]
async fn message_without_an_id_is_kept_as_a_dead_letter() {
    let server = Server::start();
    let dispatcher = start(&server, "a").await;
    let connection = server.connect().await;
    leader(&connection).await;
    let subject = "flotilla.request.batch.m";
    let published = connection.jetstream.publish(subject, "{}".into()).await.unwrap();
    published.await.unwrap();
    let dead = connection.jetstream.get_stream("FLOTILLA_DEAD").await.unwrap();
    let kept = async {
        loop {
            if let Ok(letter) = dead.get_raw_message(1).await {
                return letter;
            }
        }
    };
    let letter = timeout(PATIENCE, kept).await.expect("a dead letter");
    let header = |name| letter.headers.get(name).unwrap().as_str();
    assert!(header("Flotilla-Dead-Reason").contains("Nats-Msg-Id"));
    assert_eq!(header("Flotilla-Dead-Subject"), subject);
    dispatcher.stop().await;
}

#[tokio::test]
async fn standby_leads_at_once_when_the_leader_is_asked_to_stop() {
    let server = Server::start();
    let first = start(&server, "a").await;
    let connection = server.connect().await;
    let before = leader(&connection).await;
    let second = start(&server, "b").await;
    assert_eq!(before.dispatcher, "a");
    first.stop().await;
    let after = leader(&connection).await;
    assert_eq!(after.dispatcher, "b");
    assert!(after.epoch > before.epoch);
    second.stop().await;
}

#[tokio::test]
async fn whole_answer_that_fails_is_a_service_error_with_the_same_body() {
    let server = Server::start();
    let dispatcher = start(&server, "a").await;
    let connection = server.connect().await;
    leader(&connection).await;
    let subject = "flotilla.infer.nobody";
    let asked = connection.client.request(subject, r#"{"prompt":"x"}"#.into());
    let message = timeout(PATIENCE, asked).await.unwrap().unwrap();
    let headers = message.headers.unwrap();
    assert_eq!(headers.get("Nats-Service-Error-Code").unwrap().as_str(), "404");
    let failed: Failed = serde_json::from_slice(&message.payload).unwrap();
    assert_eq!(failed.error.code, ErrorCode::UnknownModel);
    dispatcher.stop().await;
}

#[tokio::test]
async fn endpoints_are_found_while_somebody_leads_and_gone_afterwards() {
    let server = Server::start();
    let dispatcher = start(&server, "a").await;
    let connection = server.connect().await;
    leader(&connection).await;
    let info = connection.client.request("$SRV.INFO.flotilla", "".into());
    let message = timeout(PATIENCE, info).await.unwrap().unwrap();
    let info: serde_json::Value = serde_json::from_slice(&message.payload).unwrap();
    let endpoints = info["endpoints"].as_array().unwrap().iter();
    let mut names: Vec<&str> = endpoints
        .map(|endpoint| endpoint["name"].as_str().unwrap())
        .collect();
    names.sort_unstable();
    let wanted = [
        "cancel",
        "drain",
        "fetch",
        "infer",
        "load",
        "profiles",
        "queue",
        "reconciliation",
        "replay",
        "standing",
        "unload",
        "why",
        "workers",
    ];
    assert_eq!(names, wanted);
    dispatcher.stop().await;
    let gone = async {
        while connection
            .client
            .request("flotilla.admin.queue", "".into())
            .await
            .is_ok()
        {}
        connection.client.request("flotilla.infer.m", "".into()).await
    };
    assert!(timeout(PATIENCE, gone).await.unwrap().is_err());
}
