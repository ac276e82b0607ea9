//! The requests that wait for a worker, in order and by model.

use std::collections::BTreeMap;
use std::ops::Bound::{Excluded, Unbounded};

use flotilla_protocol::{Class, ModelName, RequestId};

use crate::policy::Rank;

/// Places further back are not told.
pub(crate) const POSITION_COUNT_MAX: usize = 1000;

/// Every change costs O(log n).
#[derive(Debug, Default)]
pub(crate) struct Queue {
    order: BTreeMap<Rank, RequestId>,
    models: BTreeMap<ModelName, BTreeMap<Rank, RequestId>>,
    /// The most urgent request of each model, so that a model that nobody can take is skipped as a whole.
    heads: BTreeMap<Rank, ModelName>,
    interactive_count: usize,
}

impl Queue {
    /// Adds a request.
    ///
    /// # Panics
    /// When the rank is taken: a request would wait twice.
    pub(crate) fn insert(&mut self, rank: Rank, model: &ModelName, request: RequestId) {
        let of_model = self.models.entry(model.clone()).or_default();
        if let Some((head, _)) = of_model.first_key_value() {
            self.heads.remove(head);
        }
        of_model.insert(rank, request.clone());
        if let Some((head, _)) = of_model.first_key_value() {
            self.heads.insert(*head, model.clone());
        }
        self.interactive_count += usize::from(rank.class == Class::Interactive);
        let taken = self.order.insert(rank, request);
        assert!(taken.is_none(), "{taken:?} waits twice");
    }

    /// Takes a request out.
    ///
    /// # Panics
    /// When it does not wait.
    pub(crate) fn remove(&mut self, rank: Rank, model: &ModelName) {
        self.order.remove(&rank).expect("who leaves the queue was in it");
        let of_model = self
            .models
            .get_mut(model)
            .expect("a waiting request has its model's queue");
        of_model.remove(&rank);
        self.heads.remove(&rank);
        if let Some((head, _)) = of_model.first_key_value() {
            self.heads.insert(*head, model.clone());
        } else {
            self.models.remove(model);
        }
        self.interactive_count -= usize::from(rank.class == Class::Interactive);
    }

    pub(crate) fn len(&self) -> usize {
        self.order.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// Every request, most urgent first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Rank, &RequestId)> {
        self.order.iter()
    }

    /// The most urgent of the models' first requests that come after a rank.
    pub(crate) fn head_after(&self, rank: Option<Rank>) -> Option<(Rank, &ModelName, &RequestId)> {
        let start = rank.map_or(Unbounded, Excluded);
        let (rank, model) = self.heads.range((start, Unbounded)).next()?;
        Some((*rank, model, &self.order[rank]))
    }

    /// The requests of one model, most urgent first.
    pub(crate) fn requests_of(&self, model: &ModelName) -> Vec<RequestId> {
        let of_model = self.models.get(model).into_iter();
        of_model.flat_map(|requests| requests.values().cloned()).collect()
    }

    /// How many requests go before this one; `None` from [`POSITION_COUNT_MAX`] on. The last of its class,
    /// which most newcomers are, costs O(log n).
    pub(crate) fn position(&self, rank: Rank) -> Option<u64> {
        let next = self.order.range((Excluded(rank), Unbounded)).next();
        let is_last_of_class = next.is_none_or(|(next, _)| next.class != rank.class);
        let position = match (is_last_of_class, rank.class) {
            (true, Class::Interactive) => self.interactive_count - 1,
            (true, Class::Batch) => self.order.len() - 1,
            (false, _) => self.order.range(..rank).take(POSITION_COUNT_MAX).count(),
        };
        (position < POSITION_COUNT_MAX).then(|| u64::try_from(position).expect("below a thousand"))
    }

    /// # Panics
    /// When the indexes disagree.
    pub(crate) fn every_index_names_the_same_requests(&self) {
        let of_models: usize = self.models.values().map(BTreeMap::len).sum();
        assert_eq!(of_models, self.order.len());
        assert_eq!(self.heads.len(), self.models.len());
        for (model, requests) in &self.models {
            let (head, _) = requests.first_key_value().expect("no model's queue is empty");
            assert_eq!(self.heads.get(head), Some(model));
            assert!(
                requests
                    .iter()
                    .all(|(rank, request)| self.order.get(rank) == Some(request))
            );
        }
        let interactive = self.order.keys().filter(|rank| rank.class == Class::Interactive);
        assert_eq!(interactive.count(), self.interactive_count);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use flotilla_protocol::Moment;
    use proptest::prelude::*;

    use super::*;
    use crate::input::StreamSequence;
    use crate::policy;

    fn rank(class: Class, sequence: u64) -> Rank {
        policy::rank(class, Moment::default(), Duration::ZERO, StreamSequence(sequence))
    }

    fn model(index: u64) -> ModelName {
        ModelName::new(format!("m{}", index % 3)).unwrap()
    }

    fn request(sequence: u64) -> RequestId {
        RequestId::from_random(sequence.into())
    }

    #[test]
    fn places_beyond_the_limit_are_not_told() {
        let mut queue = Queue::default();
        for sequence in 0..1002 {
            queue.insert(rank(Class::Batch, sequence), &model(0), request(sequence));
        }
        assert_eq!(queue.position(rank(Class::Batch, 999)), Some(999));
        assert_eq!(queue.position(rank(Class::Batch, 1000)), None);
        assert_eq!(queue.position(rank(Class::Batch, 1001)), None);
    }

    proptest! {
        #[test]
        fn the_queue_agrees_with_a_sorted_list(steps in proptest::collection::vec((0_u64..20, any::<bool>()), 1..80)) {
            let mut queue = Queue::default();
            let mut list: Vec<(Rank, u64)> = Vec::new();
            for (sequence, interactive) in steps {
                let class = if interactive { Class::Interactive } else { Class::Batch };
                if let Some(index) = list.iter().position(|(_, known)| *known == sequence) {
                    let (rank, _) = list.remove(index);
                    queue.remove(rank, &model(sequence));
                } else {
                    list.push((rank(class, sequence), sequence));
                    queue.insert(rank(class, sequence), &model(sequence), request(sequence));
                }
                list.sort();
                queue.every_index_names_the_same_requests();
                for (position, (rank, _)) in list.iter().enumerate() {
                    prop_assert_eq!(queue.position(*rank), Some(position as u64));
                }
                let mut heads = Vec::new();
                while let Some((rank, ..)) = queue.head_after(heads.last().copied()) {
                    heads.push(rank);
                }
                let mut seen = std::collections::BTreeSet::new();
                let expected: Vec<Rank> =
                    list.iter().filter(|(_, sequence)| seen.insert(sequence % 3)).map(|(rank, _)| *rank).collect();
                prop_assert_eq!(heads, expected);
            }
        }
    }
}
