//! Requests that wait, in one line for each pair of predicted answer and prompt lengths.

use std::collections::{HashMap, VecDeque};

use flotilla_protocol::Moment;

use super::predictor::bucket;
use super::profile::Features;
use crate::policy::Arriving;

/// The lines, in the order of their first request; they are never removed.
#[derive(Debug, Default)]
pub(super) struct SubQueues {
    lines: Vec<VecDeque<Waiting>>,
    line_of: HashMap<(usize, usize), usize>,
}

/// A request that waits.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) arriving: Arriving,
    /// Since when.
    pub(super) since: Moment,
    /// When its client gives up.
    pub(super) leaves_at: Moment,
}

impl SubQueues {
    /// Puts a request at the end of the line of its features.
    pub(super) fn push(&mut self, features: Features, waiting: Waiting) {
        let key = (bucket(features.output_tokens), bucket(features.prompt_tokens));
        let line = *self.line_of.entry(key).or_insert_with(|| {
            self.lines.push(VecDeque::new());
            self.lines.len() - 1
        });
        self.lines[line].push_back(waiting);
    }

    /// The first of each line.
    pub(super) fn heads(&self) -> impl Iterator<Item = (usize, &Waiting)> {
        let heads = self.lines.iter().map(VecDeque::front).enumerate();
        heads.filter_map(|(line, head)| Some((line, head?)))
    }

    /// Takes the first of a line.
    pub(super) fn pop(&mut self, line: usize) -> Option<Waiting> {
        self.lines.get_mut(line)?.pop_front()
    }

    /// Takes those out whose clients have left, as far as they are at the head of their line.
    pub(super) fn drop_heads(&mut self, now: Moment) {
        for line in &mut self.lines {
            while line.front().is_some_and(|head| head.leaves_at <= now) {
                line.pop_front();
            }
        }
    }
}
