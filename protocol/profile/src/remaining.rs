//! What is left of a request that has made some of its tokens.

use std::time::Duration;

use crate::figures::span;
use crate::profile::{DeviceProfile, Signature};

impl DeviceProfile {
    /// Time until the request ends, once `made` tokens are out. Once the answer is as long as predicted it is
    /// taken to be an eighth longer.
    #[must_use]
    pub fn time_left(&self, signature: Signature, made: u32) -> Duration {
        let longer = at_least_longer_than(signature, made);
        span(self.left(longer, made, |signature| self.e2e_seconds(signature)))
    }

    /// What `made` tokens leave of a quantity. Below the first tick, where the grid knows no difference, the tokens
    /// made count in proportion. At least one token's part is left, also where a noisy table falls.
    fn left(&self, signature: Signature, made: u32, quantity: impl Fn(Signature) -> f64) -> f64 {
        let outputs = f64::from(signature.output_tokens.max(1));
        let whole = quantity(signature);
        let first = self.first_output().min(outputs);
        let tokens = f64::from(made);
        let at_made = quantity(Signature {
            output_tokens: made,
            ..signature
        });
        let done = if tokens < first {
            at_made * tokens / first
        } else {
            at_made
        };
        (whole - done).max(whole / outputs)
    }
}

/// The signature, or one of an answer that is an eighth longer than what is out when that is all that was
/// predicted: an answer that outlives its prediction is more likely to go on for a part of its length than
/// to end with the next token.
fn at_least_longer_than(signature: Signature, made: u32) -> Signature {
    if made < signature.output_tokens {
        return signature;
    }
    Signature {
        output_tokens: made.saturating_add((made / 8).max(1)),
        ..signature
    }
}
