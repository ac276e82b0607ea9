//! Requests to a hub, repeated as long as that may help.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use flotilla_config::{Secret, WorkerHub};
use flotilla_protocol::hub::HubModel;
use flotilla_weights::{WEIGHTS_INDEX, chosen_files, wants_index};
use reqwest::header::{CONTENT_RANGE, RANGE, RETRY_AFTER};
use reqwest::{Client, RequestBuilder, Response, StatusCode};
use rustls::crypto::ring::default_provider;
use rustls::{ClientConfig, RootCertStore};

use crate::error::{HubError, Interruption};
use crate::patience::{Advance, Patience};
use crate::repository::{HubFile, Repository};

/// A hub. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Hub {
    http: Client,
    endpoint: String,
    token: Option<Secret>,
}

/// One try of a request.
pub(crate) enum Try<T> {
    /// It is done.
    Done(T),
    /// It may go better the next time.
    Again(Interruption),
}

impl Hub {
    /// A hub as configured. Asks nobody yet.
    ///
    /// # Errors
    /// [`HubError::Authorities`] of an encrypted hub, [`HubError::Client`].
    pub fn new(settings: &WorkerHub) -> Result<Self, HubError> {
        let tls = match settings.endpoint.starts_with("https") {
            true => trusting(authorities()?),
            false => trusting(RootCertStore::empty()),
        };
        let http = Client::builder()
            .tls_backend_preconfigured(tls)
            .user_agent(concat!("flotilla/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(settings.stall_timeout.min(CONNECT_MAX))
            .read_timeout(settings.stall_timeout)
            .build();
        Ok(Self {
            http: http.map_err(HubError::Client)?,
            endpoint: settings.endpoint.clone(),
            token: settings.token.clone(),
        })
    }

    /// The commit that a revision is now, and those of its files that loading reads.
    ///
    /// # Errors
    /// [`HubError`].
    pub async fn repository(&self, model: &HubModel) -> Result<Repository, HubError> {
        let path = format!(
            "{API}models/{}/revision/{}?blobs=true",
            model.repo,
            escaped(model.revision.as_str())
        );
        let body = self.read_all(model, &path, None, LIST_BYTES_MAX).await?;
        let mut repository = Repository::from_json(model, &body)?;
        let paths: Vec<String> = repository.files.iter().map(|file| file.path.clone()).collect();
        let index = match repository.file(WEIGHTS_INDEX).filter(|_| wants_index(&paths)) {
            Some(file) => Some(self.read(&repository.model, file, 0, file.bytes).await?),
            None => None,
        };
        let chosen = chosen_files(paths, index.as_deref()).map_err(|error| HubError::Answer {
            model: model.clone(),
            reason: format!("{WEIGHTS_INDEX}: {error}"),
        })?;
        repository.keep(&chosen);
        repository.check()?;
        Ok(repository)
    }

    /// Bytes of a file, which fit in memory.
    pub(crate) async fn read(
        &self,
        model: &HubModel,
        file: &HubFile,
        from: u64,
        to: u64,
    ) -> Result<Bytes, HubError> {
        let path = file_path(model, file);
        let part = (from, to) != (0, file.bytes);
        let range = part.then(|| format!("bytes={from}-{}", to.saturating_sub(1)));
        let body = self
            .read_all(model, &path, range.as_deref(), SMALL_BYTES_MAX)
            .await?;
        match body.len() as u64 == to - from {
            true => Ok(body),
            false => Err(HubError::Answer {
                model: model.clone(),
                reason: format!(
                    "{} bytes of {} came instead of {}",
                    body.len(),
                    file.path,
                    to - from
                ),
            }),
        }
    }

    /// A file from an offset on, which need not be the one that was asked for: the answer tells.
    pub(crate) async fn open(
        &self,
        model: &HubModel,
        file: &HubFile,
        from: u64,
    ) -> Result<Try<(u64, Response)>, HubError> {
        let path = file_path(model, file);
        let range = (from > 0).then(|| format!("bytes={from}-"));
        let response = match self.ask(model, &path, range.as_deref()).await? {
            Try::Done(response) => response,
            Try::Again(because) => return Ok(Try::Again(because)),
        };
        let began = match response.status() {
            StatusCode::PARTIAL_CONTENT => range_start(&response).unwrap_or(0),
            _ => 0,
        };
        Ok(Try::Done((began, response)))
    }

    async fn read_all(
        &self,
        model: &HubModel,
        path: &str,
        range: Option<&str>,
        bytes_max: usize,
    ) -> Result<Bytes, HubError> {
        let what = match path.starts_with(API) {
            true => "the list of files",
            false => path,
        };
        let mut patience = Patience::new(model, what);
        loop {
            match self.read_once(model, path, range, bytes_max).await? {
                Try::Done(body) => return Ok(body),
                Try::Again(because) => patience.pause(Advance::None, because).await?,
            }
        }
    }

    async fn read_once(
        &self,
        model: &HubModel,
        path: &str,
        range: Option<&str>,
        bytes_max: usize,
    ) -> Result<Try<Bytes>, HubError> {
        let mut response = match self.ask(model, path, range).await? {
            Try::Done(response) => response,
            Try::Again(because) => return Ok(Try::Again(because)),
        };
        let mut body = BytesMut::new();
        loop {
            match response.chunk().await {
                Ok(Some(chunk)) if body.len() + chunk.len() <= bytes_max => body.extend_from_slice(&chunk),
                Ok(Some(_)) => {
                    return Err(HubError::Answer {
                        model: model.clone(),
                        reason: format!("{path} has more than {bytes_max} bytes"),
                    });
                }
                Ok(None) => return Ok(Try::Done(body.freeze())),
                Err(error) => return Ok(Try::Again(error.without_url().into())),
            }
        }
    }

    /// One request; an answer that is no success is an error, or a reason to ask again.
    async fn ask(
        &self,
        model: &HubModel,
        path: &str,
        range: Option<&str>,
    ) -> Result<Try<Response>, HubError> {
        let mut request: RequestBuilder = self.http.get(format!("{}/{path}", self.endpoint));
        if let Some(token) = &self.token {
            request = request.bearer_auth(token.expose());
        }
        if let Some(range) = range {
            request = request.header(RANGE, range);
        }
        let response = match request.send().await {
            Ok(response) => response,
            // Addresses of downloads may carry signatures.
            Err(error) => return Ok(Try::Again(error.without_url().into())),
        };
        let status = response.status();
        if status.is_success() {
            return Ok(Try::Done(response));
        }
        if status.is_server_error() || AGAIN.contains(&status) {
            return Ok(Try::Again(Interruption::Status {
                status: status.as_u16(),
                retry_after: retry_after(&response),
            }));
        }
        Err(self.refused(model, path, &response))
    }

    fn refused(&self, model: &HubModel, path: &str, response: &Response) -> HubError {
        let (model, status) = (model.clone(), response.status());
        match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => HubError::Denied {
                model,
                status: status.as_u16(),
                has_token: self.token.is_some(),
            },
            StatusCode::NOT_FOUND if path.starts_with(API) => HubError::NotThere {
                reason: match code(response) {
                    "RevisionNotFound" => "the repository has no such revision".to_owned(),
                    "RepoNotFound" => "there is no such repository".to_owned(),
                    _ => "there is no such repository or revision".to_owned(),
                },
                model,
            },
            StatusCode::NOT_FOUND => HubError::NoFile {
                path: path.rsplit('/').next().unwrap_or(path).to_owned(),
                model,
            },
            status => HubError::Answer {
                reason: format!("status {status} {}", code(response)),
                model,
            },
        }
    }
}

/// The hub's word for what is wrong.
fn code(response: &Response) -> &str {
    let code = response.headers().get("x-error-code");
    code.and_then(|code| code.to_str().ok()).unwrap_or_default()
}

fn retry_after(response: &Response) -> Option<Duration> {
    let seconds = response.headers().get(RETRY_AFTER)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds))
}

/// Where the part of a file begins that an answer holds: `bytes 100-199/1000`.
fn range_start(response: &Response) -> Option<u64> {
    let range = response.headers().get(CONTENT_RANGE)?.to_str().ok()?;
    range.strip_prefix("bytes ")?.split('-').next()?.parse().ok()
}

fn file_path(model: &HubModel, file: &HubFile) -> String {
    let path: Vec<String> = file.path.split('/').map(escaped).collect();
    let revision = escaped(model.revision.as_str());
    format!("{}/resolve/{revision}/{}", model.repo, path.join("/"))
}

/// A text as one part of an address.
fn escaped(text: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~');
    text.bytes()
        .map(|byte| match is_plain(byte) {
            true => char::from(byte).to_string(),
            false => format!("%{byte:02X}"),
        })
        .collect()
}

/// The same cryptography as connections to NATS.
fn trusting(authorities: RootCertStore) -> ClientConfig {
    ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .expect("the provider has the default versions")
        .with_root_certificates(authorities)
        .with_no_client_auth()
}

fn authorities() -> Result<RootCertStore, HubError> {
    let found = rustls_native_certs::load_native_certs();
    let mut store = RootCertStore::empty();
    let (added, _) = store.add_parsable_certificates(found.certs);
    match (added, found.errors.first()) {
        (0, Some(error)) => Err(HubError::Authorities(error.to_string())),
        (0, None) => Err(HubError::Authorities("there are none".to_owned())),
        _ => Ok(store),
    }
}

/// What tells of files instead of giving them.
const API: &str = "api/";
const AGAIN: [StatusCode; 2] = [StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_MANY_REQUESTS];
/// A healthy hub takes a connection in milliseconds.
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// Of a list of files; ten thousand take a tenth of it.
const LIST_BYTES_MAX: usize = 16 << 20;
/// Of a file that is read into memory: tokenizers have up to some 30 MB, and headers of weights at most 100.
const SMALL_BYTES_MAX: usize = 128 << 20;
