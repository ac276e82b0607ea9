//! Long histories of a worker under a virtual clock, from seeds. One that has failed once is kept in `soak.seeds` and
//! always replayed.

use std::panic::{AssertUnwindSafe, catch_unwind};

use flotilla_protocol::request::KeepAlive;
use flotilla_worker_core::residency::Pin;

use crate::world::{DEVICE_PAGES, MODEL_COUNT, Step, World};

/// Events of all histories together.
const EVENTS: u64 = 100_000;
/// Events of one history: so many that every model has come and gone dozens of times, and so few that the devices
/// that fail in it leave time before.
const HISTORY_EVENTS: u64 = 5_000;
/// One seed a line.
const FAILED_ONCE: &str = include_str!("soak.seeds");

/// SplitMix64: any seed will do, and the same one gives the same history everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn model(&mut self) -> u8 {
        u8::try_from(self.below(MODEL_COUNT.into())).unwrap()
    }

    fn keep_alive(&mut self) -> Option<KeepAlive> {
        match self.below(4) {
            0 => None,
            1 => Some(KeepAlive::Ms(0)),
            2 => Some(KeepAlive::Ms(self.below(5000))),
            _ => Some(KeepAlive::UntilEvicted),
        }
    }

    fn step(&mut self) -> Step {
        match self.below(1000) {
            0..230 => Step::Want {
                model: self.model(),
                keep_alive: self.keep_alive(),
            },
            230..410 => Step::End { pick: self.next() },
            410..430 => Step::EvictFirst {
                model: self.model(),
                named: vec![self.model(), self.model()],
            },
            430..455 => Step::LoadOrder {
                model: self.model(),
                keep_alive: self.keep_alive(),
            },
            455..480 => Step::UnloadOrder { model: self.model() },
            480..500 => Step::Pin {
                model: self.model(),
                // Rarely, or no room is left for anybody.
                pin: match self.below(5) {
                    0 => Pin::Pinned,
                    _ => Pin::Evictable,
                },
            },
            500..830 => Step::Work {
                pick: self.next(),
                succeeds: self.below(10) > 0,
            },
            830..860 => Step::Prefetch { model: self.model() },
            860..870 => Step::Replace { model: self.model() },
            870..900 => Step::UseKv {
                device: usize::try_from(self.below(DEVICE_PAGES.len() as u64)).unwrap(),
                pages: self.below(100),
            },
            900..920 => Step::Progress {
                pick: self.next(),
                bytes: self.below(200),
            },
            // Twice in three histories, about.
            920 if self.below(8) == 0 => Step::Fault {
                device: u32::try_from(self.below(DEVICE_PAGES.len() as u64)).unwrap(),
            },
            _ => Step::Wait { ms: self.below(2000) },
        }
    }
}

/// Runs one history; who waits at its end is served.
fn soak(seed: u64, events: u64) {
    let run = || {
        let (mut world, mut random) = (World::new(), Random(seed));
        (0..events).for_each(|_| world.apply(random.step()));
        world.resolve();
    };
    let outcome = catch_unwind(AssertUnwindSafe(run));
    assert!(
        outcome.is_ok(),
        "seed {seed} fails as told above; add it to soak.seeds"
    );
}

#[test]
fn a_hundred_thousand_events_break_no_invariant_and_leave_nobody_waiting() {
    (0..EVENTS / HISTORY_EVENTS).for_each(|seed| soak(seed, HISTORY_EVENTS));
}

#[test]
fn histories_that_failed_once_hold() {
    let seeds = FAILED_ONCE.lines().filter(|line| !line.starts_with('#'));
    seeds.for_each(|seed| soak(seed.parse().unwrap(), HISTORY_EVENTS));
}
