//! How large the pool for keys and values is, beside models that come and go.
#![expect(clippy::unwrap_used, reason = "a test stops where it is wrong")]

use std::time::Duration;

use flotilla_protocol::request::KeepAlive;
use flotilla_protocol::{ModelName, Moment, RequestId};
use flotilla_worker_core::kv::{KvBlock, KvReport};
use flotilla_worker_core::ledger::DeviceIndex;
use flotilla_worker_core::residency::{Action, Keep, ModelNeeds, Residency, ResidencySettings};

/// A worker with devices of 100 pages and their engines. What is done to one is done to the first.
struct Bench {
    residency: Residency,
    pool: KvReport,
    others: Vec<KvReport>,
}

impl Bench {
    fn new() -> Self {
        Self::with_devices(1)
    }

    fn with_devices(count: usize) -> Self {
        let settings = ResidencySettings {
            device_pages: vec![100; count],
            models_max: 9,
            keep_alive: KeepAlive::Ms(1000),
            min_residency_max: Duration::ZERO,
            load_stall: None,
            host_pages: 0,
        };
        Self {
            residency: Residency::new(settings),
            pool: KvReport::default(),
            others: vec![KvReport::default(); count - 1],
        }
    }

    /// A request for a model whose own pages are so many, and which needs so many for one context.
    fn want(&mut self, name: &str, pages: u64, kv_pages_min: u64) {
        let (request, model) = (RequestId::new(name).unwrap(), ModelName::new(name).unwrap());
        self.residency
            .handle_wanted(Moment::default(), &request, &model, None);
        let needs = ModelNeeds {
            weights_pages: pages,
            workspace_pages: 0,
            kv_pages_min,
            kv_block: Some(KvBlock {
                tokens: 16,
                bytes: 1 << 20,
            }),
            split: None,
        };
        self.residency
            .handle_inspected(Moment::default(), &model, Ok(needs));
    }

    fn loaded(&mut self, name: &str) {
        let model = ModelName::new(name).unwrap();
        self.residency
            .handle_loaded(Moment::default(), &model, Ok(()), Duration::ZERO);
    }

    fn unloaded(&mut self, name: &str) {
        let model = ModelName::new(name).unwrap();
        self.residency
            .handle_unloaded(Moment::default(), &model, Keep::Nowhere);
    }

    fn release(&mut self, name: &str) {
        let request = RequestId::new(name).unwrap();
        self.residency.handle_released(Moment::default(), &request);
    }

    /// Requests use so many pages of the pool, and the engine says so.
    fn use_kv(&mut self, pages: u64) {
        self.pool.pages_used = pages;
        self.tell();
    }

    fn tell(&mut self) {
        self.tell_of(0);
    }

    fn tell_of(&mut self, device: usize) {
        let pool = self.pool_mut(device);
        pool.pages_held = pool.pages_target.max(pool.pages_used);
        let (pool, index) = (*pool, DeviceIndex(u32::try_from(device).unwrap()));
        self.residency.handle_kv_resized(Moment::default(), index, pool);
        self.residency.check_invariants();
    }

    fn pool_mut(&mut self, device: usize) -> &mut KvReport {
        match device {
            0 => &mut self.pool,
            other => &mut self.others[other - 1],
        }
    }

    /// All actions, in short; the engine resizes its pool as it is told.
    fn actions(&mut self) -> Vec<String> {
        let mut seen = Vec::new();
        while let Some(action) = self.residency.poll_action() {
            match action {
                Action::ResizeKv { device, pages } => {
                    seen.push(format!("pool {pages}"));
                    let device = device.0 as usize;
                    self.pool_mut(device).pages_target = pages;
                    self.tell_of(device);
                    assert!(seen.len() < 20, "it comes to rest: {seen:?}");
                }
                Action::Load { model, .. } => seen.push(format!("load {model}")),
                Action::Unload { model, .. } => seen.push(format!("unload {model}")),
                Action::ModelFailed { reason, .. } => seen.push(reason),
                Action::Inspect { .. }
                | Action::LeaseGranted { .. }
                | Action::LeaseLost { .. }
                | Action::CancelLoad { .. }
                | Action::Prefetch { .. }
                | Action::DropCopy { .. } => {}
            }
            self.residency.check_invariants();
        }
        seen
    }

    fn pages_kv(&self) -> u64 {
        self.residency.device_reports()[0].pages_kv
    }

    fn kv_tokens_max(&self, name: &str) -> Option<u64> {
        let reports = self.residency.model_reports(Moment::default());
        let report = reports.iter().find(|report| report.model.as_str() == name);
        report.unwrap().kv_tokens_max
    }
}

#[test]
fn pool_is_all_that_models_leave_and_follows_them() {
    let mut bench = Bench::new();
    bench.want("a", 30, 10);
    assert_eq!(bench.actions(), ["load a", "pool 70"]);
    bench.loaded("a");
    bench.use_kv(70);
    assert_eq!(
        (bench.pages_kv(), bench.kv_tokens_max("a")),
        (70, Some(70 * 2 * 16))
    );
    let free = |bench: &Bench| bench.residency.device_reports()[0].pages_free();
    assert_eq!(free(&bench), 0);
    bench.pool.pages_unused = 65;
    bench.tell();
    assert_eq!(free(&bench), 60, "all that is cached, but for one context");
    bench.pool.pages_unused = 0;
    bench.use_kv(3);
    bench.want("b", 40, 5);
    assert_eq!(
        bench.actions(),
        ["pool 30", "load b"],
        "the newcomer takes free pages at once"
    );
    bench.loaded("b");
    assert_eq!(
        bench.kv_tokens_max("a"),
        bench.kv_tokens_max("b"),
        "they share one pool"
    );
    bench.release("b");
    bench.release("a");
    assert_eq!(bench.actions(), [""; 0]);
    bench
        .residency
        .handle_timeout(Moment::after_origin(Duration::from_secs(1)));
    assert_eq!(bench.actions(), ["unload a", "unload b", "pool 0"]);
    bench.use_kv(0);
    bench.unloaded("a");
    bench.unloaded("b");
    let report = &bench.residency.device_reports()[0];
    assert_eq!(report.pages_free(), 100);
}

#[test]
fn newcomer_waits_for_keys_and_values_in_use_when_nobody_is_idle() {
    let mut bench = Bench::new();
    bench.want("a", 30, 10);
    bench.actions();
    bench.loaded("a");
    bench.use_kv(65);
    bench.want("b", 40, 5);
    assert_eq!(bench.actions(), ["pool 30"], "65 are in use and stay so");
    bench.use_kv(31);
    assert_eq!(bench.actions(), [""; 0], "one page is missing");
    bench.use_kv(28);
    assert_eq!(bench.actions(), ["load b"]);
}

#[test]
fn idle_model_leaves_when_keys_and_values_in_use_are_in_the_way() {
    let mut bench = Bench::new();
    bench.want("busy", 20, 10);
    bench.want("idle", 30, 10);
    assert_eq!(bench.actions(), ["load busy", "pool 80", "pool 50", "load idle"]);
    bench.loaded("busy");
    bench.loaded("idle");
    bench.release("idle");
    bench.use_kv(45);
    bench.want("b", 25, 5);
    assert_eq!(
        bench.actions(),
        ["unload idle"],
        "the pool could do without 25 of its pages, but requests use 20 of them"
    );
    bench.unloaded("idle");
    assert_eq!(bench.actions(), ["load b", "pool 55"]);
}

#[test]
fn pool_never_goes_below_one_context_of_each_model_and_who_needs_much_leaves_for_that() {
    let mut bench = Bench::new();
    bench.want("long", 20, 60);
    bench.actions();
    bench.loaded("long");
    bench.want("b", 30, 5);
    assert_eq!(
        bench.actions(),
        ["pool 70"],
        "50 would be too few; it will have to do with 70 once the other one's pages are free"
    );
    bench.release("long");
    assert_eq!(
        bench.actions(),
        ["unload long", "pool 0", "load b", "pool 50"],
        "without it there is room at once"
    );
    bench.unloaded("long");
    assert_eq!(bench.actions(), ["pool 70"]);
}

#[test]
fn several_models_share_what_the_longest_context_needs() {
    let mut bench = Bench::new();
    for (name, pages) in [("a", 10), ("b", 10), ("c", 10)] {
        bench.want(name, pages, 70);
        let seen = bench.actions();
        assert!(seen.contains(&format!("load {name}")), "{seen:?}");
        bench.loaded(name);
    }
    bench.want("d", 31, 70);
    assert_eq!(
        bench.actions(),
        [
            "it needs 101 pages of 2 MiB (31 for weights, 0 for workspace, 70 for keys and values); the largest \
             device has 100, of which 100 are not pinned"
        ]
    );
}

/// The message said that more pages of the device were not pinned than it has.
#[test]
fn model_whose_context_is_larger_than_the_device_is_refused_with_the_devices_numbers() {
    let mut bench = Bench::new();
    bench.want("a", 10, 120);
    assert_eq!(
        bench.actions(),
        [
            "it needs 130 pages of 2 MiB (10 for weights, 0 for workspace, 120 for keys and values); the largest \
             device has 100, of which 100 are not pinned"
        ]
    );
}

#[test]
fn word_from_before_a_resize_says_nothing_about_after_it() {
    let mut bench = Bench::new();
    bench.want("a", 30, 10);
    bench.actions();
    bench.loaded("a");
    bench.actions();
    bench.want("b", 40, 5);
    let inspect = bench.residency.poll_action();
    assert!(matches!(inspect, Some(Action::Inspect { .. })), "{inspect:?}");
    let resize = bench.residency.poll_action();
    assert!(
        matches!(resize, Some(Action::ResizeKv { pages: 30, .. })),
        "{resize:?}"
    );
    bench.use_kv(20);
    assert_eq!(bench.actions(), [""; 0], "the engine has not answered");
    bench.pool.pages_target = 30;
    bench.tell();
    assert_eq!(bench.actions(), ["load b"]);
}

#[test]
fn what_a_waiting_model_claims_is_no_part_of_the_pool() {
    let mut bench = Bench::new();
    bench.want("a", 60, 5);
    bench.actions();
    bench.loaded("a");
    bench.want("large", 80, 5);
    assert_eq!(
        bench.actions(),
        ["pool 20"],
        "a drains; its own pages are not enough"
    );
    bench.want("small", 12, 5);
    assert_eq!(
        bench.actions(),
        ["load small", "pool 8"],
        "beside what the large one claims"
    );
    bench.loaded("small");
    bench.release("a");
    assert_eq!(bench.actions(), ["unload a"]);
    bench.unloaded("a");
    assert_eq!(bench.actions(), ["load large"]);
}

/// A newcomer took one device's pages and then the other's, to and fro, as each turned out to be in use.
#[test]
fn newcomer_that_finds_keys_and_values_in_use_everywhere_waits_at_one_place() {
    let mut bench = Bench::with_devices(2);
    for (device, name) in ["a", "b"].into_iter().enumerate() {
        bench.want(name, 60, 10);
        bench.actions();
        bench.loaded(name);
        bench.pool_mut(device).pages_used = 38;
        bench.tell_of(device);
    }
    bench.want("c", 30, 10);
    assert_eq!(bench.actions(), ["pool 10"]);
    bench.pool_mut(1).pages_used = 5;
    bench.tell_of(1);
    assert_eq!(
        bench.actions(),
        ["pool 40", "pool 10", "load c"],
        "it goes where there is room"
    );
}

#[test]
fn idle_models_go_before_anybody_waits_for_keys_and_values() {
    let mut bench = Bench::new();
    bench.want("a", 60, 10);
    bench.actions();
    bench.loaded("a");
    bench.release("a");
    bench.use_kv(38);
    bench.want("c", 30, 10);
    assert_eq!(bench.actions(), ["unload a", "pool 0"]);
}
