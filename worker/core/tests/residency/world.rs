//! The worker around the machine, with books of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::time::Duration;

use flotilla_protocol::fleet::LoadSource;
use flotilla_protocol::request::KeepAlive;
use flotilla_protocol::{ModelName, Moment, RequestId};
use flotilla_worker_core::kv::KvReport;
use flotilla_worker_core::ledger::{DeviceIndex, PAGE_BYTES};
use flotilla_worker_core::residency::{
    Action, DeviceFault, Keep, LoadFailure, LoadFiles, LoadProgress, LoadStall, ModelNeeds, Pin, Residency,
    ResidencySettings, Shard, SplitNeeds, UnloadReason,
};

use crate::bench::broken;

pub(crate) const DEVICE_PAGES: [u64; 3] = [100, 60, 100];
pub(crate) const MODEL_COUNT: u8 = 8;
const MODELS_MAX: usize = 2;
const HOST_PAGES: u64 = 90;

/// Something that happens. A `pick` chooses among what there is then.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Step {
    Want {
        model: u8,
        keep_alive: Option<KeepAlive>,
    },
    /// A request gives up waiting, or gives its lease back.
    End {
        pick: u64,
    },
    EvictFirst {
        model: u8,
        named: Vec<u8>,
    },
    LoadOrder {
        model: u8,
        keep_alive: Option<KeepAlive>,
    },
    UnloadOrder {
        model: u8,
    },
    Pin {
        model: u8,
        pin: Pin,
    },
    /// One thing that is under way ends.
    Work {
        pick: u64,
        succeeds: bool,
    },
    /// One load advances.
    Progress {
        pick: u64,
        bytes: u64,
    },
    /// A device fails; the last one that works never does.
    Fault {
        device: u32,
    },
    /// The requests of a device use as much of its pool, at best.
    UseKv {
        device: usize,
        pages: u64,
    },
    Prefetch {
        model: u8,
    },
    /// The files of a model are others now.
    Replace {
        model: u8,
    },
    Wait {
        ms: u64,
    },
}

pub(crate) fn name(model: u8) -> ModelName {
    ModelName::new(format!("m{model}")).unwrap()
}

/// The larger the number, the larger the model. Those from 4 on can be cut; 5 and 6 have to be, and the last one fits
/// nowhere even so.
fn needs(model: &ModelName) -> ModelNeeds {
    let number: u64 = model.as_str()[1..].parse().unwrap();
    let weights_pages = [10, 27, 44, 61, 78, 95, 180, 260][usize::try_from(number).unwrap()];
    let layers = 16;
    let split = SplitNeeds {
        layers,
        first_bytes: PAGE_BYTES,
        layer_bytes: (weights_pages - 3) * PAGE_BYTES / u64::from(layers),
        last_bytes: 2 * PAGE_BYTES,
        first_workspace_pages: 2,
        inner_workspace_pages: 1,
        last_workspace_pages: 2,
        kv_layer_block_bytes: PAGE_BYTES / 16,
        kv_blocks_min: 5,
        kv_blocks_max: 40,
    };
    ModelNeeds {
        weights_pages,
        workspace_pages: 2,
        kv_pages_min: 5,
        kv_block: None,
        split: (number >= 4).then_some(split),
    }
}

fn settings() -> ResidencySettings {
    ResidencySettings {
        device_pages: DEVICE_PAGES.to_vec(),
        models_max: MODELS_MAX,
        keep_alive: KeepAlive::Ms(1000),
        min_residency_max: Duration::from_millis(500),
        load_stall: Some(LoadStall {
            window: Duration::from_secs(5),
            bytes_min: 100,
        }),
        host_pages: HOST_PAGES,
    }
}

/// Weights in host memory.
#[derive(Debug, Clone, PartialEq)]
struct Copy {
    pages: u64,
    cut: Vec<Range<u32>>,
}

/// Something under way, and whether it was told to end.
#[derive(Debug)]
struct Job {
    action: Action,
    is_cancelled: bool,
    placed_bytes: u64,
}

pub(crate) struct World {
    pub(crate) residency: Residency,
    pub(crate) now: Moment,
    next_request: u64,
    waiting: BTreeMap<RequestId, ModelName>,
    leases: BTreeMap<RequestId, ModelName>,
    jobs: Vec<Job>,
    /// Pages of what is loaded or on its way in or out, as the actions say.
    resident: BTreeMap<ModelName, Vec<Shard>>,
    broken: BTreeSet<u32>,
    /// What is in host memory, or on its way there, as the actions say, with its pages and where it is cut.
    in_host: BTreeMap<ModelName, Copy>,
    /// What the engine of each device makes of its pool.
    pools: [KvReport; DEVICE_PAGES.len()],
}

impl World {
    pub(crate) fn new() -> Self {
        Self {
            residency: Residency::new(settings()),
            now: Moment::default(),
            next_request: 0,
            waiting: BTreeMap::new(),
            leases: BTreeMap::new(),
            jobs: Vec::new(),
            resident: BTreeMap::new(),
            broken: BTreeSet::new(),
            in_host: BTreeMap::new(),
            pools: [KvReport::default(); DEVICE_PAGES.len()],
        }
    }

    pub(crate) fn apply(&mut self, step: Step) {
        let now = self.now;
        match step {
            Step::Want { model, keep_alive } => {
                self.next_request += 1;
                let request = RequestId::from_random(self.next_request.into());
                self.waiting.insert(request.clone(), name(model));
                self.residency
                    .handle_wanted(now, &request, &name(model), keep_alive);
            }
            Step::End { pick } => self.end(pick),
            Step::EvictFirst { model, named } => {
                let named: Vec<_> = named.into_iter().map(name).collect();
                self.residency.handle_evict_first(&name(model), &named);
            }
            Step::LoadOrder { model, keep_alive } => {
                self.residency.handle_load_order(now, &name(model), keep_alive);
            }
            Step::UnloadOrder { model } => {
                self.residency
                    .handle_unload_order(now, &name(model), UnloadReason::Ordered)
            }
            Step::Pin { model, pin } => self.residency.handle_pin(now, &name(model), pin),
            Step::Work { pick, succeeds } => {
                if !self.jobs.is_empty() {
                    let job = self.jobs.swap_remove(index(pick, self.jobs.len()));
                    self.finish(job, succeeds);
                }
            }
            Step::Progress { pick, bytes } => self.progress(pick, bytes),
            Step::UseKv { device, pages } => self.use_kv(device, pages),
            Step::Fault { device } => self.fault(device),
            Step::Prefetch { model } => self.residency.handle_prefetch(now, &name(model)).unwrap(),
            Step::Replace { model } => {
                let reason = UnloadReason::Replaced;
                self.residency.handle_unload_order(now, &name(model), reason);
            }
            Step::Wait { ms } => {
                self.now = self.now + Duration::from_millis(ms);
                self.residency.handle_timeout(self.now);
            }
        }
        self.drain();
    }

    fn end(&mut self, pick: u64) {
        let ids: Vec<_> = self.waiting.keys().chain(self.leases.keys()).cloned().collect();
        if ids.is_empty() {
            return;
        }
        let request = ids[index(pick, ids.len())].clone();
        self.leases.remove(&request);
        self.waiting.remove(&request);
        self.residency.handle_released(self.now, &request);
    }

    /// The requests of a device want so many pages: they get what is there, and give back what they do not use.
    fn use_kv(&mut self, device: usize, pages: u64) {
        let pool = &mut self.pools[device];
        pool.pages_used = pages.min(pool.pages_target.max(pool.pages_used));
        self.tell_pool(device);
    }

    fn tell_pool(&mut self, device: usize) {
        let pool = &mut self.pools[device];
        pool.pages_held = pool.pages_target.max(pool.pages_used);
        let index = DeviceIndex(u32::try_from(device).unwrap());
        self.residency.handle_kv_resized(self.now, index, *pool);
    }

    fn fault(&mut self, device: u32) {
        let broken = self.broken.len();
        if broken + 1 == DEVICE_PAGES.len() && !self.broken.contains(&device) {
            return;
        }
        self.broken.insert(device);
        let fault = DeviceFault {
            reason: "it broke".to_owned(),
        };
        self.residency
            .handle_device_fault(self.now, DeviceIndex(device), fault);
    }

    fn progress(&mut self, pick: u64, bytes: u64) {
        let now = self.now;
        let loads = self.jobs.iter_mut().filter_map(|job| match &job.action {
            Action::Load { model, .. } => Some((model, &mut job.placed_bytes)),
            _ => None,
        });
        let mut loads: Vec<_> = loads.collect();
        if !loads.is_empty() {
            let picked = index(pick, loads.len());
            let (model, placed_bytes) = &mut loads[picked];
            **placed_bytes += bytes;
            let progress = LoadProgress {
                placed_bytes: **placed_bytes,
                files: LoadFiles::Here(Moment::default()),
            };
            self.residency.handle_load_progress(now, model, progress);
        }
    }

    fn finish(&mut self, job: Job, succeeds: bool) {
        let now = self.now;
        match job.action {
            Action::Inspect { model } => {
                let result = match succeeds {
                    true => Ok(needs(&model)),
                    false => Err(broken("unreadable")),
                };
                self.residency.handle_inspected(now, &model, result);
            }
            Action::Load { model, .. } => {
                let result = match (succeeds, job.is_cancelled) {
                    (true, _) => Ok(()),
                    (false, true) => Err(LoadFailure::Cancelled),
                    (false, false) => Err(broken("broken").into()),
                };
                if !succeeds {
                    self.resident.remove(&model);
                }
                let took = Duration::from_millis(700);
                self.residency.handle_loaded(now, &model, result, took);
            }
            Action::Unload { model, keep, .. } => {
                self.resident.remove(&model);
                // What cannot be copied is dropped.
                let kept = if succeeds { keep } else { Keep::Nowhere };
                if kept == Keep::Nowhere {
                    self.in_host.remove(&model);
                }
                self.residency.handle_unloaded(now, &model, kept);
            }
            Action::ResizeKv { device, pages } => {
                let device = usize::try_from(device.0).unwrap();
                self.pools[device].pages_target = pages;
                self.tell_pool(device);
            }
            Action::Prefetch { model } => {
                let result = match succeeds {
                    true => Ok(()),
                    false => Err(broken("unreadable")),
                };
                if !succeeds {
                    self.in_host.remove(&model);
                }
                self.residency.handle_prefetched(now, &model, result);
            }
            Action::CancelLoad { .. }
            | Action::DropCopy { .. }
            | Action::LeaseGranted { .. }
            | Action::LeaseLost { .. }
            | Action::ModelFailed { .. } => unreachable!("not a job"),
        }
    }

    /// Takes all actions and checks each against the books.
    fn drain(&mut self) {
        while let Some(action) = self.residency.poll_action() {
            match &action {
                Action::Inspect { .. } | Action::ResizeKv { .. } => self.begin(action),
                Action::Prefetch { model } => {
                    let pages = needs(model).weights_pages;
                    let copy = Copy {
                        pages,
                        cut: Vec::new(),
                    };
                    let before = self.in_host.insert(model.clone(), copy);
                    assert_eq!(before, None, "{model} is fetched once");
                    self.check_host();
                    self.begin(action);
                }
                Action::DropCopy { model } => {
                    assert!(self.in_host.remove(model).is_some(), "{model} is there");
                    assert!(!self.jobs.iter().any(|job| job.moves(model)));
                }
                Action::Load {
                    model,
                    shards,
                    source,
                } => {
                    let copy = self.in_host.get(model).cloned();
                    let cut = cut(shards);
                    let is_usable = copy.is_some_and(|copy| copy.cut == cut);
                    assert_eq!(*source == LoadSource::Host, is_usable, "the nearest copy is used");
                    if is_usable {
                        self.in_host.remove(model);
                    }
                    self.check_shards(model, shards);
                    let before = self.resident.insert(model.clone(), shards.clone());
                    assert!(before.is_none(), "{model} is loaded once");
                    self.check_capacity();
                    self.begin(action);
                }
                Action::CancelLoad { model } => {
                    let load = self.jobs.iter_mut().find(|job| job.is_load_of(model));
                    let load = load.expect("what is cancelled is under way");
                    assert!(!std::mem::replace(&mut load.is_cancelled, true), "once");
                }
                Action::Unload { model, devices, keep } => {
                    let shards = self.resident.get_mut(model).expect("who leaves is there");
                    if *keep == Keep::InHost {
                        let copy = Copy {
                            pages: shards.iter().map(|shard| shard.grant.weights_pages).sum(),
                            cut: cut(shards),
                        };
                        let before = self.in_host.insert(model.clone(), copy);
                        assert_eq!(before, None, "{model} is kept once");
                    }
                    shards.retain(|shard| {
                        !self.broken.contains(&shard.device.0) || devices.contains(&shard.device)
                    });
                    assert!(
                        shards
                            .iter()
                            .map(|shard| shard.device)
                            .eq(devices.iter().copied())
                    );
                    self.check_host();
                    let mut leased = self.leases.values();
                    assert!(leased.all(|leased| leased != model), "{model} is in use");
                    self.begin(action);
                }
                Action::LeaseLost { request, model, .. } => {
                    let leased = self.leases.remove(request);
                    assert_eq!(leased.as_ref(), Some(model), "who holds a lease loses it, once");
                    let mut lost = self.resident.get(model).into_iter().flatten();
                    assert!(lost.any(|shard| self.broken.contains(&shard.device.0)));
                }
                Action::LeaseGranted { request, model } => {
                    let waited = self.waiting.remove(request);
                    assert_eq!(waited.as_ref(), Some(model), "who waits is granted, once");
                    let is_moving = self.jobs.iter().any(|job| job.moves(model));
                    assert!(
                        self.resident.contains_key(model) && !is_moving,
                        "{model} is ready"
                    );
                    self.leases.insert(request.clone(), model.clone());
                }
                Action::ModelFailed {
                    request, retry_in, ..
                } => {
                    let waited = self.waiting.remove(request);
                    assert!(waited.is_some(), "who waits learns of the failure, once");
                    assert!(*retry_in > Duration::ZERO && *retry_in <= Duration::from_secs(60));
                }
            }
        }
        let has_failed = |shard: &Shard| self.broken.contains(&shard.device.0);
        let jobs = &self.jobs;
        let moves = |model: &ModelName| jobs.iter().any(|job| job.moves(model));
        self.resident
            .retain(|model, shards| !shards.iter().any(has_failed) || moves(model));
        self.check_capacity();
        self.residency.check_invariants();
    }

    fn begin(&mut self, action: Action) {
        self.jobs.push(Job {
            action,
            is_cancelled: false,
            placed_bytes: 0,
        });
    }

    fn check_host(&self) {
        let pages = self.in_host.values().map(|copy| copy.pages);
        assert!(
            pages.sum::<u64>() <= HOST_PAGES,
            "host memory holds no more than it has"
        );
    }

    fn check_capacity(&self) {
        for (index, pages_total) in (0_u32..).zip(DEVICE_PAGES) {
            let here = self.resident.values().flatten();
            let here = here.filter(|shard| shard.device.0 == index);
            let here: Vec<_> = here.map(|shard| shard.grant.pages()).collect();
            let held: u64 = here.iter().sum();
            let pool = &self.pools[usize::try_from(index).unwrap()];
            let held = held + pool.pages_target.max(pool.pages_used);
            assert!(held <= pages_total, "device {index} holds no more than it has");
            assert!(here.len() <= MODELS_MAX);
        }
    }

    /// Everything under way succeeds, every lease ends and time passes, until nobody waits; then what is held is
    /// what is resident.
    pub(crate) fn resolve(&mut self) {
        for _ in 0..1000 {
            if let Some(job) = self.jobs.pop() {
                let succeeds = !job.is_cancelled;
                self.finish(job, succeeds);
            } else if let Some(device) = self.pools.iter().position(|pool| pool.pages_used > 0) {
                self.use_kv(device, 0);
            } else if let Some((request, _)) = self.leases.pop_first() {
                self.residency.handle_released(self.now, &request);
            } else if self.waiting.is_empty() {
                return self.check_books();
            } else {
                let due = self.residency.poll_timeout();
                self.now = self.now.max(due.expect("who waits, waits for something"));
                self.residency.handle_timeout(self.now);
            }
            self.drain();
        }
        let models = self.residency.model_reports(self.now);
        let (waiting, due) = (&self.waiting, self.residency.poll_timeout());
        panic!(
            "{waiting:?} still wait at {:?} until {due:?}: {models:#?}",
            self.now
        );
    }

    fn check_books(&self) {
        let report = self.residency.host_report().unwrap();
        let copies: BTreeSet<_> = report.models.into_iter().map(|copy| copy.model).collect();
        assert!(copies.iter().eq(self.in_host.keys()));
        for device in self.residency.device_reports() {
            let held = device.pages_weights + device.pages_workspace;
            let here = self.resident.values().flatten();
            let here = here.filter(|shard| shard.device.0 == device.device);
            let booked = here.map(|shard| shard.grant.weights_pages + shard.grant.workspace_pages);
            assert_eq!(held, booked.sum::<u64>(), "device {}", device.device);
        }
    }

    /// Whole on one device that works, or all layers in order on several.
    fn check_shards(&self, model: &ModelName, shards: &[Shard]) {
        let wanted = needs(model);
        let devices: BTreeSet<_> = shards.iter().map(|shard| shard.device).collect();
        assert_eq!(devices.len(), shards.len(), "a device has one part of {model}");
        assert!(devices.iter().all(|device| !self.broken.contains(&device.0)));
        let weights: u64 = shards.iter().map(|shard| shard.grant.weights_pages).sum();
        let [shard] = shards else {
            let split = wanted.split.expect("only what can be cut is cut");
            let cut = cut(shards);
            assert_eq!(cut.len(), shards.len());
            assert_eq!((cut[0].start, cut[cut.len() - 1].end), (0, split.layers));
            assert!(
                cut.windows(2)
                    .all(|pair| pair[0].end == pair[1].start && !pair[0].is_empty())
            );
            let rounding = shards.len() as u64 + 1;
            assert!(weights + rounding >= wanted.weights_pages && weights <= wanted.weights_pages + rounding);
            let pinned_or_small = (0..).zip(DEVICE_PAGES).all(|(index, pages)| {
                let others = self.residency.device_reports()[index].pages_weights;
                others > 0
                    || pages < wanted.weights_pages + wanted.workspace_pages + wanted.kv_pages_min
                    || self.broken.contains(&u32::try_from(index).unwrap())
            });
            return assert!(pinned_or_small, "{model} fits on an empty device and was cut");
        };
        assert_eq!((shard.part, weights), (None, wanted.weights_pages));
    }
}

impl Job {
    fn is_load_of(&self, model: &ModelName) -> bool {
        matches!(&self.action, Action::Load { model: of, .. } if of == model)
    }

    /// Whether it brings the model in or out.
    fn moves(&self, model: &ModelName) -> bool {
        let moved = match &self.action {
            Action::Unload { model, .. } | Action::Prefetch { model } => Some(model),
            _ => None,
        };
        self.is_load_of(model) || moved == Some(model)
    }
}

fn cut(shards: &[Shard]) -> Vec<Range<u32>> {
    let parts = shards.iter().filter_map(|shard| shard.part);
    parts.map(|part| part.range()).collect()
}

fn index(pick: u64, count: usize) -> usize {
    usize::try_from(pick % count as u64).unwrap()
}
