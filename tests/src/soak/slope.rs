//! How a quantity changed over a run.

use std::fmt;
use std::time::Duration;

/// What a quantity counts, and with that how much of a change is chance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unit {
    /// Memory: allocators keep some and give it back when they like.
    Bytes,
    /// Things: they come and go with the requests under way.
    Count,
}

/// How a quantity changed from the first to the last part of a run.
#[derive(Debug, Clone)]
pub struct Slope {
    /// Whose, and what.
    pub name: String,
    unit: Unit,
    /// Median of the first quarter, after the start.
    pub first: f64,
    /// Median of the last quarter.
    pub last: f64,
    /// Change in an hour: the median of the slopes between all pairs of readings (Theil and Sen), which single
    /// readings cannot move.
    pub per_hour: f64,
    /// From the first reading that counts to the last.
    pub over: Duration,
}

impl Slope {
    /// Of readings with their times; the first fifth is left out, as the fleet settles in it. `None` with fewer than
    /// ten.
    pub(super) fn new(name: &str, unit: Unit, readings: &[(Duration, f64)]) -> Option<Self> {
        let settled = &readings[readings.len() / 5..];
        if readings.len() < 10 {
            return None;
        }
        let quarter = (settled.len() / 4).max(1);
        let values = |part: &[(Duration, f64)]| part.iter().map(|&(_, value)| value).collect();
        Some(Self {
            name: name.to_owned(),
            unit,
            first: median(values(&settled[..quarter])),
            last: median(values(&settled[settled.len() - quarter..])),
            per_hour: median(slopes(settled)) * 3600.0,
            over: settled[settled.len() - 1].0 - settled[0].0,
        })
    }

    /// Whether it became more than chance explains: the trend over the run says so, and so do its ends.
    #[must_use]
    pub fn grew(&self) -> bool {
        let trend = self.per_hour * self.over.as_secs_f64() / 3600.0;
        trend > self.unit.chance(self.first) && self.is_more(self.first, self.last)
    }

    /// Whether one reading is above another by more than chance explains.
    pub(super) fn is_more(&self, before: f64, after: f64) -> bool {
        after - before > self.unit.chance(before)
    }

    /// Lines for people.
    pub(super) fn table(slopes: &[Self], f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, first, last, hour) = ("what", "first quarter", "last quarter", "slope an hour");
        writeln!(f, "{name:34} {first:>14} {last:>14} {hour:>14}")?;
        for slope in slopes {
            let [first, last, hour] =
                [slope.first, slope.last, slope.per_hour].map(|value| slope.unit.text(value));
            let verdict = if slope.grew() { "  GREW" } else { "" };
            writeln!(f, "{:34} {first:>14} {last:>14} {hour:>14}{verdict}", slope.name)?;
        }
        Ok(())
    }
}

impl Unit {
    /// Changes up to this are chance.
    fn chance(self, level: f64) -> f64 {
        match self {
            Self::Bytes => level * 0.05 + BYTES_OF_CHANCE,
            Self::Count => level * 0.1 + COUNT_OF_CHANCE,
        }
    }

    fn text(self, value: f64) -> String {
        match self {
            Self::Bytes => format!("{:.2} MiB", value / f64::from(1 << 20)),
            Self::Count => format!("{value:.1}"),
        }
    }
}

fn slopes(readings: &[(Duration, f64)]) -> Vec<f64> {
    let mut slopes = Vec::new();
    for (index, &(before, from)) in readings.iter().enumerate() {
        for &(after, to) in &readings[index + 1..] {
            slopes.push((to - from) / (after - before).as_secs_f64());
        }
    }
    slopes
}

fn median(mut values: Vec<f64>) -> f64 {
    assert!(!values.is_empty(), "something was read");
    let middle = values.len() / 2;
    *values.select_nth_unstable_by(middle, f64::total_cmp).1
}

/// Some of the allocator's arenas.
const BYTES_OF_CHANCE: f64 = 4.0 * 1024.0 * 1024.0;
/// A reading meets some requests in their middle.
const COUNT_OF_CHANCE: f64 = 3.0;

#[cfg(test)]
mod tests {
    use super::*;

    fn read(value: impl Fn(u32) -> f64) -> Vec<(Duration, f64)> {
        (0..100)
            .map(|second| (Duration::from_secs(second.into()), value(second)))
            .collect()
    }

    fn slope(unit: Unit, value: impl Fn(u32) -> f64) -> Slope {
        Slope::new("it", unit, &read(value)).unwrap()
    }

    #[test]
    fn a_leak_is_found_under_noise() {
        let leaking = slope(Unit::Count, |second| {
            20.0 + 0.3 * f64::from(second) + f64::from(second * 7919 % 11)
        });
        assert!(leaking.grew(), "{leaking:?}");
        assert!((leaking.per_hour - 1080.0).abs() < 120.0, "{leaking:?}");
    }

    #[test]
    fn noise_peaks_and_a_start_are_no_leak() {
        assert!(!slope(Unit::Count, |second| f64::from(second * 7919 % 40)).grew());
        assert!(!slope(Unit::Count, |second| if second == 97 { 1e6 } else { 20.0 }).grew());
        assert!(!slope(Unit::Count, |second| f64::from(second.min(19)) * 50.0).grew());
        assert!(!slope(Unit::Count, |second| 1000.0 - f64::from(second)).grew());
    }

    #[test]
    fn memory_may_breathe_by_some_mebibytes() {
        let mebibytes = |count: f64| count * f64::from(1 << 20);
        assert!(!slope(Unit::Bytes, |second| mebibytes(100.0 + f64::from(second) / 20.0)).grew());
        assert!(slope(Unit::Bytes, |second| mebibytes(100.0 + f64::from(second))).grew());
    }

    #[test]
    fn too_few_readings_tell_nothing() {
        assert!(Slope::new("it", Unit::Count, &read(f64::from)[..9]).is_none());
    }
}
