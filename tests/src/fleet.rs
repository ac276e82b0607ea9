//! A whole fleet for one test: server, dispatchers and workers as real processes.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use async_nats::Message;
use flotilla_client::{Answer, Connection, Events, NewRequest, new_request_id, submit, submit_to};
use flotilla_config::{Config, LoadOptions};
use flotilla_protocol::admin::FleetStatus;
use flotilla_protocol::{Class, Encoding, ModelName, RequestId, WorkerId};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::process::Process;
use crate::proxy::Proxy;
use crate::server::{NatsServer, ServerOptions};
use crate::{demo_models_dir, eventually};

/// What a test wants of its fleet.
#[derive(Debug)]
pub struct FleetBuilder {
    server: ServerOptions,
    dispatchers: usize,
    workers: usize,
    models_dir: PathBuf,
    settings: Vec<String>,
    network: Network,
}

/// How the parts reach the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Network {
    Direct,
    /// Each through a proxy of its own.
    Proxied,
}

/// A running fleet; everything ends when it is dropped.
#[derive(Debug)]
pub struct Fleet {
    /// The dispatchers, by number.
    pub dispatchers: Vec<Process>,
    /// The workers, by number; worker n is called `w<n>`.
    pub workers: Vec<Process>,
    /// A connection for the test's own requests.
    pub connection: Connection,
    /// The server.
    pub server: NatsServer,
    /// What lies between a part and the server, by the part's name; that of [`Fleet::connection`] is `client`.
    /// Empty unless [`FleetBuilder::proxied`].
    pub proxies: BTreeMap<String, Proxy>,
    folder: TempDir,
    models_dir: PathBuf,
    settings: Vec<String>,
}

/// A request that a test asks.
#[derive(Debug, Clone)]
pub struct Question {
    /// Its id.
    pub request: RequestId,
    /// Class.
    pub class: Class,
    /// Model.
    pub model: ModelName,
    /// The body.
    pub body: Value,
}

impl Question {
    /// An interactive request for a model.
    ///
    /// # Panics
    /// When the model's name is not one.
    #[must_use]
    pub fn new(model: &str, body: Value) -> Self {
        let model = ModelName::new(model).expect("the test names a model");
        Self {
            request: new_request_id(),
            class: Class::Interactive,
            model,
            body,
        }
    }

    /// A completion of a prompt.
    #[must_use]
    pub fn prompt(model: &str, prompt: &str) -> Self {
        Self::new(model, json!({"prompt": prompt}))
    }

    /// As it is published.
    pub(crate) fn as_new(&self) -> NewRequest {
        NewRequest {
            request: self.request.clone(),
            class: self.class,
            model: self.model.clone(),
            encoding: Encoding::Json,
            body: self.body.to_string().into(),
        }
    }
}

impl FleetBuilder {
    /// The server's options.
    #[must_use]
    pub fn server(mut self, options: ServerOptions) -> Self {
        self.server = options;
        self
    }

    /// How many dispatchers.
    #[must_use]
    pub fn dispatchers(mut self, count: usize) -> Self {
        self.dispatchers = count;
        self
    }

    /// How many workers.
    #[must_use]
    pub fn workers(mut self, count: usize) -> Self {
        self.workers = count;
        self
    }

    /// The folder whose subfolders are the models; the demonstration models by default.
    #[must_use]
    pub fn models_dir(mut self, folder: &Path) -> Self {
        self.models_dir = folder.to_owned();
        self
    }

    /// A setting for every process, as `key=value`.
    #[must_use]
    pub fn set(mut self, setting: &str) -> Self {
        self.settings.push(setting.to_owned());
        self
    }

    /// Every part that is started with the fleet, and the test's own connection, reaches the server through a
    /// [`Proxy`] of its own.
    #[must_use]
    pub fn proxied(mut self) -> Self {
        self.network = Network::Proxied;
        self
    }

    /// Starts everything and waits until every worker has reported.
    ///
    /// # Errors
    /// When a part does not start.
    pub async fn start(self) -> Result<Fleet> {
        let server = NatsServer::start(&self.server)?;
        let proxies = self.proxies(&server).await?;
        let url = proxies.get(CLIENT).map_or_else(|| server.url(), Proxy::url);
        let connection = connect(&url).await?;
        let mut fleet = Fleet {
            dispatchers: Vec::new(),
            workers: Vec::new(),
            connection,
            server,
            proxies,
            folder: tempfile::tempdir()?,
            models_dir: self.models_dir,
            settings: self.settings,
        };
        for _ in 0..self.dispatchers {
            fleet.add_dispatcher()?;
        }
        for _ in 0..self.workers {
            fleet.add_worker()?;
        }
        fleet.wait_until_up(self.workers).await?;
        Ok(fleet)
    }

    async fn proxies(&self, server: &NatsServer) -> Result<BTreeMap<String, Proxy>> {
        let mut proxies = BTreeMap::new();
        if self.network == Network::Proxied {
            let dispatchers = (0..self.dispatchers).map(dispatcher_name);
            let workers = (0..self.workers).map(worker_name);
            for name in dispatchers.chain(workers).chain([CLIENT.to_owned()]) {
                proxies.insert(name, Proxy::start(server.port()).await?);
            }
        }
        Ok(proxies)
    }
}

fn dispatcher_name(index: usize) -> String {
    format!("d{index}")
}

fn worker_name(index: usize) -> String {
    format!("w{index}")
}

impl Fleet {
    /// One dispatcher, one worker, the demonstration models.
    #[must_use]
    pub fn builder() -> FleetBuilder {
        FleetBuilder {
            server: ServerOptions::default(),
            dispatchers: 1,
            workers: 1,
            models_dir: demo_models_dir(),
            settings: Vec::new(),
            network: Network::Direct,
        }
    }

    /// The folder of logs and data.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Arguments that make a command of ours talk to this fleet.
    #[must_use]
    pub fn arguments(&self, command: &[&str]) -> Vec<String> {
        let mut arguments: Vec<String> = command.iter().map(|&word| word.to_owned()).collect();
        arguments.extend(["--nats".to_owned(), self.server.url()]);
        arguments
    }

    /// Starts one more dispatcher.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn add_dispatcher(&mut self) -> Result<()> {
        let process = self.dispatcher_process(self.dispatchers.len())?;
        self.dispatchers.push(process);
        Ok(())
    }

    /// Starts a dispatcher again in the place of one that a test has ended.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn restart_dispatcher(&mut self, index: usize) -> Result<()> {
        self.dispatchers[index] = self.dispatcher_process(index)?;
        Ok(())
    }

    fn dispatcher_process(&self, index: usize) -> Result<Process> {
        let name = dispatcher_name(index);
        self.role("dispatcher", &name, &[format!("dispatcher.id={name}")])
    }

    /// Starts one more worker.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn add_worker(&mut self) -> Result<()> {
        self.add_worker_with(&[])
    }

    /// Starts one more worker with settings of its own, as `key=value`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn add_worker_with(&mut self, settings: &[String]) -> Result<()> {
        let process = self.worker_process(self.workers.len(), settings)?;
        self.workers.push(process);
        Ok(())
    }

    /// Starts a worker again, without settings of its own, in the place of one that a test has ended.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn restart_worker(&mut self, index: usize) -> Result<()> {
        self.restart_worker_with(index, &[])
    }

    /// The same with settings of its own, as `key=value`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn restart_worker_with(&mut self, index: usize, settings: &[String]) -> Result<()> {
        self.workers[index] = self.worker_process(index, settings)?;
        Ok(())
    }

    fn worker_process(&self, index: usize, own: &[String]) -> Result<Process> {
        let name = worker_name(index);
        let mut settings = vec![
            format!("worker.id={name}"),
            format!("worker.models_dir={}", self.models_dir.display()),
            format!("worker.data_dir={}", self.home(&name).display()),
            "worker.cpu.memory_bytes=1GiB".to_owned(),
        ];
        settings.extend_from_slice(own);
        self.role("worker", &name, &settings)
    }

    fn role(&self, role: &str, name: &str, settings: &[String]) -> Result<Process> {
        let url = self
            .proxies
            .get(name)
            .map_or_else(|| self.server.url(), Proxy::url);
        let mut arguments = vec![role.to_owned(), "--nats".to_owned(), url];
        for setting in settings.iter().chain(&self.settings) {
            arguments.extend(["--set".to_owned(), setting.clone()]);
        }
        let home = self.home(name);
        std::fs::create_dir_all(&home)?;
        Process::flotilla_at_home(name, self.folder.path(), &home, &arguments)
    }

    /// The folder that a process works in and keeps its data in.
    #[must_use]
    pub fn home(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Waits for the workers' reports, and fails at once when a process ends instead.
    async fn wait_until_up(&mut self, workers: usize) -> Result<()> {
        let processes: Vec<&mut Process> = self.dispatchers.iter_mut().chain(&mut self.workers).collect();
        let processes = RefCell::new(processes);
        let connection = &self.connection;
        let died = eventually(&format!("{workers} workers"), async || {
            for process in processes.borrow_mut().iter_mut() {
                if !process.is_running().ok()? {
                    return Some(Some(process.log()));
                }
            }
            (status(connection).await.ok()?.workers.len() == workers).then_some(None)
        })
        .await;
        died.map_or(Ok(()), |log| bail!("a process ended at its start:\n{log}"))
    }

    /// Waits until the dispatcher knows exactly this many workers.
    ///
    /// # Panics
    /// When that does not happen in time.
    pub async fn wait_for_workers(&self, count: usize) {
        eventually(&format!("{count} workers"), async || {
            let status = self.status().await.ok()?;
            (status.workers.len() == count).then_some(())
        })
        .await;
    }

    /// One more connection of the test's own, with no proxy between.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn connect_directly(&self) -> Result<Connection> {
        connect(&self.server.url()).await
    }

    /// The dispatcher's view of the workers.
    ///
    /// # Errors
    /// When no dispatcher leads.
    pub async fn status(&self) -> Result<FleetStatus> {
        status(&self.connection).await
    }

    /// Asks an endpoint for operators.
    ///
    /// # Errors
    /// When nobody answers.
    pub async fn admin(&self, verb: &str, body: &Value) -> Result<Message> {
        admin(&self.connection, verb, body).await
    }

    /// Publishes a request; its events can be followed from then on.
    ///
    /// # Errors
    /// When it is not stored.
    pub async fn submit(&self, question: &Question) -> Result<Events> {
        let events = Events::subscribe(&self.connection, question.request.clone()).await?;
        submit(&self.connection, question.as_new()).await?;
        Ok(events)
    }

    /// Publishes a request and waits for the whole answer.
    ///
    /// # Errors
    /// When it is not stored, or its events cannot be followed.
    pub async fn ask(&self, question: &Question) -> Result<Answer> {
        let mut events = self.submit(question).await?;
        collect(question, &mut events).await
    }

    /// The same of a request that only one worker may have; its body must have a `deadline_ms`.
    ///
    /// # Errors
    /// When it is not stored, or its events cannot be followed.
    pub async fn ask_worker(&self, question: &Question, worker: &WorkerId) -> Result<Answer> {
        ask_worker(&self.connection, question, worker).await
    }
}

/// Publishes a request that only one worker may have, and waits for the whole answer; its body must have a
/// `deadline_ms`.
///
/// # Errors
/// When it is not stored, or its events cannot be followed.
pub async fn ask_worker(connection: &Connection, question: &Question, worker: &WorkerId) -> Result<Answer> {
    let mut events = Events::subscribe(connection, question.request.clone()).await?;
    submit_to(connection, question.as_new(), worker).await?;
    collect(question, &mut events).await
}

async fn collect(question: &Question, events: &mut Events) -> Result<Answer> {
    let answer = tokio::time::timeout(crate::PATIENCE * 2, Answer::collect(events));
    answer
        .await
        .with_context(|| format!("{} has no end", question.request))?
        .map_err(Into::into)
}

/// The dispatcher's view of the workers.
///
/// # Errors
/// When no dispatcher leads.
pub async fn status(connection: &Connection) -> Result<FleetStatus> {
    let message = admin(connection, "workers", &json!({})).await?;
    Ok(serde_json::from_slice(&message.payload)?)
}

/// Asks an endpoint for operators.
///
/// # Errors
/// When nobody answers.
pub async fn admin(connection: &Connection, verb: &str, body: &Value) -> Result<Message> {
    let subject = connection.subjects.admin(verb);
    connection
        .client
        .request(subject, body.to_string().into())
        .await
        .context("no leader answers")
}

/// A connection for a test's own requests.
///
/// # Errors
/// When there is no server.
pub async fn connect(url: &str) -> Result<Connection> {
    let options = LoadOptions {
        flags: vec![format!("nats.url={url}")],
        ..LoadOptions::default()
    };
    let config = Config::load(&options)?;
    Ok(Connection::open(&config.nats, "test").await?)
}

/// The proxy of the test's own connection.
const CLIENT: &str = "client";
