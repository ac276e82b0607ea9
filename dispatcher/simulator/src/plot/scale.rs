//! From values to places on an axis, and which values are written at it.

/// How values lie on an axis.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Scale {
    /// Equal differences are equally long.
    Linear {
        /// At the origin.
        from: f64,
        /// At the end.
        to: f64,
        /// Between two marks.
        step: f64,
    },
    /// Equal ratios are equally long; both ends are powers of ten.
    Log {
        /// At the origin.
        from: f64,
        /// At the end.
        to: f64,
    },
    /// Like a logarithm, but 0 is at the origin: for counts.
    Count {
        /// At the end.
        to: f64,
    },
}

impl Scale {
    /// From 0 to at least the largest of the values.
    pub(super) fn linear(values: impl Iterator<Item = f64>) -> Self {
        let most = values.filter(|value| value.is_finite()).fold(0.0, f64::max);
        let most = if most > 0.0 { most } else { 1.0 };
        let step = nice_step(most / TICKS);
        Self::Linear {
            from: 0.0,
            to: step * (most / step).ceil().max(1.0),
            step,
        }
    }

    /// From 0 to 100 %.
    pub(super) const fn percent() -> Self {
        Self::Linear {
            from: 0.0,
            to: 100.0,
            step: 20.0,
        }
    }

    /// Whole decades around all values that are above 0.
    pub(super) fn log(values: impl Iterator<Item = f64> + Clone) -> Self {
        let values = values.filter(|value| value.is_finite() && *value > 0.0);
        let least = values.clone().fold(f64::INFINITY, f64::min);
        let most = values.fold(0.0, f64::max);
        let (least, most) = if most > 0.0 { (least, most) } else { (1.0, 1.0) };
        let from = 10.0_f64.powf(least.log10().floor());
        let to = 10.0_f64.powf(most.log10().ceil());
        Self::Log {
            from,
            to: if to > from { to } else { from * 10.0 },
        }
    }

    /// From 0 to at least the largest of the counts.
    pub(super) fn count(values: impl Iterator<Item = f64>) -> Self {
        let most = values.fold(1.0, f64::max);
        Self::Count {
            to: 10.0_f64.powf(most.log10().ceil()).max(10.0),
        }
    }

    /// Where a value lies: 0 at the origin, 1 at the end. What lies outside is drawn at the nearer end.
    pub(super) fn place(self, value: f64) -> f64 {
        let place = match self {
            Self::Linear { from, to, .. } => (value - from) / (to - from),
            Self::Log { from, to } => (value.max(from) / from).ln() / (to / from).ln(),
            Self::Count { to } => value.ln_1p() / to.ln_1p(),
        };
        place.clamp(0.0, 1.0)
    }

    /// The values that are written, the first and the last at the ends.
    pub(super) fn ticks(self) -> Vec<f64> {
        match self {
            Self::Linear { from, to, step } => {
                let count = ((to - from) / step).round();
                let ticks = (0..).map(f64::from).take_while(|number| *number <= count);
                ticks.map(|number| from + number * step).collect()
            }
            Self::Log { from, to } => decades(from, to),
            Self::Count { to } => std::iter::once(0.0).chain(decades(1.0, to)).collect(),
        }
    }
}

/// A tick as it is written.
pub(super) fn written(value: f64) -> String {
    if value >= 1.0 && value.fract().abs() < 1e-9 {
        return format!("{value:.0}");
    }
    let text = format!("{value:.6}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text.is_empty() {
        "0".to_owned()
    } else {
        text.to_owned()
    }
}

fn decades(from: f64, to: f64) -> Vec<f64> {
    let count = (to / from).log10().round();
    let powers = (0..).take_while(|&power| f64::from(power) <= count);
    powers.map(|power| from * 10.0_f64.powi(power)).collect()
}

/// 1, 2 or 5 times a power of ten, at least as much as asked for.
fn nice_step(least: f64) -> f64 {
    let power = 10.0_f64.powf(least.log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0].map(|times| times * power);
    let fitting = steps.into_iter().find(|step| *step >= least * (1.0 - 1e-9));
    fitting.unwrap_or(10.0 * power)
}

/// Steps of a linear axis, about.
const TICKS: f64 = 6.0;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_numbers_at_an_axis_cover_all_values(
            values in proptest::collection::vec(1e-5_f64..1e5, 1..20),
        ) {
            let most = values.iter().copied().fold(0.0, f64::max);
            let least = values.iter().copied().fold(f64::INFINITY, f64::min);
            let linear = Scale::linear(values.iter().copied());
            let log = Scale::log(values.iter().copied());
            let count = Scale::count(values.iter().copied());
            for (scale, least) in [(linear, 0.0), (log, least), (count, 0.0)] {
                let ticks = scale.ticks();
                let (first, last) = (ticks[0], ticks[ticks.len() - 1]);
                prop_assert!(first <= least * (1.0 + 1e-9) && last >= most * (1.0 - 1e-9), "{scale:?} {ticks:?}");
                prop_assert!(ticks.len() <= 13 && ticks.is_sorted());
                prop_assert!(scale.place(first) < 1e-9 && scale.place(last) > 1.0 - 1e-9);
            }
        }
    }

    #[test]
    fn axes_of_nothing_are_axes_all_the_same() {
        assert_eq!(Scale::linear(std::iter::empty()).ticks().len(), 6);
        assert_eq!(Scale::log(std::iter::empty()).ticks(), [1.0, 10.0]);
        assert_eq!(Scale::count(std::iter::empty()).ticks(), [0.0, 1.0, 10.0]);
    }

    #[test]
    fn ticks_are_written_as_short_as_they_can_be() {
        assert_eq!(
            [0.0, 0.001, 0.25, 1.0, 20.0, 1e4].map(written),
            ["0", "0.001", "0.25", "1", "20", "10000"]
        );
    }
}
