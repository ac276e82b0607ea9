//! The alerts of `deploy/prometheus`: about metrics that exist, each tried by a test of rules, all accepted by promtool.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use flotilla_telemetry::{Kind, Metric};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/prometheus")
}

pub fn read(name: &str) -> Result<String> {
    std::fs::read_to_string(folder().join(name)).with_context(|| name.to_owned())
}

/// A selector of an expression: a metric, and the labels that are asked of it.
#[derive(Debug)]
pub struct Selector {
    /// As it stands there.
    pub text: String,
    name: String,
    labels: BTreeSet<String>,
}

/// Whether a word can be the name of a metric of a role or of NATS.
fn is_name(word: &str) -> bool {
    ["flotilla_", "jetstream_", "vllm:", "process_"]
        .iter()
        .any(|start| word.starts_with(start))
}

/// The selectors of the lines that are no comments.
pub fn selectors(rules: &str) -> Vec<Selector> {
    let is_word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | ':');
    let mut found = Vec::new();
    for line in rules.lines().filter(|line| !line.trim_start().starts_with('#')) {
        let mut rest = line;
        while let Some(at) = rest.find(is_word) {
            rest = &rest[at..];
            let end = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
            let (word, behind) = rest.split_at(end);
            rest = behind;
            if is_name(word) {
                let inside = behind.strip_prefix('{').and_then(|it| it.split_once('}'));
                let inside = inside.map_or("", |(inside, _)| inside);
                let label = |pair: &str| Some(pair.split_once(['=', '!'])?.0.trim().to_owned());
                found.push(Selector {
                    text: format!("{word}{{{inside}}}"),
                    name: word.to_owned(),
                    labels: inside.split(',').filter_map(label).collect(),
                });
            }
        }
    }
    found
}

/// All selectors of a text are of metrics that exist and have these labels, or are added by Prometheus; gives how many.
pub fn check_selectors(text: &str) -> Result<usize> {
    let known: Vec<&Metric> = [
        flotilla_dispatcher::METRICS,
        flotilla_dispatcher::JETSTREAM_METRICS,
        flotilla_worker::METRICS,
        flotilla_worker::WEIGHTS_METRICS,
        flotilla_telemetry::PROCESS_METRICS,
    ]
    .concat();
    let selectors = selectors(text);
    let count = selectors.len();
    for Selector { name, labels, .. } in selectors {
        let metric = known.iter().find(|metric| match metric.kind {
            Kind::Histogram(_) => ["_bucket", "_sum", "_count"]
                .iter()
                .any(|end| name.strip_suffix(end) == Some(metric.name)),
            Kind::Counter | Kind::Total | Kind::Gauge | Kind::Level => metric.name == name,
        });
        let metric = metric.with_context(|| format!("{name} is no metric of ours"))?;
        for label in labels {
            let is_there = metric.labels.contains(&label.as_str()) || label == "instance";
            ensure!(is_there, "{name} has no label {label}");
        }
    }
    Ok(count)
}

#[test]
fn alerts_are_about_metrics_that_exist() -> Result<()> {
    let count = check_selectors(&read("alerts.yml")?)?;
    assert!(count > 20, "{count}");
    Ok(())
}

/// The names behind `alert: ` or `alertname: ` of a file.
pub fn named<'a>(text: &'a str, key: &str) -> BTreeSet<&'a str> {
    let words = text.lines().filter_map(|line| line.split_once(key));
    words
        .map(|(_, rest)| rest.trim().trim_end_matches('}').trim())
        .collect()
}

#[test]
fn every_alert_is_fired_once_by_a_test_of_rules() -> Result<()> {
    let rules = read("alerts.yml")?;
    let tests = read("alerts_test.yml")?;
    let alerts = named(&rules, "- alert: ");
    assert!(!alerts.is_empty());
    let lines: Vec<&str> = tests.lines().collect();
    // A test without expected alerts says that it is silent.
    let fired = lines.windows(2).filter(|pair| pair[1].trim() == "exp_alerts:");
    let fired: BTreeSet<&str> = fired.flat_map(|pair| named(pair[0], "alertname: ")).collect();
    assert_eq!(fired, alerts);
    Ok(())
}

/// `FLOTILLA_TEST_PROMTOOL` names the program in continuous integration (.ci/promtool.sh says where it comes from); without
/// it, as on a machine that has no Debian packages, the test is left out.
#[test]
fn promtool_accepts_the_files_and_tries_every_alert() -> Result<()> {
    let Some(promtool) = std::env::var_os("FLOTILLA_TEST_PROMTOOL") else {
        println!("skipped: FLOTILLA_TEST_PROMTOOL names no program");
        return Ok(());
    };
    for arguments in [
        ["check", "config", "prometheus.yml"],
        ["check", "rules", "alerts.yml"],
        ["test", "rules", "alerts_test.yml"],
    ] {
        let ran = Command::new(&promtool)
            .args(arguments)
            .current_dir(folder())
            .output()?;
        let said = [ran.stdout, ran.stderr].concat();
        assert!(
            ran.status.success(),
            "{arguments:?}: {}",
            String::from_utf8_lossy(&said)
        );
    }
    Ok(())
}
