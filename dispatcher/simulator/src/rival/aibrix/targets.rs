//! The targets that an operator would have written into a model's profiles.

use std::collections::BTreeMap;

use flotilla_protocol::ModelName;
use flotilla_protocol::profile::ProfileSlos;
use flotilla_protocol::request::Slo;

use crate::run::Scenario;

/// Of each model the targets that all its requests have, if they have the same. A model whose requests differ
/// has none here: its profiles keep their own.
pub(super) fn agreed(scenario: &Scenario) -> BTreeMap<ModelName, ProfileSlos> {
    let mut of_model: BTreeMap<&ModelName, Option<Slo>> = BTreeMap::new();
    for request in &scenario.trace().requests {
        let model = scenario.fleet().model(&request.model);
        let slo = request.slo.or(model.and_then(|model| model.slo));
        let agreed = of_model.entry(&request.model).or_insert(slo);
        if *agreed != slo {
            *agreed = None;
        }
    }
    let agreed = of_model.into_iter();
    agreed
        .filter_map(|(model, slo)| Some((model.clone(), in_seconds(slo?))))
        .collect()
}

fn in_seconds(slo: Slo) -> ProfileSlos {
    let seconds = |ms: Option<f64>| ms.map(|ms| ms / MS_PER_S);
    ProfileSlos {
        e2e: seconds(slo.e2e_ms),
        ttft: seconds(slo.ttft_ms),
        tpot: seconds(slo.tpot_ms),
        tpat: seconds(slo.tpat_ms),
        ..ProfileSlos::default()
    }
}

const MS_PER_S: f64 = 1e3;
