//! The device's edits and draws against the logits processors of Hugging Face transformers.
//!
//! A draw tells more than its token: it inverts the cumulative distribution at a known random number. Many of
//! them fix which tokens remain and how likely each is, whatever the device does inside.

use std::sync::Arc;

use flotilla_worker_engine::{
    AllowedTokens, Backend, CpuBackend, CpuThreads, EDIT_WORDS, EditLogits, LOGPROB_WORDS, LogitEdits,
    PARAMETER_WORDS, Penalties, Sample, Sampling, Span, uniform,
};
use serde::Deserialize;

#[derive(Debug, Deserialize)]
struct Case {
    logits: Vec<f32>,
    seen: Vec<u32>,
    parameters: Parameters,
    logprobs: Vec<f64>,
    probabilities: Vec<f64>,
}

#[derive(Debug, Deserialize)]
struct Parameters {
    repetition_penalty: Option<f32>,
    temperature: f32,
    top_k: Option<u32>,
    top_p: Option<f32>,
    min_p: Option<f32>,
}

impl Parameters {
    fn sampling(&self) -> Sampling {
        Sampling {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p.unwrap_or(1.0),
            min_p: self.min_p.unwrap_or(0.0),
            logprobs: Some(20),
            seed: 11,
            position: 0,
        }
    }

    fn edits(&self, seen: &[u32]) -> LogitEdits {
        let penalties = Penalties {
            repetition: self.repetition_penalty.unwrap_or(1.0),
            ..Penalties::NONE
        };
        let mut edits = LogitEdits::new(penalties, []).unwrap();
        edits.read_prompt(seen);
        edits
    }
}

fn cases() -> Vec<Case> {
    serde_json::from_str(include_str!("../golden-sampling/expected.json")).unwrap()
}

/// A device with one row of logits.
struct Device {
    backend: CpuBackend,
    vocab_size: usize,
    logits: Span,
    parameters: Span,
    scratch: Span,
    drawn: Span,
    logprobs: Span,
}

impl Device {
    fn new(case: &Case) -> Self {
        let vocab_size = case.logits.len();
        let mut backend = CpuBackend::new(Arc::new(CpuThreads::for_this_machine()));
        let region = backend.reserve(1).unwrap();
        backend.map_pages(region, 0..1).unwrap();
        let mut offset_bytes = 0;
        let mut span = |words: usize| {
            let span = Span {
                region,
                offset_bytes,
                len_bytes: words * 4,
            };
            offset_bytes += span.len_bytes;
            span
        };
        let edits: Vec<u32> = case
            .parameters
            .edits(&case.seen)
            .iter()
            .flat_map(|edit| edit.to_words(0))
            .collect();
        assert_eq!(edits.len() % EDIT_WORDS, 0);
        let edits_span = span(edits.len());
        let mut device = Self {
            vocab_size,
            logits: span(vocab_size),
            parameters: span(PARAMETER_WORDS),
            scratch: span(vocab_size),
            drawn: span(1),
            logprobs: span(LOGPROB_WORDS),
            backend,
        };
        device.upload(device.logits, &case.logits);
        device.upload(edits_span, &edits);
        let edit = EditLogits {
            logits: device.logits,
            vocab_size,
            edits: edits_span,
        };
        device.backend.edit_logits(edit).unwrap();
        device
    }

    fn upload<T: bytemuck::Pod>(&mut self, target: Span, values: &[T]) {
        self.backend.upload(target, bytemuck::cast_slice(values)).unwrap();
    }

    fn download(&mut self, source: Span) -> Vec<u32> {
        let mut words = vec![0; source.len_bytes / 4];
        self.backend
            .download(source, bytemuck::cast_slice_mut(&mut words))
            .unwrap();
        words
    }

    fn draw(&mut self, sampling: &Sampling) -> u32 {
        self.upload(self.parameters, &sampling.to_words(AllowedTokens::All));
        let sample = Sample {
            logits: self.logits,
            vocab_size: self.vocab_size,
            parameters: self.parameters,
            scratch: self.scratch,
            out: self.drawn,
            logprobs: self.logprobs,
        };
        self.backend.sample(sample).unwrap();
        self.download(self.drawn)[0]
    }
}

/// Tokens in the order in which the engine sums them up, each with the sum of probabilities up to it.
fn cumulative(case: &Case, edited: &[f32]) -> Vec<(usize, f64)> {
    let mut order: Vec<usize> = (0..edited.len()).collect();
    if case.parameters.top_k.is_some() || case.parameters.top_p.is_some() {
        order.sort_by(|a, b| edited[*b].total_cmp(&edited[*a]));
    }
    let mut sum = 0.0;
    let kept = order.into_iter().filter(|token| case.probabilities[*token] > 0.0);
    kept.map(|token| {
        sum += case.probabilities[token];
        (token, sum)
    })
    .collect()
}

#[test]
fn draws_invert_the_cumulative_distribution_of_the_reference() {
    for (index, case) in cases().iter().enumerate() {
        let mut device = Device::new(case);
        let edited: Vec<f32> = device
            .download(device.logits)
            .into_iter()
            .map(f32::from_bits)
            .collect();
        let cumulative = cumulative(case, &edited);
        let mut counts = vec![0u32; case.logits.len()];
        for position in 0..DRAWS {
            let sampling = Sampling {
                position,
                ..case.parameters.sampling()
            };
            let drawn = device.draw(&sampling) as usize;
            counts[drawn] += 1;
            let at = uniform(sampling.seed, position);
            if cumulative.iter().all(|(_, sum)| (sum - at).abs() > TOLERANCE) {
                let expected = cumulative
                    .iter()
                    .find(|(_, sum)| *sum > at)
                    .map(|(token, _)| *token);
                assert_eq!(Some(drawn), expected, "case {index}, {at}: {:?}", case.parameters);
            }
        }
        for (token, (count, probability)) in counts.iter().zip(&case.probabilities).enumerate() {
            let expected = probability * DRAWS as f64;
            assert!(*count == 0 || expected > 0.0, "case {index}: {token} is left out");
            assert!(*count > 0 || expected < 20.0, "case {index}: {token} remains");
        }
    }
}

#[test]
fn logprobs_equal_those_of_the_reference() {
    for (index, case) in cases().iter().enumerate() {
        let mut device = Device::new(case);
        let is_close = |bits: u32, token: u32| {
            (f64::from(f32::from_bits(bits)) - case.logprobs[token as usize]).abs() < TOLERANCE
        };
        for position in 0..50 {
            let drawn = device.draw(&Sampling {
                position,
                ..case.parameters.sampling()
            });
            let words = device.download(device.logprobs);
            assert!(is_close(words[0], drawn), "case {index}: {drawn}");
            assert_eq!(words[1], 20);
            assert!(
                words[2..].chunks(2).all(|pair| is_close(pair[1], pair[0])),
                "case {index}"
            );
            let top: f64 = words[2..]
                .chunks(2)
                .map(|pair| case.logprobs[pair[0] as usize].exp())
                .sum();
            let mut expected: Vec<f64> = case.logprobs.iter().map(|logprob| logprob.exp()).collect();
            expected.sort_by(|a, b| b.total_cmp(a));
            assert!(
                (top - expected[..20].iter().sum::<f64>()).abs() < TOLERANCE,
                "case {index}"
            );
        }
    }
}

const DRAWS: u64 = 5000;
/// The reference computes in f32; its sums of up to 500 probabilities are off by less.
const TOLERANCE: f64 = 2e-5;
