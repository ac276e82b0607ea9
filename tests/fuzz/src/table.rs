//! What a run found, for people.

use std::fmt::Write;

use crate::run::Outcome;
use crate::target::Target;

/// A table in Markdown, and below it the reasons for bounds that are not the usual.
#[must_use]
pub fn table(targets: &[Target], outcomes: &[Outcome]) -> String {
    let mut text = String::from(HEAD);
    for (target, outcome) in targets.iter().zip(outcomes) {
        let Outcome {
            inputs,
            bytes,
            accepted,
            broken,
            caught,
            slowest: (slowest, _),
            ratio_max,
            bytes_max,
            findings: _,
        } = outcome;
        let line = format!(
            "| {} | {inputs} | {} | {accepted} | {} | {caught} | {:.2} ms | {ratio_max:.1} | {} | {} + {} | {} |\n",
            target.name,
            bytes / inputs.max(&1),
            inputs - accepted - broken,
            slowest.as_secs_f64() * 1e3,
            kib(*bytes_max),
            target.bound.ratio,
            kib(target.bound.slack_bytes),
            broken,
        );
        text.push_str(&line);
    }
    for target in targets.iter().filter(|target| !target.bound.reason.is_empty()) {
        let line = writeln!(text, "\n- `{}`: {}", target.name, target.bound.reason);
        line.expect("a text can be written to");
    }
    text
}

fn kib(bytes: usize) -> String {
    format!("{} KiB", bytes.div_ceil(1 << 10))
}

const HEAD: &str = "\
| target | inputs | mean bytes | accepted | refused | caught panics | slowest | most times the input | most bytes | bound | broken |
|---|---|---|---|---|---|---|---|---|---|---|
";
