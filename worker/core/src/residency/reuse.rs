//! How soon a model is likely to be wanted again, and what its absence would cost then.
//!
//! Each use counts 1 and half as much after every [`HALF_LIFE`], so what is left of all uses says how recent and
//! how frequent they are. In a stream of `r` uses a second it settles at `r * HALF_LIFE / ln 2`; the other way
//! round it gives the rate, and the chance of at least one use within [`HORIZON`] is that of a Poisson stream:
//!
//! ```text
//! rate   = uses * ln 2 / HALF_LIFE
//! chance = 1 - exp(-rate * HORIZON)
//! regret = seconds that a load takes * chance
//! ```

use std::time::Duration;

use flotilla_protocol::Moment;

/// Time in which a use loses half its weight: the default keep-alive, the time after which a model that nobody
/// wants leaves anyway.
const HALF_LIFE: Duration = Duration::from_secs(300);
/// How far ahead an absence is regretted: as far as the dispatcher's choice of victims looks.
const HORIZON: Duration = Duration::from_secs(60);

/// The uses of one model, faded by age.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Uses {
    left: f64,
    counted_at: Moment,
}

impl Uses {
    /// Counts a use.
    pub(super) fn count(&mut self, now: Moment) {
        self.left = self.left_at(now) + 1.0;
        self.counted_at = now;
    }

    /// What is expected to be lost when the model goes, in microseconds: at least 1, so that no model is free.
    pub(super) fn regret_us(&self, now: Moment, load_time: Duration) -> u64 {
        let regret = load_time.mul_f64(self.chance(now));
        u64::try_from(regret.as_micros()).unwrap_or(u64::MAX).max(1)
    }

    /// The chance that the model is used within the horizon.
    fn chance(&self, now: Moment) -> f64 {
        let rate_per_s = self.left_at(now) * std::f64::consts::LN_2 / HALF_LIFE.as_secs_f64();
        1.0 - (-rate_per_s * HORIZON.as_secs_f64()).exp()
    }

    fn left_at(&self, now: Moment) -> f64 {
        let age = now.since(self.counted_at);
        self.left * (-age.as_secs_f64() / HALF_LIFE.as_secs_f64()).exp2()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(s: u64) -> Moment {
        Moment::after_origin(Duration::from_secs(s))
    }

    fn used_at(moments: &[u64]) -> Uses {
        let mut uses = Uses::default();
        moments.iter().for_each(|s| uses.count(at(*s)));
        uses
    }

    #[test]
    fn recent_and_frequent_uses_make_another_one_likely() {
        let (once, often) = (used_at(&[100]), used_at(&[70, 80, 90, 100]));
        assert!(often.chance(at(100)) > once.chance(at(100)));
        assert!(once.chance(at(100)) > once.chance(at(500)));
        assert!(used_at(&[1]).chance(at(100)) < once.chance(at(100)));
    }

    #[test]
    fn a_steady_stream_is_known_by_its_rate() {
        let every_minute: Vec<u64> = (0..100).map(|minute| minute * 60).collect();
        let chance = used_at(&every_minute).chance(at(99 * 60));
        let poisson = 1.0 - (-1.0_f64).exp();
        assert!((chance - poisson).abs() < 0.05, "{chance} is about {poisson}");
    }

    #[test]
    fn regret_grows_with_the_load_and_is_never_nothing() {
        let uses = used_at(&[0]);
        let regret = |s| uses.regret_us(at(0), Duration::from_secs(s));
        assert!(regret(10) > 9 * regret(1));
        assert_eq!(uses.regret_us(at(1_000_000), Duration::ZERO), 1);
    }
}
