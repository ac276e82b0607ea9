//! What admission knows of the models: the catalog as watched, and the texts of those in use.

use std::collections::HashMap;
use std::sync::Arc;

use flotilla_protocol::ModelName;
use flotilla_protocol::catalog::CatalogEntry;

use crate::prompt::TextCell;

/// The catalog and a bounded number of opened tokenizers.
#[derive(Debug)]
pub(crate) struct Models {
    entries: HashMap<ModelName, Arc<CatalogEntry>>,
    entries_max: usize,
    texts: HashMap<ModelName, CachedText>,
    uses: u64,
}

#[derive(Debug)]
struct CachedText {
    cell: TextCell,
    last_use: u64,
}

impl Models {
    pub(crate) fn new(entries_max: usize) -> Self {
        Self {
            entries: HashMap::new(),
            entries_max,
            texts: HashMap::new(),
            uses: 0,
        }
    }

    /// A model is there, newly or with other settings: its files may be others.
    pub(crate) fn put(&mut self, entry: CatalogEntry) {
        self.texts.remove(&entry.name);
        // Beyond the limit a model is looked up in the catalog itself, request by request.
        if self.entries.len() < self.entries_max || self.entries.contains_key(&entry.name) {
            self.entries.insert(entry.name.clone(), Arc::new(entry));
        }
    }

    pub(crate) fn remove(&mut self, model: &ModelName) {
        self.entries.remove(model);
        self.texts.remove(model);
    }

    /// What is known of a model; the cell is filled by whoever first counts a prompt of it.
    pub(crate) fn lookup(&mut self, model: &ModelName) -> (Option<Arc<CatalogEntry>>, TextCell) {
        (self.entries.get(model).cloned(), self.text(model))
    }

    fn text(&mut self, model: &ModelName) -> TextCell {
        self.uses += 1;
        if !self.texts.contains_key(model) && self.texts.len() >= TEXTS_MAX {
            let oldest = self.texts.iter().min_by_key(|(_, text)| text.last_use);
            if let Some(oldest) = oldest.map(|(model, _)| model.clone()) {
                self.texts.remove(&oldest);
            }
        }
        let text = self.texts.entry(model.clone()).or_insert_with(|| CachedText {
            cell: TextCell::default(),
            last_use: 0,
        });
        text.last_use = self.uses;
        text.cell.clone()
    }
}

/// Tokenizers that are kept open: each has up to some 100 MB in memory.
const TEXTS_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    fn model(number: usize) -> ModelName {
        ModelName::new(format!("m{number}")).unwrap()
    }

    #[test]
    fn least_recently_used_text_goes_first() {
        let mut models = Models::new(1);
        let (_, first) = models.lookup(&model(0));
        for number in 1..TEXTS_MAX {
            models.lookup(&model(number));
        }
        models.lookup(&model(0));
        models.lookup(&model(TEXTS_MAX));
        assert!(first.is(&models.lookup(&model(0)).1));
        assert!(!models.texts.contains_key(&model(1)));
        assert_eq!(models.texts.len(), TEXTS_MAX);
    }
}
