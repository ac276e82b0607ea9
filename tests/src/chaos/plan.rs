//! Which faults happen, and when: a function of the seed.

mod of_clusters;

use std::fmt;
use std::time::Duration;

use crate::random::Random;
use crate::{Flow, server_name};

/// Who has a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// A dispatcher, by number.
    Dispatcher(usize),
    /// A worker, by number.
    Worker(usize),
    /// The clients' connection.
    Clients,
    /// A server, by number.
    Server(usize),
    /// All servers.
    Servers,
    /// What lies between two servers, by number, the smaller one first.
    Link(usize, usize),
    /// What lies between one server and the others.
    Routes(usize),
    /// What lies between one server and everybody.
    Machine(usize),
}

/// What happens to a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL; it is started again after this time.
    Kill(Duration),
    /// SIGKILL, and its store is lost; it is started again after this time.
    Wipe(Duration),
    /// SIGTERM; it is started again after this time.
    Restart(Duration),
    /// SIGSTOP, and SIGCONT after this time.
    Stop(Duration),
    /// No connection for this time.
    Cut(Duration),
    /// Its connection breaks once.
    Reset,
    /// Its connection carries nothing any more, and neither end is told.
    Forget,
    /// What its connection does for a time.
    Network {
        /// With what the part says; of a link, the first one.
        says: Flow,
        /// With what the part hears.
        hears: Flow,
        /// How long.
        lasts: Duration,
    },
}

/// Whom a fault of a server is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Aim {
    /// The part that was drawn.
    Drawn,
    /// The server that leads this stream by then, if one does.
    LeaderOf(Kept),
}

/// A stream whose leader is aimed at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// The requests.
    Requests,
    /// The journals.
    Journals,
    /// The dispatchers' lease.
    Lease,
}

/// What a fault waits for besides its point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// Nothing.
    AtOnce,
    /// That every server has what the others have: three copies bear the loss of one, and only of one.
    Settled,
}

/// A fault with its point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Planned {
    /// Tokens that the clients have got by then.
    pub tokens: u64,
    /// How long after that point, and after the fault before.
    pub after: Duration,
    /// What else it waits for.
    pub when: When,
    /// Who has it.
    pub part: Part,
    /// Who has it instead.
    pub aim: Aim,
    /// What it is.
    pub fault: Fault,
}

impl Part {
    /// Whether it is a server, or between servers.
    #[must_use]
    pub fn is_of_servers(self) -> bool {
        match self {
            Self::Server(_) | Self::Servers | Self::Link(..) | Self::Routes(_) | Self::Machine(_) => true,
            Self::Dispatcher(_) | Self::Worker(_) | Self::Clients => false,
        }
    }

    /// Whether the end of a fault of one would end a fault of the other.
    #[must_use]
    pub fn overlaps(self, other: Self) -> bool {
        let is_link = |part| matches!(part, Self::Link(..) | Self::Routes(_) | Self::Machine(_));
        let is_process = |part| matches!(part, Self::Server(_) | Self::Servers);
        let is_all = self == Self::Servers || other == Self::Servers;
        self == other || is_link(self) && is_link(other) || is_all && is_process(self) && is_process(other)
    }

    /// The same of another server.
    #[must_use]
    pub fn of_server(self, server: usize) -> Self {
        match self {
            Self::Server(_) => Self::Server(server),
            Self::Routes(_) => Self::Routes(server),
            Self::Machine(_) => Self::Machine(server),
            Self::Dispatcher(_) | Self::Worker(_) | Self::Clients | Self::Servers | Self::Link(..) => self,
        }
    }
}

impl Fault {
    /// One word for its kind.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Kill(_) => "kill",
            Self::Wipe(_) => "wipe",
            Self::Restart(_) => "restart",
            Self::Stop(_) => "stop",
            Self::Cut(_) => "cut",
            Self::Reset => "reset",
            Self::Forget => "forget",
            Self::Network { says, hears, .. } => match (says, hears) {
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
            Self::Kill(lasts)
            | Self::Wipe(lasts)
            | Self::Restart(lasts)
            | Self::Stop(lasts)
            | Self::Cut(lasts)
            | Self::Network { lasts, .. } => lasts,
            Self::Reset | Self::Forget => Duration::ZERO,
        }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Dispatcher(index) => write!(f, "d{index}"),
            Self::Worker(index) => write!(f, "w{index}"),
            Self::Clients => f.write_str("client"),
            Self::Server(index) => f.write_str(&server_name(index)),
            Self::Servers => f.write_str("servers"),
            Self::Link(first, second) => write!(f, "{}-{}", server_name(first), server_name(second)),
            Self::Routes(index) => write!(f, "{}-others", server_name(index)),
            Self::Machine(index) => write!(f, "{}-all", server_name(index)),
        }
    }
}

impl fmt::Display for Planned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            tokens,
            after,
            when,
            part,
            aim,
            fault,
        } = self;
        let settled = match when {
            When::AtOnce => "",
            When::Settled => ", settled",
        };
        let aimed = match aim {
            Aim::Drawn => "",
            Aim::LeaderOf(Kept::Requests) => " (or the leader of the requests)",
            Aim::LeaderOf(Kept::Journals) => " (or the leader of the journals)",
            Aim::LeaderOf(Kept::Lease) => " (or the leader of the lease)",
        };
        write!(
            f,
            "after {tokens} tokens + {} ms{settled}: {part}{aimed} {} for {} ms",
            after.as_millis(),
            fault.kind(),
            fault.lasts().as_millis()
        )
    }
}

/// What faults are planned for.
#[derive(Debug, Clone, Copy)]
pub struct Scope {
    /// How many servers.
    pub servers: usize,
    /// Faults in all; a server after the other is one.
    pub faults: usize,
    /// Tokens in all.
    pub tokens: u64,
    /// Silence after which a dispatcher or a worker is given up.
    pub given_up_after: Duration,
}

/// Faults for a run, in the order of their points. Nothing is planned for the end, where it would meet no work. Of the
/// long ones each lasts longer than the silence after which a part is given up.
#[must_use]
pub fn plan(seed: u64, scope: Scope) -> Vec<Planned> {
    let given_up_after = scope.given_up_after;
    let mut random = Random::new(seed, PURPOSE);
    let mut points: Vec<u64> = (0..scope.faults)
        .map(|_| random.below(scope.tokens * 9 / 10))
        .collect();
    points.sort_unstable();
    let mut planned: Vec<Planned> = Vec::new();
    for point in points {
        let drawn = match scope.servers {
            1 => vec![draw(&mut random, given_up_after)],
            servers => of_clusters::draw(&mut random, servers, given_up_after),
        };
        // Some come while the fleet recovers from the one before, when few tokens flow.
        let chained = planned.last().filter(|_| random.percent(30));
        let (tokens, after) = match chained.map(|before| before.tokens) {
            Some(before) => (before, random.between(Duration::ZERO, given_up_after)),
            None => (point, Duration::ZERO),
        };
        planned.extend(drawn.into_iter().map(|drawn| Planned {
            tokens,
            after,
            ..drawn
        }));
    }
    planned
}

impl Planned {
    /// At once.
    fn new(part: Part, fault: Fault) -> Self {
        Self {
            tokens: 0,
            after: Duration::ZERO,
            when: When::AtOnce,
            part,
            aim: Aim::Drawn,
            fault,
        }
    }
}

/// A fault of a fleet with one server.
fn draw(random: &mut Random, given_up_after: Duration) -> Planned {
    let part = draw_part(random);
    Planned::new(part, draw_fault(random, part, given_up_after))
}

fn draw_part(random: &mut Random) -> Part {
    let of_two = of(random, 2);
    match random.below(100) {
        0..=39 => Part::Worker(of_two),
        40..=77 => Part::Dispatcher(of_two),
        78..=87 => Part::Clients,
        _ => Part::Server(0),
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
        Part::Server(_) => match random.below(2) {
            0 => Fault::Kill(short),
            _ => Fault::Stop(lasts),
        },
        Part::Clients | Part::Servers | Part::Link(..) | Part::Routes(_) | Part::Machine(_) => {
            draw_network(random, lasts)
        }
    }
}

fn draw_network(random: &mut Random, lasts: Duration) -> Fault {
    let late = Flow::Delayed(random.between(Duration::from_millis(5), Duration::from_millis(300)));
    let (says, hears) = match random.below(7) {
        0 => return Fault::Cut(lasts),
        1 => return Fault::Reset,
        2 => return Fault::Forget,
        3 => (Flow::Stalled, Flow::Stalled),
        4 => (Flow::Stalled, Flow::Open),
        5 => (Flow::Open, Flow::Stalled),
        _ => (late, late),
    };
    Fault::Network { says, hears, lasts }
}

/// One of so many.
fn of(random: &mut Random, count: usize) -> usize {
    usize::try_from(random.below(count as u64)).expect("below a number of parts")
}

/// Keeps faults apart from questions.
const PURPOSE: u64 = 0x6661_756c_7473;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn scope(servers: usize, faults: usize) -> Scope {
        Scope {
            servers,
            faults,
            tokens: 100_000,
            given_up_after: Duration::from_secs(4),
        }
    }

    fn kinds(planned: &[Planned]) -> BTreeSet<&str> {
        planned.iter().map(|planned| planned.fault.kind()).collect()
    }

    #[test]
    fn same_seed_plans_the_same_faults_at_the_same_points_and_another_seed_others() {
        for servers in [1, 3] {
            let of = |seed| plan(seed, scope(servers, 100));
            assert_eq!(of(7), of(7));
            assert_ne!(of(7), of(8));
            assert!(of(7).is_sorted_by_key(|planned| planned.tokens));
        }
    }

    #[test]
    fn every_kind_of_fault_comes_and_some_outlast_the_patience_with_a_silent_part() {
        let planned = plan(1, scope(1, 1000));
        let expected = [
            "cut", "deaf", "delay", "forget", "kill", "mute", "reset", "silence", "stop",
        ];
        assert_eq!(kinds(&planned), BTreeSet::from(expected));
        let parts: BTreeSet<Part> = planned.iter().map(|planned| planned.part).collect();
        assert_eq!(parts.len(), 6);
        let long = planned
            .iter()
            .filter(|planned| planned.fault.lasts() > Duration::from_secs(4));
        assert!(long.count() > 200);
    }

    #[test]
    fn every_server_of_a_cluster_and_what_lies_between_them_have_every_kind_of_fault() {
        let planned = plan(1, scope(3, 2000));
        let of =
            |part: Part| -> Vec<Planned> { planned.iter().filter(|it| it.part == part).copied().collect() };
        for server in 0..3 {
            assert_eq!(
                kinds(&of(Part::Server(server))),
                BTreeSet::from(["kill", "restart", "stop", "wipe"])
            );
            for part in [Part::Routes(server), Part::Machine(server)] {
                let expected = ["cut", "deaf", "delay", "forget", "mute", "reset", "silence"];
                assert_eq!(kinds(&of(part)), BTreeSet::from(expected));
            }
        }
        for (first, second) in [(0, 1), (0, 2), (1, 2)] {
            assert!(kinds(&of(Part::Link(first, second))).contains("mute"));
        }
        assert_eq!(kinds(&of(Part::Servers)), BTreeSet::from(["kill"]));
        assert!(planned.iter().any(|it| it.aim == Aim::LeaderOf(Kept::Lease)));
        assert!(of(Part::Worker(1)).len() > 100 && of(Part::Clients).len() > 50);
        let wiped = planned.iter().filter(|it| it.fault.kind() == "wipe");
        assert!(wiped.clone().count() > 20);
        assert!(wiped.clone().all(|it| it.when == When::Settled));
    }
}
