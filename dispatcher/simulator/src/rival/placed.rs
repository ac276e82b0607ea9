//! Which request runs on which server.

use std::collections::HashMap;

use flotilla_protocol::{RequestId, WorkerId};

use crate::fleet::FleetSpec;

/// The servers of a fleet by index, and what runs on each.
#[derive(Debug)]
pub(super) struct Placed {
    workers: Vec<WorkerId>,
    running: Vec<u32>,
    server_of: HashMap<RequestId, usize>,
}

impl Placed {
    pub(super) fn new(fleet: &FleetSpec) -> Self {
        let workers: Vec<_> = fleet.devices.iter().map(|device| device.worker.clone()).collect();
        Self {
            running: vec![0; workers.len()],
            workers,
            server_of: HashMap::new(),
        }
    }

    /// Requests on each server.
    pub(super) fn running(&self) -> &[u32] {
        &self.running
    }

    pub(super) fn worker(&self, server: usize) -> &WorkerId {
        &self.workers[server]
    }

    pub(super) fn server(&self, worker: &WorkerId) -> Option<usize> {
        self.workers.iter().position(|known| known == worker)
    }

    /// A request goes to a server.
    pub(super) fn place(&mut self, request: RequestId, server: usize) {
        self.server_of.insert(request, server);
        self.running[server] += 1;
    }

    /// A request has ended; tells where it was.
    pub(super) fn end(&mut self, request: &RequestId) -> Option<usize> {
        let server = self.server_of.remove(request)?;
        self.running[server] -= 1;
        Some(server)
    }

    /// The servers of these that have the fewest requests.
    pub(super) fn least_of(&self, servers: impl Iterator<Item = usize> + Clone) -> Vec<usize> {
        let least = servers.clone().map(|server| self.running[server]).min();
        let least_busy = servers.filter(|&server| Some(self.running[server]) == least);
        least_busy.collect()
    }
}
