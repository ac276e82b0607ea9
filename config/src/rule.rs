//! What a value on the wire may be, and the type it becomes.

use std::fmt::Display;
use std::path::PathBuf;
use std::time::Duration;

use figment::value::{Num, Value};
use serde::Serialize;

use crate::{Problem, Secret};

mod profile_files;
mod repos;
mod sockets;

pub use profile_files::ProfileFile;
pub(crate) use profile_files::ProfileFiles;
pub use repos::RepoPattern;
pub(crate) use repos::{RepoPatterns, WebAddress};
pub(crate) use sockets::SocketAddress;

/// How long an idle model stays resident after its last lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeepAlive {
    /// Unloaded when this time has passed.
    For(Duration),
    /// Stays until its memory is needed.
    UntilEvicted,
}

/// What runs the models of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum WorkerEngine {
    /// The machine's processor.
    Cpu,
    /// Nothing: answers are made up, and take the time that a profile says.
    Simulated,
}

/// Where a stream keeps its messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Storage {
    /// On disk; survives a restart of the server.
    File,
    /// In memory; faster, and lost with the server.
    Memory,
}

/// The least urgent events that are logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Only what somebody must act on.
    Error,
    /// Also what was degraded and handled.
    Warn,
    /// Also the life cycle of parts and requests.
    Info,
    /// Also decisions.
    Debug,
    /// Everything.
    Trace,
}

impl LogLevel {
    /// The level as a filter directive, such as `info`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

/// How a log line is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line, for collectors.
    Json,
}

/// How the words of a variable or flag are understood before a rule reads them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wording {
    /// As they stand: `0123` is a text.
    Text,
    /// As a number or truth value where they are one.
    Literal,
}

/// Whether a value may be shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Visibility {
    Shown,
    Hidden,
}

/// Turns a value as written into the type that code takes.
pub(crate) trait Rule {
    type Out;
    const WORDING: Wording = Wording::Literal;
    const VISIBILITY: Visibility = Visibility::Shown;

    fn parse(&self, value: &Value) -> Result<Self::Out, Problem>;
}

/// Any text but the empty one.
pub(crate) struct Text;

impl Rule for Text {
    type Out = String;
    const WORDING: Wording = Wording::Text;

    fn parse(&self, value: &Value) -> Result<String, Problem> {
        filled(value, "a text that is not empty").map(str::to_owned)
    }
}

/// Any text but the empty one, never shown.
pub(crate) struct Hidden;

impl Rule for Hidden {
    type Out = Secret;
    const WORDING: Wording = Wording::Text;
    const VISIBILITY: Visibility = Visibility::Hidden;

    fn parse(&self, value: &Value) -> Result<Secret, Problem> {
        let text = value.as_str().filter(|text| !text.is_empty());
        let text = text.ok_or_else(|| Problem::WrongKind {
            expected: "a text that is not empty".to_owned(),
            found: "something else (not shown, the setting is a secret)".to_owned(),
        })?;
        Ok(Secret::new(text.to_owned()))
    }
}

/// A path; relative ones are taken from the working directory.
pub(crate) struct FilePath;

impl Rule for FilePath {
    type Out = PathBuf;
    const WORDING: Wording = Wording::Text;

    fn parse(&self, value: &Value) -> Result<PathBuf, Problem> {
        filled(value, "a path").map(PathBuf::from)
    }
}

/// A name that can be one token of a subject.
pub(crate) struct Name {
    pub(crate) chars_max: usize,
}

impl Rule for Name {
    type Out = String;
    const WORDING: Wording = Wording::Text;

    fn parse(&self, value: &Value) -> Result<String, Problem> {
        let name = value.as_str().ok_or_else(|| wrong_kind("a name", value))?;
        let allowed = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        if name.is_empty() || name.len() > self.chars_max || !name.chars().all(allowed) {
            return Err(Problem::BadName {
                found: name.to_owned(),
                max: self.chars_max,
            });
        }
        Ok(name.to_owned())
    }
}

/// First token of the subjects of answers.
pub(crate) struct Inbox;

impl Rule for Inbox {
    type Out = String;
    const WORDING: Wording = Wording::Text;

    fn parse(&self, value: &Value) -> Result<String, Problem> {
        let name = Name { chars_max: 64 }.parse(value)?;
        if !name.starts_with(INBOX_PREFIX) {
            let expected = format!("a name that begins with {INBOX_PREFIX}");
            return Err(wrong_kind(&expected, value));
        }
        Ok(name)
    }
}

/// How the subjects of answers begin. Services answer nowhere else, so that nobody can have them publish to a subject that
/// the asker may not use.
pub const INBOX_PREFIX: &str = "_INBOX";

/// Addresses of servers of one cluster, separated by commas.
pub(crate) struct Addresses;

impl Rule for Addresses {
    type Out = Vec<String>;
    const WORDING: Wording = Wording::Text;

    fn parse(&self, value: &Value) -> Result<Vec<String>, Problem> {
        let list = value
            .as_str()
            .ok_or_else(|| wrong_kind("addresses separated by commas", value))?;
        let check = |(index, address): (usize, &str)| match address_fault(address) {
            None => Ok(address.to_owned()),
            Some(reason) => Err(Problem::BadAddress {
                position: index + 1,
                reason,
            }),
        };
        list.split(',').map(str::trim).enumerate().map(check).collect()
    }
}

/// A truth value.
pub(crate) struct Switch;

impl Rule for Switch {
    type Out = bool;

    fn parse(&self, value: &Value) -> Result<bool, Problem> {
        value.to_bool().ok_or_else(|| wrong_kind("true or false", value))
    }
}

/// One of a closed list of words.
pub(crate) struct Choice<T: 'static>(pub(crate) &'static [(&'static str, T)]);

impl<T: Copy> Rule for Choice<T> {
    type Out = T;
    const WORDING: Wording = Wording::Text;

    fn parse(&self, value: &Value) -> Result<T, Problem> {
        let found = value.as_str();
        let hit = self.0.iter().find(|(word, _)| Some(*word) == found);
        hit.map(|(_, choice)| *choice).ok_or_else(|| Problem::NotAChoice {
            found: described(value),
            choices: self.0.iter().map(|(word, _)| (*word).to_owned()).collect(),
        })
    }
}

/// A whole number of a closed list.
pub(crate) struct OneOf(pub(crate) &'static [usize]);

impl Rule for OneOf {
    type Out = usize;

    fn parse(&self, value: &Value) -> Result<usize, Problem> {
        let found = whole(value)?;
        let hit = self.0.iter().find(|choice| i128::try_from(**choice) == Ok(found));
        hit.copied().ok_or_else(|| Problem::NotAChoice {
            found: found.to_string(),
            choices: self.0.iter().map(ToString::to_string).collect(),
        })
    }
}

/// A whole number within bounds, both allowed.
pub(crate) struct Whole<T> {
    pub(crate) min: T,
    pub(crate) max: T,
}

impl<T: TryFrom<i128> + PartialOrd + Display> Rule for Whole<T> {
    type Out = T;

    fn parse(&self, value: &Value) -> Result<T, Problem> {
        self.bounded(whole(value)?)
    }
}

impl<T: TryFrom<i128> + PartialOrd + Display> Whole<T> {
    fn bounded(&self, found: i128) -> Result<T, Problem> {
        // A number that the type cannot hold is out of range like any other.
        T::try_from(found)
            .ok()
            .filter(|number| *number >= self.min && *number <= self.max)
            .ok_or_else(|| Problem::OutOfRange {
                found: found.to_string(),
                min: self.min.to_string(),
                max: self.max.to_string(),
            })
    }
}

/// A time in whole milliseconds, up to a day.
pub(crate) struct Millis {
    pub(crate) min: u64,
}

impl Rule for Millis {
    type Out = Duration;

    fn parse(&self, value: &Value) -> Result<Duration, Problem> {
        let max = DAY_S * 1000;
        let rule = Whole { min: self.min, max };
        rule.parse(value).map(Duration::from_millis)
    }
}

/// A time in whole seconds, up to a year.
pub(crate) struct Seconds {
    pub(crate) min: u64,
}

impl Rule for Seconds {
    type Out = Duration;

    fn parse(&self, value: &Value) -> Result<Duration, Problem> {
        let max = YEAR_S;
        let rule = Whole { min: self.min, max };
        rule.parse(value).map(Duration::from_secs)
    }
}

/// Whole seconds up to a year, or -1 for until evicted.
pub(crate) struct KeepAliveSeconds;

impl Rule for KeepAliveSeconds {
    type Out = KeepAlive;

    fn parse(&self, value: &Value) -> Result<KeepAlive, Problem> {
        let max = i64::try_from(YEAR_S).expect("a year of seconds is far below the limit");
        let seconds = Whole { min: -1, max }.parse(value)?;
        let kept = u64::try_from(seconds).map(Duration::from_secs);
        Ok(kept.map_or(KeepAlive::UntilEvicted, KeepAlive::For))
    }
}

/// A size: a whole number of bytes, or a text such as `"4GiB"`.
pub(crate) struct Bytes {
    pub(crate) min: u64,
    pub(crate) max: u64,
}

impl Rule for Bytes {
    type Out = u64;

    fn parse(&self, value: &Value) -> Result<u64, Problem> {
        let (min, max) = (self.min, self.max);
        Whole { min, max }.bounded(bytes(value)?)
    }
}

/// A size that must fit in an address space, written as [`Bytes`] are.
pub(crate) struct BytesInMemory {
    pub(crate) min: usize,
    pub(crate) max: usize,
}

impl Rule for BytesInMemory {
    type Out = usize;

    fn parse(&self, value: &Value) -> Result<usize, Problem> {
        let (min, max) = (self.min, self.max);
        Whole { min, max }.bounded(bytes(value)?)
    }
}

/// A part of a whole, above 0 and at most 1.
pub(crate) struct Fraction;

impl Rule for Fraction {
    type Out = f64;

    fn parse(&self, value: &Value) -> Result<f64, Problem> {
        let number = value
            .to_num()
            .ok_or_else(|| wrong_kind("a number above 0 and at most 1", value))?;
        let part = number.to_f64().or_else(|| small_whole(number));
        part.filter(|part| *part > 0.0 && *part <= 1.0)
            .ok_or_else(|| wrong_kind("a number above 0 and at most 1", value))
    }
}

/// A number within bounds, both allowed.
pub(crate) struct Number {
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Rule for Number {
    type Out = f64;

    fn parse(&self, value: &Value) -> Result<f64, Problem> {
        let wanted = format!("a number from {} to {}", self.min, self.max);
        let number = value.to_num().ok_or_else(|| wrong_kind(&wanted, value))?;
        let number = number.to_f64().or_else(|| small_whole(number));
        number
            .filter(|number| (self.min..=self.max).contains(number))
            .ok_or_else(|| wrong_kind(&wanted, value))
    }
}

/// The largest size that the server's signed 64-bit limits can hold.
pub(crate) const BYTES_MAX: u64 = i64::MAX.unsigned_abs();

const DAY_S: u64 = 24 * 3600;
const YEAR_S: u64 = 365 * DAY_S;

/// A value in words, for a fault. Only for settings that may be shown.
fn described(value: &Value) -> String {
    match value {
        Value::String(_, text) => format!("the text {text:?}"),
        Value::Char(_, letter) => format!("the text {:?}", letter.to_string()),
        Value::Bool(_, truth) => truth.to_string(),
        Value::Num(_, number) => number_words(*number),
        Value::Empty(..) => "nothing".to_owned(),
        Value::Dict(..) => "a table".to_owned(),
        Value::Array(..) => "a list".to_owned(),
    }
}

fn number_words(number: Num) -> String {
    match whole_of(number) {
        Some(whole) => whole.to_string(),
        None => number
            .to_f64()
            .map_or_else(|| "a number".to_owned(), |part| part.to_string()),
    }
}

fn wrong_kind(expected: &str, value: &Value) -> Problem {
    Problem::WrongKind {
        expected: expected.to_owned(),
        found: described(value),
    }
}

fn filled<'a>(value: &'a Value, expected: &str) -> Result<&'a str, Problem> {
    let text = value.as_str().filter(|text| !text.is_empty());
    text.ok_or_else(|| wrong_kind(expected, value))
}

fn whole(value: &Value) -> Result<i128, Problem> {
    let number = value.to_num().and_then(whole_of);
    number.ok_or_else(|| wrong_kind("a whole number", value))
}

/// The whole number that this is; `None` for a fraction, and for what only a `u128` holds.
pub(crate) fn whole_of(number: Num) -> Option<i128> {
    number
        .to_i128()
        .or_else(|| number.to_u128().and_then(|n| i128::try_from(n).ok()))
}

/// A whole number as a fraction, `None` where it is far beyond any.
fn small_whole(number: Num) -> Option<f64> {
    let whole = i32::try_from(whole_of(number)?).ok()?;
    Some(f64::from(whole))
}

/// The number of bytes in words, read as in a file: `512`, `512KiB`, `4 GiB`; `None` where it is not one.
#[must_use]
pub fn parse_bytes(text: &str) -> Option<u64> {
    bytes_of(text).and_then(|bytes| u64::try_from(bytes).ok())
}

fn bytes(value: &Value) -> Result<i128, Problem> {
    let found = match value.as_str() {
        Some(text) => bytes_of(text),
        None => value.to_num().and_then(whole_of),
    };
    let expected = "bytes, as a whole number or as \"512KiB\" or \"4GiB\"";
    found.ok_or_else(|| wrong_kind(expected, value))
}

/// The number of bytes in words, `None` where it is not one or too large. Reads `512`, `512KiB`, `4 GiB`; `1.5TiB` is refused, because sizes are whole.
fn bytes_of(text: &str) -> Option<i128> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor: i128 = match unit.trim() {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        "kB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        _ => return None,
    };
    number.parse::<i128>().ok()?.checked_mul(factor)
}

fn address_fault(address: &str) -> Option<&'static str> {
    let rest = match address.split_once("://") {
        Some(("nats" | "tls" | "ws" | "wss", rest)) => rest,
        Some(_) => return Some("has another scheme than nats, tls, ws or wss; use one of these"),
        None => address,
    };
    if rest.is_empty() {
        return Some("is empty; give host:port");
    }
    if rest.contains('@') {
        return Some(
            "holds credentials, which would be shown; give nats.user and nats.password, or nats.token, instead",
        );
    }
    let bad = |c: char| c.is_whitespace() || c.is_control();
    rest.contains(bad).then_some("holds a blank; give host:port")
}
