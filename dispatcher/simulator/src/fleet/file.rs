//! Fleets as files.
//!
//! ```toml
//! [network]                    # may be left out, as each of its keys
//! latency_ms = 0.5             # of any message between dispatcher and worker, one way
//! keep_alive_s = 300           # how long an idle model stays; -1 is until it is evicted
//!
//! [[devices]]                  # each is the only one of a worker
//! kind = "fast"                # the workers are fast-0, fast-1, ...
//! count = 4                    # default 1
//! profile = "fast.json"        # seen from the folder of this file
//! memory = "48GiB"             # of weights, keys and values
//! slots = 32                   # requests that run at once; default 32
//! batch_tokens = 512           # tokens of one step; default 512
//! models_max = 3               # default: as many as its memory holds
//! cost = 1.0                   # of an hour; default: the profile's
//! memory_bytes_per_s = 900_000_000_000   # default: nobody measured
//!
//! [[models]]
//! name = "assistant"
//! count = 19                   # as many of the kind: assistant-01 ... assistant-19; default: the name itself
//! weights = "8GiB"
//! kv_bytes_per_token = 131072  # default 131072, as of a model of 8 billion parameters with grouped queries
//! context_tokens = 8192        # default 8192
//! slots = 32                   # default: the device's
//! start = "warm"               # resident everywhere when the trace begins; default "cold"
//! policy = "slo"               # of the real dispatcher: slo, pack, spread or fifo; default slo
//! output_tokens_prior = 128    # default: none
//! slo = { tpot_ms = 50 }       # of requests without one; also ttft_ms, tpat_ms, e2e_ms; default: none
//! profiles = { fast = "other.json" }   # by kind; default: the device's
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use flotilla_profile::DeviceProfile;
use flotilla_protocol::catalog::Policy;
use flotilla_protocol::request::{KeepAlive, Slo};
use flotilla_protocol::{ModelName, WorkerId};
use toml_edit::{ImDocument, Item, TableLike};

use super::fault::{FleetFault, FleetFaults, FleetProblem};
use super::table::{Faults, Found, TableReader, above_zero, bytes, count, number, text, whole};
use super::{DeviceSpec, FleetLimits, FleetSpec, ModelSpec, Start};

/// A fleet file that was read, before the profiles that it names.
#[derive(Debug, Clone)]
pub struct FleetFile {
    devices: Vec<RawDevice>,
    models: Vec<RawModel>,
    limits: FleetLimits,
}

#[derive(Debug, Clone)]
struct RawDevice {
    line: usize,
    path: String,
    kind: String,
    count: u32,
    profile: String,
    memory_bytes: u64,
    memory_bytes_per_s: Option<u64>,
    slots: u32,
    batch_tokens_max: u32,
    models_max: Option<usize>,
    cost_per_hour: Option<f64>,
}

#[derive(Debug, Clone)]
struct RawModel {
    line: usize,
    path: String,
    /// Its profiles are filled in later.
    specs: Vec<ModelSpec>,
    /// File by kind.
    profiles: BTreeMap<String, String>,
}

impl FleetFile {
    /// Reads a file's text.
    ///
    /// # Errors
    /// [`FleetFaults`]: everything that is wrong with it.
    pub fn parse(text: &str) -> Result<Self, FleetFaults> {
        let document = ImDocument::parse(text).map_err(|error| {
            let problem = FleetProblem::Syntax {
                message: error.message().trim().replace('\n', "; "),
            };
            let mut faults = Faults::new(text);
            faults.push(error.span(), "the file".to_owned(), problem);
            FleetFaults(faults.into_sorted())
        })?;
        let mut faults = Faults::new(text);
        let mut root = TableReader::new(String::new(), document.as_table(), Some(0..0));
        let limits = read_limits(&mut root, &mut faults);
        let devices = read_each(&mut root, "devices", &mut faults, read_device);
        let models = read_each(&mut root, "models", &mut faults, read_model);
        root.finish(&mut faults);
        let file = Self {
            devices,
            models,
            limits,
        };
        file.check(&mut faults);
        match faults.into_sorted() {
            none if none.is_empty() => Ok(file),
            faults => Err(FleetFaults(faults)),
        }
    }

    /// The files of the profiles that it names, each once.
    pub fn profiles(&self) -> BTreeSet<&str> {
        let of_devices = self.devices.iter().map(|device| device.profile.as_str());
        let of_models = self.models.iter().flat_map(|model| model.profiles.values());
        of_devices.chain(of_models.map(String::as_str)).collect()
    }

    /// Puts the profiles in, by their files.
    ///
    /// # Errors
    /// [`FleetFaults`]: every profile that is missing or of another kind, every model that fits nowhere.
    pub fn into_fleet(
        self,
        profiles: &BTreeMap<String, Arc<DeviceProfile>>,
    ) -> Result<FleetSpec, FleetFaults> {
        let mut faults = Vec::new();
        let mut fleet = FleetSpec {
            devices: Vec::new(),
            models: Vec::new(),
            limits: self.limits,
        };
        for raw in &self.devices {
            match profile(profiles, &raw.kind, &raw.profile) {
                Ok(profile) => raw.expand(&profile, &mut fleet.devices),
                Err(problem) => faults.push(FleetFault {
                    line: raw.line,
                    key: format!("{}.profile", raw.path),
                    problem,
                }),
            }
        }
        for raw in self.models {
            raw.expand(profiles, &mut fleet, &mut faults);
        }
        match faults.is_empty() {
            true => Ok(fleet),
            false => Err(FleetFaults(faults)),
        }
    }

    /// What two entries must not have in common.
    fn check(&self, faults: &mut Faults<'_>) {
        let mut profile_of: BTreeMap<&str, &str> = BTreeMap::new();
        for device in &self.devices {
            let other = profile_of.entry(&device.kind).or_insert(&device.profile);
            if *other != device.profile {
                let problem = FleetProblem::SecondProfile {
                    kind: device.kind.clone(),
                    other: (*other).to_owned(),
                };
                faults.push_at(device.line, format!("{}.profile", device.path), problem);
            }
        }
        let mut names = BTreeSet::new();
        for model in &self.models {
            if model.specs.iter().any(|spec| !names.insert(&spec.name)) {
                faults.push_at(
                    model.line,
                    format!("{}.name", model.path),
                    FleetProblem::Duplicate,
                );
            }
        }
    }
}

impl RawDevice {
    fn expand(&self, profile: &Arc<DeviceProfile>, devices: &mut Vec<DeviceSpec>) {
        let first = devices.iter().filter(|device| device.kind == self.kind).count();
        for number in (first..).take(self.count as usize) {
            let worker = WorkerId::new(format!("{}-{number}", self.kind));
            devices.push(DeviceSpec {
                worker: worker.expect("a kind was checked to be the stem of a worker's name"),
                kind: self.kind.clone(),
                profile: Arc::clone(profile),
                cost_per_hour: self.cost_per_hour.unwrap_or_else(|| profile.cost()),
                memory_bytes: self.memory_bytes,
                memory_bytes_per_s: self.memory_bytes_per_s,
                slots: self.slots,
                batch_tokens_max: self.batch_tokens_max,
                models_max: self.models_max,
            });
        }
    }
}

impl RawModel {
    fn expand(
        self,
        profiles: &BTreeMap<String, Arc<DeviceProfile>>,
        fleet: &mut FleetSpec,
        faults: &mut Vec<FleetFault>,
    ) {
        let Self {
            line, path, specs, ..
        } = self;
        let mut own = BTreeMap::new();
        for (kind, file) in self.profiles {
            match profile(profiles, &kind, &file) {
                Ok(profile) => {
                    own.insert(kind, profile);
                }
                Err(problem) => {
                    let key = format!("{path}.profiles.{kind}");
                    faults.push(FleetFault { line, key, problem });
                }
            }
        }
        let most = fleet.devices.iter().map(|device| device.memory_bytes).max();
        if let (Some(most), Some(spec)) = (most, specs.first())
            && spec.bytes_min() > most
        {
            let problem = FleetProblem::TooLarge {
                bytes: spec.bytes_min(),
            };
            let key = format!("{path}.weights");
            faults.push(FleetFault { line, key, problem });
        }
        fleet.models.extend(specs.into_iter().map(|spec| ModelSpec {
            profiles: own.clone(),
            ..spec
        }));
    }
}

fn profile(
    profiles: &BTreeMap<String, Arc<DeviceProfile>>,
    kind: &str,
    file: &str,
) -> Result<Arc<DeviceProfile>, FleetProblem> {
    let Some(profile) = profiles.get(file) else {
        let file = file.to_owned();
        return Err(FleetProblem::NoProfile { file });
    };
    if profile.kind() != kind {
        return Err(FleetProblem::OtherKind {
            file: file.to_owned(),
            found: profile.kind().to_owned(),
        });
    }
    Ok(Arc::clone(profile))
}

/// Reads the entries of an array of tables.
fn read_each<T>(
    root: &mut TableReader<'_>,
    key: &'static str,
    faults: &mut Faults<'_>,
    read: impl Fn(&mut TableReader<'_>, &mut Faults<'_>, Place) -> Option<T>,
) -> Vec<T> {
    let expected = "one or more tables, each under a line with its name in double brackets";
    let found = root.required(faults, key, expected, |item| item.as_array_of_tables().cloned());
    let mut entries = Vec::new();
    for (index, table) in found.iter().flat_map(|found| found.value.iter()).enumerate() {
        let place = Place {
            path: format!("{key}[{index}]"),
            line: faults.line(table.span()),
        };
        let mut reader = TableReader::new(place.path.clone(), table, table.span());
        entries.extend(read(&mut reader, faults, place));
        reader.finish(faults);
    }
    entries
}

/// Where an entry stands.
struct Place {
    path: String,
    line: usize,
}

fn read_limits(root: &mut TableReader<'_>, faults: &mut Faults<'_>) -> FleetLimits {
    let mut limits = FleetLimits::default();
    let Some(mut reader) = root.table(faults, "network") else {
        return limits;
    };
    let latency = reader.optional(faults, "latency_ms", "milliseconds from 0", number);
    if let Some(latency) = latency {
        limits.network_latency = Duration::from_secs_f64(latency.value / 1e3);
    }
    let keep_alive = reader.optional(
        faults,
        "keep_alive_s",
        "whole seconds from 0, or -1",
        Item::as_integer,
    );
    match keep_alive.map(|found| found.value) {
        Some(seconds @ 0..) => {
            limits.keep_alive = KeepAlive::Ms(seconds.unsigned_abs().saturating_mul(1_000));
        }
        Some(_) => limits.keep_alive = KeepAlive::UntilEvicted,
        None => {}
    }
    reader.finish(faults);
    limits
}

fn read_device(reader: &mut TableReader<'_>, faults: &mut Faults<'_>, place: Place) -> Option<RawDevice> {
    let kind = reader.required(faults, "kind", "the name of a kind", text);
    let kind = kind.and_then(
        |kind| match WorkerId::new(format!("{}-{DEVICE_NUMBER_MAX}", kind.value)) {
            Ok(_) => Some(kind.value),
            Err(error) => {
                faults.push(kind.span, kind.key, error.into());
                None
            }
        },
    );
    let profile = reader.required(faults, "profile", "the file of a profile", text);
    let memory = reader.required(faults, "memory", "bytes, such as \"24GiB\"", bytes);
    let count = reader.optional(faults, "count", "a whole number from 1 to 1000", |item| {
        count(item).filter(|count| *count <= DEVICE_NUMBER_MAX)
    });
    let slots = reader.optional(faults, "slots", "a whole number from 1", self::count);
    let batch_tokens = reader.optional(faults, "batch_tokens", "a whole number from 1", self::count);
    let models_max = reader.optional(faults, "models_max", "a whole number from 1", self::count);
    let cost = reader.optional(faults, "cost", "a number from 0", number);
    let bandwidth = reader.optional(
        faults,
        "memory_bytes_per_s",
        "a whole number from 1",
        whole(1, u64::MAX),
    );
    let slots = slots.map_or(SLOTS, |found| found.value);
    Some(RawDevice {
        line: place.line,
        path: place.path,
        kind: kind?,
        count: count.map_or(1, |found| found.value),
        profile: profile?.value,
        memory_bytes: memory?.value,
        memory_bytes_per_s: bandwidth.map(|found| found.value),
        slots,
        batch_tokens_max: batch_tokens.map_or(BATCH_TOKENS, |found| found.value).max(slots),
        models_max: models_max.map(|found| found.value as usize),
        cost_per_hour: cost.map(|found| found.value),
    })
}

fn read_model(reader: &mut TableReader<'_>, faults: &mut Faults<'_>, place: Place) -> Option<RawModel> {
    let stem = reader.required(faults, "name", "the name of a model", text);
    let weights = reader.required(faults, "weights", "bytes, such as \"8GiB\"", bytes);
    let copies = reader.optional(faults, "count", "a whole number from 1 to 99", |item| {
        count(item).filter(|count| *count <= COPIES_MAX)
    });
    let mut whole_from_1 = |key| {
        let found = reader.optional(faults, key, "a whole number from 1", count);
        found.map(|found| found.value)
    };
    let kv_bytes_per_token = whole_from_1("kv_bytes_per_token");
    let context_tokens_max = whole_from_1("context_tokens");
    let (slots, output_tokens_prior) = (whole_from_1("slots"), whole_from_1("output_tokens_prior"));
    let (policy, start) = read_treatment(reader, faults);
    let slo = read_slo(reader, faults);
    let expected = "a table of kinds and the files of profiles";
    let profiles = reader.optional(faults, "profiles", expected, files_by_kind);
    let spec = ModelSpec {
        name: name(&stem?, faults)?,
        weights_bytes: weights?.value,
        kv_bytes_per_token: kv_bytes_per_token.map_or(KV_BYTES_PER_TOKEN, u64::from),
        context_tokens_max: context_tokens_max.unwrap_or(CONTEXT_TOKENS),
        slots,
        slo,
        policy,
        output_tokens_prior,
        start,
        profiles: BTreeMap::new(),
    };
    Some(RawModel {
        line: place.line,
        path: place.path,
        specs: copies.map_or_else(|| vec![spec.clone()], |found| numbered(&spec, found.value)),
        profiles: profiles.map(|found| found.value).unwrap_or_default(),
    })
}

/// How a model is treated: by the dispatcher, and before the trace begins.
fn read_treatment(reader: &mut TableReader<'_>, faults: &mut Faults<'_>) -> (Option<Policy>, Start) {
    let policy = reader.optional(faults, "policy", "slo, pack, spread or fifo", |item| {
        item.as_str()?.parse().ok()
    });
    let start = reader.optional(faults, "start", "\"cold\" or \"warm\"", |item| {
        match item.as_str()? {
            "cold" => Some(Start::Cold),
            "warm" => Some(Start::Warm),
            _ => None,
        }
    });
    (
        policy.map(|found| found.value),
        start.map_or(Start::Cold, |found| found.value),
    )
}

fn name(found: &Found<String>, faults: &mut Faults<'_>) -> Option<ModelName> {
    let longest = ModelName::new(format!("{}-{COPIES_MAX}", found.value));
    match longest.and_then(|_| ModelName::new(&found.value)) {
        Ok(name) => Some(name),
        Err(error) => {
            faults.push(found.span.clone(), found.key.clone(), error.into());
            None
        }
    }
}

/// As many models of one kind, each with a number behind its name.
fn numbered(spec: &ModelSpec, count: u32) -> Vec<ModelSpec> {
    let one = |number: u32| ModelSpec {
        name: ModelName::new(format!("{}-{number:02}", spec.name)).expect("the longest name was checked"),
        ..spec.clone()
    };
    (1..=count).map(one).collect()
}

fn read_slo(reader: &mut TableReader<'_>, faults: &mut Faults<'_>) -> Option<Slo> {
    let mut reader = reader.table(faults, "slo")?;
    let mut target = |key| {
        let found = reader.optional(faults, key, "milliseconds above 0", above_zero);
        found.map(|found| found.value)
    };
    let slo = Slo {
        e2e_ms: target("e2e_ms"),
        ttft_ms: target("ttft_ms"),
        tpot_ms: target("tpot_ms"),
        tpat_ms: target("tpat_ms"),
    };
    reader.finish(faults);
    Some(slo)
}

fn files_by_kind(item: &Item) -> Option<BTreeMap<String, String>> {
    let table: &dyn TableLike = item.as_table_like()?;
    let files = table.iter();
    files
        .map(|(kind, file)| Some((kind.to_owned(), text(file)?)))
        .collect()
}

/// As the worker's own default.
const SLOTS: u32 = 32;
/// As the worker's own default.
const BATCH_TOKENS: u32 = 512;
/// 32 layers of 8 heads with 128 numbers of 16 bits, keys and values.
const KV_BYTES_PER_TOKEN: u64 = 131_072;
/// Two digits behind a name.
const COPIES_MAX: u32 = 99;
/// Enough for the long prompts of the built-in traces.
const CONTEXT_TOKENS: u32 = 8_192;
/// As many workers as a dispatcher takes by default.
const DEVICE_NUMBER_MAX: u32 = 1_000;
