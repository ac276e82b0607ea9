//! The layers: where values are read from, and how a stronger one covers a weaker one.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::ops::Range;
use std::path::{Path, PathBuf};

use figment::providers::{Format, Toml};
use figment::value::{Dict, Map, Value};
use figment::{Error, Figment, Metadata, Profile, Provider};
use toml_edit::{ImDocument, Item, TableLike};

use crate::rule::Wording;
use crate::schema::KnownKey;
use crate::{Fault, Source};

/// All layers merged, and for each value its source.
pub(crate) struct Layers {
    merged: Figment,
    lines: BTreeMap<String, usize>,
}

impl Layers {
    /// The weakest layer: the defaults of all known keys.
    pub(crate) fn of_defaults(known: &[KnownKey]) -> Self {
        let mut layers = Self {
            merged: Figment::new(),
            lines: BTreeMap::new(),
        };
        for key in known {
            if let Some(default) = &key.default {
                let path: Vec<&str> = key.key.split('.').collect();
                layers.cover(Metadata::named(DEFAULT), nested(&path, default.clone()));
            }
        }
        layers
    }

    /// Lays the text of a TOML file over what is there.
    pub(crate) fn add_file(&mut self, path: PathBuf, text: &str) -> Result<(), Fault> {
        let document = ImDocument::parse(text)
            .map_err(|error| syntax_fault(&path, text, error.span(), error.message()))?;
        let dict = Toml::from_str::<Dict>(text)
            .map_err(|error| syntax_fault(&path, text, error.span(), error.message()))?;
        self.lines = BTreeMap::new();
        note_lines(document.as_table(), text, "", &mut self.lines);
        self.cover(Metadata::from(FILE, path.as_path()), dict);
        Ok(())
    }

    /// Lays `FLOTILLA__SECTION__KEY` variables over what is there, and under them the variables of others that mean
    /// one of our settings; the rest is left alone.
    pub(crate) fn add_environment(
        &mut self,
        variables: &[(OsString, OsString)],
        known: &[KnownKey],
    ) -> Vec<Fault> {
        let mut faults = Vec::new();
        self.add_foreign(variables);
        for (name, value) in variables {
            let Some(rest) = name.to_string_lossy().strip_prefix(PREFIX).map(str::to_owned) else {
                continue;
            };
            let (Some(name), Some(value)) = (name.to_str(), value.to_str()) else {
                let name = name.to_string_lossy().into_owned();
                faults.push(Fault::NotUnicode { name });
                continue;
            };
            let key = rest.to_ascii_lowercase();
            let path: Vec<&str> = key.split("__").collect();
            let value = worded(known, &path.join("."), value);
            let source = figment::Source::Custom(name.to_owned());
            self.cover(Metadata::from(ENVIRONMENT, source), nested(&path, value));
        }
        faults
    }

    /// Takes in variables that other programs read too. One that is empty or no text says nothing.
    fn add_foreign(&mut self, variables: &[(OsString, OsString)]) {
        for (name, key) in FOREIGN {
            let variable = variables.iter().find(|(found, _)| found == name);
            let value = variable.and_then(|(_, value)| value.to_str());
            if let Some(value) = value.filter(|value| !value.is_empty()) {
                let path: Vec<&str> = key.split('.').collect();
                let source = figment::Source::Custom(name.to_owned());
                self.cover(Metadata::from(ENVIRONMENT, source), nested(&path, value.into()));
            }
        }
    }

    /// Lays `section.key=value` overrides over what is there; of two for one key the last one rules.
    pub(crate) fn add_flags(&mut self, overrides: &[String], known: &[KnownKey]) -> Vec<Fault> {
        let mut faults = Vec::new();
        for given in overrides {
            let Some((key, value)) = given.split_once('=') else {
                let given = given.clone();
                faults.push(Fault::NotAnOverride { given });
                continue;
            };
            let path: Vec<&str> = key.split('.').collect();
            let source = figment::Source::Custom(key.to_owned());
            let value = worded(known, key, value);
            self.cover(Metadata::from(FLAG, source), nested(&path, value));
        }
        faults
    }

    /// The value of a dotted key, if a layer has one.
    pub(crate) fn value(&self, key: &str) -> Option<Value> {
        // The only failure is that no layer has the key.
        self.merged.find_value(key).ok()
    }

    /// Everything as one table.
    pub(crate) fn table(&self) -> Dict {
        let all = self.merged.find_value("").map(Value::into_dict);
        all.ok().flatten().expect("every layer is a table")
    }

    /// Where the value of a dotted key came from; the default when no layer has one.
    pub(crate) fn source(&self, key: &str, value: Option<&Value>) -> Source {
        let metadata = value.and_then(|value| self.merged.get_metadata(value.tag()));
        let Some(metadata) = metadata else {
            return Source::Default;
        };
        match (metadata.name.as_ref(), &metadata.source) {
            (FILE, Some(figment::Source::File(path))) => Source::File {
                path: path.clone(),
                line: self.lines.get(key).copied().unwrap_or(1),
            },
            (ENVIRONMENT, Some(figment::Source::Custom(name))) => Source::Environment(name.clone()),
            (FLAG, Some(figment::Source::Custom(key))) => Source::Flag(key.clone()),
            _ => Source::Default,
        }
    }

    fn cover(&mut self, metadata: Metadata, values: Dict) {
        let below = std::mem::take(&mut self.merged);
        self.merged = below.merge(Layer { metadata, values });
    }
}

/// One layer in figment's terms.
struct Layer {
    metadata: Metadata,
    values: Dict,
}

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        self.metadata.clone()
    }

    fn data(&self) -> Result<Map<Profile, Dict>, Error> {
        Ok(Map::from([(Profile::Default, self.values.clone())]))
    }
}

const PREFIX: &str = "FLOTILLA__";
/// Variables without our prefix, and what they mean.
const FOREIGN: [(&str, &str); 1] = [("HF_TOKEN", "worker.hub.token")];
const DEFAULT: &str = "default";
const FILE: &str = "file";
const ENVIRONMENT: &str = "environment";
const FLAG: &str = "flag";

/// The dotted key of a name in a table. A quoted name may hold a dot; quoted again, it cannot pass for
/// a path of names.
pub(crate) fn joined(prefix: &str, name: &str) -> String {
    let name = match name.contains('.') {
        true => format!("{name:?}"),
        false => name.to_owned(),
    };
    match prefix {
        "" => name,
        _ => format!("{prefix}.{name}"),
    }
}

/// A table that holds one value at a path of keys.
fn nested(path: &[&str], value: Value) -> Dict {
    let (first, rest) = path.split_first().expect("a split text has at least one part");
    let inner = match rest {
        [] => value,
        _ => Value::from(nested(rest, value)),
    };
    Dict::from([((*first).to_owned(), inner)])
}

/// A word of a variable or flag as the value that its key expects.
fn worded(known: &[KnownKey], key: &str, word: &str) -> Value {
    let wording = known.iter().find(|known| known.key == key);
    if wording.is_none_or(|known| known.wording == Wording::Text) {
        return Value::from(word);
    }
    let number = word.parse().map(|whole: i64| Value::from(whole));
    let part = || word.parse().map(|part: f64| Value::from(part));
    let truth = || word.parse().map(|truth: bool| Value::from(truth));
    number
        .or_else(|_| part())
        .or_else(|_| truth())
        .unwrap_or_else(|_| Value::from(word))
}

/// Notes the line of every key of a table and of the tables in it.
fn note_lines(table: &dyn TableLike, text: &str, prefix: &str, lines: &mut BTreeMap<String, usize>) {
    for (name, item) in table.iter() {
        let key = joined(prefix, name);
        if let Some(span) = table.key(name).and_then(toml_edit::Key::span) {
            lines.insert(key.clone(), line_of(text, span.start));
        }
        if let Some(inner) = Item::as_table_like(item) {
            note_lines(inner, text, &key, lines);
        }
    }
}

/// What a TOML parser found at a range of bytes, on one line. Parsers quote keys, never values.
fn syntax_fault(path: &Path, text: &str, at: Option<Range<usize>>, message: &str) -> Fault {
    Fault::Syntax {
        path: path.to_owned(),
        line: line_of(text, at.map_or(0, |range| range.start)),
        message: message.trim().replace('\n', "; "),
    }
}

/// The line of a byte offset, from 1.
fn line_of(text: &str, offset: usize) -> usize {
    let before = text.as_bytes().iter().take(offset);
    before.filter(|byte| **byte == b'\n').count() + 1
}
