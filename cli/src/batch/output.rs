//! The answers of a batch in OpenAI's batch format, a line each, as they end.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::time::SystemTime;

use anyhow::bail;
use flotilla_client::{Answer, Response};
use flotilla_protocol::event::Failed;
use flotilla_protocol::{Owner, RequestId};
use serde::{Deserialize, Serialize};

use super::lines::LineFile;
use super::{BatchFile, BatchId, Line};
use crate::output;

/// Where answers are written to, and which are there.
#[derive(Debug)]
pub(crate) struct Output {
    /// `None` is standard output, which nobody can read back.
    file: Option<LineFile>,
    /// Indices of the lines of the batch that have their answer.
    written: HashSet<usize>,
}

/// What became of a request.
#[derive(Debug)]
pub(crate) enum Fate {
    /// Its answer ended, well or not.
    Ended(Box<Answer>),
    /// There will be none.
    Lost(Loss),
}

/// Why there is no answer to be had.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Loss {
    code: &'static str,
    message: String,
}

impl Loss {
    /// The journal was there and is not any more.
    pub(crate) fn removed() -> Self {
        Self {
            code: "journal_removed",
            message: "the request left the queue, and its journal is gone: it was removed for age or size \
                      (nats.journal_max_age_s, nats.journal_max_bytes) before it was collected"
                .to_owned(),
        }
    }

    /// A part of the journal is gone, or cannot be read.
    pub(crate) fn broken(message: String) -> Self {
        Self {
            code: "journal_broken",
            message,
        }
    }
}

/// How a written answer looks to its reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Written {
    /// It is an answer.
    Answered,
    /// It says why the request failed.
    Failed,
    /// It says why there is no answer.
    Lost,
}

#[derive(Debug, Serialize)]
struct OutputLine<'a> {
    id: String,
    custom_id: &'a str,
    response: Option<ResponseLine<'a>>,
    error: Option<Loss>,
}

#[derive(Debug, Serialize)]
struct ResponseLine<'a> {
    status_code: usize,
    request_id: &'a RequestId,
    body: Body,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Body {
    Response(Response),
    Failed(Failed),
}

/// What tells a written line from those of other batches.
#[derive(Debug, Deserialize)]
struct WrittenLine {
    id: String,
    custom_id: String,
}

impl Output {
    /// Standard output.
    pub(crate) fn standard() -> Self {
        Self {
            file: None,
            written: HashSet::new(),
        }
    }

    /// A file, which may have answers of the batch already.
    ///
    /// # Errors
    /// It cannot be used, another process writes it, or it has something else in it.
    pub(crate) fn open(
        path: &Path,
        batch: &BatchFile,
        id: &BatchId,
        owner: Option<&Owner>,
    ) -> anyhow::Result<Self> {
        let lines = batch.lines.iter().enumerate();
        let indices: HashMap<&str, usize> = lines
            .map(|(index, line)| (line.custom_id.as_str(), index))
            .collect();
        let mut written = HashSet::new();
        let file = LineFile::open(path, |number, text| {
            let line: Option<WrittenLine> = serde_json::from_str(text).ok();
            let index = line.and_then(|line| {
                let index = indices.get(line.custom_id.as_str());
                index.filter(|_| line.id == name(&id.request(owner, &line.custom_id)))
            });
            match index {
                Some(&index) => written.insert(index),
                None => bail!(
                    "line {number} is no answer of batch {id}; name another file with --output, or remove this one"
                ),
            };
            Ok(())
        })?;
        Ok(Self {
            file: Some(file),
            written,
        })
    }

    /// Whether a line of the batch has its answer.
    pub(crate) fn has(&self, index: usize) -> bool {
        self.written.contains(&index)
    }

    /// How many have.
    pub(crate) fn count(&self) -> usize {
        self.written.len()
    }

    /// Writes what became of a line of the batch.
    ///
    /// # Errors
    /// It cannot be written.
    ///
    /// # Panics
    /// It was written before.
    pub(crate) fn write(
        &mut self,
        index: usize,
        line: &Line,
        request: &RequestId,
        fate: Fate,
    ) -> anyhow::Result<Written> {
        assert!(self.written.insert(index), "{} is written once", line.custom_id);
        let (response, error, written) = match fate {
            Fate::Lost(loss) => (None, Some(loss), Written::Lost),
            Fate::Ended(answer) => {
                let (response, written) = response(line, request, *answer);
                (Some(response), None, written)
            }
        };
        let text = serde_json::to_string(&OutputLine {
            id: name(request),
            custom_id: &line.custom_id,
            response,
            error,
        })?;
        match &mut self.file {
            Some(file) => file.push(&text)?,
            None => output::line(text)?,
        }
        Ok(written)
    }

    /// Has everything written to the disk.
    ///
    /// # Errors
    /// The disk refuses.
    pub(crate) fn sync(&self) -> anyhow::Result<()> {
        self.file.as_ref().map_or(Ok(()), LineFile::sync)
    }
}

fn response<'a>(line: &Line, request: &'a RequestId, answer: Answer) -> (ResponseLine<'a>, Written) {
    let response = Response::new(request, &line.model, line.shape, answer, SystemTime::now());
    let (status_code, body, written) = match response {
        Ok(response) => (200, Body::Response(response), Written::Answered),
        Err(error) => (
            error.code.status(),
            Body::Failed(Failed { error }),
            Written::Failed,
        ),
    };
    let response = ResponseLine {
        status_code,
        request_id: request,
        body,
    };
    (response, written)
}

/// What OpenAI's API calls a request of a batch.
fn name(request: &RequestId) -> String {
    format!("batch_req_{request}")
}

#[cfg(test)]
mod tests {
    use flotilla_protocol::Attempt;
    use flotilla_protocol::event::{ErrorCode, FinishReason, Finished, RequestError, Timings, Usage};
    use serde_json::{Value, json};

    use super::*;

    fn answer(end: Result<Finished, RequestError>) -> Fate {
        Fate::Ended(Box::new(Answer {
            token_ids: vec![9],
            logprobs: Vec::new(),
            text: "4".to_owned(),
            attempts: Attempt(1),
            end,
        }))
    }

    fn finished() -> Finished {
        Finished {
            finish_reason: FinishReason::Stop,
            usage: Usage::new(3, 1),
            timings: Timings::default(),
            data: None,
        }
    }

    fn batch(folder: &Path) -> BatchFile {
        let path = folder.join("b.jsonl");
        let lines = ["a", "b", "c"].map(|custom_id| {
            let body = json!({"model": "m", "prompt": "x"});
            json!({"custom_id": custom_id, "method": "POST", "url": "/v1/completions", "body": body})
                .to_string()
        });
        std::fs::write(&path, lines.join("\n")).unwrap();
        BatchFile::read(&path, 1000).unwrap()
    }

    #[test]
    fn lines_have_the_shape_of_openai_and_are_known_again() {
        let folder = tempfile::tempdir().unwrap();
        let (batch, path) = (batch(folder.path()), folder.path().join("out.jsonl"));
        let id: BatchId = "nightly".parse().unwrap();
        let open = |id: &BatchId| Output::open(&path, &batch, id, None);
        let mut output = open(&id).unwrap();
        let refusal = RequestError {
            code: ErrorCode::UnknownModel,
            message: "no such model".into(),
            param: Some("model".into()),
        };
        let fates = [
            answer(Ok(finished())),
            answer(Err(refusal)),
            Fate::Lost(Loss::removed()),
        ];
        let mut told = Vec::new();
        for (index, fate) in fates.into_iter().enumerate() {
            let line = &batch.lines[index];
            let request = id.request(None, &line.custom_id);
            told.push(output.write(index, line, &request, fate).unwrap());
        }
        drop(output);
        assert_eq!(told, [Written::Answered, Written::Failed, Written::Lost]);
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let request = id.request(None, "a");
        assert_eq!(lines[0]["id"], format!("batch_req_{request}"));
        assert_eq!(lines[0]["response"]["status_code"], 200);
        assert_eq!(lines[0]["response"]["request_id"], request.as_str());
        assert_eq!(lines[0]["response"]["body"]["choices"][0]["text"], "4");
        assert_eq!(lines[0]["error"], Value::Null);
        assert_eq!(lines[1]["response"]["status_code"], 404);
        assert_eq!(lines[1]["response"]["body"]["error"]["code"], "unknown_model");
        assert_eq!(
            (&lines[2]["response"], &lines[2]["error"]["code"]),
            (&Value::Null, &json!("journal_removed"))
        );

        let output = open(&id).unwrap();
        assert_eq!((output.count(), output.has(2)), (3, true));
        drop(output);
        let error = format!("{:#}", open(&"other".parse().unwrap()).unwrap_err());
        assert!(error.contains("line 1 is no answer of batch other"), "{error}");
    }
}
