//! The protocol that keeps answers whole, as a small model, tried in every order of events.
//!
//! One request, two dispatchers, two workers, and a bounded number of faults. [`request`] has the rules of the parts;
//! this searches every state that they can reach, asks each for the invariants, and asks whether from each of them
//! the request can still come to its end. Rules that were left out on purpose have to be found out, or the model
//! would prove nothing.

mod request;

use std::collections::{HashMap, VecDeque};
use std::rc::Rc;

use request::{Rules, State, Step};

/// What a search found wrong.
#[derive(Debug)]
struct Counterexample {
    broken: &'static str,
    /// What happened, from the beginning on.
    steps: Vec<String>,
}

/// Everything that can be reached, in the order of its distance from the beginning.
struct Search {
    rules: Rules,
    states: Vec<Rc<State>>,
    places: HashMap<Rc<State>, usize>,
    /// For each state: one that leads to it, and by what.
    came_from: Vec<Option<(usize, Step)>>,
    /// For each state: all that lead to it.
    before: Vec<Vec<usize>>,
}

impl Search {
    /// Goes through every order of events; the number of states when all of them are as they should be.
    fn run(rules: Rules) -> Result<usize, Counterexample> {
        let mut search = Self {
            rules,
            states: Vec::new(),
            places: HashMap::new(),
            came_from: Vec::new(),
            before: Vec::new(),
        };
        search.place(State::at_the_beginning(&rules), None);
        let mut at = 0;
        while let Some(state) = search.states.get(at).cloned() {
            if let Some(broken) = request::broken_invariant(&state) {
                return Err(search.counterexample(broken, at));
            }
            for (step, next) in state.steps(&search.rules) {
                search.place(next, Some((at, step)));
            }
            at += 1;
            assert!(at < STATES_MAX, "the model has grown too large to be searched");
        }
        match search.stuck() {
            Some(at) => Err(search.counterexample("every_request_can_still_end", at)),
            None => Ok(search.states.len()),
        }
    }

    fn place(&mut self, state: State, from: Option<(usize, Step)>) {
        let at = match self.places.get(&state) {
            Some(&at) => at,
            None => {
                let at = self.states.len();
                let state = Rc::new(state);
                self.places.insert(Rc::clone(&state), at);
                self.states.push(state);
                self.came_from.push(from);
                self.before.push(Vec::new());
                at
            }
        };
        self.before[at].extend(from.map(|(before, _)| before));
    }

    /// The nearest state from which no order of events leads to the end.
    fn stuck(&self) -> Option<usize> {
        let mut ends: VecDeque<usize> = (0..self.states.len())
            .filter(|&at| self.states[at].is_over())
            .collect();
        let mut can_end = vec![false; self.states.len()];
        while let Some(at) = ends.pop_front() {
            if !std::mem::replace(&mut can_end[at], true) {
                ends.extend(&self.before[at]);
            }
        }
        can_end.iter().position(|can_end| !can_end)
    }

    fn counterexample(&self, broken: &'static str, at: usize) -> Counterexample {
        let mut steps = vec![format!("{:?}", self.states[at])];
        let mut at = at;
        while let Some((before, step)) = &self.came_from[at] {
            steps.push(format!("{step:?}"));
            at = *before;
        }
        steps.reverse();
        Counterexample { broken, steps }
    }
}

#[test]
fn answer_is_whole_and_ends_once_in_every_order_of_events() {
    match Search::run(Rules::default()) {
        Ok(states) => {
            println!("{states} states");
            assert!(states > 10_000, "faults meet each other in many ways");
        }
        Err(found) => panic!("{}:\n{}", found.broken, found.steps.join("\n")),
    }
}

/// What a broken rule breaks, by the shortest order of events that shows it.
#[expect(clippy::print_stdout, reason = "a counterexample is read by people")]
fn broken_by(rules: Rules) -> &'static str {
    let found = Search::run(rules).expect_err("the broken rule is found out");
    println!("{}:\n{}", found.broken, found.steps.join("\n"));
    found.broken
}

#[test]
fn acknowledgement_before_the_end_loses_the_request() {
    let rules = Rules {
        acks_when_assigned: true,
        ..Rules::default()
    };
    assert_eq!(broken_by(rules), "request_leaves_its_stream_only_after_its_end");
}

#[test]
fn appends_that_expect_no_sequence_mix_two_attempts() {
    let rules = Rules {
        server_compares_sequences: false,
        ..Rules::default()
    };
    assert_eq!(broken_by(rules), "older_attempt_never_writes_after_a_newer_one");
}

#[test]
fn append_that_is_repeated_without_reading_is_stored_twice() {
    let rules = Rules {
        reads_after_doubt: false,
        ..Rules::default()
    };
    assert_eq!(broken_by(rules), "every_event_is_stored_once");
}

#[test]
fn attempt_that_only_larger_ones_fence_writes_beside_its_equal() {
    let rules = Rules {
        equal_attempts_fence: false,
        ..Rules::default()
    };
    assert_eq!(broken_by(rules), "one_worker_writes_each_attempt");
}

/// What the search found when workers were known by their names alone.
#[test]
fn worker_that_came_back_under_its_name_writes_beside_its_earlier_start() {
    let rules = Rules {
        earlier_starts_fence: false,
        ..Rules::default()
    };
    assert_eq!(broken_by(rules), "one_worker_writes_each_attempt");
}

#[test]
fn request_that_no_new_leader_gets_waits_for_ever() {
    let rules = Rules {
        delivers_to_new_leaders: false,
        ..Rules::default()
    };
    assert_eq!(broken_by(rules), "every_request_can_still_end");
}

/// The model has some hundred thousand states; ten times as many would take minutes without optimisation.
const STATES_MAX: usize = 3_000_000;
