//! Twice what the fleet can serve within the targets.
//!
//! Four tenants with very unequal rates (26, 6.6, 2.6 and 0.8 requests a second) send the same mix of four kinds of tasks, whose sizes
//! follow from `max_tokens`: labels (8 tokens within 1.5 s), chats (256 tokens, the first within 1 s), summaries of
//! long texts (128 tokens within 10 s, worthless after 20 s) and reports (1,024 tokens within 60 s, worthless after
//! 90 s, of class batch). At `--rate 0.5` the fleet that goes with
//! it serves 95 % of them within their targets, in order of arrival.

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
        .flat_map(|(name, rate)| tasks(name, rate * recipe.rate));
    for (stream, source) in (0..).zip(sources) {
        source.poisson(&mut Random::new(recipe.seed, stream), 0.0, until_s, &mut requests);
    }
    requests
}

/// The tasks of a tenant that sends so many requests a second.
fn tasks(name: &str, rate: f64) -> [Source; 4] {
    let label = Source {
        rate: 0.4 * rate,
        model: model("assistant"),
        tenant: tenant(name),
        class: Class::Interactive,
        prompt: Length::Between(200, 400),
        answer: Length::Between(4, 8),
        output_tokens_max: 8,
        slo: Some(whole_answer(1_500.0)),
        deadline: None,
    };
    let chat = Source {
        rate: 0.35 * rate,
        prompt: Length::Between(50, 600),
        answer: Length::Between(160, 256),
        output_tokens_max: 256,
        slo: Some(Slo {
            ttft_ms: Some(1_000.0),
            ..Slo::default()
        }),
        ..label.clone()
    };
    let summary = Source {
        rate: 0.2 * rate,
        prompt: Length::Between(2_000, 4_000),
        answer: Length::Between(96, 128),
        output_tokens_max: 128,
        slo: Some(whole_answer(10_000.0)),
        deadline: Some(Duration::from_secs(20)),
        ..label.clone()
    };
    let report = Source {
        rate: 0.05 * rate,
        class: Class::Batch,
        prompt: Length::Between(300, 500),
        answer: Length::Between(900, 1_024),
        output_tokens_max: 1_024,
        slo: Some(whole_answer(60_000.0)),
        deadline: Some(Duration::from_secs(90)),
        ..label.clone()
    };
    [label, chat, summary, report]
}

fn whole_answer(e2e_ms: f64) -> Slo {
    Slo {
        e2e_ms: Some(e2e_ms),
        ..Slo::default()
    }
}
