//! How a model's queue stands, by class, for metrics.

use std::collections::BTreeSet;

use flotilla_protocol::{Class, ModelName};

use super::{Line, Place, Queue};
use crate::input::StreamSequence;
use crate::micros::Micros;

/// How a model's queue stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct QueueCensus {
    /// In the order of [`Class::ALL`].
    pub(crate) classes: [ClassCensus; Class::ALL.len()],
    pub(crate) given_up: usize,
    pub(crate) late: usize,
}

/// How the waiting requests of a model and class stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct ClassCensus {
    pub(crate) count: usize,
    /// Device time that they need, in microseconds.
    pub(crate) work_us: i64,
    pub(crate) oldest: Option<StreamSequence>,
    /// When the first of those that can be in time has to start.
    pub(crate) latest_start: Option<Micros>,
}

/// What waits for a model, by class.
#[derive(Debug, Default)]
pub(super) struct Classes([OfClass; Class::ALL.len()]);

#[derive(Debug, Default)]
struct OfClass {
    work_us: i64,
    /// Older ones have smaller numbers.
    sequences: BTreeSet<StreamSequence>,
}

impl Queue {
    /// How a model's queue stands; costs as much as it has lines.
    pub(crate) fn census(&self, model: &ModelName) -> QueueCensus {
        let mut census = QueueCensus::default();
        let Some(of_model) = self.models.get(model) else {
            return census;
        };
        for (told, of_class) in census.classes.iter_mut().zip(&of_model.classes.0) {
            told.count = of_class.sequences.len();
            told.work_us = of_class.work_us;
            told.oldest = of_class.sequences.first().copied();
        }
        for (line, of_line) in &of_model.lines {
            match line {
                Line::Live { class, .. } => {
                    let first = of_line.requests.keys().next().map(|urgency| urgency.at);
                    let first = first.filter(|at| *at != Micros::NEVER);
                    let known = &mut census.classes[index_of(*class)].latest_start;
                    *known = [*known, first].into_iter().flatten().min();
                }
                Line::GivenUp => census.given_up = of_line.requests.len(),
                Line::Late => census.late = of_line.requests.len(),
            }
        }
        census
    }
}

impl Classes {
    pub(super) fn insert(&mut self, place: &Place) {
        let of_class = &mut self.0[index_of(place.class)];
        of_class.work_us += place.work_us;
        of_class.sequences.insert(place.urgency.sequence);
    }

    pub(super) fn remove(&mut self, place: &Place) {
        let of_class = &mut self.0[index_of(place.class)];
        of_class.work_us -= place.work_us;
        of_class.sequences.remove(&place.urgency.sequence);
    }

    pub(super) fn len(&self) -> usize {
        self.0.iter().map(|of_class| of_class.sequences.len()).sum()
    }
}

/// The place of a class in [`Class::ALL`].
fn index_of(class: Class) -> usize {
    match class {
        Class::Interactive => 0,
        Class::Batch => 1,
    }
}
