//! Any history of a worker, made smaller when it fails.

use flotilla_protocol::request::KeepAlive;
use flotilla_worker_core::residency::Pin;
use proptest::prelude::*;

use crate::world::{DEVICE_PAGES, MODEL_COUNT, Step, World};

fn keep_alive() -> impl Strategy<Value = Option<KeepAlive>> {
    prop_oneof![
        Just(None),
        Just(Some(KeepAlive::Ms(0))),
        (1..5000_u64).prop_map(|ms| Some(KeepAlive::Ms(ms))),
        Just(Some(KeepAlive::UntilEvicted)),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let pick = any::<u64>;
    let model = || 0..MODEL_COUNT;
    let pin = prop_oneof![Just(Pin::Pinned), Just(Pin::Evictable)];
    let named = prop::collection::vec(model(), 0..3);
    prop_oneof![
        8 => (model(), keep_alive()).prop_map(|(model, keep_alive)| Step::Want { model, keep_alive }),
        6 => pick().prop_map(|pick| Step::End { pick }),
        1 => (model(), named).prop_map(|(model, named)| Step::EvictFirst { model, named }),
        1 => (model(), keep_alive()).prop_map(|(model, keep_alive)| Step::LoadOrder { model, keep_alive }),
        1 => model().prop_map(|model| Step::UnloadOrder { model }),
        1 => (model(), pin).prop_map(|(model, pin)| Step::Pin { model, pin }),
        12 => (pick(), prop::bool::weighted(0.8)).prop_map(|(pick, succeeds)| Step::Work { pick, succeeds }),
        2 => (pick(), 0..200_u64).prop_map(|(pick, bytes)| Step::Progress { pick, bytes }),
        3 => (0..DEVICE_PAGES.len(), 0..100_u64).prop_map(|(device, pages)| Step::UseKv { device, pages }),
        2 => model().prop_map(|model| Step::Prefetch { model }),
        1 => model().prop_map(|model| Step::Replace { model }),
        1 => (0..DEVICE_PAGES.len()).prop_map(|device| Step::Fault { device: u32::try_from(device).unwrap() }),
        3 => (0..3000_u64).prop_map(|ms| Step::Wait { ms }),
    ]
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
    }
}
