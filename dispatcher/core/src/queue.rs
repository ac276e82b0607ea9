//! The requests that wait for a worker.
//!
//! Each model has lines of its own: one for each class and tenant whose requests can still be in time, least slack
//! first, one for those that were given up so that more of the others are in time, and one for those that are too
//! late, by arrival. Which line is next is a matter of [`Fairness`]; within a line urgency decides.

mod census;
mod fairness;

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::ops::Bound::{Excluded, Included, Unbounded};

use flotilla_protocol::{Class, ModelName, RequestId, Tenant};

use crate::input::StreamSequence;
use crate::micros::Micros;
use census::Classes;
pub use fairness::Weights;
pub(crate) use fairness::{Fairness, LineNumber};

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

/// How far somebody has come in a model's lines: up to and with this place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Spot {
    line: Line,
    urgency: Urgency,
}

/// Whose requests are gone through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Whom {
    All,
    /// Those that can be in time, those given up included.
    Hopeful,
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
    lines: BTreeMap<Line, OfLine>,
    count: usize,
    /// Work of the live lines.
    live_work_us: i64,
    classes: Classes,
}

/// What waits for a model in a line.
#[derive(Debug)]
struct OfLine {
    number: LineNumber,
    requests: BTreeMap<Urgency, RequestId>,
}

/// How urgent a model's next request is, against that of other models; the smaller goes first.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Turn {
    served: f64,
    urgency: Urgency,
}

impl Turn {
    /// Which of two turns comes first.
    pub(crate) fn order(&self, other: &Self) -> Ordering {
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
        of_model.classes.insert(place);
        let number = self.fairness.join(&place.line);
        if !of_model.lines.contains_key(&place.line) {
            let requests = BTreeMap::new();
            of_model
                .lines
                .insert(place.line.clone(), OfLine { number, requests });
        }
        let line = of_model
            .lines
            .get_mut(&place.line)
            .expect("it was just put there");
        line.requests.insert(place.urgency, request.clone());
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
        of_model.classes.remove(place);
        let line = of_model
            .lines
            .get_mut(&place.line)
            .expect("a waiting request has its line");
        self.fairness.leave(line.number);
        line.requests.remove(&place.urgency);
        if line.requests.is_empty() {
            of_model.lines.remove(&place.line);
        }
        if of_model.lines.is_empty() {
            self.models.remove(model);
        }
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
        let line = self.next_line(self.models.get(model)?)?;
        let (urgency, _) = line.requests.first_key_value()?;
        Some(Turn {
            served: self.fairness.served(line.number),
            urgency: *urgency,
        })
    }

    /// The next requests of a model, at most `count_max`, the first one first: the heads of its lines in the order of
    /// their turns, then those behind them.
    pub(crate) fn next_of(&self, model: &ModelName, count_max: usize) -> Vec<RequestId> {
        let Some(of_model) = self.models.get(model) else {
            return Vec::new();
        };
        if let (1, Some(line)) = (count_max, self.next_line(of_model)) {
            return line.requests.values().take(1).cloned().collect();
        }
        let mut lines: Vec<_> = of_model.lines.values().collect();
        lines.sort_by(|left, right| self.order(left, right));
        let mut lines: Vec<_> = lines.into_iter().map(|line| line.requests.values()).collect();
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

    /// The requests of a model behind a spot, line by line, at most `count_max`, and the spot where they end: none at
    /// the end of the lines. Who moves meanwhile may be met twice, or not at all.
    pub(crate) fn behind(
        &self,
        model: &ModelName,
        spot: Option<&Spot>,
        whom: Whom,
        count_max: usize,
    ) -> (Vec<RequestId>, Option<Spot>) {
        let mut requests = Vec::new();
        let Some(of_model) = self.models.get(model) else {
            return (requests, None);
        };
        let first = spot.map_or(Unbounded, |spot| Included(&spot.line));
        let lines = of_model.lines.range::<Line, _>((first, Unbounded));
        for (line, of_line) in lines.filter(|(line, _)| whom.has(line)) {
            let spot = spot.filter(|spot| spot.line == *line);
            let first = spot.map_or(Unbounded, |spot| Excluded(spot.urgency));
            for (urgency, request) in of_line.requests.range((first, Unbounded)) {
                requests.push(request.clone());
                if requests.len() >= count_max {
                    let (line, urgency) = (line.clone(), *urgency);
                    return (requests, Some(Spot { line, urgency }));
                }
            }
        }
        (requests, None)
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
        lines.flat_map(|line| line.requests.values().cloned()).collect()
    }

    /// The line of a model whose turn it is: of several that were given the same the one that is named first.
    fn next_line<'a>(&self, of_model: &'a ModelQueue) -> Option<&'a OfLine> {
        let lines = of_model.lines.values();
        lines.min_by(|left, right| self.order(left, right))
    }

    /// Which of two lines is next: that which was given less.
    fn order(&self, left: &OfLine, right: &OfLine) -> Ordering {
        let served = |line: &OfLine| self.fairness.served(line.number);
        served(left).total_cmp(&served(right))
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
                of_model
                    .lines
                    .values()
                    .map(|line| line.requests.len())
                    .sum::<usize>()
            );
            assert_eq!(of_model.count, of_model.classes.len());
            total += of_model.count;
            for (line, of_line) in &of_model.lines {
                assert!(!of_line.requests.is_empty(), "no line is empty");
                *waiting.entry(line).or_default() += of_line.requests.len();
            }
        }
        assert_eq!(total, self.order.len());
        self.fairness.counts_are(&waiting);
    }
}

impl Whom {
    fn has(self, line: &Line) -> bool {
        match (self, line) {
            (Self::All, _) | (Self::Hopeful, Line::Live { .. } | Line::GivenUp) => true,
            (Self::Hopeful, Line::Late) => false,
        }
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

    /// The requests of a model, three at a time.
    fn in_parts(queue: &Queue, model: &ModelName, whom: Whom) -> Vec<RequestId> {
        let (mut all, mut spot) = queue.behind(model, None, whom, 3);
        while spot.is_some() {
            let (requests, next) = queue.behind(model, spot.as_ref(), whom, 3);
            all.extend(requests);
            spot = next;
        }
        all
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
                    let hopeful = of_model.iter().filter(|(place, _)| place.line != Line::Late);
                    prop_assert_eq!(in_parts(&queue, &model(index), Whom::All), queue.requests_of(&model(index)));
                    prop_assert_eq!(in_parts(&queue, &model(index), Whom::Hopeful).len(), hopeful.count());
                }
            }
        }
    }
}
