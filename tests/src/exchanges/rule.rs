//! Which messages are disturbed, and how.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::timeout;

use super::wire::Message;
use crate::PATIENCE;

/// What is disturbed, and how.
#[derive(Debug, Clone)]
pub struct Rule {
    /// Of which messages: a subject, with the wildcards of NATS. Of answers it is the subject of the question.
    pub subject: String,
    /// Only those in whose headers or body this is to be found; empty for all.
    pub containing: String,
    /// Which side of the exchange.
    pub side: Side,
    /// What happens to it.
    pub fault: Fault,
    /// How often; `None` until the disturbance is dropped.
    pub times: Option<u32>,
}

/// A side of an exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// What the part publishes.
    Question,
    /// What the server, or another part by way of it, answers to what the part publishes; all messages of it.
    Answer,
    /// What is delivered to the part unasked: events, messages of consumers, changes, assignments.
    Delivery,
}

/// What happens to a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// It is lost.
    Silent,
    /// It comes so much later; what follows it does not wait.
    Late(Duration),
    /// It comes twice.
    Twice,
    /// The part gets this instead of an answer. A question does not reach the server; of an answer the server has done what
    /// was asked.
    Refused(Refusal),
}

/// What a server says when it does not do as asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// Nobody listens there, or JetStream is off.
    NoResponders,
    /// An error of JetStream, by its code.
    JetStream(u16, &'static str),
    /// A status with its description, as direct gets and pulls are refused.
    Status(u16, &'static str),
    /// The user may not. Nobody answers then; the server tells the connection.
    NotAllowed,
}

/// A disturbance under way; dropped, it ends.
#[derive(Debug)]
pub struct Disturbance {
    rules: Rules,
    number: u64,
    met: watch::Receiver<u32>,
}

/// The rules in force. A lock, since every connection's tasks look them up for each message, and tests change them.
#[derive(Debug, Clone, Default)]
pub(super) struct Rules {
    active: Arc<Mutex<Active>>,
}

#[derive(Debug, Default)]
struct Active {
    rules: Vec<Entry>,
    next: u64,
}

#[derive(Debug)]
struct Entry {
    number: u64,
    rule: Rule,
    met: watch::Sender<u32>,
}

impl Rule {
    /// Disturbs every message of a side under a subject.
    #[must_use]
    pub fn new(subject: &str, side: Side, fault: Fault) -> Self {
        Self {
            subject: subject.to_owned(),
            containing: String::new(),
            side,
            fault,
            times: None,
        }
    }

    /// Only so often.
    #[must_use]
    pub fn times(mut self, times: u32) -> Self {
        self.times = Some(times);
        self
    }

    /// Only what contains this.
    #[must_use]
    pub fn containing(mut self, text: &str) -> Self {
        text.clone_into(&mut self.containing);
        self
    }

    fn fits(&self, side: Side, message: &Message) -> bool {
        self.side == side && matches(&self.subject, &message.subject) && self.is_contained_in(message)
    }

    fn is_contained_in(&self, message: &Message) -> bool {
        let wanted = self.containing.as_bytes();
        wanted.is_empty()
            || message.subject.contains(&self.containing)
            || message.body.windows(wanted.len()).any(|found| found == wanted)
    }
}

impl Refusal {
    /// What the part gets; `None` when it listens to no answer.
    pub(super) fn told(&self, asked: &Message, number: Option<&str>) -> Option<Bytes> {
        let told = match self {
            Self::NotAllowed => {
                let subject = &asked.subject;
                format!("-ERR 'Permissions Violation for Publish to \"{subject}\"'\r\n")
            }
            Self::NoResponders => status(asked.reply.as_ref()?, number?, "503"),
            Self::Status(code, description) => {
                status(asked.reply.as_ref()?, number?, &format!("{code} {description}"))
            }
            Self::JetStream(code, description) => {
                let error = serde_json::json!({"code": 503, "err_code": code, "description": description});
                let body = serde_json::json!({"error": error}).to_string();
                let (reply, bytes) = (asked.reply.as_ref()?, body.len());
                format!("MSG {reply} {} {bytes}\r\n{body}\r\n", number?)
            }
        };
        Some(told.into())
    }
}

fn status(reply: &str, number: &str, status: &str) -> String {
    let headers = format!("NATS/1.0 {status}\r\n\r\n");
    let bytes = headers.len();
    format!("HMSG {reply} {number} {bytes} {bytes}\r\n{headers}\r\n")
}

impl Disturbance {
    /// How often the rule was applied.
    #[must_use]
    pub fn met(&self) -> u32 {
        *self.met.borrow()
    }

    /// Waits until the rule was applied so often.
    ///
    /// # Errors
    /// That does not happen in time: the exchange is not what the test takes it for.
    pub async fn wait_until_met(&mut self, times: u32) -> Result<()> {
        let met = self.met.wait_for(|met| *met >= times);
        let met = timeout(PATIENCE, met).await;
        met.context("nothing came that could be disturbed")??;
        Ok(())
    }
}

impl Drop for Disturbance {
    fn drop(&mut self) {
        let number = self.number;
        self.rules.lock().rules.retain(|entry| entry.number != number);
    }
}

impl Rules {
    pub(super) fn add(&self, rule: Rule) -> Disturbance {
        let mut active = self.lock();
        let number = active.next;
        active.next += 1;
        let sender = watch::Sender::new(0);
        let met = sender.subscribe();
        active.rules.push(Entry {
            number,
            rule,
            met: sender,
        });
        drop(active);
        Disturbance {
            rules: self.clone(),
            number,
            met,
        }
    }

    /// What happens to a message, which counts as having happened.
    pub(super) fn find(&self, side: Side, message: &Message) -> Option<Fault> {
        let active = self.lock();
        let is_left = |entry: &&Entry| entry.rule.times.is_none_or(|times| *entry.met.borrow() < times);
        let mut left = active.rules.iter().filter(is_left);
        let found = left.find(|entry| entry.rule.fits(side, message))?;
        found.met.send_modify(|met| *met += 1);
        Some(found.rule.fault.clone())
    }

    fn lock(&self) -> MutexGuard<'_, Active> {
        // Nothing that happens under the lock can be left half done.
        self.active.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a subject is one of those that a pattern with the wildcards `*` and `>` stands for.
pub(super) fn matches(pattern: &str, subject: &str) -> bool {
    let mut tokens = subject.split('.');
    for wanted in pattern.split('.') {
        match (wanted, tokens.next()) {
            (">", Some(_)) => return true,
            ("*", Some(_)) => {}
            (wanted, Some(found)) if wanted == found => {}
            _ => return false,
        }
    }
    tokens.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_stand_for_what_the_server_takes_them_for() {
        for (pattern, subject, expected) in [
            ("a.b", "a.b", true),
            ("a.b", "a.c", false),
            ("a.b", "a.b.c", false),
            ("a.b.c", "a.b", false),
            ("a.*", "a.b", true),
            ("a.*", "a.b.c", false),
            ("*.b", "a.b", true),
            ("a.>", "a", false),
            ("a.>", "a.b.c", true),
            (">", "a", true),
        ] {
            assert_eq!(matches(pattern, subject), expected, "{pattern} {subject}");
        }
    }

    #[test]
    fn rule_holds_as_often_as_it_says_and_ends_when_it_is_dropped() {
        let rules = Rules::default();
        let message = |body: &'static str| Message {
            subject: "a.b".to_owned(),
            reply: None,
            body: body.into(),
        };
        let twice = rules.add(
            Rule::new("a.*", Side::Question, Fault::Silent)
                .containing("x")
                .times(2),
        );
        let found = |body| rules.find(Side::Question, &message(body));
        assert_eq!(found("yyy"), None);
        assert_eq!(rules.find(Side::Answer, &message("x")), None);
        assert_eq!(found("yxy"), Some(Fault::Silent));
        let always = rules.add(Rule::new(">", Side::Question, Fault::Twice));
        assert_eq!(found("x"), Some(Fault::Silent), "the oldest counts");
        assert_eq!(found("x"), Some(Fault::Twice));
        assert_eq!((twice.met(), always.met()), (2, 1));
        drop(always);
        assert_eq!(found("x"), None);
    }
}
