//! Which pod of one deployment takes a request.

use super::profile::LookupError;

/// How the router chooses among the pods of a deployment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Picker {
    /// `slo-least-load-pulling`, also called `slo`: the pod with the least load.
    LeastLoad,
    /// `slo-pack-load`: the pod with the most load that has room.
    PackLoad,
}

/// Why no pod takes a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PickError {
    /// At least one would, were it not full.
    CapacityReached,
    /// Its cell has no throughput.
    Infeasible,
    /// There is none, or none that the picker likes.
    NoPod,
}

impl Picker {
    /// Picks one of `pods`. `consumption` is asked for each of them, as the prediction behind it is another
    /// each time; an error that a full pod has caused is kept whatever the others say.
    pub(super) fn pick(
        self,
        pods: &[usize],
        loads: &[f64],
        mut consumption: impl FnMut() -> Result<f64, LookupError>,
    ) -> Result<usize, PickError> {
        let mut error = PickError::NoPod;
        let mut best: Option<(usize, f64)> = None;
        for &pod in pods {
            let Ok(share) = consumption() else {
                if error != PickError::CapacityReached {
                    error = PickError::Infeasible;
                }
                continue;
            };
            let load = loads[pod] + share;
            if load > CAPACITY {
                error = PickError::CapacityReached;
            } else if self.prefers(load, best.map(|(_, load)| load)) {
                best = Some((pod, load));
            }
        }
        best.map(|(pod, _)| pod).ok_or(error)
    }

    fn prefers(self, load: f64, than: Option<f64>) -> bool {
        match self {
            Self::LeastLoad => than.is_none_or(|than| load <= than),
            // It begins with 0: a request that costs nothing finds no pod among idle ones.
            Self::PackLoad => load > than.unwrap_or(0.0),
        }
    }
}

/// What a pod's loads may add up to.
pub(super) const CAPACITY: f64 = 1.0;

#[cfg(test)]
mod tests {
    use super::*;

    /// Picks when each pod's consumption is given.
    fn pick(picker: Picker, loads: &[f64], shares: &[f64]) -> Result<usize, PickError> {
        let pods: Vec<_> = (0..loads.len()).collect();
        let mut shares = shares.iter().map(|&share| match share {
            0.0.. => Ok(share),
            _ => Err(LookupError::Infeasible),
        });
        picker.pick(&pods, loads, || shares.next().unwrap())
    }

    #[test]
    fn least_load_counts_what_the_request_adds() {
        assert_eq!(pick(Picker::LeastLoad, &[0.3, 0.1], &[0.2, 0.1]), Ok(1));
        assert_eq!(pick(Picker::LeastLoad, &[0.5, 0.5], &[0.1, 0.2]), Ok(0));
        assert_eq!(
            pick(Picker::LeastLoad, &[0.5, 0.5], &[0.2, 0.2]),
            Ok(1),
            "the last of equals"
        );
    }

    #[test]
    fn a_pod_may_be_filled_to_the_brim_and_no_further() {
        assert_eq!(pick(Picker::LeastLoad, &[0.8], &[0.2]), Ok(0));
        let full = Err(PickError::CapacityReached);
        assert_eq!(pick(Picker::LeastLoad, &[0.9, 0.95], &[0.2, 0.2]), full);
        assert_eq!(
            pick(Picker::LeastLoad, &[0.0], &[1.21]),
            full,
            "not even an idle one"
        );
    }

    #[test]
    fn pack_fills_the_busiest_pod_that_has_room() {
        assert_eq!(pick(Picker::PackLoad, &[0.3, 0.7, 0.95], &[0.1, 0.1, 0.1]), Ok(1));
        assert_eq!(pick(Picker::PackLoad, &[0.0, 0.0], &[0.5, 0.5]), Ok(0));
        assert_eq!(pick(Picker::PackLoad, &[0.5, 0.0], &[0.5, 0.5]), Ok(0));
        assert_eq!(
            pick(Picker::PackLoad, &[0.0, 0.0], &[0.0, 0.0]),
            Err(PickError::NoPod)
        );
    }

    #[test]
    fn that_a_pod_is_full_is_said_before_all_else() {
        let infeasible = -1.0;
        for shares in [[0.2, infeasible], [infeasible, 0.2]] {
            assert_eq!(
                pick(Picker::LeastLoad, &[0.9, 0.9], &shares),
                Err(PickError::CapacityReached)
            );
        }
        assert_eq!(
            pick(Picker::LeastLoad, &[0.0], &[infeasible]),
            Err(PickError::Infeasible)
        );
        assert_eq!(pick(Picker::LeastLoad, &[], &[]), Err(PickError::NoPod));
    }
}
