//! How the dispatcher decides who runs where and when.

use std::time::Duration;

use crate::rule::{BYTES_MAX, Bytes, Fraction, Millis, Number, Seconds, Whole};
use crate::schema::{required, section};

section! {
    /// `[dispatcher.policy]`: how it is decided who runs where and when.
    pub struct DispatcherPolicy at "dispatcher.policy" {
        /// What each tenant's interactive requests get of a full fleet, in proportion to the other
        /// weights. Default 16.
        interactive_weight: f64 = "interactive_weight", required(Number { min: 0.001, max: 1e6 }, 16.0_f64);

        /// The same for each tenant's batch requests. Default 0.25, a 64th: a person waits for the
        /// others, and long answers take more of a device's time than their tokens say.
        batch_weight: f64 = "batch_weight", required(Number { min: 0.001, max: 1e6 }, 0.25_f64);

        /// The same for requests that are too late, or given up so that more of the others are in
        /// time. Default 0.25: their wait stays bounded, and they take little from the others.
        late_weight: f64 = "late_weight", required(Number { min: 0.001, max: 1e6 }, 0.25_f64);

        /// Within what time an interactive request without a target is to start, which gives it a
        /// place among those that have one, in s on the wire. Default 30 s: as long as a person waits.
        patience_interactive: Duration = "patience_interactive_s", required(Seconds { min: 1 }, 30_u64);

        /// The same for batch requests. Default 600 s.
        patience_batch: Duration = "patience_batch_s", required(Seconds { min: 1 }, 600_u64);

        /// How many times as long as it took to load a model stays resident before it may be swapped
        /// for another. Default 4: loading takes at most a fifth of a device's time.
        min_residency_loads: f64 = "min_residency_loads", required(Number { min: 0.0, max: 1e6 }, 4.0_f64);

        /// The longest that a model stays for that reason, in s on the wire. Default 30 s: somebody
        /// waits.
        min_residency_max: Duration = "min_residency_max_s", required(Seconds { min: 0 }, 30_u64);

        /// One more copy of a model is loaded when its queue would take this many times as long as the
        /// load. Default 2: it pays for itself even when the queue's length is wrong by half.
        copy_gain: f64 = "copy_gain", required(Number { min: 0.0, max: 1e6 }, 2.0_f64);

        /// A request that found room nowhere for this long gets a device that takes nothing else until
        /// it fits, in ms on the wire. Default 2 s: long against what most answers still need.
        reserve_after: Duration = "reserve_after_ms", required(Millis { min: 1 }, 2_000_u64);

        /// The least part of its share that a request takes for having more time than the targets that
        /// its profile was measured under. Default 0.4: what has no target for its end still takes of
        /// everybody's time.
        share_part_min: f64 = "share_part_min", required(Fraction, 0.4_f64);

        /// The time to spare, as a part of the time that a request takes on a device, from which the
        /// cheapest device is taken rather than the one that leaves most. Default 1: what comes later
        /// may double that time.
        comfort: f64 = "comfort", required(Number { min: 0.0, max: 1e6 }, 1.0_f64);

        /// By how much somebody who runs may become late, by what is predicted, because of one more, in
        /// ms on the wire. Default 100 ms: the forecast is made for the worst length of each answer.
        harm_tolerance: Duration = "harm_tolerance_ms", required(Millis { min: 0 }, 100_u64);

        /// The part of its workers' time that is planned for a model when it is found out who can be
        /// in time. Default 0.8: arrivals are uneven, and some time is always lost.
        planned_part: f64 = "planned_part", required(Fraction, 0.8_f64);

        /// Prompt tokens that a worker reads in one step: what `worker.batch_tokens_max` is on most.
        /// Default 512.
        prefill_chunk_tokens: u32 = "prefill_chunk_tokens",
            required(Whole { min: 1, max: 65_536_u32 }, 512_u64);

        /// How many requests of a model are looked at behind one that waits for a certain device.
        /// Default 32, as many as run on one.
        look_behind_max: usize = "look_behind_max", required(Whole { min: 0, max: 1_000_usize }, 32_u64);

        /// How often decisions are looked at again that depend on time alone, in ms on the wire.
        /// Default 250 ms.
        review_interval: Duration = "review_interval_ms", required(Millis { min: 10 }, 250_u64);

        /// Models that one review looks at; the rest is looked at by the next ones. Default 64.
        review_models_max: usize = "review_models_max",
            required(Whole { min: 1, max: 100_000_usize }, 64_u64);

        /// How long a worker that was asked to prefetch a model is not asked again, in s on the wire.
        /// Default 60 s.
        prefetch_repeat: Duration = "prefetch_repeat_s", required(Seconds { min: 1 }, 60_u64);

        /// Bytes/s of a load until one was seen. Default 1 GiB/s, a local disk.
        load_bytes_per_s: u64 = "load_bytes_per_s", required(Bytes { min: 1 << 10, max: BYTES_MAX }, "1GiB");

        /// What a load takes besides its bytes until one was seen, in ms on the wire. Default 500 ms.
        load_overhead: Duration = "load_overhead_ms", required(Millis { min: 0 }, 500_u64);

        /// Memory bandwidth of a device that does not tell, in bytes/s. Default 20 GB/s, two channels
        /// of plain memory.
        memory_bytes_per_s: u64 = "memory_bytes_per_s",
            required(Bytes { min: 1 << 20, max: BYTES_MAX }, 20_000_000_000_u64);

        /// Bytes of a model that nobody has measured. Default 1 GiB.
        weights_bytes: u64 = "weights_bytes", required(Bytes { min: 1, max: BYTES_MAX }, "1GiB");

        /// Tokens of an answer while neither the catalog nor earlier answers say, if the request
        /// allows as many. Default 512, a page.
        output_tokens_prior: u32 = "output_tokens_prior",
            required(Whole { min: 1, max: 1_048_576_u32 }, 512_u64);
    } with {
        /// `[dispatcher.policy.predictor]`.
        predictor: DispatcherPredictor;
        /// `[dispatcher.policy.correction]`.
        correction: DispatcherCorrection;
    }
}

section! {
    /// `[dispatcher.policy.predictor]`: how the lengths of answers are predicted from those before.
    pub struct DispatcherPredictor at "dispatcher.policy.predictor" {
        /// How long a finished request counts, in s on the wire. Default 240 s: some hundred answers
        /// of a busy model.
        window: Duration = "window_s", required(Seconds { min: 1 }, 240_u64);

        /// The step in which the window moves, in s on the wire. Default 10 s.
        slot: Duration = "slot_s", required(Seconds { min: 1 }, 10_u64);

        /// Part of the answers that are shorter than the low prediction, which per-token targets are
        /// tightest for. Default 0.3.
        quantile_low: f64 = "quantile_low", required(Fraction, 0.3_f64);

        /// Part of the answers that are shorter than the high prediction, which devices are booked
        /// for. Default 0.7: rather too much than too little.
        quantile_high: f64 = "quantile_high", required(Fraction, 0.7_f64);

        /// What an answer counts whose prompt was twice or half as long. Default 0.25; 0 looks at
        /// prompts of the same length alone.
        neighbour_weight: f64 = "neighbour_weight", required(Number { min: 0.0, max: 1.0 }, 0.25_f64);

        /// As how many answers the expectation without history counts. Default 0.5.
        prior_weight: f64 = "prior_weight", required(Number { min: 0.0, max: 1e6 }, 0.5_f64);
    }
}

section! {
    /// `[dispatcher.policy.correction]`: how profiles are corrected by what requests really take.
    pub struct DispatcherCorrection at "dispatcher.policy.correction" {
        /// What the newest request counts once there are many. Default 0.04: 50 requests after a
        /// change 9 % of it are left.
        weight: f64 = "weight", required(Fraction, 0.04_f64);

        /// As how many requests the profile's own word counts. Default 1.
        prior_weight: f64 = "prior_weight", required(Number { min: 0.0, max: 1e6 }, 1.0_f64);

        /// What a request on an idle device counts, against one on a full device. Default 0.5: what an
        /// idle device gains is itself an estimate.
        idle_weight: f64 = "idle_weight", required(Number { min: 0.0, max: 1.0 }, 0.5_f64);

        /// The farthest that a request counts from what was learnt, as a ratio. Default 4.
        outlier_ratio: f64 = "outlier_ratio", required(Number { min: 1.001, max: 1e6 }, 4.0_f64);

        /// The largest factor, and one over the smallest. Default 8: a profile that is wrong by more
        /// belongs to another device.
        factor_max: f64 = "factor_max", required(Number { min: 1.001, max: 1e6 }, 8.0_f64);

        /// From which ratio a profile is off. Default 1.5.
        alarm_ratio: f64 = "alarm_ratio", required(Number { min: 1.001, max: 1e6 }, 1.5_f64);

        /// After how many requests in a row beyond that there is an alarm. Default 20.
        alarm_samples: u32 = "alarm_samples", required(Whole { min: 1, max: 1_000_000_u32 }, 20_u64);

        /// Booked part of a device from which a time corrects a profile that does not say how much
        /// faster an idle device is. Default 0.5.
        load_min: f64 = "load_min", required(Number { min: 0.0, max: 1.0 }, 0.5_f64);
    }
}
