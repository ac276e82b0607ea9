//! What a decoder should read: the samples that inputs are made of.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::target::Format;

/// The samples of one decoder, and the words that stand in them.
pub(crate) struct Corpus {
    format: Format,
    pub(crate) samples: Vec<Vec<u8>>,
    /// Samples as JSON, for changes that keep the form.
    pub(crate) values: Vec<Value>,
    /// Names and texts of the samples, and what the format's decoders look at.
    pub(crate) words: Vec<Vec<u8>>,
}

impl Corpus {
    /// Of samples as they are written.
    pub(crate) fn new<S: AsRef<[u8]>>(format: Format, samples: impl IntoIterator<Item = S>) -> Self {
        let mut corpus = Self {
            format,
            samples: Vec::new(),
            values: Vec::new(),
            words: Vec::new(),
        };
        corpus
            .samples
            .extend(samples.into_iter().map(|sample| sample.as_ref().to_vec()));
        if format == Format::Json {
            let values = corpus.samples.iter();
            corpus.values = values
                .filter_map(|sample| serde_json::from_slice(sample).ok())
                .collect();
        }
        corpus.collect_words();
        corpus
    }

    /// Of the golden files whose names begin so, in one encoding.
    pub(crate) fn golden(format: Format, names: &[&str]) -> Self {
        let folder = repository().join("protocol/tests/golden");
        let mut corpus = Self::new(format, [] as [&[u8]; 0]);
        for file in files(&folder) {
            let name = file
                .file_name()
                .and_then(|name| name.to_str())
                .unwrap_or_default();
            let (stem, ending) = name.split_once('.').unwrap_or((name, ""));
            // `done` names `done-terminal`, and `report` not `report-x` alone.
            let is_wanted = names.iter().any(|wanted| {
                stem.strip_prefix(wanted)
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
            });
            let content = || fs::read(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
            match (is_wanted, ending) {
                (true, "json") => {
                    let content = content();
                    let value = serde_json::from_slice(&content).expect("a golden file is JSON");
                    corpus.values.push(value);
                    if format == Format::Json {
                        corpus.samples.push(content);
                    }
                }
                (true, "msgpack.hex") if format == Format::MessagePack => {
                    corpus.samples.push(from_hex(&content()));
                }
                (true | false, _) => {}
            }
        }
        assert!(!corpus.samples.is_empty(), "there are golden files of {names:?}");
        corpus.collect_words();
        corpus
    }

    /// The same and some more.
    pub(crate) fn and<S: AsRef<[u8]>>(self, samples: impl IntoIterator<Item = S>) -> Self {
        let mut more = Self::new(self.format, samples);
        more.samples.splice(0..0, self.samples);
        more.values.splice(0..0, self.values);
        more.collect_words();
        more
    }

    /// Values that are written in the corpus's encoding.
    pub(crate) fn of_values(format: Format, values: impl IntoIterator<Item = Value>) -> Self {
        let values: Vec<Value> = values.into_iter().collect();
        let mut corpus = Self::new(format, values.iter().map(|value| written(format, value)));
        corpus.values = values;
        corpus.collect_words();
        corpus
    }

    pub(crate) fn format(&self) -> Format {
        self.format
    }

    fn collect_words(&mut self) {
        let mut words = BTreeSet::new();
        self.values.iter().for_each(|value| texts(value, &mut words));
        if self.format == Format::Text {
            for sample in &self.samples {
                let text = String::from_utf8_lossy(sample);
                let parts = text.split(|c: char| !c.is_alphanumeric() && c != '_');
                words.extend(parts.filter(|part| !part.is_empty()).map(str::to_owned));
            }
        }
        let words = words.into_iter().filter(|word| word.len() <= WORD_BYTES_MAX);
        self.words = words.map(String::into_bytes).collect();
    }
}

/// A value in an encoding.
pub(crate) fn written(format: Format, value: &Value) -> Vec<u8> {
    let encoding = match format {
        Format::MessagePack => flotilla_protocol::Encoding::MessagePack,
        Format::Json | Format::Text | Format::Bytes => flotilla_protocol::Encoding::Json,
    };
    encoding.encode(value).expect("a value can be written").into()
}

/// A file of this repository.
pub(crate) fn file(path: &str) -> Vec<u8> {
    let path = repository().join(path);
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The folder of everything.
pub(crate) fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The files of a folder, in order.
pub(crate) fn files(folder: &Path) -> Vec<PathBuf> {
    let list = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<PathBuf> = list
        .map(|entry| entry.expect("it can be listed").path())
        .collect();
    files.sort();
    files
}

fn from_hex(text: &[u8]) -> Vec<u8> {
    let digits: Vec<u8> = text
        .iter()
        .filter_map(|digit| char::from(*digit).to_digit(16))
        .map(|digit| u8::try_from(digit).expect("a digit is below 16"))
        .collect();
    digits
        .chunks_exact(2)
        .map(|pair| pair[0] << 4 | pair[1])
        .collect()
}

fn texts(value: &Value, words: &mut BTreeSet<String>) {
    match value {
        Value::String(text) => {
            words.insert(text.clone());
        }
        Value::Array(items) => items.iter().for_each(|item| texts(item, words)),
        Value::Object(fields) => {
            for (name, value) in fields {
                words.insert(name.clone());
                texts(value, words);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// Longer texts are no words.
const WORD_BYTES_MAX: usize = 64;
