//! Twice what the fleet can serve within the targets.
//!
//! Four tenants with very unequal rates (26, 6.6, 2.6 and 0.8 requests a second) send the same mix of four tasks,
//! whose sizes follow from `max_tokens`: labels (8 tokens within 1.5 s), chats (256 tokens, the first within 1 s),
//! summaries of long texts (128 tokens within 10 s, worthless after 20 s) and reports (1,024 tokens within 60 s,
//! worthless after 90 s, of class batch). At `--rate 0.5` the fleet that goes with it serves nearly all of them
//! within their targets even in order of arrival, at 0.55 no longer.

use std::time::Duration;

use flotilla_protocol::Class;
use flotilla_protocol::request::Slo;

use super::{Length, Recipe, Source, TraceRequest, model, tenant};
use crate::random::Random;

pub(super) fn requests(recipe: &Recipe) -> Vec<TraceRequest> {
    let mut requests = Vec::new();
    let until_s = recipe.duration.as_secs_f64();
    let tenants = [("whale", 26.0), ("shark", 6.6), ("trout", 2.6), ("shrimp", 0.8)];
    let sources = tenants
        .into_iter()
        .flat_map(|(name, rate)| sources(name, rate * recipe.rate));
    for (stream, source) in (0..).zip(sources) {
        source.poisson(&mut Random::new(recipe.seed, stream), 0.0, until_s, &mut requests);
    }
    requests
}

/// The requests of a tenant that sends so many a second, by task.
fn sources(name: &str, rate: f64) -> impl Iterator<Item = Source> {
    TASKS.iter().map(move |task| Source {
        rate: task.part * rate,
        model: model("assistant"),
        tenant: tenant(name),
        class: task.class,
        prompt: Length::Between(task.prompt.0, task.prompt.1),
        // Clients that know their task ask for little more than they get.
        answer: Length::Between(task.output_tokens_max / 4 * 3, task.output_tokens_max),
        output_tokens_max: task.output_tokens_max,
        slo: Some(task.slo),
        deadline: task.deadline_s.map(Duration::from_secs),
    })
}

/// A kind of requests.
struct Task {
    /// Its part of a tenant's requests.
    part: f64,
    class: Class,
    /// Shortest and longest.
    prompt: (u32, u32),
    output_tokens_max: u32,
    slo: Slo,
    deadline_s: Option<u64>,
}

const NO_SLO: Slo = Slo {
    e2e_ms: None,
    ttft_ms: None,
    tpot_ms: None,
    tpat_ms: None,
};

const TASKS: [Task; 4] = [
    Task {
        part: 0.4,
        class: Class::Interactive,
        prompt: (200, 400),
        output_tokens_max: 8,
        slo: Slo {
            e2e_ms: Some(1_500.0),
            ..NO_SLO
        },
        deadline_s: None,
    },
    Task {
        part: 0.35,
        class: Class::Interactive,
        prompt: (50, 600),
        output_tokens_max: 256,
        slo: Slo {
            ttft_ms: Some(1_000.0),
            ..NO_SLO
        },
        deadline_s: None,
    },
    Task {
        part: 0.2,
        class: Class::Interactive,
        prompt: (2_000, 4_000),
        output_tokens_max: 128,
        slo: Slo {
            e2e_ms: Some(10_000.0),
            ..NO_SLO
        },
        deadline_s: Some(20),
    },
    Task {
        part: 0.05,
        class: Class::Batch,
        prompt: (300, 500),
        output_tokens_max: 1_024,
        slo: Slo {
            e2e_ms: Some(60_000.0),
            ..NO_SLO
        },
        deadline_s: Some(90),
    },
];
