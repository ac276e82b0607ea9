//! The server with the fewest requests, as most gateways and AIBrix's `least-request` have it.
//!
//! Among equals one is drawn. Servers are equal whatever their kind; every device that has room for the model
//! is a server of it. Nothing waits at the router.

use super::Servers;
use super::placed::Placed;
use super::push::{Choose, Push};
use crate::fleet::FleetSpec;
use crate::policy::Arriving;
use crate::random::Random;

/// The router.
#[derive(Debug)]
pub struct LeastRequest {
    servers: Servers,
    random: Random,
}

impl LeastRequest {
    /// A router before a fleet.
    #[must_use]
    pub fn before(fleet: &FleetSpec, seed: u64) -> Push<Self> {
        let choose = Self {
            servers: Servers::new(fleet),
            random: Random::new(seed, RANDOM_STREAM),
        };
        Push::before(fleet, choose)
    }
}

impl Choose for LeastRequest {
    fn choose(&mut self, arriving: &Arriving, placed: &Placed) -> Option<usize> {
        let servers = self.servers.of(&arriving.model);
        self.random.choose(&placed.least_of(servers.iter().copied()))
    }
}

/// Of the numbers that equals are told apart with.
const RANDOM_STREAM: u64 = 0x1ea;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Policy;
    use crate::rival::stage::{arriving, devices, done, fleet, orders, profile, seconds};

    #[test]
    fn the_fewest_requests_win_and_nothing_ever_waits() {
        let cell = profile("gpu", |_, _| (1.0, 1.0));
        let mut router = LeastRequest::before(&fleet(devices(&cell, 3), &["a"]), 1);
        let mut come = |name: &str| {
            router.handle_arrival(seconds(0.0), &arriving(name, "a", seconds(0.0), 10));
            orders(&mut router).pop().unwrap()
        };
        let mut first: Vec<_> = ["a", "b", "c"].map(&mut come).into();
        let second: Vec<_> = (0..60).map(|number| come(&format!("r{number}"))).collect();
        for worker in ["gpu-0", "gpu-1", "gpu-2"] {
            let share = second.iter().filter(|order| order.ends_with(worker)).count();
            assert_eq!(share, 20);
        }
        let (request, worker) = first.pop().unwrap().split_once('>').map(owned).unwrap();
        router.handle_done(seconds(1.0), done(&worker, &request, 1, 1));
        router.handle_arrival(seconds(1.0), &arriving("last", "a", seconds(1.0), 10));
        assert_eq!(orders(&mut router), [format!("last>{worker}")]);
    }

    #[test]
    fn a_model_that_fits_nowhere_is_refused() {
        let cell = profile("gpu", |_, _| (1.0, 1.0));
        let mut fleet = fleet(devices(&cell, 2), &["a"]);
        fleet.models[0].weights_bytes = 64 << 30;
        let mut router = LeastRequest::before(&fleet, 1);
        router.handle_arrival(seconds(0.0), &arriving("large", "a", seconds(0.0), 10));
        assert_eq!(orders(&mut router), ["large!refused"]);
    }

    fn owned((request, worker): (&str, &str)) -> (String, String) {
        (request.to_owned(), worker.to_owned())
    }
}
