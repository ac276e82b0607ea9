//! The profiles of a simulated device, out of their files.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use flotilla_config::ProfileFile;
use flotilla_profile::{BadProfile, DeviceProfile, LoadTier, StepTimes};
use flotilla_protocol::profile::Profile;
use flotilla_protocol::{IdError, ModelName};
use thiserror::Error;

use super::LoadTimes;

/// Why a device cannot be simulated.
#[derive(Debug, Error)]
pub enum SimulationError {
    /// No profile is given; the configuration checks the same.
    #[error("a simulated device takes its times from a profile; set worker.simulated.profile")]
    NoProfile,
    /// A profile is for something that cannot be a model.
    #[error("worker.simulated.profile gives a file for {name:?}")]
    Model {
        /// What it is for.
        name: String,
        /// Why that is no model.
        source: IdError,
    },
    /// A file cannot be read.
    #[error("cannot read the profile {path}; give another file by worker.simulated.profile", path = path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file is no profile, or its figures make no sense.
    #[error("{path} cannot be used; correct it or give another file", path = path.display())]
    Bad {
        /// The file.
        path: PathBuf,
        /// Where it is wrong, every figure at once.
        source: BadProfile,
    },
    /// Two profiles are of different devices.
    #[error(
        "{path} is of device kind {kind:?} (its field gpu), and {other_path} of {other_kind:?}; \
         a worker has one device: give profiles of one kind",
        path = path.display(),
        other_path = other_path.display()
    )]
    Kinds {
        /// One file.
        path: PathBuf,
        /// Its device.
        kind: String,
        /// Another file.
        other_path: PathBuf,
        /// Its device.
        other_kind: String,
    },
}

/// The profiles of one kind of device.
#[derive(Debug)]
pub(super) struct Profiles {
    kind: String,
    cost: f64,
    every: Option<Arc<Timing>>,
    by_model: BTreeMap<ModelName, Arc<Timing>>,
}

/// How fast a device is with one model.
#[derive(Debug)]
pub(crate) struct Timing {
    /// Its steps.
    pub(crate) steps: StepTimes,
    origin: Option<Duration>,
    host: Option<Duration>,
}

impl Profiles {
    /// Reads files; the device is that of the first.
    ///
    /// # Errors
    /// [`SimulationError`]: the first fault found, with its file.
    pub(super) fn read(files: &[ProfileFile]) -> Result<Self, SimulationError> {
        let (mut every, mut by_model) = (None, BTreeMap::new());
        let mut first: Option<(&Path, DeviceProfile)> = None;
        for ProfileFile { model, path } in files {
            let profile = read(path)?;
            let timing = Arc::new(Timing::new(&profile));
            match model {
                None => every = Some(timing),
                Some(name) => {
                    by_model.insert(model_name(name)?, timing);
                }
            }
            match &first {
                None => first = Some((path, profile)),
                Some((first_path, of_first)) => same_kind((first_path, of_first), (path, &profile))?,
            }
        }
        let (_, device) = first.ok_or(SimulationError::NoProfile)?;
        Ok(Self {
            kind: device.kind().to_owned(),
            cost: device.cost(),
            every,
            by_model,
        })
    }

    /// Kind of the device.
    pub(super) fn kind(&self) -> &str {
        &self.kind
    }

    /// What the device costs, as its first profile says.
    pub(super) fn cost(&self) -> f64 {
        self.cost
    }

    /// How fast a model is; `None` when neither it nor every model has a profile.
    pub(super) fn timing(&self, model: &ModelName) -> Option<Arc<Timing>> {
        self.by_model.get(model).or(self.every.as_ref()).cloned()
    }
}

impl Timing {
    pub(crate) fn new(profile: &DeviceProfile) -> Self {
        Self {
            steps: StepTimes::from_profile(profile),
            origin: profile.load_time(LoadTier::Origin),
            host: profile.load_time(LoadTier::Host),
        }
    }

    /// How long loads take of a model with so many bytes of weights: as the profile says, else by the rates of
    /// a usual machine.
    pub(crate) fn load_times(&self, weights_bytes: u64) -> LoadTimes {
        let by_rate = |bytes_per_s: f64| Duration::from_secs_f64(weights_bytes as f64 / bytes_per_s);
        let origin = self.origin.unwrap_or_else(|| by_rate(ORIGIN_BYTES_PER_S));
        let host = self.host.unwrap_or_else(|| by_rate(HOST_BYTES_PER_S));
        LoadTimes {
            origin: origin.max(host),
            host,
        }
    }
}

fn model_name(name: &str) -> Result<ModelName, SimulationError> {
    ModelName::new(name).map_err(|source| SimulationError::Model {
        name: name.to_owned(),
        source,
    })
}

fn same_kind(first: (&Path, &DeviceProfile), other: (&Path, &DeviceProfile)) -> Result<(), SimulationError> {
    let ((other_path, other_kind), (path, kind)) = ((first.0, first.1.kind()), (other.0, other.1.kind()));
    if kind == other_kind {
        return Ok(());
    }
    Err(SimulationError::Kinds {
        path: path.to_owned(),
        kind: kind.to_owned(),
        other_path: other_path.to_owned(),
        other_kind: other_kind.to_owned(),
    })
}

fn read(path: &Path) -> Result<DeviceProfile, SimulationError> {
    let bytes = read_bounded(path).map_err(|source| SimulationError::Unreadable {
        path: path.to_owned(),
        source,
    })?;
    DeviceProfile::from_json(&bytes, None).map_err(|source| SimulationError::Bad {
        path: path.to_owned(),
        source,
    })
}

/// One byte more than a profile may have, so that the reader of the document tells a file that is too large.
fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    let limit_bytes = u64::try_from(Profile::BYTES_MAX).unwrap_or(u64::MAX);
    let mut bytes = Vec::new();
    File::open(path)?
        .take(limit_bytes.saturating_add(1))
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// 1 GiB/s, what a local disk or a network of 10 Gbit/s gives.
const ORIGIN_BYTES_PER_S: f64 = 1_073_741_824.0;
/// 12 GiB/s, about half of what a PCIe 4.0 link of 16 lanes could: copies are never that even.
const HOST_BYTES_PER_S: f64 = 12.0 * 1_073_741_824.0;

#[cfg(test)]
mod tests {
    use std::fs;

    use tempfile::TempDir;

    use super::*;
    use crate::error::chain;

    fn sample(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../config/profiles")
            .join(name)
    }

    fn file(model: Option<&str>, path: PathBuf) -> ProfileFile {
        ProfileFile {
            model: model.map(str::to_owned),
            path,
        }
    }

    /// The fast sample with a change.
    fn changed(folder: &TempDir, from: &str, to: &str) -> PathBuf {
        let text = fs::read_to_string(sample("sample-fast.json")).unwrap();
        assert!(text.contains(from), "{from}");
        let path = folder.path().join("changed.json");
        fs::write(&path, text.replacen(from, to, 1)).unwrap();
        path
    }

    fn fault(files: &[ProfileFile]) -> String {
        chain(&Profiles::read(files).unwrap_err())
    }

    #[test]
    fn model_has_its_own_profile_or_that_of_every_model_or_none() {
        let folder = tempfile::tempdir().unwrap();
        let slower = changed(&folder, r#""origin":20.0"#, r#""origin":90.0"#);
        let (own, other) = (ModelName::new("own").unwrap(), ModelName::new("other").unwrap());
        let files = [
            file(None, sample("sample-fast.json")),
            file(Some("own"), slower.clone()),
        ];
        let profiles = Profiles::read(&files).unwrap();
        assert_eq!(profiles.kind(), "sim-fast");
        let origin = |model| profiles.timing(model).unwrap().load_times(1).origin;
        assert_eq!((origin(&own).as_secs(), origin(&other).as_secs()), (90, 20));
        let only_own = Profiles::read(&[file(Some("own"), slower)]).unwrap();
        assert!(only_own.timing(&own).is_some() && only_own.timing(&other).is_none());
    }

    #[test]
    fn without_load_times_a_load_takes_what_a_usual_machine_needs_for_the_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let path = changed(&folder, "load_seconds_by_tier", "unknown");
        let profiles = Profiles::read(&[file(None, path)]).unwrap();
        let timing = profiles.timing(&ModelName::new("m").unwrap()).unwrap();
        let times = timing.load_times(24 << 30);
        assert_eq!((times.origin.as_secs(), times.host.as_secs()), (24, 2));
    }

    #[test]
    fn faults_name_the_file_and_the_field() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("missing.json");
        let told = fault(&[file(None, missing)]);
        assert!(
            told.contains("missing.json") && told.contains("No such file"),
            "{told}"
        );

        let negative = changed(
            &folder,
            r#""prefill_tokens_per_s":12000.0"#,
            r#""prefill_tokens_per_s":-1.0"#,
        );
        let told = fault(&[file(None, negative)]);
        assert!(
            told.contains("changed.json") && told.contains("prefill_tokens_per_s"),
            "{told}"
        );

        let no_number = changed(&folder, r#""cost":1.0"#, r#""cost":"much""#);
        let told = fault(&[file(None, no_number)]);
        assert!(told.contains("changed.json") && told.contains("cost"), "{told}");

        let told = fault(&[
            file(None, sample("sample-fast.json")),
            file(Some("m"), sample("sample-slow.json")),
        ]);
        assert!(
            told.contains("sample-slow.json") && told.contains("sim-fast"),
            "{told}"
        );
        let told = fault(&[file(Some("a\tb"), sample("sample-fast.json"))]);
        assert!(told.contains(r#""a\tb""#) && told.contains("model"), "{told}");
        assert!(fault(&[]).contains("worker.simulated.profile"));
    }

    #[test]
    fn file_larger_than_any_profile_is_refused_unread() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("large.json");
        fs::write(&path, vec![b' '; Profile::BYTES_MAX + 100]).unwrap();
        let told = fault(&[file(None, path)]);
        assert!(told.contains("large.json"), "{told}");
    }
}
