//! A bound on the models that metrics tell apart.
//!
//! What is counted stays until the process ends, while the catalog changes: whoever adds and removes models for months
//! must not fill the memory of the process, nor that of the Prometheus behind it.

use std::collections::HashSet;
use std::sync::{LazyLock, PoisonError, RwLock};

/// Names told apart by a process, as many as the catalog has by default.
const MODELS_MAX: usize = 10_000;

/// What all beyond them are called; no model can have this name, as it begins with an underscore.
const OTHERS: &str = "_others";

/// A lock, because metrics are counted on every thread; it is held for a look-up.
static SEEN: LazyLock<RwLock<HashSet<Box<str>>>> = LazyLock::new(RwLock::default);

/// The model's name, or what all are called that are too many.
pub(crate) fn bounded(model: &str) -> &str {
    bounded_by(&SEEN, MODELS_MAX, model)
}

fn bounded_by<'a>(seen: &RwLock<HashSet<Box<str>>>, models_max: usize, model: &'a str) -> &'a str {
    if seen
        .read()
        .unwrap_or_else(PoisonError::into_inner)
        .contains(model)
    {
        return model;
    }
    let mut seen = seen.write().unwrap_or_else(PoisonError::into_inner);
    if seen.contains(model) {
        return model;
    }
    if seen.len() >= models_max {
        return OTHERS;
    }
    seen.insert(model.into());
    model
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_beyond_the_limit_are_told_as_one() {
        let seen = RwLock::default();
        let told = ["a", "b", "c", "a", "d"].map(|model| bounded_by(&seen, 2, model));
        assert_eq!(told, ["a", "b", OTHERS, "a", OTHERS]);
    }
}
