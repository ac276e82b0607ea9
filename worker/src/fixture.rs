//! What the tests of this crate run on: the demonstration models.

use std::path::{Path, PathBuf};

use flotilla_worker_engine::StepLimits;

/// Folder of a demonstration model.
pub(crate) fn demo_folder(model: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../cli/demo-models")
        .join(model)
}

/// Steps large enough for several short requests.
pub(crate) fn demo_limits() -> StepLimits {
    StepLimits {
        batch_tokens_max: 64,
        sequences_max: 8,
    }
}
