//! Fleets as files.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use flotilla_protocol::catalog::Policy;
use flotilla_protocol::request::{KeepAlive, Slo};
use flotilla_simulator::fleet::{FleetFaults, FleetFile, FleetSpec, Start};

use crate::scenarios::sample;

fn read(text: &str) -> Result<FleetSpec, FleetFaults> {
    let profiles = ["fast", "slow"].map(|kind| (format!("{kind}.json"), Arc::new(sample(kind))));
    FleetFile::parse(text)?.into_fleet(&BTreeMap::from(profiles))
}

fn faults(text: &str) -> Vec<String> {
    let faults = read(text).unwrap_err();
    faults.faults().iter().map(ToString::to_string).collect()
}

#[test]
fn a_short_file_has_the_defaults_of_the_worker() {
    let fleet = read(
        r#"
[[devices]]
kind = "sim-fast"
profile = "fast.json"
memory = "24GiB"

[[models]]
name = "m"
weights = "8GiB"
"#,
    )
    .unwrap();
    let device = &fleet.devices[0];
    assert_eq!(
        (device.worker.as_str(), device.slots, device.batch_tokens_max),
        ("sim-fast-0", 32, 512)
    );
    assert_eq!((device.memory_bytes, device.cost_per_hour), (24 << 30, 1.0));
    let model = &fleet.models[0];
    assert_eq!(
        (model.context_tokens_max, model.kv_bytes_per_token),
        (8_192, 131_072)
    );
    assert_eq!((model.start, model.policy), (Start::Cold, None));
    assert_eq!(fleet.limits.network_latency, Duration::from_micros(500));
}

#[test]
fn a_long_file_says_everything() {
    let fleet = read(
        r#"
[network]
latency_ms = 2
keep_alive_s = -1

[[devices]]
kind = "sim-fast"
count = 2
profile = "fast.json"
memory = 51539607552
slots = 600
batch_tokens = 256
models_max = 3
cost = 2.5
memory_bytes_per_s = 900_000_000_000

[[devices]]
kind = "sim-slow"
profile = "slow.json"
memory = "24 GiB"

[[devices]]
kind = "sim-fast"
profile = "fast.json"
memory = "24GiB"

[[models]]
name = "tail"
count = 3
weights = "1GiB"
slots = 4
context_tokens = 1000
kv_bytes_per_token = 1024
start = "warm"
policy = "pack"
output_tokens_prior = 128
slo = { tpot_ms = 50, e2e_ms = 1e4 }
profiles = { sim-slow = "slow.json" }
"#,
    )
    .unwrap();
    let workers: Vec<_> = fleet
        .devices
        .iter()
        .map(|device| device.worker.as_str())
        .collect();
    assert_eq!(workers, ["sim-fast-0", "sim-fast-1", "sim-slow-0", "sim-fast-2"]);
    let device = &fleet.devices[1];
    assert_eq!(
        (device.slots, device.models_max, device.cost_per_hour),
        (600, Some(3), 2.5)
    );
    assert_eq!(
        device.batch_tokens_max, 600,
        "every request can advance in each step"
    );
    let models: Vec<_> = fleet.models.iter().map(|model| model.name.as_str()).collect();
    assert_eq!(models, ["tail-01", "tail-02", "tail-03"]);
    let model = &fleet.models[2];
    assert_eq!((model.start, model.policy), (Start::Warm, Some(Policy::Pack)));
    let slo = Slo {
        tpot_ms: Some(50.0),
        e2e_ms: Some(10_000.0),
        ..Slo::default()
    };
    assert_eq!(model.slo, Some(slo));
    assert_eq!(fleet.profile(model, &fleet.devices[2]).kind(), "sim-slow");
    assert_eq!(fleet.limits.keep_alive, KeepAlive::UntilEvicted);
    assert_eq!(model.entry().policy, Some(Policy::Pack));
    assert_eq!(
        device.registration().devices[0].memory_bytes_per_s,
        Some(900_000_000_000)
    );
}

#[test]
fn everything_that_is_wrong_with_a_file_is_told_at_once_with_its_line() {
    let text = r#"
[netwrok]
latency_ms = 1

[[devices]]
kind = "sim fast"
profile = "fast.json"
memory = "24GiB"

[[devices]]
kind = "sim-fast"
profile = "fast.json"
memory = "24 parsecs"
slot = 3

[[devices]]
kind = "sim-fast"
profile = "slow.json"
memory = "24GiB"
count = 0

[[models]]
weights = "8GiB"
slo = { tpot = 50 }

[[models]]
name = "m"
weights = 0
policy = "lifo"
"#;
    assert_eq!(
        faults(text),
        [
            "line 2: netwrok: unknown key; did you mean network?",
            "line 6: devices[0].kind: the worker id contains ' '; allowed are letters, digits, '-' and '_'",
            "line 13: devices[1].memory: found \"24 parsecs\"; give bytes, such as \"24GiB\"",
            "line 14: devices[1].slot: unknown key; did you mean slots?",
            "line 20: devices[2].count: found 0; give a whole number from 1 to 1000",
            "line 22: models[0].name: is missing; give the name of a model",
            "line 24: models[0].slo.tpot: unknown key; did you mean tpot_ms?",
            "line 28: models[1].weights: found 0; give bytes, such as \"8GiB\"",
            "line 29: models[1].policy: found \"lifo\"; give slo, pack, spread or fifo",
        ]
    );
}

#[test]
fn entries_that_do_not_go_together_are_told() {
    let text = r#"
[[devices]]
kind = "sim-fast"
profile = "fast.json"
memory = "24GiB"

[[devices]]
kind = "sim-fast"
profile = "other.json"
memory = "24GiB"

[[models]]
name = "m-01"
weights = "1GiB"

[[models]]
name = "m"
count = 2
weights = "1GiB"
"#;
    assert_eq!(
        faults(text),
        [
            "line 7: devices[1].profile: kind sim-fast has the profile fast.json already; one kind has one profile, \
             so give this one another kind",
            "line 16: models[1].name: there are two models of this name; rename one",
        ]
    );
}

#[test]
fn profiles_of_another_kind_and_models_that_fit_nowhere_are_told() {
    let text = r#"
[[devices]]
kind = "mine"
profile = "fast.json"
memory = "4GiB"

[[devices]]
kind = "sim-slow"
profile = "slow.json"
memory = "8GiB"

[[models]]
name = "m"
weights = "8GiB"
profiles = { sim-fast = "lost.json" }
"#;
    assert_eq!(
        faults(text),
        [
            "line 2: devices[0].profile: fast.json is the profile of kind \"sim-fast\"; name the kind so, or give \
             another file",
            "line 12: models[0].profiles.sim-fast: lost.json was not read",
            "line 12: models[0].weights: needs 9663676416 bytes with keys and values of one context, more than any \
             device has",
        ]
    );
}

#[test]
fn a_file_that_is_no_toml_is_told_with_its_line() {
    let told = faults("[[devices]]\nkind = \"a\nmemory = 1\n");
    assert!(
        told[0].starts_with("line 2: the file: not valid TOML"),
        "{told:?}"
    );
    let told = faults("devices = 3\n");
    assert!(
        told[0].starts_with("line 1: devices: found 3; give one or more tables"),
        "{told:?}"
    );
}
