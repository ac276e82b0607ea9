//! Twenty models, one of which is asked for nearly always: the other nineteen share 1.4 % of the requests.
//!
//! The published shape of a provider's load (94 % of the models get 1.4 % of the requests). Answers of the hot
//! model have 60 ms for each token; those of the others 45 s in all, which a load from its origin leaves time for. The
//! hot model needs nine tenths of all four devices, so that evicting it from one of them is soon felt.

use flotilla_protocol::Class;
use flotilla_protocol::request::Slo;

use super::{Length, Recipe, Source, TraceRequest, model};
use crate::random::Random;

pub(super) fn requests(recipe: &Recipe) -> Vec<TraceRequest> {
    let mut requests = Vec::new();
    let until_s = recipe.duration.as_secs_f64();
    let hot = hot(recipe.rate);
    let tail = (1..=TAIL_COUNT).map(|number| Source {
        rate: hot.rate * TAIL_SHARE / (1.0 - TAIL_SHARE) / f64::from(TAIL_COUNT),
        model: model(&format!("tail-{number:02}")),
        slo: Some(Slo {
            e2e_ms: Some(45_000.0),
            ..Slo::default()
        }),
        ..hot.clone()
    });
    for (stream, source) in (0..).zip([hot.clone()].into_iter().chain(tail)) {
        source.poisson(&mut Random::new(recipe.seed, stream), 0.0, until_s, &mut requests);
    }
    requests
}

fn hot(rate: f64) -> Source {
    let length = Length::Around {
        median: 130.0,
        spread: 0.9,
        least: 16,
        most: 1_024,
    };
    Source {
        rate: 14.0 * rate,
        model: model("hot"),
        tenant: None,
        class: Class::Interactive,
        prompt: length,
        answer: length,
        output_tokens_max: 1_024,
        slo: Some(Slo {
            tpot_ms: Some(60.0),
            ..Slo::default()
        }),
        deadline: None,
    }
}

/// Models beside the hot one.
const TAIL_COUNT: u32 = 19;
/// Their share of all requests.
const TAIL_SHARE: f64 = 0.014;
