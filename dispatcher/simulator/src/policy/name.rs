//! The policies by name.

use std::fmt;
use std::str::FromStr;

use flotilla_protocol::catalog;
use thiserror::Error;

use super::Flotilla;
use crate::outcome::Outcome;
use crate::rival::{Aibrix, LeastRequest, Lru, Ollama, Picker, RandomPod, for_ollama};
use crate::run::{Scenario, run};

/// A policy that can be simulated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PolicyName {
    /// The real dispatcher: the cheapest worker that meets the target.
    Slo,
    /// The real dispatcher: the fullest worker that the request still fits on.
    Pack,
    /// The real dispatcher: the emptiest worker.
    Spread,
    /// The real dispatcher: in order of arrival, wherever a slot is free.
    Fifo,
    /// The real dispatcher, each model placed as the fleet's catalog says.
    Catalog,
    /// AIBrix's router, the least loaded pod first.
    AibrixSlo,
    /// AIBrix's router, the most loaded pod first.
    AibrixPack,
    /// The server with the fewest requests.
    LeastRequest,
    /// Any server.
    Random,
    /// Ollama's scheduler.
    Ollama,
    /// A cache of models.
    Lru,
}

/// No policy has this name.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("policy is {found:?}; give one of {}, or all", PolicyName::names())]
pub struct UnknownPolicy {
    found: String,
}

impl PolicyName {
    /// Every policy, in the order of reports.
    pub const ALL: [Self; 11] = [
        Self::Slo,
        Self::Pack,
        Self::Spread,
        Self::Fifo,
        Self::Catalog,
        Self::AibrixSlo,
        Self::AibrixPack,
        Self::LeastRequest,
        Self::Random,
        Self::Ollama,
        Self::Lru,
    ];

    /// Its name on the command line and in reports.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Slo => "slo",
            Self::Pack => "pack",
            Self::Spread => "spread",
            Self::Fifo => "fifo",
            Self::Catalog => "catalog",
            Self::AibrixSlo => "aibrix-slo",
            Self::AibrixPack => "aibrix-pack",
            Self::LeastRequest => "least-request",
            Self::Random => "random",
            Self::Ollama => "ollama",
            Self::Lru => "lru",
        }
    }

    /// What it makes of a scenario; `seed` is that of policies that draw lots.
    #[must_use]
    pub fn simulate(self, scenario: &Scenario, seed: u64) -> Outcome {
        let fleet = scenario.fleet();
        let flotilla = |placement| run(scenario, &mut Flotilla::new(fleet, placement));
        match self {
            Self::Slo => flotilla(Some(catalog::Policy::Slo)),
            Self::Pack => flotilla(Some(catalog::Policy::Pack)),
            Self::Spread => flotilla(Some(catalog::Policy::Spread)),
            Self::Fifo => flotilla(Some(catalog::Policy::Fifo)),
            Self::Catalog => flotilla(None),
            Self::AibrixSlo => run(scenario, &mut Aibrix::before(scenario, Picker::LeastLoad, seed)),
            Self::AibrixPack => run(scenario, &mut Aibrix::before(scenario, Picker::PackLoad, seed)),
            Self::LeastRequest => run(scenario, &mut LeastRequest::before(fleet, seed)),
            Self::Random => run(scenario, &mut RandomPod::before(fleet, seed)),
            Self::Ollama => {
                let scenario = scenario.clone().on(for_ollama(fleet));
                run(&scenario, &mut Ollama::before(scenario.fleet(), seed))
            }
            Self::Lru => run(scenario, &mut Lru::before(fleet)),
        }
    }

    /// The names of all, for messages.
    #[must_use]
    pub fn names() -> String {
        Self::ALL.map(Self::as_str).join(", ")
    }
}

impl fmt::Display for PolicyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for PolicyName {
    type Err = UnknownPolicy;

    fn from_str(text: &str) -> Result<Self, UnknownPolicy> {
        let found = Self::ALL.into_iter().find(|name| name.as_str() == text);
        found.ok_or_else(|| UnknownPolicy {
            found: text.to_owned(),
        })
    }
}
