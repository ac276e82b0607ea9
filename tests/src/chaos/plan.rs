//! Which faults happen, and when: a function of the seed.

use std::fmt;
use std::time::Duration;

use super::random::Random;
use crate::Flow;

/// Who has a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// A dispatcher, by number.
    Dispatcher(usize),
    /// A worker, by number.
    Worker(usize),
    /// The clients' connection.
    Clients,
    /// The server.
    Server,
}

/// What happens to a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL; it is started again after this time.
    Kill(Duration),
    /// SIGSTOP, and SIGCONT after this time.
    Stop(Duration),
    /// No connection to the server for this time.
    Cut(Duration),
    /// Its connection breaks once.
    Reset,
    /// Its connection carries nothing any more, and neither end is told.
    Forget,
    /// What its connection does for a time.
    Network {
        /// From the part to the server.
        to_server: Flow,
        /// From the server to the part.
        to_part: Flow,
        /// How long.
        lasts: Duration,
    },
}

/// A fault with its point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Planned {
    /// Tokens that the clients have got by then.
    pub tokens: u64,
    /// How long after that point, and after the fault before.
    pub after: Duration,
    /// Who has it.
    pub part: Part,
    /// What it is.
    pub fault: Fault,
}

impl Fault {
    /// One word for its kind.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Kill(_) => "kill",
            Self::Stop(_) => "stop",
            Self::Cut(_) => "cut",
            Self::Reset => "reset",
            Self::Forget => "forget",
            Self::Network {
                to_server, to_part, ..
            } => match (to_server, to_part) {
                (Flow::Stalled, Flow::Stalled) => "silence",
                (Flow::Stalled, _) => "mute",
                (_, Flow::Stalled) => "deaf",
                (Flow::Open | Flow::Delayed(_), Flow::Open | Flow::Delayed(_)) => "delay",
            },
        }
    }

    /// How long it lasts.
    #[must_use]
    pub fn lasts(&self) -> Duration {
        match *self {
            Self::Kill(lasts) | Self::Stop(lasts) | Self::Cut(lasts) | Self::Network { lasts, .. } => lasts,
            Self::Reset | Self::Forget => Duration::ZERO,
        }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dispatcher(index) => write!(f, "d{index}"),
            Self::Worker(index) => write!(f, "w{index}"),
            Self::Clients => f.write_str("client"),
            Self::Server => f.write_str("server"),
        }
    }
}

impl fmt::Display for Planned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            tokens,
            after,
            part,
            fault,
        } = self;
        write!(
            f,
            "after {tokens} tokens + {} ms: {part} {} for {} ms",
            after.as_millis(),
            fault.kind(),
            fault.lasts().as_millis()
        )
    }
}

/// Faults for a run of so many tokens, in the order of their points. Nothing is planned for the end, where it would
/// meet no work. Of the long ones each lasts longer than the silence after which a part is given up.
#[must_use]
pub fn plan(seed: u64, faults: usize, tokens: u64, given_up_after: Duration) -> Vec<Planned> {
    let mut random = Random::new(seed, PURPOSE);
    let mut points: Vec<u64> = (0..faults).map(|_| random.below(tokens * 9 / 10)).collect();
    points.sort_unstable();
    let mut planned: Vec<Planned> = Vec::new();
    for point in points {
        let part = draw_part(&mut random);
        let fault = draw_fault(&mut random, part, given_up_after);
        // Some come while the fleet recovers from the one before, when few tokens flow.
        let chained = planned.last().filter(|_| random.percent(30));
        let (tokens, after) = match chained.map(|before| before.tokens) {
            Some(before) => (before, random.between(Duration::ZERO, given_up_after)),
            None => (point, Duration::ZERO),
        };
        planned.push(Planned {
            tokens,
            after,
            part,
            fault,
        });
    }
    planned
}

fn draw_part(random: &mut Random) -> Part {
    let of_two = usize::try_from(random.below(2)).expect("below two");
    match random.below(100) {
        0..=39 => Part::Worker(of_two),
        40..=77 => Part::Dispatcher(of_two),
        78..=87 => Part::Clients,
        _ => Part::Server,
    }
}

fn draw_fault(random: &mut Random, part: Part, given_up_after: Duration) -> Fault {
    let short = random.between(Duration::from_millis(50), given_up_after / 2);
    let long = random.between(given_up_after * 3 / 2, given_up_after * 5 / 2);
    let lasts = if random.percent(50) { short } else { long };
    match part {
        Part::Dispatcher(_) | Part::Worker(_) => match random.below(100) {
            0..=34 => Fault::Kill(short),
            35..=59 => Fault::Stop(lasts),
            _ => draw_network(random, lasts),
        },
        Part::Clients => draw_network(random, lasts),
        Part::Server => match random.below(2) {
            0 => Fault::Kill(short),
            _ => Fault::Stop(lasts),
        },
    }
}

fn draw_network(random: &mut Random, lasts: Duration) -> Fault {
    let late = Flow::Delayed(random.between(Duration::from_millis(5), Duration::from_millis(300)));
    let (to_server, to_part) = match random.below(7) {
        0 => return Fault::Cut(lasts),
        1 => return Fault::Reset,
        2 => return Fault::Forget,
        3 => (Flow::Stalled, Flow::Stalled),
        4 => (Flow::Stalled, Flow::Open),
        5 => (Flow::Open, Flow::Stalled),
        _ => (late, late),
    };
    Fault::Network {
        to_server,
        to_part,
        lasts,
    }
}

/// Keeps faults apart from questions.
const PURPOSE: u64 = 0x6661_756c_7473;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const GIVEN_UP_AFTER: Duration = Duration::from_secs(4);

    #[test]
    fn same_seed_plans_the_same_faults_at_the_same_points_and_another_seed_others() {
        let of = |seed| plan(seed, 100, 10_000, GIVEN_UP_AFTER);
        assert_eq!(of(7), of(7));
        assert_ne!(of(7), of(8));
        assert!(of(7).is_sorted_by_key(|planned| planned.tokens));
    }

    #[test]
    fn every_kind_of_fault_comes_and_some_outlast_the_patience_with_a_silent_part() {
        let planned = plan(1, 1000, 100_000, GIVEN_UP_AFTER);
        let kinds: BTreeSet<&str> = planned.iter().map(|planned| planned.fault.kind()).collect();
        let expected = [
            "cut", "deaf", "delay", "forget", "kill", "mute", "reset", "silence", "stop",
        ];
        assert_eq!(kinds, BTreeSet::from(expected));
        let parts: BTreeSet<Part> = planned.iter().map(|planned| planned.part).collect();
        assert_eq!(parts.len(), 6);
        let long = planned
            .iter()
            .filter(|planned| planned.fault.lasts() > GIVEN_UP_AFTER);
        assert!(long.count() > 200);
    }
}
