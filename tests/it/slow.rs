//! A model slow enough that something can happen in the middle of an answer.

use anyhow::Result;
use flotilla_tests::{Fleet, ModelFolderBuilder, Question, eventually};
use tempfile::TempDir;

/// A folder of models with one, `slow`.
pub fn slow_models() -> Result<TempDir> {
    let folder = tempfile::tempdir()?;
    ModelFolderBuilder::default().write(&folder.path().join("slow"))?;
    Ok(folder)
}

/// The same question under another id.
pub fn again(question: &Question) -> Question {
    Question {
        request: flotilla_client::new_request_id(),
        ..question.clone()
    }
}

/// The number of the worker whose report lists a request with at least so many tokens of an answer.
pub async fn worker_of(fleet: &Fleet, question: &Question, output_tokens_min: u32) -> usize {
    eventually("the request to run", async || {
        let workers = fleet.status().await.ok()?.workers;
        let runs = workers.iter().find(|worker| {
            let mut running = worker.report.running.iter();
            running.any(|run| run.request == question.request && run.output_tokens >= output_tokens_min)
        })?;
        runs.report.worker.as_str().strip_prefix('w')?.parse().ok()
    })
    .await
}
