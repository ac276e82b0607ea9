//! A decode step allocates nothing: the memory of every step is taken when the model is loaded.
//!
//! A test of its own, because it counts for the whole process.
#![allow(
    clippy::unwrap_used,
    reason = "tests only; clippy sees this in test functions, not in what they call"
)]
#![expect(unsafe_code, reason = "an allocator that counts is an unsafe trait")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use flotilla_worker_engine::{
    CpuBackend, CpuThreads, DecoderModel, KvSpace, LogitBias, LogitEdits, MemoryPlan, ModelFolder,
    ModelLoader, Penalties, Precision, Sampling, SequenceStep, Step, StepLimits, TokenMask,
};

struct Counting;

// SAFETY: every demand of the trait is one on memory, and all memory is the system allocator's: the calls go to
// it as they come. Counting touches an atomic only, so it neither allocates nor unwinds.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise about the layout is the one that the system allocator asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the pointer came from `System`, by `alloc` or the provided methods over it, with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// A sequence of one token a step, on blocks of its own.
struct Decoding {
    block_table: Vec<u32>,
    sampling: Sampling,
    edits: LogitEdits,
    mask: Option<OnceLock<TokenMask>>,
    last: [u32; 1],
}

fn model() -> DecoderModel<CpuBackend> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/gqa-f32");
    let folder = ModelFolder::open(&path).unwrap();
    let limits = StepLimits {
        batch_tokens_max: 16,
        sequences_max: 8,
    };
    let plan = MemoryPlan::new(folder.config(), folder.tensor_infos(), limits, Precision::Stored).unwrap();
    let kv_space = KvSpace::of_one_slab(64, plan.kv_block_bytes());
    let backend = CpuBackend::new(Arc::new(CpuThreads::for_this_machine()));
    let mut loader = ModelLoader::new(backend, plan, kv_space).unwrap();
    for tensor in folder.tensors() {
        loader
            .place(&tensor.info.name, 0, &tensor.read().unwrap())
            .unwrap();
    }
    let mut model = loader.finish().unwrap();
    model.map_kv_slab(0).unwrap();
    model
}

/// Every way to draw, each with and without edits, mask and log-probabilities.
fn decoding() -> Vec<Decoding> {
    let warm = Sampling {
        temperature: 3.0,
        ..Sampling::GREEDY
    };
    let samplings = [
        Sampling::GREEDY,
        warm,
        Sampling { top_p: 0.8, ..warm },
        Sampling {
            top_k: Some(20),
            min_p: 0.1,
            ..warm
        },
    ];
    let edited = samplings.map(|sampling| Sampling {
        logprobs: Some(20),
        ..sampling
    });
    let penalties = Penalties {
        repetition: 1.3,
        presence: 0.5,
        frequency: 0.2,
    };
    let bias = LogitBias {
        token: 5,
        addend: -100.0,
    };
    let plain = samplings.map(|sampling| (sampling, LogitEdits::none()));
    let edited = edited.map(|sampling| (sampling, LogitEdits::new(penalties, [bias]).unwrap()));
    let all = (0u32..).step_by(8).zip(plain.into_iter().chain(edited));
    all.map(|(first_block, (sampling, edits))| Decoding {
        block_table: (first_block..first_block + 8).collect(),
        mask: sampling
            .logprobs
            .map(|_| OnceLock::from(TokenMask::from_words(vec![0xaaaa_aaaa; 3]))),
        sampling,
        edits,
        last: [1],
    })
    .collect()
}

/// Runs one step, in a buffer of the caller's; gives how many tokens came with log-probabilities.
fn step(model: &mut DecoderModel<CpuBackend>, sequences: &mut [Decoding], position: usize) -> usize {
    let parts: [SequenceStep<'_>; 8] = std::array::from_fn(|index| {
        let sequence = &sequences[index];
        SequenceStep {
            tokens: &sequence.last,
            position,
            block_table: &sequence.block_table,
            sample: Some(Sampling {
                position: position as u64,
                ..sequence.sampling
            }),
            edits: Some(&sequence.edits),
            mask: sequence.mask.as_ref(),
        }
    });
    let output = model.submit(&Step { sequences: &parts }).unwrap().wait().unwrap();
    for (sequence, drawn) in sequences.iter_mut().zip(output.sequences) {
        sequence.last = [drawn.token().unwrap()];
        sequence.edits.push_answer(sequence.last[0]);
    }
    (0..8).filter(|index| output.logprobs(*index).is_some()).count()
}

#[test]
fn decode_steps_allocate_nothing_once_the_vocabulary_was_seen() {
    let mut model = model();
    let mut sequences = decoding();
    // The tables of tokens that were seen grow with the vocabulary part of a text and no further.
    for sequence in &mut sequences {
        (0..96).for_each(|token| sequence.edits.push_answer(token));
    }
    for position in 0..4 {
        step(&mut model, &mut sequences, position);
    }
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    for position in 4..104 {
        let with_logprobs = step(&mut model, &mut sequences, position);
        assert_eq!(with_logprobs, 4);
    }
    assert_eq!(ALLOCATIONS.load(Ordering::Relaxed) - before, 0);
    let seen = std::hint::black_box(vec![1u8; 100]);
    assert!(
        ALLOCATIONS.load(Ordering::Relaxed) > before,
        "{} are counted",
        seen.len()
    );
}
