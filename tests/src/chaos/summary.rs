//! What a run found, in figures.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use flotilla_client::Connection;
use flotilla_protocol::{Attempt, RequestId};

use super::clients::{Problem, Told};
use super::plan::{Fault, Part};
use super::questions::Questions;
use super::timeline::{Line, Notes, lines_of_roles};
use super::{ChaosOptions, journals};
use crate::Fleet;

/// What a run found.
#[derive(Debug)]
pub struct Summary {
    /// The seed.
    pub seed: u64,
    /// Requests that were asked.
    pub requests: usize,
    /// Requests that took more than one attempt.
    pub continued: usize,
    /// Publishes that clients had to repeat.
    pub repeats: usize,
    /// Faults by what they hit and their kind.
    pub faults: BTreeMap<String, usize>,
    /// Processes that ended for want of a server, and were started again.
    pub restarted: usize,
    /// What must not happen, by request.
    pub problems: Vec<(usize, Problem)>,
    /// From the death or silence of a leader to the first request that was accepted under its successor.
    pub failovers: Vec<Duration>,
    /// The longest pause of each answer, sorted.
    pub pauses: Vec<Duration>,
    /// The same of those in which neither the server nor the clients' own connection had a fault: what dispatchers
    /// and workers are answerable for.
    pub pauses_of_the_fleet: Vec<Duration>,
    /// From the first request to the last answer.
    pub took: Duration,
    journals: Vec<(usize, RequestId)>,
    questions: Arc<Questions>,
}

impl Summary {
    pub(super) fn new(
        options: &ChaosOptions,
        fleet: &Fleet,
        notes: &Notes,
        (told, questions): (Vec<Told>, Arc<Questions>),
        took: Duration,
    ) -> Self {
        let mut faults = BTreeMap::new();
        for (_, planned) in &notes.faults {
            let hit = match planned.part {
                Part::Dispatcher(_) => "dispatcher",
                Part::Worker(_) => "worker",
                Part::Clients => "client",
                Part::Server(_) => "server",
                Part::Servers => "all servers",
                Part::Link(..) => "link",
                Part::Routes(_) => "routes",
                Part::Machine(_) => "machine",
            };
            *faults
                .entry(format!("{hit} {}", planned.fault.kind()))
                .or_default() += 1;
        }
        let lines = lines_of_roles(fleet);
        let of_the_fleet = told.iter().filter(|told| !is_of_others(told, notes));
        let pauses_of_the_fleet = sorted(of_the_fleet.map(|told| told.pause));
        let mut accepted: Vec<SystemTime> = told.iter().flat_map(|told| told.accepted.clone()).collect();
        accepted.sort_unstable();
        let mut problems: Vec<(usize, Problem)> = told
            .iter()
            .filter_map(|told| Some((told.number, told.problem.clone()?)))
            .collect();
        problems.extend(bad_ends(notes, &lines));
        Self {
            seed: options.seed,
            requests: told.len(),
            continued: told.iter().filter(|told| told.attempts > Attempt(1)).count(),
            repeats: told.iter().map(|told| told.repeats).sum(),
            faults,
            restarted: notes.ended.len(),
            problems,
            failovers: failovers(notes, &lines, &accepted),
            pauses: sorted(told.iter().map(|told| told.pause)),
            pauses_of_the_fleet,
            took,
            journals: told.into_iter().map(|told| (told.number, told.request)).collect(),
            questions,
        }
    }

    /// Reads every journal once more: nothing may have come after its end.
    pub(super) async fn read_journals_again(&mut self, connection: &Connection) {
        let flaws = journals::check_all(connection, &self.journals, &self.questions).await;
        for (number, problem) in flaws {
            if self.problems.iter().all(|(known, _)| *known != number) {
                self.problems.push((number, problem));
            }
        }
    }

    /// How many problems are of one kind.
    fn count(&self, is: fn(&Problem) -> bool) -> usize {
        self.problems.iter().filter(|(_, problem)| is(problem)).count()
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let per_s = self.requests as f64 / self.took.as_secs_f64();
        writeln!(
            f,
            "seed {}: {} requests in {:.0} s ({per_s:.0}/s), {} of them by several attempts, {} publishes repeated",
            self.seed,
            self.requests,
            self.took.as_secs_f64(),
            self.continued,
            self.repeats,
        )?;
        let faults: Vec<String> = self
            .faults
            .iter()
            .map(|(kind, count)| format!("{kind} {count}"))
            .collect();
        let total: usize = self.faults.values().sum();
        writeln!(
            f,
            "{total} faults: {}; {} restarts for want of a server",
            faults.join(", "),
            self.restarted
        )?;
        writeln!(
            f,
            "lost {}, doubled {}, hung {}, wrong {}, stuck {}, ended {}",
            self.count(|it| matches!(it, Problem::Lost(_))),
            self.count(|it| matches!(it, Problem::Doubled(_))),
            self.count(|it| matches!(it, Problem::Hung(_))),
            self.count(|it| matches!(it, Problem::Wrong(_))),
            self.count(|it| matches!(it, Problem::Stuck(_))),
            self.count(|it| matches!(it, Problem::Ended(_))),
        )?;
        writeln!(
            f,
            "leader failovers to the next accepted request: {}",
            Figures(&self.failovers)
        )?;
        writeln!(f, "longest pause of each answer: {}", Figures(&self.pauses))?;
        write!(
            f,
            "the same where neither the server nor the clients' connection had a fault: {}",
            Figures(&self.pauses_of_the_fleet)
        )?;
        for (number, problem) in self.problems.iter().take(PROBLEMS_SHOWN) {
            write!(f, "\n  request {number}: {problem}")?;
        }
        Ok(())
    }
}

/// Sorted times in short.
struct Figures<'a>(&'a [Duration]);

impl fmt::Display for Figures<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(times) = self;
        let at = |percent: usize| {
            let index = (times.len() * percent / 100).min(times.len().saturating_sub(1));
            times.get(index).map_or(0.0, Duration::as_secs_f64)
        };
        write!(
            f,
            "{} of them, p50 {:.2} s, p99 {:.2} s, most {:.2} s",
            times.len(),
            at(50),
            at(99),
            at(100)
        )
    }
}

fn sorted(times: impl Iterator<Item = Duration>) -> Vec<Duration> {
    let mut times: Vec<Duration> = times.collect();
    times.sort_unstable();
    times
}

/// Whether the server or the clients' own connection had a fault during the longest pause of an answer.
fn is_of_others(told: &Told, notes: &Notes) -> bool {
    let paused = told.paused_until - told.pause;
    notes.faults.iter().any(|(at, planned)| {
        (planned.part.is_of_servers() || planned.part == Part::Clients)
            && *at <= told.paused_until
            && paused <= *at + planned.fault.lasts() + SETTLED_AFTER
    })
}

/// A process may end because it finds no server at its start; a panic is a bug wherever it is.
fn bad_ends(notes: &Notes, lines: &[Line]) -> Vec<(usize, Problem)> {
    let ended = notes.ended.iter().filter(|(_, code)| *code != NO_SERVER);
    let ended = ended.map(|(part, code)| format!("{part} ended by itself with {code}"));
    let panics = lines.iter().filter(|line| line.text.contains("panicked"));
    let panics = panics.map(|line| format!("{}: {}", line.part, line.text));
    ended
        .chain(panics)
        .map(|what| (0, Problem::Ended(what)))
        .collect()
}

/// For each leader that was killed, stopped or cut off and lost its lease by that: until the first request was
/// accepted after its successor, or it itself, began to lead.
fn failovers(notes: &Notes, lines: &[Line], accepted: &[SystemTime]) -> Vec<Duration> {
    let mut terms: Vec<&Line> = lines
        .iter()
        .filter(|line| line.text.contains(": leads "))
        .collect();
    terms.sort_by_key(|line| line.at);
    let mut found = Vec::new();
    for (struck, planned) in &notes.faults {
        let is_loss = !matches!(planned.fault, Fault::Reset) && matches!(planned.part, Part::Dispatcher(_));
        // With one of the server or of its successor at the same time it is not this fault that is measured.
        let is_alone = notes.faults.iter().all(|(at, other)| {
            let is_apart =
                *at > *struck + RELATED_WITHIN || *at + other.fault.lasts() + SETTLED_AFTER < *struck;
            is_apart
                || other.part == planned.part
                || !(other.part.is_of_servers() || matches!(other.part, Part::Dispatcher(_)))
        });
        let until = terms.partition_point(|term| term.at <= *struck);
        let led = until
            .checked_sub(1)
            .map(|last| terms[last].part == planned.part.to_string());
        let (true, Some(true), Some(next)) = (is_loss && is_alone, led, terms.get(until)) else {
            continue;
        };
        let first = accepted.get(accepted.partition_point(|at| *at <= next.at));
        let took = first.and_then(|first| first.duration_since(*struck).ok());
        // What comes much later has another cause.
        found.extend(took.filter(|took| *took < planned.fault.lasts() + RELATED_WITHIN));
    }
    found.sort_unstable();
    found
}

/// Problems that a summary shows; the rest is only counted.
const PROBLEMS_SHOWN: usize = 20;
/// Exit code of a process that cannot reach the server.
const NO_SERVER: i32 = 3;
/// A server or a dispatcher that was struck is itself again after about so long.
const SETTLED_AFTER: Duration = Duration::from_secs(2);
/// A successor leads within this of a leader's fault, or for another reason.
const RELATED_WITHIN: Duration = Duration::from_secs(8);
