//! Any server, each as likely.

use super::Servers;
use super::placed::Placed;
use super::push::{Choose, Push};
use crate::fleet::FleetSpec;
use crate::policy::Arriving;
use crate::random::Random;

/// The router.
#[derive(Debug)]
pub struct RandomPod {
    servers: Servers,
    random: Random,
}

impl RandomPod {
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

impl Choose for RandomPod {
    fn choose(&mut self, arriving: &Arriving, _placed: &Placed) -> Option<usize> {
        self.random.choose(self.servers.of(&arriving.model))
    }
}

/// Of the numbers that servers are drawn with.
const RANDOM_STREAM: u64 = 0x2a4d;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Policy;
    use crate::rival::stage::{arriving, devices, fleet, orders, profile, seconds};

    #[test]
    fn every_server_is_as_likely() {
        let cell = profile("gpu", |_, _| (1.0, 1.0));
        let mut router = RandomPod::before(&fleet(devices(&cell, 3), &["a"]), 1);
        for number in 0..3_000 {
            router.handle_arrival(
                seconds(0.0),
                &arriving(&format!("r{number}"), "a", seconds(0.0), 10),
            );
        }
        let ordered = orders(&mut router);
        for worker in ["gpu-0", "gpu-1", "gpu-2"] {
            let share = ordered.iter().filter(|order| order.ends_with(worker)).count();
            assert!((900..1_100).contains(&share), "{share} of 3000 on {worker}");
        }
    }
}
