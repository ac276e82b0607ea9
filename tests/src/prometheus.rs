//! A real Prometheus that scrapes a fleet.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{Fleet, eventually, free_port, get};

/// A running Prometheus, with its data in a folder that goes away with it.
#[derive(Debug)]
pub struct Prometheus {
    child: Child,
    address: SocketAddr,
    folder: TempDir,
}

impl Prometheus {
    /// How often it scrapes, and evaluates its rules.
    pub const INTERVAL: Duration = Duration::from_secs(1);

    /// Its program: beside the promtool that `FLOTILLA_TEST_PROMTOOL` names, as in Debian's package; `None` where there is
    /// none (`.ci/promtool.sh` says where it comes from).
    #[must_use]
    pub fn program() -> Option<PathBuf> {
        let promtool = PathBuf::from(std::env::var_os("FLOTILLA_TEST_PROMTOOL")?);
        let program = promtool.with_file_name("prometheus");
        program.is_file().then_some(program)
    }

    /// Starts it with rules, a whole file of them, and nobody to scrape; `None` where there is no program.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn start(rules: &str) -> Result<Option<Self>> {
        let Some(program) = Self::program() else {
            return Ok(None);
        };
        let folder = tempfile::tempdir()?;
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        fs::write(folder.path().join("rules.yml"), rules)?;
        fs::write(folder.path().join("prometheus.yml"), configuration())?;
        let log = File::create(folder.path().join("log"))?;
        let child = Command::new(program)
            .arg("--config.file=prometheus.yml")
            .arg("--storage.tsdb.path=data")
            .arg(format!("--web.listen-address={address}"))
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()?;
        let prometheus = Self {
            child,
            address,
            folder,
        };
        eventually("Prometheus to be ready", async || {
            let (status, _) = get(prometheus.address, "/-/ready").await.ok()?;
            (status == 200).then_some(())
        })
        .await;
        Ok(Some(prometheus))
    }

    /// Scrapes the processes of a fleet from now on, as they are now; again after one was started.
    ///
    /// # Errors
    /// When the list cannot be written.
    pub async fn watch(&self, fleet: &Fleet) -> Result<()> {
        for (file, processes) in [(DISPATCHERS, &fleet.dispatchers), (WORKERS, &fleet.workers)] {
            let mut targets = Vec::new();
            for process in processes {
                targets.push(process.http().await.to_string());
            }
            // It looks at the file again when it changes, and must not find half of it.
            let written = self.folder.path().join(format!("{file}.new"));
            fs::write(&written, json!([{"targets": targets}]).to_string())?;
            fs::rename(&written, self.folder.path().join(file))?;
        }
        Ok(())
    }

    /// Waits until so many processes are scraped.
    ///
    /// # Panics
    /// When they are not in time.
    pub async fn wait_until_all_are_up(&self, count: usize) {
        eventually(&format!("{count} processes to be scraped"), async || {
            let up = self.query("up == 1").await.ok()?;
            (up.len() == count).then_some(())
        })
        .await;
    }

    /// Where it is asked.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The series that an expression gives now.
    ///
    /// # Errors
    /// When it does not answer, or the expression has a fault.
    pub async fn query(&self, expression: &str) -> Result<Vec<Value>> {
        let query = format!("query?query={}", encoded(expression));
        let data = self.ask(&query).await.with_context(|| expression.to_owned())?;
        series(data)
    }

    /// The series that an expression gave in the last so many seconds.
    ///
    /// # Errors
    /// When it does not answer, or the expression has a fault.
    pub async fn query_range(&self, expression: &str, seconds: u32) -> Result<Vec<Value>> {
        let end = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64();
        let (query, start) = (encoded(expression), end - f64::from(seconds));
        let path = format!("query_range?query={query}&start={start}&end={end}&step=1");
        let data = self.ask(&path).await.with_context(|| expression.to_owned())?;
        series(data)
    }

    /// What a path of its interface says.
    ///
    /// # Errors
    /// When it does not answer, or with an error.
    pub async fn ask(&self, path: &str) -> Result<Value> {
        let (status, body) = get(self.address, &format!("/api/v1/{path}")).await?;
        ensure!(status == 200, "{status}: {body}");
        let mut answer: Value = serde_json::from_str(&body)?;
        Ok(answer["data"].take())
    }

    /// What it has written so far.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        // One that has ended already is what we want.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn series(mut data: Value) -> Result<Vec<Value>> {
    let series = data["result"].take();
    serde_json::from_value(series).context("a list of series")
}

/// The jobs have the names of those of `deploy/prometheus`.
fn configuration() -> String {
    let interval = Prometheus::INTERVAL.as_secs();
    let job =
        |role, file| json!({"job_name": format!("flotilla-{role}"), "file_sd_configs": [{"files": [file]}]});
    json!({
        "global": {"scrape_interval": format!("{interval}s"), "evaluation_interval": format!("{interval}s")},
        "rule_files": ["rules.yml"],
        "scrape_configs": [job("dispatcher", DISPATCHERS), job("worker", WORKERS)],
    })
    .to_string()
}

fn encoded(expression: &str) -> String {
    let encode = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    expression.bytes().map(encode).collect()
}

const DISPATCHERS: &str = "dispatchers.json";
const WORKERS: &str = "workers.json";
