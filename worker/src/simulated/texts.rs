//! The text side of models, opened once for all workers of a process.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use flotilla_prompt::{ModelBounds, PromptMaker};
use flotilla_protocol::ModelName;
use tracing::warn;

use crate::error::chain;
use crate::model::ModelText;

/// Tokenizers of model folders, by folder; one has up to some 100 MB, and hundreds of workers may serve the
/// same model.
#[derive(Debug, Default)]
pub(super) struct SharedTexts {
    // Guards what is open. Not a channel, because everybody is on a thread for blocking work, where waiting for
    // files that another one opens is no worse than opening them.
    open: Mutex<HashMap<PathBuf, (ModelBounds, Weak<ModelText>)>>,
}

impl SharedTexts {
    /// The text side of a model by its folder, or by rule when the folder's text files cannot be used here.
    /// Reads files and takes up to seconds.
    pub(super) fn of_folder(&self, model: &ModelName, folder: &Path, bounds: ModelBounds) -> Arc<ModelText> {
        // A panic of another caller leaves entries as they were.
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let known = open.get(folder).filter(|(of, _)| *of == bounds);
        if let Some(text) = known.and_then(|(_, text)| text.upgrade()) {
            return text;
        }
        open.retain(|_, (_, text)| text.strong_count() > 0);
        let prompts = match PromptMaker::open(folder, bounds) {
            Ok(prompts) => prompts,
            Err(error) => {
                let error = chain(&error);
                warn!(%model, error, "the model's text files cannot be used here; its text is simulated too");
                PromptMaker::simulated(bounds)
            }
        };
        let text = Arc::new(ModelText::simulated(prompts));
        open.insert(folder.to_owned(), (bounds, Arc::downgrade(&text)));
        text
    }
}

#[cfg(test)]
mod tests {
    use flotilla_protocol::catalog::ModelTask;

    use super::*;
    use crate::fixture::demo_folder;

    const BOUNDS: ModelBounds = ModelBounds {
        task: ModelTask::Generate,
        vocabulary_size: 16,
        context_tokens_max: 128,
    };

    #[test]
    fn text_is_opened_once_for_all_who_hold_it_and_anew_for_other_bounds() {
        let (texts, folder) = (SharedTexts::default(), demo_folder("adder"));
        let model = ModelName::new("adder").unwrap();
        let first = texts.of_folder(&model, &folder, BOUNDS);
        assert!(Arc::ptr_eq(&first, &texts.of_folder(&model, &folder, BOUNDS)));
        let other = ModelBounds {
            context_tokens_max: 64,
            ..BOUNDS
        };
        assert!(!Arc::ptr_eq(&first, &texts.of_folder(&model, &folder, other)));
    }

    #[test]
    fn folder_without_text_files_has_a_text_by_rule() {
        let (texts, folder) = (SharedTexts::default(), tempfile::tempdir().unwrap());
        let text = texts.of_folder(&ModelName::new("m").unwrap(), folder.path(), BOUNDS);
        assert_eq!(text.prompts.tokenizer().decode_all(&[1, 2]).unwrap(), "ba be");
    }
}
