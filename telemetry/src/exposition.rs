//! The text format of Prometheus, version 0.0.4, for what is read at a scrape.

use std::fmt::Write as _;

use crate::metric::{Kind, Metric};

/// The lines before a metric's series.
pub(crate) fn head(text: &mut String, metric: &Metric) {
    let kind = match metric.kind {
        Kind::Counter | Kind::Total => "counter",
        Kind::Gauge | Kind::Level => "gauge",
        Kind::Histogram(_) => "histogram",
    };
    let name = metric.name;
    let help = metric.help.replace('\\', "\\\\").replace('\n', "\\n");
    write(text, format_args!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
}

/// Labels as they stand behind a name; nothing without any.
pub(crate) fn labels<'a>(pairs: impl Iterator<Item = (&'static str, &'a str)>) -> String {
    let mut text = String::new();
    for (name, value) in pairs {
        text.push(if text.is_empty() { '{' } else { ',' });
        write(&mut text, format_args!("{name}=\""));
        for letter in value.chars() {
            match letter {
                '\\' => text.push_str("\\\\"),
                '"' => text.push_str("\\\""),
                '\n' => text.push_str("\\n"),
                letter => text.push(letter),
            }
        }
        text.push('"');
    }
    if !text.is_empty() {
        text.push('}');
    }
    text
}

/// One series' line.
pub(crate) fn sample(text: &mut String, name: &str, labels: &str, value: f64) {
    if value.is_finite() {
        write(text, format_args!("{name}{labels} {value}\n"));
    } else {
        let value = if value.is_nan() {
            "NaN"
        } else if value > 0.0 {
            "+Inf"
        } else {
            "-Inf"
        };
        write(text, format_args!("{name}{labels} {value}\n"));
    }
}

fn write(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    text.write_fmt(arguments).expect("a text takes anything");
}
