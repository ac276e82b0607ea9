//! The server with the fewest requests, as most gateways and AIBrix's `least-request` have it.
//!
//! Among equals one is drawn. Servers are equal whatever their kind; every device that has room for the model is a
//! server of it. Nothing waits at the router.

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
