//! A cache of models: who holds one serves it, and the least recently used one makes room.
//!
//! What multi-model servers with a distributed LRU cache do. A request goes to the least busy server that
//! holds its model and has a free slot. Without one, the model is loaded on another server: where there is
//! room, else where the idle model that was used longest ago would leave (the worker evicts idle models,
//! least recently used first). When nobody has a free slot, the least busy holder takes it. Nothing waits at
//! the router, nothing is prefetched, no target is looked at, and servers are equal whatever their kind.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use flotilla_protocol::fleet::{ModelState, Report};
use flotilla_protocol::{ModelName, RequestId};

use super::Servers;
use super::placed::Placed;
use super::push::{Choose, Push};
use crate::device::memory;
use crate::fleet::FleetSpec;
use crate::policy::Arriving;

/// The router.
#[derive(Debug)]
pub struct Lru {
    servers: Servers,
    caches: Vec<Cache>,
    request_of: HashMap<RequestId, (usize, ModelName)>,
    /// Counts uses.
    ticket: u64,
}

/// What is on one server.
#[derive(Debug)]
struct Cache {
    slots: u32,
    pages_free: u64,
    /// Pages that each model needs here.
    pages_of: BTreeMap<ModelName, u64>,
    /// Models that the last report has as resident or on their way.
    reported: BTreeSet<ModelName>,
    /// Requests of each model that were sent here and have not ended.
    requests: BTreeMap<ModelName, u32>,
    /// When each model was last used here.
    used: BTreeMap<ModelName, u64>,
}

impl Lru {
    /// A router before a fleet.
    #[must_use]
    pub fn before(fleet: &FleetSpec) -> Push<Self> {
        let caches = fleet.devices.iter().map(|device| Cache {
            slots: device.slots,
            pages_free: memory::pages(device),
            pages_of: fleet
                .models
                .iter()
                .map(|model| (model.name.clone(), memory::pages_min(model)))
                .collect(),
            reported: BTreeSet::new(),
            requests: BTreeMap::new(),
            used: BTreeMap::new(),
        });
        let choose = Self {
            servers: Servers::new(fleet),
            caches: caches.collect(),
            request_of: HashMap::new(),
            ticket: 0,
        };
        Push::before(fleet, choose)
    }

    /// Where another copy of a model is loaded, among servers with a free slot.
    fn place_for_copy(&self, model: &ModelName, free: &[usize], placed: &Placed) -> Option<usize> {
        let others = free.iter().copied();
        let others = others.filter(|&server| !self.caches[server].holds(model));
        let roomy = others
            .clone()
            .filter(|&server| self.caches[server].has_room(model));
        let roomy = placed.least_of(roomy).first().copied();
        roomy
            .or_else(|| others.min_by_key(|&server| (self.caches[server].oldest(), placed.running()[server])))
    }
}

impl Choose for Lru {
    fn choose(&mut self, arriving: &Arriving, placed: &Placed) -> Option<usize> {
        let model = &arriving.model;
        let servers = self.servers.of(model);
        let is_free = |server: &usize| placed.running()[*server] < self.caches[*server].slots;
        let free: Vec<_> = servers.iter().copied().filter(is_free).collect();
        let holds = |server: &usize| self.caches[*server].holds(model);
        let least = |servers: Vec<usize>| servers.first().copied();
        let server = least(placed.least_of(free.iter().copied().filter(holds)))
            .or_else(|| self.place_for_copy(model, &free, placed))
            .or_else(|| least(placed.least_of(servers.iter().copied().filter(holds))))
            .or_else(|| least(placed.least_of(servers.iter().copied())))?;
        self.ticket += 1;
        let cache = &mut self.caches[server];
        cache.used.insert(model.clone(), self.ticket);
        *cache.requests.entry(model.clone()).or_insert(0) += 1;
        self.request_of
            .insert(arriving.id.clone(), (server, model.clone()));
        Some(server)
    }

    fn handle_report(&mut self, server: usize, report: &Report) {
        let stays = |state: &ModelState| matches!(state, ModelState::Loading | ModelState::Ready);
        let models = report.models.iter().filter(|model| stays(&model.state));
        let cache = &mut self.caches[server];
        cache.reported = models.map(|model| model.model.clone()).collect();
        cache.pages_free = report.devices.iter().map(|device| device.pages_free()).sum();
    }

    fn handle_end(&mut self, request: &RequestId) {
        if let Some((server, model)) = self.request_of.remove(request)
            && let Some(count) = self.caches[server].requests.get_mut(&model)
        {
            *count -= 1;
        }
    }
}

impl Cache {
    fn is_busy(&self, model: &ModelName) -> bool {
        self.requests.get(model).is_some_and(|&count| count > 0)
    }

    fn holds(&self, model: &ModelName) -> bool {
        self.reported.contains(model) || self.is_busy(model)
    }

    /// Whether a model fits beside everything that is here or on its way.
    fn has_room(&self, model: &ModelName) -> bool {
        let coming = self.requests.keys();
        let coming = coming.filter(|&model| self.is_busy(model) && !self.reported.contains(model));
        let claimed: u64 = coming.map(|model| self.pages_of[model]).sum();
        self.pages_of[model] + claimed <= self.pages_free
    }

    /// When the idle model that would leave first was last used; the busy ones leave after all of these.
    fn oldest(&self) -> u64 {
        let idle = self.reported.iter().filter(|&model| !self.is_busy(model));
        let used = idle.map(|model| self.used.get(model).copied().unwrap_or(0));
        used.min().unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use flotilla_protocol::Moment;
    use flotilla_protocol::fleet::ModelState::Ready;

    use super::*;
    use crate::policy::Policy;
    use crate::rival::stage::{arriving, devices, done, fleet, orders, profile, report, seconds};

    /// Devices with 8 slots that hold three models each.
    fn router(device_count: usize, models: &[&str]) -> Push<Lru> {
        let devices = devices(&profile("gpu", |_, _| (1.0, 1.0)), device_count);
        Lru::before(&fleet(devices, models))
    }

    fn come(router: &mut Push<Lru>, name: &str, model: &str) -> Vec<String> {
        router.handle_arrival(Moment::default(), &arriving(name, model, Moment::default(), 100));
        orders(router)
    }

    #[test]
    fn who_holds_a_model_serves_it_until_no_slot_is_free() {
        let mut router = router(2, &["a"]);
        for number in 0..8 {
            let name = format!("r{number}");
            assert_eq!(come(&mut router, &name, "a"), [format!("{name}>gpu-0")]);
        }
        assert_eq!(
            come(&mut router, "copy", "a"),
            ["copy>gpu-1"],
            "gpu-0 has no slot left"
        );
        router.handle_done(seconds(1.0), done("gpu-0", "r0", 1, 1));
        assert_eq!(
            come(&mut router, "next", "a"),
            ["next>gpu-1"],
            "the least busy holder"
        );
    }

    #[test]
    fn a_new_model_goes_where_there_is_room() {
        let mut router = router(2, &["a", "b", "c", "d"]);
        let full = [("a", Ready), ("b", Ready), ("c", Ready)];
        router.handle_report(seconds(0.0), report("gpu-0", 1, &full));
        come(&mut router, "busy", "a");
        assert_eq!(come(&mut router, "new", "d"), ["new>gpu-1"]);
    }

    #[test]
    fn without_room_the_model_that_was_used_longest_ago_decides() {
        let mut router = router(2, &["a", "b", "c", "d", "e", "f", "g"]);
        let [left, right] = [["a", "b", "c"], ["d", "e", "f"]];
        for (worker, models) in [("gpu-0", left), ("gpu-1", right)] {
            router.handle_report(
                seconds(0.0),
                report(worker, 1, &models.map(|model| (model, Ready))),
            );
        }
        for model in ["d", "a", "b", "c", "e", "f"] {
            let ordered = come(&mut router, model, model);
            let worker = ordered[0].split_once('>').unwrap().1.to_owned();
            router.handle_done(seconds(0.5), done(&worker, model, 1, 1));
        }
        assert_eq!(come(&mut router, "new", "g"), ["new>gpu-1"], "d was used first");
    }

    #[test]
    fn when_nobody_has_a_slot_the_least_busy_holder_takes_more() {
        let mut router = router(1, &["a"]);
        let ordered: Vec<_> = (0..12)
            .flat_map(|number| come(&mut router, &format!("r{number}"), "a"))
            .collect();
        assert_eq!(ordered.len(), 12);
    }
}
