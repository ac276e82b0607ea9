//! Which models a worker has, on devices that hold a few each.

use std::collections::{BTreeMap, BTreeSet};

use flotilla_protocol::ModelName;
use flotilla_protocol::fleet::{DeviceReport, DeviceState, ModelReport, ModelState};

/// Bytes of every model's weights.
pub const WEIGHTS_BYTES: u64 = 10;

#[derive(Debug)]
pub struct Residency {
    /// How many models each device holds.
    rooms: Vec<usize>,
    models: BTreeMap<ModelName, Held>,
}

#[derive(Debug, Clone, Copy)]
struct Held {
    /// None while it waits for room.
    device: Option<usize>,
    is_ready: bool,
    kv_tokens_max: Option<u64>,
}

impl Residency {
    pub fn new(rooms: Vec<usize>) -> Self {
        Self {
            rooms,
            models: BTreeMap::new(),
        }
    }

    pub fn clear(&mut self) {
        self.models.clear();
    }

    pub fn device_count(&self) -> usize {
        self.rooms.len()
    }

    pub fn is_ready(&self, model: &ModelName) -> bool {
        self.models.get(model).is_some_and(|held| held.is_ready)
    }

    pub fn is_used(&self, model: &ModelName, used: &BTreeSet<ModelName>) -> bool {
        self.models.contains_key(model) && used.contains(model)
    }

    /// Begins to load a model, in the place of these as far as nobody uses them.
    pub fn bring(&mut self, model: &ModelName, evict_first: &[ModelName], used: &BTreeSet<ModelName>) {
        if self.models.contains_key(model) {
            return;
        }
        for victim in evict_first.iter().filter(|victim| !used.contains(*victim)) {
            self.models.remove(victim);
        }
        let held = Held {
            device: None,
            is_ready: false,
            kv_tokens_max: None,
        };
        self.models.insert(model.clone(), held);
        self.find_room(used);
    }

    /// Time passes: what has a device is ready, what has none gets one that nobody uses.
    pub fn go_on(&mut self, used: &BTreeSet<ModelName>) {
        for held in self.models.values_mut().filter(|held| held.device.is_some()) {
            held.is_ready = true;
        }
        self.find_room(used);
    }

    fn find_room(&mut self, used: &BTreeSet<ModelName>) {
        let waiting = self.models.iter().filter(|(_, held)| held.device.is_none());
        let waiting: Vec<ModelName> = waiting.map(|(model, _)| model.clone()).collect();
        for model in waiting {
            let free = (0..self.rooms.len()).find(|device| self.count_on(*device) < self.rooms[*device]);
            let device = free.or_else(|| self.evict_idle(used));
            if let (Some(device), Some(held)) = (device, self.models.get_mut(&model)) {
                held.device = Some(device);
            }
        }
    }

    fn count_on(&self, device: usize) -> usize {
        let on_device = self.models.values().filter(|held| held.device == Some(device));
        on_device.count()
    }

    fn evict_idle(&mut self, used: &BTreeSet<ModelName>) -> Option<usize> {
        let mut idle = self
            .models
            .iter()
            .filter(|(model, held)| held.is_ready && !used.contains(*model));
        let (model, held) = idle.next().map(|(model, held)| (model.clone(), *held))?;
        self.models.remove(&model);
        held.device
    }

    /// Something changes that nobody asked for: an idle model goes, or the room for keys and values is another.
    pub fn shake(&mut self, pick: usize, used: &BTreeSet<ModelName>) {
        let Some(index) = pick.checked_rem(self.models.len()) else {
            return;
        };
        let model = self.models.keys().nth(index).unwrap().clone();
        if pick.is_multiple_of(2) && !used.contains(&model) {
            self.models.remove(&model);
        } else if let Some(held) = self.models.get_mut(&model) {
            held.kv_tokens_max = [None, Some(50), Some(500)][pick % 3];
        }
    }

    pub fn models(&self, used: &BTreeSet<ModelName>) -> Vec<ModelReport> {
        let report = |(model, held): (&ModelName, &Held)| ModelReport {
            model: model.clone(),
            state: match held.is_ready {
                true => ModelState::Ready,
                false => ModelState::Loading,
            },
            device: held.device.map(|device| u32::try_from(device).unwrap()),
            leases: u32::from(used.contains(model)),
            waiting: 0,
            weights_bytes: WEIGHTS_BYTES,
            expires_in_ms: None,
            load_ms: held.is_ready.then_some(500),
            shards: Vec::new(),
            kv_tokens_max: held.kv_tokens_max,
            loaded_from: None,
        };
        self.models.iter().map(report).collect()
    }

    pub fn devices(&self) -> Vec<DeviceReport> {
        let report = |(index, models_max): (usize, &usize)| DeviceReport {
            device: u32::try_from(index).unwrap(),
            page_bytes: WEIGHTS_BYTES,
            pages_total: u64::try_from(*models_max).unwrap(),
            pages_weights: u64::try_from(self.count_on(index)).unwrap(),
            pages_kv: 0,
            pages_workspace: 0,
            pages_kv_kept: None,
            resident_bytes: None,
            state: DeviceState::Working,
        };
        self.rooms.iter().enumerate().map(report).collect()
    }
}
