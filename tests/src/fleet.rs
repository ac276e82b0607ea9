//! A whole fleet for one test: server, dispatchers and workers as real processes.

mod asking;
mod builder;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use async_nats::Message;
use flotilla_client::{Answer, Connection, Events, NewRequest, new_request_id, submit, submit_to};
use flotilla_protocol::admin::FleetStatus;
use flotilla_protocol::{Class, Encoding, ModelName, RequestId, WorkerId};
use serde_json::{Value, json};
use tempfile::TempDir;

use asking::collect;
pub use asking::{admin, ask_worker, connect, connect_as, status};
pub use builder::FleetBuilder;
use builder::Users;

use crate::cluster::Cluster;
use crate::eventually;
use crate::exchanges::Exchanges;
use crate::process::Process;
use crate::proxies::Proxies;
use crate::server::NatsServer;

/// A running fleet; everything ends when it is dropped.
#[derive(Debug)]
pub struct Fleet {
    /// The dispatchers, by number.
    pub dispatchers: Vec<Process>,
    /// The workers, by number; worker n is called `w<n>`.
    pub workers: Vec<Process>,
    /// A connection for the test's own requests.
    pub connection: Connection,
    /// The server, or several.
    pub cluster: Cluster,
    /// What lies between a part and the servers, by the part's name; that of [`Fleet::connection`] is `client`.
    /// Only those with a gate unless [`FleetBuilder::proxied`].
    pub proxies: BTreeMap<String, Proxies>,
    /// The same, empty unless [`FleetBuilder::with_exchanges`].
    pub exchanges: BTreeMap<String, Exchanges>,
    folder: TempDir,
    models_dir: PathBuf,
    settings: Vec<String>,
    users: Users,
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
    #[must_use]
    pub fn as_new(&self) -> NewRequest {
        NewRequest {
            request: self.request.clone(),
            class: self.class,
            model: self.model.clone(),
            encoding: Encoding::Json,
            body: self.body.to_string().into(),
        }
    }
}

/// Where a part reaches the servers.
fn url(
    cluster: &Cluster,
    proxies: &BTreeMap<String, Proxies>,
    exchanges: &BTreeMap<String, Exchanges>,
    name: &str,
) -> String {
    let network = proxies.get(name).map(Proxies::url);
    let network = network.or_else(|| exchanges.get(name).map(Exchanges::url));
    network.unwrap_or_else(|| cluster.url())
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
        FleetBuilder::default()
    }

    /// The folder of logs and data.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The server, or the first of several.
    pub fn server(&mut self) -> &mut NatsServer {
        &mut self.cluster.servers[0]
    }

    /// Arguments that make a command of ours talk to this fleet.
    #[must_use]
    pub fn arguments(&self, command: &[&str]) -> Vec<String> {
        let mut arguments: Vec<String> = command.iter().map(|&word| word.to_owned()).collect();
        arguments.extend(["--nats".to_owned(), self.cluster.url()]);
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
        let url = url(&self.cluster, &self.proxies, &self.exchanges, name);
        let mut arguments = vec![role.to_owned(), "--nats".to_owned(), url];
        // Tests that run at once must not take each other's ports.
        arguments.extend(["--set".to_owned(), format!("{role}.http.listen=127.0.0.1:0")]);
        let user = self.users.settings(role);
        for setting in user.iter().chain(settings).chain(&self.settings) {
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

    /// Waits for the workers' reports, and fails at once when a process ends instead. Without a dispatcher nobody hears
    /// reports.
    async fn wait_until_up(&mut self, workers: usize) -> Result<()> {
        if self.dispatchers.is_empty() {
            return Ok(());
        }
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

    /// Waits until every request was acknowledged.
    ///
    /// # Panics
    /// When that does not happen in time.
    pub async fn wait_for_an_empty_queue(&self) {
        let stream = self.connection.subjects.requests_stream();
        eventually("every request to be acked", async || {
            let stream = self.connection.jetstream.get_stream(&stream).await.ok()?;
            (stream.cached_info().state.messages == 0).then_some(())
        })
        .await;
    }

    /// One more connection of the test's own, with no proxy between.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn connect_directly(&self) -> Result<Connection> {
        connect_as(&self.cluster.url(), self.users.settings(OPERATOR)).await
    }

    /// The same to one server of several.
    ///
    /// # Errors
    /// When that one does not answer.
    pub async fn connect_to(&self, server: usize) -> Result<Connection> {
        connect_as(&self.cluster.servers[server].url(), self.users.settings(OPERATOR)).await
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

    /// Publishes a request that only one worker may have; its body must have a `deadline_ms`.
    ///
    /// # Errors
    /// When it is not stored.
    pub async fn submit_to(&self, question: &Question, worker: &WorkerId) -> Result<Events> {
        let events = Events::subscribe(&self.connection, question.request.clone()).await?;
        submit_to(&self.connection, question.as_new(), worker).await?;
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

/// The user of the test's own connection.
const OPERATOR: &str = "operator";
/// The proxy of the test's own connection.
const CLIENT: &str = "client";
