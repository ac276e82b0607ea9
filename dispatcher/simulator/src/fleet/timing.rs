//! How long the steps and loads of one kind of device take.

use std::time::Duration;

/// Step times and load times.
#[derive(Debug, Clone, PartialEq)]
pub struct Timing {
    /// Prompt tokens that are read in a second.
    pub prefill_tokens_per_s: f64,
    /// Seconds of a step in which one sequence decodes.
    pub decode_step_s: f64,
    /// Seconds that each further sequence adds to it.
    pub decode_sequence_s: f64,
    /// A load whose weights have to be read from where they come from.
    pub load_from_origin: Duration,
    /// A load whose weights are in host memory.
    pub load_from_host: Duration,
}

impl Timing {
    /// How long a step takes that reads this many prompt tokens and draws the next one for this many sequences.
    #[must_use]
    pub fn step(&self, prefill_tokens: usize, decoding_sequences: usize) -> Duration {
        let prefill_s = prefill_tokens as f64 / self.prefill_tokens_per_s;
        let further = decoding_sequences.saturating_sub(1) as f64;
        let decode_s = match decoding_sequences {
            0 => 0.0,
            1.. => self.decode_step_s + self.decode_sequence_s * further,
        };
        Duration::from_secs_f64(prefill_s + decode_s)
    }
}
