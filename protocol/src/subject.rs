//! Subjects, streams and buckets of one namespace, and model names as subject tokens.

use thiserror::Error;

use crate::ids::{Class, IdError, ModelName, Namespace, RequestId, WorkerId};
use crate::weights::{Generation, Root};

/// Why a subject is not one of ours.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SubjectError {
    /// The tokens do not have the expected shape.
    #[error("the subject is not of the form {expected}")]
    Shape {
        /// The form, with its variable parts in angle brackets.
        expected: &'static str,
    },
    /// A token is not the id that belongs there.
    #[error(transparent)]
    Id(#[from] IdError),
    /// A model token holds an escape that is not `=` and two hexadecimal digits, or not UTF-8.
    #[error("the model token {token:?} is not a valid encoding")]
    ModelToken {
        /// The token, cut to 64 characters.
        token: String,
    },
}

/// Writes any text as one subject token: every byte outside `[A-Za-z0-9_-]` becomes `=XX`.
#[must_use]
pub fn encode_token(text: &str) -> String {
    let mut token = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_') {
            token.push(char::from(byte));
        } else {
            token.push_str(&format!("={byte:02X}"));
        }
    }
    token
}

/// Reads a token back into the text that [`encode_token`] wrote.
///
/// # Errors
/// [`SubjectError::ModelToken`] when an escape is broken or the bytes are not UTF-8.
pub fn decode_token(token: &str) -> Result<String, SubjectError> {
    let broken = || SubjectError::ModelToken {
        token: token.chars().take(64).collect(),
    };
    let mut bytes = Vec::with_capacity(token.len());
    let mut rest = token.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'=' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || {
            rest.next()
                .and_then(|b| char::from(b).to_digit(16))
                .ok_or_else(broken)
        };
        let value = digit()? * 16 + digit()?;
        bytes.push(u8::try_from(value).map_err(|_| broken())?);
    }
    String::from_utf8(bytes).map_err(|_| broken())
}

/// Every name that one namespace uses in NATS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subjects {
    namespace: Namespace,
}

impl Subjects {
    /// Names under a namespace.
    #[must_use]
    pub fn new(namespace: Namespace) -> Self {
        Self { namespace }
    }

    /// The namespace.
    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    fn upper(&self, suffix: &str) -> String {
        format!("{}_{suffix}", self.namespace.as_str().to_ascii_uppercase())
    }

    fn under(&self, rest: std::fmt::Arguments<'_>) -> String {
        format!("{}.{rest}", self.namespace)
    }

    /// Work-queue stream of requests.
    #[must_use]
    pub fn requests_stream(&self) -> String {
        self.upper("REQUESTS")
    }

    /// Stream of the requests' events.
    #[must_use]
    pub fn journal_stream(&self) -> String {
        self.upper("JOURNAL")
    }

    /// Stream of dead letters.
    #[must_use]
    pub fn dead_stream(&self) -> String {
        self.upper("DEAD")
    }

    /// KV bucket or object store, e.g. `flotilla_models` for `models`.
    #[must_use]
    pub fn bucket(&self, name: &str) -> String {
        format!("{}_{name}", self.namespace)
    }

    /// Where a client publishes a request.
    #[must_use]
    pub fn request(&self, class: Class, model: &ModelName) -> String {
        self.under(format_args!("request.{class}.{}", encode_token(model.as_str())))
    }

    /// Every request of a class.
    #[must_use]
    pub fn requests_of(&self, class: Class) -> String {
        self.under(format_args!("request.{class}.*"))
    }

    /// Every request.
    #[must_use]
    pub fn requests_all(&self) -> String {
        self.under(format_args!("request.*.*"))
    }

    /// Reads a request's subject.
    ///
    /// # Errors
    /// [`SubjectError`] when it is not `<namespace>.request.<class>.<model>`.
    pub fn parse_request(&self, subject: &str) -> Result<(Class, ModelName), SubjectError> {
        let shape = SubjectError::Shape {
            expected: "<namespace>.request.<class>.<model>",
        };
        let tokens: Vec<&str> = subject.split('.').collect();
        let [namespace, "request", class, model] = tokens[..] else {
            return Err(shape);
        };
        if namespace != self.namespace.as_str() {
            return Err(shape);
        }
        Ok((class.parse()?, ModelName::new(decode_token(model)?)?))
    }

    /// Where the events of one request are stored.
    #[must_use]
    pub fn journal(&self, request: &RequestId) -> String {
        self.under(format_args!("journal.{request}"))
    }

    /// Every journal.
    #[must_use]
    pub fn journal_all(&self) -> String {
        self.under(format_args!("journal.>"))
    }

    /// Where a client listens: what the journal stored is republished here, progress is published here.
    #[must_use]
    pub fn events(&self, request: &RequestId) -> String {
        self.under(format_args!("events.{request}"))
    }

    /// All of [`Subjects::events`]: where the journal is republished to.
    #[must_use]
    pub fn events_all(&self) -> String {
        self.under(format_args!("events.>"))
    }

    /// Asks the leading dispatcher to have the server send a request's journal, for those who may not ask the server.
    #[must_use]
    pub fn replay(&self, request: &RequestId) -> String {
        self.under(format_args!("replay.{request}"))
    }

    /// The endpoint that serves all of [`Subjects::replay`].
    #[must_use]
    pub fn replay_all(&self) -> String {
        self.under(format_args!("replay.>"))
    }

    /// Reads the request out of a subject of [`Subjects::replay`].
    ///
    /// # Errors
    /// [`SubjectError`] when it is not `<namespace>.replay.<request>`.
    pub fn parse_replay(&self, subject: &str) -> Result<RequestId, SubjectError> {
        self.parse_of_request(subject, ".replay.", "<namespace>.replay.<request>")
    }

    /// Asks the leading dispatcher whether a request is still to be answered, for those who may not look into the queue.
    #[must_use]
    pub fn standing(&self, request: &RequestId) -> String {
        self.under(format_args!("standing.{request}"))
    }

    /// The endpoint that serves all of [`Subjects::standing`].
    #[must_use]
    pub fn standing_all(&self) -> String {
        self.under(format_args!("standing.>"))
    }

    /// Reads the request out of a subject of [`Subjects::standing`].
    ///
    /// # Errors
    /// [`SubjectError`] when it is not `<namespace>.standing.<request>`.
    pub fn parse_standing(&self, subject: &str) -> Result<RequestId, SubjectError> {
        self.parse_of_request(subject, ".standing.", "<namespace>.standing.<request>")
    }

    fn parse_of_request(
        &self,
        subject: &str,
        middle: &str,
        expected: &'static str,
    ) -> Result<RequestId, SubjectError> {
        let rest = subject.strip_prefix(self.namespace.as_str());
        let rest = rest.and_then(|rest| rest.strip_prefix(middle));
        Ok(RequestId::new(rest.ok_or(SubjectError::Shape { expected })?)?)
    }

    /// Where a dead request is copied to.
    #[must_use]
    pub fn dead(&self, class: Class, model: &ModelName) -> String {
        self.under(format_args!("dead.{class}.{}", encode_token(model.as_str())))
    }

    /// Where a message goes that is no request at all: its subject cannot be read.
    #[must_use]
    pub fn dead_unreadable(&self) -> String {
        self.under(format_args!("dead.unreadable.unknown"))
    }

    /// Every dead letter.
    #[must_use]
    pub fn dead_all(&self) -> String {
        self.under(format_args!("dead.*.*"))
    }

    /// Every dead letter of one model.
    #[must_use]
    pub fn dead_of(&self, model: &ModelName) -> String {
        self.under(format_args!("dead.*.{}", encode_token(model.as_str())))
    }

    /// Reports of one worker.
    #[must_use]
    pub fn report(&self, worker: &WorkerId) -> String {
        self.under(format_args!("report.{worker}"))
    }

    /// Reports of all workers.
    #[must_use]
    pub fn reports_all(&self) -> String {
        self.under(format_args!("report.*"))
    }

    /// Asks every worker for a report at once; a new leader publishes it.
    #[must_use]
    pub fn report_now(&self) -> String {
        self.under(format_args!("report_now"))
    }

    /// Assignments to one worker, request-reply.
    #[must_use]
    pub fn assign(&self, worker: &WorkerId) -> String {
        self.under(format_args!("worker.{worker}.assign"))
    }

    /// Cancellations to one worker.
    #[must_use]
    pub fn worker_cancel(&self, worker: &WorkerId) -> String {
        self.under(format_args!("worker.{worker}.cancel"))
    }

    /// Orders to one worker, request-reply.
    #[must_use]
    pub fn control(&self, worker: &WorkerId) -> String {
        self.under(format_args!("worker.{worker}.control"))
    }

    /// Questions for weights to one worker, request-reply.
    #[must_use]
    pub fn copy_ask(&self, worker: &WorkerId) -> String {
        self.under(format_args!("worker.{worker}.copy"))
    }

    /// What the sender of a copy tells its receivers.
    #[must_use]
    pub fn copy_news(&self, root: Root, generation: Generation) -> String {
        self.under(format_args!("copy.{root}.{generation}.news"))
    }

    /// What the receivers of a copy tell its sender.
    #[must_use]
    pub fn copy_have(&self, root: Root, generation: Generation) -> String {
        self.under(format_args!("copy.{root}.{generation}.have"))
    }

    /// Ends of attempts, from workers to the dispatcher.
    #[must_use]
    pub fn done(&self) -> String {
        self.under(format_args!("done"))
    }

    /// Cancellations from clients.
    #[must_use]
    pub fn cancel(&self) -> String {
        self.under(format_args!("cancel"))
    }

    /// Whole answers by request-reply.
    #[must_use]
    pub fn infer(&self, model: &ModelName) -> String {
        self.under(format_args!("infer.{}", encode_token(model.as_str())))
    }

    /// The endpoint that serves all of [`Subjects::infer`].
    #[must_use]
    pub fn infer_all(&self) -> String {
        self.under(format_args!("infer.*"))
    }

    /// Reads the model out of a subject of [`Subjects::infer`].
    ///
    /// # Errors
    /// [`SubjectError`] when it is not `<namespace>.infer.<model>`.
    pub fn parse_infer(&self, subject: &str) -> Result<ModelName, SubjectError> {
        let shape = SubjectError::Shape {
            expected: "<namespace>.infer.<model>",
        };
        let rest = subject
            .strip_prefix(self.namespace.as_str())
            .and_then(|rest| rest.strip_prefix(".infer."));
        Ok(ModelName::new(decode_token(rest.ok_or(shape)?)?)?)
    }

    /// An endpoint for operators, e.g. `queue`.
    #[must_use]
    pub fn admin(&self, verb: &str) -> String {
        self.under(format_args!("admin.{verb}"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn subjects() -> Subjects {
        Subjects::new(Namespace::new("flotilla").unwrap())
    }

    #[test]
    fn model_names_of_the_wild_become_one_token() {
        assert_eq!(encode_token("org/llama3.1:8b"), "org=2Fllama3=2E1=3A8b");
        let model = ModelName::new("org/llama3.1:8b").unwrap();
        let subject = subjects().request(Class::Batch, &model);
        assert_eq!(subject, "flotilla.request.batch.org=2Fllama3=2E1=3A8b");
        assert_eq!(subjects().parse_request(&subject).unwrap(), (Class::Batch, model));
    }

    #[test]
    fn foreign_subjects_are_refused() {
        for bad in [
            "flotilla.request.batch",
            "other.request.batch.m",
            "flotilla.request.soon.m",
            "flotilla.request.batch.=Z",
        ] {
            assert!(subjects().parse_request(bad).is_err(), "{bad}");
        }
        assert!(subjects().parse_infer("flotilla.inferno.m").is_err());
    }

    #[test]
    fn streams_are_upper_case_and_buckets_keep_the_namespace() {
        assert_eq!(subjects().requests_stream(), "FLOTILLA_REQUESTS");
        assert_eq!(subjects().bucket("models"), "flotilla_models");
    }

    #[test]
    fn request_of_an_owner_has_subjects_that_a_server_can_keep_for_the_owner() {
        let request = RequestId::new("team-a.07").unwrap();
        assert_eq!(subjects().events(&request), "flotilla.events.team-a.07");
        assert_eq!(subjects().journal(&request), "flotilla.journal.team-a.07");
        let replay = subjects().replay(&request);
        assert_eq!(subjects().parse_replay(&replay).unwrap(), request);
        for bad in [
            "flotilla.replay.",
            "flotilla.replay.*",
            "flotilla.replay.a.b.c",
            "other.replay.a",
        ] {
            assert!(subjects().parse_replay(bad).is_err(), "{bad}");
        }
        let standing = subjects().standing(&request);
        assert_eq!(subjects().parse_standing(&standing).unwrap(), request);
        assert!(subjects().parse_standing(&replay).is_err());
    }

    proptest! {
        #[test]
        fn every_name_survives_its_token(name in "\\PC{1,40}") {
            prop_assume!(name.len() <= ModelName::BYTES_MAX);
            let token = encode_token(&name);
            prop_assert!(token.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_=".contains(&b)));
            prop_assert_eq!(decode_token(&token).unwrap(), name);
        }

        #[test]
        fn any_token_decodes_or_is_refused(token in ".*") {
            if let Ok(text) = decode_token(&token) {
                prop_assert_eq!(decode_token(&encode_token(&text)).unwrap(), text);
            }
        }
    }
}
