//! What the core observed of single requests.

use std::time::Duration;

use flotilla_dispatcher_core::{Observation, TargetOutcome};
use flotilla_protocol::{Class, ModelName};
use flotilla_telemetry::Histogram;

use super::{
    ANSWER_SECONDS, ANSWER_TOKENS, ANSWERS, ASSIGNED_WAIT, DECISION_SECONDS, DISPATCH_SLACK, FORECAST_RATIO,
    LENGTH_RATIO,
};

/// Where observations are counted.
#[derive(Debug)]
pub(crate) struct Observed {
    decision: Histogram,
}

impl Observed {
    pub(crate) fn new() -> Self {
        Self {
            decision: DECISION_SECONDS.histogram(&[]),
        }
    }

    /// One thing that happened took the core so long.
    pub(crate) fn decided(&self, took: Duration) {
        self.decision.record(took.as_secs_f64());
    }

    /// Counts what the core observed.
    pub(crate) fn note(&self, observation: Observation) {
        match observation {
            Observation::Assigned {
                model,
                class,
                waited,
                slack_s,
            } => {
                ASSIGNED_WAIT.record(&[model.as_str(), class.as_str()], waited.as_secs_f64());
                if let Some(slack_s) = slack_s {
                    DISPATCH_SLACK.record(&[class.as_str()], slack_s);
                }
            }
            Observation::Answered {
                model,
                class,
                age,
                output_tokens,
                predicted_tokens,
                target,
                forecast_ratio,
            } => {
                ANSWER_SECONDS.record(&[model.as_str(), class.as_str()], age.as_secs_f64());
                count_answer(&model, class, target, output_tokens);
                let length = f64::from(output_tokens) / f64::from(predicted_tokens.max(1));
                LENGTH_RATIO.record(&[model.as_str()], length);
                if let Some(ratio) = forecast_ratio {
                    FORECAST_RATIO.record(&[model.as_str()], ratio);
                }
            }
            Observation::Missed { model, class } => count_answer(&model, class, TargetOutcome::Missed, 0),
        }
    }
}

fn count_answer(model: &ModelName, class: Class, target: TargetOutcome, tokens: u32) {
    let labels = [model.as_str(), class.as_str(), target.as_str()];
    ANSWERS.increment(&labels, 1);
    ANSWER_TOKENS.increment(&labels, tokens.into());
}
