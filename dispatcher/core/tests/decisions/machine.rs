//! A worker with one device or several, as far as the dispatcher can tell: it loads what it is given, computes for as
//! long as each request takes, and reports.

use std::collections::BTreeMap;
use std::time::Duration;

use flotilla_protocol::assignment::{Assignment, AttemptEnd, Done};
use flotilla_protocol::fleet::{
    DeviceDescription, DeviceReport, DeviceState, HostModel, HostReport, ModelReport, ModelState,
    Registration, Report, RunningRequest, ShardReport, WorkerState,
};
use flotilla_protocol::{Attempt, Epoch, ModelName, Moment, RequestId};

use crate::shared::{model, request, worker};
use crate::words::WEIGHTS_BYTES;

pub struct Machine {
    pub id: String,
    kind: String,
    pub slots: usize,
    memory_bytes: u64,
    pub state: WorkerState,
    incarnation: u64,
    seq: u64,
    models: BTreeMap<ModelName, Held>,
    pub runs: BTreeMap<RequestId, Run>,
    in_host: Vec<ModelName>,
    device: DeviceState,
    device_count: u32,
    /// Where models are that are not on the first device.
    pub places: BTreeMap<ModelName, Vec<u32>>,
}

/// A model on the machine.
struct Held {
    bytes: u64,
    ready_at: Moment,
    load: Option<Duration>,
    kv_tokens_max: Option<u64>,
}

/// A request on the machine.
pub struct Run {
    pub attempt: Attempt,
    pub model: ModelName,
    pub prompt_tokens: u32,
    pub answer_tokens: u32,
    pub made_tokens: u32,
    pub starts_at: Moment,
    pub takes: Option<Duration>,
}

impl Run {
    pub fn ends_at(&self) -> Option<Moment> {
        Some(self.starts_at + self.takes?)
    }

    /// Tokens that are out: as the test says, or in proportion to the time that passed.
    fn made_tokens(&self, now: Moment) -> u32 {
        let Some(takes) = self.takes else {
            return self.made_tokens;
        };
        let part = now.since(self.starts_at).as_secs_f64() / takes.as_secs_f64();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a part of the answer"
        )]
        let made = (f64::from(self.answer_tokens) * part.min(1.0)) as u32;
        made
    }
}

impl Machine {
    /// A machine of a kind with many slots and room for ten models.
    pub fn new(id: &str, kind: &str) -> Self {
        Self {
            id: id.to_owned(),
            kind: kind.to_owned(),
            slots: 1000,
            memory_bytes: 10 * WEIGHTS_BYTES,
            state: WorkerState::Ready,
            incarnation: 1,
            seq: 0,
            models: BTreeMap::new(),
            runs: BTreeMap::new(),
            in_host: Vec::new(),
            device: DeviceState::Working,
            device_count: 1,
            places: BTreeMap::new(),
        }
    }

    pub fn slots(mut self, slots: usize) -> Self {
        self.slots = slots;
        self
    }

    /// Room for so many models.
    pub fn room_for(mut self, models: u64) -> Self {
        self.memory_bytes = models * WEIGHTS_BYTES;
        self
    }

    /// Its host memory has a model's weights.
    pub fn keeping(mut self, name: &str) -> Self {
        self.in_host.push(model(name));
        self
    }

    /// Its device is out.
    pub fn broken(mut self) -> Self {
        let reason = "it broke".to_owned();
        self.device = DeviceState::Failed { reason };
        self
    }

    /// It has so many devices, all alike.
    pub fn of_devices(mut self, count: u32) -> Self {
        self.device_count = count;
        self
    }

    /// A model has been on these of its devices for ever, in equal parts if they are several.
    pub fn with_on(mut self, name: &str, devices: &[u32]) -> Self {
        self.places.insert(model(name), devices.to_vec());
        self.with(name)
    }

    /// A model has been there for ever.
    pub fn with(self, name: &str) -> Self {
        self.with_kv(name, None)
    }

    pub fn with_kv(mut self, name: &str, kv_tokens_max: Option<u64>) -> Self {
        let held = Held {
            bytes: WEIGHTS_BYTES,
            ready_at: Moment::default(),
            load: None,
            kv_tokens_max,
        };
        self.models.insert(model(name), held);
        self
    }

    /// It runs a request that nobody here has given to it.
    pub fn running(mut self, id: &str, name: &str) -> Self {
        let run = Run {
            attempt: Attempt(1),
            model: model(name),
            prompt_tokens: 5,
            answer_tokens: 16,
            made_tokens: 0,
            starts_at: Moment::default(),
            takes: None,
        };
        self.runs.insert(request(id), run);
        self
    }

    pub fn registration(&self) -> Registration {
        Registration {
            worker: worker(&self.id),
            incarnation: self.incarnation,
            host: "host".into(),
            version: "1".into(),
            devices: (0..self.device_count)
                .map(|index| DeviceDescription {
                    index,
                    kind: self.kind.clone(),
                    name: self.kind.clone(),
                    memory_bytes: self.memory_bytes,
                    memory_bytes_per_s: None,
                    cost: None,
                })
                .collect(),
        }
    }

    pub fn report(&mut self, now: Moment) -> Report {
        self.seq += 1;
        let used = |device| {
            let shards = self.models.keys().flat_map(|name| self.shards(name));
            let here = shards.filter(|shard| shard.device == device);
            here.map(|shard| shard.weights_bytes).sum()
        };
        Report {
            worker: worker(&self.id),
            incarnation: self.incarnation,
            seq: self.seq,
            epoch_seen: Epoch(1),
            state: self.state,
            free_slots: u32::try_from(self.slots - self.runs.len()).unwrap(),
            running: self.runs.iter().map(|it| running(now, it)).collect(),
            models: self
                .models
                .keys()
                .map(|name| self.model_report(now, name))
                .collect(),
            devices: (0..self.device_count)
                .map(|device| DeviceReport {
                    device,
                    page_bytes: 1,
                    pages_total: self.memory_bytes,
                    pages_weights: used(device),
                    pages_kv: 0,
                    pages_workspace: 0,
                    pages_kv_kept: None,
                    resident_bytes: None,
                    state: self.device.clone(),
                })
                .collect(),
            host: Some(HostReport {
                bytes_total: self.memory_bytes,
                models: self
                    .in_host
                    .iter()
                    .map(|model| HostModel {
                        model: model.clone(),
                        bytes: WEIGHTS_BYTES,
                    })
                    .collect(),
            })
            .filter(|host| !host.models.is_empty()),
            resident_bytes: None,
            departures: Vec::new(),
            fetches: Vec::new(),
        }
    }

    fn shards(&self, name: &ModelName) -> Vec<ShardReport> {
        let devices = self.places.get(name).map_or(&[0][..], Vec::as_slice);
        let shard = |(first_layer, device): (u32, &u32)| ShardReport {
            device: *device,
            first_layer,
            layers: 1,
            weights_bytes: self.models[name].bytes / devices.len() as u64,
        };
        (0..).zip(devices).map(shard).collect()
    }

    fn model_report(&self, now: Moment, name: &ModelName) -> ModelReport {
        let held = &self.models[name];
        let users = self.runs.values().filter(|run| run.model == *name);
        let is_ready = held.ready_at <= now;
        let shards = self.shards(name);
        ModelReport {
            model: name.clone(),
            state: match is_ready {
                true => ModelState::Ready,
                false => ModelState::Loading,
            },
            device: Some(shards[0].device),
            leases: u32::try_from(users.count()).unwrap(),
            waiting: 0,
            weights_bytes: held.bytes,
            expires_in_ms: None,
            load_ms: held
                .load
                .filter(|_| is_ready)
                .map(|load| u64::try_from(load.as_millis()).unwrap()),
            shards: if shards.len() > 1 { shards } else { Vec::new() },
            kv_tokens_max: held.kv_tokens_max,
            loaded_from: None,
        }
    }

    /// Takes an assignment; the last report before it.
    ///
    /// # Panics
    /// When it got more than it offered, or is to drop what somebody uses.
    pub fn take(
        &mut self,
        now: Moment,
        assignment: &Assignment,
        load: Duration,
        (takes, tokens): (Option<Duration>, (u32, u32)),
    ) -> u64 {
        assert!(
            self.runs.len() < self.slots,
            "{} got more than it offered",
            self.id
        );
        let ready_at = self.bring(now, assignment, load);
        let run = Run {
            attempt: assignment.attempt,
            model: assignment.model.clone(),
            prompt_tokens: tokens.0,
            answer_tokens: tokens.1,
            made_tokens: 0,
            starts_at: now.max(ready_at),
            takes,
        };
        self.runs.insert(assignment.request.clone(), run);
        self.seq
    }

    /// Makes a model resident, in the place of those that the assignment names; when it will be.
    fn bring(&mut self, now: Moment, assignment: &Assignment, load: Duration) -> Moment {
        if let Some(held) = self.models.get(&assignment.model) {
            return held.ready_at;
        }
        for victim in &assignment.evict_first {
            let is_used = self.runs.values().any(|run| run.model == *victim);
            assert!(!is_used, "{victim} is used on {}", self.id);
            assert!(self.models.remove(victim).is_some());
        }
        let used: u64 = self.models.values().map(|held| held.bytes).sum();
        assert!(
            used + WEIGHTS_BYTES <= self.memory_bytes * u64::from(self.device_count),
            "{} has no room for {}",
            self.id,
            assignment.model
        );
        let held = Held {
            bytes: WEIGHTS_BYTES,
            ready_at: now + load,
            load: Some(load),
            kv_tokens_max: None,
        };
        self.models.insert(assignment.model.clone(), held);
        now + load
    }

    /// When a model of it is ready next, after `now`.
    pub fn ready_next(&self, now: Moment) -> Option<Moment> {
        let loading = self.models.values().map(|held| held.ready_at);
        loading.filter(|at| *at > now).min()
    }

    /// Whether a model was made ready at this very moment.
    pub fn is_ready_since(&self, now: Moment) -> bool {
        self.models.values().any(|held| held.ready_at == now)
    }

    pub fn end(&mut self, id: &RequestId, end: AttemptEnd) -> Done {
        let run = self.runs.remove(id).unwrap();
        Done {
            worker: worker(&self.id),
            incarnation: self.incarnation,
            request: id.clone(),
            attempt: run.attempt,
            end,
            prompt_tokens: run.prompt_tokens,
            output_tokens: run.answer_tokens,
        }
    }

    /// The process dies and another one begins, with nothing.
    pub fn restart(&mut self) {
        self.incarnation += 1;
        self.seq = 0;
        self.runs.clear();
        self.models.clear();
    }
}

fn running(now: Moment, (id, run): (&RequestId, &Run)) -> RunningRequest {
    RunningRequest {
        request: id.clone(),
        attempt: run.attempt,
        model: run.model.clone(),
        prompt_tokens: run.prompt_tokens,
        output_tokens: run.made_tokens(now),
        alone: false,
    }
}
