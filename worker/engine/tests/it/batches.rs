//! A token's logits are the same bits alone, in any batch, whole or in chunks, resumed or not.

use flotilla_worker_engine::{BLOCK_TOKENS, CpuBackend, DecoderModel, Sampling, Step};
use proptest::prelude::*;

use crate::fixture::{GOLDEN, Sequence, bits, blocks_of, generate, golden_folder, load, read_chunk};

/// Runs sequences together until all are read; `chunks[i]` says how many tokens the `i`-th takes each step.
/// Gives each sequence's logits after its last token.
pub fn read_together(
    model: &mut DecoderModel<CpuBackend>,
    sequences: &mut [Sequence],
    chunks: &[Vec<usize>],
) -> Vec<Vec<f32>> {
    let mut last_logits = vec![Vec::new(); sequences.len()];
    for round in 0.. {
        let counts: Vec<usize> = sequences
            .iter()
            .zip(chunks)
            .map(|(sequence, chunks)| chunks[round % chunks.len()].min(sequence.tokens.len() - sequence.read))
            .collect();
        let active: Vec<usize> = (0..counts.len()).filter(|index| counts[*index] > 0).collect();
        if active.is_empty() {
            break;
        }
        let parts: Vec<_> = active
            .iter()
            .map(|index| sequences[*index].part(counts[*index], Some(Sampling::GREEDY)))
            .collect();
        let pending = model.submit(&Step { sequences: &parts }).unwrap();
        let (_, logits) = pending.wait_with_logits().unwrap();
        for (index, logits) in active.into_iter().zip(logits) {
            sequences[index].read += counts[index];
            last_logits[index] = logits;
        }
    }
    last_logits
}

fn prompt() -> impl Strategy<Value = Vec<u32>> {
    prop::collection::vec(0u32..96, 1..70)
}

fn chunking() -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(1usize..24, 1..5)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_batch_and_chunking_gives_the_bits_of_one_sequence_read_whole(
        model in 0..GOLDEN.len(),
        mix in prop::collection::vec((prompt(), chunking()), 1..6),
    ) {
        let mut model = load(&golden_folder(GOLDEN[model]));
        let (mut sequences, chunks): (Vec<Sequence>, Vec<Vec<usize>>) = mix
            .into_iter()
            .zip(0..)
            // Tables that run backwards: block ids say nothing about order.
            .map(|((tokens, chunks), index)| {
                let blocks: Vec<u32> = blocks_of(index).collect();
                (Sequence::new(&tokens, blocks.into_iter().rev()), chunks)
            })
            .unzip();
        let together = read_together(&mut model, &mut sequences, &chunks);
        for (sequence, logits) in sequences.iter().zip(together) {
            let mut alone = Sequence::new(&sequence.tokens, blocks_of(7));
            let whole = alone.tokens.len();
            prop_assert_eq!(bits(&read_chunk(&mut model, &mut alone, whole)), bits(&logits));
        }
    }

    #[test]
    fn prefix_in_blocks_of_another_sequence_gives_the_bits_of_reading_it(
        model in 0..GOLDEN.len(),
        common in prop::collection::vec(0u32..96, 1..70),
        (first_rest, second_rest) in (prompt(), prompt()),
        beside: bool,
    ) {
        let mut model = load(&golden_folder(GOLDEN[model]));
        let mut first = Sequence::new(&[&common[..], &first_rest].concat(), blocks_of(0));
        first.tokens.truncate(128);
        let whole = first.tokens.len();
        read_chunk(&mut model, &mut first, whole);

        let mut tokens = [&common[..], &second_rest].concat();
        tokens.truncate(128);
        let full_blocks = common.len().min(tokens.len() - 1) / BLOCK_TOKENS;
        let shared = first.block_table[..full_blocks].iter().copied();
        let mut second = Sequence::new(&tokens, shared.chain(blocks_of(2)));
        second.read = full_blocks * BLOCK_TOKENS;
        let mut alone = Sequence::new(&tokens, blocks_of(4));
        let expected = read_chunk(&mut model, &mut alone, tokens.len());
        let unread = tokens.len() - second.read;
        if beside {
            // Both read from the shared blocks in one step.
            first.read -= 1;
            let parts = [first.part(1, None), second.part(unread, Some(Sampling::GREEDY))];
            let pending = model.submit(&Step { sequences: &parts }).unwrap();
            let (_, logits) = pending.wait_with_logits().unwrap();
            prop_assert_eq!(bits(&logits[0]), bits(&expected));
        } else {
            prop_assert_eq!(bits(&read_chunk(&mut model, &mut second, unread)), bits(&expected));
        }
    }

    #[test]
    fn resumed_generation_equals_the_unbroken_one(
        model in 0..GOLDEN.len(),
        tokens in prompt(),
        broken_after in 1usize..30,
        seed: u64,
    ) {
        let mut model = load(&golden_folder(GOLDEN[model]));
        let sampling =
            Sampling { temperature: 1.0, top_k: Some(50), top_p: 0.95, seed, ..Sampling::GREEDY };
        let mut unbroken = Sequence::new(&tokens, blocks_of(0));
        let all = generate(&mut model, &mut unbroken, 30, sampling);

        let journal = [&tokens[..], &all[..broken_after]].concat();
        let mut resumed = Sequence::new(&journal, blocks_of(1));
        let rest = generate(&mut model, &mut resumed, 30 - broken_after, sampling);
        prop_assert_eq!(rest, &all[broken_after..]);
    }
}

#[test]
fn a_copied_block_continues_like_the_original() {
    let mut model = load(&golden_folder("gqa-f32"));
    let tokens: Vec<u32> = (3..40).collect();
    let mut original = Sequence::new(&tokens, blocks_of(0));
    read_chunk(&mut model, &mut original, 20);
    // The first block is shared, the second is forked in its middle.
    model.copy_kv_block(1, 40).unwrap();
    let mut fork = Sequence::new(&tokens, [0, 40, 41]);
    fork.read = 20;
    let expected = read_chunk(&mut model, &mut original, 17);
    assert_eq!(bits(&read_chunk(&mut model, &mut fork, 17)), bits(&expected));
}
