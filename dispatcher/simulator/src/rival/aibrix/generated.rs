//! The profile that AIBrix's own generator would have left.
//!
//! The fleet's profiles are the dispatcher's: their targets hold for whole requests, so that the time of a
//! long prompt counts towards the time of a short answer's tokens, and cells where it is too long have
//! throughput 0. AIBrix's generator counts the time of a token without that of the first. As the router
//! answers whatever is predicted into a cell of throughput 0 with an error, and predicts answers of one token
//! for as long as none ended, it would refuse all long prompts for ever. So cells that its generator would
//! have called feasible are given a throughput here: what their neighbours let expect, and no less than one
//! request at a time.

use flotilla_profile::{DeviceProfile, Signature};
use flotilla_protocol::profile::{Profile, ProfileSlos};

/// A profile under targets, its cells judged as the generator judges them.
pub(super) fn generated(profile: &DeviceProfile, targets: &ProfileSlos) -> Profile {
    let mut document = profile.document().clone();
    let [outputs, inputs] = [0, 1].map(|axis: usize| document.indexes[axis].clone());
    for (row, &output) in document.tputs.iter_mut().zip(&outputs) {
        for (tput, &input) in row.iter_mut().zip(&inputs) {
            let signature = Signature {
                prompt_tokens: tokens(input),
                output_tokens: tokens(output),
            };
            if *tput <= 0.0 && is_feasible(profile, targets, signature) {
                let expected = 1.0 / profile.work(signature).as_secs_f64();
                let one_by_one = 1.0 / profile.e2e(signature).value.as_secs_f64();
                *tput = expected.max(one_by_one);
            }
        }
    }
    document.slos = Some(targets.clone());
    document
}

/// Whether the times of a cell are within the targets.
fn is_feasible(profile: &DeviceProfile, targets: &ProfileSlos, signature: Signature) -> bool {
    let e2e = profile.e2e(signature).value.as_secs_f64();
    let ttft = profile.ttft(signature).value.as_secs_f64();
    let output = f64::from(signature.output_tokens);
    let prompt = f64::from(signature.prompt_tokens);
    let within =
        |target: Option<f64>, value: f64| target.is_none_or(|target| target <= 0.0 || value < target);
    within(targets.e2e, e2e)
        && within(targets.ttft, ttft)
        && within(targets.tpot, (e2e - ttft) / (output - 1.0).max(1.0))
        && within(targets.tpat, e2e / (prompt + output))
}

/// A tick, which is a whole number of tokens in all but odd files.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a cast to an integer saturates"
)]
fn tokens(tick: f64) -> u32 {
    tick.round() as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::BuiltinTrace;

    #[test]
    fn long_prompts_with_short_answers_are_feasible_by_the_time_of_a_token() {
        let fleet = BuiltinTrace::Composite.fleet();
        let profile = &fleet.devices[0].profile;
        let targets = profile.slos().clone();
        let zeros = |document: &Profile| {
            document
                .tputs
                .iter()
                .flatten()
                .filter(|tput| **tput <= 0.0)
                .count()
        };
        let generated = generated(profile, &targets);
        assert!(zeros(profile.document()) > 0);
        assert_eq!(zeros(&generated), 0);
        let e2e = generated.e2e.as_ref().unwrap().iter().flatten();
        for ((tput, e2e), before) in generated
            .tputs
            .iter()
            .flatten()
            .zip(e2e)
            .zip(profile.document().tputs.iter().flatten())
        {
            assert!(
                *before > 0.0 || 1.0 / (tput * e2e) <= 1.0 + 1e-9,
                "an idle pod takes one"
            );
            assert!(*before <= 0.0 || before == tput);
        }
    }

    #[test]
    fn what_is_too_slow_by_any_target_stays_infeasible() {
        let fleet = BuiltinTrace::Composite.fleet();
        let profile = &fleet.devices[0].profile;
        let cell = |targets: &ProfileSlos| generated(profile, targets).tputs[0][7];
        let none = ProfileSlos::default();
        assert!(cell(&none) > 0.0);
        for targets in [
            ProfileSlos {
                e2e: Some(0.1),
                ..none.clone()
            },
            ProfileSlos {
                ttft: Some(0.1),
                ..none.clone()
            },
            ProfileSlos {
                tpot: Some(0.001),
                ..none.clone()
            },
            ProfileSlos {
                tpat: Some(1e-6),
                ..none.clone()
            },
        ] {
            assert_eq!(cell(&targets), 0.0, "{targets:?}");
        }
    }
}
