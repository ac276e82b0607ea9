//! What a step refuses before anything runs, and what growing and shrinking the KV blocks keeps.

use flotilla_worker_engine::{
    DeviceError, MemoryPlan, ModelFolder, PlanError, Precision, Sampling, SequenceStep, Step, StepError,
    StepLimits, TensorInfo,
};

use crate::fixture::{LIMITS, SLABS, Sequence, bits, blocks_of, golden_folder, load, read_chunk};

const TABLE: [u32; 8] = [0, 1, 2, 3, 4, 5, 6, 7];

const GOOD: SequenceStep<'static> = SequenceStep {
    tokens: &[1, 2, 3],
    position: 0,
    block_table: &TABLE,
    sample: None,
    edits: None,
    mask: None,
};

fn refusal(sequences: &[SequenceStep<'_>]) -> StepError {
    let mut model = load(&golden_folder("gqa-f32"));
    model.submit(&Step { sequences }).map(|_| ()).unwrap_err()
}

#[test]
fn tokens_outside_the_vocabulary_are_refused() {
    let bad = SequenceStep {
        tokens: &[95, 96],
        ..GOOD
    };
    assert!(matches!(
        refusal(&[GOOD, bad]),
        StepError::TokenOutOfVocabulary {
            sequence: 1,
            token: 96,
            vocab_size: 96
        }
    ));
}

#[test]
fn positions_beyond_the_context_are_refused() {
    let bad = SequenceStep {
        position: 126,
        ..GOOD
    };
    assert!(matches!(
        refusal(&[bad]),
        StepError::BeyondContext {
            sequence: 0,
            end: 129,
            max: 128
        }
    ));
    let absurd = SequenceStep {
        position: usize::MAX,
        ..GOOD
    };
    assert!(matches!(
        refusal(&[absurd]),
        StepError::BeyondContext { end: usize::MAX, .. }
    ));
}

#[test]
fn tables_that_do_not_reach_the_last_token_are_refused() {
    let bad = SequenceStep {
        position: 14,
        block_table: &TABLE[..1],
        ..GOOD
    };
    assert!(matches!(
        refusal(&[bad]),
        StepError::TableTooShort {
            sequence: 0,
            found: 1,
            needed: 2
        }
    ));
}

#[test]
fn blocks_without_memory_are_refused_where_they_are_needed() {
    let bad = SequenceStep {
        block_table: &[64],
        ..GOOD
    };
    assert!(matches!(
        refusal(&[bad]),
        StepError::BlockWithoutMemory { block: 64, .. }
    ));
    let unused = SequenceStep {
        block_table: &[63, 64],
        ..GOOD
    };
    let mut model = load(&golden_folder("gqa-f32"));
    model
        .submit(&Step { sequences: &[unused] })
        .unwrap()
        .wait()
        .unwrap();
}

#[test]
fn steps_beyond_the_plan_are_refused() {
    assert!(matches!(
        refusal(&[GOOD; 9]),
        StepError::TooManySequences { found: 9, max: 8 }
    ));
    let long = SequenceStep {
        tokens: &[5; 100],
        ..GOOD
    };
    assert!(matches!(
        refusal(&[long, long]),
        StepError::TooManyTokens { found: 200, max: 192 }
    ));
}

#[test]
fn sequences_without_tokens_are_refused() {
    let bad = SequenceStep { tokens: &[], ..GOOD };
    assert!(matches!(refusal(&[bad]), StepError::NoTokens { sequence: 0 }));
}

#[test]
fn sampling_outside_its_ranges_is_refused() {
    let good = Sampling {
        temperature: 1.0,
        ..Sampling::GREEDY
    };
    for sampling in [
        Sampling {
            temperature: -1.0,
            ..good
        },
        Sampling {
            temperature: f32::NAN,
            ..good
        },
        Sampling {
            temperature: f32::INFINITY,
            ..good
        },
        Sampling { top_p: 0.0, ..good },
        Sampling { top_p: 1.5, ..good },
        Sampling {
            top_p: f32::NAN,
            ..good
        },
        Sampling {
            top_k: Some(0),
            ..good
        },
        Sampling { min_p: 1.5, ..good },
        Sampling {
            min_p: f32::NAN,
            ..good
        },
        Sampling {
            logprobs: Some(21),
            ..good
        },
    ] {
        let bad = SequenceStep {
            sample: Some(sampling),
            ..GOOD
        };
        assert!(
            matches!(refusal(&[bad]), StepError::InvalidSampling { sequence: 0, .. }),
            "{sampling:?}"
        );
    }
}

#[test]
fn an_empty_step_gives_nothing() {
    let mut model = load(&golden_folder("gqa-f32"));
    let output = model.submit(&Step { sequences: &[] }).unwrap().wait().unwrap();
    assert!(output.sequences.is_empty());
}

#[test]
fn a_full_step_runs() {
    let mut model = load(&golden_folder("gqa-f32"));
    let sequences: Vec<Sequence> = (0..8)
        .map(|index| Sequence::new(&[7; 24], blocks_of(index)))
        .collect();
    let parts: Vec<_> = sequences
        .iter()
        .map(|sequence| sequence.part(24, Some(Sampling::GREEDY)))
        .collect();
    let output = model.submit(&Step { sequences: &parts }).unwrap().wait().unwrap();
    assert_eq!(output.sequences.len(), LIMITS.sequences_max);
    assert!(output.sequences.iter().all(|part| *part == output.sequences[0]));
}

#[test]
fn slabs_come_and_go_and_the_others_keep_their_blocks() {
    let mut model = load(&golden_folder("gqa-f32"));
    let tokens: Vec<u32> = (3..40).collect();
    let mut sequence = Sequence::new(&tokens, [20, 63, 7]);
    let mut same = Sequence::new(&tokens, [8, 9, 10]);
    read_chunk(&mut model, &mut sequence, 20);
    for slab in [1, 0, 4] {
        model.unmap_kv_slab(slab).unwrap();
    }
    for slab in [4, 0, 1] {
        model.map_kv_slab(slab).unwrap();
    }
    let continued = read_chunk(&mut model, &mut sequence, 17);
    assert_eq!(bits(&continued), bits(&read_chunk(&mut model, &mut same, 37)));
}

#[test]
fn slabs_that_are_not_there_or_have_memory_are_refused_and_nothing_changes() {
    let mut model = load(&golden_folder("gqa-f32"));
    for beyond in [SLABS + 1, usize::MAX] {
        let refused = model.map_kv_slab(beyond);
        assert!(matches!(refused, Err(DeviceError::RegionFull { .. })), "{beyond}");
    }
    assert!(matches!(
        model.map_kv_slab(3),
        Err(DeviceError::Mapped { page: 3 })
    ));
    let unmapped = model.unmap_kv_slab(SLABS);
    assert!(matches!(unmapped, Err(DeviceError::NotMapped { page: SLABS })));
    read_chunk(&mut model, &mut Sequence::new(&[3, 4], [24]), 2);
}

#[test]
fn plans_count_every_byte_of_weights_and_blocks() {
    let folder = ModelFolder::open(&golden_folder("gqa-f32")).unwrap();
    let plan = MemoryPlan::new(folder.config(), folder.tensor_infos(), LIMITS, Precision::Stored).unwrap();
    // 2 layers, keys and values, 2 heads, 16 tokens, 10 wide, f32.
    assert_eq!(plan.kv_block_bytes(), 2 * 2 * 2 * 16 * 10 * 4);
    assert_eq!(plan.sequence_blocks_max(), 8);
    // Rows of matrices are filled up to sixteen, vectors are as they are; each starts at a multiple of 256.
    let placed = |tensor: &TensorInfo| match tensor.shape.as_slice() {
        [rows, columns] => rows.next_multiple_of(16) * columns * 4,
        vector => vector[0] * 4,
    };
    let aligned: usize = folder
        .tensor_infos()
        .map(|tensor| placed(tensor).next_multiple_of(256))
        .sum();
    assert_eq!(plan.weights_bytes(), aligned);
    assert_eq!(plan.weights_pages(), 1);
}

#[test]
fn plans_refuse_limits_of_zero_and_beyond_addresses() {
    let folder = ModelFolder::open(&golden_folder("gqa-f32")).unwrap();
    let plan = |batch_tokens_max, sequences_max| {
        let limits = StepLimits {
            batch_tokens_max,
            sequences_max,
        };
        MemoryPlan::new(folder.config(), folder.tensor_infos(), limits, Precision::Stored)
            .map(|_| ())
            .unwrap_err()
    };
    assert!(matches!(plan(0, 1), PlanError::ZeroLimit { .. }));
    assert!(matches!(plan(1, 0), PlanError::ZeroLimit { .. }));
    assert!(matches!(plan(usize::MAX, 1), PlanError::TooLarge));
    assert!(matches!(plan(1, usize::MAX / 4), PlanError::TooLarge));
}
