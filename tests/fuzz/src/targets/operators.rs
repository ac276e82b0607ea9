//! Files that operators bring: profiles, settings, fleets and traces of simulations.

use flotilla_config::{Config, ConfigFile, LoadOptions};
use flotilla_profile::{DeviceProfile, LoadTier, Signature, StepTimes};
use flotilla_simulator::fleet::FleetFile;
use flotilla_simulator::trace::Trace;

use crate::corpus::{Corpus, file, files, repository};
use crate::probe::{Verdict, write};
use crate::target::{Format, Target};

pub(super) fn targets() -> Vec<Target> {
    vec![profile(), settings(), fleet(), trace()]
}

/// A profile, also one of AIBrix; what was accepted gives a time for every request.
fn profile() -> Target {
    let foreign = r#"{"gpu": "A100", "cost": 1.5, "tputs": [[4, NaN], [2, 1]], "indexes": [[8, 16], [64, 128]], "created": 1.7e9,
        "e2e": [[0.5, 0.6], [0.9, Infinity]], "slos": {"percentile": 99, "e2e": 5, "tput": 0}}"#;
    let samples = ["sample-fast", "sample-slow"].map(|name| file(&format!("config/profiles/{name}.json")));
    let corpus = Corpus::golden(Format::Json, &["profile"])
        .and(samples)
        .and([foreign]);
    Target::new("profile", corpus, |probe, input| {
        let read = probe.measure(|| DeviceProfile::from_json(input, None));
        if let Ok(profile) = &read {
            probe.measure(|| look_up(profile));
            let written = serde_json::to_vec(profile.document()).expect("a document can be written");
            let again = DeviceProfile::from_json(&written, None);
            assert_eq!(
                again.as_ref().ok(),
                Some(profile),
                "a profile changes when it is written and read"
            );
        }
        Verdict::from(&read)
    })
}

fn look_up(profile: &DeviceProfile) {
    let steps = StepTimes::from_profile(profile);
    for tokens in [0, 1, 100, u32::MAX] {
        let signature = Signature {
            prompt_tokens: tokens,
            output_tokens: tokens,
        };
        let _ = (
            profile.e2e(signature),
            profile.ttft(signature),
            profile.work(signature),
        );
        let share = profile.share(signature);
        assert!(share.is_finite() && share >= 0.0, "a share of {share}");
        let _ = (
            profile.is_feasible(signature),
            profile.cell(signature),
            profile.time_left(signature, 1),
        );
        let _ = (profile.idle_speedup(signature), steps.step(tokens, tokens));
    }
    let _ = (
        profile.rate_max(),
        profile.load_time(LoadTier::Peer),
        profile.source(),
        profile.slos(),
    );
}

/// `flotilla.toml`.
fn settings() -> Target {
    let samples = ["flotilla", "production"].map(|name| file(&format!("config/{name}.toml")));
    Target::new("settings", Corpus::new(Format::Text, samples), |probe, input| {
        let path = probe.folder(|_| ()).join("flotilla.toml");
        write(&path, input);
        let options = LoadOptions {
            file: ConfigFile::At(path),
            ..LoadOptions::default()
        };
        Verdict::from(&probe.measure(|| Config::load(&options)))
    })
    .weighing(2)
}

fn fleet() -> Target {
    let samples = files(&repository().join("dispatcher/simulator/fleets"));
    let samples = samples
        .iter()
        .map(|path| std::fs::read(path).expect("a fleet can be read"));
    Target::new(
        "simulate-fleet",
        Corpus::new(Format::Text, samples),
        |probe, input| {
            let text = String::from_utf8_lossy(input);
            Verdict::from(&probe.measure(|| FleetFile::parse(&text)))
        },
    )
    .weighing(10)
}

/// JSONL, a request a line.
fn trace() -> Target {
    let line = r#"{"at_ms": 12.5, "model": "m", "prompt_tokens": 100, "output_tokens": 9, "output_tokens_max": 20, "id": "a", "class": "batch",
        "tenant": "t", "slo": {"ttft_ms": 500}, "deadline_ms": 1000}"#.replace('\n', "");
    let samples = [
        format!("{line}\n"),
        format!("{}\n\n{}\n", line, line.replace("\"a\"", "\"b\"")),
    ];
    Target::new(
        "simulate-trace",
        Corpus::new(Format::Json, samples),
        |probe, input| {
            let text = String::from_utf8_lossy(input);
            let read = probe.measure(|| Trace::parse("t", &text));
            if let Ok(trace) = &read {
                let again = Trace::parse("t", &trace.to_jsonl()).expect("what was written can be read");
                assert_eq!(again.to_jsonl(), trace.to_jsonl());
            }
            Verdict::from(&read)
        },
    )
}
