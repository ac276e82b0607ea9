//! Who is given up when not all can be served in time.
//!
//! The rule is Moore's and Hodgson's for the fewest late jobs on one machine: go through the jobs in the order of
//! their due times; whenever one would be late, give up the longest of those so far. A model's devices, or a
//! tenant's part of them, are taken for one machine that does `rate` device-seconds of work a second. Least slack
//! first alone would serve everybody at the last moment and, by a little more load, nobody in time.

use std::collections::BinaryHeap;
use std::time::Duration;

use crate::micros::{Micros, micros};

/// A job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TriageJob {
    /// When it has to start.
    pub(crate) latest_start: Micros,
    /// Device time that it needs.
    pub(crate) work: Duration,
}

/// Which jobs are given up, as indices into `jobs`, in ascending order.
///
/// The machine does `rate` device-seconds of work a second. A job is due when it would end if it started at its
/// latest start. Nobody can serve more of them in time, one after the other. O(n log n).
pub(crate) fn given_up(now: Micros, rate: f64, jobs: &[TriageJob]) -> Vec<usize> {
    let mut by_due: Vec<(i64, i64, usize)> = Vec::with_capacity(jobs.len());
    for (index, job) in jobs.iter().enumerate() {
        let takes_us = on_machine_us(job.work, rate);
        let due_us = job.latest_start.since(now).saturating_add(takes_us);
        by_due.push((due_us, takes_us, index));
    }
    by_due.sort_unstable();
    let mut given_up = Vec::new();
    let mut kept: BinaryHeap<(i64, usize)> = BinaryHeap::new();
    let mut busy_us = 0_i64;
    for (due_us, takes_us, index) in by_due {
        kept.push((takes_us, index));
        busy_us = busy_us.saturating_add(takes_us);
        if busy_us > due_us
            && let Some((longest_us, longest)) = kept.pop()
        {
            busy_us -= longest_us;
            given_up.push(longest);
        }
    }
    given_up.sort_unstable();
    given_up
}

/// How long the machine is busy with some work.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "casts to i64 saturate, and nobody waits for 2^52 microseconds"
)]
fn on_machine_us(work: Duration, rate: f64) -> i64 {
    ((micros(work) as f64 / rate) as i64).min(i64::MAX / 1_000_000)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn job(latest_start_ms: i64, work_ms: u64) -> TriageJob {
        TriageJob {
            latest_start: Micros(latest_start_ms * 1000),
            work: Duration::from_millis(work_ms),
        }
    }

    /// Whether all of these can end in time, one after the other.
    fn all_on_time(jobs: &[TriageJob], rate: f64) -> bool {
        let with_due = jobs.iter().map(|job| {
            let takes_us = on_machine_us(job.work, rate);
            (job.latest_start.0 + takes_us, takes_us)
        });
        let mut by_due: Vec<_> = with_due.collect();
        by_due.sort_unstable();
        let mut busy_us = 0;
        by_due.into_iter().all(|(due_us, takes_us)| {
            busy_us += takes_us;
            busy_us <= due_us
        })
    }

    #[test]
    fn the_longest_of_those_before_a_late_job_is_given_up() {
        let jobs = [job(0, 10), job(15, 100), job(20, 10), job(25, 10)];
        assert_eq!(given_up(Micros(0), 1.0, &jobs), [1]);
        assert_eq!(given_up(Micros(0), 10.0, &jobs), [0_usize; 0]);
    }

    #[test]
    fn nobody_is_given_up_while_all_are_on_time() {
        let jobs: Vec<_> = (0..100).map(|index| job(index * 10, 10)).collect();
        assert!(given_up(Micros(0), 1.0, &jobs).is_empty());
    }

    proptest! {
        #[test]
        fn as_many_are_kept_as_can_be_on_time(
            jobs in prop::collection::vec((0_i64..60, 1_u64..40), 0..9),
            rate in prop::sample::select(vec![0.5, 1.0, 2.0]),
        ) {
            let jobs: Vec<_> = jobs.into_iter().map(|(at, work)| job(at, work)).collect();
            let lost = given_up(Micros(0), rate, &jobs);
            let of = |mask: u32| -> Vec<TriageJob> {
                (0..jobs.len()).filter(|i| mask & (1 << i) != 0).map(|i| jobs[i]).collect()
            };
            let kept = (0..jobs.len()).filter(|i| !lost.contains(i)).fold(0_u32, |mask, i| mask | (1 << i));
            prop_assert!(all_on_time(&of(kept), rate));
            let feasible = (0_u32..1 << jobs.len()).filter(|mask| all_on_time(&of(*mask), rate));
            prop_assert_eq!(Some(kept.count_ones()), feasible.map(u32::count_ones).max());
        }
    }
}
