//! What every setting is and why.

use std::fmt;

use figment::value::Value;
use serde::Serialize;

use crate::Source;
use crate::layer::Layers;
use crate::rule::{Visibility, whole_of};
use crate::schema::KnownKey;

/// Every known key with its value and where that came from, in the order of the sections.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Report {
    settings: Vec<ReportedSetting>,
}

/// One line of a [`Report`].
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ReportedSetting {
    /// Dotted key.
    pub key: &'static str,
    /// The value as it was written; `null` when unset.
    pub value: ReportedValue,
    /// Where the value came from, such as `flotilla.toml:3`.
    pub source: Source,
}

/// A value that is fit to be shown.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum ReportedValue {
    /// No value.
    Unset,
    /// A secret that has a value.
    #[serde(serialize_with = "hidden")]
    Hidden,
    /// The value as it was written.
    Shown(Value),
}

impl Report {
    pub(crate) fn of(layers: &Layers, known: &[KnownKey]) -> Self {
        let setting = |known: &KnownKey| {
            let value = layers.value(known.key);
            ReportedSetting {
                key: known.key,
                source: layers.source(known.key, value.as_ref()),
                value: reported(value, known.visibility),
            }
        };
        let settings = known.iter().map(setting).collect();
        Self { settings }
    }

    /// The settings one by one.
    #[must_use]
    pub fn settings(&self) -> &[ReportedSetting] {
        &self.settings
    }
}

impl fmt::Display for Report {
    /// Writes a line a setting: `key = value  # source`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows: Vec<(String, &Source)> = self
            .settings
            .iter()
            .map(|setting| (format!("{} = {}", setting.key, setting.value), &setting.source))
            .collect();
        let width = rows.iter().map(|(text, _)| text.chars().count()).max();
        let width = width.unwrap_or(0);
        for (text, source) in rows {
            writeln!(f, "{text:width$}  # {source}")?;
        }
        Ok(())
    }
}

impl fmt::Display for ReportedValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unset => f.write_str("(unset)"),
            Self::Hidden => f.write_str(HIDDEN),
            Self::Shown(value) => write_value(value, f),
        }
    }
}

const HIDDEN: &str = "(hidden)";

fn hidden<S: serde::Serializer>(serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(HIDDEN)
}

fn reported(value: Option<Value>, visibility: Visibility) -> ReportedValue {
    match value {
        None => ReportedValue::Unset,
        Some(value) if value.as_str() == Some("") => ReportedValue::Unset,
        Some(_) if visibility == Visibility::Hidden => ReportedValue::Hidden,
        Some(value) => ReportedValue::Shown(value),
    }
}

fn write_value(value: &Value, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    if let Some(text) = value.as_str() {
        return write!(f, "{text:?}");
    }
    if let Some(truth) = value.to_bool() {
        return write!(f, "{truth}");
    }
    let number = value.to_num();
    match number.and_then(whole_of) {
        Some(whole) => write!(f, "{whole}"),
        None => write!(
            f,
            "{}",
            number.and_then(|number| number.to_f64()).unwrap_or(f64::NAN)
        ),
    }
}
