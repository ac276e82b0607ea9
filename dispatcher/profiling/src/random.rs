//! Random numbers of a seed, the same on every machine.

/// A generator (SplitMix64): its numbers are a function of the seed alone.
#[derive(Debug, Clone)]
pub(crate) struct Random {
    state: u64,
}

impl Random {
    /// Another `stream` of the same seed has other numbers.
    pub(crate) fn new(seed: u64, stream: u64) -> Self {
        let mut random = Self {
            state: seed ^ stream.wrapping_mul(0xd134_2543_de82_ef95),
        };
        random.bits();
        random
    }

    fn bits(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.state;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    /// The gap before the next of events that come independently, one in a unit of time.
    #[expect(clippy::cast_precision_loss, reason = "53 bits fit a double exactly")]
    pub(crate) fn gap(&mut self) -> f64 {
        let above_zero = ((self.bits() >> 11) + 1) as f64 / (1_u64 << 53) as f64;
        -above_zero.ln()
    }
}
