//! What the router decides for one model: who is next, and where.

use flotilla_protocol::Moment;

use super::picker::{PickError, Picker};
use super::predictor::Predictor;
use super::profile::{Features, GpuProfile, LookupError};
use super::queue::{SubQueues, Waiting};
use crate::random::Random;

/// The queue router of one model.
#[derive(Debug)]
pub(super) struct Router {
    pub(super) groups: Vec<Group>,
    pub(super) queues: SubQueues,
    pub(super) predictor: Predictor,
}

/// The pods of one deployment.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) profile: GpuProfile,
    pub(super) pods: Vec<usize>,
}

/// What to do with the head of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Peeked {
    /// It goes to this pod.
    Routed { line: usize, pod: usize },
    /// It is answered with an error.
    Failed { line: usize },
    /// No profile can rank anything: it is routed by another policy.
    Unranked { line: usize },
}

/// The head of a line with its ranks.
#[derive(Debug)]
struct Candidate {
    line: usize,
    prompt_tokens: u32,
    /// Seconds by which the target will be missed, for each deployment that can tell, the least first.
    ranks: Vec<(f64, usize)>,
}

impl Router {
    /// The pods of all deployments.
    pub(super) fn pods(&self) -> impl Iterator<Item = usize> + Clone {
        self.groups.iter().flat_map(|group| &group.pods).copied()
    }

    /// What a request looks like at this call; at the next it may look otherwise.
    pub(super) fn features(&self, random: &mut Random, prompt_tokens: u32) -> Features {
        Features {
            output_tokens: self.predictor.predict(random, prompt_tokens),
            prompt_tokens,
        }
    }

    /// Share of a pod that a request takes, by yet another prediction.
    pub(super) fn consumption(
        &self,
        random: &mut Random,
        pod: usize,
        prompt_tokens: u32,
    ) -> Result<f64, LookupError> {
        let features = self.features(random, prompt_tokens);
        let group = self.groups.iter().find(|group| group.pods.contains(&pod));
        group
            .ok_or(LookupError::NotRankable)?
            .profile
            .consumption(features)
    }

    /// Ranks the heads and tries them in turn; `None` when nobody can go.
    pub(super) fn peek(
        &self,
        now: Moment,
        random: &mut Random,
        picker: Picker,
        loads: &[f64],
    ) -> Option<Peeked> {
        let mut candidates = self.candidates(now, random);
        if candidates.is_empty() {
            let earliest = self.queues.heads().min_by_key(|(_, head)| head.since);
            return earliest.map(|(line, _)| Peeked::Unranked { line });
        }
        // Least slack first, and that of lost requests is the least.
        candidates.sort_by(|one, other| other.ranks[0].0.total_cmp(&one.ranks[0].0));
        candidates.iter().find_map(|candidate| {
            let line = candidate.line;
            match self.try_groups(random, picker, loads, candidate) {
                Ok(pod) => Some(Peeked::Routed { line, pod }),
                Err(PickError::CapacityReached) => None,
                Err(PickError::Infeasible | PickError::NoPod) => Some(Peeked::Failed { line }),
            }
        })
    }

    fn candidates(&self, now: Moment, random: &mut Random) -> Vec<Candidate> {
        let heads = self.queues.heads().map(|(line, head)| Candidate {
            line,
            prompt_tokens: head.arriving.prompt_tokens,
            ranks: self.ranks(now, random, head),
        });
        heads.filter(|candidate| !candidate.ranks.is_empty()).collect()
    }

    fn ranks(&self, now: Moment, random: &mut Random, head: &Waiting) -> Vec<(f64, usize)> {
        let waited_s = now.since(head.since).as_secs_f64();
        let prompt_tokens = head.arriving.prompt_tokens;
        let groups = self.groups.iter().enumerate();
        let ranks = groups.filter_map(|(index, group)| {
            let features = self.features(random, prompt_tokens);
            let for_target = self.predictor.predict(random, prompt_tokens);
            let overrun = group.profile.overrun(features, for_target).ok()?;
            Some((waited_s + overrun, index))
        });
        let mut ranks: Vec<_> = ranks.collect();
        ranks.sort_by(|one, other| one.0.total_cmp(&other.0));
        ranks
    }

    /// Tries the deployment with the most slack, and the others as long as they have any. The last error
    /// counts.
    fn try_groups(
        &self,
        random: &mut Random,
        picker: Picker,
        loads: &[f64],
        candidate: &Candidate,
    ) -> Result<usize, PickError> {
        let mut error = PickError::NoPod;
        for (place, &(rank, index)) in candidate.ranks.iter().enumerate() {
            if place > 0 && rank > 0.0 {
                break;
            }
            let group = &self.groups[index];
            let consumption = || {
                let features = self.features(random, candidate.prompt_tokens);
                group.profile.consumption(features)
            };
            match picker.pick(&group.pods, loads, consumption) {
                Ok(pod) => return Ok(pod),
                Err(this) => error = this,
            }
        }
        Err(error)
    }
}
