//! A server, a dispatcher and workers, each in a container of its own.

use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use flotilla_client::{Answer, Catalog, Connection};
use flotilla_protocol::catalog::{CatalogEntry, ModelSource};
use flotilla_protocol::{ModelName, WorkerId};
use flotilla_tests::{
    ModelFolderBuilder, Question, ServerOptions, ask_worker, connect, copies, eventually, flotilla_binary,
    nats_server_binary, nats_server_configuration, status,
};
use flotilla_worker::describe;
use serde_json::json;
use tempfile::TempDir;

use crate::engine::{Container, Engine};
use crate::link::{Link, Shaped};

/// The model of these tests.
pub const MODEL: &str = "travels";

/// A fleet whose parts have nothing in common but their network.
pub struct ContainerFleet {
    /// For the test's own requests; it has the server's link between.
    pub connection: Connection,
    /// The workers, by number; worker n is called `w<n>`.
    pub workers: Vec<Container>,
    _server: Container,
    _dispatcher: Container,
    /// Links of the server and the workers, in this order.
    shaped: Vec<Shaped>,
    link: Link,
    folder: TempDir,
}

impl ContainerFleet {
    /// Starts everything, with as many workers as are told, and waits until they have reported. The server and the
    /// workers have such links.
    pub async fn start(workers: usize, link: Link) -> Result<Self> {
        let (engine, folder) = (Engine::start()?, tempfile::tempdir()?);
        let server = start_server(&engine, folder.path())?;
        let mut shaped = vec![Shaped::new(&server, &link)?];
        server.begin()?;
        let url = format!("nats://{}:{PORT}", server.address());
        eventually("the server listens", async || {
            TcpStream::connect((server.address(), PORT)).ok()
        })
        .await;
        let role = |role: &str, name: &str, settings: &[String]| {
            let mut arguments = [role, "--nats", &url].map(str::to_owned).to_vec();
            for setting in settings {
                arguments.extend(["--set".to_owned(), setting.clone()]);
            }
            let home = home(folder.path(), name)?;
            engine.run(name, &home, &flotilla_binary(), &arguments)
        };
        let settings = ["dispatcher.id=d0", "nats.relay_max_bytes=256MiB"].map(str::to_owned);
        let dispatcher = role("dispatcher", "d0", &settings)?;
        dispatcher.begin()?;
        let worker = |index: usize| {
            let name = format!("w{index}");
            fs::create_dir_all(home(folder.path(), &name)?.join("models"))?;
            let settings = [
                &format!("worker.id={name}"),
                "worker.models_dir=/home/models",
                "worker.data_dir=/home/data",
                "worker.cpu.memory_bytes=1GiB",
            ];
            role("worker", &name, &settings.map(str::to_owned))
        };
        let started = (0..workers).map(worker).collect::<Result<Vec<Container>>>()?;
        for worker in &started {
            shaped.push(Shaped::new(worker, &link)?);
            worker.begin()?;
        }
        let connection = connect(&url).await?;
        eventually(&format!("{workers} workers"), async || {
            (status(&connection).await.ok()?.workers.len() == workers).then_some(())
        })
        .await;
        Ok(Self {
            connection,
            workers: started,
            _dispatcher: dispatcher,
            _server: server,
            shaped,
            link,
            folder,
        })
    }

    /// Cuts a worker off.
    pub fn cut_off(&self, worker: usize) -> Result<()> {
        self.shaped[worker + 1].cut(&self.workers[worker], &self.link)
    }

    /// Writes a model for some workers and adds it to the catalog; returns the bytes of its weights when it is offered
    /// by all of them.
    pub async fn give(&self, model: &ModelFolderBuilder, workers: &[usize]) -> Result<u64> {
        let first = self.folder_of(workers[0]);
        model.write(&first)?;
        for worker in &workers[1..] {
            let other = self.folder_of(*worker);
            fs::create_dir_all(&other)?;
            for file in fs::read_dir(&first)? {
                let file = file?;
                fs::copy(file.path(), other.join(file.file_name()))?;
            }
        }
        let model = ModelName::new(MODEL)?;
        let entry = CatalogEntry {
            source: ModelSource::Folder(PathBuf::from("/home/weights").join(MODEL)),
            ..describe(model.clone(), &first)?
        };
        Catalog::open(&self.connection).await?.add(&entry).await?;
        copies::wait_until_offered(&self.connection, &model, workers.len()).await?;
        Ok(entry.facts.weights_bytes)
    }

    /// Where a worker's own files of the model are, seen from here.
    pub fn folder_of(&self, worker: usize) -> PathBuf {
        let home = self.folder.path().join(format!("w{worker}"));
        home.join("weights").join(MODEL)
    }

    /// What one worker answers.
    pub async fn answer_of(&self, worker: usize) -> Result<Answer> {
        let worker = WorkerId::new(format!("w{worker}"))?;
        let body =
            json!({"prompt": "w2 w3 w5", "max_tokens": 12, "ignore_eos": true, "deadline_ms": 100_000});
        let answer = ask_worker(&self.connection, &Question::new(MODEL, body), &worker).await?;
        ensure!(answer.end.is_ok(), "{worker} has no answer: {answer:?}");
        Ok(answer)
    }
}

fn start_server(engine: &Engine, folder: &Path) -> Result<Container> {
    let home = home(folder, "server")?;
    let settings = nats_server_configuration(
        &ServerOptions::default(),
        &format!("0.0.0.0:{PORT}"),
        Path::new("/home/store"),
    );
    fs::write(home.join("nats.conf"), settings)?;
    let arguments = ["--config", "/home/nats.conf"].map(str::to_owned);
    engine.run("server", &home, &nats_server_path()?, &arguments)
}

/// The server's program, which may be one of `PATH`.
fn nats_server_path() -> Result<PathBuf> {
    let named = nats_server_binary();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places = std::env::split_paths(&path).map(|folder| folder.join(&named));
    let found = places.find(|place| place.is_file());
    found.ok_or_else(|| {
        anyhow::anyhow!(
            "there is no {}; run `make test`, which installs it",
            named.display()
        )
    })
}

fn home(folder: &Path, name: &str) -> Result<PathBuf> {
    let home = folder.join(name);
    fs::create_dir_all(&home)?;
    Ok(home)
}

const PORT: u16 = 4222;
