//! What a role tells over HTTP, as Prometheus and a supervisor see it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::{PATIENCE, Process, eventually};

/// One answer of `/metrics`.
#[derive(Debug, Clone)]
pub struct Scrape {
    text: String,
}

/// Labels and value.
type Sample = (BTreeMap<String, String>, f64);

/// Asks for a path and gives status and body.
///
/// # Errors
/// When nobody answers.
pub async fn get(address: SocketAddr, path: &str) -> Result<(u16, String)> {
    let asked = async {
        let mut stream = TcpStream::connect(address).await?;
        let head = format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n");
        stream.write_all(head.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        anyhow::Ok(answer)
    };
    let answer = timeout(PATIENCE, asked).await.context("no answer")??;
    let status = answer.split(' ').nth(1).context("a status")?.parse()?;
    let (_, body) = answer.split_once("\r\n\r\n").context("a body")?;
    Ok((status, body.to_owned()))
}

impl Process {
    /// Where it tells its metrics and health; it says so when it begins.
    pub async fn http(&self) -> SocketAddr {
        eventually("the address of metrics", async || {
            let log = self.own_log();
            let (_, rest) = log.split_once("told over HTTP address=")?;
            let (address, _) = rest.split_once('\n')?;
            address.trim().parse().ok()
        })
        .await
    }

    /// Its metrics.
    ///
    /// # Errors
    /// When it does not answer, or with an error.
    pub async fn scrape(&self) -> Result<Scrape> {
        Scrape::of(self.http().await).await
    }

    /// Whether a probe (`/livez`, `/readyz`) is answered with success, and what is said.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn probe(&self, path: &str) -> Result<(bool, String)> {
        let (status, text) = get(self.http().await, path).await?;
        ensure!(matches!(status, 200 | 503), "{status}: {text}");
        Ok((status == 200, text))
    }
}

impl Scrape {
    /// The metrics of a role that tells them there.
    ///
    /// # Errors
    /// When it does not answer, or with an error.
    pub async fn of(address: SocketAddr) -> Result<Self> {
        let (status, text) = get(address, "/metrics").await?;
        ensure!(status == 200, "{status}: {text}");
        Ok(Self { text })
    }

    /// The names of all metrics with samples, each with its type.
    #[must_use]
    pub fn types(&self) -> BTreeMap<&str, &str> {
        let lines = self.text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
        let types: BTreeMap<&str, &str> = lines.filter_map(|line| line.split_once(' ')).collect();
        types
            .into_iter()
            .filter(|(name, kind)| self.series(name, kind).next().is_some())
            .collect()
    }

    /// The names of the labels of a metric; `le` of a histogram is left out.
    #[must_use]
    pub fn labels(&self, name: &str) -> BTreeSet<String> {
        let kind = self.types().get(name).copied().unwrap_or_default();
        let series = self.series(name, kind).next();
        let labels = series.map(|(labels, _)| labels).unwrap_or_default();
        labels.into_keys().filter(|label| label != "le").collect()
    }

    /// The sum of all samples of a metric (of a histogram: `NAME_count`) that have these labels; `None` without any.
    #[must_use]
    pub fn sum(&self, name: &str, wanted: &[(&str, &str)]) -> Option<f64> {
        let fits = |labels: &BTreeMap<String, String>| {
            let has = |(name, value): &(&str, &str)| labels.get(*name).is_some_and(|it| it == value);
            wanted.iter().all(has)
        };
        let values = self.samples(name).filter(|(labels, _)| fits(labels));
        values.map(|(_, value)| value).reduce(|sum, value| sum + value)
    }

    /// All of it.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    fn series<'a>(&'a self, name: &str, kind: &str) -> impl Iterator<Item = Sample> + use<'a> {
        let sample = match kind {
            "histogram" => format!("{name}_count"),
            _ => name.to_owned(),
        };
        self.samples(&sample)
    }

    fn samples<'a>(&'a self, name: &str) -> impl Iterator<Item = Sample> + use<'a> {
        let name = name.to_owned();
        self.text.lines().filter_map(move |line| {
            let rest = line.strip_prefix(&name)?;
            let (labels, value) = rest.rsplit_once(' ')?;
            let labels = match labels {
                "" => BTreeMap::new(),
                labels => parsed(labels.strip_prefix('{')?.strip_suffix('}')?),
            };
            Some((labels, value.parse().ok()?))
        })
    }
}

/// Labels as they stand between the brackets; values of tests hold no commas.
fn parsed(labels: &str) -> BTreeMap<String, String> {
    let pairs = labels.split("\",").filter_map(|pair| pair.split_once("=\""));
    pairs
        .map(|(name, value)| (name.to_owned(), value.trim_end_matches('"').to_owned()))
        .collect()
}
