//! The text sides of models that were looked at last: a tokenizer takes longer to read than a swap from host memory
//! takes otherwise, and models that take turns are looked at again with every load.

use std::collections::VecDeque;
use std::sync::Arc;

use flotilla_protocol::ModelName;

use crate::files::FilesIdentity;
use crate::jobs::KnownText;
use crate::model::ModelText;

/// Some models' text sides with the files that they were made of, the model that was looked at last first.
#[derive(Debug, Default)]
pub(super) struct RecentTexts {
    known: VecDeque<(ModelName, KnownText)>,
}

impl RecentTexts {
    /// What was known of a model when it was looked at last.
    pub(super) fn of(&self, model: &ModelName) -> Option<KnownText> {
        let found = self.known.iter().find(|(name, _)| name == model);
        found.map(|(_, known)| known.clone())
    }

    /// Notes what a look at a model has found; the one that was looked at longest ago is forgotten for it.
    pub(super) fn note(&mut self, model: &ModelName, files: &FilesIdentity, text: &Arc<ModelText>) {
        self.known.retain(|(name, _)| name != model);
        self.known.truncate(KEPT - 1);
        let known = KnownText {
            files: files.clone(),
            text: Arc::clone(text),
        };
        self.known.push_front((model.clone(), known));
    }
}

/// Those of loaded models are in memory anyway. Of others, a large tokenizer takes some 100 MB.
const KEPT: usize = 4;

#[cfg(test)]
mod tests {
    use flotilla_worker_engine::AllHere;

    use super::*;
    use crate::fixture::{demo_folder, demo_limits};
    use crate::model::OpenedModel;

    #[test]
    fn text_sides_of_the_last_models_are_kept() {
        let folder = demo_folder("adder");
        let files = FilesIdentity::of(&folder, None).unwrap();
        let text = OpenedModel::open(&folder, &AllHere, demo_limits(), None, None)
            .unwrap()
            .text;
        let names: Vec<_> = (0..=KEPT)
            .map(|index| ModelName::new(format!("model-{index}")).unwrap())
            .collect();
        let mut recent = RecentTexts::default();
        for name in &names[..KEPT] {
            recent.note(name, &files, &text);
        }
        recent.note(&names[0], &files, &text);
        recent.note(&names[KEPT], &files, &text);
        let kept: Vec<bool> = names.iter().map(|name| recent.of(name).is_some()).collect();
        assert_eq!(kept, [true, false, true, true, true]);
    }
}
