//! What was measured, for people and for machines.

use std::fmt;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::Change;

/// What was measured, a value for each round.
#[derive(Debug, Clone, Default)]
pub struct Pauses {
    /// The longest pause of an answer whose worker was killed.
    pub worker_killed: Vec<Duration>,
    /// The leader was killed.
    pub leader_killed: Vec<Change>,
    /// The leader was asked to stop.
    pub leader_stopped: Vec<Change>,
}

impl Pauses {
    /// Names and milliseconds.
    #[must_use]
    pub fn figures(&self) -> Map<String, Value> {
        let mut figures = Map::new();
        figures.insert("rounds".to_owned(), json!(self.worker_killed.len()));
        for (name, times) in self.measures() {
            for (suffix, percent) in [("p50", 50), ("p99", 99), ("max", 100)] {
                let ms = percentile(&times, percent).as_secs_f64() * 1e3;
                let rounded = (ms * 10.0).round() / 10.0;
                figures.insert(format!("{name}_ms_{suffix}"), json!(rounded));
            }
        }
        figures
    }

    fn measures(&self) -> Vec<(&'static str, Vec<Duration>)> {
        let of = |changes: &[Change], measure: fn(&Change) -> Duration| changes.iter().map(measure).collect();
        let (killed, stopped) = (&self.leader_killed, &self.leader_stopped);
        vec![
            ("worker_killed_pause", self.worker_killed.clone()),
            ("leader_killed_first_token", of(killed, |it| it.first_assignment)),
            ("leader_killed_pause", of(killed, |it| it.pause)),
            ("leader_killed_pause_before", of(killed, |it| it.pause_before)),
            (
                "leader_stopped_first_token",
                of(stopped, |it| it.first_assignment),
            ),
            ("leader_stopped_pause", of(stopped, |it| it.pause)),
            ("leader_stopped_pause_before", of(stopped, |it| it.pause_before)),
        ]
    }
}

impl fmt::Display for Pauses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:32} {:>9} {:>9} {:>9}", "MILLISECONDS", "P50", "P99", "MOST")?;
        for (name, times) in self.measures() {
            let [p50, p99, most] =
                [50, 99, 100].map(|percent| percentile(&times, percent).as_secs_f64() * 1e3);
            writeln!(f, "{name:32} {p50:>9.1} {p99:>9.1} {most:>9.1}")?;
        }
        Ok(())
    }
}

/// The smallest value that so many of a hundred do not exceed; zero of none.
fn percentile(times: &[Duration], percent: usize) -> Duration {
    let mut times = times.to_vec();
    times.sort_unstable();
    let rank = (times.len() * percent).div_ceil(100);
    times.get(rank.saturating_sub(1)).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let times: Vec<Duration> = (1..=200).rev().map(Duration::from_millis).collect();
        let found = [50, 99, 100].map(|percent| percentile(&times, percent).as_millis());
        assert_eq!(found, [100, 198, 200]);
        assert_eq!(percentile(&times[..1], 50), Duration::from_millis(200));
        assert_eq!(percentile(&[], 99), Duration::ZERO);
    }
}
