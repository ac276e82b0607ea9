//! Whose turn it is and where it runs: pure functions.

use std::cmp::Reverse;
use std::time::Duration;

use flotilla_protocol::fleet::{DeviceReport, ModelState};
use flotilla_protocol::{Class, Moment, WorkerId};

use crate::input::StreamSequence;

/// A request's place among all: the smaller goes first. No two requests have the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rank {
    pub(crate) class: Class,
    /// Nanoseconds from the origin of time to the publish, which may lie before it.
    published_ns: i128,
    sequence: StreamSequence,
}

/// Where a model stands on a worker; the smaller is the better choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Residency {
    Ready,
    Loading,
    AbsentWithRoom,
    Other,
}

/// A worker that has a free slot for a request.
#[derive(Debug)]
pub(crate) struct Candidate<'a> {
    pub(crate) worker: &'a WorkerId,
    pub(crate) residency: Residency,
    pub(crate) free_slots: u32,
    /// Whether the request has just come back from there.
    pub(crate) avoided: bool,
}

/// The rank of a request that is `age` old at `now`: by class, then publish time, then place in the stream.
pub(crate) fn rank(class: Class, now: Moment, age: Duration, sequence: StreamSequence) -> Rank {
    let nanoseconds = |span: Duration| i128::try_from(span.as_nanos()).unwrap_or(i128::MAX / 2);
    Rank {
        class,
        published_ns: nanoseconds(now.since(Moment::default())) - nanoseconds(age),
        sequence,
    }
}

/// How well a worker is prepared for a model that has this state there and weights of this size, where known.
pub(crate) fn residency(
    state: Option<&ModelState>,
    devices: &[DeviceReport],
    weights_bytes: Option<u64>,
) -> Residency {
    match state {
        Some(ModelState::Ready) => Residency::Ready,
        Some(ModelState::Loading) => Residency::Loading,
        None if devices
            .iter()
            .any(|device| device.free_bytes() >= weights_bytes.unwrap_or(1).max(1)) =>
        {
            Residency::AbsentWithRoom
        }
        None | Some(ModelState::Draining | ModelState::Unloading | ModelState::Failed { .. }) => {
            Residency::Other
        }
    }
}

/// The best of the candidates: somewhere new, best prepared, most free slots, smallest id.
pub(crate) fn choose<'a>(candidates: impl Iterator<Item = Candidate<'a>>) -> Option<&'a WorkerId> {
    candidates
        .min_by_key(|c| (c.avoided, c.residency, Reverse(c.free_slots), c.worker))
        .map(|c| c.worker)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Moment {
        Moment::after_origin(Duration::from_millis(ms))
    }

    fn device(pages_weights: u64) -> DeviceReport {
        DeviceReport {
            device: 0,
            page_bytes: 10,
            pages_total: 10,
            pages_weights,
            pages_kv: 1,
            pages_workspace: 1,
        }
    }

    #[test]
    fn class_comes_before_publish_time_and_that_before_place_in_the_stream() {
        let rank = |class, now, age_ms, sequence| {
            rank(
                class,
                at(now),
                Duration::from_millis(age_ms),
                StreamSequence(sequence),
            )
        };
        let before_the_origin = rank(Class::Interactive, 10, 500, 9);
        let at_the_origin = rank(Class::Interactive, 10, 10, 2);
        let same_time = rank(Class::Interactive, 20, 20, 3);
        let batch = rank(Class::Batch, 10, 900, 1);
        assert!(before_the_origin < at_the_origin);
        assert!(at_the_origin < same_time);
        assert!(same_time < batch);
    }

    #[test]
    fn room_for_an_absent_model_is_measured_by_its_weights() {
        assert_eq!(residency(None, &[device(3)], Some(50)), Residency::AbsentWithRoom);
        assert_eq!(residency(None, &[device(3)], Some(51)), Residency::Other);
        assert_eq!(residency(None, &[device(7)], None), Residency::AbsentWithRoom);
        assert_eq!(residency(None, &[device(8)], None), Residency::Other);
        assert_eq!(residency(None, &[], None), Residency::Other);
        assert_eq!(
            residency(Some(&ModelState::Unloading), &[device(0)], None),
            Residency::Other
        );
    }

    #[test]
    fn a_prepared_worker_wins_over_a_free_one_and_a_free_one_over_a_smaller_id() {
        let ids: Vec<WorkerId> = ["a", "b", "c"].map(|id| WorkerId::new(id).unwrap()).into();
        let candidate = |index: usize, residency, free_slots, avoided| Candidate {
            worker: &ids[index],
            residency,
            free_slots,
            avoided,
        };
        let choose = |candidates: Vec<Candidate<'_>>| choose(candidates.into_iter()).unwrap().to_string();
        use Residency::{AbsentWithRoom, Loading, Other, Ready};
        assert_eq!(
            choose(vec![
                candidate(0, Loading, 9, false),
                candidate(1, Ready, 1, false)
            ]),
            "b"
        );
        assert_eq!(
            choose(vec![
                candidate(0, AbsentWithRoom, 9, false),
                candidate(1, Loading, 1, false)
            ]),
            "b"
        );
        assert_eq!(
            choose(vec![
                candidate(0, Other, 9, false),
                candidate(1, AbsentWithRoom, 1, false)
            ]),
            "b"
        );
        assert_eq!(
            choose(vec![candidate(0, Ready, 1, false), candidate(1, Ready, 2, false)]),
            "b"
        );
        assert_eq!(
            choose(vec![candidate(2, Ready, 2, false), candidate(1, Ready, 2, false)]),
            "b"
        );
        assert_eq!(
            choose(vec![candidate(0, Ready, 9, true), candidate(1, Other, 1, false)]),
            "b"
        );
        assert_eq!(choose(vec![candidate(0, Ready, 9, true)]), "a");
    }
}
