//! Which texts of embedding requests run together: each is read whole, in one step, and leaves nothing behind.
//!
//! [`TextQueue::add`] takes a request's texts, [`TextQueue::plan`] says which run next; after that step the
//! caller tells their fate by [`TextQueue::complete`] or, of a request that broke it, [`TextQueue::remove`].
//! Interactive requests go first; among those of a class each gives one text in turn, so that a long list
//! holds up no short one.

use std::collections::VecDeque;

use flotilla_protocol::Class;
use thiserror::Error;

/// One embedding request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TextsId(pub u64);

/// What a step may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TextLimits {
    /// Tokens of all texts together; at least 1.
    pub batch_tokens_max: usize,
    /// Texts; at least 1.
    pub texts_max: usize,
}

/// A text of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlannedText {
    /// Whose.
    pub request: TextsId,
    /// Which of its texts, from 0.
    pub index: usize,
}

/// Why texts cannot be queued.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum TextsError {
    /// There is none.
    #[error("the request has no texts")]
    None,
    /// One has no tokens.
    #[error("text {index} has no tokens")]
    Empty {
        /// Which.
        index: usize,
    },
    /// One does not fit into a step.
    #[error("text {index} has {found} tokens, a step takes {max}")]
    TooLong {
        /// Which.
        index: usize,
        /// Its tokens.
        found: usize,
        /// The limit.
        max: usize,
    },
}

/// Texts that wait for their vectors.
#[derive(Debug)]
pub struct TextQueue {
    limits: TextLimits,
    /// The one that is next comes first.
    requests: VecDeque<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    id: TextsId,
    class: Class,
    texts: Vec<Vec<u32>>,
    /// The first text without a vector.
    next: usize,
    /// Texts of the step under way.
    planned: usize,
}

impl TextQueue {
    /// An empty queue.
    #[must_use]
    pub fn new(limits: TextLimits) -> Self {
        assert!(
            limits.batch_tokens_max > 0 && limits.texts_max > 0,
            "a step holds something"
        );
        Self {
            limits,
            requests: VecDeque::new(),
        }
    }

    /// Takes a request's texts, each as its tokens.
    ///
    /// # Errors
    /// [`TextsError`]; nothing is taken then.
    pub fn add(&mut self, id: TextsId, class: Class, texts: Vec<Vec<u32>>) -> Result<(), TextsError> {
        if texts.is_empty() {
            return Err(TextsError::None);
        }
        let max = self.limits.batch_tokens_max;
        for (index, text) in texts.iter().enumerate() {
            let found = text.len();
            if found == 0 {
                return Err(TextsError::Empty { index });
            }
            if found > max {
                return Err(TextsError::TooLong { index, found, max });
            }
        }
        self.requests.push_back(Waiting {
            id,
            class,
            texts,
            next: 0,
            planned: 0,
        });
        Ok(())
    }

    /// Takes a request out; one that is not there is no fault.
    pub fn remove(&mut self, id: TextsId) {
        self.requests.retain(|request| request.id != id);
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    /// The texts of the next step; none when nothing waits. The same until [`TextQueue::complete`].
    #[must_use]
    pub fn plan(&mut self) -> Vec<PlannedText> {
        let mut plan = Vec::new();
        let mut tokens_left = self.limits.batch_tokens_max;
        for class in [Class::Interactive, Class::Batch] {
            self.plan_class(class, &mut tokens_left, &mut plan);
        }
        plan
    }

    fn plan_class(&mut self, class: Class, tokens_left: &mut usize, plan: &mut Vec<PlannedText>) {
        let of_class = |request: &&mut Waiting| request.class == class;
        self.requests
            .iter_mut()
            .filter(of_class)
            .for_each(|request| request.planned = 0);
        loop {
            let before = plan.len();
            for request in self.requests.iter_mut().filter(of_class) {
                let index = request.next + request.planned;
                let Some(text) = request.texts.get(index) else {
                    continue;
                };
                // Whoever does not fit is next in the step after: nobody overtakes him.
                if plan.len() == self.limits.texts_max || text.len() > *tokens_left {
                    return;
                }
                *tokens_left -= text.len();
                request.planned += 1;
                let request = request.id;
                plan.push(PlannedText { request, index });
            }
            if plan.len() == before {
                return;
            }
        }
    }

    /// The tokens of a text.
    ///
    /// # Panics
    /// It is none of the queue's.
    #[must_use]
    pub fn tokens(&self, text: PlannedText) -> &[u32] {
        let mut requests = self.requests.iter();
        let request = requests.find(|request| request.id == text.request);
        &request.expect("who is planned waits").texts[text.index]
    }

    /// The planned texts have their vectors. Requests whose last text that was are out; those that gave a
    /// text are behind those that gave none.
    pub fn complete(&mut self) {
        let (mut served, mut waiting): (VecDeque<_>, VecDeque<_>) =
            self.requests.drain(..).partition(|request| request.planned > 0);
        for request in &mut served {
            request.next += request.planned;
            request.planned = 0;
        }
        served.retain(|request| request.next < request.texts.len());
        waiting.append(&mut served);
        self.requests = waiting;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(batch_tokens_max: usize, texts_max: usize) -> TextQueue {
        TextQueue::new(TextLimits {
            batch_tokens_max,
            texts_max,
        })
    }

    fn texts(lengths: &[usize]) -> Vec<Vec<u32>> {
        lengths.iter().map(|length| vec![7; *length]).collect()
    }

    /// Runs all steps; gives the texts of each as (request, index).
    fn run(queue: &mut TextQueue) -> Vec<Vec<(u64, usize)>> {
        let mut steps = Vec::new();
        while !queue.is_empty() {
            let plan = queue.plan();
            assert!(!plan.is_empty(), "who waits is planned");
            let tokens: usize = plan.iter().map(|text| queue.tokens(*text).len()).sum();
            assert!(tokens <= queue.limits.batch_tokens_max && plan.len() <= queue.limits.texts_max);
            steps.push(plan.iter().map(|text| (text.request.0, text.index)).collect());
            queue.complete();
        }
        steps
    }

    #[test]
    fn long_list_is_cut_into_steps_and_no_text_is_skipped_or_doubled() {
        let mut queue = queue(10, 3);
        queue
            .add(TextsId(1), Class::Batch, texts(&[4, 6, 1, 10, 1, 1, 1, 1]))
            .unwrap();
        let steps = run(&mut queue);
        assert_eq!(
            steps,
            [
                vec![(1, 0), (1, 1)],
                vec![(1, 2)],
                vec![(1, 3)],
                vec![(1, 4), (1, 5), (1, 6)],
                vec![(1, 7)],
            ]
        );
    }

    #[test]
    fn short_request_joins_the_step_beside_a_long_list_and_urgent_ones_go_first() {
        let mut queue = queue(4, 8);
        queue.add(TextsId(1), Class::Batch, texts(&[1; 9])).unwrap();
        queue.add(TextsId(2), Class::Batch, texts(&[2])).unwrap();
        queue.add(TextsId(3), Class::Interactive, texts(&[1])).unwrap();
        let steps = run(&mut queue);
        assert_eq!(steps[0], [(3, 0), (1, 0), (2, 0)]);
        assert_eq!(steps[1], [(1, 1), (1, 2), (1, 3), (1, 4)]);
    }

    #[test]
    fn text_that_does_not_fit_beside_others_is_first_in_the_next_step() {
        let mut queue = queue(4, 8);
        queue.add(TextsId(1), Class::Batch, texts(&[1, 1, 1])).unwrap();
        queue.add(TextsId(2), Class::Batch, texts(&[4, 1])).unwrap();
        let steps = run(&mut queue);
        assert_eq!(steps, [vec![(1, 0)], vec![(2, 0)], vec![(1, 1), (2, 1), (1, 2)]]);
    }

    #[test]
    fn request_that_is_taken_out_is_planned_no_more() {
        let mut queue = queue(8, 8);
        queue.add(TextsId(1), Class::Batch, texts(&[1, 1])).unwrap();
        queue.add(TextsId(2), Class::Batch, texts(&[1])).unwrap();
        let planned = queue.plan();
        assert_eq!(queue.plan(), planned, "planning twice changes nothing");
        queue.remove(TextsId(1));
        queue.complete();
        assert!(queue.is_empty());
    }

    #[test]
    fn texts_that_no_step_can_hold_are_refused() {
        let mut queue = queue(4, 8);
        let mut refusal =
            |lengths: &[usize]| queue.add(TextsId(1), Class::Batch, texts(lengths)).unwrap_err();
        assert_eq!(refusal(&[]), TextsError::None);
        assert_eq!(refusal(&[1, 0]), TextsError::Empty { index: 1 });
        let (index, found, max) = (1, 5, 4);
        assert_eq!(refusal(&[4, 5]), TextsError::TooLong { index, found, max });
        assert!(queue.is_empty());
    }
}
