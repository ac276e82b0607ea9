//! The requests that wait for a worker.
//!
//! Each model has lines of its own: one for each class and tenant whose requests can still be in time, least slack
//! first, one for those that were given up so that more of the others are in time, and one for those that are too
//! late, by arrival. Which line is next is a matter of [`Fairness`]; within a line urgency decides.

mod fairness;

use std::collections::BTreeMap;
use std::ops::Bound::{Excluded, Unbounded};

use flotilla_protocol::{Class, ModelName, RequestId, Tenant};

use crate::input::StreamSequence;
use crate::micros::Micros;
pub(crate) use fairness::Fairness;
pub use fairness::Weights;

/// Places further back are not told.
pub(crate) const POSITION_COUNT_MAX: usize = 1000;

/// Who shares a turn.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Line {
    /// Requests of one class and tenant that can still be in time.
    Live { class: Class, tenant: Option<Tenant> },
    /// Requests given up for the sake of others, although they alone could be in time.
    GivenUp,
    /// Requests that no worker can serve in time any more.
    Late,
}

/// The order within a line: the smaller goes first. No two requests have the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Urgency {
    /// The latest start; in [`Line::Late`] the publish.
    pub(crate) at: Micros,
    pub(crate) sequence: StreamSequence,
}

/// Where a request stands in the queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) line: Line,
    pub(crate) urgency: Urgency,
    pub(crate) class: Class,
    /// Device time that it needs, in microseconds.
    pub(crate) work_us: i64,
}

/// A place among all requests, for people: those in time first, by class, then urgency.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    lateness: u8,
    class: Class,
    urgency: Urgency,
}

/// Every change costs O(log n).
#[derive(Debug, Default)]
pub(crate) struct Queue {
    models: BTreeMap<ModelName, ModelQueue>,
    order: BTreeMap<Rank, RequestId>,
    fairness: Fairness,
}

/// The lines of one model; none is empty.
#[derive(Debug, Default)]
struct ModelQueue {
    lines: BTreeMap<Line, BTreeMap<Urgency, RequestId>>,
    count: usize,
    /// Work of the live lines.
    live_work_us: i64,
}

/// How urgent a model's next request is, against that of other models; the smaller goes first.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Turn {
    served: f64,
    urgency: Urgency,
}

impl Turn {
    /// Which of two turns comes first.
    pub(crate) fn order(&self, other: &Self) -> std::cmp::Ordering {
        (self.served.total_cmp(&other.served)).then(self.urgency.cmp(&other.urgency))
    }
}

impl Queue {
    /// An empty queue whose lines have these weights.
    pub(crate) fn new(weights: Weights) -> Self {
        Self {
            fairness: Fairness::new(weights),
            ..Self::default()
        }
    }

    /// Adds a request.
    ///
    /// # Panics
    /// When the place is taken: a request would wait twice.
    pub(crate) fn insert(&mut self, model: &ModelName, place: &Place, request: RequestId) {
        if !self.models.contains_key(model) {
            self.models.insert(model.clone(), ModelQueue::default());
        }
        let of_model = self.models.get_mut(model).expect("it was just put there");
        of_model.count += 1;
        of_model.live_work_us += place.live_work_us();
        let line = of_model.lines.entry(place.line.clone()).or_default();
        line.insert(place.urgency, request.clone());
        self.fairness.join(&place.line);
        let taken = self.order.insert(place.rank(), request);
        assert!(taken.is_none(), "{taken:?} waits twice");
    }

    /// Takes a request out.
    ///
    /// # Panics
    /// When it does not wait.
    pub(crate) fn remove(&mut self, model: &ModelName, place: &Place) {
        self.order
            .remove(&place.rank())
            .expect("who leaves the queue was in it");
        let of_model = self
            .models
            .get_mut(model)
            .expect("a waiting request has its model's queue");
        of_model.count -= 1;
        of_model.live_work_us -= place.live_work_us();
        let line = of_model
            .lines
            .get_mut(&place.line)
            .expect("a waiting request has its line");
        line.remove(&place.urgency);
        if line.is_empty() {
            of_model.lines.remove(&place.line);
        }
        if of_model.lines.is_empty() {
            self.models.remove(model);
        }
        self.fairness.leave(&place.line);
    }

    /// Charges a line for the tokens of a request that got its turn.
    pub(crate) fn charge(&mut self, line: &Line, tokens: f64) {
        self.fairness.charge(line, tokens);
    }

    /// Charges a line for what it was given besides, less when it is negative.
    pub(crate) fn correct(&mut self, line: &Line, tokens: f64) {
        self.fairness.correct(line, tokens);
    }

    pub(crate) fn len(&self) -> usize {
        self.order.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// Every request, in the order that people are told.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &RequestId> {
        self.order.values()
    }

    /// Models with waiting requests.
    pub(crate) fn models(&self) -> impl Iterator<Item = &ModelName> {
        self.models.keys()
    }

    /// The first model with waiting requests after this one, or the very first.
    pub(crate) fn model_after(&self, model: Option<&ModelName>) -> Option<&ModelName> {
        let start = model.map_or(Unbounded, Excluded);
        let next = self.models.range::<ModelName, _>((start, Unbounded)).next();
        next.map(|(model, _)| model)
    }

    /// How many models have waiting requests.
    pub(crate) fn model_count(&self) -> usize {
        self.models.len()
    }

    /// Whether somebody waits for a model.
    pub(crate) fn waits_for(&self, model: &ModelName) -> bool {
        self.models.contains_key(model)
    }

    /// How urgent a model's next request is; `None` when nobody waits for it.
    pub(crate) fn turn(&self, model: &ModelName) -> Option<Turn> {
        let (line, requests) = self.next_line(self.models.get(model)?)?;
        let (urgency, _) = requests.first_key_value()?;
        Some(Turn {
            served: self.fairness.served(line),
            urgency: *urgency,
        })
    }

    /// The next requests of a model, at most `count_max`, the first one first: the heads of its lines in the order of
    /// their turns, then those behind them.
    pub(crate) fn next_of(&self, model: &ModelName, count_max: usize) -> Vec<RequestId> {
        let Some(of_model) = self.models.get(model) else {
            return Vec::new();
        };
        if let (1, Some((_, requests))) = (of_model.lines.len(), of_model.lines.first_key_value()) {
            return requests.values().take(count_max).cloned().collect();
        }
        let mut lines: Vec<_> = of_model.lines.iter().collect();
        lines.sort_by(|(left, _), (right, _)| self.fairness.order(left, right));
        let mut lines: Vec<_> = lines.into_iter().map(|(_, requests)| requests.values()).collect();
        let mut next = Vec::new();
        while next.len() < count_max {
            let before = next.len();
            let heads = lines.iter_mut().filter_map(Iterator::next);
            next.extend(heads.take(count_max - before).cloned());
            if next.len() == before {
                break;
            }
        }
        next
    }

    /// Device time that the requests of a model which can be in time need, in microseconds.
    pub(crate) fn live_work_us(&self, model: &ModelName) -> i64 {
        self.models.get(model).map_or(0, |of_model| of_model.live_work_us)
    }

    /// The requests of a model that can be in time, those given up included.
    pub(crate) fn hopeful_of(&self, model: &ModelName) -> impl Iterator<Item = &RequestId> {
        let lines = self
            .models
            .get(model)
            .into_iter()
            .flat_map(|of_model| &of_model.lines);
        let hopeful = lines.filter(|(line, _)| match line {
            Line::Live { .. } | Line::GivenUp => true,
            Line::Late => false,
        });
        hopeful.flat_map(|(_, requests)| requests.values())
    }

    /// What a line gets, in proportion to others.
    pub(crate) fn weight(&self, line: &Line) -> f64 {
        self.fairness.weight(line)
    }

    /// The requests of one model, line by line.
    pub(crate) fn requests_of(&self, model: &ModelName) -> Vec<RequestId> {
        let lines = self
            .models
            .get(model)
            .into_iter()
            .flat_map(|of_model| of_model.lines.values());
        lines.flat_map(|requests| requests.values().cloned()).collect()
    }

    fn next_line<'a>(
        &self,
        of_model: &'a ModelQueue,
    ) -> Option<(&'a Line, &'a BTreeMap<Urgency, RequestId>)> {
        of_model
            .lines
            .iter()
            .min_by(|(left, _), (right, _)| self.fairness.order(left, right))
    }

    /// # Panics
    /// When the indexes disagree.
    pub(crate) fn every_index_names_the_same_requests(&self) {
        let mut waiting: BTreeMap<&Line, usize> = BTreeMap::new();
        let mut total = 0;
        for (model, of_model) in &self.models {
            assert!(!of_model.lines.is_empty(), "{model} has lines");
            assert_eq!(
                of_model.count,
                of_model.lines.values().map(BTreeMap::len).sum::<usize>()
            );
            total += of_model.count;
            for (line, requests) in &of_model.lines {
                assert!(!requests.is_empty(), "no line is empty");
                *waiting.entry(line).or_default() += requests.len();
            }
        }
        assert_eq!(total, self.order.len());
        self.fairness.counts_are(&waiting);
    }
}

impl Place {
    fn live_work_us(&self) -> i64 {
        match self.line {
            Line::Live { .. } => self.work_us,
            Line::GivenUp | Line::Late => 0,
        }
    }

    fn rank(&self) -> Rank {
        let lateness = match self.line {
            Line::Live { .. } => 0,
            Line::GivenUp => 1,
            Line::Late => 2,
        };
        Rank {
            lateness,
            class: self.class,
            urgency: self.urgency,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn model(index: u64) -> ModelName {
        ModelName::new(format!("m{}", index % 3)).unwrap()
    }

    fn request(sequence: u64) -> RequestId {
        RequestId::from_random(sequence.into())
    }

    fn place(sequence: u64, line: u8, at: i64) -> Place {
        let (class, line) = match line {
            0 => (Class::Interactive, None),
            1 => (Class::Batch, None),
            2 => (Class::Interactive, Some(Line::GivenUp)),
            _ => (Class::Batch, Some(Line::Late)),
        };
        Place {
            line: line.unwrap_or(Line::Live { class, tenant: None }),
            urgency: Urgency {
                at: Micros(at),
                sequence: StreamSequence(sequence),
            },
            class,
            work_us: at,
        }
    }

    #[test]
    fn heads_of_lines_come_before_those_behind_them() {
        let mut queue = Queue::default();
        for (sequence, line) in [(1, 0), (2, 0), (3, 1), (4, 1), (5, 3)] {
            queue.insert(&model(0), &place(sequence, line, 7), request(sequence));
        }
        let next = |count| queue.next_of(&model(0), count);
        assert_eq!(next(9), [1, 3, 5, 2, 4].map(request));
        assert_eq!(next(2), [1, 3].map(request));
        assert_eq!(queue.next_of(&model(1), 9), [0; 0].map(request));
    }

    #[test]
    #[should_panic(expected = "waits twice")]
    fn one_place_is_for_one_request() {
        let mut queue = Queue::default();
        queue.insert(&model(0), &place(1, 0, 7), request(1));
        queue.insert(&model(0), &place(1, 0, 7), request(2));
    }

    proptest! {
        #[test]
        fn the_queue_agrees_with_a_sorted_list(
            steps in prop::collection::vec((0_u64..20, 0_u8..4, 0_i64..9), 1..80)
        ) {
            let mut queue = Queue::default();
            let mut list: Vec<(Place, u64)> = Vec::new();
            for (sequence, line, at) in steps {
                if let Some(index) = list.iter().position(|(_, known)| *known == sequence) {
                    let (place, _) = list.remove(index);
                    queue.remove(&model(sequence), &place);
                } else {
                    let place = place(sequence, line, at);
                    queue.insert(&model(sequence), &place, request(sequence));
                    list.push((place, sequence));
                }
                queue.every_index_names_the_same_requests();
                list.sort_by_key(|(place, _)| place.rank());
                prop_assert!(queue.iter().eq(list.iter().map(|(_, it)| request(*it)).collect::<Vec<_>>().iter()));
                for index in 0..3 {
                    let of_model: Vec<_> = list.iter().filter(|(_, it)| it % 3 == index).collect();
                    let live = of_model.iter().map(|(place, _)| place.live_work_us()).sum::<i64>();
                    prop_assert_eq!(queue.live_work_us(&model(index)), live);
                    prop_assert_eq!(queue.waits_for(&model(index)), !of_model.is_empty());
                    let mut next = queue.next_of(&model(index), 100);
                    next.sort();
                    let mut all: Vec<_> = of_model.iter().map(|(_, it)| request(*it)).collect();
                    all.sort();
                    prop_assert_eq!(next, all);
                }
            }
        }
    }
}
