//! A quiet load, and now and again some seconds of ten times as much.
//!
//! Two chats a second; a burst begins every 60 s and lasts 2 to 6 s. First tokens are due within 1.5 s, whole
//! answers at 60 ms a token beside that: what a burst leaves behind has to be worked off in an order.

use flotilla_protocol::Class;
use flotilla_protocol::request::Slo;

use super::{Length, Recipe, Source, TraceRequest, model};
use crate::random::Random;

pub(super) fn requests(recipe: &Recipe) -> Vec<TraceRequest> {
    let mut requests = Vec::new();
    let until_s = recipe.duration.as_secs_f64();
    let mut random = Random::new(recipe.seed, 0);
    let (base, burst) = (chat(recipe.rate), chat(recipe.rate * (BURST_TIMES - 1.0)));
    base.poisson(&mut random, 0.0, until_s, &mut requests);
    let mut begins_s = BURST_EVERY_S / 2.0;
    while begins_s < until_s {
        let ends_s = begins_s + f64::from(random.between(BURST_LEAST_S, BURST_MOST_S));
        burst.poisson(&mut random, begins_s, ends_s.min(until_s), &mut requests);
        begins_s += BURST_EVERY_S;
    }
    requests
}

fn chat(rate: f64) -> Source {
    Source {
        rate: 2.0 * rate,
        model: model("assistant"),
        tenant: None,
        class: Class::Interactive,
        prompt: Length::Between(100, 1_500),
        answer: Length::Around {
            median: 130.0,
            spread: 0.9,
            least: 16,
            most: 1_024,
        },
        output_tokens_max: 1_024,
        slo: Some(Slo {
            ttft_ms: Some(1_500.0),
            tpot_ms: Some(60.0),
            ..Slo::default()
        }),
        deadline: None,
    }
}

/// How much more a burst brings.
const BURST_TIMES: f64 = 10.0;
/// From one burst to the next, in seconds.
const BURST_EVERY_S: f64 = 60.0;
/// Shortest burst, in seconds.
const BURST_LEAST_S: u32 = 2;
/// Longest burst, in seconds.
const BURST_MOST_S: u32 = 6;
