//! How many bytes a second the threads can read from memory: the bound of everything that reads all weights
//! for a token.

use std::num::NonZeroUsize;
use std::thread;
use std::time::Instant;

use super::work::per_s;

/// A buffer that no cache holds.
#[derive(Debug)]
pub(crate) struct Memory {
    words: Vec<u64>,
    threads: NonZeroUsize,
    best: f64,
}

impl Memory {
    /// Fills a buffer of `buffer_mib`, so that all of it has memory behind it.
    pub(crate) fn new(buffer_mib: u16, threads: NonZeroUsize) -> Self {
        Self {
            words: vec![1; usize::from(buffer_mib) * WORDS_PER_MIB],
            threads,
            best: 0.0,
        }
    }

    /// The best of some passes of all threads together, bytes a second.
    pub(crate) fn read(&mut self) -> f64 {
        let best = (0..PASSES).map(|_| self.pass()).fold(0.0, f64::max);
        self.best = self.best.max(best);
        best
    }

    /// The best of all passes so far, bytes a second.
    pub(crate) const fn best(&self) -> f64 {
        self.best
    }

    fn pass(&self) -> f64 {
        let share = self.words.len().div_ceil(self.threads.get());
        let begun = Instant::now();
        let total = thread::scope(|scope| {
            let parts: Vec<_> = self
                .words
                .chunks(share)
                .map(|part| scope.spawn(move || sum(part)))
                .collect();
            parts
                .into_iter()
                .map(|part| part.join().expect("adding does not panic"))
                .fold(0, u64::wrapping_add)
        });
        let speed = per_s(size_of_val(self.words.as_slice()), begun.elapsed());
        // Looks at the sum, so that nothing of it can be left out.
        assert_eq!(total, self.words.len() as u64, "the buffer holds ones");
        speed
    }
}

/// As many sums side by side as hide the time that an addition takes.
fn sum(words: &[u64]) -> u64 {
    let mut sums = [0u64; LANES];
    let (rows, rest) = words.as_chunks::<LANES>();
    for row in rows {
        for (sum, word) in sums.iter_mut().zip(row) {
            *sum = sum.wrapping_add(*word);
        }
    }
    sums.iter().chain(rest).copied().fold(0, u64::wrapping_add)
}

const WORDS_PER_MIB: usize = (1 << 20) / size_of::<u64>();

/// A pass over 1 GiB takes some 25 ms with two threads.
const PASSES: usize = 4;

const LANES: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reading_is_never_better_than_the_best() {
        let mut memory = Memory::new(1, NonZeroUsize::new(3).unwrap());
        let readings = [memory.read(), memory.read()];
        assert!(readings.iter().all(|reading| *reading > 0.0));
        assert_eq!(memory.best(), readings[0].max(readings[1]));
    }

    #[test]
    fn every_word_is_in_the_sum() {
        let words: Vec<u64> = (0..1_000).collect();
        assert_eq!(sum(&words), 499_500);
    }
}
