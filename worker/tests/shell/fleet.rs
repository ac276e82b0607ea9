//! A real nats-server, the streams that a dispatcher would make, and a worker between them.

use std::path::Path;
use std::time::Duration;

use async_nats::Subscriber;
use async_nats::jetstream::{kv, object_store, stream};
use bytes::Bytes;
use flotilla_client::{Connection, Entry, Journal, NewEntry};
use flotilla_config::{Config, ConfigFile, LoadOptions};
use flotilla_protocol::assignment::{AssignReply, Assignment, Done};
use flotilla_protocol::codec::{decode_internal, encode_internal};
use flotilla_protocol::event::{Accepted, Event, Tokens};
use flotilla_protocol::fleet::Report;
use flotilla_protocol::{Attempt, Class, Encoding, Epoch, ModelName, RequestId, Strikes, WorkerId};
pub use flotilla_tests::PATIENCE;
use flotilla_tests::{NatsServer, ServerOptions};
use flotilla_worker::{Stop, WorkerError, run};
use futures_util::StreamExt;
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// A worker with the demonstration models, and everything that it talks to.
pub struct Fleet {
    pub connection: Connection,
    pub stop: Stop,
    pub worker: JoinHandle<Result<(), WorkerError>>,
    pub server: NatsServer,
    _data: TempDir,
    reports: Subscriber,
    done: Subscriber,
}

impl Fleet {
    /// Starts everything and waits for the worker's first report.
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// The same with settings of the form `section.key=value`.
    pub async fn start_with(settings: &[&str]) -> Self {
        let server = NatsServer::start(&ServerOptions::default()).unwrap();
        let data = tempfile::tempdir().unwrap();
        let config = config(&server.url(), data.path(), settings);
        let connection = Connection::open(&config.nats, "test").await.unwrap();
        make_objects(&connection).await;
        let subjects = &connection.subjects;
        let reports = connection.client.subscribe(subjects.reports_all()).await.unwrap();
        let done = connection.client.subscribe(subjects.done()).await.unwrap();
        connection.client.flush().await.unwrap();
        let stop = Stop::default();
        let worker_stop = stop.clone();
        let own = Connection::open(&config.nats, "worker").await.unwrap();
        let worker = tokio::spawn(async move { run(&config, own, worker_stop).await });
        let mut fleet = Self {
            connection,
            stop,
            worker,
            server,
            _data: data,
            reports,
            done,
        };
        fleet.report().await;
        fleet
    }

    /// The next report.
    pub async fn report(&mut self) -> Report {
        let message = timeout(PATIENCE, self.reports.next()).await.unwrap().unwrap();
        decode_internal(&message.payload).unwrap()
    }

    /// The end of the next attempt that ends.
    pub async fn done(&mut self) -> Done {
        let message = timeout(PATIENCE, self.done.next()).await.unwrap().unwrap();
        decode_internal(&message.payload).unwrap()
    }

    /// Gives the worker a request.
    pub async fn assign(&self, assignment: &Assignment) -> AssignReply {
        self.try_assign(assignment).await.expect("the worker answers")
    }

    /// Gives the worker a request; `None` when no answer comes.
    pub async fn try_assign(&self, assignment: &Assignment) -> Option<AssignReply> {
        let subject = self.connection.subjects.assign(&worker_id());
        let body = encode_internal(assignment).unwrap();
        let message = self.connection.client.request(subject, body).await.ok()?;
        Some(decode_internal(&message.payload).unwrap())
    }

    /// Takes the stream of the journals away: no append is stored until it is made again.
    pub async fn remove_journals(&self) {
        let stream = self.connection.subjects.journal_stream();
        self.connection.jetstream.delete_stream(stream).await.unwrap();
    }

    /// Writes what a first attempt elsewhere might have made of a request.
    pub async fn write_begun(&self, assignment: &Assignment, text: &str, tokens: &[u32]) {
        let begun = Event::Accepted(Accepted {
            request: assignment.request.clone(),
            model: assignment.model.clone(),
            prompt_tokens: 9,
        });
        let some = Event::Tokens(Tokens {
            offset: 0,
            token_ids: tokens.to_vec(),
            text: text.to_owned(),
            logprobs: Vec::new(),
        });
        let elsewhere = WorkerId::new("w0").unwrap();
        let journal = Journal::new(&self.connection);
        let mut expected_last_sequence = 0;
        for event in [&begun, &some] {
            let entry = NewEntry {
                request: &assignment.request,
                expected_last_sequence,
                attempt: Attempt(1),
                worker: Some(&elsewhere),
                incarnation: Some(7),
                strikes: Strikes(0),
                alone: false,
                encoding: Encoding::Json,
                event,
            };
            expected_last_sequence = journal.append(entry).await.unwrap();
        }
    }

    /// The journal of a request.
    pub async fn journal(&self, request: &RequestId) -> Vec<Entry> {
        Journal::new(&self.connection).read(request, 0).await.unwrap()
    }
}

/// The first attempt at a request.
pub fn assignment(request: &str, model: &str, body: &str) -> Assignment {
    Assignment {
        request: RequestId::new(request).unwrap(),
        attempt: Attempt(1),
        strikes: Strikes(0),
        epoch: Epoch(1),
        class: Class::Interactive,
        model: ModelName::new(model).unwrap(),
        encoding: Encoding::Json,
        body: Bytes::copy_from_slice(body.as_bytes()),
        queued_ms: 5,
        deadline_in_ms: None,
        evict_first: Vec::new(),
        alone: false,
    }
}

/// The text and the tokens of a journal, whose offsets must be contiguous.
pub fn answer(journal: &[Entry]) -> (String, Vec<u32>) {
    let (mut text, mut tokens) = (String::new(), Vec::new());
    for entry in journal {
        if let Event::Tokens(more) = &entry.event {
            assert_eq!(
                usize::try_from(more.offset).unwrap(),
                tokens.len(),
                "no token is missing"
            );
            text.push_str(&more.text);
            tokens.extend_from_slice(&more.token_ids);
        }
    }
    (text, tokens)
}

/// The worker's name.
pub fn worker_id() -> WorkerId {
    WorkerId::new("w1").unwrap()
}

fn config(url: &str, data: &Path, settings: &[&str]) -> Config {
    let models = flotilla_tests::demo_models_dir();
    let mut flags = vec![
        format!("nats.url={url}"),
        "worker.id=w1".to_owned(),
        format!("worker.models_dir={}", models.display()),
        format!("worker.data_dir={}", data.display()),
        "worker.cpu.memory_bytes=256MiB".to_owned(),
    ];
    flags.extend(settings.iter().map(|setting| (*setting).to_owned()));
    let options = LoadOptions {
        file: ConfigFile::None,
        environment: Vec::new(),
        flags,
    };
    Config::load(&options).unwrap()
}

/// Makes the stream of the journals, empty.
pub async fn make_journals(connection: &Connection) {
    let subjects = &connection.subjects;
    let journal = stream::Config {
        name: subjects.journal_stream(),
        subjects: vec![subjects.journal_all()],
        allow_direct: true,
        ..Default::default()
    };
    connection.jetstream.create_stream(journal).await.unwrap();
}

async fn make_objects(connection: &Connection) {
    make_journals(connection).await;
    let subjects = &connection.subjects;
    let relay = object_store::Config {
        bucket: subjects.bucket("relay"),
        storage: stream::StorageType::Memory,
        ..Default::default()
    };
    connection.jetstream.create_object_store(relay).await.unwrap();
    let ttl = Duration::from_secs(10);
    let buckets = [
        ("models", Duration::ZERO),
        ("workers", ttl),
        ("holders", ttl),
        ("claims", ttl),
    ];
    for (bucket, max_age) in buckets {
        let bucket = kv::Config {
            bucket: subjects.bucket(bucket),
            max_age,
            ..Default::default()
        };
        connection.jetstream.create_key_value(bucket).await.unwrap();
    }
}
