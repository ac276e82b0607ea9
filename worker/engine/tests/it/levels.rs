//! A token's logits are the same bits at every instruction level and with any number of threads, however its
//! sequence is read, whatever the precision of the weights.

use flotilla_worker_engine::{CpuBackend, DecoderModel, Level, Precision};

use crate::batches::read_together;
use crate::fixture::{GOLDEN, Options, Sequence, bits, blocks_of, golden_folder, load_with, read_chunk};

/// The last token's logits of one sequence: read whole and alone, in chunks and alone, in chunks beside two
/// other sequences.
fn read_three_ways(model: &mut DecoderModel<CpuBackend>) -> [Vec<u32>; 3] {
    let tokens: Vec<u32> = (0..45).map(|index| (index * 37 + 5) % 96).collect();
    let mut whole = Sequence::new(&tokens, blocks_of(0));
    let whole = read_chunk(model, &mut whole, tokens.len());

    let mut alone = [Sequence::new(&tokens, blocks_of(1))];
    let chunks = vec![17, 1, 3];
    let chunked = read_together(model, &mut alone, std::slice::from_ref(&chunks));

    let mut beside = [
        Sequence::new(&tokens[7..], blocks_of(2)),
        Sequence::new(&tokens, blocks_of(3)),
        Sequence::new(&tokens[30..], blocks_of(4)),
    ];
    let batched = read_together(model, &mut beside, &[vec![5, 2], chunks, vec![1]]);
    [bits(&whole), bits(&chunked[0]), bits(&batched[1])]
}

#[test]
fn every_level_and_number_of_threads_gives_the_same_bits_whole_chunked_and_batched() {
    for name in GOLDEN {
        for precision in [Precision::Stored, Precision::Int8, Precision::Int4] {
            let mut expected = None;
            for level in Level::available() {
                for threads in 1..=3 {
                    let options = Options {
                        precision,
                        level,
                        threads,
                        ..Options::default()
                    };
                    let mut model = load_with(&golden_folder(name), options);
                    let ways = read_three_ways(&mut model);
                    let expected = expected.get_or_insert_with(|| ways[0].clone());
                    for (way, logits) in ["whole", "chunked", "batched"].into_iter().zip(&ways) {
                        assert!(logits == expected, "{name}, {way}: {options:?}");
                    }
                }
            }
        }
    }
}
