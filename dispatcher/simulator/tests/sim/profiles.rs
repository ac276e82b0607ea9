//! The profiles of the built-in fleets: measured on the devices that they describe.
//!
//! The devices are those of the sample profiles (`config/profiles`): steps and loads are taken from there. The
//! built-in ones differ in what they were measured under: the composite trace's target, 50 ms for each token of
//! the answer from publish to end, for 99 of 100 requests. `BLESS=1` with the ignored test writes them anew.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use flotilla_profile::{DeviceProfile, Signature};
use flotilla_protocol::profile::Profile;
use flotilla_protocol::request::Slo;
use flotilla_simulator::fleet::{DeviceSpec, ModelSpec};
use flotilla_simulator::profiling::Measurement;

use crate::scenarios::{device, model, sample};

fn measured(kind: &str, check: impl FnOnce(&Measurement<'_>)) {
    let device = DeviceSpec {
        kind: format!("sim-{kind}"),
        profile: Arc::new(sample(kind)),
        cost_per_hour: sample(kind).cost(),
        ..device("measured")
    };
    let model = ModelSpec {
        context_tokens_max: 16_384,
        ..model("assistant")
    };
    check(&Measurement {
        device: &device,
        model: &model,
        slo: Slo {
            tpot_ms: Some(50.0),
            ..Slo::default()
        },
        percentile: 99,
        outputs: (4..=10).map(|power| 1 << power).collect(),
        inputs: (6..=13).map(|power| 1 << power).collect(),
        seed: 1,
    });
}

fn path(kind: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("profiles/{kind}.json"))
}

fn kept(kind: &str) -> DeviceProfile {
    let json = fs::read_to_string(path(kind)).unwrap();
    DeviceProfile::try_from(Profile::from_json(json.as_bytes()).unwrap()).unwrap()
}

#[test]
fn some_cells_of_the_profiles_are_measured_again_as_they_are_kept() {
    for kind in ["fast", "slow"] {
        let profile = kept(kind);
        measured(kind, |measurement| {
            for (output_tokens, prompt_tokens) in [(16, 128), (32, 4_096), (64, 64)] {
                let signature = Signature {
                    prompt_tokens,
                    output_tokens,
                };
                let (row, column) = profile.cell(signature);
                let cell = measurement.cell(output_tokens, prompt_tokens);
                assert_eq!(
                    profile.document().tputs[row][column],
                    rounded(cell.rate()),
                    "{kind}"
                );
                assert_eq!(
                    profile.e2e(signature).value.as_secs_f64(),
                    rounded(cell.e2e_s),
                    "{kind}"
                );
            }
        });
    }
}

#[test]
#[ignore = "takes minutes without optimisation"]
fn the_profiles_are_what_their_devices_are_measured_as() {
    for kind in ["fast", "slow"] {
        measured(kind, |measurement| {
            let mut profile = measurement.profile(CREATED);
            let matrices = [&mut profile.e2e, &mut profile.ttft].into_iter().flatten();
            for figure in matrices.chain([&mut profile.tputs]).flatten().flatten() {
                *figure = rounded(*figure);
            }
            let json = serde_json::to_string(&profile).unwrap().replace("]],", "]],\n ") + "\n";
            if std::env::var_os("BLESS").is_some() {
                fs::write(path(kind), &json).unwrap();
            }
            assert_eq!(fs::read_to_string(path(kind)).unwrap(), json, "{kind}");
        });
    }
}

/// Six significant digits: more only make the files hard to read.
fn rounded(figure: f64) -> f64 {
    format!("{figure:.5e}").parse().unwrap()
}

/// 2026-01-01, so that any profile that somebody measures is newer.
const CREATED: f64 = 1_767_225_600.0;
