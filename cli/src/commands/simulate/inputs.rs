//! Traces, fleets and profiles from their files.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use flotilla_profile::DeviceProfile;
use flotilla_protocol::profile::Profile;
use flotilla_simulator::fleet::{FleetFile, FleetSpec};
use flotilla_simulator::trace::{BuiltinTrace, Recipe, Trace};

use super::SimulateArguments;
use crate::commands::UsageError;

/// The trace that the arguments name.
///
/// # Errors
/// When it is neither built in nor a file that can be read, or the file is wrong.
pub(super) fn trace(arguments: &SimulateArguments) -> anyhow::Result<Trace> {
    let duration = arguments.duration.map(Duration::from_secs_f64);
    let unknown = match arguments.trace.parse::<BuiltinTrace>() {
        Ok(built_in) => {
            return Ok(built_in.make(&Recipe {
                seed: arguments.seed,
                rate: arguments.rate,
                duration: duration.unwrap_or(built_in.duration()),
            }));
        }
        Err(unknown) => unknown,
    };
    let path = Path::new(&arguments.trace);
    if !path.exists() {
        return Err(UsageError::new(unknown.to_string()).into());
    }
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let name = path
        .file_stem()
        .map_or(arguments.trace.as_str().into(), |stem| stem.to_string_lossy());
    let trace = Trace::parse(name, &text).with_context(|| format!("{} is no trace", path.display()))?;
    let trace = trace.at_rate(arguments.rate);
    Ok(match duration {
        Some(duration) => trace.until(duration),
        None => trace,
    })
}

/// The fleet that the arguments name, with its profiles.
///
/// # Errors
/// When there is none, or a file cannot be read or is wrong.
pub(super) fn fleet(arguments: &SimulateArguments) -> anyhow::Result<FleetSpec> {
    let Some(path) = &arguments.fleet else {
        let built_in = arguments.trace.parse::<BuiltinTrace>();
        let built_in =
            built_in.map_err(|_| UsageError::new("a trace file needs a fleet; give --fleet FILE"))?;
        return Ok(built_in.fleet());
    };
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let file = FleetFile::parse(&text).with_context(|| format!("{} is no fleet", path.display()))?;
    let folder = path.parent().unwrap_or(Path::new(""));
    let mut profiles = BTreeMap::new();
    for name in file.profiles() {
        profiles.insert(name.to_owned(), Arc::new(profile(&folder.join(name))?));
    }
    let fleet = file.into_fleet(&profiles);
    fleet.with_context(|| format!("{} is no fleet", path.display()))
}

/// Writes a trace's requests.
///
/// # Errors
/// When the file cannot be written.
pub(super) fn write_trace(path: &Path, trace: &Trace) -> anyhow::Result<()> {
    fs::write(path, trace.to_jsonl()).with_context(|| format!("cannot write {}", path.display()))
}

fn profile(path: &Path) -> anyhow::Result<DeviceProfile> {
    let body = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let wrong = || format!("{} is no profile", path.display());
    let profile = Profile::from_json(&body).with_context(wrong)?;
    DeviceProfile::try_from(profile).with_context(wrong)
}
