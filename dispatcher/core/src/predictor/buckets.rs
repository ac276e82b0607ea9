//! Numbers of tokens in powers of two.

/// Powers of two: bucket b holds what is nearest to 2^b in log space.
#[derive(Debug, Clone, Copy)]
pub(super) struct Buckets {
    pub(super) count: usize,
}

impl Buckets {
    /// As many as it takes for numbers of up to `tokens_max` tokens: the whole part of log2, rounded up, of one more.
    pub(super) fn up_to(tokens_max: u32) -> Self {
        let above = u64::from(tokens_max) + 1;
        let count = above.next_power_of_two().ilog2().max(1);
        Self {
            count: count as usize,
        }
    }

    /// The bucket of a number of tokens: log2 rounded, of 0 and of 1 the first, of more than the largest the last.
    /// Exact: x >= 2^(b - 1/2) is x^2 >= 2^(2b - 1).
    pub(super) fn of(self, tokens: u32) -> usize {
        let square = u64::from(tokens).pow(2);
        let bucket = square.checked_ilog2().map_or(0, |log2| log2.div_ceil(2));
        (bucket as usize).min(self.count - 1)
    }
}

/// The number of tokens below which a part of the weight lies. Inside a bucket, which reaches from 2^(b - 1/2) to
/// 2^(b + 1/2), the weight is taken to be spread evenly in log space.
pub(super) fn quantile(weights: &[f64], part: f64) -> u32 {
    let wanted = part * weights.iter().sum::<f64>();
    let mut below = 0.0;
    let mut log2 = -0.5;
    for (bucket, &weight) in weights.iter().enumerate().filter(|&(_, &weight)| weight > 0.0) {
        let fraction = ((wanted - below) / weight).clamp(0.0, 1.0);
        log2 = f64::from(u32::try_from(bucket).unwrap_or(u32::MAX)) - 0.5 + fraction;
        below += weight;
        if below >= wanted {
            break;
        }
    }
    whole(log2.exp2())
}

/// The nearest whole number; at most what fits.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn whole(tokens: f64) -> u32 {
    tokens.round() as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// AIBrix case 10.
    #[test]
    fn buckets_are_rounded_logarithms() {
        let buckets = Buckets::up_to(16);
        let of = [4, 5, 6, 7, 0, 1, u32::MAX].map(|tokens| buckets.of(tokens));
        assert_eq!(of, [2, 2, 3, 3, 0, 0, 4]);
    }

    /// A bucket reaches from 2^(b - 1/2) to 2^(b + 1/2): 16 from 11.3 to 22.6, and 256 lies in the middle of its own.
    #[test]
    fn inside_a_bucket_the_answer_moves_with_the_quantile() {
        let weights = |low: f64, high: f64| {
            let mut weights = vec![0.0; 21];
            (weights[4], weights[8]) = (low, high);
            weights
        };
        let within = [0.0, 0.5, 1.0].map(|part| quantile(&weights(10.0, 0.0), part));
        assert_eq!(within, [11, 16, 23]);
        let across = [0.25, 0.5, 0.75, 1.0].map(|part| quantile(&weights(10.0, 10.0), part));
        assert_eq!(across, [16, 23, 256, 362]);
    }
}
