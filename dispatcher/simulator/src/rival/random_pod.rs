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
