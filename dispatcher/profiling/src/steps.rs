//! The steps of the device: how fast it reads prompts, and what a token takes with so many sequences at once.

use std::collections::BTreeMap;

use flotilla_profile::Signature;

use crate::measured::{RequestTimes, seconds};

/// How one request made its tokens after the first.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Decoding {
    /// From its first token to its end, in seconds.
    window_s: f64,
    /// Sequences that made tokens meanwhile, on average, itself included.
    sequences: f64,
    /// Prompts of others that were read to their end meanwhile.
    prefills: u32,
}

/// How a cell's requests made their tokens.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Decoded {
    pub(crate) cell: Signature,
    pub(crate) decoding: Vec<Decoding>,
}

impl Decoding {
    /// Looks at a request among all of its point.
    pub(crate) fn of(it: &RequestTimes, all: &[RequestTimes]) -> Self {
        let window_s = seconds(it.first_token, it.end);
        let beside: f64 = all
            .iter()
            .map(|other| {
                let from = other.first_token.max(it.first_token);
                seconds(from, other.end.min(it.end))
            })
            .sum();
        let is_read =
            |other: &&RequestTimes| it.first_token < other.first_token && other.first_token < it.end;
        let prefills = all.iter().filter(is_read).count();
        Self {
            window_s,
            sequences: if window_s > 0.0 { beside / window_s } else { 1.0 },
            prefills: u32::try_from(prefills).unwrap_or(u32::MAX),
        }
    }
}

/// Prompt tokens a second, from the mean times to the first token of requests alone: the slope of the line
/// `ttft = overhead + input / rate` whose relative errors have the least squares. The line goes through the
/// origin where there is one length only, or where one with an overhead would be absurd.
pub(crate) fn prefill_tokens_per_s(alone: &[(Signature, f64)]) -> Option<f64> {
    let (mut w, mut wx, mut wxx, mut wy, mut wxy) = (0.0, 0.0, 0.0, 0.0, 0.0);
    for (cell, ttft_s) in alone.iter().filter(|(_, ttft_s)| *ttft_s > 0.0) {
        let (x, weight) = (f64::from(cell.prompt_tokens), ttft_s.powi(-2));
        w += weight;
        wx += weight * x;
        wxx += weight * x * x;
        wy += weight * ttft_s;
        wxy += weight * x * ttft_s;
    }
    if wxx <= 0.0 {
        return None;
    }
    let determinant = w * wxx - wx * wx;
    let through_origin = wxy / wxx;
    let slope = match determinant > SINGULAR * w * wxx {
        true => {
            let slope = (w * wxy - wx * wy) / determinant;
            let overhead = (wy - slope * wx) / w;
            if slope > 0.0 && overhead >= 0.0 {
                slope
            } else {
                through_origin
            }
        }
        false => through_origin,
    };
    Some(1.0 / slope)
}

/// Seconds of a token against sequences at once.
///
/// The first entry is that of requests alone. For the others each request of a point says: it saw so many sequences
/// on average, and its window, less the time in which prompts of others were read, had so many steps. Requests are
/// grouped by powers of two of their sequences; an entry is the mean of its group, weighted by steps, since a prompt
/// more or less in the window matters less for long answers.
pub(crate) fn tpot_by_batch(
    alone_s: f64,
    loaded: &[Decoded],
    prefill_tokens_per_s: Option<f64>,
) -> Vec<(f64, f64)> {
    let mut groups: BTreeMap<u32, Group> = BTreeMap::new();
    for Decoded { cell, decoding } in loaded {
        let prefill_s = prefill_tokens_per_s.map_or(0.0, |rate| f64::from(cell.prompt_tokens) / rate);
        let steps = f64::from(cell.output_tokens - 1);
        for it in decoding {
            let decode_s = it.window_s - f64::from(it.prefills) * prefill_s;
            // Where little is left the difference is made of the errors of both.
            let is_clear = decode_s >= DECODING_MIN * it.window_s && decode_s > 0.0;
            if let Some(power) = power_of(it.sequences).filter(|_| is_clear) {
                let group = groups.entry(power).or_default();
                group.add(it.sequences, decode_s, steps);
            }
        }
    }
    let means = groups.into_values().filter_map(Group::mean);
    std::iter::once((1.0, alone_s)).chain(means).collect()
}

/// The nearest power of two; `None` for that of 0 and below, which is being alone.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the logarithm of a number of sequences lies between 0.5 and 32"
)]
fn power_of(sequences: f64) -> Option<u32> {
    let power = sequences.log2().round();
    (power >= 1.0).then_some(power as u32)
}

#[derive(Debug, Default)]
struct Group {
    requests: u32,
    sequences: f64,
    seconds: f64,
    steps: f64,
}

impl Group {
    fn add(&mut self, sequences: f64, seconds: f64, steps: f64) {
        self.requests += 1;
        self.sequences += sequences * steps;
        self.seconds += seconds;
        self.steps += steps;
    }

    fn mean(self) -> Option<(f64, f64)> {
        let mean = (self.sequences / self.steps, self.seconds / self.steps);
        (self.requests >= GROUP_REQUESTS_MIN).then_some(mean)
    }
}

/// Below this, relative to its terms, the determinant is rounding: there is one length only.
const SINGULAR: f64 = 1e-9;
/// Least part of a window that has to be decoding.
const DECODING_MIN: f64 = 0.5;
/// Fewer requests may all be of one odd moment.
const GROUP_REQUESTS_MIN: u32 = 5;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn cell(prompt_tokens: u32) -> Signature {
        Signature {
            prompt_tokens,
            output_tokens: 11,
        }
    }

    fn times(first_ms: u64, end_ms: u64) -> RequestTimes {
        RequestTimes {
            sent: Duration::ZERO,
            started: Duration::ZERO,
            first_token: Duration::from_millis(first_ms),
            end: Duration::from_millis(end_ms),
            output_tokens: 11,
        }
    }

    #[test]
    fn the_rate_of_prefill_is_free_of_what_every_request_costs() {
        let alone = [100, 400, 1600].map(|tokens| (cell(tokens), 0.03 + f64::from(tokens) / 5000.0));
        let rate = prefill_tokens_per_s(&alone).unwrap();
        assert!((rate - 5000.0).abs() < 1.0, "{rate}");
        let one = prefill_tokens_per_s(&[(cell(100), 0.05)]).unwrap();
        assert!((one - 2000.0).abs() < 1e-6, "{one}");
        // Longer prompts that come sooner are noise; still a rate above 0.
        let absurd = [(cell(100), 0.05), (cell(200), 0.01)];
        assert!(prefill_tokens_per_s(&absurd).unwrap() > 0.0);
        assert_eq!(prefill_tokens_per_s(&[]), None);
    }

    #[test]
    fn a_request_sees_the_mean_of_those_that_decode_beside_it() {
        let (it, half, apart) = (times(100, 300), times(200, 400), times(300, 500));
        let seen = Decoding::of(&it, &[it, half, apart]);
        assert!((seen.sequences - 1.5).abs() < 1e-9, "{seen:?}");
        assert_eq!(seen.prefills, 1);
    }

    #[test]
    fn time_in_which_others_prompts_are_read_is_no_time_of_tokens() {
        // Ten steps of 20 ms each, and two prompts of 50 ms between them.
        let it = Decoding {
            window_s: 0.3,
            sequences: 4.0,
            prefills: 2,
        };
        let loaded = [Decoded {
            cell: cell(50),
            decoding: vec![it; 5],
        }];
        let steps = tpot_by_batch(0.01, &loaded, Some(1000.0));
        assert_eq!(steps[0], (1.0, 0.01));
        assert!(
            (steps[1].0 - 4.0).abs() < 1e-9 && (steps[1].1 - 0.02).abs() < 1e-9,
            "{steps:?}"
        );
        let few = [Decoded {
            cell: cell(50),
            decoding: vec![it; 4],
        }];
        assert_eq!(tpot_by_batch(0.01, &few, Some(1000.0)).len(), 1);
    }
}
