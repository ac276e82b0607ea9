//! The configuration of decisions, as the core takes it.

use flotilla_config::{DispatcherCorrection, DispatcherPolicy, DispatcherPredictor};
use flotilla_dispatcher_core::{CorrectionSettings, PolicySettings, PredictorSettings, Weights};

/// What decisions are made with.
#[must_use]
pub fn policy_settings(config: &DispatcherPolicy) -> PolicySettings {
    PolicySettings {
        weights: Weights {
            interactive: config.interactive_weight,
            batch: config.batch_weight,
            late: config.late_weight,
        },
        patience_interactive: config.patience_interactive,
        patience_batch: config.patience_batch,
        min_residency_loads: config.min_residency_loads,
        min_residency_max: config.min_residency_max,
        copy_gain: config.copy_gain,
        reserve_after: config.reserve_after,
        share_part_min: config.share_part_min,
        comfort: config.comfort,
        harm_tolerance: config.harm_tolerance,
        planned_part: config.planned_part,
        prefill_chunk_tokens: config.prefill_chunk_tokens,
        look_behind_max: config.look_behind_max,
        review_interval: config.review_interval,
        review_models_max: config.review_models_max,
        prefetch_repeat: config.prefetch_repeat,
        load_bytes_per_s: config.load_bytes_per_s,
        load_overhead: config.load_overhead,
        memory_bytes_per_s: config.memory_bytes_per_s,
        weights_bytes: config.weights_bytes,
        output_tokens_prior: config.output_tokens_prior,
        predictor: predictor(&config.predictor),
        correction: correction(&config.correction),
        correction_load_min: config.correction.load_min,
    }
}

fn predictor(config: &DispatcherPredictor) -> PredictorSettings {
    PredictorSettings {
        window: config.window,
        slot: config.slot,
        quantile_low: config.quantile_low,
        quantile_high: config.quantile_high,
        neighbour_weight: config.neighbour_weight,
        prior_weight: config.prior_weight,
        ..PredictorSettings::default()
    }
}

fn correction(config: &DispatcherCorrection) -> CorrectionSettings {
    CorrectionSettings {
        weight: config.weight,
        prior_weight: config.prior_weight,
        idle_weight: config.idle_weight,
        outlier_ratio: config.outlier_ratio,
        factor_max: config.factor_max,
        alarm_ratio: config.alarm_ratio,
        alarm_samples: config.alarm_samples,
    }
}

#[cfg(test)]
mod tests {
    use flotilla_config::Config;

    use super::*;

    #[test]
    fn the_default_configuration_is_the_core_s_own_default() {
        let config = Config::default().dispatcher.policy;
        assert_eq!(policy_settings(&config), PolicySettings::default());
    }
}
