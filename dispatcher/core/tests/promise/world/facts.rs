//! What is stored for every leader to read: profiles, the catalog, registrations.

use flotilla_profile::DeviceProfile;
use flotilla_protocol::catalog::{CatalogEntry, ModelFacts, ModelSource, ModelTask, Policy};
use flotilla_protocol::fleet::{DeviceDescription, Registration};
use flotilla_protocol::profile::{Profile, ProfileSource};
use flotilla_protocol::request::Slo;

use super::residency::WEIGHTS_BYTES;
use super::{World, model};

/// Kinds of devices.
pub const KINDS: [&str; 2] = ["cpu", "gpu"];

/// Something that is put, replaced or removed.
#[derive(Debug, Clone)]
pub enum Fact {
    Profile {
        model: u8,
        kind: usize,
        ms: u32,
        at_once: u32,
        created: u32,
    },
    NoProfile {
        model: u8,
        kind: usize,
    },
    Catalog {
        model: u8,
        policy: Option<Policy>,
        e2e_ms: Option<u32>,
        pin: bool,
        output_tokens_prior: Option<u32>,
    },
    Registration {
        worker: usize,
    },
}

impl World {
    pub fn learn(&mut self, fact: &Fact) {
        self.facts.push(fact.clone());
        self.tell(fact);
    }

    /// A new leader reads everything that is stored.
    pub fn tell_all_facts(&mut self) {
        for fact in self.facts.clone() {
            self.tell(&fact);
        }
    }

    pub fn unpin_everything(&mut self) {
        let pinned = self.facts.iter().filter_map(|fact| match fact {
            Fact::Catalog { model, pin: true, .. } => Some(*model),
            _ => None,
        });
        let pinned: Vec<u8> = pinned.collect();
        for model in pinned {
            self.learn(&Fact::Catalog {
                model,
                policy: None,
                e2e_ms: None,
                pin: false,
                output_tokens_prior: None,
            });
        }
    }

    fn tell(&mut self, fact: &Fact) {
        let now = self.now();
        match *fact {
            Fact::Profile { model: index, .. } | Fact::NoProfile { model: index, .. }
                if self.removed_models.contains(&index) => {}
            Fact::Profile {
                model: index,
                kind,
                ms,
                at_once,
                created,
            } => {
                let profile = profile(KINDS[kind], ms, at_once, created);
                self.dispatcher.handle_profile(now, &model(index), profile);
            }
            Fact::NoProfile { model: index, kind } => {
                self.dispatcher
                    .handle_profile_removed(now, &model(index), KINDS[kind]);
            }
            Fact::Catalog { model: index, .. } if self.removed_models.contains(&index) => {}
            Fact::Catalog {
                model: index,
                policy,
                e2e_ms,
                pin,
                output_tokens_prior,
            } => {
                let entry = CatalogEntry {
                    policy,
                    slo: e2e_ms.map(e2e),
                    pin,
                    output_tokens_prior,
                    ..entry(index)
                };
                self.dispatcher.handle_catalog(now, &entry);
            }
            Fact::Registration { worker } => {
                let registration = self.registration(worker % self.workers.len());
                self.dispatcher.handle_registration(now, &registration);
            }
        }
    }

    /// The second device of a worker is of another kind than its first.
    fn registration(&self, index: usize) -> Registration {
        let worker = &self.workers[index];
        let device = |device: usize| DeviceDescription {
            index: u32::try_from(device).unwrap(),
            kind: KINDS[(index + device) % KINDS.len()].to_owned(),
            name: "device".into(),
            memory_bytes: 100,
            memory_bytes_per_s: (device == 1).then_some(1000),
            cost: Some(1.0),
        };
        Registration {
            worker: worker.id.clone(),
            incarnation: worker.incarnation,
            host: "host".into(),
            version: "1".into(),
            devices: (0..worker.residency.device_count()).map(device).collect(),
        }
    }
}

/// Every request takes as long, in proportion to its answer, and so many run at once.
fn profile(kind: &str, ms: u32, at_once: u32, created: u32) -> DeviceProfile {
    let outputs: Vec<f64> = vec![1.0, 8.0, 64.0];
    let seconds = |output: &f64| output / 8.0 * f64::from(ms) / 1e3;
    let e2e: Vec<Vec<f64>> = outputs.iter().map(|output| vec![seconds(output); 2]).collect();
    let rate = |row: &Vec<f64>| row.iter().map(|seconds| f64::from(at_once) / seconds).collect();
    let document = Profile {
        gpu: kind.to_owned(),
        cost: f64::from(ms),
        tputs: e2e.iter().map(rate).collect(),
        indexes: vec![outputs, vec![1.0, 1000.0]],
        created: f64::from(created),
        e2e: Some(e2e),
        ttft: None,
        tpot: None,
        slos: None,
        tpot_by_batch: None,
        prefill_tokens_per_s: None,
        load_seconds_by_tier: None,
        samples: None,
        source: Some(ProfileSource::Measured),
    };
    DeviceProfile::try_from(document).unwrap()
}

fn e2e(ms: u32) -> Slo {
    Slo {
        e2e_ms: Some(f64::from(ms)),
        ..Slo::default()
    }
}

fn entry(index: u8) -> CatalogEntry {
    CatalogEntry {
        name: model(index),
        source: ModelSource::Folder("/m".into()),
        facts: ModelFacts {
            architecture: "A".into(),
            context_tokens_max: 4096,
            vocabulary_size: 256,
            weights_bytes: WEIGHTS_BYTES,
            task: ModelTask::Generate,
        },
        root: None,
        slots: None,
        keep_alive: None,
        pin: false,
        slo: None,
        quantize: None,
        policy: None,
        output_tokens_prior: None,
    }
}
