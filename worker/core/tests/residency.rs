//! Residency under any order of wants, ends, orders, failures and time.
#![expect(clippy::unwrap_used, reason = "a test stops where it is wrong")]

use std::collections::BTreeMap;
use std::time::Duration;

use flotilla_protocol::request::KeepAlive;
use flotilla_protocol::{ModelName, Moment, RequestId};
use flotilla_worker_core::ledger::DeviceIndex;
use flotilla_worker_core::residency::{Action, Grant, ModelNeeds, Pin, Residency, ResidencySettings};
use proptest::prelude::*;

const DEVICE_PAGES: [u64; 2] = [100, 60];
const MODEL_COUNT: u8 = 6;

#[derive(Debug, Clone)]
enum Step {
    Want {
        model: u8,
        keep_alive: Option<KeepAlive>,
    },
    /// A request gives up waiting, or gives its lease back.
    End {
        request: prop::sample::Index,
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
        job: prop::sample::Index,
        succeeds: bool,
    },
    Wait {
        ms: u64,
    },
}

fn keep_alive() -> impl Strategy<Value = Option<KeepAlive>> {
    prop_oneof![
        Just(None),
        Just(Some(KeepAlive::Ms(0))),
        (1..5000_u64).prop_map(|ms| Some(KeepAlive::Ms(ms))),
        Just(Some(KeepAlive::UntilEvicted)),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let index = any::<prop::sample::Index>;
    let model = || 0..MODEL_COUNT;
    let pin = prop_oneof![Just(Pin::Pinned), Just(Pin::Evictable)];
    prop_oneof![
        8 => (model(), keep_alive()).prop_map(|(model, keep_alive)| Step::Want { model, keep_alive }),
        6 => index().prop_map(|request| Step::End { request }),
        1 => (model(), keep_alive()).prop_map(|(model, keep_alive)| Step::LoadOrder { model, keep_alive }),
        1 => model().prop_map(|model| Step::UnloadOrder { model }),
        1 => (model(), pin).prop_map(|(model, pin)| Step::Pin { model, pin }),
        12 => (index(), prop::bool::weighted(0.9)).prop_map(|(job, succeeds)| Step::Work { job, succeeds }),
        3 => (0..3000_u64).prop_map(|ms| Step::Wait { ms }),
    ]
}

fn name(model: u8) -> ModelName {
    ModelName::new(format!("m{model}")).unwrap()
}

/// The larger the number, the larger the model; the last one fits nowhere.
fn needs(model: &ModelName) -> ModelNeeds {
    let number: u64 = model.as_str()[1..].parse().unwrap();
    ModelNeeds {
        weights_pages: 10 + 17 * number,
        workspace_pages: 2,
        kv_pages_min: 5,
        kv_pages_wanted: 20,
        kv_block: None,
    }
}

fn settings() -> ResidencySettings {
    ResidencySettings {
        device_pages: DEVICE_PAGES.to_vec(),
        models_max: 2,
        keep_alive: KeepAlive::Ms(1000),
    }
}

/// The worker around the machine, with books of its own.
struct World {
    residency: Residency,
    now: Moment,
    next_request: u64,
    waiting: BTreeMap<RequestId, ModelName>,
    leases: BTreeMap<RequestId, ModelName>,
    /// Things under way.
    jobs: Vec<Action>,
    /// Pages of what is loaded or on its way in or out, as the actions say.
    resident: BTreeMap<ModelName, (DeviceIndex, Grant)>,
}

impl World {
    fn new() -> Self {
        Self {
            residency: Residency::new(settings()),
            now: Moment::default(),
            next_request: 0,
            waiting: BTreeMap::new(),
            leases: BTreeMap::new(),
            jobs: Vec::new(),
            resident: BTreeMap::new(),
        }
    }

    fn apply(&mut self, step: Step) {
        let now = self.now;
        match step {
            Step::Want { model, keep_alive } => {
                self.next_request += 1;
                let request = RequestId::from_random(self.next_request.into());
                self.waiting.insert(request.clone(), name(model));
                self.residency
                    .handle_wanted(now, &request, &name(model), keep_alive);
            }
            Step::End { request } => {
                let ids: Vec<_> = self.waiting.keys().chain(self.leases.keys()).cloned().collect();
                if ids.is_empty() {
                    return;
                }
                let request = ids[request.index(ids.len())].clone();
                self.leases.remove(&request);
                self.waiting.remove(&request);
                self.residency.handle_released(now, &request);
            }
            Step::LoadOrder { model, keep_alive } => {
                self.residency.handle_load_order(now, &name(model), keep_alive);
            }
            Step::UnloadOrder { model } => self.residency.handle_unload_order(now, &name(model)),
            Step::Pin { model, pin } => self.residency.handle_pin(now, &name(model), pin),
            Step::Work { job, succeeds } => self.work(job, succeeds),
            Step::Wait { ms } => {
                self.now = self.now + Duration::from_millis(ms);
                self.residency.handle_timeout(self.now);
            }
        }
        self.drain();
    }

    fn work(&mut self, job: prop::sample::Index, succeeds: bool) {
        if self.jobs.is_empty() {
            return;
        }
        let job = self.jobs.swap_remove(job.index(self.jobs.len()));
        self.finish(job, succeeds);
        self.drain();
    }

    fn finish(&mut self, job: Action, succeeds: bool) {
        match job {
            Action::Inspect { model } => {
                let result = if succeeds {
                    Ok(needs(&model))
                } else {
                    Err("unreadable".to_owned())
                };
                self.residency.handle_inspected(self.now, &model, result);
            }
            Action::Load { model, .. } => {
                let result = if succeeds {
                    Ok(())
                } else {
                    Err("broken".to_owned())
                };
                if !succeeds {
                    self.resident.remove(&model);
                }
                self.residency
                    .handle_loaded(self.now, &model, result, Duration::from_millis(7));
            }
            Action::Unload { model, .. } => {
                self.resident.remove(&model).unwrap();
                self.residency.handle_unloaded(self.now, &model);
            }
            Action::LeaseGranted { .. } | Action::ModelFailed { .. } => unreachable!("not a job"),
        }
    }

    /// Takes all actions and checks each against the books.
    fn drain(&mut self) {
        while let Some(action) = self.residency.poll_action() {
            match &action {
                Action::Inspect { .. } => self.jobs.push(action),
                Action::Load { model, device, grant } => {
                    let wanted = needs(model);
                    assert!((wanted.kv_pages_min..=wanted.kv_pages_wanted).contains(&grant.kv_pages));
                    assert_eq!(grant.weights_pages, wanted.weights_pages);
                    let before = self.resident.insert(model.clone(), (*device, *grant));
                    assert!(before.is_none(), "{model} is loaded once");
                    self.check_capacity();
                    self.jobs.push(action);
                }
                Action::Unload { model, .. } => {
                    assert!(
                        self.leases.values().all(|leased| leased != model),
                        "{model} is in use"
                    );
                    assert!(self.resident.contains_key(model));
                    self.jobs.push(action);
                }
                Action::LeaseGranted { request, model } => {
                    let waited = self.waiting.remove(request);
                    assert_eq!(waited.as_ref(), Some(model), "who waits is granted, once");
                    let busy = |job: &Action| matches!(job, Action::Load { model: of, .. } | Action::Unload { model: of, .. } if of == model);
                    assert!(
                        self.resident.contains_key(model) && !self.jobs.iter().any(busy),
                        "{model} is ready"
                    );
                    self.leases.insert(request.clone(), model.clone());
                }
                Action::ModelFailed {
                    request, retry_in, ..
                } => {
                    assert!(
                        self.waiting.remove(request).is_some(),
                        "who waits learns of the failure, once"
                    );
                    assert!(*retry_in > Duration::ZERO && *retry_in <= Duration::from_secs(60));
                }
            }
        }
        self.residency.check_invariants();
    }

    fn check_capacity(&self) {
        for (index, pages_total) in (0_u32..).zip(DEVICE_PAGES) {
            let here = self.resident.values().filter(|(device, _)| device.0 == index);
            let here: Vec<_> = here.map(|(_, grant)| grant).collect();
            let pages = here
                .iter()
                .map(|grant| grant.weights_pages + grant.workspace_pages + grant.kv_pages);
            assert!(
                pages.sum::<u64>() <= pages_total,
                "device {index} holds no more than it has"
            );
            assert!(here.len() <= settings().models_max);
        }
    }

    /// Everything under way succeeds, every lease ends and time passes, until nobody waits.
    fn resolve(&mut self) {
        for _ in 0..1000 {
            if let Some(job) = self.jobs.pop() {
                self.finish(job, true);
            } else if let Some((request, _)) = self.leases.pop_first() {
                self.residency.handle_released(self.now, &request);
            } else if self.waiting.is_empty() {
                return;
            } else {
                let at = self
                    .residency
                    .poll_timeout()
                    .expect("who waits, waits for something");
                self.now = self.now.max(at);
                self.residency.handle_timeout(self.now);
            }
            self.drain();
        }
        panic!("{:?} still wait", self.waiting);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn nobody_is_unloaded_in_use_and_everyone_who_waits_is_served(
        steps in prop::collection::vec(step(), 0..150),
    ) {
        let mut world = World::new();
        for step in steps {
            world.apply(step);
        }
        world.resolve();
        let held: u64 = world.residency.device_reports().iter()
            .map(|device| device.pages_weights + device.pages_kv + device.pages_workspace)
            .sum();
        let resident = world.resident.values();
        let booked = resident.map(|(_, grant)| grant.weights_pages + grant.workspace_pages + grant.kv_pages);
        prop_assert_eq!(held, booked.sum::<u64>());
    }
}

/// A worker with one device, driven by hand.
struct Bench {
    residency: Residency,
    now: Moment,
}

impl Bench {
    fn new(pages: u64, models_max: usize) -> Self {
        let settings = ResidencySettings {
            device_pages: vec![pages],
            models_max,
            keep_alive: KeepAlive::Ms(1000),
        };
        Self {
            residency: Residency::new(settings),
            now: Moment::default(),
        }
    }

    fn want(&mut self, request: &str, model: &str, keep_alive: Option<KeepAlive>) {
        let (request, model) = (RequestId::new(request).unwrap(), ModelName::new(model).unwrap());
        self.residency
            .handle_wanted(self.now, &request, &model, keep_alive);
    }

    fn release(&mut self, request: &str) {
        self.residency
            .handle_released(self.now, &RequestId::new(request).unwrap());
    }

    fn wait(&mut self, ms: u64) {
        self.now = self.now + Duration::from_millis(ms);
        self.residency.handle_timeout(self.now);
    }

    /// Inspects a model that needs so many pages, one of them for keys and values.
    fn inspect(&mut self, model: &str, pages: u64) {
        let needs = ModelNeeds {
            weights_pages: pages - 1,
            workspace_pages: 0,
            kv_pages_min: 1,
            kv_pages_wanted: 1,
            kv_block: None,
        };
        let model = ModelName::new(model).unwrap();
        self.residency.handle_inspected(self.now, &model, Ok(needs));
    }

    fn loaded(&mut self, model: &str) {
        let model = ModelName::new(model).unwrap();
        self.residency
            .handle_loaded(self.now, &model, Ok(()), Duration::from_millis(7));
    }

    fn unloaded(&mut self, model: &str) {
        self.residency
            .handle_unloaded(self.now, &ModelName::new(model).unwrap());
    }

    /// Loads a model of so many pages for a request, which keeps its lease.
    fn run(&mut self, request: &str, model: &str, pages: u64) {
        self.want(request, model, None);
        self.inspect(model, pages);
        self.loaded(model);
        let seen = self.actions();
        assert_eq!(seen.last(), Some(&format!("lease {request} {model}")), "{seen:?}");
    }

    /// All actions, in short.
    fn actions(&mut self) -> Vec<String> {
        let mut seen = Vec::new();
        while let Some(action) = self.residency.poll_action() {
            seen.push(match action {
                Action::Inspect { model } => format!("inspect {model}"),
                Action::Load { model, grant, .. } => format!("load {model} kv {}", grant.kv_pages),
                Action::Unload { model, .. } => format!("unload {model}"),
                Action::LeaseGranted { request, model } => format!("lease {request} {model}"),
                Action::ModelFailed {
                    request, retry_in, ..
                } => {
                    format!("failed {request} {}", retry_in.as_millis())
                }
            });
        }
        self.residency.check_invariants();
        seen
    }
}

#[test]
fn requests_share_one_load_and_all_get_leases() {
    let mut bench = Bench::new(100, 3);
    bench.want("r1", "a", None);
    bench.want("r2", "a", None);
    assert_eq!(bench.actions(), ["inspect a"]);
    bench.inspect("a", 10);
    bench.want("r3", "a", None);
    assert_eq!(bench.actions(), ["load a kv 1"]);
    bench.loaded("a");
    assert_eq!(bench.actions(), ["lease r1 a", "lease r2 a", "lease r3 a"]);
}

#[test]
fn least_recently_used_idle_models_leave_and_no_more_of_them_than_needed() {
    let mut bench = Bench::new(100, 9);
    bench.run("r1", "small", 10);
    bench.run("r2", "old", 40);
    bench.run("r3", "new", 40);
    bench.release("r1");
    bench.release("r2");
    bench.release("r3");
    bench.want("r4", "x", None);
    bench.inspect("x", 45);
    assert_eq!(
        bench.actions(),
        ["inspect x", "unload old"],
        "small is older but of no use beside old"
    );
    bench.unloaded("old");
    assert_eq!(bench.actions(), ["load x kv 1"]);
}

#[test]
fn a_model_in_use_drains_for_a_newcomer_and_grants_no_more_leases() {
    let mut bench = Bench::new(100, 9);
    bench.run("r1", "a", 60);
    bench.want("r2", "b", None);
    bench.inspect("b", 60);
    assert_eq!(bench.actions(), ["inspect b"], "nobody with leases is unloaded");
    bench.want("r3", "a", None);
    assert_eq!(bench.actions(), [""; 0], "who is told to leave grants no lease");
    bench.release("r1");
    assert_eq!(bench.actions(), ["unload a"]);
    bench.unloaded("a");
    assert_eq!(bench.actions(), ["inspect a", "load b kv 1"]);
    bench.loaded("b");
    bench.inspect("a", 60);
    assert_eq!(bench.actions(), ["lease r2 b"]);
    bench.release("r2");
    assert_eq!(bench.actions(), ["unload b"]);
    bench.unloaded("b");
    bench.loaded("a");
    assert_eq!(bench.actions(), ["load a kv 1", "lease r3 a"]);
}

#[test]
fn a_model_that_fits_nowhere_is_refused_with_the_numbers_and_nobody_leaves() {
    let mut bench = Bench::new(100, 9);
    bench.run("r1", "a", 60);
    bench.release("r1");
    bench.want("r2", "b", None);
    bench.inspect("b", 101);
    assert_eq!(bench.actions(), ["inspect b", "failed r2 1000"]);
    let unloadable = bench
        .residency
        .unloadable(bench.now, &ModelName::new("b").unwrap())
        .unwrap();
    let numbers = "it needs 101 pages of 2 MiB (100 for weights, 0 for workspace, 1 for keys and values); \
                   the largest device has 100, of which 100 are not pinned";
    assert_eq!(unloadable.reason, numbers);
}

#[test]
fn pinned_models_are_no_victims_and_outstay_their_keep_alive() {
    let mut bench = Bench::new(100, 9);
    let model = ModelName::new("a").unwrap();
    bench.residency.handle_pin(bench.now, &model, Pin::Pinned);
    bench.run("r1", "a", 60);
    bench.release("r1");
    bench.wait(1_000_000);
    bench.want("r2", "b", None);
    bench.inspect("b", 41);
    assert_eq!(
        bench.actions(),
        ["inspect b", "failed r2 1000"],
        "41 do not fit beside the pinned 60"
    );
    bench.residency.handle_pin(bench.now, &model, Pin::Evictable);
    bench.wait(1000);
    assert_eq!(bench.actions(), ["unload a"], "its keep-alive counts again");
}

#[test]
fn the_longest_keep_alive_of_a_time_of_use_counts_from_its_last_end() {
    let mut bench = Bench::new(100, 9);
    bench.run("r1", "a", 10);
    bench.want("r2", "a", Some(KeepAlive::Ms(5000)));
    bench.want("r3", "a", Some(KeepAlive::Ms(0)));
    bench.release("r2");
    bench.wait(100);
    bench.release("r1");
    bench.release("r3");
    assert_eq!(
        bench.residency.poll_timeout(),
        Some(bench.now + Duration::from_secs(5))
    );
    bench.wait(4999);
    assert_eq!(
        bench.actions(),
        [""; 0],
        "a lease that ended before it was polled is not granted"
    );
    bench.want("r4", "a", Some(KeepAlive::Ms(0)));
    bench.release("r4");
    assert_eq!(
        bench.actions(),
        ["unload a"],
        "a new time of use has a keep-alive of its own"
    );
    bench.unloaded("a");
    bench.run("r5", "a", 10);
    bench.release("r5");
    bench.wait(1000);
    assert_eq!(bench.actions(), ["unload a"]);
}

#[test]
fn a_model_that_stays_until_evicted_never_expires_and_is_evicted() {
    let mut bench = Bench::new(100, 1);
    bench.run("r1", "a", 10);
    bench.want("r2", "a", Some(KeepAlive::UntilEvicted));
    bench.release("r1");
    bench.release("r2");
    assert_eq!(bench.residency.poll_timeout(), None);
    bench.want("r3", "b", None);
    bench.inspect("b", 10);
    assert_eq!(bench.actions(), ["inspect b", "unload a"], "there is one place");
}

#[test]
fn failed_loads_back_off_and_double_until_one_succeeds() {
    let mut bench = Bench::new(100, 1);
    let model = ModelName::new("a").unwrap();
    for expected in [1, 2, 4, 8, 16, 32, 60, 60] {
        bench.want("r1", "a", None);
        bench.want("r2", "a", None);
        bench.inspect("a", 10);
        let broken = Err("broken".to_owned());
        bench
            .residency
            .handle_loaded(bench.now, &model, broken, Duration::ZERO);
        let ms = expected * 1000;
        let expected = [
            "inspect a",
            "load a kv 1",
            &format!("failed r1 {ms}"),
            &format!("failed r2 {ms}"),
        ];
        assert_eq!(bench.actions(), expected);
        bench.wait(ms - 1);
        bench.want("r3", "a", None);
        assert_eq!(
            bench.actions(),
            ["failed r3 1"],
            "nothing is tried during the back-off"
        );
        bench.wait(1);
    }
    bench.run("r4", "a", 10);
    let reports = bench.residency.model_reports(bench.now);
    assert_eq!(
        (reports[0].leases, reports[0].load_ms, reports[0].device),
        (1, Some(7), Some(0))
    );
}

#[test]
fn an_order_loads_without_a_request_and_another_unloads_when_leases_end() {
    let mut bench = Bench::new(100, 1);
    let model = ModelName::new("a").unwrap();
    bench
        .residency
        .handle_load_order(bench.now, &model, Some(KeepAlive::Ms(50)));
    bench.inspect("a", 10);
    bench.loaded("a");
    assert_eq!(bench.actions(), ["inspect a", "load a kv 1"]);
    assert_eq!(
        bench.residency.poll_timeout(),
        Some(bench.now + Duration::from_millis(50))
    );
    bench.want("r1", "a", None);
    bench.residency.handle_unload_order(bench.now, &model);
    bench.want("r2", "a", None);
    assert_eq!(bench.actions(), ["lease r1 a"]);
    bench.release("r1");
    bench.unloaded("a");
    assert_eq!(
        bench.actions(),
        ["unload a", "inspect a"],
        "who came after the order waits for the next load"
    );
}

#[test]
fn a_load_that_nobody_waits_for_is_finished_and_leaves_the_model_idle() {
    let mut bench = Bench::new(100, 1);
    bench.want("r1", "a", None);
    bench.inspect("a", 10);
    bench
        .residency
        .handle_released(bench.now, &RequestId::new("r1").unwrap());
    bench.loaded("a");
    assert_eq!(bench.actions(), ["inspect a", "load a kv 1"]);
    assert_eq!(
        bench.residency.poll_timeout(),
        Some(bench.now + Duration::from_secs(1))
    );
    bench.want("r2", "b", None);
    bench
        .residency
        .handle_released(bench.now, &RequestId::new("r2").unwrap());
    bench.inspect("b", 95);
    assert_eq!(
        bench.actions(),
        ["inspect b"],
        "nobody is evicted for a model that nobody wants"
    );
}

#[test]
fn keys_and_values_take_what_is_free_and_evict_for_the_least_only() {
    let mut bench = Bench::new(100, 9);
    bench.run("r1", "a", 40);
    bench.release("r1");
    bench.want("r2", "b", None);
    let model = ModelName::new("b").unwrap();
    let needs = ModelNeeds {
        weights_pages: 30,
        workspace_pages: 5,
        kv_pages_min: 5,
        kv_pages_wanted: 50,
        kv_block: None,
    };
    bench.residency.handle_inspected(bench.now, &model, Ok(needs));
    assert_eq!(bench.actions(), ["inspect b", "load b kv 25"]);
    let report = &bench.residency.device_reports()[0];
    assert_eq!(
        (report.pages_weights, report.pages_kv, report.pages_workspace),
        (69, 26, 5)
    );
}

#[test]
fn a_small_model_passes_a_large_one_only_beside_its_claim() {
    let mut bench = Bench::new(100, 9);
    bench.run("r1", "a", 60);
    bench.want("r2", "large", None);
    bench.inspect("large", 80);
    bench.want("r3", "small", None);
    bench.inspect("small", 20);
    bench.want("r4", "other", None);
    bench.inspect("other", 20);
    let seen = bench.actions();
    assert_eq!(
        seen,
        [
            "inspect large",
            "inspect small",
            "load small kv 1",
            "inspect other"
        ]
    );
    bench.release("r1");
    bench.unloaded("a");
    assert_eq!(
        bench.actions(),
        ["unload a", "load large kv 1"],
        "the first in line is served first"
    );
}

#[test]
fn the_busy_model_with_the_fewest_leases_drains_and_a_pinned_one_never() {
    let mut bench = Bench::new(100, 9);
    let pinned = ModelName::new("pinned").unwrap();
    bench.residency.handle_pin(bench.now, &pinned, Pin::Pinned);
    bench.run("r0", "pinned", 40);
    bench.release("r0");
    bench.run("r1", "busier", 30);
    bench.want("r2", "busier", None);
    bench.run("r3", "quieter", 30);
    bench.want("r4", "x", None);
    bench.inspect("x", 30);
    assert_eq!(bench.actions(), ["inspect x"], "the pinned one is idle and stays");
    bench.want("r5", "busier", None);
    bench.want("r6", "quieter", None);
    assert_eq!(bench.actions(), ["lease r5 busier"]);
    bench.release("r3");
    assert_eq!(bench.actions(), ["unload quieter"]);
}

#[test]
fn the_end_of_a_lease_is_a_use() {
    let mut bench = Bench::new(100, 2);
    bench.run("r1", "a", 10);
    bench.run("r2", "b", 10);
    bench.release("r2");
    bench.release("r1");
    bench.want("r3", "x", None);
    bench.inspect("x", 10);
    assert_eq!(bench.actions(), ["inspect x", "unload b"]);
}

#[test]
fn places_are_claimed_and_pinned_as_pages_are() {
    let mut bench = Bench::new(100, 2);
    bench.run("r1", "a", 10);
    bench.run("r2", "b", 10);
    for model in ["x", "y"] {
        bench.want(&format!("for-{model}"), model, None);
        bench.inspect(model, 10);
    }
    assert_eq!(bench.actions(), ["inspect x", "inspect y"]);
    bench.release("r1");
    bench.release("r2");
    assert_eq!(
        bench.actions(),
        ["unload a", "unload b"],
        "each newcomer has a place told to leave"
    );

    let mut bench = Bench::new(100, 1);
    bench
        .residency
        .handle_pin(bench.now, &ModelName::new("a").unwrap(), Pin::Pinned);
    bench.run("r1", "a", 10);
    bench.want("r2", "b", None);
    bench.inspect("b", 10);
    assert_eq!(
        bench.actions(),
        ["inspect b", "failed r2 1000"],
        "the only place is pinned"
    );
}

#[test]
fn keys_and_values_leave_what_an_earlier_model_claims() {
    let mut bench = Bench::new(100, 9);
    bench.run("r1", "a", 50);
    bench.want("r2", "large", None);
    bench.inspect("large", 80);
    bench.want("r3", "small", None);
    let model = ModelName::new("small").unwrap();
    let needs = ModelNeeds {
        weights_pages: 10,
        workspace_pages: 0,
        kv_pages_min: 1,
        kv_pages_wanted: 30,
        kv_block: None,
    };
    bench.residency.handle_inspected(bench.now, &model, Ok(needs));
    let seen = bench.actions();
    assert_eq!(
        seen,
        ["inspect large", "inspect small", "load small kv 10"],
        "80 of 100 are claimed"
    );
}

#[test]
fn an_order_to_unload_during_a_load_takes_effect_when_it_ends() {
    let mut bench = Bench::new(100, 9);
    bench.want("r1", "a", None);
    bench.inspect("a", 10);
    bench
        .residency
        .handle_unload_order(bench.now, &ModelName::new("a").unwrap());
    bench.loaded("a");
    bench.want("r2", "a", None);
    assert_eq!(bench.actions(), ["inspect a", "load a kv 1", "lease r1 a"]);
    bench.release("r1");
    assert_eq!(bench.actions(), ["unload a"]);
}

#[test]
fn a_model_ordered_out_while_it_waits_for_room_is_inspected_anew() {
    let mut bench = Bench::new(100, 9);
    bench.run("r1", "a", 80);
    bench.want("r2", "b", None);
    bench.inspect("b", 80);
    assert_eq!(bench.actions(), ["inspect b"], "there is no room");
    bench
        .residency
        .handle_unload_order(bench.now, &ModelName::new("b").unwrap());
    assert_eq!(bench.actions(), ["inspect b"], "its files may be others");
    bench.inspect("b", 10);
    assert_eq!(bench.actions(), ["load b kv 1"]);
}

#[test]
fn a_success_ends_the_doubling() {
    let mut bench = Bench::new(100, 1);
    let model = ModelName::new("a").unwrap();
    for (request, after) in [("r1", 1000), ("r2", 2000)] {
        bench.want(request, "a", None);
        bench
            .residency
            .handle_inspected(bench.now, &model, Err("unreadable".to_owned()));
        assert_eq!(
            bench.actions(),
            ["inspect a", &format!("failed {request} {after}")]
        );
        bench.wait(after);
    }
    bench.run("r3", "a", 10);
    bench.residency.handle_unload_order(bench.now, &model);
    bench.release("r3");
    bench.unloaded("a");
    bench.want("r4", "a", None);
    bench
        .residency
        .handle_inspected(bench.now, &model, Err("unreadable".to_owned()));
    assert_eq!(bench.actions(), ["unload a", "inspect a", "failed r4 1000"]);
}
