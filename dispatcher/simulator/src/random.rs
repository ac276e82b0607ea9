//! Random numbers of a seed, the same on every machine.

use std::f64::consts::TAU;

/// A generator (SplitMix64): small, and its numbers are a function of the seed alone.
#[derive(Debug, Clone)]
pub(crate) struct Random {
    state: u64,
}

impl Random {
    /// Another `stream` of the same seed has other numbers: what one part draws does not move another's.
    pub(crate) fn new(seed: u64, stream: u64) -> Self {
        let mut random = Self {
            state: seed ^ stream.wrapping_mul(0xd134_2543_de82_ef95),
        };
        random.next();
        random
    }

    /// 64 random bits.
    pub(crate) fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.state;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    /// A number above 0 and at most 1.
    pub(crate) fn unit(&mut self) -> f64 {
        ((self.next() >> 11) + 1) as f64 / (1_u64 << 53) as f64
    }

    /// Seconds to the next of events that come independently, `rate` of them a second.
    pub(crate) fn gap_s(&mut self, rate: f64) -> f64 {
        -self.unit().ln() / rate
    }

    /// A whole number from `least` to `most`, each as likely.
    pub(crate) fn between(&mut self, least: u32, most: u32) -> u32 {
        let span = u64::from(most - least) + 1;
        least + u32::try_from(self.next() % span).expect("a remainder is below its 32-bit divisor")
    }

    /// One of these, each as likely; none of nothing.
    pub(crate) fn choose(&mut self, among: &[usize]) -> Option<usize> {
        let count = u64::try_from(among.len()).unwrap_or(u64::MAX);
        let drawn = self.next().checked_rem(count)?;
        among.get(usize::try_from(drawn).ok()?).copied()
    }

    /// A number whose logarithm is normal: half of them are below `median`, two thirds within a factor of
    /// `spread.exp()` of it.
    pub(crate) fn lognormal(&mut self, median: f64, spread: f64) -> f64 {
        let radius = (-2.0 * self.unit().ln()).sqrt();
        median * (spread * radius * (TAU * self.unit()).cos()).exp()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_a_function_of_seed_and_stream() {
        let first = |seed, stream| Random::new(seed, stream).next();
        assert_eq!(first(1, 2), first(1, 2));
        assert_ne!(first(1, 2), first(2, 2));
        assert_ne!(first(1, 2), first(1, 3));
    }

    #[test]
    fn draws_have_the_means_that_they_promise() {
        let mut random = Random::new(7, 0);
        let mean = |draw: &mut dyn FnMut() -> f64| (0..20_000).map(|_| draw()).sum::<f64>() / 20_000.0;
        assert!((mean(&mut || random.unit()) - 0.5).abs() < 0.01);
        assert!((mean(&mut || random.gap_s(4.0)) - 0.25).abs() < 0.01);
        assert!((mean(&mut || f64::from(random.between(3, 5))) - 4.0).abs() < 0.03);
        let below = mean(&mut || f64::from(u8::from(random.lognormal(200.0, 0.8) < 200.0)));
        assert!((below - 0.5).abs() < 0.02);
    }
}
