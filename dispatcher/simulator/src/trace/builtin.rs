//! The traces that come with the simulator, each a function of a [`Recipe`].

mod bursts;
mod composite;
mod long_tail;
mod overload;

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use flotilla_protocol::request::Slo;
use flotilla_protocol::{Class, ModelName, RequestId, Tenant};
use thiserror::Error;

use super::{Trace, TraceRequest};
use crate::random::Random;

/// A trace that comes with the simulator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BuiltinTrace {
    /// Short chats and long prompts, 7 to 4, on one slow and four fast devices. A policy that does not tell them
    /// apart misses the targets of a third.
    Composite,
    /// Twice what the fleet can serve within the targets, of tenants with very unequal rates.
    Overload,
    /// Twenty models of which one is asked for nearly always, on devices that hold three each.
    LongTail,
    /// A quiet load with seconds of ten times as much.
    Bursts,
}

/// No trace has this name.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("trace is {found:?}; give a file, or one of {}", BuiltinTrace::names())]
pub struct UnknownTrace {
    found: String,
}

/// What a built-in trace is made from: the same recipe makes the same requests.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Recipe {
    /// Of all that is random.
    pub seed: u64,
    /// Times the trace's own rates; above 0.
    pub rate: f64,
    /// How long requests are published.
    pub duration: Duration,
}

impl BuiltinTrace {
    /// Every built-in trace.
    pub const ALL: [Self; 4] = [Self::Composite, Self::Overload, Self::LongTail, Self::Bursts];

    /// Its name on the command line and in reports.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Composite => "composite",
            Self::Overload => "overload",
            Self::LongTail => "long-tail",
            Self::Bursts => "bursts",
        }
    }

    /// How long it is unless somebody says otherwise: long enough that a share of its requests is exact to about
    /// one in a hundred.
    #[must_use]
    pub const fn duration(self) -> Duration {
        Duration::from_secs(600)
    }

    /// Makes the requests.
    #[must_use]
    pub fn make(self, recipe: &Recipe) -> Trace {
        let mut requests = match self {
            Self::Composite => composite::requests(recipe),
            Self::Overload => overload::requests(recipe),
            Self::LongTail => long_tail::requests(recipe),
            Self::Bursts => bursts::requests(recipe),
        };
        requests.sort_by_key(|request| request.at);
        for (index, request) in requests.iter_mut().enumerate() {
            let id = RequestId::new(format!("{self}-{index:06}"));
            request.id = id.expect("names of traces are letters and dashes");
        }
        Trace {
            name: self.as_str().to_owned(),
            requests,
        }
    }

    fn names() -> String {
        Self::ALL.map(Self::as_str).join(", ")
    }
}

impl fmt::Display for BuiltinTrace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for BuiltinTrace {
    type Err = UnknownTrace;

    fn from_str(text: &str) -> Result<Self, UnknownTrace> {
        let found = Self::ALL.into_iter().find(|known| known.as_str() == text);
        found.ok_or_else(|| UnknownTrace {
            found: text.to_owned(),
        })
    }
}

/// Requests of one kind that come independently of each other.
#[derive(Debug, Clone)]
struct Source {
    /// Requests a second.
    rate: f64,
    model: ModelName,
    tenant: Option<Tenant>,
    class: Class,
    prompt: Length,
    answer: Length,
    output_tokens_max: u32,
    slo: Option<Slo>,
    deadline: Option<Duration>,
}

/// How many tokens something has.
#[derive(Debug, Clone, Copy)]
enum Length {
    /// Any number in between, each as likely.
    Between(u32, u32),
    /// Around a median, cut at both ends. `spread` is the standard deviation of the logarithm.
    Around {
        median: f64,
        spread: f64,
        least: u32,
        most: u32,
    },
}

impl Length {
    fn draw(self, random: &mut Random) -> u32 {
        match self {
            Self::Between(least, most) => random.between(least, most),
            Self::Around {
                median,
                spread,
                least,
                most,
            } => {
                let drawn = random.lognormal(median, spread);
                whole(drawn.clamp(f64::from(least), f64::from(most)))
            }
        }
    }
}

impl Source {
    /// Its requests from one moment to another, with independent gaps.
    fn poisson(&self, random: &mut Random, from_s: f64, until_s: f64, requests: &mut Vec<TraceRequest>) {
        let mut at_s = from_s;
        loop {
            at_s += random.gap_s(self.rate);
            if at_s >= until_s {
                return;
            }
            requests.push(self.request(random, at_s));
        }
    }

    fn request(&self, random: &mut Random, at_s: f64) -> TraceRequest {
        let answer = self.answer.draw(random).min(self.output_tokens_max);
        TraceRequest {
            // Whole microseconds read the same from a file.
            at: Duration::from_micros(micros(at_s)),
            id: unnamed(),
            tenant: self.tenant.clone(),
            class: self.class,
            model: self.model.clone(),
            prompt_tokens: self.prompt.draw(random),
            output_tokens: answer,
            output_tokens_max: self.output_tokens_max,
            slo: self.slo,
            deadline: self.deadline,
        }
    }
}

fn model(name: &str) -> ModelName {
    ModelName::new(name).expect("names of built-in models are letters and dashes")
}

fn tenant(name: &str) -> Option<Tenant> {
    Some(Tenant::new(name).expect("names of built-in tenants are letters"))
}

/// A request's name before all are in order.
fn unnamed() -> RequestId {
    RequestId::from_random(0)
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "lengths are between their limits, which are u32"
)]
fn whole(tokens: f64) -> u32 {
    tokens.round() as u32
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a trace of years has fewer microseconds than u64 counts"
)]
fn micros(seconds: f64) -> u64 {
    (seconds * 1e6).round() as u64
}
