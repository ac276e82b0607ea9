//! What a term is run with.

use std::time::Duration;

use flotilla_protocol::{Epoch, Strikes};
use serde::{Deserialize, Serialize};

use crate::correction::CorrectionSettings;
use crate::predictor::PredictorSettings;
use crate::queue::Weights;

/// The limits and intervals of one term of leadership.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// This term; it goes out with every assignment.
    pub epoch: Epoch,
    /// A worker that was not heard for this long is lost: all that it ran gets a strike and goes elsewhere.
    /// 4 s survives three lost reports; less makes strikes of hiccups, more makes clients wait longer.
    pub worker_lost_after: Duration,
    /// With this many strikes a request is poison and becomes a dead letter.
    pub strikes_max: Strikes,
    /// Most messages held at once, duplicates included; bounds the memory together with the largest body.
    pub held_max: usize,
    /// Most workers known at once; reports of further ones are ignored and counted.
    pub workers_max: usize,
    /// How often a waiting request hears of its place, while that changes.
    pub progress_interval: Duration,
    /// How it is decided who runs where and when.
    pub policy: PolicySettings,
}

/// What decisions are made with. Every default has its reason beside it; `config/flotilla.toml` has the same.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PolicySettings {
    /// How tokens are divided among lines when not all get what they want.
    pub weights: Weights,
    /// Within what time an interactive request without a target is to start, so that it has a place among those that
    /// have one. 30 s: about as long as a person waits.
    pub patience_interactive: Duration,
    /// The same for batch requests. 600 s.
    pub patience_batch: Duration,
    /// A resident model stays at least this many times as long as it took to load, before it may be swapped for
    /// another: with 4, loading takes at most a fifth of a device's time.
    pub min_residency_loads: f64,
    /// The longest that a model stays for that reason. 30 s: somebody waits.
    pub min_residency_max: Duration,
    /// One more copy of a model is loaded when its queue would take this many times as long as the load. 2: the load
    /// pays for itself even when the estimate of the queue is wrong by half.
    pub copy_gain: f64,
    /// A request that found room nowhere for this long gets a device that takes nothing else until it fits. 2 s: long
    /// against most answers' remaining time, short against patience.
    pub reserve_after: Duration,
    /// The least part of its share that a request takes for having more time than the targets that its profile was
    /// measured under. 0.4: what has no target for its end still takes of everybody's time.
    pub share_part_min: f64,
    /// The time to spare, as a part of the time that a request takes on a device, from which the cheapest device is
    /// taken rather than the one that leaves most. 1: what comes later may double that time.
    pub comfort: f64,
    /// By how much somebody who runs may become late, by what is predicted, because of one more. 100 ms: the forecast
    /// is made for the worst length of each answer, and knows no better.
    pub harm_tolerance: Duration,
    /// The part of its holders' time that is planned for a model when it is found out who can be in time. 0.8: arrivals
    /// are uneven, and some time is always lost.
    pub planned_part: f64,
    /// Prompt tokens that a worker reads in one step. 512, as `worker.batch_tokens_max`.
    pub prefill_chunk_tokens: u32,
    /// How many requests of a model are looked at behind one that has to wait for a certain device. 32: as many as
    /// run on one.
    pub look_behind_max: usize,
    /// How often decisions are looked at again that depend on time alone. 250 ms.
    pub review_interval: Duration,
    /// How many models one review looks at, at most; the rest is looked at by the next ones. 64: with 1,000 models each
    /// is looked at every four seconds. It does not bound what else has to wait for a review: long queues are gone
    /// through in parts of about a millisecond.
    pub review_models_max: usize,
    /// How long a worker that was asked to prefetch a model is not asked again. 60 s.
    pub prefetch_repeat: Duration,
    /// Load rate that is assumed until one was seen, in bytes a second. 1 GiB/s: a local disk.
    pub load_bytes_per_s: u64,
    /// What a load takes besides its bytes, until one was seen. 500 ms.
    pub load_overhead: Duration,
    /// Memory bandwidth of a device that does not tell, in bytes a second. 20 GB/s: two channels of plain memory.
    pub memory_bytes_per_s: u64,
    /// Size of a model that nobody knows, in bytes. 1 GiB.
    pub weights_bytes: u64,
    /// Length of an answer, in tokens, when neither the catalog nor earlier answers say and the request allows as
    /// much. 512: a page.
    pub output_tokens_prior: u32,
    /// How output lengths are predicted.
    pub predictor: PredictorSettings,
    /// How profiles are corrected by what is observed.
    pub correction: CorrectionSettings,
    /// The least booked part of a device at which an observed time corrects a profile that does not say how much
    /// faster an idle device is. 0.5.
    pub correction_load_min: f64,
}

impl Default for PolicySettings {
    fn default() -> Self {
        Self {
            weights: Weights::default(),
            patience_interactive: Duration::from_secs(30),
            patience_batch: Duration::from_secs(600),
            min_residency_loads: 4.0,
            min_residency_max: Duration::from_secs(30),
            copy_gain: 2.0,
            reserve_after: Duration::from_secs(2),
            share_part_min: 0.4,
            comfort: 1.0,
            harm_tolerance: Duration::from_millis(100),
            planned_part: 0.8,
            prefill_chunk_tokens: 512,
            look_behind_max: 32,
            review_interval: Duration::from_millis(250),
            review_models_max: 64,
            prefetch_repeat: Duration::from_secs(60),
            load_bytes_per_s: 1 << 30,
            load_overhead: Duration::from_millis(500),
            memory_bytes_per_s: 20_000_000_000,
            weights_bytes: 1 << 30,
            output_tokens_prior: 512,
            predictor: PredictorSettings::default(),
            correction: CorrectionSettings::default(),
            correction_load_min: 0.5,
        }
    }
}
