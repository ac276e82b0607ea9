//! The folder of models: what is in it and not in the catalog is added.

use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, io};

use flotilla_client::{Catalog, CatalogError};
use flotilla_protocol::ModelName;
use flotilla_protocol::catalog::CatalogEntry;
use tokio::time::{Instant, sleep};
use tracing::{debug, info, warn};

use crate::error::chain;
use crate::model::describe;

/// Adds each model folder of `models_dir` to the catalog. One that is broken is logged and skipped: the
/// others serve all the same.
pub(crate) async fn add_models(models_dir: PathBuf, catalog: &Catalog) {
    let path = models_dir.clone();
    let folders = match tokio::task::spawn_blocking(move || model_folders(&path)).await {
        Ok(Ok(folders)) => folders,
        Ok(Err(error)) => {
            warn!(folder = %models_dir.display(), %error, "the folder of models cannot be read");
            return;
        }
        Err(error) => {
            warn!(folder = %models_dir.display(), %error, "reading the folder of models broke");
            return;
        }
    };
    for folder in folders {
        add_model(folder, catalog).await;
    }
}

async fn add_model(folder: PathBuf, catalog: &Catalog) {
    let shown = folder.display().to_string();
    let named = folder.file_name().and_then(|name| name.to_str());
    let name = match named.map(ModelName::new) {
        Some(Ok(name)) => name,
        Some(Err(error)) => {
            warn!(folder = shown, %error, "the folder's name is no model name");
            return;
        }
        None => {
            warn!(folder = shown, "the folder's name is not text");
            return;
        }
    };
    let described = tokio::task::spawn_blocking(move || describe(name, &folder)).await;
    let entry = match described {
        Ok(Ok(entry)) => entry,
        Ok(Err(error)) => {
            warn!(
                folder = shown,
                error = chain(&error),
                "a model folder is broken and skipped"
            );
            return;
        }
        Err(error) => {
            warn!(folder = shown, %error, "reading a model folder broke; it is skipped");
            return;
        }
    };
    match add_patiently(catalog, &entry).await {
        Ok(()) => info!(model = %entry.name, folder = shown, "model added to the catalog"),
        Err(CatalogError::Exists { model }) => debug!(%model, "the catalog has the model already"),
        Err(error) => warn!(model = %entry.name, error = chain(&error), "a model could not be added"),
    }
}

/// Adds a model also when the servers elect a leader meanwhile: nobody looks at the folder again.
async fn add_patiently(catalog: &Catalog, entry: &CatalogEntry) -> Result<(), CatalogError> {
    let begun = Instant::now();
    loop {
        match catalog.add(entry).await {
            Err(error @ CatalogError::Store { .. }) if begun.elapsed() < PATIENCE => {
                debug!(model = %entry.name, error = chain(&error), "a model cannot be added yet");
                sleep(RETRY_AFTER).await;
            }
            added => return added,
        }
    }
}

/// The subfolders that hold a configuration, by name.
fn model_folders(models_dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut folders = Vec::new();
    for entry in fs::read_dir(models_dir)? {
        let folder = entry?.path();
        if folder.join("config.json").is_file() {
            folders.push(folder);
        }
    }
    folders.sort();
    Ok(folders)
}

/// How long the servers may take to elect a leader, several times.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two tries.
const RETRY_AFTER: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::demo_folder;

    #[test]
    fn only_subfolders_with_a_configuration_are_models() {
        let demo_models = demo_folder("adder").parent().unwrap().to_owned();
        let names: Vec<_> = model_folders(&demo_models)
            .unwrap()
            .iter()
            .map(|folder| folder.file_name().unwrap().to_str().unwrap().to_owned())
            .collect();
        assert_eq!(names, ["adder", "reverser", "sorter"]);
    }
}
