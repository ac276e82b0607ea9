//! What fleets of simulated devices are made of: profiles and models.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use flotilla_protocol::ModelName;
use flotilla_protocol::catalog::{CatalogEntry, ModelFacts, ModelSource, ModelTask};
use serde_json::{Value, json};

/// A profile that comes with the program: a fast device, whose loads take 20 s from their origin.
#[must_use]
pub fn sample_profile() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/profiles/sample-fast.json")
}

/// Writes the sample profile with other load times.
///
/// # Errors
/// When the file cannot be written.
pub fn write_profile(path: &Path, origin: Duration, host: Duration) -> Result<()> {
    let mut profile: Value = serde_json::from_str(&fs::read_to_string(sample_profile())?)?;
    profile["load_seconds_by_tier"] = json!({"origin": origin.as_secs_f64(), "host": host.as_secs_f64()});
    fs::write(path, profile.to_string())?;
    Ok(())
}

/// The entry of a simulated model with so many bytes of weights and a context of 1024 tokens.
///
/// # Panics
/// When the name is none.
#[must_use]
pub fn simulated_model(name: &str, weights_bytes: u64) -> CatalogEntry {
    CatalogEntry {
        name: ModelName::new(name).expect("the test names a model"),
        source: ModelSource::Simulated {
            kv_bytes_per_token: 128 << 10,
        },
        facts: ModelFacts {
            architecture: "simulated".to_owned(),
            context_tokens_max: 1024,
            vocabulary_size: 32_000,
            weights_bytes,
            task: ModelTask::Generate,
        },
        root: None,
        slots: None,
        keep_alive: None,
        pin: false,
        slo: None,
        quantize: None,
        policy: None,
        output_tokens_prior: None,
    }
}
