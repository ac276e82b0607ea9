//! The file of a batch: every line checked as a dispatcher would, before anything is published.

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use flotilla_client::Shape;
use flotilla_protocol::event::RequestError;
use flotilla_protocol::request::InferenceRequest;
use flotilla_protocol::{Encoding, ModelName};
use serde_json::{Map, Value};
use thiserror::Error;

/// Why a file is no batch.
#[derive(Debug, Error)]
pub(crate) enum BatchError {
    /// It cannot be read.
    #[error("cannot read {}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Lines of it are wrong.
    #[error("{} is no batch, and nothing was published:{}", path.display(), list(faults, *more))]
    Faults {
        /// The file.
        path: PathBuf,
        /// What is wrong, at most [`FAULTS_MAX`].
        faults: Vec<Fault>,
        /// Faults that are not listed.
        more: usize,
    },
    /// Somebody has written to it meanwhile.
    #[error("line {line} of {} has changed while it was read; leave the file alone and run this again", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
        /// Where.
        line: usize,
    },
}

/// What is wrong with a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    /// Number of the line, from 1.
    pub(crate) line: usize,
    /// Dotted path of the field; empty when the whole line is meant.
    pub(crate) field: String,
    /// What is wrong with it.
    pub(crate) problem: String,
}

/// One request of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Line {
    /// Its number in the file, from 1.
    pub(crate) number: usize,
    /// What its author calls it, unique in the file.
    pub(crate) custom_id: String,
    /// The model.
    pub(crate) model: ModelName,
    /// Which response it gets.
    pub(crate) shape: Shape,
    /// Length of its body.
    pub(crate) body_bytes: usize,
    offset: u64,
    bytes: usize,
    hash: blake3::Hash,
}

/// A checked file. Bodies stay on the disk until they are published.
#[derive(Debug)]
pub(crate) struct BatchFile {
    /// Where it is.
    pub(crate) path: PathBuf,
    /// The hash of all its bytes.
    pub(crate) content: blake3::Hash,
    /// The requests, in order.
    pub(crate) lines: Vec<Line>,
    file: File,
}

impl BatchFile {
    /// Reads and checks a file whose bodies may have so many bytes.
    ///
    /// # Errors
    /// [`BatchError`], with every fault.
    pub(crate) fn read(path: &Path, body_bytes_max: usize) -> Result<Self, BatchError> {
        let unreadable = |source| BatchError::Unreadable {
            path: path.to_owned(),
            source,
        };
        let file = File::open(path).map_err(unreadable)?;
        let mut scan = Scan::new(body_bytes_max);
        scan.run(&file).map_err(unreadable)?;
        if scan.lines.is_empty() && scan.faults.is_empty() {
            scan.fault(1, "", "there is no request in the file");
        }
        if !scan.faults.is_empty() {
            return Err(BatchError::Faults {
                path: path.to_owned(),
                faults: scan.faults,
                more: scan.more,
            });
        }
        Ok(Self {
            path: path.to_owned(),
            content: scan.hasher.finalize(),
            lines: scan.lines,
            file,
        })
    }

    /// Refuses bodies that a server does not take.
    ///
    /// # Errors
    /// [`BatchError::Faults`].
    pub(crate) fn check_sizes(&self, message_bytes_max: usize) -> Result<(), BatchError> {
        let bytes_max = message_bytes_max.saturating_sub(HEADERS_BYTES_MAX);
        let too_large = self.lines.iter().filter(|line| line.body_bytes > bytes_max);
        let mut faults: Vec<Fault> = too_large
            .map(|line| Fault {
                line: line.number,
                field: "body".to_owned(),
                problem: format!(
                    "has {} bytes, the server takes at most {bytes_max} (max_payload)",
                    line.body_bytes
                ),
            })
            .collect();
        if faults.is_empty() {
            return Ok(());
        }
        let more = faults.len().saturating_sub(FAULTS_MAX);
        faults.truncate(FAULTS_MAX);
        Err(BatchError::Faults {
            path: self.path.clone(),
            faults,
            more,
        })
    }

    /// The body of a line, as it was when it was checked.
    ///
    /// # Errors
    /// [`BatchError::Unreadable`] or [`BatchError::Changed`].
    pub(crate) fn body(&self, line: &Line) -> Result<Bytes, BatchError> {
        let mut text = vec![0; line.bytes];
        let read = self.file.read_exact_at(&mut text, line.offset);
        let changed = || BatchError::Changed {
            path: self.path.clone(),
            line: line.number,
        };
        match read {
            Ok(()) if blake3::hash(&text) == line.hash => {}
            Err(source) if source.kind() != io::ErrorKind::UnexpectedEof => {
                let path = self.path.clone();
                return Err(BatchError::Unreadable { path, source });
            }
            Ok(()) | Err(_) => return Err(changed()),
        }
        let mut fields: Map<String, Value> = serde_json::from_slice(&text).map_err(|_| changed())?;
        let body = fields.remove("body").ok_or_else(changed)?;
        Ok(body.to_string().into())
    }
}

/// A file that is being checked.
struct Scan {
    body_bytes_max: usize,
    lines: Vec<Line>,
    /// Where each `custom_id` was seen, by its hash.
    seen: HashMap<[u8; 32], usize>,
    faults: Vec<Fault>,
    more: usize,
    hasher: blake3::Hasher,
}

impl Scan {
    fn new(body_bytes_max: usize) -> Self {
        Self {
            body_bytes_max,
            lines: Vec::new(),
            seen: HashMap::new(),
            faults: Vec::new(),
            more: 0,
            hasher: blake3::Hasher::new(),
        }
    }

    fn run(&mut self, file: &File) -> io::Result<()> {
        let bytes_max = self.body_bytes_max.saturating_add(ENVELOPE_BYTES_MAX);
        let mut reader = BufReader::new(file);
        let (mut offset, mut text) = (0, Vec::new());
        for number in 1.. {
            let bytes = self.next_line(&mut reader, &mut text, bytes_max)?;
            if bytes == 0 {
                break;
            }
            if text.len() > bytes_max {
                self.fault(number, "", format!("has more than {bytes_max} bytes"));
            } else if !text.trim_ascii().is_empty() {
                self.check(number, offset, &text);
            }
            if self.lines.len() > LINES_MAX {
                let problem = format!("more than {LINES_MAX} requests; split the file");
                self.fault(number, "", problem);
                break;
            }
            offset += bytes as u64;
        }
        Ok(())
    }

    /// Reads a line with its end into `text`, but of one that is too long no more than shows that; returns how long it
    /// is.
    fn next_line(
        &mut self,
        reader: &mut impl BufRead,
        text: &mut Vec<u8>,
        bytes_max: usize,
    ) -> io::Result<usize> {
        text.clear();
        let mut bytes = 0;
        loop {
            let chunk = reader.fill_buf()?;
            let end = chunk.iter().position(|&byte| byte == b'\n');
            let taken = end.map_or(chunk.len(), |end| end + 1);
            let chunk = &chunk[..taken];
            if text.len() <= bytes_max {
                text.extend_from_slice(chunk);
            }
            self.hasher.update(chunk);
            bytes += taken;
            reader.consume(taken);
            if end.is_some() || taken == 0 {
                return Ok(bytes);
            }
        }
    }

    fn check(&mut self, number: usize, offset: u64, text: &[u8]) {
        let fields: Map<String, Value> = match serde_json::from_slice(text) {
            Ok(fields) => fields,
            Err(error) => return self.fault(number, "", format!("is no JSON object: {error}")),
        };
        let before = self.faults.len() + self.more;
        let unknown = fields.keys().filter(|key| !KEYS.contains(&key.as_str()));
        for key in unknown {
            self.fault(
                number,
                key,
                format!("unknown field; known are {}", KEYS.join(", ")),
            );
        }
        let custom_id = self.custom_id(number, fields.get("custom_id"));
        if fields.get("method") != Some(&Value::from("POST")) {
            self.fault(number, "method", "must be \"POST\"");
        }
        let url = self.url(number, fields.get("url"));
        let body = self.body(number, fields.get("body"), url);
        let is_good = self.faults.len() + self.more == before;
        if let (true, Some(custom_id), Some((model, shape, body_bytes))) = (is_good, custom_id, body) {
            self.lines.push(Line {
                number,
                custom_id,
                model,
                shape,
                body_bytes,
                offset,
                bytes: text.len(),
                hash: blake3::hash(text),
            });
        }
    }

    fn custom_id(&mut self, number: usize, value: Option<&Value>) -> Option<String> {
        let Some(text) = value.and_then(Value::as_str) else {
            self.fault(number, "custom_id", "missing, or no text");
            return None;
        };
        if text.is_empty() || text.len() > CUSTOM_ID_BYTES_MAX {
            let problem = format!("has {} bytes, allowed are 1 to {CUSTOM_ID_BYTES_MAX}", text.len());
            self.fault(number, "custom_id", problem);
            return None;
        }
        if let Some(first) = self.seen.insert(blake3::hash(text.as_bytes()).into(), number) {
            self.fault(
                number,
                "custom_id",
                format!("{text:?} was in line {first} already"),
            );
        }
        Some(text.to_owned())
    }

    fn url(&mut self, number: usize, value: Option<&Value>) -> Option<Shape> {
        let url = value.and_then(Value::as_str);
        let found = URLS.into_iter().find(|(known, _)| Some(*known) == url);
        if found.is_none() {
            let known = URLS.map(|(known, _)| known).join(", ");
            self.fault(number, "url", format!("must be one of {known}"));
        }
        found.map(|(_, shape)| shape)
    }

    fn model(&mut self, number: usize, value: Option<&Value>) -> Option<ModelName> {
        let problem = match value.and_then(Value::as_str).map(ModelName::new) {
            Some(Ok(model)) => return Some(model),
            Some(Err(error)) => error.to_string(),
            None => "missing, or no text".to_owned(),
        };
        self.fault(number, "body.model", problem);
        None
    }

    fn body(
        &mut self,
        number: usize,
        value: Option<&Value>,
        url: Option<Shape>,
    ) -> Option<(ModelName, Shape, usize)> {
        let Some(body @ Value::Object(fields)) = value else {
            self.fault(number, "body", "missing, or no JSON object");
            return None;
        };
        let model = self.model(number, fields.get("model"))?;
        let text = body.to_string();
        let request = InferenceRequest::decode(&model, Encoding::Json, text.as_bytes(), self.body_bytes_max);
        let request = match request {
            Ok(request) => request,
            Err(RequestError { message, param, .. }) => {
                let field = param.map_or_else(|| "body".to_owned(), |param| format!("body.{param}"));
                self.fault(number, &field, message);
                return None;
            }
        };
        if request.cancel_on_disconnect {
            let problem = "would end the request while nobody collects answers; leave it out";
            self.fault(number, "body.cancel_on_disconnect", problem);
        }
        let shape = Shape::of(&request.input);
        if url.is_some_and(|url| url != shape) {
            let field = request.input.field();
            self.fault(number, "url", format!("is not the one for a body with {field:?}"));
        }
        Some((model, shape, text.len()))
    }

    fn fault(&mut self, line: usize, field: &str, problem: impl Into<String>) {
        if self.faults.len() == FAULTS_MAX {
            self.more += 1;
            return;
        }
        self.faults.push(Fault {
            line,
            field: field.to_owned(),
            problem: problem.into(),
        });
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.field.as_str() {
            "" => write!(f, "line {}: {}", self.line, self.problem),
            field => write!(f, "line {}, {field}: {}", self.line, self.problem),
        }
    }
}

fn list(faults: &[Fault], more: usize) -> String {
    let mut text: String = faults.iter().map(|fault| format!("\n  {fault}")).collect();
    if more > 0 {
        text.push_str(&format!("\n  and {more} more faults"));
    }
    text
}

const KEYS: [&str; 4] = ["custom_id", "method", "url", "body"];
const URLS: [(&str, Shape); 3] = [
    ("/v1/chat/completions", Shape::Chat),
    ("/v1/completions", Shape::Completion),
    ("/v1/embeddings", Shape::Embeddings),
];
/// Requests of one batch, five times what OpenAI takes: each costs some hundred bytes of memory.
const LINES_MAX: usize = 250_000;
/// Faults that are told; a file with more of them is wrong everywhere.
const FAULTS_MAX: usize = 100;
/// More than any name that a person or a database gives.
const CUSTOM_ID_BYTES_MAX: usize = 512;
/// What a line may have beside its body, and what writing that in another way may save.
const ENVELOPE_BYTES_MAX: usize = 64 << 10;
/// Headers of a published request.
const HEADERS_BYTES_MAX: usize = 1 << 10;

#[cfg(test)]
mod tests;
