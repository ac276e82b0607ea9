//! What the tests of this crate run on: the demonstration models.

use std::path::{Path, PathBuf};

use flotilla_worker_engine::StepLimits;
use tempfile::TempDir;

/// Folder of a demonstration model.
pub(crate) fn demo_folder(model: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../cli/demo-models")
        .join(model)
}

/// A small encoder, of whose vocabulary word `n` is written `w<n>`.
pub(crate) fn encoder_folder() -> TempDir {
    let folder = tempfile::tempdir().expect("a folder can be made");
    flotilla_tests::write_encoder("bert-mean-f32", folder.path()).expect("the files can be copied");
    folder
}

/// Steps large enough for several short requests.
pub(crate) fn demo_limits() -> StepLimits {
    StepLimits {
        batch_tokens_max: 64,
        sequences_max: 8,
    }
}
