//! Faults of a fleet with several servers.

use std::time::Duration;

use super::{Aim, Fault, Kept, Part, Planned, When, draw_fault, draw_network, of};
use crate::random::Random;

/// One fault, or the restarts of all servers one after the other.
pub(super) fn draw(random: &mut Random, servers: usize, given_up_after: Duration) -> Vec<Planned> {
    let of_two = of(random, 2);
    let part = match random.below(100) {
        0..=21 => Part::Worker(of_two),
        22..=43 => Part::Dispatcher(of_two),
        44..=51 => Part::Clients,
        _ => return draw_of_servers(random, servers, given_up_after),
    };
    vec![Planned::new(part, draw_fault(random, part, given_up_after))]
}

fn draw_of_servers(random: &mut Random, servers: usize, given_up_after: Duration) -> Vec<Planned> {
    let short = random.between(Duration::from_millis(50), Duration::from_secs(2));
    let long = random.between(ELECTED_AFTER, ELECTED_AFTER + given_up_after * 5 / 2);
    let lasts = if random.percent(50) { short } else { long };
    let server = of(random, servers);
    let aim = draw_aim(random);
    let aimed = |part, fault| Planned {
        aim,
        ..Planned::new(part, fault)
    };
    let settled = |planned| Planned {
        when: When::Settled,
        ..planned
    };
    vec![match random.below(100) {
        0..=19 => aimed(Part::Server(server), Fault::Kill(lasts)),
        20..=31 => aimed(Part::Server(server), Fault::Stop(lasts)),
        32..=39 => settled(aimed(Part::Server(server), Fault::Wipe(lasts))),
        40..=47 => {
            let restart = |number| Planned::new(Part::Server(number), Fault::Restart(short));
            return (0..servers).map(|number| settled(restart(number))).collect();
        }
        48..=53 => Planned::new(Part::Servers, Fault::Kill(short)),
        54..=68 => aimed(Part::Routes(server), draw_network(random, lasts)),
        69..=82 => {
            // The one that is left out is as good a draw as the two.
            let ends: Vec<usize> = (0..servers).filter(|number| *number != server).collect();
            Planned::new(Part::Link(ends[0], ends[1]), draw_network(random, lasts))
        }
        _ => aimed(Part::Machine(server), draw_network(random, lasts)),
    }]
}

fn draw_aim(random: &mut Random) -> Aim {
    match random.below(6) {
        0 => Aim::LeaderOf(Kept::Requests),
        1 => Aim::LeaderOf(Kept::Journals),
        2 => Aim::LeaderOf(Kept::Lease),
        _ => Aim::Drawn,
    }
}

/// A server that hears nothing of a leader for 4 to 9 s stands for election.
const ELECTED_AFTER: Duration = Duration::from_secs(5);
