//! The fleets of the built-in traces: files as anybody could write them, and the profiles that they name.

use std::collections::BTreeMap;
use std::sync::Arc;

use flotilla_profile::DeviceProfile;
use flotilla_protocol::profile::Profile;

use super::{FleetFile, FleetSpec};
use crate::trace::BuiltinTrace;

impl BuiltinTrace {
    /// The fleet that it is made for.
    #[must_use]
    pub fn fleet(self) -> FleetSpec {
        let text = match self {
            Self::Composite => include_str!("../../fleets/composite.toml"),
            Self::Overload => include_str!("../../fleets/overload.toml"),
            Self::LongTail => include_str!("../../fleets/long-tail.toml"),
            Self::Bursts => include_str!("../../fleets/bursts.toml"),
        };
        let fleet = FleetFile::parse(text).and_then(|file| file.into_fleet(&profiles()));
        fleet.expect("a test reads every file that is built in")
    }
}

/// The profiles that are built in, by their files.
fn profiles() -> BTreeMap<String, Arc<DeviceProfile>> {
    PROFILES
        .into_iter()
        .map(|(file, json)| {
            let profile = Profile::from_json(json.as_bytes());
            let profile = profile.expect("a test reads every profile that is built in");
            let profile = DeviceProfile::try_from(profile);
            let profile = profile.expect("a test checks every profile that is built in");
            (file.to_owned(), Arc::new(profile))
        })
        .collect()
}

const PROFILES: [(&str, &str); 2] = [
    ("fast.json", include_str!("../../profiles/fast.json")),
    ("slow.json", include_str!("../../profiles/slow.json")),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::Duration;

    use super::*;
    use crate::run::Scenario;
    use crate::trace::Recipe;

    #[test]
    fn every_built_in_trace_fits_its_fleet() {
        for built_in in BuiltinTrace::ALL {
            let recipe = Recipe {
                seed: 1,
                rate: 1.0,
                duration: Duration::from_secs(60),
            };
            let trace = built_in.make(&recipe);
            assert!(trace.requests.len() > 60, "{built_in}");
            Scenario::new(trace, built_in.fleet()).unwrap();
        }
    }

    #[test]
    fn models_of_the_long_tail_are_those_of_its_fleet() {
        let fleet = BuiltinTrace::LongTail.fleet();
        let recipe = Recipe {
            seed: 1,
            rate: 1.0,
            duration: Duration::from_secs(6_000),
        };
        let trace = BuiltinTrace::LongTail.make(&recipe);
        let models: BTreeSet<_> = fleet.models.iter().map(|model| &model.name).collect();
        assert_eq!(trace.models(), models);
        let hot = trace
            .requests
            .iter()
            .filter(|request| request.model.as_str() == "hot");
        let share = hot.count() as f64 / trace.requests.len() as f64;
        assert!((share - 0.986).abs() < 0.002, "{share}");
    }
}
