//! Workers by id, and by a number that is found at once.

use std::collections::BTreeMap;

use flotilla_protocol::WorkerId;

use super::Worker;

/// All workers. Each has a number, which nobody else has while it is known.
#[derive(Debug, Default)]
pub(super) struct Workers {
    numbers: BTreeMap<WorkerId, usize>,
    by_number: Vec<Option<Worker>>,
    /// Numbers that nobody has.
    free: Vec<usize>,
}

impl Workers {
    /// Adds a worker, which `make` makes for its number.
    ///
    /// # Panics
    /// When it is known.
    pub(super) fn insert(&mut self, id: WorkerId, make: impl FnOnce(usize) -> Worker) {
        let number = self.free.pop().unwrap_or(self.by_number.len());
        if number == self.by_number.len() {
            self.by_number.push(None);
        }
        self.by_number[number] = Some(make(number));
        let known = self.numbers.insert(id, number);
        assert!(known.is_none(), "a worker is added once");
    }

    pub(super) fn remove(&mut self, id: &WorkerId) -> Option<Worker> {
        let number = self.numbers.remove(id)?;
        self.free.push(number);
        self.by_number[number].take()
    }

    pub(super) fn contains(&self, id: &WorkerId) -> bool {
        self.numbers.contains_key(id)
    }

    pub(super) fn number(&self, id: &WorkerId) -> Option<usize> {
        self.numbers.get(id).copied()
    }

    pub(super) fn get(&self, id: &WorkerId) -> Option<&Worker> {
        self.by_number[self.number(id)?].as_ref()
    }

    pub(super) fn get_mut(&mut self, id: &WorkerId) -> Option<&mut Worker> {
        let number = self.number(id)?;
        self.by_number[number].as_mut()
    }

    /// The worker with a number.
    ///
    /// # Panics
    /// When nobody has it.
    pub(super) fn at(&self, number: usize) -> &Worker {
        self.by_number[number].as_ref().expect("the number is a worker's")
    }

    /// The worker with a number.
    ///
    /// # Panics
    /// When nobody has it.
    pub(super) fn at_mut(&mut self, number: usize) -> &mut Worker {
        self.by_number[number].as_mut().expect("the number is a worker's")
    }

    pub(super) fn len(&self) -> usize {
        self.numbers.len()
    }

    /// All of them, in the order of their ids.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&WorkerId, &Worker)> + Clone {
        self.numbers.iter().map(|(id, number)| (id, self.at(*number)))
    }
}
