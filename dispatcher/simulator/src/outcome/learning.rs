//! What a policy that learns made of the time before it had, and of the rest.

use std::collections::BTreeMap;

use flotilla_protocol::{ModelName, Moment};

use super::{Outcome, Part, RequestRecord, meets_targets};
use crate::run::Scenario;

/// Requests that were decided before enough others had ended to correct a profile by, and all later ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Learning {
    /// Decided before.
    pub first: Part,
    /// Decided afterwards.
    pub later: Part,
}

impl Learning {
    /// Cuts an outcome, for each model on each kind of device, at the moment by which `count` of its requests had
    /// ended there. A request that was given to nobody counts by its publish and the first kind that was there.
    #[must_use]
    pub fn of(scenario: &Scenario, outcome: &Outcome, count: usize) -> Self {
        let learned = learned(scenario, outcome, count);
        let (mut first, mut later) = (Part::default(), Part::default());
        for (request, record) in scenario.trace().requests.iter().zip(&outcome.requests) {
            let of_model = scenario.fleet().model(&request.model).and_then(|model| model.slo);
            let decided = record.assigned.unwrap_or(record.published);
            let learned = match kind(scenario, record) {
                Some(kind) => learned.get(&(&record.model, kind)).copied(),
                None => {
                    let of_model = learned.iter().filter(|((model, _), _)| **model == record.model);
                    of_model.map(|(_, learned)| *learned).min()
                }
            };
            let part = match learned {
                Some(learned) if decided >= learned => &mut later,
                Some(_) | None => &mut first,
            };
            part.add(meets_targets(request, record, of_model));
        }
        Self { first, later }
    }
}

fn kind<'a>(scenario: &'a Scenario, record: &RequestRecord) -> Option<&'a str> {
    let device = scenario.fleet().device(record.worker.as_ref()?)?;
    Some(&device.kind)
}

/// When each pair of a model and a kind of devices had its `count` ends, if it ever had.
fn learned<'a>(
    scenario: &'a Scenario,
    outcome: &'a Outcome,
    count: usize,
) -> BTreeMap<(&'a ModelName, &'a str), Moment> {
    let mut ends: BTreeMap<(&ModelName, &str), Vec<Moment>> = BTreeMap::new();
    for record in &outcome.requests {
        if let (Some(kind), Some(ended)) = (kind(scenario, record), record.ended) {
            ends.entry((&record.model, kind)).or_default().push(ended);
        }
    }
    let learned = ends.into_iter().filter_map(|(pair, mut ends)| {
        ends.sort_unstable();
        let last_needed = ends.get(count.checked_sub(1)?)?;
        Some((pair, *last_needed))
    });
    learned.collect()
}
