//! A hub for tests: a web server that speaks the part of huggingface.co's API that its users read.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};

use anyhow::Result;
use ring::digest::{SHA256, digest};
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// What a hub has, and how it misbehaves.
#[derive(Debug, Clone, Default)]
pub struct HubOptions {
    /// Who asks without it is told nothing.
    pub token: Option<String>,
    /// So many requests are refused first, because there were too many.
    pub busy: u32,
    /// The connection that brings weights breaks after so many bytes, once.
    pub cut_after: Option<usize>,
    /// Weights stop after so many bytes until [`HubServer::release`].
    pub hold_after: Option<usize>,
    /// The first answer with weights has wrong bytes.
    pub spoils_once: bool,
}

/// A running hub with the repository [`HubServer::REPO`]; it ends when it is dropped.
#[derive(Debug)]
pub struct HubServer {
    port: u16,
    state: Arc<Shared>,
    task: JoinHandle<()>,
}

/// A request for a file, as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubRequest {
    /// What was asked for.
    pub path: String,
    /// From which byte on.
    pub from: usize,
    /// Whether it showed a token.
    pub has_token: bool,
}

#[derive(Debug)]
struct Shared {
    files: BTreeMap<String, Vec<u8>>,
    port: u16,
    /// Guards what requests change; a few words at a time, and no test is faster with a channel.
    options: Mutex<HubOptions>,
    requests: Mutex<Vec<HubRequest>>,
    is_released: watch::Sender<bool>,
}

impl Drop for HubServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl HubServer {
    /// The only repository.
    pub const REPO: &str = "org/name";
    /// Its only commit.
    pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    /// Serves the files of a folder.
    ///
    /// # Errors
    /// The folder cannot be read, or the system gives no port.
    pub async fn start(folder: &Path, options: HubOptions) -> Result<Self> {
        let mut files = BTreeMap::from([("README.md".to_owned(), b"a model".to_vec())]);
        for file in fs::read_dir(folder)? {
            let file = file?;
            let name = file.file_name().to_string_lossy().into_owned();
            files.insert(name, fs::read(file.path())?);
        }
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let state = Arc::new(Shared {
            files,
            port,
            options: Mutex::new(options),
            requests: Mutex::default(),
            is_released: watch::Sender::new(false),
        });
        let task = tokio::spawn(serve(listener, Arc::clone(&state)));
        Ok(Self { port, state, task })
    }

    /// Where it answers.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Lets weights go on that were held.
    pub fn release(&self) {
        self.state.is_released.send_replace(true);
    }

    /// The requests for files that came, in order.
    ///
    /// # Panics
    /// A request's handler has panicked.
    #[must_use]
    pub fn requests(&self) -> Vec<HubRequest> {
        self.state.requests.lock().expect("no handler panics").clone()
    }

    /// Those of a file's bytes.
    #[must_use]
    pub fn requests_of(&self, file: &str) -> Vec<HubRequest> {
        let mut requests = self.requests();
        requests.retain(|request| request.path == format!("/cdn/{file}"));
        requests
    }
}

async fn serve(listener: TcpListener, state: Arc<Shared>) {
    while let Ok((stream, _)) = listener.accept().await {
        let state = Arc::clone(&state);
        tokio::spawn(async move {
            // Who hangs up has its reasons.
            let _ = answer(stream, &state).await;
        });
    }
}

async fn answer(stream: TcpStream, state: &Shared) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    let (mut target, mut from, mut to, mut token) = (String::new(), 0, None, None);
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await?;
        let line = line.trim_end();
        if let Some(rest) = line.strip_prefix("GET ") {
            target = rest.split(' ').next().unwrap_or_default().to_owned();
        } else if let Some((name, value)) = line.split_once(": ") {
            match name.to_ascii_lowercase().as_str() {
                "range" => (from, to) = range(value),
                "authorization" => token = value.strip_prefix("Bearer ").map(str::to_owned),
                _ => {}
            }
        } else {
            break;
        }
    }
    let request = HubRequest {
        path: target.split('?').next().unwrap_or_default().to_owned(),
        from,
        has_token: token.is_some(),
    };
    let path = request.path.clone();
    state.requests.lock().expect("no handler panics").push(request);
    if let Some(file) = path.strip_prefix("/cdn/") {
        return send(stream.get_mut(), state, file, from, to).await;
    }
    let head = route(state, &path, token.as_deref());
    stream.get_mut().write_all(head.as_bytes()).await
}

/// What is not the bytes of a large file.
fn route(state: &Shared, path: &str, token: Option<&str>) -> String {
    {
        let mut options = state.options.lock().expect("no handler panics");
        if options
            .token
            .as_deref()
            .is_some_and(|wanted| Some(wanted) != token)
        {
            return head("401 Unauthorized", &["x-error-code: GatedRepo"], "");
        }
        if options.busy > 0 {
            options.busy -= 1;
            return head("429 Too Many Requests", &["retry-after: 0"], "");
        }
    }
    let (api, resolve) = (
        format!("/api/models/{}/revision/", HubServer::REPO),
        format!("/{}/resolve/{}/", HubServer::REPO, HubServer::COMMIT),
    );
    if let Some(revision) = path.strip_prefix(&api) {
        return match revision {
            "main" | HubServer::COMMIT => head("200 OK", &[], &listing(state)),
            _ => head("404 Not Found", &["x-error-code: RevisionNotFound"], ""),
        };
    }
    match path
        .strip_prefix(&resolve)
        .filter(|file| state.files.contains_key(*file))
    {
        // Another host, as the hub's storage is.
        Some(file) => {
            let location = format!("location: http://localhost:{}/cdn/{file}", state.port);
            head("302 Found", &[&location], "")
        }
        None => head("404 Not Found", &["x-error-code: RepoNotFound"], ""),
    }
}

fn listing(state: &Shared) -> String {
    let files = state.files.iter().map(|(path, bytes)| {
        let mut file = json!({"rfilename": path, "size": bytes.len(), "blobId": "0"});
        if path.ends_with(".safetensors") {
            let hash = digest(&SHA256, bytes);
            let hex = hash.as_ref().iter().fold(String::new(), |mut hex, byte| {
                let _infallible = write!(hex, "{byte:02x}");
                hex
            });
            file["lfs"] = json!({"sha256": hex, "size": bytes.len(), "pointerSize": 134});
        }
        file
    });
    json!({"id": HubServer::REPO, "sha": HubServer::COMMIT, "siblings": files.collect::<Vec<_>>()})
        .to_string()
}

/// Sends a part of a file, as far as the options let it.
async fn send(
    stream: &mut TcpStream,
    state: &Shared,
    file: &str,
    from: usize,
    to: Option<usize>,
) -> io::Result<()> {
    let whole = &state.files[file];
    let to = to.unwrap_or(whole.len()).min(whole.len());
    let mut bytes = whole[from.min(to)..to].to_vec();
    let (cut, hold) = {
        let mut options = state.options.lock().expect("no handler panics");
        // Only what downloads weights is troubled, not what reads their headers.
        let is_weights = file.ends_with(".safetensors") && to == whole.len() && whole.len() > HEAD_BYTES;
        if is_weights && std::mem::take(&mut options.spoils_once) {
            *bytes.last_mut().expect("weights are not empty") ^= 1;
        }
        match is_weights {
            true => (options.cut_after.take(), options.hold_after),
            false => (None, None),
        }
    };
    let length = format!("content-length: {}", bytes.len());
    let range = format!(
        "content-range: bytes {from}-{}/{}",
        to.saturating_sub(1),
        whole.len()
    );
    let begin = match (from, to) == (0, whole.len()) {
        true => start("200 OK", &[&length, "etag: \"1\""]),
        false => start("206 Partial Content", &[&length, &range, "etag: \"1\""]),
    };
    stream.write_all(begin.as_bytes()).await?;
    if let Some(cut) = cut {
        return stream.write_all(&bytes[..cut.min(bytes.len())]).await;
    }
    let held = hold.unwrap_or(0).min(bytes.len());
    stream.write_all(&bytes[..held]).await?;
    if hold.is_some() {
        let mut released = state.is_released.subscribe();
        // Its sender is part of the state.
        let _ = released.wait_for(|is_released| *is_released).await;
    }
    stream.write_all(&bytes[held..]).await
}

fn head(status: &str, headers: &[&str], body: &str) -> String {
    let length = format!("content-length: {}", body.len());
    let mut all = vec![length.as_str()];
    all.extend(headers);
    start(status, &all) + body
}

fn start(status: &str, headers: &[&str]) -> String {
    format!(
        "HTTP/1.1 {status}\r\nconnection: close\r\n{}\r\n\r\n",
        headers.join("\r\n")
    )
}

/// `bytes=5-` or `bytes=5-9`, as from and one past the end.
fn range(value: &str) -> (usize, Option<usize>) {
    let (from, to) = value
        .strip_prefix("bytes=")
        .and_then(|range| range.split_once('-'))
        .unwrap_or_default();
    let to: Option<usize> = to.parse().ok();
    (from.parse().unwrap_or(0), to.map(|last| last + 1))
}

/// Readers of headers ask for as much; a test's weights are longer.
const HEAD_BYTES: usize = 64 << 10;
