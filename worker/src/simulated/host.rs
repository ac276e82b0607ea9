//! The host memory of a simulated machine: which weights are in it, and how long a load takes therefore.

use std::collections::BTreeMap;
use std::time::Duration;

use flotilla_protocol::{ModelName, Moment};

/// How long the load of one model takes, by where its weights are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LoadTimes {
    /// From where the model is kept.
    pub(crate) origin: Duration,
    /// From host memory; at most [`Self::origin`].
    pub(crate) host: Duration,
}

/// Models whose weights are in host memory, or will be. They stay there: it holds every model of the catalog.
#[derive(Debug, Default)]
pub(crate) struct HostTier {
    /// From when on they are there.
    held: BTreeMap<ModelName, Moment>,
}

impl HostTier {
    /// How long a load takes that begins now: from host memory when the weights are there, or come soon
    /// enough, else from their origin. What was loaded stays in host memory.
    pub(crate) fn begin_load(&mut self, now: Moment, model: &ModelName, times: LoadTimes) -> Duration {
        let from_host = self.held.get(model).map(|at| at.since(now) + times.host);
        let time = from_host.map_or(times.origin, |from_host| from_host.min(times.origin));
        self.hold(model, now + time);
        time
    }

    /// Begins to bring weights into host memory: the part of a load that comes before it. Several come at once,
    /// each as fast as alone.
    pub(crate) fn begin_prefetch(&mut self, now: Moment, model: &ModelName, times: LoadTimes) {
        self.hold(model, now + times.origin.saturating_sub(times.host));
    }

    /// A load ended before its time: what was not there yet will not be.
    pub(crate) fn interrupt(&mut self, now: Moment, model: &ModelName) {
        self.held.retain(|held, at| held != model || *at <= now);
    }

    /// The model is another one now.
    pub(crate) fn forget(&mut self, model: &ModelName) {
        self.held.remove(model);
    }

    fn hold(&mut self, model: &ModelName, at: Moment) {
        let held = self.held.entry(model.clone()).or_insert(at);
        *held = (*held).min(at);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TIMES: LoadTimes = LoadTimes {
        origin: Duration::from_secs(20),
        host: Duration::from_secs(2),
    };

    fn model() -> ModelName {
        ModelName::new("m").unwrap()
    }

    fn at(s: u64) -> Moment {
        Moment::after_origin(Duration::from_secs(s))
    }

    #[test]
    fn first_load_comes_from_the_origin_and_later_ones_from_host_memory() {
        let mut host = HostTier::default();
        assert_eq!(host.begin_load(at(0), &model(), TIMES), TIMES.origin);
        assert_eq!(host.begin_load(at(100), &model(), TIMES), TIMES.host);
        host.forget(&model());
        assert_eq!(host.begin_load(at(200), &model(), TIMES), TIMES.origin);
    }

    #[test]
    fn load_that_was_interrupted_leaves_nothing_in_host_memory() {
        let mut host = HostTier::default();
        host.begin_load(at(0), &model(), TIMES);
        host.interrupt(at(5), &model());
        assert_eq!(host.begin_load(at(100), &model(), TIMES), TIMES.origin);
        host.interrupt(at(130), &model());
        assert_eq!(host.begin_load(at(200), &model(), TIMES), TIMES.host);
    }

    #[test]
    fn load_waits_for_what_is_left_of_a_prefetch() {
        for (begins, takes) in [(0, 20), (5, 15), (17, 3), (18, 2), (60, 2)] {
            let mut host = HostTier::default();
            host.begin_prefetch(at(0), &model(), TIMES);
            let time = host.begin_load(at(begins), &model(), TIMES);
            assert_eq!(time, Duration::from_secs(takes), "{begins} s after it began");
        }
    }

    proptest! {
        #[test]
        fn load_is_never_slower_than_from_the_origin_nor_faster_than_from_host_memory(
            steps in prop::collection::vec((0..3_u8, 0..30_u64), 0..20),
        ) {
            let (mut host, mut now) = (HostTier::default(), 0);
            for (step, wait) in steps {
                now += wait;
                match step {
                    0 => host.begin_prefetch(at(now), &model(), TIMES),
                    1 => host.forget(&model()),
                    _ => {
                        let time = host.begin_load(at(now), &model(), TIMES);
                        prop_assert!((TIMES.host..=TIMES.origin).contains(&time), "{time:?}");
                    }
                }
            }
        }
    }
}
