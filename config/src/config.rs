//! Loading: layers in, a whole configuration or every fault out.

use std::env;
use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use figment::value::{Dict, Value};

use crate::layer::{self, Layers};
use crate::relation;
use crate::schema::{KnownKey, Reader, Section};
use crate::{ConfigErrors, Dispatcher, Fault, Log, Nats, Problem, Report, Worker};

/// The settings of all roles. A role reads its own section and the shared ones.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// `[nats]`.
    pub nats: Nats,
    /// `[dispatcher]`.
    pub dispatcher: Dispatcher,
    /// `[worker]`.
    pub worker: Worker,
    /// `[log]`.
    pub log: Log,
    report: Report,
}

/// Which file is read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ConfigFile {
    /// None.
    #[default]
    None,
    /// This one, which must exist.
    At(PathBuf),
    /// `./flotilla.toml`, else `/etc/flotilla/flotilla.toml`, else none.
    Search,
}

/// What is laid over the defaults. The default of this type is nothing. `Debug` shows no value of a
/// variable or override, because some are secrets.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct LoadOptions {
    /// The file.
    pub file: ConfigFile,
    /// Environment variables, of which `FLOTILLA__SECTION__KEY` and `HF_TOKEN` are read.
    pub environment: Vec<(OsString, OsString)>,
    /// Overrides of the form `section.key=value`, the last one strongest.
    pub flags: Vec<String>,
}

impl LoadOptions {
    /// What a process takes: the given file or the usual places, its environment, these overrides.
    #[must_use]
    pub fn from_process(file: Option<PathBuf>, flags: Vec<String>) -> Self {
        Self {
            file: file.map_or(ConfigFile::Search, ConfigFile::At),
            environment: env::vars_os().collect(),
            flags,
        }
    }
}

impl fmt::Debug for LoadOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.environment.iter().map(|(name, _)| name);
        let keys = self.flags.iter().map(|flag| flag.split('=').next());
        f.debug_struct("LoadOptions")
            .field("file", &self.file)
            .field("environment", &names.collect::<Vec<_>>())
            .field("flags", &keys.flatten().collect::<Vec<_>>())
            .finish()
    }
}

impl Config {
    /// Merges all layers and checks the result.
    ///
    /// # Errors
    ///
    /// Every fault of every layer at once.
    pub fn load(options: &LoadOptions) -> Result<Self, ConfigErrors> {
        let known = known_keys();
        let (layers, mut faults) = merge(options, &known);
        faults.extend(unknown_keys(&layers, &known));
        let mut reader = Reader::new(&layers);
        let sections = read_sections(&mut reader);
        faults.extend(reader.into_faults());
        match sections {
            Some((nats, dispatcher, worker, log)) if faults.is_empty() => Ok(Self {
                nats,
                dispatcher,
                worker,
                log,
                report: Report::of(&layers, &known),
            }),
            _ => Err(ConfigErrors(faults)),
        }
    }

    /// Every key with its value as loaded and where that came from; secrets are hidden.
    #[must_use]
    pub fn show(&self) -> &Report {
        &self.report
    }
}

impl Default for Config {
    /// The compiled defaults.
    fn default() -> Self {
        Self::load(&LoadOptions::default()).expect("the compiled defaults are valid")
    }
}

type Sections = (Nats, Dispatcher, Worker, Log);

const SEARCHED: [&str; 2] = ["flotilla.toml", "/etc/flotilla/flotilla.toml"];

/// Reads all sections, so that all faults are found, and checks what must go together.
fn read_sections(reader: &mut Reader<'_>) -> Option<Sections> {
    let nats = Nats::read(reader);
    let dispatcher = Dispatcher::read(reader);
    let worker = Worker::read(reader);
    let log = Log::read(reader);
    if let Some(nats) = &nats {
        relation::check_nats(nats, reader);
    }
    if let Some(dispatcher) = &dispatcher {
        relation::check_dispatcher(dispatcher, reader);
    }
    if let Some(worker) = &worker {
        relation::check_worker(worker, reader);
    }
    if let (Some(dispatcher), Some(worker)) = (&dispatcher, &worker) {
        relation::check_reports(dispatcher, worker, reader);
    }
    Some((nats?, dispatcher?, worker?, log?))
}

fn known_keys() -> Vec<KnownKey> {
    let mut known = Vec::new();
    Nats::list(&mut known);
    Dispatcher::list(&mut known);
    Worker::list(&mut known);
    Log::list(&mut known);
    known
}

fn merge(options: &LoadOptions, known: &[KnownKey]) -> (Layers, Vec<Fault>) {
    let mut layers = Layers::of_defaults(known);
    let mut faults = Vec::new();
    match read_file(&options.file) {
        Ok(None) => {}
        Ok(Some((path, text))) => faults.extend(layers.add_file(path, &text).err()),
        Err(fault) => faults.push(fault),
    }
    faults.extend(layers.add_environment(&options.environment, known));
    faults.extend(layers.add_flags(&options.flags, known));
    (layers, faults)
}

fn read_file(file: &ConfigFile) -> Result<Option<(PathBuf, String)>, Fault> {
    match file {
        ConfigFile::None => Ok(None),
        ConfigFile::At(path) => read_at(path).map(Some),
        ConfigFile::Search => SEARCHED
            .iter()
            .map(Path::new)
            .find(|path| path.exists())
            .map(read_at)
            .transpose(),
    }
}

fn read_at(path: &Path) -> Result<(PathBuf, String), Fault> {
    let path = path.to_owned();
    match fs::read_to_string(&path) {
        Ok(text) => Ok((path, text)),
        Err(source) => Err(Fault::Unreadable { path, source }),
    }
}

/// Finds keys that nothing reads, and values where a section belongs.
fn unknown_keys(layers: &Layers, known: &[KnownKey]) -> Vec<Fault> {
    let mut faults = Vec::new();
    walk(&layers.table(), "", &mut |key, value| {
        let is_key = known.iter().any(|known| known.key == key);
        let inside = known.iter().find(|known| {
            let rest = known.key.strip_prefix(key);
            rest.is_some_and(|rest| rest.starts_with('.'))
        });
        let problem = match (is_key, inside, value) {
            (true, _, _) => return Walk::Over,
            (false, Some(_), Value::Dict(..)) => return Walk::Into,
            (false, Some(example), _) => Problem::NotASection {
                example: example.key.to_owned(),
            },
            (false, None, Value::Dict(_, inner)) if !inner.is_empty() => return Walk::Into,
            (false, None, _) => Problem::UnknownKey {
                nearest: nearest(key, known),
            },
        };
        faults.push(Fault::Setting {
            key: key.to_owned(),
            source_of_value: layers.source(key, Some(value)),
            problem: Box::new(problem),
        });
        Walk::Over
    });
    faults
}

/// Whether a walk goes on inside the value it is at.
enum Walk {
    Into,
    Over,
}

fn walk(table: &Dict, prefix: &str, visit: &mut impl FnMut(&str, &Value) -> Walk) {
    for (name, value) in table {
        let key = layer::joined(prefix, name);
        if let (Walk::Into, Value::Dict(_, inner)) = (visit(&key, value), value) {
            walk(inner, &key, visit);
        }
    }
}

/// The known key that is reached with the fewest changes of letters, in whole or in its last part.
fn nearest(key: &str, known: &[KnownKey]) -> String {
    let last = |key: &str| key.rsplit('.').next().map(str::to_owned);
    let changes = |known: &&KnownKey| {
        let whole = strsim::damerau_levenshtein(key, known.key);
        let (ours, theirs) = (last(key), last(known.key));
        let part = ours
            .zip(theirs)
            .map(|(a, b)| strsim::damerau_levenshtein(&a, &b) + 1);
        part.map_or(whole, |part| part.min(whole))
    };
    let nearest = known.iter().min_by_key(changes);
    nearest
        .map(|known| known.key.to_owned())
        .expect("there are known keys")
}
