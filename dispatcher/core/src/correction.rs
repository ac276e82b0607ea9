//! By how much a profile is wrong, learnt from what requests really took.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How fast a [`Correction`] learns and when it complains.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CorrectionSettings {
    /// What the newest request counts once there are many, from above 0 to 1. At 0.04, answers whose times vary by
    /// a third leave an error of 4 %, and 50 requests after a change of twice the time 9 % of it are left.
    pub weight: f64,
    /// As how many requests the profile's own word counts at the beginning, so that the first one, which may be an
    /// outlier, does not rule alone.
    pub prior_weight: f64,
    /// What a request on an idle device counts, from 0 to 1; on a full one it is 1, between in proportion. The
    /// profile says what a full device takes, and how much less an idle one does is itself an estimate.
    pub idle_weight: f64,
    /// How far a request may lie from what was learnt, as a ratio above 1; what lies farther counts as this far.
    /// Three times the usual spread is 2.5, and a stall of a minute must not count as one.
    pub outlier_ratio: f64,
    /// Largest factor, and one over the smallest; above 1. A profile that is wrong by more belongs to another
    /// device, and following it would hide that.
    pub factor_max: f64,
    /// From which ratio of observed to expected time, or of expected to observed, a profile is off; above 1. At
    /// half as much again, the device holds a third less than booked.
    pub alarm_ratio: f64,
    /// After how many requests in a row, each with a factor beyond `alarm_ratio`, there is an alarm: fewer would
    /// cry over a burst of slow ones.
    pub alarm_samples: u32,
}

impl Default for CorrectionSettings {
    fn default() -> Self {
        Self {
            weight: 0.04,
            prior_weight: 1.0,
            idle_weight: 0.5,
            outlier_ratio: 4.0,
            factor_max: 8.0,
            alarm_ratio: 1.5,
            alarm_samples: 20,
        }
    }
}

/// How far a profile is off.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Drift {
    /// Observed over expected time or its inverse, whichever is larger: at least 1.
    pub ratio: f64,
    /// Whether it has been beyond the limit for long enough that somebody should measure again.
    pub is_alarming: bool,
}

/// What the times of a profile are to be multiplied with, for one model on one device kind.
#[derive(Debug, Clone, PartialEq)]
pub struct Correction {
    settings: CorrectionSettings,
    /// Natural logarithm of observed over expected time, averaged: twice as slow and twice as fast even out.
    log_ratio: f64,
    /// Requests behind it, each with its weight, and the profile's own word.
    weight: f64,
    samples: u64,
    /// Latest requests in a row after which the factor was beyond the alarm's ratio.
    beyond: u32,
}

impl Correction {
    /// A profile that is taken at its word.
    ///
    /// # Panics
    /// When a setting is out of its range: a fault of the program.
    #[must_use]
    pub fn new(settings: CorrectionSettings) -> Self {
        let ratios = [settings.outlier_ratio, settings.factor_max, settings.alarm_ratio];
        assert!(
            ratios.iter().all(|&ratio| ratio > 1.0),
            "the ratios {ratios:?} are above 1"
        );
        assert!(
            settings.weight > 0.0 && settings.weight <= 1.0 && settings.prior_weight >= 0.0,
            "the newest of many counts a part, and the profile not less than nothing"
        );
        assert!(
            (0.0..=1.0).contains(&settings.idle_weight),
            "an idle device counts no more than a full one"
        );
        Self {
            weight: settings.prior_weight,
            settings,
            log_ratio: 0.0,
            samples: 0,
            beyond: 0,
        }
    }

    /// A request took `observed` where the profile alone, without this correction, had said `expected`. `load` is
    /// the part of the device that was booked meanwhile, from 0 to 1; what lies outside counts as the nearest of
    /// them, and what is no number as idle. A time of zero, of which no ratio can be taken, says nothing.
    pub fn observe(&mut self, expected: Duration, observed: Duration, load: f64) {
        if expected.is_zero() || observed.is_zero() {
            return;
        }
        let CorrectionSettings {
            weight: newest,
            idle_weight,
            outlier_ratio,
            factor_max,
            ..
        } = self.settings;
        let load = if load.is_nan() { 0.0 } else { load.clamp(0.0, 1.0) };
        let counts = idle_weight + (1.0 - idle_weight) * load;
        if counts == 0.0 {
            return;
        }
        self.weight += counts;
        let gain = (counts / self.weight).max(newest * counts);
        let ratio = (observed.as_secs_f64() / expected.as_secs_f64()).ln();
        let surprise = (ratio - self.log_ratio).clamp(-outlier_ratio.ln(), outlier_ratio.ln());
        let bound = factor_max.ln();
        self.log_ratio = (self.log_ratio + gain * surprise).clamp(-bound, bound);
        self.samples += 1;
        let is_beyond = self.log_ratio.abs() > self.settings.alarm_ratio.ln();
        self.beyond = if is_beyond {
            self.beyond.saturating_add(1)
        } else {
            0
        };
    }

    /// What the profile's times are to be multiplied with: 1 when it is right.
    #[must_use]
    pub fn factor(&self) -> f64 {
        self.log_ratio.exp()
    }

    /// How far the profile is off.
    #[must_use]
    pub fn drift(&self) -> Drift {
        Drift {
            ratio: self.log_ratio.abs().exp(),
            is_alarming: self.beyond >= self.settings.alarm_samples,
        }
    }

    /// Requests that were observed.
    #[must_use]
    pub fn samples(&self) -> u64 {
        self.samples
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const EXPECTED: Duration = Duration::from_secs(2);

    fn correction() -> Correction {
        Correction::new(CorrectionSettings::default())
    }

    fn observe(correction: &mut Correction, ratio: f64, times: u32) {
        for _ in 0..times {
            correction.observe(EXPECTED, EXPECTED.mul_f64(ratio), 1.0);
        }
    }

    /// Normally distributed numbers (Box and Muller) from a sequence of well-mixed ones (splitmix64).
    struct Noise(u64);

    impl Noise {
        fn uniform(&mut self) -> f64 {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut bits = self.0;
            bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            let word = u32::try_from((bits ^ (bits >> 31)) >> 32).unwrap();
            (f64::from(word) + 0.5) / 4_294_967_296.0
        }

        fn normal(&mut self) -> f64 {
            let (radius, turn) = (self.uniform(), self.uniform());
            (-2.0 * radius.ln()).sqrt() * (std::f64::consts::TAU * turn).cos()
        }
    }

    /// How far from the truth it is after 50 requests of a profile that is wrong by `ratio`, in log space.
    fn error_after_50(seed: u64, ratio: f64, load: f64) -> f64 {
        let mut noise = Noise(seed);
        let mut correction = correction();
        for _ in 0..50 {
            let observed = EXPECTED.mul_f64(ratio * (0.3 * noise.normal()).exp());
            correction.observe(EXPECTED, observed, load);
        }
        (correction.factor() / ratio).ln().abs()
    }

    #[test]
    fn a_profile_wrong_by_two_is_corrected_to_a_tenth_within_fifty_requests() {
        let tenth = 1.1_f64.ln();
        for ratio in [2.0, 0.5, 1.0] {
            let errors: Vec<f64> = (0..1000).map(|seed| error_after_50(seed, ratio, 1.0)).collect();
            let within = errors.iter().filter(|&&error| error <= tenth).count();
            assert!(within >= 900, "{ratio}: {within} of 1000 within 10 %");
            let worst = errors.iter().copied().fold(0.0, f64::max);
            assert!(worst < 1.3_f64.ln(), "{ratio}: {worst}");
        }
    }

    #[test]
    fn without_noise_a_later_change_is_followed_within_fifty_requests_too() {
        let mut correction = correction();
        observe(&mut correction, 1.0, 1000);
        observe(&mut correction, 2.0, 50);
        assert!(
            (correction.factor() / 2.0).ln().abs() < 1.1_f64.ln(),
            "{}",
            correction.factor()
        );
    }

    #[test]
    fn one_outlier_among_many_hardly_counts() {
        let mut correction = correction();
        observe(&mut correction, 1.0, 100);
        observe(&mut correction, 1e6, 1);
        assert!(correction.factor() < 1.06, "{}", correction.factor());
        observe(&mut correction, 1e-6, 1);
        assert!(correction.factor() > 0.94, "{}", correction.factor());
    }

    #[test]
    fn the_first_request_does_not_rule_alone() {
        let mut correction = correction();
        observe(&mut correction, 3.0, 1);
        assert!(correction.factor() < 1.8 && correction.factor() > 1.0);
    }

    #[test]
    fn the_alarm_comes_after_enough_requests_in_a_row_and_goes_with_the_drift() {
        let mut correction = correction();
        observe(&mut correction, 1.0, 100);
        assert_eq!(correction.drift().ratio, 1.0);
        let mut until_alarm = 0;
        while !correction.drift().is_alarming {
            observe(&mut correction, 0.5, 1);
            until_alarm += 1;
            assert!(until_alarm < 100, "no alarm");
        }
        assert!(until_alarm >= 20, "{until_alarm}");
        assert!(correction.drift().ratio > 1.5 && correction.factor() < 1.0 / 1.5);
        observe(&mut correction, 1.0, 100);
        assert!(!correction.drift().is_alarming);
        assert_eq!(correction.samples(), 200 + until_alarm);
    }

    #[test]
    fn the_alarm_counts_requests_that_leave_the_factor_beyond_its_ratio() {
        let mut correction = correction();
        let mut beyond = 0;
        for _ in 0..100 {
            observe(&mut correction, 2.0, 1);
            beyond += u32::from(correction.factor() > 1.5);
            assert_eq!(correction.drift().is_alarming, beyond >= 20, "{beyond}");
        }
    }

    #[test]
    fn idle_devices_teach_half_as_much_as_full_ones() {
        let learnt = |load: f64| {
            let mut correction = correction();
            observe(&mut correction, 1.0, 1000);
            for _ in 0..20 {
                correction.observe(EXPECTED, EXPECTED * 2, load);
            }
            correction.factor()
        };
        assert!(learnt(0.0) < learnt(0.5) && learnt(0.5) < learnt(1.0));
        assert_eq!(learnt(f64::NAN), learnt(0.0));
        assert_eq!(learnt(7.0), learnt(1.0));
        assert!(error_after_50(1, 2.0, 0.0) < 1.25_f64.ln());
    }

    #[test]
    fn times_of_zero_say_nothing() {
        let mut correction = correction();
        correction.observe(Duration::ZERO, EXPECTED, 1.0);
        correction.observe(EXPECTED, Duration::ZERO, 1.0);
        assert_eq!((correction.samples(), correction.factor()), (0, 1.0));
    }

    #[test]
    #[should_panic(expected = "are above 1")]
    fn ratios_that_bound_nothing_are_a_fault() {
        let settings = CorrectionSettings {
            factor_max: 0.5,
            ..CorrectionSettings::default()
        };
        drop(Correction::new(settings));
    }

    proptest! {
        #[test]
        fn the_factor_stays_within_its_bounds(
            observed in proptest::collection::vec((any::<u64>(), any::<u64>(), any::<f64>()), 0..200),
        ) {
            let mut correction = correction();
            for (expected, took, load) in observed {
                correction.observe(Duration::from_nanos(expected), Duration::from_nanos(took), load);
                let factor = correction.factor();
                prop_assert!((1.0 / 8.0 - 1e-12..=8.0 + 1e-12).contains(&factor), "{factor}");
                prop_assert!(correction.drift().ratio >= 1.0);
            }
        }

        #[test]
        fn a_constant_error_is_approached_and_never_passed(ratio in 0.13..7.9_f64, times in 1_u32..300) {
            let mut correction = correction();
            observe(&mut correction, ratio, times);
            let (learnt, truth) = (correction.factor().ln(), ratio.ln());
            prop_assert!(learnt.abs() <= truth.abs() + 1e-6 && learnt * truth >= -1e-9);
        }
    }
}
