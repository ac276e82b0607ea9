//! Requests, profiles and catalog entries in a few words.

use std::time::Duration;

use flotilla_dispatcher_core::{Arrival, Origin, PromptCount};
use flotilla_protocol::catalog::{CatalogEntry, ModelFacts, ModelSource, ModelTask, Policy};
use flotilla_protocol::profile::{Profile, ProfileSource};
use flotilla_protocol::request::Slo;
use flotilla_protocol::{Class, Tenant};

use crate::shared::{arrival, model};

/// Weights of every model, in bytes of the simulated devices, unless its catalog entry says otherwise.
pub const WEIGHTS_BYTES: u64 = 10;

/// A request, and what will become of it on a worker.
#[derive(Clone)]
pub struct Ask {
    pub arrival: Arrival,
    /// How long it really takes; without, until the test ends it.
    pub takes: Option<Duration>,
    /// Tokens that its answer really has.
    pub answer_tokens: u32,
}

/// A request for the model `m` with 5 tokens that allows an answer of 16.
pub fn ask(id: &str) -> Ask {
    let arrival = arrival(id, 0);
    Ask {
        answer_tokens: arrival.output_tokens_max,
        arrival,
        takes: None,
    }
}

impl Ask {
    pub fn of(mut self, name: &str) -> Self {
        self.arrival.model = model(name);
        self
    }

    pub fn batch(mut self) -> Self {
        self.arrival.class = Class::Batch;
        self
    }

    pub fn tenant(mut self, name: &str) -> Self {
        self.arrival.tenant = Some(Tenant::new(name).unwrap());
        self
    }

    pub fn slo(mut self, slo: Slo) -> Self {
        self.arrival.slo = Some(slo);
        self
    }

    /// The whole answer is to be there so many seconds after the publish.
    pub fn within(self, seconds: f64) -> Self {
        self.slo(e2e(seconds))
    }

    pub fn deadline(mut self, seconds: f64) -> Self {
        self.arrival.deadline_in = Some(Duration::from_secs_f64(seconds));
        self
    }

    pub fn tokens(mut self, prompt: u32, answer: u32) -> Self {
        self.arrival.prompt_tokens = prompt;
        self.arrival.output_tokens_max = answer;
        self.answer_tokens = answer;
        self
    }

    pub fn answers(mut self, tokens: u32) -> Self {
        self.answer_tokens = tokens;
        self
    }

    pub fn aged(mut self, seconds: f64) -> Self {
        self.arrival.age = Duration::from_secs_f64(seconds);
        self
    }

    pub fn takes(mut self, seconds: f64) -> Self {
        self.takes = Some(Duration::from_secs_f64(seconds));
        self
    }

    pub fn estimated(mut self) -> Self {
        self.arrival.prompt_count = PromptCount::Estimated;
        self
    }

    pub fn seen_before(mut self) -> Self {
        self.arrival.origin = Origin::MaybeSeen;
        self
    }
}

pub fn e2e(seconds: f64) -> Slo {
    Slo {
        e2e_ms: Some(seconds * 1e3),
        ..Slo::default()
    }
}

/// What requests take on a device of a kind.
#[derive(Clone, Copy)]
pub struct Takes {
    /// Time of one at saturation.
    pub seconds: f64,
    /// Device time that it costs.
    pub work: f64,
}

/// A device on which an answer of [`ask`]'s length takes so many seconds, of which it runs so many at once.
pub fn flat(kind: &str, seconds: f64, at_once: f64) -> Profile {
    per_token(kind, seconds / f64::from(ANSWER_TOKENS), at_once)
}

/// A device on which each token of an answer takes so many seconds, whatever the prompt and whoever runs beside it.
pub fn per_token(kind: &str, seconds: f64, at_once: f64) -> Profile {
    let outputs: Vec<f64> = (0..12).map(f64::from).map(f64::exp2).collect();
    let takes = |output: f64, _| Takes {
        seconds: output * seconds,
        work: output * seconds / at_once,
    };
    Profile {
        tpot_by_batch: Some(vec![(1.0, seconds), (LONGEST, seconds)]),
        prefill_tokens_per_s: Some(1e9),
        ..grid(kind, &outputs, &[1.0, LONGEST], takes)
    }
}

/// A device of which is known what requests of these lengths take, by output and input.
pub fn grid(kind: &str, outputs: &[f64], inputs: &[f64], takes: impl Fn(f64, f64) -> Takes) -> Profile {
    let matrix = |figure: &dyn Fn(Takes) -> f64| -> Vec<Vec<f64>> {
        let row = |&output: &f64| inputs.iter().map(|&input| figure(takes(output, input))).collect();
        outputs.iter().map(row).collect()
    };
    Profile {
        gpu: kind.to_owned(),
        cost: 1.0,
        tputs: matrix(&|takes| 1.0 / takes.work),
        indexes: vec![outputs.to_vec(), inputs.to_vec()],
        created: 1.0,
        e2e: Some(matrix(&|takes| takes.seconds)),
        ttft: None,
        tpot: None,
        slos: None,
        tpot_by_batch: None,
        prefill_tokens_per_s: None,
        load_seconds_by_tier: None,
        samples: None,
        source: Some(ProfileSource::Measured),
    }
}

pub fn entry(name: &str) -> CatalogEntry {
    CatalogEntry {
        name: model(name),
        source: ModelSource::Folder("/m".into()),
        facts: ModelFacts {
            architecture: "A".into(),
            context_tokens_max: 1 << 20,
            vocabulary_size: 256,
            weights_bytes: WEIGHTS_BYTES,
            task: ModelTask::Generate,
        },
        root: None,
        slots: None,
        keep_alive: None,
        pin: false,
        slo: None,
        quantize: None,
        policy: None,
        output_tokens_prior: None,
    }
}

pub fn with_policy(name: &str, policy: Policy) -> CatalogEntry {
    CatalogEntry {
        policy: Some(policy),
        ..entry(name)
    }
}

/// Tokens of the answer to [`ask`].
const ANSWER_TOKENS: u32 = 16;
/// Longer than every request of these tests, in tokens.
const LONGEST: f64 = 1_048_576.0;
